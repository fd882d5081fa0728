//! The maps of `pp_common::maps`, opened once, each behind its own lock.

use std::sync::{Mutex, MutexGuard, PoisonError};

use aya::{
    Ebpf, Pod,
    maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray, SkStorage, lpm_trie::Key},
};
use pp_common::abi::{
    BudgetValue, Control, DfaClasses, DfaRow, GatewayPortKey, GrantList, HeardKey, Learned, LinkKey, NameId, NearKey, OffNote, Place,
    PrefixKey, RepeatKey, Repeats, RuleTarget, Service, ServiceKey, SockMark, TaskMark, UserKey,
};
use pp_common::{
    behaviour::{self, JudgedNetwork, KeptAttempts, KeptHistory, LoginKey},
    delegate::DelegateKey,
    dest::Addr,
    maps,
    protect::{Guard, InodeKey, NameKey, Watch},
    tools::ToolEnd,
    turns::{self, LimitKey},
};

use super::KernelError;

/// Writes whether or not there is an entry (`BPF_ANY`).
pub(super) const ANY: u64 = 0;
/// Writes only if there is no entry (`BPF_NOEXIST`).
pub(super) const NO_EXIST: u64 = 1;

/// A map behind a lock. A panic elsewhere does not poison it, since the kernel owns the content.
pub(super) struct Locked<T> {
    about: &'static maps::Map,
    map: Mutex<T>,
}

impl<T> Locked<T> {
    pub(super) const fn new(about: &'static maps::Map, map: T) -> Self {
        Self { about, map: Mutex::new(map) }
    }

    fn take(ebpf: &mut Ebpf, about: &'static maps::Map) -> Result<Self, KernelError>
    where
        T: TryFrom<Map, Error = MapError>,
    {
        let map = ebpf.take_map(about.name).ok_or_else(|| MapError::InvalidName { name: about.name.to_owned() });
        map.and_then(T::try_from).map(|map| Self::new(about, map)).map_err(|error| map_error(about.name, &error))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, T> {
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The error of an operation on this map.
    pub(super) fn error(&self, error: MapError) -> KernelError {
        map_error(self.about.name, &error)
    }

    /// Checks that there is room for this many entries.
    pub(super) const fn fits(&self, needed: usize) -> Result<(), KernelError> {
        fits(self.about, needed)
    }
}

/// Checks that a map has room for this many entries.
pub(super) const fn fits(map: &maps::Map, needed: usize) -> Result<(), KernelError> {
    let room = map.room();
    if needed > room { Err(KernelError::Full { map: map.name, room, needed }) } else { Ok(()) }
}

pub(super) fn map_error(map: &'static str, error: &MapError) -> KernelError {
    KernelError::Map { map, reason: error.to_string() }
}

/// `None` if there is no such entry.
pub(super) fn optional<T>(result: Result<T, MapError>) -> Result<Option<T>, MapError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

fn absent_is_fine(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(call)) if call.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

impl<K: Pod, V: Pod> Locked<HashMap<MapData, K, V>> {
    pub(super) fn get(&self, key: &K) -> Result<Option<V>, KernelError> {
        optional(self.lock().get(key, ANY)).map_err(|error| self.error(error))
    }

    pub(super) fn insert(&self, key: &K, value: &V) -> Result<(), KernelError> {
        self.lock().insert(key, value, ANY).map_err(|error| self.error(error))
    }

    /// Makes an entry; `false`: there is one, which stays.
    pub(super) fn insert_new(&self, key: &K, value: &V) -> Result<bool, KernelError> {
        match self.lock().insert(key, value, NO_EXIST) {
            Ok(()) => Ok(true),
            Err(MapError::SyscallError(call)) if call.io_error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
            Err(error) => Err(self.error(error)),
        }
    }

    /// Removes an entry, if there is one.
    pub(super) fn remove(&self, key: &K) -> Result<(), KernelError> {
        absent_is_fine(self.lock().remove(key)).map_err(|error| self.error(error))
    }

    /// Every key. Entries that are added or removed at the same time may be missed.
    pub(super) fn keys(&self) -> Result<Vec<K>, KernelError> {
        self.lock().keys().collect::<Result<_, _>>().map_err(|error| self.error(error))
    }

    /// Every entry. Entries that are added or removed at the same time may be missed.
    pub(super) fn entries(&self) -> Result<Vec<(K, V)>, KernelError> {
        self.lock().iter().collect::<Result<_, _>>().map_err(|error| self.error(error))
    }
}

impl<V: Pod> Locked<LpmTrie<MapData, PrefixKey, V>> {
    pub(super) fn get(&self, key: &Key<PrefixKey>) -> Option<V> {
        self.lock().get(key, ANY).ok()
    }

    pub(super) fn insert(&self, key: &Key<PrefixKey>, value: impl std::borrow::Borrow<V>) -> Result<(), KernelError> {
        self.lock().insert(key, value, ANY).map_err(|error| self.error(error))
    }

    pub(super) fn keys(&self) -> Result<Vec<Key<PrefixKey>>, KernelError> {
        self.lock().keys().collect::<Result<_, _>>().map_err(|error| self.error(error))
    }

    pub(super) fn remove(&self, key: &Key<PrefixKey>) -> Result<(), KernelError> {
        absent_is_fine(self.lock().remove(key)).map_err(|error| self.error(error))
    }
}

impl<V: Pod> Locked<Array<MapData, V>> {
    pub(super) fn get(&self, index: u32) -> Result<V, KernelError> {
        self.lock().get(&index, ANY).map_err(|error| self.error(error))
    }

    pub(super) fn set(&self, index: u32, value: impl std::borrow::Borrow<V>) -> Result<(), KernelError> {
        self.lock().set(index, value, ANY).map_err(|error| self.error(error))
    }
}

/// The type that a map of this kind is opened as.
macro_rules! opened {
    (Hash $key:ty, $value:ty) => { HashMap<MapData, $key, $value> };
    (HashLazy $key:ty, $value:ty) => { HashMap<MapData, $key, $value> };
    (HashGen $key:ty, $value:ty) => { HashMap<MapData, $key, $value> };
    (LruHash $key:ty, $value:ty) => { HashMap<MapData, $key, $value> };
    (PrefixGen $key:ty, $value:ty) => { LpmTrie<MapData, $key, $value> };
    (Array $key:ty, $value:ty) => { Array<MapData, $value> };
    (ArrayGen $key:ty, $value:ty) => { Array<MapData, $value> };
    (PerCpuArray $key:ty, $value:ty) => { PerCpuArray<MapData, $value> };
    (SkStorage $key:ty, $value:ty) => { SkStorage<MapData, $value> };
}

/// Removes the entries of other generations, if a map of this kind has generations.
macro_rules! swept {
    (HashGen $map:expr, $keep:expr) => {
        $map.keys()?.into_iter().filter(|key| key.generation != $keep).try_for_each(|key| $map.remove(&key))?
    };
    (PrefixGen $map:expr, $keep:expr) => {
        $map.keys()?.into_iter().filter(|key| key.data().generation != $keep).try_for_each(|key| $map.remove(&key))?
    };
    ($kind:ident $map:expr, $keep:expr) => {};
}

macro_rules! open {
    (
        tables { $(
            $(#[doc = $text:literal])+
            $name:ident @ $layout:tt $field:ident: $kind:ident[$key:ty => $value:ty; $size:expr],
            written $written:literal, read $read:literal, full $full:literal;
        )+ }
        others { $($others:tt)+ }
    ) => {
        /// The maps that are read and written entry by entry.
        pub(super) struct Maps { $($(#[doc = $text])+ pub(super) $field: Locked<opened!($kind $key, $value)>,)+ }

        impl Maps {
            pub(super) fn open(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
                Ok(Self { $($field: Locked::take(ebpf, &maps::$name)?,)+ })
            }

            /// Removes every entry of other generations than `keep`.
            pub(super) fn sweep(&self, keep: u32) -> Result<(), KernelError> {
                $(swept!($kind self.$field, keep);)+
                Ok(())
            }
        }
    };
}
pp_common::maps!(open);

impl Maps {
    pub(super) fn control(&self) -> Result<Control, KernelError> {
        self.control.get(0)
    }

    pub(super) fn set_control(&self, control: Control) -> Result<(), KernelError> {
        self.control.set(0, control)
    }

    /// Sets or clears a `CONTROL_*` flag.
    pub(super) fn set_flag(&self, flag: u32, wanted: bool) -> Result<(), KernelError> {
        let control = self.control()?;
        let flags = if wanted { control.flags | flag } else { control.flags & !flag };
        if flags == control.flags {
            return Ok(());
        }
        self.set_control(Control { flags, ..control })?;
        self.keep_overflow()
    }

    /// RACE: sets the overflow word again if it was overwritten in the instant in which a process found no room.
    pub(super) fn keep_overflow(&self) -> Result<(), KernelError> {
        let control = self.control()?;
        if control.overflow == 0 && !self.doomed.entries()?.is_empty() {
            self.set_control(Control { overflow: 1, ..control })?;
        }
        Ok(())
    }

    /// The counters, summed over CPUs.
    pub(super) fn counters(&self) -> Result<Vec<u64>, KernelError> {
        let counts = self.counts.lock();
        (0..maps::COUNTS.size)
            .map(|index| counts.get(&index, 0).map(|values| values.iter().sum()))
            .collect::<Result<_, _>>()
            .map_err(|error| self.counts.error(error))
    }
}
