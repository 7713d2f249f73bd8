//! Tells waiting readers in this process that something about a job has changed. Other processes are not told: whoever waits looks
//! again by itself after a while.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::watch;

use crate::domain::id::JobId;

/// How long a reader relies on being told, before it looks by itself.
const AT_LATEST: Duration = Duration::from_secs(5);

/// Who waits for which job.
#[derive(Default)]
pub(super) struct Changes(Mutex<HashMap<JobId, watch::Sender<()>>>);

/// Waits for the next change of one job. Made *before* the state is read, so that no change falls between.
pub struct Changed(watch::Receiver<()>);

impl Changes {
    pub(super) fn subscribe(&self, job: JobId) -> Changed {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.retain(|_, sender| sender.receiver_count() > 0);
        Changed(waiting.entry(job).or_default().subscribe())
    }

    pub(super) fn notify(&self, job: JobId) {
        if let Some(sender) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&job) {
            sender.send_replace(());
        }
    }
}

impl Changed {
    /// Returns after a change, or after a few seconds.
    pub async fn wait(&mut self) {
        // A closed channel cannot be: the sender goes only after its last receiver.
        let _ = tokio::time::timeout(AT_LATEST, self.0.changed()).await;
    }
}
