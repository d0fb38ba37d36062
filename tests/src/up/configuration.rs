//! The default configuration of `make up`: written once from the examples in `packaging/`, then left
//! to whoever edits it. Only the remediator's port is set at every start, because another program may
//! have taken the one before.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use anyhow::{Context, Result};

use crate::{alerting::replaced, stack::Configuration, tools};

/// How the example says where the remediator listens; its port follows.
const LISTEN: &str = "listen: [\"127.0.0.1:";

/// Makes what is missing in `dir` and sets the remediator's port. `redis` is the URL of a Redis that
/// is not where the exporter would look for it by itself.
///
/// # Errors
///
/// When a file cannot be read or written, or no longer says where the remediator listens.
pub fn provide(dir: &Path, remediator_port: u16, redis: Option<&str>) -> Result<Configuration> {
    let configuration = Configuration {
        exporter: dir.join("exporter.yml"),
        remediator: dir.join("remediator.yml"),
        token: dir.join("webhook.token"),
    };
    if !configuration.exporter.exists() {
        fs::write(&configuration.exporter, exporter(&example("exporter.yml")?, redis))?;
    }
    if !configuration.remediator.exists() {
        fs::write(&configuration.remediator, remediator(&example("remediator.yml")?)?)?;
    }
    if !configuration.token.exists() {
        write_token(&configuration.token)?;
    }
    let text = fs::read_to_string(&configuration.remediator)?;
    let listening = listening_on(&text, remediator_port).with_context(|| {
        format!(
            "{}: it no longer says `{LISTEN}PORT\"]`, which make up fills in: write that, or remove the file",
            configuration.remediator.display()
        )
    })?;
    if listening != text {
        fs::write(&configuration.remediator, listening)?;
    }
    Ok(configuration)
}

fn example(name: &str) -> Result<String> {
    let path = tools::repository().join("packaging").join(name);
    fs::read_to_string(&path).with_context(|| path.display().to_string())
}

/// Every line as a comment: the example's names are nobody's, and the defaults look at what is there.
fn exporter(example: &str, redis: Option<&str>) -> String {
    let mut text = String::new();
    for line in example.lines() {
        let is_said = !line.trim().is_empty() && !line.trim_start().starts_with('#');
        text.push_str(if is_said { "# " } else { "" });
        text.push_str(line);
        text.push('\n');
    }
    if let Some(url) = redis {
        text.push_str(&format!("redis:\n  - {{name: lab, url: \"{url}\"}}\n"));
    }
    text
}

fn remediator(example: &str) -> Result<String> {
    let text = replaced(example, "[/etc/evenkeel/webhook.token]", "[webhook.token]")?;
    let before = "# Ceilings for every rule below.\n";
    replaced(&text, before, &format!("# Beside this file, for make up.\nstate: {{dir: state}}\n\n{before}"))
}

/// The same text with this port.
fn listening_on(text: &str, port: u16) -> Option<String> {
    let (before, after) = text.split_once(LISTEN)?;
    let rest = after.trim_start_matches(|letter: char| letter.is_ascii_digit());
    Some(format!("{before}{LISTEN}{port}{rest}"))
}

/// 32 random bytes as text, readable by its owner only.
fn write_token(path: &Path) -> Result<()> {
    let mut random = [0; 32];
    File::open("/dev/urandom")?.read_exact(&mut random)?;
    let token: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    writeln!(file, "{token}")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn what_is_missing_is_made_and_what_is_there_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let made = provide(dir.path(), 1234, None).unwrap();
        let exporter = fs::read_to_string(&made.exporter).unwrap();
        assert!(exporter.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')));
        let remediator = fs::read_to_string(&made.remediator).unwrap();
        assert!(remediator.contains("listen: [\"127.0.0.1:1234\"]"), "{remediator}");
        assert!(remediator.contains("state: {dir: state}") && remediator.contains("mode: plan"));
        assert_eq!(fs::metadata(&made.token).unwrap().permissions().mode() & 0o777, 0o600);
        let token = fs::read_to_string(&made.token).unwrap();
        assert_eq!(token.trim().len(), 64);

        fs::write(&made.remediator, format!("{remediator}# mine\n")).unwrap();
        let again = provide(dir.path(), 4321, None).unwrap();
        let remediator = fs::read_to_string(&again.remediator).unwrap();
        assert!(remediator.contains("listen: [\"127.0.0.1:4321\"]") && remediator.ends_with("# mine\n"));
        assert_eq!(fs::read_to_string(&again.token).unwrap(), token);
    }

    #[test]
    fn a_remediator_that_listens_elsewhere_is_an_error_with_a_cure() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("remediator.yml"), "server: {listen: [\"[::1]:1\"]}\n").unwrap();
        let error = format!("{:#}", provide(dir.path(), 1, None).unwrap_err());
        assert!(error.contains("remediator.yml") && error.contains("remove the file"), "{error}");
    }

    #[test]
    fn a_redis_elsewhere_is_written_down() {
        let text = exporter("# say\nredis:\n  - name: local\n", Some("redis://127.0.0.1:7/0"));
        assert_eq!(
            text,
            "# say\n# redis:\n#   - name: local\nredis:\n  - {name: lab, url: \"redis://127.0.0.1:7/0\"}\n"
        );
    }
}
