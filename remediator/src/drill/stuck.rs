//! Why a drill does not get any further: by what is on record of its remediation, by what the checks of the pipeline find,
//! or, when its time is over, by what was to come next.

use std::collections::BTreeMap;

use super::{Drill, Stage, Stop, UNIT};
use crate::{
    api::prometheus::AlertRule,
    clock::rfc3339,
    journal::{Phase, Reader, Record},
    outcome::Outcome,
    pipeline::{self, Finding, State},
    policy::Mode,
};

/// What the record of the remediation says against it.
pub(super) fn by_its_record(drill: &Drill<'_>, record: &Record) -> Result<(), Stop> {
    let (id, rule) = (record.id, &record.rule);
    let reason = record.reason.as_deref().unwrap_or_default();
    let detail = record.detail.as_deref().unwrap_or_default();
    let why = |what: &str| match (reason, detail) {
        ("", "") => format!("#{id} {what}"),
        (reason, "") => format!("#{id} {what} ({reason})"),
        ("", detail) => format!("#{id} {what}: {detail}"),
        (reason, detail) => format!("#{id} {what} ({reason}): {detail}"),
    };
    let explain = format!("evenkeel-remediator explain {rule} {UNIT}");
    match record.outcome {
        Some(Outcome::Succeeded) => Ok(()),
        None => match record.next_allowed_wall_ms {
            Some(next) if next > drill.deadline_ms && record.phase == Phase::Received => Err(Stop::found(
                why(&format!("waits until {}, which is after the end of the drill", rfc3339(next))),
                cure(reason).map_or(explain, str::to_owned),
            )),
            _ => Ok(()),
        },
        Some(Outcome::Planned) => Err(Stop::found(
            format!("#{id} was only planned: the mode is plan"),
            format!("set policy.mode, and mode of rule {rule}, to auto"),
        )),
        Some(Outcome::Reported) => Err(Stop::found(
            format!("#{id} was only reported: rule {rule} has no step that acts"),
            "add the rule `drill` of the shipped remediator.yml before the others",
        )),
        Some(Outcome::NotNeeded) => Err(Stop::found(
            why("was not needed: something else had repaired the unit"),
            format!("who else starts {UNIT}, and whether the remediator sees the same systemd"),
        )),
        Some(outcome) => {
            Err(Stop::found(why(&format!("ended as {outcome}")), cure(reason).map_or(explain, str::to_owned)))
        }
    }
}

/// What ends a refusal.
fn cure(reason: &str) -> Option<&'static str> {
    Some(match reason {
        "paused" => {
            "evenkeel-remediator status says who paused it and why; evenkeel-remediator resume ends it"
        }
        "storm" => {
            "evenkeel-remediator status; too many targets were in need at once, evenkeel-remediator resume ends it"
        }
        "grace" => {
            "wait: after a start of the host or the remediator nothing is touched for a while (policy.gates.grace)"
        }
        "limited" | "cooldown" => {
            "the `limits` and `cooldown` of the rule and policy.limits; evenkeel-remediator status says what they leave"
        }
        "breaker" => "evenkeel-remediator status; after a look, evenkeel-remediator ack RULE TARGET",
        "refused_by_host" => {
            "whether the remediator may restart the unit: evenkeel-remediator generate polkit, anew after each change of the rules"
        }
        _ => return None,
    })
}

/// What the checks find to be broken before what is awaited.
pub(super) async fn in_the_way(drill: &Drill<'_>, awaited: Stage) -> Option<Stop> {
    let found = failing(drill, awaited).await.into_iter().find(|finding| finding.state == State::Failing)?;
    Some(Stop::found(found.detail, found.cure))
}

async fn failing(drill: &Drill<'_>, awaited: Stage) -> Vec<Finding> {
    let config = drill.config;
    let rules: Vec<_> = drill.plan.rule(config).into_iter().collect();
    let mut findings = Vec::new();
    match awaited {
        Stage::Firing if drill.plan.end_to_end => {
            let (raised, loaded) = pipeline::raised(config, &rules, None).await;
            if let (Some(prometheus), Some(_)) = (&config.prometheus, &loaded) {
                let scraped = pipeline::job_is_scraped(config, prometheus, &prometheus.job, None).await;
                findings.extend(scraped.err());
            }
            findings.extend(raised);
        }
        Stage::Firing | Stage::Delivered => {
            let alert = as_rule(drill);
            let loaded = std::slice::from_ref(&alert);
            findings.extend(pipeline::routed(config, &rules, Some(loaded), &BTreeMap::new(), None).await);
        }
        _ => {}
    }
    findings
}

/// The drill's alert as a rule of Prometheus's would raise it: all of its labels are known.
fn as_rule(drill: &Drill<'_>) -> AlertRule {
    AlertRule {
        name: super::ALERT.to_owned(),
        labels: drill.plan.labels.clone(),
        health: "ok".to_owned(),
        last_error: String::new(),
        last_evaluation: String::new(),
        interval: std::time::Duration::ZERO,
    }
}

/// What is said when the time is over.
pub(super) async fn after_all(drill: &Drill<'_>) -> Stop {
    let Some(awaited) = drill.awaited else { return Stop::untold("its time is over", "begin it again") };
    if let Some(stop) = in_the_way(drill, awaited).await {
        return stop;
    }
    let late = "its time is over";
    match awaited {
        Stage::Broken => {
            Stop::untold(format!("{late}: systemd is very slow"), format!("systemctl status {UNIT}"))
        }
        Stage::Firing if drill.plan.end_to_end => Stop::found(
            format!("{late}: Prometheus scrapes the exporter and has the rule, and the alert does not fire"),
            format!(
                "the query systemd_unit_state{{name=\"{UNIT}\"}}: does the exporter select this unit? And the rule's `for`"
            ),
        ),
        Stage::Firing => {
            Stop::found(format!("{late}: Alertmanager took the alert, and does not list it"), "its log")
        }
        Stage::Delivered => Stop::found(
            format!("{late}: the alert fires, and nothing has come of it here"),
            "evenkeel-remediator selftest; Alertmanager's log and its alertmanager_notifications_failed_total; group_wait of the route; the remediator's log",
        ),
        Stage::Repaired | Stage::Verified => match standing(drill) {
            Some(standing) => Stop::found(
                format!("{late}: {standing}"),
                format!("evenkeel-remediator explain {} {UNIT}", drill.plan.rule),
            ),
            None => Stop::found(
                format!("{late}: it was delivered, and is not done"),
                "systemctl status evenkeel-remediator, and its log",
            ),
        },
        Stage::Resolved => Stop::found(
            format!("{late}: the unit is well, and the remediator has not heard that the alert is over"),
            "send_resolved: true of Alertmanager's webhook, the rule's keep_firing_for and the route's group_interval; or give it more time (--timeout)",
        ),
    }
}

/// How the remediation stands that is not done.
fn standing(drill: &Drill<'_>) -> Option<String> {
    let reader = Reader::open_if_any(&drill.config.places()).ok()??;
    let record = reader.recent(None, Some(UNIT), 1).ok()?.into_iter().next()?;
    let id = record.id;
    if record.phase == Phase::Awaiting || drill.plan.mode == Mode::Approve {
        return Some(format!("#{id} waits for approval (evenkeel-remediator approve {id})"));
    }
    let detail = record
        .detail
        .filter(|detail| !detail.is_empty())
        .map_or_else(String::new, |detail| format!(": {detail}"));
    Some(format!("#{id} is {}{detail}", record.phase.as_str()))
}
