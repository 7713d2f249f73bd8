//! Jobs over HTTP: thin handlers, and the wire types that only they use.

#![expect(unreachable_pub, reason = "the route macros nest the handlers")]

pub mod callbacks;
mod create;
mod events;
pub mod lists;
mod logs;
mod once;
mod wait;

use std::collections::HashMap;

use actix_web::{
    HttpRequest, HttpResponse, delete, get,
    http::{StatusCode, header},
    patch, post,
    web::{Data, Json},
};
use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use utoipa::{
    IntoParams, PartialSchema, ToSchema,
    openapi::{
        ArrayBuilder, KnownFormat, ObjectBuilder, Ref, RefOr, Schema, SchemaFormat,
        schema::{AnyOfBuilder, OneOfBuilder, SchemaType, Type},
    },
};
use uuid::Uuid;

pub use create::Rules;
pub(crate) use create::create;
pub use once::IdempotencyKey;
pub use wait::Prefer;

use crate::{
    auth::Caller,
    dispatch::{LogZips, Wake},
    domain::{
        file::{File, FileRef},
        filter::JobFilter,
        id::JobId,
        job::{Job as DomainJob, JobStatus},
        resources::Amounts,
        solver::{SolverKey, Version},
        time::now,
        value::Values,
        webhook::CallbackStatus,
    },
    error::{ApiError, ErrorCode, Errors, FieldError, Result},
    files::Content,
    objects::Objects,
    paging::{Page, Paging},
    request::{BaseUrl, Body, OptionalBody, Params, from_request},
    solvers::{ReleasePath, release_path},
    store::{Db, Window},
};

from_request!(JobPath, CreateQuery, Parent, StartQuery);

/// A page of jobs. An alias, because utoipa would look for a derive on `Page<Job>`.
type JobPage = Page<Job>;

/// The largest notes on a job, in bytes of JSON.
const METADATA_LIMIT: usize = 64 << 10;

/// Names a job in a path.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
pub struct JobPath {
    /// Key of the solver; its slashes may be written as `%2F` or as they are.
    #[param(value_type = String, example = "simcore/services/comp/itis/sleeper")]
    pub solver_key: SolverKey,
    /// Version of the solver.
    #[param(value_type = String, example = "2.1.6")]
    pub version: Version,
    /// Identifies the job.
    #[param(value_type = uuid::Uuid)]
    pub job_id: JobId,
}

impl JobPath {
    fn of(request: &HttpRequest) -> Result<Self> {
        let params = Params::of_path(request)?;
        let ReleasePath { solver_key, version } = ReleasePath::read(&params)?;
        Ok(Self {
            solver_key,
            version,
            job_id: params.need("job_id", "must be a UUID", str::parse)?,
        })
    }

    /// Whether the job is one of the release that the path names: under any other it does not exist.
    fn check(&self, job: DomainJob) -> Result<DomainJob> {
        if job.solver_key == self.solver_key && job.solver_version == self.version.to_string() {
            return Ok(job);
        }
        Err(ApiError::new(
            ErrorCode::NotFound,
            format!("{} {} has no job `{}`", self.solver_key, self.version, self.job_id),
        ))
    }

    /// Loads the job; that is checking the right to it.
    pub(crate) async fn load(&self, caller: &Caller, db: &Db) -> Result<DomainJob> {
        self.check(db.job_get(self.job_id, caller.id()).await?)
    }
}

/// How a job is created.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub struct CreateQuery {
    /// Whether oSPARC's front end would hide the job; without effect here.
    #[param(default = true, required = false)]
    #[expect(dead_code, reason = "checked, then without effect")]
    hidden: bool,
}

impl CreateQuery {
    fn of(request: &HttpRequest) -> Result<Self> {
        Ok(Self { hidden: Params::of_query(request)?.flag("hidden")?.unwrap_or(true) })
    }
}

/// What oSPARC's clients say about the job in which they run themselves.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "checked, then without effect")]
pub struct Parent {
    /// The study that creates the job; without effect here.
    #[param(rename = "x-simcore-parent-project-uuid", value_type = Option<uuid::Uuid>)]
    project: Option<Uuid>,
    /// The node of that study; without effect here.
    #[param(rename = "x-simcore-parent-node-id", value_type = Option<uuid::Uuid>)]
    node: Option<Uuid>,
}

impl Parent {
    fn of(request: &HttpRequest) -> Result<Self> {
        let params = Params::of_headers(request);
        let uuid = |name: &str| {
            params.get(name, "must be a UUID", |text| match text {
                "null" => Ok(None),
                text => text.parse().map(Some),
            })
        };
        Ok(Self {
            project: uuid("x-simcore-parent-project-uuid")?.flatten(),
            node: uuid("x-simcore-parent-node-id")?.flatten(),
        })
    }
}

/// How a job is started.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub struct StartQuery {
    /// A cluster of oSPARC's; without effect here.
    #[param(minimum = 0)]
    #[deprecated]
    #[expect(dead_code, reason = "checked, then without effect")]
    cluster_id: Option<i64>,
}

impl StartQuery {
    fn of(request: &HttpRequest) -> Result<Self> {
        let params = Params::of_query(request)?;
        let digits = |text: &str| {
            let number = text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse().ok().filter(|_| number).ok_or(())
        };
        let rule = "must be a number from 0 to 2^63 - 1";
        #[expect(deprecated, reason = "clients may send it")]
        Ok(Self { cluster_id: params.get("cluster_id", rule, digits)? })
    }
}

/// How a job's files were encrypted.
#[derive(Deserialize, ToSchema)]
pub struct JobEncryptionInputs {
    /// The key.
    #[serde(rename = "root_key")]
    #[schema(format = "password")]
    _root_key: String,
    /// Encrypted files by port.
    #[serde(default, rename = "input_port_to_file_id")]
    #[schema(value_type = HashMap<String, FileIdText>)]
    _input_port_to_file_id: HashMap<String, String>,
}

/// A file's id, as text.
#[derive(ToSchema)]
#[schema(as = FileIDStr, min_length = 1, max_length = 65535)]
#[expect(dead_code, reason = "only its schema is used")]
pub struct FileIdText(String);

/// Values of a job's inputs, and where its end is to be told.
#[derive(Deserialize, ToSchema)]
#[schema(example = json!({"values": {"input_2": 3, "input_3": false}}))]
pub struct JobInputs {
    /// By port. Ports that are left out take their default.
    #[schema(value_type = KeywordArguments)]
    values: Values,
    /// Where the end of the job is to be told. Nobody is told of a job that was deleted.
    callback: Option<callbacks::JobCallback>,
    resources: Option<JobResources>,
}

impl JobInputs {
    /// What is asked for of the machine.
    fn asked(&self) -> Amounts {
        self.resources.map_or_else(Amounts::default, Amounts::from)
    }
}

/// What the job is to have of a machine, within its solver's limits. What is left out is as the solver declares it.
#[derive(Clone, Copy, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"cpus": 1.5, "memory_bytes": 1_073_741_824}))]
pub struct JobResources {
    /// Number of CPUs.
    #[schema(minimum = 0.01)]
    cpus: Option<f64>,
    /// Bytes of memory; with more the solver is killed.
    #[schema(minimum = 6_291_456)]
    memory_bytes: Option<i64>,
    /// Number of GPUs, for this job alone.
    #[schema(minimum = 0)]
    gpus: Option<i64>,
}

impl From<JobResources> for Amounts {
    fn from(asked: JobResources) -> Self {
        let JobResources { cpus, memory_bytes, gpus } = asked;
        #[expect(clippy::cast_possible_truncation, reason = "more than fits is more than there is")]
        let nano_cpus = cpus.map(|cpus| (cpus * 1e9).round() as i64);
        Self { nano_cpus, memory_bytes, gpus }
    }
}

/// A run of a solver.
#[derive(Serialize, ToSchema)]
pub struct Job {
    #[schema(value_type = uuid::Uuid)]
    id: JobId,
    /// Unique name of the job.
    #[schema(pattern = r"^([^\s/]+/?){1,10}$")]
    name: String,
    /// Fingerprint of the input values: SHA-256, hexadecimal.
    inputs_checksum: String,
    created_at: DateTime<Utc>,
    /// Unique name of the release that runs.
    #[schema(pattern = r"^([^\s/]+/?){1,10}$")]
    runner_name: String,
    /// This job.
    #[schema(format = "uri", min_length = 1, max_length = 2083, required)]
    url: Option<String>,
    /// The release that runs.
    #[schema(format = "uri", min_length = 1, max_length = 2083, required)]
    runner_url: Option<String>,
    /// The job's outputs.
    #[schema(format = "uri", min_length = 1, max_length = 2083, required)]
    outputs_url: Option<String>,
}

impl Job {
    pub(crate) fn new(job: &DomainJob, base: &BaseUrl) -> Self {
        let (runner_name, runner_path) = runner(job);
        let runner_url = base.join(&runner_path);
        let url = format!("{runner_url}/jobs/{}", job.id);
        Self {
            id: job.id,
            name: format!("{runner_name}/jobs/{}", job.id),
            inputs_checksum: job.inputs_checksum.clone(),
            created_at: job.created_at,
            runner_name,
            outputs_url: Some(format!("{url}/outputs")),
            url: Some(url),
            runner_url: Some(runner_url),
        }
    }
}

/// Name and path of what a job runs: the study that it was created under, or else the release.
fn runner(job: &DomainJob) -> (String, String) {
    if let Some(study) = job.study_id {
        return (format!("studies/{study}"), format!("/v0/studies/{study}"));
    }
    let key = job.solver_key.as_str().replace('/', "%2F");
    let path = release_path(&job.solver_key, &job.solver_version);
    (format!("solvers/{key}/releases/{}", job.solver_version), path)
}

/// Values of a job's outputs.
#[derive(Serialize, ToSchema)]
pub struct JobOutputs {
    #[schema(value_type = uuid::Uuid)]
    job_id: JobId,
    /// By port; every declared port is there.
    #[schema(value_type = KeywordArguments)]
    results: Values,
}

/// Your notes on a job.
#[derive(Serialize, ToSchema)]
pub struct JobMetadata {
    #[schema(value_type = uuid::Uuid)]
    job_id: JobId,
    #[schema(value_type = HashMap<String, MetaValueType>)]
    metadata: Values,
    /// These notes.
    #[schema(format = "uri", min_length = 1, max_length = 2083, required)]
    url: Option<String>,
}

impl JobMetadata {
    fn new(job: &DomainJob, metadata: Values, base: &BaseUrl) -> Self {
        let path = format!("{}/jobs/{}/metadata", runner(job).1, job.id);
        Self { job_id: job.id, metadata, url: Some(base.join(&path)) }
    }

    /// The notes on a job.
    pub(crate) async fn of(job: &DomainJob, db: &Db, base: &BaseUrl) -> Result<Self> {
        Ok(Self::new(job, db.job_metadata(job.id).await?, base))
    }
}

/// New notes, in place of all that were there.
#[derive(Deserialize, ToSchema)]
#[schema(example = json!({"metadata": {"study": "cantilever", "mesh": 3}}))]
pub struct JobMetadataUpdate {
    #[serde(default)]
    #[schema(value_type = HashMap<String, MetaValueType>)]
    metadata: Values,
}

impl JobMetadataUpdate {
    /// The notes, if each is what a note may be, and all together are not too large.
    pub(crate) fn checked(self) -> Result<Values> {
        let wrong: Vec<_> = self
            .metadata
            .iter()
            .filter(|(_, value)| !(value.is_boolean() || value.is_number() || value.is_string()))
            .map(|(key, value)| {
                FieldError::new(
                    "value_error",
                    &["body", "metadata", key],
                    value,
                    "must be true, false, a number or text",
                )
            })
            .collect();
        if !wrong.is_empty() {
            return Err(wrong.into());
        }
        let size = serde_json::to_vec(&self.metadata).map_or(usize::MAX, |text| text.len());
        if size > METADATA_LIMIT {
            let rule = format!("must not be larger than {METADATA_LIMIT} bytes of JSON");
            let size = format!("{size} bytes");
            return Err(FieldError::new("too_long", &["body", "metadata"], size, &rule).into());
        }
        Ok(self.metadata)
    }
}

/// Values by port.
#[derive(ToSchema)]
#[schema(as = KeywordArguments)]
#[expect(dead_code, clippy::zero_sized_map_values, reason = "only its schema is used")]
pub struct KeywordArguments(HashMap<String, ArgumentTypes>);

/// What a port takes: a file, a number, a truth value, text, a list, or nothing.
pub struct ArgumentTypes;

/// What a note may be: a truth value, a number or text.
pub struct MetaValueType;

// Unions by hand: the derive writes `oneOf`, also where one value matches two of its members.
impl ToSchema for ArgumentTypes {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push((FileRef::name().into(), FileRef::schema()));
    }
}

impl PartialSchema for ArgumentTypes {
    fn schema() -> RefOr<Schema> {
        let list =
            ArrayBuilder::new().items(ObjectBuilder::new().schema_type(SchemaType::AnyValue));
        [Type::Number, Type::Integer, Type::Boolean, Type::String]
            .into_iter()
            .fold(
                AnyOfBuilder::new().item(Ref::from_schema_name(FileRef::name())),
                |union, plain| union.item(ObjectBuilder::new().schema_type(plain)),
            )
            // Null stands with the list: as a member of its own it would make Go's generator write pointers.
            .item(list.schema_type(SchemaType::from_iter([Type::Array, Type::Null])))
            // With a description, that generator writes `interface{}`, without one `*interface{}`.
            .description(Some("A file, a number, a truth value, text, a list, or nothing."))
            .into()
    }
}

impl ToSchema for MetaValueType {}

impl PartialSchema for MetaValueType {
    fn schema() -> RefOr<Schema> {
        // Disjoint members: TypeScript's generator makes nothing of `anyOf`. Without a format, Go's would take 32 bits.
        let number = ObjectBuilder::new()
            .schema_type(Type::Number)
            .format(Some(SchemaFormat::KnownFormat(KnownFormat::Double)));
        OneOfBuilder::new()
            .item(ObjectBuilder::new().schema_type(Type::Boolean))
            .item(number)
            .item(ObjectBuilder::new().schema_type(Type::String))
            .into()
    }
}

/// Create a job.
///
/// Checks the values against the solver's ports, and what the job takes of the machine against what there is; nothing runs before the
/// job is started. A value whose text is valid for its port is accepted and delivered as it is. Values for unknown ports are noted in the
/// job's log. A request with an `Idempotency-Key` may be repeated: there is one job, and every answer is the same. With a `callback` nobody
/// has to wait for its end.
#[utoipa::path(tag = "jobs", params(ReleasePath, CreateQuery, Parent, IdempotencyKey), request_body = JobInputs, responses(
    (status = 201, description = "The job, not started.", body = Job),
    (status = 409, description = "The job that this key made was deleted.", body = crate::error::ErrorBody),
    Errors
))]
#[post("/v0/solvers/{solver_key:[^-].*}/releases/{version}/jobs")]
#[expect(clippy::too_many_arguments, reason = "each is one thing that the handler touches")]
pub async fn create_solver_job(
    path: ReleasePath,
    _: (CreateQuery, Parent),
    key: IdempotencyKey,
    body: Body<JobInputs>,
    caller: Caller,
    base: BaseUrl,
    db: Data<Db>,
    rules: Data<Rules>,
) -> Result<HttpResponse> {
    let job = create(&path, None, body.0, key, &caller, &db, &rules).await?;
    Ok(HttpResponse::Created().json(Job::new(&job, &base)))
}

/// List the jobs of a release.
///
/// All of them: prefer the pages.
#[utoipa::path(tag = "jobs", params(ReleasePath), responses((status = 200, description = "Your jobs, newest first.", body = Vec<Job>), Errors))]
#[get("/v0/solvers/{solver_key:.+}/releases/{version}/jobs")]
pub async fn list_jobs(
    path: ReleasePath,
    caller: Caller,
    base: BaseUrl,
    db: Data<Db>,
) -> Result<Json<Vec<Job>>> {
    let all = Window { limit: i64::MAX, offset: 0, oldest_first: false };
    let (jobs, _) = page(&path, &caller, &db, all).await?;
    Ok(Json(jobs.iter().map(|job| Job::new(job, &base)).collect()))
}

/// List the jobs of a release, in pages.
#[utoipa::path(tag = "jobs", params(ReleasePath, Paging), responses((status = 200, description = "A page of your jobs, newest first.", body = JobPage), Errors))]
#[get("/v0/solvers/{solver_key:.+}/releases/{version}/jobs/page")]
pub async fn list_jobs_paginated(
    path: ReleasePath,
    paging: Paging,
    caller: Caller,
    base: BaseUrl,
    db: Data<Db>,
) -> Result<Json<JobPage>> {
    let (jobs, total) = page(&path, &caller, &db, lists::window(&paging)).await?;
    Ok(Json(paging.page(jobs.iter().map(|job| Job::new(job, &base)).collect(), total)))
}

async fn page(
    path: &ReleasePath,
    caller: &Caller,
    db: &Db,
    window: Window,
) -> Result<(Vec<DomainJob>, i64)> {
    db.release_get(&path.solver_key, &path.version).await?;
    let release = (path.solver_key.clone(), path.version.to_string());
    let filter = JobFilter { releases: Some(vec![release]), ..JobFilter::default() };
    Ok(db.jobs_list(caller.id(), &filter, window).await?)
}

/// Fails if the job's outputs and log were deleted.
fn check_assets(job: &DomainJob) -> Result<()> {
    let Some(at) = job.assets_deleted_at else { return Ok(()) };
    let at = at.to_rfc3339_opts(SecondsFormat::Secs, true);
    let message = format!("the assets of job `{}` were deleted at {at}", job.id);
    Err(ApiError::new(ErrorCode::AssetsDeleted, message))
}

/// Start a job.
///
/// Queues it. Starting it again changes nothing and answers 200. No body is needed.
#[utoipa::path(tag = "jobs", params(JobPath, StartQuery), request_body = Option<JobEncryptionInputs>, responses(
    (status = 202, description = "Queued.", body = JobStatus),
    (status = 200, description = "It was started before.", body = JobStatus),
    (status = 409, description = "Its assets were deleted, its files are encrypted, which cannot be read here, or you have as many jobs in the queue as there may be.", body = crate::error::ErrorBody),
    Errors
))]
#[post("/v0/solvers/{solver_key:.+}/releases/{version}/jobs/{job_id:[^/:]+}:start")]
pub async fn start_job(
    path: JobPath,
    _query: StartQuery,
    encryption: OptionalBody<JobEncryptionInputs>,
    caller: Caller,
    db: Data<Db>,
    wake: Data<Wake>,
    rules: Data<Rules>,
) -> Result<HttpResponse> {
    if encryption.0.is_some() {
        return Err(ApiError::new(
            ErrorCode::Conflict,
            format!(
                "job `{}` cannot be started with `root_key`: this service reads no encrypted files",
                path.job_id
            ),
        ));
    }
    start(&path.load(&caller, &db).await?, &db, &wake, &rules).await
}

/// Starts a job that the caller has loaded.
pub(crate) async fn start(
    job: &DomainJob,
    db: &Db,
    wake: &Wake,
    rules: &Rules,
) -> Result<HttpResponse> {
    let (job, first) = match rules.bounds.owner.queued {
        Some(most) => db.job_publish_within(job.id, job.owner, most, now()).await?,
        None => db.job_publish(job.id, job.owner, now()).await?,
    };
    check_assets(&job)?;
    wake.notify();
    let status = if first { StatusCode::ACCEPTED } else { StatusCode::OK };
    Ok(HttpResponse::build(status).json(JobStatus::from(job)))
}

/// Inspect a job.
///
/// At once, or, with `Prefer: wait=N`, when there is news.
#[utoipa::path(tag = "jobs", params(JobPath, Prefer), responses(
    (status = 200, description = "How it is getting on.", body = JobStatus, headers(("preference-applied" = String, description = "The wait that was granted."))),
    Errors
))]
#[post("/v0/solvers/{solver_key:.+}/releases/{version}/jobs/{job_id:[^/:]+}:inspect")]
pub async fn inspect_job(
    path: JobPath,
    prefer: Prefer,
    caller: Caller,
    db: Data<Db>,
    closing: Data<CancellationToken>,
) -> Result<HttpResponse> {
    let job =
        prefer.look(&db, path.job_id, &closing, async || path.load(&caller, &db).await).await?;
    Ok(prefer.applied(HttpResponse::Ok().json(JobStatus::from(job))))
}

/// Stop a job.
///
/// A queued or running job ends as ABORTED shortly after; any other stays as it is.
#[utoipa::path(tag = "jobs", params(JobPath), responses((status = 200, description = "How it is getting on.", body = JobStatus), Errors))]
#[post("/v0/solvers/{solver_key:.+}/releases/{version}/jobs/{job_id:[^/:]+}:stop")]
pub async fn stop_job(
    path: JobPath,
    caller: Caller,
    db: Data<Db>,
    wake: Data<Wake>,
) -> Result<Json<JobStatus>> {
    stop(&path.load(&caller, &db).await?, &db, &wake).await
}

/// Stops a job that the caller has loaded.
pub(crate) async fn stop(job: &DomainJob, db: &Db, wake: &Wake) -> Result<Json<JobStatus>> {
    let job = db.job_request_stop(job.id, job.owner, now()).await?;
    wake.notify();
    Ok(Json(job.into()))
}

/// Get a job's outputs.
#[utoipa::path(tag = "jobs", params(JobPath), responses(
    (status = 200, description = "Values of all outputs.", body = JobOutputs),
    (status = 409, description = "The job has not succeeded, or its assets were deleted.", body = crate::error::ErrorBody),
    Errors
))]
#[get("/v0/solvers/{solver_key:.+}/releases/{version}/jobs/{job_id:[^/:]+}/outputs")]
pub async fn get_job_outputs(
    path: JobPath,
    caller: Caller,
    db: Data<Db>,
) -> Result<Json<JobOutputs>> {
    outputs(path.load(&caller, &db).await?, &db).await
}

/// The outputs of a job that the caller has loaded.
pub(crate) async fn outputs(job: DomainJob, db: &Db) -> Result<Json<JobOutputs>> {
    check_assets(&job)?;
    let Some(results) = db.job_outputs(job.id).await? else {
        let why = job.error.map_or_else(String::new, |error| format!(": {}", error.msg));
        return Err(ApiError::new(
            ErrorCode::NoOutputs,
            format!("job `{}` has no outputs, it is {}{why}", job.id, job.state),
        ));
    };
    Ok(Json(JobOutputs { job_id: job.id, results }))
}

/// Download a job's log.
///
/// A zip with one text file. There is none before the job has ended, nor after its assets were deleted.
#[utoipa::path(tag = "jobs", params(JobPath), responses(
    (status = 200, description = "The zip, after following the link.", body = inline(Content), content_type = "application/zip"),
    (status = 307, description = "Where the zip is.", headers(("location" = String, description = "A link that is good for an hour."))),
    Errors
))]
#[get("/v0/solvers/{solver_key:.+}/releases/{version}/jobs/{job_id:[^/:]+}/outputs/logfile")]
pub async fn get_job_output_logfile(
    path: JobPath,
    caller: Caller,
    db: Data<Db>,
    objects: Data<Objects>,
    logs: Data<LogZips>,
) -> Result<HttpResponse> {
    let job = path.load(&caller, &db).await?;
    let link = log_link(&job, &objects, &logs).await?;
    Ok(HttpResponse::TemporaryRedirect().insert_header((header::LOCATION, link)).finish())
}

/// A link to the log zip of a job that has ended; it needs no credentials.
pub(crate) async fn log_link(job: &DomainJob, objects: &Objects, logs: &LogZips) -> Result<String> {
    let key = match &job.log_key {
        Some(key) => key.clone(),
        // The object store was away when the job ended.
        None if job.state.is_final() && job.assets_deleted_at.is_none() => logs
            .make_up(job)
            .await
            .map_err(|error| ApiError::internal(ErrorCode::StorageUnavailable, error))?,
        None => {
            let why = if job.assets_deleted_at.is_some() {
                "it was deleted".to_owned()
            } else {
                format!("the job is {}", job.state)
            };
            let message = format!("log of job `{}` not found: {why}", job.id);
            return Err(ApiError::new(ErrorCode::NotFound, message));
        }
    };
    let name = format!("{}_{}_{}.zip", job.solver_key.short_name(), job.solver_version, job.id);
    Ok(objects.presign_get(&key, &name, Some("application/zip")).await?)
}

/// Follow a job's log.
///
/// From its first line to its end, one JSON object per line; several readers may follow.
#[utoipa::path(tag = "jobs", params(JobPath), responses(
    (status = 200, description = "Lines as they come, each a JobLog; if it breaks off, the last one is an ErrorGet.", body = inline(logs::Lines), content_type = "application/x-ndjson"),
    Errors
))]
#[get("/v0/solvers/{solver_key:.+}/releases/{version}/jobs/{job_id:[^/:]+}/logstream")]
pub async fn get_log_stream(path: JobPath, caller: Caller, db: Data<Db>) -> Result<HttpResponse> {
    let job = path.load(&caller, &db).await?;
    let lines = logs::follow(db.as_ref().clone(), job.id, caller.id());
    Ok(HttpResponse::Ok().content_type("application/x-ndjson").streaming(lines))
}

/// Follow a job.
///
/// Server-sent events, from the job's creation to its end: `state` (`{"job_id", "state", "at", "errors"}`), `progress` (`{"job_id",
/// "progress"}`) and `log` (a line, as in the log stream). The last one is the `state` in which the job has ended. Each event has an
/// id: with it in `Last-Event-ID` the stream goes on right behind that event, also after the service was restarted. Comments keep the
/// connection alive.
#[utoipa::path(tag = "jobs", params(events::EventsPath, events::Resume), responses(
    (status = 200, description = "Events as they come.", body = serde_json::Value, content_type = "text/event-stream"),
    (status = 204, description = "The job has ended, and you have seen its last event."),
    Errors
))]
#[get("/v0/jobs/{job_id:[^/:]+}/events")]
pub async fn get_job_events(
    path: events::EventsPath,
    resume: events::Resume,
    caller: Caller,
    db: Data<Db>,
    closing: Data<CancellationToken>,
) -> Result<HttpResponse> {
    let (db, closing) = (db.as_ref().clone(), closing.as_ref().clone());
    let Some(events) = events::follow(&path, &resume, &caller, db, closing).await? else {
        return Ok(HttpResponse::NoContent().finish());
    };
    Ok(HttpResponse::Ok()
        .content_type("text/event-stream")
        .insert_header((header::CACHE_CONTROL, "no-store"))
        // Proxies like nginx would collect the events before they pass them on.
        .insert_header(("X-Accel-Buffering", "no"))
        .streaming(events))
}

/// Get a job's callback.
///
/// Where the end of the job is told, and what became of that: only if the job was created with a callback.
#[utoipa::path(tag = "jobs", params(events::EventsPath), responses((status = 200, description = "How it stands.", body = CallbackStatus), Errors))]
#[get("/v0/jobs/{job_id:[^/:]+}/callback")]
pub async fn get_job_callback(
    path: events::EventsPath,
    caller: Caller,
    db: Data<Db>,
) -> Result<Json<CallbackStatus>> {
    Ok(Json(db.callback_get(path.job_id, caller.id()).await?))
}

/// Get your notes on a job.
#[utoipa::path(tag = "jobs", params(JobPath), responses((status = 200, description = "Your notes.", body = JobMetadata), Errors))]
#[get("/v0/solvers/{solver_key:.+}/releases/{version}/jobs/{job_id:[^/:]+}/metadata")]
pub async fn get_job_custom_metadata(
    path: JobPath,
    caller: Caller,
    base: BaseUrl,
    db: Data<Db>,
) -> Result<Json<JobMetadata>> {
    Ok(Json(JobMetadata::of(&path.load(&caller, &db).await?, &db, &base).await?))
}

/// Replace your notes on a job.
#[utoipa::path(tag = "jobs", params(JobPath), request_body = JobMetadataUpdate, responses((status = 200, description = "Your notes.", body = JobMetadata), Errors))]
#[patch("/v0/solvers/{solver_key:.+}/releases/{version}/jobs/{job_id:[^/:]+}/metadata")]
pub async fn replace_job_custom_metadata(
    path: JobPath,
    body: Body<JobMetadataUpdate>,
    caller: Caller,
    base: BaseUrl,
    db: Data<Db>,
) -> Result<Json<JobMetadata>> {
    let metadata = body.0.checked()?;
    let job = path.load(&caller, &db).await?;
    set_metadata(&job, metadata, &db, &base).await
}

/// Replaces the notes on a job that the caller has loaded.
pub(crate) async fn set_metadata(
    job: &DomainJob,
    metadata: Values,
    db: &Db,
    base: &BaseUrl,
) -> Result<Json<JobMetadata>> {
    db.job_set_metadata(job.id, job.owner, &metadata).await?;
    Ok(Json(JobMetadata::new(job, metadata, base)))
}

/// Get a job.
///
/// At once, or, with `Prefer: wait=N`, when its state or progress has changed; inspecting it tells which they are.
#[utoipa::path(tag = "jobs", params(JobPath, Prefer), responses(
    (status = 200, description = "The job.", body = Job, headers(("preference-applied" = String, description = "The wait that was granted."))),
    Errors
))]
#[get("/v0/solvers/{solver_key:.+}/releases/{version}/jobs/{job_id:[^/:]+}")]
pub async fn get_job(
    path: JobPath,
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

/// Delete a job.
///
/// Stops it if it runs; its log and outputs are gone for good.
#[utoipa::path(tag = "jobs", params(JobPath), responses(
    (status = 204, description = "Deleted."),
    (status = 409, description = "The job is a step of another.", body = crate::error::ErrorBody),
    Errors
))]
#[delete("/v0/solvers/{solver_key:.+}/releases/{version}/jobs/{job_id:[^/:]+}")]
pub async fn delete_job(
    path: JobPath,
    caller: Caller,
    db: Data<Db>,
    wake: Data<Wake>,
) -> Result<HttpResponse> {
    delete(&path.load(&caller, &db).await?, &db, &wake).await
}

/// Deletes a job that the caller has loaded.
pub(crate) async fn delete(job: &DomainJob, db: &Db, wake: &Wake) -> Result<HttpResponse> {
    db.job_request_delete(job.id, job.owner, now()).await?;
    wake.notify();
    Ok(HttpResponse::NoContent().finish())
}

/// Delete a job's assets.
///
/// Its output files and its log, and those of its steps, are gone for good; the job stays, with status and notes. May be repeated.
#[utoipa::path(tag = "jobs", params(JobPath), responses(
    (status = 204, description = "Deleted."),
    (status = 409, description = "The job has not ended, or is a step of another.", body = crate::error::ErrorBody),
    Errors
))]
#[delete("/v0/solvers/{solver_key:.+}/releases/{version}/jobs/{job_id:[^/:]+}/assets")]
pub async fn delete_job_assets(
    path: JobPath,
    caller: Caller,
    db: Data<Db>,
    objects: Data<Objects>,
) -> Result<HttpResponse> {
    let job = path.load(&caller, &db).await?;
    let (jobs, files) = db.job_delete_assets(job.id, caller.id(), now()).await?;
    let logs = jobs.into_iter().map(DomainJob::log_object_key);
    for key in files.into_iter().map(File::object_key).chain(logs) {
        objects.forget(&key, None).await;
    }
    Ok(HttpResponse::NoContent().finish())
}
