//! The Docker engine, over its API. The only module that names bollard.
//!
//! Waiting is always on the engine's own event, never by asking again and again.

use std::{
    collections::HashMap,
    future::ready,
    path::{Path, PathBuf},
    pin::pin,
    time::{Duration, Instant, SystemTime},
};

use bollard::{
    container::LogOutput,
    errors::Error,
    models::{
        ContainerCreateBody, ContainerInspectResponse, ContainerStateStatusEnum,
        ContainerWaitResponse, CreateImageInfo, DeviceRequest, HostConfig, HostConfigLogConfig,
        Mount, MountType, MountVolumeOptions, MountVolumeOptionsDriverConfig, ProgressDetail,
        ResourcesUlimits,
    },
    query_parameters::{
        CreateContainerOptionsBuilder, CreateImageOptionsBuilder,
        DownloadFromContainerOptionsBuilder, EventsOptionsBuilder, InspectContainerOptionsBuilder,
        ListContainersOptionsBuilder, LogsOptionsBuilder, RemoveContainerOptionsBuilder,
        RemoveImageOptions, StatsOptionsBuilder, StopContainerOptionsBuilder,
        WaitContainerOptionsBuilder,
    },
};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use uuid::Uuid;

use super::{
    ContainerSpec, EngineError, Exit, Found, HOSTNAME, Image, Layer, Machine, Sample, Standing,
    Traces, registry,
};
use crate::{
    logs::{Lines, Piece, Source, printable},
    remove::remove,
    task::Resources,
};

/// Processes and threads in one container: enough for a solver with a thread per core, too few for a fork bomb.
const PIDS: i64 = 512;

/// What an entry point needs to adopt the owner of its folders and to drop to that user; and what the init needs then, to pass
/// SIGTERM on to that user's process.
const CAPABILITIES: [&str; 6] = ["CHOWN", "DAC_OVERRIDE", "FOWNER", "KILL", "SETGID", "SETUID"];

/// What the engine writes of a log, for each byte that is to be read: it wraps every line in JSON, which makes more than double of short ones.
const LOG_FILE: u64 = 3;

/// At least for so many bytes: when a file is full, engines drop what is still unread of it.
const SMALLEST_LOG: u64 = 8 << 20;

/// What no process may write to: what engines protect by default, and the three files that are mounted from places that nobody
/// measures.
const READ_ONLY: [&str; 8] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
    "/etc/hosts",
    "/etc/hostname",
    "/etc/resolv.conf",
];

/// How a frame of a log begins that holds an error of the engine; its length is next.
const ENGINES_OWN: &[u8] = &[3, 0, 0, 0];

/// Characters of what the engine says of an error.
const LONGEST_REASON: usize = 1000;

/// Exit code after SIGKILL.
const KILLED: i64 = 137;

const PULLING: &str = "pulling the image";

/// How often a pull tells of the bytes that come in.
const PULL_NEWS: Duration = Duration::from_secs(5);

/// How long after its end a container may still turn out to have been killed for its memory.
const LATE: Duration = Duration::from_secs(2);

/// A client of the engine. Clones share its connections.
#[derive(Debug, Clone)]
pub struct Docker(bollard::Docker);

impl Docker {
    /// A client for the engine that `DOCKER_HOST` names, else for the local socket. Does not talk to it yet: see [`Self::ping`].
    pub fn connect() -> Result<Self, EngineError> {
        bollard::Docker::connect_with_defaults().map(Self).map_err(during("connecting"))
    }

    /// Whether the engine answers.
    pub async fn ping(&self) -> Result<(), EngineError> {
        self.0.ping().await.map(drop).map_err(during("asking whether it is there"))
    }

    /// What the engine's machine has in all.
    pub async fn machine(&self) -> Result<Machine, EngineError> {
        let info = self.0.info().await.map_err(during("asking what the machine has"))?;
        Ok(Machine {
            resources: Resources {
                nano_cpus: info.ncpu.unwrap_or_default() * 1_000_000_000,
                memory_bytes: info.mem_total.unwrap_or_default(),
            },
            gpus: info.runtimes.is_some_and(|runtimes| runtimes.contains_key("nvidia")).into(),
            version: info.server_version.unwrap_or_default(),
        })
    }

    /// Pulls an image, with the credentials of Docker's own configuration; items are lines that say how far it is.
    pub fn pull(
        &self,
        image: &str,
    ) -> impl Stream<Item = Result<String, EngineError>> + Send + use<> {
        // A registry may be silent for long before its first word; how long is not for the client to say.
        let (engine, image) = (self.0.clone().with_timeout(Duration::MAX), image.to_owned());
        let failed = {
            let image = image.clone();
            move |reason: String| {
                if is_ending(&reason) {
                    EngineError::Away { doing: PULLING, reason }
                } else {
                    EngineError::Pull { image: image.clone(), reason }
                }
            }
        };
        let looking = {
            let image = image.clone();
            tokio::task::spawn_blocking(move || registry::credentials(&image))
        };
        let lines = async move {
            let credentials = match looking.await {
                Ok(found) => found.map_err(&failed)?,
                Err(error) => return Err(failed(error.to_string())),
            };
            let reference = registry::with_tag(&image);
            let options = CreateImageOptionsBuilder::default().from_image(&reference).build();
            let mut shown = None;
            let lines =
                engine.create_image(Some(options), None, credentials).filter_map(move |info| {
                    ready(match info {
                        Ok(info) => pulled(info, &mut shown).map(Ok),
                        Err(Error::DockerResponseServerError { message, .. }) => {
                            Some(Err(failed(message)))
                        }
                        Err(Error::DockerStreamError { error }) => Some(Err(failed(error))),
                        Err(error) => Some(Err(during(PULLING)(error))),
                    })
                });
            Ok(lines)
        };
        stream::once(lines).try_flatten()
    }

    /// Whether the engine sees a file of ours in a folder that it mounts: proved by a container that is created and never started.
    pub async fn sees(
        &self,
        folder: &Path,
        file: &str,
        content: &[u8],
    ) -> Result<bool, EngineError> {
        const DOING: &str = "looking into a folder of ours";
        // An archive of nothing: two empty blocks.
        let nothing = bollard::body_full(Bytes::from_static(&[0; 1024]));
        let name = format!("solverd-probe-{}", Uuid::now_v7());
        let options = CreateImageOptionsBuilder::default().from_src("-").repo(&name).build();
        let import = self.0.create_image(Some(options), Some(nothing), None);
        import.try_for_each(|_| ready(Ok(()))).await.map_err(during(DOING))?;
        let host = HostConfig {
            mounts: Some(vec![bind(folder, "/probe")]),
            network_mode: Some("none".to_owned()),
            ..HostConfig::default()
        };
        let container = ContainerCreateBody {
            image: Some(name.clone()),
            cmd: Some(vec!["never".to_owned()]),
            host_config: Some(host),
            ..ContainerCreateBody::default()
        };
        let options = CreateContainerOptionsBuilder::default().name(&name).build();
        let seen = async {
            self.0.create_container(Some(options), container).await?;
            let path = format!("/probe/{file}");
            let options = DownloadFromContainerOptionsBuilder::default().path(&path).build();
            let archive = self.0.download_from_container(&name, Some(options));
            archive
                .try_fold(Vec::new(), |bytes, more| ready(Ok([bytes, more.to_vec()].concat())))
                .await
        };
        let seen = seen.await;
        self.remove(&name).await?;
        self.0
            .remove_image(&name, None::<RemoveImageOptions>, None)
            .await
            .map_err(during(DOING))?;
        match seen {
            Ok(archive) => Ok(archive.windows(content.len()).any(|bytes| bytes == content)),
            // No such folder there, or no such file in it.
            Err(Error::DockerResponseServerError { status_code: 400 | 404, .. }) => Ok(false),
            Err(error) => Err(during(DOING)(error)),
        }
    }

    /// Looks an image up; never pulls.
    pub async fn image(&self, reference: &str) -> Result<Image, EngineError> {
        let image =
            self.0.inspect_image(reference).await.map_err(|error| match status(&error) {
                Some(404) => EngineError::NoImage(reference.to_owned()),
                _ => during("looking the image up")(error),
            })?;
        let config = image.config.unwrap_or_default();
        Ok(Image {
            id: image.id.unwrap_or_default(),
            digests: image.repo_digests.unwrap_or_default(),
            labels: config.labels.unwrap_or_default().into_iter().collect(),
            volumes: config.volumes.unwrap_or_default(),
        })
    }

    /// Where a container leaves traces. The engine would add up what it has written, at any cost; so we do, where we may.
    pub(crate) async fn traces(&self, id: &str) -> Result<Traces, EngineError> {
        const DOING: &str = "asking what the container has written";
        let container = self.0.inspect_container(id, None).await.map_err(during(DOING))?;
        let process = container.state.and_then(|state| state.pid).filter(|process| *process > 0);
        let folder = container
            .graph_driver
            .and_then(|driver| driver.data.get("UpperDir").map(PathBuf::from));
        if let Some(folder) = folder.filter(|folder| folder.read_dir().is_ok()) {
            return Ok(Traces { layer: Layer::Folder(folder), process });
        }
        let options = InspectContainerOptionsBuilder::default().size(true).build();
        let container = self.0.inspect_container(id, Some(options)).await.map_err(during(DOING))?;
        let bytes = container.size_rw.unwrap_or_default().try_into().unwrap_or_default();
        Ok(Traces { layer: Layer::Bytes(bytes), process })
    }

    /// Creates a container and answers with its id; doing it again changes nothing until it is started. It is never removed by the engine
    /// itself: with that, a late [`Self::wait`] would lose the exit code.
    pub async fn create(&self, spec: &ContainerSpec) -> Result<String, EngineError> {
        let options = CreateContainerOptionsBuilder::default().name(&spec.name).build();
        match self.0.create_container(Some(options), body(spec)).await {
            Ok(created) => Ok(created.id),
            Err(Error::DockerResponseServerError { status_code: 404, message })
                if message.contains("image") =>
            {
                Err(EngineError::NoImage(spec.image.clone()))
            }
            // By an attempt whose answer was lost.
            Err(Error::DockerResponseServerError { status_code: 409, message }) => {
                const DOING: &str = "creating the container";
                let found = self.0.inspect_container(&spec.name, None).await;
                let found = standing(found.map_err(during(DOING))?);
                if found.begun {
                    return Err(EngineError::Failed { doing: DOING, reason: message });
                }
                Ok(found.id)
            }
            Err(error) => Err(during("creating the container")(error)),
        }
    }

    /// Where a container stands, by its id or name. Waits for a start that is under way, of which [`Self::list`] would not know yet.
    pub async fn standing(&self, id: &str) -> Result<Standing, EngineError> {
        let container = self.0.inspect_container(id, None).await;
        container.map(standing).map_err(during("inspecting the container"))
    }

    /// Starts a container.
    pub async fn start(&self, id: &str) -> Result<(), EngineError> {
        self.0.start_container(id, None).await.map_err(during("starting the container"))
    }

    /// The log of a started container, from the first line or from where `lines` stands, at most its `last` lines. May `follow` while
    /// the container runs; before the start the engine would not follow, but end at once. What has no newline yet stays in `lines`.
    pub(crate) fn logs<'a>(
        &self,
        id: &str,
        lines: &'a mut Lines,
        last: Option<u64>,
        follow: bool,
    ) -> impl Stream<Item = Result<Piece, EngineError>> + Send + use<'a> {
        let since = i32::try_from(lines.resume()).unwrap_or_default();
        let last = last.map_or_else(|| "all".to_owned(), |lines| lines.to_string());
        let options = LogsOptionsBuilder::default().follow(follow).stdout(true).stderr(true);
        let options = options.timestamps(true).since(since).tail(&last).build();
        self.0.logs(id, Some(options)).filter_map(move |frame| {
            const DOING: &str = "reading the log";
            ready(match frame {
                Ok(LogOutput::StdErr { message }) => lines.push(Source::Stderr, &message).map(Ok),
                Ok(LogOutput::StdOut { message } | LogOutput::StdIn { message }) => {
                    lines.push(Source::Stdout, &message).map(Ok)
                }
                // No container of ours has a terminal: these are the engine's own words, header included, or what was left of a frame.
                Ok(LogOutput::Console { message }) => {
                    let words = message.strip_prefix(ENGINES_OWN).and_then(|rest| rest.get(4..));
                    let reason = printable(words.unwrap_or(b"it broke off within a frame"));
                    Some(Err(EngineError::Failed { doing: DOING, reason: shortened(reason) }))
                }
                Err(error) => Some(Err(during(DOING)(error))),
            })
        })
    }

    /// What a started container uses: once when first asked, then every second while it runs. An engine that cannot tell says nothing.
    pub(crate) fn samples(&self, id: &str) -> impl Stream<Item = Sample> + Send + use<> {
        let options = StatsOptionsBuilder::default().stream(true).build();
        self.0.stats(id, Some(options)).filter_map(|stats| {
            let sample = stats.ok().and_then(|stats| {
                let memory = stats.memory_stats.unwrap_or_default();
                let processes = stats.pids_stats.unwrap_or_default();
                Some(Sample {
                    cpu: Duration::from_nanos(stats.cpu_stats?.cpu_usage?.total_usage?),
                    memory_bytes: memory.max_usage.or(memory.usage),
                    processes: processes.current.zip(processes.limit),
                })
            });
            ready(sample)
        })
    }

    /// Waits until a container has ended; also right when it ended long ago.
    pub async fn wait(&self, id: &str) -> Result<Exit, EngineError> {
        const DOING: &str = "waiting for the container";
        let options = WaitContainerOptionsBuilder::default().condition("not-running").build();
        let code = match pin!(self.0.wait_container(id, Some(options))).next().await {
            // The error is bollard's way to say that the code is not 0.
            Some(
                Ok(ContainerWaitResponse { status_code: code, .. })
                | Err(Error::DockerContainerWaitError { code, .. }),
            ) => code,
            Some(Err(error)) => return Err(during(DOING)(error)),
            None => {
                return Err(EngineError::Away {
                    doing: DOING,
                    reason: "it closed the connection".to_owned(),
                });
            }
        };
        let container = self.0.inspect_container(id, None).await;
        let state =
            container.map_err(during("inspecting the container"))?.state.unwrap_or_default();
        let mut out_of_memory = state.oom_killed.unwrap_or(false);
        if code == KILLED && !out_of_memory {
            out_of_memory = self.was_out_of_memory(id, state.finished_at.as_deref()).await?;
            // Somebody who removes a container has it killed first.
            self.standing(id).await?;
        }
        let ran = (state.finished_at.as_deref().and_then(moment))
            .zip(state.started_at.as_deref().and_then(moment))
            .and_then(|(end, begin)| (end - begin).to_std().ok());
        Ok(Exit { code, out_of_memory, ran })
    }

    /// Whether the kernel killed something at the memory limit. A busy engine learns of that after the exit, and its
    /// inspection never says so: its events of this container are read until shortly after the end, by its own clock.
    async fn was_out_of_memory(
        &self,
        id: &str,
        finished: Option<&str>,
    ) -> Result<bool, EngineError> {
        let finished = finished.and_then(moment);
        let Some(until) = finished.map(|at| at + LATE) else { return Ok(false) };
        let until = format!("{}.{:09}", until.timestamp(), until.timestamp_subsec_nanos());
        let filters = HashMap::from([("container", vec![id]), ("event", vec!["oom"])]);
        let options =
            EventsOptionsBuilder::default().since("0").until(&until).filters(&filters).build();
        let event = pin!(self.0.events(Some(options))).next().await;
        event.transpose().map(|event| event.is_some()).map_err(during("reading its events"))
    }

    /// Asks a container to end (SIGTERM) and kills it after `grace`. Good as well when it has ended or is gone.
    pub async fn stop(&self, id: &str, grace: Duration) -> Result<(), EngineError> {
        let seconds = i32::try_from(grace.as_secs()).unwrap_or(i32::MAX);
        let options = StopContainerOptionsBuilder::default().t(seconds).build();
        unless_gone(self.0.stop_container(id, Some(options)).await, "stopping the container")
    }

    /// Removes a container with its volumes, killing it if it runs. Good as well when it is gone.
    pub async fn remove(&self, id: &str) -> Result<(), EngineError> {
        let removed = self.remove_once(id).await;
        if matches!(removed, Err(EngineError::Failed { .. }))
            && let Ok(Traces { layer: Layer::Folder(folder), .. }) = self.traces(id).await
        {
            // On its way down the engine keeps every folder open, and gives up when it may open no more.
            let emptied = tokio::task::spawn_blocking(move || remove(&folder)).await;
            tracing::debug!(container = id, ?emptied, "removed what the engine could not");
            return self.remove_once(id).await;
        }
        removed
    }

    async fn remove_once(&self, id: &str) -> Result<(), EngineError> {
        const DOING: &str = "removing the container";
        let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
        match self.0.remove_container(id, Some(options)).await {
            // By somebody else: it is not gone yet.
            Err(Error::DockerResponseServerError { status_code: 409, message: reason }) => {
                Err(EngineError::Away { doing: DOING, reason })
            }
            done => unless_gone(done, DOING),
        }
    }

    /// All containers, running or not, with a label: `key` or `key=value`.
    pub async fn list(&self, label: &str) -> Result<Vec<Found>, EngineError> {
        let filters = HashMap::from([("label", vec![label])]);
        let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        let found =
            self.0.list_containers(Some(options)).await.map_err(during("listing containers"))?;
        Ok(found
            .into_iter()
            .filter_map(|container| {
                let labels = container.labels.unwrap_or_default().into_iter().collect();
                Some(Found { id: container.id?, labels })
            })
            .collect())
    }
}

fn bind(folder: &Path, target: &str) -> Mount {
    Mount {
        typ: Some(MountType::BIND),
        source: Some(folder.to_string_lossy().into_owned()),
        target: Some(target.to_owned()),
        ..Mount::default()
    }
}

/// A volume whose content lies in a folder of ours: the engine fills it from the image, but does not keep it.
fn volume(folder: &Path, target: &str) -> Mount {
    let options = HashMap::from([
        ("type".to_owned(), "none".to_owned()),
        ("o".to_owned(), "bind".to_owned()),
        ("device".to_owned(), folder.to_string_lossy().into_owned()),
    ]);
    Mount {
        typ: Some(MountType::VOLUME),
        target: Some(target.to_owned()),
        volume_options: Some(MountVolumeOptions {
            driver_config: Some(MountVolumeOptionsDriverConfig {
                name: Some("local".to_owned()),
                options: Some(options),
            }),
            ..MountVolumeOptions::default()
        }),
        ..Mount::default()
    }
}

/// The engine's form of a container, with the hardening that every one gets.
fn body(spec: &ContainerSpec) -> ContainerCreateBody {
    let mounts = spec.mounts.iter().map(|(folder, target)| bind(folder, target));
    let volumes = spec.volumes.iter().map(|(folder, target)| volume(folder, target));
    let largest_file = i64::try_from(spec.largest_file).unwrap_or(i64::MAX);
    let isolated = !spec.network;
    let host = HostConfig {
        mounts: Some(mounts.chain(volumes).collect()),
        readonly_paths: Some(READ_ONLY.map(str::to_owned).to_vec()),
        ulimits: Some(vec![ResourcesUlimits {
            name: Some("fsize".to_owned()),
            soft: Some(largest_file),
            hard: Some(largest_file),
        }]),
        network_mode: isolated.then(|| "none".to_owned()),
        security_opt: Some(vec!["no-new-privileges".to_owned()]),
        cap_drop: Some(vec!["ALL".to_owned()]),
        cap_add: Some(CAPABILITIES.map(str::to_owned).to_vec()),
        pids_limit: Some(PIDS),
        memory: Some(spec.resources.memory_bytes),
        // The sum of memory and swap: equal means none.
        memory_swap: Some(spec.resources.memory_bytes),
        nano_cpus: Some(spec.resources.nano_cpus),
        device_requests: (!spec.gpus.is_empty()).then(|| vec![gpus(&spec.gpus)]),
        // Without an init the solver is process 1, and ignores SIGTERM unless it handles it.
        init: Some(true),
        // When the machine runs out of memory, a solver goes before the services beside it.
        oom_score_adj: Some(500),
        log_config: Some(HostConfigLogConfig {
            typ: Some("json-file".to_owned()),
            // Unlimited by default: a solver that only prints fills the disk at 80 MiB/s. It is never slowed down by whoever follows, who
            // loses what is thrown away: of the first file nothing, and at the end the last one is there.
            config: Some(HashMap::from([
                ("max-size".to_owned(), (LOG_FILE * spec.log_bytes.max(SMALLEST_LOG)).to_string()),
                ("max-file".to_owned(), "2".to_owned()),
            ])),
        }),
        ..HostConfig::default()
    };
    ContainerCreateBody {
        image: Some(spec.image.clone()),
        entrypoint: spec.entry_point.clone(),
        cmd: Some(spec.command.clone()),
        user: spec.user.clone(),
        env: Some(spec.env.iter().map(|(name, value)| format!("{name}={value}")).collect()),
        labels: Some(spec.labels.clone().into_iter().collect()),
        hostname: isolated.then(|| HOSTNAME.to_owned()),
        // Its own network namespace with nothing but a loopback interface, as with the mode `none` alone; but that has the engine start
        // another process of itself inside, which costs as much as the rest of the start.
        network_disabled: Some(isolated),
        host_config: Some(host),
        ..ContainerCreateBody::default()
    }
}

/// By index: of a mere number of them the engine would give every container the same.
fn gpus(indices: &[u32]) -> DeviceRequest {
    DeviceRequest {
        device_ids: Some(indices.iter().map(ToString::to_string).collect()),
        capabilities: Some(vec![vec!["gpu".to_owned()]]),
        ..DeviceRequest::default()
    }
}

/// The indices that [`gpus`] was given.
fn gpus_of(host: HostConfig) -> Vec<u32> {
    let requests = host.device_requests.unwrap_or_default().into_iter();
    let ids = requests.flat_map(|request| request.device_ids.unwrap_or_default());
    ids.filter_map(|id| id.parse().ok()).collect()
}

/// What the engine says while it is about to end, or its parts are.
const ENDING: [&str; 6] = [
    "shutting down",
    "transport is closing",
    "client connection is closing",
    "context canceled",
    "code = Unavailable",
    "containerd.sock",
];

fn is_ending(reason: &str) -> bool {
    ENDING.iter().any(|words| reason.contains(words))
}

fn during(doing: &'static str) -> impl Fn(Error) -> EngineError {
    move |error| {
        if let Error::DockerResponseServerError { status_code, message } = error {
            // It may name a path that a solver has made, of any length.
            let reason = shortened(message);
            return if status_code == 404 {
                EngineError::NoContainer(doing)
            } else if status_code >= 500 && is_ending(&reason) {
                EngineError::Away { doing, reason }
            } else {
                EngineError::Failed { doing, reason }
            };
        }
        let away = matches!(
            error,
            Error::HyperLegacyError { .. }
                | Error::HyperResponseError { .. }
                | Error::IOError { .. }
                | Error::RequestTimeoutError
                | Error::SocketNotFoundError(_)
        );
        let reason = chain(&error);
        if away {
            EngineError::Away { doing, reason }
        } else {
            EngineError::Failed { doing, reason }
        }
    }
}

/// A line about a pull. Of bytes that come in there is one now and then.
fn pulled(info: CreateImageInfo, shown: &mut Option<Instant>) -> Option<String> {
    let mut line = info.status?;
    if let Some(layer) = info.id {
        line = format!("{layer}: {line}");
    }
    if let Some(ProgressDetail { current: Some(current), total }) = info.progress_detail {
        if shown.is_some_and(|at| at.elapsed() < PULL_NEWS) {
            return None;
        }
        *shown = Some(Instant::now());
        let mib = |bytes: i64| format!("{} MiB", bytes >> 20);
        line = match total {
            Some(total) => format!("{line} {} of {}", mib(current), mib(total)),
            None => format!("{line} {}", mib(current)),
        };
    }
    Some(line)
}

/// An error with all its reasons.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let reason = error.to_string();
        if !text.contains(&reason) {
            text = format!("{text}: {reason}");
        }
        source = error.source();
    }
    text
}

fn standing(container: ContainerInspectResponse) -> Standing {
    let state = container.state.unwrap_or_default();
    let started_at = state.started_at.as_deref().and_then(moment).map(SystemTime::from);
    Standing {
        id: container.id.unwrap_or_default(),
        begun: state.status != Some(ContainerStateStatusEnum::CREATED),
        // Before its start the engine says the year 1.
        started_at: started_at.filter(|at| *at > SystemTime::UNIX_EPOCH),
        image: container.image.unwrap_or_default(),
        gpus: container.host_config.map(gpus_of).unwrap_or_default(),
    }
}

fn moment(text: &str) -> Option<DateTime<Utc>> {
    DateTime::parse_from_rfc3339(text).ok().map(DateTime::into)
}

/// The beginning and the end of a long text.
fn shortened(text: String) -> String {
    let length = text.chars().count();
    if length <= LONGEST_REASON {
        return text;
    }
    let half = LONGEST_REASON / 2;
    let (begin, end) = (text.chars().take(half), text.chars().skip(length - half));
    begin.chain(['…']).chain(end).collect()
}

fn status(error: &Error) -> Option<u16> {
    if let Error::DockerResponseServerError { status_code, .. } = error {
        Some(*status_code)
    } else {
        None
    }
}

fn unless_gone(result: Result<(), Error>, doing: &'static str) -> Result<(), EngineError> {
    match result {
        Err(error) if status(&error) != Some(404) => Err(during(doing)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::{
        io::{BufRead, BufReader, Write},
        os::unix::net::UnixListener,
        thread,
    };

    use super::*;

    /// An engine that answers what it is told to, with a status and a body, by the first line of the request.
    pub(crate) fn pretended(
        mut answer: impl FnMut(&str) -> (u16, Vec<u8>) + Send + 'static,
    ) -> Docker {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let path = path.to_str().unwrap();
        let client =
            bollard::Docker::connect_with_unix(path, 120, bollard::API_DEFAULT_VERSION).unwrap();
        thread::spawn(move || {
            let _folder = folder;
            for stream in listener.incoming() {
                let mut stream = BufReader::new(stream.unwrap());
                let mut head = String::new();
                while !head.ends_with("\r\n\r\n") && stream.read_line(&mut head).unwrap() > 0 {}
                let (status, body) = answer(head.lines().next().unwrap_or_default());
                let head = format!("HTTP/1.1 {status} x\r\nConnection: close\r\n\r\n");
                // Whoever asked may have gone.
                let _ = stream.get_mut().write_all(&[head.into_bytes(), body].concat());
            }
        });
        Docker(client)
    }

    /// A frame of a log.
    fn frame(kind: u8, text: &str) -> Vec<u8> {
        let length = u32::try_from(text.len()).unwrap().to_be_bytes();
        [&[kind, 0, 0, 0], &length[..], text.as_bytes()].concat()
    }

    #[tokio::test]
    async fn an_error_of_the_engine_is_no_line_of_the_solver() {
        let line = "2026-01-01T10:00:01.000000000Z one";
        let engine = pretended(move |_| {
            let error = frame(3, "Error grabbing logs: invalid character\n");
            (200, [frame(1, &format!("{line}\n")), error].concat())
        });
        let mut lines = Lines::default();
        let read: Vec<_> = engine.logs("x", &mut lines, None, true).collect().await;
        let [Ok(piece), Err(error)] = &read[..] else { panic!("{read:?}") };
        assert_eq!(piece.line.as_deref(), Some(line));
        assert_eq!(
            error.to_string(),
            "container engine, reading the log: Error grabbing logs: invalid character"
        );
        assert_eq!(lines.resume(), 1_767_261_601);
    }
}
