//! The environment a process was started with, as `/proc/PID/environ` has it. It is full of secrets: it can be asked for one
//! variable by name, and cannot be printed or listed.

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
    sync::Arc,
    time::Duration,
};

use crate::blocking::{Error, InFlight};

/// Programs may be started with more (`execve(2)`); no service is.
const LIMIT: u64 = 2 << 20;

/// An environment: entries of `NAME=value`, each with a zero byte behind it.
pub struct Environ(Vec<u8>);

impl Environ {
    /// From the bytes of the file.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// The value of a variable; of several with the same name the first, which is the one that getenv finds.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.0
            .split(|byte| *byte == 0)
            .find_map(|entry| entry.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
    }
}

/// Whether `name` can be the name of a variable that somebody cares for: letters, digits and `_`, no digit in front.
pub fn is_variable_name(name: &str) -> bool {
    (1..=128).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        && !name.starts_with(|c: char| c.is_ascii_digit())
}

/// Why an environment could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unread {
    /// The process has ended.
    Gone,
    /// It is another user's, and we are not root: it takes CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH.
    Permission,
    /// The process of that number belongs to something else: systemd is another host's, or the number was given anew.
    NotOfTheUnit,
    /// The kernel did not answer in time, or with an error of another kind.
    Failed,
}

/// Reads environments, one question at a time for each process: the kernel may keep whoever asks waiting for as long as
/// the process' memory is locked. Clones share what is under way.
#[derive(Clone, Default)]
pub struct Environs {
    questions: InFlight<Arc<Environ>>,
}

impl Environs {
    /// The environment of a process in this control group (`/system.slice/a.service`) or below it. `root` is where the
    /// host's files are.
    ///
    /// # Errors
    /// When the process has ended, is not in that group, or may not be looked into; after `limit` in any case.
    pub async fn of(
        &self,
        root: &Path,
        pid: u32,
        control_group: &str,
        limit: Duration,
    ) -> Result<Arc<Environ>, Unread> {
        let folder: Arc<Path> = root.join(format!("proc/{pid}")).into();
        let (subject, group) = (Arc::clone(&folder), control_group.to_owned());
        let answer = self.questions.run(subject, limit, move || read(&folder, &group)).await;
        answer.map_err(|error| match error {
            Error::Os(error) => unread(&error),
            _ => Unread::Failed,
        })
    }
}

/// May block while the process' memory is locked.
fn read(folder: &Path, group: &str) -> io::Result<Arc<Environ>> {
    let mut bytes = Vec::new();
    File::open(folder.join("environ"))?.take(LIMIT).read_to_end(&mut bytes)?;
    // What systemd starts has some environment: a process that is ending has none any more.
    if bytes.is_empty() {
        return Err(io::ErrorKind::NotFound.into());
    }
    // After it was read: where somebody else has got the number meanwhile, it may be his.
    let groups = std::fs::read_to_string(folder.join("cgroup"))?;
    if !is_in_group(&groups, group) {
        return Err(io::ErrorKind::Unsupported.into());
    }
    Ok(Arc::new(Environ(bytes)))
}

fn unread(error: &io::Error) -> Unread {
    const NO_SUCH_PROCESS: i32 = 3;
    match error.kind() {
        io::ErrorKind::NotFound => Unread::Gone,
        io::ErrorKind::PermissionDenied => Unread::Permission,
        io::ErrorKind::Unsupported => Unread::NotOfTheUnit,
        _ if error.raw_os_error() == Some(NO_SUCH_PROCESS) => Unread::Gone,
        _ => Unread::Failed,
    }
}

/// Whether a table of `/proc/PID/cgroup` (lines of `ID:CONTROLLERS:PATH`) names the group or one below it. In a container
/// with the host's view, the paths have more before them.
fn is_in_group(table: &str, group: &str) -> bool {
    let group = group.trim_end_matches('/');
    if group.is_empty() {
        return false;
    }
    table.lines().filter_map(|line| line.splitn(3, ':').nth(2)).any(|path| {
        path.match_indices(group).any(|(start, _)| {
            let rest = &path[start + group.len()..];
            rest.is_empty() || rest.starts_with('/')
        })
    })
}

#[cfg(feature = "foreign-input")]
pub(crate) const PARSERS: &[crate::foreign_input::Parser] = &[
    crate::foreign_input::Parser {
        name: "environment of a process",
        parse: |bytes| {
            let environ = Environ::new(bytes.to_vec());
            if let Some(value) = environ.get("REDIS_HOST") {
                assert!(value.len() < bytes.len() && !value.contains(&0));
            }
        },
        samples: &["PATH=/usr/bin:/bin\0REDIS_HOST=127.0.0.1\0REDIS_PORT=6379\0EMPTY=\0odd\0=\0"],
    },
    crate::foreign_input::Parser {
        name: "control groups of a process",
        parse: |bytes| {
            let table = crate::foreign_input::text(bytes);
            if is_in_group(&table, "/system.slice/a.service") {
                assert!(table.contains("/system.slice/a.service"));
            }
        },
        samples: &[
            "12:cpu,cpuacct:/system.slice/a.service\n1:name=systemd:/system.slice/a.service/x\n0::/\n",
        ],
    },
];

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    #[test]
    fn variables_are_found_by_their_whole_name() {
        let environ =
            Environ::new(b"REDIS_HOST_OLD=a\0REDIS_HOST=127.0.0.1\0REDIS_HOST=b\0EMPTY=\0odd\0=x\0".to_vec());
        assert_eq!(environ.get("REDIS_HOST"), Some(&b"127.0.0.1"[..]));
        assert_eq!(environ.get("EMPTY"), Some(&b""[..]));
        for absent in ["REDIS", "HOST", "odd", "redis_host"] {
            assert_eq!(environ.get(absent), None, "{absent}");
        }
        assert_eq!(Environ::new(Vec::new()).get("A"), None);
    }

    #[test]
    fn names_of_variables() {
        for name in ["REDIS_HOST", "_x", "a1"] {
            assert!(is_variable_name(name), "{name}");
        }
        for name in ["", "1A", "A=B", "A B", "A\0", "Ä", "A-B", &"A".repeat(129)] {
            assert!(!is_variable_name(name), "{name:?}");
        }
    }

    #[test]
    fn groups_are_compared_by_whole_parts() {
        let group = "/system.slice/a.service";
        for table in [
            "0::/system.slice/a.service\n",
            "0::/system.slice/a.service/worker\n",
            "3:cpu:/x\n1:name=systemd:/system.slice/a.service\n",
            "0::/docker/4f1a/system.slice/a.service\n",
        ] {
            assert!(is_in_group(table, group), "{table}");
        }
        for table in
            ["", "0::/\n", "0::/system.slice/a.service2\n", "0::/system.slice/b.service\n", "nonsense"]
        {
            assert!(!is_in_group(table, group), "{table}");
        }
        assert!(!is_in_group("0::/x\n", ""), "no group is nobody's");
        assert!(!is_in_group("0::/x\n", "/"), "the root is everybody's");
    }

    /// A host with one process of the number 7.
    fn host() -> tempfile::TempDir {
        let host = tempfile::tempdir().expect("a folder");
        let process = host.path().join("proc/7");
        fs::create_dir_all(&process).expect("made");
        fs::write(process.join("environ"), b"A=1\0").expect("written");
        fs::write(process.join("cgroup"), "0::/system.slice/a.service\n").expect("written");
        host
    }

    #[tokio::test]
    async fn only_a_process_of_the_unit_is_believed() {
        let (host, environs) = (host(), Environs::default());
        let of = async |pid, group: &str| environs.of(host.path(), pid, group, PATIENCE).await;
        let environ = of(7, "/system.slice/a.service").await.unwrap_or_else(|why| panic!("{why:?}"));
        assert_eq!(environ.get("A"), Some(&b"1"[..]));
        assert_eq!(of(7, "/system.slice/b.service").await.err(), Some(Unread::NotOfTheUnit));
        assert_eq!(of(8, "/system.slice/a.service").await.err(), Some(Unread::Gone));
        fs::write(host.path().join("proc/7/environ"), "").expect("written");
        assert_eq!(of(7, "/system.slice/a.service").await.err(), Some(Unread::Gone), "it is ending");
    }

    #[test]
    fn what_the_kernel_says_is_told_apart() {
        for (code, why) in [
            (2, Unread::Gone),
            (3, Unread::Gone),
            (1, Unread::Permission),
            (13, Unread::Permission),
            (5, Unread::Failed),
        ] {
            assert_eq!(unread(&io::Error::from_raw_os_error(code)), why, "{code}");
        }
    }
}
