//! Each file under `configs/bad` is refused with exactly the text beside it, each under `configs/good` is accepted: by
//! the built binary, as someone who edits the file sees it.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it says")]

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
};

use common::{Ran, remediator};

const CONFIGS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/configs");

/// The `.yml` files of a folder, by name.
fn configurations(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yml"))
        .collect();
    files.sort();
    files
}

fn check_config(folder: &Path, file: &Path) -> Ran {
    remediator(folder, &["--config.file", file.file_name().unwrap().to_str().unwrap(), "check-config"])
}

#[test]
fn what_may_not_be_said_is_refused_in_these_words() {
    let folder = Path::new(CONFIGS).join("bad");
    let files = configurations(&folder);
    let mut wrong = Vec::new();
    for file in &files {
        let expected = fs::read_to_string(file.with_extension("stderr")).unwrap_or_default();
        let ran = check_config(&folder, file);
        if (ran.code, ran.stdout.as_str(), ran.stderr.as_str()) != (64, "", expected.as_str()) {
            wrong.push(format!("{}: {ran:#?}\nexpected: {expected}", file.display()));
        }
    }
    assert!(wrong.is_empty(), "{} of {} differ:\n{}", wrong.len(), files.len(), wrong.join("\n"));
    assert!(files.len() > 60, "only {} files", files.len());
    let texts = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    for text in texts.filter(|path| path.extension().is_some_and(|extension| extension == "stderr")) {
        assert!(text.with_extension("yml").exists(), "{} belongs to no file", text.display());
    }
}

/// `serve` reads the same way; no bad configuration ever gets as far as a socket or a state directory.
#[test]
fn serve_refuses_what_check_config_refuses() {
    let folder = Path::new(CONFIGS).join("bad");
    for name in ["no_auth", "step_above_the_deletion_policy", "duplicate_key"] {
        let expected = fs::read_to_string(folder.join(name).with_extension("stderr")).unwrap();
        let ran = remediator(&folder, &["--config.file", &format!("{name}.yml"), "serve"]);
        assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr), (64, "", expected), "{name}");
    }
}

#[test]
fn what_is_no_text_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("huge.yml"), "# a log given by mistake\n".repeat(50_000)).unwrap();
    fs::write(path("binary.yml"), b"server: {auth: none}\n# \xff\xfe\n").unwrap();
    fs::create_dir(path("folder.yml")).unwrap();
    for (name, expected) in [
        ("missing.yml", "missing.yml: cannot read the file: No such file or directory (os error 2)"),
        ("huge.yml", "huge.yml: the file is larger than 1048576 bytes"),
        ("binary.yml", "binary.yml: the file is not UTF-8 text"),
        ("folder.yml", "folder.yml: cannot read the file: Is a directory (os error 21)"),
    ] {
        let ran = check_config(folder.path(), Path::new(name));
        let said = ran.stderr.trim_end();
        assert_eq!((ran.code, said), (64, format!("evenkeel-remediator: {expected}").as_str()));
    }
}

#[test]
fn what_may_be_said_is_accepted_and_shown() {
    let folder = Path::new(CONFIGS).join("good");
    for file in configurations(&folder) {
        let ran = check_config(&folder, &file);
        let expected = fs::read_to_string(file.with_extension("stdout")).unwrap_or_default();
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{}", file.display());
        assert_eq!(ran.stdout, expected, "{}", file.display());
    }
}

/// The shipped configuration, with a token of its own: it changes nothing on a host that it has never seen.
#[test]
fn the_shipped_configuration_is_accepted_and_only_plans() {
    let shipped = Path::new(CONFIGS).join("../../../packaging/remediator.yml");
    let text = fs::read_to_string(&shipped).unwrap();
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("webhook.token"), "0123456789abcdef0123456789abcdef\n").unwrap();
    let local = text.replace("/etc/evenkeel/webhook.token", "webhook.token");
    assert_ne!(local, text, "the shipped file names its token elsewhere");
    fs::write(folder.path().join("remediator.yml"), local).unwrap();
    let ran = check_config(folder.path(), Path::new("remediator.yml"));
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    assert!(ran.stdout.contains("mode plan, deletion none"), "{}", ran.stdout);
    assert!(!ran.stdout.contains("mode auto"), "{}", ran.stdout);
    assert!(ran.stdout.contains("BLOCKED(policy)"), "{}", ran.stdout);
}
