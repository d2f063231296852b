//! Reads the requests of all events of a batch: the same as [`request`](super::request) for each,
//! but fast for events that are written as kube-apiserver writes them.
//!
//! Go writes the members of an object always in the same order and without white space, and most of
//! the bytes between two strings are known. Therefore an event of this usual form is compared with
//! the expected bytes, from the end of one string to the next, and the reader searches only for the
//! ends of strings. An event of any other form is left to [`request`](super::request): one with
//! white space, with another order or other members up to the end of `objectRef`, or with
//! backslashes in a string whose value is needed.
//!
//! For an event of the usual form the result is the same. Of two keys with the same name the first
//! counts, and each of the six members that are needed is the first with its name, because all
//! members before it are known. If no `objectRef` stands at its usual place, it is looked for among
//! all members that follow. A quote without a backslash before it ends its string.

use std::borrow::Cow;

use super::quotes::{Masks, Search, WINDOW};
use super::{Object, Request, Text, Uri, User, quotes};
use crate::scan::Member;
use crate::{Events, scan};

/// The number of clients that a reader remembers. This number is enough, because a few clients
/// cause most of the events of a batch.
const CLIENTS: usize = 64;

/// Reads the events of a text. Returns the events one after the other, each with the request to
/// kube-apiserver that it describes.
///
/// The request is the same that [`request`](super::request) returns for the event. Events that are
/// written as kube-apiserver writes them need no allocation, except for the groups of a client that
/// is not known yet.
#[derive(Debug)]
pub struct Reader<'a> {
    /// The events that are not read yet.
    events: Events<'a>,
    /// The request of the last event. If `current` is `Some`, its user was moved here from
    /// `clients`. Before another user is moved in, this user must be moved back.
    request: Request<'a>,
    /// The clients that the reader remembers. The function [`place`] computes an index from the
    /// bytes that describe a client. A client is stored at this index, or at the index that differs
    /// from it only in the lowest bit.
    clients: Vec<Client<'a>>,
    /// The index in `clients` of the client whose user is now in `request`.
    /// `None`: the user in `request` was not moved there from `clients`.
    current: Option<usize>,
    /// The result of [`Self::known`].
    known: usize,
    #[cfg(target_arch = "x86_64")]
    avx2: Option<quotes::avx2::Avx2>,
}

/// A client of kube-apiserver, such as a controller. Events of the same client have the same bytes
/// between the verb and the object, so that the user in these bytes is read only once.
#[derive(Debug, Default)]
struct Client<'a> {
    /// The bytes of an event that describe the client, from the user's opening brace to the end of
    /// the user agent, or of the source IPs if the event has no user agent. The username and the
    /// groups in these bytes have no backslash. Empty if no client is stored here.
    text: &'a [u8],
    /// The user that `text` describes. Empty while the user is moved into the reader's field
    /// `request`.
    user: User<'a>,
}

/// Reads one event with [`Reader::usual`].
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

    /// Returns the next event, without the byte after it, and the event's request; `None` after the
    /// last event.
    pub fn read(&mut self) -> Option<(&'a [u8], &Request<'a>)> {
        let event = self.advance()?;
        Some((event, &self.request))
    }

    /// Returns the request of the last event.
    pub fn request(&self) -> &Request<'a> {
        &self.request
    }

    /// Reads the next event and returns it, without the byte after it; `None` after the last event.
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

    /// Returns the number of bytes at the beginning of the last event in which no key of the event,
    /// and no key of `objectRef`, can stand twice: each of these keys was compared with the key
    /// that kube-apiserver writes there. The keys of other members, such as `user.extra`, were not
    /// compared. The bytes end before a member of the event, or before its closing brace. The
    /// result is 0 if the event is not written as kube-apiserver writes events.
    pub fn known(&self) -> usize {
        self.known
    }

    /// Moves the user of the client with the index `client` into `self.request`. First moves a user
    /// who came from another client back to that client. If `client` is `None`, only moves such a
    /// user back. Does nothing if `client` is equal to `self.current`.
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

    /// Reads `event` into `self.request` if the event is written as kube-apiserver writes events.
    /// Returns `None` if the event is written in another way; the contents of `self.request` are
    /// then meaningless.
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

    /// Returns the index in `clients` of the client that caused the event, and moves `walk` past
    /// the bytes that describe the client. Reads and remembers a client that is not known yet.
    /// Returns `None` if these bytes are not written as kube-apiserver writes them.
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

/// Returns the index in the list of clients at which a client with the bytes `text` is normally
/// stored. The index is a hash of the bytes in which usernames mostly differ. While the user of
/// another client at this index is in use, the new client is stored at the index with the lowest
/// bit changed.
#[inline(always)]
fn place(text: &[u8]) -> usize {
    let (words, _) = text.get(24..).unwrap_or_default().as_chunks();
    let mix = |all: u64, word: &[u8; 8]| all.rotate_left(11) ^ u64::from_le_bytes(*word);
    let mixed = words.iter().take(4).fold(0, mix).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    usize::from(mixed.to_be_bytes()[0]) % CLIENTS
}

impl<'a> Client<'a> {
    /// Reads the bytes that describe a client, beginning at the position of `walk`. Stores the
    /// client in `self`, and moves `walk` past these bytes. Returns `None` if the bytes are not
    /// written as kube-apiserver writes them; `self` then holds no client.
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

/// Reads the beginning of an event, up to the URI. Returns the level, the stage, and the rest of
/// the event, which begins with the first character of the URI. Returns `None` if the beginning is
/// not written as kube-apiserver writes it.
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

/// The position of the reader in an event. The reader goes from string to string through an event
/// that is written as kube-apiserver writes it.
struct Walk<'a, M> {
    /// The bytes of the event that are not read yet.
    rest: &'a [u8],
    /// The function that computes the masks of the quotes and backslashes in a window.
    masks: M,
}

impl<'a, M: Fn(&[u8; WINDOW]) -> Masks> Walk<'a, M> {
    /// Moves past `what` and returns `true` if the rest of the event begins with `what`. Otherwise
    /// does not move and returns `false`.
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

    /// Moves past `what`. Returns `None` if the rest of the event does not begin with `what`.
    #[inline(always)]
    fn pass<const N: usize>(&mut self, what: &[u8; N]) -> Option<()> {
        self.passes(what).then_some(())
    }

    /// Moves to the next quote, from a place inside of a string. Returns the bytes before the
    /// quote, and `true` if a backslash is among these bytes. Returns `None` if no quote follows.
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

    /// Moves to the next quote, as [`Self::find_quote`] does, when fewer than [`WINDOW`] bytes are
    /// left to search. Returns the bytes before the quote, and `true` if a backslash is among these
    /// bytes. Returns `None` if no quote follows.
    #[cold]
    fn find_last_quote(&mut self) -> Option<(&'a [u8], bool)> {
        let (string, rest) = self.rest.split_at_checked(memchr::memchr(b'"', self.rest)?)?;
        self.rest = rest;
        Some((string, memchr::memchr(b'\\', string).is_some()))
    }

    /// Reads a string: moves from its first byte to its closing quote, and returns the bytes before
    /// the quote. Returns `None` if the string contains a backslash, or no quote follows.
    #[inline(always)]
    fn string(&mut self) -> Option<&'a [u8]> {
        let (string, has_backslash) = self.find_quote()?;
        (!has_backslash).then_some(string)
    }

    /// Reads a string that may contain escapes: moves from its first byte to the next quote, and
    /// returns the bytes before the quote, with escapes as written. Returns `None` if no quote
    /// follows, or if the byte before the quote is a backslash, because the quote may then belong
    /// to the string.
    #[inline(always)]
    fn any_string(&mut self) -> Option<&'a [u8]> {
        let (string, _) = self.find_quote()?;
        (string.last() != Some(&b'\\')).then_some(string)
    }

    /// Moves past an array of strings and its closing bracket; the opening bracket was already
    /// passed. Returns `None` if the array is not written as kube-apiserver writes it.
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

    /// Moves past an array of strings and its closing bracket, and appends the strings to `to`; the
    /// opening bracket was already passed. Returns `None` if one of the strings contains a
    /// backslash, or the array is not written as kube-apiserver writes it.
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

    /// Moves past a user and its closing brace; the opening brace was already passed. Returns the
    /// username, and appends the user's groups to `groups` if `groups` is `Some`. Returns `None` if
    /// the user is not written as kube-apiserver writes it.
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

    /// Moves past the rest of `objectRef`, up to and including its closing brace, and writes its
    /// values to `object`. The opening quote of the first key was already passed. Returns `None` if
    /// `objectRef` is not written as kube-apiserver writes it.
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

    /// Reads a member that may be absent. If the rest of the event begins with `what`, returns the
    /// string after `what`; otherwise returns an empty string. Returns `None` if the string
    /// contains a backslash or has no closing quote.
    #[inline(always)]
    fn optional<const N: usize>(&mut self, what: &[u8; N]) -> Option<Text<'a>> {
        Some(Cow::Borrowed(if self.passes(what) { self.string()? } else { &[] }))
    }
}

#[cfg(test)]
mod tests;
