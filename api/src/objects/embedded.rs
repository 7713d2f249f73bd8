//! The S3 endpoint that the service runs for itself when it is given no other: s3s-fs on a folder.
//!
//! s3s-fs calls itself a sample, so `store` closes the gaps that would lose data or time: multipart
//! uploads survive a crash while they are completed, writes survive a power cut, reads come in
//! large chunks, and keys stay in their bucket. It remains the store of one process on one host.

mod store;

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{S3Result, s3_error};
use tempfile::NamedTempFile;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::store::Store;
use super::Secret;
use crate::domain::user::hex;

/// How long a transfer may go on after the service was asked to stop.
const GRACE: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{} is in use by another process: only one may serve it", root.display())]
    InUse { root: PathBuf },
    #[error("failed to {doing} {}", path.display())]
    Files { doing: &'static str, path: PathBuf, source: io::Error },
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Files { doing, path: path.to_owned(), source }
}

/// The one key pair that the endpoint accepts.
#[derive(Debug, Clone)]
pub struct Credentials {
    pub access_key_id: String,
    pub secret_access_key: Secret,
}

/// The key pair kept in `data_dir`, made on first use. Only the owner of the process can read the
/// file.
pub fn credentials(data_dir: &Path) -> Result<Credentials, Error> {
    let path = data_dir.join("s3-credentials");
    if !path.try_exists().map_err(failed("read", &path))? {
        let mut random = [0; 10 + 32];
        getrandom::fill(&mut random)
            .map_err(io::Error::from)
            .map_err(failed("make random keys for", &path))?;
        let (id, secret) = random.split_at(10);
        create(data_dir, &path, &format!("{}:{}\n", hex(id), hex(secret)))
            .map_err(failed("write", &path))?;
    }
    let pair = std::fs::read_to_string(&path).map_err(failed("read", &path))?;
    let (id, secret) = pair
        .trim()
        .split_once(':')
        .filter(|(id, secret)| !id.is_empty() && !secret.is_empty())
        .ok_or_else(|| {
            failed("understand", &path)(io::Error::other(
                "it should hold ID:SECRET; delete it to have new keys made",
            ))
        })?;
    Ok(Credentials {
        access_key_id: id.to_owned(),
        secret_access_key: Secret::from(secret.to_owned()),
    })
}

/// All or nothing, and never over a file that another process made meanwhile.
fn create(folder: &Path, path: &Path, content: &str) -> io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let mut file = NamedTempFile::new_in(folder)?; // mode 0600
    file.write_all(content.as_bytes())?;
    file.as_file().sync_all()?;
    match file.persist_noclobber(path) {
        Err(lost) if lost.error.kind() != io::ErrorKind::AlreadyExists => Err(lost.error),
        _ => File::open(folder)?.sync_all(),
    }
}

/// An endpoint that is ready to serve. Owns its folder until it and all its connections are gone.
#[derive(Debug)]
pub struct Embedded {
    service: S3Service,
}

impl Embedded {
    /// Takes hold of `root`, a folder that is made when missing and that nothing else should write
    /// to.
    ///
    /// # Errors
    /// [`Error::InUse`] when another process (or this one) serves the same folder.
    pub fn open(root: &Path, credentials: &Credentials) -> Result<Self, Error> {
        let mut builder = S3ServiceBuilder::new(Store::open(root)?);
        let Credentials { access_key_id, secret_access_key } = credentials;
        builder.set_auth(SimpleAuth::from_single(&**access_key_id, secret_access_key.expose()));
        builder.set_access(OwnKeys);
        Ok(Self { service: builder.build() })
    }

    /// Serves until `shutdown`, then lets running transfers go on for up to ten seconds.
    pub async fn run(self, listener: TcpListener, shutdown: CancellationToken) {
        let connections = TaskTracker::new();
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    connections.spawn(serve(stream, self.service.clone(), shutdown.clone()));
                }
                Err(error) => {
                    // Most likely out of file descriptors, which others have to give back first.
                    tracing::warn!(%error, "the embedded S3 endpoint cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        drop(listener);
        connections.close();
        connections.wait().await;
    }
}

async fn serve(stream: TcpStream, service: S3Service, shutdown: CancellationToken) {
    // Without it small answers wait for acknowledgements; an error here shows up again below.
    let _ = stream.set_nodelay(true);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(GRACE, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, "a connection to the embedded S3 endpoint broke");
    }
}

/// Signed requests only, and only to keys that are one path below the bucket: s3s-fs resolves `..`
/// and `//`.
struct OwnKeys;

#[async_trait::async_trait]
impl S3Access for OwnKeys {
    async fn check(&self, context: &mut S3AccessContext<'_>) -> S3Result<()> {
        if context.credentials().is_none() {
            return Err(s3_error!(AccessDenied, "Signature is required"));
        }
        let key = context.s3_path().get_object_key().unwrap_or("key");
        if key.split('/').any(|segment| matches!(segment, "" | "." | "..")) {
            return Err(s3_error!(
                InvalidArgument,
                "Keys are paths without empty, . and .. segments"
            ));
        }
        Ok(())
    }
}
