//! Proofs of an entry (C2SP `tlog-proof`), for somebody who has neither the log nor its URL.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::checkpoint::{Signed, number};
use super::malformed::Malformed;
use super::merkle::{Hash, PROOF_MAX, includes};

const BEGINNING: &str = "c2sp.org/tlog-proof@v1";

/// A proof that an entry is in a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// Further bytes in the proof's text, such as the entry. The proof does not prove them.
    pub extra: Option<Vec<u8>>,
    /// The index of the entry in the log.
    pub index: u64,
    /// The Merkle path of the entry.
    pub path: Vec<Hash>,
    /// The checkpoint that covers the entry.
    pub signed: Signed,
}

impl Proof {
    /// Reads a proof. No signature and no hash is checked.
    ///
    /// # Errors
    ///
    /// The text is not a proof.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        let (head, note) =
            text.split_once("\n\n").ok_or(Malformed("the proof has no checkpoint"))?;
        let mut lines = head.split('\n').peekable();
        if lines.next() != Some(BEGINNING) {
            return Err(Malformed("the proof does not begin with c2sp.org/tlog-proof@v1"));
        }
        let extra = lines.peek().and_then(|line| line.strip_prefix("extra "));
        let extra = extra.map(|extra| STANDARD.decode(extra)).transpose();
        let extra =
            extra.map_err(|_| Malformed("the proof has an extra line that is not base64"))?;
        if extra.is_some() {
            lines.next();
        }
        let index = lines.next().and_then(|line| number(line.strip_prefix("index ")?));
        let index = index.ok_or(Malformed("the proof has no index"))?;
        let path: Option<Vec<_>> = lines.map(Hash::parse).collect();
        let path = path.filter(|path| path.len() <= PROOF_MAX);
        let path =
            path.ok_or(Malformed("the proof has lines that are not hashes, or too many of them"))?;
        Ok(Self { extra, index, path, signed: Signed::parse(note.as_bytes())? })
    }

    /// Returns `true` if the entry is in the log. The checkpoint's signatures are not checked.
    pub fn proves(&self, entry: &[u8]) -> bool {
        let head = self.signed.checkpoint.head;
        includes(Hash::of_leaf(entry), self.index, head.size, &self.path, head.root)
    }
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{BEGINNING}")?;
        if let Some(extra) = &self.extra {
            writeln!(f, "extra {}", STANDARD.encode(extra))?;
        }
        writeln!(f, "index {}", self.index)?;
        for hash in &self.path {
            writeln!(f, "{hash}")?;
        }
        write!(f, "\n{}", self.signed.note)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tlog::checkpoint::Checkpoint;
    use crate::tlog::key::SigningKey;
    use crate::tlog::merkle::{Head, inclusion, root};

    fn proof() -> Proof {
        let entries = [b"one".as_slice(), b"two", b"three"];
        let leaves = entries.map(Hash::of_leaf);
        let (key, _) = SigningKey::generate("log").unwrap();
        let head = Head { size: 3, root: root(leaves) };
        let checkpoint = Checkpoint { origin: "log".to_owned(), head };
        let note = checkpoint.sign([&key]).unwrap();
        let path = inclusion(leaves.as_slice(), 1, 3).unwrap();
        Proof { extra: Some(b"two".to_vec()), index: 1, path, signed: Signed { checkpoint, note } }
    }

    #[test]
    fn a_proof_is_read_again_and_proves_its_entry() {
        let proof = proof();
        let read = Proof::parse(&proof.to_string()).unwrap();
        assert_eq!(read, proof);
        assert!(read.proves(b"two") && !read.proves(b"one"));
        let short = Proof { extra: None, ..proof };
        assert_eq!(Proof::parse(&short.to_string()).unwrap(), short);
    }

    #[test]
    fn a_text_that_is_no_proof_is_refused() {
        let text = proof().to_string();
        for wrong in [
            String::new(),
            text.replace("@v1", "@v2"),
            text.replace("extra ", "extra"),
            text.replace("extra dHdv", "extra dHd"),
            text.replace("index 1", "index 01"),
            text.replace("index 1\n", ""),
            text.replace("index 1\n", "index 1\nno hash\n"),
            text.replace("\n\n", "\n"),
            text.replace(
                "index 1\n",
                &format!("index 1\n{}", format!("{}\n", Hash([0; 32])).repeat(64)),
            ),
        ] {
            assert!(Proof::parse(&wrong).is_err(), "{wrong}");
        }
    }
}
