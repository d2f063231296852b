//! [`request`](super::request) for all events of a batch, fast where they are written as kube-apiserver writes them.
//!
//! Go writes an object's members always in the same order, without white space, and most of what is between texts is
//! known. So a usual event is compared with what is expected, from one text's end to the next, and only the ends of texts
//! are searched for. Whatever is not as expected is left to [`request`](super::request): other orders, white space, other
//! members, and backslashes in texts that are needed.
//!
//! Why a usual event says the same there: of duplicate keys the first counts, and all of the six members that are needed
//! are first where they are read, because every member before them is known. Where there is no object, it is looked for
//! among all members that follow. A quote without a backslash before it ends its text.

use std::borrow::Cow;

use super::Object;
use super::Request;
use super::Text;
use super::Uri;
use super::User;
use super::quotes;
use super::quotes::Masks;
use super::quotes::WINDOW;
use crate::audit::scan;
use crate::audit::scan::Member;

/// Clients that are remembered. The same ones send many events of a batch.
const CLIENTS: usize = 64;

/// The events of some lines, each with what it says of its request.
///
/// The same as [`request`](super::request) of each line; for events of the usual form nothing is allocated.
#[derive(Debug)]
pub struct Reader<'a> {
    /// Not read yet.
    lines: &'a [u8],
    /// Its user is the current client's, who has none meanwhile.
    request: Request<'a>,
    clients: Vec<Client<'a>>,
    current: Option<usize>,
    #[cfg(target_arch = "x86_64")]
    avx2: Option<quotes::avx2::Avx2>,
}

/// What an event says between its verb and its object, and who that is.
#[derive(Debug, Default)]
struct Client<'a> {
    /// From the user's brace to the end of the user agent, without backslashes; empty: nobody yet.
    text: &'a [u8],
    user: User<'a>,
}

impl<'a> Reader<'a> {
    /// Of events that are valid JSON without raw line breaks, each followed by one `\n`.
    #[must_use]
    pub fn new(lines: &'a [u8]) -> Self {
        let mut clients = Vec::new();
        clients.resize_with(CLIENTS, Client::default);
        Self {
            lines,
            request: Request::default(),
            clients,
            current: None,
            #[cfg(target_arch = "x86_64")]
            avx2: quotes::avx2::Avx2::detect(),
        }
    }

    /// The next event, without its `\n`; `None` behind the last.
    pub fn read(&mut self) -> Option<(&'a [u8], &Request<'a>)> {
        let lines = self.lines;
        if lines.is_empty() {
            return None;
        }
        // Before the event is read, so that the CPU can begin with the next one while it reads this one.
        let end = memchr::memchr(b'\n', lines).unwrap_or(lines.len());
        let event = lines.get(..end).unwrap_or_default();
        self.lines = lines.get(end + 1..).unwrap_or_default();
        #[cfg(target_arch = "x86_64")]
        let is_usual = match self.avx2 {
            Some(avx2) => avx2.usual(self, event),
            None => self.usual(event, quotes::portable).is_some(),
        };
        #[cfg(not(target_arch = "x86_64"))]
        let is_usual = self.usual(event, quotes::portable).is_some();
        if !is_usual {
            self.lend(None);
            self.request = super::request(event);
        }
        Some((event, &self.request))
    }

    /// Moves a client's user into the request, and the one who is there back.
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

    /// Reads an event; `None`: it is not of the usual form, and the request says nothing.
    #[inline(always)]
    pub(super) fn usual(
        &mut self,
        event: &'a [u8],
        masks: impl Fn(&[u8; WINDOW]) -> Masks,
    ) -> Option<()> {
        let (level, stage, text) = head(event)?;
        let mut walk = Walk { rest: text, masks };
        let uri = walk.any_string()?;
        walk.pass(br#"","verb":""#)?;
        let verb = walk.string()?;
        walk.pass(br#"","user":"#)?;
        let client = self.client(&mut walk)?;
        self.lend(Some(client));
        // Each where it is to be: what is copied as a whole waits for its parts.
        self.request.level = Cow::Borrowed(level);
        self.request.stage = Cow::Borrowed(stage);
        self.request.uri = Uri(uri);
        self.request.verb = Cow::Borrowed(verb);
        if walk.passes(br#","objectRef":{""#) {
            return walk.object(self.request.object.get_or_insert_default());
        }
        self.request.object = None;
        let is_object = |member: Member<'_>| *scan::key(member.key) == *b"objectRef";
        let mut behind = scan::members_behind(event, event.len() - walk.rest.len());
        (!behind.any(is_object)).then_some(())
    }

    /// Finds who sent it, or remembers who that is.
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
        // Not the one that has been there last, whose user is lent.
        let index = if self.current == Some(first) { first ^ 1 } else { first };
        self.clients.get_mut(index)?.learn(walk)?;
        Some(index)
    }
}

/// Where a client would be, or beside it, by what a username mostly is different in.
#[inline(always)]
fn place(text: &[u8]) -> usize {
    let (words, _) = text.get(24..).unwrap_or_default().as_chunks();
    let mix = |all: u64, word: &[u8; 8]| all.rotate_left(11) ^ u64::from_le_bytes(*word);
    let mixed = words.iter().take(4).fold(0, mix).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    usize::from(mixed.to_be_bytes()[0]) % CLIENTS
}

impl<'a> Client<'a> {
    fn learn<M: Fn(&[u8; WINDOW]) -> Masks>(&mut self, walk: &mut Walk<'a, M>) -> Option<()> {
        let text = walk.rest;
        // Until all of it is known.
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

/// Up to the URI: level, stage, and what begins with the URI's first character.
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

/// A walk from string to string.
struct Walk<'a, M> {
    rest: &'a [u8],
    masks: M,
}

impl<'a, M: Fn(&[u8; WINDOW]) -> Masks> Walk<'a, M> {
    /// Goes on if this is what comes next.
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

    /// From behind an opening quote to the next one; says whether there is a backslash too.
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

    /// [`Self::find_quote`] near the end.
    #[cold]
    fn find_last_quote(&mut self) -> Option<(&'a [u8], bool)> {
        let (string, rest) = self.rest.split_at_checked(memchr::memchr(b'"', self.rest)?)?;
        self.rest = rest;
        Some((string, memchr::memchr(b'\\', string).is_some()))
    }

    /// Without an escape.
    #[inline(always)]
    fn string(&mut self) -> Option<&'a [u8]> {
        let (string, has_backslash) = self.find_quote()?;
        (!has_backslash).then_some(string)
    }

    /// Escapes as written, but none that ends it.
    #[inline(always)]
    fn any_string(&mut self) -> Option<&'a [u8]> {
        let (string, _) = self.find_quote()?;
        (string.last() != Some(&b'\\')).then_some(string)
    }

    /// From behind an opening bracket to behind the closing one.
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

    /// From behind an opening bracket to behind the closing one.
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

    /// From behind an opening brace to behind the closing one.
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

    /// From behind the first key's opening quote to behind the closing brace.
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

    /// The text behind this, or an empty one.
    #[inline(always)]
    fn optional<const N: usize>(&mut self, what: &[u8; N]) -> Option<Text<'a>> {
        Some(Cow::Borrowed(if self.passes(what) { self.string()? } else { &[] }))
    }
}

#[cfg(test)]
mod tests;
