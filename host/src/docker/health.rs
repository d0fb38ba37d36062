//! Healthchecks: what the engine says about them, and telling a probe that cannot work from a container that is sick.
//! Pure functions; the outputs they classify were recorded from real engines.

use std::time::SystemTime;

/// Probe output is kept up to this many bytes (the engine itself keeps 4,096 and adds "...").
pub const OUTPUT_LIMIT: usize = 4096;

/// The verdict of a container's healthcheck. It counts only while the container runs: a paused container still says
/// `unhealthy`, a stopped one keeps its last word, and both read as [`Health::None`] here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    /// No healthcheck, or the container is not running.
    None,
    /// Inside the start period, no verdict yet.
    Starting,
    /// The last probe succeeded.
    Healthy,
    /// As many probes in a row failed as `retries` allows.
    Unhealthy,
}

impl Health {
    /// All of them, in the order they are published.
    pub const ALL: [Self; 4] = [Self::None, Self::Starting, Self::Healthy, Self::Unhealthy];

    /// The engine's word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }

    /// From the engine's word; a word nobody knows is no verdict.
    pub(super) fn from_word(word: &str) -> Self {
        Self::ALL.into_iter().find(|health| health.as_str() == word).unwrap_or(Self::None)
    }

    /// From the `Status` text of the container list, the only place that has it below API 1.52:
    /// `Up 12 minutes (unhealthy)`, `Up 2 seconds (health: starting)`; Podman writes `(starting)`.
    pub(super) fn from_status_text(text: &str) -> Self {
        match text.rsplit_once(" (").map(|(_, verdict)| verdict) {
            Some("healthy)") => Self::Healthy,
            Some("unhealthy)") => Self::Unhealthy,
            Some("health: starting)" | "starting)") => Self::Starting,
            _ => Self::None,
        }
    }
}

/// What inspect says about a healthcheck.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthDetail {
    /// The verdict, [`Health::None`] unless the container runs.
    pub status: Health,
    /// Failed probes in a row.
    pub failing_streak: u64,
    /// The newest entry of the engine's probe log.
    pub last: Option<LastProbe>,
}

impl HealthDetail {
    /// Why the probe can never succeed, when its last run says so: the container itself may be fine.
    pub fn broken(&self) -> Option<ProbeResult> {
        self.last.as_ref().map(|probe| probe.result).filter(|result| result.is_broken())
    }
}

/// One finished run of a healthcheck.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastProbe {
    /// As the engine recorded it; -1 stands for "could not be executed" and "timed out" alike.
    pub exit_code: i64,
    /// Up to [`OUTPUT_LIMIT`] bytes. May hold secrets: it never leaves as a label.
    pub output: String,
    /// When it ended.
    pub end: Option<SystemTime>,
    /// What exit code and output mean together.
    pub result: ProbeResult,
}

impl LastProbe {
    pub(super) fn new(exit_code: i64, mut output: String, end: Option<SystemTime>) -> Self {
        output.truncate(output.floor_char_boundary(OUTPUT_LIMIT));
        let result = classify_probe(exit_code, &output);
        Self { exit_code, output, end, result }
    }
}

/// What became of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProbeResult {
    /// Exit 0.
    Ok,
    /// The probe ran and said no.
    Failed,
    /// The probe ran longer than its `timeout`.
    Timeout,
    /// The engine could not run the probe, for a reason that may pass (the container was stopping).
    ExecFailed,
    /// The probe's program, or a tool it calls, is not in the container.
    CommandNotFound,
    /// The probe's program is there and cannot be executed.
    NotExecutable,
}

impl ProbeResult {
    /// All of them, in the order they are published.
    pub const ALL: [Self; 6] =
        [Self::Ok, Self::Failed, Self::Timeout, Self::ExecFailed, Self::CommandNotFound, Self::NotExecutable];

    /// The label value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Failed => "failed",
            Self::Timeout => "timeout",
            Self::ExecFailed => "exec_failed",
            Self::CommandNotFound => "command_not_found",
            Self::NotExecutable => "not_executable",
        }
    }

    /// The probe cannot ever work, so its verdict says nothing about the container.
    pub fn is_broken(self) -> bool {
        matches!(self, Self::CommandNotFound | Self::NotExecutable)
    }
}

/// Tells what a probe's exit code and output mean. Neither alone can: -1 is both a failed exec and a time-out, and a
/// missing tool is 127, -1, or 1 behind `|| exit 1`.
///
/// In doubt the answer is [`ProbeResult::Failed`]: a sick container taken for a broken probe would never be repaired.
pub fn classify_probe(exit_code: i64, output: &str) -> ProbeResult {
    match exit_code {
        0 => ProbeResult::Ok,
        -1 => classify_unrun(output),
        126 => ProbeResult::NotExecutable,
        127 => ProbeResult::CommandNotFound,
        // Only the last line explains the exit code: `curl … || wget …` complains about curl and then fails in wget.
        _ => output
            .lines()
            .rev()
            .map(str::trim)
            .find(|line| !line.is_empty())
            .and_then(|line| runtime_complaint(line).or_else(|| shell_complaint(line)))
            .unwrap_or(ProbeResult::Failed),
    }
}

/// Exit code -1: the engine's own words.
fn classify_unrun(output: &str) -> ProbeResult {
    if output.starts_with("Health check exceeded timeout") {
        return ProbeResult::Timeout;
    }
    // runc: `… exec: "curl": executable file not found in $PATH: unknown`; other errors that mention a missing file
    // (a lost working directory, a container that is going away) do not name the program in this way.
    if let Some((_, reason)) = output.split_once("exec: \"").and_then(|(_, rest)| rest.split_once("\": ")) {
        if reason.contains("executable file not found") || reason.contains("no such file or directory") {
            return ProbeResult::CommandNotFound;
        }
        if ["permission denied", "exec format error", "is a directory"].iter().any(|end| reason.contains(end))
        {
            return ProbeResult::NotExecutable;
        }
    }
    // crun: ``executable file `curl` not found in $PATH: No such file or directory``.
    if output.contains("executable file `") && output.contains("` not found") {
        return ProbeResult::CommandNotFound;
    }
    ProbeResult::ExecFailed
}

/// runc's init after a successful start, exit code 1: `exec /probe.sh: no such file or directory` when the
/// interpreter is missing, `exec /probe: exec format error` when it is no program.
fn runtime_complaint(line: &str) -> Option<ProbeResult> {
    let (program, reason) = line.strip_prefix("exec ")?.rsplit_once(": ")?;
    if program.contains(char::is_whitespace) {
        return None;
    }
    match reason {
        "no such file or directory" => Some(ProbeResult::CommandNotFound),
        "exec format error" | "permission denied" | "is a directory" => Some(ProbeResult::NotExecutable),
        _ => None,
    }
}

/// A shell's own complaint behind another exit code: busybox `/bin/sh: curl: not found`, dash
/// `/bin/sh: 1: curl: not found`, bash `/probe.sh: line 3: curl: command not found`.
fn shell_complaint(line: &str) -> Option<ProbeResult> {
    let parts: Vec<&str> = line.split(": ").collect();
    let (speaker, place, subject, reason) = match parts[..] {
        [speaker, subject, reason] => (speaker, None, subject, reason),
        [speaker, place, subject, reason] => (speaker, Some(place), subject, reason),
        _ => return None,
    };
    let is_line_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let by_bash = place.is_some_and(|place| place.strip_prefix("line ").is_some_and(is_line_number));
    let by_shell = match place {
        // A script with a line number, whatever it is called; else the shell by name.
        Some(place) => by_bash || is_line_number(place),
        None => is_shell(speaker),
    };
    if !by_shell || subject.is_empty() || subject.contains(char::is_whitespace) {
        return None;
    }
    match reason {
        "not found" | "command not found" => Some(ProbeResult::CommandNotFound),
        // bash uses the same words for `> /read/only/file`, which is a sick container; busybox and dash say
        // "can't create" and "cannot create" there.
        "Permission denied" if !by_bash => Some(ProbeResult::NotExecutable),
        _ => None,
    }
}

fn is_shell(speaker: &str) -> bool {
    let name = speaker.rsplit('/').next().unwrap_or(speaker);
    matches!(name, "sh" | "ash" | "bash" | "dash" | "busybox" | "ksh" | "mksh")
}

#[cfg(test)]
mod tests {
    use super::*;
    use ProbeResult::{CommandNotFound, ExecFailed, Failed, NotExecutable, Ok, Timeout};

    const OCI: &str = "OCI runtime exec failed: exec failed: unable to start container process: ";

    /// Every case that was run on engine 20.10 with busybox images.
    #[test]
    fn recorded_probes_are_classified() {
        let big = format!("{}...", "x".repeat(4096));
        let oci = |rest: &str| format!("{OCI}{rest}: unknown");
        let cases: &[(&str, i64, String, ProbeResult)] = &[
            ("big", 1, big, Failed),
            ("binary", 1, "\u{fffd}\u{fffd}bad".into(), Failed),
            ("exec-badfmt", 1, "exec /badfmt: exec format error\n".into(), NotExecutable),
            ("exec-badinterp", 1, "exec /badinterp: no such file or directory\n".into(), CommandNotFound),
            ("exec-dir", -1, oci(r#"exec: "/bin": permission denied"#), NotExecutable),
            ("exec-missing", -1, oci(r#"exec: "curl": executable file not found in $PATH"#), CommandNotFound),
            (
                "exec-missing-abs",
                -1,
                oci(r#"exec: "/usr/bin/curl": stat /usr/bin/curl: no such file or directory"#),
                CommandNotFound,
            ),
            ("exec-notexec", -1, oci(r#"exec: "/notexec": permission denied"#), NotExecutable),
            ("fail2", 2, "sick\n".into(), Failed),
            ("killed", 137, String::new(), Failed),
            ("ok", 0, "fine\n".into(), Ok),
            ("paused", 0, "fine\n".into(), Ok),
            (
                "refused",
                1,
                "wget: can't connect to remote host (127.0.0.1): Connection refused\n".into(),
                Failed,
            ),
            (
                "refused-or1",
                1,
                "wget: can't connect to remote host (127.0.0.1): Connection refused\n".into(),
                Failed,
            ),
            ("shell-badinterp", 127, "/bin/sh: /badinterp: not found\n".into(), CommandNotFound),
            ("shell-missing", 127, "/bin/sh: curl: not found\n".into(), CommandNotFound),
            ("shell-missing-or1", 1, "/bin/sh: curl: not found\n".into(), CommandNotFound),
            (
                "shell-nosh",
                -1,
                oci(r#"exec: "/bin/sh": stat /bin/sh: no such file or directory"#),
                CommandNotFound,
            ),
            ("shell-notexec", 126, "/bin/sh: /notexec: Permission denied\n".into(), NotExecutable),
            ("shell-notexec-or1", 1, "/bin/sh: /notexec: Permission denied\n".into(), NotExecutable),
            ("timeout", -1, "Health check exceeded timeout (1s)".into(), Timeout),
            ("timeout-exec", -1, "Health check exceeded timeout (1s)".into(), Timeout),
            ("timeout-newer", -1, "Health check exceeded timeout (1s): half an answer".into(), Timeout),
        ];
        for (name, exit_code, output, expected) in cases {
            assert_eq!(classify_probe(*exit_code, output), *expected, "{name}");
        }
    }

    #[test]
    fn other_shells_and_runtimes_are_known() {
        for (exit_code, output, expected) in [
            (1, "/bin/sh: 1: curl: not found", CommandNotFound),
            (1, "/bin/bash: line 1: curl: command not found", CommandNotFound),
            (1, "bash: curl: command not found", CommandNotFound),
            (22, "/healthcheck.sh: line 3: curl: command not found\n\n", CommandNotFound),
            (1, "/healthcheck.sh: 3: curl: not found", CommandNotFound),
            (1, "/bin/sh: 1: /notexec: Permission denied", NotExecutable),
            (
                -1,
                "OCI runtime exec failed: executable file `curl` not found in $PATH: No such file or directory: unknown",
                CommandNotFound,
            ),
            (
                -1,
                "OCI runtime exec failed: exec failed: container_linux.go:380: starting container process caused: exec: \"curl\": executable file not found in $PATH: unknown",
                CommandNotFound,
            ),
            (-1, "cannot exec in a stopped state: unknown", ExecFailed),
            (
                -1,
                "OCI runtime exec failed: exec failed: chdir to cwd (\"/app\") failed: no such file or directory: unknown",
                ExecFailed,
            ),
            (-1, "", ExecFailed),
        ] {
            assert_eq!(classify_probe(exit_code, output), expected, "{exit_code} {output}");
        }
    }

    /// Each looks like a broken probe and is a sick container.
    #[test]
    fn a_sick_container_is_not_taken_for_a_broken_probe() {
        for output in [
            "session: not found",
            "wget: server returned error: HTTP/1.1 404 Not Found",
            "error: user: not found",
            "/bin/sh: curl: not found\nwget: can't connect to remote host: Connection refused",
            "/bin/sh: can't create /data/probe: Permission denied",
            "/bin/sh: 1: cannot create /data/probe: Permission denied",
            "/bin/bash: line 1: /data/probe: Permission denied",
            "/bin/bash: line 1: /run/alive: No such file or directory",
            "exec of the query: no such file or directory",
            ": : ",
            "sh: : not found",
        ] {
            assert_eq!(classify_probe(1, output), Failed, "{output}");
        }
    }

    #[test]
    fn hostile_output_is_cut_at_a_character() {
        let probe = LastProbe::new(1, "ä".repeat(5000), None);
        assert_eq!(probe.output.len(), 4096);
        let probe = LastProbe::new(1, format!("x{}", "ä".repeat(5000)), None);
        assert_eq!(probe.output.len(), 4095);
    }

    #[test]
    fn health_is_read_from_the_status_text() {
        for (text, expected) in [
            ("Up 12 minutes (unhealthy)", Health::Unhealthy),
            ("Up About an hour (healthy)", Health::Healthy),
            ("Up Less than a second (health: starting)", Health::Starting),
            ("Up 3 seconds (starting)", Health::Starting),
            ("Up 3 seconds", Health::None),
            ("Up 5 minutes (Paused)", Health::None),
            ("Exited (1) 5 minutes ago", Health::None),
            ("Restarting (137) 2 seconds ago", Health::None),
            ("(healthy)", Health::None),
            ("", Health::None),
        ] {
            assert_eq!(Health::from_status_text(text), expected, "{text}");
        }
    }

    #[test]
    fn only_two_results_mean_a_broken_probe() {
        let broken: Vec<_> = ProbeResult::ALL.into_iter().filter(|result| result.is_broken()).collect();
        assert_eq!(broken, [CommandNotFound, NotExecutable]);
    }
}
