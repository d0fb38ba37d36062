//! CPU time, memory and tasks of a control group, from the kernel's own files: nobody is asked for them. For units and
//! containers alike. Not here: which cgroup belongs to what.
//!
//! cgroup v2 is what counts; v1 and the mix of both are read where their files are (Linux kernel documentation,
//! "Control Group v2" and "Control Groups version 1"). A controller that is off has no file, and no figure.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::time::Instant;

/// More than any of these files holds: the longest, `memory.stat`, has some 2 kB.
const LONGEST: u64 = 16 * 1024;

/// How long figures are believed of a cgroup that has used no CPU since they were read. Its own processes cannot have
/// changed them, but the kernel may take memory back, and somebody may set another limit.
const BELIEVED: Duration = Duration::from_secs(60);

/// From here on a v1 limit means none: the kernel writes the largest number of whole pages.
const NO_LIMIT: u64 = 1 << 62;

/// Where this host has its cgroups.
#[derive(Debug, Clone)]
pub struct Cgroups {
    base: PathBuf,
    is_v2: bool,
}

/// What a cgroup uses. What its controllers do not count is `None`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Usage {
    /// CPU time since the cgroup was made.
    pub cpu: Option<Duration>,
    /// Bytes, as `docker stats` counts them: without file cache that the kernel may drop at any time.
    pub memory: Option<u64>,
    /// Bytes; `None` where there is no limit.
    pub memory_limit: Option<u64>,
    /// Processes and threads.
    pub tasks: Option<u64>,
    /// How many there may be; `None` where there is no limit.
    pub tasks_max: Option<u64>,
}

impl Cgroups {
    /// The cgroups of the host whose files are under `root`, where systemd mounts them on every host.
    pub fn under(root: &Path) -> Self {
        let base = root.join("sys/fs/cgroup");
        Self { is_v2: base.join("cgroup.controllers").exists(), base }
    }

    /// What the cgroup at `path` uses. The path begins at the root of the hierarchy, as in systemd's `ControlGroup` and
    /// in `/proc/PID/cgroup`: `/system.slice/ssh.service`. `None` when there is no such cgroup.
    pub fn usage(&self, path: &str) -> Option<Usage> {
        let relative = relative(path)?;
        let cpu = self.cpu(relative);
        self.rest(relative, cpu)
    }

    fn cpu(&self, relative: &Path) -> Option<Duration> {
        if self.is_v2 {
            return cpu_stat(&self.base.join(relative));
        }
        // systemd makes a unit's cgroup in each hierarchy that it needs, and always in the unified one if there is one.
        cpu_stat(&self.base.join("unified").join(relative)).or_else(|| {
            let usage = read(&self.base.join("cpuacct").join(relative), "cpuacct.usage")?;
            Some(Duration::from_nanos(number(&usage)?))
        })
    }

    /// All but the CPU; `None` when there is nothing at all.
    fn rest(&self, relative: &Path, cpu: Option<Duration>) -> Option<Usage> {
        let (memory, pids) = if self.is_v2 {
            let folder = self.base.join(relative);
            (memory_v2(&folder), folder)
        } else {
            (memory_v1(&self.base.join("memory").join(relative)), self.base.join("pids").join(relative))
        };
        let (memory, memory_limit) = memory.unzip();
        let tasks = read(&pids, "pids.current").and_then(|text| number(&text));
        let tasks_max = tasks.and_then(|_| number(&read(&pids, "pids.max")?));
        let is_there = cpu.is_some() || memory.is_some() || tasks.is_some();
        is_there.then_some(Usage { cpu, memory, memory_limit: memory_limit.flatten(), tasks, tasks_max })
    }
}

/// Looks at one cgroup again and again, for little: of one that used no CPU since the last look only the CPU time is
/// read.
#[derive(Debug)]
pub struct Meter {
    path: String,
    last: Option<(Instant, Usage)>,
}

impl Meter {
    /// For the cgroup at `path`, as in [`Cgroups::usage`].
    pub fn new(path: &str) -> Self {
        Self { path: path.to_owned(), last: None }
    }

    /// What the cgroup uses; `None` when there is no such cgroup.
    pub fn read(&mut self, cgroups: &Cgroups, now: Instant) -> Option<Usage> {
        let relative = relative(&self.path)?;
        let cpu = cgroups.cpu(relative);
        if let Some((since, usage)) = self.last
            && cpu.is_some()
            && usage.cpu == cpu
            && now.duration_since(since) < BELIEVED
        {
            return Some(usage);
        }
        let usage = cgroups.rest(relative, cpu);
        self.last = usage.map(|usage| (now, usage));
        usage
    }
}

/// Refuses paths that lead out of the hierarchy: they come over the bus.
fn relative(path: &str) -> Option<&Path> {
    let path = Path::new(path.strip_prefix('/')?);
    path.components().all(|part| matches!(part, std::path::Component::Normal(_))).then_some(path)
}

fn cpu_stat(folder: &Path) -> Option<Duration> {
    field(&read(folder, "cpu.stat")?, "usage_usec").map(Duration::from_micros)
}

/// Usage and limit.
fn memory_v2(folder: &Path) -> Option<(u64, Option<u64>)> {
    let usage = number(&read(folder, "memory.current")?)?;
    let limit = read(folder, "memory.max").and_then(|text| number(&text));
    Some((without_cache(folder, usage, "inactive_file"), limit))
}

fn memory_v1(folder: &Path) -> Option<(u64, Option<u64>)> {
    let usage = number(&read(folder, "memory.usage_in_bytes")?)?;
    let limit = read(folder, "memory.limit_in_bytes").and_then(|text| number(&text));
    Some((without_cache(folder, usage, "total_inactive_file"), limit.filter(|limit| *limit < NO_LIMIT)))
}

/// As `docker stats`: a cache larger than the usage, which a moment between two reads can show, is not taken off.
fn without_cache(folder: &Path, usage: u64, name: &str) -> u64 {
    let cache = read(folder, "memory.stat").and_then(|text| field(&text, name));
    cache.and_then(|cache| usage.checked_sub(cache)).unwrap_or(usage)
}

fn read(folder: &Path, name: &str) -> Option<String> {
    let file = File::open(folder.join(name)).ok()?;
    let mut text = String::with_capacity(4096);
    file.take(LONGEST).read_to_string(&mut text).ok()?;
    Some(text)
}

/// The number that a file holds; none for `max`.
fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// The number in the line `name NUMBER`.
fn field(text: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.find(|(found, _)| *found == name).and_then(|(_, value)| number(value))
}

#[cfg(feature = "foreign-input")]
pub(crate) const PARSERS: &[crate::foreign_input::Parser] = &[crate::foreign_input::Parser {
    name: "cgroup files and paths",
    parse: |bytes| {
        let text = crate::foreign_input::text(bytes);
        let _ = (number(&text), field(&text, "usage_usec"), relative(&text));
    },
    samples: &[
        "usage_usec 4214523\nuser_usec 2907184\nsystem_usec 1307338\n",
        "max\n",
        "18446744073709551615\n",
        "/system.slice/docker-0123456789ab.scope",
    ],
}];

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    const SSH: &str = "/system.slice/ssh.service";

    /// The trees under `tests/cgroups/`, one a kind of host.
    fn host(name: &str) -> Cgroups {
        Cgroups::under(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cgroups").join(name))
    }

    #[test]
    fn a_host_with_v2() {
        let usage = host("v2").usage(SSH).unwrap();
        assert_eq!(
            usage,
            Usage {
                cpu: Some(Duration::from_micros(1_830_452)),
                memory: Some(8_097_792 - 3_104_768),
                memory_limit: None,
                tasks: Some(1),
                tasks_max: Some(4_557),
            }
        );
        let limited = host("v2").usage("/system.slice/docker-4f1a.scope").unwrap();
        assert_eq!((limited.memory_limit, limited.tasks_max), (Some(268_435_456), None));
    }

    #[test]
    fn a_host_with_v2_whose_controllers_are_elsewhere() {
        let usage = host("v2-without-controllers").usage("/system.slice/busy.service");
        assert_eq!(usage, Some(Usage { cpu: Some(Duration::from_micros(247_536)), ..Usage::default() }));
    }

    #[test]
    fn a_host_with_v1_and_the_unified_hierarchy_beside_it() {
        let usage = host("hybrid").usage(SSH).unwrap();
        assert_eq!(
            usage,
            Usage {
                cpu: Some(Duration::from_micros(64_271)),
                memory: Some(7_786_496 - 2_510_848),
                memory_limit: None,
                tasks: Some(2),
                tasks_max: None,
            }
        );
    }

    #[test]
    fn a_host_with_v1_alone() {
        let usage = host("v1").usage("/docker/4f1a").unwrap();
        assert_eq!(usage.cpu, Some(Duration::from_nanos(41_093_212_345)));
        assert_eq!((usage.memory, usage.memory_limit), (Some(52_428_800), Some(134_217_728)));
        assert_eq!((usage.tasks, usage.tasks_max), (None, None));
    }

    #[test]
    fn what_is_not_there_has_no_figures() {
        let nowhere = tempfile::tempdir().unwrap();
        for cgroups in [host("v2"), host("v1"), Cgroups::under(nowhere.path())] {
            assert_eq!(cgroups.usage("/system.slice/gone.service"), None);
        }
    }

    #[test]
    fn a_path_cannot_lead_elsewhere() {
        for path in
            ["", "system.slice/ssh.service", "/../../proc", "/system.slice/../system.slice/ssh.service"]
        {
            assert_eq!(host("v2").usage(path), None, "{path:?}");
        }
        assert_eq!(host("v2").usage("//system.slice/ssh.service"), None);
    }

    #[test]
    fn nonsense_in_a_file_is_no_figure() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("sys/fs/cgroup/a.service");
        fs::create_dir_all(&folder).unwrap();
        fs::write(root.path().join("sys/fs/cgroup/cgroup.controllers"), "").unwrap();
        let cgroups = Cgroups::under(root.path());
        fs::write(folder.join("cpu.stat"), "usage_usec\nusage_usec many\n").unwrap();
        fs::write(folder.join("memory.current"), [0xff, 0xfe]).unwrap();
        assert_eq!(cgroups.usage("/a.service"), None);
        fs::write(folder.join("pids.current"), "7\n").unwrap();
        fs::write(folder.join("memory.current"), "100\n").unwrap();
        fs::write(folder.join("memory.stat"), "inactive_file 101\n").unwrap();
        let usage = cgroups.usage("/a.service").unwrap();
        assert_eq!((usage.cpu, usage.memory, usage.tasks), (None, Some(100), Some(7)));
    }

    #[test]
    fn what_used_no_cpu_is_read_again_only_in_a_while() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("sys/fs/cgroup/a.service");
        fs::create_dir_all(&folder).unwrap();
        fs::write(root.path().join("sys/fs/cgroup/cgroup.controllers"), "cpu memory pids\n").unwrap();
        let write = |cpu: u32, tasks: u32| {
            fs::write(folder.join("cpu.stat"), format!("usage_usec {cpu}\n")).unwrap();
            fs::write(folder.join("pids.current"), format!("{tasks}\n")).unwrap();
        };
        let (cgroups, mut meter, now) =
            (Cgroups::under(root.path()), Meter::new("/a.service"), Instant::now());
        let mut tasks = |now| meter.read(&cgroups, now).and_then(|usage| usage.tasks);
        write(10, 1);
        assert_eq!(tasks(now), Some(1));
        write(10, 2);
        assert_eq!(tasks(now + BELIEVED / 2), Some(1), "believed");
        assert_eq!(tasks(now + BELIEVED), Some(2), "not for ever");
        write(11, 3);
        assert_eq!(tasks(now + BELIEVED), Some(3), "it ran");
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(tasks(now + BELIEVED), None);
    }
}
