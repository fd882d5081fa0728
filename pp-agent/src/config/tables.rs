//! Tables that several files may write together: what each adds, and what it removes of the shipped table.

use super::error::{ConfigError, Origin, Problem};
use super::raw::unknown;
use super::source::Text;
use super::value::invalid;
use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::ops::Deref;
use toml::Spanned;

/// One named table, from the files read so far.
pub(super) struct Table<T> {
    pub(super) name: String,
    pub(super) item: T,
    /// Every place where it is written, in order.
    pub(super) at: Vec<Origin>,
}

impl<T> Table<T> {
    /// Where it is written first.
    pub(super) fn first_at(&self) -> Origin {
        self.at.first().cloned().unwrap_or_else(|| Origin { file: String::new(), line: 0 })
    }
}

/// The tables of one kind, in the order in which they are written first.
pub(super) struct Tables<T> {
    list: Vec<Table<T>>,
    by_name: HashMap<String, usize>,
}

impl<T> Default for Tables<T> {
    fn default() -> Self {
        Self { list: Vec::new(), by_name: HashMap::new() }
    }
}

impl<T> Deref for Tables<T> {
    type Target = [Table<T>];

    fn deref(&self) -> &[Table<T>] {
        &self.list
    }
}

impl<T> Tables<T> {
    /// The tables alone.
    pub(super) fn into_list(self) -> Vec<Table<T>> {
        self.list
    }
}

impl<T: Default> Tables<T> {
    /// The table of this name, new or from an earlier file. Twice in the same file is an error, since it is probably a mistake.
    pub(super) fn open(&mut self, what: &'static str, name: &str, at: &Origin) -> Result<&mut Table<T>, ConfigError> {
        let known = *self.by_name.entry(name.to_owned()).or_insert(self.list.len());
        if known == self.list.len() {
            self.list.push(Table { name: name.to_owned(), item: T::default(), at: Vec::new() });
        }
        let table = &mut self.list[known];
        if let Some(first) = table.at.iter().find(|first| first.file == at.file) {
            let (name, first) = (name.to_owned(), first.clone());
            return Err(invalid(at.clone(), Problem::Duplicate { what, name, first }));
        }
        table.at.push(at.clone());
        Ok(table)
    }
}

/// Sets a value that only one file may set.
pub(super) fn set<T>(
    slot: &mut Option<(T, Origin)>,
    value: Option<Spanned<T>>,
    key: &'static str,
    source: &Text<'_>,
) -> Result<(), ConfigError> {
    match value {
        None => Ok(()),
        Some(value) => {
            let at = source.at(value.span());
            put(slot, value.into_inner(), at, key)
        }
    }
}

/// Sets a value that was read already, and that only one file may set.
pub(super) fn put<T>(slot: &mut Option<(T, Origin)>, value: T, at: Origin, key: &'static str) -> Result<(), ConfigError> {
    if let Some((_, first)) = slot {
        return Err(invalid(at, Problem::SetTwice { key, first: first.clone() }));
    }
    *slot = Some((value, at));
    Ok(())
}

/// Adds the values that are missing, each once.
pub(super) fn add<T: Clone + Eq + Hash>(list: &mut Vec<T>, more: impl IntoIterator<Item = T>) {
    let mut known: HashSet<T> = list.iter().cloned().collect();
    list.extend(more.into_iter().filter(|item| known.insert(item.clone())));
}

/// What the operator removes of a shipped table.
#[derive(Default)]
pub(super) struct Away {
    /// Where all of it is replaced.
    replace: Option<Origin>,
    /// The entries that are disabled, and where.
    disable: Vec<(String, Origin)>,
}

impl Away {
    pub(super) fn is_nothing(&self) -> bool {
        self.replace.is_none() && self.disable.is_empty()
    }

    /// Adds what one file removes.
    pub(super) fn file(&mut self, source: &Text<'_>, replace: Option<&Spanned<bool>>, disable: &[Spanned<String>]) {
        if let Some(replace) = replace.filter(|replace| *replace.get_ref()) {
            self.replace.get_or_insert(source.at(replace.span()));
        }
        self.disable.extend(disable.iter().map(|entry| (entry.get_ref().clone(), source.at(entry.span()))));
    }

    /// Whether this shipped entry stays.
    pub(super) fn leaves(&self, entry: &str) -> bool {
        self.replace.is_none() && self.disable.iter().all(|(away, _)| away != entry)
    }

    /// Checks that everything removed is shipped: a misspelt word would leave on what the operator believes to be off. `shipped` are the
    /// entries of the shipped table; `None`: there is no such table.
    pub(super) fn check(
        &self,
        what: &'static str,
        name: &str,
        shipped: Option<&[String]>,
        names: impl FnOnce() -> Vec<String>,
    ) -> Result<(), ConfigError> {
        let Some(entries) = shipped else {
            let at = self.replace.as_ref().or_else(|| self.disable.first().map(|(_, at)| at));
            return at.map_or(Ok(()), |at| Err(invalid(at.clone(), unknown(what, name, names()))));
        };
        match self.disable.iter().find(|(entry, _)| !entries.contains(entry)) {
            None => Ok(()),
            Some((entry, at)) => Err(invalid(at.clone(), unknown("shipped entry", entry, entries.to_vec()))),
        }
    }
}
