//! Copies of the shipped rules and configurations (`alerts/`) for one test: their ports are the
//! test's, and their durations are shorter. Everything else is as it is delivered to users.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use evenkeel_tests::tools;

/// A minute of a rule's `for` is a second here.
const RULES_HURRY: u64 = 60;
/// Alertmanager offers a lasting problem again after 4 s instead of 20 min.
const ALERTMANAGER_HURRY: u64 = 300;

/// Where everything listens.
pub(crate) struct Ports {
    pub(crate) exporter: u16,
    pub(crate) remediator: u16,
    pub(crate) prometheus: u16,
    pub(crate) alertmanagers: Vec<u16>,
}

/// The files that Prometheus and Alertmanager are started with.
pub(crate) struct Files {
    pub(crate) prometheus: PathBuf,
    pub(crate) alertmanager: PathBuf,
}

/// Writes the copies into `dir`, where the token must be as `webhook.token`. The receivers for
/// people, which are empty as shipped, deliver to `people`.
pub(crate) fn write(dir: &Path, ports: &Ports, people: &str) -> Result<Files> {
    let shipped = tools::repository().join("alerts");
    for file in fs::read_dir(&shipped)?.flatten() {
        let name = file.file_name().into_string().ok().context("a rule file's name is UTF-8")?;
        if name.ends_with(".rules.yml") {
            let rules = hurried(&fs::read_to_string(file.path())?, &["for", "keep_firing_for"], RULES_HURRY)?;
            fs::write(dir.join(name), rules)?;
        }
    }
    let files = Files { prometheus: dir.join("prometheus.yml"), alertmanager: dir.join("alertmanager.yml") };
    fs::write(&files.prometheus, prometheus(&fs::read_to_string(shipped.join("prometheus.yml"))?, ports)?)?;
    let alertmanager = fs::read_to_string(shipped.join("alertmanager.yml"))?;
    fs::write(&files.alertmanager, self::alertmanager(&alertmanager, ports, people)?)?;
    Ok(files)
}

fn prometheus(shipped: &str, ports: &Ports) -> Result<String> {
    let address = |port: &u16| format!("\"127.0.0.1:{port}\"");
    let alertmanagers: Vec<String> = ports.alertmanagers.iter().map(address).collect();
    let mut text = shipped.to_owned();
    for (from, to) in [
        ("scrape_interval: 15s", "scrape_interval: 1s"),
        ("scrape_timeout: 10s", "scrape_timeout: 1s"),
        ("evaluation_interval: 15s", "evaluation_interval: 1s"),
        ("\"127.0.0.1:19847\"", &address(&ports.exporter)),
        ("\"127.0.0.1:19848\"", &address(&ports.remediator)),
        ("\"127.0.0.1:9090\"", &address(&ports.prometheus)),
        ("\"127.0.0.1:9093\"", &alertmanagers.join(", ")),
    ] {
        text = replaced(&text, from, to)?;
    }
    Ok(text)
}

fn alertmanager(shipped: &str, ports: &Ports, people: &str) -> Result<String> {
    let text = hurried(shipped, &["group_wait", "group_interval", "repeat_interval"], ALERTMANAGER_HURRY)?;
    let text = replaced(&text, "127.0.0.1:19848", &format!("127.0.0.1:{}", ports.remediator))?;
    let deliver = |name: &str| format!("- name: {name}\n    webhook_configs: [{{url: \"{people}\"}}]\n   ");
    let text = replaced(&text, "- name: pager ", &deliver("pager"))?;
    replaced(&text, "- name: team ", &deliver("team"))
}

/// Like `str::replace`, but a text that is not there is an error: the shipped file has changed.
pub(crate) fn replaced(text: &str, from: &str, to: &str) -> Result<String> {
    ensure!(text.contains(from), "the shipped configuration no longer says {from:?}");
    Ok(text.replace(from, to))
}

/// Shortens the durations behind these keys.
fn hurried(text: &str, keys: &[&str], times: u64) -> Result<String> {
    let lines: Result<Vec<String>> = text
        .lines()
        .map(|line| match line.trim_start().split_once(": ") {
            Some((key, value)) if keys.contains(&key) => {
                let indent = &line[..line.len() - line.trim_start().len()];
                Ok(format!("{indent}{key}: {}ms", milliseconds(value.trim())? / times))
            }
            _ => Ok(line.to_owned()),
        })
        .collect();
    Ok(lines?.join("\n") + "\n")
}

fn milliseconds(duration: &str) -> Result<u64> {
    let digits = duration.find(|c: char| !c.is_ascii_digit()).context("a duration has a unit")?;
    let unit = match &duration[digits..] {
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        other => anyhow::bail!("unknown unit {other:?} in {duration:?}"),
    };
    Ok(duration[..digits].parse::<u64>()? * unit)
}
