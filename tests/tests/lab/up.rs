//! `make up` as a user has it: what it prints, that it works on a host that lacks something, and that
//! it leaves nothing behind, whether it is asked to end or killed.
//!
//! Each runs on a loopback of its own, so that every socket there is its doing.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use evenkeel_tests::{
    binaries::built,
    namespace,
    process::{Process, send},
    tools,
    wait::wait_for,
};
use libtest_mimic::Trial;
use rustix::process::Signal;

use crate::{itself, shared, trial};

/// Long enough for a private host to boot on a loaded machine.
const SOON: Duration = Duration::from_secs(90);
const MADE: &str = "so a private host is made to watch";

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("up_makes_a_private_host_and_leaves_nothing", makes_a_private_host_and_leaves_nothing),
        trial("up_leaves_nothing_when_it_is_killed", leaves_nothing_when_it_is_killed),
        trial("up_watches_this_host_and_says_what_is_absent", watches_this_host_and_says_what_is_absent),
    ]
}

/// A running `evenkeel-lab up` on a loopback of its own.
struct Up {
    program: Process,
    loopback: Process,
    dir: PathBuf,
}

impl Up {
    /// Starts it with these variables and arguments, and waits until the summary is there.
    async fn start(variables: &[(&str, String)], arguments: &[&str]) -> Result<Self> {
        let dir = namespace::place("up")?;
        let mut holder = tools::command("unshare");
        // What it says comes when the loopback is ready.
        let script = "busybox ip link set lo up && echo ready && exec sleep 600";
        holder.args(["--net", "--", "sh", "-c", script]);
        let loopback = Process::start("loopback", &dir, holder)?;
        wait_for("a loopback", SOON, async || {
            ensure!(loopback.log().contains("ready"), "{}", loopback.log());
            Ok(())
        })
        .await?;
        let mut command = tools::command("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", loopback.id())).arg("--");
        command.arg(built("evenkeel-lab")?).arg("up").args(arguments);
        command.envs(variables.iter().map(|(name, value)| (name, value)));
        let mut up = Self { program: Process::start("evenkeel-lab", &dir, command)?, loopback, dir };
        wait_for("its summary", SOON, async || {
            up.program.check_alive()?;
            ensure!(up.said().contains("  remediator    was sent"), "it says {}", up.said());
            Ok(())
        })
        .await?;
        Ok(up)
    }

    fn said(&self) -> String {
        self.program.log()
    }

    /// A line of the summary.
    fn line(&self, what: &str) -> Result<String> {
        let said = self.said();
        let line = said.lines().rfind(|line| line.starts_with(&format!("  {what}  ")));
        line.map(str::to_owned).with_context(|| format!("no line about {what}: {said}"))
    }

    /// The TCP sockets that listen on its loopback.
    fn listening(&self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for table in ["tcp", "tcp6"] {
            let table = fs::read_to_string(format!("/proc/{}/net/{table}", self.loopback.id()))?;
            let sockets = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
            found.extend(sockets.filter(|fields| fields[3] == "0A").map(|fields| fields[1].to_owned()));
        }
        Ok(found)
    }

    /// The run's folder, from the paths that it has printed.
    fn run(&self) -> Result<PathBuf> {
        let said = self.said();
        let path = said.split_whitespace().find_map(|word| word.strip_prefix(".run/lab/"));
        let name = path.and_then(|path| path.split('/').next()).context("it names no run")?;
        Ok(tools::run_folder().join("lab").join(name))
    }

    /// Waits until nothing of it is left: no process in `world`, no socket, no loop device, no mount.
    async fn wait_until_gone(&self, world: &Path, run: Option<&Path>) -> Result<()> {
        wait_for("everything of it to end", SOON, async || {
            let left = itself::members(world)?.len();
            ensure!(left == 0, "{left} processes are left");
            let sockets = self.listening()?;
            ensure!(sockets.is_empty(), "sockets are left: {sockets:?}");
            if let Some(run) = run {
                let disks = if run.exists() { itself::loops_of(run)? } else { String::new() };
                ensure!(disks.is_empty(), "disks are left: {disks}");
                let mounts = fs::read_to_string("/proc/self/mountinfo")?;
                ensure!(!mounts.contains(&*run.to_string_lossy()), "mounts are left: {mounts}");
            }
            Ok(())
        })
        .await
    }
}

/// Every file in the folders where systemd looks for units, with its time of change.
fn unit_files() -> Result<Vec<String>> {
    let mut files = Vec::new();
    for folder in ["/etc/systemd", "/run/systemd", "/usr/lib/systemd", "/etc/init.d"] {
        if Path::new(folder).is_dir() {
            let mut find = tools::command("find");
            find.args([folder, "-printf", "%p %T@\\n"]);
            files.extend(tools::run_blocking(find)?.lines().map(str::to_owned));
        }
    }
    files.sort_unstable();
    Ok(files)
}

async fn makes_a_private_host_and_leaves_nothing() -> Result<()> {
    let units = unit_files()?;
    let mut up = Up::start(&[], &[]).await?;
    ensure!(up.said().contains(MADE), "{}", up.said());
    for (what, said) in [
        ("units", "none of "),
        ("containers", "2 running, none unhealthy"),
        ("Redis", "lab ready"),
        ("alerts", "none"),
    ] {
        let line = up.line(what)?;
        // A disk of the machine may be above 85 %, which is no fault of this test.
        ensure!(line.contains(said) || what == "alerts", "{line}");
    }
    let sockets = up.listening()?;
    // Exporter, remediator, Prometheus, Alertmanager, Redis, each on 127.0.0.1 only.
    ensure!(sockets.len() == 5 && sockets.iter().all(|one| one.starts_with("0100007F:")), "{sockets:?}");
    let (world, run) = (itself::inner_world(up.program.id())?, up.run()?);

    send(up.program.id(), Signal::INT)?;
    let status = wait_for("its end", SOON, async || match up.program.check_alive() {
        Ok(()) => bail!("it still runs"),
        Err(ended) => Ok(format!("{ended:#}")),
    })
    .await?;
    ensure!(status.contains("exit status: 0"), "{status}");
    up.wait_until_gone(&world, Some(&run)).await?;
    ensure!(!run.exists(), "{} is left", run.display());
    ensure!(unit_files()? == units, "unit files have changed");
    Ok(())
}

async fn leaves_nothing_when_it_is_killed() -> Result<()> {
    let units = unit_files()?;
    let mut up = Up::start(&[], &[]).await?;
    let (world, run) = (itself::inner_world(up.program.id())?, up.run()?);
    ensure!(itself::members(&world)?.len() > 8, "it runs its programs");
    ensure!(!itself::loops_of(&run)?.is_empty(), "it has a disk");
    up.program.kill()?;
    up.wait_until_gone(&world, Some(&run)).await?;
    // Its folder goes with the next run, which the other tests show (lab_killed_run_leaves_nothing).
    ensure!(unit_files()? == units, "unit files have changed");
    Ok(())
}

/// A host with systemd and Docker and without Redis: what is there is found by the usual variables.
async fn watches_this_host_and_says_what_is_absent() -> Result<()> {
    let around = shared::surroundings().await?;
    let variables = [
        ("DBUS_SYSTEM_BUS_ADDRESS", around.bus.context("the shared host has a bus")?),
        ("DOCKER_HOST", around.docker.context("the shared host has Docker")?),
    ];
    let kept = namespace::place("kept")?;
    let kept_path = kept.to_str().context("a place's path is UTF-8")?;
    let up = Up::start(&variables, &["--dir", kept_path]).await?;
    ensure!(!up.said().contains(MADE), "{}", up.said());
    for (what, said) in [
        ("units", " of "),
        ("containers", " running, "),
        ("Redis", "absent: this host has no Redis"),
        ("build cache", "can be freed"),
    ] {
        wait_for("the summary to say it", SOON, async || {
            let line = up.line(what)?;
            ensure!(line.contains(said), "{line}");
            Ok(())
        })
        .await?;
    }
    ensure!(up.said().contains("(mode plan, deletion none)"), "{}", up.said());
    ensure!(up.listening()?.len() == 4, "{:?}", up.listening()?);
    let world = itself::inner_world(up.program.id())?;
    send(up.program.id(), Signal::TERM)?;
    up.wait_until_gone(&world, None).await?;

    // It was written from what is there.
    let written = fs::read_to_string(kept.join("remediator.yml"))?;
    ensure!(written.contains("written by `evenkeel-remediator generate config`"), "{written}");
    ensure!(written.contains(" units, ") && written.contains("mode: plan"), "{written}");
    // What was written once is kept, and the token is nobody else's to read.
    let token = fs::metadata(kept.join("webhook.token"))?;
    ensure!(token.permissions().mode() & 0o777 == 0o600, "{:o}", token.permissions().mode());
    let mine = "# mine\n";
    let remediator = kept.join("remediator.yml");
    fs::write(&remediator, fs::read_to_string(&remediator)? + mine)?;
    drop(up);
    let up = Up::start(&variables, &["--dir", kept_path]).await?;
    ensure!(fs::read_to_string(&remediator)?.ends_with(mine), "the configuration was written anew");
    ensure!(up.dir.is_dir());
    Ok(())
}
