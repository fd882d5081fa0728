//! A model of kernel and daemon. Programs on several CPUs refuse, count and write. A daemon reads, reports, removes, is killed and starts
//! again. The steps of all of them are in any order.

use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;

use super::*;
use crate::events::Loss;

/// Size of the model's tables: small, so that they are often full.
const ENTRIES: usize = 3;
const RING: usize = 3;
const PAIRS: u8 = 6;

#[derive(Clone, Copy, Debug)]
struct Entry {
    id: u64,
    count: u64,
    /// Within the window since the last record.
    fresh: bool,
}

/// Where a program that refuses an attempt is.
#[derive(Clone, Copy, Debug)]
enum Program {
    /// It has counted the refusal.
    Refused(u8),
    /// It holds a pointer to an entry, which may have been removed since.
    Holds { pair: u8, id: u64, count: bool },
    /// It writes a record.
    Writes { pair: u8, id: u64, count: u64 },
    /// The ring was full.
    NoRoom(u8),
}

#[derive(Debug, Default)]
struct Kernel {
    refused: u64,
    lost: u64,
    entries: BTreeMap<u8, Entry>,
    ring: VecDeque<(u64, u64)>,
    running: Vec<Program>,
    next_id: u64,
    /// What was added to removed entries, which nothing can see.
    vanished: u64,
    kept_reported: BTreeMap<u64, u64>,
}

impl Kernel {
    fn begin(&mut self, pair: u8) {
        self.refused += 1;
        self.running.push(Program::Refused(pair));
    }

    /// One step of one running program, as `pp-ebpf/src/gate/event.rs` takes it.
    fn step(&mut self, which: usize) {
        if self.running.is_empty() {
            return;
        }
        let which = which % self.running.len();
        let next = match self.running[which] {
            Program::Refused(pair) => match self.entries.get(&pair) {
                Some(entry) => Some(Program::Holds { pair, id: entry.id, count: entry.fresh }),
                None if self.entries.len() < ENTRIES => {
                    self.next_id += 1;
                    self.entries.insert(pair, Entry { id: self.next_id, count: 0, fresh: true });
                    Some(Program::Writes { pair, id: self.next_id, count: 0 })
                }
                None => Some(Program::Writes { pair, id: 0, count: 0 }),
            },
            Program::Holds { pair, id, count } => {
                let mut entry = self.entries.values_mut().find(|entry| entry.id == id);
                match (count, entry.as_mut()) {
                    (true, Some(entry)) => entry.count += 1,
                    (true, None) => self.vanished += 1,
                    (false, Some(entry)) => entry.fresh = true,
                    (false, None) => {}
                }
                let count_now = entry.map_or(0, |entry| entry.count);
                (!count).then_some(Program::Writes { pair, id, count: count_now })
            }
            Program::Writes { pair, id, count } => {
                if self.ring.len() < RING {
                    self.ring.push_back((id, count));
                    None
                } else {
                    Some(Program::NoRoom(pair))
                }
            }
            Program::NoRoom(pair) => {
                match self.entries.get_mut(&pair) {
                    Some(entry) => entry.count += 1,
                    None => self.lost += 1,
                }
                None
            }
        };
        match next {
            Some(next) => self.running[which] = next,
            None => drop(self.running.swap_remove(which)),
        }
    }

    fn finish(&mut self) {
        while !self.running.is_empty() {
            self.step(0);
        }
    }
}

#[derive(Debug)]
struct Daemon {
    ledger: Ledger,
    published: Refusals,
    stored: Refusals,
    /// Refusals of a flood, which wait for its summary.
    held: u64,
    /// Published, not on disk yet.
    queued: Vec<Refusals>,
    reported_lost: u64,
    /// A look that has read how many were refused, and waits for programs and records.
    look: Option<(u64, usize)>,
}

impl Daemon {
    fn start(kernel: &Kernel, stored: Refusals) -> Self {
        let mut ledger = Ledger::new(kernel.kept_reported.clone());
        ledger.keep_only(kernel.entries.values().map(|entry| entry.id));
        let published = Refusals { lost: stored.lost + stored.not_stored, not_stored: 0, ..stored };
        Self { ledger, published, stored, held: 0, queued: Vec::new(), reported_lost: kernel.lost, look: None }
    }

    fn publish(&mut self, refusals: Refusals) {
        self.published = self.published.and(refusals);
        self.queued.push(refusals);
    }

    fn publish_or_hold(&mut self, refusals: Refusals, is_flood: bool) {
        if is_flood {
            self.held += refusals.published();
        } else {
            self.publish(refusals);
        }
    }

    fn summarise(&mut self) {
        let repeats = std::mem::take(&mut self.held);
        if repeats > 0 {
            self.publish(Refusals { repeats, ..Refusals::default() });
        }
    }

    fn read(&mut self, kernel: &mut Kernel, is_flood: bool) {
        let Some((id, count)) = kernel.ring.pop_front() else { return };
        let repeats = self.ledger.due_by_record(id, count);
        if repeats > 0 {
            kernel.kept_reported.insert(id, count);
            self.ledger.report(id, count);
        }
        self.publish_or_hold(Refusals { with_event: 1, repeats, ..Refusals::default() }, is_flood);
    }

    fn flush(&mut self, kernel: &mut Kernel, is_flood: bool, racing: impl Fn(&mut Kernel)) {
        let entries: Vec<(u8, Entry)> = kernel.entries.iter().map(|(pair, entry)| (*pair, *entry)).collect();
        for (pair, entry) in entries {
            let (due, _) = self.ledger.due(entry.id, entry.count);
            if entry.fresh {
                continue;
            }
            if due > 0 {
                kernel.kept_reported.insert(entry.id, entry.count);
                self.ledger.report(entry.id, entry.count);
                self.publish_or_hold(Refusals { repeats: due, ..Refusals::default() }, is_flood);
            }
            let unchanged = kernel.entries.get(&pair).is_some_and(|now| now.count == entry.count && !now.fresh);
            if unchanged {
                racing(kernel);
                let gone = kernel.entries.remove(&pair);
                // Added between the look and the removal.
                kernel.vanished += gone.map_or(0, |gone| gone.count - entry.count);
                kernel.kept_reported.remove(&entry.id);
                self.ledger.remove(entry.id);
            }
        }
    }

    fn report_lost(&mut self, kernel: &Kernel) {
        let lost = kernel.lost - self.reported_lost;
        self.reported_lost = kernel.lost;
        if lost > 0 {
            self.publish(Refusals { lost, ..Refusals::default() });
        }
    }

    /// The second half of a look, once the programs that ran at its first have returned and every record been handled.
    fn reconcile(&mut self, kernel: &Kernel, refused: u64) {
        let mut pending = 0;
        for entry in kernel.entries.values() {
            pending += self.ledger.due(entry.id, entry.count).0;
        }
        let lost = missing(refused, 0, pending + self.held, self.published.published());
        self.reported_lost = kernel.lost;
        if lost > 0 {
            self.publish(Refusals { lost, ..Refusals::default() });
        }
    }

    fn store(&mut self, full: bool) {
        let mut not_stored = 0;
        for refusals in self.queued.drain(..) {
            if full {
                not_stored += refusals.stored();
            } else {
                self.stored = self.stored.and(refusals);
            }
        }
        if not_stored > 0 {
            self.queued.push(Refusals { not_stored, ..Refusals::default() });
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Refuse(u8),
    Run(u8),
    WindowOver(u8),
    Read(bool),
    Flush(bool, Option<u8>),
    Summarise,
    ReportLost,
    BeginLook,
    EndLook,
    Store(bool),
    Kill,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (0..PAIRS).prop_map(Step::Refuse),
        16 => any::<u8>().prop_map(Step::Run),
        2 => (0..PAIRS).prop_map(Step::WindowOver),
        4 => any::<bool>().prop_map(Step::Read),
        2 => (any::<bool>(), proptest::option::of(0..PAIRS)).prop_map(|(is_flood, racing)| Step::Flush(is_flood, racing)),
        1 => Just(Step::Summarise),
        1 => Just(Step::ReportLost),
        1 => Just(Step::BeginLook),
        1 => Just(Step::EndLook),
        2 => any::<bool>().prop_map(Step::Store),
        1 => Just(Step::Kill),
    ];
    proptest::collection::vec(step, 0..400)
}

fn run(steps: &[Step]) -> (Kernel, Daemon) {
    let mut kernel = Kernel::default();
    let mut daemon = Daemon::start(&kernel, Refusals::default());
    for step in steps {
        match step {
            Step::Refuse(pair) => kernel.begin(*pair),
            Step::Run(which) => kernel.step(usize::from(*which)),
            Step::WindowOver(pair) => {
                if let Some(entry) = kernel.entries.get_mut(pair) {
                    entry.fresh = false;
                }
            }
            Step::Read(is_flood) => daemon.read(&mut kernel, *is_flood),
            Step::Summarise => daemon.summarise(),
            Step::Flush(is_flood, racing) => daemon.flush(&mut kernel, *is_flood, |kernel| {
                if let Some(pair) = racing {
                    kernel.begin(*pair);
                    kernel.finish();
                }
            }),
            Step::ReportLost => daemon.report_lost(&kernel),
            Step::BeginLook => daemon.look = Some((kernel.refused, kernel.running.len())),
            Step::EndLook => {
                // The grace period and the reader's answer: all that ran has returned, and the ring was seen empty.
                if let Some((refused, _)) = daemon.look.take() {
                    kernel.finish();
                    while !kernel.ring.is_empty() {
                        daemon.read(&mut kernel, true);
                    }
                    // Others have begun since.
                    kernel.begin(0);
                    kernel.begin(1);
                    daemon.reconcile(&kernel, refused);
                }
            }
            Step::Store(full) => daemon.store(*full),
            Step::Kill => daemon = Daemon::start(&kernel, daemon.stored),
        }
        assert!(daemon.published.published() + daemon.held <= kernel.refused, "more was reported than refused: {daemon:?} {kernel:?}");
        assert!(daemon.stored.stored() <= kernel.refused, "more is stored than was refused: {daemon:?} {kernel:?}");
    }
    (kernel, daemon)
}

/// Lets the storm end: everything is read, reported and stored.
fn drain(kernel: &mut Kernel, daemon: &mut Daemon) {
    kernel.finish();
    let refused = kernel.refused;
    while !kernel.ring.is_empty() {
        daemon.read(kernel, true);
    }
    kernel.entries.values_mut().for_each(|entry| entry.fresh = false);
    daemon.flush(kernel, false, |_| {});
    daemon.summarise();
    daemon.reconcile(kernel, refused);
    daemon.store(false);
    daemon.store(false);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn events_repeats_and_losses_add_up_to_what_was_refused(steps in steps()) {
        let (mut kernel, mut daemon) = run(&steps);
        drain(&mut kernel, &mut daemon);
        prop_assert_eq!(daemon.published.published(), kernel.refused);
        prop_assert_eq!(daemon.stored.stored(), kernel.refused);
        if !steps.iter().any(|step| matches!(step, Step::Kill)) {
            // What is lost is what found no room and what vanished with an entry, and nothing else.
            prop_assert_eq!(daemon.published.lost, kernel.lost + kernel.vanished);
        }
    }
}

#[test]
fn repeats_of_a_record_are_reported_once() {
    let mut ledger = Ledger::default();
    // The entry was not seen in the table yet, so they will be reported from there.
    assert_eq!(ledger.due_by_record(7, 5), 0);
    assert_eq!(ledger.due(7, 5), (5, true));
    ledger.report(7, 5);
    assert_eq!((ledger.due_by_record(7, 5), ledger.due_by_record(7, 9), ledger.due(7, 9)), (0, 4, (4, false)));
    ledger.remove(7);
    assert_eq!(ledger.due_by_record(7, 9), 0);
}

#[test]
fn events_report_refusals_by_their_kind_and_verdict() {
    let mut block = Event::of_attempt("block", "no_receipt", "10.20.4.7", 502);
    let canary = Event { canary: true, ..block.clone() };
    let ended = Event::new(Body::FlowEnded(Box::new(block.attempt_mut().clone())), "h", 0);
    block.attempt_mut().repeats = 3;
    assert_eq!(Refusals::of(&block), Refusals { with_event: 1, repeats: 3, ..Refusals::default() });
    block.who.process = None;
    assert_eq!(Refusals::of(&block), Refusals { repeats: 3, ..Refusals::default() });
    for other in [Event::of_attempt("observe", "no_receipt", "10.20.4.7", 502), canary, ended] {
        assert_eq!(Refusals::of(&other), Refusals::default());
    }
    let lost = |refusals, not_stored| Refusals::of(&Event::new(Body::Lost(Loss { count: 9, refusals, not_stored }), "h", 0));
    assert_eq!(lost(false, false), Refusals::default());
    assert_eq!(lost(true, false), Refusals { lost: 9, ..Refusals::default() });
    assert_eq!((lost(true, true).published(), lost(true, true).stored()), (0, 9));
}
