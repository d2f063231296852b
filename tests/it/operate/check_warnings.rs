//! `check` warns of valid settings that their author will not have meant, and reports one error for
//! one mistake.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use super::check::{LISTENER, OUTPUT};
use crate::support::prelude::*;
use crate::support::relay::without_summary;

/// Runs `check` on this config, with these options. Returns its exit status and the lines about
/// problems.
fn check(config: &str, options: &[&str]) -> (Option<i32>, Vec<String>) {
    let directory = TempDir::new().unwrap();
    std::fs::write(directory.path().join("c.toml"), config).unwrap();
    let output = run_command(&[&["check", "c.toml"], options].concat(), directory.path());
    let said = String::from_utf8(output.stderr).unwrap();
    let said = without_summary(&said, "c.toml");
    let problems = said.lines().filter(|line| line.starts_with("c.toml:"));
    (output.status.code(), problems.map(str::to_owned).collect())
}

/// Checks that `check` accepts the config, and that its warnings are about exactly these keys, in
/// this order and with these words.
#[track_caller]
fn assert_warned(config: &str, expected: &[(&str, &str)]) {
    let (code, said) = check(config, &[]);
    assert_eq!(code, Some(0), "{said:#?}\n{config}");
    assert_eq!(said.len(), expected.len(), "{said:#?}\n{config}");
    for (line, (key, words)) in said.iter().zip(expected) {
        assert!(line.contains(&format!(": {key}: warning: ")), "{key}: {line}");
        assert!(line.contains(words), "{words}: {line}");
    }
}

/// A `*` that is not at the end of a prefix only causes a warning, because names with a `*` exist:
/// a certificate's common name can be `*.example.com`.
#[test]
fn a_filter_that_no_request_matches_is_warned_of() {
    let config = |key: &str, values: &str| {
        format!("{LISTENER}{OUTPUT}[filter]\nmatch = {{ {key} = [{values}] }}\n")
    };
    for (key, values, words) in [
        ("verbs", "\"GET\"", "use \"get\""),
        ("verbs", "\"get*\"", "remove verbs"),
        ("users", "\"*.example.com\"", "compared literally"),
        ("users", "\"system:node\"", "nodes are system:node:NAME"),
        ("users", "\"a*b*\"", "compared literally"),
        ("user_groups", "\"system:*\"", "* has no meaning here"),
        ("namespaces", "\"*-a\"", "* has no meaning in namespaces"),
        ("namespaces", "\"Kube-System\"", "use \"kube-system\""),
        ("namespaces", "\"Team-*\"", "use \"team-\""),
    ] {
        let key_of_value = format!("filter.match[0].{key}[0]");
        assert_warned(&config(key, values), &[(&key_of_value, words)]);
    }
    for (entry, words) in [
        ("resources = [\"Secrets\"]", Some("use \"secrets\"")),
        ("resources = [\"deployments\"]", Some("use the group \"apps\"")),
        ("resources = [\"Pods/log\"]", Some("use \"pods/log\"")),
        ("resources = [\"deployments.apps\"]", Some("\"deployments\" with the group \"apps\"")),
        ("group = \"apps\", resources = [\"Deployments\"]", Some("use \"deployments\"")),
        // The resources of this group are names of metrics.
        ("group = \"external.metrics.k8s.io\", resources = [\"Queue.Length\"]", None),
        ("group = \"apps\", resources = [\"deployments\", \"*/scale\", \"*\"]", None),
    ] {
        let config = config("resources", &format!("{{ {entry} }}"));
        let key = "filter.match[0].resources[0].resources[0]";
        match words {
            Some(words) => assert_warned(&config, &[(key, words)]),
            None => assert_warned(&config, &[]),
        }
    }
    let good = "match = { verbs = [\"get\", \"post\"], users = [\"admin\", \"CN=Alice\", \"system:*\", \"system:node*\"], \
                user_groups = [\"Admins\"], namespaces = [\"\", \"kube-system\", \"team-*\"] }";
    assert_warned(&format!("{LISTENER}{OUTPUT}[output.filter]\n{good}\n"), &[]);
}

/// Method: `check` reads a policy in a ConfigMap with a user and resources that match nothing.
#[test]
fn a_policy_in_a_config_map_is_warned_of_where_its_lines_stand() {
    let directory = TempDir::new().unwrap();
    let policy = directory.path().join("cm.yaml");
    let text_of = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: audit}\ndata:\n  policy.yaml: |\n    \
                   apiVersion: audit.k8s.io/v1\n    kind: Policy\n    rules:\n    \
                   - level: None\n      users: ['system:node']\n      \
                   resources: [{resources: [deployments, pods/]}]\n---\n";
    std::fs::write(&policy, text_of).unwrap();
    let config = format!("{LISTENER}{OUTPUT}[filter]\npolicy = \"{}\"\n", text(&policy));
    let at = |place: &str| format!("{}:{place}: ", text(&policy));
    let expected = ["10:15", "11:32", "11:45"].map(at);
    assert_warned(&config, &expected.each_ref().map(|it| ("filter.policy", it.as_str())));
}

/// Method: `check` and `run` read a policy with three values that match nothing, and a reload reads
/// one with another such value.
#[test]
fn a_rule_of_a_policy_that_no_request_matches_is_warned_of_also_by_run_and_a_reload() {
    let directory = TempDir::new().unwrap();
    let policy = directory.path().join("policy.yaml");
    let rules = "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n\
                 - level: None\n  users: [\"system:*\"]\n  verbs: [GET]\n\
                 - level: Metadata\n  resources: [{group: \"\", resources: [Secrets]}]\n\
                 - level: Request\n";
    std::fs::write(&policy, rules).unwrap();
    let sink = TcpSink::start();
    let config = format!(
        "{BASE}[[output]]\nname = \"out\"\ntype = \"tcp\"\naddresses = [\"{}\"]\n\
         [filter]\npolicy = \"{}\"\n",
        sink.address(),
        text(&policy)
    );
    let at = |place: &str| format!("{}:{place}: ", text(&policy));
    let (user, verb, resource) = (at("5:11"), at("6:11"), at("8:39"));
    let expected = [&user, &verb, &resource].map(|it| ("filter.policy", it.as_str()));
    assert_warned(&config, &expected);
    let relay = Relay::start(&config);
    for place in [&user, &verb, &resource] {
        let fields = relay.log_fields();
        let is_told = |line: &Value| {
            line["key"] == "filter.policy"
                && line["message"].as_str().is_some_and(|it| it.contains(place.as_str()))
        };
        assert!(fields.iter().any(is_told), "{place}: {}", relay.log_text());
    }
    std::fs::write(&policy, rules.replace("GET", "LIST")).unwrap();
    relay.signal(libc::SIGHUP);
    let told = || relay.log_text().contains("verbs are in lower case: use \\\"list\\\"");
    wait_until("the warning of the reload", PATIENCE, told);
    relay.finish(Backlog::Empty);
}

#[test]
fn what_makes_the_relay_weaker_is_warned_of() {
    let config = format!(
        "{LISTENER}[[output]]\nname = \"o\"\ntype = \"http\"\nurls = [\"https://127.0.0.1:1/\"]\n\
         tls = {{ insecure_skip_verify = true }}\n[queue]\nmax_bytes = \"1MiB\"\n"
    );
    let weak = ("output[0].tls.insecure_skip_verify", "");
    assert_warned(&config, &[weak, ("queue.max_bytes", "limits.max_body")]);
}

#[test]
fn credentials_over_plain_http_are_warned_of_except_on_this_machine() {
    let directory = TempDir::new().unwrap();
    let token = directory.path().join("token");
    std::fs::write(&token, "abc").unwrap();
    let token = text(&token);
    let config = |kind: &str, url: &str, keys: &str| {
        format!(
            "{LISTENER}[[output]]\nname = \"o\"\ntype = \"{kind}\"\nurls = [\"{url}\"]\n{keys}\n\
             filter.max_event_bytes = \"30KiB\"\n"
        )
    };
    for (kind, keys, key) in [
        ("http", format!("bearer_token_file = \"{token}\""), "bearer_token_file"),
        (
            "http",
            format!("basic_auth = {{ username = \"u\", password_file = \"{token}\" }}"),
            "basic_auth.password_file",
        ),
        ("http", "headers = { X-API-Key = \"abc\" }".to_owned(), "headers"),
        ("http", format!("headers = {{ X-Tenant = \"${{file:{token}}}\" }}"), "headers"),
        ("splunk_hec", format!("token_file = \"{token}\""), "token_file"),
        ("elasticsearch", format!("index = \"audit\"\napi_key_file = \"{token}\""), "api_key_file"),
        ("loki", format!("bearer_token_file = \"{token}\""), "bearer_token_file"),
    ] {
        let key = format!("output[0].{key}");
        let warned = config(kind, "http://h:1/", &keys);
        assert_warned(&warned, &[(&key, "sent over plain http://")]);
        let safe =
            "https://h:1/\", \"http://localhost:1/\", \"http://127.0.0.9:1/\", \"http://[::1]:1/";
        assert_warned(&config(kind, safe, &keys), &[]);
    }
    assert_warned(&config("http", "http://h:1/", "headers = { X-Scope = \"abc\" }"), &[]);
}

/// Writes a self-signed certificate without any subjectAltName.
fn without_names(directory: &TempDir) -> Pair {
    let made = rcgen::generate_simple_self_signed(Vec::new()).unwrap();
    let at = |name: &str| directory.path().join(name);
    let pair = Pair { certificate: at("nameless.crt"), key: at("nameless.key") };
    std::fs::write(&pair.certificate, made.cert.pem()).unwrap();
    std::fs::write(&pair.key, made.signing_key.serialize_pem()).unwrap();
    pair
}

#[test]
fn certificates_that_lock_senders_out_are_warned_of() {
    let (files, directory) = (Certificates::new(), TempDir::new().unwrap());
    let listener = |pair: &Pair, client_ca: &Path| {
        format!(
            "{LISTENER}[listener.tls]\ncertificate = \"{}\"\nprivate_key = \"{}\"\n\
             client_ca = \"{}\"\n{OUTPUT}",
            text(&pair.certificate),
            text(&pair.key),
            text(client_ca)
        )
    };
    assert_warned(&listener(&files.server, &files.ca), &[]);
    let nameless = without_names(&directory);
    let words = "has no subjectAltName, so kube-apiserver";
    assert_warned(&listener(&nameless, &files.ca), &[("listener[0].tls.certificate", words)]);
    let words = "is not a CA certificate";
    let expected = [("listener[0].tls.client_ca", words)];
    assert_warned(&listener(&files.server, &files.client.certificate), &expected);
    // A self-signed certificate may be an old CA.
    assert_warned(&listener(&files.server, &nameless.certificate), &[]);
}

#[test]
fn a_signing_key_that_everybody_can_read_is_warned_of() {
    let directory = TempDir::new().unwrap();
    let (key, mode) = (directory.path().join("key"), |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    });
    let keygen = ["evidence", "keygen", "--origin", "relay", "--out", text(&key)];
    assert!(run_command(&keygen, directory.path()).status.success());
    let config = format!(
        "{LISTENER}{OUTPUT}[queue]\ndirectory = \"{}\"\nmax_bytes = \"256MiB\"\n\
         [evidence]\norigin = \"relay\"\nkey_file = \"{}\"\n",
        text(&directory.path().join("queue")),
        text(&key)
    );
    mode(directory.path(), 0o755);
    assert_warned(&config, &[]);
    mode(&key, 0o644);
    let words = "every user of this machine can read";
    assert_warned(&config, &[("evidence.key_file", words)]);
    // Secret volumes of a pod with fsGroup have this mode.
    mode(&key, 0o440);
    assert_warned(&config, &[]);
    // Others may not enter the directory.
    mode(&key, 0o644);
    mode(directory.path(), 0o750);
    assert_warned(&config, &[]);
}

#[test]
fn a_queue_that_is_larger_than_its_file_system_is_warned_of() {
    let directory = TempDir::new().unwrap();
    let queue = directory.path().join("not/there/yet");
    let config = format!(
        "{LISTENER}{OUTPUT}[queue]\ndirectory = \"{}\"\nmax_bytes = \"1048576GiB\"\n",
        text(&queue)
    );
    let words = "is larger than the file system of queue.directory (";
    assert_warned(&config, &[("queue.max_bytes", words)]);
    let (code, said) = check(&config, &["--elsewhere"]);
    assert_eq!((code, said), (Some(0), Vec::new()), "the other machine has another disk");
    assert_warned(&config.replace("1048576GiB", "256MiB"), &[]);
}

/// The file system has 3 MiB. Two of them are in use, by a file beside the queue or in it.
#[test]
fn a_queue_for_which_its_file_system_has_too_little_left_is_warned_of() {
    let directory = TempDir::new().unwrap();
    let (at, program) = (text(directory.path()), binary());
    let config = directory.path().join("config.toml");
    let relay = format!(
        "{LISTENER}{OUTPUT}[queue]\ndirectory = \"{at}/disk/queue\"\nmax_bytes = \"2MiB\"\n\
         segment_bytes = \"512KiB\"\n[limits]\nmax_body = \"512KiB\"\n"
    );
    std::fs::write(&config, relay).unwrap();
    for (options, file, words) in [
        ("size=3M", "disk/other", "has left for it (1 MiB, with what the queue holds now)"),
        ("size=3M", "disk/queue/held", ""),
        ("size=3M,nr_inodes=4", "disk/queue/held", "no inodes left"),
    ] {
        let script = format!(
            "mkdir -p {at}/disk && mount -t tmpfs -o {options} none {at}/disk && \
             mkdir {at}/disk/queue && head -c 2M /dev/zero >{at}/{file} && : >{at}/disk/one \
             && {program} check --config {at}/config.toml"
        );
        let output = Command::new("unshare").args(["--mount", "sh", "-ec", &script]).output();
        let output = output.unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        let is_warned = said.contains("queue.max_bytes");
        assert_eq!(is_warned, !words.is_empty(), "{file}: {said}");
        assert!(said.contains(words), "{file}: {said}");
    }
}

#[test]
fn what_a_shell_would_expand_is_warned_of() {
    let http = |url: &str| {
        format!("{LISTENER}[[output]]\nname = \"o\"\ntype = \"http\"\nurls = [\"{url}\"]\n")
    };
    assert_warned(&http("http://$LOGS_HOST:8080/"), &[("output[0].urls[0]", "${env:NAME}")]);
    let (_, said) = check(&http("http://$LOGS_HOST:8080/"), &[]);
    assert!(!said[0].contains("LOGS_HOST"), "a URL may hold a secret: {said:?}");
    assert_warned(&http("http://h/${env:NO_SUCH:-a}/$${B}/$a/$1"), &[]);
    let queue = |path: &str| format!("{LISTENER}{OUTPUT}[queue]\ndirectory = \"{path}\"\n");
    assert_warned(&queue("~/queue"), &[("queue.directory", "~, which is not expanded here")]);
    assert_warned(&queue("$HOME/queue"), &[("queue.directory", "${env:NAME}")]);
}

#[test]
fn one_mistake_is_one_error() {
    let (listener, output) = (LISTENER, OUTPUT);
    for (config, words) in [
        (format!("{listener}[[output]]\nname = \"o\"\ntype = stdout\n"), "type = \"…\""),
        (format!("[[listener]]\naddress = 127.0.0.1:3000\n{output}"), "address = \"…\""),
        (format!("{listener}[output.siem]\ntype = \"stdout\"\n"), "one or more [[output]]"),
        (
            format!(
                "{listener}[[output]]\nname = \"o\"\ntype = \"http\"\nurls = [\"https://h/\"]\n\
                 tls.ca = \"~/x\"\n"
            ),
            "the file \"~/x\" does not exist: it begins with ~, which is not expanded here",
        ),
        (format!("{listener}{output}[queue]\nmax_bytes = 1GiB # much\n"), "max_bytes = \"…\""),
        (
            format!("{listener}[[output]]\nname = \"o\"\ntype = \"http\"\nurls = [http://h/]\n"),
            "urls = [\"…\"]",
        ),
        (
            format!("{listener}[[output]]\nname = \"o\"\ntype = \"http\"\nurl = [\"http://h/\"]\n"),
            "unknown key `url`, did you mean `urls`?",
        ),
        (format!("[[listener]]\nadress = \"127.0.0.1:1\"\n{output}"), "did you mean `address`?"),
        (format!("[[listeners]]\naddress = \"127.0.0.1:1\"\n{output}"), "did you mean `listener`?"),
        (
            format!("{listener}[[outputs]]\nname = \"o\"\ntype = \"stdout\"\n"),
            "did you mean `output`?",
        ),
        (
            format!(
                "{listener}[[output]]\nname = \"o\"\ntype = \"splunk\"\nurls = [\"http://h/\"]\n\
                 token_file = \"/x\"\n[output.tls]\nca = \"/x\"\n"
            ),
            "\"splunk\" is unknown",
        ),
    ] {
        let (code, said) = check(&config, &[]);
        assert_eq!((code, said.len()), (Some(2), 1), "{said:#?}\n{config}");
        assert!(said[0].contains(words), "{words}: {}", said[0]);
    }
}

/// Method: `check` reads configs whose admin address asks for client certificates, and one whose
/// admin and probe addresses conflict.
#[test]
fn an_admin_address_that_no_probe_can_reach_is_warned_of() {
    let certificates = Certificates::new();
    let tls = |more: &str| {
        let pair = certificates.server.tls();
        let pair = pair.trim_end().trim_end_matches('}');
        format!("{LISTENER}{OUTPUT}[admin]\n{pair}, {more} }}\n")
    };
    let with_ca = tls(&format!("client_ca = \"{}\"", text(&certificates.ca)));
    assert_warned(&with_ca, &[("admin.tls", "set admin.probe_address")]);
    assert_warned(&format!("{with_ca}probe_address = \"127.0.0.1:9091\"\n"), &[]);
    assert_warned(&tls("min_version = \"1.3\""), &[]);
    let directory = TempDir::new().unwrap();
    let both = "[admin]\naddress = \"127.0.0.1:9090\"\nprobe_address = \"0.0.0.0:9090\"\n";
    std::fs::write(directory.path().join("relay.toml"), format!("{LISTENER}{OUTPUT}{both}"))
        .unwrap();
    let checked = said(&["check", "relay.toml"], directory.path());
    checked.assert(2, &["admin.probe_address: uses the same port as admin.address"]);
}
