//! Policy adds to what is shipped. What takes something away is written and named, and so is whatever lies beside the drop-ins unread.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use pp_tests::agent::Daemon;
use pp_tests::attack::{self, Answer};
use pp_tests::harness::{By, Refusal};
use pp_tests::lab::{Lab, PLC, PLC_OTHER_PORT, Place, STRAY_MODBUS, fresh_target};
use pp_tests::policy::{AGENT, Policy};
use pp_tests::run::Running;
use serde_json::Value;

use crate::identity::Cgroup;
use crate::receipts::opening;
use crate::world::{World, tests};

tests![
    table_of_a_shipped_agent_adds_a_unit_and_takes_nothing_away,
    services_of_a_drop_in_add_and_what_is_disabled_is_named,
    whatever_is_not_read_is_named,
    drop_in_that_is_no_file_refuses_the_policy_and_holds_nobody_up,
    policy_that_is_gone_is_an_error_and_the_last_one_stays,
    agents_that_policy_does_not_know_are_told_with_the_nearest_name,
];

/// An MQTT broker outside every zone.
const BROKER: SocketAddr = SocketAddr::new(STRAY_MODBUS.ip(), 1883);

/// Puts this text beside the policy and has the daemon take it; returns what the reload printed.
fn beside(daemon: &Daemon, name: &str, text: &str) -> Result<String> {
    fs::create_dir_all(daemon.path("policy.d"))?;
    let path = daemon.path("policy.d").join(name);
    fs::write(&path, text)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640))?;
    Ok(daemon.cli(&["policy", "reload"])?.success()?.both())
}

/// What `status` says is off, and that it is healthy all the same.
fn off(daemon: &Daemon) -> Result<Vec<String>> {
    let status: Value = daemon.cli(&["status", "--json"])?.success()?.json()?;
    let off = status["off"].as_array().context("status has no list `off`")?;
    Ok(off.iter().filter_map(|off| off["text"].as_str()).map(str::to_owned).collect())
}

/// What `policy reload`, `policy check`, `status` and the log each say, for people.
fn said_everywhere(daemon: &Daemon, reloaded: &str) -> Result<Vec<(&'static str, String)>> {
    let file = daemon.path("policy.toml").display().to_string();
    let checked = daemon.cli(&["policy", "check", &file])?.success()?.both();
    let status = daemon.cli(&["status"])?.success()?.both();
    Ok(vec![("reload", reloaded.to_owned()), ("check", checked), ("status", status), ("log", daemon.log())])
}

fn all_say(said: &[(&'static str, String)], words: &str) -> Result<()> {
    for (who, text) in said {
        ensure!(text.contains(words), "{who} does not say `{words}`:\n{text}");
    }
    Ok(())
}

fn table_of_a_shipped_agent_adds_a_unit_and_takes_nothing_away(world: &mut World) -> Result<()> {
    let me = std::process::id();
    let (unit, other) = (Cgroup::new(&format!("pplab-{me}-bg.service"))?, Cgroup::new(&format!("pplab-{me}-others"))?);
    let daemon = world.own(&Policy::standard(world.lab()).with_shipped_agents())?;
    let named = |name: &str| -> Result<By> {
        let path = daemon.path(name);
        fs::copy(daemon.lab().program("lab-shim"), &path)?;
        Ok(By::Words(vec![path.display().to_string()]))
    };
    let (claude, nobody) = (named("claude")?, named("nobody")?);
    let governed = |by: &By, control: &By| -> Result<()> {
        let event = Refusal::of(attack::tcp(daemon.lab(), PLC), by.clone()).with_control(control.clone()).assert(&daemon)?;
        ensure!(event["agent"] == AGENT, "{event}");
        Ok(())
    };
    let arrives = |by: &By| -> Result<()> {
        let answer = by.attempt(&daemon, &attack::tcp(daemon.lab(), PLC))?;
        ensure!(answer == Answer::Delivered, "{by:?}: {answer:?}");
        Ok(())
    };
    governed(&claude, &nobody).context("as shipped")?;
    arrives(&unit.by(&daemon)).context("control: the unit before it is named")?;
    let table = format!("[[agent]]\nname = \"{AGENT}\"\nunit = [\"pplab-{me}-bg.service\"]\n");
    let reloaded = beside(&daemon, "30-claude.toml", &table)?;
    governed(&claude, &nobody).context("the shipped rules, with a unit more")?;
    governed(&unit.by(&daemon), &other.by(&daemon)).context("the unit")?;
    ensure!(!off(&daemon)?.iter().any(|off| off.contains(AGENT)) && reloaded.contains("add to what is shipped"), "{reloaded}");

    let reloaded = beside(&daemon, "30-claude.toml", &format!("{table}replace = true\n"))?;
    all_say(&said_everywhere(&daemon, &reloaded)?, "agent claude-code: none of its shipped rules holds")?;
    arrives(&claude).context("replaced")?;
    governed(&unit.by(&daemon), &other.by(&daemon)).context("the unit alone")?;
    drop(daemon);
    Ok(())
}

/// A server that answers at the broker's address.
fn broker(lab: &Lab) -> Result<Running> {
    let words = [
        lab.program("pp-workload").display().to_string(),
        "sink".into(),
        "--log".into(),
        lab.directory().join("servers.jsonl").display().to_string(),
        format!("tcp:{BROKER}"),
    ];
    let mut running = Running::start(&mut lab.command(Place::Plant, &words))?;
    let _ready = running.line_within("ready", pp_tests::wait::SOON)?;
    Ok(running)
}

fn services_of_a_drop_in_add_and_what_is_disabled_is_named(world: &mut World) -> Result<()> {
    let daemon = world.own(&Policy::shipped(world.lab()))?;
    let _broker = broker(daemon.lab())?;
    let refused = |target: SocketAddr, service: &str| -> Result<()> {
        let refusal = Refusal::of(attack::tcp(daemon.lab(), target), By::run(AGENT)).with_control(By::Nobody);
        let event = refusal.assert(&daemon).with_context(|| service.to_owned())?;
        ensure!(event["service"] == service, "{event}");
        Ok(())
    };
    let arrives = |target: SocketAddr| -> Result<()> {
        let answer = By::run(AGENT).attempt(&daemon, &attack::tcp(daemon.lab(), target))?;
        ensure!(answer == Answer::Delivered, "{target}: {answer:?}");
        Ok(())
    };
    arrives(BROKER).context("control: mqtt is not protected as shipped")?;
    let _reloaded = beside(&daemon, "40-mqtt.toml", "[services]\nenable = [\"mqtt\"]\n")?;
    refused(BROKER, "mqtt")?;
    refused(STRAY_MODBUS, "modbus")?;
    let _reloaded = beside(&daemon, "40-mqtt.toml", "[services]\nenable = []\n")?;
    refused(STRAY_MODBUS, "modbus").context("an empty list")?;
    ensure!(!off(&daemon)?.iter().any(|off| off.starts_with("services ")), "nothing was taken away: {:?}", off(&daemon)?);

    let reloaded = beside(&daemon, "40-mqtt.toml", "[services]\nenable = [\"mqtt\"]\ndisable = [\"modbus\"]\n")?;
    all_say(&said_everywhere(&daemon, &reloaded)?, "services modbus: not protected outside zones")?;
    ensure!(off(&daemon)?.contains(&"services modbus: not protected outside zones ([services])".to_owned()), "{:?}", off(&daemon)?);
    arrives(STRAY_MODBUS).context("disabled")?;
    refused(BROKER, "mqtt")?;
    let reloaded = beside(&daemon, "40-mqtt.toml", "[services]\nenable = [\"mqtt\"]\nreplace = true\n")?;
    all_say(&said_everywhere(&daemon, &reloaded)?, "services modbus, modbus-security, s7comm, ")?;
    Ok(())
}

fn whatever_is_not_read_is_named(world: &mut World) -> Result<()> {
    let mut daemon = world.own(&Policy::standard(world.lab()))?;
    let folder = daemon.path("policy.d");
    fs::create_dir_all(folder.join("site"))?;
    let unread = [
        ("20-plant.conf", "only *.toml is; rename it if it is meant"),
        ("21-plant.TOML", "only *.toml in small letters is; rename it if it is meant"),
        ("22-plant.yaml", "only *.toml is; rename it if it is meant"),
        ("23-plant.toml.j2", "only *.toml is; rename it if it is meant"),
        (".#24-plant.toml", "hidden names are skipped"),
        ("._24-plant.toml", "hidden names are skipped"),
        (".ansible_tmpabc24-plant.toml", "hidden names are skipped"),
        ("24-plant.toml~", "it is an editor's backup"),
    ];
    for (name, _) in unread {
        fs::write(folder.join(name), "this is no policy")?;
    }
    // What is read lies between them.
    let reloaded = beside(&daemon, "25-plant.toml", "[[zone]]\nname = \"stray\"\nnetworks = [\"10.40.0.5/32\"]\n")?;
    let said = said_everywhere(&daemon, &reloaded)?;
    for (name, why) in unread.into_iter().chain([("site", "folders are not searched; put its *.toml files beside it")]) {
        all_say(&said, &format!("policy.d/{name}: not read, {why}"))?;
    }
    let status: Value = daemon.cli(&["status", "--json"])?.success()?.json()?;
    ensure!(status["not_read"].as_array().is_some_and(|list| list.len() == unread.len() + 1), "{status}");
    let event = Refusal::of(attack::tcp(daemon.lab(), STRAY_MODBUS), By::run(AGENT)).with_control(By::Nobody).assert(&daemon)?;
    ensure!(event["zone"] == "stray", "{event}");
    // And at a start.
    let before = daemon.log().matches("20-plant.conf: not read").count();
    daemon.stop()?;
    daemon.spawn()?;
    ensure!(daemon.log().matches("20-plant.conf: not read").count() > before, "{}", daemon.log());
    Ok(())
}

fn drop_in_that_is_no_file_refuses_the_policy_and_holds_nobody_up(world: &mut World) -> Result<()> {
    let daemon = world.own(&Policy::standard(world.lab()))?;
    let path = daemon.path("policy.d").join("50-plant.toml");
    fs::create_dir_all(daemon.path("policy.d"))?;
    type Make = fn(&std::path::Path) -> Result<()>;
    let cases: [(&str, Make, &str); 4] = [
        ("a pipe", |path| Ok(nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRUSR)?), "is not a regular file"),
        ("a folder", |path| Ok(fs::create_dir(path)?), "is not a regular file"),
        ("a link to nothing", |path| Ok(std::os::unix::fs::symlink("gone", path)?), "No such file"),
        ("a huge file", |path| Ok(fs::File::create(path)?.set_len(1 << 40)?), "1099511627776 bytes"),
    ];
    for (what, make, said) in cases {
        make(&path)?;
        let begun = Instant::now();
        for words in [vec!["policy", "reload"], vec!["policy", "check", &daemon.path("policy.toml").display().to_string()]] {
            let refused = daemon.cli(&words)?;
            ensure!(refused.code() == 2 && refused.both().contains("50-plant.toml"), "{what}: {refused}");
            ensure!(refused.both().contains(said), "{what}: {refused}");
        }
        ensure!(begun.elapsed() < pp_tests::wait::SOON, "{what}: {:?}", begun.elapsed());
        let answer = By::run(AGENT).attempt(&daemon, &attack::tcp(daemon.lab(), PLC))?;
        ensure!(answer == Answer::Refused(nix::libc::EPERM), "{what}: the old policy is not in force: {answer:?}");
        if path.is_dir() { fs::remove_dir(&path)? } else { fs::remove_file(&path)? }
    }
    Ok(())
}

fn policy_that_is_gone_is_an_error_and_the_last_one_stays(world: &mut World) -> Result<()> {
    const SAID: &str = "no such file, but the last policy was read from it";
    let mut daemon = world.own(&Policy::standard(world.lab()))?;
    let (path, away) = (daemon.path("policy.toml"), daemon.path("away.toml"));
    // No service has this port: the zone alone protects it.
    let zone_is_protected = |daemon: &Daemon| -> Result<()> {
        let refusal = Refusal::of(attack::tcp(daemon.lab(), PLC_OTHER_PORT), By::run(AGENT)).with_control(By::Nobody);
        refusal.assert(daemon).map(drop)
    };
    fs::rename(&path, &away)?;
    let reloaded = daemon.cli(&["policy", "reload"])?;
    ensure!(reloaded.code() == 2 && reloaded.both().contains(SAID), "{reloaded}");
    zone_is_protected(&daemon)?;
    // A start finds out, too, and says so until it is put back.
    daemon.stop()?;
    daemon.spawn()?;
    zone_is_protected(&daemon)?;
    let status = daemon.cli(&["status"])?;
    ensure!(status.code() == 2 && status.both().contains(SAID), "{status}");
    fs::rename(&away, &path)?;
    let _reloaded = daemon.cli(&["policy", "reload"])?.success()?;
    let _healthy = daemon.cli(&["status"])?.success()?;
    zone_is_protected(&daemon)?;
    // An empty file says that its zones are to end.
    fs::write(&path, "")?;
    let _reloaded = daemon.cli(&["policy", "reload"])?.success()?;
    let answer = By::run(AGENT).attempt(&daemon, &attack::tcp(daemon.lab(), PLC_OTHER_PORT))?;
    ensure!(answer == Answer::Delivered, "{answer:?}");
    Ok(())
}

fn agents_that_policy_does_not_know_are_told_with_the_nearest_name(world: &mut World) -> Result<()> {
    let daemon = world.daemon()?;
    let words = "agent claude_code: no agent of the policy has this name; did you mean claude-code?";
    let known = daemon.register(&opening(fresh_target()).sign(daemon.operator()))?;
    ensure!(known["warnings"].is_null(), "control: {known}");
    let artifact = opening(fresh_target()).agent("claude_code").sign(daemon.operator());
    let file = daemon.path("misspelt.json");
    fs::write(&file, artifact.to_string())?;
    let (file, keys) = (file.display().to_string(), daemon.path("keys.json").display().to_string());
    for command in [
        vec!["receipt", "verify", &file, "--keys", &keys],
        vec!["receipt", "inspect", &file, "--keys", &keys],
        vec!["receipt", "register", &file],
        vec!["run", "--agent", "claude_code", "--", "/bin/true"],
    ] {
        let output = daemon.cli(&command)?.success()?;
        ensure!(output.stderr.contains(words), "{}: {output}", command.join(" "));
    }
    for receipt in [known["id"].as_str().unwrap_or_default().to_owned(), pp_tests::forge::id(&artifact)] {
        let _revoked = daemon.cli(&["receipt", "revoke", &receipt])?.success()?;
    }
    Ok(())
}
