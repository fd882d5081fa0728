//! Lines for the daemon's log, in the format of aya-log, which reads them there.
//!
//! A program copies a line that the compiler made and fills in what differs. aya-log's macros would encode it where it is written instead.
//! VERIFIER: "combined stack size of 2 calls is 576. Too large", and before 6.2 a call of a function of ours makes every scalar precise.

#![expect(clippy::cast_possible_truncation, reason = "a line is shorter than 256 bytes")]

use core::{hint::black_box, mem::offset_of};

use aya_log_common::{ArgumentKind, DisplayHint, Level, RecordFieldKind};

use crate::decide::{Attempt, Reason, Subject};
use crate::trouble::{TROUBLES, Trouble};

/// Most bytes of a program's name. Shorter ones are filled up, so that all lines have their parts at the same places.
const NAME_LEN: usize = 16;
/// Words of a text; shorter ones end in spaces.
const TEXT: usize = 8;
/// Words of the name of a reason, likewise.
const REASON: usize = 3;
/// Room for codes of reasons, a power of two above the greatest.
const REASONS: usize = 64;

/// That something is wrong in a program.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Warning {
    program: WarningProgram,
    text: [u64; TEXT],
}

/// The beginning of a program's warnings.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug)]
pub struct WarningProgram([u8; 48]);

/// That an attempt or a packet was blocked. What is not said in each comes before what is.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug)]
pub struct Blocked {
    before_addr: [u8; 64],
    addr: [u64; 2],
    before_port: [u8; 12],
    port: u16,
    before_transport: [u8; 18],
    transport: u8,
    before_session: [u8; 23],
    session: u64,
    before_process: [u8; 16],
    process: u32,
    before_reason: [u8; 20],
    reason: [u64; REASON],
}

impl WarningProgram {
    /// Of the program of this name.
    #[must_use]
    pub const fn new(name: &str) -> Self {
        let (line, text_at) = Line::new(name, Level::Warn).text(&[b' '; TEXT * 8]);
        assert!(text_at == offset_of!(Warning, text) && line.len == size_of::<Warning>());
        Self(line.finish().part(0))
    }
}

impl Warning {
    /// Writes what a program says of the trouble with this code.
    ///
    /// # Safety
    ///
    /// `into` must be valid for writes.
    #[inline(always)]
    pub unsafe fn write(into: *mut Self, program: &WarningProgram, trouble: usize) {
        let text = &TEXTS[trouble & (TROUBLES as usize - 1)];
        // SAFETY: the caller's.
        unsafe {
            copy(&raw mut (*into).program, program);
            copy(&raw mut (*into).text, text);
        }
    }
}

impl Blocked {
    /// What the program of this name says of each.
    #[must_use]
    pub const fn new(name: &str) -> Self {
        let (line, _) = Line::new(name, Level::Debug).text(b"blocked: ");
        let (line, addr_at) = line.hint(DisplayHint::Ip).argument(ArgumentKind::ArrU8Len16, &[0; 16]);
        let (line, _) = line.text(b" port ");
        let (line, port_at) = line.argument(ArgumentKind::U16, &[0; 2]);
        let (line, _) = line.text(b", transport ");
        let (line, transport_at) = line.argument(ArgumentKind::U8, &[0]);
        let (line, _) = line.text(b", of session ");
        let (line, session_at) = line.hint(DisplayHint::LowerHex).argument(ArgumentKind::U64, &[0; 8]);
        let (line, _) = line.text(b", process ");
        let (line, process_at) = line.argument(ArgumentKind::U32, &[0; 4]);
        let (line, _) = line.text(b", with reason ");
        let (line, reason_at) = line.text(&[b' '; REASON * 8]);
        assert!(addr_at == offset_of!(Self, addr) && port_at == offset_of!(Self, port) && transport_at == offset_of!(Self, transport));
        assert!(session_at == offset_of!(Self, session) && process_at == offset_of!(Self, process));
        assert!(reason_at == offset_of!(Self, reason) && line.len == size_of::<Self>());
        let line = line.finish();
        Self {
            before_addr: line.part(0),
            addr: [0; 2],
            before_port: line.part(offset_of!(Self, before_port)),
            port: 0,
            before_transport: line.part(offset_of!(Self, before_transport)),
            transport: 0,
            before_session: line.part(offset_of!(Self, before_session)),
            session: 0,
            before_process: line.part(offset_of!(Self, before_process)),
            process: 0,
            before_reason: line.part(offset_of!(Self, before_reason)),
            reason: [0; REASON],
        }
    }

    /// Writes what is said of this attempt.
    ///
    /// # Safety
    ///
    /// `into` must be valid for writes.
    #[inline(always)]
    pub unsafe fn write(&self, into: *mut Self, attempt: &Attempt, subject: &Subject, process: u32, reason: Reason) {
        // VERIFIER: opaque, or the compiler drops the bound, knowing the codes.
        let reason = &NAMES[black_box(reason as usize) & (REASONS - 1)];
        // SAFETY: the caller's.
        unsafe {
            copy(into, self);
            (*into).addr = attempt.addr.0;
            (*into).port = attempt.port;
            (*into).transport = attempt.transport;
            (*into).session = subject.session;
            (*into).process = process;
            copy(&raw mut (*into).reason, reason);
        }
    }
}

/// Copies word by word: the whole would go by way of the stack, where there is no room.
///
/// # Safety
///
/// `into` must be valid for writes.
#[inline(always)]
unsafe fn copy<T: Copy>(into: *mut T, from: &T) {
    const { assert!(align_of::<T>() == 8 && size_of::<T>().is_multiple_of(8)) };
    let (into, from) = (into.cast::<u64>(), core::ptr::from_ref(from).cast::<u64>());
    for i in 0..size_of::<T>() / 8 {
        // SAFETY: within both, whose every byte is a member's.
        unsafe { into.add(i).write_volatile(from.add(i).read_volatile()) };
    }
}

/// The texts of troubles, by code.
static TEXTS: [[u64; TEXT]; TROUBLES as usize] = {
    let mut texts = [[0; TEXT]; TROUBLES as usize];
    let mut i = 0;
    while i < Trouble::ALL.len() {
        texts[Trouble::ALL[i] as usize] = padded(Trouble::ALL[i].text());
        i += 1;
    }
    texts
};

/// The names of reasons, by code.
static NAMES: [[u64; REASON]; REASONS] = {
    let mut names = [[0; REASON]; REASONS];
    let mut i = 0;
    while i < Reason::ALL.len() {
        names[Reason::ALL[i] as usize] = padded(Reason::ALL[i].name());
        i += 1;
    }
    names
};

/// A text with spaces behind it, as words.
const fn padded<const WORDS: usize>(text: &str) -> [u64; WORDS] {
    let text = text.as_bytes();
    assert!(text.len() <= WORDS * 8, "the text is too long for its line");
    let mut words = [0_u64; WORDS];
    let mut at = 0;
    while at < WORDS * 8 {
        let byte = if at < text.len() { text[at] } else { b' ' };
        let mut word = words[at / 8].to_ne_bytes();
        word[at % 8] = byte;
        words[at / 8] = u64::from_ne_bytes(word);
        at += 1;
    }
    words
}

/// A line that is being encoded: its length, then fields.
struct Line {
    bytes: [u8; size_of::<Blocked>()],
    len: usize,
    arguments: u32,
    arguments_at: usize,
}

impl Line {
    const fn new(program: &str, level: Level) -> Self {
        assert!(program.len() <= NAME_LEN, "the name of the program is too long for its lines");
        // What fills the name up is the name of the module, which nobody reads.
        let (_, filler) = [b' '; NAME_LEN].split_at(program.len());
        let line = Self { bytes: [0; size_of::<Blocked>()], len: 2, arguments: 0, arguments_at: 0 };
        let (line, _) = line.field(RecordFieldKind::Target as u8, program.as_bytes());
        let (line, _) = line.field(RecordFieldKind::Level as u8, &[level as u8]);
        let (line, _) = line.field(RecordFieldKind::Module as u8, filler);
        let (line, _) = line.field(RecordFieldKind::File as u8, b"");
        let (line, _) = line.field(RecordFieldKind::Line as u8, &[0; 4]);
        let (line, arguments_at) = line.field(RecordFieldKind::NumArgs as u8, &[0; 4]);
        Self { arguments_at, ..line }
    }

    /// How the next argument is to be shown.
    const fn hint(self, hint: DisplayHint) -> Self {
        self.argument(ArgumentKind::DisplayHint, &[hint as u8]).0
    }

    const fn text(self, text: &[u8]) -> (Self, usize) {
        self.argument(ArgumentKind::Str, text)
    }

    const fn argument(self, kind: ArgumentKind, value: &[u8]) -> (Self, usize) {
        Self { arguments: self.arguments + 1, ..self }.field(kind as u8, value)
    }

    /// The line with one more field, and where its value is.
    const fn field(self, kind: u8, value: &[u8]) -> (Self, usize) {
        let line = self.append(&[kind]).append(&(value.len() as u16).to_ne_bytes());
        let at = line.len;
        (line.append(value), at)
    }

    const fn append(mut self, bytes: &[u8]) -> Self {
        self.put(self.len, bytes);
        self.len += bytes.len();
        self
    }

    const fn put(&mut self, at: usize, bytes: &[u8]) {
        let mut i = 0;
        while i < bytes.len() {
            self.bytes[at + i] = bytes[i];
            i += 1;
        }
    }

    const fn finish(mut self) -> Self {
        self.put(0, &(self.len as u16).to_ne_bytes());
        self.put(self.arguments_at, &self.arguments.to_ne_bytes());
        self
    }

    const fn part<const LEN: usize>(&self, at: usize) -> [u8; LEN] {
        let mut part = [0; LEN];
        let mut i = 0;
        while i < LEN {
            part[i] = self.bytes[at + i];
            i += 1;
        }
        part
    }
}

const _: () = assert!(size_of::<Warning>() == 48 + 64 && size_of::<Blocked>() == 208);
const _: () = assert!(TROUBLES.is_power_of_two() && REASONS.is_power_of_two());

#[cfg(test)]
#[path = "line_tests.rs"]
mod tests;
