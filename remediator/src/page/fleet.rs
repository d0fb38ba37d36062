//! The whole fleet, as the gateway whose page this is saw it last.

use std::time::Duration;

use evenkeel_host::config::PromDuration;

use super::html::{Cell, Table, Tone, mark, notice, text};
use crate::fleet::view::View;

/// Hosts of a kind that are listed; the others are counted.
const ROWS: usize = 20;

/// What must be seen first.
pub(super) fn notices(page: &mut String, view: &View) {
    if let Some(pause) = &view.pause {
        let markup = format!(
            "<strong>The fleet is paused by {}:</strong> {}",
            text(&pause.author),
            text(&pause.reason)
        );
        notice(page, Tone::Wait, &markup);
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

/// A row for each host that there is something to say about.
pub(super) fn table(view: &View, role: &str) -> Table {
    let mut rows = listed(&view.acting_hosts, Tone::Good, "acting", "its lease stands for");
    rows.extend(listed(&view.gone_hosts, Tone::Bad, "gone", "last heard of, ago:"));
    rows.extend(listed(&view.unclaimed, Tone::Bad, "claimed by no agent", "its last alert, ago:"));
    for (host, alerts) in view.backlog.iter().flat_map(|backlog| &backlog.hosts).take(ROWS) {
        rows.push(vec![
            text(host),
            mark(Tone::Wait, "behind"),
            text(&format!("{alerts} alerts wait in Redis")),
        ]);
    }
    for budget in &view.budgets {
        let next =
            if budget.wait_ms == 0 { String::new() } else { format!(", next in {}", span(budget.wait_ms)) };
        let limit = format!("{} of {}/{} left{next}", budget.left(), budget.count, span(budget.window_ms));
        rows.push(vec![text(&budget.scope), mark(Tone::Quiet, "budget"), text(&limit)]);
    }
    let there = view.total.saturating_sub(view.gone);
    let caption = format!(
        "{there} hosts there, {} gone, {} in need; {} of {} that may act at once are acting; this is a {role}",
        view.gone, view.unwell, view.acting, view.most
    );
    if rows.is_empty() {
        // The caption says it all, and stands only over a table.
        rows.push(vec![text("all hosts"), mark(Tone::Good, "quiet"), String::new()]);
    }
    Table { title: "Fleet", caption, headings: &["Host or budget", "State", "More"], rows, empty: "" }
}

/// Rows of hosts of one kind; the time of each says `what`.
fn listed(hosts: &[(String, u64)], tone: Tone, state: &str, what: &str) -> Vec<Vec<Cell>> {
    let row = |(host, ms): &(String, u64)| {
        vec![text(host), mark(tone, state), text(&format!("{what} {}", span(*ms)))]
    };
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
    use crate::fleet::view::{Backlog, Budget, Pause};

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
        notices(&mut page, &view);
        table(&view, "gateway").write(&mut page);
        assert!(!page.contains("<script"), "{page}");
        for said in
            ["2 hosts there, 1 gone", "its lease stands for 1s", "4 alerts wait in Redis", "2 of 3/1m left"]
        {
            assert!(page.contains(said), "{said}: {page}");
        }
    }
}
