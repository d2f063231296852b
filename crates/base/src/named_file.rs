//! Reads files that a config or a command line names: secrets, certificates, policies.
//!
//! A config may name only regular files, directly or through symlinks (as in ConfigMaps and
//! Secrets). A FIFO or a device is refused: a read may never end, and can't be repeated. A command
//! line may also name a pipe, such as a shell's `<(…)` ([`open_of_command`]). A file system that
//! hangs looks like a slow one: code that has waited too long can ask for the files that are being
//! read.

use std::collections::BTreeMap;
use std::fs::{File, FileType, OpenOptions};
use std::io;
use std::io::Read as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};

use crate::lock::lock;

/// The longest wait for the files that a config names. After it, the command or the reload fails.
pub const WAIT_MAX: Duration = Duration::from_secs(30);

const QUIET_MAX: Duration = Duration::from_secs(30);

static BEING_READ: Mutex<BTreeMap<u64, PathBuf>> = Mutex::new(BTreeMap::new());

fn being_read() -> MutexGuard<'static, BTreeMap<u64, PathBuf>> {
    lock(&BEING_READ)
}

struct Reading(u64);

impl Reading {
    fn of(path: &Path) -> Self {
        let mut being_read = being_read();
        let number = being_read.last_key_value().map_or(0, |(last, _)| last + 1);
        being_read.insert(number, path.to_owned());
        Self(number)
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        being_read().remove(&self.0);
    }
}

/// Returns the files that are being read as `FILE, FILE`, or a general phrase if there are none.
pub fn names_of_files_being_read() -> String {
    let mut names: Vec<_> = being_read().values().map(|path| path.display().to_string()).collect();
    names.dedup();
    match names.is_empty() {
        true => "a file or directory that the config names".to_owned(),
        false => names.join(", "),
    }
}

/// Returns the content of a regular file. Blocks on the disk.
///
/// # Errors
///
/// The operating system refuses, the file is not regular, or it has more than `bytes_max` bytes.
pub fn read(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let _reading = Reading::of(path);
    whole(open(path)?, bytes_max)
}

/// Returns the content of a file or pipe that a command line names. Blocks.
///
/// # Errors
///
/// The errors of [`open_of_command`] and of its reader, or more than `bytes_max` bytes.
pub fn read_of_command(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let _reading = Reading::of(path);
    whole(open_of_command(path)?, bytes_max)
}

/// Returns all bytes of a reader.
///
/// # Errors
///
/// The error of the reader, or the reader has more than `bytes_max` bytes.
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

/// Refuses a device, such as `/dev/zero`, whose text never ends. `/dev/null` has no text, and is
/// used as an empty file.
///
/// # Errors
///
/// The error of the operating system, or `Unsupported`.
pub fn refuse_device(path: &Path) -> io::Result<()> {
    let about = std::fs::metadata(path)?;
    let kind = about.file_type();
    let is_device = kind.is_char_device() || kind.is_block_device();
    // `/dev/stdin` may lead there, too.
    let is_null = || {
        let null = std::fs::metadata("/dev/null");
        kind.is_char_device() && null.is_ok_and(|null| null.rdev() == about.rdev())
    };
    match is_device && !is_null() {
        true => Err(refused(kind)),
        false => Ok(()),
    }
}

/// A file or pipe that a command line names, to be read once.
pub struct OfCommand(File);

/// Opens a file or pipe that a command line names. Each read fails after 30 s without data.
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
            // Without this wait, a pipe that no writer has opened yet looks empty.
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

/// Checks that a path leads to a regular file that can be opened. Blocks on the disk.
///
/// # Errors
///
/// The operating system refuses, or the file is not regular.
pub fn look(path: &Path) -> io::Result<()> {
    let _reading = Reading::of(path);
    match open(path)?.metadata()?.is_dir() {
        true => Err(io::ErrorKind::IsADirectory.into()),
        false => Ok(()),
    }
}

/// Returns `true` if the path leads to a regular file. Blocks on the disk.
pub fn is_regular(path: &Path) -> bool {
    let _reading = Reading::of(path);
    path.is_file()
}

/// Opens a regular file below a directory that another user may have filled. Never waits for a
/// FIFO. A symlink in `path` is an error, because it could lead to any file of this machine.
///
/// # Errors
///
/// The error of the operating system, or a sentence that says what `path` is instead.
pub fn open_below(root: &Path, path: impl AsRef<Path>) -> io::Result<File> {
    let (place, kind) = below(root, path.as_ref())?;
    if let Some(kind) = kind.filter(|kind| !kind.is_file()) {
        return Err(refused(kind));
    }
    let flags = libc::O_NONBLOCK | libc::O_NOFOLLOW;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(&place)?;
    let kind = file.metadata()?.file_type();
    if kind.is_file() { Ok(file) } else { Err(refused(kind)) }
}

/// Returns `true` if `path` is a directory below `root`, and `false` if it does not exist.
///
/// # Errors
///
/// The errors of [`open_below`]; or `path` is not a directory.
pub fn is_directory_below(root: &Path, path: &Path) -> io::Result<bool> {
    match below(root, path) {
        Ok((_, Some(kind))) if !kind.is_dir() => Err(refused(kind)),
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Returns a path below `root`, and the type of its last part. A symlink in `path` is an error.
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

pub(crate) fn refused(kind: FileType) -> io::Error {
    let text = format!("it is {} and not a regular file", what(kind));
    io::Error::new(io::ErrorKind::Unsupported, text)
}

/// Opens a regular file for reading.
///
/// # Errors
///
/// The error of the operating system, or `Unsupported` if it is neither a regular file nor a
/// directory, such as a FIFO.
pub fn open(path: &Path) -> io::Result<File> {
    let is_wrong = |kind: FileType| !kind.is_file() && !kind.is_dir();
    // Opening a FIFO would wake the process at its other end, so this check comes first.
    let kind = std::fs::metadata(path)?.file_type();
    if is_wrong(kind) {
        return Err(refused(kind));
    }
    // Another file may have replaced it since then, so the open must not block.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let kind = file.metadata()?.file_type();
    // A directory passes: reading it fails with an error that says what it is.
    if is_wrong(kind) { Err(refused(kind)) } else { Ok(file) }
}

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
        let names = names_of_files_being_read();
        assert!(names.contains("/one") && names.contains("/other"), "{names}");
        drop(reading);
        let names = names_of_files_being_read();
        assert!(!names.contains("/one") && !names.contains("/other"), "{names}");
    }
}
