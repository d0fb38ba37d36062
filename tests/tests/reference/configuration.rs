//! docs/configuration.md: every key of both configuration files, from their schemas.

use serde_json::Value;

use crate::keys::{keys, table};

/// Described in docs/actions.md.
const STEPS: &str = "rules[].steps[]";

pub(crate) fn page() -> String {
    let mut body = String::from(concat!(
        "Both files are YAML and read strictly: a key that is not known is an error, with its line and what was probably meant. ",
        "Durations are Prometheus' (`30s`, `15m`, `1h30m`, `7d`), shares are percentages (`85%`), sizes have units (`1GB`, ",
        "`500MiB`); `N/WINDOW` is at most N in any stretch of that length.\n\n",
        "`generate config` of each program writes a first file for a host; `packaging/exporter.yml` and ",
        "`packaging/remediator.yml` are commented examples; `generate schema` prints what this page is made from, for editors.\n",
    ));
    for (program, check, schema) in [
        (
            "evenkeel-exporter",
            "`evenkeel-exporter --config.check --config.file=FILE` checks one. Every section may be missing.",
            evenkeel_exporter::generate::schema(),
        ),
        (
            "evenkeel-remediator",
            "`evenkeel-remediator check-config` checks one and says how each rule will work. Further rules may lie in `conf.d/*.yml` beside it. What stands under `steps` is in [actions.md](actions.md).",
            evenkeel_remediator::config::schema(),
        ),
    ] {
        let schema: Value = serde_json::from_str(&schema).expect("a schema is JSON");
        let keys = keys(&schema, "", &[STEPS]);
        assert!(keys.len() > 20, "{program} has only {} keys", keys.len());
        body.push_str(&format!("\n## {program}\n\n{check}\n\n{}", table(&keys)));
    }
    crate::page("Configuration", "the JSON Schemas of both programs", &body)
}
