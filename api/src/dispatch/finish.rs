//! The end of a job: outputs checked and stored, log zip stored, **then** the final state. A client that sees it can fetch everything.

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json, json};
use solverd_runner::task::{FailureKind, Outcome, Output, TaskError};

use super::{Dispatcher, Result, artifacts::JobArtifacts, log_line};
use crate::{
    domain::{
        file::{File, FileRef},
        id::FileId,
        job::{Job, JobError, Transition},
        solver::Release,
        time::now,
        value::{Values, cast_output},
    },
    report::chain,
    store::Claimed,
};

impl Dispatcher {
    /// Ends a job whose runner has returned.
    pub(super) async fn finish(
        &self,
        claimed: &Claimed,
        release: &Release,
        outcome: Outcome,
        artifacts: JobArtifacts,
    ) -> Result<()> {
        let failure = match outcome {
            Outcome::Succeeded(outputs) => match checked(release, &claimed.job, outputs) {
                Ok(outputs) => return self.succeed(claimed, outputs).await,
                Err(message) => {
                    self.log(claimed, &format!("[ERROR] solverd: {message}")).await;
                    Some(TaskError {
                        kind: FailureKind::Output,
                        port: None,
                        message,
                        last_lines: Vec::new(),
                    })
                }
            },
            Outcome::Failed(error) => Some(error),
            Outcome::Stopped => None,
        };
        artifacts.discard().await;
        self.end(claimed, failure).await
    }

    async fn succeed(&self, claimed: &Claimed, outputs: Vec<(String, Checked)>) -> Result<()> {
        let mut values = Values::default();
        for (key, output) in outputs {
            let value = match output {
                Checked::Value(value) => value,
                Checked::File(file) => {
                    self.0.db.file_add(&file).await?;
                    json!(FileRef::from(file))
                }
            };
            values.0.insert(key, value);
        }
        let log = self.store_log(&claimed.job).await?;
        self.0.db.job_finish(claimed, Transition::Succeed { outputs: values, log }, now()).await?;
        Ok(())
    }

    /// Ends a job that did not succeed: with an error it failed, without it was stopped.
    async fn end(&self, claimed: &Claimed, failure: Option<TaskError>) -> Result<()> {
        // A job must reach its end even when its log cannot be kept.
        let log = match self.store_log(&claimed.job).await {
            Ok(key) => Some(key),
            Err(error) => {
                tracing::error!(job = %claimed.job.id, error = chain(&error), "the log could not be stored");
                None
            }
        };
        let ending = match failure {
            Some(error) => Transition::Fail { error: job_error(&claimed.job, error), log },
            None => Transition::Abort { log },
        };
        self.0.db.job_finish(claimed, ending, now()).await?;
        Ok(())
    }

    /// Ends a claimed job that was to be stopped before anything ran.
    pub(super) async fn abort_unstarted(&self, claimed: &Claimed) -> Result<()> {
        self.log(claimed, "[solverd] stopped").await;
        self.end(claimed, None).await
    }

    /// Ends a claimed job that nothing runs of.
    pub(super) async fn fail_unstarted(
        &self,
        claimed: &Claimed,
        kind: FailureKind,
        message: String,
    ) -> Result<()> {
        self.log(claimed, &format!("[ERROR] solverd: {message}")).await;
        self.end(claimed, Some(TaskError { kind, port: None, message, last_lines: Vec::new() }))
            .await
    }

    async fn log(&self, claimed: &Claimed, text: &str) {
        if let Err(error) = self.0.db.job_log_add(claimed, &(log_line(text) + "\n")).await {
            tracing::warn!(job = %claimed.job.id, error = chain(&error), "a log line is lost: {text}");
        }
    }
}

enum Checked {
    Value(Json),
    File(File),
}

/// The outputs in declared order, each brought to its port's type.
fn checked(
    release: &Release,
    job: &Job,
    mut outputs: BTreeMap<String, Output>,
) -> Result<Vec<(String, Checked)>, String> {
    let check = |key: &String, output: Output, port| match output {
        Output::Value(value) => cast_output(port, value).map(Checked::Value),
        Output::File(stored) => Ok(Checked::File(File {
            id: FileId(stored.file_id),
            owner: job.owner,
            filename: stored.filename,
            size: i64::try_from(stored.size).map_err(|_| format!("output `{key}` is too large"))?,
            sha256: stored.sha256,
            e_tag: Some(stored.e_tag),
            upload_id: None,
            job_id: Some(job.id),
            created_at: now(),
            completed_at: Some(now()),
        })),
    };
    release
        .outputs
        .iter()
        .map(|port| {
            let output = outputs
                .remove(&port.key)
                .ok_or_else(|| format!("output `{}` is missing", port.key))?;
            Ok((port.key.clone(), check(&port.key, output, port)?))
        })
        .collect()
}

fn job_error(job: &Job, error: TaskError) -> JobError {
    let mut ctx = Map::new();
    if !error.last_lines.is_empty() {
        ctx.insert("last_lines".to_owned(), json!(error.last_lines));
    }
    let loc = [Some(job.id.to_string()), error.port].into_iter().flatten().collect();
    JobError { loc, msg: error.message, kind: error.kind.code().to_owned(), ctx }
}
