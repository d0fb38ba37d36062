//! `generate config` of both programs on a real systemd and a real engine: what is there is in the files, under whatever name,
//! and the programs take what they have written.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use evenkeel_tests::{
    binaries::{Exporter, Surroundings, built},
    http, namespace,
    process::{Process, free_port},
    tools,
    wait::wait_for,
};
use libtest_mimic::Trial;

use crate::{shared, trial};

const LIMIT: Duration = Duration::from_secs(60);
/// As systemd-escape writes `first config/ü`.
const ESCAPED: &str = "first\\x2dconfig-\\xc3\\xbc.service";
const INSTANCE: &str = "first-config@a-b\\x20c.service";
const CONTAINER: &str = "first_config.0-odd";
const SERVICE: &str = "[Service]\nExecStart=/bin/sleep infinity\n";

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("first_config_names_what_is_there_and_is_taken", names_what_is_there_and_is_taken),
        trial("first_config_leaves_filesystems_to_node_exporter", leaves_filesystems_to_node_exporter),
    ]
}

async fn names_what_is_there_and_is_taken() -> Result<()> {
    let (host, engine) = (shared::host().await?, shared::engine().await?);
    host.install_unit(ESCAPED, SERVICE).await?;
    host.install_unit("first-config@.service", SERVICE).await?;
    host.systemctl(&["start", ESCAPED, INSTANCE]).await?;
    engine.run(&["--name", CONTAINER, "--stop-signal", "KILL"], &["sleep", "1000"]).await?;

    let around = shared::surroundings().await?;
    let dir = namespace::place("first-config")?;
    let remediator = generate("evenkeel-remediator", &["--token-file=webhook.token"], &around).await?;
    for name in [ESCAPED, INSTANCE, CONTAINER] {
        let item = format!("        - \"{}\" ", name.replace('\\', "\\\\"));
        ensure!(remediator.contains(&item), "it does not name {name}: {remediator}");
    }
    // Of packages, and what holds the host up: not for a rule.
    ensure!(
        !remediator.contains("        - \"dbus") && !remediator.contains("        - \"systemd-"),
        "{remediator}"
    );
    fs::write(dir.join("webhook.token"), "a token that only this test knows\n")?;
    let file = dir.join("remediator.yml");
    fs::write(&file, &remediator)?;
    let mut check = tools::command(built("evenkeel-remediator")?);
    check.arg("--config.file").arg(&file).arg("check-config");
    let checked = tools::run(check, LIMIT).await?;
    ensure!(checked.contains("mode plan, deletion none"), "{checked}");

    let exporter = generate("evenkeel-exporter", &[], &around).await?;
    ensure!(exporter.contains(&format!("#     - \"{}\"\n", ESCAPED.replace('\\', "\\\\"))), "{exporter}");
    accepted(&dir, &exporter).await
}

/// The same series twice would double everybody's alerts.
async fn leaves_filesystems_to_node_exporter() -> Result<()> {
    let around = shared::surroundings().await?;
    let dir = namespace::place("first-config-beside")?;
    let alone = generate("evenkeel-exporter", &[], &around).await?;
    ensure!(alone.contains("\n# collectors: {filesystem: true}\n"), "{alone}");

    let mut command = tools::command(tools::program("node_exporter")?);
    command.args([
        "--collector.disable-defaults",
        "--collector.filesystem",
        "--web.listen-address=127.0.0.1:9100",
    ]);
    let mut node_exporter = Process::start("node_exporter", &dir, command)?;
    wait_for("node_exporter", LIMIT, async || {
        node_exporter.check_alive()?;
        http::get("http://127.0.0.1:9100/metrics").await
    })
    .await?;
    let beside = generate("evenkeel-exporter", &[], &around).await?;
    ensure!(beside.contains("\ncollectors: {filesystem: false}\n"), "{beside}");
    ensure!(beside.contains("127.0.0.1:9100 publishes node_filesystem_size_bytes"), "{beside}");
    accepted(&dir, &beside).await?;

    let file = dir.join("exporter.yml");
    let exporter = Exporter::start(&dir, free_port()?, Some(&file), &around).await?;
    let scrape = exporter.scrape().await?;
    ensure!(scrape.all("node_filesystem_size_bytes", &[]).next().is_none(), "it publishes filesystems too");
    ensure!(scrape.all("systemd_unit_state", &[]).next().is_some(), "it publishes nothing else either");
    let off = "not watched: switched off by flags or by the configuration";
    ensure!(exporter.process().log().contains(off), "{}", exporter.process().log());
    Ok(())
}

async fn generate(program: &str, flags: &[&str], around: &Surroundings) -> Result<String> {
    let mut command = tools::command(built(program)?);
    command.args(["generate", "config"]).args(flags);
    around.apply(&mut command);
    tools::run(command, LIMIT).await.with_context(|| format!("{program} generate config"))
}

/// The exporter takes what it has written.
async fn accepted(dir: &Path, text: &str) -> Result<()> {
    let file = dir.join("exporter.yml");
    fs::write(&file, text)?;
    let mut check = tools::command(built("evenkeel-exporter")?);
    check.arg("--config.check").arg("--config.file").arg(&file);
    let checked = tools::run(check, LIMIT).await?;
    ensure!(checked.contains("the configuration is good"), "{checked}");
    Ok(())
}
