//! Standard output as the place of a command's result, and of nothing else.

use std::{fs::File, io::Write as _};

use anyhow::{Context as _, Result};

/// Where a command's result goes.
#[derive(Debug)]
pub(crate) struct Output {
    /// What was standard output when this program began; none where results share it with all else that is printed.
    own: Option<File>,
}

impl Output {
    /// With `alone`, what this program and those that it starts print to standard output goes to standard error from now on: a result
    /// that another program reads is then alone, whoever prints what on the way to it.
    ///
    /// # Errors
    ///
    /// Standard output is closed.
    pub(crate) fn open(alone: bool) -> Result<Self> {
        if !alone {
            return Ok(Self { own: None });
        }
        let own = nix::unistd::dup(std::io::stdout()).context("standard output")?;
        nix::unistd::dup2_stdout(std::io::stderr()).context("standard error as standard output")?;
        Ok(Self { own: Some(File::from(own)) })
    }

    /// Writes a result, and a line break.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub(crate) fn write(&self, result: &str) -> Result<()> {
        let line = format!("{result}\n");
        match &self.own {
            Some(own) => (&mut &*own).write_all(line.as_bytes()),
            None => std::io::stdout().write_all(line.as_bytes()),
        }
        .context("standard output")
    }
}
