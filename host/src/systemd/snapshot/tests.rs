use std::{
    fs,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{PermissionsExt, symlink},
    },
};

use tempfile::TempDir;

use super::*;

const ETC: &str = "/etc/systemd/system";

fn is_shop(name: &str) -> bool {
    name.starts_with("shop")
}

fn me() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// A host with a few units, and a folder for snapshots.
struct Bench {
    root: TempDir,
}

impl Bench {
    fn new() -> Self {
        let bench = Self { root: tempfile::tempdir().unwrap() };
        fs::create_dir_all(bench.at("shop.target.wants")).unwrap();
        fs::create_dir_all(bench.at("multi-user.target.wants")).unwrap();
        fs::create_dir_all(bench.at("shop-api.service.d")).unwrap();
        for (name, text) in [
            ("shop.target", "[Unit]\nWants=shop-api.service\n"),
            ("shop-api.service", "[Service]\nExecStart=/bin/api\n"),
            ("shop-db.service", "[Service]\nExecStart=/bin/db\n"),
            ("shop-api.service.d/limits.conf", "[Service]\nMemoryMax=1G\n"),
            ("other.service", "[Service]\nExecStart=/bin/other\n"),
            ("shop-notes.txt", "not a unit"),
            ("shop-api.service.d/notes.txt", "not a drop-in"),
        ] {
            bench.write(name, text);
        }
        bench.link("multi-user.target.wants/shop-api.service", "/etc/systemd/system/shop-api.service");
        bench.link("multi-user.target.wants/other.service", "/etc/systemd/system/other.service");
        bench.link("shop.target.wants/redis.service", "/usr/lib/systemd/system/redis.service");
        bench.link("shop-old.service", "/dev/null");
        bench
    }

    fn at(&self, name: &str) -> PathBuf {
        self.root.path().join("etc/systemd/system").join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.at(name), text).unwrap();
        self.mode(name, 0o644);
    }

    fn mode(&self, name: &str, mode: u32) {
        fs::set_permissions(self.at(name), fs::Permissions::from_mode(mode)).unwrap();
    }

    fn link(&self, name: &str, to: &str) {
        symlink(to, self.at(name)).unwrap();
    }

    fn scan(&self) -> Scan {
        scan(self.root.path(), &[ETC.to_owned()], &is_shop).unwrap()
    }

    fn shelf(&self) -> Shelf {
        Shelf::of(&self.root.path().join("snapshots"), me())
    }

    /// Writes a snapshot of what is there now.
    fn keep(&self, made_ms: u64) -> Snapshot {
        let entries = self.scan().entries;
        let manifest = Manifest { format: FORMAT, made_ms, folders: vec![ETC.to_owned()], entries };
        self.keep_as(&manifest)
    }

    fn keep_as(&self, manifest: &Manifest) -> Snapshot {
        let text = manifest.text().unwrap();
        let name = name(manifest.made_ms, &text);
        let dir = self.shelf().dir().join(&name);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(MANIFEST), text).unwrap();
        for path in manifest.entries.keys() {
            if let Ok(content) = fs::read(look::below(self.root.path(), path)) {
                let copy = look::below(&dir.join(FILES), path);
                fs::create_dir_all(copy.parent().unwrap()).unwrap();
                fs::write(copy, content).unwrap();
            }
        }
        self.shelf().open(&name).unwrap()
    }

    fn drift(&self, golden: &Snapshot) -> Vec<(String, String, Change)> {
        let manifest = &golden.manifest;
        drift(&manifest.folders, &manifest.entries, &self.scan(), &is_shop)
            .into_iter()
            .map(|one| {
                (one.path.strip_prefix("/etc/systemd/system/").unwrap().to_owned(), one.unit, one.change)
            })
            .collect()
    }
}

fn owned(expected: &[(&str, &str, Change)]) -> Vec<(String, String, Change)> {
    expected.iter().map(|(path, unit, change)| ((*path).to_owned(), (*unit).to_owned(), *change)).collect()
}

#[test]
fn what_belongs_to_the_units_is_found_and_nothing_else() {
    let bench = Bench::new();
    let scan = bench.scan();
    assert!(scan.odd.is_empty(), "{:?}", scan.odd);
    let paths: Vec<&str> = scan.entries.keys().map(|path| path.strip_prefix(ETC).unwrap()).collect();
    assert_eq!(
        paths,
        [
            "/multi-user.target.wants/shop-api.service",
            "/shop-api.service",
            "/shop-api.service.d/limits.conf",
            "/shop-db.service",
            "/shop-old.service",
            "/shop.target",
            "/shop.target.wants/redis.service",
        ]
    );
    let Entry::File { mode, bytes, sha256: Some(hash), .. } =
        &scan.entries["/etc/systemd/system/shop-db.service"]
    else {
        panic!("{scan:?}")
    };
    assert_eq!((mode.as_str(), *bytes, hash.len()), ("0644", 28, 64));
}

#[test]
fn a_host_that_has_not_changed_has_not_drifted() {
    let bench = Bench::new();
    let golden = bench.keep(1);
    assert_eq!(bench.drift(&golden), []);
    golden.is_whole().unwrap();
    golden.manifest.is_trustworthy(me()).unwrap();
}

#[test]
fn every_way_to_drift_is_told_apart() {
    let bench = Bench::new();
    let golden = bench.keep(1);
    bench.write("shop-api.service", "[Service]\nExecStart=/bin/evil\n");
    fs::remove_file(bench.at("shop-db.service")).unwrap();
    bench.write("shop-new.service", "[Service]\n");
    bench.mode("shop.target", 0o600);
    fs::remove_file(bench.at("multi-user.target.wants/shop-api.service")).unwrap();
    bench.link("multi-user.target.wants/shop-db.service", "/etc/systemd/system/shop-db.service");
    fs::remove_file(bench.at("shop-old.service")).unwrap();
    bench.link("shop-old.service", "/opt/old.service");
    bench.write("shop-api.service.d/override.conf", "[Service]\n");
    assert_eq!(
        bench.drift(&golden),
        owned(&[
            ("multi-user.target.wants/shop-api.service", "shop-api.service", Change::Missing),
            ("multi-user.target.wants/shop-db.service", "shop-db.service", Change::Added),
            ("shop-api.service", "shop-api.service", Change::Modified),
            ("shop-api.service.d/override.conf", "shop-api.service", Change::Added),
            ("shop-db.service", "shop-db.service", Change::Missing),
            ("shop-new.service", "shop-new.service", Change::Added),
            ("shop-old.service", "shop-old.service", Change::Modified),
            ("shop.target", "shop.target", Change::Modified),
        ])
    );
}

#[test]
fn a_file_that_became_something_else_has_changed() {
    let bench = Bench::new();
    let golden = bench.keep(1);
    fs::remove_file(bench.at("shop-db.service")).unwrap();
    fs::create_dir(bench.at("shop-db.service")).unwrap();
    fs::remove_file(bench.at("shop-api.service")).unwrap();
    // A link to the same text is not the file.
    fs::write(bench.root.path().join("same"), "[Service]\nExecStart=/bin/api\n").unwrap();
    symlink(bench.root.path().join("same"), bench.at("shop-api.service")).unwrap();
    assert_eq!(
        bench.drift(&golden),
        owned(&[
            ("shop-api.service", "shop-api.service", Change::Modified),
            ("shop-db.service", "shop-db.service", Change::Modified),
        ])
    );
}

#[test]
fn what_cannot_be_recorded_is_said() {
    let bench = Bench::new();
    bench.write("shop-big.service", &"#".repeat(1024 * 1024 + 1));
    fs::create_dir(bench.at("shop-folder.service")).unwrap();
    fs::create_dir(bench.root.path().join("elsewhere")).unwrap();
    symlink(bench.root.path().join("elsewhere"), bench.at("shop-db.service.d")).unwrap();
    fs::write(bench.at("shop-api.service.d").join(std::ffi::OsStr::from_bytes(b"\xff.conf")), "").unwrap();
    fs::write(bench.at("shop-api.service.d/a\nb.conf"), "").unwrap();
    let odd = bench.scan().odd;
    let said: Vec<&str> = odd.values().map(|odd| odd.why.as_str()).collect();
    assert_eq!(
        said,
        [
            "its name is no text",
            "its name is no text",
            "it is larger than any unit file (1 MiB)",
            "a folder of drop-ins must be one, not a link to one",
            "it is neither a file nor a link",
        ],
        "{odd:?}"
    );
}

#[test]
fn the_newest_counts_and_no_older_one_stands_in_for_it() {
    let bench = Bench::new();
    let shelf = bench.shelf();
    assert!(shelf.newest().unwrap().is_none());
    let old = bench.keep(1_767_787_200_000);
    assert!(old.name.starts_with("20260107T120000.000Z-"), "{}", old.name);
    bench.write("shop-db.service", "[Service]\nExecStart=/bin/newer\n");
    let new = bench.keep(1_767_787_200_001);
    fs::create_dir(shelf.dir().join("before")).unwrap();
    assert_eq!(shelf.newest().unwrap().unwrap().name, new.name);
    fs::write(new.dir.join(MANIFEST), "{}").unwrap();
    let said = shelf.newest().unwrap_err().to_string();
    assert!(said.ends_with("manifest.json: it is not what was written: it was changed or damaged"), "{said}");
    assert_eq!(shelf.open(&old.name).unwrap().manifest, old.manifest);
}

#[test]
fn a_copy_that_was_changed_is_not_taken_for_good() {
    let bench = Bench::new();
    let golden = bench.keep(1);
    let path = "/etc/systemd/system/shop-db.service";
    assert_eq!(golden.content(path).unwrap(), b"[Service]\nExecStart=/bin/db\n");
    let copy = golden.dir.join("files/etc/systemd/system/shop-db.service");
    fs::write(&copy, "[Service]\nExecStart=/bin/xx\n").unwrap();
    let said = golden.is_whole().unwrap_err().to_string();
    assert!(
        said.ends_with("shop-db.service: the copy is not what was written: it was changed or damaged"),
        "{said}"
    );
    fs::remove_file(&copy).unwrap();
    assert!(golden.content(path).unwrap_err().to_string().ends_with("the copy is gone"));
    symlink("/etc/hostname", &copy).unwrap();
    assert!(golden.content(path).is_err());
    assert!(
        golden.content("/etc/shadow").unwrap_err().to_string().ends_with("no such file in this snapshot")
    );
}

#[test]
fn a_manifest_says_nothing_that_no_snapshot_says() {
    let bench = Bench::new();
    let good = bench.keep(1).manifest;
    let file = good.entries["/etc/systemd/system/shop-db.service"].clone();
    let with = |path: &str, entry: &Entry| {
        let mut manifest = good.clone();
        manifest.entries.insert(path.to_owned(), entry.clone());
        manifest
    };
    let link = |to: &str| Entry::Link { uid: me(), gid: 0, to: to.to_owned() };
    let Entry::File { uid, gid, bytes, sha256, .. } = file.clone() else { panic!("{file:?}") };
    let moded = |mode: &str| Entry::File { mode: mode.to_owned(), uid, gid, bytes, sha256: sha256.clone() };
    let hashed = |sha256: Option<&str>| Entry::File {
        mode: "0644".to_owned(),
        uid,
        gid,
        bytes,
        sha256: sha256.map(str::to_owned),
    };
    for (wrong, expected) in [
        (Manifest { folders: vec!["/etc".to_owned()], ..good.clone() }, "it is about other folders than"),
        (Manifest { folders: Vec::new(), ..good.clone() }, "it is about other folders than"),
        (Manifest { format: 2, ..good.clone() }, "it is of format 2, and this version reads format 1"),
        (with("/etc/shadow", &file), "/etc/shadow: it belongs to no unit"),
        (with("/etc/systemd/system/../shop.service", &file), "it belongs to no unit"),
        (with("/etc/systemd/system/a.service.d/../../../x.conf", &file), "it belongs to no unit"),
        (with("/etc/systemd/system/shop\n.service", &file), "it belongs to no unit"),
        (with("/etc/systemd/system/a.service.d/\u{1b}.conf", &file), "it belongs to no unit"),
        (with("/etc/systemd/system/shop-x.service", &moded("rw")), "its hash, size or mode is none"),
        (with("/etc/systemd/system/shop-x.service", &moded("+644")), "its hash, size or mode is none"),
        (with("/etc/systemd/system/shop-x.service", &hashed(None)), "its hash, size or mode is none"),
        (with("/etc/systemd/system/shop-x.service", &hashed(Some("x"))), "its hash, size or mode is none"),
        (with("/etc/systemd/system/shop-x.service", &link("")), "it leads nowhere"),
    ] {
        let text = wrong.text().unwrap();
        let name = name(wrong.made_ms, &text);
        let dir = bench.shelf().dir().join(&name);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(MANIFEST), text).unwrap();
        let said = bench.shelf().open(&name).unwrap_err().to_string();
        assert!(said.contains(expected), "{said}, not {expected}");
    }
    for name in
        ["", "..", "before", "20260107T120000.000Z-0123456789abcdeg", "2026/107T120000.000Z-0123456789abcdef"]
    {
        assert!(bench.shelf().open(name).is_err(), "{name}");
    }
}

#[test]
fn what_others_may_change_is_no_snapshot() {
    let bench = Bench::new();
    let golden = bench.keep(1);
    let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    for (path, back) in [
        (bench.shelf().dir().to_owned(), 0o755),
        (golden.dir.clone(), 0o755),
        (golden.dir.join(MANIFEST), 0o644),
    ] {
        mode(&path, back | 0o020);
        let said = bench.shelf().newest().unwrap_err().to_string();
        assert!(said.contains("it is not trusted"), "{said}");
        mode(&path, back);
        assert!(bench.shelf().newest().is_ok());
    }
    let said = Shelf::of(bench.shelf().dir(), me() + 1).newest().unwrap_err().to_string();
    assert!(said.contains(&format!("it belongs to uid {}", me())), "{said}");
}

#[test]
fn only_what_belongs_to_its_owner_and_stays_in_the_folders_is_good() {
    let bench = Bench::new();
    let good = bench.keep(1).manifest;
    let wrong = |path: &str, entry: Entry| {
        let mut manifest = good.clone();
        manifest.entries.insert(format!("{ETC}/{path}"), entry);
        manifest.is_trustworthy(me()).unwrap_err()
    };
    let file = |mode: &str, uid: u32| Entry::File {
        mode: mode.to_owned(),
        uid,
        gid: 0,
        bytes: 0,
        sha256: Some("0".repeat(64)),
    };
    let link = |to: &str| Entry::Link { uid: me(), gid: 0, to: to.to_owned() };
    assert!(wrong("shop-x.service", file("0644", me() + 1)).contains("and not to"));
    assert!(wrong("shop-x.service", file("0664", me())).contains("others than its owner may write"));
    assert!(wrong("shop-x.service", file("4755", me())).contains("special rights"));
    for out in
        ["/opt/x.service", "../../x.service", "/etc/systemd/system/../../shadow", "/etc/systemd/system", ""]
    {
        assert!(wrong("shop-x.service", link(out)).contains("is a link out of systemd's folders"), "{out}");
    }
    for inside in ["/dev/null", "shop.service", "./shop.service", "/usr/lib/systemd/system/shop.service"] {
        let mut manifest = good.clone();
        manifest.entries.insert(format!("{ETC}/shop-x.service"), link(inside));
        manifest.entries.insert(format!("{ETC}/a.target.wants/shop-x.service"), link(inside));
        manifest.is_trustworthy(me()).unwrap();
    }
}

#[test]
fn what_may_not_be_read_is_compared_by_what_is_seen_of_it() {
    let known = |bytes, sha256: Option<&str>| Entry::File {
        mode: "0600".to_owned(),
        uid: 0,
        gid: 0,
        bytes,
        sha256: sha256.map(str::to_owned),
    };
    assert!(known(3, Some("a")).is_same(&known(3, None)));
    assert!(!known(3, Some("a")).is_same(&known(4, None)));
    assert!(!known(3, Some("a")).is_same(&known(3, Some("b"))));
}
