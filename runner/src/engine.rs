//! What the runner says to a container engine, in plain words. `docker` is the only module that names bollard.

mod docker;
mod registry;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Duration, SystemTime},
};

pub use docker::Docker;
#[cfg(test)]
pub(crate) use docker::tests::pretended;

use crate::task::Resources;

/// What a container without network is called, by itself.
pub(crate) const HOSTNAME: &str = "solver";

/// What the engine's machine has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Resources of the whole machine.
    pub resources: Resources,
    /// GPUs, as far as the engine says: one where it has NVIDIA's runtime, which does not say how many there are.
    pub gpus: u32,
    /// Version of the engine, for people.
    pub version: String,
}

/// An image as the engine has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Content-addressed id.
    pub id: String,
    /// All labels.
    pub labels: BTreeMap<String, String>,
    /// What registries it can be pulled from, each as `repository@sha256:…`.
    pub digests: Vec<String>,
    /// Folders in it that are to be volumes.
    pub volumes: Vec<String>,
}

/// Where a container leaves traces on the machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Traces {
    /// What it has written beside its mounts.
    pub layer: Layer,
    /// Its first process, as the engine's machine knows it, while it runs.
    pub process: Option<i64>,
}

/// What a container has written beside its mounts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layer {
    /// It lies in a folder that we may read.
    Folder(PathBuf),
    /// Only the engine can look; files are not counted.
    Bytes(u64),
}

impl Default for Layer {
    fn default() -> Self {
        Self::Bytes(0)
    }
}

/// A container to create. Everything that is not here is a hardened default.
#[derive(Debug, Clone, PartialEq)]
pub struct ContainerSpec {
    /// Unique on the engine.
    pub name: String,
    /// Image reference.
    pub image: String,
    /// Instead of the image's own.
    pub entry_point: Option<Vec<String>>,
    /// Arguments to the entry point.
    pub command: Vec<String>,
    /// Instead of the image's own.
    pub user: Option<String>,
    /// Environment.
    pub env: BTreeMap<String, String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Host folder, folder in the container.
    pub mounts: Vec<(PathBuf, String)>,
    /// The same, but at first it holds what the image has there.
    pub volumes: Vec<(PathBuf, String)>,
    /// No file grows beyond this many bytes.
    pub largest_file: u64,
    /// CPU and memory limit.
    pub resources: Resources,
    /// GPUs by index.
    pub gpus: Vec<u32>,
    /// The engine's default network, or none. Without one the engine makes no `/etc/hosts` either.
    pub network: bool,
    /// Bytes of the log that will be read; the engine keeps a little more of it.
    pub log_bytes: u64,
}

/// How a container ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// Exit code; 128 + n after signal n.
    pub code: i64,
    /// The kernel ended it at its memory limit.
    pub out_of_memory: bool,
    /// Between start and end, by the engine's clock.
    pub ran: Option<Duration>,
}

/// What a container has used up to now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sample {
    /// CPU time of all its processes.
    pub cpu: Duration,
    /// The most memory it held at once, in bytes; some kernels only tell what it holds now.
    pub memory_bytes: Option<u64>,
    /// Its processes and threads, and how many it may have.
    pub processes: Option<(u64, u64)>,
}

/// Where a container stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// The engine's id.
    pub id: String,
    /// It runs or has run: it must not be started again.
    pub begun: bool,
    /// When it was started, by the engine's clock.
    pub started_at: Option<SystemTime>,
    /// The GPUs it was created with, by index.
    pub gpus: Vec<u32>,
    /// The id of its image.
    pub image: String,
}

/// A container of ours that is still there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The engine's id.
    pub id: String,
    /// All labels.
    pub labels: BTreeMap<String, String>,
}

/// The engine said no, or did not answer.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The image is not there.
    #[error("image `{0}` is not in the container engine")]
    NoImage(String),
    /// The image is not there, and its registry does not give it.
    #[error("image `{image}` cannot be pulled: {reason}")]
    Pull {
        /// As it was asked for.
        image: String,
        /// The engine's words, or the registry's.
        reason: String,
    },
    /// The container is not there any more.
    #[error("container engine, {0}: the container is not there any more")]
    NoContainer(&'static str),
    /// The engine does not answer, or is about to end: the same call may succeed later, and this one may have been carried out.
    #[error("container engine, {doing}: {reason}")]
    Away {
        /// The step.
        doing: &'static str,
        /// What was seen of it.
        reason: String,
    },
    /// Anything else, with what was being done.
    #[error("container engine, {doing}: {reason}")]
    Failed {
        /// The step, e.g. `creating the container`.
        doing: &'static str,
        /// The engine's words.
        reason: String,
    },
}
