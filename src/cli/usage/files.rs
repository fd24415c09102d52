//! Which files a report reads when it is given a directory.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

/// Directories within directories: one for each server and each month are two.
const DEPTH_MAX: usize = 8;

/// The file itself; of a directory its usage files and those of the directories below, in order of their names.
///
/// # Errors
/// A directory that can't be read or has no usage file, with the remedy.
pub(super) fn of(path: &Path) -> Result<Vec<PathBuf>, String> {
    if path == Path::new("-") || !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut found = Vec::new();
    let shown = path.display();
    collect(path, DEPTH_MAX, &mut found).map_err(|error| format!("{shown}: can't be read: {error}"))?;
    if found.is_empty() {
        return Err(format!("{shown}: holds no file named *.jsonl or *.jsonl.*; name the files themselves"));
    }
    Ok(found)
}

fn collect(directory: &Path, depth: usize, found: &mut Vec<PathBuf>) -> io::Result<()> {
    let mut entries = std::fs::read_dir(directory)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        // Links to directories are not followed: they could lead round in a circle.
        let is_directory = entry.file_type()?.is_dir();
        if is_directory && depth > 1 {
            collect(&entry.path(), depth - 1, found)?;
        } else if !is_directory && is_usage_file(&entry.file_name()) {
            found.push(entry.path());
        }
    }
    Ok(())
}

/// `usage.jsonl`, and what a rotation makes of it: `usage.jsonl.20261121T053012Z`, `usage.jsonl.1`.
fn is_usage_file(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    !name.starts_with('.') && (name.ends_with(".jsonl") || name.contains(".jsonl."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::usage::tests::Directory;

    #[test]
    fn of_a_directory_the_usage_files_are_read_in_order_and_nothing_else() {
        let directory = Directory::new();
        let at = |name: &str| directory.path().join(name);
        assert!(of(directory.path()).unwrap_err().contains("*.jsonl"));
        std::fs::create_dir(at("turn-2")).unwrap();
        let usage = ["turn-2/usage.jsonl", "turn-2/usage.jsonl.20261121T053012Z", "usage.jsonl"];
        for name in usage.into_iter().chain([".usage.jsonl.swp", "revocations", "usage.json"]) {
            std::fs::write(at(name), "").unwrap();
        }
        std::os::unix::fs::symlink(directory.path(), at("circle")).unwrap();
        assert_eq!(of(directory.path()).unwrap(), usage.map(at));
        for name in ["revocations", "nowhere"] {
            assert_eq!(of(&at(name)).unwrap(), [at(name)], "what is named is read");
        }
    }
}
