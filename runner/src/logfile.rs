//! The log of solvers of integration version 0: they write it to `/logs/log.dat`, and it is followed while they do. Lines get the
//! time at which they are seen.
//!
//! The file is the solver's own: it may be cut off, replaced or removed, and what it is replaced with may be anything. How far it was
//! read is kept beside it, where the solver cannot reach it: whoever adopts the container goes on there. Lines that the one before had
//! passed on, but that were not written down when it crashed, are lost.

use std::{
    fs::{File, Permissions},
    io,
    os::{
        fd::OwnedFd,
        unix::fs::{FileExt, MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    fs::inotify::{self, CreateFlags, WatchFlags},
    io::read,
};
use tokio::{io::unix::AsyncFd, task::spawn_blocking, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::{
    folders::{Folders, give},
    logs::{Partial, Printed},
    outputs::{Refusal, open},
    report::{Reporter, now},
};

/// The file's name.
pub(crate) const NAME: &str = "log.dat";

/// Bytes read at a time.
const CHUNK: usize = 64 * 1024;

/// Bytes that are read when the solver has ended: one that writes faster than they are written down must not be read for ever.
const BACKLOG: u64 = 64 << 20;

/// Between a change and the look at it: a solver may make changes faster than anybody can look.
const PAUSE: Duration = Duration::from_millis(50);

/// Between two looks on a system that has no more notices of changes to give.
const POLL: Duration = Duration::from_secs(1);

/// Makes the file: these solvers expect it to be there.
pub(crate) fn create(folder: &Path) -> io::Result<()> {
    let path = folder.join(NAME);
    let file = File::create_new(&path)?;
    file.set_permissions(Permissions::from_mode(0o666))?;
    give(&path)
}

/// Follows the log file of a job until `ended` is cancelled and everything is read; answers with the last lines.
pub(crate) async fn follow(
    folders: &Folders,
    mut printed: Printed<'_>,
    report: &Reporter<'_>,
    ended: &CancellationToken,
) -> Vec<String> {
    let changes = Changes::of(&folders.logs());
    let mut tail = Tail::new(folders.logs());
    let place = Place::open(&folders.scratch());
    tail.begin = place.read();
    let mut refused = false;
    loop {
        let complete = ended.is_cancelled();
        if complete && let Some(bytes) = tail.end(BACKLOG) {
            report.warning(format!("{bytes} bytes of {NAME} were left out here")).await;
        }
        while complete || !ended.is_cancelled() {
            let looking = spawn_blocking(move || {
                let lines = tail.look();
                (tail, lines)
            });
            let Ok((kept, lines)) = looking.await else { return printed.finish().await };
            tail = kept;
            match lines {
                Ok(Some((lines, at))) => {
                    if printed.together(lines).await {
                        place.write(at);
                    }
                }
                Ok(None) => break,
                Err(reason) => {
                    if !std::mem::replace(&mut refused, true) {
                        report.warning(format!("the log file is not read: {reason}")).await;
                    }
                    break;
                }
            }
        }
        if complete {
            break;
        }
        tokio::select! {
            () = changes.next() => {}
            () = ended.cancelled() => {}
        }
    }
    printed.together(tail.partial.take().into_iter().collect()).await;
    printed.finish().await
}

/// A place in one of several files: which one, by its inode, and how many bytes of it lie before.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct At {
    inode: u64,
    bytes: u64,
}

/// Where reading the file stands.
struct Tail {
    folder: PathBuf,
    file: Option<File>,
    at: At,
    /// Where somebody else has left off.
    begin: At,
    /// Bytes that are read at most.
    left: u64,
    partial: Partial,
    /// Where the line begins that is not complete.
    begun: At,
}

/// Lines, and where the next one begins.
type Lines = (Vec<String>, At);

impl Tail {
    fn new(folder: PathBuf) -> Self {
        let none = At::default();
        let partial = Partial::default();
        Self { folder, file: None, at: none, begin: none, left: u64::MAX, partial, begun: none }
    }

    /// Leaves out all but the last bytes, and what comes beyond that; answers with how many are left out by now. Blocks.
    fn end(&mut self, most: u64) -> Option<u64> {
        self.left = most;
        if self.file.is_none() {
            self.open_named().ok()?;
        }
        let length = self.file.as_ref()?.metadata().ok()?.len();
        let skipped = length.saturating_sub(most).saturating_sub(self.at.bytes);
        if skipped == 0 {
            return None;
        }
        self.at.bytes += skipped;
        self.partial = Partial::default();
        Some(skipped)
    }

    /// The lines that the next bytes complete; `None` when there are no more bytes. Blocks.
    fn look(&mut self) -> Result<Option<Lines>, String> {
        let lines = self.read().map_err(|error| error.to_string())?;
        // All is read of the file there was; what has its name now may be another.
        if lines.is_some() || !self.open_named()? {
            return Ok(lines);
        }
        self.read().map_err(|error| error.to_string())
    }

    /// Opens what has the file's name, unless it is the same as before; whether it did.
    fn open_named(&mut self) -> Result<bool, String> {
        let named = match open(&self.folder, NAME) {
            Ok((file, _)) => file,
            Err(Refusal::Missing) => return Ok(false),
            Err(refusal) => return Err(refusal.reason("/logs", NAME)),
        };
        let found = named.metadata().map_err(|error| error.to_string())?;
        let same = self.file.is_some() && found.ino() == self.at.inode;
        if same && found.len() >= self.at.bytes {
            return Ok(false);
        }
        let known = self.file.is_none() && found.ino() == self.begin.inode;
        let bytes = if known && found.len() >= self.begin.bytes { self.begin.bytes } else { 0 };
        (self.file, self.at) = (Some(named), At { inode: found.ino(), bytes });
        self.begun = self.at;
        Ok(true)
    }

    fn read(&mut self) -> io::Result<Option<Lines>> {
        let Some(file) = &self.file else { return Ok(None) };
        let mut chunk = vec![0; usize::try_from(self.left).map_or(CHUNK, |left| left.min(CHUNK))];
        let length = file.read_at(&mut chunk, self.at.bytes)?;
        self.left -= length as u64;
        if length == 0 {
            return Ok(None);
        }
        let mut lines = Vec::new();
        for piece in chunk[..length].split_inclusive(|byte| *byte == b'\n') {
            self.at.bytes += piece.len() as u64;
            // As the engine does it.
            let frame = [now().as_bytes(), b" ", piece].concat();
            if let Some(line) = self.partial.push(&frame) {
                lines.push(line);
                self.begun = self.at;
            }
        }
        Ok(Some((lines, self.begun)))
    }
}

/// Where it is kept how far the file was read.
struct Place(Option<File>);

impl Place {
    fn open(folder: &Path) -> Self {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        Self(options.open(folder.join("log.dat.read")).ok())
    }

    fn read(&self) -> At {
        let mut kept = [0; 16];
        let read = self.0.as_ref().and_then(|file| file.read_exact_at(&mut kept, 0).ok());
        let (inode, bytes) = kept.split_at(8);
        let number = |bytes: &[u8]| u64::from_be_bytes(bytes.try_into().unwrap_or_default());
        read.map(|()| At { inode: number(inode), bytes: number(bytes) }).unwrap_or_default()
    }

    /// Some bytes into the kernel's memory. That does not outlive a power cut, but the container does not either.
    fn write(&self, at: At) {
        let kept = [at.inode.to_be_bytes(), at.bytes.to_be_bytes()].concat();
        if let Some(error) = self.0.as_ref().and_then(|file| file.write_all_at(&kept, 0).err()) {
            tracing::debug!(%error, "how far the log file was read is not kept");
        }
    }
}

/// Notices of changes in a folder; none where the system has no more of them to give.
struct Changes(Option<AsyncFd<OwnedFd>>);

impl Changes {
    fn of(folder: &Path) -> Self {
        let watch = || {
            let notices = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
            let flags = WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::MOVED_TO;
            inotify::add_watch(&notices, folder, flags)?;
            #[expect(
                deprecated,
                reason = "what replaces it is unsafe code, for types that change their descriptor"
            )]
            AsyncFd::new(notices)
        };
        let logged = |error: &io::Error| tracing::debug!(%error, "the log file is polled");
        Self(watch().inspect_err(logged).ok())
    }

    /// Waits until something has changed.
    async fn next(&self) {
        let Some(notices) = &self.0 else { return sleep(POLL).await };
        let Ok(mut ready) = notices.readable().await else { return sleep(POLL).await };
        sleep(PAUSE).await;
        // What they say does not matter: the file is looked at in any case.
        let mut some = [0; 4096];
        while matches!(read(notices, &mut some), Ok(1..)) {}
        ready.clear_ready();
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn looked(tail: &mut Tail) -> Vec<String> {
        let mut texts = Vec::new();
        while let Some((lines, _)) = tail.look().unwrap() {
            texts.extend(lines.into_iter().map(|line| line[31..].to_owned()));
        }
        texts
    }

    #[test]
    fn lines_are_read_once_whatever_happens_to_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(NAME);
        let mut tail = Tail::new(folder.path().to_owned());
        assert_eq!(looked(&mut tail), [""; 0], "not there yet");
        create(folder.path()).unwrap();
        let mut file = File::options().append(true).open(&path).unwrap();
        file.write_all(b"one\ntw").unwrap();
        assert_eq!(looked(&mut tail), ["one"]);
        file.write_all(b"o\n").unwrap();
        assert_eq!(looked(&mut tail), ["two"]);

        file.write_all(b"three\n").unwrap();
        std::fs::rename(&path, folder.path().join("older")).unwrap();
        std::fs::write(&path, "four\n").unwrap();
        assert_eq!(looked(&mut tail), ["three", "four"]);
        std::fs::write(&path, "5\n").unwrap();
        assert_eq!(looked(&mut tail), ["5"]);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(looked(&mut tail), [""; 0]);
    }

    #[test]
    fn somebody_else_goes_on_where_it_was_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(NAME);
        std::fs::write(&path, "one\ntw").unwrap();
        let mut tail = Tail::new(folder.path().to_owned());
        let (lines, at) = tail.look().unwrap().unwrap();
        assert_eq!((lines.len(), at.bytes), (1, 4));
        File::options().append(true).open(&path).unwrap().write_all(b"o\n").unwrap();
        let place = Place::open(folder.path());
        assert_eq!(place.read(), At::default());
        place.write(at);
        let mut next = Tail::new(folder.path().to_owned());
        next.begin = Place::open(folder.path()).read();
        assert_eq!(looked(&mut next), ["two"]);
    }

    #[test]
    fn of_a_long_backlog_only_the_end_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(NAME);
        std::fs::write(&path, "one\n").unwrap();
        let mut tail = Tail::new(folder.path().to_owned());
        assert_eq!(looked(&mut tail), ["one"]);
        std::fs::write(&path, format!("one\n{}end\n", "x".repeat(1000))).unwrap();
        assert_eq!((tail.end(2000), tail.end(4)), (None, Some(1000)));
        assert_eq!((looked(&mut tail), tail.end(4)), (vec!["end".to_owned()], None));
        let mut file = File::options().append(true).open(&path).unwrap();
        file.write_all(b"one\ntwo\n").unwrap();
        assert_eq!(looked(&mut tail), ["one"], "whoever goes on writing is not read for ever");
    }
}
