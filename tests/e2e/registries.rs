//! Package managers that fetch from the registries this machine is set up for, under the policy as it is shipped: zero blocks, zero warnings.
//!
//! They run in the machine's own network, each into a folder of its own with an empty cache, so that nothing they fetch is there already.
//! Where a registry is out of reach the test fails.

use std::path::Path;

use anyhow::{Context as _, Result};
use pp_tests::ordinary::{At, Shown, Work, trips_nothing};
use pp_tests::paths;
use pp_tests::policy::Policy;

use crate::world::{World, tests};

tests![npm_install, pip_install, cargo_build, apt_get_update];

/// Does the work under the shipped policy. No rule is tripped on purpose: how many hosts a registry has is not known.
fn done(world: &mut World, name: &'static str, script: &dyn Fn(&Path) -> String) -> Result<()> {
    let shipped = Policy::shipped(world.lab());
    let outside = world.outside();
    let daemon = world.afresh(&shipped)?;
    trips_nothing(daemon, &shipped, &Work { name, script, at: At::Machine(&outside), needs: "", shown: Shown::Reaches(1) })
}

fn npm_install(world: &mut World) -> Result<()> {
    let bin = paths::agents().context("npm comes with the agents' packages")?.join("bin");
    let script = |work: &Path| {
        format!(
            "export PATH={}:$PATH
             npm install --cache {}/cache express > told 2>&1 || {{ cat told >&2; exit 1; }}
             node -e 'require(\"express\")()'
             [ $(ls node_modules | wc -l) -ge 30 ]",
            bin.display(),
            work.display()
        )
    };
    done(world, "npm install express", &script)
}

fn pip_install(world: &mut World) -> Result<()> {
    let python = paths::python()?;
    let script = |_: &Path| {
        format!(
            "{0} -m pip install -q --no-cache-dir --disable-pip-version-check --target site requests
             PYTHONPATH=site {0} -c 'import requests'
             [ $(ls -d site/*.dist-info | wc -l) -ge 5 ]",
            python.display()
        )
    };
    done(world, "pip install requests", &script)
}

fn cargo_build(world: &mut World) -> Result<()> {
    let script = |work: &Path| {
        format!(
            r#"
            machine=${{CARGO_HOME:-$HOME/.cargo}}
            export CARGO_HOME={work}/home CARGO_TARGET_DIR={work}/target
            mkdir home
            for file in config config.toml credentials credentials.toml; do
                if [ -e "$machine/$file" ]; then cp "$machine/$file" home/; fi
            done
            cargo new -q --vcs none tiny
            cd tiny
            printf 'indexmap = "2"\nitoa = "1"\nsemver = "1"\n' >> Cargo.toml
            cargo build -q
            [ $(ls -d ../home/registry/src/*/*/ | wc -l) -ge 4 ]
            [ "$(../target/debug/tiny)" = 'Hello, world!' ]
            "#,
            work = work.display()
        )
    };
    done(world, "cargo build of a crate with 3 dependencies", &script)
}

/// Its lists and its cache are the test's own; the machine's stay as they are.
fn apt_get_update(world: &mut World) -> Result<()> {
    let script = |work: &Path| {
        format!(
            "mkdir -p lists/partial cache/archives/partial
             apt-get update -q -o Dir::State::Lists={0}/lists -o Dir::Cache={0}/cache -o APT::Update::Error-Mode=any > told 2>&1 \
             || {{ cat told >&2; exit 1; }}
             ls lists/*Packages* > /dev/null",
            work.display()
        )
    };
    done(world, "apt-get update", &script)
}
