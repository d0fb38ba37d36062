//! One expectation, judged. Pure: the evidence and what was seen before are given.

use evenkeel_host::{docker::Health, resolve};

use super::{
    Expectation, Kind, Now, State, Verdict,
    memory::{Memory, Restarts},
};
use crate::evidence::{
    Answer, BuildCache, Container, Environment, Evidence, Filesystem, Name, Redis, Unit, Used, Variable,
};

/// Names told of one expectation; how many more there are is told too.
const MOST_NAMED: usize = 20;

/// Longest detail, in characters: names come from outside.
const LONGEST: usize = 200;

/// Filesystems that do not fill a disk, as in the shipped alerts.
const NO_DISKS: [&str; 6] = ["tmpfs", "ramfs", "overlay", "squashfs", "iso9660", "erofs"];

/// What was found, before it is compared.
#[derive(Debug)]
enum Found {
    /// A value; what it is about in particular; what could not be seen and might be worse.
    Value(f64, Vec<String>, Option<String>),
    /// Why nobody can tell, and whether that will be otherwise soon.
    Unknown(String, bool),
    /// There is nothing here that it could be about, in words.
    Nothing(&'static str),
}

/// The verdict; `None` where nobody asked for one and there is nothing here to judge.
pub(super) fn judge(
    expectation: &Expectation,
    evidence: &Evidence,
    memory: &Memory,
    now: Now,
) -> Option<Verdict> {
    let verdict = |state, value, details: Vec<String>, is_pending| Verdict {
        name: expectation.name.clone(),
        title: expectation.kind.title(),
        state,
        value,
        bound: expectation.bound,
        measure: expectation.kind.measure(),
        details: bounded(details),
        is_pending,
    };
    match find(expectation, evidence, memory, now) {
        Found::Nothing(_) if !expectation.is_asked_for => None,
        Found::Nothing(words) => Some(verdict(State::Unknown, None, vec![words.to_owned()], false)),
        Found::Unknown(words, is_pending) => Some(verdict(State::Unknown, None, vec![words], is_pending)),
        Found::Value(value, mut details, unseen) => {
            let is_met = expectation.bound.admits(value);
            let state = match &unseen {
                Some(_) if is_met => State::Unknown,
                _ if is_met => State::Met,
                _ => State::NotMet,
            };
            details.extend(unseen);
            Some(verdict(state, (state != State::Unknown).then_some(value), details, false))
        }
    }
}

fn find(expectation: &Expectation, evidence: &Evidence, memory: &Memory, now: Now) -> Found {
    let counts = |name: &str| !expectation.except.iter().any(|except| except == name);
    match &expectation.kind {
        Kind::FailedUnits => of(&evidence.units, |units| failed(units, counts)),
        Kind::LoopingUnits => of(&evidence.units, |units| {
            let looping = |unit: &&Unit| counts(&unit.unit.name) && memory.is_looping(unit);
            count(units.iter().filter(looping).map(|unit| {
                let restarts = unit.restarts.map_or(String::new(), |count| format!(", {count} restarts"));
                format!("{}: {}{restarts}", unit.unit.name, unit.unit.sub_state)
            }))
        }),
        Kind::Running(pattern) => of(&evidence.units, |units| {
            let meant: Vec<&Unit> = units.iter().filter(|unit| pattern.matches(&unit.unit.name)).collect();
            running(&meant)
        }),
        Kind::LoadState => of(&evidence.units, |units| load_state(units, counts)),
        Kind::UnhealthyContainers => of(&evidence.containers, |containers| {
            let sick = |one: &&Container| counts(&one.name) && one.health == Health::Unhealthy;
            count(containers.iter().filter(sick).map(|one| match one.is_probe_broken {
                true => format!("{}: its healthcheck cannot ever work", one.name),
                false => one.name.to_string(),
            }))
        }),
        Kind::Healthcheck => of(&evidence.containers, |containers| {
            let unchecked =
                |one: &&Container| counts(&one.name) && one.is_running && one.health == Health::None;
            count(containers.iter().filter(unchecked).map(|one| one.name.to_string()))
        }),
        Kind::RestartsPerDay => of(&evidence.containers, |containers| {
            let meant = containers.iter().filter(|one| counts(&one.name));
            restarts(meant, |one| memory.restarts(one, now), expectation.bound.value())
        }),
        Kind::LogRotation => of(&evidence.containers, |containers| {
            log_rotation(containers.iter().filter(|one| counts(&one.name) && one.is_up))
        }),
        Kind::DiskUsage => of(&evidence.filesystems, |all| fullest(all, |used| Some(used.bytes))),
        Kind::Inodes => of(&evidence.filesystems, |all| fullest(all, |used| used.inodes)),
        Kind::BuildCache => of(&evidence.build_cache, |size| match size {
            #[allow(clippy::cast_precision_loss, reason = "Prometheus has no other numbers")]
            BuildCache::Bytes(bytes) => Found::Value(*bytes as f64, Vec::new(), None),
            BuildCache::Pending => Found::Unknown("the engine has not answered yet".to_owned(), true),
            BuildCache::Unknown => Found::Unknown("the engine did not say".to_owned(), false),
        }),
        Kind::RedisReady => of(&evidence.redis, |all| {
            let unready = |one: &&Redis| counts(&one.name) && !one.is_ready;
            count(all.iter().filter(unready).map(|one| {
                let why = one.failure.map_or("not ready", |failure| failure.as_str());
                format!("{}: {why}", one.name)
            }))
        }),
        Kind::Resolve => of(&evidence.names, |all| {
            let odd = |one: &&Name| counts(&one.host) && one.is_as_expected == Some(false);
            count(all.iter().filter(odd).map(|one| format!("{}: {}", one.host, answer(one))))
        }),
        Kind::Environment => of(&evidence.environments, |all| {
            environments(all.iter().filter(|environment| counts(&environment.unit)))
        }),
        Kind::JournalSize => of(&evidence.journal, |bytes| {
            #[allow(clippy::cast_precision_loss, reason = "Prometheus has no other numbers")]
            Found::Value(*bytes as f64, Vec::new(), None)
        }),
    }
}

fn of<T: ?Sized>(answer: &Answer<T>, judge: impl FnOnce(&T) -> Found) -> Found {
    match answer {
        Answer::Seen(seen) => judge(seen),
        Answer::Absent(words) => Found::Nothing(words),
        Answer::Unknown(words) => Found::Unknown(words.clone(), false),
    }
}

/// As many as there are.
fn count(named: impl Iterator<Item = String>) -> Found {
    counted(named, None)
}

#[allow(clippy::cast_precision_loss, reason = "far fewer things than 2^53")]
fn counted(named: impl Iterator<Item = String>, unseen: Option<String>) -> Found {
    let mut details: Vec<String> = named.collect();
    details.sort_unstable();
    Found::Value(details.len() as f64, details, unseen)
}

fn failed(units: &[Unit], counts: impl Fn(&str) -> bool) -> Found {
    let failed = units.iter().filter(|unit| unit.unit.active_state == "failed" && counts(&unit.unit.name));
    count(failed.map(|unit| match unit.unit.load_state.as_str() {
        "loaded" => unit.unit.name.clone(),
        other => format!("{}: {other}", unit.unit.name),
    }))
}

/// How many run, and which do not: those that do not exist are no news where they may be missing.
#[allow(clippy::cast_precision_loss, reason = "far fewer units than 2^53")]
fn running(meant: &[&Unit]) -> Found {
    // As `systemctl list-units --state=running` counts them; other kinds of units than services have other words for it.
    let runs = |unit: &Unit| match unit.unit.kind() {
        "service" | "scope" => unit.unit.sub_state == "running",
        _ => unit.unit.active_state == "active",
    };
    let running = meant.iter().filter(|unit| runs(unit)).count();
    let is_no_news = |unit: &Unit| unit.unit.load_state == "not-found" && unit.may_be_missing;
    let rests = |unit: &&&Unit| !runs(unit) && !is_no_news(unit);
    let mut details: Vec<String> = meant.iter().filter(rests).map(|unit| described(unit)).collect();
    details.sort_unstable();
    if meant.is_empty() {
        details.push("no unit has such a name".to_owned());
    }
    Found::Value(running as f64, details, None)
}

fn described(unit: &Unit) -> String {
    let unit = &unit.unit;
    match unit.load_state.as_str() {
        "loaded" => format!("{}: {} ({})", unit.name, unit.active_state, unit.sub_state),
        other => format!("{}: {other}", unit.name),
    }
}

/// A unit that somebody masked is switched off on purpose.
fn load_state(units: &[Unit], counts: impl Fn(&str) -> bool) -> Found {
    let is_odd = |unit: &&Unit| match unit.unit.load_state.as_str() {
        "not-found" => !unit.may_be_missing,
        "bad-setting" | "error" => true,
        _ => false,
    };
    let meant = units.iter().filter(|unit| unit.is_watched && counts(&unit.unit.name));
    count(meant.filter(is_odd).map(|unit| format!("{}: {}", unit.unit.name, unit.unit.load_state)))
}

/// The most restarts of any container. Where the most there may have been is well, so is what nobody has watched.
#[allow(clippy::cast_precision_loss, reason = "nothing restarts 2^53 times")]
fn restarts<'a>(
    containers: impl Iterator<Item = &'a Container>,
    of: impl Fn(&Container) -> Restarts,
    bound: f64,
) -> Found {
    let (mut most, mut details, mut unseen) = (0, Vec::new(), None);
    for container in containers {
        let name = &container.name;
        let (known, at_most) = match of(container) {
            Restarts::Exactly(count) => (count, count),
            Restarts::Between(least, most) => (least, most),
            Restarts::Unknown => {
                unseen = Some(format!("{name}: the engine did not say"));
                continue;
            }
        };
        if at_most as f64 > bound && known as f64 <= bound {
            unseen = Some(format!("{name}: between {known} and {at_most}; known after a day of watching"));
        }
        // What is well at most is told as that.
        let told = if at_most as f64 <= bound { at_most } else { known };
        most = most.max(told);
        if told as f64 > bound {
            details.push(format!("{name}: {told}"));
        }
    }
    details.sort_unstable();
    Found::Value(most as f64, details, unseen)
}

fn log_rotation<'a>(containers: impl Iterator<Item = &'a Container>) -> Found {
    let (mut without, mut unseen) = (Vec::new(), None);
    for container in containers {
        match &container.detail {
            Some(detail) if !detail.has_log_rotation => without.push(container.name.to_string()),
            Some(_) => {}
            None => unseen = Some(format!("{}: the engine did not say", container.name)),
        }
    }
    counted(without.into_iter(), unseen)
}

/// The fullest filesystem that somebody can fill. One that did not answer might be fuller.
fn fullest(all: &[Filesystem], part: impl Fn(&Used) -> Option<f64>) -> Found {
    let (mut fullest, mut unseen): (Option<(f64, &Filesystem)>, _) = (None, None);
    for filesystem in all {
        if filesystem.is_read_only || NO_DISKS.contains(&filesystem.fs_type.as_str()) {
            continue;
        }
        match &filesystem.usage {
            Ok(used) => {
                if let Some(used) = part(used)
                    && fullest.is_none_or(|(most, _)| used > most)
                {
                    fullest = Some((used, filesystem));
                }
            }
            Err(why) => unseen = Some(format!("{}: {why}", filesystem.mount_point.display())),
        }
    }
    match (fullest, unseen) {
        (Some((used, filesystem)), unseen) => {
            Found::Value(used, vec![filesystem.mount_point.display().to_string()], unseen)
        }
        (None, Some(why)) => Found::Unknown(why, false),
        (None, None) => Found::Nothing("there is no filesystem that could fill up"),
    }
}

fn answer(name: &Name) -> String {
    match &name.addresses {
        Ok(addresses) => {
            let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            format!("it has {}", addresses.join(", "))
        }
        Err(failure) => resolve::Failure::words(*failure).to_owned(),
    }
}

/// Variables that are not as expected. Of a unit whose environment is not known nobody can tell.
fn environments<'a>(all: impl Iterator<Item = &'a Environment>) -> Found {
    let (mut odd, mut unseen) = (Vec::new(), None);
    for environment in all {
        let unit = &environment.unit;
        match &environment.variables {
            Ok(variables) => odd.extend(variables.iter().filter_map(|(name, variable)| match variable {
                Variable::Met => None,
                Variable::Different => Some(format!("{unit}: {name} has another value")),
                Variable::Missing => Some(format!("{unit}: {name} is not set")),
            })),
            Err(why) => unseen = Some(format!("{unit}: {}", why.words())),
        }
    }
    counted(odd.into_iter(), unseen)
}

/// As many details as somebody reads, each on one line.
fn bounded(details: Vec<String>) -> Vec<String> {
    let more = details.len().saturating_sub(MOST_NAMED);
    let one_line = |text: String| -> String {
        text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(LONGEST).collect()
    };
    let mut told: Vec<String> = details.into_iter().take(MOST_NAMED).map(one_line).collect();
    if more > 0 {
        told.push(format!("and {more} more"));
    }
    told
}

#[cfg(test)]
mod tests;
