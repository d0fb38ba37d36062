//! A host with a real systemd: a container of the lab's engine with systemd as process 1.
//!
//! The flags and the wrapper are each needed for something that otherwise fails without a word:
//! without the remount PID 1 ends on cgroup v2 and limits do nothing on v1, without shared
//! propagation credentials and later mounts are not seen, without the capabilities
//! `AmbientCapabilities=` stays empty.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;

use crate::{engine::Engine, namespace, process::Frozen, run_dir, tools, wait::wait_for};

const WRAPPER: &str = r#"#!/bin/sh
mount --make-rshared /
for at in /sys/fs/cgroup /sys/fs/cgroup/*; do
    mountpoint -q "$at" || continue
    mount -o remount,bind,rw "$at" || mount -o remount,rw "$at"
done
exec /lib/systemd/systemd
"#;

/// Runs a program as if the host were the one that it runs on: in a mount namespace of its own the host's machine id is
/// the machine's, and its units are where the host has them in the cgroup hierarchies, of either version. What belongs to
/// the lab's containers stays where it is. Arguments: the folder for it, the cgroup of the host, the one of the lab, the
/// version that is wanted, the program.
const AT_HOME: &str = r#"
dir=$1 host=$2 lab=$3 version=$4 top=/sys/fs/cgroup
shift 4
mount --bind "$dir/machine-id" /etc/machine-id
[ "$version" = 1 ] || mount -t cgroup2 none $top
mkdir "$dir/cgroup"
mount -t tmpfs view "$dir/cgroup"
for at in $top $top/*; do
    [ -d "$at$lab" ] || continue
    to=$dir/cgroup${at#"$top"}
    mkdir -p "$to$lab"
    mount --bind "$at$lab" "$to$lab"
    [ ! -e "$at/cgroup.controllers" ] || cp "$at/cgroup.controllers" "$to/"
    [ -d "$at$host/system.slice" ] || continue
    mkdir "$to/system.slice"
    mount --bind "$at$host/system.slice" "$to/system.slice"
done
mount --rbind "$dir/cgroup" $top
exec "$@"
"#;

/// Whoever is told to ask the bus of one of the lab's hosts reads that host's journal too.
const JOURNALCTL: &str = r#"#!/bin/sh
host=${DBUS_SYSTEM_BUS_ADDRESS#unix:path=}
host=${host%/bus/system_bus_socket}
[ -d "$host/journal" ] || exec /usr/bin/journalctl "$@"
exec /usr/bin/journalctl --directory="$host/journal" "$@"
"#;

/// A running systemd. Dropping it removes the container.
#[derive(Debug)]
pub struct SystemdHost {
    engine: Arc<Engine>,
    name: String,
    dir: PathBuf,
}

impl SystemdHost {
    /// Boots a host and waits until systemd says that it is up. `EVENKEEL_LAB_IMAGE=systemd-trixie` takes another image
    /// than this machine's (`tests/fetch-tools.sh image trixie`).
    ///
    /// # Errors
    ///
    /// When it is not up within 60 s.
    pub async fn start(engine: Arc<Engine>) -> Result<Self> {
        Self::start_with(engine, &image("systemd"), &[]).await
    }

    /// The same from another image of `tests/fetch-tools.sh`, with more volumes (`/there:/here:ro`).
    ///
    /// # Errors
    ///
    /// When it is not up within 60 s.
    pub async fn start_with(engine: Arc<Engine>, image: &str, more_volumes: &[String]) -> Result<Self> {
        let image = engine.need_systemd_image(image).await?;
        let dir = namespace::place("host")?;
        let name = dir.file_name().context("a place has a name")?.to_string_lossy().into_owned();
        for folder in ["bus", "journal"] {
            fs::create_dir(dir.join(folder))?;
        }
        let wrapper = script(&dir, "init.sh", WRAPPER)?;
        lend_journals(&dir)?;
        let volumes = [
            format!("{}:/run/dbus", dir.join("bus").display()),
            format!("{}:/var/log/journal", dir.join("journal").display()),
            format!("{}:/init.sh:ro", wrapper.display()),
        ];
        let mut arguments = vec!["run", "--detach", "--network", "none", "--cgroupns=private"];
        arguments.extend(["--name", &name, "--hostname", &name, "--tmpfs", "/run", "--tmpfs", "/tmp"]);
        for capability in ["SYS_ADMIN", "NET_ADMIN", "SYS_PTRACE", "DAC_READ_SEARCH"] {
            arguments.extend(["--cap-add", capability]);
        }
        for option in ["seccomp=unconfined", "apparmor=unconfined"] {
            arguments.extend(["--security-opt", option]);
        }
        for volume in volumes.iter().chain(more_volumes) {
            arguments.extend(["--volume", volume]);
        }
        arguments.extend([image.as_str(), "/init.sh"]);
        engine.docker(&arguments).await?;
        let host = Self { engine, name, dir };
        wait_for("systemd to be up", Duration::from_secs(60), async || {
            // It exits 1 while it says "starting" or "degraded".
            let state = host.exec(&["sh", "-c", "systemctl is-system-running || true"]).await?;
            match state.trim() {
                "running" | "degraded" => Ok(()),
                other => bail!("systemd says {other:?}"),
            }
        })
        .await?;
        Ok(host)
    }

    /// The name of its container.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The address of its system bus, usable from the lab's own processes.
    #[must_use]
    pub fn bus_address(&self) -> String {
        format!("unix:path={}", self.dir.join("bus/system_bus_socket").display())
    }

    /// Runs a program on the host and returns what it printed.
    ///
    /// # Errors
    ///
    /// When it fails.
    pub async fn exec(&self, program: &[&str]) -> Result<String> {
        self.engine.docker(&[&["exec", &self.name], program].concat()).await
    }

    /// Runs `systemctl` on the host and returns what it printed.
    ///
    /// # Errors
    ///
    /// When it fails.
    pub async fn systemctl(&self, arguments: &[&str]) -> Result<String> {
        self.exec(&[&["systemctl", "--no-pager"], arguments].concat()).await
    }

    /// One property of a unit.
    ///
    /// # Errors
    ///
    /// When systemd cannot be asked.
    pub async fn property(&self, unit: &str, property: &str) -> Result<String> {
        self.systemctl(&["show", "--value", "--property", property, unit]).await
    }

    /// What systemd and a unit wrote about it, or about all units of a pattern: the entries of the journal as JSON.
    ///
    /// # Errors
    ///
    /// When the journal cannot be read.
    pub async fn journal(&self, unit: &str) -> Result<Vec<Value>> {
        let read = "journalctl --sync && exec journalctl --no-pager --output=json --unit=\"$1\"";
        let lines = self.exec(&["sh", "-c", read, "sh", unit]).await?;
        lines.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
    }

    /// How often a unit was started, by systemd's own journal: each start has an invocation of its own.
    ///
    /// # Errors
    ///
    /// When the journal cannot be read.
    pub async fn starts(&self, unit: &str) -> Result<usize> {
        let journal = self.journal(unit).await?;
        // Systemd's own lines about the unit; those that the unit wrote have another field.
        let invocations = journal.iter().filter_map(|entry| entry["INVOCATION_ID"].as_str());
        Ok(invocations.collect::<BTreeSet<_>>().len())
    }

    /// Asks a server on the host's own loopback, and returns its answer with status line and headers.
    ///
    /// # Errors
    ///
    /// When nothing listens there.
    pub async fn http(
        &self,
        port: u16,
        method: &str,
        path: &str,
        headers: &str,
        body: &str,
    ) -> Result<String> {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n{body}",
            body.len()
        );
        let ask = "exec 3<>\"/dev/tcp/127.0.0.1/$1\" && printf %s \"$2\" >&3 && exec cat <&3";
        self.exec(&["bash", "-c", ask, "bash", &port.to_string(), &request]).await
    }

    /// Writes a file on the host.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub async fn write_file(&self, path: &str, text: &str) -> Result<()> {
        let mut command = self.engine.client()?;
        command.args(["exec", "--interactive", &self.name, "sh", "-c", "cat >\"$1\"", "sh", path]);
        command.stdin(std::process::Stdio::piped());
        let mut child = tokio::process::Command::from(command).spawn()?;
        let mut input = child.stdin.take().context("the pipe was asked for")?;
        input.write_all(text.as_bytes()).await?;
        drop(input);
        let status = child.wait().await?;
        if !status.success() {
            bail!("cannot write {path} on {}: {status}", self.name);
        }
        Ok(())
    }

    /// Copies a file of the lab's onto the host.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub async fn copy(&self, from: &Path, to: &str) -> Result<()> {
        let from = from.to_str().context("the lab's path is UTF-8")?;
        self.engine.docker(&["cp", from, &format!("{}:{to}", self.name)]).await.map(drop)
    }

    /// Writes a unit file and has systemd read it.
    ///
    /// # Errors
    ///
    /// When it cannot be written or systemd does not reload.
    pub async fn install_unit(&self, name: &str, text: &str) -> Result<()> {
        self.write_file(&format!("/etc/systemd/system/{name}"), text).await?;
        self.systemctl(&["daemon-reload"]).await.map(drop)
    }

    /// The id of its process 1, as the lab's own processes see it.
    ///
    /// # Errors
    ///
    /// When the container does not run.
    pub async fn pid(&self) -> Result<u32> {
        Ok(self.engine.inspect(&self.name, "{{.State.Pid}}").await?.parse()?)
    }

    /// The processes of systemd and dbus-daemon, as the lab's own processes see them.
    ///
    /// # Errors
    ///
    /// When one cannot be found.
    pub async fn daemons(&self) -> Result<[u32; 2]> {
        Ok([self.pid().await?, self.bus_process().await?])
    }

    /// `program`, to be run as if this host were the one that it runs on: the control groups of this host's units are
    /// where its systemd says, and everything else is as it is outside.
    ///
    /// # Errors
    ///
    /// When the host's cgroup cannot be found.
    pub async fn at_home(&self, program: impl AsRef<OsStr>) -> Result<Command> {
        let dir = namespace::place("at-home")?;
        fs::write(dir.join("machine-id"), format!("{}\n", self.exec(&["cat", "/etc/machine-id"]).await?))?;
        let container = self.engine.inspect(&self.name, "{{.Id}}").await?;
        let cgroups = fs::read_to_string(format!("/proc/{}/cgroup", self.pid().await?))?;
        // Systemd has moved itself further down.
        let (above, _) = cgroups.split_once(&container).context("the host has a cgroup")?;
        let above = above.rsplit(':').next().unwrap_or_default();
        let lab = run_dir::cgroup_name(&namespace::run_folder()?);
        let version = self.engine.docker(&["info", "--format", "{{.CgroupVersion}}"]).await?;
        let mut command = tools::command("unshare");
        command.args(["--mount", "--", "sh", "-ec", AT_HOME, "sh"]).arg(dir);
        command.arg(format!("{above}{container}")).arg(format!("/{lab}")).arg(version).arg(program);
        Ok(command)
    }

    /// Stops the host's dbus-daemon from running until the guard is dropped.
    ///
    /// # Errors
    ///
    /// When it cannot be found.
    pub async fn freeze_bus(&self) -> Result<Frozen> {
        Frozen::new(self.bus_process().await?)
    }

    /// Lets the lab's own `journalctl` read this host's journal, as if it ran on the host.
    ///
    /// # Errors
    ///
    /// When the host has no journal yet, or another host's is read already.
    pub async fn lend_journal(&self) -> Result<()> {
        let id = self.exec(&["cat", "/etc/machine-id"]).await?;
        // The lab's /etc is its own copy.
        fs::write("/etc/machine-id", format!("{id}\n"))?;
        let there = format!("/run/log/journal/{id}");
        fs::create_dir_all(&there)?;
        let mut mount = tools::command("mount");
        mount.arg("--bind").arg(self.dir.join("journal").join(&id)).arg(there);
        tools::run_blocking(mount).map(drop)
    }

    /// The bus of this container, among the processes of the lab: the one in the container's cgroup.
    async fn bus_process(&self) -> Result<u32> {
        let container = self.engine.inspect(&self.name, "{{.Id}}").await?;
        let entries = fs::read_dir("/proc")?.flatten();
        for pid in entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()) {
            let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
            if read("comm").trim() == "dbus-daemon" && read("cgroup").contains(&container) {
                return Ok(pid);
            }
        }
        bail!("{} runs no dbus-daemon", self.name)
    }
}

/// Puts [`JOURNALCTL`] where it comes first, also when another host is doing the same.
fn lend_journals(dir: &Path) -> Result<()> {
    let programs = namespace::programs()?;
    fs::create_dir_all(&programs)?;
    Ok(fs::rename(script(dir, "journalctl", JOURNALCTL)?, programs.join("journalctl"))?)
}

fn script(dir: &Path, name: &str, text: &str) -> Result<PathBuf> {
    let path = dir.join(name);
    fs::write(&path, text)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

/// The image that is wanted instead of the usual one.
#[must_use]
pub fn image(usual: &str) -> String {
    std::env::var("EVENKEEL_LAB_IMAGE").unwrap_or_else(|_| usual.to_owned())
}

impl Drop for SystemdHost {
    fn drop(&mut self) {
        let removed = self.engine.client().and_then(|mut docker| {
            docker.args(["rm", "--force", "--volumes", &self.name]);
            tools::run_blocking(docker)
        });
        if let Err(error) = removed {
            eprintln!("{}: {error:#}", self.name);
        }
    }
}
