//! Maps the paths of HAProxy's pod to the places where the manifests of `deploy` mount Secrets, and
//! says how to make these Secrets.

use super::bind::Tls;
use super::report::COMMAND;

/// A Secret that the Deployment in `deploy/base` mounts.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Secret {
    name: &'static str,
    directory: &'static str,
    /// The usual names of the certificate chain, its private key and the CA's certificates.
    usual: [&'static str; 3],
}

/// The certificate of the HTTPS listeners.
pub(super) const LISTENER: Secret = Secret {
    name: "audit-webhook",
    directory: "/certificates",
    usual: ["tls.crt", "tls.key", "client-ca.crt"],
};

/// The certificates and keys that outputs need.
pub(super) const CONSUMER: Secret = Secret {
    name: "kube-audit-forwarder-consumer",
    directory: "/consumer",
    usual: ["client.crt", "client.key", "ca.crt"],
};

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
    secret: &'static Secret,
    role: Role,
    /// The path in the haproxy.cfg.
    original: String,
    /// The file's name in the Secret.
    name: String,
}

/// The files that the new config names.
#[derive(Debug, Default)]
pub(super) struct Files(Vec<Mounted>);

impl Files {
    /// Replaces the paths in `tls`, if there are any, by those in the relay's pod. The files become
    /// part of `secret`.
    pub(super) fn place_all(&mut self, secret: &'static Secret, tls: Option<&mut Tls>) {
        let Some(tls) = tls else { return };
        let paths = [&mut tls.certificate, &mut tls.private_key, &mut tls.ca];
        let roles = [Role::Chain, Role::Key, Role::Authority].into_iter().zip(secret.usual);
        for (path, (role, usual)) in paths.into_iter().zip(roles) {
            *path = path.as_deref().map(|path| self.place(secret, role, usual, path));
        }
    }

    /// Returns the path of a file in the relay's pod. The file gets the name `usual` in the Secret,
    /// or one made from its original name if another file has the name `usual` already.
    fn place(
        &mut self,
        secret: &'static Secret,
        role: Role,
        usual: &str,
        original: &str,
    ) -> String {
        let known = self.0.iter().find(|mounted| {
            (mounted.secret, mounted.role, mounted.original.as_str()) == (secret, role, original)
        });
        if let Some(known) = known {
            return format!("{}/{}", secret.directory, known.name);
        }
        let ending = if role == Role::Key { "key" } else { "crt" };
        let stem = original.rsplit('/').find(|part| !part.is_empty()).unwrap_or("file");
        let stem = stem.split_once('.').map_or(stem, |(stem, _)| stem);
        let keep = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
        let stem: String = stem.chars().take(40).map(keep).collect();
        let mut name = usual.to_owned();
        let mut count = 1;
        while self.0.iter().any(|other| other.secret == secret && other.name == name) {
            name = match count {
                1 => format!("{stem}.{ending}"),
                count => format!("{stem}-{count}.{ending}"),
            };
            count += 1;
        }
        let path = format!("{}/{name}", secret.directory);
        self.0.push(Mounted { secret, role, original: original.to_owned(), name });
        path
    }

    /// Returns sentences about the Secrets that the new config needs, and commands that make them
    /// from copies of HAProxy's files.
    pub(super) fn needs(&self) -> Vec<String> {
        let mut needs = Vec::new();
        for Secret { name: of, directory, .. } in [LISTENER, CONSUMER] {
            let files = || self.0.iter().filter(|mounted| mounted.secret.name == of);
            if files().next().is_none() {
                continue;
            }
            let mut commands = Vec::new();
            let mut create = format!("kubectl create secret generic {of} -n ibm-kube-audit");
            for Mounted { role, original, name, .. } in files() {
                let both = files().filter(|other| other.original == *original).count() > 1;
                let quoted = quoted(original);
                let (hint, command) = match role {
                    Role::Chain if both => (
                        format!(
                            ". HAProxy reads certificate and key from this one PEM file (or the \
                             key from {original}.key)"
                        ),
                        Some(format!("sed -n '/-BEGIN CERT/,/-END CERT/p' {quoted} > {name}")),
                    ),
                    Role::Key if both => {
                        (String::new(), Some(format!("openssl pkey -in {quoted} -out {name}")))
                    }
                    Role::Chain | Role::Key | Role::Authority => (String::new(), None),
                };
                needs.push(format!("{directory}/{name} was {original}{hint}"));
                let source = if command.is_some() { String::new() } else { format!("={quoted}") };
                create.push_str(&format!(" --from-file={name}{source}"));
                commands.extend(command);
            }
            needs.push(format!(
                "the Secret {of}, which deploy/base/deployment.yaml mounts at {directory}, has \
                 these files. With copies of HAProxy's files:"
            ));
            commands.push(create);
            needs.extend(commands.iter().map(|command| format!("{COMMAND}{command}")));
        }
        needs
    }
}

/// Returns a path, quoted if a shell would not read it as one word otherwise.
fn quoted(path: &str) -> String {
    if path.chars().all(|c| c.is_ascii_alphanumeric() || "/._-@".contains(c)) {
        return path.to_owned();
    }
    format!("'{}'", path.replace('\'', "'\\''"))
}
