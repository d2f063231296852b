//! A consumer that accepts everything. It speaks the APIs of Splunk, IBM Cloud Logs, Loki, OTLP and
//! S3 as far as it needs: the path of a request decides the answer.

use std::io;
use std::io::{BufRead as _, BufReader, Read, Write};

use super::{BUFFER, content_length, read_head};

/// Answers requests until the connection ends.
pub(super) fn serve(stream: impl Read + Write) -> io::Result<()> {
    let mut stream = BufReader::with_capacity(BUFFER, stream);
    let (mut head, mut taken) = (Vec::new(), 0_u64);
    loop {
        if !read_head(&mut stream, &mut head)? {
            return Ok(());
        }
        let path = head.split(|byte| *byte == b' ').nth(1).expect("a path");
        let path = std::str::from_utf8(path).expect("a path is ASCII").to_owned();
        let asks = path.ends_with("/ack");
        let body = read_body(&mut stream, content_length(&head), asks)?;
        let (status, answer) = match path.as_str() {
            "/services/collector/event" => {
                taken += 1;
                ("200 OK", format!(r#"{{"text":"Success","code":0,"ackId":{taken}}}"#))
            }
            "/services/collector/ack" => ("200 OK", acknowledged(&body)),
            "/identity/token" => {
                ("200 OK", r#"{"access_token":"token","expires_in":3600}"#.to_owned())
            }
            "/loki/api/v1/push" => ("204 No Content", String::new()),
            _ => ("200 OK", String::new()),
        };
        let length = answer.len();
        // S3 answers with an ETag. Outputs for the other APIs ignore it.
        let head =
            format!("HTTP/1.1 {status}\r\nETag: \"0\"\r\nContent-Length: {length}\r\n\r\n{answer}");
        stream.get_mut().write_all(head.as_bytes())?;
        stream.get_mut().flush()?;
    }
}

/// Reads this many bytes. Returns them if `keeps` is `true`, and otherwise nothing.
fn read_body<S: Read>(
    stream: &mut BufReader<S>,
    mut bytes: usize,
    keeps: bool,
) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    while bytes > 0 {
        let available = stream.fill_buf()?;
        let read = available.len().min(bytes);
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if keeps {
            body.extend_from_slice(&available[..read]);
        }
        stream.consume(read);
        bytes -= read;
    }
    Ok(body)
}

/// Returns Splunk's answer to a question such as `{"acks":[1,2]}`: `true` for each number.
fn acknowledged(question: &[u8]) -> String {
    let text = std::str::from_utf8(question).expect("a question is text");
    let numbers = text.split(|c: char| !c.is_ascii_digit()).filter(|number| !number.is_empty());
    let acks: Vec<_> = numbers.map(|number| format!("\"{number}\":true")).collect();
    format!("{{\"acks\":{{{}}}}}", acks.join(","))
}
