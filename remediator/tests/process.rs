//! The process as a whole: killed after an answer, told to end, and looked through by its own command line.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it says")]

mod common;

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, ExitStatus},
    time::{Duration, Instant, SystemTime},
};

use common::{command, remediator};
use evenkeel_remediator::journal::Reader;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

/// Mount points that do not exist: nothing of this machine is asked, and each ends as `probe_unknown`.
const CONFIG: &str = "
identity: {hosts: [vps1]}
server: {auth: none, listen: ['127.0.0.1:0']}
policy: {mode: auto, deletion: cache}
state: {dir: state}
rules:
  - name: disk-high
    match: ['alertname=\"HostDiskHigh\"']
    target: {filesystem: mountpoint, allow: [/no/such/*]}
    steps: [build_cache_prune, notify]
    verify: {usage_below: 80%, within: 5m}
  - name: told
    match: ['alertname=\"Told\"']
    target: {filesystem: mountpoint, allow: [/]}
    steps: [collect_report, notify]
";

const PATIENCE: Duration = Duration::from_secs(60);

/// A running `serve`, killed when a test fails half way.
struct Daemon {
    child: Child,
    address: String,
}

impl Daemon {
    fn start(folder: &Path) -> Self {
        let mut child = command(folder, &["--config.file", "r.yml", "serve"]).spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        let address = loop {
            line.clear();
            assert!(log.read_line(&mut line).unwrap() > 0, "it ended before it listened");
            if let Some((_, address)) = line.split_once("listening address=\"") {
                break address.split('"').next().unwrap().to_owned();
            }
        };
        // Nobody reads on; a full pipe must not hold it up.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Self { child, address }
    }

    /// Posts a body and answers the whole response.
    fn post(&self, body: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let head = format!(
            "POST /api/v1/alerts HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// A line of /proc/PID/status, in kB.
    fn memory_kb(&self, field: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    fn wait(mut self) -> ExitStatus {
        until("ended", || self.child.try_wait().unwrap().is_some());
        self.child.wait().unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for a fact.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "never {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("r.yml"), CONFIG).unwrap();
    folder
}

fn delivery(alertname: &str, mount_points: &[String]) -> String {
    let alert = |mount_point: &String| {
        json!({
            "status": "firing",
            "labels": {"alertname": alertname, "instance": "vps1:9100", "mountpoint": mount_point,
                       "severity": "warning", "job": "evenkeel-exporter", "device": "/dev/vda1", "fstype": "ext4"},
            "annotations": {"summary": "x".repeat(200), "description": "y".repeat(200)},
            "startsAt": "2026-01-01T00:00:00.123456789Z", "endsAt": "0001-01-01T00:00:00Z",
            "generatorURL": "http://prometheus.example:9090/graph?g0.expr=1", "fingerprint": "0011223344556677",
        })
    };
    json!({"version": "4", "status": "firing", "alerts": mount_points.iter().map(alert).collect::<Vec<_>>()})
        .to_string()
}

/// The largest delivery there is, and the process is killed as soon as it has said yes.
#[test]
fn what_was_answered_200_survives_sigkill() {
    let folder = folder();
    let state = folder.path().join("state");
    let mount_points: Vec<String> = (0..10_000).map(|number| format!("/no/such/{number}")).collect();
    let body = delivery("HostDiskHigh", &mount_points);
    let daemon = Daemon::start(folder.path());
    let idle_kb = daemon.memory_kb("VmRSS");
    let began = Instant::now();
    let answer = daemon.post(&body);
    let took = began.elapsed();
    let peak_kb = daemon.memory_kb("VmHWM");
    daemon.signal(Signal::KILL);
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    assert!(answer.ends_with("{\"accepted\":10000,\"ignored\":0}"), "{answer}");
    assert!(!daemon.wait().success());
    println!("{} MB in {took:?}; memory {idle_kb} kB, then {peak_kb} kB at most", body.len() >> 20);
    assert!(peak_kb < 128_000, "{peak_kb} kB for {} bytes", body.len());
    assert_eq!(Reader::open(&state).unwrap().recent(None, None, 20_000).unwrap().len(), 10_000);

    // The next one works them all off.
    let daemon = Daemon::start(folder.path());
    let began = Instant::now();
    until("worked off", || Reader::open(&state).unwrap().queue().unwrap().0 == 0);
    println!("worked off in {:?}; memory {} kB at most", began.elapsed(), daemon.memory_kb("VmHWM"));
    let reader = Reader::open(&state).unwrap();
    let ended = reader.recent(None, None, 20_000).unwrap();
    assert_eq!(ended.len(), 10_000);
    assert!(ended.iter().all(|one| one.reason.as_deref() == Some("probe_unknown")));
    daemon.signal(Signal::TERM);
    assert!(daemon.wait().success());
}

#[test]
fn told_to_end_it_ends_well_and_at_once() {
    let folder = folder();
    for signal in [Signal::TERM, Signal::INT] {
        let daemon = Daemon::start(folder.path());
        // A connection that is kept open holds nothing up.
        let _open = TcpStream::connect(&daemon.address).unwrap();
        let began = Instant::now();
        daemon.signal(signal);
        assert_eq!(daemon.wait().code(), Some(0));
        assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    }
}

/// Every file below a folder with its content and its time. Not SQLite's `-shm`: readers and the writer tell each other
/// in it where they are, and nothing of it outlives them.
fn everything(folder: &Path) -> BTreeMap<PathBuf, (Vec<u8>, SystemTime)> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let metadata = entry.metadata().unwrap();
        let is_socket = std::os::unix::fs::FileTypeExt::is_socket(&metadata.file_type());
        if is_socket || entry.file_name().to_string_lossy().ends_with("-shm") {
            continue;
        }
        if metadata.is_dir() {
            found.extend(everything(&entry.path()));
            found.insert(entry.path(), (Vec::new(), SystemTime::UNIX_EPOCH));
        } else {
            found.insert(entry.path(), (fs::read(entry.path()).unwrap(), metadata.modified().unwrap()));
        }
    }
    found
}

/// What only looks writes no report, sends no message, and leaves the state as it is: without one, beside a daemon at
/// work, and after one was killed.
#[test]
fn simulate_and_explain_have_no_effect() {
    let ears = TcpListener::bind("127.0.0.1:0").unwrap();
    ears.set_nonblocking(true).unwrap();
    let folder = folder();
    let notify =
        format!("notify: [{{webhook: {{url: 'http://{}/', on: [all]}}}}]\n", ears.local_addr().unwrap());
    fs::write(folder.path().join("r.yml"), format!("{CONFIG}{notify}")).unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("told.json"), delivery("Told", &["/".to_owned()])).unwrap();
    fs::write(path("disk.json"), delivery("HostDiskHigh", &["/no/such/disk".to_owned()])).unwrap();
    fs::write(path("bad.json"), "{").unwrap();
    let looks: [(&[&str], i32, &str); 8] = [
        (&["simulate", "--payload", "told.json"], 0, "would run"),
        (&["simulate", "--payload", "disk.json"], 0, "blocked (probe_unknown): nothing is mounted on"),
        (&["simulate", "--payload", "bad.json"], 1, ""),
        (&["explain", "told", "/"], 0, "it only observes"),
        (&["explain", "disk-high", "/no/such/disk"], 0, "blocked (probe_unknown)"),
        (&["explain", "disk-high", "/etc"], 1, ""),
        (&["check-config"], 0, "the configuration is good"),
        (&["explain", "disk-high", "../x"], 1, ""),
    ];
    let look = |state: &str| {
        let before = everything(folder.path());
        for (arguments, code, said) in looks {
            let ran = remediator(folder.path(), &[&["--config.file", "r.yml"], arguments].concat());
            assert_eq!(ran.code, code, "{state}, {arguments:?}: {ran:?}");
            assert!(ran.stdout.contains(said), "{state}, {arguments:?}: {ran:?}");
        }
        let after = everything(folder.path());
        let changed: Vec<_> =
            after.iter().filter(|(path, content)| before.get(*path) != Some(*content)).collect();
        assert!(
            changed.is_empty(),
            "{state}: {:?}",
            changed.iter().map(|(path, _)| path).collect::<Vec<_>>()
        );
        assert_eq!(before.len(), after.len(), "{state}: something is gone");
        assert!(ears.accept().is_err(), "{state}: a message was sent");
    };
    look("no state");
    let daemon = Daemon::start(folder.path());
    until("there is a state", || Reader::open(&path("state")).is_ok());
    // It notes the boot when it starts.
    until("the journal is at rest", || {
        let first = everything(&path("state"));
        std::thread::sleep(Duration::from_millis(300));
        first == everything(&path("state"))
    });
    look("beside the daemon");
    daemon.signal(Signal::KILL);
    daemon.wait();
    look("after a kill");
    let daemon = Daemon::start(folder.path());
    daemon.signal(Signal::TERM);
    daemon.wait();
    look("after a clean end");
}
