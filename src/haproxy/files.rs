//! Maps the paths of HAProxy's pod to the places where the manifests of `deploy` mount Secrets, and
//! says how to make these Secrets.

use super::bind::Bind;
use super::output::Output;
use super::report::COMMAND;

/// A Secret that the Deployment in `deploy/base` mounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Secret {
    /// The certificate of the HTTPS listeners.
    Listener,
    /// Files that outputs need.
    Consumer,
}

impl Secret {
    fn name(self) -> &'static str {
        match self {
            Self::Listener => "audit-webhook",
            Self::Consumer => "kube-audit-forwarder-consumer",
        }
    }

    fn directory(self) -> &'static str {
        match self {
            Self::Listener => "/certificates",
            Self::Consumer => "/consumer",
        }
    }
}

/// The use of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Chain,
    Key,
    /// Certificates of CAs.
    Authority,
}

/// A file of HAProxy's pod and its place in the relay's pod.
#[derive(Debug)]
struct Mounted {
    secret: Secret,
    role: Role,
    /// The path in the haproxy.cfg.
    original: String,
    /// The file's name in the Secret.
    name: String,
}

/// The files that the new config names.
#[derive(Debug, Default)]
pub(super) struct Files {
    keeps_paths: bool,
    mounted: Vec<Mounted>,
}

impl Files {
    /// With `keeps_paths`, each file stays where it is.
    pub(super) fn new(keeps_paths: bool) -> Self {
        Self { keeps_paths, mounted: Vec::new() }
    }

    /// Returns the listener with the paths that its files have in the relay's pod.
    pub(super) fn listener<'a>(&mut self, bind: &Bind<'a>) -> Bind<'a> {
        let mut bind = bind.clone();
        if let Some(tls) = &mut bind.tls {
            let (secret, chain) = (Secret::Listener, tls.certificate.clone());
            tls.certificate = self.place(secret, Role::Chain, "tls.crt", &chain);
            tls.private_key = self.place(secret, Role::Key, "tls.key", &tls.private_key);
            tls.client_ca = tls
                .client_ca
                .as_ref()
                .map(|ca| self.place(secret, Role::Authority, "client-ca.crt", ca));
        }
        bind
    }

    /// Returns the output with the paths that its files have in the relay's pod, and the path of
    /// its private key. With HAProxy, the key is in the same file as the certificate.
    pub(super) fn output(&mut self, output: &Output) -> (Output, Option<String>) {
        let mut output = output.clone();
        let mut key = None;
        if let Some(tls) = &mut output.tls {
            let secret = Secret::Consumer;
            tls.ca = tls.ca.as_ref().map(|ca| self.place(secret, Role::Authority, "ca.crt", ca));
            let pair = tls.certificate.clone();
            tls.certificate =
                pair.as_ref().map(|pair| self.place(secret, Role::Chain, "client.crt", pair));
            key = pair.map(|pair| self.place(secret, Role::Key, "client.key", &pair));
        }
        (output, key)
    }

    /// Returns the path of a file in the relay's pod. `usual` is the file's name in the Secret,
    /// unless another file of the haproxy.cfg has that name already.
    fn place(&mut self, secret: Secret, role: Role, usual: &str, original: &str) -> String {
        if self.keeps_paths {
            return original.to_owned();
        }
        let known = self.mounted.iter().find(|mounted| {
            (mounted.secret, mounted.role, mounted.original.as_str()) == (secret, role, original)
        });
        if let Some(known) = known {
            return format!("{}/{}", secret.directory(), known.name);
        }
        let ending = if role == Role::Key { "key" } else { "crt" };
        let stem = original.rsplit('/').find(|part| !part.is_empty()).unwrap_or("file");
        let stem = stem.split_once('.').map_or(stem, |(stem, _)| stem);
        let keep = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
        let stem: String = stem.chars().take(40).map(keep).collect();
        let mut name = usual.to_owned();
        let mut count = 1;
        while self.mounted.iter().any(|other| other.secret == secret && other.name == name) {
            name = match count {
                1 => format!("{stem}.{ending}"),
                count => format!("{stem}-{count}.{ending}"),
            };
            count += 1;
        }
        let path = format!("{}/{name}", secret.directory());
        self.mounted.push(Mounted { secret, role, original: original.to_owned(), name });
        path
    }

    /// Returns sentences about the Secrets that the new config needs, and commands that make them
    /// from copies of HAProxy's files.
    pub(super) fn needs(&self) -> Vec<String> {
        let mut needs = Vec::new();
        for secret in [Secret::Listener, Secret::Consumer] {
            let files = || self.mounted.iter().filter(|mounted| mounted.secret == secret);
            if files().next().is_none() {
                continue;
            }
            let mut commands = Vec::new();
            let mut create =
                format!("kubectl create secret generic {} -n ibm-kube-audit", secret.name());
            for Mounted { role, original, name, .. } in files() {
                let at = format!("{}/{name} was {original}", secret.directory());
                let both = files().filter(|other| other.original == *original).count() > 1;
                let quoted = quoted(original);
                match role {
                    Role::Chain if both => {
                        needs.push(format!(
                            "{at}. HAProxy reads certificate and key from this one PEM file (or \
                             the key from {original}.key)"
                        ));
                        commands
                            .push(format!("sed -n '/-BEGIN CERT/,/-END CERT/p' {quoted} > {name}"));
                        create.push_str(&format!(" --from-file={name}"));
                    }
                    Role::Key if both => {
                        needs.push(at);
                        commands.push(format!("openssl pkey -in {quoted} -out {name}"));
                        create.push_str(&format!(" --from-file={name}"));
                    }
                    Role::Chain | Role::Key | Role::Authority => {
                        needs.push(at);
                        create.push_str(&format!(" --from-file={name}={quoted}"));
                    }
                }
            }
            needs.push(format!(
                "the Secret {}, which deploy/base/deployment.yaml mounts at {}, has these files. \
                 With copies of HAProxy's files:",
                secret.name(),
                secret.directory()
            ));
            commands.push(create);
            needs.extend(commands.iter().map(|command| format!("{COMMAND}{command}")));
        }
        needs
    }
}

/// Returns a path in such a form that a shell reads it as one word.
fn quoted(path: &str) -> String {
    if path.chars().all(|c| c.is_ascii_alphanumeric() || "/._-@".contains(c)) {
        return path.to_owned();
    }
    format!("'{}'", path.replace('\'', "'\\''"))
}
