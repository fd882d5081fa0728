//! The incident, replayed in the lab stage by stage with real tools: found, read about, sprayed, reached for directly; each refused in the
//! kernel, while the agent's ordinary work goes on. A scan and a spray of ordinary hosts are stopped by how much they reach for. Then one
//! signed receipt opens one PLC, and its revocation closes it again; and a login that another one opens is cut when it turns into guessing.
//!
//! Prints one table; exit code 0 if every stage went as expected, 1 if one did not, 2 if the lab could not be built. Needs root.

mod record;
mod stages;
mod table;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use clap::Parser;
use pp_agent::os::host::kernel_release;
use pp_tests::agent::Daemon;
use pp_tests::lab::{Lab, leave_the_network};
use pp_tests::policy::Policy;
use table::Table;

/// Replay the incident in the lab
#[derive(Debug, Parser)]
#[command(name = "pp-demo")]
struct Options {
    /// Write the stages, and what the terminals of an agent and of an operator show, as JSON
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    match demonstrate(options.record.as_deref()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("pp-demo: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn demonstrate(record: Option<&Path>) -> Result<bool> {
    let _outside = leave_the_network()?;
    eprintln!("building the lab: a plant with PLCs and a gateway, an engineering host, an ordinary network");
    let lab = Arc::new(Lab::start()?);
    eprintln!("starting the gate on the engineering host");
    let mut daemon = Daemon::prepare(&lab, &Policy::standard(&lab))?;
    let key = stages::operators_key(&daemon)?;
    daemon.spawn()?;
    let backend = daemon.backend()?;
    let mut table = Table::default();
    // Before anything was ever revoked: a refusal then says so.
    let pictures = record.map(|_| record::pictures(&daemon, &key)).transpose()?;
    stages::replay(&daemon, &key, &mut table);
    // Everything is taken down before the verdict: nothing of the demonstration stays on the host.
    drop(daemon);
    drop(lab);
    let mut out = std::io::stdout().lock();
    writeln!(out, "\n{}\nbackend: {backend}; all addresses are the lab's own, all data is invented", table.text())?;
    if let (Some(file), Some(pictures)) = (record, pictures) {
        let recorded = serde_json::json!({
            "pictures": pictures,
            "stages": table.json(),
            "backend": backend,
            "kernel": kernel_release(),
        });
        std::fs::write(file, format!("{recorded:#}\n")).with_context(|| file.display().to_string())?;
    }
    Ok(table.is_right())
}
