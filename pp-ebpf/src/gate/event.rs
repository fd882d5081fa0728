//! Telling the daemon: verdict records, and counters where a record is too much.

use core::arch::asm;

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    helpers::{bpf_get_prandom_u32, bpf_ktime_get_boot_ns},
    maps::ring_buf::RingBufEntry,
};
use pp_common::{
    abi::{Counter, REPEAT_WINDOW_NS, RepeatKey, Repeats, TASK_CANARY},
    decide::{Attempt, Decision, Reason, Subject, Verdict},
    dest::Addr,
    record::{Hook, VerdictRecord, kind},
    trouble::Trouble,
};

use super::{
    behaviour::RuleReport,
    log::{self, Program, warn},
    maps::{COUNTS, EVENTS, LIFECYCLE, REPEATS},
    near::Near,
};

/// Adds one to a counter.
#[inline(always)]
pub(crate) fn count(counter: Counter) {
    if let Some(value) = COUNTS.get_ptr_mut(counter as u32) {
        // SAFETY: this CPU's own element, but a packet's hook may interrupt a call's between its load and its store.
        unsafe { add_one(value) };
    }
}

/// # Safety
///
/// `value` must be a word of a map value.
#[inline(always)]
unsafe fn add_one(value: *mut u64) {
    // SAFETY: the caller's.
    unsafe { asm!("lock *(u64 *)({} + 0) += {}", in(reg) value, in(reg) 1_u64, options(nostack)) };
}

/// Boot time, nanoseconds.
#[inline(always)]
pub(crate) fn now_ns() -> u64 {
    // SAFETY: no arguments, always valid.
    unsafe { bpf_ktime_get_boot_ns() }
}

/// Room for a record of a process; `None`: it is lost, and counted.
#[inline(always)]
pub(crate) fn begin_lifecycle<T: 'static>(program: &'static Program) -> Option<RingBufEntry<T>> {
    let Some(entry) = LIFECYCLE.reserve_untyped::<T>(0) else {
        count(Counter::LostLifecycle);
        warn(program, Trouble::LifecycleFull);
        return None;
    };
    count(Counter::Written);
    Some(entry)
}

/// Room for a record of a verdict; `None`: the caller says where it is counted.
#[inline(always)]
pub(crate) fn begin_verdict<T: 'static>(refusal: bool) -> Option<RingBufEntry<T>> {
    let entry = EVENTS.reserve_untyped::<T>(0)?;
    if !refusal {
        count(Counter::Written);
    }
    Some(entry)
}

/// Counts the verdict where it is a refusal; the canary's are none. Returns whether it is.
#[inline(always)]
pub(crate) fn count_refusal(verdict: Verdict, task_flags: u32) -> bool {
    let refusal = matches!(verdict, Verdict::Block) && task_flags & TASK_CANARY == 0;
    if refusal {
        count(Counter::Blocked);
    }
    refusal
}

/// Room for the record of an attempt, and what of its pair was counted before. `None`: it is reported as a repeat, or counted as lost.
/// `trouble` is set where something has no room: one place for both to write the line of is enough of them.
#[inline(always)]
pub(crate) fn begin_attempt<T: 'static>(
    key: &RepeatKey,
    now: u64,
    always: bool,
    refusal: bool,
    trouble: &mut Option<Trouble>,
) -> Option<(RingBufEntry<T>, Due)> {
    let due = due(key, now, always, trouble)?;
    let Some(entry) = begin_verdict::<T>(refusal) else {
        *trouble = Some(Trouble::EventsFull);
        no_room(key, refusal);
        return None;
    };
    Some((entry, due))
}

/// A record that has to be written: how often its pair was counted instead, in which entry.
pub(crate) struct Due {
    pub(crate) repeats: u64,
    pub(crate) id: u64,
}

/// Whether this attempt of a pair is written: the first is, and one after [`REPEAT_WINDOW_NS`], and
/// where `always`. `None`: it is counted in the pair's entry, and reported by that.
///
/// Every attempt ends up in exactly one place: a record, the `count` of its entry, or, in
/// [`no_room`], as lost. RACE: `count` is added to atomically and never taken back, so that no CPU
/// undoes what another counts. What is added to an entry while the daemon removes it is missing
/// from the sum, and the daemon reports what is missing as lost.
#[inline(always)]
fn due(key: &RepeatKey, now: u64, always: bool, trouble: &mut Option<Trouble>) -> Option<Due> {
    let Some(seen) = REPEATS.get_ptr_mut(key) else {
        // SAFETY: no arguments.
        let (high, low) = unsafe { (bpf_get_prandom_u32(), bpf_get_prandom_u32()) };
        let id = (u64::from(high) << 32) | u64::from(low) | 1;
        let first = Repeats { written_ns: now, count: 0, id };
        // RACE: another CPU may have made it meanwhile; that one stays, with what it has counted.
        let id = match REPEATS.insert(key, &first, NEW_ONLY) {
            Ok(()) => id,
            Err(EEXIST) => 0,
            // No room: repeats of this pair become records of their own.
            Err(_) => {
                *trouble = Some(Trouble::RepeatsFull);
                0
            }
        };
        return Some(Due { repeats: 0, id });
    };
    // SAFETY: a map value; it stays readable while this program runs.
    unsafe {
        if !always && now.wrapping_sub((*seen).written_ns) < REPEAT_WINDOW_NS {
            add_one(&raw mut (*seen).count);
            return None;
        }
        (*seen).written_ns = now;
        Some(Due { repeats: (&raw const (*seen).count).read_volatile(), id: (*seen).id })
    }
}

/// The ring buffer has no room for the record of an attempt: counts it in the pair's entry, and where there is none, as lost.
#[inline(always)]
fn no_room(key: &RepeatKey, refusal: bool) {
    if let Some(seen) = REPEATS.get_ptr_mut(key) {
        // SAFETY: as in `due`.
        unsafe { add_one(&raw mut (*seen).count) };
    } else if refusal {
        count(Counter::LostRefusals);
    } else {
        count(Counter::LostRecords);
    }
}

/// Who did what, where it was seen, and what the tables were.
pub(crate) struct Scene<'a> {
    pub(crate) program: &'static Program,
    pub(crate) hook: Hook,
    pub(crate) subject: &'a Subject,
    pub(crate) tgid: u32,
    pub(crate) task_flags: u32,
    pub(crate) generation: u32,
    pub(crate) near: Near,
}

impl Scene<'_> {
    /// The same on the link that is found from this.
    #[inline(always)]
    pub(crate) fn near(self, near: Near) -> Self {
        Self { near, ..self }
    }
}

/// Writes a record of a decision that says something; the first of a pair at once, its repeats
/// within the window as a number.
#[inline(always)]
pub(crate) fn report(scene: &Scene<'_>, attempt: &Attempt, decision: &Decision, rule: &RuleReport) {
    count(Counter::Judged);
    // A probe is asked by the gate's own command: no attempt to report.
    if matches!(decision.reason, Reason::NotProtected | Reason::Probe) {
        return;
    }
    let refusal = count_refusal(decision.verdict, scene.task_flags);
    // VERIFIER: first, so that it is not remembered longer which way this went.
    if refusal {
        log::blocked(scene, attempt, decision);
    }
    let mut trouble = None;
    write(scene, attempt, decision, rule, refusal, &mut trouble);
    if let Some(trouble) = trouble {
        warn(scene.program, trouble);
    }
}

#[inline(always)]
fn write(scene: &Scene<'_>, attempt: &Attempt, decision: &Decision, rule: &RuleReport, refusal: bool, trouble: &mut Option<Trouble>) {
    let now = now_ns();
    let key = RepeatKey {
        session: scene.subject.session,
        // What a tripped rule refuses is reported pattern by pattern, not pair by pair.
        addr: Addr([attempt.addr.0[0] & rule.host_mask, attempt.addr.0[1] & rule.host_mask]),
        port: attempt.port & rule.port_mask,
        transport: attempt.transport & rule.port_mask as u8,
        verdict: decision.verdict as u8,
        reason: decision.reason as u8,
        packet: u8::from(matches!(scene.hook, Hook::Egress | Hook::Ingress)),
        canary: u8::from(scene.task_flags & TASK_CANARY != 0),
        pad: 0,
    };
    let Some((mut entry, due)) = begin_attempt::<VerdictRecord>(&key, now, rule.answer.count != 0, refusal, trouble) else { return };
    let record = entry.as_mut_ptr();
    // SAFETY: reserved memory of this size, every member of which is written here; one by one,
    // since the whole would not fit on the stack beside the caller's.
    unsafe {
        (*record).header.kind = kind::VERDICT;
        (*record).header.flags = scene.task_flags;
        (*record).header.time_ns = now;
        (*record).header.session = scene.subject.session;
        (*record).header.agent = scene.subject.agent;
        (*record).header.owner = scene.subject.owner;
        (*record).header.tgid = scene.tgid;
        (*record).addr = attempt.addr;
        (*record).zone = decision.zone;
        (*record).gateway = decision.gateway;
        (*record).service = decision.service;
        (*record).repeats = due.repeats;
        (*record).repeats_id = due.id;
        (*record).serial = decision.serial;
        (*record).generation = scene.generation;
        (*record).port = attempt.port;
        (*record).transport = attempt.transport;
        (*record).verdict = decision.verdict as u8;
        (*record).reason = decision.reason as u8;
        (*record).hook = scene.hook as u8;
        (*record).pad = [0; 2];
        (*record).count = rule.answer.count;
        (*record).limit = rule.answer.limit;
        (*record).window_s = rule.answer.window_s;
        (*record).cool_down_s = rule.cool_down_s;
    }
    entry.submit(0);
}

/// As helpers return it.
const EEXIST: i32 = -17;

/// `BPF_NOEXIST` as the insert helpers take it.
pub(crate) const NEW_ONLY: u64 = BPF_NOEXIST as u64;
