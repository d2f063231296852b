//! Each test restricts a thread of its own, as `run` restricts the first thread of its process.

use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::process::Command;
use std::{fs, thread};

use tempfile::TempDir;

use super::calls::{FORBIDDEN, FORBIDDEN_ON_X86_64, NAMESPACES, X32, XATTRAT, forbidden};
use super::*;

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
            assert_eq!(state.missing, None, "this kernel has both");
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
        assert!(state.landlock.is_some() && state.seccomp);
        assert_eq!(fs::read(&token).unwrap(), b"secret");
        fs::create_dir(spool.join("segments")).unwrap();
        fs::write(spool.join("new"), "event").unwrap();
        fs::rename(spool.join("new"), spool.join("segments/1")).unwrap();
        fs::remove_file(spool.join("segments/1")).unwrap();
        fs::read("/proc/self/stat").unwrap();
        assert!(std::net::ToSocketAddrs::to_socket_addrs("localhost:1").is_ok());

        let refused = |result: io::Result<()>, what: &str| {
            assert_eq!(result.unwrap_err().kind(), ErrorKind::PermissionDenied, "{what}");
        };
        for file in ["/etc/passwd", "/etc/shadow", "/etc", "/proc/1/environ", "/bin/true"] {
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

/// Method: tries each call that changes metadata, which Landlock does not protect, on three files:
/// one that the thread may not open, one that it may only read, and one that it may write.
#[test]
fn permissions_owners_times_and_attributes_of_no_file_can_be_changed() {
    let (root, token, spool) = places();
    let outside = root.path().join("other");
    let own = spool.join("own");
    fs::write(&outside, "secret").unwrap();
    fs::write(&own, "event").unwrap();
    let files = [&outside, &token, &own];
    let meta = |path: &&PathBuf| {
        let meta = fs::metadata(path).unwrap();
        (meta.permissions(), meta.modified().unwrap(), meta.uid(), meta.gid())
    };
    let before = files.map(|path| meta(&path));
    let opened =
        open(Restrict::Required, std::slice::from_ref(&token), std::slice::from_ref(&spool));
    restricted(opened, |_| {
        let (all, flags) = (fs::Permissions::from_mode(0o777), rustix::fs::XattrFlags::empty());
        let long_ago = fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH);
        let times = || rustix::fs::Timestamps {
            last_access: rustix::fs::Timespec { tv_sec: 0, tv_nsec: 0 },
            last_modification: rustix::fs::Timespec { tv_sec: 0, tv_nsec: 0 },
        };
        let is_refused = |result: io::Result<()>, what: &str, path: &Path| {
            let error = result.expect_err(what).raw_os_error();
            assert_eq!(error, Some(libc::EPERM), "{what} {}", path.display());
        };
        let cwd = rustix::fs::CWD;
        let mode = rustix::fs::Mode::RWXO;
        let (none, nofollow) = (AtFlags::empty(), AtFlags::SYMLINK_NOFOLLOW);
        for path in files {
            let (xattr, utimens) = (rustix::fs::setxattr, rustix::fs::utimensat);
            is_refused(fs::set_permissions(path, all.clone()), "chmod", path);
            is_refused(rustix::fs::chmodat(cwd, path, mode, none).map_err(Into::into), "at", path);
            is_refused(chown(path, Some(1), Some(1)), "chown", path);
            is_refused(lchown(path, Some(1), Some(1)), "lchown", path);
            is_refused(utimens(cwd, path, &times(), none).map_err(Into::into), "times", path);
            is_refused(utimens(cwd, path, &times(), nofollow).map_err(Into::into), "times", path);
            is_refused(xattr(path, "user.a", b"1", flags).map_err(Into::into), "xattr", path);
            is_refused(rustix::fs::removexattr(path, "user.a").map_err(Into::into), "rm", path);
        }
        for path in [&token, &own] {
            let file = fs::File::open(path).unwrap();
            is_refused(file.set_permissions(all.clone()), "fchmod", path);
            is_refused(std::os::unix::fs::fchown(&file, Some(1), Some(1)), "fchown", path);
            is_refused(file.set_times(long_ago), "futimens", path);
            let set = rustix::fs::fsetxattr(&file, "user.a", b"1", flags);
            is_refused(set.map_err(Into::into), "fsetxattr", path);
            let set = rustix::fs::ioctl_setflags(&file, rustix::fs::IFlags::NODUMP);
            is_refused(set.map_err(Into::into), "chattr", path);
        }
        for number in FORBIDDEN_ON_X86_64.into_iter().filter(|_| cfg!(target_arch = "x86_64")) {
            assert_eq!(call(number).raw_os_error(), Some(libc::EPERM), "{number}");
        }
        for number in XATTRAT {
            assert_eq!(call(number).raw_os_error(), Some(libc::EPERM), "{number}");
        }
        // Links and renames cannot leave the directories either.
        for path in [&outside, &token] {
            fs::hard_link(path, spool.join("link")).unwrap_err();
            fs::rename(path, spool.join("moved")).unwrap_err();
        }
        fs::hard_link(&own, root.path().join("link")).unwrap_err();
        fs::rename(&own, root.path().join("moved")).unwrap_err();
        fs::rename(&own, &outside).unwrap_err();
    });
    assert_eq!(files.map(|path| meta(&path)), before);
}

#[test]
fn no_program_is_run_and_no_forbidden_call_is_made() {
    [0, OWN_USER].into_iter().for_each(no_way_out_as);
    // The thread that started the restricted thread is not restricted.
    assert!(Command::new("/bin/true").status().unwrap().success());
}

fn no_way_out_as(user: u32) {
    restricted_as(user, Vec::new(), |_| {
        let error = Command::new("/bin/true").status().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{error}");
        for number in FORBIDDEN {
            assert_eq!(call(number).raw_os_error(), Some(libc::EPERM), "{number}");
        }
        for flag in NAMESPACES {
            assert_eq!(clone_with(flag).raw_os_error(), Some(libc::EPERM), "{flag:x}");
        }
        assert_eq!(clone_with(0).raw_os_error(), Some(libc::EINVAL));
        assert_eq!(call(libc::SYS_clone3).raw_os_error(), Some(libc::ENOSYS));
        // Threads are made with clone(2).
        assert_eq!(
            thread::spawn(|| call(libc::SYS_ptrace).raw_os_error()).join().unwrap(),
            Some(libc::EPERM)
        );
    });
}

/// Makes a system call whose arguments are all -1, so that it has no effect, and returns its error.
#[allow(unsafe_code, reason = "no safe crate makes calls that are to be refused")]
fn call(number: libc::c_long) -> io::Error {
    // SAFETY: -1 is neither an address nor a file descriptor nor a command of any of these calls,
    // so the kernel refuses them even without a filter, and touches no memory of this process.
    let result = unsafe { libc::syscall(number, -1, -1, -1, -1, -1) };
    assert_eq!(result, -1, "{number}");
    io::Error::last_os_error()
}

/// Calls clone(2) with a flag, and returns its error. Without a filter, the error is EINVAL,
/// because CLONE_SIGHAND needs CLONE_VM.
#[allow(unsafe_code, reason = "no safe crate makes calls that are to be refused")]
fn clone_with(flag: u64) -> io::Error {
    let flags = flag | 0x800;
    // SAFETY: the kernel refuses these flags before it makes a process.
    let result = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    assert_eq!(result, -1, "{flag:x}");
    io::Error::last_os_error()
}

#[test]
fn on_x86_64_the_numbers_of_the_x32_abi_are_refused_too() {
    let numbers = forbidden();
    assert!(FORBIDDEN.iter().all(|number| numbers.contains(number)));
    if cfg!(target_arch = "x86_64") {
        assert!(numbers.contains(&(libc::SYS_mount | X32)));
        // x32 has its own execve(2).
        assert!(numbers.contains(&(520 | X32)));
    }
    for allowed in [libc::SYS_clone3, libc::SYS_clone, libc::SYS_openat, libc::SYS_futex] {
        assert!(!numbers.contains(&allowed), "{allowed}");
    }
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
