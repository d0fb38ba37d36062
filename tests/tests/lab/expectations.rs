//! The two hosts of the operations documents, as they were found and as they were left: what was expected of them is seen as
//! not met in `/metrics` and in `check`, then it is done what the documents do, then it is met, and the documents' own
//! commands agree.

use std::{fs, path::Path, process::Stdio, time::Duration};

use anyhow::{Context, Result, ensure};
use evenkeel_tests::{
    binaries::{Exporter, Surroundings, built},
    engine::{Engine, Options},
    exposition::Exposition,
    namespace,
    process::free_port,
    redis_server,
    systemd_host::{SystemdHost, image},
    tools,
    wait::wait_for,
};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::{shared, trial};

const SOON: Duration = Duration::from_secs(60);

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("expectations_of_the_clean_state", the_clean_state),
        trial("expectations_of_the_hardened_host", the_hardened_host),
    ]
}

/// What `check --format json` said, and how it ended.
struct Checked {
    code: i32,
    json: Value,
}

impl Checked {
    fn of(code: i32, text: &str) -> Result<Self> {
        let json = serde_json::from_str(text).with_context(|| format!("no JSON: {text}"))?;
        Ok(Self { code, json })
    }

    fn row(&self, expectation: &str) -> Result<&Value> {
        let rows = self.json["expectations"].as_array().context("no rows")?;
        let row = rows.iter().find(|row| row["expectation"] == expectation);
        row.with_context(|| format!("no {expectation} in {}", self.json))
    }

    /// That an expectation is met or not, or that nobody can tell, with this value.
    fn says(&self, expectation: &str, met: Option<bool>, value: Option<f64>) -> Result<()> {
        let row = self.row(expectation)?;
        let said = (row["met"].as_bool(), row["value"].as_f64());
        ensure!(said == (met, value), "{expectation}: {row}");
        Ok(())
    }

    fn details(&self, expectation: &str) -> Result<Vec<&str>> {
        let details = self.row(expectation)?["details"].as_array().context("no details")?;
        Ok(details.iter().filter_map(Value::as_str).collect())
    }
}

/// The same in a scrape.
fn scrape_says(page: &Exposition, expectation: &str, met: Option<bool>, value: Option<f64>) -> Result<()> {
    let labels = [("expectation", expectation)];
    let of = |metric: &str| page.value(metric, &labels);
    let said = (
        of("evenkeel_expectation_met").map(|met| met > 0.0),
        of("evenkeel_expectation_value"),
        of("evenkeel_expectation_unknown"),
    );
    let expected = (met, value, Some(f64::from(u8::from(met.is_none()))));
    ensure!(said == expected, "{expectation}: {said:?}, expected {expected:?}");
    Ok(())
}

/// Those that run in the end.
const SERVICES: [&str; 12] = [
    "quantum-binance-pnl-tracker",
    "quantum-ceo-brain",
    "quantum-execution",
    "quantum-market-publisher",
    "quantum-portfolio-intelligence",
    "quantum-position-monitor",
    "quantum-risk-brain",
    "quantum-rl-feedback-v2",
    "quantum-rl-monitor",
    "quantum-rl-sizer",
    "quantum-strategy-brain",
    "quantum-strategy-ops",
];

/// Those of them that loop in the beginning: one for want of a name, the others for causes of their own.
const LOOPING: [&str; 5] = [
    "quantum-execution",
    "quantum-portfolio-intelligence",
    "quantum-rl-monitor",
    "quantum-rl-sizer",
    "quantum-strategy-ops",
];

/// Named by the target, safe to ignore.
const NOT_FOUND: [&str; 13] = [
    "quantum-cross-exchange",
    "quantum-exposure-balancer",
    "quantum-meta-regime",
    "quantum-model-federation",
    "quantum-model-supervisor",
    "quantum-pil",
    "quantum-portfolio-governance",
    "quantum-retraining-worker",
    "quantum-rl-dashboard",
    "quantum-strategic-evolution",
    "quantum-strategic-memory",
    "quantum-trade-intent-consumer",
    "quantum-universe-os",
];

const PORTFOLIO: &str = "quantum-portfolio-intelligence.service";

const CONFIG: &str = r#"
systemd: {watch: ["quantum-*.service", quantum-trader.target], not_found_ok: [NOT_FOUND], check_every: 1s}
redis: [{name: by-address, url: "redis://127.0.0.1:6379/0"}, {name: by-name, url: "redis://quantum_redis:6379/0"}]
resolve: [{host: quantum_redis, expect: [127.0.0.1]}]
environment:
  - {unit: quantum-portfolio-intelligence.service, expect: {REDIS_HOST: 127.0.0.1, REDIS_PORT: 6379, REDIS_DB: 0}}
expectations:
  running: {"quantum-*.service": {min: 12}, "quantum-no-such-*.service": {min: 0}}
  # The disk is that of the lab's engine.
  disk_usage: off
  inodes: off
"#;

/// Not root, as it is shipped.
const DAEMON: &str = "[Service]
User=nobody
ExecStart=/usr/bin/evenkeel-exporter --config.file=/etc/evenkeel/exporter.yml
";

async fn the_clean_state() -> Result<()> {
    let engine = shared::engine().await?;
    let volumes = [
        format!("{}:/usr/bin/evenkeel-exporter:ro", built("evenkeel-exporter")?.display()),
        format!("{}:/packaging:ro", tools::repository().join("packaging").display()),
    ];
    let host = SystemdHost::start_with(engine, &image("systemd"), &volumes).await?;
    let redis = redis_server::on_host(&host).await?;
    as_it_was_found(&host).await?;

    // Root sees all of it at once.
    let before = wait_for("what was found", SOON, async || {
        let checked = check(&host, &[]).await?;
        checked.says("failed_units", Some(false), Some(1.0))?;
        checked.says("looping_units", Some(false), Some(5.0))?;
        checked.says("running:quantum-*.service", Some(false), Some(7.0))?;
        Ok(checked)
    })
    .await?;
    ensure!(before.code == 1, "exit code {}", before.code);
    ensure!(before.details("failed_units")? == ["quantum-ai-engine.service: not-found"], "{}", before.json);
    // The 13 that may be missing are not told, the one that may not is.
    ensure!(before.details("load_state")? == ["quantum-ai-engine.service: not-found"], "{}", before.json);
    before.says("load_state", Some(false), Some(1.0))?;
    before.says("resolve", Some(false), Some(1.0))?;
    before.says("redis_ready", Some(false), Some(1.0))?;
    ensure!(before.details("redis_ready")? == ["by-name: dns"], "{}", before.json);
    before.says("running:quantum-no-such-*.service", Some(true), Some(0.0))?;
    let looping = before.details("looping_units")?;
    for unit in LOOPING {
        ensure!(looping.iter().any(|detail| detail.starts_with(&format!("{unit}.service: "))), "{looping:?}");
    }
    host.write_file("/tmp/before.json", &before.json.to_string()).await?;

    // A daemon that is not root sees the same; of the environment it says that it may not look.
    wait_for("the same in /metrics", SOON, async || {
        let page = scrape(&host).await?;
        scrape_says(&page, "failed_units", Some(false), Some(1.0))?;
        scrape_says(&page, "looping_units", Some(false), Some(5.0))?;
        scrape_says(&page, "running:quantum-*.service", Some(false), Some(7.0))?;
        scrape_says(&page, "load_state", Some(false), Some(1.0))?;
        scrape_says(&page, "resolve", Some(false), Some(1.0))?;
        scrape_says(&page, "redis_ready", Some(false), Some(1.0))?;
        let name = [("host", "quantum_redis")];
        ensure!(page.value("evenkeel_resolve_success", &name) == Some(0.0));
        ensure!(page.value("evenkeel_resolve_expected", &name) == Some(0.0));
        let reasons = page.all("evenkeel_resolve_failure", &name);
        let reason = reasons.filter(|sample| sample.value > 0.0).count();
        ensure!(reason == 1, "{reason} reasons");
        Ok(())
    })
    .await?;
    the_diagram_shows_what_the_target_wants(&host).await?;

    as_the_documents_do(&host).await?;
    wait_for("what was left", SOON, async || {
        let checked = check(&host, &[]).await?;
        ensure!(checked.code == 0, "exit code {}: {:#}", checked.code, checked.json);
        for (expectation, value) in [
            ("failed_units", 0.0),
            ("looping_units", 0.0),
            ("running:quantum-*.service", 12.0),
            ("load_state", 0.0),
            ("resolve", 0.0),
            ("redis_ready", 0.0),
            ("environment", 0.0),
        ] {
            checked.says(expectation, Some(true), Some(value))?;
        }
        Ok(())
    })
    .await?;
    their_own_commands_agree(&host).await?;
    only_root_sees_the_environment(&host).await?;
    the_wrong_environment_is_seen(&host).await?;
    before_and_after(&host).await?;
    drop(redis);
    Ok(())
}

async fn as_it_was_found(host: &SystemdHost) -> Result<()> {
    let mut script = "set -e\nmkdir -p /etc/evenkeel /etc/quantum\ncd /etc/systemd/system\n".to_owned();
    for service in SERVICES {
        // What cannot go on ends at once, and is started again a moment later.
        let program = match service {
            "quantum-portfolio-intelligence" => {
                "/bin/sh -c 'getent hosts quantum_redis || exit 1; exec sleep 100000'"
            }
            _ if LOOPING.contains(&service) => "/bin/sh -c 'exit 1'",
            _ => "/bin/sleep 100000",
        };
        let environment = match service {
            "quantum-portfolio-intelligence" => "EnvironmentFile=-/etc/quantum/portfolio-intelligence.env\\n",
            _ => "",
        };
        script += &format!(
            "printf '%b' \"[Unit]\\nStartLimitIntervalSec=0\\n[Service]\\n{environment}ExecStart={program}\\nRestart=always\\nRestartSec=1\\n\" >{service}.service\n"
        );
    }
    let wanted = SERVICES.iter().chain(&NOT_FOUND).chain(&["quantum-ai-engine"]);
    let wanted: String = wanted.map(|name| format!("Wants={name}.service\\n")).collect();
    script += &format!("printf '[Unit]\\n{wanted}' >quantum-trader.target\n");
    // It failed, and then its file went.
    script += "printf '[Service]\\nExecStart=/bin/false\\n' >quantum-ai-engine.service
        cp /packaging/evenkeel-facts.service /packaging/evenkeel-facts.timer .
        systemctl daemon-reload
        systemctl start quantum-ai-engine || true
        until systemctl is-failed --quiet quantum-ai-engine; do sleep 0.1; done
        rm quantum-ai-engine.service
        systemctl daemon-reload
        systemctl start --no-block quantum-trader.target\n";
    host.exec(&["sh", "-c", &script]).await?;
    let not_found: Vec<String> = NOT_FOUND.iter().map(|name| format!("{name}.service")).collect();
    let config = CONFIG.replace("NOT_FOUND", &not_found.join(", "));
    host.write_file("/etc/evenkeel/exporter.yml", &config).await?;
    host.install_unit("evenkeel-exporter.service", DAEMON).await?;
    host.systemctl(&["start", "evenkeel-exporter"]).await.map(drop)
}

/// Line by line as in the documents, but for the programs.
async fn as_the_documents_do(host: &SystemdHost) -> Result<()> {
    let mut script = r#"set -e
echo "127.0.0.1 quantum_redis" >> /etc/hosts
printf 'REDIS_HOST=127.0.0.1\nREDIS_PORT=6379\nREDIS_DB=0\n' >/etc/quantum/portfolio-intelligence.env
sed -i "/^Wants=quantum-ai-engine\.service$/d" /etc/systemd/system/quantum-trader.target
cd /etc/systemd/system
"#
    .to_owned();
    for service in LOOPING.iter().filter(|service| **service != "quantum-portfolio-intelligence") {
        script += &format!("sed -i 's#^ExecStart=.*#ExecStart=/bin/sleep 100000#' {service}.service\n");
    }
    script += "systemctl daemon-reload\nsystemctl reset-failed\nsystemctl restart quantum-trader.target\n";
    for service in LOOPING {
        script += &format!("systemctl restart {service}.service\n");
    }
    host.exec(&["sh", "-c", &script]).await.map(drop)
}

async fn their_own_commands_agree(host: &SystemdHost) -> Result<()> {
    let sh = async |command: &str| host.exec(&["sh", "-c", command]).await;
    let failed = sh("systemctl --failed --no-pager").await?;
    ensure!(failed.contains("0 loaded units listed"), "{failed}");
    let running = sh("systemctl list-units 'quantum*.service' --state=running --no-legend | wc -l").await?;
    ensure!(running.trim() == "12", "{running} run");
    let bad =
        sh("systemctl list-units 'quantum*.service' --all --no-pager | grep -E 'activating|failed' || true")
            .await?;
    ensure!(bad.is_empty(), "{bad}");
    let resolved = sh("getent hosts quantum_redis").await?;
    ensure!(resolved.starts_with("127.0.0.1"), "{resolved}");
    ensure!(sh(&format!("systemctl is-active {PORTFOLIO}")).await?.trim() == "active");
    let environ = sh(&format!(
        "PID=$(systemctl show -p MainPID --value {PORTFOLIO}); tr '\\0' '\\n' < /proc/$PID/environ | grep -E '^REDIS_' | sort"
    ))
    .await?;
    ensure!(environ.trim() == "REDIS_DB=0\nREDIS_HOST=127.0.0.1\nREDIS_PORT=6379", "{environ}");
    let references = sh("grep -RIn 'quantum-ai-engine' /etc/systemd/system || true").await?;
    ensure!(references.is_empty(), "{references}");
    Ok(())
}

/// The daemon says so, and knows when root tells it.
async fn only_root_sees_the_environment(host: &SystemdHost) -> Result<()> {
    let unit = [("unit", PORTFOLIO)];
    wait_for("that it may not look", SOON, async || {
        let page = scrape(host).await?;
        scrape_says(&page, "environment", None, None)?;
        let reason = [("unit", PORTFOLIO), ("reason", "permission")];
        ensure!(page.value("evenkeel_environment_failure", &reason) == Some(1.0));
        ensure!(page.all("evenkeel_environment_expected", &unit).next().is_none());
        Ok(())
    })
    .await?;
    host.systemctl(&["start", "evenkeel-facts.timer"]).await?;
    wait_for("what root has found", SOON, async || {
        let page = scrape(host).await?;
        scrape_says(&page, "environment", Some(true), Some(0.0))?;
        let met = page.all("evenkeel_environment_expected", &unit).filter(|sample| sample.value == 1.0);
        ensure!(met.count() == 3, "3 variables are as expected");
        Ok(())
    })
    .await?;
    let facts = host.exec(&["cat", "/run/evenkeel/facts.json"]).await?;
    ensure!(facts.contains("\"REDIS_HOST\":\"met\"") && !facts.contains("127.0.0.1"), "{facts}");
    Ok(())
}

/// The process keeps what it was started with, whatever the file says.
async fn the_wrong_environment_is_seen(host: &SystemdHost) -> Result<()> {
    let set = format!(
        "sed -i s/127.0.0.1/quantum_redis/ /etc/quantum/portfolio-intelligence.env && systemctl restart {PORTFOLIO}"
    );
    host.exec(&["sh", "-c", &set]).await?;
    let wrong = check(host, &[]).await?;
    wrong.says("environment", Some(false), Some(1.0))?;
    ensure!(wrong.details("environment")? == [format!("{PORTFOLIO}: REDIS_HOST has another value")]);
    host.exec(&["sed", "-i", "s/quantum_redis/127.0.0.1/", "/etc/quantum/portfolio-intelligence.env"])
        .await?;
    check(host, &[]).await?.says("environment", Some(false), Some(1.0))?;
    host.systemctl(&["stop", PORTFOLIO]).await?;
    let stopped = check(host, &[]).await?;
    stopped.says("environment", None, None)?;
    let words = "it has no main process: it does not run, or does not exist";
    ensure!(stopped.details("environment")? == [format!("{PORTFOLIO}: {words}")], "{:#}", stopped.json);
    host.systemctl(&["start", PORTFOLIO]).await?;
    check(host, &[]).await?.says("environment", Some(true), Some(0.0))
}

async fn before_and_after(host: &SystemdHost) -> Result<()> {
    let (code, text) = run_check(host, &["--baseline=/tmp/before.json", "--format=markdown"]).await?;
    ensure!(code == 0, "exit code {code}: {text}");
    let head = "| Expectation | Target | Before | Result | Status | Details |";
    ensure!(text.starts_with(head), "{text}");
    for row in [
        "| failed units | 0 | 1 | 0 | met |",
        "| looping units | 0 | 5 | 0 | met |",
        "| running quantum-\\*.service | ≥ 12 | 7 | 12 | met |",
        "| Redis not ready | 0 | 1 | 0 | met |",
    ] {
        ensure!(text.contains(row), "no {row} in\n{text}");
    }
    let (_, text) = run_check(host, &["--baseline=/tmp/before.json"]).await?;
    eprintln!("{text}");
    let (code, _) = run_check(host, &["--baseline=/etc/hosts"]).await?;
    ensure!(code == 64, "a file that is no check: exit code {code}");
    Ok(())
}

async fn the_diagram_shows_what_the_target_wants(host: &SystemdHost) -> Result<()> {
    let (code, diagram) = run_check(host, &["--graph"]).await?;
    ensure!(code == 0, "exit code {code}");
    ensure!(diagram.starts_with("flowchart LR\n"), "{diagram}");
    for part in [
        "[\"quantum-trader.target\"]",
        "[\"quantum-risk-brain.service\"]",
        "[\"quantum-pil.service<br>not found\"]:::missing",
        "[\"quantum-ai-engine.service<br>failed\"]:::failed",
    ] {
        ensure!(diagram.contains(part), "no {part} in\n{diagram}");
    }
    let wanted = diagram.lines().filter(|line| line.contains(" --> ")).count();
    ensure!(wanted == SERVICES.len() + NOT_FOUND.len() + 1, "{wanted} units are wanted:\n{diagram}");
    Ok(())
}

async fn check(host: &SystemdHost, arguments: &[&str]) -> Result<Checked> {
    let (code, text) = run_check(host, &[&["--format=json"], arguments].concat()).await?;
    Checked::of(code, &text)
}

/// On the host itself, as root.
async fn run_check(host: &SystemdHost, arguments: &[&str]) -> Result<(i32, String)> {
    let script = "evenkeel-exporter check --config.file=/etc/evenkeel/exporter.yml \"$@\"; printf '\\n%s' $?";
    let said = host.exec(&[&["sh", "-c", script, "sh"], arguments].concat()).await?;
    let (text, code) = said.rsplit_once('\n').context("an exit code")?;
    Ok((code.parse()?, text.to_owned()))
}

async fn scrape(host: &SystemdHost) -> Result<Exposition> {
    let answer = host.http(19847, "GET", "/metrics", "", "").await?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer has a head")?;
    ensure!(head.starts_with("HTTP/1.1 200"), "{head}");
    Ok(Exposition::parse(body))
}

/// An engine with too much build cache on a full disk, and containers as they were found.
async fn the_hardened_host() -> Result<()> {
    let engine = Engine::start(Options { disk_mib: 600, ..Options::default() }).await?;
    engine
        .run_probed("quantum_dashboard_frontend", "wget-is-not-here --spider http://localhost/", FOREVER)
        .await?;
    engine.run(&["--name", "quantum_market_publisher"], FOREVER).await?;
    engine.run(&["--name", "quantum_auto_executor", "--restart", "on-failure:5"], &["false"]).await?;
    engine.fill_with_build_cache(0.87).await?;

    let dir = namespace::place("hardened")?;
    let config = dir.join("exporter.yml");
    let mount_point = engine.disk().path().display().to_string();
    fs::write(&config, HARDENED.replace("MOUNT_POINT", &mount_point))?;
    let around = Surroundings { bus: None, docker: Some(engine.host()) };
    let exporter = Exporter::start(&dir, free_port()?, Some(&config), &around).await?;
    let local = |arguments: &'static [&'static str]| check_here(&config, &around, arguments);

    let before = wait_for("what was found", SOON, async || {
        let checked = local(&["--format=json"]).await?;
        let checked = Checked::of(checked.0, &checked.1)?;
        checked.says("unhealthy_containers", Some(false), Some(1.0))?;
        checked.says("healthcheck", Some(false), Some(1.0))?;
        checked.says("log_rotation", Some(false), Some(2.0))?;
        checked.says("restarts_per_day", Some(false), Some(5.0))?;
        ensure!(checked.row("disk_usage")?["met"] == false, "{:#}", checked.json);
        ensure!(checked.row("build_cache")?["met"] == false, "{:#}", checked.json);
        Ok(checked)
    })
    .await?;
    ensure!(before.code == 1, "exit code {}", before.code);
    let words = "quantum_dashboard_frontend: its healthcheck cannot ever work";
    ensure!(before.details("unhealthy_containers")? == [words], "{:#}", before.json);
    ensure!(before.details("healthcheck")? == ["quantum_market_publisher"], "{:#}", before.json);
    ensure!(before.details("disk_usage")? == [&*mount_point], "{:#}", before.json);
    wait_for("the same in /metrics", SOON, async || all_are(&exporter, 0.0).await).await?;

    // As the documents do it.
    engine.docker(&["builder", "prune", "--all", "--force"]).await?;
    engine
        .docker(&[
            "rm",
            "--force",
            "quantum_dashboard_frontend",
            "quantum_market_publisher",
            "quantum_auto_executor",
        ])
        .await?;
    let well = ["--health-interval", "1s", "--health-cmd", "true", "--log-opt", "max-size=10m"];
    for name in ["quantum_dashboard_frontend", "quantum_market_publisher"] {
        engine.run(&[&["--name", name, "--stop-signal", "KILL"], &well[..]].concat(), FOREVER).await?;
    }
    wait_for("what was left", SOON, async || {
        let (code, text) = local(&[]).await?;
        ensure!(code == 0, "exit code {code}:\n{text}");
        ensure!(text.starts_with("Expectation"), "{text}");
        all_are(&exporter, 1.0).await
    })
    .await?;
    let unhealthy = engine.docker(&["ps", "--quiet", "--filter", "health=unhealthy"]).await?;
    ensure!(unhealthy.is_empty(), "{unhealthy}");
    Ok(())
}

/// Whether `/metrics` says this of everything that is expected of the containers.
async fn all_are(exporter: &Exporter, met: f64) -> Result<()> {
    let page = exporter.scrape().await?;
    for expectation in CONTAINERS {
        let said = page.value("evenkeel_expectation_met", &[("expectation", expectation)]);
        ensure!(said == Some(met), "{expectation}: {said:?}");
    }
    Ok(())
}

const FOREVER: &[&str] = &["sleep", "100000"];

const CONTAINERS: [&str; 6] =
    ["unhealthy_containers", "healthcheck", "log_rotation", "restarts_per_day", "disk_usage", "build_cache"];

const HARDENED: &str = r#"
docker: {disk_usage: {build_cache: 1s, images: 0, volumes: 0, containers: 0}}
filesystem: {mount_points_include: '^MOUNT_POINT$'}
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

/// In the lab itself.
async fn check_here(config: &Path, around: &Surroundings, arguments: &[&str]) -> Result<(i32, String)> {
    let mut command = tools::command(built("evenkeel-exporter")?);
    command.arg("check").arg(format!("--config.file={}", config.display())).args(arguments);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    around.apply(&mut command);
    let output = tokio::process::Command::from(command).output().await?;
    let code = output.status.code().context("ended by a signal")?;
    Ok((code, String::from_utf8(output.stdout)?))
}
