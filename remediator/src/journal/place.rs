//! Where the state lies: in its directory, or in the fallback while that one cannot be written. And what becomes of a
//! file that cannot be read any more. Not here: what is in it.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use rusqlite::{Connection, ErrorCode};
use rustix::fs::{FlockOperation, flock, statvfs};

use super::{Error, FILE, bound, carry, schema};
use crate::clock::Moment;

/// A file beside the database that is given up when there is no room left for the database itself.
const BALLAST: &str = "ballast";
/// Its size in bytes: a little more than database and log are grown by.
const BALLAST_BYTES: usize = 5 << 20;
/// The ballast takes no room from a disk that has less left than this, in bytes.
const ROOM_MIN: u64 = 16 << 20;
/// Files set aside that are kept.
const ASIDE_MAX: usize = 3;

/// The two directories that the state may lie in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// Where it belongs.
    pub dir: PathBuf,
    /// Where it goes while that cannot be written.
    pub fallback: Option<PathBuf>,
}

/// Where the state lies now, and what happened to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// The database.
    pub path: PathBuf,
    /// Why it is the fallback, if it is.
    pub degraded: Option<String>,
    /// What was found damaged since the process began.
    pub damaged: Option<String>,
}

/// What is known of the directory before it is opened.
#[derive(Debug, Clone, Copy)]
pub(super) enum Known<'a> {
    /// Nothing: it is tried.
    Nothing,
    /// Its database was found damaged while it was in use.
    Damaged(&'a str),
    /// It could not be written just now.
    Failing(&'a str),
    /// The same, and the database that it fell back to was found damaged while it was in use.
    FallbackDamaged(&'a str),
}

/// An error of the database that another try of the same will not cure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    /// What is in the file is not what was written.
    Damaged,
    /// The disk is full.
    Full,
    /// The disk is read-only or broken.
    Failing,
}

impl Trouble {
    pub(super) fn of(error: &rusqlite::Error) -> Option<Self> {
        match error.sqlite_error_code()? {
            ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => Some(Self::Damaged),
            ErrorCode::DiskFull => Some(Self::Full),
            ErrorCode::ReadOnly | ErrorCode::SystemIoFailure | ErrorCode::CannotOpen => Some(Self::Failing),
            _ => None,
        }
    }
}

impl Places {
    /// Only this directory.
    pub fn only(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), fallback: None }
    }

    /// The directory whose database is in use: the fallback's, where there is one. It is removed when its content is
    /// back where it belongs.
    pub fn in_use(&self) -> &Path {
        match &self.fallback {
            Some(fallback) if fallback.join(FILE).exists() => fallback,
            _ => &self.dir,
        }
    }
}

/// Keeps every other writer out of both directories.
#[derive(Default)]
pub(super) struct Locks {
    main: Option<File>,
    fallback: Option<File>,
}

/// Opens the state where it belongs, or where it falls back to.
pub(super) fn open(
    places: &Places,
    locks: &mut Locks,
    known: Known<'_>,
    now: &Moment,
) -> Result<(Connection, Standing), Error> {
    let path = places.dir.join(FILE);
    let failed = match known {
        Known::Failing(why) | Known::FallbackDamaged(why) => Error::Failing(why.to_owned()),
        Known::Nothing | Known::Damaged(_) => match open_main(places, locks, known, now) {
            Ok((connection, damaged)) => {
                return Ok((connection, Standing { path, degraded: None, damaged }));
            }
            Err(error) if !error.is_of_the_disk() => return Err(error),
            Err(error) => error,
        },
    };
    let Some(fallback) = &places.fallback else {
        // There is nowhere else: what is there is used, for as much as it still does.
        return match known {
            Known::Failing(_) => {
                let connection = schema::open(&path)?;
                bound::set(&connection, bound::IN_PLACE)?;
                Ok((connection, Standing { path, degraded: None, damaged: None }))
            }
            _ => Err(failed),
        };
    };
    let why = failed.to_string();
    let suspect = match known {
        Known::FallbackDamaged(why) => Some(why),
        _ => None,
    };
    match open_fallback(&path, fallback, locks, suspect, &why, now) {
        Ok((connection, damaged)) => {
            Ok((connection, Standing { path: fallback.join(FILE), degraded: Some(why), damaged }))
        }
        Err(error @ (Error::InUse(_) | Error::Newer { .. })) => Err(error),
        Err(error) => Err(Error::Nowhere { main: Box::new(failed), fallback: Box::new(error) }),
    }
}

/// The state where it belongs, with what the fallback holds put back into it; and what was found damaged.
fn open_main(
    places: &Places,
    locks: &mut Locks,
    known: Known<'_>,
    now: &Moment,
) -> Result<(Connection, Option<String>), Error> {
    if locks.main.is_none() {
        locks.main = Some(lock(&places.dir)?);
    }
    let path = places.dir.join(FILE);
    let fallback = places.fallback.as_ref().map(|dir| dir.join(FILE)).filter(|path| path.exists());
    if let Some(fallback) = &fallback
        && carry::is_blind(fallback)
        && path.exists()
    {
        // Nobody could read it when the fallback was begun: what that one knows is newer.
        set_aside(&path, "superseded")?;
    }
    let suspect = match known {
        Known::Damaged(why) => Some(why),
        _ => None,
    };
    let (mut connection, damaged) = with_ballast(&places.dir, || open_or_begin(&path, suspect, now))?;
    if let Err(error) = with_ballast(&places.dir, || schema::make_room(&path, &connection)) {
        tracing::warn!(%error, "no room can be set apart for the state; it goes on with what it has");
    }
    if let Some(fallback) = &fallback {
        // Opened once by itself, it is brought to this version.
        match schema::open(fallback).map(drop).and_then(|()| carry::back(&mut connection, fallback)) {
            Ok(()) => tracing::warn!(from = %fallback.display(), "the state is back where it belongs"),
            Err(error) => {
                let why = format!("the fallback {} cannot be read: {error}", fallback.display());
                tracing::error!(
                    why,
                    "what was started meanwhile is not known: every limit counts as used up"
                );
                schema::note_loss(&connection, &why, now)?;
            }
        }
        remove(fallback)?;
    }
    // Not before what the fallback holds is in it.
    bound::set(&connection, bound::IN_PLACE)?;
    Ok((connection, damaged))
}

/// Opens the database, or begins a new one where there is none or it is damaged.
fn open_or_begin(
    path: &Path,
    suspect: Option<&str>,
    now: &Moment,
) -> Result<(Connection, Option<String>), Error> {
    let there = path.try_exists().map_err(|source| Error::Io { path: path.to_owned(), source })?;
    let why = if !there {
        // The process died after it had set one aside and before there was a new one.
        has_damaged(path).then(|| "an earlier one was set aside".to_owned())
    } else if let Some(why) = suspect {
        Some(why.to_owned())
    } else {
        match schema::open(path) {
            Ok(connection) => return Ok((connection, None)),
            Err(error) => Some(error.damage().ok_or(error)?),
        }
    };
    if let Some(why) = &why {
        if there {
            let aside = set_aside(path, "corrupt")?;
            tracing::error!(why, kept_as = %aside.display(), "THE STATE IS DAMAGED and was set aside");
        }
        tracing::error!(
            "what was started before is not known: every limit counts as used up until its window has passed"
        );
    }
    schema::create(path, why.as_deref().map(|why| (why, now)))?;
    Ok((schema::open(path)?, why))
}

/// The fallback: as it was left, or begun with what can be read of the state it stands for.
fn open_fallback(
    main: &Path,
    dir: &Path,
    locks: &mut Locks,
    suspect: Option<&str>,
    why: &str,
    now: &Moment,
) -> Result<(Connection, Option<String>), Error> {
    if locks.fallback.is_none() {
        locks.fallback = Some(lock(dir)?);
    }
    let path = dir.join(FILE);
    tracing::error!(why, fallback = %path.display(), "the state cannot be written where it belongs");
    let mut damaged = None;
    if path.exists() {
        match suspect.map_or_else(|| schema::open(&path), |why| Err(Error::Damaged(why.to_owned()))) {
            Ok(connection) => {
                bound::set(&connection, bound::IN_FALLBACK)?;
                return Ok((connection, None));
            }
            Err(error) => damaged = Some(error.damage().ok_or(error)?),
        }
        set_aside(&path, "corrupt")?;
    }
    begin_fallback(main, &path, now)?;
    let connection = schema::open(&path)?;
    bound::set(&connection, bound::IN_FALLBACK)?;
    // Of an earlier one that was set aside nobody knows what it had counted.
    if has_damaged(&path) {
        let why = damaged.as_deref().unwrap_or("an earlier fallback was set aside");
        tracing::error!(why, "what was started meanwhile is not known: every limit counts as used up");
        schema::note_loss(&connection, why, now)?;
    }
    Ok((connection, damaged))
}

fn begin_fallback(main: &Path, path: &Path, now: &Moment) -> Result<(), Error> {
    // Where there never was a state, nothing is lost.
    if matches!(main.try_exists(), Ok(false)) && !has_damaged(main) {
        return schema::create(path, None);
    }
    let draft = schema::with_suffix(path, ".copy");
    remove(&draft)?;
    schema::create(&draft, None)?;
    match carry::away(main, &draft) {
        Ok(()) => {}
        Err(error) => {
            tracing::error!(%error, "nothing of it can be read either: every limit counts as used up");
            remove(&draft)?;
            schema::create(&draft, Some((&format!("it could not be read: {error}"), now)))?;
            carry::mark_blind(&draft)?;
        }
    }
    fs::rename(&draft, path).map_err(|source| Error::Io { path: path.to_owned(), source })
}

/// Tries again without the ballast where the disk is full.
fn with_ballast<T>(dir: &Path, act: impl Fn() -> Result<T, Error>) -> Result<T, Error> {
    match act() {
        Err(error) if error.is_lack_of_room() && give_up_ballast(dir) => act(),
        result => result,
    }
}

/// Gives the room of the ballast to the database; whether there was one.
pub(super) fn give_up_ballast(dir: &Path) -> bool {
    let given_up = fs::remove_file(dir.join(BALLAST)).is_ok();
    if given_up {
        tracing::warn!(dir = %dir.display(), "the disk of the state is full: its reserve is used up");
    }
    given_up
}

/// Lays the ballast, as long as the disk has plenty. Without it everything goes on. Not at the opening: nobody waits
/// for it.
pub(super) fn keep_ballast(dir: &Path) {
    let path = dir.join(BALLAST);
    let whole = |found: &fs::Metadata| usize::try_from(found.len()) == Ok(BALLAST_BYTES);
    if fs::metadata(&path).as_ref().is_ok_and(whole) || !has_room(dir) {
        return;
    }
    if let Err(error) = lay(&path) {
        drop(fs::remove_file(&path));
        tracing::debug!(%error, "no reserve could be laid beside the state");
    }
}

/// Whether the disk has plenty left.
pub(super) fn has_room(dir: &Path) -> bool {
    statvfs(dir).is_ok_and(|found| found.f_bavail.saturating_mul(found.f_frsize) >= ROOM_MIN)
}

fn lay(path: &Path) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    // Written and not only announced: some filesystems give nothing for a hole, and nothing for zeros.
    file.write_all(&vec![0x5a; BALLAST_BYTES])?;
    file.sync_all()
}

/// Makes the directory and keeps other writers out.
fn lock(dir: &Path) -> Result<File, Error> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::Io { path, source }
    };
    // What alerts say of a host is not for everybody on it.
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io(dir))?;
    let path = dir.join("lock");
    // One that is there is good enough where none can be made.
    let lock = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .or_else(|error| File::open(&path).map_err(|_| error))
        .map_err(io(&path))?;
    flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|_| Error::InUse(dir.to_owned()))?;
    Ok(lock)
}

/// Moves a database out of the way, with its log: somebody may want to look into it. Answers its new name.
fn set_aside(path: &Path, what: &str) -> Result<PathBuf, Error> {
    let aside =
        schema::with_suffix(path, &format!(".{what}-{}", Timestamp::now().strftime("%Y%m%dT%H%M%S%3fZ")));
    let io = |source| Error::Io { path: path.to_owned(), source };
    // The database first: dying in between, the next start finds none, and what is set aside.
    for suffix in ["", "-wal"] {
        match fs::rename(schema::with_suffix(path, suffix), schema::with_suffix(&aside, suffix)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            renamed => renamed.map_err(io)?,
        }
    }
    drop(fs::remove_file(schema::with_suffix(path, "-shm")));
    let earlier = aside_of(path);
    for old in earlier.iter().take(earlier.len().saturating_sub(ASIDE_MAX)) {
        remove(old)?;
    }
    Ok(aside)
}

/// What was set aside, oldest first.
fn aside_of(path: &Path) -> Vec<PathBuf> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return Vec::new();
    };
    let mut found: Vec<(String, PathBuf)> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let file = entry.file_name().into_string().ok()?;
            let (what, when) = file.strip_prefix(name)?.strip_prefix('.')?.split_once('-')?;
            let ours = matches!(what, "corrupt" | "superseded") && !when.ends_with("-wal");
            ours.then(|| (when.to_owned(), entry.path()))
        })
        .collect();
    found.sort();
    found.into_iter().map(|(_, path)| path).collect()
}

fn has_damaged(path: &Path) -> bool {
    aside_of(path).iter().any(|aside| aside.to_string_lossy().contains(".corrupt-"))
}

/// Removes a database with what belongs to it.
fn remove(path: &Path) -> Result<(), Error> {
    for suffix in ["-wal", "-shm", ""] {
        match fs::remove_file(schema::with_suffix(path, suffix)) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(Error::Io { path: path.to_owned(), source });
            }
            _ => {}
        }
    }
    Ok(())
}
