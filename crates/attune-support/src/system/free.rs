//! Finds the memory that this process may still take: the machine's, and that of each container around it (cgroups of
//! both versions). Called by `attune-model` for models on the CPU.
//!
//! Own code, since the crate sysinfo reads only the outermost group, not those that the process is in, and does not
//! count the kernel's cache of files as free.

use std::fs::read_to_string;
use std::path::Path;

/// Memory of the machine, or of a container if that has less left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FreeMemory {
    /// Total memory, in bytes.
    pub total: u64,
    /// Free memory, in bytes, including the kernel's cache of files, which can be read again.
    pub free: u64,
}

/// Returns the memory that this process may still take; `None` if the system does not report it.
pub fn free_memory() -> Option<FreeMemory> {
    read(Path::new("/"))
}

/// Does the same for a system whose files lie in `root`.
fn read(root: &Path) -> Option<FreeMemory> {
    containers(root).into_iter().chain(machine(root)).min_by_key(|memory| memory.free)
}

fn machine(root: &Path) -> Option<FreeMemory> {
    let text = read_to_string(root.join("proc/meminfo")).ok()?;
    let value = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
    };
    Some(FreeMemory { total: value("MemTotal:")?, free: value("MemAvailable:")? })
}

/// File locations and names of one version of cgroups.
struct Version {
    mount: &'static str,
    limit: &'static str,
    used: &'static str,
    cache: &'static str,
}

const FIRST: Version = Version {
    mount: "sys/fs/cgroup/memory",
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    cache: "total_inactive_file",
};
const SECOND: Version =
    Version { mount: "sys/fs/cgroup", limit: "memory.max", used: "memory.current", cache: "inactive_file" };

/// Returns the limits of this process's groups, from the innermost outwards.
fn containers(root: &Path) -> Vec<FreeMemory> {
    let groups = read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let mut found = Vec::new();
    for line in groups.lines() {
        // `hierarchy:controllers:path`
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let version = match controllers {
            "" => SECOND,
            _ if controllers.split(',').any(|name| name == "memory") => FIRST,
            _ => continue,
        };
        let mount = root.join(version.mount);
        // Inside a container the path may be the host's: then only the mount itself exists.
        for group in Path::new(path.trim_start_matches('/')).ancestors() {
            found.extend(container(&mount.join(group), &version));
        }
    }
    found
}

fn container(folder: &Path, version: &Version) -> Option<FreeMemory> {
    let number = |file: &str| read_to_string(folder.join(file)).ok()?.trim().parse::<u64>().ok();
    // `max` is not a number: the group has no limit.
    let (total, used) = (number(version.limit)?, number(version.used)?);
    let statistics = read_to_string(folder.join("memory.stat")).unwrap_or_default();
    let of_cache = |line: &str| line.strip_prefix(version.cache)?.strip_prefix(' ')?.trim().parse::<u64>().ok();
    let cache = statistics.lines().find_map(of_cache).unwrap_or(0);
    Some(FreeMemory { total, free: total.saturating_sub(used.saturating_sub(cache)) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn system(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = root.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        root
    }

    const MACHINE: (&str, &str) = ("proc/meminfo", "MemTotal: 4096 kB\nMemFree: 1 kB\nMemAvailable:    2048 kB\n");
    const FREE: FreeMemory = FreeMemory { total: 4 << 20, free: 2 << 20 };

    #[test]
    fn the_tightest_of_machine_and_containers_counts() {
        assert_eq!(read(system(&[]).path()), None);
        assert_eq!(read(system(&[MACHINE]).path()), Some(FREE));
        let second = [
            MACHINE,
            ("proc/self/cgroup", "0::/outer/inner\n"),
            ("sys/fs/cgroup/outer/inner/memory.max", "max\n"),
            ("sys/fs/cgroup/outer/inner/memory.current", "10\n"),
            ("sys/fs/cgroup/outer/memory.max", "1000000\n"),
            ("sys/fs/cgroup/outer/memory.current", "900000\n"),
            ("sys/fs/cgroup/outer/memory.stat", "inactive_file_of_others 7\ninactive_file 300000\n"),
        ];
        assert_eq!(read(system(&second).path()), Some(FreeMemory { total: 1_000_000, free: 400_000 }));
        let first = [
            MACHINE,
            ("proc/self/cgroup", "9:pids:/x\n4:cpu,memory:/on/the/host\n0::/\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "500000"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "600000"),
            ("sys/fs/cgroup/memory/memory.stat", "inactive_file 1\ntotal_inactive_file 150000\n"),
        ];
        assert_eq!(read(system(&first).path()), Some(FreeMemory { total: 500_000, free: 50_000 }));
    }

    #[test]
    fn a_limit_of_a_number_that_no_machine_has_leaves_the_machines() {
        let unlimited = [
            MACHINE,
            ("proc/self/cgroup", "4:memory:/\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "600000"),
        ];
        assert_eq!(read(system(&unlimited).path()), Some(FREE));
    }

    #[test]
    fn this_machine_tells() {
        let memory = free_memory().expect("a system that tells");
        assert!(memory.free > 0 && memory.free <= memory.total, "{memory:?}");
    }
}
