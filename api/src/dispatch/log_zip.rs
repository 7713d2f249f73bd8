//! The log of an ended job as a zip, so that it can be fetched like any other file.

use std::{
    fs,
    io::{Seek, SeekFrom, Write},
};

use tokio::sync::mpsc;
use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};

use super::{Dispatcher, Error, Result};
use crate::domain::job::Job;

/// How many chunks of a log are read at once.
const CHUNKS: i64 = 64;

impl Dispatcher {
    /// Streams a job's log from the database through the compressor into a file, and from there to the object store.
    pub(super) async fn store_log(&self, job: &Job) -> Result<String> {
        let name = format!("{}_{}.logs", job.solver_key.short_name(), job.solver_version);
        let (sender, mut receiver) = mpsc::channel::<String>(4);
        let folder = self.0.work.clone();
        let zipping = tokio::task::spawn_blocking(move || -> std::io::Result<fs::File> {
            fs::create_dir_all(&folder)?;
            let mut zip = ZipWriter::new(tempfile::tempfile_in(folder)?);
            // Level 1: a quarter of a gigabyte a second, at 40 percent of the size.
            let options = SimpleFileOptions::default()
                .compression_method(CompressionMethod::Deflated)
                .compression_level(Some(1))
                .large_file(true);
            zip.start_file(name, options)?;
            while let Some(text) = receiver.blocking_recv() {
                zip.write_all(text.as_bytes())?;
            }
            let mut file = zip.finish()?;
            file.seek(SeekFrom::Start(0))?;
            Ok(file)
        });
        let mut after = 0;
        'log: loop {
            let chunks = self.0.db.job_log(job.id, after, CHUNKS).await?;
            let Some(last) = chunks.last() else { break };
            after = last.seq;
            for chunk in chunks {
                if sender.send(chunk.text).await.is_err() {
                    // The compressor has given up; it says why.
                    break 'log;
                }
            }
        }
        drop(sender);
        let machine =
            |error: &dyn std::error::Error| Error::Machine(format!("zipping the log: {error}"));
        let zipped =
            zipping.await.map_err(|error| machine(&error))?.map_err(|error| machine(&error))?;
        let key = Job::log_object_key(job.id);
        self.0.objects.put_stream(&key, tokio::fs::File::from_std(zipped)).await?;
        Ok(key)
    }
}
