//! The bytes of a large body that are not decoded yet.
//!
//! The window normally holds about one piece; it is larger only for an event that is larger than a
//! piece. Such an event must not be in memory twice, as it is while a `Vec` grows and its bytes are
//! copied. A large window is therefore in a mapping that has room for all bytes that may come. The
//! pages of the mapping take no memory until something is written to them.

use std::ops::{Deref, DerefMut};

use memmap2::MmapMut;

/// A window that grows beyond this many pieces is moved from a `Vec` to a mapping.
const HEAP_PIECES: usize = 4;

pub(super) struct Window {
    store: Store,
    /// The number of bytes in the window. A mapping may have more room.
    length: usize,
    piece_bytes: usize,
    /// The size of the mapping in bytes. A window that grows beyond it gets a larger mapping.
    bytes_max: usize,
}

enum Store {
    Heap(Vec<u8>),
    Mapped(MmapMut),
}

impl Window {
    /// Makes a window. If it grows beyond `bytes_max`, its bytes are copied to a larger mapping.
    pub(super) fn new(bytes: &[u8], piece_bytes: usize, bytes_max: usize) -> Self {
        let (store, length) = (Store::Heap(bytes.to_vec()), bytes.len());
        Self { store, length, piece_bytes, bytes_max }
    }

    pub(super) fn extend(&mut self, bytes: &[u8]) {
        self.make_room(self.length + bytes.len());
        match &mut self.store {
            Store::Heap(vector) => vector.extend_from_slice(bytes),
            Store::Mapped(map) => {
                map[self.length..self.length + bytes.len()].copy_from_slice(bytes);
            }
        }
        self.length += bytes.len();
    }

    /// Cuts the window to `length` bytes, or appends zeros.
    pub(super) fn resize(&mut self, length: usize) {
        self.make_room(length);
        match &mut self.store {
            Store::Heap(vector) => vector.resize(length, 0),
            Store::Mapped(map) if length > self.length => map[self.length..length].fill(0),
            Store::Mapped(_) => {}
        }
        self.length = length;
    }

    /// Removes `bytes` bytes at `at`. If at most two pieces are left, a mapping is freed.
    pub(super) fn remove(&mut self, at: usize, bytes: usize) {
        if bytes == 0 {
            return;
        }
        let length = self.length;
        self.copy_within(at + bytes..length, at);
        self.resize(length - bytes);
        if matches!(self.store, Store::Mapped(_)) && self.length <= 2 * self.piece_bytes {
            self.store = Store::Heap(self.to_vec());
        }
    }

    fn make_room(&mut self, length: usize) {
        let room = match &self.store {
            Store::Heap(vector) => vector.capacity(),
            Store::Mapped(map) => map.len(),
        };
        if length <= room {
            return;
        }
        if length > HEAP_PIECES * self.piece_bytes {
            let size = if length <= self.bytes_max { self.bytes_max } else { length / 4 * 5 };
            if let Ok(mut map) = MmapMut::map_anon(size.max(length)) {
                map[..self.length].copy_from_slice(self);
                self.store = Store::Mapped(map);
                return;
            }
        }
        // A small window is in a vector, and so is a large one if the kernel gives no mapping. The
        // vector grows by a quarter, or by one piece; doubling would take more memory.
        match &mut self.store {
            Store::Heap(vector) => {
                let more = length - self.length + (self.length / 4).max(self.piece_bytes);
                vector.reserve_exact(more);
            }
            Store::Mapped(map) => self.store = Store::Heap(map[..self.length].to_vec()),
        }
    }

    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        match &self.store {
            Store::Heap(vector) => vector.capacity(),
            Store::Mapped(map) => map.len(),
        }
    }
}

impl Deref for Window {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.store {
            Store::Heap(vector) => vector,
            Store::Mapped(map) => map.get(..self.length).unwrap_or_default(),
        }
    }
}

impl DerefMut for Window {
    fn deref_mut(&mut self) -> &mut [u8] {
        match &mut self.store {
            Store::Heap(vector) => vector,
            Store::Mapped(map) => map.get_mut(..self.length).unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Random changes of a window and of a `Vec` leave the same bytes in both.
        #[test]
        fn a_window_holds_what_a_vector_would(
            changes in prop::collection::vec((0..3_u8, 0..3000_usize, 0..3000_usize), 0..40),
            bytes_max in 0..20_000_usize,
        ) {
            let (mut window, mut vector) = (Window::new(b"head", 500, bytes_max), b"head".to_vec());
            for (number, (kind, first, second)) in changes.into_iter().enumerate() {
                match kind {
                    0 => {
                        let bytes = vec![u8::try_from(number).unwrap(); first];
                        window.extend(&bytes);
                        vector.extend_from_slice(&bytes);
                    }
                    1 => {
                        let at = first.min(vector.len());
                        let bytes = second.min(vector.len() - at);
                        window.remove(at, bytes);
                        vector.drain(at..at + bytes);
                    }
                    _ => {
                        window.resize(vector.len() + first - first.min(second));
                        vector.resize(vector.len() + first - first.min(second), 0);
                    }
                }
                prop_assert!(*window == *vector);
            }
        }
    }

    #[test]
    fn a_mapping_is_made_once_and_freed_when_few_bytes_are_left() {
        let mut window = Window::new(b"head", 1000, 100_000);
        for _ in 0..99 {
            window.extend(&[b'x'; 1000]);
            let (length, capacity) = (window.len(), window.capacity());
            assert!(length <= 6000 || capacity == 100_000, "{capacity} for {length}");
        }
        window.remove(4, 98_000);
        assert_eq!((&window[..4], window.len()), (&b"head"[..], 1004));
        assert!(window.capacity() <= 4000, "{}", window.capacity());
    }
}
