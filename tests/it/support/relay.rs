//! The relay as a child process, seen through its ports, its log and `/proc`.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::messages;
use super::metrics::{Metrics, assert_conservation, conservation};
use super::needs::needs;
use super::{PATIENCE, binary, http, text, try_wait_for, wait_for, wait_until};

/// The start of most configs: the log format that [`Relay`] reads, and one listener and the admin
/// address on ports that the kernel chooses. The relay restricts its own process, so most tests
/// also show that it keeps the rights that it needs; see [`unrestricted`].
pub(crate) const BASE: &str = r#"
log = { format = "json" }
admin = { address = "127.0.0.1:0" }
process = { restrict = "best_effort" }
[[listener]]
address = "127.0.0.1:0"
"#;

/// Returns this config without the restriction of the process, which is off by default. For tests
/// that reload a config with files in directories that the first config does not name.
pub(crate) fn unrestricted(config: &str) -> String {
    config.replace("process = { restrict = \"best_effort\" }\n", "")
}

/// Returns this config, which starts like [`BASE`], with more keys in `[admin]`.
pub(crate) fn with_admin(config: &str, keys: &str) -> String {
    let address = "admin = { address = \"127.0.0.1:0\" }";
    assert!(config.contains(address), "{config}");
    config.replace(address, &format!("admin = {{ address = \"127.0.0.1:0\", {keys} }}"))
}

/// Returns the git revision that the program under test was built with. The tests read the same
/// variable, because cargo builds both in one run.
pub(crate) fn revision() -> &'static str {
    option_env!("KUBE_AUDIT_FORWARDER_REVISION").filter(|it| !it.is_empty()).unwrap_or("unknown")
}

/// How the relay's standard output is read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stdout {
    /// A thread reads the output continuously; see [`Relay::stdout`].
    Collected,
    /// Nobody reads the pipe until a test calls [`Relay::take_stdout`].
    Held,
}

/// The state of the pipe that is the relay's standard error.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stderr {
    /// A thread reads each line immediately.
    Read,
    /// The thread completes its current line and then reads no more. The pipe fills up.
    Held,
    /// The thread completes its current line and then closes the pipe.
    Closed,
}

/// Tells the log's reader thread whether to read, to wait or to close the pipe.
struct LogPipe {
    state: Mutex<Stderr>,
    changed: Condvar,
}

impl LogPipe {
    fn set(&self, state: Stderr) {
        *self.state.lock().expect("not poisoned") = state;
        self.changed.notify_all();
    }

    fn is_held(&self) -> bool {
        *self.state.lock().expect("not poisoned") == Stderr::Held
    }

    /// Waits while the log is held. Returns `false` if the thread must close the pipe.
    fn may_read(&self) -> bool {
        let state = self.state.lock().expect("not poisoned");
        let held = |state: &mut Stderr| *state == Stderr::Held;
        *self.changed.wait_while(state, held).expect("not poisoned") == Stderr::Read
    }
}

/// The settings for starting a relay.
pub(crate) struct Builder {
    config: String,
    stdout: Stdout,
    variables: Vec<(String, String)>,
    listeners: Option<usize>,
    launcher: Vec<String>,
    file: Option<PathBuf>,
}

impl Builder {
    /// Starts the relay with this file, which already contains the config, instead of a file in the
    /// relay's temporary directory. For tests where the file's path matters.
    pub(crate) fn file(mut self, file: &Path) -> Self {
        self.file = Some(file.to_owned());
        self
    }

    /// Starts the relay through this program with these first arguments. The launcher's process
    /// must become the relay, as with `setpriv` and `strace -D`.
    pub(crate) fn launcher(mut self, words: &[&str]) -> Self {
        self.launcher = words.iter().map(|&word| word.to_owned()).collect();
        self
    }

    pub(crate) fn stdout(mut self, stdout: Stdout) -> Self {
        self.stdout = stdout;
        self
    }

    /// Sets an environment variable, for `${env:…}`.
    pub(crate) fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sets how many listeners `start` waits for. For configs where some listeners open later
    /// (`optional = true`).
    pub(crate) fn listeners(mut self, count: usize) -> Self {
        self.listeners = Some(count);
        self
    }

    /// Starts the relay and waits until it listens and is ready.
    pub(crate) fn start(self) -> Relay {
        let listeners = self.listeners.unwrap_or_else(|| Shape::of(&self.config).listeners);
        let mut relay = self.launch();
        relay.wait_until_listening(listeners);
        relay
    }

    /// Starts the relay without waiting for anything.
    pub(crate) fn launch(self) -> Relay {
        let directory = TempDir::new().expect("a temporary directory");
        let own = directory.path().join("config.toml");
        std::fs::write(&own, &self.config).expect("a writable directory");
        let file = self.file.unwrap_or(own);
        let mut command = launched(&self.launcher);
        command.args(["run", "--config", text(&file)]).envs(self.variables);
        Relay::spawn(command, self.stdout, directory, Shape::of(&self.config))
    }
}

/// Returns a command that runs the binary through `launcher`, or directly if that is empty.
fn launched<S: AsRef<std::ffi::OsStr>>(launcher: &[S]) -> Command {
    let binary = binary();
    let Some((program, arguments)) = launcher.split_first() else { return Command::new(binary) };
    match program.as_ref().to_str() {
        Some("strace") => needs("strace"),
        Some("setpriv") => needs("root"),
        _ => {}
    }
    let mut command = Command::new(program);
    command.args(arguments).arg(binary);
    command
}

/// The facts about a config that [`Relay`] needs.
struct Shape {
    listeners: usize,
    required_outputs: Vec<String>,
    /// The file with the token for `/metrics`.
    metrics_token: Option<PathBuf>,
}

impl Shape {
    fn of(config: &str) -> Self {
        let table: toml::Table = config.parse().expect("the config is TOML");
        let array = |key: &str| table.get(key).and_then(toml::Value::as_array).cloned();
        let outputs = array("output").unwrap_or_default();
        let required = |output: &&toml::Value| {
            output.get("required").and_then(toml::Value::as_bool) != Some(false)
        };
        let name = |output: &toml::Value| output.get("name")?.as_str().map(str::to_owned);
        let metrics_token = table.get("admin").and_then(|admin| admin.get("metrics_token_file"));
        Self {
            metrics_token: metrics_token.and_then(toml::Value::as_str).map(PathBuf::from),
            listeners: array("listener").unwrap_or_default().len(),
            required_outputs: outputs.iter().filter(required).filter_map(name).collect(),
        }
    }
}

/// A running relay. Dropping it kills the process. Most tests end with [`Relay::finish`].
pub(crate) struct Relay {
    child: Child,
    directory: TempDir,
    log: Arc<Mutex<Vec<String>>>,
    log_pipe: Arc<LogPipe>,
    collected: Arc<Mutex<Vec<u8>>>,
    held: Option<ChildStdout>,
    /// The threads that read the log and the collected standard output.
    readers: Vec<JoinHandle<()>>,
    exited: Option<ExitStatus>,
    required_outputs: Vec<String>,
    metrics_token: Option<PathBuf>,
    /// Each listener's address as configured and as bound, in the order of the log.
    listeners: Vec<(String, SocketAddr)>,
    admin: Option<SocketAddr>,
}

/// The condition that [`Relay::finish`] waits for before it checks conservation.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backlog {
    /// No required output has a backlog or an event that is set aside.
    Empty,
    /// The counters have stopped: two scrapes, half a second apart, return the same values.
    Stable,
}

impl Relay {
    /// Starts a relay with this config and waits until it listens and is ready.
    pub(crate) fn start(config: &str) -> Self {
        Self::with(config).start()
    }

    pub(crate) fn with(config: &str) -> Builder {
        Builder {
            config: config.to_owned(),
            stdout: Stdout::Collected,
            variables: Vec::new(),
            listeners: None,
            launcher: Vec::new(),
            file: None,
        }
    }

    fn spawn(mut command: Command, stdout: Stdout, directory: TempDir, shape: Shape) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary runs");
        let log = Arc::new(Mutex::new(Vec::new()));
        let for_thread = Arc::clone(&log);
        let stderr = BufReader::new(child.stderr.take().expect("piped"));
        let log_pipe =
            Arc::new(LogPipe { state: Mutex::new(Stderr::Read), changed: Condvar::new() });
        let pipe = Arc::clone(&log_pipe);
        // Each thread ends when the process exits, because the pipe is then closed.
        let mut readers = vec![std::thread::spawn(move || {
            let mut lines = stderr.split(b'\n').map_while(Result::ok);
            while pipe.may_read()
                && let Some(line) = lines.next()
            {
                let line = String::from_utf8_lossy(&line).into_owned();
                for_thread.lock().expect("not poisoned").push(line);
            }
        })];
        let collected = Arc::new(Mutex::new(Vec::new()));
        let mut held = child.stdout.take();
        if stdout == Stdout::Collected {
            let pipe = held.take().expect("piped");
            readers.push(collect(pipe, &collected));
        }
        Self {
            child,
            directory,
            log,
            log_pipe,
            collected,
            held,
            readers,
            exited: None,
            required_outputs: shape.required_outputs,
            metrics_token: shape.metrics_token,
            listeners: Vec::new(),
            admin: None,
        }
    }

    fn wait_until_listening(&mut self, listeners: usize) {
        let listening = self.listens_or_exits(listeners);
        assert!(listening, "not listening; exit: {:?}; log:\n{}", self.exited, self.log_text());
    }

    /// Waits until `listeners` listeners are open and `/readyz` responds with 200, or until the
    /// relay has ended, for at most 2 minutes. Returns `true` if the relay is ready. Before that,
    /// `/status` shows no outputs and no settings, although the listeners may have logged their
    /// addresses.
    ///
    /// A start with a spool waits for syncs. On a busy machine, a sync of ext4 also writes the data
    /// of other processes: during a large build, one start took 32 s.
    pub(crate) fn listens_or_exits(&mut self, listeners: usize) -> bool {
        let ready = try_wait_for(PATIENCE * 4, || {
            let fields = self.log_fields();
            let of = |message: &'static str| {
                fields.iter().filter(move |fields| fields["message"] == message)
            };
            let address = |fields: &serde_json::Value| -> SocketAddr {
                fields["address"].as_str().and_then(|text| text.parse().ok()).expect("an address")
            };
            let configured = |fields: &serde_json::Value| {
                fields["listener"].as_str().expect("the configured address").to_owned()
            };
            self.listeners =
                of("listening").map(|fields| (configured(fields), address(fields))).collect();
            self.admin = of("admin listening").next().map(address);
            // The admin address may require a client certificate; the probe address does not.
            let probes = of("probes listening").next().map(address);
            let listening = self.listeners.len() >= listeners
                && probes.or(self.admin).is_some_and(|admin| {
                    http::get(admin, "/readyz").is_ok_and(|answer| answer.status == 200)
                });
            (listening || self.has_exited()).then_some(listening)
        });
        ready == Some(true)
    }

    /// Returns the address of the only listener.
    pub(crate) fn address(&self) -> SocketAddr {
        assert_eq!(self.listeners.len(), 1, "several listeners: ask for `listeners`");
        self.listeners[0].1
    }

    /// Returns each listener's address as configured and as bound, in the order of the log.
    pub(crate) fn listeners(&self) -> &[(String, SocketAddr)] {
        &self.listeners
    }

    /// Waits until a total of `count` listeners are open, for configs where some open later.
    pub(crate) fn wait_for_listeners(&mut self, count: usize) {
        self.wait_until_listening(count);
    }

    /// Returns the address of `/metrics` and the other admin routes.
    pub(crate) fn admin(&self) -> SocketAddr {
        self.admin.expect("set when it listens")
    }

    /// POSTs a body as kube-apiserver does, on a new connection, and returns the response.
    pub(crate) fn post(&self, body: &[u8]) -> http::Response {
        http::post(self.address(), "/audit?timeout=30s", "application/json", body)
            .expect("an answer")
    }

    /// Scrapes `/metrics`.
    pub(crate) fn metrics(&self) -> Metrics {
        let token = self.metrics_token.as_ref().and_then(|file| std::fs::read_to_string(file).ok());
        let bearer = format!("Bearer {}", token.as_deref().unwrap_or_default().trim());
        let headers = [("Connection", "close"), ("Authorization", bearer.as_str())];
        let headers = if token.is_some() { &headers[..] } else { &headers[..1] };
        let client = http::Client::connect(self.admin());
        let response = client.and_then(|mut it| it.request("GET", "/metrics", headers, b""));
        let response = response.expect("an answer of /metrics");
        assert_eq!(response.status, 200, "/metrics: {}", response.text());
        Metrics::parse(&response.text())
    }

    /// Scrapes until `check` returns `Some`, and returns that value. After `limit`, panics with
    /// `what` and the current metrics.
    pub(crate) fn wait_for_metrics<T>(
        &self,
        what: &str,
        limit: Duration,
        mut check: impl FnMut(&Metrics) -> Option<T>,
    ) -> T {
        let found = try_wait_for(limit, || check(&self.metrics()));
        found.unwrap_or_else(|| panic!("waited {limit:?} for {what}: {}", self.metrics().text))
    }

    /// Waits until no required output has a backlog or an event that is set aside.
    pub(crate) fn wait_until_delivered(&self, limit: Duration) {
        self.wait_for_metrics("an empty backlog", limit, |metrics| {
            let backlog = |output: &String| {
                let of_output = |name| metrics.value(name, &[("output", output.as_str())]);
                of_output("output_backlog_events") + of_output("output_aside_events")
            };
            let is_empty = self.required_outputs.iter().all(|output| backlog(output) == 0.0);
            if !is_empty {
                // Each scrape takes milliseconds of CPU time in both processes.
                std::thread::sleep(Duration::from_millis(20));
            }
            is_empty.then_some(())
        });
    }

    /// Returns the lines of the log that have been read so far. A line that the relay has just
    /// logged may be missing. A test waits for it ([`Relay::wait_for_log`]), or looks into the
    /// whole log ([`Relay::finish`]), also for what must not be there.
    pub(crate) fn log_lines(&self) -> Vec<String> {
        self.log.lock().expect("not poisoned").clone()
    }

    /// Returns the log so far as one text, for the message of a failed test.
    pub(crate) fn log_text(&self) -> String {
        self.log_lines().join("\n")
    }

    /// Returns the fields of each log line, including `message`, in either log format.
    pub(crate) fn log_fields(&self) -> Vec<serde_json::Value> {
        let lines = self.log.lock().expect("not poisoned");
        let fields = |line: &String| match serde_json::from_str::<serde_json::Value>(line) {
            Ok(line) => line.get("fields").cloned(),
            Err(_) => text_fields(line),
        };
        lines.iter().filter_map(fields).collect()
    }

    /// Waits for a log line with this message and returns its fields.
    pub(crate) fn wait_for_log(&self, message: &str, limit: Duration) -> serde_json::Value {
        wait_for(&format!("the log line '{message}'"), limit, || {
            self.log_fields().into_iter().find(|fields| fields["message"] == message)
        })
    }

    /// Returns everything that the relay has written to its standard output so far.
    pub(crate) fn stdout(&self) -> Vec<u8> {
        self.collected.lock().expect("not poisoned").clone()
    }

    /// Stops reading the log, after at most a line or two that are already being read.
    pub(crate) fn hold_log(&self) {
        self.log_pipe.set(Stderr::Held);
    }

    /// Continues reading the log where reading stopped.
    pub(crate) fn read_log(&self) {
        self.log_pipe.set(Stderr::Read);
    }

    /// Closes the pipe of the log after the next line.
    pub(crate) fn close_log(&self) {
        self.log_pipe.set(Stderr::Closed);
    }

    /// Takes the pipe of [`Stdout::Held`]. Dropping the pipe closes it.
    pub(crate) fn take_stdout(&mut self) -> ChildStdout {
        self.held.take().expect("started with Stdout::Held, and not taken before")
    }

    pub(crate) fn config_file(&self) -> PathBuf {
        self.directory.path().join("config.toml")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal, for example `libc::SIGTERM`.
    pub(crate) fn signal(&self, signal: libc::c_int) {
        signal_process(&self.child, signal);
    }

    /// Replaces the config file and sends SIGHUP. Waits until a reload with this result (`success`
    /// or `error`) is counted, and checks that none had the other result.
    pub(crate) fn reload(&self, config: &str, result: &str) {
        let other = if result == "success" { "error" } else { "success" };
        let before = [result, other].map(|result| self.reloads(result));
        // With a rename, the config file is complete at any time, even if this thread is paused
        // during the write.
        let beside = self.config_file().with_extension("new");
        std::fs::write(&beside, config).unwrap();
        std::fs::rename(&beside, self.config_file()).unwrap();
        self.signal(libc::SIGHUP);
        wait_until("the reload", PATIENCE, || self.reloads(result) > before[0]);
        assert_eq!(self.reloads(other), before[1], "{}", self.log_text());
    }

    /// Returns how many reloads have had this result: `success` or `error`.
    pub(crate) fn reloads(&self, result: &str) -> f64 {
        self.metrics().value("config_reload_total", &[("result", result)])
    }

    /// Returns the resident memory (VmRSS), in bytes.
    pub(crate) fn rss_bytes(&self) -> u64 {
        self.memory("VmRSS:")
    }

    /// Returns the highest resident memory so far (VmHWM), in bytes.
    pub(crate) fn rss_bytes_max(&self) -> u64 {
        self.memory("VmHWM:")
    }

    /// Returns the part of the resident memory that is backed by files (RssFile), such as the
    /// program and its libraries, in bytes.
    pub(crate) fn rss_file_bytes(&self) -> u64 {
        self.memory("RssFile:")
    }

    fn memory(&self, key: &str) -> u64 {
        let kibibytes: u64 =
            self.proc_status(key).trim_end_matches(" kB").parse().expect("a number");
        kibibytes * 1024
    }

    fn proc_status(&self, key: &str) -> String {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()));
        let status = status.expect("the process lives");
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        line.expect("a line with this key").trim().to_owned()
    }

    /// Kills the strace that the relay runs under.
    pub(crate) fn kill_tracer(&self) {
        let tracer = self.proc_status("TracerPid:");
        assert_ne!(tracer, "0", "nobody traces it");
        let status = Command::new("kill").args(["-KILL", &tracer]).status();
        assert!(status.expect("kill runs").success());
    }

    /// Returns `true` if the relay has ended. The log and the collected standard output are then
    /// complete, unless the log is held.
    fn has_exited(&mut self) -> bool {
        if self.exited.is_none() {
            self.exited = self.child.try_wait().expect("our child");
            if self.exited.is_some() && !self.log_pipe.is_held() {
                // The last lines may still be in the pipe. A launcher that was killed can leave a
                // process that keeps the pipe open, so the wait has a limit.
                let read = || self.readers.iter().all(JoinHandle::is_finished).then_some(());
                try_wait_for(Duration::from_secs(2), read);
            }
        }
        self.exited.is_some()
    }

    /// Waits until the relay has exited, for at most [`PATIENCE`].
    pub(crate) fn wait(&mut self) -> ExitStatus {
        self.wait_at_most(PATIENCE)
    }

    /// Like `wait`, but with this limit. Panics if the relay is still running after it.
    pub(crate) fn wait_at_most(&mut self, limit: Duration) -> ExitStatus {
        wait_for("the relay's exit", limit, || self.has_exited().then_some(()));
        self.exited.expect("it has exited")
    }

    /// Kills the relay (SIGKILL), as in a crash, and waits until it has exited.
    pub(crate) fn kill(&mut self) {
        self.signal(libc::SIGKILL);
        self.wait();
    }

    /// Stops the relay with SIGTERM and expects exit status 0, or 1 if the log reports that events
    /// are lost. Returns how long the stop took.
    pub(crate) fn stop(&mut self) -> Duration {
        let begun = Instant::now();
        self.signal(libc::SIGTERM);
        let status = self.wait_at_most(PATIENCE * 2);
        let log = self.log_text();
        let lost = log.contains(messages::UNDELIVERED);
        assert_eq!(status.code(), Some(lost.into()), "exit after SIGTERM: {status}\n{log}");
        begun.elapsed()
    }

    /// Ends a test: waits for `backlog`, checks conservation, and stops the relay. Returns the
    /// whole log.
    pub(crate) fn finish(mut self, backlog: Backlog) -> String {
        self.settle(backlog);
        self.stop();
        self.log_text()
    }

    /// Waits for `backlog` and checks conservation.
    pub(crate) fn settle(&self, backlog: Backlog) {
        match backlog {
            Backlog::Empty => self.wait_until_delivered(PATIENCE * 2),
            Backlog::Stable => self.wait_until_stable(),
        }
        let outputs: Vec<&str> = self.required_outputs.iter().map(String::as_str).collect();
        assert!(!outputs.is_empty(), "no required output to count for");
        // A scrape is not a snapshot: a delivery can end while the metrics are written. The check
        // is therefore repeated for up to 2 s.
        let agrees = || conservation(&self.metrics(), &outputs).is_ok().then_some(());
        if try_wait_for(Duration::from_secs(2), agrees).is_none() {
            assert_conservation(&self.metrics(), &outputs);
        }
    }

    fn wait_until_stable(&self) {
        let counted = || -> BTreeMap<String, f64> {
            let metrics = self.metrics();
            let names = [
                "event_total",
                "output_events_total",
                "output_backlog_events",
                "output_aside_events",
                "error_total",
                "filtered_events_total",
            ];
            names.iter().map(|&name| (name.to_owned(), metrics.sum(name))).collect()
        };
        let mut last = counted();
        wait_for("counts that stay", PATIENCE * 2, || {
            std::thread::sleep(Duration::from_millis(500));
            let now = counted();
            let stable = now == last;
            last = now;
            stable.then_some(())
        });
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if !self.has_exited() {
            // The relay may just have exited. Then there is nothing to kill.
            drop(self.child.kill());
            drop(self.child.wait());
        }
        if std::thread::panicking() {
            let lines = self.log_lines();
            let last = lines.len().saturating_sub(60);
            eprintln!("the relay's log, last {} lines:\n{}", lines.len() - last, {
                lines[last..].join("\n")
            });
        }
    }
}

/// Parses a log line of `format = "text"`: time, level, message, and fields as `name=value`.
/// Returns `None` for a line with fewer than three words.
fn text_fields(line: &str) -> Option<serde_json::Value> {
    let (_time, rest) = line.split_once(' ')?;
    let (_level, rest) = rest.trim_start().split_once(' ')?;
    let is_name = |word: &str| {
        let name = word.split_once('=').map(|(name, _)| name);
        name.is_some_and(|name| name.chars().all(|char| char.is_ascii_lowercase() || char == '_'))
    };
    let words: Vec<&str> = rest.split(' ').collect();
    let end = words.iter().position(|word| is_name(word)).unwrap_or(words.len());
    let mut fields = serde_json::Map::new();
    fields.insert("message".to_owned(), words[..end].join(" ").into());
    // A value with spaces is cut off at its first space, because no test needs such a value.
    for (name, value) in words[end..].iter().filter_map(|word| word.split_once('=')) {
        fields.insert(name.to_owned(), value.trim_matches('"').into());
    }
    Some(fields.into())
}

#[test]
fn a_log_line_of_text_has_its_message_and_fields() {
    let line =
        r#"2026-01-02T03:04:05.678901Z  INFO admin listening listener="[::]:1" address=[::]:2"#;
    let fields = text_fields(line).unwrap();
    let wanted = serde_json::json!({
        "message": "admin listening", "listener": "[::]:1", "address": "[::]:2",
    });
    assert_eq!(fields, wanted);
    assert_eq!(text_fields("no line"), None);
}

/// Sends a signal to a child. The caller has not waited for the child, so the process id still
/// belongs to it.
#[allow(unsafe_code, reason = "kill(2) has no safe form without another crate")]
pub(crate) fn signal_process(child: &Child, signal: libc::c_int) {
    let pid = libc::pid_t::try_from(child.id()).expect("a process id");
    // SAFETY: kill takes two integers and touches no memory of ours.
    let result = unsafe { libc::kill(pid, signal) };
    assert_eq!(result, 0, "kill({pid}, {signal}): {}", std::io::Error::last_os_error());
}

/// Returns the output of `check` for the config `name` without the config's summary: without the
/// line with the file's name, and without all indented lines.
pub(crate) fn without_summary(said: &str, name: &str) -> String {
    let lines = said.lines().filter(|line| *line != name && !line.starts_with("  "));
    lines.map(|line| format!("{line}\n")).collect()
}

/// Runs the binary to its end, for commands such as `check` and `config`. Returns the exit status,
/// the standard output and the standard error.
pub(crate) fn run_command(arguments: &[&str], directory: &Path) -> std::process::Output {
    run_command_with(arguments, directory, &[])
}

/// Like [`run_command`], with environment variables.
pub(crate) fn run_command_with(
    arguments: &[&str],
    directory: &Path,
    variables: &[(&str, &str)],
) -> std::process::Output {
    Command::new(binary())
        .args(arguments)
        .envs(variables.iter().copied())
        .current_dir(directory)
        .stdin(Stdio::null())
        .output()
        .expect("the binary runs")
}

/// A running binary with any arguments. Dropping it kills the process.
pub(crate) struct Running {
    child: Child,
    stdout: Option<ChildStdout>,
    said: [Arc<Mutex<Vec<u8>>>; 2],
    /// The thread that reads the standard error.
    reader: Option<JoinHandle<()>>,
}

/// Starts the binary. A variable without a value is removed from the binary's environment.
pub(crate) fn spawn_command(
    arguments: &[&str],
    directory: &Path,
    variables: &[(&str, Option<&str>)],
) -> Running {
    let mut command = Command::new(binary());
    command.args(arguments);
    for (name, value) in variables {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    running(command, directory)
}

/// Starts `run` with this config file, through `launcher` (see [`Builder::launcher`]) if it is not
/// empty.
pub(crate) fn spawn_run(launcher: &[&str], config: &Path, directory: &Path) -> Running {
    spawn_launched(launcher, &["run", "--config", text(config)], directory)
}

fn spawn_launched(launcher: &[&str], arguments: &[&str], directory: &Path) -> Running {
    let mut command = launched(launcher);
    command.args(arguments);
    running(command, directory)
}

fn running(mut command: Command, directory: &Path) -> Running {
    command.current_dir(directory).stdin(Stdio::null());
    let mut child =
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary runs");
    let said = [Arc::default(), Arc::default()];
    let reader = Some(collect(child.stderr.take().expect("piped"), &said[1]));
    Running { stdout: child.stdout.take(), child, said, reader }
}

/// Reads a pipe to its end, in a separate thread.
fn collect(
    mut pipe: impl std::io::Read + Send + 'static,
    into: &Arc<Mutex<Vec<u8>>>,
) -> JoinHandle<()> {
    let into = Arc::clone(into);
    std::thread::spawn(move || {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(size @ 1..) = pipe.read(&mut buffer) {
            into.lock().expect("not poisoned").extend_from_slice(&buffer[..size]);
        }
    })
}

impl Running {
    /// Takes the standard output, which must be unread. Dropping it closes the pipe.
    pub(crate) fn take_stdout(&mut self) -> ChildStdout {
        self.stdout.take().expect("not read yet")
    }

    /// Returns the standard output that has been read so far. The first call starts the reading.
    pub(crate) fn stdout(&mut self) -> Vec<u8> {
        if let Some(pipe) = self.stdout.take() {
            collect(pipe, &self.said[0]);
        }
        self.said[0].lock().expect("not poisoned").clone()
    }

    /// Returns the standard error that has been read so far.
    pub(crate) fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.said[1].lock().expect("not poisoned")).into_owned()
    }

    pub(crate) fn signal(&self, signal: libc::c_int) {
        signal_process(&self.child, signal);
    }

    /// Waits until the process has exited, for at most [`PATIENCE`]. Returns its exit status and
    /// its standard error.
    pub(crate) fn wait(&mut self) -> (ExitStatus, String) {
        let status = wait_for("the end", PATIENCE, || self.child.try_wait().expect("our child"));
        // The end of the standard error may still be in the pipe.
        if let Some(reader) = self.reader.take() {
            reader.join().expect("reading does not panic");
        }
        (status, self.stderr())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // The process may have exited already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
