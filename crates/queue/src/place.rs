//! Finds out whether a directory could be used, without a change to the disk.
//!
//! The command `check` uses this while a relay may be running, as another user than the relay's, or
//! before the volume is mounted. This module asks the kernel what the process may do (access(2)).
//! It makes nothing, opens nothing for writing, and does not take the directory's lock, so it does
//! not know whether another relay holds the directory.

use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};

use super::cursors::{CursorsFile, Found};
use super::segment::{BadHeader, SegmentHeader};
use super::{cursors, identity, segment};
use base::disk;
use base::disk::{ASIDE, Disk, LOCK, OpenError, QUARANTINE, RealDisk, SEGMENTS, SPARES};

/// The magic numbers (`linux/magic.h`) of proc, sysfs, cgroup and cgroup2. No file can be made in
/// them, although their permissions look as if root could.
const VIRTUAL: [i64; 4] = [0x9fa0, 0x6265_6572, 0x0027_e0eb, 0x6367_7270];

/// Checks that this directory can be written, or could be made.
///
/// # Errors
///
/// The reason why the directory can't be written or made.
pub fn directory(path: &Path) -> Result<(), OpenError> {
    let mut missing: Option<PathBuf> = None;
    for part in path.ancestors() {
        // The last ancestor of a relative path is empty, and means the working directory.
        let part = if part.as_os_str().is_empty() { Path::new(".") } else { part };
        let failed = |what: &'static str, error: io::Error| {
            Err(OpenError::new(what, missing.clone().unwrap_or_else(|| part.to_owned()), error))
        };
        match part.symlink_metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                missing = Some(part.to_owned());
                continue;
            }
            Err(error) => return failed("make", error),
            Ok(_) => {}
        }
        // A symlink that leads nowhere makes the directory unusable, as a file does.
        if !part.metadata().is_ok_and(|metadata| metadata.is_dir()) {
            return failed("make", io::ErrorKind::NotADirectory.into());
        }
        let what = if missing.is_some() { "make" } else { "write to" };
        if let Err(error) = access(part, Access::WRITE_OK | Access::EXEC_OK) {
            return failed(what, error.into());
        }
        if missing.is_some() && is_virtual(part) {
            return failed(what, io::ErrorKind::ReadOnlyFilesystem.into());
        }
        return Ok(());
    }
    Ok(())
}

/// Checks that this directory could be used for dead letters: it passes [`directory`], is not a
/// symlink, and is readable if it exists.
///
/// # Errors
///
/// The reason why the directory can't be used.
pub fn of_dead_letters(path: &Path) -> Result<(), OpenError> {
    // Without this, a slash at the end of the path would make the kernel follow a symlink.
    let path: PathBuf = path.components().collect();
    refuse_link(&path)?;
    directory(&path)?;
    read_too(&path)
}

/// Checks that this directory with its files could be used for a queue in files.
///
/// # Errors
///
/// The reason why [`super::Queue::open`] would fail, as far as it can be found without opening the
/// queue.
pub fn of_queue(root: &Path) -> Result<(), OpenError> {
    directory(root)?;
    if !root.exists() {
        return Ok(());
    }
    read_too(root)?;
    for name in [SEGMENTS, SPARES, QUARANTINE, ASIDE] {
        let path = root.join(name);
        refuse_link(&path)?;
        directory(&path)?;
        if path.exists() {
            read_too(&path)?;
        }
    }
    for name in [LOCK, cursors::FILE, identity::FILE] {
        let path = root.join(name);
        let Ok(metadata) = path.symlink_metadata() else { continue };
        if !metadata.is_file() {
            let error = io::Error::other("it is not a file");
            return Err(OpenError::new("open", path, error));
        }
        access(&path, Access::READ_OK | Access::WRITE_OK)
            .map_err(|error| OpenError::new("open", path.clone(), error.into()))?;
    }
    refuse_newer(root)
}

/// Fails if a newer version of the program has written the queue's files.
fn refuse_newer(root: &Path) -> Result<(), OpenError> {
    let disk = RealDisk::look(root);
    if let Ok(Found { state: CursorsFile::Newer(version), .. }) = cursors::read(&disk) {
        return Err(OpenError::Newer { path: root.join(cursors::FILE), version });
    }
    for position in segment::list(&disk).unwrap_or_default() {
        let name = segment::file_name(position);
        let Ok(file) = disk.open(&name, disk::Access::Read) else { continue };
        if let Err(BadHeader::Newer(version)) = SegmentHeader::read(&*file, position) {
            return Err(OpenError::Newer { path: root.join(name), version });
        }
    }
    Ok(())
}

/// Fails if the path is a symlink, or exists and is not a directory.
fn refuse_link(path: &Path) -> Result<(), OpenError> {
    if path.symlink_metadata().is_ok_and(|metadata| !metadata.is_dir()) {
        let error = io::Error::from(io::ErrorKind::NotADirectory);
        return Err(OpenError::new("use", path.to_owned(), error));
    }
    Ok(())
}

fn read_too(path: &Path) -> Result<(), OpenError> {
    if !path.exists() {
        return Ok(());
    }
    access(path, Access::READ_OK)
        .map_err(|error| OpenError::new("read", path.to_owned(), error.into()))
}

fn is_virtual(path: &Path) -> bool {
    #[allow(clippy::unnecessary_cast, reason = "the type differs from one architecture to another")]
    rustix::fs::statfs(path).is_ok_and(|it| VIRTUAL.contains(&(it.f_type as i64)))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn said(result: Result<(), OpenError>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn what_could_be_made_is_right_and_is_not_made() {
        let parent = tempfile::tempdir().unwrap();
        for path in [parent.path().to_owned(), parent.path().join("a"), parent.path().join("a/b/c")]
        {
            for of in [directory, of_queue, of_dead_letters] {
                assert!(of(&path).is_ok(), "{}", path.display());
            }
        }
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_or_a_link_in_the_way_is_named() {
        let parent = tempfile::tempdir().unwrap();
        let file = parent.path().join("file");
        fs::write(&file, "somebody's").unwrap();
        let nowhere = parent.path().join("nowhere");
        std::os::unix::fs::symlink("/no/such/place", &nowhere).unwrap();
        for path in [file.clone(), file.join("below"), nowhere.clone(), nowhere.join("below")] {
            for of in [directory, of_queue, of_dead_letters] {
                assert!(said(of(&path)).contains("directory"), "{}", path.display());
            }
        }
        // A link to a directory will do for the queue, and not for dead letters.
        let link = parent.path().join("link");
        std::os::unix::fs::symlink(parent.path(), &link).unwrap();
        assert!(of_queue(&link).is_ok());
        assert!(said(of_dead_letters(&link.join(""))).contains("not a file or a link"));
    }

    #[test]
    fn nothing_is_made_in_the_kernels_own_file_systems() {
        assert!(said(of_queue(Path::new("/proc/queue/below"))).contains("cannot make /proc/queue"));
        assert!(of_queue(Path::new("/sys/queue")).is_err());
    }
}
