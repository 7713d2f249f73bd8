//! Creating a job: every value and every file reference is checked before anything is stored.

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
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
        resources::{Amounts, Bound, Bounds, Excess, Kind, Resources},
        solver::{Body, Release, SolverKey, Version},
        steps::Step,
        time::now,
        value::{InputRules, inputs_checksum},
    },
    error::{ApiError, ErrorCode, FieldError, Result},
    solvers::ReleasePath,
    store::{self, Db},
};

/// What new jobs are checked against.
pub struct Rules {
    /// What a job may have of the machine. Each service checks against its own: several on one database had better be alike.
    pub(super) bounds: Bounds,
    /// Whether callbacks may go to addresses that are not public.
    private_callbacks: bool,
    /// The rules of every release that jobs were created for. Ports are immutable, so nothing here ever grows stale.
    inputs: Mutex<HashMap<(SolverKey, Version), Arc<InputRules>>>,
}

impl Rules {
    /// Those of a service with these bounds.
    pub fn new(bounds: Bounds, private_callbacks: bool) -> Self {
        Self { bounds, private_callbacks, inputs: Mutex::default() }
    }

    fn of(&self, release: &Release) -> Result<Arc<InputRules>> {
        let mut known = self.inputs.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(match known.entry((release.key.clone(), release.version.clone())) {
            Entry::Occupied(rules) => rules.get().clone(),
            Entry::Vacant(place) => {
                let rules = InputRules::compile(release)
                    .map_err(|error| ApiError::internal(ErrorCode::Internal, error))?;
                place.insert(Arc::new(rules)).clone()
            }
        })
    }

    /// What is wrong with what a job would take of the machine.
    async fn misfits(&self, release: &Release, asked: Amounts, db: &Db) -> Result<Vec<FieldError>> {
        let at_most = match &release.body {
            Body::Container(container) => container.at_most,
            Body::Steps(_) if asked != Amounts::default() => {
                let rule = "must not be there: each step takes what its own solver declares";
                let field = |kind: Kind| Some((kind.field(), kind.value(asked.of(kind)?)));
                let asked: BTreeMap<_, _> = Kind::ALL.into_iter().filter_map(field).collect();
                let place = ["body", "resources"];
                return Ok(vec![FieldError::new("value_error", &place, asked, rule)]);
            }
            Body::Steps(steps) => return self.misfits_of_steps(&steps.steps, db).await,
        };
        let too_little = Kind::ALL.into_iter().filter_map(|kind| {
            let (amount, least) = (asked.of(kind)?, kind.least());
            let place = ["body", "resources", kind.field()];
            let rule = format!("must be at least {}", kind.value(least));
            let error = FieldError::new("value_error", &place, kind.value(amount), &rule);
            (amount < least).then_some(error)
        });
        let beyond_solver = asked.or(Resources::NOTHING).excesses(at_most, Bound::Solver);
        let beyond_bounds = self.bounds.excesses(asked.or(release.resources()));
        let excesses = beyond_solver.chain(beyond_bounds);
        Ok(too_little.chain(excesses.map(|excess| too_much("the job", excess))).collect())
    }

    /// The same for each step, and the steps of those that are made of steps themselves.
    async fn misfits_of_steps(&self, steps: &[Step], db: &Db) -> Result<Vec<FieldError>> {
        let named = |step: &Step| (format!("step `{}`", step.name), step.clone());
        let mut open: Vec<_> = steps.iter().map(named).collect();
        let mut misfits = Vec::new();
        while let Some((who, step)) = open.pop() {
            let release = db.release_get(&step.solver, &step.version).await?;
            if let Body::Steps(steps) = &release.body {
                open.extend(steps.steps.iter().map(named));
            }
            let excesses = self.bounds.excesses(release.resources());
            misfits.extend(excesses.map(|excess| too_much(&who, excess)));
        }
        Ok(misfits)
    }
}

fn too_much(who: &str, excess: Excess) -> FieldError {
    let Excess { kind, asked, most, .. } = excess;
    let field = kind.field();
    FieldError {
        kind: "value_error",
        msg: format!("`{field}`: {who} {excess}"),
        loc: ["body", "resources", field].map(str::to_owned).into(),
        input: kind.value(asked),
        ctx: Some(json!({"most": kind.value(most)})),
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
    let asked = inputs.asked();
    let JobInputs { values, callback, .. } = inputs;
    let release = db.release_get(&path.solver_key, &path.version).await?;
    let mut wrong = rules.misfits(&release, asked, db).await?;
    let callback = callback.map(|it| it.checked(rules.private_callbacks)).transpose();
    let callback = callback.unwrap_or_else(|errors| {
        wrong.extend(errors);
        None
    });
    let files = rules.of(&release)?.check(&values).unwrap_or_else(|problems| {
        wrong.extend(problems.into_iter().map(|problem| FieldError {
            kind: "value_error",
            ctx: Some(json!({"port": problem.port, "rule": problem.rule})),
            loc: vec!["body".into(), "values".into(), problem.port],
            msg: problem.message,
            input: problem.value,
        }));
        BTreeMap::new()
    });
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
                wrong.push(refuse(format!("input `{port}`: file `{id}` not found")));
                continue;
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
            wrong.push(refuse(message));
        }
    }
    if !wrong.is_empty() {
        return Err(wrong.into());
    }
    let (key, version) = (release.key.clone(), release.version.to_string());
    let job = Job {
        study_id,
        resources: asked.or(release.resources()),
        ..Job::new(caller.id(), key, version, inputs_checksum(&values), now())
    };
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
