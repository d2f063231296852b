//! The files of an evidence log, and the order in which they are written.
//!
//! Entries go to the *journal* first, which is synced. A checkpoint is made of them in this order:
//! the tiles and bundles are written and synced, the checkpoint is signed, and its file replaces
//! the one before. Only then does a new journal begin. After a crash at any moment the journal has
//! every entry that no checkpoint covers, and what a checkpoint covers is in the tiles.
//!
//! Somebody else may have written to the files while the relay was stopped. Of the journal only
//! those entries count whose MACs are right. A copy of the newest checkpoint is kept beside the
//! directory of the log, so that a log that was removed or cut is noticed. The file `evidence-head`
//! beside it does the same for the journal.

use std::io;
use std::sync::Arc;

use super::bound::{Bound, Sizes};
use base::disk::{Access, Disk, File, named, replace};
use base::mutant;
use evidence_log::entry::{Alarm, Entry, end_in_queue, last_end, now};
use evidence_log::journal::{Chain, JOURNAL_BYTES_MAX, Own};
use evidence_log::layout::{
    DIRECTORY, Files, KNOWN, ROLLED_BACK, ROLLED_BACK_MAX, Tampered, if_there, path, read, read_all,
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

/// The file with the entries that no checkpoint covers yet.
const JOURNAL_PATH: &str = "evidence/journal";

/// The maximum size in bytes of the entries that no checkpoint covers. The log takes no more
/// entries until there is a checkpoint.
const PENDING_MAX: usize = 8 << 20;

/// The beginning of the name of a directory with the log of an earlier origin.
const ASIDE: &str = "evidence-until-";

/// The beginning of the name of a journal that was set aside. Its time in milliseconds follows.
const REFUSED: &str = "journal-refused-";

/// The newest of these journals are kept, at most this many.
const REFUSED_MAX: usize = 4;

/// The files of an evidence log.
pub(crate) struct Store {
    disk: Arc<dyn Disk>,
    origin: String,
    /// Covers all entries, also those without a checkpoint.
    frontier: Frontier,
    newest: Newest,
    pending: Pending,
    /// The journal that is being written. `None` if it must be begun again, as after a start,
    /// because its end may be torn.
    journal: Option<Open>,
    /// The keys of the MACs. While the signing key is being replaced, this is derived from
    /// the new key, which is known both before and after the change.
    key: journal::Key,
    /// The content of `evidence-head` when the log was opened; `None` if it was missing or wrong.
    found: Option<Bound>,
    /// `true`: `evidence-head` is missing because nothing of this version was written yet.
    is_unbound: bool,
    /// The number of entries in `evidence-head`, if this process has written it.
    bound: Option<u64>,
    /// Entries about events before this position were in the journal and are gone.
    pub(super) cut_until: Option<u64>,
    /// The alarms about changes by somebody else, found when the log was opened.
    pub(super) alarms: Vec<Alarm>,
    /// The tiles over all entries that are not in files of the newest checkpoint.
    tiles: Growing,
    /// The last bundle of the newest checkpoint, if it is partial.
    bundle: Vec<u8>,
}

/// The newest checkpoint.
struct Newest {
    head: Head,
    /// The note with the signatures collected so far. Before the first checkpoint, that of one over
    /// the empty log, which every log extends. It has no file.
    note: Note,
    /// The size of the checkpoint before it. A reader may still need its partial tiles.
    before: u64,
    /// `true`: the file of the checkpoint contains `note`. After a failed attempt to replace the
    /// file, its content is unknown.
    is_published: bool,
    /// The size of the checkpoint of which a copy is beside the log.
    remembered: u64,
}

/// The entries that no checkpoint covers.
#[derive(Default)]
struct Pending {
    entries: Vec<Vec<u8>>,
    bytes: usize,
    /// The number of these entries that are in the journal and synced.
    synced: usize,
}

/// The journal that is being written.
#[derive(Debug, Clone)]
struct Open {
    file: Arc<dyn File>,
    /// The number of its bytes.
    bytes: u64,
    /// The first bytes.
    header: Vec<u8>,
    chain: Chain,
}

impl Store {
    /// Opens the log of this origin, or begins it. `keys` may sign its checkpoints. If there is a
    /// log of another origin, its directory is renamed.
    ///
    /// # Errors
    ///
    /// The files can't be read, are damaged, or were signed by another key.
    pub(crate) fn open(disk: Arc<dyn Disk>, origin: &str, keys: &[SigningKey]) -> io::Result<Self> {
        check_is_free(&*disk, origin)?;
        keep_aside(&*disk, origin)?;
        disk.make_directory(DIRECTORY)?;
        // An earlier process may have been killed between a rename and its sync.
        disk.sync_directory(DIRECTORY)?;
        let key = keys.last().ok_or_else(|| io::Error::other("there is no signing key"))?;
        let head = Head { size: 0, root: Hash::of_nothing() };
        let note = signed(origin, head, keys)?;
        let mut store = Self {
            disk,
            origin: origin.to_owned(),
            frontier: Frontier::default(),
            newest: Newest { head, note, before: 0, is_published: true, remembered: 0 },
            pending: Pending::default(),
            journal: None,
            key: journal::Key::of(key),
            found: None,
            is_unbound: false,
            bound: None,
            cut_until: None,
            alarms: Vec::new(),
            tiles: Growing::default(),
            bundle: Vec::new(),
        };
        let journal = store.read_journal()?;
        let macs: Vec<_> = keys.iter().map(journal::Key::of).collect();
        let own = journal.as_ref().and_then(|it| journal::written_by(&macs, origin, it));
        let begins_at = own.as_ref().map(|own| own.head.size);
        // Beside the journal of an earlier version, the file would be from before a downgrade.
        let is_ours = |_: &Bound| own.as_ref().is_none_or(|own| own.has_head);
        store.found = Bound::read(&*store.disk, &macs, origin)?.filter(is_ours);
        match store.read(CHECKPOINT, NOTE_BYTES_MAX)? {
            Some(note) => store.load(&note, keys, begins_at)?,
            None => store.check_is_new(begins_at)?,
        }
        store.newest.remembered = store.newest.head.size;
        let is_cut = store.is_cut(own.as_ref());
        store.is_unbound = store.found.is_none() && own.as_ref().is_none_or(|own| !own.has_head);
        for entry in store.journalled(journal.as_deref(), own)? {
            store.push(entry)?;
        }
        store.compare_with_known()?;
        if is_cut {
            store.cut_until = store.found.as_ref().map(|found| found.next);
            tracing::error!(
                found = store.head().size,
                known = store.found.as_ref().map(|found| found.entries),
                "entries of the evidence that no checkpoint covers are gone: evidence/journal was \
                 cut or replaced by an older one, or evidence-head was removed; find out who could \
                 write to the directory"
            );
            store.is_tampered();
        }
        Ok(store)
    }

    /// Notes that files of the log were removed, cut or replaced, unless another alarm says that
    /// something was changed.
    pub(crate) fn is_tampered(&mut self) {
        if self.alarms.is_empty() {
            self.alarms.push(Alarm::Removed);
        }
    }

    /// Returns `true` if the log once had entries that neither the checkpoint covers nor the
    /// journal has. `own` is the journal, if the relay has written it.
    fn is_cut(&self, own: Option<&Own>) -> bool {
        match (&self.found, own) {
            (Some(found), Some(own)) if found.entries > own.head.size => {
                own.mac(found.entries).is_none_or(|mac| !found.is_at(mac))
            }
            (Some(found), _) => found.entries > self.newest.head.size,
            (None, own) => own.is_some_and(|own| own.has_head),
        }
    }

    /// Returns the sizes that the files of line hashes must have; `None` if they are not known.
    /// Further hashes may only be those of the roots that are returned too. Instead of the roots,
    /// returns `None` if there can't be any, because the relay has ended in order.
    ///
    /// # Errors
    ///
    /// A bundle can't be read.
    pub(crate) fn lines(&self) -> io::Result<(Option<Sizes>, Option<Vec<Hash>>)> {
        let (size, signed) = (self.head().size, self.newest.head.size);
        let known = self.found.as_ref().map_or(0, |found| found.entries);
        let last = match self.pending.entries.last() {
            None if signed > 0 => self.entries_of((signed - 1) / WIDTH, signed)?.pop(),
            last => last.cloned(),
        };
        let last = last.and_then(|last| Entry::parse(&last).ok());
        let has_ended = known == size && matches!(last, Some(Entry::Stop(_)));
        let sizes = self.found.as_ref().map(Bound::sizes);
        if has_ended {
            return Ok((sizes, None));
        }
        let known = usize::try_from(known.saturating_sub(signed)).unwrap_or(usize::MAX);
        let later = self.pending.entries.iter().skip(known);
        let roots = later.filter_map(|entry| Entry::parse(entry).ok()?.root()).collect();
        Ok((sizes, Some(roots)))
    }

    /// Returns the content of the journal; `None` if there is none. If the journal is longer than
    /// any that the relay writes, returns an empty content, which counts as written by somebody
    /// else.
    fn read_journal(&self) -> io::Result<Option<Vec<u8>>> {
        let file = if_there(self.disk.open(JOURNAL_PATH, Access::Read))?;
        let Some(file) = file else { return Ok(None) };
        let fits = file.bytes()? <= JOURNAL_BYTES_MAX as u64;
        if fits { read_all(&*file, JOURNAL_BYTES_MAX).map(Some) } else { Ok(Some(Vec::new())) }
    }

    /// Returns the content of a file; `None` if there is none.
    fn read(&self, name: &str, max: usize) -> io::Result<Option<Vec<u8>>> {
        read(&*self.disk, &path(name), max)
    }

    /// Returns the tree over the entries that the newest checkpoint covers.
    fn nodes(&self) -> impl Nodes {
        nodes(&*self.disk, self.newest.head.size)
    }

    /// Returns the entries of a bundle of a log of `size` entries. Fails if an entry does not have
    /// the hash that is in the tile of the same index.
    fn entries_of(&self, index: u64, size: u64) -> io::Result<Vec<Vec<u8>>> {
        let width = size.saturating_sub(index * WIDTH).min(WIDTH);
        let tile = Tile { content: Content::Entries, index, width };
        let bundle = tile_of(&*self.disk, tile)?;
        let hashes = tile_of(&*self.disk, Tile { content: Content::Hashes(0), ..tile })?;
        let entries = tile::entries(&bundle, width)?;
        let hashes = tile::hashes(&hashes, width)?;
        if entries.iter().zip(&hashes).any(|(entry, hash)| Hash::of_leaf(entry) != *hash) {
            let name = path(&tile.path());
            return Err(io::Error::other(format!("{name} has an entry that is not in the tree")));
        }
        Ok(entries.into_iter().map(<[u8]>::to_vec).collect())
    }

    /// Loads the checkpoint that was signed last. `begins_at` is the index of the first entry in
    /// the journal, if the relay has written the journal.
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
        // A journal begins at the end of a checkpoint that was signed.
        if let Some(index) = begins_at.filter(|index| *index > size) {
            return Err(io::Error::other(Tampered(format!(
                "{}: it covers {size} entries, and the journal continues from entry {index}: an \
                 older checkpoint was put back",
                path(CHECKPOINT)
            ))));
        }
        for tile in last_tiles(size) {
            let bytes = tile_of(&*self.disk, tile)?;
            match tile.content {
                Content::Entries => {
                    self.entries_of(tile.index, size)?;
                    self.bundle = if tile.width == WIDTH { Vec::new() } else { bytes };
                }
                Content::Hashes(level) => {
                    self.tiles.go_on(level, tile.index, tile::hashes(&bytes, tile.width)?);
                }
            }
        }
        self.frontier = Frontier::read(&nodes(&*self.disk, size), size)?;
        if self.frontier.root() != checkpoint.head.root {
            return Err(wrong("its root is not that of the tiles".to_owned()));
        }
        let newest = &mut self.newest;
        (newest.head, newest.note, newest.before) = (checkpoint.head, note, size);
        Ok(())
    }

    /// Checks that a log without a checkpoint is new. A log that began a second time would sign
    /// other roots for the same sizes. `begins_at` is the index of the first entry in the journal,
    /// if the relay has written the journal: before its first checkpoint, a log has a journal from
    /// entry 0 on.
    fn check_is_new(&self, begins_at: Option<u64>) -> io::Result<()> {
        let names = |directory| if_there(self.disk.list(&path(directory)));
        let has_files = |names: Option<Vec<String>>| names.is_some_and(|names| !names.is_empty());
        if begins_at != Some(0)
            && (has_files(names("tile/0")?) || has_files(names("tile/0/000.p")?))
        {
            let missing = path(CHECKPOINT);
            let what = format!("the log has tiles, and {missing} is missing");
            return Err(io::Error::other(Tampered(what)));
        }
        Ok(())
    }

    /// Returns the entries of the journal that the checkpoint does not cover. `own` has the entries
    /// and the checkpoint of a journal that the relay has written. Any other journal is set aside,
    /// and none of its entries counts.
    fn journalled(&mut self, journal: Option<&[u8]>, own: Option<Own>) -> io::Result<Vec<Vec<u8>>> {
        let Some(journal) = journal else {
            // The journal is written before the first checkpoint, and is always there after that.
            if self.newest.head.size > 0 {
                tracing::error!(
                    "evidence/journal was removed: entries of the last seconds before the relay \
                     ended may be gone; find out who could write to the directory"
                );
                self.alarms.push(Alarm::Removed);
            }
            return Ok(Vec::new());
        };
        if let Some(Own { head, mut entries, .. }) = own {
            if self.follows(head.size, &entries)? == Some(head.root) {
                let covered = self.newest.head.size - head.size;
                let covered = usize::try_from(covered).unwrap_or(usize::MAX);
                return Ok(entries.split_off(covered.min(entries.len())));
            }
        } else if self.covers(journal)? {
            // The checkpoint proves these entries. The journal may be that of an earlier version,
            // or of a key that is not used any more.
            return Ok(Vec::new());
        }
        self.set_aside(journal)?;
        Ok(Vec::new())
    }

    /// Returns the root over the first `base` entries of the log. Returns `None` unless `entries`
    /// follow these and agree with the log up to the checkpoint.
    fn follows(&self, base: u64, entries: &[Vec<u8>]) -> io::Result<Option<Hash>> {
        let Head { size, root } = self.newest.head;
        let covered = size.checked_sub(base).and_then(|covered| usize::try_from(covered).ok());
        let Some(covered) = covered.and_then(|covered| entries.get(..covered)) else {
            return Ok(None);
        };
        let mut frontier = Frontier::read(&self.nodes(), base)?;
        let begin = frontier.root();
        covered.iter().for_each(|entry| frontier.push(Hash::of_leaf(entry), &mut |_, _| {}));
        Ok((frontier.root() == root).then_some(begin))
    }

    /// Returns `true` if the checkpoint covers every entry of a journal and ends with the last one.
    fn covers(&self, journal: &[u8]) -> io::Result<bool> {
        let entries = journal::entries(journal);
        let Some(first) = entries.first().map(|(index, _)| *index) else { return Ok(false) };
        let is_row = entries.iter().zip(first..).all(|((index, _), expected)| *index == expected);
        let end = first.checked_add(entries.len() as u64);
        let entries: Vec<_> = entries.into_iter().map(|(_, entry)| entry).collect();
        Ok(is_row && end == Some(self.newest.head.size) && self.follows(first, &entries)?.is_some())
    }

    /// Renames a journal that the relay did not write, and deletes the oldest of such journals.
    fn set_aside(&mut self, journal: &[u8]) -> io::Result<()> {
        let mut names = self.disk.list(DIRECTORY)?;
        names.retain(|name| name.starts_with(REFUSED));
        names.sort_unstable();
        for name in names.iter().rev().skip(REFUSED_MAX - 1) {
            self.disk.remove(&path(name))?;
        }
        let aside = path(&format!("{REFUSED}{}", now()));
        self.disk.rename(JOURNAL_PATH, &aside)?;
        self.disk.sync_directory(DIRECTORY)?;
        self.alarms.push(Alarm::Journal);
        if journal::is_without_macs(journal) {
            tracing::error!(
                aside,
                "evidence/journal has no MACs: it was set aside, and nothing in it is signed. An \
                 earlier version of the relay that did not end in good order writes such a \
                 journal; if none ran here, find out who could write to the directory"
            );
        } else {
            tracing::error!(
                aside,
                "evidence/journal was not written with the key of this log, or not for the \
                 checkpoint beside it: it was set aside, and nothing in it is signed; find out \
                 who could write to the directory"
            );
        }
        Ok(())
    }

    /// Compares the log with the copy of the newest checkpoint beside its directory.
    fn compare_with_known(&mut self) -> io::Result<()> {
        let Some(known) = known(&*self.disk, &self.origin)? else { return Ok(()) };
        let Head { size, .. } = self.newest.head;
        if mutant!(
            "evidence-cut-unnoticed",
            known.size <= size && root_at(&self.nodes(), known.size)? == known.root,
            true
        ) {
            return Ok(());
        }
        tracing::error!(
            known = known.size,
            found = size,
            "entries of the evidence that were signed are gone: files below evidence/ were removed, \
             or replaced by older ones. Keep a copy of the directory, compare it with a checkpoint \
             that a consumer or a witness has, and find out who could write to it"
        );
        if !self.alarms.contains(&Alarm::Removed) {
            self.alarms.push(Alarm::Removed);
        }
        Ok(())
    }

    /// Notes beside the log how far it is durable, which is after [`Store::commit`]. `next` is the
    /// position after the last event that has an entry, and `sizes` are those of the files of line
    /// hashes. Beside a log that has no such note yet, there must be one before the first journal.
    ///
    /// # Errors
    ///
    /// The disk refuses. The next call tries again.
    pub(crate) fn bind(&mut self, next: u64, sizes: &Sizes) -> io::Result<()> {
        let (entries, mac) = match &self.journal {
            Some(Open { chain, .. }) => (self.head().size, chain.last),
            None if self.is_unbound => (self.newest.head.size, [0; _]),
            // The newest checkpoint covers all entries.
            None => return Ok(()),
        };
        if self.bound != Some(entries) {
            let bound = Bound::new(&self.origin, (entries, mac), next, sizes);
            bound.write(&*self.disk, &self.key)?;
            (self.bound, self.is_unbound) = (Some(entries), false);
        }
        Ok(())
    }

    /// Writes a copy of the newest checkpoint beside the directory of the log, unless it is there
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

    /// Returns `true` if the files that this process has written last are still there.
    ///
    /// # Errors
    ///
    /// The disk refuses.
    pub(crate) fn is_there(&self) -> io::Result<bool> {
        let Newest { head, note, is_published, .. } = &self.newest;
        if *is_published && head.size > 0 {
            let found = self.read(CHECKPOINT, NOTE_BYTES_MAX)?;
            if found.as_deref() != Some(note.to_string().as_bytes()) {
                return Ok(false);
            }
        }
        let Some(Open { bytes, header, .. }) = &self.journal else { return Ok(true) };
        let file = if_there(self.disk.open(JOURNAL_PATH, Access::Read))?;
        let Some(file) = file else { return Ok(false) };
        let mut found = vec![0; header.len()];
        let read = file.read_at(&mut found, 0)?;
        Ok(file.bytes()? == *bytes && read == header.len() && found == *header)
    }

    /// Writes the file of the newest checkpoint again, and prepares a new journal with all entries
    /// that no checkpoint covers. Returns `false`, and does nothing, if the tiles are not there.
    ///
    /// # Errors
    ///
    /// The disk refuses.
    pub(crate) fn restore(&mut self) -> io::Result<bool> {
        let Head { size, root } = self.newest.head;
        let has_tiles = root_at(&self.nodes(), size).is_ok_and(|found| found == root);
        if size == 0 || !has_tiles {
            return Ok(false);
        }
        self.publish(&self.newest.note.clone())?;
        (self.journal, self.pending.synced) = (None, 0);
        Ok(true)
    }

    /// Returns the number of entries, and the root over them.
    pub(crate) fn head(&self) -> Head {
        Head { size: self.frontier.size(), root: self.frontier.root() }
    }

    /// Returns the position after the last event that has come in, or was lost from the queue,
    /// according to the entries. `None` if no entry is about such an event.
    ///
    /// # Errors
    ///
    /// A bundle can't be read.
    pub(super) fn last_accepted(&self) -> io::Result<Option<u64>> {
        let size = self.newest.head.size;
        match last_end(&self.pending.entries) {
            None => end_in_queue(size, |index| self.entries_of(index, size)),
            end => Ok(end),
        }
    }

    /// Returns `true` if the log takes no more entries until there is a checkpoint.
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
        let made = &mut |level, hash| self.tiles.push(level, hash);
        self.frontier.push(Hash::of_leaf(&entry), made);
        self.pending.bytes += entry.len();
        self.pending.entries.push(entry);
        Ok(())
    }

    /// Makes all entries durable.
    ///
    /// # Errors
    ///
    /// The disk refuses. The entries stay, and the next call writes them to a new journal.
    pub(crate) fn commit(&mut self) -> io::Result<()> {
        let Pending { entries, synced, .. } = &mut self.pending;
        if *synced == entries.len() {
            return Ok(());
        }
        let Some(mut open) = self.journal.take() else { return self.begin_journal() };
        let mut records = Vec::new();
        let first = self.newest.head.size + *synced as u64;
        for (index, entry) in (first..).zip(entries.iter().skip(*synced)) {
            open.chain.push(index, entry, &mut records);
        }
        open.file.write_at(&[&records], open.bytes)?;
        open.file.sync()?;
        open.bytes += records.len() as u64;
        self.journal = Some(open);
        *synced = entries.len();
        Ok(())
    }

    /// Writes a new journal with all pending entries.
    fn begin_journal(&mut self) -> io::Result<()> {
        let (mut chain, header) = Chain::begin(self.key.clone(), &self.origin, self.newest.head);
        let mut journal = header.clone();
        for (index, entry) in (self.newest.head.size..).zip(&self.pending.entries) {
            chain.push(index, entry, &mut journal);
        }
        replace(&*self.disk, JOURNAL_PATH, &journal)?;
        let file = self.disk.open(JOURNAL_PATH, Access::Write)?;
        self.journal = Some(Open { file, bytes: journal.len() as u64, header, chain });
        self.pending.synced = self.pending.entries.len();
        Ok(())
    }

    /// Signs a checkpoint over all entries, and returns it. Returns `None` if there is one already.
    ///
    /// # Errors
    ///
    /// The disk refuses. There is no checkpoint then; the next call tries again.
    pub(crate) fn sign(&mut self, keys: &[SigningKey]) -> io::Result<Option<Note>> {
        let head = self.head();
        if head == self.newest.head {
            return Ok(None);
        }
        self.commit()?;
        let bundle = self.write_tiles()?;
        let note = signed(&self.origin, head, keys)?;
        self.publish(&note)?;
        let newest = &mut self.newest;
        let obsolete = std::mem::replace(&mut newest.before, newest.head.size);
        (newest.head, newest.note) = (head, note.clone());
        (self.pending, self.bundle) = (Pending::default(), bundle);
        // The next entries begin a new journal. Until then the old one has nothing that is needed.
        self.journal = None;
        self.remove_partial_tiles(obsolete);
        Ok(Some(note))
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
        let (nodes, head) = (self.nodes(), self.newest.head);
        let proof = consistency(&nodes, old, head.size)?;
        let old = Head { size: old, root: root_at(&nodes, old)? };
        match extends(old, head, &proof) {
            true => Ok(proof),
            false => Err(io::Error::other("the tiles are not those of the newest checkpoint")),
        }
    }

    /// Writes a file that says that a witness has contradicted the log, so that no later start
    /// continues the log.
    ///
    /// # Errors
    ///
    /// The disk refuses.
    pub(super) fn roll_back(&self, why: &str) -> io::Result<()> {
        replace(&*self.disk, ROLLED_BACK, format!("{}\n{why}\n", self.origin).as_bytes())
    }

    /// Replaces the file of the checkpoint.
    fn publish(&mut self, note: &Note) -> io::Result<()> {
        self.newest.is_published = false;
        replace(&*self.disk, &path(CHECKPOINT), note.to_string().as_bytes())?;
        self.newest.is_published = true;
        Ok(())
    }

    /// Writes the tiles and bundles that have changed since the newest checkpoint. Returns the last
    /// bundle if it is partial, and otherwise an empty vector.
    fn write_tiles(&mut self) -> io::Result<Vec<u8>> {
        let disk = &*self.disk;
        let whole = self.tiles.whole.iter().map(|(tile, hashes)| (*tile, hashes.as_slice()));
        for (tile, hashes) in whole.chain(self.tiles.partial()) {
            let bytes: Vec<u8> = hashes.iter().flat_map(|hash| hash.0).collect();
            write_tile(disk, tile, &bytes)?;
        }
        let mut bundle = self.bundle.clone();
        let mut end = self.newest.head.size;
        for entry in &self.pending.entries {
            tile::push_entry(entry, &mut bundle)?;
            end += 1;
            if end.is_multiple_of(WIDTH) {
                let tile = Tile { content: Content::Entries, index: end / WIDTH - 1, width: WIDTH };
                write_tile(disk, tile, &bundle)?;
                bundle.clear();
            }
        }
        if !bundle.is_empty() {
            let (index, width) = (end / WIDTH, end % WIDTH);
            write_tile(disk, Tile { content: Content::Entries, index, width }, &bundle)?;
        }
        self.tiles.whole.clear();
        Ok(bundle)
    }

    /// Deletes the partial tiles of a checkpoint of this size, which nobody needs any more. A tile
    /// that can't be deleted does no harm.
    fn remove_partial_tiles(&self, size: u64) {
        let needed: Vec<_> =
            [self.newest.before, self.newest.head.size].into_iter().flat_map(last_tiles).collect();
        for tile in last_tiles(size).filter(|tile| tile.width < WIDTH && !needed.contains(tile)) {
            if let Err(error) = self.disk.remove(&path(&tile.path())) {
                tracing::debug!(%error, "a partial tile of the evidence can't be deleted");
            }
        }
    }
}

/// Signs a checkpoint.
///
/// # Errors
///
/// The origin can't be in a note.
fn signed(origin: &str, head: Head, keys: &[SigningKey]) -> io::Result<Note> {
    let checkpoint = Checkpoint { origin: origin.to_owned(), head };
    checkpoint.sign(keys).map_err(io::Error::other)
}

/// Returns the reason if a witness has contradicted the log of this origin.
///
/// # Errors
///
/// The disk refuses.
pub(crate) fn rolled_back(disk: &dyn Disk, origin: &str) -> io::Result<Option<String>> {
    let text = read(disk, ROLLED_BACK, ROLLED_BACK_MAX)?;
    Ok(text.and_then(|text| layout::rolled_back(&text, origin)))
}

/// Returns the size and the root that were signed last for the log of this origin, from the copy of
/// the checkpoint beside the log; `None` if there is no such copy.
fn known(disk: &dyn Disk, origin: &str) -> io::Result<Option<Head>> {
    let Some(note) = read(disk, KNOWN, NOTE_BYTES_MAX)? else { return Ok(None) };
    match Signed::parse(&note) {
        Ok(Signed { checkpoint, .. }) => {
            Ok((checkpoint.origin == origin).then_some(checkpoint.head))
        }
        Err(error) => {
            let file = KNOWN;
            tracing::error!(%error, file, "the copy of the newest checkpoint can't be read");
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
/// tiles beside it, so that a checkpoint put there by mistake does not end the log.
fn keep_aside(disk: &dyn Disk, origin: &str) -> io::Result<()> {
    let Some(note) = read(disk, &path(CHECKPOINT), NOTE_BYTES_MAX)? else {
        // A witness may have contradicted the log of another origin before its first checkpoint.
        let mark = read(disk, ROLLED_BACK, ROLLED_BACK_MAX)?.unwrap_or_default();
        let of = String::from_utf8_lossy(&mark);
        return match of.split_once('\n') {
            Some((before, _))
                if before != origin
                    && if_there(disk.open(JOURNAL_PATH, Access::Read))?.is_some() =>
            {
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
    if root_at(&nodes(disk, size), size)? != checkpoint.head.root {
        return Err(io::Error::other(format!(
            "{} is that of {}, and the tiles beside it are not",
            path(CHECKPOINT),
            checkpoint.origin
        )));
    }
    rename_aside(disk, &checkpoint.origin, origin)
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

/// The log in the queue's directory.
struct OnDisk<'a>(&'a dyn Disk);

impl Files for OnDisk<'_> {
    fn read(&self, name: &str, max: usize) -> io::Result<Option<Vec<u8>>> {
        read(self.0, &path(name), max)
    }
}

/// Returns the bytes of a tile or bundle. After a crash, the whole file may already exist where a
/// partial one is expected.
fn tile_of(disk: &dyn Disk, tile: Tile) -> io::Result<Vec<u8>> {
    let missing = || io::Error::other(format!("{} is missing", path(&tile.path())));
    OnDisk(disk).tile(tile)?.ok_or_else(missing)
}

/// Returns the tree over the first `size` entries.
fn nodes(disk: &dyn Disk, size: u64) -> impl Nodes {
    tile::Tiles::new(size, move |tile| tile::hashes(&tile_of(disk, tile)?, tile.width))
}

fn write_tile(disk: &dyn Disk, tile: Tile, bytes: &[u8]) -> io::Result<()> {
    let path = path(&tile.path());
    disk.make_directory(path.rsplit_once('/').map_or("", |(around, _)| around))?;
    replace(disk, &path, bytes)
}

#[cfg(test)]
#[allow(clippy::panic_in_result_fn, reason = "an error is the disk's, a panic a broken promise")]
pub(crate) mod tests;
