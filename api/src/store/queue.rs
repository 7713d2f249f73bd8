//! The queue: which jobs are next, who holds what already, and taking a job without going over its owner's limits.
//!
//! Of all that an owner has in the queue only the first job is looked at, by index: what is behind it costs nothing.

use std::collections::HashMap;

use super::{Claimed, Db, Doing, Error, Result, Tx, jobs::select, on, within};
use crate::domain::{
    id::{JobId, UserId},
    job::{Job, JobState, Lease, Transition},
    resources::{Held, OwnerLimits},
    time::Timestamp,
};

/// Queued jobs that take something of a machine, in the words of their index.
macro_rules! queued {
    () => {
        "state IN ('PUBLISHED', 'WAITING_FOR_RESOURCES') AND stop_requested_at IS NULL AND nano_cpus > 0 "
    };
}

/// What jobs take together.
macro_rules! sums {
    () => {
        "COUNT(*) AS jobs, CAST(COALESCE(SUM(nano_cpus), 0) AS BIGINT) AS nano_cpus, \
         CAST(COALESCE(SUM(memory_bytes), 0) AS BIGINT) AS memory_bytes, CAST(COALESCE(SUM(gpus), 0) AS BIGINT) AS gpus "
    };
}

/// What the running jobs of an owner take together.
#[derive(sqlx::FromRow)]
struct OwnerHeld {
    owner: UserId,
    #[sqlx(flatten)]
    held: Held,
}

impl Db {
    /// The oldest job in the queue of each owner who has one.
    pub async fn queue_heads(&self) -> Result<Vec<Job>> {
        // From owner to owner by the index, in one jump each.
        const SQL: &str = select!(
            "WHERE id IN (WITH RECURSIVE owners (owner) AS ( \
               SELECT (SELECT owner FROM jobs WHERE ",
            queued!(),
            "ORDER BY owner LIMIT 1) \
               UNION ALL SELECT (SELECT jobs.owner FROM jobs WHERE jobs.owner > owners.owner AND ",
            queued!(),
            "ORDER BY jobs.owner LIMIT 1) FROM owners WHERE owners.owner IS NOT NULL \
             ) SELECT (SELECT id FROM jobs WHERE jobs.owner = owners.owner AND ",
            queued!(),
            "ORDER BY submitted_at, id LIMIT 1) FROM owners WHERE owners.owner IS NOT NULL)"
        );
        on!(self, |pool| sqlx::query_as(SQL).fetch_all(pool).await).doing("reading the queue")
    }

    /// The oldest job in the queue of an owner.
    pub async fn queue_head(&self, owner: UserId) -> Result<Option<Job>> {
        const SQL: &str =
            select!("WHERE owner = $1 AND ", queued!(), "ORDER BY submitted_at, id LIMIT 1");
        on!(self, |pool| sqlx::query_as(SQL).bind(owner).fetch_optional(pool).await)
            .doing("reading the queue")
    }

    /// Queued jobs that take nothing of a machine, because others do their work.
    pub async fn jobs_queued_for_nothing(&self, limit: i64) -> Result<Vec<Job>> {
        const SQL: &str = select!(
            "WHERE state IN ('PUBLISHED', 'WAITING_FOR_RESOURCES') AND stop_requested_at IS NULL AND nano_cpus = 0 \
             ORDER BY submitted_at, id LIMIT $1"
        );
        on!(self, |pool| sqlx::query_as(SQL).bind(limit).fetch_all(pool).await)
            .doing("reading the queue")
    }

    /// Queued jobs that are to be stopped.
    pub async fn jobs_queued_to_stop(&self, limit: i64) -> Result<Vec<Job>> {
        const SQL: &str = select!(
            "WHERE state IN ('PUBLISHED', 'WAITING_FOR_RESOURCES') AND stop_requested_at IS NOT NULL \
             ORDER BY submitted_at, id LIMIT $1"
        );
        on!(self, |pool| sqlx::query_as(SQL).bind(limit).fetch_all(pool).await)
            .doing("reading the queue")
    }

    /// What the running jobs of each owner take, whichever service runs them.
    pub async fn owners_held(&self) -> Result<HashMap<UserId, Held>> {
        const SQL: &str = concat!(
            "SELECT owner, ",
            sums!(),
            "FROM jobs WHERE lease IS NOT NULL AND nano_cpus > 0 GROUP BY owner"
        );
        let rows: Vec<OwnerHeld> = on!(self, |pool| sqlx::query_as(SQL).fetch_all(pool).await)
            .doing("adding up the running jobs")?;
        Ok(rows.into_iter().map(|row| (row.owner, row.held)).collect())
    }

    /// Puts a job into the queue as [`Self::job_publish`] does, unless its owner has `most` jobs there.
    pub async fn job_publish_within(
        &self,
        id: JobId,
        owner: UserId,
        most: i64,
        now: Timestamp,
    ) -> Result<(Job, bool)> {
        const SQL: &str = concat!("SELECT COUNT(*) FROM jobs WHERE owner = $1 AND ", queued!());
        self.job_get(id, owner).await?;
        let mut tx = self.begin().await?;
        let mut job = tx.job_locked(id).await?;
        if job.state != JobState::NotStarted {
            return Ok((job, false));
        }
        tx.owner_locked(owner).await?;
        let queued: i64 = within!(tx, |connection| sqlx::query_scalar(SQL)
            .bind(owner)
            .fetch_one(connection)
            .await)
        .doing("counting the queue")?;
        if queued >= most {
            return Err(Error::QueueFull(queued));
        }
        tx.transit(&mut job, Transition::Publish, now).await?;
        tx.commit().await?;
        self.notify(&job);
        Ok((job, true))
    }

    /// Notes why a job is still in the queue although it is its turn, with these lines in its log. Nothing happens to one that somebody has taken
    /// meanwhile.
    pub async fn job_wait(
        &self,
        id: JobId,
        reason: &str,
        lines: Option<&str>,
        now: Timestamp,
    ) -> Result<()> {
        let mut tx = self.begin().await?;
        let mut job = tx.job_locked(id).await?;
        if !job.state.is_queued() {
            return Ok(());
        }
        let reason = reason.to_owned();
        if job.state == JobState::Published {
            tx.transit(&mut job, Transition::Wait { reason }, now).await?;
        } else {
            job.waiting = Some(reason);
            tx.job_update(&job).await?;
        }
        // While the job is locked nobody can take it, and nobody else writes its log.
        if let Some(lines) = lines {
            tx.log_append(id, lines).await?;
        }
        tx.commit().await?;
        self.notify(&job);
        Ok(())
    }

    /// Takes a queued job if its owner's limits allow; `None` if they do not, or if somebody else was faster. Exact, however many
    /// services share the database.
    pub async fn job_claim_within(
        &self,
        id: JobId,
        lease: &Lease,
        limits: &OwnerLimits,
        now: Timestamp,
    ) -> Result<Option<Claimed>> {
        let mut tx = self.begin().await?;
        let mut job = tx.job_locked(id).await?;
        if !job.state.is_queued() {
            return Ok(None);
        }
        let held = tx.owner_held(job.owner).await?;
        if limits.refuse(held, job.resources).is_some() {
            return Ok(None);
        }
        tx.transit(&mut job, Transition::Claim(lease.clone()), now).await?;
        tx.commit().await?;
        self.notify(&job);
        self.job_claimed(job, lease).await.map(Some)
    }
}

impl Tx {
    /// What an owner's running jobs take. Until the end of the transaction nobody else asks.
    async fn owner_held(&mut self, owner: UserId) -> Result<Held> {
        const SQL: &str = concat!(
            "SELECT ",
            sums!(),
            "FROM jobs WHERE lease IS NOT NULL AND nano_cpus > 0 AND owner = $1"
        );
        self.owner_locked(owner).await?;
        within!(*self, |connection| sqlx::query_as(SQL).bind(owner).fetch_one(connection).await)
            .doing("adding up an owner's running jobs")
    }
}
