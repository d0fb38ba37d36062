//! Families written down once: as long as what they say stays true, every answer is made of the same bytes.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use hyper::body::Bytes;
use prometheus_client::registry::Registry;

use super::{
    Family,
    classic::classic,
    draft::{Draft, Section, Text},
    gzip::{Packer, Part},
};

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
/// It is written once; the families are gone then. A long text is kept compressed, as Prometheus asks for it: that is a
/// sixteenth of the text, which is a third of its samples. The other forms are made when first asked for.
#[derive(Debug)]
pub struct Block {
    openmetrics: Text,
    sections: Vec<Section>,
    dropped: usize,
    whole: Kept<Vec<Bytes>>,
    classic: Kept<Vec<Bytes>>,
    deflated: Kept<Arc<Part>>,
    classic_deflated: Kept<Arc<Part>>,
}

impl Block {
    /// Joins families of one name, because a name described twice makes the whole answer invalid, and of samples with
    /// equal labels keeps the first.
    pub fn new(families: Vec<Family>) -> Self {
        let mut draft = Draft::default();
        for family in joined(families) {
            draft.family(family);
        }
        draft.finish()
    }

    /// What a registry holds. Its names are its own: [`Block::distinct`] does not know them.
    pub fn of_registry(registry: &Registry) -> Self {
        let mut draft = Draft::default();
        draft.registry(registry);
        draft.finish()
    }

    pub(super) fn written(openmetrics: Text, sections: Vec<Section>, dropped: usize) -> Self {
        Self {
            openmetrics,
            sections,
            dropped,
            whole: Kept::default(),
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

    /// As text, in pieces of whole lines.
    pub fn text(&self, format: Format) -> Vec<Bytes> {
        match (format, &self.openmetrics) {
            (Format::OpenMetrics, Text::Short(text)) => vec![text.clone()],
            (Format::OpenMetrics, Text::Long(long)) => self.whole.get_or_make(|| long.pieces().collect()),
            (Format::Classic, _) => self.classic.get_or_make(|| self.classic_pieces()),
        }
    }

    /// As a part of a gzip file.
    pub fn deflated(&self, format: Format) -> Arc<Part> {
        match (format, &self.openmetrics) {
            (Format::OpenMetrics, Text::Short(text)) => {
                self.deflated.get_or_make(|| Arc::new(Part::of(text)))
            }
            (Format::OpenMetrics, Text::Long(long)) => Arc::clone(long.part()),
            (Format::Classic, _) => self.classic_deflated.get_or_make(|| Arc::new(self.pack_classic())),
        }
    }

    /// Lets go of the forms that nobody asked for lately.
    pub fn tidy(&self) {
        self.whole.forget_unless_wanted();
        self.classic.forget_unless_wanted();
        self.deflated.forget_unless_wanted();
        self.classic_deflated.forget_unless_wanted();
    }

    fn classic_pieces(&self) -> Vec<Bytes> {
        match &self.openmetrics {
            Text::Short(text) => vec![in_classic(text)],
            Text::Long(long) => long.pieces().map(|piece| in_classic(&piece)).collect(),
        }
    }

    fn pack_classic(&self) -> Part {
        match &self.openmetrics {
            Text::Short(text) => Part::of(&in_classic(text)),
            Text::Long(long) => {
                let mut packer = Packer::default();
                long.pieces().for_each(|piece| packer.add(&in_classic(&piece)));
                packer.finish()
            }
        }
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
        let whole = self.text(Format::OpenMetrics).concat();
        let whole = std::str::from_utf8(&whole).unwrap_or_default();
        let mut draft = Draft::default();
        for section in kept {
            draft.copy(section, whole.get(section.text.clone()).unwrap_or_default());
        }
        let copy = draft.finish();
        Self { dropped: self.dropped, ..copy }
    }
}

fn in_classic(openmetrics: &[u8]) -> Bytes {
    classic(std::str::from_utf8(openmetrics).unwrap_or_default()).into()
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
    use std::io::Read as _;

    use super::*;

    fn text(block: &Block, format: Format) -> String {
        String::from_utf8(block.text(format).concat()).unwrap()
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
            text(&block, Format::OpenMetrics),
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
        let block = Block::new(vec![Family::gauge("x", "X.").with(&[("name", hostile)], 1.0)]);
        assert_eq!(
            text(&block, Format::OpenMetrics),
            "# HELP x X.\n# TYPE x gauge\nx{name=\"a\\\"} 1\\nforged_metric 2\\n\\\\\"} 1.0\n"
        );
    }

    #[test]
    fn a_form_is_made_once() {
        for block in [Block::new(vec![Family::gauge("x", "X.").with(&[], 1.0)]), Block::new(vec![large()])] {
            for format in [Format::OpenMetrics, Format::Classic] {
                assert_eq!(block.text(format)[0].as_ptr(), block.text(format)[0].as_ptr());
                assert!(Arc::ptr_eq(&block.deflated(format), &block.deflated(format)));
            }
            let before = block.deflated(Format::Classic);
            block.tidy();
            assert!(Arc::ptr_eq(&before, &block.deflated(Format::Classic)), "it was wanted just now");
        }
    }

    fn large() -> Family {
        let mut family = Family::counter("large_total", "Too large to be kept as it is.");
        for number in 0..10_000_u32 {
            family.sample(&[("number", &format!("{number:05}"))], f64::from(number));
        }
        family
    }

    #[test]
    fn a_large_block_reads_as_it_was_written() {
        let small = Family::counter("small_total", "S.").with(&[], 1.0);
        let block = Block::new(vec![large(), small.clone()]);
        let lines = |kind: &str| {
            let samples =
                (0..10_000_u32).map(|number| format!("large_total{{number=\"{number:05}\"}} {number}.0\n"));
            let large =
                format!("# HELP large{kind} Too large to be kept as it is.\n# TYPE large{kind} counter\n");
            let small = format!("# HELP small{kind} S.\n# TYPE small{kind} counter\nsmall_total 1.0\n");
            large + &samples.collect::<String>() + &small
        };
        for (format, expected) in [(Format::OpenMetrics, lines("")), (Format::Classic, lines("_total"))] {
            assert!(text(&block, format) == expected, "{format:?}");
            let mut unpacked = String::new();
            let packed = crate::metrics::gzip::member([&*block.deflated(format)]).concat();
            flate2::read::GzDecoder::new(&packed[..]).read_to_string(&mut unpacked).unwrap();
            assert!(unpacked == expected, "{format:?}, compressed");
        }
        assert_eq!(block.samples(), 10_001);
        let (blocks, left_out) = Block::distinct(vec![Arc::new(block)], &[small]);
        assert_eq!((left_out, blocks[0].samples()), (1, 10_000));
        assert!(lines("").starts_with(&text(&blocks[0], Format::OpenMetrics)));
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
        assert_eq!(text(&blocks[1], Format::Classic), "# HELP c X.\n# TYPE c gauge\nc 2.0\n");
        let (same, left_out) = Block::distinct(blocks.clone(), &last);
        assert!(left_out == 0 && Arc::ptr_eq(&same[1], &blocks[1]));
    }
}
