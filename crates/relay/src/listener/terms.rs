//! The state that all requests share, and the state that the requests of one connection share.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::buffer::Pool;
use super::connection::Connection;
use super::in_flight::InFlight;
use super::policy::Policy;
use super::repeats::Repeats;
use super::settings::Settings;
use delivery::DeadLetters;
use queue::Queue;
use transform::volume::Volume;

/// The maximum number of KiB of bodies that are decoded at the same time on threads for blocking
/// work. The limit bounds the memory for the positions of the events, which is half of a body's
/// size if nearly all events are as small as possible. A body that is larger than the limit is
/// decoded alone.
pub(super) const DECODING_KIB: u32 = 16 * 1024;

pub(super) struct Shared {
    pub(super) queue: Queue,
    pub(super) in_flight: Arc<InFlight>,
    pub(super) volume: Arc<Volume>,
    pub(super) pool: Arc<Pool>,
    pub(super) repeats: Arc<Repeats>,
    /// Keeps the items of bodies that are not audit events.
    pub(super) dead_letters: DeadLetters,
    /// The permits for decoding bodies at the same time, one for each KiB.
    pub(super) decoding: Arc<Semaphore>,
    pub(super) policy: ArcSwap<Policy>,
    /// Cancelled at the beginning of the drain. New requests are then refused.
    pub(super) closing: CancellationToken,
    /// Cancelled in the middle of the drain. Requests in progress are then refused.
    pub(super) cut: CancellationToken,
}

/// The terms of one connection, which all of its requests share. A request keeps them even if its
/// connection ends.
pub(super) struct Terms {
    pub(super) shared: Arc<Shared>,
    pub(super) connection: Arc<Connection>,
    /// The settings of the listener, which a reload replaces.
    pub(super) settings: Arc<ArcSwap<Settings>>,
    /// Cancelled when this listener is closed, or when the drain closes all listeners.
    pub(super) closing: CancellationToken,
    /// Cancelled when a reload has changed which clients may connect: the connection must end.
    pub(super) revoked: CancellationToken,
    /// The age at which the connection must end; `None` if a connection of any age may stay.
    pub(super) max_age: Option<Duration>,
}
