//! The names of the files of the evidence.

use std::fmt;

/// The name of the directory of the log, below that of the queue.
pub const DIRECTORY: &str = "evidence";

/// The name of the journal, below the directory of the log.
pub(super) const JOURNAL: &str = "journal";

/// The file beside the log, below the queue's directory, that says that a witness has contradicted
/// the log: the origin, and the reason, a line each.
pub(super) const ROLLED_BACK: &str = "evidence-rolled-back";

/// The file beside the log, below the queue's directory, with a copy of the newest checkpoint. A
/// log that is shorter was cut or removed.
pub(super) const KNOWN: &str = "evidence-checkpoint";

/// The file beside the log, below the queue's directory, with the positions that came in while
/// evidence was off.
pub(super) const OFF: &str = "evidence-off";

/// The directory of the files of line hashes, below that of the log.
pub(super) const LINES: &str = "lines";

/// Reads the file [`ROLLED_BACK`]. Returns the reason; `None` if it is about another origin.
pub(super) fn rolled_back(text: &[u8], origin: &str) -> Option<String> {
    let text = String::from_utf8_lossy(text);
    let (of, why) = text.split_once('\n').unwrap_or((&text, ""));
    (of == origin).then(|| why.trim_end().to_owned())
}

/// Returns the path of a file of the log below the queue's directory.
pub(super) fn path(name: &str) -> String {
    format!("{DIRECTORY}/{name}")
}

/// The name of a file of line hashes. It is shown as the first position in it, with 20 digits. If a
/// file is full and no more events come in, the next one has the same position and a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LineFile {
    /// The first position in it. It may also have hashes of lines that came in earlier and were
    /// sent later.
    pub(super) first: u64,
    pub(super) number: u32,
}

impl LineFile {
    /// Reads the name of a file; `None` if it is another one.
    pub(super) fn parse(name: &str) -> Option<Self> {
        let (first, number) = name.split_once('-').unwrap_or((name, "0"));
        let file = Self { first: first.parse().ok()?, number: number.parse().ok()? };
        (file.to_string() == name).then_some(file)
    }

    /// Returns the path of the file below the directory of the log.
    pub(super) fn path(self) -> String {
        format!("{LINES}/{self}")
    }
}

impl fmt::Display for LineFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:020}", self.first)?;
        if self.number > 0 { write!(f, "-{}", self.number) } else { Ok(()) }
    }
}
