//! Reads files that a config or a command line names: secrets, certificates, policies.
//!
//! Of a config, only regular files are read, behind any number of symlinks, as ConfigMaps and
//! Secrets have them. Opening a FIFO would wait until somebody writes into it, reading a device may
//! never end, and neither can be read a second time. A file system that hangs looks like a slow
//! one, so this module notes which files are being read: code that has waited too long can name
//! them.
//!
//! A command line may also name a pipe, as shells make one for `<(…)`, and standard input. They are
//! read once, up to a limit, and as long as something comes ([`open_of_command`]).

use std::collections::BTreeMap;
use std::fs::{File, FileType, OpenOptions};
use std::io;
use std::io::Read as _;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};

use crate::lock::lock;

/// The longest wait for the files that a config names. After this time the file system counts as
/// hanging, and the command or the reload that needs the files fails.
pub const WAIT_MAX: Duration = Duration::from_secs(30);

/// The longest wait for the next bytes of a pipe that a command line names.
const QUIET_MAX: Duration = Duration::from_secs(30);

/// The files that are being read or looked at now, each under a number of its own.
static UNDER_WAY: Mutex<BTreeMap<u64, PathBuf>> = Mutex::new(BTreeMap::new());

fn under_way() -> MutexGuard<'static, BTreeMap<u64, PathBuf>> {
    lock(&UNDER_WAY)
}

/// While this value exists, its file is in the list of files that are being read.
struct Reading(u64);

impl Reading {
    fn of(path: &Path) -> Self {
        let mut under_way = under_way();
        let number = under_way.last_key_value().map_or(0, |(last, _)| last + 1);
        under_way.insert(number, path.to_owned());
        Self(number)
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        under_way().remove(&self.0);
    }
}

/// Returns the files that any thread is reading now, for a message: `FILE, FILE`. If there are
/// none, the text names no file.
pub fn names_under_way() -> String {
    let mut names: Vec<_> = under_way().values().map(|path| path.display().to_string()).collect();
    names.dedup();
    match names.is_empty() {
        true => "a file or directory that the config names".to_owned(),
        false => names.join(", "),
    }
}

/// Returns the content of a regular file. The call blocks while it reads the file.
///
/// # Errors
///
/// The error of the operating system; or the file is not a regular file, or has more than
/// `bytes_max` bytes.
pub fn read(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let _reading = Reading::of(path);
    whole(open(path)?, bytes_max)
}

/// Returns the content of a file that a command line names, which may be a pipe. The call blocks
/// while it reads the file.
///
/// # Errors
///
/// As for [`open_of_command`]; or the file has more than `bytes_max` bytes.
pub fn read_of_command(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let _reading = Reading::of(path);
    whole(open_of_command(path)?, bytes_max)
}

/// Returns all that `from` has.
///
/// # Errors
///
/// The error of the reader; or it has more than `bytes_max` bytes.
pub fn whole(from: impl io::Read, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    from.take(bytes_max.saturating_add(1)).read_to_end(&mut content)?;
    match content.len() as u64 > bytes_max {
        true => {
            let text = format!("it is larger than {} MiB", bytes_max >> 20);
            Err(io::Error::new(io::ErrorKind::FileTooLarge, text))
        }
        false => Ok(content),
    }
}

/// A file that a command line names, to be read once.
pub struct OfCommand(File);

/// Opens a file that a command line names. Neither the open nor a read waits for longer than half a
/// minute for a process that writes nothing into a pipe.
///
/// # Errors
///
/// The error of the operating system.
pub fn open_of_command(path: &Path) -> io::Result<OfCommand> {
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map(OfCommand)
}

impl io::Read for OfCommand {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wait = Timespec { tv_sec: QUIET_MAX.as_secs().cast_signed(), tv_nsec: 0 };
        loop {
            // Without the wait, a pipe that nobody has opened for writing yet looks empty.
            let mut polled = [PollFd::new(&self.0, PollFlags::IN)];
            match rustix::event::poll(&mut polled, Some(&wait)) {
                Err(rustix::io::Errno::INTR) => continue,
                Ok(0) => {
                    let what = format!("nothing was written into it for {} s", wait.tv_sec);
                    return Err(io::Error::new(io::ErrorKind::TimedOut, what));
                }
                polled => polled?,
            };
            match self.0.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return read,
            }
        }
    }
}

/// Checks that a file is there, is a regular file, and can be opened. Blocks on the disk.
///
/// # Errors
///
/// As for [`read`].
pub fn look(path: &Path) -> io::Result<()> {
    let _reading = Reading::of(path);
    match open(path)?.metadata()?.is_dir() {
        true => Err(io::ErrorKind::IsADirectory.into()),
        false => Ok(()),
    }
}

/// Returns `true` if the path is that of a regular file. Blocks on the disk.
pub fn is_regular(path: &Path) -> bool {
    let _reading = Reading::of(path);
    path.is_file()
}

/// Opens a regular file below a directory that somebody else may have filled. No part of `path` may
/// be a symlink, which could lead to any file of this machine, or into a loop. The open does not
/// block.
///
/// # Errors
///
/// The error of the operating system, or a sentence that says what is there instead of a regular
/// file.
pub fn open_below(root: &Path, path: impl AsRef<Path>) -> io::Result<File> {
    let (place, kind) = below(root, path.as_ref())?;
    if let Some(kind) = kind.filter(|kind| !kind.is_file()) {
        return Err(refused(kind));
    }
    // Somebody may have replaced the file since the check.
    let flags = libc::O_NONBLOCK | libc::O_NOFOLLOW;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(&place)?;
    let kind = file.metadata()?.file_type();
    if kind.is_file() { Ok(file) } else { Err(refused(kind)) }
}

/// Returns `true` if there is a directory below `root`, as in [`open_below`], and `false` if
/// nothing is there.
///
/// # Errors
///
/// The error of the operating system, or a sentence that says what is there instead.
pub fn is_directory_below(root: &Path, path: &Path) -> io::Result<bool> {
    match below(root, path) {
        Ok((_, Some(kind))) if !kind.is_dir() => Err(refused(kind)),
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Returns the path of something below `root`, and what it is. No part of it is a symlink.
fn below(root: &Path, path: &Path) -> io::Result<(PathBuf, Option<FileType>)> {
    let (mut place, mut kind) = (root.to_owned(), None);
    for part in path {
        place.push(part);
        let found = place.symlink_metadata()?.file_type();
        if found.is_symlink() {
            return Err(refused(found));
        }
        kind = Some(found);
    }
    Ok((place, kind))
}

/// Returns the error about something that is not what it should be.
pub(crate) fn refused(kind: FileType) -> io::Error {
    let text = format!("it is {} and not a regular file", what(kind));
    io::Error::new(io::ErrorKind::Unsupported, text)
}

fn open(path: &Path) -> io::Result<File> {
    let is_wrong = |kind: FileType| !kind.is_file() && !kind.is_dir();
    // Opening a FIFO would wake the process that waits at its other end, so the check comes first.
    let kind = std::fs::metadata(path)?.file_type();
    if is_wrong(kind) {
        return Err(refused(kind));
    }
    // The file may have been replaced since then, so the open must not block, and the check is made
    // again.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let kind = file.metadata()?.file_type();
    // A directory is let through: reading it fails with an error that says what it is.
    if is_wrong(kind) { Err(refused(kind)) } else { Ok(file) }
}

/// Returns what a file is that is not a regular file.
fn what(kind: FileType) -> &'static str {
    if kind.is_symlink() {
        "a symlink"
    } else if kind.is_dir() {
        "a directory"
    } else if kind.is_fifo() {
        "a FIFO (named pipe)"
    } else if kind.is_socket() {
        "a socket"
    } else if kind.is_char_device() || kind.is_block_device() {
        "a device"
    } else {
        "a special file"
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn only_regular_files_are_read_also_behind_symlinks_and_no_open_waits() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::write(at("token"), "secret").unwrap();
        symlink("token", at("data")).unwrap();
        symlink(at("data"), at("link")).unwrap();
        assert_eq!(read(&at("link"), 6).unwrap(), b"secret");
        assert_eq!(read(&at("link"), 5).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        look(&at("link")).unwrap();
        let fifo = at("fifo");
        let mkfifo = std::process::Command::new("mkfifo").arg(&fifo).status().unwrap();
        assert!(mkfifo.success());
        symlink("fifo", at("link-to-fifo")).unwrap();
        let _socket = UnixListener::bind(at("socket")).unwrap();
        for (path, what) in [
            (fifo, "a FIFO (named pipe)"),
            (at("link-to-fifo"), "a FIFO (named pipe)"),
            (at("socket"), "a socket"),
            ("/dev/null".into(), "a device"),
        ] {
            let error = read(&path, u64::MAX).unwrap_err().to_string();
            assert_eq!(error, format!("it is {what} and not a regular file"), "{path:?}");
            assert!(look(&path).is_err() && !is_regular(&path), "{path:?}");
        }
        assert_eq!(read(&at("."), 1).unwrap_err().kind(), io::ErrorKind::IsADirectory);
        assert_eq!(read(&at("none"), 1).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn below_a_foreign_directory_only_regular_files_are_opened_and_no_symlink_is_followed() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let at = |name: &str| root.join(name);
        std::fs::create_dir_all(at("tile/entries")).unwrap();
        std::fs::write(at("tile/entries/000"), "x").unwrap();
        symlink(".", at("tile/x001")).unwrap();
        symlink("/dev/zero", at("zero")).unwrap();
        symlink("tile/entries/000", at("link")).unwrap();
        let made = std::process::Command::new("mkfifo").arg(at("fifo")).status().unwrap();
        assert!(made.success());
        assert!(open_below(root, "tile/entries/000").is_ok());
        for (path, what) in [
            ("tile/x001/x001/entries/000", "a symlink"),
            ("zero", "a symlink"),
            ("link", "a symlink"),
            ("fifo", "a FIFO (named pipe)"),
            ("tile/entries", "a directory"),
        ] {
            let error = open_below(root, path).unwrap_err().to_string();
            assert_eq!(error, format!("it is {what} and not a regular file"), "{path}");
        }
        let missing = open_below(root, "tile/entries/001").unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        // The directory itself may be behind a symlink.
        symlink(root, at("itself")).unwrap();
        assert!(open_below(&at("itself"), "tile/entries/000").is_ok());
    }

    #[test]
    fn a_file_is_named_while_it_is_read() {
        let [one, other] = [Path::new("/one"), Path::new("/other")];
        let reading = (Reading::of(one), Reading::of(other));
        let names = names_under_way();
        assert!(names.contains("/one") && names.contains("/other"), "{names}");
        drop(reading);
        let names = names_under_way();
        assert!(!names.contains("/one") && !names.contains("/other"), "{names}");
    }
}
