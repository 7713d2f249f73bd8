//! Jobs, their history and their logs. `jobs.state` is written by one function here, [`Tx::transit`], and by nothing else.
//!
//! Owners publish, stop and delete. Only a dispatcher gets a [`Claimed`], and only with it can a job start to run and end. Ending gives
//! the lease up, so no job ends twice.

use std::sync::atomic::{AtomicI32, Ordering};

use super::{Changed, Db, Doing, Error, Result, Tx, not_found, on, within, writing};
use crate::domain::{
    file::File,
    id::{FileId, JobId, StudyId, UserId},
    job::{IllegalTransition, Job, JobState, Lease, Transition},
    time::Timestamp,
    usage::Usage,
    value::Values,
    webhook::Callback,
};

/// The right to run a job.
#[derive(Debug)]
pub struct Claimed {
    /// The job as it was last seen.
    pub job: Job,
    /// What its container has used, once it has ended: goes into the books with the job's end.
    pub usage: Option<Usage>,
    instance: String,
    /// How many chunks its log has.
    chunks: AtomicI32,
}

impl Claimed {
    /// The position of the next chunk of the log: whoever holds the lease numbers them.
    pub fn next_chunk(&self) -> i32 {
        self.chunks.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// Some whole lines of a job's log.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct LogChunk {
    /// Position in the log, from 1.
    pub seq: i32,
    /// Lines, each with its newline.
    pub text: String,
}

/// A step of a job's life as its history keeps it.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct JobStep {
    /// Position in the history, from 1.
    pub seq: i32,
    /// The state it led to.
    pub state: JobState,
    /// When.
    pub at: Timestamp,
}

/// `SELECT` of jobs without what may be large.
macro_rules! select {
    ($($rest:tt)*) => {
        concat!(
            "SELECT id, owner, parent_id, step, study_id, solver_key, solver_version, inputs_checksum, nano_cpus, memory_bytes, gpus, state, progress, \
             created_at, submitted_at, waiting, started_at, stopped_at, stop_requested_at, deleted_at, assets_deleted_at, lease, container, error, log_key FROM jobs ",
            $($rest)*
        )
    };
}

pub(super) use select;

/// For owners.
impl Db {
    /// Stores a new job with its inputs and where its end is to be told, and the first row of its history.
    pub async fn job_add(
        &self,
        job: &Job,
        inputs: &Values,
        callback: Option<&Callback>,
    ) -> Result<()> {
        let mut tx = self.begin().await?;
        tx.job_add(job, inputs, callback).await?;
        tx.commit().await
    }

    /// A job of this owner.
    pub async fn job_get(&self, id: JobId, owner: UserId) -> Result<Job> {
        const SQL: &str = select!("WHERE id = $1 AND owner = $2 AND deleted_at IS NULL");
        let job =
            on!(self, |pool| sqlx::query_as(SQL).bind(id).bind(owner).fetch_optional(pool).await)
                .doing("reading a job")?;
        job.map_or_else(|| not_found("job", &id), Ok)
    }

    /// A page of an owner's jobs of one study, newest first, and the number of all.
    pub async fn study_jobs_page(
        &self,
        study: StudyId,
        owner: UserId,
        limit: i64,
        offset: i64,
    ) -> Result<(Vec<Job>, i64)> {
        const PAGE: &str = select!(
            "WHERE owner = $1 AND study_id = $2 AND deleted_at IS NULL ORDER BY created_at DESC, id DESC LIMIT $3 OFFSET $4"
        );
        const COUNT: &str =
            "SELECT count(*) FROM jobs WHERE owner = $1 AND study_id = $2 AND deleted_at IS NULL";
        on!(self, |pool| {
            match sqlx::query_scalar(COUNT).bind(owner).bind(study).fetch_one(pool).await {
                Ok(total) => {
                    let page = sqlx::query_as(PAGE).bind(owner).bind(study).bind(limit);
                    page.bind(offset).fetch_all(pool).await.map(|jobs| (jobs, total))
                }
                Err(error) => Err(error),
            }
        })
        .doing("listing a study's jobs")
    }

    /// Puts a job into the queue. Says whether this call did it: a job that was started before stays as it is.
    pub async fn job_publish(
        &self,
        id: JobId,
        owner: UserId,
        now: Timestamp,
    ) -> Result<(Job, bool)> {
        self.job_get(id, owner).await?;
        match self.step(id, None, Transition::Publish, now).await {
            Ok(job) => Ok((job, true)),
            Err(Error::Illegal(_)) => Ok((self.job_get(id, owner).await?, false)),
            Err(error) => Err(error),
        }
    }

    /// Stores the wish to stop a job that is queued or runs; a job in any other state stays as it is.
    pub async fn job_request_stop(&self, id: JobId, owner: UserId, now: Timestamp) -> Result<Job> {
        const SQL: &str = "UPDATE jobs SET stop_requested_at = COALESCE(stop_requested_at, $2) \
                           WHERE id = $1 AND state IN ('PUBLISHED', 'WAITING_FOR_RESOURCES', 'PENDING', 'STARTED')";
        self.job_get(id, owner).await?;
        writing!(self, |pool| sqlx::query(SQL).bind(id).bind(now).execute(pool).await.map(drop))
            .doing("stopping a job")?;
        self.job_get(id, owner).await
    }

    /// Hides a job from its owner for good and stops it; the dispatcher clears it away once it has ended, with the jobs of its steps. One
    /// of those alone cannot go: the step would run again.
    pub async fn job_request_delete(&self, id: JobId, owner: UserId, now: Timestamp) -> Result<()> {
        const SQL: &str = "UPDATE jobs SET deleted_at = $3, stop_requested_at = COALESCE(stop_requested_at, $3) \
                           WHERE id = $1 AND owner = $2 AND deleted_at IS NULL";
        let job = self.job_get(id, owner).await?;
        if let Some(whole) = job.parent_id {
            return Err(Error::Conflict(format!(
                "job `{id}` is a step of job `{whole}`: delete that one"
            )));
        }
        let mut tx = self.begin().await?;
        let deleted = within!(tx, |connection| sqlx::query(SQL)
            .bind(id)
            .bind(owner)
            .bind(now)
            .execute(connection)
            .await
            .map(|done| done.rows_affected()))
        .doing("deleting a job")?;
        if deleted == 0 {
            return not_found("job", &id);
        }
        tx.job_unlisted(&job).await?;
        tx.callback_drop(id).await?;
        tx.commit().await
    }

    /// Removes log and outputs of an ended job and of the jobs of its steps. Says which jobs these are and which files there were, so
    /// that their content can go too. Doing it again changes nothing.
    pub async fn job_delete_assets(
        &self,
        id: JobId,
        owner: UserId,
        now: Timestamp,
    ) -> Result<(Vec<JobId>, Vec<FileId>)> {
        const FAMILY: &str = "WITH RECURSIVE family (id) AS ( \
                                SELECT id FROM jobs WHERE id = $1 \
                                UNION ALL SELECT step.id FROM jobs AS step JOIN family ON step.parent_id = family.id \
                              ) SELECT id FROM family";
        const JOB: &str = "UPDATE jobs SET assets_deleted_at = COALESCE(assets_deleted_at, $2), outputs = NULL, log_key = NULL WHERE id = $1";
        const LOG: &str = "DELETE FROM job_logs WHERE job_id = $1";
        if let Some(whole) = self.job_get(id, owner).await?.parent_id {
            return Err(Error::Conflict(format!(
                "job `{id}` is a step of job `{whole}`: delete the assets of that one"
            )));
        }
        let mut tx = self.begin().await?;
        let job = tx.job_locked(id).await?;
        if !job.state.is_final() {
            return Err(Error::Conflict(format!(
                "job `{id}` is {}: its assets can be deleted once it has ended",
                job.state
            )));
        }
        let jobs: Vec<JobId> = within!(tx, |connection| sqlx::query_scalar(FAMILY)
            .bind(id)
            .fetch_all(connection)
            .await)
        .doing("reading a job's steps")?;
        let mut files = Vec::new();
        for id in &jobs {
            within!(tx, |connection| sqlx::query(JOB)
                .bind(id)
                .bind(now)
                .execute(connection)
                .await
                .map(drop))
            .doing("deleting a job's outputs")?;
            within!(tx, |connection| sqlx::query(LOG).bind(id).execute(connection).await.map(drop))
                .doing("deleting a job's log")?;
            files.extend(tx.job_files_remove(*id).await?);
        }
        tx.commit().await?;
        for id in &jobs {
            self.changes.notify(*id);
        }
        Ok((jobs, files))
    }

    /// The values a job was created with.
    pub async fn job_inputs(&self, id: JobId) -> Result<Values> {
        const SQL: &str = "SELECT inputs FROM jobs WHERE id = $1";
        let inputs = on!(self, |pool| sqlx::query_scalar(SQL).bind(id).fetch_optional(pool).await)
            .doing("reading a job's inputs")?;
        inputs.map_or_else(|| not_found("job", &id), Ok)
    }

    /// The values a job ended with; `None` unless it succeeded.
    pub async fn job_outputs(&self, id: JobId) -> Result<Option<Values>> {
        const SQL: &str = "SELECT outputs FROM jobs WHERE id = $1";
        let outputs: Option<Option<Values>> =
            on!(self, |pool| sqlx::query_scalar(SQL).bind(id).fetch_optional(pool).await)
                .doing("reading a job's outputs")?;
        Ok(outputs.flatten())
    }

    /// The owner's notes.
    pub async fn job_metadata(&self, id: JobId) -> Result<Values> {
        const SQL: &str = "SELECT metadata FROM jobs WHERE id = $1";
        let metadata =
            on!(self, |pool| sqlx::query_scalar(SQL).bind(id).fetch_optional(pool).await)
                .doing("reading a job's metadata")?;
        metadata.map_or_else(|| not_found("job", &id), Ok)
    }

    /// Replaces the owner's notes.
    pub async fn job_set_metadata(
        &self,
        id: JobId,
        owner: UserId,
        metadata: &Values,
    ) -> Result<()> {
        const SQL: &str = "UPDATE jobs SET metadata = $3 WHERE id = $1 AND owner = $2 AND deleted_at IS NULL RETURNING id";
        let mut tx = self.begin().await?;
        let changed: Option<JobId> = within!(tx, |connection| sqlx::query_scalar(SQL)
            .bind(id)
            .bind(owner)
            .bind(metadata)
            .fetch_optional(connection)
            .await)
        .doing("replacing a job's metadata")?;
        if changed.is_none() {
            return not_found("job", &id);
        }
        tx.notes_set(id, owner, metadata).await?;
        tx.commit().await
    }

    /// Where a job's log zip lies, when it could not be stored before the end.
    pub async fn job_set_log(&self, id: JobId, log_key: &str) -> Result<()> {
        const SQL: &str =
            "UPDATE jobs SET log_key = $2 WHERE id = $1 AND assets_deleted_at IS NULL";
        writing!(self, |pool| sqlx::query(SQL).bind(id).bind(log_key).execute(pool).await.map(drop))
            .doing("writing where a job's log is")
    }

    /// Whoever waits for a change of this job subscribes first, then looks, then waits.
    pub fn job_changes(&self, id: JobId) -> Changed {
        self.changes.subscribe(id)
    }

    /// The log after a position, at most `limit` chunks.
    pub async fn job_log(&self, id: JobId, after: i32, limit: i64) -> Result<Vec<LogChunk>> {
        const SQL: &str =
            "SELECT seq, text FROM job_logs WHERE job_id = $1 AND seq > $2 ORDER BY seq LIMIT $3";
        on!(self, |pool| sqlx::query_as(SQL).bind(id).bind(after).bind(limit).fetch_all(pool).await)
            .doing("reading a job's log")
    }

    /// The log before a position, at most `limit` chunks, the last one first.
    pub async fn job_log_before(
        &self,
        id: JobId,
        before: i32,
        limit: i64,
    ) -> Result<Vec<LogChunk>> {
        const SQL: &str = "SELECT seq, text FROM job_logs WHERE job_id = $1 AND seq < $2 ORDER BY seq DESC LIMIT $3";
        on!(self, |pool| sqlx::query_as(SQL)
            .bind(id)
            .bind(before)
            .bind(limit)
            .fetch_all(pool)
            .await)
        .doing("reading a job's log")
    }

    /// Bytes of a job's log.
    pub async fn job_log_bytes(&self, id: JobId) -> Result<i64> {
        const SQL: &str = "SELECT CAST(COALESCE(SUM(OCTET_LENGTH(text)), 0) AS BIGINT) FROM job_logs WHERE job_id = $1";
        on!(self, |pool| sqlx::query_scalar(SQL).bind(id).fetch_one(pool).await)
            .doing("measuring a job's log")
    }

    /// The steps of a job's life after a position. They are few.
    pub async fn job_steps(&self, id: JobId, after: i32) -> Result<Vec<JobStep>> {
        const SQL: &str =
            "SELECT seq, state, at FROM job_events WHERE job_id = $1 AND seq > $2 ORDER BY seq";
        on!(self, |pool| sqlx::query_as(SQL).bind(id).bind(after).fetch_all(pool).await)
            .doing("reading a job's history")
    }

    /// The names of a job's steps so far, with the state each led to.
    pub async fn job_history(&self, id: JobId) -> Result<Vec<(String, JobState)>> {
        const SQL: &str = "SELECT name, state FROM job_events WHERE job_id = $1 ORDER BY seq";
        on!(self, |pool| sqlx::query_as(SQL).bind(id).fetch_all(pool).await)
            .doing("reading a job's history")
    }
}

/// For dispatchers.
impl Db {
    /// The jobs this instance runs, or ran before it was restarted.
    pub async fn jobs_leased(&self, lease: &Lease) -> Result<Vec<Job>> {
        const SQL: &str = select!("WHERE lease = $1 ORDER BY id");
        on!(self, |pool| sqlx::query_as(SQL).bind(&lease.instance).fetch_all(pool).await)
            .doing("reading the running jobs")
    }

    /// The right to a job that this instance took earlier.
    pub async fn job_claimed(&self, job: Job, lease: &Lease) -> Result<Claimed> {
        const SQL: &str = "SELECT COALESCE(MAX(seq), 0) FROM job_logs WHERE job_id = $1";
        let chunks: i32 =
            on!(self, |pool| sqlx::query_scalar(SQL).bind(job.id).fetch_one(pool).await)
                .doing("reading how long a job's log is")?;
        let instance = lease.instance.clone();
        Ok(Claimed { job, usage: None, instance, chunks: AtomicI32::new(chunks) })
    }

    /// Those of the jobs this instance runs that are to be stopped.
    pub async fn jobs_leased_to_stop(&self, lease: &Lease) -> Result<Vec<JobId>> {
        const SQL: &str = "SELECT id FROM jobs WHERE lease = $1 AND stop_requested_at IS NOT NULL";
        on!(self, |pool| sqlx::query_scalar(SQL).bind(&lease.instance).fetch_all(pool).await)
            .doing("reading the jobs to stop")
    }

    /// Takes a queued job; `None` if somebody else was faster.
    pub async fn job_claim(
        &self,
        id: JobId,
        lease: &Lease,
        now: Timestamp,
    ) -> Result<Option<Claimed>> {
        match self.step(id, None, Transition::Claim(lease.clone()), now).await {
            Ok(job) => self.job_claimed(job, lease).await.map(Some),
            Err(Error::Illegal(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The container of a claimed job runs, or the first of its steps.
    pub async fn job_start(
        &self,
        claimed: &Claimed,
        container: Option<&str>,
        now: Timestamp,
    ) -> Result<Job> {
        let start = Transition::Start { container: container.map(str::to_owned) };
        self.step(claimed.job.id, Some(claimed), start, now).await
    }

    /// Raises a running job's progress, in percent. It never falls.
    pub async fn job_progress(&self, claimed: &Claimed, percent: i32) -> Result<()> {
        const SQL: &str =
            "UPDATE jobs SET progress = $2 WHERE id = $1 AND progress < $2 AND lease = $3";
        let id = claimed.job.id;
        writing!(self, |pool| sqlx::query(SQL)
            .bind(id)
            .bind(percent)
            .bind(&claimed.instance)
            .execute(pool)
            .await
            .map(drop))
        .doing("writing a job's progress")?;
        self.notify(&claimed.job);
        Ok(())
    }

    /// Adds whole lines to a job's log, at [`Claimed::next_chunk`]. Doing it again changes nothing.
    pub async fn job_log_add(&self, claimed: &Claimed, seq: i32, lines: &str) -> Result<()> {
        const SQL: &str = "INSERT INTO job_logs (job_id, seq, text) \
                           SELECT id, $4, $2 FROM jobs WHERE id = $1 AND lease = $3 ON CONFLICT DO NOTHING";
        let id = claimed.job.id;
        writing!(self, |pool| sqlx::query(SQL)
            .bind(id)
            .bind(lines)
            .bind(&claimed.instance)
            .bind(seq)
            .execute(pool)
            .await
            .map(drop))
        .doing("writing a job's log")?;
        self.changes.notify_of_lines(id);
        Ok(())
    }

    /// Ends a claimed job, or gives it back to the queue; output files and what was used appear with the end, or not at all.
    pub async fn job_finish(
        &self,
        claimed: &Claimed,
        ending: Transition,
        now: Timestamp,
    ) -> Result<Job> {
        self.step(claimed.job.id, Some(claimed), ending, now).await
    }

    /// Puts the job of a step into the queue, on behalf of the job of the whole. Says whether this call did it: never for a step that has
    /// a job, nor once the whole is to be stopped.
    pub async fn job_spawn(
        &self,
        whole: &Claimed,
        mut job: Job,
        inputs: &Values,
        now: Timestamp,
    ) -> Result<bool> {
        const SQL: &str = "SELECT count(*) FROM jobs WHERE parent_id = $1 AND step = $2";
        let mut tx = self.begin().await?;
        let parent = tx.job_locked(whole.job.id).await?;
        if parent.lease.as_ref() != Some(&whole.instance) {
            return Err(Error::Illegal(IllegalTransition { from: parent.state, step: "spawn" }));
        }
        let known: i64 = within!(tx, |connection| sqlx::query_scalar(SQL)
            .bind(parent.id)
            .bind(&job.step)
            .fetch_one(connection)
            .await)
        .doing("looking for a step's job")?;
        if known > 0 || parent.stop_requested_at.is_some() {
            return Ok(false);
        }
        job.parent_id = Some(parent.id);
        tx.job_add(&job, inputs, None).await?;
        tx.transit(&mut job, Transition::Publish, now).await?;
        tx.commit().await?;
        Ok(true)
    }

    /// The jobs of a job's steps, in the order they were created.
    pub async fn job_children(&self, id: JobId) -> Result<Vec<Job>> {
        const SQL: &str = select!("WHERE parent_id = $1 ORDER BY created_at, id");
        on!(self, |pool| sqlx::query_as(SQL).bind(id).fetch_all(pool).await)
            .doing("reading a job's steps")
    }

    /// Deleted jobs that do not run any more; those of steps before that of the whole.
    pub async fn jobs_to_remove(&self, limit: i64) -> Result<Vec<JobId>> {
        const SQL: &str = "WITH RECURSIVE gone (id) AS ( \
                             SELECT id FROM jobs WHERE deleted_at IS NOT NULL AND state IN ('NOT_STARTED', 'SUCCESS', 'FAILED', 'ABORTED') \
                             UNION ALL SELECT step.id FROM jobs AS step JOIN gone ON step.parent_id = gone.id \
                           ) SELECT id FROM gone WHERE NOT EXISTS (SELECT 1 FROM jobs AS step WHERE step.parent_id = gone.id) LIMIT $1";
        on!(self, |pool| sqlx::query_scalar(SQL).bind(limit).fetch_all(pool).await)
            .doing("reading the deleted jobs")
    }

    /// Removes a job with its history, log and output files; says which files there were, so that their content can go too.
    pub async fn job_remove(&self, id: JobId) -> Result<Vec<FileId>> {
        const JOB: &str = "DELETE FROM jobs WHERE id = $1";
        let mut tx = self.begin().await?;
        let files = tx.job_files_remove(id).await?;
        within!(tx, |connection| sqlx::query(JOB).bind(id).execute(connection).await.map(drop))
            .doing("removing a job")?;
        tx.commit().await?;
        self.changes.notify(id);
        Ok(files)
    }

    /// Makes one step of a job's life: locked read, apply, one update, one row of history.
    async fn step(
        &self,
        id: JobId,
        holder: Option<&Claimed>,
        transition: Transition,
        now: Timestamp,
    ) -> Result<Job> {
        let mut tx = self.begin().await?;
        let mut job = tx.job_locked(id).await?;
        let name = transition.name();
        if holder.is_some_and(|claimed| job.lease.as_ref() != Some(&claimed.instance)) {
            return Err(Error::Illegal(IllegalTransition { from: job.state, step: name }));
        }
        let results = if let Transition::Succeed { outputs, files, .. } = &transition {
            Some((outputs.clone(), files.clone()))
        } else {
            None
        };
        tx.transit(&mut job, transition, now).await?;
        if let Some((outputs, files)) = results {
            tx.results_add(&job, &outputs, &files).await?;
        }
        if let Some(usage) =
            holder.and_then(|claimed| claimed.usage).filter(|_| job.state.is_final())
        {
            tx.usage_add(&job, usage, now).await?;
        }
        tx.callback_due(&job).await?;
        tx.commit().await?;
        self.notify(&job);
        Ok(job)
    }

    /// What changes a step changes the whole.
    pub(super) fn notify(&self, job: &Job) {
        self.changes.notify(job.id);
        if let Some(whole) = job.parent_id {
            self.changes.notify(whole);
        }
    }
}

impl Tx {
    pub(super) async fn job_add(
        &mut self,
        job: &Job,
        inputs: &Values,
        callback: Option<&Callback>,
    ) -> Result<()> {
        const SQL: &str = "INSERT INTO jobs (id, owner, solver_key, solver_version, inputs, inputs_checksum, metadata, state, progress, \
                           created_at, parent_id, step, study_id, nano_cpus, memory_bytes, gpus) \
                           VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)";
        // A step is in no list.
        if job.parent_id.is_none() {
            self.job_listed(job).await?;
        }
        within!(*self, |connection| {
            let query = sqlx::query(SQL)
                .bind(job.id)
                .bind(job.owner)
                .bind(&job.solver_key)
                .bind(&job.solver_version);
            let query = query
                .bind(inputs)
                .bind(&job.inputs_checksum)
                .bind(Values::default())
                .bind(job.state);
            let query = query.bind(job.progress).bind(job.created_at).bind(job.parent_id);
            let query = query.bind(&job.step).bind(job.study_id).bind(job.resources.nano_cpus);
            let query = query.bind(job.resources.memory_bytes).bind(job.resources.gpus);
            query.execute(connection).await.map(drop)
        })
        .doing("adding a job")?;
        if let Some(callback) = callback {
            self.callback_add(job.id, callback).await?;
        }
        self.event_add(job, "create", job.created_at).await
    }

    /// Apply, one update, one row of history.
    pub(super) async fn transit(
        &mut self,
        job: &mut Job,
        transition: Transition,
        now: Timestamp,
    ) -> Result<()> {
        let name = transition.name();
        job.apply(transition, now)?;
        self.job_update(job).await?;
        self.event_add(job, name, now).await
    }

    pub(super) async fn job_locked(&mut self, id: JobId) -> Result<Job> {
        // SQLite holds the lock of the whole database already.
        let job = match self {
            Self::Sqlite(tx) => {
                sqlx::query_as(select!("WHERE id = $1")).bind(id).fetch_optional(&mut **tx).await
            }
            Self::Postgres(tx) => {
                sqlx::query_as(select!("WHERE id = $1 FOR UPDATE"))
                    .bind(id)
                    .fetch_optional(&mut **tx)
                    .await
            }
        };
        job.doing("locking a job")?.map_or_else(|| not_found("job", &id), Ok)
    }

    async fn job_files_remove(&mut self, id: JobId) -> Result<Vec<FileId>> {
        const SQL: &str = "DELETE FROM files WHERE job_id = $1 RETURNING id";
        within!(*self, |connection| sqlx::query_scalar(SQL).bind(id).fetch_all(connection).await)
            .doing("removing a job's files")
    }

    pub(super) async fn job_update(&mut self, job: &Job) -> Result<()> {
        const SQL: &str = "UPDATE jobs SET state = $2, progress = $3, submitted_at = $4, started_at = $5, stopped_at = $6, lease = $7, \
                           container = $8, error = $9, log_key = $10, waiting = $11 WHERE id = $1";
        within!(*self, |connection| {
            let query = sqlx::query(SQL)
                .bind(job.id)
                .bind(job.state)
                .bind(job.progress)
                .bind(job.submitted_at);
            let query = query
                .bind(job.started_at)
                .bind(job.stopped_at)
                .bind(&job.lease)
                .bind(&job.container);
            let query = query.bind(&job.error).bind(&job.log_key).bind(&job.waiting);
            query.execute(connection).await.map(drop)
        })
        .doing("updating a job")
    }

    async fn results_add(&mut self, job: &Job, outputs: &Values, files: &[File]) -> Result<()> {
        const SQL: &str = "UPDATE jobs SET outputs = $2 WHERE id = $1";
        within!(*self, |connection| sqlx::query(SQL)
            .bind(job.id)
            .bind(outputs)
            .execute(connection)
            .await
            .map(drop))
        .doing("writing a job's outputs")?;
        for file in files {
            self.file_add(file).await?;
        }
        Ok(())
    }

    /// Adds whole lines to a job's log. Fails if somebody else does so in this moment.
    pub(super) async fn log_append(&mut self, id: JobId, lines: &str) -> Result<()> {
        const SQL: &str = "INSERT INTO job_logs (job_id, seq, text) \
                           SELECT $1, COALESCE(MAX(seq), 0) + 1, $2 FROM job_logs WHERE job_id = $1";
        within!(*self, |connection| sqlx::query(SQL)
            .bind(id)
            .bind(lines)
            .execute(connection)
            .await
            .map(drop))
        .doing("writing a job's log")
    }

    async fn event_add(&mut self, job: &Job, name: &str, now: Timestamp) -> Result<()> {
        const SQL: &str = "INSERT INTO job_events (job_id, seq, name, state, at) \
                           SELECT $1, COALESCE(MAX(seq), 0) + 1, $2, $3, $4 FROM job_events WHERE job_id = $1";
        within!(*self, |connection| {
            sqlx::query(SQL)
                .bind(job.id)
                .bind(name)
                .bind(job.state)
                .bind(now)
                .execute(connection)
                .await
                .map(drop)
        })
        .doing("writing a job's history")
    }
}
