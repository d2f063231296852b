//! The text of `--version`. `-V` prints the name and the version alone, on one line.

use std::sync::LazyLock;

use base::release;
use base::release::Format;
use tools::replay;

/// Returns the text after the program's name: version, revision, features, the instructions that
/// the scanner of bodies uses on this CPU, and for each format of files the versions that this
/// program reads and the one that it writes. A line has the form `NAME: VALUE`, except for the
/// version, which is the first line.
pub(super) fn long() -> &'static str {
    static TEXT: LazyLock<String> = LazyLock::new(text);
    &TEXT
}

fn text() -> String {
    let features = match release::FEATURES {
        [] => "none".to_owned(),
        features => features.join(", "),
    };
    let mut text = format!(
        "{}\nrevision: {}\nfeatures: {features}\nscanner: {}\nformats of files:",
        release::VERSION,
        release::REVISION,
        audit::Isa::best().name()
    );
    let others = [delivery::DEAD_LETTER_FORMAT, evidence_log::FORMAT, replay::RESUME_FORMAT];
    for Format { name, reads, writes } in queue::FORMATS.into_iter().chain(others) {
        let reads: Vec<String> = reads.iter().map(u32::to_string).collect();
        text.push_str(&format!("\n  {name}: reads {}, writes {writes}", reads.join(" and ")));
    }
    text
}
