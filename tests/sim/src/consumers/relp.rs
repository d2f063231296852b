//! A consumer that speaks RELP.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fastrand::Rng;

use super::stream::event_of;
use super::weather::Weather;
use super::{Made, Making, Promise, REQUEST_MIN, Stand, Way, lock};
use crate::events::identify_all;
use crate::kernel;
use crate::support::relp_sink::{RelpSink, answer, ok};
use crate::support::server::Server;

/// The trouble that a command meets.
#[derive(Debug, Clone)]
enum Trouble {
    /// The command is stored, and answered after this time.
    Late(Duration),
    /// The command is stored, and the connection ends without an answer.
    Mute,
    /// The command is not stored, and the connection ends.
    HangsUp,
    /// The command is not stored, and the answer is this one.
    Refuses(&'static str),
    /// The command is not stored, and these bytes are written.
    Says(&'static str),
    /// The command is stored, and the consumer closes in order after its answer.
    Closes,
    /// The command is stored, and a hint precedes the answer.
    Hints,
}

impl Stand for RelpSink {
    fn servers(&mut self) -> Vec<&mut Server> {
        vec![self]
    }
}

fn trouble(rng: &mut Rng) -> Trouble {
    match rng.u32(..10) {
        0 | 1 => Trouble::Late(Duration::from_millis(rng.u64(10..2000))),
        2 => Trouble::Late(Duration::from_secs(rng.u64(3..25))),
        3 => Trouble::Mute,
        4 => Trouble::HangsUp,
        5 => Trouble::Refuses(["500 error", "", "2000 OK", "200OK"][rng.usize(..4)]),
        6 => Trouble::Says(["nonsense\n", "0 serverclose 0\n", "7 rsp 6 2"][rng.usize(..3)]),
        7 => Trouble::Closes,
        _ => Trouble::Hints,
    }
}

pub(super) fn make(making: &mut Making<'_>) -> Made {
    let weather = Mutex::new(Weather::new(making.rng(), trouble));
    let (ledger, spoiled) = (Arc::clone(&making.ledger), Mutex::new(BTreeSet::new()));
    let sink = RelpSink::with_options(making.options(), move |command, connection| {
        // After a command that is not stored, later ones are not stored either.
        if lock(&spoiled).contains(&command.connection) {
            return None;
        }
        if command.name == "syslog"
            && let Some(way) = ledger.turns_away(&identify_all(&command.data))
        {
            ledger.turns_down(identify_all(&command.data), None, (false, false), Duration::ZERO);
            lock(&spoiled).insert(command.connection);
            return match way {
                Way::Silent => connection.rest(Duration::from_secs(30)).then(Vec::new),
                Way::Half => Some(format!("{} rs", command.number).into_bytes()),
                Way::Status(_) => Some(answer(command, "500 error")),
                Way::Ends | Way::Resets => None,
            };
        }
        let trouble = lock(&weather).meets(kernel::now()).filter(|_| !ledger.is_calm());
        let stores =
            !matches!(trouble, Some(Trouble::HangsUp | Trouble::Refuses(_) | Trouble::Says(_)));
        let is_late = matches!(trouble, Some(Trouble::Late(time)) if time >= REQUEST_MIN);
        if !stores || is_late || matches!(trouble, Some(Trouble::Mute)) {
            let events = identify_all(&command.data);
            ledger.turns_down(events, None, (false, false), Duration::ZERO);
        }
        if !stores {
            lock(&spoiled).insert(command.connection);
        } else if command.name == "syslog" {
            ledger.add(command.connection, [event_of(&command.data)]);
        }
        match trouble {
            None => Some(ok(command)),
            Some(Trouble::Late(time)) => connection.rest(time).then(|| ok(command)),
            Some(Trouble::Mute | Trouble::HangsUp) => None,
            Some(Trouble::Refuses("")) => Some(format!("{} rsp 0\n", command.number).into_bytes()),
            Some(Trouble::Refuses(said)) => Some(answer(command, said)),
            Some(Trouble::Says(said)) => Some(said.as_bytes().to_vec()),
            Some(Trouble::Closes) => Some([ok(command), b"0 serverclose 0\n".to_vec()].concat()),
            Some(Trouble::Hints) => Some([b"0 hint 4 what\n".to_vec(), ok(command)].concat()),
        }
    });
    let keys = format!(
        "type = \"relp\"\naddresses = [\"{}\"]\nwindow = {}\n",
        sink.address(),
        [1, 7, 128][making.rng.usize(..3)],
    );
    Made { stand: Box::new(sink), keys, promise: Promise::PLAIN }
}
