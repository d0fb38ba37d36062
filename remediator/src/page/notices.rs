//! What stands above the tables of the status page: what holds everything up, what is wrong with the daemon itself, and
//! what it cannot know.

use super::{
    facts::Facts,
    html::{Cell, Tone, code, notice, text, time},
};
use crate::{
    api::prometheus::Exporter,
    config::Config,
    daemon::Daemon,
    journal::{Halt, HaltKind},
    pipeline::{Check, Finding, State},
};

/// What must be known before anything else.
pub(super) fn notices(page: &mut String, config: &Config, facts: &Facts, daemon: &Daemon) {
    let reload = daemon.reload;
    for halt in &facts.halts {
        notice(page, Tone::Bad, &halted(halt, facts.now_ms));
    }
    if let Some(why) = &daemon.state_degraded {
        let markup = format!(
            "<strong>The state cannot be written where it belongs</strong> ({}): {}. It lies in {} and is gone with a \
             reboot. Mend the directory, then {}.",
            text(&config.state_dir.display().to_string()),
            text(why),
            text(&config.fallback_dir.display().to_string()),
            code("systemctl restart evenkeel-remediator")
        );
        notice(page, Tone::Bad, &markup);
    }
    if let Some(loss) = &facts.loss {
        let markup = format!(
            "<strong>An earlier state was lost</strong> {}: {}. Until each window has passed since then, its limit \
             counts as used up.",
            time(loss.wall_ms, facts.now_ms),
            text(&loss.why)
        );
        notice(page, Tone::Wait, &markup);
    }
    if !reload.succeeded {
        let markup = format!(
            "<strong>The last reload was refused.</strong> The configuration read {} stays in force; {} says what is \
             wrong with the new one.",
            time(reload.at_ms, facts.now_ms),
            code("evenkeel-remediator check-config")
        );
        notice(page, Tone::Bad, &markup);
    }
    let (waiting, escalated): (u64, u64) =
        facts.standings.iter().fold((0, 0), |sum, rule| (sum.0 + rule.awaiting, sum.1 + rule.escalated));
    if waiting > 0 {
        notice(page, Tone::Wait, &format!("<strong>Waiting for approval: {waiting}.</strong>"));
    }
    if escalated > 0 {
        let targets = if escalated == 1 { "one target is" } else { &format!("{escalated} targets are") };
        let markup = format!("<strong>A person is needed:</strong> {targets} not well after a repair.");
        notice(page, Tone::Bad, &markup);
    }
    let read = if reload.succeeded {
        format!(" Configuration read {}.", time(reload.at_ms, facts.now_ms))
    } else {
        String::new()
    };
    let markup = format!(
        "Policy: mode <strong>{}</strong>, deletion <strong>{}</strong>; {}.{read}",
        config.mode.as_str(),
        config.deletion.as_str(),
        match config.rules.len() {
            1 => "one rule".to_owned(),
            count => format!("{count} rules"),
        },
    );
    notice(page, Tone::Quiet, &markup);
    for (tone, markup) in sources(config, daemon, facts.now_ms) {
        notice(page, tone, &markup);
    }
}

/// Whether the alerts can come at all, and the silences be known; also where nobody knows.
fn sources(config: &Config, daemon: &Daemon, now_ms: i64) -> Vec<(Tone, Cell)> {
    let mut lines = Vec::new();
    let exporter = match (&config.prometheus, daemon.exporter) {
        (None, _) => (
            Tone::Quiet,
            format!(
                "Whether this host&#39;s exporter is scraped is not known: no {} in the configuration.",
                code("prometheus")
            ),
        ),
        (Some(_), None) => {
            (Tone::Quiet, "Whether this host&#39;s exporter is scraped is not known yet.".to_owned())
        }
        (Some(_), Some(seen)) => {
            let words = text(seen.words());
            match seen {
                Exporter::Up => (Tone::Quiet, format!("{words}.")),
                Exporter::Unknown => (Tone::Wait, format!("{words}.")),
                Exporter::Down | Exporter::Absent => {
                    (Tone::Bad, format!("<strong>{words}:</strong> no alert comes from it."))
                }
            }
        }
    };
    lines.push(exporter);
    for (name, configured, asked) in [
        ("Prometheus", config.prometheus.is_some(), &daemon.prometheus),
        ("Alertmanager", config.alertmanager.is_some(), &daemon.alertmanager),
    ] {
        let Some(asked) = asked.as_ref().filter(|asked| configured && asked.fault.is_some()) else {
            continue;
        };
        let before = asked.answered_ms.map_or_else(
            || "It has not answered since this process began.".to_owned(),
            |answered| format!("It last answered {}.", time(answered, now_ms)),
        );
        let markup = format!(
            "<strong>{name} does not answer:</strong> {}, {}. {before}",
            text(asked.fault.as_deref().unwrap_or_default()),
            time(asked.at_ms, now_ms)
        );
        lines.push((Tone::Wait, markup));
    }
    lines.extend(in_the_way(daemon));
    lines
}

/// What else keeps alerts from coming; what the lines above say already is not said again.
fn in_the_way(daemon: &Daemon) -> Vec<(Tone, Cell)> {
    let is_news = |finding: &&Finding| match finding.check {
        Check::Prometheus | Check::Alertmanager => false,
        Check::Jobs => daemon.exporter == Some(Exporter::Up),
        Check::Rules | Check::Routes => true,
    };
    let failing = daemon.pipeline.findings.iter().filter(|finding| finding.state == State::Failing);
    let markup = |finding: &Finding| {
        format!(
            "<strong>Alerts may not arrive:</strong> {}. What to do: {}. {} says more.",
            text(&finding.detail),
            text(&finding.cure),
            code("evenkeel-remediator selftest")
        )
    };
    failing.filter(is_news).map(|finding| (Tone::Bad, markup(finding))).collect()
}

/// Why nothing is begun.
fn halted(halt: &Halt, now_ms: i64) -> Cell {
    let what = match halt.what {
        HaltKind::Pause => format!("Paused by {}", text(&halt.author)),
        HaltKind::Storm => "Storm: no service is touched".to_owned(),
        HaltKind::FleetPause => format!("The fleet is paused by {}", text(&halt.author)),
    };
    let until = halt.left.map_or_else(
        || "until somebody resumes".to_owned(),
        |left| {
            let left = i64::try_from(left.as_millis()).unwrap_or(i64::MAX);
            format!("until {}", time(now_ms.saturating_add(left), now_ms))
        },
    );
    format!(
        "<strong>{what}</strong>: {}. Since {}, {until}. {} ends it.",
        text(&halt.reason),
        time(halt.since_wall_ms, now_ms),
        code(halt.what.ended_by())
    )
}
