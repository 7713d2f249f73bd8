//! Removes a folder, whatever a solver has made in it: a million files, folders deeper than any path can name, folders that are
//! closed even to their owner.
//!
//! Folders found further down are moved to the top and emptied there, so neither depth nor width takes memory, and two files are
//! open at a time. Nothing is followed.

use std::{
    ffi::{CStr, CString},
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{AtFlags, CWD, Dir, Mode, OFlags, chmod, fchmod, openat, renameat, unlinkat},
    io::Errno,
};
use uuid::Uuid;

/// How often it is begun again when something has been added meanwhile.
const PASSES: usize = 10;

/// Removes a folder and all that is in it. Good as well when nothing is there. What cannot be removed does not keep the rest:
/// the first error is told at the end.
pub(crate) fn remove(folder: &Path) -> io::Result<()> {
    let mut pass = pass(folder);
    for _ in 1..PASSES {
        if pass != Err(Errno::NOTEMPTY) {
            break;
        }
        pass = self::pass(folder);
    }
    Ok(pass?)
}

fn pass(folder: &Path) -> Result<(), Errno> {
    let name = CString::new(folder.as_os_str().as_encoded_bytes()).map_err(|_| Errno::INVAL)?;
    let top = match open(CWD, &name) {
        Err(Errno::NOENT) => return Ok(()),
        opened => opened?,
    };
    let entries = Dir::read_from(&top)?;
    let mut tree = Tree { top, name: Uuid::now_v7(), moved: 0 };
    let mut result = each(entries, |name| tree.empty(name));
    let mut next = 0;
    while next < tree.moved {
        result = result.and(tree.empty(&tree.moved_name(next)));
        next += 1;
    }
    match unlinkat(CWD, folder, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => result.and(Err(error)),
    }
}

struct Tree {
    top: OwnedFd,
    /// Nobody else has used it for a name.
    name: Uuid,
    /// How many folders were moved to the top, each under its number.
    moved: u64,
}

impl Tree {
    fn moved_name(&self, number: u64) -> CString {
        CString::new(format!("{}-{number}", self.name)).unwrap_or_default()
    }

    /// Removes a file or folder at the top; folders in it come to the top.
    fn empty(&mut self, name: &CStr) -> Result<(), Errno> {
        if !is_folder(unlinkat(&self.top, name, AtFlags::empty()))? {
            return Ok(());
        }
        let folder = open(&self.top, name)?;
        let emptied = each(Dir::read_from(&folder)?, |inner| {
            if !is_folder(unlinkat(&folder, inner, AtFlags::empty()))? {
                return Ok(());
            }
            // Most are empty, or are moved as they are.
            if unlinkat(&folder, inner, AtFlags::REMOVEDIR).is_ok() {
                return Ok(());
            }
            let target = self.moved_name(self.moved);
            if renameat(&folder, inner, &self.top, &target) == Err(Errno::ACCESS) {
                // To be moved, a folder must be open to its owner.
                drop(open(&folder, inner)?);
                renameat(&folder, inner, &self.top, &target)?;
            }
            self.moved += 1;
            Ok(())
        });
        emptied.and(unlinkat(&self.top, name, AtFlags::REMOVEDIR))
    }
}

/// Whether what was to be unlinked is a folder instead. It is fine when it is gone.
fn is_folder(unlinked: Result<(), Errno>) -> Result<bool, Errno> {
    match unlinked {
        Ok(()) | Err(Errno::NOENT) => Ok(false),
        Err(Errno::ISDIR) => Ok(true),
        Err(error) => Err(error),
    }
}

/// Calls a function with every name in a folder; the first error, at the end.
fn each(entries: Dir, mut act: impl FnMut(&CStr) -> Result<(), Errno>) -> Result<(), Errno> {
    let mut result = Ok(());
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            result = result.and(act(name));
        }
    }
    result
}

/// Opens a folder, which its owner may then read and change.
fn open(at: impl AsFd, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = match openat(&at, name, flags, Mode::empty()) {
        Err(Errno::ACCESS) => {
            // By its open file: a path could meanwhile lead through a link.
            let closed = openat(&at, name, flags | OFlags::PATH, Mode::empty())?;
            chmod(format!("/proc/self/fd/{}", closed.as_raw_fd()), Mode::RWXU)?;
            openat(&at, name, flags, Mode::empty())?
        }
        opened => opened?,
    };
    // That of others may still be open enough.
    let _ = fchmod(&folder, Mode::RWXU);
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use rustix::fs::mkdirat;

    use super::*;

    #[test]
    fn whatever_is_there_goes() {
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("kept"), "").unwrap();
        let work = tempfile::tempdir().unwrap();
        let folder = work.path().join("job");
        std::fs::create_dir_all(folder.join("a/b/c")).unwrap();
        std::fs::write(folder.join("a/b/file"), "").unwrap();
        std::fs::create_dir_all(folder.join("closed/inner/inmost")).unwrap();
        symlink(outside.path(), folder.join("a/link")).unwrap();
        symlink(outside.path(), folder.join("link")).unwrap();
        for name in ["closed/inner/inmost", "closed/inner", "closed"] {
            std::fs::set_permissions(folder.join(name), PermissionsExt::from_mode(0o000)).unwrap();
        }
        remove(&folder).unwrap();
        assert!(!folder.exists() && outside.path().join("kept").exists());
        remove(&folder).unwrap();
    }

    #[test]
    fn depth_and_width_do_not_matter() {
        let work = tempfile::tempdir().unwrap();
        let folder = work.path().join("job");
        std::fs::create_dir_all(folder.join("wide")).unwrap();
        for number in 0..2000 {
            std::fs::create_dir_all(folder.join(format!("wide/{number}/x/y"))).unwrap();
        }
        // Twice what a path can name.
        let name = "d".repeat(100);
        let mut deep =
            open(CWD, &CString::new(folder.as_os_str().as_encoded_bytes()).unwrap()).unwrap();
        for _ in 0..80 {
            mkdirat(&deep, &name, Mode::RWXU).unwrap();
            deep = open(&deep, &CString::new(name.clone()).unwrap()).unwrap();
        }
        remove(&folder).unwrap();
        assert!(!folder.exists());
    }
}
