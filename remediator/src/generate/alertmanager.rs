//! What Alertmanager needs to send each rule its alerts, in the form of a whole configuration to be merged into one that
//! is there. Understood by 0.25 and later, as `alerts/alertmanager.yml` is.

use std::time::Duration;

use anyhow::{Context, bail};
use evenkeel_host::{config::PromDuration, web::ListenAddress};

use crate::{config::Config, rules::Rule};

const RECEIVER: &str = "evenkeel-remediator";
/// How often a lasting problem is offered again at most.
const OFTEN: Duration = Duration::from_secs(20 * 60);
/// An offer just before a limit's window ends would come just too early.
const SLACK: Duration = Duration::from_secs(5 * 60);

const HEAD: &str = "\
# Written by evenkeel-remediator from its configuration: evenkeel-remediator generate alertmanager
# To be merged into alertmanager.yml: the routes before your own, the receiver, the inhibition.
route:
  receiver: people          # yours
  routes:
";

const PEOPLE: &str =
    "    # Yours: what a route above takes goes on to these, and never to the receiver at the top.
    - receiver: people
";

const INHIBITION: &str = r#"  - name: people

inhibit_rules:
  # A repair is running: the alerts for people about it wait.
  - source_matchers: ['alertname="RemediationInProgress"']
    target_matchers: ['severity=~"critical|warning"']
    equal: [host, remediation_rule]
"#;

/// The whole text.
///
/// # Errors
/// When no rule has an alert, or there is no address that Alertmanager can send to.
pub(super) fn configuration(config: &Config) -> anyhow::Result<String> {
    let routes: String = config.rules.iter().map(route).collect();
    if routes.is_empty() {
        bail!("no rule waits for an alert: there is nothing to route");
    }
    Ok(format!("{HEAD}{routes}{PEOPLE}\nreceivers:\n{}{INHIBITION}", receiver(config)?))
}

fn route(rule: &Rule) -> String {
    if rule.matchers.is_empty() {
        return String::new();
    }
    let matchers: Vec<String> = rule.matchers.iter().map(|matcher| quoted(&matcher.to_string())).collect();
    let shortest = rule.limits.first().map_or(Duration::ZERO, |limit| limit.window);
    let again = PromDuration::new(OFTEN.max(shortest + SLACK));
    format!(
        "    # {}
    - matchers: [{}]
      receiver: {RECEIVER}
      continue: true        # people's routes get it too
      group_by: [alertname, host]
      group_wait: 10s
      # Longer than the shortest window of the rule's limits, or every second offer would come just too early.
      repeat_interval: {again}
",
        rule.name,
        matchers.join(", ")
    )
}

fn receiver(config: &Config) -> anyhow::Result<String> {
    let tcp = config.access.listen.iter().find_map(|address| match address {
        ListenAddress::Tcp(address) => Some(address.as_str()),
        ListenAddress::Unix(_) => None,
    });
    let address = tcp.context(
        "Alertmanager cannot send to a unix socket: add an address such as 127.0.0.1:19848 to server.listen",
    )?;
    let tls = config.access.security.offers().tls;
    let scheme = if tls { "https" } else { "http" };
    let host = config.hosts.first().map_or("localhost", String::as_str);
    let url = quoted(&format!("{scheme}://{}/api/v1/alerts", reachable(address, host)));
    let mut text = format!(
        "  - name: {RECEIVER}
    webhook_configs:
      - url: {url}
        send_resolved: true
        http_config:
          follow_redirects: false
"
    );
    if tls {
        text +=
            "          # tls_config: {ca_file: …}    # where the system does not know its certificate's CA\n";
    }
    if let Some(file) = &config.access.token_file {
        text += &format!(
            "          authorization:
            type: Bearer
            # Alertmanager's user must be able to read it.
            credentials_file: {}
",
            quoted(&file.to_string_lossy())
        );
    } else if !config.access.open {
        text += "          # basic_auth or tls_config: what server.web_config_file lets in\n";
    }
    Ok(text)
}

/// Something to connect to: an address that means every address becomes this host's name.
fn reachable(address: &str, host: &str) -> String {
    match address.rsplit_once(':') {
        Some(("" | "0.0.0.0" | "[::]", port)) => format!("{host}:{port}"),
        _ => address.to_owned(),
    }
}

/// A YAML string that is read back as this text, whatever is in it.
fn quoted(text: &str) -> String {
    if !text.contains(char::is_control) {
        return format!("'{}'", text.replace('\'', "''"));
    }
    let escaped: String = text
        .chars()
        .map(|character| match character {
            '"' | '\\' => format!("\\{character}"),
            control if control.is_control() => format!("\\u{:04x}", u32::from(control)),
            other => other.to_string(),
        })
        .collect();
    format!("\"{escaped}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_means_all_is_not_one_to_connect_to() {
        for (address, expected) in [
            ("127.0.0.1:19848", "127.0.0.1:19848"),
            (":19848", "vps1:19848"),
            ("0.0.0.0:1", "vps1:1"),
            ("[::]:19848", "vps1:19848"),
            ("[::1]:19848", "[::1]:19848"),
        ] {
            assert_eq!(reachable(address, "vps1"), expected);
        }
    }

    #[test]
    fn every_text_survives_its_quotes() {
        for text in ["alertname=\"a\"", "it's", "a: b # c", "two\nlines", "tab\tand \\ and \u{7f}", "'"] {
            let read: String = evenkeel_host::config::parse("t.yml", &quoted(text)).unwrap();
            assert_eq!(read, text);
        }
    }
}
