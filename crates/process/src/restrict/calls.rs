//! The system calls that seccomp refuses.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::ops::RangeInclusive;

use rustix::thread::secure_computing_mode;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as ArgLen, SeccompCmpOp as CmpOp, SeccompCondition,
    SeccompFilter, SeccompRule,
};

pub(super) const FORBIDDEN: [libc::c_long; 65] = [
    // Other programs, and other processes.
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_kcmp,
    libc::SYS_pidfd_getfd,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    // File systems, and other views of them.
    libc::SYS_chroot,
    libc::SYS_fanotify_init,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    OPEN_TREE_ATTR,
    libc::SYS_pivot_root,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_setns,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_umount2,
    libc::SYS_unshare,
    // The kernel's own code, large interfaces to it, its keys, and the settings of the machine.
    libc::SYS_bpf,
    libc::SYS_delete_module,
    libc::SYS_finit_module,
    libc::SYS_init_module,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    KEXEC_FILE_LOAD,
    libc::SYS_kexec_load,
    libc::SYS_lookup_dcookie,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_add_key,
    libc::SYS_keyctl,
    libc::SYS_request_key,
    libc::SYS_acct,
    libc::SYS_adjtimex,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_personality,
    libc::SYS_reboot,
    libc::SYS_setdomainname,
    libc::SYS_sethostname,
    libc::SYS_settimeofday,
    libc::SYS_syslog,
    // Changes of metadata, which Landlock does not protect.
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_fremovexattr,
    libc::SYS_fsetxattr,
    libc::SYS_lremovexattr,
    libc::SYS_lsetxattr,
    libc::SYS_removexattr,
    libc::SYS_setxattr,
    libc::SYS_utimensat,
    FCHMODAT2,
    FILE_SETATTR,
];

// The numbers of calls that the crate libc lacks on some targets. Each number is the same on every
// architecture. `XATTRAT` is setxattrat(2) to removexattrat(2).
const FCHMODAT2: libc::c_long = 452;
const OPEN_TREE_ATTR: libc::c_long = 467;
const FILE_SETATTR: libc::c_long = 469;
pub(super) const XATTRAT: RangeInclusive<libc::c_long> = 463..=466;

/// The flags of clone(2) that make a namespace: CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER,
/// NEWPID, NEWNET. unshare(2) alone makes a time namespace.
pub(super) const NAMESPACES: [u64; 7] =
    [0x0002_0000, 0x0200_0000, 0x0400_0000, 0x0800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000];

const KEXEC_FILE_LOAD: libc::c_long = if cfg!(target_arch = "x86_64") { 320 } else { 294 };

/// The numbers of calls that x86-64 has and newer architectures lack: modify_ldt(2), iopl(2),
/// ioperm(2), chmod(2), chown(2), lchown(2), utime(2), utimes(2), futimesat(2).
pub(super) const FORBIDDEN_ON_X86_64: [libc::c_long; 9] =
    [154, 172, 173, 90, 92, 94, 132, 235, 261];

/// ioctl(2) commands that change attributes and need no right to write: FS_IOC_SETFLAGS,
/// FS_IOC32_SETFLAGS, FS_IOC_SETVERSION, FS_IOC_FSSETXATTR, FS_IOC_ENABLE_VERITY,
/// FS_IOC_SET_ENCRYPTION_POLICY.
const FORBIDDEN_COMMANDS: [u64; 6] =
    [0x4008_6602, 0x4004_6602, 0x4008_7602, 0x401c_5820, 0x4080_6685, 0x800c_6613];

/// The bit that marks x32 calls on x86-64. It gives each forbidden call a second number.
pub(super) const X32: libc::c_long = 0x4000_0000;

/// The numbers that only the x32 ABI has: another execve(2), ptrace(2) and so on.
const X32_NUMBERS: RangeInclusive<libc::c_long> = 512..=547;

/// Refuses the calls to the calling thread, and to the threads that it starts later. The error says
/// what is missing.
pub(super) fn forbid() -> Result<(), String> {
    filter().map_err(|error| format!("seccomp ({error})"))
}

/// Returns what this kernel lacks for [`forbid`]; `None` if it has all.
pub(super) fn lacking() -> Option<String> {
    secure_computing_mode().err().map(|error| format!("seccomp ({error})"))
}

fn filter() -> Result<(), seccompiler::Error> {
    // A call without rules is always refused. A call of another architecture ends the process.
    let mut calls: BTreeMap<_, _> =
        forbidden().into_iter().map(|number| (number, Vec::new())).collect();
    let is = |argument, comparison, value| {
        SeccompCondition::new(argument, ArgLen::Dword, comparison, value)
            .and_then(|condition| SeccompRule::new(vec![condition]))
    };
    for command in FORBIDDEN_COMMANDS {
        calls.entry(libc::SYS_ioctl).or_default().push(is(1, CmpOp::Eq, command)?);
    }
    for number in of_all_abis(libc::SYS_clone) {
        let flags = NAMESPACES.map(|flag| is(0, CmpOp::MaskedEq(flag), flag));
        calls.insert(number, flags.into_iter().collect::<Result<_, _>>()?);
    }
    let unknown = of_all_abis(libc::SYS_clone3).map(|number| (number, Vec::new())).collect();
    for (calls, errno) in [(calls, libc::EPERM), (unknown, libc::ENOSYS)] {
        let refuse = SeccompAction::Errno(errno.unsigned_abs());
        let arch = env::consts::ARCH.try_into()?;
        let rules = SeccompFilter::new(calls, SeccompAction::Allow, refuse, arch)?;
        seccompiler::apply_filter(&BpfProgram::try_from(rules)?)?;
    }
    Ok(())
}

/// Returns the numbers of a call that is the same in the x32 ABI.
fn of_all_abis(number: libc::c_long) -> impl Iterator<Item = libc::c_long> {
    [Some(number), cfg!(target_arch = "x86_64").then_some(number | X32)].into_iter().flatten()
}

pub(super) fn forbidden() -> BTreeSet<i64> {
    let mut numbers: BTreeSet<_> = FORBIDDEN.into_iter().chain(XATTRAT).collect();
    if cfg!(target_arch = "x86_64") {
        numbers.extend(FORBIDDEN_ON_X86_64);
        numbers.extend(X32_NUMBERS);
        let as_x32: Vec<_> = numbers.iter().map(|number| number | X32).collect();
        numbers.extend(as_x32);
    }
    numbers
}
