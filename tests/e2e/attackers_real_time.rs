//! The sprays that are slower than the short windows, in real time: half an hour, in runs that take their time alone. `attackers_logins` shows
//! the same numbers without the wait.

use std::time::Duration;

use anyhow::{Result, ensure};
use pp_tests::attackers::{Line, record};
use pp_tests::harness::{By, catch_up};
use pp_tests::policy::AGENT;

use crate::attackers::{ftp_guesses, shipped, shown, words};
use crate::attackers_logins::guess_words;
use crate::behaviour::arrivals;
use crate::world::{World, tests};

tests![slow_and_wide_sprays_stop_at_the_numbers_of_half_an_hour];

/// Longer than any of them takes.
const PATIENCE: Duration = Duration::from_secs(40 * 60);

fn slow_and_wide_sprays_stop_at_the_numbers_of_half_an_hour(world: &mut World) -> Result<()> {
    let daemon = shipped(world, "")?;
    catch_up(daemon.lab())?;
    let (servers, plant, mark) = (daemon.lab().servers().from_now(), daemon.lab().plant().from_now(), daemon.events().mark());
    // A session each, side by side. One guess a minute is more than the rule allows; one each 75 seconds is fewer.
    let start = |line: &[String]| By::run(AGENT).start_words(daemon, line);
    let minute = words(&guess_words(daemon, 30, 1, 60)?);
    let slower = words(&guess_words(daemon, 26, 1, 75)?);
    let script = "for host in $(seq 40); do (exec 3<>/dev/tcp/10.50.6.$host/445) 2>/dev/null; sleep 13; done";
    let wide = ["/bin/bash", "-c", script].map(str::to_owned);
    let (minutes, slowers, wides) = (start(&minute)?, start(&slower)?, start(&wide)?);
    let wide_done = wides.finish(PATIENCE)?;
    ensure!(wide_done.status.success(), "{wide_done}");
    let slower_answer = slowers.finish(PATIENCE)?.success()?.json()?;
    let minute_answer = minutes.finish(PATIENCE)?.success()?.json()?;
    catch_up(daemon.lab())?;

    let wide_through = arrivals(&plant).0.keys().filter(|(host, _, port)| host.starts_with("10.50.6.") && *port == 445).count();
    ensure!(wide_through == 32, "{wide_through} hosts were reached, 32 are allowed");
    ensure!(minute_answer["answered"] == 25 && minute_answer["first_refused"] == 25, "{minute_answer}");
    ensure!(slower_answer["answered"] == 26 && slower_answer["refused"] == 0, "{slower_answer}");
    let guesses = ftp_guesses(&servers);
    ensure!(guesses == 51, "{guesses} guesses arrived, of 25 and 26");
    for (reason, limit) in [("spray_target", 25), ("spray_hosts", 32)] {
        let event = daemon.events().wait_since(mark, "its event", |event| event["reason"] == reason && event["limit"].is_u64())?;
        ensure!(event["limit"] == limit && event["count"] == limit + 1 && event["window_s"] == 1800, "{event}");
    }

    let row = |attacker: &str, line: &[String], stopped_by: &str, counted, allowed, tries, through, guesses| {
        record(Line {
            attacker: format!("{attacker}: {tries} tries"),
            command: shown(daemon, line),
            stopped_by: stopped_by.to_owned(),
            counted,
            allowed: Some(allowed),
            control: None,
            through,
            guesses,
            note: "real time".to_owned(),
        });
    };
    row("Python asyncio, one guess a minute, FTP", &minute, "spray_target", "connections", 25, 30, 25, Some(25));
    row("Python asyncio, one guess each 75 s, FTP", &slower, "nothing", "connections", 25, 26, 26, Some(26));
    row("bash, a new host each 13 s, SMB", &wide, "spray_hosts", "hosts and ports", 32, 40, wide_through, None);
    Ok(())
}
