//! From queued job to finished job: takes jobs from the queue while the machine has room, drives a runner for each, and finishes them.
//!
//! [`Dispatcher::step`] decides everything there is to decide at this moment; [`Dispatcher::run`] calls it whenever something has
//! happened. Whatever takes time is done by one task per job, which holds the job's slot and does not give up while the database or
//! the object store is away: a job that was claimed reaches its end, or is picked up by a later step.

mod admission;
mod artifacts;
mod drive;
mod finish;
mod instances;
mod logs;
mod steps;
mod task;
mod uploads;
mod webhooks;

use std::{
    collections::{HashMap, HashSet},
    io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use solverd_runner::{
    CleanUpError, JOB_LABEL,
    engine::{Docker, EngineError, Standing},
    task::{FailureKind, Limits},
};
use tokio::{
    sync::{Notify, Semaphore},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use logs::LogZips;
pub use webhooks::Webhooks;

use admission::{Admission, Hold, Memory, Verdict, Wait, free_gpus};
use instances::Watch;
use logs::log_line;

use crate::{
    domain::{
        file::File,
        id::{FileId, JobId},
        job::{Job, Lease, Transition},
        resources::Bounds,
        solver::{Body, Release, Version},
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

/// How long a step may take: an answer that the database or the engine still owed when its machine vanished never comes. What was cut off
/// is picked up by the next step.
const LONGEST_STEP: Duration = Duration::from_mins(1);

/// How many tasks delete objects at the same time.
const DELETIONS: usize = 8;

/// How long a shutdown waits for them.
const DELETE_WITHIN: Duration = Duration::from_secs(5);

/// How many rows of the queue are looked at in one step.
const BATCH: i64 = 200;

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
    logs: LogZips,
    /// Folder of the jobs' folders.
    work: PathBuf,
    lease: Lease,
    /// How long another service may be silent before its jobs are ended.
    instance_timeout: Duration,
    watch: tokio::sync::Mutex<Watch>,
    /// What jobs may have of the machine.
    bounds: Bounds,
    /// What no job may exceed beside that.
    limits: Limits,
    wake: Wake,
    webhooks: Webhooks,
    slots: Mutex<HashMap<JobId, Slot>>,
    /// Held by whoever admits jobs, and starting one takes a while.
    memory: tokio::sync::Mutex<Memory>,
    sweep: uploads::Sweep,
    deletions: Semaphore,
    tasks: TaskTracker,
    closing: CancellationToken,
}

/// What a job holds while its task is at work.
struct Slot {
    hold: Hold,
    /// Its GPUs, by index.
    gpus: Vec<u32>,
    stop: CancellationToken,
    /// Another service took the lease.
    lost: CancellationToken,
}

/// Frees a job's slot however its task ends, a panic included.
struct Occupied {
    dispatcher: Dispatcher,
    id: JobId,
}

impl Drop for Occupied {
    fn drop(&mut self) {
        self.dispatcher.0.slots().remove(&self.id);
        self.dispatcher.0.wake.notify();
    }
}

/// What is to become of a claimed job.
enum Fate {
    Run,
    /// Its container was started by an earlier life of this instance.
    Adopt(Standing),
    /// By its steps: jobs of their own.
    Steps,
    Fail(FailureKind, String),
    Abort,
}

impl Dispatcher {
    /// Brings order into what an earlier life of this instance left, then is ready to run.
    #[expect(clippy::too_many_arguments, reason = "each is one thing that it works with")]
    pub async fn start(
        db: Db,
        objects: Objects,
        engine: Docker,
        work: PathBuf,
        instance: String,
        instance_timeout: Duration,
        limits: Limits,
        bounds: Bounds,
        wake: Wake,
        webhooks: Webhooks,
    ) -> Result<Self> {
        let dispatcher = Self(Arc::new(Inner {
            logs: LogZips::new(db.clone(), objects.clone(), work.clone()),
            db,
            objects,
            engine,
            work,
            lease: Lease { instance },
            instance_timeout,
            watch: tokio::sync::Mutex::default(),
            bounds,
            limits,
            wake,
            webhooks,
            slots: Mutex::default(),
            memory: tokio::sync::Mutex::default(),
            sweep: uploads::Sweep::default(),
            deletions: Semaphore::new(DELETIONS),
            tasks: TaskTracker::new(),
            closing: CancellationToken::new(),
        }));
        // Before the first look at its jobs: from now on nobody takes them.
        dispatcher.be_seen().await?;
        dispatcher.pick_up().await?;
        dispatcher.sweep().await?;
        Ok(dispatcher)
    }

    /// Whether the container engine answers.
    pub async fn ping(&self) -> Result<()> {
        Ok(self.0.engine.ping().await?)
    }

    /// Makes log zips that could not be made when their job ended.
    pub fn logs(&self) -> LogZips {
        self.0.logs.clone()
    }

    /// Works until `shutdown`. Containers run on: the next life of this instance adopts them.
    pub async fn run(&self, shutdown: CancellationToken) {
        while !shutdown.is_cancelled() {
            // A call that comes during the step is kept by `Notify` and answered by the next one.
            let step = timeout(LONGEST_STEP, Box::pin(self.step()));
            let Some(done) = shutdown.run_until_cancelled(step).await else { break };
            let cut = |_| Err(Error::Machine(format!("a step was cut off after {LONGEST_STEP:?}")));
            if let Err(error) = done.unwrap_or_else(cut) {
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

    /// Decides all there is to decide at this moment: tell who is to be told, stop what is to be stopped, start what fits, clear away what
    /// was deleted.
    pub async fn step(&self) -> Result<()> {
        let inner = &self.0;
        if let Err(error) = self.look_after_instances().await {
            tracing::error!(error = chain(&error), "other services were not looked for");
        }
        self.deliver_callbacks().await?;
        for id in inner.db.jobs_leased_to_stop(&inner.lease).await? {
            if let Some(slot) = inner.slots().get(&id) {
                slot.stop.cancel();
            }
        }
        self.pick_up().await?;
        self.sweep_uploads();
        for job in inner.db.jobs_queued_to_stop(BATCH).await? {
            self.claim(&job, Fate::Abort).await?;
        }
        for job in inner.db.jobs_queued_for_nothing(BATCH).await? {
            // Its steps queue for the machine; it must not hold what they wait for.
            let fate = match self.release(&job).await {
                Ok(_) => Fate::Steps,
                Err(error) if error.is_transient() => return Err(error.into()),
                // One job that cannot be read must not block the others.
                Err(error) => Fate::Fail(FailureKind::Machine, error.to_string()),
            };
            self.claim(&job, fate).await?;
        }
        self.admit().await?;
        let gone = inner.db.jobs_to_remove(BATCH).await?;
        if !gone.is_empty() {
            // What is left goes in the next step: nothing else has to wait for it.
            inner.wake.notify();
        }
        for id in gone {
            // Row first, content second: a crash between leaves an object that nobody sees, never a file without content.
            let files = inner.db.job_remove(id).await?;
            let keys = files.into_iter().map(File::object_key).chain([Job::log_object_key(id)]);
            self.delete_objects(keys.collect());
        }
        Ok(())
    }

    /// Starts what there is room for, in a fair order, and says of the others why they wait.
    async fn admit(&self) -> Result<()> {
        let inner = &self.0;
        let Memory { turns, waiting: told } = &mut *inner.memory.lock().await;
        let (heads, owners) = (inner.db.queue_heads().await?, inner.db.owners_held().await?);
        let mut admission = Admission::new(
            turns,
            inner.bounds,
            inner.slots().values().map(|slot| slot.hold),
            owners,
        );
        for job in heads {
            admission.push(job);
        }
        let mut waiting = HashMap::new();
        while let Some((job, verdict)) = admission.next() {
            match verdict {
                Verdict::Start(hold) => {
                    let (limits, at) = (&inner.bounds.owner, now());
                    let claimed =
                        inner.db.job_claim_within(job.id, &inner.lease, limits, at).await?;
                    let Some(claimed) = claimed else {
                        // Another service was faster: what we know of this owner is out of date.
                        inner.wake.notify();
                        continue;
                    };
                    admission.started(job.owner, hold);
                    self.launch(claimed, hold, Fate::Run);
                }
                Verdict::Never(excess) => {
                    let fate = Fate::Fail(FailureKind::Resources, format!("the job {excess}"));
                    self.claim(&job, fate).await?;
                }
                Verdict::Wait(wait) => {
                    // Not again and again: each of several services on one database has reasons of its own.
                    let mut causes = told.get(&job.id).cloned().unwrap_or_default();
                    if let Some(first) = causes.news(wait) {
                        self.tell_waiting(&job, &wait, first).await?;
                    }
                    waiting.insert(job.id, causes);
                    continue;
                }
            }
            if let Some(next) = inner.db.queue_head(job.owner).await? {
                admission.push(next);
            }
        }
        *told = waiting;
        Ok(())
    }

    /// Says why a job waits, in its status and, the first time, in its log: causes may alternate for as long as it waits.
    async fn tell_waiting(&self, job: &Job, wait: &Wait, first: bool) -> Result<()> {
        let reason = wait.to_string();
        if job.waiting.as_ref() == Some(&reason) {
            return Ok(());
        }
        let figures = wait.figures().map(|figures| format!(" ({figures})")).unwrap_or_default();
        let line = log_line(&format!("[solverd] waiting: {reason}{figures}")) + "\n";
        let line = first.then_some(&*line);
        Ok(self.0.db.job_wait(job.id, &reason, line, now()).await?)
    }

    /// Takes a queued job that is not to run here, if nobody was faster, and lets a task of its own bring it to its end.
    async fn claim(&self, job: &Job, fate: Fate) -> Result<()> {
        if let Some(claimed) = self.0.db.job_claim(job.id, &self.0.lease, now()).await? {
            self.launch(claimed, Hold::NOTHING, fate);
        }
        Ok(())
    }

    fn launch(&self, claimed: Claimed, hold: Hold, fate: Fate) {
        let id = claimed.job.id;
        let stop = CancellationToken::new();
        let steps = matches!(fate, Fate::Steps);
        // A stop would end the steps, which go on elsewhere.
        let lost = if steps { CancellationToken::new() } else { stop.clone() };
        // Between the queue and the claim somebody may have asked to stop it.
        if claimed.job.stop_requested_at.is_some() {
            stop.cancel();
        }
        let mut slots = self.0.slots();
        let gpus = if let Fate::Adopt(found) = &fate {
            found.gpus.clone()
        } else {
            free_gpus(slots.values().flat_map(|slot| &slot.gpus), hold.resources.gpus)
        };
        slots.insert(id, Slot { hold, gpus, stop: stop.clone(), lost: lost.clone() });
        drop(slots);
        let occupied = Occupied { dispatcher: self.clone(), id };
        self.0.tasks.spawn(async move {
            let work = Box::pin(occupied.dispatcher.drive(claimed, fate, stop));
            let done = if steps {
                lost.run_until_cancelled(work).await.unwrap_or(Ok(()))
            } else {
                work.await
            };
            if let Err(error) = done {
                tracing::error!(job = %id, error = chain(&error), "the job was not brought to its end");
            }
        });
    }

    /// Jobs that hold our lease, but that no task is at work for: an earlier life took them, or their task broke off. What had not begun
    /// goes back into the queue; containers that run or have ended are adopted. Steps go on where they stand.
    async fn pick_up(&self) -> Result<()> {
        let inner = &self.0;
        // First who is at work, then who holds a lease: a job that ends in between is not taken for one that nobody is at work for.
        let at_work: HashSet<JobId> = inner.slots().keys().copied().collect();
        let leased = inner.db.jobs_leased(&inner.lease).await?;
        self.let_go(&at_work, &leased);
        for job in leased {
            let id = job.id;
            if at_work.contains(&id) {
                continue;
            }
            let claimed = inner.db.job_claimed(job, &inner.lease).await?;
            let hold = match self.release(&claimed.job).await {
                Ok(Release { body: Body::Steps(_), .. }) => {
                    self.launch(claimed, Hold::NOTHING, Fate::Steps);
                    continue;
                }
                Ok(Release { body: Body::Container(_), .. }) => Hold::of(claimed.job.resources),
                // Not to be taken for a container that is gone.
                Err(error) if error.is_transient() => return Err(error.into()),
                Err(_) => Hold::NOTHING,
            };
            if let Some(found) = solverd_runner::find_begun(&inner.engine, id.0).await? {
                self.launch(claimed, hold, Fate::Adopt(found));
            } else if claimed.job.stop_requested_at.is_some() {
                self.launch(claimed, Hold::NOTHING, Fate::Abort);
            } else if claimed.job.started_at.is_some() {
                let message = "the job's container was removed by somebody else while solverd was not running; start a new one";
                self.launch(
                    claimed,
                    Hold::NOTHING,
                    Fate::Fail(FailureKind::Lost, message.to_owned()),
                );
            } else {
                match solverd_runner::clean_up(&inner.engine, &inner.work, id.0).await {
                    Ok(()) => {
                        inner.db.job_finish(&claimed, Transition::Requeue, now()).await?;
                    }
                    // It is picked up again: the engine may only be busy with removing what it is asked to remove.
                    Err(CleanUpError::Engine(error @ EngineError::Away { .. })) => {
                        tracing::warn!(job = %id, error = chain(&error), "an earlier attempt is not cleared away yet");
                    }
                    Err(error) => {
                        let message = format!("an earlier attempt left something behind: {error}");
                        let fate = Fate::Fail(FailureKind::Machine, message);
                        self.launch(claimed, Hold::NOTHING, fate);
                    }
                }
            }
        }
        Ok(())
    }

    /// Removes what a crash has left of jobs that have ended: containers of this instance and folders.
    async fn sweep(&self) -> Result<()> {
        let inner = &self.0;
        let label = format!("{INSTANCE_LABEL}={}", inner.lease.instance);
        let containers = inner.engine.list(&label).await?;
        let mut left: HashSet<JobId> = containers
            .iter()
            .filter_map(|found| found.labels.get(JOB_LABEL)?.parse().ok())
            .collect();
        match std::fs::read_dir(&inner.work) {
            Ok(folders) => left.extend(
                folders.flatten().filter_map(|it| it.file_name().to_str()?.parse::<JobId>().ok()),
            ),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                let folder = inner.work.display();
                return Err(Error::Machine(format!("reading the folder {folder}: {error}")));
            }
        }
        left.retain(|id| !inner.slots().contains_key(id));
        for id in left {
            tracing::warn!(job = %id, "clearing away what an earlier life of this service left");
            self.clear_away(id);
        }
        Ok(())
    }

    /// Removes container and folder of a job that has ended, beside everything else and as soon as the engine is there.
    fn clear_away(&self, id: JobId) {
        let inner = self.0.clone();
        self.0.tasks.spawn(async move {
            let mut pause = drive::FIRST_PAUSE;
            while let Err(error) = solverd_runner::clean_up(&inner.engine, &inner.work, id.0).await {
                let away = matches!(error, CleanUpError::Engine(EngineError::Away { .. }));
                tracing::warn!(job = %id, error = chain(&error), again = away, "something of the job stays behind");
                if !away || inner.closing.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                    return;
                }
                pause = (pause * 2).min(drive::LONGEST_PAUSE);
            }
        });
    }

    async fn release(&self, job: &Job) -> store::Result<Release> {
        // The version was checked when the job was created.
        let version = Version::parse(&job.solver_version).map_err(store::Error::Conflict)?;
        self.0.db.release_get(&job.solver_key, &version).await
    }

    /// Deletes objects that no row names any more, beside everything else. What a shutdown does not wait for stays for good: nobody can
    /// reach it, and nothing looks for it again.
    fn delete_objects(&self, keys: Vec<String>) {
        let inner = self.0.clone();
        self.0.tasks.spawn(async move {
            let mut left = keys.iter();
            let deleting = async {
                let _place = inner.deletions.acquire().await;
                for key in left.by_ref() {
                    inner.objects.forget(key, None).await;
                }
            };
            let late = async {
                inner.closing.cancelled().await;
                tokio::time::sleep(DELETE_WITHIN).await;
            };
            tokio::select! {
                () = deleting => {}
                () = late => tracing::warn!(objects = left.len() + 1, "objects that nobody needs stay behind"),
            }
        });
    }

    /// Deletes the content of files that no row names.
    fn delete_files(&self, files: Vec<FileId>) {
        self.delete_objects(files.into_iter().map(File::object_key).collect());
    }
}

impl Inner {
    fn slots(&self) -> MutexGuard<'_, HashMap<JobId, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
