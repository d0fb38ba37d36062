//! `simulate`: a captured webhook against this configuration and this host, without any effect.

use std::io::Write;

use anyhow::Context;

use crate::{
    clock::Clock,
    config::Config,
    daemon,
    explain::{View, assessor},
    journal::Reader,
    text::printable,
    webhook::{self, Alert, Meaning},
};

/// Prints what each alert of a webhook's body would lead to now.
///
/// # Errors
/// When the body is no webhook, or the state cannot be read.
pub async fn run(config: Config, body: &[u8], out: &mut impl Write) -> anyhow::Result<()> {
    let reader = Reader::open_if_any(&config.places())?;
    let assessor = assessor(config);
    let (daemon, clock) = (daemon::ask(&assessor.config).await, Clock::default());
    let view = View { assessor: &assessor, reader: reader.as_ref(), daemon: &daemon, clock: &clock };
    write(&view, body, out).await
}

/// The same, by what is known already.
pub(crate) async fn write(view: &View<'_>, body: &[u8], out: &mut impl Write) -> anyhow::Result<()> {
    let config = &view.assessor.config;
    let mut alerts = Vec::new();
    // On this machine: as a delivery over loopback.
    webhook::read(body, config, true, |alert, meaning| {
        let name = alert.label("alertname").unwrap_or("(no alertname)");
        let status = if alert.is_firing() { "firing" } else { "resolved" };
        let ignored = match &meaning {
            Meaning::Ignored(reason) => words(reason, config, alert),
            Meaning::Ours(_) => String::new(),
        };
        alerts.push((format!("{} {status}", printable(name)), meaning, ignored));
    })
    .context("the webhook would answer 400")?;
    let (mut accepted, mut ignored) = (0, 0);
    for (alert, meaning, why) in alerts {
        writeln!(out, "{alert}")?;
        match meaning {
            Meaning::Ignored(reason) => {
                ignored += 1;
                writeln!(out, "  ignored {} ({reason})", printable(&why))?;
            }
            Meaning::Ours(incoming) => {
                accepted += 1;
                writeln!(
                    out,
                    "  rule    {}\n  target  {}",
                    incoming.rule,
                    printable(&incoming.target.to_string())
                )?;
                if !incoming.firing {
                    writeln!(out, "  result  noted; it is never taken for a repair")?;
                } else if let Some(rule) = config.rules.iter().find(|rule| rule.name == incoming.rule) {
                    view.now(rule, &incoming.target, out).await?;
                }
            }
        }
        writeln!(out)?;
    }
    writeln!(out, "the answer would be 200: {accepted} accepted, {ignored} ignored")?;
    Ok(())
}

/// Why an alert means nothing here, and what would change that.
fn words(reason: &str, config: &Config, alert: &Alert<'_>) -> String {
    let rule = alert.rule(config);
    let (name, label) = rule.map_or(("", ""), |rule| (rule.name.as_str(), rule.selector.label.as_str()));
    match reason {
        "labels_too_long" => "its labels are longer than any that Prometheus sends".to_owned(),
        "other_host" => {
            let host = alert.label("host").or_else(|| alert.label("instance")).unwrap_or("no host at all");
            format!("it is about {host}, and this is {} (identity.hosts)", config.hosts.join(", "))
        }
        "no_rule" => "no rule matches its labels".to_owned(),
        "target_label_missing" => format!("it has no label {label}, from which rule {name} takes its target"),
        "target_not_a_name" => format!("what its label {label} says is no name of a target of rule {name}"),
        "target_not_allowed" => {
            format!("what its label {label} says is not in `target.allow` of rule {name}")
        }
        "target_denied" => "evenkeel never acts on what it names".to_owned(),
        _ => "it means nothing here".to_owned(),
    }
}
