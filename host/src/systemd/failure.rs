//! What systemd says of a service that has failed, loops, or cannot be started at all: the facts that a diagnosis begins
//! with. Not here: what they mean.

use std::time::SystemTime;

use futures_util::join;
use serde::{Deserialize, Serialize};

use super::{Error, SERVICE, Systemd, UNIT, kind_of};

/// A service as systemd sees it, with what its unit file says about where its failures come from.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Failure {
    /// Its primary name.
    pub unit: String,
    /// See [`super::Unit::load_state`].
    pub load_state: String,
    /// See [`super::Unit::active_state`].
    pub active_state: String,
    /// See [`super::Unit::sub_state`].
    pub sub_state: String,
    /// See [`super::ServiceStatus::result`].
    pub result: String,
    /// See [`super::ServiceStatus::exec_main_code`].
    pub exec_main_code: i32,
    /// See [`super::ServiceStatus::exec_main_status`].
    pub exec_main_status: i32,
    /// The present or last run, in hex; empty before the first.
    pub invocation_id: String,
    /// When its main process last ended, or it last became inactive.
    pub failed_at: Option<SystemTime>,
    /// `User=`; empty for none.
    pub user: String,
    /// `Group=`; empty for none.
    pub group: String,
    /// `WorkingDirectory=`; empty for none.
    pub working_directory: String,
    /// `EnvironmentFile=` that must be there.
    pub environment_files: Vec<String>,
    /// Its unit file and the drop-ins.
    pub files: Vec<String>,
}

impl Failure {
    /// Whether there is anything to diagnose: it has failed, waits for its next automatic restart, or its file is such that
    /// systemd does not load it.
    pub fn is_one(&self) -> bool {
        is_trouble(&self.load_state, &self.active_state, &self.sub_state)
    }
}

/// Whether a unit in these states has failed, loops, or cannot be loaded.
pub fn is_trouble(load_state: &str, active_state: &str, sub_state: &str) -> bool {
    active_state == "failed"
        || sub_state.starts_with("auto-restart")
        || matches!(load_state, "bad-setting" | "error")
}

impl Systemd {
    /// What there is to know of a service's failure; nothing for units that are no services.
    ///
    /// # Errors
    /// When systemd does not answer, or refuses the name.
    pub async fn failure(&self, name: &str) -> Result<Option<Failure>, Error> {
        let path = self.load(name).await?;
        let unit: String = self.bus.get(&path, UNIT, "Id").await?;
        if kind_of(&unit) != "service" {
            return Ok(None);
        }
        let (load_state, active_state, sub_state, invocation, failed_at) = join!(
            self.bus.get(&path, UNIT, "LoadState"),
            self.bus.get(&path, UNIT, "ActiveState"),
            self.bus.get(&path, UNIT, "SubState"),
            self.bus.get::<Vec<u8>>(&path, UNIT, "InvocationID"),
            self.time(&path, UNIT, "InactiveEnterTimestamp"),
        );
        let (fragment, drop_ins) = join!(
            self.bus.get::<String>(&path, UNIT, "FragmentPath"),
            self.bus.get::<Vec<String>>(&path, UNIT, "DropInPaths"),
        );
        let (result, exec_main_code, exec_main_status, main_exit) = join!(
            self.bus.get(&path, SERVICE, "Result"),
            self.bus.get(&path, SERVICE, "ExecMainCode"),
            self.bus.get(&path, SERVICE, "ExecMainStatus"),
            self.time(&path, SERVICE, "ExecMainExitTimestamp"),
        );
        let (user, group, working_directory, environment) = join!(
            self.bus.get(&path, SERVICE, "User"),
            self.bus.get(&path, SERVICE, "Group"),
            self.bus.get(&path, SERVICE, "WorkingDirectory"),
            self.bus.get::<Vec<(String, bool)>>(&path, SERVICE, "EnvironmentFiles"),
        );
        let mut files = vec![fragment?];
        files.extend(drop_ins?);
        files.retain(|file| !file.is_empty());
        // The flag says that it may be missing.
        let environment_files =
            environment?.into_iter().filter(|(_, optional)| !optional).map(|(file, _)| file).collect();
        Ok(Some(Failure {
            unit,
            load_state: load_state?,
            active_state: active_state?,
            sub_state: sub_state?,
            result: result?,
            exec_main_code: exec_main_code?,
            exec_main_status: exec_main_status?,
            invocation_id: super::hex(&invocation?),
            failed_at: failed_at?.max(main_exit?),
            user: user?,
            group: group?,
            working_directory: working_directory?,
            environment_files,
            files,
        }))
    }
}
