//! The whole fleet, as the gateway whose page this is saw it last.

use std::time::Duration;

use evenkeel_host::config::PromDuration;

use super::html::{Cell, Table, Tone, code, mark, notice, text, time};
use crate::fleet::{
    names::Scope,
    view::{Budget, View},
};

/// Hosts of a kind that are listed; the others are counted.
const ROWS: usize = 20;

/// What must be seen first. `heard` is whether this host says already that the fleet is paused.
pub(super) fn notices(page: &mut String, view: &View, heard: bool) {
    if let Some(pause) = view.pause.as_ref().filter(|_| !heard) {
        let markup = format!(
            "<strong>The fleet is paused by {}</strong>: {}",
            text(&pause.author),
            text(&pause.reason)
        );
        notice(page, Tone::Bad, &markup);
    }
    if view.stopped {
        let markup = format!(
            "<strong>The fleet is stopped:</strong> {} of its {} hosts are gone or in need. That is one cause and not many.",
            view.gone + view.unwell,
            view.total
        );
        notice(page, Tone::Bad, &markup);
    }
}

/// A gateway without a picture of its fleet.
pub(super) fn lost(page: &mut String) {
    let markup = format!(
        "<strong>The fleet is not known:</strong> its Redis has not answered the last question. {} says why.",
        code("evenkeel-remediator fleet status")
    );
    notice(page, Tone::Bad, &markup);
}

/// A row for each host that there is something to say about.
pub(super) fn hosts(view: &View, role: &str) -> Table {
    let mut rows =
        listed(&view.acting_hosts, Tone::Good, "acting", |time| format!("its lease stands for {time}"));
    rows.extend(listed(&view.gone_hosts, Tone::Bad, "gone", |time| format!("last heard of {time} ago")));
    rows.extend(listed(&view.unclaimed, Tone::Bad, "claimed by no agent", |time| {
        format!("an alert was for it {time} ago")
    }));
    for (host, alerts) in view.backlog.iter().flat_map(|backlog| &backlog.hosts).take(ROWS) {
        let waiting =
            if *alerts == 1 { "one alert waits".to_owned() } else { format!("{alerts} alerts wait") };
        rows.push(vec![text(host), mark(Tone::Wait, "behind"), text(&format!("{waiting} in Redis"))]);
    }
    let there = view.total.saturating_sub(view.gone);
    let caption = format!(
        "{there} of {} hosts there, {} gone, {} in need; {} of {} that may act at once are acting; this is {}",
        view.total,
        view.gone,
        view.unwell,
        view.acting,
        view.most,
        if role == "both" { "a gateway and one of the hosts" } else { "a gateway" }
    );
    if rows.is_empty() {
        // The caption says it all, and stands only over a table.
        rows.push(vec![text("all hosts"), mark(Tone::Good, "quiet"), String::new()]);
    }
    Table { title: "Fleet", caption, headings: &["Host", "State", "More"], rows, empty: "" }
}

/// What all hosts together may still start.
pub(super) fn budgets(view: &View) -> Table {
    Table {
        title: "Limits of the fleet",
        caption: "Starts of all hosts together that each window holds, of those that it admits".to_owned(),
        headings: &["Of", "Used", "Next start"],
        rows: view.budgets.iter().map(|budget| budget_row(budget, view.at_ms)).collect(),
        empty: "No limits of the fleet are configured; those of each host hold.",
    }
}

fn budget_row(budget: &Budget, now_ms: i64) -> Vec<Cell> {
    let scope = match Scope::labelled(&budget.scope) {
        Some(scope) => text(&format!("starts {}", scope.words())),
        None => text(&budget.scope),
    };
    // A window that is longer than Redis's memory counts as full, whatever it holds.
    let is_full = budget.used >= u64::from(budget.count);
    let next = match (budget.wait_ms, is_full) {
        (0, _) => mark(Tone::Good, "admitted"),
        (wait, is_full) => {
            let word = if is_full { "used up" } else { "counts as used up: Redis remembers too little" };
            let at_ms = now_ms.saturating_add(i64::try_from(wait).unwrap_or(i64::MAX));
            format!("{}<br>{}", mark(Tone::Wait, word), time(at_ms, now_ms))
        }
    };
    vec![scope, format!("{} of {} in {}", budget.used, budget.count, span(budget.window_ms)), next]
}

/// Rows of hosts of one kind; `say` makes words of the time of each.
fn listed(
    hosts: &[(String, u64)],
    tone: Tone,
    state: &str,
    say: impl Fn(String) -> String,
) -> Vec<Vec<Cell>> {
    let row = |(host, ms): &(String, u64)| vec![text(host), mark(tone, state), text(&say(span(*ms)))];
    hosts.iter().take(ROWS).map(row).collect()
}

/// Whole seconds where there are any.
fn span(ms: u64) -> String {
    let rounded = if ms >= 1000 { ms / 1000 * 1000 } else { ms };
    PromDuration::new(Duration::from_millis(rounded)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::view::{Backlog, Pause};

    #[test]
    fn names_from_redis_are_text_and_never_markup() {
        let evil = || "<script>alert(1)</script>".to_owned();
        let view = View {
            total: 3,
            gone: 1,
            stopped: true,
            pause: Some(Pause { author: evil(), reason: evil(), left_ms: None }),
            acting_hosts: vec![(evil(), 1500)],
            gone_hosts: vec![(evil(), 90_000)],
            unclaimed: vec![(evil(), 1)],
            backlog: Some(Backlog { alerts: 4, hosts: vec![(evil(), 4)] }),
            budgets: vec![Budget { scope: evil(), count: 3, window_ms: 60_000, used: 1, wait_ms: 0 }],
            ..View::default()
        };
        let mut page = String::new();
        notices(&mut page, &view, false);
        hosts(&view, "gateway").write(&mut page);
        budgets(&view).write(&mut page);
        assert!(!page.contains("<script"), "{page}");
        for said in [
            "2 of 3 hosts there, 1 gone",
            "its lease stands for 1s",
            "last heard of 1m30s ago",
            "4 alerts wait in Redis",
            "1 of 3 in 1m",
        ] {
            assert!(page.contains(said), "{said}: {page}");
        }
    }

    #[test]
    fn limits_of_the_fleet_say_what_they_are_of_and_why_nothing_is_admitted() {
        let of = |scope: &str, used, wait_ms| Budget {
            scope: scope.to_owned(),
            count: 30,
            window_ms: 3_600_000,
            used,
            wait_ms,
        };
        let view = View {
            budgets: vec![of("fleet_S2", 2, 0), of("fleet", 30, 60_000), of("fleet_D1", 0, 60_000)],
            ..View::default()
        };
        let mut page = String::new();
        budgets(&view).write(&mut page);
        for said in [
            "starts of steps that interrupt a service (S2) in the fleet",
            "2 of 30 in 1h",
            "</span>admitted",
            "</span>used up</span>",
            "counts as used up: Redis remembers too little",
        ] {
            assert!(page.contains(said), "{said}: {page}");
        }
    }

    #[test]
    fn a_pause_that_this_host_has_heard_of_is_told_once() {
        let pause = Pause { author: "root".to_owned(), reason: "a rollout".to_owned(), left_ms: None };
        let view = View { pause: Some(pause), ..View::default() };
        for (heard, times) in [(false, 1), (true, 0)] {
            let mut page = String::new();
            notices(&mut page, &view, heard);
            assert_eq!(page.matches("a rollout").count(), times, "{page}");
        }
    }
}
