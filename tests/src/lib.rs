//! The lab, the harness and the suite of pp-agent: a world of real servers in network namespaces, the daemon under test in it, and attackers.
//!
//! Read [`lab`] for the world, [`agent`] for the daemon, [`attack`] for the ways to reach a target, and [`harness`] for what a refusal test
//! has to show. The tests themselves are in `e2e/`, the programs in `src/bin/`.
#![forbid(unsafe_code)]

pub mod agent;
pub mod attack;
pub mod attackers;
pub mod bystander;
pub mod client;
pub mod coverage;
pub mod events;
pub mod footprint;
pub mod forge;
pub mod golden;
pub mod harness;
pub mod hunt;
pub mod lab;
pub mod normal;
pub mod ordinary;
pub mod packages;
pub mod paths;
pub mod policy;
pub mod refused;
pub mod report;
pub mod run;
pub mod services;
pub mod wait;
