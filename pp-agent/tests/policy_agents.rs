//! The shipped rules against recorded `execve` calls of the real packages: the
//! rules as compiled for the kernel, walked as the kernel walks them.

use pp_agent::config::Config;
use pp_agent::name::name_id;
use serde::Deserialize;

#[derive(Deserialize)]
struct Recorded {
    /// The agent it must be marked with; none: it must not be marked.
    agent: Option<String>,
    form: String,
    path: String,
    argv: Vec<String>,
}

#[test]
fn recorded_starts_of_agents_are_marked_and_others_are_not() {
    let recorded: Vec<Recorded> = serde_json::from_str(include_str!("fixtures/agents.json")).unwrap();
    assert!(recorded.iter().any(|call| call.agent.is_some()));
    assert!(recorded.iter().any(|call| call.agent.is_none()));
    let config = Config::builtin().unwrap();
    let mut wrong = Vec::new();
    for call in &recorded {
        let argv: Vec<&[u8]> = call.argv.iter().map(|arg| arg.as_bytes()).collect();
        let found = config.identity.matches(call.path.as_bytes(), &argv).filter(|id| *id != 0);
        if found != call.agent.as_deref().map(name_id) {
            let name = found.and_then(|id| config.identity.name(id)).unwrap_or("nobody");
            let expected = call.agent.as_deref().unwrap_or("nobody");
            wrong.push(format!("{name}, not {expected}: {} {:?} ({})", call.path, call.argv, call.form));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), recorded.len(), wrong.join("\n"));
}
