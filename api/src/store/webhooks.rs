//! Callbacks: stored with their job, due with its end, and claimed by whoever delivers them. A claim lasts for a while; one that was not
//! answered by then is taken for lost and the callback is due again, so it is delivered at least once.

use serde_json::json;

use super::{Db, Doing, Result, Tx, not_found, on, within, writing};
use crate::domain::{
    id::{JobId, UserId},
    job::Job,
    time::Timestamp,
    webhook::{Callback, CallbackState, CallbackStatus, Delivery, JobMessage},
};

impl Db {
    /// What became of the callback of this owner's job.
    pub async fn callback_get(&self, id: JobId, owner: UserId) -> Result<CallbackStatus> {
        const SQL: &str = "SELECT job_id, url, webhooks.state, attempts, next_attempt_at, last_result \
                           FROM webhooks JOIN jobs ON jobs.id = job_id WHERE job_id = $1 AND owner = $2";
        let status =
            on!(self, |pool| sqlx::query_as(SQL).bind(id).bind(owner).fetch_optional(pool).await)
                .doing("reading a callback")?;
        status.map_or_else(|| not_found("callback of job", &id), Ok)
    }

    /// Takes the callback that has been due for longest, if there is one; nobody else gets it before `until`.
    pub async fn callback_claim(
        &self,
        now: Timestamp,
        until: Timestamp,
    ) -> Result<Option<Delivery>> {
        const DUE: &str = "SELECT job_id FROM webhooks WHERE next_attempt_at <= $1 ORDER BY next_attempt_at LIMIT 1";
        const CLAIM: &str = "UPDATE webhooks SET attempts = attempts + 1, next_attempt_at = $3 \
                             WHERE job_id = $1 AND next_attempt_at <= $2 RETURNING job_id, url, secret, payload, attempts";
        loop {
            // Two statements: mostly nothing is due, and looking takes no lock.
            let due: Option<JobId> =
                on!(self, |pool| sqlx::query_scalar(DUE).bind(now).fetch_optional(pool).await)
                    .doing("looking for callbacks")?;
            let Some(id) = due else { return Ok(None) };
            let claimed = writing!(self, |pool| {
                let query = sqlx::query_as(CLAIM).bind(id).bind(now).bind(until);
                query.fetch_optional(pool).await
            });
            // If there is none, somebody was faster.
            if let Some(delivery) = claimed.doing("claiming a callback")? {
                return Ok(Some(delivery));
            }
        }
    }

    /// Writes down what came of an attempt. Without a next one, nothing is kept but that. If somebody else has claimed it since, what they
    /// find counts.
    pub async fn callback_attempted(
        &self,
        delivery: &Delivery,
        state: CallbackState,
        next: Option<Timestamp>,
        result: &str,
    ) -> Result<()> {
        const SQL: &str = "UPDATE webhooks SET state = $3, next_attempt_at = $4, last_result = $5, \
                           secret = CASE WHEN $6 THEN secret END, payload = CASE WHEN $6 THEN payload END \
                           WHERE job_id = $1 AND attempts = $2 AND state = 'DUE'";
        writing!(self, |pool| {
            let query = sqlx::query(SQL).bind(delivery.job_id).bind(delivery.attempts).bind(state);
            let query = query.bind(next).bind(result).bind(next.is_some());
            query.execute(pool).await.map(drop)
        })
        .doing("writing what came of a callback")
    }
}

impl Tx {
    pub(super) async fn callback_add(&mut self, id: JobId, callback: &Callback) -> Result<()> {
        const SQL: &str = "INSERT INTO webhooks (job_id, url, secret, state, attempts) VALUES ($1, $2, $3, $4, 0)";
        within!(*self, |connection| {
            let query = sqlx::query(SQL).bind(id).bind(callback.url.as_str());
            let query = query.bind(&callback.secret).bind(CallbackState::Waiting);
            query.execute(connection).await.map(drop)
        })
        .doing("adding a callback")
    }

    /// The end of a job makes its callback due, if it has one.
    pub(super) async fn callback_due(&mut self, job: &Job) -> Result<()> {
        const SQL: &str =
            "UPDATE webhooks SET payload = $2, state = $3, next_attempt_at = $4 WHERE job_id = $1";
        let Some(message) = JobMessage::of(job) else { return Ok(()) };
        within!(*self, |connection| {
            let query = sqlx::query(SQL).bind(job.id).bind(json!(message).to_string());
            let query = query.bind(CallbackState::Due).bind(job.stopped_at);
            query.execute(connection).await.map(drop)
        })
        .doing("making a callback due")
    }

    /// Nothing is told of a job that its owner has deleted.
    pub(super) async fn callback_drop(&mut self, id: JobId) -> Result<()> {
        const SQL: &str = "DELETE FROM webhooks WHERE job_id = $1";
        within!(*self, |connection| sqlx::query(SQL).bind(id).execute(connection).await.map(drop))
            .doing("dropping a callback")
    }
}
