//! The namespaces in which the lab lives.
//!
//! [`enter`] starts the program again as the first process of new mount, process and (mostly)
//! network namespaces. So the kernel, not this code, guarantees that nothing stays behind: when the
//! run ends, in whatever way, every process in it is killed and every mount and loop device goes.
//! Inside, `/run` and `/etc` are private copies: the host's own daemons cannot be reached by
//! accident, and nothing that the lab's daemons write into `/etc` reaches the host.
//! [`World::Machine`] is for watching the machine itself: everything is the machine's own then, and
//! the kernel's guarantee about processes and mounts is all that remains.
//!
//! Three processes play a part: the *outside* one keeps the terminal's process and cleans up, the
//! *init* one is process 1 inside and does nothing but reap, the *inside* one runs the program. A
//! pipe is the lifeline between them: when the outside process dies, the inside one reads its end.

use std::{
    ffi::OsStr,
    fs,
    io::Read as _,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use rustix::process::{WaitOptions, geteuid};
use tokio::signal::unix::{SignalKind, signal};

use crate::{run_dir::RunDir, tools};

/// Says which of the three processes this one is. Absent: the one that a person or cargo started.
pub const STAGE: &str = "EVENKEEL_LAB_STAGE";
/// The run's folder, by its path outside.
pub const RUN: &str = "EVENKEEL_LAB_RUN";
/// The world of the run, as the outside process has chosen it.
pub const WORLD: &str = "EVENKEEL_LAB_WORLD";

/// The run's folder, inside. Short, because the path of a Unix socket may have 107 bytes only.
const INSIDE: &str = "/run/lab";

/// How long the inside process may take to end by itself once it was asked to.
const FAREWELL: Duration = Duration::from_secs(30);

/// Which world a run lives in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum World {
    /// A lab with a loopback of its own: no port is ever taken, none is opened on the machine.
    Lab,
    /// A lab on the machine's loopback, so that a browser outside can look at what runs inside.
    OpenLab,
    /// The machine as it is. Mounts made on it later are seen, those made inside end with the run.
    Machine,
}

impl World {
    const ALL: [Self; 3] = [Self::Lab, Self::OpenLab, Self::Machine];

    fn as_str(self) -> &'static str {
        match self {
            Self::Lab => "lab",
            Self::OpenLab => "open-lab",
            Self::Machine => "machine",
        }
    }

    fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Lab => &["--net"],
            Self::OpenLab => &[],
            Self::Machine => &["--propagation", "slave"],
        }
    }
}

/// The inside end of the pipe from the outside process.
#[derive(Debug)]
pub struct Lifeline(());

impl Lifeline {
    /// Blocks until the outside process has asked the run to end, or has died.
    pub fn wait(self) {
        let mut nothing = [0; 64];
        while matches!(std::io::stdin().read(&mut nothing), Ok(n) if n > 0) {}
    }
}

/// Enters the namespaces of `world`. Returns only inside them; in the process that was started from
/// outside it never returns but ends with the inside program's exit code.
///
/// # Errors
///
/// When this is not root, or a namespace, mount or folder cannot be made.
pub fn enter(world: World) -> Result<Lifeline> {
    match std::env::var(STAGE).as_deref() {
        Ok("init") => init(),
        Ok("inside") => {
            if world != World::Machine {
                furnish()?;
            }
            Ok(Lifeline(()))
        }
        _ => outside(world),
    }
}

/// The world that the outside process has chosen; none in the outside process itself.
#[must_use]
pub fn chosen() -> Option<World> {
    let chosen = std::env::var(WORLD).ok()?;
    World::ALL.into_iter().find(|world| world.as_str() == chosen)
}

/// A new folder of the run for one thing, such as `/run/lab/redis-2`.
///
/// # Errors
///
/// When the program has not entered the lab, or the folder cannot be made.
pub fn place(name: &str) -> Result<PathBuf> {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    if !is_inside() {
        bail!("{name} can only be started inside the lab (namespace::enter)");
    }
    let path = folder()?.join(format!("{name}-{}", NEXT.fetch_add(1, Ordering::Relaxed)));
    fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
    Ok(path)
}

/// The folder of programs that the run itself has made; first in the `PATH` of everything that it starts.
///
/// # Errors
///
/// When the program has not entered the lab.
pub fn programs() -> Result<PathBuf> {
    if !is_inside() {
        bail!("programs are made inside the lab only (namespace::enter)");
    }
    Ok(folder()?.join("bin"))
}

fn folder() -> Result<PathBuf> {
    if chosen() == Some(World::Machine) { run_folder() } else { Ok(PathBuf::from(INSIDE)) }
}

/// Whether this process runs inside the lab's namespaces.
#[must_use]
pub fn is_inside() -> bool {
    std::env::var(STAGE).is_ok_and(|stage| stage == "inside")
}

/// The run's folder by its path outside, from which its cgroups are named.
///
/// # Errors
///
/// When the program has not entered the lab.
pub fn run_folder() -> Result<PathBuf> {
    std::env::var_os(RUN).map(PathBuf::from).context("not inside the lab")
}

// ---- outside -------------------------------------------------------------------------------------

fn outside(world: World) -> Result<Lifeline> {
    if !geteuid().is_root() {
        bail!("this mounts disks and starts daemons of its own, which needs root: run it as root");
    }
    let run = RunDir::create(&tools::run_folder().join("lab"))?;
    let mut unshare = Command::new("unshare");
    unshare
        .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"])
        .args(world.flags())
        .arg("--")
        .arg(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .env(STAGE, "init")
        .env(RUN, run.path())
        .env(WORLD, world.as_str())
        .stdin(Stdio::piped());
    let child = unshare.spawn().context("cannot start unshare (package util-linux)")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let Ended { status, asked } = runtime.block_on(attend(child))?;
    if !status.success() && !asked {
        keep_logs(run.path())?;
    }
    run.remove()?;
    std::process::exit(exit_code(status))
}

/// How the inside process ended, and whether a person had asked it to.
struct Ended {
    status: ExitStatus,
    asked: bool,
}

/// Waits for the inside process; when a person asks for the end, cuts the lifeline and waits on.
async fn attend(mut child: Child) -> Result<Ended> {
    let lifeline = child.stdin.take();
    let mut child = tokio::task::spawn_blocking(move || child.wait());
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::select! {
        status = &mut child => return Ok(Ended { status: status??, asked: false }),
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
    drop(lifeline);
    match tokio::time::timeout(FAREWELL, child).await {
        Ok(status) => Ok(Ended { status: status??, asked: true }),
        // Ending here ends `unshare`'s child too (--kill-child), and with it everything inside.
        Err(_) => bail!("the run did not end within {} s of being asked to", FAREWELL.as_secs()),
    }
}

fn exit_code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}

/// Keeps what the lab's programs wrote when a run failed; the folder of the run itself goes.
fn keep_logs(run: &Path) -> Result<()> {
    let kept = tools::run_folder().join("logs").join(run.file_name().context("a run's folder has a name")?);
    for place in fs::read_dir(run)?.flatten().filter(|entry| entry.path().is_dir()) {
        for file in fs::read_dir(place.path())?.flatten() {
            if file.path().extension().is_some_and(|extension| extension == "log") {
                fs::create_dir_all(&kept)?;
                let name =
                    format!("{}-{}", place.file_name().to_string_lossy(), file.file_name().to_string_lossy());
                fs::copy(file.path(), kept.join(name))?;
            }
        }
    }
    if kept.is_dir() {
        eprintln!("the logs of this run: {}", kept.display());
    }
    Ok(())
}

// ---- inside --------------------------------------------------------------------------------------

/// Process 1: starts the program and reaps orphans until it ends. The kernel kills what is left then.
fn init() -> Result<Lifeline> {
    let _held = RunDir::join(&run_folder()?)?;
    let program = Command::new(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .env(STAGE, "inside")
        .spawn()?;
    loop {
        if let Some((pid, status)) = rustix::process::wait(WaitOptions::empty())? {
            let ended = status.exited() || status.signaled();
            if ended && u32::try_from(pid.as_raw_nonzero().get()) == Ok(program.id()) {
                std::process::exit(exit_code(ExitStatus::from_raw(status.as_raw())));
            }
        }
    }
}

/// Makes `/run` and `/etc` private, gives the run's folder its short path, and brings loopback up.
fn furnish() -> Result<()> {
    let run = run_folder()?;
    if run.starts_with("/run") {
        bail!("the lab covers /run, so the repository must not lie below it: {}", run.display());
    }
    mount(["-t", "tmpfs", "-o", "mode=755", "lab", "/run"])?;
    let mut copy = tools::command("cp");
    copy.args(["-a", "/etc", "/run/etc"]);
    tools::run_blocking(copy)?;
    mount(["--bind", "/run/etc", "/etc"])?;
    fs::create_dir(INSIDE)?;
    mount([OsStr::new("--bind"), run.as_ref(), INSIDE.as_ref()])?;

    let mut up = tools::command(tools::program("busybox")?);
    up.args(["ip", "link", "set", "lo", "up"]);
    tools::run_blocking(up).map(drop)
}

fn mount<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Result<()> {
    let mut mount = tools::command("mount");
    mount.args(arguments);
    tools::run_blocking(mount).map(drop)
}
