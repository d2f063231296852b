//! The rules of a redaction as a config file has them, and their compiled form.
//!
//! A resource is written `RESOURCE` (of the core group), `GROUP/RESOURCE` or
//! `GROUP/RESOURCE/SUBRESOURCE`, with `*` for any part. Without a subresource, it means the
//! resource and all its subresources, many of which carry the same object. A field is a path from
//! the top of the event: names separated by dots, `["…"]` for a name with dots in it, `*` for any
//! member or element.
//!
//! A path into a body means the object in that body. Such a path is therefore also looked for in
//! the items of a list and in the objects of a table's rows. What may repeat the value is redacted
//! along with the path: the copy of the object that `kubectl apply` keeps in an annotation, the
//! cells of a table's rows, `managedFields`, and the lists of a strategic merge patch.

use std::collections::BTreeSet;

use super::path::{Path, STEPS_MAX, Step, With};
use audit::request::Object;

/// A rule of the config: the fields to redact in events about some resources.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The resources that the rule applies to. An empty list stands for every event, even one
    /// without an object.
    pub resources: Vec<String>,
    /// The paths of the fields to redact; at least one.
    pub fields: Vec<String>,
    /// How the values of the fields are redacted.
    pub with: With,
}

/// The members of an event that may be the first step of a path, in addition to `objectRef` with
/// [`OF_OBJECT`]. The other members cannot be redacted: they make the text an audit event, and name
/// its request and its time.
const ROOTS: [&str; 10] = [
    "requestObject",
    "responseObject",
    "responseStatus",
    "annotations",
    "requestURI",
    "user",
    "impersonatedUser",
    "authenticationMetadata",
    "userAgent",
    "sourceIPs",
];

/// The members of `objectRef` that a path may name. Other members decide which rules apply to an
/// event.
const OF_OBJECT: [&str; 3] = ["name", "namespace", "uid"];

/// The API groups of Kubernetes that have a name without a dot, except for the core group.
const SHORT_GROUPS: [&str; 5] = ["apps", "autoscaling", "batch", "extensions", "policy"];

/// A rule in the form in which it is applied to events.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Compiled {
    resources: Vec<Resource>,
    /// `true` if a path leads into a body.
    pub(super) of_bodies: bool,
    pub(super) paths: Vec<Path>,
    /// The paths to what only repeats the values of a body, and is dropped in any case: a hash
    /// would be of another type, and of no use.
    pub(super) repeats: Vec<Path>,
    pub(super) with: With,
}

impl Compiled {
    /// Compiles a rule. An error describes the first mistake, with the allowed forms.
    pub(super) fn new(rule: &Rule) -> Result<Self, String> {
        let resources = rule.resources.iter().map(|text| Resource::new(text));
        let resources = resources.collect::<Result<_, _>>()?;
        if rule.fields.is_empty() {
            return Err("fields is empty: name at least one path".to_owned());
        }
        let (mut paths, mut repeats, mut of_bodies) = (Vec::new(), Vec::new(), false);
        let mut inside_of = BTreeSet::new();
        for text in &rule.fields {
            let steps = steps(text)?;
            match &*steps {
                [Step::Name(root), inside @ ..]
                    if matches!(&**root, b"requestObject" | b"responseObject") =>
                {
                    of_bodies = true;
                    if inside.is_empty() {
                        paths.push(steps.into());
                        continue;
                    }
                    inside_of.insert(root.clone());
                    paths.extend(in_body(root, inside));
                    // Only a request holds a patch.
                    if **root == *b"requestObject" {
                        repeats.extend(lists(root, inside));
                    }
                }
                _ => paths.push(steps.into()),
            }
        }
        for root in &inside_of {
            paths.extend(in_body(root, &COPY));
            repeats.extend(in_body(root, &MANAGED_FIELDS));
            let [rows, cells] = [b"rows", b"cells".as_slice()].map(Step::Known);
            repeats.push([Step::Name(root.clone()), rows, Step::Any, cells].into());
        }
        Ok(Self { resources, of_bodies, paths, repeats, with: rule.with })
    }

    pub(super) fn applies_to(&self, object: Option<&Object<'_>>) -> bool {
        self.resources.is_empty()
            || object.is_some_and(|object| self.resources.iter().any(|one| one.is(object)))
    }
}

/// The path to the annotation in which `kubectl apply` and similar tools keep a copy of the object.
pub(super) const COPY: [Step; 3] =
    [Step::Known(b"metadata"), Step::Known(b"annotations"), Step::CopyOfTheObject];

/// The path to the keys and elements of lists that kube-apiserver notes for each client.
pub(super) const MANAGED_FIELDS: [Step; 2] =
    [Step::Known(b"metadata"), Step::Known(b"managedFields")];

/// Returns the full paths for `inside`, a path that begins at an object: in the body `root`, the
/// object can be the whole body, an item of a list, or the object in a row of a table.
pub(super) fn in_body(root: &[u8], inside: &[Step]) -> [Path; 3] {
    let path = |to_object: &[Step]| {
        [&[Step::Name(root.into())][..], to_object, inside].concat().into_boxed_slice()
    };
    [
        path(&[]),
        path(&[Step::Known(b"items"), Step::Any]),
        path(&[Step::Known(b"rows"), Step::Any, Step::Known(b"object")]),
    ]
}

/// Returns the paths to the lists of a strategic merge patch that may repeat the value at `inside`.
fn lists(root: &[u8], inside: &[Step]) -> impl Iterator<Item = Path> {
    let of_list = |(at, step): (usize, &Step)| {
        let Step::Name(name) = step else { return None };
        Some([inside.get(..at)?, &[Step::OfList(name.clone())]].concat())
    };
    inside.iter().enumerate().filter_map(of_list).flat_map(|path| in_body(root, &path))
}

/// The group, resource and subresource of a pattern such as `apps/deployments`; `None` for `*`.
#[derive(Debug, PartialEq, Eq)]
struct Resource([Option<Box<[u8]>>; 3]);

impl Resource {
    fn new(text: &str) -> Result<Self, String> {
        const FORMS: &str = "allowed: RESOURCE (core group), GROUP/RESOURCE and \
                             GROUP/RESOURCE/SUBRESOURCE, such as secrets, apps/deployments, \
                             /pods/log; * is any";
        let is_plain = |byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.');
        let part = |part: &str| match part {
            "*" => Ok(None),
            _ if part.bytes().all(is_plain) => Ok(Some(part.as_bytes().into())),
            _ => Err(format!(
                "{part:?} in {text:?} is neither * nor the name of a group or resource in lower \
                 case, {FORMS}"
            )),
        };
        let parts: Vec<_> = text.split('/').collect();
        let (group, resource, subresource) = match *parts {
            ["*"] => ("*", "*", "*"),
            [resource] => ("", resource, "*"),
            [group, resource] => (group, resource, "*"),
            [group, resource, subresource] => (group, resource, subresource),
            _ => return Err(format!("{text:?} has too many parts, {FORMS}")),
        };
        if resource.is_empty() || subresource.is_empty() {
            return Err(format!("{text:?} names no resource, {FORMS}"));
        }
        if !matches!(group, "" | "*") && !group.contains('.') && !SHORT_GROUPS.contains(&group) {
            let core = format!("/{text}");
            return Err(format!(
                "{group:?} in {text:?} is not an API group: write {core:?} for a subresource of \
                 the core group; {FORMS}"
            ));
        }
        Ok(Self([part(group)?, part(resource)?, part(subresource)?]))
    }

    fn is(&self, object: &Object<'_>) -> bool {
        let parts = [&object.group, &object.resource, &object.subresource];
        self.0.iter().zip(parts).all(|(own, part)| own.as_ref().is_none_or(|own| **own == **part))
    }
}

/// Parses a path and checks that its first step is allowed. An error describes the mistake.
fn steps(text: &str) -> Result<Vec<Step>, String> {
    let steps = parse(text)?;
    let roots = || format!("{}, objectRef.{}", ROOTS.join(", "), OF_OBJECT.join(", objectRef."));
    let (root, inside) = match &*steps {
        [Step::Name(root), inside @ ..] => (&**root, inside),
        _ => return Err(format!("{text:?} does not begin with a name: allowed are {}", roots())),
    };
    if steps.len() > STEPS_MAX {
        return Err(format!(
            "{text:?} has more than {STEPS_MAX} names, allowed: at most {STEPS_MAX}"
        ));
    }
    let of_object = |name: &[u8]| OF_OBJECT.iter().any(|own| own.as_bytes() == name);
    match (root, inside) {
        (b"objectRef", [Step::Name(name)]) if of_object(name) => {}
        (b"annotations", []) => {
            return Err(format!(
                "{text:?} covers too much: write annotations.* or annotations[\"KEY\"]"
            ));
        }
        _ if ROOTS.iter().any(|own| own.as_bytes() == root) => {}
        _ => {
            return Err(format!(
                "{text:?} begins with a field that cannot be redacted or does not exist: a path \
                 begins at the event's top with one of {}",
                roots()
            ));
        }
    }
    Ok(steps)
}

/// Splits the text of a path into steps. An error describes the mistake.
fn parse(text: &str) -> Result<Vec<Step>, String> {
    const FORMS: &str = "names are separated by dots, as in requestObject.data.*; a name with other characters is written \
                         [\"…\"] or ['…'], and * or [*] is any member or element";
    let mut steps = Vec::new();
    let mut rest = text;
    loop {
        let (step, behind) = if let Some(inside) = rest.strip_prefix('[') {
            bracket(inside).ok_or_else(|| {
                format!("{text:?} has a bracket that is not [\"…\"], ['…'] or [*]: {FORMS}")
            })?
        } else {
            let (name, behind) = match rest.find(['.', '[']) {
                Some(end) => rest.split_at(end),
                None => (rest, ""),
            };
            let plain = |char: char| {
                char.is_alphanumeric() || matches!(char, '-' | '_' | '/' | ':' | '$' | '@')
            };
            let step = match name {
                "*" => Step::Any,
                _ if !name.is_empty() && name.chars().all(plain) => {
                    Step::Name(name.as_bytes().into())
                }
                "" => return Err(format!("{text:?} has an empty name: {FORMS}")),
                _ => return Err(format!("{name:?} in {text:?} is not a name: {FORMS}")),
            };
            (step, behind)
        };
        steps.push(step);
        rest = match behind.strip_prefix('.') {
            Some(next) if !next.starts_with('[') => next,
            None if behind.is_empty() => return Ok(steps),
            None if behind.starts_with('[') => behind,
            _ => {
                return Err(format!(
                    "{text:?} has something other than a dot or bracket after a name: {FORMS}"
                ));
            }
        };
    }
}

/// Parses one step in brackets, such as `["a.b"]`; `inside` is the text after the opening bracket.
/// Returns the step and the text after the closing bracket, if the brackets are written correctly.
fn bracket(inside: &str) -> Option<(Step, &str)> {
    if let Some(behind) = inside.strip_prefix("*]") {
        return Some((Step::Any, behind));
    }
    let quote = inside.chars().next().filter(|char| matches!(char, '"' | '\''))?;
    let (name, behind) = inside.strip_prefix(quote)?.split_once(quote)?;
    let behind = behind.strip_prefix(']')?;
    (!name.is_empty()).then(|| (Step::Name(name.as_bytes().into()), behind))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(resource: &str, field: &str) -> Result<Compiled, String> {
        let rule =
            Rule { resources: vec![resource.into()], fields: vec![field.into()], with: With::Drop };
        Compiled::new(&rule)
    }

    #[test]
    fn resources_are_matched_by_their_parts() {
        let object = |group: &'static str, resource: &'static str, sub: &'static str| Object {
            group: group.as_bytes().into(),
            resource: resource.as_bytes().into(),
            subresource: sub.as_bytes().into(),
            ..Object::default()
        };
        let secrets = object("", "secrets", "");
        let others = object("vault.example.com", "secrets", "");
        let log = object("", "pods", "log");
        let scale = object("apps", "deployments", "scale");
        for (pattern, expected) in [
            ("secrets", [true, false, false, false]),
            ("/secrets", [true, false, false, false]),
            ("*/secrets", [true, true, false, false]),
            ("vault.example.com/*", [false, true, false, false]),
            ("pods", [false, false, true, false]),
            ("/pods/log", [false, false, true, false]),
            ("/pods/exec", [false, false, false, false]),
            ("apps/deployments", [false, false, false, true]),
            ("apps/*/scale", [false, false, false, true]),
            ("*/*/*", [true; 4]),
            ("*", [true; 4]),
        ] {
            let rule = rule(pattern, "user").unwrap();
            let found = [&secrets, &others, &log, &scale].map(|one| rule.applies_to(Some(one)));
            assert_eq!(found, expected, "{pattern}");
            assert!(!rule.applies_to(None), "{pattern}");
        }
        let all = Rule { resources: vec![], fields: vec!["user".into()], with: With::Drop };
        assert!(Compiled::new(&all).unwrap().applies_to(None));
    }

    #[test]
    fn fields_are_paths_of_names_and_any() {
        let name = |text: &str| Step::Name(text.as_bytes().into());
        for (text, expected) in [
            ("requestURI", vec![name("requestURI")]),
            ("requestObject.data.*", vec![name("requestObject"), name("data"), Step::Any]),
            ("user.extra[*].x", vec![name("user"), name("extra"), Step::Any, name("x")]),
            (r#"annotations["a.b/c"].d"#, vec![name("annotations"), name("a.b/c"), name("d")]),
            (r#"["user"]['a"]']"#, vec![name("user"), name("a\"]")]),
            ("objectRef.name", vec![name("objectRef"), name("name")]),
        ] {
            assert_eq!(steps(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn a_mistake_says_what_is_allowed() {
        for (field, part) in [
            ("", "empty name"),
            ("requestObject..data", "empty name"),
            ("requestObject.", "empty name"),
            ("requestObject.da ta", "\"da ta\" in"),
            ("requestObject.data*", "not a name"),
            ("requestObject.[*]", "something other"),
            ("requestObject[0]", "bracket"),
            ("requestObject[\"a\"", "bracket"),
            ("requestObject[\"\"]", "bracket"),
            ("requestObject[*]x", "something other"),
            ("*", "does not begin with a name"),
            ("auditID", "requestObject, responseObject"),
            ("level", "cannot be redacted"),
            ("stageTimestamp", "cannot be redacted"),
            ("data.password", "begins at the event's top"),
            ("objectRef", "objectRef.name"),
            ("objectRef.resource", "objectRef.name"),
            ("annotations", "annotations.*"),
        ] {
            let mistake = rule("secrets", field).expect_err(field);
            assert!(mistake.contains(part), "{field}: {mistake}");
        }
        let long = |names: usize| format!("requestObject{}", ".a".repeat(names - 1));
        assert!(rule("secrets", &long(STEPS_MAX)).is_ok());
        assert!(rule("secrets", &long(STEPS_MAX + 1)).is_err());
        for (resource, part) in [
            ("", "names no resource"),
            ("apps/", "names no resource"),
            ("apps/deployments/", "names no resource"),
            ("a/b/c/d", "too many parts"),
            ("Secrets", "lower case"),
            ("apps/deploy*", "lower case"),
            ("pods/log", r#"write "/pods/log""#),
            // A message is one line, whatever the config holds.
            ("a\n/b", r#"write "/a\n/b""#),
        ] {
            let mistake = rule(resource, "user").expect_err(resource);
            assert!(mistake.contains(part), "{resource}: {mistake}");
            assert!(mistake.contains("RESOURCE (core group)"), "{mistake}");
        }
        let none = Rule { resources: vec![], fields: vec![], with: With::Drop };
        assert!(Compiled::new(&none).is_err());
    }
}
