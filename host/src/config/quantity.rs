//! Values with units, as people write them: `1h30m`, `85%`, `13.5GB`.

use std::{fmt, marker::PhantomData, ops::Deref, str::FromStr, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A length of time in Prometheus' syntax: `30s`, `15m`, `1h30m`, `7d`, `2w`, `1y`, `100ms`, `0`.
///
/// As there: units from the largest to the smallest, each once; a day has 24 hours, a year 365 days.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, JsonSchema)]
#[schemars(
    with = "String",
    extend(
        "type" = ["string", "integer"],
        "minLength" = 1,
        "pattern" = "^(0|([0-9]+y)?([0-9]+w)?([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?([0-9]+ms)?)$",
        "minimum" = 0,
        "maximum" = 0,
        "examples" = ["30s", "15m", "1h30m", "7d"]
    )
)]
pub struct PromDuration(Duration);

/// Milliseconds of each unit, from the largest.
const TIME_UNITS: [(&str, u64); 7] = [
    ("y", 365 * 86_400_000),
    ("w", 7 * 86_400_000),
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1000),
    ("ms", 1),
];

impl PromDuration {
    /// From the standard type; parts below a millisecond are kept, but not shown.
    pub const fn new(duration: Duration) -> Self {
        Self(duration)
    }

    /// The standard type.
    pub const fn get(self) -> Duration {
        self.0
    }
}

impl Deref for PromDuration {
    type Target = Duration;

    fn deref(&self) -> &Duration {
        &self.0
    }
}

impl FromStr for PromDuration {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let refuse = || QuantityError::new(text, "a duration", "write 30s, 15m, 1h30m, 7d or 100ms");
        if text == "0" {
            return Ok(Self::default());
        }
        let mut rest = text;
        let mut units = TIME_UNITS.iter();
        let mut total = 0u64;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(refuse)?;
            let (number, tail) = rest.split_at(digits);
            let letters = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
            let (unit, tail) = tail.split_at(letters);
            let (_, millis) = units.find(|(name, _)| *name == unit).ok_or_else(refuse)?;
            let part = number.parse::<u64>().ok().and_then(|n| n.checked_mul(*millis));
            total = part.and_then(|part| total.checked_add(part)).ok_or_else(refuse)?;
            rest = tail;
        }
        if text.is_empty() { Err(refuse()) } else { Ok(Self(Duration::from_millis(total))) }
    }
}

impl fmt::Display for PromDuration {
    /// As Prometheus writes it: years, weeks and days only where they come out even.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        if rest == 0 {
            return f.write_str("0s");
        }
        for (unit, millis) in TIME_UNITS {
            let must_be_even = matches!(unit, "y" | "w" | "d");
            if rest >= millis && (!must_be_even || rest.is_multiple_of(millis)) {
                write!(f, "{}{unit}", rest / millis)?;
                rest %= millis;
            }
        }
        Ok(())
    }
}

impl Serialize for PromDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A part of a whole, written as a percentage: `85%` is 0.85.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, JsonSchema)]
#[schemars(
    with = "String",
    extend("pattern" = r"^(100(\.0+)?|[0-9]{1,2}(\.[0-9]+)?)\s*%$", "examples" = ["85%", "99.5%"])
)]
pub struct Ratio(f64);

impl Ratio {
    /// From 0 to 1.
    pub const fn get(self) -> f64 {
        self.0
    }
}

impl FromStr for Ratio {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        text.strip_suffix('%')
            .and_then(|number| decimal(number.trim_end()))
            .map(|(units, scale)| units as f64 / scale as f64 / 100.0)
            .filter(|ratio| *ratio <= 1.0)
            .map(Self)
            .ok_or_else(|| QuantityError::new(text, "a percentage", "write 85%, at most 100%"))
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Rounded, because 0.57 × 100 is 56.99999999999999 in binary.
        write!(f, "{}%", (self.0 * 1e8).round() / 1e6)
    }
}

/// An amount of memory or disk: `1GB` is 10⁹ bytes, `500MiB` is 500 × 2²⁰, a plain number is bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, JsonSchema)]
#[schemars(
    with = "String",
    extend(
        "type" = ["string", "integer"],
        "pattern" = r"^([0-9]+|[0-9]+(\.[0-9]+)?\s*(PiB|PB|TiB|TB|GiB|GB|MiB|MB|KiB|kiB|kB|KB|B))$",
        "minimum" = 0,
        "examples" = ["1GB", "1.5GB", "500MiB"]
    )
)]
pub struct Bytes(u64);

/// Bytes of each unit, from the largest.
const SIZE_UNITS: [(&str, u64); 11] = [
    ("PiB", 1 << 50),
    ("PB", 1_000_000_000_000_000),
    ("TiB", 1 << 40),
    ("TB", 1_000_000_000_000),
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("kB", 1000),
    ("B", 1),
];

impl Bytes {
    /// From a number of bytes.
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// The number of bytes.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl FromStr for Bytes {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let refuse = || QuantityError::new(text, "a size", "write 1GB, 1.5GB, 500MiB or a number of bytes");
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(end);
        let bytes_per_unit = match unit.trim_start() {
            "" => 1,
            // Both spellings are common for the small ones.
            "KB" => 1000,
            "kiB" => 1 << 10,
            name => SIZE_UNITS.iter().find(|(unit, _)| *unit == name).ok_or_else(refuse)?.1,
        };
        let (units, scale) = decimal(number).ok_or_else(refuse)?;
        let scaled = u128::from(units) * u128::from(bytes_per_unit);
        let bytes = u64::try_from(scaled / u128::from(scale)).map_err(|_| refuse())?;
        if unit.is_empty() && scale > 1 { Err(refuse()) } else { Ok(Self(bytes)) }
    }
}

impl fmt::Display for Bytes {
    /// The shortest text with at most one decimal that reads back as the same number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tenths = u128::from(self.0) * 10;
        let exact =
            SIZE_UNITS.iter().filter(|(_, size)| self.0 >= *size && tenths.is_multiple_of(u128::from(*size)));
        let texts = exact.map(|(unit, size)| match (tenths / u128::from(*size), unit) {
            (tenths, unit) if tenths % 10 == 0 => format!("{}{unit}", tenths / 10),
            (tenths, unit) => format!("{}.{}{unit}", tenths / 10, tenths % 10),
        });
        f.write_str(&texts.min_by_key(String::len).unwrap_or_else(|| "0B".to_owned()))
    }
}

/// An amount for people, rounded: `13.5 GB`, `980 B`. Decimal units, as Docker shows them.
pub fn format_bytes(bytes: u64) -> String {
    let decimal_units = SIZE_UNITS.iter().filter(|(unit, _)| !unit.contains('i') && *unit != "B");
    // From 999.95 on it would read 1000.0 of the smaller unit.
    for (unit, size) in decimal_units {
        if bytes >= size - size / 20_000 {
            return format!("{:.1} {unit}", bytes as f64 / *size as f64);
        }
    }
    format!("{bytes} B")
}

/// `12.5` as (125, 10): digits and at most one point, few enough of them to be exact.
fn decimal(text: &str) -> Option<(u64, u64)> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits_only = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    let complete = !whole.is_empty() && text.contains('.') != fraction.is_empty();
    if !complete || !digits_only(whole) || !digits_only(fraction) || fraction.len() > 9 {
        return None;
    }
    let scale = 10u64.pow(u32::try_from(fraction.len()).ok()?);
    let units = format!("{whole}{fraction}").parse().ok()?;
    Some((units, scale))
}

/// A text that is not the quantity it should be; names the cure.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {what}: {cure}")]
pub struct QuantityError {
    text: String,
    what: &'static str,
    cure: &'static str,
}

impl QuantityError {
    fn new(text: &str, what: &'static str, cure: &'static str) -> Self {
        Self { text: text.chars().take(64).collect(), what, cure }
    }
}

/// Reads a text by `FromStr`; asking for a text keeps the exact column in the error, also for plain numbers.
struct FromText<T>(PhantomData<T>);

impl<T: FromStr<Err = QuantityError>> de::Visitor<'_> for FromText<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number with its unit")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }
}

impl<'de> Deserialize<'de> for PromDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(FromText(PhantomData))
    }
}

impl<'de> Deserialize<'de> for Ratio {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(FromText(PhantomData))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(FromText(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_prometheus_reads_them() {
        let cases = [
            ("0", 0, "0s"),
            ("0s", 0, "0s"),
            ("100ms", 100, "100ms"),
            ("30s", 30_000, "30s"),
            ("90s", 90_000, "1m30s"),
            ("1h30m", 5_400_000, "1h30m"),
            ("1d2h", 93_600_000, "26h"),
            ("7d", 604_800_000, "1w"),
            ("10d", 864_000_000, "10d"),
            ("2w", 1_209_600_000, "2w"),
            ("1y", 31_536_000_000, "1y"),
            ("1y2w3d4h5m6s7ms", 33_019_506_007, "9172h5m6s7ms"),
        ];
        for (text, millis, shown) in cases {
            let duration: PromDuration = text.parse().expect(text);
            assert_eq!(duration.get(), Duration::from_millis(millis), "{text}");
            assert_eq!(duration.to_string(), shown);
            assert_eq!(shown.parse(), Ok(duration), "{shown} reads back");
        }
        for text in
            ["", "5", "s", "-1s", "+1s", "1.5h", "1m1h", "1s1s", "1 s", " 1s", "1µs", "1ms1s", "99999999999y"]
        {
            assert!(text.parse::<PromDuration>().is_err(), "{text}");
        }
    }

    #[test]
    fn ratios_are_percentages() {
        let cases =
            [("85%", 0.85), ("0%", 0.0), ("100%", 1.0), ("57%", 0.57), ("99.9%", 0.999), ("85 %", 0.85)];
        for (text, ratio) in cases {
            let read: Ratio = text.parse().expect(text);
            assert!((read.get() - ratio).abs() < 1e-12, "{text}");
            assert_eq!(read.to_string(), text.replace(' ', ""));
        }
        for text in ["0.85", "85", "101%", "-1%", "%", "NaN%", "inf%", "1e1%", ".5%", "5.%"] {
            assert!(text.parse::<Ratio>().is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_exact_both_ways() {
        let cases = [
            ("0", 0, "0B"),
            ("1GB", 1_000_000_000, "1GB"),
            ("500MiB", 524_288_000, "500MiB"),
            ("13.54GB", 13_540_000_000, "13540MB"),
            ("13.5 GB", 13_500_000_000, "13.5GB"),
            ("1.5GiB", 1_610_612_736, "1.5GiB"),
            ("64KB", 64_000, "64kB"),
            ("1234567", 1_234_567, "1234567B"),
            ("2PiB", 2_251_799_813_685_248, "2PiB"),
            ("18446744073709551615", u64::MAX, "18446744073709551615B"),
        ];
        for (text, bytes, shown) in cases {
            let size: Bytes = text.parse().expect(text);
            assert_eq!(size.get(), bytes, "{text}");
            assert_eq!(size.to_string(), shown);
            assert_eq!(shown.parse(), Ok(size), "{shown} reads back");
        }
        for text in [
            "",
            "GB",
            "1gb",
            "-1GB",
            "1.5",
            "1..5GB",
            "1.GB",
            "18446744073709551616",
            "99999999PiB",
            "1 GB x",
        ] {
            assert!(text.parse::<Bytes>().is_err(), "{text}");
        }
    }

    #[test]
    fn people_read_rounded_sizes() {
        let cases = [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (999_949, "999.9 kB"),
            (999_951, "1.0 MB"),
            (13_540_000_000, "13.5 GB"),
            (150_000_000_000, "150.0 GB"),
            (u64::MAX, "18446.7 PB"),
        ];
        for (bytes, shown) in cases {
            assert_eq!(format_bytes(bytes), shown);
        }
    }
}
