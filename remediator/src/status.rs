//! `status`: how the daemon itself stands, what is open, what was done last, what the limits leave and who is needed.
//! Read-only, also while the daemon runs, and where it does not.

use std::{
    fs,
    io::Write,
    path::Path,
    time::{Duration, UNIX_EPOCH},
};

use evenkeel_host::config::PromDuration;

use crate::{
    admission::{self, Breaker, Scope},
    api::Asked,
    clock::{Clock, Moment, rfc3339},
    config::{self, Config},
    daemon::Daemon,
    history::{named, no_state, open, standing_and_why, when},
    journal::{HaltKind, Phase, Reader, Record},
    pipeline::{Check, Report, State},
    policy::Class,
    text::{printable, shell_word},
};

/// Remediations that are shown as the last ones.
const LAST: u32 = 10;
/// Open ones that are shown; the others are counted.
const OPEN: u32 = 50;
/// A column is no wider, however long a name is, in characters.
const WIDEST: usize = 48;

/// What is open, what was done last, and what the limits leave; `daemon` as it answered, or why it did not.
///
/// # Errors
/// When there is no state or it cannot be read; how the daemon stands is told all the same.
pub fn status(
    config: &Config,
    daemon: &anyhow::Result<Daemon>,
    clock: &Clock,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    match open(config)? {
        Some(reader) => write(config, &reader, daemon, clock, out),
        None => {
            head(config, daemon, &clock.now(), out)?;
            anyhow::bail!(no_state(config))
        }
    }
}

/// The same of a state that has been opened.
pub(crate) fn write(
    config: &Config,
    reader: &Reader,
    daemon: &anyhow::Result<Daemon>,
    clock: &Clock,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let wall = clock.now();
    let now = reader.on_timeline(&wall)?;
    head(config, daemon, &wall, out)?;
    state(config, daemon, reader, out)?;
    halts(reader, &now, &wall, out)?;
    remediations(reader, out)?;
    limits(config, reader, &now, &wall, out)?;
    needed(config, reader, &now, out)
}

/// What is configured, and how the daemon stands.
fn head(
    config: &Config,
    daemon: &anyhow::Result<Daemon>,
    now: &Moment,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    writeln!(
        out,
        "host {}, mode {}, deletion {}, {} rules\n",
        config.hosts.join(", "),
        config.mode.as_str(),
        config.deletion.as_str(),
        config.rules.len()
    )?;
    running(config, daemon, now, out)
}

/// One thing that is known of the daemon, or that nobody knows it.
fn fact(name: &str, text: &str, out: &mut impl Write) -> std::io::Result<()> {
    writeln!(out, "  {name:<15}{text}")
}

/// What only the daemon knows.
fn running(
    config: &Config,
    daemon: &anyhow::Result<Daemon>,
    now: &Moment,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let daemon = match daemon {
        Ok(daemon) => daemon,
        Err(error) => {
            fact("daemon", &format!("not known: {}", printable(&format!("{error:#}"))), out)?;
            return Ok(());
        }
    };
    let since = rfc3339(daemon.started.wall_ms);
    let up = PromDuration::new(Duration::from_secs(daemon.started.age(now).as_secs()));
    let (version, revision) = (printable(&daemon.version), printable(&daemon.revision));
    fact("daemon", &format!("runs since {since} ({up}), version {version}, revision {revision}"), out)?;
    let read = format!("read {}", rfc3339(daemon.reload.at_ms));
    let configuration = if !daemon.reload.succeeded {
        format!("{read}; the last reload was refused, evenkeel-remediator check-config says why")
    } else if changed_since(&config.path, daemon.reload.at_ms) {
        format!("{read}; changed since then, evenkeel-remediator reload puts it in force")
    } else {
        read
    };
    fact("configuration", &configuration, out)?;
    let exporter = match (&config.prometheus, daemon.exporter) {
        (None, _) => "not known whether it is scraped: no `prometheus` in the configuration",
        (Some(_), None) => "not known yet whether it is scraped",
        (Some(_), Some(seen)) => seen.words(),
    };
    fact("exporter", exporter, out)?;
    for (name, is_configured, asked) in [
        ("Prometheus", config.prometheus.is_some(), &daemon.prometheus),
        ("Alertmanager", config.alertmanager.is_some(), &daemon.alertmanager),
    ] {
        if is_configured {
            fact(name, &answered(asked.as_ref()), out)?;
        }
    }
    if config.prometheus.is_some() || config.alertmanager.is_some() {
        fact("alerts", &arriving(&daemon.pipeline), out)?;
    }
    Ok(())
}

/// Whether alerts can come at all, as it was last looked at.
fn arriving(report: &Report) -> String {
    if report.findings.is_empty() {
        return "not looked at yet whether they can arrive".to_owned();
    }
    let at = rfc3339(report.at_ms);
    let failing = report.findings.iter().find(|finding| finding.state == State::Failing);
    let unknown = Check::ALL.into_iter().filter(|check| report.state(*check) == State::Unknown);
    let unknown: Vec<&str> = unknown.map(Check::as_str).collect();
    match failing {
        Some(finding) => format!(
            "MAY NOT ARRIVE: {}, {at}; evenkeel-remediator selftest says more",
            printable(&finding.detail)
        ),
        None if unknown.is_empty() => format!("are scraped, raised and routed to here, looked at {at}"),
        None => format!("nothing is in their way that is known, {at}; not known: {}", unknown.join(", ")),
    }
}

/// How a server answered last.
fn answered(asked: Option<&Asked>) -> String {
    let Some(asked) = asked else { return "not asked yet".to_owned() };
    match (&asked.fault, asked.answered_ms) {
        (None, _) => format!("answered {}", rfc3339(asked.at_ms)),
        (Some(why), answered) => {
            let answered = answered
                .map_or_else(|| "no answer so far".to_owned(), |at| format!("last answer {}", rfc3339(at)));
            format!("DOES NOT ANSWER: {}, {}; {answered}", printable(why), rfc3339(asked.at_ms))
        }
    }
}

/// Whether a file of the configuration is younger than that.
fn changed_since(path: &Path, read_ms: i64) -> bool {
    let modified_ms = |path: &Path| {
        let modified = fs::metadata(path).and_then(|metadata| metadata.modified()).ok()?;
        i64::try_from(modified.duration_since(UNIX_EPOCH).ok()?.as_millis()).ok()
    };
    let fragments = config::fragments_folder(path);
    let files = fs::read_dir(&fragments).into_iter().flatten().flatten().map(|entry| entry.path());
    let files = files.filter(|path| path.extension().is_some_and(|extension| extension == "yml"));
    let mut all = files.chain([fragments.clone(), path.to_owned()]);
    // What the daemon tells is in whole seconds.
    all.any(|path| modified_ms(&path).is_some_and(|modified| modified >= read_ms.saturating_add(1000)))
}

/// What is wrong with the state itself.
fn state(
    config: &Config,
    daemon: &anyhow::Result<Daemon>,
    reader: &Reader,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let places = config.places();
    if places.in_use() != places.dir {
        let why = daemon.as_ref().ok().and_then(|daemon| daemon.state_degraded.as_deref());
        let why = why.map_or_else(String::new, |why| format!(" ({})", printable(why)));
        writeln!(
            out,
            "\nSTATE DEGRADED: {} cannot be written{why}; until the next start that can, the state lies in {} and is gone with a reboot",
            places.dir.display(),
            places.in_use().display()
        )?;
    }
    if let Some(loss) = reader.loss()? {
        writeln!(
            out,
            "\nthe state was lost {}: {}; until each window has passed since, its limit counts as used up",
            rfc3339(loss.wall_ms),
            printable(&loss.why)
        )?;
    }
    Ok(())
}

/// Why nothing is begun, where that is so.
fn halts(reader: &Reader, now: &Moment, wall: &Moment, out: &mut impl Write) -> anyhow::Result<()> {
    for halt in reader.halts(now)? {
        let what = match halt.what {
            HaltKind::Pause => format!("PAUSED by {}", printable(&halt.author)),
            HaltKind::Storm => "STORM: no service is touched".to_owned(),
            HaltKind::FleetPause => format!("FLEET PAUSED by {}", printable(&halt.author)),
        };
        let until = halt.left.map_or_else(
            || "until somebody resumes".to_owned(),
            |left| format!("until {}", rfc3339(wall.wall_after(left))),
        );
        let (since, reason) = (rfc3339(halt.since_wall_ms), printable(&halt.reason));
        writeln!(out, "\n{what} since {since}, {until}: {reason}\n  {} ends it", halt.what.ended_by())?;
    }
    Ok(())
}

/// What is open and what was done last.
fn remediations(reader: &Reader, out: &mut impl Write) -> anyhow::Result<()> {
    let (count, _) = reader.queue()?;
    let open = reader.oldest_open(OPEN)?;
    writeln!(out, "\nopen: {}", if count == 0 { "none".to_owned() } else { count.to_string() })?;
    for (remediation, line) in open.iter().zip(aligned(open.iter().map(columns).collect())) {
        writeln!(out, "  {line}")?;
        if remediation.phase == Phase::Awaiting {
            let id = remediation.id;
            writeln!(out, "      evenkeel-remediator approve {id}, or evenkeel-remediator reject {id}")?;
        }
    }
    let hidden = count.saturating_sub(u64::try_from(open.len()).unwrap_or(count));
    if hidden > 0 {
        writeln!(out, "  and {hidden} more")?;
    }
    let recent = reader.newest_ended(LAST)?;
    writeln!(out, "\nlast:{}", if recent.is_empty() { " none yet" } else { "" })?;
    for line in aligned(recent.iter().map(columns).collect()) {
        writeln!(out, "  {line}")?;
    }
    Ok(())
}

/// A remediation in one line.
fn columns(remediation: &Record) -> Vec<String> {
    let mut stands = standing_and_why(remediation);
    if let Some(next) = remediation.next_allowed_wall_ms {
        stands += &format!(", not before {}", rfc3339(next));
    }
    vec![
        format!("#{}", remediation.id),
        when(remediation),
        printable(&remediation.rule),
        named(&remediation.kind, &remediation.target),
        stands,
    ]
}

/// Lines of columns below each other.
fn aligned(rows: Vec<Vec<String>>) -> Vec<String> {
    let width = |column: usize| {
        let widths = rows.iter().filter_map(|row| Some(row.get(column)?.chars().count()));
        widths.filter(|width| *width <= WIDEST).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..rows.first().map_or(0, Vec::len)).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

/// What the windows of the whole host still admit.
fn limits(
    config: &Config,
    reader: &Reader,
    now: &Moment,
    wall: &Moment,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let classes = [Class::S1, Class::S2, Class::D1, Class::D2].map(|class| {
        (format!("{} {}", class.as_str(), class.words()), Scope::Class(class), config.limits.class(class))
    });
    let host = ("everything".to_owned(), Scope::Host, config.limits.host.as_slice());
    let mut rows = Vec::new();
    for (name, scope, limits) in classes.into_iter().chain([host]) {
        let budget = reader.budget(&scope, limits)?;
        let used = budget.used(now);
        if used.is_empty() {
            continue;
        }
        let windows: Vec<String> = used
            .iter()
            .map(|(limit, used)| format!("{used} of {} in {}", limit.count, PromDuration::new(limit.window)))
            .collect();
        let full = admission::limits(&[budget], now).err().map_or_else(String::new, |refusal| {
            format!("; the next one {}", rfc3339(wall.wall_after(refusal.wait)))
        });
        rows.push(vec![name, format!("{}{full}", windows.join(", "))]);
    }
    writeln!(out, "\nlimits of this host (used of admitted):{}", if rows.is_empty() { " none" } else { "" })?;
    for line in aligned(rows) {
        writeln!(out, "  {line}")?;
    }
    Ok(())
}

/// Where a person is needed, and what to type.
fn needed(config: &Config, reader: &Reader, now: &Moment, out: &mut impl Write) -> anyhow::Result<()> {
    for rule in &config.rules {
        let escalated = reader.rule_facts(&rule.name)?.escalated;
        if escalated > 0 {
            let targets =
                if escalated == 1 { "one target is".to_owned() } else { format!("{escalated} targets are") };
            writeln!(
                out,
                "\nA PERSON IS NEEDED: {targets} not well after a repair\n  evenkeel-remediator history --rule {} says what was tried",
                rule.name
            )?;
        }
        for (kind, target, state) in reader.breakers(&rule.name, &rule.restraint, now)? {
            let ack = format!("evenkeel-remediator ack {} {}", rule.name, shell_word(&target));
            let means = match state {
                Breaker::Closed => continue,
                Breaker::Open => {
                    format!("open, the tries did not help\n  {ack} admits one more, after a look")
                }
                Breaker::HalfOpen => "half open, one try is admitted and decides".to_owned(),
            };
            writeln!(out, "\nbreaker of {} on {}: {means}", rule.name, named(&kind, &target))?;
        }
    }
    Ok(())
}
