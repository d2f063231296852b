//! The compressions of the files of `replay`, and their decoders.
//!
//! The first bytes of a file tell its compression, whatever its name is. A gzip file may have
//! several members, and a zstd file several frames. The decoders never hold a whole file, so memory
//! does not depend on the size of a file.

use std::io;
use std::io::{BufRead, BufReader, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::bufread::MultiGzDecoder;

/// The number of bytes at the beginning of a file that [`Packing::of`] needs.
pub const MAGIC_BYTES: usize = 4;

/// The base-2 logarithm of the largest window of a zstd frame: 8 MiB. The decoder keeps the window
/// in memory, and the file chooses its size. RFC 8878 §3.1.1.1.2 recommends that decoders support 8
/// MiB, and `zstd -19` uses 8 MiB. With zstd's own limit, a file of a few bytes could make the
/// decoder reserve 128 MiB.
const WINDOW_LOG_MAX: u32 = 23;

/// zstd's error for a window above the limit. The crate gives only this text.
const WINDOW_TOO_LARGE: &str = "Frame requires too much memory for decoding";

/// The compression of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// Not compressed.
    Plain,
    /// gzip (RFC 1952).
    Gzip,
    /// zstd (RFC 8878).
    Zstd,
}

impl Packing {
    /// Returns the compression of a file with these first bytes, which are fewer than
    /// [`MAGIC_BYTES`] for a shorter file. No line of an audit log begins like a compressed file.
    pub fn of(magic: &[u8]) -> Self {
        match magic {
            [0x1f, 0x8b, ..] => Self::Gzip,
            // A frame, or a skippable frame without text, with which some programs (pzstd) begin a
            // file.
            [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => Self::Zstd,
            _ => Self::Plain,
        }
    }

    /// Returns a reader of the text of `raw`. `buffer` is the size in bytes of the buffer for
    /// decompressed text.
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

    /// Returns the reason why the file can't be read further, with advice if the compressed data
    /// are at fault.
    pub fn explain(self, error: &io::Error) -> String {
        let (name, tool) = match self {
            Self::Plain => return error.to_string(),
            Self::Gzip => ("gzip", "gzip -t"),
            Self::Zstd => ("zstd", "zstd -t"),
        };
        // An error of the operating system is a fault of the disk, not of the file's bytes.
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

/// A reader that counts the bytes it reads.
pub struct Counted {
    /// The reader from which the bytes come.
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
