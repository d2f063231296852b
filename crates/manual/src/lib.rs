//! The manual in the program: the pages of `docs/` that its table of contents lists, as HTML, and
//! the configs of `config/` that they link to. The admin address serves them, so that the links of
//! alerts and findings need no Internet and fit the version that runs.
//!
//! `build.rs` renders and compresses the pages. Only the program depends on this crate, so that the
//! edit of a page rebuilds nothing else. All of it adds 230 KB to the program.

/// The name of a page and the page, compressed with gzip. The name is the path below `docs/`
/// without `.md`, such as `runbooks/KubeAuditForwarderOutputDown`; that of the table of contents is
/// `contents`. A name with an extension (`config/stdout.toml`, `manual.css`) is a plain file.
pub type Page = (&'static str, &'static [u8]);

/// The manual, sorted by the names of its pages.
pub static PAGES: &[Page] = include!(concat!(env!("OUT_DIR"), "/pages.rs"));
