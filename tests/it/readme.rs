//! What the README says of keys, configs and commands is what the program does.

use std::collections::BTreeSet;

use crate::support::relay::run_command;
use crate::support::repository;

fn readme() -> String {
    std::fs::read_to_string(repository().join("README.md")).unwrap()
}

#[test]
fn the_reference_in_the_readme_is_what_the_program_prints() {
    let output = run_command(&["config", "--reference"], &repository());
    let printed = String::from_utf8(output.stdout).unwrap();
    let readme = readme();
    let (_, rest) = readme.split_once("config --reference` -->\n").unwrap();
    let (block, _) = rest.split_once("<!-- end of the reference -->").unwrap();
    assert_eq!(block, printed, "put the output of `config --reference` into README.md");
}

#[test]
fn the_readme_names_every_shipped_config_and_no_other() {
    let shipped: BTreeSet<String> = std::fs::read_dir(repository().join("config"))
        .unwrap()
        .map(|entry| format!("config/{}", entry.unwrap().file_name().into_string().unwrap()))
        .collect();
    let readme = readme();
    let named: BTreeSet<String> = readme
        .split(['(', ')', '`', ' '])
        .filter(|word| word.starts_with("config/") && word.ends_with(".toml"))
        .map(str::to_owned)
        .collect();
    assert_eq!(named, shipped);
}

#[test]
fn the_batch_in_the_readme_is_in_the_repository() {
    let readme = readme();
    let (_, rest) = readme.split_once("curl --json @").unwrap();
    let (file, _) = rest.split_once(' ').unwrap();
    assert!(repository().join(file).is_file(), "{file}");
}

#[test]
fn nothing_in_the_repository_points_outside_of_it() {
    let listed = std::process::Command::new("git")
        .arg("ls-files")
        .current_dir(repository())
        .output()
        .unwrap();
    assert!(listed.status.success());
    let outside = ["..", "shared"].join("/");
    for file in String::from_utf8(listed.stdout).unwrap().lines() {
        let bytes = std::fs::read(repository().join(file)).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        assert!(!text.contains(&outside), "{file} refers to {outside}");
    }
}
