//! The cost of compression: CPU time and bytes for the formats that outputs send, at several
//! levels.

use std::hint::black_box;
use std::io::{Result, Write};

use flate2::Compression;
use flate2::write::GzEncoder;

use super::CpuTime;
use super::figures::spread;
use super::work::{Work, body_of};

/// The most bytes that a compressor gets at once, as in the relay.
const PIECE_BYTES: usize = 64 * 1024;

const ROUNDS: usize = 11;

/// Compresses a body, and returns its compressed size in bytes.
type Compress = Box<dyn Fn(&[u8]) -> Result<usize>>;

/// Measures the formats, and prints a table for each work. A zlib stream costs the same as gzip.
pub(crate) fn compression() {
    for work in [Work::metadata(), Work::responses(), Work::generated()] {
        println!("\n### compression: {}\n", work.name);
        println!("| format and level | CPU s/GB | bytes |\n|---|---|---|");
        let bodies: Vec<&[u8]> = work.requests.iter().map(|request| body_of(request)).collect();
        let bytes: usize = bodies.iter().map(|body| body.len()).sum();
        let rows = rows();
        let mut measured = vec![(Vec::new(), 0); rows.len()];
        for round in 0..=ROUNDS {
            for ((_, compress), (costs, sent)) in rows.iter().zip(&mut measured) {
                let start = CpuTime::now();
                *sent = bodies.iter().map(|body| black_box(compress(body)).expect("memory")).sum();
                let cost = (CpuTime::now() - start).as_secs_f64() * 1e9 / bytes as f64;
                // The first round only fills caches and memory.
                if round > 0 {
                    costs.push(cost);
                }
            }
        }
        for ((name, _), (costs, sent)) in rows.iter().zip(measured) {
            let share = sent as f64 * 100.0 / bytes as f64;
            println!("| {name} | {:.2} | {share:.1} % |", spread(costs).median());
        }
    }
}

fn rows() -> Vec<(String, Compress)> {
    let gzip = [1, 2, 3, 6].map(|level| {
        let compress = move |body: &[u8]| {
            let encoder = GzEncoder::new(Vec::new(), Compression::new(level));
            written(encoder, body)?.finish().map(|out| out.len())
        };
        (format!("gzip {level}"), Box::new(compress) as Compress)
    });
    let zstd = [-1, 1, 3].map(|level| {
        let compress = move |body: &[u8]| {
            let encoder = zstd::Encoder::new(Vec::new(), level)?;
            written(encoder, body)?.finish().map(|out| out.len())
        };
        (format!("zstd {level}"), Box::new(compress) as Compress)
    });
    gzip.into_iter().chain(zstd).collect()
}

/// Writes a body to an encoder in pieces, and returns the encoder.
fn written<E: Write>(mut encoder: E, body: &[u8]) -> Result<E> {
    for piece in body.chunks(PIECE_BYTES) {
        encoder.write_all(piece)?;
    }
    Ok(encoder)
}
