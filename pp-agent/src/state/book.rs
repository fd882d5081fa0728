//! The receipts of this host, on the disk and in memory, changed together.
//!
//! Nothing else changes the receipts in state, and each change needs the book as `&mut`. So its owner changes both in one step, and an
//! older list never replaces a newer one. A clone is for reading.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{EndReason, RegisterError, Registered, State, StateError, StoredReceipt, Tombstone};
use crate::clock::Now;

/// A stored receipt, with what its artifact allows on this host.
#[derive(Clone, Debug)]
pub(crate) struct Kept<A> {
    /// As it is on the disk, or will be once the disk accepts it.
    pub(crate) stored: StoredReceipt,
    /// The result of admitting its artifact.
    pub(crate) admitted: A,
}

/// Every receipt of this host. A clone shares its entries.
#[derive(Debug)]
pub(crate) struct Book<A> {
    kept: Vec<Arc<Kept<A>>>,
    owed: Owed,
}

/// Changes in memory that could not be written. [`Book::remove_expired`] tries again.
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
    /// Replaces the contents of this book with the receipts on the disk. Revocations that are not on the disk yet are written first.
    /// `carry_over` returns whether it changed a receipt. `admit` finds out what the receipt allows.
    ///
    /// # Errors
    /// The disk failed, or an entry cannot be read. The book is unchanged.
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

    /// Every receipt, by serial.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Kept<A>> {
        self.kept.iter().map(Arc::as_ref)
    }

    /// The receipt of this id.
    #[must_use]
    pub(crate) fn find(&self, id: &str) -> Option<&Kept<A>> {
        self.iter().find(|kept| kept.stored.id == id)
    }

    /// Registers a receipt, on the disk and in the book.
    ///
    /// # Errors
    /// It is revoked, its key is used, the table is full, or the disk failed.
    pub(crate) fn register(&mut self, state: &State, stored: StoredReceipt, admitted: A) -> Result<Registered, RegisterError> {
        // A revocation that could not be written counts too.
        if self.owed.revoked.iter().any(|tombstone| tombstone.id == stored.id && tombstone.binds(&stored.decider)) {
            return Err(RegisterError::Revoked(stored.id));
        }
        let (Registered::New(stored) | Registered::Again(stored)) = state.register(stored)?;
        if self.find(&stored.id).is_some() {
            return Ok(Registered::Again(stored));
        }
        // After an error at the very end of an earlier registration, the disk may have the receipt although the book does not.
        self.kept.push(Arc::new(Kept { stored: stored.clone(), admitted }));
        Ok(if stored.ended.is_none() { Registered::New(stored) } else { Registered::Again(stored) })
    }

    /// Ends a receipt, in memory even if the disk fails. What could not be written is tried again later.
    ///
    /// # Errors
    /// The disk failed.
    pub(crate) fn end(&mut self, state: &State, id: &str, reason: EndReason) -> Result<(), StateError> {
        self.change(state, |stored| {
            let ends = stored.id == id && stored.ended.is_none();
            if ends {
                stored.ended = Some(reason);
            }
            ends
        })
    }

    /// Changes receipts, in memory even if the disk fails. What could not be written is tried again later. `change` returns whether it
    /// changed a receipt.
    ///
    /// # Errors
    /// The disk failed.
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

    /// Ends the receipt of a revocation in memory only. [`Book::revoke`] also writes it.
    pub(crate) fn end_by(&mut self, tombstone: &Tombstone) {
        if let Some(kept) = self.kept.iter_mut().find(|kept| kept.stored.id == tombstone.id && tombstone.binds(&kept.stored.decider)) {
            let stored = &mut Arc::make_mut(kept).stored;
            stored.ended = stored.ended.or(Some(EndReason::Revoked));
        }
    }

    /// Revokes a receipt, also one that is not registered yet, in memory even if the disk fails. What could not be written is tried again
    /// later. Returns whether it was registered.
    ///
    /// # Errors
    /// The disk failed.
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

    /// Records the wall time and removes receipts that are over, on the disk and in memory as of the same instant. Returns how many.
    ///
    /// # Errors
    /// The disk failed. Nothing is removed from memory.
    pub(crate) fn remove_expired(&mut self, state: &State, now: Now) -> Result<usize, StateError> {
        self.write_owed(state)?;
        let highest_ms = state.note_wall(now)?;
        let before = self.kept.len();
        self.kept.retain(|kept| !kept.stored.is_over(highest_ms, now));
        Ok(before - self.kept.len())
    }

    /// The same receipts, admitted again under other terms. The caller replaces this book with the result before anything else changes.
    #[must_use]
    pub(crate) fn readmit(&self, admit: impl FnMut(StoredReceipt) -> Kept<A>) -> Self {
        let stored: Vec<StoredReceipt> = self.kept.iter().map(|kept| kept.stored.clone()).collect();
        Self { kept: stored.into_iter().map(admit).map(Arc::new).collect(), owed: self.owed.clone() }
    }

    /// Writes the changes that the disk does not have yet.
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
