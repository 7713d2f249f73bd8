//! One task from its first byte to its last: stage in, container, stage out; what is left is cleaned up when the outcome is safe.

use std::{
    collections::BTreeMap,
    path::Path,
    pin::pin,
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use futures_util::TryStreamExt;
use rustix::process::geteuid;
use tokio::sync::mpsc::Sender;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    disk::{self, Disk},
    engine::{ContainerSpec, Docker, EngineError, Exit, Image, Standing},
    folders::Folders,
    inputs,
    limits::{Clocks, within},
    logfile,
    logs::{LAST_LINES, Printed, Recorded, follow},
    outputs,
    progress::Progress,
    report::Reporter,
    task::{Artifacts, Event, FailureKind, Outcome, Output, Task, TaskError},
    usage::Meter,
};

/// Label of every container of ours; its value is the job's id.
pub const JOB_LABEL: &str = "solverd.job";

/// Percent when everything is staged. Only whoever finishes the job says 100.
const STAGED: u8 = 5;

/// How often an engine that is away is asked whether it is back.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// One that is away again sooner than this after it was waited for had not come back: it may answer, and do nothing else.
const BACK: Duration = Duration::from_secs(10);

/// A container that an earlier run of the same task has started, and did not live to see the end of.
#[derive(Debug)]
pub struct Adopted {
    /// The engine's id.
    pub container: String,
    /// What of its log was written down.
    pub recorded: Recorded,
}

/// Runs a task to its end, or goes on with an `adopted` container. Container and the job's folder below `work` (absolute) stay until the
/// outcome is safe and [`clean_up`] is called: whoever loses the outcome adopts the container and gets the same again.
///
/// `events` must be read or closed until then, or the solver's output blocks. Cancelling `stop` ends the task in any
/// phase; dropping the future leaves a container that runs on, as a crash does.
pub async fn run(
    engine: &Docker,
    work: &Path,
    task: &Task,
    artifacts: &impl Artifacts,
    events: &Sender<Event>,
    stop: &CancellationToken,
    adopted: Option<Adopted>,
) -> Outcome {
    let run = Run::new(engine, task, events, stop);
    let folders = Folders::of(work, task.job_id);
    // All phases together are a large future.
    match Box::pin(run.whole(&folders, artifacts, adopted)).await {
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

/// The container of a job, if it runs or has run: only then must the job not be run again.
pub async fn find_begun(engine: &Docker, job_id: Uuid) -> Result<Option<Standing>, EngineError> {
    match engine.standing(&container_name(job_id)).await {
        Ok(standing) => Ok(Some(standing).filter(|standing| standing.begun)),
        Err(EngineError::NoContainer(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Removes what a run leaves: the job's container and its folder. Good as well when they are gone.
pub async fn clean_up(engine: &Docker, work: &Path, job_id: Uuid) -> Result<(), CleanUpError> {
    let (name, folders) = (container_name(job_id), Folders::of(work, job_id));
    if geteuid().is_root() {
        engine.remove(&name).await?;
        folders.remove(engine, None).await?;
    } else {
        // Only the container tells the image, which may be needed to remove the folder: so it goes last.
        let image = match engine.standing(&name).await {
            Ok(standing) => Some(standing.image),
            Err(EngineError::NoContainer(_)) => None,
            Err(error) => return Err(error.into()),
        };
        engine.stop(&name, Duration::ZERO).await?;
        engine.remove(&folders.helper()).await?;
        let removed = folders.remove(engine, image.as_deref()).await;
        if !matches!(removed, Err(CleanUpError::Engine(EngineError::Away { .. }))) {
            engine.remove(&name).await?;
        }
        removed?;
    }
    disk::forget(job_id);
    Ok(())
}

/// Something of a run is still there.
#[derive(Debug, thiserror::Error)]
pub enum CleanUpError {
    /// The container, or one that was to help.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The folder.
    #[error(transparent)]
    Folder(#[from] std::io::Error),
    /// A thread broke off.
    #[error(transparent)]
    Thread(#[from] tokio::task::JoinError),
}

/// Why a run ends early.
enum Halt {
    Stopped,
    Failed(TaskError),
}

impl Halt {
    /// The same, with the last lines the solver printed.
    fn with_lines(self, last_lines: Vec<String>) -> Self {
        match self {
            Self::Failed(error) => Self::Failed(TaskError { last_lines, ..error }),
            Self::Stopped => Self::Stopped,
        }
    }
}

/// How a container ended.
struct End {
    exit: Exit,
    /// The engine was away meanwhile; it may have ended the container.
    interrupted: bool,
}

impl<E: Into<TaskError>> From<E> for Halt {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

impl From<EngineError> for TaskError {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::NoImage(_) | EngineError::Pull { .. } => {
                Self::new(FailureKind::Image, error.to_string())
            }
            EngineError::NoContainer(_) => {
                let message =
                    "the container was removed by somebody else before the solver's end was seen";
                Self::new(FailureKind::Lost, message)
            }
            EngineError::Away { .. } | EngineError::Failed { .. } => {
                Self::new(FailureKind::Engine, error.to_string())
            }
        }
    }
}

struct Run<'a> {
    engine: &'a Docker,
    task: &'a Task,
    report: Reporter<'a>,
    stop: &'a CancellationToken,
    /// When the engine was waited for last, and the last pause of that.
    waited: Mutex<Option<(Instant, Duration)>>,
}

impl<'a> Run<'a> {
    fn new(
        engine: &'a Docker,
        task: &'a Task,
        events: &'a Sender<Event>,
        stop: &'a CancellationToken,
    ) -> Self {
        Self { engine, task, report: Reporter::new(events), stop, waited: Mutex::new(None) }
    }

    async fn whole(
        &self,
        folders: &Folders,
        artifacts: &impl Artifacts,
        adopted: Option<Adopted>,
    ) -> Result<BTreeMap<String, Output>, Halt> {
        let (container, recorded, ago) = if let Some(Adopted { container, recorded }) = adopted {
            self.report.info("solverd was started again and goes on with the container").await;
            let standing = self.insist(|| self.engine.standing(&container)).await?;
            let ago = standing.started_at.and_then(|at| at.elapsed().ok());
            (container, recorded, ago.unwrap_or_default())
        } else {
            (self.launch(folders, artifacts).await?, Recorded::default(), Duration::ZERO)
        };
        self.report.send(Event::Started { container: container.clone() }).await;
        self.attend(&container, folders, &recorded, ago, artifacts).await
    }

    /// From nothing to a running container.
    async fn launch(&self, folders: &Folders, artifacts: &impl Artifacts) -> Result<String, Halt> {
        self.report.info(format!("image {}", self.task.image)).await;
        let machine = |error| {
            let message = format!("making the folder {}: {error}", folders.path().display());
            TaskError::new(FailureKind::Machine, message)
        };
        let create_folders = async {
            folders.create()?;
            if self.task.integration_version == 0 {
                logfile::create(&folders.logs())?;
            }
            Ok(())
        };
        // The engine looks while we make folders.
        let (found, created) =
            tokio::join!(self.insist(|| self.engine.image(self.image())), create_folders);
        created.map_err(machine)?;
        let image = match found {
            Err(Halt::Failed(TaskError { kind: FailureKind::Image, .. })) => self.pull().await?,
            found => found?,
        };
        self.unless_stopped()?;
        let volumes = folders.volumes(&image.volumes).map_err(machine)?;
        self.report.info(format!("staging {} files", self.task.files.len())).await;
        let (inputs, scratch) = (folders.inputs(), folders.scratch());
        let spec = ContainerSpec { volumes, ..spec(self.task, self.image(), folders) };
        let staging = async {
            let disk = self.disk(folders);
            tokio::select! {
                staged = inputs::stage(&inputs, &scratch, self.task, artifacts) => staged,
                too_much = disk.watch(None) => Err(too_much),
            }
        };
        let (staged, created) =
            tokio::join!(self.or_stop(staging), self.insist(|| self.engine.create(&spec)));
        let container = created?;
        staged?;
        self.report.progress(STAGED).await;
        self.unless_stopped()?;
        self.report.info("starting").await;
        self.start(&container).await?;
        Ok(container)
    }

    /// Gets the image from where it was published.
    async fn pull(&self) -> Result<Image, Halt> {
        if let Some(digest) = &self.task.image_digest {
            self.report.info(format!("pulling {digest}")).await;
            let pull = self.insist(|| async {
                let mut lines = pin!(self.engine.pull(digest));
                while let Some(line) = lines.try_next().await? {
                    self.report.info(line).await;
                }
                Ok(())
            });
            self.or_stop(within(self.task.limits.pull, pull)).await?;
        }
        // What was published under the digest may be for another kind of machine.
        let found = self.insist(|| self.engine.image(self.image())).await;
        match (found, &self.task.image_id) {
            (Err(Halt::Failed(TaskError { kind: FailureKind::Image, .. })), Some(id)) => {
                let name = &self.task.image;
                let message = format!(
                    "image `{name}` as it was published ({id}) is not in the container engine any more"
                );
                Err(TaskError::new(FailureKind::Image, message).into())
            }
            (found, _) => found,
        }
    }

    fn disk(&self, folders: &Folders) -> Disk<'_> {
        Disk::new(self.engine, self.task.job_id, self.task.limits, folders)
    }

    fn image(&self) -> &str {
        self.task.image_id.as_ref().unwrap_or(&self.task.image)
    }

    /// Starts a container once: when the engine's answer is lost, the container itself tells whether it has begun.
    async fn start(&self, container: &str) -> Result<(), Halt> {
        loop {
            match self.engine.start(container).await {
                Err(error @ EngineError::Away { .. }) => self.return_of_engine(&error).await?,
                done => return Ok(done?),
            }
            if self.insist(|| self.engine.standing(container)).await?.begun {
                return Ok(());
            }
        }
    }

    /// Asks the engine until it answers.
    async fn insist<T, F: Future<Output = Result<T, EngineError>>>(
        &self,
        attempt: impl Fn() -> F,
    ) -> Result<T, Halt> {
        loop {
            match attempt().await {
                Err(error @ EngineError::Away { .. }) => self.return_of_engine(&error).await?,
                done => return Ok(done?),
            }
        }
    }

    /// Waits until the engine answers again.
    async fn return_of_engine(&self, error: &EngineError) -> Result<(), Halt> {
        let patience = async {
            let longer = |pause: Duration| (pause * 2).min(LONGEST_PAUSE);
            let before = self.waited().filter(|(at, _)| at.elapsed() < BACK);
            let mut pause = before.map_or(FIRST_PAUSE, |(_, pause)| longer(pause));
            if before.is_none() {
                tracing::warn!(job = %self.task.job_id, %error, "waiting for the container engine");
                self.report.warning(format!("{error}; waiting for the engine")).await;
            }
            while self.engine.ping().await.is_err() {
                tokio::time::sleep(pause).await;
                pause = longer(pause);
            }
            // One that is about to end still answers.
            tokio::time::sleep(pause).await;
            *self.waited() = Some((Instant::now(), pause));
            Ok::<_, TaskError>(())
        };
        self.or_stop(patience).await
    }

    fn waited(&self) -> MutexGuard<'_, Option<(Instant, Duration)>> {
        self.waited.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows the container until it has ended and its outputs are stored, and its log until that has. What it uses is sampled beside
    /// that, and nothing waits for a sample.
    async fn attend(
        &self,
        container: &str,
        folders: &Folders,
        recorded: &Recorded,
        ago: Duration,
        artifacts: &impl Artifacts,
    ) -> Result<BTreeMap<String, Output>, Halt> {
        let progress = self.progress().await;
        let disk = self.disk(folders);
        let meter = Meter::new(self.task.resources.nano_cpus, ago);
        let clocks = Clocks::new(self.task.limits, ago, recorded.ago().unwrap_or(ago));
        let limit = self.task.limits.log_bytes;
        let printed = Printed::new(&self.report, &progress, recorded, &clocks, limit);
        let (ended, exited) = (CancellationToken::new(), OnceLock::new());
        let ending = async {
            let end = self.end(container, &clocks, &disk).await;
            let exit = end.as_ref().ok().map(|end| end.exit);
            let wall = exit.and_then(|exit| exit.ran).unwrap_or_else(|| meter.elapsed());
            // Nobody else sets it.
            let _ = exited.set((exit.map(|exit| exit.code), wall));
            ended.cancel();
            // The log's last lines are read meanwhile.
            self.harvest(end?, container, folders, &disk, artifacts).await
        };
        let log_file = async {
            if self.task.integration_version > 0 {
                return Vec::new();
            }
            let recorded = recorded.size();
            let printed = Printed::new(&self.report, &progress, &recorded, &clocks, limit);
            logfile::follow(folders, printed, &self.report, &ended).await
        };
        let reading = async {
            let (mut last_lines, from_file, sampled) = tokio::join!(
                follow(self.engine, container, printed, &ended, self.stop),
                log_file,
                meter.sample(self.engine.samples(container), &self.report, &ended)
            );
            if !from_file.is_empty() {
                last_lines.extend(from_file);
                // They begin with their times.
                last_lines.sort();
                last_lines.drain(..last_lines.len().saturating_sub(LAST_LINES));
            }
            let (code, wall) = exited.get().copied().unwrap_or_default();
            self.report.send(Event::Used(sampled.usage(wall))).await;
            if let Some(code) = code {
                let text = format!("exit code {code} after {:.1} s", wall.as_secs_f64());
                self.report.info(text).await;
            }
            last_lines
        };
        let (outputs, last_lines) = tokio::join!(ending, reading);
        let outputs = outputs.map_err(|halt| halt.with_lines(last_lines))?;
        self.report.info(format!("{} outputs stored", outputs.len())).await;
        Ok(outputs)
    }

    /// Stores the outputs of a container that has ended well.
    async fn harvest(
        &self,
        end: End,
        container: &str,
        folders: &Folders,
        disk: &Disk<'_>,
        artifacts: &impl Artifacts,
    ) -> Result<BTreeMap<String, Output>, Halt> {
        // What came after the last look may explain the end, and is too much to be kept.
        disk.look(Some(container)).await?;
        match failure(end.exit, self.task) {
            Some(error) if end.interrupted => {
                let message =
                    format!("{}; the container engine went away while it ran", error.message);
                return Err(TaskError::new(FailureKind::Engine, message).into());
            }
            Some(error) => return Err(error.into()),
            None => {}
        }
        let (outputs, scratch) = (folders.outputs(), folders.scratch());
        let (version, ports) = (self.task.integration_version, &self.task.outputs);
        let most = self.task.limits.disk_bytes;
        self.or_stop(outputs::collect(&outputs, &scratch, version, ports, most, artifacts)).await
    }

    /// Waits for the end of the container, or brings it about.
    async fn end(&self, container: &str, clocks: &Clocks, disk: &Disk<'_>) -> Result<End, Halt> {
        let grace = self.task.limits.grace;
        let mut interrupted = false;
        loop {
            let (reason, grace) = tokio::select! {
                biased;
                () = self.stop.cancelled() => (Halt::Stopped, grace),
                waited = self.engine.wait(container) => match waited {
                    Err(error @ EngineError::Away { .. }) => {
                        interrupted = true;
                        // A stop is seen to when the engine is there to do it.
                        let _ = self.return_of_engine(&error).await;
                        continue;
                    }
                    exit => return Ok(End { exit: exit?, interrupted }),
                },
                error = clocks.exceeded() => (error.into(), grace),
                // Until then it would take even more.
                too_much = disk.watch(Some(container)) => (too_much.into(), Duration::ZERO),
            };
            return Err(self.halt(container, reason, grace).await);
        }
    }

    /// Ends the container, for a reason.
    async fn halt(&self, container: &str, reason: Halt, grace: Duration) -> Halt {
        while let Err(error) = self.engine.stop(container, grace).await {
            if !matches!(error, EngineError::Away { .. }) {
                // It is killed all the same, when it is removed.
                self.report.warning(error.to_string()).await;
                break;
            }
            tokio::time::sleep(LONGEST_PAUSE).await;
        }
        reason
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

    async fn or_stop<T, E: Into<Halt>>(
        &self,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, Halt> {
        tokio::select! {
            done = work => done.map_err(Into::into),
            () = self.stop.cancelled() => Err(Halt::Stopped),
        }
    }
}

/// The engine gives a name only once: it lets no job run twice.
fn container_name(job_id: Uuid) -> String {
    format!("solverd-{job_id}")
}

fn spec(task: &Task, image: &str, folders: &Folders) -> ContainerSpec {
    let mode = match (task.gpus.is_empty(), task.mpi) {
        (false, _) => "GPU",
        (true, true) => "MPI",
        (true, false) => "CPU",
    };
    let mut env = task.env.clone();
    env.extend(
        [
            ("INPUT_FOLDER", "/inputs".to_owned()),
            ("OUTPUT_FOLDER", "/outputs".to_owned()),
            ("LOG_FOLDER", "/logs".to_owned()),
            ("SC_COMP_SERVICES_SCHEDULED_AS", mode.to_owned()),
            ("SIMCORE_NANO_CPUS_LIMIT", task.resources.nano_cpus.to_string()),
            ("SIMCORE_MEMORY_BYTES_LIMIT", task.resources.memory_bytes.to_string()),
        ]
        .map(|(name, value)| (name.to_owned(), value)),
    );
    let mut labels = task.labels.clone();
    labels.insert(JOB_LABEL.to_owned(), task.job_id.to_string());
    ContainerSpec {
        name: container_name(task.job_id),
        image: image.to_owned(),
        entry_point: None,
        command: task.command.clone(),
        user: None,
        env,
        labels,
        mounts: folders.mounts(task.network),
        volumes: Vec::new(),
        largest_file: task.limits.disk_bytes,
        resources: task.resources,
        gpus: task.gpus.clone(),
        network: task.network,
        log_bytes: task.limits.log_bytes,
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
        153 => &format!(
            " (SIGXFSZ), which is also what happens when a file reaches {} bytes, the job's limit on disk",
            task.limits.disk_bytes
        ),
        159 => " (SIGSYS)",
        _ => "",
    };
    Some(TaskError::new(FailureKind::Exit, format!("the solver exited with code {code}{meaning}")))
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;
    use crate::{engine::pretended, inputs::tests::task};

    #[tokio::test]
    async fn an_engine_that_answers_but_does_nothing_is_warned_of_once() {
        let mut failures = 0;
        let engine = pretended(move |request| {
            if request.contains("_ping") {
                return (200, b"OK".to_vec());
            }
            failures += 1;
            let away = br#"{"message":"rpc error: code = Unavailable"}"#;
            if failures > 2 { (200, b"{}".to_vec()) } else { (500, away.to_vec()) }
        });
        let (task, stop) = (task(&[]), CancellationToken::new());
        let (sender, mut events) = mpsc::channel(10);
        let run = Run::new(&engine, &task, &sender, &stop);
        assert!(run.insist(|| engine.standing("x")).await.is_ok());
        let warned = "container engine, inspecting the container: rpc error: code = Unavailable; waiting for the engine";
        let Ok(Event::Log(line)) = events.try_recv() else { panic!("no warning") };
        assert!(line.ends_with(warned), "{line}");
        assert!(events.try_recv().is_err(), "once is enough");
    }

    #[tokio::test]
    async fn a_pull_waits_for_an_engine_that_is_away() {
        let mut seen = Vec::new();
        let engine = pretended(move |request| {
            if request.contains("_ping") {
                return (200, b"OK".to_vec());
            }
            let again = seen.contains(&request.to_owned());
            seen.push(request.to_owned());
            match (again, request.starts_with("POST")) {
                (true, true) => (200, br#"{"status":"done"}"#.to_vec()),
                (true, false) => (200, b"{}".to_vec()),
                (false, true) => {
                    (200, br#"{"errorDetail":{"message":"context canceled"}}"#.to_vec())
                }
                (false, false) => (500, br#"{"message":"code = Unavailable"}"#.to_vec()),
            }
        });
        let digest = format!("registry.example.org/a@sha256:{}", "0".repeat(64));
        let task = Task { image: "a".to_owned(), image_digest: Some(digest.clone()), ..task(&[]) };
        let (sender, mut events) = mpsc::channel(10);
        let stop = CancellationToken::new();
        let run = Run::new(&engine, &task, &sender, &stop);
        assert!(run.pull().await.is_ok());
        let mut texts = Vec::new();
        while let Ok(Event::Log(line)) = events.try_recv() {
            texts.push(line.split_once("solverd").unwrap().1.to_owned());
        }
        let warned =
            ": container engine, pulling the image: context canceled; waiting for the engine";
        assert_eq!(texts, [format!("] pulling {digest}"), warned.to_owned(), "] done".to_owned()]);
    }
}
