//! An attacker's log does not hurt the auditor: each command ends soon, takes little memory, says
//! what is wrong, and prints nothing that a terminal would obey.

use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};

use aws_lc_rs::digest;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::recorded::Recorded;
use super::verify::Checked;
use crate::support::binary;
use crate::support::prelude::*;

const ORIGIN: &str = "example.org/hostile";

/// The memory in KiB that the program may take, including its code and the stacks of its threads.
const MEMORY_KIB: u64 = 1_500_000;

/// Runs a command with little memory. It must end within a minute.
fn limited(arguments: &[&str]) -> Checked {
    limited_with(arguments, "")
}

/// Like [`limited`], with a last argument that the shell makes, such as a pipe.
fn limited_with(arguments: &[&str], last: &str) -> Checked {
    let script = format!("ulimit -v {MEMORY_KIB}; exec timeout -s KILL 60 \"$@\" {last}");
    let mut command = Command::new("bash");
    command.args(["-c", &script, "bash", binary()]);
    let output = command.args(arguments).stdin(Stdio::null()).output().expect("bash");
    let text = String::from_utf8([output.stdout, output.stderr].concat()).expect("text");
    let status = output.status.code().unwrap_or_else(|| panic!("killed: {text}"));
    assert!((0..=2).contains(&status), "{arguments:?}: {status}: {text}");
    Checked { status, text }
}

type Hash = [u8; 32];

fn hash(parts: &[&[u8]]) -> Hash {
    digest::digest(&digest::SHA256, &parts.concat()).as_ref().try_into().unwrap()
}

/// The hash of an entry in the tree of a log (RFC 6962 §2.1).
fn leaf(entry: &[u8]) -> Hash {
    hash(&[&[0], entry])
}

fn node(left: &Hash, right: &Hash) -> Hash {
    hash(&[&[1], left, right])
}

fn root(leaves: &[Hash]) -> Hash {
    let [leaf] = leaves else {
        let (left, right) = leaves.split_at(leaves.len().next_power_of_two() / 2);
        return node(&root(left), &root(right));
    };
    *leaf
}

/// Returns entries in the format of a `tile/entries` file (C2SP `tlog-tiles`).
fn bundle<T: AsRef<[u8]>>(entries: impl IntoIterator<Item = T>) -> Vec<u8> {
    let mut bundle = Vec::new();
    for entry in entries {
        let entry = entry.as_ref();
        bundle.extend(u16::try_from(entry.len()).unwrap().to_be_bytes());
        bundle.extend(entry);
    }
    bundle
}

/// A key that signs a log (C2SP `signed-note`).
struct Key {
    name: String,
    pair: Ed25519KeyPair,
}

impl Key {
    /// Makes the key whose seed consists of 32 such bytes.
    fn new(name: &str, seed: u8) -> Self {
        let pair = Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap();
        Self { name: name.to_owned(), pair }
    }

    /// Returns the number of the algorithm Ed25519, and the public key.
    fn public(&self) -> Vec<u8> {
        [&[1], self.pair.public_key().as_ref()].concat()
    }

    fn id(&self) -> [u8; 4] {
        *hash(&[self.name.as_bytes(), b"\n", &self.public()]).first_chunk().unwrap()
    }

    fn verifier(&self) -> String {
        let id = u32::from_be_bytes(self.id());
        format!("{}+{id:08x}+{}", self.name, STANDARD.encode(self.public()))
    }

    /// Returns the signed checkpoint of this key's log. `more` are the lines after its root.
    fn checkpoint(&self, size: u64, root: Hash, more: &str) -> String {
        let text = format!("{}\n{size}\n{}\n{more}", self.name, STANDARD.encode(root));
        let signature = self.pair.sign(text.as_bytes());
        let signature = STANDARD.encode([&self.id(), signature.as_ref()].concat());
        format!("{text}\n\u{2014} {} {signature}\n", self.name)
    }
}

/// An attacker's log with a key that the auditor may know.
struct Hostile {
    key: Key,
    root: Hash,
    files: BTreeMap<String, Vec<u8>>,
}

impl Hostile {
    /// Makes a log with these entries.
    fn new(entries: &[Vec<u8>]) -> Self {
        let leaves: Vec<_> = entries.iter().map(|entry| leaf(entry)).collect();
        let (key, root) = (Key::new(ORIGIN, 1), root(&leaves));
        let mut hostile = Self { key, root, files: BTreeMap::new() };
        hostile.sign(entries.len() as u64, root, "");
        assert!(entries.len() < 256);
        let mut file = |content: &str, bytes| {
            hostile.files.insert(format!("tile/{content}/000.p/{}", entries.len()), bytes)
        };
        file("entries", bundle(entries));
        file("0", leaves.concat());
        hostile
    }

    fn sign(&mut self, size: u64, root: Hash, more: &str) {
        let note = self.key.checkpoint(size, root, more);
        self.files.insert("checkpoint".to_owned(), note.into_bytes());
    }

    fn verifier(&self) -> String {
        self.key.verifier()
    }

    fn write(&self) -> TempDir {
        let directory = TempDir::new().unwrap();
        for (name, bytes) in &self.files {
            let path = directory.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
        directory
    }

    /// Serves the files. All other tiles of entries are `bundle`. All other tiles of hashes repeat
    /// what `tile` returns for their level.
    fn serve(
        self,
        bundle: Vec<u8>,
        tile: impl Fn(u32) -> Vec<u8> + Send + Sync + 'static,
    ) -> HttpSink {
        HttpSink::start(move |request| {
            let path = request.target.trim_start_matches("/evidence/");
            if let Some(bytes) = self.files.get(path) {
                return Answer::status(200).body(bytes.clone());
            }
            let Some(rest) = path.strip_prefix("tile/") else { return Answer::status(404) };
            let (level, rest) = rest.split_once('/').unwrap();
            let width = rest.split_once(".p/").map_or(256, |(_, width)| width.parse().unwrap());
            match level.parse() {
                Ok(level) => Answer::status(200).body(tile(level).repeat(width)),
                Err(_) => Answer::status(200).body(bundle.clone()),
            }
        })
    }
}

fn heartbeat() -> Vec<u8> {
    br#"{"type":"heartbeat","at":1700000000000}"#.to_vec()
}

fn accepted(first: u64, count: u64) -> Vec<u8> {
    let root = STANDARD.encode([1; 32]);
    format!(r#"{{"type":"accepted","first":{first},"count":{count},"at":5,"root":"{root}"}}"#)
        .into_bytes()
}

/// A full bundle of the maximum size.
fn large_bundle() -> Vec<u8> {
    bundle(vec![vec![b'x'; 65_535]; 256])
}

/// Method: a server has a checkpoint over 2^63 - 1 entries, and answers each request with a large
/// tile. The checkpoint is signed by an unknown key or by the right one.
#[test]
fn a_published_log_of_2_to_the_63_entries_is_not_downloaded() {
    let size = i64::MAX as u64;
    for is_known in [false, true] {
        let mut hostile = Hostile::new(&[heartbeat()]);
        let verifier = match is_known {
            true => hostile.verifier(),
            false => Key::new(ORIGIN, 2).verifier(),
        };
        hostile.sign(size, [7; 32], "");
        let server = hostile.serve(large_bundle(), |_| vec![7; 32]);
        let url = format!("http://{}", server.address());
        let checked = limited(&["evidence", "verify", "--url", &url, "--key", &verifier]);
        let why = if is_known { "9223372036854775807 entries" } else { "is not signed by the key" };
        checked.assert(1, &["FAULT", why, "checkpoints 0/1 valid"]);
        assert!(!checked.text.contains("No event is missing"), "{}", checked.text);
        assert!(server.requests().len() < 5, "{} requests", server.requests().len());
    }
}

/// Method: the right key has signed a log of 2^32 entries. Either the tiles on the right edge of
/// the tree are not the signed ones, or the tiles are but the entries are not, or all hashes are
/// those of one entry that is repeated over and over.
#[test]
fn a_published_log_is_read_only_as_far_as_its_hashes_fit() {
    let accepted = accepted(0, 1);
    // The roots of 1, 2, 4, 8, … equal entries.
    let levels: Vec<_> =
        std::iter::successors(Some(leaf(&accepted)), |hash| Some(node(hash, hash)))
            .take(41)
            .collect();
    for (root, bundle, why) in [
        ([7; 32], large_bundle(), "the tiles are not those that the checkpoint was signed over"),
        (levels[32], large_bundle(), "tile/0/000 has other hashes than the entries"),
        (levels[32], bundle(vec![accepted; 256]), "too much is wrong before them"),
    ] {
        let mut hostile = Hostile::new(&[heartbeat()]);
        let verifier = hostile.verifier();
        hostile.sign(1 << 32, root, "");
        let levels = levels.clone();
        let tiles = move |level: u32| levels[level as usize * 8].to_vec();
        let server = hostile.serve(bundle, tiles);
        let url = format!("http://{}", server.address());
        let checked = limited(&["evidence", "verify", "--url", &url, "--key", &verifier]);
        checked.assert(1, &["FAULT", why, "NOT CHECKED: the entries"]);
        assert!(server.requests().len() < 60, "{} requests", server.requests().len());
    }
}

/// Method: the server sends a redirect, a huge body, a compressed body, a part of a response, or
/// nothing. None of this says anything about the log.
#[test]
fn an_answer_that_is_no_file_accuses_nobody() {
    let endless = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    let chunk = [b"100000\r\n".as_slice(), &vec![b'x'; 1 << 20], b"\r\n"].concat();
    let huge = b"HTTP/1.1 200 OK\r\nContent-Length: 9223372036854775807\r\n\r\n".to_vec();
    for (answer, why) in [
        (Answer::status(302).header("Location", "http://127.0.0.1:1/checkpoint"), "302 Found"),
        (Answer::raw([endless, chunk.repeat(3)].concat()).closing(), "more than 1048576 bytes"),
        (Answer::raw([huge, vec![b'x'; 3 << 20]].concat()).closing(), "more than 1048576 bytes"),
        (Answer::status(200).header("Content-Encoding", "gzip").body("x"), "is compressed"),
        (Answer::status(200).body("x").header("Content-Length", "9").closing(), ""),
        (Answer::hang_up(), "no HTTP response"),
    ] {
        let answer = Mutex::new(Some(answer));
        let server = HttpSink::start(move |_| answer.lock().unwrap().take().unwrap());
        let hostile = Hostile::new(&[heartbeat()]);
        let url = format!("http://{}", server.address());
        let checked = limited(&["evidence", "verify", "--url", &url, "--key", &hostile.verifier()]);
        checked.assert(2, &[why]);
        assert!(!checked.text.contains("FAULT"), "{}", checked.text);
    }
}

/// Method: the files of a real queue with evidence are replaced in turn by a symlink to an endless
/// device, a FIFO, and a directory.
#[test]
fn a_special_file_in_a_log_is_named_and_never_read() {
    let mut recorded = Recorded::new();
    // The consumer accepts nothing, so the queue keeps the events.
    recorded.sink = HttpSink::start(|_| Answer::status(503));
    let mut relay = Relay::start(&recorded.config(""));
    recorded.post(&relay, 1, 300);
    recorded.wait_until_signed();
    relay.kill();
    std::fs::write(recorded.spool.path().join("evidence-rolled-back"), "other\nwhy\n").unwrap();
    let key = recorded.verifier.clone();
    let attack = |beginning: &str, how: fn(&Path), what: &str| {
        let copy = recorded.spool.copy();
        let path = newest(&copy, beginning);
        std::fs::remove_file(&path).unwrap();
        how(&path);
        let directory = copy.path().display().to_string();
        let checked = limited(&["evidence", "verify", "--directory", &directory, "--key", &key]);
        if beginning.starts_with("evidence") {
            assert!(checked.status > 0, "{beginning} {what}: {}", checked.text);
            assert!(checked.text.contains(what), "{beginning} {what}: {}", checked.text);
        }
        let to = TempDir::new().unwrap();
        let to = to.path().join("to").display().to_string();
        for command in [
            vec!["show", &directory],
            vec!["prove", &directory, "--position", "7"],
            vec!["copy", &directory, &to],
        ] {
            limited(&[&["evidence"], command.as_slice()].concat());
        }
    };
    for beginning in [
        "evidence/checkpoint",
        "evidence/tile/0/",
        "evidence/tile/entries/",
        "evidence/lines/",
        "evidence-head",
        "evidence-rolled-back",
        "segments/",
        "cursors",
    ] {
        attack(beginning, |path| symlink("/dev/zero", path).unwrap(), "a symlink");
        attack(beginning, make_fifo, "a FIFO");
        attack(beginning, |path| std::fs::create_dir(path).unwrap(), "directory");
    }
}

/// Returns the largest file whose path begins with `beginning`.
fn newest(spool: &Spool, beginning: &str) -> PathBuf {
    let files = spool.files().into_iter().filter(|(path, _)| path.starts_with(beginning));
    let files = files.max_by_key(|(_, entry)| entry.bytes.len());
    spool.path().join(files.unwrap_or_else(|| panic!("no {beginning}")).0)
}

fn make_fifo(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

/// Method: symlinks in a directory of tiles point to the directory itself, so that every tile seems
/// to exist. The right key has signed 2^63 - 1 entries.
#[test]
fn a_circle_of_symlinks_is_not_a_log_without_an_end() {
    let mut hostile = Hostile::new(&[heartbeat()]);
    hostile.sign(i64::MAX as u64, [7; 32], "");
    let bundle = bundle(vec![heartbeat(); 256]);
    for index in 0..1000 {
        hostile.files.insert(format!("tile/entries/{index:03}"), bundle.clone());
    }
    let directory = hostile.write();
    for index in 0..1000 {
        symlink(".", directory.path().join(format!("tile/entries/x{index:03}"))).unwrap();
    }
    let place = directory.path().display().to_string();
    let checked =
        limited(&["evidence", "verify", "--directory", &place, "--key", &hostile.verifier()]);
    checked.assert(1, &["NOT CHECKED: the entries from 256000 on"]);
    limited(&["evidence", "copy", &place, &format!("{place}-copy")]).assert(1, &["a symlink"]);
}

#[test]
fn a_checkpoint_and_a_proof_without_an_end_are_refused() {
    let hostile = Hostile::new(&[heartbeat()]);
    let (directory, key) = (hostile.write(), hostile.verifier());
    let directory = directory.path().display().to_string();
    let kept = ["evidence", "verify", "--directory", &directory, "--checkpoint", "/dev/zero"];
    limited(&[&kept[..], &["--key", &key]].concat()).assert(2, &["larger than 16 MiB"]);
    let proof = ["evidence", "verify", "--proof", "/dev/zero", "--key", &key];
    limited(&proof).assert(2, &["larger than 16 MiB"]);
}

/// Method: the stored lines come from endless devices and pipes: one line, lines that are not
/// events, and empty lines. The faults of the log must still be reported.
#[test]
fn stored_lines_without_an_end_are_named_and_hide_no_fault() {
    let empty = STANDARD.encode(hash(&[]));
    let start = format!(
        r#"{{"type":"start","at":1,"version":"","config_sha256":"","heartbeat_ms":1000,"outputs":{{"a":0}},"previous":{{"size":0,"root":"{empty}"}}}}"#
    );
    let lost = r#"{"type":"lost","output":"queue","first":0,"count":3,"at":3,"reason":"removed"}"#;
    let hostile = Hostile::new(&[start.into_bytes(), lost.as_bytes().to_vec()]);
    let (directory, key) = (hostile.write(), hostile.verifier());
    let directory = directory.path().display().to_string();
    let arguments = ["evidence", "verify", "--directory", &directory, "--key", &key];
    let arguments = [&arguments[..], &["--output", "a", "--events"]].concat();
    let (long, other) = (": a line is longer than 1024 MiB", ": most of its lines are not events");
    for (events, why) in
        [("/dev/zero", long), ("<(yes)", other), ("<(yes '')", other), ("<(yes | gzip -1)", other)]
    {
        let checked = limited_with(&arguments, events);
        checked.assert(1, &["NOT CHECKED: /dev/", why, "3 events were lost at queue: removed"]);
    }
}

/// Method: the right key has signed an entry with impossible numbers, such as 2^60 events.
#[test]
fn a_proof_about_2_to_the_60_events_ends_at_once() {
    let files = TempDir::new().unwrap();
    let event = files.path().join("event");
    std::fs::write(&event, "{}\n").unwrap();
    for (first, count) in [(0, 1_u64 << 60), (7, 0), (u64::MAX, 5), (5, 4097)] {
        let entry = accepted(first, count);
        let extra = STANDARD.encode(&entry);
        let hostile = Hostile::new(&[entry]);
        let checkpoint = String::from_utf8(hostile.files["checkpoint"].clone()).unwrap();
        let salt = STANDARD.encode([1; 16]);
        let path = format!("{}\n", STANDARD.encode([2; 32])).repeat(60);
        let proof = format!(
            "c2sp.org/tlog-proof@v1\nextra {extra}\nindex 0\n\n{checkpoint}\nsalt {salt}\n{path}"
        );
        let file = files.path().join("proof");
        std::fs::write(&file, proof).unwrap();
        let [file, event] = [&file, &event].map(|path| path.display().to_string());
        let key = hostile.verifier();
        let checked =
            limited(&["evidence", "verify", "--proof", &file, "--key", &key, "--events", &event]);
        checked.assert(1, &[&format!("is about {count} events from position {first} on")]);
    }
}

/// Characters that a terminal obeys, or that change the order of other characters.
const OBEYED: [char; 9] = [
    '\u{1b}',
    '\u{7f}',
    '\u{9b}',
    '\u{200e}',
    '\u{202e}',
    '\u{2028}',
    '\u{2066}',
    '\u{2069}',
    '\u{e0041}',
];

/// Method: each text in a log has characters that a terminal obeys: its origin, output names,
/// reasons, versions, types of entries, and a further line of the checkpoint.
#[test]
fn a_log_can_not_write_to_the_terminal() {
    let evil: String = OBEYED.iter().chain(&['2', 'J', 'x']).collect();
    let name = serde_json::to_string(&evil).unwrap();
    let raw = evil.replace(['\u{1b}', '\u{7f}'], "");
    let empty = STANDARD.encode(hash(&[]));
    let running = format!(
        r#""at":1,"version":{name},"config_sha256":{name},"heartbeat_ms":1000,"outputs":{{{name}:0}}"#
    );
    let entries = [
        format!(r#"{{"type":"start",{running},"previous":{{"size":0,"root":"{empty}"}}}}"#),
        String::from_utf8(accepted(0, 2)).unwrap(),
        format!(r#"{{"type":"lost","output":{name},"first":0,"count":1,"at":3,"reason":{name}}}"#),
        format!(
            r#"{{"type":"lost","output":"{raw}","first":9,"count":1,"at":3,"reason":"{raw}"}}"#
        ),
        format!(r#"{{"type":"delivered","output":{name},"first":1,"count":1,"at":3}}"#),
        format!(r#"{{"type":"key","at":4,"verifier_key":{name}}}"#),
        format!(r#"{{"type":"{raw}"}}"#),
        format!("\u{9b}2J\u{1b}[31m{raw}"),
        format!(r#"{{"type":"reload",{running}}}"#),
    ];
    let entries = entries.map(String::into_bytes);
    let mut hostile = Hostile::new(&entries);
    let (size, root) = (entries.len() as u64, hostile.root);
    hostile.sign(size, root, &format!("{raw}\n"));
    let (directory, key) = (hostile.write(), hostile.verifier());
    let place = directory.path().display().to_string();
    let kept = directory.path().join("kept");
    let is_name = |char: &char| !char.is_control() && !char.is_whitespace();
    let name: String = raw.chars().filter(is_name).collect();
    std::fs::write(&kept, Key::new(&name, 2).checkpoint(size, root, "")).unwrap();
    let kept = kept.display().to_string();
    let to = format!("{place}-to");
    for (arguments, word) in [
        (vec!["show", &place], "INDEX"),
        (vec!["show", "--json", &place], "reload"),
        (vec!["prove", &place, "--position", "0"], "terminal"),
        (vec!["copy", &place, &to], "entries"),
        (vec!["verify", "--directory", &place, "--key", &key], "FAULT"),
        (vec!["verify", "--directory", &place, "--key", &key, "--checkpoint", &kept], "FAULT"),
    ] {
        let checked = limited(&[&["evidence"], arguments.as_slice()].concat());
        let found = checked.text.chars().find(|char| OBEYED.contains(char));
        assert_eq!(found, None, "{arguments:?}: {:?}", checked.text);
        assert!(checked.text.contains(word), "{arguments:?}: {}", checked.text);
    }
    std::fs::remove_dir_all(&to).unwrap();
}

/// Method: the right key has signed entries with a name of 60,000 bytes and with 5,000 outputs.
/// Both must be reported without being kept in memory.
#[test]
fn names_and_gaps_without_an_end_take_no_memory() {
    let long = "n".repeat(60_000);
    let outputs: Vec<_> = (0..5000).map(|at| format!(r#""o{at}":0"#)).collect();
    let entries = [
        format!(r#"{{"type":"lost","output":"{long}","first":0,"count":1,"at":3,"reason":"x"}}"#),
        format!(
            r#"{{"type":"reload","at":1,"version":"","config_sha256":"","heartbeat_ms":1,"outputs":{{{}}}}}"#,
            outputs.join(",")
        ),
    ];
    let hostile = Hostile::new(&entries.map(String::into_bytes));
    let directory = hostile.write();
    let place = directory.path().display().to_string();
    let checked =
        limited(&["evidence", "verify", "--directory", &place, "--key", &hostile.verifier()]);
    checked.assert(1, &["a name of more than 256 bytes", "lists more than 1,000 outputs"]);
}
