//! Tells waiting readers in this process that something about a job has changed. Other processes are not told: whoever waits looks
//! again by itself after a while.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, time::timeout};

use crate::domain::id::JobId;

/// How long a reader relies on being told, before it looks by itself.
const AT_LATEST: Duration = Duration::from_secs(5);

/// Who waits for which job, and how many changes there were that are more than log lines.
#[derive(Default)]
pub(super) struct Changes(Mutex<HashMap<JobId, watch::Sender<u64>>>);

/// Waits for the next change of one job. Made *before* the state is read, so that no change falls between.
pub struct Changed {
    changes: watch::Receiver<u64>,
    seen: u64,
}

impl Changes {
    pub(super) fn subscribe(&self, job: JobId) -> Changed {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.retain(|_, sender| sender.receiver_count() > 0);
        let changes = waiting.entry(job).or_default().subscribe();
        let seen = *changes.borrow();
        Changed { changes, seen }
    }

    pub(super) fn notify(&self, job: JobId) {
        self.modify(job, |changes| *changes += 1);
    }

    pub(super) fn notify_of_lines(&self, job: JobId) {
        self.modify(job, |_| ());
    }

    fn modify(&self, job: JobId, modify: impl FnOnce(&mut u64)) {
        if let Some(sender) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&job) {
            sender.send_modify(modify);
        }
    }
}

impl Changed {
    // A closed channel cannot be: the sender goes only after its last receiver.

    /// Returns after a change, or after a few seconds.
    pub async fn wait(&mut self) {
        let _ = timeout(AT_LATEST, self.changes.changed()).await;
    }

    /// The same, but more lines in the log are no change.
    pub async fn wait_for_more_than_lines(&mut self) {
        let seen = self.seen;
        if let Ok(Ok(now)) = timeout(AT_LATEST, self.changes.wait_for(|now| *now != seen)).await {
            self.seen = *now;
        }
    }
}
