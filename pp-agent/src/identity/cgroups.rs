//! Cgroup and unit rules: the cgroups of this host that they name now.

use super::{AgentRules, IdentityError};
use crate::matcher::glob;
use crate::name::name_id;
use pp_common::abi::NameId;
use regex_automata::meta::Regex;
use regex_automata::util::syntax;
use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::{fs, io};

/// One compiled cgroup or unit pattern.
#[derive(Clone, Debug)]
pub(crate) struct CgroupRule {
    /// The agent it marks with.
    pub(crate) agent: NameId,
    regex: Regex,
    unit: bool,
}

impl CgroupRule {
    /// The rules of these agents, in their order.
    ///
    /// # Errors
    /// A pattern that is no glob.
    pub(crate) fn all(agents: &[AgentRules]) -> Result<Vec<Self>, IdentityError> {
        let mut rules = Vec::new();
        for agent in agents {
            let cgroups = agent.cgroup.iter().map(|pattern| ("cgroup", pattern));
            let units = agent.unit.iter().map(|pattern| ("unit", pattern));
            for (kind, pattern) in cgroups.chain(units) {
                let regex = check(&agent.name, kind, pattern)?;
                rules.push(Self { agent: name_id(&agent.name), regex, unit: kind == "unit" });
            }
        }
        Ok(rules)
    }

    /// Whether the rule names this cgroup, or one above it. `path` starts at the root of cgroup2.
    #[must_use]
    pub(crate) fn covers(&self, path: &str) -> bool {
        let ends = path.match_indices('/').map(|(at, _)| at).skip(1).chain([path.len()]);
        ends.into_iter().any(|end| self.matches(&path.as_bytes()[..end]))
    }

    fn matches(&self, path: &[u8]) -> bool {
        if self.unit { unit_name(path).is_some_and(|unit| self.regex.is_match(unit)) } else { self.regex.is_match(path) }
    }
}

/// The cgroups below `root` (where cgroup2 is mounted) that rules name, as (cgroup id, agent). The id is the inode number of the folder.
/// The first rule that matches counts. Cgroups below one of these need no entry, since the kernel looks at ancestors. Needs no privileges.
///
/// # Errors
/// `root` itself cannot be read. Folders that are removed at the same time are skipped.
pub(crate) fn resolve_cgroups(root: &Path, rules: &[CgroupRule]) -> io::Result<Vec<(u64, NameId)>> {
    let mut found = BTreeMap::new();
    if rules.is_empty() {
        return Ok(Vec::new());
    }
    let mut folders = Vec::new();
    list(root, b"", &mut folders)?;
    while let Some((folder, path)) = folders.pop() {
        if let Some(rule) = rules.iter().find(|rule| rule.matches(&path))
            && let Ok(metadata) = fs::metadata(&folder)
        {
            found.insert(metadata.ino(), rule.agent);
        }
        match list(&folder, &path, &mut folders) {
            Ok(()) => {}
            Err(error) if vanished(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found.into_iter().collect())
}

fn list(folder: &Path, path: &[u8], folders: &mut Vec<(std::path::PathBuf, Vec<u8>)>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) if vanished(&error) => continue,
            Err(error) => return Err(error),
        };
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let below = [path, b"/", entry.file_name().as_bytes()].concat();
        folders.push((entry.path(), below));
    }
    Ok(())
}

/// Whether a cgroup was removed while the tree was read (`ENODEV` from cgroup2).
fn vanished(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) || error.raw_os_error() == Some(19)
}

/// How the names of units end that are cgroups.
const UNITS: [&[u8]; 3] = [b".service", b".scope", b".slice"];

/// The last component that is the name of a unit.
fn unit_name(path: &[u8]) -> Option<&[u8]> {
    path.split(|b| *b == b'/').rfind(|part| UNITS.iter().any(|unit| part.ends_with(unit)))
}

/// Compiles one pattern.
pub(super) fn check(agent: &str, kind: &'static str, pattern: &str) -> Result<Regex, IdentityError> {
    let error = |why: String| IdentityError::Pattern { agent: agent.to_owned(), kind, pattern: pattern.to_owned(), why };
    if let Some(why) = glob::problem(pattern, kind == "cgroup") {
        return Err(error(why.to_owned()));
    }
    if kind == "cgroup" && !pattern.starts_with(['/', '*']) {
        return Err(error("a cgroup path begins at the root; begin it with / or *".to_owned()));
    }
    if kind == "unit" && pattern.contains('/') {
        return Err(error("a unit's name has no /; use cgroup for a path".to_owned()));
    }
    regex(pattern).map_err(|why| error(why.to_string()))
}

/// Why a pattern can name no cgroup at all, and what to do; `None`: it can.
pub(crate) fn names_nothing(kind: &str, pattern: &str) -> Option<&'static str> {
    if kind == "cgroup" && pattern == "/" {
        return Some("the root has every process of the host, and no rule names it; write the agent's own cgroup");
    }
    if kind == "cgroup" && pattern.ends_with('/') {
        return Some("the path of a cgroup ends without a /; remove it");
    }
    if kind == "unit" && !UNITS.iter().any(|unit| can_end(pattern.as_bytes(), unit)) {
        return Some("the name of a unit ends in .service, .scope or .slice; write all of it");
    }
    None
}

/// Whether what matches this glob can end so.
fn can_end(glob: &[u8], end: &[u8]) -> bool {
    match (glob, end) {
        ([.., b'*'], _) | (_, []) => true,
        ([glob @ .., wanted], [end @ .., byte]) => (*wanted == b'?' || wanted == byte) && can_end(glob, end),
        ([], _) => false,
    }
}

fn regex(pattern: &str) -> Result<Regex, Box<regex_automata::meta::BuildError>> {
    Regex::builder()
        .syntax(syntax::Config::new().unicode(false).utf8(false))
        .configure(Regex::config().utf8_empty(false))
        .build(&format!(r"\A(?:{})\z", glob::over_text(pattern)))
        .map_err(Box::new)
}

/// Whether the pattern names this cgroup.
pub(super) fn covers_path(pattern: &str, path: &str) -> bool {
    regex(pattern).is_ok_and(|regex| regex.is_match(path.as_bytes()))
}

/// Whether the pattern names this cgroup's unit.
pub(super) fn covers_unit(pattern: &str, path: &str) -> bool {
    let unit = unit_name(path.as_bytes());
    unit.is_some_and(|unit| regex(pattern).is_ok_and(|regex| regex.is_match(unit)))
}
