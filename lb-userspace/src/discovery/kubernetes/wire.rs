//! What the API server sends, bytes to objects. Pure.

use k8s_openapi::{
    ListableResource, Metadata,
    api::{
        core::v1::Service,
        discovery::v1::{Endpoint, EndpointSlice},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde::{
    Deserialize, Serialize,
    de::{DeserializeOwned, IgnoredAny},
};

use super::join::{VERSION, WEIGHT};
use crate::{
    discovery::{Class, Failure},
    json,
};

/// Characters of a faulty answer that are shown.
const SHOWN: usize = 120;

/// Most values in the JSON of a page: those of fifty slices of the most endpoints that one may have. A
/// value of three bytes may take 400 in memory.
const PAGE_VALUES: usize = 1_500_000;
/// Most values in that of an event: ten times those of the largest slice.
const EVENT_VALUES: usize = 200_000;

/// Bytes that a value takes besides its text, about.
pub(super) const VALUE: usize = 48;

/// A kind of object that is listed and watched.
pub trait Object:
    ListableResource + Metadata<Ty = ObjectMeta> + DeserializeOwned + Serialize + Send
{
    /// Bytes that it takes in memory, about.
    fn weight(&self) -> usize;
}

impl Object for Service {
    fn weight(&self) -> usize {
        json::weight(self, VALUE)
    }
}

impl Object for EndpointSlice {
    fn weight(&self) -> usize {
        // An endpoint of which nothing is said takes as much as any.
        json::weight(self, VALUE).max(self.endpoints.len() * size_of::<Endpoint>())
    }
}

/// One answer to a list request.
#[derive(Clone, PartialEq, Debug)]
pub struct Page<K> {
    pub items: Vec<K>,
    /// Of the whole list; where a watch may begin.
    pub version: String,
    /// What to ask the next page with.
    pub next: Option<String>,
}

/// One line of a watch.
#[derive(Clone, PartialEq, Debug)]
pub enum Event<K> {
    /// It is there, and like this.
    Put(K),
    /// It is gone; this is how it was.
    Gone(K),
    /// Nothing up to this version was left out.
    Bookmark(String),
    /// The version that the watch began with, or was at, is too old (410 within the stream).
    Expired,
}

/// What a server says of a request that it does not answer.
#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct Status {
    pub(super) code: u16,
    pub(super) reason: String,
    pub(super) message: String,
}

impl Status {
    /// The version or the continue token asked for is too old.
    pub(super) fn is_expired(&self) -> bool {
        self.code == 410 || ["Expired", "Gone"].contains(&self.reason.as_str())
    }

    pub(super) fn failure(&self) -> Failure {
        let class = match self.code {
            401 | 403 => Class::Denied,
            404 => Class::Missing,
            504 => Class::Timeout,
            _ => Class::Refused,
        };
        let message = shown(self.message.as_bytes());
        let reason = match self.reason.is_empty() {
            true => String::new(),
            false => format!(" {}", shown(self.reason.as_bytes())),
        };
        Failure::new(class, format!("{}{reason}: {message}", self.code))
    }
}

#[derive(Deserialize)]
struct RawList<K> {
    metadata: RawListMeta,
    // What Go writes for a list without items may be `null`, but the key is there.
    items: Option<Vec<K>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawListMeta {
    resource_version: String,
    #[serde(default)]
    r#continue: Option<String>,
}

/// # Errors
/// If it is no list of such objects, with the place. Never an empty list instead. Also if there are more
/// values in it than any server sends.
pub fn page<K: Object>(body: &[u8]) -> Result<Page<K>, Failure> {
    few(body, PAGE_VALUES)?;
    let malformed = |what: String| {
        let shown = shown(body);
        Failure::new(Class::Malformed, format!("{what}: {shown}"))
    };
    // The whole of it, with the key `items`: an object of another kind has none.
    #[derive(Deserialize)]
    struct Head {
        kind: String,
        #[allow(dead_code, reason = "must be there")]
        items: IgnoredAny,
    }
    let head: Head = serde_json::from_slice(body)
        .map_err(|error| malformed(format!("not the list expected: {error}")))?;
    if head.kind != K::LIST_KIND {
        let what = format!("a `{}` in place of a {}", head.kind, K::LIST_KIND);
        return Err(malformed(what));
    }
    let RawList { metadata, items } = serde_json::from_slice(body)
        .map_err(|error| malformed(format!("not the {} expected: {error}", K::LIST_KIND)))?;
    if metadata.resource_version.is_empty() {
        return Err(malformed("a list without a resourceVersion".to_owned()));
    }
    let mut items: Vec<K> = items.unwrap_or_default();
    items.iter_mut().for_each(trim);
    Ok(Page {
        items,
        version: metadata.resource_version,
        next: metadata.r#continue.filter(|token| !token.is_empty()),
    })
}

/// # Errors
/// If it is no event of such an object, or one that says that the watch failed. Also if there are more
/// values in it than any object has.
pub fn event<K: Object>(line: &[u8]) -> Result<Event<K>, Failure> {
    few(line, EVENT_VALUES)?;
    #[derive(Deserialize)]
    struct Head {
        r#type: String,
        #[allow(dead_code, reason = "must be there")]
        object: IgnoredAny,
    }
    #[derive(Deserialize)]
    struct Body<T> {
        object: T,
    }
    #[derive(Deserialize)]
    struct Mark {
        metadata: RawListMeta,
    }
    fn body<T: DeserializeOwned>(line: &[u8]) -> Result<T, Failure> {
        let body: Result<Body<T>, _> = serde_json::from_slice(line);
        body.map(|body| body.object).map_err(|error| {
            let what = format!("not the event expected: {error}: {}", shown(line));
            Failure::new(Class::Malformed, what)
        })
    }
    fn object<K: Object>(line: &[u8]) -> Result<K, Failure> {
        let mut object: K = body(line)?;
        if object.metadata().name.is_none() || object.metadata().resource_version.is_none() {
            let what = format!("an object without a name or a version: {}", shown(line));
            return Err(Failure::new(Class::Malformed, what));
        }
        trim(&mut object);
        Ok(object)
    }
    let head: Head = serde_json::from_slice(line).map_err(|error| {
        let what = format!("not a watch's event: {error}: {}", shown(line));
        Failure::new(Class::Malformed, what)
    })?;
    match head.r#type.as_str() {
        "ADDED" | "MODIFIED" => object(line).map(Event::Put),
        "DELETED" => object(line).map(Event::Gone),
        "BOOKMARK" => {
            body::<Mark>(line).map(|mark| Event::Bookmark(mark.metadata.resource_version))
        }
        "ERROR" => {
            let status: Status = body(line)?;
            match status.is_expired() {
                true => Ok(Event::Expired),
                false => Err(status.failure().context("the watch failed")),
            }
        }
        other => {
            let what = format!("a watch's event of type {}", shown(other.as_bytes()));
            Err(Failure::new(Class::Malformed, what))
        }
    }
}

/// Before memory is taken for them.
fn few(text: &[u8], most: usize) -> Result<(), Failure> {
    let values = json::values(text);
    if values > most {
        let what = format!(
            "{values} values in {} bytes, at most {most} are read",
            text.len()
        );
        return Err(Failure::new(Class::Malformed, what));
    }
    Ok(())
}

/// What nobody here reads, and is often most of an object.
fn trim<K: Object>(object: &mut K) {
    let metadata = object.metadata_mut();
    metadata.managed_fields = None;
    metadata.owner_references = None;
    metadata.finalizers = None;
    if let Some(annotations) = &mut metadata.annotations {
        annotations.retain(|key, _| [WEIGHT, VERSION].contains(&key.as_str()));
    }
}

/// The beginning of what a server sent, on one line.
pub(super) fn shown(body: &[u8]) -> String {
    let head = String::from_utf8_lossy(&body[..body.len().min(4 * SHOWN)]);
    let head: String = head
        .chars()
        .take(SHOWN)
        .flat_map(char::escape_debug)
        .collect();
    match (body.is_empty(), body.len() > SHOWN) {
        (true, _) => "(nothing)".to_owned(),
        (_, true) => head + "…",
        (_, false) => head,
    }
}
