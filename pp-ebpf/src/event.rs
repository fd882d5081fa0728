//! Telling the daemon: verdict records, and counters where a record is too much.

use core::arch::asm;

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_NOEXIST},
    helpers::bpf_ktime_get_boot_ns,
    maps::ring_buf::RingBufEntry,
};
use pp_common::{
    abi::{Counter, REPEAT_WINDOW_NS, RepeatKey, Repeats},
    decide::{Attempt, Decision, Reason, Subject, Verdict},
    dest::Addr,
    record::{Hook, VerdictRecord, kind},
};

use crate::{
    behaviour::Told,
    maps::{COUNTS, EVENTS, REPEATS},
};

/// Adds one to a counter.
#[inline(always)]
pub(crate) fn count(counter: Counter) {
    if let Some(value) = COUNTS.get_ptr_mut(counter as u32) {
        // SAFETY: this CPU's own element, but a packet's hook may interrupt a call's between its load and its store.
        unsafe { asm!("lock *(u64 *)({} + 0) += {}", in(reg) value, in(reg) 1_u64, options(nostack)) };
    }
}

/// Boot time, nanoseconds.
#[inline(always)]
pub(crate) fn now_ns() -> u64 {
    // SAFETY: no arguments, always valid.
    unsafe { bpf_ktime_get_boot_ns() }
}

/// Room for a record; `None`: it is lost, and counted.
#[inline(always)]
pub(crate) fn begin_record<T: 'static>() -> Option<RingBufEntry<T>> {
    let Some(entry) = EVENTS.reserve_untyped::<T>(0) else {
        count(Counter::LostRecords);
        return None;
    };
    count(Counter::Written);
    Some(entry)
}

/// Who did what, where it was seen, and what the tables were.
pub(crate) struct Scene<'a> {
    pub(crate) hook: Hook,
    pub(crate) subject: &'a Subject,
    pub(crate) tgid: u32,
    pub(crate) task_flags: u32,
    pub(crate) generation: u32,
}

/// Writes a record of a decision that says something; the first of a pair at once, its repeats
/// within the window as a number.
#[inline(always)]
pub(crate) fn report(scene: &Scene<'_>, attempt: &Attempt, decision: &Decision, told: &Told) {
    count(Counter::Judged);
    // A probe is asked by the gate's own command: no attempt to tell of.
    if matches!(decision.reason, Reason::NotProtected | Reason::Probe) {
        return;
    }
    if matches!(decision.verdict, Verdict::Block) {
        count(Counter::Blocked);
    }
    write(scene, attempt, decision, told);
}

#[inline(always)]
fn write(scene: &Scene<'_>, attempt: &Attempt, decision: &Decision, told: &Told) {
    let now = now_ns();
    let key = RepeatKey {
        session: scene.subject.session,
        // What a tripped rule refuses is told pattern by pattern, not pair by pair.
        addr: Addr([attempt.addr.0[0] & told.host_mask, attempt.addr.0[1] & told.host_mask]),
        port: attempt.port & told.port_mask,
        transport: attempt.transport & told.port_mask as u8,
        verdict: decision.verdict as u8,
        reason: decision.reason as u8,
        packet: u8::from(matches!(scene.hook, Hook::Egress | Hook::Ingress)),
        pad: [0; 2],
    };
    let mut repeats = 0;
    if let Some(seen) = REPEATS.get_ptr_mut(&key) {
        // SAFETY: a map value; a lost update of the count is a repeat not counted.
        let seen = unsafe { &mut *seen };
        if told.answer.count == 0 && now.wrapping_sub(seen.written_ns) < REPEAT_WINDOW_NS {
            seen.count += 1;
            return;
        }
        repeats = seen.count;
        seen.written_ns = now;
        seen.count = 0;
    } else {
        let first = Repeats { written_ns: now, count: 0 };
        if REPEATS.insert(&key, &first, u64::from(BPF_ANY)).is_err() {
            // Repeats of this pair become records of their own, which is harmless.
            count(Counter::ReadErrors);
        }
    }
    let Some(mut entry) = begin_record::<VerdictRecord>() else { return };
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
        (*record).repeats = repeats;
        (*record).serial = decision.serial;
        (*record).generation = scene.generation;
        (*record).port = attempt.port;
        (*record).transport = attempt.transport;
        (*record).verdict = decision.verdict as u8;
        (*record).reason = decision.reason as u8;
        (*record).hook = scene.hook as u8;
        (*record).pad = [0; 2];
        (*record).count = told.answer.count;
        (*record).limit = told.answer.limit;
        (*record).window_s = told.answer.window_s;
        (*record).cool_down_s = told.cool_down_s;
    }
    entry.submit(0);
}

/// `BPF_NOEXIST` as the insert helpers take it.
pub(crate) const NEW_ONLY: u64 = BPF_NOEXIST as u64;
