// What the kernel object is made of, as text, so that an object of other sources is not taken for one of these. `cargo xtask build-ebpf`
// writes it beside the object, the agent's build script compares. Both compile this file: it needs nothing but the standard library.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Folders of which every source counts, but for those that only tests compile.
pub(crate) const FOLDERS: [&str; 2] = ["pp-common/src", "pp-ebpf/src"];
/// Other files that count.
pub(crate) const FILES: [&str; 2] = ["pp-common/Cargo.toml", "pp-ebpf/Cargo.toml"];
/// Of the lock file the packages count whose names begin so.
const PACKAGES: &str = "aya-";

/// The file beside an object that has its sources.
pub(crate) fn record(object: &Path) -> PathBuf {
    object.with_extension("sources")
}

/// The sources below the workspace's root, each after a line with its name and length.
///
/// # Errors
/// One that cannot be read.
pub(crate) fn of(root: &Path) -> io::Result<String> {
    let mut files: Vec<PathBuf> = FILES.iter().map(|file| root.join(file)).collect();
    for folder in FOLDERS {
        collect(&root.join(folder), &mut files)?;
    }
    files.sort();
    let mut text = String::new();
    let mut add = |name: &str, content: &str| text.push_str(&format!("=== {name} {}\n{content}\n", content.len()));
    for file in files {
        let name = file.strip_prefix(root).unwrap_or(&file).display().to_string();
        add(&name, &fs::read_to_string(&file).map_err(|error| io::Error::new(error.kind(), format!("{name}: {error}")))?);
    }
    let lock = fs::read_to_string(root.join("Cargo.lock"))?;
    let locked = lock.split("\n\n").filter(|package| package.contains(&format!("name = \"{PACKAGES}")));
    add("Cargo.lock", &locked.collect::<Vec<_>>().join("\n\n"));
    Ok(text)
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            collect(&path, files)?;
        } else if name.ends_with(".rs") && name != "tests.rs" && !name.ends_with("_tests.rs") {
            files.push(path);
        }
    }
    Ok(())
}

/// The first file of which two texts differ; none when they are the same.
pub(crate) fn difference(one: &str, other: &str) -> Option<String> {
    let at = one.bytes().zip(other.bytes()).position(|(one, other)| one != other);
    // One may be the beginning of the other.
    let at = at.or_else(|| (one.len() != other.len()).then(|| one.len().min(other.len())))?;
    let name = |text: &str| {
        let lines = text.get(..at)?.rfind("=== ").map(|start| text[start + 4..].split('\n').next());
        lines.flatten().and_then(|line| line.rsplit_once(' ')).map(|(name, _)| name.to_owned())
    };
    Some(name(one).or_else(|| name(other)).unwrap_or_else(|| "its first file".to_owned()))
}
