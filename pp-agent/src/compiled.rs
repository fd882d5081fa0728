//! A cache of compiled rules, by the source that they were compiled from: in memory, and on disk for the next start.
//!
//! Compiling takes half a second, or several on a slow machine, and most starts and reloads have the same rules as before. A file is only a
//! cache: if it is missing, damaged or belongs to another user, the rules are compiled again, and that is logged.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::SystemTime;

use pp_common::abi::{ABI_VERSION, DFA_ACCEPT, DFA_CLASSES};
use pp_common::tools::ToolEnd;
use sha2::{Digest as _, Sha256};

use crate::matcher::{self, Kind, Table};
use crate::trusted::{self, FileCheck};

/// SHA-256 of the source of a table.
type Key = [u8; 32];

/// The last table of each kind, since most reloads change another part of policy. Unit tests keep all: they compile the same few in turn.
static LAST: Mutex<BTreeMap<(&'static str, Key), Table>> = Mutex::new(BTreeMap::new());
static FOLDER: OnceLock<PathBuf> = OnceLock::new();

/// How many files are kept, for a few policies that are tried in turn.
const MOST_FILES: usize = 8;
/// The largest file: 8,192 rows of 256 bytes, their ends, and the head.
const MOST_BYTES: u64 = 4 << 20;

/// Sets the folder for tables. Only root can write to it.
pub(crate) fn keep_in(folder: PathBuf) {
    let kept = FOLDER.get_or_init(|| folder);
    tracing::debug!("compiled rules are kept in {}", kept.display());
}

/// The table of these rules, which `source` describes completely.
///
/// # Errors
/// The errors of `compile`, if it had to be called.
pub(crate) fn table<E>(kind: &Kind, source: &str, compile: impl FnOnce() -> Result<Table, E>) -> Result<Table, E> {
    let key = key(kind, source);
    let last = || LAST.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(table) = last().get(&(kind.name, key)) {
        return Ok(table.clone());
    }
    let file = FOLDER.get().map(|folder| folder.join(file_name(kind, &key)));
    let kept = file.as_deref().and_then(|file| {
        read(kind, file, FileCheck::ROOT).unwrap_or_else(|why| {
            tracing::warn!("compiled rules {}: {why}; they are compiled anew", file.display());
            None
        })
    });
    let table = match kept {
        Some(table) => table,
        None => {
            let table = compile()?;
            if let Some(file) = file
                && let Err(error) = write(&file, &table)
            {
                tracing::debug!("compiled rules {}: {error}; the next start compiles them again", file.display());
            }
            table
        }
    };
    let mut last = last();
    last.retain(|(name, _), _| cfg!(test) || *name != kind.name);
    last.insert((kind.name, key), table.clone());
    Ok(table)
}

fn key(kind: &Kind, source: &str) -> Key {
    let mut hash = Sha256::new();
    // The ABI defines the meaning of numbers in a row.
    hash.update(ABI_VERSION.to_le_bytes());
    let code = [include_str!("compiled.rs")].into_iter().chain(matcher::CODE).chain(kind.code.iter().copied());
    for part in code.chain([kind.name, source]) {
        hash.update(part.len().to_le_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

fn file_name(kind: &Kind, key: &Key) -> String {
    let digits = hex::encode(key);
    format!("{}-{digits}", kind.name)
}

fn read(kind: &Kind, file: &Path, check: FileCheck) -> Result<Option<Table>, String> {
    match trusted::read(file, check, MOST_BYTES).map_err(|problem| problem.to_string())? {
        Some(bytes) => decode(kind, &bytes).map(Some).ok_or_else(|| "damaged".to_owned()),
        None => Ok(None),
    }
}

fn write(file: &Path, table: &Table) -> io::Result<()> {
    let Some(folder) = file.parent() else { return Ok(()) };
    match fs::DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        Ok(()) | Err(_) => {}
    }
    make_room(folder)?;
    let unfinished = folder.join(format!(".unfinished-{}", std::process::id()));
    let mut to = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
    to.write_all(&encode(table))?;
    fs::rename(unfinished, file)
}

/// Removes the oldest files, so that there is room for one more.
fn make_room(folder: &Path) -> io::Result<()> {
    let mut files: Vec<(SystemTime, PathBuf)> = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        files.push((entry.metadata()?.modified()?, entry.path()));
    }
    files.sort();
    let surplus = (files.len() + 1).saturating_sub(MOST_FILES);
    files.iter().take(surplus).try_for_each(|(_, file)| fs::remove_file(file))
}

/// The format: SHA-256 of the rest, classes, number of rows, rows, number of ends, ends. Numbers are little-endian.
fn encode(table: &Table) -> Vec<u8> {
    let mut body = table.classes.to_vec();
    body.extend(count(table.rows.len()));
    body.extend(table.rows.iter().flatten().flat_map(|next| next.to_le_bytes()));
    body.extend(count(table.ends.len()));
    body.extend(table.ends.iter().flat_map(|end| [end.whole.to_le_bytes(), end.cut.to_le_bytes()]).flatten());
    let mut bytes = Sha256::digest(&body).to_vec();
    bytes.append(&mut body);
    bytes
}

fn count(length: usize) -> [u8; 4] {
    // Tables are no longer than the kernel's; a longer one would be read as damaged.
    u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes()
}

/// Reads a table; `None`: it is damaged.
fn decode(kind: &Kind, bytes: &[u8]) -> Option<Table> {
    let (digest, body) = bytes.split_at_checked(32)?;
    if Sha256::digest(body).as_slice() != digest {
        return None;
    }
    let (classes, rest) = body.split_first_chunk::<256>()?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let (rows, rest) = rest.split_at_checked(usize::try_from(u32::from_le_bytes(*length)).ok()?.checked_mul(2 * DFA_CLASSES)?)?;
    let (length, ends) = rest.split_first_chunk::<4>()?;
    let rows: Vec<[u16; DFA_CLASSES]> = rows.chunks_exact(2 * DFA_CLASSES).map(row).collect();
    let ends: Vec<ToolEnd> = ends.chunks_exact(4).map(|end| ToolEnd { whole: number(end, 0), cut: number(end, 1) }).collect();
    let leads_nowhere = |next: &u16| next & DFA_ACCEPT == 0 && usize::from(*next) >= rows.len();
    let fits = (2..=kind.most_states).contains(&rows.len())
        && ends.len() == rows.len()
        && usize::try_from(u32::from_le_bytes(*length)).ok()? == rows.len()
        && classes.iter().all(|class| usize::from(*class) < DFA_CLASSES)
        && !rows.iter().flatten().any(leads_nowhere);
    fits.then_some(Table { classes: *classes, rows, ends })
}

fn row(bytes: &[u8]) -> [u16; DFA_CLASSES] {
    std::array::from_fn(|class| number(bytes, class))
}

/// The number at this place of a list of them.
fn number(bytes: &[u8], at: usize) -> u16 {
    bytes.get(2 * at..2 * at + 2).and_then(|pair| pair.try_into().ok()).map_or(0, u16::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const KIND: Kind = Kind { name: "small", code: &["its code"], most_states: 3, most_explored: 3 };

    fn small() -> Table {
        let mut rows = vec![[0; DFA_CLASSES]; 3];
        rows[1][7] = 2;
        rows[2][1] = DFA_ACCEPT | 5;
        let classes = std::array::from_fn(|byte| u8::try_from(byte % 9).unwrap());
        Table { classes, rows, ends: vec![ToolEnd { whole: 3, cut: 0x8004 }; 3] }
    }

    fn own() -> FileCheck {
        FileCheck::OwnedBy(nix::unistd::geteuid().as_raw())
    }

    #[test]
    fn table_is_read_back_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("compiled").join(KIND.name);
        assert_eq!(read(&KIND, &file, own()), Ok(None));
        write(&file, &small()).unwrap();
        assert_eq!(read(&KIND, &file, own()), Ok(Some(small())));
    }

    #[test]
    fn damaged_table_is_none() {
        let whole = encode(&small());
        assert!(decode(&KIND, &whole).is_some());
        for at in 0..whole.len() {
            assert_eq!(decode(&KIND, &whole[..at]), None, "cut at {at}");
            let mut changed = whole.clone();
            changed[at] ^= 1;
            assert_eq!(decode(&KIND, &changed), None, "changed at {at}");
        }
    }

    #[test]
    fn table_that_the_kernel_could_not_walk_is_none() {
        let none = |what: &str, spoil: fn(&mut Table)| {
            let mut table = small();
            spoil(&mut table);
            assert_eq!(decode(&KIND, &encode(&table)), None, "{what}");
        };
        none("leads nowhere", |table| table.rows[2][0] = 3);
        none("one state without an end", |table| table.ends.truncate(2));
        none("an end without a state", |table| table.rows.truncate(2));
        none("no start", |table| *table = Table { rows: vec![[0; DFA_CLASSES]], ends: vec![ToolEnd::default()], ..small() });
        none("more states than there is room for", |table| {
            table.rows.push([0; DFA_CLASSES]);
            table.ends.push(ToolEnd::default());
        });
        none("a class that no row has", |table| table.classes[3] = 128);
    }

    #[test]
    fn file_that_others_can_write_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("table");
        write(&file, &small()).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
        assert!(read(&KIND, &file, own()).is_err());
    }

    #[test]
    fn oldest_files_make_room() {
        let folder = tempfile::tempdir().unwrap();
        for number in 0..20 {
            write(&folder.path().join(format!("{number}")), &small()).unwrap();
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), MOST_FILES);
        assert!(folder.path().join("19").exists());
    }

    #[test]
    fn other_rules_have_another_key() {
        let first = key(&KIND, "a");
        assert_ne!(first, key(&KIND, "b"));
        assert_ne!(first, key(&Kind { name: "other", ..KIND }, "a"));
        assert_ne!(first, key(&Kind { code: &["other code"], ..KIND }, "a"));
    }
}
