//! Access to the admin address: tokens, TLS, the probe address, and the commands that use it.

use std::io;

use crate::support::http::Response;
use crate::support::prelude::*;

const READER: &str = "r3ader-token";
const SCRAPER: &str = "scrap3r-token";

/// The message about a refused request or handshake.
const REFUSED: &str = "a request or TLS handshake at the admin address was refused";

/// The message about a token file that can't be used.
const UNUSABLE: &str = "a token file of the admin address can't be used: nobody gets what its \
    token opens until the file has a token";

/// The message about certificates that can't be used.
const UNUSABLE_TLS: &str = "the certificate files in admin.tls can't be used: the relay forwards \
    events, but its admin address closes every connection until the files are good";

/// The paths that can name a user.
const NAMES: [&str; 4] = ["/status", "/status/history", "/status/volume", "/evidence/checkpoint"];

/// The paths that need no token.
const OPEN: [&str; 5] = ["/livez", "/healthz", "/readyz", "/readyz?verbose", "/drained"];

/// A directory for tokens, and a config that names files in it in `[admin]`.
struct Setup {
    directory: TempDir,
    sink: TcpSink,
}

impl Setup {
    fn new() -> Self {
        Self { directory: TempDir::new().unwrap(), sink: TcpSink::start() }
    }

    fn file(&self, name: &str) -> String {
        text(&self.directory.path().join(name)).to_owned()
    }

    fn write(&self, name: &str, token: &str) {
        // The relay must not read half a token.
        let beside = self.directory.path().join("new");
        std::fs::write(&beside, format!("{token}\n")).unwrap();
        std::fs::rename(beside, self.directory.path().join(name)).unwrap();
    }

    fn config(&self, admin: &str) -> String {
        format!("{}{}", with_admin(BASE, admin), self.sink.output("out", ""))
    }

    /// Returns the keys that name the files of both tokens.
    fn both(&self) -> String {
        format!(
            "bearer_token_file = \"{}\", metrics_token_file = \"{}\"",
            self.file("reader"),
            self.file("scraper")
        )
    }
}

fn ask(client: io::Result<Client>, path: &str, token: Option<&str>) -> Response {
    let bearer = token.map(|token| format!("Bearer {token}"));
    let headers = bearer.as_ref().map(|bearer| [("Authorization", bearer.as_str())]);
    client.unwrap().request("GET", path, headers.as_ref().map_or(&[], |it| it), b"").unwrap()
}

fn get(relay: &Relay, path: &str, token: Option<&str>) -> u16 {
    ask(Client::connect(relay.admin()), path, token).status
}

/// Checks that the paths that can name a user need `token`, and that no other token opens them.
/// There is no evidence log, so its path answers with 404.
#[track_caller]
fn assert_names_need(relay: &Relay, token: &str) {
    for path in NAMES {
        for wrong in [None, Some("wrong"), Some("r3ader-toke"), Some("r3ader-token-")] {
            let wrong = wrong.filter(|wrong| *wrong != token);
            let refused = ask(Client::connect(relay.admin()), path, wrong);
            assert_eq!(refused.status, 401, "{path} {wrong:?}");
            assert_eq!(refused.header("www-authenticate"), Some("Bearer"), "{path}");
            assert!(!refused.text().contains("out"), "{}", refused.text());
        }
        let found = if path.starts_with("/evidence") { 404 } else { 200 };
        assert_eq!(get(relay, path, Some(token)), found, "{path}");
    }
}

#[test]
fn what_names_a_user_needs_the_token_and_probes_need_none() {
    let setup = Setup::new();
    setup.write("reader", READER);
    setup.write("scraper", SCRAPER);
    let mut relay = Relay::start(&unrestricted(&setup.config(&setup.both())));
    assert_accepted(&relay.post(&generated_batch(1, 20, 600)), 20);
    assert_names_need(&relay, READER);
    wait_until("the delivery", PATIENCE, || get(&relay, "/drained", None) == 200);
    for path in OPEN {
        for token in [None, Some("wrong"), Some(READER)] {
            assert_eq!(get(&relay, path, token), 200, "{path} {token:?}");
        }
    }
    // The readers' token also opens the metrics. The scraper's token opens nothing else.
    for (token, status) in
        [(None, 401), (Some("wrong"), 401), (Some(SCRAPER), 200), (Some(READER), 200)]
    {
        assert_eq!(get(&relay, "/metrics", token), status, "{token:?}");
    }
    assert_eq!(get(&relay, "/status", Some(SCRAPER)), 401);
    // Refused scrapes are told where no token is needed.
    let metrics = ask(Client::connect(relay.admin()), "/metrics", Some(SCRAPER)).text();
    assert!(metrics.contains("\nkube_audit_forwarder_metrics_unauthorized_total 2\n"), "{metrics}");
    let verbose = ask(Client::connect(relay.admin()), "/readyz?verbose", None).text();
    assert!(verbose.contains("\n[-]metrics 2 requests refused with 401, the last "), "{verbose}");
    assert!(verbose.ends_with(" s ago (not fatal)\nreadyz check passed\n"), "{verbose}");
    // The page itself is the same for all relays, and contains nothing about this one.
    let page = ask(Client::connect(relay.admin()), "/", None);
    assert_eq!(page.status, 200);
    assert!(!page.text().contains("127.0.0.1"), "it names an address");
    // Taps have their own token.
    assert_eq!(get(&relay, "/tap", Some(READER)), 404);
    relay.wait_for_log(REFUSED, PATIENCE);
    let refused = relay.log_fields().into_iter();
    let refused = refused.filter(|line| line["message"] == REFUSED);
    assert_eq!(refused.count(), 1, "nobody can fill the log");

    // A change or removal of the token applies to the next request, even on an open connection.
    let mut open = Client::connect(relay.admin()).unwrap();
    let old = [("Authorization", "Bearer r3ader-token")];
    assert_eq!(open.request("GET", "/status", &old, b"").unwrap().status, 200);
    setup.write("reader", "another");
    wait_until("the other token", PATIENCE, || get(&relay, "/status", Some("another")) == 200);
    assert_names_need(&relay, "another");
    assert_eq!(open.request("GET", "/status", &old, b"").unwrap().status, 401);
    setup.write("reader", "");
    relay.wait_for_log(UNUSABLE, PATIENCE);
    wait_until("no token", PATIENCE, || get(&relay, "/status", Some("another")) == 401);
    setup.write("reader", READER);
    std::fs::write(relay.config_file(), unrestricted(&setup.config(""))).unwrap();
    relay.signal(libc::SIGHUP);
    wait_until("a config without tokens", PATIENCE, || get(&relay, "/status", None) == 200);
    relay.stop();
    assert!(!relay.log_text().contains("r3ader"), "{}", relay.log_text());
}

#[test]
fn without_the_file_of_a_token_nobody_gets_what_it_protects_and_events_flow() {
    let setup = Setup::new();
    let config = setup.config(&setup.both());
    let mut relay = Relay::start(&config);
    let told = relay.log_fields().into_iter().find(|line| line["key"] == "admin.bearer_token_file");
    assert!(told.is_some(), "{}", relay.log_text());
    assert_accepted(&relay.post(&generated_batch(1, 20, 600)), 20);
    wait_until("the delivery", PATIENCE, || get(&relay, "/drained", None) == 200);
    assert_eq!(setup.sink.count(), 20);
    for path in NAMES.into_iter().chain(["/metrics"]) {
        for token in [None, Some(""), Some("x")] {
            let refused = ask(Client::connect(relay.admin()), path, token);
            assert_eq!(refused.status, 401, "{path}");
            assert!(
                refused.text().contains("does not exist or has no token"),
                "{}",
                refused.text()
            );
        }
    }
    OPEN.into_iter().for_each(|path| assert_eq!(get(&relay, path, None), 200, "{path}"));
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("relay.toml");
    std::fs::write(&file, &config).unwrap();
    let checked = said(&["check", text(&file)], Path::new("/"));
    checked.assert(0, &["admin.bearer_token_file: warning: ", "No such file", "nobody gets"]);
    setup.write("reader", READER);
    wait_until("the token", PATIENCE, || get(&relay, "/status", Some(READER)) == 200);
    assert_names_need(&relay, READER);
    assert_eq!(get(&relay, "/metrics", None), 401);
    assert_eq!(get(&relay, "/metrics", Some(READER)), 200);
    relay.stop();
}

/// The keys of the token files, each with a path that its token opens, and the status without the
/// token.
const TOKENS: [(&str, &str, u16); 3] = [
    ("bearer_token_file", "/status", 401),
    ("metrics_token_file", "/metrics", 401),
    ("tap_token_file", "/tap?output=none", 404),
];

/// Method: every fault of a token file, for each key, at a start, at a reload, and in a Secret
/// volume, whose files are symlinks into `..data`, a symlink that is replaced.
#[test]
fn no_fault_of_a_token_file_stops_the_relay_or_opens_a_page() {
    type Spoil = fn(&Path);
    let faults: [(&str, Spoil); 7] = [
        ("empty", |file| std::fs::write(file, "").unwrap()),
        ("a line break", |file| std::fs::write(file, "\n").unwrap()),
        ("two lines", |file| std::fs::write(file, "t0ken\nt0ken\n").unwrap()),
        ("not UTF-8", |file| std::fs::write(file, b"t0ken\xff").unwrap()),
        ("2 MiB", |file| std::fs::write(file, vec![b't'; 2 << 20]).unwrap()),
        ("a directory", |file| std::fs::create_dir(file).unwrap()),
        ("a loop", |file| std::os::unix::fs::symlink(file, file).unwrap()),
    ];
    for (what, spoil) in faults {
        let setup = Setup::new();
        let volume = setup.directory.path();
        // Kubernetes writes a new directory, and then replaces the symlink.
        let swap = |name: &str, spoil: Option<Spoil>| {
            std::fs::create_dir(volume.join(name)).unwrap();
            for (key, ..) in TOKENS {
                let file = volume.join(name).join(key);
                spoil.map_or_else(|| std::fs::write(&file, key).unwrap(), |spoil| spoil(&file));
            }
            std::os::unix::fs::symlink(name, volume.join("..next")).unwrap();
            std::fs::rename(volume.join("..next"), volume.join("..data")).unwrap();
        };
        swap("..1", Some(spoil));
        for (key, ..) in TOKENS {
            let link = volume.join(key);
            std::os::unix::fs::symlink(Path::new("..data").join(key), link).unwrap();
        }
        let keys = TOKENS.map(|(key, ..)| format!("{key} = \"{}\"", setup.file(key))).join(", ");
        let mut relay = Relay::start(&unrestricted(&setup.config(&keys)));
        let opens = |key, path, with: u16, without: u16| {
            let status = if path == "/metrics" || path == "/status" { with } else { with.max(400) };
            get(&relay, path, Some(key)) == status && get(&relay, path, None) == without
        };
        let closed = || TOKENS.into_iter().all(|(key, path, none)| opens(key, path, none, none));
        let open = || TOKENS.into_iter().all(|(key, path, _)| opens(key, path, 200, 401));
        assert!(closed(), "{what}");
        let verbose = ask(Client::connect(relay.admin()), "/readyz?verbose", None);
        assert_eq!(verbose.status, 200, "{what}");
        for (key, ..) in TOKENS {
            let line = format!("[-]admin.{key} its file can't be used");
            assert!(verbose.text().contains(&line), "{what}: {}", verbose.text());
            let checked = said(&["check", text(relay.config_file().as_ref())], Path::new("/"));
            checked.assert(0, &[&format!("admin.{key}: warning: ")]);
        }
        assert_accepted(&relay.post(&generated_batch(1, 20, 600)), 20);
        swap("..2", None);
        wait_until("the tokens open the pages", PATIENCE, open);
        let whole = ask(Client::connect(relay.admin()), "/readyz?verbose", None).text();
        assert!(!whole.contains("[-]admin"), "{whole}");
        // The rest of a reload is applied, and the old tokens open nothing.
        swap("..3", Some(spoil));
        wait_until("the tokens open nothing", PATIENCE, closed);
        assert_accepted(&relay.post(&generated_batch(2, 20, 600)), 20);
        relay.stop();
        assert!(!relay.log_text().contains(messages::NOT_RELOADED), "{what}");
        assert_eq!(setup.sink.count(), 40, "{what}");
    }
}

/// Method: the certificate is missing, is not PEM, and belongs to another key; then the files are
/// good.
#[test]
fn broken_certificates_of_the_admin_address_close_it_and_events_flow() {
    let (setup, certificates) = (Setup::new(), Certificates::new());
    setup.write("reader", READER);
    let config = closed(&setup, &certificates, &certificates.server);
    let (good, other) = (certificates.server_for(30), certificates.server_for(20));
    let certificate = &certificates.server.certificate;
    let spoiled: [(&str, &dyn Fn()); 3] = [
        ("missing", &|| std::fs::remove_file(certificate).unwrap()),
        ("not PEM", &|| std::fs::write(certificate, "x").unwrap()),
        ("of another key", &|| {
            std::fs::copy(&other.certificate, certificate).unwrap();
        }),
    ];
    std::fs::copy(&good.key, &certificates.server.key).unwrap();
    for (what, spoil) in spoiled {
        spoil();
        let relay = Relay::start(&config);
        relay.wait_for_log(UNUSABLE_TLS, PATIENCE);
        let own = || certificates.client_config(Some(&certificates.client));
        let asked = || {
            let client = Client::connect_tls(relay.admin(), own());
            client.and_then(|mut it| it.request("GET", "/livez", &[], b""))
        };
        assert!(asked().is_err(), "{what}");
        let plain = Client::connect(relay.admin()).unwrap().request("GET", "/livez", &[], b"");
        assert!(plain.is_err(), "{what}: {plain:?}");
        let probes = relay.wait_for_log("probes listening", PATIENCE);
        let probes: SocketAddr = probes["address"].as_str().unwrap().parse().unwrap();
        let verbose = ask(Client::connect(probes), "/readyz?verbose", None);
        assert_eq!(verbose.status, 200, "{what}");
        assert!(verbose.text().contains("[-]admin.tls "), "{what}: {}", verbose.text());
        assert_accepted(&relay.post(&generated_batch(1, 20, 600)), 20);
        said(&["check", text(relay.config_file().as_ref())], Path::new("/"))
            .assert(2, &["admin.tls"]);
        // A reload that finds them broken still applies its other keys.
        let changed = config.replace("name = \"out\"", "name = \"changed\"");
        assert_ne!(changed, config);
        std::fs::write(relay.config_file(), changed).unwrap();
        relay.signal(libc::SIGHUP);
        wait_until("the reload", PATIENCE, || relay.log_text().contains("config reloaded"));
        assert!(asked().is_err(), "{what}");
        std::fs::copy(&good.certificate, certificate).unwrap();
        wait_until("the certificate", PATIENCE, || asked().is_ok_and(|it| it.status == 200));
        drop(relay);
    }
}

/// A token that was taken back opens nothing, whatever stands in its file, and although the reload
/// fails.
#[test]
fn a_token_that_was_taken_back_opens_nothing_although_the_reload_fails() {
    let setup = Setup::new();
    setup.write("reader", READER);
    setup.write("scraper", SCRAPER);
    let config = setup.config(&setup.both());
    let mut relay = Relay::start(&config);
    assert_eq!(get(&relay, "/status", Some(READER)), 200);
    // The file is empty.
    setup.write("reader", "");
    wait_until("the token opens nothing", PATIENCE, || get(&relay, "/status", Some(READER)) == 401);
    assert_eq!(get(&relay, "/metrics", Some(SCRAPER)), 200);
    // Another part of the config is wrong, and both tokens change.
    std::fs::write(relay.config_file(), format!("{config}\nnonsense = 1\n")).unwrap();
    setup.write("reader", "next");
    setup.write("scraper", "other");
    wait_until("the new tokens open the pages", PATIENCE, || {
        get(&relay, "/status", Some("next")) == 200 && get(&relay, "/metrics", Some("other")) == 200
    });
    assert_eq!(get(&relay, "/metrics", Some(SCRAPER)), 401);
    relay.stop();
}

/// Returns the config of a relay that asks for a client certificate at its admin address.
fn closed(setup: &Setup, certificates: &Certificates, server: &Pair) -> String {
    let (certificate, key) = (text(&server.certificate), text(&server.key));
    let tls = format!(
        "probe_address = \"127.0.0.1:0\", bearer_token_file = \"{}\", tls = {{ certificate = \
         \"{certificate}\", private_key = \"{key}\", client_ca = \"{}\" }}",
        setup.file("reader"),
        text(&certificates.ca),
    );
    unrestricted(&setup.config(&tls))
}

#[test]
fn https_asks_for_a_client_certificate_and_the_probe_address_for_nothing() {
    let (setup, certificates) = (Setup::new(), Certificates::new());
    setup.write("reader", READER);
    let relay = Relay::start(&closed(&setup, &certificates, &certificates.server));
    let probes = relay.wait_for_log("probes listening", PATIENCE);
    let probes: SocketAddr = probes["address"].as_str().unwrap().parse().unwrap();
    let with =
        |pair: Option<&Pair>| Client::connect_tls(relay.admin(), certificates.client_config(pair));
    let own = Some(&certificates.client);
    for pair in [None, Some(&certificates.wrong_client), Some(&certificates.expired_client)] {
        let refused = with(pair).and_then(|mut it| it.request("GET", "/livez", &[], b""));
        assert!(refused.is_err(), "{refused:?}");
    }
    let plain = Client::connect(relay.admin()).unwrap().request("GET", "/livez", &[], b"");
    assert!(plain.is_err(), "{plain:?}");
    let told = relay.wait_for_log(REFUSED, PATIENCE);
    assert!(told["reason"].as_str().unwrap().contains("client certificate"), "{told}");
    assert_eq!(ask(with(own), "/status", Some(READER)).status, 200);
    assert_eq!(ask(with(own), "/status", None).status, 401);

    for path in OPEN {
        assert_eq!(ask(Client::connect(probes), path, None).status, 200, "{path}");
    }
    for path in NAMES.into_iter().chain(["/", "/metrics", "/tap"]) {
        let refused = ask(Client::connect(probes), path, Some(READER));
        assert_eq!(refused.status, 404, "{path}");
        assert!(refused.text().contains("probe address"), "{}", refused.text());
    }

    // The certificate is renewed without a restart, and its expiry is in the metrics.
    let metrics = || {
        let text = ask(with(own), "/metrics", None).text();
        Metrics::parse(&text)
    };
    let labels = [("listener", "admin"), ("role", "server")];
    let before = metrics().value("tls_certificate_expiry_timestamp_seconds", &labels);
    let mut open = with(own).unwrap();
    assert_eq!(open.request("GET", "/livez", &[], b"").unwrap().status, 200);
    let next = certificates.server_for(30);
    std::fs::copy(&next.key, &certificates.server.key).unwrap();
    std::fs::copy(&next.certificate, &certificates.server.certificate).unwrap();
    wait_until("the next certificate", PATIENCE, || {
        metrics().value("tls_certificate_expiry_timestamp_seconds", &labels) < before
    });
    assert_eq!(open.request("GET", "/livez", &[], b"").unwrap().status, 200, "it stays open");

    // With another CA, the connections that the old one allowed are closed.
    let other = closed(&setup, &certificates, &certificates.server)
        .replace(text(&certificates.ca), text(&certificates.wrong_ca));
    std::fs::write(relay.config_file(), other).unwrap();
    relay.signal(libc::SIGHUP);
    wait_until("the other CA", PATIENCE, || {
        with(own).and_then(|mut it| it.request("GET", "/livez", &[], b"")).is_err()
    });
    assert!(open.is_closed_by_server());
    drop(relay);
}

/// Runs each command that uses the admin address with these arguments. Returns their output.
fn commands(url: &[&str], relay: &[&str], more: &[&str], key: &str) -> Vec<(String, Said)> {
    let commands: [&[&str]; 5] = [
        &["healthcheck"],
        &["drain", "--seconds", "30"],
        &["top", "--once"],
        &["volume"],
        &["doctor", "--interval", "0s"],
    ];
    let run = |command: &[&str], url: &[&str]| {
        let arguments = [command, url, more].concat();
        (command[0].to_owned(), said(&arguments, Path::new("/")))
    };
    let mut all: Vec<_> = commands
        .into_iter()
        .map(|command| run(command, if command[0] == "doctor" { relay } else { url }))
        .collect();
    if let [url] = url {
        all.push(run(&["evidence", "verify", "--url", url, "--key", key], &[]));
    }
    all
}

#[test]
fn every_command_gets_through_the_door_with_what_it_asks_for() {
    let (setup, certificates, spool) = (Setup::new(), Certificates::new(), Spool::new());
    setup.write("reader", READER);
    let key_file = setup.file("key");
    let made =
        said(&["evidence", "keygen", "--origin", "door", "--out", &key_file], Path::new("/"));
    let key = made.assert(0, &[]).stdout.trim_end();
    let evidence = format!(
        "[evidence]\norigin = \"door\"\nkey_file = \"{key_file}\"\n\
         checkpoint_interval = \"1s\"\n"
    );
    let whole = closed(&setup, &certificates, &certificates.server);
    let mut relay = Relay::start(&format!("{whole}{}{evidence}", spool.queue("")));
    assert_accepted(&relay.post(&generated_batch(1, 20, 600)), 20);
    relay.wait_for_log("probes listening", PATIENCE);
    let url = format!("https://localhost:{}", relay.admin().port());
    let reader = setup.file("reader");
    let (ca, client) = (text(&certificates.ca), &certificates.client);
    let identity = ["--certificate", text(&client.certificate), "--private-key", text(&client.key)];
    let whole = [&["--ca", ca, "--token-file", &reader], identity.as_slice()].concat();
    let signed = || {
        let mut client =
            Client::connect_tls(relay.admin(), certificates.client_config(Some(client))).unwrap();
        let bearer = format!("Bearer {READER}");
        let headers = [("Authorization", bearer.as_str())];
        client.request("GET", "/evidence/checkpoint", &headers, b"").unwrap().status == 200
    };
    wait_until("a checkpoint", PATIENCE, signed);
    for (_, said) in commands(&[&url], &["--relay", &url], &whole, key) {
        said.assert(0, &[]);
        assert!(
            !said.stderr.contains("401 Unauthorized") && !said.stderr.contains("TLS"),
            "{said:?}"
        );
    }
    // Without the token, the commands that show names report this. The others do not need it.
    let without = [&["--ca", ca], identity.as_slice()].concat();
    for (command, said) in commands(&[&url], &["--relay", &url], &without, key) {
        match command.as_str() {
            "healthcheck" | "drain" => said.assert(0, &[]),
            "doctor" => said.assert(2, &["UNKNOWN", "401 Unauthorized", "--token-file"]),
            "evidence" => said.assert(2, &["401 Unauthorized"]),
            _ => said.assert(1, &["401 Unauthorized", "admin.bearer_token_file", "--token-file"]),
        };
    }
    // Without the CA, each command names its option, and no key of a config.
    for (command, said) in commands(&[&url], &["--relay", &url], &whole[2..], key) {
        let text = format!("{}{}", said.stdout, said.stderr);
        assert!(text.contains("--ca") && !text.contains("tls.ca"), "{command}: {text}");
    }
    // Without the CA, or without the client certificate, `top` cannot connect.
    for (more, why) in
        [(&whole[2..], "TLS: invalid peer certificate"), (&whole[..4], "--certificate")]
    {
        let (_, said) = commands(&[&url], &["--relay", &url], more, key).remove(2);
        said.assert(1, &[why]);
    }
    relay.stop();
}
