//! Waiting for a fact instead of for a duration.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

/// How often a fact is looked at: often enough to lose no time, seldom enough to cost nothing.
const PAUSE: Duration = Duration::from_millis(50);

/// Looks until `look` succeeds and returns what it found.
///
/// # Errors
///
/// When `within` has passed; the error names what was awaited and what the last look saw instead.
/// A single look that hangs is cut off at the same moment.
pub async fn wait_for<T>(
    what: &str,
    within: Duration,
    mut look: impl AsyncFnMut() -> Result<T>,
) -> Result<T> {
    let start = Instant::now();
    let mut seen = anyhow!("nothing yet");
    loop {
        let left = within.saturating_sub(start.elapsed());
        match tokio::time::timeout(left, look()).await {
            Ok(Ok(found)) => return Ok(found),
            Ok(Err(error)) => seen = error,
            Err(_) => break,
        }
        if start.elapsed() >= within {
            break;
        }
        tokio::time::sleep(PAUSE).await;
    }
    Err(anyhow!("waited {:.1} s for {what}; last seen: {seen:#}", start.elapsed().as_secs_f64()))
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    #[tokio::test]
    async fn returns_what_was_found_as_soon_as_it_is_there() {
        let mut looks = 0;
        let found = wait_for("the third look", Duration::from_secs(5), async || {
            looks += 1;
            if looks < 3 { bail!("look {looks}") } else { Ok(looks) }
        })
        .await;
        assert_eq!(found.unwrap(), 3);
    }

    #[tokio::test]
    async fn says_what_was_seen_last() {
        let error = wait_for("a miracle", Duration::from_millis(120), async || {
            bail!("only {}", "rain") as Result<()>
        })
        .await
        .unwrap_err()
        .to_string();
        assert!(error.contains("a miracle") && error.ends_with("last seen: only rain"), "{error}");
    }

    #[tokio::test]
    async fn a_look_that_hangs_is_cut_off() {
        let error = wait_for("an answer", Duration::from_millis(80), async || {
            std::future::pending::<Result<()>>().await
        })
        .await
        .unwrap_err()
        .to_string();
        assert!(error.ends_with("last seen: nothing yet"), "{error}");
    }
}
