use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
};

use tempfile::TempDir;

use super::*;
use crate::actions::Step;

const GONE: &str = "quantum-ai-engine.service";
const TARGET: &str = "etc/systemd/system/quantum-trader.target";
const CLM: &str = "etc/systemd/system/quantum-clm.service";

fn step(text: &str) -> Result<Step, String> {
    let steps: Result<Vec<Step>, _> =
        evenkeel_host::config::parse("t.yml", &format!("- unit_remove_reference: {text}\n"));
    steps.map(|mut steps| steps.remove(0)).map_err(|error| error.to_string())
}

fn action(from: &str) -> UnitRemoveReference {
    let parameters = Parameters {
        from: vec![from.parse().unwrap()],
        folders: None,
        quiet_for: Some(PromDuration::new(Duration::ZERO)),
    };
    parameters.try_into().unwrap()
}

/// The host of the documents.
fn host() -> TempDir {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join("etc/systemd/system")).unwrap();
    fs::write(
        root.path().join(TARGET),
        "[Unit]\nDescription=Trader\nWants=quantum-execution.service\nWants=quantum-ai-engine.service\n",
    )
    .unwrap();
    fs::write(
        root.path().join(CLM),
        "[Unit]\nAfter=network.target quantum-ai-engine.service\n\n[Service]\nExecStart=/bin/true\n",
    )
    .unwrap();
    root
}

fn found(action: &UnitRemoveReference, root: &TempDir) -> Result<Vec<Change>, Refusal> {
    action.changes_under(root.path(), &DenyList::with(Vec::new()), GONE)
}

fn written(changes: Vec<Change>, backups: &Path) -> Result<Vec<Changed>, Failure> {
    change::write(change::back_up(changes, backups)?)
}

/// Why nothing is changed.
fn refusal(action: &UnitRemoveReference, root: &TempDir) -> &'static str {
    found(action, root).unwrap_err().reason
}

#[test]
fn whose_files_may_be_changed_must_be_said() {
    assert_eq!(step("{from: ['quantum-*']}").unwrap().0.class(), Class::S2);
    for all in ["[]", "['*']"] {
        assert!(
            step(&format!("{{from: {all}}}")).unwrap_err().contains("names the units whose files"),
            "{all}"
        );
    }
    assert!(step("{}").is_err());
    for folder in
        ["/usr/lib/systemd/system", "/etc", "/etc/systemd/system/../../..", "/etc/systemd/system/", "etc"]
    {
        let error = step(&format!("{{from: [a*], folders: ['{folder}']}}")).unwrap_err();
        assert!(error.contains("are a host's own"), "{error}");
    }
    assert!(step("{from: [a*], folders: [/usr/local/lib/systemd/system]}").is_ok());
    assert!(step("{from: [a*], folders: []}").unwrap_err().contains("is empty"));
}

#[test]
fn the_change_is_told_made_kept_and_taken_back() {
    let (root, backups) = (host(), tempfile::tempdir().unwrap());
    let before = [TARGET, CLM].map(|file| fs::read(root.path().join(file)).unwrap());
    let changes = found(&action("quantum-*"), &root).unwrap();
    let told = change::told(GONE, &changes);
    let at = |file: &str| root.path().join(file).display().to_string();
    assert_eq!(
        told.lines().collect::<Vec<_>>(),
        [
            format!("takes {GONE} out of {}:2, {}:4", at(CLM), at(TARGET)),
            format!("--- {}", at(CLM)),
            format!("2- After=network.target {GONE}"),
            "2+ After=network.target".to_owned(),
            format!("--- {}", at(TARGET)),
            format!("4- Wants={GONE}"),
        ]
    );
    assert_eq!(units_of(&changes), ["quantum-clm.service", "quantum-trader.target"]);
    let changed = written(changes, backups.path()).unwrap();
    assert!(change::places(root.path(), GONE).is_empty());
    for (kept, before) in changed.iter().zip([&before[1], &before[0]]) {
        assert_eq!(&fs::read(&kept.backup).unwrap(), before);
        assert_eq!(kept.after.bytes(), kept.text);
    }
    change::take_back(changed).unwrap();
    assert_eq!([TARGET, CLM].map(|file| fs::read(root.path().join(file)).unwrap()), before);
}

#[test]
fn when_one_file_cannot_be_changed_none_is() {
    let (root, backups) = (host(), tempfile::tempdir().unwrap());
    let before = [TARGET, CLM].map(|file| fs::read(root.path().join(file)).unwrap());
    let changes = found(&action("quantum-*"), &root).unwrap();
    // Somebody edits the second meanwhile.
    fs::write(root.path().join(TARGET), [&before[0][..], b"# theirs\n"].concat()).unwrap();
    let failure = written(changes, backups.path()).unwrap_err();
    assert!(matches!(failure, Failure::Refused(_)), "{failure}");
    assert_eq!(fs::read(root.path().join(CLM)).unwrap(), before[1]);
    assert!(fs::read(root.path().join(TARGET)).unwrap().ends_with(b"# theirs\n"));
}

/// The process was killed after the first file, after the last, or before systemd had read them.
#[test]
fn what_a_killed_helper_left_half_done_is_put_back() {
    let before = |root: &TempDir| [TARGET, CLM].map(|file| fs::read(root.path().join(file)).unwrap());
    for is_one_file_only in [true, false] {
        let (root, backups) = (host(), tempfile::tempdir().unwrap());
        let was = before(&root);
        let changes = found(&action("quantum-*"), &root).unwrap();
        let mut kept = change::back_up(changes, backups.path()).unwrap();
        begun::begin(backups.path(), "rule:a".to_owned(), &kept).unwrap();
        if is_one_file_only {
            kept.truncate(1);
        }
        drop(change::write(kept).unwrap());
        assert_ne!(before(&root), was);
        assert!(begun::is_begun_by(backups.path(), "rule:a").unwrap());
        assert!(!begun::is_begun_by(backups.path(), "rule:b").unwrap());
        let back = begun::put_back(backups.path()).unwrap().unwrap();
        assert_eq!((back.files, back.foreign), (if is_one_file_only { 1 } else { 2 }, Vec::new()));
        assert_eq!(before(&root), was);
        // Killed again in between: done twice is the same as done once.
        assert_eq!(begun::put_back(backups.path()).unwrap().unwrap().files, 0);
        begun::end(backups.path()).unwrap();
        assert!(begun::put_back(backups.path()).unwrap().is_none());
    }
}

#[test]
fn what_somebody_else_has_changed_since_is_not_put_back() {
    let (root, backups) = (host(), tempfile::tempdir().unwrap());
    let changes = found(&action("quantum-*"), &root).unwrap();
    let kept = change::back_up(changes, backups.path()).unwrap();
    begun::begin(backups.path(), "rule:a".to_owned(), &kept).unwrap();
    drop(change::write(kept).unwrap());
    fs::write(root.path().join(TARGET), "[Unit]\nDescription=theirs\n").unwrap();
    fs::remove_file(root.path().join(CLM)).unwrap();
    let back = begun::put_back(backups.path()).unwrap().unwrap();
    assert_eq!((back.files, back.foreign.len()), (0, 2), "{:?}", back.foreign);
    assert_eq!(fs::read_to_string(root.path().join(TARGET)).unwrap(), "[Unit]\nDescription=theirs\n");
    fs::write(backups.path().join("unit_remove_reference.begun.json"), "{}").unwrap();
    assert!(matches!(begun::put_back(backups.path()), Err(Failure::Unknown(_))));
}

#[test]
fn only_one_changes_files_at_a_time() {
    let backups = tempfile::tempdir().unwrap();
    let held = begun::lock(backups.path()).unwrap();
    assert!(matches!(begun::lock(backups.path()), Err(Failure::Busy(_))));
    drop(held);
    begun::lock(backups.path()).unwrap();
}

#[test]
fn only_admitted_units_files_are_changed_and_all_or_none() {
    let root = host();
    assert_eq!(refusal(&action("quantum-trader.*"), &root), "not_admitted");
    assert_eq!(found(&action("quantum-*"), &root).unwrap().len(), 2);
    let folder = root.path().join("etc/systemd/system/ssh.service.d");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("x.conf"), format!("[Unit]\nAfter={GONE}\n")).unwrap();
    assert_eq!(refusal(&action("*.*"), &root), "target_denied");
    fs::remove_dir_all(folder).unwrap();
    fs::create_dir_all(root.path().join("usr/local/lib/systemd/system")).unwrap();
    fs::write(
        root.path().join("usr/local/lib/systemd/system/quantum-x.service"),
        format!("[Unit]\nAfter={GONE}\n"),
    )
    .unwrap();
    assert_eq!(refusal(&action("quantum-*"), &root), "not_in_folders");
}

#[test]
fn links_files_of_others_and_files_at_work_are_left_alone() {
    let quantum = action("quantum-*");
    let root = host();
    let wants = root.path().join("etc/systemd/system/quantum-trader.target.wants");
    fs::create_dir(&wants).unwrap();
    symlink(format!("/etc/systemd/system/{GONE}"), wants.join(GONE)).unwrap();
    assert_eq!(refusal(&quantum, &root), "is_a_link");
    fs::remove_dir_all(wants).unwrap();
    fs::set_permissions(root.path().join(CLM), fs::Permissions::from_mode(0o666)).unwrap();
    assert_eq!(refusal(&quantum, &root), "not_root_s_own");
    fs::set_permissions(root.path().join(CLM), fs::Permissions::from_mode(0o644)).unwrap();
    // A drop-in that lies behind a link.
    let elsewhere = tempfile::tempdir().unwrap();
    fs::write(elsewhere.path().join("x.conf"), format!("[Unit]\nAfter={GONE}\n")).unwrap();
    let drop_ins = root.path().join("etc/systemd/system/quantum-clm.service.d");
    symlink(elsewhere.path(), &drop_ins).unwrap();
    let refused = found(&quantum, &root).unwrap_err();
    assert_eq!(refused.reason, "not_root_s_own");
    assert!(refused.detail.contains("a link"), "{refused:?}");
    fs::remove_file(drop_ins).unwrap();
    let patient = UnitRemoveReference { quiet_for: Duration::from_secs(3600), ..quantum.clone() };
    assert_eq!(refusal(&patient, &root), "being_deployed");
    fs::write(root.path().join(CLM), format!("[Unit]\nAfter=a.service \\\n {GONE} #x\n")).unwrap();
    assert_eq!(refusal(&quantum, &root), "not_editable");
    fs::remove_file(root.path().join(CLM)).unwrap();
    fs::remove_file(root.path().join(TARGET)).unwrap();
    assert_eq!(refusal(&quantum, &root), "not_named");
}

#[test]
fn crlf_continued_lines_several_names_and_drop_ins_lose_one_word() {
    let root = host();
    fs::remove_file(root.path().join(TARGET)).unwrap();
    let text = format!(
        "[Unit]\r\nAfter=a.service \\\r\n  {GONE} b.service\r\nWants={GONE} c.service\r\n.include /etc/{GONE}\r\nAfter=\r\n"
    );
    fs::write(root.path().join(CLM), &text).unwrap();
    let folder = root.path().join("etc/systemd/system/quantum-clm.service.d");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("10-more.conf"), format!("[Unit]\nBefore={GONE}\nNice=no {GONE}\n")).unwrap();
    let changes = found(&action("quantum-*"), &root).unwrap();
    assert_eq!(units_of(&changes), ["quantum-clm.service"]);
    let backups = tempfile::tempdir().unwrap();
    written(changes, backups.path()).unwrap();
    let expected = text.replacen(&format!("  {GONE} b.service"), "  b.service", 1).replacen(
        &format!("Wants={GONE} c"),
        "Wants=c",
        1,
    );
    assert_eq!(fs::read_to_string(root.path().join(CLM)).unwrap(), expected);
    assert_eq!(fs::read_to_string(folder.join("10-more.conf")).unwrap(), format!("[Unit]\nNice=no {GONE}\n"));
}
