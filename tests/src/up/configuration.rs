//! The configuration of `make up`: written once by the two programs themselves from what they find on the host, then left to
//! whoever edits it. Only the remediator's port is set at every start, because another program may have taken the one
//! before.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result};

use crate::{
    binaries::{Surroundings, built},
    stack::Configuration,
    tools,
};

/// How the remediator's file says where it listens; its port follows.
const LISTEN: &str = "listen: [\"127.0.0.1:";
/// Looking at a whole host takes its slowest source's time.
const LIMIT: Duration = Duration::from_secs(60);

/// Makes what is missing in `dir` and sets the remediator's port. `redis` is the URL of a Redis that
/// is not where the exporter would look for it by itself.
///
/// # Errors
///
/// When a program cannot write its configuration, a file cannot be read or written, or no longer says where the remediator
/// listens.
pub async fn provide(
    dir: &Path,
    remediator_port: u16,
    redis: Option<&str>,
    around: &Surroundings,
) -> Result<Configuration> {
    let configuration = Configuration {
        exporter: dir.join("exporter.yml"),
        remediator: dir.join("remediator.yml"),
        token: dir.join("webhook.token"),
        serve: &["serve"],
    };
    if !configuration.exporter.exists() {
        let found = generated("evenkeel-exporter", &[], around).await?;
        fs::write(&configuration.exporter, with_redis(found, redis))?;
    }
    if !configuration.remediator.exists() {
        let beside = ["--token-file=webhook.token", "--state-dir=state"];
        fs::write(&configuration.remediator, generated("evenkeel-remediator", &beside, around).await?)?;
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

/// What a program writes for the host around it.
async fn generated(program: &str, flags: &[&str], around: &Surroundings) -> Result<String> {
    let mut command = tools::command(built(program)?);
    command.args(["generate", "config"]).args(flags);
    around.apply(&mut command);
    tools::run(command, LIMIT).await
}

/// The exporter's configuration with a Redis that it could not find.
fn with_redis(mut text: String, redis: Option<&str>) -> String {
    if let Some(url) = redis {
        text.push_str(&format!("\nredis:\n  - {{name: lab, url: \"{url}\"}}\n"));
    }
    text
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

    /// What the programs write is seen in the lab (`first_config`); here the files are there.
    async fn provided(dir: &Path, port: u16, remediator: &str) -> Result<Configuration> {
        fs::write(dir.join("exporter.yml"), "# mine\n")?;
        fs::write(dir.join("remediator.yml"), remediator)?;
        provide(dir, port, Some("redis://127.0.0.1:7/0"), &Surroundings::default()).await
    }

    #[tokio::test]
    async fn what_is_there_is_kept_but_for_the_port() {
        let dir = tempfile::tempdir().unwrap();
        let mine = "server:\n  listen: [\"127.0.0.1:1\"]\n# mine\n";
        let made = provided(dir.path(), 1234, mine).await.unwrap();
        assert_eq!(fs::read_to_string(&made.exporter).unwrap(), "# mine\n");
        let remediator = fs::read_to_string(&made.remediator).unwrap();
        assert_eq!(remediator, "server:\n  listen: [\"127.0.0.1:1234\"]\n# mine\n");
        assert_eq!(fs::metadata(&made.token).unwrap().permissions().mode() & 0o777, 0o600);
        let token = fs::read_to_string(&made.token).unwrap();
        assert_eq!(token.trim().len(), 64);
        provided(dir.path(), 4321, &remediator).await.unwrap();
        assert_eq!(fs::read_to_string(&made.token).unwrap(), token);
    }

    #[tokio::test]
    async fn a_remediator_that_listens_elsewhere_is_an_error_with_a_cure() {
        let dir = tempfile::tempdir().unwrap();
        let error = provided(dir.path(), 1, "server: {listen: [\"[::1]:1\"]}\n").await.unwrap_err();
        let error = format!("{error:#}");
        assert!(error.contains("remediator.yml") && error.contains("remove the file"), "{error}");
    }

    #[test]
    fn a_redis_elsewhere_is_written_down() {
        let text = with_redis("# found\n".to_owned(), Some("redis://127.0.0.1:7/0"));
        assert_eq!(text, "# found\n\nredis:\n  - {name: lab, url: \"redis://127.0.0.1:7/0\"}\n");
    }
}
