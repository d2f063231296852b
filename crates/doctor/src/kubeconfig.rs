//! Reads a kubeconfig: the server of its current context, and how to authenticate to it.
//!
//! The rules are those of client-go. Inline data takes precedence over the name of a file, but the
//! name of a token file takes precedence over a token. Relative names start at the directory of the
//! kubeconfig. A server without TLS gets no credentials. Plugins that would run another program are
//! refused.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use base::yaml::{Node, Value, field};
use base::{named_file, yaml};

/// The maximum number of bytes of a kubeconfig, a certificate or a key. The entries that kubectl
/// writes for one cluster take about 6 KiB.
const FILE_BYTES_MAX: u64 = 1 << 20;

static NOTHING: LazyLock<Node> = LazyLock::new(Node::default);

/// Certificates or a key in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pem {
    /// The content is in the kubeconfig.
    Inline(Vec<u8>),
    /// The content is in this file.
    File(PathBuf),
}

/// A bearer token.
#[derive(Clone, PartialEq, Eq)]
pub enum Token {
    /// The token is in the kubeconfig.
    Inline(String),
    /// The token is in this file.
    File(PathBuf),
}

/// Does not show the token.
impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Inline(_) => f.write_str("Inline"),
            Self::File(file) => f.debug_tuple("File").field(file).finish(),
        }
    }
}

/// The settings of a kubeconfig's current context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kubeconfig {
    /// The URL of the server.
    pub server: String,
    /// The CAs that may sign the server's certificate. `None`: those of the system.
    pub ca: Option<Pem>,
    /// `true`: the server's certificate is not verified.
    pub insecure: bool,
    /// The name that the server's certificate must have. `None`: the host of the server's URL.
    pub server_name: Option<String>,
    /// The token for the server.
    pub token: Option<Token>,
    /// The client certificate and its private key.
    pub identity: Option<(Pem, Pem)>,
}

impl Kubeconfig {
    /// Reads a kubeconfig. Blocks while it reads the file.
    ///
    /// # Errors
    ///
    /// The file can't be read or used. The text is the reason.
    pub fn read(file: &Path) -> Result<Self, String> {
        let bytes = content(file)?;
        let named = |error| format!("{}: {error}", file.display());
        let text = std::str::from_utf8(&bytes).map_err(|_| named("not UTF-8".to_owned()))?;
        Self::parse(text, file.parent().unwrap_or(Path::new(""))).map_err(named)
    }

    /// Parses a kubeconfig whose directory is `directory`. Reads no other file.
    ///
    /// # Errors
    ///
    /// The kubeconfig is wrong, or has something that can't be used. The text is the reason.
    pub fn parse(text: &str, directory: &Path) -> Result<Self, String> {
        let root = yaml::parse(text).map_err(|problem| problem.to_string())?;
        let context = context(&root)?;
        let cluster = named(&root, "clusters", "cluster", text_of(context, "cluster"))?
            .ok_or("the current context names no cluster")?;
        let user = named(&root, "users", "user", text_of(context, "user"))?.unwrap_or(&NOTHING);
        let server = text_of(cluster, "server").ok_or("the cluster has no server")?.to_owned();
        if field(cluster, "proxy-url").is_some_and(|node| scalar(node).is_some()) {
            return Err("the cluster has a proxy-url, which is not supported".to_owned());
        }
        let has_tls = server.get(..8).is_some_and(|it| it.eq_ignore_ascii_case("https://"));
        let flag = text_of(cluster, "insecure-skip-tls-verify");
        let ca = pem(cluster, "certificate-authority", directory)?;
        if has_tls && ca.is_some() && flag == Some("true") {
            // client-go's `transport.TLSConfigFor`.
            return Err(
                "insecure-skip-tls-verify and a certificate authority exclude each other: \
                        kube-apiserver and kubectl refuse this file"
                    .to_owned(),
            );
        }
        let (token, identity) = match has_tls {
            true => credentials(user, directory)?,
            false => (None, None),
        };
        let server_name = text_of(cluster, "tls-server-name").map(str::to_owned);
        Ok(Self { server, ca, insecure: flag == Some("true"), server_name, token, identity })
    }
}

/// The token, and the client certificate with its key.
type Credentials = (Option<Token>, Option<(Pem, Pem)>);

fn credentials(user: &Node, directory: &Path) -> Result<Credentials, String> {
    for (key, what) in [
        ("exec", "runs a program to log in"),
        ("auth-provider", "logs in by a plugin"),
        ("username", "logs in by a password"),
        ("as", "impersonates somebody else"),
    ] {
        if field(user, key).is_some_and(|node| !is_nothing(node)) {
            return Err(format!(
                "the user {what} ({key}), which is not supported: use a kubeconfig with a token, \
                 such as `kubectl create token` prints"
            ));
        }
    }
    let token = match (text_of(user, "tokenFile"), text_of(user, "token")) {
        (Some(file), _) => Some(Token::File(directory.join(file))),
        (None, Some(token)) => Some(Token::Inline(token.to_owned())),
        (None, None) => None,
    };
    let certificate = pem(user, "client-certificate", directory)?;
    let identity = match (certificate, pem(user, "client-key", directory)?) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        _ => return Err("the user has a client certificate or a key, and not both".to_owned()),
    };
    Ok((token, identity))
}

impl Pem {
    /// Returns the content. Blocks while it reads the file.
    ///
    /// # Errors
    ///
    /// The file can't be read. The text is the reason.
    pub fn read(&self) -> Result<Vec<u8>, String> {
        match self {
            Self::Inline(content) => Ok(content.clone()),
            Self::File(file) => content(file),
        }
    }

    /// Returns the name of the content for messages. `field` is the field of the kubeconfig.
    pub fn name(&self, field: &str) -> PathBuf {
        match self {
            Self::Inline(_) => format!("{field}-data of the kubeconfig").into(),
            Self::File(file) => file.clone(),
        }
    }
}

impl Token {
    /// Returns the token. Blocks while it reads the file.
    ///
    /// # Errors
    ///
    /// The file can't be read. The text is the reason.
    pub fn read(&self) -> Result<String, String> {
        match self {
            Self::Inline(token) => Ok(token.clone()),
            Self::File(file) => config::read_token(file)
                .map_err(|error| format!("cannot read the token {}: {error}", file.display())),
        }
    }
}

fn content(file: &Path) -> Result<Vec<u8>, String> {
    named_file::read_of_command(file, FILE_BYTES_MAX)
        .map_err(|error| format!("cannot read {}: {error}", file.display()))
}

/// Returns the current context. If the kubeconfig does not name the current one, it must have
/// exactly one context.
fn context(root: &Node) -> Result<&Node, String> {
    let current = text_of(root, "current-context");
    if let Some(found) = named(root, "contexts", "context", current)? {
        return Ok(found);
    }
    let contexts = field(root, "contexts").map(list).unwrap_or_default();
    match contexts {
        [only] => field(only, "context").ok_or_else(|| "the only context is empty".to_owned()),
        _ => {
            Err("there is no current-context: set it with `kubectl config use-context`".to_owned())
        }
    }
}

/// Returns the field `inner` of the entry with this name in the list `key`. An entry without that
/// field is empty: for client-go, a user with only a name is anonymous. `Ok(None)` if `name` is
/// `None`; `Err` if the list has no such entry.
fn named<'n>(
    root: &'n Node,
    key: &str,
    inner: &str,
    name: Option<&str>,
) -> Result<Option<&'n Node>, String> {
    let Some(name) = name else { return Ok(None) };
    let entries = field(root, key).map(list).unwrap_or_default();
    let found = entries.iter().find(|entry| text_of(entry, "name") == Some(name));
    let found = found.map(|entry| field(entry, inner).unwrap_or(&NOTHING));
    found.map(Some).ok_or_else(|| format!("{key} has no entry named {name:?}"))
}

/// Returns the PEM of a field: the base64 in `NAME-data`, or otherwise the file in `NAME`.
/// `Ok(None)` if both are missing.
fn pem(node: &Node, name: &str, directory: &Path) -> Result<Option<Pem>, String> {
    let data = format!("{name}-data");
    if let Some(text) = text_of(node, &data) {
        let compact: String = text.split_ascii_whitespace().collect();
        let decoded = BASE64_STANDARD.decode(compact);
        let decoded = decoded.map_err(|error| format!("{data} is not base64: {error}"))?;
        return Ok(Some(Pem::Inline(decoded)));
    }
    Ok(text_of(node, name).map(|file| Pem::File(directory.join(file))))
}

fn list(node: &Node) -> &[Node] {
    if let Value::List(nodes) = &node.value { nodes } else { &[] }
}

/// Returns the text of a value. `None` if the value is null, empty, or not a text.
fn scalar(node: &Node) -> Option<&str> {
    let Value::Scalar { text, .. } = &node.value else { return None };
    (!is_nothing(node)).then_some(text)
}

fn text_of<'n>(node: &'n Node, name: &str) -> Option<&'n str> {
    field(node, name).and_then(scalar)
}

/// Returns `true` for null and for an empty text, which client-go treats as not set.
fn is_nothing(node: &Node) -> bool {
    let Value::Scalar { text, plain } = &node.value else { return false };
    text.is_empty() || *plain && matches!(text.as_str(), "~" | "null" | "Null" | "NULL")
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "apiVersion: v1\nkind: Config\ncurrent-context: b\n\
                        contexts:\n- {name: a, context: {cluster: other}}\n\
                        - {name: b, context: {cluster: c, user: u}}\n";

    fn parse(cluster: &str, user: &str) -> Result<Kubeconfig, String> {
        let text = format!(
            "{HEAD}clusters:\n- name: c\n  cluster: {{{cluster}}}\nusers:\n- name: u\n  user: {{{user}}}\n"
        );
        Kubeconfig::parse(&text, Path::new("/home/x"))
    }

    #[test]
    fn the_current_context_says_where_and_who() {
        let cluster = "server: https://a:6443, certificate-authority: pki/ca.crt, \
                       tls-server-name: kubernetes";
        let read = parse(cluster, "token: s3cret, client-certificate: /c.crt, client-key: c.key");
        let file = |path: &str| Pem::File(PathBuf::from(path));
        let wanted = Kubeconfig {
            server: "https://a:6443".to_owned(),
            ca: Some(file("/home/x/pki/ca.crt")),
            insecure: false,
            server_name: Some("kubernetes".to_owned()),
            token: Some(Token::Inline("s3cret".to_owned())),
            identity: Some((file("/c.crt"), file("/home/x/c.key"))),
        };
        assert_eq!(read, Ok(wanted));
        assert!(!format!("{:?}", parse(cluster, "token: s3cret")).contains("s3cret"));
    }

    #[test]
    fn data_in_the_file_wins_over_the_name_of_a_file_and_a_token_file_over_a_token() {
        let cluster = "server: https://a, certificate-authority: x, \
                       certificate-authority-data: Y2E=";
        let read = parse(cluster, "token: t, tokenFile: f").unwrap();
        assert_eq!(read.ca, Some(Pem::Inline(b"ca".to_vec())));
        assert_eq!(read.token, Some(Token::File("/home/x/f".into())));
    }

    #[test]
    fn a_server_without_tls_gets_no_credentials_and_json_is_yaml() {
        let read = parse("server: http://a", "token: t, exec: {command: x}").unwrap();
        assert_eq!((read.token, read.identity), (None, None));
        let read = parse("server: HTTPS://a", "token: t").unwrap();
        assert_eq!(read.token, Some(Token::Inline("t".to_owned())));
        let text = "{\"contexts\":[{\"name\":\"x\",\"context\":{\"cluster\":\"c\"}}],\
                    \"clusters\":[{\"name\":\"c\",\"cluster\":{\"server\":\"http://a\"}}]}";
        let read = Kubeconfig::parse(text, Path::new("/")).unwrap();
        assert_eq!(read.server, "http://a");
    }

    #[test]
    fn a_user_with_a_name_only_is_anonymous_as_for_client_go() {
        for user in ["- name: u", "- name: u\n  user:", "- name: u\n  user: {}"] {
            let text = format!(
                "{HEAD}clusters:\n- {{name: c, cluster: {{server: 'https://a'}}}}\nusers:\n{user}\n"
            );
            let read = Kubeconfig::parse(&text, Path::new("/")).unwrap();
            assert_eq!((read.token, read.identity), (None, None), "{user}");
        }
        let text = format!("{HEAD}clusters:\n- name: c\n");
        let refused = Kubeconfig::parse(&text, Path::new("/")).unwrap_err();
        assert_eq!(refused, "users has no entry named \"u\"");
    }

    #[test]
    fn a_kubeconfig_that_cannot_be_used_is_refused_with_the_reason() {
        for (cluster, user, what) in [
            ("server: https://a", "exec: {command: aws}", "use a kubeconfig with a token"),
            ("server: https://a", "auth-provider: {name: oidc}", "(auth-provider)"),
            ("server: https://a", "username: admin", "(username)"),
            ("server: https://a", "as: admin", "(as)"),
            ("server: https://a", "client-key: k", "not both"),
            ("server: https://a, proxy-url: http://p", "token: t", "proxy-url"),
            ("certificate-authority-data: '*', server: https://a", "token: t", "base64"),
            ("insecure-skip-tls-verify: true", "token: t", "no server"),
            (
                "server: https://a, insecure-skip-tls-verify: true, certificate-authority: c",
                "token: t",
                "exclude each other",
            ),
        ] {
            let refused = parse(cluster, user).unwrap_err();
            assert!(refused.contains(what), "{cluster} {user}: {refused}");
        }
        for (text, what) in [
            ("", "nothing in it"),
            ("current-context: x\n", "contexts has no entry named \"x\""),
            (HEAD, "clusters has no entry named \"c\""),
            ("contexts: []\n", "no current-context"),
            ("a: [", "1:"),
        ] {
            let refused = Kubeconfig::parse(text, Path::new("/")).unwrap_err();
            assert!(refused.contains(what), "{text}: {refused}");
        }
    }
}
