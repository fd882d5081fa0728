//! Virtual machines with systemd as PID 1, and the test of the installed service on one of them: ordering, restart, upgrade and removal.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Result;

use crate::{
    e2e,
    kernels::Matrix,
    next_agent,
    parallel::{self, Piece},
    paths::Paths,
    setup, vm, wrappers,
};

/// Second stage: removes from the temporary overlay what this machine would start. It adds one target that runs `/out/command.sh` once
/// `basic.target` is up, and becomes systemd.
pub(crate) const RUN_SYSTEMD: &str = r#"bb=/usr/bin/busybox
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
$bb rm -rf /etc/systemd/system/*.wants /etc/systemd/system/*.requires
: > /etc/fstab
# Builds often run in containers; systemd would take the guest for one and mount no bpffs.
$bb rm -f /.dockerenv
# Emptying /tmp, as systems do at boot, would take minutes and with it what was built there.
$bb mkdir -p /etc/tmpfiles.d
$bb ln -sf /dev/null /etc/tmpfiles.d/tmp.conf
$bb mkdir -p /run/systemd/system /etc/systemd/system.conf.d
for unit in systemd-udevd.service systemd-udev-trigger.service systemd-udev-settle.service systemd-hwdb-update.service \
    systemd-remount-fs.service systemd-modules-load.service systemd-machine-id-commit.service systemd-firstboot.service \
    systemd-binfmt.service systemd-pstore.service systemd-random-seed.service systemd-journal-flush.service \
    systemd-update-utmp.service systemd-update-utmp-runlevel.service systemd-tmpfiles-clean.timer getty.target \
    kmod-static-nodes.service ldconfig.service proc-sys-fs-binfmt_misc.automount dev-hugepages.mount dev-mqueue.mount \
    sys-kernel-config.mount sys-fs-fuse-connections.mount systemd-ask-password-console.path systemd-ask-password-wall.path; do
    $bb ln -s /dev/null /run/systemd/system/$unit
done
$bb cat > /etc/systemd/system.conf.d/test.conf <<'END'
[Manager]
DefaultTimeoutStopSec=20s
ShowStatus=no
END
$bb cat > /run/systemd/system/pp-run.target <<'END'
[Unit]
Requires=basic.target pp-run.service
After=basic.target
END
$bb cat > /run/systemd/system/pp-run.service <<'END'
[Unit]
After=basic.target
[Service]
Type=oneshot
TimeoutStartSec=infinity
StandardOutput=null
ExecStart=/bin/sh -c '/bin/sh /out/command.sh > /out/stdout.log 2>&1; echo $? > /out/exit-code; cat /out/stdout.log > /dev/console'
ExecStopPost=/bin/systemctl --no-block poweroff
END
exec /lib/systemd/systemd --unit=pp-run.target --log-target=journal
"#;

/// The steps inside the machine.
const INSTALL_TEST: &str = include_str!("install_test.sh");

/// The default kernel.
pub(crate) const KERNEL: &str = "6.1";

/// The longest time for one mode. It needs about a sixth of that.
const DEADLINE: Duration = Duration::from_secs(15 * 60);

/// What is tested: the whole life of the service, or a boot with `pp_agent=off`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Install, start, kill, upgrade, stop, uninstall.
    Lifetime,
    /// Nothing starts.
    Off,
}

impl Mode {
    /// Both, the longer one first.
    pub(crate) const ALL: [Self; 2] = [Self::Lifetime, Self::Off];

    /// Its name in the table and for the script.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Lifetime => "lifetime",
            Self::Off => "off",
        }
    }
}

/// The result of one mode.
#[derive(Debug)]
pub(crate) struct Tried {
    /// What was tested, on which kernel.
    pub(crate) what: String,
    /// Steps that held.
    pub(crate) held: usize,
    /// Why it failed, with the end of its log; `None` when every step held.
    pub(crate) complaint: Option<String>,
    pub(crate) took: Duration,
}

/// Tests one mode with binaries that exist. Every error becomes the complaint.
pub(crate) fn try_installed(paths: &Paths, matrix: &Matrix, kernel: &str, mode: Mode, agent: &Path) -> Tried {
    let start = Instant::now();
    let outcome = in_vm(paths, matrix, kernel, mode, agent);
    let mut tried =
        Tried { what: format!("installed service, {} ({kernel})", mode.name()), held: 0, complaint: None, took: start.elapsed() };
    match outcome {
        Ok((outcome, log)) => {
            tried.what = format!("installed service, {} ({})", mode.name(), outcome.release);
            (tried.held, tried.complaint) = evaluate(outcome.exit_code, &log);
        }
        Err(err) => tried.complaint = Some(format!("{err:#}")),
    }
    tried
}

fn in_vm(paths: &Paths, matrix: &Matrix, kernel: &str, mode: Mode, agent: &Path) -> Result<(vm::Outcome, String)> {
    let run = format!("install-{}", mode.name());
    let script = paths.cache.join(format!("{run}.sh"));
    crate::paths::write_if_changed(&script, INSTALL_TEST)?;
    // The guest runs this program to install, with the binary built here.
    let xtask = crate::paths::own_program()?;
    let lsm = matrix.rows.iter().find(|row| row.kernel.as_deref() == Some(kernel)).map_or("", |row| &row.append);
    let next = next_agent::file(paths);
    let job = vm::Job {
        kernel,
        append: if mode == Mode::Off { "pp_agent=off" } else { lsm },
        run: &run,
        command: &["/bin/bash".to_owned(), shown(&script), shown(&xtask), shown(agent), shown(&next), mode.name().to_owned()],
        env: &[],
        systemd: true,
        deadline: DEADLINE,
        show: false,
    };
    let outcome = vm::run(paths, matrix, &job)?;
    let log = crate::paths::read(&outcome.out.join("stdout.log"))?;
    Ok((outcome, log))
}

/// How many steps held, and a complaint if the run failed. A script that ends before its last line has failed, whatever its exit code.
fn evaluate(exit_code: i32, log: &str) -> (usize, Option<String>) {
    let held = log.lines().filter(|line| line.starts_with("install-test: held: ")).count();
    let whole = exit_code == 0 && held > 0 && log.lines().any(|line| line == "install-test: all steps held");
    let tail = || log.lines().rev().take(70).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n");
    (held, (!whole).then(|| format!("exit code {exit_code} after {held} steps; end of its log:\n{}", tail())))
}

/// Sets up, builds and tests the installed service in every mode. True if every step held.
pub(crate) fn install_test(paths: &Paths, kernel: &str) -> Result<bool> {
    setup::native(paths)?;
    setup::run(paths, Some(setup::Part::Kernels))?;
    let matrix = Matrix::load(paths)?;
    // The test is about the unit, so the debug build, which exists already, is enough.
    let agent = e2e::build_all(paths)?.join("pp-agent");
    let (matrix, agent) = (&matrix, agent.as_path());
    let tries = Mode::ALL.map(|mode| -> Piece<'_, Tried> { Box::new(move || try_installed(paths, matrix, kernel, mode, agent)) });
    let mut green = true;
    for tried in parallel::run(tries.into()) {
        wrappers::show_tried("install-test", &tried);
        green &= tried.complaint.is_none();
    }
    Ok(green)
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_log_that_came_to_its_end_is_green() {
        let whole = "install-test: held: a (1 s)\ninstall-test: held: b (2 s)\ninstall-test: all steps held\n";
        assert_eq!(evaluate(0, whole), (2, None));
        assert!(evaluate(1, whole).1.is_some());
        assert!(evaluate(0, "install-test: held: a (1 s)\n").1.is_some());
        assert!(evaluate(0, "install-test: all steps held\n").1.is_some());
        let (held, complaint) = evaluate(1, "install-test: held: a (1 s)\ninstall-test: FAILED: b: because\n");
        assert_eq!(held, 1);
        assert!(complaint.is_some_and(|text| text.contains("because")));
    }
}
