//! Gathers what an advice is made from: how many bytes each user's reads of each kind of object, or
//! of each path, take, and how many bytes the bodies of events take.
//!
//! A *cell* is one user with one kind of object, or with one path. The kubelets, which are the
//! group `system:nodes`, count as one user. A cell of which a read is above the [floor] is kept: no
//! advice drops anything of it.
//!
//! The number of cells is limited. Events of cells that come after the limit are never dropped.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use percent_encoding::percent_decode;

use super::Sum;
use super::bytes_after;
use super::floor;
use crate::audit::request::Reader;
use crate::audit::request::Request;
use crate::policy::Decision;
use crate::policy::GroupResources;
use crate::policy::Level;
use crate::words::escape;

/// The greatest number of cells. They take at most 40 MiB, and usually 1 MiB.
const CELLS_MAX: usize = 20_000;

/// The greatest number of bytes of a name or path in a rule.
const TEXT_BYTES_MAX: usize = 512;

/// The group of all kubelets.
pub(super) const NODES: &str = "system:nodes";

/// One user, and what the user reads.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Cause {
    /// The name of the user, or [`NODES`].
    pub(super) who: String,
    /// The API group of a kind of object; `None` for a path.
    pub(super) group: Option<String>,
    /// The resource with its subresource, as in `pods/log`, or the path.
    pub(super) what: String,
}

/// The reads of one cause.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Cell {
    /// `true`: at least one read is above the floor, so none of them may be dropped.
    pub(super) is_kept: bool,
    /// All reads, as they were recorded.
    pub(super) whole: Sum,
    /// The bytes of these reads at the level Metadata.
    pub(super) lowered: u64,
}

/// The sums of many events, from which an advice is made.
pub struct Survey {
    /// All events, as they were recorded.
    pub total: Sum,
    pub(super) cells: BTreeMap<Cause, Cell>,
    /// The names of members of [`NODES`], at most [`CELLS_MAX`]. They get no rule of their own: it
    /// would also match what counts for the group.
    pub(super) nodes: BTreeSet<String>,
    /// The bytes that leave events when they are lowered to Metadata: events about
    /// [`floor::secret_kinds`], other reads, and all other events.
    pub(super) bodies: [u64; 3],
    pub(super) secret: Vec<GroupResources>,
    /// The highest level of an event.
    pub(super) top: Level,
    buffer: Vec<u8>,
}

impl Default for Survey {
    fn default() -> Self {
        let (total, cells, nodes, buffer) = Default::default();
        let secret = floor::secret_kinds();
        Self { total, cells, nodes, bodies: [0; 3], secret, top: Level::Metadata, buffer }
    }
}

impl Survey {
    /// Counts events, which are JSON lines that [`audit`] has found valid.
    pub fn add(&mut self, lines: &[u8]) {
        let mut reader = Reader::new(lines);
        while let Some(event) = reader.advance() {
            self.event(event, reader.request());
        }
    }

    fn event(&mut self, event: &[u8], request: &Request<'_>) {
        let (level, omit_stage, omit_managed_fields) = (Level::Metadata, false, false);
        let metadata = Decision { rule: None, level, omit_stage, omit_managed_fields };
        let lowered = bytes_after(metadata, event, request, &mut self.buffer);
        let lowered = lowered.unwrap_or(event.len());
        self.total.count(event.len());
        self.top = self.top.max(Level::of(&request.level).unwrap_or(Level::RequestResponse));
        let is_read = floor::is_read(request);
        let is_secret = request
            .object
            .as_ref()
            .is_some_and(|object| self.secret.iter().any(|of| of.matches(object, |_| true)));
        let kind = if is_secret { 0 } else { 2 - usize::from(is_read) };
        self.bodies[kind] += event.len().saturating_sub(lowered) as u64;
        let Some(user) = request.user.as_ref().filter(|_| is_read) else { return };
        let is_kept = floor::is_above(event, request);
        let is_node = user.groups.iter().any(|group| **group == *NODES.as_bytes());
        if is_node && self.nodes.len() < CELLS_MAX {
            self.nodes.extend(usable(&user.name));
        }
        // A rule for a kubelet's name would match the event too. There may be more kubelets than
        // are noted, so what is kept is noted for both. A user who has the name of the group cannot
        // be told from it.
        let own = (!is_node || is_kept) && *user.name != *NODES.as_bytes();
        for name in [is_node.then_some(NODES.as_bytes()), own.then_some(&*user.name)] {
            let Some(cause) = name.and_then(|name| cause(request, name)) else { continue };
            if self.cells.len() >= CELLS_MAX && !self.cells.contains_key(&cause) {
                continue;
            }
            let cell = self.cells.entry(cause).or_default();
            cell.is_kept |= is_kept;
            cell.whole.count(event.len());
            cell.lowered += lowered as u64;
        }
    }
}

/// Returns the cause of a request of this user or group; `None` if no rule can name it.
fn cause(request: &Request<'_>, who: &[u8]) -> Option<Cause> {
    let who = usable(who).filter(|who| !who.is_empty())?;
    let Some(object) = &request.object else {
        let path: Vec<u8> = percent_decode(&request.uri.path()).collect();
        return Some(Cause { who, group: None, what: usable(&path)? });
    };
    let part = |text| usable(text).filter(|text| !text.contains('/'));
    let (mut what, sub) = (part(&object.resource)?, part(&object.subresource)?);
    if !sub.is_empty() {
        what = format!("{what}/{sub}");
    }
    Some(Cause { who, group: Some(part(&object.group)?), what })
}

/// Returns a text that a rule can name as it is; `None` if it is too long, has `*`, or has
/// characters that are not plain.
fn usable(text: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(text).ok().filter(|text| text.len() <= TEXT_BYTES_MAX)?;
    text.chars().all(|char| char != '*' && escape::is_plain(char)).then(|| text.to_owned())
}
