//! The settings of `global` and `crt-store` sections that other sections depend on.

use std::collections::BTreeMap;

use super::read::File;
use super::report::{Line, Notes};

/// The settings of the `global` section and of `crt-store` sections that other sections depend on.
#[derive(Debug, Default)]
pub(super) struct Global<'a> {
    pub(super) ca_base: Option<&'a str>,
    pub(super) crt_base: Option<&'a str>,
    key_base: Option<&'a str>,
    /// `true`: `ssl-server-verify none` is set, so the certificates of servers are not checked.
    pub(super) trusts_all_servers: bool,
    pub(super) bind_options: Vec<String>,
    pub(super) server_options: Vec<String>,
    pub(super) maxconn: Option<u64>,
    /// The certificates of `crt-store` sections (HAProxy 3.0): the line, the certificate and the
    /// private key. The key of the map is the name that a `crt` option uses, such as `@store/site`.
    stored: BTreeMap<String, (&'a Line, String, String)>,
}

impl<'a> Global<'a> {
    pub(super) fn read(file: &'a File, notes: &mut Notes) -> Self {
        let mut global = Self::default();
        for line in lines_of_global(file) {
            let mut key = "";
            match line.word(0) {
                "ca-base" => global.ca_base = Some(line.word(1)),
                "crt-base" => global.crt_base = Some(line.word(1)),
                "key-base" => global.key_base = Some(line.word(1)),
                "ssl-server-verify" => global.trusts_all_servers = line.word(1) == "none",
                "ssl-default-bind-options" => global.bind_options = line.words[1..].to_vec(),
                "ssl-default-server-options" => global.server_options = line.words[1..].to_vec(),
                "setenv" | "presetenv" => {}
                "maxconn" => {
                    global.maxconn = connections(line, notes);
                    key = "limits.max_connections";
                }
                // `Log::read` reads the `log` lines of all sections together.
                _ => continue,
            }
            notes.carried(line, key);
        }
        for section in file.sections.iter().filter(|section| section.kind() == "crt-store") {
            global.store(section.name(), &section.lines);
        }
        global
    }

    /// Reads the lines of a `crt-store` section.
    fn store(&mut self, store: &str, lines: &'a [Line]) {
        let (mut crt_base, mut key_base) = (self.crt_base, self.key_base);
        for line in lines {
            let after = |name: &str| {
                let at = line.words.iter().position(|word| word == name)?;
                line.words.get(at + 1)
            };
            match (line.word(0), after("crt")) {
                ("crt-base", _) => crt_base = Some(line.word(1)),
                ("key-base", _) => key_base = Some(line.word(1)),
                ("load", Some(crt)) => {
                    let certificate = Self::path(crt_base, crt);
                    let key = after("key").map(|key| Self::path(key_base, key));
                    let key = key.unwrap_or_else(|| certificate.clone());
                    for name in [Some(crt), after("alias")].into_iter().flatten() {
                        let stored = (line, certificate.clone(), key.clone());
                        self.stored.insert(format!("@{store}/{name}"), stored);
                    }
                }
                _ => {}
            }
        }
    }

    /// Returns the files of the certificate and the private key for `crt`, the value of an option:
    /// the name of a certificate in a `crt-store` section, or a path.
    pub(super) fn certificate(&self, crt: &str, notes: &mut Notes) -> (String, String) {
        if let Some((line, certificate, key)) = self.stored.get(crt) {
            notes.carried(line, "listener.tls");
            return (certificate.clone(), key.clone());
        }
        let path = Self::path(self.crt_base, crt);
        (path.clone(), path)
    }

    /// Returns the path of a file that a directive names. A relative `path` is joined to `base`, if
    /// there is a base directory such as `ca-base`.
    pub(super) fn path(base: Option<&str>, path: &str) -> String {
        match base {
            Some(base) if !path.starts_with('/') => {
                format!("{}/{path}", base.trim_end_matches('/'))
            }
            _ => path.to_owned(),
        }
    }
}

pub(super) fn lines_of_global(file: &File) -> impl Iterator<Item = &Line> {
    let sections = file.sections.iter().filter(|section| section.kind() == "global");
    sections.flat_map(|section| &section.lines)
}

/// The largest value that `limits.max_connections` accepts.
pub(super) const CONNECTIONS_MAX: u64 = 1 << 20;

/// Returns the number in a `maxconn` line, limited to [`CONNECTIONS_MAX`]. HAProxy reads it up to
/// the first character that is not a digit. `None` if there is no number above 0; this is reported.
pub(super) fn connections(line: &Line, notes: &mut Notes) -> Option<u64> {
    let digits = line.word(1).bytes().take_while(u8::is_ascii_digit).count();
    let count = line.word(1).get(..digits).and_then(|digits| digits.parse().ok());
    let count = count.filter(|&count: &u64| count > 0);
    if count.is_none() {
        notes.decide(line, "limits.max_connections takes a number above 0");
    }
    count.map(|count| count.min(CONNECTIONS_MAX))
}
