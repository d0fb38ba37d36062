//! The classic text format 0.0.4, made from OpenMetrics text.

/// OpenMetrics text as the classic format 0.0.4.
///
/// Only the descriptions differ: there counters are described with their `_total`, info metrics are gauges named
/// `_info`, unknown is called untyped, and units and the end mark do not exist. Exemplars are not handled: no snapshot
/// has any.
pub(super) fn classic(openmetrics: &str) -> String {
    let mut out = String::with_capacity(openmetrics.len());
    let mut help = None;
    for line in openmetrics.split_inclusive('\n') {
        if let Some(description) = line.strip_prefix("# HELP ") {
            // It needs the final name, which the type on the next line decides.
            help = description.split_once(' ').map(|(_, text)| text);
        } else if let Some(description) = line.strip_prefix("# TYPE ") {
            let (name, kind) =
                description.trim_end().split_once(' ').unwrap_or((description.trim_end(), "unknown"));
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                other => ("", other),
            };
            if let Some(text) = help.take() {
                out.extend(["# HELP ", name, suffix, " ", text]);
            }
            out.extend(["# TYPE ", name, suffix, " ", kind, "\n"]);
        } else if !line.starts_with('#') {
            out.push_str(line);
        }
    }
    out.shrink_to_fit();
    out
}

#[cfg(test)]
mod tests {
    use prometheus_client::{
        collector::Collector,
        encoding::{DescriptorEncoder, EncodeMetric},
        metrics::{MetricType, info::Info},
        registry::{Registry, Unit},
    };

    use super::super::{Block, Format};

    #[derive(Debug)]
    struct OtherKinds;

    impl Collector for OtherKinds {
        fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
            let info = Info::new([("version", "1")]);
            let metric = encoder.encode_descriptor("build", "Build.", None, MetricType::Info)?;
            EncodeMetric::encode(&info, metric)?;
            let mut metric =
                encoder.encode_descriptor("age", "Age.", Some(&Unit::Seconds), MetricType::Unknown)?;
            metric.encode_gauge(&1.5)
        }
    }

    #[test]
    fn every_kind_has_its_classic_form() {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(OtherKinds));
        assert_eq!(
            Block::of_registry(&registry).text(Format::Classic).concat(),
            "# HELP build_info Build.\n# TYPE build_info gauge\nbuild_info{version=\"1\"} 1\n\
             # HELP age_seconds Age.\n# TYPE age_seconds untyped\nage_seconds 1.5\n"
                .as_bytes()
        );
    }
}
