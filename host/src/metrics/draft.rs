//! A block while it is being written. Whatever its size, what is in memory is a piece of its text, and the rest compressed:
//! neither the samples of a large family nor a text of megabytes.

use std::{io::Read as _, ops::Range, sync::Arc};

use hyper::body::Bytes;
use prometheus_client::{encoding::text::encode_registry, registry::Registry};

use super::{
    Block, Family,
    gzip::{Packer, Part},
    text,
};

/// A text that is no longer is kept as it is. A longer one is compressed piece by piece.
const PIECE: usize = 64 << 10;

/// A block that is being written. Each name is described once.
#[derive(Default)]
pub struct Draft {
    sink: Sink,
    sections: Vec<Section>,
    dropped: usize,
}

/// One family in the text.
#[derive(Debug, Clone)]
pub(super) struct Section {
    pub(super) name: &'static str,
    pub(super) samples: usize,
    pub(super) text: Range<usize>,
}

/// A family whose samples are being told.
pub struct Samples<'a> {
    sink: &'a mut Sink,
    family: &'a Family,
    count: usize,
}

impl Draft {
    /// Writes a family, its samples sorted by labels; of those with equal labels the first counts.
    pub fn family(&mut self, mut family: Family) {
        let mut samples = std::mem::take(&mut family.samples);
        let before = samples.len();
        samples.sort_by(|a, b| a.labels.cmp(&b.labels));
        samples.dedup_by(|later, first| later.labels == first.labels);
        self.dropped += before - samples.len();
        self.tell(&family, |told| {
            for sample in &samples {
                let labels = sample.labels.iter().map(|(name, value)| (*name, value.as_str()));
                told.add_each(labels, sample.value);
            }
        });
    }

    /// Writes a family without having its samples in memory: those that `tell` tells, none twice and in a stable order.
    /// One of which nothing is told is left out. What samples `family` has itself are passed over.
    pub fn tell(&mut self, family: &Family, tell: impl FnOnce(&mut Samples<'_>)) {
        let start = self.sink.written;
        let mut samples = Samples { sink: &mut self.sink, family, count: 0 };
        tell(&mut samples);
        let count = samples.count;
        if count > 0 {
            let text = start..self.sink.written;
            self.sections.push(Section { name: family.name, samples: count, text });
        }
    }

    /// Writes what a registry holds.
    pub(super) fn registry(&mut self, registry: &Registry) {
        let mut text = String::new();
        // Writing to a string never fails, and evenkeel's collectors return no errors of their own.
        if encode_registry(&mut text, registry).is_err() {
            tracing::error!("the metrics could not be written completely");
        }
        self.sink.write(|out| out.push_str(&text));
    }

    /// Writes a family as it stands in another block.
    pub(super) fn copy(&mut self, section: &Section, text: &str) {
        let start = self.sink.written;
        self.sink.write(|out| out.push_str(text));
        self.sections.push(Section { text: start..self.sink.written, ..section.clone() });
    }

    /// The block.
    pub fn finish(self) -> Block {
        Block::written(self.sink.finish(), self.sections, self.dropped)
    }
}

impl Samples<'_> {
    /// Adds one sample.
    pub fn add(&mut self, labels: &[(&'static str, &str)], value: f64) {
        self.add_each(labels.iter().copied(), value);
    }

    fn add_each<'l>(&mut self, labels: impl Iterator<Item = (&'static str, &'l str)>, value: f64) {
        let is_first = self.count == 0;
        let family = self.family;
        self.sink.write(|out| {
            if is_first {
                text::describe(out, family);
            }
            text::sample(out, family.name, labels, value);
        });
        self.count += 1;
    }
}

/// Takes whole lines, and a description always together with its first sample.
#[derive(Default)]
struct Sink {
    text: String,
    /// All that was written, in bytes.
    written: usize,
    long: Option<Packing>,
}

/// What is packed already.
#[derive(Default)]
struct Packing {
    packer: Packer,
    pieces: Vec<usize>,
}

impl Sink {
    fn write(&mut self, write: impl FnOnce(&mut String)) {
        let before = self.text.len();
        write(&mut self.text);
        self.written += self.text.len() - before;
        if self.text.len() > PIECE {
            self.long.get_or_insert_default().pack(&mut self.text);
        }
    }

    fn finish(mut self) -> Text {
        let Some(mut long) = self.long else {
            self.text.shrink_to_fit();
            return Text::Short(self.text.into());
        };
        long.pack(&mut self.text);
        Text::Long(Long { part: Arc::new(long.packer.finish()), pieces: long.pieces })
    }
}

impl Packing {
    fn pack(&mut self, text: &mut String) {
        self.packer.add(text.as_bytes());
        self.pieces.push(text.len());
        text.clear();
    }
}

/// A text as it is kept.
#[derive(Debug)]
pub(super) enum Text {
    /// As it is.
    Short(Bytes),
    /// Compressed.
    Long(Long),
}

/// A compressed text.
#[derive(Debug)]
pub(super) struct Long {
    part: Arc<Part>,
    /// The lengths of the pieces it was written in: each is of whole lines.
    pieces: Vec<usize>,
}

impl Long {
    pub(super) fn part(&self) -> &Arc<Part> {
        &self.part
    }

    /// The text, piece by piece.
    pub(super) fn pieces(&self) -> impl Iterator<Item = Bytes> {
        let mut text = self.part.unpacked();
        self.pieces.iter().map(move |length| {
            let mut piece = vec![0; *length];
            // What was packed here can be unpacked here.
            let _ = text.read_exact(&mut piece);
            piece.into()
        })
    }
}
