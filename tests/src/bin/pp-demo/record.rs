//! What two terminals show when an agent is refused and a person approves, for `cargo xtask picture`.
//!
//! The commands are run as they are shown, but for `--socket` and the lab's folder, which stand before and in their words: the lab's daemon has a
//! socket of its own. So the CLI's note about such a socket is left out of what was printed. Nothing else is.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use pp_tests::agent::Daemon;
use pp_tests::harness::By;
use pp_tests::lab::PLC;
use pp_tests::policy::AGENT;
use serde_json::{Value, json};

/// What separates the outputs of one script.
const END: char = '\u{1}';
const SUMMARY: &str = "read tank levels";

/// A terminal: commands and their answers.
struct Terminal<'a> {
    daemon: &'a Daemon,
    commands: Vec<Value>,
}

impl Terminal<'_> {
    fn show(&mut self, prompt: &str, typed: &str, printed: &str) {
        let socket = self.daemon.path("control.sock").display().to_string();
        let lines: Vec<&str> = printed.lines().filter(|line| !line.contains(&socket)).collect();
        let folder = self.daemon.path("").display().to_string();
        let printed = lines.join("\n").replace(&folder, "");
        self.commands.push(json!({"prompt": prompt, "typed": typed, "printed": printed}));
    }

    fn picture(self, name: &str) -> Value {
        json!({"name": name, "commands": self.commands})
    }
}

/// Both pictures.
pub(crate) fn pictures(daemon: &Daemon, key: &std::path::Path) -> Result<Vec<Value>> {
    let mut refusal = Terminal { daemon, commands: Vec::new() };
    let read = format!("mbpoll -1 -q -t 4 -r 1 -c 4 {}", PLC.ip());
    let pp_agent = daemon.cli_words(&[]).join(" ");
    let request = daemon.path("request.json").display().to_string();
    // One session: what `why` and `receipt request` know of is what was refused to this session.
    let script = format!(
        "{read} 2>&1; printf '{END}'; {pp_agent} why 2>&1; printf '{END}'; \
         id=$({pp_agent} why 2>/dev/null | grep -oE 'from-event [0-9]+' | tail -n 1 | cut -d ' ' -f 2); \
         {pp_agent} receipt request --from-event \"$id\" --for 30m --summary '{SUMMARY}' 2>&1 > {request}; printf \"{END}$id\""
    );
    let output = By::run(AGENT).run_words(daemon, &["/bin/bash".into(), "-c".into(), script])?;
    let parts: Vec<&str> = output.stdout.split(END).collect();
    let [refused, why, requested, event] = parts.as_slice() else {
        anyhow::bail!("the agent's script did not go to its end: {output}");
    };
    ensure!(refused.contains("not permitted"), "the agent was not refused: {output}");
    refusal.show("agent", &read, refused);
    refusal.show("agent", "pp-agent why", why);
    let asked = format!("pp-agent receipt request --from-event {event} --for 30m --summary '{SUMMARY}' > request.json");
    refusal.show("agent", &asked, requested);

    let mut approval = Terminal { daemon, commands: Vec::new() };
    let receipt = daemon.path("receipt.json").display().to_string();
    let signed = daemon.cli(&["receipt", "sign", &request, "--key", &key.display().to_string(), "--yes"])?.success()?;
    fs::write(&receipt, &signed.stdout)?;
    approval.show("operator", "pp-agent receipt sign request.json --key operator.pem --yes > receipt.json", &signed.stderr);
    let registered = daemon.cli(&["receipt", "register", &receipt])?.success()?;
    approval.show("operator", "pp-agent receipt register receipt.json", &registered.both());
    let words = ["/bin/bash".into(), "-c".into(), format!("{read} 2>&1")];
    let allowed = By::run(AGENT).run_words(daemon, &words)?;
    ensure!(allowed.stdout.contains("412"), "the agent did not read the tank levels: {allowed}");
    approval.show("agent", &read, &allowed.stdout);
    let artifact: Value = serde_json::from_str(&fs::read_to_string(&receipt)?).context("receipt.json")?;
    let _revoked = daemon.cli(&["receipt", "revoke", &pp_tests::forge::id(&artifact)])?.success()?;
    Ok(vec![refusal.picture("refusal"), approval.picture("approval")])
}
