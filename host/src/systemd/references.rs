//! Which of the host's own unit files name which other units: the files of its owner's, with their drop-ins and links, not
//! those of packages, which rightly name units that are not installed. Nothing here asks systemd.

use std::{
    fs,
    io::Read as _,
    path::{Path, PathBuf},
};

use super::{files::is_alias, is_unit_name, unit_file};

/// Where the owner of a host keeps unit files (man systemd.unit, "Unit File Load Path").
pub const OWN_FOLDERS: [&str; 2] = ["/etc/systemd/system", "/usr/local/lib/systemd/system"];
/// Folders beside a unit whose entries name units, and what they stand for.
const LINKS: [(&str, &str); 3] = [(".wants", "Wants"), (".requires", "Requires"), (".upholds", "Upholds")];
/// So many files are read at most.
const MOST_FILES: usize = 10_000;
/// A longer file is none that anybody wrote, in bytes.
const LONGEST: u64 = 1024 * 1024;

/// One place that names a unit.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Named {
    /// The unit whose file names it: a unit, a template (`x@.service`), the beginning of units' names (`x-.service`), or for
    /// drop-ins of all units of a type that type (`service`).
    pub by: String,
    /// The unit that is named.
    pub name: String,
    /// `After`, `Wants` …
    pub directive: &'static str,
    /// The file, below the root.
    pub file: PathBuf,
    /// The line, from 1; `None` where the file is a link, whose name is the name.
    pub line: Option<usize>,
}

/// All that the host's own unit files under `root` name, by file and line. What cannot be read names nothing. Blocks.
pub fn own_references(root: &Path) -> Vec<Named> {
    let mut found = Found { root, named: Vec::new(), files: 0 };
    for folder in OWN_FOLDERS {
        found.folder(Path::new(folder));
    }
    found.named.sort_unstable_by(|a, b| (&a.file, a.line, &a.name).cmp(&(&b.file, b.line, &b.name)));
    found.named
}

/// Whether files of `by` (as in [`Named::by`]) are files of `unit`.
pub fn covers(by: &str, unit: &str) -> bool {
    if by == unit {
        return true;
    }
    let (Some((stem, kind)), Some((by_stem, by_kind))) = (unit.rsplit_once('.'), by.rsplit_once('.')) else {
        return unit.rsplit_once('.').is_some_and(|(_, kind)| kind == by);
    };
    let template = stem.split_once('@').map(|(before, _)| before);
    kind == by_kind
        && (template.is_some_and(|template| by_stem.strip_suffix('@') == Some(template))
            || (by_stem.ends_with('-') && stem.starts_with(by_stem)))
}

struct Found<'a> {
    root: &'a Path,
    named: Vec<Named>,
    files: usize,
}

impl Found<'_> {
    /// What lies in one of the folders, given by its path below the root.
    fn folder(&mut self, folder: &Path) {
        for entry in entries(&self.under(folder)) {
            let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
            let path = folder.join(&name);
            if let Some(of) = name.strip_suffix(".d") {
                for drop_in in entries(&self.under(&path)) {
                    if drop_in.file_name().to_str().is_some_and(|name| name.ends_with(".conf")) {
                        self.file(of, path.join(drop_in.file_name()));
                    }
                }
            } else if let Some((of, directive)) =
                LINKS.iter().find_map(|(end, directive)| Some((name.strip_suffix(end)?, *directive)))
            {
                for link in entries(&self.under(&path)) {
                    let Ok(name) = link.file_name().into_string() else { continue };
                    if is_unit_name(&name) && !name.contains("@.") {
                        let (by, file) = (of.to_owned(), path.join(&name));
                        self.named.push(Named { by, name, directive, file, line: None });
                    }
                }
            } else if is_unit_name(&name) && !is_alias(&entry, &name) {
                self.file(&name, path);
            }
        }
    }

    /// What a file names, given by its path below the root.
    fn file(&mut self, of: &str, path: PathBuf) {
        self.files += 1;
        if self.files > MOST_FILES {
            return;
        }
        let Some(text) = read(&self.under(&path)) else { return };
        let references = unit_file::references(&text).into_iter();
        self.named.extend(references.map(|found| Named {
            by: of.to_owned(),
            name: found.name,
            directive: found.directive,
            file: path.clone(),
            line: Some(found.line),
        }));
    }

    fn under(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }
}

fn entries(folder: &Path) -> impl Iterator<Item = fs::DirEntry> {
    fs::read_dir(folder).into_iter().flatten().flatten()
}

/// A plain file, also behind a link. Looked at before it is opened: opening a pipe would wait.
fn read(path: &Path) -> Option<Vec<u8>> {
    if !fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.len() <= LONGEST) {
        return None;
    }
    let mut text = Vec::new();
    fs::File::open(path).ok()?.take(LONGEST).read_to_end(&mut text).ok()?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn host(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    fn told(root: &Path) -> Vec<String> {
        let told = own_references(root).into_iter().map(|named| {
            let line = named.line.map_or("link".to_owned(), |line| line.to_string());
            format!("{} {}:{line} {} {}", named.by, named.file.display(), named.directive, named.name)
        });
        told.collect()
    }

    #[test]
    fn files_drop_ins_and_links_of_the_hosts_own_are_read() {
        let root = host(&[
            ("etc/systemd/system/app.target", "[Unit]\nWants=app-a.service app-b.service\n"),
            ("etc/systemd/system/app-a.service.d/10-order.conf", "[Unit]\nAfter=redis.service\n"),
            ("etc/systemd/system/app-a.service.d/notes.txt", "[Unit]\nAfter=no.service\n"),
            ("etc/systemd/system/app-.service.d/x.conf", "[Unit]\nAfter=log.service\n"),
            ("etc/systemd/system/service.d/x.conf", "[Unit]\nOnFailure=tell@%n.service tell.service\n"),
            ("etc/systemd/system/tell@.service", "[Unit]\nRequires=mail.service\n"),
            ("etc/systemd/system/readme", "[Unit]\nAfter=no.service\n"),
            ("usr/local/lib/systemd/system/own.timer", "[Unit]\nPartOf=app.target\n"),
            ("usr/lib/systemd/system/packaged.service", "[Unit]\nAfter=no.service\n"),
            ("run/systemd/generator/made.service", "[Unit]\nAfter=no.service\n"),
            ("opt/linked.service", "[Unit]\nAfter=far.service\n"),
        ]);
        let folder = root.path().join("etc/systemd/system");
        symlink(root.path().join("opt/linked.service"), folder.join("linked.service")).unwrap();
        symlink("app-a.service", folder.join("alias.service")).unwrap();
        symlink("/dev/null", folder.join("masked.service")).unwrap();
        fs::create_dir(folder.join("app.target.wants")).unwrap();
        symlink("/etc/systemd/system/gone.service", folder.join("app.target.wants/gone.service")).unwrap();
        assert_eq!(
            told(root.path()),
            [
                "app-.service /etc/systemd/system/app-.service.d/x.conf:2 After log.service",
                "app-a.service /etc/systemd/system/app-a.service.d/10-order.conf:2 After redis.service",
                "app.target /etc/systemd/system/app.target:2 Wants app-a.service",
                "app.target /etc/systemd/system/app.target:2 Wants app-b.service",
                "app.target /etc/systemd/system/app.target.wants/gone.service:link Wants gone.service",
                "linked.service /etc/systemd/system/linked.service:2 After far.service",
                "service /etc/systemd/system/service.d/x.conf:2 OnFailure tell.service",
                "tell@.service /etc/systemd/system/tell@.service:2 Requires mail.service",
                "own.timer /usr/local/lib/systemd/system/own.timer:2 PartOf app.target",
            ]
        );
        assert!(own_references(Path::new("/no/such/host")).is_empty());
    }

    #[test]
    fn what_is_no_unit_file_is_not_waited_for() {
        let root = host(&[("etc/systemd/system/long.service", "")]);
        let folder = root.path().join("etc/systemd/system");
        fs::write(folder.join("long.service"), vec![b'\n'; 2 << 20]).unwrap();
        fs::create_dir(folder.join("folder.service")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            folder.join("pipe.service"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o644),
            0,
        )
        .unwrap();
        assert!(told(root.path()).is_empty());
    }

    #[test]
    fn a_file_is_one_of_all_units_that_it_speaks_for() {
        for (by, unit, expected) in [
            ("a.service", "a.service", true),
            ("a.service", "b.service", false),
            ("a@.service", "a@1.service", true),
            ("a@.service", "a@1.timer", false),
            ("a@.service", "ab@1.service", false),
            ("a@.service", "a@.service", true),
            ("a-.service", "a-b.service", true),
            ("a-.service", "a-b-c@1.service", true),
            ("a-.service", "b-a.service", false),
            ("service", "a.service", true),
            ("service", "a.timer", false),
            ("service", "service", true),
        ] {
            assert_eq!(covers(by, unit), expected, "{by} {unit}");
        }
    }
}
