//! The runner's files are objects in S3.

use std::time::Duration;

use solverd_runner::task::{ArtifactError, Artifacts, Event, InputFile, StoredFile};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncSeekExt},
    sync::mpsc::Sender,
    time::Instant,
};

use super::{
    drive::{FIRST_PAUSE, LONGEST_PAUSE},
    logs::log_line,
};
use crate::{
    domain::{
        file::File,
        id::{FileId, JobId},
    },
    objects::{self, Error, Objects},
    report::chain,
};

/// How long an object store that is away is waited for: what took days to compute must not be lost to a short outage.
const PATIENCE: Duration = Duration::from_hours(1);

/// The files of one job.
pub(super) struct JobArtifacts {
    objects: Objects,
    job: JobId,
    /// For lines in the job's log.
    events: Sender<Event>,
}

impl JobArtifacts {
    pub(super) const fn new(objects: Objects, job: JobId, events: Sender<Event>) -> Self {
        Self { objects, job, events }
    }

    /// Does something again and again while the object store is away, and says so in the job's log.
    async fn insist<T, F: Future<Output = objects::Result<T>>>(
        &self,
        what: &str,
        attempt: impl Fn() -> F,
    ) -> Result<T, ArtifactError> {
        let end = Instant::now() + PATIENCE;
        let mut pause = FIRST_PAUSE;
        loop {
            match attempt().await {
                Err(error @ Error::Unavailable { .. }) if Instant::now() < end => {
                    let reason = chain(&error);
                    tracing::warn!(job = %self.job, error = reason, "{what} will be tried again");
                    if pause == FIRST_PAUSE {
                        let line = format!("[WARNING] solverd: {what}: {reason}; trying again");
                        let _ = self.events.send(Event::Log(log_line(&line))).await;
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                done => return done.map_err(|error| ArtifactError(chain(&error))),
            }
        }
    }
}

impl Artifacts for JobArtifacts {
    async fn open(&self, file: &InputFile) -> Result<impl AsyncRead + Send + Unpin, ArtifactError> {
        let key = File::object_key(FileId(file.file_id));
        self.insist(&format!("fetching input `{}`", file.port), || self.objects.read(&key)).await
    }

    async fn store(
        &self,
        port: &str,
        filename: &str,
        content: tokio::fs::File,
        size: u64,
    ) -> Result<StoredFile, ArtifactError> {
        let id = FileId::of_output(self.job, port);
        let key = File::object_key(id);
        let attempt = async || {
            let mut content = content.try_clone().await.map_err(Error::Content)?;
            content.rewind().await.map_err(Error::Content)?;
            self.objects.put_stream(&key, content.take(size)).await
        };
        let stored = self.insist(&format!("storing output `{port}`"), attempt).await?;
        Ok(StoredFile {
            file_id: id.0,
            filename: filename.to_owned(),
            sha256: stored.sha256,
            size: stored.size,
            e_tag: stored.e_tag,
        })
    }
}
