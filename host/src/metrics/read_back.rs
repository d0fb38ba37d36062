//! What a block says, as values again, for tests that ask what a collector published.

use super::{Block, Family, Format, Kind, Sample};

impl Block {
    /// The families of the block.
    ///
    /// # Panics
    /// When the text is not what [`Block::new`] writes.
    pub fn read_back(&self) -> Vec<Family> {
        let text = self.text(Format::Classic).concat();
        let text = std::str::from_utf8(&text).expect("text");
        let mut families: Vec<Family> = Vec::new();
        let mut help = "";
        // A label value may hold a carriage return, which `lines` would take for part of an end.
        for line in text.split_terminator('\n') {
            if let Some(description) = line.strip_prefix("# HELP ") {
                help = description.split_once(' ').expect("a description").1;
            } else if let Some(description) = line.strip_prefix("# TYPE ") {
                let (name, kind) = description.split_once(' ').expect("a type");
                let kind = if kind == "counter" { Kind::Counter } else { Kind::Gauge };
                families.push(Family { name: forever(name), help: forever(help), kind, samples: Vec::new() });
            } else {
                families.last_mut().expect("a description first").samples.push(sample(line));
            }
        }
        families
    }
}

fn sample(line: &str) -> Sample {
    let (series, value) = line.rsplit_once(' ').expect("a value");
    let labels = series.split_once('{').map_or("", |(_, labels)| labels.strip_suffix('}').expect("an end"));
    Sample { labels: labels_of(labels).into_iter().collect(), value: value.parse().expect("a number") }
}

fn labels_of(mut text: &str) -> Vec<(&'static str, String)> {
    let mut labels = Vec::new();
    while let Some((name, rest)) = text.split_once("=\"") {
        let mut value = String::new();
        let mut characters = rest.char_indices();
        let end = loop {
            match characters.next().expect("an end of the value") {
                (end, '"') => break end,
                (_, '\\') => value.push(match characters.next().expect("something escaped").1 {
                    'n' => '\n',
                    other => other,
                }),
                (_, other) => value.push(other),
            }
        };
        labels.push((forever(name.trim_start_matches(',')), value));
        text = &rest[end + 1..];
    }
    labels
}

/// Names live as long as the process; a test's process is short.
fn forever(name: &str) -> &'static str {
    Box::leak(name.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut state = Family::gauge("state", "With \" and = and {}.");
        state.sample(&[("name", "a\\b\",x=\"\n\r"), ("type", "")], -0.5);
        state.sample(&[("name", "b"), ("type", "t")], 1e18);
        let families = vec![
            state,
            Family::counter("c_total", "C.").with(&[], 3.0),
            Family::gauge("g", "G.").with(&[("é", "ü")], 0.0),
        ];
        assert_eq!(Block::new(families.clone()).read_back(), families);
    }
}
