//! Forwards the log lines of the kernel programs (`pp-ebpf/src/gate/log.rs`) to `tracing`. The target of a line is its program.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use aya_log::EbpfLogger;
use log::{Level, Log, Metadata, Record};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use pp_common::{abi::CONTROL_LOG, maps::AYA_LOGS};
use tracing_log::AsTrace as _;

use super::{Gate, KernelError, links, programs};
use crate::causes::chain;

/// The pause between two reads, in which lines collect. A buffer is readable as soon as a program starts to write a line.
const PAUSE: Duration = Duration::from_millis(50);
/// After so many failed reads in a row the thread ends.
const MAX_FAILED_READS: u32 = 5;

/// The reading end. The map outlives the daemon, so the next daemon reads the lines that this one has not read.
pub(super) struct ProgramLog(EbpfLogger<Forward>);

impl ProgramLog {
    /// Opens the map that the programs of these links write to, even if another one is pinned by now. `None`, with a warning: lines of the
    /// programs are not logged.
    pub(super) fn open(links: &[OwnedFd]) -> Option<Self> {
        let mut problem = "no program is attached".to_owned();
        for link in links {
            match Self::of(link.as_fd()) {
                Ok(log) => return Some(log),
                Err(error) => problem = error,
            }
        }
        tracing::warn!("{}: {problem}; lines of the kernel programs are not logged", AYA_LOGS.name);
        None
    }

    fn of(link: BorrowedFd<'_>) -> Result<Self, String> {
        let program = links::link_info(link).map_err(|error| error.to_string())?.program_id;
        EbpfLogger::init_from_id_with_logger(program, Forward).map(Self).map_err(|error| chain(&error))
    }

    /// Forwards lines until the daemon ends, on a separate thread, so that a storm of lines delays nothing else.
    pub(super) fn follow(self) {
        let started = std::thread::Builder::new().name("program-log".to_owned()).spawn(move || self.run());
        if let Err(error) = started {
            tracing::warn!("lines of the kernel programs are not logged: {error}");
        }
    }

    fn run(mut self) {
        let wait = |logger: &EbpfLogger<Forward>| {
            let polled = poll(&mut [PollFd::new(logger.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE);
            polled.map(drop).or_else(|error| if error == Errno::EINTR { Ok(()) } else { Err(error) })
        };
        let why = read_until_error(&mut self.0, EbpfLogger::flush, wait, PAUSE);
        tracing::warn!("{}: {why}; lines of the kernel programs are not logged any more", AYA_LOGS.name);
    }
}

/// Flushes and waits alternately. Returns why it cannot continue.
fn read_until_error<T>(logger: &mut T, flush: impl Fn(&mut T), wait: impl Fn(&T) -> nix::Result<()>, pause: Duration) -> String {
    let mut failed = 0;
    loop {
        // aya-log panics on bytes that are no line. The next call continues after them, or panics again.
        if catch_unwind(AssertUnwindSafe(|| flush(logger))).is_ok() {
            failed = 0;
        } else {
            failed += 1;
            if failed == MAX_FAILED_READS {
                return format!("{MAX_FAILED_READS} lines in a row cannot be read");
            }
            if failed == 1 {
                tracing::warn!("{}: a line cannot be read", AYA_LOGS.name);
            }
        }
        std::thread::sleep(pause);
        if failed == 0
            && let Err(error) = wait(logger)
        {
            return error.to_string();
        }
    }
}

impl Gate {
    /// Has the programs write a line for each attempt and packet that they block, if the log shows such lines. Called before there is a
    /// `Publisher`.
    pub(super) fn ask_for_lines(&self) -> Result<(), KernelError> {
        self.maps.set_flag(CONTROL_LOG, programs::all().any(|program| is_logged(program.name, Level::Debug)))
    }
}

/// Whether the daemon's log shows lines of this target and level.
fn is_logged(target: &str, level: Level) -> bool {
    let metadata = Metadata::builder().target(target).level(level).build();
    tracing::dispatcher::get_default(|dispatch| dispatch.enabled(&metadata.as_trace()))
}

/// Forwards a line to `tracing`.
struct Forward;

impl Log for Forward {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        is_logged(metadata.target(), metadata.level())
    }

    fn log(&self, record: &Record<'_>) {
        let (program, text) = (record.target(), record.args().to_string());
        // The log does not show targets.
        let line = format!("{program}: {}", text.trim_end());
        let result =
            tracing_log::format_trace(&Record::builder().target(program).level(record.level()).args(format_args!("{line}")).build());
        if let Err(error) = result {
            tracing::debug!("{line}: {error}");
        }
    }

    fn flush(&self) {}
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::io;
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::{EnvFilter, Layer as _, fmt, layer::SubscriberExt as _};

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Runs the loop with this flush, which gets the number of its call, until the fifth wait fails. Returns the number of calls and why the
    /// loop ended.
    fn read(each: impl Fn(u32)) -> (u32, String) {
        let (mut calls, waits) = (0, Cell::new(0));
        let flush = |calls: &mut u32| {
            *calls += 1;
            each(*calls);
        };
        let wait = |_: &u32| {
            waits.set(waits.get() + 1);
            if waits.get() == 5 { Err(Errno::EBADF) } else { Ok(()) }
        };
        let why = read_until_error(&mut calls, flush, wait, Duration::ZERO);
        (calls, why)
    }

    #[test]
    fn reading_continues_after_bad_lines_and_ends_if_waiting_fails() {
        assert_eq!(read(|_| {}), (5, Errno::EBADF.to_string()));
        // More bad lines than the limit, but not in a row.
        assert_eq!(read(|call| assert!(call % 2 == 0, "no line")), (10, Errno::EBADF.to_string()));
    }

    #[test]
    fn reading_ends_after_a_few_bad_lines_in_a_row() {
        assert_eq!(read(|call| assert!(call == 1, "no line")), (1 + MAX_FAILED_READS, "5 lines in a row cannot be read".to_owned()));
    }

    /// What the log shows of two lines under this filter.
    fn shown(filter: &str) -> String {
        let written = Written::default();
        let sink = written.clone();
        let layer = fmt::layer().with_writer(move || sink.clone()).with_ansi(false).without_time().with_target(false);
        let subscriber = tracing_subscriber::registry()
            .with(EnvFilter::new(filter))
            .with(layer.with_filter(tracing_subscriber::filter::LevelFilter::TRACE));
        tracing::subscriber::with_default(subscriber, || {
            let line = |program: &str, level, text: &str| {
                Forward.log(&Record::builder().target(program).level(level).args(format_args!("{text}")).build());
            };
            line("pp_fork", Level::Warn, "TASKS is full          ");
            line("pp_egress", Level::Debug, "blocked");
        });
        String::from_utf8(written.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn lines_name_their_program_and_lose_their_padding() {
        assert_eq!(shown("debug"), " WARN pp_fork: TASKS is full\nDEBUG pp_egress: blocked\n");
    }

    #[test]
    fn programs_are_targets_of_the_filter() {
        assert_eq!(shown("info"), " WARN pp_fork: TASKS is full\n");
        assert_eq!(shown("off,pp_egress=debug"), "DEBUG pp_egress: blocked\n");
    }
}
