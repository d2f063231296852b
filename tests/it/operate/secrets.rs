//! Secrets are shown nowhere, whatever fails, even at the most detailed level of the log. Most
//! tests use `config/saas-webhook.toml` as shipped.

use crate::support::http_sink::Request;
use crate::support::prelude::*;
use crate::support::requests::{shipped, to_http};

const TOKEN: &str = "sEcReT-t0ken/with+odd=signs";
/// A part of the token that would be found even if other parts were escaped.
const TRACE: &str = "sEcReT";

/// A directory with the config and the token.
struct Place {
    directory: TempDir,
    variables: Vec<(String, String)>,
}

impl Place {
    fn new(certificates: &Certificates) -> Self {
        let directory = TempDir::new().unwrap();
        std::fs::write(directory.path().join("token"), format!("{TOKEN}\n")).unwrap();
        let roots = ("SSL_CERT_FILE".to_owned(), text(&certificates.ca).to_owned());
        Self { directory, variables: vec![roots] }
    }

    fn token(&self) -> PathBuf {
        self.directory.path().join("token")
    }

    fn config(&self, port: u16) -> String {
        let host = format!("localhost:{port}");
        let token = self.token();
        let substitutions = [("logs.example.com", host.as_str()), ("/secrets/token", text(&token))];
        let log = "[log]\nlevel = \"trace\"\n[shutdown]\ndrain_timeout = \"200ms\"\n";
        shipped("saas-webhook.toml", &substitutions) + log
    }

    fn start(&self, config: &str) -> Relay {
        let mut builder = Relay::with(config);
        for (name, value) in &self.variables {
            builder = builder.variable(name, value);
        }
        builder.start()
    }

    /// Runs `config`, `check` and `check --connect` on this config. Returns the exit status and the
    /// output of each.
    fn commands(&self, config: &str) -> Vec<(Option<i32>, String)> {
        let file = self.directory.path().join("config.toml");
        std::fs::write(&file, config).unwrap();
        let variables: Vec<_> =
            self.variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let run = |arguments: &[&str]| {
            let arguments = [arguments, &["--config", text(&file)]].concat();
            let output = run_command_with(&arguments, Path::new("/"), &variables);
            let said = [output.stdout, output.stderr].concat();
            (output.status.code(), String::from_utf8_lossy(&said).into_owned())
        };
        vec![run(&["config"]), run(&["check"]), run(&["check", "--connect"])]
    }
}

/// Returns the relay's log, standard output and admin pages.
fn shown(relay: &Relay) -> String {
    let mut shown = relay.log_lines().join("\n");
    shown.push_str(&String::from_utf8_lossy(&relay.stdout()));
    for path in ["/", "/metrics", "/status", "/readyz", "/readyz?verbose", "/livez", "/healthz"] {
        shown.push_str(&http::get(relay.admin(), path).unwrap().text());
    }
    shown
}

fn assert_hides(shown: &str, secret: &str) {
    let line = shown.lines().find(|line| line.contains(secret));
    assert_eq!(line, None, "shows {secret}");
}

/// Starts a relay whose consumer listens on this port, waits until `is_reached`, and checks that
/// neither the relay nor the commands show the token.
fn nothing_is_shown_where(
    port: u16,
    place: &Place,
    why: &str,
    is_reached: impl Fn(&Relay) -> bool,
) {
    let relay = place.start(&place.config(port));
    assert_eq!(relay.post(&generated_batch(1, 3, 900)).status, 200);
    wait_until(why, PATIENCE, || is_reached(&relay));
    let shown = shown(&relay);
    assert_hides(&shown, TRACE);
    assert_hides(&shown, "/v1/ingest");
    let fails = relay.metrics().sum("output_errors_total") > 0.0;
    assert!(!fails || shown.contains(&format!(":{port}")), "the port may be shown, and helps");
    for (_, said) in place.commands(&place.config(port)) {
        assert_hides(&said, TRACE);
    }
    relay.finish(Backlog::Stable);
}

fn failures(relay: &Relay, reason: &str) -> f64 {
    relay.metrics().value("output_errors_total", &[("output", "saas"), ("reason", reason)])
}

/// Returns a script that answers with this status, the request's target and the token.
fn echo(status: u16) -> impl Fn(&Request) -> Answer {
    move |request| {
        let header = format!("https://x{}", request.target);
        Answer::status(status)
            .header("Location", &header)
            .header("X-Token", TOKEN)
            .body(header.into_bytes())
    }
}

#[test]
fn the_token_is_shown_nowhere_while_all_is_well_or_the_answer_is_not() {
    let certificates = Certificates::new();
    let place = Place::new(&certificates);
    type Script = Box<dyn Fn(&Request) -> Answer + Send + Sync>;
    let scripts: [(Script, Option<&str>); 7] = [
        (Box::new(echo(200)), None),
        (Box::new(echo(401)), Some("status_4xx")),
        (Box::new(echo(400)), Some("status_4xx")),
        (Box::new(echo(302)), Some("protocol")),
        (Box::new(echo(500)), Some("status_5xx")),
        (Box::new(|_| Answer::hang_up()), Some("closed")),
        (
            Box::new(|it| Answer::raw(format!("nonsense {}\r\n\r\n", it.target)).closing()),
            Some("protocol"),
        ),
    ];
    for (script, reason) in scripts {
        let tls = Some(certificates.server.server_config());
        let sink = HttpSink::with(Options { tls, ..Options::default() }, script);
        nothing_is_shown_where(sink.address().port(), &place, "attempts", |relay| match reason {
            None => relay.metrics().sum("output_events_total") == 3.0,
            Some(reason) => failures(relay, reason) >= 2.0,
        });
        let sent = &sink.requests()[0].target;
        assert_eq!(sent, &format!("/v1/ingest?token={TOKEN}"), "the test looks for the wrong text");
    }
    nothing_is_shown_where(free_port(), &place, "refusals", |relay| {
        failures(relay, "connect") >= 2.0
    });
}

#[test]
fn the_token_is_shown_nowhere_while_tls_fails() {
    let certificates = Certificates::new();
    let place = Place::new(&certificates);
    for pair in
        [&certificates.wrong_server, &certificates.expired_server, &certificates.elsewhere_server]
    {
        let tls = Some(certificates.server_config(pair, false));
        let sink = HttpSink::with(Options { tls, ..Options::default() }, |_| Answer::status(200));
        nothing_is_shown_where(sink.address().port(), &place, "failed handshakes", |relay| {
            failures(relay, "tls") >= 2.0
        });
        let (code, said) = place.commands(&place.config(sink.address().port())).remove(2);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("certificate"), "{said}");
    }
    // The server speaks plain HTTP on the HTTPS port.
    let sink = HttpSink::accepting();
    nothing_is_shown_where(sink.address().port(), &place, "failed handshakes", |relay| {
        failures(relay, "tls") >= 2.0
    });
}

#[test]
fn a_token_that_breaks_the_url_is_not_quoted() {
    let certificates = Certificates::new();
    let place = Place::new(&certificates);
    for (before, after) in [
        ("https://localhost:", "/"),
        ("https://[", "]/"),
        ("", ""),
        ("https://user:", "@localhost/"),
        ("https://localhost/#", ""),
        ("ftp://localhost/", ""),
    ] {
        let urls = [format!("{before}${{file:{}}}{after}", text(&place.token()))];
        let config = to_http(&urls, "");
        let mut said = place.commands(&config);
        assert_ne!(said[1].0, Some(0), "{before}: {}", said[1].1);
        let file = place.directory.path().join("config.toml");
        let run = run_command_with(&["run", "--config", text(&file)], Path::new("/"), &[]);
        said.push((run.status.code(), String::from_utf8_lossy(&run.stderr).into_owned()));
        assert_eq!(run.status.code(), Some(2), "{}", said[3].1);
        for (_, said) in said {
            assert_hides(&said, TRACE);
        }
    }
    // The URL breaks while the relay runs. The old one stays in use, and neither is shown.
    let sink = HttpSink::accepting();
    std::fs::write(place.token(), format!("{}/sEcReT", sink.address())).unwrap();
    let urls = [format!("http://${{file:{}}}", text(&place.token()))];
    let config =
        to_http(&urls, "").replace("format = \"json\"", "format = \"json\", level = \"trace\"");
    let relay = place.start(&config);
    std::fs::write(place.token(), "sEcReT:sEcReT/").unwrap();
    relay.wait_for_log(messages::NOT_RELOADED, PATIENCE);
    assert_eq!(relay.post(&generated_batch(1, 3, 900)).status, 200);
    relay.wait_until_delivered(PATIENCE);
    assert_hides(&shown(&relay), TRACE);
    relay.finish(Backlog::Empty);
}

#[test]
fn credentials_and_headers_are_shown_nowhere() {
    let certificates = Certificates::new();
    let mut place = Place::new(&certificates);
    place.variables.push(("TENANT".to_owned(), "sEcReT-env".to_owned()));
    for status in [200, 401, 403] {
        let sink = HttpSink::start(echo(status));
        let token = place.token();
        let token = text(&token);
        let urls = [format!("http://{}/a/${{env:TENANT}}?x=${{file:{token}}}", sink.address())];
        let more = format!(
            "headers = {{ X-Key = \"${{file:{token}}}\", X-Tenant = \"${{env:TENANT}}\" }}\nbearer_token_file = \"{token}\"\n\
             [[output]]\nname = \"basic\"\ntype = \"http\"\nurls = [\"http://{}/\"]\n\
             basic_auth = {{ username = \"${{env:TENANT}}\", password_file = \"{token}\" }}\n\
             [shutdown]\ndrain_timeout = \"200ms\"\n",
            sink.address()
        );
        let config = to_http(&urls, &more)
            .replace("format = \"json\"", "format = \"json\", level = \"trace\"");
        let relay = place.start(&config);
        assert_eq!(relay.post(&generated_batch(1, 3, 900)).status, 200);
        sink.wait_for_count(2, PATIENCE);
        wait_until("both outputs", PATIENCE, || {
            let requests = sink.requests();
            let basic = requests.iter().find(|request| request.target == "/");
            let other = requests.iter().find(|request| request.target.contains(TRACE));
            let (Some(basic), Some(other)) = (basic, other) else { return false };
            let shown = shown(&relay);
            assert_hides(&shown, TRACE);
            let authorization = basic.header("authorization").unwrap();
            assert_hides(&shown, authorization.strip_prefix("Basic ").unwrap());
            assert_eq!(other.header("x-key"), Some(TOKEN));
            true
        });
        let said = place.commands(&config);
        assert_eq!(said[0].0, Some(0), "{}", said[0].1);
        assert!(said[0].1.contains("${env:TENANT}"), "strings are printed as the file has them");
        for (_, said) in said {
            assert_hides(&said, TRACE);
        }
        relay.finish(Backlog::Stable);
    }
}

#[test]
fn a_changed_token_is_used_within_three_seconds() {
    let certificates = Certificates::new();
    let place = Place::new(&certificates);
    let tls = Some(certificates.server_config(&certificates.server, false));
    let sink = HttpSink::with(Options { tls, ..Options::default() }, |_| Answer::status(200));
    let relay = place.start(&place.config(sink.address().port()));
    let (mut last, mut took) = (String::new(), Vec::new());
    for round in 0..3 {
        let token = format!("sEcReT-{round}");
        // The file is replaced by another one, as when Kubernetes swaps a mounted Secret.
        let new = place.directory.path().join("new");
        std::fs::write(&new, &token).unwrap();
        std::fs::rename(&new, place.token()).unwrap();
        let changed = Instant::now();
        let mut seed = 0;
        wait_until("the new token", PATIENCE, || {
            seed += 1;
            let count = sink.count();
            assert_eq!(relay.post(&generated_batch(seed, 1, 900)).status, 200);
            sink.wait_for_count(count + 1, PATIENCE);
            last = sink.requests()[count].target.clone();
            last.ends_with(&token)
        });
        took.push(changed.elapsed());
    }
    // On a busy machine, some rounds may take longer.
    assert!(took.iter().min() < Some(&Duration::from_secs(3)), "{took:?}");
    assert_hides(&shown(&relay), TRACE);
    relay.finish(Backlog::Empty);
}
