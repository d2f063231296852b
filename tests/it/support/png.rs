//! Makes pictures of the browser small. A picture with a palette of 256 colours has about a third
//! of the bytes of one with three bytes for each pixel, and a page of text looks the same. The
//! formats are PNG's (W3C, third edition).

use std::collections::HashMap;
use std::io::Read as _;

use flate2::read::{ZlibDecoder, ZlibEncoder};
use flate2::{Compression, Crc};

type Colour = [u8; 3];

/// Returns the picture with a palette of its 256 most frequent colours. Every other colour becomes
/// the nearest one of these. `png` has three bytes for each pixel, as Chromium writes it.
pub(crate) fn with_palette(png: &[u8]) -> Vec<u8> {
    let (width, height, lines) = decoded(png);
    let colours = |line: &Vec<u8>| -> Vec<Colour> {
        line.chunks_exact(3).map(|it| it.try_into().expect("three bytes")).collect()
    };
    let pixels: Vec<Colour> = lines.iter().flat_map(colours).collect();
    let mut counts = HashMap::<Colour, u64>::new();
    for pixel in &pixels {
        *counts.entry(*pixel).or_default() += 1;
    }
    let mut frequent: Vec<(Colour, u64)> = counts.iter().map(|(it, count)| (*it, *count)).collect();
    // The order of equally frequent colours must not depend on the map.
    frequent.sort_by_key(|(colour, count)| (std::cmp::Reverse(*count), *colour));
    let palette: Vec<Colour> = frequent.iter().take(256).map(|(colour, _)| *colour).collect();
    let nearest = |colour: &Colour| -> u8 {
        let distance = |other: &Colour| -> u32 {
            colour.iter().zip(other).map(|(a, b)| u32::from(a.abs_diff(*b)).pow(2)).sum()
        };
        let (index, _) =
            palette.iter().enumerate().min_by_key(|(_, it)| distance(it)).expect("a colour");
        u8::try_from(index).expect("at most 256 colours")
    };
    let indices: HashMap<Colour, u8> = counts.keys().map(|it| (*it, nearest(it))).collect();
    let mut data = Vec::new();
    for line in pixels.chunks_exact(width as usize) {
        // This is filter type 0: the bytes are the indices.
        data.push(0);
        data.extend(line.iter().map(|pixel| indices[pixel]));
    }
    let mut packed = Vec::new();
    ZlibEncoder::new(data.as_slice(), Compression::best()).read_to_end(&mut packed).expect("zlib");
    // The depth is 8 bits, the colour type is 3 (palette), and the methods are the defaults.
    let mut header = [width.to_be_bytes(), height.to_be_bytes()].concat();
    header.extend([8, 3, 0, 0, 0]);
    let mut out = SIGNATURE.to_vec();
    for (kind, data) in
        [(b"IHDR", header), (b"PLTE", palette.concat()), (b"IDAT", packed), (b"IEND", Vec::new())]
    {
        out.extend(u32::try_from(data.len()).expect("a small picture").to_be_bytes());
        let mut crc = Crc::new();
        crc.update(kind);
        crc.update(&data);
        out.extend(kind);
        out.extend(data);
        out.extend(crc.sum().to_be_bytes());
    }
    out
}

const SIGNATURE: [u8; 8] = *b"\x89PNG\r\n\x1a\n";

/// Returns the width, the height, and the bytes of each line of a picture with three bytes for each
/// pixel.
fn decoded(png: &[u8]) -> (u32, u32, Vec<Vec<u8>>) {
    assert_eq!(png[..8], SIGNATURE);
    let number = |at: usize| u32::from_be_bytes(png[at..at + 4].try_into().expect("four bytes"));
    let (mut at, mut packed) = (8, Vec::new());
    while at < png.len() {
        let length = number(at) as usize;
        if &png[at + 4..at + 8] == b"IDAT" {
            packed.extend(&png[at + 8..at + 8 + length]);
        }
        at += 12 + length;
    }
    let (width, height) = (number(16), number(20));
    assert_eq!(&png[24..29], &[8, 2, 0, 0, 0], "8 bits, RGB, not interlaced");
    let mut bytes = Vec::new();
    ZlibDecoder::new(packed.as_slice()).read_to_end(&mut bytes).expect("zlib");
    let mut lines: Vec<Vec<u8>> = Vec::new();
    for filtered in bytes.chunks_exact(width as usize * 3 + 1) {
        let (filter, mut line) = (filtered[0], filtered[1..].to_vec());
        for index in 0..line.len() {
            let above = lines.last();
            let left = if index < 3 { 0 } else { line[index - 3] };
            let up = above.map_or(0, |it| it[index]);
            let corner = if index < 3 { 0 } else { above.map_or(0, |it| it[index - 3]) };
            line[index] = line[index].wrapping_add(predicted(filter, left, up, corner));
        }
        lines.push(line);
    }
    (width, height, lines)
}

/// Returns what a PNG filter (§9.2) adds to a byte.
fn predicted(filter: u8, left: u8, up: u8, corner: u8) -> u8 {
    let [a, b, c] = [left, up, corner].map(i16::from);
    match filter {
        0 => 0,
        1 => left,
        2 => up,
        3 => u8::try_from((a + b) / 2).expect("a mean of two bytes"),
        _ => {
            let near = |it: i16| (a + b - c - it).abs();
            if near(a) <= near(b) && near(a) <= near(c) {
                left
            } else if near(b) <= near(c) {
                up
            } else {
                corner
            }
        }
    }
}
