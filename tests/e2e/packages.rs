//! The shipped rules against the real packages: however a package is started, it is a session of the right agent, and what it starts itself
//! is refused. Where a package must start a child, it does so without a model: see `pp_tests::packages`.
//!
//! The rules as shipped are in force for the whole machine while these tests run, so an agent that the machine's user runs meanwhile is
//! governed too, and loses nothing but the lab's addresses and OT ports.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context as _, Result, ensure};
use nix::libc;
use pp_agent::config::Config;
use pp_tests::agent::Daemon;
use pp_tests::harness::{By, Quiet, is_block};
use pp_tests::lab::PLC;
use pp_tests::packages::{self, PACKAGES, Package, Started, Way};
use pp_tests::policy::Policy;
use pp_tests::wait;
use serde_json::Value;

use crate::world::{World, tests};

tests![
    children_of_packages_arrive_where_no_rule_names_these,
    claude_code_is_governed_however_it_is_started,
    claude_code_as_a_script_is_governed_however_it_is_started,
    codex_is_governed_however_it_is_started,
    gemini_cli_is_governed_however_it_is_started,
    opencode_is_governed_however_it_is_started,
    qwen_code_is_governed_however_it_is_started,
    amp_is_governed_however_it_is_started,
    continue_is_governed_however_it_is_started,
    aider_is_governed_however_it_is_started,
    npx_npm_and_plain_scripts_are_nobodys,
];

/// Other agents' rules in the shared daemon; the standard ones come back at the end.
struct Rules<'a>(&'a Daemon);

impl<'a> Rules<'a> {
    fn shipped(daemon: &'a Daemon) -> Result<Self> {
        ensure_not_inside_an_agent()?;
        daemon.reload(&Policy::standard(daemon.lab()).with_shipped_agents())?;
        Ok(Self(daemon))
    }

    /// No package of [`PACKAGES`] is an agent.
    fn without_packages(daemon: &'a Daemon) -> Result<Self> {
        let names: BTreeSet<_> = PACKAGES.iter().map(|package| package.agent).collect();
        let policy = Policy::standard(daemon.lab()).with_shipped_agents();
        daemon.reload(
            &names.into_iter().fold(policy, |policy, name| policy.with_agent(name, "exec = [\"/nowhere/agent\"]\nreplace = true")),
        )?;
        Ok(Self(daemon))
    }
}

impl Drop for Rules<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.reload(&Policy::standard(self.0.lab())) {
            eprintln!("the standard policy did not come back: {error:#}");
        }
    }
}

/// The shipped rules would make the suite itself a session if an agent had started it, and every control run would be refused.
fn ensure_not_inside_an_agent() -> Result<()> {
    let identity = Config::builtin()?.identity;
    let mut pid = std::process::id();
    while pid > 1 {
        let line = fs::read(format!("/proc/{pid}/cmdline"))?;
        let argv: Vec<&[u8]> = line.split(|byte| *byte == 0).filter(|word| !word.is_empty()).collect();
        let found = argv.first().and_then(|path| identity.matches(path, &argv)).filter(|id| *id != 0);
        let name = found.and_then(|id| identity.name(id)).unwrap_or_default();
        ensure!(found.is_none(), "{name} (process {pid}) runs this suite, and its own rules are on trial: start it from another shell");
        pid = parent(pid)?;
    }
    Ok(())
}

fn parent(pid: u32) -> Result<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).with_context(|| format!("process {pid}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:")).context("a process without a parent")?;
    Ok(line.trim().parse()?)
}

/// The processes above this one, nearest first.
fn ancestors(mut pid: u32) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    while pid > 1 {
        pid = parent(pid)?;
        found.push(pid);
    }
    Ok(found)
}

fn pids(list: &Value) -> Vec<u32> {
    let pids = list.as_array().into_iter().flatten().filter_map(|process| process["pid"].as_u64());
    pids.filter_map(|pid| u32::try_from(pid).ok()).collect()
}

fn session_of(daemon: &Daemon, pid: u32) -> Result<Option<Value>> {
    let listed = daemon.cli(&["sessions", "--json"])?.success()?.json()?;
    let listed = listed.get("sessions").unwrap_or(&listed).as_array().cloned().unwrap_or_default();
    Ok(listed.into_iter().find(|session| pids(&session["processes"]).contains(&pid)))
}

/// One start: its child was refused, the event says whose it is, and the session that is listed has the child. Returns its id.
fn shown(daemon: &Daemon, mark: usize, package: &Package, started: &mut Started) -> Result<String> {
    let answer = started.answer()?;
    ensure!(answer["errno"] == libc::EPERM, "its child was not refused: {answer}");
    let child = answer["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).context("an answer without a pid")?;
    let event = daemon.events().wait_since(mark, "its event", |event| is_block(event, PLC) && event["pid"] == child)?;
    ensure!(event["agent"] == package.agent && event["reason"] == "no_receipt", "{event}");
    let (named, above) = (pids(&event["parents"]), ancestors(child)?);
    ensure!(!named.is_empty() && above.starts_with(&named), "its parents are {above:?}: {event}");
    ensure!(named.contains(&started.pid()?), "process {} started it: {event}", started.pid()?);
    let session = session_of(daemon, child)?.with_context(|| format!("`pp-agent sessions` does not list process {child}"))?;
    ensure!(session["session"] == event["session"] && session["agent"] == package.agent, "{session} {event}");
    ensure!(pids(&session["processes"]).contains(&named[0]), "its parent is not in the session: {session}");
    event["session"].as_str().map(str::to_owned).context("an event without a session")
}

fn deliver(daemon: &Daemon, started: &mut Started) -> Result<u32> {
    let answer = started.answer()?;
    ensure!(answer["ok"] == true, "its child did not arrive: {answer}");
    let child = answer["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).context("an answer without a pid")?;
    let session = session_of(daemon, child)?;
    ensure!(session.is_none(), "its child is in a session: {session:?}");
    Ok(child)
}

/// All ways at once: most of each start is waiting.
fn governed(world: &mut World, name: &str) -> Result<()> {
    let package = packages::named(name)?;
    let daemon = world.daemon()?;
    let rules = Rules::shipped(daemon)?;
    let (quiet, mark) = (Quiet::begin(daemon.lab())?, daemon.events().mark());
    let starts = package.ways.iter().map(|way| Ok((*way, package.start(daemon.lab(), *way)?)));
    let mut starts = starts.collect::<Result<Vec<(Way, Started)>>>()?;
    let (mut sessions, mut wrong) = (BTreeSet::new(), Vec::new());
    for (way, started) in &mut starts {
        match shown(daemon, mark, package, started) {
            Ok(session) => {
                let _new = sessions.insert(session);
            }
            Err(error) => wrong.push(format!("{way:?}: {error:#}")),
        }
    }
    drop(starts);
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    ensure!(sessions.len() == package.ways.len(), "{} starts, but {} sessions", package.ways.len(), sessions.len());
    quiet.assert_nothing_at(PLC)?;
    let plant = daemon.lab().plant().from_now();
    let _child = deliver(daemon, &mut packages::child_of_nobody(daemon.lab())?).context("control run")?;
    wait::until_true("its packets in the plant", wait::SOON, || !plant.packets_to(PLC).is_empty())?;
    drop(rules);
    Ok(())
}

/// The control of all others: nothing but the rules keeps these children from the PLC, no sandbox of the agent's own and no setting.
fn children_of_packages_arrive_where_no_rule_names_these(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let rules = Rules::without_packages(daemon)?;
    let starts = PACKAGES.iter().map(|package| Ok((package.name, package.start(daemon.lab(), package.ways[0])?)));
    let mut starts = starts.collect::<Result<Vec<(&str, Started)>>>()?;
    let shown = starts.iter_mut().map(|(name, started)| (*name, deliver(daemon, started)));
    let wrong: Vec<_> = shown.filter_map(|(name, shown)| Some(format!("{name}: {:#}", shown.err()?))).collect();
    drop(starts);
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    drop(rules);
    Ok(())
}

fn claude_code_is_governed_however_it_is_started(world: &mut World) -> Result<()> {
    governed(world, "claude-code")
}

fn claude_code_as_a_script_is_governed_however_it_is_started(world: &mut World) -> Result<()> {
    governed(world, "claude-code-older")
}

fn codex_is_governed_however_it_is_started(world: &mut World) -> Result<()> {
    governed(world, "codex")
}

fn gemini_cli_is_governed_however_it_is_started(world: &mut World) -> Result<()> {
    governed(world, "gemini-cli")
}

fn opencode_is_governed_however_it_is_started(world: &mut World) -> Result<()> {
    governed(world, "opencode")
}

fn qwen_code_is_governed_however_it_is_started(world: &mut World) -> Result<()> {
    governed(world, "qwen-code")
}

fn amp_is_governed_however_it_is_started(world: &mut World) -> Result<()> {
    governed(world, "amp")
}

fn continue_is_governed_however_it_is_started(world: &mut World) -> Result<()> {
    governed(world, "continue")
}

fn aider_is_governed_however_it_is_started(world: &mut World) -> Result<()> {
    governed(world, "aider")
}

/// What starts agents is not an agent, and what installs them neither: only the package itself is.
fn npx_npm_and_plain_scripts_are_nobodys(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let rules = Rules::shipped(daemon)?;
    let lab = daemon.lab();
    let mark = daemon.events().mark();
    let version = packages::started_with_child(lab, |_, _| Ok(vec!["npx".into(), "--version".into()]))?;
    let mut never = vec![version.pid()?];
    let output = version.finish()?;
    ensure!(output.stdout.contains('.'), "{output}");
    // A package whose install script starts the child, and a project that depends on it.
    let mut install = packages::started_with_child(lab, |work, child| {
        fs::create_dir_all(work.join("dependency"))?;
        let dependency = serde_json::json!({"name": "dependency", "version": "1.0.0", "scripts": {"install": child.join(" ")}});
        fs::write(work.join("dependency/package.json"), dependency.to_string())?;
        fs::write(work.join("package.json"), serde_json::json!({"name": "work", "private": true}).to_string())?;
        let words = ["npm", "install", "--offline", "--install-links", "--foreground-scripts", "--no-audit", "--no-fund", "./dependency"];
        Ok(words.map(str::to_owned).to_vec())
    })?;
    never.extend([install.pid()?, deliver(daemon, &mut install).context("npm install")?]);
    let mut script = packages::started_with_child(lab, |work, child| {
        let text = format!("require('child_process').spawnSync({}, {})", serde_json::json!(child[0]), serde_json::json!(child[1..]));
        fs::write(work.join("script.js"), text)?;
        Ok(vec!["node".into(), work.join("script.js").display().to_string()])
    })?;
    never.extend([script.pid()?, deliver(daemon, &mut script).context("node script.js")?]);
    let _ended = (install.finish()?, script.finish()?);
    // Events come in order: what had begun before this session would have been told before it.
    let last = By::run("lab-last").run_words(daemon, &["/bin/true".into()])?.success()?;
    let begun = |event: &Value| event["kind"] == "session_start";
    let _event =
        daemon.events().wait_since(mark, "a last session", |event| begun(event) && event["agent"] == "lab-last").context(last.both())?;
    let marked: Vec<_> = daemon.events().since(mark).into_iter().filter(begun).collect();
    let wrong = marked.iter().find(|event| never.iter().any(|pid| event["pid"] == *pid));
    ensure!(wrong.is_none(), "{wrong:?}");
    drop(rules);
    Ok(())
}
