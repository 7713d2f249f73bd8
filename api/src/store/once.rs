//! Creating a job once, however often the request is repeated.

use chrono::TimeDelta;

use super::{Db, Doing, Result, on, within, writing};
use crate::domain::{
    id::{JobId, UserId},
    job::Job,
    time::Timestamp,
    value::Values,
    webhook::Callback,
};

/// How long a key is remembered, in hours.
const REMEMBERED: TimeDelta = TimeDelta::hours(24);

/// What makes repetitions of a request known as such.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Once {
    /// The client's key, unique among those of one owner.
    pub key: String,
    /// Tells a repetition from another request with the same key.
    pub fingerprint: Vec<u8>,
}

impl Db {
    /// The job that a request with this key has made, and that request's fingerprint.
    pub async fn job_made(
        &self,
        owner: UserId,
        key: &str,
        now: Timestamp,
    ) -> Result<Option<(JobId, Vec<u8>)>> {
        const SQL: &str = "SELECT job_id, fingerprint FROM idempotency_keys WHERE owner = $1 AND key = $2 AND created_at > $3";
        on!(self, |pool| sqlx::query_as(SQL)
            .bind(owner)
            .bind(key)
            .bind(now - REMEMBERED)
            .fetch_optional(pool)
            .await)
        .doing("reading an idempotency key")
    }

    /// Stores a new job together with its key; says whether it did. If another request with this key was faster, nothing is stored.
    pub async fn job_add_once(
        &self,
        job: &Job,
        inputs: &Values,
        callback: Option<&Callback>,
        once: &Once,
    ) -> Result<bool> {
        // A racing request waits here until the first one has committed.
        const TAKE: &str = "INSERT INTO idempotency_keys (owner, key, fingerprint, job_id, created_at) VALUES ($1, $2, $3, $4, $5) \
                            ON CONFLICT (owner, key) DO UPDATE \
                            SET fingerprint = excluded.fingerprint, job_id = excluded.job_id, created_at = excluded.created_at \
                            WHERE idempotency_keys.created_at <= $6 RETURNING job_id";
        const FORGET: &str = "DELETE FROM idempotency_keys WHERE created_at <= $1";
        let too_old = job.created_at - REMEMBERED;
        let mut tx = self.begin().await?;
        let taken: Option<JobId> = within!(tx, |connection| {
            let query = sqlx::query_scalar(TAKE)
                .bind(job.owner)
                .bind(&once.key)
                .bind(&once.fingerprint)
                .bind(job.id);
            query.bind(job.created_at).bind(too_old).fetch_optional(connection).await
        })
        .doing("writing an idempotency key")?;
        if taken.is_none() {
            return Ok(false);
        }
        tx.job_add(job, inputs, callback).await?;
        tx.commit().await?;
        // Beside the transaction, and without consequence if it fails: the next one does it.
        let forgotten =
            writing!(self, |pool| sqlx::query(FORGET).bind(too_old).execute(pool).await.map(drop));
        if let Err(error) = forgotten {
            tracing::warn!(%error, "old idempotency keys stay");
        }
        Ok(true)
    }
}
