//! What takes root, done by the shipped template units on a real systemd: they do what the configuration lets them, and
//! nothing else, whatever their instance says.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use evenkeel_remediator::filling::Filling;
use evenkeel_tests::{
    binaries::built,
    engine::{Engine, Options},
    systemd_host::SystemdHost,
    wait::wait_for,
};
use libtest_mimic::Trial;

use crate::trial;

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial("helper_does_what_the_configuration_lets_it", does_what_the_configuration_lets_it)]
}

const STALE: &str = "helped-stale.service";
const CONFIG: &str = "/etc/evenkeel/remediator.yml";

async fn does_what_the_configuration_lets_it() -> Result<()> {
    let engine = Arc::new(Engine::start(Options::default()).await?);
    let host = SystemdHost::start(Arc::clone(&engine)).await?;
    install(&engine, &host).await?;
    reloads_for_the_rule_and_nothing_else(&host).await?;
    says_what_fills_the_disk(&host).await?;
    vacuums_the_journal(&host).await
}

/// The binary, the templates, the group and the folder, as a package would.
async fn install(engine: &Engine, host: &SystemdHost) -> Result<()> {
    let binary = built("evenkeel-remediator")?;
    let binary = binary.to_str().context("the repository's path is UTF-8")?;
    engine.docker(&["cp", binary, &format!("{}:/usr/bin/evenkeel-remediator", host.name())]).await?;
    host.exec(&["groupadd", "--system", "evenkeel"]).await?;
    host.exec(&["mkdir", "-p", "/etc/evenkeel"]).await?;
    let packaging = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging");
    for verb in ["daemon-reload", "journal-vacuum", "container-log-truncate", "largest"] {
        let name = format!("evenkeel-{verb}@.service");
        host.install_unit(&name, &std::fs::read_to_string(packaging.join(&name))?).await?;
    }
    Ok(())
}

async fn configure(host: &SystemdHost, mode: &str, rules: &str) -> Result<()> {
    let policy = format!("policy: {{mode: {mode}, deletion: data}}");
    host.write_file(CONFIG, &format!("server: {{auth: none}}\n{policy}\nrules:\n{rules}")).await
}

/// Starts a helper for a rule and a target; its own words when it fails.
async fn help(host: &SystemdHost, verb: &str, rule: &str, target: &str) -> Result<()> {
    let instance = host.exec(&["systemd-escape", "--", rule]).await?
        + ":"
        + &host.exec(&["systemd-escape", "--", target]).await?;
    let unit = format!("evenkeel-{verb}@{instance}.service");
    let started = host.systemctl(&["start", &unit]).await;
    if started.is_err() {
        let said =
            host.exec(&["journalctl", "--no-pager", "--output=cat", "--lines=5", "--unit", &unit]).await?;
        // Nobody finds a failed unit on the host because a helper was refused.
        let template = format!("evenkeel-{verb}@*");
        wait_for("the failed helper to be forgotten", Duration::from_secs(10), async || {
            let listed =
                host.systemctl(&["list-units", "--all", "--plain", "--no-legend", &template]).await?;
            ensure!(listed.is_empty(), "{listed}");
            Ok(())
        })
        .await?;
        return started.map(drop).context(said);
    }
    Ok(())
}

/// Fails unless a helper failed with these words.
fn refused(result: Result<()>, words: &str) -> Result<()> {
    let said = result.err().map(|error| format!("{error:#}")).context("it was done")?;
    ensure!(said.contains(words), "it says {said}");
    Ok(())
}

async fn reloads_for_the_rule_and_nothing_else(host: &SystemdHost) -> Result<()> {
    let rules = r#"
  - name: unit-stale
    match: ['alertname="x"']
    target: {unit: name, allow: ["helped-*.service"]}
    steps: [{daemon_reload: {quiet_for: 0s}}]
"#;
    configure(host, "auto", rules).await?;
    host.install_unit(STALE, "[Service]\nExecStart=/bin/sleep infinity\n").await?;
    // One that does not run is not kept in memory, and so is read anew whenever somebody asks.
    host.systemctl(&["start", STALE]).await?;
    refused(help(host, "daemon-reload", "unit-stale", STALE).await, "already_well")?;
    host.write_file(&format!("/etc/systemd/system/{STALE}"), "[Service]\nExecStart=/bin/sleep 1\n").await?;
    refused(help(host, "daemon-reload", "unit-stale", "ssh.service").await, "target_not_allowed")?;
    refused(help(host, "daemon-reload", "unit-stale", "../x").await, "target_not_a_name")?;
    refused(help(host, "daemon-reload", "other-rule", STALE).await, "there is no rule")?;
    refused(help(host, "journal-vacuum", "unit-stale", STALE).await, "has no step journal_vacuum")?;
    host.exec(&["chmod", "0666", CONFIG]).await?;
    refused(help(host, "daemon-reload", "unit-stale", STALE).await, "others than root may write")?;
    host.exec(&["chmod", "0640", CONFIG]).await?;
    configure(host, "plan", rules).await?;
    refused(help(host, "daemon-reload", "unit-stale", STALE).await, "is in mode plan")?;
    ensure!(host.property(STALE, "NeedDaemonReload").await? == "yes", "it was read all the same");
    configure(host, "auto", rules).await?;
    help(host, "daemon-reload", "unit-stale", STALE).await?;
    ensure!(host.property(STALE, "NeedDaemonReload").await? == "no");
    Ok(())
}

fn about_the_journal(usage_above: f64, usage_below: f64, steps: &str) -> String {
    format!(
        r#"
  - name: disk-high
    match: ['alertname="x"']
    target: {{filesystem: mountpoint, allow: ["/var/log/journal"]}}
    needed: {{usage_above: {usage_above:.6}%}}
    steps: [{steps}]
    verify: {{usage_below: {usage_below:.6}%, within: 10m}}
"#
    )
}

async fn says_what_fills_the_disk(host: &SystemdHost) -> Result<()> {
    configure(host, "plan", &about_the_journal(90.0, 80.0, "notify, image_prune")).await?;
    help(host, "largest", "disk-high", "/var/log/journal").await?;
    let folder = "/run/evenkeel/largest";
    let answer = host.exec(&["sh", "-c", &format!("cat {folder}/*")]).await?;
    let filling: Filling = serde_json::from_str(&answer)?;
    let entries = filling.by_bytes;
    ensure!(entries.iter().any(|(path, bytes)| path.contains("system.journal") && *bytes > 0), "{answer}");
    let modes = host.exec(&["sh", "-c", &format!("stat -c '%a %U %G' {folder} {folder}/*")]).await?;
    ensure!(modes.lines().eq(["750 root evenkeel", "640 root evenkeel"]), "{modes}");
    Ok(())
}

async fn vacuums_the_journal(host: &SystemdHost) -> Result<()> {
    // On a disk of its own: what others do to the machine's moves the shares that are set below.
    let own = "mount -t tmpfs -o size=200m tmpfs /var/log/journal && mkdir /var/log/journal/$(cat /etc/machine-id) \
               && systemctl restart systemd-journald && journalctl --flush";
    host.exec(&["sh", "-c", own]).await?;
    // Three files of the journal that are full, and one in use.
    let fill = "for i in 1 2 3; do head -c 9000000 /dev/urandom | base64 | systemd-cat; journalctl --sync; journalctl --rotate; done";
    host.exec(&["sh", "-c", fill]).await?;
    let size = async || -> Result<u64> {
        Ok(host
            .exec(&["sh", "-c", "du -s --block-size=1 /var/log/journal/$(cat /etc/machine-id) | cut -f1"])
            .await?
            .parse()?)
    };
    let before = size().await?;
    let used = async || -> Result<(f64, f64)> {
        let text = host.exec(&["stat", "-f", "-c", "%a %b %S", "/var/log/journal"]).await?;
        let numbers: Vec<f64> = text.split(' ').map(str::parse).collect::<Result<_, _>>()?;
        Ok(((1.0 - numbers[0] / numbers[1]) * 100.0, numbers[1] * numbers[2]))
    };
    let (now, bytes) = used().await?;
    let mib = 1024.0 * 1024.0 / bytes * 100.0;
    let vacuum = |keep: &str| {
        about_the_journal(
            now - 2.0 * mib,
            now - 4.0 * mib,
            &format!("{{journal_vacuum: {{keep_size: {keep}}}}}"),
        )
    };
    configure(host, "auto", &vacuum("10GiB")).await?;
    refused(help(host, "journal-vacuum", "disk-high", "/var/log/journal").await, "nothing_to_delete")?;
    configure(host, "auto", &vacuum("16MiB")).await?;
    help(host, "journal-vacuum", "disk-high", "/var/log/journal").await?;
    let after = size().await?;
    ensure!(after < before && after >= 8 * 1024 * 1024, "{before} became {after}");
    Ok(())
}
