//! Reads a policy file. The result is the rules, or all mistakes, each with its position and the
//! allowed values. The policy may be in a ConfigMap, or among other YAML documents.
//!
//! Everything that kube-apiserver refuses is refused. Unknown and duplicate fields are refused too:
//! kube-apiserver ignores them and only warns in its log, so that a rule with a misspelt criterion
//! lacks the criterion and matches more requests than its author meant.

use std::cell::RefCell;

use super::criteria::{Criteria, GroupResources, Names, Step};
use super::rule::{Level, RULES_MAX, Rule, Stage};
use audit::API_VERSION;
use base::yaml;
use base::yaml::{Node, Place, Problem, Value, field, scalar};

/// The maximum size of a policy file in bytes. A larger ConfigMap would not fit into etcd either.
pub const FILE_BYTES_MAX: usize = 1 << 20;

const KIND: &str = "Policy";

/// The API group of policies. Texts of a ConfigMap that lack it are not read.
const API_GROUP: &str = "audit.k8s.io/";

const POLICY: &[&str] =
    &["apiVersion", "kind", "metadata", "omitStages", "omitManagedFields", "rules"];

const RULE: &[&str] = &[
    "level",
    "users",
    "userGroups",
    "verbs",
    "resources",
    "namespaces",
    "nonResourceURLs",
    "omitStages",
    "omitManagedFields",
];

const GROUP_RESOURCES: &[&str] = &["group", "resources", "resourceNames"];

/// Names that other Kubernetes objects use for a field, each with the field's name in a policy.
const OTHER_NAMES: &[(&str, &str)] = &[
    ("groups", "userGroups"),
    ("apiGroup", "group"),
    ("apiGroups", "group"),
    ("namespace", "namespaces"),
    ("paths", "nonResourceURLs"),
];

/// A policy as its file has it.
pub(super) struct File {
    pub(super) omit_stages: Vec<Stage>,
    pub(super) omit_managed_fields: bool,
    pub(super) rules: Vec<Rule>,
    /// The values that are allowed but match no request, and the reasons why kube-apiserver would
    /// not load the policy.
    pub(super) doubts: Vec<Problem>,
}

pub(super) fn read(text: &str) -> Result<File, Vec<Problem>> {
    if text.len() > FILE_BYTES_MAX {
        let what = format!("{} bytes: a policy has {FILE_BYTES_MAX} at most", text.len());
        return Err(vec![Place::START.problem(what)]);
    }
    let problems = Problems::default();
    let document = policy_in(text, &problems.doubts).map_err(|problem| vec![problem])?;
    let policy = problems.policy(&document);
    let mut doubts = problems.doubts.into_inner();
    doubts.sort();
    doubts.dedup();
    let mut problems = problems.found.into_inner();
    // A node that aliases refer to is read, and its mistakes are found, once for each alias.
    problems.sort();
    problems.dedup();
    match policy {
        Some(policy) if problems.is_empty() => Ok(File { doubts, ..policy }),
        _ => Err(problems),
    }
}

/// Returns the only policy in a file, which is a document or a text in a ConfigMap. If there is
/// none, returns the first document, so that its mistakes are reported. Adds to `doubts` why
/// kube-apiserver would not load the policy.
fn policy_in(text: &str, doubts: &RefCell<Vec<Problem>>) -> Result<Node, Problem> {
    let (mut found, mut first) = (Vec::new(), None);
    for document in yaml::documents(text)? {
        match field(&document, "kind").and_then(scalar) {
            Some(KIND) => {
                doubts.borrow_mut().extend(not_json(text));
                if first.is_some() {
                    let what = "kube-apiserver reads only the first document of a file: move the \
                                policy to the beginning";
                    doubts.borrow_mut().push(document.place.problem(what));
                }
                found.push(document);
            }
            Some("ConfigMap") => {
                let faults = add_policies_of(&document, text, &mut found)?;
                doubts.borrow_mut().extend(faults);
                first.get_or_insert(document);
            }
            _ => _ = first.get_or_insert(document),
        }
        if let [first, second, ..] = &found[..] {
            return Err(second.place.problem(format!(
                "a second policy, the first is on line {}: put the one to be used into a file of \
                 its own",
                first.place.line
            )));
        }
    }
    found.pop().or(first).ok_or_else(|| Place::START.problem("there is nothing in it"))
}

/// Returns the reason why kube-apiserver would not load a policy that is YAML. It reads a text as
/// JSON if the first character that is not white space is `{` (apimachinery, `IsJSONBuffer`), and
/// then allows nothing after the object. U+FEFF is not white space, so that a text with a byte
/// order mark is read as YAML.
fn not_json(text: &str) -> Option<Problem> {
    if !text.trim_start().starts_with('{') {
        return None;
    }
    let error = serde_json::from_str::<serde::de::IgnoredAny>(text).err()?;
    let place = Place { line: error.line(), column: error.column().max(1) };
    let why = error.to_string();
    let why = why.split(" at line ").next().unwrap_or_default();
    Some(place.problem(format!(
        "kube-apiserver would not load this policy: it reads a text that begins with {{ as JSON \
         ({why}). Write --- above it, which makes it YAML, or write JSON"
    )))
}

/// The maximum depth at which a policy is looked for in another object. A Talos config has it at 3,
/// a ClusterLogForwarder at 4, and a cluster of Rancher at 5.
const INNER_DEPTH_MAX: usize = 8;

/// Returns the path of the first policy inside another object, such as
/// `cluster.apiServer.auditPolicy`: a map with rules, or a text with a policy.
fn inner_policy(node: &Node, depth: usize) -> Option<String> {
    let below = |name: &str, inner: &Node| {
        let is_policy = match &inner.value {
            Value::Map(_) => {
                field(inner, "rules").is_some_and(|it| matches!(it.value, Value::List(_)))
            }
            Value::Scalar { text, .. } => text.contains(API_GROUP) && text.contains("rules:"),
            Value::List(_) => false,
        };
        match is_policy {
            true => Some(name.to_owned()),
            false => inner_policy(inner, depth - 1).map(|path| format!("{name}.{path}")),
        }
    };
    match &node.value {
        _ if depth == 0 => None,
        Value::Scalar { .. } => None,
        Value::Map(pairs) => pairs.iter().find_map(|(key, inner)| below(scalar(key)?, inner)),
        Value::List(items) => {
            items.iter().enumerate().find_map(|(at, inner)| below(&at.to_string(), inner))
        }
    }
}

/// Adds the policies in the texts of a ConfigMap to `found`. Reads no further text once there are
/// two: that is already an error. `file` is the text with the ConfigMap. Returns the reasons why
/// kube-apiserver would not load these texts.
fn add_policies_of(
    config_map: &Node,
    file: &str,
    found: &mut Vec<Node>,
) -> Result<Vec<Problem>, Problem> {
    let mut faults = Vec::new();
    let Some(Value::Map(pairs)) = field(config_map, "data").map(|data| &data.value) else {
        return Ok(faults);
    };
    for (_, value) in pairs {
        let text = scalar(value).filter(|text| text.contains(API_GROUP) && text.contains(KIND));
        let Some(text) = text.filter(|_| found.len() < 2) else { continue };
        // A block (`|`) begins with the first line of its text, and each line has its own position.
        // In a text of any other style, every line has the position at which the text begins.
        let begin = file.lines().nth(value.place.line - 1);
        let indent = begin.and_then(|line| line.strip_suffix(text.lines().next()?));
        let columns = indent.map(|indent| indent.chars().count());
        let to = |Place { line, column }| match columns {
            Some(columns) => Place { line: value.place.line + line - 1, column: columns + column },
            None => value.place,
        };
        let moved = |Problem { line, column, what }| to(Place { line, column }).problem(what);
        let documents = yaml::documents(text).map_err(moved)?;
        faults.extend(not_json(text).map(moved));
        for mut document in documents {
            if field(&document, "kind").and_then(scalar) == Some(KIND) {
                document.relocate(&to);
                found.push(document);
            }
        }
    }
    Ok(faults)
}

#[derive(Default)]
struct Problems {
    found: RefCell<Vec<Problem>>,
    /// The values that are allowed but match no request.
    doubts: RefCell<Vec<Problem>>,
}

/// The known fields of a map, each at most once, and the position of the map in the file.
struct Fields<'n> {
    place: Place,
    fields: Vec<(&'static str, &'n Node)>,
}

impl<'n> Fields<'n> {
    /// Returns the value of a field. A field that is null counts as missing, as for kube-apiserver.
    fn get(&self, name: &str) -> Option<&'n Node> {
        let (_, node) = self.fields.iter().find(|(known, _)| *known == name)?;
        (!is_null(node)).then_some(node)
    }
}

impl Problems {
    fn note(&self, place: Place, what: impl Into<String>) {
        self.found.borrow_mut().push(place.problem(what));
    }

    fn policy(&self, document: &Node) -> Option<File> {
        if is_null(document) {
            self.note(document.place, "there is nothing in it");
            return None;
        }
        if !self.is_policy(document)? {
            return None;
        }
        let fields = self.fields(document, POLICY)?;
        self.api_version(&fields);
        if let Some(metadata) = fields.get("metadata") {
            self.map(metadata);
        }
        let omit_stages = self.stages(&fields);
        let omit_managed_fields = self.flag(&fields, "omitManagedFields").unwrap_or(false);
        let rules = match fields.get("rules") {
            None => {
                self.note(fields.place, "rules are missing: at least one is needed");
                return None;
            }
            Some(rules) => {
                let list = self.list(rules)?;
                if list.is_empty() {
                    self.note(rules.place, "no rules: at least one is needed");
                }
                if let Some(beyond) = list.get(RULES_MAX) {
                    let what = format!("{} rules: {RULES_MAX} are allowed", list.len());
                    self.note(beyond.place, what);
                }
                list.iter().filter_map(|rule| self.rule(rule)).collect()
            }
        };
        Some(File { omit_stages, omit_managed_fields, rules, doubts: Vec::new() })
    }

    /// Checks the `kind` of a document. Returns `true` if the rest of the document must be checked:
    /// the `kind` is `Policy`, or missing, which is noted as a mistake. Returns `false` if the
    /// `kind` is another text. `None` if the document is not a map, or if the `kind` is not a text.
    fn is_policy(&self, document: &Node) -> Option<bool> {
        if matches!(document.value, Value::List(_)) {
            let what = "a list where fields are expected: put the rules under rules in a Policy";
            self.note(document.place, what);
            return None;
        }
        self.map(document)?;
        let inner = || inner_policy(document, INNER_DEPTH_MAX);
        match field(document, "kind") {
            None => {
                let inner = if field(document, "rules").is_none() { inner() } else { None };
                let what = match &inner {
                    Some(path) => {
                        format!("the policy is in {path}: copy it into a file of its own")
                    }
                    None => format!("kind is missing: it is {KIND}"),
                };
                self.note(document.place, what);
                Some(inner.is_none())
            }
            Some(node) => {
                let kind = self.text(node)?;
                let is_policy = kind == KIND;
                if !is_policy {
                    let what = "is allowed, or a ConfigMap with one below data";
                    let hint = inner().map(|path| format!("; copy {path} into a file of its own"));
                    let hint = hint.unwrap_or_default();
                    self.note(node.place, format!("kind is {kind:?}: only {KIND} {what}{hint}"));
                }
                Some(is_policy)
            }
        }
    }

    fn api_version(&self, fields: &Fields<'_>) {
        let Some(node) = fields.get("apiVersion") else {
            self.note(fields.place, format!("apiVersion is missing: it is {API_VERSION}"));
            return;
        };
        let Some(version) = self.text(node) else { return };
        match version.as_str() {
            API_VERSION => {}
            "audit.k8s.io/v1beta1" | "audit.k8s.io/v1alpha1" => self.note(
                node.place,
                format!(
                    "{version} was removed in Kubernetes 1.24: write {API_VERSION}, the fields are \
                     the same"
                ),
            ),
            _ => self.note(
                node.place,
                format!("apiVersion is {version:?}: only {API_VERSION} is allowed"),
            ),
        }
    }

    fn rule(&self, node: &Node) -> Option<Rule> {
        let fields = self.fields(node, RULE)?;
        let level = match fields.get("level") {
            Some(node) => self.one_of(node, &Level::ALL, Level::name),
            None => {
                let all = Level::ALL.map(Level::name).join(", ");
                self.note(fields.place, format!("level is missing: one of {all}"));
                None
            }
        };
        let resources = fields.get("resources").and_then(|node| self.list(node));
        let resources = resources.unwrap_or_default().iter();
        let criteria = Criteria {
            users: self.texts(&fields, "users"),
            user_groups: self.texts(&fields, "userGroups"),
            verbs: self.texts(&fields, "verbs"),
            resources: resources.map(|entry| self.group_resources(entry)).collect(),
            namespaces: self.texts(&fields, "namespaces"),
            non_resource_urls: self.texts(&fields, "nonResourceURLs"),
            code: Vec::new(),
        };
        for mistake in criteria.mistakes(&Names::POLICY) {
            self.note(place_of(node, &mistake.path), mistake.what);
        }
        let doubts = criteria.doubts(&Names::POLICY).into_iter();
        let doubts = doubts.map(|doubt| place_of(node, &doubt.path).problem(doubt.what));
        self.doubts.borrow_mut().extend(doubts);
        let omit_stages = self.stages(&fields);
        let omit_managed_fields = self.flag(&fields, "omitManagedFields");
        let line = node.place.line;
        Some(Rule { line, level: level?, criteria, omit_stages, omit_managed_fields })
    }

    /// Reads an entry of `resources`. An entry that is not a map becomes an empty value, so that
    /// the entries after it keep their index.
    fn group_resources(&self, node: &Node) -> GroupResources {
        let Some(fields) = self.fields(node, GROUP_RESOURCES) else {
            return GroupResources::default();
        };
        GroupResources {
            group: fields.get("group").and_then(|node| self.text(node)).unwrap_or_default(),
            resources: self.texts(&fields, "resources"),
            resource_names: self.texts(&fields, "resourceNames"),
        }
    }

    fn stages(&self, fields: &Fields<'_>) -> Vec<Stage> {
        let list = fields.get("omitStages").and_then(|node| self.list(node));
        let stages = list.unwrap_or_default().iter();
        stages.filter_map(|node| self.one_of(node, &Stage::ALL, Stage::name)).collect()
    }

    /// Returns the item of `all` whose name is the text of the node. Notes a mistake if there is
    /// none.
    fn one_of<T: Copy>(&self, node: &Node, all: &[T], name: fn(T) -> &'static str) -> Option<T> {
        let text = self.text(node)?;
        let found = all.iter().find(|one| name(**one) == text);
        if found.is_none() {
            let names: Vec<_> = all.iter().map(|one| name(*one)).collect();
            self.note(node.place, format!("{text:?} is unknown{}", instead(&text, &names)));
        }
        found.copied()
    }

    /// Returns the known fields of a map. Notes unknown and duplicate fields as mistakes.
    fn fields<'n>(&self, node: &'n Node, known: &'static [&'static str]) -> Option<Fields<'n>> {
        let mut fields: Vec<(&'static str, &Node)> = Vec::new();
        for (key, value) in self.map(node)? {
            let Value::Scalar { text, plain } = &key.value else {
                self.note(key.place, "a field's name must be text");
                continue;
            };
            match known.iter().find(|name| *name == text) {
                Some(name) if fields.iter().any(|(other, _)| other == name) => {
                    self.note(key.place, format!("{name} appears twice"));
                }
                Some(name) => fields.push((name, value)),
                None if *plain && text == "<<" => {
                    self.note(
                        key.place,
                        "merging maps by << is not supported: write the fields out",
                    );
                }
                None => {
                    let other = OTHER_NAMES
                        .iter()
                        .find(|(other, name)| other == text && known.contains(name));
                    let instead = match other {
                        Some((_, name)) => format!(", did you mean {name}?"),
                        None => instead(text, known),
                    };
                    self.note(key.place, format!("unknown field {text:?}{instead}"));
                }
            }
        }
        Some(Fields { place: node.place, fields })
    }

    fn map<'n>(&self, node: &'n Node) -> Option<&'n [(Node, Node)]> {
        let Value::Map(pairs) = &node.value else {
            let found = what(&node.value);
            self.note(
                node.place,
                format!(
                    "{found} where fields are expected: write NAME: VALUE, such as level: None"
                ),
            );
            return None;
        };
        Some(pairs)
    }

    fn list<'n>(&self, node: &'n Node) -> Option<&'n [Node]> {
        let Value::List(nodes) = &node.value else {
            let found = what(&node.value);
            self.note(node.place, format!("{found} where a list is expected"));
            return None;
        };
        Some(nodes)
    }

    /// Reads the field `name`, a list of texts. An item that is not a text becomes an empty text,
    /// so that the items after it keep their index.
    fn texts(&self, fields: &Fields<'_>, name: &str) -> Vec<String> {
        let list = fields.get(name).and_then(|node| self.list(node)).unwrap_or_default();
        list.iter().map(|node| self.text(node).unwrap_or_default()).collect()
    }

    /// Returns the text of a node. Notes a mistake if the node is not a text, or if it has no
    /// quotes and YAML reads it as null, a boolean or a number.
    fn text(&self, node: &Node) -> Option<String> {
        let Value::Scalar { text, plain } = &node.value else {
            self.note(node.place, format!("{} where text is expected", what(&node.value)));
            return None;
        };
        let other = match () {
            () if !plain => None,
            () if is_null(node) => Some("nothing"),
            () if flag(text).is_some() => Some("a flag"),
            () if is_number(text) => Some("a number"),
            () => None,
        };
        match other {
            None => Some(text.clone()),
            Some(other) => {
                let what = format!("without quotes this is {other}: write {text:?}");
                self.note(node.place, what);
                None
            }
        }
    }

    /// Returns the boolean in the field `name`. Notes a mistake if the value is not a boolean.
    fn flag(&self, fields: &Fields<'_>, name: &str) -> Option<bool> {
        let node = fields.get(name)?;
        let read = match &node.value {
            Value::Scalar { text, plain: true } => flag(text),
            Value::Scalar { .. } | Value::List(_) | Value::Map(_) => None,
        };
        if read.is_none() {
            self.note(node.place, format!("{name} is true or false, without quotes"));
        }
        read
    }
}

/// Returns the position of the node to which `path` leads from `node`, or of the last node on the
/// path that exists.
fn place_of(node: &Node, path: &[Step]) -> Place {
    let mut node = node;
    for step in path {
        let next = match (step, &node.value) {
            (Step::Field(name), _) => field(node, name),
            (Step::Item(index), Value::List(nodes)) => nodes.get(*index),
            _ => None,
        };
        let Some(next) = next else { break };
        node = next;
    }
    node.place
}

/// Returns the type of a value in words, for messages.
fn what(value: &Value) -> &'static str {
    match value {
        Value::Scalar { text, plain: true } if is_null_text(text) => "nothing",
        Value::Scalar { .. } => "text",
        Value::List(_) => "a list",
        Value::Map(_) => "fields",
    }
}

fn is_null(node: &Node) -> bool {
    matches!(&node.value, Value::Scalar { text, plain: true } if is_null_text(text))
}

fn is_null_text(text: &str) -> bool {
    matches!(text, "" | "~" | "null" | "Null" | "NULL")
}

/// Returns the boolean that a text without quotes means in YAML 1.1, such as `yes` and `off`.
/// kube-apiserver reads policies as YAML 1.1.
fn flag(text: &str) -> Option<bool> {
    match text {
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "y" | "Y" | "on" | "On" | "ON" => {
            Some(true)
        }
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "n" | "N" | "off" | "Off" | "OFF" => {
            Some(false)
        }
        _ => None,
    }
}

fn is_number(text: &str) -> bool {
    let digits = text.trim_start_matches(['+', '-']);
    let begins = digits.trim_start_matches('.').starts_with(|first: char| first.is_ascii_digit());
    let is_based = ["0x", "0o", "0b"].iter().any(|base| digits.starts_with(base));
    begins && (is_based || text.replace('_', "").parse::<f64>().is_ok())
        || matches!(digits.to_ascii_lowercase().as_str(), ".inf" | ".nan")
}

/// Returns the end of a message about an unknown text: a question with the most similar known name,
/// or all known names if none is similar.
fn instead(text: &str, known: &[&str]) -> String {
    let lower = text.to_lowercase();
    let typos_max = (text.chars().count() / 3).max(1);
    let nearest = known
        .iter()
        .map(|name| (strsim::damerau_levenshtein(&lower, &name.to_lowercase()), name))
        .filter(|(typos, _)| *typos <= typos_max)
        .min();
    match nearest {
        Some((_, name)) => format!(", did you mean {name}?"),
        None => format!(", allowed: {}", known.join(", ")),
    }
}
