//! The configuration as it is written in YAML: keys and types, nothing else. What it means is checked in the parent.

use std::path::PathBuf;

use evenkeel_host::config::{Located, PromDuration, Ratio};
use serde::Deserialize;

use crate::{
    actions::Step,
    notify::On,
    pattern::Pattern,
    policy::{Deletion, Limit, Mode},
};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    #[serde(default)]
    pub(super) identity: Identity,
    #[serde(default)]
    pub(super) server: Server,
    #[serde(default)]
    pub(super) policy: Policy,
    #[serde(default)]
    pub(super) state: State,
    #[serde(default)]
    pub(super) notify: Vec<NotifyTo>,
    #[serde(default)]
    pub(super) rules: Vec<RuleFile>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Identity {
    pub(super) hosts: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Server {
    pub(super) listen: Vec<Located<String>>,
    pub(super) systemd_socket: bool,
    pub(super) web_config_file: Option<Located<PathBuf>>,
    pub(super) bearer_token_files: Vec<Located<PathBuf>>,
    pub(super) auth: Option<Located<Auth>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Auth {
    Token,
    None,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Policy {
    pub(super) mode: Mode,
    pub(super) deletion: Deletion,
    pub(super) deny_units: Vec<Pattern>,
    pub(super) limits: PolicyLimits,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(non_snake_case, reason = "the classes are written so")]
pub(super) struct PolicyLimits {
    pub(super) S1: Option<Located<Vec<Limit>>>,
    pub(super) S2: Option<Located<Vec<Limit>>>,
    pub(super) D1: Option<Located<Vec<Limit>>>,
    pub(super) D2: Option<Located<Vec<Limit>>>,
    pub(super) target: Option<Located<Vec<Limit>>>,
    pub(super) host: Option<Located<Vec<Limit>>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct State {
    pub(super) dir: PathBuf,
}

impl Default for State {
    fn default() -> Self {
        Self { dir: PathBuf::from("/var/lib/evenkeel-remediator") }
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum NotifyTo {
    Webhook(Located<WebhookTo>),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WebhookTo {
    pub(super) url: Option<String>,
    pub(super) url_file: Option<Located<PathBuf>>,
    pub(super) bearer_token_file: Option<Located<PathBuf>>,
    #[serde(default = "escalated")]
    pub(super) on: Vec<On>,
}

fn escalated() -> Vec<On> {
    vec![On::Escalated]
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RuleFile {
    pub(super) name: Located<String>,
    #[serde(rename = "match")]
    pub(super) matchers: Located<Vec<Located<String>>>,
    pub(super) mode: Option<Mode>,
    pub(super) target: Located<TargetFile>,
    pub(super) needed: Option<Located<NeededFile>>,
    pub(super) limits: Option<Located<Vec<Limit>>>,
    pub(super) rule_limits: Option<Located<Vec<Limit>>>,
    pub(super) cooldown: Option<PromDuration>,
    pub(super) breaker: Option<BreakerFile>,
    pub(super) steps: Located<Vec<Located<Step>>>,
    pub(super) verify: Option<Located<VerifyFile>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TargetFile {
    pub(super) filesystem: Option<String>,
    pub(super) unit: Option<String>,
    pub(super) container: Option<String>,
    #[serde(default)]
    pub(super) allow: Vec<Located<Pattern>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NeededFile {
    pub(super) usage_above: Ratio,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BreakerFile {
    pub(super) after: Located<u32>,
    pub(super) hold: PromDuration,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct VerifyFile {
    pub(super) usage_below: Option<Ratio>,
    pub(super) active_for: Option<PromDuration>,
    pub(super) not_failed_for: Option<PromDuration>,
    pub(super) stopped_for: Option<PromDuration>,
    pub(super) healthy_for: Option<PromDuration>,
    pub(super) hold: Option<PromDuration>,
    pub(super) within: PromDuration,
}
