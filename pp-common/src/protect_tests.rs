use super::*;

const fn own(flags: u32) -> Place {
    Place { own: flags, parent: 0, above: 0, named: 0 }
}

const fn below(flags: u32) -> Place {
    Place { own: 0, parent: flags, above: flags, named: 0 }
}

const ALL: [Touch; 6] = [Touch::Write, Touch::Attributes, Touch::Remove, Touch::Create, Touch::Link, Touch::Cover];

#[test]
fn what_nobody_guards_may_be_touched() {
    for what in ALL {
        assert_eq!(touch(what, &Place::default()), None);
    }
}

#[test]
fn a_guarded_file_keeps_its_content_name_and_rights() {
    for what in [Touch::Write, Touch::Attributes, Touch::Remove, Touch::Link, Touch::Cover] {
        assert_eq!(touch(what, &own(GUARD_SELF)), Some(Tamper::OwnFile), "{what:?}");
        assert_eq!(touch(what, &own(GUARD_SELF | GUARD_LATER)), Some(Tamper::LaterFile), "{what:?}");
    }
}

#[test]
fn nothing_in_a_guarded_tree_changes() {
    for what in ALL {
        assert_eq!(touch(what, &below(GUARD_TREE)), Some(Tamper::OwnFile), "{what:?}");
    }
}

#[test]
fn a_folder_above_something_guarded_stays_where_it_is_and_is_otherwise_free() {
    for what in [Touch::Remove, Touch::Cover] {
        assert_eq!(touch(what, &own(GUARD_PATH)), Some(Tamper::OwnFile));
    }
    for what in [Touch::Write, Touch::Attributes, Touch::Create, Touch::Link] {
        assert_eq!(touch(what, &own(GUARD_PATH)), None, "{what:?}");
        assert_eq!(touch(what, &below(GUARD_PATH)), None, "{what:?}");
    }
}

#[test]
fn a_name_is_guarded_also_while_nothing_has_it() {
    let place = Place { named: GUARD_SELF | GUARD_LATER, parent: GUARD_NAMES, above: GUARD_NAMES, own: 0 };
    for what in ALL {
        assert_eq!(touch(what, &place), Some(Tamper::LaterFile), "{what:?}");
    }
}

#[test]
fn only_writes_right_in_a_cgroup_of_the_daemon_are_refused() {
    assert_eq!(touch(Touch::Write, &below(GUARD_FILES)), Some(Tamper::DaemonFile));
    assert_eq!(touch(Touch::Create, &below(GUARD_FILES)), None);
    let deeper = Place { own: 0, parent: 0, above: GUARD_FILES, named: 0 };
    assert_eq!(touch(Touch::Write, &deeper), None);
}

#[test]
fn signals_reach_everybody_but_the_daemon() {
    assert_eq!(signal(15, true, false), Some(Tamper::Signal));
    assert_eq!(signal(0, true, false), None);
    assert_eq!(signal(9, false, false), None);
    // A process of the session that has the number of a daemon that died.
    assert_eq!(signal(9, true, true), None);
}

#[test]
fn a_session_may_look_everywhere_and_reach_into_its_own_processes() {
    const READ: u32 = 1;
    assert_eq!(trace(READ, false), None);
    assert_eq!(trace(TRACE_ATTACH, true), None);
    assert_eq!(trace(TRACE_ATTACH | 8, false), Some(Tamper::Trace));
}

#[test]
fn memory_ports_disks_and_tun_are_closed() {
    let char_device = |major, minor, write| device(0o020_600, device_number(major, minor), write, [241, 0]);
    for minor in [1, 2, 4] {
        assert_eq!(char_device(1, minor, false), Some(Tamper::KernelMemory));
    }
    for minor in [3, 5, 7, 8, 9] {
        assert_eq!(char_device(1, minor, true), None);
    }
    assert_eq!(char_device(10, 200, false), Some(Tamper::Tun));
    assert_eq!(char_device(10, 229, true), None);
    assert_eq!((char_device(108, 0, false), char_device(241, 3, false)), (Some(Tamper::Tun), Some(Tamper::Tun)));
    // Without such devices their number is zero, which is none.
    assert_eq!((char_device(240, 3, true), char_device(0, 3, true)), (None, None));
    let disk = |major, write| device(0o060_660, device_number(major, 0), write, [241, 0]);
    assert_eq!(disk(8, true), Some(Tamper::RawDisk));
    assert_eq!(disk(8, false), None);
    assert_eq!(disk(7, true), None);
    assert_eq!(device(0o100_644, device_number(8, 0), true, [0; 2]), None);
}

#[test]
fn settings_that_start_programs_are_closed_and_others_are_not() {
    let set = |magic, name: &str, folder: &str| setting(magic, hash_name(name.as_bytes()), hash_name(folder.as_bytes()));
    assert_eq!(set(magic::PROC, "pgctrl", "pktgen"), Some(Tamper::KernelSetting));
    assert_eq!(set(magic::PROC, "core_pattern", "kernel"), Some(Tamper::KernelSetting));
    assert_eq!(set(magic::PROC, "sysrq-trigger", "/"), Some(Tamper::KernelSetting));
    assert_eq!(set(magic::PROC, "modprobe", "elsewhere"), None);
    assert_eq!(set(magic::PROC, "oom_score_adj", "42"), None);
    assert_eq!(set(magic::BINFMT, "register", "/"), Some(Tamper::KernelSetting));
    assert_eq!(set(magic::CGROUP, "release_agent", "/"), Some(Tamper::KernelSetting));
    assert_eq!(set(0xef53, "core_pattern", "kernel"), None);
}

#[test]
fn mounts_that_nobody_else_sees_are_free() {
    let guarded = own(GUARD_PATH);
    assert_eq!(mount(0, &guarded, true), Some(Tamper::Mount));
    assert_eq!(mount(0, &guarded, false), None);
    assert_eq!(mount(0x1000, &Place::default(), true), None);
    assert_eq!(mount(MS_MOVE, &Place::default(), true), Some(Tamper::Mount));
    // Making the whole tree private comes first in every sandbox.
    assert_eq!(mount(0x4000 | 0x8_0000, &guarded, true), None);
    assert_eq!(unmount(GUARD_MOUNT, true), Some(Tamper::Unmount));
    assert_eq!(unmount(GUARD_MOUNT, false), None);
    assert_eq!(unmount(GUARD_PATH, true), None);
}

#[test]
fn only_firmware_is_loaded_for_a_session() {
    assert_eq!(kernel_code(1), None);
    for id in [0, 2, 3, 4, 5, 6, 7] {
        assert_eq!(kernel_code(id), Some(Tamper::KernelCode));
    }
}

#[test]
fn names_that_differ_hash_differently_and_padding_does_not_count() {
    let names = ["", "a", "b", "ab", "ba", "authorized_keys", "authorized_keys2", "ld.so.preload", "aaaaaaaab", "aaaaaaaac"];
    for (i, one) in names.iter().enumerate() {
        for (j, other) in names.iter().enumerate() {
            assert_eq!(hash_name(one.as_bytes()) == hash_name(other.as_bytes()), i == j, "{one} {other}");
        }
    }
    assert_eq!(hash_name(b"keys"), hash_name(b"keys\0\0"));
    assert_ne!(hash_bound(b"\0docker"), hash_bound(b"docker"));
}

#[test]
fn codes_are_read_back_and_unknown_ones_are_none() {
    for what in Tamper::ALL {
        assert_eq!(Tamper::from_code(*what as u8), Some(*what));
    }
    for hook in GuardHook::ALL {
        assert_eq!(GuardHook::from_code(*hook as u8), Some(*hook));
    }
    assert_eq!(Tamper::from_code(255), None);
}
