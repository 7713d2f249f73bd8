//! The services on this database, and what becomes of the jobs of one that is gone. Each writes when it was there by its own clock, so
//! moments of different services cannot be compared: that one *changes* is what says that its service is there.

use super::{Db, Doing, Result, Tx, within, writing};
use crate::domain::{
    id::JobId,
    job::{Job, Lease, Transition},
    time::Timestamp,
};

/// A service as it was last seen.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Instance {
    /// What the leases of its jobs hold.
    pub name: String,
    /// When it said that it was there.
    pub seen_at: Timestamp,
}

impl Db {
    /// Says that an instance is there.
    pub async fn instance_seen(&self, lease: &Lease, now: Timestamp) -> Result<()> {
        const SQL: &str = "INSERT INTO instances (name, seen_at) VALUES ($1, $2) \
                           ON CONFLICT (name) DO UPDATE SET seen_at = excluded.seen_at";
        writing!(self, |pool| sqlx::query(SQL)
            .bind(&lease.instance)
            .bind(now)
            .execute(pool)
            .await
            .map(drop))
        .doing("saying that this service is there")
    }

    /// The other instances that hold jobs. One that has never said that it was there counts as seen now.
    pub async fn instances_holding(&self, lease: &Lease, now: Timestamp) -> Result<Vec<Instance>> {
        const UNKNOWN: &str = "INSERT INTO instances (name, seen_at) \
                               SELECT DISTINCT lease, $1 FROM jobs \
                               WHERE lease IS NOT NULL AND lease NOT IN (SELECT name FROM instances) \
                               ON CONFLICT DO NOTHING";
        const SQL: &str = "SELECT name, seen_at FROM instances \
                           WHERE name <> $1 AND EXISTS (SELECT 1 FROM jobs WHERE lease = instances.name) ORDER BY name";
        writing!(self, |pool| match sqlx::query(UNKNOWN).bind(now).execute(pool).await {
            Ok(_) => sqlx::query_as(SQL).bind(&lease.instance).fetch_all(pool).await,
            Err(error) => Err(error),
        })
        .doing("looking for other services")
    }

    /// Ends a job of an instance that is gone, with last lines of its log. Says whether this call did it: never if the instance has been
    /// there since.
    pub async fn job_lose(
        &self,
        id: JobId,
        gone: &Instance,
        ending: Transition,
        lines: &str,
        now: Timestamp,
    ) -> Result<bool> {
        let mut tx = self.begin().await?;
        let Some(mut job) = tx.job_of_gone(id, gone).await? else { return Ok(false) };
        tx.log_append(id, lines).await?;
        tx.transit(&mut job, ending, now).await?;
        tx.callback_due(&job).await?;
        tx.commit().await?;
        self.notify(&job);
        Ok(true)
    }

    /// Gives a job of an instance that is gone to another one. Says whether this call did it: never if the instance has been there since.
    pub async fn job_take_over(
        &self,
        id: JobId,
        gone: &Instance,
        lease: &Lease,
        lines: &str,
    ) -> Result<bool> {
        let mut tx = self.begin().await?;
        let Some(mut job) = tx.job_of_gone(id, gone).await? else { return Ok(false) };
        tx.log_append(id, lines).await?;
        job.lease = Some(lease.instance.clone());
        tx.job_update(&job).await?;
        tx.commit().await?;
        self.notify(&job);
        Ok(true)
    }
}

impl Tx {
    /// A job, locked, if the instance that holds it is still as it was seen; until the end of the transaction it cannot come back.
    async fn job_of_gone(&mut self, id: JobId, gone: &Instance) -> Result<Option<Job>> {
        const SQL: &str =
            "UPDATE instances SET seen_at = seen_at WHERE name = $1 RETURNING seen_at";
        let seen: Option<Timestamp> = within!(*self, |connection| sqlx::query_scalar(SQL)
            .bind(&gone.name)
            .fetch_optional(connection)
            .await)
        .doing("looking for another service")?;
        if seen != Some(gone.seen_at) {
            return Ok(None);
        }
        let job = self.job_locked(id).await?;
        Ok(Some(job).filter(|job| job.lease.as_ref() == Some(&gone.name)))
    }
}
