//! The maps of [`pp_common::maps`] as the kernel has them: the table there says who writes and reads each, and what happens when it is full.
//!
//! Tables whose key holds a generation are published whole: the daemon writes
//! the next generation beside the current one, switches [`CONTROL`] over, waits
//! until no program can still be reading, and only then removes the old one.

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, bpf_map_type::BPF_MAP_TYPE_SK_STORAGE, bpf_spin_lock},
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf},
    macros::btf_map,
};
use pp_common::abi::{
    Control, DfaClasses, DfaRow, EXEC_PATH_LEN, GatewayPortKey, GrantList, HeardKey, Learned, LinkKey, NameId, NearKey, OffNote, PID_PAGE,
    Place, PrefixKey, RepeatKey, Repeats, RuleTarget, Service, ServiceKey, SockMark, TaskMark, UserKey,
};
use pp_common::behaviour::{self, Attempts, BLANK_WORDS, History, JudgedNetwork, LoginKey};
use pp_common::delegate::DelegateKey;
use pp_common::dest::Addr;
use pp_common::maps;
use pp_common::protect::{FollowedLink, Guard, InodeKey, NameKey, Watch};
use pp_common::tools::{TOOL_ARGV_LEN, ToolEnd};
use pp_common::turns::{self, LimitKey};

/// Defines a map of a kind.
macro_rules! map {
    (Hash $name:ident $key:ty, $value:ty) => {
        #[btf_map]
        pub(crate) static $name: HashMap<$key, $value, { maps::$name.size as usize }> = HashMap::new();
    };
    (HashGen $name:ident $key:ty, $value:ty) => {
        map! { Hash $name $key, $value }
    };
    (HashLazy $name:ident $key:ty, $value:ty) => {
        #[btf_map]
        pub(crate) static $name: HashMap<$key, $value, { maps::$name.size as usize }, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();
    };
    (LruHash $name:ident $key:ty, $value:ty) => {
        #[btf_map]
        pub(crate) static $name: LruHashMap<$key, $value, { maps::$name.size as usize }> = LruHashMap::new();
    };
    (PrefixGen $name:ident $key:ty, $value:ty) => {
        #[btf_map]
        pub(crate) static $name: LpmTrie<$key, $value, { maps::$name.size as usize }> = LpmTrie::new();
    };
    (Array $name:ident $key:ty, $value:ty) => {
        #[btf_map]
        pub(crate) static $name: Array<$value, { maps::$name.size as usize }> = Array::new();
    };
    (ArrayGen $name:ident $key:ty, $value:ty) => {
        map! { Array $name $key, $value }
    };
    (ArrayMmap $name:ident $key:ty, $value:ty) => {
        #[btf_map]
        pub(crate) static $name: Array<$value, { maps::$name.size as usize }, { BPF_F_MMAPABLE as usize }> = Array::new();
    };
    (PerCpuArray $name:ident $key:ty, $value:ty) => {
        #[btf_map]
        pub(crate) static $name: PerCpuArray<$value, { maps::$name.size as usize }> = PerCpuArray::new();
    };
    (Ring $name:ident $key:ty, $value:ty) => {
        #[btf_map]
        pub(crate) static $name: RingBuf<$value, { maps::$name.size as usize }> = RingBuf::new();
    };
    (SkStorage $name:ident $key:ty, $value:ty) => {
        #[unsafe(link_section = ".maps")]
        #[unsafe(no_mangle)]
        pub(crate) static $name: SockStorage<$value> = SockStorage::new();
    };
}

macro_rules! define {
    (
        tables { $(
            $(#[doc = $text:literal])+
            $name:ident @ $layout:tt $field:ident: $kind:ident[$key:ty => $value:ty; $size:expr],
            written $written:literal, read $read:literal, full $full:literal;
        )+ }
        others { $(
            $(#[doc = $other_text:literal])+
            $other:ident @ $other_layout:tt: $other_kind:ident[$other_key:ty => $other_value:ty; $other_size:expr],
            written $other_written:literal, read $other_read:literal, full $other_full:literal;
        )+ }
    ) => {
        $(map! { $kind $name $key, $value })+
        $(map! { $other_kind $other $other_key, $other_value })+
    };
}
pp_common::maps!(define);

/// A decision's scratch number and its zero.
#[repr(C)]
pub(crate) struct Scratch {
    pub(crate) scratch: u32,
    pub(crate) pad: u32,
    /// Zero, always: the programs rely on it.
    pub(crate) zero: u64,
}

/// Path and argument vector of an exec.
#[repr(C)]
pub(crate) struct ExecInput {
    pub(crate) path: [u8; EXEC_PATH_LEN],
    pub(crate) argv: [u8; TOOL_ARGV_LEN],
    /// Length of the path.
    pub(crate) path_len: u64,
    /// Length of the arguments that are in `argv`.
    pub(crate) argv_len: u64,
    /// Not all arguments are in `argv`.
    pub(crate) cut: u32,
    /// This exec began a session.
    pub(crate) begun: u32,
}

/// `pp_common::abi::BudgetValue` with the lock as the kernel knows it. Only the cgroup programs
/// take it: LSM programs cannot on 5.10, and every flow passes a cgroup program.
#[repr(C)]
pub(crate) struct BudgetValue {
    pub(crate) lock: bpf_spin_lock,
    pub(crate) serial: u32,
    pub(crate) connections: u64,
    pub(crate) attempts: u64,
    pub(crate) max_connections: u64,
    pub(crate) max_attempts: u64,
}

/// `Kept<History>` with the lock as the kernel knows it; cgroup programs only, as with [`BudgetValue`].
#[repr(C)]
pub(crate) struct KeptHistory {
    pub(crate) lock: bpf_spin_lock,
    pub(crate) pad: u32,
    pub(crate) history: History,
}

/// `Kept<Attempts>`, likewise.
#[repr(C)]
pub(crate) struct KeptAttempts {
    pub(crate) lock: bpf_spin_lock,
    pub(crate) pad: u32,
    pub(crate) attempts: Attempts,
}

const _: () = assert!(size_of::<KeptHistory>() == size_of::<behaviour::KeptHistory>() && size_of::<KeptHistory>() == BLANK_WORDS * 8);
const _: () = assert!(size_of::<KeptAttempts>() == size_of::<behaviour::KeptAttempts>() && size_of::<KeptAttempts>() <= BLANK_WORDS * 8);
const _: () = assert!(size_of::<BudgetValue>() == size_of::<pp_common::abi::BudgetValue>());

const BPF_F_CLONE: u32 = 1 << 9;
const SOCK_STORAGE_FLAGS: usize = (BPF_F_NO_PREALLOC | BPF_F_CLONE) as usize;

/// Socket storage whose value a listening socket hands to what it accepts.
#[repr(C)]
pub(crate) struct SockStorage<V> {
    r#type: *const [i32; BPF_MAP_TYPE_SK_STORAGE as usize],
    key: *const i32,
    value: *const V,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; SOCK_STORAGE_FLAGS],
}

// SAFETY: a definition the loader reads; nothing dereferences its pointers.
unsafe impl<V> Sync for SockStorage<V> {}

impl<V> SockStorage<V> {
    const fn new() -> Self {
        use core::ptr::null;
        Self { r#type: null(), key: null(), value: null(), max_entries: null(), map_flags: null() }
    }

    pub(crate) const fn as_ptr(&self) -> *mut core::ffi::c_void {
        core::ptr::from_ref(self).cast_mut().cast()
    }
}
