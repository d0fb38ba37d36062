//! The status page: what is waiting, running and done, what holds it back, and what the rules are. Read-only, one
//! answer without scripts or anything to load, bounded whatever the journal holds. It tells nothing that `status`,
//! `history` and `check-config` do not.

mod facts;
mod fleet;
mod html;
mod notices;

use evenkeel_host::{
    config::PromDuration,
    web::{Response, page},
};

pub(crate) use self::facts::Facts;
use self::{
    facts::{Entry, Held, Standing, Used},
    html::{Cell, Table, Tone, code, dim, list, mark, text, time},
    notices::notices,
};
use crate::{
    admission::Breaker,
    config::Config,
    daemon::Daemon,
    history::{self, named, signed},
    journal::{HaltKind, Phase, StepRecord, StepState},
    observe::Observation,
    outcome::Outcome,
    rules::Rule,
    target::Kind,
    text::shell_word,
};

const STYLE: &str = include_str!("page/style.css");
/// Rows of a table; the others are counted.
const ROWS: usize = 100;
/// Names of an allow-list in one row.
const NAMES: usize = 12;
/// Steps of one remediation in one row.
const STEPS: usize = 12;

/// The page.
pub(crate) fn respond(config: &Config, facts: &Facts, daemon: &Daemon) -> Response {
    let host = config.hosts.first().map(String::as_str).unwrap_or_default();
    page::respond(&format!("evenkeel-remediator on {host}"), STYLE, &body(config, facts, daemon))
}

fn body(config: &Config, facts: &Facts, daemon: &Daemon) -> String {
    let now = facts.now_ms;
    let mut page = format!(
        "<header>\n<h1>evenkeel-remediator on {}</h1>\n<p class=\"dim\">As it was {}. Running since {}. Version {}, \
         revision {}.</p>\n</header>\n<main>\n",
        text(&config.hosts.join(", ")),
        time(now, now),
        time(daemon.started.wall_ms, now),
        text(&daemon.version),
        text(&daemon.revision)
    );
    let role = daemon.role.as_deref().unwrap_or_default();
    match &daemon.fleet {
        Some(view) => {
            let heard = facts.halts.iter().any(|halt| halt.what == HaltKind::FleetPause);
            fleet::notices(&mut page, view, heard);
        }
        None if role == "gateway" || role == "both" => fleet::lost(&mut page),
        None => {}
    }
    notices(&mut page, config, facts, daemon);
    if let Some(view) = &daemon.fleet {
        fleet::hosts(view, role).write(&mut page);
        fleet::budgets(view).write(&mut page);
    }
    // A mere gateway repairs nothing; what it has was left by an agent.
    if role != "gateway" || facts.open_count > 0 || !facts.ended.is_empty() {
        for table in
            [open(config, facts), ended(facts), held(facts), budgets(facts), rules(config, &facts.standings)]
        {
            table.write(&mut page);
        }
    }
    page += "</main>\n<footer>\n<p>More on the host: ";
    let of_fleet = (!role.is_empty()).then_some("fleet status");
    let commands = of_fleet.into_iter().chain(["status", "history", "explain RULE TARGET", "check-config"]);
    page += &commands
        .map(|command| code(&format!("evenkeel-remediator {command}")))
        .collect::<Vec<_>>()
        .join(" ");
    page += "</p>\n<p><a href=\"/metrics\">Metrics</a> · <a href=\"/-/healthy\">Health</a> · \
             <a href=\"/-/ready\">Readiness</a></p>\n</footer>\n";
    page
}

fn open(config: &Config, facts: &Facts) -> Table {
    let rows: Vec<Vec<Cell>> = facts.open.iter().map(|entry| open_row(config, entry, facts.now_ms)).collect();
    let shown = u64::try_from(rows.len()).unwrap_or(u64::MAX);
    let caption = match facts.open_count.saturating_sub(shown) {
        0 => format!("{} without an outcome yet, the oldest first", facts.open_count),
        more => format!("The oldest {shown} without an outcome yet, and {more} more"),
    };
    Table {
        title: "Open",
        caption,
        headings: &["What", "Stands", "Since", "Seen", "Steps", "Next"],
        rows,
        empty: "Nothing is waiting or running.",
    }
}

fn open_row(config: &Config, entry: &Entry, now_ms: i64) -> Vec<Cell> {
    let record = &entry.record;
    let tone = match (record.phase, record.next_allowed_wall_ms) {
        (Phase::Awaiting, _) | (Phase::Received, Some(_)) => Tone::Wait,
        (Phase::Running | Phase::Verifying, _) => Tone::Good,
        (Phase::Received | Phase::Reserved | Phase::Ended, _) => Tone::Quiet,
    };
    let mut stands = mark(tone, history::standing(record));
    stands += &why(record.reason.as_deref(), record.detail.as_deref());
    let next = match (entry.asked_ms, record.next_allowed_wall_ms) {
        (Some(asked), _) => {
            let within = i64::try_from(config.approval_within.as_millis()).unwrap_or(i64::MAX);
            format!(
                "{}<br>{}<br>expires {}",
                code(&format!("evenkeel-remediator approve {}", record.id)),
                code(&format!("evenkeel-remediator reject {}", record.id)),
                time(asked.saturating_add(within), now_ms)
            )
        }
        (None, Some(next)) => time(next, now_ms),
        (None, None) => String::new(),
    };
    vec![
        what(entry),
        stands,
        time(record.received_wall_ms, now_ms),
        record.before.as_ref().map_or_else(|| dim("not looked at yet"), |seen| text(&seen.summary())),
        steps(&entry.steps),
        next,
    ]
}

fn ended(facts: &Facts) -> Table {
    Table {
        title: "Recent",
        caption: match facts.ended.len() {
            1 => "The last one that has ended".to_owned(),
            count => format!("The last {count} that have ended, the newest first"),
        },
        headings: &["What", "Ended", "Outcome", "Seen", "Steps", "Not before"],
        rows: facts.ended.iter().map(|entry| ended_row(entry, facts.now_ms)).collect(),
        empty: "Nothing has ended yet.",
    }
}

fn ended_row(entry: &Entry, now_ms: i64) -> Vec<Cell> {
    let record = &entry.record;
    let outcome = record.outcome.unwrap_or(Outcome::Unknown);
    let mut how = mark(tone(outcome), outcome.as_str());
    how += &why(record.reason.as_deref(), record.detail.as_deref());
    for (what, author) in [("decided by", &record.decided_by), ("acknowledged by", &record.acked_by)] {
        if let Some(author) = author {
            how += &format!("<br><span class=\"dim\">{what} {}</span>", text(author));
        }
    }
    let next = record.next_allowed_wall_ms.filter(|next| *next > now_ms);
    vec![
        what(entry),
        record.ended_wall_ms.map(|ended| time(ended, now_ms)).unwrap_or_default(),
        how,
        seen(record.before.as_ref(), record.after.as_ref()),
        steps(&entry.steps),
        next.map(|next| time(next, now_ms)).unwrap_or_default(),
    ]
}

fn tone(outcome: Outcome) -> Tone {
    match outcome {
        Outcome::Succeeded => Tone::Good,
        Outcome::Partial | Outcome::Limited | Outcome::Blocked => Tone::Wait,
        outcome if outcome.escalates() => Tone::Bad,
        _ => Tone::Quiet,
    }
}

/// The remediation by its number, rule and target.
fn what(entry: &Entry) -> Cell {
    let record = &entry.record;
    let repeated = match record.deliveries {
        0 | 1 => String::new(),
        n => format!(", {n} alerts"),
    };
    format!(
        "{}<br>{} <span class=\"dim\">#{}{repeated}</span>",
        text(&record.rule),
        text(&named(&record.kind, &record.target)),
        record.id
    )
}

fn why(reason: Option<&str>, detail: Option<&str>) -> Cell {
    let mut markup = String::new();
    if let Some(reason) = reason.filter(|reason| !reason.is_empty()) {
        markup += &format!(" <span class=\"dim\">({})</span>", text(reason));
    }
    if let Some(detail) = detail.filter(|detail| !detail.is_empty()) {
        markup += &format!("<br>{}", text(detail));
    }
    markup
}

/// What was seen before and after; once where that is the same.
fn seen(before: Option<&Observation>, after: Option<&Observation>) -> Cell {
    let (before, after) = (before.map(Observation::summary), after.map(Observation::summary));
    match (before, after) {
        (Some(before), Some(after)) if before != after => {
            format!("before: {}<br>after: {}", text(&before), text(&after))
        }
        (before, after) => after.or(before).map_or_else(|| dim("not known"), |seen| text(&seen)),
    }
}

fn steps(steps: &[StepRecord]) -> Cell {
    let mut items: Vec<Cell> = steps.iter().take(STEPS).map(step).collect();
    if steps.len() > STEPS {
        items.push(format!("and {} more", steps.len() - STEPS));
    }
    list(&items)
}

fn step(step: &StepRecord) -> Cell {
    let mut markup = format!(
        "{} <span class=\"dim\">[{}]</span> {}",
        text(&step.action),
        step.class.as_str(),
        step.state.as_str()
    );
    if let Some(reason) = &step.reason {
        markup += &format!(" <span class=\"dim\">({})</span>", text(reason));
    }
    if let Some(freed) = step.measured_freed_bytes {
        markup += &format!(", freed {}", signed(freed));
        if let Some(claimed) = step.claimed_freed_bytes {
            markup += &format!(" <span class=\"dim\">({} claimed)</span>", signed(claimed));
        }
    }
    if matches!(step.state, StepState::Planned) {
        markup += &format!("<br>{}", code(&step.plan));
    }
    markup
}

fn held(facts: &Facts) -> Table {
    let mut rows: Vec<Vec<Cell>> =
        facts.held.iter().take(ROWS).map(|held| held_row(held, facts.now_ms)).collect();
    rows.extend(more(facts.held.len(), 4));
    Table {
        title: "Held back after earlier tries",
        caption: "Cooldowns, and breakers that tries without effect have opened".to_owned(),
        headings: &["What", "Why", "Not before", "To try at once"],
        rows,
        empty: "No cooldown is running and every breaker is closed.",
    }
}

fn held_row(held: &Held, now_ms: i64) -> Vec<Cell> {
    let word = match (held.breaker, &held.refusal) {
        (Breaker::Open, _) => mark(Tone::Bad, "breaker open"),
        (Breaker::HalfOpen, _) => mark(Tone::Wait, "breaker half open: one try is admitted, and decides"),
        (Breaker::Closed, _) => mark(Tone::Wait, "cooldown"),
    };
    let detail = held.refusal.as_ref().map(|(refusal, _)| format!("<br>{}", text(&refusal.detail)));
    let ack = format!("evenkeel-remediator ack {} {}", held.rule, shell_word(&held.target));
    vec![
        format!("{}<br>{}", text(&held.rule), text(&held.named)),
        word + &detail.unwrap_or_default(),
        held.refusal.as_ref().map(|(_, until)| time(*until, now_ms)).unwrap_or_default(),
        if held.refusal.is_some() { code(&ack) } else { String::new() },
    ]
}

fn budgets(facts: &Facts) -> Table {
    let mut rows: Vec<Vec<Cell>> =
        facts.budgets.iter().take(ROWS).map(|used| budget_row(used, facts.now_ms)).collect();
    rows.extend(more(facts.budgets.len(), 3));
    Table {
        title: "Limits",
        caption: "Starts that each window holds, of those that it admits".to_owned(),
        headings: &["Of", "Used", "Next start"],
        rows,
        empty: "No limits are configured.",
    }
}

fn budget_row(used: &Used, now_ms: i64) -> Vec<Cell> {
    let windows: Vec<String> = used
        .windows
        .iter()
        .map(|(limit, used)| format!("{used} of {} in {}", limit.count, PromDuration::new(limit.window)))
        .collect();
    let next = match used.full_until_ms {
        Some(until) => format!("{}<br>{}", mark(Tone::Wait, "used up"), time(until, now_ms)),
        None => mark(Tone::Good, "admitted"),
    };
    vec![text(&used.scope), windows.join("<br>"), next]
}

fn rules(config: &Config, standings: &[Standing]) -> Table {
    let mut rows: Vec<Vec<Cell>> = config
        .rules
        .iter()
        .zip(standings)
        .take(ROWS)
        .map(|(rule, standing)| rule_row(config, rule, standing))
        .collect();
    rows.extend(more(config.rules.len(), 6));
    Table {
        title: "Rules",
        caption: "In the order in which an alert is tried against them".to_owned(),
        headings: &["Rule", "Alerts", "Targets", "Steps", "Limits", "So far"],
        rows,
        empty: "There are no rules: every alert is ignored.",
    }
}

fn rule_row(config: &Config, rule: &Rule, standing: &Standing) -> Vec<Cell> {
    let alerts = match rule.on_demand() {
        true => format!("none; {}", code(&format!("evenkeel-remediator trigger {}", rule.name))),
        false => rule.matchers.iter().map(|matcher| code(&matcher.to_string())).collect::<Vec<_>>().join(" "),
    };
    let mut names: Vec<Cell> =
        rule.selector.allow.iter().take(NAMES).map(|name| code(&name.to_string())).collect();
    if rule.selector.allow.len() > NAMES {
        names.push(format!("and {} more", rule.selector.allow.len() - NAMES));
    }
    let targets = match rule.selector.kind {
        Kind::Host => "this host".to_owned(),
        kind => format!(
            "{} <span class=\"dim\">by label {}</span><br>{}",
            kind.as_str(),
            text(&rule.selector.label),
            names.join(" ")
        ),
    };
    let steps: Vec<Cell> = rule
        .steps
        .iter()
        .map(|step| {
            let class = step.0.class();
            let blocked = if config.deletion.allows(class) { "" } else { ", refused by policy.deletion" };
            format!("{} <span class=\"dim\">[{}]{blocked}</span>", step.0.name(), class.as_str())
        })
        .collect();
    let mut limits: Vec<String> = rule.limits.iter().map(ToString::to_string).collect();
    if let Some(hours) = &rule.hours {
        limits.push(text(&hours.to_string()));
    }
    vec![
        format!("{}<br><span class=\"dim\">mode {}</span>", text(&rule.name), rule.mode.as_str()),
        alerts,
        targets,
        list(&steps),
        limits.join("<br>"),
        so_far(rule, standing),
    ]
}

/// How often a rule has helped, and what it is at now.
fn so_far(rule: &Rule, standing: &Standing) -> Cell {
    let mut lines = Vec::new();
    for (count, tone, word) in [
        (standing.in_progress, Tone::Good, "running"),
        (standing.awaiting, Tone::Wait, "waiting for approval"),
        (standing.escalated, Tone::Bad, "need a person"),
    ] {
        if count > 0 {
            lines.push(mark(tone, &format!("{count} {word}")));
        }
    }
    let tries: u64 = standing.results.iter().map(|(_, count)| count).sum();
    let helped: u64 = standing
        .results
        .iter()
        .filter(|(outcome, _)| matches!(outcome, Outcome::Succeeded | Outcome::Partial))
        .map(|(_, count)| count)
        .sum();
    if tries > 0 {
        lines.push(format!("{helped} of {tries} repairs helped"));
    } else if rule.acts() && lines.is_empty() {
        lines.push("<span class=\"dim\">has not acted</span>".to_owned());
    }
    lines.join("<br>")
}

/// A row that says how many are not shown.
fn more(count: usize, columns: usize) -> Option<Vec<Cell>> {
    let hidden = count.checked_sub(ROWS).filter(|hidden| *hidden > 0)?;
    let mut row = vec![format!("<span class=\"dim\">and {hidden} more</span>")];
    row.resize(columns, String::new());
    Some(row)
}

#[cfg(test)]
mod tests;
