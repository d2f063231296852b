//! The help of each command: its width, its examples, and the groups in the list of all commands. A
//! test parses each example, and fails if a command has none.

use std::io;

use clap::Command;

/// The commands in groups, each with its heading. `help` is clap's own.
const GROUPS: [(&str, &[&str]); 5] = [
    ("Run a relay", &["run", "check", "config", "demo"]),
    ("Look at a running relay", &["top", "healthcheck", "doctor", "volume", "tap", "drain"]),
    ("Move in, and choose events", &["migrate", "replay", "policy"]),
    ("Look at stored events, and prove", &["queue", "evidence"]),
    ("Learn and install", &["help", "completions", "man", "version"]),
];

/// The width of the help in columns where there is no terminal. The variable COLUMNS can set
/// another one.
const COLUMNS: usize = 80;

/// The width in columns below which no text is wrapped.
const COLUMNS_MIN: usize = 40;

/// The examples of the whole program.
const FIRST: &[&str] = &[
    "kube-audit-forwarder      # listen on 127.0.0.1:3000, print the events",
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
/// below it, and with the list of commands in groups.
pub(super) fn add(command: Command) -> Command {
    let terminal = rustix::termios::tcgetwinsize(io::stdout()).map_or(0, |it| it.ws_col);
    let set = || std::env::var("COLUMNS").ok().and_then(|text| text.parse().ok());
    let width = match terminal {
        0 => set().unwrap_or(COLUMNS),
        columns => usize::from(columns),
    };
    add_below(command, "", width.max(COLUMNS_MIN))
}

/// Returns the list of all commands in groups, wrapped to `width` columns.
fn grouped(command: &Command, width: usize) -> String {
    let names = || GROUPS.iter().flat_map(|(_, names)| names.iter());
    let begin = names().map(|name| name.len()).max().unwrap_or_default() + 4;
    let mut list = String::new();
    for (heading, names) in GROUPS {
        list += &format!("\n {heading}");
        for name in names {
            let about = command.find_subcommand(name).and_then(Command::get_about);
            let about = about.map_or_else(|| HELP.to_owned(), ToString::to_string);
            let mut line = format!("  {name:<rest$}", rest = begin - 2);
            for word in about.split_whitespace() {
                if line.len() > begin && line.len() + word.len() >= width {
                    list += &format!("\n{}", line.trim_end());
                    line = " ".repeat(begin);
                }
                line += &format!("{word} ");
            }
            list += &format!("\n{}", line.trim_end());
        }
    }
    list
}

/// The text about the command `help`, as clap has it, which adds the command later.
const HELP: &str = "Print this message or the help of the given subcommand(s)";

/// Adds the examples of the command at this path, and of each command below it.
fn add_below(command: Command, path: &str, width: usize) -> Command {
    let names: Vec<String> =
        command.get_subcommands().map(|below| below.get_name().to_owned()).collect();
    let lines = examples(path, !names.is_empty());
    let lines: String = lines.iter().map(|line| format!("\n  {line}")).collect();
    let examples = format!("Examples:{lines}");
    // clap would wrap the examples if they were not in the template. It loses nested braces there.
    // The man pages have no template.
    let arguments = match path {
        "" => format!("Commands:{}\n\nOptions:\n{{options}}", grouped(&command, width)),
        _ => "{all-args}".to_owned(),
    };
    let template = format!(
        "{{about-with-newline}}\n{{usage-heading}} {{usage}}\n\n{arguments}\n\n{examples}\n"
    );
    let mut command = command.after_help(examples).help_template(template).term_width(width);
    for name in names {
        let path = if path.is_empty() { name.clone() } else { format!("{path} {name}") };
        command = command.mut_subcommand(name, |below| add_below(below, &path, width));
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_is_in_one_group() {
        let all = super::super::command();
        let mut names: Vec<_> = all.get_subcommands().map(Command::get_name).collect();
        names.push("help");
        let mut grouped: Vec<_> = GROUPS.iter().flat_map(|(_, names)| *names).copied().collect();
        names.sort_unstable();
        grouped.sort_unstable();
        assert_eq!(grouped, names);
    }

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
            assert!(
                help.contains(&format!("Examples:\n  {}", lines.join("\n  "))),
                "{path}: {help}"
            );
        }
        for line in EXAMPLES.lines() {
            assert!(shown.contains(&line), "{line} is an example of no command");
        }
    }
}
