//! Makes the text that a reader may see from a copied event.

use serde::de::IgnoredAny;

use audit::request;
use base::words::escape;
use transform::policy::{Located, Match, Matcher, Users};
use transform::redact;
use transform::redact::{Change, Redaction};

/// The events that one reader asks for, and the redaction of events. The reader's task owns this
/// value.
pub struct View {
    /// The redactions that always hold, without rules of a config.
    redaction: Redaction,
    /// `None` if the reader asks for every event.
    wanted: Option<Matcher>,
    users: Users,
    redacted: Vec<u8>,
}

/// The result of [`View::look`].
#[derive(Debug, PartialEq, Eq)]
pub enum Looked {
    /// The event, redacted, as one line of JSON that is safe for a terminal.
    Shown(String),
    /// The reader does not ask for this event.
    Other,
    /// The event is not a JSON object, so it might contain a secret.
    Unreadable,
}

impl View {
    /// Makes the view of a reader who asks for the events that match one of `wanted`, or for every
    /// event if it is `None`.
    pub fn new(wanted: Option<&[Match]>) -> Self {
        let redaction = Redaction::new(&[]).expect("no rule has no mistake");
        let wanted = wanted.map(Matcher::new);
        Self { redaction, wanted, users: Users::default(), redacted: Vec::new() }
    }

    /// Redacts an event, and only then compares it, so that a match cannot reveal a secret.
    pub fn look(&mut self, event: &[u8]) -> Looked {
        // Redaction cuts values out of JSON. In other text, a part of a value might remain.
        if !is_json(event) {
            return Looked::Unreadable;
        }
        self.redacted.clear();
        let change = Change { redaction: Some(&self.redaction), ..Change::default() };
        redact::apply(event, &request::request(event), 0, &change, &mut self.redacted);
        let event = if self.redacted.is_empty() { event } else { &self.redacted };
        if !is_json(event) {
            return Looked::Unreadable;
        }
        let Ok(text) = std::str::from_utf8(event) else { return Looked::Unreadable };
        let request = request::request(event);
        let located = Located::of_event(event, &request);
        match &self.wanted {
            Some(wanted) if wanted.first(&located, &mut self.users).is_none() => Looked::Other,
            _ => Looked::Shown(escape::json(text).into_owned()),
        }
    }
}

fn is_json(text: &[u8]) -> bool {
    text.first() == Some(&b'{') && serde_json::from_slice::<IgnoredAny>(text).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(wanted: Option<&str>) -> View {
        View::new(wanted.map(|text| config::read_match(text).unwrap()).as_deref())
    }

    #[test]
    fn what_is_not_json_is_not_shown() {
        let mut view = view(None);
        for text in [
            &b""[..],
            b"<13>1 - - -",
            b"{\"a\":1",
            b"{\"a\":1}}",
            b"[1]",
            b"\"a\"",
            b"{\"a\":\"\xff\"}",
            b"{\"requestObject\":{\"data\":\"x\"}, oops}",
        ] {
            assert_eq!(view.look(text), Looked::Unreadable, "{:?}", text.escape_ascii());
        }
        assert_eq!(view.look(br#"{"a":1}"#), Looked::Shown(r#"{"a":1}"#.to_owned()));
    }

    #[test]
    fn a_match_sees_only_what_is_shown() {
        let user = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJodW50ZXIyIn0.c2lnbmF0dXJl-_";
        let event = format!(r#"{{"verb":"get","user":{{"username":"{user}"}}}}"#);
        let Looked::Shown(shown) = view(None).look(event.as_bytes()) else { panic!("not shown") };
        assert!(!shown.contains("eyJ"), "{shown}");
        let wanted = format!("{{ users = [\"{user}\"] }}");
        assert_eq!(view(Some(&wanted)).look(event.as_bytes()), Looked::Other);
        assert_eq!(view(Some("{ users = ['eyJ*'] }")).look(event.as_bytes()), Looked::Other);
        assert_eq!(view(Some("{ verbs = ['get'] }")).look(event.as_bytes()), Looked::Shown(shown));
    }

    /// Method: a stack on which a call for each level has no room.
    #[test]
    fn deep_nesting_hides_nothing() {
        let test = || {
            let deep = format!("{}1{}", "[".repeat(10_005), "]".repeat(10_005));
            let deep = format!(r#"{{"verb":"get","requestObject":{deep}}}"#);
            let looked = view(Some("{ verbs = ['get'] }")).look(deep.as_bytes());
            assert_eq!(looked, Looked::Shown(deep));
        };
        std::thread::Builder::new().stack_size(256 * 1024).spawn(test).unwrap().join().unwrap();
    }
}
