//! `type = "relp"`: the Reliable Event Logging Protocol, as rsyslog's `imrelp` speaks it. The
//! messages are those of `syslog`.
//!
//! Each side sends frames, `TXNR SP COMMAND SP DATALEN [SP DATA] LF`. The relay numbers its
//! commands from 1: `open` with its offers, a `syslog` for each message, and `close`. The consumer
//! answers each command with a `rsp` of the same number. The data of the answer begins with 200 if
//! the consumer accepted the command; any other answer breaks the connection. The number 0 is for
//! hints, such as `serverclose`.

use std::collections::VecDeque;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::setup::{IntoConnector, Setup};
use super::syslog::Rfc5424;
use super::transport::acknowledged;
use super::transport::acknowledged::{Answers, Encoding, Frames, Protocol, Trouble};
use super::transport::connection::Wire;
use config::{Messages, OutputSettings, Stream, Target};
use config_table::table::Table;
use delivery::link::Verdict;
use delivery::prepared::Connector;
use queue::{Batch, lines};

/// The highest number of a RELP command; the next command has the number 1. Also the maximum bytes
/// of data in a RELP frame.
const NINE_DIGITS: u32 = 999_999_999;

/// The maximum bytes of data in a consumer's answer. An answer of librelp usually has 6 bytes, or
/// some hundred bytes if it lists the consumer's offers.
const ANSWER_BYTES_MAX: usize = 16 * 1024;

/// The features that the relay offers with the command `open`. librelp gives its protocol the
/// version 0.
const OFFERS: &str = concat!(
    "relp_version=0\nrelp_software=kube-audit-forwarder,",
    env!("CARGO_PKG_VERSION"),
    "\ncommands=syslog"
);

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Settings {
    /// The common parts of all syslog messages.
    pub messages: Messages,
    /// The maximum number of sent messages without an acknowledgement, at least 1.
    pub window: u64,
    pub stream: Stream,
}

impl OutputSettings for Settings {
    const TYPE: &'static str = "relp";
    const SAMPLE: &'static str = "tls = {}";
    const MEMORY: u64 = 4 << 20;

    fn read(t: &mut Table<'_, '_>) -> Option<Self> {
        let messages = Messages::read(t);
        let meaning = "maximum unacknowledged messages; if the connection breaks, they are sent \
                       again";
        let window = Stream::read_window(t, 128, meaning);
        let stream = Stream::read(t);
        Some(Self { messages: messages?, window, stream: stream? })
    }

    fn targets(&self) -> Vec<Target> {
        self.stream.targets()
    }

    fn event_limit(&self) -> Option<&'static str> {
        self.messages.event_limit()
    }

    fn carries_checkpoints(&self) -> bool {
        true
    }
}

impl IntoConnector for Settings {
    fn connector(&self, setup: &Setup<'_>) -> Box<dyn Connector> {
        let config::Output { rejected, filter, .. } = setup.output;
        let messages = Rfc5424::new(&self.messages, *rejected, &filter.annotate);
        let make = move || Relp::new(messages.clone());
        let dialer = setup.dialer(&self.stream);
        Box::new(acknowledged::AcknowledgedConnector::new(dialer, self.window, make))
    }
}

/// The state of the RELP protocol on one connection.
pub(super) struct Relp {
    messages: Rfc5424,
    /// The number of the relay's next command.
    next: u32,
    /// The sent messages, in order, from the oldest unacknowledged one on: `true` if a message is
    /// acknowledged. The consumer may acknowledge messages in any order.
    answered: VecDeque<bool>,
}

impl Relp {
    /// Makes the state of a new connection, before the command `open`.
    pub(crate) fn new(messages: Rfc5424) -> Self {
        let messages = messages.at_most(u64::from(NINE_DIGITS));
        Self { messages, next: 1, answered: VecDeque::new() }
    }

    /// Encodes each event of a batch as one RELP command `syslog`. An event whose message is too
    /// long for RELP or for the config is left out, and recorded as too long. Returns an error text
    /// if the config does not allow the relay to give up such an event.
    fn frames(&self, batch: &Batch) -> Result<Frames, String> {
        let mut frames = Frames::default();
        let mut out = BytesMut::with_capacity(self.messages.capacity(batch));
        let mut number = self.next;
        for (event, position) in lines(&batch.pieces).zip(batch.positions()) {
            let Some(message) = self.messages.message(event)? else {
                frames.parts.add(position, Verdict::TooLong);
                continue;
            };
            frames.parts.add(position, Verdict::Delivered);
            out.extend_from_slice(format!("{number} syslog {} ", message.length).as_bytes());
            message.write(&mut out);
            out.extend_from_slice(b"\n");
            number = after(number, 1);
        }
        frames.bytes = out.freeze();
        Ok(frames)
    }

    /// Records that the consumer has acknowledged the message with this number. Returns an error
    /// text if there is no such message, or if the message is already acknowledged.
    fn answer(&mut self, number: u32) -> Result<(), String> {
        let awaited = u32::try_from(self.answered.len()).unwrap_or(u32::MAX);
        let oldest = after(self.next, NINE_DIGITS - awaited % NINE_DIGITS);
        let index = usize::try_from((number + NINE_DIGITS - oldest) % NINE_DIGITS);
        match index.ok().and_then(|index| self.answered.get_mut(index)) {
            Some(answered) if number > 0 && !*answered => {
                *answered = true;
                Ok(())
            }
            Some(_) | None => {
                Err(format!("responds to command {number}, which awaits no response"))
            }
        }
    }
}

/// Returns the number of the command that is `commands` commands after the command `number`.
fn after(number: u32, commands: u32) -> u32 {
    (number - 1 + commands) % NINE_DIGITS + 1
}

impl Protocol for Relp {
    async fn open(&mut self, wire: &mut Wire, unread: &mut BytesMut) -> Result<(), Trouble> {
        let open = format!("{} open {} {OFFERS}\n", self.next, OFFERS.len());
        wire.io().write_all(open.as_bytes()).await?;
        wire.io().flush().await?;
        let frame = loop {
            if let Some(frame) = frame(unread).map_err(Trouble::Protocol)? {
                break frame;
            }
            if wire.io().read_buf(unread).await? == 0 {
                return Err(Trouble::Io(std::io::ErrorKind::UnexpectedEof.into()));
            }
        };
        if frame.number != self.next {
            let what = format!("responds to command {} instead of the open command", frame.number);
            return Err(Trouble::Protocol(what));
        }
        let data = frame.data;
        taken(data).map_err(Trouble::Protocol)?;
        let offer = |name: &[u8]| {
            data.split(|byte| *byte == b'\n')
                .find_map(|line| line.strip_prefix(name).and_then(|rest| rest.strip_prefix(b"=")))
        };
        if offer(b"relp_version") != Some(b"0") {
            return Err(Trouble::Protocol("offers no RELP version that the relay supports".into()));
        }
        let commands = offer(b"commands").unwrap_or_default();
        if !commands.split(|byte| *byte == b',').any(|command| command == b"syslog") {
            return Err(Trouble::Protocol("does not offer the command syslog".into()));
        }
        let length = frame.length;
        unread.advance(length);
        self.next = after(self.next, 1);
        Ok(())
    }

    fn encode(&self, batch: Batch) -> Encoding {
        Box::pin(std::future::ready(self.frames(&batch)))
    }

    fn sent(&mut self, events: u64) {
        for _ in 0..events {
            self.next = after(self.next, 1);
            self.answered.push_back(false);
        }
    }

    fn read(&mut self, unread: &mut BytesMut, answers: &mut Answers) -> Result<(), String> {
        while let Some(Frame { number, command, data, length }) = frame(unread)? {
            // A hint is not a sign of life: a consumer that sends only hints hangs.
            if number == 0 {
                answers.closing |= command == b"serverclose";
            } else {
                (answers.alive, answers.progress) = (true, true);
                taken(data)?;
                self.answer(number)?;
            }
            unread.advance(length);
            while self.answered.pop_front_if(|answered| *answered).is_some() {
                answers.acknowledged += 1;
            }
        }
        Ok(())
    }

    fn close(&self) -> Vec<u8> {
        format!("{} close 0\n", self.next).into_bytes()
    }
}

/// Checks that the data of an answer has the code 200. The error text quotes the answer.
fn taken(data: &[u8]) -> Result<(), String> {
    if data.starts_with(b"200") && data.get(3).is_none_or(|byte| *byte == b' ' || *byte == b'\n') {
        return Ok(());
    }
    let said = data.split(|byte| *byte == b'\n').next().unwrap_or_default();
    // An answer has a code of three digits, a space, and up to 80 characters for people.
    let said = &said[..said.len().min(84)];
    Err(format!("responds with \"{}\"", said.escape_ascii()))
}

/// A complete RELP frame at the beginning of the bytes that were read from the consumer.
struct Frame<'a> {
    number: u32,
    command: &'a [u8],
    data: &'a [u8],
    /// The length of the whole frame in bytes.
    length: usize,
}

/// Parses the frame at the beginning of `read`: an answer (`rsp`) or a hint (a command with the
/// number 0). `None` if the frame is incomplete. Returns an error text if the bytes are not the
/// beginning of an answer or hint.
fn frame(read: &[u8]) -> Result<Option<Frame<'_>>, String> {
    let wrong = || {
        let said = &read[..read.len().min(32)];
        format!("says \"{}\", which is not a RELP response", said.escape_ascii())
    };
    let Some((number, at)) = digits(read, 0).ok_or_else(wrong)? else { return Ok(None) };
    if read[at] != b' ' {
        return Err(wrong());
    }
    let from = at + 1;
    let letters = read[from..].iter().take_while(|byte| byte.is_ascii_alphabetic()).count();
    let command = from..from + letters;
    let Some(behind) = read.get(command.end) else {
        return if letters <= 32 { Ok(None) } else { Err(wrong()) };
    };
    let known =
        if number == 0 { (1..=32).contains(&letters) } else { &read[command.clone()] == b"rsp" };
    if *behind != b' ' || !known {
        return Err(wrong());
    }
    let Some((length, at)) = digits(read, command.end + 1).ok_or_else(wrong)? else {
        return Ok(None);
    };
    let length = usize::try_from(length).ok().filter(|length| *length <= ANSWER_BYTES_MAX);
    let length = length.ok_or_else(wrong)?;
    // A frame without data has no space before the line feed.
    let start = if length == 0 { at } else { at + 1 };
    let data = start..start + length;
    if length > 0 && read[at] != b' ' {
        return Err(wrong());
    }
    match read.get(data.end) {
        None => Ok(None),
        Some(b'\n') => {
            let length = data.end + 1;
            Ok(Some(Frame { number, command: &read[command], data: &read[data], length }))
        }
        Some(_) => Err(wrong()),
    }
}

/// Parses a number of at most nine digits at the index `from`. Returns the number and the index
/// after its last digit. `None` if there is no such number. `Some(None)` if the number may begin or
/// continue in bytes that are not read yet.
fn digits(read: &[u8], from: usize) -> Option<Option<(u32, usize)>> {
    let rest = read.get(from..)?;
    let count = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    if count == rest.len() && count <= 9 {
        return Some(None);
    }
    if count == 0 || count > 9 {
        return None;
    }
    let number = rest[..count].iter().fold(0, |sum, digit| sum * 10 + u32::from(digit - b'0'));
    Some(Some((number, from + count)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{answered, batch, rfc5424};
    use config::Rejected;
    use queue::Position;

    /// Returns the protocol on a connection whose `open` is done.
    fn relp(rejected: Rejected) -> Relp {
        Relp { next: 2, ..Relp::new(rfc5424(60, rejected)) }
    }

    fn long() -> String {
        format!("{{\"a\":\"{}\"}}", "x".repeat(100))
    }

    #[test]
    fn messages_are_framed_and_numbered_and_those_too_long_left_out() {
        let relp = relp(Rejected::Drop);
        let frames = relp.frames(&batch(0, &[r#"{"a":1}"#, &long(), r#"{"b":"ä"}"#])).unwrap();
        // Lengths count bytes, not characters.
        let expected = "2 syslog 31 <134>1 - host app - - - {\"a\":1}\n\
                        3 syslog 34 <134>1 - host app - - - {\"b\":\"ä\"}\n";
        assert_eq!(frames.bytes, expected);
        let mut wanted = Frames { bytes: frames.bytes.clone(), ..Frames::default() };
        let verdicts = [Verdict::Delivered, Verdict::TooLong, Verdict::Delivered];
        for (position, verdict) in (0..).map(Position::new).zip(verdicts) {
            wanted.parts.add(position, verdict);
        }
        assert_eq!(frames, wanted);
        let told = self::relp(Rejected::Retry).frames(&batch(0, &[long()])).unwrap_err();
        assert!(told.contains("max_message_bytes"), "{told}");
    }

    #[test]
    fn numbers_begin_at_one_again_after_the_last() {
        assert_eq!((after(1, 1), after(NINE_DIGITS, 1)), (2, 1));
        let mut relp = Relp { next: NINE_DIGITS - 1, ..relp(Rejected::Drop) };
        let frames = relp.frames(&batch(0, &["{}", "{}", "{}"])).unwrap();
        let line = |number| format!("{number} syslog 26 <134>1 - host app - - - {{}}\n");
        assert_eq!(frames.bytes, [999_999_998, 999_999_999, 1].map(line).concat());
        relp.sent(3);
        let said = b"999999998 rsp 6 200 OK\n999999999 rsp 6 200 OK\n1 rsp 6 200 OK\n";
        assert_eq!(answered(&mut relp, said, 7), Ok((3, true, false)));
        assert_eq!(relp.close(), b"2 close 0\n");
    }

    #[test]
    fn what_was_answered_before_an_error_counts() {
        let mut relp = relp(Rejected::Drop);
        relp.sent(4);
        let (mut unread, mut answers) = (BytesMut::new(), Answers::default());
        unread.extend_from_slice(b"2 rsp 6 200 OK\n3 rsp 6 200 OK\n4 rsp 6 500 no\n");
        assert!(relp.read(&mut unread, &mut answers).is_err());
        assert_eq!(answers.acknowledged, 2);
    }

    #[test]
    fn answers_are_found_wherever_they_are_cut_and_in_any_order() {
        let said =
            b"2 rsp 6 200 OK\n4 rsp 3 200\n0 hint 4 what\n3 rsp 9 200 OK\nno\n0 serverclose 0\n";
        for step in 1..=said.len() {
            let mut relp = relp(Rejected::Drop);
            relp.sent(4);
            assert_eq!(answered(&mut relp, said, step), Ok((3, true, true)), "{step}");
            assert_eq!(relp.answered, [false]);
        }
        let mut relp = relp(Rejected::Drop);
        relp.sent(4);
        // A message that is answered early is reported only when all earlier messages are answered.
        for (said, acknowledged, alive) in [
            // A consumer that sends only hints is not at work.
            ("0 hint 4 what\n", 0, false),
            ("3 rsp 6 200 OK\n5 rsp 6 200 OK\n", 0, true),
            ("2 rsp 6 200 OK\n", 2, true),
        ] {
            let answers = answered(&mut relp, said.as_bytes(), 99);
            assert_eq!(answers, Ok((acknowledged, alive, false)), "{said}");
        }
    }

    #[test]
    fn anything_else_is_an_error_and_bounded() {
        for wrong in [
            "HTTP/1.1 400 Bad Request\r\n",
            " ",
            "2\n",
            "1234567890",
            "2 syslog 1 x\n",
            "2 rsp 6 500 no\n",
            "2 rsp 8 2000 not\n",
            "2 rsp 0\n",
            "2 rsp x\n",
            "2 rsp 6 200 OK!",
            "2 rsp 16385 200",
            "2 rsp 1234567890",
            // No message waits for the next three answers: 6 was never sent, 1 was the `open`, and
            // the second 3 is answered already.
            "6 rsp 6 200 OK\n",
            "1 rsp 6 200 OK\n",
            "3 rsp 6 200 OK\n3 rsp 6 200 OK\n",
            &format!("0 {}", "a".repeat(33)),
            &"0".repeat(40),
        ] {
            let mut relp = relp(Rejected::Drop);
            relp.sent(4);
            let result = answered(&mut relp, wrong.as_bytes(), wrong.len());
            assert!(result.is_err(), "{wrong:?}: {result:?}");
        }
        let said = taken(b"500 \x1b[31mred\n").unwrap_err();
        assert_eq!(said, "responds with \"500 \\x1b[31mred\"");
    }
}
