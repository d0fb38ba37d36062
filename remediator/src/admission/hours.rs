//! The hours in which a rule may act: `{days: [mon-fri], from: "07:00", to: "22:00", tz: Europe/Berlin}`. Pure.

use std::{fmt, time::Duration};

use jiff::{
    Timestamp, ToSpan,
    civil::{Date, Time, Weekday},
    tz::TimeZone,
};

use super::{Reason, Refusal};

/// Days and hours of a time zone. Where `to` is not after `from`, the hours span midnight, and the day is the one on
/// which they begin.
#[derive(Debug, Clone)]
pub struct Hours {
    days: Vec<Weekday>,
    from: Time,
    to: Time,
    tz: TimeZone,
    text: String,
}

impl Hours {
    /// Reads what the configuration says; empty `days` are all.
    ///
    /// # Errors
    /// With the key that is wrong and its cure.
    pub fn read(days: &[String], from: &str, to: &str, tz: &str) -> Result<Self, String> {
        let mut known = Vec::new();
        for text in days {
            known.extend(weekdays(text)?);
        }
        // UTC needs no data of the host.
        let zone = if tz == "UTC" { Ok(TimeZone::UTC) } else { TimeZone::get(tz) };
        let zone = zone.map_err(|_| {
            format!("`tz`: there is no time zone `{tz}` on this host: write one as Europe/Berlin (Debian has them in the package tzdata), or UTC")
        })?;
        let text = format!(
            "{}{from} to {to} {tz}",
            if days.is_empty() { String::new() } else { format!("{} ", days.join(", ")) }
        );
        Ok(Self { days: known, from: clock_time("from", from)?, to: clock_time("to", to)?, tz: zone, text })
    }

    /// Whether a start at this wall-clock time is within the hours.
    ///
    /// # Errors
    /// With the next time at which they begin.
    pub fn admit(&self, wall_ms: i64) -> Result<(), Refusal> {
        match self.wait(wall_ms) {
            None => Ok(()),
            Some(wait) => Err(Refusal {
                reason: Reason::Hours,
                scope: "rule",
                detail: format!("it acts only {self}"),
                wait,
            }),
        }
    }

    /// How long until the hours begin; `None` within them.
    fn wait(&self, wall_ms: i64) -> Option<Duration> {
        let now = Timestamp::from_millisecond(wall_ms).unwrap_or(Timestamp::UNIX_EPOCH);
        let today = now.to_zoned(self.tz.clone()).date();
        let mut next = None;
        // Yesterday's may still last; a week further every weekday has come.
        for offset in -1..=8 {
            let Ok(date) = today.checked_add(offset.days()) else { continue };
            let Some((begin, end)) = self.on(date) else { continue };
            if (begin..end).contains(&now) {
                return None;
            }
            if begin > now && next.is_none() {
                next = Some(begin);
            }
        }
        let wait = next.map_or(86_400_000, |begin| begin.as_millisecond() - now.as_millisecond());
        Some(Duration::from_millis(u64::try_from(wait).unwrap_or(0)))
    }

    /// Begin and end of the hours that begin on this day. A time that a change of the clocks skips is the one just
    /// after it (RFC 5545), as for every calendar.
    fn on(&self, date: Date) -> Option<(Timestamp, Timestamp)> {
        if !self.days.is_empty() && !self.days.contains(&date.weekday()) {
            return None;
        }
        let at =
            |date: Date, time: Time| Some(date.to_datetime(time).to_zoned(self.tz.clone()).ok()?.timestamp());
        let last = if self.to <= self.from { date.tomorrow().ok()? } else { date };
        Some((at(date, self.from)?, at(last, self.to)?))
    }
}

impl fmt::Display for Hours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl PartialEq for Hours {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

fn clock_time(key: &str, text: &str) -> Result<Time, String> {
    let parsed = text.split_once(':').filter(|(hour, minute)| hour.len() == 2 && minute.len() == 2);
    let parsed =
        parsed.and_then(|(hour, minute)| Time::new(hour.parse().ok()?, minute.parse().ok()?, 0, 0).ok());
    parsed.ok_or_else(|| format!("`{key}`: `{text}` is no time of day: write it as \"07:00\""))
}

/// `mon` or `mon-fri`; a range may go over the end of the week.
fn weekdays(text: &str) -> Result<Vec<Weekday>, String> {
    let wrong = || {
        format!("`days`: `{text}` is no day: write mon, tue, wed, thu, fri, sat, sun, or a range as mon-fri")
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (weekday(first).ok_or_else(wrong)?, weekday(last).ok_or_else(wrong)?);
    let mut days = vec![first];
    while let Some(day) = days.last().copied().filter(|day| *day != last) {
        days.push(day.next());
    }
    Ok(days)
}

fn weekday(text: &str) -> Option<Weekday> {
    Some(match text {
        "mon" => Weekday::Monday,
        "tue" => Weekday::Tuesday,
        "wed" => Weekday::Wednesday,
        "thu" => Weekday::Thursday,
        "fri" => Weekday::Friday,
        "sat" => Weekday::Saturday,
        "sun" => Weekday::Sunday,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hours(days: &[&str], from: &str, to: &str, tz: &str) -> Result<Hours, String> {
        let days: Vec<String> = days.iter().map(|day| (*day).to_owned()).collect();
        Hours::read(&days, from, to, tz)
    }

    /// Hours to wait at a time; 0 within.
    fn wait(hours: &Hours, at: &str) -> f64 {
        let at: Timestamp = at.parse().unwrap();
        hours.wait(at.as_millisecond()).map_or(0.0, |wait| wait.as_secs_f64() / 3600.0)
    }

    #[test]
    fn working_hours_begin_and_end_to_the_second_and_leave_the_weekend_out() {
        let work = hours(&["mon-fri"], "07:00", "22:00", "UTC").unwrap();
        // 2026-11-20 is a Friday.
        assert_eq!(wait(&work, "2026-11-20T06:59:59Z"), 1.0 / 3600.0);
        assert_eq!(wait(&work, "2026-11-20T07:00:00Z"), 0.0);
        assert_eq!(wait(&work, "2026-11-20T21:59:59Z"), 0.0);
        assert_eq!(wait(&work, "2026-11-20T22:00:00Z"), 57.0, "until Monday");
        let refusal =
            work.admit("2026-11-21T07:00:00Z".parse::<Timestamp>().unwrap().as_millisecond()).unwrap_err();
        assert_eq!((refusal.reason, refusal.scope), (Reason::Hours, "rule"));
        assert_eq!(refusal.detail, "it acts only mon-fri 07:00 to 22:00 UTC");
    }

    #[test]
    fn a_night_belongs_to_the_day_on_which_it_begins() {
        let night = hours(&["sun"], "22:00", "04:00", "UTC").unwrap();
        // 2026-11-22 is a Sunday.
        assert_eq!(wait(&night, "2026-11-22T03:00:00Z"), 19.0);
        assert_eq!(wait(&night, "2026-11-22T23:00:00Z"), 0.0);
        assert_eq!(wait(&night, "2026-11-23T03:59:00Z"), 0.0);
        assert_eq!(wait(&night, "2026-11-23T04:00:00Z"), 6.0 * 24.0 + 18.0);
        // Equal times are the whole day.
        let always = hours(&[], "00:00", "00:00", "UTC").unwrap();
        assert_eq!(wait(&always, "2026-11-23T00:00:00Z"), 0.0);
    }

    #[test]
    fn hours_are_those_of_the_zone_also_when_its_clocks_change() {
        let Ok(berlin) = hours(&[], "07:00", "22:00", "Europe/Berlin") else {
            // A host without tzdata has no zones; then the text says which package brings them.
            assert!(hours(&[], "07:00", "22:00", "Europe/Berlin").unwrap_err().contains("tzdata"));
            return;
        };
        assert_eq!(wait(&berlin, "2026-07-01T05:00:00Z"), 0.0, "summer: two hours ahead");
        assert_eq!(wait(&berlin, "2026-12-01T05:00:00Z"), 1.0, "winter: one hour ahead");
        // 02:30 does not exist on the last Sunday of March.
        let early = hours(&[], "02:30", "03:45", "Europe/Berlin").unwrap();
        assert_eq!(wait(&early, "2026-03-29T01:29:00Z"), 1.0 / 60.0);
        assert_eq!(wait(&early, "2026-03-29T01:31:00Z"), 0.0);
    }

    #[test]
    fn what_cannot_be_read_is_said_with_its_cure() {
        for (days, from, to, tz, expected) in [
            (vec!["monday"], "07:00", "22:00", "UTC", "`days`: `monday` is no day: write mon, tue"),
            (vec![], "7", "22:00", "UTC", "`from`: `7` is no time of day: write it as \"07:00\""),
            (vec![], "07:00", "24:00", "UTC", "`to`: `24:00` is no time of day"),
            (vec![], "07:00", "22:00", "Mars/Base", "`tz`: there is no time zone `Mars/Base` on this host"),
        ] {
            let error = hours(&days, from, to, tz).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
        let weekend = hours(&["sat-mon"], "00:00", "12:00", "UTC").unwrap();
        assert_eq!(weekend.days, [Weekday::Saturday, Weekday::Sunday, Weekday::Monday]);
    }
}
