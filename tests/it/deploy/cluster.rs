//! Facts that `deploy/` relies on: the relay works on a spool that belongs to an unprivileged
//! user's group, and with certificates that `deploy/certificate.sh` makes, and rotates while the
//! relay runs.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt, chown, symlink};
use std::process::{Command, Output};

use crate::support::prelude::*;
use crate::support::tally::{Sent, Tallying, check};

/// Makes a directory like a volume with `fsGroup`: it belongs to root and this group, and
/// everything created inside belongs to the group.
fn volume(group: u32) -> Spool {
    let spool = Spool::new();
    std::fs::create_dir(spool.path()).unwrap();
    needs("root");
    chown(spool.path(), Some(0), Some(group)).expect("the tests run as root");
    std::fs::set_permissions(spool.path(), PermissionsExt::from_mode(0o2775)).unwrap();
    let parent = spool.path().parent().expect("a temporary directory");
    std::fs::set_permissions(parent, PermissionsExt::from_mode(0o755)).unwrap();
    spool
}

/// Method: starts the program as this user, without privileges, on a volume of root and the user's
/// group. Kills it as the kernel does when a container has used up its memory. The next start on
/// the same volume must deliver everything. All files must belong to the user and the group, and
/// nobody else may read them.
fn a_kill_loses_nothing(user: u32, setpriv: &[&str]) {
    let group = 65532.max(user);
    let spool = volume(group);
    let shared = TempDir::new().unwrap();
    std::fs::set_permissions(shared.path(), PermissionsExt::from_mode(0o755)).unwrap();
    // The program and its config are copied to a directory that this user may read; the build's
    // directory need not be readable.
    let script = "install -m 755 \"$1\" \"$0/relay\"; install -m 644 \"$4\" \"$0/config.toml\"; \
                  exec setpriv $SETPRIV --bounding-set=-all --no-new-privs \
                  \"$0/relay\" run --config \"$0/config.toml\"";
    let mut consumer = Tallying::tcp().closed();
    let config = format!("{BASE}{}{}", consumer.output("out", ""), spool.queue(""));
    let start = || {
        Relay::with(&config)
            .launcher(&["sh", "-c", script, text(shared.path())])
            .variable("SETPRIV", &setpriv.join(" "))
            .start()
    };
    let mut relay = start();
    let post = |relay: &Relay, numbers: std::ops::Range<u64>| {
        assert_eq!(relay.post(&numbered::list(0, numbers.clone())).status, 200);
        Sent { sender: 0, numbers, accepted: true }
    };
    let mut sent = vec![post(&relay, 0..500)];
    let process = std::fs::metadata(format!("/proc/{}", relay.pid())).unwrap();
    assert_eq!(process.uid(), user);
    relay.kill();
    let relay = start();
    sent.push(post(&relay, 500..600));
    consumer.reopen();
    relay.finish(Backlog::Empty);
    assert_eq!(check("out", &sent, &consumer.tally.arrivals()).len(), 0);
    let files = spool.files();
    assert!(!files.is_empty());
    for file in files.keys().map(|file| spool.path().join(file)) {
        let made = file.metadata().unwrap();
        assert_eq!((made.uid(), made.gid()), (user, group), "{file:?}");
        assert_eq!(made.mode() & 0o077, 0, "others may not read {file:?}");
    }
}

/// A fake cluster: `tests/peers/kubectl`, which is also `oc`. The directory has its CAs, the calls
/// that were made, and the Secret as pods see it.
pub(super) struct Cluster {
    directory: TempDir,
    /// The environment variables of the scripts.
    pub(super) variables: BTreeMap<&'static str, &'static str>,
}

impl Cluster {
    pub(super) fn new() -> Self {
        let variables = BTreeMap::from([("TIMEOUT", "60"), ("PAUSE", "1")]);
        let cluster = Self { directory: TempDir::new().unwrap(), variables };
        for name in ["ca", "foreign-ca"] {
            let subject = format!("/CN={name}");
            let (key, certificate) = (format!("{name}.key"), format!("{name}.crt"));
            let kind = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"];
            let rest = ["-nodes", "-subj", &subject, "-keyout", &key, "-out", &certificate];
            let made = cluster.openssl(&[&kind[..], &rest].concat());
            assert!(made.status.success(), "{made:?}");
        }
        // `mount` is the volume of an optional Secret that does not exist yet. `temporary` is for
        // the script's temporary files, `home` is its user's home, and `bin` has the fake kubectl
        // as `oc`.
        for directory in ["mount", "temporary", "home", "bin"] {
            std::fs::create_dir(cluster.path(directory)).unwrap();
        }
        symlink(repository().join("tests/peers/kubectl"), cluster.path("bin/oc")).unwrap();
        cluster
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(super) fn openssl(&self, arguments: &[&str]) -> Output {
        Command::new(program("openssl"))
            .args(arguments)
            .current_dir(self.directory.path())
            .output()
            .unwrap()
    }

    fn certificate(&self) -> Output {
        self.script("deploy/certificate.sh", &[])
    }

    /// Runs a script of `deploy/` against this cluster. It waits at most 60 s for anything, unless
    /// `variables` say otherwise, and must leave no temporary file.
    pub(super) fn script(&self, script: &str, arguments: &[&str]) -> Output {
        let peers = repository().join("tests/peers");
        let path = std::env::var("PATH").unwrap();
        let output = Command::new(repository().join(script))
            .args(arguments)
            .env("KUBECTL", peers.join("kubectl"))
            .env("PATH", format!("{}:{}:{path}", text(&self.path("bin")), text(&peers)))
            .env("CLUSTER", self.directory.path())
            .env("TMPDIR", self.path("temporary"))
            .env("HOME", self.path("home"))
            .env_remove("IBMCLOUD_HOME")
            .envs(&self.variables)
            .output()
            .unwrap();
        let left = std::fs::read_dir(self.path("temporary")).unwrap().count();
        assert_eq!(left, 0, "the key stays in a temporary directory");
        output
    }

    pub(super) fn calls(&self) -> String {
        std::fs::read_to_string(self.path("calls")).unwrap()
    }

    /// Returns the certificate that a listener presents, as PEM, or `None` if it presents none.
    fn presented(&self, port: u16) -> Option<String> {
        let address = format!("127.0.0.1:{port}");
        let said = Command::new(program("openssl"))
            .args(["s_client", "-connect", &address])
            .stdin(std::process::Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        let begin = said.find("-----BEGIN CERTIFICATE")?;
        let end = said.find("-----END CERTIFICATE-----")?;
        said.get(begin..end).map(|pem| format!("{pem}-----END CERTIFICATE-----\n"))
    }
}

pub(super) fn succeeded(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Posts with curl to this URL, but at this port on loopback, and trusts the cluster's CA.
pub(super) fn curl(ca: &Path, url: &str, port: u16, body: &Path) -> Output {
    Command::new(program("curl"))
        .args(["--silent", "--show-error", "--noproxy", "*", "--max-time", "60"])
        .args(["--cacert", text(ca)])
        .args(["--connect-to", &format!("::127.0.0.1:{port}")])
        .args(["--json", &format!("@{}", text(body)), url])
        .output()
        .unwrap()
}

/// Tests that need peers or root.
mod peers {
    use super::*;

    #[test]
    #[ignore = "needs peers or root: ./test"]
    fn the_images_user_loses_nothing_by_a_kill_on_a_volume_of_root_and_its_group() {
        a_kill_loses_nothing(65532, &["--reuid=65532", "--regid=65532", "--clear-groups"]);
    }

    #[test]
    #[ignore = "needs peers or root: ./test"]
    fn a_user_that_openshift_chose_loses_nothing_by_a_kill_on_a_volume_of_root_and_its_fs_group() {
        let user = ["--reuid=1000650000", "--regid=0", "--groups=1000650000"];
        a_kill_loses_nothing(1_000_650_000, &user);
    }

    #[test]
    #[ignore = "needs peers or root: ./test"]
    fn certificate_sh_makes_what_the_relay_serves_and_rotates_it_without_a_restart() {
        let cluster = Cluster::new();
        let consumer = Tallying::tcp();
        let mount = cluster.path("mount");
        // The TLS listener opens on all addresses, so that the port is the same on each.
        let tls = format!(
            "[[listener]]\naddress = \"0.0.0.0:0\"\n[listener.tls]\ncertificate = \"{0}/tls.crt\"\n\
             private_key = \"{0}/tls.key\"\noptional = true\n",
            text(&mount)
        );
        let config = format!("{BASE}{tls}{}", consumer.output("out", ""));
        let mut relay = Relay::with(&config).listeners(1).start();
        let mut plain = Client::connect(relay.address()).unwrap();
        let pid = relay.pid();

        succeeded(&cluster.certificate());
        relay.wait_for_listeners(2);
        let port = relay.listeners()[1].1.port();
        let ca = cluster.path("ca.crt");
        // The certificate has four names and two addresses of each of the two Services. A sender
        // can use any of them.
        let batch = numbered::list(0, 0..10);
        let body = cluster.path("batch.json");
        std::fs::write(&body, &batch).unwrap();
        let hosts = [
            "kube-audit-forwarder.ibm-kube-audit.svc",
            "kube-audit-forwarder.ibm-kube-audit.svc.cluster.local",
            "kube-audit-forwarder.ibm-kube-audit",
            "kube-audit-forwarder",
            "10.96.0.17",
            "[fd00::17]",
            "kube-audit-forwarder-https.ibm-kube-audit.svc",
            "kube-audit-forwarder-https.ibm-kube-audit.svc.cluster.local",
            "kube-audit-forwarder-https.ibm-kube-audit",
            "kube-audit-forwarder-https",
            "10.96.0.18",
            "[fd00::18]",
        ];
        for host in hosts {
            let answer = curl(&ca, &format!("https://{host}/post"), port, &body);
            let said = String::from_utf8_lossy(&answer.stdout);
            assert_eq!(said.trim(), "{\"accepted\":10}", "{answer:?}");
        }
        let other = curl(&ca, "https://elsewhere.example/post", port, &body);
        assert!(!other.status.success(), "any name will do");
        // No command line has a secret, and the Secret has the name and the type that the manifests
        // use.
        let calls = cluster.calls();
        for expected in ["certificate approve kube-audit-forwarder.ibm-kube-audit", "apply -f -"] {
            assert!(calls.lines().any(|call| call == expected), "{calls}");
        }
        let secret = std::fs::read_to_string(cluster.path("applied.yaml")).unwrap();
        for expected in
            ["name: audit-webhook", "namespace: ibm-kube-audit", "type: kubernetes.io/tls"]
        {
            assert!(secret.contains(expected), "{secret}");
        }
        assert_eq!(
            std::fs::read(mount.join("..data/ca.crt")).unwrap(),
            std::fs::read(&ca).unwrap(),
            "what a sender has to trust"
        );

        let first = cluster.presented(port).expect("a certificate");
        succeeded(&cluster.certificate());
        wait_until("the new certificate", PATIENCE, || {
            cluster.presented(port).is_some_and(|now| now != first)
        });
        let served = cluster.presented(port).unwrap();
        assert_eq!(served, std::fs::read_to_string(mount.join("tls.crt")).unwrap());
        let answer = curl(&ca, &format!("https://{}/post", hosts[0]), port, &body);
        assert!(answer.status.success(), "{answer:?}");
        // The process is the same, and open connections stay open.
        let kept = plain.post("/", "application/json", &batch).unwrap();
        assert_eq!(kept.status, 200);
        assert_eq!(relay.pid(), pid);
        let metrics = relay.metrics();
        assert_eq!(metrics.value("config_reload_total", &[("result", "error")]), 0.0);
        let batches = hosts.len() + 2;
        assert_eq!(
            metrics.value("event_total", &[]),
            10.0 * f64::from(u32::try_from(batches).unwrap())
        );
        relay.finish(Backlog::Empty);
    }

    #[test]
    #[ignore = "needs peers or root: ./test"]
    fn certificate_sh_keeps_the_type_of_a_secret_that_is_there() {
        let cluster = Cluster::new();
        // The manifests of version 0.1.0 make no difference.
        std::fs::write(cluster.path("two-ports"), "").unwrap();
        std::fs::write(cluster.path("type"), "Opaque").unwrap();
        succeeded(&cluster.certificate());
        assert_eq!(std::fs::read_to_string(cluster.path("type")).unwrap(), "Opaque");
    }

    #[test]
    #[ignore = "needs peers or root: ./test"]
    fn certificate_sh_gives_no_ca_where_it_does_not_know_who_signed() {
        let cluster = Cluster::new();
        std::fs::write(cluster.path("foreign"), "").unwrap();
        let output = cluster.certificate();
        succeeded(&output);
        assert!(String::from_utf8_lossy(&output.stderr).contains("the Secret gets no ca.crt"));
        assert!(cluster.path("mount/tls.crt").is_file());
        assert!(!cluster.path("mount/..data/ca.crt").exists());
    }

    #[test]
    #[ignore = "needs peers or root: ./test"]
    fn certificate_sh_leaves_the_secret_alone_where_the_request_is_denied() {
        let cluster = Cluster::new();
        succeeded(&cluster.certificate());
        let before = std::fs::read(cluster.path("mount/tls.crt")).unwrap();
        std::fs::write(cluster.path("denies"), "").unwrap();
        let output = cluster.certificate();
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("did not sign") && said.contains("Denied: not by us"), "{said}");
        assert_eq!(std::fs::read(cluster.path("mount/tls.crt")).unwrap(), before);
    }
}
