//! `process.restrict`: what a relay can no longer do after its start, and what it still does.
//!
//! Most other tests also run in the sandbox (see [`BASE`]), such as those of retries, failovers,
//! rotations of dead letters and recycling of segments. The unit tests of `process::restrict` try
//! what a restricted thread cannot do.

use std::os::unix::fs::symlink;
use std::process::Command;

use crate::support::elasticsearch::Elasticsearch;
use crate::support::ibm::Ibm;
#[cfg(feature = "kafka")]
use crate::support::kafka::Cluster;
use crate::support::letters::events_in_letters;
use crate::support::loki::Loki;
use crate::support::lumberjack_sink::LumberjackSink;
use crate::support::otlp::Otlp;
use crate::support::prelude::*;
use crate::support::relp_sink::RelpSink;
use crate::support::s3::S3;
use crate::support::splunk::Splunk;
use crate::support::{elasticsearch, ibm, loki, otlp, s3, splunk};

const MIB: usize = 1024 * 1024;

/// Returns [`BASE`] with this value of the setting.
fn base(restrict: &str) -> String {
    BASE.replace("best_effort", restrict)
}

/// Returns what `/status` says about the restriction.
fn shown(relay: &Relay) -> Value {
    http::get(relay.admin(), "/status").unwrap().json()["process"]["restrict"].clone()
}

/// Returns the values of this line in `/proc/PID/task/*/status` of the relay.
fn of_threads(relay: &Relay, key: &str) -> BTreeSet<String> {
    let threads = std::fs::read_dir(format!("/proc/{}/task", relay.pid())).unwrap();
    let status =
        threads.map(|thread| std::fs::read_to_string(thread.unwrap().path().join("status")));
    // A thread may have ended since it was listed.
    let values = status.filter_map(|status| {
        let status = status.ok()?;
        let value = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        value.map(|value| value.trim().to_owned())
    });
    values.collect()
}

/// Consumers of every type of output.
struct Consumers {
    files: TempDir,
    ibm: Ibm,
    /// Values that must live as long as the consumers.
    _others: [Box<dyn std::any::Any>; 3],
    /// The tables of the outputs, by their names.
    outputs: Vec<(&'static str, String)>,
}

impl Consumers {
    fn start() -> Self {
        let certificates = Certificates::new();
        let files = TempDir::new().unwrap();
        let tls = || Options {
            tls: Some(certificates.server_config(&certificates.server, true)),
            ..Options::default()
        };
        let with_tls = tls_key(Security::MutualTls, &certificates);
        let https = HttpSink::with(tls(), |_| Answer::status(200));
        let tcp = TcpSink::with(Framing::Lines, tls());
        let syslog = TcpSink::with(Framing::OctetCounting, tls());
        let (lumberjack, relp) = (LumberjackSink::start(), RelpSink::start());
        let script = ibm::Script::default();
        ibm::write_secret(&files.path().join("ibm"), &script.credential);
        let ibm = Ibm::start(script);
        let token = files.path().join("splunk");
        std::fs::write(&token, splunk::TOKEN).unwrap();
        let splunk = Splunk::start(splunk::Script::default());
        let store = Elasticsearch::start(MIB, || elasticsearch::Mood::Judges, |_| 201);
        let loki = Loki::start(MIB, || loki::Mood::Stores, |_| true);
        let otlp = Otlp::start(MIB, || otlp::Mood::Stores(200), |_| true);
        let (s3, keys_of_s3) = (S3::start(|| s3::Mood::Stores), s3::Keys::new());
        // The name is looked up in the hosts file.
        let https_keys = format!(
            "type = \"http\"\nurls = [\"https://localhost:{}/\"]\n{with_tls}",
            https.address().port()
        );
        let stream = |kind: &str, address: SocketAddr, more: &str| {
            format!("type = \"{kind}\"\naddresses = [\"{address}\"]\n{more}")
        };
        let small = "batch.max_bytes = \"1MiB\"\n";
        let key_of_ibm = format!("api_key_file = {:?}\n", files.path().join("ibm"));
        let object = "object_age = \"200ms\"\n";
        let outputs = vec![
            ("http", https_keys),
            ("tcp", stream("tcp", tcp.address(), &with_tls)),
            ("syslog", stream("syslog", syslog.address(), &with_tls)),
            ("lumberjack", stream("lumberjack", lumberjack.address(), "")),
            ("relp", stream("relp", relp.address(), "")),
            ("splunk", splunk::keys(splunk.address(), text(&token))),
            ("elasticsearch", elasticsearch::keys(store.address()) + small),
            ("loki", loki::keys(loki.address()) + small),
            ("otlp", otlp::keys(otlp.address()) + small),
            ("s3", keys_of_s3.keys(s3.address()) + object),
            ("ibm", ibm::keys(ibm.logs.address(), ibm.iam.address()) + &key_of_ibm),
            ("stdout", "type = \"stdout\"\n".to_owned()),
        ];
        let others: [Box<dyn std::any::Any>; 3] = [
            Box::new((https, tcp, syslog, lumberjack, relp)),
            Box::new((splunk, store, loki, otlp, s3)),
            Box::new((certificates, keys_of_s3)),
        ];
        Self { files, ibm, _others: others, outputs }
    }
}

/// Method: one relay has an output of each type, TLS with client certificates, a queue on disk,
/// evidence, and a consumer that refuses one event.
#[test]
fn a_restricted_relay_delivers_by_every_type_of_output() {
    let consumers = Consumers::start();
    let directory = TempDir::new().unwrap();
    let (_witness, evidence) = Witness::of_a_log(directory.path());
    let is_refused = |event: &Vec<u8>| memchr::memmem::find(event, b"generated-13\",").is_some();
    let refusing = refusing(400, is_refused);
    #[cfg(feature = "kafka")]
    let cluster = Cluster::start(1, 1);
    let mut config =
        format!("{}{}{evidence}", base("required"), refusing.output("refusing", QUICK));
    #[cfg(feature = "kafka")]
    config.push_str(&cluster.output("kafka", ""));
    for (name, keys) in &consumers.outputs {
        config.push_str(&format!("[[output]]\nname = \"{name}\"\n{keys}"));
    }
    // The directories of the dead letters and of the queue do not exist yet.
    let letters = consumers.files.path().join("not/there/yet");
    config.push_str(&format!("[dead_letter]\ndirectory = {letters:?}\n"));
    let relay = consumers.ibm.relay(&config).start();
    let told = "the relay runs in a sandbox: Landlock and seccomp refuse what it does not need";
    let told = relay.wait_for_log(told, PATIENCE);
    assert_eq!(told["restrict"], "required", "{told}");
    let paths = |field: &str| told[field].as_str().unwrap().split(' ').collect::<Vec<_>>();
    assert!(paths("write").contains(&text(&letters)), "{told}");
    assert!(!paths("read").contains(&"/") && !paths("read").contains(&"/etc"), "{told}");

    let sent = post_batch(&relay, 1, 100, 700);
    relay.wait_until_delivered(PATIENCE * 2);
    let metrics = relay.metrics();
    let kafka = cfg!(feature = "kafka").then_some("kafka");
    for name in consumers.outputs.iter().map(|(name, _)| *name).chain(kafka) {
        let delivered = metrics.value("output_events_total", &[("output", name)]);
        assert_eq!(delivered, sent.len() as f64, "{name}: {}", relay.log_text());
    }
    wait_until("the dead letter", PATIENCE, || events_in_letters(&letters).len() == 1);
    wait_until("the evidence", PATIENCE, || {
        directory.path().join("queue/evidence/checkpoint").is_file()
    });

    // This includes the threads of the log, the queue and the dead letters.
    assert_eq!(of_threads(&relay, "Seccomp"), BTreeSet::from(["2".to_owned()]));
    assert_eq!(of_threads(&relay, "NoNewPrivs"), BTreeSet::from(["1".to_owned()]));
    let status = shown(&relay);
    assert_eq!(status["setting"], "required");
    assert_eq!(status["landlock_abi"], told["landlock"]);
    assert_eq!((&status["seccomp"], &status["missing"]), (&json!(true), &json!(null)));
    let memory = http::get(relay.admin(), "/status").unwrap().json()["memory_bytes"].clone();
    assert!(memory.as_u64().is_some_and(|bytes| bytes > 0), "/proc can be read");
    relay.finish(Backlog::Empty);
}

/// Writes a version of a volume and switches to it, as the kubelet does with a Secret.
fn swap(volume: &Path, token: &str) {
    let version = volume.join(format!("..{token}"));
    std::fs::create_dir(&version).unwrap();
    std::fs::write(version.join("token"), token).unwrap();
    symlink(version.file_name().unwrap(), volume.join("..data_tmp")).unwrap();
    let before = std::fs::read_link(volume.join("..data"));
    std::fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
    if let Ok(before) = before {
        std::fs::remove_dir_all(volume.join(before)).unwrap();
    }
}

#[test]
fn a_restricted_relay_reads_a_secret_that_the_kubelet_has_swapped() {
    let sink = HttpSink::accepting();
    let volume = TempDir::new().unwrap();
    swap(volume.path(), "first");
    symlink("..data/token", volume.path().join("token")).unwrap();
    let token = format!("bearer_token_file = {:?}\n", volume.path().join("token"));
    let relay = Relay::start(&format!("{}{token}{}", base("required"), sink.output("out", "")));
    let status = |token: &str| {
        let mut client = Client::connect(relay.address()).unwrap();
        let authorization = format!("Bearer {token}");
        let body = numbered::list(0, 0..1);
        let headers = [("Content-Type", "application/json"), ("Authorization", &authorization)];
        client.request("POST", "/", &headers, &body).unwrap().status
    };
    assert_eq!(status("first"), 200);
    for next in ["second", "third"] {
        swap(volume.path(), next);
        wait_until("the next token", PATIENCE, || status(next) == 200);
    }
    assert_eq!(status("first"), 401);
    assert_eq!(relay.reloads("error"), 0.0);
    relay.finish(Backlog::Empty);
}

#[test]
fn a_reload_that_names_a_path_outside_changes_nothing_and_a_restart_takes_it_in() {
    let (sink, another) = (HttpSink::accepting(), HttpSink::accepting());
    let outside = TempDir::new().unwrap();
    let token = outside.path().join("token");
    std::fs::write(&token, "secret").unwrap();
    let letters = outside.path().join("letters");
    let first = format!("{}{}", base("required"), sink.output("out", ""));
    let mut relay = Relay::start(&first);
    let both = format!("{first}{}", another.output("another", ""));
    let listener = "[[listener]]\naddress = \"127.0.0.2:0\"\n";
    let with_token = format!("{both}{listener}bearer_token_file = {token:?}\n");
    let with_letters = format!("{both}[dead_letter]\ndirectory = {letters:?}\n");
    let with_part = both.replace(
        "name = \"another\"",
        &format!("name = \"another\"\nheaders = {{ x = \"${{file:{}}}\" }}", text(&token)),
    );
    let not_reloaded = messages::NOT_RELOADED;
    for (round, (config, key, path)) in [
        (&with_token, "listener[1].bearer_token_file", &token),
        (&with_letters, "dead_letter.directory", &letters),
        (&with_part, "output[1].headers.x", &token),
    ]
    .into_iter()
    .enumerate()
    {
        relay.reload(config, "error");
        let said = wait_for("the log line", PATIENCE, || {
            let said = relay.log_fields();
            let lines = said.iter().filter(|line| line["message"] == not_reloaded).count();
            (lines > round).then_some(said)
        });
        let of_key = |line: &&Value| line["key"] == key;
        let problems: Vec<_> = said.iter().filter(of_key).collect();
        assert_eq!(problems.len(), 1, "{key}: {}", relay.log_text());
        let message = problems[0]["message"].as_str().unwrap();
        assert!(message.contains(text(path)) && message.contains("process.restrict"), "{message}");
        let refused = said.last().unwrap();
        assert_eq!(refused["message"], not_reloaded);
        assert!(refused["error"].as_str().unwrap().contains("restart the relay"), "{refused}");
        // Nothing of the config is in force.
        assert!(!relay.metrics().text.contains("another"), "{}", relay.metrics().text);
    }
    assert!(!letters.exists());
    // A config without such paths is loaded.
    relay.reload(&both, "success");
    post_batch(&relay, 0, 10, 300);
    relay.wait_until_delivered(PATIENCE);
    wait_until("the added output", PATIENCE, || another.count() > 0);
    // A change of the setting itself waits for a restart.
    relay.reload(&both.replace("required", "off"), "success");
    let change = "process.restrict has changed: restart the relay to apply it";
    let change = relay.wait_for_log(change, PATIENCE);
    assert_eq!(change["key"], "process.restrict");
    assert_eq!(shown(&relay)["setting"], "required");
    relay.stop();
    for config in [with_letters, with_part] {
        let mut relay = Relay::start(&config);
        assert_eq!(shown(&relay)["setting"], "required");
        relay.stop();
    }
}

#[test]
fn without_the_setting_nothing_is_given_up() {
    let sink = HttpSink::accepting();
    let default = unrestricted(BASE);
    for config in [default.clone(), base("off")] {
        let relay = Relay::start(&format!("{config}{}", sink.output("out", "")));
        relay.wait_for_log("process.restrict is off: the relay runs without a sandbox", PATIENCE);
        let none =
            json!({"setting": "off", "landlock_abi": null, "seccomp": false, "missing": null});
        assert_eq!(shown(&relay), none);
        assert_eq!(of_threads(&relay, "Seccomp"), BTreeSet::from(["0".to_owned()]));
        relay.finish(Backlog::Empty);
    }
}

/// Tests that need peers.
mod peers {
    use super::*;

    /// Returns a command that makes the kernel look as if it lacked Landlock or seccomp.
    fn without(call: &str, fault: &str) -> [String; 7] {
        let words = ["strace", "-D", "-f", "-qq", "-o/dev/null"];
        let (trace, inject) = (format!("--trace={call}"), format!("--inject={call}:{fault}"));
        let [a, b, c, d, e] = words.map(str::to_owned);
        [a, b, c, d, e, trace, inject]
    }

    #[test]
    #[ignore = "needs peers or root: ./test"]
    fn a_kernel_that_cannot_restrict_is_an_error_only_where_that_is_required() {
        let sink = HttpSink::accepting();
        let output = sink.output("out", "");
        for (call, fault, missing, abi, seccomp) in [
            ("landlock_create_ruleset", "error=ENOSYS", "Landlock", false, true),
            // Landlock was disabled at boot.
            ("landlock_create_ruleset", "error=EOPNOTSUPP", "Landlock", false, true),
            // Linux 5.19, whose Landlock is too old.
            ("landlock_create_ruleset", "retval=2", "Landlock", false, true),
            ("seccomp", "error=EINVAL", "seccomp", true, false),
        ] {
            let launcher = without(call, fault);
            let launcher: Vec<_> = launcher.iter().map(String::as_str).collect();
            let relay = Relay::with(&format!("{}{output}", base("best_effort")))
                .launcher(&launcher)
                .start();
            let told = "the sandbox of the relay is incomplete: the kernel, the container \
                        runtime or the architecture does not allow all of process.restrict";
            let told = relay.wait_for_log(told, PATIENCE);
            assert!(told["missing"].as_str().unwrap().contains(missing), "{told}");
            let status = shown(&relay);
            assert_eq!(status["landlock_abi"].is_number(), abi, "{status}");
            assert_eq!(status["seccomp"], seccomp, "{status}");
            assert_eq!(status["missing"], told["missing"], "{status}");
            post_batch(&relay, 0, 10, 300);
            relay.finish(Backlog::Empty);

            let mut relay =
                Relay::with(&format!("{}{output}", base("required"))).launcher(&launcher).launch();
            let status = relay.wait();
            let said = relay.log_text();
            assert_eq!(status.code(), Some(2), "{said}");
            assert!(said.contains("process.restrict") && said.contains(missing), "{said}");
        }
    }

    #[test]
    #[ignore = "needs peers or root: ./test"]
    fn check_refuses_a_config_that_requires_what_this_machine_does_not_have() {
        needs("strace");
        let directory = TempDir::new().unwrap();
        let file = directory.path().join("relay.toml");
        let check = |restrict: &str, more: &[&str]| {
            let config = format!("{}{}", base(restrict), HttpSink::accepting().output("out", ""));
            std::fs::write(&file, config).unwrap();
            let [program, launcher @ ..] = without("landlock_create_ruleset", "error=ENOSYS");
            // Without -D, strace ends with the status of the program.
            let launcher = launcher.iter().filter(|word| *word != "-D");
            let mut command = Command::new(program);
            command.args(launcher).arg(binary()).args(["check", text(&file)]).args(more);
            let output = command.output().unwrap();
            (output.status.code(), String::from_utf8(output.stderr).unwrap())
        };
        let (code, said) = check("required", &[]);
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains(":4:24: process.restrict: is \"required\", but"), "{said}");
        let fine: [(_, &[_]); 3] =
            [("required", &["--elsewhere"]), ("best_effort", &[]), ("off", &[])];
        for (restrict, more) in fine {
            let (code, said) = check(restrict, more);
            assert_eq!(code, Some(0), "{restrict}: {said}");
            let warns = said.contains("warning: is \"best_effort\", but this machine has no");
            assert_eq!(warns, restrict == "best_effort", "{restrict}: {said}");
        }
    }
}
