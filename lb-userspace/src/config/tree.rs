//! YAML text as a tree that knows where each value stands.
//!
//! Built from the parser's events rather than by its loader, which recurses, copies whatever an
//! alias stands for and silently keeps the last of two equal keys.

use std::{collections::HashMap, rc::Rc};

use saphyr_parser::{Event, Parser, ScalarStyle};

use super::{
    report::{Place, Report},
    suggest::quoted,
    syntax::{Stop, place, syntax_fault, unreadable},
};

/// Deepest nesting; a config needs 6.
const MAX_DEPTH: usize = 32;
/// Most values in a file, each alias counted as all it stands for.
const MAX_NODES: usize = 2_000_000;

#[derive(Clone)]
pub(super) struct Node {
    pub(super) place: Place,
    pub(super) data: Rc<Data>,
    /// Values in this node, itself included.
    size: usize,
}

pub(super) enum Data {
    Scalar {
        text: String,
        /// Neither quoted nor a block.
        plain: bool,
    },
    List(Vec<Node>),
    Map(Vec<Entry>),
}

pub(super) struct Entry {
    pub(super) key: String,
    pub(super) place: Place,
    pub(super) value: Node,
}

impl Node {
    /// Nothing at all, or one of YAML's words for it.
    pub(super) fn is_null(&self) -> bool {
        matches!(&*self.data, Data::Scalar { text, plain: true }
            if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }
}

/// The only document of `text`; `None` if there is none or if a fault ended the reading.
pub(super) fn load(text: &str, report: &mut Report) -> Option<Node> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if let Some((place, message)) = unreadable(text) {
        report.fault(place, message);
        return None;
    }
    let mut builder = Builder::default();
    for event in Parser::new_from_str(text) {
        let step = match event {
            Ok((event, span)) => builder.take(event, place(&span.start), report),
            Err(error) => Err(syntax_fault(text, &error)),
        };
        if let Err((place, message)) = step {
            report.fault(place, message);
            return None;
        }
    }
    builder.root
}

/// What is read before it has an end.
enum Open {
    List {
        place: Place,
        anchor: usize,
        nodes: Vec<Node>,
    },
    Map {
        place: Place,
        anchor: usize,
        entries: Vec<Entry>,
        seen: HashMap<String, Place>,
        key: Option<(String, Place)>,
    },
}

#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    anchors: HashMap<usize, Node>,
    root: Option<Node>,
    documents: usize,
    nodes: usize,
}

impl Builder {
    fn take(&mut self, event: Event<'_>, place: Place, report: &mut Report) -> Result<(), Stop> {
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => Ok(()),
            Event::DocumentStart(_) => {
                self.documents += 1;
                match self.documents {
                    1 => Ok(()),
                    _ => Err((
                        place,
                        "a second YAML document begins here; a config is one document".to_owned(),
                    )),
                }
            }
            Event::Scalar(text, style, anchor, tag) => {
                untagged(tag.as_deref(), place)?;
                self.grow(1, place)?;
                let data = Data::Scalar {
                    text: text.into_owned(),
                    plain: style == ScalarStyle::Plain,
                };
                self.add(node(place, data, 1), anchor, report)
            }
            Event::Alias(anchor) => {
                let Some(target) = self.anchors.get(&anchor) else {
                    return Err((place, "this alias is part of what it stands for".to_owned()));
                };
                let node = Node {
                    place,
                    ..target.clone()
                };
                self.grow(node.size, place)?;
                self.add(node, 0, report)
            }
            Event::SequenceStart(anchor, tag) => {
                untagged(tag.as_deref(), place)?;
                self.enter(Open::List {
                    place,
                    anchor,
                    nodes: Vec::new(),
                })
            }
            Event::MappingStart(anchor, tag) => {
                untagged(tag.as_deref(), place)?;
                self.enter(Open::Map {
                    place,
                    anchor,
                    entries: Vec::new(),
                    seen: HashMap::new(),
                    key: None,
                })
            }
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(Open::List {
                    place,
                    anchor,
                    nodes,
                }) => {
                    let size = 1 + nodes.iter().map(|node| node.size).sum::<usize>();
                    self.add(node(place, Data::List(nodes), size), anchor, report)
                }
                Some(Open::Map {
                    place,
                    anchor,
                    entries,
                    ..
                }) => {
                    let size = 1 + entries.iter().map(|entry| entry.value.size).sum::<usize>();
                    self.add(node(place, Data::Map(entries), size), anchor, report)
                }
                None => Ok(()),
            },
        }
    }

    fn enter(&mut self, open: Open) -> Result<(), Stop> {
        let (Open::List { place, .. } | Open::Map { place, .. }) = open;
        if self.open.len() >= MAX_DEPTH {
            return Err((place, format!("nested deeper than {MAX_DEPTH} levels")));
        }
        self.grow(1, place)?;
        self.open.push(open);
        Ok(())
    }

    fn grow(&mut self, by: usize, place: Place) -> Result<(), Stop> {
        self.nodes = self.nodes.saturating_add(by);
        if self.nodes > MAX_NODES {
            return Err((
                place,
                format!("more than {MAX_NODES} values, aliases written out; shorten the file"),
            ));
        }
        Ok(())
    }

    /// Puts a finished node where it belongs.
    fn add(&mut self, node: Node, anchor: usize, report: &mut Report) -> Result<(), Stop> {
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        match self.open.last_mut() {
            None => self.root = Some(node),
            Some(Open::List { nodes, .. }) => nodes.push(node),
            Some(Open::Map {
                entries, seen, key, ..
            }) => match key.take() {
                None => match &*node.data {
                    Data::Scalar { text, .. } => *key = Some((text.clone(), node.place)),
                    Data::List(_) | Data::Map(_) => {
                        return Err((node.place, "a key must be a word".to_owned()));
                    }
                },
                Some((key, place)) => {
                    if let Some(first) = seen.get(&key) {
                        let message = format!(
                            "key {} is given twice; first at line {}",
                            quoted(&key),
                            first.line
                        );
                        report.fault(place, message);
                    } else {
                        seen.insert(key.clone(), place);
                        entries.push(Entry {
                            key,
                            place,
                            value: node,
                        });
                    }
                }
            },
        }
        Ok(())
    }
}

fn node(place: Place, data: Data, size: usize) -> Node {
    Node {
        place,
        data: Rc::new(data),
        size,
    }
}

fn untagged(tag: Option<&saphyr_parser::Tag>, place: Place) -> Result<(), Stop> {
    match tag {
        None => Ok(()),
        Some(tag) => Err((
            place,
            format!(
                "YAML tag {} is not supported; remove it",
                quoted(&tag.to_string())
            ),
        )),
    }
}
