//! The pages `docs/reference/config.md` and `docs/reference/commands.md`, and parts of other pages,
//! are generated from the program's output. After a change of a key or a command, generate them
//! again:
//!
//! ```text
//! KUBE_AUDIT_FORWARDER_BLESS=1 ./test it docs::
//! ```

use std::collections::BTreeSet;
use std::fmt::Write as _;

use crate::support::generated::{assert_file, assert_part, wrapped};
use crate::support::prelude::*;

/// Returns what the program prints with these arguments and environment variables.
fn printed(arguments: &[&str], variables: &[(&str, &str)]) -> String {
    // No line of a help is wrapped.
    let variables = [variables, &[("COLUMNS", "10000")]].concat();
    let output = run_command_with(arguments, &repository(), &variables);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

const CONFIG_HEAD: &str = "\
# Config

<!-- Generated from the declarations of the keys; do not edit. To write this page again:
KUBE_AUDIT_FORWARDER_BLESS=1 ./test it docs:: -->

The config is one TOML file. This page has a section for each of its tables. `[[name]]` is a table
that can occur several times, each with its own header.

- `kube-audit-forwarder check --config FILE` prints every problem in a file, with line and column.
- `kube-audit-forwarder config --config FILE` prints the file with every default filled in.
- `kube-audit-forwarder config --reference` prints all keys as one table.

A **size** is a number of bytes, or a string with a unit: `\"64MiB\"`, `\"4MB\"`, `\"16KiB\"`. A
**time** is a string with a unit: `\"500ms\"`, `\"10s\"`, `\"5m\"`, `\"24h\"`. Any string may
contain `${env:NAME}`, `${env:NAME:-default}` or `${file:PATH}`; `$${` is a literal `${`.

A key that is **required** must be set. If the *default* column contains words instead of a value,
the key has no default, and the words say how the relay behaves without it. The *types* column lists
the output types that accept the key; if it is empty, all types do. *HTTP* stands for `http`,
`splunk_hec`, `elasticsearch`, `ibm_cloud_logs`, `s3`, `loki` and `otlp`, and *streams* for `tcp`,
`syslog`, `lumberjack` and `relp`.
";

/// Types that the column *types* names together: the word, and the types.
const GROUPS: [(&str, &[&str]); 2] = [
    ("HTTP", &["http", "splunk_hec", "elasticsearch", "ibm_cloud_logs", "s3", "loki", "otlp"]),
    ("streams", &["tcp", "syslog", "lumberjack", "relp"]),
];

/// One row of the table that `config --reference` prints.
struct Row {
    /// For example `output.tls`. Empty for a key outside all tables.
    section: String,
    /// For example `ca`.
    key: String,
    /// For example `http, tcp`. Empty if all types of output have the key, or if no output has it.
    types: String,
    /// The column with this name, like the next two fields.
    kind: String,
    default: String,
    meaning: String,
}

fn row(line: &str) -> Row {
    let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
    let [name, kind, default, meaning] = cells.as_slice() else { panic!("{line}") };
    let (path, types) = name.split_once("` (").unwrap_or((name, ")"));
    let path = path.trim_matches('`');
    let (section, key) = path.rsplit_once('.').unwrap_or(("", path));
    let [section, key, kind, default, meaning] =
        [section, key, kind, default, meaning].map(|text| text.to_owned());
    Row { section, key, types: types.trim_end_matches(')').to_owned(), kind, default, meaning }
}

/// Returns the heading of a section: `` ## `[[output]]` `` or `` ### `[output.tls]` ``.
fn heading(section: &str, rows: &[Row]) -> String {
    if section.is_empty() {
        return "## Top-level keys".to_owned();
    }
    let (outer, name) = section.rsplit_once('.').unwrap_or(("", section));
    let declared = rows.iter().find(|row| row.section == outer && row.key == name);
    let is_array = ["listener", "source", "output"].contains(&section)
        || declared.is_some_and(|row| row.kind.contains("array of tables"));
    let (open, close) = if is_array { ("[[", "]]") } else { ("[", "]") };
    let depth = if outer.is_empty() { "##" } else { "###" };
    format!("{depth} `{open}{section}{close}`")
}

fn rows() -> Vec<Row> {
    printed(&["config", "--reference"], &[]).lines().skip(2).map(row).collect()
}

/// Returns the cell of the column *types*. A group stands for its types if at most one is missing.
fn types_cell(types: &str) -> String {
    let mut rest: Vec<&str> = types.split(", ").filter(|it| !it.is_empty()).collect();
    let mut cell = Vec::new();
    for (word, group) in GROUPS {
        let missing: Vec<&str> = group.iter().copied().filter(|it| !rest.contains(it)).collect();
        match missing[..] {
            [] => cell.push(word.to_owned()),
            [one] => cell.push(format!("{word} except {one}")),
            _ => continue,
        }
        rest.retain(|it| !group.contains(it));
    }
    cell.extend(rest.into_iter().map(str::to_owned));
    cell.join(", ")
}

/// Returns the row of this key in a section, if it says the same except for the default.
fn same<'r>(rows: &'r [Row], section: &str, row: &Row) -> Option<&'r Row> {
    let mut of_section = rows.iter().filter(|it| it.section == section && it.key == row.key);
    of_section.find(|it| it.kind == row.kind && it.meaning == row.meaning)
}

/// Returns the section before this one that describes most of its keys: `filter` for
/// `output.filter`, `listener.tls` for `admin.tls`.
fn twin<'r>(rows: &'r [Row], section: &str) -> Option<&'r str> {
    let (_, tail) = section.split_once('.')?;
    let own: Vec<&Row> = rows.iter().filter(|row| row.section == section).collect();
    let earlier = rows.iter().map(|row| row.section.as_str()).take_while(|it| *it != section);
    let is_like = |it: &&str| *it == tail || it.split_once('.').is_some_and(|it| it.1 == tail);
    let described = |it: &&str| own.iter().filter(|row| same(rows, it, row).is_some()).count();
    earlier.filter(is_like).max_by_key(described).filter(|it| described(it) > 0)
}

fn config_page() -> String {
    let rows = rows();
    let mut page = CONFIG_HEAD.to_owned();
    for of_section in rows.chunk_by(|one, next| one.section == next.section) {
        let section = &of_section[0].section;
        write!(page, "\n{}\n", heading(section, &rows)).unwrap();
        let mut left: Vec<(&Row, String)> =
            of_section.iter().map(|row| (row, row.meaning.clone())).collect();
        if section == "output" {
            left.retain(|(row, _)| row.types.is_empty() || row.types.contains(", "));
        }
        if let Some(twin) = twin(&rows, section) {
            let link = heading(twin, &rows);
            let name = link.trim_start_matches('#').trim();
            let link = format!("[{name}](#{})", twin.replace('.', ""));
            let mut keys = Vec::new();
            left.retain_mut(|(row, meaning)| match same(&rows, twin, row) {
                Some(it) if it.default == row.default => {
                    keys.push(format!("`{}`", row.key));
                    false
                }
                Some(_) => {
                    *meaning = format!("as in {name}");
                    true
                }
                None => true,
            });
            let keys = keys.join(", ");
            page += &wrapped(&format!("\nAs in {link}: {keys}."), "");
        }
        let has_types = section == "output" || section.starts_with("output.");
        if !left.is_empty() {
            let [name, line] = if has_types { [" types |", "---|"] } else { ["", ""] };
            write!(page, "\n| key |{name} kind | default | meaning |\n").unwrap();
            writeln!(page, "|---|{line}---|---|---|").unwrap();
        }
        let mut said = BTreeSet::new();
        for (Row { key, types, kind, default, .. }, meaning) in left {
            let types = if has_types { format!(" {} |", types_cell(types)) } else { String::new() };
            let is_said = !said.insert((key, meaning.clone()));
            let meaning = if is_said { "as above".to_owned() } else { meaning };
            writeln!(page, "| `{key}` |{types} {kind} | {default} | {meaning} |").unwrap();
        }
        if section == "output" {
            page += OF_ONE_TYPE;
        }
    }
    page
}

const OF_ONE_TYPE: &str = "
A key that only one type has is on [the page of the type](../destinations/choose.md).
";

/// Returns the table of the keys that only this output type has.
fn keys_of(rows: &[Row], of: &str) -> String {
    let mut keys = String::new();
    for row in rows.iter().filter(|row| row.section == "output" && row.types == of) {
        let Row { key, kind, default, meaning, .. } = row;
        writeln!(keys, "| `{key}` | {kind} | {default} | {meaning} |").unwrap();
    }
    if !keys.is_empty() {
        keys = format!("| key | kind | default | meaning |\n|---|---|---|---|\n{keys}\n");
    }
    keys + "[Config](../reference/config.md#output) describes the keys that other types have too.\n"
}

const COMMANDS_HEAD: &str = "\
# Commands

<!-- Generated from the declarations of the commands; do not edit. To write this page again:
KUBE_AUDIT_FORWARDER_BLESS=1 ./test it docs:: -->

`kube-audit-forwarder COMMAND --help` prints a command's options and examples. `man` prints them all
as a man page, and the book that `docs/build.sh` builds has them below this list.

| command | what it does |
|---|---|
";

/// Returns the names below `Commands:` in a help text, except `help`.
pub(crate) fn subcommands(help: &str) -> Vec<String> {
    let Some((_, list)) = help.split_once("\nCommands:\n") else { return Vec::new() };
    let names = list.lines().take_while(|line| !line.is_empty());
    let names = names.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let names = names.filter_map(|line| line.split_whitespace().next());
    names.filter(|name| *name != "help").map(str::to_owned).collect()
}

/// Returns the help of each command that does something itself, with its name, such as
/// `queue inspect`. The first is that of the program, with an empty name.
pub(crate) fn helps() -> Vec<(String, String)> {
    let mut helps = Vec::new();
    add_helps(&mut helps, &[]);
    helps
}

/// Adds the help of the command with this path, or those of its subcommands.
fn add_helps(helps: &mut Vec<(String, String)>, path: &[&str]) {
    // The help shows the value of this variable.
    let variables = [("KUBE_AUDIT_FORWARDER_CONFIG", "")];
    let help = printed(&[path, &["--help"]].concat(), &variables);
    let name = path.join(" ");
    assert!(help.contains("\nExamples:\n"), "{name} has no row in src/cli/examples.txt");
    let subcommands = subcommands(&help);
    if path.is_empty() || subcommands.is_empty() {
        helps.push((name, help));
    }
    for subcommand in subcommands {
        add_helps(helps, &[path, &[&subcommand]].concat());
    }
}

#[test]
fn the_page_of_the_config_has_the_keys_that_the_program_prints() {
    assert_file("docs/reference/config.md", &config_page());
}

#[test]
fn the_page_of_each_type_of_output_has_the_keys_of_the_type() {
    let rows = rows();
    let declared = rows.iter().find(|row| row.section == "output" && row.key == "type");
    let types = declared.expect("an output has a type").kind.split('"').skip(1).step_by(2);
    for of in types {
        assert_part(&format!("docs/destinations/{of}.md"), &keys_of(&rows, of));
    }
}

/// Method: the page has the first paragraph of each help, and `docs/build.sh` adds the rest.
#[test]
fn the_page_of_commands_lists_each_command_with_what_it_does() {
    let mut page = COMMANDS_HEAD.to_owned();
    for (name, help) in helps().iter().filter(|(name, _)| !name.is_empty()) {
        let about = help.split("\n\n").next().unwrap_or_default().replace('\n', " ");
        writeln!(page, "| `{name}` | {} |", about.trim()).unwrap();
    }
    for command in ["check", "replay", "queue inspect"] {
        assert!(page.contains(&format!("\n| `{command}` | ")), "{page}");
    }
    assert_file("docs/reference/commands.md", &page);
}

/// Method: the summary of `policy` has a word for each of its commands, also in the list of
/// commands.
#[test]
fn the_help_of_policy_names_its_commands() {
    let words = [("explain", "explain"), ("cost", "count"), ("advise", "suggest")];
    let help = printed(&["policy", "--help"], &[]);
    assert_eq!(subcommands(&help), words.map(|(command, _)| command), "a word for each command");
    let about = help.split("\n\n").next().unwrap_or_default();
    for (command, word) in words {
        assert!(about.to_lowercase().contains(word), "{command}: no {word} in: {about}");
    }
    let list = printed(&["--help"], &[]);
    let row = list.lines().find(|line| line.starts_with("  policy ")).expect("a row");
    assert!(row.contains(about), "{row}");
}
