//! `rate_limit`: so many requests at once, then one an interval.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// A bucket that refills by one an interval.
#[derive(Debug)]
pub(super) struct RateLimit {
    interval: Duration,
    burst: u32,
    /// When the bucket would be full again if nobody asked any more.
    full_at: Mutex<Instant>,
}

impl RateLimit {
    /// A full bucket.
    pub(super) fn new(interval: Duration, burst: u32) -> Self {
        Self { interval, burst, full_at: Mutex::new(Instant::now()) }
    }

    /// Whether one more request is allowed now; a refused one takes nothing.
    pub(super) fn allows(&self) -> bool {
        let now = Instant::now();
        let mut full_at = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        let after = (*full_at).max(now) + self.interval;
        let allowed = after - now <= self.interval.saturating_mul(self.burst);
        if allowed {
            *full_at = after;
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_and_then_one_an_interval() {
        let limit = RateLimit::new(Duration::from_secs(1), 3);
        let allowed = |asked: usize| (0..asked).filter(|_| limit.allows()).count();
        assert_eq!(allowed(10), 3);
        tokio::time::advance(Duration::from_millis(999)).await;
        assert_eq!(allowed(10), 0);
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(allowed(10), 1);
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!(allowed(10), 3);
    }
}
