//! The golden snapshot of the operations document: twenty unit files under their own names on a real systemd, copied,
//! damaged in every way, and brought back by the packaged remediator without root, through its helper, with approval.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use evenkeel_tests::{exposition::Exposition, systemd_host::SystemdHost, wait::wait_for};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::{installed, trial};

const SOON: Duration = Duration::from_secs(120);

const RESTORE: &str = "golden-restore";
const TARGET: &str = "quantum-trader.target";

/// Running, as the document lists them.
const RUNNING: [&str; 12] = [
    "binance-pnl-tracker",
    "ceo-brain",
    "execution",
    "market-publisher",
    "portfolio-intelligence",
    "position-monitor",
    "risk-brain",
    "rl-feedback-v2",
    "rl-monitor",
    "rl-sizer",
    "strategy-brain",
    "strategy-ops",
];
/// With a unit file and not running: two that the document disabled, and those that fill up its nineteen.
const RESTING: [&str; 7] =
    ["clm", "risk-safety", "auto-hedge", "backtest", "exit-brain", "policy-store", "signal-router"];
/// Wanted by the target and without a unit file.
const NOT_FOUND: [&str; 3] = ["pil", "universe-os", "meta-regime"];

const REMEDIATOR: &str = r#"
server: {auth: none}
policy: {mode: auto, gates: {grace: 0s, engine_grace: 0s, load: 1000, package_manager: false}, limits: {S1: [1000/1h], S2: [1000/1h]}}
snapshot: {units: ["quantum-*.service", quantum-trader.target]}
rules:
  - name: golden-snapshot
    on_demand: true
    needed: {always: true}
    limits: [1000/1h]
    cooldown: 0s
    steps: [unit_snapshot]
    verify: {completed: true, within: 1m}
  - name: golden-restore
    on_demand: true
    mode: approve
    target: {unit: name, allow: [quantum-trader.target]}
    needed: {always: true}
    limits: [1000/1h]
    cooldown: 0s
    breaker: {after: 100, hold: 1s}
    steps: [{unit_restore: {hold: 2s, within: 60s}}]
    verify: {active_for: 2s, within: 30s}
"#;
const EXPORTER: &str = r#"
snapshot: {units: ["quantum-*.service", quantum-trader.target], check_every: 0s}
"#;

const CONFIGURED: &str = r#"set -e
printf %s "$1" >/etc/evenkeel/remediator.yml
printf %s "$2" >/etc/evenkeel/exporter.yml
echo 'ARGS=--config.file=/etc/evenkeel/exporter.yml' >/etc/default/evenkeel-exporter
evenkeel-remediator generate polkit >/etc/polkit-1/rules.d/50-evenkeel.rules
printf '#!/bin/sh\nexec sleep infinity\n' >/usr/local/bin/rl-sizer
chmod 755 /usr/local/bin/rl-sizer
"#;

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial("snapshot_of_the_document_is_kept_watched_and_brought_back", kept_watched_and_brought_back)]
}

async fn kept_watched_and_brought_back() -> Result<()> {
    let at = At::install().await?;
    at.is_kept_once_and_nothing_has_drifted().await?;
    let golden = at.files().await?;

    at.damage().await?;
    at.every_damage_is_seen().await?;
    at.a_tampered_snapshot_is_refused().await?;
    at.the_document_s_way_back(&golden).await?;
    at.what_does_not_come_up_is_taken_back().await?;
    at.a_helper_that_is_killed_leaves_what_was_there().await
}

/// The host, with everything on it.
struct At {
    host: SystemdHost,
}

impl At {
    async fn install() -> Result<Self> {
        let host = installed::packaged().await?;
        host.exec(&["sh", "-c", CONFIGURED, "sh", REMEDIATOR, EXPORTER]).await?;
        host.exec(&["sh", "-ec", &unit_files()]).await?;
        host.systemctl(&["daemon-reload"]).await?;
        host.systemctl(&["enable", "quantum-execution.service", TARGET]).await?;
        host.systemctl(&["start", TARGET, "evenkeel-exporter", "evenkeel-remediator"]).await?;
        let at = Self { host };
        at.documents_commands_agree().await?;
        Ok(at)
    }

    async fn sh(&self, script: &str) -> Result<String> {
        self.host.exec(&["sh", "-ec", script]).await
    }

    /// All that the units' files are: names, modes, owners, links and contents.
    async fn files(&self) -> Result<String> {
        self.sh("cd /etc/systemd/system
             find . -name '*quantum*' ! -type d -printf '%p %M %U:%G %l\\n' | sort
             find . -name 'quantum*' -type f | sort | xargs sha256sum
             find . -path '*quantum*.d/*' -type f | sort | xargs sha256sum")
            .await
    }

    /// Triggers a rule and answers what is on record of it when it is in this phase.
    async fn triggered(&self, rule: &str, phase: &str) -> Result<Value> {
        // What only repeats the one before is on record as that one.
        let stamp = |record: &Value| (record["id"].clone(), record["last_seen_wall_ms"].clone());
        let last = self.newest(rule).await?.as_ref().map(stamp);
        self.host.exec(&["evenkeel-remediator", "trigger", rule]).await?;
        wait_for(&format!("{rule} to be {phase}"), SOON, async || {
            let newest = self.newest(rule).await?.context("nothing yet")?;
            ensure!(last.as_ref() != Some(&stamp(&newest)) && newest["phase"] == phase, "{newest:#}");
            Ok(newest)
        })
        .await
    }

    async fn newest(&self, rule: &str) -> Result<Option<Value>> {
        let lines = self.host.exec(&["evenkeel-remediator", "history", "--json", "--rule", rule]).await?;
        lines.lines().next().map(|line| Ok(serde_json::from_str(line)?)).transpose()
    }

    /// Triggers the restore, approves of it, and answers what came of it.
    async fn approve(&self) -> Result<i64> {
        let asked = self.triggered(RESTORE, "awaiting").await?;
        let id = asked["id"].as_i64().context("it has a number")?;
        self.host.exec(&["evenkeel-remediator", "approve", &id.to_string()]).await?;
        Ok(id)
    }

    async fn ended(&self, id: i64) -> Result<Value> {
        wait_for("the restore to end", SOON, async || {
            let newest = self.newest(RESTORE).await?.context("nothing yet")?;
            ensure!(newest["id"] == id && newest["phase"] == "ended", "{newest:#}");
            Ok(newest)
        })
        .await
    }

    async fn drift(&self) -> Result<Vec<String>> {
        let answer = self.host.http(19847, "GET", "/metrics", "", "").await?;
        let (_, body) = answer.split_once("\r\n\r\n").context("an answer has a head")?;
        let page = Exposition::parse(body);
        ensure!(
            page.value("evenkeel_scrape_collector_success", &[("collector", "snapshot")]) == Some(1.0),
            "{body}"
        );
        let of = page.all("systemd_unit_file_drift", &[]).filter(|sample| sample.value != 0.0);
        Ok(of.map(|one| format!("{} {} {}", one.labels["name"], one.labels["change"], one.value)).collect())
    }

    async fn is_kept_once_and_nothing_has_drifted(&self) -> Result<()> {
        // Before the first there is nothing to say.
        let answer = self.host.http(19847, "GET", "/metrics", "", "").await?;
        ensure!(!answer.contains("systemd_unit_file_drift"), "{answer}");
        ensure!(answer.contains(r#"evenkeel_collector_absent{collector="snapshot"} 1"#), "{answer}");
        let made = self.triggered("golden-snapshot", "ended").await?;
        ensure!(made["outcome"] == "succeeded", "{made:#}");
        let copies = self.sh("find /var/lib/evenkeel/snapshots/2*/files -type f | wc -l").await?;
        ensure!(copies.trim() == "21", "twenty unit files and a drop-in, not {copies}");
        let modes =
            self.sh("stat -c '%a %U' /var/lib/evenkeel/snapshots /var/lib/evenkeel/snapshots/2*").await?;
        ensure!(modes.lines().all(|line| line == "755 root"), "{modes}");
        let again = self.triggered("golden-snapshot", "ended").await?;
        ensure!(again["outcome"] == "blocked" && again["reason"] == "unchanged", "{again:#}");
        let drift = self.drift().await?;
        ensure!(drift.is_empty(), "{drift:?}");
        Ok(())
    }

    /// Changed, deleted, added, another mode, and an enablement link gone; systemd has read all of it.
    async fn damage(&self) -> Result<()> {
        self.sh("cd /etc/systemd/system
             sed -i 's#^ExecStart=.*#ExecStart=/bin/false#' quantum-rl-monitor.service
             rm quantum-ceo-brain.service
             printf '[Service]\\nExecStart=/bin/sleep infinity\\n' >quantum-rogue.service
             chmod 666 quantum-execution.service
             rm multi-user.target.wants/quantum-execution.service
             echo 'Nice=19' >>quantum-strategy-ops.service.d/limits.conf
             systemctl daemon-reload
             systemctl restart quantum-rl-monitor || true
             systemctl stop quantum-ceo-brain || true")
            .await
            .map(drop)
    }

    async fn every_damage_is_seen(&self) -> Result<()> {
        let seen = self.drift().await?;
        ensure!(
            seen == [
                "quantum-ceo-brain.service missing 1",
                "quantum-execution.service missing 1",
                "quantum-execution.service modified 1",
                "quantum-rl-monitor.service modified 1",
                "quantum-rogue.service added 1",
                "quantum-strategy-ops.service modified 1",
            ],
            "{seen:#?}"
        );
        Ok(())
    }

    async fn a_tampered_snapshot_is_refused(&self) -> Result<()> {
        let before = self.files().await?;
        let copy =
            "cd /var/lib/evenkeel/snapshots/2*/files/etc/systemd/system; file=quantum-rl-monitor.service";
        self.sh(&format!("{copy}; cp -p $file /root/kept; echo ExecStartPre=/bin/evil >>$file")).await?;
        let refused = self.triggered(RESTORE, "ended").await?;
        ensure!(refused["outcome"] == "blocked" && refused["reason"] == "snapshot_damaged", "{refused:#}");
        self.sh(&format!("{copy}; cat /root/kept >$file")).await?;
        let manifest = "cd /var/lib/evenkeel/snapshots/2*";
        self.sh(&format!("{manifest}; cp -p manifest.json /root/kept; sed -i 's/0644/0666/' manifest.json"))
            .await?;
        let refused = self.triggered(RESTORE, "ended").await?;
        ensure!(refused["reason"] == "snapshot_damaged", "{refused:#}");
        let detail = refused["detail"].as_str().unwrap_or_default();
        ensure!(detail.ends_with("it is not what was written: it was changed or damaged"), "{detail}");
        let answer = self.host.http(19847, "GET", "/metrics", "", "").await?;
        ensure!(
            answer.contains(r#"evenkeel_scrape_collector_success{collector="snapshot"} 0"#),
            "the exporter takes it for good"
        );
        self.sh(&format!("{manifest}; cat /root/kept >manifest.json")).await?;
        ensure!(self.files().await? == before, "files were changed");
        Ok(())
    }

    async fn the_document_s_way_back(&self, golden: &str) -> Result<()> {
        let asked = self.triggered(RESTORE, "awaiting").await?;
        ensure!(step(&asked)?.contains("\n  - ExecStart=/bin/false\n"), "{asked:#}");
        let explained = self.host.exec(&["evenkeel-remediator", "explain", RESTORE, TARGET]).await?;
        for line in [
            "5 files: ",
            "/etc/systemd/system/quantum-rl-monitor.service (modified)",
            "- ExecStart=/bin/false",
            "+ ExecStart=/bin/sleep infinity",
            "- file 0666 0:0",
            "+ link to /etc/systemd/system/quantum-execution.service",
            "left as they are: 1 file: /etc/systemd/system/quantum-rogue.service added",
        ] {
            ensure!(explained.contains(line), "no {line:?} in\n{explained}");
        }
        let id = asked["id"].as_i64().context("it has a number")?;
        self.host.exec(&["evenkeel-remediator", "approve", &id.to_string()]).await?;
        let done = self.ended(id).await?;
        ensure!(done["outcome"] == "succeeded", "{done:#}");
        let said = step(&done)?;
        for word in ["restarted quantum-trader.target", "quantum-rl-monitor.service", "before/2"] {
            ensure!(said.contains(word), "no {word:?} in {said}");
        }
        self.sh("rm /etc/systemd/system/quantum-rogue.service; systemctl daemon-reload").await?;
        let files = self.files().await?;
        ensure!(files == golden, "{files}\nis not\n{golden}");
        let drift = self.drift().await?;
        ensure!(drift.is_empty(), "{drift:?}");
        self.documents_commands_agree().await?;
        for unit in ["quantum-rl-monitor.service", "quantum-ceo-brain.service", TARGET] {
            ensure!(self.host.property(unit, "NeedDaemonReload").await? == "no", "{unit}");
        }
        let command = self.host.property("quantum-rl-monitor.service", "ExecStart").await?;
        ensure!(command.contains("infinity"), "{command}");
        Ok(())
    }

    /// The verification of the document, by its own commands.
    async fn documents_commands_agree(&self) -> Result<()> {
        self.host.systemctl(&["status", TARGET]).await?;
        let failed = self.host.systemctl(&["--failed"]).await?;
        ensure!(failed.contains("0 loaded units listed"), "{failed}");
        let count = r#"systemctl list-units "quantum*.service" --state=running --no-legend | wc -l"#;
        wait_for("twelve running services", SOON, async || {
            let running = self.sh(count).await?;
            ensure!(running.trim() == "12", "{running} run");
            Ok(())
        })
        .await
    }

    /// The program of one service is gone, so its golden file does not come up.
    async fn what_does_not_come_up_is_taken_back(&self) -> Result<()> {
        self.sh(
            "sed -i 's#^ExecStart=.*#ExecStart=/bin/sleep 100000#' /etc/systemd/system/quantum-rl-sizer.service
             chmod 640 /etc/systemd/system/quantum-risk-brain.service
             systemctl daemon-reload
             systemctl restart quantum-rl-sizer
             rm /usr/local/bin/rl-sizer",
        )
        .await?;
        let before = self.files().await?;
        let id = self.approve().await?;
        let failed = self.ended(id).await?;
        ensure!(failed["outcome"] == "failed", "{failed:#}");
        let said = step(&failed)?;
        for words in ["quantum-rl-sizer.service", "every file is as it was before (2 taken back)"] {
            ensure!(said.contains(words), "no {words:?} in {said}");
        }
        ensure!(self.files().await? == before, "files were changed");
        self.documents_commands_agree().await?;
        let command = self.host.property("quantum-rl-sizer.service", "ExecStart").await?;
        ensure!(command.contains("100000"), "{command}");
        self.sh("printf '#!/bin/sh\\nexec sleep infinity\\n' >/usr/local/bin/rl-sizer; chmod 755 /usr/local/bin/rl-sizer")
            .await
            .map(drop)
    }

    async fn a_helper_that_is_killed_leaves_what_was_there(&self) -> Result<()> {
        const SLOW: &str = "quantum-strategy-brain.service";
        self.sh(&format!(
            "sed -i '/^ExecStartPre=/d' /etc/systemd/system/{SLOW}
             systemctl daemon-reload
             systemctl restart {SLOW}
             touch /run/slow"
        ))
        .await?;
        let before = self.files().await?;
        let id = self.approve().await?;
        wait_for("the helper to be in the middle", SOON, async || {
            let state = self.host.property(SLOW, "ActiveState").await?;
            ensure!(state == "activating", "it is {state}");
            Ok(())
        })
        .await?;
        self.sh("test -e /var/lib/evenkeel/snapshots/before/begun.json").await?;
        ensure!(self.files().await? != before, "nothing was changed yet");
        self.host.systemctl(&["kill", "--signal=KILL", "--kill-who=main", "evenkeel-unit-restore@*"]).await?;
        let killed = self.ended(id).await?;
        ensure!(killed["outcome"] == "failed", "{killed:#}");
        let said = step(&killed)?;
        for words in ["it was interrupted; every file is as it was before (3 taken back)", SLOW] {
            ensure!(said.contains(words), "no {words:?} in {said}");
        }
        ensure!(self.files().await? == before, "files were changed");
        self.sh("test ! -e /var/lib/evenkeel/snapshots/before/begun.json; rm /run/slow").await?;
        self.documents_commands_agree().await?;
        // And the next one is none the worse for it.
        let id = self.approve().await?;
        let done = self.ended(id).await?;
        ensure!(done["outcome"] == "succeeded", "{done:#}");
        let drift = self.drift().await?;
        ensure!(drift.is_empty(), "{drift:?}");
        self.documents_commands_agree().await
    }
}

/// What the restoring step says of itself.
fn step(record: &Value) -> Result<String> {
    let steps = record["steps"].as_array().context("it has steps")?;
    let step = steps.iter().find(|step| step["action"] == "unit_restore").context("it was tried")?;
    Ok(step["detail"].as_str().unwrap_or_default().to_owned())
}

fn unit_files() -> String {
    let list = |names: &[&str]| names.join(" ");
    format!(
        "cd /etc/systemd/system
         for name in {running} {resting}; do
             printf '[Unit]\\nDescription=%s\\n[Service]\\nExecStart=/bin/sleep infinity\\n[Install]\\nWantedBy=multi-user.target\\n' $name >quantum-$name.service
         done
         sed -i 's#^ExecStart=.*#ExecStart=/usr/local/bin/rl-sizer#' quantum-rl-sizer.service
         sed -i 's#^ExecStart=.*#ExecStartPre=/bin/sh -c \"test ! -e /run/slow || exec sleep 100\"\\n&#' quantum-strategy-brain.service
         mkdir quantum-strategy-ops.service.d
         printf '[Service]\\nMemoryMax=1G\\n' >quantum-strategy-ops.service.d/limits.conf
         printf '[Unit]\\nDescription=Quantum Trader\\n' >quantum-trader.target
         for name in {running} {missing}; do echo Wants=quantum-$name.service >>quantum-trader.target; done
         printf '[Install]\\nWantedBy=multi-user.target\\n' >>quantum-trader.target",
        running = list(&RUNNING),
        resting = list(&RESTING),
        missing = list(&NOT_FOUND),
    )
}
