//! The programs in the kernel. A hook reads its context, asks
//! [`pp_common::decide::decide`], counts and reports, and returns; which hook
//! sees what is in `docs/kernels.md`.
//!
//! For a marked task or socket every error refuses, for an unmarked one it
//! allows; an unmarked caller pays one lookup.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]
// Atomic addition: `core::sync::atomic` has none for this target.
#![cfg_attr(all(target_arch = "bpf", not(feature = "bench-empty")), feature(asm_experimental_arch))]
#![cfg_attr(
    target_arch = "bpf",
    allow(clippy::needless_borrows_for_generic_args, reason = "by value the map key is copied, 74 to 88 verified instructions a lookup")
)]

#[cfg(all(target_arch = "bpf", feature = "bench-empty"))]
mod empty;
#[cfg(all(target_arch = "bpf", not(feature = "bench-empty")))]
mod gate;

/// On the host the crate is empty, so that plain cargo commands cover it.
#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// A reachable panic is an endless loop, which the verifier refuses to load.
#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
