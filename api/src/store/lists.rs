//! Lists of jobs: which page holds what, and how many there are.
//!
//! A page far down a long list costs what the first one costs, and so does the total: `job_counts` says how many jobs each list holds, in
//! [`RUNS`] of two sizes, so that a page is found by adding up large runs, then small ones, and skipping less than one. There are counts for all jobs of an owner
//! and for those of each release; lists that are narrowed otherwise are counted, and skipped, job by job. Uploads are counted like jobs.

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

/// How many jobs a run holds before the next one begins, by level.
const RUNS: [(i32, i32); 2] = if cfg!(test) { [(1, 12), (0, 4)] } else { [(1, 32_000), (0, 1000)] };

/// The end of the last run: no job is created later. The last moment that both databases, and RFC 3339, can write.
const NEVER: i64 = 253_402_300_799;

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

/// Name of the list of an owner's uploads. That of a release has a colon.
pub(super) const UPLOADS: &str = "files";

/// Name of the list of a release.
fn list_of(key: &SolverKey, version: &str) -> String {
    format!("{key}:{version}")
}

/// Name of the list that a filter stands for, if that one is counted.
fn counted_list(filter: &JobFilter) -> Option<String> {
    let JobFilter { parent, releases, states, all_notes, any_notes, created_from, created_before } =
        filter;
    let narrowed = !(states.is_empty() && all_notes.is_empty() && any_notes.is_empty())
        || parent.is_some()
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
        $query.push("WHERE owner = ").push_bind($owner);
        $query.push(" AND deleted_at IS NULL");
        match filter.parent {
            None => $query.push(" AND parent_id IS NULL"),
            Some(parent) => $query.push(" AND parent_id = ").push_bind(parent),
        };
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
            // The sign keeps SQLite from going through all jobs of the owner.
            query.push("WHERE +owner = ").push_bind($owner);
            query.push(" AND deleted_at IS NULL AND id IN (");
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
            Some(list) => self.list_total(owner, list).await?,
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
            let (before, rest) = self.list_place(owner, list, offset).await?;
            filter.created_before = Some(before);
            skip = rest;
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

    /// How many a list holds.
    pub(super) async fn list_total(&self, owner: UserId, list: &str) -> Result<i64> {
        const SQL: &str = "SELECT COALESCE(SUM(jobs), 0) FROM job_counts WHERE owner = $1 AND list = $2 AND level = 1";
        on!(self, |pool| sqlx::query_scalar(SQL).bind(owner).bind(list).fetch_one(pool).await)
            .doing("counting jobs")
    }

    /// Where to look for what is at this place of a list, newest first: in what was created before, after skipping so many.
    pub(super) async fn list_place(
        &self,
        owner: UserId,
        list: &str,
        place: i64,
    ) -> Result<(Timestamp, i64)> {
        const SQL: &str = "SELECT since, before, above FROM ( \
                               SELECT since, LAG(since) OVER newest AS before, SUM(jobs) OVER newest - jobs AS above \
                               FROM job_counts WHERE owner = $1 AND list = $2 AND level = $3 AND since >= $4 AND since < $5 \
                               WINDOW newest AS (ORDER BY since DESC) \
                           ) AS runs WHERE above <= $6 ORDER BY above DESC LIMIT 1";
        let never = Timestamp::from_timestamp(NEVER, 0).unwrap_or_default();
        let (mut from, mut until, mut skip) = (Timestamp::UNIX_EPOCH, never, place);
        for (level, _) in RUNS {
            let run: Option<(Timestamp, Option<Timestamp>, i64)> = on!(self, |pool| {
                let query = sqlx::query_as(SQL).bind(owner).bind(list).bind(level).bind(from);
                query.bind(until).bind(skip).fetch_optional(pool).await
            })
            .doing("finding a page")?;
            let Some((since, before, above)) = run else { break };
            (from, until, skip) = (since, before.unwrap_or(until), skip - above);
        }
        Ok((until, skip))
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
        const NEWEST: &str = "SELECT created_at FROM jobs WHERE owner = $1 AND deleted_at IS NULL AND parent_id IS NULL \
                              ORDER BY created_at DESC, id DESC LIMIT 1";
        self.owner_locked(job.owner).await?;
        let newest: Option<Timestamp> = within!(*self, |connection| sqlx::query_scalar(NEWEST)
            .bind(job.owner)
            .fetch_optional(connection)
            .await)
        .doing("looking for newer jobs")?;
        let lists = ["", &list_of(&job.solver_key, &job.solver_version)];
        self.lists_add(job.owner, lists, job.created_at, newest).await
    }

    /// Counts a job out of its owner's lists.
    pub(super) async fn job_unlisted(&mut self, job: &Job) -> Result<()> {
        self.owner_locked(job.owner).await?;
        for list in [String::new(), list_of(&job.solver_key, &job.solver_version)] {
            self.list_remove(job.owner, &list, job.created_at).await?;
        }
        Ok(())
    }

    /// Counts something into two lists, or twice the same one, under the lock of their owner's lists. The newest is that of what is
    /// listed already.
    pub(super) async fn lists_add(
        &mut self,
        owner: UserId,
        lists: [&str; 2],
        at: Timestamp,
        newest: Option<Timestamp>,
    ) -> Result<()> {
        // All at once: this is on the path of every new job.
        const COUNT: &str = "UPDATE job_counts SET jobs = job_counts.jobs + 1 FROM ( \
                               SELECT list, level, (SELECT MAX(since) FROM job_counts AS runs \
                                 WHERE owner = $1 AND runs.list = wanted.list AND runs.level = wanted.level AND since <= $4) AS since \
                               FROM (SELECT CAST($2 AS TEXT) AS list, 1 AS level UNION ALL SELECT $2, 0 \
                                 UNION ALL SELECT $3, 1 UNION ALL SELECT $3, 0) AS wanted \
                             ) AS run WHERE job_counts.owner = $1 AND job_counts.list = run.list \
                             AND job_counts.level = run.level AND job_counts.since = run.since RETURNING job_counts.list, job_counts.level, job_counts.jobs";
        // The rare conflict: all jobs of a run are gone, and here is another of the moment in which it began.
        const BEGIN: &str = "INSERT INTO job_counts (owner, list, level, since, jobs) VALUES ($1, $2, $3, $4, 1) \
                             ON CONFLICT (owner, list, level, since) DO UPDATE SET jobs = job_counts.jobs + 1";
        let counted: Vec<(String, i32, i32)> = within!(*self, |connection| {
            let query = sqlx::query_as(COUNT).bind(owner).bind(lists[0]).bind(lists[1]).bind(at);
            query.fetch_all(connection).await
        })
        .doing("counting into lists")?;
        let mut lists = lists.to_vec();
        lists.dedup();
        // A run that is full ends with the newest: what comes late still belongs to it.
        let late = newest.is_some_and(|newest| newest >= at);
        for list in lists {
            let mut begun = false;
            for (level, size) in RUNS {
                let run = counted.iter().find(|(name, of, _)| name == list && *of == level);
                if let Some((_, _, jobs)) = run {
                    if !begun && (late || *jobs <= size) {
                        continue;
                    }
                    self.count_out(owner, list, level, at).await?;
                }
                begun = true;
                within!(*self, |connection| sqlx::query(BEGIN)
                    .bind(owner)
                    .bind(list)
                    .bind(level)
                    .bind(at)
                    .execute(connection)
                    .await
                    .map(drop))
                .doing("counting into a list")?;
            }
        }
        Ok(())
    }

    /// Counts something out of a list, under the lock of its owner's lists.
    pub(super) async fn list_remove(
        &mut self,
        owner: UserId,
        list: &str,
        at: Timestamp,
    ) -> Result<()> {
        for (level, _) in RUNS {
            self.count_out(owner, list, level, at).await?;
        }
        Ok(())
    }

    /// Counts something out of the run that its moment belongs to.
    async fn count_out(
        &mut self,
        owner: UserId,
        list: &str,
        level: i32,
        at: Timestamp,
    ) -> Result<()> {
        const SQL: &str = "UPDATE job_counts SET jobs = jobs - 1 WHERE owner = $1 AND list = $2 AND level = $3 \
                           AND since = (SELECT MAX(since) FROM job_counts WHERE owner = $1 AND list = $2 AND level = $3 AND since <= $4)";
        within!(*self, |connection| {
            let query = sqlx::query(SQL).bind(owner).bind(list).bind(level).bind(at);
            query.execute(connection).await.map(drop)
        })
        .doing("counting out of a list")
    }

    /// One at a time changes the counts of an owner, and what the owner holds.
    pub(super) async fn owner_locked(&mut self, owner: UserId) -> Result<()> {
        const SQL: &str = "SELECT id FROM users WHERE id = $1 FOR NO KEY UPDATE";
        match self {
            // It holds the lock of the whole database already.
            Self::Sqlite(_) => Ok(()),
            Self::Postgres(tx) => sqlx::query(SQL).bind(owner).execute(&mut **tx).await.map(drop),
        }
        .doing("locking an owner")
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

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;
    use crate::domain::{labels, time::now};

    /// Jobs come late, share moments and go again, in every run of both sizes: each page is where plain sorting puts it.
    #[tokio::test]
    async fn every_page_is_found_whatever_comes_and_goes() {
        let folder = tempfile::tempdir().unwrap();
        let db = Db::open(&format!("sqlite:{}", folder.path().join("db").display())).await.unwrap();
        let owner = db.user_add("ada@example.org", now()).await.unwrap().id;
        let label = |field: &str, text: &str| {
            (format!("io.simcore.{field}"), serde_json::json!({ field: text }).to_string())
        };
        let labels = [
            label("key", "simcore/services/comp/aa"),
            label("version", "1.0.0"),
            label("integration-version", "1.0.0"),
        ];
        let release = labels::release("a", "sha256:1", &[], &labels.into()).unwrap();
        db.release_publish(&release, now()).await.unwrap();
        let begin = now();
        let mut listed: Vec<Job> = Vec::new();
        let mut random = 1_u64;
        for number in 0..300 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let chance = i64::try_from(random >> 33).unwrap();
            // Most are the newest, some come late.
            let late = if chance % 5 == 0 { chance % 97 } else { 0 };
            let at = begin + TimeDelta::microseconds(number / 2 - late);
            let job = Job::new(owner, release.key.clone(), "1.0.0".into(), String::new(), at);
            db.job_add(&job, &Values::default(), None).await.unwrap();
            listed.push(job);
            listed.sort_by_key(|job| std::cmp::Reverse((job.created_at, job.id)));
            // Now and then the newest, or any, is deleted; once nearly all are.
            let gone = match chance % 7 {
                _ if number == 150 => 140,
                0 | 1 => 1,
                _ => 0,
            };
            for _ in 0..gone.min(listed.len()) {
                let place = if chance % 2 == 0 { 0 } else { listed.len() / 2 };
                let job = listed.remove(place);
                db.job_request_delete(job.id, owner, now()).await.unwrap();
            }
        }
        assert!(listed.len() > 100, "{}", listed.len());
        let ids: Vec<_> = listed.iter().map(|job| job.id).collect();
        let one = vec![(release.key.clone(), "1.0.0".to_owned())];
        for releases in [None, Some(one)] {
            let filter = JobFilter { releases, ..JobFilter::default() };
            for offset in 0..=ids.len() {
                let window = Window {
                    limit: 3,
                    offset: i64::try_from(offset).unwrap(),
                    oldest_first: false,
                };
                let (page, total) = db.jobs_list(owner, &filter, window).await.unwrap();
                let page: Vec<_> = page.iter().map(|job| job.id).collect();
                assert_eq!(page, ids[offset..ids.len().min(offset + 3)], "{offset}");
                assert_eq!(total, i64::try_from(ids.len()).unwrap());
            }
        }
        db.close().await;
    }
}
