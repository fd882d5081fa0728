//! Fetches kernel packages without changing the machine's package state: with a temporary apt configuration that uses this machine's
//! mirrors, then `dpkg -x` into the cache.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    kernels::Kernel,
    paths::{self, Paths},
    sh,
};

/// A kernel, unpacked and ready to boot.
#[derive(Debug, Clone)]
pub(crate) struct Unpacked {
    /// The file to boot.
    pub(crate) image: PathBuf,
    /// Its `uname -r`.
    pub(crate) release: String,
    /// The directory that holds `lib/modules/<release>`.
    pub(crate) base: PathBuf,
}

/// The kernel in the cache. `None` if it is not there or incomplete.
pub(crate) fn unpacked(paths: &Paths, kernel: &Kernel) -> Option<Unpacked> {
    let dir = paths.kernel(&kernel.name);
    let stamp = fs::read_to_string(dir.join("fetched")).ok()?;
    let mut lines = stamp.lines();
    // The first line is the pin that it was fetched for. Another pin fetches it again.
    if lines.next()? != kernel.packages.join(" ") {
        return None;
    }
    let (release, image) = (lines.next()?.to_owned(), dir.join(lines.next()?));
    let base = dir.join("root");
    (image.is_file() && base.join("lib/modules").join(&release).join("modules.dep").is_file()).then_some(Unpacked { image, release, base })
}

/// Fetches and unpacks a kernel and indexes its modules, unless the cache has it.
pub(crate) fn ensure(paths: &Paths, kernel: &Kernel) -> Result<Unpacked> {
    if let Some(done) = unpacked(paths, kernel) {
        return Ok(done);
    }
    for tool in ["apt-get", "dpkg", "depmod"] {
        sh::which(tool).with_context(|| format!("{tool}: not installed; kernels come as Debian packages"))?;
    }
    sh::step(&format!("kernel {}: fetch {}", kernel.name, kernel.packages.join(" ")), || fetch(paths, kernel))
}

fn fetch(paths: &Paths, kernel: &Kernel) -> Result<Unpacked> {
    let dir = paths.kernel(&kernel.name);
    if dir.exists() {
        fs::remove_dir_all(&dir).with_context(|| format!("{}: not removable", dir.display()))?;
    }
    let apt = Apt::prepare(&dir.join("apt"), &kernel.suites)?;
    let debs = dir.join("debs");
    fs::create_dir_all(&debs)?;
    let download = |packages: &[String]| sh::run_with_progress(apt.get().arg("download").args(packages).current_dir(&debs));
    if let Err(pinned) = download(&kernel.packages) {
        let newest = apt.newest(kernel).with_context(|| format!("{pinned:#}"))?;
        sh::say(format!(
            "WARNING: kernel {}: the mirror no longer has {}; taking the newest of series {}: {}. Pin it in tests/kernels.toml",
            kernel.name,
            kernel.packages.join(" "),
            kernel.series,
            newest.join(" ")
        ));
        download(&newest)?;
    }
    let base = dir.join("root");
    for deb in files(&debs)? {
        sh::run_quiet(Command::new("dpkg").arg("-x").arg(&deb).arg(&base))?;
    }
    // Newer packages use usr/lib/modules; depmod and modprobe look for lib/modules.
    if !base.join("lib").exists() {
        std::os::unix::fs::symlink("usr/lib", base.join("lib"))?;
    }
    let modules = base.join("lib/modules");
    let release = match files(&modules)?.as_slice() {
        [only] => only.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        other => bail!("{}: {} kernel releases, one expected", modules.display(), other.len()),
    };
    sh::run_quiet(Command::new("depmod").arg("-b").arg(&base).arg(&release))?;
    let candidates = [base.join("boot").join(format!("vmlinuz-{release}")), modules.join(&release).join("vmlinuz")];
    let image = candidates.into_iter().find(|file| file.is_file()).context("the package holds no vmlinuz")?;
    fs::remove_dir_all(&debs)?;
    fs::remove_dir_all(dir.join("apt"))?;
    let shown = image.strip_prefix(&dir)?.display().to_string();
    fs::write(dir.join("fetched"), format!("{}\n{release}\n{shown}\n", kernel.packages.join(" ")))?;
    Ok(Unpacked { image, release, base })
}

fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).with_context(|| format!("{}: not readable", dir.display()))?;
    let mut found = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    found.sort();
    Ok(found)
}

/// A temporary apt state with its own sources and lists.
struct Apt {
    dir: PathBuf,
}

impl Apt {
    /// Writes sources for `suites` at the machine's own mirrors and updates the lists.
    fn prepare(dir: &Path, suites: &[String]) -> Result<Self> {
        let apt = Self { dir: dir.to_path_buf() };
        for sub in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(dir.join(sub))?;
        }
        paths::write_if_changed(&dir.join("sources.list"), &sources(suites)?)?;
        sh::run_with_progress(apt.get().arg("update"))?;
        Ok(apt)
    }

    fn get(&self) -> Command {
        self.command("apt-get")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for (option, value) in [("Dir::Etc::sourcelist", "sources.list"), ("Dir::State::lists", "lists"), ("Dir::Cache", "cache")] {
            command.arg("-o").arg(format!("{option}={}", self.dir.join(value).display()));
        }
        command.args(["-o", "Dir::Etc::sourceparts=-", "-o", "Acquire::Languages=none"]);
        command.args(["-o", "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false"]);
        // The unprivileged user that apt downloads as may be unable to read the cache.
        command.args(["-o", "APT::Sandbox::User=root"]);
        command
    }

    /// The newest packages of the kernel's series that this mirror has, named like the pinned ones.
    fn newest(&self, kernel: &Kernel) -> Result<Vec<String>> {
        let mut chosen = Vec::new();
        for pinned in &kernel.packages {
            // linux-image-5.10.0-46-amd64 -> linux-image-
            let kind: String = pinned.split_inclusive('-').take(2).collect();
            let prefix = format!("{kind}{}.", kernel.series);
            let names = sh::run_quiet(self.command("apt-cache").arg("pkgnames").arg(&prefix))?;
            let mut best: Option<(String, String)> = None;
            for name in names.lines().filter(|name| is_plain_kernel(name, &kind)) {
                let table = sh::run_quiet(self.command("apt-cache").args(["madison", name]))?;
                let Some(version) = table.lines().find_map(|line| line.split('|').nth(1)).map(str::trim) else { continue };
                let newer = best
                    .as_ref()
                    .is_none_or(|(_, old)| sh::run_quiet(&mut sh::cmd("dpkg", ["--compare-versions", version, "gt", old])).is_ok());
                if newer {
                    best = Some((name.to_owned(), version.to_owned()));
                }
            }
            let (name, version) = best.with_context(|| format!("{prefix}*: no such package on this mirror either"))?;
            chosen.push(format!("{name}={version}"));
        }
        Ok(chosen)
    }
}

/// A stock amd64 kernel: not real-time, not cloud (no 9p there), not unsigned, not debug.
fn is_plain_kernel(package: &str, kind: &str) -> bool {
    let rest = package.strip_prefix(kind).unwrap_or(package);
    rest.ends_with("-amd64") && !["-rt-", "-cloud-", "unsigned", "-dbg"].iter().any(|word| rest.contains(word))
}

/// apt sources for `suites` at the mirrors of the machine's own apt sources.
fn sources(suites: &[String]) -> Result<String> {
    let mut own = own_sources()?;
    if own.is_empty() {
        // The origin of a mirror is known only after the first update of the lists.
        sh::run_with_progress(&mut sh::cmd("apt-get", ["update"]))?;
        own = own_sources()?;
    }
    let debian = |security: bool| own.iter().find(|(_, release)| release.ends_with("-security") == security);
    let (main, _) = debian(false).context("apt sources of this machine name no Debian mirror; kernels need one")?;
    let keyring = ["debian-archive-keyring.gpg", "debian-archive-keyring.pgp"]
        .into_iter()
        .map(|name| Path::new("/usr/share/keyrings").join(name))
        .find(|file| file.is_file());
    let signed = keyring.map_or_else(String::new, |file| format!("[signed-by={}] ", file.display()));
    let mut text = String::new();
    for suite in suites {
        let security = suite.ends_with("-security");
        let uri = debian(security).map_or(main, |(uri, _)| uri);
        text.push_str(&format!("deb {signed}{uri} {suite} main\n"));
    }
    Ok(text)
}

/// Mirror and release of every Debian source of apt on this machine, in either file format.
fn own_sources() -> Result<Vec<(String, String)>> {
    let format = "$(ORIGIN)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)";
    let text = sh::run_quiet(&mut sh::cmd("apt-get", ["indextargets", "--format", format, "Created-By: Packages"]))?;
    let debian = |line: &str| match line.split('|').collect::<Vec<_>>().as_slice() {
        ["Debian", uri, release, "main"] => Some(((*uri).to_owned(), (*release).to_owned())),
        _ => None,
    };
    Ok(text.lines().filter_map(debian).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_kernels_are_not_taken_for_the_stock_one() {
        assert!(is_plain_kernel("linux-image-6.1.0-56-amd64", "linux-image-"));
        for other in ["linux-image-6.1.0-56-rt-amd64", "linux-image-6.1.0-56-cloud-amd64", "linux-image-6.1.0-56-amd64-dbg"] {
            assert!(!is_plain_kernel(other, "linux-image-"), "{other}");
        }
    }
}
