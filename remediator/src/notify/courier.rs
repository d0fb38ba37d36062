//! Delivers what waits in the journal, each receiver's messages in their order. A receiver that is down holds nobody
//! else up, and loses nothing for a day; a process that dies delivers what was left at its next start.

use std::{sync::Arc, time::Duration};

use hyper::StatusCode;
use reqwest::{Client, redirect};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{Delivery, Post, Receiver};
use crate::{
    config::Config,
    journal::{Error, LETTERS_KEPT, Waiting},
    outgoing,
};

/// How long one try may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Between the first try and the second; four times as long before each further one,
pub(super) const PAUSE: Duration = Duration::from_millis(500);
/// up to this.
const PAUSE_MAX: Duration = Duration::from_secs(300);
/// After an error of the journal.
const JOURNAL_PAUSE: Duration = Duration::from_secs(30);

/// Keeps one courier for each receiver of the configuration in force.
pub struct PostOffice {
    client: Client,
    post: Post,
    live: watch::Receiver<Arc<Config>>,
    stop: CancellationToken,
}

impl PostOffice {
    /// Begins with [`PostOffice::run`], and ends after `stop`, when what waits has been tried once more.
    ///
    /// # Errors
    /// When no HTTP client can be made.
    pub fn new(
        post: Post,
        live: watch::Receiver<Arc<Config>>,
        stop: CancellationToken,
    ) -> reqwest::Result<Self> {
        // One message goes to one place: no proxy from the environment, no redirect to elsewhere.
        let client = outgoing::client(|| {
            Client::builder().no_proxy().redirect(redirect::Policy::none()).timeout(TIMEOUT)
        })?;
        Ok(Self { client, post, live, stop })
    }

    /// Delivers until `stop`.
    pub async fn run(mut self) {
        loop {
            let config = Arc::clone(&self.live.borrow_and_update());
            let replaced = CancellationToken::new();
            let mut couriers = JoinSet::new();
            for receiver in &config.receivers {
                couriers.spawn(self.courier(receiver.clone(), replaced.clone()).deliver());
            }
            tokio::select! {
                // Its sender is gone only when the process ends.
                changed = self.live.changed() => if changed.is_ok() { replaced.cancel() } else { self.stop.cancelled().await },
                () = self.stop.cancelled() => {}
            }
            // Never two couriers for one receiver: it would get the same message twice.
            while couriers.join_next().await.is_some() {}
            if self.stop.is_cancelled() {
                return;
            }
        }
    }

    fn courier(&self, receiver: Receiver, replaced: CancellationToken) -> Courier {
        Courier {
            client: self.client.clone(),
            bell: self.post.bell.subscribe(),
            post: self.post.clone(),
            receiver,
            pause: PAUSE,
            replaced,
            stop: self.stop.clone(),
        }
    }
}

/// Delivers one receiver's messages.
pub(super) struct Courier {
    pub(super) client: Client,
    pub(super) bell: watch::Receiver<()>,
    pub(super) post: Post,
    pub(super) receiver: Receiver,
    pub(super) pause: Duration,
    /// The configuration has other receivers now.
    pub(super) replaced: CancellationToken,
    pub(super) stop: CancellationToken,
}

/// Why a try failed; without the URL, which may hold a secret.
pub(super) enum Failure {
    /// It may succeed later.
    Passing(String),
    /// The receiver does not take this message.
    Final(String),
}

impl Courier {
    /// One after the other, until replaced; after `stop`, until one cannot be delivered or none is left.
    pub(super) async fn deliver(mut self) {
        while !self.replaced.is_cancelled() {
            self.bell.borrow_and_update();
            let next = self.post.journal.next_letter(self.receiver.key(), self.post.clock.now()).await;
            let pause = match next {
                Ok(Some(letter)) => match self.handle(&letter).await {
                    Ok(None) => continue,
                    Ok(Some(pause)) => Some(pause),
                    Err(_) => Some(JOURNAL_PAUSE),
                },
                Ok(None) => None,
                Err(Error::Closed) => return,
                Err(_) => Some(JOURNAL_PAUSE),
            };
            if self.stop.is_cancelled() {
                return;
            }
            let until = pause.map(|pause| Instant::now() + pause);
            tokio::select! {
                () = async { match until { Some(until) => sleep_until(until).await, None => std::future::pending().await } } => {}
                rung = self.bell.changed(), if until.is_none() => if rung.is_err() { sleep(JOURNAL_PAUSE).await },
                () = self.replaced.cancelled() => return,
                () = self.stop.cancelled() => {}
            }
        }
    }

    /// Tries one message; answers how long to wait when it is to be tried again.
    async fn handle(&self, letter: &Waiting) -> Result<Option<Duration>, Error> {
        let receiver = self.receiver.host();
        let failure = match self.send(&letter.body).await {
            Ok(()) => None,
            Err(Failure::Passing(error)) if letter.age < LETTERS_KEPT => {
                if letter.tries == 0 {
                    tracing::warn!(%receiver, error, "notification not delivered; it is tried again");
                }
                self.post.journal.letter_tried(letter.id).await?;
                return Ok(Some((self.pause * 4_u32.saturating_pow(letter.tries.min(8))).min(PAUSE_MAX)));
            }
            Err(Failure::Passing(error) | Failure::Final(error)) => Some(error),
        };
        self.post.journal.letter_done(letter.id).await?;
        let delivery = match failure {
            None => Delivery::Delivered,
            Some(error) => {
                tracing::warn!(%receiver, error, tries = letter.tries + 1, "notification given up");
                Delivery::Failed
            }
        };
        self.post.metrics.notification(delivery);
        Ok(None)
    }

    /// One try.
    pub(super) async fn send(&self, body: &str) -> Result<(), Failure> {
        let mut request = self
            .client
            .post(self.receiver.url.expose())
            .header("content-type", "application/json")
            .body(body.to_owned());
        if let Some(token) = &self.receiver.bearer_token {
            request = request.bearer_auth(token.expose());
        }
        let answer = request.send().await;
        let status = answer.map_err(|error| Failure::Passing(chain(&error.without_url())))?.status();
        let said = || format!("it answered {status}");
        match status {
            // A redirect is not followed, and so nobody has read the message.
            _ if status.is_success() => Ok(()),
            StatusCode::BAD_REQUEST
            | StatusCode::PAYLOAD_TOO_LARGE
            | StatusCode::UNSUPPORTED_MEDIA_TYPE
            | StatusCode::UNPROCESSABLE_ENTITY => Err(Failure::Final(said())),
            // Down, busy, moved, or not letting us in: a person may mend that within the day.
            _ => Err(Failure::Passing(said())),
        }
    }
}

/// An error with its causes: the outer one alone says "error sending request".
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
