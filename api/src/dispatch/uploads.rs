//! Uploads that nobody completes: what was sent of them would stay in the object store for ever.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use chrono::TimeDelta;

use super::{BATCH, Dispatcher, Result};
use crate::{
    domain::{file::File, time::now},
    report::chain,
};

/// Links are good for half of this, and a part that was begun with the last of them may take long to arrive.
const ABANDONED_AFTER: TimeDelta = TimeDelta::hours(24);

/// How often they are looked for.
const EVERY: Duration = Duration::from_hours(1);

/// When they were last looked for.
#[derive(Default)]
pub(super) struct Sweep(Mutex<Option<Instant>>);

impl Sweep {
    fn is_due(&self) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let due = last.is_none_or(|last| last.elapsed() >= EVERY);
        if due {
            *last = Some(Instant::now());
        }
        due
    }
}

impl Dispatcher {
    /// Ends uploads that were abandoned, now and then, beside everything else.
    pub(super) fn sweep_uploads(&self) {
        if !self.0.sweep.is_due() {
            return;
        }
        let dispatcher = self.clone();
        self.0.tasks.spawn(async move {
            if let Err(error) = dispatcher.end_abandoned().await {
                tracing::warn!(error = chain(&error), "abandoned uploads stay for another while");
            }
        });
    }

    async fn end_abandoned(&self) -> Result<()> {
        let inner = &self.0;
        loop {
            let uploads = inner.db.uploads_begun_before(now() - ABANDONED_AFTER, BATCH).await?;
            if uploads.is_empty() {
                return Ok(());
            }
            for upload in uploads {
                if inner.closing.is_cancelled() {
                    return Ok(());
                }
                let key = File::object_key(upload.id);
                // First the upload, so that a store that is away leaves the row for the next time. What is being completed just now
                // is an object already, which this does not touch, and then a file, whose row stays; or it cannot become one any more.
                if let Some(upload_id) = &upload.upload_id {
                    inner.objects.end_upload(&key, upload_id).await?;
                }
                if inner.db.upload_remove(upload.id, upload.owner).await? {
                    tracing::info!(file = %upload.id, "an upload that nobody completed was ended");
                    inner.objects.forget(&key, None).await;
                }
            }
        }
    }
}
