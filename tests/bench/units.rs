//! A host with so many loaded units, in the mix of a busy host: a tenth runs, two fifths have done their work and count
//! as active, the rest is inactive but referred to; some have failed, some are timers and sockets.

use std::{fmt::Write as _, time::Duration};

use anyhow::{Context, Result, ensure};
use evenkeel_tests::{systemd_host::SystemdHost, wait::wait_for};

/// As packages bring them; only `bench-own@` is the host's own, and therefore watched.
const FILES: [(&str, &str); 8] = [
    ("/usr/lib/systemd/system/bench-run@.service", "[Service]\nExecStart=/bin/sleep infinity\n"),
    ("/etc/systemd/system/bench-own@.service", "[Service]\nExecStart=/bin/sleep infinity\n"),
    (
        "/usr/lib/systemd/system/bench-done@.service",
        "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\n",
    ),
    ("/usr/lib/systemd/system/bench-idle@.service", "[Service]\nExecStart=/bin/sleep infinity\n"),
    ("/usr/lib/systemd/system/bench-fail@.service", "[Service]\nExecStart=/bin/false\n"),
    ("/usr/lib/systemd/system/bench-tick@.timer", "[Timer]\nOnCalendar=yearly\nUnit=bench-idle@%i.service\n"),
    (
        "/usr/lib/systemd/system/bench-sock@.socket",
        "[Socket]\nListenStream=/run/bench-%i.sock\nService=bench-idle@%i.service\n",
    ),
    (
        RESTARTING,
        "[Unit]\nStartLimitIntervalSec=0\n[Service]\nExecStart=/bin/sleep infinity\nRestart=always\nRestartSec=100ms\n",
    ),
];

const RESTARTING: &str = "/etc/systemd/system/bench-restarting.service";
const TARGET: &str = "/usr/lib/systemd/system/bench.target";

/// Has exactly `total` units loaded.
pub(crate) async fn load(host: &SystemdHost, total: usize) -> Result<()> {
    for (path, text) in FILES {
        host.write_file(path, text).await?;
    }
    // Less than is missing: what else comes with them is counted afterwards, and the rest is made of what is inactive.
    let missing = total.checked_sub(count(host).await? + 80).context("a small host")?;
    let (running, done) = (missing / 10, missing * 2 / 5);
    let idle = missing - running - done;
    start(host, running, done, idle).await?;
    let missing = total.checked_sub(count(host).await?).context("more units than that are loaded")?;
    start(host, running, done, idle + missing).await?;
    let loaded = count(host).await?;
    ensure!(loaded == total, "{loaded} units are loaded instead of {total}");
    Ok(())
}

async fn start(host: &SystemdHost, running: usize, done: usize, idle: usize) -> Result<()> {
    let mut text = "[Unit]\n".to_owned();
    let mut list = |key: &str, kind: &str, suffix: &str, count: usize| {
        for number in 1..=count {
            // Writing to a string never fails.
            let _ = writeln!(text, "{key}=bench-{kind}@{number}.{suffix}");
        }
    };
    list("Wants", "own", "service", 30.min(running));
    list("Wants", "run", "service", running.saturating_sub(30));
    list("Wants", "done", "service", done);
    list("Wants", "fail", "service", 5);
    list("Wants", "tick", "timer", 10);
    list("Wants", "sock", "socket", 10);
    // An order alone keeps a unit in memory.
    list("After", "idle", "service", idle);
    text.push_str("Wants=bench-restarting.service\n");
    host.write_file(TARGET, &text).await?;
    host.systemctl(&["daemon-reload"]).await?;
    host.systemctl(&["start", "--no-block", "bench.target"]).await?;
    wait_for("the units to be started", Duration::from_secs(400), async || {
        let jobs = host.systemctl(&["list-jobs", "--no-legend"]).await?;
        ensure!(jobs.trim().is_empty(), "{} jobs", jobs.lines().count());
        Ok(())
    })
    .await
}

async fn count(host: &SystemdHost) -> Result<usize> {
    let count = host.exec(&["sh", "-c", "systemctl list-units --all --no-legend --plain | wc -l"]).await?;
    Ok(count.trim().parse()?)
}
