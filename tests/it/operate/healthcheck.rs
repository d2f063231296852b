//! `healthcheck`: its exit status in every state of the relay that it asks, and its messages.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;

use crate::support::prelude::*;
use crate::support::setup::start;

/// Runs `healthcheck`. Returns its exit status and its standard error, and checks that it prints
/// nothing to its standard output.
fn healthcheck(arguments: &[&str], directory: &Path, config: &str) -> (Option<i32>, String) {
    let arguments = [&["healthcheck"], arguments].concat();
    let variables = [("KUBE_AUDIT_FORWARDER_CONFIG", config)];
    let variables = if config.is_empty() { &[] } else { variables.as_slice() };
    let output = run_command_with(&arguments, directory, variables);
    assert_eq!(output.stdout, b"");
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

fn ask(url: &str) -> (Option<i32>, String) {
    healthcheck(&[url], Path::new("/"), "")
}

#[track_caller]
fn assert_says(url: &str, code: i32, words: &str) {
    let (status, stderr) = ask(url);
    assert_eq!(status, Some(code), "{url}: {stderr}");
    assert!(stderr.contains(words), "{url}: {stderr}");
}

/// Returns the result for a relay that is ready at this URL.
fn ready(url: &str) -> (Option<i32>, String) {
    (Some(0), format!("ready: {url}\n"))
}

#[test]
fn a_relay_is_ready_until_it_drains() {
    let (mut relay, sink) = start("", "[shutdown]\ndrain_timeout = \"20s\"\n");
    let admin = format!("http://{}", relay.admin());
    let asked = format!("{admin}/readyz");
    assert_eq!(ask(&admin), ready(&asked));
    assert_eq!(ask(&format!("{admin}/")), ready(&asked));
    let by_name = format!("http://localhost:{}", relay.admin().port());
    assert_eq!(ask(&by_name), ready(&format!("{by_name}/readyz")));
    let live = format!("{admin}/livez");
    assert_eq!(ask(&live), (Some(0), format!("ok: {live}\n")));
    // There is a line for each check of the relay.
    assert_says(&format!("{asked}?verbose"), 0, &format!("ready: {asked}?verbose\n[+]"));
    assert_says(&format!("{admin}/nowhere"), 1, "404");
    // The listener of events is not an admin address, and answers with 405.
    assert_says(&format!("http://{}", relay.address()), 1, "405");

    let body = generated_batch(1, 1, 600);
    let mut client = Client::connect(relay.address()).unwrap();
    let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len());
    client.send(&[head.as_bytes(), &body[..100]].concat()).unwrap();
    relay.wait_for_metrics("the body", PATIENCE, |metrics| {
        (metrics.value("in_flight_bytes", &[]) == 100.0).then_some(())
    });
    relay.signal(libc::SIGTERM);
    wait_until("the end of readiness", PATIENCE, || ask(&admin).0 == Some(1));
    let refused = format!("{admin}/readyz: 503 Service Unavailable\nshutting down\n");
    assert_eq!(ask(&admin), (Some(1), refused));
    client.send(&body[100..]).unwrap();
    assert_eq!(client.read_response().unwrap().status, 200);
    assert_eq!(relay.wait().code(), Some(0));
    sink.wait_until_left();
    assert_eq!(sink.count(), 1);
    assert_says(&admin, 1, "cannot connect");
    assert_says(&admin, 1, "refused");
}

#[test]
fn without_a_url_the_config_says_whom_to_ask() {
    let (relay, _sink) = start("", "");
    let admin = relay.admin();
    let directory = TempDir::new().unwrap();
    let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
    let port = admin.port();
    write("right.toml", &format!("[admin]\naddress = \"{admin}\"\n"));
    write("any.toml", &format!("[admin]\naddress = \"0.0.0.0:{port}\"\n"));
    // The running relay keeps its old config, so a config that has become wrong does not mean that
    // the relay is dead.
    write("broken.toml", &format!("[admin]\naddress = \"{admin}\"\n[queue]\nmax_bytes = what\n"));
    write("elsewhere.toml", &format!("[admin]\naddress = \"127.0.0.1:{}\"\n", free_port()));
    write("wrong.toml", "[admin]\naddress = \"nowhere\"\n");
    write("kernels.toml", "[admin]\naddress = \"127.0.0.1:0\"\n");
    let with = |name: &str| healthcheck(&["--config", name], directory.path(), "elsewhere.toml");
    for name in ["right.toml", "any.toml", "broken.toml"] {
        let asked = format!("http://127.0.0.1:{port}/readyz");
        assert_eq!(with(name), ready(&asked), "{name}");
        assert_eq!(healthcheck(&[], directory.path(), name), ready(&asked), "{name}");
    }
    assert_eq!(with("elsewhere.toml").0, Some(1));
    // A URL on the command line takes precedence over the config.
    let url = format!("http://{admin}");
    let asked = format!("{url}/readyz");
    assert_eq!(healthcheck(&[&url], directory.path(), "elsewhere.toml"), ready(&asked));
    for (name, said) in [
        ("wrong.toml", "wrong.toml:2:11: admin.address: "),
        ("kernels.toml", "port 0"),
        ("absent.toml", "absent.toml: cannot read"),
    ] {
        let (code, stderr) = with(name);
        assert_eq!(code, Some(2), "{name}: {stderr}");
        assert!(stderr.contains(said), "{stderr}");
    }
    relay.finish(Backlog::Empty);
}

#[test]
fn the_default_is_port_9090_of_loopback() {
    // Another program on this machine may use the port, so the exit status can be 0 or 1. If it is
    // 1, the message must name the default address.
    let (code, stderr) = healthcheck(&[], Path::new("/"), "");
    let url = "http://127.0.0.1:9090/readyz";
    let asked = match code {
        Some(0) => stderr.starts_with(&format!("ready: {url}\n")),
        code => code == Some(1) && stderr.starts_with(&format!("{url}: ")),
    };
    assert!(asked, "{code:?} {stderr}");
}

#[test]
fn a_relay_that_starts_is_not_ready_and_says_so() {
    let relay = HttpSink::start(|request| {
        assert_eq!((request.method.as_str(), request.target.as_str()), ("GET", "/readyz"));
        Answer::status(503).body("starting\n\u{1b}[31mred\u{1b}[0m\n")
    });
    let url = format!("http://{}", relay.address());
    let said = "503 Service Unavailable\nstarting\n\\u{1b}[31mred\\u{1b}[0m\n";
    assert_eq!(ask(&url), (Some(1), format!("{url}/readyz: {said}")));
}

#[test]
fn what_is_no_relay_is_not_ready() {
    let long = "x".repeat(1 << 20);
    let huge_head = format!("HTTP/1.1 200 OK\r\nx: {long}\r\n\r\n");
    for (what, answer) in [
        ("garbage", Answer::raw("\x16\x03\x01 no HTTP\r\n\r\n").closing()),
        ("half an answer", Answer::raw("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok").closing()),
        ("an endless head", Answer::raw(huge_head).closing()),
        ("a megabyte", Answer::status(200).body(long.clone())),
        ("a redirect", Answer::status(301).header("Location", "/readyz")),
        ("another 2xx", Answer::status(204)),
        ("nothing", Answer::hang_up()),
        ("a reset", Answer::reset()),
    ] {
        let peer = HttpSink::start(move |_| answer.clone());
        let (code, stderr) = ask(&format!("http://{}", peer.address()));
        assert_eq!(code, Some(1), "{what}: {stderr}");
        let lines = stderr.lines().count();
        assert!(lines == 1 && stderr.len() < 200, "{what}: {stderr}");
        assert_eq!(peer.count(), 1, "{what}: asked once");
    }
}

#[test]
fn who_does_not_answer_is_not_ready_after_3_seconds() {
    // The kernel accepts connections, but nothing reads from them.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    // The head of the response arrives, but never the end of its body.
    let slow = TcpListener::bind("127.0.0.1:0").unwrap();
    let addresses = [silent.local_addr().unwrap(), slow.local_addr().unwrap()];
    let answering = std::thread::spawn(move || {
        let (mut stream, _) = slow.accept().unwrap();
        stream.read_exact(&mut [0; 16]).unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok").unwrap();
        stream
    });
    for address in addresses {
        let begun = Instant::now();
        let silent = format!("http://{address}/readyz: no response within 3 s\n");
        assert_eq!(ask(&format!("http://{address}")), (Some(1), silent));
        assert!(begun.elapsed() >= Duration::from_secs(3), "{:?}", begun.elapsed());
        assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
    }
    drop(answering.join().unwrap());
}

#[test]
fn a_wrong_url_is_wrong_usage() {
    for (url, said) in [
        ("127.0.0.1:9090", "http://HOST:PORT"),
        ("localhost:9090", "http://HOST:PORT"),
        ("http://", "http://HOST:PORT"),
        ("", "http://HOST:PORT"),
        ("http://127.0.0.1:99999", "http://HOST:PORT"),
        ("http://127.0.0.1:0", "port 0"),
        ("http://user:password@127.0.0.1:9090", "no user name"),
        ("ftp://127.0.0.1", "http://HOST:PORT"),
    ] {
        assert_says(url, 2, said);
    }
    let (code, stderr) = healthcheck(&["http://127.0.0.1:1", "another"], Path::new("/"), "");
    assert_eq!(code, Some(2), "{stderr}");
    // No command prints the user or the password of a URL that it refuses.
    const KEY: &str = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k";
    let secret = "http://u5er:hunter2@127.0.0.1:9";
    for command in [
        &["healthcheck", secret][..],
        &["healthcheck", "u5er:hunter2@127.0.0.1:9"],
        &["tap", secret],
        &["top", secret],
        &["volume", secret],
        &["evidence", "verify", "--url", secret, "--key", KEY],
    ] {
        let said = said(command, Path::new("/"));
        let text = format!("{}{}", said.stdout, said.stderr);
        assert_eq!(said.code, Some(2), "{text}");
        assert!(!text.contains("u5er") && !text.contains("hunter2"), "{command:?}: {text}");
    }
}
