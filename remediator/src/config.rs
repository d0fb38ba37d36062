//! The configuration: what is written in YAML becomes what is true here, once. Everything that would make a rule
//! useless or dangerous is an error at load, with the file, the line and the cure.

mod file;
mod server;

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use evenkeel_host::config::{ConfigError, Located, PromDuration, Secret};

use self::file::{
    BreakerFile, File, NotifyTo, Policy, PolicyLimits, RuleFile, TargetFile, VerifyFile, WebhookTo,
};
pub use self::server::Access;
use crate::{
    actions::{self, Step},
    admission::Restraint,
    matcher::Matcher,
    notify::Receiver,
    policy::{Class, Deletion, DenyList, Limit, Mode, increasing},
    rules::{DoneWhen, Rule, Verify},
    target::{Kind, Selector},
};

/// Below this a disk rule without `needed` is not needed: the threshold of the shipped alerts.
const USAGE_ABOVE: f64 = 0.85;
/// How long a filesystem must stay below its mark, when `hold` does not say.
const HOLD: Duration = Duration::from_secs(60);
/// A rule's name is part of the names of its reports.
const NAME_MAX: usize = 64;

/// The whole configuration, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// The names under which alerts mean this host.
    pub hosts: Vec<String>,
    /// Where to listen, and who is let in.
    pub access: Access,
    /// Where the state lives.
    pub state_dir: PathBuf,
    /// Who is told.
    pub receivers: Vec<Receiver>,
    /// What may be deleted.
    pub deletion: Deletion,
    /// How far any rule may go.
    pub mode: Mode,
    /// What is never touched.
    pub deny: DenyList,
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

impl HostLimits {
    /// Steps of one class on this host.
    pub fn class(&self, class: Class) -> &[Limit] {
        self.classes.iter().find(|(limited, _)| *limited == class).map_or(&[], |(_, limits)| limits)
    }
}

/// Reads and checks a configuration file. Paths in it are relative to its folder.
///
/// # Errors
/// For whatever is wrong first: the place, the key and the cure.
pub fn load(path: &Path) -> Result<Config, ConfigError> {
    let file = evenkeel_host::config::load(path)?;
    let base = path.parent().unwrap_or(Path::new("."));
    Checker { origin: path.display().to_string(), base: base.to_owned() }.config(file)
}

/// Knows where the configuration came from, for its errors and its relative paths.
struct Checker {
    origin: String,
    base: PathBuf,
}

impl Checker {
    /// An error at a place of this file.
    fn at<T>(&self, place: &Located<T>, message: impl Into<String>) -> ConfigError {
        ConfigError::at(&self.origin, place, message)
    }

    fn config(&self, file: File) -> Result<Config, ConfigError> {
        let access = self.server(&file.server)?;
        let deny = DenyList::with(file.policy.deny_units.clone());
        let mut names = HashSet::new();
        let mut rules = Vec::new();
        for rule in file.rules {
            if !names.insert(rule.name.value.clone()) {
                let message =
                    format!("rule `{}` stands twice: give each rule a name of its own", rule.name.value);
                return Err(ConfigError::at(&self.origin, &rule.name, message));
            }
            rules.push(self.rule(rule, &file.policy, &deny)?);
        }
        let limits = self.host_limits(file.policy.limits)?;
        let receivers = file.notify.into_iter().map(|to| self.receiver(to)).collect::<Result<_, _>>()?;
        Ok(Config {
            hosts: if file.identity.hosts.is_empty() { own_names() } else { file.identity.hosts },
            access,
            state_dir: self.base.join(file.state.dir),
            receivers,
            deletion: file.policy.deletion,
            mode: file.policy.mode,
            deny,
            limits,
            rules,
        })
    }

    /// The secret in a file that the configuration names.
    fn secret(&self, key: &str, path: &Located<PathBuf>) -> Result<Secret, ConfigError> {
        Secret::from_file(&self.base.join(&path.value))
            .map_err(|error| ConfigError::at(&self.origin, path, format!("`{key}`: {error}")))
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
        Err(ConfigError::at(&self.origin, &limits, message))
    }

    fn receiver(&self, NotifyTo::Webhook(to): NotifyTo) -> Result<Receiver, ConfigError> {
        let WebhookTo { url, url_file, bearer_token_file, on } = &to.value;
        let url = match (url, url_file) {
            (Some(url), None) => Secret::new(url.clone()),
            (None, Some(file)) => self.secret("notify.webhook.url_file", file)?,
            _ => {
                let message = "`notify.webhook`: give exactly one of `url` and `url_file`";
                return Err(ConfigError::at(&self.origin, &to, message));
            }
        };
        if !reqwest::Url::parse(url.expose()).is_ok_and(|url| matches!(url.scheme(), "http" | "https")) {
            // Without the URL itself: it may hold a secret.
            let message =
                "`notify.webhook`: this is no http or https URL: write it as https://chat.example/hook";
            return Err(ConfigError::at(&self.origin, &to, message));
        }
        let bearer_token = bearer_token_file
            .as_ref()
            .map(|file| self.secret("notify.webhook.bearer_token_file", file))
            .transpose()?;
        Ok(Receiver { url, bearer_token, on: on.clone() })
    }

    fn rule(&self, file: RuleFile, policy: &Policy, deny: &DenyList) -> Result<Rule, ConfigError> {
        let name = file.name.value.clone();
        let said = |message: String| format!("rule `{name}`: {message}");
        if !is_rule_name(&name) {
            let shown: String = name.chars().take(NAME_MAX).collect();
            let message = format!(
                "`{shown}` is no rule name: use at most {NAME_MAX} letters, digits, - and _, as in disk-high"
            );
            return Err(ConfigError::at(&self.origin, &file.name, message));
        }
        let mode = file.mode.unwrap_or(policy.mode).min(policy.mode);
        let matchers = self.matchers(&file.matchers, &said)?;
        let selector = self.selector(&file.target, &said)?;
        let usage_above = match &file.needed {
            Some(needed) if selector.kind == Kind::Filesystem => needed.value.usage_above.get(),
            Some(needed) => {
                let message = said("`needed.usage_above` is for filesystems: remove it".to_owned());
                return Err(ConfigError::at(&self.origin, needed, message));
            }
            None => USAGE_ABOVE,
        };
        let mut restraint = Restraint::default();
        if let Some(cooldown) = file.cooldown {
            restraint.cooldown = cooldown.get();
        }
        if let Some(breaker) = &file.breaker {
            (restraint.breaker_after, restraint.breaker_hold) = self.breaker(breaker, &said)?;
        }
        let limits = match file.limits {
            Some(limits) => self.windows(limits, &said("`limits`".to_owned()))?,
            None => read_limits(&["1/15m", "3/6h", "5/24h"]),
        };
        let rule_limits = file
            .rule_limits
            .map_or(Ok(Vec::new()), |limits| self.windows(limits, &said("`rule_limits`".to_owned())))?;
        let verify = match &file.verify {
            Some(verify) => Some(self.verify(verify, selector.kind, usage_above, &said)?),
            None => None,
        };
        self.steps(&file.steps, &selector, mode, policy.deletion, &said)?;
        let rule = Rule {
            name: name.clone(),
            matchers,
            mode,
            selector,
            usage_above,
            limits,
            rule_limits,
            restraint,
            steps: evidence_first(file.steps.value.into_iter().map(|step| step.value).collect()),
            verify,
        };
        self.whole(&rule, &file.name, &file.target, deny)?;
        Ok(rule)
    }

    fn breaker(
        &self,
        file: &BreakerFile,
        said: &impl Fn(String) -> String,
    ) -> Result<(u32, Duration), ConfigError> {
        if file.after.value == 0 {
            let message = said(
                "`breaker.after: 0` would never stop what does not help: write 1 or more, the default is 2"
                    .to_owned(),
            );
            return Err(ConfigError::at(&self.origin, &file.after, message));
        }
        Ok((file.after.value, file.hold.get()))
    }

    fn matchers(
        &self,
        file: &Located<Vec<Located<String>>>,
        said: &impl Fn(String) -> String,
    ) -> Result<Vec<Matcher>, ConfigError> {
        let mut matchers = Vec::new();
        for text in &file.value {
            matchers.push(
                Matcher::parse(&text.value).map_err(|error| {
                    ConfigError::at(&self.origin, text, said(format!("`match`: {error}")))
                })?,
            );
        }
        if matchers.iter().all(Matcher::accepts_missing) {
            let message = said(
                "`match` selects every alert: name at least one label, as in 'alertname=\"HostDiskHigh\"'"
                    .to_owned(),
            );
            return Err(ConfigError::at(&self.origin, file, message));
        }
        Ok(matchers)
    }

    fn selector(
        &self,
        file: &Located<TargetFile>,
        said: &impl Fn(String) -> String,
    ) -> Result<Selector, ConfigError> {
        let TargetFile { filesystem, unit, container, allow } = &file.value;
        let given = [(Kind::Filesystem, filesystem), (Kind::Unit, unit), (Kind::Container, container)];
        let mut given =
            given.into_iter().filter_map(|(kind, label)| label.clone().map(|label| (kind, label)));
        let (Some((kind, label)), None) = (given.next(), given.next()) else {
            let message = said("`target` needs exactly one of filesystem, unit and container, with the label that names it: {unit: name, allow: [app.service]}".to_owned());
            return Err(ConfigError::at(&self.origin, file, message));
        };
        if allow.is_empty() {
            let message = said("`target.allow` admits nothing: list what this rule may touch".to_owned());
            return Err(ConfigError::at(&self.origin, file, message));
        }
        Ok(Selector { kind, label, allow: allow.iter().map(|pattern| pattern.value.clone()).collect() })
    }

    fn verify(
        &self,
        file: &Located<VerifyFile>,
        kind: Kind,
        usage_above: f64,
        said: &impl Fn(String) -> String,
    ) -> Result<Verify, ConfigError> {
        let wrong = |message: &str| Err(ConfigError::at(&self.origin, file, said(message.to_owned())));
        let VerifyFile { usage_below, active_for, not_failed_for, stopped_for, healthy_for, hold, within } =
            &file.value;
        let given = [
            usage_below.map(|mark| {
                (Kind::Filesystem, DoneWhen::UsageBelow(mark.get()), hold.map_or(HOLD, |h| h.get()))
            }),
            active_for.map(|hold| (Kind::Unit, DoneWhen::Active, hold.get())),
            not_failed_for.map(|hold| (Kind::Unit, DoneWhen::NotFailed, hold.get())),
            stopped_for.map(|hold| (Kind::Unit, DoneWhen::Stopped, hold.get())),
            healthy_for.map(|hold| (Kind::Container, DoneWhen::Healthy, hold.get())),
        ];
        let mut given = given.into_iter().flatten();
        let (Some((fits, done, hold_for)), None) = (given.next(), given.next()) else {
            return wrong(&format!(
                "`verify` needs exactly one mark that says when it is well: {}",
                example(kind)
            ));
        };
        if fits != kind {
            return wrong(&format!(
                "`verify` is for another kind of target: a {} needs {}",
                kind.as_str(),
                example(kind)
            ));
        }
        if hold.is_some() && kind != Kind::Filesystem {
            return wrong(
                "`verify.hold` goes with usage_below: the other marks say themselves how long they must hold",
            );
        }
        if hold_for >= within.get() {
            return wrong(&format!(
                "`verify.within` must be longer than the {} it must hold: raise it",
                PromDuration::new(hold_for)
            ));
        }
        if let DoneWhen::UsageBelow(mark) = done
            && mark >= usage_above
        {
            return wrong(
                "`verify.usage_below` must be lower than `needed.usage_above` (85% when not given): otherwise it is done when it begins",
            );
        }
        Ok(Verify { done, hold: hold_for, within: within.get() })
    }

    fn steps(
        &self,
        steps: &Located<Vec<Located<Step>>>,
        selector: &Selector,
        mode: Mode,
        deletion: Deletion,
        said: &impl Fn(String) -> String,
    ) -> Result<(), ConfigError> {
        if steps.value.is_empty() {
            let message = said("`steps` is empty: name at least one, such as notify".to_owned());
            return Err(ConfigError::at(&self.origin, steps, message));
        }
        for step in &steps.value {
            let action = &step.value.0;
            if !action.fits(selector.kind) {
                let message = said(format!(
                    "step `{}` cannot be done about a {}: use one of {}",
                    action.name(),
                    selector.kind.as_str(),
                    actions::fitting(selector.kind).join(", ")
                ));
                return Err(ConfigError::at(&self.origin, step, message));
            }
            if mode > Mode::Plan && !deletion.allows(action.class()) {
                let needed = if action.class() == Class::D1 { "cache" } else { "data" };
                let message = said(format!(
                    "step `{}` deletes (class {}) and `policy.deletion` is {}: set policy.deletion: {needed}, remove the step, or leave the rule in mode plan",
                    action.name(),
                    action.class().as_str(),
                    deletion.as_str()
                ));
                return Err(ConfigError::at(&self.origin, step, message));
            }
        }
        Ok(())
    }

    /// What only the whole rule shows.
    fn whole(
        &self,
        rule: &Rule,
        name: &Located<String>,
        target: &Located<TargetFile>,
        deny: &DenyList,
    ) -> Result<(), ConfigError> {
        let said = |message: &str| format!("rule `{}`: {message}", rule.name);
        if rule.class() > Class::S1 && rule.verify.is_none() {
            let message = said(&format!(
                "`verify` is missing: a rule that restarts or deletes must say how its effect is measured, as in verify: {}",
                example(rule.selector.kind)
            ));
            return Err(ConfigError::at(&self.origin, name, message));
        }
        for pattern in &target.value.allow {
            if rule.class() > Class::S1 && pattern.value.matches_all() {
                let message = said(
                    "`target.allow: [*]` admits everything, and this rule restarts or deletes: list what it may touch",
                );
                return Err(ConfigError::at(&self.origin, pattern, message));
            }
            let text = pattern.value.to_string();
            if rule.selector.kind == Kind::Unit && pattern.value.is_literal() && deny.denies(&text) {
                let message =
                    said(&format!("`target.allow` names {text}, which evenkeel never acts on: remove it"));
                return Err(ConfigError::at(&self.origin, pattern, message));
            }
        }
        Ok(())
    }
}

fn is_rule_name(name: &str) -> bool {
    (1..=NAME_MAX).contains(&name.len())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
}

/// What `verify` looks like for a kind of target.
fn example(kind: Kind) -> &'static str {
    match kind {
        Kind::Filesystem => "{usage_below: 80%, within: 5m}",
        Kind::Unit => "{active_for: 60s, within: 4m} or {not_failed_for: 60s, within: 4m}",
        Kind::Container => "{healthy_for: 60s, within: 5m}",
    }
}

/// A rule that acts takes a report before it does, for the repair may destroy the evidence; where the rule itself says
/// when, that holds.
fn evidence_first(mut steps: Vec<Step>) -> Vec<Step> {
    let acts = steps.iter().any(|step| step.0.class().acts());
    let reports = steps.iter().any(|step| step.0.name() == crate::actions::REPORT);
    if acts && !reports {
        steps.insert(0, crate::actions::report());
    }
    steps
}

/// Limits that are written in this program.
fn read_limits(texts: &[&str]) -> Vec<Limit> {
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

/// This host's name, and the full names that /etc/hosts gives it. No resolver is asked: it may hang.
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
        checker.config(evenkeel_host::config::parse("r.yml", text)?)
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
