//! The lines that a consumer has stored: plain, gzip or zstd, in any number of files.

use std::io;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use base::disk::named;
use base::named_file;
use evidence_log::tlog::merkle::{Hash, Hasher};
use evidence_log::tlog::note::NOTE_BYTES_MAX;
use tools::replay::packing::{Counted, MAGIC_BYTES, Packing};

const BUFFER: usize = 256 << 10;

/// The maximum number of bytes of a line: the default `limits.max_body` of a relay with a queue on
/// disk.
const LINE_BYTES_MAX: u64 = 1 << 30;

/// The number by which lines that are not JSON objects may outnumber the other lines. A file with
/// more of them is not the store of a consumer.
const OTHERS_MAX: u64 = 1_000_000;

/// The apiVersion of an object with a checkpoint.
const API_VERSION: &str = "kube-audit-forwarder/v1";

/// The number of bytes at which a line is too long for a checkpoint.
const HEAD_MAX: usize = 2 * NOTE_BYTES_MAX;

/// The number of bytes at the beginning of a line in which a member of a checkpoint's object is
/// looked for.
const BEGIN_MAX: usize = 128;

/// The beginning of a line that may come from an output with `format = "audit_log"`, which adds
/// these members to an event without them. The brace is that of the event.
const ADDED: &[u8] = audit::EVENT_HEAD;

/// A line of a file, without its line break.
pub(crate) enum Line {
    Event {
        /// The SHA-256 of the whole line.
        hash: Hash,
        /// The SHA-256 without the members in [`ADDED`]: the hash of the event, if the output added
        /// these members. `None` if the line does not begin with them.
        plain: Option<Hash>,
    },
    /// The note of a checkpoint.
    Checkpoint(Vec<u8>),
    Empty,
}

/// The object around a checkpoint. A line with any further or repeated member is not a checkpoint,
/// because readers of the store may see an event in it.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Object {
    kind: String,
    api_version: String,
    note: String,
}

/// Reads the lines of a file; `-` is standard input. `line` is called with each line, and `read`
/// with the number of bytes that were read since the last call.
pub(crate) fn read(
    path: &Path,
    line: &mut dyn FnMut(Line) -> io::Result<()>,
    read: &mut dyn FnMut(u64),
) -> io::Result<()> {
    read_lines(path, line, read).map_err(named(&path.display().to_string()))
}

fn read_lines(
    path: &Path,
    line: &mut dyn FnMut(Line) -> io::Result<()>,
    read: &mut dyn FnMut(u64),
) -> io::Result<()> {
    let source: Box<dyn Read + Send> = match path == Path::new("-") {
        true => Box::new(io::stdin()),
        false => Box::new(named_file::open_of_command(path)?),
    };
    let bytes_read = Arc::<AtomicU64>::default();
    let counted = Counted { source, bytes: Arc::clone(&bytes_read) };
    let mut raw = BufReader::with_capacity(BUFFER, counted);
    let mut magic = raw.fill_buf()?;
    magic = magic.get(..MAGIC_BYTES.min(magic.len())).unwrap_or_default();
    let packing = Packing::of(magic);
    let mut text = packing.open(raw, BUFFER)?;
    let explain = |error: io::Error| io::Error::new(error.kind(), packing.explain(&error));
    let mut open = Open::default();
    // The lines that can't be events, minus the other lines; at least 0.
    let mut others = 0_u64;
    loop {
        let buffer = text.fill_buf().map_err(explain)?;
        let mut rest = buffer;
        while let Some(end) = memchr::memchr(b'\n', rest) {
            let (bytes, behind) = rest.split_at(end);
            rest = behind.get(1..).unwrap_or_default();
            open.go_on(bytes)?;
            others = match open.head.first() {
                Some(b'{') => others.saturating_sub(1),
                _ => others + 1,
            };
            if others > OTHERS_MAX {
                let text = "most of its lines are not events: it is another file";
                return Err(io::Error::other(text));
            }
            line(std::mem::take(&mut open).end())?;
        }
        open.go_on(rest)?;
        let bytes = buffer.len();
        text.consume(bytes);
        read(bytes_read.swap(0, Ordering::Relaxed));
        if bytes == 0 {
            // The empty text after the last line break is not a line.
            return if open.bytes == 0 { Ok(()) } else { line(open.end()) };
        }
    }
}

/// A line that is being read.
#[derive(Default)]
struct Open {
    bytes: u64,
    hash: Hasher,
    /// The first bytes of the line, up to [`HEAD_MAX`].
    head: Vec<u8>,
    /// The hash of the line without the members that an output may have added.
    plain: Option<Hasher>,
}

impl Open {
    fn go_on(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.bytes += bytes.len() as u64;
        if self.bytes > LINE_BYTES_MAX {
            let text = format!("a line is longer than {} MiB", LINE_BYTES_MAX >> 20);
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
        }
        self.hash.update(bytes);
        let begun = self.head.len();
        self.head.extend_from_slice(bytes.get(..HEAD_MAX - begun).unwrap_or(bytes));
        let mut rest = bytes;
        if begun < ADDED.len() && self.head.starts_with(ADDED) {
            self.plain.insert(Hasher::default()).update(b"{");
            rest = bytes.get(ADDED.len() - begun..).unwrap_or_default();
        }
        if let Some(plain) = &mut self.plain {
            plain.update(rest);
        }
        Ok(())
    }

    fn end(self) -> Line {
        if self.bytes == 0 {
            return Line::Empty;
        }
        let (hash, plain) = (self.hash.finish(), self.plain.map(Hasher::finish));
        checkpoint(&self.head).map_or(Line::Event { hash, plain }, Line::Checkpoint)
    }
}

/// Returns the note in a line with a checkpoint, or `None` for an event. A store may have changed
/// the spaces and the order of the members.
fn checkpoint(line: &[u8]) -> Option<Vec<u8>> {
    let begin = line.get(..BEGIN_MAX).unwrap_or(line);
    let has = |text: &[u8]| memchr::memmem::find(begin, text).is_some();
    if line.len() == HEAD_MAX
        || !(has(b"\"Checkpoint\"") || has(API_VERSION.as_bytes()) || has(b"\"note\""))
    {
        return None;
    }
    let Object { kind, api_version, note } = serde_json::from_slice(line).ok()?;
    (kind == "Checkpoint" && api_version == API_VERSION).then(|| note.into_bytes())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    /// Method: a stack on which a call for each level has no room. The line must begin like a
    /// checkpoint, so that it is parsed.
    #[test]
    fn a_line_of_ten_thousand_levels_is_an_event() {
        let test = || {
            let deep = format!("{}{}", "[".repeat(10_005), "]".repeat(10_005));
            for name in ["note", "requestObject"] {
                let line = format!(r#"{{"kind":"Checkpoint","{name}":{deep},"note":"a"}}"#);
                assert_eq!(checkpoint(line.as_bytes()), None);
            }
        };
        std::thread::Builder::new().stack_size(256 * 1024).spawn(test).unwrap().join().unwrap();
    }

    #[test]
    fn lines_are_found_wherever_the_buffers_end() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("lines");
        let note = format!("{}\\n", "x".repeat(1000));
        let lines = [
            "a".to_owned(),
            String::new(),
            "b".repeat(BUFFER - 3),
            format!(
                r#"{{"kind":"Checkpoint","apiVersion":"kube-audit-forwarder/v1","note":"{note}"}}"#
            ),
            "c".repeat(3 * BUFFER),
            format!(
                r#"{{ "note": "{note}", "apiVersion" : "kube-audit-forwarder/v1", "kind":"Checkpoint" }}"#
            ),
            r#"{"kind":"Checkpoint","#.to_owned(),
            r#"{"kind":"Event"}"#.to_owned(),
            format!("{}\"auditID\":\"a\"}}", String::from_utf8_lossy(ADDED)),
            format!("{}{}}}", String::from_utf8_lossy(ADDED), "d".repeat(3 * BUFFER - 20)),
        ];
        let expected = |line: &[u8]| {
            let plain = line.strip_prefix(ADDED).map(|rest| Hash::of(&[b"{", rest]));
            (Hash::of(&[line]), plain)
        };
        let text = lines.join("\n");
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(text.as_bytes()).expect("memory");
        let gzip = gzip.finish().expect("memory");
        let zstd = zstd::encode_all(text.as_bytes(), 1).expect("memory");
        for content in [text.clone().into_bytes(), format!("{text}\n").into_bytes(), gzip, zstd] {
            std::fs::write(&path, &content).expect("a file");
            let (mut found, mut checkpoints, mut bytes) = (Vec::new(), Vec::new(), 0);
            let mut empty = 0;
            let mut line = |line| {
                match line {
                    Line::Event { hash, plain } => found.push((hash, plain)),
                    Line::Checkpoint(note) => checkpoints.push(note),
                    Line::Empty => empty += 1,
                }
                Ok(())
            };
            read(&path, &mut line, &mut |more| bytes += more).expect("it can be read");
            let all: Vec<_> =
                [0, 2, 4, 6, 7, 8, 9].iter().map(|at| expected(lines[*at].as_bytes())).collect();
            assert!(found == all);
            let note = format!("{}\n", "x".repeat(1000)).into_bytes();
            assert_eq!(checkpoints, [note.clone(), note]);
            assert_eq!((bytes, empty), (content.len() as u64, 1));
        }
    }
}
