//! `migrate haproxy`: a relay with the printed config forwards the same requests as the real
//! HAProxy with the original file.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;

use crate::support::peers;
use crate::support::peers::{Haproxy, forwarder};
use crate::support::prelude::*;

/// Starts a relay with the config that `migrate` prints for this HAProxy, on ports that the kernel
/// chooses.
fn migrated(haproxy: &Haproxy) -> Relay {
    let file = haproxy.config_file();
    let output = said(&["migrate", "haproxy", "--keep-paths", text(&file)], Path::new("/"));
    for (line, directive) in [(5, "timeout client 10s"), (7, "timeout server 10s")] {
        output.assert(0, &[&format!("{}:{line}: {directive}: ", file.display())]);
    }
    let config = output.stdout;
    said_to(config.as_bytes(), &["check", "/dev/stdin"], Path::new("/")).assert(0, &[]);
    let listens = haproxy.address().to_string();
    assert!(config.contains(&listens) && config.contains("0.0.0.0:9090"), "{config}");
    Relay::start(&config.replace(&listens, "127.0.0.1:0").replace("0.0.0.0:9090", "127.0.0.1:0"))
}

/// Posts the corpus to a forwarder. Returns the events that arrive at the consumer after that.
fn forward(sink: &HttpSink, mut post: impl FnMut(&[u8])) -> Vec<Vec<u8>> {
    let before = sink.accepted().len();
    let mut count = 0;
    for body in corpus() {
        post(&body.bytes);
        count += events_of(&body.bytes).len();
    }
    let arrived = |sink: &HttpSink| -> Vec<_> {
        sink.requests().into_iter().filter(|request| request.is_accepted()).skip(before).collect()
    };
    wait_for("every event", PATIENCE, || {
        let events: Vec<Vec<u8>> = arrived(sink).iter().flat_map(events_in).collect();
        (events.len() >= count).then_some(events)
    })
}

fn sorted(mut events: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    events.sort();
    events
}

fn post(address: SocketAddr) -> impl FnMut(&[u8]) {
    move |body| {
        let answer = http::post(address, "/post?timeout=30s", "application/json", body).unwrap();
        assert_eq!(answer.status, 200);
    }
}

/// Writes the chain and the key into one PEM file, as HAProxy needs them.
fn joined(pair: &Pair, directory: &TempDir) -> PathBuf {
    let file = directory.path().join("joined.pem");
    let parts = [&pair.certificate, &pair.key].map(|part| std::fs::read(part).unwrap());
    std::fs::write(&file, parts.concat()).unwrap();
    file
}

#[test]
#[ignore = "needs peers or root: ./test"]
fn the_consumer_of_the_providers_sample_gets_the_same_bodies() {
    let sink = HttpSink::accepting();
    let consumer = sink.address();
    let backend = format!("  server s1 {consumer} check");
    let haproxy = Haproxy::with(|port| forwarder(&format!("  bind 127.0.0.1:{port}"), &backend));
    let relay = migrated(&haproxy);
    for body in corpus() {
        let before = sink.accepted().len();
        post(haproxy.address())(&body.bytes);
        sink.wait_for_count(before + 1, PATIENCE);
        post(relay.address())(&body.bytes);
        relay.wait_until_delivered(PATIENCE);
        let accepted = sink.accepted();
        let [original, ours] = &accepted[before..] else { panic!("{} requests", accepted.len()) };
        if body.bytes.starts_with(br#"{"kind":"EventList""#) {
            assert_eq!(original.trim_ascii_end(), ours.trim_ascii_end(), "{}", body.name);
        } else {
            assert_eq!(events_of(original), events_of(ours), "{}", body.name);
        }
    }
    relay.finish(Backlog::Empty);
}

#[test]
#[ignore = "needs peers or root: ./test"]
fn a_consumer_that_wants_tls_and_a_client_certificate_gets_the_same_events() {
    let certificates = Certificates::new();
    let directory = TempDir::new().unwrap();
    let client = joined(&certificates.client, &directory);
    let tls = Some(certificates.server_config(&certificates.server, true));
    let sink = HttpSink::with(Options { tls, ..Options::default() }, |_| Answer::status(200));
    let backend = format!(
        "  server s1 {} check ssl crt {} ca-file {} verify required verifyhost localhost",
        sink.address(),
        text(&client),
        text(&certificates.ca)
    );
    let haproxy = Haproxy::with(|port| forwarder(&format!("  bind 127.0.0.1:{port}"), &backend));
    let relay = migrated(&haproxy);
    let original = forward(&sink, post(haproxy.address()));
    let ours = forward(&sink, post(relay.address()));
    assert!(sorted(original) == sorted(ours));
    relay.finish(Backlog::Empty);
}

#[test]
#[ignore = "needs peers or root: ./test"]
fn a_frontend_that_wants_tls_and_client_certificates_takes_the_same_senders() {
    let certificates = Certificates::new();
    let directory = TempDir::new().unwrap();
    let server = joined(&certificates.server, &directory);
    let sink = HttpSink::accepting();
    let frontend =
        format!("ssl crt {} ca-file {} verify required", text(&server), text(&certificates.ca));
    let backend = format!("  server s1 {} check", sink.address());
    let haproxy =
        Haproxy::with(|port| forwarder(&format!("  bind 127.0.0.1:{port} {frontend}"), &backend));
    let relay = migrated(&haproxy);
    let ca = ["--cacert", text(&certificates.ca)];
    let client = &certificates.client;
    let identity = ["--cert", text(&client.certificate), "--key", text(&client.key)];
    let curl = |address: SocketAddr, options: &[&str], body: &[u8]| {
        let url = format!("https://localhost:{}/post", address.port());
        let header =
            ["--fail", "-H", "Content-Type: application/json", "--data-binary", "@-", &url];
        peers::curl(&[&ca[..], options, &header].concat(), body).status.success()
    };
    let forwarded = [haproxy.address(), relay.address()].map(|address| {
        assert!(!curl(address, &[], b"{}"), "without a certificate");
        forward(&sink, |body| assert!(curl(address, &identity, body)))
    });
    let [original, ours] = forwarded.map(sorted);
    assert!(original == ours);
    relay.finish(Backlog::Empty);
}

/// Makes a self-signed CA certificate with `openssl req -x509`, in files with this name.
fn self_signed(directory: &TempDir, name: &str) -> Pair {
    let at = |end: &str| directory.path().join(format!("{name}.{end}"));
    let pair = Pair { certificate: at("crt"), key: at("key") };
    let mut command = Command::new(program("openssl"));
    command.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30"]);
    command.args([
        "-subj",
        "/CN=localhost",
        "-addext",
        "subjectAltName=DNS:localhost,IP:127.0.0.1",
    ]);
    command.args(["-keyout", text(&pair.key), "-out", text(&pair.certificate)]);
    let made = command.output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    pair
}

/// Method: the consumer, the forwarder and the sender each have a self-signed certificate that is
/// its own CA. curl and HAProxy accept such certificates.
#[test]
#[ignore = "needs peers or root: ./test"]
fn self_signed_certificates_go_along_and_are_trusted_as_haproxy_trusts_them() {
    let directory = TempDir::new().unwrap();
    let [consumer, server, client, stranger] =
        ["consumer", "server", "client", "stranger"].map(|name| self_signed(&directory, name));
    let options = Options { tls: Some(consumer.server_config()), ..Options::default() };
    let sink = HttpSink::with(options, |_| Answer::status(200));
    let frontend = format!(
        "ssl crt {} ca-file {} verify required",
        text(&joined(&server, &directory)),
        text(&client.certificate)
    );
    let backend = format!(
        "  server s1 {} ssl ca-file {} verify required verifyhost localhost",
        sink.address(),
        text(&consumer.certificate)
    );
    let haproxy =
        Haproxy::with(|port| forwarder(&format!("  bind 127.0.0.1:{port} {frontend}"), &backend));
    let relay = migrated(&haproxy);
    let curl = |address: SocketAddr, identity: &Pair, body: &[u8]| {
        let url = format!("https://localhost:{}/post", address.port());
        let ca = ["--cacert", text(&server.certificate)];
        let identity = ["--cert", text(&identity.certificate), "--key", text(&identity.key)];
        let header =
            ["--fail", "-H", "Content-Type: application/json", "--data-binary", "@-", &url];
        peers::curl(&[&ca[..], &identity, &header].concat(), body).status.success()
    };
    let forwarded = [haproxy.address(), relay.address()].map(|address| {
        assert!(!curl(address, &stranger, b"{}"), "with a certificate that is not the CA");
        forward(&sink, |body| assert!(curl(address, &client, body)))
    });
    let [original, ours] = forwarded.map(sorted);
    assert!(original == ours);
    relay.finish(Backlog::Empty);
}

#[test]
#[ignore = "needs peers or root: ./test"]
fn a_backup_gets_everything_while_the_first_server_is_down() {
    let sink = HttpSink::accepting();
    let dead = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let backend = format!(
        "  option redispatch\n  retry-on conn-failure\n  server backup {} check backup\n  server first {dead} check",
        sink.address()
    );
    let haproxy = Haproxy::with(|port| forwarder(&format!("  bind 127.0.0.1:{port}"), &backend));
    let relay = migrated(&haproxy);
    // HAProxy checks a server every two seconds. After three failures, the server counts as down.
    wait_for("HAProxy to use its backup", PATIENCE, || {
        let answer = http::post(haproxy.address(), "/", "application/json", b"{}").ok()?;
        (answer.status == 200).then_some(())
    });
    let original = forward(&sink, post(haproxy.address()));
    let ours = forward(&sink, post(relay.address()));
    assert!(sorted(original) == sorted(ours));
    relay.finish(Backlog::Empty);
}

#[test]
#[ignore = "needs peers or root: ./test"]
fn standard_input_is_read_and_what_is_no_config_is_wrong_usage() {
    let directory = TempDir::new().unwrap();
    let sample = forwarder("  bind :3000", "  server s1 10.0.0.1:8080 check");
    let piped = said_to(sample.as_bytes(), &["migrate", "haproxy", "-"], directory.path());
    piped.assert(0, &["address = \"0.0.0.0:3000\""]);
    // A comment may have any encoding, as for HAProxy.
    let comment = [b"# caf\xe9\n", sample.as_bytes()].concat();
    std::fs::write(directory.path().join("latin1.cfg"), comment).unwrap();
    let read = said(&["migrate", "haproxy", "latin1.cfg"], directory.path());
    read.assert(0, &["address = \"0.0.0.0:3000\""]);
    let directive = [sample.as_bytes(), b"  option caf\xe9 # caf\xe9\n"].concat();
    std::fs::write(directory.path().join("latin1.cfg"), directive).unwrap();
    let undecided = said(&["migrate", "haproxy", "latin1.cfg"], directory.path());
    undecided.assert(3, &["option caf\u{fffd} # caf\u{fffd}: it has"]);
    std::fs::write(directory.path().join("empty.cfg"), "").unwrap();
    for (file, what) in
        [("empty.cfg", "nothing is written"), ("none.cfg", "cannot read it: No such file")]
    {
        let refused = said(&["migrate", "haproxy", file], directory.path());
        refused.assert_refused(what).assert_refused(file);
    }
}

/// Returns the examples. Each is a haproxy.cfg whose `#! KEY: VALUE` lines say what to expect.
fn examples() -> Vec<(String, String)> {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/haproxy");
    let read = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        (name, std::fs::read_to_string(path).unwrap())
    };
    let mut examples: Vec<_> = std::fs::read_dir(directory).unwrap().map(read).collect();
    examples.sort();
    examples
}

/// Returns the value of a key in the head of an example.
fn expected<'a>(example: &'a str, key: &str) -> &'a str {
    let prefix = format!("#! {key}: ");
    example.lines().find_map(|line| line.strip_prefix(&prefix)).unwrap()
}

/// Makes a temporary directory with the files that the examples name below `/etc/haproxy`.
fn files_of_haproxy() -> TempDir {
    let certificates = Certificates::new();
    let directory = TempDir::new().unwrap();
    let place = directory.path();
    std::fs::create_dir(place.join("certs")).unwrap();
    std::fs::create_dir(place.join("errors")).unwrap();
    let pem = joined(&certificates.server, &directory);
    for name in ["site.pem", "client.pem", "certs/site.pem"] {
        std::fs::copy(&pem, place.join(name)).unwrap();
    }
    std::fs::copy(&certificates.ca, place.join("ca.pem")).unwrap();
    // HAProxy reads a file of certificates as an empty revocation list.
    std::fs::copy(&certificates.ca, place.join("crl.pem")).unwrap();
    std::fs::write(place.join("list.txt"), format!("{}\n", text(&place.join("site.pem")))).unwrap();
    let agent = "[waf]\nspoe-agent agent\n groups check\n timeout processing 1s\n use-backend agents\n\
                 spoe-group check\n messages one\nspoe-message one\n args path\n";
    std::fs::write(place.join("spoe.conf"), agent).unwrap();
    std::fs::write(place.join("errors/503.http"), "HTTP/1.0 503 Busy\r\n\r\n").unwrap();
    directory
}

/// Returns whether the installed HAProxy would start with the config, and what it prints.
fn haproxy_takes(config: &str, directory: &TempDir) -> (bool, String) {
    let file = directory.path().join("judged.cfg");
    std::fs::write(&file, config.replace("/etc/haproxy", text(directory.path()))).unwrap();
    let output = Command::new(program("haproxy")).args(["-c", "-f", text(&file)]).output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
#[ignore = "needs peers or root: ./test"]
fn the_real_haproxy_agrees_which_examples_are_valid() {
    let directory = files_of_haproxy();
    for (name, example) in examples() {
        let (takes, said) = haproxy_takes(&example, &directory);
        match expected(&example, "judge") {
            "installed" => assert!(takes, "{name}: {said}"),
            // Written for HAProxy 3.0; the installed version is older.
            "3.0" => assert!(said.contains("unknown keyword"), "{name}: {said}"),
            "refused" => assert!(!takes, "{name}: {said}"),
            judge => panic!("{name}: {judge}"),
        }
    }
}

#[test]
#[ignore = "needs peers or root: ./test"]
fn the_exit_status_says_if_something_that_matters_is_left_out() {
    let directory = TempDir::new().unwrap();
    for (name, example) in examples() {
        let file = directory.path().join(&name);
        std::fs::write(&file, &example).unwrap();
        let Said { code, stdout, stderr } = said(&["migrate", "haproxy", &name], directory.path());
        let exit: i32 = expected(&example, "exit").parse().unwrap();
        assert_eq!(code, Some(exit), "{name}: {stderr}");
        let force = || said(&["migrate", "haproxy", "--force", &name], directory.path());
        if exit == 2 {
            assert!(stdout.is_empty() && stderr.contains(&format!("{name}:")), "{name}: {stderr}");
            force().assert_refused("");
            continue;
        }
        if exit == 3 {
            let forced = force();
            assert_eq!((forced.code, &forced.stdout), (Some(0), &stdout), "{name}");
        }
        let places: Vec<usize> = ["\ndecide: ", "\nno effect: "]
            .iter()
            .filter_map(|verdict| stderr.find(verdict))
            .collect();
        assert!(stderr.starts_with(&format!("{name}: ")) && places.is_sorted(), "{name}: {stderr}");
        assert_eq!(stderr.contains("\ndecide: "), exit == 3, "{name}: {stderr}");
        // The comments of the config have the same list as stderr.
        let is_of_list =
            |line: &&str| line.starts_with("decide: ") || line.starts_with("no effect: ");
        for line in stderr.lines().filter(is_of_list) {
            assert!(stdout.contains(&format!("\n# {line}\n")), "{name}: {line}\n{stdout}");
        }
        assert_eq!(stderr.contains("exit status 3"), exit == 3, "{name}: {stderr}");
        let config = directory.path().join("relay.toml");
        std::fs::write(&config, &stdout).unwrap();
        said(&["check", "--elsewhere", "relay.toml"], directory.path()).assert(0, &[]);
    }
}

#[test]
#[ignore = "needs peers or root: ./test"]
fn the_report_says_whether_the_installed_haproxy_has_judged_the_file() {
    let directory = TempDir::new().unwrap();
    let sample = forwarder("  bind :3000", "  server s1 10.0.0.1:8080 check");
    let file = directory.path().join("haproxy.cfg");
    std::fs::write(&file, sample.replace("5s", "five")).unwrap();
    let installed = program("haproxy").parent().unwrap().to_owned();
    for (path, exit, said) in [
        (installed.as_path(), 2, "HAProxy would not start with this file: nothing is written"),
        (
            directory.path(),
            3,
            "NOT CHECKED: validity: `haproxy -c` gave no result: No such file or directory",
        ),
    ] {
        let words = ["migrate", "haproxy", text(&file)];
        let variables = [("PATH", text(path))];
        let output = Said::of(run_command_with(&words, Path::new("/"), &variables));
        output.assert(exit, &[said]);
        assert_eq!(output.stdout.contains(&format!("# {said}")), exit == 3, "{output:?}");
    }
}

/// Returns the batches that the consumer has accepted, without HAProxy's health checks.
fn batches(sink: &HttpSink) -> Vec<Request> {
    let mut requests = sink.requests();
    requests.retain(|request| request.is_accepted() && request.method == "POST");
    requests
}

/// Waits for the accepted batch with this number, counted from 0.
fn accepted(sink: &HttpSink, number: usize) -> Request {
    wait_for("an accepted batch", PATIENCE, || batches(sink).into_iter().nth(number))
}

/// What a consumer received for one batch: method and target, some headers, and the body.
type Seen = (String, Vec<(String, String)>, Vec<u8>);

/// Sends the same batch to HAProxy and to a relay with the migrated config. Returns what the
/// consumer received from each. `names` are the headers to compare.
fn side_by_side(frontend: &str, backend: &str, names: &[&str], exit: i32) -> [Seen; 2] {
    let sink = HttpSink::accepting();
    let backend = format!("{backend}\n  server s1 {} check", sink.address());
    let haproxy =
        Haproxy::with(|port| forwarder(&format!("  bind 127.0.0.1:{port}\n{frontend}"), &backend));
    let file = haproxy.config_file();
    let output = said(&["migrate", "haproxy", text(&file)], Path::new("/"));
    output.assert(exit, &[]);
    let config = output.stdout.replace(&haproxy.address().to_string(), "127.0.0.1:0");
    let relay = Relay::start(&config.replace("0.0.0.0:9090", "127.0.0.1:0"));
    let body = &corpus()[0].bytes;
    let seen = [haproxy.address(), relay.address()].map(|address| {
        let before = batches(&sink).len();
        post(address)(body);
        let request = accepted(&sink, before);
        let value = |name: &&str| {
            let value = request.header(name).unwrap_or_default().to_owned();
            ((*name).to_owned(), value)
        };
        let headers = names.iter().map(value).collect();
        let first = format!("{} {}", request.method, request.target);
        (first, headers, request.body.trim_ascii_end().to_vec())
    });
    relay.finish(Backlog::Empty);
    seen
}

#[test]
#[ignore = "needs peers or root: ./test"]
fn a_path_and_headers_that_haproxy_sets_arrive_the_same() {
    let frontend = "  http-request set-header X-Token \"a b\"\n  http-request set-header X-Twice 1";
    let backend = "  http-request set-path /kube.audit\n  http-request set-header X-Twice 2";
    let names = ["x-token", "x-twice", "content-type"];
    let [original, ours] = side_by_side(frontend, backend, &names, 0);
    // HAProxy keeps the query of the sender's URL. The relay has that of its output's URL.
    assert_eq!(
        (original.0.split('?').next(), ours.0.as_str()),
        (Some("POST /kube.audit"), "POST /kube.audit")
    );
    assert_eq!(original.1[..2].iter().map(|(_, v)| v.as_str()).collect::<Vec<_>>(), ["a b", "2"]);
    assert!(original.1 == ours.1 && original.2 == ours.2, "{:?} {:?}", original.1, ours.1);
}

#[test]
#[ignore = "needs peers or root: ./test"]
fn what_is_left_out_without_effect_changes_nothing_for_the_consumer() {
    let frontend = "  option httplog\n  option http-server-close\n  option tcpka\n  \
                    option http-buffer-request\n  no option dontlognull\n  timeout http-keep-alive 9s";
    let backend = "  option httpchk\n  option redispatch\n  retries 2\n  timeout queue 9s\n  \
                   http-request set-path /";
    let [original, ours] = side_by_side(frontend, backend, &["content-type"], 0);
    assert_eq!(original.0.split('?').next(), Some("POST /"));
    assert!(original.1 == ours.1 && original.2 == ours.2, "{:?} {:?}", original.1, ours.1);
}

#[test]
#[ignore = "needs peers or root: ./test"]
fn a_header_that_is_to_decide_about_is_one_that_the_consumer_misses() {
    let frontend = "  option forwardfor\n  http-request set-header X-Sender %[src]";
    let backend = "  http-request set-path /";
    let names = ["x-forwarded-for", "x-sender"];
    let [original, ours] = side_by_side(frontend, backend, &names, 3);
    assert!(original.1.iter().all(|(_, value)| value == "127.0.0.1"), "{:?}", original.1);
    assert!(ours.1.iter().all(|(_, value)| value.is_empty()), "{:?}", ours.1);
    assert!(original.2 == ours.2);
}

#[test]
#[ignore = "needs peers or root: ./test"]
fn the_commands_of_the_report_take_haproxys_pem_file_apart() {
    let certificates = Certificates::new();
    let directory = TempDir::new().unwrap();
    let pem = joined(&certificates.server, &directory);
    let sink = HttpSink::accepting();
    let bind = format!("  bind 127.0.0.1:3000 ssl crt {}", text(&pem));
    let config = forwarder(&bind, &format!("  server s1 {}", sink.address()));
    std::fs::write(directory.path().join("haproxy.cfg"), config).unwrap();
    let Said { code, stdout: config, stderr } =
        said(&["migrate", "haproxy", "haproxy.cfg"], directory.path());
    assert_eq!(code, Some(0), "{stderr}");
    let commands: Vec<&str> = stderr.lines().filter_map(|line| line.strip_prefix("    ")).collect();
    let [chain, key, create] = commands.as_slice() else { panic!("{stderr}") };
    assert!(create.ends_with("--from-file=tls.crt --from-file=tls.key"), "{create}");
    let shell = Command::new("sh")
        .args(["-ec", &format!("{chain}\n{key}")])
        .current_dir(directory.path())
        .status()
        .unwrap();
    assert!(shell.success(), "{stderr}");
    let chain = std::fs::read_to_string(directory.path().join("tls.crt")).unwrap();
    assert!(!chain.contains("PRIVATE KEY") && chain.contains("CERTIFICATE"), "{chain}");
    assert!(config.contains("certificate = \"/certificates/tls.crt\""), "{config}");
    let config = config.replace("/certificates", text(directory.path()));
    let config = config.replace("127.0.0.1:3000", "127.0.0.1:0");
    let relay = Relay::start(&config.replace("0.0.0.0:9090", "127.0.0.1:0"));
    let url = format!("https://localhost:{}/post", relay.address().port());
    let ca = text(&certificates.ca);
    let kind = "Content-Type: application/json";
    let arguments = ["--fail", "--cacert", ca, "-H", kind, "--data-binary", "@-", url.as_str()];
    let sent = peers::curl(&arguments, &corpus()[0].bytes);
    assert!(sent.status.success(), "{}", String::from_utf8_lossy(&sent.stderr));
    sink.wait_for_count(1, PATIENCE);
    relay.finish(Backlog::Empty);
}
