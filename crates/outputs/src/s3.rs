//! `type = "s3"`: objects of JSON lines in a bucket of Amazon S3, or of a server with the same
//! protocol (MinIO, IBM Cloud Object Storage, SeaweedFS).
//!
//! An object has the events of a range of positions, and its name shows the range. Objects are
//! written with `If-None-Match: *`, so an object that is sent again is not written twice: the
//! server answers 412, which counts as already delivered. `conditional_writes = false` leaves the
//! header out. Source: Amazon S3 API Reference, `PutObject`.
//!
//! | floor | files | what they know |
//! |---|---|---|
//! | 1 | `plan` `signature` | the ranges of objects · AWS Signature Version 4 |
//! | 2 | `object` `sts` | the lines, the name and the bytes of an object · temporary keys |
//! | 3 | `bucket` | requests and answers |
//! | 4 | `link` | when an object ends, and what becomes of it |

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::http::HttpConnector;
use super::http::api::Api;
use super::http::service::Service;
use super::setup::{IntoConnector, Setup};
use super::tokens::Tokens;
use bucket::{Address, Bucket, KeyFiles, Keys};
use config::{Compression, Content, HttpClient, HttpKeys, OutputSettings, Target};
use config_table::table::{Table, optional, required};
use delivery::endpoints::{Endpoints, Probed};
use delivery::failure::Failure;
use delivery::files::Files;
use delivery::link::{Begin, Connect};
use delivery::prepared::Connector;
use link::{Limits, S3Link};
use plan::Plan;
use sts::{Role, Sts};
use telemetry::AttemptError;

mod bucket;
mod link;
mod object;
mod plan;
mod signature;
mod sts;

/// The lines of a new object have at most 1/`PART_OF_QUEUE` of the queue's limit: the queue holds
/// the events of two objects, one that is collected and one that is stored, and must have room for
/// new events. An object that an earlier link has ended may be larger.
const PART_OF_QUEUE: u64 = 4;

/// The config keys for the two files of the access key.
const KEY_ID: &str = "access_key_id_file";
const SECRET: &str = "secret_access_key_file";

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Settings {
    client: HttpClient,
    address: Address,
    credentials: Credentials,
    limits: Limits,
}

/// The source of the access key.
#[derive(Debug, Clone, PartialEq)]
enum Credentials {
    Files(KeyFiles),
    /// The Security Token Service gives keys for a role.
    WebIdentity(Role),
}

impl OutputSettings for Settings {
    const TYPE: &'static str = "s3";
    const SAMPLE: &'static str = "tls = {}";
    const MEMORY: u64 = (2 * 64 + 4) << 20;
    const COLLECTS: bool = true;

    fn read(t: &mut Table<'_, '_>) -> Option<Self> {
        let keys = HttpKeys {
            compression: Compression::Zstd,
            compresses: "compression of objects",
            concurrency: false,
            authorization: false,
        };
        let (client, (address, credentials, limits)) = HttpClient::read(t, &keys, own);
        Some(Self { client: client?, address: address?, credentials: credentials?, limits })
    }

    fn targets(&self) -> Vec<Target> {
        self.client.targets()
    }

    fn final_after(&self) -> Option<(&'static str, Duration)> {
        Some(("object_age", self.limits.age))
    }

    fn carries_checkpoints(&self) -> bool {
        true
    }
}

/// Reads the config keys of this type. A part of the result is `None` if one of its values is
/// wrong.
fn own(t: &mut Table<'_, '_>) -> (Option<Address>, Option<Credentials>, Limits) {
    let bucket = t.word(required("bucket", "name", "bucket for the objects"), bucket_name);
    let region =
        t.word(required("region", "name", "region, such as \"eu-central-1\""), region_name);
    let meaning = "prefix of the object names, such as \"audit/prod\"";
    let prefix = t.word_or(("prefix", "string", meaning), "", None, prefix);
    let meaning = "`true`: the bucket is in the URL path; `false`: in the hostname";
    let path_style = t.flag("path_style", true, meaning);
    let meaning = "`true`: write an object only if its name is not taken (If-None-Match); `false`: \
                   for a server that does not support this (501). An object may then be stored \
                   twice, or overwrite another";
    let conditional = t.flag("conditional_writes", true, meaning);
    let meaning = "file with the access key ID; without it, web identity from the environment";
    let id = t.file(optional(KEY_ID, "path", "none", meaning), Content::ListenerToken);
    let meaning = "file with the secret access key";
    // Keys of some stores are free text, so they are read as they stand.
    let secret = t.file(optional(SECRET, "path", "none", meaning), Content::ListenerToken);
    let meaning = "uncompressed size at which an object is closed and uploaded; limited to a \
                   quarter of `queue.max_bytes`";
    let bytes = t.size("object_bytes", 64 << 20, 1024..=(1 << 30), meaning);
    let (least, most) = (Duration::from_millis(100), Duration::from_secs(24 * 60 * 60));
    let meaning = "age at which an object is closed and uploaded";
    let age = t.time("object_age", Duration::from_secs(300), least..=most, meaning);
    let credentials = credentials(t, (id, secret), region.as_deref());
    let address = bucket.zip(region).zip(prefix);
    let address = address.map(|((bucket, region), prefix)| Address {
        bucket,
        region,
        prefix,
        path_style,
        conditional,
    });
    (address, credentials, Limits { bytes, age })
}

/// Returns the source of the access key: the two files, or the web identity of the environment.
/// `None` if there is none, or if a value of the config is wrong.
fn credentials(
    t: &mut Table<'_, '_>,
    files: (Option<PathBuf>, Option<PathBuf>),
    region: Option<&str>,
) -> Option<Credentials> {
    let role = region.and_then(|region| Role::of(&|name| t.env(name), region));
    match (t.is_set(KEY_ID), t.is_set(SECRET)) {
        (true, false) => t.error(SECRET, "is required together with access_key_id_file"),
        (false, true) => t.error(KEY_ID, "is required together with secret_access_key_file"),
        (false, false) if role.is_none() => t.error(
            KEY_ID,
            "is required, with secret_access_key_file; or set neither key, and set the environment \
             variables AWS_ROLE_ARN and AWS_WEB_IDENTITY_TOKEN_FILE",
        ),
        (true, true) | (false, false) => {}
    }
    match files {
        (Some(id), Some(secret)) => Some(Credentials::Files(KeyFiles { id, secret })),
        (None, None) => Some(Credentials::WebIdentity(role?)),
        (Some(_), None) | (None, Some(_)) => None,
    }
}

fn bucket_name(text: &str) -> Result<String, String> {
    let what = "is not a bucket, allowed: 3 to 63 characters (A-Z, a-z, 0-9, -, ., _)";
    name(text, 3, "-._").ok_or_else(|| what.to_owned())
}

fn region_name(text: &str) -> Result<String, String> {
    let what = "is not a region, allowed: 1 to 63 characters (A-Z, a-z, 0-9, -, _)";
    name(text, 1, "-_").ok_or_else(|| what.to_owned())
}

/// Returns the text if it has `least` to 63 letters, digits and characters of `others`.
fn name(text: &str, least: usize, others: &str) -> Option<String> {
    let in_a_name = |c: char| c.is_ascii_alphanumeric() || others.contains(c);
    let is_name = (least..=63).contains(&text.len()) && text.chars().all(in_a_name);
    is_name.then(|| text.to_owned())
}

/// Returns a prefix without `/` at its ends. The error text says what is wrong with the prefix.
fn prefix(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Ok(String::new());
    }
    let text = config::printable(text, 512)?;
    let trimmed = text.trim_matches('/');
    let is_usable = |part: &str| !matches!(part, "" | "." | "..");
    match trimmed.split('/').all(is_usable) {
        true => Ok(trimmed.to_owned()),
        false => Err("has a part that is empty, `.` or `..`: remove that part".to_owned()),
    }
}

impl Settings {
    /// Makes the bucket, which knows the requests and their answers.
    pub(crate) fn bucket(&self, setup: &Setup<'_>) -> Arc<Bucket> {
        let keys = match &self.credentials {
            Credentials::Files(files) => {
                let files = files.clone();
                Keys::Files { files, read: None.into(), used: None.into() }
            }
            Credentials::WebIdentity(role) => Keys::WebIdentity(Tokens::new(Sts {
                service: Service::beside(&self.client, &role.url, setup.output),
                role: role.clone(),
            })),
        };
        let (address, compression) = (self.address.clone(), self.client.compression);
        Arc::new(Bucket {
            tried: Mutex::default(),
            address,
            compression,
            keys,
            refuses_checksum: AtomicBool::new(false),
        })
    }
}

impl IntoConnector for Settings {
    fn connector(&self, setup: &Setup<'_>) -> Box<dyn Connector> {
        let bucket = self.bucket(setup);
        let api = Arc::clone(&bucket) as Arc<dyn Api>;
        let http = HttpConnector::new(&self.client, api, setup);
        let (output, limits) = (Arc::from(setup.output.name.as_str()), self.limits);
        Box::new(S3Connector { output, http, bucket, limits, begin: None, plan: None })
    }
}

/// The connector of an `s3` output. It makes links, one after the other, which use the same plan.
struct S3Connector {
    /// The name of the output, for the log.
    output: Arc<str>,
    http: HttpConnector,
    bucket: Arc<Bucket>,
    limits: Limits,
    begin: Option<Begin>,
    /// The ranges of the objects. `None` before they were read.
    plan: Option<Arc<Plan>>,
}

impl Connect for S3Connector {
    type Link = S3Link;

    const EAGER: bool = false;
    const COLLECTS: bool = true;

    fn judges_events(&self) -> bool {
        true
    }

    fn checkpoint_interval(&self) -> Duration {
        self.limits.age
    }

    fn begin(&mut self, begin: Begin) {
        self.http.begin(begin.clone());
        self.begin = Some(begin);
    }

    fn files(&self) -> Option<Arc<dyn Files>> {
        Connect::files(&self.http)
    }

    fn endpoints(&self) -> Option<Arc<Endpoints>> {
        Connect::endpoints(&self.http)
    }

    async fn probe(&mut self) -> Probed {
        Connect::probe(&mut self.http).await
    }

    /// Makes a link, which has no TCP connection yet.
    async fn connect(&mut self) -> Result<S3Link, Failure> {
        let failed = |what: String| Failure::new(AttemptError::Protocol, what);
        let Some(begin) = self.begin.clone() else {
            return Err(failed("the queue has no identity yet".to_owned()));
        };
        let plan = match &self.plan {
            Some(plan) => Arc::clone(plan),
            None => {
                let (output, notes) = (Arc::clone(&self.output), begin.notes.clone());
                let loaded = tokio::task::spawn_blocking(move || Plan::load(output, notes)).await;
                let plan = loaded.map_err(|error| failed(error.to_string()))?.map_err(|error| {
                    failed(format!("cannot read the ranges of the last objects: {error}"))
                })?;
                Arc::clone(self.plan.insert(Arc::new(plan)))
            }
        };
        let Limits { bytes, age } = self.limits;
        let limits = Limits { bytes: bytes.min(begin.capacity / PART_OF_QUEUE), age };
        let transfers = (self.http.transfers(), self.http.transfers());
        Ok(S3Link::new(Arc::clone(&self.bucket), transfers, limits, begin, plan))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_has_usable_parts() {
        assert_eq!(prefix("/a/b+c/").unwrap(), "a/b+c");
        assert_eq!((prefix("").unwrap(), prefix("/").is_err()), (String::new(), true));
        assert!(prefix("a//b").is_err() && prefix("../b").is_err() && prefix("a\n").is_err());
    }
}
