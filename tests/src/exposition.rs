//! Reading the classic Prometheus text format, as far as tests ask: samples by name and labels.

use std::collections::{BTreeMap, BTreeSet};

/// All samples of one scrape.
#[derive(Clone, Debug, Default)]
pub struct Exposition(Vec<Sample>);

/// One line of a scrape.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The metric name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
}

/// What a text says of one metric.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Description<'a> {
    /// `gauge`, `counter` …
    pub kind: &'a str,
    /// In words.
    pub help: &'a str,
}

impl Exposition {
    /// Reads a scrape; what is no sample is passed over.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        Self(text.lines().filter(|line| !line.starts_with('#')).filter_map(sample).collect())
    }

    /// Every sample, as written.
    pub fn samples(&self) -> impl Iterator<Item = &Sample> {
        self.0.iter()
    }

    /// The samples of `name` that carry all these labels.
    pub fn all<'a>(&'a self, name: &'a str, labels: &'a [(&str, &str)]) -> impl Iterator<Item = &'a Sample> {
        self.0.iter().filter(move |sample| {
            sample.name == name
                && labels
                    .iter()
                    .all(|(key, value)| sample.labels.get(*key).is_some_and(|found| found == value))
        })
    }

    /// The names of all metrics.
    #[must_use]
    pub fn names(&self) -> BTreeSet<&str> {
        self.0.iter().map(|sample| sample.name.as_str()).collect()
    }

    /// What the text says of each metric: its type and its help, by name.
    #[must_use]
    pub fn descriptions(text: &str) -> BTreeMap<&str, Description<'_>> {
        let mut found = BTreeMap::<&str, Description<'_>>::new();
        for line in text.lines() {
            let Some((kind, rest)) = line.strip_prefix("# ").and_then(|line| line.split_once(' ')) else {
                continue;
            };
            let Some((name, said)) = rest.split_once(' ') else { continue };
            let description = found.entry(name).or_default();
            match kind {
                "TYPE" => description.kind = said,
                "HELP" => description.help = said,
                _ => {}
            }
        }
        found
    }

    /// The value of the first sample of `name` that carries all these labels.
    #[must_use]
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        self.all(name, labels).next().map(|sample| sample.value)
    }
}

fn sample(line: &str) -> Option<Sample> {
    let end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            let (key, after) = rest.split_once("=\"")?;
            let (value, after) = quoted(after)?;
            labels.insert(key.trim_start_matches(',').to_owned(), value);
            rest = after;
        }
        rest = &rest[1..];
    }
    let value = rest.split_whitespace().next()?.parse().ok()?;
    Some(Sample { name: name.to_owned(), labels, value })
}

/// The text up to the closing quote, unescaped, and what follows the quote.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut letters = text.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => match letters.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_labels_escapes_and_values() {
        let seen = Exposition::parse(concat!(
            "# HELP a help\n# TYPE a gauge\n",
            "a{x=\"1\",y=\"say \\\"hi\\\" \\\\ {now}\\n\"} 2.5\n",
            "a{x=\"2\",y=\"\"} NaN\n",
            "b 1e3 1700000000000\n",
            "broken{x=\"1\n",
        ));
        assert_eq!(seen.value("a", &[("y", "say \"hi\" \\ {now}\n")]), Some(2.5));
        assert!(seen.value("a", &[("x", "2")]).unwrap().is_nan());
        assert_eq!(seen.value("b", &[]), Some(1000.0));
        assert_eq!(seen.value("broken", &[]), None);
        assert_eq!(seen.value("a", &[("z", "")]), None);
        assert_eq!(seen.all("a", &[]).count(), 2);
    }
}
