//! The commands `completions` and `man`: describe the command line to shells and to man(1).

use std::path::Path;

use clap::Command;
use clap_complete::Shell;

use super::{failed, print};

/// The name of the program in completions and man pages. It does not change if the program file is
/// renamed.
const NAME: &str = "kube-audit-forwarder";

pub(super) fn completions(shell: Shell, mut command: Command) -> Result<(), u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, NAME, &mut script);
    print(&String::from_utf8_lossy(&script))
}

/// Prints the main man page or, with a directory, writes one page for each command into that
/// directory. `Err` is the exit status if that fails.
pub(super) fn man(directory: Option<&Path>, command: Command) -> Result<(), u8> {
    // A page has the version alone: the revision and the formats do not belong in its header.
    let command = command.long_version(None::<&'static str>);
    let Some(directory) = directory else {
        let mut page = Vec::new();
        return match clap_mangen::Man::new(command).render(&mut page) {
            Ok(()) => print(&String::from_utf8_lossy(&page)),
            Err(error) => Err(failed(format_args!("cannot make the man page: {error}"))),
        };
    };
    let made = std::fs::create_dir_all(directory);
    made.and_then(|()| clap_mangen::generate_to(command, directory)).map_err(|error| {
        failed(format_args!("{}: cannot write the man pages: {error}", directory.display()))
    })
}
