//! Finds the first of many criteria that a request meets, in a few lookups.
//!
//! A set of rules is a bit set, with one bit for each rule. For each criterion, a table maps a
//! value to the rules that this value does not exclude: the rules that list the value, and the
//! rules that do not use the criterion. The search begins with the rules that can match a request
//! about an object, or about a path. It intersects this set with the sets of the request's user and
//! groups, verb, API group, resource and namespace, one after the other. The rules that are left
//! are compared one by one, but only by the criteria that no table holds: subresources, names of
//! objects, paths, codes, and the API group of each resource. A table is skipped if no rule that is
//! left uses its criterion. The namespace is last, because reading it from the URL takes longest.
//! Prefixes of users and namespaces, and exemptions (`unless`), are compared rule by rule. A code
//! is read from the event itself, and only for a rule with codes that no other criterion excludes.
//! The search allocates memory only if the request's URI has escapes, and for a memory of users.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::ops::RangeInclusive;

use foldhash::fast::FixedState;
use percent_encoding::percent_decode;

use super::criteria::{Criteria, GroupResources, Match, has, is_path, name, prefix};
use super::rule::RULES_MAX;
use super::users::{ListId, Users};
use audit::request::{Location, Request, Text, User, code};

const WORDS_MAX: usize = RULES_MAX / 64;

/// A list of rules, compiled into tables so that the first rule that a request matches is found in
/// a few lookups. All sets have one bit for each rule.
#[derive(Debug)]
pub struct Matcher {
    id: ListId,
    /// For each rule, the criteria that the tables do not decide.
    rest: Vec<Rest>,
    /// The rules that a request about an object can match.
    about_object: Vec<u64>,
    /// The rules that a request about a path can match.
    about_path: Vec<u64>,
    verbs: Table,
    namespaces: Table,
    /// The rules that can match a request whose namespace is unknown: those without `namespaces`,
    /// and those that keep the events that they match.
    unlocated: Vec<u64>,
    /// The rules that list an API group. The resources that a rule names are compared later.
    api_groups: Table,
    /// The rules that list a resource. A rule for `pods/log` is listed under `pods`; its
    /// subresource is compared later.
    resources: Table,
    users: Table,
    groups: Table,
}

/// The criteria of one rule that the tables do not decide.
#[derive(Debug, Default)]
struct Rest {
    /// `true` if the rule keeps the events that it matches. Such a rule also matches if the
    /// object's namespace or name is unknown.
    keeps: bool,
    resources: Vec<GroupResources>,
    paths: Vec<String>,
    /// Names of users with at least one prefix; empty if the table of users decides.
    users: Vec<String>,
    /// Namespaces with at least one prefix; empty if the table of namespaces decides.
    namespaces: Vec<String>,
    code: Vec<RangeInclusive<u16>>,
    /// The requests that are exempt from this rule.
    unless: Option<Box<Matcher>>,
}

/// For each value of one criterion, such as `get` of the verb, the set of rules that a request with
/// this value can still match.
#[derive(Debug)]
struct Table {
    /// The set of rules that do not use the criterion.
    indifferent: Vec<u64>,
    /// For each value that a rule lists, the index of the first `u64` of its set in `sets`.
    places: HashMap<Box<[u8]>, usize, FixedState>,
    /// The sets of all values, one after the other. Each set has as many `u64` as `indifferent`,
    /// and contains the rules of `indifferent` too.
    sets: Vec<u64>,
}

impl Matcher {
    /// Compiles one of the config's lists of `match` tables. An event that matches none of
    /// `matches` is dropped. Elements after the first [`RULES_MAX`] never match. An unknown
    /// namespace or object name meets every criterion about it, but none in an exemption, so that
    /// it causes no event to be dropped.
    pub fn new<'m>(matches: impl IntoIterator<Item = &'m Match>) -> Self {
        let matches: Vec<&Match> = matches.into_iter().take(RULES_MAX).collect();
        let mut matcher = Self::of_rules(matches.iter().map(|of| (&of.criteria, true)), true);
        for (rest, of) in matcher.rest.iter_mut().zip(matches) {
            let unless = of.unless.iter().map(|criteria| (criteria, false));
            rest.unless = (!of.unless.is_empty()).then(|| Box::new(Self::of_rules(unless, true)));
        }
        matcher
    }

    /// Compiles the criteria of rules; rules after the first [`RULES_MAX`] never match. The `bool`
    /// is `true` if the rule keeps the events that it matches, and `false` if it drops them (level
    /// `None`).
    ///
    /// An unknown namespace or object name meets every criterion about it if the `bool` is `true`,
    /// and none otherwise. The level therefore drops no event because of an unknown value; stages
    /// are omitted under the same condition, which [`super::Policy`] checks.
    ///
    /// `has_prefixes` is `true` if a user or a namespace that ends in `*` is a prefix.
    pub(super) fn of_rules<'c>(
        rules: impl IntoIterator<Item = (&'c Criteria, bool)>,
        has_prefixes: bool,
    ) -> Self {
        let (all, keep): (Vec<&Criteria>, Vec<bool>) = rules.into_iter().take(RULES_MAX).unzip();
        let words = all.len().div_ceil(64);
        let set = |is_in: &dyn Fn(&Criteria) -> bool| {
            let mut set = vec![0; words];
            for (index, _) in all.iter().enumerate().filter(|(_, criteria)| is_in(criteria)) {
                set[index / 64] |= 1 << (index % 64);
            }
            set
        };
        let asks_object =
            |criteria: &Criteria| !criteria.resources.is_empty() || !criteria.namespaces.is_empty();
        let table = |values: &dyn Fn(&Criteria) -> Vec<String>| {
            Table::new(words, all.iter().map(|criteria| values(criteria)))
        };
        let mut unlocated = set(&|of| of.namespaces.is_empty());
        for (rule, _) in keep.iter().enumerate().filter(|(_, keeps)| **keeps) {
            unlocated[rule / 64] |= 1 << (rule % 64);
        }
        Self {
            id: ListId::new(),
            // If a rule has paths as well as resources or namespaces, its paths do not count.
            about_object: set(&|of| asks_object(of) || of.non_resource_urls.is_empty()),
            about_path: set(&|of| !asks_object(of)),
            verbs: table(&|criteria| criteria.verbs.clone()),
            namespaces: table(&|criteria| split(&criteria.namespaces, has_prefixes).0),
            api_groups: table(&api_groups),
            resources: table(&resources),
            users: table(&|criteria| split(&criteria.users, has_prefixes).0),
            groups: table(&|criteria| criteria.user_groups.clone()),
            rest: all
                .iter()
                .zip(keep)
                .map(|(criteria, keeps)| Rest::new(criteria, keeps, has_prefixes))
                .collect(),
            unlocated,
        }
    }

    /// Returns the index of the first rule that the request matches: it meets the rule's criteria,
    /// and those of no exemption of the rule. `users` remembers which rules the user can match, for
    /// the next request. Lists of rules that are asked about the same `located` request read the
    /// URL only once.
    #[must_use]
    pub fn first(&self, located: &Located<'_>, users: &mut Users) -> Option<usize> {
        let request = located.request;
        let mut room = [0; WORDS_MAX];
        let about = match request.object {
            Some(_) => &self.about_object,
            None => &self.about_path,
        };
        let left = room.get_mut(..about.len())?;
        left.copy_from_slice(about);
        match &request.user {
            Some(user) if self.users.is_asked(left) || self.groups.is_asked(left) => {
                let look_up = |rules: &mut [u64]| self.look_up(user, rules);
                intersect(left, users.rules(self.id, user, left.len(), look_up));
            }
            Some(_) => {}
            None => {
                self.users.cut_to_indifferent(left);
                self.groups.cut_to_indifferent(left);
            }
        }
        self.verbs.cut(left, &request.verb);
        if let Some(object) = &request.object {
            self.api_groups.cut(left, &object.group);
            self.resources.cut(left, &object.resource);
            if self.namespaces.is_asked(left) {
                match located.location() {
                    Some(location) => intersect(left, self.namespaces.set(location.namespace())),
                    None => intersect(left, &self.unlocated),
                }
            }
        }
        rules(left).find(|&rule| self.rest[rule].matches(located))
    }

    /// Writes to `rules` the set of rules that a request of this user can match.
    fn look_up(&self, user: &User<'_>, rules: &mut [u64]) {
        rules.copy_from_slice(self.users.set(&user.name));
        self.groups.cut_to_any(rules, &user.groups);
    }
}

/// A request, and the facts that rules read from its URL and event. Each part is read when the
/// first rule needs it, and only once for all rules of all lists.
#[derive(Debug)]
pub struct Located<'r> {
    request: &'r Request<'r>,
    /// The event itself; empty if it is not known.
    event: &'r [u8],
    code: OnceCell<Option<u16>>,
    /// The namespace and the name of the request's object.
    location: OnceCell<Option<Location<'r>>>,
    /// The path, with its percent-encoding resolved.
    path: OnceCell<Text<'r>>,
}

impl<'r> Located<'r> {
    /// Makes a value without an event, so that no code is known.
    pub fn new(request: &'r Request<'r>) -> Self {
        Self::of_event(&[], request)
    }

    /// Makes a value with the event that describes the request.
    pub fn of_event(event: &'r [u8], request: &'r Request<'r>) -> Self {
        let (code, location, path) = (OnceCell::new(), OnceCell::new(), OnceCell::new());
        Self { request, event, code, location, path }
    }

    pub(super) fn request(&self) -> &'r Request<'r> {
        self.request
    }

    fn code(&self) -> Option<u16> {
        *self.code.get_or_init(|| code(self.event))
    }

    fn location(&self) -> Option<&Location<'_>> {
        self.location.get_or_init(|| self.request.uri.location()).as_ref()
    }

    fn path(&self) -> &[u8] {
        self.path.get_or_init(|| {
            let path = self.request.uri.path();
            match memchr::memchr(b'%', &path) {
                Some(_) => Text::Owned(percent_decode(&path).collect()),
                None => path,
            }
        })
    }
}

/// Returns the indices of the bits that are set in `words`, from the lowest to the highest.
fn rules(words: &[u64]) -> impl Iterator<Item = usize> + '_ {
    words.iter().enumerate().flat_map(|(index, &word)| {
        let mut word = word;
        std::iter::from_fn(move || {
            (word != 0).then(|| {
                // A bit index is at most 63.
                let bit = word.trailing_zeros() as usize;
                word &= word - 1;
                index * 64 + bit
            })
        })
    })
}

/// Returns the resources that a rule lists, as keys for the table; an empty list if any resource
/// may match.
fn resources(criteria: &Criteria) -> Vec<String> {
    let mut values = Vec::new();
    for of in &criteria.resources {
        for spec in &of.resources {
            match spec.split_once('/').map_or(spec.as_str(), |(resource, _)| resource) {
                "*" => return Vec::new(),
                resource => values.push(resource.to_owned()),
            }
        }
        if of.resources.is_empty() {
            return Vec::new();
        }
    }
    values
}

/// Returns the API groups that a rule lists, as keys for the table; an empty list if any group may
/// match.
fn api_groups(criteria: &Criteria) -> Vec<String> {
    match criteria.resources.iter().any(|of| of.group == "*") {
        true => Vec::new(),
        false => criteria.resources.iter().map(|of| of.group.clone()).collect(),
    }
}

impl Table {
    /// Builds the table of one criterion from the values that each rule lists for it. `words` is
    /// the number of `u64` of a set.
    fn new(words: usize, rules: impl Iterator<Item = Vec<String>>) -> Self {
        let rules: Vec<Vec<String>> = rules.collect();
        let mut indifferent = vec![0; words];
        for (rule, _) in rules.iter().enumerate().filter(|(_, values)| values.is_empty()) {
            indifferent[rule / 64] |= 1 << (rule % 64);
        }
        let mut table = Self { indifferent, places: HashMap::default(), sets: Vec::new() };
        for (rule, values) in rules.into_iter().enumerate() {
            for value in values {
                let place = *table.places.entry(value.into_bytes().into()).or_insert_with(|| {
                    table.sets.extend_from_slice(&table.indifferent);
                    table.sets.len() - words
                });
                table.sets[place + rule / 64] |= 1 << (rule % 64);
            }
        }
        table
    }

    fn is_asked(&self, left: &[u64]) -> bool {
        left.iter().zip(&self.indifferent).any(|(left, indifferent)| left & !indifferent != 0)
    }

    /// Returns the set of rules that a request with this value can still match.
    fn set(&self, value: &[u8]) -> &[u64] {
        let place = self.places.get(value);
        let set = place.and_then(|&at| self.sets.get(at..at + self.indifferent.len()));
        set.unwrap_or(&self.indifferent)
    }

    /// Removes from `left` the rules that use the criterion and do not list this value.
    fn cut(&self, left: &mut [u64], value: &[u8]) {
        if self.is_asked(left) {
            intersect(left, self.set(value));
        }
    }

    /// Removes from `left` the rules that use the criterion.
    fn cut_to_indifferent(&self, left: &mut [u64]) {
        intersect(left, &self.indifferent);
    }

    /// Removes from `left` the rules that use the criterion and list none of these values.
    fn cut_to_any(&self, left: &mut [u64], values: &[impl AsRef<[u8]>]) {
        if !self.is_asked(left) {
            return;
        }
        let mut room = [0; WORDS_MAX];
        for (united, word) in room.iter_mut().zip(&self.indifferent) {
            *united = *word;
        }
        for value in values {
            for (united, word) in room.iter_mut().zip(self.set(value.as_ref())) {
                *united |= word;
            }
        }
        intersect(left, &room);
    }
}

fn intersect(left: &mut [u64], with: &[u64]) {
    for (left, with) in left.iter_mut().zip(with) {
        *left &= with;
    }
}

/// Returns the values of a list for the table, and the values that are compared one by one. If one
/// value is a prefix, all values are compared one by one.
fn split(list: &[String], has_prefixes: bool) -> (Vec<String>, Vec<String>) {
    match has_prefixes && list.iter().any(|value| prefix(value).is_some()) {
        true => (Vec::new(), list.to_vec()),
        false => (list.to_vec(), Vec::new()),
    }
}

/// Returns `true` if the list has `text`, or a prefix of it followed by `*`.
fn begins(text: &[u8], list: &[String]) -> bool {
    list.iter().any(|value| match prefix(value) {
        Some(prefix) => text.starts_with(prefix.as_bytes()),
        None => text == value.as_bytes(),
    })
}

impl Rest {
    fn new(criteria: &Criteria, keeps: bool, has_prefixes: bool) -> Self {
        let Criteria { users, resources, namespaces, non_resource_urls, .. } = criteria;
        let asks_object = !resources.is_empty() || !namespaces.is_empty();
        let paths = non_resource_urls.iter().filter(|_| !asks_object);
        Self {
            keeps,
            resources: resources.clone(),
            paths: paths.cloned().collect(),
            users: split(users, has_prefixes).1,
            namespaces: split(namespaces, has_prefixes).1,
            code: criteria.code.clone(),
            unless: None,
        }
    }

    fn matches(&self, located: &Located<'_>) -> bool {
        let location = || located.location().map(Location::namespace);
        let user = located.request.user.as_ref();
        (self.users.is_empty() || user.is_some_and(|user| begins(&user.name, &self.users)))
            && (self.namespaces.is_empty()
                || location().map_or(self.keeps, |namespace| begins(namespace, &self.namespaces)))
            && self.matches_kind(located)
            && (self.code.is_empty()
                || located.code().is_some_and(|code| self.code.iter().any(|of| of.contains(&code))))
            && self
                .unless
                .as_ref()
                .is_none_or(|unless| unless.first(located, &mut Users::default()).is_none())
    }

    fn matches_kind(&self, located: &Located<'_>) -> bool {
        let request = located.request;
        if let (Some(object), false) = (&request.object, self.resources.is_empty()) {
            let is_named = |names: &[String]| match located.location() {
                Some(location) => has(names, name(request, object, location)),
                None => self.keeps,
            };
            return self.resources.iter().any(|of| of.matches(object, is_named));
        }
        self.paths.is_empty() || self.paths.iter().any(|spec| is_path(spec, located.path()))
    }
}
