//! Deletes old files of systemd's journal, beyond a size or an age. The files in use are set aside first, for the vacuum
//! never touches those.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use evenkeel_host::{
    config::{Bytes, PromDuration, format_bytes},
    systemd::machine_id,
};
use futures_util::future::BoxFuture;
use schemars::JsonSchema;
use serde::Deserialize;
use zbus::Variant;

use super::{
    Action, Check, Done, Failure, Job, Permission, by_root,
    disk::{self, Freed},
    unit_job,
};
use crate::{
    helper::Verb,
    policy::Class,
    systemd::{Command, ManagerProxy},
    target::{Kind, Target},
};

pub(super) const NAME: &str = "journal_vacuum";

/// Less than this is never left: the file in use alone takes it (seen on systemd 252).
const SIZE_FLOOR: u64 = 8 * 1024 * 1024;
/// By its age nothing is deleted that is younger.
const TIME_FLOOR: Duration = Duration::from_secs(86_400);
/// Where the journal lies that survives a restart of the host.
const JOURNALS: &str = "/var/log/journal";
/// The unit that the vacuum runs in.
const UNIT: &str = "evenkeel-journalctl.service";
const PROGRAM: &str = "/bin/journalctl";

/// Deletes old files of systemd's journal (class D2).
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(try_from = "Parameters")]
#[schemars(with = "Parameters")]
pub(super) struct JournalVacuum {
    keep_size: Option<u64>,
    keep_time: Option<PromDuration>,
}

/// Deletes old files of systemd's journal (class D2).
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Parameters {
    /// What is beyond this size goes, the oldest first; 8MiB at least.
    keep_size: Option<Bytes>,
    /// What is older goes; 1d at least.
    keep_time: Option<PromDuration>,
}

impl TryFrom<Parameters> for JournalVacuum {
    type Error = String;

    fn try_from(Parameters { keep_size, keep_time }: Parameters) -> Result<Self, String> {
        let keep_size = keep_size.map(|size| size.get());
        if keep_size.is_none() && keep_time.is_none() {
            return Err("`journal_vacuum` needs keep_size, keep_time or both: {keep_size: 500MiB}".to_owned());
        }
        if let Some(size) = keep_size.filter(|size| *size < SIZE_FLOOR) {
            return Err(format!("`journal_vacuum.keep_size` is {}: at least 8MiB stay", format_bytes(size)));
        }
        if let Some(time) = keep_time.filter(|time| time.get() < TIME_FLOOR) {
            return Err(format!("`journal_vacuum.keep_time: {time}` is below 1d: the last day stays"));
        }
        Ok(Self { keep_size, keep_time })
    }
}

impl Action for JournalVacuum {
    fn name(&self) -> &'static str {
        NAME
    }

    fn class(&self) -> Class {
        Class::D2
    }

    fn fits(&self, kind: Kind) -> bool {
        kind == Kind::Filesystem
    }

    fn timeout(&self) -> Duration {
        Duration::from_secs(5 * 60)
    }

    fn plan(&self, _: &Target) -> String {
        by_root::plan(&self.arguments().join(" "), Verb::JournalVacuum)
    }

    fn permissions(&self, _: Kind) -> Vec<Permission> {
        vec![Permission::Helper(Verb::JournalVacuum.template())]
    }

    fn check<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, Result<Check, Failure>> {
        Box::pin(async move {
            let folder = match folder().await? {
                Ok(folder) => folder,
                Err(why) => return Ok(Check::Skip("no_journal", why)),
            };
            if let Some(check) = disk::elsewhere(job, "the journal", std::slice::from_ref(&folder)).await {
                return Ok(check);
            }
            let files = files(folder).await?;
            Ok(match self.most(&files, SystemTime::now()) {
                0 => {
                    let size = format_bytes(files.iter().map(|file| file.bytes).sum());
                    Check::Skip(
                        "nothing_to_delete",
                        format!("the journal takes {size}, and none of it is beyond what stays"),
                    )
                }
                most => {
                    let inodes = u64::try_from(files.len()).ok();
                    disk::worth(job, Freed { bytes: Some(most), inodes })
                }
            })
        })
    }

    fn run<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, Result<Done, Failure>> {
        Box::pin(async move {
            // Its own account is one line for each folder, in varying order: the files themselves say it.
            let before = size().await?;
            let detail = if by_root::is_root() {
                self.vacuum(job).await?
            } else {
                by_root::done(job, Verb::JournalVacuum).await?.detail
            };
            let after = size().await?;
            Ok(Done {
                detail: format!(
                    "{detail}: the journal took {} and takes {}",
                    format_bytes(before),
                    format_bytes(after)
                ),
                claimed_freed_bytes: Some(before.saturating_sub(after)),
            })
        })
    }
}

/// One file of the journal.
struct File {
    bytes: u64,
    changed: Option<SystemTime>,
}

impl JournalVacuum {
    /// What is to be run, from the zeroth argument.
    fn arguments(&self) -> Vec<String> {
        let mut arguments = vec!["journalctl".to_owned(), "--rotate".to_owned()];
        arguments.extend(self.keep_size.map(|bytes| format!("--vacuum-size={bytes}")));
        arguments
            .extend(self.keep_time.as_ref().map(|time| format!("--vacuum-time={}s", time.get().as_secs())));
        arguments
    }

    /// What goes at most, in bytes: what is beyond the size or the age.
    fn most(&self, files: &[File], now: SystemTime) -> u64 {
        let all: u64 = files.iter().map(|file| file.bytes).sum();
        let beyond = self.keep_size.map_or(0, |keep| all.saturating_sub(keep));
        let oldest = self.keep_time.as_ref().and_then(|time| now.checked_sub(time.get()));
        let is_old =
            |file: &&File| oldest.zip(file.changed).is_some_and(|(oldest, changed)| changed < oldest);
        let old: u64 = files.iter().filter(is_old).map(|file| file.bytes).sum();
        beyond.max(old).min(all.saturating_sub(SIZE_FLOOR))
    }

    /// Has systemd run it: in a unit of its own, on the host whose journal it is.
    async fn vacuum(&self, job: &Job) -> Result<String, Failure> {
        let arguments = self.arguments();
        let command: Command<'_> = (PROGRAM, arguments.iter().map(String::as_str).collect(), false);
        let properties = [
            ("Description", Variant::from("evenkeel: deletes old files of the journal")),
            ("Type", Variant::from("oneshot")),
            ("CollectMode", Variant::from("inactive-or-failed")),
            ("ExecStart", Variant::from(vec![command])),
        ];
        let manager = ManagerProxy::of(&job.host.systemd).await?;
        let call = manager.start_transient_unit(UNIT, "fail", &properties, &[]);
        match unit_job::ended(&manager, call).await?.as_str() {
            "done" => Ok("journalctl ended well".to_owned()),
            result => Err(Failure::Unknown(format!("{UNIT} ended as {result}: its journal says why"))),
        }
    }
}

/// The folder of this host's journal, or why there is none.
async fn folder() -> Result<Result<PathBuf, String>, Failure> {
    let looked = tokio::task::spawn_blocking(folder_now).await;
    looked.map_err(|broken| Failure::Refused(broken.to_string()))
}

fn folder_now() -> Result<PathBuf, String> {
    let id = machine_id(Path::new("/")).map_err(|error| format!("/etc/machine-id: {error}"))?;
    let is_id = id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    let folder = Path::new(JOURNALS).join(&id);
    if is_id && folder.is_dir() {
        Ok(folder)
    } else {
        Err(format!("this host keeps no journal in {JOURNALS} (Storage= in journald.conf)"))
    }
}

/// The files of the journal.
async fn files(folder: PathBuf) -> Result<Vec<File>, Failure> {
    let listed = tokio::task::spawn_blocking(move || -> std::io::Result<Vec<File>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(folder)? {
            // Files of the journal come and go.
            let Ok(metadata) = entry?.metadata() else { continue };
            if metadata.is_file() {
                files.push(File {
                    bytes: metadata.blocks().saturating_mul(512),
                    changed: metadata.modified().ok(),
                });
            }
        }
        Ok(files)
    });
    let listed = listed.await.unwrap_or_else(|broken| Err(std::io::Error::other(broken)));
    listed.map_err(|error| Failure::Refused(format!("the journal's folder: {error}")))
}

async fn size() -> Result<u64, Failure> {
    let files = files(folder().await?.map_err(Failure::Refused)?).await?;
    Ok(files.iter().map(|file| file.bytes).sum())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actions::Step;

    const MIB: u64 = 1024 * 1024;

    fn step(text: &str) -> Result<Step, String> {
        let steps: Result<Vec<Step>, _> =
            evenkeel_host::config::parse("t.yml", &format!("- journal_vacuum: {text}\n"));
        steps.map(|mut steps| steps.remove(0)).map_err(|error| error.to_string())
    }

    #[test]
    fn something_always_stays() {
        assert_eq!(step("{keep_size: 8MiB, keep_time: 7d}").unwrap().0.class(), Class::D2);
        assert!(step("{keep_size: 8MB}").unwrap_err().contains("at least 8MiB stay"));
        assert!(step("{keep_time: 1h}").unwrap_err().contains("the last day stays"));
        assert!(step("{}").unwrap_err().contains("needs keep_size, keep_time or both"));
    }

    #[test]
    fn the_files_in_use_are_set_aside_first() {
        let vacuum = JournalVacuum { keep_size: Some(500 * MIB), keep_time: Some("7d".parse().unwrap()) };
        assert_eq!(
            vacuum.arguments(),
            ["journalctl", "--rotate", "--vacuum-size=524288000", "--vacuum-time=604800s"]
        );
    }

    #[test]
    fn what_goes_is_beyond_the_size_or_the_age_and_never_all() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let file = |mib: u64, days: u64| File {
            bytes: mib * MIB,
            changed: now.checked_sub(Duration::from_secs(days * 86_400)),
        };
        let files = [file(100, 30), file(50, 8), file(10, 0)];
        let most = |size: Option<u64>, time: Option<&str>| {
            let keep_time = time.map(|time| time.parse().unwrap());
            JournalVacuum { keep_size: size.map(|mib| mib * MIB), keep_time }.most(&files, now) / MIB
        };
        assert_eq!(most(Some(60), None), 100);
        assert_eq!(most(Some(200), None), 0);
        assert_eq!(most(None, Some("7d")), 150);
        assert_eq!(most(None, Some("20d")), 100);
        assert_eq!(most(Some(100), Some("20d")), 100);
        assert_eq!(most(None, Some("90d")), 0);
        // Were all of it old, what systemd always keeps would stay.
        let all = [file(100, 30)];
        let vacuum = JournalVacuum { keep_size: None, keep_time: Some("7d".parse().unwrap()) };
        assert_eq!(vacuum.most(&all, now) / MIB, 92);
    }
}
