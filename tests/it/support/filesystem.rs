//! File systems for one test (small, on a disk of their own, or read-only), and an /etc/hosts for
//! one test. They need root, and a kernel on which root can mount. Otherwise the test fails.
//!
//! They are mounted in a mount namespace of the test's thread. Its children and the threads that it
//! starts later share the namespace. The kernel removes the mounts when the process ends.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::needs::needs;
use super::text;

/// A mounted file system. Dropping it unmounts it.
pub(crate) struct Mounted {
    directory: TempDir,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A file system in memory.
    Tmpfs,
    /// A real ext4 file system on a loop device.
    Ext4,
}

impl Mounted {
    /// Mounts a file system of about `bytes` bytes.
    pub(crate) fn new(kind: Kind, bytes: u64) -> Self {
        own_namespace();
        let mounted = Self { directory: TempDir::new().expect("a temporary directory") };
        let at = mounted.path();
        match kind {
            Kind::Tmpfs => {
                let size = format!("size={bytes}");
                run("mount", &["-t", "tmpfs", "-o", &size, "tmpfs", text(&at)]);
            }
            Kind::Ext4 => {
                // The image may be in the directory that the mount then covers.
                let image = at.join("image");
                let file = std::fs::File::create(&image).expect("a writable directory");
                file.set_len(bytes).expect("a sparse file");
                run("mkfs.ext4", &["-q", "-F", "-m", "0", text(&image)]);
                run("mount", &["-o", "loop", text(&image), text(&at)]);
            }
        }
        mounted
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().to_owned()
    }

    /// Fills the file system with the file `ballast` until only `left` bytes are free.
    pub(crate) fn fill_up_to(&self, left: u64, ballast: &Path) {
        let file = std::fs::File::create(ballast).expect("a writable directory");
        let free = self.free_bytes();
        let taken = free.checked_sub(left).expect("that much is free");
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, taken)
            .expect("it was free");
    }

    pub(crate) fn free_bytes(&self) -> u64 {
        let stat = rustix::fs::statvfs(self.directory.path()).expect("a file system");
        stat.f_bavail * stat.f_frsize
    }

    /// Remounts the file system read-only. From now on, every write to it fails.
    pub(crate) fn make_read_only(&self) {
        run("mount", &["-o", "remount,ro", text(&self.path())]);
    }

    /// Mounts an empty file system over a directory in this one.
    pub(crate) fn cover(&self, name: &str) {
        run("mount", &["-t", "tmpfs", "tmpfs", text(&self.path().join(name))]);
    }

    /// Undoes [`Mounted::cover`].
    pub(crate) fn uncover(&self, name: &str) {
        run("umount", &[text(&self.path().join(name))]);
    }

    /// Undoes [`Mounted::make_read_only`].
    pub(crate) fn make_writable(&self) {
        run("mount", &["-o", "remount,rw", text(&self.path())]);
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // A file in the file system may still be open, so the unmount is lazy.
        drop(Command::new("umount").args(["--lazy", text(&self.path())]).status());
    }
}

/// Another file, mounted over /etc/hosts. It has the names that this test, and every process that
/// it starts, can resolve.
pub(crate) struct Hosts {
    directory: TempDir,
}

impl Hosts {
    pub(crate) fn new() -> Self {
        own_namespace();
        let hosts = Self { directory: TempDir::new().expect("a temporary directory") };
        hosts.set(&[]);
        run("mount", &["--bind", text(&hosts.file()), "/etc/hosts"]);
        hosts
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("hosts")
    }

    /// Makes these the only names in the file, each with its addresses in this order.
    pub(crate) fn set(&self, names: &[(&str, &[Ipv4Addr])]) {
        let lines = names.iter().flat_map(|(name, addresses)| {
            addresses.iter().map(move |address| format!("{address} {name}\n"))
        });
        // The file is written in place, because the mount is bound to the file and not to its name.
        std::fs::write(self.file(), lines.collect::<String>()).expect("a writable directory");
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        // A remaining mount is removed with the namespace.
        drop(Command::new("umount").args(["--lazy", "/etc/hosts"]).status());
    }
}

#[allow(unsafe_code, reason = "unshare(2) has no safe form without another crate")]
fn own_namespace() {
    needs("root");
    // SAFETY: unshare takes flags and touches no memory. File descriptors and the working directory
    // stay as they are.
    let result = unsafe { libc::unshare(libc::CLONE_NEWNS) };
    let error = std::io::Error::last_os_error();
    assert_eq!(result, 0, "a mount namespace, which takes root: {error}");
    // Without this, mounts made here would be visible outside the namespace.
    run("mount", &["--make-rprivate", "/"]);
}

fn run(program: &str, arguments: &[&str]) {
    // mkfs is in a directory that is not in every user's PATH.
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output = Command::new(program).env("PATH", path).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
}
