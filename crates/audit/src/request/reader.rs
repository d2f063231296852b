//! Reads the requests of all events of a batch: the same as [`request`](super::request) for each,
//! but fast for events that are written as kube-apiserver writes them.
//!
//! Go always writes the members of an object in the same order and without white space, and most of
//! the bytes between two strings are known. An event of this usual form is compared with the
//! expected bytes, and the reader searches only for the ends of strings. An event of any other
//! form, such as one with white space, with another order of members, or with a backslash in the
//! username, is left to [`request`](super::request).
//!
//! For an event of the usual form, the result is the same. Of two keys with the same name, the
//! first counts, and each of the six members that are needed is the first with its name, because
//! all members before it are known. If there is no `objectRef` at the usual place, all members that
//! follow are searched for one, and if it is found, the form is not the usual one. A quote without
//! a backslash before it ends its string.

use std::borrow::Cow;

use super::quotes::{Masks, Search, WINDOW};
use super::{Object, Request, Text, Uri, User, quotes};
use crate::scan::Member;
use crate::{Events, scan};

/// The number of remembered clients: a few clients cause most of the events of a batch.
const CLIENTS: usize = 64;

/// Reads the events of a text one after the other, each with its request to kube-apiserver.
///
/// The request is the one that [`request`](super::request) returns. Events that are written as
/// kube-apiserver writes them need no allocation, except for the groups of a new client.
#[derive(Debug)]
pub struct Reader<'a> {
    events: Events<'a>,
    /// The request of the last event. If `current` is `Some`, the user in it was moved here from
    /// `clients`, and must be moved back before another user is moved in.
    request: Request<'a>,
    /// The clients that the reader remembers. A client is at the index that [`place`] computes, or
    /// at the index that differs from it only in the lowest bit.
    clients: Vec<Client<'a>>,
    /// The index of the client whose user was moved from `clients` to `request`.
    current: Option<usize>,
    known: usize,
    #[cfg(target_arch = "x86_64")]
    avx2: Option<quotes::avx2::Avx2>,
}

/// A client of kube-apiserver, such as a controller. Its events have the same bytes between the
/// verb and the object, so the user in these bytes is read only once.
#[derive(Debug, Default)]
struct Client<'a> {
    /// The bytes of an event from the user's opening brace to the end of the user agent or, if the
    /// event has none, of the source IPs. Empty if no client is stored here.
    text: &'a [u8],
    /// The user that `text` describes; empty while it is moved into `request` of the reader.
    user: User<'a>,
}

struct Usual<'r, 'a> {
    reader: &'r mut Reader<'a>,
    event: &'a [u8],
}

impl Search for Usual<'_, '_> {
    #[inline(always)]
    fn run(self, masks: impl Fn(&[u8; WINDOW]) -> Masks) -> bool {
        self.reader.usual(self.event, masks).is_some()
    }
}

impl<'a> Reader<'a> {
    /// Makes a reader of `lines`: events that are valid JSON without raw line breaks, each followed
    /// by one `\n`.
    pub fn new(lines: &'a [u8]) -> Self {
        Self::of(Events::of(lines, None))
    }

    /// Makes a reader of events that are valid JSON without raw line breaks.
    pub fn of(events: Events<'a>) -> Self {
        let mut clients = Vec::new();
        clients.resize_with(CLIENTS, Client::default);
        Self {
            events,
            request: Request::default(),
            clients,
            current: None,
            known: 0,
            #[cfg(target_arch = "x86_64")]
            avx2: quotes::avx2::Avx2::detect(),
        }
    }

    /// Returns the next event, without the byte after it, and its request.
    pub fn read(&mut self) -> Option<(&'a [u8], &Request<'a>)> {
        let event = self.advance()?;
        Some((event, &self.request))
    }

    /// Returns the request of the last event.
    pub fn request(&self) -> &Request<'a> {
        &self.request
    }

    /// Returns the next event, without the byte after it.
    pub fn advance(&mut self) -> Option<&'a [u8]> {
        // The end is found before the event is read, so that the CPU can begin with the next event
        // while it still reads this one.
        let event = self.events.next()?;
        #[cfg(target_arch = "x86_64")]
        let is_usual = match self.avx2 {
            Some(avx2) => avx2.run(Usual { reader: self, event }),
            None => Usual { reader: self, event }.run(quotes::portable),
        };
        #[cfg(not(target_arch = "x86_64"))]
        let is_usual = Usual { reader: self, event }.run(quotes::portable);
        if !is_usual {
            self.lend(None);
            self.request = super::request(event);
            self.known = 0;
        }
        Some(event)
    }

    /// Returns the number of known bytes at the beginning of the last event. In them, no key of the
    /// event or of `objectRef` can occur twice, because each was compared with the key that
    /// kube-apiserver writes there. Keys of other members, such as `user.extra`, were not compared.
    /// The known bytes end before a member of the event, or before the event's closing brace. 0 if
    /// the event does not have the usual form.
    pub fn known(&self) -> usize {
        self.known
    }

    /// Moves the user in `self.request` back to its client, and then the user of `client` into
    /// `self.request`. Does nothing if `client` is equal to `self.current`.
    #[inline]
    fn lend(&mut self, client: Option<usize>) {
        if client == self.current {
            return;
        }
        if let Some(before) = self.current.and_then(|current| self.clients.get_mut(current))
            && let Some(user) = self.request.user.take()
        {
            before.user = user;
        }
        self.request.user = client
            .and_then(|client| self.clients.get_mut(client))
            .map(|client| std::mem::take(&mut client.user))
            .filter(|user| !user.name.is_empty() || !user.groups.is_empty());
        self.current = client;
    }

    /// Reads `event` into `self.request`, which is meaningless if the form is not the usual one.
    #[inline(always)]
    fn usual(&mut self, event: &'a [u8], masks: impl Fn(&[u8; WINDOW]) -> Masks) -> Option<()> {
        let (level, stage, text) = head(event)?;
        let mut walk = Walk { rest: text, masks };
        let uri = walk.any_string()?;
        walk.pass(br#"","verb":""#)?;
        let verb = walk.string()?;
        walk.pass(br#"","user":"#)?;
        let client = self.client(&mut walk)?;
        self.lend(Some(client));
        // Each value is written to its field of `request`. A `Request` that is assembled elsewhere
        // and copied as a whole would have to wait for all of its parts.
        self.request.level = Cow::Borrowed(level);
        self.request.stage = Cow::Borrowed(stage);
        self.request.uri = Uri(uri);
        self.request.verb = Cow::Borrowed(verb);
        if walk.passes(br#","objectRef":{""#) {
            walk.object(self.request.object.get_or_insert_default())?;
            self.known = event.len() - walk.rest.len();
            return Some(());
        }
        self.request.object = None;
        self.known = event.len() - walk.rest.len();
        let is_object = |member: Member<'_>| *member.name() == *b"objectRef";
        let mut behind = scan::members_behind(event, event.len() - walk.rest.len());
        (!behind.any(is_object)).then_some(())
    }

    /// Returns the index of the event's client, which may be new, and moves `walk` past its bytes.
    #[inline(always)]
    fn client<M: Fn(&[u8; WINDOW]) -> Masks>(&mut self, walk: &mut Walk<'a, M>) -> Option<usize> {
        let text = walk.rest;
        let first = place(text);
        for index in [first, first ^ 1] {
            let known = self.clients.get(index)?.text;
            if !known.is_empty()
                && let Some(rest) = text.strip_prefix(known)
            {
                walk.rest = rest;
                return Some(index);
            }
        }
        // The client whose user is lent to the request must not be overwritten.
        let index = if self.current == Some(first) { first ^ 1 } else { first };
        self.clients.get_mut(index)?.learn(walk)?;
        Some(index)
    }
}

/// Returns the index at which a client with the bytes `text` is normally stored: a hash of the
/// bytes in which usernames mostly differ. If the user of another client at this index is in
/// `request`, the client is stored at the index with the lowest bit changed.
#[inline(always)]
fn place(text: &[u8]) -> usize {
    let (words, _) = text.get(24..).unwrap_or_default().as_chunks();
    let mix = |all: u64, word: &[u8; 8]| all.rotate_left(11) ^ u64::from_le_bytes(*word);
    let mixed = words.iter().take(4).fold(0, mix).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    usize::from(mixed.to_be_bytes()[0]) % CLIENTS
}

impl<'a> Client<'a> {
    /// Stores the client at the position of `walk` in `self`, and moves `walk` past it. After
    /// `None`, `self` holds no client.
    fn learn<M: Fn(&[u8; WINDOW]) -> Masks>(&mut self, walk: &mut Walk<'a, M>) -> Option<()> {
        let text = walk.rest;
        // The client stays unknown until all of its bytes are read.
        self.text = &[];
        self.user.groups.clear();
        walk.pass(b"{")?;
        self.user.name = Cow::Borrowed(walk.user(Some(&mut self.user.groups))?);
        if walk.passes(br#","impersonatedUser":{"#) {
            walk.user(None)?;
        }
        walk.pass(br#","sourceIPs":["#)?;
        walk.skip_strings()?;
        if walk.passes(br#","userAgent":""#) {
            walk.any_string()?;
            walk.pass(br#"""#)?;
        }
        self.text = text.get(..text.len() - walk.rest.len())?;
        Some(())
    }
}

/// Returns the level, the stage, and the rest of the event from the first character of the URI.
#[inline(always)]
fn head(event: &[u8]) -> Option<(&'static [u8], &'static [u8], &[u8])> {
    const KIND: &[u8] = br#"{"kind":"Event","apiVersion":"audit.k8s.io/v1","level":""#;
    let text = event.strip_prefix(br#"{"level":""#).or_else(|| event.strip_prefix(KIND))?;
    macro_rules! one_of {
        ($text:ident, $next:literal, $($name:literal)*) => {
            $(if let Some(rest) = $text.strip_prefix(concat!($name, $next).as_bytes()) {
                ($name.as_bytes(), rest)
            } else)* {
                return None;
            }
        };
    }
    let (level, text) =
        one_of!(text, r#"","auditID":""#, "Metadata" "RequestResponse" "Request" "None");
    let (id, text) = text.split_first_chunk::<36>()?;
    if id.iter().fold(false, |found, byte| found | (*byte == b'"')) || id.last() == Some(&b'\\') {
        return None;
    }
    let text = text.strip_prefix(br#"","stage":""#)?;
    let (stage, text) = one_of!(
        text,
        r#"","requestURI":""#,
        "ResponseComplete" "RequestReceived" "ResponseStarted" "Panic"
    );
    Some((level, stage, text))
}

/// The position of the reader in an event of the usual form. Each method returns `None` if the
/// bytes at the position do not have this form.
struct Walk<'a, M> {
    rest: &'a [u8],
    /// Computes the masks of the quotes and backslashes in a window.
    masks: M,
}

impl<'a, M: Fn(&[u8; WINDOW]) -> Masks> Walk<'a, M> {
    /// Moves past `what` and returns `true`, or does not move if something else follows.
    #[inline(always)]
    fn passes<const N: usize>(&mut self, what: &[u8; N]) -> bool {
        match self.rest.strip_prefix(what) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    #[inline(always)]
    fn pass<const N: usize>(&mut self, what: &[u8; N]) -> Option<()> {
        self.passes(what).then_some(())
    }

    /// Moves from inside of a string to the next quote. Returns the bytes before the quote, and
    /// `true` if a backslash is among them.
    #[inline(always)]
    fn find_quote(&mut self) -> Option<(&'a [u8], bool)> {
        let (mut before, mut has_backslash) = (0, false);
        while let Some(window) = self.rest.get(before..)?.first_chunk() {
            let Masks { quote, backslash } = (self.masks)(window);
            if quote != 0 {
                let (string, rest) =
                    self.rest.split_at_checked(before + quote.trailing_zeros() as usize)?;
                self.rest = rest;
                return Some((
                    string,
                    has_backslash | (backslash & (quote ^ quote.wrapping_sub(1)) != 0),
                ));
            }
            has_backslash |= backslash != 0;
            before += WINDOW;
        }
        self.find_last_quote()
    }

    /// Does what [`Self::find_quote`] does if fewer than [`WINDOW`] bytes are left.
    #[cold]
    fn find_last_quote(&mut self) -> Option<(&'a [u8], bool)> {
        let (string, rest) = self.rest.split_at_checked(memchr::memchr(b'"', self.rest)?)?;
        self.rest = rest;
        Some((string, memchr::memchr(b'\\', string).is_some()))
    }

    /// Reads a string up to its closing quote. `None` if the string contains a backslash.
    #[inline(always)]
    fn string(&mut self) -> Option<&'a [u8]> {
        let (string, has_backslash) = self.find_quote()?;
        (!has_backslash).then_some(string)
    }

    /// Does what [`Self::string`] does for a string with escapes, which stay as written. `None` if
    /// the byte before the next quote is a backslash, because the quote may belong to the string.
    #[inline(always)]
    fn any_string(&mut self) -> Option<&'a [u8]> {
        let (string, _) = self.find_quote()?;
        (string.last() != Some(&b'\\')).then_some(string)
    }

    /// Moves past an array of strings, whose opening bracket was already passed.
    #[inline(always)]
    fn skip_strings(&mut self) -> Option<()> {
        self.pass(br#"""#)?;
        loop {
            self.any_string()?;
            if self.passes(br#""]"#) {
                return Some(());
            }
            self.pass(br#"",""#)?;
        }
    }

    /// Moves past an array of strings, whose opening bracket was already passed, and appends the
    /// strings to `to`. `None` also if one of them contains a backslash.
    #[inline(always)]
    fn strings(&mut self, to: &mut Vec<Text<'a>>) -> Option<()> {
        self.pass(br#"""#)?;
        loop {
            to.push(Cow::Borrowed(self.string()?));
            if self.passes(br#""]"#) {
                return Some(());
            }
            self.pass(br#"",""#)?;
        }
    }

    /// Moves past a user, whose opening brace was already passed. Returns the username, and appends
    /// the groups to `groups` if it is `Some`.
    #[inline(always)]
    fn user(&mut self, groups: Option<&mut Vec<Text<'a>>>) -> Option<&'a [u8]> {
        if self.passes(b"}") {
            return Some(&[]);
        }
        self.pass(br#""username":""#)?;
        let name = self.string()?;
        if self.passes(br#"","uid":""#) {
            self.any_string()?;
        }
        self.pass(br#"","groups":["#)?;
        match groups {
            Some(groups) => self.strings(groups)?,
            None => self.skip_strings()?,
        }
        if self.passes(br#","extra":{""#) {
            loop {
                self.any_string()?;
                self.pass(br#"":["#)?;
                self.skip_strings()?;
                if self.passes(b"}") {
                    break;
                }
                self.pass(br#",""#)?;
            }
        }
        self.pass(b"}")?;
        Some(name)
    }

    /// Moves past the rest of `objectRef` and writes its values to `object`. The opening quote of
    /// the first key was already passed.
    #[inline(always)]
    fn object(&mut self, object: &mut Object<'a>) -> Option<()> {
        self.pass(br#"resource":""#)?;
        object.resource = Cow::Borrowed(self.string()?);
        object.namespace = self.optional(br#"","namespace":""#)?;
        object.name = self.optional(br#"","name":""#)?;
        if self.passes(br#"","uid":""#) {
            self.any_string()?;
        }
        object.group = self.optional(br#"","apiGroup":""#)?;
        if self.passes(br#"","apiVersion":""#) {
            self.any_string()?;
        }
        if self.passes(br#"","resourceVersion":""#) {
            self.any_string()?;
        }
        object.subresource = self.optional(br#"","subresource":""#)?;
        self.pass(br#""}"#)
    }

    /// Returns the string after `what`, without backslashes, or an empty one if `what` is not next.
    #[inline(always)]
    fn optional<const N: usize>(&mut self, what: &[u8; N]) -> Option<Text<'a>> {
        Some(Cow::Borrowed(if self.passes(what) { self.string()? } else { &[] }))
    }
}

#[cfg(test)]
mod tests;
