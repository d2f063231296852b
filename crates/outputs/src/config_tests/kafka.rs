//! Tests of outputs and sources of type `kafka`. `deploy/test/image.sh` tests a program that was
//! built without Kafka.

use std::time::Duration;

use config::read_with;

use super::{TYPES, assert_problems, files};

fn assert_in_kafka(lines: &str, others: &str) {
    assert_problems(&format!("[[output]]\nname = 'o'\ntype = 'kafka'\n{lines}"), others);
}

fn assert_in_source(lines: &str, others: &str) {
    let text = format!(
        "[[source]]\nname = 's'\ntype = 'kafka'\nbrokers = ['a:9092']\ntopic = 't'\ngroup = 'g'\n\
         {lines}\n"
    );
    assert_problems(&text, others);
}

const DELIVERED: &str = "[queue]\nacknowledge = 'delivered'\n";

#[test]
fn brokers_and_topic_are_enough() {
    assert_in_kafka("brokers = ['a:9092', '[::1]:9092']\ntopic = 'a.B_c-1'\n", "");
    assert_in_source(DELIVERED, "");
}

#[test]
fn what_is_wrong_is_told() {
    assert_in_kafka(
        "",
        r"1:1: output[0].brokers: is required: an array of host:port
1:1: output[0].topic: is required: a name",
    );
    assert_in_kafka(
        "brokers = ['a']\ntopic = 'a/b'\nkey = 'auditID'\ncompression = 'lz4'\naddresses = []\n\
         sasl = { mechanism = 'GSSAPI', username = '' }\n",
        r#"4:12: output[0].brokers[0]: "a" has no port
5:9: output[0].topic: "a/b" is not a topic, allowed: 1 to 249 characters (a-z
6:7: output[0].key: "auditID" is unknown, allowed: "audit_id", "none"
7:15: output[0].compression: "lz4" is unknown, allowed: "none", "gzip", "zstd"
8:1: output[0].addresses: type kafka has no key `addresses`, allowed only for: tcp, syslog
9:8: output[0].sasl.password_file: is required: a path
9:22: output[0].sasl.mechanism: "GSSAPI" is unknown
9:43: output[0].sasl.username: is not a username"#,
    );
    let dir = files();
    let dir = dir.path().display();
    assert_in_kafka(
        &format!(
            "brokers = ['a:1']\ntopic = 't'\ntls = {{ certificate = '{dir}/crt', server_name = 'b' }}\n"
        ),
        &format!(
            "6:23: output[0].tls.certificate: needs private_key too: set both or neither
6:{}: output[0].tls.server_name: unknown key `server_name`, allowed: ca, ",
            31 + dir.to_string().len()
        ),
    );
    assert_in_kafka(
        &format!(
            "brokers = ['a:1']\ntopic = 't'\n\
             sasl = {{ mechanism = 'PLAIN', username = 'u', password_file = '{dir}/key' }}\n"
        ),
        "6:22: output[0].sasl.mechanism: warning: sends the password in clear text without tls",
    );
    assert_in_kafka(
        &format!(
            "brokers = ['a:1']\ntopic = 't'\ntls = {{ insecure_skip_verify = true }}\n\
             sasl = {{ mechanism = 'PLAIN', username = 'u', password_file = '{dir}/key' }}\n"
        ),
        "6:32: output[0].tls.insecure_skip_verify: warning: certificates are not verified",
    );
}

#[test]
fn a_source_needs_delivered_and_its_own_name() {
    let why = "an offset would be committed before the outputs have the events, and a crash would \
               lose them";
    let missing = "source[0]: needs queue.acknowledge = \"delivered\": otherwise";
    assert_in_source("", &format!("1:1: {missing} {why}"));
    assert_in_source(
        "[queue]\nacknowledge = 'queued'\n",
        &format!(
            "8:15: queue.acknowledge: conflicts with [[source]]: {why}, allowed: \"delivered\""
        ),
    );
    assert_in_source(
        "[queue]\nmax_bytes = '1GiB'\ndirectory = '/no'\n",
        "9:13: queue.directory: conflicts with [[source]]",
    );
    assert_in_source(
        "max_in_flight = '1XB'\n[queue]\nacknowledge = 'delivered'\n",
        r#"7:17: source[0].max_in_flight: "1XB" is not a size"#,
    );
    let second =
        "[[source]]\nname = 's'\ntype = 'pulsar'\nbrokers = ['a:9092']\ntopic = 't'\ngroup = 'g'\n";
    assert_in_source(
        &format!("{second}{DELIVERED}"),
        r#"8:8: source[1].name: duplicate name, also used by source[0].name (line
9:8: source[1].type: "pulsar" is unknown, allowed: "kafka""#,
    );
}

#[test]
fn a_config_needs_a_listener_or_a_source() {
    for nothing in ["", "listener = []\n", "source = []\n"] {
        let text = format!("{nothing}[[output]]\nname = 'o'\ntype = 'stdout'\n");
        let checked = read_with(&text, TYPES, &super::env);
        let problems: Vec<_> = checked.problems.iter().map(|problem| &problem.message).collect();
        assert_eq!(problems, ["is required: one or more [[listener]] or [[source]]"]);
    }
    let text = format!(
        "[[source]]\nname = 's'\ntype = 'kafka'\nbrokers = ['a:1']\ntopic = 't'\ngroup = 'g'\n\
         [[output]]\nname = 'o'\ntype = 'stdout'\n{DELIVERED}"
    );
    let checked = read_with(&text, TYPES, &super::env);
    assert!(checked.config.is_some(), "{:?}", checked.problems);
}

#[test]
fn every_key_arrives() {
    use crate::kafka::{MessageKey, Settings};
    use config::*;

    let dir = files();
    let dir = dir.path().display();
    let more = format!(
        "brokers = ['a:1']\ntopic = 't'\nsasl = {{ mechanism = 'SCRAM-SHA-256', username = 'u', \
         password_file = '{dir}/key' }}\ntls = {{ ca = '{dir}/ca', certificate = '{dir}/crt', \
         private_key = '{dir}/key', insecure_skip_verify = true }}\n"
    );
    let text = format!(
        "[[source]]\nname = 's'\ntype = 'kafka'\ngroup = 'g'\nmax_in_flight = '1MiB'\nsession_timeout = '6s'\n{more}\
         [[output]]\nname = 'o'\ntype = 'kafka'\nkey = 'none'\ncompression = 'zstd'\n{more}\
         {DELIVERED}"
    );
    let checked = super::checked(&text);
    let config = checked.config.as_ref().unwrap();
    let SourceKind::Kafka(source) = &config.sources[0].kind;
    let output: &Settings = config.outputs[0].kind.settings().expect("it is kafka's");
    assert_eq!((source.group.as_str(), source.max_in_flight), ("g", 1024 * 1024));
    assert_eq!(source.session_timeout, Duration::from_secs(6));
    assert_eq!((output.key, output.compression), (MessageKey::None, Compression::Zstd));
    assert_eq!(source.cluster, output.cluster);
    let Kafka { brokers, topic, tls, sasl } = &source.cluster;
    assert_eq!((brokers[0].to_string().as_str(), topic.as_str()), ("a:1", "t"));
    assert_eq!(sasl.as_ref().unwrap().mechanism, SaslMechanism::ScramSha256);
    let tls = tls.as_ref().unwrap();
    assert!(tls.insecure_skip_verify && tls.ca.is_some() && tls.identity.is_some());
    // The effective config must read back to the same.
    let again = read_with(&checked.effective(), TYPES, &super::env);
    assert_eq!(again.config.as_ref(), checked.config.as_ref(), "{}", checked.effective());
}
