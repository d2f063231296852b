//! Asks the witnesses of a log for their newest checkpoint, for `evidence verify`.

use std::collections::BTreeSet;
use std::time::Duration;

use clap::Args;

use super::published::Published;
use super::told;
use crate::cli::WRONG;
use crate::cli::healthcheck::{Credentials, shown};
use client::ask::Target;
use evidence_log::tlog::key::{Kind, VerifierKey};
use verify::Request;

#[derive(Args)]
pub(super) struct Witnesses {
    /// The verifier key of a witness that must have signed too; may be repeated
    #[arg(long, value_name = "VKEY")]
    pub(super) witness: Vec<String>,
    /// The URL at which a witness serves the newest checkpoint that it has cosigned (its monitoring
    /// prefix in C2SP tlog-witness): the log must contain it. --ca can name its CA; may be repeated
    #[arg(long, value_name = "URL", requires = "witness", conflicts_with = "proof")]
    witness_url: Vec<String>,
    /// The newest cosignature of each witness must be at most this old, such as 1h
    #[arg(long, value_name = "DURATION", requires = "witness", conflicts_with = "proof",
          value_parser = config::time)]
    pub(super) witness_max_age: Option<Duration>,
}

/// Asks each witness for its newest checkpoint of each log whose key is in the request, and adds
/// the checkpoints to the request. For each checkpoint that is missing, returns a text with the
/// reason: the witness has none, or the request to the witness has failed. `Err` is the exit status
/// if a URL is wrong, the CA of `credentials` can't be read, or the runtime cannot start.
pub(super) fn ask(
    witnesses: &Witnesses,
    credentials: &Credentials,
    request: &mut Request,
) -> Result<Vec<String>, u8> {
    let logs = request.keys.iter().filter(|key| key.kind() == Kind::Note);
    let origins: BTreeSet<_> = logs.map(VerifierKey::name).map(str::to_owned).collect();
    let mut unasked = Vec::new();
    for url in &witnesses.witness_url {
        for origin in &origins {
            let wrong = |why| told(WRONG, format!("--witness-url {}: {why}", shown(url)));
            let target = credentials.with_ca(Target::new(url).map_err(wrong)?)?;
            let place = Published::at_witness(target, origin).map_err(wrong)?;
            match place.checkpoint() {
                Ok(Some(note)) => request.witnessed.push((url.clone(), note)),
                Ok(None) => unasked.push(format!(
                    "the witness at {url} has no checkpoint of {origin}: it has never cosigned one"
                )),
                Err(error) => {
                    unasked.push(format!("the newest checkpoint of a witness: {error}"));
                }
            }
        }
    }
    Ok(unasked)
}
