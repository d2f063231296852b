//! Everything that the command line names is read or reported as unknown, even if it hangs, has
//! ended, was restarted, or has left the endpoints. A hang hides nothing about the others.

use std::sync::OnceLock;

use super::*;
use crate::support::peers::Process;

/// A program that serves the metrics of a kube-apiserver with a fixed number of events.
const APISERVER: &str = "\
import http.server, sys, time
text = 'apiserver_audit_event_total %s\\nprocess_start_time_seconds %f\\n' % (sys.argv[2], time.time())
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header('content-length', str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())
    def log_message(self, *arguments):
        pass
http.server.ThreadingHTTPServer(('127.0.0.1', int(sys.argv[1])), Handler).serve_forever()
";

fn apiserver_process(generated: u64, directory: &Path) -> Process {
    let port = free_port();
    let (port_text, generated) = (port.to_string(), generated.to_string());
    let arguments = ["-c", APISERVER, &port_text, &generated];
    let mut process = Process::new("python3".into(), &arguments, port, directory);
    process.start();
    process
}

/// Writes a kubeconfig with these users, and returns its path.
fn kubeconfig_of(server: &str, users: &str, directory: &Path) -> String {
    let file = directory.join("plain-kubeconfig");
    let config = format!(
        "current-context: x\ncontexts:\n- {{name: x, context: {{cluster: c, user: u}}}}\n\
         clusters:\n- {{name: c, cluster: {{server: '{server}'}}}}\nusers:\n{users}\n"
    );
    std::fs::write(&file, config).unwrap();
    text(&file).to_owned()
}

/// Returns the `/status` of a healthy relay with this number of events. The relay started long
/// after the fake kube-apiservers, which started in 1970.
fn relay_page(accepted: u64) -> String {
    let status = json!({
        "accepted_events": accepted, "start_time_seconds": 1000, "time_seconds": now(),
        "uptime_seconds": 1000, "last_event_seconds_ago": 0,
        "verdict": { "state": "good", "text": "t", "findings": [] },
    });
    status.to_string()
}

/// Serves a page that depends on the seconds since the first request.
fn growing(page: impl Fn(f64) -> String + Send + Sync + 'static) -> HttpSink {
    let begin = OnceLock::new();
    HttpSink::start(move |_| {
        let begin: &Instant = begin.get_or_init(Instant::now);
        Answer::status(200).body(page(begin.elapsed().as_secs_f64()))
    })
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a small number of events"
)]
fn grown(rate: f64, seconds: f64) -> u64 {
    1000 + (rate * seconds) as u64
}

#[test]
fn an_apiserver_that_was_named_and_hangs_or_is_gone_is_unknown() {
    let whole = Whole::start();
    whole.apiserver.count(0, |it| it.generated = Some(25));
    let directory = TempDir::new().unwrap();
    let mut named = apiserver_process(15, directory.path());
    // The kube-apiserver that is named is not among the endpoints.
    whole.apiserver.list(&[whole.apiserver.address()]);
    let server = url(whole.apiserver.address());
    let file = kubeconfig_of(&server, "- {name: u, user: {}}", directory.path());
    let (relay, other) = (url(whole.relay.admin()), url(named.address()));
    let arguments = ["--relay", &relay, "--kubeconfig", &file, "--apiserver", &other];
    doctor(&arguments).assert("OK");
    let unknown = format!("UNKNOWN – kube-apiserver {other}: unknown, ");
    named.freeze();
    let said = doctor(&arguments);
    said.assert(&unknown);
    said.assert_has(&format!("kube-apiserver {other}: unknown\n"));
    named.thaw();
    doctor(&arguments).assert("OK");
    named.kill();
    doctor(&arguments).assert(&unknown);
    let (code, json) = doctor_json(&arguments);
    assert_eq!((code, &json["verdict"]), (Some(2), &"unknown".into()), "{json:#}");
    assert_eq!(json["where"], format!("kube-apiserver {other}"));
    let instances = json["apiserver"]["instances"].as_array().unwrap();
    let of_named = instances.iter().find(|it| it["source"] == other.as_str()).unwrap();
    assert!(of_named["error"].as_str().unwrap().contains("cannot connect"), "{of_named}");
    whole.relay.finish(Backlog::Empty);
}

#[test]
fn an_endpoint_that_leaves_between_the_samples_is_said_and_so_is_a_number_that_is_too_low() {
    let whole = Whole::start();
    whole.apiserver.count(0, |it| it.generated = Some(25));
    let other = Apiserver::single();
    other.count(0, |it| it.generated = Some(15));
    let both = [whole.apiserver.address(), other.address()];
    whole.apiserver.list(&both);
    let directory = TempDir::new().unwrap();
    let file = kubeconfig_of(&url(both[0]), "- {name: u, user: {}}", directory.path());
    let relay = url(whole.relay.admin());
    let arguments = ["--relay", &relay, "--kubeconfig", &file];
    doctor(&[&arguments[..], &["--instances", "2"]].concat()).assert("OK");
    let said = doctor(&[&arguments[..], &["--instances", "3"]].concat());
    said.assert("UNKNOWN – kube-apiserver http://");
    said.assert_has("only 2 of 3 instances have responded");
    for (first, second, what) in [
        (&both[..], &both[..1], "it has left the endpoints since the first sample"),
        (&both[..1], &both[..], "it has joined the endpoints since the first sample"),
    ] {
        whole.apiserver.list(first);
        let asked = whole.apiserver.asked().len();
        let said = std::thread::scope(|scope| {
            let arguments = [&["doctor", "--interval", "3s"], &arguments[..]].concat();
            let running = scope.spawn(move || Said::of(run_command(&arguments, Path::new("/"))));
            // The first sample asks for the list and the metrics.
            wait_until("the first sample", PATIENCE, || whole.apiserver.asked().len() > asked + 1);
            whole.apiserver.list(second);
            running.join().unwrap()
        });
        said.assert(&format!("UNKNOWN – kube-apiserver {}: unknown, {what}", url(both[1])));
    }
    whole.relay.finish(Backlog::Empty);
}

#[test]
fn while_one_hangs_the_others_are_compared_over_their_own_time() {
    let directory = TempDir::new().unwrap();
    let hung = apiserver_process(7, directory.path());
    let healthy = growing(|seconds| {
        let generated = grown(600.0, seconds);
        format!("apiserver_audit_event_total {generated}\nprocess_start_time_seconds 1\n")
    });
    // Two of three events arrive.
    let relay = growing(|seconds| relay_page(grown(400.0, seconds)));
    let (other, address) = (url(hung.address()), url(healthy.address()));
    let admin = url(relay.address());
    let named = ["--relay", &admin, "--apiserver", &address, "--apiserver", &other];
    let arguments = [&["doctor", "--interval", "5s", "--instances", "1"], &named[..]].concat();
    let said = std::thread::scope(|scope| {
        let running = scope.spawn(|| Said::of(run_command(&arguments, Path::new("/"))));
        healthy.wait_for_count(1, PATIENCE);
        std::thread::sleep(Duration::from_secs(2));
        hung.freeze();
        running.join().unwrap()
    });
    said.assert(&format!("UNKNOWN – kube-apiserver {other}: unknown, "));
    // About 1,000 events are missing. During the hang of 20 s, 8,000 more arrive.
    let last = said.text.lines().last().unwrap_or_default();
    assert!(last.contains(" unexplained: generated, and neither received nor lost"), "{last}");
    let accepted = said.text.lines().find(|line| line.contains("  accepted ")).unwrap();
    let (_, elapsed) = accepted.split_once(" in the last ").unwrap();
    let seconds: f64 = elapsed.split(' ').next().unwrap().parse().unwrap();
    assert!(seconds < 15.0, "{accepted}");
}

#[test]
fn events_that_kube_apiserver_cannot_be_collecting_any_more_are_unexplained() {
    // The webhook leads to a server that doctor does not ask.
    let nowhere = growing(|seconds| {
        let generated = grown(5.0, seconds);
        format!("apiserver_audit_event_total {generated}\nprocess_start_time_seconds 1\n")
    });
    let relay = growing(|_| relay_page(1000));
    let (admin, address) = (url(relay.address()), url(nowhere.address()));
    let begin = Instant::now();
    let named = ["--relay", &admin, "--apiserver", &address, "--instances", "1"];
    let arguments = [&["doctor", "--interval", "2s"], &named[..]].concat();
    let said = Said::of(run_command(&arguments, Path::new("/")));
    said.assert("UNKNOWN – the path from kube-apiserver to the relays: ");
    said.assert_has("unexplained: generated, and neither received nor lost");
    let elapsed = begin.elapsed();
    assert!((30..90).contains(&elapsed.as_secs()), "{elapsed:?}");
}

#[test]
fn a_kube_apiserver_that_is_restarted_between_the_samples_is_named_as_such() {
    let relay = growing(|_| relay_page(1000));
    for has_start in [true, false] {
        let apiserver = growing(move |seconds| {
            let (start, generated) = if seconds < 2.0 { (1, 900) } else { (2, 5) };
            let start = format!("process_start_time_seconds {start}\n");
            let start = if has_start { start } else { String::new() };
            format!("apiserver_audit_event_total {generated}\n{start}")
        });
        let (admin, address) = (url(relay.address()), url(apiserver.address()));
        let arguments = ["--relay", &admin, "--apiserver", &address, "--interval", "4s"];
        let arguments = [&["doctor"], &arguments[..]].concat();
        let said = Said::of(run_command(&arguments, Path::new("/")));
        said.assert(&format!("UNKNOWN – kube-apiserver {address}"));
        said.assert_has("it was restarted between the two samples");
        assert!(!said.text.to_lowercase().contains("name every kube-apiserver"), "{}", said.text);
    }
}

/// The kube-apiserver began an hour ago. The relay is older, and has first heard one that long ago.
#[test]
fn a_verdict_says_what_a_restarted_kube_apiserver_has_forgotten() {
    let hour = 3600.0;
    let started = now() - hour;
    for (heard, verdict) in [
        (Some(2.0 * hour), "UNKNOWN – kube-apiserver {}: {} was restarted at "),
        (Some(hour - 8.0), "OK so far – {} may have been restarted at "),
        (None, "OK"),
    ] {
        let relay = growing(move |seconds| {
            let mut status: Value =
                serde_json::from_str(&relay_page(grown(10.0, seconds))).unwrap();
            let one = |ago: f64| json!({ "name": "apiserver-a", "first_heard_seconds_ago": ago });
            status["apiservers"] = heard.into_iter().map(one).collect();
            status.to_string()
        });
        let apiserver = growing(move |seconds| {
            let generated = grown(10.0, seconds);
            format!(
                "apiserver_audit_event_total {generated}\nprocess_start_time_seconds {started}\n"
            )
        });
        let (admin, address) = (url(relay.address()), url(apiserver.address()));
        let said = doctor(&["--relay", &admin, "--apiserver", &address]);
        said.assert(&verdict.replace("{}", &address));
        said.assert_has("what an earlier process of it has lost is not compared");
    }
}

#[test]
fn a_wrong_token_of_the_webhook_is_named_and_not_its_certificate() {
    let certificates = Certificates::new();
    let directory = TempDir::new().unwrap();
    let token = directory.path().join("right");
    std::fs::write(&token, "right-token-0123456789abcdef\n").unwrap();
    let consumer = HttpSink::accepting();
    let listener =
        format!("bearer_token_file = {token:?}\n{}[[output]]", certificates.server.tls());
    let relay = Relay::start(&to_sink(consumer.address(), "").replace("[[output]]", &listener));
    let file = kubeconfig(directory.path(), relay.address(), &certificates);
    let said = doctor(&["--relay", &url(relay.admin()), "--webhook", &file]);
    said.assert("UNKNOWN – ");
    let of_webhook = format!("the webhook https://{}: ", relay.address());
    let line = said.text.lines().find(|line| line.starts_with(&format!("unknown: {of_webhook}")));
    let line = line.unwrap_or_else(|| panic!("{}", said.text));
    assert!(line.contains("401 Unauthorized") && line.contains("listener.bearer_token_file"));
    assert!(!said.text.contains("renew it"), "{}", said.text);
    relay.finish(Backlog::Empty);
}

#[test]
fn a_webhook_is_asked_as_client_go_does_without_credentials_and_without_the_query() {
    let webhook = HttpSink::accepting();
    let directory = TempDir::new().unwrap();
    let relay = growing(|_| relay_page(1000));
    let admin = url(relay.address());
    for (path, users, warns) in
        [("//audit//x/?token=s3cret", "- name: u", true), ("/", "- {name: u, user: {}}", false)]
    {
        let server = format!("{}{path}", url(webhook.address()));
        let file = kubeconfig_of(&server, users, directory.path());
        let said = doctor(&["--relay", &admin, "--webhook", &file]);
        said.assert("UNKNOWN – the webhook http://");
        said.assert_has("responds, but none of the relays has counted the request");
        let warning = "kube-apiserver drops the query of this URL, and so does doctor";
        assert_eq!(said.text.contains(warning), warns, "{}", said.text);
        assert!(!said.text.contains("s3cret"), "{}", said.text);
    }
    let targets: Vec<_> = webhook.requests().into_iter().map(|request| request.target).collect();
    assert_eq!(targets, ["/audit/x?timeout=30s", "/?timeout=30s"]);
}
