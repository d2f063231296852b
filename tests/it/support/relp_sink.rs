//! A fake consumer of RELP. The test decides its answers. It panics on everything that the protocol
//! does not allow. It does what rsyslog cannot be made to do.

use std::io;
use std::io::{Read, Write as _};
use std::sync::{Arc, Mutex, MutexGuard};

use super::server::{Connection, Options, Server, derefs_to_its_server};
use super::stream::Stream;

/// A frame from the client.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Command {
    /// The connection that carried the frame, counted from 0.
    pub(crate) connection: usize,
    pub(crate) number: u32,
    /// `open`, `syslog` or `close`.
    pub(crate) name: String,
    pub(crate) data: Vec<u8>,
}

/// The answer to an `open`, like rsyslog's.
pub(crate) const OFFERS: &str = "200 OK\nrelp_version=0\nrelp_software=fake\ncommands=syslog";

/// Returns a frame that answers this command with `data`.
pub(crate) fn answer(command: &Command, data: &str) -> Vec<u8> {
    format!("{} rsp {} {data}\n", command.number, data.len()).into_bytes()
}

/// Returns the answer to a command as bytes, or `None` to close the connection.
type Script = dyn Fn(&Command, &Connection) -> Option<Vec<u8>> + Send + Sync;

/// The consumer. It `Deref`s to its [`Server`]. A command is recorded before it is answered.
pub(crate) struct RelpSink {
    server: Server,
    received: Arc<Mutex<Vec<Command>>>,
}

impl RelpSink {
    /// Starts a consumer that responds with 200 to every command.
    pub(crate) fn start() -> Self {
        Self::with(|command| Some(ok(command)))
    }

    pub(crate) fn with(
        script: impl Fn(&Command) -> Option<Vec<u8>> + Send + Sync + 'static,
    ) -> Self {
        Self::with_options(Options::default(), move |command, _| script(command))
    }

    /// Starts a consumer whose script can wait on the connection.
    pub(crate) fn with_options(
        options: Options,
        script: impl Fn(&Command, &Connection) -> Option<Vec<u8>> + Send + Sync + 'static,
    ) -> Self {
        let received = Arc::<Mutex<Vec<Command>>>::default();
        let for_handler = Arc::clone(&received);
        let script: Box<Script> = Box::new(script);
        let server = Server::start(options, move |stream, connection| {
            serve(stream, connection, &for_handler, &script);
        });
        Self { server, received }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Command>> {
        self.received.lock().expect("no panic while the state is held")
    }

    /// Returns every command so far, in the order of arrival.
    pub(crate) fn commands(&self) -> Vec<Command> {
        self.lock().clone()
    }

    /// Returns the messages of each connection.
    pub(crate) fn runs(&self) -> Vec<Vec<Vec<u8>>> {
        let mut runs = vec![Vec::new(); self.history().len()];
        for command in self.commands().into_iter().filter(|command| command.name == "syslog") {
            runs[command.connection].push(command.data);
        }
        runs
    }
}

/// Returns a response with 200. The response to an `open` also has the offers.
pub(crate) fn ok(command: &Command) -> Vec<u8> {
    answer(command, if command.name == "open" { OFFERS } else { "200 OK" })
}

derefs_to_its_server!(RelpSink);

fn serve(
    mut stream: Stream,
    connection: &Connection,
    received: &Mutex<Vec<Command>>,
    script: &Script,
) {
    let mut awaited = 1;
    while connection.may_go_on() {
        let Ok((number, name, data)) = frame(&mut stream) else { return };
        assert_eq!(number, awaited, "commands are numbered from 1");
        assert_eq!(name == "open", number == 1, "the first command opens, and no other");
        assert!(["open", "syslog", "close"].contains(&name.as_str()), "{name}");
        awaited += 1;
        let command = Command { connection: connection.number, number, name, data };
        received.lock().expect("not poisoned").push(command.clone());
        let Some(bytes) = script(&command, connection) else { return };
        if stream.write_all(&bytes).and_then(|()| stream.flush()).is_err() {
            return;
        }
    }
}

/// Reads a frame: `TXNR SP COMMAND SP DATALEN [SP DATA] LF`.
fn frame(from: &mut impl Read) -> io::Result<(u32, String, Vec<u8>)> {
    let (number, end) = word(from)?;
    let (name, second_end) = word(from)?;
    assert_eq!((end, second_end), (b' ', b' '));
    let (length, end) = word(from)?;
    let length: usize = length.parse().expect("a length");
    let mut data = vec![0; length];
    if length > 0 {
        assert_eq!(end, b' ', "data follow a space");
        from.read_exact(&mut data)?;
        assert_eq!(byte(from)?, b'\n', "a frame ends with a line feed");
    } else {
        assert_eq!(end, b'\n', "a frame ends with a line feed");
    }
    Ok((number.parse().expect("a number"), name, data))
}

/// Reads up to a space or a line feed. Returns the word and the byte that ended it.
fn word(from: &mut impl Read) -> io::Result<(String, u8)> {
    let mut word = String::new();
    loop {
        match byte(from)? {
            end @ (b' ' | b'\n') => return Ok((word, end)),
            letter if letter.is_ascii_alphanumeric() && word.len() < 32 => {
                word.push(char::from(letter));
            }
            other => panic!("byte {other} in the head of a frame, after {word:?}"),
        }
    }
}

fn byte(from: &mut impl Read) -> io::Result<u8> {
    let mut byte = [0];
    from.read_exact(&mut byte)?;
    Ok(byte[0])
}
