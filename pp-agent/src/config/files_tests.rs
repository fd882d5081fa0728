//! Which files are read as policy, and which are refused.

use super::super::*;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

fn write(path: &Path, text: &[u8], mode: u32) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn mine() -> FileCheck {
    FileCheck::OwnedBy(nix::unistd::geteuid().as_raw())
}

struct Etc {
    folder: tempfile::TempDir,
    paths: Paths,
}

fn etc() -> Etc {
    let folder = tempfile::tempdir().unwrap();
    let paths = Paths::beside(&folder.path().join("policy.toml"));
    fs::create_dir(&paths.drop_ins).unwrap();
    fs::set_permissions(&paths.drop_ins, Permissions::from_mode(0o750)).unwrap();
    Etc { folder, paths }
}

#[test]
fn without_any_file_the_built_in_policy_holds() {
    let etc = etc();
    fs::remove_dir(&etc.paths.drop_ins).unwrap();
    let config = Config::load(&etc.paths, mine()).unwrap();
    assert!(config.sources.is_empty());
    assert_eq!(config.to_toml(), Config::builtin().unwrap().to_toml());
}

#[test]
fn drop_ins_are_read_in_the_order_of_their_names_and_only_toml() {
    let etc = etc();
    write(&etc.paths.file, b"host = 'h'", 0o640);
    write(&etc.paths.drop_ins.join("20.toml"), b"tenant = 't'", 0o640);
    write(&etc.paths.drop_ins.join("10.toml"), b"any_user = true", 0o640);
    let config = Config::load(&etc.paths, mine()).unwrap();
    let files: Vec<_> = config.sources.iter().map(|s| s.name.rsplit('/').next().unwrap()).collect();
    assert_eq!(files, ["policy.toml", "10.toml", "20.toml"]);
    assert!(config.any_user && config.not_read.is_empty());
    let again = Config::from_sources(config.sources.clone()).unwrap();
    assert_eq!(again.to_toml(), config.to_toml());
}

#[test]
fn files_that_others_could_write_are_refused() {
    let etc = etc();
    for mode in [0o660, 0o642, 0o666] {
        write(&etc.paths.file, b"", mode);
        let error = Config::load(&etc.paths, mine()).unwrap_err();
        assert!(matches!(error, ConfigError::Writable { .. }), "{error}");
        Config::load(&etc.paths, FileCheck::Anybody).unwrap();
    }
    write(&etc.paths.file, b"", 0o640);
    let other = FileCheck::OwnedBy(nix::unistd::geteuid().as_raw() + 1);
    let error = Config::load(&etc.paths, other).unwrap_err();
    assert!(matches!(error, ConfigError::Owner { .. }), "{error}");
    fs::set_permissions(&etc.paths.drop_ins, Permissions::from_mode(0o777)).unwrap();
    let error = Config::load(&etc.paths, mine()).unwrap_err();
    assert!(matches!(error, ConfigError::Writable { .. }), "{error}");
}

#[test]
fn ten_megabytes_are_refused_with_their_size() {
    let etc = etc();
    write(&etc.paths.file, &vec![b'#'; 10 << 20], 0o640);
    let error = Config::load(&etc.paths, mine()).unwrap_err();
    assert!(error.to_string().contains("10485760 bytes"), "{error}");
}

#[test]
fn folders_dangling_links_and_binary_files_are_refused() {
    let etc = etc();
    write(&etc.paths.file, b"host = '\xff'", 0o640);
    let error = Config::load(&etc.paths, mine()).unwrap_err();
    assert!(matches!(error, ConfigError::NotText { offset: 8, .. }), "{error}");
    fs::remove_file(&etc.paths.file).unwrap();
    fs::create_dir(&etc.paths.file).unwrap();
    let error = Config::load(&etc.paths, mine()).unwrap_err();
    assert!(matches!(error, ConfigError::NotAFile { .. }), "{error}");
    fs::remove_dir(&etc.paths.file).unwrap();
    std::os::unix::fs::symlink(etc.folder.path().join("gone"), &etc.paths.file).unwrap();
    let error = Config::load(&etc.paths, mine()).unwrap_err();
    assert!(matches!(error, ConfigError::Read { .. }), "{error}");
}

/// Each of these files would be an error if it were read.
#[test]
fn what_is_not_read_is_named_with_the_reason() {
    let etc = etc();
    let bad = b"no policy at all";
    for (name, why) in [
        ("#30.toml#", "it is an editor's backup"),
        (".#10.toml", "hidden names are skipped"),
        ("._10.toml", "hidden names are skipped"),
        (".10.toml.swp", "hidden names are skipped"),
        (".ansible_tmpx10.toml", "hidden names are skipped"),
        ("10.toml~", "it is an editor's backup"),
        ("20-plant.conf", "only *.toml is; rename it if it is meant"),
        ("30.toml.bak", "only *.toml is; rename it if it is meant"),
        ("40.TOML", "only *.toml in small letters is; rename it if it is meant"),
        ("50.yaml", "only *.toml is; rename it if it is meant"),
        ("60.toml.j2", "only *.toml is; rename it if it is meant"),
        ("toml", "only *.toml is; rename it if it is meant"),
    ] {
        let path = etc.paths.drop_ins.join(name);
        write(&path, bad, 0o666);
        let config = Config::load(&etc.paths, mine()).unwrap();
        let reported: Vec<String> = config.not_read.iter().map(ToString::to_string).collect();
        assert_eq!(reported, [format!("{}: not read, {why}", path.display())]);
        fs::remove_file(path).unwrap();
    }
    let site = etc.paths.drop_ins.join("site");
    fs::create_dir(&site).unwrap();
    write(&site.join("10.toml"), b"any_user = true", 0o640);
    nix::unistd::mkfifo(&etc.paths.drop_ins.join("pipe"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    std::os::unix::fs::symlink("gone", etc.paths.drop_ins.join("zz")).unwrap();
    let config = Config::load(&etc.paths, mine()).unwrap();
    assert!(!config.any_user);
    let reported: Vec<&str> = config.not_read.iter().map(|entry| entry.path.rsplit('/').next().unwrap()).collect();
    assert_eq!(reported, ["pipe", "site", "zz"]);
    assert_eq!(config.not_read[1].why, "folders are not searched; put its *.toml files beside it");
    assert_eq!(Config::not_read(&etc.paths), config.not_read);
}

/// A name that ends in `.toml` is meant as policy. One that cannot be read refuses the whole policy, by its name.
#[test]
fn drop_ins_that_are_no_files_refuse_the_policy_without_blocking() {
    type Make = fn(&Path);
    let cases: [(&str, Make, &str); 7] = [
        ("a folder", |path| fs::create_dir(path).unwrap(), "is not a regular file"),
        ("a pipe", |path| nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRUSR).unwrap(), "is not a regular file"),
        ("a socket", |path| drop(std::os::unix::net::UnixListener::bind(path).unwrap()), "is not a regular file"),
        ("a device", |path| std::os::unix::fs::symlink("/dev/zero", path).unwrap(), "is not a regular file"),
        ("a link to nothing", |path| std::os::unix::fs::symlink("gone", path).unwrap(), "No such file"),
        ("a link to itself", |path| std::os::unix::fs::symlink("10.toml", path).unwrap(), "ymbolic link"),
        ("ten megabytes", |path| write(path, &vec![b'#'; 10 << 20], 0o640), "10485760 bytes"),
    ];
    for (what, make, said) in cases {
        let etc = etc();
        let path = etc.paths.drop_ins.join("10.toml");
        make(&path);
        let error = Config::load(&etc.paths, mine()).unwrap_err().to_string();
        assert!(error.contains(&path.display().to_string()) && error.contains(said), "{what}: {error}");
    }
}

#[test]
fn drop_in_whose_name_is_no_text_is_read() {
    use std::os::unix::ffi::OsStrExt;
    let etc = etc();
    write(&etc.paths.drop_ins.join(std::ffi::OsStr::from_bytes(b"plant-\xff.toml")), b"any_user = true", 0o640);
    write(&etc.paths.drop_ins.join(std::ffi::OsStr::from_bytes(b"plant-\xff.conf")), b"any_user = true", 0o640);
    let config = Config::load(&etc.paths, mine()).unwrap();
    assert!(config.any_user);
    assert_eq!(config.not_read.len(), 1);
}

#[test]
fn folder_of_drop_ins_that_is_none_refuses_the_policy() {
    let etc = etc();
    fs::remove_dir(&etc.paths.drop_ins).unwrap();
    write(&etc.paths.drop_ins, b"", 0o640);
    let error = Config::load(&etc.paths, mine()).unwrap_err().to_string();
    assert!(error.contains("policy.d: is not a folder; drop-ins are *.toml files"), "{error}");
    fs::remove_file(&etc.paths.drop_ins).unwrap();
    std::os::unix::fs::symlink("gone", &etc.paths.drop_ins).unwrap();
    let error = Config::load(&etc.paths, mine()).unwrap_err();
    assert!(matches!(error, ConfigError::Read { .. }), "{error}");
}
