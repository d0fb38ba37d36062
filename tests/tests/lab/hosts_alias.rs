//! Case 19 of the operations documents: `quantum_redis` resolves inside Compose and not under systemd. It gets a line in
//! /etc/hosts, also where something is mounted on that file, and loses it again.

use anyhow::{Context, Result, ensure};
use evenkeel_tests::wait::wait_for;
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::{alone::ended, closed_loop::SOON, installed::Installed, trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial("hosts_alias_gives_a_name_an_address_and_takes_it_away", gives_and_takes_away)]
}

const NAME: &str = "quantum_redis";
const OTHER: &str = "quantum_db";
const HOSTS: &str = "/etc/hosts";
const UNIT: &str = "quantum-portfolio-intelligence.service";
const LINE: &str = "127.0.0.1 quantum_redis # evenkeel: hosts_alias";

const EXPORTER: &str = "resolve: [{host: quantum_redis, expect: [127.0.0.1]}]\n";

const RULES: &str = r#"
  - name: hosts-alias
    match: ['alertname="HostNameUnresolved"']
    target: {hostname: name, allow: [quantum_redis, quantum_db]}
    limits: [99/1h]
    cooldown: 0s
    breaker: {after: 99, hold: 1m}
    steps: [{hosts_alias: {address: 127.0.0.1}}]
    verify: {resolves_to: 127.0.0.1, hold: 1s, within: 30s}
  - name: hosts-alias-away
    on_demand: true
    target: {hostname: name, allow: [quantum_redis]}
    limits: [99/1h]
    cooldown: 0s
    steps: [{hosts_alias: {absent: true}}]
    verify: {completed: true, within: 30s}
"#;

/// One alert about a name, and how it ended.
async fn unresolved(at: &Installed, name: &str, last: &mut Option<Value>) -> Result<Value> {
    at.alert("HostNameUnresolved", json!({"name": name})).await?;
    let record = at.record("hosts-alias", "ended", last.as_ref()).await?;
    *last = Some(record["id"].clone());
    Ok(record)
}

/// Waits until the exporter says that the name resolves, and to what it should, or neither.
async fn shows(at: &Installed, value: f64) -> Result<()> {
    wait_for("the exporter to see it", SOON, async || {
        let page = at.scrape().await?;
        for metric in ["evenkeel_resolve_success", "evenkeel_resolve_expected"] {
            let seen = page.value(metric, &[("host", NAME)]);
            ensure!(seen == Some(value), "{metric} {seen:?}");
        }
        Ok(())
    })
    .await
}

async fn gives_and_takes_away() -> Result<()> {
    let at = Installed::start(RULES, EXPORTER).await?;
    let host = &at.host;
    let stat = async || host.exec(&["stat", "-c", "%i %a %u:%g", HOSTS]).await;
    let text = "[Service]\nExecStart=/bin/sh -c 'getent hosts quantum_redis && exec sleep 600'\n";
    host.install_unit(UNIT, text).await?;
    host.systemctl(&["start", UNIT]).await?;
    let mut last = None;
    shows(&at, 0.0).await?;

    // An engine mounts the file.
    let (before, about) = (at.bytes(HOSTS).await?, stat().await?);
    let record = unresolved(&at, NAME, &mut last).await?;
    ended(&record, "succeeded", "verified")?;
    ensure!(record["before"]["hostname"]["addresses"] == json!([]), "{record:#}");
    ensure!(record["after"]["hostname"]["addresses"] == json!(["127.0.0.1"]), "{record:#}");
    let words: Vec<String> =
        host.exec(&["getent", "hosts", NAME]).await?.split_whitespace().map(str::to_owned).collect();
    ensure!(words == ["127.0.0.1", NAME], "{words:?}");
    ensure!(host.exec(&["tail", "-n", "1", HOSTS]).await? == LINE);
    ensure!(stat().await? == about, "another file, mode or owner: {}", stat().await?);
    host.systemctl(&["restart", UNIT]).await?;
    ensure!(host.property(UNIT, "ActiveState").await? == "active", "the service does not see it");
    let kept = host.exec(&["sh", "-c", "base64 --wrap=0 /var/lib/evenkeel/backups/etc/hosts/*"]).await?;
    ensure!(kept == before, "the backup is something else");

    shows(&at, 1.0).await?;

    // Once is enough, and it goes as it came.
    ended(&unresolved(&at, NAME, &mut last).await?, "not_needed", "already_well")?;
    at.cli(&["trigger", "hosts-alias-away", NAME]).await?;
    ended(&at.record("hosts-alias-away", "ended", None).await?, "succeeded", "verified")?;
    ensure!(at.bytes(HOSTS).await? == before, "it is not as it was");

    // A file of the host's own is replaced, with all else about it kept.
    host.exec(&["umount", HOSTS]).await?;
    let own = "127.0.0.1\tlocalhost\n# by hand\n10.0.0.7 quantum_db\n::1 localhost ip6-localhost";
    host.write_file(HOSTS, own).await?;
    host.exec(&["chown", "0:1", HOSTS]).await?;
    host.exec(&["chmod", "0664", HOSTS]).await?;
    let record = unresolved(&at, NAME, &mut last).await?;
    ended(&record, "blocked", "check_failed")?;
    ensure!(record["detail"].as_str().is_some_and(|detail| detail.contains("0664")), "{record:#}");
    host.exec(&["chmod", "0644", HOSTS]).await?;
    let about = stat().await?;
    ended(&unresolved(&at, NAME, &mut last).await?, "succeeded", "verified")?;
    ensure!(
        host.exec(&["cat", HOSTS]).await? == format!("{own}\n{LINE}"),
        "{}",
        host.exec(&["cat", HOSTS]).await?
    );
    let now = stat().await?;
    let (inode, rest) = about.split_once(' ').context("an inode")?;
    ensure!(now.ends_with(rest) && !now.starts_with(inode), "{about} became {now}");

    // A line that nobody looks at does not help, and goes again.
    at.cli(&["trigger", "hosts-alias-away", NAME]).await?;
    wait_for("the line to be gone", SOON, async || {
        ensure!(host.exec(&["cat", HOSTS]).await? == own, "{}", host.exec(&["cat", HOSTS]).await?);
        Ok(())
    })
    .await?;
    host.exec(&["sed", "-i", "s/^hosts:.*/hosts: dns/", "/etc/nsswitch.conf"]).await?;
    let record = unresolved(&at, NAME, &mut last).await?;
    ensure!(record["outcome"] == "failed", "{record:#}");
    ensure!(record["steps"].to_string().contains("it did not help: "), "{record:#}");
    ensure!(host.exec(&["cat", HOSTS]).await? == own, "the line is still there");

    // What somebody else wrote there is theirs.
    let before = at.bytes(HOSTS).await?;
    ended(&unresolved(&at, OTHER, &mut last).await?, "blocked", "named_otherwise")?;
    ensure!(at.bytes(HOSTS).await? == before, "it was changed all the same");
    Ok(())
}
