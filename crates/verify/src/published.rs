//! The check of a log on a server. The server may belong to an attacker, so the signature, the size
//! and the root are checked first, in this order, and only then the entries.

use std::io;

use super::compare::read_again;
use super::events::Events;
use super::log::Check;
use super::report::Report;
use super::request::Request;
use evidence_log::reader::{Files, Log, ReadError};
use evidence_log::tlog::merkle::root_at;

/// The maximum number of entries that a log can have: 300 a second for a hundred years. The entries
/// of a longer log are not read.
const ENTRIES_MAX: u64 = 1 << 40;

/// Checks a log of which only the published files can be read, for example over HTTP. `files` must
/// return the same checkpoint each time.
///
/// # Errors
///
/// The checkpoint can't be read, or there is no connection. Other faults are in the report.
pub fn published(files: &dyn Files, request: &Request) -> io::Result<Report> {
    match Log::open(files) {
        Ok(log) => {
            if let Some(report) = refused(&log, request)? {
                return Ok(report);
            }
        }
        // The check itself reports what is wrong with the checkpoint.
        Err(ReadError::NoCheckpoint | ReadError::Checkpoint(_)) => {}
        Err(ReadError::File { error, .. }) => return Err(error),
    }
    let (mut check, mut events) = (Check::new(request, None, true), Events::of(None));
    if let Some(log) = check.log(files, &mut events) {
        check.given(&log, &[]);
        read_again(&mut check, &mut events, &log, None)?;
        check.judge(&mut events);
    }
    check.report.faults.add_times(|position| events.time_of(position));
    Ok(check.report)
}

/// Returns the report about a log whose entries are not worth reading. `None` if the checkpoint is
/// signed and matches the last tiles.
fn refused(log: &Log<'_>, request: &Request) -> io::Result<Option<Report>> {
    let head = log.head();
    let text = if let Err(why) = request.signed_by_key("checkpoint", &log.signed) {
        why
    } else if head.size > ENTRIES_MAX {
        format!("checkpoint covers {} entries, which no relay can write", head.size)
    } else {
        match root_at(&log.nodes(), head.size) {
            Ok(root) if root == head.root => return Ok(None),
            Ok(_) => "the tiles are not those that the checkpoint was signed over".to_owned(),
            Err(error) if error.kind() == io::ErrorKind::NotConnected => return Err(error),
            Err(error) => error.to_string(),
        }
    };
    let mut report = Report::default();
    report.counts.checkpoints.all = 1;
    report.faults.add(None, text);
    report.unchecked.push("the entries of the log: nothing was read but its checkpoint".to_owned());
    Ok(Some(report))
}
