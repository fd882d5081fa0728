//! What holds while the kernel takes no new tables: nothing opens, a revocation closes, and the daemon says so and tries again.

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{Array, HashMap, Map as KernelMap, MapData};
use nix::libc;
use pp_common::abi::{Control, Service, ServiceKey};
use pp_common::maps::{CONTROL, Map, SERVICES};
use pp_tests::agent::Daemon;
use pp_tests::attack::{self, Answer};
use pp_tests::harness::{By, Refusal};
use pp_tests::lab::fresh_target;
use pp_tests::policy::Policy;
use pp_tests::{run, wait};

use crate::receipts::{Registered, opening};
use crate::world::{World, tests};

tests![revocation_closes_and_nothing_opens_while_the_kernel_takes_no_tables];

const NOBODY: By = By::Program("lab-shim");
/// No protocol that any service has.
const OTHER_TRANSPORT: u8 = 200;

/// The table of services without room for another generation, until the value is dropped.
struct Full {
    services: HashMap<MapData, ServiceKey, Service>,
    added: Vec<ServiceKey>,
}

impl Full {
    fn fill(daemon: &Daemon) -> Result<Self> {
        let control: Array<_, Control> = KernelMap::Array(pinned(daemon, &CONTROL)?).try_into()?;
        let generation = control.get(&0, 0)?.generation;
        let mut full = Self { services: KernelMap::HashMap(pinned(daemon, &SERVICES)?).try_into()?, added: Vec::new() };
        for port in 0..=u16::MAX {
            // The daemon removes other generations before it publishes.
            let key = ServiceKey { generation, port, transport: OTHER_TRANSPORT, pad: 0 };
            if full.services.insert(key, Service::default(), 0).is_err() {
                return Ok(full);
            }
            full.added.push(key);
        }
        bail!("{} has room for {} more", SERVICES.name, full.added.len())
    }
}

impl Drop for Full {
    fn drop(&mut self) {
        for key in &self.added {
            // Those that the daemon has removed since are gone.
            let _gone = self.services.remove(key);
        }
    }
}

fn pinned(daemon: &Daemon, map: &Map) -> Result<MapData> {
    let pin = daemon.bpffs().join(format!("maps/{}@{}", map.name, map.layout));
    MapData::from_pin(&pin).with_context(|| pin.display().to_string())
}

fn revocation_closes_and_nothing_opens_while_the_kernel_takes_no_tables(world: &mut World) -> Result<()> {
    let daemon = world.own(&Policy::standard(world.lab()))?;
    let (open, closed) = (fresh_target(), fresh_target());
    let receipt = Registered::new(&daemon, &opening(open))?;
    let agent = |target| By::LAB_AGENT.attempt(&daemon, &attack::tcp(daemon.lab(), target));
    ensure!(agent(open)? == Answer::Delivered, "the receipt opens nothing");

    let full = Full::fill(&daemon)?;
    let refused = daemon.register(&opening(closed).sign(daemon.operator()));
    ensure!(refused.as_ref().is_err_and(|error| format!("{error:#}").contains("SERVICES")), "{refused:?}");
    let _none = Refusal::of(attack::tcp(daemon.lab(), closed), By::LAB_AGENT)
        .with_control(NOBODY)
        .for_reason("no_receipt")
        .assert(&daemon)
        .context("not opened")?;
    ensure!(agent(open)? == Answer::Delivered, "another receipt's refusal closed this one");
    receipt.revoke()?;
    let refusal = Refusal::of(attack::tcp(daemon.lab(), open), By::LAB_AGENT).with_control(NOBODY).for_reason("receipt_revoked");
    let _event = refusal.assert(&daemon).context("revoked in place")?;
    let problems = || -> Result<String> { Ok(daemon.client()?.status()?["problems"].to_string()) };
    ensure!(problems()?.contains("the kernel still enforces generation"), "{}", problems()?);

    drop(full);
    wait::until_true("the tables with the revocation", run::PATIENCE, || problems().is_ok_and(|problems| problems == "[]"))?;
    let answer = agent(open)?;
    ensure!(answer == Answer::Refused(libc::EPERM), "{answer:?}");
    let _revoked =
        Refusal::of(attack::tcp(daemon.lab(), open), By::LAB_AGENT).with_control(NOBODY).for_reason("receipt_revoked").assert(&daemon)?;
    let again = Registered::new(&daemon, &opening(closed))?;
    ensure!(agent(closed)? == Answer::Delivered, "the next receipt opens nothing");
    drop(again);
    Ok(())
}
