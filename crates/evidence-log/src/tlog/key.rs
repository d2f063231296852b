//! The keys of logs and witnesses.
//!
//! The text of a verifier key is that of C2SP `signed-note`. The text of a signing key is that of
//! Go's `golang.org/x/mod/sumdb/note`, which other tools of transparency logs read too.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::hkdf::{HKDF_SHA256, Prk, Salt};
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::malformed::Malformed;
use super::merkle::Hash;
use base::random;

const PRIVATE: &str = "PRIVATE+KEY+";

/// The number of bytes of an Ed25519 key, public or private (RFC 8032 §5.1.5).
const KEY_BYTES: usize = 32;

/// The HKDF salt (RFC 5869) for secrets that are derived from the seed of a signing key.
const DERIVE_SALT: &[u8] = b"kube-audit-forwarder";

/// The maximum number of bytes of a key's name. The specification has no limit.
const NAME_BYTES_MAX: usize = 255;

/// Checks the name of a key or of a log: 1 to 255 bytes without white space, control characters and
/// `+`.
///
/// # Errors
///
/// The text can't be a name.
pub fn check_name(name: &str) -> Result<(), Malformed> {
    let is_wrong = |c: char| c.is_whitespace() || c.is_control() || c == '+';
    if name.is_empty() || name.len() > NAME_BYTES_MAX || name.contains(is_wrong) {
        return Err(Malformed(
            "a name has 1 to 255 bytes without blanks, control characters and +",
        ));
    }
    Ok(())
}

/// The purpose of a key. The number is the signature's type in C2SP `signed-note`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A key that signs the texts of notes: the key of a log.
    Note = 0x01,
    /// A key that signs checkpoints, each together with the time of the signature
    /// (`tlog-cosignature`): the key of a witness.
    Cosignature = 0x04,
}

impl Kind {
    fn of(byte: u8) -> Option<Self> {
        [Self::Note, Self::Cosignature].into_iter().find(|kind| *kind as u8 == byte)
    }
}

fn key_id(name: &str, kind: Kind, public: &[u8; KEY_BYTES]) -> u32 {
    let Hash([a, b, c, d, ..]) = Hash::of(&[name.as_bytes(), b"\n", &[kind as u8], public]);
    u32::from_be_bytes([a, b, c, d])
}

/// Splits `NAME+ID+BASE64`. Only the base64 may contain further plus signs.
fn parts(text: &str) -> Option<(&str, &str, Vec<u8>)> {
    let (name, rest) = text.split_once('+')?;
    let (id, bytes) = rest.split_once('+')?;
    Some((name, id, STANDARD.decode(bytes).ok()?))
}

/// A public key with its name, shown as `NAME+ID+BASE64`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VerifierKey {
    name: String,
    id: u32,
    kind: Kind,
    public: [u8; KEY_BYTES],
}

impl VerifierKey {
    fn new(name: &str, kind: Kind, public: [u8; KEY_BYTES]) -> Result<Self, Malformed> {
        check_name(name)?;
        Ok(Self { name: name.to_owned(), id: key_id(name, kind, &public), kind, public })
    }

    /// Returns the name of the key.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the number that identifies the key among the signatures of a note.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Returns the purpose of the key.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Returns `true` if the signature is this key's signature of the message.
    pub fn has_signed(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, self.public).verify(message, signature).is_ok()
    }
}

impl FromStr for VerifierKey {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let wrong = Malformed("a verifier key is NAME+ID+KEY, as `evidence keygen` prints it");
        let (name, id, bytes) = parts(text).ok_or(wrong)?;
        let (kind, public) = bytes.split_first().ok_or(wrong)?;
        let public = public.try_into().map_err(|_| Malformed("the key does not have 32 bytes"))?;
        let kind = Kind::of(*kind).ok_or(Malformed(
            "the key is neither one for Ed25519 notes (0x01) nor for cosignatures (0x04)",
        ))?;
        let made = Self::new(name, kind, public)?;
        if format!("{:08x}", made.id) != id {
            return Err(Malformed("the number in the verifier key does not fit its name and key"));
        }
        Ok(made)
    }
}

impl fmt::Display for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = [&[self.kind as u8], self.public.as_slice()].concat();
        write!(f, "{}+{:08x}+{}", self.name, self.id, STANDARD.encode(key))
    }
}

/// A private key with its name. `Debug` does not show the key.
pub struct SigningKey {
    verifier: VerifierKey,
    pair: Ed25519KeyPair,
    derived: Prk,
}

impl SigningKey {
    /// Makes a random key. Also returns its text, which [`SigningKey::parse`] reads.
    ///
    /// # Errors
    ///
    /// The text can't be a name, or the operating system has no random numbers.
    pub fn generate(name: &str) -> Result<(Self, String), Malformed> {
        check_name(name)?;
        let mut seed = [0; KEY_BYTES];
        random::fill(&mut seed)
            .map_err(|_| Malformed("the operating system gives no random numbers"))?;
        let key = Self::of_seed(name, Kind::Note, &seed)?;
        let secret = [&[Kind::Note as u8], seed.as_slice()].concat();
        let text = format!("{PRIVATE}{name}+{:08x}+{}\n", key.verifier.id, STANDARD.encode(secret));
        Ok((key, text))
    }

    /// Makes the key of a seed (RFC 8032 §5.1.5).
    ///
    /// # Errors
    ///
    /// The text can't be a name.
    pub fn of_seed(name: &str, kind: Kind, seed: &[u8; KEY_BYTES]) -> Result<Self, Malformed> {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed);
        let pair = pair.map_err(|_| Malformed("the key is not an Ed25519 key"))?;
        let public = pair.public_key().as_ref().try_into();
        let public = public.map_err(|_| Malformed("the key is not an Ed25519 key"))?;
        let derived = Salt::new(HKDF_SHA256, DERIVE_SALT).extract(seed);
        Ok(Self { verifier: VerifierKey::new(name, kind, public)?, pair, derived })
    }

    /// Reads the text of a key for notes. White space around the text is allowed.
    ///
    /// # Errors
    ///
    /// The text is not such a key. The error does not contain the text, which is secret.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        let wrong = Malformed("it is not a signing key as `evidence keygen` writes it");
        let key = text.trim().strip_prefix(PRIVATE).ok_or(wrong)?;
        let (name, id, secret) = parts(key).ok_or(wrong)?;
        let (kind, seed) = secret.split_first().ok_or(wrong)?;
        if *kind != Kind::Note as u8 {
            return Err(Malformed("the signing key is not one for Ed25519 notes (0x01)"));
        }
        let key = Self::of_seed(name, Kind::Note, seed.try_into().map_err(|_| wrong)?)?;
        if format!("{:08x}", key.verifier.id) != id {
            return Err(Malformed("the number in the signing key does not fit its name and key"));
        }
        Ok(key)
    }

    /// Returns the public key.
    pub fn verifier(&self) -> &VerifierKey {
        &self.verifier
    }

    /// Derives a secret of 32 bytes from the key's seed, by HKDF-SHA-256. `purpose` is the `info`
    /// of RFC 5869: each purpose has its own secret.
    ///
    /// # Panics
    ///
    /// Never: HKDF gives up to 255 times 32 bytes.
    pub fn derive(&self, purpose: &str) -> [u8; KEY_BYTES] {
        let mut secret = [0; KEY_BYTES];
        let purpose = [purpose.as_bytes()];
        let expanded = self.derived.expand(&purpose, HKDF_SHA256);
        let filled = expanded.and_then(|okm| okm.fill(&mut secret));
        filled.expect("HKDF gives as many bytes");
        secret
    }

    /// Returns the signature of a message: 64 bytes.
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.pair.sign(message).as_ref().to_vec()
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey").field("verifier", &self.verifier).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of C2SP `signed-note`.
    const EXAMPLE: &str = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k";

    #[test]
    fn the_key_of_the_specification_is_read_and_shown() {
        let key: VerifierKey = EXAMPLE.parse().unwrap();
        assert_eq!(
            (key.name(), key.id(), key.kind()),
            ("example.com/foo", 0x530d_903a, Kind::Note)
        );
        assert_eq!(key.to_string(), EXAMPLE);
    }

    #[test]
    fn a_text_that_is_no_key_is_refused() {
        for wrong in [
            "",
            "example.com/foo",
            "example.com/foo+530d903a",
            "example.com/foo+530d903a+",
            "example.com/foo+530d903a+AQ==",
            // Another number, name, type, digit, or form of the same digits.
            "example.com/foo+530d903b+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k",
            "example.com/fop+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k",
            "example.com/foo+530d903a+BOkyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k",
            "example.com/foo+530D903A+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k",
            "+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k",
            " example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k",
            "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k\n",
        ] {
            assert!(wrong.parse::<VerifierKey>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_new_key_is_read_again_and_signs_what_its_verifier_accepts() {
        let (key, text) = SigningKey::generate("example.org/prod-eu/relay-0").unwrap();
        let read = SigningKey::parse(&format!(" {text}\n")).unwrap();
        assert_eq!(read.verifier(), key.verifier());
        let verifier: VerifierKey = key.verifier().to_string().parse().unwrap();
        let signature = read.sign(b"a message");
        assert!(verifier.has_signed(b"a message", &signature));
        assert!(!verifier.has_signed(b"another", &signature));
        assert!(!verifier.has_signed(b"a message", &signature[1..]));
        let (other, _) = SigningKey::generate("example.org/prod-eu/relay-0").unwrap();
        assert!(!other.verifier().has_signed(b"a message", &signature));
        let secret = text.trim_end().splitn(5, '+').last().unwrap();
        assert!(!format!("{key:?}").contains(secret));
        for wrong in ["", secret, &text.replace('+', "-"), &text.replace("prod-eu", "prod-us")] {
            assert!(SigningKey::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_name_has_no_blanks_and_no_plus() {
        for good in ["a", "example.org/prod-eu/relay-0", "日本"] {
            assert_eq!(check_name(good), Ok(()), "{good}");
        }
        for wrong in ["", "a b", "a+b", "a\n", "a\u{a0}b", "a\u{7f}", &"a".repeat(256)] {
            assert!(check_name(wrong).is_err(), "{wrong}");
        }
    }
}
