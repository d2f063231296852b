//! The files of an evidence log, and the order in which they are written.
//!
//! Entries go to the *journal* first, which is synced. A checkpoint is made of them in this order:
//! the tiles and bundles are written and synced, the checkpoint is signed, and its file replaces
//! the one before. Only then does a new journal begin. So after a crash at any moment the journal
//! has every entry that no checkpoint covers, and what a checkpoint covers is in the tiles.

use std::io;
use std::sync::Arc;

use super::entry::Entry;
use super::entry::now;
use super::journal;
use super::journal::JOURNAL_BYTES_MAX;
use super::layout;
use super::layout::DIRECTORY;
use super::layout::JOURNAL;
use super::layout::ROLLED_BACK;
use super::layout::path;
use crate::queue::disk::Access;
use crate::queue::disk::Disk;
use crate::queue::disk::File;
use crate::queue::disk::named;
use crate::queue::disk::replace;
use crate::tlog::checkpoint::Checkpoint;
use crate::tlog::checkpoint::Signed;
use crate::tlog::key::SigningKey;
use crate::tlog::merkle::Frontier;
use crate::tlog::merkle::Hash;
use crate::tlog::merkle::Head;
use crate::tlog::merkle::consistency;
use crate::tlog::merkle::extends;
use crate::tlog::merkle::root_at;
use crate::tlog::note::NOTE_BYTES_MAX;
use crate::tlog::note::Note;
use crate::tlog::note::Signed as Check;
use crate::tlog::tile;
use crate::tlog::tile::BUNDLE_BYTES_MAX;
use crate::tlog::tile::CHECKPOINT;
use crate::tlog::tile::Content;
use crate::tlog::tile::Tile;
use crate::tlog::tile::WIDTH;
use crate::tlog::tile::last_tiles;

/// The file with the entries that no checkpoint covers yet.
const JOURNAL_PATH: &str = "evidence/journal";

/// The most bytes of entries that no checkpoint covers. The log takes no more until there is one.
const PENDING_MAX: usize = 8 << 20;

/// The most bytes of the file that says why a log was not gone on with.
const ROLLED_BACK_MAX: usize = 16 << 10;

/// The beginning of the name of a directory with the log of an earlier origin.
const ASIDE: &str = "evidence-until-";

/// The number of tile levels that a log can have.
const LEVELS: usize = 8;

/// The files of an evidence log.
pub(super) struct Store {
    disk: Arc<dyn Disk>,
    origin: String,
    /// All entries, also those that no checkpoint covers.
    frontier: Frontier,
    /// What the newest checkpoint covers.
    signed: Head,
    /// The newest checkpoint, with the signatures that it has got. `None`: there is none yet.
    newest: Option<Note>,
    /// What the checkpoint before it covered. A reader may still need its partial tiles.
    before: u64,
    /// The entries that no checkpoint covers.
    pending: Vec<Vec<u8>>,
    pending_bytes: usize,
    /// How many of the pending entries are in the journal and synced.
    synced: usize,
    /// The journal, and the number of its bytes. `None`: it has to be written anew, as after a
    /// start, because its end may be torn.
    journal: Option<(Arc<dyn File>, u64)>,
    /// The last tile of each level, and the last bundle, so far.
    tiles: [Growing; LEVELS],
    bundle: Growing,
}

/// The last tile of a level, or the last bundle, with the whole ones before it that are not in
/// their files yet.
#[derive(Debug, Default, Clone)]
struct Growing {
    index: u64,
    width: u64,
    bytes: Vec<u8>,
    whole: Vec<(u64, Vec<u8>)>,
}

impl Growing {
    fn grew(&mut self) {
        self.width += 1;
        if self.width == WIDTH {
            self.whole.push((self.index, std::mem::take(&mut self.bytes)));
            (self.index, self.width) = (self.index + 1, 0);
        }
    }
}

impl Store {
    /// Opens the log of this origin, or begins it. `keys` are those with which its checkpoints may
    /// be signed. The log of another origin is kept aside.
    ///
    /// # Errors
    ///
    /// The files can't be read, are damaged, or were signed by another key.
    pub(super) fn open(disk: Arc<dyn Disk>, origin: &str, keys: &[SigningKey]) -> io::Result<Self> {
        check_is_free(&*disk, origin)?;
        keep_aside(&*disk, origin)?;
        disk.make_directory(DIRECTORY)?;
        // A process before this one may have been killed between a rename and its sync.
        disk.sync_directory(DIRECTORY)?;
        let mut store = Self {
            disk,
            origin: origin.to_owned(),
            frontier: Frontier::default(),
            signed: Head { size: 0, root: Hash::of_nothing() },
            newest: None,
            before: 0,
            pending: Vec::new(),
            pending_bytes: 0,
            synced: 0,
            journal: None,
            tiles: Default::default(),
            bundle: Growing::default(),
        };
        let journal = store.read(JOURNAL, JOURNAL_BYTES_MAX)?.unwrap_or_default();
        let begins_at = journal::record(&journal).map(|(index, ..)| index);
        match store.read(CHECKPOINT, NOTE_BYTES_MAX)? {
            Some(note) => store.load(&note, keys, begins_at)?,
            None => store.check_is_new(begins_at)?,
        }
        for entry in store.journalled(&journal) {
            store.push(entry)?;
        }
        Ok(store)
    }

    /// Returns the content of a file; `None` if there is none.
    fn read(&self, name: &str, max: usize) -> io::Result<Option<Vec<u8>>> {
        read(&*self.disk, &path(name), max)
    }

    fn tile(&self, tile: Tile) -> io::Result<Vec<u8>> {
        tile_of(&*self.disk, tile)
    }

    /// Returns the entries of a bundle of a log of `size` entries. They are those whose hashes are
    /// in the tile of the same index.
    fn entries_of(&self, index: u64, size: u64) -> io::Result<Vec<Vec<u8>>> {
        let width = size.saturating_sub(index * WIDTH).min(WIDTH);
        let tile = |content| Tile { content, index, width };
        let (bundle, hashes) =
            (self.tile(tile(Content::Entries))?, self.tile(tile(Content::Hashes(0)))?);
        let entries = tile::entries(&bundle, width)?;
        let hashes = tile::hashes(&hashes, width)?;
        if entries.iter().zip(&hashes).any(|(entry, hash)| Hash::of_leaf(entry) != *hash) {
            let name = path(&tile(Content::Entries).path());
            return Err(io::Error::other(format!("{name} has an entry that is not in the tree")));
        }
        Ok(entries.into_iter().map(<[u8]>::to_vec).collect())
    }

    /// Takes up the checkpoint that was signed last. `begins_at` is the index of the first entry in
    /// the journal.
    fn load(&mut self, note: &[u8], keys: &[SigningKey], begins_at: Option<u64>) -> io::Result<()> {
        let wrong = |what: String| io::Error::other(format!("{}: {what}", path(CHECKPOINT)));
        let Signed { checkpoint, note } =
            Signed::parse(note).map_err(|error| wrong(error.to_string()))?;
        if !keys.iter().any(|key| matches!(note.check(key.verifier()), Check::Valid(_))) {
            return Err(wrong(
                "it was not signed by the key in evidence.key_file (or next_key_file)".to_owned(),
            ));
        }
        let size = checkpoint.head.size;
        // A journal begins where a checkpoint ended that was signed.
        if let Some(index) = begins_at.filter(|index| *index > size) {
            return Err(wrong(format!(
                "it covers {size} entries, and the journal goes on from entry {index}: an older \
                 checkpoint was put back"
            )));
        }
        for tile in last_tiles(size) {
            let bytes = self.tile(tile)?;
            let growing = match tile.content {
                Content::Entries => {
                    self.entries_of(tile.index, size)?;
                    &mut self.bundle
                }
                Content::Hashes(level) => {
                    tile::hashes(&bytes, tile.width)?;
                    let Some(tile) = self.tiles.get_mut(level as usize) else { continue };
                    tile
                }
            };
            *growing = match tile.width == WIDTH {
                true => Growing { index: tile.index + 1, ..Growing::default() },
                false => {
                    Growing { index: tile.index, width: tile.width, bytes, ..Growing::default() }
                }
            };
        }
        let nodes = tile::Tiles::new(size, |tile| tile::hashes(&self.tile(tile)?, tile.width));
        self.frontier = Frontier::read(&nodes, size)?;
        if self.frontier.root() != checkpoint.head.root {
            return Err(wrong("its root is not that of the tiles".to_owned()));
        }
        (self.signed, self.newest, self.before) = (checkpoint.head, Some(note), size);
        Ok(())
    }

    /// Checks that no log was there before, if there is no checkpoint. `begins_at` is the index of
    /// the first entry in the journal: before its first checkpoint, a log has a journal from its
    /// first entry on. A log that began again would sign other roots for the same sizes.
    fn check_is_new(&self, begins_at: Option<u64>) -> io::Result<()> {
        let has_files = |directory: &str| match self.disk.list(&path(directory)) {
            Ok(names) => Ok(!names.is_empty()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        };
        if begins_at != Some(0) && (has_files("tile/0")? || has_files("tile/0/000.p")?) {
            let missing = path(CHECKPOINT);
            return Err(io::Error::other(format!("the log has tiles, and {missing} is missing")));
        }
        Ok(())
    }

    /// Returns the entries of the journal that the checkpoint does not cover, up to the first that
    /// is torn.
    fn journalled(&self, journal: &[u8]) -> Vec<Vec<u8>> {
        let (mut rest, mut next, mut found) = (journal, self.signed.size, Vec::new());
        while let Some((index, entry, behind)) = journal::record(rest) {
            rest = behind;
            if index == next {
                found.push(entry.to_vec());
                next += 1;
            } else if index > next {
                break;
            }
        }
        found
    }

    /// Returns the number of entries, and the root over them.
    pub(super) fn head(&self) -> Head {
        Head { size: self.frontier.size(), root: self.frontier.root() }
    }

    /// Returns the position behind the last event that has an entry, or that an entry says is lost
    /// from the queue. `None` if no event has one.
    ///
    /// # Errors
    ///
    /// A bundle can't be read.
    pub(super) fn last_accepted(&self) -> io::Result<Option<u64>> {
        if let Some(end) = self.pending.iter().rev().find_map(|entry| end_of(entry)) {
            return Ok(Some(end));
        }
        for index in (0..self.signed.size.div_ceil(WIDTH)).rev() {
            let entries = self.entries_of(index, self.signed.size)?;
            if let Some(end) = entries.iter().rev().find_map(|entry| end_of(entry)) {
                return Ok(Some(end));
            }
        }
        Ok(None)
    }

    /// Returns `true` if the log takes no more entries until there is a checkpoint.
    pub(super) fn is_full(&self) -> bool {
        self.pending_bytes >= PENDING_MAX
    }

    /// Adds an entry. It is not durable before [`Store::commit`].
    ///
    /// # Errors
    ///
    /// The entry is too long.
    pub(super) fn push(&mut self, entry: Vec<u8>) -> io::Result<()> {
        tile::push_entry(&entry, &mut self.bundle.bytes)?;
        self.bundle.grew();
        let tiles = &mut self.tiles;
        self.frontier.push(Hash::of_leaf(&entry), &mut |level, hash| {
            // A tile has every eighth level of the tree.
            let level = level as usize;
            if let Some(tile) = tiles.get_mut(level / 8).filter(|_| level.is_multiple_of(8)) {
                tile.bytes.extend_from_slice(&hash.0);
                tile.grew();
            }
        });
        self.pending_bytes += entry.len();
        self.pending.push(entry);
        Ok(())
    }

    /// Makes all entries durable.
    ///
    /// # Errors
    ///
    /// The disk refuses. The entries stay, and the next call writes them to a new journal.
    pub(super) fn commit(&mut self) -> io::Result<()> {
        if self.synced == self.pending.len() {
            return Ok(());
        }
        let Some((file, end)) = self.journal.take() else { return self.begin_journal() };
        let mut records = Vec::new();
        let first = self.signed.size + self.synced as u64;
        for (index, entry) in (first..).zip(self.pending.iter().skip(self.synced)) {
            journal::write_record(index, entry, &mut records);
        }
        file.write_at(&[&records], end)?;
        file.sync()?;
        self.journal = Some((file, end + records.len() as u64));
        self.synced = self.pending.len();
        Ok(())
    }

    /// Writes a new journal with all pending entries.
    fn begin_journal(&mut self) -> io::Result<()> {
        let mut records = Vec::new();
        for (index, entry) in (self.signed.size..).zip(&self.pending) {
            journal::write_record(index, entry, &mut records);
        }
        replace(&*self.disk, JOURNAL_PATH, &records)?;
        let file = self.disk.open(JOURNAL_PATH, Access::Write)?;
        self.journal = Some((file, records.len() as u64));
        self.synced = self.pending.len();
        Ok(())
    }

    /// Signs a checkpoint over all entries, and returns it. Returns `None` if there is one already.
    ///
    /// # Errors
    ///
    /// The disk refuses. There is no checkpoint then; the next call tries again.
    pub(super) fn sign(&mut self, keys: &[SigningKey]) -> io::Result<Option<Note>> {
        let head = self.head();
        if head == self.signed {
            return Ok(None);
        }
        self.commit()?;
        self.write_tiles()?;
        let checkpoint = Checkpoint { origin: self.origin.clone(), head };
        let note = checkpoint.sign(keys).map_err(io::Error::other)?;
        self.publish(&note)?;
        let obsolete = std::mem::replace(&mut self.before, self.signed.size);
        (self.signed, self.newest) = (head, Some(note.clone()));
        (self.pending, self.pending_bytes, self.synced) = (Vec::new(), 0, 0);
        // The next entries begin a new journal. Until then the old one has nothing that is needed.
        self.journal = None;
        self.remove_partial_tiles(obsolete);
        Ok(Some(note))
    }

    /// Returns the size and the root that the newest checkpoint covers.
    pub(super) fn signed(&self) -> Head {
        self.signed
    }

    /// Returns the newest checkpoint with its note. Before the first one, that is a checkpoint of
    /// the empty log, which every log extends.
    ///
    /// # Errors
    ///
    /// The origin can't be in a note.
    pub(super) fn newest(&self, keys: &[SigningKey]) -> io::Result<(Head, Note)> {
        let note = match &self.newest {
            Some(note) => note.clone(),
            None => {
                let checkpoint = Checkpoint { origin: self.origin.clone(), head: self.signed };
                checkpoint.sign(keys).map_err(io::Error::other)?
            }
        };
        Ok((self.signed, note))
    }

    /// Takes the newest checkpoint with more signatures, and replaces its file.
    ///
    /// # Errors
    ///
    /// The disk refuses. The file then holds the old note or the new one.
    pub(super) fn cosign(&mut self, note: Note) -> io::Result<()> {
        // The checkpoint of the empty log has no file.
        if self.newest.is_none() {
            return Ok(());
        }
        self.publish(&note)?;
        self.newest = Some(note);
        Ok(())
    }

    /// Returns the proof that the newest checkpoint extends the log of an earlier size.
    ///
    /// # Errors
    ///
    /// A tile can't be read, or the tiles are not those of the checkpoint.
    pub(super) fn prove(&self, old: u64) -> io::Result<Vec<Hash>> {
        let size = self.signed.size;
        let nodes = tile::Tiles::new(size, |tile| tile::hashes(&self.tile(tile)?, tile.width));
        let proof = consistency(&nodes, old, size)?;
        let old = Head { size: old, root: root_at(&nodes, old)? };
        match extends(old, self.signed, &proof) {
            true => Ok(proof),
            false => Err(io::Error::other("the tiles are not those of the newest checkpoint")),
        }
    }

    /// Keeps in a file that a witness has contradicted the log, so that no later start goes on with
    /// it.
    ///
    /// # Errors
    ///
    /// The disk refuses.
    pub(super) fn roll_back(&self, why: &str) -> io::Result<()> {
        replace(&*self.disk, ROLLED_BACK, format!("{}\n{why}\n", self.origin).as_bytes())
    }

    fn publish(&self, note: &Note) -> io::Result<()> {
        replace(&*self.disk, &path(CHECKPOINT), note.to_string().as_bytes())
    }

    /// Writes the tiles and bundles that have changed since the newest checkpoint.
    fn write_tiles(&mut self) -> io::Result<()> {
        let levels = self.tiles.iter_mut().zip(0..).map(|(it, level)| (it, Content::Hashes(level)));
        let all = levels.chain([(&mut self.bundle, Content::Entries)]);
        let mut partial = Vec::new();
        for (growing, content) in all {
            while let Some((index, bytes)) = growing.whole.first() {
                let tile = Tile { content, index: *index, width: WIDTH };
                write_tile(&*self.disk, tile, bytes)?;
                growing.whole.remove(0);
            }
            if growing.width > 0 {
                let tile = Tile { content, index: growing.index, width: growing.width };
                partial.push((tile, &growing.bytes));
            }
        }
        partial.into_iter().try_for_each(|(tile, bytes)| write_tile(&*self.disk, tile, bytes))
    }

    /// Deletes the partial tiles of a checkpoint of this size, which nobody needs any more. One
    /// that stays does no harm.
    fn remove_partial_tiles(&self, size: u64) {
        let needed: Vec<_> =
            [self.before, self.signed.size].into_iter().flat_map(last_tiles).collect();
        for tile in last_tiles(size).filter(|tile| tile.width < WIDTH && !needed.contains(tile)) {
            if let Err(error) = self.disk.remove(&path(&tile.path())) {
                tracing::debug!(%error, "a partial tile of the evidence can't be deleted");
            }
        }
    }
}

/// Returns the reason if a witness has contradicted the log of this origin.
///
/// # Errors
///
/// The disk refuses.
pub(super) fn rolled_back(disk: &dyn Disk, origin: &str) -> io::Result<Option<String>> {
    let text = read(disk, ROLLED_BACK, ROLLED_BACK_MAX)?;
    Ok(text.and_then(|text| layout::rolled_back(&text, origin)))
}

/// Returns the position behind the events that an entry brings into the log; `None` if it brings
/// none.
fn end_of(entry: &[u8]) -> Option<u64> {
    Entry::parse(entry).ok()?.end_in_queue()
}

/// Checks that no log that was kept aside has this origin.
fn check_is_free(disk: &dyn Disk, origin: &str) -> io::Result<()> {
    for name in disk.list("")?.iter().filter(|name| name.starts_with(ASIDE)) {
        let path = format!("{name}/{CHECKPOINT}");
        let note = match read(disk, &path, NOTE_BYTES_MAX) {
            // Such as an archive of the directory.
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => None,
            note => note.map_err(named(&path))?,
        };
        let signed = note.and_then(|note| Signed::parse(&note).ok());
        if signed.is_some_and(|signed| signed.checkpoint.origin == origin) {
            return Err(io::Error::other(format!(
                "the origin {origin} is that of the log in {name}: a new log needs a new origin"
            )));
        }
    }
    Ok(())
}

/// Renames the directory of a log if the log is of another origin. The checkpoint must be that of
/// the tiles beside it: one that was put there by mistake must not end the log.
fn keep_aside(disk: &dyn Disk, origin: &str) -> io::Result<()> {
    let Some(note) = read(disk, &path(CHECKPOINT), NOTE_BYTES_MAX)? else {
        // A witness may have contradicted the log of another origin before its first checkpoint.
        let mark = read(disk, ROLLED_BACK, ROLLED_BACK_MAX)?.unwrap_or_default();
        let of = String::from_utf8_lossy(&mark);
        return match of.split_once('\n') {
            Some((before, _)) if before != origin && has_log(disk)? => {
                rename_aside(disk, before, origin)
            }
            _ => Ok(()),
        };
    };
    // A checkpoint that can't be read is reported when the log is opened.
    let Ok(Signed { checkpoint, .. }) = Signed::parse(&note) else { return Ok(()) };
    if checkpoint.origin == origin {
        return Ok(());
    }
    let size = checkpoint.head.size;
    let nodes = tile::Tiles::new(size, |tile| tile::hashes(&tile_of(disk, tile)?, tile.width));
    if root_at(&nodes, size)? != checkpoint.head.root {
        return Err(io::Error::other(format!(
            "{} is that of {}, and the tiles beside it are not",
            path(CHECKPOINT),
            checkpoint.origin
        )));
    }
    rename_aside(disk, &checkpoint.origin, origin)
}

/// Returns `true` if there is a directory of a log with a journal.
fn has_log(disk: &dyn Disk) -> io::Result<bool> {
    Ok(read(disk, JOURNAL_PATH, JOURNAL_BYTES_MAX)?.is_some())
}

/// Renames the directory of the log of the origin `before`.
fn rename_aside(disk: &dyn Disk, before: &str, origin: &str) -> io::Result<()> {
    let aside = format!("{ASIDE}{}", now());
    tracing::warn!(
        before,
        origin,
        aside,
        "evidence.origin has changed: a new log begins, and the old one is kept aside"
    );
    disk.rename(DIRECTORY, &aside)?;
    disk.sync_directory("")
}

/// Returns the bytes of a tile or bundle. A crash may have left the whole one already.
fn tile_of(disk: &dyn Disk, tile: Tile) -> io::Result<Vec<u8>> {
    let missing = || io::Error::other(format!("{} is missing", path(&tile.path())));
    if let Some(bytes) = read(disk, &path(&tile.path()), BUNDLE_BYTES_MAX)? {
        return Ok(bytes);
    }
    let whole = read(disk, &path(&tile.whole().path()), BUNDLE_BYTES_MAX)?;
    tile.of_wider(&whole.ok_or_else(missing)?, WIDTH)
}

/// Returns the content of a file; `None` if there is none.
fn read(disk: &dyn Disk, path: &str, max: usize) -> io::Result<Option<Vec<u8>>> {
    let file = match disk.open(path, Access::Read) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    read_all(&*file, max).map(Some)
}

/// Reads a whole file of at most this many bytes.
pub(super) fn read_all(file: &dyn File, max: usize) -> io::Result<Vec<u8>> {
    let bytes = usize::try_from(file.bytes()?).unwrap_or(usize::MAX);
    if bytes > max {
        return Err(io::Error::other(format!("the file has {bytes} bytes, at most {max} fit")));
    }
    let mut content = vec![0; bytes];
    let read = file.read_at(&mut content, 0)?;
    content.truncate(read);
    Ok(content)
}

fn write_tile(disk: &dyn Disk, tile: Tile, bytes: &[u8]) -> io::Result<()> {
    let path = path(&tile.path());
    for (at, _) in path.match_indices('/') {
        disk.make_directory(path.get(..at).unwrap_or_default())?;
    }
    replace(disk, &path, bytes)
}

#[cfg(test)]
#[allow(clippy::panic_in_result_fn, reason = "an error is the disk's, a panic a broken promise")]
mod tests {
    use super::*;
    use crate::queue::tests::simulated_disk::SimulatedDisk;
    use crate::queue::tests::simulated_disk::is_crash;
    use crate::tlog::merkle::extends;
    use crate::tlog::merkle::root;

    const ORIGIN: &str = "example.org/relay-0";

    fn key() -> SigningKey {
        SigningKey::generate(ORIGIN).expect("random numbers").0
    }

    fn open(disk: &SimulatedDisk, key: &SigningKey) -> io::Result<Store> {
        Store::open(Arc::new(disk.clone()), ORIGIN, std::slice::from_ref(key))
    }

    /// Returns all entries of a store.
    fn entries(store: &Store) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        for index in 0..store.signed.size.div_ceil(WIDTH) {
            let width = (store.signed.size - index * WIDTH).min(WIDTH);
            let tile = Tile { content: Content::Entries, index, width };
            let bundle = store.tile(tile).expect("it is there");
            let entries = tile::entries(&bundle, width).expect("it is whole");
            found.extend(entries.into_iter().map(<[u8]>::to_vec));
        }
        found.extend(store.pending.iter().cloned());
        found
    }

    /// A log under random faults and crashes, beside a list of the entries that must be in it.
    struct Model {
        rng: fastrand::Rng,
        disk: SimulatedDisk,
        key: SigningKey,
        entries: Vec<Vec<u8>>,
        /// How many of them were made durable.
        durable: usize,
        /// The checkpoints that somebody may have seen.
        seen: Vec<Head>,
        made: u64,
    }

    impl Model {
        /// Opens the log after a start, and compares it with the list.
        fn open(&mut self) -> Option<Store> {
            let store = match open(&self.disk, &self.key) {
                Ok(store) => store,
                Err(error) if is_crash(&error) => return None,
                Err(error) => panic!("the log can't be opened: {error}"),
            };
            let found = entries(&store);
            assert!(found.len() >= self.durable, "{} of {}", found.len(), self.durable);
            assert_eq!(found, self.entries[..found.len()]);
            let leaves: Vec<_> = found.iter().map(|entry| Hash::of_leaf(entry)).collect();
            assert_eq!(store.head().root, root(leaves.iter().copied()));
            for seen in &self.seen {
                let (old, new) = (seen.size, store.head());
                assert!(old <= new.size, "{old} entries were signed, {} are left", new.size);
                let path = consistency(leaves.as_slice(), old, new.size);
                assert!(extends(*seen, new, &path.expect("all hashes are there")));
            }
            self.entries.truncate(found.len());
            self.durable = found.len();
            Some(store)
        }

        /// Does something at random. Returns an error of the disk.
        fn step(&mut self, store: &mut Store) -> io::Result<()> {
            match self.rng.u8(..10) {
                0..6 => {
                    for _ in 0..self.rng.usize(1..60) {
                        self.made += 1;
                        let length = self.rng.usize(..40);
                        let entry = [self.made.to_be_bytes().to_vec(), vec![b'x'; length]].concat();
                        self.entries.push(entry.clone());
                        store.push(entry)?;
                    }
                }
                6..8 => {
                    store.commit()?;
                    self.durable = self.entries.len();
                }
                _ => {
                    // The checkpoint may become visible, and an error come after that.
                    let head = store.head();
                    let signed = store.sign(std::slice::from_ref(&self.key));
                    if let Ok(Some(note)) = &signed {
                        let of_note = Checkpoint::of_text(note.text()).expect("it is one");
                        assert_eq!(of_note.head, head);
                        self.durable = self.entries.len();
                        self.seen.push(head);
                    }
                    signed?;
                }
            }
            Ok(())
        }
    }

    #[test]
    fn what_was_signed_stays_whatever_the_disk_does() {
        for seed in 0..60 {
            let rng = fastrand::Rng::with_seed(seed);
            let (disk, key) = (SimulatedDisk::new(seed), key());
            let (entries, seen) = (Vec::new(), Vec::new());
            let mut model = Model { rng, disk, key, entries, durable: 0, seen, made: 0 };
            println!("seed {seed}");
            for _ in 0..6 {
                model.disk.calm();
                let Some(mut store) = model.open() else {
                    model.disk = model.disk.crash(&mut model.rng);
                    continue;
                };
                if model.rng.bool() {
                    model.disk.faults(0.05);
                }
                model.disk.crash_after(model.rng.u64(1..120));
                for _ in 0..200 {
                    match model.step(&mut store) {
                        Err(error) if is_crash(&error) => break,
                        // The next steps try again.
                        Ok(()) | Err(_) => {}
                    }
                }
                // Sometimes only the process ends, and not the machine.
                if model.disk.is_dead() || model.rng.bool() {
                    model.disk = model.disk.crash(&mut model.rng);
                }
            }
            model.disk.calm();
            let mut store = model.open().expect("no crash is set");
            store.sign(std::slice::from_ref(&model.key)).expect("no fault is set");
            assert_eq!(store.signed, store.head());
        }
    }

    /// Method: the checkpoint is removed, and replaced by an older one. A log that went on would
    /// sign another root for a size that was signed before.
    #[test]
    fn a_log_whose_checkpoint_was_set_back_is_not_gone_on_with() {
        let (disk, key) = (SimulatedDisk::new(1), key());
        let name = "evidence/checkpoint";
        let mut notes = Vec::new();
        for round in 0..3 {
            let mut store = open(&disk, &key).expect("it is whole");
            for entry in 0..10_u8 {
                store.push(vec![round, entry]).expect("it is short");
            }
            store.sign(std::slice::from_ref(&key)).expect("no fault is set");
            store.push(vec![round]).expect("it is short");
            store.commit().expect("no fault is set");
            notes.push(disk.contents(name));
        }
        let newest = notes.pop().expect("there are three");
        for note in notes {
            replace(&disk, name, &note).expect("no fault is set");
            let error = open(&disk, &key).map(|store| store.head()).expect_err("it is older");
            assert!(error.to_string().contains("older checkpoint was put back"), "{error}");
        }
        disk.remove(name).expect("it is there");
        let error = open(&disk, &key).map(|store| store.head()).expect_err("it is gone");
        assert!(error.to_string().contains("is missing"), "{error}");
        replace(&disk, name, &newest).expect("no fault is set");
        assert_eq!(open(&disk, &key).expect("it is whole").head().size, 33);
    }

    #[test]
    fn a_log_of_another_key_or_with_other_hashes_is_not_gone_on_with() {
        let (disk, own) = (SimulatedDisk::new(1), key());
        let mut store = open(&disk, &own).expect("it is empty");
        store.push(b"entry".to_vec()).expect("it is short");
        store.sign(std::slice::from_ref(&own)).expect("no fault is set");
        assert!(open(&disk, &key()).is_err());
        assert_eq!(open(&disk, &own).expect("it is its own").head().size, 1);
        for name in disk.names().into_iter().filter(|name| name.starts_with("evidence/tile/")) {
            disk.flip(&name, 5, 1);
            assert!(open(&disk, &own).is_err(), "{name}");
            disk.flip(&name, 5, 1);
        }
    }
}
