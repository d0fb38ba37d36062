//! The machine as a whole: memory, load, pressure, and since when it runs. Not here: whether that is too much of it.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use sysinfo::{MemoryRefreshKind, System};

/// Where the kernel tells its pressure (Documentation/accounting/psi.rst), unless it was built or booted without it.
const PRESSURE: &str = "/proc/pressure";

/// How the machine is doing.
#[derive(Debug, Clone, PartialEq)]
pub struct Vitals {
    /// All memory, in bytes.
    pub memory_total: u64,
    /// What programs can still have without swapping, in bytes.
    pub memory_available: u64,
    /// All swap, in bytes.
    pub swap_total: u64,
    /// Unused swap, in bytes.
    pub swap_free: u64,
    /// Load averages of the last 1, 5 and 15 minutes.
    pub load: [f64; 3],
    /// When it was booted, in seconds since the epoch.
    pub boot_time: u64,
    /// Of each resource that the kernel tells of.
    pub pressure: Vec<Pressure>,
}

/// How much time was lost waiting for a resource.
#[derive(Debug, Clone, PartialEq)]
pub struct Pressure {
    /// For what.
    pub resource: Resource,
    /// While some tasks waited, or while all did.
    pub share: Share,
    /// Parts of the last 10, 60 and 300 seconds, each from 0 to 1.
    pub averages: [f64; 3],
}

/// What there may be too little of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    /// Processor time.
    Cpu,
    /// Memory.
    Memory,
    /// Disks.
    Io,
}

impl Resource {
    const ALL: [Self; 3] = [Self::Cpu, Self::Memory, Self::Io];

    /// The kernel's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Io => "io",
        }
    }
}

/// Of the tasks that want to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    /// At least one of them waited.
    Some,
    /// All of them waited, so that nothing was done.
    Full,
}

impl Share {
    /// The kernel's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Some => "some",
            Self::Full => "full",
        }
    }
}

/// This machine.
pub struct Machine {
    system: Mutex<System>,
    pressure: PathBuf,
}

impl Machine {
    /// Ready to be asked.
    ///
    /// # Errors
    /// When this is no system that has such figures.
    pub fn new() -> io::Result<Self> {
        let system = System::new().map_err(|error| io::Error::other(error.to_string()))?;
        Ok(Self { system: Mutex::new(system), pressure: PRESSURE.into() })
    }

    /// How it is doing now. Reads some small files of the kernel.
    ///
    /// # Errors
    /// When `/proc` is not there or says nothing of memory, load and boot time.
    pub fn vitals(&self) -> io::Result<Vitals> {
        let failed = |what: &str| io::Error::other(format!("/proc does not tell the {what}"));
        let load = System::load_average().map_err(|_| failed("load"))?;
        let boot_time = System::boot_time().map_err(|_| failed("boot time"))?;
        let mut system = self.system.lock().unwrap_or_else(PoisonError::into_inner);
        system.refresh_memory_specifics(MemoryRefreshKind::everything());
        if system.total_memory() == 0 {
            return Err(failed("memory"));
        }
        Ok(Vitals {
            memory_total: system.total_memory(),
            memory_available: system.available_memory(),
            swap_total: system.total_swap(),
            swap_free: system.free_swap(),
            load: [load.one, load.five, load.fifteen],
            boot_time,
            pressure: pressure(&self.pressure),
        })
    }
}

impl fmt::Debug for Machine {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Machine").finish_non_exhaustive()
    }
}

fn pressure(folder: &Path) -> Vec<Pressure> {
    let mut found = Vec::new();
    for resource in Resource::ALL {
        // Unreadable where the kernel was booted with psi=0.
        let text = fs::read_to_string(folder.join(resource.as_str())).unwrap_or_default();
        found.extend(text.lines().filter_map(|line| parse_line(resource, line)));
    }
    found
}

/// `some avg10=1.53 avg60=0.87 avg300=0.73 total=1234567`, in percent.
fn parse_line(resource: Resource, line: &str) -> Option<Pressure> {
    let mut words = line.split_ascii_whitespace();
    let share = match words.next()? {
        "some" => Share::Some,
        "full" => Share::Full,
        _ => return None,
    };
    let mut averages = [0.0; 3];
    for (average, window) in averages.iter_mut().zip(["avg10=", "avg60=", "avg300="]) {
        let percent: f64 = words.next()?.strip_prefix(window)?.parse().ok()?;
        if !(0.0..=100.0).contains(&percent) {
            return None;
        }
        // From the two decimals that there are: 0.8700000000000001 % would be a new value each time.
        *average = (percent * 100.0).round() / 10_000.0;
    }
    Some(Pressure { resource, share, averages })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_memory_and_was_booted() {
        let machine = Machine::new().unwrap();
        let vitals = machine.vitals().unwrap();
        assert!(vitals.memory_total > 1 << 24, "{vitals:?}");
        assert!(vitals.memory_available <= vitals.memory_total, "{vitals:?}");
        assert!(vitals.swap_free <= vitals.swap_total, "{vitals:?}");
        assert!(vitals.load.iter().all(|load| (0.0..100_000.0).contains(load)), "{vitals:?}");
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        assert!((1..=now).contains(&vitals.boot_time), "{vitals:?}");
        assert_eq!(machine.vitals().unwrap().memory_total, vitals.memory_total);
    }

    #[test]
    fn pressure_is_what_the_kernel_tells() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(pressure(folder.path()), []);
        let text = "some avg10=1.53 avg60=0.87 avg300=100.00 total=6866131767\nfull avg10=0.00 avg60=0.01 avg300=0.70 total=0\n";
        fs::write(folder.path().join("memory"), text).unwrap();
        fs::write(folder.path().join("cpu"), "some avg10=2.00 avg60=0.00 avg300=0.00 total=1\n").unwrap();
        let of = |resource, share, averages| Pressure { resource, share, averages };
        assert_eq!(
            pressure(folder.path()),
            [
                of(Resource::Cpu, Share::Some, [0.02, 0.0, 0.0]),
                of(Resource::Memory, Share::Some, [0.0153, 0.0087, 1.0]),
                of(Resource::Memory, Share::Full, [0.0, 0.0001, 0.007]),
            ]
        );
    }

    #[test]
    fn what_has_another_form_is_left_out() {
        for odd in [
            "",
            "some",
            "most avg10=1.00 avg60=1.00 avg300=1.00 total=1",
            "some avg10=1.00 avg60=1.00",
            "some avg60=1.00 avg10=1.00 avg300=1.00 total=1",
            "some avg10=x avg60=1.00 avg300=1.00 total=1",
            "some avg10=NaN avg60=1.00 avg300=1.00 total=1",
            "some avg10=-1.00 avg60=1.00 avg300=1.00 total=1",
            "some avg10=101 avg60=1.00 avg300=1.00 total=1",
        ] {
            assert_eq!(parse_line(Resource::Io, odd), None, "{odd}");
        }
    }
}
