//! The relay is killed at random steps of writing its evidence, and a witness checks the log.

use std::collections::HashSet;

use crate::evidence::recorded::{Recorded, text_of};
use crate::evidence::verify::check;
use crate::support::prelude::*;
use crate::support::witness::{NAME, Witness};

/// Starts a relay under strace, which kills the relay at the `nth` of these system calls.
fn dying(config: &str, calls: &str, nth: u32) -> Relay {
    let (trace, kill) =
        (format!("trace={calls}"), format!("inject={calls}:signal=KILL:when={nth}"));
    let words = ["strace", "-D", "-f", "-qqq", "-o", "/dev/null", "-e", &trace, "-e", &kill];
    Relay::with(config).launcher(&words).launch()
}

/// Method: each process is killed at a random call that writes, syncs or renames a file: of the
/// queue, the line hashes, the newest entries, the tiles or the checkpoint. The witness has seen
/// every checkpoint that was visible for long enough, and must accept every later one. At the end,
/// each acknowledged event must be stored and in the log.
#[test]
fn no_kill_at_any_step_loses_an_event_or_contradicts_a_checkpoint() {
    let seed = fastrand::u64(..);
    eprintln!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut recorded = Recorded::new();
    let witness = Witness::start(&recorded.verifier);
    let config = recorded.config("heartbeat_interval = \"1s\"\n") + &witness.config();
    let calls = ["pwrite64,pwritev", "fdatasync,fsync", "rename,renameat,renameat2"];
    for life in 0..18 {
        let (calls, nth) = (calls[life % calls.len()], rng.u32(1..40));
        eprintln!("life {life}: {calls}, call {nth}");
        let mut relay = dying(&config, calls, nth);
        let mut lives = relay.listens_or_exits(1);
        for _ in 0..rng.u64(1..12) {
            if !lives {
                break;
            }
            let body = generated_batch(rng.u64(..), 30, 700);
            match http::post(relay.address(), "/", "application/json", &body) {
                Ok(answer) => {
                    assert_eq!(answer.status, 200);
                    recorded.events.extend(events_of(&body));
                }
                // The relay was killed before it answered.
                Err(_) => lives = false,
            }
            std::thread::sleep(Duration::from_millis(rng.u64(..250)));
        }
        // The relay may be dead already.
        drop(relay);
    }
    let relay = Relay::start(&config);
    relay.wait_until_delivered(PATIENCE);
    let cosigned = || {
        let labels = [("witness", NAME)];
        relay.metrics().count("evidence_witness_timestamp_seconds", &labels)
    };
    wait_until("a cosignature", PATIENCE, || cosigned() > 0);
    let errors =
        |reason: &str| relay.metrics().count("evidence_errors_total", &[("reason", reason)]);
    assert_eq!((errors("rolled_back"), errors("tampered")), (0, 0), "{}", relay.log_text());
    relay.finish(Backlog::Empty);

    let stored = accepted_events(&recorded.sink);
    let kept: HashSet<&Vec<u8>> = stored.iter().collect();
    assert!(recorded.events.iter().all(|event| kept.contains(event)));
    eprintln!("{} events were acknowledged", recorded.events.len());
    let file = recorded.directory.path().join("stored");
    std::fs::write(&file, text_of(&stored)).unwrap();
    let [directory, file] = [recorded.spool.path(), &file].map(|path| path.display().to_string());
    let arguments = ["--directory", &directory, "--key", &recorded.verifier];
    let more = ["--witness", &witness.verifier, "--output", "consumer", "--events", &file];
    check(&[&arguments[..], &more].concat()).assert(0, &["missing 0, changed 0, extra 0"]);
}
