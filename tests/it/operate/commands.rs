//! The commands besides `run`: what they print, to which stream, and their exit status.

use std::io::Write as _;
use std::net::SocketAddr;

use super::check::LISTENER;
use crate::support::lumberjack_sink::LumberjackSink;
use crate::support::prelude::*;
use crate::support::relay::without_summary;
use crate::support::relp_sink::RelpSink;
use crate::support::server::Server;

fn run(arguments: &[&str], config: &str) -> Said {
    let directory = TempDir::new().unwrap();
    std::fs::write(directory.path().join("config.toml"), config).unwrap();
    said(arguments, directory.path())
}

const CHECK: [&str; 3] = ["check", "--config", "config.toml"];
const CONNECT: [&str; 4] = ["check", "--connect", "--config", "config.toml"];

#[test]
fn check_names_every_problem_with_its_place() {
    let config = "[[listener]]\naddress = \"nowhere\"\nport = 3000\n\n[queue]\nmax_bytes = \"much\"\n\
                  when_full = \"panic\"\n\n[[output]]\nname = \"Big Name\"\ntype = \"http\"\n\
                  urls = [\"ftp://x/\"]\nconcurency = 2\n[output.retry]\nmultiplier = 0.5\n";
    let Said { code, stdout, stderr } = run(&CHECK, config);
    assert_eq!((code, stdout.as_str()), (Some(2), ""));
    let places: Vec<&str> = stderr
        .lines()
        .map(|line| {
            line.strip_prefix("config.toml:").expect("the file first").split(": ").next().unwrap()
        })
        .collect();
    assert_eq!(
        places,
        ["2:11", "3:1", "6:13", "7:13", "10:8", "12:9", "13:1", "15:14"],
        "{stderr}"
    );
    let line =
        |place: &str| stderr.lines().find(|line| line.contains(&format!(":{place}: "))).unwrap();
    assert!(line("3:1").contains("listener[0].port"), "{stderr}");
    assert!(line("7:13").contains("drop_oldest"), "what is allowed: {stderr}");
    assert!(line("13:1").contains("concurrency"), "the nearest key: {stderr}");
}

/// Returns the shipped configs that this binary can run.
fn shipped() -> Vec<PathBuf> {
    let files = std::fs::read_dir(repository().join("config")).unwrap();
    let files = files.map(|entry| entry.unwrap().path());
    let needs_kafka = |file: &PathBuf| text(file).contains("/kafka-");
    files.filter(|file| cfg!(feature = "kafka") || !needs_kafka(file)).collect()
}

#[test]
fn check_takes_the_shipped_configs() {
    let certificates = Certificates::new();
    let token = TempDir::new().unwrap();
    std::fs::write(token.path().join("token"), "s3cret\n").unwrap();
    let token = token.path().join("token");
    let files = [
        ("/certificates/ca.crt", &certificates.ca),
        ("/certificates/client.crt", &certificates.client.certificate),
        ("/certificates/client.key", &certificates.client.key),
        ("/certificates/tls.crt", &certificates.server.certificate),
        ("/certificates/tls.key", &certificates.server.key),
        ("/secrets/token", &token),
        ("/secrets/api-key", &token),
        ("/secrets/loki-token", &token),
        ("/secrets/access-key-id", &token),
        ("/secrets/secret-access-key", &token),
        ("/secrets/hec-token", &token),
    ];
    for file in shipped() {
        // The config is checked unchanged, for another machine (`--elsewhere`), because this one
        // has none of its files.
        let words = ["check", "--elsewhere", "--config", text(&file)];
        let Said { code, stdout, stderr } = said(&words, Path::new("/"));
        assert_eq!((code, stdout.as_str()), (Some(0), ""), "{stderr}");
        let stderr = without_summary(&stderr, text(&file));
        let mut lines: Vec<_> = stderr.lines().collect();
        assert!(lines.pop().is_some_and(|line| line.starts_with("ok: ")), "{stderr}");
        for line in lines {
            assert!(line.contains("warning") && line.contains("does not exist"), "{line}");
        }
        // Then the config is checked with files that exist, and must cause no warning.
        let mut config = std::fs::read_to_string(&file).unwrap();
        for (theirs, ours) in files {
            config = config.replace(theirs, text(ours));
        }
        let Said { code, stdout, stderr } = run(&CHECK, &config);
        assert_eq!((code, stdout.as_str()), (Some(0), ""), "{stderr}");
        let stderr = without_summary(&stderr, "config.toml");
        assert!(stderr.starts_with("ok: ") && stderr.lines().count() == 1, "{stderr}");
    }
}

#[test]
fn check_connects_to_every_address_of_every_output() {
    let certificates = Certificates::new();
    let tls = Some(certificates.server_config(&certificates.server, false));
    let secure = HttpSink::with(Options { tls, ..Options::default() }, |_| Answer::status(200));
    let (plain, lines) = (HttpSink::accepting(), TcpSink::start());
    let nobody = free_port();
    let live = format!(
        "{LISTENER}[[output]]\nname = \"web\"\ntype = \"http\"\nurls = [\"http://{}/a\", \"https://localhost:{}/b\"]\ntls = {{ ca = {:?} }}\n\
         [[output]]\nname = \"lines\"\ntype = \"tcp\"\naddresses = [\"{}\"]\n\
         [[output]]\nname = \"log\"\ntype = \"syslog\"\naddresses = [\"{}\"]\nmax_message_bytes = 8000\n\
         [[output]]\nname = \"here\"\ntype = \"stdout\"\n",
        plain.address(),
        secure.address().port(),
        certificates.ca,
        lines.address(),
        lines.address()
    );
    let Said { code, stdout, stderr } = run(&CONNECT, &live);
    assert_eq!((code, stdout.as_str()), (Some(0), ""), "{stderr}");
    let stderr = without_summary(&stderr, "config.toml");
    let (connected, ok) = stderr.trim_end().rsplit_once('\n').unwrap();
    assert_eq!(connected.lines().count(), 5, "{stderr}");
    assert!(connected.lines().all(|line| line.ends_with(": ok")), "{stderr}");
    assert_eq!(ok, "ok: 1 listener, 4 outputs");
    wait_until("the connections", PATIENCE, || lines.history().len() == 2);
    assert_eq!(
        (plain.count(), secure.count(), lines.count()),
        (1, 1, 0),
        "an empty list to each URL"
    );
    for sink in [&plain, &secure] {
        assert!(sink.requests()[0].body.ends_with(br#""items":[]}"#), "no event is sent");
    }

    for (output, what) in [
        (format!("type = \"tcp\"\naddresses = [\"127.0.0.1:{nobody}\"]\n"), "refused"),
        (format!("type = \"http\"\nurls = [\"http://{}.invalid/\"]\n", "x".repeat(64)), "resolve"),
    ] {
        let Said { code, stdout, stderr } =
            run(&CONNECT, &format!("{live}[[output]]\nname = \"bad\"\n{output}"));
        assert_eq!((code, stdout.as_str()), (Some(1), ""), "{stderr}");
        assert_eq!(stderr.lines().filter(|line| line.ends_with(": ok")).count(), 5, "{stderr}");
        let bad =
            stderr.lines().find(|line| line.starts_with("output bad: ")).expect("a line of it");
        assert!(bad.contains(what), "{what}: {bad}");
    }
}

#[test]
fn check_asks_a_relp_consumer_whether_it_is_one() {
    let relp = RelpSink::start();
    let web = Server::start(Options::default(), |mut stream, _| {
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
    });
    let (silent, beats) = (TcpSink::start(), LumberjackSink::start());
    let output = |name: &str, kind: &str, address: SocketAddr| {
        format!(
            "[[output]]\nname = \"{name}\"\ntype = \"{kind}\"\naddresses = [\"{address}\"]\n\
             timeouts = {{ connect = \"500ms\" }}\n"
        )
    };
    let config = [
        LISTENER,
        &output("relp", "relp", relp.address()),
        &output("beats", "lumberjack", beats.address()),
        &output("web", "relp", web.address()),
        &output("silent", "relp", silent.address()),
    ]
    .concat();
    let Said { code, stdout, stderr } = run(&CONNECT, &config);
    assert_eq!((code, stdout.as_str()), (Some(1), ""), "{stderr}");
    let line = |name: &str| {
        let line = stderr.lines().find(|line| line.starts_with(&format!("output {name}: ")));
        line.expect("a line of it").to_owned()
    };
    assert!(line("relp").ends_with(": ok") && line("beats").ends_with(": ok"), "{stderr}");
    assert!(line("web").contains("\"HTTP/1.1 400"), "{stderr}");
    assert!(line("silent").contains("no response within the connect timeout"), "{stderr}");
    let names: Vec<_> = relp.commands().into_iter().map(|command| command.name).collect();
    assert_eq!(names, ["open", "close"]);
    assert_eq!(beats.count(), 0, "nothing is sent");
}

#[test]
fn config_prints_every_default_and_reads_what_it_prints() {
    let config = "# A comment.\n[[listener]]\naddress = \"127.0.0.1:3000\"\n[[output]]\nname = \"o\"\ntype = \"http\"\n\
                  urls = [\"https://h/${env:HOME_OF_NOBODY:-x}?t=${file:/no/such/token}\"]\n\
                  headers = { X-A = \"$${x\", \"X-B\" = \"\\\"\\\\'\\\\t\" }\n";
    let Said { code, stdout, stderr } = run(&["config", "--config", "config.toml"], config);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stderr.contains("warning") && stderr.contains("/no/such/token"), "{stderr}");
    for line in [
        "${env:HOME_OF_NOBODY:-x}?t=${file:/no/such/token}",
        "$${x",
        "max_body = \"256MiB\"",
        "when_full = \"reject\"",
        "drain_timeout = \"20s\"",
        "concurrency = 4",
    ] {
        assert!(stdout.contains(line), "{line}\n{stdout}");
    }
    let again = run(&["config", "--config", "config.toml"], &stdout);
    assert_eq!(
        (again.code, again.stdout),
        (Some(0), stdout),
        "what it prints means something else"
    );
}

#[test]
fn config_reference_names_every_key_of_the_shipped_configs() {
    let Said { code, stdout: reference, stderr } = run(&["config", "--reference"], "");
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    let rows = reference.lines().skip(2);
    rows.for_each(|row| assert_eq!(row.replace("\\|", "").matches(" | ").count(), 3, "{row}"));
    // Collects every key of a complete config, by its path.
    fn keys(table: &toml::Table, path: &str, found: &mut Vec<String>) {
        for (key, value) in table {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            let items = value.as_array().map(Vec::as_slice).unwrap_or_default();
            // Users choose the keys of these tables.
            let is_users = ["headers", "labels", "resource"].contains(&key.as_str());
            if let Some(inner) = value.as_table().filter(|_| !is_users) {
                keys(inner, &path, found);
            } else if items.iter().any(toml::Value::is_table) {
                items
                    .iter()
                    .filter_map(toml::Value::as_table)
                    .for_each(|item| keys(item, &path, found));
            } else {
                found.push(path);
            }
        }
    }
    for file in shipped() {
        let said = said(&["config", "--config", text(&file)], Path::new("/"));
        let effective: toml::Table = said.stdout.parse().unwrap();
        let mut found = Vec::new();
        keys(&effective, "", &mut found);
        assert!(found.len() > 20);
        for key in found {
            assert!(reference.contains(&format!("| `{key}`")), "{key} is not in the reference");
        }
    }
}

#[test]
fn a_closed_standard_output_is_no_panic() {
    let mut child = spawn_command(&["config", "--reference"], Path::new("/"), &[]);
    drop(child.take_stdout());
    let (status, stderr) = child.wait();
    assert!(!stderr.contains("panicked"), "{stderr}");
    assert!(status.code().is_some_and(|code| code <= 1), "{status}");
}

#[test]
fn without_anything_it_runs_the_embedded_default() {
    // The ports of the embedded default are fixed, and another program on this machine may use
    // them. The relay must then say so and end with status 1.
    let mut child = spawn_command(&[], Path::new("/"), &[("KUBE_AUDIT_FORWARDER_CONFIG", None)]);
    let told = wait_for("a start or its failure", PATIENCE, || {
        let told = child.stderr();
        (told.contains("admin listening") || told.contains("cannot listen on")).then_some(told)
    });
    if told.contains("cannot listen on") {
        let (status, stderr) = child.wait();
        assert_eq!(status.code(), Some(1), "{stderr}");
        return;
    }
    let address = "127.0.0.1:3000".parse().unwrap();
    let batch = generated_batch(1, 5, 900);
    let response = http::post(address, "/audit", "application/json", &batch).unwrap();
    assert_eq!((response.status, response.body.as_slice()), (200, &b"{\"accepted\":5}"[..]));
    let lines: Vec<u8> =
        events_of(&batch).into_iter().flat_map(|event| [event, b"\n".to_vec()].concat()).collect();
    wait_until("the events", PATIENCE, || child.stdout() == lines);
    let metrics = http::get("127.0.0.1:9090".parse().unwrap(), "/metrics").unwrap().text();
    assert!(metrics.contains("\nkube_audit_forwarder_event_total 5\n"), "{metrics}");
    child.signal(libc::SIGTERM);
    let (status, _) = child.wait();
    assert_eq!(status.code(), Some(0));
}
