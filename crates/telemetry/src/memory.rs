//! The memory limit of this process, as the kernel's cgroups have it. In a container, the limit is
//! the container's.

use std::fs;
use std::path::{Path, PathBuf};

/// A limit of at least this size counts as none: cgroup v1 writes about `i64::MAX` for "no limit".
const UNLIMITED: u64 = 1 << 60;

/// Returns the smallest limit, in bytes, of the cgroups of this process; `None` without a limit.
pub fn limit() -> Option<u64> {
    limit_in(Path::new("/proc/self/cgroup"), Path::new("/sys/fs/cgroup"))
}

/// Returns the smallest limit of the cgroups that the file `memberships` names, which has the form
/// of `/proc/PID/cgroup` (see cgroups(7)). `mounted` is the folder where the cgroups are mounted.
fn limit_in(memberships: &Path, mounted: &Path) -> Option<u64> {
    let memberships = fs::read_to_string(memberships).ok()?;
    let limits = memberships.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let is_v1 = controllers.split(',').any(|controller| controller == "memory");
        if is_v1 {
            smallest(&mounted.join("memory"), path, "memory.limit_in_bytes")
        } else if number == "0" {
            smallest(mounted, path, "memory.max")
        } else {
            None
        }
    });
    limits.min()
}

/// Returns the smallest limit, in bytes, of the cgroup `path` and of the cgroups around it, whose
/// limits hold inside too. `root` is the folder of the outermost cgroup. A container without a
/// cgroup namespace sees its own cgroup as `root`, and the folder of `path` may not exist there.
/// Then only the limit of `root` counts.
fn smallest(root: &Path, path: &str, file: &str) -> Option<u64> {
    let inside: PathBuf = Path::new(path).components().skip(1).collect();
    let groups = inside.ancestors().map(|group| root.join(group).join(file));
    let limits = groups.filter_map(|file| fs::read_to_string(file).ok()?.trim().parse().ok());
    limits.filter(|limit| *limit < UNLIMITED).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit_of(memberships: &str, files: &[(&str, &str)]) -> Option<u64> {
        let root = tempfile::tempdir().unwrap();
        let of_process = root.path().join("memberships");
        fs::write(&of_process, memberships).unwrap();
        for (file, content) in files {
            let file = root.path().join("mounted").join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, format!("{content}\n")).unwrap();
        }
        limit_in(&of_process, &root.path().join("mounted"))
    }

    #[test]
    fn the_smallest_limit_around_the_process_counts() {
        for (memberships, files, limit) in [
            // A container with cgroup v2 and a cgroup namespace.
            ("0::/\n", &[("memory.max", "536870912")][..], Some(536_870_912)),
            ("0::/\n", &[("memory.max", "max")], None),
            (
                "0::/a/b\n",
                &[("memory.max", "max"), ("a/memory.max", "7"), ("a/b/memory.max", "9")],
                Some(7),
            ),
            // The path is not the one that is mounted.
            ("0::/kubepods/pod1\n", &[("memory.max", "5")], Some(5)),
            // cgroup v1, and both versions together.
            ("5:cpu,cpuacct:/\n4:memory:/p\n", &[("memory/p/memory.limit_in_bytes", "8")], Some(8)),
            ("4:memory:/\n", &[("memory/memory.limit_in_bytes", "9223372036854771712")], None),
            (
                "4:memory:/\n0::/\n",
                &[("memory/memory.limit_in_bytes", "6"), ("memory.max", "max")],
                Some(6),
            ),
            ("", &[], None),
        ] {
            assert_eq!(limit_of(memberships, files), limit, "{memberships}");
        }
    }
}
