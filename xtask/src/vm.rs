//! Runs a command in a virtual machine with a chosen kernel and this machine's own files.
//!
//! QEMU emulates in software, so no `/dev/kvm` is needed. The guest has no network card, so it cannot send anything to the host's network.
//! It sees the host's files. The checkout and its build output have the same paths as on the host.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    fetch, initramfs,
    kernels::Matrix,
    paths::{self, Paths},
    sh, systemd,
};

/// Second stage for a plain command: mounts the usual file systems, runs `/out/command.sh`, powers off.
const RUN_COMMAND: &str = r#"bb=/usr/bin/busybox
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
$bb mkdir -p /dev/pts /run/lock
$bb mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
[ -e /dev/fd ] || $bb ln -s /proc/self/fd /dev/fd
$bb mount -t cgroup2 cgroup2 /sys/fs/cgroup
$bb mount -t bpf bpf /sys/fs/bpf
$bb mount -t securityfs securityfs /sys/kernel/security
$bb mount -t tracefs tracefs /sys/kernel/tracing
$bb ip link set lo up
$bb hostname pp-vm
ulimit -n 65536
$bb mkfifo /run/pp-output
$bb tee /out/stdout.log < /run/pp-output &
tee=$!
/bin/sh /out/command.sh < /dev/null > /run/pp-output 2>&1
echo $? > /out/exit-code
# What the command left running may hold its output open: not a reason to stay up.
for tenth in 1 2 3 4 5 6 7 8 9 10; do [ -e /proc/$tee/fd/0 ] && $bb sleep 0.1; done
$bb poweroff -f
"#;

/// A command to run in a virtual machine.
#[derive(Debug)]
pub(crate) struct Job<'a> {
    /// Kernel name of `tests/kernels.toml`.
    pub(crate) kernel: &'a str,
    /// More kernel command line.
    pub(crate) append: &'a str,
    /// Name of the run: its directory under the cache.
    pub(crate) run: &'a str,
    /// The command and its arguments.
    pub(crate) command: &'a [String],
    /// Variables for the command.
    pub(crate) env: &'a [(String, String)],
    /// Boot systemd as PID 1 and run the command as a unit.
    pub(crate) systemd: bool,
    /// The machine is killed after this time.
    pub(crate) deadline: Duration,
    /// Show the console while it runs.
    pub(crate) show: bool,
}

/// The result of a run.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// The command's exit code.
    pub(crate) exit_code: i32,
    /// The directory that is `/out` in the guest.
    pub(crate) out: PathBuf,
    /// `uname -r` of the booted image.
    pub(crate) release: String,
    /// From start to power-off.
    pub(crate) took: Duration,
}

/// Boots the machine, runs the command and powers off.
///
/// # Errors
///
/// The kernel or QEMU is missing, the deadline passes, or the guest ends without an exit code.
pub(crate) fn run(paths: &Paths, matrix: &Matrix, job: &Job<'_>) -> Result<Outcome> {
    let kernel = fetch::ensure(paths, matrix.kernel(job.kernel)?)?;
    let archive = initramfs::ensure(&kernel, &paths.kernel(job.kernel))?;
    let dir = paths.cache.join("vm").join(job.run);
    let out = dir.join("out");
    if out.exists() {
        fs::remove_dir_all(&out).with_context(|| format!("{}: not removable", out.display()))?;
    }
    fs::create_dir_all(&out)?;
    fs::write(out.join("command.sh"), command_script(paths, job))?;
    fs::write(out.join("stage2.sh"), if job.systemd { systemd::RUN_SYSTEMD } else { RUN_COMMAND })?;
    let modules = kernel.base.join("lib/modules").join(&kernel.release).canonicalize()?;
    fs::write(out.join("modules"), line(&modules)?)?;
    let shares = shares(paths)?;
    let lines = shares.iter().enumerate().map(|(number, place)| Ok(format!("{} {}", tag(number), line(place)?)));
    fs::write(out.join("shares"), lines.collect::<Result<String>>()?)?;
    let append = format!("console=ttyS0 quiet loglevel=3 panic=-1 no_timer_check random.trust_cpu=on mitigations=off {}", job.append);
    let start = Instant::now();
    let mut qemu = qemu(&kernel.image, &archive, &out, &shares, &append);
    let mut child = qemu.spawn().with_context(|| format!("{}: did not start", sh::shown(&qemu)))?;
    let console = dir.join("console.log");
    let ended = watch(&mut child, &console, start + job.deadline, job.show);
    // QEMU must not continue after an error. Killing a process that has ended is no error.
    child.kill().context("qemu: not ended")?;
    child.wait().context("qemu: not reaped")?;
    ended?;
    let exit_code = fs::read_to_string(out.join("exit-code")).ok().and_then(|text| text.trim().parse().ok());
    let Some(exit_code) = exit_code else {
        bail!("kernel {}: the guest wrote no exit code; end of {}:\n{}", job.kernel, console.display(), tail(&console));
    };
    Ok(Outcome { exit_code, out, release: kernel.release, took: start.elapsed() })
}

fn command_script(paths: &Paths, job: &Job<'_>) -> String {
    let mut text = format!("cd {}\n", sh::quote(&paths.root.display().to_string()));
    text.push_str("export HOME=/root TERM=dumb LANG=C.UTF-8\n");
    for (name, value) in job.env {
        text.push_str(&format!("export {name}={}\n", sh::quote(value)));
    }
    let words: Vec<_> = job.command.iter().map(|word| sh::quote(word)).collect();
    text.push_str(&format!("exec {}\n", words.join(" ")));
    text
}

/// The folders to mount: the checkout, and build output and fetched files if they are outside of it. They may be on other file systems than
/// the host's root, and a machine has its own `/tmp`, `/run` and `/dev`. No folder is below another.
fn shares(paths: &Paths) -> Result<Vec<PathBuf>> {
    let mut shares: Vec<PathBuf> = Vec::new();
    for place in [&paths.root, &paths.cache, &paths.target.join("debug"), &paths.target.join("release")] {
        // A folder may not exist.
        let Ok(real) = place.canonicalize() else { continue };
        if !shares.iter().any(|share| real.starts_with(share)) {
            shares.push(real);
        }
    }
    Ok(shares)
}

fn tag(number: usize) -> String {
    format!("share{number}")
}

/// A path as a line of a file that a shell script reads.
fn line(path: &Path) -> Result<String> {
    let text = path.to_str().filter(|text| !text.contains('\n'));
    Ok(text.with_context(|| format!("{}: not UTF-8 or with a line break; test machines cannot take it", path.display()))?.to_owned() + "\n")
}

/// A path as a value in a list of QEMU options.
fn option(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

fn qemu(image: &Path, archive: &Path, out: &Path, shares: &[PathBuf], append: &str) -> Command {
    // setpriv asks the kernel to kill the machine when we die. Other processes of this machine have priority.
    let mut command = Command::new("nice");
    command.args([
        "-n",
        "10",
        "setpriv",
        "--pdeathsig",
        "KILL",
        "qemu-system-x86_64",
        "-no-user-config",
        "-nodefaults",
        "-display",
        "none",
    ]);
    // An emulated processor is slower with wide registers. The suite recognises emulation by the name.
    let processor = "Nehalem,model-id=QEMU TCG";
    command.args(["-machine", "q35", "-accel", "tcg,thread=single", "-cpu", processor, "-smp", "2", "-m", "2048"]);
    command.args(["-nic", "none", "-no-reboot", "-serial", "stdio", "-device", "virtio-rng-pci"]);
    command.arg("-kernel").arg(image).arg("-initrd").arg(archive).args(["-append", append]);
    command.args(["-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap"]);
    command.args(["-device", "virtio-9p-pci,fsdev=root,mount_tag=hostroot"]);
    command.arg("-fsdev").arg(format!("local,id=out,path={},security_model=none", option(out)));
    command.args(["-device", "virtio-9p-pci,fsdev=out,mount_tag=out"]);
    for (number, share) in shares.iter().enumerate() {
        let tag = tag(number);
        command.arg("-fsdev").arg(format!("local,id={tag},path={},security_model=none,readonly=on,multidevs=remap", option(share)));
        command.arg("-device").arg(format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}"));
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    command
}

/// Copies the console to its log, and with `show` to the terminal, until the machine is off.
fn watch(child: &mut Child, log: &Path, deadline: Instant, show: bool) -> Result<()> {
    let output = child.stdout.take().context("qemu: no console")?;
    let mut file = fs::File::create(log).with_context(|| format!("{}: not creatable", log.display()))?;
    let (send, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            if send.send(line).is_err() {
                return;
            }
        }
    });
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match lines.recv_timeout(left) {
            Ok(line) => {
                let line = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
                writeln!(file, "{line}")?;
                if show {
                    writeln!(std::io::stdout(), "{line}")?;
                }
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => return Ok(()),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                bail!("virtual machine: not done by its deadline and ended; end of {}:\n{}", log.display(), tail(log))
            }
        }
    }
}

fn tail(log: &Path) -> String {
    let text = paths::read(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_sees_the_checkout_and_what_lies_outside_of_it() {
        let paths = Paths::find().expect("the workspace");
        let root = paths.root.canonicalize().expect("there");
        let inside = Paths { cache: root.join("docs"), shared: root.clone(), target: root.join("docs"), ..paths.clone() };
        assert_eq!(shares(&inside).expect("shares"), std::slice::from_ref(&root));
        let outside = Paths { cache: PathBuf::from("/usr/bin"), target: PathBuf::from("/nowhere"), ..inside };
        assert_eq!(shares(&outside).expect("shares"), [root, PathBuf::from("/usr/bin").canonicalize().expect("there")]);
    }

    #[test]
    fn paths_with_blanks_and_commas_survive() {
        assert_eq!(line(Path::new("/root/a b ")).expect("one line"), "/root/a b \n");
        assert!(line(Path::new("/root/a\nb")).is_err());
        assert_eq!(option(Path::new("/root/a,b")), "/root/a,,b");
    }
}
