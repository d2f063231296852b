//! Checks the files and directories that a config names, before a relay uses them: certificates,
//! keys, tokens and directories.
//!
//! The functions find faults with which `run` would refuse to start, or would start and be of no
//! use, and name the config key of each fault. They write nothing to the disk, bind no address and
//! make no connection. Only regular files are read; reading the config has refused all others.

use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls_pki_types::UnixTime;

use crate::listener::Settings;
use crate::source::Sources;
use base::disk::OpenError;
use base::named_file;
use client::tls;
use client::tls::{Chain, Server, TlsError};
use config::{Checked, Config, Content, Named, Need, Problem, Restrict, Severity};
use delivery::{DeadLetters, filter};
use evidence_log::tlog::key::SigningKey;
use process::restrict;
use telemetry::Telemetry;

mod memory;

pub use memory::memory;

/// Checks the files that a config names, and returns their faults. Faults that were already found
/// when the config was read are not repeated. Blocks on the disk.
pub fn files(checked: &Checked) -> Vec<Problem> {
    let mut found = Findings { checked, problems: Vec::new() };
    for named in &checked.named {
        match named.content {
            Content::ListenerToken if named.need == Need::Admin => {}
            // Reading the config has reported the other files that are missing.
            _ if named.need != Need::Admin && !named_file::is_regular(&named.path) => {}
            Content::Certificate => found.certificate(named),
            Content::PrivateKey => found.report(named, tls::check_private_key(&named.path)),
            Content::Authorities => found.authorities(named),
            Content::ListenerToken | Content::Token => found.token(named),
            Content::Password => found.password(named),
            Content::SigningKey => found.signing_key(named),
            Content::Policy => found.policy(named),
            Content::Directory => {}
        }
    }
    found.problems
}

/// Returns a warning for each token file of the admin address that can't be used. A relay logs them
/// itself. Blocks on the disk.
pub fn admin_tokens(checked: &Checked) -> Vec<Problem> {
    let mut found = Findings { checked, problems: Vec::new() };
    let is_token = |it: &&Named| it.need == Need::Admin && it.content == Content::ListenerToken;
    checked.named.iter().filter(is_token).for_each(|named| found.token(named));
    found.problems
}

/// Checks the directories that a config names, and returns their faults. Directories in `in_use`
/// are left out, because the running relay continues to use them. Blocks on the disk.
pub fn directories(checked: &Checked, in_use: &[PathBuf]) -> Vec<Problem> {
    let mut problems = Vec::new();
    let directories = checked.named.iter().filter(|named| named.content == Content::Directory);
    let is_known = |key: &str| checked.problems.iter().any(|it| it.path == key && it.is_error());
    for named in directories.filter(|it| !in_use.contains(&it.path) && !is_known(&it.key)) {
        let (looked, severity) = match named.key.as_str() {
            "queue.directory" => (queue::place::of_queue(&named.path), Severity::Error),
            // Without `dead_letter.directory` or `process.state_directory` a relay still runs, but
            // it drops dead letters, or does not record how it ends.
            _ => (queue::place::of_dead_letters(&named.path), Severity::Fault),
        };
        if let Err(error) = looked {
            let message = match error {
                OpenError::Io { remedy: "", .. } => {
                    format!("{error}: set a directory that the relay can write to or create")
                }
                OpenError::Io { .. } | OpenError::Held(_) | OpenError::Newer { .. } => {
                    error.to_string()
                }
            };
            problems.push(checked.problem(&named.key, message, severity));
        }
    }
    problems
}

/// Returns the faults that listeners, outputs, sources and `admin.tls` have when their files are
/// read. Call this only if no other check has found a fault. Blocks on the disk.
pub fn rest(checked: &Checked, config: &Config) -> Vec<Problem> {
    let mut problems = Vec::new();
    if let Some(Err(error)) = config.admin.tls.as_ref().map(|tls| Server::read(tls, None)) {
        problems.push(checked.problem("admin.tls", error.to_string(), Severity::Fault));
    }
    let mut refused = |key: String, error: String| {
        problems.push(checked.problem(&key, error, Severity::Error));
    };
    for (index, listener) in config.listeners.iter().enumerate() {
        if let Err(error) = Settings::read(listener, None) {
            refused(format!("listener[{index}]"), error);
        }
    }
    let telemetry = Arc::new(Telemetry::new());
    let dead_letters = DeadLetters::new(&telemetry);
    for (index, output) in config.outputs.iter().enumerate() {
        let prepared = outputs::prepare(output, &telemetry, &dead_letters);
        if let Some(Err(error)) = prepared.files().map(|files| files.stage()) {
            refused(format!("output[{index}]"), error.to_string());
        }
    }
    let sources = Sources::default().plan(&config.sources, config.limits.max_body, &telemetry);
    for (index, source) in sources.iter().enumerate() {
        if let Err(error) = source.stage() {
            refused(format!("source[{index}]"), error.to_string());
        }
    }
    problems
}

struct Findings<'a> {
    checked: &'a Checked,
    problems: Vec<Problem>,
}

impl Findings<'_> {
    /// Adds a problem of the config key `named`. A warning is always added. A problem of another
    /// severity is added only if reading the config has found nothing but warnings for this key.
    fn add(&mut self, named: &Named, message: impl Into<String>, severity: Severity) {
        let is_known =
            |problem: &Problem| problem.path == named.key && problem.severity != Severity::Warning;
        if severity == Severity::Warning || !self.checked.problems.iter().any(is_known) {
            self.problems.push(self.checked.problem(&named.key, message, severity));
        }
    }

    /// Adds the error that the file or directory of the config key `named` can't be used. `what`
    /// says why. If the admin address needs the file, the relay starts without it.
    fn refuse(&mut self, named: &Named, what: impl std::fmt::Display) {
        let (end, severity) = match (named.need, named.content) {
            (Need::Admin, Content::ListenerToken) => {
                ("; until then, nobody gets what this token opens", Severity::Warning)
            }
            (Need::Admin, _) => ("", Severity::Fault),
            (Need::Start | Need::Later, _) => ("", Severity::Error),
        };
        self.add(named, format!("{what}, expected: {}{end}", allowed(named)), severity);
    }

    /// Adds the error in `result`, if there is one, as a problem of the config key `named`. A
    /// missing file is not a problem if the file is optional.
    fn report(&mut self, named: &Named, result: Result<(), TlsError>) {
        // An optional file may disappear between two reads.
        let Err(error) = result else { return };
        match named.need {
            Need::Later if error.is_missing() => {}
            Need::Admin if error.is_missing() => {
                self.add(named, error.to_string(), Severity::MissingFile);
            }
            Need::Start | Need::Later | Need::Admin => self.refuse(named, error),
        }
    }

    /// Checks the certificate chain in the file of the config key `named`: its dates, the names in
    /// the leaf of a listener, and that the configured private key belongs to the leaf.
    fn certificate(&mut self, named: &Named) {
        let chain = match Chain::read(&named.path) {
            Ok(chain) => chain,
            Err(error) => return self.report(named, Err(error)),
        };
        let table = named.key.split(['.', '[']).next();
        let is_listener = table == Some("listener");
        match chain.validity() {
            Err(position) => {
                let file = named.path.display();
                let what = format!("certificate {position} of {file} can't be read");
                return self.refuse(named, what);
            }
            Ok(all) => {
                let by = match table {
                    Some("listener") => "kube-apiserver",
                    Some("admin") => "every client of the admin address",
                    Some("source") => "the broker",
                    _ => "the consumer",
                };
                for (index, validity) in all.iter().enumerate() {
                    let which = format!("certificate {} of {}", index + 1, named.path.display());
                    let (from, until) = &validity.words;
                    if validity.until < now() {
                        let message =
                            format!("{which} has expired ({until}), so {by} refuses it: renew it");
                        self.add(named, message, Severity::Fault);
                    } else if validity.from > now() {
                        let message = format!(
                            "{which} is not valid before {from}: {by} refuses it until then"
                        );
                        self.add(named, message, Severity::Warning);
                    }
                }
            }
        }
        if is_listener && !chain.has_names() {
            let message = format!(
                "certificate 1 of {} has no subjectAltName, so kube-apiserver and every other Go \
                 client refuse it: use a certificate with the listener's names in subjectAltName",
                named.path.display()
            );
            self.add(named, message, Severity::Warning);
        }
        let key = format!("{}private_key", named.key.trim_end_matches("certificate"));
        let key = self.checked.named.iter().find(|other| other.key == key);
        // A faulty key file is reported when that file is checked itself.
        let key = key.filter(|key| tls::check_private_key(&key.path).is_ok());
        if let Some(key) = key.filter(|key| named_file::is_regular(&key.path)) {
            let fits = chain.fits(&named.path, &key.path);
            let is_mismatch = matches!(fits, Err(TlsError::Mismatch { .. }));
            self.report(if is_mismatch { key } else { named }, fits);
        }
    }

    /// Checks a bundle of CA certificates: that it can be used, that no certificate in it is that
    /// of a server or client, and their dates.
    fn authorities(&mut self, named: &Named) {
        let chain = match Chain::read(&named.path) {
            Ok(chain) => chain,
            Err(error) => return self.report(named, Err(error)),
        };
        self.report(named, chain.roots(&named.path));
        for number in chain.leaves() {
            let message = format!(
                "certificate {number} of {} is not a CA certificate, so only a peer with exactly \
                 this certificate is trusted: use the certificate of the CA that issued it",
                named.path.display()
            );
            self.add(named, message, Severity::Warning);
        }
        for (index, validity) in chain.validity().unwrap_or_default().iter().enumerate() {
            if validity.until < now() {
                let (file, until) = (named.path.display(), &validity.words.1);
                let message =
                    format!("CA certificate {} of {file} has expired ({until})", index + 1);
                self.add(named, message, Severity::Warning);
            }
        }
    }

    fn token(&mut self, named: &Named) {
        let Some(secret) = self.secret(named) else { return };
        // White space around a token is ignored, as when the token is used.
        let token = secret.trim_ascii();
        let what = if token.is_empty() {
            "is empty"
        } else if token.chars().any(|c| (c.is_control() && c != '\t') || c == '\u{feff}') {
            "holds a control character or a second line"
        } else if named.content == Content::Token && config::header_value(token).is_err() {
            "contains a character that is not allowed in an HTTP header"
        } else {
            let credential = (named.content == Content::Token).then(|| config::credential(token));
            if let Some(Err(what)) = credential {
                self.refuse(named, format_args!("{}: {what}", named.path.display()));
            }
            return;
        };
        self.refuse(named, format_args!("{} {what}", named.path.display()));
    }

    fn password(&mut self, named: &Named) {
        if self.secret(named).is_some_and(|password| password.is_empty()) {
            let message = format!("{} is empty", named.path.display());
            self.add(named, message, Severity::Warning);
        }
    }

    /// Adds each mistake of an audit policy, with its line. If there is none, adds a warning for
    /// each value in it that can match no request.
    fn policy(&mut self, named: &Named) {
        let policy = match filter::read_policy(&named.path) {
            Ok(policy) => policy,
            Err(mistakes) => {
                mistakes.into_iter().for_each(|it| self.add(named, it, Severity::Error));
                return;
            }
        };
        for doubt in policy.doubts() {
            let (file, line, column) = (named.path.display(), doubt.line, doubt.column);
            let message = format!("{file}:{line}:{column}: {}", doubt.what);
            self.add(named, message, Severity::Warning);
        }
    }

    /// Checks the file with a signing key of the evidence: that it holds a key, that the key has
    /// the name `evidence.origin`, and that not every user may read it.
    fn signing_key(&mut self, named: &Named) {
        let Some(secret) = self.secret(named) else { return };
        if let Some(mode) = mode_for_everybody(&named.path) {
            let message = format!(
                "every user of this machine can read {} (mode {mode:04o}) and sign as the relay: \
                 set its mode to 0400 or 0440 (in a Secret volume: defaultMode)",
                named.path.display()
            );
            self.add(named, message, Severity::Warning);
        }
        let error = match SigningKey::parse(&secret) {
            Err(error) => error.to_string(),
            Ok(key) => {
                let settings = self.checked.config.as_ref().and_then(|it| it.evidence.as_ref());
                let name = key.verifier().name();
                if settings.is_none_or(|settings| settings.origin == name) {
                    return;
                }
                format!("it is the key of {name}, but evidence.origin is another name")
            }
        };
        self.refuse(named, format_args!("{}: {error}", named.path.display()));
    }

    /// Returns the text of a file with a secret. `None`, with a problem, if it cannot be read as
    /// UTF-8.
    fn secret(&mut self, named: &Named) -> Option<String> {
        let error = match config::read_secret(&named.path) {
            Ok(secret) => return Some(secret),
            Err(error) => error,
        };
        let file = named.path.display();
        let what = match error.kind() == io::ErrorKind::InvalidData {
            true => format!("{file} is not text (UTF-8)"),
            false => format!("cannot read {file}: {error}"),
        };
        self.refuse(named, what);
        None
    }
}

/// Returns the permission bits of a file if every user may read the file and enter each directory
/// above it. Returns `None` in all other cases, and if the bits are not known.
fn mode_for_everybody(file: &Path) -> Option<u32> {
    let file = file.canonicalize().ok()?;
    let mode = |path: &Path| path.metadata().ok().map(|it| it.permissions().mode() & 0o7777);
    let may_enter = |path: &Path| mode(path).is_some_and(|mode| mode & 0o001 != 0);
    mode(&file).filter(|mode| mode & 0o004 != 0 && file.ancestors().skip(1).all(may_enter))
}

/// Returns a warning if the queue on disk may become larger than the file system that holds it, or
/// than what is free there. Blocks on the disk.
pub fn room(checked: &Checked) -> Option<Problem> {
    const MIB: u64 = 1024 * 1024;
    let queue = &checked.config.as_ref()?.queue;
    let directory = std::path::absolute(queue.directory.as_ref()?).ok()?;
    let found = directory.ancestors().find_map(|it| rustix::fs::statvfs(it).ok())?;
    let size = found.f_blocks.saturating_mul(found.f_frsize);
    let held = bytes_in(&directory, DEPTH_MAX);
    let free = found.f_bavail.saturating_mul(found.f_frsize).saturating_add(held);
    let message = if queue.max_bytes > size {
        format!(
            "is larger than the file system of queue.directory ({} MiB): set less than that, with \
             room for evidence and dead letters",
            size / MIB
        )
    } else if queue.max_bytes > free {
        format!(
            "is more than the file system of queue.directory has left for it ({} MiB, with what \
             the queue holds now): free space there, or set less",
            free / MIB
        )
    } else if found.f_files > 0 && found.f_favail == 0 {
        "the file system of queue.directory has no inodes left (`df -i`): delete files there"
            .to_owned()
    } else {
        return None;
    };
    // Some virtual file systems have no size.
    (size > 0).then(|| checked.problem("queue.max_bytes", message, Severity::Warning))
}

/// The depth of the deepest files of a queue below its directory.
const DEPTH_MAX: usize = 4;

/// Returns the bytes on disk of all files in this directory. What cannot be read counts as 0.
fn bytes_in(directory: &Path, depth: usize) -> u64 {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let bytes = entries.map(|entry| match entry.metadata() {
        Ok(it) if it.is_dir() && depth > 0 => bytes_in(&entry.path(), depth - 1),
        Ok(it) => it.blocks() * 512,
        Err(_) => 0,
    });
    bytes.sum()
}

/// Returns a problem if the config asks for a restriction that this machine does not have.
pub fn kernel(checked: &Checked) -> Option<Problem> {
    let setting = checked.config.as_ref()?.restrict;
    let (severity, then) = match setting {
        Restrict::Off => return None,
        Restrict::Required => (Severity::Error, "allowed here: \"best_effort\", \"off\""),
        Restrict::BestEffort => (Severity::Warning, "a relay runs here without it"),
    };
    let (setting, lacking) = (setting.name(), restrict::lacking()?);
    let message = format!("is \"{setting}\", but this machine has no {lacking}, {then}");
    Some(checked.problem("process.restrict", message, severity))
}

/// Returns a problem for each file and directory of the config that this process can no longer use,
/// because it has restricted itself at its start. The directories in `in_use` and `queue.directory`
/// are left out.
pub fn outside(checked: &Checked, in_use: &[PathBuf]) -> Vec<Problem> {
    let Some(state) = restrict::state() else { return Vec::new() };
    let named = |path: &PathBuf| checked.named.iter().find(|named| named.path == *path);
    let files = checked.files.iter().filter(|path| !state.allows(path, false)).map(|path| {
        // A `${file:…}` has no key of its own. The key is that of a problem whose text names the
        // file.
        let shown = path.display().to_string();
        let is_of = |problem: &&Problem| problem.message.contains(&shown);
        let of_template = || checked.problems.iter().find(is_of).map(|it| it.path.clone());
        (named(path).map(|it| it.key.clone()).or_else(of_template).unwrap_or_default(), path)
    });
    let directories = checked.named.iter().filter(|named| {
        // A change of `queue.directory` waits for a restart in any case.
        named.content == Content::Directory
            && named.key != "queue.directory"
            && !in_use.contains(&named.path)
            && !state.allows(&named.path, true)
    });
    files
        .chain(directories.map(|named| (named.key.clone(), &named.path)))
        .map(|(key, path)| {
            let message = format!(
                "{} is in a directory that this process may no longer open (process.restrict): \
                 restart the relay, or use a directory from the old config",
                path.display()
            );
            checked.problem(&key, message, Severity::Error)
        })
        .collect()
}

/// Returns the end of an error message: the contents that the file of this config key may have.
fn allowed(named: &Named) -> &'static str {
    match named.content {
        Content::Certificate => "a PEM chain, the leaf first",
        Content::PrivateKey => "the PEM key of the certificate",
        Content::ListenerToken | Content::Token => "one line of printable text",
        Content::Password => "one line of text",
        Content::Authorities => "a PEM bundle of CA certificates",
        Content::SigningKey => "the private key that evidence keygen wrote",
        Content::Policy => "an audit policy",
        Content::Directory => "a directory",
    }
}

fn now() -> i64 {
    i64::try_from(UnixTime::now().as_secs()).unwrap_or(i64::MAX)
}
