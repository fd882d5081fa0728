//! Builds `first-connect/main.rs`, a program with no start-up code of its own, into the output directory: cargo would build it with the
//! workspace's panic strategy, which needs the standard library.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=first-connect/main.rs");
    let variable = |name: &str| env::var_os(name).map(PathBuf::from).unwrap_or_else(|| panic!("cargo did not set {name}"));
    let status = Command::new(variable("RUSTC"))
        .args([
            "--edition",
            "2024",
            "--crate-name",
            "pp_first_connect",
            "--target",
            "x86_64-unknown-linux-gnu",
            "-Cpanic=abort",
            "-Copt-level=2",
        ])
        .args([
            "-Crelocation-model=static",
            "-Clink-arg=-nostartfiles",
            "-Clink-arg=-nostdlib",
            "-Clink-arg=-static",
            "first-connect/main.rs",
            "-o",
        ])
        .arg(variable("OUT_DIR").join("pp-first-connect"))
        .status()
        .expect("rustc could not be started");
    assert!(status.success(), "first-connect/main.rs did not build");
}
