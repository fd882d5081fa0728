//! What `--json` prints is JSON and nothing else. A program of its own, not a test of the usual kind: that prints to standard output too.

#![allow(clippy::print_stdout, reason = "what is printed is what is tested")]

#[path = "../src/output.rs"]
mod output;

use std::process::{Command, Stdio};

/// Set for the child that prints.
const PART: &str = "PP_JSON_ALONE";

/// Prints a result amid what others print: this program, one that it starts, and one that it starts later.
fn prints(alone: bool) {
    let output = output::Output::open(alone).expect("standard output");
    println!("noise of this program");
    assert!(Command::new("echo").arg("noise of another").status().expect("echo").success());
    output.write("{\"result\": 1}").expect("written");
    assert!(Command::new("echo").arg("noise afterwards").status().expect("echo").success());
}

/// What such a child printed to standard output.
fn printed(part: &str) -> String {
    let own = std::env::current_exe().expect("this program");
    let output = Command::new(own).env(PART, part).stderr(Stdio::null()).output().expect("it starts");
    assert!(output.status.success(), "{part}: {:?}", output.status);
    String::from_utf8(output.stdout).expect("text")
}

fn main() {
    match std::env::var(PART).as_deref() {
        Ok(part) => return prints(part == "alone"),
        Err(_) => println!("json_alone"),
    }
    assert_eq!(printed("alone"), "{\"result\": 1}\n");
    // Without it the noise is there: else the line above would show nothing.
    let shared = printed("shared");
    assert!(shared.contains("noise of another") && shared.contains("{\"result\": 1}"), "{shared}");

    let house = Command::new(env!("CARGO_BIN_EXE_xtask")).args(["house", "--json"]).output().expect("it starts");
    let text = String::from_utf8(house.stdout).expect("text");
    let found: serde_json::Value = serde_json::from_str(&text).expect("JSON and nothing else");
    assert!(found["findings"].is_array() && found["new"].is_array(), "{text}");
    println!("json_alone: ok");
}
