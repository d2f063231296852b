//! Gathers the input of an advice: the bytes of each user's requests for each resource or path, and
//! the bytes of the bodies of events.
//!
//! A *cell* is one user's reads of one resource or path, or those writes of one component of the
//! cluster that an advice may drop. The kubelets, which are the group `system:nodes`, count as one
//! user. A cell with at least one request above the [floor] is kept: no advice drops any of it.
//!
//! The number of cells is limited. Events of cells beyond the limit are never dropped.

use std::collections::BTreeMap;

use percent_encoding::percent_decode;

use super::{Sum, bytes_after, each, floor, sent_bytes};
use audit::request::Request;
use base::words::escape;
use transform::policy::Level;

/// The maximum number of cells. They take at most 40 MiB, and usually 1 MiB.
const CELLS_MAX: usize = 20_000;

/// The maximum bytes of a name or path in a rule.
const TEXT_BYTES_MAX: usize = 512;

/// The group of all kubelets.
pub(super) const NODES: &str = "system:nodes";

/// The prefix of the names of kubelets and of their group. No rule names a user with this prefix.
const NODE: &[u8] = b"system:node";

/// The user, the verbs and the resource or path of a cell.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Cause {
    /// The name of the user, or [`NODES`].
    pub(super) who: String,
    /// The verbs, as [`floor::verbs`] returns them.
    pub(super) verbs: &'static [&'static str],
    /// The API group of a resource. `None` for a path.
    pub(super) group: Option<String>,
    /// The resource with its subresource, as in `pods/log`, or the path.
    pub(super) what: String,
}

/// The requests of one cause.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Cell {
    /// `true`: at least one request is above the floor, so none of them may be dropped.
    pub(super) is_kept: bool,
    pub(super) events: u64,
    /// The bytes of the requests, as recorded and at the level Metadata.
    pub(super) bytes: [u64; 2],
}

/// The counts of many events, from which an advice is made.
#[derive(Default)]
pub struct Survey {
    /// All events, as recorded.
    pub total: Sum,
    pub(super) cells: BTreeMap<Cause, Cell>,
    /// The bytes that lowering to Metadata removes from events about [`floor::SECRET_KINDS`], from
    /// other reads, and from all other events.
    pub(super) bodies: [u64; 3],
    /// The highest level of an event.
    pub(super) top: Option<Level>,
    /// `true`: an event [shows](floor::shows_openshift) that the cluster is OpenShift.
    pub(super) is_openshift: bool,
}

impl Survey {
    /// Counts events: JSON lines that [`audit`] has found valid.
    pub fn add(&mut self, lines: &[u8]) {
        each(lines, |event, request| self.event(event, request));
    }

    fn event(&mut self, event: &[u8], request: &Request<'_>) {
        let lowered = bytes_after(event, request, Level::Metadata, false);
        let bytes = sent_bytes(event);
        self.total.count(bytes);
        self.top = self.top.max(Level::of(&request.level).or(Some(Level::RequestResponse)));
        let verbs = floor::verbs(request);
        let is_read = verbs == Some(&floor::READS);
        self.is_openshift = self.is_openshift || floor::shows_openshift(event, request);
        let object = request.object.as_ref();
        let is_secret = object.is_some_and(|object| {
            floor::SECRET_KINDS.iter().any(|of| of.matches(object, |_| true))
        });
        let kind = if is_secret { 0 } else { 2 - usize::from(is_read) };
        self.bodies[kind] += bytes.saturating_sub(lowered) as u64;
        let (Some(user), Some(verbs)) = (request.user.as_ref(), verbs) else { return };
        let is_kept = floor::is_above(event, request);
        let is_node = user.groups.iter().any(|group| **group == *NODES.as_bytes());
        // A rule that names a member of the group of nodes would match requests that count for the
        // group.
        let own = !user.name.starts_with(NODE) && (is_read || floor::is_component(&user.name));
        let own = own.then_some((&*user.name, is_kept || is_node));
        // Kubelets delete objects only by name, so a member of their group that deletes a
        // collection counts as a person.
        let is_kubelet = user.name.starts_with(floor::KUBELET) && *verbs != ["deletecollection"];
        let of_nodes = (NODES.as_bytes(), is_kept || !is_read && !is_kubelet);
        for (who, is_kept) in own.into_iter().chain(is_node.then_some(of_nodes)) {
            let Some(cause) = cause(request, who, verbs) else { continue };
            if self.cells.len() >= CELLS_MAX && !self.cells.contains_key(&cause) {
                continue;
            }
            let cell = self.cells.entry(cause).or_default();
            cell.is_kept |= is_kept;
            cell.events += 1;
            cell.bytes = [cell.bytes[0] + bytes as u64, cell.bytes[1] + lowered as u64];
        }
    }
}

/// Returns the cause of a request of this user or group. `None` if no rule can name it.
fn cause(request: &Request<'_>, who: &[u8], verbs: &'static [&'static str]) -> Option<Cause> {
    let who = usable(who).filter(|who| !who.is_empty())?;
    let Some(object) = &request.object else {
        let path: Vec<u8> = percent_decode(&request.uri.path()).collect();
        return Some(Cause { who, verbs, group: None, what: usable(&path)? });
    };
    let part = |text| usable(text).filter(|text| !text.contains('/'));
    let (mut what, sub) = (part(&object.resource)?, part(&object.subresource)?);
    if !sub.is_empty() {
        what = format!("{what}/{sub}");
    }
    Some(Cause { who, verbs, group: Some(part(&object.group)?), what })
}

/// Returns a text that a rule can name literally. `None` if it is too long, or has `*` or a
/// character that is not plain.
fn usable(text: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(text).ok().filter(|text| text.len() <= TEXT_BYTES_MAX)?;
    text.chars().all(|char| char != '*' && escape::is_plain(char)).then(|| text.to_owned())
}
