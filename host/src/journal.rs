//! The last journal lines of a unit, read by `journalctl`: the only program that evenkeel starts. Not here: what the lines
//! mean.
//!
//! The journal's file format is documented, but changes (compact mode, zstd, keyed hashes); its own reader is on every
//! host that has a journal. The arguments are fixed but for a checked unit name and a number.

#![allow(
    clippy::disallowed_types,
    reason = "the one program that evenkeel starts, with fixed arguments: see the module's documentation"
)]

use std::{
    ffi::OsStr,
    io,
    process::{ExitStatus, Stdio},
    time::{Duration, SystemTime},
};

use serde::Deserialize;
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::Command,
    time::timeout,
};

use crate::systemd::is_unit_name;

const PROGRAM: &str = "journalctl";
/// What is asked for of each entry. systemd's own lines about a unit have the run in a field of another name.
const FIELDS: &str =
    "--output-fields=MESSAGE,SYSLOG_IDENTIFIER,_COMM,_PID,_SYSTEMD_UNIT,_SYSTEMD_INVOCATION_ID,INVOCATION_ID";
const LIMIT: Duration = Duration::from_secs(5);
/// Most bytes of output that are read. The newest lines come first, so what is cut off is old.
const MOST_BYTES: u64 = 256 * 1024;
/// Most lines that are asked for.
const MOST_LINES: u32 = 1000;
/// Most bytes of the program's complaints that are kept.
const MOST_COMPLAINT: u64 = 1024;

/// One line of the journal.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Line {
    /// When it was received.
    pub time: Option<SystemTime>,
    /// Who wrote it: `systemd`, `sh`; empty when unknown.
    pub identifier: String,
    /// What it says; empty where the journal holds none. Bytes that are not UTF-8 are replaced. May hold secrets.
    pub message: String,
    /// The unit that it is of, as the journal found out itself; empty where it did not: of a process that was gone before
    /// the journal looked at it.
    pub unit: String,
    /// Which run it is of, as the journal found out itself, or else about, as its writer says; in hex, empty where neither
    /// is known.
    pub invocation: String,
    /// Whether process 1 wrote it; the kernel vouches for that.
    pub is_from_systemd: bool,
}

/// Why the journal could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not a unit name: nothing was started.
    #[error("{0:?} is not a unit name")]
    NotAUnit(String),
    /// The program could not be started.
    #[error("cannot start journalctl: {0}")]
    Start(io::Error),
    /// Its output could not be read.
    #[error("cannot read from journalctl: {0}")]
    Read(io::Error),
    /// No end in time.
    #[error("journalctl did not end within {0:?}")]
    TimedOut(Duration),
    /// It says that we may not read the journal.
    #[error("not allowed to read the journal (it takes the group systemd-journal): {0}")]
    Denied(String),
    /// It ended with an error.
    #[error("journalctl failed ({status}): {complaint}")]
    Failed {
        /// How it ended.
        status: ExitStatus,
        /// What it wrote to its standard error, cut short.
        complaint: String,
    },
}

impl Error {
    /// The error in one word.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotAUnit(_) => "not_a_unit",
            Self::Start(_) => "start",
            Self::Read(_) => "read",
            Self::TimedOut(_) => "timeout",
            Self::Denied(_) => "denied",
            Self::Failed { .. } => "failed",
        }
    }
}

/// The last `lines` lines (at most 1,000) of a unit, what systemd says of it included, the oldest first. Reads at most
/// 256 KiB and waits at most 5 s; dropping the future ends the program.
///
/// # Errors
/// When there is no `journalctl`, it may not read the journal, fails, or does not end in time.
pub async fn tail(unit: &str, lines: u32) -> Result<Vec<Line>, Error> {
    tail_with(PROGRAM, unit, lines, LIMIT).await
}

async fn tail_with(
    program: impl AsRef<OsStr>,
    unit: &str,
    lines: u32,
    limit: Duration,
) -> Result<Vec<Line>, Error> {
    // A unit name holds nothing that means anything in a match.
    if !is_unit_name(unit) {
        return Err(Error::NotAUnit(unit.chars().take(255).collect()));
    }
    let mut child = Command::new(program)
        .arg(format!("--lines={}", lines.min(MOST_LINES)))
        .args(["--reverse", "--output=json", "--no-pager", FIELDS])
        .args(matches(unit))
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(Error::Start)?;
    let (output, complaint) = (child.stdout.take(), child.stderr.take());
    let work = async {
        let (output, complaint) = tokio::join!(read(output, MOST_BYTES), read(complaint, MOST_COMPLAINT));
        let (output, complaint) = (output.map_err(Error::Read)?, complaint.map_err(Error::Read)?);
        if output.len() as u64 == MOST_BYTES {
            // There is more, and nobody reads it: the program would wait for ever to write it.
            let _ = child.start_kill();
            let _ = child.wait().await;
            return Ok(parse(&output));
        }
        let status = child.wait().await.map_err(Error::Read)?;
        judge(status, &output, &complaint)
    };
    timeout(limit, work).await.map_err(|_| Error::TimedOut(limit))?
}

/// What is of the unit, or about it, whoever wrote that. `--unit=` would leave out what systemd says in the process that
/// is to become the program (`Failed at step EXEC …`) whenever that is gone before the journal has looked at it.
fn matches(unit: &str) -> [String; 3] {
    [format!("_SYSTEMD_UNIT={unit}"), "+".to_owned(), format!("UNIT={unit}")]
}

/// Reads up to `most` bytes. Past that the pipe is dropped, and the writer gets to know.
async fn read(source: Option<impl AsyncRead + Unpin>, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(source) = source {
        source.take(most).read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}

fn judge(status: ExitStatus, output: &[u8], complaint: &[u8]) -> Result<Vec<Line>, Error> {
    let complaint = String::from_utf8_lossy(complaint).trim().to_owned();
    // It says so on its standard error and ends well all the same.
    if output.is_empty() && complaint.contains("insufficient permissions") {
        return Err(Error::Denied(complaint));
    }
    if !status.success() {
        return Err(Error::Failed { status, complaint });
    }
    Ok(parse(output))
}

/// The JSON lines, newest first, as lines, oldest first. A line that was cut off is left out.
pub(crate) fn parse(output: &[u8]) -> Vec<Line> {
    let mut lines: Vec<Line> = output.split(|byte| *byte == b'\n').filter_map(parse_line).collect();
    lines.reverse();
    lines
}

fn parse_line(json: &[u8]) -> Option<Line> {
    let entry: Entry = serde_json::from_slice(json).ok()?;
    // Process 1 is of a run that nobody asks about.
    let invocation = entry.of.or(entry.about);
    let microseconds = entry.time.and_then(|text| text.parse().ok()).map(Duration::from_micros);
    Some(Line {
        time: microseconds.and_then(|since| SystemTime::UNIX_EPOCH.checked_add(since)),
        identifier: entry.identifier.or(entry.command).map(Field::into_text).unwrap_or_default(),
        message: entry.message.map(Field::into_text).unwrap_or_default(),
        unit: entry.unit.map(Field::into_text).unwrap_or_default(),
        invocation: invocation.map(Field::into_text).unwrap_or_default(),
        is_from_systemd: entry.process.map(Field::into_text).as_deref() == Some("1"),
    })
}

#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "__REALTIME_TIMESTAMP")]
    time: Option<String>,
    #[serde(rename = "SYSLOG_IDENTIFIER")]
    identifier: Option<Field>,
    #[serde(rename = "_COMM")]
    command: Option<Field>,
    #[serde(rename = "MESSAGE")]
    message: Option<Field>,
    #[serde(rename = "_PID")]
    process: Option<Field>,
    #[serde(rename = "_SYSTEMD_UNIT")]
    unit: Option<Field>,
    #[serde(rename = "_SYSTEMD_INVOCATION_ID")]
    of: Option<Field>,
    #[serde(rename = "INVOCATION_ID")]
    about: Option<Field>,
}

/// A field's value: text; bytes where it is not UTF-8 or holds control characters; null (no value here) where it is too
/// long; a list of these where the entry has the field more than once.
#[derive(Deserialize)]
#[serde(untagged)]
enum Field {
    Text(String),
    Bytes(Vec<u8>),
    Several(Vec<Option<Field>>),
}

impl Field {
    fn into_text(self) -> String {
        match self {
            Self::Text(text) => text,
            Self::Bytes(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Self::Several(values) => {
                let texts: Vec<String> = values.into_iter().flatten().map(Self::into_text).collect();
                texts.join("\n")
            }
        }
    }
}

#[cfg(feature = "foreign-input")]
pub(crate) const PARSERS: &[crate::foreign_input::Parser] = &[crate::foreign_input::Parser {
    name: "journal lines",
    parse: |bytes| drop(parse(bytes)),
    samples: &[
        "{\"__REALTIME_TIMESTAMP\":\"1763771234567890\",\"SYSLOG_IDENTIFIER\":\"app\",\"MESSAGE\":\"hello\"}\n",
        "{\"_COMM\":\"sh\",\"MESSAGE\":[104,105,255]}\n{\"MESSAGE\":null}\n{\"MESSAGE\":[[1],\"a\",null]}\n",
    ],
}];

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::PermissionsExt,
        path::{Path, PathBuf},
    };

    use tempfile::TempDir;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn line(seconds: u64, identifier: &str, message: &str) -> Line {
        Line {
            time: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)),
            identifier: identifier.into(),
            message: message.into(),
            ..Line::default()
        }
    }

    /// A program that does what the shell script says.
    fn program(script: &str) -> (TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journalctl");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        (folder, path)
    }

    /// Another test may be forking while the script was still open for writing: busy then, for a moment.
    async fn run(program: &Path, unit: &str, lines: u32) -> Result<Vec<Line>, Error> {
        loop {
            match tail_with(program, unit, lines, PATIENCE).await {
                Err(Error::Start(error)) if error.kind() == io::ErrorKind::ExecutableFileBusy => {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                result => return result,
            }
        }
    }

    #[test]
    fn messages_of_every_kind() {
        let output = concat!(
            r#"{"__REALTIME_TIMESTAMP":"1700000003000000","SYSLOG_IDENTIFIER":"systemd","MESSAGE":"web.service: Failed"}"#,
            "\n",
            r#"{"__REALTIME_TIMESTAMP":"1700000002000000","_COMM":"python3","MESSAGE":[27,91,51,49,109,110,111,255]}"#,
            "\n",
            r#"{"__REALTIME_TIMESTAMP":"1700000001000000","SYSLOG_IDENTIFIER":"sh","MESSAGE":null}"#,
            "\n",
            r#"{"__REALTIME_TIMESTAMP":"1700000000000000","SYSLOG_IDENTIFIER":["a",[98],null],"MESSAGE":["one","two"]}"#,
            "\n",
        );
        assert_eq!(
            parse(output.as_bytes()),
            [
                line(1_700_000_000, "a\nb", "one\ntwo"),
                line(1_700_000_001, "sh", ""),
                line(1_700_000_002, "python3", "\u{1b}[31mno\u{fffd}"),
                line(1_700_000_003, "systemd", "web.service: Failed"),
            ]
        );
    }

    #[test]
    fn each_line_says_which_run_it_is_of() {
        let output = concat!(
            r#"{"_PID":"1","UNIT":"web.service","INVOCATION_ID":"b2","MESSAGE":"Failed"}"#,
            "\n",
            r#"{"_PID":"17","_SYSTEMD_UNIT":"web.service","_SYSTEMD_INVOCATION_ID":"b2","MESSAGE":"no"}"#,
            "\n",
            r#"{"_PID":"16","_SYSTEMD_UNIT":"init.scope","MESSAGE":"anybody","UNIT":"web.service"}"#,
            "\n",
        );
        let lines = parse(output.as_bytes());
        let of = |line: &Line| (line.unit.clone(), line.invocation.clone(), line.is_from_systemd);
        let expected = [("init.scope", "", false), ("web.service", "b2", false), ("", "b2", true)];
        let expected = expected.map(|(unit, run, is_systemd)| (unit.to_owned(), run.to_owned(), is_systemd));
        assert_eq!(lines.iter().map(of).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn odd_lines_cost_only_themselves() {
        let output = concat!(
            r#"{"__REALTIME_TIMESTAMP":"soon","MESSAGE":"x"}"#,
            "\n{}\nnot json\n",
            r#"{"MESSAGE":{"a":1}}"#,
            "\n",
            r#"{"MESSAGE":"cut o"#,
        );
        let nothing = Line::default();
        assert_eq!(parse(output.as_bytes()), [nothing.clone(), Line { message: "x".into(), ..nothing }]);
    }

    #[tokio::test]
    async fn asks_with_fixed_arguments() {
        let (folder, path) = program(r#"printf '%s\n' "$@" > "$0.args""#);
        assert_eq!(run(&path, "web@1.service", 5000).await.unwrap(), []);
        let arguments = fs::read_to_string(folder.path().join("journalctl.args")).unwrap();
        assert_eq!(
            arguments.lines().collect::<Vec<_>>(),
            [
                "--lines=1000",
                "--reverse",
                "--output=json",
                "--no-pager",
                FIELDS,
                "_SYSTEMD_UNIT=web@1.service",
                "+",
                "UNIT=web@1.service",
            ]
        );
    }

    #[tokio::test]
    async fn starts_nothing_for_what_is_no_unit() {
        for name in ["", "*", "quantum-*.service", "--since=yesterday", "a b.service", "../x", "web"] {
            let error = run(Path::new("/no/such/program"), name, 1).await.unwrap_err();
            assert_eq!(error.reason(), "not_a_unit", "{name}");
        }
        assert_eq!(run(Path::new("/no/such/program"), "web.service", 1).await.unwrap_err().reason(), "start");
    }

    #[tokio::test]
    async fn says_why_it_failed() {
        let (_folder, path) = program("echo 'Failed to open files: oh no' >&2; exit 1");
        let error = run(&path, "web.service", 1).await.unwrap_err();
        assert_eq!(error.to_string(), "journalctl failed (exit status: 1): Failed to open files: oh no");
        let (_folder, path) =
            program("echo 'No journal files were opened due to insufficient permissions.' >&2; exit 0");
        assert_eq!(run(&path, "web.service", 1).await.unwrap_err().reason(), "denied");
    }

    #[tokio::test]
    async fn endless_output_ends() {
        let (_folder, path) = program(r#"while :; do echo '{"MESSAGE":"again and again and again"}'; done"#);
        let lines = run(&path, "web.service", 10).await.unwrap();
        assert!(lines.len() > 1000 && lines.len() as u64 * 30 < MOST_BYTES, "{}", lines.len());
        assert!(lines.iter().all(|line| line.message == "again and again and again"));
    }

    #[tokio::test]
    async fn endless_complaints_end() {
        let (_folder, path) =
            program("i=0; while [ $i -lt 20000 ]; do echo 'this is bad' >&2; i=$((i+1)); done; exit 3");
        let Error::Failed { complaint, .. } = run(&path, "web.service", 10).await.unwrap_err() else {
            panic!("another error");
        };
        assert!(complaint.len() as u64 <= MOST_COMPLAINT);
    }

    #[tokio::test]
    async fn a_program_that_hangs_is_ended() {
        let (folder, path) = program(r#"echo $$ > "$0.pid"; exec sleep 600"#);
        // Long enough for the shell to start, which the loop below waits for.
        let call = tail_with(&path, "web.service", 10, Duration::from_secs(2));
        tokio::pin!(call);
        let pid_file = folder.path().join("journalctl.pid");
        let started = async {
            loop {
                if let Some(pid) =
                    fs::read_to_string(&pid_file).ok().and_then(|pid| pid.trim().parse::<u32>().ok())
                {
                    return pid;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let pid = tokio::select! {
            _ = &mut call => panic!("it ended"),
            pid = started => pid,
        };
        assert_eq!(call.await.unwrap_err().reason(), "timeout");
        let gone =
            || fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "));
        while !gone() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}
