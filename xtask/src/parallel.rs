//! Runs pieces of work that take a processor for minutes, such as virtual machines: as many at a time as there are processors.

use std::{
    num::NonZero,
    sync::{Mutex, PoisonError},
    thread,
};

/// Most pieces at a time: each virtual machine has 2 GiB of memory.
const MOST: usize = 4;

/// One piece of work.
pub(crate) type Piece<'a, T> = Box<dyn FnOnce() -> T + Send + 'a>;

/// Runs every piece, starting in this order. Returns the results in the same order.
pub(crate) fn run<T: Send>(pieces: Vec<Piece<'_, T>>) -> Vec<T> {
    let workers = thread::available_parallelism().map_or(1, NonZero::get).min(MOST);
    run_on(workers, pieces)
}

fn run_on<T: Send>(workers: usize, pieces: Vec<Piece<'_, T>>) -> Vec<T> {
    let mut done: Vec<Option<T>> = pieces.iter().map(|_| None).collect();
    let slots = Mutex::new(pieces.into_iter().zip(done.iter_mut()));
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    // The lock is held only to take the next piece.
                    let next = slots.lock().unwrap_or_else(PoisonError::into_inner).next();
                    let Some((piece, slot)) = next else { return };
                    *slot = Some(piece());
                }
            });
        }
    });
    done.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    #[test]
    fn results_come_in_the_order_of_the_pieces() {
        let pieces = (0..20).map(|number| Box::new(move || number) as Piece<'_, i32>).collect();
        assert_eq!(run_on(3, pieces), (0..20).collect::<Vec<_>>());
    }

    #[test]
    fn as_many_pieces_run_at_once_as_there_are_workers() {
        // Neither returns before both have started.
        let both = Barrier::new(2);
        let pieces: Vec<Piece<'_, bool>> = (0..2).map(|_| Box::new(|| both.wait().is_leader()) as Piece<'_, bool>).collect();
        assert_eq!(run_on(2, pieces).into_iter().filter(|leader| *leader).count(), 1);
    }
}
