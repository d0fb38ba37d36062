//! How much time a scrape has.

use std::time::Duration;

use hyper::HeaderMap;
use tokio::time::Instant;

/// What Prometheus says about its own patience.
const HEADER: &str = "x-prometheus-scrape-timeout-seconds";

/// No look takes longer, however patient the client is.
const LONGEST: Duration = Duration::from_secs(5);

/// Kept for encoding and the way back; of short time-outs a quarter.
const RESERVE: Duration = Duration::from_millis(500);

/// Between the collectors' deadline and the moment the frame stops waiting for them.
const GRACE: Duration = Duration::from_millis(100);

/// The time limits of one scrape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// When collectors should have ended.
    pub deadline: Instant,
    /// When the frame stops waiting: a little later, so that what ends exactly at the deadline still counts.
    pub cut: Instant,
}

impl Budget {
    /// From the request's arrival and its headers.
    pub fn of(arrival: Instant, headers: &HeaderMap) -> Self {
        let patience =
            headers.get(HEADER).and_then(|value| value.to_str().ok()).and_then(|text| text.parse().ok());
        let patience = patience.filter(|seconds: &f64| *seconds > 0.0);
        let patience = patience.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        let reserve = patience.map_or(RESERVE, |patience| RESERVE.min(patience / 4));
        let usable = patience.map_or(LONGEST, |patience| LONGEST.min(patience.saturating_sub(reserve)));
        let deadline = arrival + usable;
        Self { deadline, cut: deadline + GRACE.min(reserve / 2) }
    }
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    #[test]
    fn the_deadline_leaves_room_for_the_answer() {
        let arrival = Instant::now();
        for (header, deadline_ms, cut_ms) in [
            (None, 5000, 5100),
            (Some("10"), 5000, 5100),
            (Some("5.5"), 5000, 5100),
            (Some("5"), 4500, 4600),
            (Some("2"), 1500, 1600),
            (Some("1"), 750, 850),
            (Some("0.4"), 300, 350),
            (Some("1e300"), 5000, 5100),
            // What makes no sense counts as not said.
            (Some("0"), 5000, 5100),
            (Some("-1"), 5000, 5100),
            (Some("NaN"), 5000, 5100),
            (Some("inf"), 5000, 5100),
            (Some("soon"), 5000, 5100),
            (Some(""), 5000, 5100),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(value) = header {
                headers.insert(HEADER, HeaderValue::from_static(value));
            }
            let budget = Budget::of(arrival, &headers);
            assert_eq!(budget.deadline - arrival, Duration::from_millis(deadline_ms), "{header:?}");
            assert_eq!(budget.cut - arrival, Duration::from_millis(cut_ms), "{header:?}");
        }
    }
}
