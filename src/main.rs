//! The binary: it chooses the allocator and returns the exit code of the library's `cli::main`.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    kube_audit_forwarder::cli::main()
}
