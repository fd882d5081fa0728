//! `tests/kernels.toml`: the kernels that the suite runs on, and what it expects there.

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::paths::{self, Paths};

/// One kernel image and its packages.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Kernel {
    /// Name of its directory in the cache.
    pub(crate) name: String,
    /// Release prefix: `6.1` holds 6.1.192, `7` holds 7.3.4.
    pub(crate) series: String,
    /// Debian suites that have it.
    pub(crate) suites: Vec<String>,
    /// Pinned packages, `name=version`.
    pub(crate) packages: Vec<String>,
}

/// One run of the e2e suite.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Row {
    /// Its name in tables and on the command line.
    pub(crate) name: String,
    /// The kernel to boot. `None`: this machine's own.
    #[serde(default)]
    pub(crate) kernel: Option<String>,
    /// More kernel command line.
    #[serde(default)]
    pub(crate) append: String,
    /// The backend that the canary must find.
    pub(crate) backend: String,
    /// How much of the suite `ci` runs here.
    #[serde(default)]
    pub(crate) ci: Share,
    /// Tests that may be skipped here.
    pub(crate) allowed_skips: Vec<String>,
}

/// How much of the suite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Share {
    /// All of it.
    #[default]
    Whole,
    /// The groups of [`Matrix::ci_groups`].
    Part,
    /// Those and the groups of [`Matrix::ci_kernel_groups`].
    Kernel,
    /// None: `soak` runs the row, and `e2e` by its name.
    None,
}

/// The whole file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Matrix {
    /// The groups of tests that `ci` runs on rows that have a part of the suite there.
    pub(crate) ci_groups: Vec<String>,
    /// The groups of what kernels differ in, which it runs on some rows too.
    pub(crate) ci_kernel_groups: Vec<String>,
    #[serde(rename = "kernel")]
    pub(crate) kernels: Vec<Kernel>,
    #[serde(rename = "row")]
    pub(crate) rows: Vec<Row>,
}

impl Matrix {
    /// Reads and checks `tests/kernels.toml`.
    ///
    /// # Errors
    ///
    /// A file that does not parse, or a row that names no kernel of the file.
    pub(crate) fn load(paths: &Paths) -> Result<Self> {
        let file = paths.root.join("tests/kernels.toml");
        Self::parse(&paths::read(&file)?).with_context(|| file.display().to_string())
    }

    fn parse(text: &str) -> Result<Self> {
        let matrix: Self = toml::from_str(text)?;
        for row in &matrix.rows {
            if let Some(name) = &row.kernel
                && !matrix.kernels.iter().any(|kernel| kernel.name == *name)
            {
                bail!("row {}: no kernel {name} in this file", row.name);
            }
        }
        Ok(matrix)
    }

    /// The kernel of that name.
    pub(crate) fn kernel(&self, name: &str) -> Result<&Kernel> {
        let known = || self.kernels.iter().map(|kernel| kernel.name.as_str()).collect::<Vec<_>>().join(", ");
        self.kernels
            .iter()
            .find(|kernel| kernel.name == name)
            .with_context(|| format!("kernel {name}: not in tests/kernels.toml, which has {}", known()))
    }

    /// The row of that name.
    pub(crate) fn row(&self, name: &str) -> Result<&Row> {
        let known = || self.rows.iter().map(|row| row.name.as_str()).collect::<Vec<_>>().join(", ");
        self.rows
            .iter()
            .find(|row| row.name == name)
            .with_context(|| format!("row {name}: not in tests/kernels.toml, which has {}", known()))
    }
}

/// Does a kernel release (`uname -r`) belong to a series?
pub(crate) fn in_series(release: &str, series: &str) -> bool {
    release.strip_prefix(series).is_some_and(|rest| rest.starts_with(['.', '-', '+']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_matrix_parses_and_its_rows_name_its_kernels() {
        let matrix = Matrix::parse(include_str!("../../tests/kernels.toml")).expect("it parses");
        assert_eq!(matrix.row("native").expect("it is there").kernel, None);
        assert!(matrix.kernel("6.1").is_ok());
        assert!(matrix.row("2.6").is_err());
        let share = |name: &str| matrix.row(name).expect("it is there").ci;
        let shares = ["native", "6.12", "6.12-nobpf", "6.1-nobpf"].map(share);
        assert_eq!(shares, [Share::Whole, Share::Kernel, Share::Part, Share::None]);
    }

    #[test]
    fn a_row_with_an_unknown_kernel_is_refused() {
        let text =
            "ci_groups = []\nci_kernel_groups = []\nkernel = []\n[[row]]\nname = 'a'\nkernel = 'b'\nbackend = 'lsm'\nallowed_skips = []\n";
        assert!(Matrix::parse(text).is_err());
    }

    #[test]
    fn a_longer_number_is_another_series() {
        assert!(in_series("6.1.0-56-amd64", "6.1"));
        assert!(!in_series("6.12.117+deb13-amd64", "6.1"));
        assert!(in_series("7.3.4+deb13-amd64", "7"));
    }
}
