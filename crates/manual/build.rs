//! Renders the manual. The same files always give the same bytes.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Component, Path, PathBuf};
use std::{env, fs};

use flate2::Compression;
use flate2::write::GzEncoder;
use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd, html};

/// The table of contents, which is a page too.
const CONTENTS: &str = "docs/SUMMARY.md";

/// The style sheet, which is beside this file wherever the crate is: its name and its text.
const STYLE: (&str, &str) = ("manual.css", include_str!("src/manual.css"));

/// The served files: the path of each one below the repository, and its name in the manual.
type Names = BTreeMap<PathBuf, String>;

fn main() -> Result<(), Box<dyn Error>> {
    let repository = Path::new(&env::var("CARGO_MANIFEST_DIR")?).join("../..");
    let read = |path: &Path| {
        let file = repository.join(path);
        println!("cargo::rerun-if-changed={}", file.display());
        fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))
    };
    let contents = read(Path::new(CONTENTS))?;
    let mut names = Names::from([(CONTENTS.into(), "contents".to_owned())]);
    for link in links(&contents).filter(|link| !link.starts_with("internals/")) {
        let name = link.strip_suffix(".md").ok_or(format!("{CONTENTS}: {link} is no page"))?;
        names.insert(Path::new("docs").join(&link), name.to_owned());
    }
    println!("cargo::rerun-if-changed={}", repository.join("config").display());
    for entry in fs::read_dir(repository.join("config"))? {
        let name = format!("config/{}", entry?.file_name().display());
        names.insert(PathBuf::from(&name), name);
    }
    names.insert(STYLE.0.into(), STYLE.0.to_owned());

    let out = PathBuf::from(env::var("OUT_DIR")?);
    let mut pages = BTreeMap::new();
    for (path, name) in &names {
        let text = if name == STYLE.0 { STYLE.1.to_owned() } else { read(path)? };
        let is_page = path.extension().is_some_and(|it| it == "md");
        let text = if is_page { page(path, name, &text, &names) } else { text };
        let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
        gzip.write_all(text.as_bytes())?;
        let file = out.join(name.replace('/', "-"));
        fs::write(&file, gzip.finish()?)?;
        pages.insert(name, file);
    }
    let mut table = String::new();
    for (name, file) in pages {
        writeln!(table, "({name:?}, include_bytes!({file:?}) as &[u8]),")?;
    }
    fs::write(out.join("pages.rs"), format!("&[\n{table}]\n"))?;
    Ok(())
}

fn links(markdown: &str) -> impl Iterator<Item = String> {
    Parser::new(markdown).filter_map(|event| {
        let Event::Start(Tag::Link { dest_url, .. }) = event else { return None };
        Some(dest_url.into_string())
    })
}

/// Renders a page as an HTML document. `path` is its path below the repository.
fn page(path: &Path, name: &str, markdown: &str, names: &Names) -> String {
    let mut events: Vec<Event<'_>> =
        Parser::new_ext(markdown, Options::ENABLE_TABLES).filter_map(shown).collect();
    let title = headings(&mut events);
    let root = "../".repeat(name.matches('/').count());
    relink(&mut events, path, &root, names);
    let mut body = String::new();
    html::push_html(&mut body, events.into_iter());
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>{title}</title>\n<link rel=\"icon\" href=\"data:,\">\n\
         <link rel=\"stylesheet\" href=\"{root}manual.css\">\n</head>\n<body>\n\
         <nav><a href=\"{root}contents\">Contents</a><a href=\"./{root}\">Status page</a></nav>\n\
         {body}</body>\n</html>\n"
    )
}

/// Leaves out comments, and shows the text of a picture in its place. Columns are not aligned,
/// because the pages' Content-Security-Policy allows no attribute `style`.
fn shown(event: Event<'_>) -> Option<Event<'_>> {
    if matches!(event, Event::Html(_) | Event::InlineHtml(_)) {
        return None;
    }
    if matches!(event, Event::Start(Tag::Image { .. })) {
        return Some(Event::Start(Tag::Emphasis));
    }
    if matches!(event, Event::End(TagEnd::Image)) {
        return Some(Event::End(TagEnd::Emphasis));
    }
    if matches!(event, Event::Start(Tag::Table(_))) {
        return Some(Event::Start(Tag::Table(Vec::new())));
    }
    Some(event)
}

/// Gives each heading the anchor that GitHub gives it. Returns the text of the first one.
fn headings(events: &mut [Event<'_>]) -> String {
    let mut title = None;
    let mut seen = BTreeMap::<String, usize>::new();
    for at in 0..events.len() {
        let (before, behind) = events.split_at_mut(at + 1);
        let Some(Event::Start(Tag::Heading { id, .. })) = before.last_mut() else { continue };
        let inside = behind.iter().take_while(|it| !matches!(it, Event::End(TagEnd::Heading(_))));
        let text: String = inside
            .filter_map(|event| {
                let (Event::Text(text) | Event::Code(text)) = event else { return None };
                Some(&**text)
            })
            .collect();
        let kept = |char: &char| char.is_alphanumeric() || matches!(char, ' ' | '-' | '_');
        let anchor: String = text.to_lowercase().chars().filter(kept).collect();
        let anchor = anchor.replace(' ', "-");
        let count = seen.entry(anchor.clone()).or_default();
        *id = Some(if *count == 0 { anchor } else { format!("{anchor}-{count}") }.into());
        *count += 1;
        title.get_or_insert(text);
    }
    title.unwrap_or_default()
}

/// Makes the links of a page lead to what is served. A link to another file of the repository
/// becomes its text and the file's path. `root` leads from the page to the first level.
fn relink(events: &mut [Event<'_>], path: &Path, root: &str, names: &Names) {
    let mut unserved = None;
    for at in 0..events.len() {
        if let Event::Start(Tag::Link { dest_url, .. }) = &mut events[at]
            && !dest_url.contains("://")
        {
            let begin = dest_url.find('#').unwrap_or(dest_url.len());
            let (file, anchor) = dest_url.split_at(begin);
            let file = resolved(path, file);
            match names.get(&file) {
                Some(_) if file == path => *dest_url = anchor.to_owned().into(),
                Some(name) => *dest_url = format!("{root}{name}{anchor}").into(),
                None => {
                    events[at] = Event::Text("".into());
                    unserved = Some(file);
                }
            }
        } else if matches!(events[at], Event::End(TagEnd::Link))
            && let Some(file) = unserved.take()
        {
            let is_named = matches!(&events[at - 1], Event::Code(it) if file.ends_with(&**it));
            let file = format!(" (<code>{}</code>)", file.display());
            events[at] = Event::InlineHtml(if is_named { "".into() } else { file.into() });
        }
    }
}

/// Returns the path below the repository to which a link of the page at `path` leads.
fn resolved(path: &Path, link: &str) -> PathBuf {
    if link.is_empty() {
        return path.to_owned();
    }
    let mut found = path.to_owned();
    found.pop();
    for part in Path::new(link).components() {
        match part {
            Component::ParentDir => _ = found.pop(),
            Component::CurDir => {}
            Component::Normal(_) | Component::RootDir | Component::Prefix(_) => found.push(part),
        }
    }
    found
}
