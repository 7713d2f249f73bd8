//! A claimed job whose body is steps: puts a job into the queue for each step whose data are there, and follows them to their end.
//!
//! Everything is decided from what the database holds, so whoever takes over after a restart goes on where the last one stopped.

use std::collections::{BTreeMap, HashSet};

use serde_json::Map;
use solverd_runner::task::FailureKind;
use tokio_util::sync::CancellationToken;

use super::{Dispatcher, Result, finish::Ending, logs::log_line, task::unknown_ports};
use crate::{
    domain::{
        job::{Job, JobError, JobState},
        solver::{Body, Release},
        steps::{Source, Step, Steps, fold},
        time::now,
        value::{InputRules, Values, cast_output, inputs_checksum},
    },
    store::{self, Claimed},
};

impl Dispatcher {
    /// Follows the steps to their end; `None` when the service is shut down before.
    pub(super) async fn follow_steps(
        &self,
        claimed: &mut Claimed,
        stop: &CancellationToken,
    ) -> Result<Option<Ending>> {
        let inner = &self.0;
        let id = claimed.job.id;
        let mut changed = inner.db.job_changes(id);
        let (release, inputs) = self.persist(|| self.whole(&claimed.job)).await?;
        let Body::Steps(steps) = &release.body else {
            let message = "the solver has no steps".to_owned();
            return Ok(Some(self.failed(claimed, FailureKind::Machine, message).await));
        };
        let mut refusal: Option<JobError> = None;
        let mut waiting = HashSet::new();
        loop {
            let stopping = stop.is_cancelled();
            if inner.closing.is_cancelled() {
                return Ok(None);
            }
            let jobs = self.persist(|| inner.db.job_children(id)).await?;
            let standing = fold(&claimed.job, steps, &jobs, stopping);
            if jobs.iter().any(|job| job.started_at.is_some()) {
                self.begin_and_progress(claimed, standing.progress.min(99)).await?;
            }
            for job in &jobs {
                if let Some(reason) = &job.waiting
                    && waiting.insert((job.id, reason.clone()))
                {
                    let step = job.step.as_deref().unwrap_or_default();
                    self.note(claimed, &format!("[solverd] step `{step}` waits: {reason}")).await;
                }
            }
            let live = jobs.iter().any(|job| !job.state.is_final());
            if standing.state == JobState::Success {
                self.tell(claimed, &jobs).await;
                return Ok(Some(self.shown(claimed, &release, steps, &jobs).await?));
            }
            let failure = standing.error.or_else(|| refusal.clone());
            if stopping || failure.is_some() {
                if !live {
                    self.tell(claimed, &jobs).await;
                    return Ok(Some(match failure.filter(|_| !stopping) {
                        Some(error) => {
                            self.note(claimed, &format!("[ERROR] solverd: {}", error.msg)).await;
                            Ending::StepFailed(error)
                        }
                        None => Ending::Stopped,
                    }));
                }
                for job in jobs.iter().filter(|job| !job.state.is_final()) {
                    self.persist(|| inner.db.job_request_stop(job.id, job.owner, now())).await?;
                }
                inner.wake.notify();
            } else {
                if jobs.is_empty() {
                    self.tell_unknown_inputs(claimed, &release, &inputs).await?;
                }
                let outputs = self.outputs(steps, &jobs).await?;
                for step in steps.ready(&jobs) {
                    if let Err(error) =
                        self.spawn(claimed, &release, step, &inputs, &outputs).await?
                    {
                        refusal = Some(error);
                        break;
                    }
                }
                if refusal.is_some() {
                    continue;
                }
            }
            tokio::select! {
                () = changed.wait() => {}
                () = stop.cancelled(), if !stopping => {}
                () = inner.closing.cancelled() => {}
            }
        }
    }

    async fn whole(&self, job: &Job) -> store::Result<(Release, Values)> {
        Ok((self.release(job).await?, self.0.db.job_inputs(job.id).await?))
    }

    async fn begin_and_progress(&self, claimed: &mut Claimed, percent: i32) -> Result<()> {
        if claimed.job.started_at.is_none() {
            claimed.job = self.begin(claimed, None).await?;
        }
        if claimed.job.progress < percent {
            self.persist(|| self.0.db.job_progress(claimed, percent)).await?;
            claimed.job.progress = percent;
        }
        Ok(())
    }

    /// Puts a step's job into the queue, or says why its values are refused.
    async fn spawn(
        &self,
        claimed: &Claimed,
        whole: &Release,
        step: &Step,
        inputs: &Values,
        outputs: &BTreeMap<String, Values>,
    ) -> Result<Result<(), JobError>> {
        let inner = &self.0;
        let release = self.persist(|| inner.db.release_get(&step.solver, &step.version)).await?;
        let values = step.values(&whole.inputs, inputs, outputs);
        let checked = match InputRules::compile(&release).map(|rules| rules.check(&values)) {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(problems)) => Err(problems.into_iter().next().map(|it| (it.port, it.message))),
            Err(error) => Err(Some((String::new(), error))),
        };
        if let Err(problem) = checked {
            let (port, message) = problem.unwrap_or_default();
            return Ok(Err(JobError {
                loc: vec![claimed.job.id.to_string(), step.name.clone(), port],
                msg: format!("step `{}`: {message}", step.name),
                kind: FailureKind::Input.code().to_owned(),
                ctx: Map::new(),
            }));
        }
        let version = step.version.to_string();
        let at = now();
        let checksum = inputs_checksum(&values);
        let job = Job {
            step: Some(step.name.clone()),
            resources: release.resources(),
            ..Job::new(claimed.job.owner, step.solver.clone(), version, checksum, at)
        };
        let spawn = || inner.db.job_spawn(claimed, job.clone(), &values, at);
        if self.persist(spawn).await? {
            let line = format!(
                "[solverd] step `{}` is queued: {} {} as job {}",
                step.name, step.solver, step.version, job.id
            );
            self.note(claimed, &line).await;
            inner.wake.notify();
        }
        Ok(Ok(()))
    }

    /// The outputs of the steps that have ended, by step.
    async fn outputs(&self, steps: &Steps, jobs: &[Job]) -> Result<BTreeMap<String, Values>> {
        let mut outputs = BTreeMap::new();
        if steps.ready(jobs).is_empty() && jobs.iter().any(|job| !job.state.is_final()) {
            // Nobody needs them now.
            return Ok(outputs);
        }
        for job in jobs.iter().filter(|job| job.state == JobState::Success) {
            let values = self.persist(|| self.0.db.job_outputs(job.id)).await?;
            outputs.insert(job.step.clone().unwrap_or_default(), values.unwrap_or_default());
        }
        Ok(outputs)
    }

    /// The outputs of the whole. Files stay those of their steps.
    async fn shown(
        &self,
        claimed: &Claimed,
        release: &Release,
        steps: &Steps,
        jobs: &[Job],
    ) -> Result<Ending> {
        let outputs = self.outputs(steps, jobs).await?;
        let value = |port: &str| match steps.outputs.get(port)? {
            Source::Output { step, output } => outputs.get(step)?.get(output).cloned(),
            Source::Input { .. } | Source::Value { .. } => None,
        };
        let mut values = Values::default();
        for port in &release.outputs {
            let shown = value(&port.key).ok_or_else(|| format!("output `{}` is missing", port.key));
            match shown.and_then(|it| if port.is_file() { Ok(it) } else { cast_output(port, it) }) {
                Ok(value) => drop(values.0.insert(port.key.clone(), value)),
                Err(message) => {
                    return Ok(self.failed(claimed, FailureKind::Output, message).await);
                }
            }
        }
        Ok(Ending::Succeeded(values, Vec::new()))
    }

    /// How every step ended, in the log of the whole.
    async fn tell(&self, claimed: &Claimed, jobs: &[Job]) {
        for job in jobs {
            let step = job.step.as_deref().unwrap_or_default();
            self.note(claimed, &format!("[solverd] step `{step}`: {}", job.state)).await;
        }
    }

    async fn tell_unknown_inputs(
        &self,
        claimed: &Claimed,
        release: &Release,
        inputs: &Values,
    ) -> Result<()> {
        for line in unknown_ports(release, inputs) {
            self.add_lines(claimed, &(log_line(&line) + "\n")).await?;
        }
        Ok(())
    }
}
