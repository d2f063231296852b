//! The limit of open files, which senders' connections share with everything else.

use config::Config;

/// The number of open files that a relay needs besides those of its senders' connections, outputs
/// and sources: 64 connections of the admin address, taps, sockets, and files.
const OWN_FILES: u64 = 128;

/// The number of open files that `admin.probe_address` needs: its 64 connections.
const FILES_OF_PROBES: u64 = 64;

/// The number of open files of an output or a source: its connections, and the files that it reads.
const FILES_OF_PART: u64 = 16;

/// Lowers `limits.max_connections` if the limit of open files is too low for this number of
/// connections and for everything else. At least half of the limit stays for connections. Without
/// this function, senders' connections could take the descriptors that probes, deliveries and a
/// reload need.
pub(crate) fn fit(config: &mut Config) {
    let room = room(config);
    let configured = config.limits.max_connections;
    if configured > room {
        tracing::warn!(
            open_files = process::open_files_max(),
            configured,
            max_connections = room,
            "the limit of open files is too low, so limits.max_connections is lowered: raise the \
             limit (LimitNOFILE of systemd, or that of the container runtime)"
        );
        config.limits.max_connections = room;
    }
}

/// Returns `true` if [`fit`] makes `used` of the config that is `written` in the file.
pub(crate) fn is_fitted(used: &Config, written: &Config) -> bool {
    let mut fitted = written.clone();
    fitted.limits.max_connections = fitted.limits.max_connections.min(room(written));
    fitted == *used
}

/// Returns the number of connections that have room in the limit of open files.
fn room(config: &Config) -> usize {
    let max = process::open_files_max();
    let parts = config.outputs.len() + config.sources.len();
    let probes = config.admin.probe_address.map_or(0, |_| FILES_OF_PROBES);
    let others = (OWN_FILES + probes + FILES_OF_PART * parts as u64).min(max / 2);
    usize::try_from(max - others).unwrap_or(usize::MAX)
}
