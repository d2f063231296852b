//! The proxies that are compared: how each of them is named, configured and started.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use tempfile::TempDir;

use crate::process::Process;
use crate::relay::Relay;
use crate::sink::{TOPIC, Wire};
use crate::tls::Tls;
use crate::{Arguments, floor, policy};

/// The relay's `queue.max_bytes`, in MiB. The report shows how many replay windows fit into it.
pub(crate) const QUEUE_MIB: u32 = 4096;

/// The number of rules in the policy of [`Mode::Policy`].
const RULES: usize = 20;

/// How long an attempt of [`start_peer`] waits until the program listens.
const PATIENCE: Duration = Duration::from_secs(60);

/// The relay's protocols: from the load, and to the consumer.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Route {
    /// HTTP to HTTP, event_list
    Http,
    /// HTTP to JSON lines over TCP
    Tcp,
    /// HTTP to syslog over TCP, octet counting
    Syslog,
    /// HTTPS to JSON lines over TLS
    Tls,
    /// HTTP to lumberjack
    Lumberjack,
    /// HTTP to RELP
    Relp,
    /// HTTP to Kafka
    Kafka,
    /// HTTP to Elasticsearch's bulk API, in the default shape, ECS
    Elasticsearch,
    /// HTTP to Elasticsearch's bulk API, in the shape event
    ElasticsearchEvent,
    /// HTTP to Splunk, with indexer acknowledgement
    Splunk,
    /// HTTP to IBM Cloud Logs
    IbmCloudLogs,
    /// HTTP to objects of 4 MiB in S3, compressed with zstd
    S3,
    /// HTTP to Loki, with gzip
    Loki,
    /// HTTP to OTLP, with gzip
    Otlp,
    /// HTTP to HTTP with gzip bodies
    Gzip,
    /// HTTP to HTTP with zstd bodies
    Zstd,
    /// HTTP with gzip bodies to HTTP
    GzipIn,
}

impl Route {
    /// Returns `false` for the first four routes. All others are measured only at saturation, with
    /// the queue in memory, to compare their costs.
    pub(crate) fn is_further(self) -> bool {
        match self {
            Self::Http | Self::Tcp | Self::Syslog | Self::Tls => false,
            Self::Lumberjack
            | Self::Relp
            | Self::Kafka
            | Self::Elasticsearch
            | Self::ElasticsearchEvent
            | Self::Splunk
            | Self::IbmCloudLogs
            | Self::S3
            | Self::Loki
            | Self::Otlp
            | Self::Gzip
            | Self::Zstd
            | Self::GzipIn => true,
        }
    }
}

/// When the relay acknowledges a batch, and what else it does.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// When the batch is in the queue in memory (`queued`)
    Memory,
    /// Like memory, but the volume is not counted (`volume.enabled = false`)
    NoVolume,
    /// Like memory, but the output has a policy of 20 rules, of which only the last one matches
    Policy,
    /// Like memory, but the output redacts with the presets
    Redact,
    /// When the batch is synced to `queue.directory` (`synced`)
    Disk,
    /// Like disk, but with evidence
    Evidence,
    /// When the consumer has acknowledged the batch (`delivered`); the queue is in memory
    Delivered,
}

impl Mode {
    /// Returns `true` if the output has a filter. These modes are measured only from HTTP to HTTP,
    /// to compare their cost with that of [`Self::Memory`].
    pub(crate) fn filters(self) -> bool {
        matches!(self, Self::Policy | Self::Redact)
    }
}

/// How the load sends its requests.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Plain,
    /// Bodies compressed with gzip.
    Gzip,
    /// Plain bodies over TLS.
    Tls,
}

/// A proxy that reads the whole body of a request before it passes the request on, as a relay must.
/// Only such a proxy can send a request again.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Buffering {
    /// `proxy_request_buffering on`, and enough memory for a whole body.
    Nginx,
    /// `option http-buffer-request`, and buffers of 1 MiB.
    Haproxy,
}

/// The program between the load and the sink.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Through {
    Haproxy(Form),
    Buffering(Buffering),
    /// The floor in memory: see [`floor`].
    Loop,
    /// The floor on disk: see [`floor`]. Its figures are the sum of HAProxy's and a writer's.
    Floor,
    Relay(Route, Mode),
}

impl Through {
    pub(crate) fn name(self) -> String {
        let (route, mode) = match self {
            Self::Haproxy(Form::Plain) => return "HAProxy http → http".to_owned(),
            Self::Haproxy(Form::Gzip) => return "HAProxy http gzip → http gzip".to_owned(),
            Self::Haproxy(Form::Tls) => return "HAProxy https → https".to_owned(),
            Self::Buffering(Buffering::Nginx) => return "nginx that buffers requests".to_owned(),
            Self::Buffering(Buffering::Haproxy) => {
                return "HAProxy that buffers requests".to_owned();
            }
            Self::Loop => return "floor: a loop of read and write".to_owned(),
            Self::Floor => return "floor: HAProxy + pwritev + fdatasync".to_owned(),
            Self::Relay(route, mode) => (route, mode),
        };
        let route = match route {
            Route::Http => "http → http",
            Route::Tcp => "http → tcp lines",
            Route::Syslog => "http → syslog",
            Route::Tls => "https → tls lines",
            Route::Lumberjack => "http → lumberjack",
            Route::Relp => "http → relp",
            Route::Kafka => "http → kafka",
            Route::Elasticsearch => "http → elasticsearch",
            Route::ElasticsearchEvent => "http → elasticsearch, shape event",
            Route::Splunk => "http → splunk_hec",
            Route::IbmCloudLogs => "http → ibm_cloud_logs",
            Route::S3 => "http → s3 zstd",
            Route::Loki => "http → loki gzip",
            Route::Otlp => "http → otlp gzip",
            Route::Gzip => "http → http gzip",
            Route::Zstd => "http → http zstd",
            Route::GzipIn => "http gzip → http",
        };
        let mode = match mode {
            Mode::Memory => "memory",
            Mode::NoVolume => "memory, no volume",
            Mode::Policy => "memory, policy of 20 rules",
            Mode::Redact => "memory, redact presets",
            Mode::Disk => "disk",
            Mode::Evidence => "disk, evidence",
            Mode::Delivered => "delivered",
        };
        format!("{route}, {mode}")
    }

    pub(crate) const fn form(self) -> Form {
        match self {
            Self::Haproxy(form) => form,
            Self::Buffering(_) | Self::Loop | Self::Floor => Form::Plain,
            Self::Relay(Route::Tls, _) => Form::Tls,
            Self::Relay(Route::GzipIn, _) => Form::Gzip,
            Self::Relay(_, _) => Form::Plain,
        }
    }

    pub(crate) fn tls(self) -> bool {
        self.form() == Form::Tls
    }

    /// Returns the HAProxy that this proxy is compared with. It gets the same bytes from the load,
    /// and passes them on unchanged.
    pub(crate) const fn haproxy(self) -> Self {
        Self::Haproxy(self.form())
    }

    pub(crate) fn wire(self) -> Wire {
        let Self::Relay(route, _) = self else { return Wire::Http };
        match route {
            Route::Http | Route::Gzip | Route::GzipIn => Wire::Http,
            Route::Zstd => Wire::Zstd,
            Route::Tcp | Route::Syslog | Route::Tls => Wire::Stream,
            Route::Lumberjack => Wire::Lumberjack,
            Route::Relp => Wire::Relp,
            Route::Kafka => Wire::Kafka,
            Route::Elasticsearch | Route::ElasticsearchEvent => Wire::Elasticsearch,
            Route::Splunk | Route::IbmCloudLogs | Route::S3 | Route::Loki | Route::Otlp => {
                Wire::Api
            }
        }
    }

    /// Returns `true` for a relay whose queue is in memory, so that its `queue_bytes` are memory.
    pub(crate) fn counts_memory(self) -> bool {
        matches!(self, Self::Relay(..)) && !self.on_disk()
    }

    pub(crate) fn on_disk(self) -> bool {
        matches!(self, Self::Relay(_, Mode::Disk | Mode::Evidence))
    }

    /// Returns `true` if a filter makes events longer or shorter.
    pub(crate) fn changes_bytes(self) -> bool {
        matches!(self, Self::Relay(_, Mode::Redact))
    }

    /// Returns the same relay without its filter, or `None` if it has no filter.
    pub(crate) fn without_filter(self) -> Option<Self> {
        match self {
            Self::Relay(route, mode) => mode.filters().then_some(Self::Relay(route, Mode::Memory)),
            Self::Haproxy(_) | Self::Buffering(_) | Self::Loop | Self::Floor => None,
        }
    }

    /// Returns `true` if every answer takes at least the replay window.
    pub(crate) fn answers_late(self) -> bool {
        self.wire() == Wire::Stream && matches!(self, Self::Relay(_, Mode::Delivered))
    }
}

/// A running proxy.
pub(crate) enum Proxy {
    Peer { process: Process, address: SocketAddr, _directory: TempDir },
    Relay { relay: Relay, delivered: bool, _queue: Option<TempDir>, _secret: TempDir },
}

impl Proxy {
    pub(crate) fn start(
        through: Through,
        consumer: SocketAddr,
        tls: &Tls,
        arguments: &Arguments,
    ) -> Self {
        match through {
            Through::Haproxy(_) => {
                let tls = through.tls().then_some(tls);
                start_haproxy(&arguments.haproxy, consumer, tls, Buffers::AreSmall)
            }
            Through::Buffering(Buffering::Haproxy) => {
                start_haproxy(&arguments.haproxy, consumer, None, Buffers::HoldRequests)
            }
            Through::Loop => {
                start_peer("none", |address, _| floor::loop_between(address, consumer))
            }
            Through::Floor => unreachable!("its writer is no proxy"),
            Through::Buffering(Buffering::Nginx) => start_nginx(consumer),
            Through::Relay(route, mode) => start_relay(route, mode, consumer, tls, arguments),
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        match self {
            Self::Peer { address, .. } => *address,
            Self::Relay { relay, .. } => relay.address,
        }
    }

    pub(crate) fn process(&self) -> &Process {
        match self {
            Self::Peer { process, .. } => process,
            Self::Relay { relay, .. } => &relay.process,
        }
    }

    /// Waits until the relay's consumer has acknowledged `events` events and the relay holds none.
    /// Another program holds no events, so this returns at once.
    pub(crate) fn wait_until_empty(&self, events: u64) {
        if let Self::Relay { relay, .. } = self {
            relay.wait_until_empty(events);
        }
    }

    /// Returns how many events the relay's consumer has acknowledged, or 0 for another program.
    pub(crate) fn delivered(&self) -> u64 {
        if let Self::Relay { relay, .. } = self { relay.delivered() } else { 0 }
    }

    /// Returns the relay's resident memory without its queue and the bodies in flight, in MiB.
    /// Another program does not report these, so its value is 0. For a queue on disk, the value
    /// means nothing.
    pub(crate) fn rss_beyond(&self) -> f64 {
        let Self::Relay { relay, delivered, .. } = self else { return 0.0 };
        let metrics = relay.metrics();
        let rss = relay.process.memory("VmRSS:");
        let (queue, in_flight) = (metrics.series("queue_bytes"), metrics.series("in_flight_bytes"));
        // With `delivered`, an event in the queue counts in both numbers.
        let held = if *delivered { queue.max(in_flight) } else { queue + in_flight };
        rss - held as f64 / f64::from(1 << 20)
    }
}

fn start_relay(
    route: Route,
    mode: Mode,
    consumer: SocketAddr,
    tls: &Tls,
    arguments: &Arguments,
) -> Proxy {
    let directory = matches!(mode, Mode::Disk | Mode::Evidence).then(|| {
        let below = &arguments.directory;
        std::fs::create_dir_all(below).expect("a directory that can be made");
        TempDir::new_in(below).expect("a writable directory")
    });
    let mut queue = format!("queue.max_bytes = '{QUEUE_MIB}MiB'");
    match (mode, &directory) {
        (Mode::Delivered, _) => queue += "\nqueue.acknowledge = 'delivered'",
        (Mode::NoVolume, _) => queue += "\nvolume.enabled = false",
        (_, Some(directory)) => {
            queue += &format!("\nqueue.directory = '{}'", directory.path().display());
        }
        (_, None) => {}
    }
    let secret = TempDir::new().expect("a temporary directory");
    if mode == Mode::Evidence {
        queue += &evidence(&arguments.relay, secret.path());
    }
    let stream =
        format!("addresses = ['{consumer}']\nreplay_window = '{}ms'", arguments.replay_window);
    let http = format!("type = 'http'\nurls = ['http://{consumer}/']")
        + &filter(mode, &secret.path().join("policy.yaml"));
    let file = secret.path().join("secret");
    std::fs::write(&file, "secret\n").expect("a writable directory");
    let file = file.display();
    let api = format!("urls = ['http://{consumer}']");
    let output = match route {
        Route::Http | Route::GzipIn => http,
        Route::Gzip => http + "\ncompression = 'gzip'",
        Route::Zstd => http + "\ncompression = 'zstd'",
        Route::Lumberjack => format!("type = 'lumberjack'\naddresses = ['{consumer}']"),
        Route::Relp => format!("type = 'relp'\naddresses = ['{consumer}']"),
        Route::Kafka => kafka_output(consumer),
        Route::Elasticsearch => format!("type = 'elasticsearch'\n{api}\nindex = 'audit'"),
        Route::ElasticsearchEvent => format!(
            "type = 'elasticsearch'\n{api}\nindex = 'audit'\n\
             filter = {{ shape = 'event', bodies = 'keep' }}"
        ),
        Route::Splunk => {
            format!("type = 'splunk_hec'\n{api}\ntoken_file = '{file}'\nack_interval = '100ms'")
        }
        Route::IbmCloudLogs => format!(
            "type = 'ibm_cloud_logs'\n{api}\napi_key_file = '{file}'\n\
             iam_url = 'http://{consumer}'"
        ),
        Route::S3 => format!(
            "type = 's3'\n{api}\nbucket = 'audit'\nregion = 'eu'\nobject_bytes = '4MiB'\n\
             object_age = '100ms'\naccess_key_id_file = '{file}'\n\
             secret_access_key_file = '{file}'"
        ),
        Route::Loki => format!("type = 'loki'\n{api}"),
        Route::Otlp => format!("type = 'otlp'\n{api}"),
        Route::Tcp => format!("type = 'tcp'\n{stream}"),
        Route::Syslog => format!("type = 'syslog'\n{stream}"),
        Route::Tls => format!("type = 'tcp'\n{stream}\ntls.ca = '{}'", tls.chain().display()),
    };
    let listener = if route == Route::Tls {
        let (chain, key) = (tls.chain(), tls.key());
        format!(
            "tls = {{ certificate = '{}', private_key = '{}' }}",
            chain.display(),
            key.display()
        )
    } else {
        String::new()
    };
    let relay = Relay::start_with(&arguments.relay, &queue, &listener, &output);
    Proxy::Relay { relay, delivered: mode == Mode::Delivered, _queue: directory, _secret: secret }
}

/// Returns the config keys for the filter of this mode. A policy is written into the file `policy`.
fn filter(mode: Mode, policy: &Path) -> String {
    match mode {
        Mode::Policy => {
            std::fs::write(policy, policy::of(RULES)).expect("a writable directory");
            format!("\nfilter.policy = '{}'", policy.display())
        }
        Mode::Redact => "\nfilter.redact = []".to_owned(),
        Mode::Memory | Mode::NoVolume | Mode::Disk | Mode::Evidence | Mode::Delivered => {
            String::new()
        }
    }
}

/// Creates a signing key in this directory, and returns the config that uses it for evidence.
fn evidence(relay: &Path, directory: &Path) -> String {
    let key = directory.join("key");
    let made = Command::new(relay)
        .args(["evidence", "keygen", "--origin", "bench", "--out"])
        .arg(&key)
        .output();
    assert!(made.is_ok_and(|made| made.status.success()), "the relay makes a key");
    format!("\nevidence = {{ key_file = '{}', origin = 'bench' }}", key.display())
}

fn kafka_output(broker: SocketAddr) -> String {
    format!("type = 'kafka'\nbrokers = ['{broker}']\ntopic = '{TOPIC}'")
}

/// Returns the program that was built without the feature `kafka`: this bench or the relay. Returns
/// `None` if both have the feature.
pub(crate) fn without_kafka(relay: &Path) -> Option<String> {
    if !cfg!(feature = "kafka") {
        return Some("this bench".to_owned());
    }
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    let output = kafka_output((Ipv4Addr::LOCALHOST, 9092).into());
    let config =
        format!("[[listener]]\naddress = '127.0.0.1:0'\n[[output]]\nname = 'sink'\n{output}\n");
    std::fs::write(&file, config).expect("a writable file");
    let mut command = Command::new(relay);
    command.arg("check").arg("--config").arg(file.path());
    let accepted = command.output().expect("a relay that runs").status.success();
    (!accepted).then(|| relay.display().to_string())
}

/// How much of a request HAProxy's buffers hold.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Buffers {
    /// A part of a request. This is HAProxy's default.
    AreSmall,
    /// A whole request.
    HoldRequests,
}

/// Starts HAProxy with the config of the forwarder that the relay replaces. It runs on every core,
/// which is its default. It speaks TLS on both sides if `tls` is given. Its log goes to /dev/null.
fn start_haproxy(
    program: &Path,
    consumer: SocketAddr,
    tls: Option<&Tls>,
    buffers: Buffers,
) -> Proxy {
    let (bind, server) = match tls {
        None => (String::new(), ""),
        Some(tls) => (format!("ssl crt {}", tls.both().display()), "ssl verify none"),
    };
    let (size, option) = match buffers {
        Buffers::AreSmall => ("", ""),
        Buffers::HoldRequests => ("tune.bufsize 1048576", "option http-buffer-request"),
    };
    start_peer("haproxy.cfg", |address, file| {
        let config = format!(
            "global
  log stdout format raw local0 info
  {size}
defaults
  mode http
  {option}
  timeout client 10s
  timeout connect 5s
  timeout server 10s
  timeout http-request 10s
  log global
frontend audit
  bind {address} {bind}
  default_backend consumer
backend consumer
  server consumer {consumer} {server}
"
        );
        std::fs::write(file, config).expect("a writable directory");
        let mut command = Command::new(program);
        // With -db, HAProxy is one process in the foreground, without children.
        command.args(["-db", "-f"]).arg(file);
        command
    })
}

/// Starts nginx as one process with one thread. Its buffers hold a whole body in memory, so it
/// writes no body into a file.
fn start_nginx(consumer: SocketAddr) -> Proxy {
    start_peer("nginx.conf", |address, file| {
        let at = file.parent().expect("it is in a directory").display();
        let paths: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .iter()
            .map(|name| format!("{name}_temp_path {at}/{name};\n"))
            .collect();
        let config = format!(
            "daemon off;
master_process off;
pid {at}/nginx.pid;
error_log stderr crit;
events {{ worker_connections 512; }}
http {{
  access_log off;
  {paths}
  client_max_body_size 0;
  client_body_buffer_size 1m;
  keepalive_requests 1000000000;
  upstream consumer {{ server {consumer}; keepalive 64; keepalive_requests 1000000000; }}
  server {{
    listen {address};
    location / {{
      proxy_pass http://consumer;
      proxy_request_buffering on;
      proxy_http_version 1.1;
      proxy_set_header Connection \"\";
    }}
  }}
}}
"
        );
        std::fs::write(file, config).expect("a writable directory");
        let mut command = Command::new(program("nginx"));
        command.args(["-e", "stderr", "-c"]).arg(file);
        command
    })
}

/// Starts a proxy on a free port. `prepare` gets the address and the path of a config file. It
/// writes the file if the program needs one, and returns the command.
fn start_peer(name: &str, prepare: impl Fn(SocketAddr, &Path) -> Command) -> Proxy {
    for _ in 0..5 {
        let probe = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = probe.local_addr().expect("bound");
        drop(probe);
        let directory = TempDir::new().expect("a temporary directory");
        let mut command = prepare(address, &directory.path().join(name));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut process = Process::start(&mut command);
        let end = Instant::now() + PATIENCE;
        // The proxy ends at once if another program has taken the port.
        while process.child().try_wait().expect("our child").is_none() && Instant::now() < end {
            if TcpStream::connect(address).is_ok() {
                // Perhaps the other program has accepted this connection.
                std::thread::sleep(Duration::from_millis(20));
                if process.child().try_wait().expect("our child").is_some() {
                    break;
                }
                return Proxy::Peer { process, address, _directory: directory };
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    panic!("the proxy with {name} does not start");
}

/// Returns the path of an installed program. Debian installs these programs in /usr/sbin, which
/// only root has in PATH.
pub(crate) fn program(name: &str) -> PathBuf {
    let debian = Path::new("/usr/sbin").join(name);
    if debian.exists() { debian } else { name.into() }
}
