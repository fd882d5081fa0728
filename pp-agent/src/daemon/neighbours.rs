//! Watches the neighbours of this host and of its sessions. What is learned goes to the kernel, to receipts and to events.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use pp_common::abi::{LEARNED_BROADCAST, Learned, LinkKey, NearKey, Place};
use pp_common::decide::{Attempt, Decision, Link, Reason, Subject, is_for_all};

use super::in_force::InForce;
use super::neighbour_words::{publish, report, scoped, sentence, words};
use super::writer::Writer;
use super::{Daemon, load};
use crate::api::{Forgotten, LinkView, NeighbourList, NeighbourView, UnnamedNetwork};
use crate::clock::Now;
use crate::control::ApiError;
use crate::events::NeighbourChange;
use crate::neighbours::{Book, Known, Protected, Resolver, Snapshot, Watched, addr, resolvers, unanswered};
use crate::net::{Mac, Prefix};
use crate::os::netns::Namespace;
use crate::policy::LearnedPlaces;

/// Most network namespaces that are watched.
const MAX_NAMESPACES: usize = 64;
/// How often to look for namespaces.
const LOOK: Duration = Duration::from_secs(1);
/// How often to read a namespace that sent no event.
const RESYNC: Duration = Duration::from_secs(10);
/// How often to check what was learned although nothing changed, since it may have expired.
const RENEW: Duration = Duration::from_secs(60);
/// How often to ask a link for a protected address that does not answer, and for how many in that time.
const ASK_EVERY: Duration = Duration::from_secs(60);
const MOST_ASKED: usize = 64;
/// How long to remember when an address was asked for, so that others are asked for first.
const REMEMBER_ASKED: Duration = Duration::from_secs(3_600);
/// How long to wait after an event before reading, since neighbours come in bursts.
const GATHER: Duration = Duration::from_millis(100);

/// What was learned, and the state of the watch.
#[derive(Default)]
pub(super) struct Neighbours {
    state: Mutex<State>,
}

/// The entries of `LINKS` and of `LEARNED`.
type Applied = (BTreeMap<LinkKey, Place>, Vec<(NearKey, Learned)>);

#[derive(Default)]
struct State {
    book: Book,
    snapshots: Vec<Snapshot>,
    /// What policy protects, made from `basis`: the generation of the policy and the name servers.
    protected: Protected,
    basis: Option<(u32, Vec<Resolver>)>,
    updated: Option<Instant>,
    /// What the maps hold.
    applied: Option<Applied>,
    problems: Vec<String>,
}

impl Neighbours {
    /// Starts with what the maps hold.
    pub(super) fn restore(links: Vec<(LinkKey, Place)>, learned: Vec<(NearKey, Learned)>) -> Self {
        let state = State { book: Book::restore(links, learned), ..State::default() };
        Self { state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Problems that keep neighbours from being watched.
    pub(super) fn problems(&self) -> Vec<String> {
        self.state().problems.clone()
    }

    /// The learned places, which receipts are checked against in addition to policy.
    pub(super) fn learned_places(&self) -> LearnedPlaces {
        let state = self.state();
        let learned = state.book.known().map(|known| (known.key, known.learned.place));
        let learned = learned.chain(state.book.broadcasts()).map(|(key, place)| (key.addr, place)).collect();
        LearnedPlaces::new(learned, state.book.carrying().map(|(_, _, place)| place).collect())
    }
}

/// Network namespace, interface, address.
type Asked = (u32, u32, IpAddr);

/// The namespaces that are watched.
pub(super) struct Watcher {
    watched: Vec<Watched>,
    /// Namespaces that do not belong to this host.
    foreign: BTreeSet<u32>,
    own: u32,
    looked: Instant,
    read: Instant,
    too_many: bool,
    /// When each protected address was last asked for.
    asked: BTreeMap<Asked, Instant>,
}

impl Watcher {
    /// Reads this host's own neighbours and those of its sessions for the first time.
    pub(super) fn begin(daemon: &Daemon) -> Self {
        let now = Instant::now();
        let mut watcher =
            Self { watched: Vec::new(), foreign: BTreeSet::new(), own: 0, looked: now, read: now, too_many: false, asked: BTreeMap::new() };
        match Namespace::own().and_then(Watched::open) {
            Ok(own) => {
                watcher.own = own.namespace.number();
                watcher.watched.push(own);
            }
            Err(error) => tracing::error!("neighbours: this host's network cannot be watched: {error}"),
        }
        watcher.look(daemon);
        watcher.pass(daemon, &|_| true);
        watcher
    }

    /// Runs until the daemon ends.
    pub(super) fn run(mut self, daemon: &Weak<Daemon>) {
        loop {
            let ready = self.wait();
            let Some(daemon) = daemon.upgrade() else { return };
            let mut all = false;
            if self.looked.elapsed() >= LOOK {
                all |= self.look(&daemon);
            }
            if self.read.elapsed() >= RESYNC {
                self.read = Instant::now();
                all = true;
            }
            self.pass(&daemon, &|netns| all || ready.contains(&netns));
        }
    }

    /// Waits for an event or the next look; returns whose tables changed.
    fn wait(&self) -> BTreeSet<u32> {
        let left = LOOK.saturating_sub(self.looked.elapsed());
        let mut fds: Vec<PollFd<'_>> = self.watched.iter().map(|watched| PollFd::new(watched.as_fd(), PollFlags::POLLIN)).collect();
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
        match poll(&mut fds, timeout) {
            Ok(0) | Err(_) => BTreeSet::new(),
            Ok(_) => {
                let ready: BTreeSet<u32> = fds
                    .iter()
                    .zip(&self.watched)
                    .filter(|(fd, _)| fd.any() == Some(true))
                    .map(|(_, watched)| watched.namespace.number())
                    .collect();
                std::thread::sleep(GATHER);
                self.watched.iter().filter(|watched| ready.contains(&watched.namespace.number())).for_each(Watched::drain);
                ready
            }
        }
    }

    /// Looks for namespaces of marked processes, and drops those that have none any more. `true`: there is a new one.
    fn look(&mut self, daemon: &Daemon) -> bool {
        self.looked = Instant::now();
        let marks = match daemon.gate.marks() {
            Ok(marks) => marks,
            Err(error) => {
                tracing::error!("{error}");
                return false;
            }
        };
        let mut wanted = BTreeSet::from([self.own]);
        let mut new = false;
        for (pid, _) in marks {
            let Some(number) = namespace_of(pid).filter(|number| wanted.insert(*number)) else { continue };
            if self.foreign.contains(&number) || self.watched.iter().any(|watched| watched.namespace.number() == number) {
                continue;
            }
            if self.watched.len() >= MAX_NAMESPACES {
                if !self.too_many {
                    tracing::error!("neighbours: sessions use more than {MAX_NAMESPACES} network namespaces; those beyond are not watched");
                }
                self.too_many = true;
                continue;
            }
            match open(pid, number) {
                Ok(Some(watched)) => {
                    self.watched.push(watched);
                    new = true;
                }
                Ok(None) => {
                    self.foreign.insert(number);
                }
                // It is gone or cannot be opened. The next look tries again.
                Err(error) => tracing::debug!("neighbours of process {pid}: {error}"),
            }
        }
        self.foreign.retain(|number| wanted.contains(number));
        self.watched.retain(|watched| wanted.contains(&watched.namespace.number()));
        self.too_many &= self.watched.len() >= MAX_NAMESPACES;
        new
    }

    /// Reads the changed namespaces again and has the daemon learn from all.
    fn pass(&mut self, daemon: &Daemon, changed: &dyn Fn(u32) -> bool) {
        let mut problems = Vec::new();
        if self.own == 0 {
            problems.push(
                "neighbours: this host's network cannot be watched; link-local and further addresses of protected devices are open"
                    .to_owned(),
            );
        }
        if self.too_many {
            problems.push(format!("neighbours: more than {MAX_NAMESPACES} network namespaces have sessions; those beyond are not watched"));
        }
        for watched in self.watched.iter_mut().filter(|watched| changed(watched.namespace.number())) {
            // On an error the last snapshot stays valid.
            if let Err(error) = watched.read() {
                problems.push(format!("neighbours: network namespace {} cannot be read: {error}", watched.namespace.number()));
            }
        }
        let snapshots = self.watched.iter().map(|watched| watched.last.clone()).collect();
        daemon.neighbours.state().problems = problems;
        daemon.rules.change(move |writer| writer.learn(Some(snapshots)));
        self.ask(daemon);
    }

    /// Asks for protected addresses whose device is unknown, on links where its other addresses may already answer.
    fn ask(&mut self, daemon: &Daemon) {
        self.asked.retain(|_, at| at.elapsed() < REMEMBER_ASKED);
        let state = daemon.neighbours.state();
        for watched in &self.watched {
            let netns = watched.namespace.number();
            let lately = self.asked.iter().filter(|((of, ..), at)| *of == netns && at.elapsed() < ASK_EVERY).count();
            for (link, ip) in next_asked(&self.asked, netns, unanswered(&state.protected, &watched.last), MOST_ASKED.saturating_sub(lately))
            {
                self.asked.insert((netns, link, ip), Instant::now());
                if let Err(error) = watched.ask_for(link, ip) {
                    tracing::debug!("neighbours: {ip} on interface {link} is not asked for: {error}");
                }
            }
        }
    }
}

/// The addresses to ask for now: first those never asked for, then those that wait longest. None is asked for twice within [`ASK_EVERY`].
fn next_asked(asked: &BTreeMap<Asked, Instant>, netns: u32, wanted: Vec<(u32, IpAddr)>, room: usize) -> Vec<(u32, IpAddr)> {
    let mut due: Vec<(Option<Instant>, (u32, IpAddr))> =
        wanted.into_iter().map(|(link, ip)| (asked.get(&(netns, link, ip)).copied(), (link, ip))).collect();
    due.retain(|(last, _)| last.is_none_or(|at| at.elapsed() >= ASK_EVERY));
    due.sort_unstable();
    due.into_iter().take(room).map(|(_, one)| one).collect()
}

fn namespace_of(pid: u32) -> Option<u32> {
    let link = std::fs::read_link(format!("/proc/{pid}/ns/net")).ok()?;
    link.to_string_lossy().strip_prefix("net:[")?.strip_suffix(']')?.parse().ok()
}

/// `None`: the namespace belongs to another user namespace.
fn open(pid: u32, number: u32) -> io::Result<Option<Watched>> {
    let namespace = Namespace::of_process(pid)?;
    if namespace.number() != number {
        return Err(io::Error::other("it has moved"));
    }
    if !namespace.is_of_this_host()? {
        return Ok(None);
    }
    Watched::open(namespace).map(Some)
}

/// Starts to watch.
pub(super) fn watch(daemon: &Arc<Daemon>) -> io::Result<()> {
    let watcher = Watcher::begin(daemon);
    let weak = Arc::downgrade(daemon);
    std::thread::Builder::new().name("neighbours".into()).spawn(move || watcher.run(&weak)).map(drop)
}

impl Writer {
    /// Learns from new snapshots, or again from the last ones if policy changed.
    pub(super) fn learn(&mut self, snapshots: Option<Vec<Snapshot>>) {
        let servers = resolvers();
        let now = Now::read();
        let (notices, wanted) = {
            let mut state = self.neighbours.state();
            let basis = Some((self.force.generation, servers.clone()));
            // The tables of an idle host do not change.
            let is_news = snapshots.as_ref().is_none_or(|seen| *seen != state.snapshots) || state.basis != basis;
            if !is_news && state.updated.is_some_and(|at| at.elapsed() < RENEW) && state.applied.is_some() {
                return;
            }
            if let Some(snapshots) = snapshots {
                state.snapshots = snapshots;
            }
            if state.basis != basis {
                state.protected = Protected::of(&self.force.config, servers);
                state.basis = basis;
            }
            state.updated = Some(Instant::now());
            let State { book, snapshots, protected, applied, .. } = &mut *state;
            let notices = book.update(protected, snapshots, now.boot_ns);
            let wanted: Applied = (book.links().clone(), book.entries().collect());
            (notices, (applied.as_ref() != Some(&wanted)).then_some(wanted))
        };
        if let Some(wanted) = wanted {
            let written = self.publisher.set_near(&wanted.0, wanted.1.iter().copied());
            self.neighbours.state().applied = written.is_ok().then_some(wanted);
            if let Err(error) = written {
                tracing::error!("neighbours: {error}");
                self.neighbours.state().problems.push(format!("neighbours: {error}"));
            }
        }
        notices.iter().for_each(|notice| report(&self.reports, notice));
        self.readmit_receipts();
    }

    /// Checks receipts again if the learned places changed, and ends flows that are not allowed any more.
    fn readmit_receipts(&mut self) {
        let learned = self.neighbours.learned_places();
        if *self.force.learned == learned {
            return;
        }
        let InForce { config, keyring, receipts, .. } = &self.force;
        let receipts = receipts.readmit(|stored| load::admit_again(stored, config, keyring, &learned));
        self.force.receipts = receipts;
        self.force.learned = Arc::new(learned);
        if let Err(error) = self.publish() {
            tracing::error!("receipts for learned addresses: {error}");
        }
        self.wake.flow_refused.notify_one();
    }
}

impl Daemon {
    /// Decides when the link is unknown. A link-local address, and one of everybody on a link, is decided on links that carry a place, any
    /// other address in namespaces that have learned it.
    pub(super) fn decide_near(&self, subject: &Subject, attempt: &Attempt) -> Decision {
        let plain = self.gate.decide(subject, attempt);
        if plain.reason != Reason::NotProtected && plain.service == 0 {
            return plain;
        }
        let links: Vec<Link> = {
            let state = self.neighbours.state();
            let known = state.book.known().map(|known| known.key).chain(state.book.broadcasts().map(|(key, _)| key));
            let learned = known.filter(|key| key.addr == attempt.addr).map(|key| Link { netns: key.netns, ifindex: key.ifindex, flags: 0 });
            let carrying = state.book.carrying().filter(|_| is_of_link(attempt));
            learned.chain(carrying.map(|(key, ..)| Link { netns: key.netns, ifindex: key.ifindex, flags: 0 })).collect()
        };
        let found = links.into_iter().map(|link| self.gate.decide_on(link, subject, attempt));
        found.into_iter().find(|decision| decision.zone | decision.gateway != 0).unwrap_or(plain)
    }

    /// The namespace of `pid`, or the daemon's own, with the named link, through which an attempt leaves.
    pub(super) fn link_of(&self, pid: Option<u32>, interface: Option<&str>) -> Result<Link, ApiError> {
        let netns = match pid {
            Some(pid) => namespace_of(pid),
            None => Namespace::own().ok().map(|own| own.number()),
        };
        let netns = netns.ok_or_else(|| ApiError::not_found("process: its network cannot be found out"))?;
        let Some(name) = interface else { return Ok(Link { netns, ifindex: 0, flags: 0 }) };
        let state = self.neighbours.state();
        let links = state.snapshots.iter().filter(|snapshot| snapshot.netns == netns).flat_map(|snapshot| &snapshot.links);
        let found = links.into_iter().find(|link| link.name == name || link.index.to_string() == name).map(|link| link.index);
        let ifindex =
            found.ok_or_else(|| ApiError::bad_request(format!("link {name}: there is no Ethernet link of this name; see ip link")))?;
        Ok(Link { netns, ifindex, flags: 0 })
    }

    /// Why an address that policy does not name is protected, in words.
    pub(super) fn words_about(&self, link: Link, attempt: &Attempt) -> Option<String> {
        let address = attempt.addr;
        let state = self.neighbours.state();
        let key = NearKey { netns: link.netns, ifindex: if address.is_link_local() { link.ifindex } else { 0 }, addr: address };
        if let Some(known) = state.book.find(&key) {
            if known.learned.flags & LEARNED_BROADCAST != 0 {
                return Some(format!("broadcast: {} carries a protected place", known.link));
            }
            return Some(format!("learned: {}", words(&known.learned, &known.link)));
        }
        let carries = |(key, ..): &(LinkKey, String, Place)| key.netns == link.netns && key.ifindex == link.ifindex;
        let (_, name, _) = state.book.carrying().find(carries).filter(|_| is_of_link(attempt))?;
        let what = if address.is_link_local() { "link-local" } else { "everybody on the link" };
        Some(format!("{what}: {name} carries a protected place"))
    }

    /// `GET /v1/neighbours`, and a member of `status`.
    pub(super) fn list_neighbours(&self) -> NeighbourList {
        let state = self.neighbours.state();
        let builder = self.reports.builder();
        let link = |(key, link, place): (LinkKey, String, Place)| LinkView {
            link,
            netns: key.netns,
            zone: builder.name(place.zone),
            gateway: builder.name(place.gateway),
        };
        let learned = |known: Known| NeighbourView {
            address: scoped(&known),
            netns: known.key.netns,
            zone: builder.name(known.learned.place.zone),
            gateway: builder.name(known.learned.place.gateway),
            mac: Mac(known.learned.mac).to_string(),
            why: words(&known.learned, &known.link),
            link: known.link,
        };
        let unnamed = |(link, prefix): &(String, Prefix)| UnnamedNetwork { link: link.clone(), network: prefix.to_string() };
        NeighbourList {
            links: state.book.carrying().map(link).collect(),
            learned: state.book.known().map(learned).collect(),
            conflicts: state.book.conflicts().iter().map(sentence).collect(),
            unnamed_networks: state.book.unnamed().iter().map(unnamed).collect(),
        }
    }

    /// `DELETE /v1/neighbours/{address}`.
    pub(super) fn forget_neighbour(&self, text: &str) -> Result<Forgotten, ApiError> {
        let ip: IpAddr = text.parse().map_err(|_| ApiError::bad_request(format!("{text}: not an address; see pp-agent neighbours")))?;
        let found = self.neighbours.state().book.forget(&addr(ip.to_canonical()), Now::read().boot_ns);
        if found.is_empty() {
            return Err(ApiError::not_found(format!("{text}: not learned from a neighbour; what policy gives by mac is changed there")));
        }
        for known in &found {
            let detail = "forgotten by an operator; it is not learned again for 24 hours or until the daemon restarts";
            publish(&self.reports, NeighbourChange::Forgotten, ip, known.learned.place, detail.to_owned());
        }
        self.rules.change(|writer| writer.learn(None));
        Ok(Forgotten { address: ip.to_string(), forgotten: found.len() })
    }
}

/// Whether the link decides: its own addresses, and what everybody on it gets.
pub(super) fn is_of_link(attempt: &Attempt) -> bool {
    attempt.addr.is_link_local() || is_for_all(&attempt.addr, attempt.transport, attempt.port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_nobody_answers_for_take_turns() {
        let old = Instant::now().checked_sub(2 * ASK_EVERY).unwrap();
        let ip = |last: u8| IpAddr::from([10, 30, 0, last]);
        let wanted: Vec<(u32, IpAddr)> = (1..=4).map(|last| (2, ip(last))).collect();
        // The first was asked for just now, the second a while ago, the others never.
        let asked = BTreeMap::from([((1, 2, ip(1)), Instant::now()), ((1, 2, ip(2)), old)]);
        assert_eq!(next_asked(&asked, 1, wanted.clone(), 2), [(2, ip(3)), (2, ip(4))]);
        assert_eq!(next_asked(&asked, 1, wanted.clone(), 64), [(2, ip(3)), (2, ip(4)), (2, ip(2))]);
        assert_eq!(next_asked(&asked, 1, wanted, 0), []);
    }
}
