//! The criteria of a rule: which values are mistakes, and which criterion a request does not meet.
//!
//! The code here compares criterion by criterion, in the order of kube-apiserver, for the
//! explanations of a policy. `matcher.rs` makes the same decision fast, for many rules.

use std::fmt;
use std::ops::RangeInclusive;

use percent_encoding::percent_decode;
use serde::Serialize;

use audit::request::{Location, Object, Request};

/// The criteria of a rule. A request matches if it meets the criterion of every list that is not
/// empty.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Criteria {
    /// Names of users. In a [`Match`], a name that ends in `*` stands for every name that begins
    /// with the text before the `*`. In the rule of a policy, `*` is a character like any other.
    pub users: Vec<String>,
    /// Names of groups; the user must be in at least one of them.
    pub user_groups: Vec<String>,
    /// Verbs, such as `get`.
    pub verbs: Vec<String>,
    /// Resources; the request must be about an object of one of them.
    pub resources: Vec<GroupResources>,
    /// Namespaces; `""` stands for objects of no namespace. A `*` at the end has the same meaning
    /// as in `users`.
    pub namespaces: Vec<String>,
    /// Paths; the request must be about one of them, and not about an object. A path that ends in
    /// `*` stands for every path that begins with the text before the `*`.
    pub non_resource_urls: Vec<String>,
    /// Codes of responses, in ranges. The rule of a policy has none, because kube-apiserver decides
    /// before it responds.
    pub code: Vec<RangeInclusive<u16>>,
}

/// One table of the config's `match`. A request matches if it meets the criteria, and the criteria
/// of no element of `unless`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Match {
    /// The criteria that the request must meet.
    pub criteria: Criteria,
    /// The requests that are exempt. An unknown namespace or object name meets no criterion about
    /// it, so that an unknown value exempts no request.
    pub unless: Vec<Criteria>,
}

/// Resources of one API group, as a rule lists them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct GroupResources {
    /// The API group: `""` is the core group, `*` is any group.
    pub group: String,
    /// Resources such as `pods`, `pods/log`, `pods/*` (which includes `pods`), `*/log` and `*`; if
    /// the list is empty, all resources of the group.
    pub resources: Vec<String>,
    /// Names of objects; if the list is empty, any name. Names are allowed only with `resources`.
    #[serde(rename = "resourceNames", skip_serializing_if = "Vec::is_empty")]
    pub resource_names: Vec<String>,
}

/// The field names for messages about mistakes. Audit policies and configs of the relay spell some
/// of them differently: `nonResourceURLs`, `non_resource_urls`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Names {
    /// The name of [`Criteria::user_groups`].
    pub user_groups: &'static str,
    /// The name of [`Criteria::non_resource_urls`].
    pub non_resource_urls: &'static str,
    /// The name of [`GroupResources::resource_names`].
    pub resource_names: &'static str,
    /// `true` if a user or a namespace that ends in `*` is a prefix. Otherwise, the `*` is compared
    /// like any other character, as kube-apiserver does.
    pub has_prefixes: bool,
}

impl Names {
    /// The names of the fields in audit policies.
    pub const POLICY: Self = Self {
        user_groups: "userGroups",
        non_resource_urls: "nonResourceURLs",
        resource_names: "resourceNames",
        has_prefixes: false,
    };
    /// The names of the fields in the relay's config files.
    pub const CONFIG: Self = Self {
        user_groups: "user_groups",
        non_resource_urls: "non_resource_urls",
        resource_names: "resource_names",
        has_prefixes: true,
    };
}

/// A mistake in a rule: a value that kube-apiserver refuses, or that can never match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// The path from the criteria to the value.
    pub path: Vec<Step>,
    /// A description of the mistake, and how to correct it.
    pub what: String,
}

/// One step of a path through a rule, from a value to a value inside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// To the field with this name.
    Field(&'static str),
    /// To the item with this index, counted from 0.
    Item(usize),
}

impl fmt::Display for Mistake {
    /// Writes the path and the mistake, as in `resources[0].group: what is wrong`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, step) in self.path.iter().enumerate() {
            match step {
                Step::Field(name) if index == 0 => write!(f, "{name}")?,
                Step::Field(name) => write!(f, ".{name}")?,
                Step::Item(item) => write!(f, "[{item}]")?,
            }
        }
        write!(f, ": {}", self.what)
    }
}

impl Criteria {
    /// Returns all mistakes in the criteria: values that kube-apiserver refuses and, in a config,
    /// resources that can never match.
    pub fn mistakes(&self, names: &Names) -> Vec<Mistake> {
        let mut found = Vec::new();
        let mut note = |path: &[Step], what: String| {
            found.push(Mistake { path: path.to_vec(), what });
        };
        let urls = Step::Field(names.non_resource_urls);
        let is_of_objects = !self.resources.is_empty() || !self.namespaces.is_empty();
        if is_of_objects && !self.non_resource_urls.is_empty() {
            let what = format!(
                "a request is about a path or an object, so one rule cannot have both {} and \
                 resources or namespaces: write two rules",
                names.non_resource_urls
            );
            note(&[urls], what);
        }
        for (index, url) in self.non_resource_urls.iter().enumerate() {
            if let Some(what) = wrong_url(url) {
                note(&[urls, Step::Item(index)], what);
            }
        }
        for (index, of_group) in self.resources.iter().enumerate() {
            let at = |field| [Step::Field("resources"), Step::Item(index), Step::Field(field)];
            if let Some(what) = wrong_group(&of_group.group) {
                note(&at("group"), what);
            }
            for (index, resource) in of_group.resources.iter().enumerate() {
                // kube-apiserver takes any text. In a policy, a text that matches nothing is only
                // doubted.
                if names.has_prefixes && !is_resource(resource) {
                    let [first, second, third] = at("resources");
                    note(&[first, second, third, Step::Item(index)], no_resource(resource));
                }
            }
            if of_group.resources.is_empty() && !of_group.resource_names.is_empty() {
                let what = "these names need resources: list the resources here too".to_owned();
                note(&at(names.resource_names), what);
            }
        }
        found
    }

    /// Returns the values that are allowed but match no request of a Kubernetes client, because
    /// Kubernetes writes such values in another way.
    pub fn doubts(&self, names: &Names) -> Vec<Mistake> {
        // If a value is a prefix, the text before its `*` is judged.
        let own =
            |text: &String| prefix(text).filter(|_| names.has_prefixes).unwrap_or(text).to_owned();
        let texts = |list: &[String]| list.iter().map(own).collect();
        let lists = [
            (vec![Step::Field("users")], texts(&self.users), &doubt_of_who as &Doubt<'_>),
            (vec![Step::Field("users")], self.users.clone(), &doubt_of_user),
            (vec![Step::Field(names.user_groups)], self.user_groups.clone(), &doubt_of_who),
            (vec![Step::Field(names.user_groups)], self.user_groups.clone(), &doubt_of_group),
            (vec![Step::Field("verbs")], self.verbs.clone(), &doubt_of_verb),
            (vec![Step::Field("namespaces")], texts(&self.namespaces), &doubt_of_namespace),
        ];
        let no_form =
            |text: &str| (!names.has_prefixes && !is_resource(text)).then(|| no_resource(text));
        let of_group = |text: &str| no_form(text).or_else(|| doubt_of_resource(text));
        let of_core = |text: &str| of_group(text).or_else(|| doubt_of_core(text));
        // The resources of `external.metrics.k8s.io` are named like the metrics, so their names
        // have no fixed form.
        let is_of_metrics = |of: &GroupResources| of.group.ends_with("metrics.k8s.io");
        let resources = self.resources.iter().enumerate().filter(|(_, of)| !is_of_metrics(of));
        let resources = resources.map(|(index, of)| {
            let path = [Step::Field("resources"), Step::Item(index), Step::Field("resources")];
            let doubt = if of.group.is_empty() { &of_core as &Doubt<'_> } else { &of_group };
            (path.to_vec(), of.resources.clone(), doubt)
        });
        let mut found = Vec::new();
        for (path, list, doubt) in lists.into_iter().chain(resources) {
            for (index, text) in list.iter().enumerate() {
                if let Some(what) = doubt(text) {
                    let path = path.iter().copied().chain([Step::Item(index)]).collect();
                    found.push(Mistake { path, what });
                }
            }
        }
        found
    }

    /// Returns a sentence about the first criterion that the request does not meet, with the wanted
    /// values and the request's value; `None` if the request meets all criteria.
    ///
    /// `keeps` is `true` if events that match these criteria are kept. An unknown namespace or
    /// object name meets every criterion about it if `keeps` is `true`, and none otherwise. An
    /// unknown value therefore never causes an event to be dropped.
    pub(super) fn unmet(&self, request: &Request<'_>, keeps: bool) -> Option<String> {
        self.unmet_by_who(request).or_else(|| {
            if !self.verbs.is_empty() && !has(&self.verbs, &request.verb) {
                return Some(lacks("verbs", &self.verbs, &request.verb));
            }
            if !self.namespaces.is_empty() || !self.resources.is_empty() {
                return self.unmet_by_object(request, keeps);
            }
            if !self.non_resource_urls.is_empty() {
                return self.unmet_by_path(request);
            }
            None
        })
    }

    /// Does what [`Self::unmet`] does, for `users` and `user_groups`.
    fn unmet_by_who(&self, request: &Request<'_>) -> Option<String> {
        if self.users.is_empty() && self.user_groups.is_empty() {
            return None;
        }
        let Some(user) = &request.user else {
            let field = if self.users.is_empty() { "userGroups" } else { "users" };
            return Some(format!("{field}: nobody was authenticated"));
        };
        if !self.users.is_empty() && !has(&self.users, &user.name) {
            return Some(lacks("users", &self.users, &user.name));
        }
        let in_group = || user.groups.iter().any(|group| has(&self.user_groups, group));
        if !self.user_groups.is_empty() && !in_group() {
            let listed = Listed(&self.user_groups);
            let own: Vec<_> = user.groups.iter().map(|group| shown(group)).collect();
            return Some(format!("userGroups {listed} have none of {}", Listed(&own)));
        }
        None
    }

    /// Does what [`Self::unmet`] does, for `namespaces` and `resources`.
    fn unmet_by_object(&self, request: &Request<'_>, keeps: bool) -> Option<String> {
        let Some(object) = &request.object else {
            let field = if self.namespaces.is_empty() { "resources" } else { "namespaces" };
            let path = shown(&request.uri.path());
            return Some(format!("{field}: the request is about the path {path:?}, and no object"));
        };
        let location = request.uri.location();
        if let Some(unmet) = self.unmet_by_namespace(request, object, location.as_ref(), keeps) {
            return Some(unmet);
        }
        let name = location.as_ref().map(|location| name(request, object, location));
        let is_named = |names: &[String]| name.map_or(keeps, |name| has(names, name));
        let is_met = |of: &GroupResources| of.matches(object, is_named);
        if self.resources.is_empty() || self.resources.iter().any(is_met) {
            return None;
        }
        let listed: Vec<_> = self.resources.iter().map(GroupResources::to_string).collect();
        let mut what = shown(&object.resource);
        if !object.subresource.is_empty() {
            what = format!("{what}/{}", shown(&object.subresource));
        }
        let group = shown(&object.group);
        let mut what = format!("resources [{}] do not have {what:?}", listed.join("; "));
        match group.as_str() {
            "" => what.push_str(" of the core group"),
            group => what.push_str(&format!(" of the group {group:?}")),
        }
        if self.resources.iter().any(|of| !of.resource_names.is_empty()) {
            match (name, &*object.name) {
                (None, _) => what.push_str(&format!(" with a known name: {}", unknown(request))),
                (Some(b""), b"") => what.push_str(" without a name"),
                (Some(b""), _) => {
                    what.push_str(" without a name (rules see none where one is created)");
                }
                (Some(name), _) => what.push_str(&format!(" with the name {:?}", shown(name))),
            }
        }
        Some(what)
    }

    /// Does what [`Self::unmet`] does, for `namespaces`. `location` is read from the URL; if it is
    /// `None`, the namespace is unknown.
    fn unmet_by_namespace(
        &self,
        request: &Request<'_>,
        object: &Object<'_>,
        location: Option<&Location<'_>>,
        keeps: bool,
    ) -> Option<String> {
        if self.namespaces.is_empty() {
            return None;
        }
        let Some(location) = location else {
            return (!keeps).then(|| format!("namespaces: {}", unknown(request)));
        };
        let namespace = location.namespace();
        if has(&self.namespaces, namespace) {
            return None;
        }
        let mut what = lacks("namespaces", &self.namespaces, namespace);
        if *object.namespace != *namespace {
            let own = shown(&object.namespace);
            what.push_str(&format!(
                ", which the URL says (the {own:?} in objectRef is from the request's body)"
            ));
        }
        Some(what)
    }

    /// Does what [`Self::unmet`] does, for `non_resource_urls`.
    fn unmet_by_path(&self, request: &Request<'_>) -> Option<String> {
        if let Some(object) = &request.object {
            let resource = shown(&object.resource);
            let resource = resource.escape_debug();
            return Some(format!("nonResourceURLs: the request is about an object ({resource})"));
        }
        let path = request.uri.path();
        let path: Vec<u8> = percent_decode(&path).collect();
        let met = self.non_resource_urls.iter().any(|spec| is_path(spec, &path));
        (!met).then(|| lacks("nonResourceURLs", &self.non_resource_urls, &path))
    }
}

impl GroupResources {
    /// Returns `true` if the object is of one of these resources and has one of these names.
    /// `is_named` returns `true` if a list contains the object's name. It is called only if the
    /// resource matches and the list is not empty.
    pub fn matches(&self, object: &Object<'_>, is_named: impl Fn(&[String]) -> bool) -> bool {
        let (resource, sub) = (&*object.resource, &*object.subresource);
        let covers = |spec: &String| match spec.as_bytes() {
            b"*" => true,
            [b'*', b'/', rest @ ..] if !sub.is_empty() && rest == sub => true,
            [first @ .., b'/', b'*'] if first == resource => true,
            spec => is_combined(spec, object),
        };
        (self.group == "*" || self.group.as_bytes() == &*object.group)
            && (self.resources.is_empty()
                || self.resources.iter().any(covers)
                    && (self.resource_names.is_empty() || is_named(&self.resource_names)))
    }
}

impl fmt::Display for GroupResources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.group.as_str() {
            "" => f.write_str("core group: ")?,
            "*" => f.write_str("any group: ")?,
            group => write!(f, "{}: ", group.escape_debug())?,
        }
        match self.resources.as_slice() {
            [] => f.write_str("all"),
            resources => write!(f, "{}", Listed(resources).bare()),
        }?;
        match self.resource_names.as_slice() {
            [] => Ok(()),
            names => write!(f, " named {}", Listed(names)),
        }
    }
}

/// A function that returns why a value matches no request; `None` if the value may match one.
type Doubt<'d> = dyn Fn(&str) -> Option<String> + 'd;

/// Returns the text before the `*` of a [`Match`] value, if the value is a prefix.
pub(super) fn prefix(value: &str) -> Option<&str> {
    value.strip_suffix('*')
}

fn doubt_of_who(name: &str) -> Option<String> {
    let better = if name == "*" { "remove the key to match all" } else { "write whole names" };
    name.contains('*')
        .then(|| format!("{name:?} is compared literally, because * has no meaning here: {better}"))
}

/// Returns a doubt if the name of a user is that of a group, or was meant for all nodes.
fn doubt_of_user(name: &str) -> Option<String> {
    const GROUPS: &str = "system:masters system:authenticated system:unauthenticated \
                          system:serviceaccounts system:bootstrappers";
    let better = match name {
        "system:node" | "system:nodes" => "nodes are system:node:NAME, in the group system:nodes",
        _ if name.starts_with("system:serviceaccounts:") => "it is a group",
        _ if GROUPS.split(' ').any(|group| group == name) => "it is a group",
        _ => return None,
    };
    Some(format!("{name:?} is not the name of a user: {better}"))
}

/// Returns a doubt if the name of a group is that of a user.
fn doubt_of_group(name: &str) -> Option<String> {
    let better = match name {
        "system:node" => "nodes are in the group system:nodes",
        "system:anonymous" => "it is a user",
        _ if ["system:node:", "system:serviceaccount:"].iter().any(|of| name.starts_with(of)) => {
            "it is a user"
        }
        _ => return None,
    };
    Some(format!("{name:?} is not the name of a group: {better}"))
}

fn doubt_of_verb(verb: &str) -> Option<String> {
    if verb.contains('*') {
        let what = "* has no meaning in verbs: remove verbs to match all of them";
        return Some(format!("{verb:?} matches no request, because {what}"));
    }
    let lower = verb.to_ascii_lowercase();
    (lower != verb).then(|| {
        format!("{verb:?} matches no request, because verbs are in lower case: use {lower:?}")
    })
}

fn doubt_of_namespace(namespace: &str) -> Option<String> {
    if namespace.contains('*') {
        let what = "* has no meaning in namespaces: list each namespace by its name";
        return Some(format!("{namespace:?} matches no namespace, because {what}"));
    }
    let lower = namespace.to_ascii_lowercase();
    (lower != namespace).then(|| {
        format!(
            "{namespace:?} matches no namespace, because names of namespaces are in lower case: \
             use {lower:?}"
        )
    })
}

fn doubt_of_resource(resource: &str) -> Option<String> {
    let (name, _) = resource.split_once('/').unwrap_or((resource, ""));
    if let Some((name, group)) = name.split_once('.') {
        return Some(format!(
            "{resource:?} matches no resource, because the API group has its own key: use {name:?} \
             with the group {group:?}"
        ));
    }
    let lower = name.to_ascii_lowercase();
    (lower != name).then(|| {
        let better = resource.replacen(name, &lower, 1);
        format!(
            "{resource:?} matches no resource, because names of resources are in lower case: use \
             {better:?}"
        )
    })
}

/// All resources of the core group, to which CRDs cannot add others, and the resources of OpenShift
/// that hold secrets and had no group in old versions of OpenShift.
const CORE: &str = "bindings componentstatuses configmaps endpoints events limitranges namespaces \
    nodes persistentvolumeclaims persistentvolumes pods podtemplates replicationcontrollers \
    resourcequotas secrets serviceaccounts services imagestreams oauthaccesstokens \
    oauthauthorizetokens oauthclients useroauthaccesstokens";

/// API groups, each with resources that rules often name without the group.
const ELSEWHERE: [(&str, &str); 4] = [
    ("apps", "daemonsets deployments replicasets statefulsets"),
    ("batch", "cronjobs jobs"),
    ("networking.k8s.io", "ingresses networkpolicies"),
    ("rbac.authorization.k8s.io", "clusterrolebindings clusterroles rolebindings roles"),
];

fn doubt_of_core(resource: &str) -> Option<String> {
    let (name, _) = resource.split_once('/').unwrap_or((resource, ""));
    let is_in = |names: &str| names.split(' ').any(|own| own == name);
    if name == "*" || is_in(CORE) {
        return None;
    }
    let of = ELSEWHERE.iter().find(|(_, names)| is_in(names));
    let better =
        of.map_or("name its group".into(), |(group, _)| format!("use the group {group:?}"));
    Some(format!(
        "{resource:?} matches no resource, because the core group \"\" does not have it: {better}"
    ))
}

pub(super) fn has(list: &[String], value: &[u8]) -> bool {
    list.iter().any(|item| item.as_bytes() == value)
}

/// Returns `true` if `path` is `spec`, or begins with the text before the `*`s that end `spec`.
pub(super) fn is_path(spec: &str, path: &[u8]) -> bool {
    match spec.strip_suffix('*') {
        Some(prefix) => path.starts_with(prefix.trim_end_matches('*').as_bytes()),
        None => path == spec.as_bytes(),
    }
}

/// Returns `true` if `spec` is exactly this object's resource: `pods`, or `pods/log` for a
/// subresource.
fn is_combined(spec: &[u8], object: &Object<'_>) -> bool {
    match &*object.subresource {
        b"" => *spec == *object.resource,
        sub => {
            let rest = spec.strip_prefix(&*object.resource);
            rest.and_then(|rest| rest.strip_prefix(b"/")) == Some(sub)
        }
    }
}

/// Returns the object's name as kube-apiserver's policy sees it: the name in the URL. A list or
/// watch of one object has the name in its field selector, and then `objectRef` has the same name.
/// The result is empty for a create request without a name in its URL, because kube-apiserver reads
/// the body only after the decision.
pub(super) fn name<'r>(
    request: &Request<'_>,
    object: &'r Object<'_>,
    location: &'r Location<'_>,
) -> &'r [u8] {
    match location.name() {
        b"" if matches!(&*request.verb, b"list" | b"watch") => &object.name,
        name => name,
    }
}

/// Returns a sentence about why the namespace and the name of an event's object are unknown.
fn unknown(request: &Request<'_>) -> String {
    let uri = shown(&request.uri.text());
    format!(
        "the requestURI {uri:?} is not that of a request about an object, \
         and a rule of level None has to know the object"
    )
}

fn wrong_url(url: &str) -> Option<String> {
    if url == "*" {
        return None;
    }
    if !url.starts_with('/') {
        return Some(format!("{url:?} is not a path: a path begins with /, or is * for all paths"));
    }
    let star = url.find('*')?;
    (star + 1 < url.len()).then(|| {
        format!("{url:?} has a * before its end: it is allowed only as the last character")
    })
}

fn no_resource(text: &str) -> String {
    format!(
        "{text:?} matches no resource, allowed forms: `pods`, `pods/log`, `pods/*`, `*/log` and `*`"
    )
}

/// Returns `true` if `text` is `RESOURCE` or `RESOURCE/SUBRESOURCE` in a form that can match. `*/*`
/// cannot: authors write it for all resources, but only `*` means all resources.
fn is_resource(text: &str) -> bool {
    let parts: Vec<&str> = text.split('/').collect();
    parts.len() <= 2 && parts.iter().all(|part| !part.is_empty()) && text != "*/*"
}

/// Describes the mistake in the name of an API group, if there is one. Kubernetes allows DNS
/// subdomains in lower case (RFC 1123 §2.1).
fn wrong_group(group: &str) -> Option<String> {
    if group.is_empty() || group == "*" {
        return None;
    }
    if let Some((name, _)) = group.split_once('/') {
        return Some(format!("{group:?} is a group and a version: write only {name:?}"));
    }
    let is_end = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let is_label = |label: &str| {
        label.bytes().all(|byte| is_end(byte) || byte == b'-')
            && label.bytes().next().is_some_and(is_end)
            && label.bytes().last().is_some_and(is_end)
    };
    let is_name = group.len() <= 253 && group.split('.').all(is_label);
    (!is_name).then(|| {
        format!(
            "{group:?} is not an API group: names such as \"apps\" and \"rbac.authorization.k8s.io\" are allowed, \"\" for the core group and \"*\" for all"
        )
    })
}

/// The maximum number of values of a list that a message shows.
const SHOWN: usize = 8;

/// A list of values that a message shows as `[get list]`.
struct Listed<'a, T>(&'a [T]);

impl<T: AsRef<str>> Listed<'_, T> {
    fn bare(&self) -> String {
        let shown = self.0.iter().take(SHOWN).map(|item| match item.as_ref() {
            "" => "\"\"".to_owned(),
            item => item.escape_debug().to_string(),
        });
        let mut text = shown.collect::<Vec<_>>().join(" ");
        if self.0.len() > SHOWN {
            text.push_str(&format!(" and {} more", self.0.len() - SHOWN));
        }
        text
    }
}

impl<T: AsRef<str>> fmt::Display for Listed<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}]", self.bare())
    }
}

fn lacks(field: &str, list: &[String], value: &[u8]) -> String {
    format!("{field} {} do not have {:?}", Listed(list), shown(value))
}

fn shown(value: &[u8]) -> String {
    String::from_utf8_lossy(value).into_owned()
}
