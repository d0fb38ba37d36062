//! An HAProxy before Docker's socket: who may use that socket is root in all but name, so each of the two daemons gets a
//! socket of its own that lets through what it asks, and nothing else.

use super::{EXPORTER, USER, permissions, regex};
use crate::{actions::Permission, config::Config, pattern::Pattern, rules::Rule, target::Kind};

/// What looking asks (`evenkeel_host::docker`), below the API version. Not logs, files, exports and other ways to read
/// what is inside a container. Inspecting one does show its environment.
const LOOKING: &str =
    r"(_ping|version|info|events|system/df|containers/json|containers/[A-Za-z0-9][A-Za-z0-9_.-]*/json)";

/// The API version that may stand before every path.
const VERSION: &str = r"(/v1\.[0-9]+)?";

const HEAD: &str = r#"# Written by evenkeel-remediator from its configuration; write it again when that has changed:
#
#   evenkeel-remediator generate haproxy > /etc/evenkeel/docker-proxy.cfg
#   systemctl restart evenkeel-docker-proxy
#
# Each daemon is pointed at its socket by DOCKER_HOST=unix:///run/evenkeel-docker-proxy/NAME.sock
# (drop-in docker-proxy.conf). What is not listed is answered with 403.
global
    log stdout format raw local0
    maxconn 256

defaults
    mode http
    log global
    option httplog
    timeout connect 5s
    # A prune takes minutes, and a stream of events may be silent for long.
    timeout client 1h
    timeout server 1h
    default_backend docker

backend docker
    server engine unix@/run/docker.sock
"#;

const FRONTEND: &str = r#"
frontend NAME
    bind unix@/run/evenkeel-docker-proxy/NAME.sock mode 660 group GROUP
    # A connection that leaves HTTP would be a pipe into the engine.
    http-request deny deny_status 403 if { req.hdr(upgrade) -m found }
    http-request set-log-level silent if METH_GET
    http-request allow if METH_GET { path -m reg '^VERSION/LOOKING$' }
"#;

const DENY: &str = r#"    http-request set-log-level warning
    http-request deny status 403 content-type application/json string '{"message":"not allowed by /etc/evenkeel/docker-proxy.cfg"}'
"#;

/// The whole file.
pub(super) fn configuration(config: &Config) -> String {
    let mut text = HEAD.to_owned();
    text += &frontend("exporter", EXPORTER);
    text += DENY;
    text += &frontend("remediator", USER);
    for rule in &config.rules {
        text += &calls(rule);
    }
    text + DENY
}

fn frontend(name: &str, group: &str) -> String {
    FRONTEND
        .replace("NAME", name)
        .replace("GROUP", group)
        .replace("VERSION", VERSION)
        .replace("LOOKING", LOOKING)
}

/// What the steps of one rule call, a line each.
fn calls(rule: &Rule) -> String {
    let mut lines = String::new();
    for permission in permissions(rule) {
        let Permission::Docker { method, path } = permission else { continue };
        let paths = if path.contains("{container}") {
            containers(rule).map(|name| path.replace("{container}", &name)).collect()
        } else {
            vec![path.to_owned()]
        };
        for path in paths {
            lines += &format!(
                "    http-request allow if {{ method {method} }} {{ pathq -m reg '^{VERSION}{path}$' }}\n"
            );
        }
    }
    if lines.is_empty() { lines } else { format!("    # {}\n{lines}", rule.name) }
}

/// The names of containers that a rule admits: moby's own letters (daemon/names).
fn containers(rule: &Rule) -> impl Iterator<Item = String> {
    let is_letter = |letter: char| letter.is_ascii_alphanumeric() || "_.-".contains(letter);
    let expression = move |pattern: &Pattern| regex(pattern, "A-Za-z0-9_.-", is_letter);
    let allowed = (rule.selector.kind == Kind::Container).then_some(&rule.selector.allow);
    allowed.into_iter().flatten().filter_map(expression)
}

#[cfg(test)]
mod tests {
    use ::regex::Regex;

    use super::*;
    use crate::config::tests::config;

    /// Who deletes images and containers deletes those, by what names them, and never by force or with volumes.
    #[test]
    fn deleting_is_let_through_as_the_actions_do_it_and_in_no_other_way() {
        let rule = "  - {name: disk, match: ['a=\"b\"'], target: {filesystem: mountpoint, allow: [/]}, limits: [1/1h],
    steps: [{image_prune: {unused: true}}, container_prune], verify: {usage_below: 80%, within: 5m}}\n";
        let config = config(&format!("policy: {{mode: auto, deletion: data}}\nrules:\n{rule}")).unwrap();
        let text = configuration(&config);
        let allowed: Vec<Regex> = text
            .lines()
            .filter_map(|line| {
                line.trim().strip_prefix("http-request allow if { method DELETE } { pathq -m reg '")
            })
            .map(|line| Regex::new(line.strip_suffix("' }").unwrap()).unwrap())
            .collect();
        assert_eq!(allowed.len(), 2, "{text}");
        let container = format!("/v1.41/containers/{}", "a1".repeat(32));
        for (path, is_let) in [
            ("/v1.41/images/shop/web:1?force=false&noprune=false".to_owned(), true),
            (format!("/images/sha256:{}?force=false&noprune=false", "0f".repeat(32)), true),
            ("/v1.41/images/shop/web:1?force=true&noprune=false".to_owned(), false),
            ("/v1.41/images/shop/web:1".to_owned(), false),
            ("/v1.41/images/shop%2Fweb?force=false&noprune=false".to_owned(), false),
            ("/v1.41/images/../containers/web?force=false&noprune=false".to_owned(), false),
            (format!("{container}?v=false&force=false&link=false"), true),
            (format!("{container}?v=true&force=false&link=false"), false),
            (format!("{container}?force=false&force=true"), false),
            (container, false),
            // By a name it would be another one's a moment later.
            ("/v1.41/containers/shop-web?v=false&force=false&link=false".to_owned(), false),
            ("/v1.41/volumes/data?force=false".to_owned(), false),
            ("/v1.41/networks/shop".to_owned(), false),
        ] {
            assert_eq!(allowed.iter().any(|one| one.is_match(&path)), is_let, "{path}");
        }
    }
}
