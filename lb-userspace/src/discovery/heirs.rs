//! Which source comes in place of which. Pure.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::SourceName;

/// Of each source that comes in another's place, which that is: until it answers, it has what the other
/// had. Its service has a source of the same kind less; where several changed, the order of their
/// targets decides.
pub fn heirs<'a>(
    before: impl IntoIterator<Item = &'a SourceName>,
    after: impl IntoIterator<Item = &'a SourceName>,
) -> BTreeMap<SourceName, SourceName> {
    // Sources of services find others, under other names.
    let of_services = |name: &&SourceName| !name.service.is_empty();
    let before: BTreeSet<_> = before.into_iter().filter(of_services).collect();
    let after: BTreeSet<_> = after.into_iter().filter(of_services).collect();
    let mut gone: BTreeMap<_, VecDeque<&SourceName>> = BTreeMap::new();
    for name in before.difference(&after) {
        let place = gone.entry((&name.service, name.kind)).or_default();
        place.push_back(name);
    }
    let mut heirs = BTreeMap::new();
    for name in after.difference(&before) {
        let former = gone.get_mut(&(&name.service, name.kind));
        if let Some(former) = former.and_then(VecDeque::pop_front) {
            heirs.insert(SourceName::clone(name), former.clone());
        }
    }
    heirs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> SourceName {
        let (service, target) = text.split_once('/').unwrap();
        SourceName {
            service: service.to_owned(),
            kind: if target.starts_with('d') {
                "dns"
            } else {
                "file"
            },
            target: target.to_owned(),
        }
    }

    #[test]
    fn those_of_one_service_and_kind_follow_each_other() {
        type Case = (
            &'static [&'static str],
            &'static [&'static str],
            &'static [(&'static str, &'static str)],
        );
        let cases: [Case; 7] = [
            (&["web/a"], &["web/a"], &[]),
            (&["web/a"], &["web/b"], &[("web/b", "web/a")]),
            (&["web/a"], &["api/a"], &[]),
            (&["web/a"], &["web/d"], &[]),
            (
                &["web/a", "web/c"],
                &["web/b", "web/c"],
                &[("web/b", "web/a")],
            ),
            (
                &["web/a", "web/b", "web/d"],
                &["web/d2", "web/x", "web/y", "web/z"],
                &[("web/d2", "web/d"), ("web/x", "web/a"), ("web/y", "web/b")],
            ),
            (&["/a"], &["/b"], &[]),
        ];
        for (before, after, want) in cases {
            let names = |texts: &[&str]| -> Vec<_> { texts.iter().map(|t| name(t)).collect() };
            let want = want.iter().map(|(new, old)| (name(new), name(old)));
            let want: BTreeMap<_, _> = want.collect();
            assert_eq!(heirs(&names(before), &names(after)), want, "{after:?}");
        }
    }
}
