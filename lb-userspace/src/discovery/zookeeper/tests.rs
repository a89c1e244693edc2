use super::{known::*, parse::instance, *};
use crate::discovery::InstanceState;

fn registered(more: &str) -> String {
    format!(
        "{{\"name\":\"web\",\"id\":\"x\",\"address\":\"10.1.1.2\",\"port\":8080,\
         \"serviceType\":\"DYNAMIC\",\"registrationTimeUTC\":1700000000000,\
         \"uriSpec\":{{\"parts\":[]}}{more}}}"
    )
}

fn read(more: &str) -> crate::discovery::Instance {
    instance("web-1", registered(more).as_bytes(), false).unwrap()
}

#[test]
fn what_curator_writes_is_understood() {
    let one = read(",\"sslPort\":null,\"payload\":null,\"enabled\":true");
    assert_eq!((&*one.id, one.weight), ("web-1", None));
    assert_eq!(one.address, "10.1.1.2:8080".parse().unwrap());
    assert_eq!(one.state, InstanceState::Up);
    assert_eq!(read("").state, InstanceState::Up, "as before Curator 3");
    assert_eq!(read(",\"enabled\":false").state, InstanceState::Drain);
    let text = registered(",\"sslPort\":8443");
    let one = instance("a", text.as_bytes(), true).unwrap();
    assert_eq!(one.address.port(), 8443);

    let one =
        read(",\"payload\":{\"@class\":\"x.Y\",\"weight\":7,\"version\":\"v2\",\"list\":[1]}");
    assert_eq!(one.weight, Some(7));
    let labels: Vec<_> = one.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    assert_eq!(labels, ["version=v2"]);
    // Spring Cloud's.
    let one = read(
        ",\"payload\":{\"@class\":\"x.ZookeeperInstance\",\"id\":\"web-1\",\"name\":\"web\",\
         \"metadata\":{\"instance_status\":\"OUT_OF_SERVICE\",\"zone\":\"a\",\"weight\":\"30\"}}",
    );
    assert_eq!((one.weight, one.state), (Some(30), InstanceState::Drain));
    assert_eq!(one.labels.into_keys().collect::<Vec<_>>(), ["zone"]);
    assert!(read(",\"payload\":\"a text\"").labels.is_empty());
    let down = read(",\"enabled\":false,\"payload\":{\"state\":\"down\"}");
    assert_eq!(down.state, InstanceState::Down, "the worse counts");
}

#[test]
fn what_is_no_instance_is_told_with_its_node() {
    for (data, words) in [
        ("", "EOF while parsing"),
        ("\u{1}{", "not an instance: expected value"),
        ("{}", "missing field `address`"),
        (
            "{\"address\":\"web.example\",\"port\":1}",
            "names are not resolved",
        ),
        ("{\"address\":\"10.0.0.1\"}", "it has no `port`"),
        ("{\"address\":\"10.0.0.1\",\"port\":70000}", "invalid value"),
    ] {
        let fault = instance("n", data.as_bytes(), false).unwrap_err();
        assert!(fault.contains(words), "{fault}");
        assert!(fault.starts_with("`n`: "), "{fault}");
    }
    let fault = instance("n", registered("").as_bytes(), true).unwrap_err();
    assert!(fault.contains("it has no `sslPort`"), "{fault}");
}

#[test]
fn garbage_over_an_instance_does_not_take_it_away() {
    let mut known = Known::new(false);
    let good = registered("");
    known.read("a", Some(good.as_bytes())).unwrap();
    known.read("b", Some(good.as_bytes())).unwrap();
    known.read("a", Some(b"garbage")).unwrap();
    known.read("c", Some(b"garbage")).unwrap();
    let snapshot = known.snapshot();
    assert_eq!((snapshot.instances.len(), snapshot.left_out.len()), (2, 2));
    assert!(snapshot.left_out[0].contains("stays in force"));
    known.read("a", None).unwrap();
    known.keep(&["c".to_owned()].into());
    assert_eq!(known.snapshot().instances, []);
    assert_eq!(known.snapshot().left_out.len(), 1);
}

#[test]
fn nodes_are_held_up_to_a_bound() {
    let mut known = Known::new(false);
    let labels: Vec<String> = (0..2000).map(|n| format!("\"k{n}\":\"v\"")).collect();
    let large = registered(&format!(",\"payload\":{{{}}}", labels.join(",")));
    let mut nodes = 0..100_000;
    let full = nodes.find_map(|n| known.read(&n.to_string(), Some(large.as_bytes())).err());
    let full = full.unwrap();
    assert!(full.message.contains("256 MiB"), "{full}");
    let held = known.snapshot().instances;
    let labels: usize = held.iter().map(|instance| instance.labels.len()).sum();
    assert!(labels < 5_000_000, "{labels}");
    // Those that no backend can have take nothing.
    let odd = registered(&format!(
        ",\"payload\":{{\"a b\":\"{}\"}}",
        "x".repeat(1 << 20)
    ));
    let mut known = Known::new(false);
    (0..300).for_each(|n| known.read(&n.to_string(), Some(odd.as_bytes())).unwrap());
    assert_eq!(known.snapshot().instances.len(), 300);
}

#[test]
fn an_event_is_of_a_child() {
    for (path, of, name) in [
        ("/services/web", "/services/web/a", Some("a")),
        ("/services/web", "/services/web", None),
        ("/services/web", "/services/web/a/b", None),
        ("/services/web", "/services/web2/a", None),
        ("/services/web", "/services/web/", None),
        ("/", "/a", Some("a")),
    ] {
        assert_eq!(child(path, of), name, "{of}");
    }
}
