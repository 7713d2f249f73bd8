//! The contract between whoever schedules a job and the runner: a [`Task`] goes in, [`Event`]s come out while it runs,
//! an [`Outcome`] ends it. Everything here is serialisable, because the runner later also works on another machine.
//!
//! Must not know: HTTP, SQL, users, S3.

use std::{collections::BTreeMap, future::Future, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::io::AsyncRead;
use uuid::Uuid;

/// One container run, complete: nothing else is looked up while it runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Task {
    /// The job this is a run of; names the container and the working directory.
    pub job_id: Uuid,
    /// Image reference as the engine knows it, e.g. `simcore/services/comp/itis/sleeper:2.1.6`.
    pub image: String,
    /// The engine's id of the very image to run, wherever its name points by now.
    #[serde(default)]
    pub image_id: Option<String>,
    /// Where the image can be pulled from when the engine does not have it, as `repository@sha256:…`.
    #[serde(default)]
    pub image_digest: Option<String>,
    /// Arguments given to the image's entry point, normally `["run"]`.
    pub command: Vec<String>,
    /// Further environment, after the contract's own variables (which it cannot override).
    pub env: BTreeMap<String, String>,
    /// What the container may use.
    pub resources: Resources,
    /// How long it may take, how much it may print, and what it may take of the disk.
    #[serde(default)]
    pub limits: Limits,
    /// The GPUs it sees, by their index on the machine.
    #[serde(default)]
    pub gpus: Vec<u32>,
    /// Whether the solver is told that it runs with MPI.
    #[serde(default)]
    pub mpi: bool,
    /// Whether the container gets the engine's default network; otherwise it has none.
    pub network: bool,
    /// Labels put on the container beside `solverd.job`.
    pub labels: BTreeMap<String, String>,
    /// The solver's own expression for progress lines, instead of the standard one.
    pub progress_regexp: Option<String>,
    /// How the solver is spoken to: 0 reads `input.json`, writes `output.json` and also logs to `/logs/log.dat`; later ones read
    /// `inputs.json`, write `outputs.json` and only print.
    #[serde(default = "one")]
    pub integration_version: u64,
    /// Content of `inputs.json`: every declared input that is not a file, nulls included.
    pub values: Map<String, Value>,
    /// Files placed under `/inputs`.
    pub files: Vec<InputFile>,
    /// What must be there when the container has ended well.
    pub outputs: Vec<OutputPort>,
}

const fn one() -> u64 {
    1
}

/// CPU and memory of one container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Billionths of a CPU: 1.5 CPUs are `1_500_000_000`.
    pub nano_cpus: i64,
    /// Bytes of memory, swap excluded (there is none).
    pub memory_bytes: i64,
}

/// What a task must not exceed beside its resources.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// For pulling the image, when the engine does not have it.
    pub pull: Duration,
    /// From the container's start to its end; `None`: as long as it takes.
    pub wall: Option<Duration>,
    /// Without printing anything.
    pub silence: Duration,
    /// Between SIGTERM and SIGKILL, whatever it is that ends the container; the engine knows whole seconds only.
    pub grace: Duration,
    /// Bytes of the log that are kept, timestamps included: of a longer one the beginning and the end. Of a solver of integration version
    /// 0 as many of its log file as well.
    pub log_bytes: u64,
    /// Bytes on disk: of its inputs, outputs and logs, and whatever else the container writes, all together.
    pub disk_bytes: u64,
    /// Files and folders there.
    pub disk_files: u64,
    /// Bytes that stay free on the machine's disk: when there are fewer, the task that holds most is ended.
    pub disk_reserve: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            pull: Duration::from_hours(1),
            wall: None,
            silence: Duration::from_hours(1),
            grace: Duration::from_secs(10),
            log_bytes: 64 << 20,
            disk_bytes: 50 << 30,
            disk_files: 1_000_000,
            disk_reserve: 1 << 30,
        }
    }
}

/// A file that is fetched before the container starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputFile {
    /// The input port it is the value of; named in errors.
    pub port: String,
    /// What [`Artifacts::open`] is asked for.
    pub file_id: Uuid,
    /// Relative path below `/inputs`; may contain folders, never `..`.
    pub path: String,
    /// Declared SHA-256 (lower-case hexadecimal); the task fails when the content has another.
    pub sha256: Option<String>,
    /// It is a zip archive, which is unpacked into `/inputs` and not kept.
    #[serde(default)]
    pub unzip: bool,
}

/// One declared output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputPort {
    /// The port's key, and its key in `outputs.json` unless it is a file.
    pub key: String,
    /// For file ports the relative path below `/outputs`; `None` for a value.
    pub path: Option<String>,
    /// For values: used when `outputs.json` does not name the port. `None` makes the port obligatory.
    pub default: Option<Value>,
    /// A file that is not a zip archive is stored as one, with `.zip` behind its name.
    #[serde(default)]
    pub zip: bool,
}

/// What a running task reports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// The container runs.
    Started {
        /// The engine's id of the container.
        container: String,
    },
    /// Log lines, one or those that came together, with newlines between them. Each begins with an RFC 3339 timestamp and a space.
    Log(String),
    /// The container has ended, and this is what it has used. Comes once, also when it was stopped.
    Used(Usage),
    /// Percent of the whole task, 0 to 100: 5 for staging inputs, 90 for the solver, 5 for its outputs. Never falls.
    Progress(u8),
}

/// What a container has used of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// CPU time of all its processes.
    pub cpu: Duration,
    /// Whether `cpu` was measured; of a container that ended too soon it is the CPUs reserved times `wall`.
    pub measured: bool,
    /// Between its start and its end.
    pub wall: Duration,
    /// The most memory it held at once, in bytes, files cached by the kernel included.
    pub peak_memory_bytes: Option<u64>,
}

/// How a task ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Outcome {
    /// The container exited with 0 and every declared output was found and stored.
    Succeeded(BTreeMap<String, Output>),
    /// Anything else, with the reason.
    Failed(TaskError),
    /// The stop token was cancelled, and the container is gone.
    Stopped,
}

/// The value of one output port.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Output {
    /// As found in `outputs.json`, not yet checked against the port's type.
    Value(Value),
    /// Stored through [`Artifacts::store`].
    File(StoredFile),
}

/// An output file that [`Artifacts::store`] has put away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredFile {
    /// Identifies the file to the caller's side.
    pub file_id: Uuid,
    /// Last segment of the path it was found at.
    pub filename: String,
    /// SHA-256 of the content, lower-case hexadecimal.
    pub sha256: String,
    /// Bytes.
    pub size: u64,
    /// The object store's entity tag, without quotes.
    pub e_tag: String,
}

/// Why a task failed, for people and for programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct TaskError {
    /// What kind of failure it was.
    pub kind: FailureKind,
    /// The port it concerns, where there is one.
    pub port: Option<String>,
    /// A sentence that says what happened and where to look.
    pub message: String,
    /// The last lines the solver printed (at most 20), timestamps included; empty when it never ran.
    pub last_lines: Vec<String>,
}

impl TaskError {
    /// A failure of the whole task.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { kind, port: None, message: message.into(), last_lines: Vec::new() }
    }

    /// The same, of one port.
    #[must_use]
    pub fn at(self, port: impl Into<String>) -> Self {
        Self { port: Some(port.into()), ..self }
    }
}

/// The kinds of failure; [`FailureKind::code`] gives the names that oSPARC's clients know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// The solver exited with a code other than 0.
    Exit,
    /// The kernel killed the solver at its memory limit.
    OutOfMemory,
    /// The solver ran longer than it may.
    WallTime,
    /// The solver printed nothing for longer than it may.
    Silence,
    /// An input could not be staged.
    Input,
    /// A declared output is missing or cannot be used.
    Output,
    /// An output is there, but could not be stored.
    Storage,
    /// The image is not there.
    Image,
    /// The image took too long to pull.
    PullTime,
    /// The container engine refused or went away.
    Engine,
    /// The runner's own machine failed (disk, permissions).
    Machine,
    /// It took more of the disk than it may.
    Disk,
    /// What the task asks for can never be given here.
    Resources,
    /// Nobody followed the task any more: its container, or the service that ran it, is gone.
    Lost,
}

impl FailureKind {
    /// The `type` of the error in a job's status.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Exit => "runtime",
            Self::OutOfMemory => "runtime.oom",
            Self::WallTime => "runtime.wall",
            Self::Silence => "runtime.timeout",
            Self::Input => "runtime.input",
            Self::Output => "ServiceBadFormattedOutputError",
            Self::Storage => "runtime.storage",
            Self::Image => "runtime.image",
            Self::PullTime => "runtime.pull",
            Self::Engine => "runtime.engine",
            Self::Machine => "runtime.machine",
            Self::Disk => "runtime.disk",
            Self::Resources => "runtime.resources",
            Self::Lost => "runtime.lost",
        }
    }
}

/// Where inputs come from and outputs go to. On a cluster node this goes over the network; beside the service it is the object store.
pub trait Artifacts: Send + Sync {
    /// Opens an input file for reading from its first byte.
    fn open(
        &self,
        file: &InputFile,
    ) -> impl Future<Output = Result<impl AsyncRead + Send + Unpin, ArtifactError>> + Send;

    /// Stores an output file of `size` bytes, reading at most that many; a shorter read is an error.
    fn store(
        &self,
        port: &str,
        filename: &str,
        content: tokio::fs::File,
        size: u64,
    ) -> impl Future<Output = Result<StoredFile, ArtifactError>> + Send;
}

/// Fetching or storing a file failed; the text is for the job's owner.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ArtifactError(pub String);
