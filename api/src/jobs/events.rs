//! Server-sent events: what happens to a job, from its creation to its end, for readers that may break off and come back.
//!
//! Everything is read from the database, so a reader may come back to another process, or after a restart. The id of an event says how
//! far the reader has come in each of the three things that only ever grow: the history, the progress and the log. So whatever comes
//! after an id is the same for whoever asks, nothing is skipped and nothing comes twice. Each reader reads at its own pace: nothing is
//! kept for it, and the next piece is read when the last one has been taken.

use std::{collections::VecDeque, fmt, fmt::Write, str::FromStr, time::Duration};

use actix_web::{HttpRequest, web::Bytes};
use chrono::{DateTime, Utc};
use futures_util::{Stream, StreamExt, stream};
use serde::Serialize;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use utoipa::IntoParams;

use super::logs::{CHUNKS, JobLog, one_line};
use crate::{
    auth::Caller,
    domain::{
        id::{JobId, UserId},
        job::{JobError, JobState},
    },
    error::{ApiError, FieldError, Result},
    request::{Params, from_request},
    store::{self, Changed, Db, LogChunk},
};

/// A comment is sent after so long a silence: readers and proxies see that the connection lives.
const HEARTBEAT: Duration = Duration::from_secs(15);

from_request!(EventsPath, Resume);

/// Names a job by its id alone.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
pub struct EventsPath {
    /// Identifies the job.
    #[param(value_type = uuid::Uuid)]
    pub job_id: JobId,
}

impl EventsPath {
    fn of(request: &HttpRequest) -> Result<Self> {
        Ok(Self { job_id: Params::of_path(request)?.need("job_id", "must be a UUID", str::parse)? })
    }
}

/// Where to go on.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
pub struct Resume {
    /// The id of the last event you have seen: what follows it is sent. Browsers do this by themselves.
    #[param(rename = "Last-Event-ID", value_type = String, required = false, pattern = r"^e\d{1,9}-p\d{1,9}-l\d{1,9}\.\d{1,9}$", example = "e3-p40-l2.17")]
    after: Cursor,
}

impl Resume {
    fn of(request: &HttpRequest) -> Result<Self> {
        let Some(id) = request.headers().get("last-event-id") else {
            return Ok(Self { after: Cursor::default() });
        };
        let text = String::from_utf8_lossy(id.as_bytes());
        text.parse().map(|after| Self { after }).map_err(|()| {
            let rule = "must be the id of an event of this job, like e3-p40-l2.17";
            FieldError::new("value_error", &["header", "Last-Event-ID"], text, rule).into()
        })
    }
}

/// How far a reader has come. No part of it ever falls.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Cursor {
    /// Steps of the history.
    step: i32,
    /// Percent.
    progress: i32,
    /// Chunks of the log that are done with.
    chunk: i32,
    /// Lines of the next chunk.
    line: usize,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "e{}-p{}-l{}.{}", self.step, self.progress, self.chunk, self.line)
    }
}

impl FromStr for Cursor {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        fn number<T: FromStr>(text: &str) -> Result<T, ()> {
            let digits = text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse().ok().filter(|_| digits).ok_or(())
        }
        let mut parts = text.split('-');
        let mut part = |letter| parts.next().and_then(|part| part.strip_prefix(letter)).ok_or(());
        let (step, progress, log) = (part('e')?, part('p')?, part('l')?);
        let (chunk, line) = log.split_once('.').ok_or(())?;
        let cursor = Self {
            step: number(step)?,
            progress: number(progress)?,
            chunk: number(chunk)?,
            line: number(line)?,
        };
        parts.next().is_none().then_some(cursor).ok_or(())
    }
}

/// The data of a `state` event.
#[derive(Serialize)]
struct StateEvent {
    job_id: JobId,
    state: JobState,
    at: DateTime<Utc>,
    errors: Option<Vec<JobError>>,
}

/// The data of a `progress` event.
#[derive(Serialize)]
struct ProgressEvent {
    job_id: JobId,
    progress: i32,
}

struct Reader {
    db: Db,
    job: JobId,
    owner: UserId,
    changed: Changed,
    at: Cursor,
    /// Chunks of the log that are still to be sent.
    read: VecDeque<LogChunk>,
    heartbeat: Instant,
}

/// What there was to send.
enum Next {
    Events(String),
    Nothing,
    End,
}

/// The events after a position; `None` if the job has ended and there are none.
pub(super) async fn follow(
    path: &EventsPath,
    resume: &Resume,
    caller: &Caller,
    db: Db,
    closing: CancellationToken,
) -> Result<Option<impl Stream<Item = store::Result<Bytes>> + use<>>> {
    let mut reader = Reader {
        changed: db.job_changes(path.job_id),
        db,
        job: path.job_id,
        owner: caller.id(),
        at: resume.after,
        read: VecDeque::new(),
        heartbeat: Instant::now() + HEARTBEAT,
    };
    let first = match reader.next().await? {
        Next::End => return Ok(None),
        Next::Events(text) => text,
        Next::Nothing => String::new(),
    };
    let first = Bytes::from(format!("retry: 2000\n\n{first}"));
    let rest = stream::unfold(Some(reader), |reader| async move {
        let mut reader = reader?;
        match reader.wait().await {
            Ok(Some(events)) => Some((Ok(events.into()), Some(reader))),
            Ok(None) => None,
            // The answer has begun long ago: a comment says why it ends here, and the reader comes back.
            Err(error) => {
                let line = ApiError::from(error).line();
                Some((Ok([b": ", &line[..], b"\n"].concat().into()), None))
            }
        }
    });
    let rest = rest.take_until(closing.cancelled_owned());
    Ok(Some(stream::once(async { Ok(first) }).chain(rest)))
}

impl Reader {
    /// The next events, or a heartbeat; `None` at the end.
    async fn wait(&mut self) -> store::Result<Option<String>> {
        loop {
            match self.next().await {
                Ok(Next::Events(events)) => {
                    self.heartbeat = Instant::now() + HEARTBEAT;
                    return Ok(Some(events));
                }
                Ok(Next::Nothing) => {}
                // Whoever comes back is told that the job is gone.
                Ok(Next::End) | Err(store::Error::NotFound { .. }) => return Ok(None),
                Err(error) => return Err(error),
            }
            if timeout_at(self.heartbeat, self.changed.wait()).await.is_err() {
                self.heartbeat = Instant::now() + HEARTBEAT;
                return Ok(Some(":\n\n".to_owned()));
            }
        }
    }

    /// What has happened since. The end comes last, after all of the log.
    async fn next(&mut self) -> store::Result<Next> {
        let mut events = String::new();
        if self.read.is_empty() {
            // The job first: one that had ended by then has all its log by now.
            let job = self.db.job_get(self.job, self.owner).await?;
            let ended = job.state.is_final();
            let mut end = None;
            for step in self.db.job_steps(self.job, self.at.step).await? {
                let state = StateEvent {
                    job_id: self.job,
                    state: step.state,
                    at: step.at,
                    errors: job.error.clone().filter(|_| step.state.is_final()).map(|e| vec![e]),
                };
                if step.state.is_final() {
                    end = Some((step.seq, state));
                } else {
                    self.at.step = step.seq;
                    self.event(&mut events, "state", &state);
                }
            }
            self.read = self.db.job_log(self.job, self.at.chunk, CHUNKS).await?.into();
            let last = ended && self.read.is_empty();
            if job.progress > self.at.progress && (last || !ended) {
                self.at.progress = job.progress;
                let progress = ProgressEvent { job_id: self.job, progress: job.progress };
                self.event(&mut events, "progress", &progress);
            }
            if last {
                match end {
                    Some((seq, state)) => {
                        self.at.step = seq;
                        self.event(&mut events, "state", &state);
                    }
                    None if events.is_empty() => return Ok(Next::End),
                    None => {}
                }
            }
        }
        if let Some(chunk) = self.read.pop_front() {
            let lines: Vec<_> = chunk.text.lines().skip(self.at.line).collect();
            for (index, line) in lines.iter().enumerate() {
                if index + 1 == lines.len() {
                    (self.at.chunk, self.at.line) = (chunk.seq, 0);
                } else {
                    self.at.line += 1;
                }
                self.event(&mut events, "log", &JobLog::new(self.job, line));
            }
            (self.at.chunk, self.at.line) = (chunk.seq, 0);
        }
        Ok(if events.is_empty() { Next::Nothing } else { Next::Events(events) })
    }

    fn event(&self, events: &mut String, name: &str, data: &impl Serialize) {
        let _ = write!(events, "id: {}\nevent: {name}\ndata: {}\n\n", self.at, one_line(data));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_reads_back() {
        let cursor = Cursor { step: 3, progress: 40, chunk: 2, line: 17 };
        assert_eq!(cursor.to_string(), "e3-p40-l2.17");
        assert_eq!("e3-p40-l2.17".parse(), Ok(cursor));
        for bad in
            ["", "e3", "e3-p40-l2", "e-1-p0-l0.0", "e3-p40-l2.17-", "e+3-p40-l2.1", "e3-p4-l2.x"]
        {
            assert_eq!(bad.parse::<Cursor>(), Err(()), "{bad}");
        }
    }
}
