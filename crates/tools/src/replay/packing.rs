//! The compressions in which a file of `replay` may be, and their decoders.
//!
//! The first bytes of a file tell its compression; the file's name does not count. A gzip file may
//! have several members, and a zstd file several frames. The decoders decode a piece at a time, so
//! memory does not depend on the size of a file.

use std::io;
use std::io::{BufRead, BufReader, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::bufread::MultiGzDecoder;

/// The number of bytes at the beginning of a file that [`Packing::of`] needs.
pub const MAGIC_BYTES: usize = 4;

/// The binary logarithm of the largest window of a zstd frame, in bytes: 8 MiB. The window is the
/// part of the text that the decoder must keep in memory, and the file chooses its size. RFC 8878
/// §3.1.1.1.2 recommends that decoders support 8 MiB, and `zstd -19` uses 8 MiB. With zstd's own
/// limit, a file of a few bytes could make the decoder reserve 128 MiB.
const WINDOW_LOG_MAX: u32 = 23;

/// The text of zstd's error for a window that is larger than the limit. The crate reports the error
/// only by its text.
const WINDOW_TOO_LARGE: &str = "Frame requires too much memory for decoding";

/// The compression of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// The file is not compressed.
    Plain,
    /// gzip (RFC 1952).
    Gzip,
    /// zstd (RFC 8878).
    Zstd,
}

impl Packing {
    /// Returns the compression of a file whose first [`MAGIC_BYTES`] bytes are `magic`. A shorter
    /// file gives fewer bytes. No line of an audit log begins with the bytes of a compressed file.
    pub fn of(magic: &[u8]) -> Self {
        match magic {
            [0x1f, 0x8b, ..] => Self::Gzip,
            // A frame, and a skippable frame, which holds no text. Some programs (pzstd) begin a
            // file with a skippable frame.
            [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => Self::Zstd,
            _ => Self::Plain,
        }
    }

    /// Returns a reader of the text of a file whose bytes are read from `raw`. `buffer` is the size
    /// in bytes of the buffer for the text of a compressed file.
    pub fn open(
        self,
        raw: impl BufRead + Send + 'static,
        buffer: usize,
    ) -> io::Result<Box<dyn BufRead + Send>> {
        Ok(match self {
            Self::Plain => Box::new(raw),
            Self::Gzip => Box::new(BufReader::with_capacity(buffer, MultiGzDecoder::new(raw))),
            Self::Zstd => {
                let mut decoder = zstd::Decoder::with_buffer(raw)?;
                decoder.window_log_max(WINDOW_LOG_MAX)?;
                Box::new(BufReader::with_capacity(buffer, decoder))
            }
        })
    }

    /// Returns a text that says why the file cannot be read further, and what the operator can do
    /// about the fault of a compressed file.
    pub fn explain(self, error: &io::Error) -> String {
        let (name, tool) = match self {
            Self::Plain => return error.to_string(),
            Self::Gzip => ("gzip", "gzip -t"),
            Self::Zstd => ("zstd", "zstd -t"),
        };
        // An error of the operating system is a fault of the disk and not of the file's bytes.
        if error.raw_os_error().is_some() {
            return error.to_string();
        }
        if error.kind() == io::ErrorKind::UnexpectedEof {
            return format!(
                "the {name} data are cut off: the file is not complete, or is still being written. \
                 Get the complete file"
            );
        }
        let text = error.to_string();
        if self == Self::Zstd && text == WINDOW_TOO_LARGE {
            return "the zstd window is larger than 8 MiB (`zstd --long` and `--ultra` make such \
                    files). Decompress the file with `zstd -dc --long=31`, and send the output with \
                    `replay -`"
                .to_owned();
        }
        format!("the {name} data are damaged: {text}. `{tool}` checks a file; get another copy")
    }
}

/// A reader that counts in `bytes` the bytes that are read from `source`.
pub struct Counted {
    /// What is read.
    pub source: Box<dyn Read + Send>,
    /// The number of bytes that were read.
    pub bytes: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.source.read(buffer)?;
        self.bytes.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}
