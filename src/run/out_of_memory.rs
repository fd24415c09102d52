//! Whether the kernel ended a process of this control group for want of memory: to its parent that looks like `kill -9` by hand,
//! but only the first can be a message's doing.

use std::fs;
use std::path::{Path, PathBuf};

/// The count of such ends in this process's control group, and what it was when it was last looked at.
#[derive(Debug)]
pub(super) struct OutOfMemoryKills {
    /// The file with the count, if there is one.
    file: Option<PathBuf>,
    seen: u64,
}

impl OutOfMemoryKills {
    /// Begins to count.
    pub(super) fn of_process() -> Self {
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Self::of(Path::new("/sys/fs/cgroup"), &groups)
    }

    /// `groups` is what the kernel says of the groups of a process (cgroups(7)), `root` where they are mounted.
    fn of(root: &Path, groups: &str) -> Self {
        let file = groups.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let (controllers, group) = (parts.next()?, parts.next()?);
            let file = if controllers.is_empty() {
                root.join(relative(group)).join("memory.events")
            } else if controllers.split(',').any(|controller| controller == "memory") {
                root.join("memory").join(relative(group)).join("memory.oom_control")
            } else {
                return None;
            };
            kills(&file).map(|_| file)
        });
        let seen = file.as_deref().and_then(kills).unwrap_or(0);
        Self { file, seen }
    }

    /// Whether there was one since this was last asked.
    pub(super) fn rose(&mut self) -> bool {
        let now = self.file.as_deref().and_then(kills).unwrap_or(self.seen);
        let rose = now > self.seen;
        self.seen = now;
        rose
    }
}

fn relative(group: &str) -> &str {
    group.trim_start_matches('/')
}

fn kills(file: &Path) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::usage::tests::Directory;

    fn group(root: &Path, file: &str, text: &str) {
        let file = root.join(file);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }

    #[test]
    fn a_kill_for_want_of_memory_is_told_once() {
        let root = Directory::new();
        let events = "system.slice/throughway.service/memory.events";
        group(root.path(), events, "low 0\nhigh 0\nmax 7\noom 2\noom_kill 2\noom_group_kill 0\n");
        let mut kills = OutOfMemoryKills::of(root.path(), "0::/system.slice/throughway.service\n");
        assert!(!kills.rose(), "those of before are not this server's");
        group(root.path(), events, "oom 3\noom_kill 3\noom_group_kill 0\n");
        assert!(kills.rose());
        assert!(!kills.rose());
    }

    #[test]
    fn the_first_version_of_control_groups_has_a_file_of_another_name() {
        let root = Directory::new();
        let control = "memory/docker/abc/memory.oom_control";
        group(root.path(), control, "oom_kill_disable 0\nunder_oom 0\noom_kill 0\n");
        let mut kills = OutOfMemoryKills::of(root.path(), "9:name=systemd:/\n4:memory:/docker/abc\n0::/\n");
        group(root.path(), control, "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n");
        assert!(kills.rose());
    }

    #[test]
    fn without_a_count_there_is_none() {
        let root = Directory::new();
        for groups in ["", "0::/\n", "garbage", "4:cpu:/x\n"] {
            assert!(!OutOfMemoryKills::of(root.path(), groups).rose(), "{groups}");
        }
    }
}
