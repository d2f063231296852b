//! Asks the installed HAProxy whether it accepts a haproxy.cfg (`haproxy -c`).

use std::io;
use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::report::shown;

/// The time limit of `haproxy -c`, which may take a few seconds to look up the names of servers.
const TIME_MAX: Duration = Duration::from_secs(15);

/// The time between two checks whether `haproxy -c` has ended.
const PAUSE: Duration = Duration::from_millis(10);

/// The maximum bytes of HAProxy's messages that are read: the capacity of a pipe. An HAProxy that
/// writes more blocks until the time limit.
const MESSAGE_BYTES_MAX: usize = 64 << 10;

/// Fragments of HAProxy's messages, in lower case, whose cause may be this machine and not the
/// file: files, users and names that are missing here, or another version of HAProxy.
const OF_MACHINES: &str = "no such file|permission denied|unable to load|failed to open|error \
    opening|cannot open|could not open|couldn't open|could not resolve|cannot find|unknown keyword|\
    unknown option|not supported|(got '";

/// Asks the `haproxy` on PATH about a file with this text. Returns a sentence for the report:
/// HAProxy accepts the file, or its judgement is not known. Blocks for at most about 15 s.
///
/// # Errors
///
/// The reasons for which HAProxy refuses the file.
pub fn judge(file: &Path, text: &str) -> Result<String, Vec<String>> {
    let alerts = match run(file) {
        Ok(None) => return Ok("Validity: `haproxy -c` accepts the file.".to_owned()),
        Ok(Some(messages)) => alerts(&messages),
        Err(error) => {
            return Ok(format!("NOT CHECKED: validity: `haproxy -c` gave no result: {error}"));
        }
    };
    let lower = alerts.join(" ").to_lowercase();
    // The reason may be an environment variable that is not set on this machine.
    let is_of_machine =
        text.contains('$') || OF_MACHINES.split('|').any(|part| lower.contains(part));
    if !alerts.is_empty() && !is_of_machine {
        return Err(alerts);
    }
    let why = "rejects the file, perhaps because of this machine or a different version";
    Ok(format!("NOT CHECKED: validity: `haproxy -c` {why}: {}", alerts.join(" ")))
}

/// Runs `haproxy -c`. Returns HAProxy's messages about a refused file, `None` for an accepted one.
fn run(file: &Path) -> io::Result<Option<String>> {
    if !file.is_file() {
        return Err(io::Error::other("it is not a file on the disk"));
    }
    let mut command = Command::new("haproxy");
    command.args(["-c", "-f"]).arg(file).stdout(Stdio::null());
    let mut child = command.stderr(Stdio::piped()).spawn()?;
    let mut bytes = vec![0; MESSAGE_BYTES_MAX];
    for _ in 0..TIME_MAX.as_millis() / PAUSE.as_millis() {
        match (child.try_wait()?, &mut child.stderr) {
            (Some(status), Some(stderr)) if !status.success() => {
                let count = stderr.read(&mut bytes)?;
                return Ok(Some(String::from_utf8_lossy(&bytes[..count]).into_owned()));
            }
            (Some(_), _) => return Ok(None),
            (None, _) => std::thread::park_timeout(PAUSE),
        }
    }
    child.kill()?;
    child.wait()?;
    Err(io::Error::other("it did not finish in time"))
}

/// Returns HAProxy's reasons for the refusal, without what looks like a secret.
fn alerts(messages: &str) -> Vec<String> {
    let alerts = messages.lines().filter_map(|line| line.strip_prefix("[ALERT]"));
    // The process number precedes the message.
    let alerts = alerts.map(|alert| alert.split_once("config : ").map_or(alert, |(_, it)| it));
    let words = |alert: &str| alert.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    alerts.map(|alert| shown(&words(alert))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_name_the_line_and_no_secret() {
        let messages = "[NOTICE]   (7) : haproxy version is 2.6.12\n\
                        [ALERT]    (7) : config : parsing [relay.cfg:3] : unknown keyword 'a'\n  x s3cret\n\
                        [ALERT]    (7) : config : parsing [relay.cfg:4] : password s3cret\n\
                        [ALERT]    (7) : config : Fatal errors found in configuration.\n";
        let expected = [
            "parsing [relay.cfg:3] : unknown keyword 'a'",
            "parsing [relay.cfg:4] : password …",
            "Fatal errors found in configuration.",
        ];
        assert_eq!(alerts(messages), expected);
    }
}
