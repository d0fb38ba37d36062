//! Some of the hosts of a fleet, as the configuration writes it: `3`, or `10%` of those that there are.

use std::{fmt, str::FromStr};

use evenkeel_host::config::Ratio;
use schemars::JsonSchema;
use serde::Deserialize;

/// A number of hosts, or a share of all.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(
    with = "String",
    extend("type" = ["string", "integer"], "pattern" = r"^([1-9][0-9]{0,5}|(100(\.0+)?|[0-9]{1,2}(\.[0-9]+)?)\s*%)$", "minimum" = 1, "examples" = ["10%", 3])
)]
pub enum Hosts {
    /// So many.
    Count(u32),
    /// So great a share of those that there are: 0.1 is a tenth.
    Share(f64),
}

impl Hosts {
    /// As the scripts take it: a number or nothing, a share or nothing.
    pub(super) fn words(this: Option<Self>) -> [String; 2] {
        match this {
            Some(Self::Count(count)) => [count.to_string(), String::new()],
            Some(Self::Share(share)) => [String::new(), share.to_string()],
            None => [String::new(), String::new()],
        }
    }
}

impl FromStr for Hosts {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("`{text}` is neither a number of hosts nor a share of them: write 3 or 10%");
        let text = text.trim();
        if text.ends_with('%') {
            return text.parse::<Ratio>().map(|share| Self::Share(share.get())).map_err(|_| bad());
        }
        let count = text.parse().ok().filter(|count| (1..=999_999).contains(count));
        count.map(Self::Count).ok_or_else(bad)
    }
}

impl TryFrom<String> for Hosts {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for Hosts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => write!(f, "{count}"),
            Self::Share(share) => write!(f, "{} %", (share * 1e8).round() / 1e6),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_or_a_share() {
        assert_eq!("3".parse(), Ok(Hosts::Count(3)));
        assert_eq!("10%".parse(), Ok(Hosts::Share(0.1)));
        assert_eq!("57%".parse::<Hosts>().unwrap().to_string(), "57 %");
        for bad in ["", "0", "-1", "101%", "x", "1.5", "1e9", "9999999"] {
            assert_eq!(
                bad.parse::<Hosts>().unwrap_err(),
                format!("`{bad}` is neither a number of hosts nor a share of them: write 3 or 10%")
            );
        }
        assert_eq!(Hosts::words(Some(Hosts::Share(0.4))), [String::new(), "0.4".to_owned()]);
    }
}
