//! The settings of an output over HTTP that come from `${…}` templates and files: URLs, the proxy,
//! headers and credentials.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use hyper::header::{HeaderName, HeaderValue};
use hyper::{HeaderMap, header};

use super::api::{Api, credentials_header, token_header, unreadable};
use super::proxy::Proxy;
use super::url::HttpEndpoint;
use client::ask::chain;

/// The URLs, the proxy and the headers of an output, with templates filled in and files read, as of
/// the start or the last reload. A reload replaces this value by a new one.
pub(super) struct Expanded {
    /// The configured URLs, in order.
    pub(super) endpoints: Vec<HttpEndpoint>,
    /// The proxy of all connections. `None`: connections lead directly to the consumer.
    pub(super) proxy: Option<Proxy>,
    /// The headers that the config adds to every request: the configured headers, and
    /// `Authorization` if credentials are configured.
    pub(super) headers: HeaderMap,
    /// The URLs, the proxy and the configured headers as text, for the digest of the config. For a
    /// file in a header, the text has the file's name instead of its content, because the content
    /// is renewed.
    pub(super) effective: String,
}

impl Expanded {
    /// Fills in the templates and reads the files that `config` names.
    ///
    /// # Errors
    ///
    /// A key or a file is wrong. The text names the key or file, and contains nothing that may be
    /// secret.
    pub(super) fn read(config: &config::HttpClient, api: &dyn Api) -> Result<Self, String> {
        let expand = |template: &config::Template| template.expand().map_err(|error| chain(&error));
        let (mut endpoints, mut effective) = (Vec::new(), String::new());
        for (index, template) in config.urls.iter().enumerate() {
            let text = expand(template)?;
            effective.push_str(&format!("{text:?}\n"));
            let endpoint = HttpEndpoint::parse(api.host_prefix(), &text);
            let mut endpoint = endpoint.map_err(|what| format!("urls[{index}] {what}"))?;
            endpoint.cut(&api.printed_paths());
            endpoints.push(endpoint);
        }
        let proxy = config.proxy.as_ref().map(Proxy::read).transpose()?;
        effective.push_str(&format!("{:?}\n", proxy.as_ref().map(|proxy| &proxy.at)));
        let mut headers = HeaderMap::new();
        for (name, template) in &config.headers {
            let text = expand(template)?;
            effective.push_str(&format!("{name}: {:?}\n", template.without_files()));
            let name = HeaderName::from_bytes(name.as_bytes())
                .map_err(|_| format!("headers.{name} is not a header name"))?;
            let mut value = HeaderValue::from_str(&text)
                .map_err(|_| format!("headers.{name} is not a header value"))?;
            value.set_sensitive(true);
            headers.insert(name, value);
        }
        if let Some(value) = authorization(config)?.or(api.authorization()?) {
            headers.insert(header::AUTHORIZATION, value);
        }
        Ok(Self { endpoints, proxy, headers, effective })
    }
}

/// Returns the header `Authorization`, made from the token file, or from the user and the password
/// file. `None` if neither is configured. Returns an error text if a file or the user name can't be
/// used.
fn authorization(config: &config::HttpClient) -> Result<Option<HeaderValue>, String> {
    if let Some(file) = &config.bearer_token_file {
        return token_header("Bearer", file).map(Some);
    }
    let Some(basic) = &config.basic_auth else { return Ok(None) };
    let user = basic.username.expand().map_err(|error| chain(&error))?;
    let file = &basic.password_file;
    // A password may begin or end with a blank, so only its line break is removed.
    let password = config::read_secret(file).map_err(|error| unreadable(file, &error))?;
    let pair = BASE64_STANDARD.encode(format!("{user}:{password}"));
    credentials_header(&format!("Basic {pair}"), file).map(Some)
}
