//! A copy of the repository that has all known mistakes at their places. Its crates are in another
//! directory, so cargo can build it beside the usual sources, and what is not of this repository is
//! built once for both.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fs, io};

use serde::Deserialize;

use super::Mutant;

/// The directory of the crates in the copy. Cargo names what it builds after the paths in a
/// workspace. With the same paths, it would replace what it has built from the sources.
const CRATES: &str = "altered";

/// The name of the relay's library in the copy. In the file's name of a library that other programs
/// load, cargo leaves the path out.
const LIBRARY: &str = "altered_relay";

/// Returns a text of this file that is another one in the copy, whatever the mistakes are.
fn edit(file: &str) -> Option<(&'static str, String)> {
    match file {
        "Cargo.toml" => Some(("\"crates/", format!("\"{CRATES}/"))),
        "tests/sim/relay/Cargo.toml" => Some(("[lib]", format!("[lib]\nname = \"{LIBRARY}\""))),
        // All crates with places depend on this one, and in it the name `base` must be known, too.
        "crates/base/src/lib.rs" => {
            let place = "#[path = \"../../../tests/sim/src/place.rs\"]\npub mod place;\n";
            Some(("pub mod disk;\n", format!("extern crate self as base;\n{place}pub mod disk;\n")))
        }
        _ => None,
    }
}

/// The place of a mistake. The head of `mutants.toml` explains the keys.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Place {
    file: String,
    #[serde(default)]
    after: String,
    #[serde(default)]
    right: String,
    wrong: Option<String>,
}

impl Place {
    /// Returns where the right code stands in the text of the file. White space does not count.
    fn find(&self, text: &str) -> Result<Range<usize>, String> {
        let (mut dense, mut offsets) = (String::new(), Vec::new());
        for (at, letter) in text.char_indices().filter(|(_, letter)| !letter.is_whitespace()) {
            dense.push(letter);
            offsets.extend(at..at + letter.len_utf8());
        }
        let dense_of = |text: &str| text.split_whitespace().collect::<String>();
        let (after, right) = (dense_of(&self.after), dense_of(&self.right));
        let sought = format!("{after}{right}");
        let found: Vec<_> = dense.match_indices(&sought).map(|(at, _)| at).collect();
        let &[begin] = found.as_slice() else {
            let (file, times) = (&self.file, found.len());
            return Err(format!(
                "{file} has {times} times, and not once: {} {}",
                self.after, self.right
            ));
        };
        let end = offsets[begin + sought.len() - 1] + 1;
        let begin = if right.is_empty() { end } else { offsets[begin + after.len()] };
        Ok(begin..end)
    }

    /// Returns the code with the mistake.
    fn code(&self, name: &str, right: &str) -> String {
        match &self.wrong {
            Some(wrong) if right.is_empty() => {
                format!(" base::mutant!({name:?}, {{}}, {wrong});")
            }
            Some(wrong) => format!("base::mutant!({name:?}, {right}, {wrong})"),
            None => format!("base::mutant!({name:?}, {right})"),
        }
    }
}

/// Returns the texts of the files below `root` that have places, with all mistakes.
pub(super) fn with_mistakes(
    root: &Path,
    mutants: &BTreeMap<String, Mutant>,
) -> Result<BTreeMap<PathBuf, String>, String> {
    let mut files = BTreeMap::<&str, Vec<(&str, &Place)>>::new();
    for (name, mutant) in mutants {
        for place in &mutant.places {
            files.entry(&place.file).or_default().push((name, place));
        }
    }
    let mut texts = BTreeMap::new();
    for (file, places) in files {
        let path = root.join(file);
        let mut text = fs::read_to_string(&path).map_err(|error| format!("{file}: {error}"))?;
        let mut found = Vec::new();
        for (name, place) in places {
            let range = place.find(&text).map_err(|error| format!("{name}: {error}"))?;
            found.push((range.start, range.end, name, place));
        }
        found.sort_by_key(|(begin, ..)| *begin);
        for (begin, end, name, place) in found.into_iter().rev() {
            let right: String = text.drain(begin..end).collect();
            let code = place.code(name, &right);
            text.insert_str(begin, &code);
        }
        texts.insert(path, text);
    }
    Ok(texts)
}

/// Builds the relay's library from a copy with all mistakes, none of them active, and returns its
/// path. `target` has what is built from the sources themselves.
pub(super) fn build(
    root: &Path,
    target: &Path,
    mutants: &BTreeMap<String, Mutant>,
) -> Result<PathBuf, String> {
    let texts = with_mistakes(root, mutants)?;
    let (own, copy) = (target.join("mutants"), target.join("mutants/source"));
    write(root, target, &copy, texts).map_err(|error| format!("{}: {error}", copy.display()))?;
    let mut build = Command::new("cargo");
    // With the packages and features that everything else is built with, all dependencies have the
    // same features too.
    build.args(["build", "--quiet", "--workspace", "--lib", "--locked"]);
    build.arg("--manifest-path").arg(copy.join("Cargo.toml")).current_dir(root);
    build.env("CARGO_BUILD_BUILD_DIR", target).env("CARGO_TARGET_DIR", &own);
    let output = build.output().map_err(|error| format!("cargo: {error}"))?;
    match output.status.success() {
        true => Ok(own.join("debug").join(format!("lib{LIBRARY}.so"))),
        false => Err(format!("cargo: {}", String::from_utf8_lossy(&output.stderr))),
    }
}

/// Makes the copy what it has to be. A file that stays the same is not written, so that cargo does
/// not build its crate again.
fn write(
    root: &Path,
    target: &Path,
    copy: &Path,
    mut texts: BTreeMap<PathBuf, String>,
) -> io::Result<()> {
    let mut written = BTreeSet::new();
    for file in files(root, target)? {
        let name = file.strip_prefix(root).map_err(io::Error::other)?;
        let bytes = match texts.remove(&file) {
            Some(text) => text.into_bytes(),
            None => fs::read(&file)?,
        };
        let to = copy.join(match name.strip_prefix("crates") {
            Ok(rest) => Path::new(CRATES).join(rest),
            Err(_) => name.to_owned(),
        });
        let bytes = match name.to_str().and_then(edit) {
            Some((from, to)) => String::from_utf8_lossy(&bytes).replace(from, &to).into_bytes(),
            None => bytes,
        };
        if fs::read(&to).ok().as_ref() != Some(&bytes) {
            to.parent().map_or(Ok(()), fs::create_dir_all)?;
            fs::write(&to, bytes)?;
        }
        written.insert(to);
    }
    let left = files(copy, target)?;
    left.iter().filter(|file| !written.contains(*file)).try_for_each(fs::remove_file)
}

/// Returns all files below a directory, without those that cargo and git made.
fn files(directory: &Path, target: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let made = path == target || path.ends_with("target") || path.ends_with(".git");
        if path.is_file() {
            files.push(path);
        } else if path.is_dir() && !made {
            files.extend(self::files(&path, target)?);
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str =
        "fn one() -> u8 {\n    tell(\"é\");\n    1\n}\nfn two() -> u8 {\n    1 + 1\n}\n";

    fn altered(place: &str) -> Result<String, String> {
        let place: Place = toml::from_str(&format!("file = \"lib.rs\"\n{place}")).expect("a place");
        let range = place.find(TEXT)?;
        let code = place.code("name", TEXT.get(range.clone()).expect("whole letters"));
        let mut text = TEXT.to_owned();
        text.replace_range(range, &code);
        Ok(text)
    }

    #[test]
    fn a_place_is_found_whatever_its_white_space_is() {
        let becomes = |place: &str, from: &str, to: &str| {
            assert_eq!(altered(place), Ok(TEXT.replacen(from, to, 1)), "{place}");
        };
        becomes("right = \"1+1\"\nwrong = \"3\"", "1 + 1", "base::mutant!(\"name\", 1 + 1, 3)");
        becomes(
            "after = 'tell( \"é\" );'\nright = \"1\"\nwrong = \"2\"",
            "    1\n",
            "    base::mutant!(\"name\", 1, 2)\n",
        );
        let right = "right = 'tell(\"é\")'";
        becomes(right, "tell(\"é\")", "base::mutant!(\"name\", tell(\"é\"))");
        let (after, more) = ("after = \"fn two() -> u8 {\"\nwrong = \"stop()\"", "two() -> u8 {");
        becomes(after, more, &format!("{more} base::mutant!(\"name\", {{}}, stop());"));
    }

    #[test]
    fn a_place_must_be_the_only_one() {
        let error = |place| altered(place).expect_err(place);
        assert_eq!(error("right = \"u8\""), "lib.rs has 2 times, and not once:  u8");
        assert!(error("after = \"two() ->\"\nright = \"u16\"").contains(" 0 times"));
    }
}
