//! What the log says once, at the start: what is going to be done, what is watched, and what is not and why. Looks, and changes
//! nothing.

use std::sync::Arc;

use evenkeel_host::build;

use crate::{
    config::Config, fleet::settings::Role, observe::Host, policy::Mode, rules::Rule, target::Kind,
    text::printable,
};

/// What it is going to do, and what is risky about that.
pub(crate) fn greet(config: &Config, role: Role) {
    tracing::info!(
        hosts = config.hosts.join(", "),
        rules = config.rules.len(),
        mode = config.mode.as_str(),
        deletion = config.deletion.as_str(),
        state = %config.state_dir.display(),
        version = build::VERSION,
        "evenkeel-remediator starts"
    );
    if !role.acts() {
        tracing::info!("a gateway: alerts are passed on to their hosts, and nothing is repaired here");
    } else if config.rules.is_empty() {
        tracing::warn!("there are no rules: every alert is ignored");
    } else if config.rules.iter().all(|rule| rule.mode == Mode::Plan) {
        tracing::info!(
            "every rule is in mode plan: nothing is changed, and history says what would have been done"
        );
    }
    if config.access.open {
        tracing::warn!("auth: none: every user of this machine may post alerts");
    }
    if rustix::process::geteuid().is_root() {
        tracing::warn!("running as root: the packaged unit needs no root");
    }
}

/// What it can look at. A source that does not answer holds nothing up but these lines.
pub(crate) async fn say_what_is_watched(config: Arc<Config>, host: Host) {
    let (systemd, docker) = tokio::join!(systemd(&host), docker(&host));
    for line in lines(&config, &systemd, &docker) {
        match line {
            Line::Watched { what, rules } => tracing::info!(what, rules, "watched"),
            Line::Unwatched { what, why } => tracing::info!(what, "not watched: {}", printable(&why)),
            Line::Unable { what, rules, why } => {
                tracing::warn!(what, rules, "not watched: {}", printable(&why));
            }
        }
    }
}

/// systemd's version, or why there is none.
async fn systemd(host: &Host) -> Result<String, String> {
    if !host.systemd.socket_exists() {
        return Err("there is no system bus".to_owned());
    }
    host.systemd.version().await.map_err(|error| error.to_string())
}

async fn docker(host: &Host) -> Result<(), String> {
    if !host.docker.is_configured() && !host.docker.socket_exists() {
        return Err("there is no Docker socket".to_owned());
    }
    host.docker.ping().await.map_err(|error| error.to_string())
}

#[derive(Debug, PartialEq, Eq)]
enum Line {
    /// Rules are about it, and it can be looked at.
    Watched { what: &'static str, rules: String },
    /// Nobody asked for it.
    Unwatched { what: &'static str, why: String },
    /// Rules are about it, and it cannot be looked at.
    Unable { what: &'static str, rules: String, why: String },
}

fn lines(config: &Config, systemd: &Result<String, String>, docker: &Result<(), String>) -> Vec<Line> {
    let of = |kind: Kind, what: &'static str, trouble: Option<&String>| {
        let rules: Vec<&str> = config
            .rules
            .iter()
            .filter(|rule| rule.selector.kind == kind)
            .map(|rule: &Rule| &*rule.name)
            .collect();
        let rules = rules.join(", ");
        match trouble {
            _ if rules.is_empty() => Line::Unwatched {
                what,
                why: "no rule is about them, and alerts about them are ignored".to_owned(),
            },
            Some(why) => Line::Unable { what, rules, why: why.clone() },
            None => Line::Watched { what, rules },
        }
    };
    let mut lines = vec![
        of(Kind::Unit, "units", systemd.as_ref().err()),
        of(Kind::Container, "containers", docker.as_ref().err()),
        of(Kind::Filesystem, "filesystems", None),
        of(Kind::Hostname, "names of hosts", None),
    ];
    let mut lacks = |is_lacking: bool, what: &'static str, why: &str| {
        if is_lacking {
            lines.push(Line::Unwatched { what, why: why.to_owned() });
        }
    };
    lacks(
        config.prometheus.is_none(),
        "Prometheus",
        "`prometheus` is not configured: whether alerts can arise is not checked, and rules have no gates",
    );
    lacks(
        config.alertmanager.is_none(),
        "Alertmanager",
        "`alertmanager` is not configured: whether its routes lead here is not checked, and a silence does not hold back what waits",
    );
    lacks(
        config.receivers.is_empty(),
        "receivers",
        "`notify` is not configured: nobody is told when a person is needed; history, status and metrics say so",
    );
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("r.yml");
        std::fs::write(&file, text).unwrap();
        crate::config::load(&file).unwrap_or_else(|error| panic!("{error}"))
    }

    const RULES: &str = "
server: {auth: none}
rules:
  - {name: a, match: ['alertname=\"A\"'], target: {unit: name, allow: [a.service]}, steps: [collect_report]}
  - {name: b, match: ['alertname=\"B\"'], target: {unit: name, allow: [b.service]}, steps: [collect_report]}
  - {name: c, match: ['alertname=\"C\"'], target: {container: name, allow: [c]}, steps: [collect_report]}
";

    #[test]
    fn what_is_watched_and_what_is_not_is_said_with_the_reason() {
        let config = config(RULES);
        let lines = lines(&config, &Ok("252".to_owned()), &Err("permission denied".to_owned()));
        let watched = Line::Watched { what: "units", rules: "a, b".to_owned() };
        let unable =
            Line::Unable { what: "containers", rules: "c".to_owned(), why: "permission denied".to_owned() };
        assert_eq!(lines[..2], [watched, unable]);
        let unwatched: Vec<&str> = lines[2..]
            .iter()
            .map(|line| match line {
                Line::Unwatched { what, .. } => *what,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(unwatched, ["filesystems", "names of hosts", "Prometheus", "Alertmanager", "receivers"]);
    }

    #[test]
    fn what_is_configured_is_not_said_to_be_missing() {
        let text = format!(
            "{RULES}prometheus: {{url: 'http://127.0.0.1:9090'}}\nalertmanager: {{url: 'http://127.0.0.1:9093'}}\n\
             notify: [{{webhook: {{url: 'http://127.0.0.1:1/x'}}}}]\n"
        );
        let lines = lines(&config(&text), &Ok(String::new()), &Ok(()));
        assert_eq!(lines.len(), 4);
        assert!(matches!(lines[1], Line::Watched { what: "containers", .. }), "{lines:?}");
    }
}
