//! The file is damaged, the directory cannot be written, the disk is full: what was started is never forgotten for
//! that, and what was accepted neither, as far as anything can be read.

use std::{
    fs::{self, OpenOptions},
    io::{Seek, SeekFrom, Write as _},
    os::unix::fs::FileExt as _,
    path::PathBuf,
};

use rusqlite::ffi;

use super::*;
use crate::{
    clock::Clock,
    journal::{Places, schema::with_suffix},
};

const LIMITS: [&str; 3] = ["1/15m", "3/6h", "5/24h"];

fn clock(second: i64) -> Clock {
    Clock::new(move || at(second))
}

/// Opens it as the daemon does, as soon as the one before has let go of it.
pub(super) fn open_at(places: &Places, second: i64) -> Result<Journal, Error> {
    loop {
        match Journal::open_in(places.clone(), clock(second)) {
            Err(Error::InUse(_)) => std::thread::yield_now(),
            opened => return opened,
        }
    }
}

pub(super) fn places(dir: &TempDir) -> Places {
    Places { dir: dir.path().join("state"), fallback: Some(dir.path().join("run")) }
}

fn file(dir: &Path) -> PathBuf {
    dir.join(FILE)
}

fn aside(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> =
        names.filter(|name| name.contains(".corrupt-") && !name.ends_with("-wal")).collect();
    names.sort();
    names
}

/// How long a start has to wait, in seconds.
async fn wait(journal: &Journal, id: i64, now: Moment) -> u64 {
    match journal.reserve(request(id, &LIMITS, now)).await.unwrap() {
        Admission::Admitted(step) => {
            journal.release(id, step).await.unwrap();
            0
        }
        Admission::Refused(refusal) => refusal.wait.as_secs(),
    }
}

/// The disk answers so once.
async fn fails_with(journal: &Journal, code: i32) {
    let error = move || rusqlite::Error::SqliteFailure(ffi::Error::new(code), None);
    let answer: Result<(), Error> = journal.change(move |_| Err(error())).await;
    assert!(matches!(answer, Err(Error::Sqlite(_))));
}

/// A state with a start in it, all of it in the database and nothing in the log.
async fn well(places: &Places) {
    let journal = open_at(places, 0).unwrap();
    let id = opened(&journal, "a.service", at(0)).await;
    act(&journal, id, Outcome::Succeeded, at(0)).await;
    drop(journal);
    drop(open_at(places, 0).unwrap());
    let db = loop {
        let db = rusqlite::Connection::open(file(&places.dir)).unwrap();
        let done: i64 = db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0)).unwrap();
        if done == 0 {
            break db;
        }
    };
    drop(db);
}

fn overwrite(path: &Path, offset: u64, bytes: &[u8]) {
    OpenOptions::new().write(true).open(path).unwrap().write_all_at(bytes, offset).unwrap();
}

type Damage = fn(&Path);

const DAMAGES: [(&str, Damage); 7] = [
    ("empty", |path| drop(fs::File::create(path).unwrap())),
    ("cut in the middle of a page", |path| {
        OpenOptions::new().write(true).open(path).unwrap().set_len(10_000).unwrap();
    }),
    ("another header", |path| overwrite(path, 0, b"not a database at all")),
    ("noise", |path| fs::write(path, [0xa5; 100_000]).unwrap()),
    ("pages of noise", |path| overwrite(path, 4096, &[0xa5; 20 * 4096])),
    ("pages of nothing", |path| overwrite(path, 4096, &[0; 20 * 4096])),
    ("somebody else's", |path| {
        fs::remove_file(path).unwrap();
        let db = rusqlite::Connection::open(path).unwrap();
        db.execute_batch("CREATE TABLE songs (title TEXT); PRAGMA user_version = 1").unwrap();
    }),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_file_is_set_aside_and_every_limit_counts_as_used_up() {
    for (name, damage) in DAMAGES {
        let dir = directory();
        let places = places(&dir);
        well(&places).await;
        damage(&file(&places.dir));
        let damaged = fs::read(file(&places.dir)).unwrap();
        let journal = open_at(&places, 1000).unwrap();
        let standing = journal.standing().borrow().clone();
        assert!(standing.damaged.is_some() && standing.degraded.is_none(), "{name}: {standing:?}");
        let [kept] = &aside(&places.dir)[..] else { panic!("{name}: {:?}", aside(&places.dir)) };
        assert_eq!(fs::read(places.dir.join(kept)).unwrap(), damaged, "{name}: evidence");
        let id = opened(&journal, "a.service", at(1000)).await;
        assert_eq!(wait(&journal, id, at(1000)).await, 86_400, "{name}");
        // The next start finds the new file well, and remembers.
        drop(journal);
        let journal = open_at(&places, 2000).unwrap();
        assert_eq!(journal.standing().borrow().damaged, None, "{name}");
        assert_eq!(wait(&journal, id, at(1000 + 86_399)).await, 1, "{name}");
        assert_eq!(wait(&journal, id, at(1000 + 86_400)).await, 0, "{name}");
        let loss = journal.reader().unwrap().loss().unwrap().unwrap();
        assert_eq!((loss.wall_ms, Some(loss.why)), (1_000_000, standing.damaged), "{name}");
    }
}

/// It comes to light while it is in use: whoever asked is told, and the next finds a new one.
#[tokio::test(flavor = "multi_thread")]
async fn damage_that_is_found_later_is_met_in_the_same_way() {
    let dir = directory();
    let places = places(&dir);
    let journal = open_at(&places, 10).unwrap();
    let mut standing = journal.standing();
    for round in 1..=5 {
        fails_with(&journal, ffi::SQLITE_CORRUPT).await;
        standing.changed().await.unwrap();
        let id = opened(&journal, "a.service", at(20)).await;
        assert_eq!(wait(&journal, id, at(20)).await, 86_390);
        assert_eq!(aside(&places.dir).len(), round.min(3));
    }
}

/// The process dies between setting the old file aside and making the new one.
#[tokio::test]
async fn a_death_while_it_is_replaced_forgets_nothing() {
    let dir = directory();
    let places = places(&dir);
    well(&places).await;
    let path = file(&places.dir);
    fs::rename(&path, with_suffix(&path, ".corrupt-20260101T000000000Z")).unwrap();
    let journal = open_at(&places, 1000).unwrap();
    let id = opened(&journal, "a.service", at(1000)).await;
    assert_eq!(wait(&journal, id, at(1000)).await, 86_400);
    // Where nothing is, nothing was lost: a first start.
    let places = Places::only(&dir.path().join("other"));
    let journal = open_at(&places, 1000).unwrap();
    let id = opened(&journal, "a.service", at(1000)).await;
    assert_eq!(wait(&journal, id, at(1000)).await, 0);
}

/// What is known goes along into the fallback and comes back, with what happened there.
#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_fails_loses_nothing() {
    let dir = directory();
    let places = places(&dir);
    let journal = open_at(&places, 0).unwrap();
    let mut standing = journal.standing();
    let cured = opened(&journal, "a.service", at(0)).await;
    act(&journal, cured, Outcome::Succeeded, at(0)).await;
    let open = opened(&journal, "b.service", at(0)).await;
    journal.pause("deploy".to_owned(), "root".to_owned(), None, at(0)).await.unwrap();
    fails_with(&journal, ffi::SQLITE_READONLY).await;
    standing.changed().await.unwrap();
    let now = standing.borrow_and_update().clone();
    assert!(now.degraded.is_some() && now.damaged.is_none(), "{now:?}");
    assert_eq!(now.path, file(places.fallback.as_deref().unwrap()));
    assert_eq!(places.in_use(), places.fallback.as_deref().unwrap());
    // In the fallback: known, counted, paused; one ends, one begins.
    assert_eq!(journal.open_targets(at(60)).await.unwrap().into_keys().collect::<Vec<_>>(), [open]);
    assert!(matches!(
        journal.reserve(request(open, &LIMITS, at(60))).await.unwrap(),
        Admission::Refused(refusal) if refusal.reason == Reason::Paused
    ));
    journal.resume("root".to_owned(), at(60)).await.unwrap();
    assert_eq!(wait(&journal, open, at(60)).await, 840, "the start that was counted before");
    act(&journal, open, Outcome::Ineffective, at(900)).await;
    let new = opened(&journal, "c.service", at(900)).await;
    assert!(new > open);
    drop(journal);
    let journal = open_at(&places, 1000).unwrap();
    assert_eq!(journal.standing().borrow().path, file(&places.dir));
    assert_eq!(places.in_use(), places.dir);
    let reader = journal.reader().unwrap();
    let outcomes: Vec<_> =
        reader.recent(None, None, 9).unwrap().iter().map(|one| (one.id, one.outcome)).collect();
    let expected = [(new, None), (open, Some(Outcome::Ineffective)), (cured, Some(Outcome::Succeeded))];
    assert_eq!(outcomes, expected);
    assert_eq!(reader.steps(open).unwrap().len(), 1);
    assert!(reader.halts(&at(1000)).unwrap().is_empty(), "it was resumed there");
    assert_eq!(reader.budget(&Scope::Host, &["9/24h".parse().unwrap()]).unwrap().starts.len(), 2);
    assert!(reader.loss().unwrap().is_none());
    let more = opened(&journal, "d.service", at(1001)).await;
    assert!(more > new);
}

/// Also what stands in for it may be damaged; what it stands in for is not touched for that.
#[tokio::test(flavor = "multi_thread")]
async fn a_fallback_that_is_damaged_in_use_is_set_aside_as_well() {
    let dir = directory();
    let places = places(&dir);
    let journal = open_at(&places, 10).unwrap();
    let kept = opened(&journal, "a.service", at(10)).await;
    fails_with(&journal, ffi::SQLITE_IOERR).await;
    fails_with(&journal, ffi::SQLITE_CORRUPT).await;
    let id = opened(&journal, "b.service", at(20)).await;
    assert_eq!(wait(&journal, id, at(20)).await, 86_390);
    let standing = journal.standing().borrow().clone();
    assert!(standing.degraded.is_some() && standing.damaged.is_some(), "{standing:?}");
    assert_eq!((aside(&places.dir).len(), aside(places.fallback.as_deref().unwrap()).len()), (0, 1));
    assert_eq!(Reader::open(&places.dir).unwrap().recent(None, None, 9).unwrap()[0].id, kept);
}

/// The ballast is what a full disk gets first.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_gets_the_ballast_before_anything_moves() {
    let dir = directory();
    let places = places(&dir);
    let journal = open_at(&places, 0).unwrap();
    let ballast = places.dir.join("ballast");
    journal.retain(at(0)).await.unwrap();
    assert_eq!(fs::metadata(&ballast).unwrap().len(), 5 << 20);
    fails_with(&journal, ffi::SQLITE_FULL).await;
    opened(&journal, "a.service", at(0)).await;
    assert!(!ballast.exists());
    assert_eq!(journal.standing().borrow().degraded, None);
    // There is room again.
    journal.retain(at(1)).await.unwrap();
    assert!(ballast.exists());
    fails_with(&journal, ffi::SQLITE_FULL).await;
    fails_with(&journal, ffi::SQLITE_FULL).await;
    opened(&journal, "b.service", at(2)).await;
    assert!(journal.standing().borrow().degraded.is_some());
    assert_eq!(journal.open_targets(at(3)).await.unwrap().len(), 2);
}

/// A first start ever in a place that cannot be made: nothing was lost, and it goes where it belongs later.
#[tokio::test(flavor = "multi_thread")]
async fn a_first_start_that_cannot_write_begins_in_the_fallback() {
    let dir = directory();
    // No folder can be made here, and none is there.
    let disk = dir.path().join("disk");
    std::os::unix::fs::symlink("/proc/self", &disk).unwrap();
    let places = Places { dir: disk.join("state"), ..places(&dir) };
    for second in [0, 10] {
        let journal = open_at(&places, second).unwrap();
        assert!(journal.standing().borrow().degraded.is_some());
        if second == 0 {
            let id = opened(&journal, "a.service", at(0)).await;
            act(&journal, id, Outcome::Succeeded, at(0)).await;
            opened(&journal, "b.service", at(0)).await;
        }
    }
    fs::remove_file(&disk).unwrap();
    fs::create_dir(&disk).unwrap();
    let journal = open_at(&places, 20).unwrap();
    assert_eq!(journal.standing().borrow().degraded, None);
    let open = *journal.open_targets(at(20)).await.unwrap().keys().next().unwrap();
    // The start of a moment ago, and no loss: five minutes and not a day.
    journal.reserve(request(open, &LIMITS, at(20))).await.unwrap();
    assert!(journal.reader().unwrap().loss().unwrap().is_none());
    assert_eq!(journal.reader().unwrap().recent(None, None, 9).unwrap().len(), 2);
}

/// A state that can be neither written nor read: nobody knows what was started.
#[tokio::test(flavor = "multi_thread")]
async fn an_unreadable_state_counts_as_used_up() {
    let dir = directory();
    let places = places(&dir);
    well(&places).await;
    let (path, away) = (file(&places.dir), dir.path().join("away"));
    fs::rename(&path, &away).unwrap();
    fs::create_dir(&path).unwrap();
    let journal = open_at(&places, 1000).unwrap();
    assert!(journal.standing().borrow().degraded.is_some());
    let id = opened(&journal, "b.service", at(1000)).await;
    assert_eq!(wait(&journal, id, at(1000)).await, 86_400);
    drop(journal);
    // It is there again, with numbers that the fallback has given anew: that one is the truth now.
    fs::remove_dir(&path).unwrap();
    fs::rename(&away, &path).unwrap();
    let journal = open_at(&places, 1100).unwrap();
    assert_eq!(journal.standing().borrow().degraded, None);
    assert_eq!(wait(&journal, id, at(1100)).await, 86_300);
    let names =
        fs::read_dir(&places.dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert!(names.into_iter().any(|name| name.contains(".superseded-")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_fallback_counts_as_used_up_and_harms_nothing_else() {
    let dir = directory();
    let places = places(&dir);
    let journal = open_at(&places, 0).unwrap();
    let kept = opened(&journal, "a.service", at(0)).await;
    fails_with(&journal, ffi::SQLITE_IOERR).await;
    opened(&journal, "b.service", at(0)).await;
    drop(journal);
    let fallback = file(places.fallback.as_deref().unwrap());
    drop(open_at(&Places::only(places.fallback.as_deref().unwrap()), 0).unwrap());
    let mut damaged = OpenOptions::new().write(true).open(&fallback).unwrap();
    damaged.seek(SeekFrom::Start(0)).unwrap();
    damaged.write_all(&[0xa5; 50_000]).unwrap();
    let journal = open_at(&places, 100).unwrap();
    assert_eq!(journal.open_targets(at(100)).await.unwrap().into_keys().collect::<Vec<_>>(), [kept]);
    assert_eq!(wait(&journal, kept, at(100)).await, 86_400);
    assert!(!fallback.exists());
}

#[tokio::test]
async fn where_neither_can_be_written_both_are_named() {
    let dir = directory();
    fs::write(dir.path().join("file"), "").unwrap();
    let fallback = Some(dir.path().join("file/run"));
    let places = Places { dir: "/proc/self/state".into(), fallback };
    let error = open_at(&places, 0).err().unwrap().to_string();
    assert!(
        error.starts_with("/proc/self/state: ")
            && error.contains("fallback: ")
            && error.contains("file/run: "),
        "{error}"
    );
    // A mistake of whoever set it up is told, and not worked around.
    let places = Places { dir: dir.path().join("file/state"), fallback: Some(dir.path().join("run")) };
    assert!(matches!(open_at(&places, 0), Err(Error::Io { .. })));
    assert!(!dir.path().join("run").exists());
}
