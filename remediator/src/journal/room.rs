//! How many remediations may be open: so many in all, and beyond that a small share of each rule. So however many needs
//! one rule is told of, there is always room for some of another one. And so many as the database can hold to their
//! ends.

use std::collections::HashMap;

use rusqlite::{Connection, params};

use super::{Incoming, Labels, bound};

/// This part of all may be open of a rule, however many others are.
const SHARE: usize = 16;
/// What one takes in the database until its end, in bytes, without its labels: what was seen, its steps, its messages.
const TO_ITS_END: u64 = 4 << 10;

/// What is open, by rule.
pub(super) struct Room {
    most: usize,
    open: usize,
    /// In the database.
    bytes: u64,
    of_rules: HashMap<String, usize>,
}

impl Room {
    /// What is open now, of `most`.
    pub(super) fn read(db: &Connection, most: usize) -> rusqlite::Result<Self> {
        let mut counts =
            db.prepare_cached("SELECT rule, count(*) FROM remediation WHERE outcome IS NULL GROUP BY rule")?;
        let of_rules: HashMap<String, usize> =
            counts.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<rusqlite::Result<_>>()?;
        let bytes = bound::left_for_new(db)?;
        Ok(Self { most, open: of_rules.values().sum(), bytes, of_rules })
    }

    /// Whether this rule may have another one open.
    pub(super) fn is_left_for(&self, rule: &str) -> bool {
        let own = self.of_rules.get(rule).copied().unwrap_or(0);
        self.bytes > 0
            && (self.open < self.most || (own < self.most / SHARE && self.open < self.most.saturating_mul(2)))
    }

    /// One was opened, with this on record.
    pub(super) fn take(&mut self, rule: &str, labels: &Labels) {
        self.open += 1;
        self.bytes = self.bytes.saturating_sub(labels.json().len() as u64 + TO_ITS_END);
        match self.of_rules.get_mut(rule) {
            Some(open) => *open += 1,
            None => drop(self.of_rules.insert(rule.to_owned(), 1)),
        }
    }

    /// Whether a delivery opens something, or has nothing to open. One that begins without any room is refused whole;
    /// one for which it does not suffice is not, or it would be sent again for ever.
    pub(super) fn admits(&self, db: &Connection, alerts: &[Incoming]) -> rusqlite::Result<bool> {
        let mut firing = alerts.iter().filter(|alert| alert.firing);
        if firing.all(|alert| self.is_left_for(&alert.rule)) {
            return Ok(true);
        }
        let mut is_open = db.prepare_cached(
            "SELECT 1 FROM remediation WHERE rule = ?1 AND kind = ?2 AND target = ?3 AND outcome IS NULL",
        )?;
        let mut refused = false;
        for alert in alerts.iter().filter(|alert| alert.firing) {
            let left = self.is_left_for(&alert.rule);
            if (left || !refused)
                && !is_open.exists(params![alert.rule, alert.target.kind().as_str(), alert.target.name()])?
            {
                if left {
                    return Ok(true);
                }
                refused = true;
            }
        }
        Ok(!refused)
    }
}
