//! One macro for every set of codes: the number that crosses the kernel boundary, its name in events, and what it means.
//!
//! Events, metrics, `docs/events.md` and `docs/internals/codes.md` are made from these tables (`tests/pages.rs`).

/// A table of codes: each row is what it means, a name in Rust, the number, and the name for people. An unknown number is `None`.
///
/// `enum` makes a type; `mod` makes constants, for numbers that others gave out or that stay numbers in a record.
macro_rules! codes {
    ($(#[$outer:meta])* enum $type:ident: $repr:ident { $($(#[doc = $text:literal])+ $variant:ident = $code:literal, $name:literal;)+ }) => {
        $(#[$outer])*
        #[repr($repr)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $type { $($(#[doc = $text])+ $variant = $code,)+ }
        impl $type {
            /// Every one.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];
            /// From its code; `None`: no build that this one knows of gave it out.
            #[must_use]
            #[inline(always)]
            pub const fn from_code(code: $repr) -> Option<Self> {
                match code { $($code => Some(Self::$variant),)+ _ => None }
            }
            /// Its name for people.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }
            /// What it means, in one sentence or two.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self { $(Self::$variant => concat!($($text),+).trim_ascii(),)+ }
            }
        }
    };
    ($(#[$outer:meta])* mod $module:ident: $repr:ident { $($(#[doc = $text:literal])+ $constant:ident = $code:literal, $name:literal;)+ }) => {
        $(#[$outer])*
        pub mod $module {
            $($(#[doc = $text])+ pub const $constant: $repr = $code;)+
            /// Every one, with its name and what it means.
            pub const ALL: &[($repr, &str, &str)] = &[$(($code, $name, concat!($($text),+).trim_ascii())),+];
            /// The name of a code.
            #[must_use]
            pub const fn name(code: $repr) -> Option<&'static str> {
                match code { $($code => Some($name),)+ _ => None }
            }
            /// The code of a name.
            #[must_use]
            pub fn from_name(name: &str) -> Option<$repr> {
                match name { $($name => Some($code),)+ _ => None }
            }
        }
    };
}
pub(crate) use codes;
