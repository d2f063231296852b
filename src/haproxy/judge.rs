//! Asks the installed HAProxy whether it accepts a haproxy.cfg (`haproxy -c`).

use std::io::{Read, Write};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use super::report::shown_words;

/// The time limit of `haproxy -c`. It looks up the names of servers, which may take a few seconds.
const TIME_MAX: Duration = Duration::from_secs(15);

/// The pause between two checks whether `haproxy -c` has ended.
const PAUSE: Duration = Duration::from_millis(10);

/// The greatest number of bytes of HAProxy's messages that are read.
const MESSAGE_BYTES_MAX: u64 = 64 << 10;

/// Parts of messages, in lower case, that may be due to this machine and not to the file: files,
/// users and names may be missing here, and HAProxy may be of another version.
const OF_MACHINES: [&str; 14] = [
    "no such file",
    "permission denied",
    "unable to load",
    "failed to open",
    "error opening",
    "cannot open",
    "could not open",
    "couldn't open",
    "could not resolve",
    "cannot find",
    "unknown keyword",
    "unknown option",
    "not supported",
    "(got '",
];

/// Asks the `haproxy` on PATH about a file with this text, which is `name` in its messages. Returns
/// the sentence for the report, which says that HAProxy accepts the file, or why its judgement is
/// not known. The call blocks for about 15 s at most.
///
/// # Errors
///
/// The reasons for which HAProxy refuses the file.
pub fn judge(text: &str, name: &str) -> Result<String, Vec<String>> {
    let not_checked = |why: &str| Ok(format!("NOT CHECKED: validity: {why}"));
    let (status, messages) = match run(text) {
        Ok(Some(ended)) => ended,
        Ok(None) => return not_checked("`haproxy -c` did not end in time"),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return not_checked("HAProxy is not installed here");
        }
        Err(error) => return not_checked(&format!("`haproxy -c` cannot run: {error}")),
    };
    if status.success() {
        return Ok("Validity: `haproxy -c` takes the file.".to_owned());
    }
    let alerts = alerts(&messages, name);
    // A variable may have no value on this machine.
    let is_of_machine = text.contains('$')
        || alerts.iter().any(|alert| {
            let alert = alert.to_lowercase();
            OF_MACHINES.iter().any(|part| alert.contains(part))
        });
    match alerts.first() {
        Some(_) if !is_of_machine => Err(alerts),
        Some(alert) => not_checked(&format!(
            "`haproxy -c` refuses the file here, which may be due to this machine or to another \
             version: {alert}"
        )),
        None => not_checked(&format!("`haproxy -c` ended with {status}")),
    }
}

/// Returns the reasons for which HAProxy refuses a file, without words that hold secrets.
fn alerts(messages: &str, name: &str) -> Vec<String> {
    let alerts = messages.lines().filter_map(|line| line.strip_prefix("[ALERT]"));
    let alerts = alerts.filter(|alert| !alert.contains("rror(s) found in"));
    let alerts = alerts.filter(|alert| !alert.contains("Fatal errors found"));
    let shown = |alert: &str| {
        // The number of the process is before the message.
        let alert = alert.split_once(") : ").map_or(alert, |(_, message)| message);
        let alert = alert.strip_prefix("config : ").unwrap_or(alert);
        let words: Vec<String> = alert.split_whitespace().map(str::to_owned).collect();
        shown_words(&words).replace("/dev/stdin", name)
    };
    alerts.map(shown).collect()
}

/// Runs `haproxy -c` and returns its exit status and its messages; `None` if it took too long.
fn run(text: &str) -> std::io::Result<Option<(ExitStatus, String)>> {
    let mut child = Command::new("haproxy")
        .args(["-c", "-f", "/dev/stdin"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let (stdin, stderr) = (child.stdin.take(), child.stderr.take());
    std::thread::scope(|scope| {
        // HAProxy may end before it has read everything. Only its status matters.
        scope.spawn(move || stdin.map(|mut stdin| stdin.write_all(text.as_bytes())));
        let messages = scope.spawn(move || {
            let mut bytes = Vec::new();
            if let Some(stderr) = stderr {
                drop(stderr.take(MESSAGE_BYTES_MAX).read_to_end(&mut bytes));
            }
            String::from_utf8_lossy(&bytes).into_owned()
        });
        let mut status = child.try_wait()?;
        for _ in 0..TIME_MAX.as_millis() / PAUSE.as_millis() {
            if status.is_some() {
                break;
            }
            std::thread::park_timeout(PAUSE);
            status = child.try_wait()?;
        }
        if status.is_none() {
            child.kill()?;
            child.wait()?;
        }
        let messages = messages.join().unwrap_or_default();
        Ok(status.map(|status| (status, messages)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_name_the_file_and_no_secret() {
        let messages = "[NOTICE]   (7) : haproxy version is 2.6.12\n\
                        [ALERT]    (7) : config : parsing [/dev/stdin:3] : unknown keyword 'a'\n  x s3cret\n\
                        [ALERT]    (7) : config : parsing [/dev/stdin:4] : password s3cret\n\
                        [ALERT]    (7) : config : Error(s) found in configuration file : /dev/stdin\n\
                        [ALERT]    (7) : config : Fatal errors found in configuration.\n";
        let expected = ["parsing [f:3] : unknown keyword 'a'", "parsing [f:4] : password…"];
        assert_eq!(alerts(messages, "f"), expected);
    }
}
