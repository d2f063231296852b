//! The events that an output has set aside: one file for each event, in the queue's directory. A
//! queue in memory has no files, and keeps the lines itself.
//!
//! The queue does not interpret the content, a JSON object, but adds its checksum and length.
//!
//! The cursors file lists the events that are set aside ([`crate::cursors`]). A start believes the
//! list, and not the directory: an event is set aside if and only if the list has it. So a start
//! reads nothing of a file that is not in the list, and the file of a listed event that is damaged
//! or missing, or that is no regular file, is the loss of the event. The output counts the loss as
//! soon as it reads the file, after the start. The steps, and what a crash after each leaves:
//!
//! 1. The file is written and synced. The output's saved place is not behind the event: the output
//!    gets it from the log again, and the start deletes the file.
//! 2. The claim becomes final, and a save of the cursors file moves the place behind the event and
//!    lists it, in one new file. A crash before the end of the save is one before it.
//! 3. The event is decided (delivered or given up), and the evidence of this is durable, if any is
//!    recorded. After a crash, the event is decided again.
//! 4. A save of the cursors file takes the event off the list. After a crash, the start deletes the
//!    file.
//! 5. The file is deleted, without a sync.
//!
//! Without a whole cursors file with a list, the directory is believed: each file whose event is
//! before the output's place is an event that is set aside. Somebody who deletes such a file then
//! deletes the event without a trace.
//!
//! Earlier versions made a *note* for each file, an empty file of the same name in another
//! directory, because their list was not complete. A start that finds no list reads the notes, too.
//! The directory of the notes is renamed after the list is saved for the first time, or an earlier
//! version that runs again would count deleted files of decided events as lost.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use crate::contract::now;
use crate::cursors;
use crate::cursors::CursorsFile;
use base::disk;
use base::disk::{ASIDE, Access, Disk, named};
use base::position::Position;
use base::release::Format;

/// Version 1 has no checksum. A program from before it ignores the files.
pub(crate) const FORMAT: Format = Format { name: "events set aside", reads: &[1, 2], writes: 2 };

/// The end of a file name, after the output's name, a hyphen, and the position with 20 digits.
const SUFFIX: &str = ".json";

/// Follows the name of a file that [`disk::replace`] has not finished.
const UNFINISHED: &str = ".new";

/// The end of the new name of something that was in the place of an event's file.
const NO_EVENT: &str = ".no-event";

const DIGITS: usize = 20;

/// The directory of the notes of earlier versions.
const NOTES: &str = "set-aside-names";

/// A start deletes at most so many files that no output needs, because each may wait for the disk.
/// A kill leaves a few of them, and the next starts delete the rest.
const LEFTOVERS_MAX: usize = 1000;

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
        let name = name(output, position);
        disk::replace(&**disk, &name, &sealed(content)).map_err(named(&name))
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

/// Deletes files that no output needs. What is no file, such as a directory, gets another name.
/// Only the first failure is logged.
pub(super) fn delete(disk: &dyn Disk, files: impl IntoIterator<Item = String>) {
    let mut failed = None;
    for file in files {
        let removed = match disk.remove(&file) {
            Err(error) if error.kind() == io::ErrorKind::IsADirectory => {
                disk.rename(&file, &format!("{file}{NO_EVENT}"))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        };
        failed = failed.or(removed.map_err(named(&file)).err());
    }
    if let Some(error) = failed {
        tracing::warn!(
            %error,
            "cannot delete files in set-aside/ that no output needs: nothing is lost, but they \
             take up disk space"
        );
    }
}

/// Renames the directory with the notes of an earlier version, if there is one.
pub(super) fn retire_notes(disk: &dyn Disk) {
    let renamed = disk.rename(NOTES, &format!("{NOTES}.old-{}", now()));
    match renamed.and_then(|()| disk.sync_directory("")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => tracing::warn!(
            %error,
            "cannot rename set-aside-names/: delete it before you start an earlier version, which \
             may otherwise count delivered events as lost"
        ),
        _ => {}
    }
}

pub(crate) fn name(output: &str, position: Position) -> String {
    format!("{ASIDE}/{output}-{:020}{SUFFIX}", position.get())
}

/// The events that were set aside, and what else is in their directory.
#[derive(Default)]
pub(crate) struct Found {
    /// The positions of the events, by the output's name. A file may be missing. Without a list,
    /// events that are not before the output's place are here too, and are not set aside.
    pub(crate) events: BTreeMap<String, BTreeSet<Position>>,
    /// The paths of the files that no output needs.
    pub(crate) leftovers: Vec<String>,
    /// The first name that is not an event of an output, and the number of these names.
    pub(crate) foreign: (Option<String>, u64),
    /// The number of events without a file in a list that may be old.
    pub(crate) unknown: u64,
}

/// Finds the events that outputs have set aside, by their names alone.
pub(crate) fn find(
    disk: &dyn Disk,
    cursors: &cursors::Found,
    is_output: impl Fn(&str) -> bool,
) -> io::Result<Found> {
    let (lists_all, is_whole) = (cursors.lists_all(), cursors.state == CursorsFile::Whole);
    let listed = cursors.contents.as_ref().map(cursors::Contents::listed).unwrap_or_default();
    let mut found = Found::default();
    if is_whole {
        found.events.clone_from(&listed);
    }
    for file in list(disk, ASIDE)? {
        let finished = file.strip_suffix(UNFINISHED).unwrap_or(&file);
        match parts(finished).filter(|(output, _)| is_output(output)) {
            None => {
                found.foreign.1 += 1;
                found.foreign.0.get_or_insert(file);
            }
            Some((output, position)) if finished == file && !lists_all => {
                found.events.entry(output.to_owned()).or_default().insert(position);
            }
            Some((output, position)) => {
                let events = found.events.get(output);
                if finished != file || events.is_none_or(|events| !events.contains(&position)) {
                    found.leftovers.push(format!("{ASIDE}/{file}"));
                }
            }
        }
    }
    for note in if lists_all { Vec::new() } else { list(disk, NOTES)? } {
        if let Some((output, position)) = parts(&note).filter(|(output, _)| is_output(output)) {
            found.events.entry(output.to_owned()).or_default().insert(position);
        }
    }
    let missing = |(name, events): (&String, &BTreeSet<_>)| match found.events.get(name) {
        Some(found) => events.difference(found).count(),
        None => events.len(),
    };
    found.unknown = listed.iter().map(missing).sum::<usize>() as u64;
    Ok(found)
}

fn list(disk: &dyn Disk, directory: &str) -> io::Result<Vec<String>> {
    match disk.list(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        names => names.map_err(named(directory)),
    }
}

/// Returns the size of the file of each event. What is missing, or is no regular file, counts as an
/// event of 0 bytes, which can't be read.
pub(super) fn sizes(
    disk: &dyn Disk,
    output: &str,
    events: &BTreeSet<Position>,
) -> io::Result<Vec<(Position, u64)>> {
    let sized = events.iter().map(|position| {
        let path = name(output, *position);
        match disk.open(&path, Access::Read).and_then(|file| file.bytes()) {
            Err(error) if disk::may_pass(&error) => Err(named(&path)(error)),
            bytes => Ok((*position, bytes.unwrap_or_default())),
        }
    });
    sized.collect()
}

/// Deletes the files that no output needs, and logs which names in the directory are not the
/// relay's.
pub(super) fn tidy(disk: &dyn Disk, leftovers: Vec<String>, foreign: (Option<String>, u64)) {
    if let (Some(file), files) = foreign {
        tracing::warn!(
            file,
            files,
            "files in set-aside/ are not events of the relay: they are left alone; find out who \
             writes to queue.directory"
        );
    }
    if leftovers.len() > LEFTOVERS_MAX {
        tracing::warn!(
            files = leftovers.len(),
            deleted = LEFTOVERS_MAX,
            "set-aside/ has many files that no output needs: a part of them is deleted at each \
             start; find out who writes to queue.directory"
        );
    }
    delete(disk, leftovers.into_iter().take(LEFTOVERS_MAX));
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
    use testing::simulated_disk::SimulatedDisk;

    use super::*;

    struct Known(Arc<dyn Disk>);

    impl Owner for Known {
        fn is_changed(&self, _: Position, line: &[u8]) -> bool {
            line == b"other"
        }

        fn remove(&self, output: &str, position: Position) {
            if position != Position::new(4) {
                delete(&*self.0, [name(output, position)]);
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
        let unfinished = format!("{}.new", name("archive", Position::new(20)));
        disk.create(&unfinished, 10).expect("no fault is set");
        disk.create(&name("stranger", Position::new(1)), 10).expect("no fault is set");
        let cursors = cursors::read(&*disk).expect("no fault is set");
        let found = || find(&*disk, &cursors, |name| name != "stranger").expect("no fault is set");
        let at = |positions: &[u64]| positions.iter().copied().map(Position::new).collect();
        let Found { events, leftovers, foreign, unknown } = found();
        let archive: BTreeSet<_> = at(&[4, 12]);
        let all = [("archive".to_owned(), archive.clone()), ("archive-7".to_owned(), at(&[3]))];
        assert_eq!(events, all.into());
        assert_eq!((&leftovers[..], foreign.1, unknown), (&[unfinished][..], 1, 0));
        let seal = r#"{"crc32c":"01234567","bytes":10,"#.len() as u64;
        let sized = sizes(&*disk, "archive", &archive).expect("no fault is set");
        assert_eq!(
            sized.iter().map(|(_, bytes)| *bytes).collect::<Vec<_>>(),
            [seal + 10, seal + 11]
        );
        assert_eq!(plain.load(Position::new(12)).expect("it is there").content, br#"{"event":12}"#);
        assert!(plain.is_changed(Position::new(12), b"other"));
        plain.remove(Position::new(12));
        plain.remove(Position::new(12));
        plain.remove(Position::new(4));
        numbered.remove(Position::new(3));
        tidy(&*disk, leftovers, foreign);
        let left = found();
        assert_eq!(left.events, [("archive".to_owned(), at(&[4]))].into());
        assert_eq!(left.leftovers, Vec::<String>::new());
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
