//! Measuring one row: in every round the same call with no program, with the empty ones and with the gate's, one after the other, so that
//! what disturbs the machine for longer than a moment disturbs all three. Only differences within a round are judged.

use std::fs::File;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::calls::{Call, Kind};
use crate::hooks::{self, Hooks};
use crate::limits::Limit;
use crate::place::Place;
use crate::rows::{Caller, Row};
use crate::stats::Spread;
use crate::tables;

/// Least rounds of a row.
pub(crate) const ROUNDS: usize = 12;
/// Most rounds of a row that has a limit: it is measured on until its medians are known well enough, see [`DOUBT`].
const MOST_ROUNDS: usize = 240;
/// Doubt about a median that a limit can bear, as a part of what the limit allows.
const DOUBT: f64 = 0.1;
/// A sample is this many pieces, the median of which is taken: a piece in which somebody else had the CPU does not count.
const PIECES: usize = 50;
/// About how long a piece takes.
const PIECE: Duration = Duration::from_micros(400);
/// How long to wait for others to take their programs away.
const PATIENCE: Duration = Duration::from_secs(120);
/// Calls after attaching that are not counted: caches are cold, and the first refusal writes its record.
const WARM_UP: u32 = 200;

/// Every order of the three, so that none is always measured after the same one.
const ORDERS: [[Variant; 3]; 6] = {
    use Variant::{Empty, Gate, Without};
    [
        [Without, Empty, Gate],
        [Gate, Without, Empty],
        [Empty, Gate, Without],
        [Gate, Empty, Without],
        [Without, Gate, Empty],
        [Empty, Without, Gate],
    ]
};

/// What hangs at the hooks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Variant {
    Without,
    Empty,
    Gate,
}

/// Nanoseconds a call, of one round.
#[derive(Debug, Clone, Copy, Default)]
struct Round {
    without: f64,
    empty: f64,
    gate: f64,
}

/// What a row came to. All but `rounds` and `ratio`: nanoseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cost {
    pub(crate) rounds: usize,
    /// The call, with no program.
    pub(crate) without: Spread,
    /// The empty programs over none.
    pub(crate) empty: Spread,
    /// The gate over none.
    pub(crate) gate: Spread,
    /// The gate over the empty programs.
    pub(crate) excess: Spread,
    /// The whole call with the gate, to the same with the empty programs.
    pub(crate) ratio: Spread,
}

impl Cost {
    fn of(rounds: &[Round]) -> Self {
        let over = |of: fn(&Round) -> f64| Spread::of(rounds.iter().map(of));
        Self {
            rounds: rounds.len(),
            without: over(|round| round.without),
            empty: over(|round| round.empty - round.without),
            gate: over(|round| round.gate - round.without),
            excess: over(|round| round.gate - round.empty),
            ratio: over(|round| round.gate / round.empty),
        }
    }

    fn settles(&self, limit: Limit) -> bool {
        let most = DOUBT * limit.allowance_ns(self.empty.median);
        [self.empty, self.excess].iter().all(|spread| spread.notch(self.rounds) <= most)
    }
}

/// Both sets of programs, and where they are tried.
pub(crate) struct Bench<'a> {
    pub(crate) place: &'a Place,
    pub(crate) cgroup: File,
    pub(crate) empty: Hooks,
    pub(crate) gate: Hooks,
    pub(crate) rounds: usize,
    /// Programs of others that are put up with.
    pub(crate) others: usize,
}

impl Bench<'_> {
    /// Measures a row.
    ///
    /// # Errors
    /// The call had another outcome than it must have, or the run was interrupted.
    pub(crate) fn measure(&mut self, row: &Row) -> Result<Cost> {
        let call = Call::prepare(row.kind, row.host()).with_context(|| format!("{}: no socket for it", row.host()))?;
        let baseline = Call::prepare(row.kind, row.baseline()).with_context(|| format!("{}: no socket for it", row.baseline()))?;
        let marked = row.caller != Caller::Unmarked;
        if marked {
            tables::mark_process(&mut self.gate.ebpf, true)?;
            for (socket, opened) in call.sockets().into_iter().chain(baseline.sockets()) {
                tables::mark_socket(&mut self.gate.ebpf, &socket, opened)?;
            }
        }
        let charged = tables::flows_charged(&mut self.gate.ebpf)?;
        tables::forget_history(&mut self.gate.ebpf)?;
        let cost = self.rounds(row, &call, &baseline);
        if marked {
            tables::mark_process(&mut self.gate.ebpf, false)?;
        }
        if let Some(targets) = call.targets().filter(|_| row.caller.is_counted()) {
            let counted = tables::targets_counted(&mut self.gate.ebpf)?;
            ensure!(counted == targets, "{counted} of {targets} targets were counted");
        }
        let cost = cost?;
        let charges = row.caller == Caller::Granted && row.kind != Kind::Connect;
        let was_charged = tables::flows_charged(&mut self.gate.ebpf)? > charged;
        ensure!(was_charged == charges, "the receipt was {}charged", if charges { "not " } else { "" });
        Ok(cost)
    }

    fn rounds(&mut self, row: &Row, call: &Call, baseline: &Call) -> Result<Cost> {
        let piece = match call.targets() {
            Some(targets) => targets,
            None => calls_in(PIECE, call)?,
        };
        let mut rounds = Vec::new();
        for order in ORDERS.iter().cycle() {
            self.wait_for_quiet_hooks()?;
            let mut round = Round::default();
            for variant in order {
                self.place.go_on()?;
                let call = if *variant == Variant::Empty { baseline } else { call };
                let ns = self.sample(row, call, *variant, piece)?;
                match variant {
                    Variant::Without => round.without = ns,
                    Variant::Empty => round.empty = ns,
                    Variant::Gate => round.gate = ns,
                }
            }
            if self.hooks_are_quiet() {
                rounds.push(round);
            }
            if rounds.len() < self.rounds {
                continue;
            }
            let cost = Cost::of(&rounds);
            let settled = row.limit.is_none_or(|limit| cost.settles(limit));
            if settled || rounds.len() >= MOST_ROUNDS.max(self.rounds) {
                return Ok(cost);
            }
        }
        unreachable!("a cycle has no end")
    }

    fn hooks_are_quiet(&self) -> bool {
        hooks::loaded() <= 2 * hooks::ALL.len() + self.others
    }

    /// Waits while somebody else has programs at these hooks, a test run for example.
    fn wait_for_quiet_hooks(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !self.hooks_are_quiet() {
            self.place.go_on()?;
            ensure!(
                Instant::now() < deadline,
                "somebody else has programs at the cgroup hooks of this host, so there is no call with no program to compare with; \
                 end what has them (a running pp-agent is one), or put up with them: --beside-others"
            );
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Nanoseconds a call. Every outcome is looked at: a hook that was not there would show.
    fn sample(&mut self, row: &Row, call: &Call, variant: Variant, piece: u32) -> Result<f64> {
        let _attached = match variant {
            Variant::Without => Vec::new(),
            Variant::Empty if !row.caller.is_counted() => self.empty.attach(row.programs, &self.cgroup)?,
            Variant::Empty | Variant::Gate => self.gate.attach(row.programs, &self.cgroup)?,
        };
        let refuses = variant == Variant::Gate && row.caller == Caller::Refused;
        call.run(WARM_UP.min(piece))?;
        let mut pieces = Vec::with_capacity(PIECES);
        for _ in 0..PIECES {
            if row.caller == Caller::CountedNew && variant == Variant::Gate {
                tables::forget_history(&mut self.gate.ebpf)?;
            }
            let tally = call.run(piece)?;
            let wanted = if refuses { piece } else { 0 };
            ensure!(tally.refused == wanted, "{} of {piece} calls were refused, not {wanted}", tally.refused);
            pieces.push(tally.took.as_secs_f64() * 1e9 / f64::from(piece));
        }
        Ok(Spread::of(pieces).median)
    }
}

/// How many calls fill that time, roughly; the best of a few attempts.
fn calls_in(time: Duration, call: &Call) -> Result<u32> {
    const TRY: u32 = 20;
    let mut took = Duration::MAX;
    for _ in 0..20 {
        took = took.min(call.run(TRY)?.took);
    }
    let count = u128::from(TRY) * time.as_nanos() / took.as_nanos().max(1);
    Ok(u32::try_from(count).unwrap_or(u32::MAX).max(1))
}
