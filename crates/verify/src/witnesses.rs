//! Compares a log with what its witnesses have seen.
//!
//! A log that was set back to an older copy of itself has valid cosignatures: the old ones. Two
//! things reveal that: a newer checkpoint at the witness, and the age of the newest cosignature.

use super::log::Check;
use super::report::time;
use evidence_log::AHEAD_MAX;
use evidence_log::entry::now;
use evidence_log::reader::Log;
use evidence_log::tlog::checkpoint::Signed;
use evidence_log::tlog::key::VerifierKey;
use evidence_log::tlog::note::Signed as Signature;

impl Check<'_> {
    /// Compares the newest checkpoint of the witness at `url` with the log.
    pub(super) fn newest_of_witness(&mut self, url: &str, note: &[u8], log: &Log<'_>) {
        let name = format!("the newest checkpoint of the witness at {url}");
        let signed = match Signed::parse(note) {
            Ok(signed) => signed,
            Err(error) => return self.report.unchecked.push(format!("{name}: {error}")),
        };
        let (seen, own) = (&signed.checkpoint, &log.signed.checkpoint);
        if seen.origin != own.origin {
            return;
        }
        let is_cosigned =
            |key: &VerifierKey| matches!(signed.note.check(key), Signature::Valid(Some(_)));
        if !self.request.witnesses.iter().any(is_cosigned) {
            let text = format!("{name} has no valid cosignature of a witness that was named");
            return self.report.unchecked.push(text);
        }
        if seen.head.size > own.head.size && self.directory.is_some() {
            // The directory may be an older copy.
            let text = format!(
                "{name} covers {} entries, and the log has only {}: the log was set back, or this \
                 is a copy that was made before. Check a new copy, or the directory itself",
                seen.head.size, own.head.size
            );
            return self.report.unchecked.push(text);
        }
        self.checkpoint(&name, note, log);
    }

    /// Checks the cosignatures of the newest checkpoint. Returns `false` if one is wrong. A missing
    /// cosignature is judged later, by other cosignatures of the same witness.
    pub(crate) fn cosignatures(&mut self, own: &Signed) -> bool {
        let mut is_right = true;
        for key in &self.request.witnesses {
            let witness = key.name();
            match own.note.check(key) {
                Signature::Valid(Some(at)) => {
                    let at = time(at.saturating_mul(1000));
                    self.report.notes.push(format!("the witness {witness} has cosigned at {at}"));
                }
                Signature::Absent => {}
                Signature::Valid(None) | Signature::Forged => {
                    is_right = false;
                    self.report.fault(format_args!(
                        "checkpoint has no valid cosignature of the witness {witness}"
                    ));
                }
            }
        }
        is_right
    }

    /// Records which witnesses have cosigned a checkpoint that the log contains.
    pub(super) fn hear_witnesses(&mut self, signed: &Signed) {
        for key in &self.request.witnesses {
            if let Signature::Valid(Some(at)) = signed.note.check(key) {
                let newest = self.cosigned.entry(key.name().to_owned()).or_default();
                *newest = at.max(*newest);
            }
        }
    }

    /// Judges which checkpoints of the log each witness has cosigned, and when. `own` is the newest
    /// checkpoint of the log, which a witness may not have seen yet.
    pub(super) fn judge_witnesses(&mut self, own: &Signed) {
        let max_age = self.request.witness_max_age;
        for key in &self.request.witnesses {
            let witness = key.name();
            let is_absent = own.note.check(key) == Signature::Absent;
            let Some(at) = self.cosigned.get(witness) else {
                if is_absent {
                    // The witness may have been unreachable, which is not a sign of tampering.
                    self.report.unchecked.push(format!(
                        "checkpoint has no valid cosignature of the witness {witness}: has the \
                         witness seen another log, or was it away?"
                    ));
                }
                continue;
            };
            let newest = time(at.saturating_mul(1000));
            if *at > now() / 1000 + AHEAD_MAX {
                self.report.unchecked.push(format!(
                    "the newest cosignature of the witness {witness} is of {newest}, which is in the \
                     future by this machine's clock: its age proves nothing"
                ));
            }
            if is_absent {
                let text = format!(
                    "the witness {witness} has not cosigned the newest checkpoint of the log. It \
                     has cosigned an earlier one at {newest}"
                );
                let rows = match max_age {
                    Some(_) => &mut self.report.notes,
                    None => &mut self.report.unchecked,
                };
                rows.push(text);
            }
            let age = (now() / 1000).saturating_sub(*at);
            if let Some(max_age) = max_age.map(|it| it.as_secs()).filter(|max_age| age > *max_age) {
                self.report.unchecked.push(format!(
                    "the newest cosignature of the witness {witness} is of {newest}, {age} s ago, \
                     and --witness-max-age is {max_age} s: the log may have been set back since then"
                ));
            }
        }
    }
}
