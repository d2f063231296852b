//! A witness of the evidence log (C2SP `tlog-witness`), which shares no code with the relay. It
//! keeps the newest checkpoint that it has cosigned, returns it to anybody, and cosigns another one
//! only if its log extends the old one.
//!
//! A gateway is in front of the witness, and responds for it when the plan says so.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest::SHA256;
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::support::http_sink::{Answer, HttpSink, Request};
use crate::support::server::Options;
use crate::{kernel, senders};

/// The name of the witness's key.
const NAME: &str = "witness.example";

/// The prefix of the witness's URLs.
const PREFIX: &str = "/below";

type Hash = [u8; 32];

pub(crate) struct Witness {
    sink: HttpSink,
    /// The witness's key, as the relay and `evidence verify` read it.
    pub(crate) key: String,
    gateway: Arc<Mutex<Gateway>>,
    book: Arc<Mutex<Book>>,
}

#[derive(Default)]
struct Gateway {
    /// The gateway responds to every request with this status.
    status: Option<u16>,
    /// The gateway responds to the next checkpoint with this status, like a witness of another log.
    /// After that, the witness itself responds until it has cosigned a checkpoint.
    contradicts: Option<u16>,
    has_contradicted: bool,
    /// The witness gets each request, and its answers get lost.
    loses: bool,
}

/// The state of the witness.
struct Book {
    origin: String,
    log: UnparsedPublicKey<Vec<u8>>,
    signer: Ed25519KeyPair,
    id: [u8; 4],
    size: u64,
    root: Hash,
    /// The newest checkpoint, with its cosignatures.
    note: String,
    /// The root for each size that the log's key has signed.
    roots: BTreeMap<u64, Hash>,
    /// Requests that the relay must not make.
    violations: Vec<String>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn sha256(parts: &[&[u8]]) -> Hash {
    let hash = aws_lc_rs::digest::digest(&SHA256, &parts.concat());
    hash.as_ref().try_into().expect("32 bytes")
}

impl Witness {
    /// Starts the witness of the log with this verifier key.
    pub(crate) fn start(seed: u64, log: &str) -> Self {
        let mut secret = [0; 32];
        senders::rng(seed, "witness").fill(&mut secret);
        let signer = Ed25519KeyPair::from_seed_unchecked(&secret).expect("32 bytes");
        let public = [&[4], signer.public_key().as_ref()].concat();
        let [a, b, c, d, ..] = sha256(&[NAME.as_bytes(), b"\n", &public]);
        let hex = format!("{:08x}", u32::from_be_bytes([a, b, c, d]));
        let key = format!("{NAME}+{hex}+{}", STANDARD.encode(public));
        let (origin, encoded) = log.split_once('+').expect("a verifier key");
        let encoded = encoded.split_once('+').expect("a verifier key").1;
        let public = STANDARD.decode(encoded).expect("a verifier key").split_off(1);
        let book = Arc::new(Mutex::new(Book {
            origin: origin.to_owned(),
            log: UnparsedPublicKey::new(&ED25519, public),
            signer,
            id: [a, b, c, d],
            size: 0,
            root: sha256(&[]),
            note: String::new(),
            roots: BTreeMap::new(),
            violations: Vec::new(),
        }));
        let gateway = Arc::<Mutex<Gateway>>::default();
        let (in_front, behind) = (Arc::clone(&gateway), Arc::clone(&book));
        let sink = HttpSink::remembering(Options::default(), move |request| {
            if request.method == "GET" {
                return lock(&behind).newest(&request.target);
            }
            let answer = lock(&in_front).answer();
            let answer = answer.unwrap_or_else(|| lock(&behind).add(request));
            if answer.code() == Some(200) {
                lock(&in_front).has_contradicted = false;
            }
            if lock(&in_front).loses { Answer::hang_up() } else { answer }
        });
        Self { sink, key, gateway, book }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.sink.address()
    }

    /// Returns the witness's URL, which is also its monitoring prefix.
    pub(crate) fn url(&self) -> String {
        format!("http://{}{PREFIX}", self.address())
    }

    /// Returns the witness's table for the config.
    pub(crate) fn toml(&self) -> String {
        format!("[[evidence.witness]]\nurl = \"{}\"\nkey = \"{}\"\n", self.url(), self.key)
    }

    /// Lets the gateway respond to every request with this status; `None`: to none.
    pub(crate) fn answers(&self, status: Option<u16>) {
        lock(&self.gateway).status = status;
    }

    /// Lets the gateway respond to one request with this status, 409 or 422.
    pub(crate) fn contradicts_once(&self, status: u16) {
        lock(&self.gateway).contradicts = Some(status);
    }

    /// With `true`, the witness gets each request, and its answers get lost.
    pub(crate) fn loses(&self, loses: bool) {
        lock(&self.gateway).loses = loses;
    }

    /// Returns the size of the newest checkpoint that the witness has cosigned.
    pub(crate) fn size(&self) -> u64 {
        lock(&self.book).size
    }

    pub(crate) fn violations(&self) -> Vec<String> {
        lock(&self.book).violations.clone()
    }
}

impl Gateway {
    fn answer(&mut self) -> Option<Answer> {
        let status = match self.status {
            Some(status) => status,
            None if self.has_contradicted => return None,
            None => self.contradicts.take()?,
        };
        self.has_contradicted |= self.status.is_none();
        kernel::trace(format_args!("the witness's gateway answers {status}"));
        let page = "<html><body>This request was not looked at</body></html>";
        Some(Answer::status(status).header("Content-Type", "text/html").body(page))
    }
}

/// A checkpoint that the log's key has signed.
struct Checkpoint {
    size: u64,
    root: Hash,
    text: String,
}

impl Book {
    /// Responds to a request to cosign. Any refusal other than 409 is a violation by the relay.
    fn add(&mut self, request: &Request) -> Answer {
        let body = String::from_utf8_lossy(&request.body).into_owned();
        let (status, text) = match self.judge(&request.target, &body) {
            Ok(lines) => (200, lines),
            Err((409, _)) => (409, format!("{}\n", self.size)),
            Err((status, why)) => {
                self.violations.push(format!("{status}, {why}: {body:?}"));
                (status, String::new())
            }
        };
        kernel::trace(format_args!("the witness has {} and answers {status}", self.size));
        let media_type = if status == 409 { "text/x.tlog.size" } else { "text/plain" };
        Answer::status(status).header("Content-Type", media_type).body(text)
    }

    /// Returns the cosignatures of the checkpoint in a request.
    ///
    /// # Errors
    ///
    /// The status of the response, and the reason.
    fn judge(&mut self, target: &str, body: &str) -> Result<String, (u16, String)> {
        let no = |status, why: &str| (status, why.to_owned());
        if target != format!("{PREFIX}/add-checkpoint") {
            return Err((404, format!("the path is {target}")));
        }
        let (head, note) = body.split_once("\n\n").ok_or(no(400, "it has no note"))?;
        let mut lines = head.lines();
        let old = lines.next().and_then(|line| line.strip_prefix("old ")?.parse::<u64>().ok());
        let old = old.ok_or(no(400, "it has no old size"))?;
        let proof: Option<Vec<Hash>> = lines.map(hash).collect();
        let proof = proof.filter(|it| it.len() <= 63).ok_or(no(400, "its proof is none"))?;
        if note.lines().next() != Some(&self.origin) {
            return Err(no(404, "the origin is another one"));
        }
        let Checkpoint { size, root, text } =
            self.signed(note).ok_or(no(403, "the log's key has not signed it"))?;
        let known = *self.roots.entry(size).or_insert(root);
        if known != root {
            self.violations.push(format!("a second root for {size} entries: {body:?}"));
        }
        if old > size {
            return Err(no(400, "the old size is the larger one"));
        }
        if old != self.size {
            return Err(no(409, "the old size is not that of the newest checkpoint"));
        }
        if old == size && root != self.root {
            return Err(no(409, "another root"));
        }
        if !extends((old, self.root), (size, root), proof) {
            return Err(no(422, "it does not extend the newest checkpoint"));
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let message = format!("cosignature/v1\ntime {now}\n{text}");
        let signature = self.signer.sign(message.as_bytes());
        let cosignature = [&self.id[..], &now.to_be_bytes(), signature.as_ref()].concat();
        // Clients must ignore signatures by unknown keys.
        let other = STANDARD.encode([0; 76]);
        let lines = format!(
            "\u{2014} another.example {other}\n\u{2014} {NAME} {}\n",
            STANDARD.encode(cosignature)
        );
        (self.size, self.root) = (size, root);
        self.note = format!("{note}{lines}");
        Ok(lines)
    }

    /// Reads a note, and checks the log's signature.
    fn signed(&self, note: &str) -> Option<Checkpoint> {
        let end = note.find("\n\n")?;
        let (text, signatures) = note.split_at(end + 1);
        let prefix = format!("\u{2014} {} ", self.origin);
        let mut signatures = signatures.lines().filter_map(|line| line.strip_prefix(&prefix));
        let is_valid = |signature: &str| {
            let signature = STANDARD.decode(signature).unwrap_or_default();
            let signature = signature.get(4..).unwrap_or_default();
            self.log.verify(text.as_bytes(), signature).is_ok()
        };
        let mut lines = text.lines().skip(1);
        let (size, root) = (lines.next()?.parse().ok()?, hash(lines.next()?)?);
        signatures.any(is_valid).then(|| Checkpoint { size, root, text: text.to_owned() })
    }

    /// Responds with the newest checkpoint (`tlog-witness`, "Monitor Retrieval Mechanism").
    fn newest(&self, target: &str) -> Answer {
        let name = sha256(&[self.origin.as_bytes()]).map(|byte| format!("{byte:02x}")).concat();
        match target == format!("{PREFIX}/{name}/checkpoint") && !self.note.is_empty() {
            true => Answer::status(200).body(self.note.clone()),
            false => Answer::status(404),
        }
    }
}

fn hash(encoded: &str) -> Option<Hash> {
    STANDARD.decode(encoded).ok()?.try_into().ok()
}

/// Returns `true` if the proof shows that the log with the size and the root `new` extends the log
/// with `old` (RFC 6962, 2.1.2).
fn extends((old, old_root): (u64, Hash), (size, root): (u64, Hash), mut proof: Vec<Hash>) -> bool {
    if old == 0 {
        return proof.is_empty();
    }
    let roots = roots(old, size, &mut proof, Some(old_root));
    proof.is_empty() && roots == Some((old_root, root))
}

/// Returns the roots of the first `old` and of all `size` entries in a part of the tree. The hashes
/// come from the end of the proof. `whole`: the old log's root, if this part contains all of it.
fn roots(old: u64, size: u64, proof: &mut Vec<Hash>, whole: Option<Hash>) -> Option<(Hash, Hash)> {
    if old == size {
        let root = whole.or_else(|| proof.pop())?;
        return Some((root, root));
    }
    let left = size.next_power_of_two() / 2;
    let last = proof.pop()?;
    let both = |left: &Hash, right: &Hash| sha256(&[&[1], left, right]);
    if old <= left {
        let (first, second) = roots(old, left, proof, whole)?;
        return Some((first, both(&second, &last)));
    }
    let (first, second) = roots(old - left, size - left, proof, None)?;
    Some((both(&last, &first), both(&last, &second)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(number: u64) -> Hash {
        sha256(&[&[0], &number.to_be_bytes()])
    }

    /// Returns the root of `count` entries from `from` on (RFC 6962, 2.1).
    fn root(from: u64, count: u64) -> Hash {
        match count {
            0 => sha256(&[]),
            1 => leaf(from),
            _ => {
                let left = count.next_power_of_two() / 2;
                sha256(&[&[1], &root(from, left), &root(from + left, count - left)])
            }
        }
    }

    /// Returns the consistency proof (RFC 6962, 2.1.2).
    fn proof(from: u64, old: u64, size: u64, is_whole: bool) -> Vec<Hash> {
        if old == size {
            return if is_whole { Vec::new() } else { vec![root(from, size)] };
        }
        let left = size.next_power_of_two() / 2;
        let (mut found, other) = match old <= left {
            true => (proof(from, old, left, is_whole), root(from + left, size - left)),
            false => (proof(from + left, old - left, size - left, false), root(from, left)),
        };
        found.push(other);
        found
    }

    #[test]
    fn a_log_extends_what_it_begins_with_and_nothing_else() {
        for size in 0..40 {
            for old in 0..=size {
                let found = if old == 0 { Vec::new() } else { proof(0, old, size, true) };
                let (before, after) = ((old, root(0, old)), (size, root(0, size)));
                assert!(extends(before, after, found.clone()), "{old} of {size}");
                if old > 0 {
                    assert!(!extends((old, root(7, old)), after, found.clone()));
                    assert!(!extends(before, (size, root(7, size)), found.clone()));
                    let more = [found, vec![leaf(0)]].concat();
                    assert!(!extends(before, after, more), "{old} of {size}");
                }
            }
        }
    }
}
