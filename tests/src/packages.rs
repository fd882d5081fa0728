//! Real packages of AI agents, started as people start them, each made to start a child of its own without a model.
//!
//! `cargo xtask setup --only agents` installs them, pinned by the files of `tests/lab/agents`. They run in the lab's engineering network,
//! which leads nowhere outside, each start with an empty home of its own. What makes a package start a child is in [`PACKAGES`]: most are
//! told of an MCP server, which they start to ask what it can do; aider runs the project's tests.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::lab::{Lab, PLC, Place};
use crate::run::{self, Running};
use crate::{paths, wait};

/// One package.
pub struct Package {
    /// What the tests call it.
    pub name: &'static str,
    /// The shipped agent whose rules must find it.
    pub agent: &'static str,
    /// How it is started.
    pub ways: &'static [Way],
    /// The directory below the packages' own where it is installed.
    project: &'static str,
    /// Its name in its registry.
    package: &'static str,
    /// The program it puts on `PATH`.
    program: &'static str,
    /// Writes what makes it start the child; returns its arguments.
    child: fn(&Home) -> Result<Vec<String>>,
}

/// A way to start a package.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// By its name, a link in a directory of the user's own on `PATH`.
    Name,
    /// By the path of a project's `node_modules/.bin`.
    Path,
    /// `npx PACKAGE`.
    Npx,
    /// `npm exec -- PROGRAM`.
    NpmExec,
    /// `node FILE`.
    Node,
    /// `python -m MODULE`.
    Module,
    /// `uv run PROGRAM`.
    UvRun,
}

/// For a package that is a native program behind its link.
const NATIVE: &[Way] = &[Way::Name, Way::Path, Way::Npx, Way::NpmExec];
/// For a package that is a script.
const SCRIPT: &[Way] = &[Way::Name, Way::Path, Way::Npx, Way::NpmExec, Way::Node];

/// Every package that is tried. The first of its ways is also tried without its rules: its child must be able to arrive.
pub static PACKAGES: [Package; 9] = [
    Package {
        name: "claude-code",
        agent: "claude-code",
        ways: NATIVE,
        project: "npm",
        package: "@anthropic-ai/claude-code",
        program: "claude",
        child: claude,
    },
    Package {
        name: "claude-code-older",
        agent: "claude-code",
        ways: SCRIPT,
        project: "npm-older",
        package: "@anthropic-ai/claude-code",
        program: "claude",
        child: claude,
    },
    Package { name: "codex", agent: "codex", ways: SCRIPT, project: "npm", package: "@openai/codex", program: "codex", child: codex },
    Package {
        name: "gemini-cli",
        agent: "gemini-cli",
        ways: SCRIPT,
        project: "npm",
        package: "@google/gemini-cli",
        program: "gemini",
        child: gemini,
    },
    Package {
        name: "opencode",
        agent: "opencode",
        ways: NATIVE,
        project: "npm",
        package: "opencode-ai",
        program: "opencode",
        child: opencode,
    },
    Package {
        name: "qwen-code",
        agent: "qwen-code",
        ways: SCRIPT,
        project: "npm",
        package: "@qwen-code/qwen-code",
        program: "qwen",
        child: qwen,
    },
    Package { name: "amp", agent: "amp", ways: NATIVE, project: "npm", package: "@ampcode/cli", program: "amp", child: amp },
    Package {
        name: "continue",
        agent: "continue",
        ways: SCRIPT,
        project: "npm",
        package: "@continuedev/cli",
        program: "cn",
        child: continue_cli,
    },
    Package {
        name: "aider",
        agent: "aider",
        ways: &[Way::Name, Way::Module, Way::UvRun],
        project: "venv",
        package: "aider",
        program: "aider",
        child: aider,
    },
];

/// The package that the tests call so.
///
/// # Errors
/// There is none.
pub fn named(name: &str) -> Result<&'static Package> {
    PACKAGES.iter().find(|package| package.name == name).with_context(|| format!("{name}: no such package"))
}

/// Where one start happens: a home that nothing else uses, and the child's command.
pub struct Home {
    path: PathBuf,
    child: Vec<String>,
}

impl Home {
    fn new(lab: &Lab, name: &str) -> Result<Self> {
        let path = lab.directory().join("homes").join(format!("{name}-{}", Uuid::new_v4()));
        fs::create_dir_all(path.join("work")).with_context(|| path.display().to_string())?;
        let text = |file: &str| path.join(file).display().to_string();
        let child = vec![
            lab.program("pp-workload").display().to_string(),
            "child".into(),
            "--answer".into(),
            text("answer"),
            "--until".into(),
            text("end"),
            PLC.to_string(),
        ];
        Ok(Self { path, child })
    }

    fn write(&self, file: &str, text: &str) -> Result<PathBuf> {
        let file = self.path.join(file);
        fs::create_dir_all(file.parent().unwrap_or(&self.path))?;
        fs::write(&file, text).with_context(|| file.display().to_string())?;
        Ok(file)
    }

    /// The child as most agents want an MCP server to be described.
    fn server(&self) -> Value {
        json!({"command": self.child[0], "args": self.child[1..]})
    }

    fn servers(&self, file: &str, member: &str) -> Result<()> {
        let _file = self.write(file, &json!({member: {"lab": self.server()}}).to_string())?;
        Ok(())
    }
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn claude(home: &Home) -> Result<Vec<String>> {
    home.servers(".claude.json", "mcpServers")?;
    Ok(words(&["mcp", "list"]))
}

fn codex(home: &Home) -> Result<Vec<String>> {
    // JSON's strings and arrays are TOML's. The provider is at a closed port: the MCP servers are started before it is asked anything.
    let (command, arguments) = (json!(home.child[0]), json!(home.child[1..]));
    let text = format!(
        "model = \"lab\"\nmodel_provider = \"lab\"\n[model_providers.lab]\nname = \"lab\"\nbase_url = \"http://127.0.0.1:9/v1\"\n\
         wire_api = \"responses\"\n[analytics]\nenabled = false\n[mcp_servers.lab]\ncommand = {command}\nargs = {arguments}\n"
    );
    let _file = home.write(".codex/config.toml", &text)?;
    Ok(words(&["exec", "--skip-git-repo-check", "hello"]))
}

fn gemini(home: &Home) -> Result<Vec<String>> {
    home.servers(".gemini/settings.json", "mcpServers")?;
    Ok(words(&["mcp", "list"]))
}

fn qwen(home: &Home) -> Result<Vec<String>> {
    home.servers(".qwen/settings.json", "mcpServers")?;
    Ok(words(&["mcp", "list"]))
}

fn opencode(home: &Home) -> Result<Vec<String>> {
    let configuration = json!({"autoupdate": false, "mcp": {"lab": {"type": "local", "command": home.child, "enabled": true}}});
    let _file = home.write(".config/opencode/opencode.json", &configuration.to_string())?;
    Ok(words(&["mcp", "list"]))
}

fn amp(home: &Home) -> Result<Vec<String>> {
    home.servers(".config/amp/settings.json", "amp.mcpServers")?;
    Ok(words(&["mcp", "doctor"]))
}

fn continue_cli(home: &Home) -> Result<Vec<String>> {
    let mut server = home.server();
    server["name"] = json!("lab");
    let model = json!({"name": "lab", "provider": "openai", "model": "lab", "apiKey": "none", "apiBase": "http://127.0.0.1:9/"});
    let configuration = json!({"name": "lab", "version": "0.0.1", "schema": "v1", "models": [model], "mcpServers": [server]});
    let file = home.write("config.yaml", &configuration.to_string())?;
    Ok(words(&["-p", "--config", &file.display().to_string(), "hello"]))
}

fn aider(home: &Home) -> Result<Vec<String>> {
    // With a table of models at hand it does not look for one in the network.
    let models = json!({"lab": {"max_input_tokens": 1000, "litellm_provider": "openai", "mode": "chat"}});
    let _file = home.write(".aider/caches/model_prices_and_context_window.json", &models.to_string())?;
    let mut all = words(&["--no-git", "--yes-always", "--no-check-update", "--analytics-disable", "--no-show-release-notes"]);
    all.extend(words(&["--no-show-model-warnings", "--model", "lab", "--test-cmd", &home.child.join(" "), "--test"]));
    Ok(all)
}

/// What keeps the packages from asking for updates and telling about themselves. Their network would let none of it out.
const SILENCE: [(&str, &str); 16] = [
    ("AIDER_ANALYTICS_DISABLE", "true"),
    ("AMP_SKIP_UPDATE_CHECK", "1"),
    ("AMP_URL", "http://127.0.0.1:9/"),
    ("AMP_API_KEY", "none"),
    ("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1"),
    ("CODEX_API_KEY", "none"),
    ("CONTINUE_TELEMETRY_ENABLED", "0"),
    ("DISABLE_AUTOUPDATER", "1"),
    ("DISABLE_TELEMETRY", "1"),
    ("DO_NOT_TRACK", "1"),
    ("GEMINI_CLI_TRUST_WORKSPACE", "true"),
    ("GEMINI_TELEMETRY_ENABLED", "false"),
    ("LITELLM_LOCAL_MODEL_COST_MAP", "True"),
    ("NO_UPDATE_NOTIFIER", "1"),
    ("OPENCODE_DISABLE_AUTOUPDATE", "1"),
    ("OPENCODE_DISABLE_MODELS_FETCH", "1"),
];

/// A command in the engineering network with this home and nothing of the caller's environment.
fn command(lab: &Lab, home: &Home, command: &[String]) -> Result<Command> {
    let agents = paths::agents()?;
    let own = [home.path.join(".npm-global/bin"), home.path.join(".local/bin"), agents.join("bin")];
    let own = own.map(|directory| directory.display().to_string()).join(":");
    let mut command = lab.command(Place::Engineering, command);
    command.env_clear().envs(SILENCE).current_dir(home.path.join("work"));
    command.env("HOME", &home.path).env("PATH", format!("{own}:/usr/bin:/bin")).env("TERM", "dumb").env("LANG", "C.UTF-8");
    command.env("VIRTUAL_ENV", agents.join("venv")).env("UV_OFFLINE", "1");
    Ok(command)
}

impl Package {
    /// Starts it so, in the engineering network, with a home of its own.
    ///
    /// # Errors
    /// It is not installed, or cannot be started.
    pub fn start(&self, lab: &Lab, way: Way) -> Result<Started> {
        let home = Home::new(lab, self.name)?;
        let arguments = (self.child)(&home)?;
        let installed = paths::agents()?.join(self.project);
        let before =
            if self.project == "venv" { self.python_words(&home, &installed, way)? } else { self.node_words(&home, &installed, way)? };
        let all: Vec<String> = before.into_iter().chain(arguments).collect();
        Ok(Started { running: Some(Running::start(&mut command(lab, &home, &all)?)?), home })
    }

    fn python_words(&self, home: &Home, installed: &Path, way: Way) -> Result<Vec<String>> {
        let local = home.path.join(".local/bin");
        fs::create_dir_all(&local)?;
        symlink(installed.join("bin").join(self.program), local.join(self.program))?;
        let file = |name: &str| installed.join("bin").join(name).display().to_string();
        Ok(match way {
            Way::Name => words(&[self.program]),
            Way::Module => words(&[&file("python"), "-m", self.package]),
            Way::UvRun => words(&[&file("uv"), "run", "--active", "--no-project", self.program]),
            Way::Path | Way::Npx | Way::NpmExec | Way::Node => bail!("{}: not a package of npm's", self.name),
        })
    }

    fn node_words(&self, home: &Home, installed: &Path, way: Way) -> Result<Vec<String>> {
        // A global directory as npm lays it out: packages in lib, and for each program a link into them.
        let global = home.path.join(".npm-global");
        fs::create_dir_all(global.join("bin"))?;
        fs::create_dir_all(global.join("lib"))?;
        symlink(installed.join("node_modules"), global.join("lib/node_modules"))?;
        let link = installed.join("node_modules/.bin").join(self.program);
        let target = fs::read_link(&link).with_context(|| link.display().to_string())?;
        let target = Path::new("../lib/node_modules").join(target.strip_prefix("..").unwrap_or(&target));
        symlink(&target, global.join("bin").join(self.program))?;
        // And a project that has the package installed.
        let project = home.path.join("work");
        fs::copy(installed.join("package.json"), project.join("package.json"))?;
        symlink(installed.join("node_modules"), project.join("node_modules"))?;
        Ok(match way {
            Way::Name => words(&[self.program]),
            Way::Path => vec![project.join("node_modules/.bin").join(self.program).display().to_string()],
            Way::Npx => words(&["npx", "--offline", self.package]),
            Way::NpmExec => words(&["npm", "exec", "--offline", "--", self.program]),
            Way::Node => vec!["node".into(), global.join("bin").join(&target).display().to_string()],
            Way::Module | Way::UvRun => bail!("{}: a package of npm's", self.name),
        })
    }
}

/// Starts the child by nobody's doing: the control.
///
/// # Errors
/// It cannot be started.
pub fn child_of_nobody(lab: &Lab) -> Result<Started> {
    started_with_child(lab, |_, child| Ok(child.to_vec()))
}

/// Starts a command that is to start the child; it is told the directory it begins in and the child's command.
///
/// # Errors
/// It cannot be started.
pub fn started_with_child(lab: &Lab, words: impl FnOnce(&Path, &[String]) -> Result<Vec<String>>) -> Result<Started> {
    let home = Home::new(lab, "nobody")?;
    let words = words(&home.path.join("work"), &home.child)?;
    Ok(Started { running: Some(Running::start(&mut command(lab, &home, &words)?)?), home })
}

/// A package that runs, and the child that it started or will start. Dropping it ends both.
pub struct Started {
    running: Option<Running>,
    home: Home,
}

impl Started {
    /// The process that was started: the agent itself, or what starts it.
    ///
    /// # Errors
    /// It is over.
    pub fn pid(&self) -> Result<u32> {
        Ok(self.running.as_ref().context("it is over")?.pid())
    }

    /// Waits for the child's answer: `ok` or `errno`, and its `pid`. The child lives on.
    ///
    /// # Errors
    /// The agent ended without one, or none came in time; the error shows what the agent printed.
    pub fn answer(&mut self) -> Result<Value> {
        let file = self.home.path.join("answer");
        let running = self.running.as_mut().context("it is over")?;
        let read = || fs::read_to_string(&file).ok().and_then(|text| serde_json::from_str::<Value>(&text).ok());
        let found = wait::until("the child's answer", run::PATIENCE, || match read() {
            Some(answer) => Some(Some(answer)),
            None if running.is_running() => None,
            // It may have come between the two looks.
            None => Some(read()),
        });
        let output = format!("stdout: {}\nstderr: {}", running.stdout(), running.stderr());
        found.with_context(|| output.clone())?.with_context(|| format!("ended without starting its child\n{output}"))
    }

    /// Waits for the end of what was started, the child included, and returns what it printed.
    ///
    /// # Errors
    /// It did not end well.
    pub fn finish(mut self) -> Result<run::Output> {
        fs::write(self.home.path.join("end"), "")?;
        self.running.take().context("it is over")?.finish(run::PATIENCE)?.success()
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        // The agent first: it would start its child again.
        self.running = None;
        if let Err(error) = fs::write(self.home.path.join("end"), "") {
            eprintln!("{}: {error}", self.home.path.display());
        }
    }
}
