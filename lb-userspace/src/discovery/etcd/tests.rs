use super::{known::*, parse::instance, *};
use crate::discovery::InstanceState;

const OWN: &[u8] =
    br#"{"address": "10.1.1.2:8080", "weight": 7, "labels": {"version": "v2"}, "state": "drain"}"#;
const NAMING: &[u8] = br#"{"Op":0,"Addr":"10.1.2.2:8080","Metadata":null}"#;

fn put<'a>(key: &'a str, value: &'a [u8], mod_revision: i64) -> Pair<'a> {
    Pair {
        key: key.as_bytes(),
        value: Some(value),
        mod_revision,
    }
}

fn gone(key: &str, mod_revision: i64) -> Pair<'_> {
    Pair {
        key: key.as_bytes(),
        value: None,
        mod_revision,
    }
}

fn ids(known: &Known) -> Vec<String> {
    let instances = known.snapshot().instances.into_iter();
    instances.map(|i| i.id).collect()
}

#[test]
fn both_forms_of_a_value() {
    let one = instance(b"web/", b"web/a", OWN).unwrap().unwrap();
    assert_eq!((&*one.id, one.weight), ("a", Some(7)));
    assert_eq!(one.address, "10.1.1.2:8080".parse().unwrap());
    assert_eq!(one.labels["version"], "v2");
    assert_eq!(one.state, InstanceState::Drain);

    let one = instance(b"web/", b"web/10.1.2.2:8080", NAMING)
        .unwrap()
        .unwrap();
    assert_eq!((&*one.id, one.weight), ("10.1.2.2:8080", None));
    assert_eq!(one.state, InstanceState::Up);
    let rich = br#"{"Op":0,"Addr":"[2001:db8::1]:80","Metadata":{"weight":"30","state":"down","zone":"a","n":7,"x":{}}}"#;
    let one = instance(b"web/", b"web/b", rich).unwrap().unwrap();
    assert_eq!((one.weight, one.state), (Some(30), InstanceState::Down));
    let labels: Vec<_> = one.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    assert_eq!(labels, ["n=7", "zone=a"]);
    let text = br#"{"Addr":"10.0.0.1:80","Metadata":"free text"}"#;
    assert!(instance(b"", b"b", text).unwrap().is_some());
    assert_eq!(
        instance(b"", b"b", br#"{"Op":1,"Addr":"10.0.0.1:80"}"#),
        Ok(None)
    );
}

#[test]
fn what_is_no_instance_is_told_with_its_key() {
    for (value, words) in [
        (&b""[..], "EOF while parsing"),
        (b"\x00\xff{", "`web-1`: not an instance: expected value"),
        (b"[]", "not an instance"),
        (b"{}", "missing field `address`"),
        (br#"{"adress": "10.0.0.1:80"}"#, "unknown field `adress`"),
        (br#"{"address": "host:80"}"#, "invalid socket address"),
        (
            br#"{"address": "10.0.0.1:80", "weight": 70000}"#,
            "invalid value",
        ),
        (
            br#"{"address": "10.0.0.1:80", "state": "x"}"#,
            "unknown variant `x`",
        ),
        (
            br#"{"Addr": "localhost:80"}"#,
            "`Addr` \"localhost:80\" is no IP:PORT",
        ),
        (br#"{"Op": 5, "Addr": "10.0.0.1:80"}"#, "neither 0 nor 1"),
    ] {
        let fault = instance(b"web/", b"web/web-1", value).unwrap_err();
        assert!(fault.contains(words), "{fault}");
        assert!(fault.starts_with("`web-1`: "), "{fault}");
    }
    assert_eq!(parse::id(b"web/", b"web/"), "web/");
    assert_eq!(parse::id(b"web/", b"web/\xff"), "\\xff");
}

fn change(known: &mut Known, pair: &Pair<'_>) -> bool {
    known.change(pair).unwrap()
}

#[test]
fn keys_are_held_up_to_a_bound() {
    // Whatever comes first: too many, or too much.
    let mut known = Known::new("web/");
    let pairs = (0..100_001).map(|n| (format!("web/{n}").into_bytes(), OWN.to_vec()));
    let full = known.replace(pairs, 1).unwrap_err();
    assert!(full.message.contains("more than 100000 keys"), "{full}");

    let mut known = Known::new("web/");
    let mut revisions = 1..=100_001;
    let full = revisions.find_map(|n| known.change(&put(&format!("web/{n}"), OWN, n)).err());
    assert!(full.unwrap().message.contains("more than 100000 keys"));
    // One that is there already may change.
    assert!(change(&mut known, &put("web/7", OWN, 100_002)));

    // More are not kept of an instance.
    let value = "v".repeat(250);
    let labels: Vec<String> = (0..64).map(|n| format!("\"k{n}\":\"{value}\"")).collect();
    let large = format!(
        "{{\"address\":\"10.0.0.1:80\",\"labels\":{{{}}}}}",
        labels.join(",")
    );
    let mut known = Known::new("web/");
    let mut revisions = 1..100_000;
    let full = revisions.find_map(|n| {
        known
            .change(&put(&format!("web/{n}"), large.as_bytes(), n))
            .err()
    });
    assert!(full.unwrap().message.contains("256 MiB"));
    assert!(known.snapshot().instances.len() < 20_000);
}

#[test]
fn events_change_what_was_read_and_old_ones_do_not() {
    let mut known = Known::new("web/");
    known
        .replace(
            [
                (b"web/a".to_vec(), OWN.to_vec()),
                (b"web/b".to_vec(), NAMING.to_vec()),
            ],
            10,
        )
        .unwrap();
    assert_eq!(ids(&known), ["a", "b"]);
    assert!(
        !change(&mut known, &put("web/old", OWN, 10)),
        "known already"
    );
    assert!(!change(&mut known, &gone("web/a", 9)), "known already");
    assert!(
        !change(&mut known, &put("webs/c", OWN, 11)),
        "another prefix"
    );
    assert!(change(&mut known, &put("web/c", OWN, 11)));
    assert!(change(&mut known, &gone("web/a", 12)));
    assert!(!change(&mut known, &gone("web/a", 13)), "gone already");
    assert_eq!(ids(&known), ["b", "c"]);
    assert_eq!((known.revision(), known.latest()), (10, 13));
    // A reading of all takes the place of all, also if its revision is lower.
    known
        .replace([(b"web/z".to_vec(), OWN.to_vec())], 3)
        .unwrap();
    assert_eq!((ids(&known), known.revision()), (vec!["z".to_owned()], 3));
}

#[test]
fn garbage_over_an_instance_does_not_take_it_away() {
    let mut known = Known::new("web/");
    known
        .replace([(b"web/a".to_vec(), OWN.to_vec())], 1)
        .unwrap();
    assert!(change(&mut known, &put("web/a", b"garbage", 2)));
    assert!(change(&mut known, &put("web/new", b"garbage", 3)));
    let snapshot = known.snapshot();
    assert_eq!(ids(&known), ["a"]);
    assert_eq!(snapshot.left_out.len(), 2);
    assert!(
        snapshot.left_out[0].contains("stays in force"),
        "{snapshot:?}"
    );
    known
        .replace([(b"web/a".to_vec(), b"garbage".to_vec())], 4)
        .unwrap();
    assert_eq!(ids(&known), ["a"], "a full reading is no different");
    assert!(change(&mut known, &put("web/a", NAMING, 5)));
    assert_eq!(known.snapshot().left_out, Vec::<String>::new());
    assert!(change(&mut known, &put("web/a", b"garbage", 6)));
    assert!(change(&mut known, &gone("web/a", 7)));
    assert_eq!(ids(&known), Vec::<String>::new(), "deleted is deleted");
}
