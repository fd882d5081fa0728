//! Networks and hardware addresses, and how they are written.

mod mac;
mod prefix;

pub use mac::Mac;
pub use prefix::Prefix;
