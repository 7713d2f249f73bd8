//! `solverd-runner TASK.json --files DIR --out DIR`: runs one task by hand, without the service.
//!
//! Input files are taken from `--files` by their path below `/inputs`; outputs go to `--out`, one folder per port.
//! Events are printed as JSON, one per line, then the outcome. Ctrl-C stops the solver.

use std::{
    error::Error,
    io::Write,
    path::{Path, PathBuf, absolute},
    process::ExitCode,
};

use bytes::Bytes;
use serde::Serialize;
use sha2::{Digest, Sha256};
use solverd_runner::{
    clean_up,
    engine::Docker,
    run,
    task::{ArtifactError, Artifacts, InputFile, Outcome, StoredFile, Task},
};
use tokio::{
    fs::{self, File},
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

const USAGE: &str = "usage: solverd-runner TASK.json --files DIR --out DIR";

struct Folder {
    files: PathBuf,
    out: PathBuf,
}

impl Artifacts for Folder {
    async fn open(&self, file: &InputFile) -> Result<impl AsyncRead + Send + Unpin, ArtifactError> {
        let path = self.files.join(&file.path);
        File::open(&path)
            .await
            .map_err(|error| ArtifactError(format!("{}: {error}", path.display())))
    }

    async fn store(
        &self,
        port: &str,
        filename: &str,
        content: File,
        size: u64,
    ) -> Result<StoredFile, ArtifactError> {
        let folder = self.out.join(port);
        let path = folder.join(filename);
        let copy = async {
            fs::create_dir_all(&folder).await?;
            let (mut source, mut target) = (content.take(size), File::create(&path).await?);
            let (mut digest, mut chunk, mut copied) = (Sha256::new(), vec![0; 1 << 18], 0);
            loop {
                let length = source.read(&mut chunk).await?;
                if length == 0 {
                    break;
                }
                digest.update(&chunk[..length]);
                target.write_all(&chunk[..length]).await?;
                copied += length as u64;
            }
            target.flush().await?;
            if copied == size {
                Ok(format!("{:x}", Bytes::copy_from_slice(&digest.finalize())))
            } else {
                Err(std::io::ErrorKind::UnexpectedEof.into())
            }
        };
        let sha256: String = copy.await.map_err(|error: std::io::Error| {
            ArtifactError(format!("{}: {error}", path.display()))
        })?;
        Ok(StoredFile {
            file_id: Uuid::now_v7(),
            filename: filename.to_owned(),
            e_tag: sha256.clone(),
            sha256,
            size,
        })
    }
}

fn arguments() -> Option<(PathBuf, Folder)> {
    let (mut task, mut files, mut out) = (None, None, None);
    let mut arguments = std::env::args_os().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.to_str() {
            Some("--files") => files = Some(arguments.next()?),
            Some("--out") => out = Some(arguments.next()?),
            _ => task = Some(argument),
        }
    }
    Some((task?.into(), Folder { files: files?.into(), out: out?.into() }))
}

fn print(value: &impl Serialize) -> Result<(), Box<dyn Error>> {
    let mut stdout = std::io::stdout().lock();
    serde_json::to_writer(&mut stdout, value)?;
    Ok(writeln!(stdout)?)
}

async fn one_task(path: &Path, folder: &Folder) -> Result<Outcome, Box<dyn Error>> {
    let task: Task = serde_json::from_slice(&fs::read(path).await?)?;
    let (engine, work, stop) =
        (Docker::connect()?, absolute(&folder.out)?.join("work"), CancellationToken::new());
    let (sender, mut events) = mpsc::channel(256);
    let running = async {
        let outcome = run(&engine, &work, &task, folder, &sender, &stop, None).await;
        drop(sender);
        clean_up(&engine, &work, task.job_id).await?;
        Ok(outcome)
    };
    let printing = async {
        while let Some(event) = events.recv().await {
            print(&event)?;
        }
        Ok::<_, Box<dyn Error>>(())
    };
    let interrupt = async {
        if tokio::signal::ctrl_c().await.is_ok() {
            stop.cancel();
        }
        std::future::pending().await
    };
    tokio::select! {
        (outcome, printed) = async { tokio::join!(running, printing) } => printed.and(outcome),
        never = interrupt => never,
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let Some((task, folder)) = arguments() else {
        writeln!(std::io::stderr(), "{USAGE}").ok();
        return ExitCode::FAILURE;
    };
    let result = match one_task(&task, &folder).await {
        Ok(outcome) => print(&outcome).map(|()| matches!(outcome, Outcome::Succeeded(_))),
        Err(error) => Err(error),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            writeln!(std::io::stderr(), "solverd-runner: {error}").ok();
            ExitCode::FAILURE
        }
    }
}
