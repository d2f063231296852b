//! The journal of the versions 0.1, as far as this version writes it: without entries.
//!
//! The versions 0.1 kept the entries that no checkpoint covered in `evidence/journal`. If there is
//! none, they say that somebody has removed it, and sign an entry that says so. So this version
//! leaves them an empty one for its newest checkpoint, and a rollback accuses nobody.
//!
//! The file is `\xFFKAFJRN`, the version 2, the size and the root of the checkpoint, and an
//! HMAC-SHA-256 with a key that is derived from the signing key.

use aws_lc_rs::hmac;

use crate::tlog::key::SigningKey;
use crate::tlog::merkle::{Hash, Head};

/// The beginning of the versions that keep their newest entries in a journal.
pub const VERSIONS: &str = "0.1.";

/// The magic bytes and the version. The next version promises a file `evidence-head` in a format
/// that this version does not write.
const MAGIC: [u8; 8] = *b"\xFFKAFJRN\x02";

/// The purpose for which the key is derived.
const PURPOSE: &str = "evidence journal 2";

/// The number of bytes of a journal without entries.
pub const EMPTY_BYTES: usize = 80;

/// Returns a journal without entries that continues the checkpoint with this head.
pub fn empty(key: &SigningKey, origin: &str, head: Head) -> Vec<u8> {
    let (size, origin_bytes) = (head.size.to_be_bytes(), (origin.len() as u64).to_be_bytes());
    let parts = [&MAGIC[..], &origin_bytes, origin.as_bytes(), &size, &head.root.0].concat();
    let key = hmac::Key::new(hmac::HMAC_SHA256, &key.derive(PURPOSE));
    [&MAGIC[..], &size, &head.root.0, hmac::sign(&key, &parts).as_ref()].concat()
}

/// Returns `true` if the journal has no entries, and the owner of this key has written it.
pub fn is_empty(key: &SigningKey, origin: &str, journal: &[u8]) -> bool {
    let head = || {
        let (size, rest) = journal.get(MAGIC.len()..)?.split_first_chunk()?;
        let (root, _) = rest.split_first_chunk()?;
        Some(Head { size: u64::from_be_bytes(*size), root: Hash(*root) })
    };
    head().is_some_and(|head| empty(key, origin, head) == journal)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tlog::key::Kind;

    /// The expected bytes were made with Python's `hmac`, and version 0.1 accepts such a file.
    #[test]
    fn it_is_as_version_0_1_reads_it() {
        let name = "example.org/log";
        let key = SigningKey::of_seed(name, Kind::Note, &[7; 32]).expect("a name");
        let journal = empty(&key, name, Head { size: 3, root: Hash([9; 32]) });
        assert_eq!(journal.len(), EMPTY_BYTES);
        let (begin, mac) = journal.split_at(48);
        assert_eq!(begin, [&b"\xFFKAFJRN\x02\0\0\0\0\0\0\0\x03"[..], &[9; 32]].concat());
        let expected = "228cec25eb647cc3704f4151c8f5163009f92b9b9ffe883bbe7aa614ee526d77";
        let mac: String = mac.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(mac, expected);
        assert!(is_empty(&key, name, &journal) && !is_empty(&key, "another", &journal));
        assert!((0..EMPTY_BYTES).all(|end| !is_empty(&key, name, &journal[..end])));
    }
}
