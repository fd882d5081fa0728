//! The incident, replayed in the lab stage by stage with real tools: found, read about, sprayed, reached for directly; each refused in the
//! kernel, while the agent's ordinary work goes on. A scan and a spray of ordinary hosts are stopped by how much they reach for. Then one
//! signed receipt opens one PLC, and its revocation closes it again; and a login that another one opens is cut when it turns into guessing.
//!
//! Prints one table; exit code 0 if every stage went as expected, 1 if one did not, 2 if the lab could not be built. Needs root.

mod stages;
mod table;

use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use pp_tests::agent::Daemon;
use pp_tests::lab::{Lab, leave_the_network};
use pp_tests::policy::Policy;
use table::Table;

fn main() -> ExitCode {
    match demonstrate() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("pp-demo: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn demonstrate() -> Result<bool> {
    let _outside = leave_the_network()?;
    eprintln!("building the lab: a plant with PLCs and a gateway, an engineering host, an ordinary network");
    let lab = Arc::new(Lab::start()?);
    eprintln!("starting the gate on the engineering host");
    let mut daemon = Daemon::prepare(&lab, &Policy::standard(&lab))?;
    let key = stages::operators_key(&daemon)?;
    daemon.spawn()?;
    let backend = daemon.backend()?;
    let mut table = Table::default();
    stages::replay(&daemon, &key, &mut table);
    // Everything is taken down before the verdict: nothing of the demonstration stays on the host.
    drop(daemon);
    drop(lab);
    let mut out = std::io::stdout().lock();
    writeln!(out, "\n{}\nbackend: {backend}; all addresses are the lab's own, all data is invented", table.text())?;
    Ok(table.is_right())
}
