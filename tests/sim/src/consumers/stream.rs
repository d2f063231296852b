//! Consumers of lines and of syslog frames over TCP, which acknowledge nothing.
//!
//! A consumer keeps each complete event that it has read. Bytes in its kernel are lost if a
//! connection ends with RST. So unless it is paused, no byte stays in its kernel for as long as the
//! output's `replay_window`.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::weather::Weather;
use super::{Made, Making, Promise, Stand, lock};
use crate::events::{Serial, identify_all};
use crate::kernel;
use crate::support::server::{Options, Server};
use crate::support::tcp_sink::{Framing, Next, TcpSink};

impl Stand for TcpSink {
    fn servers(&mut self) -> Vec<&mut Server> {
        vec![self]
    }

    fn cut(&mut self, bytes: Option<u64>) {
        self.cut_each_after(bytes);
    }
}

/// The shortest time between two rests, in which the consumer reads everything.
const BETWEEN_RESTS: Duration = Duration::from_secs(1);

/// The time between the end of the `replay_window` and the moment at which the relay counts an
/// event as delivered.
const NOTICES: Duration = Duration::from_millis(200);

/// The receive buffer, in bytes. It is small enough to be read soon after a rest.
const RECEIVE_BUFFER: usize = 64 * 1024;

pub(super) fn tcp(making: &mut Making<'_>) -> Made {
    start(making, Framing::Lines, "type = \"tcp\"\n", |line| line.to_vec())
}

pub(super) fn syslog(making: &mut Making<'_>) -> Made {
    match making.rng.bool() {
        true => start(making, Framing::OctetCounting, "type = \"syslog\"\n", event_of),
        false => {
            let keys = "type = \"syslog\"\nframing = \"newline\"\n";
            start(making, Framing::Lines, keys, event_of)
        }
    }
}

fn start(
    making: &mut Making<'_>,
    framing: Framing,
    keys: &str,
    event_of: fn(&[u8]) -> Vec<u8>,
) -> Made {
    let weather = Mutex::new(Weather::new(making.rng(), |rng| match rng.u32(..3) {
        0 => Next::End,
        _ => Next::Rest(Duration::from_millis(rng.u64(..500))),
    }));
    let recent = Mutex::new(Vec::<(Duration, usize, Vec<Serial>)>::new());
    let (ledger, may_rest) = (Arc::clone(&making.ledger), Mutex::new(Duration::ZERO));
    let options = Options { receive_buffer: Some(RECEIVE_BUFFER), ..making.options() };
    let window = [1500, 3000][making.rng.usize(..2)];
    let unknown = Duration::from_millis(window) + NOTICES;
    let sink = TcpSink::scripted(framing, options, move |connection, messages| {
        let is_refused = |message: &Vec<u8>| ledger.turns_away(&identify_all(message)).is_some();
        let taken = messages.iter().position(is_refused).unwrap_or(messages.len());
        // If the connection ends, the relay does not know that these were received.
        let events = messages.iter().flat_map(|message| identify_all(message)).collect();
        let mut recent = lock(&recent);
        recent.push((kernel::now(), connection, events));
        let is_unknown = |at: Duration| at + unknown >= kernel::now();
        recent.retain(|(at, of, _)| *of == connection && is_unknown(*at));
        let ends = |recent: &mut Vec<(_, _, Vec<Serial>)>| {
            let events = recent.drain(..).flat_map(|(.., events)| events).collect();
            ledger.turns_down(events, None, (false, false), Duration::ZERO);
        };
        let (messages, refused) = messages.split_at(taken);
        ledger.add(connection, messages.iter().map(|message| event_of(message)));
        if !refused.is_empty() {
            ends(&mut recent);
            // Events that were read before a FIN count as delivered (see tcp.md).
            return Next::Reset;
        }
        let now = kernel::now();
        let next = lock(&weather).meets(now).filter(|_| !ledger.is_calm());
        let mut may_rest = lock(&may_rest);
        match next {
            Some(Next::Rest(time)) if *may_rest <= now => {
                *may_rest = now + time + BETWEEN_RESTS;
                Next::Rest(time)
            }
            Some(Next::End) => {
                ends(&mut recent);
                Next::End
            }
            Some(Next::Rest(_) | Next::Read | Next::Reset) | None => Next::Read,
        }
    });
    let keys =
        format!("{keys}addresses = [\"{}\"]\nreplay_window = \"{window}ms\"\n", sink.address());
    Made { stand: Box::new(sink), keys, promise: Promise::PLAIN }
}

/// Returns the event of an RFC 5424 message. Panics if the head is not what the relay writes.
pub(super) fn event_of(message: &[u8]) -> Vec<u8> {
    let mut parts = message.splitn(8, |byte| *byte == b' ');
    let mut next = || {
        let part = parts.next().unwrap_or_default();
        std::str::from_utf8(part).unwrap_or_else(|_| panic!("a head in another encoding: {part:?}"))
    };
    let [priority, time, host, app, process, id, data] = [(); 7].map(|()| next());
    assert!(priority.starts_with('<') && priority.ends_with(">1"), "the priority {priority}");
    assert!(time == "-" || time.ends_with('Z') && time.contains('T'), "the time {time}");
    for name in [host, app, process, id] {
        let printable = name.bytes().all(|byte| byte.is_ascii_graphic());
        assert!(!name.is_empty() && printable, "a field of the head: {name}");
    }
    assert_eq!(data, "-", "structured data");
    parts.next().expect("a message").to_vec()
}
