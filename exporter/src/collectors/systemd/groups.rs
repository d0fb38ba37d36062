//! CPU, memory and tasks of watched units, from the kernel's files at each look.

use std::{path::Path, sync::Arc};

use evenkeel_host::{
    cgroup::{Cgroups, Meter, Usage},
    metrics::Family,
    systemd::{Unit, UnitPath},
};
use tokio::{task::spawn_blocking, time::Instant};

use super::picture::Picture;

/// The control groups of watched units.
#[derive(Debug)]
pub(super) struct Groups {
    cgroups: Cgroups,
    /// Of which version of the picture the meters are; `None` while they are away.
    version: Option<u64>,
    meters: Vec<Metered>,
}

#[derive(Debug)]
struct Metered {
    unit: Arc<Unit>,
    path: String,
    meter: Meter,
    usage: Option<Usage>,
}

impl Default for Groups {
    fn default() -> Self {
        Self::under(Path::new("/"))
    }
}

impl Groups {
    /// `root` is where the host's files are.
    pub(super) fn under(root: &Path) -> Self {
        Self { cgroups: Cgroups::under(root), version: None, meters: Vec::new() }
    }

    /// Follows the picture.
    pub(super) fn follow(&mut self, picture: &Picture) {
        if self.version == Some(picture.version()) {
            return;
        }
        let mut before: Vec<Metered> = std::mem::take(&mut self.meters);
        before.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        for known in picture.units().filter(|known| known.has_processes()) {
            let Some(path) = known.control_group.as_ref().filter(|path| !path.is_empty()) else { continue };
            let unit = Arc::clone(&known.unit);
            let metered = match before.binary_search_by(|metered| metered.path.cmp(path)) {
                Ok(index) => Metered { unit, ..before.remove(index) },
                Err(_) => Metered { unit, path: path.clone(), meter: Meter::new(path), usage: None },
            };
            self.meters.push(metered);
        }
        self.version = Some(picture.version());
    }

    /// Reads all of them. Says which units have no control group any more.
    pub(super) async fn read(&mut self) -> Vec<UnitPath> {
        // Given up half way, the meters are made anew.
        let version = self.version.take();
        let (cgroups, mut meters) = (self.cgroups.clone(), std::mem::take(&mut self.meters));
        let now = Instant::now();
        let reading = spawn_blocking(move || {
            for metered in &mut meters {
                metered.usage = metered.meter.read(&cgroups, now);
            }
            meters
        });
        // Ends early only when the process does.
        self.meters = reading.await.unwrap_or_default();
        self.version = version;
        let gone = self.meters.iter().filter(|metered| metered.usage.is_none());
        gone.map(|metered| metered.unit.path.clone()).collect()
    }

    /// What was read.
    #[allow(clippy::cast_precision_loss, reason = "bytes and tasks are far below 2^53")]
    pub(super) fn families(&self) -> Vec<Family> {
        let mut cpu = Family::counter(
            "systemd_unit_cpu_seconds_total",
            "CPU time used by the watched unit's processes.",
        );
        let mut memory = Family::gauge(
            "systemd_unit_memory_bytes",
            "Memory used by the watched unit, without file cache that can be dropped.",
        );
        let mut tasks =
            Family::gauge("systemd_unit_tasks_current", "Processes and threads of the watched unit.");
        let mut tasks_max = Family::gauge(
            "systemd_unit_tasks_max",
            "How many tasks the watched unit may have; absent for any number.",
        );
        for metered in &self.meters {
            let Some(usage) = metered.usage else { continue };
            let labels = [("name", metered.unit.name.as_str()), ("type", metered.unit.kind())];
            if let Some(used) = usage.cpu {
                cpu.sample(&labels, used.as_secs_f64());
            }
            for (family, value) in
                [(&mut memory, usage.memory), (&mut tasks, usage.tasks), (&mut tasks_max, usage.tasks_max)]
            {
                if let Some(value) = value {
                    family.sample(&labels, value as f64);
                }
            }
        }
        vec![cpu, memory, tasks, tasks_max]
    }
}
