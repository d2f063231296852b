//! The conditions by which the reader of a tap asks for events: `verb=delete`,
//! `user=system:serviceaccount:*`, `code>=400`.
//!
//! In doubt, an event is shown. If it has two values for a key (the namespaces of the URL and the
//! body, or the user and the impersonated user), one that fits is enough. So a client cannot hide
//! an event by a second value.

use std::borrow::Cow;

use super::fields::Fields;

const CONDITIONS_MAX: usize = 32;

const CONDITION_BYTES_MAX: usize = 512;

#[derive(Debug)]
struct Key {
    name: &'static str,
    /// The values that exist (case does not matter); empty if any value is allowed.
    known: &'static [&'static str],
    /// Returns the values of an event, at least one. A missing value is empty.
    values: for<'f> fn(&'f Fields<'_>) -> Values<'f>,
}

type Values<'f> = Vec<Cow<'f, str>>;

const LEVELS: &[&str] = &["None", "Metadata", "Request", "RequestResponse"];
const STAGES: &[&str] = &["RequestReceived", "ResponseStarted", "ResponseComplete", "Panic"];

/// In the order in which messages list the keys.
static KEYS: [Key; 13] = [
    key("verb", |it| one(&it.verb)),
    key("user", |it| both(&it.user.name, Some(&it.impersonated.name))),
    key("group", |it| all(it.user.groups.iter().chain(&it.impersonated.groups))),
    key("namespace", |it| {
        both(&it.object.namespace, it.located.as_ref().map(|(namespace, _)| &**namespace))
    }),
    key("resource", resources),
    key("name", |it| both(&it.object.name, it.located.as_ref().map(|(_, name)| &**name))),
    key(CODE, |it| vec![it.code.map(|code| Cow::Owned(code.to_string())).unwrap_or_default()]),
    Key { known: LEVELS, ..key("level", |it| one(&it.level)) },
    Key { known: STAGES, ..key("stage", |it| one(&it.stage)) },
    key("ip", |it| all(it.client.ips.iter())),
    key("uri", |it| one(&it.uri)),
    key("agent", |it| one(&it.client.agent)),
    key("api-group", |it| one(&it.object.api_group)),
];

/// The key whose values are numbers.
const CODE: &str = "code";

const fn key(name: &'static str, values: for<'f> fn(&'f Fields<'_>) -> Values<'f>) -> Key {
    Key { name, known: &[], values }
}

#[derive(Debug, Clone, Copy)]
enum Operator {
    Is,
    IsNot,
    Number(fn(&u64, &u64) -> bool),
}

/// An operator that begins with a shorter one comes before the shorter one.
const OPERATORS: [(&str, Operator); 6] = [
    ("!=", Operator::IsNot),
    (">=", Operator::Number(u64::ge)),
    ("<=", Operator::Number(u64::le)),
    ("=", Operator::Is),
    (">", Operator::Number(u64::gt)),
    ("<", Operator::Number(u64::lt)),
];

#[derive(Debug)]
struct Condition {
    key: &'static Key,
    operator: Operator,
    value: String,
    number: u64,
}

/// The conditions of one reader. The conditions for every key must hold; of several `KEY=…` for one
/// key, one is enough.
#[derive(Debug)]
pub struct Conditions(Vec<Condition>);

impl Conditions {
    /// Parses the conditions of a reader.
    ///
    /// # Errors
    ///
    /// A text that names the mistake. It is safe for a terminal.
    pub fn parse<S: AsRef<str>>(texts: &[S]) -> Result<Self, String> {
        if texts.len() > CONDITIONS_MAX {
            return Err(format!("{} conditions, allowed: at most {CONDITIONS_MAX}", texts.len()));
        }
        texts.iter().map(|text| condition(text.as_ref())).collect::<Result<_, _>>().map(Self)
    }

    /// Returns `true` if the reader asks for the event with these values.
    pub fn hold(&self, fields: &Fields<'_>) -> bool {
        let is_alternative = |it: &Condition, of: &Condition| {
            it.key.name == of.key.name && matches!(it.operator, Operator::Is)
        };
        self.0.iter().all(|condition| match condition.operator {
            Operator::Is => {
                self.0.iter().any(|it| is_alternative(it, condition) && it.holds(fields))
            }
            Operator::IsNot | Operator::Number(_) => condition.holds(fields),
        })
    }
}

fn condition(text: &str) -> Result<Condition, String> {
    let shown = || base::words::escape::message(text.get(..80).unwrap_or(text));
    if text.len() > CONDITION_BYTES_MAX {
        return Err(format!("{}… is longer than {CONDITION_BYTES_MAX} bytes", shown()));
    }
    let at = text.find(['=', '!', '>', '<']);
    let (name, rest) = at.and_then(|at| text.split_at_checked(at)).unwrap_or((text, ""));
    let operator = OPERATORS.iter().find_map(|(sign, operator)| {
        rest.strip_prefix(sign).map(|value| (*operator, value.to_owned()))
    });
    let Some((operator, value)) = operator else {
        return Err(format!("{}: no operator, allowed: KEY=VALUE, KEY!=VALUE, code>=400", shown()));
    };
    let Some(key) = KEYS.iter().find(|known| known.name == name) else {
        let near = KEYS.iter().map(|it| (strsim::damerau_levenshtein(it.name, name), it.name));
        let near = near.min().filter(|(distance, _)| *distance <= 2);
        let near = near.map(|(_, known)| format!(" (do you mean {known}?)")).unwrap_or_default();
        let keys: Vec<_> = KEYS.iter().map(|known| known.name).collect();
        return Err(format!("{}: unknown key{near}, allowed: {}", shown(), keys.join(", ")));
    };
    let compares = matches!(operator, Operator::Number(_));
    if compares && key.name != CODE {
        return Err(format!("{}: only code is a number, allowed: = and !=", shown()));
    }
    let number = value.parse();
    if compares && number.is_err() {
        return Err(format!("{}: is no number, as in code>=400", shown()));
    }
    let is_code = |value: &str| value.bytes().all(|byte| byte.is_ascii_digit() || byte == b'*');
    if key.name == CODE && !is_code(&value) {
        return Err(format!("{}: is no status, allowed: code=403, code=4*, code>=400", shown()));
    }
    let is_of = |known: &&str| is_like(&value, known, true);
    if !key.known.is_empty() && !key.known.iter().any(is_of) {
        return Err(format!("{}: never holds, allowed: {}", shown(), key.known.join(", ")));
    }
    Ok(Condition { key, operator, value, number: number.unwrap_or_default() })
}

impl Condition {
    fn holds(&self, fields: &Fields<'_>) -> bool {
        let values = (self.key.values)(fields);
        let mut values = values.iter();
        match self.operator {
            Operator::Is => values.any(|value| self.fits(value)),
            // If one form of the resource's name matches, the event is excluded.
            Operator::IsNot if self.key.name == "resource" => !values.any(|value| self.fits(value)),
            // If one group matches, the event is excluded. The client chooses the impersonated
            // groups, so one of them excludes an event only together with one of the client's own
            // groups.
            Operator::IsNot if self.key.name == "group" => {
                let has = |groups: &[Cow<'_, str>]| match groups {
                    [] => self.fits(""),
                    groups => groups.iter().any(|group| self.fits(group)),
                };
                let impersonated = &fields.impersonated.groups;
                !has(&fields.user.groups) || !impersonated.is_empty() && !has(impersonated)
            }
            Operator::IsNot => !values.all(|value| self.fits(value)),
            Operator::Number(compare) => {
                fields.code.is_some_and(|code| compare(&code, &self.number))
            }
        }
    }

    fn fits(&self, value: &str) -> bool {
        is_like(&self.value, value, !self.key.known.is_empty())
    }
}

fn one(value: &str) -> Values<'_> {
    vec![Cow::Borrowed(value)]
}

fn both<'f>(first: &'f str, second: Option<&'f str>) -> Values<'f> {
    let second = second.filter(|it| !it.is_empty() && *it != first);
    std::iter::once(first).chain(second).map(Cow::Borrowed).collect()
}

fn all<'f>(values: impl Iterator<Item = &'f Cow<'f, str>>) -> Values<'f> {
    let mut all: Vec<_> = values.map(|value| Cow::Borrowed(&**value)).collect();
    if all.is_empty() {
        all.push(Cow::Borrowed(""));
    }
    all
}

/// Returns the forms of the event's resource: `pods`, `pods/exec`, `deployments.apps`,
/// `deployments.apps/scale`.
fn resources<'f>(fields: &'f Fields<'_>) -> Values<'f> {
    let mut forms = vec![Cow::Borrowed(&*fields.object.resource)];
    if !fields.object.api_group.is_empty() {
        forms.push(Cow::Owned(format!("{}.{}", fields.object.resource, fields.object.api_group)));
    }
    if !fields.object.subresource.is_empty() {
        let with: Vec<_> =
            forms.iter().map(|form| format!("{form}/{}", fields.object.subresource)).collect();
        forms.extend(with.into_iter().map(Cow::Owned));
    }
    forms
}

/// Returns `true` if `text` matches `pattern`, in which each `*` stands for any text.
/// `ignores_case` is for ASCII letters.
///
/// Each search for a piece between two stars takes time in proportion to the length of the text: a
/// pattern of many stars must not stop a worker thread.
fn is_like(pattern: &str, text: &str, ignores_case: bool) -> bool {
    if ignores_case {
        return is_like(&pattern.to_ascii_lowercase(), &text.to_ascii_lowercase(), false);
    }
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut text) = text.strip_prefix(first).map(str::as_bytes) else { return false };
    let (middle, last) = rest.rsplit_once('*').unwrap_or(("", rest));
    for piece in middle.split('*').filter(|piece| !piece.is_empty()) {
        let Some(at) = memchr::memmem::find(text, piece.as_bytes()) else { return false };
        text = text.get(at + piece.len()..).unwrap_or_default();
    }
    text.ends_with(last.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENT: &str = r#"{"level":"Request","stage":"ResponseComplete","verb":"delete",
        "user":{"username":"system:serviceaccount:a:b","groups":["g1","g2"]},
        "impersonatedUser":{"username":"alice"},"sourceIPs":["1.2.3.4","10.0.0.1"],
        "objectRef":{"resource":"deployments","apiGroup":"apps","subresource":"scale","namespace":"x","name":"n"},
        "requestURI":"/apis/apps/v1/namespaces/prod/deployments/n/scale","userAgent":"kubectl/1",
        "responseStatus":{"code":403}}"#;

    fn holds(conditions: &[&str]) -> bool {
        Conditions::parse(conditions).unwrap().hold(&Fields::of(EVENT))
    }

    #[test]
    fn stars_stand_for_any_text() {
        for (pattern, text, is_alike) in [
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("**", "x", true),
            ("**a", "aaa", true),
            ("*ab", "aab", true),
            ("a*", "ba", false),
            ("a*", "a", true),
            ("*a", "ba", true),
            ("a*a", "a", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("*b*", "abc", true),
            ("a*bc*bc", "abc", false),
            ("é*", "éa", true),
        ] {
            assert_eq!(is_like(pattern, text, false), is_alike, "{pattern} {text}");
        }
        assert!(is_like("REQ*", "request", true) && !is_like("REQ*", "request", false));
        // A search that begins again at each byte would take minutes for this.
        let (pattern, text) = (format!("*{}b", "a".repeat(500)), "a".repeat(256 << 10));
        assert!((0..1000).all(|_| !is_like(&pattern, &text, false)));
    }

    #[test]
    fn an_impersonated_group_cannot_hide_an_event() {
        let event = |groups: &str, impersonated: &str| {
            format!(
                r#"{{"user":{{"groups":[{groups}]}},"impersonatedUser":{{"groups":[{impersonated}]}}}}"#
            )
        };
        let nodes = r#""system:nodes""#;
        for (groups, impersonated, is_shown) in [
            (nodes, "", false),
            (r#""admins""#, nodes, true),
            (nodes, nodes, false),
            (nodes, r#""admins""#, true),
            ("", nodes, true),
        ] {
            let event = event(groups, impersonated);
            let shown =
                Conditions::parse(&["group!=system:nodes"]).unwrap().hold(&Fields::of(&event));
            assert_eq!(shown, is_shown, "{event}");
        }
    }

    #[test]
    fn conditions_hold_as_people_write_them() {
        let held = "verb=delete verb=del* verb!=get user=system:serviceaccount:* user=alice group=g2 \
             group!=g3 namespace=prod namespace=x resource=deployments resource=deployments.apps \
             resource=deployments/scale resource=*/scale resource!=secrets name=n code=403 code=4* \
             code>=400 code<=403 code>402 code<404 code!=200 level=request stage=*complete ip=10.* \
             uri=/apis/* agent=kubectl/* api-group=apps user!=alice ip!=10.*";
        for one in held.split(' ') {
            assert!(holds(&[one]), "{one}");
        }
        let failing = "verb=Delete verb=delet user=bob group=g group!=g1 namespace= resource=deploy \
             resource!=deployments code=200 code>403 code<403 level=Metadata name!=n agent= user!=*";
        for one in failing.split(' ') {
            assert!(!holds(&[one]), "{one}");
        }
        assert!(holds(&[]));
        assert!(holds(&["verb=get", "verb=delete", "code>=400"]));
        assert!(!holds(&["verb=get", "verb=list"]));
        assert!(!holds(&["verb=delete", "code<400"]));
        assert!(!holds(&["verb!=get", "verb!=delete"]));
    }

    #[test]
    fn a_value_that_the_event_does_not_have_is_empty() {
        let holds =
            |text| Conditions::parse(&[text]).unwrap().hold(&Fields::of(r#"{"verb":"get"}"#));
        assert!(holds("namespace=") && holds("code!=200") && holds("user=") && holds("ip="));
        assert!(!holds("code>=0") && !holds("namespace!=") && !holds("group=*a"));
    }

    #[test]
    fn a_wrong_condition_says_what_is_allowed() {
        for (text, what) in [
            ("verb", "no operator"),
            ("verbs=get", "do you mean verb?"),
            ("=get", "unknown key"),
            ("verb>=get", "only code is a number"),
            ("code>=4x", "is no number"),
            ("code=4x", "is no status"),
            ("level=Meta", "never holds"),
            ("verb!get", "no operator"),
            ("x\u{1b}[2J=1", r"x\u{1b}[2J=1: unknown key"),
        ] {
            let error = Conditions::parse(&[text]).unwrap_err();
            assert!(error.contains(what), "{text}: {error}");
            assert!(!error.contains('\u{1b}'));
        }
        assert!(Conditions::parse(&[format!("verb={}", "a".repeat(600))]).is_err());
        assert!(Conditions::parse(&vec!["verb=get"; 33]).is_err());
    }
}
