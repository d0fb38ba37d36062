//! One gzip member out of parts that were compressed at different times, so that what did not change since the last
//! answer is not compressed again.
//!
//! A part is a deflate stream (RFC 1951) of its own that ends on a byte boundary and does not say that it is the last, so
//! that parts in a row are one stream; a member (RFC 1952) adds a header, an end, and a checksum that follows from the
//! parts' checksums. Every reader of gzip takes it: nothing here is optional in the format.

use std::io::{Cursor, Read, Write};

use flate2::{Compression, Crc, read::DeflateDecoder, write::DeflateEncoder};
use hyper::body::Bytes;

/// Magic number, deflate, no flags, no time, fastest algorithm, unknown system (RFC 1952, 2.3).
const HEADER: &[u8] = &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 4, 0xff];

/// An empty block of fixed codes that says that it is the last (RFC 1951, 3.2.3).
const LAST_BLOCK: [u8; 2] = [3, 0];

/// A shorter text is not worth compressing: the tables that it takes are 40 times as large, and clearing them costs more
/// than all else that is done for such a text. What is different at each scrape is mostly of this kind.
const SHORT: usize = 8 << 10;

/// A piece of text, compressed if it is worth it.
#[derive(Debug)]
pub struct Part {
    /// One deflate stream.
    deflated: Vec<Bytes>,
    crc: Crc,
}

impl Part {
    /// Of a text that is whole in memory.
    pub fn of(text: &[u8]) -> Self {
        if text.len() <= SHORT {
            return Self::stored(text);
        }
        let mut packer = Packer::default();
        packer.add(text);
        packer.finish()
    }

    /// The text as it is, in blocks that are not compressed (RFC 1951, 3.2.4).
    fn stored(text: &[u8]) -> Self {
        let mut deflated = Vec::with_capacity(text.len() + 5);
        for piece in text.chunks(usize::from(u16::MAX)) {
            let length = u16::try_from(piece.len()).unwrap_or(u16::MAX);
            deflated.push(0);
            deflated.extend(length.to_le_bytes());
            deflated.extend((!length).to_le_bytes());
            deflated.extend(piece);
        }
        let mut crc = Crc::new();
        crc.update(text);
        Self { deflated: vec![deflated.into()], crc }
    }

    /// The text again.
    pub(super) fn unpacked(&self) -> impl Read {
        DeflateDecoder::new(Cursor::new(self.deflated.concat()))
    }
}

/// Makes a part of a text that comes in pieces.
pub(super) struct Packer {
    encoder: DeflateEncoder<Vec<u8>>,
    deflated: Vec<Bytes>,
    crc: Crc,
}

impl Default for Packer {
    /// Level 1: 16 times smaller in a third of the time that writing the text takes; higher levels cost far more than they
    /// save.
    fn default() -> Self {
        let encoder = DeflateEncoder::new(Vec::new(), Compression::fast());
        Self { encoder, deflated: Vec::new(), crc: Crc::new() }
    }
}

impl Packer {
    pub(super) fn add(&mut self, text: &[u8]) {
        self.crc.update(text);
        // Writing to a vector never fails.
        let _ = self.encoder.write_all(text);
        self.keep();
    }

    pub(super) fn finish(mut self) -> Part {
        // Ends the stream on a byte boundary, and not as the last.
        let _ = self.encoder.flush();
        self.keep();
        Part { deflated: self.deflated, crc: self.crc }
    }

    /// In pieces of just their size: one that grows would be copied many times, and leave holes in the heap.
    fn keep(&mut self) {
        let new = self.encoder.get_mut();
        if !new.is_empty() {
            self.deflated.push(Bytes::copy_from_slice(new));
            new.clear();
        }
    }
}

/// The parts as one gzip file, in pieces.
pub fn member<'a>(parts: impl IntoIterator<Item = &'a Part>) -> Vec<Bytes> {
    let mut pieces = vec![Bytes::from_static(HEADER)];
    let mut crc = Crc::new();
    for part in parts {
        pieces.extend(part.deflated.iter().cloned());
        crc.combine(&part.crc);
    }
    let end = [&LAST_BLOCK[..], &crc.sum().to_le_bytes(), &crc.amount().to_le_bytes()].concat();
    pieces.push(end.into());
    pieces
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn unpacked(parts: &[Part]) -> String {
        let mut text = String::new();
        let packed = member(parts).concat();
        // The plain decoder stops after one member: more than one would be cut off here.
        flate2::read::GzDecoder::new(&packed[..]).read_to_string(&mut text).expect("a sound gzip file");
        text
    }

    #[test]
    fn parts_are_one_member() {
        let long = "systemd_unit_state{name=\"a.service\"} 1.0\n".repeat(5000);
        let parts = [Part::of(long.as_bytes()), Part::of(b""), Part::of(b"# EOF\n")];
        assert_eq!(unpacked(&parts), format!("{long}# EOF\n"));
        let size: usize = member(&parts).iter().map(Bytes::len).sum();
        assert!(size < long.len() / 16, "{size} of {}", long.len());
    }

    #[test]
    fn long_and_short_parts_stand_in_any_order() {
        let texts = [SHORT - 1, SHORT, SHORT + 1, 1, 3 * SHORT, 70_000];
        let texts = texts.map(|length| ('a'..='z').cycle().take(length).collect::<String>());
        let parts = texts.each_ref().map(|text| Part::of(text.as_bytes()));
        assert_eq!(unpacked(&parts), texts.concat());
        let stored = [Part::stored(texts[5].as_bytes()), Part::stored(texts[0].as_bytes())];
        assert_eq!(unpacked(&stored), [&texts[5][..], &texts[0]].concat());
    }

    #[test]
    fn the_same_part_serves_again_and_in_any_place() {
        let (a, b) = (Part::of(b"first"), Part::of("zwölf".as_bytes()));
        let mut text = String::new();
        let packed = member([&a, &b, &a, &a]).concat();
        flate2::read::GzDecoder::new(&packed[..]).read_to_string(&mut text).expect("a sound gzip file");
        assert_eq!(text, "firstzwölffirstfirst");
    }

    #[test]
    fn no_parts_are_an_empty_file() {
        assert_eq!(unpacked(&[]), "");
    }

    #[test]
    fn what_does_not_compress_stays_whole() {
        // xorshift: the same noise at each run.
        let mut state = 0x9E37_79B9_7F4A_7C15_u64;
        let noise: String = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            char::from_u32(u32::try_from(state % 0xD7FF).expect("small")).expect("no surrogate")
        })
        .take(100_000)
        .collect();
        let halves = noise.split_at(noise.floor_char_boundary(noise.len() / 2));
        let parts = [Part::of(halves.0.as_bytes()), Part::of(halves.1.as_bytes())];
        assert_eq!(unpacked(&parts), noise);
    }
}
