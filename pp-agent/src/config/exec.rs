//! The `[exec]` table: what a session may run of the tools that rules are about.

use std::sync::{Mutex, PoisonError};

use super::error::{ConfigError, Origin, Problem};
use super::raw;
use super::source::Source;
use super::value::invalid;
use super::{Exec, Mode};
use crate::tools::{self, ToolTables};

/// What the files said so far.
#[derive(Default)]
pub(super) struct Merged {
    pub(super) mode: Option<(Mode, Origin)>,
    allow: Vec<String>,
}

impl Merged {
    /// Takes the lines of one file in, each judged on its own.
    pub(super) fn allow(&mut self, source: &Source, file: &raw::Exec) -> Result<(), ConfigError> {
        if let Some(name) = file.disable.iter().find(|name| name.get_ref().contains(char::is_whitespace)) {
            let wanted = "it is the name of a tool alone; for some of its command lines use allow";
            let problem = Problem::BadValue { key: "disable", found: name.get_ref().clone(), wanted };
            return Err(invalid(source.at(name.span()), problem));
        }
        // A tool's name alone stands for all of its command lines.
        for line in file.allow.iter().chain(&file.disable) {
            let text = line.get_ref();
            tools::check_allow(text).map_err(|error| invalid(source.at(line.span()), Problem::Tool(error)))?;
            if !self.allow.contains(text) {
                self.allow.push(text.clone());
            }
        }
        Ok(())
    }

    /// The rules, compiled. A host that observes refuses no program either.
    pub(super) fn finish(self, host: Mode) -> Result<(Exec, ToolTables), ConfigError> {
        let mode = self.mode.map_or(host, |(mode, _)| mode);
        let tables = compiled(&self.allow, mode == Mode::Observe)?;
        Ok((Exec { mode, allow: self.allow }, tables))
    }
}

/// The tables last made: a policy is read several times with the same lines.
fn compiled(allow: &[String], observe: bool) -> Result<ToolTables, ConfigError> {
    type Last = Option<(Vec<String>, bool, ToolTables)>;
    static LAST: Mutex<Last> = Mutex::new(None);
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((known, mode, tables)) = &*last
        && known == allow
        && *mode == observe
    {
        return Ok(tables.clone());
    }
    let tables = tools::compile(allow, observe)?;
    *last = Some((allow.to_vec(), observe, tables.clone()));
    Ok(tables)
}
