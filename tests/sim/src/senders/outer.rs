//! The senders that only some configs have: strangers at the TLS handshake, clients without the
//! token, kube-apiserver with large events, and bodies that are too large.

use std::time::Duration;

use super::client::{Http1, Line, head, judged};
use super::shop::Job;
use super::strangers::{Single, chunked, gzip, write_all};
use super::{Actor, Kind, apiserver};
use crate::pki::Papers;
use crate::truth::Must;
use crate::{events, kernel};

/// The start of a handshake: a record that announces 512 bytes, and four of them.
const HALF: &[u8] = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc";

/// How long a stranger waits for a reaction to half a handshake.
const WAITS: Duration = Duration::from_secs(20);

/// Tries to get in without a valid handshake.
pub(super) fn intruder(actor: &Actor, role: u32) {
    let Kind::Intruder { asks, .. } = actor.profile.kind else { return };
    let (mut maker, mut rng) = (actor.maker(role), actor.rng(role));
    let mut single = Single { actor, connections: 0 };
    while actor.is_next(&mut rng) {
        let events = actor.events(&mut maker, rng.usize(1..5));
        if events.is_empty() {
            continue;
        }
        let (what, papers) = match rng.u8(..if asks { 4 } else { 2 }) {
            0 => ("HTTP without TLS", None),
            1 => {
                half_a_handshake(actor, &mut rng);
                continue;
            }
            2 => ("no client certificate", Some(Papers::Missing)),
            _ => ("a wrong client certificate", Some(Papers::Wrong)),
        };
        let (serials, body) = (actor.book.made(&events), events::list(&events));
        let head = head(actor, "POST", &[], body.len());
        let connect = |deadline| match papers {
            None => Http1::connect_plain(actor, deadline),
            Some(papers) => Http1::connect_with(actor, papers, deadline),
        };
        single.request_over(&serials, Must::Refuse(what, &[]), connect, |http, deadline| {
            write_all(http, &[head.as_bytes(), &body], deadline)?;
            Ok(judged(&http.reply(deadline)?, serials.len()))
        });
    }
}

/// Sends a part of a handshake, or garbage. May wait until the relay ends the connection.
fn half_a_handshake(actor: &Actor, rng: &mut fastrand::Rng) {
    let soon = kernel::now() + WAITS;
    let Ok(mut http) = Http1::connect_plain(actor, soon) else { return };
    let bytes = [HALF, b"", b"\x16\x03", b"\x80\x2e\x01\x00\x02", b"SSH-2.0-Go\r\n"];
    let sent = http.socket().write(bytes[rng.usize(..bytes.len())], soon);
    // The relay's response to this does not matter.
    if sent.is_ok() && rng.bool() {
        while matches!(http.socket().read(&mut [0; 512], soon), Ok(1..)) {}
    }
}

/// Sends a body slowly with a wrong token, again and again.
pub(super) fn without_token(actor: &Actor, role: u32) {
    let mut rng = actor.rng(role);
    let head = head(actor, "POST", &[("Authorization", "Bearer another")], 100_000);
    while actor.shop.pause(Duration::from_millis(rng.u64(1..400))) {
        let soon = kernel::now() + Duration::from_secs(60);
        let Ok(mut http) = Http1::connect(actor, soon) else { continue };
        let mut next = head.as_bytes();
        while http.socket().write(next, soon).is_ok() && http.socket().is_quiet() {
            next = b"    ";
            if !actor.shop.pause(Duration::from_millis(rng.u64(200..600))) {
                return;
            }
        }
    }
}

/// Sends single large events, like kube-apiserver.
pub(super) fn large(actor: &Actor, role: u32) {
    let Kind::Large { bytes, .. } = actor.profile.kind else { return };
    let (mut maker, mut rng) = (actor.maker(role), actor.rng(role));
    let mut line = Line::new(actor, 1 << 40);
    while actor.is_next(&mut rng) {
        let event = [maker.large_event(rng.usize(bytes / 2..bytes))];
        let mut job = Job::new(actor, &event, events::list(&event), Duration::from_secs(1));
        actor.shop.busy(true);
        apiserver::deliver(actor, &mut line, &mut job, &mut rng);
        actor.shop.busy(false);
    }
}

/// Sends valid events in a body larger than `limits.max_body`, compressed or not. JSON lines are
/// refused then, and a list is not (see http.md).
pub(super) fn too_large(actor: &Actor, role: u32) {
    let Some(bytes) = actor.target.too_large else { return };
    let (mut maker, mut rng) = (actor.maker(role), actor.rng(role));
    let mut single = Single { actor, connections: 0 };
    while actor.is_next(&mut rng) {
        let events = [maker.event(), maker.large_event(rng.usize(bytes..3 * bytes))];
        let (serials, body) = (actor.book.made(&events), events::lines(&events));
        let (headers, body) = match rng.u8(..3) {
            0 => (vec![("Content-Encoding", "gzip")], gzip(&body)),
            1 => (vec![("Transfer-Encoding", "chunked")], chunked(&body, &mut rng)),
            _ => (Vec::new(), body),
        };
        let head = head(actor, "POST", &headers, body.len());
        single.request(&serials, Must::Refuse("too large", &[413]), |http, deadline| {
            write_all(http, &[head.as_bytes(), &body], deadline)?;
            Ok(judged(&http.reply(deadline)?, serials.len()))
        });
    }
}
