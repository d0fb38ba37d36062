//! `selftest`: whether everything is there that a repair needs, from the daemon and its state over systemd and Docker to
//! the way that alerts come. Each line says what was seen, and what to do about it. It changes nothing; that a repair
//! really comes of an alert, `drill` shows.

use std::{collections::BTreeMap, io::Write, os::unix::fs::MetadataExt};

use evenkeel_host::systemd::Systemd;

use crate::{
    actions::Permission,
    clock::{Clock, rfc3339},
    config::Config,
    daemon::{self, Daemon},
    generate,
    journal::{HaltKind, Reader},
    observe::Host,
    pipeline::{self, Finding, State},
    policy::Mode,
    rules::Rule,
    target::Kind,
    text::printable,
};

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    name: &'static str,
    state: State,
    detail: String,
    cure: String,
}

impl Row {
    fn new(name: &'static str, state: State, detail: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { name, state, detail: detail.into(), cure: cure.into() }
    }

    fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self::new(name, State::Ok, detail, "")
    }
}

impl From<Finding> for Row {
    fn from(finding: Finding) -> Self {
        Self::new(finding.check.as_str(), finding.state, finding.detail, finding.cure)
    }
}

/// Looks at everything and prints it; answers the worst that was seen.
///
/// # Errors
/// When `out` is closed.
pub async fn run(config: &Config, out: &mut impl Write) -> anyhow::Result<State> {
    let daemon = daemon::ask(config).await;
    let arrived = daemon.as_ref().map(|daemon| daemon.arrived.clone()).unwrap_or_default();
    let rules: Vec<&Rule> = config.rules.iter().collect();
    let (report, systemd, docker) =
        tokio::join!(pipeline::look(config, &rules, &arrived, None), systemd(config), docker(config));
    let mut rows = vec![configured(config), running(&daemon)];
    rows.extend(state(config));
    rows.extend(systemd);
    rows.extend(docker);
    rows.extend(report.findings.into_iter().map(Row::from));
    write(&rows, out)?;
    Ok(rows.iter().map(|row| row.state).max().unwrap_or(State::Unknown))
}

/// The lines below each other, and what they come to.
fn write(rows: &[Row], out: &mut impl Write) -> std::io::Result<()> {
    for row in rows {
        let word = match row.state {
            State::Ok => "ok",
            State::Unknown => "unknown",
            State::Failing => "FAILING",
        };
        writeln!(out, "{word:<7}  {:<13}  {}", row.name, printable(&row.detail))?;
        if !row.cure.is_empty() {
            writeln!(out, "{:<7}  {:<13}  → {}", "", "", printable(&row.cure))?;
        }
    }
    let count = |state| rows.iter().filter(|row| row.state == state).count();
    let (failing, unknown) = (count(State::Failing), count(State::Unknown));
    writeln!(
        out,
        "\n{}",
        match (failing, unknown) {
            (0, 0) =>
                "all is well; evenkeel-remediator drill shows that a repair comes of an alert".to_owned(),
            (0, unknown) => format!("nothing is wrong that can be seen from here, {unknown} unknown"),
            (failing, 0) => format!("{failing} failing"),
            (failing, unknown) => format!("{failing} failing, {unknown} unknown"),
        }
    )
}

fn configured(config: &Config) -> Row {
    Row::ok(
        "configuration",
        format!(
            "{}: {} rules, mode {}, deletion {}",
            config.path.display(),
            config.rules.len(),
            config.mode.as_str(),
            config.deletion.as_str()
        ),
    )
}

fn running(daemon: &anyhow::Result<Daemon>) -> Row {
    match daemon {
        Ok(daemon) if !daemon.reload.succeeded => Row::new(
            "daemon",
            State::Failing,
            "runs, and has refused the configuration that it read last",
            "evenkeel-remediator check-config says why; then evenkeel-remediator reload",
        ),
        Ok(daemon) => Row::ok("daemon", format!("runs since {}", rfc3339(daemon.started.wall_ms))),
        Err(error) => Row::new(
            "daemon",
            State::Failing,
            format!("{error:#}"),
            "systemctl status evenkeel-remediator; where it runs, try as root",
        ),
    }
}

/// Whether the state can be read and lies where it belongs, and whether anything holds everything up.
fn state(config: &Config) -> Vec<Row> {
    let places = config.places();
    let unread = |error: String| {
        vec![Row::new("state", State::Unknown, error, "try as root, or as the remediator's user")]
    };
    let reader = match Reader::open_if_any(&places) {
        Ok(Some(reader)) => reader,
        Ok(None) => {
            let detail = format!("there is none in {}", config.state_dir.display());
            return vec![Row::new(
                "state",
                State::Failing,
                detail,
                "start evenkeel-remediator with this configuration",
            )];
        }
        Err(error) => return unread(error.to_string()),
    };
    let now = Clock::default().now();
    let halts = reader.on_timeline(&now).and_then(|now| reader.halts(&now));
    let halts = match halts {
        Ok(halts) => halts,
        Err(error) => return unread(error.to_string()),
    };
    let mut rows = Vec::new();
    rows.push(if places.in_use() == places.dir {
        Row::ok("state", format!("lies in {}", places.dir.display()))
    } else {
        Row::new(
            "state",
            State::Failing,
            format!("lies in {} and is gone with a reboot", places.in_use().display()),
            format!(
                "see that {} can be written, then systemctl restart evenkeel-remediator",
                places.dir.display()
            ),
        )
    });
    for halt in halts {
        let what = match halt.what {
            HaltKind::Pause => format!("paused by {}", halt.author),
            HaltKind::Storm => "a storm: no service is touched".to_owned(),
            HaltKind::FleetPause => format!("the fleet is paused by {}", halt.author),
        };
        rows.push(Row::new(
            "halted",
            State::Failing,
            format!("{what} since {}: {}", rfc3339(halt.since_wall_ms), halt.reason),
            format!("{} ends it", halt.what.ended_by()),
        ));
    }
    rows
}

/// Whether systemd answers, and has the templates that do for the rules what takes root. Nothing where no rule needs it.
async fn systemd(config: &Config) -> Vec<Row> {
    let mut templates = BTreeMap::new();
    for rule in &config.rules {
        for permission in generate::permissions(rule) {
            match permission {
                Permission::Helper(template) => {
                    templates.insert(template.to_owned(), rule.name.clone());
                }
                Permission::Template(template) => {
                    templates.insert(template, rule.name.clone());
                }
                _ => {}
            }
        }
    }
    let is_needed = !templates.is_empty() || config.rules.iter().any(|rule| rule.selector.kind == Kind::Unit);
    if !is_needed {
        return Vec::new();
    }
    let systemd = Systemd::system();
    let version = match systemd.version().await {
        Ok(version) => version,
        Err(error) => {
            return vec![Row::new(
                "systemd",
                State::Failing,
                error.to_string(),
                "see that the system bus runs, and that DBUS_SYSTEM_BUS_ADDRESS is not set to another",
            )];
        }
    };
    let mut rows = vec![Row::ok("systemd", format!("version {version} answers"))];
    for (template, rule) in templates {
        let instance = template.replacen('@', "@selftest", 1);
        let seen = systemd.unit(&instance).await.map(|status| status.load_state);
        if !matches!(seen.as_deref(), Ok("loaded")) {
            let detail = format!("{template}, which rule {rule} needs, is not installed");
            let cure = format!(
                "put it into /etc/systemd/system (packaging/{template}, or your own), then systemctl daemon-reload"
            );
            rows.push(Row::new("systemd", State::Failing, detail, cure));
        }
    }
    rows
}

/// Whether the engine answers. Nothing where no rule needs it.
async fn docker(config: &Config) -> Option<Row> {
    let of_docker = |rule: &Rule| {
        rule.selector.kind == Kind::Container
            || rule.mode > Mode::Plan
                && generate::permissions(rule)
                    .iter()
                    .any(|permission| matches!(permission, Permission::Docker { .. }))
    };
    if !config.rules.iter().any(of_docker) {
        return None;
    }
    if let Err(error) = Host::local().docker.ping().await {
        let cure = "with Docker: its socket or the proxy for the remediator's user, by the drop-in docker-group.conf or docker-proxy.conf; \
                    without: take the rules about containers out of the configuration";
        return Some(Row::new("docker", State::Failing, error.to_string(), cure));
    }
    // Root may everything, which says nothing about the daemon.
    let owner = std::fs::metadata(config.places().in_use()).map(|metadata| metadata.uid());
    Some(match owner {
        Ok(owner) if owner != 0 && rustix::process::geteuid().is_root() => Row::new(
            "docker",
            State::Unknown,
            format!(
                "the engine answers root; whether it answers the remediator, which runs as user {owner}, is not known"
            ),
            "runuser -u evenkeel-remediator -- evenkeel-remediator selftest",
        ),
        _ => Row::ok("docker", "the engine answers"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(rows: &[Row]) -> String {
        let mut out = Vec::new();
        write(rows, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn each_line_says_what_was_seen_and_what_to_do() {
        let rows = [
            Row::ok("daemon", "runs"),
            Row::new("routes", State::Failing, "no route\nleads here", "merge it"),
            Row::new("docker", State::Unknown, "not known", "try"),
        ];
        assert_eq!(
            written(&rows),
            "ok       daemon         runs\n\
             FAILING  routes         no route\\nleads here\n\
             \u{20}                       → merge it\n\
             unknown  docker         not known\n\
             \u{20}                       → try\n\
             \n1 failing, 1 unknown\n"
        );
        assert!(written(&rows[..1]).contains("all is well"));
        assert!(written(&rows[2..]).contains("nothing is wrong that can be seen from here, 1 unknown"));
    }
}
