//! Zip archives: those among the inputs are unpacked, an output may have to become one. An archive is not trusted, and never held
//! in memory: neither its content nor its directory, which is read entry by entry.

use std::{
    fmt::Display,
    fs::{self, File},
    io::{self, BufReader, Read, Seek, SeekFrom, Write},
    path::{Component, Path, PathBuf},
};

use rustix::fs::FileType;
use tokio_util::sync::CancellationToken;
use zip::{
    CompressionMethod, ZipWriter,
    read::{Config, ZipReadOptions},
    unstable::read::ZipIterable,
    write::SimpleFileOptions,
};

use crate::{disk::DEEPEST, folders::give, task::Limits};

/// Bytes of a path in an archive.
const LONGEST_PATH: usize = 1024;

/// Bytes of a file's name.
const LONGEST_NAME: usize = 255;

/// Bytes copied at a time.
const CHUNK: usize = 256 * 1024;

/// Why an archive was not unpacked.
#[derive(Debug)]
pub(crate) enum Problem {
    /// The archive is not taken, for the reason told.
    Refused(String),
    /// There is a file of this name already.
    Taken(PathBuf),
    /// The folder could not be written.
    Machine(io::Error),
    /// Nobody waits for it any more.
    Cancelled,
}

/// Unpacks an archive into a folder that only we write to. Blocks.
pub(crate) fn unpack(
    archive: &Path,
    folder: &Path,
    limits: Limits,
    stop: &CancellationToken,
) -> Result<(), Problem> {
    let open = || File::open(archive).map(BufReader::new).map_err(Problem::Machine);
    let broken = |error: &dyn Display| Problem::Refused(format!("is not a good archive: {error}"));
    let size = fs::metadata(archive).map_err(Problem::Machine)?.len();
    let mut zip = ZipIterable::try_new(open()?, Config::default())
        .map_err(|error| broken(&error))?
        .enforce_header_consistency(true);
    let mut content = open()?;
    let mut target = Target { folder, files: 0, bytes: 0, limits, last: PathBuf::new() };
    let mut compressed: u64 = 0;
    for (number, entry) in (0..).zip(zip.files().map_err(|error| broken(&error))?) {
        if stop.is_cancelled() {
            return Err(Problem::Cancelled);
        }
        // The same folder may be named again and again.
        if number >= limits.disk_files {
            return Err(too_many(limits.disk_files));
        }
        let entry = entry.map_err(|error| broken(&error))?;
        let name = entry.name().map_err(|error| broken(&error))?.into_owned();
        let refused = |rule: &dyn Display| {
            let shown: String = name.chars().take(100).collect();
            Problem::Refused(format!("holds `{}`, which {rule}", shown.escape_debug()))
        };
        let path = path(&name).map_err(|rule| refused(&rule))?;
        let kind = FileType::from_raw_mode(entry.external_attributes() >> 16);
        let special = entry.external_attributes() >> 16 & 0o170_000 != 0
            && !matches!(kind, FileType::RegularFile | FileType::Directory);
        if special {
            return Err(refused(&"is neither a file nor a folder"));
        }
        if entry.encrypted() {
            return Err(refused(&"is encrypted"));
        }
        if entry.is_dir() || kind == FileType::Directory {
            target.folder(&path)?;
            continue;
        }
        // Deflate makes nothing smaller than a 1032nd; entries that share their data would come to millions.
        compressed = compressed.saturating_add(entry.compressed_size());
        if compressed > size {
            return Err(refused(&"shares its data with other files"));
        }
        let method = entry.compression();
        if !matches!(method, CompressionMethod::Stored | CompressionMethod::Deflated) {
            return Err(refused(&format_args!("is compressed as {method}; only deflate is read")));
        }
        let mut entry = entry
            .with_reader(&mut content, ZipReadOptions::new())
            .map_err(|error| broken(&error))?;
        let file = target.file(&path)?;
        target
            .copy(&mut entry, file, stop, |error| refused(&format_args!("is broken: {error}")))?;
        give(&folder.join(&path)).map_err(Problem::Machine)?;
    }
    Ok(())
}

/// A path that stays inside.
fn path(name: &str) -> Result<PathBuf, String> {
    let path: PathBuf =
        Path::new(name).components().filter(|part| *part != Component::CurDir).collect();
    let inside = path.components().all(|part| matches!(part, Component::Normal(_)));
    if !inside || name.is_empty() {
        return Err("is not a path inside the archive".to_owned());
    }
    if name.contains(['\\', '\0']) || name.contains(char::is_control) {
        return Err("holds a backslash or a control character".to_owned());
    }
    if name.len() > LONGEST_PATH
        || path.components().any(|part| part.as_os_str().len() > LONGEST_NAME)
        || path.components().count() > DEEPEST
    {
        return Err(format!(
            "is longer than {LONGEST_PATH} bytes, has a name longer than {LONGEST_NAME}, or lies more than {DEEPEST} folders deep"
        ));
    }
    Ok(path)
}

/// Where an archive is unpacked to, and what is there by now.
struct Target<'a> {
    folder: &'a Path,
    files: u64,
    bytes: u64,
    limits: Limits,
    /// The folder made last: most files lie beside each other.
    last: PathBuf,
}

impl Target<'_> {
    fn count(&mut self) -> Result<(), Problem> {
        self.files += 1;
        let most = self.limits.disk_files;
        if self.files > most { Err(too_many(most)) } else { Ok(()) }
    }

    /// Makes a folder, and those that it lies in.
    fn folder(&mut self, path: &Path) -> Result<(), Problem> {
        if self.last == path {
            return Ok(());
        }
        let mut below = self.folder.to_owned();
        for part in path {
            below.push(part);
            match fs::create_dir(&below) {
                Ok(()) => {
                    self.count()?;
                    give(&below).map_err(Problem::Machine)?;
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    if !below.is_dir() {
                        return Err(taken(self.folder, &below));
                    }
                }
                Err(error) => return Err(Problem::Machine(error)),
            }
        }
        path.clone_into(&mut self.last);
        Ok(())
    }

    fn file(&mut self, path: &Path) -> Result<File, Problem> {
        if let Some(parent) = path.parent() {
            self.folder(parent)?;
        }
        self.count()?;
        let whole = self.folder.join(path);
        File::create_new(&whole).map_err(|error| {
            if error.kind() == io::ErrorKind::AlreadyExists {
                taken(self.folder, &whole)
            } else {
                Problem::Machine(error)
            }
        })
    }

    /// Counts what really comes out: what the archive says of its sizes is not to be relied on.
    fn copy(
        &mut self,
        entry: &mut impl Read,
        mut file: File,
        stop: &CancellationToken,
        broken: impl Fn(&io::Error) -> Problem,
    ) -> Result<(), Problem> {
        let mut chunk = vec![0; CHUNK];
        loop {
            if stop.is_cancelled() {
                return Err(Problem::Cancelled);
            }
            let length = entry.read(&mut chunk).map_err(|error| broken(&error))?;
            if length == 0 {
                return Ok(());
            }
            self.bytes += length as u64;
            let most = self.limits.disk_bytes;
            if self.bytes > most {
                return Err(Problem::Refused(format!(
                    "holds more than {most} bytes, the limit of a job"
                )));
            }
            file.write_all(&chunk[..length]).map_err(Problem::Machine)?;
        }
    }
}

fn too_many(most: u64) -> Problem {
    Problem::Refused(format!("holds more than {most} files and folders, the limit of a job"))
}

fn taken(folder: &Path, path: &Path) -> Problem {
    Problem::Taken(path.strip_prefix(folder).unwrap_or(path).to_owned())
}

/// Whether a file is an archive already.
pub(crate) fn is_zip(file: &File) -> bool {
    let mut magic = [0; 4];
    std::os::unix::fs::FileExt::read_exact_at(file, &mut magic, 0).is_ok()
        && matches!(&magic, b"PK\x03\x04" | b"PK\x05\x06")
}

/// Puts a file into an archive of its own, uncompressed as oSPARC does; also gives the archive's size. It has no name in `scratch`,
/// and is gone when it is closed. Blocks.
pub(crate) fn pack(
    mut file: File,
    name: &str,
    scratch: &Path,
    stop: &CancellationToken,
) -> io::Result<(File, u64)> {
    let mut zip = ZipWriter::new(tempfile::tempfile_in(scratch)?);
    let options =
        SimpleFileOptions::default().compression_method(CompressionMethod::Stored).large_file(true);
    zip.start_file(name, options)?;
    let mut chunk = vec![0; CHUNK];
    loop {
        if stop.is_cancelled() {
            return Err(io::Error::other("broken off"));
        }
        let length = file.read(&mut chunk)?;
        if length == 0 {
            break;
        }
        zip.write_all(&chunk[..length])?;
    }
    let mut archive = zip.finish()?;
    let size = archive.stream_position()?;
    archive.seek(SeekFrom::Start(0))?;
    Ok((archive, size))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An archive with these entries; a name that ends in `/` is a folder's.
    fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
        let mut zip = ZipWriter::new(io::Cursor::new(Vec::new()));
        let options = SimpleFileOptions::default().large_file(true);
        for (name, content) in entries {
            if name.ends_with('/') {
                zip.add_directory(*name, options).unwrap();
            } else if let Some(name) = name.strip_suffix('@') {
                zip.add_symlink(name, str::from_utf8(content).unwrap(), options).unwrap();
            } else {
                zip.start_file(*name, options).unwrap();
                zip.write_all(content).unwrap();
            }
        }
        zip.finish().unwrap().into_inner()
    }

    /// The same bytes with all of `from` replaced.
    fn patched(mut bytes: Vec<u8>, from: &[u8], to: &[u8]) -> Vec<u8> {
        let mut any = false;
        for start in 0..=bytes.len() - from.len() {
            if bytes[start..].starts_with(from) {
                bytes[start..start + from.len()].copy_from_slice(to);
                any = true;
            }
        }
        assert!(any, "nothing to replace");
        bytes
    }

    /// Unpacks; answers with the paths that are there then, and with what is wrong.
    fn unpacked(bytes: &[u8], limits: Limits) -> (Vec<String>, Option<String>) {
        let scratch = tempfile::tempdir().unwrap();
        let (archive, folder) = (scratch.path().join("archive"), scratch.path().join("inputs"));
        fs::write(&archive, bytes).unwrap();
        fs::create_dir(&folder).unwrap();
        let problem = unpack(&archive, &folder, limits, &CancellationToken::new()).err();
        let problem = problem.map(|problem| match problem {
            Problem::Refused(reason) => reason,
            Problem::Taken(path) => format!("taken: {}", path.display()),
            problem @ (Problem::Machine(_) | Problem::Cancelled) => panic!("{problem:?}"),
        });
        let mut paths = Vec::new();
        let mut folders = vec![folder.clone()];
        while let Some(below) = folders.pop() {
            for entry in below.read_dir().unwrap() {
                let path = entry.unwrap().path();
                let shown = path.strip_prefix(&folder).unwrap().display().to_string();
                if path.symlink_metadata().unwrap().is_dir() {
                    folders.push(path);
                    paths.push(shown + "/");
                } else {
                    paths.push(shown);
                }
            }
        }
        assert!(!scratch.path().join("evil").exists());
        paths.sort();
        (paths, problem)
    }

    fn refusal(bytes: &[u8], limits: Limits) -> String {
        unpacked(bytes, limits).1.expect("a refusal")
    }

    #[test]
    fn files_and_folders_come_out() {
        let large = vec![7; 3 * CHUNK];
        let bytes = archive(&[
            ("a.txt", b"a"),
            ("deep/er/b.bin", &large),
            ("./deep/c", b""),
            ("empty/", b""),
            ("deep/", b""),
            ("ümläut.txt", b"u"),
        ]);
        let (paths, problem) = unpacked(&bytes, Limits::default());
        assert_eq!(problem, None);
        assert_eq!(
            paths,
            ["a.txt", "deep/", "deep/c", "deep/er/", "deep/er/b.bin", "empty/", "ümläut.txt"]
        );
        assert_eq!(unpacked(&archive(&[]), Limits::default()), (Vec::new(), None));
    }

    #[test]
    fn what_could_do_harm_is_refused() {
        let limits = Limits::default();
        let at = |name: &str| archive(&[("good", b""), (name, b"x")]);
        let long = "x".repeat(LONGEST_NAME + 1);
        for (bytes, expected) in [
            (at("../evil"), "holds `../evil`, which is not a path inside the archive"),
            (at("a/../../evil"), "is not a path inside"),
            (patched(at("Xevil"), b"Xevil", b"/evil"), "holds `/evil`, which is not a path inside"),
            (patched(at("a-evil"), b"a-evil", b"a\\evil"), "holds a backslash or a control"),
            (patched(at("a-evil"), b"a-evil", b"a\nevil"), r"holds `a\nevil`, which holds a b"),
            (patched(at("a-evil"), b"a-evil", b"a\0evil"), "holds a backslash or a control"),
            (at(&long), "is longer than 1024 bytes, has a name longer than 255"),
            (at(&"d/".repeat(DEEPEST + 1)), "lies more than 128 folders deep"),
            (at("evil@"), "holds `evil`, which is neither a file nor a folder"),
            (
                patched(at("evil@"), &0o120_777_u16.to_le_bytes(), &0o020_777_u16.to_le_bytes()),
                "is neither a file nor a folder",
            ),
            (patched(archive(&[("aa", b""), ("ab", b"")]), b"ab", b"aa"), "taken: aa"),
            (archive(&[("a", b""), ("a/b", b"")]), "taken: a"),
        ] {
            let problem = unpacked(&bytes, limits).1.unwrap_or_default();
            assert!(problem.contains(expected) && problem.len() < 300, "{expected}: {problem}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        let limits = Limits::default();
        let bytes = archive(&[("name", b"content")]);
        // Offsets in the headers: flags (bit 0: encrypted) and method, local and central.
        let central = bytes.windows(4).position(|at| at == b"PK\x01\x02").unwrap();
        let with = |local: usize, directory: usize, value: u8| {
            let mut bytes = bytes.clone();
            (bytes[local], bytes[central + directory]) = (value, value);
            bytes
        };
        assert!(refusal(&with(6, 8, 1), limits).ends_with("holds `name`, which is encrypted"));
        let message = refusal(&with(8, 10, 14), limits);
        assert!(
            message.contains("is compressed as") && message.contains("only deflate"),
            "{message}"
        );
        for bytes in [b"no archive".to_vec(), Vec::new(), bytes[..bytes.len() - 30].to_vec()] {
            assert!(refusal(&bytes, limits).starts_with("is not a good archive: "));
        }
        // What the two headers say must agree.
        let mut cloaked = bytes.clone();
        let name = cloaked.windows(4).position(|at| at == b"name").unwrap();
        cloaked[name] = b'N';
        assert!(refusal(&cloaked, limits).starts_with("is not a good archive: "));
        let mut stored = archive(&[("name", &[1; 100])]);
        let data = stored.windows(4).position(|at| at == b"name").unwrap() + 4 + 20;
        stored[data + 1] ^= 0xff;
        let message = refusal(&stored, limits);
        assert!(message.contains("holds `name`, which is broken"), "{message}");
    }

    #[test]
    fn a_bomb_does_not_go_off() {
        let limits = Limits { disk_bytes: 1 << 20, disk_files: 10, ..Limits::default() };
        let bomb = archive(&[("zeros", &vec![0; 2 << 20])]);
        assert!(bomb.len() < 4096);
        assert_eq!(refusal(&bomb, limits), "holds more than 1048576 bytes, the limit of a job");
        let names: Vec<_> = (0..11).map(|number| number.to_string()).collect();
        let many: Vec<_> = names.iter().map(|name| (name.as_str(), &b""[..])).collect();
        let message = "holds more than 10 files and folders, the limit of a job";
        assert_eq!(refusal(&archive(&many), limits), message);
        assert_eq!(refusal(&archive(&[("1/2/3/4/5/6/7/8/9/10/11/", b"")]), limits), message);
        let names: Vec<_> = (0..11).map(|number| format!("{}same/", "./".repeat(number))).collect();
        let same: Vec<_> = names.iter().map(|name| (name.as_str(), &b""[..])).collect();
        assert_eq!(refusal(&archive(&same), limits), message);

        // One file's data hold the whole of another.
        let position =
            |bytes: &[u8], magic: &[u8]| bytes.windows(4).position(|at| at == magic).unwrap();
        let (directory, end) = (b"PK\x01\x02", b"PK\x05\x06");
        let inner = stored("inner", &[7; 1000]);
        let (local, listed) = inner.split_at(position(&inner, directory));
        let outer = stored("outer", local);
        let ends = position(&outer, end);
        let start = position(&outer[1..], b"PK\x03\x04") + 1;
        let mut shared = outer[..ends].to_vec();
        shared.extend(&listed[..position(listed, end)]);
        let entry = ends + 42;
        shared[entry..entry + 4].copy_from_slice(&u32::try_from(start).unwrap().to_le_bytes());
        let size = shared.len() - position(&outer, directory);
        let mut record = outer[ends..].to_vec();
        (record[8], record[10]) = (2, 2);
        record[12..16].copy_from_slice(&u32::try_from(size).unwrap().to_le_bytes());
        shared.extend(record);
        let message = refusal(&shared, Limits::default());
        assert_eq!(message, "holds `inner`, which shares its data with other files");
    }

    #[test]
    fn folders_are_made_only_while_somebody_waits() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("archive");
        fs::write(&path, archive(&[("folder/", b"")])).unwrap();
        let stop = CancellationToken::new();
        stop.cancel();
        let unpacked = unpack(&path, scratch.path(), Limits::default(), &stop);
        assert!(matches!(unpacked, Err(Problem::Cancelled)), "{unpacked:?}");
    }

    fn stored(name: &str, content: &[u8]) -> Vec<u8> {
        let mut zip = ZipWriter::new(io::Cursor::new(Vec::new()));
        let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
        zip.start_file(name, options).unwrap();
        zip.write_all(content).unwrap();
        zip.finish().unwrap().into_inner()
    }

    #[test]
    fn a_file_is_packed_and_known_as_an_archive() {
        let scratch = tempfile::tempdir().unwrap();
        let file = scratch.path().join("result.dat");
        fs::write(&file, "seven").unwrap();
        assert!(!is_zip(&File::open(&file).unwrap()));
        let open = || File::open(&file).unwrap();
        let stop = CancellationToken::new();
        let (mut zip, size) = pack(open(), "result.dat", scratch.path(), &stop).unwrap();
        assert!(is_zip(&zip));
        let mut bytes = Vec::new();
        zip.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len() as u64, size);
        let (paths, problem) = unpacked(&bytes, Limits::default());
        assert_eq!((paths, problem), (vec!["result.dat".to_owned()], None));
        assert_eq!(scratch.path().read_dir().unwrap().count(), 1, "it has no name");
        stop.cancel();
        pack(open(), "result.dat", scratch.path(), &stop).unwrap_err();
    }
}
