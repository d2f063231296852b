//! The events that an output has set aside: one file for each event, in the queue's directory. A
//! queue in memory has no files, and keeps the lines itself.
//!
//! The queue does not interpret the content, a JSON object, but adds its checksum and length. A
//! file is synced before the claim of its event is final. It is deleted when three things are true:
//! the event is decided (delivered or given up), the evidence of the decision is durable (if
//! evidence is recorded), and a saved cursors file does not list the event any more. At startup, a
//! file whose event is not before the output's place is deleted: the output gets this event from
//! the log again.
//!
//! A file that is damaged or missing, or that is no regular file, is the loss of its event. The
//! output counts it as soon as it reads the file, after the start. That a file is missing is known
//! in two ways: by the cursors file, which lists as many of these events as it has room for, and by
//! the *note* of the file, an empty file of the same name in another directory. The note is made
//! before the file, and deleted before it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use base::disk;
use base::disk::{ASIDE, ASIDE_NAMES, Access, Disk, named};
use base::position::Position;
use base::release::Format;

/// Version 1 has no checksum. A program from before it ignores the files.
pub(crate) const FORMAT: Format = Format { name: "events set aside", reads: &[1, 2], writes: 2 };

/// The end of a file name, after the output's name, a hyphen, and the position with 20 digits.
const SUFFIX: &str = ".json";

/// The end of the name of a file that [`disk::replace`] has not finished.
const UNFINISHED: &str = ".json.new";

/// The end of the new name of something that was in the place of an event's file.
const NO_EVENT: &str = ".no-event";

const DIGITS: usize = 20;

/// The largest number of bytes that are read from a file. No event is larger.
const BYTES_MAX: u64 = 1 << 30;

/// The start of a file. The CRC-32C of all bytes after `"bytes":N,` follows, as 8 hexadecimal
/// digits, and then `","bytes":N,` with the number of these bytes.
const SEAL: &[u8] = br#"{"crc32c":""#;

/// The part of a seal between its two numbers.
const SEAL_BYTES: &[u8] = br#"","bytes":"#;

/// A seal is shorter than this.
const SEAL_MAX: usize = 64;

/// At most so many bytes of a file that has grown are read.
const GROWTH_MAX: u64 = 64 << 10;

/// The queue whose events are on the shelf.
pub(super) trait Owner: Send + Sync {
    /// Returns `true` if the line differs from the received one that the evidence knows. Blocks.
    fn is_changed(&self, position: Position, line: &[u8]) -> bool;

    /// Deletes the file of a decided event, as soon as the evidence of the decision is durable and
    /// the cursors file does not list the event any more.
    fn remove(&self, output: &str, position: Position);
}

/// The content of a file.
#[derive(Debug)]
pub struct Loaded {
    /// The JSON object that was stored, unless the file is damaged.
    pub content: Vec<u8>,
    /// The damage of the file, as words for a message; `None` if the file is whole.
    pub damage: Option<&'static str>,
}

/// The events that one output has set aside. Clones are cheap, and refer to the same events.
#[derive(Clone)]
pub struct Shelf(Option<Files>);

#[derive(Clone)]
struct Files {
    disk: Arc<dyn Disk>,
    output: String,
    owner: Arc<dyn Owner>,
}

impl Shelf {
    /// Makes the shelf of a queue in memory, which has no files.
    pub fn in_memory() -> Self {
        Self(None)
    }

    pub(super) fn in_files(disk: Arc<dyn Disk>, output: &str, owner: Arc<dyn Owner>) -> Self {
        Self(Some(Files { disk, output: output.to_owned(), owner }))
    }

    /// Returns `true` if events are in files, which survive the end of the process.
    pub fn is_durable(&self) -> bool {
        self.0.is_some()
    }

    /// Writes and syncs the file of an event. `content` is a JSON object. Does nothing for a queue
    /// in memory. Blocks.
    ///
    /// # Errors
    ///
    /// The disk refuses.
    pub fn store(&self, position: Position, content: &[u8]) -> io::Result<()> {
        let Some(Files { disk, output, .. }) = &self.0 else { return Ok(()) };
        disk.make_directory(ASIDE)?;
        disk.make_directory(ASIDE_NAMES)?;
        let (note, name) = (note(output, position), name(output, position));
        let noted = match disk.create(&note, 0) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            created => created.map(drop),
        };
        let synced = noted.and_then(|()| disk.sync_directory(ASIDE_NAMES));
        let stored = synced.and_then(|()| disk::replace(&**disk, &name, &sealed(content)));
        stored.map_err(|error| {
            // Otherwise the event, which is sent from the queue, would count as lost later. A file
            // without its note is only sent again.
            disk.remove(&note).ok();
            disk.remove(&name).ok();
            disk.sync_directory(ASIDE_NAMES).ok();
            named(&name)(error)
        })
    }

    /// Reads the file of an event. Blocks.
    ///
    /// # Errors
    ///
    /// The disk refuses, or the file does not exist or is too long.
    pub fn load(&self, position: Position) -> io::Result<Loaded> {
        let Some(Files { disk, output, .. }) = &self.0 else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let name = name(output, position);
        load(&**disk, &name).map_err(named(&name))
    }

    /// Deletes the file of a decided event: within a second, and not before the evidence of the
    /// decision is durable.
    pub fn remove(&self, position: Position) {
        if let Some(Files { output, owner, .. }) = &self.0 {
            owner.remove(output, position);
        }
    }

    /// Returns `true` if the line differs from the received one that the evidence knows. Blocks.
    pub fn is_changed(&self, position: Position, line: &[u8]) -> bool {
        self.0.as_ref().is_some_and(|files| files.owner.is_changed(position, line))
    }
}

/// Returns `content`, which is a JSON object, with its checksum and length as the first members.
fn sealed(content: &[u8]) -> Vec<u8> {
    let rest = content.strip_prefix(b"{").unwrap_or(content);
    let mut sealed = SEAL.to_vec();
    sealed.extend(format!("{:08x}", crc32c::crc32c(rest)).into_bytes());
    sealed.extend(SEAL_BYTES);
    sealed.extend(format!("{},", rest.len()).into_bytes());
    sealed.extend(rest);
    sealed
}

/// Returns the checksum and the length in a seal, and the length of the seal. `None` if the bytes
/// do not begin with a seal.
fn seal(bytes: &[u8]) -> Option<(u32, u64, usize)> {
    let (crc, rest) = bytes.strip_prefix(SEAL)?.split_at_checked(8)?;
    let rest = rest.strip_prefix(SEAL_BYTES)?;
    let digits = rest.iter().position(|byte| *byte == b',')?;
    let crc = u32::from_str_radix(std::str::from_utf8(crc).ok()?, 16).ok()?;
    let length = std::str::from_utf8(rest.get(..digits)?).ok()?.parse().ok()?;
    Some((crc, length, SEAL.len() + 8 + SEAL_BYTES.len() + digits + 1))
}

/// Returns the content of a file, as it was before [`sealed`], and what is damaged, if anything is.
/// A file of an older program has no checksum.
pub(crate) fn load(disk: &dyn Disk, name: &str) -> io::Result<Loaded> {
    let file = disk.open(name, Access::Read)?;
    let (mut head, bytes) = ([0; SEAL_MAX], file.bytes()?);
    let read = file.read_at(&mut head, 0)?;
    let (crc, length, at) = match head.get(..read).and_then(seal) {
        Some((crc, length, at)) => (Some(crc), length, at),
        None => (None, bytes, 0),
    };
    // The length may be damaged, too, or the file may have grown.
    let most = length.saturating_add(GROWTH_MAX).min(bytes.saturating_sub(at as u64));
    if most > BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the file is too long"));
    }
    let mut content = Vec::from(if crc.is_some() { "{" } else { "" });
    let begin = content.len();
    content.resize(begin + usize::try_from(most).unwrap_or_default(), 0);
    let read = file.read_at(&mut content[begin..], at as u64)?;
    content.truncate(begin + read);
    let damage = match crc {
        _ if bytes != length.saturating_add(at as u64) => Some("its length is wrong"),
        Some(crc) if crc != crc32c::crc32c(&content[begin..]) => Some("its checksum is wrong"),
        None if !(content.starts_with(b"{") && content.ends_with(b"}\n")) => {
            Some("it is not complete")
        }
        _ => None,
    };
    Ok(Loaded { content, damage })
}

/// Deletes the files of events that are no longer set aside. Only the first failure is logged.
pub(super) fn delete(disk: &dyn Disk, events: &[(String, Position)]) {
    if let Err(error) = remove(disk, events) {
        tracing::warn!(
            %error,
            "cannot delete the files of events that are no longer set aside: these events are sent \
             again after the next start"
        );
    }
}

/// Deletes the notes of events, and then their files. What is no file, such as a directory, gets
/// another name. An error does not stop the others, and the first one is returned.
fn remove(disk: &dyn Disk, events: &[(String, Position)]) -> io::Result<()> {
    let (mut result, mut was_noted, mut files) = (Ok(()), false, Vec::new());
    for (output, position) in events {
        let note = note(output, *position);
        match is_there(disk.remove(&note)) {
            Ok(is_noted) => {
                was_noted |= is_noted;
                files.push(name(output, *position));
            }
            Err(error) => result = result.and(Err(named(&note)(error))),
        }
    }
    if was_noted {
        // If only a file were gone after a power loss, its event would count as lost.
        disk.sync_directory(ASIDE_NAMES)?;
    }
    for file in files {
        let removed = match disk.remove(&file) {
            Err(error) if error.kind() == io::ErrorKind::IsADirectory => {
                disk.rename(&file, &format!("{file}{NO_EVENT}"))
            }
            removed => is_there(removed).map(drop),
        };
        result = result.and(removed.map_err(named(&file)));
    }
    result
}

/// Returns `false` if the file does not exist.
fn is_there<T>(done: io::Result<T>) -> io::Result<bool> {
    match done {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        done => done.map(|_| true),
    }
}

fn note(output: &str, position: Position) -> String {
    format!("{ASIDE_NAMES}/{output}-{:020}{SUFFIX}", position.get())
}

/// Returns `true` if the file of this event should exist.
pub(crate) fn is_noted(disk: &dyn Disk, output: &str, position: Position) -> io::Result<bool> {
    is_there(disk.open(&note(output, position), Access::Read))
}

pub(crate) fn name(output: &str, position: Position) -> String {
    format!("{ASIDE}/{output}-{:020}{SUFFIX}", position.get())
}

/// The positions and file sizes of the events that were set aside, by the output's name.
pub(crate) type Found = BTreeMap<String, Vec<(Position, u64)>>;

/// Deletes the files that an earlier process has not finished, and names the others that are no
/// events. Failures to delete are only logged.
pub(crate) fn tidy(disk: &dyn Disk) -> io::Result<()> {
    let names = match disk.list(ASIDE) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        names => names.map_err(named(ASIDE))?,
    };
    for file in names.iter().filter(|file| file.ends_with(UNFINISHED)) {
        if let Err(error) = disk.remove(&format!("{ASIDE}/{file}")) {
            tracing::warn!(
                file,
                %error,
                "cannot delete an unfinished file in set-aside/: nothing is lost, but it takes up \
                 disk space"
            );
        }
    }
    let is_foreign = |file: &&String| !file.ends_with(UNFINISHED) && parts(file).is_none();
    let foreign: Vec<_> = names.iter().filter(is_foreign).collect();
    if let Some(file) = foreign.first() {
        tracing::warn!(
            file,
            files = foreign.len(),
            "files in set-aside/ are not events of the relay: they are left alone; find out who \
             writes to queue.directory"
        );
    }
    Ok(())
}

/// Returns the events that outputs have set aside. What is missing, or is no regular file, counts
/// as an event of 0 bytes, which can't be read.
pub(crate) fn find(disk: &dyn Disk) -> io::Result<Found> {
    let mut found = Found::new();
    let names = |directory| match disk.list(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeSet::new()),
        names => names.map(BTreeSet::from_iter).map_err(named(directory)),
    };
    // A relay deletes a note before its file, and may run now.
    let (noted, there) = (names(ASIDE_NAMES)?, names(ASIDE)?);
    for file in noted.union(&there) {
        let Some((output, position)) = parts(file) else { continue };
        let path = format!("{ASIDE}/{file}");
        let bytes = match disk.open(&path, Access::Read).and_then(|file| file.bytes()) {
            Err(error) if disk::may_pass(&error) => return Err(named(&path)(error)),
            bytes => bytes.unwrap_or_default(),
        };
        found.entry(output.to_owned()).or_default().push((position, bytes));
    }
    found.values_mut().for_each(|events| events.sort_unstable());
    Ok(found)
}

pub(super) fn remove_all(disk: &dyn Disk, output: &str, events: &[(Position, u64)]) {
    let events: Vec<_> = events.iter().map(|(at, _)| (output.to_owned(), *at)).collect();
    if let Err(error) = remove(disk, &events) {
        tracing::warn!(
            %error,
            "cannot delete files in set-aside/ that no output needs: nothing is lost, but they \
             take up disk space"
        );
    }
}

/// Returns the output and the position in a file name; `None` for another name.
fn parts(file: &str) -> Option<(&str, Position)> {
    let stem = file.strip_suffix(SUFFIX)?;
    let (output, position) = stem.split_at_checked(stem.len().checked_sub(DIGITS)?)?;
    let is_number = position.bytes().all(|byte| byte.is_ascii_digit());
    let position = position.parse().ok().filter(|_| is_number)?;
    Some((output.strip_suffix('-')?, Position::new(position)))
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;
    use testing::simulated_disk::{Operation, SimulatedDisk};

    use super::*;

    struct Known(Arc<dyn Disk>);

    impl Owner for Known {
        fn is_changed(&self, _: Position, line: &[u8]) -> bool {
            line == b"other"
        }

        fn remove(&self, output: &str, position: Position) {
            if position != Position::new(4) {
                delete(&*self.0, &[(output.to_owned(), position)]);
            }
        }
    }

    #[test]
    fn the_files_of_each_output_are_found_by_their_names() {
        let disk = Arc::new(SimulatedDisk::new(1));
        let of = |output: &str| {
            let disk = Arc::clone(&disk) as Arc<dyn Disk>;
            Shelf::in_files(Arc::clone(&disk), output, Arc::new(Known(disk)))
        };
        let (plain, numbered) = (of("archive"), of("archive-7"));
        for (shelf, position) in [(&plain, 12), (&numbered, 3), (&plain, 4)] {
            let content = format!("{{\"event\":{position}}}");
            shelf.store(Position::new(position), content.as_bytes()).expect("no fault is set");
        }
        let at = |position, bytes| (Position::new(position), bytes);
        let unfinished = format!("{}.new", name("archive", Position::new(20)));
        disk.create(&unfinished, 10).expect("no fault is set");
        tidy(&*disk).expect("no fault is set");
        assert!(disk.open(&unfinished, Access::Read).is_err());
        let found = find(&*disk).expect("no fault is set");
        let seal = r#"{"crc32c":"01234567","bytes":10,"#.len() as u64;
        assert_eq!(found["archive"], [at(4, seal + 10), at(12, seal + 11)]);
        assert_eq!(found["archive-7"], [at(3, seal + 10)]);
        assert_eq!(plain.load(Position::new(12)).expect("it is there").content, br#"{"event":12}"#);
        assert!(plain.is_changed(Position::new(12), b"other"));
        plain.remove(Position::new(12));
        plain.remove(Position::new(12));
        plain.remove(Position::new(4));
        remove_all(&*disk, "archive-7", &found["archive-7"]);
        let left = find(&*disk).expect("no fault is set");
        assert_eq!(left.into_values().collect::<Vec<_>>(), [[at(4, seal + 10)]]);
    }

    /// The event stays in the queue and is sent from there. A note without a file would count it as
    /// lost after the next start.
    #[test]
    fn a_file_that_can_not_be_written_leaves_no_note() {
        use Operation::{Create, Rename, Sync, SyncDirectory, Write};
        for operation in [Create, SyncDirectory, Write, Sync, Rename] {
            for after in 0..2 {
                let disk = Arc::new(SimulatedDisk::new(1));
                let owner = Arc::new(Known(Arc::clone(&disk) as _));
                let shelf = Shelf::in_files(Arc::clone(&disk) as _, "archive", owner);
                disk.fail(operation, after, Errno::IO);
                if shelf.store(Position::new(7), b"{}").is_ok() {
                    continue;
                }
                disk.calm();
                let found = find(&*disk).expect("the disk is well again");
                let lost = |events: &[(Position, u64)]| events.iter().any(|(_, bytes)| *bytes == 0);
                assert!(!found.values().any(|it| lost(it)), "{operation:?} {after}: {found:?}");
            }
        }
    }

    #[test]
    fn each_wrong_bit_and_each_wrong_length_is_damage() {
        let content = b"{\"time\":\"now\",\"event\":{\"a\":1}}\n";
        let read = |bytes: &[u8]| {
            let disk = SimulatedDisk::new(1);
            let file = disk.create("file", bytes.len() as u64).expect("no fault is set");
            file.write_at(&[bytes], 0).expect("no fault is set");
            load(&disk, "file").expect("it is not too long")
        };
        let whole = sealed(content);
        // The second one is a file of an older program.
        for file in [&whole[..], content] {
            let Loaded { content: loaded, damage } = read(file);
            assert_eq!((loaded.as_slice(), damage), (&content[..], None));
        }
        assert!(read(&whole[..whole.len() - 1]).damage.is_some());
        assert!(read(&[&whole[..], b" "].concat()).damage.is_some());
        for bit in 8 * SEAL.len()..8 * whole.len() {
            let mut other = whole.clone();
            other[bit / 8] ^= 1 << (bit % 8);
            // If the seal is not a seal any more, the event in the file is as it was.
            let Loaded { content, damage } = read(&other);
            assert!(damage.is_some() || content.ends_with(b"\"event\":{\"a\":1}}\n"), "bit {bit}");
        }
    }

    #[test]
    fn a_foreign_name_is_no_event() {
        for name in ["archive.json", "a-1.json", "archive-0000000000000000001.json", "x", ".json"] {
            assert_eq!(parts(name), None, "{name}");
        }
    }
}
