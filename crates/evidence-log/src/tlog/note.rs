//! Signed notes (C2SP `signed-note`): a text with signatures.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::key::{Kind, SigningKey, VerifierKey, check_name};
use super::malformed::Malformed;

/// The maximum number of bytes of a note. A checkpoint with 16 signatures has about 3,000;
/// signatures of ML-DSA-44, which others may add, have 3,300 each.
pub const NOTE_BYTES_MAX: usize = 1 << 20;

/// The maximum number of signatures of a note. The specification asks for a limit of at least 16.
const SIGNATURES_MAX: usize = 100;

const DASH: &str = "\u{2014} ";

#[derive(Debug, Clone, PartialEq, Eq)]
struct Signature {
    name: String,
    id: u32,
    bytes: Vec<u8>,
}

/// A text with signatures, which are not checked before [`Note::check`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    text: String,
    signatures: Vec<Signature>,
}

/// The result of [`Note::check`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signed {
    /// The note has no signature of the key.
    Absent,
    /// Each signature of the key is valid. A witness has also signed this time, in seconds since
    /// 1970.
    Valid(Option<u64>),
    /// At least one signature with the key's name and number is wrong.
    Forged,
}

impl Note {
    /// Makes a note. The text must end with a line break, the only valid character below U+0020.
    ///
    /// # Errors
    ///
    /// The text has another form.
    pub fn new(text: &str) -> Result<Self, Malformed> {
        if !text.ends_with('\n') {
            return Err(Malformed("the text of the note does not end with a line break"));
        }
        if text.contains(|c: char| c < ' ' && c != '\n') {
            return Err(Malformed("the note has a control character"));
        }
        Ok(Self { text: text.to_owned(), signatures: Vec::new() })
    }

    /// Reads a note.
    ///
    /// # Errors
    ///
    /// The bytes are not a note, or the note is too long or has too many signatures.
    pub fn parse(note: &[u8]) -> Result<Self, Malformed> {
        if note.len() > NOTE_BYTES_MAX {
            return Err(Malformed("the note has more than 1 MiB"));
        }
        let note = std::str::from_utf8(note).map_err(|_| Malformed("the note is not UTF-8"))?;
        // The text ends at the last empty line.
        let missing = Malformed("the note has no signatures");
        let (text, signatures) = note.rsplit_once("\n\n").ok_or(missing)?;
        let mut read = Self::new(&format!("{text}\n"))?;
        let lines = signatures.strip_suffix('\n').ok_or(missing)?;
        for line in lines.split('\n') {
            if read.signatures.len() == SIGNATURES_MAX {
                return Err(Malformed("the note has more than 100 signatures"));
            }
            read.signatures.push(Signature::parse(line)?);
        }
        Ok(read)
    }

    /// Returns the text, which ends with a line break.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Adds the signature of a key for notes.
    pub fn sign(&mut self, key: &SigningKey) {
        self.add(key.verifier(), key.sign(self.text.as_bytes()));
    }

    fn add(&mut self, key: &VerifierKey, bytes: Vec<u8>) {
        self.signatures.push(Signature { name: key.name().to_owned(), id: key.id(), bytes });
    }

    /// Checks every signature of this key on the note.
    pub fn check(&self, key: &VerifierKey) -> Signed {
        let mut found = Signed::Absent;
        for signature in &self.signatures {
            if signature.name != key.name() || signature.id != key.id() {
                continue;
            }
            match signature.check(&self.text, key) {
                Some(time) => found = Signed::Valid(time),
                None => return Signed::Forged,
            }
        }
        found
    }

    /// Copies the valid signatures of these keys from `lines`, the body of a witness's response. A
    /// copied signature replaces those of the same key. Returns the number of copied signatures.
    ///
    /// # Errors
    ///
    /// A line is not a signature, or one of a known key is forged.
    pub fn take(&mut self, lines: &[u8], keys: &[VerifierKey]) -> Result<usize, Malformed> {
        let whole = [self.text.as_bytes(), b"\n", lines].concat();
        let answered = Self::parse(&whole)?;
        if answered.text != self.text {
            return Err(Malformed("the answer is more than lines of signatures"));
        }
        let mut taken = 0;
        for key in keys {
            match answered.check(key) {
                Signed::Absent => continue,
                Signed::Forged => return Err(Malformed("a signature is not that of its key")),
                Signed::Valid(_) => {}
            }
            let is_of_key = |it: &&Signature| it.name == key.name() && it.id == key.id();
            if let Some(signature) = answered.signatures.iter().find(is_of_key) {
                self.signatures.retain(|it| !is_of_key(&it));
                self.signatures.push(signature.clone());
                taken += 1;
            }
        }
        Ok(taken)
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.text)?;
        for Signature { name, id, bytes } in &self.signatures {
            let signature = STANDARD.encode([id.to_be_bytes().as_slice(), bytes].concat());
            writeln!(f, "{DASH}{name} {signature}")?;
        }
        Ok(())
    }
}

impl Signature {
    fn parse(line: &str) -> Result<Self, Malformed> {
        let wrong = Malformed("a line after the text of the note is not a signature");
        let (name, encoded) =
            line.strip_prefix(DASH).and_then(|rest| rest.split_once(' ')).ok_or(wrong)?;
        check_name(name).map_err(|_| wrong)?;
        let bytes = STANDARD.decode(encoded).map_err(|_| wrong)?;
        let (id, signature) = bytes.split_first_chunk().ok_or(wrong)?;
        if signature.is_empty() {
            return Err(wrong);
        }
        let (name, bytes) = (name.to_owned(), signature.to_vec());
        Ok(Self { name, id: u32::from_be_bytes(*id), bytes })
    }

    /// Returns `None` if the signature is wrong, and otherwise the time that a witness signed, if
    /// any.
    fn check(&self, text: &str, key: &VerifierKey) -> Option<Option<u64>> {
        match key.kind() {
            Kind::Note => key.has_signed(text.as_bytes(), &self.bytes).then_some(None),
            Kind::Cosignature => {
                let (time, signature) = self.bytes.split_first_chunk()?;
                let time = u64::from_be_bytes(*time);
                let is_time = time != 0 && i64::try_from(time).is_ok();
                let is_signed = key.has_signed(cosigned(text, time).as_bytes(), signature);
                (is_time && is_signed).then_some(Some(time))
            }
        }
    }
}

fn cosigned(text: &str, time: u64) -> String {
    format!("cosignature/v1\ntime {time}\n{text}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of C2SP `signed-note`.
    const KEY: &str = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k";
    const EXAMPLE: &str = "This is an example message.\n\n\u{2014} example.com/foo Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n";

    #[test]
    fn the_note_of_the_specification_is_valid() {
        let note = Note::parse(EXAMPLE.as_bytes()).unwrap();
        assert_eq!(note.text(), "This is an example message.\n");
        assert_eq!(note.check(&KEY.parse().unwrap()), Signed::Valid(None));
        assert_eq!(note.to_string(), EXAMPLE);
        let changed = Note::parse(EXAMPLE.replace("This", "That").as_bytes()).unwrap();
        assert_eq!(changed.check(&KEY.parse().unwrap()), Signed::Forged);
        let (other, _) = SigningKey::generate("example.com/foo").unwrap();
        assert_eq!(note.check(other.verifier()), Signed::Absent);
    }

    #[test]
    fn an_unknown_signature_is_ignored_and_a_second_forged_one_is_not() {
        let (key, _) = SigningKey::generate("log").unwrap();
        let (other, _) = SigningKey::generate("other").unwrap();
        let mut note = Note::new("text\n\nwith an empty line\n").unwrap();
        note.sign(&other);
        note.sign(&key);
        let read = Note::parse(note.to_string().as_bytes()).unwrap();
        assert_eq!(read, note);
        assert_eq!(read.check(key.verifier()), Signed::Valid(None));
        note.add(key.verifier(), vec![1; 64]);
        assert_eq!(note.check(key.verifier()), Signed::Forged);
        assert_eq!(note.check(other.verifier()), Signed::Valid(None));
    }

    /// Adds the cosignature of a witness at this time, in seconds since 1970.
    fn cosign(note: &mut Note, key: &SigningKey, time: u64) {
        let signature = key.sign(cosigned(&note.text, time).as_bytes());
        note.add(key.verifier(), [time.to_be_bytes().as_slice(), &signature].concat());
    }

    #[test]
    fn a_cosignature_is_valid_with_its_time_only() {
        let key = SigningKey::of_seed("witness", Kind::Cosignature, &[7; 32]).unwrap();
        let mut note = Note::new("log\n1\nx\n").unwrap();
        cosign(&mut note, &key, 1_679_315_147);
        assert_eq!(note.check(key.verifier()), Signed::Valid(Some(1_679_315_147)));
        let signed = note.to_string();
        // The time is the first part of the signature.
        note.signatures[0].bytes[7] ^= 1;
        assert_eq!(note.check(key.verifier()), Signed::Forged);
        // A key of a log with the same name and bytes is another key.
        let log = SigningKey::of_seed("witness", Kind::Note, &[7; 32]).unwrap();
        assert_eq!(Note::parse(signed.as_bytes()).unwrap().check(log.verifier()), Signed::Absent);
    }

    #[test]
    fn lines_of_a_witness_are_taken_over_if_they_are_of_known_keys() {
        let key = |name: &str| SigningKey::of_seed(name, Kind::Cosignature, &[7; 32]).unwrap();
        let (known, unknown) = (key("known"), key("unknown"));
        let note = Note::new("log\n1\nx\n").unwrap();
        let lines = |keys: &[&SigningKey], time: u64| {
            let mut cosigned = note.clone();
            keys.iter().for_each(|key| cosign(&mut cosigned, key, time));
            cosigned.to_string().split_once("\n\n").unwrap().1.to_owned()
        };
        let keys = [known.verifier().clone()];
        let mut held = note.clone();
        for time in [5, 6] {
            assert_eq!(held.take(lines(&[&unknown, &known], time).as_bytes(), &keys), Ok(1));
            assert_eq!(held.check(known.verifier()), Signed::Valid(Some(time)));
            assert_eq!(held.signatures.len(), 1);
        }
        assert_eq!(held.take(lines(&[&unknown], 7).as_bytes(), &keys), Ok(0));
        assert_eq!(held.check(known.verifier()), Signed::Valid(Some(6)));
        let forged = lines(&[&known], 8).replace("known ", "known A");
        for wrong in ["", "\n", "no\n", "more\n\n\u{2014} a AAAAAAA=\n", &forged] {
            assert!(held.take(wrong.as_bytes(), &keys).is_err(), "{wrong}");
        }
    }

    #[test]
    fn bytes_that_are_no_note_are_refused() {
        for wrong in [
            "",
            "\n",
            "\n\n",
            "text\n",
            "text\n\n",
            "text\n\n\n",
            EXAMPLE.trim_end(),
            &format!("{EXAMPLE}\n"),
            &EXAMPLE.replace("example message", "example\tmessage"),
            &EXAMPLE.replace('\u{2014}', "-"),
            &EXAMPLE.replace("com/foo ", "com/foo  "),
            &EXAMPLE.replace("com/foo ", "com/f+o "),
            &EXAMPLE.replace("aQM=", "aQM"),
            "text\n\n\u{2014} name AAAAAA==\n",
            &format!("text\n\n{}", "\u{2014} name AAAAAAA=\n".repeat(101)),
        ] {
            assert!(Note::parse(wrong.as_bytes()).is_err(), "{wrong}");
        }
        assert!(Note::parse(b"\xFF\n\n\xE2\x80\x94 name AAAAAAA=\n").is_err());
        assert!(Note::parse("text\n\n\u{2014} name AAAAAAA=\n".as_bytes()).is_ok());
    }
}
