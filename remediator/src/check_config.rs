//! `check-config`: what the configuration means, with its defaults: what holds for all rules, and each rule as it will
//! work.

use std::io::Write;

use evenkeel_host::config::{PromDuration, format_bytes};

use crate::{
    admission::Restraint,
    api::Api,
    config::{Access, Config, HostLimits},
    fleet::settings::Settings,
    notify::Receiver,
    policy::{Class, Limit},
    rules::{DoneWhen, NeededWhen, Rule},
    target::Kind,
    text::printable,
};

/// Prints what holds for all rules, and every rule as it will work.
///
/// # Errors
/// When `out` is closed.
pub fn check_config(config: &Config, out: &mut impl Write) -> anyhow::Result<()> {
    writeln!(
        out,
        "the configuration is good: {} rules, mode {}, deletion {}, alerts for {}",
        config.rules.len(),
        config.mode.as_str(),
        config.deletion.as_str(),
        config.hosts.join(", ")
    )?;
    writeln!(out)?;
    for (name, text) in settings(config) {
        writeln!(out, "  {name:<13} {}", printable(&text))?;
    }
    for rule in &config.rules {
        writeln!(out)?;
        describe(config, rule, out)?;
    }
    Ok(())
}

/// What holds for all rules.
fn settings(config: &Config) -> Vec<(&'static str, String)> {
    let Config { gates, storm, reconcile, .. } = config;
    let span = |duration| PromDuration::new(duration).to_string();
    let packages = if gates.package_manager { ", while a package manager is at work" } else { "" };
    let mut settings = vec![
        ("listen", listen(&config.access)),
        ("let in", let_in(&config.access)),
        ("orders", orders(&config.access)),
        ("state", config.state_dir.display().to_string()),
        ("told", told(&config.receivers)),
        ("Alertmanager", config.alertmanager.as_ref().map_or_else(not_asked, address)),
        (
            "Prometheus",
            config.prometheus.as_ref().map_or_else(not_asked, |prometheus| {
                format!("{}, the exporter is job {}", address(&prometheus.api), prometheus.job)
            }),
        ),
        ("limits", limits(&config.limits)),
        (
            "gates",
            format!(
                "closed for {} after a start, for deletions {} after the engine's{packages}, above {:.0} % of stalls or a load of {} per processor",
                span(gates.grace),
                span(gates.engine_grace),
                gates.stall * 100.0,
                gates.load
            ),
        ),
        (
            "storm",
            format!(
                "more than {} targets within {}, held for {}",
                storm.targets,
                span(storm.within),
                span(storm.hold)
            ),
        ),
        ("blast radius", format!("{} others at most that a restart takes along", config.blast_radius)),
        ("approval", format!("within {}", span(config.approval_within))),
        (
            "taken up",
            if reconcile.alert_ttl.is_zero() {
                "never without a new alert".to_owned()
            } else {
                let (interval, ttl) = (span(reconcile.interval), span(reconcile.alert_ttl));
                format!("again each {interval}, for {ttl} after the last alert")
            },
        ),
    ];
    if let Some(golden) = &config.golden {
        let units: Vec<String> = golden.units.iter().map(ToString::to_string).collect();
        let (dir, keep) = (golden.dir.display(), golden.keep);
        settings.push(("snapshots", format!("of {} in {dir}, {keep} kept", units.join(", "))));
    }
    if let Some(fleet) = &config.fleet {
        settings.push(("fleet", in_a_fleet(fleet)));
    }
    settings
}

/// What it shares with other hosts. The URL is without a password.
fn in_a_fleet(fleet: &Settings) -> String {
    let span = |duration| PromDuration::new(duration).to_string();
    let terms = &fleet.terms;
    let limits =
        terms.limits.iter().map(|(scope, windows)| format!("{} {}", scope.label(), windows_of(windows)));
    let limits: Vec<String> = limits.collect();
    let limits = if limits.is_empty() { "no limits of its own".to_owned() } else { limits.join("; ") };
    let stop = terms.stop_above.map_or_else(|| "never".to_owned(), |most| format!("above {most}"));
    let alone = Class::ALL.into_iter().filter(|class| class.acts());
    let alone = alone.map(|class| format!("{} {}", class.as_str(), fleet.on_loss.of(class).as_str()));
    format!(
        "{} at {} as {}; {} may act at once, leases of {}; stops {stop} gone or in need; {limits}; while Redis is lost: {}",
        fleet.keys.namespace(),
        fleet.redis.url,
        fleet.host,
        terms.most_acting,
        span(terms.lease),
        alone.collect::<Vec<_>>().join(", ")
    )
}

fn listen(access: &Access) -> String {
    if access.systemd_socket {
        return "sockets of systemd's".to_owned();
    }
    access.listen.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Who may deliver alerts.
fn let_in(access: &Access) -> String {
    let offers = access.security.offers();
    let who = [
        (access.open, "everyone on this machine (auth: none)"),
        (!access.tokens.is_empty(), "whoever has a bearer token"),
        (offers.users, "users of the web configuration"),
        (offers.client_certificates, "clients with a certificate"),
        (offers.tls, "over TLS"),
    ];
    who.into_iter().filter_map(|(is_so, words)| is_so.then_some(words)).collect::<Vec<_>>().join(", ")
}

fn orders(access: &Access) -> String {
    match access.write_tokens.is_empty() {
        true => "on this host",
        false => "on this host, and over HTTP with a token of the write scope",
    }
    .to_owned()
}

/// Who is told of what; of a URL only the host, for the rest may be secret.
fn told(receivers: &[Receiver]) -> String {
    let one = |receiver: &Receiver| {
        let on: Vec<String> = receiver.on.iter().map(ToString::to_string).collect();
        format!("{} at {} of {}", receiver.form.as_str(), receiver.host(), on.join(", "))
    };
    match receivers {
        [] => "nobody: there is no `notify`".to_owned(),
        some => some.iter().map(one).collect::<Vec<_>>().join("; "),
    }
}

fn not_asked() -> String {
    "not asked: not in the configuration".to_owned()
}

fn address(api: &Api) -> String {
    format!("{}, {}", api.url(), api.login())
}

/// The windows of the whole host.
fn limits(limits: &HostLimits) -> String {
    let classes = Class::ALL.into_iter().map(|class| (class.as_str(), limits.class(class)));
    let others = [("one target", limits.target.as_slice()), ("everything", limits.host.as_slice())];
    let given = classes.chain(others).filter(|(_, windows)| !windows.is_empty());
    let texts: Vec<String> = given.map(|(name, windows)| format!("{name} {}", windows_of(windows))).collect();
    if texts.is_empty() { "none".to_owned() } else { texts.join("; ") }
}

fn windows_of(limits: &[Limit]) -> String {
    limits.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// One rule as it will work.
pub(crate) fn describe(config: &Config, rule: &Rule, out: &mut impl Write) -> std::io::Result<()> {
    let join = |parts: Vec<String>| parts.join(", ");
    writeln!(out, "{} (mode {})", rule.name, rule.mode.as_str())?;
    if rule.on_demand() {
        writeln!(out, "  match   nothing: only `trigger {}` begins it", rule.name)?;
    } else {
        writeln!(out, "  match   {}", join(rule.matchers.iter().map(ToString::to_string).collect()))?;
    }
    let allowed = allowed(rule);
    let target = match rule.selector.kind {
        Kind::Host => "this host".to_owned(),
        kind if rule.on_demand() => format!("{}: {allowed}", kind.as_str()),
        kind => format!("{} named by label {}: {allowed}", kind.as_str(), rule.selector.label),
    };
    writeln!(out, "  target  {target}")?;
    if let Some(needed) = needed(rule) {
        writeln!(out, "  needed  {needed}")?;
    }
    writeln!(out, "  limits  {}", windows_of(&rule.limits))?;
    if !rule.rule_limits.is_empty() {
        writeln!(out, "          {} for all its targets together", windows_of(&rule.rule_limits))?;
    }
    if rule.acts() {
        let Restraint { cooldown, breaker_after, breaker_hold, .. } = rule.restraint;
        let (cooldown, hold) = (PromDuration::new(cooldown), PromDuration::new(breaker_hold));
        writeln!(
            out,
            "  retry   {cooldown} after a try, longer after each further one; after {breaker_after} without effect {hold}, or by `ack`"
        )?;
    }
    if config.fleet.is_some() && !rule.shares {
        writeln!(out, "  budget  of this host alone")?;
    }
    if let Some(hours) = &rule.hours {
        writeln!(out, "  hours   {hours}")?;
    }
    for gate in &rule.gates {
        let otherwise = if gate.open_on_error {
            "also when Prometheus does not say"
        } else {
            "not when Prometheus does not say"
        };
        writeln!(out, "  only if {} ({otherwise})", printable(&gate.promql))?;
    }
    for (position, step) in rule.steps.iter().enumerate() {
        let class = step.0.class();
        let blocked = if config.deletion.allows(class) {
            String::new()
        } else {
            format!("  BLOCKED(policy): policy.deletion is {}", config.deletion.as_str())
        };
        writeln!(out, "  step {}  {} [{}]{blocked}", position + 1, step.0.name(), class.as_str())?;
    }
    if let Some(verify) = &rule.verify {
        let done = match verify.done {
            DoneWhen::Below(marks) => marks.to_string(),
            DoneWhen::Active => "active".to_owned(),
            DoneWhen::NotFailed => "not failed".to_owned(),
            DoneWhen::Stopped => "stopped".to_owned(),
            DoneWhen::Healthy => "healthy".to_owned(),
            DoneWhen::Unreferenced => "named by no unit file".to_owned(),
            DoneWhen::ResolvesTo(address) => format!("resolves to {address}"),
            DoneWhen::Completed => "carried out".to_owned(),
        };
        let hold = match verify.done {
            DoneWhen::Completed => String::new(),
            _ => format!(" for {}", PromDuration::new(verify.hold)),
        };
        writeln!(out, "  done    {done}{hold}, within {}", PromDuration::new(verify.within))?;
    }
    Ok(())
}

/// When a rule that acts is needed.
fn needed(rule: &Rule) -> Option<String> {
    let above =
        |what: &str, mark: Option<f64>| mark.map(|mark| format!("{what} above {:.0} %", mark * 100.0));
    match rule.needed {
        _ if !rule.acts() => None,
        NeededWhen::Above(marks) => {
            let marks = [above("usage", marks.usage), above("inodes", marks.inodes)];
            Some(marks.into_iter().flatten().collect::<Vec<_>>().join(" or "))
        }
        NeededWhen::Unwell => {
            Some(format!("the {} is in a state that one of the steps is for", rule.selector.kind.as_str()))
        }
        NeededWhen::BuildCacheAbove(most) => {
            Some(format!("more than {} of build cache that nothing uses", format_bytes(most)))
        }
        NeededWhen::Always => Some("whenever it is triggered".to_owned()),
    }
}

/// What a rule admits.
pub(crate) fn allowed(rule: &Rule) -> String {
    rule.selector.allow.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
