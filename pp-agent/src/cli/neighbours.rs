//! `neighbours`: which links carry a protected place, and which addresses were learned.

use std::net::IpAddr;

use super::output::{named, table};
use super::{Context, DONE, Outcome, wait};
use crate::api::{Forgotten, NeighbourList};
use clap::{Args, Subcommand};

/// `neighbours`.
#[derive(Debug, Args)]
pub(crate) struct NeighboursArgs {
    #[command(subcommand)]
    command: Option<NeighboursCommand>,
}

#[derive(Debug, Subcommand)]
enum NeighboursCommand {
    /// Forget an address that was learned; it is not learned again for 24 hours.
    Forget {
        /// The address.
        address: IpAddr,
    },
}

/// Lists what was learned, or forgets one address.
pub(crate) fn run(context: &Context, args: &NeighboursArgs) -> Outcome {
    if let Some(NeighboursCommand::Forget { address }) = &args.command {
        let answer = wait(context.client.delete::<Forgotten>(&format!("/v1/neighbours/{address}")))?;
        context.out.show(&answer, || vec![format!("{} is forgotten for 24 hours", answer.address)])?;
        return Ok(DONE);
    }
    let found = wait(context.client.get::<NeighbourList>("/v1/neighbours"))?;
    context.out.show(&found, || lines(&found))?;
    Ok(DONE)
}

fn lines(found: &NeighbourList) -> Vec<String> {
    let place = |zone, gateway| named([("zone", zone), ("gateway", gateway)]).join(", ");
    let mut rows = vec![["ADDRESS", "PLACE", "WHY"].map(str::to_owned).to_vec()];
    for link in &found.links {
        rows.push(vec![format!("fe80::/10%{}", link.link), place(&link.zone, &link.gateway), "the link carries it".to_owned()]);
    }
    for known in &found.learned {
        rows.push(vec![known.address.clone(), place(&known.zone, &known.gateway), known.why.clone()]);
    }
    let mut lines = table(&rows);
    lines.extend(found.conflicts.iter().map(|conflict| format!("conflict  {conflict}")));
    lines
}
