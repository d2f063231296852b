//! Tests of the config with a type of output for these tests only. They test the interface that
//! every protocol implements.

use std::time::Duration;

use super::{LISTENER, env};
use config::*;
use config_table::table::{Table, required};

/// A type with a credential of its own, a key for the time that it waits, and at most one output
/// per config.
#[derive(Debug, Clone, PartialEq)]
struct Bucket {
    client: HttpClient,
    name: String,
    age: Duration,
}

impl OutputSettings for Bucket {
    const TYPE: &'static str = "bucket";
    const SAMPLE: &'static str = "tls = {}";
    const MEMORY: u64 = 0;
    const ONLY_ONE: Option<&'static str> = Some("fills the bucket");

    fn read(t: &mut Table<'_, '_>) -> Option<Self> {
        let keys = HttpKeys::of_requests(Compression::Zstd, false);
        let (client, (name, age)) = HttpClient::read(t, &keys, |t| {
            let name = t.word(required("bucket", "name", "where"), |text| Ok(text.to_owned()));
            (name, t.time("object_age", Duration::from_secs(300), .., "of an object"))
        });
        Some(Self { client: client?, name: name?, age })
    }

    fn targets(&self) -> Vec<Target> {
        self.client.targets()
    }

    fn final_after(&self) -> Option<(&'static str, Duration)> {
        Some(("object_age", self.age))
    }
}

const TYPES: &[OutputType] = &[OutputType::of::<Bucket>()];

const BUCKET: &str = "\
[[output]]
name = 'a'
type = 'bucket'
urls = ['https://a/']
bucket = 'b'
";

fn checked(text: &str) -> Checked {
    read_with(&format!("{text}{LISTENER}"), TYPES, &env)
}

fn problems(text: &str) -> Vec<String> {
    checked(text).problems.iter().map(|problem| problem.render("f").split_off(2)).collect()
}

#[test]
fn a_config_has_the_types_that_it_is_read_with_and_no_others() {
    let config = checked(BUCKET).config.unwrap();
    let bucket: &Bucket = config.outputs[0].kind.settings().unwrap();
    assert_eq!((bucket.name.as_str(), bucket.client.compression), ("b", Compression::Zstd));
    assert_eq!(config.outputs[0].kind.name(), "bucket");
    assert_eq!(
        problems("[[output]]\nname = 'a'\ntype = 'stdout'\n"),
        ["3:8: output[0].type: \"stdout\" is unknown, allowed: \"bucket\""]
    );
    let reference = reference(TYPES);
    for row in ["| `output.object_age` | time | `\"5m\"` | of an object |", "| `output.tls.ca` |"] {
        assert!(reference.contains(row), "{reference}");
    }
    assert!(!reference.contains("basic_auth") && !reference.contains("bearer_token_file` (bu"));
}

#[test]
fn a_type_with_a_credential_of_its_own_has_no_other() {
    assert_eq!(
        problems(&format!("{BUCKET}bearer_token_file = 'x'\n")),
        [
            "6:1: output[0].bearer_token_file: unknown key `bearer_token_file`, allowed: name, type, \
          required, checkpoints, pause, rate_limit, urls, strategy, bucket, object_age, \
          compression, headers, concurrency, proxy, tls, retry, timeouts, batch, rejected, filter"
        ]
    );
}

#[test]
fn outputs_are_equal_if_their_types_and_settings_are() {
    let kind = |text: &str| checked(text).config.unwrap().outputs.remove(0).kind;
    assert_eq!(kind(BUCKET), kind(BUCKET));
    assert_ne!(kind(BUCKET), kind(&format!("{BUCKET}object_age = '1s'\n")));
    let other = super::config("[[output]]\nname = 'a'\ntype = 'stdout'\n").outputs.remove(0).kind;
    assert_ne!(kind(BUCKET), other);
    assert!(other.settings::<Bucket>().is_none());
}
