//! The calls that seccomp refuses, on the architectures that have a filter.

use std::os::unix::fs::{MetadataExt, chown, lchown};

use super::super::calls::{FORBIDDEN, FORBIDDEN_ON_X86_64, NAMESPACES, X32, XATTRAT, forbidden};
use super::*;

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
fn neither_a_program_is_run_nor_a_forbidden_call_made() {
    [0, OWN_USER].into_iter().for_each(no_way_out_as);
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
