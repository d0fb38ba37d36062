//! What is done to containers, images and logs, on a real engine whose disk is really short of room.

use anyhow::{Context, Result, ensure};
use evenkeel_tests::{
    binaries::Surroundings,
    engine::{BUSYBOX, Engine, Options},
    wait::wait_for,
};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::{
    alone::{Alone, ended, rule},
    closed_loop::{SOON, acting_steps},
    trial,
};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("actions_on_containers_do_what_they_say", on_containers_do_what_they_say),
        trial("actions_on_images_stop_at_the_mark", on_images_stop_at_the_mark),
        trial("actions_on_logs_keep_the_newest", on_logs_keep_the_newest),
    ]
}

/// A rule about an engine's disk that wants `mib` more on it than there is.
fn short_of(engine: &Engine, mib: f64, name: &str, steps: &str) -> Result<String> {
    let disk = engine.disk().path().to_str().context("the lab's paths are UTF-8")?;
    let usage = engine.disk().usage()?;
    #[expect(clippy::cast_precision_loss, reason = "a disk of some hundred megabytes")]
    let part = mib * 1024.0 * 1024.0 / usage.size as f64;
    let below = usage.used_ratio() - part;
    let marks = format!("usage_below: {:.3}%, within: 30s, hold: 1s", below * 100.0);
    let above = format!("    needed: {{usage_above: {:.3}%}}\n", (below + part / 2.0) * 100.0);
    Ok(rule(name, "filesystem", disk, steps, &marks) + &above)
}

async fn start(engine: &Engine, rules: &str) -> Result<Alone> {
    Alone::start(&Surroundings { docker: Some(engine.host()), bus: None }, rules).await
}

async fn on_containers_do_what_they_say() -> Result<()> {
    let engine = Engine::start(Options { disk_mib: 200, ..Options::default() }).await?;
    let rules = rule("down", "container", "acted-*", "container_start", "healthy_for: 1s, within: 30s");
    let at = start(&engine, &rules).await?;
    // It ends in failure until it has been started three times.
    let program = "n=$(cat /n || echo 0); echo $((n+1)) >/n; [ $n -ge 2 ] && exec sleep 600; exit 3";
    for (name, label) in [("acted-labelled", "evenkeel.start=true"), ("acted-plain", "a=b")] {
        let arguments = ["--name", name, "--restart", "on-failure:1", "--label", label];
        engine.run(&arguments, &["sh", "-c", program]).await?;
    }
    for name in ["acted-labelled", "acted-plain"] {
        wait_for("it to have given up", SOON, async || {
            let seen = engine.inspect(name, "{{.State.Status}} {{.RestartCount}}").await?;
            ensure!(seen == "exited 1", "it is {seen}");
            Ok(())
        })
        .await?;
    }
    ended(&at.told("down", "acted-plain").await?, "blocked", "not_labelled")?;
    ended(&at.told("down", "acted-labelled").await?, "succeeded", "verified")?;
    ensure!(engine.inspect("acted-labelled", "{{.State.Status}}").await? == "running");
    ensure!(engine.inspect("acted-plain", "{{.State.Status}}").await? == "exited");
    ended(&at.told("down", "acted-labelled").await?, "not_needed", "already_well")
}

/// An image of 30 MiB of its own, made without the builder's cache.
async fn image(engine: &Engine, name: &str) -> Result<()> {
    let made =
        engine.run(&["--name", name], &["dd", "if=/dev/urandom", "of=/big", "bs=1M", "count=30"]).await?;
    engine.docker(&["wait", &made]).await?;
    engine.docker(&["commit", name, &format!("lab/{name}:1")]).await?;
    engine.docker(&["rm", name]).await.map(drop)
}

async fn on_images_stop_at_the_mark() -> Result<()> {
    let engine = Engine::start(Options { disk_mib: 300, ..Options::default() }).await?;
    for name in ["used", "kept", "first", "second", "third"] {
        image(&engine, name).await?;
    }
    engine.docker(&["create", "--name", "holds", "--network", "none", "lab/used:1", "true"]).await?;
    let local = "unused: true, min_age: 0s, keep_last: 0";
    let rules = [
        short_of(&engine, 50.0, "pullable", &format!("{{image_prune: {{{local}}}}}"))?,
        short_of(&engine, 50.0, "dangling", "image_prune")?,
        short_of(
            &engine,
            50.0,
            "unused",
            &format!(
                "{{image_prune: {{{local}, locally_built: true, keep: [\"*/kept:*\", \"{BUSYBOX}:*\"]}}}}"
            ),
        )?,
    ];
    let at = start(&engine, &rules.concat()).await?;
    let disk = engine.disk().path().to_str().context("the lab's paths are UTF-8")?;
    // What was built here could not come back.
    let record = at.told("pullable", disk).await?;
    ended(&record, "blocked", "nothing_to_delete")?;
    ensure!(
        record["detail"].as_str().is_some_and(|detail| detail.contains("not to be pulled again")),
        "{record:#}"
    );
    ended(&at.told("dangling", disk).await?, "blocked", "nothing_to_delete")?;
    ensure!(engine.requests("DELETE", "/images/") == 0, "something was deleted");

    let record = at.told("unused", disk).await?;
    ended(&record, "succeeded", "verified")?;
    let [step] = acting_steps(&record)[..] else { anyhow::bail!("one step acts: {record:#}") };
    let detail = "deleted lab/first:1, lab/second:1; 1 more were not needed to reach the mark";
    ensure!(step["detail"] == detail, "{step:#}");
    let measured = step["measured_freed_bytes"].as_f64().context("nothing measured")?;
    ensure!(measured > 55.0 * 1024.0 * 1024.0, "{measured} bytes came free: {step:#}");
    let left = engine.docker(&["images", "--format", "{{.Repository}}"]).await?;
    for name in ["lab/used", "lab/kept", "lab/third", BUSYBOX] {
        ensure!(left.lines().any(|line| line == name), "{name} is gone: {left}");
    }
    ensure!(engine.requests("DELETE", "force=1") + engine.requests("DELETE", "force=true") == 0);
    Ok(())
}

async fn on_logs_keep_the_newest() -> Result<()> {
    // Case 9 of the operations documents.
    const NAME: &str = "quantum_market_publisher";
    let engine = Engine::start(Options { disk_mib: 200, ..Options::default() }).await?;
    let program = "i=0; while [ $i -lt 400 ]; do i=$((i+1)); head -c 40000 /dev/zero | tr '\\0' x | fold -w 1000; echo; done; echo the end; exec sleep 600";
    engine.run(&["--name", NAME, "--stop-signal", "KILL"], &["sh", "-c", program]).await?;
    let log = engine.inspect(NAME, "{{.LogPath}}").await?;
    wait_for("the log to be written", SOON, async || {
        let last = engine.docker(&["logs", "--tail", "1", NAME]).await?;
        ensure!(last == "the end", "it says {last:.40}");
        Ok(())
    })
    .await?;
    let before = std::fs::metadata(&log)?.len();
    let cut = format!("{{container_log_truncate: {{containers: [\"{NAME}\"], keep_size: 8MiB}}}}");
    let other = "{container_log_truncate: {containers: [\"other-*\"], keep_size: 8MiB}}";
    let rules = [short_of(&engine, 4.0, "full", &cut)?, short_of(&engine, 4.0, "other", other)?].concat();
    let at = start(&engine, &rules).await?;
    let disk = engine.disk().path().to_str().context("the lab's paths are UTF-8")?;
    ended(&at.told("other", disk).await?, "blocked", "nothing_to_delete")?;
    let record = at.told("full", disk).await?;
    ended(&record, "succeeded", "verified")?;
    let after = std::fs::metadata(&log)?.len();
    ensure!(after < before && after >= 8 * 1024 * 1024, "{before} became {after}");
    // The engine still reads and writes it.
    let lines = engine.docker(&["logs", NAME]).await?;
    ensure!(lines.lines().next_back() == Some("the end"), "the newest line is gone");
    engine.docker(&["exec", NAME, "sh", "-c", "echo more >/proc/1/fd/1"]).await?;
    wait_for("a line after the cut", SOON, async || {
        let last = engine.docker(&["logs", "--tail", "1", NAME]).await?;
        ensure!(last == "more", "it says {last:.40}");
        Ok(())
    })
    .await?;
    let whole = std::fs::read_to_string(&log)?;
    let values = serde_json::Deserializer::from_str(&whole).into_iter::<Value>();
    for value in values {
        value.context("what is left of the log is not JSON")?;
    }
    Ok(())
}
