//! Writes that bypass the page cache (O_DIRECT). Outputs usually take lines from the queue's
//! memory, so copies in the page cache are of little use. They would cost more CPU than the write,
//! and count as memory of the pod. Readers use the page cache and never see old bytes: a direct
//! write makes the kernel drop the cached pages of the written bytes.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{fs, io};

use memmap2::MmapMut;
use rustix::fs::OFlags;

use super::write_pieces;
use crate::lock::lock;

const BUFFER: usize = 1 << 20;

/// The alignment of the offset, the length and the memory of a direct write. If the device has
/// larger blocks, the kernel refuses the write, and the page cache is used.
const ALIGNMENT: usize = 4096;

/// The types (statfs(2)) of ext2 to ext4 and XFS. Others are slower, or may show old bytes.
const FILE_SYSTEMS: [u64; 2] = [0xEF53, 0x5846_5342];

#[derive(Debug)]
pub(super) struct Direct {
    /// `false` after a direct write was impossible. All later writes use the page cache.
    is_on: AtomicBool,
    buffer: Mutex<Option<MmapMut>>,
}

impl Direct {
    /// Turns on direct writes; `None` if the file system refuses, or is not in [`FILE_SYSTEMS`].
    pub(super) fn new(file: &fs::File) -> Option<Self> {
        let is_known = rustix::fs::fstatfs(file)
            .is_ok_and(|status| FILE_SYSTEMS.contains(&(status.f_type as u64)));
        let is_direct = is_known && set_direct(file, true).is_ok();
        is_direct.then(|| Self { is_on: AtomicBool::new(true), buffer: Mutex::new(None) })
    }

    /// Writes directly and returns `true`. Returns `false` if that is impossible: this write and
    /// all later writes to the file then need the page cache.
    pub(super) fn write(&self, file: &fs::File, pieces: &[&[u8]], offset: u64) -> io::Result<bool> {
        if !self.is_on.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let length: usize = pieces.iter().map(|piece| piece.len()).sum();
        let is_aligned =
            length.is_multiple_of(ALIGNMENT) && offset.is_multiple_of(ALIGNMENT as u64);
        match is_aligned.then(|| self.write_aligned(file, pieces, offset)) {
            None => {}
            // The device needs larger blocks, or the file system can't write directly.
            Some(Err(error)) if error.kind() == io::ErrorKind::InvalidInput => {}
            Some(written) => return written.map(|()| true),
        }
        self.is_on.store(false, Ordering::Relaxed);
        set_direct(file, false)?;
        Ok(false)
    }

    fn write_aligned(&self, file: &fs::File, pieces: &[&[u8]], mut offset: u64) -> io::Result<()> {
        if let [piece] = pieces
            && piece.as_ptr().addr().is_multiple_of(ALIGNMENT)
        {
            return write_pieces(file, pieces, offset);
        }
        let mut guard = lock(&self.buffer);
        let buffer = match &mut *guard {
            Some(buffer) => buffer,
            none => none.insert(MmapMut::map_anon(BUFFER)?),
        };
        let mut filled = 0;
        for piece in pieces {
            let mut rest = *piece;
            while !rest.is_empty() {
                let (part, others) = rest.split_at(rest.len().min(BUFFER - filled));
                buffer[filled..filled + part.len()].copy_from_slice(part);
                (filled, rest) = (filled + part.len(), others);
                if filled == BUFFER {
                    write_pieces(file, &[buffer], offset)?;
                    offset += filled as u64;
                    filled = 0;
                }
            }
        }
        write_pieces(file, &[&buffer[..filled]], offset)
    }
}

/// Zeroed memory that begins at a block boundary: a direct write from it needs no copy.
#[derive(Debug)]
pub struct Aligned(MmapMut);

impl Aligned {
    /// Allocates this many bytes.
    ///
    /// # Errors
    ///
    /// The kernel has no memory left.
    pub fn new(bytes: usize) -> io::Result<Self> {
        Ok(Self(MmapMut::map_anon(bytes)?))
    }

    /// Returns the whole memory.
    pub fn bytes(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

fn set_direct(file: &fs::File, is_direct: bool) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(file)?;
    let flags = if is_direct { flags | OFlags::DIRECT } else { flags - OFlags::DIRECT };
    Ok(rustix::fs::fcntl_setfl(file, flags)?)
}

#[cfg(test)]
mod tests {
    use super::super::{File as _, RealFile};
    use super::*;

    /// Method: pieces of odd lengths, together longer than two buffers, are written to a file that
    /// is read through the page cache before and after. The file must hold exactly their bytes, and
    /// nothing else may change.
    #[test]
    fn what_is_written_directly_is_read_through_the_page_cache() {
        // The directory of the tests' own program is on a disk; the one for temporary files may be
        // in memory, where nothing is written directly.
        let program = std::env::current_exe().expect("this program");
        let around = program.parent().expect("its directory");
        let directory = tempfile::tempdir_in(around).expect("a directory");
        let path = directory.path().join("file");
        let before = vec![b'-'; 4 * BUFFER];
        fs::write(&path, &before).expect("it can be written");
        let open = fs::OpenOptions::new().read(true).write(true).open(&path);
        let file = open.expect("it is there");
        let file = RealFile { direct: Direct::new(&file), file };
        let mut rng = fastrand::Rng::with_seed(1);
        let length = 2 * BUFFER + 3 * ALIGNMENT;
        let bytes: Vec<u8> = (0..length).map(|_| rng.u8(..)).collect();
        let (mut pieces, mut rest) = (Vec::new(), bytes.as_slice());
        while !rest.is_empty() {
            let (piece, others) = rest.split_at(rng.usize(1..300_000).min(rest.len()));
            pieces.push(piece);
            rest = others;
        }
        let offset = 5 * ALIGNMENT;
        file.write_at(&pieces, offset as u64).expect("the disk is well");
        file.sync().expect("the disk is well");
        let mut wanted = before;
        wanted[offset..offset + length].copy_from_slice(&bytes);
        assert!(fs::read(&path).expect("it can be read") == wanted);
        let mut aligned = Aligned::new(3 * ALIGNMENT).expect("memory");
        aligned.bytes().fill(b'+');
        file.write_at(&[&aligned.bytes()[ALIGNMENT..]], 0).expect("the disk is well");
        wanted[..2 * ALIGNMENT].fill(b'+');
        assert!(fs::read(&path).expect("it can be read") == wanted);
        file.write_at(&[b"abc"], 7).expect("what is not aligned is written too");
        wanted[7..10].copy_from_slice(b"abc");
        assert!(fs::read(&path).expect("it can be read") == wanted);
    }
}
