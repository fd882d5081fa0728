//! The maps, opened once, each behind a lock of its own.

use std::sync::{Mutex, MutexGuard, PoisonError};

use aya::{
    Ebpf, Pod,
    maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray, SkStorage},
};
use pp_common::abi::{
    BudgetValue, Control, DfaClasses, DfaRow, GatewayPortKey, GrantList, HeardKey, Learned, LinkKey, NameId, NearKey, Place, PrefixKey,
    RepeatKey, Repeats, RuleTarget, Service, ServiceKey, SockMark, TaskMark, UserKey,
};
use pp_common::{
    behaviour::{Attempts, Ground, History, Kept, LoginKey},
    delegate::DelegateKey,
    dest::Addr,
    protect::{Guard, InodeKey, NameKey, Watch},
    tools::ToolEnd,
    turns::{self, LimitKey},
};

use super::KernelError;

/// A map behind a lock that a panic elsewhere does not poison: its content is
/// the kernel's.
pub(super) struct Locked<T>(Mutex<T>);

impl<T> Locked<T> {
    pub(super) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) struct Maps {
    pub(super) tasks: Locked<HashMap<MapData, u32, TaskMark>>,
    pub(super) doomed: Locked<HashMap<MapData, u32, TaskMark>>,
    pub(super) socks: Locked<SkStorage<MapData, SockMark>>,
    control: Locked<Array<MapData, Control>>,
    pub(super) places: Locked<LpmTrie<MapData, PrefixKey, Place>>,
    pub(super) links: Locked<HashMap<MapData, LinkKey, Place>>,
    pub(super) learned: Locked<HashMap<MapData, NearKey, Learned>>,
    pub(super) gateway_ports: Locked<HashMap<MapData, GatewayPortKey, u32>>,
    pub(super) services: Locked<HashMap<MapData, ServiceKey, Service>>,
    pub(super) exempt: Locked<LpmTrie<MapData, PrefixKey, u32>>,
    pub(super) grants: Locked<LpmTrie<MapData, PrefixKey, GrantList>>,
    pub(super) user_bits: Locked<HashMap<MapData, UserKey, u64>>,
    pub(super) turn_limits: Locked<HashMap<MapData, LimitKey, turns::Limits>>,
    pub(super) budgets: Locked<HashMap<MapData, u32, BudgetValue>>,
    pub(super) guarded: Locked<HashMap<MapData, InodeKey, Guard>>,
    pub(super) guarded_names: Locked<HashMap<MapData, NameKey, u32>>,
    pub(super) watch: Locked<Array<MapData, Watch>>,
    pub(super) delegates: Locked<HashMap<MapData, DelegateKey, u32>>,
    pub(super) dfa_rows: Locked<Array<MapData, DfaRow>>,
    pub(super) dfa_bytes: Locked<Array<MapData, DfaClasses>>,
    pub(super) rules: Locked<Array<MapData, RuleTarget>>,
    pub(super) tool_rows: Locked<Array<MapData, DfaRow>>,
    pub(super) tool_bytes: Locked<Array<MapData, DfaClasses>>,
    pub(super) tool_ends: Locked<Array<MapData, ToolEnd>>,
    pub(super) users: Locked<HashMap<MapData, UserKey, NameId>>,
    pub(super) cgroups: Locked<HashMap<MapData, u64, NameId>>,
    pub(super) histories: Locked<HashMap<MapData, u64, Kept<History>>>,
    pub(super) logins: Locked<HashMap<MapData, LoginKey, Kept<Attempts>>>,
    pub(super) limits: Locked<Array<MapData, pp_common::behaviour::Limits>>,
    pub(super) grounds: Locked<LpmTrie<MapData, PrefixKey, Ground>>,
    pub(super) own: Locked<HashMap<MapData, Addr, u32>>,
    pub(super) claimed: Locked<HashMap<MapData, Addr, u64>>,
    pub(super) heard: Locked<HashMap<MapData, HeardKey, u32>>,
    pub(super) repeats: Locked<HashMap<MapData, RepeatKey, Repeats>>,
    pub(super) told: Locked<HashMap<MapData, u64, u64>>,
    counts: Locked<PerCpuArray<MapData, u64>>,
}

fn take<T>(ebpf: &mut Ebpf, name: &'static str) -> Result<Locked<T>, KernelError>
where
    T: TryFrom<Map, Error = MapError>,
{
    let map = ebpf.take_map(name).ok_or(MapError::InvalidName { name: name.to_owned() });
    map.and_then(T::try_from).map(|map| Locked(Mutex::new(map))).map_err(|error| map_error(name, &error))
}

pub(super) fn map_error(map: &'static str, error: &MapError) -> KernelError {
    KernelError::Map { map, reason: error.to_string() }
}

impl Maps {
    pub(super) fn open(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        Ok(Self {
            tasks: take(ebpf, "TASKS")?,
            doomed: take(ebpf, "DOOMED")?,
            socks: take(ebpf, "SOCKS")?,
            control: take(ebpf, "CONTROL")?,
            places: take(ebpf, "PLACES")?,
            links: take(ebpf, "LINKS")?,
            learned: take(ebpf, "LEARNED")?,
            gateway_ports: take(ebpf, "GATEWAY_PORTS")?,
            services: take(ebpf, "SERVICES")?,
            exempt: take(ebpf, "EXEMPT")?,
            grants: take(ebpf, "GRANTS")?,
            user_bits: take(ebpf, "USER_BITS")?,
            turn_limits: take(ebpf, "TURN_LIMITS")?,
            budgets: take(ebpf, "BUDGETS")?,
            guarded: take(ebpf, "GUARDED")?,
            guarded_names: take(ebpf, "NAMES")?,
            watch: take(ebpf, "WATCH")?,
            delegates: take(ebpf, "DELEGATES")?,
            dfa_rows: take(ebpf, "DFA_ROWS")?,
            dfa_bytes: take(ebpf, "DFA_BYTES")?,
            rules: take(ebpf, "RULES")?,
            tool_rows: take(ebpf, "TOOL_ROWS")?,
            tool_bytes: take(ebpf, "TOOL_BYTES")?,
            tool_ends: take(ebpf, "TOOL_ENDS")?,
            users: take(ebpf, "USERS")?,
            cgroups: take(ebpf, "CGROUPS")?,
            histories: take(ebpf, "HISTORIES")?,
            logins: take(ebpf, "LOGINS")?,
            limits: take(ebpf, "LIMITS")?,
            grounds: take(ebpf, "GROUNDS")?,
            own: take(ebpf, "OWN")?,
            claimed: take(ebpf, "CLAIMED")?,
            heard: take(ebpf, "HEARD")?,
            repeats: take(ebpf, "REPEATS")?,
            told: take(ebpf, "TOLD")?,
            counts: take(ebpf, "COUNTS")?,
        })
    }

    pub(super) fn control(&self) -> Result<Control, KernelError> {
        self.control.lock().get(&0, 0).map_err(|error| map_error("CONTROL", &error))
    }

    pub(super) fn set_control(&self, control: Control) -> Result<(), KernelError> {
        self.control.lock().set(0, control, 0).map_err(|error| map_error("CONTROL", &error))
    }

    /// Puts the overflow word up again where it was written over in the same
    /// instant in which a process found no room.
    pub(super) fn keep_overflow(&self) -> Result<(), KernelError> {
        let control = self.control()?;
        if control.overflow == 0 && !entries("DOOMED", &self.doomed.lock())?.is_empty() {
            self.set_control(Control { overflow: 1, ..control })?;
        }
        Ok(())
    }

    /// The counters, summed over CPUs.
    pub(super) fn counters(&self) -> Result<Vec<u64>, KernelError> {
        let counts = self.counts.lock();
        (0..pp_common::abi::COUNTERS)
            .map(|index| counts.get(&index, 0).map(|values| values.iter().sum()))
            .collect::<Result<_, _>>()
            .map_err(|error| map_error("COUNTS", &error))
    }
}

/// Every entry of a hash map. Entries that come or go meanwhile may be missed.
pub(super) fn entries<K: Pod, V: Pod>(name: &'static str, map: &HashMap<MapData, K, V>) -> Result<Vec<(K, V)>, KernelError> {
    map.iter().collect::<Result<_, _>>().map_err(|error| map_error(name, &error))
}
