//! A command that has run to its end: its exit status and its output.

use std::path::Path;
use std::process::{Command, Output};

use super::relay::run_command;
use super::{binary, fed};

#[derive(Debug, PartialEq)]
pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Said {
    pub(crate) fn of(output: Output) -> Self {
        let [stdout, stderr] =
            [output.stdout, output.stderr].map(|it| String::from_utf8(it).unwrap());
        Self { code: output.status.code(), stdout, stderr }
    }

    /// Checks the exit status, and that the command has printed each of these texts.
    #[track_caller]
    pub(crate) fn assert(&self, code: i32, texts: &[&str]) -> &Self {
        assert_eq!(self.code, Some(code), "{self:#?}");
        for text in texts {
            let is_there = self.stdout.contains(text) || self.stderr.contains(text);
            assert!(is_there, "{text}: {self:#?}");
        }
        self
    }

    /// Checks that the command has refused its arguments or its input: the exit status is 2,
    /// standard output is empty, and standard error contains this text.
    #[track_caller]
    pub(crate) fn assert_refused(&self, text: &str) -> &Self {
        assert_eq!((self.code, self.stdout.as_str()), (Some(2), ""), "{self:#?}");
        assert!(self.stderr.contains(text), "{text}: {self:#?}");
        self
    }
}

pub(crate) fn said(arguments: &[&str], directory: &Path) -> Said {
    Said::of(run_command(arguments, directory))
}

/// Runs the program with these bytes as standard input, which it need not read in full.
pub(crate) fn said_to(input: &[u8], arguments: &[&str], directory: &Path) -> Said {
    let mut command = Command::new(binary());
    Said::of(fed(command.args(arguments).current_dir(directory), input))
}
