//! An HTTP client like Go's: it keeps its connection, and has one deadline for the whole request.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use super::Actor;
use super::http2::Http2;
use super::socket::Socket;
use crate::events::Serial;
use crate::kernel;
use crate::pki::Papers;
use crate::truth::{Answer, Must, SentBy};

/// `IdleConnTimeout` of Go's default transport.
const IDLE_MAX: Duration = Duration::from_secs(90);
/// The longest response that is read, in bytes.
const ANSWER_MAX: usize = 256 * 1024;

/// `queue.retry_after` can be 1 to 15 s. The header is 0.6 to 1.6 times that (see http.md).
const RETRY_AFTER: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(24);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) status: u16,
    /// A Retry-After that is a whole number of seconds.
    pub(super) retry_after: Option<Duration>,
    /// `true` if the connection accepts no further request.
    pub(super) closes: bool,
    pub(super) body: Vec<u8>,
}

/// A body, and the number of pieces in which it is written.
pub(super) struct Body {
    pub(super) bytes: Arc<[u8]>,
    pub(super) pieces: u8,
    pub(super) pauses: fastrand::Rng,
}

impl Body {
    /// Calls `write` for each piece, with pauses between them. The pauses fit into an attempt, but
    /// a relay with a short `limits.body_timeout` may not wait that long.
    pub(super) fn write(
        &self,
        mut write: impl FnMut(&[u8]) -> Result<(), Answer>,
    ) -> Result<(), Answer> {
        let mut pauses = self.pauses.clone();
        let size = self.bytes.len().div_ceil(usize::from(self.pieces)).max(1);
        for (place, piece) in self.bytes.chunks(size).enumerate() {
            if place > 0 {
                let longest = if pauses.u8(..10) == 0 { 5_000 } else { 600 };
                std::thread::sleep(Duration::from_millis(pauses.u64(1..longest)));
            }
            write(piece)?;
        }
        Ok(())
    }
}

/// An HTTP/1.1 connection.
pub(super) struct Http1 {
    socket: Socket,
    /// The bytes that were read and do not belong to a response yet.
    read: Vec<u8>,
}

impl Http1 {
    pub(super) fn connect(actor: &Actor, deadline: Duration) -> Result<Self, Answer> {
        Self::connect_with(actor, Papers::Right, deadline)
    }

    /// Connects with this client certificate.
    pub(super) fn connect_with(
        actor: &Actor,
        papers: Papers,
        deadline: Duration,
    ) -> Result<Self, Answer> {
        Ok(Self { socket: Socket::connect(actor, papers, false, deadline)?, read: Vec::new() })
    }

    /// Connects without a handshake, even if the relay uses TLS.
    pub(super) fn connect_plain(actor: &Actor, deadline: Duration) -> Result<Self, Answer> {
        Ok(Self { socket: Socket::plain(actor, deadline)?, read: Vec::new() })
    }

    pub(super) fn socket(&mut self) -> &mut Socket {
        &mut self.socket
    }

    fn post(&mut self, actor: &Actor, body: &Body, deadline: Duration) -> Result<Reply, Answer> {
        let head = head(actor, "POST", &[], body.bytes.len());
        let sent = self.socket.write(head.as_bytes(), deadline);
        let sent = sent.and_then(|()| body.write(|piece| self.socket.write(piece, deadline)));
        match sent {
            // A refusal may come before the whole body is sent. Go's client reads it.
            Ok(()) | Err(Answer::Broken) => self.reply(deadline),
            Err(answer) => Err(answer),
        }
    }

    /// Reads the final response.
    pub(super) fn reply(&mut self, deadline: Duration) -> Result<Reply, Answer> {
        loop {
            let end = self.read_until(deadline, |read| {
                memchr::memmem::find(read, b"\r\n\r\n").map(|at| at + 4)
            })?;
            let head: Vec<u8> = self.read.drain(..end).collect();
            let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
            let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
            let status: u16 = status.ok_or(Answer::Broken)?;
            if status < 200 {
                continue;
            }
            let header = |name: &str| {
                let mut lines = head.lines().filter_map(|line| line.split_once(':'));
                lines.find(|(header, _)| *header == name).map(|(_, value)| value.trim())
            };
            let length = header("content-length").and_then(|length| length.parse().ok());
            let length: usize = length.ok_or(Answer::Broken)?;
            let retry_after = header("retry-after").and_then(|after| after.parse().ok());
            let closes = header("connection") == Some("close");
            self.read_until(deadline, |read| (read.len() >= length).then_some(length))?;
            let body = self.read.drain(..length).collect();
            let retry_after = retry_after.map(Duration::from_secs);
            return Ok(Reply { status, retry_after, closes, body });
        }
    }

    /// Reads until `end` returns how many bytes are needed, and returns that number.
    fn read_until(
        &mut self,
        deadline: Duration,
        end: impl Fn(&[u8]) -> Option<usize>,
    ) -> Result<usize, Answer> {
        let mut buffer = [0; 4096];
        loop {
            if let Some(end) = end(&self.read) {
                return Ok(end);
            }
            match self.socket.read(&mut buffer, deadline)? {
                0 => return Err(Answer::Broken),
                size => self.read.extend_from_slice(buffer.get(..size).unwrap_or_default()),
            }
            if self.read.len() > ANSWER_MAX {
                return Err(Answer::Broken);
            }
        }
    }
}

/// Returns a head as kube-apiserver's client writes it, with these headers first.
pub(super) fn head(actor: &Actor, method: &str, more: &[(&str, &str)], length: usize) -> String {
    let mut head = format!("{method} {} HTTP/1.1\r\n", actor.target.path);
    let named = |name: &str| more.iter().any(|(header, _)| header.eq_ignore_ascii_case(name));
    let mut add = |name: &str, value: &str| head.push_str(&format!("{name}: {value}\r\n"));
    more.iter().for_each(|(name, value)| add(name, value));
    if !named("host") {
        add("Host", &actor.target.address().to_string());
    }
    add("User-Agent", "kube-apiserver-admission");
    if !named("content-length") && !named("transfer-encoding") {
        add("Content-Length", &length.to_string());
    }
    add("Accept", "application/json, */*");
    if let Some(token) = actor.target.token.as_ref().filter(|_| !named("authorization")) {
        add("Authorization", &format!("Bearer {token}"));
    }
    if !named("content-type") {
        add("Content-Type", "application/json");
    }
    add("Accept-Encoding", "gzip");
    head.push_str("\r\n");
    head
}

enum Connection {
    Http1(Http1),
    Http2(Http2),
}

/// The connections of one thread, one at a time. Each is kept for as long as possible.
pub(super) struct Line<'a> {
    actor: &'a Actor,
    open: Option<Connection>,
    /// The number of the newest connection.
    number: u64,
    used: Duration,
}

impl<'a> Line<'a> {
    /// The first connection gets the next number after this one.
    pub(super) fn new(actor: &'a Actor, number: u64) -> Self {
        Self { actor, open: None, number, used: Duration::ZERO }
    }

    /// Posts a body, and returns the response, if there was one. The book records both.
    pub(super) fn post(
        &mut self,
        serials: &Arc<[Serial]>,
        must: Must,
        body: &Body,
        deadline: Duration,
    ) -> Option<Reply> {
        let kept = self.take_kept();
        self.number += u64::from(kept.is_none());
        let actor = self.actor;
        let from = SentBy { sender: actor.profile.sender, connection: self.number };
        let attempt = actor.book.begun(from, serials, must);
        let outcome = self.exchange(kept, body, deadline);
        let answer = match &outcome {
            Ok(reply) => judged(reply, serials.len()),
            Err(answer) => *answer,
        };
        actor.book.ended(attempt, answer);
        outcome.ok()
    }

    fn take_kept(&mut self) -> Option<Connection> {
        let mut kept = self.open.take()?;
        let is_quiet = match &mut kept {
            Connection::Http1(http) => http.read.is_empty() && http.socket.is_quiet(),
            Connection::Http2(http) => http.is_usable(),
        };
        (is_quiet && kernel::now().saturating_sub(self.used) < IDLE_MAX).then_some(kept)
    }

    fn exchange(
        &mut self,
        kept: Option<Connection>,
        body: &Body,
        deadline: Duration,
    ) -> Result<Reply, Answer> {
        let actor = self.actor;
        let mut connection = match kept {
            Some(kept) => kept,
            None if actor.profile.http2 => Connection::Http2(Http2::connect(actor, deadline)?),
            None => Connection::Http1(Http1::connect(actor, deadline)?),
        };
        let reply = match &mut connection {
            Connection::Http1(http) => http.post(actor, body, deadline)?,
            Connection::Http2(http) => http.post(actor, body, deadline)?,
        };
        if !reply.closes {
            self.open = Some(connection);
        }
        self.used = kernel::now();
        Ok(reply)
    }
}

/// Returns what the sender learns from a response to a body with this many events.
pub(super) fn judged(reply: &Reply, events: usize) -> Answer {
    judged_beside(reply, events, 0)
}

/// Like [`judged`], for a body that also has this many items that are not events.
pub(super) fn judged_beside(reply: &Reply, events: usize, others: usize) -> Answer {
    let said = match others {
        0 => format!(r#"{{"accepted":{events}}}"#),
        _ => format!(r#"{{"accepted":{events},"rejected":{others}}}"#),
    };
    match (reply.status, reply.retry_after) {
        (200, _) if reply.body != said.as_bytes() => Answer::Miscounted,
        (429 | 503, Some(after)) if RETRY_AFTER.contains(&after) => Answer::Status(reply.status),
        (429 | 503, _) => Answer::Unhelpful(reply.status),
        (status, _) => Answer::Status(status),
    }
}
