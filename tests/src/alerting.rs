//! Copies of the shipped rules and configurations (`alerts/`), as files that Prometheus and
//! Alertmanager are started with: their ports and paths are the run's, their durations shorter where
//! a run has no time. Everything else is as it is delivered to users.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};

use crate::tools;

/// A minute of a rule's `for` is a second in a hurry.
const RULES_HURRY: u64 = 60;
/// In a hurry Alertmanager offers a lasting problem again after 4 s instead of 20 min.
const ALERTMANAGER_HURRY: u64 = 300;

/// Where everything listens, on loopback.
#[derive(Clone, Debug)]
pub struct Ports {
    /// evenkeel-exporter.
    pub exporter: u16,
    /// evenkeel-remediator.
    pub remediator: u16,
    /// Prometheus.
    pub prometheus: u16,
    /// Each Alertmanager that Prometheus sends to.
    pub alertmanagers: Vec<u16>,
}

/// What the copies are to say.
#[derive(Debug)]
pub struct Wiring<'a> {
    /// Where everything listens.
    pub ports: &'a Ports,
    /// The file with the remediator's token.
    pub token: &'a Path,
    /// Whether the durations are shortened.
    pub hurry: bool,
    /// Where the receivers for people, which are empty as shipped, deliver to.
    pub people: Option<&'a str>,
}

/// The files that Prometheus and Alertmanager are started with.
#[derive(Debug)]
pub struct Files {
    /// Prometheus's; the rules lie beside it.
    pub prometheus: PathBuf,
    /// Alertmanager's.
    pub alertmanager: PathBuf,
}

impl Wiring<'_> {
    /// Writes the copies into `dir`, over those of an earlier run.
    ///
    /// # Errors
    ///
    /// When a file cannot be read or written, or no longer says what is to be replaced in it.
    pub fn write(&self, dir: &Path) -> Result<Files> {
        let shipped = tools::repository().join("alerts");
        for file in fs::read_dir(&shipped)?.flatten() {
            let name = file.file_name().into_string().ok().context("a rule file's name is UTF-8")?;
            if name.ends_with(".rules.yml") {
                fs::write(dir.join(name), self.rules(&fs::read_to_string(file.path())?)?)?;
            }
        }
        let files =
            Files { prometheus: dir.join("prometheus.yml"), alertmanager: dir.join("alertmanager.yml") };
        let read = |name: &str| fs::read_to_string(shipped.join(name)).with_context(|| name.to_owned());
        fs::write(&files.prometheus, self.prometheus(read("prometheus.yml")?)?)?;
        fs::write(&files.alertmanager, self.alertmanager(read("alertmanager.yml")?)?)?;
        Ok(files)
    }

    fn rules(&self, shipped: &str) -> Result<String> {
        let runbooks = format!("file://{}/runbooks/", tools::repository().join("alerts").display());
        let text = replaced(shipped, "file:///usr/share/doc/evenkeel/runbooks/", &runbooks)?;
        if self.hurry { hurried(&text, &["for", "keep_firing_for"], RULES_HURRY) } else { Ok(text) }
    }

    fn prometheus(&self, mut text: String) -> Result<String> {
        let address = |port: u16| format!("\"127.0.0.1:{port}\"");
        let alertmanagers: Vec<String> = self.ports.alertmanagers.iter().copied().map(address).collect();
        if self.hurry {
            for (from, to) in [
                ("scrape_interval: 15s", "scrape_interval: 1s"),
                ("scrape_timeout: 10s", "scrape_timeout: 1s"),
                ("evaluation_interval: 15s", "evaluation_interval: 1s"),
            ] {
                text = replaced(&text, from, to)?;
            }
        }
        for (from, to) in [
            (19847, address(self.ports.exporter)),
            (19848, address(self.ports.remediator)),
            (9090, address(self.ports.prometheus)),
            (9093, alertmanagers.join(", ")),
        ] {
            text = replaced(&text, &address(from), &to)?;
        }
        Ok(text)
    }

    fn alertmanager(&self, mut text: String) -> Result<String> {
        if self.hurry {
            text = hurried(&text, &["group_wait", "group_interval", "repeat_interval"], ALERTMANAGER_HURRY)?;
        }
        text = replaced(&text, "127.0.0.1:19848", &format!("127.0.0.1:{}", self.ports.remediator))?;
        let token = format!("credentials_file: {}", self.token.display());
        text = replaced(&text, "credentials_file: webhook.token", &token)?;
        if let Some(people) = self.people {
            for name in ["pager", "team"] {
                let filled = format!("- name: {name}\n    webhook_configs: [{{url: \"{people}\"}}]\n   ");
                text = replaced(&text, &format!("- name: {name} "), &filled)?;
            }
        }
        Ok(text)
    }
}

/// Like `str::replace`, but a text that is not there is an error: the shipped file has changed.
///
/// # Errors
///
/// When it is not there.
pub fn replaced(text: &str, from: &str, to: &str) -> Result<String> {
    ensure!(text.contains(from), "the shipped configuration no longer says {from:?}");
    Ok(text.replace(from, to))
}

/// Shortens the durations behind these keys.
fn hurried(text: &str, keys: &[&str], times: u64) -> Result<String> {
    let mut shorter = String::with_capacity(text.len());
    for line in text.lines() {
        match line.trim_start().split_once(": ") {
            Some((key, value)) if keys.contains(&key) => {
                let indent = &line[..line.len() - line.trim_start().len()];
                let duration = milliseconds(value.trim())? / times;
                shorter.push_str(&format!("{indent}{key}: {duration}ms\n"));
            }
            _ => {
                shorter.push_str(line);
                shorter.push('\n');
            }
        }
    }
    Ok(shorter)
}

fn milliseconds(duration: &str) -> Result<u64> {
    let digits = duration.find(|c: char| !c.is_ascii_digit()).context("a duration has a unit")?;
    let unit = match &duration[digits..] {
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        other => bail!("unknown unit {other:?} in {duration:?}"),
    };
    Ok(duration[..digits].parse::<u64>()? * unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(hurry: bool, people: Option<&str>) -> (tempfile::TempDir, Files) {
        let dir = tempfile::tempdir().unwrap();
        let ports =
            Ports { exporter: 1001, remediator: 1002, prometheus: 1003, alertmanagers: vec![1004, 1005] };
        let token = dir.path().join("webhook.token");
        let files = Wiring { ports: &ports, token: &token, hurry, people }.write(dir.path()).unwrap();
        (dir, files)
    }

    #[test]
    fn ports_and_paths_are_the_runs_and_nothing_else_changes() {
        let (dir, files) = written(false, None);
        let prometheus = fs::read_to_string(files.prometheus).unwrap();
        assert!(prometheus.contains("targets: [\"127.0.0.1:1004\", \"127.0.0.1:1005\"]"), "{prometheus}");
        assert!(prometheus.contains("scrape_interval: 15s") && !prometheus.contains("1984"), "{prometheus}");
        let alertmanager = fs::read_to_string(files.alertmanager).unwrap();
        assert!(alertmanager.contains("url: http://127.0.0.1:1002/api/v1/alerts"), "{alertmanager}");
        assert!(alertmanager.contains(&format!("credentials_file: {}/webhook.token", dir.path().display())));
        let rules = fs::read_to_string(dir.path().join("filesystem.rules.yml")).unwrap();
        assert!(rules.contains("for: 2m") && rules.contains("/alerts/runbooks/HostDiskHigh.md"), "{rules}");
    }

    #[test]
    fn a_hurry_shortens_durations_and_people_are_called_where_it_is_said() {
        let (dir, files) = written(true, Some("http://127.0.0.1:9/"));
        let rules = fs::read_to_string(dir.path().join("filesystem.rules.yml")).unwrap();
        assert!(rules.contains("for: 2000ms") && rules.contains("keep_firing_for: 5000ms"), "{rules}");
        let alertmanager = fs::read_to_string(files.alertmanager).unwrap();
        assert!(alertmanager.contains("repeat_interval: 4000ms"), "{alertmanager}");
        assert_eq!(alertmanager.matches("url: \"http://127.0.0.1:9/\"").count(), 2, "{alertmanager}");
    }

    #[test]
    fn a_shipped_file_that_has_changed_is_noticed() {
        assert!(replaced("listen: 1", "listen: 2", "listen: 3").is_err());
        assert!(milliseconds("3w").is_err() && milliseconds("m").is_err());
    }
}
