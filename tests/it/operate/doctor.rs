//! `doctor`: its verdict and its exit status, for real relays in several states and a fake
//! kube-apiserver.

use std::net::SocketAddr;
use std::process::{Command, Stdio};

use crate::support::apiserver::{Apiserver, Counted, kubeconfig, now};
use crate::support::prelude::*;

mod named;

struct Said {
    code: Option<i32>,
    text: String,
}

impl Said {
    fn of(output: std::process::Output) -> Self {
        let text = String::from_utf8(output.stdout).unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        Self { code: output.status.code(), text: if text.is_empty() { stderr } else { text } }
    }

    /// Checks the exit status and the beginning of the last line.
    fn assert(&self, verdict: &str) {
        let code = match verdict.split(' ').next() {
            Some("OK") => 0,
            Some("LOST") => 1,
            _ => 2,
        };
        let last = self.text.lines().last().unwrap_or_default();
        assert_eq!(self.code, Some(code), "{}", self.text);
        let wanted = format!("VERDICT: {verdict}");
        match verdict {
            "OK" => assert_eq!(last, wanted),
            _ => assert!(last.starts_with(&wanted), "{verdict}: {}", self.text),
        }
        assert_eq!(self.text.matches("VERDICT:").count(), 1, "{}", self.text);
    }

    fn assert_has(&self, part: &str) {
        assert!(self.text.contains(part), "{part}:\n{}", self.text);
    }
}

/// Runs `doctor` with a short interval.
fn doctor(arguments: &[&str]) -> Said {
    let arguments = [&["doctor", "--interval", "200ms"], arguments].concat();
    Said::of(run_command(&arguments, Path::new("/")))
}

/// Runs `doctor --json`. Returns the exit status and the object.
fn doctor_json(arguments: &[&str]) -> (Option<i32>, Value) {
    let arguments = [&["doctor", "--interval", "200ms", "--json"], arguments].concat();
    let output = run_command(&arguments, Path::new("/"));
    let json = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {output:?}"));
    (output.status.code(), json)
}

fn url(address: SocketAddr) -> String {
    format!("http://{address}")
}

/// Returns an address at which nothing listens.
fn nobody() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], free_port()))
}

#[test]
fn an_idle_relay_is_unknown_and_one_that_has_delivered_is_ok() {
    let consumer = HttpSink::accepting();
    let relay = Relay::start(&to_sink(consumer.address(), ""));
    let admin = url(relay.admin());
    let said = doctor(&["--relay", &admin]);
    said.assert("UNKNOWN – relay: nothing has happened yet");
    said.assert_has("kube-apiserver: unknown");
    // Without a URL, the config names the relay.
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("relay.toml");
    std::fs::write(&file, format!("admin = {{ address = \"{}\" }}\n", relay.admin())).unwrap();
    let variables = [("KUBE_AUDIT_FORWARDER_CONFIG", text(&file))];
    let arguments = ["doctor", "--interval", "100ms"];
    let said = Said::of(run_command_with(&arguments, Path::new("/"), &variables));
    said.assert("UNKNOWN – relay: nothing has happened yet");
    said.assert_has(&format!("relay {admin}"));
    // Four spellings of one address are one relay.
    let texts = ["http://127.0.0.1", "HTTP://127.0.0.1", "http://127.0.1", "http://0x7f000001"];
    let urls = texts.map(|text| format!("{text}:{}/", relay.admin().port()));
    let arguments: Vec<&str> = urls.iter().flat_map(|url| ["--relay", url.as_str()]).collect();
    let (_, json) = doctor_json(&arguments);
    assert_eq!(json["relay"]["instances"].as_array().unwrap().len(), 1, "{json:#}");

    assert_eq!(relay.post(&generated_batch(1, 30, 700)).status, 200);
    relay.wait_until_delivered(PATIENCE);
    let said = doctor(&["--relay", &admin]);
    said.assert("OK so far – kube-apiserver was not asked");
    said.assert_has("accepted    30, 0 in the last ");
    said.assert_has("output consumer of http://");
    said.assert_has("delivered   30");
    said.assert_has("consumer: not checked");

    let (code, json) = doctor_json(&["--relay", &format!("{admin}/")]);
    assert_eq!(code, Some(0));
    let members: Vec<_> = json.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(members, ["advice", "apiserver", "lost", "outputs", "relay", "verdict", "where"]);
    assert_eq!((&json["verdict"], &json["lost"]), (&"ok".into(), &0.into()));
    assert_eq!(json["apiserver"]["state"], "unknown");
    assert_eq!(json["relay"]["accepted"], 30);
    assert_eq!(json["outputs"][0]["name"], "consumer");
    assert_eq!(json["outputs"][0]["delivered"], 30);
    relay.finish(Backlog::Empty);
}

#[test]
fn events_that_an_output_gives_up_are_lost_with_their_number_and_the_remedy() {
    let batch = generated_batch(1, 10, 700);
    let consumer = all_but(&batch);
    let relay = Relay::start(&to_sink(consumer.address(), "rejected = { action = \"drop\" }\n"));
    give_up(&relay, &batch);
    let admin = url(relay.admin());
    let said = doctor(&["--relay", &admin]);
    said.assert("LOST – 10 events lost at output consumer of http://");
    said.assert_has("since the start at 20");
    said.assert_has("0 of them in the last ");
    said.assert_has("KubeAuditForwarderEventsLost");
    let (code, json) = doctor_json(&["--relay", &admin]);
    assert_eq!(code, Some(1));
    assert_eq!((&json["verdict"], &json["lost"]), (&"lost".into(), &10.into()));
    assert_eq!(json["where"], format!("output consumer of {admin}"));
    relay.finish(Backlog::Empty);
}

#[test]
fn a_relay_that_cannot_be_reached_is_unknown_and_a_loss_of_kube_apiserver_outranks_it() {
    let away = url(nobody());
    let said = doctor(&["--relay", &away]);
    said.assert("UNKNOWN – relay http://");
    said.assert_has("cannot connect");
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("saved");
    let counted = Counted {
        generated: Some(500),
        lost: vec![("log".to_owned(), 7), ("buffered".to_owned(), 12)],
        ..Counted::starting()
    };
    std::fs::write(&file, counted.metrics()).unwrap();
    let file = text(&file);
    let said = doctor(&["--relay", &away, "--apiserver", file]);
    said.assert("LOST – 12 events lost at kube-apiserver /");
    said.assert_has("--audit-webhook-batch-buffer-size");
    said.assert_has("7 events of the audit log lost");

    let output = Command::new(binary())
        .args(["doctor", "--relay", &away, "--apiserver", "-"])
        .stdin(Stdio::from(std::fs::File::open(file).unwrap()))
        .output()
        .unwrap();
    Said::of(output).assert("LOST – 12 events lost at kube-apiserver -");
}

/// A healthy relay with a consumer, and a kube-apiserver that started at the same time.
struct Whole {
    relay: Relay,
    apiserver: Apiserver,
    _consumer: HttpSink,
}

impl Whole {
    fn start() -> Self {
        let consumer = HttpSink::accepting();
        let relay = Relay::start(&to_sink(consumer.address(), ""));
        let apiserver = Apiserver::single();
        apiserver.count(0, |it| {
            it.generated = Some(40);
            it.posts = vec![("200".to_owned(), 1)];
        });
        assert_eq!(relay.post(&generated_batch(1, 40, 700)).status, 200);
        relay.wait_until_delivered(PATIENCE);
        Self { relay, apiserver, _consumer: consumer }
    }

    fn doctor(&self) -> Said {
        let (relay, apiserver) = (url(self.relay.admin()), url(self.apiserver.address()));
        doctor(&["--relay", &relay, "--apiserver", &apiserver])
    }
}

#[test]
fn what_kube_apiserver_counts_is_compared_with_what_the_relay_counts() {
    let whole = Whole::start();
    let said = whole.doctor();
    said.assert("OK");
    said.assert_has("generated   40");
    said.assert_has("attempts    1 to relay.example:3000 (200: 1)");
    said.assert_has("everything that was generated has arrived");
    // The interval can be 0.
    let (relay, apiserver) = (url(whole.relay.admin()), url(whole.apiserver.address()));
    let arguments = ["doctor", "--interval", "0s", "--relay", &relay, "--apiserver", &apiserver];
    let output = run_command(&arguments, Path::new("/"));
    assert_eq!(output.stderr, b"");
    let said = Said::of(output);
    said.assert("OK");
    said.assert_has("generated   40, 0 in the last 0.");

    // A difference between the totals is unexplained.
    whole.apiserver.count(0, |it| it.generated = Some(43));
    let said = whole.doctor();
    said.assert("UNKNOWN – the path from kube-apiserver to the relays: 3 events unexplained");
    said.assert_has("four minutes");

    // The events that kube-apiserver counts as lost explain the difference.
    whole.apiserver.count(0, |it| {
        it.generated = Some(43);
        it.lost = vec![("webhook".to_owned(), 3), ("log".to_owned(), 9)];
    });
    let said = whole.doctor();
    said.assert("LOST – 3 events lost at kube-apiserver http://");
    said.assert_has("AuditWebhookError");
    said.assert_has("everything that was generated has arrived, or is counted");
    whole.relay.finish(Backlog::Empty);
}

#[test]
fn saved_metrics_are_compared_by_their_totals() {
    let whole = Whole::start();
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("saved");
    let counted = |generated| Counted { generated: Some(generated), ..Counted::starting() };
    let relay = url(whole.relay.admin());
    let arguments = ["--relay", &relay, "--apiserver", text(&file)];
    let later = "OK so far – generated and received events were not compared";
    for (generated, verdict) in [(40, "OK"), (41, "UNKNOWN – the path from"), (30, later)] {
        std::fs::write(&file, counted(generated).metrics()).unwrap();
        doctor(&arguments).assert(verdict);
    }
    let no_number = "apiserver_audit_event_total NaN\n";
    for (text, what) in [
        ("<html>\n", "line 1"),
        ("", "apiserver_audit_event_total is missing"),
        (no_number, "apiserver_audit_event_total is NaN, which is not a valid number"),
    ] {
        std::fs::write(&file, text).unwrap();
        let said = doctor(&arguments);
        said.assert("UNKNOWN – kube-apiserver /");
        said.assert_has(what);
    }
    std::fs::remove_file(&file).unwrap();
    let said = doctor(&arguments);
    said.assert("UNKNOWN – kube-apiserver /");
    said.assert_has("No such file");

    // The state of the relay can also be a file, but its saved metrics are not read any more.
    let file_of_relay = directory.path().join("relay.json");
    let of_files = ["--relay", text(&file_of_relay), "--apiserver", text(&file)];
    let place = format!("relay {}", file_of_relay.display());
    let save = |page| {
        let page = http::get(whole.relay.admin(), page).unwrap();
        std::fs::write(&file_of_relay, &page.body).unwrap();
    };
    std::fs::write(&file, counted(40).metrics()).unwrap();
    save("/metrics");
    let said = doctor(&of_files);
    said.assert(&format!("UNKNOWN – {place}: unknown, "));
    said.assert_has("not the JSON of a relay's /status, which doctor reads in place of /metrics");
    save("/status");
    let said = doctor(&of_files);
    said.assert(&format!("OK so far – {} was saved at 20", file_of_relay.display()));
    said.assert_has("everything that was generated has arrived");
    std::fs::write(&file, counted(43).metrics()).unwrap();
    let said = doctor(&of_files);
    said.assert("UNKNOWN – the path from kube-apiserver to the relays: 3 events unexplained");
    said.assert_has("3 events unexplained: generated, and neither received nor lost");

    // Two files are two processes. Files are read once, so doctor does not wait for the interval.
    let started = Counted::starting().started;
    let saved = |name: &str, generated| {
        let file = directory.path().join(name);
        let counted = Counted { started, generated: Some(generated), ..Counted::starting() };
        // Some editors and shells write a byte order mark.
        std::fs::write(&file, format!("\u{feff}{}", counted.metrics())).unwrap();
        text(&file).to_owned()
    };
    let (first, second) = (saved("first", 15), saved("second", 25));
    let begin = Instant::now();
    let arguments = ["doctor", "--interval", "1m", "--relay", &relay];
    let arguments = [&arguments[..], &["--apiserver", &first, "--apiserver", &second]].concat();
    let said = Said::of(run_command(&arguments, Path::new("/")));
    assert!(begin.elapsed() < Duration::from_secs(30), "{:?}", begin.elapsed());
    said.assert("OK");
    said.assert_has(&format!("kube-apiserver {first} "));
    said.assert_has(&format!("kube-apiserver {second} "));
    said.assert_has("everything that was generated has arrived");
    whole.relay.finish(Backlog::Empty);
}

#[test]
fn instances_behind_one_address_are_told_apart_by_their_start() {
    let whole = Whole::start();
    let instance = |age: f64, generated| {
        let young = Counted::starting();
        Counted { started: young.started - age, generated: Some(generated), ..young }
    };
    let three = vec![instance(1.0, 10), instance(2.0, 12), instance(3.0, 18)];
    let balancer = Apiserver::start(three, Options::default(), None);
    let (relay, address) = (url(whole.relay.admin()), url(balancer.address()));
    let arguments = ["--relay", &relay, "--apiserver", &address];
    let (code, json) = doctor_json(&arguments);
    assert_eq!(code, Some(0), "{json:#}");
    assert_eq!(json["apiserver"]["generated"], 40);
    assert_eq!(json["apiserver"]["instances"].as_array().unwrap().len(), 3);

    balancer.count(1, |it| it.lost = vec![("webhook".to_owned(), 2)]);
    let said = doctor(&arguments);
    said.assert("LOST – 2 events lost at kube-apiserver http://");
    said.assert_has("instance 2");
    balancer.count(1, |it| it.lost.clear());

    // One instance cannot be read. The output has its URL, and says why nothing is compared.
    balancer.count(1, |it| it.is_broken = true);
    let said = doctor(&arguments);
    let place = format!("kube-apiserver {address}, another instance");
    said.assert(&format!("UNKNOWN – {place}: unknown, read 2 of its instances, and a request"));
    said.assert_has(&format!("{address}/metrics: 503 Service Unavailable: no metrics today"));
    said.assert_has(&format!("not compared: not everything could be read: {place}"));
    let said = doctor(&[&arguments[..], &["--instances", "3"]].concat());
    said.assert(&format!("UNKNOWN – kube-apiserver {address}: unknown, only 2 of 3 instances"));
    said.assert_has(&format!("{address}/metrics: 503 Service Unavailable: no metrics today"));
    balancer.count(1, |it| it.is_broken = false);

    // With the number of instances, doctor makes no superfluous request.
    let before = balancer.asked().len();
    let (_, json) = doctor_json(&[&arguments[..], &["--instances", "3"]].concat());
    assert_eq!(json["apiserver"]["instances"].as_array().unwrap().len(), 3);
    assert_eq!(balancer.asked().len() - before, 6, "{:?}", balancer.asked());
    let said = doctor(&[&arguments[..], &["--instances", "4"]].concat());
    said.assert(&format!("UNKNOWN – kube-apiserver {address}: unknown, only 3 of 4 instances"));

    // One that was read is not called unknown, although others are missing.
    let alone = url(whole.apiserver.address());
    let said = doctor(&["--relay", &relay, "--apiserver", &alone, "--instances", "3"]);
    said.assert(&format!(
        "UNKNOWN – kube-apiserver {alone}, another instance: unknown, only 1 of 3 instances have \
         responded ({alone}), and 2 not"
    ));
    assert!(!said.text.contains(&format!("kube-apiserver {alone}: unknown")), "{}", said.text);
    whole.relay.finish(Backlog::Empty);
}

#[test]
fn with_a_kubeconfig_each_endpoint_is_asked_and_one_that_is_away_is_unknown() {
    let whole = Whole::start();
    let certificates = Certificates::new();
    let start = |generated: u64| {
        let tls = Some(certificates.server.server_config());
        let counted = Counted { generated: Some(generated), ..Counted::starting() };
        Apiserver::start(vec![counted], Options { tls, ..Options::default() }, Some("s3cret"))
    };
    let (first, second) = (start(25), start(15));
    let directory = TempDir::new().unwrap();
    let file = kubeconfig(directory.path(), first.address(), &certificates);
    let relay = url(whole.relay.admin());
    let arguments = ["--relay", &relay, "--kubeconfig", &file];

    first.list(&[first.address(), second.address()]);
    let (code, json) = doctor_json(&arguments);
    assert_eq!(code, Some(0), "{json:#}");
    assert_eq!(json["apiserver"]["generated"], 40);

    let away = nobody();
    first.list(&[first.address(), away, second.address()]);
    let said = doctor(&arguments);
    said.assert(&format!("UNKNOWN – kube-apiserver https://{away}: unknown"));
    said.assert_has(&format!("kube-apiserver https://{}", second.address()));
    second.count(0, |it| it.lost = vec![("webhook".to_owned(), 4)]);
    doctor(&arguments).assert("LOST – 4 events lost");

    // The server does not list its endpoints.
    first.list(&[]);
    let said = doctor(&arguments);
    said.assert("UNKNOWN – kube-apiserver https://");
    said.assert_has("the other instances are unknown");

    // A wrong token, and then a certificate of another CA.
    std::fs::write(directory.path().join("token"), "wrong").unwrap();
    let said = doctor(&arguments);
    said.assert("UNKNOWN – kube-apiserver https://");
    said.assert_has("401 Unauthorized: Unauthorized; the credentials");
    assert!(!said.text.contains("wrong\n"), "{}", said.text);
    let tls = Some(certificates.wrong_server.server_config());
    let forged = Apiserver::start(
        vec![Counted::starting()],
        Options { tls, ..Options::default() },
        Some("s3cret"),
    );
    let file = kubeconfig(directory.path(), forged.address(), &certificates);
    let said = doctor(&["--relay", &relay, "--kubeconfig", &file]);
    said.assert("UNKNOWN – kube-apiserver https://");
    said.assert_has("TLS: ");
    assert_eq!(forged.asked(), Vec::<String>::new(), "no request without a valid certificate");
    whole.relay.finish(Backlog::Empty);
}

#[test]
fn the_webhooks_kubeconfig_is_tried_up_to_a_relay() {
    let certificates = Certificates::new();
    let consumer = HttpSink::accepting();
    let config = |server: &Pair| {
        let tls = server.tls();
        to_sink(consumer.address(), "").replace("[[output]]", &format!("{tls}[[output]]"))
    };
    let relay = Relay::start(&config(&certificates.server));
    let admin = url(relay.admin());
    let directory = TempDir::new().unwrap();
    let file = kubeconfig(directory.path(), relay.address(), &certificates);
    let arguments = ["--relay", &admin, "--webhook", &file];
    let said = doctor(&arguments);
    said.assert("UNKNOWN – relay: nothing has happened yet");
    let place = format!("ok: the webhook https://{}: ", relay.address());
    said.assert_has(&format!("{place}leads to the relay {admin}"));
    said.assert_has(&format!("{place}its certificate and CA are valid until "));
    assert_eq!(relay.metrics().value("event_total", &[]), 0.0);

    // Nobody verifies the certificate, so nothing is said of it but that.
    let contents = std::fs::read_to_string(&file).unwrap();
    let insecure = contents.replace("users:", "    insecure-skip-tls-verify: true\nusers:");
    std::fs::write(&file, &insecure).unwrap();
    let said = doctor(&arguments);
    assert_eq!(said.code, Some(2), "{}", said.text);
    said.assert_has("exclude each other");
    let authority = insecure.lines().find(|line| line.contains("authority-data")).unwrap();
    std::fs::write(&file, insecure.replace(&format!("{authority}\n"), "")).unwrap();
    let said = doctor(&arguments);
    said.assert_has("nobody checks its certificate: insecure-skip-tls-verify");
    said.assert_has(&format!("{place}leads to the relay {admin}"));
    assert!(!said.text.contains("valid until"), "{}", said.text);
    relay.finish(Backlog::Empty);

    // The certificate expires soon, and the URL leads to a relay that was not named.
    let other = Relay::start(&config(&certificates.server_for(3)));
    let named = Relay::start(&to_sink(consumer.address(), ""));
    let file = kubeconfig(directory.path(), other.address(), &certificates);
    let said = doctor(&["--relay", &url(named.admin()), "--webhook", &file]);
    said.assert("UNKNOWN – the webhook https://");
    said.assert_has("none of the relays has counted the request");
    said.assert_has("Renew the certificate");
    other.finish(Backlog::Empty);

    let Certificates { wrong_server, elsewhere_server, expired_server, .. } = &certificates;
    for server in [wrong_server, elsewhere_server, expired_server] {
        let wrong = Relay::start(&config(server));
        let file = kubeconfig(directory.path(), wrong.address(), &certificates);
        let said = doctor(&["--relay", &url(named.admin()), "--webhook", &file]);
        said.assert("UNKNOWN – the webhook https://");
        said.assert_has("TLS: ");
        wrong.finish(Backlog::Empty);
    }
    named.finish(Backlog::Empty);
}

/// kube-apiserver accepts a self-signed certificate that is also its `certificate-authority`, such
/// as `openssl req -x509` makes.
#[test]
fn a_self_signed_certificate_that_is_the_webhooks_authority_fits() {
    let mut certificates = Certificates::new();
    let server = certificates.self_signed("self-signed", |_| ());
    certificates.ca.clone_from(&server.certificate);
    let consumer = HttpSink::accepting();
    let config = to_sink(consumer.address(), "");
    let tls = server.tls();
    let relay = Relay::start(&config.replace("[[output]]", &format!("{tls}[[output]]")));
    let directory = TempDir::new().unwrap();
    let file = kubeconfig(directory.path(), relay.address(), &certificates);
    let said = doctor(&["--relay", &url(relay.admin()), "--webhook", &file]);
    said.assert_has(&format!("ok: the webhook https://{}: leads to", relay.address()));
    said.assert_has("its certificate and CA are valid until ");
    relay.finish(Backlog::Empty);
}

#[test]
fn a_probe_is_followed_to_the_relay() {
    let whole = Whole::start();
    whole.apiserver.list(&[whole.apiserver.address()]);
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("kubeconfig");
    let server = url(whole.apiserver.address());
    let config = format!(
        "current-context: x\ncontexts:\n- {{name: x, context: {{cluster: c}}}}\n\
         clusters:\n- {{name: c, cluster: {{server: '{server}'}}}}\n"
    );
    std::fs::write(&file, config).unwrap();
    let relay = url(whole.relay.admin());
    let arguments = ["--relay", &relay, "--kubeconfig", text(&file), "--probe"];
    let probes = || {
        let asked = whole.apiserver.asked();
        asked
            .iter()
            .filter(|path| path.contains("/configmaps/kube-audit-forwarder-doctor-"))
            .count()
    };
    let said = std::thread::scope(|scope| {
        let running = scope.spawn(|| doctor(&arguments));
        // kube-apiserver sends the batch when all events of the probe are in it.
        wait_until("the probe", PATIENCE, || probes() == 5);
        assert_eq!(whole.relay.post(&generated_batch(2, 5, 700)).status, 200);
        running.join().unwrap()
    });
    said.assert("OK");
    said.assert_has("ok: the probe: 5 requests were audited, and as many events arrived");

    // A relay that cannot be read is named.
    let away = url(nobody());
    let said = doctor(&["--relay", &away, "--kubeconfig", text(&file), "--probe"]);
    said.assert_has(&format!("unknown: the probe: not sent, because relay {away} ("));
    said.assert_has("cannot connect");
    whole.relay.finish(Backlog::Empty);
}

#[test]
fn wrong_usage_is_told_and_nothing_is_asked() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("kubeconfig");
    let config = "current-context: x\ncontexts:\n- {name: x, context: {cluster: c, user: u}}\n\
                clusters:\n- {name: c, cluster: {server: 'https://127.0.0.1:1'}}\n\
                users:\n- {name: u, user: {exec: {command: aws}}}\n";
    std::fs::write(&file, config).unwrap();
    let file = text(&file);
    for (arguments, what) in [
        (&["--relay", "127.0.0.1:9090"][..], "--relay: value 1 is not a URL"),
        (&["--relay", "ftp://a"], "neither http:// nor https://"),
        (&["--apiserver", "http://a:0"], "port 0"),
        (&["--apiserver", "-", "--apiserver", "-"], "only once"),
        (&["--interval", "1"], "--interval"),
        (&["--interval", "61m"], "0s to 1h"),
        (&["--instances", "0"], "--instances"),
        (&["--kubeconfig", file], "use a kubeconfig with a token"),
        (&["--kubeconfig", "/no/such"], "/no/such: cannot read"),
        (&["--webhook", "/no/such"], "/no/such: cannot read"),
        (&["--probe"], "--kubeconfig"),
        // A refused URL is identified by its position, so that its secrets are not printed.
        (&["--relay", "http://a", "--relay", "http://user:s3cret@b:9090"], "--relay: value 2 "),
        (&["--relay", "ftp://b/?token=s3cret"], "--relay: value 1 "),
        (&["--relay", "s3cret@b:9090"], "--relay: value 1 "),
        (
            &["--apiserver", "-", "--apiserver", "file", "--apiserver", "https://s3cret@b"],
            "--apiserver: value 3 ",
        ),
        (&["--apiserver", "http://b:99999/?token=s3cret"], "--apiserver: value 1 "),
        (&["--apiserver", "https:/user:s3cret@b/metrics"], "--apiserver: value 1 "),
    ] {
        let refused = said(&[&["doctor"], arguments].concat(), Path::new("/"));
        refused.assert_refused(what);
        assert!(!refused.stderr.contains("s3cret"), "{refused:?}");
    }
}
