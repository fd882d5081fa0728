//! Waiting for a condition with a deadline: the only way a test here lets time pass.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How long a test waits for something that should come at once. Emulated machines are some twenty times slower than real ones.
pub const SOON: Duration = Duration::from_secs(60);

/// Polls `probe` until it yields a value.
///
/// # Errors
/// The deadline passed; the error says what was waited for.
pub fn until<T>(what: &str, deadline: Duration, probe: impl FnMut() -> Option<T>) -> Result<T> {
    until_every(Duration::from_millis(5), what, deadline, probe)
}

/// The same for a probe that costs something or is told in events: asked only this often.
///
/// # Errors
/// The deadline passed; the error says what was waited for.
pub fn until_every<T>(pause: Duration, what: &str, deadline: Duration, mut probe: impl FnMut() -> Option<T>) -> Result<T> {
    let end = Instant::now() + deadline;
    loop {
        if let Some(value) = probe() {
            return Ok(value);
        }
        if Instant::now() >= end {
            bail!("{what}: not within {} ms", deadline.as_millis());
        }
        thread::sleep(pause);
    }
}

/// Polls `probe` until it is true.
///
/// # Errors
/// The deadline passed; the error says what was waited for.
pub fn until_true(what: &str, deadline: Duration, mut probe: impl FnMut() -> bool) -> Result<()> {
    until(what, deadline, || probe().then_some(()))
}
