//! The memory for the bytes of a body while it arrives, and for its lines afterwards.
//!
//! The relay's memory is bounded by the bytes that `limits.max_in_flight` and the queue count.
//! Therefore a buffer must not hold many more bytes than are counted. It must not need twice its
//! size while it grows or is cut to the lines, and it must hold nothing after it is freed. Large
//! blocks of an allocator have all three faults. Therefore a body of more than about [`HEAP_MAX`]
//! bytes is a memory mapping of its own. Untouched pages of a mapping take no memory. The kernel
//! moves pages instead of copying them, and takes freed pages back immediately.
//!
//! Fresh pages are expensive, however: touching them takes twice the CPU time of reading a body. A
//! [`Pool`] therefore keeps a few mappings for the next bodies.
#![allow(unsafe_code, reason = "mremap; the proof is beside the call")]

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use memmap2::{MmapMut, RemapOptions};

use base::lock::lock;

/// The size in bytes above which a body moves from a `Vec` to a mapping, unless the `Vec` still has
/// room. The allocator keeps little freed memory of this size. Small bodies use no mappings,
/// because the kernel limits their number (65,530 for each process).
const HEAP_MAX: usize = 256 * 1024;

/// The approximate limit, in bytes, of a body's first mapping: the mapping grows when more bytes
/// arrive, so that a sender that only announces a large body takes little memory.
const FIRST_MAX: usize = 1024 * 1024;

/// The largest total size in bytes of the free mappings of a pool: enough for a few batches. No
/// limit of the config counts these bytes; they are a quarter of the 32 MiB that the relay may use
/// in addition to its limits.
const POOL_MAX: usize = 8 * 1024 * 1024;

/// The kernel's smallest page in bytes. The size of a mapping is a multiple of this number.
const PAGE: usize = 4096;

/// A pool of free memory mappings, which later bodies use again. All requests share one pool.
#[derive(Default)]
pub(super) struct Pool {
    free: Mutex<Vec<MmapMut>>,
}

impl Pool {
    /// Takes a mapping out of the pool. The best mappings have at least `wanted` bytes and at most
    /// twice as many. Of these, takes the one that came back last, which is most likely in the
    /// CPU's cache. If there are none, takes the smallest larger mapping, otherwise the largest
    /// smaller one. If the pool is empty, makes a mapping of `first` bytes, rounded up to whole
    /// pages.
    fn take(&self, wanted: usize, first: usize) -> io::Result<MmapMut> {
        let mut free = lock(&self.free);
        let rank = |&at: &usize| match free[at].len() {
            small if small < wanted => (2, usize::MAX - small),
            large if large > wanted.saturating_mul(2) => (1, large),
            _ => (0, free.len() - at),
        };
        if let Some(at) = (0..free.len()).min_by_key(rank) {
            return Ok(free.remove(at));
        }
        drop(free);
        MmapMut::map_anon(first.next_multiple_of(PAGE))
    }

    /// Puts a mapping into the pool for a later body, or frees it if the pool is full.
    fn give_back(&self, map: MmapMut) {
        let mut free = lock(&self.free);
        let held: usize = free.iter().map(|map| map.len()).sum();
        if held + map.len() <= POOL_MAX {
            free.push(map);
        }
    }
}

/// A memory mapping that goes back to its pool when this value is dropped.
struct Mapped {
    /// The mapping; `None` only while this value is dropped.
    map: Option<MmapMut>,
    pool: Arc<Pool>,
}

impl Mapped {
    fn bytes(&self) -> &[u8] {
        self.map.as_deref().unwrap_or_default()
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        self.map.as_deref_mut().unwrap_or_default()
    }

    /// Changes the size of the mapping to `size` bytes, rounded up to whole pages.
    fn resize(&mut self, size: usize) -> io::Result<()> {
        let Some(map) = &mut self.map else { return Err(io::ErrorKind::NotFound.into()) };
        let size = size.next_multiple_of(PAGE);
        if size == map.len() {
            return Ok(());
        }
        // SAFETY: a resize is unsound only if the mapping is of a file that is shorter, and this
        // mapping is anonymous, so the kernel has set each of its bytes. The mapping may move, and
        // `&mut self` proves that nobody holds a reference into it.
        unsafe { map.remap(size, RemapOptions::new().may_move(true)) }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        if let Some(map) = self.map.take() {
            self.pool.give_back(map);
        }
    }
}

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        self.bytes()
    }
}

/// The memory for a body that is arriving, with the bytes that have arrived so far.
pub(super) struct Buffer {
    store: Store,
    /// The number of bytes that have arrived. A mapping may be larger; the rest is free room.
    length: usize,
    /// The number of bytes that are expected, plus one for decoding; `None` if it is not known.
    announced: Option<usize>,
    pool: Arc<Pool>,
}

enum Store {
    Heap(Vec<u8>),
    Mapped(Mapped),
}

impl Buffer {
    /// Makes an empty buffer. `announced` is the number of bytes that are expected, if it is known.
    /// A large number alone takes no memory: memory is taken when bytes arrive.
    pub(super) fn new(announced: Option<usize>, pool: &Arc<Pool>) -> Self {
        let announced = announced.map(|length| length.saturating_add(1));
        let first = announced.filter(|size| *size <= HEAP_MAX).unwrap_or_default();
        Self {
            store: Store::Heap(Vec::with_capacity(first)),
            length: 0,
            announced,
            pool: Arc::clone(pool),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.length
    }

    pub(super) fn extend(&mut self, bytes: &[u8]) {
        let length = self.length + bytes.len();
        self.make_room(length);
        match &mut self.store {
            Store::Heap(vector) => vector.extend_from_slice(bytes),
            Store::Mapped(mapped) => mapped.bytes_mut()[self.length..length].copy_from_slice(bytes),
        }
        self.length = length;
    }

    /// Makes the buffer large enough for a body of `length` bytes. Moves a body that becomes too
    /// large for the `Vec` to a mapping.
    fn make_room(&mut self, length: usize) {
        match &mut self.store {
            Store::Heap(vector) => {
                let size = self.announced.unwrap_or(length).max(length);
                if size <= HEAP_MAX || length <= vector.capacity() {
                    return;
                }
                let first = size.min(FIRST_MAX).max(length);
                // If the kernel gives no more mappings, the vector grows.
                let Ok(map) = self.pool.take(size, first) else { return };
                let mut mapped = Mapped { map: Some(map), pool: Arc::clone(&self.pool) };
                // The pages of a much larger mapping from the pool are in memory, and no limit
                // counts them. The mapping is cut, so that a slow upload does not keep them.
                let is_fitting = (first..=2 * first).contains(&mapped.bytes().len());
                if !is_fitting && mapped.resize(first).is_err() {
                    return;
                }
                mapped.bytes_mut()[..self.length].copy_from_slice(vector);
                self.store = Store::Mapped(mapped);
            }
            Store::Mapped(mapped) if length > mapped.bytes().len() => {
                let size = self.announced.unwrap_or(length * 2).max(length);
                if mapped.resize(size).is_err() {
                    self.store = Store::Heap(mapped.bytes()[..self.length].to_vec());
                }
            }
            Store::Mapped(_) => {}
        }
    }

    /// Returns the bytes of the body and one more byte at the end. Decoding in place needs this
    /// byte for the line break after the last event.
    pub(super) fn with_room(&mut self) -> &mut [u8] {
        self.extend(b"\n");
        self.length -= 1;
        match &mut self.store {
            Store::Heap(vector) => vector,
            Store::Mapped(mapped) => &mut mapped.bytes_mut()[..=self.length],
        }
    }

    /// Returns the bytes of the body.
    pub(super) fn bytes(&mut self) -> &mut [u8] {
        match &mut self.store {
            Store::Heap(vector) => vector,
            Store::Mapped(mapped) => &mut mapped.bytes_mut()[..self.length],
        }
    }

    /// Cuts the body to `length` bytes, if it is longer. The memory stays.
    pub(super) fn truncate(&mut self, length: usize) {
        self.length = self.length.min(length);
        if let Store::Heap(vector) = &mut self.store {
            vector.truncate(length);
        }
    }

    /// Returns the bytes of the range `part` of the body. The result uses hardly more memory than
    /// `part.len()` bytes: the memory for the rest of the body is freed or goes back to the pool.
    pub(super) fn keep(self, part: Range<usize>) -> Bytes {
        match self.store {
            Store::Heap(mut vector) => {
                vector.truncate(part.end);
                let waste = part.start + vector.capacity() - vector.len();
                if waste <= part.len() / 32 + 128 {
                    return Bytes::from(vector).slice(part);
                }
                Bytes::copy_from_slice(&vector[part])
            }
            Store::Mapped(mapped) if part.len() <= HEAP_MAX / 2 => {
                Bytes::copy_from_slice(&mapped.bytes()[part])
            }
            Store::Mapped(mut mapped) => {
                let mut kept = part;
                if kept.start > kept.len() / 32 {
                    mapped.bytes_mut().copy_within(kept.clone(), 0);
                    kept = 0..kept.len();
                }
                // A mapping that cannot be cut stays as large as it is.
                mapped.resize(kept.end).ok();
                Bytes::from_owner(mapped).slice(kept)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Random pieces go into a buffer, with a right or wrong announced length and with used
        /// mappings in the pool. A part of the buffer that is kept must have the bytes that came.
        #[test]
        fn what_is_kept_is_what_came(
            pieces in proptest::collection::vec((any::<u8>(), 0..400_000_usize), 0..8),
            announced in proptest::option::of(0..2_000_000_usize),
            from in 0..=100_usize,
            to in 0..=100_usize,
            pooled in proptest::collection::vec(1..3_000_000_usize, 0..3),
        ) {
            let pool = Arc::new(Pool::default());
            for size in pooled {
                let mut map = MmapMut::map_anon(size).unwrap();
                map.fill(0xee);
                pool.give_back(map);
            }
            let mut buffer = Buffer::new(announced, &pool);
            let mut expected = Vec::new();
            for (byte, count) in pieces {
                let piece = vec![byte; count];
                buffer.extend(&piece);
                expected.extend_from_slice(&piece);
            }
            prop_assert_eq!(buffer.len(), expected.len());
            let with_room = buffer.with_room();
            prop_assert_eq!(with_room.len(), expected.len() + 1);
            prop_assert!(with_room[..expected.len()] == expected);
            let at = |percent: usize| expected.len() * percent / 100;
            let part = at(from.min(to))..at(from.max(to));
            let kept = buffer.keep(part.clone());
            prop_assert!(kept == expected[part]);
        }
    }

    #[test]
    fn a_pool_keeps_a_bounded_number_of_bytes_and_gives_them_again() {
        let pool = Arc::new(Pool::default());
        let held = || pool.free.lock().unwrap().iter().map(|map| map.len()).sum::<usize>();
        let body = vec![b'x'; 3 * 1024 * 1024];
        let kept: Vec<Bytes> = (0..6)
            .map(|_| {
                let mut buffer = Buffer::new(Some(body.len()), &pool);
                buffer.extend(&body);
                buffer.keep(0..body.len())
            })
            .collect();
        assert_eq!(held(), 0);
        drop(kept);
        assert_eq!(held(), 2 * body.len());
        let mut buffer = Buffer::new(Some(body.len()), &pool);
        buffer.extend(&body);
        assert_eq!(held(), body.len());
        drop(buffer);
        // A body whose kept part is small gives its mapping back to the pool.
        let mut buffer = Buffer::new(Some(body.len()), &pool);
        buffer.extend(&body);
        assert_eq!(buffer.keep(10..20), [b'x'; 10].as_slice());
        assert!(held() >= body.len());
    }
}
