//! The command `migrate haproxy`. The new config goes to standard output. The report about the
//! lines that were not carried over is in its comments, and goes to standard error too.

use std::path::{Path, PathBuf};

use clap::Subcommand;

use super::{cannot_read, print, read_input, wrong};
use tools::haproxy;
use tools::haproxy::{Finding, Migrated, Options, Verdict};

/// The greatest size of a haproxy.cfg in bytes. A file that people write is far smaller.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// The exit status if directives that matter are not carried over, and `--force` is not given.
const UNDECIDED: u8 = 3;

#[derive(Subcommand)]
pub(super) enum Command {
    /// Convert a forwarder's haproxy.cfg, and report what happened to each line
    ///
    /// The config goes to standard output, with the report as comments; the report goes to standard
    /// error as well. Directives of plain forwarders are carried over. You have to decide on all
    /// other directives, because they may change what is sent, where it goes or who may send,
    /// except a few that are known to have no effect. If `haproxy` is on PATH, `haproxy -c` checks
    /// whether the file is valid. Exit status 0 if there is nothing to decide or --force is given,
    /// 3 if there is (the config is still written), 2 if the file cannot be read, if HAProxy would
    /// not start with it, or if it forwards nothing.
    Haproxy {
        /// The haproxy.cfg; `-` is standard input
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Exit with status 0 even if directives that matter are not carried over
        #[arg(long)]
        force: bool,
        /// The frontend or listen section to convert, if there are several
        /// [default: the first]
        #[arg(long, value_name = "NAME")]
        frontend: Option<String>,
        /// Keep certificate paths, for a relay on the same machine as HAProxy; otherwise, use the
        /// paths at which the manifests mount Secrets
        #[arg(long)]
        keep_paths: bool,
    },
}

pub(super) fn run(command: &Command) -> Result<(), u8> {
    let Command::Haproxy { file, force, frontend, keep_paths } = command;
    let shown = super::shown(file);
    let text = read(file).map_err(|error| cannot_read(file, "it", &error))?;
    let name = match file.file_name() {
        _ if file == Path::new("-") => "haproxy.cfg".to_owned(),
        Some(name) => name.to_string_lossy().into_owned(),
        None => shown.clone(),
    };
    let validity = haproxy::judge(file, &text).map_err(|alerts| {
        alerts.iter().for_each(|alert| eprintln!("{shown}: {alert}"));
        wrong(format_args!("{shown}: HAProxy would not start with this file: nothing is written"))
    })?;
    let options = Options {
        name: &name,
        frontend: frontend.as_deref(),
        keeps_paths: *keep_paths,
        validity: &validity,
    };
    match haproxy::migrate(&text, options) {
        Ok(Migrated { config, report }) => {
            report.lines(&shown, Verdict::NoEffect).iter().for_each(|line| eprintln!("{line}"));
            print(&config)?;
            if report.count(Verdict::Decide) == 0 || *force {
                return Ok(());
            }
            eprintln!(
                "\n{shown}: exit status 3: decide on the directives above; --force accepts that \
                 they are not carried over"
            );
            Err(UNDECIDED)
        }
        Err(unusable) => {
            for Finding { line, directive, reason, .. } in &unusable.findings {
                eprintln!("{shown}:{line}: {directive}: {reason}");
            }
            Err(wrong(format_args!("{shown}: {unusable}")))
        }
    }
}

/// Reads a file that may have any encoding. Bytes that are not UTF-8 become U+FFFD, which
/// `haproxy::migrate` takes only in a comment.
fn read(file: &Path) -> std::io::Result<String> {
    Ok(String::from_utf8_lossy(&read_input(file, FILE_BYTES_MAX)?).into_owned())
}
