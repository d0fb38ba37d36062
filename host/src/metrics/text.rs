//! Families as OpenMetrics text, exactly as prometheus-client writes them; it cannot write a family whose samples are not
//! all in memory.

use std::fmt::Write as _;

use super::{Family, Kind};

/// The two lines that describe a family.
pub(super) fn describe(out: &mut String, family: &Family) {
    let (name, kind) = match family.kind {
        Kind::Gauge => (family.name, "gauge"),
        Kind::Counter => (family.name.trim_end_matches("_total"), "counter"),
    };
    out.extend(["# HELP ", name, " ", family.help, "\n# TYPE ", name, " ", kind, "\n"]);
}

/// The line of a sample.
pub(super) fn sample<'a>(
    out: &mut String,
    name: &str,
    labels: impl Iterator<Item = (&'static str, &'a str)>,
    value: f64,
) {
    out.push_str(name);
    let mut before = '{';
    for (name, value) in labels {
        out.push(before);
        out.push_str(name);
        out.push_str("=\"");
        escape(out, value);
        out.push('"');
        before = ',';
    }
    out.push_str(if before == '{' { " " } else { "} " });
    number(out, value);
    out.push('\n');
}

/// OpenMetrics 1.0, `escaped-string`.
fn escape(out: &mut String, value: &str) {
    for part in value.split_inclusive(['\\', '"', '\n']) {
        let escaped = match part.as_bytes().last() {
            Some(b'\\') => "\\\\",
            Some(b'"') => "\\\"",
            Some(b'\n') => "\\n",
            _ => {
                out.push_str(part);
                continue;
            }
        };
        out.push_str(&part[..part.len() - 1]);
        out.push_str(escaped);
    }
}

fn number(out: &mut String, value: f64) {
    // Most values are a yes or a no.
    if value.to_bits() == 0 {
        out.push_str("0.0");
    } else if value.to_bits() == 1.0_f64.to_bits() {
        out.push_str("1.0");
    } else if value.is_infinite() {
        out.push_str(if value > 0.0 { "+Inf" } else { "-Inf" });
    } else {
        // The shortest that reads back as the same; writing to a string never fails.
        let _ = write!(out, "{value:?}");
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::{
        collector::Collector,
        encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text::encode_registry},
        metrics::MetricType,
        registry::Registry,
    };
    use proptest::prelude::*;

    use super::*;

    impl Collector for Family {
        fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
            let (name, kind) = match self.kind {
                Kind::Gauge => (self.name, MetricType::Gauge),
                Kind::Counter => (self.name.trim_end_matches("_total"), MetricType::Counter),
            };
            let mut metric = encoder.encode_descriptor(name, self.help, None, kind)?;
            for sample in &self.samples {
                if sample.labels.is_empty() {
                    theirs(&mut metric, self.kind, sample.value)?;
                } else {
                    theirs(&mut metric.encode_family(&&*sample.labels)?, self.kind, sample.value)?;
                }
            }
            Ok(())
        }
    }

    fn theirs(encoder: &mut MetricEncoder<'_>, kind: Kind, value: f64) -> Result<(), std::fmt::Error> {
        match kind {
            Kind::Gauge => encoder.encode_gauge(&value),
            Kind::Counter => encoder.encode_counter::<NoLabelSet, f64, f64>(&value, None),
        }
    }

    fn ours(family: &Family) -> String {
        let mut out = String::new();
        describe(&mut out, family);
        for told in &family.samples {
            let labels = told.labels.iter().map(|(name, value)| (*name, value.as_str()));
            sample(&mut out, family.name, labels, told.value);
        }
        out
    }

    proptest! {
        #[test]
        fn the_library_writes_the_same(
            samples in prop::collection::vec((prop::collection::vec(any::<String>(), 0..3), any::<i32>()), 1..5),
            is_counter: bool,
        ) {
            let mut family = Family::gauge("g", "A gauge.");
            if is_counter {
                family = Family::counter("c_total", "A counter.");
            }
            for (values, value) in samples {
                let labels: Vec<_> = ["a", "b", "c"].into_iter().zip(values.iter().map(String::as_str)).collect();
                family.sample(&labels, f64::from(value));
                family.sample(&labels, f64::from(value) / 8.0);
            }
            let ours = ours(&family);
            let mut registry = Registry::default();
            registry.register_collector(Box::new(family));
            let mut theirs = String::new();
            encode_registry(&mut theirs, &registry).unwrap();
            prop_assert_eq!(ours, theirs);
        }
    }

    #[test]
    fn numbers_read_back() {
        for (value, text) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (0.1, "0.1"),
            (1_700_000_000.25, "1700000000.25"),
            (9.223_372_036_854_772e18, "9.223372036854772e18"),
            (1e-9, "1e-9"),
            (f64::INFINITY, "+Inf"),
            (f64::NEG_INFINITY, "-Inf"),
            (f64::NAN, "NaN"),
        ] {
            let mut out = String::new();
            number(&mut out, value);
            assert_eq!(out, text);
        }
    }

    #[test]
    fn what_would_break_a_line_is_escaped() {
        let mut out = String::new();
        sample(&mut out, "m", [("a", "q\"\\\n"), ("b", ""), ("c", "ü\"ß")].into_iter(), 1.0);
        assert_eq!(out, "m{a=\"q\\\"\\\\\\n\",b=\"\",c=\"ü\\\"ß\"} 1.0\n");
    }
}
