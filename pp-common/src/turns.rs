//! Guesses inside a connection: how often a session has asked anew on a flow to
//! a gateway, and how many bytes it has sent. A bound on guesses and not a
//! count of them: TLS alone costs two or three turns, and HTTP/2 puts many
//! requests into one.
//!
//! A turn begins with the first payload that is sent after payload came in, and
//! with the first of all. Segments without payload (bare acknowledgements) are
//! none. Counted is what goes on the wire: a retransmission counts its bytes
//! again, and a turn again where an answer came in before it; a batch that the
//! kernel cuts later (GSO) is one payload of its whole length. Both can only
//! make the bound tighter.

use crate::decide::{Reason, transport};

/// Turns on one flow to a gateway, unless policy says otherwise.
pub const DEFAULT_MAX_TURNS: u32 = 300;
/// Bytes sent on one flow to a gateway, unless policy says otherwise.
pub const DEFAULT_MAX_BYTES_OUT: u64 = 256 * 1024;
/// Most entries of limits: gateways and receipts, counting two generations.
pub const MAX_TURN_LIMITS: u32 = 2 * (8_192 + 4_096);

/// Which way a payload went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the session to the remote end.
    Out,
    /// To the session.
    In,
}

/// What a socket's mark remembers of its conversation with a gateway. Each
/// member is written for one way only, so that two CPUs do not undo each
/// other's counts.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TurnCount {
    /// Payload bytes sent.
    pub bytes_out: u64,
    /// Turns so far.
    pub turns: u32,
    /// Payloads that came in.
    pub answers: u32,
    /// The value of `answers` when the last payload was sent.
    pub answers_seen: u32,
    /// The reason code for which the flow was cut; zero: it was not.
    pub over: u32,
}

/// Key of the limits of a gateway or of a receipt.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct LimitKey {
    /// A gateway's name, or a receipt's serial.
    pub of: u64,
    /// Generation of the tables.
    pub generation: u32,
    /// [`LIMIT_OF_GATEWAY`] or [`LIMIT_OF_RECEIPT`].
    pub kind: u32,
}

/// The key's `of` is a gateway.
pub const LIMIT_OF_GATEWAY: u32 = 0;
/// The key's `of` is a receipt.
pub const LIMIT_OF_RECEIPT: u32 = 1;

/// How far a conversation may go.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most payload bytes sent.
    pub max_bytes_out: u64,
    /// Most turns.
    pub max_turns: u32,
    /// Zero.
    pub pad: u32,
}

impl Limits {
    /// No limit at all.
    pub const NONE: Self = Self { max_bytes_out: u64::MAX, max_turns: u32::MAX, pad: 0 };

    /// The stricter of both, in each respect.
    #[must_use]
    #[inline(always)]
    pub const fn and(self, other: Self) -> Self {
        Self {
            max_bytes_out: if self.max_bytes_out < other.max_bytes_out { self.max_bytes_out } else { other.max_bytes_out },
            max_turns: if self.max_turns < other.max_turns { self.max_turns } else { other.max_turns },
            pad: 0,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_bytes_out: DEFAULT_MAX_BYTES_OUT, max_turns: DEFAULT_MAX_TURNS, pad: 0 }
    }
}

/// Takes one packet of an allowed flow into account. `None`: it may pass.
/// Otherwise the flow is cut, this packet and every later one in both ways,
/// for the reason that is returned.
#[must_use]
#[inline(always)]
pub fn charge_packet(turn_count: &mut TurnCount, limits: &Limits, direction: Direction, payload: u32) -> Option<Reason> {
    if turn_count.over != 0 {
        return Some(cut_for(turn_count.over));
    }
    if payload == 0 {
        return None;
    }
    if matches!(direction, Direction::In) {
        turn_count.answers = turn_count.answers.wrapping_add(1);
        return None;
    }
    let answers = turn_count.answers;
    let begins = turn_count.turns == 0 || answers != turn_count.answers_seen;
    let turns = turn_count.turns.saturating_add(begins as u32);
    let bytes_out = turn_count.bytes_out.saturating_add(payload as u64);
    if turns > limits.max_turns {
        turn_count.over = Reason::TurnsExhausted as u32;
        return Some(Reason::TurnsExhausted);
    }
    if bytes_out > limits.max_bytes_out {
        turn_count.over = Reason::BytesExhausted as u32;
        return Some(Reason::BytesExhausted);
    }
    turn_count.turns = turns;
    turn_count.bytes_out = bytes_out;
    turn_count.answers_seen = answers;
    None
}

/// The reason that a cut flow's code stands for.
#[must_use]
#[inline(always)]
pub const fn cut_for(over: u32) -> Reason {
    if over == Reason::BytesExhausted as u32 { Reason::BytesExhausted } else { Reason::TurnsExhausted }
}

/// Bytes of the transport header whose thirteenth byte is `offset_byte` (TCP's
/// data offset, RFC 9293, 3.1).
#[must_use]
#[inline(always)]
pub const fn header_len(protocol: u8, offset_byte: u8) -> u32 {
    match protocol {
        transport::TCP => (offset_byte >> 4) as u32 * 4,
        transport::UDP | transport::UDPLITE => 8,
        transport::SCTP => 12,
        _ => 0,
    }
}

const _: () = {
    assert!(size_of::<TurnCount>() == 8 + 4 * 4);
    assert!(size_of::<LimitKey>() == 8 + 2 * 4);
    assert!(size_of::<Limits>() == 8 + 2 * 4);
};

#[cfg(feature = "user")]
mod pod {
    // SAFETY: repr(C) of integers with named padding (the assertions above), so
    // every byte is initialised and every bit pattern is a value.
    unsafe impl aya::Pod for super::LimitKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Limits {}
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { max_bytes_out: 1_000, max_turns: 3, pad: 0 };

    fn ask(turn_count: &mut TurnCount) -> Option<Reason> {
        charge_packet(turn_count, &LIMITS, Direction::Out, 10)
    }

    fn answer(turn_count: &mut TurnCount) -> Option<Reason> {
        charge_packet(turn_count, &LIMITS, Direction::In, 500)
    }

    #[test]
    fn exactly_as_many_requests_pass_as_there_are_turns() {
        let mut turn_count = TurnCount::default();
        for turn in 1..=LIMITS.max_turns {
            assert_eq!(ask(&mut turn_count), None, "{turn}");
            assert_eq!(answer(&mut turn_count), None, "{turn}");
            assert_eq!(turn_count.turns, turn);
        }
        assert_eq!(ask(&mut turn_count), Some(Reason::TurnsExhausted));
        assert_eq!(turn_count.turns, LIMITS.max_turns);
    }

    #[test]
    fn cut_flow_is_cut_in_both_ways_and_for_good() {
        let mut turn_count = TurnCount { over: Reason::BytesExhausted as u32, ..TurnCount::default() };
        assert_eq!(answer(&mut turn_count), Some(Reason::BytesExhausted));
        assert_eq!(ask(&mut turn_count), Some(Reason::BytesExhausted));
        assert_eq!(charge_packet(&mut turn_count, &Limits::NONE, Direction::Out, 0), Some(Reason::BytesExhausted));
    }

    #[test]
    fn request_in_several_segments_is_one_turn() {
        let mut turn_count = TurnCount::default();
        for _ in 0..20 {
            assert_eq!(ask(&mut turn_count), None);
        }
        assert_eq!((turn_count.turns, turn_count.bytes_out), (1, 200));
    }

    #[test]
    fn bare_acknowledgements_are_no_turns() {
        let mut turn_count = TurnCount::default();
        for _ in 0..20 {
            assert_eq!(ask(&mut turn_count).or(answer(&mut turn_count)).or(answer(&mut turn_count)), None);
            for direction in [Direction::Out, Direction::In] {
                assert_eq!(charge_packet(&mut turn_count, &LIMITS, direction, 0), None);
            }
            if turn_count.turns == LIMITS.max_turns {
                break;
            }
        }
        assert_eq!(turn_count.turns, LIMITS.max_turns);
    }

    #[test]
    fn server_that_speaks_first_costs_no_turn() {
        let mut turn_count = TurnCount::default();
        assert_eq!(answer(&mut turn_count).or(answer(&mut turn_count)), None);
        assert_eq!(ask(&mut turn_count), None);
        assert_eq!(turn_count.turns, 1);
    }

    #[test]
    fn last_byte_passes_and_the_next_does_not() {
        let mut turn_count = TurnCount::default();
        assert_eq!(charge_packet(&mut turn_count, &LIMITS, Direction::Out, 1_000), None);
        assert_eq!(charge_packet(&mut turn_count, &LIMITS, Direction::Out, 1), Some(Reason::BytesExhausted));
        assert_eq!(turn_count.bytes_out, 1_000);
    }

    #[test]
    fn counters_at_their_ends_do_not_begin_anew() {
        let mut turn_count = TurnCount { turns: u32::MAX, bytes_out: u64::MAX, answers: u32::MAX, ..TurnCount::default() };
        assert_eq!(answer(&mut turn_count), None);
        assert_eq!(turn_count.answers, 0);
        turn_count.answers_seen = u32::MAX;
        assert_eq!(
            charge_packet(&mut turn_count, &Limits { max_bytes_out: u64::MAX, ..LIMITS }, Direction::Out, 1),
            Some(Reason::TurnsExhausted)
        );
    }

    #[test]
    fn stricter_of_two_limits_holds() {
        let both = LIMITS.and(Limits { max_bytes_out: 5, max_turns: 9, pad: 0 });
        assert_eq!(both, Limits { max_bytes_out: 5, max_turns: 3, pad: 0 });
        assert_eq!(LIMITS.and(Limits::NONE), LIMITS);
    }

    #[test]
    fn payload_begins_after_the_transport_header() {
        assert_eq!(header_len(transport::TCP, 0x80), 32);
        assert_eq!(header_len(transport::UDP, 0xff), 8);
    }

    /// A model that keeps the whole conversation and counts its changes of direction.
    #[test]
    fn turns_are_the_changes_of_direction_of_any_conversation() {
        let mut seed = 0x9e37_79b9_u32;
        for _ in 0..2_000 {
            let (mut turn_count, mut turns, mut bytes, mut last) = (TurnCount::default(), 0, 0, Direction::In);
            for _ in 0..24 {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let direction = if seed & 0x8000 == 0 { Direction::Out } else { Direction::In };
                let payload = (seed >> 16) % 60;
                let cut = charge_packet(&mut turn_count, &LIMITS, direction, payload);
                if payload > 0 {
                    let begins = matches!((last, direction), (Direction::In, Direction::Out));
                    last = direction;
                    if matches!(direction, Direction::Out) {
                        turns += u32::from(begins);
                        bytes += u64::from(payload);
                    }
                }
                let over = turns > LIMITS.max_turns || bytes > LIMITS.max_bytes_out;
                assert_eq!(cut.is_some(), over);
                if over {
                    break;
                }
                assert_eq!((turn_count.turns, turn_count.bytes_out), (turns, bytes));
            }
        }
    }
}
