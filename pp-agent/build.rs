//! Tells the compiler where the kernel object is that the agent embeds.
//! `cargo xtask build-ebpf` builds it; this script only points at it.

use std::path::PathBuf;

fn main() {
    println!("cargo::rerun-if-env-changed=PP_EBPF_OBJECT");
    println!("cargo::rerun-if-env-changed=PP_ABI_VERSION");
    let object = match std::env::var_os("PP_EBPF_OBJECT") {
        Some(path) => PathBuf::from(path),
        None => PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/pp-cache/ebpf/pp-ebpf"),
    };
    println!("cargo::rerun-if-changed={}", object.display());
    match object.canonicalize() {
        Ok(path) => println!("cargo::rustc-env=PP_EBPF_OBJECT={}", path.display()),
        Err(error) => {
            println!("cargo::error={}: {error}; build the kernel object first: cargo xtask build-ebpf", object.display());
        }
    }
}
