//! Runs other programs: announces, times and checks them.

use std::{
    ffi::OsStr,
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, bail};

/// Prints a message for the user to standard error. Standard output is for results.
pub(crate) fn say(text: impl AsRef<str>) {
    eprintln!("xtask: {}", text.as_ref());
}

/// Announces a step, runs it and prints how long it took.
pub(crate) fn step<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    say(format!("{what} ..."));
    let start = Instant::now();
    let done = work().with_context(|| what.to_owned())?;
    say(format!("{what}: done in {:.1} s", start.elapsed().as_secs_f64()));
    Ok(done)
}

/// A command with its arguments.
pub(crate) fn cmd<S: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(program);
    command.args(args);
    command
}

/// The command as it is typed in a shell.
pub(crate) fn shown(command: &Command) -> String {
    let words: Vec<_> =
        std::iter::once(command.get_program()).chain(command.get_args()).map(|word| quote(&word.to_string_lossy())).collect();
    words.join(" ")
}

/// One word, quoted for a POSIX shell if necessary.
pub(crate) fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=+./,:@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Runs the command with our output. Every exit code but 0 is an error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("{}: did not start", shown(command)))?;
    if !status.success() {
        bail!("{}: {status}", shown(command));
    }
    Ok(())
}

/// Runs the command silently. An error contains the last lines of its output.
pub(crate) fn run_quiet(command: &mut Command) -> Result<String> {
    let out = command.stdin(Stdio::null()).output().with_context(|| format!("{}: did not start", shown(command)))?;
    if !out.status.success() {
        let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        let tail: Vec<_> = text.lines().rev().take(15).collect();
        let tail: Vec<_> = tail.into_iter().rev().collect();
        bail!("{}: {}\n{}", shown(command), out.status, tail.join("\n"));
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// Runs a long command and shows a line of its output every few seconds as progress.
pub(crate) fn run_with_progress(command: &mut Command) -> Result<()> {
    let name = shown(command);
    let (reader, writer) = std::io::pipe().context("pipe")?;
    command.stdin(Stdio::null()).stdout(writer.try_clone().context("pipe")?).stderr(writer);
    let mut child = command.spawn().with_context(|| format!("{name}: did not start"))?;
    // The command holds write ends of the pipe. While they are open, the reader does not see the end.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut tail: Vec<String> = Vec::new();
    let mut last = Instant::now();
    for line in BufReader::new(reader).split(b'\n') {
        let line = String::from_utf8_lossy(&line.context("pipe")?).trim_end().to_owned();
        if last.elapsed().as_secs() >= 5 && !line.trim().is_empty() {
            let short: String = line.trim().chars().take(100).collect();
            say(format!("    {short}"));
            last = Instant::now();
        }
        tail.push(line);
        if tail.len() > 30 {
            tail.remove(0);
        }
    }
    let status = child.wait().with_context(|| name.clone())?;
    if !status.success() {
        bail!("{name}: {status}\n{}", tail.join("\n"));
    }
    Ok(())
}

/// The program's full path on `PATH` (or in the sbin directories), if any.
pub(crate) fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':').chain(["/usr/local/sbin", "/usr/sbin", "/sbin"]).map(|dir| PathBuf::from(dir).join(program)).find(|file| file.is_file())
}

/// Whether we are root.
pub(crate) fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_with_blanks_or_quotes_survive_a_shell() {
        for word in ["plain", "", "two words", "it's", "$HOME", "a\nb"] {
            let out = run_quiet(&mut cmd("sh", ["-c", &format!("printf %s {}", quote(word))])).expect("sh runs");
            assert_eq!(out, word);
        }
    }

    #[test]
    fn a_failing_command_is_an_error_with_its_output() {
        let err = run_with_progress(&mut cmd("sh", ["-c", "echo broken; exit 3"])).expect_err("it fails");
        assert!(format!("{err}").contains("broken"), "{err}");
    }
}
