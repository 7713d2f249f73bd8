//! The disk: what a task takes of it is measured while it runs, and a task that takes more than it may is ended.
//!
//! No quota of the file system is needed. A single file cannot pass the limit (`RLIMIT_FSIZE`, set with the container); all of them
//! together are added up again and again. Looking costs time, so the next look comes no sooner than ten times as long as the
//! last one took; only the free space of the machine is asked for every second.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, StatxFlags, openat, statfs, statvfs, statx,
};
use uuid::Uuid;

use crate::{
    engine::{Docker, Layer, Traces},
    folders::Folders,
    task::{FailureKind, Limits, TaskError},
};

/// The shortest time between two looks.
const EVERY: Duration = Duration::from_secs(1);

/// How much longer than a look the pause after it is.
const PATIENCE: u32 = 10;

/// Folders within each other: as many files are open while they are measured.
pub(crate) const DEEPEST: usize = 128;

/// A task that holds less than this is not ended for the machine's sake: it would free too little.
const LITTLE: u64 = 16 << 20;

/// What `statfs` says of files in memory.
const TMPFS: i64 = 0x0102_1994;

/// How long what a task held may take to be removed.
const REMOVED_WITHIN: Duration = Duration::from_mins(5);

/// The tasks of this process that may be ended when the machine's disk is nearly full.
static WATCHED: Mutex<BTreeMap<Uuid, Watched>> = Mutex::new(BTreeMap::new());

enum Watched {
    /// It held so many bytes when it was last looked at.
    Holds(u64),
    /// It has been ended, and is not removed yet.
    Ended(Instant),
}

fn watched() -> MutexGuard<'static, BTreeMap<Uuid, Watched>> {
    WATCHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// To be called when all that a task had on disk is removed.
pub(crate) fn forget(job_id: Uuid) {
    watched().remove(&job_id);
}

/// Watches what one task takes of the disk.
#[derive(Debug)]
pub(crate) struct Disk<'a> {
    engine: &'a Docker,
    job_id: Uuid,
    limits: Limits,
    /// All that is the task's.
    folder: PathBuf,
    /// What it sees of the host, and where that is.
    places: Vec<(&'static str, PathBuf)>,
    /// What its container had written when the engine could last tell.
    layer: Mutex<Layer>,
    /// That it cannot was said.
    told: AtomicBool,
}

impl Drop for Disk<'_> {
    fn drop(&mut self) {
        // What has been ended frees its space only when it is removed.
        watched().retain(|id, it| *id != self.job_id || matches!(it, Watched::Ended(_)));
    }
}

impl<'a> Disk<'a> {
    pub(crate) fn new(engine: &'a Docker, job_id: Uuid, limits: Limits, folders: &Folders) -> Self {
        let (folder, places) = (folders.path().to_owned(), folders.places());
        let (layer, told) = (Mutex::default(), AtomicBool::new(false));
        Self { engine, job_id, limits, folder, places, layer, told }
    }

    /// Ends with the reason when the task has taken too much, else never.
    pub(crate) async fn watch(&self, container: Option<&str>) -> TaskError {
        let mut pause = EVERY;
        loop {
            let next = Instant::now() + pause;
            while Instant::now() < next {
                tokio::time::sleep(EVERY).await;
                if let Err(reason) = self.reserve(&self.folder) {
                    return reason;
                }
            }
            let begun = Instant::now();
            let layer = match self.look(container).await {
                Ok(layer) => layer,
                Err(reason) => return reason,
            };
            // The engine may keep layers on another disk.
            if let Layer::Folder(folder) = layer
                && let Err(reason) = self.reserve(&folder)
            {
                return reason;
            }
            pause = EVERY.max(begun.elapsed() * PATIENCE);
        }
    }

    /// Looks once; answers with what the container has written beside its mounts.
    pub(crate) async fn look(&self, container: Option<&str>) -> Result<Layer, TaskError> {
        let traces = match container {
            Some(container) => self.traces(container).await,
            None => Traces::default(),
        };
        let (places, most) = (self.places.clone(), self.limits.disk_files);
        let process = container.map(str::to_owned).zip(traces.process);
        let layer = traces.layer.clone();
        let measuring =
            tokio::task::spawn_blocking(move || Use::of(&places, &layer, process, most));
        // It does not panic; if it did, the next look would see.
        let used = measuring.await.unwrap_or_default();
        watched().insert(self.job_id, Watched::Holds(used.bytes()));
        used.judge(&self.limits).map_err(|message| self.ended(message))?;
        Ok(traces.layer)
    }

    async fn traces(&self, container: &str) -> Traces {
        let last = || self.layer.lock().unwrap_or_else(PoisonError::into_inner);
        match self.engine.traces(container).await {
            Ok(traces) => {
                last().clone_from(&traces.layer);
                traces
            }
            Err(error) => {
                if !self.told.swap(true, Ordering::Relaxed) {
                    tracing::warn!(job = %self.job_id, %error, "what the container writes beside its mounts is not measured now");
                }
                Traces { layer: last().clone(), process: None }
            }
        }
    }

    /// Whether the disk of a folder has enough left. If not, the task that holds most is ended, one at a time: what it frees may be
    /// enough.
    fn reserve(&self, folder: &Path) -> Result<(), TaskError> {
        let free = statvfs(folder).map(|disk| disk.f_bavail.saturating_mul(disk.f_frsize));
        let Some(free) = free.ok().filter(|free| *free < self.limits.disk_reserve) else {
            return Ok(());
        };
        let watched = watched();
        let most = watched.iter().map(|(id, it)| match it {
            Watched::Holds(bytes) => (*bytes, id),
            Watched::Ended(at) if at.elapsed() < REMOVED_WITHIN => (u64::MAX, id),
            Watched::Ended(_) => (0, id),
        });
        match most.max() {
            Some((bytes, id)) if *id == self.job_id && (LITTLE..u64::MAX).contains(&bytes) => {
                drop(watched);
                let reserve = self.limits.disk_reserve;
                Err(self.ended(format!(
                    "the machine's disk has {free} bytes left, where {reserve} are to stay free; of all jobs this one held most, {bytes} bytes, and was ended"
                )))
            }
            _ => Ok(()),
        }
    }

    fn ended(&self, message: String) -> TaskError {
        watched().insert(self.job_id, Watched::Ended(Instant::now()));
        TaskError::new(FailureKind::Disk, message)
    }
}

/// What a task holds, place by place.
#[derive(Debug, Default)]
struct Use(Vec<(&'static str, Held)>);

#[derive(Debug, Default, Clone, Copy)]
struct Held {
    bytes: u64,
    files: u64,
    too_deep: bool,
}

impl Use {
    fn of(
        places: &[(&'static str, PathBuf)],
        layer: &Layer,
        process: Option<(String, i64)>,
        most: u64,
    ) -> Self {
        let mut left = most;
        let mut measured = |folder: &Path| {
            let held = measure(folder, left);
            left = left.saturating_sub(held.files);
            held
        };
        let mut used: Vec<_> =
            places.iter().map(|(name, folder)| (*name, measured(folder))).collect();
        let layer = match layer {
            Layer::Folder(folder) => measured(folder),
            Layer::Bytes(bytes) => Held { bytes: *bytes, ..Held::default() },
        };
        used.push(("the container's own files", layer));
        if let Some((container, process)) = process {
            let held = nameless(&processes(&container, process), left);
            used.push(("files deleted but still open", held));
        }
        Self(used)
    }

    fn bytes(&self) -> u64 {
        self.0.iter().map(|(_, held)| held.bytes).sum()
    }

    fn files(&self) -> u64 {
        self.0.iter().map(|(_, held)| held.files).sum()
    }

    /// Says what is too much.
    fn judge(&self, limits: &Limits) -> Result<(), String> {
        if let Some((place, _)) = self.0.iter().find(|(_, held)| held.too_deep) {
            return Err(format!(
                "folders lie within each other more than {DEEPEST} deep in {place}"
            ));
        }
        let (files, bytes) = (self.files(), self.bytes());
        if files > limits.disk_files {
            let places = self.places(|held| held.files);
            return Err(format!(
                "the job has more than {} files and folders on disk, which is its limit: {places}",
                limits.disk_files
            ));
        }
        if bytes > limits.disk_bytes {
            let places = self.places(|held| held.bytes);
            return Err(format!(
                "the job has {bytes} bytes on disk, its limit is {}: {places}",
                limits.disk_bytes
            ));
        }
        Ok(())
    }

    /// Where how much is, the most first.
    fn places(&self, amount: impl Fn(&Held) -> u64) -> String {
        let mut places: Vec<_> = self.0.iter().map(|(place, held)| (amount(held), place)).collect();
        places.sort_unstable_by(|a, b| b.cmp(a));
        let mut text = String::new();
        for (amount, place) in places.iter().filter(|(amount, _)| *amount > 0) {
            let comma = if text.is_empty() { "" } else { ", " };
            // Writing to a string cannot fail.
            let _ = write!(text, "{comma}{amount} in {place}");
        }
        text
    }
}

/// Adds up what lies below a folder, until it is more than `most` files. What may not be read is not counted.
fn measure(folder: &Path, most: u64) -> Held {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut held = Held::default();
    let mut folders: Vec<_> =
        openat(CWD, folder, flags, Mode::empty()).and_then(Dir::new).into_iter().collect();
    while let Some(folder) = folders.last_mut() {
        let Some(Ok(entry)) = folder.read() else {
            folders.pop();
            continue;
        };
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let Ok(at) = folder.fd() else { continue };
        // It may be gone by now.
        let wanted = StatxFlags::TYPE | StatxFlags::NLINK | StatxFlags::BLOCKS;
        let Ok(stat) = statx(at, name, AtFlags::SYMLINK_NOFOLLOW, wanted) else { continue };
        held.files += 1;
        let is_folder = FileType::from_raw_mode(stat.stx_mode.into()) == FileType::Directory;
        // All names of a file are counted, each with its part.
        let names = if is_folder { 1 } else { stat.stx_nlink.max(1) };
        held.bytes += stat.stx_blocks * 512 / u64::from(names);
        if held.files > most {
            return held;
        }
        if is_folder && let Ok(inner) = openat(at, name, flags, Mode::empty()).and_then(Dir::new) {
            if folders.len() == DEEPEST {
                return Held { too_deep: true, ..held };
            }
            folders.push(inner);
        }
    }
    held
}

/// The folders in `/proc` of a container's processes, one of which is known. None where the machine's processes are not seen.
fn processes(container: &str, process: i64) -> Vec<PathBuf> {
    let groups = fs::read_to_string(format!("/proc/{process}/cgroup")).unwrap_or_default();
    let listed = groups.lines().filter(|line| line.contains(container)).find_map(|line| {
        // Version 1 has a tree for each controller, version 2 only one.
        let (controller, path) = line.split_once(':')?.1.split_once(':')?;
        let tree = Path::new("/sys/fs/cgroup").join(controller);
        fs::read_to_string(tree.join(path.trim_start_matches('/')).join("cgroup.procs")).ok()
    });
    listed.unwrap_or_default().lines().map(|process| Path::new("/proc").join(process)).collect()
}

/// Adds up the files that processes use although their names are gone: they take space until they are closed. Only root may look
/// there.
fn nameless(processes: &[PathBuf], most: u64) -> Held {
    let mut held = Held::default();
    let mut seen = BTreeSet::new();
    let folders = processes.iter().flat_map(|it| [it.join("fd"), it.join("map_files")]);
    let links = folders.flat_map(fs::read_dir).flatten().flatten().map(|link| link.path());
    for link in links.take(usize::try_from(most).unwrap_or(usize::MAX)) {
        let Ok(file) = fs::metadata(&link) else { continue };
        if file.is_file()
            && file.nlink() == 0
            && statfs(&link).is_ok_and(|system| system.f_type != TMPFS)
            && seen.insert((file.dev(), file.ino()))
        {
            held.files += 1;
            held.bytes += file.blocks() * 512;
        }
    }
    held
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::pretended;

    #[tokio::test]
    async fn a_layer_that_cannot_be_measured_counts_as_it_did() {
        let mut asked = 0;
        let engine = pretended(move |_| {
            asked += 1;
            // The second of the first two asks for sizes.
            if asked > 2 { (500, Vec::new()) } else { (200, br#"{"SizeRw": 5}"#.to_vec()) }
        });
        let folders = Folders::of(Path::new("/nowhere"), Uuid::nil());
        let limits = Limits { disk_bytes: 4, ..Limits::default() };
        let disk = Disk::new(&engine, Uuid::nil(), limits, &folders);
        for _ in 0..2 {
            let error = disk.look(Some("x")).await.unwrap_err();
            assert!(error.message.ends_with("5 in the container's own files"), "{error}");
        }
    }

    #[test]
    fn everything_below_is_added_up_once() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir_all(at("a/b")).unwrap();
        fs::write(at("a/b/large"), vec![1; 1 << 20]).unwrap();
        fs::hard_link(at("a/b/large"), at("same")).unwrap();
        std::os::unix::fs::symlink("/", at("link")).unwrap();
        fs::File::create(at("sparse")).unwrap().set_len(1 << 40).unwrap();
        let held = measure(folder.path(), 1000);
        assert_eq!((held.files, held.too_deep), (6, false));
        assert!((1 << 20..(1 << 20) + 65536).contains(&held.bytes), "{}", held.bytes);
        assert_eq!(measure(folder.path(), 3).files, 4, "more than enough is not counted");
        assert_eq!(measure(&at("nothing"), 3).files, 0);
    }

    #[test]
    fn folders_are_not_endlessly_deep() {
        let folder = tempfile::tempdir().unwrap();
        let deep = |levels| folder.path().join("d/".repeat(levels));
        fs::create_dir_all(deep(DEEPEST - 1)).unwrap();
        assert!(!measure(folder.path(), 1000).too_deep);
        fs::create_dir_all(deep(DEEPEST)).unwrap();
        assert!(measure(folder.path(), 1000).too_deep);
    }

    #[test]
    fn too_much_is_said_with_limit_use_and_places() {
        let used = Use(vec![
            ("/inputs", Held { bytes: 1, files: 1, too_deep: false }),
            ("/logs", Held::default()),
            ("/outputs", Held { bytes: 20, files: 2, too_deep: false }),
        ]);
        let limits = Limits { disk_bytes: 21, disk_files: 3, ..Limits::default() };
        assert_eq!(used.judge(&limits), Ok(()));
        assert_eq!(
            used.judge(&Limits { disk_bytes: 20, ..limits }).unwrap_err(),
            "the job has 21 bytes on disk, its limit is 20: 20 in /outputs, 1 in /inputs"
        );
        assert_eq!(
            used.judge(&Limits { disk_files: 2, ..limits }).unwrap_err(),
            "the job has more than 2 files and folders on disk, which is its limit: 2 in /outputs, 1 in /inputs"
        );
    }
}
