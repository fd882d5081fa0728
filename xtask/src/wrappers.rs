//! `demo`, `bench` and `soak`: set up, build, then start the program.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    bench_page,
    build_ebpf::{self, Variant},
    e2e,
    kernels::Matrix,
    paths::Paths,
    setup, sh, systemd,
};

/// Replays the incident in the lab, stage by stage. Returns the exit code.
pub(crate) fn demo(paths: &Paths, args: &[String]) -> Result<u8> {
    root_only("demo")?;
    setup::native(paths)?;
    // The debug build is minutes faster, and `ci` uses it too.
    let bin = e2e::build(paths, false)?;
    start(paths, &bin, "pp-demo", args, &[])
}

/// Measures the cost of the hooks as a ratio to empty programs at the same hooks. Returns the exit code. It also checks that the limits
/// fail a build that does more work for unmarked callers. With `extra` that build is the one under test, and the run must fail. With `page`
/// the run is written below `docs/performance`.
pub(crate) fn bench(paths: &Paths, extra: bool, page: bool, args: &[String]) -> Result<u8> {
    root_only("bench")?;
    setup::native(paths)?;
    let bin = e2e::build(paths, true)?;
    let object = |variant| build_ebpf::run(paths, variant).map(|file| file.display().to_string());
    let more = object(Variant::Feature("bench-extra"))?;
    let mut env = vec![("PP_BENCH_EMPTY_OBJECT".to_owned(), object(Variant::Feature("bench-empty"))?)];
    if extra {
        env.push(("PP_BENCH_OBJECT".to_owned(), more));
    } else {
        env.push(("PP_BENCH_OBJECT".to_owned(), object(Variant::Shipped)?));
        env.push(("PP_BENCH_EXTRA_OBJECT".to_owned(), more));
    }
    if !page {
        return start(paths, &bin, "pp-bench", args, &env);
    }
    let args = [args, &["--markdown".to_owned()]].concat();
    let output = command(paths, &bin, "pp-bench", &args, &env).stderr(Stdio::inherit()).output().context("pp-bench: did not start")?;
    let code = output.status.code().with_context(|| format!("pp-bench: {}", output.status))?;
    if code == 0 {
        bench_page::write(paths, &String::from_utf8(output.stdout)?, args.iter().any(|word| word == "--control"))?;
    }
    Ok(u8::try_from(code).unwrap_or(1))
}

/// Runs the suite with `--soak` on every row and the installed service, `rounds` times. If rows are named, only these run. True if
/// everything was green every time.
pub(crate) fn soak(paths: &Paths, rounds: u32, rows: &[String]) -> Result<bool> {
    root_only("soak")?;
    setup::run(paths, None)?;
    setup::run(paths, Some(setup::Part::Browser))?;
    let matrix = Matrix::load(paths)?;
    for name in rows {
        matrix.row(name)?;
    }
    let bin = e2e::build_all(paths)?;
    let mut green = true;
    for round in 1..=rounds {
        for row in matrix.rows.iter().filter(|row| rows.is_empty() || rows.contains(&row.name)) {
            let cell = e2e::run_row(paths, &matrix, row, &bin, &["--soak".to_owned()], false);
            green &= cell.complaints.is_empty();
            show(&format!("round {round} of {rounds}, {}", cell.row), &cell);
        }
        if rows.is_empty() {
            for mode in systemd::Mode::ALL {
                let tried = systemd::try_installed(paths, &matrix, systemd::KERNEL, mode, &bin.join("pp-agent"));
                green &= tried.complaint.is_none();
                show_tried(&format!("round {round} of {rounds}"), &tried);
            }
        }
    }
    Ok(green)
}

/// Prints the result of a row in one line, and each complaint in another.
#[expect(clippy::print_stdout, reason = "the output is this command's result")]
pub(crate) fn show(what: &str, cell: &e2e::Cell) {
    for complaint in &cell.complaints {
        println!("{what}: {complaint}");
    }
    let word = if cell.complaints.is_empty() { "green" } else { "RED" };
    println!(
        "{what} on {}: {word}, {} passed, {} failed, {} skipped in {:.0} s",
        cell.kernel,
        cell.passed,
        cell.failed,
        cell.skipped,
        cell.took.as_secs_f64()
    );
}

/// The same for a test of the installed service.
#[expect(clippy::print_stdout, reason = "the output is this command's result")]
pub(crate) fn show_tried(what: &str, tried: &systemd::Tried) {
    let seconds = tried.took.as_secs_f64();
    match &tried.complaint {
        None => println!("{what}, {}: green, {} steps held in {seconds:.0} s", tried.what, tried.held),
        Some(complaint) => println!("{what}, {}: RED after {seconds:.0} s: {complaint}", tried.what),
    }
}

fn command(paths: &Paths, bin: &Path, program: &str, args: &[String], env: &[(String, String)]) -> Command {
    let mut command = Command::new(bin.join(program));
    command.args(args).envs(e2e::environment(paths, bin)).envs(env.iter().cloned()).current_dir(&paths.root);
    command
}

fn start(paths: &Paths, bin: &Path, program: &str, args: &[String], env: &[(String, String)]) -> Result<u8> {
    let status = command(paths, bin, program, args, env).status().with_context(|| format!("{program}: did not start"))?;
    let code = status.code().with_context(|| format!("{program}: {status}"))?;
    Ok(u8::try_from(code).unwrap_or(1))
}

fn root_only(what: &str) -> Result<()> {
    if !sh::is_root() {
        bail!("{what}: needs root for network namespaces and eBPF; run: sudo --preserve-env=PATH,HOME cargo xtask {what}");
    }
    Ok(())
}
