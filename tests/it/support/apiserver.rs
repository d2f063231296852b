//! A stand-in for kube-apiserver. It serves metrics like kube-apiserver's, and lists the endpoints
//! of the Service `kubernetes`.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::certificates::Certificates;
use super::http_sink::{Answer, HttpSink, Request};
use super::server::Options;
use super::text;

/// The counters of one instance.
#[derive(Debug, Clone)]
pub(crate) struct Counted {
    /// The start time of the process, in seconds since 1970.
    pub(crate) started: f64,
    /// The number of generated events. `None` omits the metric.
    pub(crate) generated: Option<u64>,
    /// The number of events that were given up, by plugin.
    pub(crate) lost: Vec<(String, u64)>,
    /// The number of POSTs to the webhook, by status.
    pub(crate) posts: Vec<(String, u64)>,
    /// If `true`, the instance responds with 503 instead of its metrics.
    pub(crate) is_broken: bool,
}

/// Returns the current time in seconds since 1970.
pub(crate) fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs_f64()
}

impl Counted {
    /// Returns the counters of an instance that has just started.
    pub(crate) fn starting() -> Self {
        Self {
            started: now(),
            generated: Some(0),
            lost: Vec::new(),
            posts: Vec::new(),
            is_broken: false,
        }
    }

    /// Returns the text of `/metrics`, with other metrics around those that matter.
    pub(crate) fn metrics(&self) -> String {
        let mut text = "# HELP aggregator_discovery_aggregation_count_total [ALPHA] Counter\n\
                        # TYPE aggregator_discovery_aggregation_count_total counter\n\
                        aggregator_discovery_aggregation_count_total 4\n"
            .to_owned();
        for (plugin, lost) in &self.lost {
            text.push_str(&format!("apiserver_audit_error_total{{plugin=\"{plugin}\"}} {lost}\n"));
        }
        if let Some(generated) = self.generated {
            text.push_str(&format!(
                "# HELP apiserver_audit_event_total [ALPHA] Counter of audit events generated and \
                 sent to the audit backend.\n# TYPE apiserver_audit_event_total counter\n\
                 apiserver_audit_event_total {generated}\n\
                 apiserver_audit_level_total{{level=\"Metadata\"}} {generated}\n"
            ));
        }
        text.push_str("apiserver_audit_requests_rejected_total 0\n");
        for bucket in ["0.005", "0.1", "+Inf"] {
            text.push_str(&format!(
                "apiserver_request_duration_seconds_bucket{{resource=\"pods\",verb=\"GET\",\
                 le=\"{bucket}\"}} 1.234567e+06\n"
            ));
        }
        text.push_str(&format!("process_start_time_seconds {:e}\n", self.started));
        for (code, count) in &self.posts {
            text.push_str(&format!(
                "rest_client_requests_total{{code=\"{code}\",host=\"relay.example:3000\",\
                 method=\"POST\"}} {count}\n"
            ));
        }
        text
    }
}

/// One or more instances behind one address.
pub(crate) struct Apiserver {
    sink: HttpSink,
    instances: Arc<Mutex<Vec<Counted>>>,
    endpoints: Arc<Mutex<Vec<SocketAddr>>>,
}

impl Apiserver {
    /// Starts the instances. Connections go to them in turn. If `token` is given, requests must
    /// present it.
    pub(crate) fn start(instances: Vec<Counted>, options: Options, token: Option<&str>) -> Self {
        let instances = Arc::new(Mutex::new(instances));
        let endpoints = Arc::new(Mutex::new(Vec::new()));
        let (counted, listed) = (Arc::clone(&instances), Arc::clone(&endpoints));
        let authorization = token.map(|token| format!("Bearer {token}"));
        let sink = HttpSink::with(options, move |request| {
            if authorization
                .as_deref()
                .is_some_and(|it| request.header("authorization") != Some(it))
            {
                let status = "{\"kind\":\"Status\",\"message\":\"Unauthorized\",\"code\":401}";
                return Answer::status(401).body(status);
            }
            answer(request, &mut counted.lock().unwrap(), &listed.lock().unwrap())
        });
        Self { sink, instances, endpoints }
    }

    /// Starts one instance without TLS.
    pub(crate) fn single() -> Self {
        Self::start(vec![Counted::starting()], Options::default(), None)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.sink.address()
    }

    /// Changes the counters of an instance.
    pub(crate) fn count(&self, instance: usize, change: impl FnOnce(&mut Counted)) {
        change(&mut self.instances.lock().unwrap()[instance]);
    }

    /// Sets the endpoints of the Service `kubernetes`.
    pub(crate) fn list(&self, endpoints: &[SocketAddr]) {
        *self.endpoints.lock().unwrap() = endpoints.to_vec();
    }

    /// Returns the paths of all requests so far.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.sink.requests().into_iter().map(|request| request.target).collect()
    }
}

fn answer(request: &Request, instances: &mut [Counted], endpoints: &[SocketAddr]) -> Answer {
    let instance = request.connection % instances.len();
    let instance = &mut instances[instance];
    match request.target.as_str() {
        "/metrics" if instance.is_broken => Answer::status(503).body("no metrics today"),
        "/metrics" => Answer::status(200).body(instance.metrics()),
        "/api/v1/namespaces/default/endpoints/kubernetes" if !endpoints.is_empty() => {
            let subset = |address: &SocketAddr| {
                format!(
                    "{{\"addresses\":[{{\"ip\":\"{}\"}}],\
                     \"ports\":[{{\"name\":\"https\",\"port\":{},\"protocol\":\"TCP\"}}]}}",
                    address.ip(),
                    address.port()
                )
            };
            let subsets: Vec<String> = endpoints.iter().map(subset).collect();
            let body = format!("{{\"kind\":\"Endpoints\",\"subsets\":[{}]}}", subsets.join(","));
            Answer::status(200).body(body)
        }
        path if path.contains("/configmaps/") => {
            // Here, only such a request generates an audit event.
            instance.generated = instance.generated.map(|generated| generated + 1);
            Answer::status(404).body("{\"kind\":\"Status\",\"message\":\"not found\"}")
        }
        _ => Answer::status(404).body("{\"kind\":\"Status\",\"message\":\"not found\"}"),
    }
}

/// Writes a kubeconfig for this server. It contains the CA, and names a file with the token
/// `s3cret`. Returns its path.
pub(crate) fn kubeconfig(
    directory: &Path,
    server: SocketAddr,
    certificates: &Certificates,
) -> String {
    let ca = BASE64_STANDARD.encode(std::fs::read(&certificates.ca).unwrap());
    std::fs::write(directory.join("token"), "s3cret\n").unwrap();
    let config = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: x\n\
         contexts:\n- name: x\n  context:\n    cluster: c\n    user: u\n\
         clusters:\n- name: c\n  cluster:\n    server: https://{server}\n    \
         certificate-authority-data: {ca}\nusers:\n- name: u\n  user:\n    tokenFile: token\n"
    );
    let file = directory.join("kubeconfig");
    std::fs::write(&file, config).unwrap();
    text(&file).to_owned()
}
