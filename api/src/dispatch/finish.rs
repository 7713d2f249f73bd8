//! The end of a job: outputs stored, log zip stored, **then** the final state. A client that sees it can fetch everything.

use serde_json::{Map, json};
use solverd_runner::task::TaskError;

use super::{Dispatcher, Result};
use crate::{
    domain::{
        file::File,
        job::{Job, JobError, Transition},
        time::now,
        value::Values,
    },
    store::Claimed,
};

/// How a job ends.
pub(super) enum Ending {
    /// With values for all outputs, and the files among them.
    Succeeded(Values, Vec<File>),
    Failed(TaskError),
    /// Because of a step.
    StepFailed(JobError),
    /// Somebody stopped it.
    Stopped,
}

impl Dispatcher {
    /// Brings a job to its final state.
    pub(super) async fn finish(&self, claimed: &Claimed, ending: Ending) -> Result<()> {
        let job = &claimed.job;
        let transition = match ending {
            Ending::Succeeded(outputs, files) => {
                Transition::Succeed { outputs, files, log: self.0.logs.try_store(job).await }
            }
            Ending::Failed(error) => Transition::Fail {
                error: job_error(job, error),
                log: self.0.logs.try_store(job).await,
            },
            Ending::StepFailed(error) => {
                Transition::Fail { error, log: self.0.logs.try_store(job).await }
            }
            Ending::Stopped => Transition::Abort { log: self.0.logs.try_store(job).await },
        };
        let at = now();
        self.persist(|| self.0.db.job_finish(claimed, transition.clone(), at)).await?;
        Ok(())
    }
}

pub(super) fn job_error(job: &Job, error: TaskError) -> JobError {
    let mut ctx = Map::new();
    if !error.last_lines.is_empty() {
        ctx.insert("last_lines".to_owned(), json!(error.last_lines));
    }
    let loc = [Some(job.id.to_string()), error.port].into_iter().flatten().collect();
    JobError { loc, msg: error.message, kind: error.kind.code().to_owned(), ctx }
}
