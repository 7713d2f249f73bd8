//! Logs of jobs: our own lines in them, and the zip that the whole of an ended job's log becomes.

use std::{
    fs,
    io::{self, Seek, SeekFrom, Write},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use chrono::{SecondsFormat, Utc};
use tokio::{
    sync::{Mutex, mpsc},
    time::{sleep, timeout},
};
use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};

use super::{Error, Result};
use crate::{domain::job::Job, objects::Objects, report::chain, store::Db};

/// How many chunks of a log are read at once.
const CHUNKS: i64 = 64;

/// Pauses between attempts to store a zip. After the last, or when they take too long together, the job ends without it, and the first
/// reader gets it made.
const PAUSES: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(2)];
const TOGETHER: Duration = Duration::from_secs(15);

/// Characters of a line of our own.
const LONGEST_LINE: usize = 2000;

/// Makes log zips.
#[derive(Clone)]
pub struct LogZips {
    db: Db,
    objects: Objects,
    /// Folder for temporary files.
    folder: PathBuf,
    /// One of them, chosen by the job, is held while a zip is made up: of those who wait for it one makes it.
    turns: Arc<[Mutex<()>; 16]>,
}

impl LogZips {
    pub(super) fn new(db: Db, objects: Objects, folder: PathBuf) -> Self {
        Self { db, objects, folder, turns: Arc::default() }
    }

    /// Stores the log zip of a job; `None` while the object store is away: a job must reach its end even then.
    pub(super) async fn try_store(&self, job: &Job) -> Option<String> {
        let failed = |error: &Error| tracing::warn!(job = %job.id, error = chain(error), "the log zip could not be stored");
        // However long it is: only the object store may be too slow.
        let zip = self.zip(job).await.inspect_err(failed).ok()?;
        let attempts = async {
            for pause in PAUSES.map(Some).into_iter().chain([None]) {
                if let Ok(key) = self.put(job, &zip).await.inspect_err(failed) {
                    return Some(key);
                }
                sleep(pause?).await;
            }
            None
        };
        timeout(TOGETHER, attempts).await.unwrap_or_else(|_| {
            tracing::warn!(job = %job.id, "the log zip was not stored within {} s", TOGETHER.as_secs());
            None
        })
    }

    /// The log zip of an ended job whose zip could not be stored at its end: made now.
    pub async fn make_up(&self, job: &Job) -> Result<String> {
        let turn = usize::from(job.id.0.as_bytes()[15]) % self.turns.len();
        let _turn = self.turns[turn].lock().await;
        if let Some(made) = self.db.job_get(job.id, job.owner).await?.log_key {
            return Ok(made);
        }
        let key = self.put(job, &self.zip(job).await?).await?;
        self.db.job_set_log(job.id, &key).await?;
        Ok(key)
    }

    /// Streams a log from the database through the compressor into a temporary file.
    async fn zip(&self, job: &Job) -> Result<fs::File> {
        let name = format!("{}_{}.logs", job.solver_key.short_name(), job.solver_version);
        let (sender, mut receiver) = mpsc::channel::<String>(4);
        let folder = self.folder.clone();
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
            Ok(zip.finish()?)
        });
        let mut after = 0;
        'log: loop {
            let chunks = self.db.job_log(job.id, after, CHUNKS).await?;
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
        zipping.await.map_err(io::Error::other).flatten().map_err(|error| machine(&error))
    }

    async fn put(&self, job: &Job, mut zip: &fs::File) -> Result<String> {
        zip.seek(SeekFrom::Start(0)).map_err(|error| machine(&error))?;
        let zip = zip.try_clone().map_err(|error| machine(&error))?;
        let key = Job::log_object_key(job.id);
        self.objects.put_stream(&key, tokio::fs::File::from_std(zip)).await?;
        Ok(key)
    }
}

fn machine(error: &io::Error) -> Error {
    Error::Machine(format!("zipping the log: {error}"))
}

/// A log line of our own, with its time, in the form of the engine's. Control characters in it, which may come from users, are escaped:
/// they would forge lines, and Postgres takes no NUL.
#[expect(clippy::disallowed_methods, reason = "log lines keep nanoseconds, like the engine's")]
pub(super) fn log_line(text: &str) -> String {
    let mut line = Utc::now().to_rfc3339_opts(SecondsFormat::Nanos, true) + " ";
    for character in text.chars().take(LONGEST_LINE) {
        if character.is_control() {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_note_forges_a_line() {
        let line = log_line("unknown input `a\nb\0`");
        let (time, text) = line.split_once(' ').unwrap();
        assert!(chrono::DateTime::parse_from_rfc3339(time).is_ok(), "{time}");
        assert_eq!(text, r"unknown input `a\nb\u{0}`");
    }
}
