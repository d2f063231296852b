//! The certificates of the relay's listener and of its senders. The listener's files are laid out
//! like a Secret by kubelet: each version is in a new directory, and the symlink `..data` is
//! swapped.

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, ServerConfig};

use crate::support::certificates::{Certificates, Pair, chain};

/// The directory in the config.
const DIRECTORY: &str = "tls";

/// The longest time for a handshake, in simulated time.
const HANDSHAKE: Duration = Duration::from_secs(20);

/// The protocols of a client that offers HTTP/2, like Go's client.
const BOTH: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// The fault in the files of a rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wrong {
    /// The key belongs to another certificate.
    Mismatch,
    /// The certificate is cut in the middle.
    Cut,
    /// The key is missing.
    NoKey,
}

impl Wrong {
    pub(crate) const ALL: [Self; 3] = [Self::Mismatch, Self::Cut, Self::NoKey];
}

/// The client certificate that a sender presents if the relay asks for one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Papers {
    Right,
    Missing,
    /// A certificate that another authority has signed.
    Wrong,
}

/// The TLS settings of the senders.
pub(crate) struct Security {
    http1: Arc<ClientConfig>,
    http2: Arc<ClientConfig>,
    missing: Arc<ClientConfig>,
    wrong: Arc<ClientConfig>,
}

impl Security {
    /// Returns the client's side of a new connection.
    pub(crate) fn client(&self, papers: Papers, is_http2: bool) -> ClientConnection {
        let config = match papers {
            Papers::Right if is_http2 => &self.http2,
            Papers::Right => &self.http1,
            Papers::Missing => &self.missing,
            Papers::Wrong => &self.wrong,
        };
        let name = ServerName::try_from("127.0.0.1").expect("an address");
        let mut client = ClientConnection::new(Arc::clone(config), name).expect("a sound config");
        client.set_buffer_limit(None);
        client
    }
}

/// The certificate of a consumer with TLS, and the CA file that the relay trusts.
#[derive(Clone)]
pub(crate) struct Authority {
    pub(crate) server: Arc<ServerConfig>,
    pub(crate) ca: PathBuf,
}

/// All certificates, and the state of the listener's files.
pub(crate) struct Pki {
    certificates: Certificates,
    pub(crate) security: Arc<Security>,
    /// The newest correct pair.
    pair: Pair,
    /// The number of directories so far.
    number: u32,
}

impl Pki {
    /// Makes all certificates, and the listener's files below the current directory.
    pub(crate) fn new() -> Self {
        let certificates = Certificates::new();
        let config = |pair: Option<&Pair>, protocols: &[&[u8]]| {
            let mut config = ClientConfig::clone(&certificates.client_config(pair));
            config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
            // client-go does not resume sessions.
            config.resumption = Resumption::disabled();
            Arc::new(config)
        };
        let security = Security {
            http1: config(Some(&certificates.client), &BOTH[1..]),
            http2: config(Some(&certificates.client), &BOTH),
            missing: config(None, &BOTH[1..]),
            wrong: config(Some(&certificates.wrong_client), &BOTH[1..]),
        };
        let pair = certificates.server.clone();
        let mut pki = Self { security: Arc::new(security), pair, certificates, number: 0 };
        fs::create_dir(DIRECTORY).expect("a writable directory");
        for name in ["tls.crt", "tls.key", "ca.crt"] {
            let link = Path::new(DIRECTORY).join(name);
            symlink(Path::new("..data").join(name), link).expect("a writable directory");
        }
        pki.put(None);
        pki
    }

    /// Returns the certificate that all consumers use.
    pub(crate) fn authority(&self) -> Authority {
        let Certificates { server, ca, .. } = &self.certificates;
        Authority { server: server.server_config(), ca: ca.clone() }
    }

    /// Puts a new certificate in place, and returns it.
    pub(crate) fn rotate(&mut self) -> Vec<u8> {
        self.pair = self.certificates.another_server(&format!("server-{}", self.number));
        self.put(None);
        self.newest()
    }

    /// Returns the newest correct certificate.
    pub(crate) fn newest(&self) -> Vec<u8> {
        chain(&self.pair.certificate)[0].to_vec()
    }

    /// Puts the newest pair in place, or wrong files.
    pub(crate) fn put(&mut self, wrong: Option<Wrong>) {
        self.number += 1;
        let name = format!("..{}", self.number);
        let directory = Path::new(DIRECTORY).join(&name);
        fs::create_dir(&directory).expect("a writable directory");
        let copy = |from: &PathBuf, name: &str| {
            fs::copy(from, directory.join(name)).expect("a writable directory");
        };
        copy(&self.certificates.ca, "ca.crt");
        copy(&self.pair.certificate, "tls.crt");
        match wrong {
            Some(Wrong::Mismatch) => copy(&self.certificates.wrong_server.key, "tls.key"),
            Some(Wrong::NoKey) => {}
            Some(Wrong::Cut) | None => copy(&self.pair.key, "tls.key"),
        }
        if wrong == Some(Wrong::Cut) {
            let file = directory.join("tls.crt");
            let whole = fs::read(&file).expect("it was just written");
            fs::write(&file, &whole[..whole.len() / 2]).expect("a writable directory");
        }
        let next = Path::new(DIRECTORY).join("..data_tmp");
        symlink(&name, &next).expect("a writable directory");
        fs::rename(&next, Path::new(DIRECTORY).join("..data")).expect("a writable directory");
    }

    /// Returns the certificate that a listener uses, or why there was no handshake.
    pub(crate) fn shown(&self, address: &str) -> Result<Vec<u8>, String> {
        let socket = TcpStream::connect_timeout(&address.parse().expect("an address"), HANDSHAKE);
        let mut socket = socket.map_err(|error| error.to_string())?;
        let mut client = self.security.client(Papers::Right, false);
        let shake =
            socket.set_read_timeout(Some(HANDSHAKE)).and_then(|()| client.complete_io(&mut socket));
        shake.map_err(|error| error.to_string())?;
        leaf(&client).ok_or_else(|| "no certificate".to_owned())
    }
}

/// Returns the peer's own certificate.
pub(crate) fn leaf(client: &ClientConnection) -> Option<Vec<u8>> {
    Some(client.peer_certificates()?.first()?.to_vec())
}
