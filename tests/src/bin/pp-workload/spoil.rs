//! Bytes that are no line, in the buffer of lines that the programs write for the daemon's log.

use std::os::fd::AsRawFd as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use nix::libc;
use serde_json::json;

use crate::outcome;
use crate::undo::{call, instruction, load, pinned};

/// Commands, types and helpers of `linux/bpf.h`.
const BPF_PROG_TEST_RUN: libc::c_long = 10;
const BPF_PROG_TYPE_SOCKET_FILTER: u32 = 1;
const BPF_PSEUDO_MAP_FD: u8 = 1;
const BPF_FUNC_RINGBUF_OUTPUT: i32 = 130;
/// More than a link-layer header, the least that a program is run with.
const PACKET: [u8; 64] = [0; 64];

#[repr(C)]
#[derive(Default)]
struct TestRun {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
}

/// Has a program write eight bytes of ones there, so many times at once: a line says first how long it is.
pub(crate) fn run(buffer: &Path, times: u32) -> Result<()> {
    let buffer = pinned(buffer)?;
    let program = [
        // *(u64 *)(r10 - 8) = -1.
        instruction(0x7a, 10, -8, -1),
        // ringbuf_output(buffer, r10 - 8, 8, 0).
        instruction(0x18, BPF_PSEUDO_MAP_FD << 4 | 1, 0, buffer.as_raw_fd()),
        instruction(0, 0, 0, 0),
        instruction(0xbf, 0xa2, 0, 0),
        instruction(0x07, 2, 0, -8),
        instruction(0xb7, 3, 0, 8),
        instruction(0xb7, 4, 0, 0),
        instruction(0x85, 0, 0, BPF_FUNC_RINGBUF_OUTPUT),
        // return.
        instruction(0x95, 0, 0, 0),
    ];
    let program = load(BPF_PROG_TYPE_SOCKET_FILTER, 0, &program)?;
    let run = TestRun {
        prog_fd: u32::try_from(program.as_raw_fd())?,
        data_size_in: u32::try_from(PACKET.len())?,
        data_in: PACKET.as_ptr() as u64,
        repeat: times,
        ..TestRun::default()
    };
    let _done = call(BPF_PROG_TEST_RUN, &run).context("the kernel does not run the program")?;
    outcome::print(&json!({"done": true}))
}
