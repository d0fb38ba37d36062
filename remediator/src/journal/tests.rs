//! The journal under concurrency, failure, flood and neglect.

mod clock;
mod retention;
mod size;
mod stress;

use std::{
    path::Path,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use rusqlite::params;
use tempfile::TempDir;

use super::{
    Accepted, Admission, Approval, Decided, End, Error, FILE, HaltKind, Incoming, Journal, Labels, Letter,
    Question, Reader, Request, Shown, StepRecord, StepState, Storm, Tally, Verdict, Write,
};
use crate::{
    admission::{Reason, Scope},
    clock::Moment,
    outcome::Outcome,
    policy::{Class, Limit},
    target::{Kind, Selector, Target},
};

const DAY_MS: i64 = 86_400_000;

fn directory() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

fn open() -> (TempDir, Journal) {
    let dir = directory();
    let journal = Journal::open(dir.path()).unwrap();
    (dir, journal)
}

fn reader(dir: &TempDir) -> Reader {
    Reader::open(dir.path()).unwrap()
}

fn second_connection(dir: &TempDir) -> rusqlite::Connection {
    rusqlite::Connection::open(dir.path().join(FILE)).unwrap()
}

fn at(second: i64) -> Moment {
    Moment { wall_ms: second * 1000, boot_ms: second * 1000, boot_id: "boot".to_owned() }
}

fn target(name: &str) -> Target {
    static ALL: LazyLock<Selector> = LazyLock::new(|| Selector {
        kind: Kind::Unit,
        label: String::new(),
        allow: vec!["*".parse().unwrap()],
    });
    ALL.admit(name).unwrap()
}

fn alert(name: &str) -> Incoming {
    Incoming {
        rule: "rule".to_owned(),
        target: target(name),
        firing: true,
        impact: true,
        fingerprint: String::new(),
        labels: Labels::default(),
        triggered_by: None,
    }
}

/// Opens a remediation and answers its number.
async fn opened(journal: &Journal, name: &str, now: Moment) -> i64 {
    let accepted = journal.accept(vec![alert(name)], 10_000, now.clone()).await.unwrap();
    assert_eq!(accepted, Accepted::Taken(Tally { opened: 1, ..Tally::default() }));
    *journal.open_targets(now).await.unwrap().keys().last().unwrap()
}

fn step() -> StepRecord {
    StepRecord {
        position: 0,
        action: "restart".to_owned(),
        class: Class::S2,
        plan: "restart it".to_owned(),
        state: StepState::Reserved,
        reason: None,
        detail: None,
        started_wall_ms: None,
        ended_wall_ms: None,
        claimed_freed_bytes: None,
        measured_freed_bytes: None,
    }
}

fn request(id: i64, limits: &[&str], now: Moment) -> Request {
    let limits: Vec<Limit> = limits.iter().map(|text| text.parse().unwrap()).collect();
    let question = Question {
        id,
        rule: "rule".to_owned(),
        target: target("a.service"),
        device: None,
        class: Class::S2,
        budgets: vec![(Scope::Host, limits)],
        restraint: None,
        storm: Storm::default(),
    };
    Request { question, step: Some(step()), on_storm: Vec::new(), now }
}

fn end(outcome: Outcome, reason: &str) -> End {
    End::new(outcome, reason, "", None)
}

fn nobody() -> Write {
    Box::new(|_, _| Vec::new())
}

/// Acts on a remediation and ends it.
async fn act(journal: &Journal, id: i64, outcome: Outcome, now: Moment) {
    let Admission::Admitted(step_id) = journal.reserve(request(id, &[], now.clone())).await.unwrap() else {
        panic!("not admitted");
    };
    journal.running(id, step_id, now.clone()).await.unwrap();
    journal
        .verifying(id, step_id, StepRecord { state: StepState::Done, ..step() }, now.clone())
        .await
        .unwrap();
    journal.end(id, end(outcome, "x"), nobody(), now).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn those_who_ask_together_are_decided_one_after_the_other() {
    let (dir, journal) = open();
    let mut ids = Vec::new();
    for number in 0..40 {
        ids.push(opened(&journal, &format!("a{number}.service"), at(0)).await);
    }
    let admitted = Arc::new(AtomicUsize::new(0));
    let mut askers = tokio::task::JoinSet::new();
    for id in ids {
        let (journal, admitted) = (journal.clone(), admitted.clone());
        askers.spawn(async move {
            match journal.reserve(request(id, &["7/1h"], at(1))).await.unwrap() {
                Admission::Admitted(_) => drop(admitted.fetch_add(1, Ordering::SeqCst)),
                Admission::Refused(refusal) => assert_eq!(refusal.reason, Reason::Limited),
            }
        });
    }
    while let Some(asked) = askers.join_next().await {
        asked.unwrap();
    }
    assert_eq!(admitted.load(Ordering::SeqCst), 7);
    assert_eq!(reader(&dir).budget(&Scope::Host, &["99/1h".parse().unwrap()]).unwrap().starts.len(), 7);
}

/// Many deliveries at once share commits, and each finds what it was told on the disk.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_confirmed_is_there_for_others_to_see() {
    let (dir, journal) = open();
    let mut senders = tokio::task::JoinSet::new();
    for number in 0..300 {
        let (journal, path) = (journal.clone(), dir.path().to_owned());
        senders.spawn(async move {
            let name = format!("a{number}.service");
            journal.accept(vec![alert(&name)], 10_000, at(number)).await.unwrap();
            tokio::task::spawn_blocking(move || {
                let reader = Reader::open(&path).unwrap();
                assert_eq!(reader.recent(None, Some(&name), 2).unwrap().len(), 1, "{name} is not there");
            })
            .await
            .unwrap();
        });
    }
    while let Some(sent) = senders.join_next().await {
        sent.unwrap();
    }
    assert_eq!(reader(&dir).queue().unwrap().0, 300);
}

/// Holds the writer back, so that what is asked meanwhile shares one transaction.
async fn together<T>(dir: &TempDir, journal: &Journal, asked: impl Future<Output = T>) -> T {
    let other = second_connection(dir);
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let blocker = journal.clone();
    // The writer waits for the lock with this one; the rest queues up behind it.
    let first = tokio::spawn(async move { blocker.steps(0).await });
    let release = async {
        while journal.changes.capacity() == super::QUEUE {
            tokio::task::yield_now().await;
        }
        other.execute_batch("ROLLBACK").unwrap();
    };
    let (answer, ()) = tokio::join!(asked, release);
    // Its own answer is that of the transaction it shared.
    drop(first.await.unwrap());
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_fails_takes_no_other_with_it() {
    let (dir, journal) = open();
    let bad = journal.change(|db| {
        db.execute("UPDATE boot SET began_ms = 1", [])?;
        db.execute("INSERT INTO remediation (rule) VALUES ('half')", [])
    });
    let good = journal.accept(vec![alert("good.service")], 10_000, at(0));
    let after = journal.accept(vec![alert("after.service")], 10_000, at(0));
    let (good, bad, after) = together(&dir, &journal, async { tokio::join!(good, bad, after) }).await;
    assert!(matches!(bad, Err(Error::Sqlite(_))));
    assert!(good.is_ok() && after.is_ok());
    assert_eq!(reader(&dir).queue().unwrap().0, 2);
}

/// After some errors SQLite has ended the transaction by itself. Nothing of it may count as confirmed, and what comes
/// after begins a new one.
#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_ended_by_itself_confirms_nothing() {
    let (dir, journal) = open();
    second_connection(&dir)
        .execute_batch(
            "CREATE TRIGGER broken BEFORE INSERT ON remediation WHEN NEW.target = 'bad.service'
             BEGIN SELECT RAISE(ROLLBACK, 'disk I/O error'); END",
        )
        .unwrap();
    let before = journal.accept(vec![alert("before.service")], 10_000, at(0));
    let bad = journal.accept(vec![alert("bad.service")], 10_000, at(0));
    let after = journal.accept(vec![alert("after.service")], 10_000, at(0));
    let (before, bad, after) = together(&dir, &journal, async { tokio::join!(before, bad, after) }).await;
    let names: Vec<String> =
        reader(&dir).recent(None, None, 9).unwrap().into_iter().map(|one| one.target).collect();
    for (name, answer) in [("before.service", before), ("bad.service", bad), ("after.service", after)] {
        assert_eq!(
            answer.is_ok(),
            names.contains(&name.to_owned()),
            "{name}: {answer:?}, there is {names:?}"
        );
    }
    assert!(!names.contains(&"before.service".to_owned()), "it shared the transaction that broke");
    assert!(journal.accept(vec![alert("later.service")], 10_000, at(0)).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_is_gone_says_so_to_everybody() {
    let (_dir, journal) = open();
    let broken: Result<(), Error> = journal.change(|_| panic!("as the test wants")).await;
    assert!(matches!(broken, Err(Error::Closed)));
    // The thread is on its way out; then it is closed for good.
    while journal.has_room() {
        tokio::task::yield_now().await;
    }
    assert!(matches!(journal.accept(vec![alert("a.service")], 10_000, at(0)).await, Err(Error::Closed)));
    assert!(matches!(journal.open_targets(at(0)).await, Err(Error::Closed)));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_writer_a_directory() {
    let (dir, journal) = open();
    let error = Journal::open(dir.path()).err().unwrap();
    assert!(matches!(&error, Error::InUse(path) if path == dir.path()), "{error}");
    drop(journal);
    while let Err(error) = Journal::open(dir.path()) {
        assert!(matches!(error, Error::InUse(_)), "{error}");
        std::thread::yield_now();
    }
}

#[tokio::test]
async fn a_newer_version_is_neither_written_nor_read() {
    let (dir, journal) = open();
    drop(journal);
    second_connection(&dir).pragma_update(None, "user_version", 99).unwrap();
    let refused = |error: Error| assert!(matches!(error, Error::Newer { found: 99, .. }), "{error}");
    loop {
        match Journal::open(dir.path()).err() {
            Some(Error::InUse(_)) => std::thread::yield_now(),
            Some(error) => break refused(error),
            None => panic!("it was opened"),
        }
    }
    refused(Reader::open(dir.path()).err().unwrap());
    assert!(Reader::open_if_any(&super::Places::only(&dir.path().join("elsewhere"))).unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn reading_disturbs_no_writer_and_sees_no_half() {
    let (dir, journal) = open();
    let path = dir.path().to_owned();
    let stop = Arc::new(AtomicUsize::new(0));
    let looks = Arc::new(AtomicUsize::new(0));
    let (stopped, counted) = (stop.clone(), looks.clone());
    let looking = std::thread::spawn(move || {
        let reader = Reader::open(&path).unwrap();
        while stopped.load(Ordering::SeqCst) == 0 {
            // Deliveries of ten are all there or not at all.
            assert_eq!(reader.queue().unwrap().0 % 10, 0);
            counted.fetch_add(1, Ordering::SeqCst);
        }
    });
    for delivery in 0..60 {
        let alerts = (0..10).map(|number| alert(&format!("a{delivery}-{number}.service"))).collect();
        journal.accept(alerts, 10_000, at(0)).await.unwrap();
    }
    while looks.load(Ordering::SeqCst) == 0 {
        assert!(!looking.is_finished(), "the reader has ended");
        std::thread::yield_now();
    }
    stop.store(1, Ordering::SeqCst);
    looking.join().unwrap();
    // A reader writes nothing.
    let connection = super::schema::open_read_only(&dir.path().join(FILE)).unwrap();
    let denied = connection.execute("DELETE FROM remediation", []).unwrap_err();
    assert!(denied.to_string().contains("readonly"), "{denied}");
}

fn of_rule(rule: &str, numbers: std::ops::Range<u32>) -> Vec<Incoming> {
    let one = |number| Incoming { rule: rule.to_owned(), ..alert(&format!("a{number}.service")) };
    numbers.map(one).collect()
}

/// A delivery that is larger than what is left is taken as far as there is room, or it would be sent again for ever; the
/// next one has to wait.
#[tokio::test]
async fn while_it_is_full_a_delivery_is_refused_whole() {
    let (dir, journal) = open();
    let accept = async |alerts: Vec<Incoming>| journal.accept(alerts, 100, at(0)).await.unwrap();
    assert!(matches!(accept(of_rule("one", 0..99)).await, Accepted::Taken(_)));
    let tally = Tally { opened: 1, absorbed: 9, resolved: 0, left: 900 };
    assert_eq!(accept(of_rule("one", 90..1_000)).await, Accepted::Taken(tally));
    assert_eq!(accept(of_rule("one", 90..1_010)).await, Accepted::TooMany);
    assert_eq!(reader(&dir).queue().unwrap().0, 100, "nothing of it was taken");
    // What is known already takes no room, and a resolved one never does.
    let mut more = of_rule("one", 80..100);
    more.push(Incoming { firing: false, ..alert("other.service") });
    let tally = Tally { absorbed: 20, ..Tally::default() };
    assert_eq!(accept(more).await, Accepted::Taken(tally));
    // Each comes to its end, and there is room again.
    for id in journal.open_targets(at(1)).await.unwrap().into_keys().take(91) {
        journal.end(id, end(Outcome::Blocked, "x"), nobody(), at(1)).await.unwrap();
    }
    assert!(matches!(accept(of_rule("one", 990..1_010)).await, Accepted::Taken(_)));
}

#[tokio::test]
async fn one_delivery_opens_no_more_than_there_is_room_for_and_leaves_some_to_other_rules() {
    let (dir, journal) = open();
    let accept = async |alerts: Vec<Incoming>| match journal.accept(alerts, 1_000, at(0)).await.unwrap() {
        Accepted::Taken(tally) => (tally.opened, tally.left),
        Accepted::TooMany => (0, 0),
    };
    assert_eq!(accept(of_rule("flood", 0..20_000)).await, (1_000, 19_000));
    assert_eq!(accept(of_rule("flood", 20_000..20_001)).await, (0, 0), "it waits");
    assert_eq!(accept(of_rule("another", 0..20_000)).await, (62, 19_938));
    assert_eq!(accept(of_rule("true", 0..10)).await, (10, 0));
    // With one that waits in the same delivery, each is taken as far as it may be.
    let mixed = [of_rule("flood", 20_000..20_001), of_rule("true", 10..20)].concat();
    assert_eq!(accept(mixed).await, (10, 1));
    assert_eq!(reader(&dir).queue().unwrap().0, 1_082);
}

#[tokio::test]
async fn repeats_are_folded_and_news_is_not() {
    let (dir, journal) = open();
    let ended = async |second: i64, outcome, reason: &str| {
        let id = opened(&journal, "a.service", at(second)).await;
        journal.end(id, end(outcome, reason), nobody(), at(second + 1)).await.unwrap().id
    };
    let first = ended(0, Outcome::Limited, "cooldown").await;
    assert_eq!(ended(100, Outcome::Limited, "cooldown").await, first);
    let other = ended(200, Outcome::Limited, "limited").await;
    assert_ne!(other, first);
    // The one before the last is not what it repeats.
    let third = ended(300, Outcome::Limited, "cooldown").await;
    assert_ne!(third, first);
    let record = &reader(&dir).recent(None, None, 9).unwrap()[2];
    assert_eq!((record.id, record.deliveries, record.ended_wall_ms), (first, 2, Some(101_000)));
    // What acted is never folded, and nothing into it.
    let id = opened(&journal, "a.service", at(400)).await;
    act(&journal, id, Outcome::Ineffective, at(401)).await;
    let id = opened(&journal, "a.service", at(500)).await;
    act(&journal, id, Outcome::Ineffective, at(501)).await;
    assert_eq!(reader(&dir).recent(None, None, 9).unwrap().len(), 5);
    assert_eq!(reader(&dir).steps(id).unwrap().len(), 1);
}

#[tokio::test]
async fn a_reservation_that_is_taken_back_costs_nothing() {
    let (dir, journal) = open();
    let id = opened(&journal, "a.service", at(0)).await;
    let Admission::Admitted(step) = journal.reserve(request(id, &["1/1h"], at(1))).await.unwrap() else {
        panic!("not admitted");
    };
    assert!(matches!(
        journal.reserve(request(id, &["1/1h"], at(2))).await.unwrap(),
        Admission::Refused(refusal) if refusal.wait == Duration::from_secs(3599)
    ));
    journal.release(id, step).await.unwrap();
    assert!(reader(&dir).steps(id).unwrap().is_empty());
    assert!(matches!(journal.reserve(request(id, &["1/1h"], at(2))).await.unwrap(), Admission::Admitted(_)));
}

/// One timeline over boots: a clock that is set, in whatever boot and direction, makes nothing older.
#[tokio::test]
async fn setting_the_clock_moves_no_start_out_of_its_window() {
    let (_dir, journal) = open();
    let id = opened(&journal, "a.service", at(0)).await;
    let moment = |boot: &str, up: i64, wall: i64| Moment {
        wall_ms: wall * 1000,
        boot_ms: up * 1000,
        boot_id: boot.to_owned(),
    };
    let wait = async |now: Moment| {
        journal.open_targets(now.clone()).await.unwrap();
        match journal.reserve(request(id, &["1/1h"], now)).await.unwrap() {
            Admission::Admitted(step) => {
                journal.release(id, step).await.unwrap();
                0
            }
            Admission::Refused(refusal) => refusal.wait.as_secs(),
        }
    };
    // Admitted at 10,000 s in the first boot; the hour runs.
    journal.open_targets(moment("one", 100, 10_000)).await.unwrap();
    let admitted = journal.reserve(request(id, &["1/1h"], moment("one", 100, 10_000))).await.unwrap();
    assert!(matches!(admitted, Admission::Admitted(_)));
    // A day forward in the same boot, which a reboot then keeps: ten minutes are ten minutes.
    assert_eq!(wait(moment("one", 700, 10_600 + 86_400)).await, 3000);
    assert_eq!(wait(moment("two", 10, 10_710 + 86_400)).await, 2890);
    // Back again in the second boot, and a third that lost two days: at least what it has been running for.
    assert_eq!(wait(moment("two", 110, 10_810)).await, 2790);
    assert_eq!(wait(moment("three", 60, 10_000 - 172_800)).await, 2730);
    assert_eq!(wait(moment("three", 2790, 10_000 - 172_800 + 2730)).await, 0);
    // Nothing of this keeps it from acting for longer than the window.
    assert_eq!(wait(moment("four", 1, 1)).await, 0);
}

/// The evidence of a remediation that is open is damaged: it is still taken up.
#[tokio::test]
async fn damaged_evidence_hides_no_remediation() {
    let (dir, journal) = open();
    let id = opened(&journal, "a.service", at(0)).await;
    second_connection(&dir)
        .execute(
            "UPDATE remediation SET before = '{\"martian\": 1}', labels = 'x' WHERE id = ?1",
            params![id],
        )
        .unwrap();
    let record = journal.remediation(id).await.unwrap().unwrap();
    assert_eq!((record.before, record.labels.len()), (None, 0));
    assert_eq!(journal.open_targets(at(1)).await.unwrap().len(), 1);
}

/// The log keeps its place on the disk over a clean end, and so does what is in it.
#[tokio::test]
async fn a_clean_end_gives_no_room_back() {
    let (dir, journal) = open();
    opened(&journal, "a.service", at(0)).await;
    let size = |suffix: &str| std::fs::metadata(dir.path().join(format!("{FILE}{suffix}"))).unwrap().len();
    let before = (size(""), size("-wal"));
    assert!(before.0 >= 4 << 20 && before.1 >= 4 << 20, "{before:?}");
    drop(journal);
    let journal = loop {
        match Journal::open(dir.path()) {
            Err(Error::InUse(_)) => std::thread::yield_now(),
            opened => break opened.unwrap(),
        }
    };
    assert_eq!((size(""), size("-wal")), before);
    assert_eq!(journal.open_targets(at(1)).await.unwrap().len(), 1);
}

#[test]
fn a_directory_that_cannot_be_made_is_named() {
    let error = Journal::open(Path::new("/proc/no/such")).err().unwrap();
    assert!(error.to_string().starts_with("/proc/no/such: "), "{error}");
}

/// A pause outlives the process, keeps its time whatever the wall clock does, and is over when it is over.
#[tokio::test]
async fn a_pause_holds_for_its_time_and_one_without_an_end_until_resumed() {
    let (dir, journal) = open();
    let id = opened(&journal, "a.service", at(0)).await;
    let refused = async |now: Moment| {
        let request = request(id, &[], now);
        match journal.reserve(request).await.unwrap() {
            Admission::Refused(refusal) => Some((refusal.reason, refusal.wait.as_secs(), refusal.detail)),
            Admission::Admitted(step) => {
                journal.release(id, step).await.unwrap();
                None
            }
        }
    };
    let pause = async |lasts: Option<u64>, now| {
        let lasts = lasts.map(Duration::from_secs);
        journal.pause("deploy".to_owned(), "root".to_owned(), lasts, now).await.unwrap();
    };
    pause(Some(3600), at(10)).await;
    let text = "paused by root: deploy".to_owned();
    assert_eq!(refused(at(10)).await, Some((Reason::Paused, 3600, text.clone())));
    // A day forward by the wall clock is ten minutes by the clock that counts.
    let ahead = Moment { wall_ms: 86_400_000, ..at(610) };
    assert_eq!(refused(ahead).await, Some((Reason::Paused, 3000, text)));
    assert_eq!(refused(at(3610)).await, None);
    pause(None, at(4000)).await;
    assert_eq!(refused(at(9_000_000)).await.unwrap().0, Reason::Paused);
    let halts = reader(&dir).halts(&at(9_000_000)).unwrap();
    assert_eq!((halts.len(), halts[0].what, halts[0].left), (1, HaltKind::Pause, None));
    assert_eq!(journal.resume("root".to_owned(), at(9_000_001)).await.unwrap(), [HaltKind::Pause]);
    assert_eq!(refused(at(9_000_001)).await, None);
    let commands: Vec<String> = reader(&dir)
        .commands(9)
        .unwrap()
        .into_iter()
        .map(|(_, author, what, _)| author + " " + &what)
        .collect();
    assert_eq!(commands, ["root resume", "root pause", "root pause"]);
}

fn shown(changes: &str) -> Vec<Shown> {
    vec![Shown { position: 0, plan: "restore".to_owned(), changes: Some(changes.to_owned()) }]
}

/// However long it is: what is kept to be read is cut, what it is told by is not.
#[tokio::test]
async fn an_approval_is_known_by_all_that_was_shown_and_can_be_read_later() {
    let (dir, journal) = open();
    let id = opened(&journal, "a.service", at(0)).await;
    let long = "line\n".repeat(10_000);
    journal.ask(id, shown(&format!("{long}1")), nobody(), at(10)).await.unwrap();
    let was = async |changes: String| journal.was_shown(id, shown(&changes).remove(0)).await.unwrap();
    assert!(was(format!("{long}1")).await);
    assert!(!was(format!("{long}2")).await);
    let moved = Shown { position: 1, ..shown(&format!("{long}1")).remove(0) };
    assert!(!journal.was_shown(id, moved).await.unwrap());
    let kept = reader(&dir).shown(id).unwrap().remove(0).changes.unwrap();
    assert!(kept.starts_with("line\nline\n") && kept.len() < 20_000, "{}", kept.len());
    journal.void_approval(id, "it changed".to_owned(), at(20)).await.unwrap();
    assert_eq!(journal.approval(id, at(20)).await.unwrap(), Approval::NotAsked);
    assert!(!was(format!("{long}1")).await && reader(&dir).shown(id).unwrap().is_empty());
}

/// Who began it is no label: an alert may have one of that name, and is taken up again all the same.
#[tokio::test]
async fn only_what_a_person_began_is_not_taken_up_again() {
    let (dir, journal) = open();
    let spoofed = Incoming {
        labels: [("triggered_by", "root")].into_iter().collect(),
        fingerprint: "ab".to_owned(),
        ..alert("a.service")
    };
    let ordered = Incoming { triggered_by: Some("uid 7".to_owned()), ..alert("b.service") };
    journal.accept(vec![spoofed, ordered], 10, at(0)).await.unwrap();
    for id in journal.open_targets(at(0)).await.unwrap().into_keys() {
        journal.end(id, End::new(Outcome::Limited, "limited", "", None), nobody(), at(1)).await.unwrap();
    }
    let (rules, outcomes) = (vec!["rule".to_owned()], vec![Outcome::Limited]);
    let held = journal.unresolved(rules, outcomes, Duration::from_secs(60), at(2)).await.unwrap();
    let names: Vec<&str> = held.iter().map(|held| held.record.target.as_str()).collect();
    assert_eq!(names, ["a.service"]);
    let mut by: Vec<_> =
        reader(&dir).recent(None, None, 9).unwrap().into_iter().map(|record| record.triggered_by).collect();
    by.sort();
    assert_eq!(by, [None, Some("uid 7".to_owned())]);
}

#[tokio::test]
async fn an_approval_is_taken_once_and_in_time() {
    let (_dir, journal) = open();
    let within = Duration::from_secs(1800);
    let decide = async |id, verdict, second| {
        journal.decide(id, verdict, "uid 7".to_owned(), within, at(second)).await.unwrap()
    };
    let id = opened(&journal, "a.service", at(0)).await;
    assert_eq!(decide(id, Verdict::Approve, 1).await, Decided::NotAwaiting, "nobody asked");
    assert_eq!(decide(99, Verdict::Approve, 1).await, Decided::Unknown);
    assert_eq!(journal.approval(id, at(1)).await.unwrap(), Approval::NotAsked);
    let letter = Letter { receiver: "r".to_owned(), body: "please".to_owned(), urgent: false };
    let write = || -> Write {
        let letter = letter.clone();
        Box::new(move |_, _| vec![letter])
    };
    journal.ask(id, shown("1"), write(), at(10)).await.unwrap();
    // Asked again after a crash: the time goes on, and nobody is told twice.
    journal.ask(id, shown("2"), write(), at(20)).await.unwrap();
    assert_eq!(journal.approval(id, at(30)).await.unwrap(), Approval::Asked(Duration::from_secs(20)));
    let waiting = journal.next_letter("r".to_owned(), at(30)).await.unwrap().unwrap();
    journal.letter_done(waiting.id).await.unwrap();
    assert!(journal.next_letter("r".to_owned(), at(30)).await.unwrap().is_none());
    assert_eq!(decide(id, Verdict::Approve, 40).await, Decided::Taken);
    assert_eq!(journal.approval(id, at(50)).await.unwrap(), Approval::Given(Duration::from_secs(10)));
    assert_eq!(decide(id, Verdict::Reject, 50).await, Decided::NotAwaiting, "it is decided");
    let late = opened(&journal, "b.service", at(0)).await;
    journal.ask(late, Vec::new(), nobody(), at(0)).await.unwrap();
    assert_eq!(decide(late, Verdict::Approve, 1800).await, Decided::Expired);
    assert_eq!(decide(late, Verdict::Reject, 1799).await, Decided::Taken);
    assert_eq!(journal.approval(late, at(1800)).await.unwrap(), Approval::Rejected("uid 7".to_owned()));
}

/// A file of the first shape becomes one of this, with what is in it.
/// However many alerts there are that nothing can be done about.
#[tokio::test]
async fn what_is_held_is_found_among_thousands_that_are_not() {
    let (dir, journal) = open();
    let seed = opened(&journal, "fake.service", at(1)).await;
    journal.end(seed, end(Outcome::NotNeeded, "already_well"), nobody(), at(1)).await.unwrap();
    let held = opened(&journal, "true.service", at(1)).await;
    journal.end(held, end(Outcome::Limited, "limited"), nobody(), at(1)).await.unwrap();
    for (rule, outcome, sign) in
        [("observes", "reported", -1), ("rule", "planned", -1), ("rule", "not_needed", 1)]
    {
        second_connection(&dir)
            .execute(
                "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000)
                 INSERT INTO remediation (id, rule, kind, target, phase, fingerprint, labels, received, received_wall_ms,
                   last_seen_wall_ms, seen_ms, outcome, reason, ended, ended_wall_ms)
                 SELECT ?3 * (i * 10 + length(?2)), ?1, kind, ?1 || ?2 || i, phase, '', labels, received, received_wall_ms,
                   last_seen_wall_ms, seen_ms, ?2, reason, ended, ended_wall_ms FROM remediation, n WHERE id = ?4",
                params![rule, outcome, sign, seed],
            )
            .unwrap();
    }
    let found = async |outcomes: &[Outcome]| {
        let (rules, six_hours) = (vec!["rule".to_owned()], Duration::from_secs(6 * 3600));
        let found = journal.unresolved(rules, outcomes.to_vec(), six_hours, at(2)).await.unwrap();
        found.into_iter().map(|held| held.record.id).collect::<Vec<_>>()
    };
    assert_eq!(found(&[Outcome::Limited, Outcome::Blocked]).await, [held]);
    let with_well = found(&[Outcome::Limited, Outcome::NotNeeded]).await;
    assert_eq!((with_well.len(), with_well[0]), (1000, held));
}

/// Or whoever makes noise would keep a question to people from being asked.
#[tokio::test]
async fn what_needs_nobody_takes_no_room_from_what_does() {
    let (_dir, journal) = open();
    let post = async |count: usize, urgent| {
        let letter = Letter { receiver: "r".to_owned(), body: "x".to_owned(), urgent };
        journal.post(vec![letter; count], at(0)).await.unwrap()
    };
    assert_eq!(post(500, false).await, 440);
    assert_eq!(post(30, true).await, 0);
    assert_eq!(post(1, false).await, 1);
    assert_eq!(post(20, true).await, 10);
}

#[tokio::test]
async fn an_older_file_is_brought_up_to_this_version() {
    let dir = directory();
    let db = second_connection(&dir);
    db.execute_batch(super::schema::TABLES).unwrap();
    db.execute_batch(
        "INSERT INTO remediation (rule, kind, target, phase, fingerprint, labels, received, received_wall_ms,
           last_seen_wall_ms) VALUES ('rule', 'unit', 'a.service', 'received', '', '{}',
           '{\"wall_ms\": 0, \"boot_ms\": 0, \"boot_id\": \"boot\"}', 0, 0)",
    )
    .unwrap();
    // Who triggered it was a label before it had a column of its own; of an alert it is one.
    for (target, fingerprint) in [("b.service", ""), ("c.service", "ab")] {
        db.execute(
            "INSERT INTO remediation (rule, kind, target, phase, fingerprint, labels, received, received_wall_ms,
               last_seen_wall_ms) SELECT rule, kind, ?1, phase, ?2, '{\"triggered_by\": \"root\"}', received,
               received_wall_ms, last_seen_wall_ms FROM remediation WHERE target = 'a.service'",
            [target, fingerprint],
        )
        .unwrap();
    }
    db.pragma_update(None, "user_version", 1).unwrap();
    drop(db);
    let journal = Journal::open(dir.path()).unwrap();
    let open = journal.open_targets(at(1)).await.unwrap();
    let targets: Vec<String> = open.into_values().map(|one| one.target).collect();
    assert_eq!(targets, ["unit a.service", "unit b.service", "unit c.service"]);
    let records = reader(&dir).recent(None, None, 9).unwrap();
    let by: Vec<_> = records.iter().map(|one| one.triggered_by.as_deref()).collect();
    assert_eq!(by, [None, Some("root"), None]);
    assert!(reader(&dir).halts(&at(1)).unwrap().is_empty());
}
