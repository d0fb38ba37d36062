//! The host of the first operations document, with the names of its containers, as it was found and as it was left (cases 1
//! to 10, 14 and 24): what was wrong is seen by `check`, metrics and alerts, evenkeel does what the document did by hand,
//! a person does what only a person can, and the document's own commands agree.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, Result, ensure};
use evenkeel_tests::{
    binaries::{Surroundings, built},
    engine::{BUSYBOX, Engine, Options},
    tools,
    wait::wait_for,
};
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::{
    checked::{Checked, scrape_says},
    closed_loop::{ClosedLoop, SOON, Setup, acting_steps},
    trial,
};

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial("hardened_host_is_seen_and_mended", hardened_host)]
}

const FRONTEND: &str = "quantum_dashboard_frontend";
const REDIS_EXPORTER: &str = "quantum_redis_exporter";
const PUBLISHER: &str = "quantum_market_publisher";
const EXECUTOR: &str = "quantum_auto_executor";
const VOLUME: &str = "quantum_redis_data";

/// What no image of the host has, and the probes ask for all the same. Process 1 is called nginx, as the probe that
/// works in the end asks for it.
const FRONTEND_IMAGE: &str = r#"FROM lab/busybox
RUN rm /bin/wget && printf '#!/bin/sh\nwhile :; do sleep 1000; done\n' >/bin/nginx && chmod 755 /bin/nginx
HEALTHCHECK --interval=1s --retries=2 CMD ["wget", "--quiet", "--tries=1", "--spider", "http://localhost/"]
CMD ["nginx"]
"#;
/// One program and no shell, as the original.
const REDIS_EXPORTER_IMAGE: &str = r#"FROM lab/busybox AS programs
FROM scratch
COPY --from=programs /bin/busybox /sleep
HEALTHCHECK --interval=1s --retries=2 CMD PROBE
CMD ["/sleep", "100000"]
"#;

/// The document's acceptance table; its disk is that of the lab's engine, and as many times smaller as the build cache.
const EXPORTER: &str = r#"
docker: {disk_usage: {build_cache: 1s, images: 1s, volumes: 1s, containers: 0}}
filesystem: {mount_points_include: '^DISK$'}
expectations:
  healthcheck: required
  log_rotation: required
  restarts_per_day: {max: 3}
  disk_usage: {max: 85%}
  build_cache: {max: 50MB}
  redis_ready: off
  failed_units: off
  looping_units: off
"#;

/// Images first and then the cache, as the document tried it.
const REMEDIATOR: &str = r#"
policy:
  gates: {grace: 0s, engine_grace: 0s, load: 1000, package_manager: false}
  mode: auto
  deletion: none
rules:
  - name: disk-high
    match: ['alertname="HostDiskHigh"']
    target: {filesystem: mountpoint, allow: ["DISK"]}
    needed: {usage_above: 85%}
    mode: plan
    limits: [50/1h]
    cooldown: 0s
    breaker: {after: 1, hold: 1h}
    steps:
      - image_prune: {unused: true, min_age: 0s, keep_last: 0, locally_built: true}
      - build_cache_prune: {all: true}
    verify: {usage_below: 80%, within: 30s, hold: 1s}
  - name: container-unhealthy
    match: ['alertname="ContainerUnhealthy"']
    target: {container: name, allow: ["quantum_*"]}
    limits: [50/1h]
    steps: [container_restart: {}]
    verify: {healthy_for: 1s, within: 30s}
"#;

/// What is expected of it, and what of that is not met in the beginning.
const CONTAINERS: [(&str, f64); 4] =
    [("unhealthy_containers", 2.0), ("healthcheck", 2.0), ("log_rotation", 4.0), ("restarts_per_day", 5.0)];
const DISK: [&str; 2] = ["disk_usage", "build_cache"];

struct Scene {
    engine: Engine,
    at: ClosedLoop,
    config: PathBuf,
    disk: String,
}

async fn hardened_host() -> Result<()> {
    let scene = Scene::as_it_was_found().await?;
    let baseline = scene.what_was_found_is_seen().await?;
    scene.usage_is_what_docker_stats_says().await?;
    scene.probes_that_cannot_work_restart_nothing().await?;
    scene.nothing_is_deleted_before_the_policy_allows_it().await?;
    scene.only_the_build_cache_is_pruned_and_that_is_enough().await?;
    scene.what_does_not_help_is_not_tried_again_and_again().await?;
    scene.as_it_was_left().await?;
    scene.its_acceptance_table_is_met(&baseline).await
}

impl Scene {
    async fn as_it_was_found() -> Result<Self> {
        let engine = Engine::start(Options { disk_mib: 600, ..Options::default() }).await?;
        let disk = engine.disk().path().display().to_string();
        let around = Surroundings { bus: None, docker: Some(engine.host()) };
        let (exporter, remediator) = (EXPORTER.replace("DISK", &disk), REMEDIATOR.replace("DISK", &disk));
        let setup = Setup { around, exporter: &exporter, remediator: &remediator, ..Setup::default() };
        let at = ClosedLoop::start(setup).await?;
        let config = at.dir().join("exporter.yml");
        let scene = Self { engine, at, config, disk };

        scene.engine.build("nginx:alpine", FRONTEND_IMAGE).await?;
        scene.redis_exporter(r#"["wget", "--spider", "-q", "http://localhost:9121/metrics"]"#).await?;
        scene.start(&["--name", FRONTEND, "nginx:alpine"]).await?;
        // It has used some CPU, keeps 20 MiB that are no file cache, and writes what the document saw it write.
        let works = "head -c 20971520 /dev/zero >/dev/shm/held
            i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done
            echo 'ERROR: BTCUSDT stream error: Read loop has been closed, please reset websocket'
            exec sleep 100000";
        scene.start(&["--name", PUBLISHER, BUSYBOX, "sh", "-c", works]).await?;
        let dies = "while ! rm /die 2>/dev/null; do sleep 0.05; done; exit 1";
        scene.start(&["--name", EXECUTOR, "--restart", "always", BUSYBOX, "sh", "-c", dies]).await?;
        scene.engine.docker(&["volume", "create", VOLUME]).await?;
        scene.engine.fill_with_build_cache(0.91).await?;
        Ok(scene)
    }

    /// A container without a network, which ends at once when it is told to.
    async fn start(&self, arguments: &[&str]) -> Result<()> {
        let fixed = ["run", "--detach", "--network", "none", "--stop-signal", "KILL"];
        self.engine.docker(&[&fixed[..], arguments].concat()).await.map(drop)
    }

    /// The exporter of Redis, made anew with another probe.
    async fn redis_exporter(&self, probe: &str) -> Result<()> {
        const IMAGE: &str = "oliver006/redis_exporter";
        // There is neither at first; of an image that was there before, the layers would stay without a name.
        self.engine.docker(&["rm", "--force", REDIS_EXPORTER]).await.ok();
        self.engine.docker(&["image", "rm", IMAGE]).await.ok();
        self.engine.build(IMAGE, &REDIS_EXPORTER_IMAGE.replace("PROBE", probe)).await?;
        self.start(&["--name", REDIS_EXPORTER, IMAGE]).await
    }

    async fn check(&self, arguments: &[&str]) -> Result<(i32, String)> {
        let mut command = tools::command(built("evenkeel-exporter")?);
        command.arg("check").arg(format!("--config.file={}", self.config.display())).args(arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Surroundings { bus: None, docker: Some(self.engine.host()) }.apply(&mut command);
        let output = tokio::process::Command::from(command).output().await?;
        let code = output.status.code().context("ended by a signal")?;
        Ok((code, String::from_utf8(output.stdout)?))
    }

    /// The share of the disk that is used, as `df` says it.
    fn used(&self) -> Result<f64> {
        Ok(self.engine.disk().usage()?.used_ratio())
    }

    /// Cases 1, 2, 4 to 9 and 14, in `check`, metrics and alerts.
    async fn what_was_found_is_seen(&self) -> Result<PathBuf> {
        self.five_restarts().await?;
        let found = wait_for("what was found", SOON, async || {
            let (code, text) = self.check(&["--format=json"]).await?;
            let checked = Checked::of(code, &text)?;
            for (expectation, value) in CONTAINERS {
                checked.says(expectation, Some(false), Some(value))?;
            }
            for expectation in DISK {
                ensure!(checked.row(expectation)?["met"] == false, "{:#}", checked.json);
            }
            Ok(checked)
        })
        .await?;
        ensure!(found.code == 1, "exit code {}", found.code);
        let words =
            [FRONTEND, REDIS_EXPORTER].map(|name| format!("{name}: its healthcheck cannot ever work"));
        ensure!(found.details("unhealthy_containers")? == words, "{:#}", found.json);
        ensure!(found.details("healthcheck")? == [EXECUTOR, PUBLISHER], "{:#}", found.json);
        ensure!(found.details("disk_usage")? == [&*self.disk], "{:#}", found.json);
        let baseline = self.at.dir().join("before.json");
        fs::write(&baseline, found.json.to_string())?;

        wait_for("the same in /metrics", SOON, async || {
            let page = self.at.exporter.scrape().await?;
            for (expectation, value) in CONTAINERS {
                scrape_says(&page, expectation, Some(false), Some(value))?;
            }
            for name in [FRONTEND, REDIS_EXPORTER] {
                let broken = [("name", name), ("reason", "command_not_found")];
                ensure!(page.value("docker_container_healthcheck_broken", &broken) == Some(1.0), "{name}");
            }
            let of = |object, what: &str| {
                page.value(&format!("docker_disk_usage_{what}"), &[("object", object)]).unwrap_or_default()
            };
            let (bytes, reclaimable) = (of("build_cache", "bytes"), of("build_cache", "reclaimable_bytes"));
            ensure!(bytes > 400e6 && reclaimable > 0.9 * bytes, "{reclaimable} of {bytes} are reclaimable");
            let said = format!("Build Cache: {}, ", of("build_cache", "objects"));
            let docker = self.engine.build_cache().await?;
            ensure!(docker.starts_with(&said), "docker says {docker}, the exporter {said}");
            ensure!(of("volumes", "objects") == 1.0, "there is one volume");
            Ok(())
        })
        .await?;
        self.at.fires("HostDiskHigh", ("mountpoint", &self.disk)).await?;
        self.at.fires("ContainerRestartsHigh", ("name", EXECUTOR)).await?;
        for name in [FRONTEND, REDIS_EXPORTER] {
            self.at.fires("ContainerHealthcheckBroken", ("name", name)).await?;
        }
        Ok(baseline)
    }

    /// Prometheus has seen it before, and so knows how many they are.
    async fn five_restarts(&self) -> Result<()> {
        let restarts = format!("docker_container_restarts_total{{name=\"{EXECUTOR}\"}}");
        for expected in 0..=5 {
            wait_for("Prometheus to know of a restart", SOON, async || {
                let known = self.at.prometheus.query(&format!("{restarts} == {expected}")).await?;
                ensure!(!known.is_empty(), "it is not {expected}");
                Ok(())
            })
            .await?;
            if expected < 5 {
                // The engine waits longer before each of them.
                let end = async || self.engine.docker(&["exec", EXECUTOR, "touch", "/die"]).await;
                wait_for("it to run again, to be ended", SOON, end).await?;
            }
        }
        Ok(())
    }

    /// Case 10: `docker stats` by hand.
    async fn usage_is_what_docker_stats_says(&self) -> Result<()> {
        let name = [("name", PUBLISHER)];
        let format = ["stats", "--no-stream", "--format", "{{.MemUsage}}", PUBLISHER];
        wait_for("docker stats and the exporter to say the same", SOON, async || {
            let before = self.cpu_seconds().await?;
            let page = self.at.exporter.scrape().await?;
            let cpu = page.value("docker_container_cpu_seconds_total", &name).context("no CPU time")?;
            let after = self.cpu_seconds().await?;
            ensure!(before > 0.0 && before <= cpu && cpu <= after, "{before} ≤ {cpu} ≤ {after}");
            let told = self.engine.docker(&format).await?;
            let told = mebibytes(told.split(" / ").next().unwrap_or_default())?;
            let said = page.value("docker_container_memory_bytes", &name).context("no memory")?;
            let said = said / 1024.0 / 1024.0;
            // The kernel counts in batches, and these are two looks.
            ensure!(said > 20.0 && (said - told).abs() <= 0.02 * told, "{said} MiB, docker says {told}");
            Ok(())
        })
        .await
    }

    /// What the kernel has counted for the container, by its own look at it.
    async fn cpu_seconds(&self) -> Result<f64> {
        let read = "cat /sys/fs/cgroup/cpuacct/cpuacct.usage 2>/dev/null ||
            sed -n 's/^usage_usec \\(.*\\)/\\1000/p' /sys/fs/cgroup/cpu.stat";
        Ok(self.engine.docker(&["exec", PUBLISHER, "sh", "-c", read]).await?.parse::<f64>()? / 1e9)
    }

    /// Cases 5 and 6: nothing is wrong with these two but their probes.
    async fn probes_that_cannot_work_restart_nothing(&self) -> Result<()> {
        let started = async |name| self.engine.inspect(name, "{{.State.StartedAt}}").await;
        let (frontend, mut exporter) = (started(FRONTEND).await?, started(REDIS_EXPORTER).await?);
        let is_refused = async |name| {
            ensure!(!self.at.ever_fired("ContainerUnhealthy", ("name", name)).await?, "{name} is no alert");
            // Not even when somebody else's alert says so.
            let labels = json!({"alertname": "ContainerUnhealthy", "instance": "127.0.0.1:1", "name": name});
            self.at.deliver(labels).await?;
            let ended = |one: &Value| one["phase"] == "ended";
            let record = self.at.remediation("the refusal", ("container-unhealthy", name), ended).await?;
            ensure!(record["outcome"] == "blocked" && record["reason"] == "healthcheck_broken", "{record:#}");
            anyhow::Ok(())
        };
        is_refused(FRONTEND).await?;
        is_refused(REDIS_EXPORTER).await?;
        ensure!(started(REDIS_EXPORTER).await? == exporter, "it was restarted");
        // The document's second try is as wrong as its first.
        self.redis_exporter(r#"["curl", "--fail", "http://localhost:9121/metrics"]"#).await?;
        exporter = started(REDIS_EXPORTER).await?;
        wait_for("the second probe to be seen as broken", SOON, async || {
            let page = self.at.exporter.scrape().await?;
            let broken = [("name", REDIS_EXPORTER), ("reason", "command_not_found")];
            ensure!(page.value("docker_container_healthcheck_broken", &broken) == Some(1.0));
            let unhealthy = [("name", REDIS_EXPORTER), ("status", "unhealthy")];
            ensure!(page.value("docker_container_health", &unhealthy) == Some(1.0));
            Ok(())
        })
        .await?;
        is_refused(REDIS_EXPORTER).await?;
        ensure!(started(REDIS_EXPORTER).await? == exporter && started(FRONTEND).await? == frontend);
        Ok(())
    }

    /// Case 24: "INGEN SLETTING".
    async fn nothing_is_deleted_before_the_policy_allows_it(&self) -> Result<()> {
        let refused = |one: &Value| one["phase"] == "ended" && one["reason"] == "policy";
        let about = ("disk-high", self.disk.as_str());
        let record = self.at.remediation("the refusal by the policy", about, refused).await?;
        ensure!(record["outcome"] == "blocked" && record["acted"] == false, "{record:#}");
        ensure!(self.engine.requests("POST", "/prune") == 0, "something was pruned");
        ensure!(self.used()? > 0.9, "something was deleted");
        // Nor can the rule be switched on by itself.
        let config = self.at.dir().join("remediator.yml");
        let shipped = fs::read_to_string(&config)?;
        fs::write(&config, shipped.replace("    mode: plan\n", ""))?;
        let refused = self.at.remediator.cli(&["reload"]).await.err().map(|error| format!("{error:#}"));
        let words = "step `image_prune` deletes (class D2) and `policy.deletion` is none";
        ensure!(refused.as_ref().is_some_and(|refused| refused.contains(words)), "{refused:?}");
        Ok(())
    }

    /// Cases 1 to 4: of images, cache and volumes one is worth it, and is measured.
    async fn only_the_build_cache_is_pruned_and_that_is_enough(&self) -> Result<()> {
        let images = self.images().await?;
        let config = self.at.dir().join("remediator.yml");
        fs::write(&config, fs::read_to_string(&config)?.replace("deletion: none", "deletion: data"))?;
        self.at.remediator.cli(&["reload"]).await?;
        let succeeded = |one: &Value| one["outcome"] == "succeeded";
        let about = ("disk-high", self.disk.as_str());
        let record = self.at.remediation("the repair", about, succeeded).await?;

        let [of_images, of_cache] = acting_steps(&record)[..] else { anyhow::bail!("two steps: {record:#}") };
        ensure!(
            of_images["action"] == "image_prune" && of_images["reason"] == "nothing_to_delete",
            "every image is in use: {of_images:#}"
        );
        ensure!(of_cache["action"] == "build_cache_prune" && of_cache["state"] == "done", "{of_cache:#}");
        let avail = |when: &str| {
            record[when]["filesystem"]["avail_bytes"].as_f64().with_context(|| format!("{record:#}"))
        };
        let (gained, measured) =
            (avail("after")? - avail("before")?, of_cache["measured_freed_bytes"].as_f64());
        ensure!(
            measured.is_some_and(|measured| (measured - gained).abs() < gained / 10.0),
            "{gained}: {of_cache:#}"
        );

        ensure!(self.used()? < 0.8, "the disk is still {} full", self.used()?);
        let left = self.images().await?;
        ensure!(left == images, "{images:?} became {left:?}");
        let cache = self.engine.build_cache().await?;
        ensure!(!cache.ends_with("GB") && !cache.contains("00MB"), "docker system df says {cache}");
        self.volume_is_there().await?;
        self.at.resolves("HostDiskHigh", ("mountpoint", &self.disk)).await
    }

    async fn images(&self) -> Result<BTreeSet<String>> {
        let images =
            self.engine.docker(&["images", "--no-trunc", "--format", "{{.Repository}} {{.ID}}"]).await?;
        Ok(images.lines().map(str::to_owned).collect())
    }

    /// There is nothing that would prune it, whatever the policy says.
    async fn volume_is_there(&self) -> Result<()> {
        let volumes = self.engine.docker(&["volume", "ls", "--quiet"]).await?;
        ensure!(volumes == VOLUME, "{volumes:?}");
        ensure!(self.engine.requests("POST", "/volumes/prune") == 0, "volumes were pruned");
        Ok(())
    }

    /// Case 3: the hourly script that frees next to nothing, again and again.
    async fn what_does_not_help_is_not_tried_again_and_again(&self) -> Result<()> {
        // Of a tenth of the disk that is needed, the cache is less than a half.
        self.engine.fill_with_build_cache(self.used()? + 0.04).await?;
        let file = self.engine.disk().fill_to(0.9, "smart_disk_manager.log")?;
        let about = ("disk-high", self.disk.as_str());
        let record =
            self.at.remediation("a try in vain", about, |one| one["outcome"] == "ineffective").await?;
        let words = format!("it is filled by {} ", file.display());
        let told = self.at.told.wait_for("a person to hear", SOON, |one| one["target"] == self.disk).await?;
        let text = told["text"].as_str().context("a message has a text")?;
        ensure!(text.contains(&words), "no {words:?} in {text}: {record:#}");
        let prunes = self.engine.requests("POST", "/build/prune");
        // There is as much to prune again, and it would help as little.
        self.engine.fill_with_build_cache(self.used()? + 0.04).await?;
        let is_held = |one: &Value| one["reason"] == "breaker" && one["deliveries"].as_u64() >= Some(2);
        self.at.remediation("the breaker to refuse two offers", about, is_held).await?;
        ensure!(self.engine.requests("POST", "/build/prune") == prunes, "it was tried again");
        self.at.fires("RemediationEscalated", ("rule", "disk-high")).await?;
        self.volume_is_there().await?;
        fs::remove_file(file)?;
        self.at.resolves("HostDiskHigh", ("mountpoint", &self.disk)).await
    }

    /// What people do: the compose files with other probes and with log rotation.
    async fn as_it_was_left(&self) -> Result<()> {
        let containers = [FRONTEND, REDIS_EXPORTER, PUBLISHER, EXECUTOR];
        self.engine.docker(&[&["rm", "--force"], &containers[..]].concat()).await?;
        let rotated = ["--log-opt", "max-size=10m", "--health-interval", "1s", "--health-retries", "5"];
        let make = async |name, probe: &[&str], program: &[&str]| {
            self.start(&[&["--name", name], &rotated[..], probe, program].concat()).await
        };
        let nginx = "ps aux | grep nginx | grep -v grep || exit 1";
        make(FRONTEND, &["--health-cmd", nginx], &["nginx:alpine"]).await?;
        // The document's third try takes bash; where there is no shell, a program of the image's own is asked.
        self.engine
            .build("oliver006/redis_exporter", &REDIS_EXPORTER_IMAGE.replace("PROBE", r#"["/sleep", "0"]"#))
            .await?;
        make(REDIS_EXPORTER, &[], &["oliver006/redis_exporter"]).await?;
        for name in [PUBLISHER, EXECUTOR] {
            make(name, &["--health-cmd", "test -d /proc/1"], &[BUSYBOX, "sleep", "100000"]).await?;
        }
        Ok(())
    }

    /// Case 14, with its "before" column, and the commands of the document.
    async fn its_acceptance_table_is_met(&self, baseline: &Path) -> Result<()> {
        let baseline = format!("--baseline={}", baseline.display());
        let table = wait_for("what was left", SOON, async || {
            let (code, text) = self.check(&[&baseline, "--format=markdown"]).await?;
            ensure!(code == 0, "exit code {code}:\n{text}");
            Ok(text)
        })
        .await?;
        for row in [
            "| unhealthy containers | 0 | 2 | 0 | met |",
            "| containers without a healthcheck | 0 | 2 | 0 | met |",
            "| restarts of a container a day | ≤ 3 | 5 | 0 | met |",
        ] {
            ensure!(table.contains(row), "no {row} in\n{table}");
        }
        wait_for("the same in /metrics", SOON, async || {
            let page = self.at.exporter.scrape().await?;
            for expectation in CONTAINERS.map(|(expectation, _)| expectation).into_iter().chain(DISK) {
                let met = page.value("evenkeel_expectation_met", &[("expectation", expectation)]);
                ensure!(met == Some(1.0), "{expectation}: {met:?}");
            }
            let broken = page.all("docker_container_healthcheck_broken", &[]).any(|one| one.value > 0.0);
            ensure!(!broken, "a healthcheck is still broken");
            Ok(())
        })
        .await?;
        let docker = async |arguments: &[&str]| self.engine.docker(arguments).await;
        let unhealthy = docker(&["ps", "--quiet", "--filter", "health=unhealthy"]).await?;
        ensure!(unhealthy.is_empty(), "{unhealthy}");
        for name in [FRONTEND, REDIS_EXPORTER, PUBLISHER] {
            let filter = format!("name={name}");
            let line = docker(&["ps", "--filter", &filter, "--format", "{{.Names}}: {{.Status}}"]).await?;
            ensure!(line.starts_with(name) && line.ends_with("(healthy)"), "{line}");
        }
        let nginx = docker(&["exec", FRONTEND, "sh", "-c", "ps aux | grep nginx"]).await?;
        ensure!(nginx.contains("nginx"), "{nginx}");
        let df = docker(&["system", "df"]).await?;
        ensure!(self.used()? < 0.85, "{df}");
        Ok(())
    }
}

/// `20.5MiB`, as people are told.
fn mebibytes(text: &str) -> Result<f64> {
    let digits = text.strip_suffix("MiB").with_context(|| format!("{text} is no MiB"))?;
    Ok(digits.parse()?)
}
