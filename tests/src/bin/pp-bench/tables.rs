//! What the gate decides from during the run: a policy of some size, one receipt, and the mark of this process. Written into the maps the
//! way the daemon writes them.

use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::process;

use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap, LpmTrie, Map, MapError, SkStorage};
use pp_common::abi::{
    BudgetValue, Control, Grant, GrantList, MAX_GRANTS_PER_PREFIX, PID_PAGE, PREFIX_HEAD_BITS, Place, PrefixKey, SOCK_OPENED, Service,
    ServiceKey, SockMark, TaskMark, UserKey,
};
use pp_common::behaviour::{EXEMPT_PORTS, History, JudgedNetwork, Kept, Limits, NETWORK_EXEMPT, NETWORK_INTERNAL, PortRange};
use pp_common::decide::transport;
use pp_common::dest::Addr;

/// No zone covers it.
pub(crate) const OPEN: Ipv4Addr = Ipv4Addr::LOCALHOST;
/// In a zone, and the receipt names it.
pub(crate) const GRANTED: Ipv4Addr = Ipv4Addr::new(127, 9, 0, 2);
/// In a zone, and no receipt names it.
pub(crate) const PROTECTED: Ipv4Addr = Ipv4Addr::new(127, 9, 0, 3);

/// The first of the hosts that the behaviour rules count.
pub(crate) const COUNTED: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// The first of hosts that policy exempts from them: looked up all the same.
pub(crate) const UNCOUNTED: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 1);

const ZONE: Ipv4Addr = Ipv4Addr::new(127, 9, 0, 0);
const GENERATION: u32 = 1;
const SESSION: u64 = 0x5e55_1011;
const AGENT: u64 = 0xa6e1;
const OWNER: u32 = 0;
const SERIAL: u32 = 1;
/// Other prefixes of zones, spread over the address space: the size of a large plant's policy.
const OTHER_ZONES: u8 = 255;
/// Ports of services; those of the shipped table are about as many. The run's own ports lie above.
const SERVICES: u16 = 60;
const FIRST_SERVICE: u16 = 500;

/// Makes the tables of generation 1 and puts them in force. Not a word of them is read for an unmarked caller.
///
/// # Errors
/// The object has other maps, or the kernel refuses an entry.
pub(crate) fn publish(ebpf: &mut Ebpf) -> Result<()> {
    let mut places: LpmTrie<_, PrefixKey, Place> = open(ebpf, "PLACES")?;
    let place = Place { zone: 1, ..Place::default() };
    places.insert(&key(ZONE, 16), place, 0)?;
    for high in 0..OTHER_ZONES {
        if high != ZONE.octets()[0] && high != COUNTED.octets()[0] {
            places.insert(&key(Ipv4Addr::new(high, 0, 0, 0), 16), place, 0)?;
        }
    }
    let mut services: HashMap<_, ServiceKey, Service> = open(ebpf, "SERVICES")?;
    for port in FIRST_SERVICE..FIRST_SERVICE + SERVICES {
        for transport in [transport::TCP, transport::UDP] {
            let key = ServiceKey { generation: GENERATION, port, transport, pad: 0 };
            services.insert(key, Service { service: 1, ..Service::default() }, 0)?;
        }
    }
    let mut budgets: HashMap<_, u32, BudgetValue> = open(ebpf, "BUDGETS")?;
    budgets.insert(SERIAL, BudgetValue { serial: SERIAL, ..BudgetValue::default() }, 0)?;
    let mut user_bits: HashMap<_, UserKey, u64> = open(ebpf, "USER_BITS")?;
    user_bits.insert(UserKey { generation: GENERATION, uid: OWNER }, 1, 0)?;
    let mut grants: LpmTrie<_, PrefixKey, GrantList> = open(ebpf, "GRANTS")?;
    grants.insert(&key(GRANTED, 32), receipt(), 0)?;
    let mut grounds: LpmTrie<_, PrefixKey, JudgedNetwork> = open(ebpf, "GROUNDS")?;
    let internal = JudgedNetwork { flags: NETWORK_INTERNAL, ports: [PortRange::NONE; EXEMPT_PORTS], pad: 0 };
    for (network, len) in [(COUNTED, 8), (Ipv4Addr::new(172, 16, 0, 0), 12), (Ipv4Addr::new(192, 168, 0, 0), 16)] {
        grounds.insert(&key(network, len), internal, 0)?;
    }
    grounds.insert(&key(UNCOUNTED, 16), JudgedNetwork { flags: NETWORK_INTERNAL | NETWORK_EXEMPT, ..internal }, 0)?;
    let mut limits: Array<_, Limits> = open(ebpf, "LIMITS")?;
    limits.set(GENERATION & 1, Limits::DEFAULT, 0)?;
    let mut control: Array<_, Control> = open(ebpf, "CONTROL")?;
    Ok(control.set(0, Control { generation: GENERATION, ..Control::default() }, 0)?)
}

/// Every UDP and TCP port of one host, for this run's session, with no limit of connections.
fn receipt() -> GrantList {
    let line = |transport| Grant {
        agent: AGENT,
        users: 1,
        until_ns: u64::MAX,
        serial: SERIAL,
        port_first: 1,
        port_last: u16::MAX,
        transport,
        ..Grant::default()
    };
    let mut grants = [Grant::default(); MAX_GRANTS_PER_PREFIX];
    grants[0] = line(transport::UDP);
    grants[1] = line(transport::TCP);
    GrantList { len: 2, pad: 0, grants }
}

/// Marks this process, or takes its mark away.
///
/// # Errors
/// The kernel refuses it.
pub(crate) fn mark_process(ebpf: &mut Ebpf, marked: bool) -> Result<()> {
    let tgid = process::id();
    note_pid(ebpf, tgid, marked)?;
    let mut tasks: HashMap<_, u32, TaskMark> = open(ebpf, "TASKS")?;
    if marked {
        let mark = TaskMark { session: SESSION, agent: AGENT, owner: OWNER, ..TaskMark::default() };
        Ok(tasks.insert(tgid, mark, 0)?)
    } else {
        Ok(tasks.remove(&tgid)?)
    }
}

/// Whether this process must be looked for among the marked ones. Nothing else writes these bytes while the bench runs.
fn note_pid(ebpf: &mut Ebpf, tgid: u32, marked: bool) -> Result<()> {
    let mut pids: Array<_, [u8; PID_PAGE]> = open(ebpf, "PIDS")?;
    let (page, byte) = (tgid / u32::try_from(PID_PAGE)?, usize::try_from(tgid)? % PID_PAGE);
    let mut bytes = pids.get(&page, 0)?;
    bytes[byte] = marked.into();
    Ok(pids.set(page, bytes, 0)?)
}

/// Gives a socket the mark that the hook of its creation would have given it; `opened`: and that of its connect.
///
/// # Errors
/// The kernel refuses it.
pub(crate) fn mark_socket(ebpf: &mut Ebpf, socket: &impl AsRawFd, opened: bool) -> Result<()> {
    let mut socks: SkStorage<_, SockMark> = open(ebpf, "SOCKS")?;
    let flags = if opened { SOCK_OPENED } else { 0 };
    let mark = SockMark { session: SESSION, agent: AGENT, owner: OWNER, tgid: process::id(), flags, ..SockMark::default() };
    Ok(socks.insert(socket, mark, 0)?)
}

/// What the session reached for is forgotten.
///
/// # Errors
/// The map cannot be changed.
pub(crate) fn forget_history(ebpf: &mut Ebpf) -> Result<()> {
    let mut histories: HashMap<_, u64, Kept<History>> = open(ebpf, "HISTORIES")?;
    match histories.get(&SESSION, 0) {
        Ok(_) => Ok(histories.remove(&SESSION)?),
        Err(MapError::KeyNotFound) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// How many targets the session has reached for.
///
/// # Errors
/// There is no history of it.
pub(crate) fn targets_counted(ebpf: &mut Ebpf) -> Result<u32> {
    let histories: HashMap<_, u64, Kept<History>> = open(ebpf, "HISTORIES")?;
    Ok(histories.get(&SESSION, 0).context("the session has no history")?.value.used)
}

/// How many new flows the receipt was charged for.
///
/// # Errors
/// The map cannot be read.
pub(crate) fn flows_charged(ebpf: &mut Ebpf) -> Result<u64> {
    let budgets: HashMap<_, u32, BudgetValue> = open(ebpf, "BUDGETS")?;
    Ok(budgets.get(&SERIAL, 0)?.connections)
}

fn open<'a, T>(ebpf: &'a mut Ebpf, name: &str) -> Result<T>
where
    T: TryFrom<&'a mut Map, Error = aya::maps::MapError>,
{
    let map = ebpf.map_mut(name).with_context(|| format!("{name}: no such map in the object"))?;
    T::try_from(map).with_context(|| format!("{name}: of another type in the object"))
}

fn key(addr: Ipv4Addr, len: u32) -> Key<PrefixKey> {
    let data = PrefixKey { generation: GENERATION, pad: 0, addr: Addr::v4(addr.octets()) };
    Key::new(PREFIX_HEAD_BITS + 96 + len, data)
}
