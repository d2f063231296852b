//! A consumer that speaks lumberjack, like Logstash's `beats` input.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use fastrand::Rng;

use super::weather::Weather;
use super::{Made, Making, Promise, REQUEST_MIN, Stand, Way, lock};
use crate::events::identify_all;
use crate::kernel;
use crate::support::lumberjack_sink::{LumberjackSink, Reply, Window};
use crate::support::server::Server;

/// The trouble that a window meets.
#[derive(Debug, Clone)]
enum Trouble {
    /// The window is stored, and acknowledged after this time; `true`: with keep-alives.
    Late(Duration, bool),
    /// The window is stored, and the connection ends without an acknowledgement.
    Mute,
    /// The window is not stored, and the connection ends.
    HangsUp,
    /// A part of the window is stored and acknowledged, and the connection ends. Some event is
    /// left: otherwise the failure would count against the first event of the next window, which
    /// the consumer has not read and the oracle does not know (seed 1577320158).
    Part,
    /// The window is stored, and acknowledged in parts.
    Parts,
    /// The window is not stored. These bytes are written, and the connection ends.
    Says(&'static [u8]),
}

impl Stand for LumberjackSink {
    fn servers(&mut self) -> Vec<&mut Server> {
        vec![self]
    }
}

fn trouble(rng: &mut Rng) -> Trouble {
    match rng.u32(..9) {
        0 | 1 => Trouble::Late(Duration::from_millis(rng.u64(10..3000)), rng.bool()),
        2 => Trouble::Late(Duration::from_secs(rng.u64(3..25)), rng.bool()),
        3 => Trouble::Mute,
        4 => Trouble::HangsUp,
        5 => Trouble::Part,
        6 | 7 => Trouble::Parts,
        _ => {
            let said: [&[u8]; 4] = [b"nonsense", b"2A\x7f\0\0\0", b"1A\0\0\0\x01", b"2A\0\0"];
            Trouble::Says(said[rng.usize(..4)])
        }
    }
}

pub(super) fn make(making: &mut Making<'_>) -> Made {
    let weather = Mutex::new(Weather::new(making.rng(), trouble));
    let (ledger, parts) = (Arc::clone(&making.ledger), Mutex::new(making.rng()));
    let sink = LumberjackSink::with(making.options(), move |window, reply| {
        let serials: Vec<_> = window.events.iter().flat_map(|it| identify_all(it)).collect();
        let first = serials.iter().position(|it| ledger.turns_away(&[*it]).is_some());
        if let Some(first) = first {
            ledger.turns_down(serials[first..].to_vec(), None, (false, false), Duration::ZERO);
            ledger.add(window.connection, window.events[..first].iter().cloned());
            reply.acknowledge(first);
            let is_silent = ledger.turns_away(&serials[first..]) == Some(Way::Silent);
            if is_silent {
                reply.rest(Duration::from_secs(30));
            }
            return false;
        }
        let trouble = lock(&weather).meets(kernel::now()).filter(|_| !ledger.is_calm());
        let count = window.events.len();
        let part = match trouble {
            Some(Trouble::HangsUp | Trouble::Says(_)) => 0,
            Some(Trouble::Part) => lock(&parts).usize(..count),
            _ => count,
        };
        let is_silent = matches!(trouble, Some(Trouble::Mute))
            || matches!(trouble, Some(Trouble::Late(time, _)) if time >= REQUEST_MIN);
        let left = if is_silent { &window.events[..] } else { &window.events[part..] };
        let left = left.iter().flat_map(|event| identify_all(event)).collect();
        ledger.turns_down(left, None, (false, false), Duration::ZERO);
        ledger.add(window.connection, window.events[..part].iter().cloned());
        answer(trouble, window, part, reply)
    });
    let keys = format!(
        "type = \"lumberjack\"\naddresses = [\"{}\"]\nwindow = {}\ncompression_level = {}\n",
        sink.address(),
        [5, 50, 2048][making.rng.usize(..3)],
        [0, 3][making.rng.usize(..2)],
    );
    Made { stand: Box::new(sink), keys, promise: Promise::PLAIN }
}

/// Answers a window, of whose events the first `part` are stored. Returns `false` to disconnect.
fn answer(trouble: Option<Trouble>, window: &Window, part: usize, reply: &mut Reply<'_>) -> bool {
    let count = window.events.len();
    match trouble {
        None => {}
        Some(Trouble::Late(time, with_signs)) => {
            let pause = if with_signs { time.min(Duration::from_secs(1)) } else { time };
            let mut waited = Duration::ZERO;
            while waited < time {
                if !reply.rest(pause) {
                    return false;
                }
                waited += pause;
                if with_signs {
                    reply.acknowledge(0);
                }
            }
        }
        Some(Trouble::Mute | Trouble::HangsUp) => return false,
        Some(Trouble::Part) => {
            reply.acknowledge(part);
            return false;
        }
        Some(Trouble::Parts) => {
            for event in (0..count).step_by(3) {
                reply.acknowledge(event);
                if !reply.rest(Duration::from_millis(200)) {
                    return false;
                }
            }
        }
        Some(Trouble::Says(bytes)) => {
            reply.write(bytes);
            return false;
        }
    }
    reply.acknowledge(count);
    true
}
