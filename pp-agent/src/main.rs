//! The `pp-agent` program.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    // The child of the daemon's canary, which is no command for people.
    if std::env::args().nth(1).as_deref() == Some(pp_agent::kernel::canary::COMMAND) {
        return match pp_agent::kernel::canary::child(&std::env::args_os().skip(2).map(Into::into).collect::<Vec<_>>()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        };
    }
    pp_agent::cli::main()
}
