//! The identity of a queue: a random number that is made with the queue and kept with it. Names in
//! a consumer's store (such as the `_id` of a document) are made of the identity and a position.
//! Such names differ from those of other queues, unless the directory was copied.

use std::{fmt, io};

use base::disk::Disk;
use base::{disk, random};

/// The file that holds the identity: 32 hexadecimal digits and a line break.
pub(crate) const FILE: &str = "identity";

pub(crate) const BYTES: u64 = TEXT as u64;

const TEXT: usize = 33;

/// The identity of a queue. A queue in memory gets a new one at each start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity(u128);

impl Identity {
    /// Makes a random identity.
    ///
    /// # Errors
    ///
    /// The operating system gives no random numbers.
    pub fn random() -> io::Result<Self> {
        let mut bytes = [0; 16];
        random::fill(&mut bytes)?;
        Ok(Self(u128::from_le_bytes(bytes)))
    }

    /// Reads the identity of a queue's directory, or makes one. An identity that can't be stored is
    /// valid only for this run: a full disk must not keep the relay from delivering its events.
    ///
    /// # Errors
    ///
    /// The operating system gives no random numbers.
    pub fn of(disk: &dyn Disk) -> io::Result<Self> {
        match Self::read(disk) {
            Ok(Some(identity)) => return Ok(identity),
            Ok(None) => {}
            Err(error) => tracing::warn!(
                %error,
                "cannot read the file `identity` in queue.directory: a new one is made, and \
                 consumers may store events twice that are sent again"
            ),
        }
        let identity = Self::random()?;
        if let Err(error) = disk::replace(disk, FILE, format!("{identity}\n").as_bytes()) {
            tracing::warn!(
                %error,
                "cannot write the file `identity` in queue.directory: consumers may store events \
                 twice that are sent again after the next start"
            );
        }
        Ok(identity)
    }

    /// Reads the file. `None` if it does not exist.
    ///
    /// # Errors
    ///
    /// The file can't be read, or is not an identity ([`io::ErrorKind::Other`]).
    pub fn read(disk: &dyn Disk) -> io::Result<Option<Self>> {
        let Some(file) = disk::open_if_there(disk, FILE)? else { return Ok(None) };
        let mut text = [0; TEXT];
        let size = file.read_at(&mut text, 0)?;
        let identity = Self::parse(text.get(..size).unwrap_or_default());
        identity.map(Some).ok_or_else(|| io::Error::other("it is damaged"))
    }

    fn parse(text: &[u8]) -> Option<Self> {
        let digits = std::str::from_utf8(text).ok()?.strip_suffix('\n')?;
        let is_hex = digits.len() == 32 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_hex.then(|| u128::from_str_radix(digits, 16).ok()).flatten().map(Self)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use testing::simulated_disk::SimulatedDisk;

    #[test]
    fn a_directory_keeps_its_identity_and_a_damaged_one_is_replaced() {
        let disk = SimulatedDisk::new(1);
        let first = Identity::of(&disk).expect("no fault is set");
        assert_eq!(Identity::of(&disk).expect("no fault is set"), first);
        assert_ne!(Identity::of(&SimulatedDisk::new(1)).expect("no fault is set"), first);
        disk.flip(FILE, 3, 0x80);
        let second = Identity::of(&disk).expect("no fault is set");
        assert_ne!(second, first);
        assert_eq!(Identity::of(&disk).expect("no fault is set"), second);
    }

    #[test]
    fn an_identity_is_32_digits() {
        assert_eq!(Identity(0xAB).to_string(), format!("{}ab", "0".repeat(30)));
        for wrong in ["", "ab\n", &format!("+{}\n", "1".repeat(31)), &"1".repeat(32)] {
            assert_eq!(Identity::parse(wrong.as_bytes()), None, "{wrong}");
        }
    }
}
