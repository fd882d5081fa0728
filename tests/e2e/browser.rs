//! A real browser, without a window, on a page with a picture from each of 60 hosts, under the policy as it is shipped: zero blocks, zero
//! warnings. Only in runs that take their time: `cargo xtask setup --only browser` installs it.

use std::path::Path;

use anyhow::Result;
use pp_tests::ordinary::{At, Shown, Trip, Work, trips_nothing};
use pp_tests::policy::Policy;

use crate::world::{World, tests};

tests![chromium_on_a_page_of_sixty_hosts];

fn chromium_on_a_page_of_sixty_hosts(world: &mut World) -> Result<()> {
    let script = |work: &Path| {
        format!(
            "chromium --headless --no-sandbox --disable-gpu --disable-dev-shm-usage --user-data-dir={}/profile --dump-dom \
             --timeout=60000 http://web.lab/page > page 2> told || {{ cat told >&2; exit 1; }}
             grep -q '<title>60 pictures</title>' page || {{ cat page told >&2; exit 1; }}",
            work.display()
        )
    };
    let work = Work {
        name: "Chromium without a window, a page with pictures from 60 hosts",
        script: &script,
        at: At::Lab,
        needs: "",
        shown: Shown::Both(62, Trip { keys: "internal = [\"203.0.113.0/24\"]", reason: "scan_hosts" }),
    };
    let shipped = Policy::shipped(world.lab());
    trips_nothing(world.afresh(&shipped)?, &shipped, &work)
}
