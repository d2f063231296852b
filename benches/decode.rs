//! The speed of `audit::decode_in_place`, in MB/s, beside other functions.
//!
//! Run it with `cargo bench --bench decode`. Each body is copied into a buffer, as a read from a
//! socket would do, and decoded there. In each sample, every method takes its turn on the same
//! bodies, so that other work of the machine affects all of them. The first method only copies, and
//! its time is subtracted from that of the others. The time includes dropping the result. The
//! tables have medians of the samples, in CPU time.
//!
//! The second table shows the scanner of bodies with each instruction set of this CPU, also in
//! MB/s. Its first row is the copy, and its last row is serde_json.
//!
//! The third table shows the cost of reading what an audit policy asks about each event
//! (`audit::request`), beside a search for the ends of lines, in nanoseconds per event.
//!
//! A CPU learns the contents of a recorded body that is read repeatedly. All methods then look
//! faster, most of all with small bodies. The last rows of the first table are for bodies that all
//! differ.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a bench prints, and panics where it cannot go on"
)]

use std::fmt;
use std::hint::black_box;
use std::time::Duration;

use rustix::time::ClockId;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

#[path = "common/figures.rs"]
mod figures;
#[path = "common/work.rs"]
mod work;

use figures::spread;
use work::{Work, body_of};

/// The relay's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A sample decodes a recorded body as often as it fits into this many bytes, but at least once.
/// The cost of reading the clock does not matter then.
const BYTES_PER_SAMPLE: usize = 512 * 1024;

/// The approximate size of all bodies that differ. Together they are larger than a core's caches.
const VARIED_BYTES: usize = 22_400_000;

/// Decodes a body. The last byte of the slice is free space and not part of the body.
type Method = fn(&mut [u8]);

const METHODS: [(&str, Method); 4] = [
    ("memcpy", copy),
    ("audit::decode_in_place", decode),
    ("Vec<&RawValue>", raw_values),
    ("serde_json::Value", value),
];

/// The scanner of bodies with each instruction set.
const SCANNERS: [(audit::Isa, Method); 5] = [
    (audit::Isa::Portable, |body| scan(audit::Isa::Portable, body)),
    (audit::Isa::Sse2, |body| scan(audit::Isa::Sse2, body)),
    (audit::Isa::Neon, |body| scan(audit::Isa::Neon, body)),
    (audit::Isa::Avx2, |body| scan(audit::Isa::Avx2, body)),
    (audit::Isa::Avx512, |body| scan(audit::Isa::Avx512, body)),
];

/// Ways to read the requests of events from their lines. The first one only copies.
const READERS: [(&str, Method); 4] = [
    ("memcpy", copy),
    ("ends of lines", ends_of_lines),
    ("audit::request::request", request),
    ("audit::request::Reader", reader),
];

fn main() {
    if !std::env::args().any(|argument| argument == "--bench") {
        eprintln!("nothing measured: run it by `cargo bench --bench decode`");
        return;
    }
    print!("{}", figures::machine());
    println!("- load average before: {}\n", figures::load_average());
    let names = METHODS.map(|(name, _)| name).join(" | ");
    println!("| bodies | bytes | {names} | decode ÷ Vec<&RawValue> |");
    println!("|---|---|{}---|", "---|".repeat(METHODS.len()));
    for (name, body) in corpus() {
        let copies = (BYTES_PER_SAMPLE / body.len()).max(1);
        measure(&name, &vec![&body[..]; copies], 101);
    }
    for events in [400, 1] {
        const EVENT_BYTES: usize = 1400;
        let count = VARIED_BYTES / events / EVENT_BYTES;
        let bodies: Vec<Vec<u8>> =
            (0..count).map(|seed| work::varied(seed as u64, events, EVENT_BYTES)).collect();
        let name = format!("{count} different ones of {events} × {EVENT_BYTES} bytes");
        measure(&name, &bodies.iter().map(Vec::as_slice).collect::<Vec<_>>(), 21);
    }
    measure_scanners(&[Work::metadata(), Work::responses(), Work::generated()]);
    let names: Vec<_> = READERS[1..].iter().map(|(name, _)| *name).collect();
    println!("\n| events | bytes | {} |", names.join(" | "));
    println!("|---|---|{}", "---|".repeat(names.len()));
    for work in [Work::metadata(), Work::responses(), Work::generated()] {
        measure_readers(&work);
    }
    println!("\n- load average after: {}", figures::load_average());
}

/// Returns the recorded EventLists, sorted by name.
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

/// Prints a row of the first table, for one body or several.
fn measure(name: &str, bodies: &[&[u8]], samples: usize) {
    let longest = bodies.iter().map(|body| body.len()).max().unwrap();
    let mut buffer = vec![0; longest + 1];
    let mut rates = METHODS.map(|_| Vec::new());
    let mut ratios = Vec::new();
    let bytes: usize = bodies.iter().map(|body| body.len()).sum();
    for _ in 0..samples {
        let times = METHODS.map(|(_, method)| timed(bodies, &mut buffer, method).as_secs_f64());
        let [copying, decode, raw_values, value] = times;
        let times = [copying, decode - copying, raw_values - copying, value - copying];
        for (time, rates) in times.iter().zip(&mut rates) {
            rates.push(bytes as f64 / 1e6 / time);
        }
        ratios.push(times[2] / times[1]);
    }
    let rates = rates.map(|rates| format!("{:.0}", spread(rates).median())).join(" | ");
    println!("| {name} | {} | {rates} | {} |", bytes / bodies.len(), spread(ratios).show(2));
}

/// Prints the second table, which has a column for each work.
fn measure_scanners(works: &[Work]) {
    const SAMPLES: usize = 15;
    let mut methods = vec![("memcpy".to_owned(), METHODS[0].1)];
    for (isa, method) in SCANNERS.into_iter().filter(|(isa, _)| isa.is_there()) {
        methods.push((format!("{isa:?}"), method));
    }
    methods.push(("serde_json, Vec<&RawValue>".to_owned(), raw_values));
    let names: Vec<_> = works.iter().map(|work| work.name).collect();
    println!("\n| with | {} |\n|---{}|", names.join(" | "), "|---".repeat(works.len()));
    let mut rows = vec![Vec::new(); methods.len()];
    for work in works {
        let bodies: Vec<&[u8]> = work.requests.iter().map(|request| body_of(request)).collect();
        let bytes: usize = bodies.iter().map(|body| body.len()).sum();
        let mut buffer = vec![0; work.body.len() + 1];
        let mut rates = vec![Vec::new(); methods.len()];
        for _ in 0..SAMPLES {
            let times = methods.iter().map(|(_, method)| timed(&bodies, &mut buffer, *method));
            let times: Vec<f64> = times.map(|time| time.as_secs_f64()).collect();
            for (at, (time, rates)) in times.iter().zip(&mut rates).enumerate() {
                let time = if at == 0 { *time } else { time - times[0] };
                rates.push(bytes as f64 / 1e6 / time);
            }
        }
        for (rates, row) in rates.into_iter().zip(&mut rows) {
            row.push(spread(rates).show(0));
        }
    }
    for ((name, _), row) in methods.iter().zip(rows) {
        println!("| {name} | {} |", row.join(" | "));
    }
}

/// Prints the row of a work in the third table.
fn measure_readers(work: &Work) {
    const SAMPLES: usize = 21;
    let lines =
        work.requests.iter().map(|request| audit::decode(body_of(request).to_vec()).unwrap().lines);
    let lines: Vec<_> = lines.collect();
    let bodies: Vec<&[u8]> = lines.iter().map(|lines| &lines[..]).collect();
    let mut buffer = vec![0; bodies.iter().map(|body| body.len()).max().unwrap() + 1];
    let events = work.events as f64 * bodies.len() as f64;
    let mut costs = READERS.map(|_| Vec::new());
    for _ in 0..SAMPLES {
        let times =
            READERS.map(|(_, method)| timed(&bodies, &mut buffer, method).as_secs_f64() * 1e9);
        for (time, costs) in times.iter().zip(&mut costs) {
            costs.push((time - times[0]) / events);
        }
    }
    let costs: Vec<_> =
        costs.into_iter().map(|costs| format!("{:.0}", spread(costs).median())).collect();
    println!("| {} | {} | {} |", work.name, work.lines() / work.events, costs[1..].join(" | "));
}

/// Returns the CPU time that this thread needs for all bodies.
fn timed(bodies: &[&[u8]], buffer: &mut [u8], method: Method) -> Duration {
    let now = || rustix::time::clock_gettime(ClockId::ThreadCPUTime);
    let begun = now();
    for body in bodies {
        buffer[..body.len()].copy_from_slice(black_box(body));
        method(&mut buffer[..=body.len()]);
    }
    (now() - begun).try_into().expect("it runs forwards")
}

fn copy(body: &mut [u8]) {
    black_box(body);
}

fn decode(body: &mut [u8]) {
    black_box(audit::decode_in_place(body)).expect("an EventList");
}

fn scan(isa: audit::Isa, body: &mut [u8]) {
    black_box(audit::scan_in_place(isa, body)).expect("the scanner recognises it");
}

fn value(body: &mut [u8]) {
    black_box(serde_json::from_slice::<serde_json::Value>(without_room(body))).unwrap();
}

/// Validates the list and finds its events, but does not parse them.
fn raw_values(body: &mut [u8]) {
    let text = std::str::from_utf8(without_room(body)).unwrap();
    black_box(serde_json::from_str::<Items<'_>>(text)).unwrap();
}

fn ends_of_lines(lines: &mut [u8]) {
    memchr::memchr_iter(b'\n', without_room(lines)).for_each(|end| {
        black_box(end);
    });
}

fn request(lines: &mut [u8]) {
    for event in without_room(lines).split_inclusive(|byte| *byte == b'\n') {
        black_box(audit::request::request(event));
    }
}

fn reader(lines: &mut [u8]) {
    let mut reader = audit::request::Reader::new(without_room(lines));
    while let Some(read) = reader.read() {
        black_box(read);
    }
}

fn without_room(body: &[u8]) -> &[u8] {
    &body[..body.len() - 1]
}

/// The `items` of an EventList.
struct Items<'a>(#[allow(dead_code, reason = "making them is what is measured")] Vec<&'a RawValue>);

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
