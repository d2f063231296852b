//! A page about a command begins with a capture: the command and its output. The tests run the
//! commands of the captures, and fail if a page shows different output. With
//! `KUBE_AUDIT_FORWARDER_BLESS=1`, they write the new output into the page. You can then replace
//! lines that the page does not need with a line `…`.

use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use super::auditors::{Logged, store};
use super::pages::{Block, Page};

use crate::support::apiserver::Apiserver;
use crate::support::corpus::audit_log;
use crate::support::generated::assert_file;
use crate::support::prelude::*;
use crate::support::setup::start;

/// The pages about commands, and the command that each of them shows first. This file compares
/// their captures, and `tests/it/filter/policy_cost.rs` those of `policy`.
/// `tests/it/docs/pages.rs` compares that of `check`, which is on `docs/start.md`, below its
/// config.
const CAPTURES: [(&str, &str); 6] = [
    ("docs/migrate-haproxy.md", "migrate haproxy"),
    ("docs/operating/doctor.md", "doctor"),
    ("docs/operating/queue-directory.md", "queue inspect"),
    ("docs/operating/replay.md", "replay"),
    ("docs/operating/volume.md", "volume"),
    ("docs/prove/verify.md", "evidence verify"),
];

/// A page's first capture begins within this many lines.
const BEGINNING: usize = 25;

#[test]
fn each_page_of_a_command_begins_with_what_the_command_prints() {
    for (path, command) in CAPTURES {
        let page = Page::read(path);
        let above = page.text.lines().take_while(|line| *line != "```console").count();
        assert!(above < BEGINNING, "{path}: the first capture is below line {above}");
        let blocks = page.blocks();
        let first = blocks.iter().find(|block| block.language == "console").expect(path);
        let is_first = typed(&first.code).contains(&format!("kube-audit-forwarder {command}"));
        assert!(is_first, "{path} does not begin with {command}:\n{}", first.code);
    }
}

/// The directory of a reader of the pages. `bin` has the program and stand-ins for other programs.
pub(super) struct Place {
    pub(super) directory: TempDir,
    /// Texts on the pages, such as addresses, and the texts that replace them in the commands.
    pub(super) names: Vec<(&'static str, String)>,
}

impl Place {
    pub(super) fn new() -> Self {
        let place = Self { directory: TempDir::new().unwrap(), names: Vec::new() };
        std::fs::create_dir(place.path("bin")).unwrap();
        place.link("kube-audit-forwarder", Path::new(binary()));
        place
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(super) fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.path(name), bytes).unwrap();
    }

    fn link(&self, name: &str, program: &Path) {
        std::os::unix::fs::symlink(program, self.path("bin").join(name)).unwrap();
    }

    fn stand_in(&self, name: &str, script: &str) {
        let file = Path::new("bin").join(name);
        self.write(text(&file), format!("#!/bin/sh\n{script}\n").as_bytes());
        std::fs::set_permissions(self.path(text(&file)), PermissionsExt::from_mode(0o755)).unwrap();
    }

    /// Returns a bash with this command, in which the page's names are replaced.
    pub(super) fn command(&self, command: &str) -> Command {
        let mut command = command.replace("\\\n", " ");
        for (shown, real) in &self.names {
            command = command.replace(shown, real);
        }
        let path = std::env::var("PATH").unwrap();
        let mut bash = Command::new("bash");
        bash.args(["-c", &command]).current_dir(self.directory.path()).stdin(Stdio::null());
        bash.env("PATH", format!("{}:{path}", text(&self.path("bin"))));
        bash
    }

    /// Runs a command of a page, and calls `then` after the first line of output. Returns the
    /// output of both streams.
    fn run(&self, command: &str, then: impl FnOnce()) -> String {
        let mut bash = self.command(&format!("exec 2>&1\n{command}"));
        let mut child = bash.stdout(Stdio::piped()).spawn().expect("bash");
        let mut reader = BufReader::new(child.stdout.take().expect("piped"));
        let mut printed = String::new();
        reader.read_line(&mut printed).unwrap();
        then();
        reader.read_to_string(&mut printed).unwrap();
        child.wait().unwrap();
        for (shown, real) in &self.names {
            printed = printed.replace(real.as_str(), shown);
        }
        printed
    }

    /// Runs the first command of a page that contains these words, with [`Place::run`], and
    /// compares the output with the page. `varies` are the forms for [`normal`].
    #[track_caller]
    fn assert_capture(&self, path: &str, words: &str, varies: &[&str], then: impl FnOnce()) {
        let page = Page::read(path);
        let block = capture(&page, words);
        let printed = self.run(typed(&block.code).trim_start_matches("$ "), then);
        assert_printed(&page, &block, &printed, varies);
    }
}

/// Returns the command of a capture: its first line, and the lines after a trailing backslash.
fn typed(code: &str) -> String {
    let mut continues = true;
    let lines = code.split_inclusive('\n');
    lines.take_while(|line| std::mem::replace(&mut continues, line.ends_with("\\\n"))).collect()
}

/// Returns the first capture of a page whose command contains these words.
fn capture(page: &Page, words: &str) -> Block {
    let mut blocks = page.blocks().into_iter().filter(|block| block.language == "console");
    let block = blocks.find(|block| typed(&block.code).contains(words));
    block.unwrap_or_else(|| panic!("{} has no capture of {words}", page.path))
}

/// If the capture does not fit the printed output, fails or rewrites the page.
#[track_caller]
fn assert_printed(page: &Page, block: &Block, printed: &str, varies: &[&str]) {
    let typed = typed(&block.code);
    let shown = block.code.strip_prefix(&typed).expect("it begins with the command");
    if !fits(&normal(shown, varies), &normal(printed, varies)) {
        assert_file(&page.path, &page.text.replace(&block.code, &format!("{typed}{printed}")));
    }
}

/// Returns `true` if the shown lines fit the printed ones. A line `…` fits any number of lines.
fn fits(shown: &str, printed: &str) -> bool {
    let mut printed: Vec<&str> = printed.lines().collect();
    let lines: Vec<&str> = shown.lines().collect();
    let mut parts: Vec<&[&str]> = lines.split(|line| line.trim() == "…").collect();
    let last = parts.pop().unwrap_or_default();
    let Some((first, middle)) = parts.split_first() else { return printed == last };
    if !printed.starts_with(first) || !printed.ends_with(last) {
        return false;
    }
    printed.truncate(printed.len() - last.len());
    let mut rest = printed.get(first.len()..).unwrap_or_default();
    middle.iter().filter(|part| !part.is_empty()).all(|part| {
        let at = rest.windows(part.len()).position(|lines| lines == *part);
        rest = at.and_then(|at| rest.get(at + part.len()..)).unwrap_or_default();
        at.is_some()
    })
}

/// Replaces what differs between two runs with marks: times, SHA-256 digests, and the numbers in
/// one of these forms, such as `in # s`. Spaces before such a number become at most one, its unit
/// KiB or MiB becomes B, and each bar becomes one character.
fn normal(text: &str, forms: &[&str]) -> String {
    let is_digest =
        |word: &str| word.len() == 64 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    let words = text.split_inclusive(|char: char| !char.is_alphanumeric());
    let words = words.map(|word| match word.get(..64) {
        Some(first) if is_digest(first) => word.replace(first, "SHA-256"),
        _ => word.to_owned(),
    });
    let text: String = words.collect();
    let (mut made, mut rest) = (String::new(), text.as_str());
    while let Some(at) = rest.find(|char: char| char.is_ascii_digit()) {
        let (before, found) = rest.split_at(at);
        made.push_str(before);
        let end = found.find(|char: char| !(char.is_ascii_digit() || ",.".contains(char)));
        let number = found.get(..end.unwrap_or(found.len())).unwrap_or_default();
        let number = number.trim_end_matches([',', '.']);
        let behind = found.strip_prefix(number).expect("it begins so");
        if let Some(behind) = after_time(found) {
            made.push_str("TIME");
            rest = behind;
            continue;
        }
        let is_form = |form: &&str| -> bool {
            let (left, right) = form.split_once('#').expect("a place for the number");
            made.ends_with(left) && behind.starts_with(right)
        };
        if forms.iter().any(is_form) {
            let kept = made.trim_end_matches(' ').len();
            let is_indented =
                made.get(..kept).is_some_and(|it| it.is_empty() || it.ends_with('\n'));
            let blanks = usize::from(kept < made.len() && !is_indented);
            made.truncate(kept + blanks);
            made.push('#');
        } else {
            made.push_str(number);
        }
        rest = behind;
    }
    made.push_str(rest);
    for size in ["# KiB", "# MiB"] {
        made = made.replace(size, "# B");
    }
    let mut bars = String::new();
    for char in made.chars() {
        let is_more = char == '█' && bars.ends_with('█') || char == ' ' && bars.ends_with("█ ");
        if !is_more {
            bars.push(char);
        }
    }
    bars
}

/// Returns the text after a time such as `2026-11-27T09:59:29.737Z`, or `None` if the text does not
/// begin with one.
fn after_time(text: &str) -> Option<&str> {
    let (day, rest) = text.split_once('T')?;
    let (time, behind) = rest.split_once('Z')?;
    let digits = |text: &str| -> String {
        text.chars().map(|char| if char.is_ascii_digit() { '0' } else { char }).collect()
    };
    let is_time = ["00:00:00", "00:00:00.000"].contains(&&*digits(time));
    (digits(day) == "0000-00-00" && is_time).then_some(behind)
}

#[test]
fn what_varies_is_replaced_and_nothing_else() {
    let shown = " 9.5 s  in 1,234/s  queue 2 events, 1.5 MiB  lost 0\n…\nat 2026-11-27T09:59:29Z\n";
    let printed = "12.0 s  in 7/s  queue 2 events, 3 B  lost 0\nmore\nat 2027-01-01T00:00:00Z\n";
    let forms = ["# s  in", "in #/s", ", # B", ", # MiB"];
    let both = [shown, printed].map(|text| normal(text, &forms));
    assert!(fits(&both[0], &both[1]), "{both:#?}");
    for (old, new) in
        [("queue 2", "queue 3"), ("in 7", "out 7"), ("\nat", "\nAt"), ("lost 0", "lost 1")]
    {
        let changed = normal(&printed.replace(old, new), &forms);
        assert!(!fits(&both[0], &changed), "{changed}");
    }
    assert!(fits("a\n…\nb\nc\n…\n", "a\nx\nb\nc\nd\n") && fits("a\n", "a\n"));
    for shown in ["a\n", "b\n…\n", "a\n…\nc\nb\n…\n", "a\nx\nb\nc\nd\ne\n", "…\nc\n"] {
        assert!(!fits(shown, "a\nx\nb\nc\nd\n"), "{shown}");
    }
    assert_eq!(normal("x  █████   y", &[]), "x  █ y");
}

fn recorded(name: &str) -> Vec<u8> {
    let bodies = corpus().into_iter().find(|body| body.name.starts_with(name));
    bodies.expect("a recorded body").bytes
}

#[test]
fn the_demo_prints_what_the_readme_shows() {
    let varies = [
        "# s  in",
        "for # s;",
        "in #/s",
        "out #/s",
        "queue # events",
        "up to # events",
        "(# MiB)",
        ", # B",
        ", # KiB",
        ", # MiB",
        "sent: #\n",
        "delivered: #\n",
        "http://127.0.0.1:#/",
    ];
    let printed = Place::new().run("kube-audit-forwarder demo", || ());
    let page = Page::read("README.md");
    assert_printed(&page, &capture(&page, "demo"), &printed, &varies);
}

/// Method: a kube-apiserver has given up one batch before the first sample. It generates five more
/// batches between the samples, and the relay receives and delivers them.
#[test]
fn doctor_prints_what_its_page_shows() {
    let (apiserver, consumer) = (Apiserver::single(), HttpSink::accepting());
    let relay = Relay::start(&format!("{BASE}{}", consumer.output("logstash", "")));
    let body = recorded("01-");
    let send = |batches: u64| {
        (0..batches).for_each(|_| assert_accepted(&relay.post(&body), 400));
        relay.wait_until_delivered(PATIENCE);
        apiserver.count(0, |counted| {
            counted.generated = counted.generated.map(|before| before + batches * 400);
            counted.posts[0].1 += batches;
        });
    };
    let named = |(name, count): (&str, u64)| (name.to_owned(), count);
    apiserver.count(0, |counted| {
        counted.generated = Some(400);
        counted.lost = [("buffered", 0), ("truncate", 0), ("webhook", 400)].map(named).to_vec();
        counted.posts = [("200", 0), ("<error>", 5)].map(named).to_vec();
    });
    send(4);
    let mut place = Place::new();
    place.names.push(("127.0.0.1:8001", apiserver.address().to_string()));
    place.names.push(("127.0.0.1:9090", relay.admin().to_string()));
    let varies = ["last # s", "(#/s", "9090 (#, started"];
    place.assert_capture("docs/operating/doctor.md", "doctor ", &varies, || send(5));
    relay.finish(Backlog::Empty);
}

#[test]
fn evidence_verify_prints_what_its_page_shows() {
    const PAGE: &str = "docs/prove/verify.md";
    let place = Place::new();
    let mut witness = None;
    let mut logged = Logged::start(place.directory.path(), "relay-0", &mut witness);
    ["01-", "18-"].iter().for_each(|name| logged.post(&recorded(name)));
    logged.wait_until_signed(2);
    std::fs::create_dir(place.path("kept")).unwrap();
    place.write("kept/2026-11-26", logged.checkpoint().unwrap().as_bytes());
    ["19-", "09-", "06-"].iter().for_each(|name| logged.post(&recorded(name)));
    logged.relay.settle(Backlog::Empty);
    logged.relay.stop();
    let lines = logged.sink.lines();
    store(&place.path("lines/archive.gz"), &lines);
    let copied = ["evidence", "copy", text(logged.spool.path()), "evidence-2026-11-27"];
    assert!(run_command(&copied, place.directory.path()).status.success());
    let varies = ["checkpoints #/", "/# valid", "note: # KiB", "archive.gz:#\n"];
    place.assert_capture(PAGE, "evidence verify ", &varies, || ());

    let at = |position: usize| {
        lines.iter().position(|line| *line == logged.events[position]).expect("the event")
    };
    let (deleted, changed) = (at(46), at(449));
    let mut tampered = lines.clone();
    let line = String::from_utf8(tampered[changed].clone()).unwrap();
    tampered[changed] = line.replace("\"verb\":\"", "\"verb\":\"x").into_bytes();
    tampered.remove(deleted);
    store(&place.path("tampered/archive.gz"), &tampered);
    place.assert_capture(PAGE, "--events tampered/", &varies, || ());
}

/// Method: the consumer closes before the last three batches, and the relay stops.
#[test]
fn the_commands_of_queues_print_what_their_page_shows() {
    const PAGE: &str = "docs/operating/queue-directory.md";
    let (mut sink, spool) = (HttpSink::accepting(), Spool::new());
    let queue = spool.queue("");
    let config = format!(
        "{BASE}{}{queue}[shutdown]\ndrain_timeout = \"500ms\"\n",
        sink.output("archive", "")
    );
    let mut relay = Relay::start(&config);
    ["02-", "17-"].iter().for_each(|name| assert_accepted(&relay.post(&recorded(name)), 400));
    relay.wait_until_delivered(PATIENCE);
    sink.close();
    (0..3).for_each(|_| assert_accepted(&relay.post(&recorded("01-")), 400));
    relay.stop();
    let mut place = Place::new();
    place.names.push(("/var/lib/kube-audit-forwarder", text(spool.path()).to_owned()));
    place.assert_capture(PAGE, "queue inspect ", &["  #\n\n"], || ());
    let verify = "kube-audit-forwarder queue verify /var/lib/kube-audit-forwarder";
    let whole = place.run(verify, || ());
    assert!(Page::read(PAGE).text.contains(&format!("`{}`", whole.trim_end())), "{whole}");

    let records = spool.records();
    let damaged = records.iter().find(|record| record.positions.start == 1200).expect("a record");
    spool.edit(&damaged.segment, |bytes| bytes[damaged.bytes.end - 1] ^= 1);
    place.assert_capture(PAGE, "queue verify ", &[], || ());
}

#[test]
fn replay_prints_what_its_page_shows() {
    let (relay, _sink) = start("", "");
    let mut place = Place::new();
    place.write("audit.log", &audit_log());
    place.names.push(("127.0.0.1:3000", relay.address().to_string()));
    let varies = ["seconds: #\n", "second: #\n"];
    place.assert_capture("docs/operating/replay.md", "replay ", &varies, || ());
    relay.finish(Backlog::Empty);
}

/// Method: a stand-in for kubectl runs the command like the image, where a variable names the
/// config.
#[test]
fn volume_prints_what_its_page_shows() {
    let (relay, _sink) = start("", "");
    post_corpus(&relay);
    let place = Place::new();
    let config = format!("admin = {{ address = \"{}\" }}\n", relay.admin());
    place.write("relay.toml", config.as_bytes());
    let script = "[ \"$1 $2 $3 $4 $5\" = '-n ibm-kube-audit exec POD --' ] || exit 1\n\
                  shift 5\nKUBE_AUDIT_FORWARDER_CONFIG=relay.toml exec \"$@\"";
    place.stand_in("kubectl", script);
    let varies = ["last # s", "which # were", "  # %", "# MiB  ", "# KiB  ", "  #  █"];
    place.assert_capture("docs/operating/volume.md", "volume ", &varies, || ());
    relay.finish(Backlog::Empty);
}

/// These tests need HAProxy, which checks the file as it does on a reader's machine.
mod peers {
    use super::*;

    const HAPROXY: &str = "global\n  log stdout format raw local0 info\n  user haproxy\n\
        defaults\n  mode http\n  timeout client 10s\n  timeout connect 5s\n  timeout server 10s\n  \
        timeout http-request 10s\n  log global\nfrontend audit\n  bind :3000\n  \
        http-request deny if !{ src 10.0.0.0/8 }\n  default_backend logstash\n\
        backend logstash\n  server logstash 10.1.2.3:8080 check\n";

    #[test]
    #[ignore = "needs peers or root: ./test"]
    fn migrate_haproxy_prints_what_its_page_shows() {
        let place = Place::new();
        place.link("haproxy", &program("haproxy"));
        place.write("haproxy.cfg", HAPROXY.as_bytes());
        place.assert_capture("docs/migrate-haproxy.md", "migrate haproxy ", &[], || ());
        let config = said(&["check", "relay.toml", "--elsewhere"], place.directory.path());
        config.assert(0, &["ok: 1 listener, 1 output"]);
    }
}
