//! File systems of a test's own: small, on their own disk, or read-only; and an /etc/hosts of its own. They take root, and a
//! kernel that lets root mount; where one is missing the test fails.
//!
//! They are mounted in a mount namespace of the test's thread, which its children and later threads share: the kernel takes
//! all of it away with the process, however that ends.

use std::net::Ipv4Addr;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

use super::text;

/// A mounted file system.
pub(crate) struct Mounted {
    directory: TempDir,
}

/// What kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// In memory.
    Tmpfs,
    /// ext4 on a loop device.
    Ext4,
}

impl Mounted {
    /// A file system of about this size.
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
                // The image may lie in the directory that it covers.
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

    /// Takes up room until so many bytes are left.
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

    /// Nothing can be written from now on.
    pub(crate) fn make_read_only(&self) {
        run("mount", &["-o", "remount,ro", text(&self.path())]);
    }

    /// The end of [`Mounted::make_read_only`].
    pub(crate) fn make_writable(&self) {
        run("mount", &["-o", "remount,rw", text(&self.path())]);
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Busy while something of it is open; then it goes with the namespace.
        drop(Command::new("umount").args(["--lazy", text(&self.path())]).status());
    }
}

/// What names resolve to, for this test and what it starts: another file over /etc/hosts.
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

    /// From now on these are all names there are, each with its addresses in this order.
    pub(crate) fn set(&self, names: &[(&str, &[Ipv4Addr])]) {
        let lines = names.iter().flat_map(|(name, addresses)| {
            addresses.iter().map(move |address| format!("{address} {name}\n"))
        });
        // In place: what is mounted is this file, and not its name.
        std::fs::write(self.file(), lines.collect::<String>()).expect("a writable directory");
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        // What is left goes with the namespace.
        drop(Command::new("umount").args(["--lazy", "/etc/hosts"]).status());
    }
}

#[allow(unsafe_code, reason = "unshare(2) has no safe form without another crate")]
fn own_namespace() {
    // SAFETY: it takes flags and touches no memory; file descriptors and the working directory stay as they are.
    let result = unsafe { libc::unshare(libc::CLONE_NEWNS) };
    let error = std::io::Error::last_os_error();
    assert_eq!(result, 0, "a mount namespace, which takes root: {error}");
    // Else what is mounted here shows outside.
    run("mount", &["--make-rprivate", "/"]);
}

fn run(program: &str, arguments: &[&str]) {
    // mkfs is not in everybody's PATH.
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output = Command::new(program).env("PATH", path).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
}
