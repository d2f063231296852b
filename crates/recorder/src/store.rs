//! The files of an evidence log, and the order in which they are written.
//!
//! A *commit* makes entries durable: it signs a note over the whole log, and replaces the file
//! `evidence-head` next to the log. The new file has the note and the entries that are not in the
//! tiles yet. A *checkpoint* publishes durable entries, in this order: the tiles and bundles are
//! written and synced, the checkpoint is signed, and its file replaces the one before. After a
//! crash at any moment, each durable entry is therefore in the tiles or in `evidence-head`, and the
//! tiles have all entries that a checkpoint covers. If there are many entries, the tiles are also
//! written without a checkpoint, so that `evidence-head` stays small.
//!
//! Somebody else may have written to the files while the relay was stopped. If the tiles and
//! entries are not those that `evidence-head` was signed over, the log ends with the newest
//! checkpoint, and an alarm says so. A copy of the newest checkpoint is kept next to the directory
//! of the log, so that a log that was removed or cut is noticed even without `evidence-head`.

use std::io;
use std::sync::Arc;

use base::disk::{Access, Disk, named, replace};
use evidence_log::entry::{Alarm, Entry, end_in_queue, now};
use evidence_log::head::{HEAD_BYTES_MAX, HeadFile, Sizes};
use evidence_log::layout::{
    DIRECTORY, Files, HEAD, JOURNAL, KNOWN, ROLLED_BACK, ROLLED_BACK_MAX, Tampered, if_there, path,
    read, read_at_most,
};
use evidence_log::tlog::checkpoint::{Checkpoint, Signed};
use evidence_log::tlog::key::SigningKey;
use evidence_log::tlog::merkle::{Frontier, Hash, Head, Nodes, consistency, extends, root_at};
use evidence_log::tlog::note::{NOTE_BYTES_MAX, Note, Signed as Check};
use evidence_log::tlog::tile;
use evidence_log::tlog::tile::{
    CHECKPOINT, Content, ENTRY_BYTES_MAX, Growing, Tile, WIDTH, last_tiles,
};
use evidence_log::{journal, layout};

/// The size in bytes of the entries outside the tiles at which the log is full. No more events are
/// then recorded until a commit has written the tiles.
const PENDING_MAX: usize = 8 << 20;

/// The size in bytes of the entries outside the tiles at which a commit writes the tiles, even
/// without a checkpoint. Until then, each commit writes these entries again.
const TILES_EVERY: usize = 64 << 10;

/// The beginning of the name of a directory with the log of an earlier origin.
const ASIDE: &str = "evidence-until-";

/// The beginning of the name of a journal that was set aside. The time in milliseconds follows.
const REFUSED: &str = "journal-refused-";

pub(crate) struct Store {
    disk: Arc<dyn Disk>,
    origin: String,
    /// Covers all entries, also those that are not durable yet.
    tree: Tree,
    newest: Newest,
    /// The size and the root of the log as far as it is in the tiles.
    tiled: Head,
    /// The number of entries for which the file `evidence-head` needs the tiles.
    needed: u64,
    pending: Pending,
    /// The content of `evidence-head`. `None` if the next commit must write the file even without a
    /// new entry.
    written: Option<Vec<u8>>,
    /// The sizes of the files of line hashes when the log was opened; `None` if they are not known.
    lines: Option<Sizes>,
    /// The size of the checkpoint for which this process has written the journal.
    journal_of: Option<u64>,
    /// `true`: the log was opened without entries that were signed ([`Store::note_cut`]).
    pub(super) is_cut: bool,
    /// The alarms about changes by somebody else, found when the log was opened.
    pub(super) alarms: Vec<Alarm>,
}

/// How the run of an older version, which has no `evidence-head`, has ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Older {
    HasEnded,
    WasKilled,
}

struct Newest {
    head: Head,
    /// The note with the signatures collected so far. Before the first checkpoint: a note over the
    /// empty log, which every log extends. That note has no file.
    note: Note,
    /// The size of the checkpoint before the newest one. A reader may still need its partial tiles.
    before: u64,
    /// `false`: an attempt to replace the checkpoint's file has failed, so its content is unknown.
    is_published: bool,
    /// The size of the last checkpoint that needs no new copy next to the log.
    remembered: u64,
}

/// The entries that are not in the tiles.
#[derive(Default)]
struct Pending {
    entries: Vec<Vec<u8>>,
    bytes: usize,
    /// The number of entries, from the first on, that are durable.
    synced: usize,
}

#[derive(Default)]
struct Tree {
    frontier: Frontier,
    /// The whole tiles that are not in files yet, and the partial tiles.
    tiles: Growing,
    /// The last bundle in a file, if it is partial.
    bundle: Vec<u8>,
}

impl Store {
    /// Opens the log of this origin, or begins a new log. One of `keys` must have signed the
    /// checkpoint of an existing log. The directory of a log of another origin is renamed.
    ///
    /// # Errors
    ///
    /// The files can't be read, are damaged or of another key, or the origin was used before.
    pub(crate) fn open(disk: Arc<dyn Disk>, origin: &str, keys: &[SigningKey]) -> io::Result<Self> {
        check_is_free(&*disk, origin)?;
        keep_aside(&*disk, origin)?;
        disk.make_directory(DIRECTORY)?;
        // An earlier process may have been killed between a rename and its sync.
        disk.sync_directory(DIRECTORY)?;
        let newest = Newest::read(&*disk, origin, keys)?;
        let head = read(&*disk, HEAD, HEAD_BYTES_MAX)?;
        let head = head.and_then(|file| HeadFile::parse(&file).ok());
        let head = head.filter(|HeadFile { signed, .. }| {
            signed.checkpoint.origin == origin && is_signed(&signed.note, keys)
        });
        let stale = head.as_ref().map(|head| head.signed.checkpoint.head);
        let found = head.map(|head| continued(&*disk, head, newest.head)).transpose()?.flatten();
        let (is_found, (tree, entries, lines)) = match found {
            Some((tree, entries, lines)) => (true, (tree, entries, Some(lines))),
            None => (false, (newest.tree(&*disk)?, Vec::new(), None)),
        };
        let tiled = tree.head();
        let mut store = Self {
            disk,
            origin: origin.to_owned(),
            tree,
            newest,
            tiled,
            needed: tiled.size,
            pending: Pending::default(),
            written: None,
            lines,
            journal_of: None,
            is_cut: false,
            alarms: Vec::new(),
        };
        for entry in entries {
            store.push(entry)?;
        }
        store.pending.synced = store.pending.entries.len();
        if !is_found {
            let older = store.older_version(keys)?;
            let extends = match stale {
                None => true,
                Some(stale) => store.extends(stale)?,
            };
            match older.filter(|_| extends) {
                Some(older) => store.note_older(stale, older),
                None if stale.is_none() && store.newest.head.size == 0 => {}
                None => store.note_cut(),
            }
        }
        store.compare_with_known()?;
        if store.newest.head.size == 0 {
            // The checkpoint was removed, or there was none yet. A new checkpoint adds nothing to
            // what was signed.
            store.sign(keys)?;
        }
        Ok(store)
    }

    /// Notes that entries which `evidence-head` was signed over are gone, or that this file is
    /// missing or not valid although there is a checkpoint.
    fn note_cut(&mut self) {
        self.is_cut = true;
        tracing::error!(
            found = self.newest.head.size,
            "the newest entries of the evidence log, which no checkpoint covers, are missing: \
             evidence-head or files in evidence/ were removed or replaced; find out who can write \
             to queue.directory"
        );
        self.is_tampered();
    }

    /// Looks for a journal with entries. The versions 0.1 kept those in it that no checkpoint
    /// covered, and this version does not read it. Returns whether such a version has gone on with
    /// the log, and how its run has ended: a signed entry must say so, because anybody can write a
    /// journal. If the journal may have entries that no checkpoint covers, it is set aside, with an
    /// alarm unless they are those of this run.
    fn older_version(&mut self, keys: &[SigningKey]) -> io::Result<Option<Older>> {
        let name = path(JOURNAL);
        let Some(file) = if_there(self.disk.open(&name, Access::Read))? else { return Ok(None) };
        let begin = read_at_most(&*file, journal::EMPTY_BYTES + 1)?;
        if keys.iter().any(|key| journal::is_empty(key, &self.origin, &begin)) {
            return Ok(None);
        }
        // In each version, bytes 8 to 15 are the size of the log before the first entry of the
        // journal.
        let begin = begin.get(8..).and_then(|it| it.first_chunk());
        let is_covered = begin.is_some_and(|it| u64::from_be_bytes(*it) < self.newest.head.size);
        let run = self.last_run()?.filter(|(version, _)| version.starts_with(journal::VERSIONS));
        let older = run.and_then(|(_, has_ended)| match has_ended {
            true => is_covered.then_some(Older::HasEnded),
            false => Some(Older::WasKilled),
        });
        if !is_covered {
            let aside = path(&format!("{REFUSED}{}", now()));
            self.disk.rename(&name, &aside)?;
            self.disk.sync_directory(DIRECTORY)?;
            if older.is_none() {
                self.alarms.push(Alarm::Journal);
                tracing::error!(
                    aside,
                    "evidence/journal was set aside and is not used: an older version of the relay \
                     leaves it when it is killed; if no older version ran here, find out who can \
                     write to queue.directory"
                );
            }
        }
        Ok(older)
    }

    /// Returns the version of the last run, and whether it has ended: the last signed entry is its
    /// stop.
    fn last_run(&self) -> io::Result<Option<(String, bool)>> {
        let size = self.tiled.size;
        for index in (0..size.div_ceil(WIDTH)).rev() {
            let is_last = index == (size - 1) / WIDTH;
            let entries = entries_of(&*self.disk, index, size)?;
            let run = entries.iter().rev().enumerate().find_map(|(place, entry)| {
                let entry = Entry::parse(entry).ok()?;
                if let Entry::Start(start) = entry {
                    return Some((start.running.version, false));
                }
                let Entry::Stop(running) = entry else { return None };
                (is_last && place == 0).then_some((running.version, true))
            });
            if run.is_some() {
                return Ok(run);
            }
        }
        Ok(None)
    }

    /// Returns `true` if the log has all entries that `evidence-head` was signed over.
    fn extends(&self, signed: Head) -> io::Result<bool> {
        Ok(signed.size <= self.tiled.size && self.root_at(signed.size)? == Some(signed.root))
    }

    /// Notes that an older version has gone on with the log since `evidence-head` was signed.
    /// Nobody has removed an entry, but those in the journal of a killed process are not proven.
    fn note_older(&mut self, stale: Option<Head>, older: Older) {
        self.is_cut = older == Older::WasKilled;
        let (from, to) = (stale.map_or(0, |head| head.size), self.tiled.size);
        match older {
            Older::HasEnded => tracing::info!(
                from,
                to,
                "an older version of the relay has written entries of the evidence log: the log \
                 goes on behind them"
            ),
            Older::WasKilled => tracing::warn!(
                from,
                to,
                "an older version of the relay has written entries of the evidence log and was \
                 killed: the log goes on behind those that a checkpoint covers, and says for which \
                 events in the queue nothing is proven"
            ),
        }
    }

    fn last_entry(&self) -> io::Result<Option<Vec<u8>>> {
        match self.pending.entries.last() {
            None if self.tiled.size > 0 => {
                let last = (self.tiled.size - 1) / WIDTH;
                Ok(entries_of(&*self.disk, last, self.tiled.size)?.pop())
            }
            last => Ok(last.cloned()),
        }
    }

    /// Notes that files of the log were removed, cut or replaced, unless there is an alarm already.
    pub(crate) fn is_tampered(&mut self) {
        if self.alarms.is_empty() {
            self.alarms.push(Alarm::Removed);
        }
    }

    /// Returns the sizes that the files of line hashes must have; `None` if they are not known. The
    /// second value is `true` only if the relay has ended in order, so that no file is longer.
    pub(crate) fn lines(&self) -> io::Result<(Option<&Sizes>, bool)> {
        let last = self.last_entry()?;
        let last = last.and_then(|last| Entry::parse(&last).ok());
        Ok((self.lines.as_ref(), self.lines.is_some() && matches!(last, Some(Entry::Stop(_)))))
    }

    fn read(&self, name: &str, max: usize) -> io::Result<Option<Vec<u8>>> {
        read(&*self.disk, &path(name), max)
    }

    /// Compares the log with the copy of the newest checkpoint next to its directory.
    fn compare_with_known(&mut self) -> io::Result<()> {
        let Some(known) = known(&*self.disk, &self.origin)? else { return Ok(()) };
        let size = self.head().size;
        if self.root_at(known.size)? == Some(known.root) {
            return Ok(());
        }
        tracing::error!(
            known = known.size,
            found = size,
            "signed entries of the evidence log are missing: files in evidence/ were removed or \
             replaced by older ones; keep a copy of the directory, compare it with a checkpoint \
             that a consumer or a witness has, and find out who can write to it"
        );
        self.is_cut = true;
        if !self.alarms.contains(&Alarm::Removed) {
            self.alarms.push(Alarm::Removed);
        }
        Ok(())
    }

    /// Returns the root over the first `size` entries, whether they are in the tiles or not. `None`
    /// if the log is shorter.
    fn root_at(&self, size: u64) -> io::Result<Option<Hash>> {
        let nodes = nodes(&*self.disk, self.tiled.size);
        let Some(behind) = size.checked_sub(self.tiled.size) else {
            return root_at(&nodes, size).map(Some);
        };
        let mut frontier = Frontier::read(&nodes, self.tiled.size)?;
        let behind = self.pending.entries.get(..usize::try_from(behind).unwrap_or(usize::MAX));
        Ok(behind.map(|behind| {
            behind.iter().for_each(|it| frontier.push(Hash::of_leaf(it), &mut |_, _| {}));
            frontier.root()
        }))
    }

    /// Writes a copy of the newest checkpoint next to the directory of the log, unless it is there
    /// already.
    ///
    /// # Errors
    ///
    /// The disk refuses. The next call tries again.
    pub(crate) fn remember(&mut self) -> io::Result<()> {
        let Newest { head, note, remembered, .. } = &mut self.newest;
        if *remembered != head.size {
            replace(&*self.disk, KNOWN, note.to_string().as_bytes())?;
            *remembered = head.size;
        }
        Ok(())
    }

    /// Returns `false` if the file of the checkpoint or `evidence-head` is missing, or differs from
    /// the content that the relay knows.
    pub(crate) fn is_there(&self) -> io::Result<bool> {
        let Newest { head, note, is_published, .. } = &self.newest;
        if *is_published && head.size > 0 {
            let found = self.read(CHECKPOINT, NOTE_BYTES_MAX)?;
            if found.as_deref() != Some(note.to_string().as_bytes()) {
                return Ok(false);
            }
        }
        let Some(written) = &self.written else { return Ok(true) };
        Ok(read(&*self.disk, HEAD, HEAD_BYTES_MAX)?.as_ref() == Some(written))
    }

    /// Writes the file of the newest checkpoint again, and lets the next commit write
    /// `evidence-head`. Returns `false` and does nothing if there is no checkpoint, or if the tiles
    /// are gone or changed.
    pub(crate) fn restore(&mut self) -> io::Result<bool> {
        let Head { size, root } = self.tiled;
        let has_tiles = root_at(&nodes(&*self.disk, size), size).is_ok_and(|found| found == root);
        if self.newest.head.size == 0 || !has_tiles {
            return Ok(false);
        }
        self.publish(&self.newest.note.clone())?;
        self.written = None;
        Ok(true)
    }

    pub(crate) fn head(&self) -> Head {
        self.tree.head()
    }

    /// Returns the position after the last event that came in or that the queue lost, according to
    /// the entries. `None` if no entry is about such an event.
    pub(super) fn last_accepted(&self) -> io::Result<Option<u64>> {
        let size = self.tiled.size;
        end_in_queue(size, &self.pending.entries, |index| entries_of(&*self.disk, index, size))
    }

    /// Returns `true` if no more events may be recorded until a commit has written tiles.
    pub(crate) fn is_full(&self) -> bool {
        self.pending.bytes >= PENDING_MAX
    }

    /// Adds an entry. It is not durable before [`Store::commit`].
    ///
    /// # Errors
    ///
    /// The entry is too long.
    pub(crate) fn push(&mut self, entry: Vec<u8>) -> io::Result<()> {
        if entry.len() > ENTRY_BYTES_MAX {
            return Err(io::Error::other("an entry is longer than 65535 bytes"));
        }
        let Tree { frontier, tiles, .. } = &mut self.tree;
        frontier.push(Hash::of_leaf(&entry), &mut |level, hash| tiles.push(level, hash));
        self.pending.bytes += entry.len();
        self.pending.entries.push(entry);
        Ok(())
    }

    /// Makes all entries durable, and signs `evidence-head` over them. `sizes` are the sizes of the
    /// files of line hashes.
    ///
    /// # Errors
    ///
    /// The disk refuses. No entry is lost, and the next call tries again.
    pub(crate) fn commit(&mut self, sizes: &Sizes, keys: &[SigningKey]) -> io::Result<()> {
        let Pending { entries, synced, .. } = &mut self.pending;
        if self.written.is_none() || *synced < entries.len() {
            let checkpoint = Checkpoint { origin: self.origin.clone(), head: self.tree.head() };
            let content = HeadFile::content(&checkpoint, entries, sizes, keys)?;
            self.written = None;
            replace(&*self.disk, HEAD, &content)?;
            self.written = Some(content);
            *synced = entries.len();
            let obsolete = std::mem::replace(&mut self.needed, self.tiled.size);
            self.remove_partial_tiles(obsolete);
            self.leave_journal(keys);
        }
        if self.pending.bytes >= TILES_EVERY { self.write_tiles() } else { Ok(()) }
    }

    /// Signs and publishes a checkpoint over all entries, which must be durable. Returns the
    /// checkpoint, or `None` if the newest one covers all entries already.
    ///
    /// # Errors
    ///
    /// The disk refuses. The new checkpoint may be in the file nevertheless. The next call tries
    /// again.
    pub(crate) fn sign(&mut self, keys: &[SigningKey]) -> io::Result<Option<Note>> {
        let head = self.head();
        if head == self.newest.head {
            return Ok(None);
        }
        self.write_tiles()?;
        let note = signed(&self.origin, head, keys)?;
        self.publish(&note)?;
        let newest = &mut self.newest;
        let obsolete = std::mem::replace(&mut newest.before, newest.head.size);
        (newest.head, newest.note) = (head, note.clone());
        self.remove_partial_tiles(obsolete);
        self.leave_journal(keys);
        Ok(Some(note))
    }

    /// Leaves a journal without entries for the newest checkpoint, unless it is there already: see
    /// [`journal`]. If the disk refuses, nothing waits, and the next commit tries again: this
    /// version needs no journal.
    fn leave_journal(&mut self, keys: &[SigningKey]) {
        let head = self.newest.head;
        let Some(key) = keys.last().filter(|_| self.journal_of != Some(head.size)) else { return };
        let content = journal::empty(key, &self.origin, head);
        match replace(&*self.disk, &path(JOURNAL), &content) {
            Ok(()) => self.journal_of = Some(head.size),
            Err(error) => tracing::debug!(%error, "cannot leave a journal for version 0.1"),
        }
    }

    /// Returns the size and the root that the newest checkpoint covers.
    pub(crate) fn signed(&self) -> Head {
        self.newest.head
    }

    /// Returns the note of the newest checkpoint. Before the first one, returns that of a
    /// checkpoint over the empty log, which every log extends.
    pub(crate) fn note(&self) -> &Note {
        &self.newest.note
    }

    /// Replaces the newest checkpoint and its file by the same checkpoint with more signatures.
    ///
    /// # Errors
    ///
    /// The disk refuses. The file then holds the old note or the new one.
    pub(crate) fn cosign(&mut self, note: Note) -> io::Result<()> {
        // The checkpoint of the empty log has no file.
        if self.newest.head.size > 0 {
            self.publish(&note)?;
            self.newest.note = note;
        }
        Ok(())
    }

    /// Returns the proof that the newest checkpoint extends the log of an earlier size.
    ///
    /// # Errors
    ///
    /// A tile can't be read, or the tiles are not those of the checkpoint.
    pub(crate) fn prove(&self, old: u64) -> io::Result<Vec<Hash>> {
        let head = self.newest.head;
        let nodes = nodes(&*self.disk, head.size);
        let proof = consistency(&nodes, old, head.size)?;
        let old = Head { size: old, root: root_at(&nodes, old)? };
        match extends(old, head, &proof) {
            true => Ok(proof),
            false => Err(io::Error::other("the tiles are not those of the newest checkpoint")),
        }
    }

    /// Writes a file that says that a witness has contradicted the log, so that no later start
    /// continues the log.
    pub(super) fn roll_back(&self, why: &str) -> io::Result<()> {
        replace(&*self.disk, ROLLED_BACK, format!("{}\n{why}\n", self.origin).as_bytes())
    }

    fn publish(&mut self, note: &Note) -> io::Result<()> {
        self.newest.is_published = false;
        replace(&*self.disk, &path(CHECKPOINT), note.to_string().as_bytes())?;
        self.newest.is_published = true;
        Ok(())
    }

    /// Writes the tiles and bundles of the entries that are not in them. These entries must be
    /// durable, so that no later start gives other content to a tile.
    fn write_tiles(&mut self) -> io::Result<()> {
        let disk = &*self.disk;
        let Tree { frontier, tiles, bundle } = &mut self.tree;
        if self.tiled.size == frontier.size() {
            return Ok(());
        }
        let whole = tiles.whole.iter().map(|(tile, hashes)| (*tile, hashes.as_slice()));
        for (tile, hashes) in whole.chain(tiles.partial()) {
            let bytes: Vec<u8> = hashes.iter().flat_map(|hash| hash.0).collect();
            write_tile(disk, tile, &bytes)?;
        }
        let (mut last, mut end) = (bundle.clone(), self.tiled.size);
        for entry in &self.pending.entries {
            tile::push_entry(entry, &mut last)?;
            end += 1;
            if end.is_multiple_of(WIDTH) {
                let tile = Tile { content: Content::Entries, index: end / WIDTH - 1, width: WIDTH };
                write_tile(disk, tile, &last)?;
                last.clear();
            }
        }
        if !last.is_empty() {
            let (index, width) = (end / WIDTH, end % WIDTH);
            write_tile(disk, Tile { content: Content::Entries, index, width }, &last)?;
        }
        tiles.whole.clear();
        *bundle = last;
        self.tiled = Head { size: frontier.size(), root: frontier.root() };
        self.pending = Pending::default();
        Ok(())
    }

    /// Deletes the partial tiles of a log of this size, unless a checkpoint or `evidence-head`
    /// needs them. A tile that can't be deleted does no harm.
    fn remove_partial_tiles(&self, size: u64) {
        let newest = &self.newest;
        let sizes = [newest.before, newest.head.size, self.needed, self.tiled.size];
        let needed: Vec<_> = sizes.into_iter().flat_map(last_tiles).collect();
        for tile in last_tiles(size).filter(|tile| tile.width < WIDTH && !needed.contains(tile)) {
            if let Err(error) = self.disk.remove(&path(&tile.path())) {
                tracing::debug!(%error, "a partial tile of the evidence can't be deleted");
            }
        }
    }
}

impl Newest {
    fn read(disk: &dyn Disk, origin: &str, keys: &[SigningKey]) -> io::Result<Self> {
        let wrong = |what: String| io::Error::other(format!("{}: {what}", path(CHECKPOINT)));
        let (head, note) = match read(disk, &path(CHECKPOINT), NOTE_BYTES_MAX)? {
            Some(note) => {
                let signed = Signed::parse(&note).map_err(|error| wrong(error.to_string()))?;
                if !is_signed(&signed.note, keys) {
                    return Err(wrong(
                        "it was not signed by the key in evidence.key_file (or next_key_file)"
                            .to_owned(),
                    ));
                }
                (signed.checkpoint.head, signed.note)
            }
            None => {
                let head = Head { size: 0, root: Hash::of_nothing() };
                (head, signed(origin, head, keys)?)
            }
        };
        Ok(Self { head, note, before: head.size, is_published: true, remembered: head.size })
    }

    /// Reads the tree that the checkpoint covers. Without a checkpoint, the log must not have
    /// tiles: a log that began a second time would sign other roots for the same sizes.
    fn tree(&self, disk: &dyn Disk) -> io::Result<Tree> {
        if self.head.size > 0 {
            let tree = Tree::read(disk, self.head.size)?;
            return match tree.head() == self.head {
                true => Ok(tree),
                false => {
                    let name = path(CHECKPOINT);
                    Err(io::Error::other(format!("{name}: its root is not that of the tiles")))
                }
            };
        }
        let names = |directory| if_there(disk.list(&path(directory)));
        let has_files = |names: Option<Vec<String>>| names.is_some_and(|names| !names.is_empty());
        if has_files(names("tile/0")?) || has_files(names("tile/0/000.p")?) {
            let missing = path(CHECKPOINT);
            let what = format!("the log has tiles, and {missing} is missing");
            return Err(io::Error::other(Tampered(what)));
        }
        Ok(Tree::default())
    }
}

impl Tree {
    fn head(&self) -> Head {
        Head { size: self.frontier.size(), root: self.frontier.root() }
    }

    fn read(disk: &dyn Disk, size: u64) -> io::Result<Self> {
        let mut tree = Self::default();
        for tile in last_tiles(size) {
            let bytes = tile_of(disk, tile)?;
            match tile.content {
                Content::Entries => {
                    entries_of(disk, tile.index, size)?;
                    tree.bundle = if tile.width == WIDTH { Vec::new() } else { bytes };
                }
                Content::Hashes(level) => {
                    tree.tiles.go_on(level, tile.index, tile::hashes(&bytes, tile.width)?);
                }
            }
        }
        tree.frontier = Frontier::read(&nodes(disk, size), size)?;
        Ok(tree)
    }
}

/// The tree in the tiles, the entries after the tiles, and the sizes of the files of line hashes.
type Continued = (Tree, Vec<Vec<u8>>, Sizes);

/// Returns the log that `head` describes. `None` if the tiles and entries do not have the root in
/// `head`, or if the log does not extend the checkpoint.
fn continued(disk: &dyn Disk, head: HeadFile, checkpoint: Head) -> io::Result<Option<Continued>> {
    let HeadFile { signed, tiles, mut entries, sizes } = head;
    // If the checkpoint covers more entries than the tiles that `head` names, these tiles may be
    // gone.
    let size = tiles.max(checkpoint.size);
    let covered = usize::try_from(size - tiles).unwrap_or(usize::MAX);
    if covered > entries.len() {
        return Ok(None);
    }
    entries.drain(..covered);
    let root = root_at(&nodes(disk, size), checkpoint.size);
    let (root, tree) = match root.and_then(|root| Ok((root, Tree::read(disk, size)?))) {
        Ok(read) => read,
        // An error with an inner error is about missing or wrong files. Errors of the disk have no
        // inner error.
        Err(error) if error.get_ref().is_some() && !Tampered::is(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut frontier = tree.frontier.clone();
    entries.iter().for_each(|entry| frontier.push(Hash::of_leaf(entry), &mut |_, _| {}));
    let is_whole = root == checkpoint.root && frontier.root() == signed.checkpoint.head.root;
    Ok(is_whole.then_some((tree, entries, sizes)))
}

fn is_signed(note: &Note, keys: &[SigningKey]) -> bool {
    keys.iter().any(|key| matches!(note.check(key.verifier()), Check::Valid(_)))
}

fn signed(origin: &str, head: Head, keys: &[SigningKey]) -> io::Result<Note> {
    let checkpoint = Checkpoint { origin: origin.to_owned(), head };
    checkpoint.sign(keys).map_err(io::Error::other)
}

/// Returns the reason if a witness has contradicted the log of this origin.
pub(crate) fn rolled_back(disk: &dyn Disk, origin: &str) -> io::Result<Option<String>> {
    let text = read(disk, ROLLED_BACK, ROLLED_BACK_MAX)?;
    Ok(text.and_then(|text| layout::rolled_back(&text, origin)))
}

/// Returns the size and the root in the copy of the newest checkpoint next to the log. `None` if
/// there is no readable copy for a log of this origin.
fn known(disk: &dyn Disk, origin: &str) -> io::Result<Option<Head>> {
    let Some(note) = read(disk, KNOWN, NOTE_BYTES_MAX)? else { return Ok(None) };
    match Signed::parse(&note) {
        Ok(Signed { checkpoint, .. }) => {
            Ok((checkpoint.origin == origin).then_some(checkpoint.head))
        }
        Err(error) => {
            let file = KNOWN;
            tracing::error!(
                %error,
                file,
                "cannot read the copy of the newest evidence checkpoint: if files of the evidence \
                 were removed, the relay may not notice it"
            );
            Ok(None)
        }
    }
}

/// Checks that no log that was set aside has this origin.
fn check_is_free(disk: &dyn Disk, origin: &str) -> io::Result<()> {
    for name in disk.list("")?.iter().filter(|name| name.starts_with(ASIDE)) {
        let path = format!("{name}/{CHECKPOINT}");
        let note = match read(disk, &path, NOTE_BYTES_MAX) {
            // The path may be a file, such as an archive of the directory.
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

/// Renames the directory of a log if the log is of another origin. Its checkpoint must match the
/// tiles next to it, so that a checkpoint put there by mistake does not end the log.
fn keep_aside(disk: &dyn Disk, origin: &str) -> io::Result<()> {
    let Some(note) = read(disk, &path(CHECKPOINT), NOTE_BYTES_MAX)? else { return Ok(()) };
    // A checkpoint that can't be read is reported when the log is opened.
    let Ok(Signed { checkpoint, .. }) = Signed::parse(&note) else { return Ok(()) };
    if checkpoint.origin == origin {
        return Ok(());
    }
    let size = checkpoint.head.size;
    if root_at(&nodes(disk, size), size)? != checkpoint.head.root {
        return Err(io::Error::other(format!(
            "{} is that of {}, and the tiles beside it are not",
            path(CHECKPOINT),
            checkpoint.origin
        )));
    }
    let aside = format!("{ASIDE}{}", now());
    tracing::warn!(
        before = checkpoint.origin,
        origin,
        aside,
        "evidence.origin has changed: a new evidence log begins, and the old one is kept in \
         another directory"
    );
    // The file `evidence-head` has entries that are in no other file.
    if if_there(disk.rename(HEAD, &path(HEAD)))?.is_some() {
        disk.sync_directory("")?;
        disk.sync_directory(DIRECTORY)?;
    }
    disk.rename(DIRECTORY, &aside)?;
    disk.sync_directory("")
}

struct OnDisk<'a>(&'a dyn Disk);

impl Files for OnDisk<'_> {
    fn read(&self, name: &str, max: usize) -> io::Result<Option<Vec<u8>>> {
        read(self.0, &path(name), max)
    }
}

/// Returns the bytes of a tile or bundle. If a partial file is missing, the bytes come from the
/// whole file that a run before a crash may have written.
fn tile_of(disk: &dyn Disk, tile: Tile) -> io::Result<Vec<u8>> {
    let missing = || io::Error::other(format!("{} is missing", path(&tile.path())));
    OnDisk(disk).tile(tile)?.ok_or_else(missing)
}

fn nodes(disk: &dyn Disk, size: u64) -> impl Nodes {
    tile::Tiles::new(size, move |tile| tile::hashes(&tile_of(disk, tile)?, tile.width))
}

/// Returns the entries of a bundle of a log of `size` entries. Fails if an entry does not have the
/// hash that is in the tile of the same index.
fn entries_of(disk: &dyn Disk, index: u64, size: u64) -> io::Result<Vec<Vec<u8>>> {
    let width = size.saturating_sub(index * WIDTH).min(WIDTH);
    let tile = Tile { content: Content::Entries, index, width };
    let bundle = tile_of(disk, tile)?;
    let hashes = tile_of(disk, Tile { content: Content::Hashes(0), ..tile })?;
    let entries = tile::entries(&bundle, width)?;
    let hashes = tile::hashes(&hashes, width)?;
    if entries.iter().zip(&hashes).any(|(entry, hash)| Hash::of_leaf(entry) != *hash) {
        let name = path(&tile.path());
        return Err(io::Error::other(format!("{name} has an entry that is not in the tree")));
    }
    Ok(entries.into_iter().map(<[u8]>::to_vec).collect())
}

fn write_tile(disk: &dyn Disk, tile: Tile, bytes: &[u8]) -> io::Result<()> {
    let path = path(&tile.path());
    disk.make_directory(path.rsplit_once('/').map_or("", |(around, _)| around))?;
    replace(disk, &path, bytes)
}

#[cfg(test)]
#[allow(clippy::panic_in_result_fn, reason = "an error is the disk's, a panic a broken promise")]
pub(crate) mod tests;
