//! What each hook is for: with any one of them left out of the daemon, tests fail that otherwise pass.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context as _, Result, ensure};
use nix::mount::{MntFlags, umount2};
use pp_agent::kernel::GUARD_PROGRAMS;
use pp_tests::coverage as table;

use crate::coverage;
use crate::world::{Skip, World, tests};

tests![
    tests_pass_with_every_hook_in_place,
    tests_fail_without_any_one_of_the_hooks_that_judge,
    tests_fail_without_any_one_of_the_hooks_that_guard,
];

/// A program, and the tests of which at least one fails without it.
struct Hook {
    program: &'static str,
    backends: &'static [&'static str],
    tests: &'static [&'static str],
}

const ALL: &[&str] = &["cgroup", "lsm", "fmod_ret"];
const ALONE: &[&str] = &["cgroup"];
const BENEATH: &[&str] = &["lsm", "fmod_ret"];
const LSM: &[&str] = &["lsm"];
const FMOD: &[&str] = &["fmod_ret"];

const fn hook(program: &'static str, backends: &'static [&'static str], tests: &'static [&'static str]) -> Hook {
    Hook { program, backends, tests }
}

/// Fails without any of them: the daemon says which hook is not in place.
const IN_PLACE: &str = "posture::every_hook_that_this_kernel_takes_is_in_place";

/// What `sendfile` shows before 6.5.
const SPLICED: &[&str] = &["coverage::inherited_by_a_rule_s_program_connected_tcp_sendfile_v4_is_refused"];

/// Not on every kernel: from 5.11 on, in place of another program, or where `sendfile` passes no message hook.
const SOMEWHERE: [&str; 10] = [
    "pp_listen",
    "pp_lsm_write",
    "pp_lsm_splice",
    "pp_entry_write",
    "pp_fmod_splice",
    "pp_lsm_setattr",
    "pp_lsm_ioctl_compat",
    "pp_lsm_file_setattr",
    "pp_lsm_set_acl",
    "pp_lsm_remove_acl",
];

const HOOKS: &[Hook] = &[
    // A session's end is told when its last process ends.
    hook("pp_exit", ALL, &["behaviour::sweep_of_one_port_stops_at_the_number_of_hosts"]),
    hook("pp_fork", ALL, &["identity::descendants_are_refused_whatever_they_become"]),
    hook("pp_exec", ALL, &["identity::real_tools_started_by_an_agents_program_are_refused"]),
    hook("pp_sock_create", ALL, &["coverage::raw_socket_forged_header_v4_is_refused", "coverage::udp_lite_sendto_v4_is_refused", IN_PLACE]),
    hook("pp_egress", ALL, &["sockets::dnat_into_a_zone_is_refused"]),
    hook("pp_ingress", ALL, &["turns::flow_to_a_gateway_is_cut_after_exactly_its_turns"]),
    hook("pp_connect4", ALL, &["behaviour::sweep_of_one_port_stops_at_the_number_of_hosts"]),
    hook("pp_connect6", ALL, &["behaviour::sweep_over_ipv6_stops_at_the_number_of_hosts"]),
    hook("pp_attach", ALL, &["moves::daemon_that_a_session_moves_goes_back"]),
    hook("pp_listen", ALL, &["sockets::device_that_dials_an_mptcp_listener_gets_nothing"]),
    // Egress refuses in their place.
    hook("pp_sendmsg4", ALONE, &["backend::programs_of_the_backend_refuse_first"]),
    hook("pp_sendmsg6", ALONE, &["backend::programs_of_the_backend_refuse_first"]),
    // The backend's own program refuses before these.
    hook("pp_sendmsg4", BENEATH, &[IN_PLACE]),
    hook("pp_sendmsg6", BENEATH, &[IN_PLACE]),
    hook("pp_lsm_fork", BENEATH, &["bad_input::full_task_table_refuses_loudly", IN_PLACE]),
    hook("pp_lsm_connect", LSM, &["backend::programs_of_the_backend_refuse_first"]),
    hook("pp_lsm_sendmsg", LSM, &["backend::programs_of_the_backend_refuse_first"]),
    hook("pp_lsm_create", BENEATH, &["coverage::af_packet_v4_is_refused"]),
    hook(
        "pp_lsm_receive",
        LSM,
        &["sockets::connected_socket_that_was_passed_in_cannot_be_written", "coverage::scm_rights_connected_tcp_send_v4_is_refused"],
    ),
    hook("pp_lsm_write", LSM, SPLICED),
    hook("pp_lsm_splice", LSM, SPLICED),
    hook("pp_entry_write", FMOD, SPLICED),
    hook("pp_fmod_splice", FMOD, SPLICED),
    hook("pp_lsm_graft", LSM, &["sockets::client_of_an_agents_server_is_served_whatever_its_source_port", IN_PLACE]),
    hook(
        "pp_entry_connect",
        FMOD,
        &["backend::programs_of_the_backend_refuse_first", "sockets::socket_opened_before_the_mark_cannot_connect", IN_PLACE],
    ),
    hook(
        "pp_entry_sendmsg",
        FMOD,
        &[
            "sockets::connected_socket_that_was_inherited_cannot_be_written",
            "sockets::udp_socket_opened_before_the_mark_cannot_send",
            IN_PLACE,
        ],
    ),
    hook(
        "pp_entry_receive",
        FMOD,
        &["sockets::connected_socket_that_was_passed_in_cannot_be_written", "coverage::scm_rights_connected_tcp_send_v4_is_refused"],
    ),
    hook("pp_entry_graft", FMOD, &["sockets::client_of_an_agents_server_is_served_whatever_its_source_port", IN_PLACE]),
    hook("pp_fmod_connect", FMOD, &["backend::programs_of_the_backend_refuse_first"]),
    hook("pp_fmod_sendmsg", FMOD, &["backend::programs_of_the_backend_refuse_first"]),
    hook("pp_lsm_kill", BENEATH, &["tamper::daemon_cannot_be_signalled"]),
    hook("pp_lsm_fcntl", BENEATH, &["tamper::daemon_cannot_be_signalled"]),
    hook("pp_lsm_ptrace", BENEATH, &["tamper::process_of_nobodys_session_cannot_be_taken_over"]),
    hook("pp_lsm_bpf", BENEATH, &["tamper::bpf_is_closed"]),
    hook("pp_lsm_umount", BENEATH, &["tamper::bpffs_cannot_be_unmounted_moved_or_covered"]),
    hook("pp_lsm_mount", BENEATH, &["tamper::bpffs_cannot_be_unmounted_moved_or_covered"]),
    hook("pp_lsm_move_mount", BENEATH, &["tamper::bpffs_cannot_be_unmounted_moved_or_covered", IN_PLACE]),
    hook("pp_lsm_pivot", BENEATH, &["tamper::bpffs_cannot_be_unmounted_moved_or_covered", IN_PLACE]),
    hook("pp_lsm_open", BENEATH, &["tamper::policy_keys_and_state_cannot_be_changed"]),
    hook(
        "pp_lsm_inode_create",
        BENEATH,
        &["tamper::files_that_act_later_cannot_be_changed", "tamper::policy_keys_and_state_cannot_be_changed"],
    ),
    hook("pp_lsm_mkdir", BENEATH, &["tamper::files_that_act_later_cannot_be_changed", "tamper::pins_cannot_be_removed_or_joined"]),
    hook(
        "pp_lsm_mknod",
        BENEATH,
        &[
            "tamper::memory_disks_and_tun_cannot_be_opened",
            "tamper::program_and_socket_cannot_be_replaced",
            "tamper::files_that_act_later_cannot_be_changed",
            IN_PLACE,
        ],
    ),
    hook("pp_lsm_symlink", BENEATH, &["tamper::files_that_act_later_cannot_be_changed", "tamper::policy_keys_and_state_cannot_be_changed"]),
    hook("pp_lsm_link", BENEATH, &["tamper::files_that_act_later_cannot_be_changed", "tamper::policy_keys_and_state_cannot_be_changed"]),
    hook("pp_lsm_unlink", BENEATH, &["tamper::pins_cannot_be_removed_or_joined"]),
    hook("pp_lsm_rmdir", BENEATH, &["tamper::pins_cannot_be_removed_or_joined", "tamper::policy_keys_and_state_cannot_be_changed"]),
    hook("pp_lsm_truncate", BENEATH, &["tamper::policy_keys_and_state_cannot_be_changed"]),
    hook("pp_lsm_chmod", BENEATH, &["tamper::policy_keys_and_state_cannot_be_changed"]),
    hook("pp_lsm_chown", BENEATH, &["tamper::policy_keys_and_state_cannot_be_changed"]),
    hook("pp_lsm_setattr", BENEATH, &["tamper::policy_keys_and_state_cannot_be_changed"]),
    hook("pp_lsm_read_file", BENEATH, &["tamper::code_cannot_be_loaded_into_the_kernel"]),
    hook("pp_lsm_fs_param", BENEATH, &["tamper::mount_that_names_a_program_for_the_kernel_is_refused"]),
    hook("pp_lsm_capable", BENEATH, &["net_admin::host_network_cannot_be_changed_by_a_session"]),
    hook("pp_lsm_netlink", BENEATH, &["net_admin::host_network_cannot_be_changed_by_sockets_that_are_taken_elsewhere"]),
    hook("pp_lsm_setsockopt", BENEATH, &["net_admin::host_network_cannot_be_changed_by_sockets_that_are_taken_elsewhere"]),
    hook("pp_lsm_setxattr", BENEATH, &["tamper::access_lists_and_attributes_of_guarded_files_cannot_be_changed"]),
    hook("pp_lsm_removexattr", BENEATH, &["tamper::access_lists_and_attributes_of_guarded_files_cannot_be_changed"]),
    hook("pp_lsm_set_acl", BENEATH, &["tamper::access_lists_and_attributes_of_guarded_files_cannot_be_changed"]),
    hook("pp_lsm_remove_acl", BENEATH, &["tamper::access_lists_and_attributes_of_guarded_files_cannot_be_changed"]),
    hook("pp_lsm_load_data", BENEATH, &["tamper::code_cannot_be_loaded_into_the_kernel"]),
    hook("pp_lsm_ioctl", BENEATH, &["reach::terminal_of_a_person_cannot_be_typed_into"]),
    hook("pp_lsm_ioctl_compat", BENEATH, &["reach::terminal_of_a_person_cannot_be_typed_into"]),
    hook("pp_lsm_reopen", BENEATH, &["reach::pipe_of_a_person_cannot_be_written_into"]),
    hook("pp_lsm_follow", BENEATH, &["reach::pipe_of_a_person_cannot_be_written_into", "reach::own_files_are_opened_again_as_before"]),
    hook("pp_lsm_file_setattr", BENEATH, &["reach::guarded_file_cannot_be_changed_by_its_file_system"]),
    hook("pp_lsm_setrlimit", BENEATH, &["reach::daemon_cannot_be_limited_or_starved"]),
    hook("pp_lsm_setnice", BENEATH, &["reach::daemon_cannot_be_limited_or_starved"]),
    hook("pp_lsm_setioprio", BENEATH, &["reach::daemon_cannot_be_limited_or_starved"]),
    hook("pp_lsm_setscheduler", BENEATH, &["reach::daemon_cannot_be_limited_or_starved"]),
    hook("pp_lsm_movememory", BENEATH, &["reach::daemon_cannot_be_limited_or_starved"]),
    hook("pp_lsm_unix_connect", BENEATH, &["delegates::socket_at_dockers_path_is_refused_whatever_the_way_to_it"]),
    hook("pp_lsm_unix_send", BENEATH, &["delegates::socket_that_policy_names_is_refused_and_one_it_allows_is_not"]),
    hook("pp_lsm_rename", LSM, &["tamper::policy_keys_and_state_cannot_be_changed"]),
    hook("pp_fmod_rename", FMOD, &["tamper::policy_keys_and_state_cannot_be_changed"]),
];

/// Runs the test of that name.
fn run(world: &mut World, name: &str) -> Result<()> {
    for (group, tests) in crate::GROUPS {
        if let Some(test) = tests.iter().find(|test| name.split_once("::") == Some((group, test.name))) {
            return (test.run)(world);
        }
    }
    let line = coverage::own().find(|line| line.test() == name).with_context(|| format!("no test {name}"))?;
    coverage::row(world, line)
}

/// The rows of the programs that hang here. Every program that hangs must have one, and every row its program.
fn rows(world: &mut World) -> Result<Vec<&'static Hook>> {
    let backend = world.backend()?;
    let rows = HOOKS.iter().filter(|hook| hook.backends.contains(&backend.as_str()));
    let links = fs::read_dir(world.daemon()?.bpffs().join("links"))?;
    let pins = links.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let hanging: BTreeSet<String> = pins
        .map(|pin| {
            let stem = pin.split('@').next().unwrap_or_default();
            stem.strip_suffix("_fmod").unwrap_or(stem).to_owned()
        })
        .collect();
    let (here, elsewhere): (Vec<&Hook>, Vec<&Hook>) = rows.partition(|hook| hanging.contains(hook.program));
    for program in &hanging {
        ensure!(here.iter().any(|hook| hook.program == program), "{program} has no row here");
    }
    for hook in elsewhere {
        ensure!(SOMEWHERE.contains(&hook.program), "{} does not hang here", hook.program);
    }
    Ok(here)
}

/// Or the failure of one would say nothing.
fn tests_pass_with_every_hook_in_place(world: &mut World) -> Result<()> {
    let hooks = rows(world)?;
    let names: BTreeSet<&str> = hooks.iter().flat_map(|hook| hook.tests).copied().collect();
    table::unnoted(|| {
        for name in names {
            match run(world, name) {
                Err(error) if error.downcast_ref::<Skip>().is_none() => {
                    return Err(error.context(format!("{name}, with every hook in place")));
                }
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    })
}

/// The test of these that fails without the program, and how; `None`: all of them pass.
fn missed(world: &mut World, hook: &Hook, backend: &str) -> Result<Option<String>> {
    for name in hook.tests {
        table::begin(name);
        match run(world, name) {
            // The canary was not refused, and the daemon makes do with less: its tests pass with the gaps that it states, and the row of the kernel
            // table, which demands the backend, fails.
            Ok(()) if world.backend()? != backend => return Ok(Some(format!("{name}: backend {}, not {backend}", world.backend()?))),
            Ok(()) => {}
            Err(error) if error.downcast_ref::<Skip>().is_some() => {}
            Err(error) => {
                let text = format!("{error:#}");
                // A daemon may refuse to start for what its canary found, and for nothing else.
                let starts = !text.contains("the daemon ended before it was ready");
                ensure!(starts || text.contains("posture is open"), "{text}");
                return Ok(Some(format!("{name}: {}", text.lines().next().unwrap_or_default())));
            }
        }
    }
    Ok(None)
}

fn tests_fail_without_any_one_of_the_hooks_that_judge(world: &mut World) -> Result<()> {
    left_out_in_turn(world, false)
}

/// With cgroup programs alone there are none.
fn tests_fail_without_any_one_of_the_hooks_that_guard(world: &mut World) -> Result<()> {
    left_out_in_turn(world, true)
}

/// `PP_HOOKS`: the names of some, to try these by hand.
fn left_out_in_turn(world: &mut World, guards: bool) -> Result<()> {
    let mut idle = Vec::new();
    let backend = world.backend()?;
    let only = std::env::var("PP_HOOKS").ok();
    let asked = |hook: &&Hook| only.as_ref().is_none_or(|names| names.split(',').any(|name| name == hook.program));
    for hook in rows(world)?.into_iter().filter(|hook| GUARD_PROGRAMS.contains(&hook.program) == guards).filter(asked) {
        world.leave_out(Some(hook.program));
        let found = table::unnoted(|| missed(world, hook, &backend));
        world.leave_out(None);
        clear_away()?;
        match found? {
            Some(found) => eprintln!("without {}: {found}", hook.program),
            None => idle.push(hook.program),
        }
    }
    ensure!(idle.is_empty(), "every test passes without {idle:?}");
    Ok(())
}

/// Takes away what a session could make while nothing refused it: a mount over the pins, and the file that the tests of later files look
/// for first.
fn clear_away() -> Result<()> {
    const PINS: &str = "/sys/fs/bpf";
    const PRELOAD: &str = "/etc/ld.so.preload";
    // One that is somebody's is not empty.
    if fs::metadata(PRELOAD).is_ok_and(|found| found.len() == 0) {
        fs::remove_file(PRELOAD)?;
    }
    loop {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let on_top = mounts.lines().rev().find(|line| line.split(' ').nth(4) == Some(PINS));
        if !on_top.is_some_and(|line| line.contains(" - tmpfs ")) {
            return Ok(());
        }
        umount2(PINS, MntFlags::MNT_DETACH)?;
    }
}
