use std::{fs, os::unix::fs::symlink};

use super::{
    super::golden::{
        Purpose,
        tests::{NOW, Yard},
    },
    aim::Stop,
    *,
};
use crate::policy::DenyList;

fn params(text: &str) -> Result<UnitRestore, String> {
    evenkeel_host::config::parse("t.yml", text).map_err(|error| error.to_string())
}

fn aimed(yard: &Yard, text: &str) -> Result<Aim, Stop> {
    aim(&params(text).unwrap(), &yard.golden, "shop.target", &DenyList::with(Vec::new()))
}

fn reason(yard: &Yard) -> (&'static str, String) {
    let stop = aimed(yard, "{}").unwrap_err();
    (stop.reason, stop.detail)
}

/// A yard with a snapshot.
fn golden() -> Yard {
    let yard = Yard::new();
    let scan = yard.golden.scan().unwrap();
    golden::keep(&yard.golden, &yard.golden.shelf(), Purpose::Golden, &scan, NOW).unwrap();
    yard
}

fn damage(yard: &Yard) {
    yard.write("shop-api.service", "[Service]\nExecStart=/bin/evil\n");
    fs::remove_file(yard.at("shop.target")).unwrap();
    fs::remove_file(yard.at("multi-user.target.wants/shop-api.service")).unwrap();
    yard.mode("shop-db.service", 0o600);
    yard.write("shop-new.service", "[Service]\n");
    symlink("/dev/null", yard.at("shop-off.service")).unwrap();
}

#[test]
fn parameters_that_cannot_be_meant_are_refused() {
    assert!(params("{}").is_ok());
    assert!(params("{within: 5m, hold: 30s, files: target, added: set_aside, restart: none}").is_ok());
    assert!(params("{within: 6m}").unwrap_err().contains("at most 5m"));
    assert!(params("{within: 5s, hold: 5s}").unwrap_err().contains("is longer than `hold`"));
    assert!(params("{snapshot: ../evil}").unwrap_err().contains("is no snapshot"));
    assert!(params("{snapshot: 20260107T120000.000Z-0123456789abcdef}").is_ok());
    assert!(params("{restart: all}").is_err());
}

#[test]
fn everything_is_brought_back_but_what_was_added() {
    let yard = golden();
    let good = yard.golden.scan().unwrap();
    assert_eq!(reason(&yard).0, "not_needed");
    damage(&yard);
    let found = aimed(&yard, "{}").unwrap();
    let summary = found.summary();
    assert!(summary.contains("4 files: ") && summary.contains("shop-db.service modified"), "{summary}");
    assert!(summary.contains("left as they are: 2 files: "), "{summary}");
    apply(&yard.golden, &found).unwrap();
    let mut now = yard.golden.scan().unwrap();
    assert!(now.entries.remove("/etc/systemd/system/shop-new.service").is_some());
    assert!(now.entries.remove("/etc/systemd/system/shop-off.service").is_some());
    assert_eq!(now, good);
    let (reason, detail) = reason(&yard);
    assert_eq!(reason, "not_needed");
    assert!(detail.contains("beside what it does not have: 2 files"), "{detail}");
    apply(&yard.golden, &aimed(&yard, "{added: set_aside}").unwrap()).unwrap();
    assert_eq!(yard.golden.scan().unwrap(), good);
}

/// Also where the line is not shown, or none of the file is.
#[test]
fn what_would_be_brought_back_is_told_from_what_is_shown_alike() {
    let yard = golden();
    yard.write("shop-api.service", "[Service]\nEnvironment=TOKEN=a\n");
    yard.mode("shop-api.service", 0o600);
    let first = aimed(&yard, "{}").unwrap();
    assert_eq!(aimed(&yard, "{}").unwrap().identity(), first.identity());
    yard.write("shop-api.service", "[Service]\nEnvironment=TOKEN=b\n");
    yard.mode("shop-api.service", 0o600);
    let second = aimed(&yard, "{}").unwrap();
    assert_eq!(second.summary(), first.summary());
    assert_ne!(second.identity(), first.identity());
}

#[test]
fn only_the_target_s_files_where_only_those_are_meant() {
    let yard = golden();
    damage(&yard);
    let found = aimed(&yard, "{files: target, added: set_aside}").unwrap();
    let paths: Vec<&str> = found.wanted.iter().map(|one| one.path.as_str()).collect();
    assert_eq!(paths, ["/etc/systemd/system/shop.target"]);
}

#[test]
fn nothing_is_brought_back_from_what_is_no_good() {
    let yard = Yard::new();
    let (no_snapshot, detail) = reason(&yard);
    assert_eq!(no_snapshot, "no_snapshot");
    assert!(detail.contains("trigger a rule with the step unit_snapshot"), "{detail}");
    let yard = golden();
    damage(&yard);
    let before = yard.golden.scan().unwrap();
    let snapshot = yard.golden.shelf().newest().unwrap().unwrap();
    let copy = snapshot.dir.join("files/etc/systemd/system/shop-api.service");
    let was = fs::read(&copy).unwrap();
    fs::write(&copy, "[Service]\nExecStart=/bin/evil\n").unwrap();
    let (damaged, detail) = reason(&yard);
    assert_eq!(damaged, "snapshot_damaged");
    assert!(detail.ends_with("it was changed or damaged"), "{detail}");
    fs::write(&copy, was).unwrap();
    assert!(aimed(&yard, "{}").is_ok());
    fs::write(snapshot.dir.join("manifest.json"), "{}").unwrap();
    assert_eq!(reason(&yard).0, "snapshot_damaged");
    assert_eq!(yard.golden.scan().unwrap(), before);
}

#[test]
fn what_others_may_change_or_leads_elsewhere_is_not_followed() {
    let yard = golden();
    damage(&yard);
    yard.mode("", 0o777);
    assert_eq!(reason(&yard).0, "not_root_s_own");
    yard.mode("", 0o755);
    // A folder of drop-ins that leads elsewhere, and a folder in the place of a file.
    yard.write("shop-api.service.d/a.conf", "[Service]\nNice=1\n");
    fs::remove_dir_all(yard.at("shop-api.service.d")).unwrap();
    fs::create_dir(yard.at("elsewhere")).unwrap();
    symlink(yard.at("elsewhere"), yard.at("shop-api.service.d")).unwrap();
    assert_eq!(reason(&yard).0, "not_a_unit_file");
    fs::remove_file(yard.at("shop-api.service.d")).unwrap();
    assert!(aimed(&yard, "{}").is_ok());
    fs::remove_file(yard.at("shop-db.service")).unwrap();
    fs::create_dir(yard.at("shop-db.service")).unwrap();
    let (odd, detail) = reason(&yard);
    assert_eq!(odd, "not_a_unit_file");
    assert!(detail.ends_with("move it away first"), "{detail}");
}

#[test]
fn units_that_are_never_touched_keep_their_files() {
    let yard = golden();
    damage(&yard);
    let deny = DenyList::with(vec!["shop-db.service".parse().unwrap()]);
    let stop = aim(&params("{}").unwrap(), &yard.golden, "shop.target", &deny).unwrap_err();
    assert_eq!(stop.reason, "target_denied");
}

#[test]
fn what_changed_since_it_was_looked_at_is_left_alone() {
    let yard = golden();
    damage(&yard);
    let found = aimed(&yard, "{}").unwrap();
    yard.write("shop-api.service", "theirs");
    let said = apply(&yard.golden, &found).unwrap_err();
    assert!(said.ends_with("shop-api.service: somebody else has changed it meanwhile"), "{said}");
    assert_eq!(fs::read(yard.at("shop-api.service")).unwrap(), b"theirs");
}

/// At whatever file a death comes: what was begun is taken back, and then it is as if nothing had been.
#[test]
fn whatever_was_done_is_taken_back() {
    let mut lengths = Vec::new();
    for died_after in 0..=6 {
        let yard = golden();
        damage(&yard);
        let before = yard.golden.scan().unwrap();
        let mut found = aimed(&yard, "{added: set_aside}").unwrap();
        lengths.push(found.wanted.len());
        begun::begin(&yard.golden, &found, "rule:a".to_owned(), true, NOW + 1).unwrap();
        assert!(begun::is_begun(&yard.golden));
        found.wanted.truncate(died_after);
        apply(&yard.golden, &found).unwrap();
        let (_, back) = begun::put_back(&yard.golden).unwrap().unwrap();
        assert_eq!((back.wanted.len(), back.foreign.len()), (died_after, 0));
        assert_eq!(yard.golden.scan().unwrap(), before, "after {died_after} files");
        // Twice is as good as once.
        let (note, back) = begun::put_back(&yard.golden).unwrap().unwrap();
        assert!(back.wanted.is_empty());
        begun::end(&yard.golden, &note.backup).unwrap();
        assert!(!begun::is_begun(&yard.golden) && begun::put_back(&yard.golden).unwrap().is_none());
    }
    assert_eq!(lengths, [6; 7]);
}

#[test]
fn what_somebody_else_wrote_meanwhile_is_not_taken_back() {
    let yard = golden();
    damage(&yard);
    let found = aimed(&yard, "{}").unwrap();
    begun::begin(&yard.golden, &found, "rule:a".to_owned(), true, NOW + 1).unwrap();
    apply(&yard.golden, &found).unwrap();
    yard.write("shop-db.service", "theirs");
    let (_, back) = begun::put_back(&yard.golden).unwrap().unwrap();
    assert_eq!(back.foreign, ["/etc/systemd/system/shop-db.service"]);
    assert_eq!(fs::read(yard.at("shop-db.service")).unwrap(), b"theirs");
    assert!(fs::read_to_string(yard.at("shop-api.service")).unwrap().contains("/bin/evil"));
}

/// A restore that has ended must not take for its own what another has begun since, and say of it that it was interrupted.
#[test]
fn only_whose_note_it_is_takes_back_after_its_end() {
    let yard = golden();
    damage(&yard);
    let mine = |instance: &str| begun::held_if_begun_by(&yard.golden, instance).map(|held| held.is_some());
    assert_eq!(mine("rule:a"), Ok(false));
    begun::begin(&yard.golden, &aimed(&yard, "{}").unwrap(), "rule:a".to_owned(), true, NOW + 1).unwrap();
    assert_eq!((mine("rule:a"), mine("rule:b")), (Ok(true), Ok(false)));
    let other = yard.golden.lock().unwrap();
    assert_eq!(mine("rule:a"), Ok(false), "another is at work, and takes back first what it finds");
    drop(other);
    assert_eq!(mine("rule:a"), Ok(true));
}

#[test]
fn a_note_that_cannot_be_read_is_for_a_person() {
    let yard = golden();
    damage(&yard);
    begun::begin(&yard.golden, &aimed(&yard, "{}").unwrap(), "rule:a".to_owned(), true, NOW + 1).unwrap();
    fs::write(yard.golden.dir.join("before/begun.json"), "{").unwrap();
    let failure = begun::put_back(&yard.golden).unwrap_err();
    assert!(
        failure.to_string().contains("cannot be read: compare with the newest folder beside it"),
        "{failure}"
    );
}

#[test]
fn backups_are_secret_and_few() {
    let yard = golden();
    for turn in 0..5 {
        yard.write("shop-api.service", &format!("turn {turn}"));
        let backup =
            begun::begin(&yard.golden, &aimed(&yard, "{}").unwrap(), "rule:a".to_owned(), true, NOW + turn)
                .unwrap();
        begun::end(&yard.golden, &backup).unwrap();
    }
    let before = yard.golden.before();
    assert_eq!(before.names().unwrap().len(), yard.golden.keep);
    let mode =
        |path: &std::path::Path| std::os::unix::fs::MetadataExt::mode(&fs::metadata(path).unwrap()) & 0o777;
    // That one is in use is to be seen, what is in it not.
    assert_eq!(mode(before.dir()), 0o711);
    for name in before.names().unwrap() {
        assert_eq!(mode(&before.dir().join(name)), 0o700);
    }
}
