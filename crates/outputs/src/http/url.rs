//! The configured URLs of an output over HTTP, split into parts. Only the scheme, host and port of
//! a URL are ever shown: the path and the query may contain a token.

use std::fmt;

use hyper::header::HeaderValue;
use url::{Host, Url};

use config::HostPort;

/// A configured URL, with its templates filled in and split into parts.
pub(super) struct HttpEndpoint {
    /// The scheme, host and port, which messages may show.
    pub(super) base: BaseUrl,
    /// The value of the header `Host`.
    pub(super) authority: HeaderValue,
    /// The path, which may contain a token.
    path: String,
    /// The query, which may contain a token.
    query: Option<String>,
}

/// The scheme, host and port of a URL.
#[derive(Clone, PartialEq)]
pub(super) struct BaseUrl {
    /// `true` if the scheme is `https`, `false` if it is `http`.
    pub(super) https: bool,
    pub(super) at: HostPort,
}

/// Shows the URL as `https://host:port`.
impl fmt::Display for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.https { "https" } else { "http" };
        write!(f, "{scheme}://{}", self.at)
    }
}

impl HttpEndpoint {
    /// Splits a URL into its parts. Puts `prefix` and a dot before the host. The error text does
    /// not contain the URL, because the URL may contain a token.
    pub(super) fn parse(prefix: Option<&str>, text: &str) -> Result<Self, String> {
        let mut url = Url::parse(text).map_err(|error| format!("is not a URL: {error}"))?;
        if let Some(prefix) = prefix {
            let Some(Host::Domain(host)) = url.host() else {
                return Err(format!(
                    "has an address and no name, before which {prefix} can be put"
                ));
            };
            let host = format!("{prefix}.{host}");
            url.set_host(Some(&host)).map_err(|_| format!("can't have the host {host}"))?;
        }
        let https = match url.scheme() {
            "https" => true,
            "http" => false,
            _ => return Err("is neither http nor https".to_owned()),
        };
        let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else {
            return Err("has no host".to_owned());
        };
        let authority = match url.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Self {
            base: BaseUrl { https, at: HostPort { host, port } },
            authority: HeaderValue::from_str(&authority)
                .map_err(|_| "has an unusable host".to_owned())?,
            path: url.path().to_owned(),
            query: url.query().map(str::to_owned),
        })
    }

    /// Cuts one of `paths`, the protocol's own paths, off the end of the URL's path. If several
    /// fit, the first one counts. Vendors print URLs with such a path, and [`HttpEndpoint::target`]
    /// appends the path again.
    pub(super) fn cut(&mut self, paths: &[String]) {
        let path = self.path.trim_end_matches('/');
        let own = paths.iter().filter(|own| !own.is_empty());
        if let Some(rest) = own.filter_map(|own| path.strip_suffix(own.as_str())).next() {
            self.path = rest.to_owned();
        }
    }

    /// Returns the path and query of a request: the path of the URL, the path and query of the
    /// protocol, and the query of the URL. The result may contain a token.
    pub(super) fn target(&self, of_protocol: &str) -> String {
        let path = match of_protocol {
            "" => self.path.clone(),
            more => format!("{}{more}", self.path.trim_end_matches('/')),
        };
        match (&self.query, path.contains('?')) {
            (Some(query), false) => format!("{path}?{query}"),
            (Some(query), true) => format!("{path}&{query}"),
            (None, _) => path,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_shows_neither_path_nor_query() {
        let url = "https://logs.example:8443/v1/in?token=s3cr3t";
        assert_eq!(HttpEndpoint::parse(None, url).unwrap().target(""), "/v1/in?token=s3cr3t");
        let below = |url| HttpEndpoint::parse(Some("audit"), url);
        for (endpoint, base, authority) in [
            (HttpEndpoint::parse(None, url), "https://logs.example:8443", "logs.example:8443"),
            (HttpEndpoint::parse(None, "http://[::1]/x"), "http://[::1]:80", "[::1]"),
            (
                below("https://s3.example:9000/x"),
                "https://audit.s3.example:9000",
                "audit.s3.example:9000",
            ),
        ] {
            let endpoint = endpoint.unwrap();
            assert_eq!(endpoint.base.to_string(), base);
            assert_eq!(endpoint.authority, authority);
        }
        assert_eq!(HttpEndpoint::parse(None, "http://[::1]/x").unwrap().base.at.host, "::1");
        assert_eq!(below("https://s3.example:9000/x").unwrap().path, "/x");
        assert!(HttpEndpoint::parse(None, "ftp://x/").is_err());
        assert!(below("https://127.0.0.1:9000/").is_err());
    }

    #[test]
    fn a_url_that_ends_with_the_path_of_the_protocol_is_taken_as_it_is_meant() {
        let own = ["/collector/event", "/collector"].map(str::to_owned);
        for (url, wanted) in [
            ("http://x/collector/event", "/collector/event"),
            ("http://x/collector/event/", "/collector/event"),
            ("http://x/collector?token=t", "/collector/event?token=t"),
            ("http://x/gate/collector//", "/gate/collector/event"),
            ("http://x/", "/collector/event"),
            ("http://x/collector/raw", "/collector/raw/collector/event"),
            ("http://x/mycollector", "/mycollector/collector/event"),
        ] {
            let mut endpoint = HttpEndpoint::parse(None, url).unwrap();
            endpoint.cut(&own);
            assert_eq!(endpoint.target("/collector/event"), wanted, "{url}");
        }
        // Any other URL stays, and the path of the protocol is added to it.
        for (url, path, wanted) in [
            ("http://x/in/", "", "/in/"),
            ("http://x", "/_bulk?a=b", "/_bulk?a=b"),
            ("http://x/", "/_bulk", "/_bulk"),
            ("http://x/es/", "/_bulk?a=b", "/es/_bulk?a=b"),
            ("http://x/es?token=t", "/_bulk?a=b", "/es/_bulk?a=b&token=t"),
            ("http://x/es?token=t", "/_bulk", "/es/_bulk?token=t"),
        ] {
            let mut endpoint = HttpEndpoint::parse(None, url).unwrap();
            endpoint.cut(&[]);
            assert_eq!(endpoint.target(path), wanted, "{url}");
        }
    }
}
