//! Networks and hardware addresses, and how they are written.

mod mac;
mod prefix;

pub(crate) use mac::Mac;
pub(crate) use prefix::Prefix;
