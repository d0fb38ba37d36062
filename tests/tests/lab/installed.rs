//! A host with both daemons installed as their package would: the shipped units, users without privileges, helpers of
//! root's, and the polkit rule of the configuration. For what takes root and must not be done by anything else.

use std::{path::Path, sync::Arc};

use anyhow::{Context, Result, ensure};
use evenkeel_tests::{
    binaries,
    engine::Engine,
    exposition::Exposition,
    systemd_host::{SystemdHost, image},
    tools,
    wait::wait_for,
};
use serde_json::{Value, json};

use crate::{closed_loop::SOON, shared};

const TOKEN: &str = "a token that only this test knows";

/// What the packages put on a host, as packaging/README.md says.
const PACKAGED: &str = r#"set -e
cd /packaging
install -m 644 ./*.service ./*.socket ./*.timer /usr/lib/systemd/system/
install -m 644 sysusers.d/*.conf /usr/lib/sysusers.d/
systemd-sysusers evenkeel-exporter.conf evenkeel-remediator.conf
install -D -m 644 -t /usr/share/polkit-1/rules.d polkit-1/rules.d/50-evenkeel.rules
mkdir -p /etc/evenkeel
systemctl daemon-reload
"#;

const CONFIGURED: &str = r#"set -e
printf %s "$1" >/etc/evenkeel/remediator.yml
printf %s "$2" >/etc/evenkeel/exporter.yml
echo 'ARGS=--config.file=/etc/evenkeel/exporter.yml' >/etc/default/evenkeel-exporter
install -m 640 -g evenkeel-remediator /dev/null /etc/evenkeel/webhook.token
printf %s "$3" >/etc/evenkeel/webhook.token
evenkeel-remediator generate polkit >/etc/polkit-1/rules.d/50-evenkeel.rules
systemctl start evenkeel-exporter evenkeel-remediator
"#;

/// A host with both binaries and everything that is shipped with them, nothing configured and nothing started.
pub(crate) async fn packaged() -> Result<SystemdHost> {
    unpacked(shared::engine().await?, &[]).await
}

/// The same, with the engine's socket where Docker has it, for the group `docker`.
pub(crate) async fn packaged_with_docker(engine: Arc<Engine>) -> Result<SystemdHost> {
    let socket = format!("{}:/run/docker.sock", engine.socket().display());
    let host = unpacked(engine, &[socket]).await?;
    host.exec(&["sh", "-ec", "groupadd --system docker; chgrp docker /run/docker.sock"]).await?;
    Ok(host)
}

async fn unpacked(engine: Arc<Engine>, more: &[String]) -> Result<SystemdHost> {
    let path = |path: &Path| path.display().to_string();
    let volumes = [
        format!("{}:/usr/bin/evenkeel-exporter:ro", path(&binaries::built("evenkeel-exporter")?)),
        format!("{}:/usr/bin/evenkeel-remediator:ro", path(&binaries::built("evenkeel-remediator")?)),
        format!("{}:/packaging:ro", path(&tools::repository().join("packaging"))),
    ];
    let host = SystemdHost::start_with(engine, &image("own"), &[&volumes, more].concat()).await?;
    host.exec(&["sh", "-c", PACKAGED]).await?;
    Ok(host)
}

/// The host. Dropping it removes it.
pub(crate) struct Installed {
    pub(crate) host: SystemdHost,
    name: String,
}

impl Installed {
    /// With these rules in a remediator that may do everything they say, and an exporter with this configuration.
    pub(crate) async fn start(rules: &str, exporter: &str) -> Result<Self> {
        let host = packaged().await?;
        let config = format!(
            "server: {{bearer_token_files: [webhook.token]}}\n\
             policy:\n  mode: auto\n\
             \x20 gates: {{grace: 0s, engine_grace: 0s, load: 1000, package_manager: false}}\n\
             \x20 limits: {{S1: [999/1h], S2: [999/1h]}}\n\
             rules:{rules}"
        );
        host.exec(&["sh", "-c", CONFIGURED, "sh", &config, exporter, TOKEN]).await?;
        let name = host.exec(&["hostname"]).await?;
        Ok(Self { host, name })
    }

    /// Delivers an alert.
    pub(crate) async fn alert(&self, alertname: &str, mut labels: Value) -> Result<()> {
        labels["alertname"] = alertname.into();
        labels["host"] = self.name.clone().into();
        let body = json!({
            "version": "4", "status": "firing", "groupKey": "{}", "groupLabels": {}, "commonLabels": {},
            "alerts": [{"status": "firing", "labels": labels, "fingerprint": "feed"}],
        });
        let headers = format!("Authorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\n");
        wait_for("the remediator to accept it", SOON, async || {
            let answer = self.host.http(19848, "POST", "/api/v1/alerts", &headers, &body.to_string()).await?;
            ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            Ok(())
        })
        .await
    }

    /// Runs the remediator's command line, as root on the host.
    pub(crate) async fn cli(&self, arguments: &[&str]) -> Result<String> {
        self.host.exec(&[&["evenkeel-remediator"], arguments].concat()).await
    }

    /// Waits until the newest remediation of a rule is in this phase, and is not the one of this id.
    pub(crate) async fn record(&self, rule: &str, phase: &str, not: Option<&Value>) -> Result<Value> {
        let what = format!("{rule} to be {phase}");
        wait_for(&what, SOON, async || {
            let lines = self.cli(&["history", "--json", "--rule", rule]).await?;
            let record: Value = serde_json::from_str(lines.lines().next().context("nothing yet")?)?;
            ensure!(not.is_none_or(|not| *not != record["id"]), "still the one before");
            ensure!(record["phase"] == phase, "it is {record:#}");
            Ok(record)
        })
        .await
    }

    /// What the exporter says.
    pub(crate) async fn scrape(&self) -> Result<Exposition> {
        let answer = self.host.http(19847, "GET", "/metrics", "", "").await?;
        let (head, body) = answer.split_once("\r\n\r\n").context("an answer has a head")?;
        ensure!(head.starts_with("HTTP/1.1 200"), "{head}");
        Ok(Exposition::parse(body))
    }

    /// A file's bytes as they are, also those that are no text.
    pub(crate) async fn bytes(&self, path: &str) -> Result<String> {
        // The last newline would be cut off otherwise.
        self.host.exec(&["sh", "-c", "base64 --wrap=0 \"$1\"", "sh", path]).await
    }
}
