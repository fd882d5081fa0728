//! Sends events as newline-delimited JSON: stored events, then, on request, every new one until the caller leaves or loses its rights.

use std::ops::RangeInclusive;
use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use pp_common::decide::Verdict;
use serde::Serialize;
use tokio::sync::mpsc::{Sender, channel};
use tokio_stream::wrappers::ReceiverStream;

use super::access::{Action, Standing};
use super::server::Guest;
use super::{ApiError, Governor};
use crate::events::hub::{Follower, Item};
use crate::events::refusals::Missed;
use crate::events::store::{StoreError, Whose};
use crate::events::{self, Event, Filter, Kind};

/// How many stored events to send if the caller names neither `since` nor `limit`.
const DEFAULT_LIMIT: usize = 1_000;
/// Most stored events that `limit` can ask for. `since` has no such bound.
const MAX_LIMIT: usize = 10_000;
/// Stored events read at once.
const PAGE: usize = 256;
/// Lines that may wait for the connection.
const LINES: usize = 16;

type Line = Result<Vec<u8>, std::convert::Infallible>;

/// The answer to `GET /v1/events`.
pub(super) fn respond(governor: Arc<dyn Governor>, guest: Guest, filter: Filter) -> Response {
    guest.seat.streams();
    let (lines, queue) = channel::<Line>(LINES);
    // Follows before it reads stored events, so that none is missed in between.
    let follower = filter.follow.then(|| governor.hub().follow());
    tokio::spawn(async move {
        let stream = Stream { governor, guest, filter, lines };
        stream.run(follower).await;
    });
    let mut response = Response::new(Body::from_stream(ReceiverStream::new(queue)));
    let ndjson = axum::http::HeaderValue::from_static("application/x-ndjson");
    response.headers_mut().insert(axum::http::header::CONTENT_TYPE, ndjson);
    response
}

struct Stream {
    governor: Arc<dyn Governor>,
    guest: Guest,
    filter: Filter,
    lines: Sender<Line>,
}

impl Stream {
    /// `None` ends the stream: the caller left, or may not see more.
    async fn run(mut self, follower: Option<Follower>) -> Option<()> {
        // Events that the queue delivers are left out, although they may be stored by now.
        self.stored(follower.as_ref().map_or(u64::MAX, |follower| follower.first_id() - 1)).await?;
        let mut follower = follower?;
        loop {
            tokio::select! {
                () = self.lines.closed() => return None,
                item = follower.next() => match item? {
                    Item::Missed(ids, missed) => self.catch_up(ids, missed).await?,
                    Item::Event(event) => {
                        if self.filter.wants(&event) {
                            self.send_event(&event).await?;
                        }
                    }
                },
            }
        }
    }

    /// Sends the requested stored events up to this id.
    async fn stored(&mut self, last_id: u64) -> Option<()> {
        if self.filter.since.is_none() || self.filter.limit.is_some() {
            let limit = self.filter.limit.unwrap_or(DEFAULT_LIMIT).min(MAX_LIMIT);
            let filter = Filter { limit: Some(limit), ..self.filter.clone() };
            let (governor, standing) = (Arc::clone(&self.governor), self.standing()?);
            let ids = self.blocking(move || {
                let found = governor.hub().query(&filter, whose(standing), |event| sees(standing, event))?;
                Ok::<_, StoreError>(found.first().zip(found.last()).map(|(first, last)| first.id..=last.id.min(last_id)))
            });
            // Read again page by page, so that a slow reader keeps only one page in memory.
            return match ids.await {
                Some(Some(ids)) => self.pages(ids, true).await.map(drop),
                Some(None) => Some(()),
                None => self.unstored(),
            };
        }
        self.pages(self.filter.first_id()..=last_id, true).await.map(drop)
    }

    /// Continues after an error if nothing can be stored: new events are still sent.
    fn unstored(&self) -> Option<()> {
        self.governor.hub().problem().map(drop)
    }

    /// Sends the stored events of these ids. Returns what the events report that were read: those that may be sent if `narrow`, else all of
    /// these ids. An error of the disk ends the pages, `None` the stream.
    async fn pages(&mut self, ids: RangeInclusive<u64>, narrow: bool) -> Option<Missed> {
        let (mut next_id, last_id) = (Some(*ids.start()).filter(|first_id| *first_id <= *ids.end()), *ids.end());
        let mut found = Missed::default();
        while let Some(from_id) = next_id {
            let (governor, filter) = (Arc::clone(&self.governor), self.filter.clone());
            let whose = if narrow { Some(whose(self.standing()?)) } else { None };
            let page = self.blocking(move || governor.hub().page(from_id..=last_id, PAGE, &filter, whose)).await;
            let Some(page) = page else { return self.unstored().map(|()| found) };
            for event in &page.events {
                self.send_event(event).await?;
            }
            found = found.and(page.found);
            next_id = page.next_id;
        }
        Some(found)
    }

    /// Sends from the store what did not fit into the queue, and says how much of it is not stored.
    async fn catch_up(&mut self, ids: RangeInclusive<u64>, missed: Missed) -> Option<()> {
        let gone = missed.without(self.pages(ids, false).await?);
        for line in lost(gone) {
            self.send(line).await?;
        }
        Some(())
    }

    async fn send_event(&mut self, event: &Event) -> Option<()> {
        if !sees(self.standing()?, event) {
            return Some(());
        }
        let line = serde_json::to_vec(event).ok()?;
        self.send(line).await
    }

    async fn send(&self, mut line: Vec<u8>) -> Option<()> {
        line.push(b'\n');
        self.lines.send(Ok(line)).await.ok()
    }

    /// Runs blocking work on another thread when it is the caller's turn; `None` if it failed.
    async fn blocking<T: Send + 'static, E: std::fmt::Display + Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, E> + Send + 'static,
    ) -> Option<T> {
        let turn = self.guest.seat.any_turn().await?;
        let work = move || {
            let _turn = turn;
            work()
        };
        match tokio::task::spawn_blocking(work).await {
            Ok(Ok(value)) => Some(value),
            Ok(Err(error)) => {
                tracing::error!("{error}");
                None
            }
            Err(error) => {
                tracing::error!("events: {error}");
                None
            }
        }
    }

    /// The caller's standing now, if it may still read events.
    fn standing(&self) -> Option<Standing> {
        let standing = self.guest.peer.standing(self.governor.as_ref());
        standing.may(Action::ReadEvents).then_some(standing)
    }
}

/// A line that says what a follower missed.
#[derive(Serialize)]
struct Lost {
    count: u64,
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    verdict: Option<&'static str>,
}

/// The lines for what a follower missed. Refusals are counted with their repeats, everything else by events.
fn lost(missed: Missed) -> Vec<Vec<u8>> {
    let lines = [(missed.refusals, Some(Verdict::Block.name())), (missed.others, None)].into_iter().filter(|(count, _)| *count > 0);
    lines.filter_map(|(count, verdict)| serde_json::to_vec(&Lost { count, kind: Kind::Lost.name(), verdict }).ok()).collect()
}

/// Whose events a caller of this standing may see, so that only those are read. [`sees`] decides on each.
#[must_use]
pub(crate) fn whose(standing: Standing) -> Whose {
    match standing {
        Standing::Operator => Whose::All,
        Standing::User(uid) => Whose::User(uid),
        Standing::Agent(Some(session)) => Whose::Session(session),
        Standing::Agent(None) => Whose::Nobody,
    }
}

/// Whether a caller of this standing may see this event.
#[must_use]
pub(crate) fn sees(standing: Standing, event: &Event) -> bool {
    match standing {
        Standing::Operator => true,
        Standing::User(uid) => match &event.who.owner {
            Some(owner) => owner.uid == uid,
            None => matches!(event.body, events::Body::Lost(_)),
        },
        Standing::Agent(session) => session.is_some() && event.who.session == session,
    }
}

/// Checks a filter before an answer starts.
///
/// # Errors
/// 400: `since` cannot be read.
pub(crate) fn check(filter: &Filter) -> Result<(), ApiError> {
    if filter.is_valid() {
        return Ok(());
    }
    Err(ApiError::bad_request("since: neither an event id nor an RFC 3339 instant such as 2026-11-22T08:00:00Z"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::{Body, Loss, Owner, PolicyChange};

    #[test]
    fn user_sees_own_sessions_events_and_losses_only() {
        let mut event = Event::of_attempt("block", "no_receipt", "10.20.4.7", 502);
        event.who.owner = Some(Owner { uid: 1000, name: None });
        assert!(sees(Standing::User(1000), &event) && sees(Standing::Operator, &event));
        assert!(!sees(Standing::User(1001), &event));
        let of = |body| Event::new(body, "h", 0);
        assert!(!sees(Standing::User(1000), &of(Body::Policy(PolicyChange::Reloaded))));
        assert!(sees(Standing::User(1000), &of(Body::Lost(Loss { count: 1, refusals: false, not_stored: false }))));
    }

    #[test]
    fn only_what_a_caller_may_see_is_read_and_nothing_of_it_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let hub = crate::events::hub::Hub::new(crate::events::store::Store::open(&dir.path().join("events.redb"), "boot"), "h");
        let attempt = Event::of_attempt("block", "no_receipt", "10.20.4.7", 502);
        for session in [None, Some(0xabc), Some(0xabd)] {
            for owner in [None, Some(1000), Some(1001)] {
                let who = events::Who { session, owner: owner.map(|uid| Owner { uid, name: None }), ..events::Who::default() };
                let tried = || Box::new(attempt.attempt().unwrap().clone());
                let bodies = [
                    Body::Verdict(tried()),
                    Body::Tamper(tried()),
                    Body::FlowEnded(tried()),
                    Body::SessionStart(None),
                    Body::SessionEnd { released: true },
                    Body::SessionEnd { released: false },
                    Body::Policy(PolicyChange::Reloaded),
                    Body::Lost(Loss { count: 1, refusals: true, not_stored: false }),
                ];
                for body in bodies {
                    let event = Event::new(body, "h", 0).about(who.clone());
                    let mut canary = event.clone();
                    canary.canary = true;
                    assert!(hub.publish(canary).is_some() && hub.publish(event).is_some());
                }
            }
        }
        let agents = [Some(0xabc), Some(0xabd), Some(0xabe), None].map(Standing::Agent);
        for standing in agents.into_iter().chain([Standing::Operator, Standing::User(1000), Standing::User(7)]) {
            for (kind, session) in [(None, None), (Some("verdict"), None), (None, Some("0000000000000abc")), (Some("tamper"), Some("x"))] {
                let filter = Filter { kind: kind.map(str::to_owned), session: session.map(str::to_owned), ..Filter::default() };
                let seen = |whose| hub.query(&filter, whose, |event| sees(standing, event)).unwrap();
                assert_eq!(seen(whose(standing)), seen(Whose::All), "{standing:?}: {filter:?}");
            }
        }
    }

    #[test]
    fn missed_refusals_and_events_are_counted_separately() {
        let text = |missed| lost(missed).into_iter().map(|line| String::from_utf8(line).unwrap()).collect::<Vec<_>>();
        assert_eq!(text(Missed::default()), Vec::<String>::new());
        let both = [r#"{"count":41,"kind":"lost","verdict":"block"}"#, r#"{"count":2,"kind":"lost"}"#];
        assert_eq!(text(Missed { refusals: 41, others: 2 }), both);
    }

    #[test]
    fn agent_of_an_unknown_session_sees_nothing() {
        let mut event = Event::of_attempt("block", "no_receipt", "10.20.4.7", 502);
        assert!(!sees(Standing::Agent(None), &event));
        assert!(sees(Standing::Agent(Some(0xabc)), &event));
        assert!(!sees(Standing::Agent(Some(0xabd)), &event));
        event.who.session = None;
        assert!(!sees(Standing::Agent(None), &event));
    }
}
