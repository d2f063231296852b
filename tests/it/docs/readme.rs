//! The README describes keys, configs and commands as the program has them.

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

/// Returns the anchor of a heading, as GitHub makes it.
pub(crate) fn anchor(heading: &str) -> String {
    let kept = |char: &char| char.is_alphanumeric() || matches!(char, ' ' | '-' | '_');
    heading.to_lowercase().chars().filter(kept).collect::<String>().replace(' ', "-")
}

#[test]
fn links_inside_the_readme_lead_to_a_heading() {
    let readme = readme();
    let headings: BTreeSet<String> = readme
        .lines()
        .filter(|line| line.starts_with("##"))
        .map(|line| anchor(line.trim_start_matches('#').trim()))
        .collect();
    let links: Vec<_> =
        readme.split("](#").skip(1).filter_map(|rest| rest.split(')').next()).collect();
    assert!(!links.is_empty());
    for link in links {
        assert!(headings.contains(link), "no heading for #{link}");
    }
}

#[test]
fn the_batch_in_the_readme_is_in_the_repository() {
    let readme = readme();
    let (_, rest) = readme.split_once("curl --json @").unwrap();
    let (file, _) = rest.split_once(' ').unwrap();
    assert!(repository().join(file).is_file(), "{file}");
}

#[test]
fn what_the_readme_names_of_deploy_is_there() {
    let readme = readme();
    let named: BTreeSet<&str> = readme
        .split(['(', ')', '`', ' ', '\n', ';', ':', ',', '='])
        .map(|word| word.trim_end_matches('.'))
        .filter(|word| word.starts_with("deploy/"))
        .collect();
    for expected in ["deploy/base", "deploy/certificate.sh", "deploy/overlays/ibm-openshift"] {
        assert!(named.contains(expected), "{named:?}");
    }
    for path in named {
        assert!(repository().join(path).exists(), "{path}");
    }
    // The names of the Service and its ports are those in deploy/base.
    let service = std::fs::read_to_string(repository().join("deploy/base/service.yaml")).unwrap();
    for scheme in ["http", "https"] {
        let url = format!(
            "https://127.0.0.1:2040/api/v1/namespaces/ibm-kube-audit/services/\
             {scheme}:kube-audit-forwarder:{scheme}/proxy/post"
        );
        assert!(readme.contains(&url), "{url}");
        assert!(service.contains(&format!("- name: {scheme}\n")), "{service}");
    }
}

#[test]
fn the_pictures_in_the_readme_are_there_and_small() {
    let readme = readme();
    let pictures: Vec<&str> = readme
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split_once(".png)"))
        .map(|it| it.0)
        .collect();
    assert!(pictures.len() >= 3, "{pictures:?}");
    for picture in pictures {
        let file = repository().join(format!("{picture}.png"));
        let bytes =
            std::fs::metadata(&file).unwrap_or_else(|error| panic!("{picture}: {error}")).len();
        assert!(bytes < 150_000, "{picture}: {bytes} bytes");
    }
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
