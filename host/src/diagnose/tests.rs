//! Judged on what really was said: `host/tests/diagnose/cases.txt` says what must be named, the records beside it what systemd
//! and the journal said when each case was provoked.

use std::{collections::BTreeMap, fs, path::Path};

use serde::Deserialize;
use serde_json::Value;

use super::*;

#[derive(Deserialize)]
struct Record {
    failure: Failure,
    /// As the journal prints them, the newest first.
    journal: Vec<Value>,
}

/// The cause and subject that each case must be given.
fn expected() -> BTreeMap<String, (String, Option<String>)> {
    let cases = include_str!("../../tests/diagnose/cases.txt");
    let heads = cases.lines().filter_map(|line| line.strip_prefix("## ")?.split_once(": "));
    heads
        .map(|(name, verdict)| {
            let (cause, subject) =
                verdict.split_once(' ').map_or((verdict, None), |(c, s)| (c, Some(s.to_owned())));
            (name.to_owned(), (cause.to_owned(), subject))
        })
        .collect()
}

fn records() -> Vec<(String, BTreeMap<String, Record>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/diagnose");
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let files = files.filter(|path| path.extension().is_some_and(|extension| extension == "json"));
    files
        .map(|path| {
            (path.display().to_string(), serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap())
        })
        .collect()
}

fn lines(record: &Record) -> Vec<Line> {
    let printed: Vec<String> = record.journal.iter().map(Value::to_string).collect();
    journal::parse(printed.join("\n").as_bytes())
}

#[test]
fn every_provoked_failure_is_given_its_cause_and_no_other() {
    let expected = expected();
    let releases = records();
    assert!(!releases.is_empty());
    let mut wrong = Vec::new();
    for (file, records) in &releases {
        let named = records.keys().filter(|name| expected[*name].0 != "unknown").count();
        assert!(named >= 60, "{file} has {named} failures with a cause");
        assert_eq!(records.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{file}");
        for (name, record) in records {
            let diagnosis = diagnose(&record.failure, Some(&lines(record)));
            let given = (diagnosis.cause.as_str().to_owned(), diagnosis.subject.clone());
            if given != expected[name] {
                wrong.push(format!("{name}: {given:?} instead of {:?}", expected[name]));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_cause_that_can_be_provoked_here_is_among_the_cases() {
    let expected = expected();
    for cause in Cause::ALL {
        assert!(expected.values().any(|(word, _)| word == cause.as_str()), "{cause:?}");
    }
}

#[test]
fn without_the_journal_only_systemd_s_own_words_count() {
    for (_, records) in records() {
        for (name, record) in &records {
            let known = diagnose(&record.failure, Some(&lines(record)));
            let blind = diagnose(&record.failure, None);
            let by_itself =
                ["bad-unit-file", "timeout", "watchdog", "user-missing", "group-missing", "namespace-"];
            if by_itself.iter().any(|own| name.contains(own) && !name.starts_with("nginx")) {
                assert_eq!(blind.cause, known.cause, "{name}");
            } else if blind.cause != Cause::Unknown {
                // Without words a program that ends with 217 by itself looks like systemd.
                assert!(name.starts_with("status-of-systemd-by-itself"), "{name}: {blind:?}");
            }
        }
    }
}

#[test]
fn the_lines_of_another_run_say_nothing() {
    for (_, records) in records() {
        for (name, record) in &records {
            let earlier: Vec<Line> =
                lines(record).into_iter().map(|line| Line { invocation: "0".repeat(32), ..line }).collect();
            let seen = diagnose(&record.failure, Some(&earlier));
            assert_eq!(seen, diagnose(&record.failure, Some(&[])), "{name}");
        }
    }
}

#[test]
fn a_line_between_two_runs_is_of_the_nearer() {
    let at = |second: u64, invocation: &str, message: &str| Line {
        time: Some(std::time::UNIX_EPOCH + Duration::from_secs(second)),
        message: message.to_owned(),
        invocation: invocation.to_owned(),
        ..Line::default()
    };
    let lines = [
        at(10, "1", "a"),
        at(11, "", "late"),
        at(18, "", "early"),
        at(20, "2", "b"),
        at(21, "", "c"),
        at(22, "3", "d"),
    ];
    let run =
        |invocation| of_run(&lines, invocation).iter().map(|line| line.message.as_str()).collect::<Vec<_>>();
    assert_eq!(run("2"), ["early", "b", "c"]);
    assert_eq!(run("1")[..2], ["a", "late"]);
    assert!(run("4").is_empty() && run("").is_empty());
}

#[test]
fn a_program_that_goes_on_after_its_complaint_did_not_end_of_it() {
    for (_, records) in records() {
        for (name, record) in &records {
            let mut lines = lines(record);
            let run = record.failure.invocation_id.clone();
            let unit = record.failure.unit.clone();
            let by_a_program = |line: &Line| line.unit == unit && !systemd_says::is_executor(line);
            if run.is_empty() || !lines.iter().any(by_a_program) {
                continue;
            }
            let message = "done for today, good night".to_owned();
            lines.push(Line {
                message,
                unit,
                invocation: run,
                identifier: "app".to_owned(),
                ..Line::default()
            });
            let seen = diagnose(&record.failure, Some(&lines)).cause;
            let is_systemd_s = matches!(seen, Cause::Unknown | Cause::Timeout | Cause::StartLimit);
            assert!(is_systemd_s, "{name}: {seen:?}");
        }
    }
}

#[test]
fn what_anybody_writes_about_a_unit_is_not_believed() {
    for (_, records) in records() {
        for (name, record) in &records {
            // As another process may send it: the fields that the journal adds itself are missing.
            let of_others = |message: &str, identifier: &str| Line {
                message: message.to_owned(),
                identifier: identifier.to_owned(),
                ..Line::default()
            };
            let mut lines = lines(record);
            let known = diagnose(&record.failure, Some(&lines));
            let unit = &record.failure.unit;
            lines.push(of_others("/bin/sh: 1: cannot create /etc/shadow: Permission denied", "sh"));
            lines.push(of_others(
                &format!("{unit}: Failed at step USER spawning /bin/x: No such process"),
                "(x)",
            ));
            lines.push(of_others(&format!("{unit}: Start request repeated too quickly."), "systemd"));
            let seen = diagnose(&record.failure, Some(&lines));
            // Where process 1 says that the step was not taken, the line may say what of.
            assert!(seen == known || record.failure.exec_main_status == 217, "{name}: {seen:?}");
        }
    }
}

#[test]
fn what_the_kernel_killed_for_memory_is_said_by_systemd_alone() {
    // It takes cgroup v2's memory controller, which the lab may lack.
    let failure = Failure {
        load_state: "loaded".to_owned(),
        active_state: "failed".to_owned(),
        result: "oom-kill".to_owned(),
        exec_main_code: 2,
        exec_main_status: 9,
        ..Failure::default()
    };
    assert_eq!(diagnose(&failure, Some(&[])).cause, Cause::OutOfMemory);
    assert_eq!(diagnose(&failure, None).words(), "out of memory");
}

#[test]
fn what_a_log_names_is_bounded_and_steers_nothing() {
    let failure = Failure {
        unit: "app.service".to_owned(),
        load_state: "loaded".to_owned(),
        active_state: "failed".to_owned(),
        result: "exit-code".to_owned(),
        exec_main_code: 1,
        exec_main_status: 1,
        invocation_id: "1".to_owned(),
        ..Failure::default()
    };
    let said = |path: &str| Line {
        message: format!("cat: '{path}': Permission denied"),
        identifier: "cat".to_owned(),
        unit: "app.service".to_owned(),
        invocation: "1".to_owned(),
        ..Line::default()
    };
    let subject = |path: &str| diagnose(&failure, Some(&[said(path)])).subject;
    assert_eq!(subject("/data/\u{1b}]0;x\u{7}\u{202e}").unwrap(), "/data/\\u{1b}]0;x\\u{7}\\u{202e}");
    assert_eq!(subject(&format!("/{}", "x".repeat(1000))).unwrap().chars().count(), LONGEST_SUBJECT + 1);
    // A line that nobody writes by hand is not read.
    assert_eq!(subject(&format!("/{}", "x".repeat(100_000))), None);
}
