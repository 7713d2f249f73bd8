//! The log stream: newline-delimited JSON from the first line of a job's log to its end.

use std::collections::VecDeque;

use actix_web::web::Bytes;
use futures_util::{Stream, stream};
use serde::Serialize;
use serde_json::json;
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        KnownFormat, ObjectBuilder, Ref, RefOr, Schema, SchemaFormat, extensions::Extensions,
        schema::Type,
    },
};

use crate::{
    domain::{
        id::{JobId, UserId},
        job::log_level,
    },
    error::{ApiError, ErrorBody},
    store::{self, Changed, Db, LogChunk, Result},
};

/// How many chunks are read at once. A chunk is what arrived together: of a solver that takes its time that is one line, and of one that
/// does not 64 KiB.
pub(super) const CHUNKS: i64 = 64;

/// A line of a job's log.
#[derive(Serialize, ToSchema)]
pub struct JobLog {
    #[schema(value_type = uuid::Uuid)]
    job_id: JobId,
    /// Names a step of a workflow; none here.
    node_id: Option<uuid::Uuid>,
    /// 40 for errors, 30 for warnings, 20 for everything else.
    log_level: i32,
    /// The line, without its time.
    messages: Vec<String>,
}

impl JobLog {
    /// A line of the stored log: its time, a space, its message.
    pub(super) fn new(job_id: JobId, line: &str) -> Self {
        let message = line.split_once(' ').map_or("", |(_time, message)| message);
        Self {
            job_id,
            node_id: None,
            log_level: log_level(message),
            messages: vec![message.to_owned()],
        }
    }
}

/// The stream of them. As bytes, because generated clients cannot read newline-delimited JSON; the extension says what OpenAPI 3.1 cannot:
/// what each line is.
pub struct Lines;

impl ToSchema for Lines {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push((JobLog::name().into(), JobLog::schema()));
    }
}

impl PartialSchema for Lines {
    fn schema() -> RefOr<Schema> {
        let item = json!({"anyOf": [
            Ref::from_schema_name(JobLog::name()),
            Ref::from_schema_name(ErrorBody::name()),
        ]});
        ObjectBuilder::new()
            .schema_type(Type::String)
            .format(Some(SchemaFormat::KnownFormat(KnownFormat::Binary)))
            .extensions(Some(Extensions::builder().add("x-itemSchema", item).build()))
            .into()
    }
}

struct Follower {
    db: Db,
    job: JobId,
    owner: UserId,
    changed: Changed,
    after: i32,
    /// Chunks that are still to be sent.
    read: VecDeque<LogChunk>,
}

/// Follows the log of a job until the job has ended or is deleted. Several may follow at once, each from the first line.
pub(super) fn follow(db: Db, job: JobId, owner: UserId) -> impl Stream<Item = Result<Bytes>> {
    let changed = db.job_changes(job);
    let follower = Follower { changed, db, job, owner, after: 0, read: VecDeque::new() };
    stream::unfold(Some(follower), |follower| async move {
        let mut follower = follower?;
        match follower.next().await {
            Ok(lines) => Some((Ok(lines?), Some(follower))),
            // The answer has begun long ago: all that is left is to say why it ends here.
            Err(error) => Some((Ok(ApiError::from(error).line()), None)),
        }
    })
}

impl Follower {
    /// The next lines, at least one; `None` at the end.
    async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            if let Some(chunk) = self.read.pop_front() {
                self.after = chunk.seq;
                return Ok(Some(self.lines(&chunk)));
            }
            // The state first: a job that had ended by then has all its log by now.
            let ended = match self.db.job_get(self.job, self.owner).await {
                Ok(job) => job.state.is_final(),
                Err(store::Error::NotFound { .. }) => return Ok(None),
                Err(error) => return Err(error),
            };
            self.read = self.db.job_log(self.job, self.after, CHUNKS).await?.into();
            if self.read.is_empty() {
                if ended {
                    return Ok(None);
                }
                self.changed.wait().await;
            }
        }
    }

    fn lines(&self, chunk: &LogChunk) -> Bytes {
        let mut text = String::new();
        for line in chunk.text.lines() {
            text += &one_line(&JobLog::new(self.job, line));
            text.push('\n');
        }
        text.into()
    }
}

/// JSON that stays on one line, also for clients that cut at every kind of line end.
pub(super) fn one_line(value: &impl Serialize) -> String {
    // Strings and numbers alone: it cannot fail.
    let json = serde_json::to_string(value).unwrap_or_default();
    json.replace('\u{85}', r"\u0085").replace('\u{2028}', r"\u2028").replace('\u{2029}', r"\u2029")
}
