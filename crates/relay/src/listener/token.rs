//! The bearer token that a listener or the admin address asks for.

use std::io;
use std::path::Path;

use subtle::ConstantTimeEq;

use config::read_token;

/// The bearer token that requests to a listener or to the admin address must carry.
pub struct Token(String);

impl Token {
    /// Reads the token from a file. White space around the token is ignored.
    ///
    /// # Errors
    ///
    /// The file cannot be read, is empty, or contains bytes that no header can carry.
    pub fn read(file: &Path) -> Result<Self, String> {
        read_token(file).map(Self).map_err(|error| unreadable(file, &error))
    }

    /// Returns `true` if `authorization`, the value of an `Authorization` header, contains this
    /// token (RFC 6750 §2.1). The word `Bearer` may be in upper or lower case (RFC 9110 §11.1), and
    /// white space around the token is ignored. The time of the comparison depends only on lengths.
    pub fn matches(&self, authorization: Option<&[u8]>) -> bool {
        let Some((scheme, given)) = authorization.and_then(|value| value.split_at_checked(7))
        else {
            return false;
        };
        scheme.eq_ignore_ascii_case(b"Bearer ")
            && bool::from(given.trim_ascii().ct_eq(self.0.as_bytes()))
    }

    /// Returns `true` if `other` is the same token. The time of the comparison depends only on
    /// lengths.
    pub fn is_same(&self, other: &Self) -> bool {
        self.0.as_bytes().ct_eq(other.0.as_bytes()).into()
    }
}

fn unreadable(file: &Path, error: &io::Error) -> String {
    format!("cannot read the bearer token in {}: {error}", file.display())
}
