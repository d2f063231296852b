//! Examples for the help of each command. A test parses each example, and fails if a command has
//! none.

use clap::Command;

/// The examples of the whole program.
const FIRST: &[&str] = &[
    "kube-audit-forwarder                       # listen on 127.0.0.1:3000, print the events",
    "kube-audit-forwarder run --config relay.toml",
    "kube-audit-forwarder check relay.toml",
];

/// The examples of all commands. Each is a whole command line, which may end with a comment.
const EXAMPLES: &str = include_str!("examples.txt");

/// Returns the examples of the command at this path: all examples that call the command, but only
/// the first example if the command is a group of commands.
fn examples(path: &str, is_group: bool) -> Vec<&'static str> {
    if path.is_empty() {
        return FIRST.to_vec();
    }
    let called = format!("kube-audit-forwarder {path} ");
    let calls = EXAMPLES.lines().filter(|line| line.contains(&called));
    calls.take(if is_group { 1 } else { usize::MAX }).collect()
}

/// Returns the command with the examples at the end of its help and of the help of each command
/// below it.
pub(super) fn add(command: Command) -> Command {
    add_below(command, "")
}

/// Adds the examples of the command at this path, and of each command below it.
fn add_below(command: Command, path: &str) -> Command {
    let names: Vec<String> =
        command.get_subcommands().map(|below| below.get_name().to_owned()).collect();
    let lines = examples(path, !names.is_empty());
    let lines: String = lines.iter().map(|line| format!("\n  {line}")).collect();
    let mut command = command.after_help(format!("Examples:{lines}"));
    for name in names {
        let path = if path.is_empty() { name.clone() } else { format!("{path} {name}") };
        command = command.mut_subcommand(name, |below| add_below(below, &path));
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the words of the last call of the program in a line for a shell, without a
    /// redirection, a comment and quotes.
    fn words(line: &str) -> Vec<String> {
        let line = line.rsplit(" | ").find(|part| part.starts_with("kube-audit-forwarder"));
        let line = line.expect("the program");
        let line = line.split(" > ").next().unwrap().split(" # ").next().unwrap();
        let line = line.replace("\"$(cat relay-0.vkey)\"", "example.org+0123abcd+AQ==");
        // Each part with an odd index is between two quotes.
        let parts = line.split('\'').enumerate().flat_map(|(index, part)| match index % 2 {
            0 => part.split_whitespace().collect(),
            _ => vec![part],
        });
        parts.map(str::to_owned).collect()
    }

    /// Collects the path of each command, also of hidden ones, and whether it is a group.
    fn paths(command: &Command, path: &str, found: &mut Vec<(String, bool)>) {
        found.push((path.to_owned(), command.has_subcommands()));
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
        let mut shown = Vec::new();
        for (path, is_group) in &found {
            let lines = examples(path, *is_group);
            assert!(!lines.is_empty(), "`{path}` has no example");
            shown.extend_from_slice(&lines);
            for line in &lines {
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
        for line in EXAMPLES.lines() {
            assert!(shown.contains(&line), "{line} is an example of no command");
        }
    }
}
