//! The file operations of a queue on disk. Tests use disks that forget or refuse writes. No
//! operation is repeated after an error of the disk. Names are relative to the queue's directory,
//! and no symlink below that directory is followed.

use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{fmt, fs, io};

use rustix::fs::{AtFlags, Dir, FallocateFlags, FileType, Mode, OFlags, Stat};
use rustix::io::{Errno, retry_on_intr};

use crate::named_file;
pub use direct::Aligned;
use direct::Direct;

mod direct;

/// The directory of the segments, the files that hold the queue's events.
pub const SEGMENTS: &str = "segments";

/// The directory of the spare files, which nobody needs and which become the next segments.
pub const SPARES: &str = "spare";

/// The directory of the copies of damaged bytes.
pub const QUARANTINE: &str = "quarantine";

/// The directory of the events that outputs have set aside.
pub const ASIDE: &str = "set-aside";

/// The file whose lock (flock), and that of the queue's directory itself, let only one process use
/// the directory.
pub const LOCK: &str = "spool.lock";

/// The kernel's limit for the number of pieces in one write (UIO_MAXIOV).
const PIECES_MAX: usize = 1024;

/// The operations on a queue's directory and on the files in it.
pub trait Disk: Send + Sync + fmt::Debug {
    /// Returns the names of the entries of a directory, in no particular order.
    fn list(&self, directory: &str) -> io::Result<Vec<String>>;

    /// Opens a file that exists.
    fn open(&self, name: &str, access: Access) -> io::Result<Arc<dyn File>>;

    /// Makes a new file of this many zero bytes, with reserved disk space if that is possible.
    fn create(&self, name: &str, bytes: u64) -> io::Result<Arc<dyn File>>;

    /// Makes a directory and its missing parents, so that they survive a power loss.
    fn make_directory(&self, name: &str) -> io::Result<()>;

    /// Deletes a file.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Renames a file. A file that already has the new name is replaced.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Renames a file so that it can be overwritten. Returns `Ok(false)`, and does nothing, if it
    /// can't be locked (a reader has it open) or has another name (a hard link).
    fn recycle(&self, from: &str, to: &str) -> io::Result<bool>;

    /// Makes changed names in a directory survive a power loss. `""` is the queue's directory.
    fn sync_directory(&self, directory: &str) -> io::Result<()>;

    /// Returns a text that is different for a copy of the directory. `None` if the disk can't tell.
    fn identity(&self, _directory: &str) -> Option<String> {
        None
    }

    /// Returns where the directory is that was opened at the start. It costs about ten system
    /// calls, which wait for the device only on a network file system.
    fn place(&self) -> Place {
        Place::Here
    }
}

/// The place of the queue's directory now, compared with the place at startup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Each directory that holds events, and the lock file, has its name.
    Here,
    /// Another file or directory, or none, has this name: it was moved away, or a mount covers it.
    /// A start would not find the events.
    Away(&'static str),
    /// The directory with this name was deleted. No file can be made in it any more.
    Deleted(&'static str),
}

impl Place {
    /// Returns `true` if the whole directory was deleted.
    pub fn is_deleted(self) -> bool {
        self == Self::Deleted("")
    }

    /// # Errors
    ///
    /// The directory is not where it was, with advice for the operator.
    pub fn check(self) -> io::Result<()> {
        let name = |name: &str| match name {
            "" => "queue.directory".to_owned(),
            name => format!("{name} in queue.directory"),
        };
        Err(io::Error::other(match self {
            Self::Here => return Ok(()),
            Self::Away(what) => format!(
                "{} was moved away, replaced or covered by a mount: bring it back, or restart the \
                 relay",
                name(what)
            ),
            Self::Deleted(what) => format!("{} was deleted: restart the relay", name(what)),
        }))
    }
}

/// The purpose for which a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// The file is only read.
    Read,
    /// The file is read and written.
    Write,
    /// The file is only written, from front to back, in whole blocks of 4,096 bytes.
    Append,
}

/// An open file in a queue's directory.
pub trait File: Send + Sync + fmt::Debug {
    /// Reads from `offset` on. The result is less than the length of `buffer` only at the end of
    /// the file.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes the pieces one after the other, starting at `offset`.
    fn write_at(&self, pieces: &[&[u8]], offset: u64) -> io::Result<()>;

    /// Makes all writes survive a power loss (fdatasync). After an error it is unknown which of the
    /// writes since the last sync are stored.
    fn sync(&self) -> io::Result<()>;

    /// Sets the length of the file. Bytes beyond it are lost.
    fn truncate(&self, bytes: u64) -> io::Result<()>;

    /// Returns the length of the file in bytes.
    fn bytes(&self) -> io::Result<u64>;

    /// Returns `false` if the file was deleted.
    fn is_linked(&self) -> io::Result<bool> {
        Ok(true)
    }
}

/// Returns the device and inode numbers of a directory, as the text of [`Disk::identity`].
pub fn identity(directory: &Path) -> Option<String> {
    let metadata = fs::symlink_metadata(directory).ok()?;
    Some(format!("{}:{}", metadata.dev(), metadata.ino()))
}

#[derive(Debug, thiserror::Error)]
#[error("{0} is a symlink, and no symlink below the queue's directory is followed: remove it")]
struct Link(String);

/// Returns `true` if the error is about a symlink below the queue's directory.
pub fn is_link(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|error| error.is::<Link>())
}

/// Returns `true` for an error of a device or a server that may work again later.
pub fn may_pass(error: &io::Error) -> bool {
    let passing = [Errno::IO, Errno::TIMEDOUT, Errno::STALE, Errno::REMOTEIO];
    Errno::from_io_error(error).is_some_and(|errno| passing.contains(&errno))
}

/// Returns a function that puts a file's name before the text of an error.
pub fn named(name: &str) -> impl Fn(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{name}: {error}"))
}

/// Opens a file for reading. `None` if it does not exist.
pub fn open_if_there(disk: &dyn Disk, name: &str) -> io::Result<Option<Arc<dyn File>>> {
    match disk.open(name, Access::Read) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        opened => opened.map(Some),
    }
}

/// Returns the number of files in a directory that can be opened, and the sum of their bytes.
pub fn sizes(disk: &dyn Disk, directory: &str) -> (u64, u64) {
    let names = disk.list(directory).unwrap_or_default();
    let bytes = |name: &String| disk.open(&format!("{directory}/{name}"), Access::Read)?.bytes();
    let sizes = names.iter().filter_map(|name| bytes(name).ok());
    sizes.fold((0, 0), |(files, sum), size| (files + 1, sum + size))
}

/// Replaces or creates a small file. A power loss leaves the old or the new content.
///
/// # Errors
///
/// The error of the disk. The file is then as before, or has the new content.
pub fn replace(disk: &dyn Disk, name: &str, content: &[u8]) -> io::Result<()> {
    let (new, bytes) = (format!("{name}.new"), content.len() as u64);
    let file = match disk.create(&new, bytes) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            disk.remove(&new)?;
            disk.create(&new, bytes)?
        }
        created => created?,
    };
    file.write_at(&[content], 0)?;
    file.sync()?;
    disk.rename(&new, name)?;
    disk.sync_directory(name.rsplit_once('/').map_or("", |(directory, _)| directory))
}

/// A queue's directory in the operating system's file system.
#[derive(Debug)]
pub struct RealDisk {
    root: PathBuf,
    /// The directories that hold events, by name; `""` is the queue's directory. Operations in them
    /// begin there, so that they never change what a mount has put over them. Empty after
    /// [`RealDisk::look`].
    held: Vec<(&'static str, OwnedFd)>,
    /// The open lock file. `None` after [`RealDisk::look`], which takes no lock.
    lock: Option<fs::File>,
    /// The open queue's directory, which is locked, too: somebody may delete the lock file. `None`
    /// after [`RealDisk::look`], and on a file system that can't lock a directory (some NFS).
    _locked: Option<fs::File>,
    /// `true` once the log has said that the file system can't reserve disk space.
    grows: AtomicBool,
}

impl RealDisk {
    /// Locks a queue's directory for this process, and makes the missing directories.
    ///
    /// # Errors
    ///
    /// Another process has the lock, the operating system refuses, or a directory in it is a
    /// symlink.
    pub fn own(root: &Path) -> Result<Self, OpenError> {
        let failed = |what: &'static str, path: &Path| {
            let path = path.to_owned();
            move |error: io::Error| OpenError::new(what, path, error)
        };
        make(root)?;
        // The directory comes first, so that a relay that is refused makes no lock file.
        let locked = match fs::File::open(root).map(|it| (it.try_lock(), it)) {
            Ok((Ok(()), directory)) => Some(directory),
            Ok((Err(fs::TryLockError::WouldBlock), _)) => {
                return Err(OpenError::Held(root.to_owned()));
            }
            Ok((Err(fs::TryLockError::Error(_)), _)) | Err(_) => None,
        };
        // A relay of an earlier version locks only this file.
        let lock = root.join(LOCK);
        let file = lock_file(root, true).map_err(failed("open", &lock))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(OpenError::Held(root.to_owned())),
            Err(fs::TryLockError::Error(error)) => return Err(failed("lock", &lock)(error)),
        }
        let grows = AtomicBool::new(false);
        let (root, held) = (root.to_owned(), Vec::new());
        let mut disk = Self { root, held, lock: Some(file), _locked: locked, grows };
        for name in [SEGMENTS, SPARES, QUARANTINE, ASIDE] {
            disk.make_directory(name).map_err(failed("make", &disk.root.join(name)))?;
        }
        for name in ["", SEGMENTS, ASIDE] {
            let opened = disk.directory(name).map_err(failed("open", &disk.root.join(name)))?;
            disk.held.push((name, opened));
        }
        Ok(disk)
    }

    /// Opens a queue's directory without its lock. The caller must call only operations that read.
    pub fn look(root: &Path) -> Self {
        let (root, grows) = (root.to_owned(), AtomicBool::new(false));
        Self { root, held: Vec::new(), lock: None, _locked: None, grows }
    }

    /// Returns `true` if another process holds the lock of the directory or of the lock file. Takes
    /// a shared lock for a moment.
    ///
    /// # Errors
    ///
    /// The lock file exists and can't be opened, or its file system has no locks.
    pub fn is_locked(root: &Path) -> io::Result<bool> {
        let locked = fs::File::open(root).map(|directory| directory.try_lock_shared());
        if let Ok(Err(fs::TryLockError::WouldBlock)) = locked {
            return Ok(true);
        }
        let file = match lock_file(root, false) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        match file.try_lock_shared() {
            Ok(()) => Ok(false),
            Err(fs::TryLockError::WouldBlock) => Ok(true),
            Err(fs::TryLockError::Error(error)) => Err(error),
        }
    }

    fn directory(&self, name: &str) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let held = |name: &str| self.held.iter().find(|(held, _)| *held == name).map(|it| &it.1);
        let (first, below) = name.split_once('/').unwrap_or((name, ""));
        let (mut directory, mut path, rest) = match (held(first), held("")) {
            (Some(first_fd), _) => {
                (open_at(first_fd, ".", flags, first)?, format!("{first}/"), below)
            }
            (None, Some(root)) => (open_at(root, ".", flags, "")?, String::new(), name),
            (None, None) => {
                let open = || rustix::fs::open(&self.root, flags, Mode::empty());
                (retry_on_intr(open)?, String::new(), name)
            }
        };
        for part in rest.split('/').filter(|part| !part.is_empty()) {
            path.push_str(part);
            directory = open_at(&directory, part, flags, &path)?;
            path.push('/');
        }
        Ok(directory)
    }

    fn around<'a>(&self, path: &'a str) -> io::Result<(OwnedFd, &'a str)> {
        let (around, name) = path.rsplit_once('/').unwrap_or(("", path));
        Ok((self.directory(around)?, name))
    }

    fn make_one(&self, path: &str) -> io::Result<()> {
        let (around, name) = self.around(path)?;
        let made = rustix::fs::mkdirat(&around, name, Mode::RWXU);
        if made != Err(Errno::EXIST) {
            made?;
        }
        self.directory(path)?;
        let synced = self.sync_directory(path.rsplit_once('/').map_or("", |(around, _)| around));
        match synced {
            Err(error) if made.is_ok() && error.kind() != io::ErrorKind::InvalidInput => Err(error),
            _ => Ok(()),
        }
    }

    fn readable(&self, name: &str) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        open_at(&self.directory(name)?, ".", flags, name)
    }

    fn reserve(&self, file: &fs::File, bytes: u64) -> io::Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, bytes) {
            Err(Errno::OPNOTSUPP) => {
                if !self.grows.swap(true, Ordering::Relaxed) {
                    let directory = self.root.display();
                    tracing::info!(
                        %directory,
                        "cannot reserve disk space for the queue on this file system: a full disk \
                         is noticed only when a write fails"
                    );
                }
                file.set_len(bytes)
            }
            reserved => Ok(reserved?),
        }
    }
}

/// Makes a directory and its missing parents, so that they survive a power loss. Blocks.
///
/// # Errors
///
/// The directory can't be made. The error has advice for the operator.
pub fn make(path: &Path) -> Result<(), OpenError> {
    make_directory(path).map_err(|error| OpenError::new("make", path.to_owned(), error))
}

fn make_directory(path: &Path) -> io::Result<()> {
    make_with(path, &|around| match fs::File::open(around)?.sync_all() {
        // Some file systems can't sync a directory.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        synced => synced,
    })
}

/// Makes a directory and its missing parents. Calls `sync` for the parent of each: otherwise, a
/// power loss could remove a new directory with all acknowledged events. If `path` exists already,
/// its parent is synced too: an earlier process may have been killed before that. Then an error is
/// ignored, because this process may have no permission to read the parent.
fn make_with(path: &Path, sync: &dyn Fn(&Path) -> io::Result<()>) -> io::Result<()> {
    let around = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let around = around.unwrap_or(Path::new("."));
    let create = || fs::DirBuilder::new().mode(0o700).create(path);
    let created = match create() {
        Err(error) if error.kind() == io::ErrorKind::NotFound && around != path => {
            make_with(around, sync)?;
            create()
        }
        created => created,
    };
    match created {
        Ok(()) => sync(around),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {
            sync(around).ok();
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// Opens a file or directory without following a symlink. `path` is only for the error.
fn open_at(around: &OwnedFd, name: &str, flags: OFlags, path: &str) -> io::Result<OwnedFd> {
    let flags = flags | OFlags::NOFOLLOW;
    let opened = retry_on_intr(|| rustix::fs::openat(around, name, flags, Mode::RUSR | Mode::WUSR));
    opened.map_err(|error| {
        let is_link = |found: Stat| FileType::from_raw_mode(found.st_mode) == FileType::Symlink;
        match rustix::fs::statat(around, name, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(is_link) {
            true => io::Error::new(io::ErrorKind::NotADirectory, Link(path.to_owned())),
            false => error.into(),
        }
    })
}

/// O_NONBLOCK: if a FIFO lies in the directory, an open for reading must not wait for its writer.
fn flags(access: Access) -> OFlags {
    OFlags::CLOEXEC
        | match access {
            Access::Read => OFlags::RDONLY | OFlags::NONBLOCK,
            Access::Write | Access::Append => OFlags::RDWR,
        }
}

fn lock_file(root: &Path, is_made: bool) -> io::Result<fs::File> {
    let mut options = fs::OpenOptions::new();
    options.read(true).write(is_made).create(is_made).mode(0o600);
    options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(root.join(LOCK))
}

impl Disk for RealDisk {
    fn identity(&self, directory: &str) -> Option<String> {
        identity(&self.root.join(directory))
    }

    fn place(&self) -> Place {
        let Some(((_, root), below)) = self.held.split_first() else { return Place::Here };
        let inode = |found: Stat| (found.st_dev, found.st_ino);
        let named = |name| rustix::fs::statat(root, name, AtFlags::SYMLINK_NOFOLLOW).map(inode);
        let compare = |name, fd: BorrowedFd<'_>, there: Result<_, Errno>| {
            let held = rustix::fs::fstat(fd).ok()?;
            let is_same = there.is_ok_and(|there| there == inode(held));
            let is_deleted = held.st_nlink == 0 && name != LOCK;
            let place = if is_deleted { Place::Deleted(name) } else { Place::Away(name) };
            (!is_same).then_some(place)
        };
        let mut places = below.iter().map(|(name, fd)| compare(name, fd.as_fd(), named(*name)));
        compare("", root.as_fd(), rustix::fs::stat(&self.root).map(inode))
            .or_else(|| places.find_map(|place| place))
            .or_else(|| compare(LOCK, self.lock.as_ref()?.as_fd(), named(LOCK)))
            .unwrap_or(Place::Here)
    }

    fn list(&self, directory: &str) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in Dir::new(self.readable(directory)?)? {
            names.extend(entry?.file_name().to_str().ok().map(str::to_owned));
        }
        names.retain(|name| name != "." && name != "..");
        Ok(names)
    }

    fn open(&self, path: &str, access: Access) -> io::Result<Arc<dyn File>> {
        let (around, name) = self.around(path)?;
        let file = fs::File::from(open_at(&around, name, flags(access), path)?);
        let kind = file.metadata()?.file_type();
        if !kind.is_file() {
            return Err(named_file::refused(kind));
        }
        if access == Access::Read && path.ends_with(".seg") {
            // The shared lock keeps the file from being reused for another segment. If `recycle`
            // has locked or renamed the file already, this segment no longer exists.
            let is_taken = matches!(file.try_lock_shared(), Err(fs::TryLockError::WouldBlock));
            if is_taken || !is_named(&file, &around, name) {
                return Err(io::ErrorKind::NotFound.into());
            }
        }
        let direct = if access == Access::Append { Direct::new(&file) } else { None };
        Ok(Arc::new(RealFile { file, direct }))
    }

    fn create(&self, path: &str, bytes: u64) -> io::Result<Arc<dyn File>> {
        let (around, name) = self.around(path)?;
        let flags = flags(Access::Write) | OFlags::CREATE | OFlags::EXCL;
        let file = fs::File::from(open_at(&around, name, flags, path)?);
        if let Err(error) = self.reserve(&file, bytes) {
            drop(file);
            // If the removal fails, a file without events remains. It does not count as a segment.
            self.remove(path).ok();
            return Err(error);
        }
        Ok(Arc::new(RealFile { file, direct: None }))
    }

    fn make_directory(&self, path: &str) -> io::Result<()> {
        for end in path.match_indices('/').map(|(at, _)| at).chain([path.len()]) {
            self.make_one(path.get(..end).unwrap_or_default())?;
        }
        Ok(())
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        let (around, name) = self.around(path)?;
        Ok(rustix::fs::unlinkat(around, name, AtFlags::empty())?)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let ((around, name), (to_around, to)) = (self.around(from)?, self.around(to)?);
        Ok(rustix::fs::renameat(around, name, to_around, to)?)
    }

    fn recycle(&self, from: &str, to: &str) -> io::Result<bool> {
        let (around, name) = self.around(from)?;
        let file = fs::File::from(open_at(&around, name, flags(Access::Write), from)?);
        // A reader gets its lock only after the rename, and then finds that the name has changed.
        if file.metadata()?.nlink() != 1 || file.try_lock().is_err() {
            return Ok(false);
        }
        self.rename(from, to)?;
        Ok(true)
    }

    fn sync_directory(&self, directory: &str) -> io::Result<()> {
        fs::File::from(self.readable(directory)?).sync_all()
    }
}

fn is_named(file: &fs::File, around: &OwnedFd, name: &str) -> bool {
    let identity = |found: Stat| (found.st_dev, found.st_ino);
    let named = rustix::fs::statat(around, name, AtFlags::SYMLINK_NOFOLLOW).map(identity).ok();
    named.is_some() && named == rustix::fs::fstat(file).map(identity).ok()
}

#[derive(Debug)]
struct RealFile {
    file: fs::File,
    direct: Option<Direct>,
}

impl File for RealFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.file.read_at(&mut buffer[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(size) => filled += size,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    fn write_at(&self, pieces: &[&[u8]], offset: u64) -> io::Result<()> {
        if let Some(direct) = &self.direct
            && direct.write(&self.file, pieces, offset)?
        {
            return Ok(());
        }
        write_pieces(&self.file, pieces, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn truncate(&self, bytes: u64) -> io::Result<()> {
        self.file.set_len(bytes)
    }

    fn bytes(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn is_linked(&self) -> io::Result<bool> {
        Ok(self.file.metadata()?.nlink() > 0)
    }
}

fn write_pieces(file: &fs::File, pieces: &[&[u8]], mut offset: u64) -> io::Result<()> {
    for some in pieces.chunks(PIECES_MAX) {
        let mut slices: Vec<IoSlice<'_>> = some.iter().map(|piece| IoSlice::new(piece)).collect();
        let mut left = slices.as_mut_slice();
        IoSlice::advance_slices(&mut left, 0);
        while !left.is_empty() {
            match rustix::io::pwritev(file, left, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    offset += written as u64;
                    IoSlice::advance_slices(&mut left, written);
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

/// The reason why a directory can't be used for the queue or for dead letters.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process holds the lock on this directory.
    #[error(
        "{} is in use by another process: stop that one, or give each relay a directory of its own",
        .0.display()
    )]
    Held(PathBuf),
    /// A newer version of the program has written this directory.
    #[error(
        "{} has format version {version}, which this program does not read: run the version that \
         wrote it until its backlog is delivered, or name another directory",
        .path.display()
    )]
    Newer {
        /// The file that has the newer format version.
        path: PathBuf,
        /// The format version of the file.
        version: u32,
    },
    /// The operating system refuses an operation on a file or directory.
    #[error("cannot {what} {}: {error}{remedy}", .path.display())]
    Io {
        /// The failed operation, as a verb: "make", "open", …
        what: &'static str,
        /// The file or directory of the operation.
        path: PathBuf,
        /// The error of the operating system.
        error: io::Error,
        /// Advice for the operator, printed after the error. It may be empty.
        remedy: &'static str,
    },
}

impl OpenError {
    /// Makes an [`OpenError::Io`] with the advice that fits the error.
    pub fn new(what: &'static str, path: PathBuf, error: io::Error) -> Self {
        let remedies = [
            (
                io::ErrorKind::PermissionDenied,
                "; it must be writable by the user that runs the relay (in Kubernetes: securityContext.fsGroup)",
            ),
            (
                io::ErrorKind::ReadOnlyFilesystem,
                "; mount a volume there that can be written, or name another directory",
            ),
            (io::ErrorKind::NotADirectory, "; name a directory, not a file or a link"),
            (io::ErrorKind::AlreadyExists, "; name a directory, not a file or a link"),
        ];
        let remedy = remedies.iter().find(|(kind, _)| *kind == error.kind());
        let remedy = match remedy {
            Some((_, remedy)) => remedy,
            None if may_pass(&error) => {
                "; see what the kernel's log says about the volume, and start again when it works"
            }
            None => "",
        };
        Self::Io { what, path, error, remedy }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn every_directory_that_is_made_is_synced_into_the_one_around_it() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let root = root.path();
        let synced = RefCell::new(Vec::new());
        let make = |path: &str| {
            let sync = |around: &Path| {
                let around = around.strip_prefix(root).expect("below it").to_owned();
                synced.borrow_mut().push(around.to_str().expect("its name").to_owned());
                Ok(())
            };
            let made = make_with(&root.join(path), &sync);
            (made, synced.take())
        };
        let (made, synced) = make("a/b/c");
        made.expect("it can be made");
        assert_eq!(synced, ["", "a", "a/b"], "from the outside in");
        assert!(root.join("a/b/c").is_dir());
        let (made, synced) = make("a/b/c");
        made.expect("it is there");
        assert_eq!(synced, ["a/b"], "whoever made it may have died before");
        fs::write(root.join("file"), "").expect("it can be written");
        assert!(make("file").0.is_err() && make("file/d").0.is_err());
    }

    /// Method: somebody deletes the lock file, puts another one in its place, or moves it away. A
    /// process that another test starts holds each lock for a moment, so this test runs alone.
    #[test]
    fn a_second_process_gets_no_directory_whose_lock_file_is_deleted_or_replaced() {
        if !testing::runs_alone() {
            return;
        }
        let root = tempfile::tempdir().expect("a temporary directory");
        let (root, lock) = (root.path(), root.path().join(LOCK));
        let held = || matches!(RealDisk::own(root), Err(OpenError::Held(path)) if path == root);
        let disk = RealDisk::own(root).expect("it is free");
        assert!(held() && RealDisk::is_locked(root).expect("it has locks"));
        fs::remove_file(&lock).expect("it is there");
        assert!(held() && RealDisk::is_locked(root).expect("it has locks"));
        assert!(!lock.exists(), "the second process has made a lock file");
        fs::write(&lock, "").expect("it can be made");
        assert!(held() && RealDisk::is_locked(root).expect("it has locks"));
        drop(disk);
        assert!(!RealDisk::is_locked(root).expect("it has locks"));
        let disk = RealDisk::own(root).expect("it is free again");
        drop(disk);
    }

    /// Method: a process holds only the lock file, as those of earlier versions do.
    #[test]
    fn a_process_of_an_earlier_version_still_holds_the_directory() {
        if !testing::runs_alone() {
            return;
        }
        let root = tempfile::tempdir().expect("a temporary directory");
        let earlier = lock_file(root.path(), true).expect("it can be made");
        earlier.try_lock().expect("nobody has it");
        assert!(matches!(RealDisk::own(root.path()), Err(OpenError::Held(_))));
        assert!(RealDisk::is_locked(root.path()).expect("it has locks"));
        drop(earlier);
        let disk = RealDisk::own(root.path()).expect("it is free");
        let earlier = lock_file(root.path(), true).expect("it is there");
        assert!(matches!(earlier.try_lock(), Err(fs::TryLockError::WouldBlock)));
        drop(disk);
    }

    /// Method: `recycle` is called for a segment while a reader has it open, while it has a second
    /// name, and while neither is true. The content that a reader has opened must never change, and
    /// a later open of the old name must fail.
    #[test]
    fn a_file_that_somebody_reads_or_keeps_is_not_used_again() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let disk = RealDisk::own(root.path()).expect("it can be used");
        let (old, new) = ("segments/00000000000000000000.seg", "spare/1.spare");
        drop(disk.create(old, 4096).expect("it is new"));

        let reader = disk.open(old, Access::Read).expect("it is there");
        assert!(!disk.recycle(old, new).expect("no error"), "somebody reads it");
        drop(reader);
        let link = root.path().join("backup");
        fs::hard_link(root.path().join(old), &link).expect("it can be linked");
        assert!(!disk.recycle(old, new).expect("no error"), "it has another name");
        fs::remove_file(link).expect("it is there");
        assert!(disk.open(old, Access::Read).is_ok(), "it is as it was");

        assert!(disk.recycle(old, new).expect("no error"));
        let gone = disk.open(old, Access::Read).expect_err("it has another name");
        assert_eq!(gone.kind(), io::ErrorKind::NotFound);
        assert_eq!(disk.list(SPARES).expect("it can be read"), ["1.spare"]);
    }

    #[test]
    fn a_directory_that_cannot_be_synced_into_its_parent_is_not_used() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let path = root.path().join("made");
        let refuses = |_: &Path| Err(io::Error::from(io::ErrorKind::Other));
        assert!(make_with(&path, &refuses).is_err());
        assert!(make_with(&path, &refuses).is_ok(), "it was there");
    }
}
