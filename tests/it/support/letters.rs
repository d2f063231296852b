//! The dead letters in a directory, as another program reads them.

use std::path::Path;

/// Returns the reason and the event of each dead letter, in no particular order.
pub(crate) fn letters(directory: &Path) -> Vec<(String, Vec<u8>)> {
    let mut letters = Vec::new();
    for file in std::fs::read_dir(directory).expect("a directory") {
        let text = std::fs::read_to_string(file.expect("a file").path()).expect("a readable file");
        for line in text.lines() {
            let (head, event) = line.split_once(r#","event":"#).expect("an event");
            let head: serde_json::Value = serde_json::from_str(&format!("{head}}}")).expect("JSON");
            let reason = head["reason"].as_str().expect("a reason").to_owned();
            letters.push((reason, event.strip_suffix('}').expect("the letter's end").into()));
        }
    }
    letters
}

/// Returns the events of all dead letters, in no particular order.
pub(crate) fn events_in_letters(directory: &Path) -> Vec<Vec<u8>> {
    letters(directory).into_iter().map(|(_, event)| event).collect()
}
