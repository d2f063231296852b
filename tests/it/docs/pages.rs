//! The documents: the README, the pages of `docs/` and the files beside them. Their configs pass
//! `check`, their commands exist, and the files that they name are in the repository.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Component;

use super::reference::subcommands;
use crate::support::files;
use crate::support::prelude::*;

pub(crate) struct Page {
    /// The path below the repository's root, such as `docs/start.md`.
    pub(crate) path: String,
    pub(crate) text: String,
}

/// A code block on a page: the word after the three backticks, and the lines.
pub(crate) struct Block {
    pub(crate) language: String,
    pub(crate) code: String,
}

impl Page {
    pub(crate) fn read(path: &str) -> Self {
        Self::read_in(&repository(), path)
    }

    /// Reads a page of a copy of the repository. What `deploy/published.sh` has hidden is left out:
    /// its lines are empty.
    pub(crate) fn read_in(root: &Path, path: &str) -> Self {
        let text = std::fs::read_to_string(root.join(path));
        let text = text.unwrap_or_else(|error| panic!("{path}: {error}"));
        let (mut shown, mut is_hidden) = (String::with_capacity(text.len()), false);
        for line in text.lines() {
            is_hidden |= line.trim_start().starts_with("<!-- If ") && line.ends_with(", hidden");
            shown.push_str(if is_hidden { "" } else { line });
            shown.push('\n');
            is_hidden &= line.trim_start() != "End if -->";
        }
        assert!(!is_hidden, "{path}: a hidden part has no end");
        Self { path: path.to_owned(), text: shown }
    }

    /// Returns the lines that are not in a code block, each with its number.
    pub(crate) fn prose(&self) -> impl Iterator<Item = (usize, &str)> {
        let mut in_code = false;
        self.text.lines().enumerate().filter_map(move |(index, line)| {
            let fence = line.trim_start().starts_with("```");
            in_code ^= fence;
            (!fence && !in_code).then_some((index + 1, line))
        })
    }

    pub(crate) fn blocks(&self) -> Vec<Block> {
        let mut blocks = Vec::new();
        let mut open: Option<(usize, Block)> = None;
        for line in self.text.lines() {
            let indent = line.len() - line.trim_start().len();
            match (&mut open, line.trim_start().strip_prefix("```")) {
                (None, None) => {}
                (None, Some(language)) => {
                    let language = language.to_owned();
                    open = Some((indent, Block { language, code: String::new() }));
                }
                (Some((indent, block)), None) => {
                    block.code.push_str(line.get(*indent..).unwrap_or_default());
                    block.code.push('\n');
                }
                (Some(_), Some(_)) => blocks.extend(open.take().map(|(_, block)| block)),
            }
        }
        assert!(open.is_none(), "{}: a block of code has no end", self.path);
        blocks
    }

    /// Returns the anchors of the headings. The second of two equal headings gets the suffix `-1`.
    pub(crate) fn anchors(&self) -> BTreeSet<String> {
        let mut count = BTreeMap::new();
        let headings = self.prose().filter(|(_, line)| line.starts_with('#'));
        let anchors = headings.map(|(_, line)| anchor(line.trim_start_matches('#').trim()));
        anchors
            .map(|anchor| {
                let before = count.entry(anchor.clone()).or_insert(0);
                *before += 1;
                if *before == 1 { anchor } else { format!("{anchor}-{}", *before - 1) }
            })
            .collect()
    }

    /// Returns the targets of the links and pictures.
    pub(crate) fn links(&self) -> Vec<&str> {
        let targets = self.prose().flat_map(|(_, line)| line.split("](").skip(1));
        targets.filter_map(|rest| rest.split(')').next()).collect()
    }

    /// Returns the path below the repository's root that a link of this page leads to.
    pub(crate) fn resolve(&self, link: &str) -> PathBuf {
        let mut path = PathBuf::from(&self.path);
        path.pop();
        for part in Path::new(link).components() {
            match part {
                Component::ParentDir => assert!(path.pop(), "{}: {link}", self.path),
                Component::CurDir => {}
                Component::Normal(_) | Component::RootDir | Component::Prefix(_) => path.push(part),
            }
        }
        path
    }
}

/// Returns the documents for people: the Markdown files in the root, `docs/`, `examples/` and
/// `benches/`.
pub(crate) fn pages() -> Vec<Page> {
    let rooms = ["docs/", "examples/", "benches/"];
    let is_page = |path: &&String| {
        let in_a_room = rooms.iter().any(|room| path.starts_with(room));
        path.ends_with(".md") && (in_a_room || !path.contains('/'))
    };
    let pages: Vec<Page> = files().iter().filter(is_page).map(|path| Page::read(path)).collect();
    assert!(pages.len() > 50, "{}", pages.len());
    pages
}

/// Returns GitHub's anchor for a heading.
fn anchor(heading: &str) -> String {
    let kept = |char: &char| char.is_alphanumeric() || matches!(char, ' ' | '-' | '_');
    heading.to_lowercase().chars().filter(kept).collect::<String>().replace(' ', "-")
}

#[test]
fn the_readme_and_the_page_about_destinations_name_every_shipped_config() {
    let shipped: BTreeSet<String> = std::fs::read_dir(repository().join("config"))
        .unwrap()
        .map(|entry| format!("config/{}", entry.unwrap().file_name().into_string().unwrap()))
        .collect();
    let pages = ["README.md", "docs/destinations/choose.md"].map(Page::read);
    let links = pages.iter().flat_map(|page| page.links().into_iter().map(|it| page.resolve(it)));
    let named: BTreeSet<String> = links
        .map(|link| text(&link).to_owned())
        .filter(|link| link.starts_with("config/") && link.ends_with(".toml"))
        .collect();
    assert_eq!(named, shipped);
}

/// Method: a listener and an output are put before each TOML block on a page. `check --elsewhere`
/// must find no error in this config. The files that it names are missing here, which is only a
/// warning.
#[test]
fn every_config_on_a_page_passes_check() {
    let directory = TempDir::new().unwrap();
    let mut count = 0;
    for page in pages() {
        for block in page.blocks().into_iter().filter(|block| block.language == "toml") {
            count += 1;
            // The program must know the type: `./test kafka` checks this one.
            if block.code.contains("type = \"kafka\"") && !cfg!(feature = "kafka") {
                continue;
            }
            let before = "[[listener]]\naddress = \"127.0.0.1:0\"\n\
                          [[output]]\nname = \"before\"\ntype = \"tcp\"\naddresses = [\"127.0.0.1:9\"]\n";
            let config = format!("{before}{}", block.code);
            std::fs::write(directory.path().join("page.toml"), &config).unwrap();
            let said = said(&["check", "--elsewhere", "page.toml"], directory.path());
            assert_eq!(said.code, Some(0), "{}:\n{config}\n{said:#?}", page.path);
        }
    }
    assert!(count >= 15, "{count}");
}

/// Returns the program's commands in a shell block: the words after its name, up to the end of the
/// command.
fn invocations(code: &str) -> Vec<Vec<String>> {
    let joined = code.replace("\\\n", " ");
    let mut found = Vec::new();
    for line in joined.lines() {
        for part in line.split("kube-audit-forwarder ").skip(1) {
            // A comment, a pipe or a list ends the command.
            let command = part.split([';', '|', '>', '&', '#', ')', '\'']).next().unwrap_or(part);
            let words: Vec<String> = command.split_whitespace().map(str::to_owned).collect();
            found.push(words);
        }
    }
    found
}

#[test]
fn invocations_are_found_in_a_block_of_shell() {
    let code = "a | kube-audit-forwarder replay - \\\n  --url URL --resume F   # why\n\
                source <(kube-audit-forwarder completions bash)\n";
    let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let wanted = [words("replay - --url URL --resume F"), words("completions bash")];
    assert_eq!(invocations(code), wanted);
}

#[test]
fn the_commands_on_the_pages_exist_with_their_options() {
    let mut helps: BTreeMap<Vec<String>, String> = BTreeMap::new();
    let mut help = |command: &[&str]| {
        let key: Vec<String> = command.iter().map(|&word| word.to_owned()).collect();
        let ask = || {
            let said = said(&[command, &["--help"]].concat(), &repository());
            said.assert(0, &[]);
            said.stdout
        };
        helps.entry(key).or_insert_with(ask).clone()
    };
    let commands = subcommands(&help(&[]));
    let mut count = 0;
    for page in pages() {
        let shell = page.blocks().into_iter().filter(|block| block.language == "sh");
        for words in shell.flat_map(|block| invocations(&block.code)) {
            // `kubectl … deployment/kube-audit-forwarder`, for example, does not run the program.
            let Some(command) = words.first().filter(|word| commands.contains(word)) else {
                continue;
            };
            count += 1;
            let sub = subcommands(&help(&[command]));
            let path: Vec<&str> = match words.get(1).filter(|word| sub.contains(word)) {
                Some(second) => vec![command, second],
                None => vec![command],
            };
            assert!(sub.is_empty() || path.len() == 2, "{}: {words:?}", page.path);
            let help = help(&path);
            for option in words.iter().filter(|word| word.starts_with("--")) {
                assert!(help.contains(&**option), "{}: {words:?}: {option}", page.path);
            }
        }
    }
    assert!(count >= 20, "{count}");
}

/// Method: the config of the first page is written to a file. The page's commands for it are run.
#[test]
fn the_commands_of_the_first_page_do_what_it_says() {
    let page = Page::read("docs/start.md");
    let blocks = page.blocks();
    let config = blocks.iter().find(|block| block.language == "toml").expect("a config");
    let directory = TempDir::new().unwrap();
    std::fs::write(directory.path().join("relay.toml"), &config.code).unwrap();
    for line in [
        "kube-audit-forwarder check relay.toml --elsewhere ",
        "kube-audit-forwarder config --config relay.toml ",
    ] {
        assert!(blocks.iter().any(|block| block.code.contains(line)), "{line}");
        let words: Vec<&str> = line.split_whitespace().skip(1).collect();
        said(&words, directory.path()).assert(0, &[]);
    }
    let said = said(&["check", "relay.toml", "--elsewhere"], directory.path()).stderr;
    // A user who cannot create the queue's directory gets a warning.
    let (_, said) = said.split_once("relay.toml\n").unwrap();
    let said = said.replace("warnings    1", "warnings    0");
    assert!(page.text.contains(&format!("\n```text\nrelay.toml\n{said}```\n")), "{said}");
}

#[test]
fn the_batches_on_the_pages_are_in_the_repository() {
    let mut count = 0;
    for page in pages() {
        for block in page.blocks() {
            let words = block.code.split([' ', '\n', '@']);
            for file in words.filter(|word| word.starts_with("tests/")) {
                count += 1;
                assert!(repository().join(file).is_file(), "{}: {file}", page.path);
            }
        }
    }
    assert!(count >= 3, "{count}");
}

#[test]
fn what_the_pages_name_of_deploy_is_there() {
    let pages = pages();
    let mut named: BTreeSet<&str> = BTreeSet::new();
    for page in &pages {
        let words = page.text.split(['(', ')', '`', ' ', '\n', ';', ':', ',', '=', '[', ']']);
        let words = words.map(|word| word.trim_end_matches('.'));
        named.extend(words.filter(|word| word.starts_with("deploy/")));
    }
    for expected in ["deploy/base", "deploy/certificate.sh", "deploy/overlays/ibm-openshift"] {
        assert!(named.contains(expected), "{named:?}");
    }
    // Only the person who makes the releases has their key, and commits its public half before the
    // first one (CONTRIBUTING.md, "Make a release"). The same commit deletes this exception.
    let key = "deploy/release.pub";
    assert!(!repository().join(key).exists(), "{key} is there: delete its exception here");
    assert!(named.remove(key), "the pages say where the key of releases is");
    for path in named {
        assert!(repository().join(path).exists(), "{path}");
    }
    // deploy/test/manifests.py checks that the Services of deploy/base answer at these URLs.
    let page = Page::read("docs/operating/webhook.md");
    for service in ["kube-audit-forwarder", "https:kube-audit-forwarder-https:https"] {
        let url = format!(
            "https://127.0.0.1:2040/api/v1/namespaces/ibm-kube-audit/services/{service}/proxy/post"
        );
        assert!(page.text.contains(&url), "{url}");
    }
}

#[test]
fn the_pictures_on_the_pages_are_there_and_small() {
    let mut pictures = BTreeSet::new();
    for page in pages() {
        let links = page.links().into_iter().filter(|link| link.ends_with(".png"));
        pictures.extend(links.map(|link| page.resolve(link)));
    }
    assert!(pictures.len() >= 3, "{pictures:?}");
    for picture in pictures {
        let bytes = std::fs::metadata(repository().join(&picture))
            .unwrap_or_else(|error| panic!("{picture:?}: {error}"))
            .len();
        assert!(bytes < 150_000, "{picture:?}: {bytes} bytes");
    }
}

/// Method: each crate must be on the map, with types that it declares, and each file on the map
/// must exist.
#[test]
fn the_code_map_names_every_crate_and_only_what_exists() {
    let map = Page::read("docs/internals/code-map.md");
    let named: BTreeSet<&str> = map
        .text
        .split(['`', '|', ' '])
        .filter(|word| word.contains("src/") && word.ends_with(".rs"))
        .collect();
    for path in &named {
        assert!(repository().join(path).is_file(), "{path} is on the code map, and gone");
    }
    // In the second table, a row without a crate is about the crate of the row above it.
    let (_, decides) = map.text.split_once("| crate | you want to know | file |\n").unwrap();
    let mut of_crate = "";
    for row in decides.lines().skip(1) {
        let [_, name, _, list, _] = row.split('|').collect::<Vec<_>>()[..] else { panic!("{row}") };
        of_crate = name.split('`').nth(1).unwrap_or(of_crate);
        for file in list.split('`').skip(1).step_by(2).filter(|file| !file.contains("src/")) {
            let path = format!("crates/{of_crate}/src/{file}");
            assert!(repository().join(&path).is_file(), "{path} is on the code map, and gone");
        }
    }
    for folder in std::fs::read_dir(repository().join("crates")).unwrap() {
        let name = folder.unwrap().file_name().into_string().unwrap();
        let row = map.text.lines().find(|line| line.starts_with(&format!("| `{name}` |")));
        let row = row.unwrap_or_else(|| panic!("the crate {name} is not on the code map"));
        let types = row.trim_end_matches(" |").rsplit(" | ").next().unwrap_or_default();
        let of_crate = format!("crates/{name}/src/");
        let sources = files().into_iter().filter(|path| path.starts_with(&of_crate));
        let text: String =
            sources.map(|path| std::fs::read_to_string(repository().join(path)).unwrap()).collect();
        for word in types.split('`').skip(1).step_by(2) {
            let kinds = ["struct", "enum", "trait", "type", "const"];
            let is_there = kinds.iter().any(|kind| text.contains(&format!("{kind} {word}")));
            assert!(is_there, "the crate {name} has no {word}");
        }
    }
}

/// Method: the messages that a page quotes must be in the sources. These are all that the runbook
/// of lost events lists, and those about reloads.
#[test]
fn the_log_says_what_the_pages_quote() {
    let source = |path: &str| std::fs::read_to_string(repository().join(path)).unwrap();
    let reports = source("crates/telemetry/src/reports.rs");
    let runbook = Page::read("docs/runbooks/KubeAuditForwarderEventsLost.md");
    let (_, table) = runbook.text.split_once("| the log says |").unwrap();
    let cells = table.lines().filter_map(|line| line.strip_prefix("| ")?.split(" |").next());
    let quoted: Vec<&str> = cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect();
    assert!(quoted.len() >= 9, "{quoted:?}");
    for message in quoted {
        let message = message.trim_end_matches(" …");
        assert!(reports.contains(message), "the log does not say {message:?}");
    }
    let reload = source("crates/relay/src/reload.rs");
    for (page, message) in [
        ("docs/operating/troubleshooting.md", "config not reloaded"),
        ("docs/operating/troubleshooting.md", "has changed: restart the relay to apply it"),
        ("docs/operating/reload.md", "has changed: restart the relay to apply it"),
        ("docs/runbooks/KubeAuditForwarderReloadFailed.md", "config not reloaded"),
    ] {
        assert!(reload.contains(message), "the log does not say {message:?}");
        assert!(Page::read(page).text.contains(message), "{page} does not quote {message:?}");
    }
}

#[test]
fn nothing_in_the_repository_points_outside_of_it() {
    let outside = ["..", "shared"].join("/");
    for file in files() {
        let bytes = std::fs::read(repository().join(&file)).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        assert!(!text.contains(&outside), "{file} refers to {outside}");
    }
}
