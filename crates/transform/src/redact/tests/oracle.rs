//! The oracle for random changes: it makes the same change slowly, on a tree, and finds each value
//! by its whole path from the top. The code under test must give the same tree.

use super::super::{Level, With};
use super::tree::Tree;

/// A path to a value. `None` stands for any member or element.
pub(super) type Pattern = Vec<Option<String>>;

pub(super) struct Asked {
    pub(super) level: Option<Level>,
    pub(super) without_bodies: bool,
    pub(super) omit_managed_fields: bool,
    /// The rules that apply to the event; all other rules are left out.
    pub(super) rules: Vec<(Pattern, With)>,
    pub(super) annotations: Vec<(String, String)>,
}

const COPY: &str = "(copy)";
const PATCHES: &str = "(patches)";
const OF_ADMISSION: &str = "(of admission)";
const OF_LISTS: &str = "(of lists)";

struct Paths {
    /// Each path, and what happens to its value. `None` marks the paths to managed fields and to
    /// patches of webhooks, which are dropped because the policy asks for less.
    all: Vec<(Pattern, Option<With>)>,
    quotable: bool,
}

pub(super) fn change(event: &Tree, asked: &Asked) -> Tree {
    let Tree::Object(members) = event else { panic!("{event:?}") };
    let is_patch = event.all("verb").first() == Some(&&Tree::text("patch"));
    let paths = paths(asked, is_patch);
    let mut out = Vec::new();
    for (name, value) in members {
        let is_body = name == "requestObject" || name == "responseObject";
        let is_response_below = name == "responseObject" && asked.level == Some(Level::Request);
        if is_body && asked.without_bodies || is_response_below {
            continue;
        }
        let mut value = value.clone();
        if name == "level" {
            value = level(value, asked.level);
        }
        let is_status = value.all("kind").contains(&&Tree::text("Status"));
        if paths.quotable && (name == "responseStatus" || is_body && is_status) {
            value = without_quotes(value);
        }
        if let Some(value) = paths.value(&[Some(name.clone())], value) {
            out.push((name.clone(), value));
        }
    }
    annotate(&mut out, &asked.annotations);
    Tree::Object(out)
}

fn level(value: Tree, asked: Option<Level>) -> Tree {
    let rank = |level: &str| {
        let levels = ["None", "Metadata", "Request"];
        levels.iter().position(|known| *known == level).unwrap_or(levels.len())
    };
    let (rank_max, name) = match asked {
        None => return value,
        Some(Level::Metadata) => (1, "Metadata"),
        Some(Level::Request) => (2, "Request"),
    };
    match value {
        Tree::Text(text) if rank(&text) <= rank_max => Tree::Text(text),
        Tree::Plain(_) | Tree::Text(_) | Tree::Array(_) | Tree::Object(_) => Tree::text(name),
    }
}

fn without_quotes(status: Tree) -> Tree {
    let reasons = status.all("reason");
    let is_a_webhooks = |message: &&Tree| message.mentions("admission webhook ");
    if !reasons.is_empty()
        && reasons.iter().all(|reason| **reason == Tree::text("NotFound"))
        && !status.all("message").iter().any(is_a_webhooks)
    {
        return status;
    }
    let Tree::Object(mut members) = status else { return status };
    members.retain(|(name, _)| name != "message");
    for (name, value) in &mut members {
        if name == "details" {
            match value {
                Tree::Object(details) => details.retain(|(name, _)| name != "causes"),
                Tree::Plain(_) | Tree::Text(_) | Tree::Array(_) => {
                    panic!("the tests have no such details")
                }
            }
        }
    }
    Tree::Object(members)
}

fn paths(asked: &Asked, is_patch: bool) -> Paths {
    let some = |names: &[&str]| -> Pattern {
        names.iter().map(|name| (*name != "*").then(|| (*name).to_owned())).collect()
    };
    let (mut all, mut all_cells) = (Vec::new(), Vec::new());
    let mut add = |root: &str, inside: &[Option<String>], with| {
        for between in [&[][..], &["items", "*"], &["rows", "*", "object"]] {
            all.push(([&some(&[root]), &some(between), inside].concat(), with));
        }
    };
    let mut quotable = false;
    for (pattern, with) in &asked.rules {
        let root = pattern[0].as_deref().unwrap();
        if !matches!(root, "requestObject" | "responseObject") || pattern.len() == 1 {
            quotable |= matches!(root, "requestObject" | "responseObject");
            continue;
        }
        quotable = true;
        add(root, &pattern[1..], Some(*with));
        add(root, &some(&["metadata", "annotations", COPY]), Some(*with));
        add(root, &some(&["metadata", "managedFields"]), Some(With::Drop));
        all_cells.push((some(&[root, "rows", "*", "cells"]), Some(With::Drop)));
        for (at, step) in pattern.iter().enumerate().skip(1) {
            if let (Some(name), "requestObject") = (step, root) {
                let list = format!("{OF_LISTS}{name}");
                add(root, &[&pattern[1..at], &[Some(list)]].concat(), Some(With::Drop));
            }
        }
    }
    if asked.omit_managed_fields {
        for root in ["requestObject", "responseObject"] {
            if !(root == "requestObject" && is_patch) {
                add(root, &some(&["metadata", "managedFields"]), None);
            }
        }
    }
    all.append(&mut all_cells);
    if quotable {
        all.push((some(&["annotations", OF_ADMISSION]), Some(With::Drop)));
    }
    if asked.without_bodies {
        all.push((some(&["annotations", PATCHES]), None));
    }
    all.extend(asked.rules.iter().map(|(pattern, with)| (pattern.clone(), Some(*with))));
    Paths { all, quotable }
}

fn leads_to(step: Option<&String>, name: Option<&str>) -> bool {
    match (step.map(String::as_str), name) {
        (None, _) => true,
        (Some(COPY), Some(name)) => {
            name.ends_with("last-applied-configuration") || name == "kapp.k14s.io/original"
        }
        (Some(list), Some(name)) if list.starts_with(OF_LISTS) => {
            let own = list.strip_prefix(OF_LISTS).unwrap();
            ["$setElementOrder/", "$deleteFromPrimitiveList/"]
                .iter()
                .any(|it| name == format!("{it}{own}"))
        }
        (Some(PATCHES), Some(name)) => name.starts_with("patch.webhook.admission.k8s.io/"),
        // This is enough for the annotations that the random events have.
        (Some(OF_ADMISSION), Some(name)) => name != "authorization.k8s.io/reason",
        (Some(step), Some(name)) => step == name,
        (Some(_), None) => false,
    }
}

fn strongest(all: impl Iterator<Item = With>) -> Option<With> {
    let all: Vec<_> = all.collect();
    if all.contains(&With::Drop) { Some(With::Drop) } else { all.first().copied() }
}

fn met(with: With) -> Option<Tree> {
    // The oracle does not compute hashes; they are compared without their digits.
    (with == With::Sha256).then(|| Tree::text("sha256:"))
}

impl Paths {
    fn matching(&self, at: &[Option<String>]) -> impl Iterator<Item = &(Pattern, Option<With>)> {
        self.all.iter().filter(move |(pattern, _)| {
            pattern.len() >= at.len()
                && pattern
                    .iter()
                    .zip(at)
                    .all(|(step, name)| leads_to(step.as_ref(), name.as_deref()))
        })
    }

    fn value(&self, at: &[Option<String>], value: Tree) -> Option<Tree> {
        let inside: Vec<_> = self
            .matching(at)
            .filter(|(pattern, with)| with.is_some() && pattern.len() > at.len())
            .collect();
        let is_body =
            matches!(at, [Some(name)] if name == "requestObject" || name == "responseObject");
        let whole = self.matching(at).filter(|(pattern, _)| pattern.len() == at.len());
        let mut met_here: Vec<_> = whole.map(|(_, with)| with.unwrap_or(With::Drop)).collect();
        if let (true, false, Tree::Array(elements)) = (is_body, inside.is_empty(), &value) {
            if let Some(with) = strongest(met_here.into_iter()) {
                return met(with);
            }
            let stays = |element| self.operation(at, element, &inside);
            return Some(Tree::Array(elements.iter().filter_map(stays).collect()));
        }
        let blocked = inside.iter().filter(|(pattern, _)| {
            pattern[at.len() - 1].is_some()
                && match &value {
                    Tree::Text(text) => !text.is_empty(),
                    Tree::Plain(plain) => !matches!(&**plain, "null" | "true" | "false"),
                    Tree::Array(_) => pattern[at.len()].is_some(),
                    Tree::Object(_) => false,
                }
        });
        met_here.extend(blocked.filter_map(|(_, with)| *with));
        if let Some(with) = strongest(met_here.into_iter()) {
            return met(with);
        }
        let below = |name: Option<String>| [at, &[name]].concat();
        Some(match value {
            Tree::Array(elements) => Tree::Array(
                elements
                    .into_iter()
                    .filter_map(|element| self.value(&below(None), element))
                    .collect(),
            ),
            Tree::Object(members) => Tree::Object(
                members
                    .into_iter()
                    .filter_map(|(name, value)| {
                        let value = self.value(&below(Some(name.clone())), value)?;
                        Some((name, value))
                    })
                    .collect(),
            ),
            other @ (Tree::Plain(_) | Tree::Text(_)) => other,
        })
    }

    fn operation(
        &self,
        at: &[Option<String>],
        operation: &Tree,
        inside: &[&(Pattern, Option<With>)],
    ) -> Option<Tree> {
        let Tree::Object(members) = operation else {
            return strongest(inside.iter().filter_map(|(_, with)| *with)).and_then(met);
        };
        let element = [at, &[None]].concat();
        let whole = self.matching(&element).filter(|(pattern, _)| pattern.len() == element.len());
        if let Some(with) = strongest(whole.filter_map(|(_, with)| *with)) {
            return met(with);
        }
        let places: Vec<_> = [operation.all("path"), operation.all("from")].concat();
        let readable = !operation.all("path").is_empty()
            && places.iter().all(|place| matches!(place, Tree::Text(text) if text.is_empty() || text.starts_with('/')));
        let about = |pattern: &Pattern| {
            !readable
                || places.iter().any(|place| {
                    let Tree::Text(text) = place else { panic!("{place:?}") };
                    text.split('/').skip(1).zip(&pattern[1..]).all(|(name, step)| {
                        leads_to(step.as_ref(), Some(&name.replace("~1", "/").replace("~0", "~")))
                    })
                })
        };
        let about = strongest(
            inside.iter().filter(|(pattern, _)| about(pattern)).filter_map(|(_, with)| *with),
        );
        let members = members.iter().filter_map(|(name, value)| {
            let says_what =
                matches!(&**name, "op" | "path" | "from") && matches!(value, Tree::Text(_));
            let value = match about {
                Some(with) if !says_what => met(with),
                _ => self.value(&[&element[..], &[Some(name.clone())]].concat(), value.clone()),
            };
            Some((name.clone(), value?))
        });
        Some(Tree::Object(members.collect()))
    }
}

fn annotate(members: &mut Vec<(String, Tree)>, constants: &[(String, String)]) {
    if constants.is_empty() {
        return;
    }
    let has_any = members.iter().any(|(name, _)| name == "annotations");
    if !has_any {
        members.push(("annotations".to_owned(), Tree::Object(Vec::new())));
    }
    for (_, value) in members.iter_mut().filter(|(name, _)| name == "annotations") {
        if *value == Tree::Plain("null".to_owned()) {
            *value = Tree::Object(Vec::new());
        }
        let Tree::Object(own) = value else { continue };
        for (key, constant) in constants {
            if own.iter().all(|(name, _)| name != key) {
                own.push((key.clone(), Tree::text(constant)));
            }
        }
    }
}
