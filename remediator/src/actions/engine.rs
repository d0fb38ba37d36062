//! Calls of the engine that change something. Not an action.

use std::time::Duration;

use bollard::errors::Error as DockerError;

use super::{Failure, container_restart::engine_failure};

/// How long to wait for another prune before trying again.
const BUSY_PAUSE: Duration = Duration::from_secs(5);
/// How often to try again.
const BUSY_TRIES: u32 = 24;

/// The answer to a prune, once no other is at work: that one frees the same, and ours may come after it.
///
/// # Errors
/// When the engine refuses, or another prune does not come to an end.
pub(super) async fn when_free<T, F>(prune: impl Fn() -> F) -> Result<T, Failure>
where
    F: Future<Output = Result<T, DockerError>>,
{
    for _ in 0..BUSY_TRIES {
        match prune().await {
            Ok(answer) => return Ok(answer),
            Err(DockerError::DockerResponseServerError { status_code: 409, .. }) => {
                tokio::time::sleep(BUSY_PAUSE).await;
            }
            Err(error) => return Err(engine_failure(error)),
        }
    }
    Err(Failure::Refused("another prune is still running".to_owned()))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    fn busy() -> DockerError {
        let message = "a prune operation is already running".to_owned();
        DockerError::DockerResponseServerError { status_code: 409, message }
    }

    #[tokio::test(start_paused = true)]
    async fn another_prune_is_waited_for() {
        let asked = AtomicU32::new(0);
        let answer = when_free(|| async {
            if asked.fetch_add(1, Ordering::Relaxed) < 3 { Err(busy()) } else { Ok(7) }
        });
        assert_eq!(answer.await, Ok(7));
        assert_eq!(asked.load(Ordering::Relaxed), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_never_ends_is_a_refusal_and_nothing_was_done() {
        let answer: Result<(), Failure> = when_free(|| async { Err(busy()) }).await;
        assert_eq!(answer, Err(Failure::Refused("another prune is still running".to_owned())));
    }
}
