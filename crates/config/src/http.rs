//! The keys of outputs that send HTTP requests: URLs, headers, authorization, proxy, TLS.

use std::collections::BTreeMap;
use std::path::PathBuf;

use url::{Host, Url};

use super::compression::Compression;
use super::stream::Strategy;
use super::targets::{PROXY, Target};
use super::tls::ClientTls;
use config_table::problem::{Content, Severity};
use config_table::table::{TABLE, Table, optional, required, whole};
use config_table::template::Template;
use config_table::values;

/// The keys that all outputs over HTTP share: the consumer's URLs, and how requests are made.
#[derive(Debug, Clone, PartialEq)]
pub struct HttpClient {
    /// The URLs of the consumer; at least one. Each template expands to an http or https URL. A URL
    /// whose `${file:…}` could not be read with the config is not checked.
    pub urls: Vec<Template>,
    /// How the URL of a request is chosen from `urls`.
    pub strategy: Strategy,
    /// The TLS settings for https URLs.
    pub tls: ClientTls,
    /// The compression of request bodies (Content-Encoding).
    pub compression: Compression,
    /// The additional headers of each request. The names are valid and in lower case.
    pub headers: BTreeMap<String, Template>,
    /// The file with the token for `Authorization: Bearer`, if one is sent. At most one of
    /// `bearer_token_file` and `basic_auth` is set.
    pub bearer_token_file: Option<PathBuf>,
    /// User and password for `Authorization: Basic`, if they are sent.
    pub basic_auth: Option<BasicAuth>,
    /// The maximum number of concurrent requests; at least 1.
    pub concurrency: usize,
    /// The HTTP proxy through which every connection to the consumer is opened, with CONNECT. The
    /// template expands to `http://[USER:PASSWORD@]HOST[:PORT]`. `None` if connections are direct.
    pub proxy: Option<Template>,
}

/// The value of the key `basic_auth`: `{ username, password_file }`.
#[derive(Debug, Clone, PartialEq)]
pub struct BasicAuth {
    /// The name of the user.
    pub username: Template,
    /// The file that holds the password.
    pub password_file: PathBuf,
}

/// The HTTP keys that differ between types of output.
pub struct HttpKeys {
    /// The default of the key `compression`.
    pub compression: Compression,
    /// The text in the config reference that says which bytes are compressed.
    pub compresses: &'static str,
    /// `true` if the type has the key `concurrency`; `false` if it sends one request at a time.
    pub concurrency: bool,
    /// `true` if the type has the keys `bearer_token_file` and `basic_auth`; `false` if it has a
    /// credential of its own.
    pub authorization: bool,
}

impl HttpKeys {
    /// Returns the keys of a type of output whose requests each carry one batch.
    pub const fn of_requests(compression: Compression, authorization: bool) -> Self {
        Self {
            compression,
            compresses: "Content-Encoding of requests",
            concurrency: true,
            authorization,
        }
    }
}

impl HttpClient {
    /// Reads the keys that all outputs over HTTP share. After the key `strategy`, `own` reads the
    /// plain keys that only this type has; the caller reads the type's own sections afterwards. The
    /// client is `None` if `urls`, or a key of `basic_auth`, has no usable value.
    pub fn read<'c, 'a, T>(
        t: &mut Table<'c, 'a>,
        keys: &HttpKeys,
        own: impl FnOnce(&mut Table<'c, 'a>) -> T,
    ) -> (Option<Self>, T) {
        let urls = t.secrets(
            required(
                "urls",
                "array of URLs",
                "http:// or https://, without a username or password",
            ),
            |text| values::url(text).map(drop),
        );
        let strategy = Strategy::read(t);
        let own = own(t);
        let compression = Compression::read(t, keys.compression, keys.compresses);
        let headers = t.secret_map(
            ("headers", "table of strings", "extra request headers"),
            values::header_name,
            values::header_value,
        );
        let concurrency = if keys.concurrency {
            let meaning = "maximum concurrent requests; 1 keeps events in order";
            t.count("concurrency", 4, 1..=256, meaning)
        } else {
            1
        };
        let bearer_token_file = keys.authorization.then(|| bearer_token_file(t)).flatten();
        let proxy = proxy(t);
        let basic_auth = if keys.authorization { basic_auth(t) } else { None };
        let tls = t.optional_section(
            optional("tls", TABLE, "default settings", "TLS settings for https:// URLs"),
            ClientTls::keys,
        );
        if keys.authorization {
            contradictions_of_authorization(t, &headers);
        } else if headers.contains_key("authorization") {
            t.error(
                "headers",
                "sets `authorization`, but this type of output sets that header itself: remove it",
            );
        }
        if tls.is_some() && urls.as_ref().is_some_and(|urls| urls.iter().all(is_plain)) {
            t.error("tls", "is for https, but all urls are http://: remove it, or use https://");
        }
        warn_of_plain_credentials(t, urls.as_deref().unwrap_or_default(), &headers);
        let read = || {
            Some(Self {
                urls: urls?,
                strategy: strategy?,
                tls: tls.unwrap_or_default(),
                compression: compression?,
                headers,
                bearer_token_file,
                basic_auth: whole(basic_auth)?,
                concurrency: usize::try_from(concurrency).unwrap_or(usize::MAX),
                proxy,
            })
        };
        (read(), own)
    }

    /// Returns the consumer's URLs and the proxy's, as `OutputSettings::targets` needs them. A URL
    /// that cannot be expanded is left out.
    pub fn targets(&self) -> Vec<Target> {
        let is_proxied = self.proxy.is_some();
        let urls =
            self.urls.iter().enumerate().filter_map(|(index, url)| {
                Target::of_url(format!("urls[{index}]"), url, is_proxied)
            });
        let proxy = self.proxy.as_ref();
        let proxy = proxy.and_then(|proxy| Target::of_url(PROXY.to_owned(), proxy, false));
        urls.chain(proxy).collect()
    }
}

/// Returns `true` if the URL can be read now, with each `${file:…}` in it, and has the scheme http.
fn is_plain(url: &Template) -> bool {
    parsed(url).is_some_and(|url| url.scheme() == "http")
}

fn parsed(url: &Template) -> Option<Url> {
    values::url(&url.expand().ok()?).ok()
}

/// Warns of these credentials if they go over the network without TLS: files with tokens and
/// passwords, headers whose names look like those of credentials, and headers with a `${file:…}`.
/// There is no warning if all http URLs lead to this machine.
fn warn_of_plain_credentials(
    t: &Table<'_, '_>,
    urls: &[Template],
    headers: &BTreeMap<String, Template>,
) {
    let is_local = |url: &Url| match url.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.to_canonical().is_loopback(),
        None => false,
    };
    let is_open =
        |url: &Template| parsed(url).is_some_and(|url| url.scheme() == "http" && !is_local(&url));
    if !urls.iter().any(is_open) {
        return;
    }
    let message =
        "is sent over plain http://, so anyone on the network path can read it: use https://";
    let mut keys = t.cx.secrets_below(&t.path);
    let words = ["authorization", "cookie", "token", "secret", "password", "api-key", "apikey"];
    let is_secret = |name: &str| words.iter().any(|word| name.contains(word));
    if headers.iter().any(|(name, value)| is_secret(name) || value.files().next().is_some()) {
        keys.push(t.path_of("headers"));
    }
    for key in keys {
        t.cx.problem_at(&key, &key, message, Severity::Warning);
    }
}

fn bearer_token_file(t: &mut Table<'_, '_>) -> Option<PathBuf> {
    t.file(
        optional(
            "bearer_token_file",
            "path",
            "none",
            "file with the token for `Authorization: Bearer`",
        ),
        Content::Token,
    )
}

fn proxy(t: &mut Table<'_, '_>) -> Option<Template> {
    let meaning = "HTTP proxy for all connections (CONNECT): http://[USER:PASSWORD@]HOST[:PORT]";
    t.secret(optional("proxy", "URL", "none", meaning), values::proxy_url)
}

/// Returns `None` if the section is absent or is not a table, and `Some(None)` if one of its keys
/// is missing or wrong.
fn basic_auth(t: &mut Table<'_, '_>) -> Option<Option<BasicAuth>> {
    t.optional_section(
        optional("basic_auth", TABLE, "none", "username and password (`Authorization: Basic`)"),
        |t| {
            let username = t.secret(required("username", "string", "username"), values::user_name);
            let file = required("password_file", "path", "file with the password");
            let password_file = t.file(file, Content::Password);
            Some(BasicAuth { username: username?, password_file: password_file? })
        },
    )
}

/// Reports conflicts about `Authorization`. A request has only one such header, so only one of
/// `bearer_token_file`, `basic_auth` and `headers` may set it.
fn contradictions_of_authorization(t: &Table<'_, '_>, headers: &BTreeMap<String, Template>) {
    let (basic, bearer) = ("basic_auth", "bearer_token_file");
    if t.is_set(basic) && t.is_set(bearer) {
        t.error(basic, "conflicts with bearer_token_file: set only one of the two");
    }
    for name in [basic, bearer] {
        if t.is_set(name) && headers.contains_key("authorization") {
            t.error(name, "conflicts with the header `authorization`: set only one of the two");
        }
    }
}
