//! The commands in the README and docs/start.md that fetch the program and show it at work are run
//! as written: those of a clone, and those of a release, as if there were one. Stand-ins for
//! podman, sudo, git and the network refuse all other arguments. The commands that need a cluster
//! are run by deploy/test/chart.py, deploy/test/manifests.py and tests/it/deploy/peers/connect.rs,
//! those of the package by deploy/test/deb.sh, and those of docs/replace-cloud-logs-app.md by
//! deploy/test/pages.py.

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};

use super::moving_in::commands;
use super::pages::Page;
use super::published::pages_with;
use crate::support::binary;
use crate::support::prelude::*;
use crate::support::setup::start;

const VERSION: &str = env!("CARGO_PKG_VERSION");
const BATCH: &str = "tests/corpus/01-batch400-metadata.json";

/// Commands of the two pages that another test runs: how they begin, the test's file, and words in
/// that file.
const ELSEWHERE: [(&str, &str, &str); 3] = [
    ("kube-audit-forwarder check relay.toml", "tests/it/docs/pages.rs", "check relay.toml --else"),
    (
        "kube-audit-forwarder config --config",
        "tests/it/docs/pages.rs",
        "config --config relay.toml",
    ),
    ("kube-audit-forwarder run --config", "tests/it/support/relay.rs", "--config"),
];

/// Commands that no test runs, because they take minutes to build or are `./test` itself.
const NOT_RUN: [&str; 3] = ["cargo run --release", "cargo install --locked --path .", "./test "];

/// The line in which a user names the architecture of the machine, before the download for it.
const ARCHITECTURE: &str = "ARCH=amd64   # or arm64, s390x, ppc64le";

/// The folder that `git clone` makes, with which a page without a release begins.
const CLONE: &str = "kube-audit-forwarder";

/// The beginnings of the commands that [`Reader::run`] can run.
const HERE: [&str; 6] =
    ["git clone ", "podman run ", "curl ", "tar -xzf ", "sudo install ", "kube-audit-forwarder-"];

/// A user in an empty directory. Requests to ports 3000 and 9090 go to this relay.
struct Reader {
    directory: TempDir,
    relay: Relay,
}

impl Reader {
    fn new(relay: Relay) -> Self {
        let reader = Self { directory: TempDir::new().unwrap(), relay };
        let home = env!("CARGO_PKG_REPOSITORY");
        let image = home.replace("https://github.com/", "ghcr.io/");
        let folder = format!("kube-audit-forwarder-{VERSION}");
        let archive = format!("{folder}-linux-amd64.tar.gz");
        for directory in ["bin", "here", "released", "installed"] {
            std::fs::create_dir(reader.path(directory)).unwrap();
        }
        // This is the layout of an archive from deploy/release.sh.
        let released = reader.path("released").join(&folder);
        std::fs::create_dir(&released).unwrap();
        std::fs::copy(binary(), released.join("kube-audit-forwarder")).unwrap();
        for file in ["LICENSE", "CHANGELOG.md"] {
            std::fs::copy(repository().join(file), released.join(file)).unwrap();
        }
        let packed = Command::new(program("tar"))
            .args(["-I", "gzip -1", "-cf", text(&reader.path(&archive)), &folder])
            .current_dir(reader.path("released"))
            .status()
            .unwrap();
        assert!(packed.success());
        let ports = "--publish 3000:3000 --publish 9090:9090";
        reader.stand_in("podman", &format!("[ \"$*\" = 'run --rm {ports} {image}:{VERSION}' ]"));
        let at = format!("{folder}/kube-audit-forwarder");
        let installs = format!("install -m 755 {at} /usr/local/bin/");
        let installed = text(&reader.path("installed")).to_owned();
        let install =
            format!("[ \"$*\" = '{installs}' ] && exec install -m 755 \"$4\" {installed}/");
        reader.stand_in("sudo", &install);
        let real = program("curl");
        let curl = format!(
            "case \"$*\" in\n\
             '-fLO {home}/releases/download/v{VERSION}/{archive}') cp {} . ;;\n\
             *http://127.0.0.1:*) exec {} --noproxy '*' --fail \"$@\" ;;\n\
             *) exit 6 ;;\nesac",
            text(&reader.path(&archive)),
            text(&real)
        );
        // The clone is this repository, without its files below target/.
        let git = format!(
            "[ \"$*\" = 'clone {home}' ] || exit 1\nmkdir -p {CLONE}/tests/corpus\n\
             cp {} {CLONE}/tests/corpus/",
            text(&repository().join(BATCH))
        );
        reader.stand_in("git", &git);
        reader.stand_in("curl", &curl);
        reader
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn stand_in(&self, name: &str, script: &str) {
        let file = self.path("bin").join(name);
        std::fs::write(&file, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o755)).unwrap();
    }

    /// Runs a command of a page. The page's ports are replaced by those of `relay`. The unpacked
    /// program only prints its version, because its ports may be in use on this machine.
    fn run(&self, command: &str) -> Output {
        let mut command = command
            .replace("127.0.0.1:3000", &self.relay.address().to_string())
            .replace("127.0.0.1:9090", &self.relay.admin().to_string());
        if command.starts_with("kube-audit-forwarder-") {
            command.push_str(" --version");
        }
        let path = std::env::var("PATH").unwrap();
        // A reader stays in the clone, once there is one.
        let clone = self.path("here").join(CLONE);
        let here = if clone.is_dir() { clone } else { self.path("here") };
        Command::new("bash")
            .args(["-euo", "pipefail", "-c", &command])
            .current_dir(here)
            .env("PATH", format!("{}:{path}", text(&self.path("bin"))))
            .output()
            .unwrap()
    }

    /// Runs a page's commands except [`ELSEWHERE`] and [`NOT_RUN`]. Returns each with its output.
    fn follow(&self, page: &Page) -> Vec<(String, String)> {
        let mut done = Vec::new();
        for command in commands(page) {
            let is_elsewhere = ELSEWHERE.iter().any(|(begin, ..)| command.starts_with(begin));
            let is_not_run = NOT_RUN.iter().any(|begin| command.starts_with(begin));
            if is_elsewhere || is_not_run || command == ARCHITECTURE {
                continue;
            }
            let command = command.replace("$ARCH", "amd64");
            let is_here = HERE.iter().any(|begin| command.starts_with(begin));
            assert!(is_here, "{}: no test runs this command: {command}", page.path);
            let output = self.run(&command);
            assert!(output.status.success(), "{}: {command}: {output:?}", page.path);
            done.push((command, String::from_utf8_lossy(&output.stdout).into_owned()));
        }
        done
    }
}

#[test]
fn the_readme_publishes_the_ports_of_the_built_in_config() {
    let config = std::fs::read_to_string(repository().join("config/stdout.toml")).unwrap();
    for port in [3000, 9090] {
        assert!(config.contains(&format!("address = \"0.0.0.0:{port}\"")), "{port}");
    }
}

#[test]
fn what_is_run_elsewhere_is_run_there() {
    for (begin, file, words) in ELSEWHERE {
        let test = std::fs::read_to_string(repository().join(file));
        let test = test.unwrap_or_else(|error| panic!("{file}: {error}"));
        assert!(test.contains(words), "{file} does not run {begin}");
    }
}

/// These tests need curl and tar.
mod peers {
    use super::*;

    /// Follows both pages with a release or without one. Returns each command with its output.
    fn follow(reader: &Reader, release: bool) -> Vec<(String, String)> {
        let root = pages_with(release);
        let pages = ["README.md", "docs/start.md"].map(|page| Page::read_in(root.path(), page));
        // Each page is for somebody who begins with it.
        let clone = reader.path("here").join(CLONE);
        pages
            .iter()
            .flat_map(|page| {
                let done = reader.follow(page);
                if clone.is_dir() {
                    std::fs::remove_dir_all(&clone).unwrap();
                }
                done
            })
            .collect()
    }

    fn prints<'a>(done: &'a [(String, String)], begin: &str) -> &'a str {
        let found = done.iter().find(|(command, _)| command.starts_with(begin));
        found.unwrap_or_else(|| panic!("{begin}: {done:?}")).1.trim()
    }

    #[test]
    #[ignore = "needs peers or root: ./test"]
    fn the_first_commands_of_a_user_do_what_the_pages_say() {
        let (relay, _consumer) = start("", "");
        let reader = Reader::new(relay);
        let done = follow(&reader, false);
        assert_eq!(done.iter().filter(|(command, _)| command.starts_with("git clone ")).count(), 2);
        assert_eq!(prints(&done, "curl -H "), "{\"accepted\":400}");
        assert_eq!(prints(&done, "curl -s "), "kube_audit_forwarder_event_total 400");
        assert!(!reader.path("installed/kube-audit-forwarder").exists());
        reader.relay.finish(Backlog::Empty);
    }

    #[test]
    #[ignore = "needs peers or root: ./test"]
    fn with_a_release_the_first_commands_of_a_user_fetch_it() {
        let (relay, _consumer) = start("", "");
        let reader = Reader::new(relay);
        let done = follow(&reader, true);
        let printed = prints(&done, "kube-audit-forwarder-");
        assert!(printed.starts_with(&format!("kube-audit-forwarder {VERSION}")), "{printed}");
        prints(&done, "podman run ");
        assert!(reader.path("installed/kube-audit-forwarder").is_file());
        // The stand-ins are strict.
        for wrong in ["podman run x", "sudo install x", "curl -fLO https://example.com/x", "git x"]
        {
            assert!(!reader.run(wrong).status.success(), "{wrong}");
        }
        reader.relay.finish(Backlog::Empty);
    }
}
