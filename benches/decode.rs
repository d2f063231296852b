//! `audit::decode` beside what it could be compared with: MB/s over the recorded bodies.
//!
//! `cargo bench --bench decode`. In each sample every method takes its turn on the same copies, so
//! that whatever else the machine does hits all of them; the table holds medians. Making the copies
//! and dropping the results is not timed.

#![allow(clippy::disallowed_types, reason = "no runtime here whose time could be paused")]
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a bench prints, and panics where it cannot go on"
)]

use std::fmt;
use std::hint::black_box;
use std::time::Duration;
use std::time::Instant;

use kube_audit_forwarder::audit;
use serde::Deserialize;
use serde::Deserializer;
use serde::de::IgnoredAny;
use serde::de::MapAccess;
use serde::de::Visitor;
use serde_json::value::RawValue;

/// As in the binary.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Samples of each method and body.
const SAMPLES: usize = 101;

/// Timed at once, so that the clock's own cost is none; small enough for the second cache.
const BYTES_PER_SAMPLE: usize = 512 * 1024;

/// A way to go over bodies; gives how long it took.
type Method = fn(Vec<Vec<u8>>) -> Duration;

const METHODS: [(&str, Method); 4] = [
    ("memcpy", memcpy),
    ("audit::decode", decode),
    ("Vec<&RawValue>", raw_values),
    ("serde_json::Value", value),
];

fn main() {
    if !std::env::args().any(|argument| argument == "--bench") {
        eprintln!("nothing measured: run it by `cargo bench --bench decode`");
        return;
    }
    let names = METHODS.map(|(name, _)| name).join(" | ");
    println!("| body | bytes | {names} |\n|---|---|{}", "---|".repeat(METHODS.len()));
    for (name, body) in corpus() {
        let copies = (BYTES_PER_SAMPLE / body.len()).max(1);
        let mut seconds = METHODS.map(|_| Vec::new());
        for _ in 0..SAMPLES {
            for ((_, method), seconds) in METHODS.iter().zip(&mut seconds) {
                seconds.push(method(vec![body.clone(); copies]).as_secs_f64());
            }
        }
        let rates = seconds.map(|mut seconds| {
            seconds.sort_unstable_by(f64::total_cmp);
            let megabytes = (body.len() * copies) as f64 / 1e6;
            format!("{:.0}", megabytes / seconds[SAMPLES / 2])
        });
        println!("| {name} | {} | {} |", body.len(), rates.join(" | "));
    }
}

/// The recorded EventLists, in the order of names.
fn corpus() -> Vec<(String, Vec<u8>)> {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus");
    let mut bodies: Vec<_> = std::fs::read_dir(directory)
        .expect("tests/corpus is part of the repository")
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .map(|path| {
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            (name, std::fs::read(&path).unwrap())
        })
        .collect();
    bodies.sort();
    bodies
}

/// Times one pass over all bodies; what it makes is dropped after the clock was read.
fn timed<'a, T>(bodies: &'a [Vec<u8>], pass: impl Fn(&'a [u8]) -> T) -> Duration {
    let mut made = Vec::with_capacity(bodies.len());
    let begun = Instant::now();
    for body in bodies {
        made.push(pass(body));
    }
    let took = begun.elapsed();
    black_box(made);
    took
}

fn memcpy(bodies: Vec<Vec<u8>>) -> Duration {
    let mut to = vec![0; bodies[0].len()];
    let begun = Instant::now();
    for body in &bodies {
        black_box(&mut to).copy_from_slice(black_box(body));
    }
    begun.elapsed()
}

fn decode(bodies: Vec<Vec<u8>>) -> Duration {
    let mut made = Vec::with_capacity(bodies.len());
    let begun = Instant::now();
    for body in bodies {
        made.push(audit::decode(body).expect("a recorded body"));
    }
    let took = begun.elapsed();
    black_box(made);
    took
}

fn value(bodies: Vec<Vec<u8>>) -> Duration {
    timed(&bodies, |body| serde_json::from_slice::<serde_json::Value>(body).unwrap())
}

/// Validates and finds the events; looks into none of them.
fn raw_values(bodies: Vec<Vec<u8>>) -> Duration {
    timed(&bodies, |body| {
        serde_json::from_str::<Items<'_>>(std::str::from_utf8(body).unwrap()).unwrap().0
    })
}

/// The `items` of an EventList.
struct Items<'a>(Vec<&'a RawValue>);

impl<'de: 'a, 'a> Deserialize<'de> for Items<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List;
        impl<'de> Visitor<'de> for List {
            type Value = Items<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an EventList")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Items<'de>, A::Error> {
                let mut items = Vec::new();
                while let Some(key) = map.next_key::<&str>()? {
                    if key == "items" {
                        items = map.next_value()?;
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(Items(items))
            }
        }
        deserializer.deserialize_map(List)
    }
}
