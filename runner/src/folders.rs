//! The job's own folder on the host: what the container sees as `/inputs`, `/outputs` and `/logs`.

use std::{
    fs::Permissions,
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Gid, Uid, chown},
    process::geteuid,
};
use tokio::fs;
use uuid::Uuid;

/// The user that oSPARC's images drop to. They adopt the owner of `/inputs`, which must not be root.
const SOLVER: u32 = 8004;

/// `work/<job id>` and the three folders inside.
#[derive(Debug)]
pub(crate) struct Folders {
    job: PathBuf,
}

impl Folders {
    /// Where a job's folder is, whether it exists or not.
    pub(crate) fn of(work: &Path, job_id: Uuid) -> Self {
        Self { job: work.join(job_id.to_string()) }
    }

    /// Makes the folders. The job's own must not exist: another run of the job may be using it.
    pub(crate) async fn create(&self) -> io::Result<()> {
        if let Some(work) = self.job.parent() {
            fs::create_dir_all(work).await?;
        }
        fs::create_dir(&self.job).await?;
        // The outer folder keeps other users of the host out of the inner ones, which solvers of any user may write to.
        fs::set_permissions(&self.job, Permissions::from_mode(0o700)).await?;
        for (folder, mode) in
            [(self.inputs(), 0o755), (self.outputs(), 0o777), (self.logs(), 0o777)]
        {
            fs::create_dir(&folder).await?;
            fs::set_permissions(&folder, Permissions::from_mode(mode)).await?;
            give(&folder)?;
        }
        Ok(())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.job
    }

    pub(crate) fn inputs(&self) -> PathBuf {
        self.job.join("inputs")
    }

    pub(crate) fn outputs(&self) -> PathBuf {
        self.job.join("outputs")
    }

    pub(crate) fn logs(&self) -> PathBuf {
        self.job.join("logs")
    }

    /// Removes everything. Good as well when nothing is there.
    pub(crate) async fn remove(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.job).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io::Error::new(
                error.kind(),
                format!("removing {}: {error}", self.job.display()),
            )),
            _ => Ok(()),
        }
    }
}

/// Gives a path to the solver's user. Only root can; otherwise it is ours, and the entry point adopts our user.
pub(crate) fn give(path: &Path) -> io::Result<()> {
    if geteuid().is_root() {
        chown(path, Some(Uid::from_raw(SOLVER)), Some(Gid::from_raw(SOLVER)))?;
    }
    Ok(())
}
