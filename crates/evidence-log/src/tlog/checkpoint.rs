//! Checkpoints (C2SP `tlog-checkpoint`): the size and the root of a log, in a signed note.

use std::fmt;

use super::key::{SigningKey, check_name};
use super::malformed::Malformed;
use super::merkle::{Hash, Head};
use super::note::Note;

/// The text of a checkpoint. `Display` writes the text of its note.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// The name of the log.
    pub origin: String,
    /// The size and the root of the log.
    pub head: Head,
}

impl Checkpoint {
    /// Reads the text of a note. Further lines, which others may add, are not kept.
    ///
    /// # Errors
    ///
    /// The text has another form.
    pub fn of_text(text: &str) -> Result<Self, Malformed> {
        let mut lines = text.strip_suffix('\n').unwrap_or(text).split('\n');
        let origin = lines.next().unwrap_or_default();
        check_name(origin).map_err(|_| Malformed("the checkpoint has no origin"))?;
        let size = lines.next().and_then(number).ok_or(Malformed("the checkpoint has no size"))?;
        let root =
            lines.next().and_then(Hash::parse).ok_or(Malformed("the checkpoint has no root"))?;
        if lines.any(str::is_empty) {
            return Err(Malformed("the checkpoint has an empty line"));
        }
        if size == 0 && root != Hash::of_nothing() {
            return Err(Malformed(
                "the checkpoint has the size 0, and another root than that of an empty log",
            ));
        }
        Ok(Self { origin: origin.to_owned(), head: Head { size, root } })
    }

    /// Returns the checkpoint as a note with the signatures of these keys.
    ///
    /// # Errors
    ///
    /// The origin can't be in a note.
    pub fn sign<'a>(
        &self,
        keys: impl IntoIterator<Item = &'a SigningKey>,
    ) -> Result<Note, Malformed> {
        let mut note = Note::new(&self.to_string())?;
        keys.into_iter().for_each(|key| note.sign(key));
        Ok(note)
    }
}

impl fmt::Display for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n{}\n{}\n", self.origin, self.head.size, self.head.root)
    }
}

/// A checkpoint and the note in which it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// The checkpoint.
    pub checkpoint: Checkpoint,
    /// The note with its signatures, which are not checked yet.
    pub note: Note,
}

impl Signed {
    /// Reads a note whose text is a checkpoint. The signatures are not checked.
    ///
    /// # Errors
    ///
    /// The bytes are not a note, or its text is not a checkpoint.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let note = Note::parse(bytes)?;
        Ok(Self { checkpoint: Checkpoint::of_text(note.text())?, note })
    }
}

/// Reads a decimal number of at most 2^63 - 1, without a sign and without leading zeros.
pub(super) fn number(text: &str) -> Option<u64> {
    let number: u64 = text.parse().ok()?;
    (number.to_string() == text && i64::try_from(number).is_ok()).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_is_no_checkpoint_is_refused() {
        let root = Hash::of(&[b"x"]);
        for good in [
            format!("log\n7\n{root}\n"),
            format!("log\n7\n{root}\nan extension\n"),
            format!("log\n0\n{}\n", Hash::of_nothing()),
            format!("log\n{}\n{root}\n", i64::MAX),
        ] {
            assert!(Checkpoint::of_text(&good).is_ok(), "{good}");
        }
        for wrong in [
            String::new(),
            "log\n7\n".to_owned(),
            format!("\n7\n{root}\n"),
            format!("a log\n7\n{root}\n"),
            format!("log\n07\n{root}\n"),
            format!("log\n+7\n{root}\n"),
            format!("log\n-7\n{root}\n"),
            format!("log\n7 \n{root}\n"),
            format!("log\n0\n{root}\n"),
            format!("log\n9223372036854775808\n{root}\n"),
            format!("log\n7\n{root}=\n"),
            format!("log\n7\n{root}\n\nmore\n"),
        ] {
            assert!(Checkpoint::of_text(&wrong).is_err(), "{wrong}");
        }
    }
}
