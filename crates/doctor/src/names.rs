//! Finds names that lead to the same process, so that the process counts once. The host, the start
//! and the addresses in `/status` identify a relay; the numbers identify a kube-apiserver.

use super::counts::{ApiserverCounts, Clock, Relay};
use super::judge::{Cause, Findings, Kind, Part};
use super::sample::Sampled;

/// If several relays, or several kube-apiservers, are the same process, keeps only one of them.
pub fn once_each(mut findings: Findings) -> Findings {
    let Findings { relays, apiservers, checks, .. } = &mut findings;
    once("relay", Part::Relay, relays, is_same_relay, checks);
    once("kube-apiserver", Part::Apiserver, apiservers, has_same_numbers, checks);
    findings
}

/// Returns `true` if two states are of the same process. Two processes on one host can't listen on
/// the same address.
fn is_same_relay(a: &Sampled<Relay>, b: &Sampled<Relay>) -> bool {
    let of = |it: &Sampled<Relay>| {
        let status = &it.counts.as_ref()?.status;
        let listeners: Vec<_> = status.listeners.iter().map(|it| it.address.clone()).collect();
        let start = status.process.start_time_seconds.to_bits();
        Some((status.process.host.clone(), start, listeners))
    };
    let (a, b) = (of(a), of(b));
    a.is_some() && a == b
}

/// Returns `true` if two processes have the same start and all their numbers are equal. `false`
/// proves nothing, because numbers may change between two requests.
fn has_same_numbers(a: &Sampled<ApiserverCounts>, b: &Sampled<ApiserverCounts>) -> bool {
    let without_clock = |it: &Sampled<ApiserverCounts>| {
        let counts = it.counts.clone()?;
        Some(ApiserverCounts { clock: Clock::default(), ..counts })
    };
    let (a, b) = (without_clock(a), without_clock(b));
    a.is_some() && a == b
}

/// Keeps one of the entries about the same process, and reports the names of the others.
fn once<C>(
    what: &str,
    part: Part,
    all: &mut Vec<Sampled<C>>,
    is_same: impl Fn(&Sampled<C>, &Sampled<C>) -> bool,
    causes: &mut Vec<Cause>,
) {
    let mut kept: Vec<Sampled<C>> = Vec::new();
    for sampled in all.drain(..) {
        let is_read = sampled.fault.is_none();
        match kept.iter().find(|it| is_read && it.fault.is_none() && is_same(it, &sampled)) {
            Some(first) => {
                let place = format!("{what} {}", sampled.source);
                let what = format!("is the same process as {}, and counts once", first.source);
                let advice = "Name each process once, and make sure that none is missing";
                causes.push(Cause::new(Kind::Warning, place, what, advice).about(part));
            }
            None => kept.push(sampled),
        }
    }
    *all = kept;
}
