//! The wall clock as one process sees it: libfaketime answers instead of the kernel. The monotonic
//! clocks are the machine's, except with [`WallClock::times_faster`].

use std::path::PathBuf;

use tempfile::TempDir;

use super::needs::needs;

/// A clock that a test can set while the process runs.
pub(crate) struct WallClock {
    directory: TempDir,
    library: PathBuf,
}

impl WallClock {
    pub(crate) fn new() -> Self {
        needs("libfaketime");
        // Debian has one directory of libraries for each architecture.
        let directories = std::fs::read_dir("/usr/lib").expect("Debian's libraries").flatten();
        let libraries = directories.map(|it| it.path().join("faketime/libfaketimeMT.so.1"));
        let library = libraries.into_iter().find(|it| it.exists()).expect("./test setup");
        let clock = Self { directory: TempDir::new().expect("a directory"), library };
        clock.set(0);
        clock
    }

    /// Sets the clock: this many seconds ahead of the machine's clock, or behind it if negative.
    pub(crate) fn set(&self, ahead: i64) {
        let file = self.directory.path().join("new");
        std::fs::write(&file, format!("{ahead:+}\n")).expect("a writable directory");
        // The process reads the file each time it asks for the time.
        std::fs::rename(file, self.directory.path().join("clock")).expect("a writable directory");
    }

    /// Returns the environment variables of a process for which time passes this many times faster,
    /// on the wall clock and on the monotonic clocks.
    pub(crate) fn times_faster(&self, times: u32) -> Vec<(&'static str, String)> {
        let clock = self.directory.path().join("clock");
        std::fs::write(clock, format!("+0 x{times}\n")).expect("a writable directory");
        let is_kept = |(name, _): &(&str, String)| *name != "FAKETIME_DONT_FAKE_MONOTONIC";
        self.variables().into_iter().filter(is_kept).collect()
    }

    /// Returns the environment variables of a process that sees this clock.
    pub(crate) fn variables(&self) -> [(&'static str, String); 5] {
        let text = |path: PathBuf| path.display().to_string();
        [
            ("LD_PRELOAD", text(self.library.clone())),
            ("FAKETIME_TIMESTAMP_FILE", text(self.directory.path().join("clock"))),
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("NO_FAKE_STAT", "1".to_owned()),
        ]
    }
}
