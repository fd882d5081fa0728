//! The receipts of this host, on the disk and in memory, changed together.
//!
//! Nothing else changes the receipts in state, and each change needs the book itself, `&mut`. So whoever owns the book changes both in one step,
//! and what is forgotten is judged there as here: a list that was read before is never put in the place of this one. A clone is for reading.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{EndReason, RegisterError, Registered, State, StateError, StoredReceipt, Tombstone};
use crate::clock::Now;

/// A receipt with what its signed text allows here, or why it allows nothing.
#[derive(Clone, Debug)]
pub(crate) struct Kept<A> {
    /// As it is on the disk, or will be once the disk takes it.
    pub(crate) stored: StoredReceipt,
    /// What was made of its artifact.
    pub(crate) admitted: A,
}

/// Every receipt of this host. A clone shares them.
#[derive(Debug)]
pub(crate) struct Book<A> {
    kept: Vec<Arc<Kept<A>>>,
    owed: Owed,
}

/// What holds in memory and could not be written: tried again at each [`Book::remove_expired`].
#[derive(Clone, Debug, Default)]
struct Owed {
    changed: BTreeSet<String>,
    revoked: Vec<Tombstone>,
}

impl<A> Default for Book<A> {
    fn default() -> Self {
        Self { kept: Vec::new(), owed: Owed::default() }
    }
}

impl<A> Clone for Book<A> {
    fn clone(&self) -> Self {
        Self { kept: self.kept.clone(), owed: self.owed.clone() }
    }
}

impl<A: Clone> Book<A> {
    /// Takes the place of this book, which knew none of what is on the disk. Revocations that it owes the disk are written first. `carry_over`
    /// says whether it has changed a receipt, `admit` makes of it what it allows.
    ///
    /// # Errors
    /// The disk says no, or an entry cannot be read; the book is as it was.
    pub(crate) fn load(
        &mut self,
        state: &State,
        mut carry_over: impl FnMut(&mut StoredReceipt) -> bool,
        admit: impl FnMut(StoredReceipt) -> Kept<A>,
    ) -> Result<(), StateError> {
        self.write_owed(state)?;
        let mut stored = state.receipts()?;
        let changed: Vec<StoredReceipt> = stored.iter_mut().filter_map(|receipt| carry_over(receipt).then(|| receipt.clone())).collect();
        state.update(&changed)?;
        self.kept = stored.into_iter().map(admit).map(Arc::new).collect();
        Ok(())
    }

    /// Those that are kept, by serial.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Kept<A>> {
        self.kept.iter().map(Arc::as_ref)
    }

    /// One of them.
    #[must_use]
    pub(crate) fn find(&self, id: &str) -> Option<&Kept<A>> {
        self.iter().find(|kept| kept.stored.id == id)
    }

    /// Registers a receipt: on the disk, and in the book when this returns.
    ///
    /// # Errors
    /// When it is revoked, its key is used, the table is full, or the disk.
    pub(crate) fn register(&mut self, state: &State, stored: StoredReceipt, admitted: A) -> Result<Registered, RegisterError> {
        // A revocation that the disk does not have yet holds all the same.
        if self.owed.revoked.iter().any(|tombstone| tombstone.id == stored.id && tombstone.binds(&stored.decider)) {
            return Err(RegisterError::Revoked(stored.id));
        }
        let (Registered::New(stored) | Registered::Again(stored)) = state.register(stored)?;
        if self.find(&stored.id).is_some() {
            return Ok(Registered::Again(stored));
        }
        // Where the disk said no at the very end of an earlier registration, it may have it all the same.
        self.kept.push(Arc::new(Kept { stored: stored.clone(), admitted }));
        Ok(if stored.ended.is_none() { Registered::New(stored) } else { Registered::Again(stored) })
    }

    /// Ends a receipt. It is over even where the disk does not take that, which is then owed to it.
    ///
    /// # Errors
    /// When the disk says no.
    pub(crate) fn end(&mut self, state: &State, id: &str, reason: EndReason) -> Result<(), StateError> {
        self.change(state, |stored| {
            let ends = stored.id == id && stored.ended.is_none();
            if ends {
                stored.ended = Some(reason);
            }
            ends
        })
    }

    /// Changes receipts, in memory even where the disk does not take it, which is then owed to it. `change` says whether it changed one.
    ///
    /// # Errors
    /// When the disk says no.
    pub(crate) fn change(&mut self, state: &State, mut change: impl FnMut(&mut StoredReceipt) -> bool) -> Result<(), StateError> {
        let mut changed = Vec::new();
        for kept in &mut self.kept {
            let mut stored = kept.stored.clone();
            if change(&mut stored) {
                Arc::make_mut(kept).stored = stored.clone();
                changed.push(stored);
            }
        }
        state.update(&changed).inspect_err(|_| self.owed.changed.extend(changed.into_iter().map(|stored| stored.id)))
    }

    /// Ends what a revocation revokes here, in memory alone: [`Book::revoke`] keeps it.
    pub(crate) fn end_by(&mut self, tombstone: &Tombstone) {
        if let Some(kept) = self.kept.iter_mut().find(|kept| kept.stored.id == tombstone.id && tombstone.binds(&kept.stored.decider)) {
            let stored = &mut Arc::make_mut(kept).stored;
            stored.ended = stored.ended.or(Some(EndReason::Revoked));
        }
    }

    /// Revokes a receipt, also one that is not here yet. It is over even where the disk does not take that, which is then owed to it. Returns
    /// whether it was registered.
    ///
    /// # Errors
    /// When the disk says no.
    pub(crate) fn revoke(&mut self, state: &State, tombstone: Tombstone) -> Result<bool, StateError> {
        self.end_by(&tombstone);
        match state.revoke(tombstone.clone()) {
            Ok(ended) => Ok(ended.is_some()),
            Err(error) => {
                self.owed.revoked.push(tombstone);
                Err(error)
            }
        }
    }

    /// Notes the wall time and forgets the receipts that nothing can come of any more, on the disk and here by the same instant. Returns how many.
    ///
    /// # Errors
    /// When the disk says no; none is forgotten here then.
    pub(crate) fn remove_expired(&mut self, state: &State, now: Now) -> Result<usize, StateError> {
        self.write_owed(state)?;
        let highest_ms = state.note_wall(now)?;
        let before = self.kept.len();
        self.kept.retain(|kept| !kept.stored.is_over(highest_ms, now));
        Ok(before - self.kept.len())
    }

    /// The same receipts, judged anew, to take the place of these before anything else changes.
    #[must_use]
    pub(crate) fn judge_again(&self, admit: impl FnMut(StoredReceipt) -> Kept<A>) -> Self {
        let stored: Vec<StoredReceipt> = self.kept.iter().map(|kept| kept.stored.clone()).collect();
        Self { kept: stored.into_iter().map(admit).map(Arc::new).collect(), owed: self.owed.clone() }
    }

    /// Writes what is owed to the disk.
    fn write_owed(&mut self, state: &State) -> Result<(), StateError> {
        while let Some(tombstone) = self.owed.revoked.first() {
            state.revoke(tombstone.clone())?;
            self.owed.revoked.remove(0);
        }
        let changed = self.kept.iter().filter(|kept| self.owed.changed.contains(&kept.stored.id)).map(|kept| kept.stored.clone());
        state.update(&changed.collect::<Vec<_>>())?;
        self.owed.changed.clear();
        Ok(())
    }
}

#[cfg(test)]
mod race_tests;
