//! The connection that systemd's announcements come in on, and the task that takes them into the picture at once.

use std::sync::{Arc, Mutex, PoisonError};

use evenkeel_host::systemd::{Error, Line, Position, Signals, Systemd};
use tokio::{sync::watch, task::JoinHandle, time::Instant};

use super::picture::Picture;

/// A picture that announcements are taken into. Gone when dropped, and with it the belief in the picture.
#[derive(Debug)]
pub(super) struct Link {
    line: Line,
    /// How far they have been taken.
    taken: watch::Receiver<Option<Position>>,
    task: JoinHandle<()>,
}

impl Link {
    /// Begins to listen. Nothing of the picture is believed until it has been asked about anew.
    pub(super) async fn open(systemd: &Systemd, picture: &Arc<Mutex<Picture>>) -> Result<Self, Error> {
        let (line, signals) = systemd.listen().await?;
        let listening = picture.lock().unwrap_or_else(PoisonError::into_inner).begin();
        let (sender, taken) = watch::channel(None);
        let task = tokio::spawn(take_all(signals, Arc::clone(picture), listening, sender));
        Ok(Self { line, taken, task })
    }

    /// Whether announcements still come.
    pub(super) fn is_alive(&self) -> bool {
        !self.task.is_finished()
    }

    /// Asks systemd how it is, and returns when everything that it announced before its answer is in the picture.
    pub(super) async fn catch_up(&self) -> Result<String, Error> {
        let (state, position) = self.line.system_state().await?;
        let mut taken = self.taken.clone();
        let caught_up = taken.wait_for(|taken| *taken >= Some(position)).await;
        caught_up.map(|_| state).map_err(|_| Error::SignalsEnded)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Waits for nothing but the next announcement: one that is not taken would hold up the answers behind it.
async fn take_all(
    mut signals: Signals,
    picture: Arc<Mutex<Picture>>,
    listening: u64,
    taken: watch::Sender<Option<Position>>,
) {
    while let Some((position, signal)) = signals.next().await {
        if let Some(signal) = signal {
            let mut picture = picture.lock().unwrap_or_else(PoisonError::into_inner);
            picture.take(listening, signal, Instant::now());
        }
        taken.send_replace(Some(position));
    }
}
