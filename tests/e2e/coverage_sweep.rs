//! Every technique of the coverage table at once: one run by nobody, one by an agent, each technique at an address of its own.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use pp_tests::agent::Daemon;
use pp_tests::attack::{self, Answer};
use pp_tests::coverage::{At, How, Line, TABLE};
use pp_tests::harness::{self, By, is_block, is_verdict};
use pp_tests::lab::{FRESH_PORT, FRESH_PORT_V6, Journal, Lab, PLC, Place, STRAY_PORT};
use pp_tests::policy::{AGENT, Policy};
use pp_tests::run::Running;
use pp_tests::wait;
use serde_json::Value;

use crate::coverage::{Outcome, answers};
use crate::world::World;

/// Where the router is, by its hardware address.
const ROUTER_LINK: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0xff, 0xfe00, 0x6301);
/// Ports of the servers at addresses that rows cannot have for themselves, from here on.
const OWN_PORTS: u16 = 7_200;
/// How long something that may not come at all is waited for.
const LATE: Duration = Duration::from_secs(15);

/// One technique at its address.
struct Cell {
    line: &'static Line,
    name: &'static str,
    at: At,
    dialled: String,
    target: SocketAddr,
}

/// What all of them came to.
pub(crate) struct Sweep(Vec<(&'static Line, Outcome)>);

/// The workload's answer.
pub(crate) fn read(answer: &Value) -> Option<Answer> {
    if answer["ok"] == true {
        return Some(Answer::Delivered);
    }
    answer["errno"].as_i64().and_then(|errno| i32::try_from(errno).ok()).map(Answer::Refused)
}

fn cells() -> Vec<Cell> {
    let tried = TABLE.iter().filter_map(|line| if let How::Try(name, at) = line.how { Some((line, name, at)) } else { None });
    (1_u16..).zip(tried).map(|(number, (line, name, at))| cell(number, line, name, at)).collect()
}

fn cell(number: u16, line: &'static Line, name: &'static str, at: At) -> Cell {
    let [high, low] = number.to_be_bytes();
    let zone = Ipv4Addr::new(10, 20, 120 + high, low);
    let stray = Ipv4Addr::new(10, 40, 1, low);
    let mapped = |v4: Ipv4Addr, port| SocketAddr::new(v4.to_ipv6_mapped().into(), port).to_string();
    let own = OWN_PORTS + number;
    let plain = |ip: IpAddr, port| {
        let target = SocketAddr::new(ip, port);
        (target.to_string(), target)
    };
    let (dialled, target) = match at {
        At::V4 => plain(zone.into(), FRESH_PORT),
        At::V6 => plain(Ipv6Addr::new(0xfd00, 0x20, 0, 1, 0, 0, 0, number).into(), FRESH_PORT_V6),
        At::Mapped => (mapped(zone, FRESH_PORT), SocketAddr::new(zone.into(), FRESH_PORT)),
        At::Service => plain(stray.into(), STRAY_PORT),
        At::ServiceMapped => (mapped(stray, STRAY_PORT), SocketAddr::new(stray.into(), STRAY_PORT)),
        At::Local(host) => (format!("{host}:{own}"), SocketAddr::new(Ipv4Addr::LOCALHOST.into(), own)),
        At::Link => plain(ROUTER_LINK.into(), own),
        At::Broadcast => plain(Ipv4Addr::new(10, 20, 255, 255).into(), FRESH_PORT),
        At::Nowhere => plain(Ipv4Addr::LOCALHOST.into(), 1),
    };
    Cell { line, name, at, dialled, target }
}

impl Cell {
    /// Its line in the workload's list.
    fn words(&self) -> String {
        format!("{} {}", self.name, self.dialled)
    }

    fn is_at_own_port(&self) -> bool {
        matches!(self.at, At::Local(_) | At::Link)
    }

    /// The event of its refusal: of its destination, or of the kind of socket or packet.
    fn is_event(&self, event: &Value) -> bool {
        if self.is_at_own_port() {
            return is_verdict(event, "block") && event["destination"]["port"] == self.target.port();
        }
        is_block(event, self.target) && event["reason"] == "no_receipt"
            || is_verdict(event, "block") && event.get("destination").is_none() && event["reason"] == self.line.reason
    }
}

/// What one run of all cells left.
struct Run {
    answers: Vec<Option<Answer>>,
    arrived: Vec<bool>,
}

/// The servers of this sweep alone, and everything's logs.
struct Far {
    _servers: Vec<Running>,
    own: [Journal; 2],
    plant: Journal,
}

impl Far {
    fn start(daemon: &Daemon, cells: &[Cell]) -> Result<Self> {
        let lab = daemon.lab();
        let mut servers = Vec::new();
        let mut logs = Vec::new();
        for (place, link) in [(Place::Engineering, false), (Place::Router, true)] {
            let log = daemon.path(if link { "link.jsonl" } else { "local.jsonl" });
            let mut words = vec!["sink".to_owned(), "--log".to_owned(), log.display().to_string()];
            for cell in cells.iter().filter(|cell| cell.is_at_own_port() && (cell.at == At::Link) == link) {
                let kind = if cell.name.starts_with("udp") { "udp" } else { "tcp" };
                words.push(format!("{kind}:[::]:{}", cell.target.port()));
            }
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let mut server = Running::start(&mut lab.command(place, &attack::workload(lab, &words, PLC).words))?;
            let _ready = server.line_with("ready")?;
            servers.push(server);
            logs.push(Journal::new(log));
        }
        let logs: [Journal; 2] = logs.try_into().ok().context("two logs")?;
        Ok(Self { _servers: servers, own: logs, plant: lab.plant().from_now() })
    }

    /// How often something arrived at each cell's own address since the last look.
    fn arrived(&self, cells: &[Cell], answers: &[Option<Answer>]) -> Vec<bool> {
        let packets: BTreeSet<String> =
            self.plant.lines().iter().filter_map(|line| line["destination"].as_str().map(str::to_owned)).collect();
        let ports: BTreeSet<u16> = self.own.iter().flat_map(Journal::lines).filter_map(|line| own_port(&line)).collect();
        let arrived = |cell: &Cell, answer: Option<Answer>| match cell.at {
            At::Local(_) | At::Link => ports.contains(&cell.target.port()),
            At::Nowhere => answer == Some(Answer::Delivered),
            _ => packets.contains(&cell.target.ip().to_string()),
        };
        cells.iter().zip(answers).map(|(cell, answer)| arrived(cell, *answer)).collect()
    }

    fn look_from_now(&mut self, lab: &Lab) -> Result<()> {
        harness::catch_up(lab)?;
        self.plant = lab.plant().from_now();
        self.own = self.own.each_ref().map(Journal::from_now);
        Ok(())
    }
}

fn own_port(line: &Value) -> Option<u16> {
    if line["event"] == "closed" {
        return None;
    }
    line["local"].as_str()?.parse::<SocketAddr>().ok().map(|local| local.port())
}

impl Sweep {
    /// The sweep of this run; made when it is first asked for.
    pub(crate) fn of(world: &mut World) -> Result<Arc<Self>> {
        if world.sweep.is_none() {
            world.sweep = Some(Arc::new(Self::make(world)?));
        }
        world.sweep.clone().context("no sweep")
    }

    /// What one row came to.
    pub(crate) fn outcome(&self, line: &'static Line) -> Result<Outcome> {
        let found = self.0.iter().find(|(swept, _)| swept.test() == line.test()).context("the row was not tried")?;
        Ok(found.1.clone())
    }

    fn make(world: &mut World) -> Result<Self> {
        let standard = Policy::standard(world.lab());
        let policy = standard
            .clone()
            .with("[[zone]]\nname = \"this-host\"\nnetworks = [\"127.0.0.0/8\", \"::1/128\"]\n")
            .with("[[zone]]\nname = \"this-link\"\nnetworks = [\"fe80::/10\"]\n");
        let daemon = world.daemon()?;
        daemon.reload(&policy)?;
        let swept = Self::with_policy(daemon);
        daemon.reload(&standard)?;
        swept
    }

    fn with_policy(daemon: &Daemon) -> Result<Self> {
        let lab = daemon.lab();
        let cells = cells();
        let list = daemon.path("techniques");
        let text: Vec<String> = cells.iter().map(Cell::words).collect();
        fs::write(&list, text.join("\n"))?;
        let batch = attack::workload(lab, &["batch", &list.display().to_string()], PLC);
        let mut far = Far::start(daemon, &cells)?;
        let run = |far: &mut Far, by: &By| -> Result<Run> {
            far.look_from_now(lab)?;
            let output = by.run_words(daemon, &batch.words)?.success()?;
            harness::catch_up(lab)?;
            let answers = answers(&output.stdout, cells.len());
            // What a program was told has gone out may take its time; what was refused has none.
            let all = |far: &Far| {
                let arrived = far.arrived(&cells, &answers);
                answers.iter().zip(&arrived).all(|(answer, arrived)| *answer != Some(Answer::Delivered) || *arrived)
            };
            if matches!(by, By::Nobody) {
                let _late = wait::until_true("everything that was sent", LATE, || all(far));
            }
            let arrived = far.arrived(&cells, &answers);
            Ok(Run { answers, arrived })
        };
        let control = run(&mut far, &By::Nobody)?;
        let mark = daemon.events().mark();
        let agent = run(&mut far, &By::run(AGENT))?;
        let is_told = |cell: &Cell| daemon.events().since(mark).iter().any(|event| cell.is_event(event));
        let expected = || cells.iter().enumerate().filter(|(index, _)| control.arrived[*index] && !agent.arrived[*index]);
        let _late = wait::until_true("every refusal's event", LATE, || expected().all(|(_, cell)| is_told(cell)));
        // Servers of this host take connections in order: behind one more of nobody's, a late one would have been seen.
        let before: Vec<usize> = far.own.iter().map(|journal| journal.lines().len()).collect();
        let own = daemon.path("own-techniques");
        let text: Vec<String> = cells.iter().filter(|cell| cell.is_at_own_port()).map(Cell::words).collect();
        fs::write(&own, text.join("\n"))?;
        let again = attack::workload(lab, &["batch", &own.display().to_string()], PLC);
        let _again = By::Nobody.run_words(daemon, &again.words)?.success()?;
        wait::until_true("nobody's connections after the agent's", LATE, || {
            far.own.iter().zip(&before).all(|(journal, before)| journal.lines().len() > *before)
        })?;
        let late: Vec<u16> = far.own.iter().zip(&before).flat_map(|(journal, before)| early(journal, *before)).collect();
        let outcomes = cells.iter().enumerate().map(|(index, cell)| {
            let late = cell.is_at_own_port() && late.contains(&cell.target.port());
            let outcome = Outcome {
                control_arrived: control.arrived[index],
                answer: agent.answers[index],
                arrived: agent.arrived[index] || late,
                told: is_told(cell),
            };
            (cell.line, outcome)
        });
        Ok(Self(outcomes.collect()))
    }
}

/// The ports at which something had arrived among the first lines.
fn early(journal: &Journal, count: usize) -> Vec<u16> {
    journal.lines().iter().take(count).filter_map(own_port).collect()
}
