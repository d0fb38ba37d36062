//! Case 17 of the operations documents: `quantum-ai-engine.service` is `not-found failed`, and named by two unit files. It
//! is seen, shown with its lines, and cleared away when a person approves of it, as the document did by hand.

use anyhow::{Result, ensure};
use evenkeel_tests::{exposition::Exposition, systemd_host::SystemdHost, wait::wait_for};
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::{alone::ended, closed_loop::SOON, installed::Installed, trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("stale_references_are_removed_when_a_person_approves", removed_when_a_person_approves),
        trial("stale_references_that_are_not_ours_stay", what_is_not_ours_stays),
        trial("stale_references_are_put_back_when_it_does_not_end_well", put_back_when_it_does_not_end_well),
    ]
}

const RULE: &str = "unit-stale-reference";
const GONE: &str = "quantum-ai-engine.service";
const TARGET: &str = "/etc/systemd/system/quantum-trader.target";
const CLM: &str = "/etc/systemd/system/quantum-clm.service";

const TARGET_TEXT: &str = "[Unit]
Description=Quantum Trader
Wants=quantum-execution.service
Wants=quantum-ai-engine.service
Wants=quantum-clm.service

[Install]
WantedBy=multi-user.target
";
const CLM_TEXT: &str = "# The continuous learning manager
[Unit]
Description=Quantum CLM
After=network.target quantum-ai-engine.service

[Service]
ExecStart=/bin/sleep 600
";
const EXPORTER: &str = "systemd: {watch: ['quantum-*'], check_every: 1s}\n";

fn rules(mode: &str) -> String {
    format!(
        r#"
  - name: {RULE}
    mode: {mode}
    match: ['alertname="SystemdStaleReference"']
    target: {{unit: reference, allow: ["quantum-*.service"]}}
    limits: [99/1h]
    cooldown: 0s
    breaker: {{after: 99, hold: 1m}}
    steps: [unit_reset_failed, {{unit_remove_reference: {{from: ["quantum-*"], quiet_for: 0s}}}}]
    verify: {{unreferenced_for: 1s, within: 30s}}
"#
    )
}

/// The document's host: the file was removed while the unit ran, and then the unit failed.
async fn break_it(host: &SystemdHost) -> Result<()> {
    let sleep = "[Service]\nExecStart=/bin/sleep 600\n";
    for unit in ["quantum-execution.service", GONE] {
        host.write_file(&format!("/etc/systemd/system/{unit}"), sleep).await?;
    }
    host.write_file(CLM, CLM_TEXT).await?;
    host.install_unit("quantum-trader.target", TARGET_TEXT).await?;
    host.exec(&["chgrp", "systemd-journal", CLM]).await?;
    host.systemctl(&["start", "quantum-trader.target"]).await?;
    host.exec(&["rm", &format!("/etc/systemd/system/{GONE}")]).await?;
    host.systemctl(&["daemon-reload"]).await?;
    host.systemctl(&["kill", "--signal=KILL", GONE]).await?;
    wait_for("it to be not-found and failed", SOON, async || {
        let state = host.property(GONE, "ActiveState").await?;
        let load = host.property(GONE, "LoadState").await?;
        ensure!((load.as_str(), state.as_str()) == ("not-found", "failed"), "it is {load} {state}");
        Ok(())
    })
    .await
}

/// What the exporter tells of stale references, as `UNIT DIRECTIVE REFERENCE`.
fn told(page: &Exposition) -> Vec<String> {
    let samples = page.all("systemd_unit_stale_reference", &[]);
    samples
        .map(|sample| ["name", "directive", "reference"].map(|label| sample.labels[label].as_str()).join(" "))
        .collect()
}

async fn removed_when_a_person_approves() -> Result<()> {
    let at = Installed::start(&rules("approve"), EXPORTER).await?;
    let host = &at.host;
    break_it(host).await?;
    ensure!(host.systemctl(&["--failed", "--plain", "--no-legend"]).await?.contains(GONE));

    // Seen: the state, and who names it.
    wait_for("the references to be seen", SOON, async || {
        let page = at.scrape().await?;
        let expected =
            [format!("quantum-clm.service After {GONE}"), format!("quantum-trader.target Wants {GONE}")];
        ensure!(told(&page) == expected, "{:?}", told(&page));
        let failed = [("name", GONE), ("state", "failed")];
        ensure!(page.value("systemd_unit_state", &failed) == Some(1.0), "not seen to be failed");
        let missing = [("name", GONE), ("load_state", "not-found")];
        ensure!(page.value("systemd_unit_load_state", &missing) == Some(1.0), "not seen to be missing");
        Ok(())
    })
    .await?;
    let log = host.exec(&["journalctl", "--output=cat", "--unit=evenkeel-exporter"]).await?;
    ensure!(log.contains(TARGET) && log.contains(CLM), "{log}");

    // Asked, with the lines.
    let runs = host.property("quantum-clm.service", "InvocationID").await?;
    let labels = json!({"name": "quantum-trader.target", "directive": "Wants", "reference": GONE});
    at.alert("SystemdStaleReference", labels).await?;
    let asked = at.record(RULE, "awaiting", None).await?;
    let step = &asked["steps"][2];
    let detail = step["detail"].as_str().unwrap_or_default();
    ensure!(step["action"] == "unit_remove_reference" && step["state"] == "planned", "{asked:#}");
    for line in [
        format!("takes {GONE} out of {CLM}:4, {TARGET}:4"),
        format!("4- After=network.target {GONE}"),
        "4+ After=network.target".to_owned(),
        format!("4- Wants={GONE}"),
    ] {
        ensure!(detail.lines().any(|known| known == line), "no line {line:?}: {detail}");
    }
    ensure!(host.exec(&["cat", CLM]).await? == CLM_TEXT.trim_end(), "something was changed without approval");
    ensure!(host.property(GONE, "ActiveState").await? == "failed", "reset without approval");

    // Done, when a person says so, and exactly what the document's sed did.
    at.cli(&["approve", &asked["id"].to_string()]).await?;
    let record = at.record(RULE, "ended", None).await?;
    ended(&record, "succeeded", "verified")?;
    let expected = [
        (TARGET, TARGET_TEXT.replace(&format!("Wants={GONE}\n"), "")),
        (CLM, CLM_TEXT.replace(&format!(" {GONE}"), "")),
    ];
    for (file, text) in &expected {
        ensure!(host.exec(&["cat", file]).await? == text.trim_end(), "{}", host.exec(&["cat", file]).await?);
    }
    let about = host.exec(&["stat", "-c", "%a %U %G", CLM, TARGET]).await?;
    ensure!(about.lines().eq(["644 root systemd-journal", "644 root root"]), "{about}");
    let left = host.exec(&["sh", "-c", "ls -A /etc/systemd/system | grep evenkeel-new || true"]).await?;
    ensure!(left.is_empty(), "{left}");

    // The document's own verification.
    let grep = format!("grep -RIn '{GONE}' /etc/systemd/system || true");
    ensure!(host.exec(&["sh", "-c", &grep]).await?.is_empty());
    let failed = host.systemctl(&["--failed", "--plain", "--no-legend"]).await?;
    ensure!(!failed.contains("quantum"), "{failed}");
    for unit in ["quantum-trader.target", "quantum-clm.service", "quantum-execution.service"] {
        ensure!(host.property(unit, "ActiveState").await? == "active", "{unit}");
        ensure!(host.property(unit, "NeedDaemonReload").await? == "no", "{unit}");
    }
    ensure!(host.property("quantum-clm.service", "InvocationID").await? == runs, "it was restarted");
    ensure!(!host.property("quantum-trader.target", "Wants").await?.contains(GONE));

    // Kept, and gone from the metrics.
    let kept = format!("cat /var/lib/evenkeel/backups{CLM}/*");
    ensure!(host.exec(&["sh", "-c", &kept]).await? == CLM_TEXT.trim_end());
    let secret = host.exec(&["stat", "-c", "%a %U", "/var/lib/evenkeel/backups"]).await?;
    ensure!(secret == "700 root", "{secret}");
    wait_for("the references to be gone", SOON, async || {
        let page = at.scrape().await?;
        ensure!(told(&page).is_empty(), "{:?}", told(&page));
        Ok(())
    })
    .await
}

/// One try on the host as it is, which ends so.
async fn try_it(at: &Installed, before: &mut Option<Value>, outcome: &str, reason: &str) -> Result<Value> {
    at.alert("SystemdStaleReference", json!({"name": "x", "reference": GONE})).await?;
    let record = at.record(RULE, "ended", before.as_ref()).await?;
    ended(&record, outcome, reason)?;
    *before = Some(record["id"].clone());
    Ok(record)
}

/// Without the name systemd takes a unit no longer, and reads its files only when /run/slow is gone.
const GENERATOR: &str = "#!/bin/sh
while test -e /run/slow; do sleep 0.1; done
grep -q quantum-ai-engine /etc/systemd/system/quantum-clm.service && exit 0
test -e /run/bad || exit 0
mkdir -p $1/quantum-clm.service.d
printf '[Service]\\nExecStart=\\n' >$1/quantum-clm.service.d/bad.conf
";

async fn put_back_when_it_does_not_end_well() -> Result<()> {
    let at = Installed::start(&rules("auto"), EXPORTER).await?;
    let host = &at.host;
    host.write_file(TARGET, TARGET_TEXT).await?;
    host.write_file(CLM, CLM_TEXT).await?;
    let generator = "/etc/systemd/system-generators/quantum";
    host.exec(&["mkdir", "-p", "/etc/systemd/system-generators"]).await?;
    host.write_file(generator, GENERATOR).await?;
    host.exec(&["chmod", "755", generator]).await?;
    host.exec(&["touch", "/run/bad"]).await?;
    host.systemctl(&["daemon-reload"]).await?;
    let as_it_was = async |record: &Value, words: &str| -> Result<()> {
        ensure!(record["outcome"] == "failed", "{record:#}");
        let steps = record["steps"].to_string();
        ensure!(steps.contains(words), "no {words:?} in {record:#}");
        ensure!(host.exec(&["cat", CLM]).await? == CLM_TEXT.trim_end(), "{CLM} was changed");
        ensure!(host.exec(&["cat", TARGET]).await? == TARGET_TEXT.trim_end(), "{TARGET} was changed");
        ensure!(host.property("quantum-clm.service", "LoadState").await? == "loaded");
        ensure!(host.property("quantum-clm.service", "NeedDaemonReload").await? == "no");
        host.exec(&["sh", "-c", "! test -e /var/lib/evenkeel/backups/*.begun.json"]).await.map(drop)
    };

    // A unit that no longer loads.
    at.alert("SystemdStaleReference", json!({"name": "x", "reference": GONE})).await?;
    let bad = at.record(RULE, "ended", None).await?;
    as_it_was(&bad, "quantum-clm.service is bad-setting since; the files are as they were").await?;

    // The helper is killed when the files are changed and systemd has not read them.
    host.exec(&["rm", "/run/bad"]).await?;
    host.exec(&["touch", "/run/slow"]).await?;
    at.alert("SystemdStaleReference", json!({"name": "x", "reference": GONE})).await?;
    wait_for("the files to be changed", SOON, async || {
        let left = host.exec(&["sh", "-c", &format!("grep -l {GONE} {CLM} {TARGET} || true")]).await?;
        ensure!(left.is_empty(), "{left} names it");
        Ok(())
    })
    .await?;
    // systemd itself is at it, and could not be asked.
    let kill = "for one in /proc/[0-9]*; do
         grep -qa 'helper.unit-remove-referenc[e]' $one/cmdline && kill -KILL ${one#/proc/}
     done; rm /run/slow";
    host.exec(&["sh", "-c", kill]).await?;
    let killed = at.record(RULE, "ended", Some(&bad["id"])).await?;
    as_it_was(&killed, "it was interrupted; every file is as it was before (2 taken back)").await?;

    // And the next one is none the worse for it.
    try_it(&at, &mut Some(killed["id"].clone()), "succeeded", "verified").await.map(drop)
}

async fn what_is_not_ours_stays() -> Result<()> {
    let at = Installed::start(&rules("auto"), EXPORTER).await?;
    let host = &at.host;
    host.write_file(TARGET, TARGET_TEXT).await?;
    host.write_file(CLM, CLM_TEXT).await?;
    host.systemctl(&["daemon-reload"]).await?;
    let mut last = None;
    let unchanged = async || -> Result<()> {
        ensure!(host.exec(&["cat", CLM]).await? == CLM_TEXT.trim_end(), "{CLM} was changed");
        ensure!(host.exec(&["cat", TARGET]).await? == TARGET_TEXT.trim_end(), "{TARGET} was changed");
        Ok(())
    };

    // A file that somebody else owns, one that others may write to, a link in its place, a link in a folder of wants.
    for (does, undoes, reason) in [
        (format!("chown nobody {CLM}"), format!("chown root {CLM}"), "not_root_s_own"),
        (format!("chmod 666 {CLM}"), format!("chmod 644 {CLM}"), "not_root_s_own"),
        (
            format!("mv {CLM} /srv/quantum-clm.service && ln -s /srv/quantum-clm.service {CLM}"),
            format!("rm {CLM} && mv /srv/quantum-clm.service {CLM}"),
            "not_root_s_own",
        ),
        (
            format!("mkdir {TARGET}.wants && ln -s /etc/systemd/system/{GONE} {TARGET}.wants/"),
            format!("rm -r {TARGET}.wants"),
            "is_a_link",
        ),
        (
            format!("printf '[Unit]\\nAfter={GONE}\\n' >/etc/systemd/system/other.service"),
            "rm /etc/systemd/system/other.service".to_owned(),
            "not_admitted",
        ),
    ] {
        host.exec(&["sh", "-c", &does]).await?;
        // The same refusal again would be folded into the record of the first.
        let said = at.cli(&["explain", RULE, GONE]).await?;
        ensure!(said.contains(&format!("no ({reason})")), "not {reason}: {said}");
        if last.is_none() {
            try_it(&at, &mut last, "blocked", reason).await?;
            unchanged().await?;
        }
        host.exec(&["sh", "-c", &undoes]).await?;
    }

    // Continued lines, several names, CRLF, drop-ins, an include of old: one word goes from each line.
    let odd = format!(
        "[Unit]\r\nAfter=network.target \\\r\n  {GONE} \\\r\n  time-sync.target\r\n.include /etc/{GONE}\r\n[Service]\r\nExecStart=/bin/sleep 600\r\n"
    );
    host.write_file(CLM, &odd).await?;
    let folder = format!("{CLM}.d");
    host.exec(&["mkdir", &folder]).await?;
    host.write_file(
        &format!("{folder}/10-order.conf"),
        &format!("[Unit]\nWants={GONE} quantum-execution.service\n"),
    )
    .await?;
    host.systemctl(&["daemon-reload"]).await?;
    let record = try_it(&at, &mut last, "succeeded", "verified").await?;
    ensure!(
        record["before"]["unit"]["named_by"].as_array().is_some_and(|places| places.len() == 3),
        "{record:#}"
    );
    let expected = odd.replace(&format!("  {GONE} \\\r\n"), "");
    ensure!(
        host.exec(&["cat", CLM]).await? == expected.trim_end(),
        "{}",
        host.exec(&["cat", "-A", CLM]).await?
    );
    let drop_in = host.exec(&["cat", &format!("{folder}/10-order.conf")]).await?;
    ensure!(drop_in == "[Unit]\nWants=quantum-execution.service", "{drop_in}");
    ensure!(host.property("quantum-clm.service", "LoadState").await? == "loaded");
    ensure!(host.property("quantum-clm.service", "After").await?.contains("time-sync.target"));
    try_it(&at, &mut last, "not_needed", "already_well").await.map(drop)
}
