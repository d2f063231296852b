//! The files that a config names must be regular files, and anything else is refused at once. No
//! command and no reload waits longer than half a minute for a file system that hangs.

use std::os::unix::fs::symlink;
use std::process::Command;

use crate::support::prelude::*;

/// How long a wait with a limit of 30 s may take on a busy machine.
const WAITED: Duration = Duration::from_secs(100);

fn fifo(directory: &Path, name: &str) -> PathBuf {
    let path = directory.join(name);
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    path
}

/// Returns a strace command that delays each open of this file by 45 s.
fn hanging(file: &Path) -> Vec<&str> {
    let mut words = vec!["strace", "-D", "-f", "-qqq", "-o", "/dev/null", "-P", text(file)];
    words.extend(["-e", "trace=openat", "-e", "inject=openat:delay_enter=45000000"]);
    words
}

/// Returns a config with this key. It is an output's key unless it begins with `listener.` or
/// `admin.`.
fn with_key(key: &str) -> String {
    let output = "[[output]]\nname = \"out\"\ntype = \"http\"\n";
    let urls = "urls = [\"https://127.0.0.1:1/\"]\n";
    if let Some(key) = key.strip_prefix("listener.") {
        return format!("{BASE}{key}\n{output}{urls}");
    }
    if let Some(key) = key.strip_prefix("admin.") {
        let base = BASE.replace("admin = { ", &format!("admin = {{ {key}, "));
        return format!("{base}{output}{urls}");
    }
    match key.starts_with("urls") {
        true => format!("{BASE}{output}{key}\n"),
        false => format!("{BASE}{output}{urls}{key}\n"),
    }
}

#[test]
fn a_file_that_is_not_regular_is_named_and_refused_by_check_and_by_run() {
    let directory = TempDir::new().unwrap();
    let pipe = fifo(directory.path(), "pipe");
    let link = directory.path().join("link");
    symlink("pipe", &link).unwrap();
    let good = directory.path().join("good");
    std::fs::write(&good, "token").unwrap();
    let (pipe, link, good) = (text(&pipe), text(&link), text(&good));
    let file = directory.path().join("relay.toml");
    for (key, named, what) in [
        (format!("listener.bearer_token_file = \"{pipe}\""), pipe, "a FIFO"),
        (format!("listener.bearer_token_file = \"{link}\""), link, "a FIFO"),
        (
            format!("listener.tls = {{ certificate = \"{pipe}\", private_key = \"{good}\" }}"),
            pipe,
            "a FIFO",
        ),
        (
            format!(
                "listener.tls = {{ certificate = \"{pipe}\", private_key = \"{pipe}\", \
                 optional = true }}"
            ),
            pipe,
            "a FIFO",
        ),
        (format!("tls = {{ ca = \"{pipe}\" }}"), pipe, "a FIFO"),
        ("tls = { ca = \"/dev/zero\" }".to_owned(), "/dev/zero", "a device"),
        (format!("bearer_token_file = \"{pipe}\""), pipe, "a FIFO"),
        (format!("headers = {{ x = \"${{file:{pipe}}}\" }}"), pipe, "a FIFO"),
        (format!("urls = [\"https://127.0.0.1:1/?t=${{file:{pipe}}}\"]"), pipe, "a FIFO"),
        (format!("filter.policy = \"{pipe}\""), pipe, "a FIFO"),
    ] {
        std::fs::write(&file, with_key(&key)).unwrap();
        for command in ["check", "run"] {
            said(&[command, text(&file)], directory.path()).assert(2, &[named, what]);
        }
    }
    // The admin address must not keep the relay from forwarding events.
    std::fs::write(&file, with_key(&format!("admin.tap_token_file = \"{pipe}\""))).unwrap();
    said(&["check", text(&file)], directory.path()).assert(0, &["warning", pipe, "a FIFO"]);
}

#[test]
fn the_config_itself_may_come_from_a_pipe() {
    let directory = TempDir::new().unwrap();
    let config = format!("{BASE}[[output]]\nname = \"out\"\ntype = \"stdout\"\n");
    said_to(config.as_bytes(), &["check", "/dev/stdin"], directory.path()).assert(0, &[]);
}

#[test]
fn a_config_from_a_shells_pipe_is_read_whole_and_one_without_end_is_not() {
    let directory = TempDir::new().unwrap();
    let config = format!("{BASE}[[output]]\nname = \"out\"\ntype = \"stdout\"\n");
    std::fs::write(directory.path().join("good"), config).unwrap();
    let bash = |command: &str| {
        let command = format!("{} {command}", text(binary().as_ref()));
        let mut bash = Command::new("timeout");
        bash.args(["60", "bash", "-c", &command]).current_dir(directory.path());
        Said::of(bash.output().unwrap())
    };
    bash("check <(sleep 1; cat good)").assert(0, &[]);
    // The command does not wait for a pipe whose writer has ended.
    bash("check <(true)").assert(2, &["listener"]);
    let begun = Instant::now();
    for command in [
        "check --config /dev/zero",
        "run --config /dev/zero",
        "config --config /dev/zero",
        "check <(yes)",
        "policy explain --policy /dev/zero good",
        "policy explain --policy <(yes) good",
        "migrate haproxy /dev/zero",
        "replay good --url http://127.0.0.1:1/ --bearer-token-file /dev/zero",
        "doctor --kubeconfig /dev/zero --relay http://127.0.0.1:1",
    ] {
        let said = bash(command);
        assert!(said.code.is_some_and(|code| (1..=3).contains(&code)), "{command}: {said:?}");
        assert!(format!("{said:?}").contains("it is larger than"), "{command}: {said:?}");
    }
    for command in
        ["replay /dev/zero --url http://127.0.0.1:1/", "policy advise --cut 50% /dev/zero"]
    {
        let said = bash(command);
        assert!(said.code.is_some_and(|code| (1..=3).contains(&code)), "{command}: {said:?}");
        assert!(format!("{said:?}").contains("it is a device"), "{command}: {said:?}");
    }
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
}

/// Method: the files are FIFOs into which nobody writes. A resume file is written, too, so it can't
/// be a FIFO at all.
#[test]
fn no_command_waits_without_end_for_a_file_that_its_command_line_names() {
    let directory = TempDir::new().unwrap();
    let pipe = fifo(directory.path(), "pipe");
    std::fs::write(directory.path().join("good"), "").unwrap();
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for command in [
            "check --config PIPE",
            "run --config PIPE",
            "migrate haproxy PIPE",
            "policy explain --policy PIPE good",
            "replay good --url http://127.0.0.1:1/ --resume PIPE",
            "doctor --kubeconfig PIPE --relay http://127.0.0.1:1",
            "doctor --apiserver PIPE --relay http://127.0.0.1:1",
        ] {
            let (root, pipe) = (directory.path(), &pipe);
            scope.spawn(move || {
                let words: Vec<&str> = command
                    .split(' ')
                    .map(|word| if word == "PIPE" { text(pipe) } else { word })
                    .collect();
                let said = said(&words, root);
                assert!(said.code.is_some_and(|code| (1..=3).contains(&code)), "{said:?}");
                let words = match command.contains("--resume") {
                    true => "it is a FIFO (named pipe) and not a regular file",
                    false => "nothing was written into it for 30 s",
                };
                assert!(format!("{said:?}").contains(words), "{command}: {said:?}");
            });
        }
    });
    assert!(begun.elapsed() < WAITED, "{:?}", begun.elapsed());
}

/// Method: first the config names a FIFO, then a token that is in use becomes one.
#[test]
fn a_reload_refuses_a_fifo_at_once_and_the_relay_goes_on() {
    let directory = TempDir::new().unwrap();
    let token = directory.path().join("token");
    std::fs::write(&token, "secret").unwrap();
    let sink = HttpSink::accepting();
    let good =
        to_sink(sink.address(), &format!("headers = {{ x = \"${{file:{}}}\" }}\n", text(&token)));
    let relay = Relay::start(&good);
    let pipe = fifo(directory.path(), "pipe");
    relay.reload(&good.replace(text(&token), text(&pipe)), "error");
    let told = || relay.log_text().matches("a FIFO (named pipe)").count();
    wait_until("the log says why", PATIENCE, || told() > 0);
    relay.reload(&good, "success");
    let errors = || relay.reloads("error");
    let (before, told_before) = (errors(), told());
    std::fs::rename(&pipe, &token).unwrap();
    wait_until("the FIFO is refused", PATIENCE, || errors() > before && told() > told_before);
    assert_eq!(relay.post(&generated_batch(1, 10, 600)).status, 200);
    relay.wait_until_delivered(PATIENCE);
    relay.finish(Backlog::Empty);
}

/// Tests that need peers.
mod peers {
    use super::*;

    /// Method: strace delays the open of a token for longer than the limit, like an NFS server that
    /// is down.
    #[test]
    #[ignore = "needs peers or root: ./test"]
    fn a_file_system_that_hangs_is_waited_for_half_a_minute_and_its_file_is_named() {
        let directory = TempDir::new().unwrap();
        let token = directory.path().join("token");
        std::fs::write(&token, "secret").unwrap();
        let sink = HttpSink::accepting();
        let good = to_sink(sink.address(), "");
        let bad = format!("{good}headers = {{ x = \"${{file:{}}}\" }}\n", text(&token));
        let launcher = hanging(&token);
        let mut relay = Relay::with(&good).launcher(&launcher).start();
        let begun = Instant::now();
        std::fs::write(relay.config_file(), &bad).unwrap();
        relay.signal(libc::SIGHUP);
        let errors = || relay.reloads("error");
        let waits = "the file system does not respond: waiting for files that the config names";
        wait_until("the log says what it waits for", WAITED, || relay.log_text().contains(waits));
        assert_eq!(errors(), 0.0);
        assert_eq!(relay.post(&generated_batch(1, 10, 600)).status, 200);
        wait_until("the reload is given up", WAITED, || errors() == 1.0);
        let said = "the file system has not responded within 30";
        assert!(begun.elapsed() >= Duration::from_secs(30), "{:?}", begun.elapsed());
        assert!(begun.elapsed() < WAITED, "{:?}", begun.elapsed());
        // Another attempt would log after five seconds that it waits.
        std::thread::sleep(Duration::from_secs(8));
        assert_eq!(relay.log_text().matches(waits).count(), 1, "{}", relay.log_text());
        let error = relay.wait_for_log(messages::NOT_RELOADED, PATIENCE);
        let error = error["error"].as_str().unwrap().to_owned();
        assert!(error.contains(said) && error.contains(text(&token)), "{error}");
        relay.wait_until_delivered(PATIENCE);
        relay.kill_tracer();
        relay.kill();
    }
}
