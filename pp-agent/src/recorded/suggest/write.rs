//! The proposal as TOML. Lines that begin with `# ` are comments. A `#` without a space disables a line; remove the `#` to enable it.
//! Values are written by the TOML library, text in comments is escaped.

use std::fmt::Write as _;

use serde::Serialize;

use super::{Ideas, Observed, Seen, is_web};
use crate::clock::rfc3339;
use crate::config::Mode;
use crate::escape::escape;
use crate::recorded::compare::Tally;
use crate::recorded::counted;
use crate::services::service_name;

/// Most destinations, agents or places that one comment names.
const MOST: usize = 8;
/// Longest name from an event that a comment repeats, in characters.
const LONGEST: usize = 64;

#[derive(Serialize)]
struct Zones {
    zone: [Zone; 1],
}

#[derive(Serialize)]
struct Zone {
    name: String,
    networks: Vec<String>,
}

#[derive(Serialize)]
struct Gateways {
    gateway: [Gateway; 1],
}

#[derive(Serialize)]
struct Gateway {
    name: String,
    address: String,
    ports: Vec<u16>,
}

#[derive(Serialize)]
struct Services {
    services: Exempt,
}

#[derive(Serialize)]
struct Behaviour {
    behaviour: Exempt,
}

#[derive(Serialize)]
struct Exempt {
    exempt: Vec<String>,
}

#[derive(Serialize)]
struct Delegates {
    delegate: [Delegate; 1],
}

#[derive(Serialize)]
struct Delegate {
    name: String,
    action: &'static str,
    path: [String; 1],
}

/// The text being put together.
struct Text(String);

impl Text {
    fn words(&mut self, words: &str) {
        self.0.push_str("# ");
        self.0.push_str(words);
        self.0.push('\n');
    }

    fn gap(&mut self) {
        self.0.push('\n');
    }

    fn table(&mut self, table: &impl Serialize) {
        self.0.push_str(&toml_of(table));
    }

    fn taken_out(&mut self, table: &impl Serialize) {
        for line in toml_of(table).lines() {
            self.0.push('#');
            // An indented line of a list would look like a comment.
            self.0.push_str(line.trim_start());
            self.0.push('\n');
        }
    }
}

fn toml_of(table: &impl Serialize) -> String {
    // Strings, numbers and lists of these always have a TOML form.
    toml::to_string_pretty(table).unwrap_or_else(|error| format!("# {}\n", escape(&error.to_string())))
}

/// The whole drop-in.
pub(super) fn drop_in(observed: &Observed<'_>, ideas: &Ideas) -> String {
    let mut text = Text(String::new());
    head(&mut text, observed, ideas);
    for idea in &ideas.zones {
        text.gap();
        evidence(&mut text, &idea.seen);
        text.table(&Zones { zone: [Zone { name: idea.name.clone(), networks: vec![idea.network.to_string()] }] });
    }
    for idea in &ideas.gateways {
        text.gap();
        text.words("A web interface of protected equipment: connections to it count as logins.");
        evidence(&mut text, &idea.seen);
        text.table(&Gateways {
            gateway: [Gateway { name: idea.name.clone(), address: idea.address.to_string(), ports: idea.ports.clone() }],
        });
    }
    let config = observed.draft.config();
    for gateway in &config.gateways {
        if let Some(seen) = observed.web.get(&gateway.address) {
            text.gap();
            text.words(&format!("Gateway {} does not name every web port that was seen at its address.", short(&gateway.name)));
            evidence(&mut text, seen);
        }
    }
    if !ideas.zones.is_empty() {
        text.gap();
        text.words("For what is no equipment: services do not count in these networks. Take its zone above out too, which comes first.");
        let exempt = ideas.zones.iter().map(|idea| idea.network.to_string()).collect();
        text.taken_out(&Services { services: Exempt { exempt } });
    }
    if !ideas.exempt.is_empty() {
        text.gap();
        text.words("For what agents may scan or log in to at will: the behaviour rules leave these networks and ports alone.");
        for idea in &ideas.exempt {
            text.words(&format!("{}:", idea.exemption));
            evidence(&mut text, &idea.seen);
        }
        let exempt = ideas.exempt.iter().map(|idea| idea.exemption.to_string()).collect();
        text.taken_out(&Behaviour { behaviour: Exempt { exempt } });
    }
    if !ideas.servers.is_empty() {
        text.gap();
        text.words("Servers of the user that no list names. Look what each does for its callers. Write \"refuse\" for what runs, opens or");
        text.words("changes something for them, and keep \"allow\" for what does not.");
    }
    for idea in &ideas.servers {
        evidence(&mut text, &idea.seen);
        text.taken_out(&Delegates { delegate: [Delegate { name: idea.name.clone(), action: "allow", path: [idea.path.clone()] }] });
    }
    text.0
}

fn head(text: &mut Text, observed: &Observed<'_>, ideas: &Ideas) {
    let hosts = names(observed.hosts.iter().map(String::as_str));
    match &observed.events {
        Some(tally) => text.words(&format!("From {}, on {hosts}.", tally_words(tally))),
        None => text.words("From no attempt at all."),
    }
    text.words("Zones and gateways protect more than before, and hold as they stand. What would open something is taken out:");
    text.words("lines with # and no space behind it.");
    text.words("Put this beside the policy as policy.d/50-suggested.toml; try it with pp-agent policy check --against EVENTS.");
    text.words("Receipts for a zone or gateway, those in force included, need an [[authority]] that names it.");
    let config = observed.draft.config();
    if config.mode == Mode::Enforce && config.services.mode == Mode::Observe {
        text.words("Services only observe on this host; the zones below refuse.");
    }
    for (place, seen) in observed.covered.iter().take(MOST) {
        text.words(&format!("Protected already, {}: {}.", short(place), tally_words(&seen.tally)));
    }
    more(text, observed.covered.len(), "places");
    if observed.unused > 0 {
        text.words(&format!(
            "Nothing is proposed from {} events: tools, servers of the host, kinds of sockets, pings, loopback.",
            observed.unused
        ));
    }
    if observed.missing > 0 {
        text.words(&format!("{} events are missing.", observed.missing));
    }
    if ideas.is_empty() {
        text.words("Nothing to propose.");
    }
}

/// The evidence for a proposal, as comments.
fn evidence(text: &mut Text, seen: &Seen) {
    text.words(&format!("{}, by {}", tally_words(&seen.tally), names(seen.agents.iter().map(String::as_str))));
    for to in seen.to.iter().take(MOST) {
        let service = to.port.and_then(|port| service_name(to.transport, port));
        let words = match service {
            Some(service) => service,
            None if is_web(*to) => "web",
            None => "",
        };
        text.words(format!("  {to} {words}").trim_end());
    }
    more(text, seen.to.len(), "destinations");
}

fn more(text: &mut Text, count: usize, what: &str) {
    if count > MOST {
        text.words(&format!("  and {} {what} more", count - MOST));
    }
}

fn tally_words(tally: &Tally) -> String {
    let (first, last) = (rfc3339(tally.first_ms), rfc3339(tally.last_ms));
    let when = if first == last { first } else { format!("{first} to {last}") };
    format!("{} in {}, {when}", counted(tally.attempts, "attempt"), counted(tally.events, "event"))
}

/// Names from events, in one line.
fn names<'a>(all: impl Iterator<Item = &'a str>) -> String {
    let all: Vec<&str> = all.collect();
    let mut words = all.iter().take(MOST).map(|name| short(name)).collect::<Vec<_>>().join(", ");
    if all.is_empty() {
        words.push_str("nobody named");
    }
    if all.len() > MOST {
        // Writing to a string cannot fail.
        let _written = write!(words, " and {} more", all.len() - MOST);
    }
    words
}

/// A name from an event, escaped so that it cannot end the comment or move a terminal's cursor.
fn short(name: &str) -> String {
    let cut: String = name.chars().take(LONGEST).collect();
    let mark = if cut.len() < name.len() { "..." } else { "" };
    format!("{}{mark}", escape(&cut))
}
