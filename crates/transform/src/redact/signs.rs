//! Separates the events in which a redaction may find something from the many others, in one pass
//! over the bytes of each event.
//!
//! A redaction looks for letters that are written as escapes, JSON Web Tokens, and keys that occur
//! twice. A search for each of them would read the event three or four times. This module looks for
//! a *sign* of each instead: two or three bytes that must be there if the thing itself is. An event
//! without a sign certainly lacks the thing. The few events with a sign are then searched for the
//! thing itself.

#[cfg(target_arch = "x86_64")]
mod avx2;

/// The signs that were found in an event. A field that is `false` is certain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Signs {
    /// An escape with a code from `\u0040` to `\u00ff` may be there. Its sign is a backslash, a
    /// `u`, and at the fourth place after the backslash a byte above `3`.
    pub(super) escapes: bool,
    /// `eyJ`, the beginning of a JSON Web Token, may be there. Its sign is `yJ`.
    pub(super) tokens: bool,
    /// The key `objectRef` or `requestURI` may be in the bytes after the known ones, in plain
    /// letters. Its sign is an `R`, with an `I` after it or an `f` at the second place after it.
    pub(super) keys: bool,
}

/// The number of places at which signs are looked for in one step.
const STEP: usize = 32;

/// The number of bytes of the longest sign without its first byte.
const BEHIND: usize = 4;

impl Signs {
    /// The signs of a text that was not searched.
    const UNKNOWN: Self = Self { escapes: true, tokens: true, keys: true };

    /// Looks for signs in an event, which must be a JSON object without white space after it. The
    /// first `known` bytes are not searched for keys.
    pub(super) fn of(event: &[u8], known: usize) -> Self {
        #[cfg(target_arch = "x86_64")]
        if let Some(signs) = avx2::signs(event, known) {
            return signs;
        }
        Self::portable(event, known)
    }

    /// Does what [`Signs::of`] does. Inlined into a function for AVX2, it is compiled for AVX2.
    #[inline(always)]
    fn portable(event: &[u8], known: usize) -> Self {
        // A function that is passed on, as in `map`, would be compiled without AVX2.
        let Some(rest) = event.get(known..) else { return Self::UNKNOWN };
        let behind = Self::in_text(rest);
        if known == 0 {
            return behind;
        }
        // A sign may begin in the known bytes and end after them.
        let Some(text) = event.get(..known + BEHIND) else { return Self::UNKNOWN };
        let before = Self::in_text(text);
        Self { keys: behind.keys, ..before.or(behind) }
    }

    #[inline(always)]
    fn or(self, other: Self) -> Self {
        Self {
            escapes: self.escapes | other.escapes,
            tokens: self.tokens | other.tokens,
            keys: self.keys | other.keys,
        }
    }

    /// Looks for the signs that begin in the text, but not in its last four bytes. At the end of an
    /// event, this misses nothing: at least five bytes follow the first byte of a sign. They are
    /// the rest of an escape, of a token, or of a key with its value, and the brace that closes the
    /// event, as in `RI":1}`.
    #[inline(always)]
    fn in_text(text: &[u8]) -> Self {
        let places = text.len().saturating_sub(BEHIND);
        let most = text.get(..places / STEP * STEP + BEHIND);
        // The last step may repeat a part of the one before it, so that no single bytes are left.
        let last = text.len().checked_sub(STEP + BEHIND).and_then(|start| text.get(start..));
        match (most, last) {
            (Some(most), Some(last)) => Self::in_steps(most).or(Self::in_steps(last)),
            _ => Self::UNKNOWN,
        }
    }

    /// Does the work of [`Self::in_text`] for a text whose length is a multiple of [`STEP`] and
    /// four more. The loop has no branches, so the compiler uses instructions that compare many
    /// bytes at a time.
    #[inline(always)]
    fn in_steps(text: &[u8]) -> Self {
        let from = |place| text.get(place..).unwrap_or_default();
        let places = text.iter().zip(from(1)).zip(from(2)).zip(from(BEHIND));
        let (mut escapes, mut tokens, mut keys) = (false, false, false);
        for (((first, second), third), fifth) in places {
            escapes |= (*first == b'\\') & (*second == b'u') & (*fifth > b'3');
            tokens |= (*first == b'y') & (*second == b'J');
            keys |= (*first == b'R') & ((*second == b'I') | (*third == b'f'));
        }
        Self { escapes, tokens, keys }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use testing::{Failing, seeds};

    /// Looks for the signs that begin in the text, but not in its last four bytes, byte by byte.
    fn slowly(text: &[u8]) -> Signs {
        let any = |is_sign: fn(&[u8]) -> bool| text.windows(BEHIND + 1).any(is_sign);
        Signs {
            escapes: any(|at| at.starts_with(b"\\u") && at[4] > b'3'),
            tokens: any(|at| at.starts_with(b"yJ")),
            keys: any(|at| at[0] == b'R' && (at[1] == b'I' || at[2] == b'f')),
        }
    }

    #[test]
    fn every_sign_is_found_wherever_it_begins() {
        const SIGNS: [&str; 9] =
            ["\\u0041", "\\u003f", "\\u00ff", "\\n004", "yJ", "RI", "R.f", "Rf", "y.J"];
        for seed in seeds(20_000) {
            let _failing = Failing(seed);
            let rng = &mut fastrand::Rng::with_seed(seed);
            let mut text = vec![b'.'; rng.usize(..200)];
            for _ in 0..rng.usize(..3) {
                let sign = SIGNS[rng.usize(..SIGNS.len())].as_bytes();
                let at = rng.usize(..=text.len());
                text.splice(at..(at + sign.len()).min(text.len()), sign.iter().copied());
            }
            let known = rng.usize(..=text.len());
            let portable = Signs::portable(&text, known);
            assert_eq!(Signs::of(&text, known), portable);
            let is_long = |length| length >= STEP + BEHIND;
            let rest = slowly(&text[known..]);
            let expected = match (is_long(text.len() - known), known) {
                (false, _) => continue,
                (true, 0) => rest,
                (true, _) if is_long(known + BEHIND) => Signs { keys: rest.keys, ..slowly(&text) },
                // The known bytes are too few for a step.
                (true, _) => Signs { keys: rest.keys, ..Signs::UNKNOWN },
            };
            assert_eq!(portable, expected, "{known}: {}", text.escape_ascii());
        }
    }

    #[test]
    fn a_short_text_may_have_every_sign() {
        assert_eq!(Signs::of(b"{}", 0), Signs::UNKNOWN);
        assert_eq!(Signs::of(b"", 0), Signs::UNKNOWN);
        assert_eq!(Signs::of(b"{}", 1), Signs::UNKNOWN);
    }
}
