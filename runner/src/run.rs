//! One task from its first byte to its last: stage in, container, stage out, and nothing left behind.

use std::{
    collections::BTreeMap,
    path::Path,
    time::{Duration, Instant},
};

use tokio::sync::mpsc::Sender;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    engine::{ContainerSpec, Docker, EngineError, Exit},
    folders::Folders,
    inputs,
    logs::follow,
    outputs,
    progress::Progress,
    report::Reporter,
    task::{Artifacts, Event, FailureKind, Outcome, Output, Task, TaskError, Usage},
    usage::Meter,
};

/// Label of every container of ours; its value is the job's id.
pub const JOB_LABEL: &str = "solverd.job";

/// What a solver gets between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(10);

/// Percent when everything is staged. Only whoever finishes the job says 100.
const STAGED: u8 = 5;

/// Runs a task to its end. When it returns, the container and the job's folder below `work` (absolute) are gone.
///
/// `events` must be read or closed until then, or the solver's output blocks. Cancelling `stop` ends the task in any
/// phase; dropping the future leaves container and folder behind, as a crash does: see [`clean_up`].
pub async fn run(
    engine: &Docker,
    work: &Path,
    task: &Task,
    artifacts: &impl Artifacts,
    events: &Sender<Event>,
    stop: &CancellationToken,
) -> Outcome {
    let run = Run { engine, task, report: Reporter::new(events), stop };
    match run.in_folders(work, artifacts).await {
        Ok(outputs) => Outcome::Succeeded(outputs),
        Err(Halt::Failed(error)) => {
            run.report.error(&error.message).await;
            Outcome::Failed(error)
        }
        Err(Halt::Stopped) => {
            run.report.info("stopped").await;
            Outcome::Stopped
        }
    }
}

/// Removes what a run left that did not return: the job's containers and its folder.
pub async fn clean_up(engine: &Docker, work: &Path, job_id: Uuid) -> Result<(), TaskError> {
    for found in engine.list(&format!("{JOB_LABEL}={job_id}")).await? {
        engine.remove(&found.id).await?;
    }
    Folders::of(work, job_id)
        .remove()
        .await
        .map_err(|error| TaskError::new(FailureKind::Machine, error.to_string()))
}

/// Why a run ends early.
enum Halt {
    Stopped,
    Failed(TaskError),
}

impl<E: Into<TaskError>> From<E> for Halt {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

impl From<EngineError> for TaskError {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::NoImage(_) => Self::new(FailureKind::Image, error.to_string()),
            EngineError::Failed { .. } => Self::new(FailureKind::Engine, error.to_string()),
        }
    }
}

struct Run<'a> {
    engine: &'a Docker,
    task: &'a Task,
    report: Reporter<'a>,
    stop: &'a CancellationToken,
}

impl Run<'_> {
    async fn in_folders(
        &self,
        work: &Path,
        artifacts: &impl Artifacts,
    ) -> Result<BTreeMap<String, Output>, Halt> {
        self.report.info(format!("image {}", self.task.image)).await;
        match self.engine.image(self.image()).await {
            Err(EngineError::NoImage(id)) if self.task.image_id.is_some() => {
                let name = &self.task.image;
                let message = format!(
                    "image `{name}` as it was published ({id}) is not in the container engine any more"
                );
                return Err(TaskError::new(FailureKind::Image, message).into());
            }
            found => found?,
        };
        self.unless_stopped()?;
        let folders = Folders::create(work, self.task.job_id).await.map_err(|error| {
            let folder = work.join(self.task.job_id.to_string());
            TaskError::new(
                FailureKind::Machine,
                format!("making the folder {}: {error}", folder.display()),
            )
        })?;
        let result = self.in_container(&folders, artifacts).await;
        if let Err(error) = folders.remove().await {
            tracing::warn!(job = %self.task.job_id, %error, "the job's folder is still there");
            self.report.warning(error.to_string()).await;
        }
        result
    }

    fn image(&self) -> &str {
        self.task.image_id.as_ref().unwrap_or(&self.task.image)
    }

    async fn in_container(
        &self,
        folders: &Folders,
        artifacts: &impl Artifacts,
    ) -> Result<BTreeMap<String, Output>, Halt> {
        self.report.info(format!("staging {} files", self.task.files.len())).await;
        let inputs = folders.inputs();
        let spec = spec(self.task, self.image(), folders);
        // A request to create is never abandoned: the engine would carry it out all the same.
        let (staged, created) = tokio::join!(
            self.or_stop(inputs::stage(&inputs, self.task, artifacts)),
            self.engine.create(&spec)
        );
        let container = created?;
        let result = match staged {
            Ok(()) => self.execute(&container, folders, artifacts).await,
            Err(halt) => Err(halt),
        };
        if let Err(error) = self.engine.remove(&container).await {
            tracing::warn!(job = %self.task.job_id, container, %error, "the container is still there");
            self.report.warning(error.to_string()).await;
        }
        result
    }

    async fn execute(
        &self,
        container: &str,
        folders: &Folders,
        artifacts: &impl Artifacts,
    ) -> Result<BTreeMap<String, Output>, Halt> {
        self.report.progress(STAGED).await;
        let progress = self.progress().await;
        self.unless_stopped()?;
        self.report.info("starting").await;
        let started = Instant::now();
        self.engine.start(container).await?;
        self.report.send(Event::Started { container: container.to_owned() }).await;

        let (ended, last_lines, usage) = self.attend(container, &progress).await;
        self.report.send(Event::Used(usage)).await;
        let exit = ended?.ok_or(Halt::Stopped)?;
        self.report
            .info(format!("exit code {} after {:.1} s", exit.code, started.elapsed().as_secs_f64()))
            .await;
        let with_lines = |error: TaskError| TaskError { last_lines, ..error };
        if let Some(error) = failure(exit, self.task) {
            return Err(with_lines(error).into());
        }

        let outputs = folders.outputs();
        let collected =
            self.or_stop(outputs::collect(&outputs, &self.task.outputs, artifacts)).await;
        let collected = collected.map_err(|halt| match halt {
            Halt::Failed(error) => Halt::Failed(with_lines(error)),
            Halt::Stopped => Halt::Stopped,
        })?;
        self.report.info(format!("{} outputs stored", collected.len())).await;
        Ok(collected)
    }

    /// Follows the container until it has ended, and its log until that has. `None` when it was stopped. What it uses is sampled
    /// beside that, and nothing waits for a sample.
    async fn attend(
        &self,
        container: &str,
        progress: &Progress,
    ) -> (Result<Option<Exit>, EngineError>, Vec<String>, Usage) {
        let meter = Meter::new(self.task.resources.nano_cpus);
        let ended = CancellationToken::new();
        let ending = async {
            let exit = tokio::select! {
                exit = self.engine.wait(container) => exit.map(Some),
                () = self.stop.cancelled() => {
                    if let Err(error) = self.engine.stop(container, GRACE).await {
                        // It is killed all the same, when it is removed.
                        self.report.warning(error.to_string()).await;
                    }
                    Ok(None)
                }
            };
            ended.cancel();
            let ran = exit.as_ref().ok().and_then(|exit| exit.as_ref()?.ran);
            (exit, ran.unwrap_or_else(|| meter.elapsed()))
        };
        let ((exit, wall), last_lines, sampled) = tokio::join!(
            ending,
            follow(self.engine, container, progress, &self.report, &ended),
            meter.sample(self.engine.samples(container), &ended)
        );
        (exit, last_lines, sampled.usage(wall))
    }

    async fn progress(&self) -> Progress {
        let Some(expression) = &self.task.progress_regexp else { return Progress::default() };
        match Progress::with(expression) {
            Ok(progress) => progress,
            Err(error) => {
                self.report
                    .warning(format!("the solver's progress expression is not used: {error}"))
                    .await;
                Progress::default()
            }
        }
    }

    fn unless_stopped(&self) -> Result<(), Halt> {
        if self.stop.is_cancelled() { Err(Halt::Stopped) } else { Ok(()) }
    }

    async fn or_stop<T>(
        &self,
        work: impl Future<Output = Result<T, TaskError>>,
    ) -> Result<T, Halt> {
        tokio::select! {
            done = work => done.map_err(Halt::Failed),
            () = self.stop.cancelled() => Err(Halt::Stopped),
        }
    }
}

fn spec(task: &Task, image: &str, folders: &Folders) -> ContainerSpec {
    let mut env = task.env.clone();
    env.extend(
        [
            ("INPUT_FOLDER", "/inputs".to_owned()),
            ("OUTPUT_FOLDER", "/outputs".to_owned()),
            ("LOG_FOLDER", "/logs".to_owned()),
            ("SC_COMP_SERVICES_SCHEDULED_AS", "CPU".to_owned()),
            ("SIMCORE_NANO_CPUS_LIMIT", task.resources.nano_cpus.to_string()),
            ("SIMCORE_MEMORY_BYTES_LIMIT", task.resources.memory_bytes.to_string()),
        ]
        .map(|(name, value)| (name.to_owned(), value)),
    );
    let mut labels = task.labels.clone();
    labels.insert(JOB_LABEL.to_owned(), task.job_id.to_string());
    ContainerSpec {
        name: format!("solverd-{}", task.job_id),
        image: image.to_owned(),
        command: task.command.clone(),
        env,
        labels,
        mounts: vec![
            (folders.inputs(), "/inputs".to_owned()),
            (folders.outputs(), "/outputs".to_owned()),
            (folders.logs(), "/logs".to_owned()),
        ],
        resources: task.resources,
        network: task.network,
    }
}

fn failure(exit: Exit, task: &Task) -> Option<TaskError> {
    let code = exit.code;
    let limit = task.resources.memory_bytes / (1024 * 1024);
    if exit.out_of_memory {
        let message =
            format!("the solver needed more than its {limit} MiB of memory, and was killed");
        return Some(TaskError::new(FailureKind::OutOfMemory, message));
    }
    let meaning = match code {
        0 => return None,
        126 => " (the command cannot be executed)",
        127 => " (command not found)",
        129 => " (SIGHUP)",
        130 => " (SIGINT)",
        131 => " (SIGQUIT)",
        132 => " (SIGILL)",
        134 => " (SIGABRT)",
        135 => " (SIGBUS)",
        136 => " (SIGFPE)",
        // Docker begins to watch the memory shortly after the start: it does not notice what is killed before.
        137 => {
            &format!(" (SIGKILL), which is also what happens at its limit of {limit} MiB of memory")
        }
        139 => " (SIGSEGV)",
        141 => " (SIGPIPE)",
        143 => " (SIGTERM)",
        159 => " (SIGSYS)",
        _ => "",
    };
    Some(TaskError::new(FailureKind::Exit, format!("the solver exited with code {code}{meaning}")))
}
