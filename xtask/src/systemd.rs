//! Test machines with systemd as PID 1, and the test of the installed service on one of them: its ordering, its restart, its
//! upgrade and its removal.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, bail};

use crate::{e2e, kernels::Matrix, paths::Paths, setup, sh, vm};

/// Second stage: throws out (of the throw-away overlay) what this machine would start, adds one target that runs
/// `/out/command.sh` once `basic.target` is up, and becomes systemd.
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

/// Installs, starts, kills, upgrades, stops and uninstalls the service on a machine with systemd; an error when a step does not
/// hold.
pub(crate) fn install_test(paths: &Paths, kernel: &str) -> Result<()> {
    setup::native(paths)?;
    setup::vm_tools()?;
    let matrix = Matrix::load(paths)?;
    // Not the release build: what is tried is the unit, and it is there already.
    let agent = e2e::build(paths, false)?.join("pp-agent");
    let script = paths.cache.join("install-test.sh");
    crate::paths::write_if_changed(&script, INSTALL_TEST)?;
    // The guest runs this program to install, with the binary built here.
    let xtask = std::env::current_exe().context("own executable: not known")?;
    let lsm = matrix.rows.iter().find(|row| row.kernel.as_deref() == Some(kernel)).map_or("", |row| &row.append);
    for (mode, append) in [("lifetime", lsm), ("off", "pp_agent=off")] {
        let job = vm::Job {
            kernel,
            append,
            run: &format!("install-{mode}"),
            command: &["/bin/bash".to_owned(), shown(&script), shown(&xtask), shown(&agent), mode.to_owned()],
            env: &[],
            systemd: true,
            deadline: Duration::from_secs(600),
            show: false,
        };
        let outcome = vm::run(paths, &matrix, &job)?;
        let (log, seconds) = (outcome.out.join("stdout.log"), outcome.took.as_secs_f64());
        if outcome.exit_code != 0 {
            bail!("install test {mode} on {}: exit code {}\n{}", outcome.release, outcome.exit_code, crate::paths::read(&log)?);
        }
        sh::say(format!("install test {mode} on {}: every step held, {seconds:.0} s", outcome.release));
    }
    Ok(())
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}
