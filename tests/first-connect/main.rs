//! A static program whose first instructions are `socket` and `connect`: nothing of it runs before it reaches for the PLC, so a mark that
//! came later than the first instruction would let it through.
//!
//! It connects to 10.20.4.7:502 over TCP, writes nothing, and exits with 0 when the connection was made, else with the error number.
#![no_std]
#![no_main]

#[cfg(not(target_arch = "x86_64"))]
compile_error!("pp-first-connect is written for x86-64");

core::arch::global_asm!(
    ".globl _start",
    "_start:",
    "mov eax, 41", // socket(AF_INET, SOCK_STREAM, 0)
    "mov edi, 2",
    "mov esi, 1",
    "xor edx, edx",
    "syscall",
    "mov edi, eax", // connect(fd, plc, 16)
    "lea rsi, [rip + plc]",
    "mov edx, 16",
    "mov eax, 42",
    "syscall",
    "neg eax", // exit_group(-result)
    "mov edi, eax",
    "mov eax, 231",
    "syscall",
    ".balign 8",
    "plc:",
    ".short 2",            // AF_INET
    ".byte 1, 246",        // port 502, network order
    ".byte 10, 20, 4, 7",  // 10.20.4.7
    ".quad 0",
);

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {
        core::hint::spin_loop();
    }
}
