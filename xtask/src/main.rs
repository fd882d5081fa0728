//! `cargo xtask`: set-up, builds, checks, tests and installation.
#![forbid(unsafe_code)]

mod agents;
mod attackers;
mod bench_page;
mod build_ebpf;
mod ci;
mod coverage;
mod coverage_page;
mod docs;
mod e2e;
mod fetch;
mod house;
mod initramfs;
mod install;
mod kept;
mod kernels;
mod next_agent;
mod output;
mod packages;
mod parallel;
mod paths;
mod picture;
mod setup;
mod sh;
mod shared;
mod systemd;
mod toolchain;
mod vm;
mod wrappers;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::{build_ebpf::Variant, kernels::Matrix, output::Output, paths::Paths};

/// Build, set-up, test and demo commands of pp-agent
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", version)]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Prepare this machine: eBPF toolchain, QEMU and kernels, lab tools, agents; quick when all is there
    Setup {
        /// Only this part
        #[arg(long)]
        only: Option<setup::Part>,
    },
    /// Build the eBPF object that the agent embeds
    BuildEbpf {
        /// One more cargo feature, into an object of its own name
        #[arg(long, value_name = "FEATURE")]
        extra: Option<String>,
    },
    /// Run a command on another kernel, in a virtual machine that sees this machine's files
    Vm {
        /// Kernel of tests/kernels.toml: 5.10, 6.1, 6.12, 7.x
        #[arg(long)]
        kernel: String,
        /// More kernel command line, for example lsm=lockdown,capability,bpf
        #[arg(long, default_value = "", allow_hyphen_values = true)]
        append: String,
        /// Boot systemd and run the command as one of its units
        #[arg(long)]
        systemd: bool,
        /// Seconds until the machine is ended
        #[arg(long, default_value_t = 300)]
        deadline: u64,
        /// The command and its arguments
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Run the end-to-end suite on one row of tests/kernels.toml
    E2e {
        /// Row to run; without it, this machine's own kernel
        #[arg(long, visible_alias = "row", conflicts_with = "native")]
        kernel: Option<String>,
        /// This machine's own kernel
        #[arg(long)]
        native: bool,
        /// Filter and options for the suite
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        more: Vec<String>,
    },
    /// Try every known way around the gate, write the results and the page of them
    Coverage {
        /// This machine's own kernel
        #[arg(long, conflicts_with = "rows")]
        native: bool,
        /// Rows of tests/kernels.toml; none: all
        #[arg(long, num_args = 1.., value_name = "ROW")]
        rows: Vec<String>,
        /// Print the results as JSON
        #[arg(long)]
        json: bool,
        /// Take the results that the suite's last run left, which must have been of this tree, instead of running it
        #[arg(long)]
        recorded: bool,
        /// Only check that the committed results are those of this tree; with --native, that this machine's own row is, and name the stale ones
        #[arg(long, conflicts_with_all = ["rows", "json", "recorded"])]
        check: bool,
        /// Only make the page of the committed results anew
        #[arg(long, conflicts_with_all = ["native", "rows", "json", "recorded", "check"])]
        page: bool,
    },
    /// Run real tools that scan and guess, write down what they got through and the page of it
    Attackers {
        /// Rows of tests/kernels.toml; none: this machine's own kernel
        #[arg(long, num_args = 1.., value_name = "ROW")]
        rows: Vec<String>,
        /// Those that take half an hour too
        #[arg(long)]
        soak: bool,
        /// Take the results that the suite's last run left, which must have been of this tree, instead of running it
        #[arg(long, conflicts_with = "soak")]
        recorded: bool,
        /// Only write the page of the committed results
        #[arg(long, conflicts_with_all = ["rows", "soak", "recorded"])]
        page: bool,
    },
    /// Run every check: format, lints, unit tests, the suite here and on every kernel, the installed service
    Ci(ci::Options),
    /// Check the rules of the code: no import cycles, module boundaries, documented names, no unused public items
    House(house::Options),
    /// Replay the incident in the lab, stage by stage, then with a signed receipt
    Demo {
        /// Options for the demo
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        more: Vec<String>,
    },
    /// Check the documentation: dead links, long sentences, words a page
    Docs,
    /// Run the demo and draw the pictures and the table of the README from what it printed
    Picture {
        /// Draw what the last run recorded
        #[arg(long)]
        recorded: bool,
    },
    /// Measure what the hooks cost
    Bench {
        /// Measure a build that does more work than it may: the limits must fail it
        #[arg(long)]
        extra: bool,
        /// Record the run as a page below docs/performance
        #[arg(long, conflicts_with = "extra")]
        page: bool,
        /// Options for the bench
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        more: Vec<String>,
    },
    /// Repeat the suite with its long tests on every row
    Soak {
        /// How often
        #[arg(long, default_value_t = 3)]
        rounds: u32,
        /// Rows; none: all
        rows: Vec<String>,
    },
    /// Put binary, unit, slice, group and example policy in place
    Install {
        /// Directory that stands for /
        #[arg(long, default_value = "/")]
        root: PathBuf,
        /// Install this binary instead of building one
        #[arg(long, value_name = "FILE")]
        binary: Option<PathBuf>,
    },
    /// Remove the hooks and what install put in place; policy, keys and receipts stay
    Uninstall {
        /// Directory that stands for /
        #[arg(long, default_value = "/")]
        root: PathBuf,
        /// Remove policy, keys and receipts too
        #[arg(long)]
        purge: bool,
    },
    /// Try the installed service with real systemd in a virtual machine
    InstallTest {
        /// Kernel of tests/kernels.toml
        #[arg(long, default_value = systemd::KERNEL)]
        kernel: String,
    },
}

impl Task {
    /// Whether standard output is for JSON alone.
    const fn wants_json(&self) -> bool {
        match self {
            Self::Coverage { json, .. } => *json,
            Self::Ci(options) => options.json,
            Self::House(options) => options.json,
            _ => false,
        }
    }
}

fn main() -> ExitCode {
    match start(Cli::parse()) {
        Ok(code) => ExitCode::from(code),
        Err(err) => {
            sh::say(format!("error: {err:#}"));
            ExitCode::from(2)
        }
    }
}

fn start(cli: Cli) -> Result<u8> {
    // Other users run files that this process and its children create. Therefore a strict umask of the shell must not apply.
    let _before = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    let paths = Paths::find()?;
    let output = Output::open(cli.command.wants_json())?;
    match cli.command {
        Task::Setup { only } => setup::run(&paths, only).map(|()| 0),
        Task::BuildEbpf { extra } => {
            let variant = extra.as_deref().map_or(Variant::Shipped, Variant::Feature);
            build_ebpf::run(&paths, variant).map(|_| 0)
        }
        Task::Vm { kernel, append, systemd, deadline, command } => {
            setup::vm_tools()?;
            let job = vm::Job {
                kernel: &kernel,
                append: &append,
                run: &format!("{kernel}-{}", std::process::id()),
                command: &command,
                env: &[],
                systemd,
                deadline: Duration::from_secs(deadline),
                show: true,
            };
            let outcome = vm::run(&paths, &Matrix::load(&paths)?, &job)?;
            let seconds = outcome.took.as_secs_f64();
            sh::say(format!("{}: exit code {} after {seconds:.1} s", outcome.release, outcome.exit_code));
            Ok(u8::try_from(outcome.exit_code).unwrap_or(1))
        }
        Task::E2e { kernel, native: _, more } => {
            let cell = e2e::run(&paths, kernel.as_deref(), &more)?;
            wrappers::show(&cell.row, &cell);
            Ok(u8::from(!cell.complaints.is_empty()))
        }
        Task::Coverage { check: true, native, .. } => {
            let demand = if native { coverage::Demand::Native } else { coverage::Demand::All };
            let checked = coverage::check(&paths, demand, false)?;
            checked.complaints.iter().chain(&checked.stale).for_each(|what| sh::say(format!("coverage: {what}")));
            Ok(u8::from(!checked.complaints.is_empty()))
        }
        Task::Coverage { page: true, .. } => coverage::write_page(&paths).map(|()| 0),
        Task::Coverage { native, mut rows, json, recorded, check: false, page: false } => {
            if native {
                rows.push("native".to_owned());
            }
            Ok(u8::from(!coverage::run(&paths, &rows, recorded, json.then_some(&output))?))
        }
        Task::Attackers { page: true, .. } => attackers::write_page(&paths).map(|()| 0),
        Task::Attackers { rows, soak, recorded, page: false } => Ok(u8::from(!attackers::run(&paths, &rows, soak, recorded)?)),
        Task::Ci(options) => Ok(u8::from(!ci::run(&paths, options, &output)?)),
        Task::House(options) => Ok(u8::from(!house::run(&paths, options, &output)?)),
        Task::Demo { more } => wrappers::demo(&paths, &more),
        Task::Docs => docs::run(&paths).map(|good| u8::from(!good)),
        Task::Picture { recorded } => picture::run(&paths, recorded),
        Task::Bench { extra, page, more } => wrappers::bench(&paths, extra, page, &more),
        Task::Soak { rounds, rows } => Ok(u8::from(!wrappers::soak(&paths, rounds, &rows)?)),
        Task::Install { root, binary } => install::install(&paths, &root, binary).map(|()| 0),
        Task::Uninstall { root, purge } => install::uninstall(&root, purge).map(|()| 0),
        Task::InstallTest { kernel } => Ok(u8::from(!systemd::install_test(&paths, &kernel)?)),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn every_command_that_has_json_prints_it_alone() {
        let mut with_json = 0;
        for command in Cli::command().get_subcommands() {
            let name = command.get_name();
            if command.get_arguments().any(|argument| argument.get_id() == "json") {
                with_json += 1;
                let cli = Cli::try_parse_from(["xtask", name, "--json"]).expect("it parses");
                assert!(cli.command.wants_json(), "{name}");
                assert!(!Cli::try_parse_from(["xtask", name]).expect("it parses").command.wants_json(), "{name}");
            }
        }
        assert!(with_json >= 3);
    }
}
