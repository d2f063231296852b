//! SHA-256, also of many messages at once.

use ring::digest::SHA256;
use ring::digest::digest;

#[cfg(target_arch = "x86_64")]
mod lanes;

#[cfg(target_arch = "x86_64")]
pub use lanes::Isa;
#[cfg(target_arch = "x86_64")]
pub use lanes::each_by;

/// The number of bytes of a hash.
pub const BYTES: usize = 32;

/// Returns the hash of each message, in the order of the messages. It hashes several messages at
/// once if the CPU is faster with that.
#[must_use]
pub fn each<M: AsRef<[u8]>>(messages: &[M]) -> Vec<[u8; BYTES]> {
    #[cfg(target_arch = "x86_64")]
    if let Some(isa) = Isa::best() {
        return each_by(isa, messages);
    }
    each_alone(messages)
}

/// Returns the hash of each message, as [`each`] does, one after the other.
#[must_use]
pub fn each_alone<M: AsRef<[u8]>>(messages: &[M]) -> Vec<[u8; BYTES]> {
    messages.iter().map(|message| alone(message.as_ref())).collect()
}

/// Returns the hash of one message.
fn alone(message: &[u8]) -> [u8; BYTES] {
    let mut hash = [0; BYTES];
    hash.copy_from_slice(digest(&SHA256, message).as_ref());
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Vectors of FIPS 180-4: the examples of NIST with one block, with two and with a million
    /// bytes, and the empty message of SHA256ShortMsg.
    #[test]
    fn hashes_are_those_of_nist() {
        let million = vec![b'a'; 1_000_000];
        let two = b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq";
        let vectors: [(&[u8], &str); 4] = [
            (b"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
            (b"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
            (two, "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"),
            (&million, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"),
        ];
        // There are so many messages that those of each length are hashed together.
        let messages: Vec<_> = vectors.iter().cycle().take(200).map(|(text, _)| *text).collect();
        let mut found = vec![each(&messages), each_alone(&messages)];
        #[cfg(target_arch = "x86_64")]
        found.extend(Isa::ALL.map(|isa| each_by(isa, &messages)));
        for hashes in found {
            assert_eq!(hashes.len(), messages.len());
            for (hash, (_, expected)) in hashes.iter().zip(vectors.iter().cycle()) {
                let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
                assert_eq!(hash, *expected);
            }
        }
    }
}
