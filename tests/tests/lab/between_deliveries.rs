//! Between two deliveries, with a real Alertmanager: what a silence holds back is done when the silence is over, what a
//! limit holds back when the limit allows, each without a further delivery; and all of it goes on without Alertmanager.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use evenkeel_tests::{
    alertmanager::Alertmanager, binaries::Remediator, http, namespace, process::free_port, wait::wait_for,
};
use jiff::{Timestamp, ToSpan};
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::{shared, trial};

const UNIT: &str = "between-deliveries.service";
const SOON: Duration = Duration::from_secs(90);

/// One restart in 15 seconds: the second alert always meets the limit.
const REMEDIATOR: &str = r#"
identity: {hosts: [lab]}
server: {auth: none, listen: ["127.0.0.1:PORT"]}
state: {dir: state}
reconcile: {interval: 1s}
alertmanager: {url: "ALERTMANAGER"}
policy: {gates: {grace: 0s, engine_grace: 0s, load: 1000, package_manager: false}, mode: auto, limits: {S2: [100/1h]}}
rules:
  - name: between
    match: ['alertname="Between"']
    target: {unit: name, allow: [between-deliveries.service]}
    limits: [1/15s]
    cooldown: 0s
    steps: [unit_restart: {reset_failed: once}]
    verify: {active_for: 1s, within: 20s}
"#;

/// Nobody is called, and nothing is delivered to the remediator: the test does that.
const ALERTMANAGER: &str = "route: {receiver: nobody}\nreceivers: [{name: nobody}]\n";

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial("held_back_between_deliveries_is_done_when_it_may_be", held_back)]
}

struct Scene {
    remediator: Remediator,
}

impl Scene {
    async fn deliver(&self) -> Result<()> {
        let alert = json!({"status": "firing", "labels": labels()});
        let delivery = json!({"version": "4", "alerts": [alert]});
        http::post_json(&format!("{}/api/v1/alerts", self.remediator.url()), &delivery).await.map(drop)
    }

    /// Waits until the newest remediation has this outcome and reason, and is none of those before.
    async fn ends(&self, after: i64, outcome: &str, reason: &str) -> Result<Value> {
        wait_for(&format!("{outcome} ({reason}) after #{after}"), SOON, async || {
            let lines = self.remediator.cli(&["history", "--json", "--limit", "1"]).await?;
            let newest: Value = serde_json::from_str(lines.lines().next().context("no history")?)?;
            let id = newest["id"].as_i64().context("no number")?;
            ensure!(
                id > after && newest["outcome"] == outcome && newest["reason"] == reason,
                "#{id} is {} ({})",
                newest["outcome"],
                newest["reason"]
            );
            Ok(newest)
        })
        .await
    }
}

fn labels() -> Value {
    json!({"alertname": "Between", "host": "lab", "name": UNIT})
}

async fn held_back() -> Result<()> {
    let host = shared::host().await?;
    let around = shared::surroundings().await?;
    let dir = namespace::place("between")?;
    let (port, config) = (free_port()?, dir.join("remediator.yml"));
    fs::write(dir.join("alertmanager.yml"), ALERTMANAGER)?;
    let alertmanager = Alertmanager::start(&dir.join("alertmanager.yml"), free_port()?).await?;
    let text = REMEDIATOR.replace("PORT", &port.to_string()).replace("ALERTMANAGER", &alertmanager.url());
    fs::write(&config, text)?;
    let scene = Scene { remediator: Remediator::start(&dir, port, &config, &around).await? };
    host.install_unit(UNIT, "[Service]\nExecStart=/bin/sleep infinity\n").await?;
    let fail = async || -> Result<()> {
        host.systemctl(&["start", UNIT]).await?;
        host.systemctl(&["kill", "--signal=SEGV", UNIT]).await?;
        wait_for("the unit to fail", SOON, async || {
            let state = host.systemctl(&["show", "--value", "--property=ActiveState", UNIT]).await?;
            ensure!(state.trim() == "failed", "it is {state}");
            Ok(())
        })
        .await
    };

    // An alert that people silence while its repair waits for the limit.
    http::post_json(&format!("{}/api/v2/alerts", alertmanager.url()), &json!([{"labels": labels()}])).await?;
    fail().await?;
    scene.deliver().await?;
    let first = scene.ends(0, "succeeded", "verified").await?["id"].as_i64().context("no number")?;
    fail().await?;
    scene.deliver().await?;
    let silence = silence(&alertmanager).await?;
    let silenced = scene.ends(first, "blocked", "silenced").await?;
    let detail = silenced["detail"].as_str().unwrap_or_default();
    ensure!(detail.contains(&silence), "{detail} does not name the silence {silence}");
    let state = host.systemctl(&["show", "--value", "--property=ActiveState", UNIT]).await?;
    ensure!(state.trim() == "failed", "it was acted upon: {state}");

    // The silence is over: it is done, and nobody has delivered anything.
    let expire = format!("{}/api/v2/silence/{silence}", alertmanager.url());
    http::client()?.delete(expire).send().await?.error_for_status()?;
    let id = silenced["id"].as_i64().context("no number")?;
    let done = scene.ends(id, "succeeded", "verified").await?;
    ensure!(done["deliveries"] == 0, "an alert came: {done}");

    // Alertmanager is no more: what a limit holds back is done all the same.
    drop(alertmanager);
    fail().await?;
    scene.deliver().await?;
    let id = done["id"].as_i64().context("no number")?;
    scene.ends(id, "succeeded", "verified").await?;
    let scrape = http::get(&format!("{}/metrics", scene.remediator.url())).await?;
    for outcome in ["success", "unreachable"] {
        let series =
            format!("evenkeel_remediator_api_requests_total{{api=\"alertmanager\",outcome=\"{outcome}\"}}");
        ensure!(scrape.contains(&series), "no {series}");
    }
    host.systemctl(&["stop", UNIT]).await.map(drop)
}

/// Silences the alert for an hour; the silence's number.
async fn silence(alertmanager: &Alertmanager) -> Result<String> {
    let now = Timestamp::now();
    let matcher =
        |name: &str, value: &str| json!({"name": name, "value": value, "isRegex": false, "isEqual": true});
    let silence = json!({
        "matchers": [matcher("alertname", "Between"), matcher("name", UNIT)],
        "startsAt": now.to_string(), "endsAt": (now + 1.hour()).to_string(),
        "createdBy": "the lab", "comment": "being looked at",
    });
    let url = format!("{}/api/v2/silences", alertmanager.url());
    let answer: Value =
        http::client()?.post(url).json(&silence).send().await?.error_for_status()?.json().await?;
    answer["silenceID"].as_str().map(str::to_owned).context("no silence")
}
