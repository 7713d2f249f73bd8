//! Studies: solvers made of steps, and their jobs, as oSPARC names them. A view: what happens is in [`crate::jobs`].

#![expect(unreachable_pub, reason = "the route macros nest the handlers")]

use actix_web::{
    HttpRequest, HttpResponse, delete, get, post, put,
    web::{Data, Json},
};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::{
    auth::Caller,
    dispatch::{LogZips, Wake},
    domain::{
        id::{JobId, StudyId},
        job::{Job as DomainJob, JobStatus},
        labels::cut,
        solver::{Port, Version},
        study::Study as DomainStudy,
        time::now,
    },
    error::{ApiError, ErrorCode, Errors, FieldError, Result},
    jobs::{
        self, CreateQuery, IdempotencyKey, Job, JobInputs, JobMetadata, JobMetadataUpdate,
        JobOutputs, Parent, Prefer, Rules, StartQuery,
    },
    objects::Objects,
    paging::{Page, Paging},
    request::{BaseUrl, Body, OptionalBody, Params, from_request},
    solvers::{PortKind, ReleasePath},
    store::Db,
};

from_request!(StudyPath, StudyJobPath, CloneQuery);

/// A page of studies.
type StudyPage = Page<Study>;

/// A page of jobs.
type JobPage = Page<Job>;

/// Characters that are kept of a clone's title and description; the rest is cut off, as oSPARC does.
const TITLE: usize = 600;
const DESCRIPTION: usize = 65_536;

/// Names a study in a path.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
pub struct StudyPath {
    /// Identifies the study.
    #[param(value_type = Uuid)]
    study_id: StudyId,
}

impl StudyPath {
    fn of(request: &HttpRequest) -> Result<Self> {
        Ok(Self { study_id: Params::of_path(request)?.need("study_id", UUID, str::parse)? })
    }

    async fn load(&self, caller: &Caller, db: &Db) -> Result<DomainStudy> {
        Ok(db.study_get(self.study_id, caller.id()).await?)
    }
}

/// Names a study's job in a path.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
pub struct StudyJobPath {
    /// Identifies the study.
    #[param(value_type = Uuid)]
    study_id: StudyId,
    /// Identifies the job.
    #[param(value_type = Uuid)]
    job_id: JobId,
}

const UUID: &str = "must be a UUID";

impl StudyJobPath {
    fn of(request: &HttpRequest) -> Result<Self> {
        let params = Params::of_path(request)?;
        Ok(Self {
            study_id: params.need("study_id", UUID, str::parse)?,
            job_id: params.need("job_id", UUID, str::parse)?,
        })
    }

    /// Loads the job; that is checking the right to it. Under another study it does not exist.
    async fn load(&self, caller: &Caller, db: &Db) -> Result<DomainJob> {
        let job = db.job_get(self.job_id, caller.id()).await?;
        if job.study_id == Some(self.study_id) {
            return Ok(job);
        }
        let message = format!("study `{}` has no job `{}`", self.study_id, self.job_id);
        Err(ApiError::new(ErrorCode::NotFound, message))
    }
}

/// How a study is cloned.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub struct CloneQuery {
    /// Whether lists leave the clone out.
    #[param(default = false, required = false)]
    hidden: bool,
}

impl CloneQuery {
    fn of(request: &HttpRequest) -> Result<Self> {
        Ok(Self { hidden: Params::of_query(request)?.flag("hidden")?.unwrap_or(false) })
    }
}

/// A solver made of steps.
#[derive(Serialize, ToSchema)]
#[schema(example = json!({"uid": "3f9b1c0e-6f1d-8c55-9d3a-2f7a0f7f6a11", "title": "sleeper_test_study", "description": "Two sleepers, one after the other."}))]
pub struct Study {
    #[schema(value_type = Uuid)]
    uid: StudyId,
    title: Option<String>,
    description: Option<String>,
}

impl From<DomainStudy> for Study {
    fn from(study: DomainStudy) -> Self {
        let DomainStudy { id, title, description, .. } = study;
        Self { uid: id, title: Some(title), description: Some(description) }
    }
}

/// What is to be different about a clone.
#[derive(Default, Deserialize, ToSchema)]
pub struct StudyClone {
    /// Cut to 600 characters.
    #[schema(pattern = r"^[^\x00]*$")]
    title: Option<String>,
    /// Cut to 65536 characters.
    #[schema(pattern = r"^[^\x00]*$")]
    description: Option<String>,
}

/// A typed input or output of a study. Values go by its label, which is the title of its schema.
#[derive(Serialize, ToSchema)]
pub struct StudyPort {
    key: Uuid,
    kind: PortKind,
    /// JSON Schema of its values; its title is the label.
    #[schema(value_type = Option<Object>)]
    content_schema: Option<serde_json::Value>,
}

/// All ports of a study.
#[derive(Serialize, ToSchema)]
#[schema(as = OnePage_StudyPort_)]
pub struct StudyPorts {
    /// Inputs, then outputs, as they were declared.
    items: Vec<StudyPort>,
    total: Option<usize>,
}

/// Where a step's log is.
#[derive(Serialize, ToSchema)]
pub struct LogLink {
    /// A file name: that of the step, or of the whole study.
    node_name: String,
    /// A zip with one text file. The link needs no credentials and is good for an hour.
    #[schema(format = "uri", min_length = 1)]
    download_link: String,
}

/// Where the logs of a study's job are.
#[derive(Serialize, ToSchema)]
pub struct JobLogsMap {
    /// Of all steps that have ended, and of the whole when it has.
    log_links: Vec<LogLink>,
}

/// List studies.
///
/// Those that are published, and your clones.
#[utoipa::path(tag = "studies", params(Paging), responses((status = 200, description = "A page of studies, newest first.", body = StudyPage), Errors))]
#[get("/v0/studies")]
pub async fn list_studies(paging: Paging, caller: Caller, db: Data<Db>) -> Result<Json<StudyPage>> {
    let (studies, total) = db.studies_page(caller.id(), paging.limit, paging.offset).await?;
    Ok(Json(paging.page(studies.into_iter().map(Study::from).collect(), total)))
}

/// Clone a study.
///
/// The clone is yours alone. It goes on running what the study runs now, also when a newer version of that is published.
#[utoipa::path(tag = "studies", params(StudyPath, CloneQuery, Parent), request_body = Option<StudyClone>, responses((status = 201, description = "The clone.", body = Study), Errors))]
#[post("/v0/studies/{study_id:[^/:]+}:clone")]
pub async fn clone_study(
    path: StudyPath,
    query: CloneQuery,
    _parent: Parent,
    body: OptionalBody<StudyClone>,
    caller: Caller,
    db: Data<Db>,
) -> Result<HttpResponse> {
    let StudyClone { title, description } = body.0.unwrap_or_default();
    for (field, text) in [("title", &title), ("description", &description)] {
        if text.as_ref().is_some_and(|text| text.contains('\0')) {
            let rule = "must not contain NUL";
            return Err(FieldError::new("value_error", &["body", field], text, rule).into());
        }
    }
    let mut clone = path.load(&caller, &db).await?.cloned(caller.id(), query.hidden, now());
    // oSPARC's way of naming copies: whoever looks for the study by its title must not find them.
    clone.title = title.map_or(format!("{} (Copy)", clone.title), |title| cut(&title, TITLE));
    clone.description = description.map_or(clone.description, |text| cut(&text, DESCRIPTION));
    db.study_add(&clone).await?;
    Ok(HttpResponse::Created().json(Study::from(clone)))
}

/// Get a study.
#[utoipa::path(tag = "studies", params(StudyPath), responses((status = 200, description = "The study.", body = Study), Errors))]
#[get("/v0/studies/{study_id:[^/:]+}")]
pub async fn get_study(path: StudyPath, caller: Caller, db: Data<Db>) -> Result<Json<Study>> {
    Ok(Json(path.load(&caller, &db).await?.into()))
}

/// List the ports of a study.
#[utoipa::path(tag = "studies", params(StudyPath), responses((status = 200, description = "Inputs, then outputs.", body = StudyPorts), Errors))]
#[get("/v0/studies/{study_id:[^/:]+}/ports")]
pub async fn list_study_ports(
    path: StudyPath,
    caller: Caller,
    db: Data<Db>,
) -> Result<Json<StudyPorts>> {
    let study = path.load(&caller, &db).await?;
    let ReleasePath { solver_key, version } = release_of(&study)?;
    let release = db.release_get(&solver_key, &version).await?;
    let shown = |kind: PortKind, direction: &'static str| {
        let study = &study;
        move |port: Port| StudyPort {
            key: study.port_id(direction, &port.key),
            // oSPARC's studies have labels only, and values go by them.
            content_schema: Some(Port { label: port.key.clone(), ..port }.content_schema()),
            kind,
        }
    };
    let inputs = release.inputs.into_iter().map(shown(PortKind::Input, "input"));
    let outputs = release.outputs.into_iter().map(shown(PortKind::Output, "output"));
    let items: Vec<_> = inputs.chain(outputs).collect();
    Ok(Json(StudyPorts { total: Some(items.len()), items }))
}

/// The release that a study is a name for.
fn release_of(study: &DomainStudy) -> Result<ReleasePath> {
    let version = Version::parse(&study.solver_version)
        .map_err(|error| ApiError::internal(ErrorCode::Internal, error))?;
    Ok(ReleasePath { solver_key: study.solver_key.clone(), version })
}

/// Create a job of a study.
///
/// Checks the values, which go by the labels of the study's inputs; nothing runs before the job is started. A request with an
/// `Idempotency-Key` may be repeated: there is one job, and every answer is the same.
#[utoipa::path(tag = "studies", params(StudyPath, CreateQuery, Parent, IdempotencyKey), request_body = JobInputs, responses(
    (status = 200, description = "The job, not started.", body = Job),
    (status = 409, description = "The job that this key made was deleted.", body = crate::error::ErrorBody),
    Errors
))]
#[post("/v0/studies/{study_id:[^/:]+}/jobs")]
#[expect(clippy::too_many_arguments, reason = "each is one thing that the handler touches")]
pub async fn create_study_job(
    path: StudyPath,
    _: (CreateQuery, Parent),
    key: IdempotencyKey,
    body: Body<JobInputs>,
    caller: Caller,
    base: BaseUrl,
    db: Data<Db>,
    rules: Data<Rules>,
) -> Result<Json<Job>> {
    let study = path.load(&caller, &db).await?;
    let release = release_of(&study)?;
    let job = jobs::create(&release, Some(study.id), body.0, key, &caller, &db, &rules).await?;
    Ok(Json(Job::new(&job, &base)))
}

/// List the jobs of a study.
#[utoipa::path(tag = "studies", params(StudyPath, Paging), responses((status = 200, description = "A page of your jobs, newest first.", body = JobPage), Errors))]
#[get("/v0/studies/{study_id:[^/:]+}/jobs")]
pub async fn list_study_jobs(
    path: StudyPath,
    paging: Paging,
    caller: Caller,
    base: BaseUrl,
    db: Data<Db>,
) -> Result<Json<JobPage>> {
    let study = path.load(&caller, &db).await?;
    let (jobs, total) =
        db.study_jobs_page(study.id, caller.id(), paging.limit, paging.offset).await?;
    Ok(Json(paging.page(jobs.iter().map(|job| Job::new(job, &base)).collect(), total)))
}

/// Start a study's job.
///
/// Queues it; its steps queue as soon as their data are there. Starting it again changes nothing and answers 200.
#[utoipa::path(tag = "studies", params(StudyJobPath, StartQuery), responses(
    (status = 202, description = "Queued.", body = JobStatus),
    (status = 200, description = "It was started before.", body = JobStatus),
    (status = 409, description = "Its assets were deleted, or you have as many jobs in the queue as there may be.", body = crate::error::ErrorBody),
    Errors
))]
#[post("/v0/studies/{study_id:[^/:]+}/jobs/{job_id:[^/:]+}:start")]
pub async fn start_study_job(
    path: StudyJobPath,
    _query: StartQuery,
    caller: Caller,
    db: Data<Db>,
    wake: Data<Wake>,
    rules: Data<Rules>,
) -> Result<HttpResponse> {
    jobs::start(&path.load(&caller, &db).await?, &db, &wake, &rules).await
}

/// Inspect a study's job.
///
/// At once, or, with `Prefer: wait=N`, when there is news. Its state, progress and errors are made of those of its steps.
#[utoipa::path(tag = "studies", params(StudyJobPath, Prefer), responses(
    (status = 200, description = "How it is getting on.", body = JobStatus, headers(("preference-applied" = String, description = "The wait that was granted."))),
    Errors
))]
#[post("/v0/studies/{study_id:[^/:]+}/jobs/{job_id:[^/:]+}:inspect")]
pub async fn inspect_study_job(
    path: StudyJobPath,
    prefer: Prefer,
    caller: Caller,
    db: Data<Db>,
    closing: Data<CancellationToken>,
) -> Result<HttpResponse> {
    let job =
        prefer.look(&db, path.job_id, &closing, async || path.load(&caller, &db).await).await?;
    Ok(prefer.applied(HttpResponse::Ok().json(JobStatus::from(job))))
}

/// Stop a study's job.
///
/// Stops its steps; it ends as ABORTED when they have.
#[utoipa::path(tag = "studies", params(StudyJobPath), responses((status = 200, description = "How it is getting on.", body = JobStatus), Errors))]
#[post("/v0/studies/{study_id:[^/:]+}/jobs/{job_id:[^/:]+}:stop")]
pub async fn stop_study_job(
    path: StudyJobPath,
    caller: Caller,
    db: Data<Db>,
    wake: Data<Wake>,
) -> Result<Json<JobStatus>> {
    jobs::stop(&path.load(&caller, &db).await?, &db, &wake).await
}

/// Get the outputs of a study's job.
#[utoipa::path(tag = "studies", params(StudyJobPath), responses(
    (status = 200, description = "Values of all outputs, by label.", body = JobOutputs),
    (status = 409, description = "The job has not succeeded, or its assets were deleted.", body = crate::error::ErrorBody),
    Errors
))]
#[post("/v0/studies/{study_id:[^/:]+}/jobs/{job_id:[^/:]+}/outputs")]
pub async fn get_study_job_outputs(
    path: StudyJobPath,
    caller: Caller,
    db: Data<Db>,
) -> Result<Json<JobOutputs>> {
    jobs::outputs(path.load(&caller, &db).await?, &db).await
}

/// Get links to the logs of a study's job.
///
/// There are none before its first step has ended.
#[utoipa::path(tag = "studies", params(StudyJobPath), responses((status = 200, description = "Links that need no credentials.", body = JobLogsMap), Errors))]
#[get("/v0/studies/{study_id:[^/:]+}/jobs/{job_id:[^/:]+}/outputs/log-links")]
pub async fn get_study_job_output_logfile(
    path: StudyJobPath,
    caller: Caller,
    db: Data<Db>,
    objects: Data<Objects>,
    logs: Data<LogZips>,
) -> Result<Json<JobLogsMap>> {
    let job = path.load(&caller, &db).await?;
    let mut jobs = db.job_children(job.id).await?;
    jobs.push(job);
    let mut log_links = Vec::new();
    for job in jobs.iter().filter(|job| job.state.is_final()) {
        let name = job.step.as_deref().unwrap_or_else(|| job.solver_key.short_name());
        log_links.push(LogLink {
            node_name: format!("{name}.zip"),
            download_link: jobs::log_link(job, &objects, &logs).await?,
        });
    }
    Ok(Json(JobLogsMap { log_links }))
}

/// Get your notes on a study's job.
#[utoipa::path(tag = "studies", params(StudyJobPath), responses((status = 200, description = "Your notes.", body = JobMetadata), Errors))]
#[get("/v0/studies/{study_id:[^/:]+}/jobs/{job_id:[^/:]+}/metadata")]
pub async fn get_study_job_custom_metadata(
    path: StudyJobPath,
    caller: Caller,
    base: BaseUrl,
    db: Data<Db>,
) -> Result<Json<JobMetadata>> {
    Ok(Json(JobMetadata::of(&path.load(&caller, &db).await?, &db, &base).await?))
}

/// Replace your notes on a study's job.
#[utoipa::path(tag = "studies", params(StudyJobPath), request_body = JobMetadataUpdate, responses((status = 200, description = "Your notes.", body = JobMetadata), Errors))]
#[put("/v0/studies/{study_id:[^/:]+}/jobs/{job_id:[^/:]+}/metadata")]
pub async fn replace_study_job_custom_metadata(
    path: StudyJobPath,
    body: Body<JobMetadataUpdate>,
    caller: Caller,
    base: BaseUrl,
    db: Data<Db>,
) -> Result<Json<JobMetadata>> {
    let metadata = body.0.checked()?;
    jobs::set_metadata(&path.load(&caller, &db).await?, metadata, &db, &base).await
}

/// Get a study's job.
///
/// At once, or, with `Prefer: wait=N`, when its state or progress has changed; inspecting it tells which they are.
#[utoipa::path(tag = "studies", params(StudyJobPath, Prefer), responses(
    (status = 200, description = "The job.", body = Job, headers(("preference-applied" = String, description = "The wait that was granted."))),
    Errors
))]
#[get("/v0/studies/{study_id:[^/:]+}/jobs/{job_id:[^/:]+}")]
pub async fn get_study_job(
    path: StudyJobPath,
    prefer: Prefer,
    caller: Caller,
    base: BaseUrl,
    db: Data<Db>,
    closing: Data<CancellationToken>,
) -> Result<HttpResponse> {
    let job =
        prefer.look(&db, path.job_id, &closing, async || path.load(&caller, &db).await).await?;
    Ok(prefer.applied(HttpResponse::Ok().json(Job::new(&job, &base))))
}

/// Delete a study's job.
///
/// Stops it if it runs; the logs and outputs of all its steps are gone for good.
#[utoipa::path(tag = "studies", params(StudyJobPath), responses(
    (status = 204, description = "Deleted."),
    Errors
))]
#[delete("/v0/studies/{study_id:[^/:]+}/jobs/{job_id:[^/:]+}")]
pub async fn delete_study_job(
    path: StudyJobPath,
    caller: Caller,
    db: Data<Db>,
    wake: Data<Wake>,
) -> Result<HttpResponse> {
    jobs::delete(&path.load(&caller, &db).await?, &db, &wake).await
}
