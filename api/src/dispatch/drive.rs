//! One claimed job, from whatever its fate is to its end.

use std::time::Duration;

use solverd_runner::task::{Event, FailureKind, Outcome, TaskError};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    Dispatcher, Fate, Result, artifacts::JobArtifacts, finish::Ending, logs::log_line, task,
};
use crate::{
    domain::{job::Job, solver::Release, time::now},
    report::chain,
    store::{self, Claimed},
};

/// Events between runner and database. A solver that prints faster than the database writes is slowed down.
const EVENTS: usize = 1024;

/// Log text that is written at once, in bytes: readers load whole chunks.
const CHUNK: usize = 1 << 20;

/// Between attempts to reach a database that is away.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

impl Dispatcher {
    pub(super) async fn drive(
        &self,
        mut claimed: Claimed,
        fate: Fate,
        stop: CancellationToken,
    ) -> Result<()> {
        let ending = match fate {
            Fate::Run => self.execute(&mut claimed, &stop).await?,
            Fate::Steps => match self.follow_steps(&mut claimed, &stop).await? {
                Some(ending) => ending,
                // The service is shutting down: the next one goes on.
                None => return Ok(()),
            },
            Fate::Abort => {
                self.note(&claimed, "[solverd] stopped").await;
                Ending::Stopped
            }
            Fate::Fail(kind, message) => self.failed(&claimed, kind, message).await,
        };
        self.finish(&claimed, ending).await
    }

    /// Runs the job's container to its end.
    async fn execute(&self, claimed: &mut Claimed, stop: &CancellationToken) -> Result<Ending> {
        let inner = &self.0;
        let (release, prepared) = match self.persist(|| self.prepare(&claimed.job)).await {
            Ok(prepared) => prepared,
            Err(_) if inner.closing.is_cancelled() => return Ok(Ending::Unbegun),
            Err(error) => {
                return Ok(self.failed(claimed, FailureKind::Machine, chain(&error)).await);
            }
        };
        let (task, notes) = match prepared {
            Ok(prepared) => prepared,
            Err(reason) => return Ok(self.failed(claimed, FailureKind::Input, reason).await),
        };
        let artifacts = JobArtifacts::new(inner.objects.clone());
        let (sender, receiver) = mpsc::channel(EVENTS);
        let running = async {
            // The sender goes with this block, which ends the recording.
            let sender = sender;
            for note in notes {
                let _ = sender.send(Event::Log(log_line(&note))).await;
            }
            Box::pin(solverd_runner::run(
                &inner.engine,
                &inner.work,
                &task,
                &artifacts,
                &sender,
                stop,
            ))
            .await
        };
        let (outcome, recorded) = tokio::join!(running, self.record(claimed, receiver));
        if let Err(error) = recorded {
            tracing::error!(job = %claimed.job.id, error = chain(&error), "events were lost");
        }
        let ending = match outcome {
            Outcome::Succeeded(outputs) => match task::results(&release, &claimed.job, outputs) {
                Ok((values, files)) => return Ok(Ending::Succeeded(values, files)),
                Err(message) => self.failed(claimed, FailureKind::Output, message).await,
            },
            Outcome::Failed(error) => Ending::Failed(error),
            Outcome::Stopped if self.stop_was_asked(claimed).await => Ending::Stopped,
            // The service is shutting down.
            Outcome::Stopped if claimed.job.started_at.is_none() => Ending::Unbegun,
            Outcome::Stopped => {
                let message = "solverd was shut down while the job ran; start a new one";
                self.failed(claimed, FailureKind::Lost, message.to_owned()).await
            }
        };
        self.delete_files(artifacts.stored());
        Ok(ending)
    }

    async fn prepare(&self, job: &Job) -> store::Result<(Release, task::Prepared)> {
        let release = self.release(job).await?;
        let task = self.task(&release, job).await?;
        Ok((release, task))
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
                    Event::Log(line) => {
                        lines += &line;
                        lines.push('\n');
                        if lines.len() > CHUNK {
                            result = result
                                .and(self.add_lines(claimed, &std::mem::take(&mut lines)).await);
                        }
                    }
                    Event::Progress(percent) => (progress, raised) = (i32::from(percent), true),
                    Event::Used(usage) => claimed.usage = Some(task::usage(usage)),
                    Event::Started { container } => {
                        let at = now();
                        match self
                            .persist(|| self.0.db.job_start(claimed, Some(&container), at))
                            .await
                        {
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

    pub(super) async fn add_lines(&self, claimed: &Claimed, lines: &str) -> store::Result<()> {
        self.persist(|| self.0.db.job_log_add(claimed, lines)).await
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

    async fn stop_was_asked(&self, claimed: &Claimed) -> bool {
        let asked = self.persist(|| self.0.db.jobs_leased_to_stop(&self.0.lease)).await;
        asked.is_ok_and(|jobs| jobs.contains(&claimed.job.id))
    }

    /// Does something in the database again and again while the database is away: what has happened must not be lost. Gives up only
    /// when the service is shut down.
    pub(super) async fn persist<T, F: Future<Output = store::Result<T>>>(
        &self,
        attempt: impl Fn() -> F,
    ) -> store::Result<T> {
        let mut pause = FIRST_PAUSE;
        loop {
            match attempt().await {
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
