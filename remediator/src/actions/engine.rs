//! What the engine's answers to calls that change something mean. Not an action.

use bollard::errors::Error as DockerError;

use super::Failure;

/// A refusal of the engine means that it did not happen. An error of its own may come halfway: stopped and not started
/// again, deleted in part. Anything else may have been lost on the way.
pub(super) fn failure(error: DockerError) -> Failure {
    match error {
        DockerError::DockerResponseServerError { status_code, message } => {
            let text = format!("the engine says {status_code}: {message}");
            if status_code < 500 { Failure::Refused(text) } else { Failure::Unknown(text) }
        }
        other => Failure::Unknown(other.to_string()),
    }
}

/// The same for a prune: the engine does one at a time, and another one frees the same. Ours may come after it.
pub(super) fn prune_failure(error: DockerError) -> Failure {
    match error {
        DockerError::DockerResponseServerError { status_code: 409, message } => {
            Failure::Busy(format!("the engine prunes already: {message}"))
        }
        other => failure(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status_code: u16) -> DockerError {
        DockerError::DockerResponseServerError { status_code, message: "no".to_owned() }
    }

    #[test]
    fn only_a_refusal_says_that_nothing_was_done() {
        assert_eq!(failure(answer(404)), Failure::Refused("the engine says 404: no".to_owned()));
        assert_eq!(failure(answer(409)), Failure::Refused("the engine says 409: no".to_owned()));
        // The container was stopped, and its port was taken when it was to start again.
        assert_eq!(failure(answer(500)), Failure::Unknown("the engine says 500: no".to_owned()));
    }

    #[test]
    fn another_prune_at_work_is_no_refusal() {
        assert_eq!(prune_failure(answer(409)), Failure::Busy("the engine prunes already: no".to_owned()));
        assert_eq!(prune_failure(answer(404)), failure(answer(404)));
        assert_eq!(prune_failure(answer(500)), failure(answer(500)));
    }
}
