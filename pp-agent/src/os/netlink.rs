//! Messages of netlink(7) and the attributes in them.

use std::io;

use netlink_packet_core::{NLMSG_ERROR, NetlinkBuffer, NlasIterator};

/// `struct nlmsghdr`.
const HEADER_LEN: usize = 16;
/// `struct nlattr`.
const ATTRIBUTE_HEADER_LEN: usize = 4;

/// A message to the kernel.
///
/// # Errors
/// It is longer than a message can be.
pub(crate) fn request(kind: u16, flags: u16, payload: &[u8]) -> io::Result<Vec<u8>> {
    let mut bytes = [&[0; HEADER_LEN], payload].concat();
    let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    let mut header = NetlinkBuffer::new(&mut bytes[..]);
    header.set_length(length);
    header.set_message_type(kind);
    header.set_flags(flags);
    Ok(bytes)
}

/// One message of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Message<'a> {
    /// Its type.
    pub(crate) kind: u16,
    /// Its flags.
    pub(crate) flags: u16,
    /// The bytes after its header.
    pub(crate) payload: &'a [u8],
}

/// The messages of one answer. The last is an error if the answer is cut short.
pub(crate) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = io::Result<Message<'_>>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let message = match NetlinkBuffer::new_checked(bytes) {
            Ok(message) => message,
            Err(error) => {
                bytes = &[];
                return Some(Err(io::Error::other(error)));
            }
        };
        let length = usize::try_from(message.length()).unwrap_or(usize::MAX).max(HEADER_LEN);
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Ok(Message { kind: message.message_type(), flags: message.flags(), payload: message.payload() }))
    })
}

/// The result of a request, if the message reports one.
pub(crate) fn outcome(message: &Message<'_>) -> Option<io::Result<()>> {
    (message.kind == NLMSG_ERROR).then(|| match message.payload.first_chunk() {
        Some(code) if i32::from_ne_bytes(*code) == 0 => Ok(()),
        // The message has the negative error number.
        Some(code) => Err(io::Error::from_raw_os_error(i32::from_ne_bytes(*code).wrapping_neg())),
        None => Err(io::Error::other("netlink: a short answer")),
    })
}

/// The attributes in some bytes, as number and value. Stops at a malformed one.
pub(crate) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    NlasIterator::new(bytes).map_while(|attribute| {
        let attribute = attribute.ok()?;
        let (kind, length) = (attribute.kind(), usize::from(attribute.length()));
        Some((kind, attribute.into_inner().get(ATTRIBUTE_HEADER_LEN..length)?))
    })
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::NLMSG_DONE;

    use super::*;

    #[test]
    fn messages_end_where_their_lengths_say() {
        let mut bytes = request(NLMSG_DONE, 2, &[1, 2, 3]).unwrap();
        bytes.push(0);
        let all: Vec<_> = messages(&[&bytes[..], &bytes[..]].concat()).map(|message| message.unwrap().payload.to_vec()).collect();
        assert_eq!(all, [vec![1, 2, 3], vec![1, 2, 3]]);
        // One is cut short, the other has the length zero.
        for broken in [&bytes[..18], &[0; 40]] {
            let all: Vec<_> = messages(broken).collect();
            assert!(matches!(&all[..], [Err(_)]), "{all:?}");
        }
    }

    #[test]
    fn errors_are_the_kernels_own() {
        let message = |code: i32| request(NLMSG_ERROR, 0, &code.to_ne_bytes()).unwrap();
        let outcome_of = |bytes: &[u8]| outcome(&messages(bytes).next().unwrap().unwrap());
        assert!(matches!(outcome_of(&message(0)), Some(Ok(()))));
        let refused = outcome_of(&message(-libc::ENOENT)).unwrap().unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::ENOENT));
        assert!(outcome_of(&request(NLMSG_DONE, 0, &[]).unwrap()).is_none());
    }
}
