//! Examples for the help of each command. A test parses each of them, and finds a command without.

use clap::Command;

/// The examples of each command: the path of the command, without the name of the program, and one
/// example a line. Each is a whole command line, which may end with a comment.
const EXAMPLES: &[(&str, &[&str])] = &[
    (
        "",
        &[
            "kube-audit-forwarder                       # listen on 127.0.0.1:3000, print the events",
            "kube-audit-forwarder run --config relay.toml",
            "kube-audit-forwarder check relay.toml",
        ],
    ),
    (
        "run",
        &[
            "kube-audit-forwarder run --config relay.toml",
            "kube-audit-forwarder run                   # the file of KUBE_AUDIT_FORWARDER_CONFIG",
        ],
    ),
    (
        "check",
        &[
            "kube-audit-forwarder check relay.toml",
            "kube-audit-forwarder check relay.toml --connect     # also connect to every consumer",
            "kube-audit-forwarder check relay.toml --elsewhere   # on another machine than the relay's",
        ],
    ),
    (
        "config",
        &[
            "kube-audit-forwarder config --config relay.toml",
            "kube-audit-forwarder config --reference",
        ],
    ),
    ("demo", &["kube-audit-forwarder demo --seconds 10"]),
    (
        "replay",
        &[
            "kube-audit-forwarder replay audit.log --url http://127.0.0.1:3000/",
            "kube-audit-forwarder replay audit-1.log.gz audit.log --url https://relay.example:3443/ --ca ca.crt --rate 500",
            "zcat audit-1.log.gz | kube-audit-forwarder replay - --url http://127.0.0.1:3000/ --on-bad-line skip",
            "kube-audit-forwarder replay /mnt/spool --url http://127.0.0.1:3000/ --resume replay.state",
        ],
    ),
    ("migrate", &["kube-audit-forwarder migrate haproxy haproxy.cfg > relay.toml"]),
    (
        "migrate haproxy",
        &[
            "kube-audit-forwarder migrate haproxy haproxy.cfg > relay.toml",
            "kube-audit-forwarder migrate haproxy --keep-paths /etc/haproxy/haproxy.cfg > relay.toml",
            "kubectl get configmap haproxy -o 'jsonpath={.data.haproxy\\.cfg}' | kube-audit-forwarder migrate haproxy -",
        ],
    ),
    ("queue", &["kube-audit-forwarder queue inspect /var/lib/kube-audit-forwarder"]),
    (
        "queue inspect",
        &[
            "kube-audit-forwarder queue inspect /var/lib/kube-audit-forwarder",
            "kube-audit-forwarder queue inspect --json /var/lib/kube-audit-forwarder",
        ],
    ),
    (
        "queue export",
        &[
            "kube-audit-forwarder queue export /var/lib/kube-audit-forwarder > events.jsonl",
            "kube-audit-forwarder queue export /var/lib/kube-audit-forwarder --output logstash",
        ],
    ),
    ("queue verify", &["kube-audit-forwarder queue verify /var/lib/kube-audit-forwarder"]),
    (
        "evidence",
        &[
            "kube-audit-forwarder evidence keygen --origin example.org/prod/relay-0 --out relay-0.key",
        ],
    ),
    (
        "evidence keygen",
        &[
            "kube-audit-forwarder evidence keygen --origin example.org/prod/relay-0 --out relay-0.key",
        ],
    ),
    (
        "evidence show",
        &[
            "kube-audit-forwarder evidence show /var/lib/kube-audit-forwarder",
            "kube-audit-forwarder evidence show --json /var/lib/kube-audit-forwarder",
        ],
    ),
    (
        "evidence prove",
        &[
            "kube-audit-forwarder evidence prove /var/lib/kube-audit-forwarder --position 4711 > proof",
        ],
    ),
    (
        "evidence copy",
        &["kube-audit-forwarder evidence copy /var/lib/kube-audit-forwarder evidence-2026-11-22"],
    ),
    (
        "evidence verify",
        &[
            "kube-audit-forwarder evidence verify --directory /var/lib/kube-audit-forwarder --key \"$(cat relay-0.vkey)\"",
            "kube-audit-forwarder evidence verify --directory /backup/queue --key \"$(cat relay-0.vkey)\" --output archive --events stored/*.gz",
            "kube-audit-forwarder evidence verify --proof proof --key \"$(cat relay-0.vkey)\"",
        ],
    ),
    ("policy", &["kube-audit-forwarder policy explain --policy audit-policy.yaml audit.log"]),
    (
        "policy explain",
        &[
            "kube-audit-forwarder policy explain --policy audit-policy.yaml event.json",
            "tail -n 20 audit.log | kube-audit-forwarder policy explain --policy audit-policy.yaml -",
        ],
    ),
    (
        "completions",
        &[
            "kube-audit-forwarder completions bash > /etc/bash_completion.d/kube-audit-forwarder",
            "kube-audit-forwarder completions zsh",
        ],
    ),
    (
        "man",
        &[
            "kube-audit-forwarder man | man -l -",
            "kube-audit-forwarder man /usr/local/share/man/man1",
        ],
    ),
    (
        "healthcheck",
        &[
            "kube-audit-forwarder healthcheck http://127.0.0.1:9090",
            "kube-audit-forwarder healthcheck --config relay.toml",
        ],
    ),
    (
        "doctor",
        &[
            "kube-audit-forwarder doctor --kubeconfig admin.conf --relay http://127.0.0.1:9090",
            "kubectl get --raw /metrics | kube-audit-forwarder doctor --apiserver - --relay http://127.0.0.1:9090 --json",
        ],
    ),
    (
        "size",
        &[
            "kube-audit-forwarder size --events-per-second 150 --event-bytes 1430 --outage 12h",
            "kube-audit-forwarder size --events-per-second 20 --event-bytes 2KiB --outage 30m --queue memory --outputs syslog",
            "kube-audit-forwarder size --url http://10.0.0.5:9090 --url http://10.0.0.6:9090 --outage 4h",
            "kube-audit-forwarder size --kubeconfig admin.conf --event-bytes 1430 --interval 0s",
        ],
    ),
    (
        "drain",
        &[
            "kube-audit-forwarder drain http://127.0.0.1:9090 --seconds 300",
            "kube-audit-forwarder drain --config relay.toml",
        ],
    ),
    (
        "top",
        &[
            "kube-audit-forwarder top http://127.0.0.1:9090",
            "kube-audit-forwarder top --once http://127.0.0.1:9090 > report.txt",
        ],
    ),
    (
        "tap",
        &[
            "kube-audit-forwarder tap --config relay.toml --match resource=secrets",
            "kube-audit-forwarder tap http://127.0.0.1:9090 --token-file token --match verb=delete --match 'code>=400'",
            "kube-audit-forwarder tap --config relay.toml --output siem --format json --limit 10",
        ],
    ),
    ("metrics", &["kube-audit-forwarder metrics > metrics.md"]),
];

/// Returns the command with the examples at the end of its help and of the help of each command
/// below it. A command without a row in the table gets none.
pub(super) fn add(command: Command) -> Command {
    add_below(command, "")
}

/// Adds the examples of the command at this path, and of each command below it.
fn add_below(command: Command, path: &str) -> Command {
    let names: Vec<String> =
        command.get_subcommands().map(|below| below.get_name().to_owned()).collect();
    let mut command = match EXAMPLES.iter().find(|(name, _)| *name == path) {
        Some((_, lines)) => command.after_help(text(lines)),
        None => command,
    };
    for name in names {
        let path = if path.is_empty() { name.clone() } else { format!("{path} {name}") };
        command = command.mut_subcommand(name, |below| add_below(below, &path));
    }
    command
}

/// Returns the last part of a help.
fn text(lines: &[&str]) -> String {
    let lines: String = lines.iter().map(|line| format!("\n  {line}")).collect();
    format!("Examples:{lines}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the words of the command in a line for a shell: behind the last `|`, before a `>` or
    /// a comment, and without the quotes.
    fn words(line: &str) -> Vec<String> {
        let line = line.rsplit(" | ").find(|part| part.starts_with("kube-audit-forwarder"));
        let line = line.expect("the program");
        let line = line.split(" > ").next().unwrap().split(" # ").next().unwrap();
        let line = line.replace("\"$(cat relay-0.vkey)\"", "example.org+0123abcd+AQ==");
        line.split_whitespace().map(str::to_owned).collect()
    }

    /// Collects the path of each command, also of hidden ones.
    fn paths(command: &Command, path: &str, found: &mut Vec<String>) {
        found.push(path.to_owned());
        for below in command.get_subcommands() {
            paths(below, format!("{path} {}", below.get_name()).trim(), found);
        }
    }

    #[test]
    fn each_command_has_an_example_and_each_example_is_right() {
        let command = super::super::command();
        let mut found = Vec::new();
        paths(&command, "", &mut found);
        assert!(found.len() > 20, "{found:?}");
        for path in &found {
            let row = EXAMPLES.iter().find(|(name, _)| name == path);
            let (_, lines) = row.unwrap_or_else(|| panic!("`{path}` has no example"));
            assert!(!lines.is_empty(), "`{path}` has no example");
            for line in *lines {
                let words = words(line);
                let called = path.split_whitespace().all(|name| words.iter().any(|it| it == name));
                assert!(called, "{line} is no example of `{path}`");
                let parsed = command.clone().try_get_matches_from(&words);
                assert!(parsed.is_ok(), "{line}: {}", parsed.unwrap_err());
            }
            let mut of_path = command.clone();
            of_path.build();
            let mut below = &mut of_path;
            for name in path.split_whitespace() {
                below = below.find_subcommand_mut(name).expect("a command");
            }
            let help = below.render_long_help().to_string();
            assert!(help.contains(&format!("Examples:\n  {}", lines[0])), "{path}: {help}");
        }
        for (name, _) in EXAMPLES {
            assert!(found.iter().any(|path| path == name), "there is no command `{name}`");
        }
    }
}
