//! `tap` and `GET /tap`: who may use them, what they show, what they never show, and that a reader
//! does not slow down the relay.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::prelude::*;
use crate::support::relay::Running;

const TOKEN: &str = "t4p-s3cret";

/// A relay with a token for taps, and the token's directory.
struct Tapped {
    relay: Relay,
    directory: TempDir,
}

/// Returns the config of a relay with these outputs, whose token file is in this directory.
fn config(directory: &Path, outputs: &str) -> String {
    let file = directory.join("token");
    let base = with_admin(BASE, &format!("tap_token_file = \"{}\"", text(&file)));
    assert!(base.contains("tap_token_file"));
    format!("{base}{outputs}")
}

impl Tapped {
    fn start(outputs: &str) -> Self {
        let directory = TempDir::new().unwrap();
        std::fs::write(directory.path().join("token"), format!("{TOKEN}\n")).unwrap();
        let relay = Relay::start(&config(directory.path(), outputs));
        Self { relay, directory }
    }

    /// Starts a relay with one TCP consumer, whose output is `out`.
    fn with_consumer() -> (Self, TcpSink) {
        let sink = TcpSink::start();
        (Self::start(&sink.output("out", "")), sink)
    }

    fn token_file(&self) -> String {
        text(&self.directory.path().join("token")).to_owned()
    }

    fn open(&self, query: &str) -> Tap {
        let opened = self.opened();
        let tap = Tap::open(self.relay.admin(), query, TOKEN);
        let tap = tap.unwrap_or_else(|refused| panic!("{refused:?}"));
        // The line appears in the log a moment later. `command` counts these lines.
        wait_until("the line of the tap", PATIENCE, || self.opened() > opened);
        tap
    }

    /// Starts the command, and waits until the relay has opened its tap or the command has failed.
    fn command(&self, arguments: &[&str]) -> Running {
        let opened = self.opened();
        let (url, token) = (format!("http://{}", self.relay.admin()), self.token_file());
        let arguments = [&["tap", &url, "--token-file", &token], arguments].concat();
        let running = spawn_command(&arguments, self.directory.path(), &[]);
        wait_until("the tap", PATIENCE, || self.opened() > opened || has_ended(&running));
        running
    }

    fn opened(&self) -> usize {
        self.relay.log_fields().iter().filter(|line| line["message"] == "tap opened").count()
    }

    fn post(&self, events: &[Value]) {
        assert_eq!(self.relay.post(list(events).to_string().as_bytes()).status, 200);
    }
}

/// Returns `true` if the command has printed an error.
fn has_ended(running: &Running) -> bool {
    !running.stderr().is_empty()
}

fn list(events: &[Value]) -> Value {
    json!({ "kind": "EventList", "apiVersion": "audit.k8s.io/v1", "items": events })
}

/// Returns an event with these members in place of the usual ones.
fn event(id: &str, members: Value) -> Value {
    let mut event = json!({
        "kind": "Event", "apiVersion": "audit.k8s.io/v1", "level": "RequestResponse",
        "auditID": id, "stage": "ResponseComplete", "verb": "update",
        "requestURI": "/api/v1/namespaces/prod/configmaps/c",
        "user": { "username": "alice", "groups": ["system:authenticated"] },
        "sourceIPs": ["10.0.0.7"], "userAgent": "kubectl",
        "objectRef": {
            "resource": "configmaps", "namespace": "prod", "name": "c", "apiVersion": "v1",
        },
        "responseStatus": { "metadata": {}, "code": 200 },
        "requestReceivedTimestamp": "2026-01-02T03:04:05.678000Z",
        "stageTimestamp": "2026-01-02T03:04:05.680500Z",
    });
    for (name, value) in members.as_object().unwrap() {
        event[name] = value.clone();
    }
    event
}

/// An open tap: the lines of its response.
struct Tap {
    reader: BufReader<TcpStream>,
    /// The bytes that were read but not yet returned as lines.
    text: Vec<u8>,
    /// All bytes of the body so far.
    all: Vec<u8>,
}

impl Tap {
    /// Opens a tap and reads its first line. `Err` is the status and the head of a refusal.
    fn open(admin: SocketAddr, query: &str, token: &str) -> Result<Self, (u16, String)> {
        let mut tap = Self::ask(admin, query, token)?;
        let head = tap.line();
        assert!(head["tap"].is_object(), "{head}");
        Ok(tap)
    }

    fn ask(admin: SocketAddr, query: &str, token: &str) -> Result<Self, (u16, String)> {
        let mut stream = TcpStream::connect(admin).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let head =
            format!("GET /tap{query} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        let mut reader = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(reader.read_line(&mut head).unwrap() > 0, "{head}");
        }
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        if status != 200 {
            return Err((status, head));
        }
        assert!(head.contains("transfer-encoding: chunked"), "{head}");
        assert!(head.contains("application/x-ndjson"), "{head}");
        assert!(head.contains("no-store"), "{head}");
        Ok(Self { reader, text: Vec::new(), all: Vec::new() })
    }

    /// Returns the next line, or `None` after the last one.
    fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.text.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.text.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let mut size = String::new();
            self.reader.read_line(&mut size).unwrap();
            let size = usize::from_str_radix(size.trim(), 16).expect("the size of a chunk");
            let mut chunk = vec![0; size + 2];
            self.reader.read_exact(&mut chunk).unwrap();
            if size == 0 {
                assert_eq!(self.text, b"", "a line without its end");
                return None;
            }
            self.text.extend_from_slice(&chunk[..size]);
            self.all.extend_from_slice(&chunk[..size]);
        }
    }

    fn line(&mut self) -> Value {
        self.next().expect("a line")
    }

    /// Reads until this many events were shown or skipped. Returns each shown event with its
    /// output, and the number of skipped events.
    fn until(&mut self, events: u64) -> (Vec<(String, Value)>, u64) {
        let (mut shown, mut skipped) = (Vec::new(), 0);
        while shown.len() as u64 + skipped < events {
            let mut line = self.line();
            assert!(line["end"].is_null(), "{line}");
            if line["event"].is_object() {
                shown.push((line["output"].as_str().unwrap().to_owned(), line["event"].take()));
            }
            skipped += line["skipped"].as_u64().unwrap_or(0);
        }
        assert_eq!(shown.len() as u64 + skipped, events);
        (shown, skipped)
    }

    /// Reads to the end, and returns the reason in the last line.
    fn end(&mut self) -> String {
        let mut last = json!(null);
        while let Some(line) = self.next() {
            last = line;
        }
        last["end"]["reason"].as_str().unwrap_or_else(|| panic!("{last}")).to_owned()
    }
}

fn ids(shown: &[(String, Value)]) -> Vec<&str> {
    shown.iter().map(|(_, event)| event["auditID"].as_str().unwrap()).collect()
}

/// Makes the change, and waits until the relay counts another reload with this result.
fn reloaded(relay: &Relay, result: &str, change: impl FnOnce()) {
    let before = relay.reloads(result);
    change();
    wait_until("the reload", PATIENCE, || relay.reloads(result) > before);
}

/// Replaces a file at once, so that it is complete at any time.
fn replace(file: &Path, contents: &str) {
    let beside = file.with_extension("new");
    std::fs::write(&beside, contents).unwrap();
    std::fs::rename(&beside, file).unwrap();
}

#[test]
fn without_the_key_there_is_no_tap() {
    let sink = TcpSink::start();
    let relay = Relay::start(&format!("{BASE}{}", sink.output("out", "")));
    let refused = http::get(relay.admin(), "/tap").unwrap();
    assert_eq!(refused.status, 404);
    assert!(refused.text().contains("admin.tap_token_file"), "{}", refused.text());
    assert_eq!(Tap::open(relay.admin(), "", TOKEN).err().unwrap().0, 404);
    let directory = TempDir::new().unwrap();
    std::fs::write(directory.path().join("token"), TOKEN).unwrap();
    let url = format!("http://{}", relay.admin());
    let with_token = ["tap", &url, "--token-file", "token"];
    said(&with_token, directory.path()).assert(1, &["404", "admin.tap_token_file"]);
    // Without a token, the command does not even connect.
    said(&["tap", &url], directory.path()).assert_refused("--token-file");
    // The token of a config is only for the relay of the config.
    std::fs::write(directory.path().join("c.toml"), config(directory.path(), "")).unwrap();
    for url in [&[url.as_str()][..], &["--relay", &url]] {
        let command = [&["tap", "--config", "c.toml"], url].concat();
        said(&command, directory.path()).assert_refused("--token-file");
    }
    relay.finish(Backlog::Empty);
}

#[test]
fn only_the_right_token_opens_a_tap_and_it_is_shown_nowhere() {
    let (tapped, _sink) = Tapped::with_consumer();
    let admin = tapped.relay.admin();
    let refused = http::get(admin, "/tap").unwrap();
    assert_eq!(refused.status, 401);
    assert_eq!(refused.header("www-authenticate"), Some("Bearer"));
    for wrong in ["", "x", "t4p-s3cre", "t4p-s3cret-", "T4P-S3CRET"] {
        let (status, head) = Tap::open(admin, "", wrong).err().unwrap();
        assert_eq!(status, 401);
        assert!(head.contains("www-authenticate: Bearer"), "{head}");
    }
    let headers = [("Authorization", "Basic t4p-s3cret")];
    let mut client = Client::connect(admin).unwrap();
    assert_eq!(client.request("GET", "/tap", &headers, b"").unwrap().status, 401);
    let headers = [("Authorization", "Bearer t4p-s3cret")];
    assert_eq!(client.request("POST", "/tap", &headers, b"").unwrap().status, 405);

    let mut tap = tapped.open("?match=%7Bverbs%3D%5B%27update%27%5D%7D");
    let opened = tapped.relay.wait_for_log("tap opened", PATIENCE);
    assert!(opened["peer"].as_str().unwrap().starts_with("127.0.0.1:"), "{opened}");
    assert_eq!(opened["matches"], "{verbs=['update']}");
    tapped.post(&[event("a", json!({}))]);
    assert_eq!(ids(&tap.until(1).0), ["a"]);
    drop(tap);
    let closed = tapped.relay.wait_for_log("tap closed", PATIENCE);
    assert_eq!((&closed["shown"], &closed["reason"]), (&json!(1), &json!("the reader has gone")));
    let warned = tapped.relay.log_fields();
    let warned = warned.iter().filter(|line| line["message"].as_str().unwrap().contains("refused"));
    // Nobody can fill the log with wrong tokens.
    assert_eq!(warned.count(), 1);

    let status = http::get(admin, "/status").unwrap().text();
    let metrics = http::get(admin, "/metrics").unwrap().text();
    let config = text(&tapped.relay.config_file()).to_owned();
    let shown = run_command(&["config", "--config", &config], Path::new("/")).stdout;
    for text in [tapped.relay.log_text(), status, metrics, String::from_utf8(shown).unwrap()] {
        assert!(!text.contains(TOKEN), "{text}");
    }
    tapped.relay.finish(Backlog::Empty);
}

#[test]
fn a_changed_or_removed_token_ends_the_open_taps() {
    let (tapped, sink) = Tapped::with_consumer();
    let (relay, file) = (&tapped.relay, tapped.directory.path().join("token"));
    let mut first = tapped.open("");
    let mut command = tapped.command(&[]);
    // Other blanks around the token do not make it a different token.
    reloaded(relay, "success", || replace(&file, &format!("  {TOKEN}\r\n\n")));
    tapped.post(&[event("a", json!({}))]);
    assert_eq!(ids(&first.until(1).0), ["a"]);
    // With an empty file nobody has a token, and the rest of the config is applied.
    reloaded(relay, "success", || replace(&file, "\n"));
    assert_eq!(first.end(), "revoked");
    let (status, stderr) = command.wait();
    assert_eq!(status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("the token was changed or removed"), "{stderr}");
    assert_eq!(Tap::open(relay.admin(), "", TOKEN).err().unwrap().0, 404);

    reloaded(relay, "success", || replace(&file, TOKEN));
    let mut first = Tap::open(relay.admin(), "", TOKEN).unwrap();
    reloaded(relay, "success", || replace(&file, "other"));
    assert_eq!(first.end(), "revoked");
    assert_eq!(Tap::open(relay.admin(), "", TOKEN).err().unwrap().0, 401);
    let mut second = Tap::open(relay.admin(), "", "other").unwrap();

    let without = format!("{BASE}{}", sink.output("out", ""));
    reloaded(relay, "success", || replace(&relay.config_file(), &without));
    assert_eq!(second.end(), "revoked");
    assert_eq!(Tap::open(relay.admin(), "", "other").err().unwrap().0, 404);
    tapped.relay.finish(Backlog::Empty);
}

#[test]
fn check_warns_of_a_token_file_that_is_missing_or_empty() {
    let sink = TcpSink::start();
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("relay.toml");
    std::fs::write(&file, config(directory.path(), &sink.output("out", ""))).unwrap();
    let run = |command: &str| said(&[command, text(&file)], directory.path());
    for contents in [None, Some(""), Some(" \n"), Some("a\nb")] {
        if let Some(contents) = contents {
            std::fs::write(directory.path().join("token"), contents).unwrap();
        }
        run("check").assert(0, &["admin.tap_token_file: warning: ", "nobody gets"]);
    }
    std::fs::write(directory.path().join("token"), TOKEN).unwrap();
    assert!(!run("check").assert(0, &[]).stderr.contains("warning: "));
}

/// Returns a credential for each redaction that is always on, in each place where it can be.
fn credentials() -> Vec<Value> {
    const JWT: &str = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJodW50ZXIyIn0.c2lnbmF0dXJl-_";
    const SECRET: &str = "hunter2";
    let about = |group: &str, resource: &str, sub: &str, body: Value| {
        json!({
            "objectRef": {
                "apiGroup": group, "resource": resource, "subresource": sub, "namespace": "prod",
            },
            "requestObject": body.clone(), "responseObject": body,
        })
    };
    let applied = format!("{{\"data\":{{\"a\":\"{SECRET}\"}}}}");
    let secret = json!({
        "kind": "Secret",
        "metadata": { "annotations": {
            "kubectl.kubernetes.io/last-applied-configuration": applied, "own": SECRET,
        }},
        "data": { "a": SECRET }, "stringData": { "b": SECRET },
    });
    let oauth = json!({ "kind": "OAuthAccessToken", "metadata": { "name": SECRET } });
    let uri = |uri: String| json!({ "requestURI": uri });
    let members = vec![
        about("", "secrets", "", secret.clone()),
        about("", "secrets", "", json!({ "kind": "SecretList", "items": [secret.clone()] })),
        about("", "secrets", "", json!([{ "op": "add", "path": "/data/a", "value": SECRET }])),
        about("", "secrets", "", json!({ "rows": [{ "cells": [SECRET], "object": secret }] })),
        about("", "serviceaccounts", "token", json!({ "status": { "token": SECRET } })),
        about("authentication.k8s.io", "tokenreviews", "", json!({ "spec": { "token": SECRET } })),
        about("oauth.openshift.io", "oauthaccesstokens", "", oauth),
        uri(format!("/api/v1/pods?token={SECRET}")),
        uri(format!("/api/v1/pods?labelSelector=token%3D{SECRET}")),
        uri(format!("/api/v1/namespaces/a/pods/b/exec?command=login&command=--password={SECRET}")),
        uri(format!("/api/v1/namespaces/a/pods/b/exec?command=--password&command={SECRET}")),
        json!({ "userAgent": format!("x {JWT}") }),
        json!({ "user": { "username": "a", "extra": { "k": [JWT] } } }),
        json!({ "user": { "username": "a", "extra": { JWT: ["k"] } } }),
        json!({ "impersonatedUser": { "username": JWT } }),
        json!({ "annotations": { "a.b/c": JWT } }),
        json!({ "requestObject": { "metadata": { "labels": { "a": JWT } } } }),
        json!({ "requestObject": { "env": [format!("Bearer {JWT}")] } }),
    ];
    let all: Vec<_> =
        members.into_iter().enumerate().map(|(at, it)| event(&format!("c{at}"), it)).collect();
    let hides = |event: &Value| {
        let text = event.to_string();
        text.contains(SECRET) || text.contains("eyJ")
    };
    assert!(all.iter().all(hides));
    all
}

#[test]
fn no_credential_is_ever_shown_whatever_the_outputs_filter_lets_pass() {
    let sinks: Vec<_> = (0..4).map(|_| TcpSink::start()).collect();
    let outputs = [
        sinks[0].output("plain", ""),
        sinks[1].output("sifted", "filter.annotate = { cluster = \"c\" }"),
        sinks[2].output("ecs", "filter.shape = \"ecs\""),
        sinks[3].output("ocsf", "filter.shape = \"ocsf\""),
    ];
    let tapped = Tapped::start(&outputs.concat());
    let mut tap = tapped.open("");
    let mut short = tapped.command(&[]);
    let mut lines = tapped.command(&["--format", "json"]);
    let credentials = credentials();
    tapped.post(&credentials);
    let all = 4 * credentials.len();
    let (shown, skipped) = tap.until(all as u64);
    assert_eq!((shown.len(), skipped), (all, 0));
    tapped.relay.wait_until_delivered(PATIENCE);
    for (output, event) in &shown {
        assert_eq!((&event["kind"], &event["verb"]), (&json!("Event"), &json!("update")));
        // Beside something secret, the tap trusts no annotation but kube-apiserver's.
        let is_secret = event["objectRef"]["resource"] != "configmaps";
        assert_eq!(
            event["annotations"]["kube-audit-forwarder/cluster"].is_string(),
            output == "sifted" && !is_secret,
            "{event}"
        );
    }
    // The consumers receive what the tap hides, because these outputs do not redact.
    let has_secret = |line: &Vec<u8>| memchr::memmem::find(line, b"hunter2").is_some();
    wait_until("the consumer", PATIENCE, || sinks[0].lines().iter().any(has_secret));
    let newlines = |bytes: &[u8]| bytes.iter().filter(|&&byte| byte == b'\n').count();
    wait_until("the commands", PATIENCE, || {
        newlines(&short.stdout()) == all && newlines(&lines.stdout()) == all
    });
    for all in [&tap.all, &short.stdout(), &lines.stdout()] {
        let text = String::from_utf8(all.clone()).unwrap();
        let found =
            ["hunter2", "eyJ", TOKEN].map(|secret| text.lines().find(|line| line.contains(secret)));
        assert_eq!(found, [None; 3]);
    }
    for line in String::from_utf8(lines.stdout()).unwrap().lines() {
        assert!(serde_json::from_str::<Value>(line).unwrap()["auditID"].is_string(), "{line}");
    }
    tapped.relay.finish(Backlog::Empty);
}

#[test]
fn the_recorded_events_are_shown_without_the_data_of_secrets() {
    let (tapped, _sink) = Tapped::with_consumer();
    let (mut shown, mut text, mut hidden) = (0, String::new(), BTreeSet::new());
    for body in corpus() {
        // Each new tap can show 2,048 events at once.
        let mut tap = tapped.open("");
        let mut sent = 0;
        for event in events_of(&body.bytes) {
            // The corpus has numbers beyond the range of an f64; their value does not matter here.
            let text = String::from_utf8(event).unwrap().replace("1e400", "1");
            let event: Value = serde_json::from_str(&text).unwrap();
            if event["objectRef"]["resource"] == "secrets" {
                for body in ["requestObject", "responseObject"] {
                    let data = event[body]["data"].as_object().into_iter().flatten();
                    hidden.extend(data.filter_map(|(_, value)| value.as_str().map(str::to_owned)));
                }
            }
            sent += 1;
        }
        assert_eq!(tapped.relay.post(&body.bytes).status, 200);
        let (of_body, skipped) = tap.until(sent);
        assert!(skipped <= 1, "{}: {skipped} of {sent}", body.name);
        shown += of_body.len();
        text.push_str(std::str::from_utf8(&tap.all).unwrap());
        drop(tap);
        tapped.relay.wait_for_metrics("the end of the tap", PATIENCE, |metrics| {
            (metrics.value("taps", &[]) == 0.0).then_some(())
        });
    }
    assert!(!hidden.is_empty() && shown > 1000, "{shown}");
    for value in hidden.iter().filter(|value| value.len() > 8) {
        assert!(!text.contains(value.as_str()), "{value}");
    }
    tapped.relay.finish(Backlog::Empty);
}

#[test]
fn a_reader_gets_what_it_asks_for() {
    let (tapped, _sink) = Tapped::with_consumer();
    let object = |resource: &str, namespace: &str| json!({ "resource": resource, "namespace": namespace, "name": "n" });
    let events = [
        event(
            "a",
            json!({ "verb": "delete", "objectRef": object("secrets", "prod"),
                           "requestURI": "/api/v1/namespaces/prod/secrets/n" }),
        ),
        event(
            "b",
            json!({ "verb": "get", "objectRef": object("secrets", "dev"),
                           "requestURI": "/api/v1/namespaces/dev/secrets/n" }),
        ),
        event("c", json!({ "user": { "username": "system:serviceaccount:kube-system:x" } })),
        event("d", json!({ "responseStatus": { "code": 403 } })),
    ];
    let asked = [
        (&["--match", "{ verbs = ['delete'] }"][..], "a"),
        (&["--match", "{ resources = [{ resources = ['secrets'] }] }"], "a b"),
        (&["--match", "{ resources = [{ resources = ['secrets'] }], namespaces = ['dev'] }"], "b"),
        (&["--match", "{ users = ['system:serviceaccount:*'] }"], "c"),
        (&["--match", "{ code = ['400-499'] }"], "d"),
        (&["--match", "[{ verbs = ['get'] }, { verbs = ['delete'] }]"], "a b"),
        (&["--match", "{ code = ['200'], unless = { verbs = ['get', 'delete'] } }"], "c"),
    ];
    for wave in asked.chunks(4) {
        let mut commands: Vec<_> = wave
            .iter()
            .map(|(arguments, ids)| {
                let limit = ids.split(' ').count().to_string();
                let arguments = [arguments, &["--format", "json", "--limit", &limit][..]].concat();
                tapped.command(&arguments)
            })
            .collect();
        tapped.post(&events);
        for (command, (arguments, ids)) in commands.iter_mut().zip(wave) {
            let mut stdout = || command.stdout();
            wait_until("the events", PATIENCE, || {
                stdout().iter().filter(|&&byte| byte == b'\n').count() == ids.split(' ').count()
            });
            let lines = String::from_utf8(stdout()).unwrap();
            let found: Vec<_> = lines
                .lines()
                .map(|line| serde_json::from_str::<Value>(line).unwrap()["auditID"].clone())
                .collect();
            let found: Vec<_> = found.iter().map(|id| id.as_str().unwrap()).collect();
            assert_eq!(found.join(" "), *ids, "{arguments:?}");
            let (status, stderr) = command.wait();
            assert_eq!((status.code(), &*stderr), (Some(0), ""), "{arguments:?}");
        }
        let open = |metrics: &Metrics| metrics.value("taps", &[]);
        tapped.relay.wait_for_metrics("the end", PATIENCE, |it| (open(it) == 0.0).then_some(()));
    }

    for (query, what) in [
        ("?match=verb%3Ddelete", "match is not a table, allowed: what filter.match takes"),
        ("?match=%7Bverb%3D%5B%27x%27%5D%7D", "did you mean `verbs`?"),
        // The text of a reader makes the relay read no file.
        ("?match=%7Busers%3D%5B%22%5Cu0024%7Bfile:/etc/passwd%7D%22%5D%7D", "not expanded here"),
        ("?sample=100", "sample: unknown, allowed: output, match"),
        ("?output=nowhere", "there are: out"),
        ("?shape=ecs", "unknown"),
    ] {
        let headers = [("Authorization", "Bearer t4p-s3cret")];
        let mut client = Client::connect(tapped.relay.admin()).unwrap();
        let path = format!("/tap{query}");
        let refused = client.request("GET", &path, &headers, b"").unwrap();
        assert_eq!(refused.status, 400, "{query}");
        assert!(refused.text().contains(what), "{query}: {}", refused.text());
    }
    let unknown = ["tap", "http://127.0.0.1:1", "--match", "{ x = 1 }"];
    said(&unknown, Path::new("/")).assert_refused("unknown key");
    tapped.relay.finish(Backlog::Empty);
}

#[test]
fn each_output_shows_its_own_events_once_they_have_left() {
    let (first, second) = (HttpSink::accepting(), TcpSink::start());
    let stdout = "[[output]]\nname = \"stdout\"\ntype = \"stdout\"\n";
    let outputs = [
        &*first.output("http", "concurrency = 4\nfilter.match = [{ verbs = [\"get\"] }]"),
        &*second.output("tcp", ""),
        stdout,
    ];
    let tapped = Tapped::start(&outputs.concat());
    let (mut all, mut one) = (tapped.open(""), tapped.open("?output=http"));
    let events: Vec<_> = (0..40)
        .map(|at| event(&format!("e{at}"), json!({ "verb": (["get", "update"][at % 2]) })))
        .collect();
    for ten in events.chunks(10) {
        tapped.post(ten);
    }
    let (shown, skipped) = all.until(20 + 40 + 40);
    assert_eq!(skipped, 0);
    for (output, count) in [("http", 20), ("tcp", 40), ("stdout", 40)] {
        let of: Vec<_> = shown.iter().filter(|(name, _)| name == output).cloned().collect();
        let ids: BTreeSet<_> = ids(&of).into_iter().map(str::to_owned).collect();
        assert_eq!((of.len(), ids.len()), (count, count), "{output}");
    }
    let (shown, _) = one.until(20);
    assert!(shown.iter().all(|(output, event)| output == "http" && event["verb"] == "get"));
    tapped.relay.finish(Backlog::Empty);
}

#[test]
fn an_event_is_shown_when_its_consumer_has_it_and_not_before() {
    let works = Arc::new(AtomicBool::new(false));
    let is_up = Arc::clone(&works);
    let sink = HttpSink::start(move |_| {
        Answer::status(if is_up.load(Ordering::SeqCst) { 200 } else { 503 })
    });
    let tapped = Tapped::start(
        &sink.output("http", "retry = { initial_interval = \"50ms\", max_interval = \"100ms\" }"),
    );
    let mut tap = tapped.open("");
    tapped.post(&[event("a", json!({})), event("b", json!({}))]);
    sink.wait_for_count(3, PATIENCE);
    // The first line after five seconds without an event is a heartbeat.
    let line = tap.line();
    assert_eq!(line["heartbeat"], json!({ "seen": 0, "shown": 0 }), "{line}");
    works.store(true, Ordering::SeqCst);
    let (shown, skipped) = tap.until(2);
    // An unordered output may have sent the two separately, to find out if one is at fault.
    let mut both = ids(&shown);
    both.sort_unstable();
    assert_eq!((both, skipped), (vec!["a", "b"], 0));
    tapped.post(&[event("c", json!({}))]);
    assert_eq!(ids(&tap.until(1).0), ["c"]);
    tapped.relay.finish(Backlog::Empty);
}

#[test]
fn events_beyond_the_limits_are_counted() {
    let (tapped, _sink) = Tapped::with_consumer();
    let mut tap = tapped.open("");
    let mut command = tapped.command(&["--format", "json"]);
    let large = event("large", json!({ "requestObject": { "a": "x".repeat(300_000) } }));
    let mut events: Vec<_> = (0..399).map(|at| event(&format!("e{at}"), json!({}))).collect();
    events.insert(7, large);
    tapped.post(&events);
    let (shown, skipped) = tap.until(400);
    assert_eq!((shown.len(), skipped), (399, 1));
    assert!(!ids(&shown).contains(&"large"));
    let words = "skipped 1 event: over the limits of a tap, or not JSON";
    wait_until("the words", PATIENCE, || command.stderr().contains(words));
    // The notices are on standard error, so standard output has only events.
    let newlines = |bytes: &[u8]| bytes.iter().filter(|&&byte| byte == b'\n').count();
    wait_until("the events", PATIENCE, || newlines(&command.stdout()) == 399);
    for line in String::from_utf8(command.stdout()).unwrap().lines() {
        assert!(serde_json::from_str::<Value>(line).unwrap()["auditID"].is_string(), "{line}");
    }
    // At most 2,048 events can leave within a second; a slow machine can show a few more.
    let small: Vec<_> = (0..3000).map(|at| event(&format!("s{at}"), json!({}))).collect();
    tapped.post(&small);
    let (shown, skipped) = tap.until(3000);
    assert!((400..3000).contains(&shown.len()) && skipped > 0, "{} {skipped}", shown.len());
    tapped.relay.wait_for_metrics("the counts", PATIENCE, |metrics| {
        let of = |name: &str| metrics.value(name, &[]);
        (of("tap_shown_events_total") + of("tap_skipped_events_total") == 6800.0).then_some(())
    });
    tapped.relay.finish(Backlog::Empty);
}

/// Opens a tap whose reader takes no byte of the body.
fn stuck(tapped: &Tapped) -> Tap {
    Tap::ask(tapped.relay.admin(), "", TOKEN).unwrap()
}

#[test]
fn a_reader_that_does_not_read_holds_nothing_up_and_takes_little_memory() {
    let (tapped, sink) = Tapped::with_consumer();
    let body = generated_batch(1, 400, 1000);
    for _ in 0..20 {
        assert_eq!(tapped.relay.post(&body).status, 200);
    }
    tapped.relay.wait_until_delivered(PATIENCE);
    let before = tapped.relay.rss_bytes();
    let _readers: Vec<_> = (0..4).map(|_| stuck(&tapped)).collect();
    let batches = 150;
    for seed in 0..batches {
        let body = generated_batch(seed, 400, 1000);
        assert_eq!(tapped.relay.post(&body).status, 200);
    }
    tapped.relay.wait_until_delivered(PATIENCE);
    wait_until("the consumer", PATIENCE, || sink.count() == 400 * (20 + 150));
    // Each of the four taps holds at most 9 MiB. The rest is for the queue.
    let after = tapped.relay.rss_bytes();
    assert!(after < before + 60 * 1024 * 1024, "{before} → {after}");
    assert_eq!(http::get(tapped.relay.admin(), "/readyz").unwrap().status, 200);
    tapped.relay.wait_for_metrics("the counts", PATIENCE, |metrics| {
        let of = |name: &str| metrics.value(name, &[]);
        (of("tap_skipped_events_total") > 4.0 * 30_000.0).then_some(())
    });
    tapped.relay.finish(Backlog::Empty);
}

#[test]
fn a_fifth_tap_is_refused_and_taps_are_in_nobodys_way() {
    let (tapped, _sink) = Tapped::with_consumer();
    let admin = tapped.relay.admin();
    let mut taps: Vec<_> = (0..4).map(|_| tapped.open("")).collect();
    let (status, head) = Tap::open(admin, "", TOKEN).err().unwrap();
    assert_eq!(status, 503);
    assert!(head.contains("retry-after: 10"), "{head}");
    assert_eq!(tapped.relay.metrics().value("taps", &[]), 4.0);
    // The admin address allows fewer than 70 connections. Taps are counted separately.
    let idle: Vec<_> = (0..70).map(|_| TcpStream::connect(admin).unwrap()).collect();
    for path in ["/readyz", "/metrics", "/status"] {
        assert_eq!(http::get(admin, path).unwrap().status, 200);
    }
    tapped.post(&[event("a", json!({}))]);
    for tap in &mut taps {
        assert_eq!(ids(&tap.until(1).0), ["a"]);
    }
    drop(idle);
    taps.pop();
    wait_until("a free tap", PATIENCE, || Tap::open(admin, "", TOKEN).is_ok());
    tapped.relay.finish(Backlog::Empty);
}

#[test]
fn the_end_of_the_relay_is_prompt_and_tells_the_readers() {
    let (mut tapped, _sink) = Tapped::with_consumer();
    let mut tap = tapped.open("");
    let mut command = tapped.command(&["--limit", "5"]);
    let _stuck = stuck(&tapped);
    tapped.post(&[event("a", json!({}))]);
    assert_eq!(ids(&tap.until(1).0), ["a"]);
    let begun = Instant::now();
    tapped.relay.signal(libc::SIGTERM);
    assert_eq!(tap.end(), "stopped");
    let status = tapped.relay.wait_at_most(Duration::from_secs(10));
    assert_eq!(status.code(), Some(0));
    let took = begun.elapsed();
    // This limit is far below `CONNECTION_TIME` (5 minutes) and `TAP_TIME` (1 hour).
    assert!(took < Duration::from_secs(8), "{took:?}");
    let (status, stderr) = command.wait();
    assert_eq!(status.code(), Some(0), "{stderr}");
    assert!(stderr.contains("the tap has ended: the relay has ended"), "{stderr}");
}

#[test]
fn the_command_ends_quietly_with_ctrl_c_and_with_a_closed_pipe() {
    let (tapped, _sink) = Tapped::with_consumer();
    let mut interrupted = tapped.command(&[]);
    interrupted.signal(libc::SIGINT);
    let (status, stderr) = interrupted.wait();
    assert_eq!((status.code(), &*stderr), (Some(0), ""));

    let mut piped = tapped.command(&[]);
    let mut first = BufReader::new(piped.take_stdout());
    tapped.post(&[event("a", json!({}))]);
    let mut line = String::new();
    first.read_line(&mut line).unwrap();
    assert_eq!(
        line,
        "2026-01-02T03:04:05.680Z out RequestResponse update alice configmaps/prod/c 200 10.0.0.7 \
         2.5ms\n"
    );
    // Like `| head -1`, the reader closes the pipe.
    drop(first);
    tapped.post(&[event("b", json!({}))]);
    let (status, stderr) = piped.wait();
    assert_eq!((status.code(), &*stderr), (Some(0), ""));

    // Ctrl-C ends the command even if nobody reads from the pipe.
    let mut held = tapped.command(&["--format", "json"]);
    let _pipe = held.take_stdout();
    for seed in 0..4 {
        assert_eq!(tapped.relay.post(&generated_batch(seed, 200, 1000)).status, 200);
    }
    tapped.relay.wait_for_metrics("the events", PATIENCE, |metrics| {
        (metrics.value("tap_shown_events_total", &[]) > 500.0).then_some(())
    });
    held.signal(libc::SIGINT);
    assert_eq!(held.wait().0.code(), Some(0));
    tapped.relay.finish(Backlog::Empty);
}

#[test]
fn what_a_client_chooses_reaches_no_terminal_as_it_is() {
    let (tapped, _sink) = Tapped::with_consumer();
    let mut tap = tapped.open("");
    let mut command = tapped.command(&["--limit", "1"]);
    let evil = "x\u{1b}[2J\u{9b}31m\u{7f}\u{202e}\u{2066}\u{200d}\u{e0041}\n2026 o";
    tapped.post(&[event(
        "a",
        json!({ "user": { "username": evil }, "userAgent": evil, "verb": evil, "sourceIPs": [evil],
                "objectRef": { "resource": evil, "namespace": evil, "name": evil } }),
    )]);
    let (shown, _) = tap.until(1);
    // The value is unchanged. Only its escapes are different, so that a terminal can print it.
    assert_eq!(shown[0].1["user"]["username"], evil);
    assert!(tap.all.iter().all(|byte| byte.is_ascii_graphic() || b" \n".contains(byte)));
    assert_eq!(command.wait().0.code(), Some(0));
    let stdout = command.stdout();
    wait_until("the line", PATIENCE, || !command.stdout().is_empty() || !stdout.is_empty());
    let line = String::from_utf8(command.stdout()).unwrap();
    assert!(line.bytes().all(|byte| byte.is_ascii_graphic() || b" \n".contains(&byte)), "{line:?}");
    assert_eq!(line.lines().count(), 1, "{line}");
    tapped.relay.finish(Backlog::Empty);
}

#[test]
fn the_command_finds_the_relay_and_the_token_by_the_config() {
    let sink = TcpSink::start();
    let directory = TempDir::new().unwrap();
    std::fs::write(directory.path().join("token"), TOKEN).unwrap();
    let port = free_port();
    let file = directory.path().join("relay.toml");
    let config = config(directory.path(), &sink.output("out", ""));
    let config = config.replace(
        "admin = { address = \"127.0.0.1:0\"",
        &format!("admin = {{ address = \"127.0.0.1:{port}\""),
    );
    std::fs::write(&file, &config).unwrap();
    let relay = Relay::with(&config).file(&file).start();
    let variables = [("KUBE_AUDIT_FORWARDER_CONFIG", Some(text(&file)))];
    let arguments = ["tap", "--limit", "1"];
    let mut command = spawn_command(&arguments, directory.path(), &variables);
    relay.wait_for_log("tap opened", PATIENCE);
    assert_eq!(relay.post(list(&[event("a", json!({}))]).to_string().as_bytes()).status, 200);
    wait_until("the event", PATIENCE, || !command.stdout().is_empty());
    let (status, stderr) = command.wait();
    assert_eq!((status.code(), &*stderr), (Some(0), ""));
    assert!(String::from_utf8(command.stdout()).unwrap().contains(" configmaps/prod/c "));
    relay.finish(Backlog::Empty);
}
