//! How a delivery's body is read: one alert after the other, so that none of them costs more than itself. Whatever is
//! written in it, it takes no more memory than its own size and one alert's. Not here: what an alert means.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor},
};

use super::{ALERTS_MAX, Alert, DeliveryError, LABELS_MAX, Labelled, PAIRS_MAX};

/// What a delivery says besides its alerts.
#[derive(Debug, Default)]
pub(super) struct Envelope {
    /// Of the format.
    pub(super) version: String,
    /// The name of Alertmanager's receiver by which it came.
    pub(super) receiver: Option<String>,
}

/// Reads a body, and hands over each alert as it comes.
pub(super) fn read<'a>(body: &'a [u8], take: impl FnMut(Alert<'a>)) -> Result<Envelope, DeliveryError> {
    let mut whole = 0;
    let mut reading = false;
    let mut json = serde_json::Deserializer::from_slice(body);
    let alerts = Alerts { take, whole: &mut whole, reading: &mut reading };
    let read = Body(alerts).deserialize(&mut json).and_then(|envelope| json.end().map(|()| envelope));
    read.map_err(|error| match (whole, reading) {
        (ALERTS_MAX.., true) => DeliveryError::TooMany,
        (number, true) => DeliveryError::Alert(number + 1, error),
        _ => DeliveryError::Json(error),
    })
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "lowercase")]
enum Field {
    Version,
    Receiver,
    Alerts,
    #[serde(other)]
    Other,
}

struct Body<'a, F>(Alerts<'a, F>);

impl<'de, F: FnMut(Alert<'de>)> DeserializeSeed<'de> for Body<'_, F> {
    type Value = Envelope;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Envelope, D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de, F: FnMut(Alert<'de>)> Visitor<'de> for Body<'_, F> {
    type Value = Envelope;

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("a delivery")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Envelope, A::Error> {
        let mut envelope = Envelope::default();
        let mut alerts = Some(self.0);
        while let Some(field) = map.next_key()? {
            match field {
                Field::Version => envelope.version = map.next_value()?,
                Field::Receiver => envelope.receiver = map.next_value()?,
                Field::Alerts => {
                    let alerts = alerts.take().ok_or_else(|| A::Error::duplicate_field("alerts"))?;
                    map.next_value_seed(alerts)?;
                }
                Field::Other => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        if alerts.is_some() { Err(A::Error::missing_field("alerts")) } else { Ok(envelope) }
    }
}

struct Alerts<'a, F> {
    take: F,
    /// How many were read whole.
    whole: &'a mut usize,
    /// Whether another one has begun.
    reading: &'a mut bool,
}

impl<'de, F: FnMut(Alert<'de>)> DeserializeSeed<'de> for Alerts<'_, F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_seq(self)
    }
}

impl<'de, F: FnMut(Alert<'de>)> Visitor<'de> for Alerts<'_, F> {
    type Value = ();

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("a list of alerts")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut alerts: A) -> Result<(), A::Error> {
        loop {
            let next = alerts.next_element_seed(Next(self.reading))?;
            let Some(alert) = next else { return Ok(()) };
            if *self.whole >= ALERTS_MAX {
                return Err(A::Error::custom("too many alerts"));
            }
            *self.reading = false;
            *self.whole += 1;
            (self.take)(alert);
        }
    }
}

/// One alert, which is being read from the moment that there is one.
struct Next<'a>(&'a mut bool);

impl<'de> DeserializeSeed<'de> for Next<'_> {
    type Value = Alert<'de>;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Alert<'de>, D::Error> {
        *self.0 = true;
        Alert::deserialize(from)
    }
}

/// Labels, as far as they are no more than any that Prometheus sends: none at all where there are more.
pub(super) fn labels<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Labelled<'de>>, D::Error> {
    from.deserialize_map(LabelsUpTo { bytes: LABELS_MAX, pairs: PAIRS_MAX })
}

/// A string of the body, copied only where it is written there otherwise than it is meant (RFC 8259, section 7).
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

struct LabelsUpTo {
    bytes: usize,
    pairs: usize,
}

impl<'de> Visitor<'de> for LabelsUpTo {
    type Value = Option<Labelled<'de>>;

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("labels")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut labels = Labelled::new();
        let mut left = Some(self.bytes);
        while let Some((Text(name), Text(value))) = map.next_entry()? {
            left = left.and_then(|left| left.checked_sub(name.len() + value.len()));
            if left.is_none() || labels.len() >= self.pairs {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                return Ok(None);
            }
            labels.insert(name, value);
        }
        Ok(Some(labels))
    }
}
