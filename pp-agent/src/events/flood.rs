//! Summaries instead of events for a flood. Of each session and kind, a thousand events may come at once and ten a second after that. What
//! exceeds that is counted, and published every ten seconds as one event for each verdict and reason.
//!
//! A summary counts attempts in `repeats`, as the event of a pair does, so that the account of refusals stays exact. It names what its
//! attempts have in common.

use std::collections::BTreeMap;
use std::mem;
use std::time::{Duration, Instant};

use super::refusals::Refusals;
use super::{Attempt, Body, Destination, Event, Kind, ReceiptChange, Verdict, Who};

/// How many events of one session and kind may come at once.
pub(crate) const AT_ONCE: u32 = 1_000;
/// The time after which one more may come.
const ONE_MORE: Duration = Duration::from_millis(100);
/// How often summaries are published.
const EVERY: Duration = Duration::from_secs(10);

/// The limits of every session and kind that made events lately, and what exceeded them.
#[derive(Debug, Default)]
pub(crate) struct Floods {
    sources: BTreeMap<Source, Limit>,
    /// Refusals that wait for their summary.
    held: u64,
    published: Option<Instant>,
}

/// Where events come from. Registrations that are refused name no session.
type Source = (Option<u64>, Kind);

/// The generic cell rate algorithm (ITU-T I.371) for one source.
#[derive(Debug)]
struct Limit {
    /// When as many as at the beginning may come at once again, if none comes until then.
    whole_at: Instant,
    summaries: Vec<Summary>,
}

impl Floods {
    /// Returns the event if it is within the limit of its source. Otherwise it is counted for a summary.
    pub(crate) fn pass(&mut self, event: Event, now: Instant) -> Option<Event> {
        let Some(source) = source(&event) else { return Some(event) };
        let limit = self.sources.entry(source).or_insert_with(|| Limit { whole_at: now, summaries: Vec::new() });
        let whole_at = limit.whole_at.max(now) + ONE_MORE;
        if whole_at.duration_since(now) <= ONE_MORE * AT_ONCE {
            limit.whole_at = whole_at;
            return Some(event);
        }
        self.held += Refusals::of(&event).published();
        match limit.summaries.iter_mut().find(|summary| is_alike(&summary.event, &event)) {
            Some(summary) => summary.add(event),
            None => limit.summaries.push(Summary::of(event)),
        }
        None
    }

    /// Refusals that wait for their summary.
    #[must_use]
    pub(crate) const fn held(&self) -> u64 {
        self.held
    }

    /// The summaries, if it is time to publish them.
    pub(crate) fn due(&mut self, now: Instant) -> Option<Vec<Event>> {
        if self.published.is_some_and(|published| now.saturating_duration_since(published) < EVERY) {
            return None;
        }
        self.published = Some(now);
        let summaries = self.take();
        self.sources.retain(|_, limit| limit.whole_at > now);
        Some(summaries)
    }

    /// Takes the summaries.
    pub(crate) fn take(&mut self) -> Vec<Event> {
        self.held = 0;
        self.sources.values_mut().flat_map(|limit| mem::take(&mut limit.summaries)).map(Summary::finish).collect()
    }
}

/// The source of an event that may come in a flood. Others are never summarised: of each, a session makes one or none. What a receipt
/// allows is for the record.
fn source(event: &Event) -> Option<Source> {
    if event.canary {
        return None;
    }
    match &event.body {
        Body::Verdict(attempt) if !matches!(attempt.verdict, Some(Verdict::Block | Verdict::Observe | Verdict::Off)) => None,
        Body::Verdict(_) | Body::Tamper(_) | Body::FlowEnded(_) | Body::Exec(_) => Some((Some(event.who.session?), event.kind()?)),
        Body::Receipt(_, ReceiptChange::Refused(_)) => Some((None, Kind::Receipt)),
        Body::SessionStart(_)
        | Body::SessionEnd { .. }
        | Body::Receipt(..)
        | Body::Revocation(_)
        | Body::Lost(_)
        | Body::Posture { .. }
        | Body::Policy(_)
        | Body::Protection(_)
        | Body::Neighbour { .. }
        | Body::Unknown => None,
    }
}

/// Whether one summary counts both of these events of one source.
fn is_alike(one: &Event, other: &Event) -> bool {
    match (&one.body, &other.body) {
        (Body::Receipt(_, one), Body::Receipt(_, other)) => one == other,
        (Body::Exec(one), Body::Exec(other)) => (one.verdict, &one.tool, &one.shape) == (other.verdict, &other.tool, &other.shape),
        _ => {
            one.attempt().map(|attempt| (attempt.verdict, attempt.reason))
                == other.attempt().map(|attempt| (attempt.verdict, attempt.reason))
        }
    }
}

/// What exceeded a limit, of one verdict and reason.
#[derive(Debug)]
struct Summary {
    event: Event,
    count: u64,
    last: Option<Destination>,
}

impl Summary {
    fn of(event: Event) -> Self {
        let (count, last) = (count(&event), destination(&event));
        let who = Who { process: None, ..event.who };
        let mut event = Event { who, ..event };
        if let Body::Verdict(attempt) | Body::Tamper(attempt) | Body::FlowEnded(attempt) = &mut event.body {
            // Those are of one attempt.
            attempt.budget = None;
            attempt.command_line_account = None;
            attempt.trip = None;
        }
        Self { event, count, last }
    }

    fn add(&mut self, event: Event) {
        self.count += count(&event);
        self.last = destination(&event).or(self.last);
        self.event.time_ms = self.event.time_ms.max(event.time_ms);
        if let (Body::Verdict(mine) | Body::Tamper(mine) | Body::FlowEnded(mine), Some(other)) = (&mut self.event.body, event.attempt()) {
            keep_common(mine, other);
        }
        self.event.detail = event.detail;
        // Repeats that the kernel counted may come without an agent.
        if self.event.who.agent.is_none() {
            self.event.who = Who { process: None, ..event.who };
        }
    }

    fn finish(self) -> Event {
        let Self { mut event, count, last } = self;
        match &mut event.body {
            Body::Verdict(attempt) | Body::Tamper(attempt) | Body::FlowEnded(attempt) => attempt.repeats = count,
            Body::Exec(tool) => tool.repeats = count,
            _ => {
                let what = event.detail.unwrap_or_default();
                return Event { detail: Some(format!("{what}; {count} of this kind, too many for an event each")), ..event };
            }
        }
        let last = last.map(|to| format!("; the last was at {to}")).unwrap_or_default();
        event.detail(format!("attempts too many for an event each; this one names what they have in common{last}"))
    }
}

/// How many attempts an event reports.
fn count(event: &Event) -> u64 {
    let repeats = event.repeats();
    event.own_attempts(repeats) + repeats
}

fn destination(event: &Event) -> Option<Destination> {
    event.attempt()?.destination
}

/// Removes what two attempts do not have in common.
fn keep_common(mine: &mut Attempt, other: &Attempt) {
    fn common<T: PartialEq>(mine: &mut Option<T>, other: Option<&T>) {
        if mine.as_ref() != other {
            *mine = None;
        }
    }
    common(&mut mine.destination, other.destination.as_ref());
    common(&mut mine.object, other.object.as_ref());
    common(&mut mine.place.zone, other.place.zone.as_ref());
    common(&mut mine.place.gateway, other.place.gateway.as_ref());
    common(&mut mine.place.service, other.place.service.as_ref());
    common(&mut mine.receipt, other.receipt.as_ref());
    common(&mut mine.hook, other.hook.as_ref());
    if mine.attack != other.attack {
        mine.attack.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::{PolicyChange, Tool};

    fn refusal(session: u64, address: &str, port: u16) -> Event {
        let mut event = Event::of_attempt("block", "no_receipt", address, port);
        event.who.session = Some(session);
        event.attempt_mut().place.zone = Some("plant-7".into());
        event
    }

    /// Passes as many refusals of a session; returns how many are events.
    fn flood(floods: &mut Floods, session: u64, count: u32, now: Instant) -> u32 {
        (0..count).map(|at| u32::from(floods.pass(refusal(session, "10.20.4.7", u16::try_from(at % 60_000).unwrap()), now).is_some())).sum()
    }

    #[test]
    fn flood_of_a_session_becomes_a_summary_that_counts_the_rest_of_it() {
        let (mut floods, now) = (Floods::default(), Instant::now());
        assert_eq!(flood(&mut floods, 1, 528_000, now), AT_ONCE);
        assert_eq!(floods.held(), 528_000 - u64::from(AT_ONCE));
        let summaries = floods.due(now).unwrap();
        let [summary] = &summaries[..] else { panic!("{summaries:?}") };
        let refusals = Refusals::of(summary);
        assert_eq!((refusals.with_event, refusals.repeats), (0, 528_000 - u64::from(AT_ONCE)));
        let attempt = summary.attempt().unwrap();
        assert_eq!((attempt.destination, attempt.place.zone.as_deref()), (None, Some("plant-7")));
        assert_eq!((summary.who.session, summary.who.agent.as_deref(), summary.who.process.as_ref()), (Some(1), Some("claude-code"), None));
        assert!(summary.detail.as_ref().unwrap().contains("the last was at 10.20.4.7:"), "{summary:?}");
        assert!(summary.is_of_many() && !summary.is_requestable());
        assert_eq!(floods.held(), 0);
    }

    #[test]
    fn others_are_events_beside_a_flood() {
        let (mut floods, now) = (Floods::default(), Instant::now());
        assert_eq!(flood(&mut floods, 1, 5_000, now), AT_ONCE);
        assert_eq!(flood(&mut floods, 2, AT_ONCE, now), AT_ONCE);
        let mut tamper = refusal(1, "10.20.4.7", 1);
        tamper.body = Body::Tamper(Box::new(tamper.attempt().unwrap().clone()));
        let allowed = Event::of_attempt("allow", "receipt", "10.20.4.7", 502);
        let canary = Event { canary: true, ..refusal(1, "10.20.4.7", 1) };
        for event in [tamper, allowed, canary, Event::new(Body::Policy(PolicyChange::Reloaded), "h", 0)] {
            assert!(floods.pass(event.clone(), now).is_some(), "{event:?}");
        }
    }

    #[test]
    fn ten_a_second_are_events_after_a_flood_and_a_thousand_after_a_pause() {
        let (mut floods, start) = (Floods::default(), Instant::now());
        assert_eq!(flood(&mut floods, 1, 2_000, start), AT_ONCE);
        let later = start + Duration::from_secs(1);
        assert_eq!(flood(&mut floods, 1, 2_000, later), 10);
        assert_eq!(floods.due(later).map(|summaries| summaries.len()), Some(1));
        assert_eq!(floods.due(later + Duration::from_secs(9)), None);
        let pause = later + ONE_MORE * AT_ONCE;
        assert_eq!(flood(&mut floods, 1, 2_000, pause), AT_ONCE);
        // Who is quiet is forgotten.
        assert_eq!(floods.due(pause + ONE_MORE * AT_ONCE).map(|summaries| summaries.len()), Some(1));
        assert!(floods.sources.is_empty());
    }

    #[test]
    fn each_verdict_and_reason_has_its_own_summary() {
        let (mut floods, now) = (Floods::default(), Instant::now());
        let _told = flood(&mut floods, 1, AT_ONCE, now);
        for (verdict, reason, repeats) in [("block", "no_receipt", 0), ("block", "receipt_expired", 4), ("observe", "no_receipt", 0)] {
            let mut event = Event::of_attempt(verdict, reason, "10.20.4.7", 502);
            (event.who.session, event.attempt_mut().repeats) = (Some(1), repeats);
            assert_eq!(floods.pass(event.clone(), now), None);
            // Repeats that the kernel counted, without a process.
            (event.who.process, event.attempt_mut().repeats) = (None, 7);
            assert_eq!(floods.pass(event, now), None);
        }
        assert_eq!(floods.held(), (1 + 7) + (5 + 7));
        let repeats: Vec<_> = floods.take().iter().map(Event::repeats).collect();
        assert_eq!(repeats, [8, 12, 8]);
    }

    #[test]
    fn tools_and_refused_registrations_are_counted_too() {
        let (mut floods, now) = (Floods::default(), Instant::now());
        let tool = |tool: &str| {
            let tool = Tool { verdict: Verdict::Block, tool: Some(tool.into()), shape: None, attack: Vec::new(), repeats: 0 };
            Event::new(Body::Exec(tool), "h", 0).about(refusal(1, "10.20.4.7", 1).who)
        };
        let refused =
            || Event::new(Body::Receipt(None, ReceiptChange::Refused("malformed".into())), "h", 0).detail("not registered: it is bad");
        for _ in 0..AT_ONCE {
            assert!(floods.pass(tool("hydra"), now).is_some() && floods.pass(refused(), now).is_some());
        }
        for event in [tool("hydra"), tool("nmap"), tool("hydra"), refused(), refused()] {
            assert_eq!(floods.pass(event, now), None);
        }
        assert_eq!(floods.held(), 3);
        let summaries = floods.take();
        assert_eq!(summaries.iter().map(|event| Refusals::of(event).repeats).collect::<Vec<_>>(), [0, 2, 1]);
        assert_eq!(summaries[0].detail.as_deref(), Some("not registered: it is bad; 2 of this kind, too many for an event each"));
        let json = serde_json::to_string(&summaries[1]).unwrap();
        assert_eq!(serde_json::from_str::<Event>(&json).unwrap().repeats(), 2);
    }
}
