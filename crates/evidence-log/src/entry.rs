//! The entries of an evidence log, and the JSON of each. Times (`at`) are milliseconds since 1970,
//! and positions are those of the queue.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::tlog::merkle::{Hash, Head};
use crate::tlog::tile::WIDTH;
pub use base::fate::Fate;

/// The maximum number of events in an [`Entry::Accepted`] or [`Entry::Delivered`].
pub const RANGE_MAX: u64 = 4096;

/// The value of `output` in an entry about the queue. No output has this name.
pub const QUEUE: &str = "queue";

/// Returns the time in milliseconds since 1970.
pub fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// The time of an entry by a clock that nobody can set. It never runs backwards within one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// A random number that identifies the relay's process.
    pub boot: u32,
    /// The milliseconds since the first stamp of the process.
    pub up: u64,
}

impl Stamp {
    fn now() -> Self {
        static PROCESS: LazyLock<(u32, Instant)> =
            LazyLock::new(|| (fastrand::u32(..), Instant::now()));
        let (boot, started) = *PROCESS;
        Self { boot, up: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX) }
    }

    /// Returns the stamp of an entry. `None` if the entry has no stamp, as in earlier versions.
    pub fn parse(entry: &[u8]) -> Option<Self> {
        serde_json::from_slice(entry).ok()
    }
}

/// An entry of the log. Its events have the `count` positions from `first` on. [`Entry::bytes`]
/// adds the members of [`Stamp`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Entry {
    /// Events that came in.
    Accepted {
        /// The first position.
        first: u64,
        /// The number of events.
        count: u64,
        /// The time at which the last of the events was received.
        at: u64,
        /// The Merkle root over the lines of the range.
        root: Hash,
    },
    /// The fates of events at an output.
    Delivered(Delivered),
    /// Events that are lost.
    Lost {
        /// The name of the output that lost the events, or [`QUEUE`].
        output: String,
        /// The first position. `None` for events that were never in the queue.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        first: Option<u64>,
        /// The number of events.
        count: u64,
        /// The time at which the events were counted as lost.
        at: u64,
        /// The reason, such as `when_full`.
        reason: String,
    },
    /// The relay has started, or has opened its log again.
    Start(Started),
    /// The relay has loaded a new config.
    Reload(Running),
    /// The relay has stopped in order.
    Stop(Running),
    /// A sign of life: for a while, no entry with the present time was written.
    Heartbeat {
        /// The time.
        at: u64,
    },
    /// Line hashes were deleted to free disk space.
    Pruned {
        /// The time.
        at: u64,
        /// The hashes of received lines at positions below this one count as deleted.
        below: u64,
    },
    /// A second key signs the log, too. Each start with two keys adds this entry.
    Key {
        /// The time.
        at: u64,
        /// The public key, as `evidence keygen` prints it.
        verifier_key: String,
    },
    /// A fact that an auditor must investigate.
    Alarm {
        /// The time at which the relay noticed the fact.
        at: u64,
        /// The fact.
        #[serde(flatten)]
        what: Alarm,
    },
}

/// The fates of events at an output.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivered {
    /// The name of the output.
    pub output: String,
    /// The first position.
    pub first: u64,
    /// The number of events.
    pub count: u64,
    /// The time at which the output finished the last of the events.
    pub at: u64,
    /// The root over the sent lines. `None` if no line was sent, or if the filter has neither
    /// changed nor dropped an event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<Hash>,
    /// The events that do not count as delivered, each with its fate. A later entry has the final
    /// fate of an event that was set aside.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub not_delivered: BTreeMap<Offset, Fate>,
    /// The offsets of the events that the filter changed before they were sent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changed: Vec<Offset>,
}

impl Delivered {
    /// Returns the positions of the events.
    pub fn range(&self) -> Range<u64> {
        self.first..self.first.saturating_add(self.count)
    }

    /// Returns a range of one position for each event with this fate.
    pub fn with(&self, fate: Fate) -> impl Iterator<Item = Range<u64>> {
        let with_fate = self.not_delivered.iter().filter(move |(_, own)| **own == fate);
        let positions = with_fate.map(|(offset, _)| self.first.saturating_add(offset.0));
        positions.map(|position| position..position.saturating_add(1))
    }
}

/// The fact that an alarm reports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum Alarm {
    /// Nothing is proven about some events, for example because evidence was off when they came in.
    Off {
        /// The first position.
        first: u64,
        /// The number of events.
        count: u64,
    },
    /// The journal of an earlier version was set aside. Nothing in the journal is proven.
    Journal,
    /// Files of the log were removed, cut or replaced.
    Removed,
}

/// The state of the running relay.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// The time.
    pub at: u64,
    /// The version of the program.
    pub version: String,
    /// The keyed digest of the current config, as 64 hexadecimal digits.
    pub config_sha256: String,
    /// The longer of `evidence.heartbeat_interval` and `evidence.checkpoint_interval`, in
    /// milliseconds.
    pub heartbeat_ms: u64,
    /// For each output, the lowest position without a final fate. Events that are set aside do not
    /// count.
    pub outputs: BTreeMap<String, u64>,
    /// For each output that was removed since the previous start, reload or stop, the first
    /// position that was not meant for this output. The output may have been added again.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub left: BTreeMap<String, u64>,
    /// The device and inode numbers of the log's directory, which no copy shares. Only a stop has
    /// them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<String>,
}

/// The state of the relay at startup, and the log that it found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// The state of the relay.
    #[serde(flatten)]
    pub running: Running,
    /// The size and the root of the log before this entry.
    pub previous: Head,
}

/// The index of an event in its range. The first index is 0. In JSON, an offset is a decimal
/// string.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Offset(pub u64);

impl From<Offset> for String {
    fn from(Offset(number): Offset) -> Self {
        number.to_string()
    }
}

impl TryFrom<String> for Offset {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let number = text.parse().ok().filter(|number: &u64| number.to_string() == text);
        number.map(Self).ok_or("an offset is a decimal number")
    }
}

impl Entry {
    /// Reads an entry.
    ///
    /// # Errors
    ///
    /// The bytes are not an entry.
    pub fn parse(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(bytes)
    }

    /// Returns the bytes of the entry for the log, with the stamp of this moment.
    pub fn bytes(&self) -> Vec<u8> {
        self.stamped(Stamp::now())
    }

    /// Returns the bytes of the entry with this stamp.
    pub fn stamped(&self, stamp: Stamp) -> Vec<u8> {
        #[derive(Serialize)]
        struct Stamped<'a> {
            #[serde(flatten)]
            entry: &'a Entry,
            #[serde(flatten)]
            stamp: Stamp,
        }
        serde_json::to_vec(&Stamped { entry: self, stamp })
            .expect("numbers and texts, and the keys of its maps are texts")
    }

    /// Returns the positions of the entry's events, if these came in or the queue lost them. `None`
    /// for an entry about an output, about no events, or about events without positions.
    pub fn in_queue(&self) -> Option<Range<u64>> {
        let is_of_output = if let Self::Lost { output, first, .. } = self {
            output != QUEUE || first.is_none()
        } else {
            matches!(self, Self::Delivered(_))
        };
        let (first, count) = self.events().filter(|_| !is_of_output)?;
        Some(first..first.checked_add(count)?)
    }

    /// Returns the first position and the number of the entry's events. `None` if the entry is not
    /// about events. Events that were never in the queue have the first position 0.
    pub fn events(&self) -> Option<(u64, u64)> {
        if let Self::Lost { first, count, .. } = self {
            return Some((first.unwrap_or_default(), *count));
        }
        if let Self::Accepted { first, count, .. }
        | Self::Delivered(Delivered { first, count, .. })
        | Self::Alarm { what: Alarm::Off { first, count }, .. } = self
        {
            return Some((*first, *count));
        }
        None
    }

    /// Returns the range that [`Entry::events`] describes. Empty if the entry is not about events.
    pub fn range(&self) -> Range<u64> {
        let (first, count) = self.events().unwrap_or_default();
        first..first.saturating_add(count)
    }

    /// Returns the root over the line hashes of the entry's events, if the entry has a root.
    pub fn root(&self) -> Option<Hash> {
        if let Self::Delivered(Delivered { root, .. }) = self {
            return *root;
        }
        if let Self::Accepted { root, .. } = self { Some(*root) } else { None }
    }

    /// Returns the time of the entry in milliseconds since 1970.
    pub fn at(&self) -> u64 {
        match self {
            Self::Accepted { at, .. }
            | Self::Delivered(Delivered { at, .. })
            | Self::Lost { at, .. }
            | Self::Heartbeat { at }
            | Self::Pruned { at, .. }
            | Self::Key { at, .. }
            | Self::Alarm { at, .. } => *at,
            Self::Start(Started { running, .. }) | Self::Reload(running) | Self::Stop(running) => {
                running.at
            }
        }
    }
}

/// Returns the end of the last [`Entry::in_queue`] range among the first `tiled` entries and those
/// `behind` them, if there is one. `bundle` returns the entries of a bundle by its index.
pub fn end_in_queue<E>(
    tiled: u64,
    behind: &[Vec<u8>],
    bundle: impl Fn(u64) -> Result<Vec<Vec<u8>>, E>,
) -> Result<Option<u64>, E> {
    let end_of = |entry: &Vec<u8>| Some(Entry::parse(entry).ok()?.in_queue()?.end);
    let mut end = behind.iter().rev().find_map(end_of);
    for index in (0..tiled.div_ceil(WIDTH)).rev() {
        if end.is_some() {
            break;
        }
        end = bundle(index)?.iter().rev().find_map(end_of);
    }
    Ok(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[allow(clippy::too_many_lines, reason = "each type of entry is there")]
    #[test]
    fn entries_are_written_and_read_as_the_contract_says() {
        let hash = Hash::of(&[b"x"]);
        let running = Running {
            at: 5,
            version: "0.1.0".to_owned(),
            config_sha256: "ab".repeat(32),
            heartbeat_ms: 3_600_000,
            outputs: BTreeMap::from([("siem".to_owned(), 7)]),
            left: BTreeMap::new(),
            directory: None,
        };
        let without = Running { left: BTreeMap::from([("old".to_owned(), 9)]), ..running.clone() };
        let common = format!(
            r#""at":5,"version":"0.1.0","config_sha256":"{}","heartbeat_ms":3600000,"outputs":{{"siem":7}}"#,
            "ab".repeat(32)
        );
        let delivered = |root, not_delivered, changed| {
            let (output, first, count, at) = ("siem".to_owned(), 10, 3, 5);
            Entry::Delivered(Delivered { output, first, count, at, root, not_delivered, changed })
        };
        let lost = |first| {
            let (output, reason) = ("queue".to_owned(), "when_full".to_owned());
            Entry::Lost { output, first, count: 3, at: 5, reason }
        };
        let alarm = |what| Entry::Alarm { at: 5, what };
        for (entry, text) in [
            (
                Entry::Accepted { first: 0, count: 400, at: 5, root: hash },
                format!(r#"{{"type":"accepted","first":0,"count":400,"at":5,"root":"{hash}"}}"#),
            ),
            (
                delivered(None, BTreeMap::new(), Vec::new()),
                r#"{"type":"delivered","output":"siem","first":10,"count":3,"at":5}"#.to_owned(),
            ),
            (
                delivered(
                    Some(hash),
                    BTreeMap::from([
                        (Offset(0), Fate::Aside),
                        (Offset(2), Fate::DeadLetter),
                    ]),
                    vec![Offset(1)],
                ),
                format!(
                    r#"{{"type":"delivered","output":"siem","first":10,"count":3,"at":5,"root":"{hash}","not_delivered":{{"0":"aside","2":"dead_letter"}},"changed":["1"]}}"#
                ),
            ),
            (
                lost(Some(3)),
                r#"{"type":"lost","output":"queue","first":3,"count":3,"at":5,"reason":"when_full"}"#
                    .to_owned(),
            ),
            (
                lost(None),
                r#"{"type":"lost","output":"queue","count":3,"at":5,"reason":"when_full"}"#.to_owned(),
            ),
            (
                Entry::Start(Started {
                    running: running.clone(),
                    previous: Head { size: 9, root: hash },
                }),
                format!(
                    r#"{{"type":"start",{common},"previous":{{"size":9,"root":"{hash}"}}}}"#
                ),
            ),
            (Entry::Reload(running.clone()), format!(r#"{{"type":"reload",{common}}}"#)),
            (Entry::Stop(running), format!(r#"{{"type":"stop",{common}}}"#)),
            (
                Entry::Reload(without),
                format!(r#"{{"type":"reload",{common},"left":{{"old":9}}}}"#),
            ),
            (
                alarm(Alarm::Off { first: 3, count: 2 }),
                r#"{"type":"alarm","at":5,"what":"off","first":3,"count":2}"#.to_owned(),
            ),
            (alarm(Alarm::Journal), r#"{"type":"alarm","at":5,"what":"journal"}"#.to_owned()),
            (alarm(Alarm::Removed), r#"{"type":"alarm","at":5,"what":"removed"}"#.to_owned()),
            (Entry::Heartbeat { at: 5 }, r#"{"type":"heartbeat","at":5}"#.to_owned()),
            (
                Entry::Pruned { at: 5, below: 7 },
                r#"{"type":"pruned","at":5,"below":7}"#.to_owned(),
            ),
            (
                Entry::Key { at: 5, verifier_key: "a+0+b".to_owned() },
                r#"{"type":"key","at":5,"verifier_key":"a+0+b"}"#.to_owned(),
            ),
        ] {
            let text = text.strip_suffix('}').unwrap().to_owned() + r#","boot":7,"up":1234}"#;
            let stamp = Stamp { boot: 7, up: 1234 };
            assert_eq!(String::from_utf8(entry.stamped(stamp)).unwrap(), text);
            assert_eq!(Entry::parse(text.as_bytes()).unwrap(), entry);
            assert_eq!(Stamp::parse(text.as_bytes()), Some(stamp));
            assert_eq!(entry.at(), 5);
        }
    }

    #[test]
    fn bytes_that_are_no_entry_are_refused() {
        for wrong in [
            "",
            "{}",
            r#"{"type":"other"}"#,
            r#"{"type":"heartbeat"}"#,
            r#"{"type":"heartbeat","at":-1}"#,
            r#"{"type":"accepted","first":0,"count":1,"at":5,"root":"x"}"#,
            r#"{"type":"delivered","output":"o","first":0,"count":1,"at":5,"changed":["01"]}"#,
            r#"{"type":"delivered","output":"o","first":0,"count":1,"at":5,"changed":[1]}"#,
            r#"{"type":"heartbeat","at":1} x"#,
        ] {
            assert!(Entry::parse(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }
}
