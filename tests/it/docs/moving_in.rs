//! The pages on which a new user moves into a cluster, changes the config, and moves back.

use super::pages::Page;
use super::pages::pages;
use crate::support::repository;

/// A config has one source: the file that is applied. An edit of the ConfigMap in the cluster is
/// undone by the next apply, so no page, manifest or runbook may show one.
#[test]
fn a_config_in_a_cluster_is_changed_in_one_way() {
    let forms = ["edit", "patch", "replace", "create"].map(|verb| format!("{verb} configmap"));
    for page in pages() {
        for form in &forms {
            assert!(!page.text.contains(form.as_str()), "{}: {form}", page.path);
        }
        assert!(!page.text.contains("edit cm"), "{}", page.path);
    }
    let page = Page::read("docs/operating/kubernetes.md");
    let (_, section) = page.text.split_once("\n## Change the config\n").expect("the section");
    let (section, _) = section.split_once("\n## ").expect("a next section");
    let file = "deploy/base/relay.toml";
    assert!(section.contains("There is one way") && section.contains(file), "{section}");
    assert!(section.contains("kubectl apply -k deploy/overlays/ibm-iks"), "{section}");
    assert!(repository().join(file).is_file());
}
