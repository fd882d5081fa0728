//! Records of the kernel, read from ring-buffer bytes.
//!
//! Each field is read at its offset and in the host's byte order. Bytes of a wrong length or an unknown kind are not a record.

use pp_common::abi::{NameId, TASK_CANARY};
use pp_common::decide::Verdict;
use pp_common::dest::Addr;
use pp_common::protect::GuardRecord;
use pp_common::record::{EXEC_RECORD_ARGV, EXEC_RECORD_PATH, ExecRecord, RecordHeader, TaskRecord, VerdictRecord, kind};
use pp_common::tools::TOOL_REFUSE;

/// One record, by kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    /// A verdict.
    Verdict(VerdictRecord),
    /// A marked process executed another program.
    Exec(Exec),
    /// A session started with this program.
    SessionStart(Exec),
    /// A marked process executed a program that a rule about tools matches, or was ended for it; `rule` is the code.
    Tool(Exec),
    /// A marked process forked.
    Fork(TaskRecord),
    /// A marked process ended.
    Exit(TaskRecord),
    /// There was no room for a mark.
    TableFull(TaskRecord),
    /// A session tampered with its own gate.
    Tamper(GuardRecord),
    /// A session called a delegate.
    Delegate(GuardRecord),
}

/// What an exec record says, with its texts cut to their lengths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Exec {
    /// The header.
    pub(crate) header: RecordHeader,
    /// The parent.
    pub(crate) parent_tgid: u32,
    /// Index of the matched rule plus one; zero: none. For a tool, the code.
    pub(crate) rule: u32,
    /// The path given to `execve`, not necessarily UTF-8 in the kernel.
    pub(crate) path: String,
    /// The arguments that fitted.
    pub(crate) argv: Vec<String>,
}

impl Record {
    /// Reads one record; `None` if the bytes are not one.
    #[must_use]
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        let header = reader.header()?;
        match header.kind {
            kind::VERDICT if bytes.len() >= size_of::<VerdictRecord>() => reader.verdict(header).map(Self::Verdict),
            kind::EXEC | kind::SESSION_START | kind::TOOL if bytes.len() >= size_of::<ExecRecord>() => {
                let exec = reader.exec(header)?;
                Some(match header.kind {
                    kind::EXEC => Self::Exec(exec),
                    kind::TOOL => Self::Tool(exec),
                    _ => Self::SessionStart(exec),
                })
            }
            kind::FORK => reader.task(header).map(Self::Fork),
            kind::EXIT => reader.task(header).map(Self::Exit),
            kind::TABLE_FULL => reader.task(header).map(Self::TableFull),
            kind::TAMPER => reader.guard(header).map(Self::Tamper),
            kind::DELEGATE => reader.guard(header).map(Self::Delegate),
            _ => None,
        }
    }

    /// Whether the kernel counted the attempt as refused. It does not count attempts of the canary.
    #[must_use]
    pub(crate) fn is_refusal(&self) -> bool {
        let blocks = match self {
            Self::Verdict(record) => record.verdict == Verdict::Block as u8,
            Self::Tamper(record) | Self::Delegate(record) => record.verdict == Verdict::Block as u8,
            Self::Tool(exec) => u16::try_from(exec.rule).is_ok_and(|code| code & TOOL_REFUSE != 0),
            Self::Exec(_) | Self::SessionStart(_) | Self::Fork(_) | Self::Exit(_) | Self::TableFull(_) => false,
        };
        blocks && self.header().flags & TASK_CANARY == 0
    }

    /// The number of repeats of its pair, and the id of that count.
    pub(crate) fn repeats_mut(&mut self) -> Option<(&mut u64, u64)> {
        match self {
            Self::Verdict(record) => Some((&mut record.repeats, record.repeats_id)),
            Self::Tamper(record) | Self::Delegate(record) => Some((&mut record.repeats, record.repeats_id)),
            Self::Exec(_) | Self::SessionStart(_) | Self::Tool(_) | Self::Fork(_) | Self::Exit(_) | Self::TableFull(_) => None,
        }
    }

    /// The header.
    #[must_use]
    pub(crate) fn header(&self) -> &RecordHeader {
        match self {
            Self::Verdict(record) => &record.header,
            Self::Exec(record) | Self::SessionStart(record) | Self::Tool(record) => &record.header,
            Self::Fork(record) | Self::Exit(record) | Self::TableFull(record) => &record.header,
            Self::Tamper(record) | Self::Delegate(record) => &record.header,
        }
    }
}

/// Takes fields off the front of a record.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    fn slice(&mut self, length: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(head)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_ne_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_ne_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_ne_bytes)
    }

    fn name(&mut self) -> Option<NameId> {
        self.u64()
    }

    fn header(&mut self) -> Option<RecordHeader> {
        Some(RecordHeader {
            kind: self.u32()?,
            flags: self.u32()?,
            time_ns: self.u64()?,
            session: self.u64()?,
            agent: self.name()?,
            owner: self.u32()?,
            tgid: self.u32()?,
        })
    }

    fn verdict(&mut self, header: RecordHeader) -> Option<VerdictRecord> {
        Some(VerdictRecord {
            header,
            addr: Addr::v6(self.take()?),
            zone: self.name()?,
            gateway: self.name()?,
            service: self.name()?,
            repeats: self.u64()?,
            repeats_id: self.u64()?,
            serial: self.u32()?,
            generation: self.u32()?,
            port: self.u16()?,
            transport: self.take::<1>()?[0],
            verdict: self.take::<1>()?[0],
            reason: self.take::<1>()?[0],
            hook: self.take::<1>()?[0],
            pad: self.take()?,
            count: self.u32()?,
            limit: self.u32()?,
            window_s: self.u32()?,
            cool_down_s: self.u32()?,
        })
    }

    fn exec(&mut self, header: RecordHeader) -> Option<Exec> {
        let parent_tgid = self.u32()?;
        let path_len = usize::try_from(self.u32()?).ok()?.min(EXEC_RECORD_PATH);
        let argv_len = usize::try_from(self.u32()?).ok()?.min(EXEC_RECORD_ARGV);
        let rule = self.u32()?;
        let path = self.slice(EXEC_RECORD_PATH)?;
        let argv = self.slice(EXEC_RECORD_ARGV)?;
        Some(Exec {
            header,
            parent_tgid,
            rule,
            path: String::from_utf8_lossy(&path[..path_len]).into_owned(),
            argv: split_arguments(&argv[..argv_len]),
        })
    }

    fn guard(&mut self, header: RecordHeader) -> Option<GuardRecord> {
        Some(GuardRecord {
            header,
            ino: self.u64()?,
            repeats: self.u64()?,
            repeats_id: self.u64()?,
            dev: self.u32()?,
            target_tgid: self.u32()?,
            number: self.u32()?,
            what: self.take::<1>()?[0],
            hook: self.take::<1>()?[0],
            verdict: self.take::<1>()?[0],
            pad: self.take::<1>()?[0],
            text: self.take()?,
        })
    }

    fn task(&mut self, header: RecordHeader) -> Option<TaskRecord> {
        Some(TaskRecord { header, parent_tgid: self.u32()?, pad: self.u32()? })
    }
}

/// Arguments that end in NUL, the last one perhaps cut; as in `/proc/*/cmdline`.
#[must_use]
pub(crate) fn split_arguments(bytes: &[u8]) -> Vec<String> {
    let bytes = bytes.strip_suffix(&[0]).unwrap_or(bytes);
    if bytes.is_empty() {
        return Vec::new();
    }
    bytes.split(|byte| *byte == 0).map(|arg| String::from_utf8_lossy(arg).into_owned()).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn header_bytes(kind: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(0u32.to_ne_bytes());
        bytes.extend(5_000_000u64.to_ne_bytes());
        bytes.extend(0xabcu64.to_ne_bytes());
        bytes.extend(7u64.to_ne_bytes());
        bytes.extend(1000u32.to_ne_bytes());
        bytes.extend(4242u32.to_ne_bytes());
        bytes
    }

    /// A refused Modbus connection of pid 4242, as the kernel writes it.
    pub(crate) fn verdict_bytes(verdict: u8, reason: u8) -> Vec<u8> {
        let mut bytes = header_bytes(kind::VERDICT);
        bytes.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 20, 4, 7]);
        for name in [11u64, 0, 13, 3, 21] {
            bytes.extend(name.to_ne_bytes());
        }
        bytes.extend(0u32.to_ne_bytes());
        bytes.extend(1u32.to_ne_bytes());
        bytes.extend(502u16.to_ne_bytes());
        bytes.extend([6, verdict, reason, 1, 0, 0]);
        bytes.extend([0; 16]);
        bytes
    }

    #[test]
    fn verdict_is_read_field_by_field() {
        let bytes = verdict_bytes(1, 10);
        assert_eq!(bytes.len(), size_of::<VerdictRecord>());
        let Some(Record::Verdict(record)) = Record::from_bytes(&bytes) else { panic!("no verdict") };
        assert_eq!((record.port, record.transport, record.verdict, record.reason), (502, 6, 1, 10));
        assert_eq!((record.zone, record.service, record.repeats, record.repeats_id), (11, 13, 3, 21));
        assert_eq!((record.header.session, record.header.tgid), (0xabc, 4242));
    }

    #[test]
    fn short_and_unknown_records_are_none() {
        let bytes = verdict_bytes(1, 10);
        for length in 0..bytes.len() {
            assert_eq!(Record::from_bytes(&bytes[..length]), None, "{length}");
        }
        assert_eq!(Record::from_bytes(&header_bytes(99)), None);
    }

    #[test]
    fn lengths_beyond_the_field_are_cut() {
        let mut bytes = header_bytes(kind::EXEC);
        for word in [1u32, 9_999, 9_999, 0] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend([b'p'; EXEC_RECORD_PATH]);
        bytes.extend([b'a'; EXEC_RECORD_ARGV]);
        let Some(Record::Exec(exec)) = Record::from_bytes(&bytes) else { panic!("no exec") };
        assert_eq!(exec.path.len(), EXEC_RECORD_PATH);
        assert_eq!(exec.argv.len(), 1);
    }

    /// A refused signal to the daemon, pid 77, as the kernel writes it.
    pub(crate) fn tamper_bytes(record_kind: u32, what: u8, text: &[u8]) -> Vec<u8> {
        let mut bytes = header_bytes(record_kind);
        bytes.extend(9_000u64.to_ne_bytes());
        bytes.extend(2u64.to_ne_bytes());
        bytes.extend(21u64.to_ne_bytes());
        for word in [5u32, 77, 15] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend([what, 1, 1, 0]);
        let mut field = [0; pp_common::protect::TEXT_LEN];
        field[..text.len()].copy_from_slice(text);
        bytes.extend(field);
        bytes
    }

    #[test]
    fn tamper_record_is_read_field_by_field() {
        let bytes = tamper_bytes(kind::TAMPER, 1, b"keys.json");
        assert_eq!(bytes.len(), size_of::<GuardRecord>());
        let Some(Record::Tamper(record)) = Record::from_bytes(&bytes) else { panic!("no tamper record") };
        assert_eq!((record.ino, record.repeats, record.repeats_id), (9_000, 2, 21));
        assert_eq!((record.dev, record.target_tgid, record.number), (5, 77, 15));
        assert_eq!((record.what, record.hook, record.verdict), (1, 1, 1));
        for length in 0..bytes.len() {
            assert_eq!(Record::from_bytes(&bytes[..length]), None, "{length}");
        }
    }

    #[test]
    fn empty_arguments_are_kept() {
        assert_eq!(split_arguments(b"a\0\0b\0"), ["a", "", "b"]);
        assert_eq!(split_arguments(b""), Vec::<String>::new());
    }
}
