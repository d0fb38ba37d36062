//! What the exporter says of containers and of the disk they take, against what `docker inspect` and `docker system df`
//! say of the same ones, on a real engine.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use evenkeel_tests::{
    binaries::{Exporter, Surroundings},
    engine::{Engine, Options},
    exposition::Exposition,
    namespace,
    process::{free_port, send},
    wait::wait_for,
};
use libtest_mimic::Trial;
use rustix::process::Signal;
use serde_json::Value;

use crate::trial;

/// How long after a fact the exporter may say something else.
const PROMPT: Duration = Duration::from_secs(1);

/// How long a container may take to get where a command sends it.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial("exported_containers_are_what_docker_inspects", exported_containers_are_what_docker_inspects)]
}

async fn exported_containers_are_what_docker_inspects() -> Result<()> {
    let mut lab = Lab::start().await?;
    lab.lives().await?;
    lab.healthchecks().await?;
    lab.comings_and_goings().await?;
    lab.failed_starts().await?;
    lab.disk_usage().await?;
    let missed = lab.exporter.scrape().await?.value(MISSED, &[("collector", "docker")]);
    ensure!(missed == Some(0.0), "the engine announced all of it, and the exporter missed {missed:?}");
    lab.engine_restarts().await
}

const MISSED: &str = "evenkeel_collector_missed_changes_total";

/// An engine of its own, because it is restarted, and who looks at it.
struct Lab {
    engine: Engine,
    exporter: Exporter,
}

impl Lab {
    async fn start() -> Result<Self> {
        let engine = Engine::start(Options { disk_mib: 300, ..Options::default() }).await?;
        let around = Surroundings { bus: None, docker: Some(engine.host()) };
        let exporter = Exporter::start(&namespace::place("containers")?, free_port()?, None, &around).await?;
        Ok(Self { engine, exporter })
    }

    /// Starts, ends, limits and everything between.
    async fn lives(&self) -> Result<()> {
        // Process 1 of a container ignores SIGTERM: a stop would take 10 s.
        let kill = ["--stop-signal", "KILL"];
        self.engine.run(&[&["--name", "calm"], &kill[..]].concat(), &["sleep", "1000"]).await?;
        self.agrees("a start", "calm", "running").await?;
        self.docker(&["create", "--name", "made", "--network", "none", BUSYBOX, "true"]).await?;
        self.agrees("a creation", "made", "created").await?;
        self.docker(&["start", "made"]).await?;
        self.agrees("a start of a created one", "made", "exited").await?;
        self.engine.run(&["--name", "ended"], &["sh", "-c", "exit 7"]).await?;
        self.agrees("an end with an exit code", "ended", "exited").await?;

        let dies = "while ! rm /die 2>/dev/null; do sleep 0.05; done; exit 9";
        let policy = ["--name", "again", "--restart", "always"];
        self.engine.run(&[&policy, &kill[..]].concat(), &["sh", "-c", dies]).await?;
        for restarts in 1..=3 {
            self.docker(&["exec", "again", "touch", "/die"]).await?;
            self.agrees_when("a restart by its policy", "again", |it| {
                it["RestartCount"] == restarts && it["State"]["Status"] == "running"
            })
            .await?;
        }
        let pid = self.inspect("again").await?["State"]["Pid"].as_u64().context("a process")?;
        send(u32::try_from(pid)?, Signal::KILL)?;
        self.agrees_when("a kill from outside", "again", |it| {
            it["RestartCount"] == 4 && it["State"]["Status"] == "running"
        })
        .await?;
        // Sets the restart count back.
        self.docker(&["restart", "again"]).await?;
        self.agrees_when("a restart by hand", "again", |it| it["RestartCount"] == 0).await?;

        self.docker(&["pause", "calm"]).await?;
        self.agrees("a pause", "calm", "paused").await?;
        self.docker(&["unpause", "calm"]).await?;
        self.agrees("its end", "calm", "running").await?;
        self.docker(&["update", "--restart", "unless-stopped", "calm"]).await?;
        self.agrees("an update", "calm", "running").await?;
        self.docker(&["kill", "again"]).await?;
        self.agrees("a kill", "again", "exited").await?;
        self.docker(&["stop", "calm"]).await?;
        self.agrees("a stop", "calm", "exited").await?;
        self.docker(&["start", "calm"]).await?;
        self.agrees("a start after it", "calm", "running").await?;

        // More than the container may have, in a shell variable.
        let limits = ["--name", "greedy", "--memory", "16m", "--memory-swap", "16m"];
        self.engine.run(&limits, &["sh", "-c", "x=x; while :; do x=$x$x; done"]).await?;
        let what = "an end for want of memory";
        let is_killed = |it: &Value| it["State"]["OOMKilled"] == true;
        let first = self.agrees_when(what, "greedy", is_killed).await;
        if first.is_ok() {
            return first;
        }
        // An engine that hears of the end before it hears of the kernel's reason keeps only the end.
        self.docker(&["start", "greedy"]).await?;
        self.agrees_when(what, "greedy", is_killed).await
    }

    /// Verdicts and probes.
    async fn healthchecks(&self) -> Result<()> {
        let program = ["sh", "-c", "touch /well; exec sleep 1000"];
        self.engine.run_probed("flaps", "test -e /well", &program).await?;
        self.agrees_when("a first verdict", "flaps", |it| it["State"]["Health"]["Status"] == "healthy")
            .await?;
        for (change, verdict) in [("rm", "unhealthy"), ("touch", "healthy"), ("rm", "unhealthy")] {
            self.docker(&["exec", "flaps", change, "/well"]).await?;
            self.agrees_when(verdict, "flaps", |it| it["State"]["Health"]["Status"] == verdict).await?;
        }
        self.engine.run_probed("unprobed", "curl http://localhost", &["sleep", "1000"]).await?;
        self.agrees_when("a probe that cannot work", "unprobed", |it| {
            it["State"]["Health"]["Status"] == "unhealthy"
        })
        .await?;
        let labels = [("name", "unprobed"), ("reason", "command_not_found")];
        let scrape = self.exporter.scrape().await?;
        ensure!(
            scrape.value("docker_container_healthcheck_broken", &labels) == Some(1.0),
            "it is not broken"
        );
        let labels = [("name", "flaps"), ("reason", "command_not_found")];
        ensure!(scrape.value("docker_container_healthcheck_broken", &labels) == Some(0.0), "it is broken");

        // Nothing announces that one more probe has failed.
        let (streak, run) = health(&self.exporter.scrape().await?);
        let within = Duration::from_secs(25);
        wait_for("the failing streak of later probes", within, async || {
            let (later, later_run) = health(&self.exporter.scrape().await?);
            ensure!(later >= streak + 5.0 && later_run >= run + 5.0, "{streak} {run} → {later} {later_run}");
            Ok(())
        })
        .await?;
        // A verdict counts only while the container runs.
        self.docker(&["pause", "flaps"]).await?;
        self.agrees("a pause of an unhealthy one", "flaps", "paused").await
    }

    /// Names that change hands, and containers that are gone before anybody can look.
    async fn comings_and_goings(&self) -> Result<()> {
        for round in 1..=3 {
            self.docker(&["rename", "calm", "calm_old"]).await?;
            // The engine has no other network, and newer ones neither rename nor start what would be in one.
            let made = ["create", "--name", "calm", "--network", "none", "--stop-signal", "KILL"];
            self.docker(&[&made[..], &[BUSYBOX, "sleep", "1000"]].concat()).await?;
            self.docker(&["rm", "--force", "calm_old"]).await?;
            self.docker(&["start", "calm"]).await?;
            self.agrees(&format!("recreation {round}"), "calm", "running").await?;
        }
        let short = ["run", "--rm", "--network", "none", BUSYBOX, "true"];
        let several = async |count: usize| -> Result<()> {
            for _ in 0..count {
                self.docker(&short).await?;
            }
            Ok(())
        };
        let (first, second, third) = tokio::join!(several(4), several(4), several(4));
        first.and(second).and(third)?;
        self.agrees("removals right after the start", "calm", "running").await?;
        self.docker(&["rm", "--force", "made", "ended", "greedy", "unprobed"]).await?;
        self.agrees("removals", "calm", "running").await
    }

    /// The engine announces nothing when it cannot start a container: it is asked every 15 s.
    async fn failed_starts(&self) -> Result<()> {
        let made = ["create", "--name", "unstartable", "--network", "none", BUSYBOX, "/no/such/program"];
        self.docker(&made).await?;
        self.agrees("a creation", "unstartable", "created").await?;
        ensure!(self.docker(&["start", "unstartable"]).await.is_err(), "it started");
        wait_for("a failed start", Duration::from_secs(25), async || {
            let name = [("name", "unstartable")];
            let code = self.exporter.scrape().await?.value("docker_container_exit_code", &name);
            ensure!(code == Some(127.0), "{code:?}");
            Ok(())
        })
        .await?;
        self.agrees("a failed start", "unstartable", "created").await?;
        self.docker(&["rm", "unstartable"]).await.map(drop)
    }

    /// An exporter that starts asks at once.
    async fn disk_usage(&self) -> Result<()> {
        self.engine
            .build("lab/unused", &format!("FROM {BUSYBOX}\nRUN dd if=/dev/urandom of=/a bs=1M count=3\n"))
            .await?;
        let writes = ["dd", "if=/dev/urandom", "of=/data/a", "bs=1M", "count=2"];
        self.docker(
            &[&["run", "--rm", "--network", "none", "--volume", "data:/data", BUSYBOX], &writes[..]].concat(),
        )
        .await?;
        self.engine
            .run(&["--name", "written"], &["dd", "if=/dev/urandom", "of=/a", "bs=1M", "count=1"])
            .await?;
        self.agrees("an end after writing", "written", "exited").await?;
        let around = Surroundings { bus: None, docker: Some(self.engine.host()) };
        for _ in 0..10 {
            let before = self.system_df().await?;
            let exporter = Exporter::start(&namespace::place("disk")?, free_port()?, None, &around).await?;
            let said = wait_for("the disk usage", PATIENCE, async || {
                let said = disk_usage(&exporter.scrape().await?);
                ensure!(said.len() == 4, "{said:?}");
                Ok(said)
            })
            .await?;
            // A build lets go of its cache some time after it.
            if self.system_df().await? == before {
                let same = before.iter().all(|(object, [bytes, reclaimable, rest @ ..])| {
                    let [said_bytes, said_reclaimable, said_rest @ ..] = &said[object];
                    is_about(*said_bytes, *bytes)
                        && is_about(*said_reclaimable, *reclaimable)
                        && said_rest == rest
                });
                ensure!(same, "docker says {before:?}, the exporter {said:?}");
                ensure!(before.values().all(|[bytes, ..]| *bytes > 1e6), "{before:?}");
                return Ok(());
            }
        }
        bail!("the disk usage never stands still")
    }

    /// Bytes, reclaimable bytes, objects and active ones, by the exporter's names.
    async fn system_df(&self) -> Result<BTreeMap<String, [f64; 4]>> {
        let text = self.docker(&["system", "df", "--format", "{{json .}}"]).await?;
        let mut table = BTreeMap::new();
        for line in text.lines() {
            let line: BTreeMap<String, String> = serde_json::from_str(line)?;
            let object = match line["Type"].as_str() {
                "Local Volumes" => "volumes".to_owned(),
                other => other.to_lowercase().replace(' ', "_"),
            };
            let (bytes, reclaimable) = (bytes(&line["Size"])?, bytes(&line["Reclaimable"])?);
            table.insert(object, [bytes, reclaimable, line["TotalCount"].parse()?, line["Active"].parse()?]);
        }
        Ok(table)
    }

    async fn engine_restarts(&mut self) -> Result<()> {
        self.engine.stop()?;
        let scrape = self.exporter.scrape().await?;
        ensure!(scrape.value("docker_up", &[]) == Some(0.0), "a stopped engine is up");
        ensure!(scrape.all("docker_container_state", &[]).count() == 0, "states of nobody knows when");
        self.engine.start_again().await?;
        self.docker(&["start", "again"]).await?;
        self.agrees("a restart of the engine", "again", "running").await?;
        // And it is followed again.
        self.docker(&["pause", "again"]).await?;
        self.agrees("a pause after it", "again", "paused").await?;
        let lists = || self.engine.requests("GET", "/containers/json");
        wait_for("looks without a list", PATIENCE, async || {
            let before = lists();
            self.exporter.scrape().await?;
            ensure!(lists() == before, "the look asked for a list");
            Ok(())
        })
        .await
    }

    async fn docker(&self, arguments: &[&str]) -> Result<String> {
        self.engine.docker(arguments).await
    }

    async fn inspect(&self, name: &str) -> Result<Value> {
        let text = self.docker(&["inspect", "--type", "container", name]).await?;
        Ok(serde_json::from_str::<Value>(&text)?[0].take())
    }

    async fn agrees(&self, event: &str, name: &str, state: &str) -> Result<()> {
        self.agrees_when(event, name, |it| it["State"]["Status"] == state).await
    }

    /// Waits for the fact, and then for no more than [`PROMPT`] until the exporter says the same of every container.
    async fn agrees_when(&self, event: &str, name: &str, is_fact: impl Fn(&Value) -> bool) -> Result<()> {
        wait_for(event, PATIENCE, async || {
            let it = self.inspect(name).await?;
            ensure!(is_fact(&it), "{name}: {}", it["State"]);
            Ok(())
        })
        .await?;
        let mut facts = self.facts().await?;
        let mut since = Instant::now();
        loop {
            let late = since.elapsed();
            let scrape = self.exporter.scrape().await?;
            let said = said(&scrape);
            let later = self.facts().await?;
            if later != facts {
                (facts, since) = (later, Instant::now());
            } else if said == facts {
                eprintln!("exported_containers: {event} was shown after {} ms", late.as_millis());
                return Ok(());
            } else if late > PROMPT {
                let differ = facts.iter().filter(|(name, facts)| said.get(*name) != Some(facts));
                bail!(
                    "{} ms after {event} docker inspects {:#?}, and the exporter says {:#?}",
                    late.as_millis(),
                    differ.collect::<Vec<_>>(),
                    said
                );
            }
        }
    }

    /// What docker says of all containers, in the words of [`said`].
    async fn facts(&self) -> Result<BTreeMap<String, Facts>> {
        let inspected = async || -> Result<Vec<Value>> {
            let list = self.docker(&["ps", "--all", "--quiet", "--no-trunc"]).await?;
            let ids: Vec<&str> = list.lines().collect();
            let text = self.docker(&[&["inspect", "--type", "container"], &ids[..]].concat()).await?;
            Ok(serde_json::from_str(&text)?)
        };
        // One may go between list and inspect.
        let inspected = wait_for("docker to inspect all containers", PATIENCE, inspected).await?;
        inspected.iter().map(facts_of).collect()
    }
}

const BUSYBOX: &str = evenkeel_tests::engine::BUSYBOX;

/// What is compared of one container, each in words.
type Facts = BTreeMap<&'static str, String>;

fn facts_of(it: &Value) -> Result<(String, Facts)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let state = &it["State"];
    let is_running = state["Status"] == "running";
    let mut facts = Facts::from([
        ("id", text(&it["Id"])),
        ("image", text(&it["Config"]["Image"])),
        ("state", text(&state["Status"])),
        ("restarts", it["RestartCount"].to_string()),
        ("policy", text(&it["HostConfig"]["RestartPolicy"]["Name"])),
        ("oom", u8::from(state["OOMKilled"] == true).to_string()),
    ]);
    if is_running {
        let health = state["Health"]["Status"].as_str().unwrap_or("none");
        facts.insert("health", health.to_owned());
    }
    for (fact, value) in
        [("created", &it["Created"]), ("started", &state["StartedAt"]), ("finished", &state["FinishedAt"])]
    {
        let time: jiff::Timestamp = value.as_str().context("a time")?.parse()?;
        if time.as_second() > 0 {
            facts.insert(fact, time.as_second().to_string());
        }
    }
    let has_run = facts.contains_key("finished") || state["ExitCode"] != 0;
    if has_run && !is_running && state["Status"] != "paused" {
        facts.insert("exit code", state["ExitCode"].to_string());
    }
    if it["HostConfig"]["Memory"].as_u64() > Some(0) {
        facts.insert("memory limit", it["HostConfig"]["Memory"].to_string());
    }
    Ok((text(&it["Name"]).trim_start_matches('/').to_owned(), facts))
}

/// What the exporter says of all containers.
fn said(scrape: &Exposition) -> BTreeMap<String, Facts> {
    let mut containers = BTreeMap::new();
    for info in scrape.all("docker_container_info", &[]) {
        let label = |label: &str| info.labels[label].clone();
        let name = [("name", info.labels["name"].as_str())];
        let mut facts = Facts::from([
            ("id", label("id")),
            ("image", label("image")),
            ("policy", label("restart_policy")),
        ]);
        for (fact, metric, label) in
            [("state", "docker_container_state", "state"), ("health", "docker_container_health", "status")]
        {
            let current: Vec<_> = scrape.all(metric, &name).filter(|sample| sample.value == 1.0).collect();
            let words: Vec<&str> = current.iter().map(|sample| sample.labels[label].as_str()).collect();
            if !words.is_empty() {
                facts.insert(fact, words.join(" and "));
            }
        }
        for (fact, metric) in [
            ("restarts", "docker_container_restarts_total"),
            ("oom", "docker_container_oom_killed"),
            ("exit code", "docker_container_exit_code"),
            ("created", "docker_container_created_timestamp_seconds"),
            ("started", "docker_container_started_timestamp_seconds"),
            ("finished", "docker_container_finished_timestamp_seconds"),
            ("memory limit", "docker_container_memory_limit_bytes"),
        ] {
            if let Some(value) = scrape.value(metric, &name) {
                facts.insert(fact, value.floor().to_string());
            }
        }
        containers.insert(label("name"), facts);
    }
    containers
}

/// The same as the exporter says it.
fn disk_usage(scrape: &Exposition) -> BTreeMap<String, [f64; 4]> {
    let metrics = [
        "docker_disk_usage_bytes",
        "docker_disk_usage_reclaimable_bytes",
        "docker_disk_usage_objects",
        "docker_disk_usage_active_objects",
    ];
    let objects = scrape.all(metrics[0], &[]).map(|sample| sample.labels["object"].clone());
    let values =
        |object: &str| metrics.map(|metric| scrape.value(metric, &[("object", object)]).unwrap_or(f64::NAN));
    objects.map(|object| (object.clone(), values(&object))).collect()
}

/// `1.09MB (96%)`, as people are told.
fn bytes(text: &str) -> Result<f64> {
    let size = text.split(' ').next().unwrap_or_default();
    let digits = size.trim_end_matches(char::is_alphabetic);
    let factor = match &size[digits.len()..] {
        "B" => 1.0,
        "kB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        unit => bail!("{unit} is no unit"),
    };
    Ok(digits.parse::<f64>()? * factor)
}

/// People are told four digits.
fn is_about(exact: f64, told: f64) -> bool {
    (exact - told).abs() <= told * 0.001
}

/// Failing streak and last run of the probe of the one that flaps.
fn health(scrape: &Exposition) -> (f64, f64) {
    let of = |metric| scrape.value(metric, &[("name", "flaps")]).unwrap_or_default();
    (
        of("docker_container_health_failing_streak"),
        of("docker_container_healthcheck_last_run_timestamp_seconds"),
    )
}
