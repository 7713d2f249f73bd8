//! One claimed job, from whatever its fate is to its end.

use std::time::Duration;

use solverd_runner::{
    Adopted, Recorded,
    task::{Event, FailureKind, Outcome, TaskError},
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    Dispatcher, Fate, Result, artifacts::JobArtifacts, finish::Ending, logs::log_line, task,
};
use crate::{
    domain::{id::FileId, job::Job, solver::Release, time::now},
    report::chain,
    store::{self, Claimed},
};

/// Events between runner and database. They bound memory: the log comes in pieces of about 64 KiB. A solver that prints faster than the
/// database writes is not slowed down: the engine writes its log to files of its own.
const EVENTS: usize = 64;

/// Log text that is written at once, in bytes, or a little more: readers load whole chunks.
const CHUNK: usize = 1 << 16;

/// Chunks of a log that are read at once.
const CHUNKS: i64 = 64;

/// Between attempts to reach a database that is away.
pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(200);
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(10);

impl Dispatcher {
    pub(super) async fn drive(
        &self,
        mut claimed: Claimed,
        fate: Fate,
        stop: CancellationToken,
    ) -> Result<()> {
        let ending = match fate {
            Fate::Run => self.execute(&mut claimed, None, &stop).await?,
            Fate::Adopt(found) => self.execute(&mut claimed, Some(found.id), &stop).await?,
            Fate::Steps => self.follow_steps(&mut claimed, &stop).await?,
            Fate::Abort => {
                self.note(&claimed, "[solverd] stopped").await;
                Some(Ending::Stopped)
            }
            Fate::Fail(kind, message) => Some(self.failed(&claimed, kind, message).await),
        };
        // Without an end the service is shutting down: the next one goes on.
        let Some(ending) = ending else { return Ok(()) };
        let outputs = match &ending {
            Ending::Succeeded(_, files) => files.iter().map(|file| file.id).collect(),
            Ending::Failed(_) | Ending::StepFailed(_) | Ending::Stopped => Vec::new(),
        };
        if let Err(error) = self.finish(&claimed, ending).await {
            if self.held(&claimed).await?.is_some() {
                // Container and outputs stay: the end is found again from them.
                return Err(error);
            }
            // It has ended: the answer to an earlier attempt was lost, or another service took this one for gone.
            self.forget_unless_succeeded(&claimed.job, outputs).await?;
        }
        self.clear_away(claimed.job.id);
        Ok(())
    }

    /// Runs the job's container to its end, or follows the one that was adopted; `None` when the service is shut down before.
    async fn execute(
        &self,
        claimed: &mut Claimed,
        container: Option<String>,
        stop: &CancellationToken,
    ) -> Result<Option<Ending>> {
        let inner = &self.0;
        let prepared = self.persist(|| self.prepare(claimed, container.clone())).await;
        let (release, adopted, prepared) = match prepared {
            Ok(prepared) => prepared,
            Err(_) if inner.closing.is_cancelled() => return Ok(None),
            Err(error) => {
                return Ok(Some(self.failed(claimed, FailureKind::Machine, chain(&error)).await));
            }
        };
        let (task, notes) = match prepared {
            Ok(prepared) => prepared,
            Err(reason) => {
                return Ok(Some(self.failed(claimed, FailureKind::Input, reason).await));
            }
        };
        let (sender, receiver) = mpsc::channel(EVENTS);
        let job = claimed.job.id;
        let running = async {
            // The sender goes with this block, which ends the recording.
            let sender = sender;
            for note in notes {
                let _ = sender.send(Event::Log(log_line(&note))).await;
            }
            let artifacts = JobArtifacts::new(inner.objects.clone(), job, sender.clone());
            let run = Box::pin(solverd_runner::run(
                &inner.engine,
                &inner.work,
                &task,
                &artifacts,
                &sender,
                stop,
                adopted,
            ));
            inner.closing.run_until_cancelled(run).await
        };
        let (outcome, recorded) = tokio::join!(running, self.record(claimed, receiver));
        if let Err(error) = recorded {
            tracing::error!(job = %claimed.job.id, error = chain(&error), "events were lost");
        }
        let Some(outcome) = outcome else { return Ok(None) };
        let ending = match outcome {
            Outcome::Succeeded(outputs) => match task::results(&release, &claimed.job, outputs) {
                Ok((values, files)) => return Ok(Some(Ending::Succeeded(values, files))),
                Err(message) => self.failed(claimed, FailureKind::Output, message).await,
            },
            Outcome::Failed(error) => Ending::Failed(error),
            Outcome::Stopped => Ending::Stopped,
        };
        let files = task.outputs.iter().filter(|port| port.path.is_some());
        self.delete_files(files.map(|port| FileId::of_output(job, &port.key)).collect());
        Ok(Some(ending))
    }

    async fn prepare(
        &self,
        claimed: &Claimed,
        container: Option<String>,
    ) -> store::Result<(Release, Option<Adopted>, task::Prepared)> {
        let release = self.release(&claimed.job).await?;
        let task = self.task(&release, &claimed.job, container.is_some()).await?;
        let adopted = match (container, &task) {
            (Some(container), Ok((task, _))) => {
                let recorded = self.recorded(claimed, task.integration_version).await?;
                Some(Adopted { container, recorded })
            }
            _ => None,
        };
        Ok((release, adopted, task))
    }

    /// How far the log of a job was written down.
    async fn recorded(
        &self,
        claimed: &Claimed,
        integration_version: u64,
    ) -> store::Result<Recorded> {
        let bytes = self.0.db.job_log_bytes(claimed.job.id).await?;
        let bytes = u64::try_from(bytes).unwrap_or_default();
        let mut recorded = Recorded::new(bytes, integration_version);
        let mut before = i32::MAX;
        loop {
            let chunks = self.0.db.job_log_before(claimed.job.id, before, CHUNKS).await?;
            let Some(first) = chunks.last() else { return Ok(recorded) };
            before = first.seq;
            let mut lines = chunks.iter().flat_map(|chunk| chunk.text.lines().rev());
            if !lines.all(|line| recorded.take(line)) {
                return Ok(recorded);
            }
        }
    }

    /// Writes events down as they come. What has come together is written together.
    async fn record(
        &self,
        claimed: &mut Claimed,
        mut events: mpsc::Receiver<Event>,
    ) -> store::Result<()> {
        let mut batch = Vec::with_capacity(EVENTS);
        let mut progress = 0;
        let mut result = Ok(());
        while events.recv_many(&mut batch, EVENTS).await > 0 {
            let mut lines = String::new();
            let mut raised = false;
            for event in batch.drain(..) {
                match event {
                    Event::Log(text) => {
                        lines += &text;
                        lines.push('\n');
                        if lines.len() > CHUNK {
                            result = result
                                .and(self.add_lines(claimed, &std::mem::take(&mut lines)).await);
                        }
                    }
                    Event::Progress(percent) => (progress, raised) = (i32::from(percent), true),
                    Event::Used(usage) => claimed.usage = Some(task::usage(usage)),
                    // An earlier life has seen it.
                    Event::Started { .. } if claimed.job.started_at.is_some() => {}
                    Event::Started { container } => {
                        match self.begin(claimed, Some(&container)).await {
                            Ok(job) => (claimed.job, raised) = (job, true),
                            Err(error) => result = result.and(Err(error)),
                        }
                    }
                }
            }
            if !lines.is_empty() {
                result = result.and(self.add_lines(claimed, &lines).await);
            }
            // Nothing has progressed before the solver runs: clients rely on it.
            if raised && claimed.job.started_at.is_some() {
                result =
                    result.and(self.persist(|| self.0.db.job_progress(claimed, progress)).await);
            }
        }
        // Reading on after an error keeps the solver from blocking; the first error is told.
        result
    }

    /// Says that a job has begun. If it had, the answer to an earlier attempt was lost.
    pub(super) async fn begin(
        &self,
        claimed: &Claimed,
        container: Option<&str>,
    ) -> store::Result<Job> {
        let at = now();
        let begun = self.persist(|| self.0.db.job_start(claimed, container, at)).await;
        let Err(store::Error::Illegal(refused)) = begun else { return begun };
        let held = self.held(claimed).await?.filter(|job| job.started_at.is_some());
        held.ok_or(refused.into())
    }

    /// The job as it stands, if it is still ours.
    async fn held(&self, claimed: &Claimed) -> store::Result<Option<Job>> {
        let held = self.persist(|| self.0.db.jobs_leased(&self.0.lease)).await?;
        Ok(held.into_iter().find(|job| job.id == claimed.job.id))
    }

    pub(super) async fn add_lines(&self, claimed: &Claimed, lines: &str) -> store::Result<()> {
        let seq = claimed.next_chunk();
        self.persist(|| self.0.db.job_log_add(claimed, seq, lines)).await
    }

    /// A log line of our own.
    pub(super) async fn note(&self, claimed: &Claimed, text: &str) {
        if let Err(error) = self.add_lines(claimed, &(log_line(text) + "\n")).await {
            tracing::warn!(job = %claimed.job.id, error = chain(&error), "a log line is lost: {text}");
        }
    }

    /// A failure that the runner does not know of, told in the job's log as well.
    pub(super) async fn failed(
        &self,
        claimed: &Claimed,
        kind: FailureKind,
        message: String,
    ) -> Ending {
        self.note(claimed, &format!("[ERROR] solverd: {message}")).await;
        Ending::Failed(TaskError::new(kind, message))
    }

    /// Does something in the database again and again while the database is away: what has happened must not be lost. Gives up only
    /// when the service is shut down.
    pub(super) async fn persist<T, F: Future<Output = store::Result<T>>>(
        &self,
        attempt: impl Fn() -> F,
    ) -> store::Result<T> {
        let mut pause = FIRST_PAUSE;
        loop {
            match store::in_time(attempt()).await {
                Err(error) if error.is_transient() && !self.0.closing.is_cancelled() => {
                    tracing::warn!(error = chain(&error), "will be tried again");
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        () = self.0.closing.cancelled() => {}
                    }
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                result => return result,
            }
        }
    }
}
