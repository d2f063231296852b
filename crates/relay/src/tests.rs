//! When a task or thread that the relay needs panics, the relay drains and names what panicked.
//! Each test starts a relay, makes one part panic, and compares the error with which the relay
//! ends.

use std::future::pending;
use std::net::SocketAddr;
use std::path::Path;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::*;
use audit::LevelCounts;
use queue::{Append, Queue, Refused};

/// A relay with one listener, and one output to this address.
async fn started(consumer: SocketAddr, queue: &str) -> Parts {
    let text = format!(
        "admin = {{ address = \"127.0.0.1:0\" }}\n[[listener]]\naddress = \"127.0.0.1:0\"\n\
         [[output]]\nname = \"consumer\"\ntype = \"tcp\"\naddresses = [\"{consumer}\"]\n{queue}"
    );
    let config = config::read(&text, ::outputs::TYPES).config.expect("it is right");
    start(None, config, &[], None).await.expect("it starts")
}

fn on_disk(directory: &Path) -> String {
    format!("[queue]\ndirectory = {directory:?}\nsegment_bytes = \"1MiB\"\n")
}

/// Lets the relay run until it ends by itself.
async fn ended(parts: Parts) -> Result<(), String> {
    let stopped = std::pin::pin!(pending());
    let served = serve(parts, mpsc::channel(1).1, stopped, pending()).await;
    served.map_err(|error| error.to_string())
}

pub(crate) fn address(parts: &Parts) -> SocketAddr {
    parts.listeners.show()[0].address.expect("it listens")
}

/// A consumer that accepts everything.
pub(crate) async fn consumer(tasks: &mut JoinSet<()>) -> SocketAddr {
    let socket = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = socket.local_addr().expect("it has one");
    tasks.spawn(async move {
        while let Ok((mut stream, _)) = socket.accept().await {
            let mut sink = tokio::io::sink();
            tokio::io::copy(&mut stream, &mut sink).await.ok();
        }
    });
    address
}

/// POSTs one event. Returns the status of the response; `None` if no response came.
pub(crate) async fn post(to: SocketAddr) -> Option<String> {
    let body = r#"{"auditID":"a","stage":"Panic"}"#;
    let length = body.len();
    let head = format!(
        "POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\n\r\n"
    );
    let mut stream = TcpStream::connect(to).await.ok()?;
    stream.write_all((head + body).as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    answer.get(9..12).map(str::to_owned)
}

/// Makes the thread that writes the queue panic after its first event: a batch with so large a
/// number of events that the sum of the positions overflows.
async fn break_writer(queue: &Queue) {
    let lines = bytes::Bytes::from_static(b"{}\n");
    let absurd = Append { lines, events: u64::MAX, levels: LevelCounts::default(), list: None };
    let mut ticket = queue.append(absurd.clone()).expect("there is room");
    assert_eq!(ticket.acknowledged().await, Err(Refused::Disk));
    // While the thread unwinds, all further batches are refused too.
    let next = Append { events: 1, ..absurd };
    let refused = match queue.append(next.clone()) {
        Ok(mut ticket) => ticket.acknowledged().await,
        Err(refused) => Err(refused),
    };
    assert_eq!(refused, Err(Refused::Disk));
    queue.failed().await;
    assert_eq!(queue.append(next).err(), Some(Refused::Disk));
}

#[tokio::test]
async fn a_task_that_panics_ends_the_relay_and_is_named() {
    let mut tasks = JoinSet::new();
    let parts = started(consumer(&mut tasks).await, "").await;
    parts.tasks.spawn("the task of the test", async { panic!("by design") });
    let said = ended(parts).await.expect_err("it can't go on");
    assert_eq!(said, "the task of the test has panicked: by design");
}

#[tokio::test]
async fn an_accept_loop_that_panics_ends_the_relay_and_its_listener_is_named() {
    let mut tasks = JoinSet::new();
    let mut parts = started(consumer(&mut tasks).await, "").await;
    parts.listeners.replace_accept_loop(async { panic!("by design") });
    let said = ended(parts).await.expect_err("it can't go on");
    assert_eq!(said, "the accept loop of listener 127.0.0.1:0 has panicked: by design");
}

#[tokio::test]
async fn a_panic_during_the_drain_is_an_error_as_well() {
    let mut tasks = JoinSet::new();
    let parts = started(consumer(&mut tasks).await, "").await;
    let stop = parts.tasks.stop.clone();
    let panics = async move {
        stop.cancelled().await;
        panic!("at the very end");
    };
    parts.tasks.spawn("the task of the test", panics);
    let drained = drain(parts).await.map_err(|error| error.to_string());
    assert_eq!(drained, Err("the task of the test has panicked: at the very end".to_owned()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spool_writer_that_panics_ends_the_relay_after_what_is_on_the_wire_and_nothing_more_is_accepted()
 {
    let directory = tempfile::tempdir().expect("a directory");
    let queue = on_disk(directory.path());
    let mut tasks = JoinSet::new();
    let parts = started(consumer(&mut tasks).await, &queue).await;
    let (queue, to) = (parts.queue.clone(), address(&parts));
    assert_eq!(post(to).await.as_deref(), Some("200"));
    break_writer(&queue).await;
    assert_eq!(post(to).await.as_deref(), Some("503"), "nothing can be stored any more");
    let said = ended(parts).await.expect_err("it can't go on");
    assert_eq!(said, "the thread that writes the queue has panicked");
    let backlogs = queue.backlogs();
    assert_eq!(backlogs.len(), 1);
    assert_eq!((&*backlogs[0].0, backlogs[0].1.events), ("consumer", 0), "it was on the wire");
}

/// After the relay has ended, the next start can use the directory of the queue.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_before_a_spool_writer_panicked_is_there_at_the_next_start() {
    let directory = tempfile::tempdir().expect("a directory");
    let queue = on_disk(directory.path());
    // Nothing listens on this port, so no output takes the event.
    let nobody = SocketAddr::from(([127, 0, 0, 1], 1));
    let parts = started(nobody, &queue).await;
    let (log, to) = (parts.queue.clone(), address(&parts));
    assert_eq!(post(to).await.as_deref(), Some("200"));
    break_writer(&log).await;
    assert!(ended(parts).await.is_err());
    drop(log);
    let again = started(nobody, &queue).await;
    assert_eq!(again.queue.held().1, 1);
}
