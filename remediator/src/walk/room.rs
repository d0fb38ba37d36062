//! Whether there is room for a step: the rule's hours and the host, what the fleet admits, and the journal's limits, all
//! of them or none.

use std::time::Duration;

use super::Walker;
use crate::{
    actions::Step,
    admission::{Reason, Refusal},
    assess::{Sight, record},
    fleet::member::Permit,
    journal::{Admission, Error, Letter, Request, StepState},
    notify::{Notice, Occasion},
    policy::Class,
    rules::Rule,
};

/// A step that may be begun: it is counted.
pub(super) struct Room {
    /// Its number in the journal.
    pub(super) step: i64,
    /// What the fleet gave; none where there is no fleet.
    permit: Option<Permit>,
}

impl Walker {
    /// Counts a start everywhere, or says why not; none is a walk that only observes.
    pub(super) async fn reserve(
        &self,
        id: i64,
        rule: &Rule,
        step: Option<(usize, &Step)>,
        sight: &Sight,
        first: bool,
    ) -> Result<Result<Room, Refusal>, Error> {
        let class = step.map_or(Class::S0, |(_, step)| step.0.class());
        let room = match self.gates(rule, class).await {
            Err(refusal) => Err(refusal),
            Ok(()) => self.find_room(id, rule, step, sight, (class, first)).await?,
        };
        match &room {
            Ok(_) => self.metrics.decision(&rule.name, "admitted", "none"),
            Err(refusal) => self.metrics.decision(&rule.name, "refused", refusal.reason.as_str()),
        }
        Ok(room)
    }

    /// Asks the fleet only for what this host itself admits: what nobody may use is not taken from the others.
    async fn find_room(
        &self,
        id: i64,
        rule: &Rule,
        step: Option<(usize, &Step)>,
        sight: &Sight,
        (class, first): (Class, bool),
    ) -> Result<Result<Room, Refusal>, Error> {
        let question = self.assessor.question(id, rule, sight, class, first);
        let mut permit = None;
        let fleet = self.fleet.as_ref().filter(|_| class.acts());
        if let Some(fleet) = fleet
            && self.journal.would_admit(question.clone(), self.clock.now()).await?.is_ok()
        {
            match fleet.admit(id, rule, &sight.target, class).await {
                Ok(given) => permit = Some(given),
                Err(refusal) => return Ok(Err(refusal)),
            }
        }
        let record = |(position, step)| record(position, step, &sight.target, StepState::Reserved);
        let admission = self
            .journal
            .reserve(Request {
                on_storm: self.storm_letters(id, rule, sight),
                question,
                step: step.map(record),
                now: self.clock.now(),
            })
            .await?;
        match (admission, permit) {
            (Admission::Admitted(step), None) if fleet.is_some() => {
                // There was no room at the first look, and there is now.
                self.journal.release(id, step).await?;
                let detail = "room came while it was looked for".to_owned();
                let wait = Duration::from_secs(1);
                Ok(Err(Refusal { reason: Reason::Busy, scope: "host", detail, wait }))
            }
            (Admission::Admitted(step), permit) => Ok(Ok(Room { step, permit })),
            (Admission::Refused(refusal), permit) => {
                if let (Some(fleet), Some(permit)) = (fleet, permit) {
                    fleet.take_back(&permit).await;
                }
                Ok(Err(refusal))
            }
        }
    }

    /// Right before acting: whether what the fleet gave still holds.
    pub(super) async fn confirm(&self, room: &Room) -> Result<(), Refusal> {
        match (&self.fleet, &room.permit) {
            (Some(fleet), Some(permit)) => fleet.confirm(permit).await,
            _ => Ok(()),
        }
    }

    /// Nothing was done in it after all.
    pub(super) async fn give_back(&self, id: i64, room: &Room) -> Result<(), Error> {
        self.journal.release(id, room.step).await?;
        if let (Some(fleet), Some(permit)) = (&self.fleet, &room.permit) {
            fleet.take_back(permit).await;
        }
        Ok(())
    }

    /// Whether a first step of this class would be refused now by this host. Counts nothing.
    pub(super) async fn refusal(
        &self,
        id: i64,
        rule: &Rule,
        sight: &Sight,
        class: Class,
    ) -> Result<Option<Refusal>, Error> {
        let now = self.clock.now();
        if let Err(refusal) = self.gates(rule, class).await {
            return Ok(Some(refusal));
        }
        let question = self.assessor.question(id, rule, sight, class, true);
        Ok(self.journal.would_admit(question, now).await?.err())
    }

    /// Why none of the steps from `position` on that act would be admitted now, by the first of them.
    pub(super) async fn nothing_may_begin(
        &self,
        id: i64,
        rule: &Rule,
        sight: &Sight,
        position: usize,
    ) -> Result<Option<Refusal>, Error> {
        let classes =
            rule.steps.iter().skip(position).map(|step| step.0.class()).filter(|class| class.acts());
        let mut asked = Vec::new();
        let mut first = None;
        for class in classes {
            if asked.contains(&class) {
                continue;
            }
            asked.push(class);
            match self.refusal(id, rule, sight, class).await? {
                None => return Ok(None),
                Some(refusal) => first = first.or(Some(refusal)),
            }
        }
        Ok(first)
    }

    /// What is told when this is the target that makes it a storm.
    fn storm_letters(&self, id: i64, rule: &Rule, sight: &Sight) -> Vec<Letter> {
        let storm = &self.assessor.config.storm;
        let seconds = storm.within.as_secs();
        let summary = format!(
            "more than {} targets needed a restart or the like within {seconds} s: no service is touched until it has been calm for {} s",
            storm.targets,
            storm.hold.as_secs()
        );
        self.assessor.notifier.letters(&Notice {
            id,
            rule: rule.name.clone(),
            kind: sight.target.kind().as_str().to_owned(),
            before: Some(sight.seen.summary()),
            ..Notice::of_host(sight.target.name(), Occasion::Storm, summary)
        })
    }
}
