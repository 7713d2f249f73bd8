//! Staging: `/inputs/inputs.json` and the input files. Everything is written before the container starts.

use std::{
    collections::BTreeMap,
    io,
    path::{Component, Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use sha2::{Digest, Sha256};
use tokio::{
    fs::{self, File},
    io::{AsyncReadExt, AsyncWriteExt},
    task::spawn_blocking,
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use crate::{
    archive::{Problem, unpack},
    folders::give,
    task::{Artifacts, FailureKind, InputFile, Task, TaskError},
};

/// Name of the file with the values of all ports that are not files.
fn values_name(task: &Task) -> &'static str {
    if task.integration_version == 0 { "input.json" } else { "inputs.json" }
}

/// Files fetched at a time.
const PARALLEL: usize = 8;

/// Before a file is fetched again whose reading broke off. How long a store that is away is waited for is for [`Artifacts::open`] to say.
const PAUSES: [Duration; 4] = [
    Duration::from_millis(200),
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(20),
];

/// Bytes read at a time.
const CHUNK: usize = 256 * 1024;

/// Writes everything a task needs into its folder of inputs. Archives that are to be unpacked are kept in `scratch` until then.
pub(crate) async fn stage(
    folder: &Path,
    scratch: &Path,
    task: &Task,
    artifacts: &impl Artifacts,
) -> Result<(), TaskError> {
    check_paths(task)?;
    prepare(folder, task).await.map_err(machine)?;
    let place = |(number, file): (usize, &InputFile)| {
        if file.unzip { scratch.join(number.to_string()) } else { folder.join(&file.path) }
    };
    let places: Vec<PathBuf> = task.files.iter().enumerate().map(place).collect();
    // Collected first: a closure that lived across an await would keep the whole future from being Send.
    let fetches: Vec<_> =
        task.files.iter().zip(&places).map(|(file, path)| fetch(path, file, artifacts)).collect();
    stream::iter(fetches).buffer_unordered(PARALLEL).try_collect::<()>().await?;
    for (file, archive) in task.files.iter().zip(places).filter(|(file, _)| file.unzip) {
        expand(folder, file, archive, task).await?;
    }
    Ok(())
}

/// Every path must stay inside the folder and be the only one there.
fn check_paths(task: &Task) -> Result<(), TaskError> {
    let files = &task.files;
    let mut ports =
        BTreeMap::from([(Path::new(values_name(task)), "the values of the other inputs")]);
    for file in files {
        let path = Path::new(&file.path);
        let inside = path.components().all(|part| matches!(part, Component::Normal(_)));
        if file.path.is_empty() || file.path.ends_with('/') || file.path.contains('\0') || !inside {
            let message = format!(
                "input `{}`: `{}` is not a path inside /inputs",
                file.port,
                file.path.escape_debug()
            );
            return Err(TaskError::new(FailureKind::Input, message).at(&file.port));
        }
        if !file.unzip
            && let Some(other) = ports.insert(path, &file.port)
        {
            return Err(collision(file, &file.path, other));
        }
    }
    // Paths are ordered by their components: what lies below a path comes right behind it.
    let mut paths = ports.keys().peekable();
    while let (Some(path), Some(next)) = (paths.next(), paths.peek()) {
        if next.starts_with(path)
            && let Some(file) = files.iter().find(|file| Path::new(&file.path) == **next)
        {
            return Err(collision(file, &path.to_string_lossy(), ports[path]));
        }
    }
    Ok(())
}

fn collision(file: &InputFile, path: &str, other: &str) -> TaskError {
    let message = format!(
        "inputs `{other}` and `{}` would both be written to /inputs/{path}; upload one of them under another name",
        file.port
    );
    TaskError::new(FailureKind::Input, message).at(&file.port)
}

async fn prepare(folder: &Path, task: &Task) -> io::Result<()> {
    let values = folder.join(values_name(task));
    fs::write(&values, serde_json::to_vec(&task.values)?).await?;
    give(&values)?;
    for file in task.files.iter().filter(|file| !file.unzip) {
        let Some(parent) = Path::new(&file.path).parent() else { continue };
        let mut below = folder.to_owned();
        for part in parent {
            below.push(part);
            match fs::create_dir(&below).await {
                Ok(()) => give(&below)?,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

/// Fetches a file, from its beginning again when reading it breaks off.
async fn fetch(path: &Path, file: &InputFile, artifacts: &impl Artifacts) -> Result<(), TaskError> {
    let mut pauses = PAUSES.into_iter();
    loop {
        match copy(path, file, artifacts).await? {
            Ok(()) => return Ok(()),
            Err(error) => {
                let Some(pause) = pauses.next() else { return Err(failed(file, &error)) };
                tracing::warn!(port = file.port, %error, "an input is fetched again");
                sleep(pause).await;
            }
        }
        fs::remove_file(path).await.map_err(machine)?;
    }
}

/// The inner error is that of reading.
async fn copy(
    path: &Path,
    file: &InputFile,
    artifacts: &impl Artifacts,
) -> Result<io::Result<()>, TaskError> {
    let failed = |reason: &dyn std::fmt::Display| failed(file, reason);
    let mut source = artifacts.open(file).await.map_err(|error| failed(&error))?;
    let mut target = File::create_new(path).await.map_err(machine)?;
    let mut digest = file.sha256.as_ref().map(|_| Sha256::new());
    let mut chunk = vec![0; CHUNK];
    loop {
        let length = match source.read(&mut chunk).await {
            Ok(length) => length,
            Err(error) => return Ok(Err(error)),
        };
        if length == 0 {
            break;
        }
        if let Some(digest) = &mut digest {
            digest.update(&chunk[..length]);
        }
        target.write_all(&chunk[..length]).await.map_err(machine)?;
    }
    target.flush().await.map_err(machine)?;
    give(path).map_err(machine)?;
    if let (Some(digest), Some(declared)) = (digest, &file.sha256) {
        let found = format!("{:x}", Bytes::copy_from_slice(&digest.finalize()));
        if !found.eq_ignore_ascii_case(declared) {
            return Err(failed(&format_args!("its SHA-256 is {found}, declared was {declared}")));
        }
    }
    Ok(Ok(()))
}

/// Unpacks an archive, and removes it.
async fn expand(
    folder: &Path,
    file: &InputFile,
    archive: PathBuf,
    task: &Task,
) -> Result<(), TaskError> {
    // A thread does not end when nobody waits for it: it is told.
    let stop = CancellationToken::new();
    let _told = stop.clone().drop_guard();
    let (path, target, limits) = (archive.clone(), folder.to_owned(), task.limits);
    let unpacking = spawn_blocking(move || unpack(&path, &target, limits, &stop));
    match unpacking.await.map_err(|error| machine(error.into()))? {
        Ok(()) => {}
        Err(Problem::Refused(reason)) => {
            return Err(failed(file, &format_args!("the archive {reason}")));
        }
        Err(Problem::Taken(path)) => {
            let other = task.files.iter().find(|other| Path::new(&other.path) == path);
            let path = path.to_string_lossy();
            return Err(match other.filter(|other| !other.unzip) {
                Some(other) => collision(file, &path, &other.port),
                None if path == values_name(task) => {
                    collision(file, &path, "the values of the other inputs")
                }
                None => failed(
                    file,
                    &format_args!(
                        "the archive holds `{path}`, which is there already: twice in it, or in another archive"
                    ),
                ),
            });
        }
        Err(Problem::Machine(error)) => return Err(machine(error)),
        Err(Problem::Cancelled) => {
            return Err(failed(file, &"unpacking was broken off"));
        }
    }
    fs::remove_file(&archive).await.map_err(machine)
}

fn failed(file: &InputFile, reason: &dyn std::fmt::Display) -> TaskError {
    let message = format!("input `{}` ({}): {reason}", file.port, file.path);
    TaskError::new(FailureKind::Input, message).at(&file.port)
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn machine(error: io::Error) -> TaskError {
    TaskError::new(FailureKind::Machine, format!("writing the inputs: {error}"))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::{collections::BTreeMap, sync::Mutex};

    use serde_json::json;
    use tokio::{io::AsyncRead, sync::Barrier};
    use tokio_util::io::StreamReader;
    use uuid::Uuid;

    use super::*;
    use crate::task::{ArtifactError, Limits, Resources, StoredFile};

    /// Every file holds its own path.
    #[derive(Default)]
    struct Paths {
        /// None is given out before all are asked for.
        together: Option<Barrier>,
        /// The first so many break off in the middle.
        breaks: Mutex<usize>,
    }

    impl Artifacts for Paths {
        async fn open(
            &self,
            file: &InputFile,
        ) -> Result<impl AsyncRead + Send + Unpin, ArtifactError> {
            if let Some(barrier) = &self.together {
                barrier.wait().await;
            }
            if file.path == "gone.txt" {
                return Err(ArtifactError("it was deleted".to_owned()));
            }
            let (half, rest) = file.path.split_at(file.path.len() / 2);
            let bytes = |text: &str| Ok(Bytes::copy_from_slice(text.as_bytes()));
            let mut left = self.breaks.lock().unwrap();
            let rest = if *left == 0 {
                bytes(rest)
            } else {
                *left -= 1;
                Err(io::Error::other("the connection was closed"))
            };
            Ok(StreamReader::new(stream::iter([bytes(half), rest])))
        }

        async fn store(
            &self,
            _: &str,
            _: &str,
            _: File,
            _: u64,
        ) -> Result<StoredFile, ArtifactError> {
            Err(ArtifactError("not here".to_owned()))
        }
    }

    pub(crate) fn task(paths: &[&str]) -> Task {
        let file = |(number, path): (usize, &&str)| InputFile {
            port: format!("input_{}", number + 1),
            file_id: Uuid::nil(),
            path: (*path).to_owned(),
            sha256: None,
            unzip: false,
        };
        Task {
            job_id: Uuid::nil(),
            image: String::new(),
            image_id: None,
            image_digest: None,
            command: Vec::new(),
            env: BTreeMap::new(),
            resources: Resources { nano_cpus: 0, memory_bytes: 0 },
            limits: Limits::default(),
            gpus: Vec::new(),
            mpi: false,
            network: false,
            labels: BTreeMap::new(),
            progress_regexp: None,
            integration_version: 1,
            values: json!({"b": "false", "a": null}).as_object().unwrap().clone(),
            files: paths.iter().enumerate().map(file).collect(),
            outputs: Vec::new(),
        }
    }

    async fn staged(task: &Task) -> Result<tempfile::TempDir, TaskError> {
        let folder = tempfile::tempdir().unwrap();
        let scratch = tempfile::tempdir().unwrap();
        stage(folder.path(), scratch.path(), task, &Paths::default()).await.map(|()| folder)
    }

    #[tokio::test]
    async fn values_and_files_are_written() {
        let folder =
            staged(&task(&["one.txt", "deep/down/two.txt", "deep/three.txt"])).await.unwrap();
        for path in ["one.txt", "deep/down/two.txt", "deep/three.txt"] {
            assert_eq!(std::fs::read_to_string(folder.path().join(path)).unwrap(), path);
        }
        let values = std::fs::read_to_string(folder.path().join("inputs.json")).unwrap();
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&values).unwrap(),
            json!({"b": "false", "a": null})
        );
    }

    #[tokio::test]
    async fn files_are_fetched_at_the_same_time() {
        let folder = tempfile::tempdir().unwrap();
        let artifacts = Paths { together: Some(Barrier::new(3)), ..Paths::default() };
        let task = task(&["a", "b", "c"]);
        stage(folder.path(), folder.path(), &task, &artifacts).await.unwrap();
    }

    #[tokio::test]
    async fn what_breaks_off_is_fetched_again_from_its_beginning() {
        let folder = tempfile::tempdir().unwrap();
        let (task, broken) =
            (task(&["some.txt"]), Paths { breaks: Mutex::new(1), ..Paths::default() });
        stage(folder.path(), folder.path(), &task, &broken).await.unwrap();
        assert_eq!(*broken.breaks.lock().unwrap(), 0);
        let text = std::fs::read_to_string(folder.path().join("some.txt")).unwrap();
        assert_eq!(text, "some.txt");
    }

    #[tokio::test]
    async fn a_path_outside_is_refused() {
        for path in ["", "/etc/passwd", "../x", "a/../../x", "a/..", ".", "./a", "a/", "a\0b"] {
            let error = staged(&task(&[path])).await.unwrap_err();
            assert_eq!(
                (error.kind, error.port.as_deref()),
                (FailureKind::Input, Some("input_1")),
                "{path:?}"
            );
            assert!(error.message.contains("is not a path inside /inputs"), "{}", error.message);
        }
    }

    #[tokio::test]
    async fn two_inputs_with_one_name_collide_loudly() {
        for paths in
            [["x.txt", "x.txt"], ["x.txt", "x.txt/y"], ["x.txt/y", "x.txt"], ["a//b", "a/b"]]
        {
            let error = staged(&task(&paths)).await.unwrap_err();
            assert_eq!(error.kind, FailureKind::Input, "{paths:?}");
            for port in ["`input_1`", "`input_2`"] {
                assert!(error.message.contains(port), "{}", error.message);
            }
        }
        let error = staged(&task(&["inputs.json"])).await.unwrap_err();
        assert!(error.message.contains("the values of the other inputs"), "{}", error.message);
    }

    #[tokio::test]
    async fn a_declared_checksum_is_checked() {
        let mut task = task(&["one.txt"]);
        task.files[0].sha256 =
            Some(format!("{:x}", Bytes::copy_from_slice(&Sha256::digest("one.txt"))));
        staged(&task).await.unwrap();
        task.files[0].sha256 = Some("00".repeat(32));
        let error = staged(&task).await.unwrap_err();
        assert_eq!((error.kind, error.port.as_deref()), (FailureKind::Input, Some("input_1")));
        assert!(error.message.contains("declared was 0000"), "{}", error.message);
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_fetched_says_which_and_why() {
        let error = staged(&task(&["gone.txt"])).await.unwrap_err();
        assert_eq!(error.message, "input `input_1` (gone.txt): it was deleted");
    }
}
