//! A value that one thread owns. Others send that thread a job and wait for the answer. So changes happen one after another, and nothing is
//! locked while the thread waits for a disk, the kernel or a signature check.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc::{Sender, channel, sync_channel};
use std::thread::{self, ThreadId};

type Job<T> = Box<dyn FnOnce(&mut T) + Send>;

/// A handle on the thread that owns a `T`. The thread ends when the handle is dropped.
#[derive(Debug)]
pub(super) struct Owner<T> {
    jobs: Sender<Job<T>>,
    thread: ThreadId,
}

impl<T: Send + 'static> Owner<T> {
    /// Moves the value to a new thread of this name.
    ///
    /// # Errors
    /// The system has no room for a thread.
    pub(super) fn begin(name: &str, mut value: T) -> io::Result<Self> {
        let (jobs, next) = channel::<Job<T>>();
        let work = move || next.into_iter().for_each(|job| job(&mut value));
        let thread = thread::Builder::new().name(name.to_owned()).spawn(work)?.thread().id();
        Ok(Self { jobs, thread })
    }

    /// Has the owner run a job, after the jobs it already has, and waits for the answer.
    ///
    /// # Panics
    /// The job panicked; the owner keeps the value as the job left it. Or the owner sent itself a job, which would deadlock.
    pub(super) fn ask<R: Send + 'static>(&self, job: impl FnOnce(&mut T) -> R + Send + 'static) -> R {
        assert_ne!(thread::current().id(), self.thread, "an owner asks itself");
        let (answer, answered) = sync_channel(1);
        let job = move |value: &mut T| {
            let done = catch_unwind(AssertUnwindSafe(|| job(value)));
            // The caller waits below.
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
    fn panic_reaches_the_caller_and_the_owner_goes_on() {
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
