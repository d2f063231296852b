//! Gives up rights at startup, so that an attacker who takes the process over gains little.
//! Landlock refuses most files that the relay does not need, and seccomp refuses system calls that
//! it never makes. Landlock protects only the contents and names of files, so seccomp also refuses
//! changes of permissions, owners, times and attributes, even of the relay's files.
//!
//! Both restrictions hold for the calling thread and for the threads that it starts later, but not
//! for other existing threads (Landlock reaches those only since Linux 7.0). The command `run`
//! therefore calls [`enforce`] on its first thread. The checked config and [`open`] name every file
//! that the relay opens later. Landlock restricts neither network connections nor open files.
//!
//! A rule of Landlock belongs to an inode and not to a name, so `run` first makes the directories
//! in which it writes. Rules cannot be changed or added later. A rule on a file does not hold for
//! the new file if a program replaces the file. [`open`] therefore takes the directory around each
//! file that the config names, and around each symlink on the way to the file. The kubelet swaps
//! the symlink `..data` in such a directory, and certificate tools swap the file itself. A file
//! that is a mount of its own (a `subPath`) cannot be replaced, so its rule is on the file.
//!
//! seccomp refuses the calls that [`calls`] lists, and allows all others,
//! because an updated library may need new ones. A refused call fails with EPERM, as most of them
//! do without a privilege. `clone` is allowed, because it starts threads, but not with a flag that
//! makes a namespace: in a new user namespace, a process has all capabilities. The flags of
//! `clone3` are out of seccomp's reach, so it fails with ENOSYS, and glibc then starts threads with
//! `clone`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::{env, io};

use landlock::{
    ABI, Access as _, AccessFs, BitFlags, CompatLevel, Compatible as _, LandlockStatus,
    PathBeneath, PathFd, Ruleset, RulesetAttr as _, RulesetCreated, RulesetCreatedAttr as _,
    RulesetError, Scope,
};
use rustix::fs::{AtFlags, StatxAttributes, StatxFlags};

use config::Restrict;

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod calls;

/// The oldest usable version of Landlock (Linux 6.2). Version 1 refuses every rename from one
/// directory to another, which the queue needs; version 2 does not control truncation.
const LANDLOCK_MIN: ABI = ABI::V3;

/// The maximum number of symlinks that are followed; Linux itself follows 40.
const LINKS_MAX: usize = 40;

/// Paths of the system that the relay and its libraries read. A path that does not exist is left
/// out. `/etc/passwd` is not in the list, because nothing looks up users.
const OF_THE_SYSTEM: [&str; 28] = [
    // Metrics, memory limits, backlogs. Inodes below /proc change, so the rule is on the whole of
    // /proc, but the memory and the environment of other processes stay out of reach.
    "/proc",
    "/sys/fs/cgroup",
    "/dev/urandom",
    // getaddrinfo(3) of glibc loads the libraries that nsswitch.conf names.
    "/etc/gai.conf",
    "/etc/host.conf",
    "/etc/ld.so.cache",
    "/etc/nsswitch.conf",
    "/etc/services",
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    // The certificates of public CAs, and the settings of OpenSSL (for Kafka).
    "/etc/ca-certificates",
    "/etc/crypto-policies",
    "/etc/pki/ca-trust",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/tls/cert.pem",
    "/etc/pki/tls/certs",
    "/etc/pki/tls/openssl.cnf",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
    "/opt/etc/ssl/certs",
    "/usr/local/share/ca-certificates",
    "/usr/share/ca-certificates",
    "/var/lib/ca-certificates",
];

const RESOLVER: [&str; 2] = ["/etc/hosts", "/etc/resolv.conf"];

const FILE_VARIABLES: [&str; 2] = ["AWS_WEB_IDENTITY_TOKEN_FILE", "SSL_CERT_FILE"];

const DIRECTORIES_VARIABLE: &str = "SSL_CERT_DIR";

/// Stands in for the architectures whose calls the crate seccompiler does not know.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
mod calls {
    pub(super) fn forbid() -> Result<(), String> {
        lacking().map_or(Ok(()), Err)
    }

    pub(super) fn lacking() -> Option<String> {
        Some(format!("seccomp (there is no filter for {})", std::env::consts::ARCH))
    }
}

static STATE: OnceLock<State> = OnceLock::new();

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum May {
    Read,
    Write,
}

type Identity = (u64, u64);

/// A file or directory that the process may use, opened for a rule of Landlock.
pub struct Opened {
    path: PathBuf,
    fd: PathFd,
    may: May,
    identity: Identity,
    is_directory: bool,
}

/// The restrictions that are in force in a process.
#[derive(Debug)]
pub struct State {
    /// The setting `process.restrict`.
    pub restrict: Restrict,
    /// The version of Landlock in the kernel; `None` if Landlock is not in force.
    pub landlock: Option<i32>,
    /// `true` if the seccomp filter is in force.
    pub seccomp: bool,
    /// The restrictions that the setting asks for but that are not in force, with the reasons.
    pub missing: Option<String>,
    allowed: Vec<(PathBuf, Identity, May)>,
}

impl State {
    fn new(restrict: Restrict) -> Self {
        Self { restrict, landlock: None, seccomp: false, missing: None, allowed: Vec::new() }
    }

    /// Returns `true` if the process may read `path` and, if `is_to_be_written` is `true`, also
    /// write in it. The path need not exist. Also `true` without Landlock, or if the path cannot be
    /// followed.
    pub fn allows(&self, path: &Path, is_to_be_written: bool) -> bool {
        if self.landlock.is_none() {
            return true;
        }
        let Some(real) = existing(path) else { return true };
        let allows = |identity: Identity| {
            let mut allowed = self.allowed.iter();
            allowed.any(|(_, it, may)| *it == identity && (*may == May::Write || !is_to_be_written))
        };
        let identity = |path: &Path| rustix::fs::stat(path).ok().map(|it| (it.st_dev, it.st_ino));
        real.ancestors().filter_map(identity).any(allows)
    }

    /// Logs the restrictions.
    pub fn tell(&self) {
        let (restrict, seccomp) = (self.restrict.name(), self.seccomp);
        if self.restrict == Restrict::Off {
            return tracing::info!(
                restrict,
                "process.restrict is off: the relay runs without a sandbox"
            );
        }
        let paths = |may| {
            let paths = self.allowed.iter().filter(|it| it.2 == may);
            paths.map(|(path, ..)| path.display().to_string()).collect::<Vec<_>>().join(" ")
        };
        let (landlock, read, write) = (self.landlock, paths(May::Read), paths(May::Write));
        match &self.missing {
            None => tracing::info!(
                restrict,
                landlock,
                seccomp,
                read,
                write,
                "the relay runs in a sandbox: Landlock and seccomp refuse what it does not need"
            ),
            Some(missing) => tracing::info!(
                restrict,
                missing,
                landlock,
                seccomp,
                read,
                write,
                "the sandbox of the relay is incomplete: the kernel, the container runtime or the \
                 architecture does not allow all of process.restrict"
            ),
        }
    }
}

/// Returns the real path of `path`, or of its innermost parent that exists; `None` after an error.
fn existing(path: &Path) -> Option<PathBuf> {
    // The target of a symlink may be missing.
    let target = links(path).pop()?;
    let mut existing = target.ancestors().map(Path::canonicalize);
    let is_missing = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    existing.find(|real| !real.as_ref().is_err_and(is_missing))?.ok()
}

/// The restrictions of this process; `None` before [`enforce`], and in commands other than `run`.
pub fn state() -> Option<&'static State> {
    STATE.get()
}

/// Opens the paths that the process may use: the directories around `files` and the paths of the
/// system for reading, and `directories` for writing. Leaves out the root, and each path that
/// cannot be opened. [`Restrict::Off`] opens nothing. Blocks on the disk.
pub fn open(restrict: Restrict, files: &[PathBuf], directories: &[PathBuf]) -> Vec<Opened> {
    if restrict == Restrict::Off {
        return Vec::new();
    }
    let mut wanted = BTreeMap::new();
    let variables = FILE_VARIABLES.iter().filter_map(env::var_os).map(PathBuf::from);
    let of_variables: Vec<_> = variables.collect();
    let listed = env::var_os(DIRECTORIES_VARIABLE).unwrap_or_default();
    let readable = files
        .iter()
        .chain(&of_variables)
        .flat_map(|file| around(file))
        .chain(RESOLVER.iter().flat_map(|file| around_resolver(Path::new(file), restrict)))
        .chain(OF_THE_SYSTEM.iter().map(PathBuf::from))
        .chain(env::split_paths(&listed))
        // The handler of a panic reads the names of functions from the program's file.
        .chain(env::current_exe().ok())
        .map(|path| (path, May::Read));
    for (path, may) in readable.chain(directories.iter().map(|path| (path.clone(), May::Write))) {
        // A rule on the root would allow everything.
        if let Ok(real) = path.canonicalize()
            && real.parent().is_some()
        {
            let known = wanted.entry(real).or_insert(may);
            *known = may.max(*known);
        }
    }
    wanted.into_iter().filter_map(|(path, may)| opened(path, may)).collect()
}

fn opened(path: PathBuf, may: May) -> Option<Opened> {
    let fd = PathFd::new(&path).ok()?;
    let found = rustix::fs::fstat(&fd).ok()?;
    let kind = rustix::fs::FileType::from_raw_mode(found.st_mode);
    let identity = (found.st_dev, found.st_ino);
    Some(Opened { path, fd, may, identity, is_directory: kind.is_dir() })
}

/// Returns the paths that must be readable so that `file` stays readable when it is replaced. There
/// are none if `file` exists and is not a regular file: a pipe, for example, is read only once.
fn around(file: &Path) -> BTreeSet<PathBuf> {
    let mut around = BTreeSet::new();
    if file.metadata().is_ok_and(|found| !found.is_file()) {
        return around;
    }
    for link in links(file) {
        let place = place(link);
        if place.ends_with("..data") {
            around.extend(place.parent().map(Path::to_owned));
        }
        around.insert(place);
    }
    around
}

/// Returns the directory around this path, or the path itself if it is a mount or in the root.
fn place(link: PathBuf) -> PathBuf {
    let is_root = |directory: &&Path| {
        directory.canonicalize().is_ok_and(|directory| directory.parent().is_none())
    };
    match link.parent().filter(|directory| !is_root(directory)) {
        Some(directory) if !is_mount(&link) => directory.to_owned(),
        Some(_) | None => link,
    }
}

/// Returns the paths that must be readable for one of the files in [`RESOLVER`]. The file is
/// usually a mount of its own (in a container), or a symlink out of `/etc`. Otherwise, a program
/// that replaces the file makes a new file in `/etc`, and lookups would fail if only the old file
/// were readable. In that case, all of `/etc` is readable, unless the setting is `required`.
fn around_resolver(file: &Path, restrict: Restrict) -> BTreeSet<PathBuf> {
    let of = |link: PathBuf| match link.parent() == Some(Path::new("/etc")) {
        true if link.is_symlink() => None,
        true if restrict == Restrict::Required => Some(link),
        true | false => Some(place(link)),
    };
    links(file).into_iter().filter_map(of).collect()
}

/// Returns the absolute path of `file` and, if it is a symlink, of each target in turn.
fn links(file: &Path) -> Vec<PathBuf> {
    let mut links: Vec<_> = std::path::absolute(file).into_iter().collect();
    while let Some(last) = links.last()
        && links.len() <= LINKS_MAX
        && let Ok(target) = last.read_link()
    {
        links.push(last.parent().unwrap_or(last).join(target));
    }
    links
}

fn is_mount(path: &Path) -> bool {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    let found = rustix::fs::statx(rustix::fs::CWD, path, flags, StatxFlags::empty());
    found.is_ok_and(|found| found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// Returns the features that this kernel lacks for the setting `required`; `None` if it has all.
pub fn lacking() -> Option<String> {
    let landlock = ruleset().err().map(|_| NO_LANDLOCK.to_owned());
    let seccomp = calls::lacking();
    let all: Vec<_> = landlock.into_iter().chain(seccomp).collect();
    (!all.is_empty()).then(|| all.join(" and "))
}

const NO_LANDLOCK: &str = "Landlock with ABI 3 or newer (Linux 6.2, and `landlock` in the kernel's \
                           list of security modules)";

/// Restricts the calling thread, and the threads that it starts later, to the paths in `opened` and
/// to the calls that are not forbidden. [`Restrict::Off`] restricts nothing. Call this only once.
///
/// # Errors
///
/// The setting is `required`, and a restriction cannot be put in force. The process must then end.
pub fn enforce(restrict: Restrict, opened: Vec<Opened>) -> Result<&'static State, String> {
    let state = match restrict {
        Restrict::Off => State::new(restrict),
        Restrict::Required | Restrict::BestEffort => restrict_thread(restrict, opened),
    };
    match &state.missing {
        Some(missing) if restrict == Restrict::Required => Err(missing.clone()),
        Some(_) | None => Ok(STATE.get_or_init(|| state)),
    }
}

fn restrict_thread(restrict: Restrict, opened: Vec<Opened>) -> State {
    let mut state = State::new(restrict);
    let allowed: Vec<_> = opened.iter().map(|it| (it.path.clone(), it.identity, it.may)).collect();
    let mut missing = Vec::new();
    // A program with the setuid bit gains nothing, also where Landlock and seccomp are missing,
    // which both need this.
    if let Err(error) = rustix::thread::set_no_new_privs(true) {
        missing.push(format!("no_new_privs ({error})"));
    }
    match limit_files(opened) {
        Ok(abi) => (state.landlock, state.allowed) = (Some(abi), allowed),
        Err(error) => missing.push(error),
    }
    match calls::forbid() {
        Ok(()) => state.seccomp = true,
        Err(error) => missing.push(error),
    }
    state.missing = (!missing.is_empty()).then(|| missing.join(" and "));
    state
}

/// Returns a ruleset without rules, under which no file can be opened.
fn ruleset() -> Result<RulesetCreated, RulesetError> {
    Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(LANDLOCK_MIN))?
        // Newer kernels also refuse device ioctls, and signals and abstract sockets to the outside.
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::IoctlDev)?
        .scope(Scope::from_all(ABI::V6))?
        .create()
}

fn limit_files(opened: Vec<Opened>) -> Result<i32, String> {
    let mut ruleset = ruleset().map_err(|_| NO_LANDLOCK.to_owned())?;
    for Opened { path, fd, may, is_directory, .. } in opened {
        let rights = rights(may);
        let rights = if is_directory { rights } else { rights & AccessFs::from_file(LANDLOCK_MIN) };
        let added = ruleset.add_rule(PathBeneath::new(fd, rights));
        ruleset = added.map_err(|error| format!("Landlock for {} ({error})", path.display()))?;
    }
    let status = ruleset.restrict_self().map_err(|error| format!("Landlock ({error})"))?;
    match status.landlock {
        LandlockStatus::Available { effective_abi, kernel_abi } => {
            Ok(kernel_abi.unwrap_or(effective_abi as i32))
        }
        LandlockStatus::NotEnabled | LandlockStatus::NotImplemented => Err(NO_LANDLOCK.to_owned()),
    }
}

fn rights(may: May) -> BitFlags<AccessFs> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let write = AccessFs::WriteFile | AccessFs::Truncate;
    let make = AccessFs::MakeDir | AccessFs::MakeReg;
    let remove = AccessFs::RemoveDir | AccessFs::RemoveFile | AccessFs::Refer;
    match may {
        May::Read => read,
        May::Write => read | write | make | remove,
    }
}

#[cfg(test)]
mod tests;
