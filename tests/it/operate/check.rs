//! `check` finds every fault that `run` refuses, including those in the files and directories that
//! a config names, and changes nothing.

use crate::support::prelude::*;
use crate::support::relay::without_summary;

pub(super) const LISTENER: &str = "[[listener]]\naddress = \"127.0.0.1:3000\"\n";
pub(super) const OUTPUT: &str = "[[output]]\nname = \"out\"\ntype = \"stdout\"\n";

/// Runs a command on this config. Returns its exit status and its standard error, without the
/// summary of the config.
fn run(command: &[&str], config: &str) -> (Option<i32>, String) {
    let directory = TempDir::new().unwrap();
    std::fs::write(directory.path().join("config.toml"), config).unwrap();
    let output = run_command(&[command, &["--config", "config.toml"]].concat(), directory.path());
    assert_eq!(output.stdout, b"", "messages go to stderr");
    let said = String::from_utf8(output.stderr).unwrap();
    (output.status.code(), without_summary(&said, "config.toml"))
}

/// Checks that `check` refuses the config for exactly one fault, at this place and with these
/// words.
#[track_caller]
fn assert_refused(config: &str, place: &str, words: &[&str]) {
    let (code, said) = run(&["check"], config);
    assert_eq!(code, Some(2), "{said}\n{config}");
    let errors: Vec<_> = said.lines().filter(|line| !line.contains(": warning: ")).collect();
    assert_eq!(errors.len(), 1, "{said}\n{config}");
    let said = errors[0];
    assert!(said.starts_with(&format!("config.toml:{place}: ")), "{place}: {said}\n{config}");
    for word in words {
        assert!(said.contains(word), "no \"{word}\" in: {said}");
    }
}

fn listener_tls(certificate: &Path, key: &Path) -> String {
    format!(
        "{LISTENER}[listener.tls]\ncertificate = \"{}\"\nprivate_key = \"{}\"\n",
        text(certificate),
        text(key)
    )
}

fn write(directory: &TempDir, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
    let file = directory.path().join(name);
    std::fs::write(&file, content).unwrap();
    file
}

#[test]
fn a_key_that_is_not_the_certificates_is_found_wherever_a_pair_is_named() {
    let files = Certificates::new();
    let (certificate, key) = (&files.server.certificate, &files.client.key);
    let config = listener_tls(certificate, key) + OUTPUT;
    let place = "5:15: listener[0].tls.private_key";
    assert_refused(&config, place, &[text(key), "is not the key for", text(certificate)]);
    // `optional` does not help here, because the files exist.
    let optional = config.replace("[[output]]", "optional = true\n[[output]]");
    assert_refused(&optional, place, &["is not the key for"]);
    let mut outputs = vec![
        "type = \"http\"\nurls = [\"https://h/\"]",
        "type = \"tcp\"\naddresses = [\"h:1\"]",
        "type = \"relp\"\naddresses = [\"h:1\"]",
    ];
    if cfg!(feature = "kafka") {
        outputs.push("type = \"kafka\"\nbrokers = [\"h:1\"]\ntopic = \"t\"");
    }
    for output in outputs {
        let lines = output.lines().count();
        let config = format!(
            "{LISTENER}[[output]]\nname = \"out\"\n{output}\n[output.tls]\ncertificate = \"{}\"\nprivate_key = \"{}\"\n",
            text(certificate),
            text(key)
        );
        let place = format!("{}:15: output[0].tls.private_key", 7 + lines);
        assert_refused(&config, &place, &["is not the key for"]);
    }
}

#[test]
fn a_certificate_and_a_key_that_are_swapped_are_both_named_as_such() {
    let Pair { certificate, key } = &Certificates::new().server;
    let (code, said) = run(&["check"], &(listener_tls(key, certificate) + OUTPUT));
    assert_eq!(code, Some(2), "{said}");
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(lines.len(), 2, "{said}");
    for (line, place) in
        lines.iter().zip(["4:15: listener[0].tls.cert", "5:15: listener[0].tls.priv"])
    {
        assert!(line.starts_with(&format!("config.toml:{place}")), "{line}");
        assert!(line.contains("swapped?"), "{line}");
    }
}

#[test]
fn certificates_that_cannot_be_read_or_used_are_found() {
    let (files, directory) = (Certificates::new(), TempDir::new().unwrap());
    let whole = std::fs::read(&files.server.certificate).unwrap();
    let half = write(&directory, "half.crt", &whole[..whole.len() / 2]);
    let nonsense = write(
        &directory,
        "nonsense.crt",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    );
    let empty = write(&directory, "empty.crt", "");
    let (key, place) = (&files.server.key, "4:15: listener[0].tls.certificate");
    for (file, words) in [(&half, "PEM"), (&nonsense, "can't be read"), (&empty, "no certificate")]
    {
        assert_refused(&(listener_tls(file, key) + OUTPUT), place, &[words, text(file)]);
    }
    for file in [&empty, &half] {
        let config = listener_tls(&files.server.certificate, file) + OUTPUT;
        assert_refused(&config, "5:15: listener[0].tls.private_key", &["no private key"]);
    }
    // The files are the CA of clients, and then the CA of a consumer.
    for file in [&empty, &half, &nonsense] {
        let client_ca = format!("client_ca = \"{}\"\n", text(file));
        let config = listener_tls(&files.server.certificate, key) + &client_ca + OUTPUT;
        assert_refused(&config, "6:13: listener[0].tls.client_ca", &[text(file)]);
        let config = format!(
            "{LISTENER}[[output]]\nname = \"out\"\ntype = \"tcp\"\naddresses = [\"h:1\"]\ntls.ca = \"{}\"\n",
            text(file)
        );
        assert_refused(&config, "7:10: output[0].tls.ca", &[text(file)]);
    }
}

#[test]
fn an_expired_certificate_is_found_and_a_relay_starts_with_it_all_the_same() {
    let files = Certificates::new();
    let Pair { certificate, key } = &files.expired_server;
    let place = "4:15: listener[0].tls.certificate";
    let words = [text(certificate), "has expired", "2021", "so kube-apiserver refuses it"];
    assert_refused(&(listener_tls(certificate, key) + OUTPUT), place, &words);
    let certificate = &files.expired_client.certificate;
    let tls = files.expired_client.tls();
    let config = format!(
        "{LISTENER}[[output]]\nname = \"out\"\ntype = \"http\"\nurls = [\"https://h/\"]\n{tls}"
    );
    let words = [text(certificate), "has expired", "so the consumer refuses it"];
    assert_refused(&config, "7:23: output[0].tls.certificate", &words);
    let tls = files.expired_server.tls();
    let config = format!("{LISTENER}{OUTPUT}[admin]\naddress = \"127.0.0.1:0\"\n{tls}");
    let words = ["has expired", "so every client of the admin address refuses it"];
    assert_refused(&config, "8:23: admin.tls.certificate", &words);

    let sink = TcpSink::start();
    let relay =
        Relay::start(&crate::support::setup::config(&sink, &files.expired_server.tls(), ""));
    let told = relay.log_fields().iter().any(|fields| {
        fields["key"] == "listener[0].tls.certificate"
            && fields["message"].as_str().is_some_and(|message| message.contains("has expired"))
    });
    assert!(told, "{}", relay.log_text());
    relay.finish(Backlog::Empty);
}

#[test]
fn tokens_that_nobody_could_send_are_found() {
    let directory = TempDir::new().unwrap();
    for (name, content, what) in [
        ("empty", &b""[..], "is empty"),
        ("blank", b" \n", "is empty"),
        ("binary", b"\xff\xfe\x00token", "is not text"),
        ("nul", b"to\0ken", "control character"),
        ("lines", b"one\ntwo\n", "second line"),
    ] {
        let file = write(&directory, name, content);
        let token = format!("bearer_token_file = \"{}\"\n", text(&file));
        let config = format!("{LISTENER}{token}{OUTPUT}");
        assert_refused(&config, "3:21: listener[0].bearer_token_file", &[what, text(&file)]);
        let config = format!(
            "{LISTENER}[[output]]\nname = \"out\"\ntype = \"http\"\nurls = [\"https://h/\"]\n{token}"
        );
        assert_refused(&config, "7:21: output[0].bearer_token_file", &[what, text(&file)]);
        // `run` refuses the config at the same place.
        let (code, said) = run(&["run"], &config);
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains("config.toml:7:21: output[0].bearer_token_file: "), "{said}");
    }
    for (content, what) in [
        (r#"{"id":"a","encoded":"s3cret"}"#, "it contains JSON"),
        ("Basic s3cret", "set `basic_auth`"),
        ("MY_TOKEN=s3cret", "it contains NAME=VALUE"),
        ("two s3crets", "it contains a blank"),
    ] {
        let file = write(&directory, "form", content.as_bytes());
        let config = format!(
            "{LISTENER}[[output]]\nname = \"out\"\ntype = \"http\"\nurls = [\"https://h/\"]\n\
             bearer_token_file = \"{}\"\n",
            text(&file)
        );
        assert_refused(&config, "7:21: output[0].bearer_token_file", &[what, text(&file)]);
        let (code, said) = run(&["run"], &config);
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains(what) && !said.contains("s3cret"), "{said}");
    }
    let file = write(&directory, "password", b"\xff");
    let config = format!(
        "{LISTENER}[[output]]\nname = \"out\"\ntype = \"http\"\nurls = [\"https://h/\"]\n\
         basic_auth = {{ username = \"u\", password_file = \"{}\" }}\n",
        text(&file)
    );
    assert_refused(&config, "7:48: output[0].basic_auth.password_file", &["is not text"]);
}

#[test]
fn directories_that_cannot_be_made_are_found_and_none_is_made() {
    let parent = TempDir::new().unwrap();
    let file = write(&parent, "file", "somebody's");
    for path in [file.join("below"), file.join("far/below"), "/proc/no/such".into()] {
        for (section, key) in [("queue", "queue"), ("dead_letter", "dead_letter")] {
            let config =
                format!("{LISTENER}{OUTPUT}[{section}]\ndirectory = \"{}\"\n", text(&path));
            assert_refused(&config, &format!("7:13: {key}.directory"), &["cannot make"]);
        }
    }
    let fresh = parent.path().join("fresh");
    let config = format!(
        "{LISTENER}{OUTPUT}[queue]\ndirectory = \"{}\"\n[dead_letter]\ndirectory = \"{}\"\n",
        text(&fresh.join("queue")),
        text(&fresh.join("letters"))
    );
    assert_eq!(run(&["check"], &config), (Some(0), "ok: 1 listener, 1 output\n".to_owned()));
    let left: Vec<_> = std::fs::read_dir(parent.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "nothing is made");
    assert_eq!(std::fs::read(&file).unwrap(), b"somebody's");
}

#[test]
fn a_mandatory_file_that_is_missing_is_an_error_unless_the_config_is_for_elsewhere() {
    let config = format!(
        "{LISTENER}[[output]]\nname = \"o\"\ntype = \"http\"\nurls = [\"https://h/\"]\n\
         bearer_token_file = \"/no/such/token\"\n"
    );
    let place = "7:21: output[0].bearer_token_file";
    assert_refused(&config, place, &["the file \"/no/such/token\" does not exist"]);
    assert_eq!(run(&["check", "--connect"], &config).0, Some(2));
    let (code, said) = run(&["check", "--elsewhere"], &config);
    assert_eq!(code, Some(0), "{said}");
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(lines.len(), 2, "{said}");
    assert!(lines[0].starts_with(&format!("config.toml:{place}: warning: the file")), "{said}");
    assert_eq!(lines[1], "ok: 1 listener, 1 output");
    // The whole value of a setting comes from a missing file.
    let level = format!("{LISTENER}{OUTPUT}[log]\nlevel = \"${{file:/no/such/level}}\"\n");
    assert_refused(&level, "7:9: log.level", &["/no/such/level"]);
    assert_eq!(run(&["check", "--elsewhere"], &level).0, Some(0));
    // A directory that cannot be made on this machine may be a volume on the other one.
    let queue = format!("{LISTENER}{OUTPUT}[queue]\ndirectory = \"/proc/queue\"\n");
    let (code, said) = run(&["check", "--elsewhere"], &queue);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("queue.directory: warning: "), "{said}");
    // A missing file that `tls.optional` allows is not a fault on any machine.
    let missing = Path::new("/no/such/file");
    let optional = listener_tls(missing, missing) + "optional = true\n" + OUTPUT;
    let ok = (Some(0), "ok: 1 listener, 1 output\n".to_owned());
    assert_eq!(run(&["check"], &optional), ok);
    let mandatory = optional.replace("optional = true", "optional = false");
    let (code, said) = run(&["check"], &mandatory);
    assert_eq!((code, said.lines().count()), (Some(2), 2), "{said}");
}

#[test]
fn addresses_that_are_named_twice_or_lead_back_are_warned_of() {
    let http = |urls: &str| {
        format!("{LISTENER}[[output]]\nname = \"o\"\ntype = \"http\"\nurls = [{urls}]\n")
    };
    let tcp = |addresses: &str| {
        format!("{LISTENER}[[output]]\nname = \"o\"\ntype = \"tcp\"\naddresses = [{addresses}]\n")
    };
    for (config, expected) in [
        (
            http("\"http://h/a\", \"http://H:80/a\""),
            "6:23: output[0].urls[1]: warning: duplicates an earlier address: remove it",
        ),
        (
            tcp("\"h:1\", \"i:1\", \"H.:1\""),
            "6:28: output[0].addresses[2]: warning: duplicates an earlier address: remove it",
        ),
        (
            tcp("\"[::1]:1\", \"[0::1]:1\""),
            "6:25: output[0].addresses[1]: warning: duplicates an earlier address: remove it",
        ),
        (
            http("\"http://localhost:3000/\""),
            "6:9: output[0].urls[0]: warning: points back to this relay, at \
             listener[0].address (line 2)",
        ),
        (http("\"https://127.0.0.1:3000/x\""), "6:9: output[0].urls[0]: warning: points back"),
        (http("\"http://0.0.0.0:3000/\""), "6:9: output[0].urls[0]: warning: points back"),
        (tcp("\"[::]:3000\""), "6:14: output[0].addresses[0]: warning: points back"),
        (
            tcp("\"h:1\", \"127.0.0.1:9090\""),
            "6:21: output[0].addresses[1]: warning: points back to this relay, at \
             admin.address",
        ),
    ] {
        let (code, said) = run(&["check"], &config);
        assert_eq!(code, Some(0), "{said}");
        assert_eq!(said.lines().count(), 2, "{said}\n{config}");
        assert!(said.starts_with(&format!("config.toml:{expected}")), "{expected}: {said}");
        assert!(said.ends_with("\nok: 1 listener, 1 output\n"), "{said}");
    }
    // The proxy resolves the name, so localhost is another machine.
    let proxied = http("\"http://localhost:3000/\"") + "proxy = \"http://proxy:3128\"\n";
    assert_eq!(run(&["check"], &proxied), (Some(0), "ok: 1 listener, 1 output\n".to_owned()));
}

#[test]
fn on_success_it_says_what_it_checked() {
    let listeners = LISTENER.to_owned() + &LISTENER.replace("3000", "3001");
    let (code, said) = run(&["check"], &(listeners + OUTPUT));
    assert_eq!((code, said.as_str()), (Some(0), "ok: 2 listeners, 1 output\n"));
    if cfg!(feature = "kafka") {
        let source = "[[source]]\nname = \"s\"\ntype = \"kafka\"\nbrokers = [\"h:1\"]\ntopic = \"t\"\n\
                      group = \"g\"\n[queue]\nacknowledge = \"delivered\"\n";
        let (code, said) = run(&["check"], &(OUTPUT.to_owned() + source));
        assert_eq!((code, said.as_str()), (Some(0), "ok: 1 source, 1 output\n"));
    }
    let (_, said) = run(&["check"], &format!("{LISTENER}{OUTPUT}[queue]\nmax_bytes = 1\n"));
    assert!(!said.contains("ok:"), "{said}");
}

#[test]
fn every_problem_is_named_also_where_the_config_is_wrong_elsewhere() {
    let files = Certificates::new();
    let config = listener_tls(&files.server.certificate, &files.client.key)
        + OUTPUT
        + "[queue]\nmax_bytes = \"much\"\ndirectory = \"/proc/queue\"\n";
    let (code, said) = run(&["check"], &config);
    assert_eq!(code, Some(2), "{said}");
    let places: Vec<_> = said.lines().map(|line| line.split(": ").nth(1).unwrap()).collect();
    assert_eq!(
        places,
        ["listener[0].tls.private_key", "queue.max_bytes", "queue.directory"],
        "{said}"
    );
}

#[test]
fn a_valid_certificate_is_not_replaced_by_an_expired_one() {
    let (files, directory) = (Certificates::new(), TempDir::new().unwrap());
    let at = |name: &str| directory.path().join(name);
    let put = |pair: &Pair| {
        std::fs::copy(&pair.key, at("tls.key")).unwrap();
        std::fs::copy(&pair.certificate, at("tls.crt")).unwrap();
    };
    put(&files.server);
    let sink = TcpSink::start();
    let tls = Pair { certificate: at("tls.crt"), key: at("tls.key") }.tls();
    let relay = Relay::start(&crate::support::setup::config(&sink, &tls, ""));
    let expiry = || {
        let labels = [("listener", "127.0.0.1:0"), ("role", "server")];
        relay.metrics().value("tls_certificate_expiry_timestamp_seconds", &labels)
    };
    let before = expiry();
    put(&files.expired_server);
    wait_until("the error", PATIENCE, || relay.reloads("error") >= 1.0);
    assert_eq!(expiry(), before);
    let told = |fields: &Value| {
        fields["error"]
            .as_str()
            .is_some_and(|error| error.contains("has expired, and the one in use has not"))
    };
    wait_until("the reason", PATIENCE, || relay.log_fields().iter().any(told));
    put(&files.server_for(61));
    wait_until("the renewed one", PATIENCE, || expiry() != before);
    relay.finish(Backlog::Empty);
}

/// Method: the smallest configs of the types whose receivers truncate or refuse large events.
/// `check` accepts them, with a hint about the receiver.
#[test]
fn a_limit_of_the_receiver_that_the_config_does_not_know_is_told() {
    const URLS: &str = "urls = [\"https://h/\"]\n";
    const ADDRESSES: &str = "addresses = [\"h:1\"]\n";
    let directory = TempDir::new().unwrap();
    let token = write(&directory, "token", "abc");
    for (kind, more, words) in [
        ("splunk_hec", format!("{URLS}token_file = \"{}\"\n", text(&token)), "10,000 bytes"),
        ("ibm_cloud_logs", format!("{URLS}api_key_file = \"{}\"\n", text(&token)), "32 KB"),
        ("loki", URLS.to_owned(), "256 KB"),
        ("syslog", ADDRESSES.to_owned(), "By default, rsyslog truncates messages over 8 KiB"),
        ("relp", ADDRESSES.to_owned(), "or set max_message_bytes"),
    ] {
        let config = format!("{LISTENER}[[output]]\nname = \"out\"\ntype = \"{kind}\"\n{more}");
        let (code, said) = run(&["check"], &config);
        assert_eq!(code, Some(0), "{said}");
        let hint = "output[0].filter.max_event_bytes: warning: is not set. ";
        assert!(said.contains(hint) && said.contains(words), "{kind}: {said}");
        let (code, said) =
            run(&["check"], &format!("{config}filter.max_event_bytes = \"30KiB\"\n"));
        assert_eq!((code, said.contains("warning")), (Some(0), false), "{said}");
        if more == ADDRESSES {
            let (code, said) = run(&["check"], &format!("{config}max_message_bytes = \"1MiB\"\n"));
            assert_eq!((code, said.contains("warning")), (Some(0), false), "{said}");
        }
    }
}

/// Tests that need peers or root.
mod peers {
    use super::*;

    #[test]
    #[ignore = "needs peers or root: ./test"]
    fn a_directory_of_another_user_is_found() {
        let parent = TempDir::new().unwrap();
        let spool = parent.path().join("spool");
        std::fs::create_dir(&spool).unwrap();
        let nobody = Some(65_534);
        needs("root");
        std::os::unix::fs::chown(&spool, nobody, nobody).expect("root, who may give files away");
        let config = format!("{LISTENER}{OUTPUT}[queue]\ndirectory = \"{}\"\n", text(&spool));
        let file = write(&parent, "config.toml", config);
        // Permissions do not bind root. The command therefore runs without the capability to ignore
        // them.
        let output = std::process::Command::new("setpriv")
            .args(["--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"])
            .arg(binary())
            .args(["check", "--config", text(&file)])
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(":7:13: queue.directory: cannot write to "), "{said}");
        assert!(said.contains("writable by the user"), "{said}");
    }
}
