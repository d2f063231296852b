//! The command `migrate haproxy`: prints the config to standard output, and the directives that it
//! could not carry over to standard error as well.

use std::io::Read;
use std::path::Path;
use std::path::PathBuf;

use clap::Subcommand;

use super::WRONG;
use super::cannot_read;
use super::print;
use crate::haproxy;
use crate::haproxy::Left;

/// The greatest size of a haproxy.cfg in bytes. A file that people write is far smaller.
const FILE_BYTES_MAX: u64 = 16 << 20;

#[derive(Subcommand)]
pub(super) enum Command {
    /// Convert the haproxy.cfg of a forwarder; a directive that cannot be carried over is named in
    /// a comment and on stderr
    Haproxy {
        /// The haproxy.cfg; `-` is standard input
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}

pub(super) fn run(command: &Command) -> Result<(), u8> {
    let Command::Haproxy { file } = command;
    let text = read(file).map_err(|error| cannot_read(file, "it", &error))?;
    let name = file
        .file_name()
        .map_or_else(|| file.display().to_string(), |name| name.to_string_lossy().into_owned());
    match haproxy::migrate(&text, &name) {
        Ok(migrated) => {
            report(file, &migrated.left);
            print(&migrated.config)
        }
        Err(unusable) => {
            report(file, &unusable.left);
            eprintln!("{}: {unusable}", file.display());
            Err(WRONG)
        }
    }
}

fn report(file: &Path, left: &[Left]) {
    for Left { line, directive, reason } in left {
        eprintln!("{}:{line}: {directive}: {reason}", file.display());
    }
}

fn read(file: &Path) -> std::io::Result<String> {
    let mut text = Vec::new();
    let input: Box<dyn Read> = match file == Path::new("-") {
        true => Box::new(std::io::stdin()),
        false => Box::new(std::fs::File::open(file)?),
    };
    input.take(FILE_BYTES_MAX + 1).read_to_end(&mut text)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(std::io::Error::other("it is larger than 16 MiB"));
    }
    String::from_utf8(text).map_err(|error| {
        let line = error.as_bytes()[..error.utf8_error().valid_up_to()]
            .split(|&byte| byte == b'\n')
            .count();
        std::io::Error::other(format!("line {line} is not UTF-8"))
    })
}
