//! Selects events.

use serde::Deserialize;

use super::build::session_text;
use super::{Body, Event};
use crate::clock::parse_rfc3339;

/// Which events a caller wants. Kinds and verdicts are text, since the store may have those of another version.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Filter {
    /// Whether to wait for new events and send them.
    #[serde(default)]
    pub(crate) follow: bool,
    /// Only this verdict.
    pub(crate) verdict: Option<String>,
    /// Only this kind.
    pub(crate) kind: Option<String>,
    /// Only this agent.
    pub(crate) agent: Option<String>,
    /// Only this session.
    pub(crate) session: Option<String>,
    /// Only after this id, or from this RFC 3339 instant on.
    pub(crate) since: Option<String>,
    /// At most this many stored events, the newest.
    pub(crate) limit: Option<usize>,
    /// Only attempts that were refused or would have been. No caller can ask for it.
    #[serde(skip)]
    pub(crate) refusals: bool,
}

impl Filter {
    /// The first id wanted, from `since`.
    #[must_use]
    pub(crate) fn first_id(&self) -> u64 {
        self.since.as_ref().and_then(|since| since.parse::<u64>().ok()).map_or(0, |id| id.saturating_add(1))
    }

    /// Whether `since` can be read: a number, or an RFC 3339 instant.
    #[must_use]
    pub(crate) fn is_valid(&self) -> bool {
        self.since.as_ref().is_none_or(|since| since.parse::<u64>().is_ok() || parse_rfc3339(since).is_some())
    }

    /// Whether this event is wanted. A loss that may be of any session is always wanted.
    #[must_use]
    pub(crate) fn wants(&self, event: &Event) -> bool {
        if event.id < self.first_id() || !self.is_recent(event) || self.refusals && !event.is_refusal() {
            return false;
        }
        let fits = |wanted: &Option<String>, value: Option<&str>| wanted.as_deref().is_none_or(|wanted| value == Some(wanted));
        matches!(event.body, Body::Lost(_)) && event.who.session.is_none() && self.kind.is_none()
            || fits(&self.verdict, event.verdict_name())
                && fits(&self.kind, Some(event.kind_name()))
                && fits(&self.agent, event.who.agent.as_deref())
                && (self.session.is_none() || fits(&self.session, event.who.session.map(session_text).as_deref()))
    }

    fn is_recent(&self, event: &Event) -> bool {
        let since = self.since.as_deref().filter(|since| since.parse::<u64>().is_err());
        since.and_then(parse_rfc3339).is_none_or(|since_ms| event.time_ms >= since_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::Loss;

    fn block(id: u64) -> Event {
        Event { id, ..Event::of_attempt("block", "no_receipt", "10.20.4.7", 502) }
    }

    #[test]
    fn filter_takes_only_what_it_names() {
        let wanted = Filter { verdict: Some("block".into()), since: Some("4".into()), ..Filter::default() };
        assert!(wanted.wants(&block(5)) && !wanted.wants(&block(4)));
        let other = Filter { agent: Some("goose".into()), ..Filter::default() };
        assert!(!other.wants(&block(5)));
        let session = |session: &str| Filter { session: Some(session.into()), ..Filter::default() };
        assert!(session("0000000000000abc").wants(&block(5)) && !session("abc").wants(&block(5)));
    }

    #[test]
    fn filter_takes_what_another_version_wrote_by_its_name() {
        let json = serde_json::to_string(&block(5)).unwrap();
        let event: Event = serde_json::from_str(&json.replace("\"kind\":\"verdict\"", "\"kind\":\"teleport\"")).unwrap();
        let kind = |kind: &str| Filter { kind: Some(kind.into()), ..Filter::default() };
        assert!(kind("teleport").wants(&event) && !kind("verdict").wants(&event) && !kind("unknown").wants(&event));
        let event: Event = serde_json::from_str(&json.replace("\"block\"", "\"maybe\"")).unwrap();
        let verdict = |verdict: &str| Filter { verdict: Some(verdict.into()), ..Filter::default() };
        assert!(verdict("maybe").wants(&event) && !verdict("block").wants(&event));
    }

    #[test]
    fn loss_passes_every_filter_but_one_of_kind() {
        let lost = Event::new(Body::Lost(Loss { count: 1, refusals: false, not_stored: false }), "h", 0);
        assert!(Filter { agent: Some("goose".into()), ..Filter::default() }.wants(&lost));
        assert!(!Filter { kind: Some("receipt".into()), ..Filter::default() }.wants(&lost));
    }

    #[test]
    fn since_takes_an_instant_too() {
        let wanted = |since: &str| Filter { since: Some(since.into()), ..Filter::default() };
        assert!(!wanted("1970-01-01T00:00:02.000Z").wants(&block(5)));
        assert!(wanted("1970-01-01T00:00:01.000Z").wants(&block(5)));
        assert!(!wanted("yesterday").is_valid() && wanted("7").is_valid());
    }
}
