//! A running relay gets another config, by SIGHUP or because its files are rewritten, renamed or
//! swapped: what stays, what goes, and that no event is lost without being counted.

use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::symlink;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::prelude::*;
use crate::support::requests::assert_in_order;
use crate::support::tally::{Sent, Tallying, check, check_unordered};

/// Posts numbered events of sender 0.
fn post(client: &mut Client, numbers: std::ops::Range<u64>) -> Sent {
    let body = numbered::list(0, numbers.clone());
    let response = client.post("/", "application/json", &body).unwrap();
    assert_eq!(response.status, 200, "{}", response.text());
    Sent { sender: 0, numbers, accepted: true }
}

#[test]
fn another_type_of_output_takes_over_what_was_answered_out_of_order() {
    // The first request hangs and the others are answered, so finished events come after unfinished
    // ones when the output changes its type.
    let first = numbered::events(0, 0..1);
    let http = HttpSink::start(move |request| match events_in(request).starts_with(&first) {
        true => Answer::never(),
        false => Answer::status(200),
    });
    let tcp = Tallying::tcp();
    let before = http.output("out", "concurrency = 4\nbatch = { max_events = 10 }\n");
    let relay = Relay::start(&format!("{BASE}{before}"));
    assert_eq!(relay.post(&numbered::list(0, 0..100)).status, 200);
    wait_until("answers behind the first request", PATIENCE, || http.accepted().len() == 9);
    relay.reload(&format!("{BASE}{}", tcp.output("out", "")), "success");
    // The old delivery waits ten seconds for the response that never comes.
    relay.wait_until_delivered(PATIENCE);
    let (first, rest) = (numbered::events(0, 0..10), numbered::events(0, 10..100));
    assert_same_set(&accepted_events(&http), &rest);
    let got: Vec<_> = tcp.tally.arrivals().iter().map(|it| numbered::event(it.id)).collect();
    assert_in_order(&got, &first);
    relay.finish(Backlog::Empty);
}

#[test]
fn a_listener_becomes_https_on_the_same_port_and_its_plain_connections_end() {
    let sink = Tallying::http();
    let certificates = Certificates::new();
    let output = sink.output("out", "");
    let base = unrestricted(BASE);
    let relay = Relay::start(&format!("{base}{output}"));
    let mut client = Client::connect(relay.address()).unwrap();
    post(&mut client, 0..1);
    let tls = certificates.server.tls();
    relay.reload(&format!("{base}{tls}{output}"), "success");
    assert!(client.is_closed_by_server());
    let config = certificates.client_config(None);
    let mut secure = Client::connect_tls(relay.address(), config).unwrap();
    post(&mut secure, 1..2);
    // The reload turns the listener back to plain HTTP.
    relay.reload(&format!("{base}{output}"), "success");
    assert!(secure.is_closed_by_server());
    post(&mut Client::connect(relay.address()).unwrap(), 2..3);
    relay.finish(Backlog::Empty);
}

#[test]
fn a_config_that_cannot_be_used_changes_nothing() {
    let sink = Tallying::tcp();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let good = format!("{BASE}{}", sink.output("out", ""));
    let relay = Relay::start(&good);
    let mut client = Client::connect(relay.address()).unwrap();
    let (files, directory) = (Certificates::new(), TempDir::new().unwrap());
    let [empty, file] = ["empty", "file"].map(|name| directory.path().join(name));
    std::fs::write(&empty, "").unwrap();
    std::fs::write(&file, "x").unwrap();
    let pair = |certificate: &Path, key: &Path| {
        Pair { certificate: certificate.to_owned(), key: key.to_owned() }.tls()
    };
    let Pair { certificate, key } = &files.server;
    let listener = |more: &str| good.replace("[[output]]", &format!("{more}[[output]]"));
    let below = text(&file.join("below")).to_owned();
    let mut sent = Vec::new();
    for (number, bad) in (0..).zip([
        "not TOML".to_owned(),
        String::new(),
        good.replace("type = \"tcp\"", "type = \"tpc\""),
        format!("{good}[queue]\nmax_bytes = \"lots\"\n"),
        listener(&pair(Path::new("/nowhere/crt"), Path::new("/nowhere/key"))),
        listener(&pair(certificate, &files.client.key)),
        listener(&pair(key, certificate)),
        listener(&pair(&empty, key)),
        listener("bearer_token_file = \"/no/such/token\"\n"),
        listener(&format!("bearer_token_file = \"{}\"\n", text(&empty))),
        good.clone() + &pair(certificate, &files.client.key),
        format!("{good}[dead_letter]\ndirectory = \"{below}\"\n"),
        format!("{good}[queue]\ndirectory = \"{below}\"\n"),
        format!("{good}[[listener]]\naddress = \"{}\"\n", taken.local_addr().unwrap()),
    ]) {
        relay.reload(&bad, "error");
        relay.wait_for_log(messages::NOT_RELOADED, PATIENCE);
        sent.push(post(&mut client, number..number + 1));
    }
    std::fs::remove_file(relay.config_file()).unwrap();
    let before = relay.reloads("error");
    relay.signal(libc::SIGHUP);
    wait_until("the error", PATIENCE, || relay.reloads("error") > before);
    relay.wait_until_delivered(PATIENCE);
    assert_eq!(check("out", &sent, &sink.tally.arrivals()).len(), 0);
    assert_eq!(sink.history().len(), 1);
    let told = |key: &str| {
        relay.log_fields().iter().any(|fields| fields["key"] == key && fields["line"].is_u64())
    };
    for key in [
        "output[0].type",
        "listener[0].tls.private_key",
        "listener[0].bearer_token_file",
        "dead_letter.directory",
        "queue.directory",
    ] {
        wait_until(key, PATIENCE, || told(key));
    }
    assert_eq!(relay.reloads("success"), 0.0);
    relay.reload(&good, "success");
    relay.finish(Backlog::Empty);
}

#[test]
fn a_changed_config_is_seen_however_it_is_written() {
    let sink = Tallying::tcp();
    let directory = TempDir::new().unwrap();
    let mount = directory.path();
    // The directory looks like a ConfigMap that Kubernetes has mounted.
    let version = |name: &str, config: &str| {
        std::fs::create_dir(mount.join(name)).unwrap();
        std::fs::write(mount.join(name).join("config.toml"), config).unwrap();
        symlink(name, mount.join("..data_tmp")).unwrap();
        std::fs::rename(mount.join("..data_tmp"), mount.join("..data")).unwrap();
    };
    let config = |more: &str| format!("{BASE}{}{more}", sink.output("out", ""));
    version("..2026_1", &config(""));
    let file = mount.join("config.toml");
    symlink("..data/config.toml", &file).unwrap();
    let mut relay = Relay::with(&config("")).file(&file).start();
    let mut seen = 0.0;
    let mut count = |relay: &Relay| {
        seen += 1.0;
        wait_until("the reload", PATIENCE, || relay.reloads("success") >= seen);
        assert_eq!(relay.reloads("success"), seen, "counted more than once");
        assert_eq!(relay.reloads("error"), 0.0);
    };
    let listener = |number: u8| format!("[[listener]]\naddress = \"127.0.0.{number}:0\"\n");
    // The directory is swapped: first with new content, then with the same content.
    version("..2026_2", &config(&listener(2)));
    count(&relay);
    relay.wait_for_listeners(2);
    version("..2026_3", &config(&listener(2)));
    count(&relay);
    // One editor writes in place, and another one renames.
    std::fs::write(&file, config(&listener(3))).unwrap();
    count(&relay);
    relay.wait_for_listeners(3);
    let beside = mount.join("config.toml~");
    std::fs::write(&beside, config(&listener(4))).unwrap();
    std::fs::rename(&beside, &file).unwrap();
    count(&relay);
    relay.wait_for_listeners(4);
    post(&mut Client::connect(relay.listeners()[3].1).unwrap(), 0..1);
    assert_eq!(sink.history().len(), 1);
    relay.finish(Backlog::Empty);
}

#[test]
fn bounds_change_and_what_cannot_is_said() {
    let sink = Tallying::tcp().closed();
    let other = TempDir::new().unwrap();
    let with = |tables: &str| {
        let out = sink.output("out", "");
        format!("{BASE}{out}[shutdown]\ndrain_timeout = \"100ms\"\n{tables}")
    };
    let relay = Relay::start(&with(""));
    let big = generated_batch(1, 40, 900);
    assert_eq!(relay.post(&big).status, 200);
    relay.reload(&with("[limits]\nmax_body = \"16KiB\"\n"), "success");
    assert_eq!(relay.post(&events_of(&big).join(&b'\n')).status, 413);
    relay.reload(&with("[queue]\nmax_bytes = \"48KiB\"\nretry_after = \"1s\"\n"), "success");
    assert_eq!(relay.metrics().value("queue_capacity_bytes", &[]), 49_152.0);
    let full = relay.post(&big);
    assert_eq!((full.status, full.header("retry-after")), (429, Some("1")));
    relay.reload(&with("[queue]\nmax_bytes = \"48KiB\"\nwhen_full = \"drop_newest\"\n"), "success");
    assert_eq!(relay.post(&big).status, 200);
    assert_eq!(relay.metrics().value("error_total", &[("plugin", "queue")]), 40.0);
    relay.reload(
        &with("[log]\nformat = \"json\"\nlevel = \"debug\"\n").replacen(
            "log = { format = \"json\" }\n",
            "",
            1,
        ),
        "success",
    );
    assert_eq!(relay.post(&big).status, 200);
    relay.wait_for_log("batch accepted", PATIENCE);
    let directory = format!("[queue]\ndirectory = \"{}\"\n", text(other.path()));
    let moved = with(&directory)
        .replace("admin = { address = \"127.0.0.1:0\"", "admin = { address = \"127.0.0.3:0\"");
    relay.reload(&moved, "success");
    for key in ["queue.directory", "admin.address"] {
        let message = format!("{key} has changed: restart the relay to apply it");
        assert_eq!(relay.wait_for_log(&message, PATIENCE)["key"], key);
    }
    assert_eq!(std::fs::read_dir(other.path()).unwrap().count(), 0);
    assert_eq!(relay.post(&big).status, 200);
    relay.finish(Backlog::Stable);
}

/// Returns the number of the relay's threads, file descriptors and tasks.
fn resources(relay: &Relay) -> (usize, usize, u64) {
    let count =
        |what: &str| std::fs::read_dir(format!("/proc/{}/{what}", relay.pid())).unwrap().count();
    let status = http::get(relay.admin(), "/status").unwrap().json();
    (count("task"), count("fd"), status["tasks"].as_u64().unwrap())
}

/// Method: a relay is reloaded two hundred times. One output changes, and another output and a
/// listener come and go. The relay must have no more threads, file descriptors and tasks than after
/// the second reload, and every event must have arrived once at the outputs that stayed.
#[test]
fn two_hundred_reloads_leave_nothing_behind() {
    const RELOADS: u64 = 200;
    let (stays, changes, comes) = (Tallying::tcp(), Tallying::http(), Tallying::tcp());
    let config = |round: u64| {
        let mut config = format!("{BASE}{}", stays.output("stays", ""));
        config +=
            &changes.output("changes", &format!("batch = {{ max_events = {} }}", 1000 + round));
        if round % 2 == 1 {
            config += &comes.output("comes", "replay_window = \"10ms\"");
            config += "[[listener]]\naddress = \"127.0.0.2:0\"\n";
        }
        config
    };
    let relay = Relay::start(&config(0));
    let mut client = Client::connect(relay.address()).unwrap();
    let mut sent = vec![post(&mut client, 0..1)];
    // After two reloads, everything that is made once and kept exists.
    for round in 1..=2 {
        relay.reload(&config(round), "success");
        sent.push(post(&mut client, round..round + 1));
    }
    relay.wait_until_delivered(PATIENCE);
    std::thread::sleep(Duration::from_secs(1));
    let before = resources(&relay);
    for round in 3..=RELOADS {
        relay.reload(&config(round), "success");
        if round % 10 == 0 {
            sent.push(post(&mut client, sent.len() as u64..sent.len() as u64 + 1));
        }
    }
    relay.wait_until_delivered(PATIENCE);
    // Threads that read files, and connections that are closing, end after a while.
    let after = wait_for("what it was", PATIENCE * 2, || {
        let now = resources(&relay);
        (now.0 <= before.0 && now.1 <= before.1 && now.2 <= before.2).then_some(now)
    });
    println!("threads, descriptors, tasks: {before:?} before, {after:?} after {RELOADS} reloads");
    assert_eq!(check("stays", &sent, &stays.tally.arrivals()).len(), 0);
    assert_eq!(stays.history().len(), 1);
    assert_eq!(check_unordered("changes", &sent, &changes.tally.arrivals()).len(), 0);
    relay.finish(Backlog::Empty);
}

/// Method: four senders post 200 batches per second in all, half of them over TLS, during a hundred
/// reloads that change an output and rotate a certificate. Every batch must get a 200, and every
/// event must arrive once at each consumer.
#[test]
fn under_load_reloads_and_rotations_cost_no_request_and_no_event() {
    let seconds = number_from("KUBE_AUDIT_FORWARDER_RELOAD_SECONDS", 12);
    const RATE: u32 = 200;
    const SENDERS: u32 = 4;
    let each_change = Duration::from_secs(seconds) / 100;
    let certificates = Certificates::new();
    let directory = TempDir::new().unwrap();
    let place = |pair: &Pair| rotate(directory.path(), pair);
    place(&certificates.server);
    let tls = format!(
        "[listener.tls]\ncertificate = \"{0}/..data/tls.crt\"\nprivate_key = \"{0}/..data/tls.key\"\n",
        text(directory.path())
    );
    let (stays, changes) = (Tallying::tcp(), Tallying::http());
    let config = |round: u64| {
        let changing = format!("batch = {{ max_events = {} }}", 1000 + round);
        format!(
            "{BASE}{tls}[[listener]]\naddress = \"127.0.0.2:0\"\n{}{}",
            stays.output("stays", ""),
            changes.output("changes", &changing)
        )
    };
    let relay = Relay::start(&config(0));
    let over = Arc::new(AtomicBool::new(false));
    let senders: Vec<_> = (0..SENDERS)
        .map(|sender| {
            // Half of the senders use TLS.
            let address = relay.listeners()[usize::from(sender % 2 == 1)].1;
            let tls = (sender % 2 == 0).then(|| certificates.client_config(None));
            let over = Arc::clone(&over);
            std::thread::spawn(move || steady(sender, address, tls, RATE / SENDERS, &over))
        })
        .collect();
    let another = certificates.another_server("127.0.0.1");
    for round in 1..=100 {
        let begun = Instant::now();
        place(if round % 2 == 1 { &another } else { &certificates.server });
        relay.reload(&config(round), "success");
        std::thread::sleep(each_change.saturating_sub(begun.elapsed()));
    }
    over.store(true, Ordering::Relaxed);
    let sent: Vec<Sent> = senders
        .into_iter()
        .flat_map(|sender| sender.join().expect("every request is 200"))
        .collect();
    println!("{} batches, all answered 200", sent.len());
    assert!(sent.len() as u64 >= seconds * u64::from(RATE) / 2, "too slow to mean anything");
    relay.wait_until_delivered(PATIENCE);
    assert_eq!(check("stays", &sent, &stays.tally.arrivals()).len(), 0);
    assert_eq!(stays.history().len(), 1);
    assert_eq!(check("changes", &sent, &changes.tally.arrivals()).len(), 0);
    assert!(relay.reloads("success") >= 100.0);
    assert_eq!(relay.reloads("error"), 0.0);
    relay.finish(Backlog::Empty);
}

/// Swaps a Secret for one with another certificate, as Kubernetes does.
fn rotate(directory: &Path, pair: &Pair) {
    let new = directory.join(format!("..{:?}", Instant::now()).replace(' ', ""));
    std::fs::create_dir(&new).unwrap();
    std::fs::copy(&pair.certificate, new.join("tls.crt")).unwrap();
    std::fs::copy(&pair.key, new.join("tls.key")).unwrap();
    symlink(&new, directory.join("..data_tmp")).unwrap();
    std::fs::rename(directory.join("..data_tmp"), directory.join("..data")).unwrap();
}

/// Posts batches of ten events at a steady rate until `over`, and reconnects now and then, like
/// kube-apiserver. Panics if a batch does not get a 200. Returns the batches.
fn steady(
    sender: u32,
    address: SocketAddr,
    tls: Option<Arc<rustls::ClientConfig>>,
    rate: u32,
    over: &AtomicBool,
) -> Vec<Sent> {
    let connect = || match &tls {
        Some(config) => Client::connect_tls(address, Arc::clone(config)),
        None => Client::connect(address),
    };
    let mut client = connect().unwrap();
    let (begun, mut sent) = (Instant::now(), Vec::new());
    while !over.load(Ordering::Relaxed) {
        let count = u32::try_from(sent.len()).unwrap();
        if count % 25 == 24 {
            client = connect().unwrap();
        }
        let numbers = u64::from(count) * 10..u64::from(count) * 10 + 10;
        let response =
            client.post("/", "application/json", &numbered::list(sender, numbers.clone())).unwrap();
        assert_accepted(&response, 10);
        sent.push(Sent { sender, numbers, accepted: true });
        let due = begun + Duration::from_secs(1) / rate * (count + 1);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    sent
}

#[test]
fn a_reload_whose_address_is_taken_waits_until_it_is_free() {
    let (first, second) = (Tallying::http(), Tallying::http());
    let port = free_port();
    let other = TcpListener::bind(("127.0.0.2", port)).unwrap();
    let config = |address: &str, outputs: &[String]| {
        format!(
            "log = {{ format = \"json\" }}\nadmin = {{ address = \"127.0.0.1:0\" }}\n\
             [[listener]]\naddress = \"{address}:{port}\"\n{}",
            outputs.concat()
        )
    };
    let outputs = [first.output("first", ""), second.output("second", "")];
    let relay = Relay::start(&config("127.0.0.1", &outputs[..1]));
    let sent = post(&mut Client::connect(relay.address()).unwrap(), 0..10);
    let wanted = config("127.0.0.2", &outputs);
    relay.reload(&wanted, "error");
    let said = relay
        .wait_for_log("config not reloaded: the relay continues with the config in use", PATIENCE);
    let error = said["error"].as_str().unwrap().to_owned();
    assert!(error.contains(&format!("cannot listen on 127.0.0.2:{port}")), "{error}");
    assert!(error.ends_with("; it is tried again"), "{error}");
    let awaited = || {
        let status = http::get(relay.admin(), "/status").unwrap().json();
        status["reloads"]["awaits_address"].as_str().map(str::to_owned)
    };
    let in_vain = format!("cannot listen on 127.0.0.2:{port}");
    assert!(awaited().expect("it waits").contains(&in_vain));
    // The old config stays. The relay retries without a signal. Attempts that fail disturb no
    // connection, and are neither counted nor logged.
    let mut client = Client::connect(relay.address()).unwrap();
    let more = post(&mut client, 10..20);
    std::thread::sleep(Duration::from_millis(3500));
    let still = post(&mut client, 20..30);
    assert_eq!(relay.reloads("error"), 1.0, "the attempts count as one");
    assert_eq!(relay.log_text().matches(&in_vain).count(), 1, "{}", relay.log_text());
    drop(other);
    wait_until("the next attempt", PATIENCE, || relay.reloads("success") == 1.0);
    assert_eq!(awaited(), None);
    let everywhere = SocketAddr::from(([127, 0, 0, 2], port));
    let last = post(&mut Client::connect(everywhere).unwrap(), 30..40);
    relay.wait_until_delivered(PATIENCE);
    second.tally.wait_for_count(10, PATIENCE);
    assert_eq!(check("first", &[sent, more, still, last], &first.tally.arrivals()).len(), 0);
    relay.finish(Backlog::Empty);
}
