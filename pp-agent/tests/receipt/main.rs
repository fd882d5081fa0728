//! Receipts from the outside: the public vectors, spoiled artifacts, each condition of the gate, and the operator's tools.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a helper that cannot do its work must end the test")]

mod conditions;
mod evidence;
mod operator;
mod support;
mod terms;
mod vectors;
