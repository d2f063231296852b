//! Real consumers and proxies as child processes (rsyslog, syslog-ng, nginx, HAProxy, tinyproxy),
//! and the tools promtool and curl. `./test setup` installs them. If a program is missing, the test
//! that needs it fails.
//!
//! Each peer listens on 127.0.0.1, keeps its port when it restarts, writes into its own directory,
//! and is ended by its own process id.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use super::certificates::Certificates;
use super::needs::needs;
use super::relay::signal_process;
use super::{PATIENCE, fed, free_port, lines_in, repository, text, try_wait_for, wait_until};

/// The largest message that the syslog peers accept, in bytes.
const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// The TLS settings of a peer's listener.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Security {
    Plain,
    /// The peer presents [`Certificates::server`].
    Tls,
    /// Like `Tls`, but the peer accepts only clients with a certificate that our CA has signed.
    MutualTls,
}

/// A peer's process, which a test can `stop`, `kill` and `start` again.
pub(crate) struct Process {
    program: PathBuf,
    arguments: Vec<String>,
    variables: Vec<(&'static str, String)>,
    port: u16,
    /// The file that receives the peer's standard output and standard error. Restarts append to it.
    log: PathBuf,
    child: Option<Child>,
}

impl Process {
    pub(crate) fn new(program: PathBuf, arguments: &[&str], port: u16, directory: &Path) -> Self {
        Self {
            program,
            arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
            variables: Vec::new(),
            port,
            log: directory.join("peer.log"),
            child: None,
        }
    }

    pub(crate) fn variable(mut self, name: &'static str, value: &str) -> Self {
        self.variables.push((name, value.to_owned()));
        self
    }

    /// Starts the process on its port and waits until it listens. If that fails, panics with its
    /// log.
    pub(crate) fn start(&mut self) {
        if let Err(why) = self.try_start() {
            panic!("{} on port {}: {why}", self.program.display(), self.port);
        }
    }

    fn try_start(&mut self) -> Result<(), String> {
        assert!(self.child.is_none(), "started twice");
        let log = File::options().create(true).append(true).open(&self.log).expect("a log file");
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).envs(self.variables.iter().cloned()).stdin(Stdio::null());
        command.stdout(log.try_clone().expect("a second handle")).stderr(log);
        let mut child = command.spawn().map_err(|error| format!("{error}; run ./test setup"))?;
        let listening = try_wait_for(PATIENCE, || {
            let exited = child.try_wait().expect("our child").is_some();
            (exited || listens(child.id(), self.port)).then_some(!exited)
        });
        // The child is stored before the result is checked, so that `drop` ends it in any case.
        self.child = Some(child);
        if listening == Some(true) {
            return Ok(());
        }
        self.kill();
        Err(format!("does not listen; its log: {}", self.log()))
    }

    /// Sends SIGTERM and waits until the process has ended. Kills it after 10 seconds.
    pub(crate) fn stop(&mut self) {
        if let Some(child) = &mut self.child {
            if child.try_wait().expect("our child").is_none() {
                signal_process(child, libc::SIGTERM);
            }
            let ended = || child.try_wait().expect("our child").map(drop);
            if try_wait_for(Duration::from_secs(10), ended).is_none() {
                self.kill();
            }
        }
        self.child = None;
    }

    /// Kills the process (SIGKILL). Bytes that it has not read are lost.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // The process may have exited already.
            drop(child.kill());
            drop(child.wait());
        }
    }

    /// Stops the process (SIGSTOP) until [`Process::thaw`], and waits until all its threads are
    /// stopped. The kernel still receives bytes for it.
    pub(crate) fn freeze(&self) {
        freeze(self.child.as_ref().expect("running"));
    }

    /// Continues the process after [`Process::freeze`].
    pub(crate) fn thaw(&self) {
        signal_process(self.child.as_ref().expect("running"), libc::SIGCONT);
    }

    pub(crate) fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
    }

    /// Returns everything that the process has written so far.
    pub(crate) fn log(&self) -> String {
        std::fs::read(&self.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("the log of {}:\n{}", self.program.display(), self.log());
        }
    }
}

/// Sends SIGSTOP, and waits until all threads of the process are stopped.
pub(crate) fn freeze(child: &Child) {
    signal_process(child, libc::SIGSTOP);
    let tasks = format!("/proc/{}/task", child.id());
    // In `stat`, the state follows the name in parentheses. T means stopped.
    let stands = |task: &Path| {
        let stat = std::fs::read_to_string(task.join("stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
    };
    wait_until("the peer to stop", PATIENCE, || {
        let tasks = std::fs::read_dir(&tasks).expect("it lives").flatten();
        tasks.map(|task| task.path()).all(|task| stands(&task))
    });
}

/// Returns `true` if this process itself listens on the port. The check does not connect, because
/// the peer would see the connection. It also ignores listeners of other programs.
fn listens(pid: u32, port: u16) -> bool {
    let Ok(table) = std::fs::read_to_string("/proc/net/tcp") else { return false };
    // The columns of the file: number, local address, remote address, state (0A: LISTEN), …, inode
    // (column 9, counted from 0).
    let local = format!("0100007F:{port:04X}");
    let inode = table.lines().find_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let listening = columns.get(1) == Some(&local.as_str()) && columns.get(3) == Some(&"0A");
        if listening { columns.get(9).map(|inode| format!("socket:[{inode}]")) } else { None }
    });
    let Ok(handles) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    inode.is_some_and(|inode| {
        handles
            .flatten()
            .filter_map(|handle| std::fs::read_link(handle.path()).ok())
            .any(|target| target.as_os_str() == inode.as_str())
    })
}

/// Builds a process for a free port and starts it. If the start fails, for example because the port
/// has been taken, tries again with another port, up to three times in all.
pub(crate) fn start_on_free_port(build: impl Fn(u16) -> Process) -> Process {
    let mut failure = String::new();
    for _ in 0..3 {
        let mut process = build(free_port());
        match process.try_start() {
            Ok(()) => return process,
            Err(why) => failure = why,
        }
    }
    panic!("the peer does not start: {failure}");
}

/// Finds an installed program, in PATH or in the system's directories. Panics if it is not there.
pub(crate) fn program(name: &str) -> PathBuf {
    needs(name);
    let path = std::env::var("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|file| file.is_file())
        .unwrap_or_else(|| panic!("{name} is missing; `./test setup` installs it"))
}

fn write(directory: &TempDir, name: &str, content: &str) -> PathBuf {
    let file = directory.path().join(name);
    std::fs::write(&file, content).expect("a writable directory");
    file
}

/// Returns the complete lines of a file that a peer writes. A missing file has no lines.
pub(crate) fn lines_of(file: &Path) -> Vec<Vec<u8>> {
    lines_in(&std::fs::read(file).unwrap_or_default())
}

/// Removes the incomplete last line of a file. The peer that wrote the file has ended.
pub(super) fn cut_partial_line(file: &Path) {
    let bytes = std::fs::read(file).unwrap_or_default();
    let complete = memchr::memrchr(b'\n', &bytes).map_or(0, |end| end + 1);
    if complete < bytes.len() {
        std::fs::write(file, &bytes[..complete]).expect("the dead peer's file");
    }
}

/// rsyslog with `imrelp`, or with `imtcp`, which accepts octet counting and newlines on one port.
///
/// Its queue is "Direct": rsyslog writes a message into the file before it acknowledges the message
/// or reads the next one.
pub(crate) struct Rsyslog {
    pub(crate) process: Process,
    directory: TempDir,
}

impl Rsyslog {
    pub(crate) fn start(security: Security, certificates: &Certificates) -> Self {
        Self::with(security, certificates, imtcp)
    }

    pub(crate) fn relp(security: Security, certificates: &Certificates) -> Self {
        Self::with(security, certificates, imrelp)
    }

    /// Starts rsyslog. `input` returns parameters for `global()`, and the config of the input
    /// module.
    fn with(
        security: Security,
        certificates: &Certificates,
        input: fn(u16, Security, &Certificates) -> (String, String),
    ) -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let process = start_on_free_port(|port| {
            let (global, input) = input(port, security, certificates);
            let at = text(directory.path());
            let config = format!(
                r#"global(workDirectory="{at}" maxMessageSize="{MESSAGE_BYTES_MAX}" net.enableDNS="off" parser.escapeControlCharactersOnReceive="off" {global})
main_queue(queue.type="Direct")
template(name="msg" type="string" string="%msg%\n")
template(name="raw" type="string" string="%rawmsg%\n")
{input}
ruleset(name="peer") {{
  action(type="omfile" file="{at}/messages" template="msg")
  action(type="omfile" file="{at}/raw" template="raw")
}}
"#
            );
            let config = write(&directory, "rsyslog.conf", &config);
            let pid_file = directory.path().join("rsyslog.pid");
            let arguments = ["-n", "-f", text(&config), "-i", text(&pid_file)];
            Process::new(program("rsyslogd"), &arguments, port, directory.path())
        });
        Self { process, directory }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.process.address()
    }

    /// Returns the MSG part of each message, in the order of arrival.
    pub(crate) fn messages(&self) -> Vec<Vec<u8>> {
        lines_of(&self.directory.path().join("messages"))
    }

    /// Removes a message that was written only in part before a kill. Otherwise the first message
    /// after the restart would be appended to it. Returns how many complete messages remain.
    pub(crate) fn cut_partial_line(&self) -> usize {
        for name in ["messages", "raw"] {
            cut_partial_line(&self.directory.path().join(name));
        }
        self.messages().len()
    }

    /// Returns the size of all messages so far in bytes, including an incomplete last message.
    pub(crate) fn bytes(&self) -> u64 {
        let file = std::fs::metadata(self.directory.path().join("messages"));
        file.map_or(0, |file| file.len())
    }

    /// Returns each message as received, including its PRI.
    pub(crate) fn raw(&self) -> Vec<Vec<u8>> {
        lines_of(&self.directory.path().join("raw"))
    }

    pub(crate) fn wait_for_count(&self, count: usize, limit: Duration) {
        wait_until(&format!("{count} messages at rsyslog"), limit, || {
            self.messages().len() >= count
        });
    }
}

fn imtcp(port: u16, security: Security, files: &Certificates) -> (String, String) {
    let (ca, certificate, key) =
        (text(&files.ca), text(&files.server.certificate), text(&files.server.key));
    let (global, module) = match security {
        Security::Plain => (String::new(), String::new()),
        Security::Tls | Security::MutualTls => (
            format!(
                r#"defaultNetstreamDriver="ossl" defaultNetstreamDriverCAFile="{ca}" defaultNetstreamDriverCertFile="{certificate}" defaultNetstreamDriverKeyFile="{key}""#
            ),
            format!(
                r#"streamDriver.name="ossl" streamDriver.mode="1" streamDriver.authMode="{}""#,
                if security == Security::Tls { "anon" } else { "x509/certvalid" }
            ),
        ),
    };
    // There is one limit for messages and one for octet-counted frames. If a frame exceeds the
    // second limit (200,000 bytes by default), imtcp reads the rest of the stream as lines.
    let input = format!(
        r#"module(load="imtcp" maxFrameSize="{MESSAGE_BYTES_MAX}" {module})
input(type="imtcp" address="127.0.0.1" port="{port}" ruleset="peer")"#
    );
    (global, input)
}

fn imrelp(port: u16, security: Security, files: &Certificates) -> (String, String) {
    let (ca, certificate, key) =
        (text(&files.ca), text(&files.server.certificate), text(&files.server.key));
    let tls = match security {
        Security::Plain => String::new(),
        // Without an authentication mode, rsyslog does not request a client certificate.
        Security::Tls => {
            format!(
                r#"tls="on" tls.myCert="{certificate}" tls.myPrivKey="{key}" tls.caCert="{ca}""#
            )
        }
        Security::MutualTls => format!(
            r#"tls="on" tls.myCert="{certificate}" tls.myPrivKey="{key}" tls.caCert="{ca}" tls.authMode="certvalid""#
        ),
    };
    let input = format!(
        r#"module(load="imrelp" tls.tlslib="openssl" ruleset="peer")
input(type="imrelp" address="127.0.0.1" port="{port}" maxDataSize="{MESSAGE_BYTES_MAX}" {tls})"#
    );
    (String::new(), input)
}

/// syslog-ng with its `syslog()` source, which accepts only octet counting (RFC 6587, RFC 5425).
///
/// Debian's package conflicts with rsyslog's, so `./test setup` unpacks it below `target/peers`.
pub(crate) struct SyslogNg {
    pub(crate) process: Process,
    directory: TempDir,
}

impl SyslogNg {
    pub(crate) fn start(security: Security, certificates: &Certificates) -> Self {
        Self::with_limit(MESSAGE_BYTES_MAX, security, certificates)
    }

    /// Starts syslog-ng with this limit for a message (`log-msg-size`).
    pub(crate) fn with_limit(
        limit: usize,
        security: Security,
        certificates: &Certificates,
    ) -> Self {
        needs("syslog-ng");
        let directory = TempDir::new().expect("a temporary directory");
        let root = repository().join("target/peers/syslog-ng/usr");
        let libraries = root.join("lib/syslog-ng");
        let binary = root.join("sbin/syslog-ng");
        assert!(binary.is_file(), "{} is missing; `./test setup` unpacks it", binary.display());
        let modules = std::fs::read_dir(&libraries)
            .expect("unpacked with the binary")
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.join("libafsocket.so").is_file())
            .expect("a directory of modules, named by the version");
        let process = start_on_free_port(|port| {
            let version = modules.file_name().expect("a version").to_string_lossy();
            let files = (certificates, directory.path());
            let config = Self::config(&version, port, limit, security, files);
            let config = write(&directory, "syslog-ng.conf", &config);
            let own = |name: &str| text(&directory.path().join(name)).to_owned();
            let arguments = [
                "--foreground",
                "--stderr",
                "--no-caps",
                &format!("--module-path={}", text(&modules)),
                &format!("--cfgfile={}", text(&config)),
                &format!("--persist-file={}", own("persist")),
                &format!("--control={}", own("control")),
                &format!("--pidfile={}", own("pid")),
            ];
            let process = Process::new(binary.clone(), &arguments, port, directory.path());
            process.variable("LD_LIBRARY_PATH", text(&libraries))
        });
        Self { process, directory }
    }

    fn config(
        version: &str,
        port: u16,
        limit: usize,
        security: Security,
        (files, directory): (&Certificates, &Path),
    ) -> String {
        let at = text(directory);
        let (ca, certificate, key) =
            (text(&files.ca), text(&files.server.certificate), text(&files.server.key));
        let transport = match security {
            Security::Plain => "transport(tcp)".to_owned(),
            Security::Tls | Security::MutualTls => format!(
                r#"transport(tls) tls(ca-file("{ca}") cert-file("{certificate}") key-file("{key}") peer-verify({}))"#,
                if security == Security::Tls { "optional-untrusted" } else { "required-trusted" }
            ),
        };
        // syslog-ng divides the window (`log-iw-size`) by `max-connections`. The result must be at
        // least 100.
        format!(
            r#"@version: {version}
options {{ log-msg-size({limit}); use-dns(no); dns-cache(no); keep-hostname(yes); stats-freq(0); }};
source peer {{ syslog(ip(127.0.0.1) port({port}) {transport} max-connections(100) log-iw-size(10000)); }};
destination messages {{ file("{at}/messages" template("${{MSG}}\n")); }};
destination headers {{ file("{at}/headers" template("${{PRI}} ${{R_ISODATE}} ${{S_ISODATE}} ${{HOST}} ${{PROGRAM}}\n") frac-digits(6)); }};
log {{ source(peer); destination(messages); destination(headers); flags(flow-control); }};
"#
        )
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.process.address()
    }

    /// Returns the MSG part of each message, in the order of arrival.
    pub(crate) fn messages(&self) -> Vec<Vec<u8>> {
        lines_of(&self.directory.path().join("messages"))
    }

    /// Returns the PRI, the time of receipt, the TIMESTAMP, the HOSTNAME and the APP-NAME of each
    /// message, separated by spaces.
    pub(crate) fn headers(&self) -> Vec<Vec<u8>> {
        lines_of(&self.directory.path().join("headers"))
    }

    pub(crate) fn wait_for_count(&self, count: usize, limit: Duration) {
        wait_until(&format!("{count} messages at syslog-ng"), limit, || {
            self.messages().len() >= count
        });
    }
}

/// nginx in front of a consumer, plain or with TLS.
pub(crate) struct Nginx {
    pub(crate) process: Process,
    _directory: TempDir,
}

impl Nginx {
    pub(crate) fn start(
        security: Security,
        certificates: &Certificates,
        consumer: SocketAddr,
    ) -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let process = start_on_free_port(|port| {
            let config = Self::config(port, security, certificates, consumer, directory.path());
            let config = write(&directory, "nginx.conf", &config);
            let arguments = ["-e", "stderr", "-p", text(directory.path()), "-c", text(&config)];
            Process::new(program("nginx"), &arguments, port, directory.path())
        });
        Self { process, _directory: directory }
    }

    fn config(
        port: u16,
        security: Security,
        files: &Certificates,
        consumer: SocketAddr,
        directory: &Path,
    ) -> String {
        let at = text(directory);
        let (ca, certificate, key) =
            (text(&files.ca), text(&files.server.certificate), text(&files.server.key));
        let tls = match security {
            Security::Plain => String::new(),
            Security::Tls | Security::MutualTls => format!(
                "ssl_certificate {certificate};\n    ssl_certificate_key {key};\n    \
                 ssl_client_certificate {ca};\n    ssl_verify_client {};",
                if security == Security::Tls { "off" } else { "on" }
            ),
        };
        let ssl = if security == Security::Plain { "" } else { " ssl" };
        // nginx runs as one process, so that a signal to its id stops it. `user` is set only for
        // root, where nginx would otherwise give its temporary directories to another user.
        let user = if is_root() { "user root;" } else { "" };
        format!(
            "daemon off;
master_process off;
{user}
pid {at}/nginx.pid;
error_log stderr info;
events {{ worker_connections 512; }}
http {{
  access_log off;
  client_max_body_size 0;
  client_body_temp_path {at}/body;
  proxy_temp_path {at}/proxy;
  fastcgi_temp_path {at}/fastcgi;
  uwsgi_temp_path {at}/uwsgi;
  scgi_temp_path {at}/scgi;
  server {{
    listen 127.0.0.1:{port}{ssl};
    server_name localhost;
    {tls}
    location / {{
      proxy_pass http://{consumer};
      proxy_http_version 1.1;
      proxy_set_header Connection \"\";
    }}
  }}
}}
"
        )
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.process.address()
    }
}

#[allow(unsafe_code, reason = "geteuid(2) has no safe form without another crate")]
fn is_root() -> bool {
    // SAFETY: geteuid takes no arguments and always succeeds.
    unsafe { libc::geteuid() == 0 }
}

/// Returns the forwarder's haproxy.cfg as on the provider's page, with these lines added to the
/// frontend and the backend.
pub(crate) fn forwarder(frontend: &str, backend: &str) -> String {
    format!(
        "global
  log stdout format raw local0 info
defaults
  mode http
  timeout client 10s
  timeout connect 5s
  timeout server 10s
  timeout http-request 10s
  log global
frontend myfrontend
{frontend}
  default_backend remotelogstash
# Use remote log consumer IP and port here
backend remotelogstash
{backend}
"
    )
}

/// HAProxy in front of a consumer, configured like the forwarder that the relay replaces.
pub(crate) struct Haproxy {
    pub(crate) process: Process,
    // This directory holds the config and the log.
    directory: TempDir,
}

impl Haproxy {
    pub(crate) fn start(consumer: SocketAddr) -> Self {
        let backend = format!("  server s1 {consumer}");
        Self::with(|port| forwarder(&format!("  bind 127.0.0.1:{port}"), &backend))
    }

    /// Starts HAProxy with the config that `config` returns for a free port.
    pub(crate) fn with(config: impl Fn(u16) -> String) -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let process = start_on_free_port(|port| {
            let config = write(&directory, "haproxy.cfg", &config(port));
            // -db runs HAProxy as one process in the foreground.
            let arguments = ["-db", "-f", text(&config)];
            Process::new(program("haproxy"), &arguments, port, directory.path())
        });
        Self { process, directory }
    }

    pub(crate) fn config_file(&self) -> PathBuf {
        self.directory.path().join("haproxy.cfg")
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.process.address()
    }
}

/// tinyproxy, an HTTP proxy that supports CONNECT.
pub(crate) struct Tinyproxy {
    pub(crate) process: Process,
    // This directory holds the config and the log.
    _directory: TempDir,
}

impl Tinyproxy {
    /// Starts tinyproxy. If `credentials` are given, tinyproxy requires this user and password.
    pub(crate) fn start(credentials: Option<(&str, &str)>) -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let wanted = credentials.map(|(user, password)| format!("BasicAuth {user} {password}\n"));
        let wanted = wanted.unwrap_or_default();
        let process = start_on_free_port(|port| {
            let config = format!(
                "Port {port}\nListen 127.0.0.1\nTimeout 60\nMaxClients 50\nLogLevel Connect\n{wanted}"
            );
            let config = write(&directory, "tinyproxy.conf", &config);
            // -d keeps tinyproxy in the foreground, with its log on standard output.
            let arguments = ["-d", "-c", text(&config)];
            Process::new(program("tinyproxy"), &arguments, port, directory.path())
        });
        Self { process, _directory: directory }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.process.address()
    }

    /// Returns how many CONNECT requests tinyproxy has logged.
    pub(crate) fn connects(&self) -> usize {
        self.process.log().matches("): CONNECT ").count()
    }
}

/// Runs `promtool check metrics` on these metrics. The error contains promtool's complaints.
pub(crate) fn promtool_check(metrics: &str) -> Result<(), String> {
    let output =
        fed(Command::new(program("promtool")).args(["check", "metrics"]), metrics.as_bytes());
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stdout, output.stderr].concat();
    Err(format!("{}: {}", output.status, String::from_utf8_lossy(&said)))
}

/// Runs curl quietly, for at most [`PATIENCE`], with a body on its standard input (`@-`). curl can
/// end before it has read the whole body.
pub(crate) fn curl(arguments: &[&str], body: &[u8]) -> Output {
    let limit = PATIENCE.as_secs().to_string();
    let mut curl = Command::new(program("curl"));
    fed(curl.args(["--silent", "--show-error", "--max-time", &limit]).args(arguments), body)
}
