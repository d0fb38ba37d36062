//! What the journal knows, as gauges for one scrape.

use evenkeel_host::{
    build,
    config::PromDuration,
    metrics::{Block, Family as Values, process},
};

use crate::{
    admission::{Breaker, Scope},
    clock::{Clock, Moment},
    config::Config,
    journal::{Error, HaltKind, Reader},
    outcome::Outcome,
    policy::Class,
};

/// What the journal knows, with this process's own figures.
///
/// # Errors
/// When the journal cannot be read.
pub fn observed(config: &Config, reader: &Reader, clock: &Clock) -> Result<Block, Error> {
    let wall_ms = clock.now().wall_ms;
    let now = reader.on_timeline(&clock.now())?;
    let mut families = rules(config, reader, &now)?;
    families.push(budgets(config, reader, &now)?);
    families.extend(queue(reader, wall_ms)?);
    families.extend(halts(reader, &now, config.fleet.is_some())?);
    families.push(loss(reader)?);
    families.push(
        Values::gauge("evenkeel_remediator_build_info", "What this remediator was built from").with(
            &[("version", build::VERSION), ("revision", build::REVISION), ("rustc", build::RUSTC)],
            1.0,
        ),
    );
    families.extend(process());
    Ok(Block::new(families))
}

/// What is told of each rule.
fn rules(config: &Config, reader: &Reader, now: &Moment) -> Result<Vec<Values>, Error> {
    let mut in_progress = Values::gauge(
        "evenkeel_remediator_in_progress",
        "Remediations between the reservation of a start and the end of its verification",
    );
    let mut escalated = Values::gauge(
        "evenkeel_remediator_escalated",
        "Targets whose last remediation did not help: a person is needed",
    );
    let mut breaker = Values::gauge(
        "evenkeel_remediator_breaker_state",
        "Targets of a rule whose breaker is in this state",
    );
    let mut pending = Values::gauge(
        "evenkeel_remediator_approval_pending",
        "Remediations that wait for a person to approve of them",
    );
    let mut results = Values::gauge(
        "evenkeel_remediator_results",
        "Remediations on record (90 days) that acted, by how they ended: how often a rule helps",
    );
    let mut last_end = Values::gauge(
        "evenkeel_remediator_last_end_timestamp_seconds",
        "When a remediation on record that acted last ended so",
    );
    for rule in &config.rules {
        let label = [("rule", rule.name.as_str())];
        let facts = reader.rule_facts(&rule.name)?;
        in_progress.sample(&label, number(facts.in_progress));
        escalated.sample(&label, number(facts.escalated));
        pending.sample(&label, number(facts.awaiting));
        let standing = reader.breakers(&rule.name, &rule.restraint, now)?;
        for state in [Breaker::Closed, Breaker::HalfOpen, Breaker::Open] {
            let count = standing.iter().filter(|(.., known)| *known == state).count();
            breaker.sample(
                &[("rule", &rule.name), ("state", state.as_str())],
                number(u64::try_from(count).unwrap_or(u64::MAX)),
            );
        }
        let counts = reader.results(&rule.name)?;
        for outcome in Outcome::ALL.into_iter().filter(|outcome| outcome.acted() && rule.acts()) {
            let count = counts.iter().filter(|(known, _)| *known == outcome).map(|(_, count)| count).sum();
            results.sample(&[("rule", &rule.name), ("outcome", outcome.as_str())], number(count));
        }
        for (outcome, wall_ms) in reader.last_ends(&rule.name)? {
            let seconds = number(u64::try_from(wall_ms).unwrap_or(0)) / 1000.0;
            last_end.sample(&[("rule", &rule.name), ("outcome", outcome.as_str())], seconds);
        }
    }
    Ok(vec![in_progress, escalated, breaker, pending, results, last_end])
}

/// What the windows of the whole host still admit.
fn budgets(config: &Config, reader: &Reader, now: &Moment) -> Result<Values, Error> {
    let mut budget = Values::gauge(
        "evenkeel_remediator_budget_remaining",
        "Starts that a window of a whole-host scope still admits",
    );
    let classes = [Class::S1, Class::S2, Class::D1, Class::D2];
    let scopes = classes.map(|class| (Scope::Class(class), config.limits.class(class)));
    for (scope, limits) in scopes.into_iter().chain([(Scope::Host, config.limits.host.as_slice())]) {
        for (limit, used) in reader.budget(&scope, limits)?.used(now) {
            let window = PromDuration::new(limit.window).to_string();
            let left = f64::from(limit.count) - number(u64::try_from(used).unwrap_or(u64::MAX));
            budget.sample(&[("scope", scope.label()), ("window", &window)], left.max(0.0));
        }
    }
    Ok(budget)
}

fn queue(reader: &Reader, wall_ms: i64) -> Result<[Values; 2], Error> {
    let (depth, oldest) = reader.queue()?;
    let age = oldest.map_or(0, |oldest| u64::try_from(wall_ms - oldest).unwrap_or(0));
    Ok([
        Values::gauge("evenkeel_remediator_queue_depth", "Remediations without an outcome")
            .with(&[], number(depth)),
        Values::gauge(
            "evenkeel_remediator_queue_oldest_seconds",
            "Age of the oldest of them, 0 when there is none",
        )
        .with(&[], number(age) / 1000.0),
    ])
}

/// What keeps anything from being begun.
fn halts(reader: &Reader, now: &Moment, has_fleet: bool) -> Result<Vec<Values>, Error> {
    let halts = reader.halts(now)?;
    let is = |what| f64::from(u8::from(halts.iter().any(|halt| halt.what == what)));
    let mut families = vec![
        Values::gauge("evenkeel_remediator_paused", "Whether a person has stopped everything")
            .with(&[], is(HaltKind::Pause)),
        Values::gauge(
            "evenkeel_remediator_storm_active",
            "Whether so many targets are in need at once that no service is touched",
        )
        .with(&[], is(HaltKind::Storm)),
    ];
    if has_fleet {
        families.push(
            Values::gauge(
                "evenkeel_remediator_fleet_paused",
                "Whether a person has stopped the whole fleet, as this host heard of it last",
            )
            .with(&[], is(HaltKind::FleetPause)),
        );
    }
    Ok(families)
}

fn loss(reader: &Reader) -> Result<Values, Error> {
    let at = reader.loss()?.map_or(0, |loss| u64::try_from(loss.wall_ms).unwrap_or(0));
    Ok(Values::gauge(
        "evenkeel_remediator_state_lost_timestamp_seconds",
        "When an earlier state was lost, since which every limit counts as used up for its window; 0 when none was",
    )
    .with(&[], number(at) / 1000.0))
}

#[expect(clippy::cast_precision_loss, reason = "counts and milliseconds are far below 2^53")]
fn number(value: u64) -> f64 {
    value as f64
}
