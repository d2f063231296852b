//! A terminal for programs that draw on one. script(1) makes the pseudo-terminal, and a parser of
//! terminal sequences keeps the screen.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use crate::support::{PATIENCE, try_wait_for, wait_for};

/// A program that runs on a terminal. Dropping it kills the program.
pub(crate) struct Terminal {
    child: Child,
    keys: Option<ChildStdin>,
    parser: Arc<Mutex<vt100::Parser>>,
    reader: Option<JoinHandle<()>>,
}

impl Terminal {
    /// Starts a shell command on a terminal of this size.
    pub(crate) fn start(command: &str, columns: u16, rows: u16) -> Self {
        let command = format!("stty cols {columns} rows {rows}; exec {command}");
        let mut child = Command::new("script")
            .args(["--quiet", "--return", "--command", &command, "/dev/null"])
            .env("SHELL", "/bin/sh")
            .env_remove("NO_COLOR")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("script, of bsdutils");
        let keys = child.stdin.take();
        let mut output = child.stdout.take().unwrap();
        let parser = Arc::new(Mutex::new(vt100::Parser::new(rows, columns, 0)));
        let reader = {
            let parser = Arc::clone(&parser);
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(length @ 1..) = output.read(&mut buffer) {
                    parser.lock().unwrap().process(&buffer[..length]);
                }
            })
        };
        Self { child, keys, parser, reader: Some(reader) }
    }

    pub(crate) fn text(&self) -> String {
        self.parser.lock().unwrap().screen().contents()
    }

    /// Presses keys. `keys` are the bytes that a terminal sends for them.
    pub(crate) fn press(&mut self, keys: &str) {
        let stdin = self.keys.as_mut().unwrap();
        stdin.write_all(keys.as_bytes()).unwrap();
        stdin.flush().unwrap();
    }

    /// Waits until the screen shows these words.
    #[track_caller]
    pub(crate) fn wait_for(&self, words: &str) {
        let found = try_wait_for(PATIENCE, || self.text().contains(words).then_some(()));
        assert!(found.is_some(), "the screen does not show \"{words}\":\n{}", self.text());
    }

    /// Waits until the program has ended, and returns its exit status.
    #[track_caller]
    pub(crate) fn wait(&mut self) -> Option<i32> {
        let status = wait_for("the end of the program", PATIENCE, || {
            self.child.try_wait().expect("a child")
        });
        self.reader.take().unwrap().join().unwrap();
        status.code()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // A program whose terminal is closed is ended by SIGHUP.
        drop(self.keys.take());
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
