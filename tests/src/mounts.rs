//! A world with filesystems of its own, in which nobody else mounts anything: what two programs see there at different
//! moments is the same.

use std::{ffi::OsStr, path::Path, process::Command, time::Duration};

use anyhow::{Result, ensure};

use crate::{process::Process, tools, wait::wait_for};

/// Mount and process namespaces of their own. Dropping them ends every program that was started in them.
#[derive(Debug)]
pub struct Mounts {
    holder: Process,
}

impl Mounts {
    /// Makes them from what is mounted now, and runs a shell script that mounts what is wanted besides. Its log is in
    /// `dir`.
    ///
    /// # Errors
    ///
    /// When the script fails.
    pub async fn start(dir: &Path, script: &str) -> Result<Self> {
        let mut command = tools::command("unshare");
        // The first process of the namespace is the one that holds it.
        command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--", "sh", "-ec"]);
        command.arg(format!("{script}\necho ready\nexec sleep 1000000"));
        let mut mounts = Self { holder: Process::start("mounts", dir, command)? };
        wait_for("the mounts", Duration::from_secs(20), async || {
            mounts.holder.check_alive()?;
            ensure!(mounts.holder.log().ends_with("ready\n"), "{}", mounts.holder.log());
            Ok(())
        })
        .await?;
        Ok(mounts)
    }

    /// `program`, to be run in there.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let of_holder = format!("/proc/{}/ns", self.holder.id());
        let mut command = tools::command("nsenter");
        command.arg(format!("--mount={of_holder}/mnt"));
        // The holder's own is still the old one.
        command.arg(format!("--pid={of_holder}/pid_for_children"));
        command.arg("--").arg(program);
        command
    }
}
