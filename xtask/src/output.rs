//! Keeps standard output for the result of a command.

use std::{fs::File, io::Write as _};

use anyhow::{Context as _, Result};

/// Where a command's result goes.
#[derive(Debug)]
pub(crate) struct Output {
    /// The original standard output. `None` if results share it with all other output.
    own: Option<File>,
}

impl Output {
    /// With `alone`, standard output of this program and of those that it starts goes to standard error from now on. Then another program
    /// can read the result without other output in it.
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
