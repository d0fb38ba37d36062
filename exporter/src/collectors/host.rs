//! The machine as a whole: what a repair has to consider before it puts more load on it. Everything else about memory and
//! processors is node_exporter's.

use evenkeel_host::{
    machine::{Machine, Vitals},
    metrics::Family,
};
use futures_util::future::BoxFuture;
use tokio::time::Instant;

use super::{CollectError, Collector, Look};

/// The name of the collector.
pub const NAME: &str = "host";

/// The windows of the kernel's pressure averages.
const WINDOWS: [&str; 3] = ["10s", "60s", "300s"];

/// The collector.
#[derive(Debug)]
pub struct HostCollector {
    machine: Result<Machine, String>,
}

impl HostCollector {
    /// The collector for this machine.
    pub fn new() -> Self {
        Self { machine: Machine::new().map_err(|error| error.to_string()) }
    }

    fn look(&self) -> Result<Look, CollectError> {
        let machine = self.machine.as_ref().map_err(CollectError::new)?;
        machine.vitals().map(|vitals| Look::fresh(families(&vitals))).map_err(CollectError::new)
    }
}

impl Default for HostCollector {
    fn default() -> Self {
        Self::new()
    }
}

impl Collector for HostCollector {
    fn name(&self) -> &'static str {
        NAME
    }

    fn look(&self, _deadline: Instant) -> BoxFuture<'_, Result<Look, CollectError>> {
        // The kernel answers from memory.
        Box::pin(async { self.look() })
    }

    fn down(&self) -> Vec<Family> {
        Vec::new()
    }
}

#[allow(clippy::cast_precision_loss, reason = "Prometheus has no other numbers")]
fn families(vitals: &Vitals) -> Vec<Family> {
    let bytes = |name, help, value: u64| Family::gauge(name, help).with(&[], value as f64);
    let load = |name, help, value| Family::gauge(name, help).with(&[], value);
    let mut pressure = Family::gauge(
        "evenkeel_host_pressure_ratio",
        "The part of the last 10, 60 or 300 seconds in which some tasks, or all (kind full), waited for the resource.",
    );
    for told in &vitals.pressure {
        for (window, average) in WINDOWS.into_iter().zip(told.averages) {
            let resource = ("resource", told.resource.as_str());
            pressure.sample(&[resource, ("kind", told.share.as_str()), ("window", window)], average);
        }
    }
    vec![
        bytes("evenkeel_host_memory_total_bytes", "All memory of the host.", vitals.memory_total),
        bytes(
            "evenkeel_host_memory_available_bytes",
            "Memory that programs can still have without swapping.",
            vitals.memory_available,
        ),
        bytes("evenkeel_host_swap_total_bytes", "All swap of the host.", vitals.swap_total),
        bytes("evenkeel_host_swap_free_bytes", "Unused swap.", vitals.swap_free),
        load("evenkeel_host_load1", "Load average of the last minute.", vitals.load[0]),
        load("evenkeel_host_load5", "Load average of the last 5 minutes.", vitals.load[1]),
        load("evenkeel_host_load15", "Load average of the last 15 minutes.", vitals.load[2]),
        pressure,
        Family::gauge("evenkeel_host_boot_time_seconds", "When the host was booted.")
            .with(&[], vitals.boot_time as f64),
    ]
}

#[cfg(test)]
mod tests {
    use evenkeel_host::machine::{Pressure, Resource, Share};

    use super::*;

    #[test]
    fn vitals_become_series() {
        let vitals = Vitals {
            memory_total: 8_000,
            memory_available: 3_000,
            swap_total: 2_000,
            swap_free: 1_500,
            load: [0.5, 1.5, 2.5],
            boot_time: 1_700_000_000,
            pressure: vec![Pressure {
                resource: Resource::Memory,
                share: Share::Full,
                averages: [0.25, 0.125, 0.0],
            }],
        };
        let mut lines = Vec::new();
        for family in families(&vitals) {
            for sample in &family.samples {
                let labels: Vec<_> = sample.labels.iter().map(|(_, value)| value.as_str()).collect();
                lines.push(format!("{} {} {}", family.name, labels.join(","), sample.value));
            }
        }
        assert_eq!(
            lines,
            [
                "evenkeel_host_memory_total_bytes  8000",
                "evenkeel_host_memory_available_bytes  3000",
                "evenkeel_host_swap_total_bytes  2000",
                "evenkeel_host_swap_free_bytes  1500",
                "evenkeel_host_load1  0.5",
                "evenkeel_host_load5  1.5",
                "evenkeel_host_load15  2.5",
                "evenkeel_host_pressure_ratio memory,full,10s 0.25",
                "evenkeel_host_pressure_ratio memory,full,60s 0.125",
                "evenkeel_host_pressure_ratio memory,full,300s 0",
                "evenkeel_host_boot_time_seconds  1700000000",
            ]
        );
    }

    #[test]
    fn this_host_is_seen() {
        let look = HostCollector::new().look();
        assert!(matches!(look, Ok(Look::Seen(_))), "{look:?}");
    }
}
