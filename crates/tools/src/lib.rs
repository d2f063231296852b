//! What an operator runs beside a relay: recorded events are sent again (`replay`), a config of
//! HAProxy becomes one of the relay (`migrate haproxy`), recorded events are counted under a policy
//! (`policy cost`), and the state of a running relay is drawn on a terminal (`top`).
//!
//! No module here imports another one, and a relay imports none of them.

pub mod cost;
pub mod haproxy;
pub mod replay;
pub mod top;
