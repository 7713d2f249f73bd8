//! The job's own folder on the host: what the container sees as `/inputs`, `/outputs` and `/logs`, and what the image calls its
//! volumes.

use std::{
    collections::BTreeMap,
    fs::{self, Permissions},
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::{
    fs::{Gid, Uid, chown},
    process::{getegid, geteuid},
};
use tokio::{task::spawn_blocking, time::timeout};
use uuid::Uuid;

use crate::{
    engine::{ContainerSpec, Docker, EngineError, HOSTNAME},
    remove::remove,
    run::CleanUpError,
    task::Resources,
};

/// How long what belongs to others may take to be taken over.
const TAKE_OVER_WITHIN: Duration = Duration::from_mins(2);

/// The user that oSPARC's images drop to. They adopt the owner of `/inputs`, which must not be root.
const SOLVER: u32 = 8004;

/// `work/<job id>` and the folders inside.
#[derive(Debug)]
pub(crate) struct Folders {
    job: PathBuf,
}

/// Where the mounted folders are, in the job's folder and in the container.
const MOUNTED: [(&str, &str, u32); 3] =
    [("inputs", "/inputs", 0o755), ("outputs", "/outputs", 0o777), ("logs", "/logs", 0o777)];

impl Folders {
    /// Where a job's folder is, whether it exists or not.
    pub(crate) fn of(work: &Path, job_id: Uuid) -> Self {
        Self { job: work.join(job_id.to_string()) }
    }

    /// Makes the folders. The job's own must not exist: another run of the job may be using it. Blocks.
    pub(crate) fn create(&self) -> io::Result<()> {
        if let Some(work) = self.job.parent() {
            fs::create_dir_all(work)?;
        }
        fs::create_dir(&self.job)?;
        // The outer folder keeps other users of the host out of the inner ones, which solvers of any user may write to.
        fs::set_permissions(&self.job, Permissions::from_mode(0o700))?;
        for (name, _, mode) in MOUNTED {
            let folder = self.job.join(name);
            fs::create_dir(&folder)?;
            fs::set_permissions(&folder, Permissions::from_mode(mode))?;
            give(&folder)?;
        }
        fs::write(self.hosts(), format!("127.0.0.1 localhost {HOSTNAME}\n::1 localhost\n"))?;
        // The solver's user reads it, whatever our umask.
        fs::set_permissions(self.hosts(), Permissions::from_mode(0o644))?;
        fs::create_dir(self.scratch())
    }

    /// What is mounted, and where the container sees it.
    pub(crate) fn mounts(&self, network: bool) -> Vec<(PathBuf, String)> {
        let mut mounts =
            MOUNTED.map(|(name, target, _)| (self.job.join(name), target.to_owned())).to_vec();
        if !network {
            mounts.push((self.hosts(), "/etc/hosts".to_owned()));
        }
        mounts
    }

    fn hosts(&self) -> PathBuf {
        self.job.join("hosts")
    }

    /// Makes a folder for each volume that the image declares: else the engine would make it, where nobody measures what is in it.
    pub(crate) fn volumes(&self, targets: &[String]) -> io::Result<Vec<(PathBuf, String)>> {
        let mounted =
            |target: &str| MOUNTED.iter().any(|(_, path, _)| Path::new(path) == Path::new(target));
        let targets = targets.iter().filter(|target| !mounted(target));
        let volume = |(number, target): (usize, &String)| {
            let folder = self.volumes_folder().join(number.to_string());
            fs::create_dir_all(&folder).map(|()| (folder, target.clone()))
        };
        targets.enumerate().map(volume).collect()
    }

    /// All that counts as the job's, by what its owner knows it as.
    pub(crate) fn places(&self) -> Vec<(&'static str, PathBuf)> {
        let mut places: Vec<_> =
            MOUNTED.iter().map(|(name, target, _)| (*target, self.job.join(name))).collect();
        places.push(("the image's volumes", self.volumes_folder()));
        places.push(("archives among the inputs", self.scratch()));
        places
    }

    /// For what is on its way in or out.
    pub(crate) fn scratch(&self) -> PathBuf {
        self.job.join("scratch")
    }

    fn volumes_folder(&self) -> PathBuf {
        self.job.join("volumes")
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

    /// Removes everything, also what belongs to others: a solver that stays root leaves folders that a service which is not cannot
    /// remove. A container of the job's own `image` gives them to us, if `chown` is in it. Good as well when nothing is there.
    pub(crate) async fn remove(
        &self,
        engine: &Docker,
        image: Option<&str>,
    ) -> Result<(), CleanUpError> {
        let until = Instant::now() + TAKE_OVER_WITHIN;
        loop {
            let job = self.job.clone();
            let error = match spawn_blocking(move || remove(&job)).await? {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            let denied = error.kind() == io::ErrorKind::PermissionDenied;
            match image {
                // Again and again: `chown` gets only as far down as a path can name.
                Some(image) if denied && Instant::now() < until => {
                    self.take_over(engine, image).await?;
                }
                _ => {
                    let whole = format!("removing {}: {error}", self.job.display());
                    return Err(io::Error::new(error.kind(), whole).into());
                }
            }
        }
    }

    /// What the container is called that gives us the folder. Of an attempt that was cut short it may still be there.
    pub(crate) fn helper(&self) -> String {
        format!("solverd-chown-{}", self.job.file_name().unwrap_or_default().to_string_lossy())
    }

    async fn take_over(&self, engine: &Docker, image: &str) -> Result<(), EngineError> {
        let spec = ContainerSpec {
            name: self.helper(),
            image: image.to_owned(),
            entry_point: Some(vec!["chown".to_owned()]),
            command: vec![
                "-hR".to_owned(),
                format!("{}:{}", geteuid().as_raw(), getegid().as_raw()),
                "/job".to_owned(),
            ],
            user: Some("0:0".to_owned()),
            env: BTreeMap::new(),
            labels: BTreeMap::new(),
            mounts: vec![(self.job.clone(), "/job".to_owned())],
            volumes: Vec::new(),
            largest_file: 0,
            gpus: Vec::new(),
            resources: Resources { nano_cpus: 1_000_000_000, memory_bytes: 256 << 20 },
            network: false,
            log_bytes: 1 << 20,
        };
        let container = engine.create(&spec).await?;
        let started = engine.start(&container).await;
        if started.is_ok() {
            // Whatever its code: what it could not take over shows next.
            let _ = timeout(TAKE_OVER_WITHIN, engine.wait(&container)).await;
        }
        engine.remove(&container).await?;
        started
    }
}

/// Gives a path to the solver's user. Only root can; otherwise it is ours, and the entry point adopts our user.
pub(crate) fn give(path: &Path) -> io::Result<()> {
    if geteuid().is_root() {
        chown(path, Some(Uid::from_raw(SOLVER)), Some(Gid::from_raw(SOLVER)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rustix::{fs::Mode, process::umask};

    use super::*;

    #[test]
    fn the_solver_may_read_its_hosts_whatever_the_umask() {
        let work = tempfile::tempdir().unwrap();
        let folders = Folders::of(work.path(), Uuid::nil());
        let before = umask(Mode::from_raw_mode(0o077));
        let created = folders.create();
        umask(before);
        created.unwrap();
        assert_eq!(fs::metadata(folders.hosts()).unwrap().permissions().mode() & 0o777, 0o644);
    }
}
