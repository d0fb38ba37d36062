//! The configuration: what is written in YAML becomes what is true here, once. Everything that would make a rule
//! useless or dangerous is an error at load, with the file, the line and the cure.

mod api;
mod file;
mod fleet;
mod rule;
mod server;
mod snapshot;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use evenkeel_host::config::{ConfigError, Located, PromDuration, Secret};

pub use self::server::Access;
use self::{
    file::{
        BudgetFile, File, Fragment, GatesFile, NotifyTo, Policy, PolicyLimits, ReconcileFile, RuleFile,
        SlackTo, State, StormFile, WebhookTo,
    },
    rule::RuleChecker,
};
use crate::{
    actions::{self, Golden},
    admission::gates::Gates,
    api::{Api, prometheus::Prometheus},
    fleet::settings::Settings,
    journal::{Places, Storm},
    notify::{Form, Receiver},
    policy::{Class, Deletion, DenyList, Limit, Mode, increasing},
    reconcile::Reconcile,
    rules::Rule,
    text::digest,
};

/// A folder beside the configuration; its files may hold `rules` and `notify`.
const FRAGMENTS: &str = "conf.d";
/// Remediations that may be open before further deliveries are asked to come again.
const OPEN_MAX: usize = 10_000;
/// Other units that a restart may take along.
const BLAST_RADIUS: u32 = 3;
/// In here each state has a folder to fall back to.
const FALLBACKS: &str = "/run/evenkeel-remediator";
/// How long a person may take to approve.
const APPROVAL_WITHIN: Duration = Duration::from_secs(30 * 60);

/// The whole configuration, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where it was read from.
    pub path: PathBuf,
    /// The names under which alerts mean this host.
    pub hosts: Vec<String>,
    /// Where to listen, and who is let in.
    pub access: Access,
    /// Where the state lives.
    pub state_dir: PathBuf,
    /// Where it goes while that cannot be written.
    pub fallback_dir: PathBuf,
    /// So many open remediations ask further deliveries to come again.
    pub open_max: usize,
    /// When and how long needs are kept in sight between deliveries.
    pub reconcile: Reconcile,
    /// Where alerts are asked about, and silences known.
    pub alertmanager: Option<Api>,
    /// Where conditions are asked, and whether the exporter is scraped.
    pub prometheus: Option<Prometheus>,
    /// Which units have golden snapshots, and where.
    pub golden: Option<Arc<Golden>>,
    /// Whom it shares budgets with, where it is not alone.
    pub fleet: Option<Arc<Settings>>,
    /// Who is told.
    pub receivers: Vec<Receiver>,
    /// What may be deleted.
    pub deletion: Deletion,
    /// How far any rule may go.
    pub mode: Mode,
    /// What is never touched.
    pub deny: DenyList,
    /// What of the host itself speaks against acting.
    pub gates: Gates,
    /// When so many targets are in need that none is acted on.
    pub storm: Storm,
    /// Other units that a restart may take along.
    pub blast_radius: u32,
    /// How long a person may take to approve.
    pub approval_within: Duration,
    /// Windows of whole-host scopes.
    pub limits: HostLimits,
    /// In the order in which they are tried.
    pub rules: Vec<Rule>,
}

/// The windows that hold for all rules together.
#[derive(Debug, Clone)]
pub struct HostLimits {
    classes: Vec<(Class, Vec<Limit>)>,
    /// Starts on one target by all rules.
    pub target: Vec<Limit>,
    /// Starts of everything.
    pub host: Vec<Limit>,
}

impl Config {
    /// Where the state lies.
    pub fn places(&self) -> Places {
        Places { dir: self.state_dir.clone(), fallback: Some(self.fallback_dir.clone()) }
    }
}

impl HostLimits {
    /// Steps of one class on this host.
    pub fn class(&self, class: Class) -> &[Limit] {
        self.classes.iter().find(|(limited, _)| *limited == class).map_or(&[], |(_, limits)| limits)
    }
}

/// Reads and checks a configuration file, and what is in `conf.d/` beside it. Paths in a file are relative to its
/// folder.
///
/// # Errors
/// For whatever is wrong first: the place, the key and the cure.
pub fn load(path: &Path) -> Result<Config, ConfigError> {
    let file = evenkeel_host::config::load(path)?;
    let checker = Checker::of(path);
    let mut fragments = Vec::new();
    for path in fragment_files(&fragments_folder(path))? {
        fragments.push((Checker::of(&path), evenkeel_host::config::load(&path)?));
    }
    checker.config(file, fragments)
}

/// The JSON Schema of a configuration file.
pub fn schema() -> String {
    evenkeel_host::config::schema::<File>()
}

/// The folder beside a configuration file whose `.yml` files are part of the configuration; it need not be there.
pub fn fragments_folder(path: &Path) -> PathBuf {
    Checker::of(path).base.join(FRAGMENTS)
}

/// The `.yml` files of a folder by name; none when there is no such folder.
fn fragment_files(folder: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let unreadable = |error: std::io::Error| {
        ConfigError::new(&folder.display().to_string(), format!("cannot read the folder: {error}"))
    };
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(unreadable)?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(unreadable)?.path();
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if !hidden && path.extension().is_some_and(|extension| extension == "yml") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// What else the configuration has that rules may need.
#[derive(Debug, Clone, Copy)]
struct Given {
    prometheus: bool,
    snapshot: bool,
    fleet: bool,
}

/// Knows where the configuration came from, for its errors and its relative paths.
struct Checker {
    origin: String,
    base: PathBuf,
}

impl Checker {
    /// Paths in a file are relative to its folder.
    fn of(path: &Path) -> Self {
        let base = path.parent().unwrap_or(Path::new("."));
        Self { origin: path.display().to_string(), base: base.to_owned() }
    }

    /// An error at a place of this file.
    fn at<T>(&self, place: &Located<T>, message: impl Into<String>) -> ConfigError {
        ConfigError::at(&self.origin, place, message)
    }

    fn config(&self, file: File, fragments: Vec<(Self, Fragment)>) -> Result<Config, ConfigError> {
        let access = self.server(&file.server)?;
        let deny = DenyList::with(file.policy.deny_units.clone());
        let mut receivers = self.receivers(file.notify)?;
        let mut rules = Vec::new();
        let golden = self.golden(file.snapshot, &deny)?.map(Arc::new);
        let given = Given {
            prometheus: file.prometheus.is_some(),
            snapshot: golden.is_some(),
            fleet: file.fleet.is_some(),
        };
        self.rules(file.rules, &file.policy, &deny, given, &mut rules)?;
        for (checker, fragment) in fragments {
            receivers.extend(checker.receivers(fragment.notify)?);
            checker.rules(fragment.rules, &file.policy, &deny, given, &mut rules)?;
        }
        let state_dir = self.base.join(&file.state.dir);
        let hosts = if file.identity.hosts.is_empty() { own_names() } else { file.identity.hosts };
        Ok(Config {
            path: PathBuf::from(&self.origin),
            fleet: self.fleet(file.fleet.as_ref(), &hosts)?.map(Arc::new),
            hosts,
            access,
            fallback_dir: fallback_of(&state_dir),
            state_dir,
            open_max: self.open_max(&file.state)?,
            reconcile: self.reconcile(&file.reconcile)?,
            alertmanager: self.alertmanager(file.alertmanager.as_ref())?,
            prometheus: self.prometheus(file.prometheus.as_ref())?,
            golden,
            receivers,
            deletion: file.policy.deletion,
            mode: file.policy.mode,
            gates: self.gates(&file.policy.gates)?,
            storm: self.storm(&file.policy.storm)?,
            blast_radius: file.policy.blast_radius.unwrap_or(BLAST_RADIUS),
            approval_within: self.approval_within(file.policy.approval_within.as_ref())?,
            limits: self.host_limits(file.policy.limits)?,
            deny,
            rules,
        })
    }

    /// Checks the rules of one file, behind those of the files before it.
    fn rules(
        &self,
        files: Vec<RuleFile>,
        policy: &Policy,
        deny: &DenyList,
        given: Given,
        rules: &mut Vec<Rule>,
    ) -> Result<(), ConfigError> {
        for file in files {
            let name = &file.name.value;
            if rules.iter().any(|rule| rule.name == *name) {
                let message = format!("rule `{name}` stands twice: give each rule a name of its own");
                return Err(self.at(&file.name, message));
            }
            if let (Some(gate), false) = (file.gates.first(), given.prometheus) {
                let message = format!(
                    "rule `{name}`: `gates` needs to know whom to ask: add `prometheus: {{url: http://127.0.0.1:9090}}`"
                );
                return Err(self.at(gate, message));
            }
            let is_of_snapshots = |step: &&Located<actions::Step>| actions::needs_snapshots(&step.value);
            if let (Some(step), false) = (file.steps.value.iter().find(is_of_snapshots), given.snapshot) {
                let message = format!(
                    "rule `{name}`: step `{}` needs to know which units belong together: add `snapshot: {{units: [\"shop-*.service\"]}}`",
                    step.value.0.name()
                );
                return Err(self.at(step, message));
            }
            if given.fleet && file.budget != Some(BudgetFile::Local) && fleet::is_about_redis(&file) {
                let message = format!(
                    "rule `{name}` is about a Redis, and Redis keeps the budgets of the fleet: what repairs it must not wait for it; write `budget: local`"
                );
                return Err(self.at(&file.name, message));
            }
            rules.push(RuleChecker::new(self, policy, deny, file.name.clone()).rule(file)?);
        }
        Ok(())
    }

    fn open_max(&self, state: &State) -> Result<usize, ConfigError> {
        match &state.open_max {
            Some(most) if most.value == 0 => {
                Err(self.at(most, "`state.open_max: 0` would take no alert at all: write 1 or more"))
            }
            Some(most) => Ok(most.value),
            None => Ok(OPEN_MAX),
        }
    }

    fn reconcile(&self, file: &ReconcileFile) -> Result<Reconcile, ConfigError> {
        let default = Reconcile::default();
        if let Some(interval) = file.interval.as_ref().filter(|interval| interval.value.get().is_zero()) {
            let message = "`reconcile.interval: 0s` would never rest: write 60s, or `alert_ttl: 0s` to take nothing up between deliveries";
            return Err(self.at(interval, message));
        }
        Ok(Reconcile {
            interval: file.interval.as_ref().map_or(default.interval, |interval| interval.value.get()),
            alert_ttl: file.alert_ttl.map_or(default.alert_ttl, |ttl| ttl.get()),
        })
    }

    fn gates(&self, file: &GatesFile) -> Result<Gates, ConfigError> {
        let mut gates = Gates::default();
        if let Some(grace) = file.grace {
            gates.grace = grace.get();
        }
        if let Some(grace) = file.engine_grace {
            gates.engine_grace = grace.get();
        }
        if let Some(stall) = file.stall {
            gates.stall = stall.get();
        }
        if let Some(load) = &file.load {
            if !(load.value.is_finite() && load.value > 0.0) {
                return Err(self.at(
                    load,
                    "`policy.gates.load` is a load per processor above 0: write 10, or a large number to switch it off",
                ));
            }
            gates.load = load.value;
        }
        gates.package_manager = file.package_manager.unwrap_or(gates.package_manager);
        Ok(gates)
    }

    fn storm(&self, file: &StormFile) -> Result<Storm, ConfigError> {
        let default = Storm::default();
        if let Some(targets) = file.targets.as_ref().filter(|targets| targets.value == 0) {
            let message = "`policy.storm.targets: 0` would call a single target a storm: write 1 or more, the default is 5";
            return Err(self.at(targets, message));
        }
        Ok(Storm {
            targets: file.targets.as_ref().map_or(default.targets, |targets| targets.value),
            within: file.within.map_or(default.within, |within| within.get()),
            hold: file.hold.map_or(default.hold, |hold| hold.get()),
        })
    }

    fn approval_within(&self, file: Option<&Located<PromDuration>>) -> Result<Duration, ConfigError> {
        match file {
            Some(within) if within.value.get().is_zero() => Err(self.at(
                within,
                "`policy.approval_within: 0s` leaves nobody time to approve: write 30m, or use mode plan",
            )),
            Some(within) => Ok(within.value.get()),
            None => Ok(APPROVAL_WITHIN),
        }
    }

    /// The secret in a file that the configuration names.
    fn secret(&self, key: &str, path: &Located<PathBuf>) -> Result<Secret, ConfigError> {
        Secret::from_file(&self.base.join(&path.value))
            .map_err(|error| self.at(path, format!("`{key}`: {error}")))
    }

    fn host_limits(&self, file: PolicyLimits) -> Result<HostLimits, ConfigError> {
        let or = |given: Option<Located<Vec<Limit>>>, name: &str, default: &[&str]| match given {
            Some(limits) => self.windows(limits, &format!("`policy.limits.{name}`")),
            None => Ok(read_limits(default)),
        };
        Ok(HostLimits {
            classes: vec![
                (Class::S1, or(file.S1, "S1", &[])?),
                (Class::S2, or(file.S2, "S2", &["1/1m", "6/1h", "20/24h"])?),
                (Class::D1, or(file.D1, "D1", &["4/1h", "8/24h"])?),
                (Class::D2, or(file.D2, "D2", &["1/6h", "2/24h"])?),
            ],
            target: or(file.target, "target", &[])?,
            host: or(file.host, "host", &[])?,
        })
    }

    fn windows(&self, limits: Located<Vec<Limit>>, key: &str) -> Result<Vec<Limit>, ConfigError> {
        if increasing(&limits.value) {
            return Ok(limits.value);
        }
        let message = format!(
            "{key}: each window must be longer and allow no less than the one before: write them as 1/15m, 3/6h, 5/24h"
        );
        Err(self.at(&limits, message))
    }

    fn receivers(&self, files: Vec<NotifyTo>) -> Result<Vec<Receiver>, ConfigError> {
        files.into_iter().map(|to| self.receiver(to)).collect()
    }

    fn receiver(&self, to: NotifyTo) -> Result<Receiver, ConfigError> {
        match to {
            NotifyTo::Webhook(to) => self.webhook(&to),
            NotifyTo::Slack(to) => self.slack(&to),
        }
    }

    fn webhook(&self, to: &Located<WebhookTo>) -> Result<Receiver, ConfigError> {
        let WebhookTo { url, url_file, bearer_token_file, on } = &to.value;
        let url = match (url, url_file) {
            (Some(url), None) => Secret::new(url.clone()),
            (None, Some(file)) => self.secret("notify.webhook.url_file", file)?,
            _ => {
                let message = "`notify.webhook`: give exactly one of `url` and `url_file`";
                return Err(self.at(to, message));
            }
        };
        let bearer_token = bearer_token_file
            .as_ref()
            .map(|file| self.secret("notify.webhook.bearer_token_file", file))
            .transpose()?;
        self.at_a_url(to, Receiver { form: Form::Webhook, url, bearer_token, on: on.clone() })
    }

    fn slack(&self, to: &Located<SlackTo>) -> Result<Receiver, ConfigError> {
        let SlackTo { url_file, url, on } = &to.value;
        let (Some(file), None) = (url_file, url) else {
            let message = "`notify.slack` needs `url_file`: whoever knows the URL can post, so it stands in a file of its own";
            return Err(self.at(to, message));
        };
        let url = self.secret("notify.slack.url_file", file)?;
        self.at_a_url(to, Receiver { form: Form::Slack, url, bearer_token: None, on: on.clone() })
    }

    /// A receiver that has a URL to send to.
    fn at_a_url<T>(&self, place: &Located<T>, receiver: Receiver) -> Result<Receiver, ConfigError> {
        let url = reqwest::Url::parse(receiver.url.expose());
        if url.is_ok_and(|url| matches!(url.scheme(), "http" | "https")) {
            return Ok(receiver);
        }
        // Without the URL itself: it may hold a secret.
        let message = format!(
            "`notify.{}`: this is no http or https URL: write it as https://chat.example/hook",
            receiver.form.as_str()
        );
        Err(self.at(place, message))
    }
}

/// Limits that are written in this program.
fn read_limits(texts: &[&str]) -> Vec<Limit> {
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

/// This host's name, and the full names that /etc/hosts gives it. No resolver is asked: it may hang.
/// Each state has its own, told by its path: it must never be taken for another's.
fn fallback_of(state_dir: &Path) -> PathBuf {
    let absolute = std::path::absolute(state_dir).unwrap_or_else(|_| state_dir.to_owned());
    Path::new(FALLBACKS).join(digest(absolute.as_os_str().as_encoded_bytes()))
}

fn own_names() -> Vec<String> {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let hosts = fs::read_to_string("/etc/hosts").unwrap_or_default();
    let mut names = vec![name.clone()];
    for line in hosts.lines() {
        let words: Vec<&str> =
            line.split('#').next().unwrap_or_default().split_whitespace().skip(1).collect();
        if words.contains(&name.as_str()) {
            let full = words.iter().filter(|word| word.starts_with(&format!("{name}.")));
            names.extend(full.map(|word| (*word).to_owned()));
        }
    }
    names.dedup();
    names
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A rule from one line of YAML, under a policy that lets it act.
    pub(crate) fn rule(text: &str) -> Rule {
        config(&format!("policy: {{mode: auto, deletion: data}}\nrules:\n  - {text}\n"))
            .unwrap()
            .rules
            .remove(0)
    }

    /// A configuration without authentication.
    pub(crate) fn config(text: &str) -> Result<Config, ConfigError> {
        parse(&format!("server: {{auth: none}}\n{text}"))
    }

    fn parse(text: &str) -> Result<Config, ConfigError> {
        let checker = Checker { origin: "r.yml".to_owned(), base: PathBuf::from("/nowhere") };
        checker.config(evenkeel_host::config::parse("r.yml", text)?, Vec::new())
    }

    #[test]
    fn the_mode_of_a_rule_is_never_above_the_policy() {
        let rule = "{name: a, mode: auto, match: ['a=\"b\"'], target: {unit: name, allow: [a.service]}, steps: [notify]}";
        let mode = |policy: &str| {
            config(&format!("policy: {{mode: {policy}}}\nrules: [{rule}]\n")).unwrap().rules[0].mode
        };
        assert_eq!(mode("plan"), Mode::Plan);
        assert_eq!(mode("auto"), Mode::Auto);
    }

    #[test]
    fn defaults_are_safe() {
        let config = config("{}").unwrap_or_else(|_| config("rules: []\n").unwrap());
        assert_eq!((config.mode, config.deletion), (Mode::Plan, Deletion::None));
        assert_eq!(
            config.access.listen,
            [evenkeel_host::web::ListenAddress::Tcp("127.0.0.1:19848".to_owned())]
        );
        assert_eq!(config.limits.class(Class::S2).len(), 3);
        assert!(!config.hosts.is_empty());
    }
}
