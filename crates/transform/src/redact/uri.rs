//! Finds credentials in a request's URI, with which a reader of the event could act as somebody
//! else: values of names such as `token`, and JSON Web Tokens anywhere.
//!
//! The URI is read as the server reads it: percent-encoding hides neither the name of a parameter
//! nor a token. Nothing depends on the path or the object: a parameter counts in a request for
//! exec, for a proxy, or for something that no server knows. Names are looked for in the path
//! (`/a;token=…`), in the query, and within parameters: `labelSelector=token=…`, a URI inside the
//! URI, the words of a `command` that is to run in a pod. Not every credential is found: it may
//! have an unknown name, or be encoded twice (the URI is decoded once).

use std::borrow::Cow;
use std::ops::Range;

use super::command::Command;
use super::web_token::web_tokens;
use super::{named, text};
use audit::request::Uri;

/// The text that replaces a whole URI, as a JSON string.
pub(super) const REDACTED_WHOLE: &[u8] = b"\"REDACTED\"";

/// The maximum length in bytes of a URI that is searched. A longer URI is replaced as a whole.
/// kube-apiserver serves no request with one: it reads at most 1 MiB and 4 KiB of the request line
/// and the headers (Go's `http.DefaultMaxHeaderBytes`, and 4096 bytes more). If this limit were
/// lower, a client could hide its command behind a parameter that makes the URI too long.
pub(super) const BYTES_MAX: usize = (1 << 20) + (8 << 10);

/// Returns `true` if the URI contains a credential, or is so long or unusual that it may contain
/// one. `may_have_tokens` is `false` if the URI certainly has no `eyJ` in plain letters.
pub(super) fn may_have_credentials(uri: Uri<'_>, may_have_tokens: bool) -> bool {
    if !may_have_tokens && is_plain(uri.as_written()) {
        return false;
    }
    let uri = &*text::unescape(uri.as_written());
    // A URI that Go has written has no backslash.
    uri.len() > BYTES_MAX || memchr::memchr(b'\\', uri).is_some() || !secrets(uri).is_empty()
}

/// Returns the ranges of a URI that are credentials and must be replaced by [`text::REDACTED`]. The
/// ranges are in order and do not overlap.
pub(super) fn secrets(uri: &[u8]) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let query = memchr::memchr(b'?', uri).unwrap_or(uri.len());
    in_path(&uri[..query], &mut found);
    in_query(uri, query + 1, &mut found);
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

/// Returns `true` if a name after which [`secrets`] looks for a credential may end in these four
/// letters, in lower case. The names are `command`, `labelSelector`, `fieldSelector`, and those in
/// the module `named`. A name of three letters may follow the last digit of an escape.
fn is_end(letters: &[u8; 4]) -> bool {
    matches!(
        letters,
        b"6env"
            | b"6pwd"
            | b"6sig"
            | b"code"
            | b"cret"
            | b"ctor"
            | b"ekey"
            | b"ikey"
            | b"mand"
            | b"oken"
            | b"onid"
            | b"pass"
            | b"rase"
            | b"skey"
            | b"sswd"
            | b"tion"
            | b"tkey"
            | b"ture"
            | b"word"
    )
}

/// Returns `true` if a quick check proves that [`secrets`] finds nothing in a URI, except for JSON
/// Web Tokens that begin with `eyJ` in plain letters. `raw` is the URI with its JSON escapes. The
/// URIs of usual requests are plain, so that they are neither copied nor split into parts.
///
/// A name before an equals sign can be that of a credential only if its last four letters are an
/// [end](is_end). Brackets separate names, so a URI with names and brackets is not plain. The only
/// escape in a plain URI is that of `&`, which ends a parameter. The digits of this escape may
/// count as letters of the next name, but only if that name has three letters or fewer.
pub(super) fn is_plain(raw: &[u8]) -> bool {
    if raw.len() > BYTES_MAX {
        return false;
    }
    let mut has_names = false;
    for at in memchr::memchr3_iter(b'=', b'%', b'\\', raw) {
        let behind = raw.get(at..).unwrap_or_default();
        let is_plain = match behind.first() {
            Some(b'=') => {
                has_names = true;
                let before = raw.get(..at).and_then(<[u8]>::last_chunk::<4>);
                before.is_some_and(|end| {
                    end.iter().all(u8::is_ascii_alphanumeric)
                        && !is_end(&end.map(|byte| byte.to_ascii_lowercase()))
                })
            }
            Some(b'\\') => behind.starts_with(br"\u0026"),
            _ => false,
        };
        if !is_plain {
            return false;
        }
    }
    !has_names || memchr::memchr2(b'[', b']', raw).is_none()
}

/// Adds the credentials in the URI's path to `found`. In `/a;token=b/c`, the credential is `b`: it
/// ends at the next slash.
fn in_path(path: &[u8], found: &mut Vec<Range<usize>>) {
    if memchr::memchr2(b'=', b'%', path).is_none() {
        return;
    }
    let mut at = 0;
    while at < path.len() {
        let end = memchr::memchr(b'/', &path[at..]).map_or(path.len(), |length| at + length);
        let part = &path[at..end];
        let text = match memchr::memchr(b'%', part) {
            Some(_) => Cow::Owned(text::percent_decode(part)),
            None => Cow::Borrowed(part),
        };
        note(part, at, named::assigned(&text).into_iter().collect(), found);
        at = end + 1;
    }
}

/// Adds the credentials in the query, which begins at the index `at`, to `found`. A parameter ends
/// at the next `&` that is not percent-encoded; all other separators are part of the parameter.
fn in_query(uri: &[u8], mut at: usize, found: &mut Vec<Range<usize>>) {
    let mut command = Command::default();
    while at < uri.len() {
        let end = memchr::memchr(b'&', &uri[at..]).map_or(uri.len(), |length| at + length);
        let part = &uri[at..end];
        let text = decoded(part);
        let name = memchr::memchr(b'=', &text).unwrap_or(text.len());
        let value = name + 1;
        let inside = text.get(value..).unwrap_or_default();
        let mut values = Vec::new();
        let note_inside = |found: Range<usize>| values.push(value + found.start..value + found.end);
        let is_named = |known: &[u8]| text[..name].trim_ascii().eq_ignore_ascii_case(known);
        if is_named(b"command") {
            command.part(inside, note_inside);
        } else if is_named(b"labelSelector") || is_named(b"fieldSelector") {
            named::selected(inside, note_inside);
        } else if let Some(value) = named::assigned(&text) {
            values.push(value);
        }
        note(part, at, values, found);
        at = end + 1;
    }
}

/// Decodes a part of the query as the server does, with `+` for a space.
fn decoded(part: &[u8]) -> Cow<'_, [u8]> {
    if memchr::memchr2(b'%', b'+', part).is_none() {
        return Cow::Borrowed(part);
    }
    let mut spaced = part.to_vec();
    spaced.iter_mut().filter(|byte| **byte == b'+').for_each(|byte| *byte = b' ');
    Cow::Owned(text::percent_decode(&spaced))
}

/// Translates `values`, ranges of the decoded text of `part`, into ranges of the URI, and adds them
/// to `found`. `part` begins at the index `at` of the URI.
fn note(part: &[u8], at: usize, mut values: Vec<Range<usize>>, found: &mut Vec<Range<usize>>) {
    if values.is_empty() {
        return;
    }
    text::to_percents(part, &mut values);
    found.extend(values.into_iter().map(|value| at + value.start..at + value.end));
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use super::*;
    use testing::{list, marked};

    fn redacted(uri: &str) -> String {
        let mut text = uri.as_bytes().to_vec();
        for part in secrets(uri.as_bytes()).into_iter().rev() {
            text.splice(part, text::REDACTED.iter().copied());
        }
        String::from_utf8(text).unwrap()
    }

    #[track_caller]
    fn assert_redacted(row: &str) {
        let (uri, expected) = marked(row);
        assert_eq!(redacted(&uri), expected);
        assert_eq!(redacted(&expected), expected);
    }

    #[test]
    fn tokens_in_the_query_are_found_however_their_names_are_written() {
        for row in [
            "/a?token=«s→REDACTED»",
            "/a?x=1&access_token=«s→REDACTED»&y=2",
            "/a?ID_Token=«s→REDACTED»",
            "/a?%74oken=«s→REDACTED»&refresh%5Ftoken=«t→REDACTED»",
            "/a?bearer_token=«s;t→REDACTED»&z",
            "/a?x;authorization=«Bearer+s→REDACTED»",
            "/a?u=/b?token=«s→REDACTED»",
            "/a?+token+=«s=t→REDACTED»",
            "/a?token=«s→REDACTED»&token=«t→REDACTED»",
            "/a?token=«eyJa.b.c→REDACTED»",
        ] {
            assert_redacted(row);
        }
    }

    #[test]
    fn web_tokens_are_found_anywhere() {
        for row in [
            "/«eyJh.eyJz.Si-_g→REDACTED»",
            "/a/x«eyJh.eyJz.→REDACTED»?y=1",
            "/a?x=«eyJh.eyJz.Sig→REDACTED»&y=«eyJh.eyJz.Sig→REDACTED»",
            "/a/«%65yJh%2eeyJz%2ES%69g→REDACTED»/b",
            "/«eyJ.eyJh.eyJz.Sig→REDACTED»/x",
            "/«eyJ..eyJh.eyJz.Sig→REDACTED»/x",
            "/eyJ.a/«eyJeyJh.eyJz.Sig→REDACTED»/x",
        ] {
            assert_redacted(row);
        }
    }

    #[test]
    fn names_within_parameters_paths_and_commands_are_found() {
        for row in [
            "/a?token[]=«s→REDACTED»&token[0]=«s→REDACTED»&x=1",
            "/a?token%5B%5D=«s→REDACTED»&user[token]=«s→REDACTED»",
            "/a?x=1;token=«s;y→REDACTED»",
            "/a?x=1%3Btoken%3d«s%26t→REDACTED»&y=2",
            "/a?accessToken=«s→REDACTED»&API-Key=«s→REDACTED»&password=«s→REDACTED»",
            "/a?labelSelector=token=«s→REDACTED»",
            "/a?labelSelector=a%3Db%2Ctoken%3D«s→REDACTED»%2Cc%3Dd&x",
            "/a?labelSelector=x.io/token+in+(«s,t→REDACTED»),b",
            "/a?labelSelector=token+notin+(«s→REDACTED»",
            "/a?labelSelector=a,token!%3D+«s→REDACTED»",
            "/a?fieldSelector=spec.x%3Da%2Cpassword%3D%3D«s→REDACTED»",
            "/a?u=%2Fb%3Ftoken%3D«s→REDACTED»",
            "/a?u=/b%23id_token=«s→REDACTED»",
            "/a/access_token=«s→REDACTED»/b",
            "/a;token=«s;t→REDACTED»/b?x",
            "/a%2Ftoken%3D«s→REDACTED»/b",
            "/a/exec?command=login&command=--token=«s→REDACTED»&container=c",
            "/a/exec?command=--password&container=c&command=«s→REDACTED»&command=t",
            "/a/exec?command=sh&command=-c&command=curl+-H+%22Authorization%3A+«Bearer+s%2Bt%22+h→REDACTED»",
            "/a/exec?command=env+PGPASSWORD%3D«%2521+x→REDACTED»",
            "/a/exec?command=-H&command=Authorization%3A+«Splunk+s→REDACTED»&command=h",
            "/a/exec?command=%7B%22token%22%3A%22«s%22,%22pwd%22:%22s%22%7D→REDACTED»",
        ] {
            assert_redacted(row);
        }
    }

    #[test]
    fn the_values_of_environment_variables_are_found_and_their_names_stay() {
        for row in [
            "/p/exec?command=sh&env=DB=«s→REDACTED»&container=c",
            "/p/attach?env=A=«s→REDACTED»&env=LD_PRELOAD=«/t.so→REDACTED»&env=C=«x=y→REDACTED»",
            "/p/portforward?%65nv=A%3D«%73→REDACTED»&%45%4E%56=A=«s→REDACTED»&x=1",
            "/p/exec?env%3DA%3d«s→REDACTED»&+env+=A=«s+t→REDACTED»",
            "/p//exec?env[]=A=«s→REDACTED»&env[0]=A.b-c=«s→REDACTED»",
            // Without a plain name, it is unknown where the value begins.
            "/p/exec?env=«s→REDACTED»&env==«s→REDACTED»",
            "/p/exec?env=«%7B%22name%22:%22A%22,%22value%22:%22b%3Dc%22%7D→REDACTED»",
            "/p/exec?env=«A+B=s→REDACTED»&env=«A%00=s→REDACTED»",
            // kube-apiserver does not know these parameters, but logs them.
            "/p/exec?a=b;env=A=«s;env=B=t→REDACTED»&c",
            "/x/proxy/y/exec?env=A=«s→REDACTED»",
            "/healthz?u=/p/exec?env=A=«s→REDACTED»",
            "/p;env=A=«s→REDACTED»/exec",
        ] {
            assert_redacted(row);
        }
    }

    #[test]
    fn more_names_count_in_a_uri_than_in_a_selector() {
        for row in [
            "/a?secret=«s→REDACTED»&Pass=«s→REDACTED»&pwd=«s→REDACTED»&pass-phrase=«s→REDACTED»",
            "/a?my_token=«s→REDACTED»&X-Amz-Security-Token=«s→REDACTED»&db.password=«s→REDACTED»",
            "/a?secretAccessKey=«s→REDACTED»&secret_key=«s→REDACTED»&privateKey=«s→REDACTED»",
            "/cb?code=«s→REDACTED»&state=x&sig=«s→REDACTED»&signature=«s→REDACTED»",
            "/a?X-Amz-Credential=a&X-Amz-Signature=«s→REDACTED»&X-Goog-Signature=«s→REDACTED»",
            "/a;jsessionid=«s→REDACTED»/b?session_id=«s→REDACTED»&%73%65cret=«s→REDACTED»",
        ] {
            assert_redacted(row);
        }
    }

    #[test]
    fn other_uris_are_left_alone() {
        for uri in [
            "",
            "/api/v1/pods?limit=500&continue=eyJ2IjoibWV0YS5rOHMuaW8&resourceVersion=1",
            "/a?token=",
            "/a?token",
            "/a?mytoken=s&tokens=t&token_type=u&error_code=5&codes=6&environment=A=s&key=x",
            "/a?labelSelector=env=prod,secret%3Da,code!=b&fieldSelector=env%3Dx&continue=s",
            "/a?env&env=&env=A=&=&resourceVersion=1&limit=5&watch=true",
            "/token/s",
            "/a=b/token=",
            "/a?labelSelector=token,!token,app%3Dtoken&fieldSelector=metadata.name%3Dtoken",
            "/a?labelSelector=token%3D,,()",
            "/a/exec?command=ls&command=--token&command=--help&command=-l",
            "/a?x=token&y=/token/=",
            "/eyJh.b",
            "/%",
            "/?&&;;??=",
        ] {
            assert_eq!(redacted(uri), uri);
        }
    }

    #[test]
    fn a_uri_with_a_credential_is_never_plain() {
        static PARTS: LazyLock<Vec<&str>> = LazyLock::new(|| {
            list(
                r"
/a|?|&|\u0026|=|=s|%3d|\u003d|+| |!|[|]|-|_|&token=s|&Id-Token=s|&authorization=s|&password=s
&passwd=s|&clientSecret=s|&api_key=s|&env=A=s|env=s|pwd|sig|code|secret|&secretKey=s|&privatekey=s
&secretaccesskey=s|&passphrase=s|&pass=s|&X-Amz-Signature=s|&sessionid=s|env|&command=--pwd|&command=token:s|&labelSelector=token
&fieldSelector=token|token|passwd|apikey|command|a|ab|abc|abcd|1|limit=1|watch=true|://u:p@h|ä|\n
",
            )
        });
        let (mut plain, mut found) = (0, 0);
        let seeds = testing::seeds(50_000);
        for seed in seeds.iter().copied() {
            let _failing = testing::Failing(seed);
            let rng = &mut fastrand::Rng::with_seed(seed);
            let raw: String =
                (0..rng.usize(..8)).map(|_| PARTS[rng.usize(..PARTS.len())]).collect();
            let has_secrets = !secrets(&text::unescape(raw.as_bytes())).is_empty();
            assert!(!has_secrets || !is_plain(raw.as_bytes()), "{raw}");
            plain += usize::from(is_plain(raw.as_bytes()));
            found += usize::from(has_secrets);
        }
        let counts = format!("{plain} plain, {found} with credentials");
        let is_many = |count: usize| count * 50_000 > 3000 * seeds.len();
        assert!(seeds.len() < 1000 || is_many(plain) && is_many(found), "{counts}");
    }

    #[test]
    fn usual_uris_are_plain() {
        for uri in [
            "",
            "/api/v1/pods",
            r"/api/v1/pods?allowWatchBookmarks=true\u0026resourceVersion=1\u0026timeoutSeconds=304",
            "/api/v1/pods?limit=500&continue=eyJ2IjoibWV0YS5rOHMuaW8&resourceVersionMatch=Exact",
            "/api/v1/nodes/n/status?timeout=10s",
        ] {
            assert!(is_plain(uri.as_bytes()), "{uri}");
        }
        let long = "/".repeat(BYTES_MAX);
        assert!(is_plain(long.as_bytes()) && !is_plain((long + "a").as_bytes()));
    }
}
