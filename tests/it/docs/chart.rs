//! The chart's manifests are copies, so that the chart can be rendered without the repository. With
//! `KUBE_AUDIT_FORWARDER_BLESS=1`, this test writes them again.

use crate::support::generated::assert_file;
use crate::support::prelude::*;

#[test]
fn the_manifests_of_the_chart_are_those_of_the_kustomizations() {
    let places = ["base", "overlays/durable", "overlays/monitoring"];
    let mut count = 0;
    for entry in std::fs::read_dir(repository().join("deploy/chart/manifests")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let mut originals =
            places.iter().map(|place| repository().join("deploy").join(place).join(&name));
        let original = originals.find(|it| it.is_file()).unwrap_or_else(|| panic!("{name}"));
        let text = std::fs::read_to_string(original).unwrap();
        assert_file(&format!("deploy/chart/manifests/{name}"), &text);
        count += 1;
    }
    assert!(count > 10, "{count}");
}
