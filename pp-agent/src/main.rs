//! The `pp-agent` program.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    pp_agent::cli::main()
}
