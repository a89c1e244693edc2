//! No DNS message makes the dns source panic, go in circles, or take for a backend what was not asked
//! for. The input is messages, each behind its length in two bytes: answers to the questions in the
//! order in which they are asked.

use std::{collections::HashSet, time::Duration};

use hickory_proto::rr::Name;
use lb_userspace::discovery::{
    Class, Failure,
    dns::{
        message::{Answer, Question, Reply, read},
        walk::{Knowledge, Known, Step, Wanted, walk},
    },
};
use tokio::time::Instant;

/// Rounds after which a walk that asks on goes in circles: a name and its aliases, and a target's.
const ROUNDS: usize = 40;

fn fail(knowledge: &mut Knowledge, question: Question, message: String) {
    let failure = Failure::new(Class::Malformed, message);
    knowledge.failures.insert(question, failure);
}

pub fn run(input: &[u8]) -> bool {
    let Some((options, mut rest)) = input.split_first() else {
        return false;
    };
    let wanted = Wanted {
        names: ["web.example.internal.", "web."]
            .map(|n| Name::from_ascii(n).expect("a name"))
            .to_vec(),
        port: (options & 1 == 0).then_some(80),
        ipv4: true,
        ipv6: options & 2 != 0,
    };
    let now = Instant::now();
    let mut knowledge = Knowledge {
        complete: options & 4 != 0,
        ..Knowledge::default()
    };
    for _ in 0..ROUNDS {
        let questions = match walk(&wanted, &knowledge, now) {
            Step::Ask(questions) => questions,
            Step::Failed(failure) => {
                assert!(!failure.message.is_empty());
                return false;
            }
            Step::Done(outcome) => {
                assert!(
                    outcome
                        .used
                        .iter()
                        .all(|q| knowledge.answers.contains_key(q))
                );
                let instances = outcome.snapshot.instances;
                let ids: HashSet<_> = instances.iter().map(|i| i.address).collect();
                assert_eq!(ids.len(), instances.len());
                for instance in instances {
                    assert_eq!(instance.id, instance.address.to_string());
                    assert!(wanted.ipv6 || instance.address.is_ipv4());
                    assert!(instance.weight != Some(0));
                }
                return true;
            }
        };
        assert!(!questions.is_empty());
        for question in questions {
            assert!(
                !knowledge.answers.contains_key(&question),
                "asked twice: {question}"
            );
            let length: usize = rest
                .first_chunk()
                .map_or(0, |length| u16::from_be_bytes(*length).into());
            let behind = rest.get(2..).unwrap_or_default();
            let (message, more) = behind.split_at(length.min(behind.len()));
            rest = more;
            let id = message
                .first_chunk()
                .map_or(0, |id| u16::from_be_bytes(*id));
            match read(message, id, &question) {
                Ok(Reply::Answer(Answer { data, ttl })) => {
                    let until = now + ttl.unwrap_or_default().max(Duration::from_millis(100));
                    knowledge.answers.insert(question, Known { data, until });
                }
                Ok(other) => fail(&mut knowledge, question, format!("{other:?}")),
                Err(wrong) => fail(&mut knowledge, question, wrong.to_string()),
            }
        }
    }
    panic!("it asks on and on");
}
