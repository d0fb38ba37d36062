//! What the status page shows, read from the journal at one moment and bounded.

use crate::{
    admission::{self, Breaker, Refusal, Scope},
    clock::{Clock, Moment},
    config::Config,
    history::named,
    journal::{Error, Halt, Loss, Phase, Reader, Record, StepRecord},
    outcome::Outcome,
    policy::{Class, Limit},
    rules::Rule,
};

/// Open remediations shown; the others are counted.
const OPEN: u32 = 50;
/// Ended remediations shown.
const ENDED: u32 = 25;
/// Targets of one rule whose limits, cooldown and breaker are looked at.
const TARGETS: usize = 100;

/// Everything that the page says of what was and is done.
pub(crate) struct Facts {
    /// By the wall clock.
    pub(super) now_ms: i64,
    pub(super) halts: Vec<Halt>,
    pub(super) loss: Option<Loss>,
    /// Oldest first.
    pub(super) open: Vec<Entry>,
    /// How many there are.
    pub(super) open_count: u64,
    /// Newest first.
    pub(super) ended: Vec<Entry>,
    /// In the order of the configuration's rules.
    pub(super) standings: Vec<Standing>,
    pub(super) budgets: Vec<Used>,
    pub(super) held: Vec<Held>,
}

/// One remediation.
pub(super) struct Entry {
    pub(super) record: Record,
    pub(super) steps: Vec<StepRecord>,
    /// When people were asked to approve of it.
    pub(super) asked_ms: Option<i64>,
}

/// How a rule is doing.
pub(super) struct Standing {
    pub(super) in_progress: u64,
    pub(super) awaiting: u64,
    pub(super) escalated: u64,
    pub(super) results: Vec<(Outcome, u64)>,
}

/// The windows of one scope.
pub(super) struct Used {
    pub(super) scope: String,
    pub(super) windows: Vec<(Limit, usize)>,
    /// When it admits a start again, where it does not now.
    pub(super) full_until_ms: Option<i64>,
}

/// A rule that does not try again on a target, or only once.
pub(super) struct Held {
    pub(super) rule: String,
    pub(super) target: String,
    /// As `kind name`.
    pub(super) named: String,
    pub(super) breaker: Breaker,
    pub(super) refusal: Option<(Refusal, i64)>,
}

impl Facts {
    /// Reads them.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub(crate) fn read(config: &Config, reader: &Reader, clock: &Clock) -> Result<Self, Error> {
        let wall = clock.now();
        let now = reader.on_timeline(&wall)?;
        let look = Look { config, reader, now, wall_ms: wall.wall_ms };
        let (open_count, _) = reader.queue()?;
        Ok(Self {
            now_ms: wall.wall_ms,
            halts: reader.halts(&look.now)?,
            loss: reader.loss()?,
            open: look.entries(reader.oldest_open(OPEN)?)?,
            open_count,
            ended: look.entries(reader.newest_ended(ENDED)?)?,
            standings: config.rules.iter().map(|rule| look.standing(rule)).collect::<Result<_, _>>()?,
            budgets: look.budgets()?,
            held: look.held()?,
        })
    }
}

struct Look<'a> {
    config: &'a Config,
    reader: &'a Reader,
    /// On the timeline.
    now: Moment,
    wall_ms: i64,
}

impl Look<'_> {
    fn entries(&self, records: Vec<Record>) -> Result<Vec<Entry>, Error> {
        let entry = |record: Record| {
            let steps = self.reader.steps(record.id)?;
            let asked_ms = match record.phase {
                Phase::Awaiting => {
                    let events = self.reader.events(record.id)?;
                    // The last time: what was shown before may have changed since.
                    events.into_iter().rev().find_map(|(at, what, _)| (what == "awaiting").then_some(at))
                }
                _ => None,
            };
            Ok(Entry { record, steps, asked_ms })
        };
        records.into_iter().map(entry).collect()
    }

    fn standing(&self, rule: &Rule) -> Result<Standing, Error> {
        let facts = self.reader.rule_facts(&rule.name)?;
        Ok(Standing {
            in_progress: facts.in_progress,
            awaiting: facts.awaiting,
            escalated: facts.escalated,
            results: self.reader.results(&rule.name)?,
        })
    }

    /// The whole host's windows, and those of rules and targets that hold a start.
    fn budgets(&self) -> Result<Vec<Used>, Error> {
        let limits = &self.config.limits;
        let mut budgets = Vec::new();
        for class in [Class::S1, Class::S2, Class::D1, Class::D2] {
            let name = format!("{} ({}), this host", class.words(), class.as_str());
            budgets.extend(self.used(name, &Scope::Class(class), limits.class(class))?);
        }
        budgets.extend(self.used("everything on this host".to_owned(), &Scope::Host, &limits.host)?);
        let mut names = Vec::new();
        for rule in &self.config.rules {
            let name = format!("rule {}", rule.name);
            budgets.extend(self.started(name, &Scope::Rule(rule.name.clone()), &rule.rule_limits)?);
            for (kind, target) in self.reader.targets(&rule.name)?.into_iter().take(TARGETS) {
                let named = format!("{kind} {target}");
                let scope = Scope::RuleTarget(rule.name.clone(), named.clone());
                budgets.extend(self.started(format!("{} on {named}", rule.name), &scope, &rule.limits)?);
                names.push(named);
            }
        }
        names.sort_unstable();
        names.dedup();
        for named in names {
            let scope = Scope::Target(named.clone());
            budgets.extend(self.started(format!("{named}, by any rule"), &scope, &limits.target)?);
        }
        Ok(budgets)
    }

    fn used(&self, name: String, scope: &Scope, limits: &[Limit]) -> Result<Option<Used>, Error> {
        if limits.is_empty() {
            return Ok(None);
        }
        let budget = self.reader.budget(scope, limits)?;
        let windows = budget.used(&self.now);
        let refusal = admission::limits(&[budget], &self.now).err();
        Ok(Some(Used { scope: name, windows, full_until_ms: refusal.map(|refusal| self.after(&refusal)) }))
    }

    /// The same, when any window holds a start.
    fn started(&self, name: String, scope: &Scope, limits: &[Limit]) -> Result<Option<Used>, Error> {
        let used = self.used(name, scope, limits)?;
        Ok(used.filter(|used| used.windows.iter().any(|(_, count)| *count > 0)))
    }

    /// Cooldowns and breakers.
    fn held(&self) -> Result<Vec<Held>, Error> {
        let mut held = Vec::new();
        for rule in &self.config.rules {
            for (kind, target) in self.reader.targets(&rule.name)?.into_iter().take(TARGETS) {
                let history = self.reader.history(&rule.name, &kind, &target)?;
                let breaker = rule.restraint.breaker(&history, &self.now);
                let refusal = rule.restraint.admits(&history, &self.now).err();
                if breaker != Breaker::Closed || refusal.is_some() {
                    held.push(Held {
                        rule: rule.name.clone(),
                        named: named(&kind, &target),
                        target,
                        breaker,
                        refusal: refusal.map(|refusal| {
                            let until = self.after(&refusal);
                            (refusal, until)
                        }),
                    });
                }
            }
        }
        Ok(held)
    }

    fn after(&self, refusal: &Refusal) -> i64 {
        let wait = i64::try_from(refusal.wait.as_millis()).unwrap_or(i64::MAX);
        self.wall_ms.saturating_add(wait)
    }
}
