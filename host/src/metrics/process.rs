//! What this process itself costs, under the names that every Prometheus client library uses.

use std::{fs, sync::OnceLock};

use rustix::{
    param::{clock_ticks_per_second, page_size},
    process::{Resource, getrlimit},
};
use sysinfo::System;

use super::Family;

/// The standard `process_*` metrics of this process: read with each scrape, so two small files and a count.
pub fn process() -> Vec<Family> {
    let stat = fs::read_to_string("/proc/self/stat").ok();
    let mut families = stat.as_deref().and_then(Stat::parse).map(Stat::families).unwrap_or_default();
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        let family = Family::gauge("process_open_fds", "Number of open file descriptors.");
        // One of them is the list itself.
        families.push(family.with(&[], open.count().saturating_sub(1) as f64));
    }
    // `None` is no limit.
    if let Some(limit) = getrlimit(Resource::Nofile).current {
        let family = Family::gauge("process_max_fds", "Maximum number of open file descriptors.");
        families.push(family.with(&[], limit as f64));
    }
    families
}

/// What `/proc/PID/stat` says (proc_pid_stat(5)).
#[derive(Debug, PartialEq)]
struct Stat {
    /// User and system time in clock ticks.
    cpu: u64,
    /// When it started, in clock ticks since boot.
    start: u64,
    /// In bytes.
    virtual_memory: u64,
    /// In pages.
    resident: u64,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The name in brackets may hold anything; what follows it are numbers, of which the first is the third field.
        let (_, rest) = text.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            cpu: field(14)?.saturating_add(field(15)?),
            start: field(22)?,
            virtual_memory: field(23)?,
            resident: field(24)?,
        })
    }

    fn families(self) -> Vec<Family> {
        static BOOT: OnceLock<Option<u64>> = OnceLock::new();
        let seconds = |ticks: u64| ticks as f64 / clock_ticks_per_second() as f64;
        let resident = self.resident.saturating_mul(page_size() as u64);
        let mut families = vec![
            Family::counter("process_cpu_seconds_total", "Total user and system CPU time spent in seconds.")
                .with(&[], seconds(self.cpu)),
            Family::gauge("process_resident_memory_bytes", "Resident memory size in bytes.")
                .with(&[], resident as f64),
            Family::gauge("process_virtual_memory_bytes", "Virtual memory size in bytes.")
                .with(&[], self.virtual_memory as f64),
        ];
        // Once: the start of a process does not move when the clock is set.
        if let Some(boot) = BOOT.get_or_init(|| System::boot_time().ok()) {
            let help = "Start time of the process since unix epoch in seconds.";
            let family = Family::gauge("process_start_time_seconds", help);
            families.push(family.with(&[], *boot as f64 + seconds(self.start)));
        }
        families
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_described() {
        let families = process();
        let value = |name: &str| {
            let family = families.iter().find(|family| family.name == name).expect(name);
            family.samples[0].value
        };
        assert!(value("process_resident_memory_bytes") > 1e6);
        assert!(value("process_virtual_memory_bytes") >= value("process_resident_memory_bytes"));
        assert!(value("process_open_fds") >= 3.0);
        assert!(value("process_max_fds") >= value("process_open_fds"));
        assert!(value("process_cpu_seconds_total") >= 0.0);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
        let age = now.as_secs_f64() - value("process_start_time_seconds");
        assert!((-2.0..3600.0).contains(&age), "{age}");
    }

    #[test]
    fn a_process_may_have_any_name() {
        let text = "7 (a) b 1 (x) S 1 7 7 0 -1 4194560 1 2 3 4 150 50 0 0 20 0 9 0 12345 8192000 300 184 1 1";
        let stat = Stat { cpu: 200, start: 12345, virtual_memory: 8_192_000, resident: 300 };
        assert_eq!(Stat::parse(text), Some(stat));
        for odd in ["", "7 (a", "7 (a) S 1 7", "7 (a) S 1 7 7 0 -1 4194560 1 2 3 4 x 50 0 0 20 0 9 0 1 2 3"] {
            assert_eq!(Stat::parse(odd), None, "{odd}");
        }
    }
}
