//! What `status`, `history`, `explain` and `simulate` print, as somebody reads it who was woken: one story, and the whole
//! of its texts as a file to review.

use std::{collections::BTreeMap, fmt::Write as _, sync::Arc, time::Duration};

use tokio::time::sleep;

use super::bench::{Bench, Does, disk, disk_rule, failed, unit, unit_rule};
use crate::{
    actions::Check,
    api::{Asked, prometheus::Exporter},
    assess::Assessor,
    clock::Moment,
    config::{Config, tests::config},
    daemon::{Daemon, Reload},
    explain::View,
    history,
    observe::{Observation, Unit},
    pipeline::{self, Finding, Report, State},
    policy::{Class, Mode},
    rules::Rule,
    simulate, status,
};

const APP: &str = "app.service";
const OTHER: &str = "app-other.service";
const DISK: &str = "/no/such/disk";

/// Three rules in the three modes.
fn bench() -> Bench {
    let rules = [
        unit_rule("unit-failed", "    limits: [3/1h, 6/24h]\n    cooldown: 5m\n"),
        unit_rule("unit-asked", "    mode: approve\n"),
        disk_rule("disk-high", "    mode: plan\n"),
    ];
    let policy = "policy: {mode: auto, deletion: data, gates: {grace: 5m, engine_grace: 0s}}";
    let mut bench = Bench::under(policy, &rules);
    let restart = bench.fake("restart", Class::S2, Does::Nothing);
    let prune = bench.fake("prune", Class::D1, Does::Nothing);
    bench.steps("unit-failed", [restart.clone()]);
    bench.steps("unit-asked", [restart]);
    bench.steps("disk-high", [prune]);
    for unit in [APP, OTHER] {
        bench.world.show(unit, crashed());
    }
    bench.world.show(DISK, disk(0.91));
    bench
}

fn crashed() -> Observation {
    let Observation::Unit(unit) = failed() else { unreachable!("a unit") };
    Observation::Unit(Unit { result: "exit-code".to_owned(), exec_main_status: 1, ..unit })
}

/// A daemon that is well, and has run for an hour.
fn daemon(now: &Moment) -> Daemon {
    let hour = 3_600_000;
    let started =
        Moment { wall_ms: now.wall_ms - hour, boot_ms: now.boot_ms - hour, boot_id: now.boot_id.clone() };
    Daemon {
        role: None,
        fleet: None,
        version: "1.2.3".to_owned(),
        revision: "abcdef0".to_owned(),
        reload: Reload { succeeded: true, at_ms: started.wall_ms },
        started,
        state_degraded: None,
        exporter: Some(Exporter::Up),
        prometheus: Some(Asked { at_ms: now.wall_ms, fault: None, answered_ms: Some(now.wall_ms) }),
        alertmanager: None,
        pipeline: found(now, &pipeline::Check::ALL.map(|check| (check, State::Ok, "well"))),
        arrived: BTreeMap::new(),
    }
}

/// What the checks of the way that alerts come found.
fn found(now: &Moment, findings: &[(pipeline::Check, State, &str)]) -> Report {
    let finding = |(check, state, detail): &(pipeline::Check, State, &str)| Finding {
        check: *check,
        state: *state,
        detail: (*detail).to_owned(),
        cure: String::new(),
    };
    Report { at_ms: now.wall_ms, findings: findings.iter().map(finding).collect() }
}

/// The texts, each under what was typed.
struct Texts<'a> {
    bench: &'a Bench,
    /// Of a configuration that names the two servers, which the walks of a test do not ask.
    assessor: Assessor,
    all: String,
}

impl<'a> Texts<'a> {
    fn of(bench: &'a Bench) -> Self {
        let servers =
            config("alertmanager: {url: 'http://127.0.0.1:1'}\nprometheus: {url: 'http://127.0.0.1:1'}\n")
                .unwrap();
        let Config { alertmanager, prometheus, .. } = servers;
        let assessor = &bench.walker().assessor;
        let config = Config { alertmanager, prometheus, ..Config::clone(&assessor.config) };
        Self { bench, assessor: assessor.under(Arc::new(config)), all: String::new() }
    }

    fn rule(&self, name: &str) -> &Rule {
        self.assessor.config.rules.iter().find(|known| known.name == name).unwrap()
    }

    fn add(&mut self, typed: &str, text: Vec<u8>) {
        write!(self.all, "$ {typed}\n{}\n", String::from_utf8(text).unwrap()).unwrap();
    }

    fn status(&mut self, typed: &str, daemon: &anyhow::Result<Daemon>) {
        let (reader, clock, mut out) = (self.bench.reader(), &self.bench.walker().clock, Vec::new());
        status::write(&self.assessor.config, &reader, daemon, clock, &mut out).unwrap();
        self.add(typed, out);
    }

    fn history(&mut self) {
        let (reader, mut out) = (self.bench.reader(), Vec::new());
        history::write(&reader, &reader.recent(None, None, 9).unwrap(), &mut out).unwrap();
        self.add("evenkeel-remediator history", out);
    }

    async fn explain(&mut self, rule: &str, name: &str, daemon: &anyhow::Result<Daemon>) {
        let (reader, clock, mut out) = (self.bench.reader(), &self.bench.walker().clock, Vec::new());
        let view = View { assessor: &self.assessor, reader: Some(&reader), daemon, clock };
        let known = self.rule(rule);
        view.explain(known, &known.selector.admit(name).unwrap(), &mut out).await.unwrap();
        self.add(&format!("evenkeel-remediator explain {rule} {name}"), out);
    }

    async fn simulate(&mut self, body: &str, daemon: &anyhow::Result<Daemon>) {
        let (reader, clock, mut out) = (self.bench.reader(), &self.bench.walker().clock, Vec::new());
        let view = View { assessor: &self.assessor, reader: Some(&reader), daemon, clock };
        simulate::write(&view, body.as_bytes(), &mut out).await.unwrap();
        self.add("evenkeel-remediator simulate --payload webhook.json", out);
    }
}

const WEBHOOK: &str = r#"{"version": "4", "alerts": [
    {"status": "firing", "labels": {"alertname": "unit-failed", "host": "vps1", "name": "app-other.service"}},
    {"status": "resolved", "labels": {"alertname": "unit-failed", "host": "vps1", "name": "app.service"}},
    {"status": "firing", "labels": {"alertname": "unit-failed", "host": "vps2", "name": "app.service"}},
    {"status": "firing", "labels": {"alertname": "unit-failed", "host": "vps1", "name": "ssh.service"}},
    {"status": "firing", "labels": {"alertname": "unit-failed", "host": "vps1"}},
    {"status": "firing", "labels": {"alertname": "Odd\u001b[2J", "host": "vps1"}}]}"#;

#[tokio::test(start_paused = true)]
async fn the_texts_read_as_reviewed() {
    let bench = bench();
    sleep(Duration::from_secs(3600)).await;
    let nobody = Err(anyhow::anyhow!("no remediator answers at /var/lib/evenkeel-remediator/control.sock"));
    let mut texts = Texts::of(&bench);
    texts.status("evenkeel-remediator status # a new one, and the daemon is down", &nobody);
    texts.history();
    texts.explain("unit-failed", APP, &nobody).await;

    // It is tried twice and does not help; another waits for a person; the disk's rule only plans.
    bench.heal("unit-failed", APP).await;
    sleep(Duration::from_secs(900)).await;
    bench.heal("unit-failed", APP).await;
    bench.heal("disk-high", DISK).await;
    bench.alert("unit-asked", OTHER).await;
    bench.walk(bench.last().id).await.unwrap();
    let well = Ok(daemon(&bench.now()));
    texts.status("evenkeel-remediator status", &well);
    texts.history();
    texts.explain("unit-failed", APP, &well).await;
    texts.explain("unit-asked", OTHER, &well).await;
    texts.explain("disk-high", DISK, &well).await;
    texts.simulate(WEBHOOK, &well).await;

    // Somebody stops everything, on a daemon that has only just started and is in trouble.
    let hours = Some(Duration::from_secs(7200));
    bench.journal().pause("a deployment".to_owned(), "root".to_owned(), hours, bench.now()).await.unwrap();
    let now = bench.now();
    let fault = Some("it answered 503 Service Unavailable".to_owned());
    let troubled = Ok(Daemon {
        started: Moment { wall_ms: now.wall_ms - 60_000, boot_ms: now.boot_ms - 60_000, ..now.clone() },
        reload: Reload { succeeded: false, at_ms: now.wall_ms - 60_000 },
        exporter: Some(Exporter::Down),
        alertmanager: Some(Asked { at_ms: now.wall_ms, fault, answered_ms: Some(now.wall_ms - 30_000) }),
        pipeline: found(
            &now,
            &[
                (
                    pipeline::Check::Jobs,
                    State::Failing,
                    "Prometheus cannot scrape job evenkeel-exporter on this host",
                ),
                (pipeline::Check::Routes, State::Unknown, "Alertmanager gave no answer"),
            ],
        ),
        ..daemon(&now)
    });
    texts.status("evenkeel-remediator status # paused, and in trouble", &troubled);
    texts.explain("unit-failed", OTHER, &troubled).await;
    bench.world.cure(OTHER);
    texts.explain("unit-failed", OTHER, &troubled).await;
    bench.world.hide(OTHER);
    texts.explain("unit-failed", OTHER, &troubled).await;
    assert_eq!(texts.all, include_str!("texts.golden"), "\n{}", texts.all);
}

/// What others say steers no terminal, wherever it is printed.
#[tokio::test(start_paused = true)]
async fn texts_of_others_are_printed_harmless() {
    const EVIL: &str = "x\u{1b}]0;evil\u{7}\n#99 forged\u{202e}";
    let mut bench = Bench::new(&[unit_rule("unit-failed", "")]);
    let restart = bench.fake("restart", Class::S2, Does::Nothing).checked(Check::Skip("no", EVIL.to_owned()));
    bench.steps("unit-failed", [restart]);
    assert_eq!(bench.config.rules[0].mode, Mode::Auto);
    bench.world.show(APP, unit("failed", EVIL));
    bench.heal("unit-failed", APP).await;
    bench.journal().pause(EVIL.to_owned(), EVIL.to_owned(), None, bench.now()).await.unwrap();
    let said = |text: &str| Some(Asked { at_ms: 0, fault: Some(text.to_owned()), answered_ms: None });
    let evil = Ok(Daemon {
        version: EVIL.to_owned(),
        revision: EVIL.to_owned(),
        state_degraded: Some(EVIL.to_owned()),
        prometheus: said(EVIL),
        alertmanager: said(EVIL),
        pipeline: found(&bench.now(), &[(pipeline::Check::Routes, State::Failing, EVIL)]),
        ..daemon(&bench.now())
    });
    let mut texts = Texts::of(&bench);
    texts.status("status", &evil);
    texts.status("status", &Err(anyhow::anyhow!(EVIL)));
    texts.history();
    texts.explain("unit-failed", APP, &evil).await;
    let steering = |c: char| c.is_control() && c != '\n' || c == '\u{202e}';
    assert!(!texts.all.contains(steering), "{:?}", texts.all);
    assert!(!texts.all.contains("\n#99"), "{}", texts.all);
    assert!(texts.all.contains("forged"), "{}", texts.all);
}
