//! The tables of the file. An event is in one of them, by its id. Readers see one list in the order of ids.

use std::iter::Peekable;

use redb::{AccessGuard, Database, Range, ReadOnlyTable, ReadableDatabase as _, TableDefinition, TableHandle as _, WriteTransaction};

/// What sessions did. Versions before [`DECISIONS`] have every event here.
pub(super) const EVENTS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("events");
/// The logs that traffic must not push out. An earlier version neither reads nor writes this table.
pub(super) const DECISIONS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("decisions");
pub(super) const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

/// A table of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Table {
    /// [`EVENTS`].
    Events,
    /// [`DECISIONS`].
    Decisions,
}

/// The bytes of an event.
pub(super) type Bytes = AccessGuard<'static, &'static [u8]>;

/// Makes the tables that are not there.
pub(super) fn make(write: &WriteTransaction) -> Result<(), redb::Error> {
    write.open_table(EVENTS)?;
    write.open_table(DECISIONS)?;
    write.open_table(META)?;
    Ok(())
}

/// Makes the tables that a file of an earlier version does not have.
pub(super) fn complete(database: &Database) -> Result<(), redb::Error> {
    let is_complete = database.begin_read()?.list_tables()?.any(|table| table.name() == DECISIONS.name());
    if is_complete {
        return Ok(());
    }
    let write = database.begin_write()?;
    make(&write)?;
    Ok(write.commit()?)
}

/// The stored events at one instant.
pub(super) struct Tables {
    events: ReadOnlyTable<u64, &'static [u8]>,
    decisions: ReadOnlyTable<u64, &'static [u8]>,
}

impl Tables {
    pub(super) fn open(database: &Database) -> Result<Self, redb::Error> {
        let read = database.begin_read()?;
        Ok(Self { events: read.open_table(EVENTS)?, decisions: read.open_table(DECISIONS)? })
    }

    /// The event of this id in this table.
    pub(super) fn get(&self, table: Table, id: u64) -> Result<Option<Bytes>, redb::Error> {
        Ok(match table {
            Table::Events => self.events.get(id)?,
            Table::Decisions => self.decisions.get(id)?,
        })
    }

    /// The event of this id.
    pub(super) fn find(&self, id: u64) -> Result<Option<Bytes>, redb::Error> {
        let traffic = self.get(Table::Events, id)?;
        if traffic.is_some() { Ok(traffic) } else { self.get(Table::Decisions, id) }
    }

    /// Every event in the order of ids, with the table of each.
    pub(super) fn all(&self) -> Result<Merged, redb::Error> {
        Ok(Merged { events: self.events.range(0_u64..)?.peekable(), decisions: self.decisions.range(0_u64..)?.peekable() })
    }
}

type Entries = Peekable<Range<'static, u64, &'static [u8]>>;

/// The entries of both tables in the order of their ids.
pub(super) struct Merged {
    events: Entries,
    decisions: Entries,
}

impl Iterator for Merged {
    type Item = Result<(u64, Bytes, Table), redb::Error>;

    fn next(&mut self) -> Option<Self::Item> {
        // An error comes before everything else.
        let head = |entries: &mut Entries| entries.peek().map(|entry| entry.as_ref().map_or(0, |(id, _)| id.value()));
        let (event, decision) = (head(&mut self.events), head(&mut self.decisions));
        let (entries, table) = match (event, decision) {
            (Some(event), Some(decision)) if decision < event => (&mut self.decisions, Table::Decisions),
            (None, Some(_)) => (&mut self.decisions, Table::Decisions),
            _ => (&mut self.events, Table::Events),
        };
        let entry = entries.next()?;
        Some(entry.map(|(id, bytes)| (id.value(), bytes, table)).map_err(redb::Error::from))
    }
}
