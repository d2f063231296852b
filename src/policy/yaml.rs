//! YAML (and so JSON) as a tree in which everything has its place.
//!
//! One document, without tags that change what a value is. Aliases are copies of what they stand for, and count as such
//! towards the bounds: a few lines cannot become gigabytes. What plain scalars are (numbers, flags) is for who knows what
//! is wanted there.

use std::collections::HashMap;

use saphyr_parser::Event;
use saphyr_parser::Marker;
use saphyr_parser::Parser;
use saphyr_parser::ScalarStyle;
use saphyr_parser::Tag;

use super::Problem;

/// Deepest nesting of lists and maps. A policy needs six.
const DEPTH_MAX: usize = 64;

/// Bytes of all texts of a tree, aliases written out, with [`NODE`] for each value: what a file may grow to by aliases.
const SIZE_MAX: usize = 8 << 20;
const NODE: usize = 16;

/// Where something stands, both from 1; columns in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) line: usize,
    pub(super) column: usize,
}

impl Place {
    /// Of the first character.
    pub(super) const START: Self = Self { line: 1, column: 1 };

    fn of(marker: Marker) -> Self {
        // Of an empty text the parser says line 0.
        Self { line: marker.line().max(1), column: marker.col() + 1 }
    }

    pub(super) fn problem(self, what: impl Into<String>) -> Problem {
        Problem { line: self.line, column: self.column, what: what.into() }
    }
}

/// A value and where it begins.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) place: Place,
    pub(super) value: Value,
    /// What it counts towards [`SIZE_MAX`], all below it included.
    size: usize,
}

#[derive(Debug, Clone)]
pub(super) enum Value {
    /// `plain`: without quotes, so that `1` is a number and nothing is null.
    Scalar {
        text: String,
        plain: bool,
    },
    List(Vec<Node>),
    /// In order, keys as they are written, duplicates included.
    Map(Vec<(Node, Node)>),
}

/// A list or map that is not at its end.
struct Open {
    anchor: usize,
    place: Place,
    is_map: bool,
    nodes: Vec<Node>,
    size: usize,
}

/// The one document of a text.
///
/// # Errors
///
/// The first place where it is none; there is no sense in what comes behind it.
pub(super) fn parse(text: &str) -> Result<Node, Problem> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut parser = Parser::new_from_str(text);
    let mut tree = Tree::default();
    while let Some(event) = parser.next_event() {
        let (event, span) = event.map_err(|error| {
            Place::of(*error.marker()).problem(format!("not YAML: {}", error.info()))
        })?;
        tree.take(event, Place::of(span.start))?;
    }
    tree.root.ok_or_else(|| Place::START.problem("there is nothing in it"))
}

#[derive(Default)]
struct Tree {
    root: Option<Node>,
    open: Vec<Open>,
    /// What aliases stand for.
    anchored: HashMap<usize, Node>,
    size: usize,
}

impl Tree {
    fn take(&mut self, event: Event<'_>, place: Place) -> Result<(), Problem> {
        match event {
            Event::DocumentStart(_) if self.root.is_some() => {
                Err(place.problem("a second document: a policy is one"))
            }
            Event::Scalar(text, style, anchor, tag) => {
                let known = check_tag(tag.as_deref(), place, "str")?;
                let plain = style == ScalarStyle::Plain && !known;
                let text_bytes = text.len();
                let value = Value::Scalar { text: text.into_owned(), plain };
                let size = NODE + text_bytes;
                self.count(size, place)?;
                self.put(anchor, Node { place, value, size })
            }
            Event::SequenceStart(anchor, tag) => {
                check_tag(tag.as_deref(), place, "seq")?;
                self.begin(anchor, place, false)
            }
            Event::MappingStart(anchor, tag) => {
                check_tag(tag.as_deref(), place, "map")?;
                self.begin(anchor, place, true)
            }
            Event::SequenceEnd | Event::MappingEnd => self.end(),
            Event::Alias(anchor) => {
                let size = self.anchored.get(&anchor).map_or(0, |node| node.size);
                self.count(size, place)?;
                match self.anchored.get(&anchor).cloned() {
                    Some(node) => self.put(0, node),
                    None => Err(place.problem("an alias inside of what it stands for")),
                }
            }
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd => Ok(()),
        }
    }

    fn begin(&mut self, anchor: usize, place: Place, is_map: bool) -> Result<(), Problem> {
        if self.open.len() == DEPTH_MAX {
            return Err(place.problem(format!("nested deeper than {DEPTH_MAX} levels")));
        }
        self.count(NODE, place)?;
        self.open.push(Open { anchor, place, is_map, nodes: Vec::new(), size: NODE });
        Ok(())
    }

    fn end(&mut self) -> Result<(), Problem> {
        let Some(Open { anchor, place, is_map, nodes, size }) = self.open.pop() else {
            return Ok(());
        };
        let value = match is_map {
            false => Value::List(nodes),
            true => {
                let (mut pairs, mut nodes) = (Vec::new(), nodes.into_iter());
                while let (Some(key), Some(value)) = (nodes.next(), nodes.next()) {
                    pairs.push((key, value));
                }
                Value::Map(pairs)
            }
        };
        self.put(anchor, Node { place, value, size })
    }

    /// Into the list or map that is open.
    fn put(&mut self, anchor: usize, node: Node) -> Result<(), Problem> {
        if anchor != 0 {
            self.count(node.size, node.place)?;
            self.anchored.insert(anchor, node.clone());
        }
        match self.open.last_mut() {
            Some(open) => {
                open.size += node.size;
                open.nodes.push(node);
            }
            None => self.root = Some(node),
        }
        Ok(())
    }

    /// Counts what is to be made.
    fn count(&mut self, size: usize, place: Place) -> Result<(), Problem> {
        self.size += size;
        match self.size > SIZE_MAX {
            true => Err(place.problem("too large, with its aliases written out")),
            false => Ok(()),
        }
    }
}

/// Whether there is a tag, which then says what the value is anyway.
fn check_tag(tag: Option<&Tag>, place: Place, usual: &str) -> Result<bool, Problem> {
    match tag {
        None => Ok(false),
        Some(tag) if tag.is_yaml_core_schema() && tag.suffix == usual => Ok(true),
        Some(tag) => Err(place.problem(format!("the tag {tag} has no meaning here: leave it out"))),
    }
}
