//! A value that one thread owns. Whoever wants something of it asks that thread and waits for the answer: one change follows another, and
//! nothing is locked while the thread waits for a disk, for the kernel or for signatures.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc::{Sender, channel, sync_channel};
use std::thread::{self, ThreadId};

type Job<T> = Box<dyn FnOnce(&mut T) + Send>;

/// The way to the thread that owns a `T`. The thread ends with it.
#[derive(Debug)]
pub(super) struct Owner<T> {
    jobs: Sender<Job<T>>,
    thread: ThreadId,
}

impl<T: Send + 'static> Owner<T> {
    /// Gives the value to a thread of this name.
    ///
    /// # Errors
    /// The system has no room for a thread.
    pub(super) fn begin(name: &str, mut value: T) -> io::Result<Self> {
        let (jobs, next) = channel::<Job<T>>();
        let work = move || next.into_iter().for_each(|job| job(&mut value));
        let thread = thread::Builder::new().name(name.to_owned()).spawn(work)?.thread().id();
        Ok(Self { jobs, thread })
    }

    /// Has the owner do this, after what it was asked before, and waits for the answer.
    ///
    /// # Panics
    /// When the job does, here as there; the owner goes on with what is left, as behind a lock. Or when the owner asks itself: it would
    /// wait for ever.
    pub(super) fn ask<R: Send + 'static>(&self, job: impl FnOnce(&mut T) -> R + Send + 'static) -> R {
        assert_ne!(thread::current().id(), self.thread, "an owner asks itself");
        let (answer, answered) = sync_channel(1);
        let job = move |value: &mut T| {
            let done = catch_unwind(AssertUnwindSafe(|| job(value)));
            // Whoever asked waits below.
            let _waits = answer.send(done);
        };
        let sent = self.jobs.send(Box::new(job)).is_ok();
        match answered.recv() {
            Ok(Ok(answer)) if sent => answer,
            Ok(Err(panic)) => resume_unwind(panic),
            Ok(Ok(_)) | Err(_) => unreachable!("the owner lasts as long as this does"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn jobs_follow_one_another() {
        let owner = Arc::new(Owner::begin("test", 0_u64).unwrap());
        let add = |owner: Arc<Owner<u64>>| {
            move || {
                (0..1_000).for_each(|_| {
                    owner.ask(|sum| {
                        let before = *sum;
                        thread::yield_now();
                        *sum = before + 1;
                    });
                });
            }
        };
        let threads: Vec<_> = (0..4).map(|_| thread::spawn(add(Arc::clone(&owner)))).collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(owner.ask(|sum| *sum), 4_000);
    }

    #[test]
    fn panic_is_that_of_whoever_asked_and_the_owner_goes_on() {
        let owner = Owner::begin("test", 1).unwrap();
        let asked = catch_unwind(AssertUnwindSafe(|| owner.ask(|_| panic!("no"))));
        assert!(asked.is_err());
        assert_eq!(owner.ask(|value| *value), 1);
    }

    #[test]
    fn owner_that_would_wait_for_itself_says_so() {
        let owner = Arc::new(Owner::begin("test", ()).unwrap());
        let own = Arc::clone(&owner);
        assert!(catch_unwind(AssertUnwindSafe(|| owner.ask(move |()| own.ask(|()| ())))).is_err());
    }
}
