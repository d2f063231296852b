//! Reads the hellos of TLS handshakes, which are not encrypted: the groups of the key exchange (RFC
//! 8446 §4.2.7) that a client offers, and the one that the server chooses.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};

use super::server::{Options, Server};
use super::stream::Stream;
use super::{PATIENCE, wait_for};

/// X25519 together with ML-KEM-768 (draft-ietf-tls-ecdhe-mlkem).
pub(crate) const X25519MLKEM768: u16 = 0x11ec;
pub(crate) const X25519: u16 = 0x001d;

/// A client's hello.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Offer {
    /// The groups, with the preferred one first.
    pub(crate) groups: Vec<u16>,
    /// The groups for which the hello has a key. If the server chooses one of these, the handshake
    /// takes one round trip.
    pub(crate) keys: Vec<u16>,
}

/// The bytes that both sides of a connection have sent so far.
#[derive(Debug, Default, Clone)]
struct Heard {
    client: Vec<u8>,
    server: Vec<u8>,
}

/// A server that forwards connections and records the bytes of both sides.
pub(crate) struct Wiretap {
    server: Server,
    heard: Arc<Mutex<Vec<Heard>>>,
}

impl Wiretap {
    /// Forwards connections to `to`. If that is `None`, there is no answer, and a connection is
    /// closed after the client's hello.
    pub(crate) fn start(to: Option<SocketAddr>) -> Self {
        let heard = Arc::<Mutex<Vec<Heard>>>::default();
        let all = Arc::clone(&heard);
        let server = Server::start(Options::default(), move |stream, _| {
            let number = {
                let mut all = all.lock().unwrap();
                all.push(Heard::default());
                all.len() - 1
            };
            let Stream::Plain(client) = stream else { panic!("a plain stream") };
            let from_client = |bytes: &[u8]| {
                let heard = &mut all.lock().unwrap()[number].client;
                heard.extend_from_slice(bytes);
                to.is_some() || hellos(heard, 1).is_empty()
            };
            let Some(to) = to else { return pass(&client, None, from_client) };
            let Ok(other) = TcpStream::connect(to) else { return };
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    pass(&other, Some(&client), |bytes| {
                        all.lock().unwrap()[number].server.extend_from_slice(bytes);
                        true
                    });
                });
                pass(&client, Some(&other), from_client);
            });
        });
        Self { server, heard }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// Waits for a client's first hello, and returns it.
    pub(crate) fn offer(&self) -> Offer {
        wait_for("a client's hello", PATIENCE, || {
            self.heard
                .lock()
                .unwrap()
                .iter()
                .find_map(|heard| hellos(&heard.client, 1).first().map(|hello| offer(hello)))
        })
    }

    /// Waits until a server has chosen a group. Returns the group, and how many hellos the client
    /// sent.
    pub(crate) fn choice(&self) -> (u16, usize) {
        wait_for("a server's choice", PATIENCE, || {
            self.heard.lock().unwrap().iter().find_map(|heard| {
                let chosen = hellos(&heard.server, 2).iter().find_map(|hello| chosen(hello))?;
                Some((chosen, hellos(&heard.client, 1).len()))
            })
        })
    }
}

/// Passes bytes on until one of the sides ends or `note` returns `false`.
fn pass(mut from: &TcpStream, to: Option<&TcpStream>, note: impl Fn(&[u8]) -> bool) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        let bytes = &buffer[..count];
        let goes_on = note(bytes);
        if !goes_on || to.is_some_and(|mut to| to.write_all(bytes).is_err()) {
            break;
        }
    }
    for end in [Some(from), to].into_iter().flatten() {
        // The socket may be closed already.
        drop(end.shutdown(Shutdown::Both));
    }
}

/// Returns the complete handshake messages of this type (RFC 8446 §4) before the first encrypted
/// record.
fn hellos(heard: &[u8], of: u8) -> Vec<Vec<u8>> {
    let (mut rest, mut messages) = (heard, Vec::new());
    while let [kind @ 20..=22, _, _, high, low, behind @ ..] = rest {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let Some((record, after)) = behind.split_at_checked(length) else { break };
        if *kind == 22 {
            messages.extend_from_slice(record);
        }
        rest = after;
    }
    let (mut rest, mut found) = (messages.as_slice(), Vec::new());
    while let [kind, lengths @ ..] = rest {
        let mut at = lengths;
        let Some(body) = vector(&mut at, 3) else { break };
        if *kind == of {
            found.push(body.to_vec());
        }
        rest = at;
    }
    found
}

/// Takes a vector from the front. Its length precedes it, in this number of bytes.
fn vector<'a>(at: &mut &'a [u8], length_bytes: usize) -> Option<&'a [u8]> {
    let (length, rest) = at.split_at_checked(length_bytes)?;
    let length = length.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
    let (body, rest) = rest.split_at_checked(length)?;
    *at = rest;
    Some(body)
}

fn number(bytes: &[u8]) -> u16 {
    u16::from_be_bytes([bytes[0], bytes[1]])
}

/// Returns the extension with this number, or `None` if it is not in `extensions`.
fn extension(mut extensions: &[u8], of: u16) -> Option<&[u8]> {
    while !extensions.is_empty() {
        let (kind, mut rest) = extensions.split_at(2);
        let body = vector(&mut rest, 2)?;
        if number(kind) == of {
            return Some(body);
        }
        extensions = rest;
    }
    None
}

const SUPPORTED_GROUPS: u16 = 10;
const KEY_SHARE: u16 = 51;

/// Reads a client's hello (RFC 8446 §4.1.2).
fn offer(hello: &[u8]) -> Offer {
    // The version and the random number come first.
    let mut at = &hello[34..];
    for length_bytes in [1, 2, 1] {
        vector(&mut at, length_bytes).expect("session, suites and compressions");
    }
    let extensions = vector(&mut at, 2).expect("extensions");
    let mut groups = extension(extensions, SUPPORTED_GROUPS).expect("groups");
    let groups = vector(&mut groups, 2).expect("a list").chunks_exact(2).map(number).collect();
    let mut shares = extension(extensions, KEY_SHARE).expect("key shares");
    let (mut shares, mut keys) = (vector(&mut shares, 2).expect("a list"), Vec::new());
    while !shares.is_empty() {
        keys.push(number(shares));
        shares = &shares[2..];
        vector(&mut shares, 2).expect("a key");
    }
    Offer { groups, keys }
}

/// Reads a server's hello (RFC 8446 §4.1.3). Returns the group of the server's key, or `None` if
/// the message requests another hello and so has no key.
fn chosen(hello: &[u8]) -> Option<u16> {
    let mut at = &hello[34..];
    vector(&mut at, 1).expect("a session");
    at = &at[3..];
    let share = extension(vector(&mut at, 2).expect("extensions"), KEY_SHARE)?;
    (share.len() > 2).then(|| number(share))
}
