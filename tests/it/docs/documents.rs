//! `completions` and `man`: shells load the completions, and groff formats the man pages without a
//! warning.

use std::process::Command;

use super::reference::subcommands;

use crate::support::prelude::*;

/// Returns the name of every command.
fn commands() -> Vec<String> {
    subcommands(&printed(&["--help"]))
}

fn printed(arguments: &[&str]) -> String {
    let Said { code, stdout, stderr } = said(arguments, Path::new("/"));
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    stdout
}

#[test]
fn bash_completes_commands_and_options() {
    let directory = TempDir::new().unwrap();
    let script = printed(&["completions", "bash"]);
    std::fs::write(directory.path().join("completions"), script).unwrap();
    let completed = |words: &str| {
        let ask = format!(
            "set -eu; shopt -s extglob; source completions; words=($(complete -p kube-audit-forwarder)); \
             COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); COMPREPLY=(); set +eu; \
             for place in \"${{!words[@]}}\"; do [ \"${{words[place]}}\" != -F ] || name=${{words[place + 1]}}; done; \
             \"$name\" kube-audit-forwarder \"${{COMP_WORDS[COMP_CWORD]}}\" \"\"; echo \"${{COMPREPLY[*]}}\""
        );
        let output = Command::new("bash")
            .args(["--norc", "-c", &ask])
            .current_dir(directory.path())
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
        let words = String::from_utf8(output.stdout).unwrap();
        words.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(completed("kube-audit-forwarder mig"), ["migrate"]);
    assert_eq!(completed("kube-audit-forwarder check --conn"), ["--connect"]);
    assert_eq!(completed("kube-audit-forwarder policy exp"), ["explain"]);
    assert_eq!(completed("kube-audit-forwarder policy explain --pol"), ["--policy"]);
    let all = completed("kube-audit-forwarder ''");
    for command in commands() {
        assert!(all.contains(&command), "{command} is not in {all:?}");
    }
}

#[test]
fn other_shells_have_every_command_too() {
    for shell in ["zsh", "fish", "elvish", "powershell"] {
        let script = printed(&["completions", shell]);
        for command in commands() {
            assert!(script.contains(&command), "{shell}: {command}");
        }
    }
    said(&["completions", "tcsh"], Path::new("/")).assert_refused("");
}

/// This test needs groff.
mod peers {
    use super::*;

    #[test]
    #[ignore = "needs peers or root: ./test"]
    fn groff_sets_the_man_pages_without_a_warning() {
        let directory = TempDir::new().unwrap();
        let directory = directory.path().join("share/man1");
        printed(&["man", directory.to_str().unwrap()]);
        std::fs::write(directory.join("printed.1"), printed(&["man"])).unwrap();
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&directory).unwrap() {
            let file = entry.unwrap().path();
            let output = Command::new(program("groff"))
                .args(["-man", "-Tutf8", "-ww"])
                .arg(&file)
                .output()
                .unwrap();
            assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{}", file.display());
            assert!(!output.stdout.is_empty());
            names.push(file.file_stem().unwrap().to_str().unwrap().to_owned());
        }
        for command in commands() {
            assert!(
                names.contains(&format!("kube-audit-forwarder-{command}")),
                "{command}: {names:?}"
            );
        }
        said(&["man", "/dev/null/man1"], Path::new("/")).assert(1, &["/dev/null/man1: "]);
    }
}
