//! The command line as a whole: where `--config` can be, messages about mistyped words and missing
//! files, and the examples in the help of each command.

use crate::docs::reference::subcommands;
use crate::support::prelude::*;
use crate::support::relay::with_admin;
use crate::support::setup::config;

const CONFIG: &str = "[[listener]]\naddress = \"127.0.0.1:0\"\n[[output]]\nname = \"o\"\n\
                      type = \"tcp\"\naddresses = [\"127.0.0.1:3000\"]\n";

/// Runs a command line in a directory. The words are separated by blanks.
fn run(line: &str, directory: &Path) -> Said {
    said(&line.split_whitespace().collect::<Vec<_>>(), directory)
}

/// Like [`run`], with a variable that names the config.
fn run_with(line: &str, directory: &Path, config: &str) -> Said {
    let words: Vec<&str> = line.split_whitespace().collect();
    let variables = [("KUBE_AUDIT_FORWARDER_CONFIG", config)];
    Said::of(run_command_with(&words, directory, &variables))
}

/// Returns a directory with two configs: `relay.toml` and `other.toml`.
fn place() -> TempDir {
    let directory = TempDir::new().unwrap();
    std::fs::write(directory.path().join("relay.toml"), CONFIG).unwrap();
    std::fs::write(directory.path().join("other.toml"), CONFIG.replace("3000", "4000")).unwrap();
    directory
}

/// Returns the help of each command, with its path, such as `queue inspect`.
fn helps() -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut paths = vec![String::new()];
    while let Some(path) = paths.pop() {
        let Said { code, stdout: help, stderr } = run(&format!("{path} --help"), Path::new("/"));
        assert_eq!((code, stderr.as_str()), (Some(0), ""), "{path}");
        paths.extend(subcommands(&help).iter().map(|name| format!("{path} {name}")));
        found.push((path.trim().to_owned(), help));
    }
    found
}

/// Method: without a terminal, the width is 80. An example is one line, so that it can be copied.
#[test]
fn the_help_of_each_command_fits_into_80_columns() {
    for (path, help) in helps() {
        let text = help.split("\nExamples:").next().unwrap();
        let long = text.lines().find(|line| line.chars().count() > 80);
        assert_eq!(long, None, "{path}");
    }
    let help = run("--help", Path::new("/")).stdout;
    for part in ["Splunk", "S3", "Kafka", "\n Run a relay\n  run ", "\n Look at a running relay\n"]
    {
        assert!(help.contains(part), "{part}: {help}");
    }
}

#[test]
fn run_takes_its_config_as_check_does() {
    let directory = place();
    std::fs::write(directory.path().join("wrong.toml"), "wrong = 1\n").unwrap();
    for command in ["run", "check"] {
        let line = format!("{command} wrong.toml");
        run(&line, directory.path()).assert_refused("wrong.toml:1:1: wrong: unknown key");
        let words = format!("{command} takes one config: wrong.toml, or --config other.toml");
        run(&format!("{line} --config other.toml"), directory.path()).assert_refused(&words);
        // A positional file takes precedence over the environment variable.
        run_with(&line, directory.path(), "relay.toml").assert_refused("wrong.toml:1:1: ");
    }
    // Without a command, the program does what `run` does.
    for line in ["run", "check", "config", ""] {
        run_with(line, directory.path(), "wrong.toml").assert_refused("wrong.toml:1:1: ");
    }
    run("config --config wrong.toml", directory.path()).assert_refused("wrong.toml:1:1: wrong: ");
}

#[test]
fn the_help_of_each_command_ends_with_examples_of_it() {
    let helps = helps();
    assert!(helps.len() > 20, "{}", helps.len());
    for (path, help) in &helps {
        for help in [help, &run(&format!("{path} -h"), Path::new("/")).stdout] {
            let (_, examples) = help.split_once("\nExamples:\n").expect(path);
            let name = format!("kube-audit-forwarder {path}");
            assert!(examples.contains(name.trim_end()), "{path}: {examples}");
        }
    }
    let pages = TempDir::new().unwrap();
    let directory = pages.path().to_str().unwrap();
    run(&format!("man {directory}"), Path::new("/")).assert(0, &[]);
    for (path, _) in &helps {
        let name = format!("kube-audit-forwarder {path}").trim_end().replace(' ', "-");
        let page = std::fs::read_to_string(pages.path().join(format!("{name}.1"))).unwrap();
        assert!(page.contains("Examples:"), "{name}: {page}");
    }
}

#[test]
fn the_config_is_an_option_of_the_commands_that_read_it_and_of_no_other() {
    let with: BTreeSet<String> = helps()
        .into_iter()
        .filter(|(_, help)| help.contains("--config <FILE>"))
        .map(|(path, _)| path)
        .collect();
    for path in ["", "run", "check", "config", "healthcheck", "doctor", "drain"] {
        assert!(with.contains(path), "`{path}` reads the config: {with:?}");
    }
    for (path, rest) in [
        ("demo", ""),
        ("replay", "audit.log --url http://127.0.0.1:1"),
        ("queue inspect", "."),
        ("migrate haproxy", "haproxy.cfg"),
        ("completions", "bash"),
        ("man", ""),
    ] {
        assert!(!with.contains(path), "`{path}` reads no config");
        for line in [
            format!("{path} --config relay.toml {rest}"),
            format!("--config relay.toml {path} {rest}"),
        ] {
            run(&line, place().path()).assert_refused("'--config'");
        }
    }
}

#[test]
fn the_config_may_be_named_before_the_command_after_it_or_by_the_variable() {
    let directory = place();
    for line in [
        "check relay.toml",
        "check --config relay.toml",
        "check --config=relay.toml relay.toml",
        "--config relay.toml check",
        "--config missing.toml check --config relay.toml",
        "--config relay.toml config",
        "config --config relay.toml",
    ] {
        // The variable is used only if the command line names no config.
        run(line, directory.path()).assert(0, &["127.0.0.1:3000"]);
        run_with(line, directory.path(), "missing.toml").assert(0, &["127.0.0.1:3000"]);
    }
    run_with("check", directory.path(), "other.toml").assert(0, &["127.0.0.1:4000"]);
    for line in ["check relay.toml --config other.toml", "--config other.toml check relay.toml"] {
        run(line, directory.path()).assert_refused("relay.toml").assert_refused("other.toml");
    }
    run("check", directory.path()).assert_refused("check FILE");
}

#[test]
fn a_mistyped_word_names_the_nearest_one() {
    for (line, nearest) in [
        ("chek", "'check'"),
        ("--confg relay.toml", "'--config'"),
        ("check --conection relay.toml", "'--connect'"),
        ("config --refernce", "'--reference'"),
        ("demo --second 3", "'--seconds'"),
        ("queue inspct", "'inspect'"),
        ("queue inspect --jsn .", "'--json'"),
        ("queue export . --ouput x", "'--output'"),
        ("migrate haproxi", "'haproxy'"),
        ("evidence verfy", "'verify'"),
        ("evidence verify --directry x", "'--directory'"),
        ("policy explian", "'explain'"),
        ("replay - --url http://127.0.0.1:1 --on-bad-line skp", "'skip'"),
        ("replay - --url http://127.0.0.1:1 --on-bad-lines skip", "'--on-bad-line'"),
        ("completions bsh", "'bash'"),
        ("healthcheck --confg relay.toml", "'--config'"),
        ("doctor --kubeconfg x", "'--kubeconfig'"),
        ("drain --second 1", "'--seconds'"),
    ] {
        run(line, place().path()).assert_refused("similar").assert_refused(nearest);
    }
    // Words that resemble no command, commands without an argument, and options without a value.
    for line in [
        "fly",
        "run --fast",
        "check --config",
        "queue",
        "queue inspect",
        "queue look .",
        "queue export . --output",
    ] {
        run(line, place().path()).assert_refused("");
    }
}

#[test]
fn a_wrong_value_names_what_is_allowed_the_meaning_and_an_example() {
    for (line, allowed, meaning) in [
        ("demo --seconds 0", "a whole number of seconds, 1 to 3600, such as 20", "Send events for"),
        ("drain --seconds x", "a whole number of seconds, 0 or more, such as 60", "Wait at most"),
        ("tap --limit 0", "a whole number of events, 1 or more, such as 10", "Stop after"),
        ("doctor --instances 101", "kube-apiservers, 1 to 100, such as 3", "behind each URL"),
        ("evidence prove . --position x", "a position, 0 or more, such as", "The position of the"),
        ("replay - --url http://a --rate -1", "events per second, 1 to", "Send at most this many"),
        ("top --interval 2m", "allowed: 500ms to 1m", "The time between two updates"),
        ("doctor --interval 2h", "allowed: 0s to 1h", "The time between the two samples"),
        ("doctor --interval 5", "a whole number with ms, s, m or h, such as \"10s\"", "samples"),
        ("evidence verify --key x --since 1", "such as 2026-11-22T08:00:00Z", "Count only events"),
        ("policy advise --cut 0 -", "a part such as 60%", "The percentage of bytes"),
        ("volume --since 3h", "1h, 24h", "The period to count"),
    ] {
        let line = line.replace(" -1", "=-1");
        run(&line, Path::new("/")).assert_refused(allowed).assert_refused(meaning);
    }
    for (line, names) in [
        ("migrate nginx", "there is: haproxy\n"),
        ("queue look", "there is: inspect, export, verify\n"),
        ("evidence sign", "there is: keygen, show, prove, copy, verify\n"),
        ("fly", "tap\n"),
    ] {
        run(line, Path::new("/")).assert_refused(names);
    }
}

/// Runs each command that asks a relay, with these words at its end, which name the relay. Each
/// must fail, and say this.
fn every_asker_says(directory: &Path, words: &str, texts: &[&str]) {
    for command in
        ["top --once", "volume", "drain --seconds 0", "healthcheck", "doctor --interval 0s"]
    {
        // drain and healthcheck need no token, and the probe address answers them.
        let is_open = ["drain --seconds 0", "healthcheck"].contains(&command);
        if is_open && texts.iter().any(|text| text.contains("token_file") || text.contains("probe"))
        {
            continue;
        }
        let said = run(&format!("{command} {words}"), directory);
        assert!(said.code == Some(1) || command.starts_with("doctor"), "{command}: {said:?}");
        said.assert(if command.starts_with("doctor") { 2 } else { 1 }, texts);
        assert!(!said.stdout.contains("?.") && !said.stdout.contains(".."), "{said:?}");
    }
}

#[test]
fn whoever_asks_a_relay_in_vain_learns_who_was_asked_and_what_to_name_instead() {
    let directory = place();
    let at = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(at("token"), "s3cr3t\n").unwrap();
    let certificates = Certificates::new();
    let tls = format!(
        "tls = {{ certificate = {:?}, private_key = {:?} }}",
        certificates.server.certificate, certificates.server.key
    );
    let sink = TcpSink::start();
    let with = |listener: &str, admin: &str| {
        Relay::start(&with_admin(&config(&sink, listener, ""), admin))
    };
    let token = format!("bearer_token_file = {:?}", at("token"));
    let locked = with(&token, &format!("{token}, probe_address = \"127.0.0.1:0\""));
    let mut encrypted = with("", &format!("{tls}, probe_address = \"127.0.0.1:0\""));
    let probes = locked.wait_for_log("probes listening", PATIENCE);
    let probes: SocketAddr = probes["address"].as_str().unwrap().parse().unwrap();
    let nobody = free_port();
    std::fs::write(at("relay.toml"), format!("[admin]\naddress = \"127.0.0.1:{nobody}\"\n"))
        .unwrap();
    let url = |scheme: &str, address: SocketAddr| format!("--relay {scheme}://{address}");
    for (words, texts) in [
        (
            "--config relay.toml".to_owned(),
            &["Connection refused", "admin.address", "--relay URL"][..],
        ),
        (
            format!("--relay http://127.0.0.1:{nobody}"),
            &["Connection refused", "the relay runs, and that this is its admin"],
        ),
        (
            url("http", locked.admin()),
            &["header Authorization", "admin.bearer_token_file", "--token-file"],
        ),
        (url("http", locked.address()), &["This is a listener", "admin.address"]),
        (url("http", probes), &["admin.probe_address", "name admin.address"]),
        (url("http", encrypted.address()), &["405 Method", "This is a listener", "admin.address"]),
        (url("http", encrypted.admin()), &["Use https://"]),
        (url("https", encrypted.admin()), &["UnknownIssuer", "with --ca"]),
        (url("https", encrypted.address()), &["does not speak TLS", "Use http://"]),
    ] {
        every_asker_says(directory.path(), &words, texts);
    }
    encrypted.stop();
    locked.finish(Backlog::Empty);
}

#[test]
fn an_address_that_cannot_be_bound_names_its_key_and_what_to_do() {
    let directory = place();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    for (key, address, todo) in [
        ("listener[0].address", &*taken, "a free port, or stop the program"),
        ("admin.address", &taken, "`ss -ltnp`"),
        ("admin.probe_address", &taken, "a free port"),
        ("listener[0].address", "192.0.2.1:3000", "`ip addr`"),
        ("admin.address", "192.0.2.1:3000", "`ip addr`"),
    ] {
        let of = |name: &str| if name == key { address } else { "127.0.0.1:0" };
        let config = format!(
            "[[listener]]\naddress = \"{}\"\n[admin]\naddress = \"{}\"\nprobe_address = \"{}\"\n\
             [[output]]\nname = \"o\"\ntype = \"stdout\"\n",
            of("listener[0].address"),
            of("admin.address"),
            of("admin.probe_address")
        );
        std::fs::write(directory.path().join("bind.toml"), config).unwrap();
        let set = format!(": set {key} to ");
        run("run bind.toml", directory.path()).assert(1, &[&format!("on {address}: "), &set, todo]);
    }
}

/// Command lines whose input `absent` does not exist. `{key}` is the verifier key of a log.
const MISSING: &[&str] = &[
    "run --config absent",
    "--config absent",
    "check absent",
    "check --config absent",
    "config --config absent",
    "healthcheck --config absent",
    "drain --config absent",
    "doctor --config absent",
    "doctor --relay http://127.0.0.1:1 --kubeconfig absent",
    "doctor --relay http://127.0.0.1:1 --webhook absent",
    "replay absent --url http://127.0.0.1:1",
    "replay relay.toml absent --url http://127.0.0.1:1",
    "replay relay.toml --url https://127.0.0.1:1 --ca absent",
    "replay relay.toml --url https://127.0.0.1:1 --certificate absent --key absent",
    "replay relay.toml --url http://127.0.0.1:1 --bearer-token-file absent",
    "migrate haproxy absent",
    "queue inspect absent",
    "queue export absent",
    "queue verify absent",
    "policy explain --policy absent relay.toml",
    "policy explain --policy policy.yaml absent",
    "evidence show absent",
    "evidence prove absent --position 1",
    "evidence verify --directory absent --key {key}",
    "evidence verify --proof absent --key {key}",
    "evidence verify --directory . --checkpoint absent --key {key}",
    "evidence verify --directory . --output o --events absent --key {key}",
];

#[test]
fn missing_input_has_one_exit_status_and_one_form_of_message() {
    let directory = place();
    let policy = "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n- level: Metadata\n";
    std::fs::write(directory.path().join("policy.yaml"), policy).unwrap();
    let made = run("evidence keygen --origin test --out key", directory.path());
    made.assert(0, &[]);
    for line in MISSING {
        let line = line.replace("{key}", made.stdout.trim());
        let said = run(&line, directory.path());
        said.assert_refused(": No such file or directory (os error 2)\n");
        assert!(said.stderr.starts_with("absent: cannot read "), "{line}: {said:?}");
        assert_eq!(said.stderr.lines().count(), 1, "{line}: {said:?}");
    }
    // `doctor` continues without the file, and its verdict says that the file is missing.
    let line = "doctor --relay http://127.0.0.1:1 --apiserver absent --interval 0s";
    run(line, directory.path()).assert(2, &["absent: No such file or directory"]);
}

#[test]
fn a_directory_without_evidence_is_wrong_usage_too() {
    let directory = place();
    for line in ["evidence show .", "evidence prove . --position 1"] {
        run(line, directory.path()).assert_refused("holds no evidence");
    }
}

#[test]
fn a_name_with_control_characters_is_printed_without_them() {
    let file = "absent\u{1b}[31m";
    for words in [&["check", file][..], &["queue", "inspect", file], &["migrate", "haproxy", file]]
    {
        said(words, Path::new("/")).assert_refused("absent\\u{1b}[31m: cannot read ");
    }
}

#[test]
fn check_says_where_events_wait_and_go_without_the_secrets_of_the_config() {
    let directory = TempDir::new().unwrap();
    let at = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(at("token"), "s3cr3t\n").unwrap();
    let config = format!(
        "[[listener]]\naddress = \"127.0.0.1:3000\"\npath_prefix = \"/audit\"\n\
         [[output]]\nname = \"web\"\ntype = \"http\"\nbearer_token_file = \"{token}\"\n\
         urls = [\"https://a.example/${{file:{token}}}?key=s3cr3t\", \"https://[2001:db8::1]:8443/\"]\n\
         proxy = \"http://me:s3cr3t@proxy.example:3128\"\n\
         [[output]]\nname = \"lines\"\ntype = \"tcp\"\naddresses = [\"b.example:5000\"]\n\
         required = false\nfilter = {{ match = [{{ verbs = [\"create\"] }}] }}\n\
         [queue]\ndirectory = \"{}\"\nmax_bytes = \"2GiB\"\nwhen_full = \"drop_oldest\"\n",
        at("queue"),
        token = at("token"),
    );
    std::fs::write(at("relay.toml"), config).unwrap();
    let Said { code, stdout, stderr: said } = run("check relay.toml", directory.path());
    assert_eq!((code, stdout.as_str()), (Some(0), ""), "{said}");
    let rows: Vec<Vec<&str>> = said
        .lines()
        .map(|line| line.split("  ").map(str::trim).filter(|it| !it.is_empty()))
        .map(Iterator::collect)
        .collect();
    let queue = format!(
        "on disk in {}; 200 once synced to disk; when full: the oldest events are dropped",
        at("queue")
    );
    let expected: [&[&str]; 7] = [
        &["relay.toml"],
        &["queue", "2GiB", &queue],
        &[
            "output",
            "web",
            "http https://a.example:443, https://[2001:db8::1]:8443, through the proxy \
             http://proxy.example:3128",
        ],
        &["output", "lines", "tcp b.example:5000"],
        &["warnings", "0"],
        &["not tested", "connections", "--connect tests them"],
        &["ok: 1 listener, 2 outputs"],
    ];
    assert_eq!(rows, expected, "{said}");
    assert!(!said.contains("s3cr3t"), "{said}");
}
