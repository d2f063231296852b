//! Policies with many rules.

/// Returns a policy with `rules` rules, similar to those of providers. The last rule matches every
/// event. Each other rule asks for a frequent value and for one that never occurs.
pub(crate) fn of(rules: usize) -> String {
    let mut text = "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n".to_owned();
    for rule in 1..rules {
        text += &match rule % 5 {
            0 => format!("- level: None\n  users: [nobody-{rule}]\n  verbs: [get, list, watch]\n"),
            1 => {
                format!("- level: None\n  userGroups: [nobodies-{rule}]\n  namespaces: [default]\n")
            }
            2 => format!(
                "- level: None\n  verbs: [get, create, update]\n  resources:\n  - group: ''\n    \
                 resources: [none-{rule}, none-{rule}/status]\n"
            ),
            3 => format!(
                "- level: None\n  userGroups: ['system:authenticated']\n  \
                 nonResourceURLs: ['/none-{rule}*']\n"
            ),
            _ => format!(
                "- level: None\n  userGroups: ['system:authenticated']\n  resources:\n  \
                 - group: group-{rule}\n  - group: apps\n    resources: [none-{rule}]\n"
            ),
        };
    }
    text + "- level: RequestResponse\n"
}
