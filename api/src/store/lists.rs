//! Lists of jobs: which page holds what, and how many there are.
//!
//! A page far down a long list costs what the first one costs, and so does the total: `job_counts` says how many jobs each list holds, in
//! runs of about [`RUN`], so that a page is found by adding up runs and skipping less than one. There are counts for all jobs of an owner
//! and for those of each release; lists that are narrowed otherwise are counted, and skipped, job by job.

use std::collections::HashMap;

use sqlx::QueryBuilder;

use super::{Db, Doing, Result, Tx, jobs::select, not_found, on, within};
use crate::domain::{
    filter::{Glob, JobFilter, NoteFilter, fold},
    id::{JobId, UserId},
    job::Job,
    solver::SolverKey,
    time::Timestamp,
    value::Values,
};

/// How many jobs a run holds before the next one begins.
const RUN: i32 = 1000;

/// Which part of a list.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    /// How many jobs at most.
    pub limit: i64,
    /// How many jobs to skip.
    pub offset: i64,
    /// Else newest first.
    pub oldest_first: bool,
}

/// Name of the list of a release.
fn list_of(key: &SolverKey, version: &str) -> String {
    format!("{key}:{version}")
}

/// Name of the list that a filter stands for, if that one is counted.
fn counted_list(filter: &JobFilter) -> Option<String> {
    let JobFilter { releases, states, all_notes, any_notes, created_from, created_before } = filter;
    let narrowed = !(states.is_empty() && all_notes.is_empty() && any_notes.is_empty())
        || created_from.is_some()
        || created_before.is_some();
    match releases.as_deref() {
        _ if narrowed => None,
        None => Some(String::new()),
        Some([(key, version)]) => Some(list_of(key, version)),
        Some(_) => None,
    }
}

/// Writes the conditions of a filter. A macro, because the types of two databases' builders have little in common.
macro_rules! narrow {
    ($query:ident, $owner:expr, $filter:expr) => {{
        let filter: &JobFilter = $filter;
        $query.push("WHERE owner = ").push_bind($owner).push(" AND deleted_at IS NULL");
        match filter.releases.as_deref() {
            None => {}
            Some([(key, version)]) => {
                $query.push(" AND solver_key = ").push_bind(key.clone());
                $query.push(" AND solver_version = ").push_bind(version.clone());
            }
            Some(releases) => {
                $query.push(" AND (solver_key, solver_version) IN (");
                $query.push_values(releases, |mut row, (key, version)| {
                    row.push_bind(key.clone()).push_bind(version.clone());
                });
                $query.push(")");
            }
        }
        if !filter.states.is_empty() {
            let mut states = $query.push(" AND state IN (").separated(", ");
            for state in &filter.states {
                states.push_bind(*state);
            }
            $query.push(")");
        }
        if let Some(from) = filter.created_from {
            $query.push(" AND created_at >= ").push_bind(from);
        }
        if let Some(before) = filter.created_before {
            $query.push(" AND created_at < ").push_bind(before);
        }
        let any = Some(&filter.any_notes[..]).filter(|notes| !notes.is_empty());
        for notes in filter.all_notes.iter().map(std::slice::from_ref).chain(any) {
            $query.push(" AND id IN (SELECT job_id FROM job_notes WHERE owner = ");
            $query.push_bind($owner).push(" AND (");
            for (position, note) in notes.iter().enumerate() {
                $query.push(if position == 0 { "(name = " } else { " OR (name = " });
                $query.push_bind(note.name.clone());
                // An index serves the one better than the other.
                if let Some(text) = note.value.literal() {
                    $query.push(" AND value = ").push_bind(text.to_owned()).push(")");
                } else {
                    $query.push(" AND value LIKE ").push_bind(note.value.like());
                    $query.push(r" ESCAPE '\')");
                }
            }
            $query.push("))");
        }
    }};
}

/// Reads what the head of a statement selects of these jobs, as far as the owner has them.
macro_rules! by_ids {
    ($db:expr, $head:expr, $owner:expr, $ids:expr) => {
        on!($db, |pool| {
            let mut query = QueryBuilder::new($head);
            query
                .push("WHERE owner = ")
                .push_bind($owner)
                .push(" AND deleted_at IS NULL AND id IN (");
            let mut ids = query.separated(", ");
            for id in $ids {
                ids.push_bind(*id);
            }
            query.push(")");
            query.build_query_as().persistent(false).fetch_all(pool).await
        })
        .doing("reading jobs")
    };
}

/// Puts what was found into the order it was asked for in; what is missing is an error that names all of it.
fn in_order<T: Clone>(ids: &[JobId], found: &HashMap<JobId, T>) -> Result<Vec<T>> {
    let missing: Vec<_> =
        ids.iter().filter(|id| !found.contains_key(id)).map(ToString::to_string).collect();
    if !missing.is_empty() {
        return not_found("job", &missing.join("`, `"));
    }
    Ok(ids.iter().filter_map(|id| found.get(id).cloned()).collect())
}

impl Db {
    /// A part of an owner's jobs, and the number of all that match. The order, by creation, never changes while jobs run.
    pub async fn jobs_list(
        &self,
        owner: UserId,
        filter: &JobFilter,
        window: Window,
    ) -> Result<(Vec<Job>, i64)> {
        if filter.releases.as_ref().is_some_and(Vec::is_empty) {
            return Ok((Vec::new(), 0));
        }
        let list = counted_list(filter);
        let total = match &list {
            Some(list) => self.jobs_counted(owner, list).await?,
            None => self.jobs_count(owner, filter).await?,
        };
        // Statements read newest first; the other way round is the same part, counted from the other end.
        let rest = (total - window.offset).max(0);
        let limit = window.limit.min(rest);
        let offset = if window.oldest_first { rest - limit } else { window.offset };
        if limit == 0 {
            return Ok((Vec::new(), total));
        }
        let mut filter = filter.clone();
        let mut skip = offset;
        if let Some(list) = &list {
            let (before, above) = self.run_at(owner, list, offset).await?;
            filter.created_before = before;
            skip -= above;
        }
        let mut jobs: Vec<Job> = on!(self, |pool| {
            let mut query = QueryBuilder::new(select!(""));
            narrow!(query, owner, &filter);
            query.push(" ORDER BY created_at DESC, id DESC LIMIT ").push_bind(limit);
            query.push(" OFFSET ").push_bind(skip);
            query.build_query_as().fetch_all(pool).await
        })
        .doing("listing jobs")?;
        if window.oldest_first {
            jobs.reverse();
        }
        Ok((jobs, total))
    }

    /// The published releases whose names match.
    pub async fn releases_matching(
        &self,
        solver: Option<&Glob>,
        version: Option<&Glob>,
    ) -> Result<Vec<(SolverKey, String)>> {
        const SQL: &str = "SELECT solver_key, solver_version FROM releases";
        let mut releases: Vec<(SolverKey, String)> =
            on!(self, |pool| sqlx::query_as(SQL).fetch_all(pool).await)
                .doing("reading releases")?;
        releases.retain(|(key, name)| {
            solver.is_none_or(|glob| glob.matches(key.as_str()))
                && version.is_none_or(|glob| glob.matches(name))
        });
        Ok(releases)
    }

    /// These jobs of an owner, in this order; one that is missing is an error.
    pub async fn jobs_get(&self, ids: &[JobId], owner: UserId) -> Result<Vec<Job>> {
        let jobs: Vec<Job> = by_ids!(self, select!(""), owner, ids)?;
        in_order(ids, &jobs.into_iter().map(|job| (job.id, job)).collect())
    }

    /// The notes on these jobs of an owner, in this order; a job that is missing is an error.
    pub async fn jobs_metadata(&self, ids: &[JobId], owner: UserId) -> Result<Vec<(Job, Values)>> {
        let jobs = self.jobs_get(ids, owner).await?;
        let notes: Vec<(JobId, Values)> =
            by_ids!(self, "SELECT id, metadata FROM jobs ", owner, ids)?;
        Ok(jobs.into_iter().zip(in_order(ids, &notes.into_iter().collect())?).collect())
    }

    /// How many jobs a list holds.
    async fn jobs_counted(&self, owner: UserId, list: &str) -> Result<i64> {
        const SQL: &str =
            "SELECT COALESCE(SUM(jobs), 0) FROM job_counts WHERE owner = $1 AND list = $2";
        on!(self, |pool| sqlx::query_scalar(SQL).bind(owner).bind(list).fetch_one(pool).await)
            .doing("counting jobs")
    }

    /// Where a run begins that holds the job at this place of a list, newest first: before when it ends, and how many jobs are newer.
    async fn run_at(
        &self,
        owner: UserId,
        list: &str,
        place: i64,
    ) -> Result<(Option<Timestamp>, i64)> {
        const SQL: &str = "SELECT before, above FROM ( \
                               SELECT LAG(since) OVER newest AS before, SUM(jobs) OVER newest - jobs AS above \
                               FROM job_counts WHERE owner = $1 AND list = $2 WINDOW newest AS (ORDER BY since DESC) \
                           ) AS runs WHERE above <= $3 ORDER BY above DESC LIMIT 1";
        let run = on!(self, |pool| {
            sqlx::query_as(SQL).bind(owner).bind(list).bind(place).fetch_optional(pool).await
        })
        .doing("finding a page")?;
        Ok(run.unwrap_or((None, 0)))
    }

    /// Counts what nobody keeps count of.
    async fn jobs_count(&self, owner: UserId, filter: &JobFilter) -> Result<i64> {
        on!(self, |pool| {
            let mut query = QueryBuilder::new("SELECT COUNT(*) FROM jobs ");
            narrow!(query, owner, filter);
            query.build_query_scalar().fetch_one(pool).await
        })
        .doing("counting jobs")
    }
}

impl Tx {
    /// Counts a job into its owner's lists, before it is stored.
    pub(super) async fn job_listed(&mut self, job: &Job) -> Result<()> {
        const NEWEST: &str = "SELECT NOT EXISTS (SELECT 1 FROM jobs WHERE owner = $1 AND deleted_at IS NULL AND created_at >= $2)";
        const SQL: &str =
            "INSERT INTO job_counts (owner, list, since, jobs) VALUES ($1, $2, $3, 1)";
        self.lists_locked(job.owner).await?;
        let newest: bool = within!(*self, |connection| sqlx::query_scalar(NEWEST)
            .bind(job.owner)
            .bind(job.created_at)
            .fetch_one(connection)
            .await)
        .doing("looking for newer jobs")?;
        // A run that is full ends with the newest job: one that comes late still belongs to it.
        let full = if newest { RUN } else { i32::MAX };
        for list in [String::new(), list_of(&job.solver_key, &job.solver_version)] {
            if !self.count(job, &list, 1, full).await? {
                within!(*self, |connection| sqlx::query(SQL)
                    .bind(job.owner)
                    .bind(&list)
                    .bind(job.created_at)
                    .execute(connection)
                    .await
                    .map(drop))
                .doing("counting a job")?;
            }
        }
        Ok(())
    }

    /// Counts a job out of its owner's lists.
    pub(super) async fn job_unlisted(&mut self, job: &Job) -> Result<()> {
        self.lists_locked(job.owner).await?;
        for list in [String::new(), list_of(&job.solver_key, &job.solver_version)] {
            self.count(job, &list, -1, i32::MAX).await?;
        }
        Ok(())
    }

    /// Changes the count of the run that a job belongs to. Says whether there is one that is not full.
    async fn count(&mut self, job: &Job, list: &str, change: i32, full: i32) -> Result<bool> {
        const SQL: &str = "UPDATE job_counts SET jobs = jobs + $4 WHERE owner = $1 AND list = $2 AND jobs < $5 \
                           AND since = (SELECT MAX(since) FROM job_counts WHERE owner = $1 AND list = $2 AND since <= $3)";
        let counted = within!(*self, |connection| {
            let query = sqlx::query(SQL).bind(job.owner).bind(list).bind(job.created_at);
            query.bind(change).bind(full).execute(connection).await.map(|done| done.rows_affected())
        })
        .doing("counting a job")?;
        Ok(counted > 0)
    }

    /// One at a time changes the counts of an owner.
    async fn lists_locked(&mut self, owner: UserId) -> Result<()> {
        const SQL: &str = "SELECT id FROM users WHERE id = $1 FOR NO KEY UPDATE";
        match self {
            // It holds the lock of the whole database already.
            Self::Sqlite(_) => Ok(()),
            Self::Postgres(tx) => sqlx::query(SQL).bind(owner).execute(&mut **tx).await.map(drop),
        }
        .doing("locking an owner's lists")
    }

    /// Replaces what can be searched for.
    pub(super) async fn notes_set(
        &mut self,
        id: JobId,
        owner: UserId,
        notes: &Values,
    ) -> Result<()> {
        const CLEAR: &str = "DELETE FROM job_notes WHERE job_id = $1";
        const ADD: &str =
            "INSERT INTO job_notes (job_id, owner, name, value) VALUES ($1, $2, $3, $4)";
        within!(*self, |connection| sqlx::query(CLEAR)
            .bind(id)
            .execute(connection)
            .await
            .map(drop))
        .doing("removing a job's notes")?;
        for (name, value) in notes.iter() {
            let value = fold(&value.as_str().map_or_else(|| value.to_string(), str::to_owned));
            let short = name.chars().count() <= NoteFilter::LONGEST_NAME
                && value.chars().count() <= NoteFilter::LONGEST_VALUE;
            // Postgres has no text with NUL.
            if short && !name.contains('\0') && !value.contains('\0') {
                within!(*self, |connection| sqlx::query(ADD)
                    .bind(id)
                    .bind(owner)
                    .bind(name)
                    .bind(&value)
                    .execute(connection)
                    .await
                    .map(drop))
                .doing("adding a job's notes")?;
            }
        }
        Ok(())
    }
}
