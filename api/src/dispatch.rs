//! From queued job to finished job: takes jobs from the queue while the machine has room, drives a runner for each, and finishes them.
//!
//! [`Dispatcher::step`] does everything there is to do at this moment; [`Dispatcher::run`] calls it whenever something has happened.

mod artifacts;
mod finish;
mod log_zip;
mod task;

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use solverd_runner::{
    engine::{Docker, EngineError},
    task::{Event, FailureKind, Outcome, TaskError},
};
use tokio::sync::{Notify, mpsc};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    domain::{
        file::File,
        id::JobId,
        job::{Job, Lease, Transition},
        solver::{Body, Release, Resources, SolverKey, Version},
        time::now,
    },
    objects::{self, Objects},
    report::chain,
    store::{self, Claimed, Db},
};

/// Label of every container of this service; its value is the instance, so that two services on one engine leave each other alone.
const INSTANCE_LABEL: &str = "solverd.instance";

/// How often the dispatcher looks although nobody has called: the command line and other services cannot wake it.
const AT_LATEST: Duration = Duration::from_secs(5);

/// How many rows of the queue are looked at in one step.
const BATCH: i64 = 200;

/// Events between runner and database. A solver that prints faster than the database writes is slowed down.
const EVENTS: usize = 1024;

/// Wakes the dispatcher. Calls are not counted: one step does all there is to do.
#[derive(Clone, Default)]
pub struct Wake(Arc<Notify>);

impl Wake {
    /// Something has happened.
    pub fn notify(&self) {
        self.0.notify_one();
    }
}

/// Why the dispatcher could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The object store.
    #[error(transparent)]
    Objects(#[from] objects::Error),
    /// The container engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// This machine.
    #[error("{0}")]
    Machine(String),
}

/// What every function here returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Runs jobs. Cheap to clone.
#[derive(Clone)]
pub struct Dispatcher(Arc<Inner>);

struct Inner {
    db: Db,
    objects: Objects,
    engine: Docker,
    /// Folder of the jobs' folders.
    work: PathBuf,
    lease: Lease,
    /// What the whole machine has.
    machine: Resources,
    wake: Wake,
    running: Mutex<HashMap<JobId, Running>>,
    tasks: TaskTracker,
    closing: CancellationToken,
}

/// What a running job holds.
struct Running {
    resources: Resources,
    stop: CancellationToken,
}

impl Dispatcher {
    /// Brings order into what an earlier life of this instance left, then is ready to run.
    pub async fn start(
        db: Db,
        objects: Objects,
        engine: Docker,
        work: PathBuf,
        instance: String,
        wake: Wake,
    ) -> Result<Self> {
        let machine = engine.machine().await?.resources;
        let dispatcher = Self(Arc::new(Inner {
            db,
            objects,
            engine,
            work,
            lease: Lease { instance },
            machine: Resources { nano_cpus: machine.nano_cpus, memory_bytes: machine.memory_bytes },
            wake,
            running: Mutex::default(),
            tasks: TaskTracker::new(),
            closing: CancellationToken::new(),
        }));
        dispatcher.recover().await?;
        Ok(dispatcher)
    }

    /// Works until `shutdown`, then ends the running jobs and waits for them.
    pub async fn run(&self, shutdown: CancellationToken) {
        while !shutdown.is_cancelled() {
            // A call that comes during the step is kept by `Notify` and answered by the next one.
            if let Err(error) = self.step().await {
                tracing::error!(error = chain(&error), "the dispatcher will try again");
            }
            tokio::select! {
                () = self.0.wake.0.notified() => {}
                () = tokio::time::sleep(AT_LATEST) => {}
                () = shutdown.cancelled() => {}
            }
        }
        self.0.closing.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    /// Does all there is to do at this moment: stop what is to be stopped, clear away what was deleted, start what fits.
    pub async fn step(&self) -> Result<()> {
        let inner = &self.0;
        for job in inner.db.jobs_queued_to_stop(BATCH).await? {
            if let Some(claimed) = inner.db.job_claim(job.id, &inner.lease, now()).await? {
                self.abort_unstarted(&claimed).await?;
            }
        }
        for id in inner.db.jobs_leased_to_stop(&inner.lease).await? {
            if let Some(running) = inner.running().get(&id) {
                running.stop.cancel();
            }
        }
        for id in inner.db.jobs_to_remove(BATCH).await? {
            // Row first, content second: a crash between leaves an object that nobody sees, never a file without content.
            for file in inner.db.job_remove(id).await? {
                inner.objects.delete(&File::object_key(file)).await?;
            }
            inner.objects.delete(&Job::log_object_key(id)).await?;
        }
        for job in inner.db.jobs_queued(BATCH).await? {
            let Body::Container(container) = self.release(&job).await?.body;
            let possible = fits(container.resources, inner.machine);
            if possible && !fits(container.resources, inner.free()) {
                // First come, first served: a small job behind it must not keep a large one waiting for ever.
                break;
            }
            let Some(claimed) = inner.db.job_claim(job.id, &inner.lease, now()).await? else {
                continue;
            };
            if possible {
                self.launch(claimed, container.resources);
            } else {
                let message = format!(
                    "the job asks for {}, this machine has {}",
                    container.resources, inner.machine
                );
                self.fail_unstarted(&claimed, FailureKind::Resources, message).await?;
            }
        }
        Ok(())
    }

    fn launch(&self, claimed: Claimed, resources: Resources) {
        let id = claimed.job.id;
        let stop = self.0.closing.child_token();
        self.0.running().insert(id, Running { resources, stop: stop.clone() });
        // Between the queue and the claim somebody may have asked to stop it.
        if claimed.job.stop_requested_at.is_some() {
            stop.cancel();
        }
        let dispatcher = self.clone();
        self.0.tasks.spawn(async move {
            if let Err(error) = Box::pin(dispatcher.drive(claimed, stop)).await {
                tracing::error!(job = %id, error = chain(&error), "the job could not be brought to its end");
            }
            dispatcher.0.running().remove(&id);
            dispatcher.0.wake.notify();
        });
    }

    /// Runs a claimed job to its end.
    async fn drive(&self, mut claimed: Claimed, stop: CancellationToken) -> Result<()> {
        let inner = &self.0;
        let release = self.release(&claimed.job).await?;
        let task = match self.task(&release, &claimed.job).await? {
            Ok(task) => task,
            Err(reason) => return self.fail_unstarted(&claimed, FailureKind::Input, reason).await,
        };
        let artifacts = artifacts::JobArtifacts::new(inner.objects.clone());
        let (sender, receiver) = mpsc::channel(EVENTS);
        let note = task::unknown_ports(&release, &claimed.job);
        let (outcome, recorded) = tokio::join!(
            async {
                let sender = sender;
                for line in note {
                    // The reader lives as long as this block.
                    let _ = sender.send(Event::Log(log_line(&line))).await;
                }
                Box::pin(solverd_runner::run(
                    &inner.engine,
                    &inner.work,
                    &task,
                    &artifacts,
                    &sender,
                    &stop,
                ))
                .await
            },
            self.record(&mut claimed, receiver),
        );
        if let Err(error) = recorded {
            tracing::error!(job = %claimed.job.id, error = chain(&error), "events were lost");
        }
        let outcome = if outcome == Outcome::Stopped && !self.stop_was_asked(&claimed).await? {
            Outcome::Failed(TaskError {
                kind: FailureKind::Lost,
                port: None,
                message: "solverd was shut down while the job ran; start a new one".to_owned(),
                last_lines: Vec::new(),
            })
        } else {
            outcome
        };
        self.finish(&claimed, &release, outcome, artifacts).await
    }

    /// Writes events down as they come. What has come together is written together.
    async fn record(&self, claimed: &mut Claimed, mut events: mpsc::Receiver<Event>) -> Result<()> {
        let db = &self.0.db;
        let mut batch = Vec::with_capacity(EVENTS);
        let mut result = Ok(());
        while events.recv_many(&mut batch, EVENTS).await > 0 {
            let mut lines = String::new();
            let mut progress = None;
            for event in batch.drain(..) {
                match event {
                    Event::Log(line) => {
                        lines += &line;
                        lines.push('\n');
                    }
                    Event::Progress(percent) => progress = Some(i32::from(percent)),
                    Event::Started { container } => {
                        result = result.and(db.job_start(claimed, container, now()).await);
                    }
                }
            }
            if !lines.is_empty() {
                result = result.and(db.job_log_add(claimed, &lines).await);
            }
            if let Some(percent) = progress {
                result = result.and(db.job_progress(claimed, percent).await);
            }
        }
        // Reading on after an error keeps the solver from blocking; the first error is told.
        Ok(result?)
    }

    async fn stop_was_asked(&self, claimed: &Claimed) -> Result<bool> {
        Ok(self.0.db.jobs_leased_to_stop(&self.0.lease).await?.contains(&claimed.job.id))
    }

    async fn release(&self, job: &Job) -> Result<Release> {
        // Both were checked when the job was created.
        let version = Version::parse(&job.solver_version).map_err(Error::Machine)?;
        let key: &SolverKey = &job.solver_key;
        Ok(self.0.db.release_get(key, &version).await?)
    }

    /// Jobs that an earlier life of this instance had taken: what had not begun goes back into the queue, what ran is over.
    async fn recover(&self) -> Result<()> {
        let inner = &self.0;
        for found in
            inner.engine.list(&format!("{INSTANCE_LABEL}={}", inner.lease.instance)).await?
        {
            tracing::warn!(container = found.id, "removing a container of an earlier life");
            inner.engine.remove(&found.id).await?;
        }
        for claimed in inner.db.jobs_leased(&inner.lease).await? {
            let id = claimed.job.id;
            if let Err(error) = solverd_runner::clean_up(&inner.engine, &inner.work, id.0).await {
                // A folder that cannot be removed must not keep the service from starting.
                tracing::warn!(job = %id, %error, "something of the job stays behind");
            }
            if claimed.job.stop_requested_at.is_some() {
                self.abort_unstarted(&claimed).await?;
            } else if claimed.job.started_at.is_none() {
                inner.db.job_finish(&claimed, Transition::Requeue, now()).await?;
            } else {
                let message =
                    "solverd ended while the job ran, and its container is gone; start a new one";
                self.fail_unstarted(&claimed, FailureKind::Lost, message.to_owned()).await?;
            }
        }
        Ok(())
    }
}

impl Inner {
    fn running(&self) -> std::sync::MutexGuard<'_, HashMap<JobId, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the running jobs leave of the machine.
    fn free(&self) -> Resources {
        let running = self.running();
        let taken = |part: fn(&Resources) -> i64| {
            running.values().map(|job| part(&job.resources)).sum::<i64>()
        };
        Resources {
            nano_cpus: self.machine.nano_cpus - taken(|resources| resources.nano_cpus),
            memory_bytes: self.machine.memory_bytes - taken(|resources| resources.memory_bytes),
        }
    }
}

fn fits(asked: Resources, there: Resources) -> bool {
    asked.nano_cpus <= there.nano_cpus && asked.memory_bytes <= there.memory_bytes
}

/// A log line of our own, with its time, in the form of the engine's.
#[expect(clippy::disallowed_methods, reason = "log lines keep nanoseconds, like the engine's")]
fn log_line(text: &str) -> String {
    format!("{} {text}", chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Nanos, true))
}
