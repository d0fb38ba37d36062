//! A private Docker engine on a disk of its own, which therefore can really be filled.
//!
//! Its containerd is private too: the one that dockerd would start writes outside the engine's
//! folder. Networks are off (`--bridge none`), so the machine's firewall is never touched.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use tokio::sync::{Mutex, OnceCell};

use crate::{
    disk::Disk,
    namespace,
    process::{Frozen, Process, send},
    run_dir, tools,
    wait::wait_for,
};

/// The image every small container of the lab is made from: busybox with its links.
pub const BUSYBOX: &str = "lab/busybox";

/// What the engine's containers see as cgroups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cgroup {
    /// What the machine has.
    #[default]
    Machine,
    /// Version 2 alone, also on a machine whose controllers are bound to version 1; those are
    /// missing then, so there is a `cpu.stat` but no `memory.current`.
    V2,
}

/// How an engine is to be made.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The size of its disk in MiB.
    pub disk_mib: u64,
    /// The inodes of its disk; as many as usual when not given.
    pub inodes: Option<u64>,
    /// The cgroups of its containers.
    pub cgroup: Cgroup,
}

impl Default for Options {
    fn default() -> Self {
        Self { disk_mib: 1500, inodes: None, cgroup: Cgroup::Machine }
    }
}

/// A running engine. Dropping it kills its containers and removes its disk.
#[derive(Debug)]
pub struct Engine {
    dir: PathBuf,
    cgroup: String,
    dockerd: Process,
    containerd: Process,
    busybox: OnceCell<()>,
    systemd: Mutex<BTreeSet<String>>,
    next: AtomicU32,
    // Last, because it can be unmounted only when all the others have gone.
    disk: Disk,
}

impl Engine {
    /// Starts an engine and waits until it answers.
    ///
    /// # Errors
    ///
    /// When the disk cannot be made or a daemon does not answer within 30 s.
    pub async fn start(options: Options) -> Result<Self> {
        let dir = namespace::place("engine")?;
        let disk = match options.inodes {
            Some(inodes) => Disk::of_inodes("disk", options.disk_mib, inodes)?,
            None => Disk::new("disk", options.disk_mib)?,
        };
        let cgroup = format!(
            "{}/{}",
            run_dir::cgroup_name(&namespace::run_folder()?),
            dir.file_name().context("a place has a name")?.to_string_lossy()
        );
        let mut containerd = Process::start("containerd", &dir, containerd(&dir, &disk, options.cgroup)?)?;
        let socket = dir.join("containerd.sock");
        wait_for("containerd's socket", Duration::from_secs(30), async || {
            containerd.check_alive()?;
            if socket.exists() { Ok(()) } else { bail!("no {}", socket.display()) }
        })
        .await?;
        let dockerd = Process::start("dockerd", &dir, dockerd(&dir, &disk, &cgroup, containerd.id())?)?;
        let mut engine = Self {
            dir,
            cgroup,
            dockerd,
            containerd,
            busybox: OnceCell::new(),
            systemd: Mutex::default(),
            next: AtomicU32::new(1),
            disk,
        };
        engine.write_client_config()?;
        engine.wait_for_answer().await?;
        Ok(engine)
    }

    /// The disk its images, containers and build cache lie on.
    #[must_use]
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Its address in the form of `DOCKER_HOST`.
    #[must_use]
    pub fn host(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// Its socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.dir.join("docker.sock")
    }

    /// The processes of dockerd and containerd.
    #[must_use]
    pub fn daemons(&self) -> [u32; 2] {
        [self.dockerd.id(), self.containerd.id()]
    }

    /// Stops dockerd from running until the guard is dropped: its socket still accepts connections.
    ///
    /// # Errors
    ///
    /// When dockerd has ended.
    pub fn freeze(&self) -> Result<Frozen> {
        self.dockerd.freeze()
    }

    /// Ends dockerd in order, as `systemctl stop docker` does: containers end too, the disk stays.
    ///
    /// # Errors
    ///
    /// When its end cannot be awaited.
    pub fn stop(&mut self) -> Result<()> {
        self.dockerd.stop().map(drop)
    }

    /// Starts dockerd again after [`Self::stop`].
    ///
    /// # Errors
    ///
    /// When it does not answer within 30 s.
    pub async fn start_again(&mut self) -> Result<()> {
        let command = dockerd(&self.dir, &self.disk, &self.cgroup, self.containerd.id())?;
        self.dockerd = Process::start("dockerd", &self.dir, command)?;
        self.wait_for_answer().await
    }

    /// How many requests of this method, with `part` in their path, dockerd has been sent: by its own
    /// log, whoever sent them.
    #[must_use]
    pub fn requests(&self, method: &str, part: &str) -> usize {
        let log = self.dockerd.log();
        // "Calling POST /v1.41/build/prune" until Docker 27, then fields of a "handling POST request".
        let calls = log.lines().filter(|line| {
            let is_call = line.contains("msg=\"Calling ") || line.contains("msg=\"handling ");
            is_call && line.contains(method) && line.contains(part)
        });
        calls.count()
    }

    /// Runs the docker client and returns what it printed, without the last line break.
    ///
    /// # Errors
    ///
    /// When the client fails or is not done after two minutes.
    pub async fn docker(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.client()?;
        command.args(arguments);
        Ok(tools::run(command, Duration::from_secs(120)).await?.trim_end().to_owned())
    }

    /// The docker client, pointed at this engine only.
    ///
    /// # Errors
    ///
    /// When the client has not been fetched.
    pub fn client(&self) -> Result<Command> {
        let mut command = tools::command(tools::program("docker")?);
        command
            .env("DOCKER_HOST", self.host())
            .env("DOCKER_CONFIG", self.dir.join("client"))
            .env("DOCKER_BUILDKIT", "1")
            .env_remove("DOCKER_CONTEXT");
        Ok(command)
    }

    /// Builds an image from a Dockerfile that needs no files.
    ///
    /// # Errors
    ///
    /// When the build fails.
    pub async fn build(&self, tag: &str, dockerfile: &str) -> Result<()> {
        self.need_busybox().await?;
        let folder = self.dir.join(format!("build-{}", self.number()));
        fs::create_dir(&folder)?;
        fs::write(folder.join("Dockerfile"), dockerfile)?;
        self.build_folder(tag, &folder).await?;
        fs::remove_dir_all(folder)?;
        Ok(())
    }

    /// Starts a container from [`BUSYBOX`] and returns its id. `arguments` are those of `docker run`
    /// before the image, `program` is what runs in it.
    ///
    /// # Errors
    ///
    /// When the container does not start.
    pub async fn run(&self, arguments: &[&str], program: &[&str]) -> Result<String> {
        self.need_busybox().await?;
        let fixed = ["run", "--detach", "--network", "none"];
        let command: Vec<&str> = [&fixed, arguments, &[BUSYBOX], program].concat();
        self.docker(&command).await
    }

    /// The same for a container whose health `probe`, a shell command, decides every second.
    ///
    /// # Errors
    ///
    /// When the container does not start.
    pub async fn run_probed(&self, name: &str, probe: &str, program: &[&str]) -> Result<String> {
        let often = ["--health-interval", "1s", "--health-retries", "2", "--health-cmd", probe];
        // Process 1 of a container ignores SIGTERM unless it handles it: every stop would take 10 s.
        self.run(&[&["--name", name, "--stop-signal", "KILL"], &often[..]].concat(), program).await
    }

    /// One field of a container, by a template of `docker inspect`.
    ///
    /// # Errors
    ///
    /// When there is no such container.
    pub async fn inspect(&self, container: &str, template: &str) -> Result<String> {
        self.docker(&["inspect", "--type", "container", "--format", template, container]).await
    }

    /// Fills the disk with build cache that no image uses, until it is at least `ratio` full.
    ///
    /// # Errors
    ///
    /// When a build fails, also for want of room.
    pub async fn fill_with_build_cache(&self, ratio: f64) -> Result<()> {
        while self.disk.usage()?.used_ratio() < ratio {
            let usage = self.disk.usage()?;
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
            let missing = ((ratio - usage.used_ratio()) * usage.size as f64) as u64 / 1024 / 1024 + 1;
            let tag = format!("lab/filling-{}", self.number());
            self.build(
                &tag,
                // The tag makes each step a new one to the builder, which would else not run it again.
                &format!(
                    "FROM {BUSYBOX}\nRUN echo {tag} && dd if=/dev/urandom of=/filling bs=1M count={}\n",
                    missing.clamp(1, 120)
                ),
            )
            .await?;
            self.docker(&["image", "rm", &tag]).await?;
        }
        Ok(())
    }

    /// How many pieces of build cache there are, and how large they are together, in docker's words.
    /// (How many of them are in use is another matter: a build lets go of its own some time after it.)
    ///
    /// # Errors
    ///
    /// When the engine cannot be asked.
    pub async fn build_cache(&self) -> Result<String> {
        let usage =
            self.docker(&["system", "df", "--format", "{{.Type}}: {{.TotalCount}}, {{.Size}}"]).await?;
        let cache = usage.lines().find(|line| line.starts_with("Build Cache"));
        Ok(cache.context("no line about build cache")?.to_owned())
    }

    /// Imports an image with systemd, once for each release, and returns its tag: `systemd`, `own` for what is built
    /// on this machine, or `systemd-RELEASE`.
    ///
    /// # Errors
    ///
    /// When the image has not been made or cannot be imported.
    pub async fn need_systemd_image(&self, name: &str) -> Result<String> {
        let link = tools::run_folder().join(format!("tools/images/{name}.tar"));
        let tar = link
            .canonicalize()
            .with_context(|| format!("no {}: run tests/fetch-tools.sh lab (make does)", link.display()))?;
        let release = tar.file_stem().and_then(|stem| stem.to_str()).context("an image has a name")?;
        let tag = format!("lab/{release}");
        let mut imported = self.systemd.lock().await;
        if !imported.contains(&tag) {
            let tar = tar.to_str().context("the repository's path is not UTF-8")?;
            self.docker(&["import", tar, &tag]).await?;
            imported.insert(tag.clone());
        }
        Ok(tag)
    }

    async fn need_busybox(&self) -> Result<()> {
        let build = async || {
            let folder = self.dir.join("busybox");
            fs::create_dir(&folder)?;
            fs::copy(tools::program("busybox")?, folder.join("busybox"))?;
            fs::write(
                folder.join("Dockerfile"),
                "FROM scratch\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\n",
            )?;
            self.build_folder(BUSYBOX, &folder).await
        };
        self.busybox.get_or_try_init(build).await.copied()
    }

    async fn build_folder(&self, tag: &str, folder: &Path) -> Result<()> {
        let folder = folder.to_str().context("the lab's path is UTF-8")?;
        self.docker(&["build", "--quiet", "--network", "none", "--tag", tag, folder]).await.map(drop)
    }

    async fn wait_for_answer(&mut self) -> Result<()> {
        wait_for("dockerd to answer", Duration::from_secs(30), async || {
            self.dockerd.check_alive()?;
            self.docker(&["version"]).await
        })
        .await
        .map(drop)
    }

    fn number(&self) -> u32 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// The fetched client finds its build plugin beside itself, not in the machine's folders.
    fn write_client_config(&self) -> Result<()> {
        let root = tools::run_folder().join("tools/root/usr");
        let folders = [root.join("libexec/docker/cli-plugins"), root.join("lib/docker/cli-plugins")];
        let client = self.dir.join("client");
        fs::create_dir(&client)?;
        let config = serde_json::json!({ "cliPluginsExtraDirs": folders });
        fs::write(client.join("config.json"), config.to_string())?;
        Ok(())
    }

    /// The cgroups of the engine's containers, in every hierarchy.
    fn cgroups(&self) -> Vec<PathBuf> {
        let top = Path::new("/sys/fs/cgroup");
        let mut folders = vec![top.join(&self.cgroup)];
        folders.extend(
            fs::read_dir(top).into_iter().flatten().flatten().map(|entry| entry.path().join(&self.cgroup)),
        );
        let mut found = Vec::new();
        while let Some(folder) = folders.pop() {
            let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
            folders.extend(entries.map(|entry| entry.path()).filter(|path| path.is_dir()));
            found.push(folder);
        }
        found
    }

    /// Everything that runs in the engine's containers.
    fn container_processes(&self) -> Vec<u32> {
        let mut found = Vec::new();
        for folder in self.cgroups() {
            let listed = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
            found.extend(listed.lines().filter_map(|line| line.parse::<u32>().ok()).filter(|&pid| pid != 0));
        }
        found
    }

    /// Lets paused containers run: cgroup v1 keeps a killed process for as long as it is frozen.
    fn thaw(&self) {
        for folder in self.cgroups() {
            for (file, word) in [("freezer.state", "THAWED"), ("cgroup.freeze", "0")] {
                let path = folder.join(file);
                if path.exists() {
                    // The container may end at this moment.
                    fs::write(path, word).ok();
                }
            }
        }
    }

    /// The processes that hold a container each, and outlive dockerd and containerd.
    fn shims(&self) -> Vec<u32> {
        let address = self.dir.join("containerd.sock");
        processes_naming(address.to_string_lossy().as_bytes())
    }

    /// Unmounts what the killed daemons left mounted in their folders, the innermost first.
    fn unmount_leftovers(&self) {
        let Ok(table) = fs::read_to_string("/proc/self/mountinfo") else { return };
        let ours = [format!("{}/", self.dir.display()), format!("{}/", self.disk.path().display())];
        let points = table.lines().filter_map(|line| line.split(' ').nth(4));
        let mut points: Vec<&str> =
            points.filter(|at| ours.iter().any(|dir| at.starts_with(dir.as_str()))).collect();
        points.sort_unstable_by_key(|at| std::cmp::Reverse(at.len()));
        for point in points {
            let mut umount = tools::command("umount");
            umount.arg(point);
            if let Err(error) = tools::run_blocking(umount) {
                eprintln!("{error:#}");
            }
        }
    }
}

impl Drop for Engine {
    /// Kills instead of asking: a daemon may be frozen, and everything it keeps goes with its disk.
    fn drop(&mut self) {
        for daemon in [&mut self.dockerd, &mut self.containerd] {
            if let Err(error) = daemon.kill() {
                eprintln!("{error:#}");
            }
        }
        self.thaw();
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let left = [self.container_processes(), self.shims()].concat();
            if left.is_empty() || Instant::now() > deadline {
                break;
            }
            for pid in left {
                // It may end by itself between being listed and being killed.
                send(pid, Signal::KILL).ok();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.unmount_leftovers();
    }
}

/// The release whose engine is taken instead of this machine's: `tests/fetch-tools.sh engine RELEASE`.
const RELEASE: &str = "EVENKEEL_LAB_ENGINE";

/// What the engine sees: cgroups of version 2 where that is asked for, and the tree as its root, if there is one, with what
/// the lab has made and the repository. Arguments: `v2` or not, the tree or nothing, the repository, the program.
const VIEW: &str = r#"
version=$1 tree=$2 repository=$3
shift 3
if [ "$version" = v2 ]; then
    umount -R /sys/fs/cgroup
    mount -t cgroup2 none /sys/fs/cgroup
fi
if [ -n "$tree" ]; then
    mount --bind "$tree" "$tree"
    for at in proc sys dev run; do mount --rbind /$at "$tree/$at"; done
    mkdir -p "$tree$repository"
    mount --bind "$repository" "$tree$repository"
    # Not chroot: a container's root is changed from the root of the mount namespace.
    cd "$tree"
    pivot_root . mnt
    umount -l /mnt
fi
exec "$@"
"#;

/// The tree that holds the engine, when it is another release's.
fn tree() -> Result<Option<PathBuf>> {
    let Some(release) = std::env::var_os(RELEASE) else { return Ok(None) };
    let tree = tools::run_folder().join("tools/engines").join(release);
    if !tree.is_dir() {
        bail!("no {}: run tests/fetch-tools.sh engine RELEASE", tree.display());
    }
    Ok(Some(tree))
}

/// A daemon: `name` of `.run/tools/bin`, or where it is in the tree.
fn daemon(name: &str, path: &str) -> Result<PathBuf> {
    if tree()?.is_some() { Ok(path.into()) } else { tools::program(name) }
}

fn containerd(dir: &Path, disk: &Disk, cgroup: Cgroup) -> Result<Command> {
    let config = dir.join("containerd.toml");
    // The plugins left out: what the lab does not use, and one that makes /opt/containerd.
    fs::write(
        &config,
        format!(
            r#"version = 2
root = "{root}/containerd"
state = "{dir}/containerd"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]
[grpc]
address = "{dir}/containerd.sock"
"#,
            root = disk.path().display(),
            dir = dir.display()
        ),
    )?;
    let mut command = tools::command("unshare");
    command.args(["--mount", "--", "sh", "-ec", VIEW, "sh"]);
    command.arg(match cgroup {
        Cgroup::Machine => "machine",
        Cgroup::V2 => "v2",
    });
    command
        .arg(tree()?.unwrap_or_default())
        .arg(tools::repository())
        .arg(daemon("containerd", "/usr/bin/containerd")?);
    command.arg("--config").arg(config);
    Ok(command)
}

fn dockerd(dir: &Path, disk: &Disk, cgroup: &str, containerd: u32) -> Result<Command> {
    // Both daemons must see the same mounts, whichever namespace containerd was given.
    let mut command = tools::command("nsenter");
    command.arg(format!("--mount=/proc/{containerd}/ns/mnt")).arg("--");
    command.arg(daemon("dockerd", "/usr/sbin/dockerd")?);
    let mut path = |flag: &str, value: PathBuf| {
        command.arg(flag).arg(value);
    };
    path("--data-root", disk.path().join("docker"));
    path("--exec-root", dir.join("exec"));
    path("--pidfile", dir.join("docker.pid"));
    path("--containerd", dir.join("containerd.sock"));
    command.arg("--host").arg(format!("unix://{}", dir.join("docker.sock").display()));
    command.arg("--cgroup-parent").arg(format!("/{cgroup}"));
    // Asking the machine's systemd for scopes would leave units there.
    command.args(["--exec-opt", "native.cgroupdriver=cgroupfs"]);
    command.args(["--bridge", "none", "--iptables=false", "--ip6tables=false", "--ip-forward=false"]);
    // Every request is in the log then, which is how tests count them.
    command.args(["--userland-proxy=false", "--debug"]);
    Ok(command)
}

/// The processes of this lab whose command line holds `text`. A lab that runs inside this one has
/// the same paths for its own: its processes are visible here, and live in another namespace.
fn processes_naming(text: &[u8]) -> Vec<u32> {
    let world = |process: &str| fs::read_link(format!("/proc/{process}/ns/pid")).ok();
    let own = world("self");
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.windows(text.len()).any(|part| part == text) && world(&pid.to_string()) == own
    })
    .collect()
}
