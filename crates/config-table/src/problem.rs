//! Problems of a config, and the files that it names.

use std::path::PathBuf;

/// A problem of a config file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The line in the file, counted from 1.
    pub line: usize,
    /// The column in the line, in characters, counted from 1.
    pub column: usize,
    /// The path of the key, with indices: `output[1].retry.multiplier`; empty for a syntax error.
    pub path: String,
    /// One line on what is wrong and what is allowed, without secrets and values of variables.
    pub message: String,
    /// The effect of the problem on the commands `run` and `check`.
    pub severity: Severity,
    /// The name of the output that has the key, with each `${…}` unexpanded. `None` if no output
    /// has the key, the output has no usable name, the key is `name` itself, or the config has only
    /// one output.
    pub output: Option<String>,
}

/// The effect of a [`Problem`] on the commands `run` and `check`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Severity {
    /// The config cannot be used.
    Error,
    /// The relay can run with the config, but will probably not do what its author wants.
    Warning,
    /// A file that the config names is missing or cannot be read. This is an error on the machine
    /// that runs the relay (`Checked::strict`), and a warning if the config is checked elsewhere.
    MissingFile,
    /// `check` refuses the config, but a relay starts with it and logs the problem, because most of
    /// the relay works. Example: a certificate has expired.
    Fault,
}

impl Problem {
    /// Returns `true` if `check` refuses the config because of this problem.
    pub fn is_error(&self) -> bool {
        matches!(self.severity, Severity::Error | Severity::Fault)
    }

    /// Returns the problem as one line: `FILE:LINE:COLUMN: key.path: what is wrong, what is
    /// allowed`. The message of a warning or of a missing file begins with `warning: `. At the end
    /// is the name of the output, because the index in `key.path` is counted from 0.
    pub fn render(&self, file: &str) -> String {
        let Self { line, column, path, message, severity, output } = self;
        let colon = if path.is_empty() { "" } else { ": " };
        let warning = match severity {
            Severity::Error | Severity::Fault => "",
            Severity::Warning | Severity::MissingFile => "warning: ",
        };
        let output = output.as_ref().map(|name| format!(" [output {name:?}]")).unwrap_or_default();
        format!("{file}:{line}:{column}: {path}{colon}{warning}{message}{output}")
    }
}

/// A config key whose value is the path of a file or directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// The key's path: `listener[0].tls.certificate`.
    pub key: String,
    /// The path of the file or directory.
    pub path: PathBuf,
    /// The content that `check` expects in the file.
    pub content: Content,
    /// What a relay does if it can't use the file. Not used for a directory.
    pub need: Need,
}

/// What a relay does if it can't use a file that its config names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// The relay does not start, and refuses a reload.
    Start,
    /// If the file is missing, the relay starts, and waits for the file (`tls.optional`).
    Later,
    /// The relay starts, and the admin address refuses all that the file guards. Reading the config
    /// does not report the file.
    Admin,
}

/// The content that a file must have if a config key names the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// A PEM chain of certificates, the leaf first. `private_key` in the same section is its key.
    Certificate,
    /// The private key of a certificate, in PEM.
    PrivateKey,
    /// The certificates of one or more certificate authorities (CAs), in PEM.
    Authorities,
    /// One line with the token that peers must present. Blanks around the token are ignored.
    ListenerToken,
    /// One line with a token that the relay sends in a header. Blanks around the token are ignored.
    Token,
    /// One line with a password.
    Password,
    /// The private key with which the evidence is signed.
    SigningKey,
    /// A Kubernetes audit policy.
    Policy,
    /// No content: the key names a directory, not a file.
    Directory,
}
