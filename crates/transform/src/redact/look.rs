//! Takes a quick look at an event, to see what a redaction may find in it.

use std::sync::LazyLock;

use memchr::memmem::Finder;

use super::signs::Signs;
use super::{ambiguous, uri, web_token};
use audit::request::Request;

/// The things that a redaction may find in an event. A field that is `false` is certain; `true`
/// means that a closer look may be necessary. Most events have nothing to redact, and this look is
/// much cheaper than reading their members.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Look {
    /// The number of bytes at the beginning of the event in which every key is known: see
    /// [`Reader::known`](audit::request::Reader::known).
    pub(super) known: usize,
    /// The event may contain letters that are written as escapes, such as `\u0041` for `A`.
    pub(super) spells_letters: bool,
    /// The event names its object, a part of it, or its URI twice.
    pub(super) is_ambiguous: bool,
    /// The event may contain JSON Web Tokens.
    pub(super) has_tokens: bool,
    /// The URI of the event's request may contain credentials.
    pub(super) has_credentials: bool,
}

impl Look {
    pub(super) fn at(event: &[u8], request: &Request<'_>, known: usize) -> Self {
        // Escapes, tokens and keys are searched only if their signs were found. If no bytes are
        // known, the keys are always searched, because the event's own keys are signs.
        let signs = Signs::of(event, known);
        let spells_letters = signs.escapes && ambiguous::spells_letters(event);
        let may_repeat = known == 0 || spells_letters || signs.keys;
        let has_tokens =
            (signs.tokens || spells_letters) && web_token::may_be_in(event, spells_letters);
        Self {
            known,
            spells_letters,
            is_ambiguous: may_repeat && ambiguous::is_ambiguous(event, known, spells_letters),
            has_tokens,
            has_credentials: uri::may_have_credentials(request.uri, signs.tokens),
        }
    }

    /// The look after which all members of the event are read.
    #[cfg(test)]
    pub(super) fn blind(event: &[u8]) -> Self {
        Self {
            known: 0,
            spells_letters: true,
            is_ambiguous: ambiguous::is_ambiguous(event, 0, true),
            has_tokens: true,
            has_credentials: true,
        }
    }

    /// Returns `true` if there is nothing to redact, whatever the event's object is.
    #[cfg(test)]
    pub(super) fn is_clear(self) -> bool {
        Self { known: 0, ..self } == Self::default()
    }

    pub(super) fn may_have_bodies(self, event: &[u8]) -> bool {
        static NAMES: LazyLock<[Finder<'static>; 2]> = LazyLock::new(|| {
            [br#""requestObject""#.as_slice(), br#""responseObject""#].map(Finder::new)
        });
        self.spells_letters || NAMES.iter().any(|name| name.find(event).is_some())
    }
}
