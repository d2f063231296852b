//! Documents of the Open Cybersecurity Schema Framework (OCSF), class API Activity.
//!
//! Each value is at the place that it has in Amazon's published mapping for the audit log of EKS,
//! if it has the type that the schema asks for there. Every other member of the event is in
//! `unmapped`, below the path that it has in the event. A value that the schema requires and the
//! event lacks is [`UNKNOWN`].

use std::borrow::Cow;

use super::json::{Names, Object, code, is_ip, object, text, write_string};
use super::{Bodies, extra};
use audit::scan;
use audit::scan::Member;
use audit::time::{is_timestamp, milliseconds};

/// The beginning of each document of an event that has a time.
pub(super) const HEAD: &[u8] = br#"{"time_dt":""#;

/// The beginnings of all documents: with a time, and without.
pub(super) const HEADS: [&[u8]; 2] = [HEAD, br#"{"class_uid":6003,"#];

/// The version of OCSF that documents name. The documents are valid in every version since 1.1.0,
/// except that versions before 1.5.0 allow no text of more than 65,535 bytes.
const VERSION: &[u8] = br#""1.5.0""#;

const UNKNOWN: &[u8] = br#""unknown""#;

const CLASS: u32 = 6003;

/// The members of an event, or of an object in it, that have no place of their own: JSON members
/// with commas between them. Of several members with the same name, the first is kept.
#[derive(Debug, Default)]
struct Rest<'a> {
    members: Vec<u8>,
    names: Names<'a>,
}

impl<'a> Rest<'a> {
    fn add(&mut self, member: Member<'a>) {
        let name = member.name();
        if self.names.add(Cow::clone(&name)) {
            let out = self.begin(member.key);
            match &*name {
                b"extra" => extra::write(member.value, out),
                b"impersonatedUser" => extra::write_user(member.value, out),
                _ => out.extend_from_slice(member.value),
            }
        }
    }

    /// Adds a member whose name is not there yet.
    fn put(&mut self, key: &[u8], value: &[u8]) {
        self.begin(key).extend_from_slice(value);
    }

    /// Adds the key of a member whose name is not there yet. The caller appends the value.
    fn begin(&mut self, key: &[u8]) -> &mut Vec<u8> {
        if !self.members.is_empty() {
            self.members.push(b',');
        }
        self.members.push(b'"');
        self.members.extend_from_slice(key);
        self.members.extend_from_slice(b"\":");
        &mut self.members
    }

    /// Adds the object `name` with its members that have no place of their own, if there are any.
    /// An object that has no place at all (`has_place` is `false`) is added even if it is empty.
    fn nest(&mut self, name: &str, rest: &Rest<'_>, has_place: bool) {
        if !rest.members.is_empty() || !has_place {
            let members = self.begin(name.as_bytes());
            members.push(b'{');
            members.extend_from_slice(&rest.members);
            members.push(b'}');
        }
    }

    /// Returns the value if `has_place` returns `true` for it. Otherwise adds the member.
    fn unless(
        &mut self,
        name: &str,
        value: Option<&'a [u8]>,
        has_place: impl FnOnce(&[u8]) -> bool,
    ) -> Option<&'a [u8]> {
        let value = value?;
        if has_place(value) {
            return Some(value);
        }
        self.put(name.as_bytes(), value);
        None
    }

    /// Returns the value if it is a string that is not empty. Otherwise adds the member.
    fn unless_text(&mut self, name: &str, value: Option<&'a [u8]>) -> Option<&'a [u8]> {
        self.unless(name, value, |value| text(Some(value)).is_some())
    }

    /// Returns the first value of each of `names` in an object, and adds the members with other
    /// names.
    fn split<const N: usize>(
        &mut self,
        object: &'a [u8],
        names: [&str; N],
    ) -> [Option<&'a [u8]>; N] {
        let mut found = [None; N];
        for member in scan::members(object) {
            let name = member.name();
            match names.iter().position(|known| *name == *known.as_bytes()) {
                Some(index) => _ = found[index].get_or_insert(member.value),
                None => self.add(member),
            }
        }
        found
    }
}

#[derive(Default)]
struct User<'a> {
    name: Option<&'a [u8]>,
    uid: Option<&'a [u8]>,
    groups: Option<&'a [u8]>,
}

impl<'a> User<'a> {
    fn read(user: Option<&'a [u8]>, unmapped: &mut Rest<'a>) -> Self {
        let Some(user) = unmapped.unless("user", user, |user| object(Some(user)).is_some()) else {
            return Self::default();
        };
        let mut rest = Rest::default();
        let [name, uid, groups] = rest.split(user, ["username", "uid", "groups"]);
        let name = rest.unless_text("username", name);
        let uid = rest.unless_text("uid", uid);
        // The schema requires a name or a uid of each user.
        let is_user = name.is_some() || uid.is_some();
        let is_list =
            |list: &[u8]| is_user && is_list_of(list, |value| scan::inner(value).is_some());
        let groups = rest.unless("groups", groups, is_list);
        unmapped.nest("user", &rest, is_user);
        Self { name, uid, groups }
    }

    /// Writes the member `actor`. If the user is not known, `user_agent` takes the user's place.
    fn write(&self, user_agent: Option<&[u8]>, document: &mut Object<'_>) {
        let mut actor = Object::begin(document.key(b"actor"));
        if self.name.is_none() && self.uid.is_none() {
            actor.member("invoked_by", user_agent.unwrap_or(UNKNOWN));
            actor.end();
            return;
        }
        let mut user = Object::begin(actor.key(b"user"));
        user.optional("name", self.name);
        user.optional("uid", self.uid);
        if let Some(groups) = self.groups {
            write_list(scan::elements(groups), user.key(b"groups"), |group, out| {
                let mut object = Object::begin(out);
                object.member("name", group);
                object.end();
            });
        }
        user.end();
        actor.end();
    }
}

#[derive(Default)]
struct Resource<'a> {
    api_group: Option<&'a [u8]>,
    api_version: Option<&'a [u8]>,
    /// The members of the resource in the document; all are `None` if the schema has no resource
    /// for this object.
    members: [(&'static str, Option<&'a [u8]>); 5],
}

impl<'a> Resource<'a> {
    fn read(reference: Option<&'a [u8]>, unmapped: &mut Rest<'a>) -> Self {
        let is_object = |value: &[u8]| object(Some(value)).is_some();
        let Some(reference) = unmapped.unless("objectRef", reference, is_object) else {
            return Self::default();
        };
        let mut rest = Rest::default();
        let names =
            ["apiGroup", "apiVersion", "name", "namespace", "uid", "resourceVersion", "resource"];
        let [api_group, api_version, name, namespace, uid, version, resource] =
            rest.split(reference, names);
        let api_group = rest.unless_text("apiGroup", api_group);
        let api_version = rest.unless_text("apiVersion", api_version);
        // The schema requires a name or a uid of each resource. The `objectRef` of a list request
        // has neither.
        let is_one = text(name).is_some() || text(uid).is_some();
        let is_text = |value: &[u8]| is_one && text(Some(value)).is_some();
        let members = [
            ("name", rest.unless("name", name, is_text)),
            ("namespace", rest.unless("namespace", namespace, is_text)),
            ("uid", rest.unless("uid", uid, is_text)),
            ("version", rest.unless("resourceVersion", version, is_text)),
            ("type", rest.unless("resource", resource, is_text)),
        ];
        unmapped.nest("objectRef", &rest, is_one || api_group.or(api_version).is_some());
        Self { api_group, api_version, members }
    }

    fn write(&self, document: &mut Object<'_>) {
        if self.members.iter().all(|(_, value)| value.is_none()) {
            return;
        }
        let list = document.key(b"resources");
        list.push(b'[');
        let mut resource = Object::begin(list);
        for (key, value) in self.members {
            resource.optional(key, value);
        }
        resource.end();
        list.push(b']');
    }
}

/// Returns the members of the response in the document.
fn response<'a>(
    status: Option<&'a [u8]>,
    unmapped: &mut Rest<'a>,
) -> [(&'static str, Option<&'a [u8]>); 4] {
    let is_object = |value: &[u8]| object(Some(value)).is_some();
    let Some(whole) = unmapped.unless("responseStatus", status, is_object) else {
        return [("code", None); 4];
    };
    let mut rest = Rest::default();
    let [number, message, reason, status] =
        rest.split(whole, ["code", "message", "reason", "status"]);
    let members = [
        ("code", rest.unless("code", number, |value| code(Some(value)).is_some())),
        ("message", rest.unless_text("message", message)),
        ("error", rest.unless_text("reason", reason)),
        ("error_message", rest.unless_text("status", status)),
    ];
    let has_place = members.iter().any(|(_, value)| value.is_some());
    unmapped.nest("responseStatus", &rest, has_place);
    members
}

/// The members of an event that [`write()`] handles one by one, in the order in which it takes
/// them.
const NAMES: [&str; 15] = [
    "apiVersion",
    "level",
    "auditID",
    "stage",
    "requestURI",
    "verb",
    "user",
    "sourceIPs",
    "userAgent",
    "objectRef",
    "responseStatus",
    "requestReceivedTimestamp",
    "stageTimestamp",
    "requestObject",
    "responseObject",
];

pub(super) fn write(event: &[u8], bodies: Bodies, out: &mut Vec<u8>) {
    let mut unmapped = Rest::default();
    let found = unmapped.split(event, NAMES);
    let [version, level, audit_id, stage, uri, verb, user, ips, user_agent, object_ref, status, ..] =
        found;
    let [.., request_time, stage_time, request_body, response_body] = found;
    for (name, body) in [("requestObject", request_body), ("responseObject", response_body)] {
        add_body(name, body, bodies, &mut unmapped);
    }
    let is_time = |value: &[u8]| scan::inner(value).is_some_and(is_timestamp);
    let request_time = unmapped.unless("requestReceivedTimestamp", request_time, is_time);
    let stage_time = unmapped.unless("stageTimestamp", stage_time, is_time);
    let verb = unmapped.unless_text("verb", verb);
    let audit_id = unmapped.unless_text("auditID", audit_id);
    let uri = unmapped.unless_text("requestURI", uri);
    let user_agent = unmapped.unless_text("userAgent", user_agent);
    let is_addresses = |list: &[u8]| list != b"[]" && is_list_of(list, is_ip);
    let ips = unmapped.unless("sourceIPs", ips, is_addresses);
    let user = User::read(user, &mut unmapped);
    let resource = Resource::read(object_ref, &mut unmapped);
    let response = response(status, &mut unmapped);

    out.reserve(event.len() + 1024);
    let mut document = Object::begin(out);
    write_time("time_dt", "time", stage_time.or(request_time), &mut document);
    write_time("start_time_dt", "start_time", request_time, &mut document);
    write_class(verb, &mut document);
    document.optional("message", unmapped.unless_text("stage", stage));
    let version = unmapped.unless_text("apiVersion", version);
    write_metadata(version, unmapped.unless_text("level", level), &mut document);
    let mut api = Object::begin(document.key(b"api"));
    api.member("operation", verb.unwrap_or(UNKNOWN));
    api.group("request", &[("uid", audit_id)]);
    api.optional("version", resource.api_version);
    api.group("group", &[("name", resource.api_group)]);
    api.group("response", &response);
    api.end();
    user.write(user_agent, &mut document);
    write_addresses(ips, &mut document);
    write_http_request(uri, user_agent, &mut document);
    resource.write(&mut document);
    if !unmapped.members.is_empty() {
        let rest = document.key(b"unmapped");
        rest.push(b'{');
        rest.extend_from_slice(&unmapped.members);
        rest.push(b'}');
    }
    document.end();
}

fn write_class(verb: Option<&[u8]>, document: &mut Object<'_>) {
    let activity = activity(verb);
    for (key, number) in [
        ("class_uid", CLASS),
        ("category_uid", CLASS / 1000),
        ("activity_id", activity),
        ("type_uid", CLASS * 100 + activity),
        ("severity_id", 1),
    ] {
        document.member(key, number.to_string().as_bytes());
    }
}

fn write_metadata(version: Option<&[u8]>, level: Option<&[u8]>, document: &mut Object<'_>) {
    let mut metadata = Object::begin(document.key(b"metadata"));
    metadata.member("version", VERSION);
    metadata.member("profiles", br#"["datetime"]"#);
    let kubernetes = Some(br#""Kubernetes""#.as_slice());
    metadata.group(
        "product",
        &[("name", kubernetes), ("vendor_name", kubernetes), ("version", version)],
    );
    metadata.optional("log_level", level);
    metadata.end();
}

fn add_body(name: &str, body: Option<&[u8]>, bodies: Bodies, unmapped: &mut Rest<'_>) {
    match (body, bodies) {
        (None, _) => {}
        (Some(body), Bodies::String) if body != b"null" => {
            write_string(body, unmapped.begin(name.as_bytes()));
        }
        (Some(body), _) => unmapped.put(name.as_bytes(), body),
    }
}

fn activity(verb: Option<&[u8]>) -> u32 {
    match verb.and_then(scan::string).as_deref() {
        Some(b"create") => 1,
        Some(b"get" | b"list" | b"watch") => 2,
        Some(b"update" | b"patch") => 3,
        Some(b"delete" | b"deletecollection") => 4,
        Some(_) | None => 99,
    }
}

/// Writes a time as text and in milliseconds. `time` is a JSON string with a valid time.
fn write_time(as_text: &str, as_number: &str, time: Option<&[u8]>, document: &mut Object<'_>) {
    let value = time.and_then(scan::inner).and_then(milliseconds);
    document.optional(as_text, time);
    document
        .optional(as_number, value.map(|value| value.to_string()).as_deref().map(str::as_bytes));
}

/// Writes the member `src_endpoint`. `ips` is a list of addresses, the client's first.
fn write_addresses(ips: Option<&[u8]>, document: &mut Object<'_>) {
    let mut endpoint = Object::begin(document.key(b"src_endpoint"));
    let mut addresses = scan::elements(ips.unwrap_or_default());
    match addresses.next() {
        None => endpoint.member("name", UNKNOWN),
        Some(first) => {
            endpoint.member("ip", first);
            let mut others = addresses.peekable();
            if others.peek().is_some() {
                let list = endpoint.key(b"intermediate_ips");
                write_list(others, list, |ip, out| out.extend_from_slice(ip));
            }
        }
    }
    endpoint.end();
}

/// Writes the member `http_request`, if the event has a part of it.
fn write_http_request(uri: Option<&[u8]>, user_agent: Option<&[u8]>, document: &mut Object<'_>) {
    if uri.is_none() && user_agent.is_none() {
        return;
    }
    let mut request = Object::begin(document.key(b"http_request"));
    if let Some(uri) = uri.and_then(scan::inner) {
        // A question mark is not part of an escape, so the text can be cut there.
        let (path, query) = match memchr::memchr(b'?', uri) {
            Some(at) => (uri.get(..at), uri.get(at + 1..)),
            None => (Some(uri), None),
        };
        let quoted = |text: &[u8]| Cow::<[u8]>::Owned([b"\"", text, b"\""].concat());
        let (path, query) = (path.map(quoted), query.map(quoted));
        request.group("url", &[("path", path.as_deref()), ("query_string", query.as_deref())]);
    }
    request.optional("user_agent", user_agent);
    request.end();
}

fn is_list_of(value: &[u8], is_one: impl Fn(&[u8]) -> bool) -> bool {
    value.first() == Some(&b'[') && scan::elements(value).all(is_one)
}

fn write_list<'a>(
    elements: impl Iterator<Item = &'a [u8]>,
    out: &mut Vec<u8>,
    write: impl Fn(&[u8], &mut Vec<u8>),
) {
    out.push(b'[');
    for (index, element) in elements.enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write(element, out);
    }
    out.push(b']');
}
