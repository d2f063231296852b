//! Reads the bytes as each file of an evidence log: none may panic, and what is read and written
//! again must be the same.
//!
//! Run it with `cargo +nightly fuzz run evidence`.

#![no_main]

use evidence_log::entry::Entry;
use evidence_log::lines;
use evidence_log::tlog::checkpoint::Checkpoint;
use evidence_log::tlog::checkpoint::Signed;
use evidence_log::tlog::key::SigningKey;
use evidence_log::tlog::key::VerifierKey;
use evidence_log::tlog::note::Note;
use evidence_log::tlog::proof::Proof;
use evidence_log::tlog::tile;
use evidence_log::tlog::tile::Tile;
use verify::Request;
use verify::proof;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(note) = Note::parse(bytes) {
        assert_eq!(note.to_string().as_bytes(), bytes);
    }
    if let Ok(signed) = Signed::parse(bytes) {
        assert!(signed.note.text().starts_with(&signed.checkpoint.to_string()));
    }
    if let Ok(entry) = Entry::parse(bytes) {
        assert_eq!(Entry::parse(&entry.bytes()).expect("its own bytes"), entry);
    }
    let whole = lines::whole_bytes(bytes);
    assert!(whole <= bytes.len() as u64);
    assert!(lines::Records::of(bytes).all(|(offset, _)| offset <= whole));
    for width in [1, 2, 3, 256] {
        drop((tile::hashes(bytes, width), tile::entries(bytes, width)));
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Some(tile) = Tile::parse(text) {
        assert_eq!(tile.path(), text);
    }
    if let Ok(key) = text.parse::<VerifierKey>() {
        assert_eq!(key.to_string(), text);
    }
    if let Ok(proof) = Proof::parse(text) {
        assert_eq!(proof.to_string(), text);
        let _ = proof.proves(b"");
    }
    drop(proof::check(text, &Request::default()));
    drop((Checkpoint::of_text(text), SigningKey::parse(text)));
});
