//! Parses YAML (and thereby JSON) into a tree in which each value has its position.
//!
//! A tag other than that of a text, a list or a map is an error. An alias becomes a copy of its
//! value. The copy counts towards the size limit, so that a few lines can't grow to gigabytes. The
//! tree does not say whether a text without quotes is a number, a boolean or null: only the code
//! that reads it knows the wanted type.

use std::collections::HashMap;
use std::fmt;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Tag};

/// The deepest nesting of lists and maps. An audit policy needs six levels.
const DEPTH_MAX: usize = 64;

/// The limit for a tree in bytes. An alias counts as a copy; a value with an anchor counts twice.
const SIZE_MAX: usize = 8 << 20;
const NODE: usize = 16;

/// A mistake in a file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The line in the file, counted from 1.
    pub line: usize,
    /// The column, in characters, counted from 1.
    pub column: usize,
    /// A description of the mistake for the operator.
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.line, self.column, self.what)
    }
}

/// A position in a text: line and column, both counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The line.
    pub line: usize,
    /// The column, in characters.
    pub column: usize,
}

impl Place {
    /// The position of the first character.
    pub const START: Self = Self { line: 1, column: 1 };

    fn of(marker: Marker) -> Self {
        // The parser reports line 0 for an empty text.
        Self { line: marker.line().max(1), column: marker.col() + 1 }
    }

    /// Makes a problem at this position.
    pub fn problem(self, what: impl Into<String>) -> Problem {
        Problem { line: self.line, column: self.column, what: what.into() }
    }
}

/// A value in the tree.
#[derive(Debug, Clone)]
pub struct Node {
    /// The position of the first character.
    pub place: Place,
    /// The value.
    pub value: Value,
    size: usize,
}

impl Default for Node {
    fn default() -> Self {
        Self { place: Place::START, value: Value::Map(Vec::new()), size: NODE }
    }
}

/// A value of YAML, without its position.
#[derive(Debug, Clone)]
pub enum Value {
    /// A single value.
    Scalar {
        /// The text, without quotes.
        text: String,
        /// `true` for a text without quotes, block style or tag, which may be a number or null.
        plain: bool,
    },
    /// The values of a list.
    List(Vec<Node>),
    /// The keys and values, in the order of the text. Duplicate keys are kept.
    Map(Vec<(Node, Node)>),
}

struct Open {
    anchor: usize,
    place: Place,
    is_map: bool,
    nodes: Vec<Node>,
    size: usize,
}

/// Returns the value of the only YAML document in a text.
///
/// # Errors
///
/// The errors of [`documents`], no document, or a second one.
pub fn parse(text: &str) -> Result<Node, Problem> {
    let mut documents = documents(text)?.into_iter();
    match (documents.next(), documents.next()) {
        (Some(only), None) => Ok(only),
        (Some(_), Some(second)) => {
            Err(second.place.problem("a second document: the file may have only one"))
        }
        (None, _) => Err(Place::START.problem("there is nothing in it")),
    }
}

/// Returns the value of each YAML document in a text, without empty ones (after a last `---`).
///
/// # Errors
///
/// The first mistake; the text after it is not read.
pub fn documents(text: &str) -> Result<Vec<Node>, Problem> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut parser = Parser::new_from_str(text);
    let mut tree = Tree::default();
    while let Some(event) = parser.next_event() {
        let (event, span) = event.map_err(|error| {
            Place::of(*error.marker()).problem(format!("not YAML: {}", error.info()))
        })?;
        tree.take(event, Place::of(span.start))?;
    }
    let is_empty =
        |value: &Value| matches!(value, Value::Scalar { text, plain: true } if text.is_empty());
    tree.documents.retain(|document| !is_empty(&document.value));
    Ok(tree.documents)
}

/// Returns the value of a field; `None` if the node is not a map or lacks the field.
pub fn field<'n>(node: &'n Node, name: &str) -> Option<&'n Node> {
    let Value::Map(pairs) = &node.value else { return None };
    pairs.iter().find(|(key, _)| scalar(key) == Some(name)).map(|(_, value)| value)
}

/// Returns the text of a node; `None` if it is a list or a map.
pub fn scalar(node: &Node) -> Option<&str> {
    if let Value::Scalar { text, .. } = &node.value { Some(text) } else { None }
}

impl Node {
    /// Replaces the position of this value, and of each value in it, by `to` of that position.
    pub fn relocate(&mut self, to: &impl Fn(Place) -> Place) {
        self.place = to(self.place);
        match &mut self.value {
            Value::Scalar { .. } => {}
            Value::List(nodes) => nodes.iter_mut().for_each(|node| node.relocate(to)),
            Value::Map(pairs) => pairs.iter_mut().for_each(|(key, value)| {
                key.relocate(to);
                value.relocate(to);
            }),
        }
    }
}

#[derive(Default)]
struct Tree {
    documents: Vec<Node>,
    open: Vec<Open>,
    anchored: HashMap<usize, Node>,
    size: usize,
}

impl Tree {
    fn take(&mut self, event: Event<'_>, place: Place) -> Result<(), Problem> {
        match event {
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
                    None => Err(place.problem("an alias inside the value that it stands for")),
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

    /// Adds a complete value to the innermost open list or map; if none is open, as a document.
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
            None => self.documents.push(node),
        }
        Ok(())
    }

    /// Counts a value before it is copied or added. Fails if the tree is larger than [`SIZE_MAX`].
    fn count(&mut self, size: usize, place: Place) -> Result<(), Problem> {
        self.size += size;
        match self.size > SIZE_MAX {
            true => Err(place.problem("too large, with its aliases written out")),
            false => Ok(()),
        }
    }
}

/// Returns `true` for the usual tag (`!!str`), `false` for no tag, and an error for any other.
fn check_tag(tag: Option<&Tag>, place: Place, usual: &str) -> Result<bool, Problem> {
    match tag {
        None => Ok(false),
        Some(tag) if tag.is_yaml_core_schema() && tag.suffix == usual => Ok(true),
        Some(tag) => Err(place.problem(format!("the tag {tag} has no meaning here: leave it out"))),
    }
}
