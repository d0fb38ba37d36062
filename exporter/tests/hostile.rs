//! Whatever the sources say, both formats stay what their documents say they are, and no secret gets out: the built
//! exporter over a bus, an engine and a Redis that say anything at all. For `EVENKEEL_FUZZ_SECONDS`, 1 when not given.

// The policy against starting programs is for the product; this starts the product.
#![allow(clippy::disallowed_types)]

#[path = "common/strict.rs"]
mod strict;

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use evenkeel_host::{
    docker::fake::{Answer, FakeDocker},
    systemd::fake::{FakeSystemd, FakeUnit},
};
use proptest::{
    collection::vec,
    prelude::{Strategy, any, prop_oneof},
    sample::select,
    test_runner::{Config, TestCaseError, TestRunner},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

/// Nothing here takes longer unless it is broken.
const PATIENCE: Duration = Duration::from_secs(30);

/// Stands wherever a source may keep a secret.
const SECRET: &str = "hunter2";

/// Tried together; each starts an exporter.
const BATCH: u32 = 4;

/// Text that tries to be something else, or any text.
fn text() -> impl Strategy<Value = String> {
    let nasty = select(
        &[
            "",
            " ",
            "a\"} 1\nforged 2\n\\",
            "\\",
            "\\n",
            "\"",
            "{}",
            "# HELP forged x",
            "# EOF\n",
            "\r\n",
            "\u{0}x",
            "\u{2028}",
            "\u{202e}gnp",
            "\u{feff}",
            "é",
            "🦀",
            "%s",
            "$(id)",
            "<script>",
            "a,b=\"c\"",
            "NaN",
            "-1",
            "dev-disk\\x2dby\\x2dlabel",
            "../../x",
        ][..],
    );
    prop_oneof![
        3 => nasty.prop_map(str::to_owned),
        2 => any::<String>(),
        1 => (select(&["x", "é", "\\", "\""][..]), 1..400usize).prop_map(|(text, times)| text.repeat(times)),
    ]
}

/// A word that a source would use, or not.
fn word(known: &'static [&'static str]) -> impl Strategy<Value = String> {
    prop_oneof![3 => select(known).prop_map(str::to_owned), 1 => text()]
}

#[derive(Clone, Debug)]
struct Unit {
    name: String,
    states: [String; 3],
    result: String,
    number: u64,
}

fn unit() -> impl Strategy<Value = Unit> {
    let states = (
        word(&["loaded", "not-found", "bad-setting", "masked"]),
        word(&["active", "failed", "activating"]),
        word(&["running", "auto-restart", "dead"]),
    );
    let kind = select(&[".service", ".timer", ".socket", ".mount", ""][..]);
    (text(), kind, states, word(&["success", "signal"]), any::<u64>()).prop_map(
        |(name, kind, (load, active, sub), result, number)| Unit {
            // The bus carries no NUL.
            name: format!("{name}{kind}").replace('\0', ""),
            states: [load, active, sub].map(|word| word.replace('\0', "")),
            result: result.replace('\0', ""),
            number,
        },
    )
}

#[derive(Clone, Debug)]
struct Container {
    name: String,
    state: String,
    status: String,
    health: String,
    label: String,
    output: Vec<u8>,
    number: i64,
}

fn container() -> impl Strategy<Value = Container> {
    let words = (
        word(&["running", "exited", "paused", "dead"]),
        word(&["Up 2 hours (unhealthy)", "Exited (137) 3 weeks ago", "Up Less than a second"]),
        word(&["healthy", "unhealthy", "starting"]),
    );
    (text(), words, text(), vec(any::<u8>(), 0..4096), any::<i64>()).prop_map(
        |(name, (state, status, health), label, output, number)| Container {
            name,
            state,
            status,
            health,
            label,
            output,
            number,
        },
    )
}

/// What a Redis answers to everything.
fn reply() -> impl Strategy<Value = Vec<u8>> {
    let info = format!(
        "# Server\r\nredis_version:7\"}} 1\nx\r\nused_memory:-1\r\nconfig_file:{SECRET}\r\nmaxclients:1e999\r\n"
    );
    let bulk = format!("${}\r\n{info}\r\n", info.len()).into_bytes();
    prop_oneof![
        2 => select(vec![bulk, b"+PONG\r\n".to_vec(), format!("-ERR {SECRET}\r\n").into_bytes(), b"*1000000000\r\n".to_vec(), b"$-1\r\n".to_vec()]),
        1 => vec(any::<u8>(), 0..512),
    ]
}

#[test]
fn whatever_the_sources_say_the_answer_is_well_formed_and_tells_no_secret() {
    let seconds = std::env::var("EVENKEEL_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let end = Instant::now() + Duration::from_secs(seconds);
    let input = (vec(unit(), 0..6), vec(container(), 0..6), reply());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime");
    while Instant::now() < end {
        let rules =
            Config { cases: BATCH, failure_persistence: None, max_shrink_time: 60_000, ..Config::default() };
        TestRunner::new(rules)
            .run(&input, |(units, containers, reply)| runtime.block_on(one(units, containers, reply)))
            .unwrap_or_else(|error| panic!("{error}"));
    }
}

/// One exporter, asked once for each format.
async fn one(units: Vec<Unit>, containers: Vec<Container>, reply: Vec<u8>) -> Result<(), TestCaseError> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let systemd = FakeSystemd::start(folder.path(), units.iter().map(fake_unit).collect());
    let socket = folder.path().join("docker.sock");
    let _docker = FakeDocker::start(&socket, engine(&containers));
    let redis = redis(reply).await;
    let exporter = Running::start(folder.path(), &systemd.address(), &socket, &redis);

    let mut plain = exporter.metrics("text/plain").await;
    // On a busy machine a source may be late; that it is heard at all is judged below.
    for _ in 0..20 {
        if ["systemd_up 1", "docker_up 1"].iter().all(|up| plain.contains(up)) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        plain = exporter.metrics("text/plain").await;
    }
    let classic = strict::classic(&plain).map_err(TestCaseError::fail)?;
    let modern = exporter.metrics("application/openmetrics-text").await;
    let modern = strict::openmetrics(&modern).map_err(TestCaseError::fail)?;
    let names = |series: &[strict::Series]| {
        series
            .iter()
            .filter(|(name, ..)| name.starts_with("docker_container_state"))
            .cloned()
            .collect::<Vec<_>>()
    };
    if names(&classic) != names(&modern) {
        return Err(TestCaseError::fail("the formats disagree"));
    }
    let page = exporter.get("/", "text/html").await;
    for text in [&plain, &page] {
        if text.contains(SECRET) {
            return Err(TestCaseError::fail(format!("a secret got out:\n{text}")));
        }
    }
    // The sources were really read, and their names are still whole.
    let published = classic.iter().filter_map(|(_, labels, _)| labels.get("name"));
    let foreign = units.iter().map(|unit| &unit.name).chain(containers.iter().map(|one| &one.name));
    let known: Vec<&String> = foreign.collect();
    for name in published {
        let is_known = known.iter().any(|known| *known == name || name.starts_with("id-"));
        if !is_known && !name.is_empty() {
            return Err(TestCaseError::fail(format!("nobody has said {name:?}")));
        }
    }
    let up = |source: &str| classic.iter().any(|(name, _, value)| name == source && value == "1.0");
    if !up("systemd_up") || !up("docker_up") {
        return Err(TestCaseError::fail(format!("a source is down:\n{plain}")));
    }
    Ok(())
}

fn fake_unit(unit: &Unit) -> FakeUnit {
    let [load, active, sub] = &unit.states;
    FakeUnit::new(&unit.name)
        .states(load, active, sub)
        .with("Result", unit.result.clone())
        .with("ActiveEnterTimestamp", unit.number)
        .with("Description", SECRET)
        .with("Environment", vec![format!("PASSWORD={SECRET}")])
}

/// Ids are what a name cannot be.
fn engine(containers: &[Container]) -> impl Fn(&str) -> Answer + Send + Sync + use<> {
    let entry = |(number, one): (usize, &Container)| {
        json!({"Id": format!("id-{number}"), "Names": [format!("/{}", one.name)], "State": one.state,
            "Status": one.status, "Image": one.label, "Labels": {"told": one.label, "secret": SECRET}})
    };
    let list = Value::Array(containers.iter().enumerate().map(entry).collect());
    let inspect = |(number, one): (usize, &Container)| {
        let output = format!("{SECRET} {}", String::from_utf8_lossy(&one.output));
        let state = json!({"Status": one.state, "ExitCode": one.number, "StartedAt": one.label, "OOMKilled": true,
            "Health": {"Status": one.health, "FailingStreak": one.number,
                "Log": [{"ExitCode": one.number, "Output": output, "End": one.status}]}});
        let config = json!({"Env": [format!("PASSWORD={SECRET}")], "Image": one.label,
            "Labels": {"told": one.label, "secret": SECRET}, "Healthcheck": {"Test": ["CMD", SECRET]}});
        let answer = json!({"Id": format!("id-{number}"), "Name": format!("/{}", one.name),
            "RestartCount": one.number, "Created": one.label, "State": state, "Config": config,
            "HostConfig": {"RestartPolicy": {"Name": one.label}}});
        (format!("/containers/id-{number}/json"), answer)
    };
    let inspected: BTreeMap<String, Value> = containers.iter().enumerate().map(inspect).collect();
    let usage = json!({"LayersSize": containers.first().map_or(0, |one| one.number), "Images": [], "Containers": [],
        "Volumes": [], "BuildCache": []});
    move |path| match path {
        "/_ping" => Answer::Says(200, "OK".to_owned()),
        "/version" => Answer::json(json!({"Version": "20\"} 1\n", "ApiVersion": "1.41"})),
        "/info" => Answer::json(json!({"Driver": "overlay2\\", "CgroupVersion": "2\n"})),
        path if path.starts_with("/containers/json") => Answer::json(&list),
        path if path.starts_with("/system/df") => Answer::json(&usage),
        path if path.starts_with("/events") => Answer::Nothing,
        path => match inspected.get(path) {
            Some(answer) => Answer::json(answer),
            None => Answer::Says(404, json!({"message": SECRET}).to_string()),
        },
    }
}

/// Listens, and answers each read with the same.
async fn redis(reply: Vec<u8>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("an address").to_string();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let reply = reply.clone();
            tokio::spawn(async move {
                let mut asked = [0; 4096];
                while stream.read(&mut asked).await.is_ok_and(|bytes| bytes > 0) {
                    if stream.write_all(&reply).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

/// The exporter, ended with the test.
struct Running {
    child: Mutex<Child>,
    address: String,
    // Its end is the end of the program's log.
    _log: Arc<std::thread::JoinHandle<()>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut child = self.child.lock().expect("no panic");
        // It may have ended by itself, which the test has seen already.
        let _ = child.kill();
        let _ = child.wait();
    }
}

impl Running {
    fn start(folder: &Path, bus: &str, docker: &Path, redis: &str) -> Self {
        let config = folder.join("exporter.yml");
        let password = folder.join("redis.pass");
        std::fs::write(&password, SECRET).expect("written");
        let lines = format!(
            "docker: {{labels: [told]}}\nsystemd: {{watch: ['*']}}\nredis: [{{name: r, url: \"redis://{redis}\", password_file: {}}}]\n",
            password.display()
        );
        std::fs::write(&config, lines).expect("written");
        let mut child = command()
            .args(["--web.listen-address=127.0.0.1:0", "--log.format=json", "--no-collector.filesystem"])
            .arg(format!("--config.file={}", config.display()))
            .env("DBUS_SYSTEM_BUS_ADDRESS", bus)
            .env("DOCKER_HOST", format!("unix://{}", docker.display()))
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let mut log = BufReader::new(child.stderr.take().expect("piped"));
        let mut first = String::new();
        log.read_line(&mut first).expect("the first line");
        let address = first.split("\"address\":\"").nth(1).and_then(|rest| rest.split('"').next());
        let address = address.unwrap_or_else(|| panic!("the address in {first}")).to_owned();
        let rest = std::thread::spawn(move || {
            // What it says is not looked at here; it must not wait for a full pipe.
            let _ = std::io::copy(&mut log, &mut std::io::sink());
        });
        Self { child: Mutex::new(child), address, _log: Arc::new(rest) }
    }

    async fn metrics(&self, accept: &str) -> String {
        self.get("/metrics", accept).await
    }

    async fn get(&self, path: &str, accept: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).await.expect("connected");
        let request = format!(
            "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\naccept: {accept}\r\nx-prometheus-scrape-timeout-seconds: 2\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = Vec::new();
        timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("in time").expect("answered");
        let answer = String::from_utf8(answer).expect("UTF-8");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        body.to_owned()
    }
}

fn command() -> Command {
    Command::new(env!("CARGO_BIN_EXE_evenkeel-exporter"))
}

#[test]
fn the_readers_take_nothing_that_the_formats_forbid() {
    let good =
        "# HELP a_total A \\\\ b\\n.\n# TYPE a_total counter\na_total{x=\"\\\"\\\\\\n\"} 1.0\na_total 2\n";
    assert_eq!(strict::classic(good).map(|series| series.len()), Ok(2));
    let modern = good.replace("HELP a_total", "HELP a").replace("TYPE a_total", "TYPE a") + "# EOF\n";
    assert_eq!(strict::openmetrics(&modern).map(|series| series.len()), Ok(2));
    let head = "# HELP a A.\n# TYPE a gauge\n";
    for bad in [
        "a 1\n",
        "# HELP a A.\na 1\n",
        "# TYPE a gauge\na 1\n",
        "# HELP a A.\n# TYPE b gauge\n",
        "# HELP a A.\n# TYPE a histogram\n",
        &format!("{head}b 1\n"),
        &format!("{head}a 1\na 1\n"),
        &format!("{head}a{{x=\"1\"}} 1\na{{x=\"1\"}} 2\n"),
        &format!("{head}{head}"),
        &format!("{head}a one\n"),
        &format!("{head}a 1 2\n"),
        &format!("{head}a  1\n"),
        &format!("{head}a\n"),
        &format!("{head}a 1"),
        &format!("{head}\n"),
        &format!("{head}a{{x=\"\\t\"}} 1\n"),
        &format!("{head}a{{x=\"1}} 1\n"),
        &format!("{head}a{{x=\"1\" y=\"2\"}} 1\n"),
        &format!("{head}a{{x=\"1\",x=\"2\"}} 1\n"),
        &format!("{head}a{{x-y=\"1\"}} 1\n"),
        &format!("{head}a{{x=\"1\"}}1\n"),
        "# HELP a \\x.\n# TYPE a gauge\n",
        "# HELP 1a A.\n# TYPE 1a gauge\n",
    ] {
        assert!(strict::classic(bad).is_err(), "{bad:?}");
        assert!(strict::openmetrics(&format!("{bad}# EOF\n")).is_err(), "{bad:?}");
    }
    for bad in ["", "# HELP a A.\n# TYPE a counter\na 1\n# EOF\n", "# EOF\n# EOF\n", "# EOF"] {
        assert!(strict::openmetrics(bad).is_err(), "{bad:?}");
    }
}
