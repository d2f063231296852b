//! `type = "tcp"`: each event as a line of JSON on a TCP connection. Logstash's `tcp` input with
//! the codec `json_lines` reads such lines. The consumer acknowledges nothing.

use std::time::Duration;

use super::json_lines::LineFormat;
use super::setup::{IntoConnector, Setup};
use super::transport::stream;
use config::{OutputSettings, Stream, Target};
use config_table::table::Table;
use delivery::prepared::Connector;

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Settings {
    pub format: LineFormat,
    /// The time that must pass without a reset after the peer's kernel has acknowledged bytes,
    /// until the bytes count as delivered. After an earlier reset, the bytes are sent again.
    pub replay_window: Duration,
    pub stream: Stream,
}

impl OutputSettings for Settings {
    const TYPE: &'static str = "tcp";
    const SAMPLE: &'static str = "tls = {}";
    const MEMORY: u64 = 0;

    fn read(t: &mut Table<'_, '_>) -> Option<Self> {
        let format = LineFormat::read(t);
        let replay_window = Stream::read_replay_window(t);
        let stream = Stream::read(t);
        Some(Self { format: format?, replay_window, stream: stream? })
    }

    fn targets(&self) -> Vec<Target> {
        self.stream.targets()
    }

    fn final_after(&self) -> Option<(&'static str, Duration)> {
        Some(("replay_window", self.replay_window))
    }

    fn carries_checkpoints(&self) -> bool {
        true
    }
}

impl IntoConnector for Settings {
    fn connector(&self, setup: &Setup<'_>) -> Box<dyn Connector> {
        let dialer = setup.dialer(&self.stream);
        Box::new(stream::StreamConnector::new(dialer, self.format, self.replay_window))
    }
}
