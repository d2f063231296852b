//! The processor's cycle counter (rdtsc), which some crates read as a clock. The kernel makes the
//! instruction fail, and the signal handler returns the simulated time instead.
#![allow(unsafe_code, reason = "a function for a signal; the proofs are beside the code")]

#[cfg(target_arch = "x86_64")]
pub(super) fn simulate() {
    // SAFETY: the handler has the type that SA_SIGINFO requires. All fields of the struct may be
    // zero. No argument of prctl is an address.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = failed as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
        libc::sigaction(libc::SIGSEGV, &raw const action, std::ptr::null_mut());
        libc::prctl(libc::PR_SET_TSC, libc::PR_TSC_SIGSEGV);
    }
}

/// Reads the counter in place of the failed instruction. Any other failure ends the program.
#[cfg(target_arch = "x86_64")]
unsafe extern "C" fn failed(_: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    const FAULT: &[u8] = b"a segmentation fault\n";
    let at = |register: i32| register.unsigned_abs() as usize;
    // SAFETY: the kernel passes the thread's registers, and its instructions can be read.
    unsafe {
        let registers = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        let instruction = registers[at(libc::REG_RIP)] as *const [u8; 3];
        let length = match instruction.read_unaligned() {
            [0x0f, 0x31, _] => 2,
            [0x0f, 0x01, 0xf9] => 3,
            _ => {
                super::raw::write(2, FAULT);
                super::raw::exit(4);
            }
        };
        let time = super::baton::try_with(|kernel| {
            kernel.now += 20;
            kernel.clock(libc::CLOCK_MONOTONIC)
        });
        let time = time.unwrap_or(0);
        registers[at(libc::REG_RAX)] = (time & 0xffff_ffff).cast_signed();
        registers[at(libc::REG_RDX)] = (time >> 32).cast_signed();
        if length == 3 {
            registers[at(libc::REG_RCX)] = 0;
        }
        registers[at(libc::REG_RIP)] += length;
    }
}

#[cfg(not(target_arch = "x86_64"))]
pub(super) fn simulate() {}
