//! The gid of the operators' group. A separate thread looks it up, so that a directory service that hangs blocks no caller.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::os::accounts;

/// Its members may do what root may, except from within an agent's session.
const NAME: &str = "pp-operators";
/// How long an answer is used.
const GOOD_FOR: Duration = Duration::from_secs(5);
/// No such group; gids have 32 bits.
const NONE: u64 = u64::MAX;

/// The last answer, and whether a new one is being looked for.
#[derive(Debug)]
pub(super) struct Operators {
    gid: AtomicU64,
    looked_up: Mutex<Instant>,
    looking: AtomicBool,
}

impl Operators {
    /// Looks the group up for the first time.
    pub(super) fn find() -> Arc<Self> {
        let gid = AtomicU64::new(look_up());
        Arc::new(Self { gid, looked_up: Mutex::new(Instant::now()), looking: AtomicBool::new(false) })
    }

    /// The gid, at most a few seconds old while the host's databases answer.
    pub(super) fn gid(self: &Arc<Self>) -> Option<u32> {
        let is_good = self.looked_up.lock().unwrap_or_else(PoisonError::into_inner).elapsed() < GOOD_FOR;
        if !is_good && !self.looking.swap(true, Ordering::AcqRel) {
            let own = Arc::clone(self);
            let looking = std::thread::Builder::new().name("operators".to_owned()).spawn(move || own.look_again());
            if let Err(error) = looking {
                tracing::warn!("group {NAME}: {error}");
                self.looking.store(false, Ordering::Release);
            }
        }
        u32::try_from(self.gid.load(Ordering::Acquire)).ok()
    }

    fn look_again(&self) {
        self.gid.store(look_up(), Ordering::Release);
        *self.looked_up.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.looking.store(false, Ordering::Release);
    }
}

fn look_up() -> u64 {
    match accounts::gid_of(NAME) {
        Ok(gid) => gid.map_or(NONE, u64::from),
        Err(error) => {
            tracing::warn!("group {NAME}: {error}; only root is an operator until it is found");
            NONE
        }
    }
}
