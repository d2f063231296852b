//! Random bytes for keys, salts and identities.

use std::io;

use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};

/// Fills `bytes` with unpredictable random numbers.
///
/// # Errors
///
/// The operating system gives no random numbers.
pub fn fill(bytes: &mut [u8]) -> io::Result<()> {
    let filled = SystemRandom::new().fill(bytes);
    filled.map_err(|_| io::Error::other("the operating system gives no random numbers"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_fills_are_not_alike() {
        let (mut one, mut other) = ([0; 16], [0; 16]);
        fill(&mut one).unwrap();
        fill(&mut other).unwrap();
        assert_ne!(one, other);
        assert_ne!(one, [0; 16]);
    }
}
