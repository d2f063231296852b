//! Notes the requests with which `deploy/connect.sh` tests whether events arrive.
//!
//! The script deletes a ConfigMap that does not exist and whose name ends with 32 random
//! hexadecimal digits. The usual audit policies record this request. A relay whose `/status` lists
//! the digits has therefore accepted an event that kube-apiserver made after the script had begun.
//! Nobody else can know the digits before that.
//!
//! The digits are searched for in every batch, and not in a sample, because the request may be one
//! of thousands. They name nobody, so they need no redaction.

use std::collections::VecDeque;
use std::sync::{LazyLock, Mutex};

use memchr::memmem::Finder;

use base::lock::lock;

/// The maximum number of probes that are kept. The newest ones are kept, so that a sender that
/// invents probes cannot keep out those of the script, which repeats them.
const PROBES_MAX: usize = 16;

/// The number of digits at the end of the name.
const DIGITS: usize = 32;

/// The part of the path before the digits.
static NEEDLE: LazyLock<Finder<'static>> =
    LazyLock::new(|| Finder::new("/configmaps/kube-audit-forwarder-probe-"));

#[derive(Default)]
pub(super) struct Probes(Mutex<VecDeque<Box<str>>>);

impl Probes {
    pub(super) fn keep(&self, probes: Vec<Box<str>>) {
        if probes.is_empty() {
            return;
        }
        let mut kept = lock(&self.0);
        for probe in probes {
            kept.retain(|it| *it != probe);
            kept.push_front(probe);
        }
        kept.truncate(PROBES_MAX);
    }

    /// Returns the digits of the probes, newest first.
    pub(super) fn list(&self) -> Vec<String> {
        lock(&self.0).iter().map(ToString::to_string).collect()
    }
}

/// Adds the digits of the probes in `lines` to `found`.
pub(super) fn find(lines: &[u8], found: &mut Vec<Box<str>>) {
    let is_hex = |it: &&str| it.bytes().all(|it| matches!(it, b'0'..=b'9' | b'a'..=b'f'));
    let digits = NEEDLE.find_iter(lines).filter_map(|at| {
        let start = at + NEEDLE.needle().len();
        let digits = std::str::from_utf8(lines.get(start..start + DIGITS)?).ok();
        digits.filter(is_hex).map(Into::into)
    });
    found.extend(digits.take(PROBES_MAX));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each stage of a request has an event, and only whole digits are a probe.
    #[test]
    fn probes_are_found_and_the_newest_ones_are_kept() {
        let probes = Probes::default();
        let hear = |text: &str| {
            let mut found = Vec::new();
            find(text.as_bytes(), &mut found);
            probes.keep(found);
        };
        let path = "/api/v1/namespaces/ibm-kube-audit/configmaps/kube-audit-forwarder-probe-";
        let event = |digits: &str| format!("{{\"requestURI\":\"{path}{digits}\"}}\n");
        let [first, second] = ["0123456789abcdef", "fedcba9876543210"].map(|it| it.repeat(2));
        hear(&event(&first).repeat(2));
        hear(&(event(&second) + &event(&first)));
        assert_eq!(probes.list(), [first.clone(), second.clone()]);
        let short = "0".repeat(DIGITS - 1);
        for wrong in [&*short, &*first.to_uppercase(), "", "é"] {
            hear(&event(wrong));
        }
        hear(&event(&short).replace("\"}\n", ""));
        assert_eq!(probes.list(), [first, second.clone()]);
        (0..40).for_each(|number| hear(&event(&format!("{number:032x}"))));
        assert_eq!(probes.list().len(), PROBES_MAX);
        hear(&event(&second));
        assert_eq!(probes.list()[0], second);
    }
}
