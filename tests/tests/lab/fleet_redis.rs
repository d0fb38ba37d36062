//! What a member of a fleet does when its Redis is in trouble: cut off, slow, frozen, emptied, full, replaced by its
//! replica, or written to by somebody who has no business there. Behind a proxy, because the way to it is what breaks.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU16, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use evenkeel_tests::{
    binaries::built,
    exposition::Exposition,
    http, namespace,
    process::{Process, free_port},
    redis_server::RedisServer,
    tools,
    wait::wait_for,
};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

use crate::{shared, trial};

const SOON: Duration = Duration::from_secs(90);
const LIST: &str = include_str!("../../golden/metric-names.txt");
const FLEET: &str = "evenkeel_remediator_fleet_";

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("fleet_redis_in_trouble_stops_only_what_the_configuration_says", in_trouble),
        trial("fleet_entries_that_are_no_alerts_are_dropped_and_never_met_again", poisoned),
        trial("fleet_agent_killed_between_reading_and_acknowledging_does_it_once", killed_in_between),
    ]
}

/// A way to Redis that can be made slow, cut, and led elsewhere.
struct Proxy {
    port: u16,
    /// Where it leads; 0 refuses.
    target: Arc<AtomicU16>,
    delay_ms: Arc<AtomicU64>,
    /// Ends what goes through now.
    cuts: watch::Sender<u64>,
    task: JoinHandle<()>,
}

impl Proxy {
    async fn start(target: u16) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let (target, delay_ms) = (Arc::new(AtomicU16::new(target)), Arc::new(AtomicU64::new(0)));
        let (cuts, cut) = watch::channel(0);
        let (to, slow) = (target.clone(), delay_ms.clone());
        let task = tokio::spawn(async move {
            while let Ok((from, _)) = listener.accept().await {
                let (to, slow, mut cut) = (to.load(Ordering::SeqCst), slow.clone(), cut.clone());
                cut.mark_unchanged();
                tokio::spawn(async move {
                    tokio::select! {
                        _ = cut.changed() => {}
                        _ = carry(from, to, slow) => {}
                    }
                });
            }
        });
        Ok(Self { port, target, delay_ms, cuts, task })
    }

    /// What goes through now ends, and what comes later goes there.
    fn lead_to(&self, port: u16) {
        self.target.store(port, Ordering::SeqCst);
        self.cuts.send_modify(|cuts| *cuts += 1);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn carry(from: TcpStream, to: u16, delay_ms: Arc<AtomicU64>) -> Result<()> {
    ensure!(to != 0, "cut");
    let (mut here, mut there) = (from, TcpStream::connect(("127.0.0.1", to)).await?);
    let (mut asked, mut answered) = (vec![0; 65_536], vec![0; 65_536]);
    loop {
        tokio::select! {
            count = here.read(&mut asked) => {
                let count = count?;
                ensure!(count > 0, "ended");
                there.write_all(&asked[..count]).await?;
            }
            count = there.read(&mut answered) => {
                let count = count?;
                ensure!(count > 0, "ended");
                tokio::time::sleep(Duration::from_millis(delay_ms.load(Ordering::SeqCst))).await;
                here.write_all(&answered[..count]).await?;
            }
        }
    }
}

/// A remediator that is agent and gateway, on the host that several tests share.
struct Member {
    process: Process,
    port: u16,
    config: std::path::PathBuf,
}

impl Member {
    async fn start(name: &str, redis: u16, rules: &str) -> Result<Self> {
        let (dir, port) = (namespace::place("fleet-member")?, free_port()?);
        let config = dir.join("remediator.yml");
        let text = MEMBER.replace("NAME", name).replace("REDIS", &redis.to_string());
        fs::write(&config, text.replace("PORT", &port.to_string()) + rules)?;
        Ok(Self { process: serve(&config, port).await?, port, config })
    }

    /// Killed as the kernel does it.
    fn kill(&mut self) -> Result<()> {
        self.process.kill().map(drop)
    }

    /// Started once more, with what the one before has left.
    async fn again(&mut self) -> Result<()> {
        self.process = serve(&self.config, self.port).await?;
        Ok(())
    }

    /// Delivers alerts; the status of the answer, and the answer.
    async fn deliver(&self, alerts: &[Value]) -> Result<(u16, String)> {
        let body = json!({"version": "4", "alerts": alerts});
        let url = format!("http://127.0.0.1:{}/api/v1/alerts", self.port);
        let answer = http::client()?.post(url).timeout(SOON).json(&body).send().await?;
        Ok((answer.status().as_u16(), answer.text().await?))
    }

    async fn scrape(&self) -> Result<Exposition> {
        Ok(Exposition::parse(&http::get(&format!("http://127.0.0.1:{}/metrics", self.port)).await?))
    }

    async fn cli(&self, arguments: &[&str]) -> Result<String> {
        let mut command = tools::command(built("evenkeel-remediator")?);
        command.args(arguments).arg("--config.file").arg(&self.config);
        tools::run(command, Duration::from_secs(20)).await
    }

    /// Waits until the last remediation of a unit is as it should be.
    async fn last(&self, what: &str, unit: &str, is_so: impl Fn(&Value) -> bool) -> Result<Value> {
        wait_for(what, SOON, async || {
            let told = self.cli(&["history", "--json", "--limit", "1", "--target", unit]).await?;
            let last: Value = serde_json::from_str(told.lines().next().context("nothing yet")?)?;
            ensure!(is_so(&last), "{last:#}");
            Ok(last)
        })
        .await
    }

    /// How often something was counted.
    async fn counted(&self, name: &str, labels: &[(&str, &str)]) -> Result<f64> {
        Ok(self.scrape().await?.value(&format!("{FLEET}{name}"), labels).unwrap_or(0.0))
    }
}

async fn serve(config: &Path, port: u16) -> Result<Process> {
    let mut command = tools::command(built("evenkeel-remediator")?);
    command.arg("serve").arg("--role=both").arg("--config.file").arg(config);
    shared::surroundings().await?.apply(&mut command);
    let dir = config.parent().context("a file has a folder")?;
    let mut process = Process::start("member", dir, command)?;
    wait_for("a member", SOON, async || {
        process.check_alive()?;
        http::get(&format!("http://127.0.0.1:{port}/-/healthy")).await
    })
    .await?;
    Ok(process)
}

fn alert(name: &str, host: &str, unit: &str) -> Value {
    json!({"status": "firing", "labels": {"alertname": name, "host": host, "name": unit}})
}

/// A unit on the shared host that has just failed.
async fn failed(unit: &str) -> Result<()> {
    let host = shared::host().await?;
    host.install_unit(unit, "[Service]\nExecStart=/bin/sleep 600\n").await?;
    host.systemctl(&["start", unit]).await?;
    host.systemctl(&["kill", "--signal=KILL", unit]).await.map(drop)
}

async fn in_trouble() -> Result<()> {
    let master = RedisServer::start().await?;
    let replica = RedisServer::start().await?;
    replica.ask(&format!("REPLICAOF 127.0.0.1 {}", master.port())).await?;
    let proxy = Proxy::start(master.port()).await?;
    let member = Member::start("lab", proxy.port, RULES).await?;
    let repaired = |record: &Value| record["acted"] == true && record["outcome"] == "succeeded";
    let lost = |record: &Value| record["reason"] == "fleet_lost" && record["acted"] != true;

    // All is well, but for a memory that is younger than the longest window.
    failed("fleet-well.service").await?;
    let answer = member.deliver(&[alert("Restart", "lab", "fleet-well.service")]).await?;
    ensure!(answer.0 == 200 && answer.1.contains("\"accepted\":1"), "{answer:?}");
    member.last("a young memory", "fleet-well.service", |record| record["reason"] == "fleet_limited").await?;
    member.cli(&["fleet", "trust-memory"]).await?;
    member.deliver(&[alert("Restart", "lab", "fleet-well.service")]).await?;
    member.last("a repair", "fleet-well.service", repaired).await?;
    let names = listed();
    wait_for("every listed metric", SOON, async || {
        let scrape = member.scrape().await?;
        let told: BTreeSet<&str> = scrape.samples().map(|sample| sample.name.as_str()).collect();
        let missing: Vec<&String> = names.iter().filter(|name| !told.contains(name.as_str())).collect();
        ensure!(missing.is_empty(), "not published: {missing:?}");
        Ok(())
    })
    .await?;
    crate::metrics::promtool(&format!("http://127.0.0.1:{}", member.port)).await?;
    let page = http::get(&format!("http://127.0.0.1:{}/", member.port)).await?;
    ensure!(page.contains("<h2>Fleet</h2>") && page.contains("a gateway and one of the hosts"), "{page}");

    // Slow, and still in time.
    proxy.delay_ms.store(300, Ordering::SeqCst);
    failed("fleet-slow.service").await?;
    member.deliver(&[alert("Restart", "lab", "fleet-slow.service")]).await?;
    member.last("a repair over a slow way", "fleet-slow.service", repaired).await?;
    // Too slow is lost: a restart goes on by itself, what the configuration denies waits.
    proxy.delay_ms.store(10_000, Ordering::SeqCst);
    failed("fleet-late.service").await?;
    failed("fleet-denied.service").await?;
    let both = [alert("Restart", "lab", "fleet-late.service"), alert("Reset", "lab", "fleet-denied.service")];
    let answer = member.deliver(&both).await?;
    ensure!(answer.0 == 200, "what is for its own host waits for no Redis: {answer:?}");
    member.last("a repair by itself", "fleet-late.service", repaired).await?;
    member.last("what is denied to wait", "fleet-denied.service", lost).await?;
    // What is for others comes again; its own part of the same delivery is kept.
    let answer = member.deliver(&[alert("Restart", "elsewhere", "x.service")]).await?;
    ensure!(answer.0 == 503 && answer.1.contains("does not answer in time: no answer"), "{answer:?}");
    ensure!(member.counted("faults_total", &[("reason", "timeout")]).await? > 0.0, "no time-out was counted");
    proxy.delay_ms.store(0, Ordering::SeqCst);
    member.last("what was denied, when it is back", "fleet-denied.service", repaired).await?;

    // Cut, and frozen behind a way that is open.
    proxy.lead_to(0);
    wait_for("it to be noticed", SOON, async || {
        ensure!(member.counted("up", &[]).await? == 0.0, "up");
        Ok(())
    })
    .await?;
    let answer = member.deliver(&[alert("Restart", "elsewhere", "x.service")]).await?;
    ensure!(answer.0 == 503 && answer.1.contains("cannot be reached"), "{answer:?}");
    proxy.lead_to(master.port());
    let frost = master.freeze()?;
    failed("fleet-frozen.service").await?;
    member.deliver(&[alert("Restart", "lab", "fleet-frozen.service")]).await?;
    member.last("a repair while it is frozen", "fleet-frozen.service", repaired).await?;
    drop(frost);

    // Full: nothing more is written to it.
    wait_for("it to answer again", SOON, async || {
        ensure!(member.counted("up", &[]).await? == 1.0, "down");
        Ok(())
    })
    .await?;
    master.ask("CONFIG SET maxmemory 1").await?;
    let answer = member.deliver(&[alert("Restart", "elsewhere", "x.service")]).await?;
    ensure!(answer.0 == 503 && answer.1.contains("raise its maxmemory"), "{answer:?}");
    master.ask("CONFIG SET maxmemory 0").await?;

    // The pause that was seen holds, whatever becomes of Redis.
    member.cli(&["pause", "--fleet", "--reason", "moving Redis"]).await?;
    wait_for("the pause to be heard of", SOON, async || {
        ensure!(member.counted("paused", &[]).await? == 1.0, "not heard of");
        Ok(())
    })
    .await?;
    // A replica takes its place by hand. It is behind by nothing here, and remembers starts and pause.
    replica.ask("REPLICAOF NO ONE").await?;
    proxy.lead_to(replica.port());
    failed("fleet-paused.service").await?;
    member.deliver(&[alert("Restart", "lab", "fleet-paused.service")]).await?;
    member
        .last("the pause to hold", "fleet-paused.service", |record| record["reason"] == "fleet_paused")
        .await?;
    replica.ask("FLUSHALL").await?;
    wait_for("it to have forgotten", SOON, async || {
        // Until then it is trusted to remember everything.
        let age = member.counted("memory_age_seconds", &[]).await?;
        ensure!(age < 1e6, "{age}");
        Ok(())
    })
    .await?;
    ensure!(member.counted("paused", &[]).await? == 1.0, "a pause was lost with Redis's memory");
    member.cli(&["resume", "--fleet"]).await?;
    // No fresh budget comes of it either.
    let young = |record: &Value| record["reason"] == "fleet_limited" && record["acted"] != true;
    member.last("no fresh budget", "fleet-paused.service", young).await?;
    member.cli(&["fleet", "trust-memory"]).await?;
    member.deliver(&[alert("Restart", "lab", "fleet-paused.service")]).await?;
    member.last("a repair in the end", "fleet-paused.service", repaired).await?;
    ensure!(member.process.log().contains("the fleet is lost"), "{}", member.process.log());
    Ok(())
}

/// The metrics of a fleet that are on the list.
fn listed() -> BTreeSet<String> {
    let names = LIST.lines().filter(|line| line.starts_with(FLEET));
    names.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

async fn poisoned() -> Result<()> {
    let server = RedisServer::start_with(&["--save", "", "--maxmemory-policy", "allkeys-lru"]).await?;
    let mut redis = redis::Client::open(server.url())?.get_multiplexed_async_connection().await?;
    redis.set_response_timeout(SOON);
    let member = Member::start("poisoned", server.port(), RULES).await?;
    let stream = "{evenkeel}:alerts:poisoned";
    let mut add = async |field: &str, value: &[u8]| -> Result<()> {
        let mut add = redis::cmd("XADD");
        add.arg(stream).arg("*").arg(field).arg(value);
        Ok(add.query_async::<()>(&mut redis).await?)
    };
    let whole =
        json!({"status": "firing", "labels": {"alertname": "Restart", "host": "poisoned", "name": "x"}});
    let whole = whole.to_string();
    let bad: [(&str, &[u8]); 8] = [
        ("alert", b"garbage"),
        ("alert", b""),
        ("alert", &[0xff, 0xfe, 0x00]),
        ("alert", b"[[[[[[[["),
        ("alert", &whole.as_bytes()[..40]),
        ("alert", b"{\"status\":\"firing\"}"),
        ("other", whole.as_bytes()),
        ("alert", &vec![b'x'; 300 << 10]),
    ];
    for (field, value) in bad {
        add(field, value).await?;
    }
    // Larger than anything that is read at once: it is dropped unread.
    add("alert", &vec![b'x'; 24 << 20]).await?;
    // For another host, and for nobody: counted as what they are.
    add("alert", alert("Restart", "elsewhere", "x").to_string().as_bytes()).await?;
    add("alert", json!({"status": "firing", "labels": {}}).to_string().as_bytes()).await?;
    failed("fleet-good.service").await?;
    add("alert", alert("Restart", "poisoned", "fleet-good.service").to_string().as_bytes()).await?;

    member.cli(&["fleet", "trust-memory"]).await?;
    let repaired = |record: &Value| record["outcome"] == "succeeded";
    member.deliver(&[alert("Restart", "poisoned", "fleet-good.service")]).await?;
    member.last("the good one behind all of them", "fleet-good.service", repaired).await?;
    wait_for("all to be counted and gone", SOON, async || {
        let (poisoned, taken) = (
            member.counted("entries_total", &[("result", "poisoned")]).await?,
            member.counted("entries_total", &[("result", "taken")]).await?,
        );
        ensure!((poisoned, taken) == (9.0, 3.0), "{poisoned} poisoned, {taken} taken");
        let left = server.ask(&format!("XLEN {stream}")).await?;
        ensure!(left == ":0", "{left} are left");
        Ok(())
    })
    .await?;
    ensure!(member.counted("faults_total", &[("reason", "too_large")]).await? >= 1.0, "the largest was read");
    let scrape = member.scrape().await?;
    let ignored = scrape.value("evenkeel_remediator_alerts_ignored_total", &[("reason", "other_host")]);
    ensure!(ignored == Some(2.0), "{ignored:?}");
    // A Redis that throws keys away is said.
    ensure!(member.counted("redis_evicts", &[]).await? == 1.0, "its policy was not noticed");
    ensure!(member.process.log().contains("set maxmemory-policy noeviction"), "{}", member.process.log());

    // A name that is none reaches no key.
    for host in ["a*b", "{evenkeel}:fleet:epoch", "x\ny", "../x", &"y".repeat(300)] {
        let (status, answer) = member.deliver(&[alert("Restart", host, "x.service")]).await?;
        ensure!(status == 200 && answer.contains("\"ignored\":1"), "{host:?}: {status} {answer}");
    }
    // Somebody's keys of another type, and everything forbidden: said, counted, nothing done, and over when it is.
    server.ask("DEL {evenkeel}:fleet:names").await?;
    server.ask("SET {evenkeel}:fleet:names x").await?;
    let (status, answer) = member.deliver(&[alert("Restart", "elsewhere", "x.service")]).await?;
    ensure!(status == 503 && answer.contains("answered with an error"), "{status} {answer}");
    server.ask("DEL {evenkeel}:fleet:names").await?;
    server.ask("ACL SETUSER default -@all +acl +ping").await?;
    let (status, answer) = member.deliver(&[alert("Restart", "elsewhere", "x.service")]).await?;
    ensure!(status == 503 && answer.contains("forbids it"), "{status} {answer}");
    server.ask("ACL SETUSER default +@all").await?;
    wait_for("the member to be a member again", SOON, async || {
        ensure!(member.counted("up", &[]).await? == 1.0, "down");
        let (status, answer) = member.deliver(&[alert("Restart", "elsewhere", "x.service")]).await?;
        ensure!(status == 200 && answer.contains("\"unclaimed\":1"), "{status} {answer}");
        Ok(())
    })
    .await
}

/// Killed when Redis has given it an entry, before it has it on its disk; and when it has done it, before Redis knows.
async fn killed_in_between() -> Result<()> {
    let server = RedisServer::start().await?;
    let proxy = Proxy::start(server.port()).await?;
    let mut member = Member::start("killed", proxy.port, RULES).await?;
    let mut redis = redis::Client::open(server.url())?.get_multiplexed_async_connection().await?;
    redis.set_response_timeout(SOON);
    let stream = "{evenkeel}:alerts:killed";
    let add = async |unit: &str| -> Result<()> {
        let mut add = redis::cmd("XADD");
        add.arg(stream).arg("*").arg("alert").arg(alert("Restart", "killed", unit).to_string());
        Ok(add.query_async::<()>(&mut redis.clone()).await?)
    };
    // How many are read and not acknowledged, and how many are there.
    let stands = async |what: &str, pending: u64, there: u64| -> Result<()> {
        wait_for(what, SOON, async || {
            let mut ask = redis::pipe();
            ask.cmd("XPENDING").arg(stream).arg("agent").cmd("XLEN").arg(stream);
            let ((read, ..), length): ((u64, redis::Value, redis::Value, redis::Value), u64) =
                ask.query_async(&mut redis.clone()).await?;
            ensure!((read, length) == (pending, there), "{read} are read, {length} are there");
            Ok(())
        })
        .await
    };
    let repaired = |record: &Value| record["acted"] == true && record["outcome"] == "succeeded";
    member.cli(&["fleet", "trust-memory"]).await?;
    for unit in ["fleet-first.service", "fleet-read.service", "fleet-done.service"] {
        failed(unit).await?;
    }
    wait_for("it to take alerts", SOON, async || {
        ensure!(member.process.log().contains("taking alerts by way of Redis"), "{}", member.process.log());
        Ok(())
    })
    .await?;
    add("fleet-first.service").await?;
    stands("the first one to be acknowledged", 0, 0).await?;

    // It waits for the next one from now on, and what Redis answers stays on the way.
    proxy.delay_ms.store(600_000, Ordering::SeqCst);
    add("fleet-read.service").await?;
    stands("the second one to be read", 1, 1).await?;
    member.kill()?;
    proxy.delay_ms.store(0, Ordering::SeqCst);
    member.again().await?;
    member.last("what was only read", "fleet-read.service", repaired).await?;
    stands("it to be acknowledged", 0, 0).await?;

    // Redis takes no acknowledgement before it dies.
    server.ask("ACL SETUSER default -xack -xdel").await?;
    add("fleet-done.service").await?;
    // It is read again and again, found well and taken for no need.
    wait_for("what cannot be acknowledged to be done", SOON, async || {
        let told = member.cli(&["history", "--json", "--target", "fleet-done.service"]).await?;
        let records = told.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
        ensure!(records.iter().any(repaired), "{records:#?}");
        Ok(())
    })
    .await?;
    stands("it to be left unacknowledged", 1, 1).await?;
    member.kill()?;
    server.ask("ACL SETUSER default +xack +xdel").await?;
    member.again().await?;
    stands("it to be acknowledged by the next process", 0, 0).await?;

    // What was taken twice was looked at twice, and done once.
    wait_for("everything to be over", SOON, async || {
        let told = member.cli(&["history", "--json"]).await?;
        let records = told.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
        ensure!(records.iter().all(|record| record["phase"] == "ended"), "{records:#?}");
        let acted = records.iter().filter(|record| record["acted"] == true).count();
        ensure!(acted == 3, "{acted} acted: {records:#?}");
        Ok(())
    })
    .await?;
    let host = shared::host().await?;
    for unit in ["fleet-first.service", "fleet-read.service", "fleet-done.service"] {
        let starts = host.starts(unit).await?;
        ensure!(starts == 2, "{unit} was started {starts} times: once by the test, once by the repair");
    }
    Ok(())
}

const MEMBER: &str = r#"
identity: {hosts: [NAME]}
server: {auth: none, listen: ["127.0.0.1:PORT"]}
state: {dir: state}
reconcile: {interval: 1s}
policy:
  gates: {grace: 0s, engine_grace: 0s, load: 1000, package_manager: false}
  mode: auto
  storm: {targets: 50}
  limits: {S2: [50/1h]}
fleet:
  redis: {url: "redis://127.0.0.1:REDIS"}
  heartbeat: 500ms
  lost_after: 3s
  timeout: 2s
  lease: 10s
  spread: 0s
  stop_above_unhealthy: 100%
  limits: {S2: [100/1h]}
  on_loss: {S1: deny}
"#;

const RULES: &str = r#"
rules:
  - name: restart
    match: ['alertname="Restart"']
    target: {unit: name, allow: ["fleet-*.service"]}
    limits: [50/1h]
    cooldown: 0s
    steps: [unit_restart: {reset_failed: once}]
    verify: {active_for: 1s, within: 30s}
  - name: reset
    match: ['alertname="Reset"']
    target: {unit: name, allow: ["fleet-*.service"]}
    limits: [50/1h]
    cooldown: 0s
    steps: [unit_reset_failed]
    verify: {not_failed_for: 1s, within: 30s}
"#;
