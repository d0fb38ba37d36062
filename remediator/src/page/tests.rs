//! The page from made-up facts: everything on it once, and everything that others can say as hostile as it gets.

use std::{collections::BTreeMap, time::Duration};

use super::*;
use crate::{
    admission::{Reason, Refusal},
    api::{Asked, prometheus::Exporter},
    clock::Moment,
    config::tests::config,
    daemon::Reload,
    fleet::view::View,
    journal::{Halt, HaltKind, Loss, Record},
    observe::{Container, Filesystem, Unit},
    pipeline::{Check, Finding, Report, State},
    policy::Class,
};

/// 2027-01-15 08:00:00 UTC.
const NOW: i64 = 1_800_000_000_000;
const MINUTE: i64 = 60_000;

const RULES: &str = "
policy: {mode: auto, deletion: cache}
identity: {hosts: [vps1]}
rules:
  - name: disk-high
    match: ['alertname=\"HostDiskHigh\"']
    target: {filesystem: mountpoint, allow: [/, /var, /var/lib/docker]}
    needed: {usage_above: 85%}
    limits: [1/15m, 3/6h, 5/24h]
    steps: [build_cache_prune, image_prune]
    verify: {usage_below: 80%, within: 5m, hold: 1m}
  - name: unit-failed
    match: ['alertname=\"SystemdUnitFailed\"']
    target: {unit: name, allow: ['shop-*.service']}
    mode: approve
    window: {days: [mon-fri], from: '07:00', to: '22:00'}
    steps: [unit_restart]
    verify: {active_for: 60s, within: 4m}
  - name: container-unhealthy
    match: ['alertname=\"ContainerUnhealthy\"', 'severity!=\"info\"']
    target: {container: name, allow: ['shop_*']}
    steps: [container_restart]
    verify: {healthy_for: 60s, within: 5m}
  - name: weekly-build-cache
    on_demand: true
    mode: plan
    needed: {build_cache_above: 1GB}
    limits: [1/24h]
    steps: [{build_cache_prune: {unused_for: 168h}}]
    verify: {completed: true, within: 10m}
";

fn record(id: i64, rule: &str, kind: &str, target: &str) -> Record {
    Record {
        id,
        rule: rule.to_owned(),
        kind: kind.to_owned(),
        target: target.to_owned(),
        phase: Phase::Received,
        step: 0,
        acted: true,
        fingerprint: String::new(),
        labels: BTreeMap::new(),
        deliveries: 1,
        received_wall_ms: NOW - 10 * MINUTE,
        last_seen_wall_ms: NOW - 10 * MINUTE,
        resolved_wall_ms: None,
        before: None,
        after: None,
        outcome: None,
        reason: None,
        detail: None,
        next_allowed_wall_ms: None,
        ended_wall_ms: None,
        triggered_by: None,
        decided_by: None,
        acked_by: None,
    }
}

fn entry(record: Record, steps: Vec<StepRecord>) -> Entry {
    Entry { record, steps, asked_ms: None }
}

fn step_of(action: &str, class: Class, state: StepState) -> StepRecord {
    StepRecord {
        position: 0,
        action: action.to_owned(),
        class,
        plan: format!("{action} as planned"),
        state,
        reason: None,
        detail: None,
        started_wall_ms: None,
        ended_wall_ms: None,
        claimed_freed_bytes: None,
        measured_freed_bytes: None,
    }
}

fn disk(used_ratio: f64, avail_bytes: u64) -> Option<Observation> {
    Some(Observation::Filesystem(Filesystem {
        size_bytes: 512_000_000_000,
        avail_bytes,
        used_ratio,
        inodes: None,
        device: 1,
    }))
}

fn unit(active_state: &str, result: &str) -> Option<Observation> {
    Some(Observation::Unit(Unit {
        load_state: "loaded".to_owned(),
        active_state: active_state.to_owned(),
        sub_state: active_state.to_owned(),
        result: result.to_owned(),
        ..Unit::default()
    }))
}

fn container(health: &str) -> Option<Observation> {
    Some(Observation::Container(Container {
        state: "running".to_owned(),
        health: health.to_owned(),
        failing_streak: 12,
        ..Container::default()
    }))
}

/// Nothing has happened yet.
fn quiet(config: &Config) -> Facts {
    let standing = || Standing { in_progress: 0, awaiting: 0, escalated: 0, results: Vec::new() };
    Facts {
        now_ms: NOW,
        halts: Vec::new(),
        loss: None,
        open: Vec::new(),
        open_count: 0,
        ended: Vec::new(),
        standings: config.rules.iter().map(|_| standing()).collect(),
        budgets: Vec::new(),
        held: Vec::new(),
    }
}

/// Everything at once.
fn busy(config: &Config) -> Facts {
    let mut facts = quiet(config);
    facts.halts = vec![Halt {
        what: HaltKind::Pause,
        reason: "moving the database".to_owned(),
        author: "root".to_owned(),
        since_wall_ms: NOW - 30 * MINUTE,
        left: Some(Duration::from_secs(1800)),
    }];
    let asked = Record {
        phase: Phase::Awaiting,
        before: unit("failed", "exit-code"),
        ..record(41, "unit-failed", "unit", "shop-api.service")
    };
    let planned = step_of("unit_restart", Class::S2, StepState::Planned);
    let asked = Entry { asked_ms: Some(NOW - 9 * MINUTE), ..entry(asked, vec![planned]) };
    let running = Record {
        phase: Phase::Verifying,
        deliveries: 3,
        before: disk(0.912, 45_000_000_000),
        ..record(42, "disk-high", "filesystem", "/var/lib/docker")
    };
    let prune = StepRecord {
        measured_freed_bytes: Some(38_400_000_000),
        claimed_freed_bytes: Some(41_000_000_000),
        ..step_of("build_cache_prune", Class::D1, StepState::Done)
    };
    let skipped = StepRecord {
        reason: Some("too_little".to_owned()),
        ..step_of("image_prune", Class::D1, StepState::Skipped)
    };
    facts.open = vec![asked, entry(running, vec![prune.clone(), skipped])];
    facts.open_count = 7;
    let ended = |record: Record, outcome, reason: &str, detail: &str| Record {
        phase: Phase::Ended,
        outcome: Some(outcome),
        reason: Some(reason.to_owned()),
        detail: Some(detail.to_owned()),
        ended_wall_ms: Some(NOW - 5 * MINUTE),
        ..record
    };
    let ineffective = Record {
        before: container("unhealthy"),
        after: container("unhealthy"),
        acked_by: Some("root".to_owned()),
        ..ended(
            record(40, "container-unhealthy", "container", "shop_worker"),
            Outcome::Ineffective,
            "steps_used_up",
            "it was done, and it is not well",
        )
    };
    let succeeded = Record {
        before: disk(0.912, 45_000_000_000),
        after: disk(0.78, 112_000_000_000),
        ..ended(record(39, "disk-high", "filesystem", "/"), Outcome::Succeeded, "", "")
    };
    let limited = Record {
        acted: false,
        next_allowed_wall_ms: Some(NOW + 100 * MINUTE),
        ..ended(
            record(38, "unit-failed", "unit", "shop-import.service"),
            Outcome::Limited,
            "limited",
            "3 of 3 starts of this rule on this target used (3/1h)",
        )
    };
    let restart = step_of("container_restart", Class::S2, StepState::Done);
    facts.ended =
        vec![entry(ineffective, vec![restart]), entry(succeeded, vec![prune]), entry(limited, Vec::new())];
    facts.budgets = vec![Used {
        scope: "steps that interrupt a service (S2), this host".to_owned(),
        windows: vec![("1/1m".parse().unwrap(), 1), ("6/1h".parse().unwrap(), 2)],
        full_until_ms: Some(NOW + 20_000),
    }];
    facts.held = vec![Held {
        rule: "container-unhealthy".to_owned(),
        target: "shop_worker".to_owned(),
        named: "container shop_worker".to_owned(),
        breaker: Breaker::Open,
        refusal: Some((
            Refusal {
                reason: Reason::Breaker,
                scope: "rule_target",
                detail: "the last 2 tries did not help; a person is needed".to_owned(),
                wait: Duration::from_secs(3600),
            },
            NOW + 60 * MINUTE,
        )),
    }];
    facts.standings[0] =
        Standing { in_progress: 1, awaiting: 0, escalated: 0, results: vec![(Outcome::Succeeded, 4)] };
    facts.standings[1].awaiting = 1;
    facts.standings[2] =
        Standing { in_progress: 0, awaiting: 0, escalated: 1, results: vec![(Outcome::Ineffective, 2)] };
    facts
}

/// One that is well, and asks nobody.
fn daemon() -> Daemon {
    let started = Moment { wall_ms: NOW - 180 * MINUTE, boot_ms: 0, boot_id: String::new() };
    Daemon {
        role: None,
        fleet: None,
        version: "1.2.3".to_owned(),
        revision: "abc".to_owned(),
        started,
        reload: Reload { succeeded: true, at_ms: NOW - 90 * MINUTE },
        state_degraded: None,
        exporter: None,
        prometheus: None,
        alertmanager: None,
        pipeline: Report::default(),
        arrived: BTreeMap::new(),
    }
}

/// One that nothing goes right for.
fn troubled() -> Daemon {
    let at_ms = NOW - MINUTE;
    let silent = |fault: &str| Asked { at_ms, fault: Some(fault.to_owned()), answered_ms: None };
    Daemon {
        reload: Reload { succeeded: false, ..daemon().reload },
        state_degraded: Some("database or disk is full".to_owned()),
        exporter: Some(Exporter::Unknown),
        prometheus: Some(Asked { answered_ms: Some(NOW - 5 * MINUTE), ..silent("no answer within 5 s") }),
        alertmanager: Some(silent("cannot be reached")),
        ..daemon()
    }
}

#[test]
fn a_quiet_page_says_that_nothing_is_wrong() {
    let config = config(RULES).unwrap();
    let page = body(&config, &quiet(&config), &daemon());
    for words in [
        "<h1>evenkeel-remediator on vps1</h1>",
        "Running since <time datetime=\"2027-01-15T05:00:00Z\">2027-01-15 05:00:00 UTC (3 h ago)</time>. Version 1.2.3,",
        "Whether this host&#39;s exporter is scraped is not known: no <code>prometheus</code> in the configuration.",
        "Nothing is waiting or running.",
        "Nothing has ended yet.",
        "No cooldown is running and every breaker is closed.",
        "mode <strong>auto</strong>, deletion <strong>cache</strong>; 4 rules. Configuration read <time",
        "has not acted",
        "evenkeel-remediator trigger weekly-build-cache",
    ] {
        assert!(page.contains(words), "{words}\n{page}");
    }
    assert!(!page.contains("notice bad") && !page.contains("notice wait"), "{page}");
}

#[test]
fn a_mere_gateway_shows_its_fleet_and_no_tables_of_its_own() {
    let config = config("identity: {hosts: [gateway1]}").unwrap();
    let mut facts = quiet(&config);
    let view = View { total: 2, ..View::default() };
    let gateway = Daemon { role: Some("gateway".to_owned()), fleet: Some(view), ..daemon() };
    let page = body(&config, &facts, &gateway);
    assert!(page.contains("2 of 2 hosts there, 0 gone") && page.contains("; this is a gateway"), "{page}");
    assert!(!page.contains("every alert is ignored") && !page.contains("<h2>Open</h2>"), "{page}");

    // What it left undone as an agent is not hidden.
    facts.open_count = 1;
    assert!(body(&config, &facts, &gateway).contains("<h2>Open</h2>"));

    let lost = body(&config, &facts, &Daemon { fleet: None, ..gateway });
    assert!(lost.contains("The fleet is not known:") && !lost.contains("<h2>Fleet</h2>"), "{lost}");
}

/// With the two servers that may be asked.
fn asking() -> Config {
    let servers =
        "alertmanager: {url: 'http://127.0.0.1:9093'}\nprometheus: {url: 'http://127.0.0.1:9090'}\n";
    config(&format!("{servers}{RULES}")).unwrap()
}

#[test]
fn whether_the_exporter_is_scraped_is_told_as_it_is_known() {
    let config = asking();
    let page = |exporter| body(&config, &quiet(&config), &Daemon { exporter, ..daemon() });
    for (exporter, class, words) in [
        (None, "dim", "Whether this host&#39;s exporter is scraped is not known yet."),
        (Some(Exporter::Up), "dim", "Prometheus scrapes this host&#39;s exporter."),
        (
            Some(Exporter::Down),
            "bad",
            "<strong>Prometheus cannot scrape this host&#39;s exporter:</strong> no alert comes from it.",
        ),
        (
            Some(Exporter::Absent),
            "bad",
            "<strong>Prometheus has no exporter of this host among its targets:</strong> no alert comes from it.",
        ),
    ] {
        let page = page(exporter);
        assert!(page.contains(&format!("<p class=\"notice {class}\">{words}</p>")), "{words}\n{page}");
    }
}

#[test]
fn what_keeps_alerts_from_coming_is_told_once() {
    let config = asking();
    let finding = |check, state, detail: &str| Finding {
        check,
        state,
        detail: detail.to_owned(),
        cure: format!("mend {detail}"),
    };
    let findings = vec![
        finding(Check::Prometheus, State::Failing, "no answer"),
        finding(Check::Jobs, State::Failing, "no target <b>"),
        finding(Check::Rules, State::Unknown, "no idea"),
        finding(Check::Routes, State::Failing, "no route"),
    ];
    let pipeline = Report { at_ms: NOW, findings };
    let page = |exporter| {
        let daemon = Daemon { exporter: Some(exporter), pipeline: pipeline.clone(), ..daemon() };
        body(&config, &quiet(&config), &daemon)
    };
    let page_up = page(Exporter::Up);
    for words in [
        "<strong>Alerts may not arrive:</strong> no route. What to do: mend no route.",
        "<strong>Alerts may not arrive:</strong> no target &lt;b&gt;. What to do:",
    ] {
        assert!(page_up.contains(words), "{words}\n{page_up}");
    }
    // Said by the lines about the servers and the exporter.
    assert!(!page_up.contains("no answer") && !page_up.contains("no idea"), "{page_up}");
    assert!(!page(Exporter::Down).contains("no target"));
}

#[test]
fn a_busy_page_says_what_holds_it_back_what_it_measured_and_what_to_type() {
    let config = asking();
    let page = body(&config, &busy(&config), &troubled());
    for words in [
        "<strong>Paused by root</strong>: moving the database. Since <time datetime=\"2027-01-15T07:30:00Z\">",
        "until <time datetime=\"2027-01-15T08:30:00Z\">2027-01-15 08:30:00 UTC (in 30 min)</time>",
        "<code>evenkeel-remediator resume</code>",
        "<strong>The state cannot be written where it belongs</strong> (/var/lib/evenkeel-remediator): database or \
         disk is full. It lies in /run/evenkeel-remediator/",
        "The last reload was refused.",
        "is not known: it does not say.",
        "<strong>Prometheus does not answer:</strong> no answer within 5 s, <time",
        "It last answered <time datetime=\"2027-01-15T07:55:00Z\">",
        "<strong>Alertmanager does not answer:</strong> cannot be reached, <time",
        "It has not answered since this process began.",
        "Waiting for approval: 1.",
        "<strong>A person is needed:</strong> one target is not well",
        "<code>evenkeel-remediator approve 41</code><br><code>evenkeel-remediator reject 41</code><br>expires \
         <time datetime=\"2027-01-15T08:21:00Z\">",
        "The oldest 2 without an outcome yet, and 5 more",
        "3 alerts",
        "freed 38.4 GB <span class=\"dim\">(41.0 GB claimed)</span>",
        "before: 91.2 % used, 45.0 GB of 512.0 GB available, no fixed number of inodes<br>after: 78.0 % used",
        "acknowledged by root",
        "breaker open</span><br>the last 2 tries did not help; a person is needed",
        "<code>evenkeel-remediator ack container-unhealthy shop_worker</code>",
        "1 of 1 in 1m<br>2 of 6 in 1h",
        "4 of 4 repairs helped",
        "0 of 2 repairs helped",
        "1 need a person",
    ] {
        assert!(page.contains(words), "{words}\n{page}");
    }
}

/// Everything that comes from outside, each with markup, quotes, a line's end, and no end to it.
fn hostile(config: &Config) -> Facts {
    let evil = || format!("\"'><img src=x onerror=alert(1)><script>&\n\u{202e}{}", "<x y='".repeat(2000));
    let unit = Observation::Unit(Unit {
        load_state: evil(),
        active_state: evil(),
        sub_state: evil(),
        result: evil(),
        ..Unit::default()
    });
    let step = StepRecord {
        action: evil(),
        plan: evil(),
        reason: Some(evil()),
        detail: Some(evil()),
        ..step_of("", Class::S2, StepState::Planned)
    };
    let of = |outcome| Record {
        before: Some(unit.clone()),
        after: Some(unit.clone()),
        outcome,
        reason: Some(evil()),
        detail: Some(evil()),
        decided_by: Some(evil()),
        acked_by: Some(evil()),
        ..record(1, &evil(), &evil(), &evil())
    };
    let many = |count: usize, outcome| {
        (0..count).map(|_| entry(of(outcome), vec![step.clone(); 50])).collect::<Vec<_>>()
    };
    let mut facts = busy(config);
    facts.open = many(50, None);
    facts.ended = many(25, Some(Outcome::Failed));
    facts.halts[0].author = evil();
    facts.halts[0].reason = evil();
    let moment = Moment { wall_ms: 0, boot_ms: 0, boot_id: String::new() };
    facts.loss = Some(Loss { moment, wall_ms: 0, why: evil() });
    facts.held = (0..1000)
        .map(|_| Held { rule: evil(), target: evil(), named: evil(), breaker: Breaker::Open, refusal: None })
        .collect();
    facts.budgets =
        (0..1000).map(|_| Used { scope: evil(), windows: Vec::new(), full_until_ms: None }).collect();
    facts
}

/// What is markup on the page is what stands in this list: nothing of others, no script, nothing to load.
#[test]
fn nothing_that_others_say_becomes_markup_and_the_page_is_bounded() {
    const TAGS: [&str; 26] = [
        "a", "br", "caption", "code", "div", "footer", "h1", "h2", "header", "li", "main", "p", "section",
        "span", "strong", "table", "tbody", "td", "th", "thead", "time", "tr", "ul", "style", "title",
        "meta",
    ];
    const ATTRIBUTES: [&str; 7] = ["aria-hidden", "class", "data-label", "datetime", "href", "role", "scope"];
    let mut config = asking();
    config.hosts = vec!["<script>alert(1)</script>".repeat(100)];
    let said = "\"'><script>alert(1)</script>\n".repeat(1000);
    let silent = Asked { at_ms: NOW, fault: Some(said.clone()), answered_ms: None };
    let daemon = Daemon {
        state_degraded: Some(said.clone()),
        prometheus: Some(silent.clone()),
        alertmanager: Some(silent),
        ..troubled()
    };
    let page = body(&config, &hostile(&config), &daemon);
    assert!(page.len() < 3 << 20, "{} bytes", page.len());
    assert!(page.contains("&lt;img src=x onerror=alert(1)&gt;"), "it is shown, as text");
    for piece in page.split('<').skip(1) {
        let (tag, rest) = piece.split_once('>').expect("each < begins a tag");
        let mut words = tag.strip_prefix('/').unwrap_or(tag).splitn(2, ' ');
        let name = words.next().unwrap_or_default();
        assert!(TAGS.contains(&name), "<{tag}>");
        let quotes: Vec<&str> = words.next().unwrap_or_default().split('"').collect();
        for attribute in quotes.chunks(2).map(|pair| pair[0].trim().trim_end_matches('=')) {
            assert!(attribute.is_empty() || ATTRIBUTES.contains(&attribute), "<{tag}>");
        }
        assert!(!rest.contains('>'), "each > ends a tag: {rest}");
    }
    assert!(!page.contains('\u{202e}'), "nothing turns the text round");
}
