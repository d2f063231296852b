//! Stores that answer at random in every way they can, behind a load balancer with a broken
//! backend, while the relay is killed and started again. Each event is stored or becomes a dead
//! letter, and only refused events become dead letters. The simulator (`tests/sim`) puts other
//! things in front of stores.

use fastrand::Rng;

use super::faults::stores::Store;
use crate::support::balancers::{Balancer, is_disliked, wait_until_given_up};
use crate::support::elasticsearch::Elasticsearch;
use crate::support::ibm::Ibm;
use crate::support::letters::events_in_letters;
use crate::support::loki::Loki;
use crate::support::otlp::Otlp;
use crate::support::prelude::*;
use crate::support::s3::S3;
use crate::support::splunk::Splunk;
use crate::support::{elasticsearch, ibm, loki, otlp, s3, splunk};

const MIB: usize = 1024 * 1024;

const LIVES: u64 = 2;

/// The requests are small, so that many meet the broken backend, and many events are refused alone.
const SMALL_REQUESTS: &str = "batch.max_events = 5\n";

/// Events that a firewall turns down count as refused after a short time. A broken backend turns
/// down good events for longer.
const SOON: &str = "rejected.after_server_errors = \"1s\"\n";

/// Parts of every secret, and of the stores' own texts. The log must contain none of them.
const SECRETS: [&str; 3] = ["s3cr3t", "eyJ0b2tlbi", splunk::TOKEN];

/// `true` once the store must behave well.
type Calm = Arc<AtomicBool>;

/// A store, and the output that sends to it.
struct Row {
    store: Box<dyn Store>,
    /// The keys of the output, without those that are the same for all stores.
    keys: String,
    /// The files that the keys name.
    _files: Box<dyn std::any::Any>,
    keeps: Keeps,
    /// Returns `true` if the store refuses this event for good.
    is_bad: fn(&[u8]) -> bool,
    /// The longest life of a relay after its last batch, in milliseconds.
    life_max: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keeps {
    /// Each event once.
    Once,
    /// Each event once, in order.
    OnceInOrder,
    /// Each event at least once.
    All,
    /// Each event at least once. The store may only report how many events of a request it has
    /// refused, so that good events become dead letters too.
    AllAndCounts,
}

/// Returns `true` for one event of each batch.
fn is_bad(event: &[u8]) -> bool {
    let after = |name: &[u8]| memchr::memmem::find(event, name).map(|at| &event[at + name.len()..]);
    // The second part of an auditID is the seed of its batch.
    let seed = || std::str::from_utf8(after(b"\"auditID\":\"")?.get(9..13)?).ok();
    let seed = after(b"generated-13\",").and_then(|_| u64::from_str_radix(seed()?, 16).ok());
    seed.is_some_and(|seed| seed % 100 < 2)
}

impl Row {
    fn new(store: impl Store + 'static, keys: String, keeps: Keeps) -> Self {
        Self { store: Box::new(store), keys, _files: Box::new(()), keeps, is_bad, life_max: 400 }
    }
}

fn elasticsearch(rng: &mut Rng, calm: Calm) -> Row {
    let (mut moods, mut statuses) = (rng.fork(), rng.fork());
    let mood = move || match moods.u32(..12) {
        _ if calm.load(Ordering::SeqCst) => elasticsearch::Mood::Judges,
        0 => elasticsearch::Mood::Status(429),
        1 => elasticsearch::Mood::Status(503),
        2 => elasticsearch::Mood::Mute,
        3 => elasticsearch::Mood::Cut,
        4 => elasticsearch::Mood::Babbles,
        5 => elasticsearch::Mood::Small,
        _ => elasticsearch::Mood::Judges,
    };
    let store = Elasticsearch::start(MIB, mood, move |document| match statuses.u32(..20) {
        _ if is_bad(document) => 400,
        0 => 429,
        1 => 503,
        _ => 201,
    });
    let keys = elasticsearch::keys(store.address()) + elasticsearch::OWN_SHAPE;
    Row::new(store, keys + "batch.max_bytes = \"1MiB\"\n", Keeps::Once)
}

/// IAM answers at random too, and a token is valid for two seconds.
fn ibm_cloud_logs(rng: &mut Rng, calm: Calm) -> Row {
    let (mut moods, mut grants, calm_iam) = (rng.fork(), rng.fork(), Arc::clone(&calm));
    let script = ibm::Script {
        expires_in: 2,
        life: Duration::from_secs(2),
        grant: Box::new(move || match grants.u32(..12) {
            _ if calm_iam.load(Ordering::SeqCst) => ibm::Grant::Judges,
            0 => ibm::Grant::Status(500),
            1 => ibm::Grant::Status(429),
            2 => ibm::Grant::Babbles,
            3 => ibm::Grant::Garbage,
            4 => ibm::Grant::HangsUp,
            5 => ibm::Grant::Empty,
            _ => ibm::Grant::Judges,
        }),
        mood: Box::new(move || match moods.u32(..20) {
            _ if calm.load(Ordering::SeqCst) => ibm::Mood::Stores,
            0 => ibm::Mood::Status(500),
            1 => ibm::Mood::Status(403),
            2 => ibm::Mood::Busy,
            3 => ibm::Mood::Mute,
            4 => ibm::Mood::Resets,
            5 => ibm::Mood::Small,
            6 => ibm::Mood::Revokes,
            7 => ibm::Mood::Page,
            _ => ibm::Mood::Stores,
        }),
        is_bad: Box::new(is_bad),
        ..ibm::Script::default()
    };
    let files = TempDir::new().expect("a temporary directory");
    let key = files.path().join("key");
    ibm::write_secret(&key, &script.credential);
    let store = Ibm::start(script);
    let keys = ibm::keys(store.logs.address(), store.iam.address());
    let ca = &store.certificates.ca;
    let keys = format!("{keys}api_key_file = {key:?}\ntls = {{ ca = {ca:?} }}\n");
    Row { _files: Box::new(files), life_max: 2500, ..Row::new(store, keys, Keeps::All) }
}

fn loki(rng: &mut Rng, calm: Calm) -> Row {
    let mut moods = rng.fork();
    let mood = move || match moods.u32(..16) {
        _ if calm.load(Ordering::SeqCst) => loki::Mood::Stores,
        0 => loki::Mood::Busy,
        1 => loki::Mood::Status(500),
        2 => loki::Mood::Status(503),
        3 => loki::Mood::Status(260),
        4 => loki::Mood::Status(401),
        5 => loki::Mood::StoresAndFails,
        6 => loki::Mood::HangsUp(true),
        7 => loki::Mood::HangsUp(false),
        8 => loki::Mood::Cut,
        9 => loki::Mood::Page,
        10 => loki::Mood::Small,
        11 => loki::Mood::StoresWith200,
        12 => loki::Mood::FailsWith200,
        _ => loki::Mood::Stores,
    };
    let store = Loki::start(MIB, mood, |line| !is_bad(line));
    let timestamp = if rng.bool() { "event" } else { "received" };
    let more = format!("batch.max_bytes = \"1MiB\"\ntimestamp = \"{timestamp}\"\n");
    let keys = loki::keys(store.address()) + &more;
    Row::new(store, keys, Keeps::Once)
}

fn otlp(rng: &mut Rng, calm: Calm) -> Row {
    let (mut moods, counts) = (rng.fork(), rng.bool());
    let mood = move || match moods.u32(..18) {
        _ if calm.load(Ordering::SeqCst) => otlp::Mood::Stores(200),
        0 => otlp::Mood::Busy,
        1 => otlp::Mood::Status(500),
        2 => otlp::Mood::Status(503),
        3 => otlp::Mood::Status(401),
        4 => otlp::Mood::EmptyPage,
        5 => otlp::Mood::HangsUp(true),
        6 => otlp::Mood::HangsUp(false),
        7 => otlp::Mood::Cut,
        8 => otlp::Mood::Page,
        9 => otlp::Mood::Small,
        10 => otlp::Mood::Stores(204),
        11 => otlp::Mood::Stores(201),
        12..14 if counts => otlp::Mood::Counts,
        14..16 if counts => otlp::Mood::CountsInJson,
        _ => otlp::Mood::Stores(200),
    };
    let store = Otlp::start(MIB, mood, |event| !is_bad(event));
    let keys = otlp::keys(store.address()) + "batch.max_bytes = \"1MiB\"\n";
    Row::new(store, keys, if counts { Keeps::AllAndCounts } else { Keeps::All })
}

/// The store refuses no event. The relay is killed at all stages of a small object.
fn s3(rng: &mut Rng, calm: Calm) -> Row {
    let mut moods = rng.fork();
    let store = S3::start(move || match moods.u32(..16) {
        _ if calm.load(Ordering::SeqCst) => s3::Mood::Stores,
        0 => s3::Mood::Fails(503, "SlowDown"),
        1 => s3::Mood::Fails(409, "ConditionalRequestConflict"),
        2 => s3::Mood::Fails(403, "AccessDenied"),
        3 => s3::Mood::Fails(400, "RequestTimeout"),
        4 | 5 => s3::Mood::StoresAndFails,
        6 => s3::Mood::HangsUp(false),
        7 | 8 => s3::Mood::HangsUp(true),
        9 => s3::Mood::Cut,
        10 => s3::Mood::Page,
        11 => s3::Mood::FailsWith200,
        12 => s3::Mood::Races { time: Duration::from_secs(1), stores: moods.bool() },
        _ => s3::Mood::Stores,
    });
    let files = s3::Keys::new();
    let keys = files.keys(store.address()) + "object_age = \"200ms\"\nobject_bytes = \"64KiB\"\n";
    let row = Row::new(store, keys, Keeps::OnceInOrder);
    Row { _files: Box::new(files), is_bad: |_| false, life_max: 500, ..row }
}

fn splunk_hec(rng: &mut Rng, calm: Calm) -> Row {
    let mut moods = rng.fork();
    let script = splunk::Script {
        mood: Box::new(move || match moods.u32(..20) {
            _ if calm.load(Ordering::SeqCst) => splunk::Mood::Serves,
            0 => splunk::Mood::Refuses(503, 9),
            1 => splunk::Mood::Refuses(500, 8),
            2 => splunk::Mood::Refuses(429, 26),
            3 => splunk::Mood::Refuses(403, 1),
            4 => splunk::Mood::Mute,
            5 => splunk::Mood::Babbles,
            6 => splunk::Mood::Small,
            7 => splunk::Mood::Restarts,
            8 => splunk::Mood::BusyAfter(moods.usize(..60)),
            _ => splunk::Mood::Serves,
        }),
        is_bad,
        ..splunk::Script::default()
    };
    let store = Splunk::start(script);
    let files = TempDir::new().expect("a temporary directory");
    let token = files.path().join("token");
    std::fs::write(&token, splunk::TOKEN).expect("a writable directory");
    // Each answer is final, so that each one matters.
    let keys = format!(
        "{}batch.max_bytes = 200000\nacknowledge = \"accepted\"\n",
        splunk::keys(store.address(), text(&token))
    );
    Row { _files: Box::new(files), life_max: 900, ..Row::new(store, keys, Keeps::All) }
}

/// Method: in each of its lives, the relay gets two batches and is killed at a random moment, while
/// the store answers at random. Then the store behaves well, and a last relay delivers the rest.
fn whatever_happens(row: fn(&mut Rng, Calm) -> Row, balancer: Balancer) {
    let (mut rng, calm) = (rng(), Calm::default());
    let row = row(&mut rng, Arc::clone(&calm));
    balancer.stand_in_front(row.store.sink(), &mut rng);
    let (spool, kept) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let has_firewall = balancer == Balancer::Firewall;
    let soon = if has_firewall { SOON } else { "" };
    let config = format!(
        "{BASE}[[output]]\nname = \"consumer\"\n{}{QUICK}{SMALL_REQUESTS}{soon}\
         [queue]\ndirectory = {:?}\n[dead_letter]\ndirectory = {:?}\n",
        row.keys,
        spool.path(),
        kept.path(),
    );
    let mut sent = Vec::new();
    for life in 0..LIVES {
        let mut relay = Relay::start(&config);
        for batch in 0..2 {
            sent.extend(post_batch(&relay, life * 100 + batch, 100, 700));
            std::thread::sleep(Duration::from_millis(rng.u64(..30)));
        }
        std::thread::sleep(Duration::from_millis(rng.u64(20..row.life_max)));
        relay.kill();
    }
    calm.store(true, Ordering::SeqCst);
    let relay = Relay::start(&config);
    let is_bad = |event: &[u8]| (row.is_bad)(event) || (has_firewall && is_disliked(event));
    let (bad, mut good): (Vec<_>, Vec<_>) = sent.into_iter().partition(|event| is_bad(event));
    assert_eq!(bad.is_empty(), row.keeps == Keeps::OnceInOrder, "{} are bad", bad.len());
    let given_up = || -> BTreeSet<_> { events_in_letters(kept.path()).into_iter().collect() };
    wait_until_given_up(&relay, &mut good, || {
        let given_up = given_up();
        bad.iter().all(|event| given_up.contains(event))
    });
    if row.keeps != Keeps::AllAndCounts {
        let refused: Vec<_> = given_up().into_iter().collect();
        assert!(refused.iter().all(|event| is_bad(event)), "a good event was given up");
        assert_same_set(&refused, &bad);
    }
    let stored = row.store.events();
    eprintln!("{} of {} events stored", stored.len(), good.len());
    match row.keeps {
        Keeps::OnceInOrder => assert!(stored == good, "not each event once and in order"),
        Keeps::Once => assert_same_set(&stored, &good),
        Keeps::All | Keeps::AllAndCounts => assert_none_missing(&stored, &good),
    }
    let log = relay.log_text();
    assert!(SECRETS.iter().all(|secret| !log.contains(secret)), "a secret is in the log");
    relay.finish(Backlog::Empty);
}

/// Makes a test for each store and each balancer.
macro_rules! stores {
    ($($store:ident: $($test:ident $balancer:ident),*;)*) => {
        mod store {
            $(mod $store {
                use crate::outputs::any_store;
                use crate::support::balancers::Balancer;

                $(#[test]
                fn $test() {
                    any_store::whatever_happens(any_store::$store, Balancer::$balancer);
                })*
            })*
        }
    };
}

stores! {
    elasticsearch: behind_a_balancer_with_a_broken_backend BrokenBackend,
        behind_a_firewall Firewall;
    ibm_cloud_logs: behind_a_balancer_with_a_broken_backend BrokenBackend;
    loki: behind_a_balancer_with_a_broken_backend BrokenBackend,
        behind_a_balancer_that_takes_turns TakesTurns,
        behind_a_firewall Firewall;
    otlp: behind_a_balancer_with_a_broken_backend BrokenBackend,
        behind_a_firewall Firewall;
    s3: behind_a_balancer_with_a_broken_backend BrokenBackend;
    splunk_hec: behind_a_balancer_with_a_broken_backend BrokenBackend,
        behind_a_firewall Firewall;
}
