//! A message as somebody reads it on a telephone at night: one line that says all, then why, what was seen, what was
//! tried, and what to type. In Slack's notation (`text` of an incoming webhook), which other chats read as well; what
//! others said is escaped, on one line and bounded.

use super::{Notice, Occasion};
use crate::{
    clock::rfc3339,
    outcome::Outcome,
    target::Kind,
    text::{printable, shell_word},
};

/// Longer pieces are cut, in characters.
const PIECE: usize = 500;
/// More steps are counted.
const STEPS: usize = 8;

/// One line: which host, what, how it stands, since when.
pub(super) fn subject(host: &str, notice: &Notice) -> String {
    let since = notice.since_wall_ms.map(|since| format!(" (since {})", minute(since))).unwrap_or_default();
    let what = match notice.occasion {
        Occasion::Storm | Occasion::Blind | Occasion::StateDegraded | Occasion::StateLost => {
            "evenkeel-remediator".to_owned()
        }
        _ if notice.kind == Kind::Host.as_str() => format!("{} on this host", notice.rule),
        _ => format!("{} on {} {}", notice.rule, notice.kind, notice.target),
    };
    format!("{}: {}: {}{since}", piece(host), piece(&what), standing(notice))
}

/// How it stands, for people.
fn standing(notice: &Notice) -> &'static str {
    match notice.occasion {
        Occasion::Ended(_) if notice.is_for_a_person() => "a restart cannot cure it, a person is needed",
        Occasion::Ended(outcome) => match outcome {
            Outcome::Succeeded => "repaired",
            Outcome::Partial => "better, and not yet well",
            Outcome::Ineffective => "the repair did not help, a person is needed",
            Outcome::Failed => "the repair could not be done, a person is needed",
            Outcome::Unknown => "what the repair did is not known, a person is needed",
            Outcome::Reported => "seen, nothing was done",
            Outcome::NotNeeded => "nothing had to be done",
            Outcome::Planned => "only planned, as its mode is plan",
            Outcome::Limited => "held back by its limits",
            Outcome::Blocked => "not done",
            Outcome::Ignored => "no longer configured",
        },
        Occasion::Approval => "waits for approval",
        Occasion::Storm => "storm, no service is touched",
        Occasion::Blind => "blind, Prometheus does not scrape this host's exporter",
        Occasion::StateDegraded => "its state cannot be written where it belongs",
        Occasion::StateLost => "its state was lost, nothing is begun until the limits' windows have passed",
    }
}

/// The whole message in Slack's notation.
pub(super) fn text(host: &str, notice: &Notice) -> String {
    let mut lines = vec![format!("*{}*", slack(&subject(host, notice)))];
    let mut say = |what: &str, words: &str| {
        if !words.is_empty() {
            lines.push(format!("{what}: {}", slack(&piece(words))));
        }
    };
    if notice.summary != notice.occasion.as_str() {
        say("Why", &notice.summary);
    }
    if notice.occasion == Occasion::Storm {
        say("The last of them", &format!("{} on {} {}", notice.rule, notice.kind, notice.target));
    }
    match (&notice.before, &notice.after) {
        (Some(before), Some(after)) if before != after => {
            say("Before", before);
            say("After", after);
        }
        (before, after) => say("Seen", after.as_ref().or(before.as_ref()).map_or("", String::as_str)),
    }
    if let Some(cure) = notice.cure.as_ref().filter(|cure| !notice.summary.contains(*cure)) {
        say("Cure", cure);
    }
    for step in notice.steps.iter().take(STEPS) {
        say("Step", step);
    }
    if notice.steps.len() > STEPS {
        say("Steps", &format!("and {} more", notice.steps.len() - STEPS));
    }
    if let Some(next) = notice.next_allowed_wall_ms {
        say("Not again before", &minute(next));
    }
    lines.extend(commands(notice).into_iter().map(|(why, command)| format!("{why}: {}", code(&command))));
    if let Some(expires) = notice.expires_wall_ms {
        lines.push(format!("Nothing is done unless somebody approves before {}.", minute(expires)));
    }
    lines.join("\n")
}

/// What to type next, and what for.
fn commands(notice: &Notice) -> Vec<(&'static str, String)> {
    let Notice { id, rule, target, occasion, .. } = notice;
    let about = format!("{rule} {}", shell_word(target));
    let explain = ("Look", format!("evenkeel-remediator explain {about}"));
    match occasion {
        Occasion::Approval => vec![
            ("Approve", format!("evenkeel-remediator approve {id}")),
            ("Reject", format!("evenkeel-remediator reject {id}")),
            explain,
        ],
        Occasion::Storm => vec![
            ("Look", "evenkeel-remediator status".to_owned()),
            ("End the storm at once", "evenkeel-remediator resume".to_owned()),
        ],
        Occasion::Blind => vec![("Look", "systemctl status evenkeel-exporter".to_owned())],
        Occasion::StateDegraded | Occasion::StateLost => {
            vec![("Look", "evenkeel-remediator status".to_owned())]
        }
        Occasion::Ended(outcome) if outcome.escalates() => {
            vec![explain, ("Try once more now", format!("evenkeel-remediator ack {about}"))]
        }
        Occasion::Ended(_) => vec![explain],
    }
}

/// A command to paste. What holds the sign that ends one is left plain: it must stay as it is.
fn code(command: &str) -> String {
    let command = slack(&printable(command));
    if command.contains('`') { command } else { format!("`{command}`") }
}

/// Text of others on one line, bounded.
fn piece(text: &str) -> String {
    let shown = printable(text);
    match shown.char_indices().nth(PIECE) {
        Some((end, _)) => format!("{}…", &shown[..end]),
        None => shown,
    }
}

/// The three signs that Slack reads as links and mentions.
fn slack(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// `2027-01-15 08:00 UTC`.
fn minute(wall_ms: i64) -> String {
    let stamp = rfc3339(wall_ms);
    match (stamp.get(..10), stamp.get(11..16)) {
        (Some(day), Some(time)) => format!("{day} {time} UTC"),
        _ => stamp,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2027-01-15 08:00:00 UTC.
    const NOW: i64 = 1_800_000_000_000;
    const MINUTE: i64 = 60_000;

    fn disk(occasion: Occasion, summary: &str) -> Notice {
        Notice {
            id: 41,
            rule: "disk-high".to_owned(),
            kind: "filesystem".to_owned(),
            target: "/var/lib/docker".to_owned(),
            occasion,
            reason: "steps_used_up".to_owned(),
            summary: summary.to_owned(),
            before: Some("91.2 % used, 45.0 GB of 512.0 GB available".to_owned()),
            after: Some("89.9 % used, 51.7 GB of 512.0 GB available".to_owned()),
            cure: None,
            steps: vec!["build_cache_prune [D1]: done, freed 6.7 GB".to_owned()],
            since_wall_ms: Some(NOW - 10 * MINUTE),
            next_allowed_wall_ms: None,
            expires_wall_ms: None,
        }
    }

    fn unit(occasion: Occasion, summary: &str) -> Notice {
        Notice {
            rule: "unit-failed".to_owned(),
            kind: "unit".to_owned(),
            target: "shop-api.service".to_owned(),
            before: Some("failed (failed), result exit-code, status 1".to_owned()),
            after: None,
            steps: vec!["unit_restart [S2]: planned: org.freedesktop.systemd1.Manager.RestartUnit(\"shop-api.service\", \"replace\")".to_owned()],
            ..disk(occasion, summary)
        }
    }

    /// One message for each occasion, as the parts of the golden file.
    fn messages() -> Vec<(&'static str, Notice)> {
        let ended = Occasion::Ended;
        let filled = "it was done, and it is not well; it is filled by /var/lib/docker/volumes 402.1 GB";
        let refused = Notice {
            steps: vec!["unit_restart [S2]: failed (refused_by_host)".to_owned()],
            ..unit(ended(Outcome::Failed), "the host refused it; not done: Unit shop-api.service is masked.")
        };
        let incurable = Notice {
            reason: "restart_cannot_cure".to_owned(),
            before: Some(
                "failed (failed), result exit-code, status 1; permission denied on /srv/shop/out.log"
                    .to_owned(),
            ),
            steps: vec!["unit_restart [S2]: skipped (restart_cannot_cure)".to_owned()],
            ..unit(
                ended(Outcome::Blocked),
                "unit_restart: a start cannot cure it (permission denied on /srv/shop/out.log): let shop use /srv/shop/out.log",
            )
        };
        let reported = Notice {
            before: Some(
                "activating (auto-restart), 7 automatic restarts; no address for the name shop_redis"
                    .to_owned(),
            ),
            cure: Some("give shop_redis an alias in /etc/hosts".to_owned()),
            steps: Vec::new(),
            ..unit(ended(Outcome::Reported), "reported")
        };
        let limited = Notice {
            steps: Vec::new(),
            next_allowed_wall_ms: Some(NOW + 55 * MINUTE),
            ..unit(ended(Outcome::Limited), "3 of 3 starts of this rule on this target used (3/1h)")
        };
        let asked = Notice {
            expires_wall_ms: Some(NOW + 30 * MINUTE),
            ..unit(Occasion::Approval, "awaiting_approval")
        };
        let storm = Notice {
            steps: Vec::new(),
            since_wall_ms: None,
            ..unit(
                Occasion::Storm,
                "more than 5 targets needed a restart or the like within 300 s: no service is touched until it has been calm for 900 s",
            )
        };
        let hostile = Notice {
            target: "/srv/<!channel> & `x`\n*b*".to_owned(),
            steps: vec!["s".repeat(10_000); 20],
            ..disk(ended(Outcome::Unknown), &"<http://evil.example|look> ".repeat(1000))
        };
        vec![
            ("ineffective", disk(ended(Outcome::Ineffective), filled)),
            ("failed", refused),
            ("partial", disk(ended(Outcome::Partial), "better, and not as good as the mark")),
            ("succeeded", disk(ended(Outcome::Succeeded), "succeeded")),
            ("incurable", incurable),
            ("reported", reported),
            ("limited", limited),
            ("approval", asked),
            ("storm", storm),
            ("hostile", hostile),
        ]
    }

    #[test]
    fn each_occasion_reads_as_reviewed() {
        let mut all = String::new();
        for (name, notice) in messages() {
            let shown: String = text("vps1", &notice)
                .lines()
                .map(|line| {
                    let cut: String = line.chars().take(160).collect();
                    cut + if line.chars().count() > 160 { " (cut here)\n" } else { "\n" }
                })
                .collect();
            all += &format!("# {name}\n{shown}\n");
        }
        assert_eq!(all, include_str!("texts.golden"), "\n{all}");
    }

    #[test]
    fn a_message_is_bounded_and_mentions_nobody() {
        for (name, notice) in messages() {
            let text = text("vps1", &notice);
            assert!(text.chars().count() < 16_000, "{name}: {}", text.len());
            assert!(!text.contains(['<', '>']), "{name}: {text}");
            assert!(!subject("vps1", &notice).contains('\n'), "{name}");
        }
    }
}
