//! The `[exec]` table: which tools a session may run.

use std::sync::{Mutex, PoisonError};

use super::error::{ConfigError, Origin, Problem};
use super::raw;
use super::source::Text;
use super::value::invalid;
use super::{Exec, Mode};
use crate::tools::{self, ToolTables};

/// What the files have set.
#[derive(Default)]
pub(super) struct Merged {
    pub(super) mode: Option<(Mode, Origin)>,
    allow: Vec<String>,
}

impl Merged {
    /// Adds the lines of one file, and checks each of them.
    pub(super) fn allow(&mut self, source: &Text<'_>, file: &raw::Exec) -> Result<(), ConfigError> {
        if let Some(name) = file.disable.iter().find(|name| name.get_ref().contains(char::is_whitespace)) {
            let wanted = "it is the name of a tool alone; for some of its command lines use allow";
            let problem = Problem::BadValue { key: "disable", found: name.get_ref().clone(), wanted };
            return Err(invalid(source.at(name.span()), problem));
        }
        // The name of a tool alone means all of its command lines.
        for line in file.allow.iter().chain(&file.disable) {
            let text = line.get_ref();
            tools::check_allow(text).map_err(|error| invalid(source.at(line.span()), Problem::Tool(error)))?;
            if !self.allow.contains(text) {
                self.allow.push(text.clone());
            }
        }
        Ok(())
    }

    /// The compiled rules. A host that observes refuses no program.
    pub(super) fn finish(self, host: Mode) -> Result<(Exec, ToolTables), ConfigError> {
        let mode = self.mode.map_or(host, |(mode, _)| mode);
        let tables = compiled(&self.allow, mode == Mode::Observe)?;
        Ok((Exec { mode, allow: self.allow }, tables))
    }
}

/// Compiles the rules. The last tables are kept, since a policy is often read again with the same lines.
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
