//! One program that the lab has started: its log, its end, and its being frozen.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// How long a program may take to end after SIGTERM before it is killed.
const GRACE: Duration = Duration::from_secs(10);

/// A running program. Dropping it ends it.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with everything it prints going to `DIR/NAME.log`.
    ///
    /// # Errors
    ///
    /// When the log cannot be opened or the program cannot be started.
    pub fn start(name: &str, dir: &Path, mut command: Command) -> Result<Self> {
        let log = dir.join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&log)?;
        // A group of its own, so that Ctrl-C in the terminal reaches the lab only, which then ends
        // its programs in order.
        command.stdout(file.try_clone()?).stderr(file).process_group(0);
        let child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        Ok(Self { name: name.to_owned(), child, log })
    }

    /// The process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What the program has printed so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Succeeds while the program runs.
    ///
    /// # Errors
    ///
    /// When it has ended; the error holds the last lines of its log.
    pub fn check_alive(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} ended ({status}): {}", self.name, last_lines(&self.log(), 5)),
        }
    }

    /// How the program has ended, if it has.
    ///
    /// # Errors
    ///
    /// When that cannot be asked.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Stops the program from running until the returned guard is dropped.
    ///
    /// # Errors
    ///
    /// When the program has ended.
    pub fn freeze(&self) -> Result<Frozen> {
        Frozen::new(self.id())
    }

    /// Asks the program to end, and kills it when it does not.
    ///
    /// # Errors
    ///
    /// When its end cannot be awaited.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(status);
        }
        send(self.id(), Signal::TERM)?;
        // A frozen program would take the signal only when it runs again.
        send(self.id(), Signal::CONT)?;
        let deadline = Instant::now() + GRACE;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.kill()
    }

    /// Kills the program at once (SIGKILL), as a crash does.
    ///
    /// # Errors
    ///
    /// When its end cannot be awaited.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.child.kill()?;
        Ok(self.child.wait()?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("{}: {error:#}", self.name);
        }
    }
}

/// A process held by SIGSTOP. Dropping the guard lets it run again.
#[derive(Debug)]
pub struct Frozen(u32);

impl Frozen {
    /// Freezes the process `id` and waits until it really stands still.
    ///
    /// # Errors
    ///
    /// When there is no such process.
    pub fn new(id: u32) -> Result<Self> {
        send(id, Signal::STOP)?;
        let frozen = Self(id);
        let deadline = Instant::now() + GRACE;
        while !stands_still(id)? {
            if Instant::now() > deadline {
                bail!("process {id} does not stop");
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(frozen)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // It may have been killed meanwhile, which is no reason to complain.
        send(self.0, Signal::CONT).ok();
    }
}

/// Whether every thread of a process is stopped; the last ones stop a moment after the signal.
fn stands_still(id: u32) -> Result<bool> {
    let tasks = fs::read_dir(format!("/proc/{id}/task")).with_context(|| format!("no process {id}"))?;
    for task in tasks.flatten() {
        let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        // The state follows the name, which is in brackets and may hold anything.
        if stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('T')) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Sends a signal to a process by its id.
///
/// # Errors
///
/// When there is no such process.
pub fn send(id: u32, signal: Signal) -> Result<()> {
    let pid =
        i32::try_from(id).ok().and_then(Pid::from_raw).with_context(|| format!("{id} is no process id"))?;
    kill_process(pid, signal).with_context(|| format!("cannot signal process {id}"))
}

/// A TCP port of loopback that nothing listens on now, and that nobody in this process was given before.
///
/// # Errors
///
/// When no port can be bound.
pub fn free_port() -> Result<u16> {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    loop {
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        // Whoever was given it may not listen yet.
        if GIVEN.lock().unwrap_or_else(PoisonError::into_inner).insert(port) {
            return Ok(port);
        }
    }
}

/// Whether nothing listens on this TCP port of loopback, nor on all addresses.
#[must_use]
pub fn is_free(port: u16) -> bool {
    std::net::TcpListener::bind(("127.0.0.1", port)).is_ok()
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join(" | ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper(dir: &Path) -> Process {
        let mut command = Command::new("sleep");
        command.arg("600");
        Process::start("sleep", dir, command).unwrap()
    }

    fn state(id: u32) -> Option<char> {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        stat.rsplit_once(") ")?.1.chars().next()
    }

    #[test]
    fn dropping_ends_the_program_also_when_frozen() {
        let dir = tempfile::tempdir().unwrap();
        let process = sleeper(dir.path());
        let id = process.id();
        let frozen = process.freeze().unwrap();
        assert_eq!(state(id), Some('T'));
        drop(process);
        assert_eq!(state(id), None);
        drop(frozen);
    }

    #[test]
    fn a_frozen_program_runs_again_when_the_guard_goes() {
        let dir = tempfile::tempdir().unwrap();
        let process = sleeper(dir.path());
        let frozen = process.freeze().unwrap();
        assert_eq!(state(process.id()), Some('T'));
        drop(frozen);
        let deadline = Instant::now() + GRACE;
        while state(process.id()) == Some('T') {
            assert!(Instant::now() < deadline, "still stopped");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_port_that_something_listens_on_is_not_free() {
        let everywhere = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
        assert!(!is_free(everywhere.local_addr().unwrap().port()));
        let port = free_port().unwrap();
        assert!(is_free(port));
    }

    #[test]
    fn an_ended_program_is_reported_with_its_last_words() {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo so long; exit 3"]);
        let mut process = Process::start("sh", dir.path(), command).unwrap();
        process.child.wait().unwrap();
        let error = process.check_alive().unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.ends_with("so long"), "{error}");
    }
}
