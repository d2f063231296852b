//! Reads a text of metrics in parts, plain or compressed with gzip.
//!
//! doctor does not ask for gzip, but a proxy may send it nevertheless, and a saved file may be the
//! response to another client. No text of metrics begins like gzip.

use std::io;
use std::io::Write;

use flate2::write::MultiGzDecoder;

use super::exposition::{Exposition, Reader};
use client::ask::BODY_MAX;

/// The first byte of gzip.
const MAGIC: u8 = 0x1f;

/// A text that is being read.
pub enum Text {
    /// A plain text, or no byte yet.
    Plain(Plain),
    /// A text that is compressed with gzip.
    Gzip(Box<MultiGzDecoder<Plain>>),
}

/// The decompressed text.
pub struct Plain {
    reader: Reader,
    /// The number of bytes that were read.
    bytes: u64,
}

/// A fault of the decompressed text, which the decoder passes on inside an `io::Error`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct OfText(String);

impl Plain {
    fn feed(&mut self, part: &[u8]) -> Result<(), String> {
        self.bytes += part.len() as u64;
        if self.bytes > BODY_MAX {
            return Err("has more than 64 MiB".to_owned());
        }
        self.reader.feed(part).map_err(|fault| fault.to_string())
    }
}

impl Write for Plain {
    fn write(&mut self, part: &[u8]) -> io::Result<usize> {
        self.feed(part).map_err(|fault| io::Error::other(OfText(fault)))?;
        Ok(part.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Text {
    /// Makes a text that keeps the families with these names.
    pub fn new(wanted: Vec<String>) -> Self {
        Self::Plain(Plain { reader: Reader::new(wanted), bytes: 0 })
    }

    /// Reads the next part.
    ///
    /// # Errors
    ///
    /// The text is wrong, for this reason. The value must not be used again.
    pub fn feed(&mut self, part: &[u8]) -> Result<(), String> {
        if let Self::Plain(plain) = self
            && plain.bytes == 0
            && part.first() == Some(&MAGIC)
        {
            let reader = std::mem::take(&mut plain.reader);
            let plain = Plain { reader, bytes: 0 };
            *self = Self::Gzip(Box::new(MultiGzDecoder::new(plain)));
        }
        match self {
            Self::Plain(plain) => plain.feed(part),
            Self::Gzip(gzip) => gzip.write_all(part).map_err(fault),
        }
    }

    /// Ends the text. Returns the kept families.
    ///
    /// # Errors
    ///
    /// The text is wrong, for this reason.
    pub fn finish(self) -> Result<Exposition, String> {
        let plain = match self {
            Self::Plain(plain) => plain,
            Self::Gzip(gzip) => gzip.finish().map_err(fault)?,
        };
        plain.reader.finish().map_err(|fault| fault.to_string())
    }
}

/// Returns the fault of the decompressed text, or otherwise that of gzip.
fn fault(error: io::Error) -> String {
    match error.downcast::<OfText>() {
        Ok(OfText(fault)) => fault,
        Err(error) => format!("not valid gzip: {error}"),
    }
}
