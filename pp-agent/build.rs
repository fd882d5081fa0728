//! Tells the compiler where the kernel object is that the agent embeds. `cargo xtask build-ebpf` builds it and writes down of which sources;
//! this script fails where these are others. An object that `PP_EBPF_OBJECT` names is taken as it is, unless its sources lie beside it.

mod kernel_sources;

use std::{env, fs, path::PathBuf};

fn main() {
    println!("cargo::rerun-if-env-changed=PP_EBPF_OBJECT");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=kernel_sources.rs");
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let named = env::var_os("PP_EBPF_OBJECT").map(PathBuf::from);
    let is_named = named.is_some();
    let object = named.unwrap_or_else(|| root.join("target/pp-cache/ebpf/pp-ebpf"));
    let record = kernel_sources::record(&object);
    for path in [&object, &record] {
        println!("cargo::rerun-if-changed={}", path.display());
    }
    for path in kernel_sources::FOLDERS.iter().chain(&kernel_sources::FILES) {
        println!("cargo::rerun-if-changed={}", root.join(path).display());
    }
    match object.canonicalize() {
        Ok(path) => println!("cargo::rustc-env=PP_EBPF_OBJECT={}", path.display()),
        Err(error) => return fail(&format!("{}: {error}", object.display())),
    }
    let recorded = match fs::read_to_string(&record) {
        Ok(recorded) => recorded,
        Err(error) if is_named && error.kind() == std::io::ErrorKind::NotFound => return,
        Err(error) => return fail(&format!("{}: {error}; of which sources the kernel object is made is not known", record.display())),
    };
    match kernel_sources::of(&root).map(|now| kernel_sources::difference(&recorded, &now)) {
        Ok(None) => {}
        Ok(Some(file)) => fail(&format!("{}: made of other sources, {file} has changed", object.display())),
        Err(error) => fail(&format!("the kernel object's sources: {error}")),
    }
}

fn fail(what: &str) {
    println!("cargo::error={what}; build the kernel object first: cargo xtask build-ebpf");
}
