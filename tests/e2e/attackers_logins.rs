//! Real tools that guess passwords, run by an agent under the policy as it is shipped. The servers count what they were asked.
//!
//! The rules count connections, since what is said in them is not theirs to read; a server that hangs up after some wrong passwords makes a
//! bound on guesses of it. At a gateway what counts is turns.

use anyhow::{Context as _, Result, ensure};
use pp_common::behaviour::{Attempts, History, Limits, Target, attempt, step, trip, what};
use pp_common::dest::Addr;
use pp_tests::agent::Daemon;
use pp_tests::attackers::{Line, record};
use pp_tests::forge::Draft;
use pp_tests::harness::By;
use pp_tests::lab::{FTP, GATEWAY_WEST, SSH};
use pp_tests::paths;
use pp_tests::policy::AGENT;
use pp_tests::wait;
use serde_json::{Value, json};

use crate::attackers::{Attack, Counted, shipped, shown, stopped, words};
use crate::behaviour::reach;
use crate::receipts::{Registered, opening};
use crate::turns::guesses;
use crate::world::{World, tests};

tests![
    hydra_at_ftp,
    medusa_at_ftp,
    medusa_at_ssh,
    ncrack_at_ftp,
    patator_at_ssh,
    spray_in_python,
    spray_over_hosts_in_python,
    slow_spray_meets_the_number_of_half_an_hour,
    low_and_wide_spray_meets_the_number_of_login_targets,
    sprays_over_a_day_by_a_simulated_clock,
    keep_alive_spray_at_a_gateway,
];

/// Passwords that the lab's servers take on one connection.
const PER_CONNECTION: usize = 3;

/// A list of invented passwords; its path.
pub(crate) fn passwords(daemon: &Daemon, number: usize) -> Result<String> {
    let list = daemon.path("passwords");
    std::fs::write(&list, (0..number).map(|number| format!("invented{number}\n")).collect::<String>())?;
    Ok(list.display().to_string())
}

/// A tool guesses at one login: as many connections as the rule allows, each good for some guesses.
fn guesses_stopped(daemon: &Daemon, attacker: &'static str, line: &str, allowed: usize) -> Result<()> {
    let attack = Attack { attacker, words: words(line), reason: "spray_target", counted: Counted::Connections, allowed, note: "" };
    let event = stopped(daemon, &attack)?;
    ensure!(event["attack"] == json!(["T1110.001"]) && event["window_s"] == 60 && event["hook"] == "connect", "{event}");
    let row = pp_tests::attackers::lines().pop().context("no row")?;
    ensure!(row.guesses.is_some_and(|guesses| (1..=row.through * PER_CONNECTION).contains(&guesses)), "{row:?}");
    Ok(())
}

fn hydra_at_ftp(world: &mut World) -> Result<()> {
    let daemon = shipped(world, "")?;
    let list = passwords(daemon, 60)?;
    guesses_stopped(daemon, "hydra, FTP", &format!("hydra -I -t 16 -W 0 -l operator -P {list} ftp://{}", FTP.ip()), 10)
}

fn medusa_at_ftp(world: &mut World) -> Result<()> {
    let daemon = shipped(world, "")?;
    let list = passwords(daemon, 60)?;
    guesses_stopped(daemon, "medusa, FTP", &format!("medusa -h {} -u operator -P {list} -M ftp -t 4 -r 0 -R 1", FTP.ip()), 10)
}

fn medusa_at_ssh(world: &mut World) -> Result<()> {
    let daemon = shipped(world, "")?;
    let list = passwords(daemon, 80)?;
    guesses_stopped(daemon, "medusa, SSH", &format!("medusa -h {} -u operator -P {list} -M ssh -t 8 -r 0 -R 1", SSH.ip()), 20)
}

fn ncrack_at_ftp(world: &mut World) -> Result<()> {
    let daemon = shipped(world, "")?;
    let list = passwords(daemon, 60)?;
    guesses_stopped(daemon, "ncrack, FTP", &format!("ncrack --user operator -P {list} -T5 -g to=20s ftp://{}:21", FTP.ip()), 10)
}

fn patator_at_ssh(world: &mut World) -> Result<()> {
    let daemon = shipped(world, "")?;
    let list = passwords(daemon, 30)?;
    let line = format!("patator ssh_login host={} user=operator password=FILE0 0={list} persistent=0 -t 4 --max-retries=0", SSH.ip());
    guesses_stopped(daemon, "patator, SSH", &line, 20)
}

/// The words of the lab's own spray: so many guesses, at once or one each so many seconds.
pub(crate) fn guess_words(daemon: &Daemon, number: usize, at_once: usize, every: u32) -> Result<String> {
    let script = daemon.lab().directory().join("guess.py");
    Ok(format!("{} -B {} {} {} {number} {at_once} {every}", paths::python()?.display(), script.display(), FTP.ip(), FTP.port()))
}

fn spray_in_python(world: &mut World) -> Result<()> {
    let daemon = shipped(world, "")?;
    let line = guess_words(daemon, 60, 20, 0)?;
    guesses_stopped(daemon, "Python asyncio, FTP", &line, 10)
}

fn spray_over_hosts_in_python(world: &mut World) -> Result<()> {
    let daemon = shipped(world, "")?;
    let words = reach(daemon, "tcp", 10, &["10.50.5.[1-40]:3389"])?;
    let attack =
        Attack { attacker: "Python asyncio, RDP of hosts", words, reason: "spray_hosts", counted: Counted::Pairs, allowed: 5, note: "" };
    let event = stopped(daemon, &attack)?;
    ensure!(event["attack"] == json!(["T1110.003"]) && event["window_s"] == 60, "{event}");
    Ok(())
}

fn slow_spray_meets_the_number_of_half_an_hour(world: &mut World) -> Result<()> {
    let daemon = shipped(world, "[behaviour]\ntarget_per_minute = 64")?;
    let attack = Attack {
        attacker: "Python asyncio, slow spray, FTP",
        words: words(&guess_words(daemon, 60, 1, 0)?),
        reason: "spray_target",
        counted: Counted::Connections,
        allowed: usize::try_from(Limits::DEFAULT.target_long)?,
        note: "target_per_minute = 64: without the wait that the short window asks for",
    };
    let event = stopped(daemon, &attack)?;
    ensure!(event["window_s"] == 1800, "{event}");
    Ok(())
}

fn low_and_wide_spray_meets_the_number_of_login_targets(world: &mut World) -> Result<()> {
    let daemon = shipped(world, "[behaviour]\nlogin_hosts = 128\nhosts_per_port = 128")?;
    let attack = Attack {
        attacker: "Python asyncio, low and wide spray, SMB",
        words: reach(daemon, "tcp", 1, &["10.50.6.[1-60]:445"])?,
        reason: "spray_hosts",
        counted: Counted::Pairs,
        allowed: 32,
        note: "login_hosts = 128, hosts_per_port = 128: without the wait that the short windows ask for",
    };
    let event = stopped(daemon, &attack)?;
    ensure!(event["window_s"] == 1800, "{event}");
    Ok(())
}

/// The decision that the kernel makes, with the shipped limits and a clock of the test's own.
struct Gate {
    limits: Limits,
    history: Box<History>,
    logins: std::collections::BTreeMap<u32, Box<Attempts>>,
}

impl Gate {
    fn new() -> Self {
        Self { limits: Limits::DEFAULT, history: Box::new(History::EMPTY), logins: std::collections::BTreeMap::new() }
    }

    /// Whether one more attempt at this login goes out at that second.
    fn allows(&mut self, host: u8, port: u16, second: u64) -> bool {
        let addr = Addr::v4([10, 50, 6, host]);
        let target = Target { addr, what: what(6, port), login: 1, internal: 1 };
        // Long after boot.
        let now_ns = (1_000_000 + second) * 1_000_000_000;
        let answer = step(&mut self.history, &self.limits, &target, now_ns);
        if answer.rule != 0 || answer.login == 0 {
            return answer.rule == 0;
        }
        let attempts = self.logins.entry(answer.login).or_insert_with(|| Box::new(Attempts::EMPTY));
        let answer = attempt(attempts, &self.limits, &target, now_ns);
        if answer.rule != 0 {
            trip(&mut self.history, &self.limits, answer.rule, &target, now_ns);
        }
        answer.rule == 0
    }
}

fn sprays_over_a_day_by_a_simulated_clock(_: &mut World) -> Result<()> {
    const DAY: u64 = 86_400;
    // One guess each so many seconds, at a single login or at hosts in turn.
    for (attacker, every, hosts, port) in [
        ("one guess a minute at one login, 24 hours", 60, 1, 23_u16),
        ("one guess each 75 s at one login, 24 hours", 75, 1, 23),
        ("one guess a minute at one SSH login, 24 hours", 60, 1, 22),
        ("a new host each 55 s, one login port, 24 hours", 55, 250, 445),
    ] {
        let mut gate = Gate::new();
        let tries: Vec<u64> = (0..DAY / every).map(|number| number * every).collect();
        let through: Vec<u64> = tries
            .iter()
            .enumerate()
            .filter(|(number, second)| gate.allows(u8::try_from(number % hosts).unwrap_or(0), port, **second))
            .map(|(_, second)| second * 1000)
            .collect();
        let (allowed, reason) = match (hosts, port) {
            (1, 22) => (Limits::DEFAULT.ssh_long, "spray_target"),
            (1, _) => (Limits::DEFAULT.target_long, "spray_target"),
            _ => (Limits::DEFAULT.login_targets, "spray_hosts"),
        };
        let allowed = usize::try_from(allowed)?;
        let most = through.iter().map(|begin| through.iter().filter(|at| (*begin..begin + 1_800_000).contains(at)).count()).max();
        // As many as are tried, where that is fewer than are allowed.
        let expected = allowed.min(usize::try_from(1800 / every)?);
        ensure!(most == Some(expected), "{attacker}: {most:?} within half an hour, {allowed} are allowed");
        record(Line {
            attacker: format!("{attacker}: {} tries", tries.len()),
            command: String::new(),
            stopped_by: if through.len() == tries.len() { "nothing".to_owned() } else { format!("{reason}, again and again") },
            counted: "connections in half an hour",
            allowed: Some(allowed),
            control: None,
            through: through.len(),
            guesses: None,
            note: "simulated clock".to_owned(),
        });
    }
    Ok(())
}

fn keep_alive_spray_at_a_gateway(world: &mut World) -> Result<()> {
    const TURNS: usize = 300;
    let daemon = shipped(world, "")?;
    let scope = json!({"kind": "accounts", "accounts": ["operator"], "maxAttempts": 1});
    let draft: Draft = opening(GATEWAY_WEST).parameter("credentialScope", scope);
    let receipt = Registered::new(daemon, &draft)?;
    let script = daemon.lab().directory().join("spray.py");
    let line = format!("{} -B {} {} {} 400", paths::python()?.display(), script.display(), GATEWAY_WEST.ip(), GATEWAY_WEST.port());
    let spray = |by: &By| -> Result<(Value, usize)> {
        let servers = daemon.lab().servers().from_now();
        let answer = by.run_words(daemon, &words(&line))?.success()?.json()?;
        let answered = usize::try_from(answer["answered"][0].as_u64().context("no number")?)?;
        wait::until_true("the gateway's journal", wait::SOON, || guesses(&servers, GATEWAY_WEST) >= answered)?;
        Ok((answer, guesses(&servers, GATEWAY_WEST)))
    };
    let (answer, control) = spray(&By::Nobody)?;
    ensure!(control == 400 && answer["errno"].is_null(), "control: {control} guesses, {answer}");
    let mark = daemon.events().mark();
    let (answer, through) = spray(&By::run(AGENT))?;
    ensure!(through == TURNS && answer["answered"] == json!([TURNS]) && !answer["errno"].is_null(), "{through} guesses, {answer}");
    let event = daemon.events().wait_since(mark, "its event", |event| event["reason"] == "turns_exhausted")?;
    ensure!(event["verdict"] == "block" && event["receipt"] == receipt.id && event["gateway"] == "vnode-west", "{event}");
    record(Line {
        attacker: "Python, keep-alive spray at a gateway that a receipt opens".to_owned(),
        command: shown(daemon, &words(&line)),
        stopped_by: "turns_exhausted".to_owned(),
        counted: "turns",
        allowed: Some(TURNS),
        control: Some(control),
        through,
        guesses: Some(through),
        note: String::new(),
    });
    Ok(())
}
