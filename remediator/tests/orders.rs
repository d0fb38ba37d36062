//! What people order, through the built binary: over the control socket by its own command line, over HTTP with a token
//! of the write scope, and by SIGHUP.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it says")]

mod common;

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::Path,
    process::Child,
    time::{Duration, Instant, SystemTime},
};

use common::{Ran, command, remediator};
use evenkeel_remediator::journal::Reader;
use rustix::process::{Pid, Signal, kill_process};

const ALERT_TOKEN: &str = "0123456789abcdef0123456789abcdef";
const WRITE_TOKEN: &str = "fedcba9876543210fedcba9876543210";
const PATIENCE: Duration = Duration::from_secs(120);

/// A filesystem that is there and never in need, so that nothing of this machine is ever touched.
const CONFIG: &str = "
identity: {hosts: [vps1]}
server: {bearer_token_files: [alert.token], write_token_files: [write.token], listen: ['127.0.0.1:0']}
policy: {mode: auto, deletion: cache}
state: {dir: state}
rules:
  - name: disk-high
    match: ['alertname=\"HostDiskHigh\"']
    target: {filesystem: mountpoint, allow: [/]}
    needed: {usage_above: 100%}
    steps: [build_cache_prune]
    verify: {usage_below: 80%, within: 5m}
";

/// Where nobody watches only the result is told.
#[test]
fn who_waits_is_told_how_it_ended_and_by_the_exit_code() {
    let daemon = Daemon::start();
    // Told of, and nothing else; and what this machine has no engine for, or only plans.
    let more = "  - {name: told, on_demand: true, needed: {always: true}, steps: [collect_report]}
  - {name: planned, mode: plan, on_demand: true, needed: {always: true}, steps: [build_cache_prune], verify: {completed: true, within: 5m}}
";
    fs::write(daemon.path("r.yml"), format!("{CONFIG}{more}")).unwrap();
    said(&daemon.order(&["reload"]), 0, "3 rules");
    said(&daemon.order(&["trigger", "told", "--wait"]), 0, "told on this host: reported");
    let well = daemon.order(&["trigger", "disk-high", "/", "--wait"]);
    said(&well, 0, "disk-high on filesystem /: not_needed");
    assert_eq!(well.stderr, "");
    said(&daemon.order(&["trigger", "planned", "--wait"]), 2, "planned on this host: ");
    // It only repeats the one before it.
    said(&daemon.order(&["trigger", "planned", "--wait"]), 2, "planned on this host: ");
    said(&daemon.order(&["approve", "7777", "--wait"]), 1, "there is no remediation #7777");
}

struct Daemon {
    child: Child,
    address: String,
    folder: tempfile::TempDir,
}

impl Daemon {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("r.yml"), CONFIG).unwrap();
        fs::write(path("alert.token"), ALERT_TOKEN).unwrap();
        fs::write(path("write.token"), WRITE_TOKEN).unwrap();
        let mut child = command(folder.path(), &["--config.file", "r.yml", "serve"]).spawn().unwrap();
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
        let daemon = Self { child, address, folder };
        until("it takes orders", || daemon.path("state/control.sock").exists());
        daemon
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    fn order(&self, arguments: &[&str]) -> Ran {
        remediator(self.folder.path(), &[&["--config.file", "r.yml"], arguments].concat())
    }

    /// The status and the whole answer.
    fn post(&self, path: &str, token: Option<&str>, body: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let token = token.map_or_else(String::new, |token| format!("Authorization: Bearer {token}\r\n"));
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\n{token}Content-Type: application/json\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        (answer.split(' ').nth(1).unwrap().parse().unwrap(), answer)
    }

    fn metric(&self, series: &str) -> f64 {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let line = answer.lines().find_map(|line| line.strip_prefix(series));
        line.unwrap_or_else(|| panic!("no {series} in {answer}")).trim().parse().unwrap()
    }

    fn reader(&self) -> Reader {
        Reader::open(&self.path("state")).unwrap()
    }

    fn hang_up(&self) {
        kill_process(Pid::from_child(&self.child), Signal::HUP).unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Who orders here, as the kernel tells the daemon.
fn author() -> String {
    match rustix::process::geteuid().as_raw() {
        0 => "root".to_owned(),
        uid => format!("uid {uid}"),
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

fn said(ran: &Ran, code: i32, text: &str) {
    assert_eq!(ran.code, code, "{ran:?}");
    assert!(ran.stdout.contains(text) || ran.stderr.contains(text), "{text}: {ran:?}");
}

#[test]
fn the_command_line_orders_over_the_control_socket() {
    let daemon = Daemon::start();
    said(&daemon.order(&["pause", "--reason", "deploy", "--for", "2h"]), 0, "paused for 2h");
    assert_eq!(daemon.metric("evenkeel_remediator_paused "), 1.0);
    said(&daemon.order(&["status"]), 0, &format!("PAUSED by {} since", author()));
    said(&daemon.order(&["resume"]), 0, "the pause is over");
    said(&daemon.order(&["resume"]), 0, "nothing was paused");
    assert_eq!(daemon.metric("evenkeel_remediator_paused "), 0.0);
    said(&daemon.order(&["pause", "--reason", " "]), 1, "a pause needs a reason");
    said(&daemon.order(&["approve", "7"]), 1, "there is no remediation #7");
    said(&daemon.order(&["ack", "disk-high", "/"]), 1, "has not acted on / yet");
    said(&daemon.order(&["trigger", "none"]), 1, "there is no rule `none`: use one of disk-high");
    said(&daemon.order(&["trigger", "disk-high", "/etc"]), 1, "target_not_allowed");
    // Its only target need not be named; and it is judged like any other.
    said(&daemon.order(&["trigger", "disk-high"]), 0, "disk-high on filesystem / is opened");
    until("worked off", || {
        daemon.reader().recent(None, None, 1).unwrap().first().is_some_and(|one| one.outcome.is_some())
    });
    let record = daemon.reader().recent(None, None, 1).unwrap().remove(0);
    assert_eq!(record.reason.as_deref(), Some("already_well"));
    assert_eq!(record.triggered_by, Some(author()));
    said(&daemon.order(&["approve", &record.id.to_string()]), 1, "does not wait for approval");
    let commands = daemon.reader().commands(9).unwrap();
    assert!(commands.iter().all(|(_, by, ..)| *by == author()), "{commands:?}");
    assert!(
        commands.iter().any(|(.., what, detail)| (what.as_str(), detail.as_str()) == ("pause", "deploy"))
    );
}

#[test]
fn without_a_daemon_orders_say_so_and_looking_works() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("r.yml"), "server: {auth: none}\nstate: {dir: state}\n").unwrap();
    let ran = remediator(folder.path(), &["--config.file", "r.yml", "resume"]);
    said(&ran, 1, "no remediator answers at");
    let looked = |command: &str| remediator(folder.path(), &["--config.file", "r.yml", command]);
    said(&looked("status"), 1, "  daemon         not known: no remediator answers at state/control.sock");
    said(&looked("status"), 1, "or not at all (No such file or directory (os error 2))\n");
    said(&looked("status"), 1, "there is no state yet in state: evenkeel-remediator has not been started");
    said(&looked("history"), 1, "there is no state yet in state");
    assert!(!Path::new(&path("state")).exists(), "an order made a state");
}

/// What only the daemon knows is asked over the control socket, and over nothing else.
#[test]
fn status_says_what_the_daemon_knows_of_itself() {
    let mut daemon = Daemon::start();
    let config = daemon.path("r.yml");
    let written = |text: &str, seconds_ago: u64| {
        fs::write(&config, text).unwrap();
        let at = SystemTime::now() - Duration::from_secs(seconds_ago);
        fs::File::options().append(true).open(&config).unwrap().set_modified(at).unwrap();
    };
    written(CONFIG, 60);
    let status = daemon.order(&["status"]).stdout;
    for line in [
        "host vps1, mode auto, deletion cache, 1 rules\n",
        "\n  daemon         runs since 20",
        "\n  configuration  read 20",
        "\n  exporter       not known whether it is scraped: no `prometheus` in the configuration\n",
    ] {
        assert!(status.contains(line), "{line}: {status}");
    }
    assert!(!status.contains("changed since then") && !status.contains("refused"), "{status}");
    fs::File::options()
        .append(true)
        .open(&config)
        .unwrap()
        .set_modified(SystemTime::now() + PATIENCE)
        .unwrap();
    said(
        &daemon.order(&["status"]),
        0,
        "; changed since then, evenkeel-remediator reload puts it in force\n",
    );
    // Good in itself, and nothing that a running process can change.
    written(&CONFIG.replace("127.0.0.1:0", "127.0.0.1:1"), 60);
    said(&daemon.order(&["reload"]), 1, "`server.listen` cannot be changed while it runs");
    said(
        &daemon.order(&["status"]),
        0,
        "the last reload was refused, evenkeel-remediator check-config says why",
    );
    said(
        &daemon.order(&["explain", "disk-high", "/"]),
        0,
        "beware  the daemon goes by an older configuration",
    );

    assert_eq!(daemon.post("/api/v1/daemon", Some(WRITE_TOKEN), "").0, 404);
    daemon.child.kill().unwrap();
    daemon.child.wait().unwrap();
    said(&daemon.order(&["status"]), 0, "  daemon         not known: no remediator answers at ");
}

#[test]
fn over_http_only_the_write_scope_orders() {
    let daemon = Daemon::start();
    let pause = r#"{"reason":"over http"}"#;
    for path in ["/api/v1/pause", "/api/v1/remediations/1/approve", "/-/reload", "/api/v1/trigger"] {
        assert_eq!(daemon.post(path, None, pause).0, 401, "{path}");
        assert_eq!(daemon.post(path, Some("0000000000000000"), pause).0, 401, "{path}");
        // Whoever sends alerts does not approve of what they lead to.
        assert_eq!(daemon.post(path, Some(ALERT_TOKEN), pause).0, 403, "{path}");
    }
    assert_eq!(daemon.metric("evenkeel_remediator_paused "), 0.0);
    let (code, answer) = daemon.post("/api/v1/pause", Some(WRITE_TOKEN), pause);
    assert_eq!(code, 200, "{answer}");
    assert!(answer.contains("until somebody resumes"), "{answer}");
    assert_eq!(daemon.metric("evenkeel_remediator_paused "), 1.0);
    assert_eq!(daemon.post("/api/v1/resume/", Some(WRITE_TOKEN), "").0, 200);
    for (path, body, code) in [
        ("/api/v1/pause", "", 400),
        ("/api/v1/pause", r#"{"reason":"x","until":"y"}"#, 400),
        ("/api/v1/pause", r#"{"reason":"x","for":"0s"}"#, 400),
        ("/api/v1/remediations/1/approve", "", 404),
        ("/api/v1/remediations/x/approve", "", 400),
        ("/api/v1/remediations/1/delete", "", 404),
        ("/api/v1/trigger", r#"{"rule":"disk-high","target":"../x"}"#, 400),
        ("/api/v1/ack", r#"{"rule":"none","target":"/"}"#, 404),
    ] {
        let (answered, answer) = daemon.post(path, Some(WRITE_TOKEN), body);
        assert_eq!(answered, code, "{path} {body}: {answer}");
    }
}

#[test]
fn a_good_configuration_comes_into_force_whole_and_a_bad_one_not_at_all() {
    let daemon = Daemon::start();
    let reloaded = || daemon.metric("evenkeel_remediator_config_last_reload_successful ");
    let rule_is_there =
        |name: &str| daemon.order(&["trigger", name]).stdout.contains(&format!("{name} on filesystem /"));
    assert_eq!(reloaded(), 1.0);
    // A bad one: nothing of it holds, and the metric says so.
    fs::write(daemon.path("r.yml"), CONFIG.replace("disk-high", "renamed").replace("80%", "100%")).unwrap();
    daemon.hang_up();
    until("refused", || reloaded() == 0.0);
    fs::write(daemon.path("r.yml"), CONFIG).unwrap();
    assert!(rule_is_there("disk-high"));
    // What only a restart can change is refused too, with its name.
    fs::write(daemon.path("r.yml"), CONFIG.replace("{dir: state}", "{dir: elsewhere}")).unwrap();
    let (code, answer) = daemon.post("/-/reload", Some(WRITE_TOKEN), "");
    assert_eq!(code, 400);
    assert!(answer.contains("`state.dir` cannot be changed while it runs"), "{answer}");
    // A good one, with a part of it in conf.d.
    fs::write(daemon.path("r.yml"), CONFIG.replace("disk-high", "renamed")).unwrap();
    fs::create_dir(daemon.path("conf.d")).unwrap();
    let more = CONFIG.split_once("rules:").unwrap().1.replace("disk-high", "brought-along");
    fs::write(daemon.path("conf.d/shop.yml"), format!("rules:{more}")).unwrap();
    daemon.hang_up();
    until("in force", || reloaded() == 1.0);
    assert!(rule_is_there("renamed") && rule_is_there("brought-along") && !rule_is_there("disk-high"));
    said(&daemon.order(&["reload"]), 0, "the configuration is in force: 2 rules");
    // An error in a part names the part.
    fs::write(daemon.path("conf.d/shop.yml"), "policy: {mode: auto}\n").unwrap();
    let ran = remediator(daemon.folder.path(), &["--config.file", "r.yml", "check-config"]);
    assert_eq!(ran.code, 64);
    assert!(ran.stderr.contains("conf.d/shop.yml:1:1: unknown key `policy`"), "{ran:?}");
}

/// Old beside new while the sender is changed, then only the new one: each at a reload, without a restart.
#[test]
fn tokens_are_rotated_by_a_reload() {
    const NEW: &str = "another token, as long as it must be";
    let daemon = Daemon::start();
    let delivered = |token| daemon.post("/api/v1/alerts", Some(token), r#"{"version":"4","alerts":[]}"#).0;
    assert_eq!((delivered(ALERT_TOKEN), delivered(NEW)), (200, 401));
    fs::write(daemon.path("new.token"), NEW).unwrap();
    let both = CONFIG.replace("[alert.token]", "[alert.token, new.token]");
    fs::write(daemon.path("r.yml"), both).unwrap();
    assert_eq!((delivered(ALERT_TOKEN), delivered(NEW)), (200, 401), "nobody has reloaded yet");
    said(&daemon.order(&["reload"]), 0, "the configuration is in force");
    assert_eq!((delivered(ALERT_TOKEN), delivered(NEW)), (200, 200));
    fs::write(daemon.path("r.yml"), CONFIG.replace("[alert.token]", "[new.token]")).unwrap();
    said(&daemon.order(&["reload"]), 0, "the configuration is in force");
    assert_eq!((delivered(ALERT_TOKEN), delivered(NEW)), (401, 200));
    // And the write scope's.
    fs::write(daemon.path("write.token"), "a write token of today, long enough").unwrap();
    said(&daemon.order(&["reload"]), 0, "the configuration is in force");
    let resumed = |token| daemon.post("/api/v1/resume", Some(token), "").0;
    assert_eq!((resumed(WRITE_TOKEN), resumed("a write token of today, long enough")), (401, 200));
}
