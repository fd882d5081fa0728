//! Networks and hardware addresses, and their text forms.

mod mac;
mod prefix;

pub(crate) use mac::Mac;
pub(crate) use prefix::Prefix;
