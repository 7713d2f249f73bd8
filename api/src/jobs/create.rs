//! Creating a job: every value and every file reference is checked before anything is stored.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use serde_json::json;

use super::{
    JobInputs,
    once::{IdempotencyKey, made},
};
use crate::{
    auth::Caller,
    domain::{
        id::StudyId,
        job::Job,
        solver::{Release, SolverKey, Version},
        time::now,
        value::{InputRules, inputs_checksum},
    },
    error::{ApiError, ErrorCode, FieldError, Result},
    solvers::ReleasePath,
    store::{self, Db},
};

/// A release and its compiled rules.
type Compiled = Arc<(Release, InputRules)>;

/// What new jobs are checked against.
pub struct Rules {
    /// Whether callbacks may go to addresses that are not public.
    private_callbacks: bool,
    /// The rules of every release that jobs were created for. Releases are immutable, so nothing here ever grows stale.
    releases: Mutex<HashMap<(SolverKey, Version), Compiled>>,
}

impl Rules {
    /// Rules of no release yet.
    pub fn new(private_callbacks: bool) -> Self {
        Self { private_callbacks, releases: Mutex::default() }
    }

    async fn of(&self, path: &ReleasePath, db: &Db) -> Result<Compiled> {
        let name = (path.solver_key.clone(), path.version.clone());
        if let Some(known) = self.releases.lock().unwrap_or_else(PoisonError::into_inner).get(&name)
        {
            return Ok(known.clone());
        }
        let release = db.release_get(&path.solver_key, &path.version).await?;
        let rules = InputRules::compile(&release)
            .map_err(|error| ApiError::internal(ErrorCode::Internal, error))?;
        let compiled = Arc::new((release, rules));
        self.releases.lock().unwrap_or_else(PoisonError::into_inner).insert(name, compiled.clone());
        Ok(compiled)
    }
}

/// Creates a job for the caller, of a release or, by its release, of a study.
pub(crate) async fn create(
    path: &ReleasePath,
    study_id: Option<StudyId>,
    inputs: JobInputs,
    key: IdempotencyKey,
    caller: &Caller,
    db: &Db,
    rules: &Rules,
) -> Result<Job> {
    let once = key.of_job(path, study_id, &inputs);
    // Before all checks: a repetition succeeds even if an input file is gone by now.
    if let Some(once) = &once
        && let Some(job) = made(once, caller, db).await?
    {
        return Ok(job);
    }
    let JobInputs { values, callback } = inputs;
    let callback = callback.map(|it| it.checked(rules.private_callbacks)).transpose()?;
    let compiled = rules.of(path, db).await?;
    let (release, rules) = &*compiled;
    let files = rules.check(&values).map_err(|problems| {
        let fields = problems.into_iter().map(|problem| FieldError {
            kind: "value_error",
            ctx: Some(json!({"port": problem.port, "rule": problem.rule})),
            loc: vec!["body".into(), "values".into(), problem.port],
            msg: problem.message,
            input: problem.value,
        });
        ApiError::from(fields.collect::<Vec<_>>())
    })?;
    let mut places =
        HashMap::from([("inputs.json".to_owned(), "the values of the other inputs".to_owned())]);
    for (port, id) in files {
        let refuse = |msg: String| FieldError {
            kind: "file",
            loc: vec!["body".into(), "values".into(), port.clone()],
            msg,
            input: json!(id),
            ctx: None,
        };
        let file = match db.file_get(id, caller.id()).await {
            Ok(file) => file,
            Err(store::Error::NotFound { .. }) => {
                return Err(refuse(format!("input `{port}`: file `{id}` not found")).into());
            }
            Err(error) => return Err(error.into()),
        };
        let fixed = release
            .inputs
            .iter()
            .find(|input| input.key == port)
            .and_then(|input| input.path.clone());
        let place = fixed.unwrap_or(file.filename);
        if let Some(other) = places.insert(place.clone(), format!("input `{port}`")) {
            let message = format!(
                "input `{port}`: the solver would find it as `{place}`, where {other} is already; rename the file"
            );
            return Err(refuse(message).into());
        }
    }
    let (key, version) = (release.key.clone(), release.version.to_string());
    let job =
        Job { study_id, ..Job::new(caller.id(), key, version, inputs_checksum(&values), now()) };
    let Some(once) = &once else {
        db.job_add(&job, &values, callback.as_ref()).await?;
        return Ok(job);
    };
    if db.job_add_once(&job, &values, callback.as_ref(), once).await? {
        return Ok(job);
    }
    // A repetition was faster.
    let made = made(once, caller, db).await?;
    made.ok_or_else(|| ApiError::internal(ErrorCode::Internal, "an idempotency key came and went"))
}
