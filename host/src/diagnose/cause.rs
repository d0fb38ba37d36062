//! What a service fails of, what is known to cure it, and whether a restart can.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Why a service fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// It may not read, write or execute something.
    PermissionDenied,
    /// It writes where nothing can be written.
    ReadOnlyFilesystem,
    /// Its interpreter does not find a module.
    ModuleNotFound,
    /// The loader does not find a library.
    LibraryNotFound,
    /// A host name has no address.
    NameResolution,
    /// Nothing listens where it connects to.
    ConnectionRefused,
    /// Something else listens where it wants to.
    AddressInUse,
    /// There is no memory left for it.
    OutOfMemory,
    /// It was started too often, and why it fails is not known.
    StartLimit,
    /// It took too long to start, to stop, or to say that it lives.
    Timeout,
    /// There is no room where it writes.
    DiskFull,
    /// A program, file or directory that it needs is not there.
    MissingFile,
    /// Its user or group does not exist.
    MissingUser,
    /// Its sandbox cannot be set up.
    Namespace,
    /// systemd does not accept its unit file.
    BadUnitFile,
    /// None of these, or nothing says so.
    Unknown,
}

impl Cause {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::PermissionDenied,
        Self::ReadOnlyFilesystem,
        Self::ModuleNotFound,
        Self::LibraryNotFound,
        Self::NameResolution,
        Self::ConnectionRefused,
        Self::AddressInUse,
        Self::OutOfMemory,
        Self::StartLimit,
        Self::Timeout,
        Self::DiskFull,
        Self::MissingFile,
        Self::MissingUser,
        Self::Namespace,
        Self::BadUnitFile,
        Self::Unknown,
    ];

    /// As in metrics and configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PermissionDenied => "permission_denied",
            Self::ReadOnlyFilesystem => "read_only_filesystem",
            Self::ModuleNotFound => "module_not_found",
            Self::LibraryNotFound => "library_not_found",
            Self::NameResolution => "name_resolution",
            Self::ConnectionRefused => "connection_refused",
            Self::AddressInUse => "address_in_use",
            Self::OutOfMemory => "out_of_memory",
            Self::StartLimit => "start_limit",
            Self::Timeout => "timeout",
            Self::DiskFull => "disk_full",
            Self::MissingFile => "missing_file",
            Self::MissingUser => "missing_user",
            Self::Namespace => "namespace",
            Self::BadUnitFile => "bad_unit_file",
            Self::Unknown => "unknown",
        }
    }

    /// Whether the same start may go well without anything being changed by a person: what it waits for may come, what is
    /// in its way may go.
    pub fn restart_may_help(self) -> bool {
        match self {
            Self::ConnectionRefused
            | Self::AddressInUse
            | Self::OutOfMemory
            | Self::StartLimit
            | Self::Timeout
            | Self::DiskFull
            | Self::Unknown => true,
            Self::PermissionDenied
            | Self::ReadOnlyFilesystem
            | Self::ModuleNotFound
            | Self::LibraryNotFound
            | Self::NameResolution
            | Self::MissingFile
            | Self::MissingUser
            | Self::Namespace
            | Self::BadUnitFile => false,
        }
    }

    /// In words, about what is named.
    pub(super) fn words(self, subject: Option<&str>) -> String {
        let (named, nameless) = match self {
            Self::PermissionDenied => ("permission denied on", "permission denied"),
            Self::ReadOnlyFilesystem => ("read-only filesystem at", "read-only filesystem"),
            Self::ModuleNotFound => ("no module named", "a module is not found"),
            Self::LibraryNotFound => ("shared library not found:", "a shared library is not found"),
            Self::NameResolution => ("no address for the name", "a name does not resolve"),
            Self::ConnectionRefused => ("connection refused by", "connection refused"),
            Self::AddressInUse => ("address already in use:", "address already in use"),
            Self::OutOfMemory => ("out of memory:", "out of memory"),
            Self::StartLimit => ("started too often:", "started too often"),
            Self::Timeout => ("took too long:", "took too long"),
            Self::DiskFull => ("no space left on device:", "no space left on device"),
            Self::MissingFile => ("no such file or directory:", "no such file or directory"),
            Self::MissingUser => ("no such user or group:", "no such user or group"),
            Self::Namespace => ("cannot set up its sandbox:", "cannot set up its sandbox"),
            Self::BadUnitFile => ("bad unit file:", "bad unit file"),
            Self::Unknown => ("", "cause unknown"),
        };
        subject.map_or_else(|| nameless.to_owned(), |subject| format!("{named} {subject}"))
    }

    /// What is known to cure it, in words; nothing where that is not known.
    pub(super) fn cure(self, subject: Option<&str>, user: &str) -> Option<String> {
        let path = subject.filter(|subject| subject.starts_with('/'));
        Some(match self {
            Self::PermissionDenied => {
                let user = if user.is_empty() { "its user" } else { user };
                match path.map(|path| (path, folder(path))) {
                    Some((path, folder)) => format!(
                        "let {user} use {path} (chown or chmod, or +x where it is to be executed); where the unit says ProtectHome=, ProtectSystem=, InaccessiblePaths= or NoExecPaths=, add ReadWritePaths={folder} or ExecPaths="
                    ),
                    None => format!(
                        "let {user} use what it needs (chown or chmod), or add its folder to ReadWritePaths= where the unit says ProtectHome= or ProtectSystem="
                    ),
                }
            }
            Self::ReadOnlyFilesystem => match path.map(folder) {
                Some(folder) => format!(
                    "add ReadWritePaths={folder} where the unit says ProtectSystem=, ProtectHome= or ReadOnlyPaths=, or have it write elsewhere; otherwise the filesystem itself is mounted read-only (findmnt -T {folder}), and the kernel's log says why"
                ),
                None => "add the folder it writes to to ReadWritePaths= where the unit says ProtectSystem=, ProtectHome= or ReadOnlyPaths=; otherwise a filesystem is mounted read-only".to_owned(),
            },
            Self::ModuleNotFound => {
                "set WorkingDirectory= or Environment=PYTHONPATH= (NODE_PATH= for Node) to where it lies, or install it into the environment that ExecStart= uses".to_owned()
            }
            Self::LibraryNotFound => {
                "install the package that has it, or have the loader find it (ldconfig, or Environment=LD_LIBRARY_PATH=)".to_owned()
            }
            Self::NameResolution => match subject {
                Some(name) => format!(
                    "services under systemd do not see the names of a Docker network: give {name} an alias in /etc/hosts (127.0.0.1 {name}), or its address in the unit's EnvironmentFile="
                ),
                None => "services under systemd do not see the names of a Docker network: give it an alias in /etc/hosts, or its address in the unit's EnvironmentFile=".to_owned(),
            },
            Self::ConnectionRefused => {
                "see that what it connects to runs and listens there, and that the unit names it in After= and Wants=".to_owned()
            }
            Self::AddressInUse => match subject {
                Some(address) => format!("see who listens there (ss -ltnp), stop it or give one of them another address than {address}"),
                None => "see who listens there (ss -ltnp), stop it or give one of them another address".to_owned(),
            },
            Self::OutOfMemory => "raise MemoryMax= or LimitAS= of the unit, or give it less to do".to_owned(),
            Self::StartLimit => "see in its journal why it fails; systemctl reset-failed lets it start again".to_owned(),
            Self::Timeout => {
                "see in its journal what it waits for; raise TimeoutStartSec=, RuntimeMaxSec= or WatchdogSec= if it needs longer, and let Type= say how it reports that it is up".to_owned()
            }
            Self::DiskFull => "make room where it writes (df -h; df -i for inodes)".to_owned(),
            Self::MissingFile => match path {
                Some(path) => format!(
                    "install or create {path} (for a script, the interpreter in its first line too), or correct the unit's ExecStart=, WorkingDirectory= or EnvironmentFile="
                ),
                None => "install or create what it needs, or correct the unit's ExecStart=, WorkingDirectory= or EnvironmentFile=".to_owned(),
            },
            Self::MissingUser => "create it (useradd --system, groupadd --system), or correct User=, Group= or SupplementaryGroups=".to_owned(),
            Self::Namespace => match path {
                Some(path) => format!("create {path}, and what BindPaths= puts there, or put a - before it in the unit's ReadWritePaths=, BindPaths= and the like, so that it may be missing"),
                None => "see that every path in the unit's ReadWritePaths=, BindPaths= and the like exists, or put a - before it".to_owned(),
            },
            Self::BadUnitFile => "systemd-analyze verify names the line; correct it, then systemctl daemon-reload".to_owned(),
            Self::Unknown => return None,
        })
    }
}

/// The folder that a path lies in.
fn folder(path: &str) -> &str {
    match path.trim_end_matches('/').rsplit_once('/') {
        Some(("", _)) | None => "/",
        Some((folder, _)) => folder,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_has_a_word_of_its_own_which_is_read_back() {
        for cause in Cause::ALL {
            let word = serde_json::to_string(&cause).unwrap();
            assert_eq!(word, format!("{:?}", cause.as_str()));
            assert_eq!(serde_json::from_str::<Cause>(&word).unwrap(), cause);
        }
    }

    #[test]
    fn what_a_restart_cannot_cure_has_a_cure_in_words() {
        for cause in Cause::ALL.into_iter().filter(|cause| !cause.restart_may_help()) {
            for subject in [None, Some("/data/out.log"), Some("name")] {
                let cure = cause.cure(subject, "").unwrap();
                assert!(!cure.is_empty() && !cure.ends_with('.'), "{cause:?}: {cure}");
            }
        }
        assert_eq!(Cause::Unknown.cure(None, ""), None);
    }

    #[test]
    fn the_cure_names_the_folder_that_must_be_writable() {
        for (path, folder) in [("/data/logs/out.csv", "/data/logs"), ("/data", "/"), ("/data/logs/", "/data")]
        {
            let cure = Cause::ReadOnlyFilesystem.cure(Some(path), "").unwrap();
            assert!(cure.contains(&format!("ReadWritePaths={folder} ")), "{path}: {cure}");
        }
    }
}
