//! Collecting what the solver left in `/outputs`. The solver is not trusted: nothing outside the folder is ever opened.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::Path,
};

use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2},
    io::Errno,
};
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

use crate::{
    archive::{is_zip, pack},
    task::{Artifacts, FailureKind, Output, OutputPort, TaskError},
};

/// Name of the file with the values of all ports that are not files.
const fn values_name(integration_version: u64) -> &'static str {
    if integration_version == 0 { "output.json" } else { "outputs.json" }
}

/// Bytes of values that are read; they end up in a database row.
const LARGEST_VALUES: u64 = 16 * 1024 * 1024;

/// Values that are read: a short one takes many times its length of memory, an object as much as several.
const HEAVIEST_VALUES: usize = 1_000_000;
const OBJECT: usize = 8;

/// Names in a message that says what was there.
const LISTED: usize = 20;

/// Finds and stores every declared output, of `most` bytes all together: a file may have many that take no space on disk. Call it when the
/// container has ended. What has to be made of them lies in `scratch`.
pub(crate) async fn collect(
    folder: &Path,
    scratch: &Path,
    integration_version: u64,
    ports: &[OutputPort],
    most: u64,
    artifacts: &impl Artifacts,
) -> Result<BTreeMap<String, Output>, TaskError> {
    let name = values_name(integration_version);
    let values = if ports.iter().any(|port| port.path.is_none()) {
        values(folder, name).await?
    } else {
        Ok(Map::new())
    };
    let mut outputs = BTreeMap::new();
    let mut left = most;
    for port in ports {
        let output = match &port.path {
            Some(path) => {
                let (opened, size) = open(folder, path)
                    .map_err(|refusal| failed(port, &refusal.explain(folder, path)))?;
                left = left.checked_sub(size).ok_or_else(|| {
                    let others = most - left;
                    let message = format!("output `{}`: `{path}` has {size} bytes, the outputs before it {others}; the limit of a job is {most}", port.key);
                    TaskError::new(FailureKind::Disk, message).at(&port.key)
                })?;
                store(scratch, port, path, opened, size, artifacts).await?
            }
            None => Output::Value(value(folder, name, port, &values)?),
        };
        outputs.insert(port.key.clone(), output);
    }
    Ok(outputs)
}

async fn store(
    scratch: &Path,
    port: &OutputPort,
    path: &str,
    mut file: File,
    mut size: u64,
    artifacts: &impl Artifacts,
) -> Result<Output, TaskError> {
    let name = Path::new(path).file_name().map_or(path.into(), |name| name.to_string_lossy());
    let mut filename = name.into_owned();
    if port.zip && !is_zip(&file) {
        let (inner, scratch) = (filename.clone(), scratch.to_owned());
        // A thread does not end when nobody waits for it: it is told.
        let stop = CancellationToken::new();
        let _told = stop.clone().drop_guard();
        let packing = tokio::task::spawn_blocking(move || pack(file, &inner, &scratch, &stop));
        (file, size) = packing.await.map_err(io::Error::from).flatten().map_err(|error| {
            let message = format!("output `{}`: zipping `{path}`: {error}", port.key);
            TaskError::new(FailureKind::Machine, message).at(&port.key)
        })?;
        filename += ".zip";
    }
    let stored = artifacts.store(&port.key, &filename, tokio::fs::File::from_std(file), size).await;
    stored.map(Output::File).map_err(|error| {
        let message = format!("output `{}`: storing `{path}`: {error}", port.key);
        TaskError::new(FailureKind::Storage, message).at(&port.key)
    })
}

fn value(
    folder: &Path,
    name: &str,
    port: &OutputPort,
    values: &Result<Map<String, Value>, String>,
) -> Result<Value, TaskError> {
    let given = values.as_ref().ok().and_then(|values| values.get(&port.key));
    if let Some(value) = given.or(port.default.as_ref()) {
        return Ok(value.clone());
    }
    Err(failed(
        port,
        &match values {
            Err(reason) => format!("{reason}; found: {}", listing(folder)),
            Ok(values) => {
                let keys: Vec<_> =
                    values.keys().take(LISTED).map(|key| key.escape_debug().to_string()).collect();
                format!(
                    "/outputs/{name} has no such key; it has: {}",
                    or_nothing(&keys, values.len() > LISTED)
                )
            }
        },
    ))
}

/// The values the solver wrote, or why there are none: that matters only to a port without default.
async fn values(
    folder: &Path,
    name: &'static str,
) -> Result<Result<Map<String, Value>, String>, TaskError> {
    let folder = folder.to_owned();
    let reading = tokio::task::spawn_blocking(move || {
        let (file, size) =
            open(&folder, name).map_err(|refusal| refusal.reason("/outputs", name))?;
        if size > LARGEST_VALUES {
            return Err(format!("/outputs/{name} has {size} bytes, more than {LARGEST_VALUES}"));
        }
        let mut text = Vec::new();
        file.take(LARGEST_VALUES)
            .read_to_end(&mut text)
            .map_err(|error| format!("reading {name}: {error}"))?;
        let weight = weight(&text);
        if weight > HEAVIEST_VALUES {
            return Err(format!(
                "/outputs/{name} holds {weight} values, each object counted as {OBJECT}; at most {HEAVIEST_VALUES} are read"
            ));
        }
        serde_json::from_slice(&text)
            .map_err(|error| format!("/outputs/{name} is not a JSON object: {error}"))
    });
    reading
        .await
        .map_err(|error| TaskError::new(FailureKind::Machine, format!("reading {name}: {error}")))
}

/// How many values a JSON text holds, objects counted manifold.
fn weight(text: &[u8]) -> usize {
    let (mut in_string, mut escaped) = (false, false);
    let weigh = |byte: &u8| {
        let was_escaped = std::mem::take(&mut escaped);
        match byte {
            b'"' if !was_escaped => in_string = !in_string,
            b'\\' if in_string => escaped = !was_escaped,
            b',' | b'[' if !in_string => return 1,
            b'{' if !in_string => return OBJECT,
            _ => {}
        }
        0
    };
    text.iter().map(weigh).sum()
}

fn failed(port: &OutputPort, reason: &str) -> TaskError {
    TaskError::new(FailureKind::Output, format!("output `{}`: {reason}", port.key)).at(&port.key)
}

/// Opens a regular file below the folder, without following any link on the way.
pub(crate) fn open(folder: &Path, path: &str) -> Result<(File, u64), Refusal> {
    let folder =
        openat(CWD, folder, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    // Without NONBLOCK, a FIFO would be waited for.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let file = File::from(openat2(&folder, path, flags, Mode::empty(), resolve)?);
    let metadata = file.metadata().map_err(Refusal::Other)?;
    if !metadata.is_file() {
        return Err(Refusal::NotRegular);
    }
    if metadata.nlink() > 1 {
        return Err(Refusal::Linked(metadata.nlink()));
    }
    Ok((file, metadata.len()))
}

/// Why a file is not taken.
#[derive(Debug)]
pub(crate) enum Refusal {
    Missing,
    Link,
    Outside,
    NotRegular,
    Linked(u64),
    Unreadable,
    Other(io::Error),
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::NOENT | Errno::NOTDIR => Self::Missing,
            Errno::LOOP => Self::Link,
            Errno::XDEV => Self::Outside,
            Errno::NXIO | Errno::NODEV => Self::NotRegular,
            Errno::ACCESS | Errno::PERM => Self::Unreadable,
            other => Self::Other(other.into()),
        }
    }
}

impl Refusal {
    /// A sentence with the file's path as the solver knows it.
    pub(crate) fn reason(&self, folder: &str, path: &str) -> String {
        match self {
            Self::Missing => format!("could not locate `{path}` in {folder}"),
            Self::Link => {
                format!("`{path}` is a symbolic link or lies behind one; these are not followed")
            }
            Self::Outside => format!("`{path}` is not a path inside {folder}"),
            Self::NotRegular => format!("`{path}` in {folder} is not a regular file"),
            Self::Linked(count) => {
                format!("`{path}` in {folder} has {count} hard links; only a copy is taken")
            }
            Self::Unreadable => format!(
                "`{path}` in {folder} belongs to a user whose files this service may not read: \
                 the solver must adopt the owner of /inputs, or make it readable for everyone"
            ),
            Self::Other(error) => format!("opening `{path}` in {folder}: {error}"),
        }
    }

    fn explain(&self, folder: &Path, path: &str) -> String {
        let reason = self.reason("/outputs", path);
        if matches!(self, Self::Missing) {
            format!("{reason}; found: {}", listing(folder))
        } else {
            reason
        }
    }
}

/// Some of the names in the folder; folders as `name/…`.
fn listing(folder: &Path) -> String {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) => return format!("nothing readable ({error})"),
    };
    let mut names: Vec<_> = entries
        .flatten()
        .take(LISTED + 1)
        .map(|entry| {
            let below = if entry.file_type().is_ok_and(|kind| kind.is_dir()) { "/…" } else { "" };
            format!("{}{below}", entry.file_name().to_string_lossy().escape_debug())
        })
        .collect();
    let more = names.len() > LISTED;
    names.truncate(LISTED);
    names.sort();
    or_nothing(&names, more)
}

fn or_nothing(names: &[String], more: bool) -> String {
    match (names, more) {
        ([], _) => "nothing".to_owned(),
        (names, true) => format!("{} and more", names.join(", ")),
        (names, false) => names.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use rustix::fs::{FileType, mknodat};
    use serde_json::json;
    use tempfile::TempDir;
    use tokio::io::{AsyncRead, AsyncReadExt};
    use uuid::Uuid;

    use super::*;
    use crate::task::{ArtifactError, InputFile, StoredFile};

    /// Bytes of all outputs.
    const MOST: u64 = 1 << 20;

    /// Stores nothing; the "checksum" is the content.
    struct Echo;

    impl Artifacts for Echo {
        async fn open(
            &self,
            _: &InputFile,
        ) -> Result<impl AsyncRead + Send + Unpin, ArtifactError> {
            Err::<tokio::io::Empty, _>(ArtifactError("not here".to_owned()))
        }

        async fn store(
            &self,
            _: &str,
            filename: &str,
            mut content: tokio::fs::File,
            size: u64,
        ) -> Result<StoredFile, ArtifactError> {
            let mut sha256 = String::new();
            content
                .read_to_string(&mut sha256)
                .await
                .map_err(|error| ArtifactError(error.to_string()))?;
            let (file_id, e_tag) = (Uuid::nil(), String::new());
            Ok(StoredFile { file_id, filename: filename.to_owned(), sha256, size, e_tag })
        }
    }

    fn port(path: Option<&str>, default: Option<Value>) -> OutputPort {
        OutputPort {
            key: "output_1".to_owned(),
            path: path.map(str::to_owned),
            default,
            zip: false,
        }
    }

    async fn one(folder: &TempDir, port: OutputPort) -> Result<Output, String> {
        match collect(folder.path(), folder.path(), 1, &[port], MOST, &Echo).await {
            Ok(mut outputs) => Ok(outputs.remove("output_1").unwrap()),
            Err(error) => {
                assert_eq!(
                    (error.kind, error.port.as_deref()),
                    (FailureKind::Output, Some("output_1"))
                );
                Err(error.message)
            }
        }
    }

    async fn refusal(folder: &TempDir, path: &str) -> String {
        one(folder, port(Some(path), None)).await.unwrap_err()
    }

    #[tokio::test]
    async fn a_file_is_stored_under_its_last_name() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("deep")).unwrap();
        fs::write(folder.path().join("deep/result.txt"), "seven").unwrap();
        let Ok(Output::File(stored)) = one(&folder, port(Some("deep/result.txt"), None)).await
        else {
            panic!("no file")
        };
        assert_eq!(
            (stored.filename.as_str(), stored.sha256.as_str(), stored.size),
            ("result.txt", "seven", 5)
        );
    }

    #[tokio::test]
    async fn a_missing_file_says_what_was_there() {
        let folder = tempfile::tempdir().unwrap();
        let message = refusal(&folder, "single_number.txt").await;
        assert_eq!(
            message,
            "output `output_1`: could not locate `single_number.txt` in /outputs; found: nothing"
        );
        fs::create_dir(folder.path().join("b")).unwrap();
        fs::write(folder.path().join("a\n.txt"), "").unwrap();
        let message = refusal(&folder, "b/single_number.txt").await;
        assert!(
            message.ends_with(
                "could not locate `b/single_number.txt` in /outputs; found: a\\n.txt, b/…"
            ),
            "{message}"
        );
        for number in 0..100 {
            fs::write(folder.path().join(number.to_string()), "").unwrap();
        }
        let message = refusal(&folder, "x").await;
        assert!(message.ends_with(" and more") && message.len() < 300, "{message}");
    }

    #[tokio::test]
    async fn nothing_but_a_regular_file_inside_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        symlink("/etc/shadow", at("link")).unwrap();
        symlink("/etc", at("linked")).unwrap();
        symlink("plain", at("near")).unwrap();
        fs::create_dir(at("folder")).unwrap();
        fs::write(at("plain"), "").unwrap();
        fs::hard_link(at("plain"), at("hard")).unwrap();
        mknodat(CWD, at("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        for (path, reason) in [
            ("link", "is a symbolic link"),
            ("linked/shadow", "is a symbolic link or lies behind one"),
            ("near", "is a symbolic link"),
            ("folder", "is not a regular file"),
            ("hard", "has 2 hard links"),
            ("fifo", "is not a regular file"),
            ("socket", "is not a regular file"),
            ("../x", "is not a path inside"),
            ("/etc/shadow", "is not a path inside"),
            ("plain/x", "could not locate"),
        ] {
            let message = refusal(&folder, path).await;
            assert!(message.contains(reason), "{path}: {message}");
        }
    }

    #[tokio::test]
    async fn bytes_that_take_no_space_on_disk_count() {
        let folder = tempfile::tempdir().unwrap();
        for (name, size) in [("a", 1), ("b", MOST)] {
            fs::File::create(folder.path().join(name)).unwrap().set_len(size).unwrap();
        }
        let one =
            |key: &str, path: &str| OutputPort { key: key.to_owned(), ..port(Some(path), None) };
        let ports = [one("output_1", "a"), one("output_2", "b")];
        let both = collect(folder.path(), folder.path(), 1, &ports, MOST, &Echo).await;
        let error = both.unwrap_err();
        assert_eq!((error.kind, error.port.as_deref()), (FailureKind::Disk, Some("output_2")));
        assert_eq!(
            error.message,
            "output `output_2`: `b` has 1048576 bytes, the outputs before it 1; the limit of a job is 1048576"
        );
    }

    #[tokio::test]
    async fn values_come_from_outputs_json_or_the_default() {
        let folder = tempfile::tempdir().unwrap();
        let message = one(&folder, port(None, None)).await.unwrap_err();
        assert_eq!(
            message,
            "output `output_1`: could not locate `outputs.json` in /outputs; found: nothing"
        );
        assert_eq!(one(&folder, port(None, Some(json!(3)))).await, Ok(Output::Value(json!(3))));

        let values = folder.path().join("outputs.json");
        fs::write(&values, r#"{"output_1": null, "other": 1}"#).unwrap();
        assert_eq!(one(&folder, port(None, Some(json!(3)))).await, Ok(Output::Value(Value::Null)));
        fs::write(&values, r#"{"output_2": 1}"#).unwrap();
        let message = one(&folder, port(None, None)).await.unwrap_err();
        assert!(
            message.ends_with("/outputs/outputs.json has no such key; it has: output_2"),
            "{message}"
        );
    }

    #[tokio::test]
    async fn outputs_json_that_is_no_object_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let values = folder.path().join("outputs.json");
        for text in [
            r#"{"output_1": "#.to_owned(),
            "[1]".to_owned(),
            "[".repeat(100_000),
            "\u{0}".to_owned(),
        ] {
            fs::write(&values, text).unwrap();
            let message = one(&folder, port(None, None)).await.unwrap_err();
            assert!(message.contains("is not a JSON object") && message.len() < 300, "{message}");
        }
        fs::File::create(&values).unwrap().set_len(1 << 30).unwrap();
        let message = one(&folder, port(None, None)).await.unwrap_err();
        assert!(message.contains("has 1073741824 bytes, more than 16777216"), "{message}");
    }
}
