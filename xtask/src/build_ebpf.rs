//! `build-ebpf`: compiles the kernel programs to the object that the agent embeds.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    paths::{self, Paths},
    sh, toolchain,
};

#[path = "../../pp-agent/kernel_sources.rs"]
mod kernel_sources;

/// Which object to build.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Variant<'a> {
    /// The one that ships.
    Shipped,
    /// With one more cargo feature.
    Feature(&'a str),
}

/// Builds the object and returns its path. Cargo decides what is up to date.
///
/// # Errors
///
/// No toolchain can be found or installed, or the code does not compile.
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
    let sources = kernel_sources::of(&paths.root)?;
    sh::run(command.current_dir(&paths.root))?;
    let built = target.join("bpfel-unknown-none/release/pp-ebpf");
    let changed = copy_if_changed(&built, &object)?;
    if matches!(variant, Variant::Shipped) {
        let record = kernel_sources::record(&object);
        if changed && record.exists() {
            // If the process stops here, the sources of the object are unknown, and nothing embeds it.
            fs::remove_file(&record).with_context(|| format!("{}: not removable", record.display()))?;
        }
        if let Some(file) = kernel_sources::difference(&sources, &kernel_sources::of(&paths.root)?) {
            bail!("{file}: changed while the kernel object was built; run it again");
        }
        paths::write_if_changed(&record, &sources)?;
    }
    let size = fs::metadata(&object)?.len();
    let news = if changed { "new" } else { "unchanged" };
    sh::say(format!("{}: {news}, {size} bytes, {} toolchain", object.display(), toolchain.name()));
    Ok(object)
}

/// Copies the file if its content differs, so that an unchanged object does not rebuild the agent.
fn copy_if_changed(from: &Path, to: &Path) -> Result<bool> {
    let new = fs::read(from).with_context(|| format!("{}: not readable", from.display()))?;
    if fs::read(to).is_ok_and(|old| old == new) {
        return Ok(false);
    }
    fs::write(to, new).with_context(|| format!("{}: not writable", to.display()))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let place = tempfile::tempdir().expect("a folder");
        let whole = [("pp-common/Cargo.toml", "c"), ("pp-ebpf/Cargo.toml", "e"), ("pp-ebpf/src/main.rs", "fn main() {}")];
        let lock = [("Cargo.lock", "[[package]]\nname = \"aya-ebpf\"\nversion = \"1\"\n\n[[package]]\nname = \"clap\"\n")];
        for (name, text) in whole.iter().chain(&lock).chain(&[("pp-common/src/a/b.rs", "1")]).chain(files) {
            let file = place.path().join(name);
            fs::create_dir_all(file.parent().expect("a folder")).expect("made");
            fs::write(file, text).expect("written");
        }
        place
    }

    #[test]
    fn the_file_that_makes_an_object_stale_is_named() {
        let before = kernel_sources::of(tree(&[]).path()).expect("read");
        let changed = |files: &[(&str, &str)]| {
            let now = kernel_sources::of(tree(files).path()).expect("read");
            assert_eq!(kernel_sources::difference(&now, &before).is_some(), kernel_sources::difference(&before, &now).is_some());
            kernel_sources::difference(&before, &now)
        };
        assert_eq!(changed(&[]), None);
        assert_eq!(changed(&[("pp-common/src/a/b.rs", "2")]).as_deref(), Some("pp-common/src/a/b.rs"));
        assert_eq!(changed(&[("pp-ebpf/src/main.rs", "fn main() {} // longer")]).as_deref(), Some("pp-ebpf/src/main.rs"));
        assert!(changed(&[("pp-ebpf/src/more.rs", "")]).is_some());
        assert!(changed(&[("pp-ebpf/Cargo.toml", "other")]).is_some());
        assert!(changed(&[("Cargo.lock", "[[package]]\nname = \"aya-ebpf\"\nversion = \"2\"\n")]).is_some());
    }

    #[test]
    fn what_the_object_is_not_made_of_leaves_it_as_it_is() {
        let before = kernel_sources::of(tree(&[]).path()).expect("read");
        for other in
            [("pp-agent/src/lib.rs", "x"), ("pp-common/src/tests.rs", "x"), ("pp-common/src/a/b_tests.rs", "x"), ("pp-ebpf/README", "x")]
        {
            let now = kernel_sources::of(tree(&[other]).path()).expect("read");
            assert_eq!(kernel_sources::difference(&before, &now), None, "{other:?}");
        }
        let lock = "[[package]]\nname = \"aya-ebpf\"\nversion = \"1\"\n\n[[package]]\nname = \"clap\"\nversion = \"9\"\n";
        let now = kernel_sources::of(tree(&[("Cargo.lock", lock)]).path()).expect("read");
        assert_eq!(kernel_sources::difference(&before, &now), None);
    }
}
