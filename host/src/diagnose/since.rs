//! Whether what a service failed of may have been cured since: a restart that could not help before may help then. Looks at
//! what a cure changes; that nothing has changed there proves nothing, and neither does a change prove a cure.

use std::{fs, os::unix::fs::MetadataExt, time::Duration};

use tokio::{net::lookup_host, task::spawn_blocking, time::timeout};

use super::{Cause, Finding};

/// A file on a dead server, or a resolver that does not answer, is not waited for.
const LIMIT: Duration = Duration::from_secs(2);

/// Where users and groups are.
const USERS: [&str; 2] = ["/etc/passwd", "/etc/group"];

/// What has changed since the service failed that may have cured it, in words.
pub async fn changed_since(finding: &Finding) -> Option<String> {
    let (failure, diagnosis) = (&finding.failure, &finding.diagnosis);
    if diagnosis.cause == Cause::NameResolution
        && let Some(name) = diagnosis.subject.as_deref().filter(|name| is_host_name(name))
        && timeout(LIMIT, lookup_host((name, 0))).await.is_ok_and(|found| found.is_ok())
    {
        return Some(format!("{name} resolves now"));
    }
    let failed_at = failure.failed_at?.duration_since(std::time::UNIX_EPOCH).ok()?.as_secs();
    let mut files: Vec<String> = failure.files.iter().chain(&failure.environment_files).cloned().collect();
    match diagnosis.cause {
        Cause::MissingUser => files.extend(USERS.map(str::to_owned)),
        _ => files.extend(diagnosis.subject.clone()),
    }
    let look = spawn_blocking(move || {
        files.into_iter().find_map(|file| changed(&file, failed_at).map(str::to_owned))
    });
    let changed = timeout(LIMIT, look).await.ok()?.ok()??;
    Some(format!("{changed} has changed since"))
}

/// The file, when it was written or its owner or mode changed after a second of Unix time; else its folder, when that
/// got another owner or mode. What else is made in the folder means nothing.
fn changed(file: &str, second: u64) -> Option<&str> {
    // What a log names may be anything: only a plain path is looked at.
    if !file.starts_with('/') || file.split('/').any(|part| part == "..") {
        return None;
    }
    let after = |time: i64| u64::try_from(time).is_ok_and(|time| time > second);
    if fs::metadata(file).is_ok_and(|about| after(about.ctime())) {
        return Some(file);
    }
    let (folder, _) = file.rsplit_once('/').filter(|(folder, _)| !folder.is_empty())?;
    let is_given = fs::metadata(folder).is_ok_and(|about| after(about.ctime()) && !after(about.mtime()));
    is_given.then_some(folder)
}

/// Whether it can be asked for without asking for something else.
fn is_host_name(name: &str) -> bool {
    name.len() <= 253
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'))
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::fs::PermissionsExt,
        path::Path,
        time::{SystemTime, UNIX_EPOCH},
    };

    use super::*;
    use crate::{diagnose::Diagnosis, systemd::Failure};

    fn finding(cause: Cause, subject: &str, failed_at: SystemTime, files: &[&Path]) -> Finding {
        let failure = Failure {
            failed_at: Some(failed_at),
            files: files.iter().map(|file| file.display().to_string()).collect(),
            ..Failure::default()
        };
        let diagnosis = Diagnosis { cause, subject: Some(subject.to_owned()), user: String::new() };
        Finding { failure, diagnosis, unread: None }
    }

    #[tokio::test]
    async fn a_drop_in_or_the_path_itself_that_changed_may_be_the_cure() {
        let folder = tempfile::tempdir().unwrap();
        let (unit, data) = (folder.path().join("app.service"), folder.path().join("out.log"));
        fs::write(&unit, "").unwrap();
        let (before, after) = (UNIX_EPOCH, SystemTime::now() + Duration::from_secs(60));
        let path = data.to_str().unwrap();
        let seen = async |failed_at| {
            changed_since(&finding(Cause::PermissionDenied, path, failed_at, &[&unit])).await
        };
        assert_eq!(seen(before).await, Some(format!("{} has changed since", unit.display())));
        assert_eq!(seen(after).await, None);
        fs::write(&data, "").unwrap();
        assert_eq!(seen(after).await, None);
        let made = finding(Cause::PermissionDenied, path, before, &[]);
        assert_eq!(changed_since(&made).await, Some(format!("{path} has changed since")));
    }

    #[test]
    fn a_folder_counts_when_it_was_given_to_somebody_and_not_when_something_was_made_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("out.log").display().to_string();
        let old = UNIX_EPOCH + Duration::from_secs(1000);
        let second = 2000;
        assert_eq!(changed(&file, second), None);
        fs::File::open(folder.path()).unwrap().set_modified(old).unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o750)).unwrap();
        assert_eq!(changed(&file, second), folder.path().to_str());
    }

    #[tokio::test]
    async fn a_name_that_resolves_again_is_cured() {
        let at = |name| finding(Cause::NameResolution, name, SystemTime::now(), &[]);
        assert_eq!(changed_since(&at("localhost")).await, Some("localhost resolves now".to_owned()));
        for name in ["no-such-name.invalid", "a b", "../etc/passwd", &"x".repeat(300)] {
            assert_eq!(changed_since(&at(name)).await, None, "{name}");
        }
    }

    #[tokio::test]
    async fn a_path_of_a_log_does_not_lead_anywhere_else() {
        for path in ["etc/passwd", "/tmp/../etc/passwd", "", "/no/such/file"] {
            let made = finding(Cause::MissingFile, path, UNIX_EPOCH, &[]);
            assert_eq!(changed_since(&made).await, None, "{path}");
        }
    }
}
