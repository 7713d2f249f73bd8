//! The books: what jobs have used. Written once, with the end of a job, and kept when the job is deleted.

use super::{Db, Doing, Result, Tx, on, within};
use crate::domain::{
    id::{JobId, UserId},
    job::Job,
    time::Timestamp,
    usage::{TotalUsage, Usage},
};

impl Db {
    /// What a job has used; `None` before its end, and if it never ran.
    pub async fn job_usage(&self, id: JobId) -> Result<Option<Usage>> {
        const SQL: &str = "SELECT cpu_micros, cpu_source, wall_micros, peak_memory FROM job_usage WHERE job_id = $1";
        on!(self, |pool| sqlx::query_as(SQL).bind(id).fetch_optional(pool).await)
            .doing("reading what a job has used")
    }

    /// What all jobs of a user have used.
    pub async fn user_usage(&self, owner: UserId) -> Result<TotalUsage> {
        // Postgres makes NUMERIC of a sum of BIGINT.
        const SQL: &str = "SELECT COUNT(*) AS jobs, CAST(COALESCE(SUM(cpu_micros), 0) AS BIGINT) AS cpu_micros, \
                           CAST(COALESCE(SUM(CASE WHEN cpu_source = 'RESERVED' THEN cpu_micros END), 0) AS BIGINT) AS reserved_micros, \
                           CAST(COALESCE(SUM(wall_micros), 0) AS BIGINT) AS wall_micros FROM job_usage WHERE owner = $1";
        on!(self, |pool| sqlx::query_as(SQL).bind(owner).fetch_one(pool).await)
            .doing("summing up what a user's jobs have used")
    }
}

impl Tx {
    pub(super) async fn usage_add(&mut self, job: &Job, usage: Usage, at: Timestamp) -> Result<()> {
        const SQL: &str = "INSERT INTO job_usage (job_id, owner, solver_key, solver_version, cpu_micros, cpu_source, wall_micros, peak_memory, stopped_at) \
                           VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)";
        within!(*self, |connection| {
            let query = sqlx::query(SQL)
                .bind(job.id)
                .bind(job.owner)
                .bind(&job.solver_key)
                .bind(&job.solver_version);
            let query = query.bind(usage.cpu_micros).bind(usage.cpu_source).bind(usage.wall_micros);
            query.bind(usage.peak_memory).bind(at).execute(connection).await.map(drop)
        })
        .doing("writing what a job has used")
    }
}
