//! Creating a job: every value and every file reference is checked before anything is stored.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use serde_json::json;

use super::once::{IdempotencyKey, made};
use crate::{
    auth::Caller,
    domain::{
        id::StudyId,
        job::Job,
        solver::{Release, SolverKey, Version},
        time::now,
        value::{InputRules, Values, inputs_checksum},
    },
    error::{ApiError, ErrorCode, FieldError, Result},
    solvers::ReleasePath,
    store::{self, Db},
};

/// A release and its compiled rules.
type Compiled = Arc<(Release, InputRules)>;

/// The rules of every release that jobs were created for. Releases are immutable, so nothing here ever grows stale.
#[derive(Default)]
pub struct Rules(Mutex<HashMap<(SolverKey, Version), Compiled>>);

impl Rules {
    async fn of(&self, path: &ReleasePath, db: &Db) -> Result<Compiled> {
        let name = (path.solver_key.clone(), path.version.clone());
        if let Some(known) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&name) {
            return Ok(known.clone());
        }
        let release = db.release_get(&path.solver_key, &path.version).await?;
        let rules = InputRules::compile(&release)
            .map_err(|error| ApiError::internal(ErrorCode::Internal, error))?;
        let compiled = Arc::new((release, rules));
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name, compiled.clone());
        Ok(compiled)
    }
}

/// Creates a job for the caller, of a release or, by its release, of a study.
pub(crate) async fn create(
    path: &ReleasePath,
    study_id: Option<StudyId>,
    values: Values,
    key: IdempotencyKey,
    caller: &Caller,
    db: &Db,
    rules: &Rules,
) -> Result<Job> {
    let once = key.of_job(path, study_id, &values);
    // Before all checks: a repetition succeeds even if an input file is gone by now.
    if let Some(once) = &once
        && let Some(job) = made(once, caller, db).await?
    {
        return Ok(job);
    }
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
        db.job_add(&job, &values).await?;
        return Ok(job);
    };
    if db.job_add_once(&job, &values, once).await? {
        return Ok(job);
    }
    // A repetition was faster.
    let made = made(once, caller, db).await?;
    made.ok_or_else(|| ApiError::internal(ErrorCode::Internal, "an idempotency key came and went"))
}
