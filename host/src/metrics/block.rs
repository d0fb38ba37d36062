//! Families written down once: as long as what they say stays true, every answer is made of the same bytes.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use hyper::body::Bytes;
use prometheus_client::{encoding::text::encode_registry, registry::Registry};

use super::{Family, classic::classic, gzip::Part};

/// How long a form that nobody asks for is kept: longer than any usual scrape interval.
const KEPT: Duration = Duration::from_secs(300);

/// The two text formats of the Prometheus world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0, without its end mark.
    OpenMetrics,
    /// Text format 0.0.4.
    Classic,
}

/// A part of an answer: one family a name, samples sorted by labels, empty families left out.
///
/// The OpenMetrics text is written when the block is made, and the families are gone then: text is a third of their size.
/// The other forms are made when first asked for.
#[derive(Debug)]
pub struct Block {
    openmetrics: Bytes,
    sections: Vec<Section>,
    dropped: usize,
    classic: Kept<Bytes>,
    deflated: Kept<Arc<Part>>,
    classic_deflated: Kept<Arc<Part>>,
}

/// One family in the text.
#[derive(Debug, Clone)]
struct Section {
    name: &'static str,
    samples: usize,
    text: Range<usize>,
}

impl Block {
    /// Joins families of one name, because a name described twice makes the whole answer invalid, and of samples with
    /// equal labels keeps the first.
    pub fn new(families: Vec<Family>) -> Self {
        let mut text = String::new();
        let mut sections = Vec::new();
        let mut dropped = 0;
        for mut family in joined(families) {
            let before = family.samples.len();
            family.samples.sort_by(|a, b| a.labels.cmp(&b.labels));
            family.samples.dedup_by(|later, first| later.labels == first.labels);
            dropped += before - family.samples.len();
            let (name, samples, start) = (family.name, family.samples.len(), text.len());
            // One at a time, and gone afterwards: a text and all its samples in memory would be four texts.
            let mut registry = Registry::default();
            registry.register_collector(Box::new(family));
            write(&mut text, &registry);
            sections.push(Section { name, samples, text: start..text.len() });
        }
        Self::written(text, sections, dropped)
    }

    /// What a registry holds. Its names are its own: [`Block::distinct`] does not know them.
    pub fn of_registry(registry: &Registry) -> Self {
        let mut text = String::new();
        write(&mut text, registry);
        Self::written(text, Vec::new(), 0)
    }

    fn written(mut text: String, sections: Vec<Section>, dropped: usize) -> Self {
        text.shrink_to_fit();
        Self {
            openmetrics: text.into(),
            sections,
            dropped,
            classic: Kept::default(),
            deflated: Kept::default(),
            classic_deflated: Kept::default(),
        }
    }

    /// How many samples it has.
    pub fn samples(&self) -> usize {
        self.sections.iter().map(|section| section.samples).sum()
    }

    /// How many samples were left out because another one had the same name and labels.
    pub fn dropped(&self) -> usize {
        self.dropped
    }

    /// As text.
    pub fn text(&self, format: Format) -> Bytes {
        match format {
            Format::OpenMetrics => self.openmetrics.clone(),
            Format::Classic => self.classic.get_or_make(|| self.write_classic()),
        }
    }

    /// As a part of a gzip file.
    pub fn deflated(&self, format: Format) -> Arc<Part> {
        match format {
            Format::OpenMetrics => self.deflated.get_or_make(|| Arc::new(Part::of(&self.openmetrics))),
            Format::Classic => {
                self.classic_deflated.get_or_make(|| Arc::new(Part::of(&self.write_classic())))
            }
        }
    }

    /// Lets go of the forms that nobody asked for lately.
    pub fn tidy(&self) {
        self.classic.forget_unless_wanted();
        self.deflated.forget_unless_wanted();
        self.classic_deflated.forget_unless_wanted();
    }

    fn write_classic(&self) -> Bytes {
        classic(std::str::from_utf8(&self.openmetrics).unwrap_or_default()).into()
    }

    /// Makes one answer of blocks: a name that one of `last`, which comes behind them, or an earlier block describes is
    /// left out of the later ones, because a name described twice makes the whole answer invalid. Says how many samples
    /// that cost. No two collectors should ever claim one name; when they do, the answer must still be read.
    pub fn distinct(blocks: Vec<Arc<Self>>, last: &[Family]) -> (Vec<Arc<Self>>, usize) {
        let mut names: HashSet<&'static str> = last.iter().map(|family| family.name).collect();
        let mut left_out = 0;
        let distinct = blocks.into_iter().map(|block| {
            let (new, claimed): (Vec<&Section>, Vec<&Section>) =
                block.sections.iter().partition(|section| names.insert(section.name));
            if claimed.is_empty() {
                return Arc::clone(&block);
            }
            left_out += claimed.iter().map(|section| section.samples).sum::<usize>();
            Arc::new(block.only(&new))
        });
        (distinct.collect(), left_out)
    }

    fn only(&self, kept: &[&Section]) -> Self {
        let whole = std::str::from_utf8(&self.openmetrics).unwrap_or_default();
        let mut text = String::new();
        let sections = kept.iter().map(|section| {
            let start = text.len();
            text.push_str(whole.get(section.text.clone()).unwrap_or_default());
            Section { text: start..text.len(), ..(*section).clone() }
        });
        let sections = sections.collect();
        Self::written(text, sections, self.dropped)
    }
}

/// Families of one name as one, and no empty ones.
fn joined(families: Vec<Family>) -> Vec<Family> {
    let mut joined: Vec<Family> = Vec::with_capacity(families.len());
    let mut places: HashMap<&'static str, usize> = HashMap::new();
    for family in families.into_iter().filter(|family| !family.samples.is_empty()) {
        match places.get(family.name) {
            Some(&place) => joined[place].samples.extend(family.samples),
            None => {
                places.insert(family.name, joined.len());
                joined.push(family);
            }
        }
    }
    joined
}

fn write(text: &mut String, registry: &Registry) {
    // Writing to a string never fails, and evenkeel's collectors return no errors of their own.
    if encode_registry(text, registry).is_err() {
        tracing::error!("the metrics could not be written completely");
    }
}

/// Something that is made when first wanted, and forgotten when nobody has wanted it for a while.
#[derive(Debug)]
struct Kept<T>(Mutex<Option<(T, Instant)>>);

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<T: Clone> Kept<T> {
    /// Who comes while it is being made waits for it.
    fn get_or_make(&self, make: impl FnOnce() -> T) -> T {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (value, wanted) = kept.get_or_insert_with(|| (make(), Instant::now()));
        *wanted = Instant::now();
        value.clone()
    }

    fn forget_unless_wanted(&self) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.take_if(|(_, wanted)| wanted.elapsed() > KEPT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(families: Vec<Family>) -> Bytes {
        Block::new(families).text(Format::OpenMetrics)
    }

    #[test]
    fn samples_are_sorted_and_repeated_names_joined() {
        let mut state = Family::gauge("unit_state", "State.");
        state.sample(&[("name", "b"), ("state", "failed")], 0.0);
        state.sample(&[("name", "a"), ("state", "failed")], 1.0);
        let restarts = Family::counter("restart_total", "Restarts.").with(&[("name", "a")], 3.0);
        let again = Family::gauge("unit_state", "State.")
            .with(&[("name", "a"), ("state", "failed")], 7.0)
            .with(&[("name", "a"), ("state", "active")], 0.0);
        let alone = Family::gauge("alone", "Without labels.").with(&[], 1.5);
        let block = Block::new(vec![state, Family::gauge("empty", "Nothing."), restarts, again, alone]);
        assert_eq!((block.dropped(), block.samples()), (1, 5));
        assert_eq!(
            block.text(Format::OpenMetrics),
            "# HELP unit_state State.\n# TYPE unit_state gauge\n\
             unit_state{name=\"a\",state=\"active\"} 0.0\n\
             unit_state{name=\"a\",state=\"failed\"} 1.0\n\
             unit_state{name=\"b\",state=\"failed\"} 0.0\n\
             # HELP restart Restarts.\n# TYPE restart counter\nrestart_total{name=\"a\"} 3.0\n\
             # HELP alone Without labels.\n# TYPE alone gauge\nalone 1.5\n"
        );
    }

    #[test]
    fn hostile_label_values_stay_one_value() {
        let hostile = "a\"} 1\nforged_metric 2\n\\";
        assert_eq!(
            text(vec![Family::gauge("x", "X.").with(&[("name", hostile)], 1.0)]),
            "# HELP x X.\n# TYPE x gauge\nx{name=\"a\\\"} 1\\nforged_metric 2\\n\\\\\"} 1.0\n"
        );
    }

    #[test]
    fn a_form_is_made_once() {
        let block = Block::new(vec![Family::gauge("x", "X.").with(&[], 1.0)]);
        for format in [Format::OpenMetrics, Format::Classic] {
            assert_eq!(block.text(format).as_ptr(), block.text(format).as_ptr());
            assert!(Arc::ptr_eq(&block.deflated(format), &block.deflated(format)));
        }
        let before = block.deflated(Format::Classic);
        block.tidy();
        assert!(Arc::ptr_eq(&before, &block.deflated(Format::Classic)), "it was wanted just now");
    }

    #[test]
    fn a_name_is_described_by_the_first_block_that_has_it() {
        let named = |name: &'static str, value| Family::gauge(name, "X.").with(&[], value);
        let first = Arc::new(Block::new(vec![named("a", 1.0), named("b", 1.0)]));
        let clashing = Arc::new(Block::new(vec![named("c", 2.0), named("b", 2.0), named("d", 2.0)]));
        let last = [named("d", 3.0)];
        let (blocks, left_out) = Block::distinct(vec![Arc::clone(&first), clashing], &last);
        assert_eq!(left_out, 2);
        assert!(Arc::ptr_eq(&blocks[0], &first), "what has no clash is not written again");
        assert_eq!(blocks[1].text(Format::Classic), "# HELP c X.\n# TYPE c gauge\nc 2.0\n");
        let (same, left_out) = Block::distinct(blocks.clone(), &last);
        assert!(left_out == 0 && Arc::ptr_eq(&same[1], &blocks[1]));
    }
}
