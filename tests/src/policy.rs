//! The policy of the tests: one plant, two gateways, two agents, and what a test adds.

use std::fmt::Write as _;
use std::path::Path;

use crate::lab::Lab;

/// The host's name in the tests' policy.
pub const HOST: &str = "eng-ws-12";
/// The tenant in the tests' policy.
pub const TENANT: &str = "acme-water";
/// The decider that the tests' key speaks for.
pub const DECIDER: &str = "user:shift-lead@acme.example";
/// The id of the tests' key.
pub const KEY: &str = "shift-lead-2026";
/// The agent that most tests run.
pub const AGENT: &str = "claude-code";
/// The other agent.
pub const OTHER_AGENT: &str = "codex";

/// A policy being put together.
#[derive(Clone, Debug)]
pub struct Policy {
    top: String,
    agents: String,
    sections: String,
}

impl Policy {
    /// The policy that tests start from. The agents are found by their paths in the lab, never by a bare name, so that nothing else on the
    /// machine becomes theirs.
    #[must_use]
    pub fn standard(lab: &Lab) -> Self {
        let bin = lab.directory().join("bin");
        let bin = bin.display();
        Self {
            top: format!("host = \"{HOST}\"\ntenant = \"{TENANT}\"\nmode = \"enforce\"\n"),
            agents: format!(
                "[[agent]]\nname = \"{AGENT}\"\nexec = [\"{bin}/lab-claude\", \"{bin}/lab-first-claude\"]\nreplace = true\n\n\
                 [[agent]]\nname = \"{OTHER_AGENT}\"\nexec = [\"{bin}/lab-codex\"]\nreplace = true\n\n"
            ),
            sections: format!(
                "[[zone]]\nname = \"plant-7\"\nnetworks = [\"10.20.0.0/16\", \"fd00:20::/32\"]\n\n\
                 [[gateway]]\nname = \"vnode-east\"\naddress = \"10.30.4.9\"\nports = [443, 8443]\n\n\
                 [[gateway]]\nname = \"vnode-west\"\naddress = \"10.30.4.10\"\nports = [8443]\n\n\
                 [services]\nenable = [\"modbus\", \"opc-ua\", \"s7comm\", \"dnp3\", \"ethernet-ip\", \"iec-104\", \"bacnet\"]\n\
                 replace = true\n\n\
                 [[authority]]\nkey_id = \"{KEY}\"\ndecider = \"{DECIDER}\"\nzones = [\"plant-7\"]\ngateways = [\"vnode-east\", \"vnode-west\"]\n\
                 services = [\"modbus\"]\nmax_ttl = \"8h\"\n\n"
            ),
        }
    }

    /// The policy as this project ships it, with the lab's host, plant, gateways, agents and key.
    #[must_use]
    pub fn shipped(lab: &Lab) -> Self {
        let standard = Self::standard(lab);
        let shipped = include_str!("../../dist/policy.toml");
        let (host, tenant) = (format!("\nhost = \"{HOST}\" "), format!("\ntenant = \"{TENANT}\" "));
        let top = shipped.replace("\n# host = \"eng-ws-12\"", &host).replace("\n# tenant = \"acme-water\"", &tenant);
        assert!(top.contains(&host) && top.contains(&tenant), "the shipped policy has no place for host and tenant");
        let (before, services) = standard.sections.split_once("[services]").unwrap_or_default();
        let (_, authority) = services.split_once("[[authority]]").unwrap_or_default();
        Self { top, sections: format!("{before}[[authority]]{authority}"), agents: standard.agents }
    }

    /// The same where tools that attack are told and run: what they do is what counts.
    #[must_use]
    pub fn attacked(lab: &Lab) -> Self {
        Self::shipped(lab).with("[exec]\nmode = \"observe\"\n")
    }

    /// The same with more tables at its end.
    #[must_use]
    pub fn with(mut self, sections: &str) -> Self {
        self.sections.push_str(sections);
        self.sections.push('\n');
        self
    }

    /// The same with more keys before the first table.
    #[must_use]
    pub fn with_top(mut self, keys: &str) -> Self {
        self.top.push_str(keys);
        self.top.push('\n');
        self
    }

    /// The same with one part of it exchanged for another.
    ///
    /// # Panics
    /// The part does not occur: the test means another policy than this one.
    #[must_use]
    pub fn replacing(mut self, part: &str, by: &str) -> Self {
        let before = self.text();
        for text in [&mut self.top, &mut self.agents, &mut self.sections] {
            *text = text.replace(part, by);
        }
        assert_ne!(before, self.text(), "the policy has no `{part}`");
        self
    }

    /// The same with one more agent, whose rule is `rule` (`user = [...]`, `cgroup = [...]`).
    #[must_use]
    pub fn with_agent(mut self, name: &str, rule: &str) -> Self {
        // Writing to a string cannot fail.
        let _written = write!(self.agents, "[[agent]]\nname = \"{name}\"\n{rule}\n\n");
        self
    }

    /// The same with the shipped agents' own rules in place of the lab's.
    #[must_use]
    pub fn with_shipped_agents(mut self) -> Self {
        self.agents.clear();
        self
    }

    /// The policy as text.
    #[must_use]
    pub fn text(&self) -> String {
        format!("{}\n{}{}", self.top, self.sections, self.agents)
    }

    /// Writes it for the daemon, readable by its owner alone.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> std::io::Result<()> {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::write(path, self.text())?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o640))
    }
}
