//! The configuration as it is written in YAML: keys and types, nothing else. What it means is checked in the parent.

use std::path::PathBuf;

use evenkeel_host::config::{Bytes, Located, PromDuration, Ratio};
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
    pub(super) reconcile: ReconcileFile,
    pub(super) alertmanager: Option<Located<ApiFile>>,
    pub(super) prometheus: Option<Located<PrometheusFile>>,
    #[serde(default)]
    pub(super) notify: Vec<NotifyTo>,
    #[serde(default)]
    pub(super) rules: Vec<RuleFile>,
}

/// A file under `conf.d/`: what a package or a service brings along. What holds for all rules stays in one place.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Fragment {
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
    pub(super) write_token_files: Vec<Located<PathBuf>>,
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
    pub(super) ceilings: Ceilings,
    pub(super) gates: GatesFile,
    pub(super) storm: StormFile,
    pub(super) blast_radius: Option<u32>,
    pub(super) approval_within: Option<Located<PromDuration>>,
}

/// How far steps of a class may go, whatever the rule's own mode.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(non_snake_case, reason = "the classes are written so")]
pub(super) struct Ceilings {
    pub(super) S1: Option<Mode>,
    pub(super) S2: Option<Mode>,
    pub(super) D1: Option<Mode>,
    pub(super) D2: Option<Mode>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct GatesFile {
    pub(super) grace: Option<PromDuration>,
    pub(super) engine_grace: Option<PromDuration>,
    pub(super) stall: Option<Ratio>,
    pub(super) load: Option<Located<f64>>,
    pub(super) package_manager: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct StormFile {
    pub(super) targets: Option<Located<u32>>,
    pub(super) within: Option<PromDuration>,
    pub(super) hold: Option<PromDuration>,
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
    pub(super) open_max: Option<Located<usize>>,
}

impl Default for State {
    fn default() -> Self {
        Self { dir: PathBuf::from("/var/lib/evenkeel-remediator"), open_max: None }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ReconcileFile {
    pub(super) interval: Option<Located<PromDuration>>,
    pub(super) alert_ttl: Option<PromDuration>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ApiFile {
    pub(super) url: Located<String>,
    pub(super) bearer_token_file: Option<Located<PathBuf>>,
    pub(super) basic_auth: Option<Located<BasicFile>>,
    pub(super) tls: Option<Located<TlsFile>>,
}

/// The same with a job; flattened, its errors would lose their lines.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PrometheusFile {
    pub(super) url: Located<String>,
    pub(super) bearer_token_file: Option<Located<PathBuf>>,
    pub(super) basic_auth: Option<Located<BasicFile>>,
    pub(super) tls: Option<Located<TlsFile>>,
    pub(super) job: Option<String>,
}

impl PrometheusFile {
    pub(super) fn api(&self) -> ApiFile {
        let Self { url, bearer_token_file, basic_auth, tls, job: _ } = self;
        ApiFile {
            url: url.clone(),
            bearer_token_file: bearer_token_file.clone(),
            basic_auth: basic_auth.clone(),
            tls: tls.clone(),
        }
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BasicFile {
    pub(super) username: String,
    pub(super) password_file: Located<PathBuf>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TlsFile {
    pub(super) ca_file: Option<Located<PathBuf>>,
    pub(super) cert_file: Option<Located<PathBuf>>,
    pub(super) key_file: Option<Located<PathBuf>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GateFile {
    pub(super) promql: String,
    #[serde(default)]
    pub(super) on_error: OnError,
}

/// Whether a condition that cannot be asked lets a rule act.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum OnError {
    #[default]
    Closed,
    Open,
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
    vec![On::Escalated, On::Approval]
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RuleFile {
    pub(super) name: Located<String>,
    #[serde(rename = "match")]
    pub(super) matchers: Option<Located<Vec<Located<String>>>>,
    #[serde(default)]
    pub(super) on_demand: bool,
    pub(super) mode: Option<Mode>,
    pub(super) target: Option<Located<TargetFile>>,
    pub(super) needed: Option<Located<NeededFile>>,
    pub(super) limits: Option<Located<Vec<Limit>>>,
    pub(super) rule_limits: Option<Located<Vec<Limit>>>,
    pub(super) cooldown: Option<PromDuration>,
    pub(super) breaker: Option<BreakerFile>,
    pub(super) window: Option<Located<WindowFile>>,
    #[serde(default)]
    pub(super) gates: Vec<Located<GateFile>>,
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
    pub(super) usage_above: Option<Ratio>,
    pub(super) inodes_above: Option<Ratio>,
    pub(super) build_cache_above: Option<Bytes>,
    pub(super) always: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BreakerFile {
    pub(super) after: Located<u32>,
    pub(super) hold: PromDuration,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WindowFile {
    #[serde(default)]
    pub(super) days: Vec<String>,
    pub(super) from: String,
    pub(super) to: String,
    pub(super) tz: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct VerifyFile {
    pub(super) usage_below: Option<Ratio>,
    pub(super) inodes_below: Option<Ratio>,
    pub(super) active_for: Option<PromDuration>,
    pub(super) not_failed_for: Option<PromDuration>,
    pub(super) stopped_for: Option<PromDuration>,
    pub(super) healthy_for: Option<PromDuration>,
    pub(super) completed: Option<bool>,
    pub(super) hold: Option<PromDuration>,
    pub(super) within: PromDuration,
}
