//! The log on a disk that fails, and in the hands of somebody else.

use super::*;
use evidence_log::tlog::merkle::{extends, root};
use testing::simulated_disk::{SimulatedDisk, is_crash};

const ORIGIN: &str = "example.org/relay-0";

fn key() -> SigningKey {
    SigningKey::generate(ORIGIN).expect("random numbers").0
}

fn open(disk: &SimulatedDisk, key: &SigningKey) -> io::Result<Store> {
    let mut store = Store::open(Arc::new(disk.clone()), ORIGIN, std::slice::from_ref(key))?;
    store.bind(0, &Sizes::new())?;
    Ok(store)
}

/// Returns all entries of a store.
pub(crate) fn entries(store: &Store) -> Vec<Vec<u8>> {
    let size = store.newest.head.size;
    let bundles =
        (0..size.div_ceil(WIDTH)).map(|at| store.entries_of(at, size).expect("it is whole"));
    bundles.flatten().chain(store.pending.entries.iter().cloned()).collect()
}

/// A log under random faults and crashes, beside a list of the entries that must be in it.
struct Model {
    rng: fastrand::Rng,
    disk: SimulatedDisk,
    key: SigningKey,
    entries: Vec<Vec<u8>>,
    /// The number of these entries that were made durable.
    durable: usize,
    /// The checkpoints that somebody may have seen.
    seen: Vec<Head>,
    made: u64,
    /// The maximum number of entries that a step makes.
    entries_max: usize,
}

impl Model {
    /// Opens the log after a start, and compares it with the list.
    fn open(&mut self) -> Option<Store> {
        let store = match open(&self.disk, &self.key) {
            Ok(store) => store,
            Err(error) if is_crash(&error) => return None,
            Err(error) => panic!("the log can't be opened: {error}"),
        };
        assert_eq!(store.alarms.as_slice(), [], "nobody else has written");
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
                for _ in 0..self.rng.usize(1..=self.entries_max) {
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
                store.bind(self.made, &Sizes::new())?;
            }
            _ => {
                // The checkpoint may be visible although an error followed.
                let head = store.head();
                let signed = store.sign(std::slice::from_ref(&self.key));
                if let Ok(Some(note)) = &signed {
                    let of_note = Checkpoint::of_text(note.text()).expect("it is one");
                    assert_eq!(of_note.head, head);
                    self.durable = self.entries.len();
                    self.seen.push(head);
                }
                signed?;
                store.remember()?;
                assert!(store.is_there()?, "nobody else has written");
            }
        }
        Ok(())
    }
}

/// Lets a log live and crash `lives` times, under random faults. Each start checks that nothing is
/// missing, and that there is no alarm.
fn live(seed: u64, lives: usize, entries_max: usize, operations: u64) {
    println!("seed {seed}");
    let rng = fastrand::Rng::with_seed(seed);
    let (disk, key) = (SimulatedDisk::new(seed), key());
    let (entries, seen) = (Vec::new(), Vec::new());
    let mut model = Model { rng, disk, key, entries, durable: 0, seen, made: 0, entries_max };
    for _ in 0..lives {
        model.disk.calm();
        let Some(mut store) = model.open() else {
            model.disk = model.disk.crash(&mut model.rng);
            continue;
        };
        if model.rng.bool() {
            model.disk.faults(0.05);
        }
        model.disk.crash_after(model.rng.u64(1..operations));
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
    assert_eq!(store.newest.head, store.head());
}

#[test]
fn what_was_signed_stays_whatever_the_disk_does() {
    (0..60).for_each(|seed| live(seed, 6, 60, 120));
}

/// Method: 800 short lives, so that there are crashes at each step of writing.
#[test]
fn no_crash_is_an_alarm() {
    (0..40).for_each(|seed| live(seed, 20, 3, 50));
}

/// Method: the checkpoint is removed, and replaced by an older one. A log that continued would sign
/// another root for a size that was signed before.
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

/// A log with a checkpoint and entries behind it, whose relay was killed.
struct Killed {
    disk: SimulatedDisk,
    key: SigningKey,
    /// The number of entries that the checkpoint covers, and of all entries.
    signed: u64,
    size: u64,
}

impl Killed {
    fn new() -> Self {
        let killed = Self { disk: SimulatedDisk::new(1), key: key(), signed: 10, size: 13 };
        let mut store = killed.open();
        (0..10).for_each(|entry| store.push(vec![entry]).expect("it is short"));
        store.sign(std::slice::from_ref(&killed.key)).expect("no fault is set");
        store.remember().expect("no fault is set");
        (10..13).for_each(|entry| store.push(vec![entry]).expect("it is short"));
        store.commit().expect("no fault is set");
        killed
    }

    fn open(&self) -> Store {
        open(&self.disk, &self.key).expect("it can be opened")
    }

    fn journal(&self) -> Vec<u8> {
        self.disk.contents(JOURNAL_PATH)
    }

    /// Puts other bytes into the file of the journal, as somebody else does.
    fn put(&self, journal: &[u8]) {
        replace(&self.disk, JOURNAL_PATH, journal).expect("no fault is set");
    }

    /// Opens the log, and checks that nothing in the journal counts, that the journal was kept, and
    /// that the next start has no alarm.
    fn assert_refused(&self, why: &str) {
        let journal = self.journal();
        let mut store = self.open();
        assert_eq!(store.alarms.as_slice(), [Alarm::Journal], "{why}");
        assert_eq!(store.head().size, self.signed, "{why}");
        let aside = self.disk.names().into_iter().filter(|name| name.contains(REFUSED)).max();
        assert_eq!(self.disk.contents(&aside.expect("it was kept")), journal, "{why}");
        store.push(b"alarm".to_vec()).expect("it is short");
        store.sign(std::slice::from_ref(&self.key)).expect("no fault is set");
        assert_eq!(self.open().alarms, [], "{why}");
    }
}

/// Makes a journal with these entries, as somebody can who has a key.
fn made(key: &SigningKey, origin: &str, head: Head, entries: &[(u64, Vec<u8>)]) -> Vec<u8> {
    let (mut chain, mut journal) = Chain::begin(journal::Key::of(key), origin, head);
    entries.iter().for_each(|(index, entry)| chain.push(*index, entry, &mut journal));
    journal
}

/// Makes a journal without MACs, as earlier versions of the program did.
fn without_macs(entries: &[(u64, Vec<u8>)]) -> Vec<u8> {
    let mut journal = Vec::new();
    for (index, entry) in entries {
        let checksum = crc32c::crc32c_append(crc32c::crc32c(&index.to_be_bytes()), entry);
        journal.extend(u32::try_from(entry.len()).expect("it is short").to_be_bytes());
        journal.extend(checksum.to_be_bytes());
        journal.extend(index.to_be_bytes());
        journal.extend(entry);
    }
    journal
}

#[test]
fn the_entries_of_a_killed_relay_are_there_and_a_torn_end_is_no_alarm() {
    let killed = Killed::new();
    let journal = killed.journal();
    let records = journal::entries(&journal);
    assert_eq!(records.len(), 3);
    let last = journal.len() - (16 + 32 + 1);
    for end in last..=journal.len() {
        killed.put(&journal[..end]);
        let store = killed.open();
        assert_eq!(store.alarms.as_slice(), [], "cut at {end}");
        assert_eq!(store.head().size, if end == journal.len() { 13 } else { 12 }, "cut at {end}");
    }
    // A byte of the last record did not reach the disk.
    for at in last..journal.len() {
        let mut torn = journal.clone();
        torn[at] ^= 0x20;
        killed.put(&torn);
        let store = killed.open();
        assert_eq!((store.alarms.as_slice(), store.head().size), (&[][..], 12), "byte {at}");
    }
    killed.put(&journal);
    assert_eq!(killed.open().head().size, killed.size);
}

#[test]
fn a_journal_that_the_key_did_not_write_for_this_checkpoint_counts_nothing() {
    let head = |killed: &Killed| killed.open().signed();
    let entry = |index: u64| (index, b"forged".to_vec());
    type Attack<'a> = (&'a str, &'a dyn Fn(&Killed) -> Vec<u8>);
    let attacks: &[Attack<'_>] = &[
        ("another key", &|killed| made(&key(), ORIGIN, head(killed), &[entry(10)])),
        ("another origin", &|killed| made(&killed.key, "other", head(killed), &[entry(10)])),
        ("another index", &|killed| made(&killed.key, ORIGIN, head(killed), &[entry(11)])),
        ("a record behind the last one", &|killed| {
            let forged = made(&key(), ORIGIN, head(killed), &[entry(13)]);
            let header = made(&key(), ORIGIN, head(killed), &[]).len();
            [&killed.journal(), &forged[header..]].concat()
        }),
        ("a record taken out", &|killed| {
            let journal = killed.journal();
            let header = made(&killed.key, ORIGIN, head(killed), &[]).len();
            [&journal[..header], &journal[header + 49..]].concat()
        }),
        ("two records in another order", &|killed| {
            let journal = killed.journal();
            let (first, second) = journal.split_at(journal.len() - 49);
            let (rest, first) = first.split_at(first.len() - 49);
            [rest, second, first].concat()
        }),
        ("the root of another log", &|killed| {
            let other = Head { size: 10, root: Hash::of(&[b"other"]) };
            made(&killed.key, ORIGIN, other, &[entry(10)])
        }),
        ("an older one", &|killed| {
            let nothing = Head { size: 0, root: Hash::of_nothing() };
            let entries: Vec<_> = (0..9).map(|index| (u64::from(index), vec![index])).collect();
            made(&killed.key, ORIGIN, nothing, &entries)
        }),
        ("one of a log that went another way", &|killed| {
            let nothing = Head { size: 0, root: Hash::of_nothing() };
            let entries: Vec<_> = (0..20).map(entry).collect();
            made(&killed.key, ORIGIN, nothing, &entries)
        }),
        ("one without MACs", &|_| without_macs(&[entry(10)])),
        ("nothing", &|_| Vec::new()),
        ("other bytes", &|_| b"other bytes".repeat(100)),
    ];
    for (why, attack) in attacks {
        let killed = Killed::new();
        killed.put(&attack(&killed));
        killed.assert_refused(why);
    }
}

/// Method: the checkpoint covers the entries of a journal that an earlier version, or a key that is
/// not used any more, has written.
#[test]
fn a_journal_that_the_checkpoint_covers_needs_no_mac() {
    let nothing = Head { size: 0, root: Hash::of_nothing() };
    let entries: Vec<_> = (0..10).map(|index| (u64::from(index), vec![index])).collect();
    let journals = [
        made(&key(), ORIGIN, nothing, &entries),
        without_macs(&entries),
        without_macs(&entries[4..]),
    ];
    for journal in journals {
        let killed = Killed::new();
        killed.put(&journal);
        let store = killed.open();
        assert_eq!((store.alarms.as_slice(), store.head().size), (&[][..], 10));
    }
    for journal in [without_macs(&entries[..9]), without_macs(&entries[4..7])] {
        let killed = Killed::new();
        killed.put(&journal);
        killed.assert_refused("it is older than the checkpoint");
    }
}

/// Method: the relay is killed with the old key, with both keys, and then has only the next one.
#[test]
fn the_journal_is_believed_while_a_key_is_followed_by_the_next_one() {
    let disk = SimulatedDisk::new(1);
    let texts = [(); 2].map(|()| SigningKey::generate(ORIGIN).expect("random numbers").1);
    let [old, next] = texts.map(|text| move || SigningKey::parse(&text).expect("it is a key"));
    for (keys, size) in [(vec![old()], 0), (vec![old(), next()], 2), (vec![next()], 4)] {
        let mut store = Store::open(Arc::new(disk.clone()), ORIGIN, &keys).expect("it is whole");
        store.bind(0, &Sizes::new()).expect("no fault is set");
        assert_eq!((store.alarms.as_slice(), store.head().size), (&[][..], size));
        store.push(vec![1]).expect("it is short");
        store.sign(&keys).expect("no fault is set");
        store.push(vec![2]).expect("it is short");
        store.commit().expect("no fault is set");
        store.bind(0, &Sizes::new()).expect("no fault is set");
    }
}

#[test]
fn only_the_newest_of_the_refused_journals_are_kept() {
    let killed = Killed::new();
    for at in 0..10 {
        killed.put(format!("attempt {at}").as_bytes());
        assert_eq!(killed.open().alarms, [Alarm::Journal]);
        // The name has the time in milliseconds.
        let at = now();
        while now() == at {
            std::hint::spin_loop();
        }
    }
    let mut kept = killed.disk.names();
    kept.retain(|name| name.contains(REFUSED));
    kept.sort_unstable();
    let contents: Vec<_> = kept.iter().map(|name| killed.disk.contents(name)).collect();
    assert_eq!(contents, [6, 7, 8, 9].map(|at| format!("attempt {at}").into_bytes()));
}

/// Method: the journal is cut behind each record, replaced by one of an earlier moment, or the file
/// beside the log that says how long it was is removed. A file that is behind it is no alarm.
#[test]
fn a_journal_that_was_cut_is_an_alarm() {
    let killed = Killed::new();
    let (before, behind) = (killed.journal(), killed.disk.contents(layout::HEAD));
    let mut store = killed.open();
    store.push(b"more".to_vec()).expect("it is short");
    store.commit().expect("no fault is set");
    store.bind(700, &Sizes::new()).expect("no fault is set");
    let whole = killed.journal();
    let assert_found = |journal: &[u8], alarms: &[Alarm], cut: Option<u64>| {
        killed.put(journal);
        let store = killed.open();
        assert_eq!((store.alarms.as_slice(), store.cut_until), (alarms, cut), "{}", journal.len());
    };
    assert_found(&whole, &[], None);
    let header = 80;
    let ends = (header..whole.len()).filter(|end| {
        let found = journal::entries(&whole[..*end]).len();
        journal::entries(&whole[..end - 1]).len() < found || *end == header
    });
    let ends: Vec<_> = ends.collect();
    assert_eq!(ends.len(), 4, "the header, and the border behind each of three records");
    for end in ends {
        assert_found(&whole[..end], &[Alarm::Removed], Some(700));
    }
    assert_found(&before, &[Alarm::Removed], Some(700));
    killed.disk.remove(layout::HEAD).expect("it is there");
    assert_found(&whole, &[Alarm::Removed], None);
    // A crash between the two files.
    replace(&killed.disk, layout::HEAD, &behind).expect("no fault is set");
    assert_found(&whole, &[], None);
}

/// Method: files of a log are removed, or replaced by older ones, while no relay runs.
#[test]
fn a_log_that_is_shorter_than_the_queue_knows_is_an_alarm() {
    let remove = |killed: &Killed, beginning: &str| {
        let names = killed.disk.names().into_iter();
        for name in names.filter(|name| name.starts_with(beginning)) {
            killed.disk.remove(&name).expect("it is there");
        }
    };
    // Another log with this key is longer than the one that is known.
    let killed = Killed::new();
    remove(&killed, "evidence/");
    let mut store = killed.open();
    (20..40).for_each(|entry| store.push(vec![entry]).expect("it is short"));
    store.sign(std::slice::from_ref(&killed.key)).expect("no fault is set");
    assert_eq!(killed.open().alarms, [Alarm::Removed]);

    // The journal was removed, and entries with it.
    let killed = Killed::new();
    remove(&killed, "evidence/journal");
    let store = killed.open();
    assert_eq!(
        (store.alarms.as_slice(), store.head().size),
        (&[Alarm::Removed][..], killed.signed)
    );

    // The older checkpoint was signed, and its tiles are there.
    let killed = Killed::new();
    let older = killed.disk.contents("evidence/checkpoint");
    let mut store = killed.open();
    store.push(b"more".to_vec()).expect("it is short");
    store.sign(std::slice::from_ref(&killed.key)).expect("no fault is set");
    store.remember().expect("no fault is set");
    store.push(b"still more".to_vec()).expect("it is short");
    store.commit().expect("no fault is set");
    replace(&killed.disk, "evidence/checkpoint", &older).expect("no fault is set");
    let error = open(&killed.disk, &killed.key).map(|store| store.head()).expect_err("it is older");
    assert!(Tampered::is(&error), "{error}");
    remove(&killed, "evidence/journal");
    let store = killed.open();
    assert_eq!((store.alarms.as_slice(), store.head().size), (&[Alarm::Removed][..], 10));
}
