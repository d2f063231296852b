//! `type = "ibm_cloud_logs"`: tokens, their renewal and their failures, the limits of a request,
//! and `check`. No secret may be shown. `tests/sim` tests all kinds of answers.

use std::io::{BufReader, Write as _};

use crate::support::http::Unannounced;
use crate::support::ibm::{
    Credential, Grant, Ibm, Mood, REQUEST_BYTES_MAX, SECRET, Script, write_secret,
};
use crate::support::letters::events_in_letters;
use crate::support::prelude::*;

/// Short intervals between attempts.
const QUICK: &str = "retry = { initial_interval = \"10ms\", max_interval = \"100ms\" }";

/// A directory with the file of an API key.
struct Key {
    directory: TempDir,
}

impl Key {
    fn new(credential: &Credential) -> Self {
        let key = Self { directory: TempDir::new().unwrap() };
        write_secret(&key.file(), credential);
        key
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("api-key")
    }

    fn keys(&self) -> String {
        format!("api_key_file = \"{}\"\n{QUICK}", text(&self.file()))
    }
}

fn config(ibm: &Ibm, key: &Key) -> String {
    format!("{BASE}{}", ibm.output("logs", &key.keys()))
}

fn status(relay: &Relay) -> String {
    http::get(relay.admin(), "/status").unwrap().text()
}

#[test]
fn the_corpus_arrives_byte_for_byte() {
    let ibm = Ibm::start(Script::default());
    let key = Key::new(&Credential::key("1"));
    let relay = ibm.relay(&config(&ibm, &key)).start();
    let mut events = post_corpus(&relay);
    let odd = br#"{"kind":"EventList","apiVersion":"audit.k8s.io/v1","metadata":{},"items":[
        {"level":"Metadata","auditID":"a","stage":"Panic","responseStatus":{"code":500}},
        {"level":"Metadata","auditID":"b","stage":"Panic","responseStatus":null}]}"#;
    assert_eq!(relay.post(odd).status, 200);
    events.extend(events_of(odd));
    relay.wait_until_delivered(PATIENCE * 2);
    let memory = ibm.memory();
    assert_same_set(&memory.stored, &events);
    let names = ("kubernetes-audit".to_owned(), "kube-apiserver".to_owned());
    assert!(memory.names.iter().all(|it| *it == names), "{:?}", memory.names.first());
    assert_eq!(memory.asked, 1, "one token serves all requests");
    assert!(memory.sizes.len() > 1);
    drop(memory);
    assert_eq!(relay.metrics().sum("output_errors_total"), 0.0, "the first request has a token");
    ibm.assert_hides_secrets(&relay);
    relay.finish(Backlog::Empty);
}

/// Method: tokens are valid for five seconds, and the pod's token is replaced as kubelet does it.
/// IAM accepts only the newest one. No request may be answered with 401, because tokens are renewed
/// before they expire.
#[test]
fn a_trusted_profile_is_asked_again_with_the_pods_newest_token() {
    let profile = |number: usize| Credential::Profile {
        id: "Profile-9f2a".to_owned(),
        token: format!("{SECRET}.pod.{number}"),
    };
    // A token is renewed when a fifth of this time is left, which is a margin for a busy machine.
    let life = Duration::from_secs(5);
    let ibm =
        Ibm::start(Script { credential: profile(0), expires_in: 5, life, ..Script::default() });
    let key = Key::new(&profile(0));
    let keys = format!(
        "{QUICK}\ntrusted_profile = {{ id = \"Profile-9f2a\", token_file = \"{}\" }}",
        text(&key.file())
    );
    let relay = ibm.relay(&format!("{BASE}{}", ibm.output("logs", &keys))).start();
    let mut events = Vec::new();
    for number in 1..=3 {
        let sent = post_batch(&relay, number as u64, 20, 700);
        events.extend(sent);
        relay.wait_until_delivered(PATIENCE);
        ibm.memory().accept(profile(number));
        write_secret(&key.file(), &profile(number));
        let given = ibm.memory().given;
        wait_until("another token", PATIENCE, || ibm.memory().given > given);
    }
    let memory = ibm.memory();
    assert_same_set(&memory.stored, &events);
    assert_eq!(memory.unauthorized, 0, "a token was used after its end");
    drop(memory);
    ibm.assert_hides_secrets(&relay);
    relay.finish(Backlog::Empty);
}

#[test]
fn a_key_that_is_replaced_is_used_long_before_its_token_expires() {
    let ibm = Ibm::start(Script::default());
    let key = Key::new(&Credential::key("1"));
    let relay = ibm.relay(&config(&ibm, &key)).start();
    post_batch(&relay, 1, 20, 700);
    relay.wait_until_delivered(PATIENCE);
    assert_eq!(ibm.memory().given, 1);
    ibm.memory().accept(Credential::key("2"));
    ibm.memory().revoke();
    write_secret(&key.file(), &Credential::key("2"));
    wait_until("a token for the new key", PATIENCE, || ibm.memory().given == 2);
    assert_eq!(ibm.memory().unauthorized, 0, "no request has needed the token yet");
    post_batch(&relay, 2, 20, 700);
    relay.wait_until_delivered(PATIENCE);
    let memory = ibm.memory();
    // The events can be sent before the answer with the new token arrives.
    assert!(memory.stored.len() == 40 && memory.unauthorized <= 1, "{}", memory.unauthorized);
    drop(memory);
    relay.finish(Backlog::Empty);
}

/// Method: IAM issues no token, for several reasons. Events must wait, `/status` must show the
/// reason, and no request may reach IBM Cloud Logs.
#[test]
fn without_a_token_events_wait_and_the_reason_is_told() {
    let grant = Arc::new(Mutex::new(Grant::Status(500)));
    let now = Arc::clone(&grant);
    let mut ibm =
        Ibm::start(Script { grant: Box::new(move || *now.lock().unwrap()), ..Script::default() });
    let port = ibm.iam.address().port();
    ibm.iam.close();
    let key = Key::new(&Credential::key("wrong"));
    let relay = ibm.relay(&config(&ibm, &key)).start();
    let sent = post_batch(&relay, 1, 20, 700);
    let tells = |reason: &str| {
        wait_until(reason, PATIENCE, || {
            status(&relay).contains(&format!("no IAM token: {reason}"))
        });
    };
    tells("cannot connect to ");
    ibm.iam.reopen();
    let base = format!("https://localhost:{port}");
    tells(&format!("{base}: answered 500 "));
    for (next, reason) in [
        (Grant::Status(404), format!("{base}: answered 404 ")),
        (Grant::Status(302), format!("{base}: answered 302 ")),
        (Grant::Babbles, format!("{base}: this is not a response from IAM")),
        (Grant::Empty, format!("{base}: this is not a response from IAM")),
        (Grant::Garbage, format!("{base}: invalid HTTP")),
        (Grant::HangsUp, format!("{base}: connection error: peer closed")),
        (
            Grant::Judges,
            format!(
                "IAM does not accept the API key in {} ({base}: answered 400 Bad Request)",
                key.file().display()
            ),
        ),
    ] {
        *grant.lock().unwrap() = next;
        tells(&reason);
    }
    assert_eq!(ibm.logs.count(), 0);
    assert_eq!(relay.metrics().value("error_total", &[("plugin", "logs")]), 0.0);
    ibm.assert_hides_secrets(&relay);
    // The relay uses the right key without a restart.
    write_secret(&key.file(), &Credential::key("1"));
    relay.wait_until_delivered(PATIENCE);
    assert_same_set(&ibm.memory().stored, &sent);
    relay.wait_for_log("IAM issues tokens again", PATIENCE);
    ibm.assert_hides_secrets(&relay);
    relay.finish(Backlog::Empty);
}

/// Method: IBM Cloud Logs refuses every token. The first refusal must lead to a new token, the
/// others must not, and no event may be given up.
#[test]
fn a_token_that_is_refused_is_renewed_once() {
    let accepts = Arc::new(AtomicBool::new(false));
    let now = Arc::clone(&accepts);
    let ibm = Ibm::start(Script {
        mood: Box::new(move || match now.load(Ordering::SeqCst) {
            true => Mood::Stores,
            false => Mood::Status(401),
        }),
        ..Script::default()
    });
    let key = Key::new(&Credential::key("1"));
    let relay = ibm.relay(&config(&ibm, &key)).start();
    let sent = post_batch(&relay, 1, 20, 700);
    wait_until("a renewal", PATIENCE, || ibm.memory().asked == 2);
    let renewed = Instant::now();
    let requests = ibm.logs.count();
    // Without the limit, there would be another renewal 5 s after the first.
    wait_until("more refusals", PATIENCE, || {
        ibm.logs.count() > requests + 20 && renewed.elapsed() > Duration::from_secs(6)
    });
    assert_eq!(ibm.memory().asked, 2);
    assert!(status(&relay).contains("answered 401 Unauthorized: the IAM token is not accepted"));
    assert_eq!(relay.metrics().value("error_total", &[("plugin", "logs")]), 0.0);
    ibm.assert_hides_secrets(&relay);
    accepts.store(true, Ordering::SeqCst);
    relay.wait_until_delivered(PATIENCE);
    assert_same_set(&ibm.memory().stored, &sent);
    relay.finish(Backlog::Empty);
}

/// Method: a gateway answers with 401 once it has read the head of a large request, and closes the
/// connection. The answer must still lead to a new token.
#[test]
fn a_401_before_the_end_of_the_request_renews_the_token_too() {
    let ibm = Ibm::start(Script::default());
    let (refusals, accepted) = <(Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
    let counts = (Arc::clone(&refusals), Arc::clone(&accepted));
    let options = Options { receive_buffer: Some(64 * 1024), ..Options::default() };
    let gateway = Server::start(options, move |stream, _| {
        let mut reader = BufReader::new(stream);
        let Ok(Some(head)) = http::read_head(&mut reader) else { return };
        let is_first = head.header("authorization").expect("a token").ends_with(".1");
        let answer = if is_first {
            counts.0.fetch_add(1, Ordering::SeqCst);
            "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        } else {
            let Ok(_) = http::read_body(&mut reader, &head, Unannounced::Empty) else { return };
            counts.1.fetch_add(1, Ordering::SeqCst);
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        };
        let stream = reader.get_mut();
        if stream.write_all(answer.as_bytes()).and_then(|()| stream.flush()).is_ok() && is_first {
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    let key = Key::new(&Credential::key("1"));
    let config = config(&ibm, &key).replace(
        &format!("urls = [\"https://localhost:{}\"]", ibm.logs.address().port()),
        &format!("urls = [\"http://{}\"]", gateway.address()),
    );
    let relay = ibm.relay(&config).start();
    post_batch(&relay, 1, 100, 10_000);
    relay.wait_until_delivered(PATIENCE);
    assert!(refusals.load(Ordering::SeqCst) > 0 && accepted.load(Ordering::SeqCst) > 0);
    assert_eq!(ibm.memory().given, 2);
    relay.finish(Backlog::Empty);
}

/// Method: two outputs with the same credentials share one token, also with an output that a reload
/// adds. After a reload without these outputs, IAM must not be asked again.
#[test]
fn outputs_share_a_token_which_ends_with_the_last_of_them() {
    let life = Duration::from_secs(3);
    let ibm = Ibm::start(Script { expires_in: 3, life, ..Script::default() });
    let key = Key::new(&Credential::key("1"));
    let with = |name: &str, application: &str| {
        ibm.output(name, &format!("application_name = \"{application}\"\n{}", key.keys()))
    };
    let two = format!("{BASE}{}{}", with("a", "first \\\"one\\\""), with("b", "second"));
    let mut relay = ibm.relay(&two).start();
    let stored = |application: &str| {
        let memory = ibm.memory();
        memory.names.iter().filter(|(name, _)| name == application).count()
    };
    let reload = |config: &str| {
        std::fs::write(relay.config_file(), config).unwrap();
        relay.signal(libc::SIGHUP);
    };
    post_batch(&relay, 1, 20, 700);
    relay.wait_until_delivered(PATIENCE);
    assert_eq!((stored("first \"one\""), stored("second")), (20, 20));
    assert_eq!(ibm.memory().asked, 1, "each output has asked for a token");
    let started = Instant::now();
    reload(&format!("{BASE}{}{}", with("b", "second, changed"), with("c", "third")));
    // The new output gets only events that are posted after it has joined the queue.
    relay.wait_for_log("config reloaded", PATIENCE);
    post_batch(&relay, 2, 20, 700);
    relay.wait_until_delivered(PATIENCE);
    assert_eq!((stored("second, changed"), stored("third")), (20, 20));
    // Tokens are renewed after 2.4 seconds.
    let most = 2 + started.elapsed().as_millis() / 2400;
    let asked = ibm.memory().asked as u128;
    assert!(asked <= most, "{asked} requests, {most} were allowed");
    reload(&format!("{BASE}[[output]]\nname = \"here\"\ntype = \"stdout\"\n"));
    wait_until("the end of the outputs", PATIENCE, || !status(&relay).contains("\"c\""));
    let asked = ibm.memory().asked;
    std::thread::sleep(life + Duration::from_secs(1));
    assert_eq!(ibm.memory().asked, asked, "IAM is asked for nobody");
    // `finish` would check the counters of outputs that no longer exist.
    relay.stop();
}

#[test]
fn requests_have_two_megabytes_and_a_larger_event_travels_alone() {
    let ibm = Ibm::start(Script {
        is_bad: Box::new(|event| event.len() > REQUEST_BYTES_MAX),
        ..Script::default()
    });
    let key = Key::new(&Credential::key("1"));
    let kept = TempDir::new().unwrap();
    let config =
        format!("{}[dead_letter]\ndirectory = \"{}\"\n", config(&ibm, &key), text(kept.path()));
    let relay = ibm.relay(&config).start();
    let bodies = [
        generated_batch(1, 9000, 700),
        generated_batch(2, 1, 2_100_000),
        generated_batch(3, 50, 90_000),
    ];
    let mut events = Vec::new();
    for body in &bodies {
        assert_eq!(relay.post(body).status, 200);
        events.extend(events_of(body));
    }
    // The large event is given up once the consumer has accepted another event after its refusal.
    let refused = [("output", "logs"), ("reason", "status_4xx")];
    wait_until("the refusal", PATIENCE, || {
        relay.metrics().value("output_errors_total", &refused) > 0.0
    });
    let sent = post_batch(&relay, 4, 1, 700);
    events.extend(sent);
    relay.wait_until_delivered(PATIENCE * 2);
    let (large, good): (Vec<_>, Vec<_>) =
        events.into_iter().partition(|event| event.len() > REQUEST_BYTES_MAX);
    assert_same_set(&ibm.memory().stored, &good);
    assert_eq!(large.len(), 1);
    assert_same_set(&events_in_letters(kept.path()), &large);
    let largest = ibm.memory().sizes.iter().filter(|size| size.1 > 1).max().copied().unwrap();
    assert!(largest.0 > REQUEST_BYTES_MAX * 9 / 10, "the largest request has {largest:?}");
    relay.finish(Backlog::Empty);
}

#[test]
fn check_connect_tries_the_credentials_and_both_services() {
    let mut ibm = Ibm::start(Script::default());
    let key = Key::new(&Credential::key("1"));
    let file = key.directory.path().join("config.toml");
    std::fs::write(&file, config(&ibm, &key)).unwrap();
    let [logs, iam] =
        [&ibm.logs, &ibm.iam].map(|it| format!("https://localhost:{}", it.address().port()));
    let connect = |ibm: &Ibm| ibm.run(&["check", "--connect"], &file);
    let (code, said) = connect(&ibm);
    assert_eq!(code, Some(0), "{said}");
    for address in [&logs, &iam] {
        assert!(said.contains(&format!("output logs: {address}: ok")), "{said}");
    }
    write_secret(&key.file(), &Credential::key("wrong"));
    let (code, said) = connect(&ibm);
    assert_eq!(code, Some(1), "{said}");
    let refused = format!(
        "IAM does not accept the API key in {} ({iam}: answered 400 Bad Request)",
        key.file().display()
    );
    assert!(said.contains(&format!("output logs: {iam}: {refused}")), "{said}");
    assert!(said.contains(&format!("output logs: {logs}: no IAM token: {refused}")), "{said}");
    assert!(!said.contains(SECRET), "{said}");
    ibm.iam.close();
    let (code, said) = connect(&ibm);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(&format!("output logs: {iam}: cannot connect to ")), "{said}");
    assert!(ibm.memory().sizes.is_empty(), "a check sends no records");
}

/// Method: the key is right. The service accepts the array without records, or refuses it for a
/// reason such as a missing role.
#[test]
fn check_connect_tells_that_the_key_may_not_send() {
    let mood = Arc::new(Mutex::new(Mood::Stores));
    let now = Arc::clone(&mood);
    let ibm =
        Ibm::start(Script { mood: Box::new(move || *now.lock().unwrap()), ..Script::default() });
    let key = Key::new(&Credential::key("1"));
    let file = key.directory.path().join("config.toml");
    std::fs::write(&file, config(&ibm, &key)).unwrap();
    let logs = format!("https://localhost:{}", ibm.logs.address().port());
    for (next, words) in [
        (Mood::Stores, "ok"),
        (Mood::Status(403), "answered 403 Forbidden: the service ID or trusted profile needs the"),
        (Mood::Status(401), "answered 401 Unauthorized: the IAM token is not accepted"),
        (Mood::Status(404), "answered 404 Not Found: there is no such service at this URL"),
        // The text of the fake's answer is not JSON.
        (Mood::Status(400), "answered 400 Bad Request: the server does not understand"),
        (Mood::Page, "answered 200 OK: this is a web page, not an acknowledgement"),
    ] {
        *mood.lock().unwrap() = next;
        let (code, said) = ibm.run(&["check", "--connect"], &file);
        assert!(said.contains(&format!("{logs}: {words}")), "{said}");
        assert_eq!(code, Some(if next == Mood::Stores { 0 } else { 1 }), "{said}");
        assert!(!said.contains(SECRET) && !said.contains("Bearer"), "{said}");
    }
}

#[test]
fn a_config_has_one_kind_of_credentials_and_keeps_to_the_limits() {
    let ibm = Ibm::start(Script::default());
    let key = Key::new(&Credential::key("1"));
    let file = key.directory.path().join("config.toml");
    let refused = |keys: &str, wanted: &str| {
        std::fs::write(&file, format!("{BASE}{}", ibm.output("logs", keys))).unwrap();
        let (code, said) = ibm.run(&["check"], &file);
        assert_eq!(code, Some(2), "{keys}: {said}");
        assert!(said.contains(wanted), "{keys}: {said}");
    };
    let api_key = format!("api_key_file = \"{}\"", text(&key.file()));
    let profile = format!(
        "trusted_profile = {{ id = \"Profile-1\", token_file = \"{}\" }}",
        text(&key.file())
    );
    refused("", "output[0].api_key_file: is required: a path; or set trusted_profile instead");
    refused(
        &format!("{api_key}\n{profile}"),
        "output[0].trusted_profile: conflicts with api_key_file: set only one of the two",
    );
    refused("trusted_profile = { id = \"Profile-1\" }", "trusted_profile.token_file: is required");
    refused("api_key_file = \"/nowhere/api-key\"", "output[0].api_key_file: ");
    let more = |more: &str| format!("{api_key}\n{more}");
    refused(&more("batch.max_bytes = \"2MiB\""), "output[0].batch.max_bytes: ");
    refused(&more("application_name = \"\""), "output[0].application_name: ");
    refused(&more("subsystem_name = \"a\\nb\""), "output[0].subsystem_name: ");
    refused(
        &more("headers = { Authorization = \"Basic x\" }"),
        "output[0].headers: sets `authorization`, but this type of output sets that header itself",
    );
    refused(
        &more("bearer_token_file = \"/x\""),
        "type ibm_cloud_logs has no key `bearer_token_file`",
    );
    let plain = ibm.output("logs", &api_key).replace("iam_url = \"https:", "iam_url = \"http:");
    std::fs::write(&file, format!("{BASE}{plain}")).unwrap();
    let (code, said) = ibm.run(&["check"], &file);
    let warned = said.contains("output[0].iam_url: warning: is not https://");
    assert!(code == Some(0) && warned, "{said}");
    std::fs::write(key.file(), "\n").unwrap();
    refused(&api_key, "api-key is empty, expected: one line of printable text");
}
