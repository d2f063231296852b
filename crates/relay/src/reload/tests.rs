//! Reloads of a relay that runs: after each one, the pages and the queue must say what the config
//! in force says.
//!
//! The tests call the two steps of a reload themselves. They can look at the relay between the
//! steps, and do not depend on the moment at which a change of a file is noticed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use super::*;
use crate::start::start;
use crate::tests::{consumer, post};
use audit::LevelCounts;
use queue::{Append, Ticket};
use telemetry::PREFIX;
use telemetry::status::Status;
use testing::runs_alone;

/// The longest wait for something that happens soon.
const PATIENCE: Duration = Duration::from_secs(30);

/// An address at which nobody listens. An output to this address keeps all events.
const NOBODY: &str = "127.0.0.1:1";

/// The beginning of each config: the admin address and one listener.
const BASE: &str = "admin.address = \"127.0.0.1:0\"\n[[listener]]\naddress = \"127.0.0.1:0\"\n";

/// Takes a free port at this address. The kernel gives no such port to an outgoing connection, so a
/// listener can have the port as soon as the result is dropped.
fn take_port(host: &str) -> std::net::TcpListener {
    let ports = std::iter::repeat_with(|| fastrand::u16(30_000..32_700)).take(1000);
    let bound = ports.filter(|port| std::net::TcpListener::bind(("127.0.0.3", *port)).is_ok());
    bound
        .filter_map(|port| std::net::TcpListener::bind((host, port)).ok())
        .next()
        .expect("a free port")
}

/// Returns the section of an output that sends lines to this address.
fn to(address: impl ToString, name: &str, more: &str) -> String {
    let address = address.to_string();
    format!(
        "[[output]]\nname = \"{name}\"\ntype = \"tcp\"\naddresses = [\"{address}\"]\n\
         replay_window = \"10ms\"\n{more}\n"
    )
}

fn dead_end(name: &str, more: &str) -> String {
    to(NOBODY, name, more)
}

/// Returns the status of a response, which begins with `HTTP/1.1`.
fn status_of(answer: &str) -> u16 {
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    status.unwrap_or_else(|| panic!("no status: {answer}"))
}

fn read(config: &str) -> Config {
    let checked = config::read(config, ::outputs::TYPES);
    checked.config.unwrap_or_else(|| panic!("{:?}\n{config}", checked.problems))
}

struct Relay {
    parts: Parts,
    admin: SocketAddr,
    directory: TempDir,
}

impl Relay {
    async fn start(config: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("relay.toml");
        std::fs::write(&file, config).expect("written");
        let (opened, addresses) = oneshot::channel();
        let parts = start(Some(file), read(config), &[], Some(opened)).await.expect("it starts");
        let admin = addresses.await.expect("it runs").admin;
        Self { parts, admin, directory }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes the config file, and does the first step of a reload.
    async fn prepare(&mut self, config: &str) -> Result<Prepared, Refused> {
        std::fs::write(self.file("relay.toml"), config).expect("written");
        tokio::time::timeout(PATIENCE, self.parts.prepare()).await.expect("it ends")
    }

    /// Reloads this config. Returns the reason if it was refused as a whole.
    async fn reload(&mut self, config: &str) -> Option<String> {
        let prepared = self.prepare(config).await;
        let refused = prepared.as_ref().err().map(ToString::to_string);
        let reloaded = tokio::time::timeout(PATIENCE, self.parts.reload(prepared)).await;
        reloaded.expect("it ends");
        refused
    }

    async fn get(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.admin).await.expect("it listens");
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("it answers");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        (status_of(head), body.to_owned())
    }

    async fn status(&self) -> Status {
        serde_json::from_str(&self.get("/status").await.1).expect("JSON")
    }

    /// Returns the values of the series with this name, each under the value of the series' only
    /// label. A series without labels is under an empty text.
    async fn series(&self, name: &str) -> BTreeMap<String, f64> {
        let page = self.get("/metrics").await.1;
        let series = page.lines().filter_map(|line| {
            let (label, value) = line.strip_prefix(PREFIX)?.strip_prefix(name)?.split_once(' ')?;
            let label = match label.strip_prefix('{') {
                Some(label) => label.split('"').nth(1)?,
                None => label,
            };
            Some((label.to_owned(), value.parse().expect("a number")))
        });
        series.filter(|(label, _)| !label.starts_with('_')).collect()
    }

    async fn until(&self, what: &str, mut is_true: impl AsyncFnMut(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_true(self).await {
            assert!(Instant::now() < deadline, "never: {what}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Appends this number of events as one batch, and waits until they are in the queue.
    async fn append(&self, events: u64) {
        let mut ticket = self.appends(events);
        let stored = tokio::time::timeout(PATIENCE, ticket.acknowledged()).await;
        assert_eq!(stored.expect("it is stored soon"), Ok(()));
    }

    fn appends(&self, events: u64) -> Ticket {
        let lines = Bytes::from("{}\n".repeat(usize::try_from(events).expect("a few")));
        let batch = Append { lines, events, levels: LevelCounts::default(), list: None };
        self.parts.queue.append(batch).expect("there is room")
    }

    fn backlogs(&self) -> BTreeMap<String, u64> {
        let all = self.parts.queue.backlogs().into_iter();
        all.map(|(name, backlog)| (name, backlog.events)).collect()
    }

    /// Checks that the pages and the queue say what this config says.
    async fn assert_shows(&self, config: &str) {
        let (text, config) = (config, read(config));
        let status = self.status().await;
        let listeners: Vec<_> = status.listeners.iter().map(|it| (&*it.listener, it.tls)).collect();
        let wanted = config.listeners.iter().map(|it| (&*it.label, it.tls.is_some()));
        assert_eq!(listeners, wanted.collect::<Vec<_>>(), "{text}");
        let closed = status.listeners.iter().filter(|it| it.address.is_none()).count();
        assert_eq!(closed, 0, "{text}");
        let outputs: Vec<_> = status
            .outputs
            .iter()
            .map(|it| (&*it.name, &*it.kind, it.required, it.health.paused, &*it.shape))
            .collect();
        let wanted = config.outputs.iter().map(|it| {
            (&*it.name, it.kind.name(), it.required, it.pause, it.filter.form.shape.name())
        });
        assert_eq!(outputs, wanted.collect::<Vec<_>>(), "{text}");
        let queue = &config.queue;
        let (when_full, retry_after) = (queue.when_full.name(), queue.retry_after.as_secs_f64());
        let shown = &status.queue;
        assert_eq!(shown.capacity_bytes, queue.max_bytes, "{text}");
        assert_eq!(shown.when_full.as_deref(), Some(when_full), "{text}");
        assert_eq!(shown.retry_after_seconds, Some(retry_after), "{text}");
        assert_eq!(status.intake.acknowledge.as_deref(), Some(queue.acknowledge.name()), "{text}");
        assert_eq!(status.reloads.awaits_address, None, "{text}");
        // If the metrics kept a state of a removed output, it would never change again.
        let of = |value: fn(&config::Output) -> bool| -> BTreeMap<String, f64> {
            let number = |it: &config::Output| f64::from(u8::from(value(it)));
            config.outputs.iter().map(|it| (it.name.clone(), number(it))).collect()
        };
        assert_eq!(self.series("output_required").await, of(|it| it.required), "{text}");
        let lags = self.series("output_lag_max_seconds").await;
        let late: BTreeMap<_, _> =
            status.outputs.iter().map(|it| (it.name.clone(), it.backlog.lag_max_seconds)).collect();
        assert_eq!(lags, late, "{text}");
        // The metrics of a removed output leave when its delivery has ended.
        let is_here = async |it: &Self| {
            it.series("output_up").await.keys().all(|name| lags.contains_key(name))
        };
        self.until("the end of output_up", is_here).await;
        // The metric changes when the old delivery has ended.
        let paused = of(|it| it.pause);
        self.until("output_paused", async |it| it.series("output_paused").await == paused).await;
        let capacity = self.series("queue_capacity_bytes").await;
        assert_eq!(capacity.into_values().collect::<Vec<_>>(), [queue.max_bytes as f64], "{text}");
        // A removed output needs a moment to leave.
        let names: BTreeSet<_> = config.outputs.iter().map(|it| it.name.clone()).collect();
        let has_names =
            async |it: &Self| it.backlogs().into_keys().collect::<BTreeSet<_>>() == names;
        self.until("the outputs of the queue", has_names).await;
        assert_eq!(self.parts.config, config, "{text}");
    }
}

/// A connection to a listener that stays open between requests.
struct Client(TcpStream);

impl Client {
    async fn connect(to: SocketAddr) -> Self {
        Self(TcpStream::connect(to).await.expect("it listens"))
    }

    async fn post(&mut self, path: &str, token: &str) -> u16 {
        let body = r#"{"auditID":"a","stage":"Panic"}"#;
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Type: \
             application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.0.write_all(request.as_bytes()).await.expect("it reads");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(self.0.read_u8().await.expect("it answers"));
        }
        let head = String::from_utf8(head).expect("text").to_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let mut body = vec![0; length.map_or(0, |length| length.parse().expect("a number"))];
        self.0.read_exact(&mut body).await.expect("it has a body");
        status_of(&head)
    }

    async fn is_closed(&mut self) -> bool {
        matches!(tokio::time::timeout(PATIENCE, self.0.read_u8()).await, Ok(Err(_)))
    }
}

/// Method: one relay goes through configs in which outputs and listeners are added, removed and
/// changed, while events wait for each output.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_each_reload_the_pages_and_the_queue_say_what_the_config_says() {
    if !runs_alone() {
        return;
    }
    let a = dead_end("a", "");
    let configs = [
        format!("{BASE}{a}"),
        // An output is added: first after, then before the output that was there.
        format!("{BASE}{a}{}", dead_end("b", "")),
        format!("{BASE}{}{}{a}", dead_end("c", "required = false"), dead_end("b", "")),
        // Other outputs are required or paused.
        format!(
            "{BASE}{}{}{a}",
            dead_end("c", ""),
            dead_end("b", "required = false\npause = true")
        ),
        format!("{BASE}{}{}", dead_end("a", "pause = true"), dead_end("b", "required = false")),
        format!("{BASE}{}{}", dead_end("a", "required = false"), dead_end("b", "")),
        // An output has another name, another type, or another time after which it is late.
        format!("{BASE}{}{}", dead_end("renamed", "filter.shape = \"ecs\""), dead_end("b", "")),
        format!(
            "{BASE}[[output]]\nname = \"b\"\ntype = \"http\"\nurls = [\"http://{NOBODY}\"]\n{a}"
        ),
        format!("{BASE}{}", a.replace("10ms", "90s")),
        // The settings of the queue change.
        format!(
            "{BASE}{a}[queue]\nmax_bytes = \"1MiB\"\nretry_after = \"9s\"\nwhen_full = \
             \"drop_oldest\"\n"
        ),
        format!("{BASE}{a}[queue]\nacknowledge = \"delivered\"\nwhen_full = \"reject\"\n"),
        // The listeners change.
        format!("{BASE}[[listener]]\naddress = \"127.0.0.2:0\"\n{a}[volume]\nenabled = false\n"),
        format!(
            "{}{a}",
            BASE.replace(
                "[[listener]]\naddress = \"127.0.0.1",
                "[[listener]]\naddress = \"127.0.0.3"
            )
        ),
        format!("{BASE}{a}"),
    ];
    let mut relay = Relay::start(&configs[0]).await;
    relay.assert_shows(&configs[0]).await;
    for config in &configs[1..] {
        // If `acknowledge` is `delivered`, this batch is never acknowledged.
        let _ticket = relay.appends(3);
        assert_eq!(relay.reload(config).await, None, "{config}");
        relay.assert_shows(config).await;
    }
    let reloads = relay.status().await.reloads;
    assert_eq!((reloads.success.count, reloads.error.count), (13, 0));
}

/// Method: the file changes, or not, after the process has read it and before the watch begins.
#[tokio::test]
async fn a_config_that_changes_while_the_relay_starts_is_noticed() {
    if !runs_alone() {
        return;
    }
    let [old, new] = ["old", "new"].map(|name| format!("{BASE}{}", dead_end(name, "")));
    for (content, is_noticed) in [(&old, false), (&new, true)] {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("relay.toml");
        std::fs::write(&file, content).expect("written");
        let mut parts = start(Some(file), read(&old), &[], None).await.expect("it starts");
        let wait = if is_noticed { PATIENCE } else { Duration::from_secs(3) };
        let changed = tokio::time::timeout(wait, parts.file.watch.changed()).await;
        assert_eq!(changed.is_ok(), is_noticed);
    }
}

/// Method: the process may have 256 open files, so that `limits.max_connections` is lowered.
#[tokio::test]
async fn a_limit_that_is_lowered_at_the_start_is_no_change_of_the_file() {
    if !runs_alone() {
        return;
    }
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: Some(256), maximum }).expect("lowered");
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("relay.toml");
    let content = format!("{BASE}{}", dead_end("a", ""));
    std::fs::write(&file, &content).expect("written");
    let mut config = read(&content);
    open_files::fit(&mut config);
    assert_ne!(config, read(&content));
    let mut parts = start(Some(file), config, &[], None).await.expect("it starts");
    let changed = tokio::time::timeout(Duration::from_secs(3), parts.file.watch.changed()).await;
    assert!(changed.is_err());
}

/// Method: each config changes many settings and has one fault. The reloads fail at different
/// steps: the last one after some outputs have joined the queue.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_that_is_refused_changes_nothing() {
    if !runs_alone() {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let queue = format!("[queue]\ndirectory = {:?}\n", directory.path());
    let occupied = take_port("127.0.0.1");
    let taken = occupied.local_addr().expect("it has one");
    let before = format!("{BASE}{}{}{queue}", dead_end("a", ""), dead_end("b", "required = false"));
    let changed = |listener: &str, outputs: &str| {
        format!(
            "{BASE}{listener}{}{}{outputs}{queue}max_bytes = \"9MiB\"\nwhen_full = \
             \"drop_oldest\"\nretry_after = \"7s\"\n[limits]\nmax_body = \"1KiB\"\n",
            dead_end("b", "pause = true"),
            dead_end("new", "required = false")
        )
    };
    let too_many: String = (0..200).map(|number| dead_end(&format!("n{number}"), "")).collect();
    let missing = "bearer_token_file = \"/no/such/token\"\n";
    let refused = [
        ("config is wrong", changed("unknown = 1\n", "")),
        ("config is wrong", changed(missing, "")),
        ("in use", changed(&format!("[[listener]]\naddress = \"{taken}\"\n"), "")),
        ("cannot join the queue", changed("", &too_many)),
    ];
    let mut relay = Relay::start(&before).await;
    let places = relay.parts.queue.places();
    for (count, (why, config)) in (1..).zip(&refused) {
        let error = relay.reload(config).await.expect("it is refused");
        assert!(error.contains(why), "{error}");
        let awaited = relay.status().await.reloads.awaits_address;
        assert_eq!(awaited.is_some(), *why == "in use", "{awaited:?}");
        // The relay stops waiting for the address, as it would after another reload.
        relay.parts.admin.awaits_address(None);
        relay.parts.file.again.end();
        relay.assert_shows(&before).await;
        assert_eq!(relay.parts.queue.places(), places, "{why}");
        assert_eq!(relay.status().await.reloads.error.count, count);
        // The pages do not show limits. A body of more than one KiB is still accepted.
        let address = crate::tests::address(&relay.parts);
        assert_eq!(post_bytes(address, 2000).await, 200, "{why}");
    }
    // The relay ends before a reload that is prepared is put in force.
    let prepared = relay.prepare(&changed("", "")).await.expect("it can be used");
    relay.append(1).await;
    assert_eq!(relay.backlogs().get("new"), Some(&1), "it has a cursor");
    drop(prepared);
    relay.assert_shows(&before).await;
    let sums = relay.series("error_total").await;
    assert!(sums.values().all(|lost| *lost == 0.0), "{sums:?}");
    assert_eq!(relay.backlogs(), [("a".to_owned(), 5), ("b".to_owned(), 5)].into());
}

async fn post_bytes(to: SocketAddr, bytes: usize) -> u16 {
    let body = format!(r#"{{"auditID":"a","stage":"Panic","x":"{}"}}"#, "x".repeat(bytes));
    let mut stream = TcpStream::connect(to).await.expect("it listens");
    let head = format!(
        "POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all((head + &body).as_bytes()).await.expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("it answers");
    status_of(&answer)
}

/// Method: events come before, between and after the two steps of a reload. The new output gets the
/// events that come after the first step, even if the process is killed before the second step, and
/// no earlier events.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_output_has_its_place_before_the_reload_is_in_force() {
    if !runs_alone() {
        return;
    }
    for is_durable in [false, true] {
        let directory = tempfile::tempdir().expect("a directory");
        let queue = format!("[queue]\ndirectory = {:?}\n", directory.path());
        let queue = if is_durable { queue } else { String::new() };
        let old = format!("{BASE}{}{queue}", dead_end("a", ""));
        let new = format!("{BASE}{}{}{queue}", dead_end("a", ""), dead_end("new", ""));
        let mut relay = Relay::start(&old).await;
        relay.append(2).await;
        let prepared = relay.prepare(&new).await;
        relay.append(3).await;
        let killed = is_durable.then(|| copied(directory.path()));
        relay.parts.reload(prepared).await;
        relay.append(4).await;
        relay.assert_shows(&new).await;
        assert_eq!(relay.backlogs(), [("a".to_owned(), 9), ("new".to_owned(), 7)].into());
        let Some(copy) = killed else { continue };
        let after = new.replace(&format!("{:?}", directory.path()), &format!("{:?}", copy.path()));
        let relay = Relay::start(&after).await;
        assert_eq!(relay.backlogs(), [("a".to_owned(), 5), ("new".to_owned(), 3)].into());
    }
}

fn copied(from: &std::path::Path) -> TempDir {
    let to = tempfile::tempdir().expect("a directory");
    let mut copy = std::process::Command::new("cp");
    let copied = copy.arg("-r").arg(from.join(".")).arg(to.path()).status();
    assert!(copied.expect("cp is there").success());
    to
}

/// An output that is renamed, or removed and added again, counts as a new output, which begins with
/// the next event. The undelivered events of the earlier output are lost, and counted once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_removed_output_has_not_delivered_is_counted_and_the_next_one_begins_behind_it() {
    if !runs_alone() {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    for queue in [String::new(), format!("[queue]\ndirectory = {:?}\n", directory.path())] {
        let (a, b) = (dead_end("a", ""), dead_end("b", ""));
        let mut relay = Relay::start(&format!("{BASE}{a}{b}{queue}")).await;
        let lost = async |relay: &Relay, name: &str| relay.series("error_total").await[name];
        relay.append(5).await;
        // `b` is renamed to `c`, and `a` stays.
        assert_eq!(relay.reload(&format!("{BASE}{a}{}{queue}", dead_end("c", ""))).await, None);
        relay.until("the loss", async |it| lost(it, "b").await == 5.0).await;
        relay.append(2).await;
        assert_eq!(relay.backlogs(), [("a".to_owned(), 7), ("c".to_owned(), 2)].into());
        // `c` gets the name `b` again, and with it the counters of `b`.
        assert_eq!(relay.reload(&format!("{BASE}{a}{b}{queue}")).await, None);
        relay.until("the loss", async |it| lost(it, "c").await == 2.0).await;
        relay.append(1).await;
        assert_eq!(relay.backlogs(), [("a".to_owned(), 8), ("b".to_owned(), 1)].into());
        // `b` is removed, and added by the next reload, which waits until the old `b` has left.
        assert_eq!(relay.reload(&format!("{BASE}{a}{queue}")).await, None);
        assert_eq!(relay.reload(&format!("{BASE}{a}{b}{queue}")).await, None);
        assert_eq!(relay.backlogs(), [("a".to_owned(), 8), ("b".to_owned(), 0)].into());
        assert_eq!((lost(&relay, "a").await, lost(&relay, "b").await), (0.0, 6.0));
        let status = relay.status().await;
        assert_eq!(status.losses.lost_events, 8);
        let counts: Vec<_> = status.outputs.iter().map(|it| it.counts.lost_events).collect();
        assert_eq!(counts, [0, 6]);
    }
}

/// Method: two outputs wait for their consumers, while reloads change `required`, a limit, and
/// other settings of one of the outputs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_an_output_that_has_changed_gets_another_delivery_and_none_loses_its_place() {
    if !runs_alone() {
        return;
    }
    let required = |name: &str, is: bool| dead_end(name, &format!("required = {is}"));
    let mut relay =
        Relay::start(&format!("{BASE}{}{}", required("a", true), required("b", true))).await;
    relay.append(4).await;
    let deliveries = |relay: &Relay| -> Vec<_> {
        relay.parts.outputs.show().into_iter().map(|output| output.status).collect()
    };
    let first = deliveries(&relay);
    let reloads = [
        (format!("{BASE}{}{}", required("a", false), required("b", true)), [true, true]),
        (format!("{BASE}{}{}", required("a", true), required("b", false)), [true, true]),
        (
            format!(
                "{BASE}{}{}[limits]\nmax_body = \"1MiB\"\n",
                required("a", true),
                required("b", true)
            ),
            [true, true],
        ),
        (format!("{BASE}{}{}", dead_end("a", "pause = true"), required("b", true)), [false, true]),
        (
            format!(
                "{BASE}{}{}",
                required("a", true),
                dead_end("b", "retry.max_interval = \"9s\"")
            ),
            [false, false],
        ),
    ];
    let mut before = first;
    for (config, stay) in reloads {
        assert_eq!(relay.reload(&config).await, None);
        let now = deliveries(&relay);
        let same = [0, 1].map(|index| std::sync::Arc::ptr_eq(&before[index], &now[index]));
        assert_eq!(same, stay, "{config}");
        before = now;
        relay.assert_shows(&config).await;
        assert_eq!(relay.backlogs(), [("a".to_owned(), 4), ("b".to_owned(), 4)].into());
    }
}

/// Method: the bytes that the queue needs are those of events that a required output has not
/// finished. So they show whether the queue takes the output `a` for required.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_queue_needs_the_room_of_those_outputs_that_the_config_requires() {
    if !runs_alone() {
        return;
    }
    let mut tasks = JoinSet::new();
    let sink = to(consumer(&mut tasks).await, "sink", "");
    let with = |more: &str| format!("{BASE}{sink}{}", dead_end("a", more));
    let mut relay = Relay::start(&with("")).await;
    relay.append(10).await;
    relay.until("delivery", async |it| it.backlogs()["sink"] == 0).await;
    for (more, needs) in [("required = false", false), ("", true), ("required = false", false)] {
        assert_eq!(relay.reload(&with(more)).await, None);
        assert_eq!(relay.parts.queue.needed() > 0, needs, "{more}");
        assert_eq!(relay.backlogs()["a"], 10, "{more}: there is room");
    }
}

/// Method: `acknowledge` is `delivered`, so a sender waits for the required output. A reload makes
/// the other output the required one. If no output were required for a moment, the sender would get
/// 200 although no consumer has the event.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_another_output_becomes_the_required_one_no_sender_is_told_that_its_event_is_safe() {
    if !runs_alone() {
        return;
    }
    let delivered = "[queue]\nacknowledge = \"delivered\"\n";
    let required = |a: bool, b: bool| {
        let output = |name: &str, is: bool| dead_end(name, &format!("required = {is}"));
        format!("{BASE}{}{}{delivered}", output("a", a), output("b", b))
    };
    let mut relay = Relay::start(&required(true, false)).await;
    let mut ticket = relay.appends(2);
    for (a, b) in [(false, true), (true, false)] {
        assert_eq!(relay.reload(&required(a, b)).await, None);
        assert_eq!(ticket.acknowledged().now_or_never(), None);
        assert!(relay.parts.queue.needed() > 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_output_sends_nothing_and_goes_on_with_what_has_waited() {
    if !runs_alone() {
        return;
    }
    let mut tasks = JoinSet::new();
    let address = consumer(&mut tasks).await;
    let with = |more: &str| format!("{BASE}{}", to(address, "a", more));
    let mut relay = Relay::start(&with("pause = true")).await;
    relay.append(3).await;
    // A change of another setting does not end the pause.
    let paused = with("pause = true\nretry.max_interval = \"9s\"");
    assert_eq!(relay.reload(&paused).await, None);
    relay.append(1).await;
    relay.assert_shows(&paused).await;
    assert_eq!(relay.backlogs()["a"], 4);
    assert_eq!(relay.series("output_events_total").await["a"], 0.0);
    assert_eq!(relay.get("/drained").await.0, 200, "a drain does not wait for it");
    assert_eq!(relay.reload(&with("")).await, None);
    relay.until("delivery", async |it| it.backlogs()["a"] == 0).await;
    assert_eq!(relay.series("output_events_total").await["a"], 4.0);
    relay.assert_shows(&with("")).await;
}

/// Events that wait during a reload are sent with the new filter.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_filter_holds_for_events_that_wait() {
    if !runs_alone() {
        return;
    }
    let mut tasks = JoinSet::new();
    let address = consumer(&mut tasks).await;
    let only = |verb: &str| format!("[[output.filter.match]]\nverbs = [\"{verb}\"]\n");
    let with = |output: &str| format!("{BASE}{output}");
    let mut relay = Relay::start(&with(&dead_end("a", &only("get")))).await;
    let line =
        Bytes::from_static(b"{\"verb\":\"get\"}\n{\"verb\":\"create\"}\n{\"verb\":\"get\"}\n");
    let batch = Append { lines: line, events: 3, levels: LevelCounts::default(), list: None };
    let _ticket = relay.parts.queue.append(batch).expect("there is room");
    assert_eq!(relay.reload(&with(&to(address, "a", &only("create")))).await, None);
    relay.until("delivery", async |it| it.backlogs()["a"] == 0).await;
    let counts = relay.status().await.outputs.remove(0).counts;
    assert_eq!(counts.delivered_events, 1);
    assert_eq!(counts.filtered.values().sum::<u64>(), 2, "{:?}", counts.filtered);
}

/// An HTTP consumer, which accepts requests once `may_answer` is `true`. The channel gets the
/// bearer token of each request.
async fn http_consumer(
    tasks: &mut JoinSet<()>,
    mut may_answer: watch::Receiver<bool>,
) -> (SocketAddr, mpsc::UnboundedReceiver<String>) {
    let socket = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = socket.local_addr().expect("it has one");
    let (tokens, received) = mpsc::unbounded_channel();
    tasks.spawn(async move {
        while let Ok((mut stream, _)) = socket.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let Ok(byte) = stream.read_u8().await else { break };
                head.push(byte);
            }
            let head = String::from_utf8_lossy(&head).to_lowercase();
            let header = |name: &str| head.lines().find_map(|line| line.strip_prefix(name));
            let Some(length) = header("content-length: ") else { continue };
            let mut body = vec![0; length.parse().expect("a number")];
            stream.read_exact(&mut body).await.expect("it is whole");
            let token = header("authorization: bearer ").unwrap_or_default().to_owned();
            tokens.send(token).expect("the test runs");
            may_answer.wait_for(|may| *may).await.expect("the test runs");
            let answer = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
            stream.write_all(answer).await.expect("it reads");
        }
    });
    (address, received)
}

/// Method: the content of an output's token file changes, and the config does not. The new content
/// is in use only after a reload that succeeds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_of_an_output_is_in_use_as_it_was_when_a_reload_came_into_force() {
    if !runs_alone() {
        return;
    }
    let mut tasks = JoinSet::new();
    let (_may, may_answer) = watch::channel(true);
    let (address, mut tokens) = http_consumer(&mut tasks, may_answer).await;
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("token");
    let write = |token: &str| std::fs::write(&file, token).expect("written");
    write("first");
    let config = format!(
        "{BASE}[[output]]\nname = \"a\"\ntype = \"http\"\nurls = [\"http://{address}\"]\n\
         bearer_token_file = {file:?}\n"
    );
    let mut relay = Relay::start(&config).await;
    let mut token = async |relay: &Relay| {
        relay.append(1).await;
        let token = tokio::time::timeout(PATIENCE, tokens.recv()).await;
        token.expect("it is delivered soon").expect("the consumer runs")
    };
    assert_eq!(token(&relay).await, "first");
    write("second");
    let occupied = take_port("127.0.0.1");
    let taken = occupied.local_addr().expect("it has one");
    for more in ["wrong = 1\n".to_owned(), format!("[[listener]]\naddress = \"{taken}\"\n")] {
        assert!(relay.reload(&format!("{config}{more}")).await.is_some());
        assert_eq!(token(&relay).await, "first");
    }
    assert_eq!(relay.reload(&config).await, None);
    assert_eq!(token(&relay).await, "second");
    write("");
    assert!(relay.reload(&config).await.is_some());
    assert_eq!(token(&relay).await, "second");
}

/// Method: a reload removes an output while its events are on the wire, and the next reload adds an
/// output of the same name. The new output begins only after the consumer has responded to the old
/// one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_output_that_is_added_again_waits_until_the_earlier_one_has_left() {
    if !runs_alone() {
        return;
    }
    let mut tasks = JoinSet::new();
    let (may, may_answer) = watch::channel(false);
    let (address, mut requests) = http_consumer(&mut tasks, may_answer).await;
    let alone = format!("{BASE}{}", dead_end("a", ""));
    let both = format!(
        "{alone}[[output]]\nname = \"b\"\ntype = \"http\"\nurls = [\"http://{address}\"]\n"
    );
    let mut relay = Relay::start(&both).await;
    relay.append(2).await;
    assert!(requests.recv().await.is_some(), "they are on the wire");
    assert_eq!(relay.reload(&alone).await, None);
    let answers = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        may.send(true).expect("the consumer runs");
    };
    let (prepared, ()) = tokio::join!(relay.prepare(&both), answers);
    relay.parts.reload(prepared).await;
    relay.assert_shows(&both).await;
    relay.append(1).await;
    relay.until("delivery", async |it| it.series("output_events_total").await["b"] == 3.0).await;
    assert_eq!(relay.series("error_total").await["b"], 0.0);
}

/// A listener that a reload keeps also keeps its socket and its connections. The new settings of
/// the listener, and new limits, hold for the next request of such a connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_that_stays_keeps_its_connections_and_one_that_goes_ends_them() {
    if !runs_alone() {
        return;
    }
    let a = dead_end("a", "");
    let second = "[[listener]]\naddress = \"127.0.0.2:0\"\n";
    let mut relay = Relay::start(&format!("{BASE}{second}{a}")).await;
    std::fs::write(relay.file("token"), "first").expect("written");
    let addresses: Vec<_> =
        relay.parts.listeners.show().iter().filter_map(|it| it.address).collect();
    let mut stays = Client::connect(addresses[0]).await;
    let mut goes = Client::connect(addresses[1]).await;
    assert_eq!((stays.post("/", "").await, goes.post("/", "").await), (200, 200));
    let asks = format!("bearer_token_file = {:?}\npath_prefix = \"/audit\"\n", relay.file("token"));
    assert_eq!(relay.reload(&format!("{BASE}{asks}{a}")).await, None);
    assert_eq!(relay.parts.listeners.show()[0].address, Some(addresses[0]));
    assert_eq!(stays.post("/audit", "first").await, 200);
    assert_eq!(stays.post("/audit", "second").await, 401);
    assert!(goes.is_closed().await);
    relay
        .until("nobody to listen", async |_| TcpStream::connect(addresses[1]).await.is_err())
        .await;
    let mut stays = Client::connect(addresses[0]).await;
    assert_eq!(stays.post("/", "first").await, 404);
    // Only the content of the file changes.
    std::fs::write(relay.file("token"), "second").expect("written");
    assert_eq!(relay.reload(&format!("{BASE}{asks}{a}")).await, None);
    let mut stays = Client::connect(addresses[0]).await;
    assert_eq!(stays.post("/audit", "second").await, 200);
    assert_eq!(relay.reload(&format!("{BASE}{a}[limits]\nmax_body = \"1KiB\"\n")).await, None);
    assert_eq!(stays.post("/", "").await, 200);
    assert_eq!(post_bytes(addresses[0], 2000).await, 413);
    assert_eq!(relay.reload(&format!("{BASE}{a}")).await, None);
    assert_eq!(post_bytes(addresses[0], 2000).await, 200);
}

/// Method: a reload moves a listener to an address that overlaps with its old one on the same port.
/// The reload is refused as a whole and not tried again, and the old listener stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_moves_within_its_port_only_by_a_restart() {
    if !runs_alone() {
        return;
    }
    let port = take_port("127.0.0.1").local_addr().expect("it has one").port();
    let on = |host: &str| {
        BASE.replace(
            "[[listener]]\naddress = \"127.0.0.1:0\"",
            &format!("[[listener]]\naddress = \"{host}:{port}\""),
        )
    };
    let (a, b) = (dead_end("a", ""), dead_end("b", ""));
    let before = format!("{}{a}", on("127.0.0.1"));
    let mut relay = Relay::start(&before).await;
    let error = relay.reload(&format!("{}{a}{b}", on("0.0.0.0"))).await.expect("it is refused");
    assert!(error.starts_with(&format!("cannot listen on 0.0.0.0:{port}: ")), "{error}");
    assert!(error.contains(&format!("here 127.0.0.1:{port}: restart the relay")), "{error}");
    assert!(!relay.parts.file.again.is_waiting());
    relay.assert_shows(&before).await;
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    assert_eq!(post(address).await.as_deref(), Some("200"));
    // Two addresses that do not overlap can have the same port.
    let moved = format!("{}{a}", on("127.0.0.2"));
    assert_eq!(relay.reload(&moved).await, None);
    relay.assert_shows(&moved).await;
    assert_eq!(post(SocketAddr::from(([127, 0, 0, 2], port))).await.as_deref(), Some("200"));
}

/// Method: another process has the address of a new listener. The reload is refused, counts once,
/// and succeeds when the address is free.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_whose_address_is_taken_is_tried_again_and_says_so() {
    if !runs_alone() {
        return;
    }
    let occupied = take_port("127.0.0.1");
    let taken = occupied.local_addr().expect("it has one");
    let before = format!("{BASE}{}", dead_end("a", ""));
    let wanted = format!(
        "{BASE}[[listener]]\naddress = \"{taken}\"\n{}{}",
        dead_end("a", ""),
        dead_end("b", "")
    );
    let mut relay = Relay::start(&before).await;
    for _ in 0..3 {
        let error = relay.reload(&wanted).await.expect("it is refused");
        let status = relay.status().await;
        assert_eq!(status.reloads.awaits_address.as_ref(), Some(&error));
        assert_eq!((status.reloads.error.count, status.outputs.len()), (1, 1));
        assert!(relay.parts.file.again.is_waiting());
    }
    drop(occupied);
    assert_eq!(relay.reload(&wanted).await, None);
    assert!(!relay.parts.file.again.is_waiting());
    relay.assert_shows(&wanted).await;
    // A wrong config ends the attempts too.
    let occupied = take_port("127.0.0.1");
    let taken = occupied.local_addr().expect("it has one");
    let error = relay.reload(&format!("{wanted}[[listener]]\naddress = \"{taken}\"\n")).await;
    assert!(error.is_some() && relay.parts.file.again.is_waiting(), "{error:?}");
    assert!(relay.reload("wrong").await.is_some());
    assert!(!relay.parts.file.again.is_waiting());
    relay.assert_shows(&wanted).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_needs_a_restart_stays_and_the_rest_is_in_force() {
    if !runs_alone() {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let a = dead_end("a", "");
    let mut relay = Relay::start(&format!("{BASE}{a}[limits]\nmax_body = \"1MiB\"\n")).await;
    let before = relay.parts.config.clone();
    let moved = format!(
        "{}{a}[queue]\ndirectory = {:?}\nmax_bytes = \"9MiB\"\nwhen_full = \"drop_oldest\"\n\
         [limits]\nmax_body = \"4MiB\"\nmax_connections = 7\n[process]\nrestrict = \"best_effort\"\n",
        BASE.replacen("127.0.0.1:0", "127.0.0.3:0", 1),
        directory.path()
    );
    assert_eq!(relay.reload(&moved).await, None);
    let now = &relay.parts.config;
    assert_eq!(
        (&now.admin, &now.queue, now.restrict),
        (&before.admin, &before.queue, before.restrict)
    );
    assert_eq!(now.limits.max_body, 1 << 20, "no more than the queue in use takes");
    assert_eq!(now.limits.max_connections, 7);
    assert_eq!(relay.parts.queue.capacity(), before.queue.max_bytes);
    assert_eq!(std::fs::read_dir(directory.path()).expect("it is there").count(), 0);
    let shown = relay.status().await.queue;
    assert_eq!((&*shown.kind, shown.when_full.as_deref()), ("memory", Some("reject")));
}

/// Method: an event is too large for its output, so it becomes a dead letter.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_token_of_taps_the_dead_letters_and_the_volume_follow_the_config() {
    if !runs_alone() {
        return;
    }
    let mut tasks = JoinSet::new();
    let a = to(consumer(&mut tasks).await, "a", "filter.max_event_bytes = \"1KiB\"");
    let without = format!("{BASE}{a}[volume]\nenabled = false\n");
    let mut relay = Relay::start(&without).await;
    let letters = relay.file("letters");
    assert_eq!(relay.get("/tap").await.0, 404);
    let off = relay.get("/status/volume").await.1;
    std::fs::write(relay.file("token"), "secret").expect("written");
    let token = format!("admin.tap_token_file = {:?}\n[[", relay.file("token"));
    let with =
        format!("{}{a}[dead_letter]\ndirectory = {letters:?}\n", BASE.replacen("[[", &token, 1));
    assert_eq!(relay.reload(&with).await, None);
    assert_eq!(relay.get("/tap").await.0, 401);
    assert_ne!(relay.get("/status/volume").await.1, off);
    // Each of these members keeps 128 bytes if the event is cut.
    let names = "level verb user impersonatedUser userAgent requestURI objectRef sourceIPs stage";
    let long: Vec<_> =
        names.split(' ').map(|name| format!("\"{name}\":\"{}\"", "x".repeat(6 << 10))).collect();
    let too_large = Bytes::from(format!("{{{}}}\n", long.join(",")));
    let batch = Append { lines: too_large, events: 1, levels: LevelCounts::default(), list: None };
    let _ticket = relay.parts.queue.append(batch).expect("there is room");
    relay.until("the event is given up", async |it| it.backlogs()["a"] == 0).await;
    assert_eq!(std::fs::read_dir(&letters).expect("it was made").count(), 1);
    assert_eq!(relay.reload(&without).await, None);
    assert_eq!(relay.get("/tap").await.0, 404);
    assert_eq!(relay.get("/status/volume").await.1, off);
}
