//! The events that an output has set aside: one file for each event, in the queue's directory. A
//! queue in memory has no files, and keeps the lines itself.
//!
//! The queue does not interpret the files. A file is synced before the claim of its event is final,
//! and deleted when the event is decided (delivered or given up) and, if evidence is recorded, the
//! evidence of the decision is durable. At startup, a file whose event is not before the output's
//! place is deleted: the output gets this event from the log again.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use base::disk;
use base::disk::{ASIDE, Access, Disk, named};
use base::position::Position;

/// The end of a file name, after the output's name, a hyphen, and the position with 20 digits.
const SUFFIX: &str = ".json";

/// The end of the name of a file that [`disk::replace`] has not finished.
const UNFINISHED: &str = ".json.new";

const DIGITS: usize = 20;

/// The largest number of bytes that are read from a file. No event is larger.
const BYTES_MAX: u64 = 1 << 30;

/// What the evidence says about events that were set aside. Without evidence, both answers are
/// `false`.
pub(super) trait Evidence: Send + Sync {
    /// Returns `true` if the line differs from the received one. Blocks.
    fn is_changed(&self, position: Position, line: &[u8]) -> bool;

    /// Returns `true` if the event is decided and the evidence of the decision is not durable. The
    /// queue then deletes the file of the event when it is.
    fn keeps_file(&self, output: &str, position: Position) -> bool;
}

/// The events that one output has set aside. Clones are cheap, and refer to the same events.
#[derive(Clone)]
pub struct Shelf(Option<Files>);

#[derive(Clone)]
struct Files {
    disk: Arc<dyn Disk>,
    output: String,
    evidence: Arc<dyn Evidence>,
}

impl Shelf {
    /// Makes the shelf of a queue in memory, which has no files.
    pub fn in_memory() -> Self {
        Self(None)
    }

    pub(super) fn in_files(disk: Arc<dyn Disk>, output: &str, evidence: Arc<dyn Evidence>) -> Self {
        Self(Some(Files { disk, output: output.to_owned(), evidence }))
    }

    /// Returns `true` if events are in files, which survive the end of the process.
    pub fn is_durable(&self) -> bool {
        self.0.is_some()
    }

    /// Writes and syncs the file of an event. Does nothing for a queue in memory. Blocks.
    ///
    /// # Errors
    ///
    /// The disk refuses.
    pub fn store(&self, position: Position, content: &[u8]) -> io::Result<()> {
        let Some(Files { disk, output, .. }) = &self.0 else { return Ok(()) };
        disk.make_directory(ASIDE)?;
        let name = name(output, position);
        disk::replace(&**disk, &name, content).map_err(named(&name))
    }

    /// Reads the first `bytes_max` bytes of an event's file. Blocks.
    ///
    /// # Errors
    ///
    /// The disk refuses, or the file does not exist.
    pub fn load(&self, position: Position, bytes_max: u64) -> io::Result<Vec<u8>> {
        let Some(Files { disk, output, .. }) = &self.0 else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let name = name(output, position);
        let file = disk.open(&name, Access::Read).map_err(named(&name))?;
        let bytes = file.bytes().map_err(named(&name))?.min(bytes_max).min(BYTES_MAX);
        let mut content = vec![0; usize::try_from(bytes).unwrap_or_default()];
        let read = file.read_at(&mut content, 0).map_err(named(&name))?;
        content.truncate(read);
        Ok(content)
    }

    /// Deletes the file of a decided event, now or when the evidence of the decision is durable.
    /// Blocks.
    pub fn remove(&self, position: Position) {
        let Some(Files { disk, output, evidence }) = &self.0 else { return };
        if !evidence.keeps_file(output, position) {
            delete(&**disk, output, position);
        }
    }

    /// Returns `true` if the line differs from the received one that the evidence knows. Blocks.
    pub fn is_changed(&self, position: Position, line: &[u8]) -> bool {
        self.0.as_ref().is_some_and(|files| files.evidence.is_changed(position, line))
    }
}

/// Deletes an event's file. A failure is logged: the event is then sent again after a restart.
pub(super) fn delete(disk: &dyn Disk, output: &str, position: Position) {
    let file = name(output, position);
    match disk.remove(&file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => tracing::warn!(
            file,
            %error,
            "cannot delete the file of an event that is no longer set aside: the event is sent \
             again after the next start"
        ),
        _ => {}
    }
}

fn name(output: &str, position: Position) -> String {
    format!("{ASIDE}/{output}-{:020}{SUFFIX}", position.get())
}

/// The positions and file sizes of the events that were set aside, by the output's name.
pub(crate) type Found = BTreeMap<String, Vec<(Position, u64)>>;

/// Deletes the files that an earlier process has not finished. Failures to delete are only logged.
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
    Ok(())
}

pub(crate) fn find(disk: &dyn Disk) -> io::Result<Found> {
    let mut found = Found::new();
    let names = match disk.list(ASIDE) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        names => names.map_err(named(ASIDE))?,
    };
    for file in names {
        let Some((output, position)) = parts(&file) else { continue };
        let path = format!("{ASIDE}/{file}");
        let bytes = disk.open(&path, Access::Read).and_then(|file| file.bytes());
        let event = (position, bytes.map_err(named(&path))?);
        found.entry(output.to_owned()).or_default().push(event);
    }
    found.values_mut().for_each(|events| events.sort_unstable());
    Ok(found)
}

pub(super) fn remove_all(disk: &dyn Disk, output: &str, events: &[(Position, u64)]) {
    for (position, _) in events {
        let file = name(output, *position);
        if let Err(error) = disk.remove(&file) {
            tracing::warn!(
                file,
                %error,
                "cannot delete a file in set-aside/ that no output needs: nothing is lost, but it \
                 takes up disk space"
            );
        }
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
    use testing::simulated_disk::SimulatedDisk;

    use super::*;

    struct Known;

    impl Evidence for Known {
        fn is_changed(&self, _: Position, line: &[u8]) -> bool {
            line == b"other"
        }

        fn keeps_file(&self, _: &str, position: Position) -> bool {
            position == Position::new(4)
        }
    }

    #[test]
    fn the_files_of_each_output_are_found_by_their_names() {
        let disk = Arc::new(SimulatedDisk::new(1));
        let of = |output: &str| {
            let disk = Arc::clone(&disk) as Arc<dyn Disk>;
            Shelf::in_files(disk, output, Arc::new(Known))
        };
        let (plain, numbered) = (of("archive"), of("archive-7"));
        for (shelf, position) in [(&plain, 12), (&numbered, 3), (&plain, 4)] {
            let content = format!("event {position}");
            shelf.store(Position::new(position), content.as_bytes()).expect("no fault is set");
        }
        let at = |position, bytes| (Position::new(position), bytes);
        let unfinished = format!("{}.new", name("archive", Position::new(20)));
        disk.create(&unfinished, 10).expect("no fault is set");
        tidy(&*disk).expect("no fault is set");
        assert!(disk.open(&unfinished, Access::Read).is_err());
        let found = find(&*disk).expect("no fault is set");
        assert_eq!(found["archive"], [at(4, 7), at(12, 8)]);
        assert_eq!(found["archive-7"], [at(3, 7)]);
        assert_eq!(plain.load(Position::new(12), 5).expect("it is there"), b"event");
        assert!(plain.is_changed(Position::new(12), b"other"));
        plain.remove(Position::new(12));
        plain.remove(Position::new(12));
        plain.remove(Position::new(4));
        remove_all(&*disk, "archive-7", &found["archive-7"]);
        let left = find(&*disk).expect("no fault is set");
        assert_eq!(left.into_values().collect::<Vec<_>>(), [[at(4, 7)]]);
    }

    #[test]
    fn a_foreign_name_is_no_event() {
        for name in ["archive.json", "a-1.json", "archive-0000000000000000001.json", "x", ".json"] {
            assert_eq!(parts(name), None, "{name}");
        }
    }
}
