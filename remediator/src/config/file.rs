//! The configuration as it is written in YAML: keys and types, nothing else. What it means is checked in the parent.
//! What is said of a key here is what an editor shows of it (`generate schema`), and so are the defaults; a test
//! compares them with those that hold.

use std::{net::IpAddr, path::PathBuf};

use evenkeel_host::config::{Bytes, Located, PromDuration, Ratio};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::{
    actions::Step,
    fleet::{hosts::Hosts, settings::Alone},
    notify::On,
    pattern::Pattern,
    policy::{Deletion, Limit, Mode},
};

/// Configuration of evenkeel-remediator. Durations as in Prometheus (30s 15m 7d), shares as 85%, sizes as 500MiB. Paths
/// are relative to the folder of the file.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "evenkeel-remediator")]
pub(super) struct File {
    /// Which hosts it answers for.
    #[serde(default)]
    pub(super) identity: Identity,
    /// Where it listens, and who is let in.
    #[serde(default)]
    pub(super) server: Server,
    /// What holds for every rule.
    #[serde(default)]
    pub(super) policy: Policy,
    /// Where it remembers.
    #[serde(default)]
    pub(super) state: State,
    /// What is taken up again between deliveries, which are hours apart.
    #[serde(default)]
    pub(super) reconcile: ReconcileFile,
    /// Where alerts are asked about: one that was silenced or inhibited while its repair waited is left alone.
    /// Everything works without it, and while it is down.
    pub(super) alertmanager: Option<Located<ApiFile>>,
    /// Where the `gates` of rules are asked, and whether this host's exporter is scraped. Everything else works without
    /// it, and while it is down.
    pub(super) prometheus: Option<Located<PrometheusFile>>,
    /// Which units have golden snapshots, for the steps unit_snapshot and unit_restore.
    pub(super) snapshot: Option<Located<SnapshotFile>>,
    /// Many hosts over one Redis: alerts that come by a gateway, and budgets that all of them share (docs/fleet.md).
    pub(super) fleet: Option<Located<FleetFile>>,
    /// Who is told.
    #[serde(default)]
    pub(super) notify: Vec<NotifyTo>,
    /// What is done about which alerts. An alert goes to the first rule that matches it.
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

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Identity {
    /// The names under which alerts mean this host: their label `host`, else `instance` without the port. By default
    /// the host's name and its full name, and over loopback also localhost, 127.0.0.1 and ::1.
    #[schemars(extend("examples" = [["vps1"]]))]
    pub(super) hosts: Vec<String>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Server {
    /// Addresses to listen on: host:port, [::1]:port or unix:/path. Another one than loopback needs TLS.
    #[schemars(extend("default" = ["127.0.0.1:19848"]))]
    pub(super) listen: Vec<Located<String>>,
    /// Listen on the sockets of a socket unit instead.
    pub(super) systemd_socket: bool,
    /// TLS, users and client certificates in exporter-toolkit's format.
    pub(super) web_config_file: Option<Located<PathBuf>>,
    /// Files with tokens, any of which lets alerts in. Several while it is changed.
    pub(super) bearer_token_files: Vec<Located<PathBuf>>,
    /// Files with tokens, any of which lets orders in over HTTP. Without, they are given on this host only.
    pub(super) write_token_files: Vec<Located<PathBuf>>,
    /// `none` lets everyone on this machine in; for loopback and unix sockets only.
    #[schemars(extend("default" = "token"))]
    pub(super) auth: Option<Located<Auth>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Auth {
    Token,
    None,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Policy {
    /// How far any rule may go; a rule's own mode is never above it.
    pub(super) mode: Mode,
    /// What may be deleted.
    pub(super) deletion: Deletion,
    /// Units that are never touched, besides those that hold the host up.
    pub(super) deny_units: Vec<Pattern>,
    /// Starts that this host admits, as many as N in any stretch of time: N/WINDOW.
    pub(super) limits: PolicyLimits,
    /// How far steps of a class may go, whatever the rule's own mode.
    pub(super) ceilings: Ceilings,
    /// What of the host itself speaks against acting.
    pub(super) gates: GatesFile,
    /// When so many targets are in need at once that no service is touched.
    pub(super) storm: StormFile,
    /// Other units that a restart may take along.
    #[schemars(extend("default" = 3))]
    pub(super) blast_radius: Option<u32>,
    /// How long a person may take to approve.
    #[schemars(extend("default" = "30m"))]
    pub(super) approval_within: Option<Located<PromDuration>>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[allow(non_snake_case, reason = "the classes are written so")]
pub(super) struct Ceilings {
    /// Steps without impact.
    pub(super) S1: Option<Mode>,
    /// Steps that interrupt a service.
    pub(super) S2: Option<Mode>,
    /// Steps that delete what can be built again.
    pub(super) D1: Option<Mode>,
    /// Steps that delete data.
    pub(super) D2: Option<Mode>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct GatesFile {
    /// So long after the host, the message bus or the remediator has started, nothing is done.
    #[schemars(extend("default" = "5m"))]
    pub(super) grace: Option<PromDuration>,
    /// So long after the engine has started, nothing is deleted.
    #[schemars(extend("default" = "15m"))]
    pub(super) engine_grace: Option<PromDuration>,
    /// No service is touched above this share of the last minute in which everything waited for memory or disks.
    #[schemars(extend("default" = "80%"))]
    pub(super) stall: Option<Ratio>,
    /// No service is touched above this load per processor (5 minutes).
    #[schemars(extend("default" = 10, "exclusiveMinimum" = 0))]
    pub(super) load: Option<Located<f64>>,
    /// Whether a package manager at work holds everything up.
    #[schemars(extend("default" = true))]
    pub(super) package_manager: Option<bool>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct StormFile {
    /// More distinct targets than this,
    #[schemars(extend("default" = 5, "minimum" = 1))]
    pub(super) targets: Option<Located<u32>>,
    /// seen in need within this time,
    #[schemars(extend("default" = "5m"))]
    pub(super) within: Option<PromDuration>,
    /// stop all work on services until it has been calm for so long.
    #[schemars(extend("default" = "15m"))]
    pub(super) hold: Option<PromDuration>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[allow(non_snake_case, reason = "the classes are written so")]
pub(super) struct PolicyLimits {
    /// Steps without impact.
    pub(super) S1: Option<Located<Vec<Limit>>>,
    /// Steps that interrupt a service.
    #[schemars(extend("default" = ["1/1m", "6/1h", "20/24h"]))]
    pub(super) S2: Option<Located<Vec<Limit>>>,
    /// Steps that delete what can be built again.
    #[schemars(extend("default" = ["4/1h", "8/24h"]))]
    pub(super) D1: Option<Located<Vec<Limit>>>,
    /// Steps that delete data.
    #[schemars(extend("default" = ["1/6h", "2/24h"]))]
    pub(super) D2: Option<Located<Vec<Limit>>>,
    /// Everything on one target, whatever the rule.
    pub(super) target: Option<Located<Vec<Limit>>>,
    /// Everything on this host.
    pub(super) host: Option<Located<Vec<Limit>>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct State {
    /// The directory of the state. While it cannot be written, the state lies below /run.
    pub(super) dir: PathBuf,
    /// So many open remediations ask further deliveries to come again.
    #[schemars(extend("default" = 10000, "minimum" = 1))]
    pub(super) open_max: Option<Located<usize>>,
}

impl Default for State {
    fn default() -> Self {
        Self { dir: PathBuf::from("/var/lib/evenkeel-remediator"), open_max: None }
    }
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ReconcileFile {
    /// Between two looks at what was held back.
    #[schemars(extend("default" = "1m"))]
    pub(super) interval: Option<Located<PromDuration>>,
    /// An alert that was not heard of for so long asks for nothing any more; 0s takes nothing up again.
    #[schemars(extend("default" = "6h"))]
    pub(super) alert_ttl: Option<PromDuration>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SnapshotFile {
    /// Where they are; the helper units write to the default.
    #[schemars(extend("default" = "/var/lib/evenkeel/snapshots"))]
    pub(super) dir: Option<Located<PathBuf>>,
    /// Where the units' files are: one or both of /etc/systemd/system and /usr/local/lib/systemd/system.
    #[schemars(extend("default" = ["/etc/systemd/system"]))]
    pub(super) folders: Option<Located<Vec<String>>>,
    /// Whose files belong together: names, with * and ?.
    pub(super) units: Located<Vec<Located<Pattern>>>,
    /// So many are kept.
    #[schemars(extend("default" = 5))]
    pub(super) keep: Option<Located<usize>>,
}

/// Whose budgets hold for a rule, besides those of its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum BudgetFile {
    /// Those of the fleet, where there is one.
    Fleet,
    /// None: only its host's.
    Local,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct FleetFile {
    /// The fleet's name in Redis, where there may be several.
    #[schemars(extend("default" = "evenkeel", "pattern" = "^[A-Za-z0-9_-]{1,64}$"))]
    pub(super) name: Option<Located<String>>,
    /// The Redis that keeps it.
    pub(super) redis: Located<FleetRedisFile>,
    /// Starts that the whole fleet admits, as many as N in any stretch of time: N/WINDOW. None by default.
    #[serde(default)]
    pub(super) limits: FleetLimits,
    /// Hosts that may act at the same time: a number, or a share of those that there are; one at least.
    #[schemars(extend("default" = "10%"))]
    pub(super) max_hosts_acting: Option<Hosts>,
    /// More hosts than this gone or in need, and none begins to act; 100% switches it off.
    #[schemars(extend("default" = "40%"))]
    pub(super) stop_above_unhealthy: Option<Hosts>,
    /// Of fewer hosts a share means nothing: one may act at a time, and none is stopped.
    #[schemars(extend("default" = 3, "minimum" = 1))]
    pub(super) min_hosts: Option<Located<u32>>,
    /// So long a host that has died counts as acting.
    #[schemars(extend("default" = "1m"))]
    pub(super) lease: Option<Located<PromDuration>>,
    /// Between two heartbeats.
    #[schemars(extend("default" = "15s"))]
    pub(super) heartbeat: Option<Located<PromDuration>>,
    /// So long without a heartbeat, and a host counts as not well,
    #[schemars(extend("default" = "1m"))]
    pub(super) lost_after: Option<Located<PromDuration>>,
    /// and after so long as none that there is.
    #[schemars(extend("default" = "1d"))]
    pub(super) forgotten_after: Option<Located<PromDuration>>,
    /// How long one question to Redis may take.
    #[schemars(extend("default" = "2s"))]
    pub(super) timeout: Option<Located<PromDuration>>,
    /// While Redis is lost, hosts that act by themselves do not begin in the same moment: each waits up to so long.
    #[schemars(extend("default" = "30s"))]
    pub(super) spread: Option<PromDuration>,
    /// Alerts that wait for one host at most.
    #[schemars(extend("default" = 1000, "minimum" = 1))]
    pub(super) stream_max: Option<Located<u32>>,
    /// What is done of each class while Redis is lost.
    #[serde(default)]
    pub(super) on_loss: OnLossFile,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct FleetRedisFile {
    /// Where it is: redis://HOST:PORT, rediss://HOST:PORT (TLS) or unix:///PATH.
    #[schemars(extend("examples" = ["rediss://redis.example:6379"]))]
    pub(super) url: Located<String>,
    /// An ACL user.
    pub(super) username: Option<String>,
    /// A file with its password.
    pub(super) password_file: Option<Located<PathBuf>>,
    /// Certificates to trust instead of the system's (PEM).
    pub(super) ca_file: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[allow(non_snake_case, reason = "the classes are written so")]
pub(super) struct FleetLimits {
    /// Steps without impact.
    pub(super) S1: Option<Located<Vec<Limit>>>,
    /// Steps that interrupt a service.
    pub(super) S2: Option<Located<Vec<Limit>>>,
    /// Steps that delete what can be built again.
    pub(super) D1: Option<Located<Vec<Limit>>>,
    /// Steps that delete data.
    pub(super) D2: Option<Located<Vec<Limit>>>,
    /// Everything that changes a host.
    pub(super) all: Option<Located<Vec<Limit>>>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[allow(non_snake_case, reason = "the classes are written so")]
pub(super) struct OnLossFile {
    /// Steps that only observe: these never ask.
    #[schemars(extend("default" = "allow"))]
    pub(super) S0: Option<Alone>,
    /// Steps without impact.
    #[schemars(extend("default" = "allow"))]
    pub(super) S1: Option<Alone>,
    /// Steps that interrupt a service.
    #[schemars(extend("default" = "local"))]
    pub(super) S2: Option<Alone>,
    /// Steps that delete what can be built again.
    #[schemars(extend("default" = "local"))]
    pub(super) D1: Option<Alone>,
    /// Steps that delete data.
    #[schemars(extend("default" = "deny"))]
    pub(super) D2: Option<Alone>,
}

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ApiFile {
    /// Its http or https address, without a password.
    #[schemars(extend("examples" = ["http://127.0.0.1:9093"]))]
    pub(super) url: Located<String>,
    /// A file with the token to send.
    pub(super) bearer_token_file: Option<Located<PathBuf>>,
    /// A user to log in as.
    pub(super) basic_auth: Option<Located<BasicFile>>,
    /// Whom to trust, and what to show.
    pub(super) tls: Option<Located<TlsFile>>,
}

/// The same with jobs; flattened, its errors would lose their lines.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PrometheusFile {
    /// Its http or https address, without a password.
    #[schemars(extend("examples" = ["http://127.0.0.1:9090"]))]
    pub(super) url: Located<String>,
    /// A file with the token to send.
    pub(super) bearer_token_file: Option<Located<PathBuf>>,
    /// A user to log in as.
    pub(super) basic_auth: Option<Located<BasicFile>>,
    /// Whom to trust, and what to show.
    pub(super) tls: Option<Located<TlsFile>>,
    /// The job under which it scrapes exporters.
    #[schemars(extend("default" = "evenkeel-exporter"))]
    pub(super) job: Option<String>,
    /// Further jobs that must be scraped on this host, because alerts rest on them.
    #[serde(default)]
    pub(super) jobs: Vec<String>,
}

impl PrometheusFile {
    pub(super) fn api(&self) -> ApiFile {
        let Self { url, bearer_token_file, basic_auth, tls, job: _, jobs: _ } = self;
        ApiFile {
            url: url.clone(),
            bearer_token_file: bearer_token_file.clone(),
            basic_auth: basic_auth.clone(),
            tls: tls.clone(),
        }
    }
}

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct BasicFile {
    /// Its name.
    pub(super) username: String,
    /// A file with its password.
    pub(super) password_file: Located<PathBuf>,
}

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TlsFile {
    /// Certificates to trust instead of the system's (PEM).
    pub(super) ca_file: Option<Located<PathBuf>>,
    /// The certificate to show (PEM).
    pub(super) cert_file: Option<Located<PathBuf>>,
    /// Its key (PEM).
    pub(super) key_file: Option<Located<PathBuf>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct GateFile {
    /// The rule acts only while this has a result, as in an alerting rule.
    #[schemars(extend("examples" = ["up{job=\"db\"} == 1"], "minLength" = 1))]
    pub(super) promql: String,
    /// Whether it may act while Prometheus does not say.
    #[serde(default)]
    #[schemars(extend("default" = "closed"))]
    pub(super) on_error: OnError,
}

/// Whether a condition that cannot be asked lets a rule act.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum OnError {
    /// It may not.
    #[default]
    Closed,
    /// It may.
    Open,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum NotifyTo {
    /// Posts JSON: the message with all its parts, and as `text` for people.
    Webhook(Located<WebhookTo>),
    /// Posts `text` alone, as incoming webhooks of Slack's and of those like it take it.
    Slack(Located<SlackTo>),
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("oneOf" = [{"required": ["url"]}, {"required": ["url_file"]}]))]
pub(super) struct WebhookTo {
    /// Where to post to, where that is no secret.
    pub(super) url: Option<String>,
    /// A file with the URL.
    pub(super) url_file: Option<Located<PathBuf>>,
    /// A file with the token to send.
    pub(super) bearer_token_file: Option<Located<PathBuf>>,
    /// What of: `escalated` is when a person is needed.
    #[serde(default = "escalated")]
    #[schemars(extend("default" = ["escalated", "approval"]))]
    pub(super) on: Vec<On>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("required" = ["url_file"]))]
pub(super) struct SlackTo {
    /// A file with the URL: whoever knows it can post.
    pub(super) url_file: Option<Located<PathBuf>>,
    /// Read to be refused in better words than an unknown key.
    #[schemars(skip)]
    pub(super) url: Option<Located<String>>,
    /// What of: `escalated` is when a person is needed.
    #[serde(default = "escalated")]
    #[schemars(extend("default" = ["escalated", "approval"]))]
    pub(super) on: Vec<On>,
}

fn escalated() -> Vec<On> {
    vec![On::Escalated, On::Approval]
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("anyOf" = [{"required": ["match"]}, {"required": ["on_demand"]}]))]
pub(super) struct RuleFile {
    /// Its name, in logs, metrics and orders; at most 64 letters, digits, - and _.
    #[schemars(extend("pattern" = "^[A-Za-z0-9_-]{1,64}$"))]
    pub(super) name: Located<String>,
    /// Which alerts: matchers in Alertmanager's syntax, all of which must hold.
    #[serde(rename = "match")]
    #[schemars(extend("minItems" = 1, "examples" = [["alertname=\"HostDiskHigh\""]]))]
    pub(super) matchers: Option<Located<Vec<Located<String>>>>,
    /// It has no `match`: only `evenkeel-remediator trigger` begins it.
    #[serde(default)]
    pub(super) on_demand: bool,
    /// How far it may go; the policy's mode where it is not given, and never above that.
    pub(super) mode: Option<Mode>,
    /// What it may be about; only a rule on demand may be about the host as a whole, and have none.
    pub(super) target: Option<Located<TargetFile>>,
    /// When it is needed, measured here. Units and containers are in need when they have failed or are unhealthy.
    pub(super) needed: Option<Located<NeededFile>>,
    /// Starts on one target that it admits, as many as N in any stretch of time: N/WINDOW.
    #[schemars(extend("default" = ["1/15m", "3/6h", "5/24h"]))]
    pub(super) limits: Option<Located<Vec<Limit>>>,
    /// The same on all its targets together.
    pub(super) rule_limits: Option<Located<Vec<Limit>>>,
    /// So long after a try nothing is tried again on the same target; later after each further one.
    #[schemars(extend("default" = "10m"))]
    pub(super) cooldown: Option<PromDuration>,
    /// When tries that did not help end the trying, until a person has looked.
    pub(super) breaker: Option<BreakerFile>,
    /// When it may act; at any time where not given.
    pub(super) window: Option<Located<WindowFile>>,
    /// What Prometheus must say for it to act.
    #[serde(default)]
    pub(super) gates: Vec<Located<GateFile>>,
    /// Whether the budgets and the pace of the fleet hold for it; a rule about Redis, which keeps them, must say `local`.
    #[schemars(extend("default" = "fleet"))]
    pub(super) budget: Option<BudgetFile>,
    /// Tried in this order until the problem is gone, each followed by a look at the host.
    #[schemars(extend("minItems" = 1))]
    pub(super) steps: Located<Vec<Located<Step>>>,
    /// When the problem counts as gone, measured here. Needed by every rule that restarts or deletes.
    pub(super) verify: Option<Located<VerifyFile>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend(
    "required" = ["allow"],
    "oneOf" = [{"required": ["filesystem"]}, {"required": ["unit"]}, {"required": ["container"]}, {"required": ["hostname"]}]
))]
pub(super) struct TargetFile {
    /// A mounted filesystem: the alert's label that has its mount point.
    pub(super) filesystem: Option<String>,
    /// A systemd unit: the alert's label that has its name.
    pub(super) unit: Option<String>,
    /// A container: the alert's label that has its name.
    pub(super) container: Option<String>,
    /// The name of a host, as services look it up: the alert's label that has it. Not `host`, which is the machine.
    pub(super) hostname: Option<String>,
    /// What may be named, with * and ?: everything else is refused.
    #[serde(default)]
    #[schemars(extend("minItems" = 1))]
    pub(super) allow: Vec<Located<Pattern>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NeededFile {
    /// A filesystem with more of its bytes in use.
    pub(super) usage_above: Option<Ratio>,
    /// A filesystem with more of its inodes in use.
    pub(super) inodes_above: Option<Ratio>,
    /// A host with more build cache that nothing uses.
    pub(super) build_cache_above: Option<Bytes>,
    /// Whenever it is triggered.
    pub(super) always: Option<bool>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct BreakerFile {
    /// After so many tries in a row that did not help.
    #[schemars(extend("minimum" = 1, "examples" = [2]))]
    pub(super) after: Located<u32>,
    /// For so long; then one try is admitted, and decides.
    #[schemars(extend("examples" = ["12h"]))]
    pub(super) hold: PromDuration,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct WindowFile {
    /// On these days; all where not given.
    #[serde(default)]
    #[schemars(inner(regex(pattern = DAYS)), extend("examples" = [["mon-fri"], ["sat", "sun"]]))]
    pub(super) days: Vec<String>,
    /// From this time.
    #[schemars(extend("pattern" = CLOCK_TIME, "examples" = ["07:00"]))]
    pub(super) from: String,
    /// Until this time, which may be after midnight.
    #[schemars(extend("pattern" = CLOCK_TIME, "examples" = ["22:00"]))]
    pub(super) to: String,
    /// In this time zone.
    #[schemars(extend("default" = "UTC", "examples" = ["Europe/Berlin"]))]
    pub(super) tz: Option<String>,
}

/// A day of the week, or a range of them.
const DAYS: &str = "^(mon|tue|wed|thu|fri|sat|sun)(-(mon|tue|wed|thu|fri|sat|sun))?$";
/// A time of the day.
const CLOCK_TIME: &str = "^([01][0-9]|2[0-3]):[0-5][0-9]$";

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct VerifyFile {
    /// A filesystem with less of its bytes in use.
    pub(super) usage_below: Option<Ratio>,
    /// A filesystem with less of its inodes in use.
    pub(super) inodes_below: Option<Ratio>,
    /// A unit that has been active for so long.
    pub(super) active_for: Option<PromDuration>,
    /// A unit that has not been failed for so long.
    pub(super) not_failed_for: Option<PromDuration>,
    /// A unit that has been stopped for so long.
    pub(super) stopped_for: Option<PromDuration>,
    /// A container that has been healthy for so long.
    pub(super) healthy_for: Option<PromDuration>,
    /// A unit that does not exist is named by no unit file of the host's own, and is not failed.
    pub(super) unreferenced_for: Option<PromDuration>,
    /// A name resolves to this address, and to no other.
    #[schemars(with = "Option<String>", extend("format" = "ip", "examples" = ["127.0.0.1", "::1"]))]
    pub(super) resolves_to: Option<IpAddr>,
    /// The steps have been carried out; for rules on demand only.
    pub(super) completed: Option<bool>,
    /// How long a filesystem must stay below its marks, or a name resolve (0s by default).
    #[schemars(extend("default" = "1m"))]
    pub(super) hold: Option<PromDuration>,
    /// At the latest so long after the last step.
    pub(super) within: PromDuration,
}
