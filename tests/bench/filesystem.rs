//! Filesystems: a host of its own mounts for each number of them.

use std::process::Stdio;

use anyhow::{Context, Result};
use evenkeel_tests::{namespace, process::Process, tools};

use crate::{
    cpu::Clock,
    floors,
    period::{self, Cost, Station},
    program::{Program, Setting, within},
    table::{Row, ms},
};

const MOUNTS: [usize; 3] = [0, 50, 500];

/// At most so many times the floor.
const GOAL: f64 = 2.0;

/// A mount namespace with so many mounts more than the lab begins with: to be made before anything else mounts.
pub(crate) struct Mounts {
    count: usize,
    /// Holds the namespace.
    holder: Process,
}

impl Mounts {
    pub(crate) fn all() -> Result<Vec<Self>> {
        MOUNTS.into_iter().map(Self::start).collect()
    }

    fn start(count: usize) -> Result<Self> {
        let dir = namespace::place("mounts")?;
        let script = format!(
            "cd {} && for i in $(seq 1 {count}); do mkdir m$i && mount -t tmpfs -o size=1m m$i m$i || exit 1; done; \
             touch ready; exec sleep infinity",
            dir.display()
        );
        let mut command = tools::command("unshare");
        command.args(["--mount", "--", "sh", "-c", &script]).stdin(Stdio::null());
        let mut holder = Process::start("mounts", &dir, command)?;
        while !dir.join("ready").exists() {
            holder.check_alive()?;
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        Ok(Self { count, holder })
    }

    fn setting(&self, flags: &[&str]) -> Setting {
        Setting { mounts_of: Some(self.holder.id()), ..Setting::flags(flags) }
    }

    pub(crate) fn station(&self) -> Station {
        let setting = self.setting(&["--collector.disable-defaults", "--collector.filesystem"]);
        Station { setting, source: Clock::of(&[]) }
    }

    pub(crate) async fn rows(&self, (program, cost): (Program, Cost)) -> Result<Vec<Row>> {
        let floor = self.floor().await?;
        // At the floor's pace: what lies 15 s apart finds cold caches, whoever asks.
        let own = period::peer(&program, &Clock::of(&[]), 20).await?.0;
        drop(program);
        let flags = [
            "--collector.disable-defaults",
            "--collector.filesystem",
            "--web.disable-exporter-metrics",
            // Its own default. Debian's leaves out everything below /run, and with it these mounts.
            "--collector.filesystem.mount-points-exclude=^/(dev|proc|run/credentials/.+|sys|var/lib/docker/.+|var/lib/containers/storage/.+)($|/)",
        ];
        let peer = Program::peer("node_exporter", &self.setting(&flags)).await?;
        let peer = period::peer(&peer, &Clock::of(&[]), 20).await?.0;
        let ratio = own / floor;
        let beside = format!(
            "each 200 ms apart: this {}, mountinfo and statvfs alone {} ({ratio:.1} ×), node_exporter {} ({:.1} ×)",
            ms(own),
            ms(floor),
            ms(peer),
            peer / own
        );
        let what = format!("Filesystems, {} extra mounts: CPU per scrape", self.count);
        let measured = format!("{} ({} inside the scrape)", ms(cost.exporter), ms(cost.exporter_inside));
        Ok(vec![Row::new(what, measured).beside(beside).at_most(ratio, GOAL, "× the floor")])
    }

    /// This program again, in that namespace.
    async fn floor(&self) -> Result<f64> {
        let mut command = within(self.holder.id(), std::env::current_exe()?);
        command.arg(floors::FILESYSTEMS);
        let printed = tools::run(command, std::time::Duration::from_secs(60)).await?;
        printed.trim().parse().context("the floor prints a number")
    }
}
