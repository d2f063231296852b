//! What in a request's URI lets its reader act as somebody else: tokens in the query, and JSON Web Tokens anywhere.
//!
//! It looks at the URI as the server reads it: percent-encoding hides neither the name of a parameter nor a token. Tokens
//! under another name that are no JSON Web Tokens are not known for what they are.

use std::ops::Range;

use super::text;

/// What stands in a token's place.
pub(super) const REDACTED: &[u8] = b"REDACTED";

/// What stands in the place of a whole URI, as JSON.
pub(super) const REDACTED_WHOLE: &[u8] = b"\"REDACTED\"";

/// What is longer is not looked at, but goes as a whole: kube-apiserver takes no heads of requests beyond 1 MiB (Go's
/// `http.DefaultMaxHeaderBytes`).
pub(super) const BYTES_MAX: usize = 1 << 20;

/// Parameters whose values are credentials, in lower case.
const NAMES: [&[u8]; 6] =
    [b"token", b"access_token", b"id_token", b"refresh_token", b"bearer_token", b"authorization"];

/// The parts of a URI that are to be replaced by [`REDACTED`], in their order.
pub(super) fn secrets(uri: &[u8]) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    if let Some(query) = memchr::memchr(b'?', uri) {
        parameters(uri, query + 1, &mut found);
    }
    if memchr::memchr(b'%', uri).is_some() {
        let mut tokens: Vec<_> = web_tokens(&text::percent_decode(uri)).collect();
        text::to_percents(uri, &mut tokens);
        found.append(&mut tokens);
    } else {
        found.extend(web_tokens(uri));
    }
    if found.len() > 1 {
        found.sort_unstable_by_key(|part| part.start);
        found.dedup_by(|next, last| {
            let touches = next.start <= last.end;
            if touches {
                last.end = last.end.max(next.end);
            }
            touches
        });
    }
    found
}

fn parameters(uri: &[u8], mut at: usize, found: &mut Vec<Range<usize>>) {
    while at < uri.len() {
        let end = memchr::memchr(b'&', &uri[at..]).map_or(uri.len(), |length| at + length);
        // Some servers divide parameters by `;` too, and a URI inside of one has a query of its own. What is found there
        // reaches to the next `&` all the same: its value may hold a `;`.
        let mut start = at;
        while start < end {
            let part = &uri[start..end];
            let part_end = part.iter().position(|byte| matches!(byte, b';' | b'?'));
            let length = part_end.unwrap_or(part.len());
            if let Some(name) = memchr::memchr(b'=', &part[..length])
                && is_secret(&part[..name])
            {
                let value = start + name + 1..end;
                if !value.is_empty() && uri[value.clone()] != *REDACTED {
                    found.push(value);
                }
                break;
            }
            start += length + 1;
        }
        at = end + 1;
    }
}

fn is_secret(name: &[u8]) -> bool {
    let mut name = text::percent_decode(name);
    name.iter_mut().filter(|byte| **byte == b'+').for_each(|byte| *byte = b' ');
    NAMES.iter().any(|secret| name.trim_ascii().eq_ignore_ascii_case(secret))
}

/// `eyJ…` is how the JSON object begins in base64 that a JSON Web Token (RFC 7519) begins with.
fn web_tokens(text: &[u8]) -> impl Iterator<Item = Range<usize>> {
    web_tokens_by(text, |from| run(text, from))
}

/// Where the letters of base64 end that begin here.
fn run(text: &[u8], from: usize) -> usize {
    let of_base64 = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let rest = text.get(from..).unwrap_or_default();
    from + rest.iter().take_while(|byte| of_base64(byte)).count()
}

/// Looks at each run at most twice, as a header and as the claims behind one: a URI may be nothing but beginnings of tokens.
fn web_tokens_by(
    text: &[u8],
    mut run: impl FnMut(usize) -> usize,
) -> impl Iterator<Item = Range<usize>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        while let Some(found) = memchr::memmem::find(text.get(at..)?, b"eyJ") {
            let start = at + found;
            let header = run(start);
            // What follows this run follows all that may begin further on in it.
            at = header;
            if text.get(header) != Some(&b'.') {
                continue;
            }
            let claims = run(header + 1);
            if claims > header + 1 && text.get(claims) == Some(&b'.') {
                // An encrypted one (RFC 7516) has five parts.
                at = claims;
                while text.get(at) == Some(&b'.') {
                    at = run(at + 1);
                }
                return Some(start..at);
            }
        }
        None
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redacted(uri: &str) -> String {
        let mut text = uri.as_bytes().to_vec();
        for part in secrets(uri.as_bytes()).into_iter().rev() {
            text.splice(part, REDACTED.iter().copied());
        }
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn tokens_in_the_query_are_found_however_their_names_are_written() {
        for (uri, expected) in [
            ("/a?token=s", "/a?token=REDACTED"),
            ("/a?x=1&access_token=s&y=2", "/a?x=1&access_token=REDACTED&y=2"),
            ("/a?ID_Token=s", "/a?ID_Token=REDACTED"),
            ("/a?%74oken=s&refresh%5Ftoken=t", "/a?%74oken=REDACTED&refresh%5Ftoken=REDACTED"),
            ("/a?bearer_token=s;t&z", "/a?bearer_token=REDACTED&z"),
            ("/a?x;authorization=Bearer+s", "/a?x;authorization=REDACTED"),
            ("/a?u=/b?token=s", "/a?u=/b?token=REDACTED"),
            ("/a?+token+=s=t", "/a?+token+=REDACTED"),
            ("/a?token=s&token=t", "/a?token=REDACTED&token=REDACTED"),
            ("/a?token=eyJa.b.c", "/a?token=REDACTED"),
        ] {
            assert_eq!(redacted(uri), expected);
            assert_eq!(redacted(expected), expected);
        }
    }

    #[test]
    fn web_tokens_are_found_anywhere() {
        for (uri, expected) in [
            ("/eyJh.eyJz.Si-_g", "/REDACTED"),
            ("/a/xeyJh.eyJz.?y=1", "/a/xREDACTED?y=1"),
            ("/a?x=eyJh.eyJz.Sig&y=eyJh.eyJz.Sig", "/a?x=REDACTED&y=REDACTED"),
            ("/a/%65yJh%2eeyJz%2ES%69g/b", "/a/REDACTED/b"),
            ("/eyJ.eyJh.eyJz.Sig/x", "/REDACTED/x"),
            ("/eyJ..eyJh.eyJz.Sig/x", "/eyJ..REDACTED/x"),
            ("/eyJ.a/eyJeyJh.eyJz.Sig/x", "/eyJ.a/REDACTED/x"),
        ] {
            assert_eq!(redacted(uri), expected);
        }
    }

    #[test]
    fn beginnings_of_web_tokens_cost_no_more_than_their_length() {
        let many = 1 << 18;
        for (uri, expected) in [
            ("eyJ".repeat(many), 0),
            ("eyJ".repeat(many) + ".", 0),
            ("eyJ".repeat(many) + "..", 0),
            ("eyJ".repeat(many) + "." + &"a".repeat(many), 0),
            ("eyJ".repeat(many) + "." + &"eyJ".repeat(many), 0),
            ("eyJ./".repeat(many), 0),
            ("eyJ.a/".repeat(many), 0),
            ("eyJ.".repeat(many), 1),
            ("eyJ.eyJ./".repeat(many), many),
            ("eyJ".repeat(many) + ".a.", 1),
        ] {
            let mut steps = 0;
            let counting = |from| {
                let end = run(uri.as_bytes(), from);
                steps += end - from + 1;
                end
            };
            assert_eq!(web_tokens_by(uri.as_bytes(), counting).count(), expected);
            assert!(steps <= 3 * uri.len(), "{steps} for {}: {:.16}", uri.len(), uri);
        }
    }

    #[test]
    fn other_uris_are_left_alone() {
        for uri in [
            "",
            "/api/v1/pods?limit=500&continue=eyJ2IjoibWV0YS5rOHMuaW8&resourceVersion=1",
            "/a?token=",
            "/a?token",
            "/a?mytoken=s&tokens=t&token_type=u",
            "/token=s",
            "/eyJh.b",
            "/%",
            "/?&&;;??=",
        ] {
            assert_eq!(redacted(uri), uri);
        }
    }
}
