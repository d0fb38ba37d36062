//! What takes root reaches an exporter that is not root: by `evenkeel-exporter facts`, and not otherwise. Case 9 of the
//! operations documents: how large the log of `quantum_market_publisher` is.

use std::{fs, os::unix::fs::PermissionsExt as _, time::Duration};

use anyhow::{Result, ensure};
use evenkeel_tests::{
    binaries::{Exporter, Surroundings, built},
    engine::{Engine, Options},
    namespace,
    process::free_port,
    tools,
    wait::wait_for,
};
use libtest_mimic::Trial;

use crate::trial;

const SOON: Duration = Duration::from_secs(60);

/// Where everyone may start the exporter, wherever the sources lie.
const PROGRAM: &str = "/run/exporter-of-nobody";

const NAME: &str = "quantum_market_publisher";

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial("facts_by_root_tell_the_sizes_of_logs", sizes_of_logs)]
}

async fn sizes_of_logs() -> Result<()> {
    let engine = Engine::start(Options { disk_mib: 200, ..Options::default() }).await?;
    // Everyone may ask this engine; its files stay root's.
    fs::set_permissions(engine.socket(), fs::Permissions::from_mode(0o666))?;
    engine.run(&["--name", NAME], &["sh", "-c", "seq 1000; exec sleep 100000"]).await?;
    fs::write(PROGRAM, "")?;
    let mut mount = tools::command("mount");
    mount.arg("--bind").arg(built("evenkeel-exporter")?).arg(PROGRAM);
    tools::run_blocking(mount)?;
    let seen = seen(&engine).await;
    let mut unmount = tools::command("umount");
    unmount.args(["--lazy", PROGRAM]);
    tools::run_blocking(unmount)?;
    seen
}

async fn seen(engine: &Engine) -> Result<()> {
    let around = Surroundings { bus: None, docker: Some(engine.host()) };
    let mut command = tools::command("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--", PROGRAM]);
    command.args(["--collector.disable-defaults", "--collector.docker"]);
    around.apply(&mut command);
    let exporter = Exporter::start_as(&namespace::place("nobody")?, free_port()?, command).await?;
    let name = [("name", NAME)];
    let log = async || anyhow::Ok(exporter.scrape().await?.value("docker_container_log_bytes", &name));
    wait_for("the container", SOON, async || {
        let page = exporter.scrape().await?;
        ensure!(page.value("docker_container_log_rotation", &name) == Some(0.0), "it was not inspected");
        Ok(())
    })
    .await?;
    let size = log().await?;
    ensure!(size.is_none(), "nobody may see that it is {size:?}");

    fs::create_dir_all("/run/evenkeel")?;
    let path = engine.inspect(NAME, "{{.LogPath}}").await?;
    wait_for("what root has found", SOON, async || {
        let mut facts = tools::command(built("evenkeel-exporter")?);
        facts.arg("facts");
        around.apply(&mut facts);
        tools::run_blocking(facts)?;
        let (said, there) = (log().await?, fs::metadata(&path)?.len());
        #[expect(clippy::cast_precision_loss)]
        let there = there as f64;
        ensure!(there > 1000.0 && said == Some(there), "{said:?}, the file has {there}");
        Ok(())
    })
    .await?;
    // Whoever else could write them is not believed.
    fs::set_permissions("/run/evenkeel/facts.json", fs::Permissions::from_mode(0o666))?;
    let size = log().await?;
    ensure!(size.is_none(), "facts of anybody's were believed: {size:?}");
    Ok(())
}
