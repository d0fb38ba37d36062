//! `make demo` from end to end: it says that everything healed only when it did, and the dashboards show it.

use std::{
    collections::BTreeSet,
    fs,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, bail, ensure};
use evenkeel_tests::{
    binaries::built,
    dashboard::{Asked, Dashboard, Span},
    demo::PROMETHEUS,
    namespace,
    process::{Process, send},
    tools,
    wait::wait_for,
};
use libtest_mimic::Trial;
use rustix::process::Signal;

use crate::trial;

/// What is on a dashboard for what the demo does not break: Redis, and the remediator itself. Whatever else a
/// dashboard asks for is there afterwards.
const NOT_IN_THE_DEMO: [&str; 3] =
    ["annotation Redis alerts", "annotation Pauses and storms", "annotation Alerts about the remediator"];

/// Longer than a loaded machine takes for all of it.
const PATIENCE: Duration = Duration::from_secs(240);

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial("demo_heals_what_it_breaks_and_dashboards_show_it", heals_and_is_shown)]
}

async fn heals_and_is_shown() -> Result<()> {
    let began = now()?;
    let mut command = tools::command(built("evenkeel-lab")?);
    command.args(["demo", "--stay"]);
    let mut demo = Process::start("demo", &namespace::place("demo")?, command)?;
    let prometheus = wait_for("the demo to have healed", PATIENCE, async || {
        // It ends by itself only when something did not heal.
        demo.check_alive().with_context(|| demo.log())?;
        let printed = demo.log();
        let url = printed.lines().find_map(|line| line.strip_prefix(PROMETHEUS)).map(str::to_owned);
        url.context("it has not said where Prometheus is")
    })
    .await?;
    what_it_printed(&demo.log())?;
    // As often as the demo scrapes: there an alert is over within seconds. What ended last has yet to be scraped.
    let span = wait_for("every panel to show something", Duration::from_secs(30), async || {
        let span = Span { from: began, to: now()?, step: 1.0 };
        dashboards_show_it(&prometheus, span).await.map(|()| span)
    })
    .await?;
    a_misspelt_name_is_noticed(&prometheus, span).await?;

    send(demo.id(), Signal::TERM)?;
    let ended =
        wait_for("the demo to end", Duration::from_secs(60), async || demo.ended()?.context("it still runs"))
            .await?;
    ensure!(ended.success(), "{ended}: {}", demo.log());
    Ok(())
}

fn now() -> Result<f64> {
    Ok(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs_f64())
}

fn what_it_printed(printed: &str) -> Result<()> {
    for said in [
        "acted: unit_restart [S2] done",
        "acted: container_restart [S2] done",
        "acted: build_cache_prune [D1] done",
        "alert HostDiskHigh is resolved",
        "alert SystemdUnitFailed is resolved",
        "alert ContainerUnhealthy is resolved",
        "shop-frontend was not restarted: healthcheck_broken",
        "All that could be healed has healed.",
    ] {
        ensure!(printed.contains(said), "it does not say {said:?}: {printed}");
    }
    let verified = printed.matches("verified: ").count();
    ensure!(verified == 3, "{verified} repairs were verified: {printed}");
    Ok(())
}

fn dashboards() -> Result<Vec<PathBuf>> {
    let folder = tools::repository().join("grafana/dashboards");
    let mut files: Vec<PathBuf> =
        fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    files.sort();
    ensure!(files.len() == 3, "{files:?}");
    Ok(files)
}

/// Every variable, panel and annotation has something to show.
async fn dashboards_show_it(prometheus: &str, span: Span) -> Result<()> {
    let mut allowed: BTreeSet<&str> = NOT_IN_THE_DEMO.into();
    let mut empty = Vec::new();
    for file in dashboards()? {
        let name = file.file_name().context("a file")?.to_string_lossy().into_owned();
        for Asked { place, query, found } in Dashboard::read(&file)?.ask(prometheus, span).await? {
            let is_allowed = NOT_IN_THE_DEMO.contains(&place.as_str());
            match found {
                Ok(0) if is_allowed => drop(allowed.remove(place.as_str())),
                Ok(0) => empty.push(format!("{name}: {place} is empty: {query}")),
                Ok(_) => {}
                Err(error) => empty.push(format!("{name}: {place}: {error}: {query}")),
            }
        }
    }
    ensure!(empty.is_empty(), "{}", empty.join("\n"));
    ensure!(allowed.is_empty(), "these are not empty after the demo, or not there: {allowed:?}");
    Ok(())
}

/// That the check above would notice a metric or a label that nobody exports.
async fn a_misspelt_name_is_noticed(prometheus: &str, span: Span) -> Result<()> {
    let right = "systemd_unit_state{state=";
    for wrong in ["systemd_units_state{state=", "systemd_unit_state{status="] {
        let file = tools::repository().join("grafana/dashboards/host.json");
        let text = fs::read_to_string(file)?;
        ensure!(text.contains(right), "the dashboard no longer says {right}");
        let asked = Dashboard::parse(&text.replace(right, wrong))?.ask(prometheus, span).await?;
        if !asked.iter().any(|asked| asked.place.starts_with("panel") && asked.is_empty()) {
            bail!("nobody notices that {right} is {wrong}");
        }
    }
    Ok(())
}
