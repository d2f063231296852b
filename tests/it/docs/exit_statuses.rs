//! The table of exit statuses. It has a row for each command, and the program ends with each status
//! of a row.

use std::net::TcpListener;

use super::auditors::Logged;
use super::captures::Place;
use super::pages::Page;

use crate::support::corpus::audit_log;
use crate::support::prelude::*;
use crate::support::setup::start;

const PAGE: &str = "docs/reference/exit-statuses.md";

/// Command lines and the exit status of each. `{url}` and `{admin}` are addresses of a running
/// relay, and `{log}` is the spool of a relay that has ended. In the copy `{forged}` of that spool,
/// the tiles of the log are changed; in the copy `{cut}`, they are missing.
const CASES: [(i32, &str); 70] = [
    (1, "run --config taken.toml"),
    (2, "run --config absent"),
    (0, "check relay.toml"),
    (1, "check relay.toml --connect"),
    (2, "check absent"),
    (0, "config --config relay.toml"),
    (1, "config --config relay.toml > /dev/full"),
    (2, "config --config absent"),
    (0, "demo --seconds 1"),
    (1, "demo --seconds 1 > /dev/full"),
    (0, "replay audit.log --url {url}"),
    (1, "replay bad.log --url {url}"),
    (2, "replay absent --url {url}"),
    (0, "migrate haproxy {fixtures}/haproxy/tutorial.cfg"),
    (0, "migrate haproxy {fixtures}/haproxy/who-may-send.cfg --force"),
    (1, "migrate haproxy {fixtures}/haproxy/tutorial.cfg > /dev/full"),
    (2, "migrate haproxy absent"),
    (3, "migrate haproxy {fixtures}/haproxy/who-may-send.cfg"),
    (0, "queue inspect {fixtures}/spool-format-1/spool"),
    (1, "queue inspect unreadable"),
    (2, "queue inspect absent"),
    (0, "queue export {fixtures}/spool-format-1/spool"),
    (1, "queue export damaged"),
    (2, "queue export absent"),
    (0, "queue verify {fixtures}/spool-format-1/spool"),
    (1, "queue verify damaged"),
    (2, "queue verify absent"),
    (0, "evidence keygen --origin test --out key"),
    (1, "evidence keygen --origin test --out key"),
    (2, "evidence keygen --origin '' --out other"),
    (0, "evidence show {log}"),
    (1, "evidence show {cut}"),
    (2, "evidence show ."),
    (0, "evidence prove {log} --position 0"),
    (1, "evidence prove {log} --position 1000"),
    (2, "evidence prove . --position 0"),
    (0, "evidence copy {log} copy"),
    (1, "evidence copy {forged} copy-2"),
    (2, "evidence copy {log} copy"),
    (0, "evidence verify --directory {log} --key \"$(cat relay-1.vkey)\""),
    (1, "evidence verify --directory {forged} --key \"$(cat relay-1.vkey)\""),
    (2, "evidence verify --directory . --key \"$(cat relay-1.vkey)\""),
    (0, "policy explain --policy policy.yaml audit.log"),
    (1, "policy explain --policy policy.yaml audit.log > /dev/full"),
    (2, "policy explain --policy absent audit.log"),
    (0, "policy cost policy.yaml audit.log"),
    (1, "policy cost policy.yaml bad.log"),
    (2, "policy cost absent audit.log"),
    (0, "policy advise --cut 10% audit.log"),
    (1, "policy advise --cut 100% audit.log"),
    (2, "policy advise --cut 10% absent"),
    (0, "completions bash"),
    (1, "completions bash > /dev/full"),
    (0, "man"),
    (0, "version --verbose"),
    (0, "healthcheck {admin}"),
    (1, "healthcheck http://127.0.0.1:1"),
    (2, "healthcheck --config absent"),
    (0, "doctor --relay {admin} --interval 0s"),
    (2, "doctor --relay http://127.0.0.1:1 --interval 0s"),
    (0, "top --once {admin}"),
    (1, "top --once http://127.0.0.1:1"),
    (2, "top --once --config absent"),
    (0, "volume {admin}"),
    (1, "volume http://127.0.0.1:1"),
    (2, "volume {admin} {admin}"),
    (1, "drain http://127.0.0.1:1"),
    (2, "drain --config absent"),
    (1, "tap http://127.0.0.1:1 --token-file token"),
    (2, "tap {admin}"),
];

/// Statuses that other tests check: the command, the file of the test, and words in it.
const ELSEWHERE: [(i32, &str, &str, &str); 4] = [
    (0, "run", "tests/it/support/relay.rs", "Some(lost.into())"),
    (1, "doctor", "tests/it/operate/doctor.rs", "Some(\"LOST\") => 1"),
    (0, "drain", "tests/it/operate/drain.rs", "code: Some(0)"),
    (0, "tap", "tests/it/operate/tap.rs", "Some(0), \"\""),
];

/// Returns the rows of the table: the commands, and the cells for the statuses 0, 1 and 2.
fn rows() -> Vec<(Vec<String>, Vec<String>)> {
    let page = Page::read(PAGE);
    let lines = page.text.lines().filter(|line| line.starts_with("| `"));
    lines
        .map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            let [names, statuses @ ..] = &cells[..] else { panic!("{line}") };
            assert_eq!(statuses.len(), 3, "{line}");
            let names = names.split('`').skip(1).step_by(2).map(str::to_owned).collect();
            (names, statuses.iter().map(|&cell| cell.to_owned()).collect())
        })
        .collect()
}

/// A group of commands, such as `queue`, has no row on either page.
#[test]
fn each_command_has_its_exit_statuses() {
    let commands = Page::read("docs/reference/commands.md");
    let names: Vec<&str> = commands
        .text
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
        .collect();
    assert!(names.len() > 20, "{names:?}");
    let wanted: BTreeSet<&str> = names.iter().copied().collect();
    let rows = rows();
    let listed: Vec<&str> = rows.iter().flat_map(|(names, _)| names).map(String::as_str).collect();
    assert_eq!(listed.iter().copied().collect::<BTreeSet<_>>(), wanted, "{PAGE}");
    assert_eq!(listed.len(), wanted.len(), "{PAGE} has a command twice");
}

/// Creates the files that the command lines need.
fn place() -> Place {
    let mut place = Place::new();
    let fixtures = repository().join("tests/fixtures");
    let output = "[[output]]\nname = \"o\"\ntype = \"tcp\"\naddresses = [\"127.0.0.1:1\"]\n";
    let config = format!("[[listener]]\naddress = \"127.0.0.1:0\"\n{output}");
    place.write("relay.toml", config.as_bytes());
    place.write("audit.log", &audit_log());
    place.write("bad.log", b"x\n");
    place.write("token", b"t4p-s3cret\n");
    let policy = repository().join("tests/policies/ibm-default.yaml");
    place.write("policy.yaml", &std::fs::read(policy).unwrap());

    let queue = Spool::at(fixtures.join("spool-format-1/spool"));
    for name in ["damaged", "unreadable"] {
        for (path, file) in queue.files() {
            let to = place.path(name).join(path);
            std::fs::create_dir_all(to.parent().unwrap()).unwrap();
            std::fs::write(to, file.bytes).unwrap();
        }
    }
    let segment = queue.segments().pop().expect("a segment");
    Spool::at(place.path("damaged")).edit(&segment, |bytes| {
        let end = bytes.len() - 1;
        bytes[end] ^= 1;
    });
    let unreadable = place.path("unreadable").join(segment);
    std::fs::remove_file(&unreadable).unwrap();
    std::fs::create_dir(unreadable).unwrap();
    place.names.push(("{fixtures}", text(&fixtures).to_owned()));
    place
}

/// Changes every tile of an evidence log.
fn forge(spool: &Spool) {
    for (path, _) in spool.files() {
        if path.starts_with("evidence/tile") {
            spool.edit(&path, |bytes| bytes.iter_mut().for_each(|byte| *byte ^= 1));
        }
    }
}

#[test]
fn each_exit_status_of_the_table_is_that_of_the_program() {
    let mut place = place();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let config = std::fs::read_to_string(place.path("relay.toml")).unwrap();
    let config = config.replace("127.0.0.1:0", &taken.local_addr().unwrap().to_string());
    place.write("taken.toml", config.as_bytes());
    let mut logged = Logged::start(place.directory.path(), "relay-1", &mut None);
    logged.post(&generated_batch(1, 20, 500));
    logged.relay.settle(Backlog::Empty);
    logged.relay.stop();
    let (forged, cut) = (logged.spool.copy(), logged.spool.copy());
    forge(&forged);
    std::fs::remove_dir_all(cut.path().join("evidence/tile")).unwrap();
    let (relay, _sink) = start("", "");
    assert_accepted(&relay.post(&generated_batch(1, 20, 500)), 20);
    relay.wait_until_delivered(PATIENCE);
    for (name, spool) in [("{log}", &logged.spool), ("{forged}", &forged), ("{cut}", &cut)] {
        place.names.push((name, text(spool.path()).to_owned()));
    }
    place.names.push(("{admin}", format!("http://{}", relay.admin())));
    place.names.push(("{url}", format!("http://{}/", relay.address())));

    let mut shown = BTreeSet::new();
    let rows = rows();
    for (status, line) in CASES {
        let output = place.command(&format!("exec kube-audit-forwarder {line}")).output().unwrap();
        assert_eq!(output.status.code(), Some(status), "{line}: {output:?}");
        let mut names = rows.iter().flat_map(|(names, _)| names);
        let name = names.find(|name| line.starts_with(&format!("{name} ")) || line == **name);
        shown.insert((status, name.expect(line).as_str()));
    }
    relay.finish(Backlog::Empty);
    for (status, name, file, words) in ELSEWHERE {
        let test = std::fs::read_to_string(repository().join(file)).unwrap();
        assert!(test.contains(words), "{file} does not show the status {status} of {name}");
        shown.insert((status, name));
    }
    let mut listed = BTreeSet::from([(3, "migrate haproxy")]);
    for (names, cells) in &rows {
        let name = names.first().expect("a command").as_str();
        let statuses = (0..).zip(cells).filter(|(_, cell)| !cell.is_empty());
        listed.extend(statuses.map(|(status, _)| (status, name)));
    }
    // `completions`, `man` and `version` share a row.
    shown.remove(&(0, "man"));
    shown.remove(&(0, "version"));
    assert_eq!(listed, shown, "the table has the statuses on the left, the program the others");
    let page = Page::read(PAGE).text;
    assert!(page.contains("\n`migrate haproxy` can also exit with status 3: "), "{page}");
}
