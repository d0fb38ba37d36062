//! Writes down what a person would look at first, before a repair destroys the evidence. The report stays on the host.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    io::{Read as _, Write as _},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    time::SystemTime,
};

use evenkeel_host::{config::format_bytes, docker::Object, journal};
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::time::timeout;

use super::{Action, Check, Done, Failure, Job, Permission, disk};
use crate::{
    helper,
    observe::{Observation, Unit},
    policy::Class,
    target::{Kind, Target},
    text::printable,
};

pub(super) const NAME: &str = "collect_report";

/// A report's size at most, in bytes.
const SIZE_MAX: usize = 256 * 1024;
/// Reports kept.
const KEPT: usize = 200;
/// What a report says behind its target, with which it begins, and in how many bytes.
const OF_RULE: &str = " of rule ";
const HEAD_MAX: u64 = 8 << 10;

/// Writes state and last log lines, or what fills the disk, to a file on the host (class S0). Taken before every
/// repair, also where it is not named.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct CollectReport {
    /// Journal lines of a unit.
    lines: u32,
}

impl Default for CollectReport {
    fn default() -> Self {
        Self { lines: 50 }
    }
}

impl Action for CollectReport {
    fn name(&self) -> &'static str {
        NAME
    }

    fn class(&self) -> Class {
        Class::S0
    }

    fn fits(&self, _: Kind) -> bool {
        true
    }

    fn plan(&self, target: &Target) -> String {
        match target.kind() {
            Kind::Unit => {
                format!("write the state and the last {} journal lines of {}", self.lines, target.name())
            }
            Kind::Container => format!("write the state and the last probe of {}", target.name()),
            Kind::Filesystem => format!("write what fills {}", target.name()),
            Kind::Hostname => format!("write what {} resolves to", target.name()),
            Kind::Host => "write what Docker takes".to_owned(),
        }
    }

    fn permissions(&self, kind: Kind) -> Vec<Permission> {
        match kind {
            Kind::Filesystem => vec![Permission::Helper(helper::Verb::Largest.template())],
            _ => Vec::new(),
        }
    }

    fn check<'a>(&'a self, _: &'a Job) -> BoxFuture<'a, Result<Check, Failure>> {
        Box::pin(async { Ok(Check::Go) })
    }

    fn run<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, Result<Done, Failure>> {
        Box::pin(async move {
            let mut text = format!(
                "{}{OF_RULE}{}, remediation {}, {}\n\n{}\n\n",
                job.target,
                job.rule,
                job.id,
                Timestamp::now(),
                job.seen.summary()
            );
            text += &why(job);
            text += &match job.target.kind() {
                Kind::Unit => self.unit(job).await,
                Kind::Container => container(job).await,
                Kind::Filesystem => filesystem(job).await,
                // What is seen says it all.
                Kind::Hostname => String::new(),
                Kind::Host => docker(job).await,
            };
            cut(&mut text);
            let name = format!("{:08}-{}.txt", job.id, job.rule);
            let path = job.reports.join(&name);
            let dir = job.reports.clone();
            // A full or hanging disk is what it may be about.
            let written = tokio::task::spawn_blocking(move || write(&dir, &name, &text)).await;
            let written = written.unwrap_or_else(|broken| Err(std::io::Error::other(broken)));
            written.map_err(|error| Failure::Refused(format!("cannot write {}: {error}", path.display())))?;
            Ok(Done { detail: format!("report {}", path.display()), ..Done::default() })
        })
    }
}

/// What a report says where it was cut.
const CUT: &str = "\n… cut here: a report has 256 KiB at most\n";

/// Cuts a report that is too long, and says so in it.
fn cut(text: &mut String) {
    if text.len() > SIZE_MAX {
        text.truncate(text.floor_char_boundary(SIZE_MAX - CUT.len()));
        text.push_str(CUT);
    }
}

impl CollectReport {
    async fn unit(&self, job: &Job) -> String {
        match journal::tail(job.target.name(), self.lines).await {
            Err(error) => format!("journal: {error}\n"),
            Ok(lines) => lines.iter().fold("journal:\n".to_owned(), |mut text, line| {
                let time = line.time.and_then(|time: SystemTime| Timestamp::try_from(time).ok());
                let time = time.map(|time| time.to_string()).unwrap_or_default();
                // Writing to a String cannot fail.
                let _ =
                    writeln!(text, "{time} {}: {}", printable(&line.identifier), printable(&line.message));
                text
            }),
        }
    }
}

/// What a unit fails of and what cures it.
fn why(job: &Job) -> String {
    let Observation::Unit(Unit { why: Some(why), .. }) = &job.seen else { return String::new() };
    let lines = [
        ("cause", Some(format!("{} ({})", why.words, why.cause.as_str()))),
        ("cure", why.cure.clone()),
        ("since", why.changed.clone()),
        ("journal", why.unread.clone()),
    ];
    let said = lines.into_iter().filter_map(|(what, words)| Some(format!("{what}: {}\n", words?)));
    said.collect::<String>() + "\n"
}

async fn container(job: &Job) -> String {
    match job.host.docker.inspect(job.target.name()).await {
        Err(error) => format!("docker: {error}\n"),
        Ok(None) => "the container is gone\n".to_owned(),
        Ok(Some(container)) => match container.health.and_then(|health| health.last) {
            None => "no healthcheck ran\n".to_owned(),
            Some(probe) => {
                let output: Vec<String> = probe.output.lines().map(printable).collect();
                format!(
                    "last probe: {} (exit code {})\n{}\n",
                    probe.result.as_str(),
                    probe.exit_code,
                    output.join("\n")
                )
            }
        },
    }
}

async fn filesystem(job: &Job) -> String {
    let filling = helper::filling(&job.host, &job.rule, job.target.name()).await;
    format!("{}\n{}", filling.report(), docker(job).await)
}

async fn docker(job: &Job) -> String {
    let mut text = "Docker, wherever it lies:\n".to_owned();
    let objects = [Object::Images, Object::BuildCache, Object::Volumes, Object::Containers];
    match timeout(disk::COUNTING, job.host.docker.disk_usage(&objects)).await {
        Err(_) => text += &format!("docker: it did not count within {:?}\n", disk::COUNTING),
        Ok(Err(error)) => text += &format!("docker: {error}\n"),
        Ok(Ok(usage)) => {
            for object in objects {
                if let Some(usage) = usage.get(object) {
                    let _ = writeln!(
                        text,
                        "{:>10}  {}, {} of it reclaimable",
                        format_bytes(usage.bytes),
                        object.as_str(),
                        format_bytes(usage.reclaimable_bytes)
                    );
                }
            }
        }
    }
    text
}

/// Writes one report and forgets those beyond [`KEPT`]. What else lies in the folder is not ours.
fn write(dir: &Path, name: &str, text: &str) -> std::io::Result<()> {
    fs::create_dir_all(dir)?;
    let mut file =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o640).open(dir.join(name))?;
    file.write_all(text.as_bytes())?;
    let mut reports: Vec<_> = fs::read_dir(dir)?
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| is_report(name))
        .collect();
    // The names sort by the remediation's number.
    reports.sort_unstable();
    while reports.len() > KEPT {
        let old = reports.remove(dispensable(dir, &reports));
        fs::remove_file(dir.join(old))?;
    }
    Ok(())
}

/// Which one is forgotten first: of the rule that has most, and of it of the target that has most, the oldest. So what
/// comes again and again pushes out its own, and no other rule's or target's.
fn dispensable(dir: &Path, reports: &[String]) -> usize {
    let mut rules: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (position, name) in reports.iter().enumerate() {
        rules.entry(name.split_once('-').map_or("", |(_, rule)| rule)).or_default().push(position);
    }
    let of_rule = rules.into_values().max_by_key(Vec::len).unwrap_or_default();
    let mut targets: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for position in of_rule {
        targets.entry(target_of(&dir.join(&reports[position]))).or_default().push(position);
    }
    let most = targets.values().map(Vec::len).max();
    // Where several have as many, the oldest of all of them.
    let oldest = targets.values().filter(|of_it| Some(of_it.len()) == most).filter_map(|of_it| of_it.first());
    oldest.min().copied().unwrap_or(0)
}

/// The target that a report begins with; of one that cannot be read, none.
fn target_of(path: &Path) -> String {
    let mut head = Vec::new();
    let read = fs::File::open(path).and_then(|file| file.take(HEAD_MAX).read_to_end(&mut head));
    let head = read.map_or(String::new(), |_| String::from_utf8_lossy(&head).into_owned());
    head.split_once(OF_RULE).map_or(String::new(), |(target, _)| target.to_owned())
}

/// Whether a file's name is one that this action gives.
fn is_report(name: &str) -> bool {
    name.strip_suffix(".txt")
        .and_then(|name| name.split_once('-'))
        .is_some_and(|(id, _)| id.len() >= 8 && id.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{actions::bench::Bench, observe::Container};

    #[test]
    fn keeps_the_newest_reports_only() {
        let dir = tempfile::tempdir().unwrap();
        for id in 0..KEPT + 5 {
            write(dir.path(), &format!("{id:08}-r.txt"), "x").unwrap();
        }
        let mut names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names.len(), KEPT);
        assert_eq!(names[0], "00000005-r.txt");
    }

    #[test]
    fn what_comes_again_and_again_pushes_out_its_own_reports_only() {
        let dir = tempfile::tempdir().unwrap();
        let report = |id: usize, rule: &str, target: &str| {
            write(dir.path(), &format!("{id:08}-{rule}.txt"), &format!("unit {target} of rule {rule}, …"))
                .unwrap();
        };
        for id in 0..3 {
            report(id, "disk", "/");
            report(10 + id, "unit-failed", "true.service");
        }
        for id in 100..500 {
            report(id, "unit-failed", &format!("fake-{}.service", id % 7));
        }
        let left = |id: usize, rule: &str| dir.path().join(format!("{id:08}-{rule}.txt")).exists();
        assert!((0..3).all(|id| left(id, "disk") && left(10 + id, "unit-failed")));
        assert!(left(499, "unit-failed") && !left(100, "unit-failed"));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), KEPT);
    }

    #[test]
    fn leaves_alone_what_is_no_report() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("00000000-kept")).unwrap();
        fs::write(dir.path().join("00-notes.txt"), "mine").unwrap();
        for id in 0..=KEPT {
            write(dir.path(), &format!("{id:08}-r.txt"), "x").unwrap();
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), KEPT + 2);
    }

    #[test]
    fn a_report_is_cut_at_a_whole_character_and_says_so() {
        let long = |letter: &str| {
            let mut text = letter.repeat(SIZE_MAX / letter.len() + 1);
            cut(&mut text);
            text
        };
        for letter in ["x", "ü", "✓", "🜨"] {
            let text = long(letter);
            assert!(text.len() <= SIZE_MAX && text.len() > SIZE_MAX - 8, "{letter}: {}", text.len());
            assert!(text.ends_with(&format!("{letter}{CUT}")), "{letter}");
        }
        let mut whole = "x".repeat(SIZE_MAX);
        cut(&mut whole);
        assert_eq!(whole, "x".repeat(SIZE_MAX));
    }

    #[tokio::test]
    async fn a_report_holds_no_secrets_and_nothing_that_steers_a_terminal() {
        let bench = Bench::new(|path| {
            let inspected = serde_json::json!({
                "Id": "0a", "Name": "/app", "Config": {"Env": ["TOKEN=hidden"]},
                "State": {"Status": "running", "Health": {"Status": "unhealthy", "FailingStreak": 3, "Log": [
                    {"ExitCode": 1, "Output": "refused\u{1b}[2J\nsecond line"}]}},
            });
            (path == "/containers/app/json").then(|| inspected.to_string())
        });
        let job = bench.container("app", Container::default());
        let done = CollectReport::default().run(&job).await.unwrap();
        let path = job.reports.join("00000001-rule.txt");
        assert_eq!(done.detail, format!("report {}", path.display()));
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains("(exit code 1)\nrefused\\u{1b}[2J\nsecond line\n"), "{text}");
        assert!(!text.contains("hidden"), "{text}");
        let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(path).unwrap());
        assert_eq!(mode & 0o007, 0, "others read it");
    }
}
