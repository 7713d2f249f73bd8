//! Lists of jobs across solvers, and what is asked of many jobs at once.

use actix_web::{
    HttpRequest, get, post,
    web::{Data, Json},
};
use chrono::{DateTime, SubsecRound, Utc};
use serde::{
    Deserialize, Serialize,
    de::{
        DeserializeOwned,
        value::{Error as ValueError, StrDeserializer},
    },
};
use utoipa::{IntoParams, ToSchema};

use super::{Job, JobMetadata, JobPage};
use crate::{
    auth::Caller,
    domain::{
        filter::{Glob, JobFilter, NoteFilter},
        id::JobId,
        job::{JobStatus, RunningState},
    },
    error::{Errors, FieldError, Result},
    paging::{Page, Paging},
    request::{BaseUrl, Body, Params, from_request},
    store::{Db, Window},
};

from_request!(NotesQuery, BatchQuery, JobQuery);

/// How many conditions on notes one request may have.
const MOST_NOTES: usize = 50;

/// How many jobs may be inspected at once.
const MOST_INSPECTED: usize = 1000;

/// Reads the conditions on notes of one parameter.
fn notes(params: &Params, name: &str, separator: char) -> Result<Vec<NoteFilter>> {
    let rule = format!(
        "must be `name{separator}pattern` with a name of at most 64 and a pattern of at most 512 characters"
    );
    let notes = params.all(name, &rule, |text| NoteFilter::parse(text, separator).ok_or(()))?;
    if notes.len() > MOST_NOTES {
        let rule = format!("must not be there more than {MOST_NOTES} times");
        return Err(FieldError::new("too_long", &["query", name], notes.len(), &rule).into());
    }
    Ok(notes)
}

/// Which notes jobs must have.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub struct NotesQuery {
    /// Jobs with at least one of these notes, each `name:pattern`; in patterns `*` is any text and `?` any character. Not together
    /// with `metadata.all`.
    #[param(rename = "metadata.any", value_type = Vec<String>, required = false)]
    any: Vec<NoteFilter>,
    /// Jobs with all of these notes, each `name:pattern`.
    #[param(rename = "metadata.all", value_type = Vec<String>, required = false)]
    all: Vec<NoteFilter>,
}

impl NotesQuery {
    fn of(request: &HttpRequest) -> Result<Self> {
        let params = Params::of_query(request)?;
        let any = notes(&params, "metadata.any", ':')?;
        let all = notes(&params, "metadata.all", ':')?;
        if !any.is_empty() && !all.is_empty() {
            let rule = "must not be there together with `metadata.all`";
            let names: Vec<_> = any.iter().map(|note| &note.name).collect();
            return Err(
                FieldError::new("value_error", &["query", "metadata.any"], names, rule).into()
            );
        }
        Ok(Self { any, all })
    }
}

/// Names several jobs in a query.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub struct BatchQuery {
    /// Identifies the jobs: once for each, 50 at most.
    #[param(value_type = Vec<uuid::Uuid>, min_items = 1, max_items = 50)]
    job_ids: Vec<JobId>,
}

impl BatchQuery {
    fn of(request: &HttpRequest) -> Result<Self> {
        let ids = Params::of_query(request)?.all("job_ids", "must be a UUID", str::parse)?;
        Ok(Self { job_ids: check_number(ids, "query", 50)? })
    }
}

/// The ids, if there are as many as there may be.
fn check_number(ids: Vec<JobId>, place: &str, most: usize) -> Result<Vec<JobId>> {
    if (1..=most).contains(&ids.len()) {
        return Ok(ids);
    }
    let rule = format!("must name 1 to {most} jobs");
    Err(FieldError::new("value_error", &[place, "job_ids"], ids.len(), &rule).into())
}

/// Which jobs, and in which order.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub struct JobQuery {
    /// The jobs of this job's steps; otherwise jobs that are no steps of others.
    #[param(value_type = uuid::Uuid, required = false)]
    parent: Option<JobId>,
    /// Jobs of solvers whose key matches; `*` is any text, `?` any character.
    #[param(value_type = String, max_length = 512, required = false, example = "*/sleeper")]
    solver: Option<Glob>,
    /// Jobs of releases whose version matches, likewise.
    #[param(value_type = String, max_length = 512, required = false, example = "2.1.*")]
    version: Option<Glob>,
    /// Jobs in one of these states.
    #[param(value_type = Vec<RunningState>, required = false)]
    state: Vec<RunningState>,
    /// Jobs with all of these notes, each `name=pattern`, likewise.
    #[param(value_type = Vec<String>, required = false)]
    metadata: Vec<NoteFilter>,
    /// Jobs created then or later.
    #[param(required = false)]
    created_from: Option<DateTime<Utc>>,
    /// Jobs created before.
    #[param(required = false)]
    created_before: Option<DateTime<Utc>>,
    /// `created_at` for the oldest first; otherwise the newest are.
    #[param(inline, value_type = Sort, required = false)]
    sort: Option<Sort>,
}

/// Order of a list of jobs.
#[derive(Clone, Copy, PartialEq, Deserialize, ToSchema)]
enum Sort {
    #[serde(rename = "created_at")]
    OldestFirst,
    #[serde(rename = "-created_at")]
    NewestFirst,
}

impl JobQuery {
    fn of(request: &HttpRequest) -> Result<Self> {
        let params = Params::of_query(request)?;
        let moment = |name: &str| {
            params.get(name, "must be a time like 2026-01-31T12:00:00Z", |text| {
                DateTime::parse_from_rfc3339(text)
                    .map(|moment| moment.with_timezone(&Utc).trunc_subsecs(6))
            })
        };
        Ok(Self {
            parent: params.get("parent", "must be a UUID", str::parse)?,
            solver: params.get("solver", Glob::RULE, Glob::parse)?,
            version: params.get("version", Glob::RULE, Glob::parse)?,
            state: params.all("state", "must be the name of a state, like STARTED", word)?,
            metadata: notes(&params, "metadata", '=')?,
            created_from: moment("created_from")?,
            created_before: moment("created_before")?,
            sort: params.get("sort", "must be created_at or -created_at", word)?,
        })
    }

    async fn filter(self, caller: &Caller, db: &Db) -> Result<JobFilter> {
        if let Some(parent) = self.parent {
            db.job_get(parent, caller.id()).await?;
        }
        let states: Vec<_> = self.state.iter().filter_map(|state| state.of_jobs()).collect();
        let releases = if states.len() < self.state.len() && states.is_empty() {
            // Only states that no job here is ever in.
            Some(Vec::new())
        } else if self.solver.is_some() || self.version.is_some() {
            Some(db.releases_matching(self.solver.as_ref(), self.version.as_ref()).await?)
        } else {
            None
        };
        Ok(JobFilter {
            parent: self.parent,
            releases,
            states,
            all_notes: self.metadata,
            any_notes: Vec::new(),
            created_from: self.created_from,
            created_before: self.created_before,
        })
    }
}

/// Reads one of an enumeration's words.
fn word<T: DeserializeOwned>(text: &str) -> Result<T, ValueError> {
    T::deserialize(StrDeserializer::new(text))
}

/// A run of a solver, and how it is getting on.
#[derive(Serialize, ToSchema)]
pub struct JobWithStatus {
    #[serde(flatten)]
    job: Job,
    status: JobStatus,
}

/// An alias, because utoipa would look for a derive on `Page<JobWithStatus>`.
type JobWithStatusPage = Page<JobWithStatus>;

/// Names jobs.
#[derive(Deserialize, ToSchema)]
pub struct JobIds {
    #[schema(value_type = Vec<uuid::Uuid>, min_items = 1, max_items = 1000)]
    job_ids: Vec<JobId>,
}

/// How several jobs are getting on.
#[derive(Serialize, ToSchema)]
pub struct JobStatuses {
    /// In the order that was asked for.
    items: Vec<JobStatus>,
}

/// Your notes on several jobs.
#[derive(Serialize, ToSchema)]
pub struct BatchGetJobMetadataResponse {
    /// In the order that was asked for.
    items: Vec<JobMetadata>,
}

/// The part of a list that a page shows, newest first.
pub(super) const fn window(paging: &Paging) -> Window {
    Window { limit: paging.limit, offset: paging.offset, oldest_first: false }
}

/// List the jobs of all solvers, in pages.
#[utoipa::path(tag = "jobs", params(NotesQuery, Paging), responses((status = 200, description = "A page of your jobs, newest first.", body = JobPage), Errors))]
#[get("/v0/solvers/-/releases/-/jobs")]
pub async fn list_all_solvers_jobs(
    query: NotesQuery,
    paging: Paging,
    caller: Caller,
    base: BaseUrl,
    db: Data<Db>,
) -> Result<Json<JobPage>> {
    let filter = JobFilter { any_notes: query.any, all_notes: query.all, ..JobFilter::default() };
    let (jobs, total) = db.jobs_list(caller.id(), &filter, window(&paging)).await?;
    Ok(Json(paging.page(jobs.iter().map(|job| Job::new(job, &base)).collect(), total)))
}

/// Get your notes on several jobs.
///
/// All of them, or none: a job that is not there makes it fail, and is named.
#[utoipa::path(tag = "jobs", params(BatchQuery), responses((status = 200, description = "Your notes.", body = BatchGetJobMetadataResponse), Errors))]
#[get("/v0/solvers/-/releases/-/jobs/metadata:batchGet")]
pub async fn batch_get_jobs_custom_metadata(
    query: BatchQuery,
    caller: Caller,
    base: BaseUrl,
    db: Data<Db>,
) -> Result<Json<BatchGetJobMetadataResponse>> {
    let found = db.jobs_metadata(&query.job_ids, caller.id()).await?;
    let items = found.into_iter().map(|(job, notes)| JobMetadata::new(&job, notes, &base));
    Ok(Json(BatchGetJobMetadataResponse { items: items.collect() }))
}

/// Find jobs.
///
/// Across solvers; filters can be combined. Without any, or with those that name one release, every page comes as fast as the first.
/// The jobs of a job's steps are listed only if `parent` asks for them.
#[utoipa::path(tag = "jobs", params(JobQuery, Paging), responses((status = 200, description = "A page of your jobs.", body = JobWithStatusPage), Errors))]
#[get("/v0/jobs")]
pub async fn find_jobs(
    query: JobQuery,
    paging: Paging,
    caller: Caller,
    base: BaseUrl,
    db: Data<Db>,
) -> Result<Json<JobWithStatusPage>> {
    let window = Window { oldest_first: query.sort == Some(Sort::OldestFirst), ..window(&paging) };
    let (jobs, total) =
        db.jobs_list(caller.id(), &query.filter(&caller, &db).await?, window).await?;
    let shown = jobs
        .into_iter()
        .map(|job| JobWithStatus { job: Job::new(&job, &base), status: job.into() });
    Ok(Json(paging.page(shown.collect(), total)))
}

/// Inspect several jobs.
///
/// All of them, or none: a job that is not there makes it fail, and is named.
#[utoipa::path(tag = "jobs", request_body = JobIds, responses((status = 200, description = "How they are getting on.", body = JobStatuses), Errors))]
#[post("/v0/jobs:inspect")]
pub async fn inspect_jobs(
    body: Body<JobIds>,
    caller: Caller,
    db: Data<Db>,
) -> Result<Json<JobStatuses>> {
    let ids = check_number(body.0.job_ids, "body", MOST_INSPECTED)?;
    let jobs = db.jobs_get(&ids, caller.id()).await?;
    Ok(Json(JobStatuses { items: jobs.into_iter().map(JobStatus::from).collect() }))
}
