//! `neighbours`: which links carry a protected place, and which addresses were learned.

use std::net::IpAddr;

use clap::{Args, Subcommand};
use serde_json::Value;

use super::output::{list, table, text};
use super::{Context, DONE, Outcome, wait};

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

/// Lists what is known, or forgets one address.
pub(crate) fn run(context: &Context, args: &NeighboursArgs) -> Outcome {
    if let Some(NeighboursCommand::Forget { address }) = &args.command {
        let answer = wait(context.client.delete(&format!("/v1/neighbours/{address}")))?;
        context.out.show(&answer, |answer| vec![format!("{} is forgotten for 24 hours", text(answer, "address"))])?;
        return Ok(DONE);
    }
    let found = wait(context.client.get("/v1/neighbours"))?;
    context.out.show(&found, lines)?;
    Ok(DONE)
}

fn lines(found: &Value) -> Vec<String> {
    let place = |row: &Value| {
        ["zone", "gateway"]
            .iter()
            .filter(|name| !row[**name].is_null())
            .map(|name| format!("{name} {}", text(row, name)))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let mut rows = vec![["ADDRESS", "PLACE", "WHY"].map(str::to_owned).to_vec()];
    rows.extend(
        list(found, "links")
            .iter()
            .map(|link| vec![format!("fe80::/10%{}", text(link, "link")), place(link), "the link carries it".to_owned()]),
    );
    rows.extend(list(found, "learned").iter().map(|known| vec![text(known, "address"), place(known), text(known, "why")]));
    let mut lines = table(&rows);
    lines.extend(list(found, "conflicts").iter().filter_map(Value::as_str).map(|conflict| format!("conflict  {conflict}")));
    lines
}
