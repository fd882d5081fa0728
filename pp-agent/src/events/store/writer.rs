//! The thread that writes events to the disk in batches, and syncs them each [`SYNC_EVERY`].

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Instant;

use super::disk::{Disk, ID_RESERVE};
use super::{MAX_BATCH, SYNC_EVERY, Work};
use crate::events::Event;

pub(super) fn write_all(disk: &Disk, queue: &Receiver<Work>, waiting: &AtomicUsize, reserved: u64) {
    let mut reserved = reserved;
    if !disk.is_failing()
        && let Err(error) = disk.prepare()
    {
        disk.give_up(&[], &error);
    }
    // The greatest id that was queued.
    let mut given = 0;
    let mut batch: Vec<Arc<Event>> = Vec::new();
    let mut synced = Instant::now();
    let mut dirty = false;
    let mut records = None;
    loop {
        let mut flush = None;
        let mut stop = false;
        let mut next = match queue.recv_timeout(SYNC_EVERY) {
            Ok(work) => Some(work),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some(Work::Stop),
        };
        while let Some(work) = next.take() {
            match work {
                Work::Event(event, read) => {
                    waiting.fetch_sub(1, Ordering::Relaxed);
                    batch.push(event);
                    records = records.max(read);
                }
                Work::Read(read) => {
                    records = records.max(Some(read));
                    dirty = true;
                }
                Work::Flush(done) => flush = Some(done),
                Work::Stop => stop = true,
            }
            if batch.len() < MAX_BATCH && flush.is_none() && !stop {
                next = queue.try_recv().ok();
            }
        }
        let sync = stop || synced.elapsed() >= SYNC_EVERY;
        let failing = disk.is_failing();
        if !batch.is_empty() || (sync && (dirty || failing)) {
            let newest = batch.last().map_or(0, |event| event.id);
            given = given.max(newest);
            let reserve = (given.saturating_add(ID_RESERVE / 2) > reserved).then(|| given.saturating_add(ID_RESERVE));
            let sync = sync || reserve.is_some();
            match disk.commit(&batch, sync, reserve, records) {
                Ok(()) => {
                    disk.succeed();
                    reserved = reserve.unwrap_or(reserved);
                    dirty = !sync;
                    records = None;
                }
                Err(error) => {
                    disk.give_up(&batch, &error);
                    reserved = 0;
                }
            }
            if sync {
                synced = Instant::now();
            }
            batch.clear();
        }
        if let Some(done) = flush
            && done.send(()).is_err()
        {
            tracing::debug!("events: whoever asked for a flush has gone");
        }
        if stop {
            return;
        }
    }
}
