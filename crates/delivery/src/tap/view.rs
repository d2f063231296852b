//! Makes the text that a reader may see from a copied event.

use serde::de::IgnoredAny;

use super::condition::Conditions;
use super::fields::Fields;
use audit::request;
use base::words::escape;
use transform::redact;
use transform::redact::{Change, Redaction};

/// The conditions of one reader, and the redaction of events. The reader's task owns this value.
pub struct View {
    /// The redactions that always hold, without rules of a config.
    redaction: Redaction,
    conditions: Conditions,
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
    /// Makes the view of a reader with these conditions.
    pub fn new(conditions: Conditions) -> Self {
        let redaction = Redaction::new(&[]).expect("no rule has no mistake");
        Self { redaction, conditions, redacted: Vec::new() }
    }

    /// Redacts an event, and only then compares it, so that conditions cannot reveal a secret.
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
        match self.conditions.hold(&Fields::of(text)) {
            true => Looked::Shown(escape::json(text).into_owned()),
            false => Looked::Other,
        }
    }
}

fn is_json(text: &[u8]) -> bool {
    text.first() == Some(&b'{') && serde_json::from_slice::<IgnoredAny>(text).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(conditions: &[&str]) -> View {
        View::new(Conditions::parse(conditions).unwrap())
    }

    #[test]
    fn what_is_not_json_is_not_shown() {
        let mut view = view(&[]);
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
    fn conditions_see_only_what_is_shown() {
        let event = br#"{"requestURI":"/x?token=s3cret","verb":"get"}"#;
        let Looked::Shown(shown) = view(&[]).look(event) else { panic!("not shown") };
        assert!(!shown.contains("s3cret"), "{shown}");
        assert_eq!(view(&["uri=*s3cret*"]).look(event), Looked::Other);
    }

    #[test]
    fn deep_nesting_hides_nothing() {
        let deep =
            format!(r#"{{"verb":"get","requestObject":{}1{}}}"#, "[".repeat(900), "]".repeat(900));
        assert_eq!(view(&["verb=get"]).look(deep.as_bytes()), Looked::Shown(deep));
    }
}
