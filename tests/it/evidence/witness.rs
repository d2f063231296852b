//! `[[evidence.witness]]`: a witness that shares no code with the relay cosigns checkpoints, and
//! notices a log that was set back.

use std::time::{SystemTime, UNIX_EPOCH};

use super::recorded::{ORIGIN, Recorded, keygen, wait_for_checkpoint};
use super::verify::check;
use crate::support::prelude::*;
use crate::support::witness::{NAME, Witness};

fn errors(relay: &Relay, reason: &str) -> u64 {
    relay.metrics().count("evidence_errors_total", &[("reason", reason)])
}

fn cosigned_at(relay: &Relay) -> u64 {
    relay.metrics().count("evidence_witness_timestamp_seconds", &[("witness", NAME)])
}

fn checkpoint(spool: &Spool) -> Option<Vec<u8>> {
    std::fs::read(spool.path().join("evidence/checkpoint")).ok()
}

/// Returns `true` if `evidence verify` passes, which also needs a cosignature of the witness.
fn passes(spool: &Spool, key: &str, witness: &str) -> bool {
    let directory = spool.path().display().to_string();
    check(&["--directory", &directory, "--key", key, "--witness", witness]).status == 0
}

/// Method: the witness stops for a while. No event waits for it.
#[test]
fn a_witness_cosigns_each_checkpoint_and_may_be_away() {
    let mut recorded = Recorded::new();
    let mut witness = Witness::start(&recorded.verifier);
    let config = recorded.config("") + &witness.config();
    let relay = Relay::start(&config);
    recorded.post(&relay, 1, 300);
    recorded.wait_until_signed();
    let is_cosigned = |witness: &Witness, recorded: &Recorded| {
        passes(&recorded.spool, &recorded.verifier, &witness.verifier)
    };
    wait_for_checkpoint(&recorded.log(), "a cosignature", || is_cosigned(&witness, &recorded));
    let at = cosigned_at(&relay);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    assert!(at.abs_diff(now) < 60, "{at}");
    assert_eq!(errors(&relay, "witness"), 0);

    witness.go_away();
    recorded.post(&relay, 2, 300);
    recorded.wait_until_signed();
    relay.wait_until_delivered(PATIENCE);
    wait_until("an error", PATIENCE, || errors(&relay, "witness") > 0);
    let told = "the witness has not cosigned the newest evidence checkpoint, retrying";
    relay.wait_for_log(told, PATIENCE);
    assert!(!is_cosigned(&witness, &recorded));
    // Meanwhile, the relay signs further checkpoints.
    recorded.post(&relay, 3, 300);
    recorded.wait_until_signed();
    witness.come_back();
    relay.wait_for_log("the witness cosigns evidence checkpoints again", PATIENCE);
    wait_for_checkpoint(&recorded.log(), "a cosignature", || is_cosigned(&witness, &recorded));

    // The checkpoint over the stop is cosigned too, unless that takes longer than the 3 s that a
    // stopping relay gives its evidence.
    let (mut relay, mut at_a_stop) = (relay, false);
    for seed in 4..7 {
        recorded.post(&relay, seed, 300);
        relay.finish(Backlog::Empty);
        at_a_stop = at_a_stop || is_cosigned(&witness, &recorded);
        relay = Relay::start(&config);
    }
    assert!(at_a_stop, "none of three checkpoints over a stop is cosigned");
    recorded.post(&relay, 7, 300);
    recorded.wait_until_signed();
    assert_eq!((errors(&relay, "witness"), errors(&relay, "rolled_back")), (0, 0));
    relay.finish(Backlog::Empty);
}

/// Method: the witness answers slowly. The relay stops while it waits for an answer about an
/// earlier checkpoint.
#[test]
fn the_checkpoint_over_a_stop_is_cosigned_after_an_answer_that_was_under_way() {
    let mut recorded = Recorded::new();
    let witness = Witness::start(&recorded.verifier);
    let address = witness.url.strip_prefix("http://").unwrap().strip_suffix("/below").unwrap();
    let address: SocketAddr = address.parse().unwrap();
    let slow = HttpSink::start(move |request| {
        let answer = http::post(address, &request.target, "text/plain", &request.body);
        let answer = answer.expect("the witness answers");
        Answer::status(answer.status).body(answer.body).after(Duration::from_millis(500))
    });
    let own = witness.config().replace(&address.to_string(), &slow.address().to_string());
    let config = recorded.config("") + &own;
    // On a busy machine, an answer can take longer than the 3 s of a stopping relay.
    let at_a_stop = (1..4).any(|seed| {
        let relay = Relay::start(&config);
        wait_until("the first answer", PATIENCE, || cosigned_at(&relay) > 0);
        let before = slow.count();
        recorded.post(&relay, seed, 300);
        slow.wait_for_count(before + 1, PATIENCE);
        relay.finish(Backlog::Empty);
        passes(&recorded.spool, &recorded.verifier, &witness.verifier)
    });
    assert!(at_a_stop, "none of three checkpoints over a stop is cosigned");
}

/// Method: the queue's directory is replaced by an older copy, once with a running witness, and
/// once with a witness that starts only later.
#[test]
fn a_log_that_was_set_back_is_not_gone_on_with() {
    for is_there in [true, false] {
        let mut recorded = Recorded::new();
        let mut witness = Witness::start(&recorded.verifier);
        let config = recorded.config("") + &witness.config();
        let relay = Relay::start(&config);
        recorded.post(&relay, 1, 300);
        relay.wait_until_delivered(PATIENCE);
        relay.finish(Backlog::Empty);
        let older = recorded.spool.copy();
        let relay = Relay::start(&config);
        recorded.post(&relay, 2, 300);
        relay.wait_until_delivered(PATIENCE);
        relay.finish(Backlog::Empty);
        let size_there = checkpoint(&recorded.spool);

        let before = checkpoint(&older);
        assert_ne!(before, size_there);
        let place = |spool: &Spool| spool.path().display().to_string();
        let config = config.replace(&place(&recorded.spool), &place(&older));
        if !is_there {
            witness.go_away();
        }
        let relay = Relay::start(&config);
        recorded.post(&relay, 3, 300);
        if !is_there {
            wait_until("an error", PATIENCE, || errors(&relay, "witness") > 0);
            witness.come_back();
        }
        wait_until("the alarm", PATIENCE, || errors(&relay, "rolled_back") == 1);
        wait_until("the log line", PATIENCE, || {
            relay.log_text().contains(messages::EVIDENCE_ROLLED_BACK)
        });
        let signed = checkpoint(&older);
        if is_there {
            assert_eq!(signed, before, "something was signed");
        }
        recorded.post(&relay, 4, 300);
        relay.wait_until_delivered(PATIENCE);
        relay.finish(Backlog::Empty);
        assert_eq!(checkpoint(&older), signed);
        assert_eq!(accepted_events(&recorded.sink).len(), 1200);

        check(&["--directory", &place(&older), "--key", &recorded.verifier])
            .assert(1, &["the relay has recorded nothing more: the witness "]);

        // The relay still knows this after a restart.
        if witness.is_there() {
            witness.go_away();
        }
        let relay = Relay::start(&config);
        wait_until("the alarm", PATIENCE, || errors(&relay, "rolled_back") == 1);
        recorded.post(&relay, 5, 300);
        relay.wait_until_delivered(PATIENCE);
        relay.finish(Backlog::Empty);
        assert_eq!(checkpoint(&older), signed);

        // Under a new origin, the relay records again.
        let key = recorded.directory.path().join("next");
        let origin = format!("{ORIGIN}-b");
        let verifier = keygen(&origin, &key);
        let old_key = recorded.directory.path().join("key").display().to_string();
        let config = config.replace(ORIGIN, &origin).replace(&old_key, &key.display().to_string());
        let next = Witness::start(&verifier);
        let config = config.replace(&witness.config(), &next.config());
        let relay = Relay::start(&config);
        recorded.post(&relay, 6, 300);
        let new_log = older.path().join("evidence");
        wait_for_checkpoint(&new_log, "a new log", || passes(&older, &verifier, &next.verifier));
        assert_eq!(errors(&relay, "rolled_back"), 0);
        relay.finish(Backlog::Empty);
    }
}

/// Method: the directory of a stopped relay and an older copy of it are checked, with and without
/// the witness's newest checkpoint, and by the age of the newest cosignature.
#[test]
fn an_older_copy_with_a_valid_cosignature_does_not_pass() {
    let mut recorded = Recorded::new();
    let mut witness = Witness::start(&recorded.verifier);
    let config = recorded.config("") + &witness.config();
    let mut copies = Vec::new();
    for seed in [1, 2] {
        let relay = Relay::start(&config);
        recorded.post(&relay, seed, 300);
        relay.wait_until_delivered(PATIENCE);
        relay.finish(Backlog::Empty);
        copies.push(recorded.spool.copy());
    }
    let place = |spool: &Spool| spool.path().display().to_string();
    let [older, whole] = [place(&copies[0]), place(&copies[1])];
    let key = recorded.verifier.clone();
    let [vkey, url] = [witness.verifier.clone(), witness.url.clone()];
    let verify = |directory: &str, more: &[&str]| {
        let named = ["--directory", directory, "--key", &key, "--witness", &vkey];
        check(&[&named[..], more].concat())
    };
    // The old cosignature is valid, so the check passes with `--witness` alone.
    verify(&older, &[]).assert(0, &["has cosigned at"]);
    verify(&whole, &["--witness-url", &url]).assert(0, &["checkpoints 2/2 valid"]);
    let said = "the log was set back, or this is a copy that was made before";
    verify(&older, &["--witness-url", &url]).assert(2, &["NOT CHECKED", said]);

    // A slash at the end of the URL changes nothing. An unknown log is reported.
    verify(&whole, &["--witness-url", &format!("{url}/")]).assert(0, &[]);
    let other = keygen("example.org/other", &recorded.directory.path().join("other"));
    let said = "has no checkpoint of example.org/other";
    verify(&whole, &["--witness-url", &url, "--key", &other]).assert(2, &[said]);

    // `--ca` counts for a witness too, and a message names the option.
    let certificates = Certificates::new();
    let tls = Some(certificates.server_config(&certificates.server, false));
    let sink = HttpSink::with(Options { tls, ..Options::default() }, |_| Answer::status(404));
    let secure = format!("https://localhost:{}", sink.address().port());
    let asks = ["--witness-url", secure.as_str(), "--ca", text(&certificates.ca)];
    verify(&whole, &asks[..2]).assert(2, &["with --ca"]);
    verify(&whole, &asks).assert(2, &["has no checkpoint of"]);

    // First only the age counts, then also the checkpoint that the witness has.
    verify(&older, &["--witness-max-age", "1h"]).assert(0, &[]);
    std::thread::sleep(Duration::from_millis(2100));
    let age = ["--witness-max-age", "1s"];
    let said = "the log may have been set back since then";
    verify(&older, &age).assert(2, &["NOT CHECKED: the newest cosignature", said]);
    verify(&whole, &[&age[..], &["--witness-url", &url]].concat()).assert(2, &[said]);

    // The relay has signed a checkpoint that the witness has not seen yet.
    let note = String::from_utf8(checkpoint(&recorded.spool).unwrap()).unwrap();
    let lines = note.split_inclusive('\n').filter(|line| !line.contains(NAME));
    let early = recorded.spool.copy();
    std::fs::write(early.path().join("evidence/checkpoint"), lines.collect::<String>()).unwrap();
    let early = place(&early);
    verify(&early, &[]).assert(2, &["checkpoint has no valid cosignature of the witness"]);
    let said = "has not cosigned the newest checkpoint of the log";
    verify(&early, &["--witness-url", &url]).assert(2, &[said]);
    let hour = ["--witness-max-age", "1h"];
    verify(&early, &[&hour[..], &["--witness-url", &url]].concat()).assert(0, &["note: ", said]);

    // A kept file with the newest checkpoint also reveals the older copy.
    let kept = recorded.directory.path().join("kept");
    std::fs::write(&kept, checkpoint(&recorded.spool).unwrap()).unwrap();
    let kept = kept.display().to_string();
    verify(&older, &["--checkpoint", &kept]).assert(1, &["its end was cut off"]);

    witness.go_away();
    verify(&whole, &["--witness-url", &url]).assert(2, &["NOT CHECKED", "cannot connect"]);
    check(&["--directory", &whole, "--key", &key, "--witness-max-age", "1h"])
        .assert(2, &["--witness <VKEY>"]);
}

/// Method: a running relay publishes its log, and the witness is asked before the log is read.
#[test]
fn a_published_log_has_what_its_witness_has_seen() {
    let mut recorded = Recorded::new();
    let witness = Witness::start(&recorded.verifier);
    let config = recorded.config("") + &witness.config();
    let relay = Relay::start(&config);
    recorded.post(&relay, 1, 300);
    wait_for_checkpoint(&recorded.log(), "a cosignature", || {
        passes(&recorded.spool, &recorded.verifier, &witness.verifier)
    });
    let url = format!("http://{}", relay.admin());
    let key = &recorded.verifier;
    let (vkey, seen) = (&witness.verifier, &witness.url);
    let arguments = ["--url", &url, "--key", key, "--witness", vkey, "--witness-url", seen];
    wait_for_checkpoint(&recorded.log(), "what is published", || {
        let checked = check(&[&arguments[..], &["--witness-max-age", "1h"]].concat());
        checked.status != 1 && checked.text.contains("checkpoints 2/2 valid")
    });
    relay.finish(Backlog::Empty);
}

/// Method: a second relay has the key and the origin of the first one, and an empty directory. It
/// must not sign anything.
#[test]
fn a_second_relay_with_the_same_origin_signs_nothing() {
    let mut recorded = Recorded::new();
    let witness = Witness::start(&recorded.verifier);
    let config = recorded.config("") + &witness.config();
    let first = Relay::start(&config);
    recorded.post(&first, 1, 300);
    wait_for_checkpoint(&recorded.log(), "a cosignature", || {
        passes(&recorded.spool, &recorded.verifier, &witness.verifier)
    });
    let other = Spool::new();
    let place = |spool: &Spool| spool.path().display().to_string();
    let second = Relay::start(&config.replace(&place(&recorded.spool), &place(&other)));
    wait_until("the alarm", PATIENCE, || errors(&second, "rolled_back") == 1);
    recorded.post(&second, 2, 300);
    second.wait_until_delivered(PATIENCE);
    second.finish(Backlog::Empty);
    assert_eq!(checkpoint(&other), None);
    // Under its own origin, it begins a new log.
    let key = recorded.directory.path().join("other");
    let origin = format!("{ORIGIN}-other");
    let verifier = keygen(&origin, &key);
    let old_key = recorded.directory.path().join("key").display().to_string();
    let own = Witness::start(&verifier);
    let own_config = config
        .replace(&place(&recorded.spool), &place(&other))
        .replace(ORIGIN, &origin)
        .replace(&old_key, &key.display().to_string())
        .replace(&witness.config(), &own.config());
    let second = Relay::start(&own_config);
    let own_log = other.path().join("evidence");
    wait_for_checkpoint(&own_log, "its own log", || passes(&other, &verifier, &own.verifier));
    second.finish(Backlog::Empty);
    let names = other.files().into_keys();
    let mut names = names.map(|path| path.display().to_string());
    assert!(!names.any(|name| name.starts_with("evidence-until-")), "nothing was signed before");
    recorded.post(&first, 3, 300);
    first.wait_until_delivered(PATIENCE);
    assert_eq!(errors(&first, "rolled_back"), 0);
    first.finish(Backlog::Empty);
    assert!(passes(&recorded.spool, &recorded.verifier, &witness.verifier));
}

/// Returns the type of the last entry that a checkpoint covers.
fn last_entry(spool: &Spool) -> String {
    let directory = spool.path().display().to_string();
    let shown = run_command(&["evidence", "show", "--json", &directory], Path::new("/")).stdout;
    let text = String::from_utf8(shown).unwrap();
    let last = text.lines().last().and_then(|line| serde_json::from_str(line).ok());
    last.map_or(String::new(), |last: Value| last["type"].as_str().unwrap().to_owned())
}

/// Method: the relay stops within the ten seconds that it gives its witness. The witness hangs, or
/// nothing listens at its address.
#[test]
fn a_stop_before_the_witness_has_had_its_time_is_signed() {
    for hangs in [true, false] {
        let mut recorded = Recorded::new();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = listener.local_addr().unwrap();
        let key = Witness::start(&recorded.verifier).verifier.clone();
        let listener = Some(listener).filter(|_| hangs);
        let witness = format!("[[evidence.witness]]\nurl = \"http://{url}\"\nkey = \"{key}\"\n");
        let relay = Relay::start(&(recorded.config("") + &witness));
        recorded.post(&relay, 1, 50);
        relay.wait_until_delivered(PATIENCE);
        assert_eq!(checkpoint(&recorded.spool), None, "the witness has its time");
        relay.finish(Backlog::Empty);
        assert_eq!(last_entry(&recorded.spool), "stop", "hangs: {hangs}");
        recorded.wait_until_signed();
        drop(listener);
    }
}

/// Method: a gateway answers each request with status 409 and a page whose text is a number. Then
/// the witness itself answers.
#[test]
fn a_409_that_is_not_of_the_protocol_ends_no_log() {
    let mut recorded = Recorded::new();
    let witness = Witness::start(&recorded.verifier);
    let address = witness.url.strip_prefix("http://").unwrap().strip_suffix("/below").unwrap();
    let address: SocketAddr = address.parse().unwrap();
    let is_away = Arc::new(AtomicBool::new(true));
    let away = Arc::clone(&is_away);
    let gateway = HttpSink::start(move |request| {
        if away.load(Ordering::Relaxed) {
            return Answer::status(409).header("Content-Type", "text/html").body("5000\n");
        }
        let answer = http::post(address, &request.target, "text/plain", &request.body).unwrap();
        Answer::status(answer.status).body(answer.body)
    });
    let own = witness.config().replace(&address.to_string(), &gateway.address().to_string());
    let config = recorded.config("") + &own;
    let relay = Relay::start(&config);
    recorded.post(&relay, 1, 50);
    wait_until("refusals", PATIENCE, || errors(&relay, "witness") > 1);
    recorded.wait_until_signed();
    assert_eq!(errors(&relay, "rolled_back"), 0);
    assert!(relay.log_text().contains("text/x.tlog.size"), "the log says what is missing");
    is_away.store(false, Ordering::Relaxed);
    relay.wait_for_log("the witness cosigns evidence checkpoints again", PATIENCE);
    relay.finish(Backlog::Empty);
}

/// Method: the clock of the witness is 95 years ahead.
#[test]
fn a_cosignature_of_the_future_does_not_count() {
    let mut recorded = Recorded::new();
    let mut witness = Witness::ahead(&recorded.verifier, 3_000_000_000);
    let relay = Relay::start(&(recorded.config("") + &witness.config()));
    recorded.post(&relay, 1, 50);
    let told = "the witness has not cosigned the newest evidence checkpoint, retrying";
    relay.wait_for_log(told, PATIENCE);
    recorded.wait_until_signed();
    assert!(relay.log_text().contains("the time of its cosignature is in the future"));
    assert!(errors(&relay, "witness") > 0);
    assert_eq!(cosigned_at(&relay), 0);
    let note = String::from_utf8(checkpoint(&recorded.spool).unwrap()).unwrap();
    assert!(!note.contains(NAME), "{note}");
    // With the right time, the cosignature counts.
    witness.go_away();
    witness.ahead = 0;
    witness.come_back();
    relay.wait_for_log("the witness cosigns evidence checkpoints again", PATIENCE);
    relay.finish(Backlog::Empty);
}

/// Method: the witness accepts connections, but never answers. The first checkpoint is signed after
/// the time that the relay gives its witness, and no event waits for that.
#[test]
fn a_witness_that_hangs_holds_up_the_first_checkpoint_only() {
    let mut recorded = Recorded::new();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (url, key) =
        (listener.local_addr().unwrap(), Witness::start(&recorded.verifier).verifier.clone());
    let witness = format!("[[evidence.witness]]\nurl = \"http://{url}\"\nkey = \"{key}\"\n");
    let relay = Relay::start(&(recorded.config("") + &witness));
    recorded.post(&relay, 1, 300);
    relay.wait_until_delivered(PATIENCE);
    assert_eq!(checkpoint(&recorded.spool), None);
    recorded.wait_until_signed();
    wait_until("an error", PATIENCE, || errors(&relay, "witness") > 0);
    relay.finish(Backlog::Empty);
}

#[test]
fn wrong_witnesses_are_named_by_check() {
    let recorded = Recorded::new();
    let witness = Witness::start(&recorded.verifier);
    let right = recorded.config("") + &witness.config();
    let file = recorded.directory.path().join("relay.toml");
    let check = |config: &str| {
        std::fs::write(&file, config).unwrap();
        let path = file.display().to_string();
        let checked = run_command(&["check", "--config", &path], Path::new("/"));
        let text = [checked.stdout, checked.stderr].concat();
        (checked.status.code().unwrap(), String::from_utf8(text).unwrap())
    };
    let (status, text) = check(&right);
    assert_eq!(status, 0, "{text}");
    for (config, what) in [
        (right.replace(&witness.verifier, &recorded.verifier), "is the key of a log"),
        (right.replace(&witness.verifier, "witness"), "is not a verifier key"),
        (right.replace(&witness.url, "witness.example"), "is not a URL"),
        (right.clone() + &witness.config(), "has the same name as another witness"),
    ] {
        let (status, text) = check(&config);
        assert_ne!(status, 0, "{text}");
        assert!(text.contains("evidence.witness[") && text.contains(what), "{text}");
    }
}
