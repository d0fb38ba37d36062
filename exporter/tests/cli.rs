//! The built program: exit codes, messages, signals, and the table of configurations it refuses.

// The policy against starting programs is for the product; this starts the product.
#![allow(clippy::disallowed_types)]

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

/// Long enough for a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn exporter() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_evenkeel-exporter"));
    // Nothing of this machine is asked.
    command.env_remove("DOCKER_HOST").env_remove("DBUS_SYSTEM_BUS_ADDRESS").stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    exporter().args(arguments).output().expect("the program starts")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A running exporter, killed when a test fails half way.
struct Running {
    child: Child,
    address: String,
    log: Option<std::thread::JoinHandle<String>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended already unless a test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Running {
    fn start(arguments: &[&str]) -> Self {
        let mut child = exporter()
            .args(["--web.listen-address=127.0.0.1:0", "--collector.disable-defaults", "--log.format=json"])
            .args(arguments)
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let mut lines = BufReader::new(child.stderr.take().expect("piped"));
        let mut first = String::new();
        lines.read_line(&mut first).expect("the first line");
        let address = first.split("\"address\":\"").nth(1).and_then(|rest| rest.split('"').next());
        let address = address.unwrap_or_else(|| panic!("the address in {first}")).to_owned();
        let log = std::thread::spawn(move || {
            let mut rest = first;
            lines.read_to_string(&mut rest).expect("the log is text");
            rest
        });
        Self { child, address, log: Some(log) }
    }

    fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).expect("connected");
        write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("answered");
        answer
    }

    /// Asks until the answer is as it should be.
    fn wait_for(&self, path: &str, is_so: impl Fn(&str) -> bool) -> String {
        let begun = Instant::now();
        loop {
            let answer = self.get(path);
            if is_so(&answer) {
                return answer;
            }
            assert!(begun.elapsed() < PATIENCE, "{answer}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends it with a signal and says how it ended and what it logged.
    fn stop(mut self, signal: Signal) -> (Option<i32>, String) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).expect("signalled");
        let status = self.child.wait().expect("ended");
        let log = self.log.take().expect("still there");
        (status.code(), log.join().expect("read"))
    }
}

#[test]
fn usage_errors_exit_with_64() {
    for arguments in
        [&["--nonsense"][..], &["--web.listen-address=x"], &["--config.check"], &["--log.level=loud"]]
    {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(64), "{arguments:?}");
        assert!(stderr(&output).starts_with("error: "), "{arguments:?}: {}", stderr(&output));
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn help_and_version_exit_with_0() {
    for flag in ["--help", "--version"] {
        let output = run(&[flag]);
        assert_eq!(output.status.code(), Some(0));
        assert!(output.stderr.is_empty());
        assert!(!output.stdout.is_empty());
    }
}

#[test]
fn a_check_that_makes_no_sense_exits_with_64_and_one_that_can_tell_nothing_with_2() {
    let nothing = ["--collector.disable-defaults", "check"];
    let output = run(&nothing);
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(said, "nothing is expected of this host that could be looked at here\n");
    let dir = tempfile::tempdir().expect("temporary directory");
    let file = dir.path().join("before.json");
    std::fs::write(&file, "{}").expect("written");
    let baseline = format!("--baseline={}", file.display());
    for arguments in [
        &["check", "--baseline=/nonexistent/before.json"][..],
        &["check", &baseline],
        &["check", "--format=yaml"],
        &["check", "--config.file=/nonexistent/exporter.yml"],
    ] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(64), "{arguments:?}: {}", stderr(&output));
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{arguments:?}");
    }
}

#[test]
fn facts_are_root_s_and_of_a_configuration_that_is_root_s() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (config, facts) = (dir.path().join("exporter.yml"), dir.path().join("facts.json"));
    std::fs::write(&config, "systemd: {}\n").expect("written");
    let leave = || {
        run(&[
            "facts",
            &format!("--config.file={}", config.display()),
            &format!("--output={}", facts.display()),
        ])
    };
    let output = leave();
    if !rustix::process::geteuid().is_root() {
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(stderr(&output), "evenkeel-exporter: this takes root: start evenkeel-facts.service\n");
        return;
    }
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let text = std::fs::read_to_string(&facts).expect("left there");
    assert!(text.starts_with("{\"version\":1,\"taken_seconds\":"), "{text}");
    std::fs::set_permissions(&config, std::os::unix::fs::PermissionsExt::from_mode(0o666)).expect("set");
    let output = leave();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("others than root may write "), "{}", stderr(&output));
}

#[test]
fn a_failed_start_exits_with_1_and_says_why() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let address = taken.local_addr().expect("an address");
    let output = run(&[&format!("--web.listen-address={address}"), "--log.level=error"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        stderr(&output),
        format!(
            "evenkeel-exporter: cannot listen on {address}: Address already in use (os error 98): \
             another program listens there, choose another address\n"
        )
    );
}

#[test]
fn the_shipped_examples_are_good_configurations() {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/exporter.yml");
    let web = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/web.yml");
    let output =
        run(&["--config.check", &format!("--config.file={example}"), &format!("--web.config.file={web}")]);
    assert_eq!(stderr(&output), "");
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "the configuration is good\n");
}

/// What stands in the file, and what is said about it after the file's name.
const REFUSED: &[(&str, &str)] = &[
    (
        "sytemd: {}\n",
        ":1:1: unknown key `sytemd`: expected one of `collectors`, `systemd`, `snapshot`, `docker`, `filesystem`, `redis`, `resolve`, `environment`, `expectations`; did you mean `systemd`?\n  \
         1 | sytemd: {}\n    | ^",
    ),
    (
        "systemd: {}\nsystemd: {}\n",
        ":2:1: duplicate key `systemd`: each key may stand only once, remove one of the two\n  \
         2 | systemd: {}\n    | ^",
    ),
    (
        "systemd:\n  watched: []\n",
        ":2:3: unknown key `systemd.watched`: expected one of `watch`, `not_found_ok`, `check_every`; did you mean `watch`?\n  \
         2 |   watched: []\n    |   ^",
    ),
    (
        "systemd: {watch: nginx.service}\n",
        ":1:18: `systemd.watch`: expected a list: [a, b], or one item a line after `- `\n  \
         1 | systemd: {watch: nginx.service}\n    |                  ^",
    ),
    (
        "systemd:\n  watch: [nginx]\n",
        ":2:11: `systemd.watch[0]`: `nginx` is no unit name or glob: write name.service, name-*.service or name-*\n  \
         2 |   watch: [nginx]\n    |           ^",
    ),
    (
        "docker:\n  disk_usage:\n    images: often\n",
        ":3:13: `docker.disk_usage.images`: `often` is not a duration: write 30s, 15m, 1h30m, 7d or 100ms\n  \
         3 |     images: often\n    |             ^",
    ),
    (
        "docker: {disk_usage: {networks: 1h}}\n",
        ":1:23: unknown key `docker.disk_usage.networks`: expected one of `images`, `build_cache`, `volumes`, \
         `containers`\n  1 | docker: {disk_usage: {networks: 1h}}\n    |                       ^",
    ),
    (
        "filesystem: {mount_points_exclude: \"^/(mnt\"}\n",
        ":1:36: `filesystem.mount_points_exclude`: `^/(mnt` is no regular expression (unclosed group): \
         write one such as ^/(mnt|media)($|/)\n  \
         1 | filesystem: {mount_points_exclude: \"^/(mnt\"}\n    |                                    ^",
    ),
    (
        "filesystem: {fs_type_exclude: nfs}\n",
        ":1:14: unknown key `filesystem.fs_type_exclude`: expected one of `mount_points_exclude`, \
         `mount_points_include`, `fs_types_exclude`, `fs_types_include`, `mount_timeout`; \
         did you mean `fs_types_exclude`?\n  \
         1 | filesystem: {fs_type_exclude: nfs}\n    |              ^",
    ),
    (
        "filesystem:\n  mount_points_include: ^/\n  mount_points_exclude: ^/mnt\n",
        ":2:25: `filesystem`: `mount_points_include` and `mount_points_exclude` exclude each other: keep one",
    ),
    (
        "filesystem: {mount_timeout: 0s}\n",
        ":1:29: `filesystem.mount_timeout`: `0s` is no time to wait: write 5s\n  \
         1 | filesystem: {mount_timeout: 0s}\n    |                             ^",
    ),
    (
        "snapshot: {units: []}\n",
        ": `snapshot.units` is empty: name the units whose files are compared, as in [\"shop-*.service\"]",
    ),
    (
        "snapshot: {units: [a.service], dir: here}\n",
        ": `snapshot.dir` must begin with /: it is the remediator's folder, as /var/lib/evenkeel/snapshots",
    ),
    (
        "redis: [{name: a}]\n",
        ":1:10: missing key `redis[0].url`: it is required\n  1 | redis: [{name: a}]\n    |          ^",
    ),
    (
        "redis:\n  - {name: a, url: \"redis://127.0.0.1\"}\n  - {name: a, url: \"redis://127.0.0.2\"}\n",
        ":3:12: `redis`: the name `a` stands twice: give every Redis a name of its own",
    ),
    (
        "redis: [{name: \"\", url: \"redis://127.0.0.1\"}]\n",
        ":1:16: `redis`: a name has 1 to 64 bytes on one line: write a word",
    ),
    (
        "redis: [{name: a, url: \"http://127.0.0.1\"}]\n",
        ":1:24: `redis`: the url of `a`: not a Redis URL: write redis://HOST:PORT, rediss://HOST:PORT or unix:///PATH",
    ),
    (
        "redis: [{name: a, url: \"redis://:hunter2@127.0.0.1\"}]\n",
        ":1:24: `redis`: the url of `a`: the password does not belong into the URL: put it into a file",
    ),
    (
        "redis: [{name: a, url: \"redis://127.0.0.1\", password_file: /nonexistent/redis.pass}]\n",
        ":1:60: `redis`: the password of `a`: /nonexistent/redis.pass: cannot read the file: \
         No such file or directory (os error 2)",
    ),
    (
        "docker: {labels: [com.a, com-a]}\n",
        ":1:26: `docker.labels`: `com.a` and `com-a` would both become `container_label_com_a`: keep one of them",
    ),
    (
        "resolve: [{host: \"a b\"}]\n",
        ":1:18: `resolve[0].host`: `a b` is no host name: write redis, redis.example.com or quantum_redis\n  \
         1 | resolve: [{host: \"a b\"}]\n    |                  ^",
    ),
    (
        "resolve:\n  - {host: a}\n  - {host: a, expect: [127.0.0.1]}\n",
        ":3:12: `resolve`: the name `a` stands twice: list all its addresses once",
    ),
    (
        "environment: [{unit: quantum, expect: {A: b}}]\n",
        ":1:22: `environment`: `quantum` is no service: write name.service",
    ),
    (
        "environment: [{unit: a.service, expect: {}}]\n",
        ":1:41: `environment`: nothing is expected of `a.service`: write expect: {NAME: value}",
    ),
    (
        "environment: [{unit: a.service, expect: {\"A=B\": c}}]\n",
        ":1:41: `environment`: `A=B` is no name of a variable: write letters, digits and _",
    ),
    (
        "environment:\n  - {unit: a.service, expect: {A: b}}\n  - {unit: a.service, expect: {B: c}}\n",
        ":3:12: `environment`: `a.service` stands twice: list all its variables once",
    ),
    (
        "expectations: {failed_units: none}\n",
        ":1:30: `expectations.failed_units`: `none`: write off, required or {max: 0}\n  \
         1 | expectations: {failed_units: none}\n    |                              ^",
    ),
    (
        "expectations: {running: {\"app-*.service\": {max: 1}}}\n",
        ":1:44: unknown key `expectations.running.app-*.service.max`: expected `min`\n  \
         1 | expectations: {running: {\"app-*.service\": {max: 1}}}\n    |                                            ^",
    ),
    (
        "redis: {name: a}\n",
        ":1:8: `redis`: expected a list: [a, b], or one item a line after `- `\n  \
         1 | redis: {name: a}\n    |        ^",
    ),
];

#[test]
fn bad_configurations_exit_with_64_and_name_place_key_and_cure() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let file = dir.path().join("exporter.yml");
    for (text, says) in REFUSED {
        std::fs::write(&file, text).expect("written");
        for check in [&["--config.check"][..], &[]] {
            let output =
                exporter().args(check).arg("--config.file").arg(&file).output().expect("the program starts");
            assert_eq!(output.status.code(), Some(64), "{text}");
            assert_eq!(
                stderr(&output),
                format!("evenkeel-exporter: {}{says}\n", file.display()),
                "\n--- for\n{text}"
            );
        }
    }
    let missing = dir.path().join("missing.yml");
    let output = exporter().arg("--config.file").arg(&missing).output().expect("the program starts");
    assert_eq!(output.status.code(), Some(64));
    assert!(
        stderr(&output).contains("cannot read the file: No such file or directory"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn it_serves_until_a_signal_and_exits_with_0() {
    for (signal, says) in [(Signal::TERM, "stopping on SIGTERM"), (Signal::INT, "stopping on SIGINT")] {
        let running = Running::start(&[]);
        assert!(running.get("/-/healthy").ends_with("\r\n\r\nhealthy\n"));
        let metrics = running.get("/metrics");
        assert!(metrics.contains("\nevenkeel_exporter_build_info{version=\""), "{metrics}");
        assert!(metrics.contains("\nprocess_resident_memory_bytes "), "{metrics}");
        let (code, log) = running.stop(signal);
        assert_eq!(code, Some(0), "{log}");
        assert!(log.contains(says), "{log}");
    }
}

#[test]
fn a_password_is_in_no_label_and_no_log() {
    // Servers and proxies repeat what they do not understand.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("accepted");
            let mut bytes = [0; 1024];
            let length = stream.read(&mut bytes).expect("read");
            let said = String::from_utf8_lossy(&bytes[..length]).replace("\r\n", " ");
            // The probe may have closed already.
            let _ = write!(stream, "-ERR unknown command {said}\r\n$30\r\nredis_version:1\r\nos:{said}\r\n");
        }
    });
    let dir = tempfile::tempdir().expect("temporary directory");
    let (password, file) = (dir.path().join("redis.pass"), dir.path().join("exporter.yml"));
    std::fs::write(&password, "hunter2-secret\n").expect("written");
    let (password, url) = (password.display(), format!("redis://127.0.0.1:{port}"));
    let yaml = format!("redis: [{{name: a, url: '{url}', username: u, password_file: {password}}}]\n");
    std::fs::write(&file, yaml).expect("written");
    let config = format!("--config.file={}", file.display());
    let running = Running::start(&[&config, "--collector.redis", "--log.level=trace"]);
    let metrics = running.get("/metrics");
    assert!(metrics.contains("redis_probe_failure{redis=\"a\",reason=\"auth\"} 1"), "{metrics}");
    let page = running.get("/");
    let (_, log) = running.stop(Signal::TERM);
    for text in [metrics, page, log] {
        assert!(!text.contains("hunter2"), "{text}");
    }
}

#[test]
fn the_shipped_schema_is_what_is_generated() {
    let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/exporter.schema.json");
    let output = run(&["generate", "schema"]);
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
    let shipped = std::fs::read_to_string(shipped).expect("it is shipped");
    assert!(
        output.stdout == shipped.as_bytes(),
        "packaging/exporter.schema.json is out of date: run make docs"
    );
}

#[test]
fn the_manual_and_completions_come_from_the_program_itself() {
    let page = run(&["generate", "man"]).stdout;
    let page = String::from_utf8_lossy(&page);
    assert!(page.contains(".TH evenkeel-exporter 1") && page.contains("Exit codes:"), "{page}");
    let bash = run(&["generate", "completions", "bash"]).stdout;
    assert!(String::from_utf8_lossy(&bash).contains("--web.listen-address"));
    let folder = tempfile::tempdir().expect("temporary directory");
    let dir = folder.path().join("man1");
    let output = run(&["generate", "man", "--dir", &dir.to_string_lossy()]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(dir.join("evenkeel-exporter-check.1").is_file() && dir.join("evenkeel-exporter.1").is_file());
    assert_eq!(run(&["generate", "completions", "tcsh"]).status.code(), Some(64));
}

/// Also where a file that it would read otherwise is bad.
#[test]
fn a_first_configuration_takes_none() {
    let output = run(&["generate", "config", "--config.file=/no/such.yml"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let text = String::from_utf8(output.stdout).expect("text");
    assert!(text.starts_with("# Configuration of evenkeel-exporter, written by"), "{text}");
    let dir = tempfile::tempdir().expect("temporary directory");
    let file = dir.path().join("exporter.yml");
    std::fs::write(&file, text).expect("written");
    let output = run(&["--config.check", &format!("--config.file={}", file.display())]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
}

/// Nobody has to ask for metrics to hear it.
#[test]
fn what_is_watched_and_what_is_not_is_said_once_at_the_start() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let file = dir.path().join("exporter.yml");
    std::fs::write(&file, "collectors: {host: false}\n").expect("written");
    let config = format!("--config.file={}", file.display());
    let running = Running::start(&[&config, "--collector.filesystem", "--collector.resolve"]);
    let said = |log: &str| log.matches("\"collector\":\"").count();
    let page = running.wait_for("/", |page| {
        page.contains("watched: ")
            && page.contains("not watched: `resolve` of the configuration names nothing")
    });
    assert!(page.contains("<td>filesystem</td><td>watched: "), "{page}");
    running.get("/metrics");
    let (_, log) = running.stop(Signal::TERM);
    assert_eq!(said(&log), 2, "{log}");
    let off = "systemd, snapshot, docker, docker_disk, redis, environment, journal, host, expectations";
    assert!(log.contains("not watched: switched off by flags or by the configuration"), "{log}");
    assert!(log.contains(&format!("\"collectors\":\"{off}\"")), "{log}");
}

#[test]
fn what_is_risky_is_said_at_the_start() {
    let running = Running::start(&[]);
    let (_, log) = running.stop(Signal::TERM);
    assert!(!log.contains("no authentication"), "{log}");
    assert_eq!(log.contains("running as root"), rustix::process::geteuid().is_root(), "{log}");
}

#[test]
fn the_web_configuration_is_checked_and_served() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let file = dir.path().join("web.yml");
    let flag = format!("--web.config.file={}", file.display());
    // admin:open sesame
    let hash = "$2b$04$1Y8gS3FNPMt5i4GlTSEQleQv8nZ0EzD2sLDg6rsZ3dJ0mBHjXEg9a";
    std::fs::write(&file, format!("basic_auth_users:\n  admin: {hash}\n")).expect("written");
    assert_eq!(run(&["--config.check", &flag]).status.code(), Some(0));
    let running = Running::start(&[&flag]);
    let answer = running.get("/metrics");
    assert!(answer.starts_with("HTTP/1.1 401 Unauthorized\r\n"), "{answer}");
    running.stop(Signal::TERM);

    std::fs::write(&file, "basic_auth_users:\n  admin: open sesame\n").expect("written");
    for arguments in [&["--config.check", &flag][..], &[&flag]] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(64), "{arguments:?}");
        assert_eq!(
            stderr(&output),
            format!(
                "evenkeel-exporter: {}:2:10: `basic_auth_users.admin`: this is no bcrypt hash: put the output of \
                 `htpasswd -nBC 10 admin` behind the colon, never the password itself\n",
                file.display()
            )
        );
    }
}

#[test]
fn without_a_socket_unit_there_is_no_systemd_socket() {
    let output = run(&["--web.systemd-socket"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        stderr(&output),
        "evenkeel-exporter: systemd has passed no sockets: start it by a socket unit, or leave out the systemd \
         socket option\n"
    );
}

#[test]
fn socket_files_are_served_and_removed() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("exporter.sock");
    let running = Running::start(&[&format!("--web.listen-address=unix:{}", path.display())]);
    await_socket(&path);
    let (code, log) = running.stop(Signal::TERM);
    assert_eq!(code, Some(0), "{log}");
    assert!(!path.exists());
}

/// The second listener is bound after the line that the test has read.
fn await_socket(path: &Path) {
    let begun = std::time::Instant::now();
    loop {
        if let Ok(mut stream) = std::os::unix::net::UnixStream::connect(path) {
            stream.write_all(b"GET /-/ready HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").expect("sent");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).expect("answered");
            assert!(answer.ends_with("ready\n"), "{answer}");
            return;
        }
        assert!(begun.elapsed().as_secs() < 20, "no socket appeared");
        std::thread::yield_now();
    }
}
