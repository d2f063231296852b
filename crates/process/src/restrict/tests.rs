//! Each test restricts a thread of its own, as `run` restricts the first thread of its process.

use std::io::ErrorKind;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::{fs, thread};

use tempfile::TempDir;

use super::*;

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod calls;

/// The user of the relay in its image. The tests run as root, who may become this user.
const OWN_USER: u32 = 65532;

/// Runs `then` on a thread that is restricted to `opened`, and returns the result of `then`.
fn restricted<T: Send>(opened: Vec<Opened>, then: impl FnOnce(&State) -> T + Send) -> T {
    restricted_as(0, opened, then)
}

/// Does the same as [`restricted`], as this user, or as root with all capabilities.
fn restricted_as<T: Send>(
    user: u32,
    opened: Vec<Opened>,
    then: impl FnOnce(&State) -> T + Send,
) -> T {
    use rustix::process::{Gid, Uid};
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            if user > 0 {
                let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(user));
                rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
                rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
                assert!(rustix::thread::capabilities(None).unwrap().effective.is_empty());
            }
            let state = restrict_thread(Restrict::Required, opened);
            assert_eq!(state.missing, lacking(), "this kernel has Landlock");
            then(&state)
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A directory with the file `inside/token` and the empty directory `spool`.
fn places() -> (TempDir, PathBuf, PathBuf) {
    let root = TempDir::new().unwrap();
    let (token, spool) = (root.path().join("inside/token"), root.path().join("spool"));
    fs::create_dir(token.parent().unwrap()).unwrap();
    fs::write(&token, "secret").unwrap();
    fs::create_dir(&spool).unwrap();
    (root, token, spool)
}

#[test]
fn what_the_config_does_not_name_cannot_be_opened() {
    let (root, token, spool) = places();
    let opened =
        open(Restrict::Required, std::slice::from_ref(&token), std::slice::from_ref(&spool));
    fs::write(root.path().join("other"), "secret").unwrap();
    restricted(opened, |state| {
        assert!(state.landlock.is_some());
        assert_eq!(state.seccomp, lacking().is_none());
        assert_eq!(fs::read(&token).unwrap(), b"secret");
        fs::create_dir(spool.join("segments")).unwrap();
        fs::write(spool.join("new"), "event").unwrap();
        fs::rename(spool.join("new"), spool.join("segments/1")).unwrap();
        fs::remove_file(spool.join("segments/1")).unwrap();
        fs::read("/proc/self/stat").unwrap();
        assert!(std::net::ToSocketAddrs::to_socket_addrs("localhost:1").is_ok());

        let refused = |result: io::Result<()>, what: &str| {
            assert_eq!(result.expect_err(what).kind(), ErrorKind::PermissionDenied, "{what}");
        };
        for file in ["/etc/passwd", "/etc/shadow", "/etc", "/bin/true"] {
            refused(fs::File::open(file).map(drop), file);
        }
        refused(fs::read(root.path().join("other")).map(drop), "beside the directories");
        refused(fs::write(&token, "other"), "a file that is only read");
        refused(fs::remove_file(&token), "the same file");
        refused(fs::write(root.path().join("new"), "x"), "a new file");
        refused(symlink("/etc/passwd", spool.join("link")), "a link");
    });
    assert_eq!(fs::read(&token).unwrap(), b"secret");
}

/// Root with all capabilities may read it on Linux 7.
#[test]
fn the_environment_of_another_process_of_the_same_user_cannot_be_read() {
    let mut other =
        Command::new("/bin/sleep").arg("60").uid(OWN_USER).gid(OWN_USER).spawn().unwrap();
    let environ = format!("/proc/{}/environ", other.id());
    assert!(fs::read(&environ).is_ok());
    restricted_as(OWN_USER, open(Restrict::Required, &[], &[]), |_| {
        fs::read("/proc/1/stat").unwrap();
        assert_eq!(fs::read(&environ).unwrap_err().kind(), ErrorKind::PermissionDenied);
    });
    other.kill().unwrap();
    other.wait().unwrap();
}

#[test]
fn no_program_is_run() {
    restricted_as(OWN_USER, Vec::new(), |_| {
        let error = Command::new("/bin/true").status().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
        assert!(rustix::thread::no_new_privs().unwrap());
    });
    // The thread that started the restricted thread is not restricted.
    assert!(Command::new("/bin/true").status().unwrap().success());
}

/// Method: a Secret volume as the kubelet mounts it, and a certificate that a tool replaces by a
/// new file.
#[test]
fn files_that_are_swapped_or_replaced_can_still_be_read() {
    let root = TempDir::new().unwrap();
    let at = |name: &str| root.path().join(name);
    let version = |name: &str, content: &str| {
        fs::create_dir_all(at("volume").join(name)).unwrap();
        fs::write(at("volume").join(name).join("tls.crt"), content).unwrap();
        symlink(name, at("volume/..data_tmp")).unwrap();
        fs::rename(at("volume/..data_tmp"), at("volume/..data")).unwrap();
    };
    version("..1", "one");
    symlink("..data/tls.crt", at("volume/tls.crt")).unwrap();
    for directory in ["archive", "live"] {
        fs::create_dir(at(directory)).unwrap();
    }
    fs::write(at("archive/1.pem"), "one").unwrap();
    symlink("../archive/1.pem", at("live/cert.pem")).unwrap();
    let files = [at("volume/tls.crt"), at("live/cert.pem")];
    let through_data = open(Restrict::Required, &[at("volume/..data/tls.crt")], &[]);
    let opened = open(Restrict::Required, &files, &[]);

    version("..2", "two");
    fs::remove_dir_all(at("volume/..1")).unwrap();
    fs::write(at("archive/2.pem"), "two").unwrap();
    fs::remove_file(at("live/cert.pem")).unwrap();
    symlink("../archive/2.pem", at("live/cert.pem")).unwrap();
    restricted(opened, |state| {
        for file in &files {
            assert_eq!(fs::read(file).unwrap(), b"two", "{file:?}");
            assert!(state.allows(file, false) && !state.allows(file, true), "{file:?}");
        }
    });
    restricted(through_data, |_| assert!(fs::read(&files[0]).is_ok()));
}

#[test]
fn what_is_outside_is_known_before_it_is_opened() {
    let (root, token, spool) = places();
    let at = |name: &str| root.path().join(name);
    fs::write(at("beside"), "").unwrap();
    symlink(at("beside"), at("inside/out")).unwrap();
    symlink(at("inside/token"), at("in")).unwrap();
    symlink(at("not-there"), at("inside/nowhere")).unwrap();
    let opened = open(Restrict::BestEffort, std::slice::from_ref(&token), &[spool]);
    restricted(opened, |state| {
        for (path, read, write) in [
            ("inside/token", true, false),
            ("inside/not/there/yet", true, false),
            ("in", true, false),
            ("spool/dead-letter", true, true),
            ("inside/out", false, false),
            ("inside/nowhere", false, false),
            ("beside", false, false),
            ("not/there", false, false),
        ] {
            assert_eq!(state.allows(&at(path), false), read, "{path}");
            assert_eq!(state.allows(&at(path), true), write, "{path}");
            if at(path).exists() {
                assert_eq!(fs::File::open(at(path)).is_ok(), read, "{path}");
            }
        }
    });
    let none = State::new(Restrict::BestEffort);
    assert!(none.allows(&at("beside"), true), "without Landlock nothing is outside");
}

#[test]
fn a_rule_is_on_the_directory_around_a_file_and_never_on_the_root() {
    let root = TempDir::new().unwrap();
    let real = root.path().canonicalize().unwrap();
    assert_eq!(around(&real.join("not-there")), BTreeSet::from([real.clone()]));
    assert_eq!(around(Path::new("/not-there")), BTreeSet::from(["/not-there".into()]));
    let up = real.ancestors().count();
    let root_again = real.join("../".repeat(up)).join("not-there");
    assert_eq!(around(&root_again), BTreeSet::from([root_again]));
    // A directory or a device is not read a second time.
    assert!(around(&real).is_empty() && around(Path::new("/dev/null")).is_empty());
    assert!(is_mount(Path::new("/proc")) && !is_mount(&real));
    // A symlink that leads to itself does not make an endless loop.
    symlink("circle", real.join("circle")).unwrap();
    assert_eq!(around(&real.join("circle")), BTreeSet::from([real]));
}

#[test]
fn etc_is_readable_only_where_somebody_may_replace_a_file_of_the_resolver_in_it() {
    let etc = PathBuf::from("/etc");
    for file in RESOLVER.map(Path::new) {
        assert!(!around_resolver(file, Restrict::Required).contains(&etc), "{file:?}");
        let is_plain = file.is_file() && !file.is_symlink() && !is_mount(file);
        let found = around_resolver(file, Restrict::BestEffort);
        assert_eq!(found.contains(&etc), is_plain, "{file:?}");
    }
}
