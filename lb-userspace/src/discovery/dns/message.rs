//! Questions as bytes, and what bytes say to a question (RFC 1035, 2181, 2308, 6891). Pure.

use std::{fmt, net::IpAddr, time::Duration};

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{DNSClass, Name, RData, Record, RecordType},
};

/// Largest answer by UDP that is asked for, in bytes: what passes everywhere without fragments.
const UDP_PAYLOAD: u16 = 1232;

const HEADER: usize = 12;

/// Most aliases followed from a name, within one answer and over several.
pub(super) const MAX_ALIASES: usize = 8;

/// What is asked.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Question {
    /// Fully qualified.
    pub name: Name,
    pub kind: RecordType,
}

impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, kind } = self;
        write!(f, "{kind} {name}")
    }
}

/// What a server said that counts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    pub data: Data,
    /// How long it holds. `None` where a negative answer does not say it; such a one is not to be
    /// kept (RFC 2308, section 5).
    pub ttl: Option<Duration>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Data {
    Addresses(Vec<IpAddr>),
    Services(Vec<Service>),
    /// The name is another's alias, of which the answer says no more.
    Alias(Name),
    /// There is no such name, or it has nothing of this type.
    Nothing,
}

impl Data {
    /// How many it has.
    pub fn addresses(&self) -> usize {
        match self {
            Self::Addresses(addresses) => addresses.len(),
            Self::Services(_) | Self::Alias(_) | Self::Nothing => 0,
        }
    }
}

/// An SRV record (RFC 2782).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Service {
    /// The lowest is taken.
    pub priority: u16,
    pub weight: u16,
    pub port: u16,
    /// The root where the service is decidedly not offered.
    pub target: Name,
}

/// What the server asked says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reply {
    Answer(Answer),
    /// Not all of it fits; to be asked by TCP.
    Truncated,
    /// It cannot or will not answer.
    Error(ResponseCode),
    /// It names other servers: it does not resolve for others, nor holds the zone.
    Referral,
}

/// Why bytes are no answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Wrong {
    /// They belong to something else.
    Foreign(&'static str),
    /// They are not understood.
    Malformed(String),
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Foreign(what) => f.write_str(what),
            Self::Malformed(what) => f.write_str(what),
        }
    }
}

/// The question as it is sent.
///
/// # Errors
/// In words, if it cannot be written.
pub fn ask(question: &Question, id: u16, edns: bool) -> Result<Vec<u8>, String> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    let Question { name, kind } = question;
    message.add_query(Query::query(name.clone(), *kind));
    if edns {
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_PAYLOAD);
        message.set_edns(edns);
    }
    message.to_vec().map_err(|error| error.to_string())
}

/// What `bytes` say to a question that was asked with this id.
///
/// # Errors
/// If they are no answer to it; one that is may still come.
pub fn read(bytes: &[u8], id: u16, question: &Question) -> Result<Reply, Wrong> {
    let Some(header) = bytes.first_chunk::<HEADER>() else {
        let what = format!("{} bytes are no DNS message", bytes.len());
        return Err(Wrong::Malformed(what));
    };
    if u16::from_be_bytes([header[0], header[1]]) != id {
        return Err(Wrong::Foreign("an answer with another id"));
    }
    if header[2] & 0x80 == 0 {
        return Err(Wrong::Foreign("a question instead of an answer"));
    }
    // Where a server cuts is its own affair: what is left need not be a whole message.
    if header[2] & 0x02 != 0 {
        return Ok(Reply::Truncated);
    }
    let refusal = match header[3] & 0x0f {
        0 | 3 => None,
        code => Some(ResponseCode::from(0, code)),
    };
    let message = match (Message::from_vec(bytes), refusal) {
        (Ok(message), _) => message,
        (Err(_), Some(code)) => return Ok(Reply::Error(code)),
        (Err(error), None) => return Err(Wrong::Malformed(error.to_string())),
    };
    if message.metadata.op_code != OpCode::Query {
        return Err(Wrong::Foreign("an answer to another operation"));
    }
    let code = message.metadata.response_code;
    let is_answer = matches!(code, ResponseCode::NoError | ResponseCode::NXDomain);
    match &message.queries[..] {
        [query] if is_same(query, question) => {}
        // A server that did not understand the question need not repeat it.
        [] if !is_answer => {}
        _ => return Err(Wrong::Foreign("an answer to another question")),
    }
    if !is_answer {
        return Ok(Reply::Error(code));
    }
    answer(&message, question)
}

fn is_same(query: &Query, question: &Question) -> bool {
    query.name() == &question.name
        && query.query_type() == question.kind
        && query.query_class() == DNSClass::IN
}

fn answer(message: &Message, question: &Question) -> Result<Reply, Wrong> {
    let denied = message.metadata.response_code == ResponseCode::NXDomain;
    let mut owner = &question.name;
    let mut ttl = Duration::MAX;
    for _ in 0..=MAX_ALIASES {
        if let Some((data, own)) = data(message, owner, question.kind) {
            if denied {
                let what = "it says both that there is no such name and what the name has";
                return Err(Wrong::Malformed(what.to_owned()));
            }
            let ttl = Some(ttl.min(own));
            return Ok(Reply::Answer(Answer { data, ttl }));
        }
        let Some((target, own)) = alias(message, owner) else {
            return Ok(negative(message, question, owner, ttl, denied));
        };
        owner = target;
        ttl = ttl.min(own);
    }
    let what = format!("more than {MAX_ALIASES} aliases in a row, or aliases in a circle");
    Err(Wrong::Malformed(what))
}

/// What the answer has of a name, and how long it holds: as long as the shortest (RFC 2181, 5.2).
fn data(message: &Message, owner: &Name, kind: RecordType) -> Option<(Data, Duration)> {
    let mut addresses = Vec::new();
    let mut services = Vec::new();
    let mut ttl = None::<Duration>;
    for record in records(&message.answers, owner) {
        match &record.data {
            RData::A(a) if kind == RecordType::A => addresses.push(IpAddr::V4(a.0)),
            RData::AAAA(a) if kind == RecordType::AAAA => addresses.push(IpAddr::V6(a.0)),
            RData::SRV(srv) if kind == RecordType::SRV => services.push(Service {
                priority: srv.priority,
                weight: srv.weight,
                port: srv.port,
                target: srv.target.to_lowercase(),
            }),
            _ => continue,
        }
        let own = seconds(record.ttl);
        ttl = Some(ttl.map_or(own, |ttl| ttl.min(own)));
    }
    let data = match kind {
        RecordType::SRV => Data::Services(services),
        _ => {
            // Servers turn the order about.
            addresses.sort_unstable();
            addresses.dedup();
            Data::Addresses(addresses)
        }
    };
    ttl.map(|ttl| (data, ttl))
}

fn alias<'m>(message: &'m Message, owner: &Name) -> Option<(&'m Name, Duration)> {
    records(&message.answers, owner).find_map(|record| match &record.data {
        RData::CNAME(target) => Some((&target.0, seconds(record.ttl))),
        _ => None,
    })
}

fn records<'m>(section: &'m [Record], owner: &Name) -> impl Iterator<Item = &'m Record> {
    section
        .iter()
        .filter(move |record| record.dns_class == DNSClass::IN && record.name == *owner)
}

/// What an answer without data says. `owner` is the last of the aliases, which hold for `ttl`.
fn negative(
    message: &Message,
    question: &Question,
    owner: &Name,
    ttl: Duration,
    denied: bool,
) -> Reply {
    let nothing = |ttl| {
        Reply::Answer(Answer {
            data: Data::Nothing,
            ttl,
        })
    };
    // RFC 2308, section 5: the lesser of the SOA's own TTL and its last field.
    let soa = message
        .authorities
        .iter()
        .find_map(|record| match &record.data {
            RData::SOA(soa) if record.name.zone_of(owner) => {
                Some(seconds(record.ttl).min(seconds(soa.minimum)))
            }
            _ => None,
        });
    if let Some(own) = soa {
        return nothing(Some(ttl.min(own)));
    }
    if denied {
        return nothing(None);
    }
    if *owner != question.name {
        return Reply::Answer(Answer {
            data: Data::Alias(owner.clone()),
            ttl: Some(ttl),
        });
    }
    let refers = |record: &Record| matches!(record.data, RData::NS(_));
    match message.authorities.iter().any(refers) && !message.metadata.authoritative {
        true => Reply::Referral,
        false => nothing(None),
    }
}

/// RFC 2181, section 8: a TTL with the highest bit set is none.
fn seconds(ttl: u32) -> Duration {
    match i32::try_from(ttl) {
        Ok(_) => Duration::from_secs(ttl.into()),
        Err(_) => Duration::ZERO,
    }
}
