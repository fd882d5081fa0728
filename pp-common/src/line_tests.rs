//! Lines against aya-log's own encoder.

extern crate std;

use std::{format, mem::MaybeUninit, vec::Vec};

use aya_log_common::{Argument, Field, Header};

use super::*;
use crate::decide::{Kind, transport};
use crate::dest::Addr;

fn header(program: &str, level: Level, arguments: u32) -> Vec<u8> {
    let filler = " ".repeat(NAME_LEN - program.len());
    let header = Header::new(program, level, &filler, "", 0, arguments).expect("its parts are short");
    let mut bytes = Vec::new();
    header.with_bytes(&mut |part| append(&mut bytes, part)).expect("there is room");
    bytes
}

fn argument(bytes: &mut Vec<u8>, value: &impl Argument) {
    let (kind, value) = value.as_argument();
    let field = Field::new(kind, value).expect("it is short");
    field.with_bytes(&mut |part| append(bytes, part)).expect("there is room");
}

fn append(bytes: &mut Vec<u8>, part: &[u8]) -> Option<()> {
    bytes.extend(part);
    Some(())
}

/// The fields of a line that the kernel would hand over.
fn fields<T>(line: &T) -> Vec<u8> {
    // SAFETY: repr(C) without padding: their members add up to their sizes.
    let bytes = unsafe { core::slice::from_raw_parts(core::ptr::from_ref(line).cast::<u8>(), size_of::<T>()) };
    assert_eq!(usize::from(u16::from_ne_bytes([bytes[0], bytes[1]])), bytes.len());
    bytes[2..].to_vec()
}

/// What the next daemon finds in a pinned `AYA_LOGS`. Where these change, the layout does.
#[test]
fn lines_are_those_of_the_layout_of_their_map() {
    assert_eq!(crate::maps::AYA_LOGS.layout, 1);
    let bytes = warning("pp_fork", Trouble::TasksFull);
    let text = format!("{:64}", Trouble::TasksFull.text());
    let expected = [
        &b"\x00\x07\x00pp_fork\x01\x01\x00\x02\x02\x09\x00         \x03\x00\x00\x04\x04\x00\x00\x00\x00\x00\x05\x04\x00\x01\x00\x00\x00"[..],
        b"\x14\x40\x00",
        text.as_bytes(),
    ];
    assert_eq!(bytes, expected.concat());
    let bytes = blocked("pp_egress", [1; 16], Reason::NoReceipt);
    let expected = [
        &b"\x00\x09\x00pp_egress\x01\x01\x00\x04\x02\x07\x00       \x03\x00\x00\x04\x04\x00\x00\x00\x00\x00\x05\x04\x00\x0e\x00\x00\x00"[..],
        b"\x14\x09\x00blocked: \x00\x01\x00\x04\x11\x10\x00\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01",
        b"\x14\x06\x00 port \x07\x02\x00\xf6\x01\x14\x0c\x00, transport \x06\x01\x00\x06",
        b"\x14\x0d\x00, of session \x00\x01\x00\x02\x09\x08\x00\xef\xcd\xab\x89\x67\x45\x23\x01",
        b"\x14\x0a\x00, process \x08\x04\x00\x67\x12\x00\x00\x14\x0e\x00, with reason \x14\x18\x00no_receipt              ",
    ];
    assert_eq!(bytes, expected.concat());
}

/// A line of this program about this trouble.
fn warning(program: &str, trouble: Trouble) -> Vec<u8> {
    let mut line = MaybeUninit::uninit();
    // SAFETY: memory of this size, every byte of which is written.
    let line = unsafe {
        Warning::write(line.as_mut_ptr(), &WarningProgram::new(program), trouble as usize);
        line.assume_init()
    };
    fields(&line)
}

/// A line of this program about an attempt to reach port 502 there.
fn blocked(program: &str, octets: [u8; 16], reason: Reason) -> Vec<u8> {
    let attempt = Attempt { addr: Addr::v6(octets), port: 502, transport: transport::TCP, kind: Kind::Open, counted: 0 };
    let subject = Subject { session: 0x0123_4567_89ab_cdef, agent: 1, owner: 2 };
    let mut line = MaybeUninit::uninit();
    // SAFETY: as above.
    let line = unsafe {
        Blocked::new(program).write(line.as_mut_ptr(), &attempt, &subject, 4_711, reason);
        line.assume_init()
    };
    fields(&line)
}

#[test]
fn warning_is_what_aya_log_would_write() {
    for program in ["pp_connect4", "pp_entry_connect", ""] {
        for trouble in Trouble::ALL {
            let mut expected = header(program, Level::Warn, 1);
            argument(&mut expected, &format!("{:64}", trouble.text()).as_str());
            assert_eq!(warning(program, *trouble), expected, "{program} {trouble:?}");
        }
    }
}

#[test]
fn line_about_a_blocked_attempt_is_what_aya_log_would_write() {
    let octets = [0x20, 1, 0xd, 0xb8, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];
    for reason in Reason::ALL {
        let mut expected = header("pp_egress", Level::Debug, 14);
        argument(&mut expected, &"blocked: ");
        argument(&mut expected, &DisplayHint::Ip);
        argument(&mut expected, &octets);
        argument(&mut expected, &" port ");
        argument(&mut expected, &502_u16);
        argument(&mut expected, &", transport ");
        argument(&mut expected, &6_u8);
        argument(&mut expected, &", of session ");
        argument(&mut expected, &DisplayHint::LowerHex);
        argument(&mut expected, &0x0123_4567_89ab_cdef_u64);
        argument(&mut expected, &", process ");
        argument(&mut expected, &4_711_u32);
        argument(&mut expected, &", with reason ");
        argument(&mut expected, &format!("{:24}", reason.name()).as_str());
        assert_eq!(blocked("pp_egress", octets, *reason), expected, "{reason:?}");
    }
}
