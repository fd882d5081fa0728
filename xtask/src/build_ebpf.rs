//! `build-ebpf`: compiles the kernel side to the one object that the agent embeds.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::{paths::Paths, sh, toolchain};

/// Which object to build.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Variant<'a> {
    /// The one that ships.
    Shipped,
    /// With one more cargo feature.
    Feature(&'a str),
}

/// Builds the object and returns its path. Cargo decides what is fresh.
///
/// # Errors
///
/// Without a toolchain that can be found or installed, or when the code does not compile.
pub(crate) fn run(paths: &Paths, variant: Variant<'_>) -> Result<PathBuf> {
    let toolchain = toolchain::ensure(paths)?;
    let mut command = toolchain.cargo_build();
    let mut object = paths.ebpf_object();
    let target = paths.cache.join("ebpf/target");
    match variant {
        Variant::Shipped => {}
        Variant::Feature(feature) => {
            command.args(["--features", feature]);
            object.set_file_name(format!("pp-ebpf-{feature}"));
        }
    }
    command.args(["--quiet", "--package", "pp-ebpf", "--bin", "pp-ebpf", "--target-dir"]).arg(&target);
    sh::run(command.current_dir(&paths.root))?;
    let built = target.join("bpfel-unknown-none/release/pp-ebpf");
    let changed = copy_if_changed(&built, &object)?;
    let size = fs::metadata(&object)?.len();
    let news = if changed { "new" } else { "unchanged" };
    sh::say(format!("{}: {news}, {size} bytes, {} toolchain", object.display(), toolchain.name()));
    Ok(object)
}

/// Copies where the content differs, so that an unchanged object does not rebuild what embeds it.
fn copy_if_changed(from: &Path, to: &Path) -> Result<bool> {
    let new = fs::read(from).with_context(|| format!("{}: not readable", from.display()))?;
    if fs::read(to).is_ok_and(|old| old == new) {
        return Ok(false);
    }
    fs::write(to, new).with_context(|| format!("{}: not writable", to.display()))?;
    Ok(true)
}
