//! The way of a drill: at each moment what was last seen of the alert and of its remediation, and what that means.

use std::{collections::BTreeMap, io::Write, time::Duration};

use jiff::{SignedDuration, Timestamp};
use tokio::time::{Instant, sleep};

use super::{Drill, Stage, Stop, UNIT, plan, says::Says, stuck};
use crate::{
    api::{
        Fault,
        alertmanager::{self, Standing},
        prometheus,
    },
    clock::rfc3339,
    journal::{Error, Phase, Reader, Record, StepRecord, StepState},
    outcome::Outcome,
    webhook,
};

/// Remediations since the drill began that are looked at.
const RECORDS: u32 = 20;
/// Between two looks into the state.
const PACE: Duration = Duration::from_millis(250);
/// Between two questions to Prometheus or Alertmanager.
const ASK: Duration = Duration::from_secs(1);
/// Between two looks at what may be in the way.
const CHECK: Duration = Duration::from_secs(5);
/// An alert that nobody ends, because this was killed, ends by itself so much later than the drill.
const LEFT: SignedDuration = SignedDuration::from_secs(60);

/// What is known of the alert.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Alert {
    /// Nobody has said anything of it.
    Unseen,
    /// It is there, and does not fire yet.
    Pending,
    /// It fires.
    Firing,
    /// It fires, and is held back: by what.
    Muted(String),
}

/// What is on record of the drill.
struct Found {
    /// The remediation that cured the unit, or the newest.
    record: Record,
    steps: Vec<StepRecord>,
    /// Whether the remediator has heard since the drill began that the alert is over.
    resolved: bool,
}

/// Follows the drill to its end, or to where it stops.
///
/// # Errors
/// When nobody hears what is said.
pub(super) async fn follow<W: Write>(
    drill: &mut Drill<'_>,
    says: &mut Says<'_, W>,
) -> anyhow::Result<Option<Stop>> {
    // What an earlier one left would be taken for this one's.
    while let Some(place) = drill.earlier_alert().await {
        says.waiting(
            drill.began,
            Stage::Broken,
            &format!("an earlier alert about the unit to end in {place}"),
        );
        sleep(ASK).await;
    }
    // Only what comes from now on is this drill's.
    drill.began_ms = Timestamp::now().as_millisecond();
    if let Err(stop) = drill.unit.fail().await {
        return Ok(Some(stop));
    }
    drill.reached(Stage::Broken, &format!("{UNIT} has failed, as it was told to"), says)?;
    if let Err(stop) = drill.raise().await {
        return Ok(Some(stop));
    }
    let mut alert = Alert::Unseen;
    let mut asked = None;
    let mut checked = Instant::now();
    let mut suspected = None;
    while let Some(awaited) = drill.awaited {
        let found = match drill.remediation() {
            Ok(found) => found,
            Err(stop) => return Ok(Some(stop)),
        };
        let has_come = awaited == Stage::Firing && found.is_some();
        if has_come || asked.is_none_or(|asked: Instant| asked.elapsed() >= ASK) {
            asked = Some(Instant::now());
            // An answer that does not come is looked into by the checks.
            alert = drill.ask().await.unwrap_or(alert);
        }
        if let Err(stop) = drill.advance(&alert, found.as_ref(), says).await? {
            return Ok(Some(stop));
        }
        if drill.awaited != Some(awaited) {
            suspected = None;
            continue;
        }
        if checked.elapsed() >= CHECK {
            checked = Instant::now();
            let found = stuck::in_the_way(drill, awaited).await;
            // Seen twice in a row: what is only being restarted is not in the way.
            if found.is_some() && found == suspected {
                return Ok(found);
            }
            suspected = found;
        }
        says.waiting(drill.began, awaited, &waits_for(awaited, &alert, found.as_ref()));
        sleep(PACE).await;
    }
    Ok(None)
}

impl Drill<'_> {
    /// The awaited was seen.
    fn reached<W: Write>(
        &mut self,
        stage: Stage,
        words: &str,
        says: &mut Says<'_, W>,
    ) -> std::io::Result<()> {
        self.awaited = Stage::ALL.into_iter().find(|next| *next > stage);
        says.seen(self.began, stage, words)
    }

    /// Raises the alert in Alertmanager, unless Prometheus is to.
    async fn raise(&mut self) -> Result<(), Stop> {
        let Some(api) = self.config.alertmanager.as_ref().filter(|_| !self.plan.end_to_end) else {
            return Ok(());
        };
        // It may be there although no answer came.
        self.raised = true;
        let deadline = Timestamp::from_millisecond(self.deadline_ms).unwrap_or_else(|_| Timestamp::now());
        let ends = deadline.checked_add(LEFT).unwrap_or(deadline);
        alertmanager::raise(api, &self.plan.labels, &plan::annotations(), ends).await.map_err(|fault| {
            Stop::found(
                format!("Alertmanager ({}) did not take the alert: {fault}", api.url()),
                "see that it runs, and what its log says",
            )
        })
    }

    /// Where there is an alert about the unit before it is broken.
    pub(super) async fn earlier_alert(&self) -> Option<&'static str> {
        if self.in_prometheus().await.is_ok_and(|states| !states.is_empty()) {
            return Some("Prometheus");
        }
        self.in_alertmanager().await.is_ok_and(|alerts| !alerts.is_empty()).then_some("Alertmanager")
    }

    /// How the alert is, where it is raised.
    async fn ask(&self) -> Result<Alert, Fault> {
        if self.plan.end_to_end {
            let states = self.in_prometheus().await?;
            return Ok(match states.iter().any(|state| state == "firing") {
                true => Alert::Firing,
                false if states.is_empty() => Alert::Unseen,
                false => Alert::Pending,
            });
        }
        let raised =
            self.in_alertmanager().await?.into_iter().find(|(labels, _)| *labels == self.plan.labels);
        Ok(match raised {
            Some((_, Standing::Active)) => Alert::Firing,
            Some((_, Standing::Muted(why))) => Alert::Muted(why),
            _ => Alert::Unseen,
        })
    }

    /// The states of the alerts about the unit in Prometheus; none where it is not configured.
    async fn in_prometheus(&self) -> Result<Vec<String>, Fault> {
        let Some(prometheus) = &self.config.prometheus else { return Ok(Vec::new()) };
        let local = prometheus.api.is_local();
        let alerts = prometheus::alerts(&prometheus.api).await?;
        let ours = alerts.into_iter().filter(|alert| self.is_ours(&alert.labels, local));
        Ok(ours.map(|alert| alert.state).collect())
    }

    /// The alerts about the unit in Alertmanager; none where it is not configured.
    async fn in_alertmanager(&self) -> Result<Vec<(BTreeMap<String, String>, Standing)>, Fault> {
        let Some(api) = &self.config.alertmanager else { return Ok(Vec::new()) };
        let mut alerts = alertmanager::labelled(api, "name", UNIT).await?;
        alerts.retain(|(labels, _)| self.is_ours(labels, api.is_local()));
        Ok(alerts)
    }

    /// Whether an alert leads to the drill's unit.
    fn is_ours(&self, labels: &BTreeMap<String, String>, local: bool) -> bool {
        webhook::selected(self.config, labels, local).is_some_and(|(_, target)| target.name() == UNIT)
    }

    /// What is on record since the drill began. An alert that goes on for a while after the cure is delivered again, and
    /// what then comes of it is no news.
    fn remediation(&self) -> Result<Option<Found>, Stop> {
        let read = || {
            // Where it lies now: it may move while the drill goes on.
            let Some(reader) = Reader::open_if_any(&self.config.places())? else { return Ok(None) };
            let mut records = reader.recent(None, Some(UNIT), RECORDS)?;
            records.retain(|record| record.last_seen_wall_ms >= self.began_ms);
            let resolved = records.iter().any(|record| record.resolved_wall_ms >= Some(self.began_ms));
            let cure =
                records.iter().position(|record| record.outcome == Some(Outcome::Succeeded)).unwrap_or(0);
            if records.is_empty() {
                return Ok(None);
            }
            let record = records.swap_remove(cure);
            let steps = reader.steps(record.id)?;
            Ok::<_, Error>(Some(Found { record, steps, resolved }))
        };
        read().map_err(|error| {
            Stop::untold(
                format!("the state in {} cannot be read: {error}", self.config.places().in_use().display()),
                "run the drill as root, with the configuration that the remediator runs with",
            )
        })
    }

    /// Says what is new, and ends the alert once the unit is well.
    async fn advance<W: Write>(
        &mut self,
        alert: &Alert,
        found: Option<&Found>,
        says: &mut Says<'_, W>,
    ) -> anyhow::Result<Result<(), Stop>> {
        if self.awaited == Some(Stage::Firing) {
            let place = if self.plan.end_to_end { "Prometheus" } else { "Alertmanager" };
            match alert {
                Alert::Muted(why) => {
                    let look_at =
                        "the silences and inhibitions of Alertmanager: while they hold, nothing is delivered";
                    return Ok(Err(Stop::found(format!("the alert is {why}"), look_at)));
                }
                Alert::Firing => {
                    self.reached(Stage::Firing, &format!("{} fires in {place}", super::ALERT), says)?;
                }
                // It has come without having been seen.
                _ if found.is_some() => {
                    self.reached(Stage::Firing, "it must have fired: it was delivered", says)?;
                }
                _ => {}
            }
        }
        let Some(Found { record, steps, resolved }) = found else { return Ok(Ok(())) };
        if self.awaited == Some(Stage::Delivered) {
            self.reached(Stage::Delivered, &format!("#{} of rule {}", record.id, record.rule), says)?;
        }
        if self.awaited == Some(Stage::Repaired)
            && let Some(step) = steps.iter().find(|step| step.class.acts() && step.state == StepState::Done)
        {
            let detail = step.detail.as_deref().filter(|detail| !detail.is_empty()).unwrap_or("done");
            self.reached(Stage::Repaired, &format!("{}: {detail}", step.action), says)?;
        }
        if self.awaited == Some(Stage::Verified) && record.outcome == Some(Outcome::Succeeded) {
            let after = record.after.as_ref().map_or_else(|| "well".to_owned(), |seen| seen.summary());
            self.reached(Stage::Verified, &after, says)?;
            if self.raised
                && let Some(api) = &self.config.alertmanager
            {
                // What does not end now is ended again by whoever cleans up, and ends by itself.
                let _ =
                    alertmanager::raise(api, &self.plan.labels, &plan::annotations(), Timestamp::now()).await;
            }
        }
        if self.awaited == Some(Stage::Resolved) && *resolved {
            self.reached(Stage::Resolved, "the alert is over, and the remediator has heard so", says)?;
        }
        Ok(stuck::by_its_record(self, record))
    }
}

/// What those who watch are told.
fn waits_for(awaited: Stage, alert: &Alert, found: Option<&Found>) -> String {
    let record = found.map(|found| &found.record);
    match awaited {
        Stage::Broken => "systemd".to_owned(),
        Stage::Firing if *alert == Alert::Pending => "the alert is pending".to_owned(),
        Stage::Firing => "the alert".to_owned(),
        Stage::Delivered => "Alertmanager to deliver it".to_owned(),
        Stage::Repaired | Stage::Verified => record.map_or_else(String::new, |record| match record.phase {
            Phase::Awaiting => format!("a person: evenkeel-remediator approve {}", record.id),
            phase => match record.next_allowed_wall_ms {
                Some(next) => {
                    format!("until {}: {}", rfc3339(next), record.detail.as_deref().unwrap_or_default())
                }
                None => format!("#{} is {}", record.id, phase.as_str()),
            },
        }),
        Stage::Resolved => "the alert to end, and Alertmanager to say so".to_owned(),
    }
}
