//! The runner's files are objects in S3.

use std::sync::{Mutex, PoisonError};

use solverd_runner::task::{ArtifactError, Artifacts, InputFile, StoredFile};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::{
    domain::{file::File, id::FileId},
    objects::Objects,
    report::chain,
};

/// The files of one job; remembers what it has stored, so that a failure can take it back.
pub(super) struct JobArtifacts {
    objects: Objects,
    stored: Mutex<Vec<FileId>>,
}

impl JobArtifacts {
    pub(super) fn new(objects: Objects) -> Self {
        Self { objects, stored: Mutex::default() }
    }

    /// The files that were stored.
    pub(super) fn stored(self) -> Vec<FileId> {
        self.stored.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Artifacts for JobArtifacts {
    async fn open(&self, file: &InputFile) -> Result<impl AsyncRead + Send + Unpin, ArtifactError> {
        let key = File::object_key(FileId(file.file_id));
        self.objects.read(&key).await.map_err(|error| ArtifactError(chain(&error)))
    }

    async fn store(
        &self,
        _port: &str,
        filename: &str,
        content: tokio::fs::File,
        size: u64,
    ) -> Result<StoredFile, ArtifactError> {
        let id = FileId::new();
        self.stored.lock().unwrap_or_else(PoisonError::into_inner).push(id);
        let stored = self.objects.put_stream(&File::object_key(id), content.take(size)).await;
        let stored = stored.map_err(|error| ArtifactError(chain(&error)))?;
        Ok(StoredFile {
            file_id: id.0,
            filename: filename.to_owned(),
            sha256: stored.sha256,
            size: stored.size,
            e_tag: stored.e_tag,
        })
    }
}
