//! `simulate`: a captured webhook against this configuration and this host, without any effect.

use std::io::Write;

use anyhow::Context;

use crate::{
    config::Config,
    explain::{assessor, now},
    journal::Reader,
    webhook::{self, Meaning},
};

/// Prints what each alert of a webhook's body would lead to now.
///
/// # Errors
/// When the body is no webhook, or the state cannot be read.
pub async fn run(config: Config, body: &[u8], out: &mut impl Write) -> anyhow::Result<()> {
    let reader = Reader::open_if_any(&config.places())?;
    let assessor = assessor(config);
    let config = assessor.config.clone();
    let mut alerts = Vec::new();
    // On this machine: as a delivery over loopback.
    webhook::read(body, &config, true, |alert, meaning| {
        let name = alert.labels.get("alertname").map_or("(no alertname)", String::as_str);
        let status = if alert.is_firing() { "firing" } else { "resolved" };
        alerts.push((format!("{} {status}", name.escape_debug()), meaning));
    })
    .context("the webhook would answer 400")?;
    for (alert, meaning) in alerts {
        writeln!(out, "{alert}")?;
        match meaning {
            Meaning::Ignored(reason) => writeln!(out, "  ignored ({reason})")?,
            Meaning::Ours(incoming) => {
                writeln!(out, "  rule    {}\n  target  {}", incoming.rule, incoming.target)?;
                if !incoming.firing {
                    writeln!(out, "  result  noted; it is never taken for a repair")?;
                } else if let Some(rule) = config.rules.iter().find(|rule| rule.name == incoming.rule) {
                    now(&assessor, rule, &incoming.target, reader.as_ref(), out).await?;
                }
            }
        }
    }
    Ok(())
}
