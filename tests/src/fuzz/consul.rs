//! The parser of Consul's answers never panics, and leaves out what has no port, whatever the
//! weights.

use lb_userspace::discovery::consul::parse;

pub fn run(bytes: &[u8]) -> bool {
    let Ok(snapshot) = parse(bytes, 100) else {
        return false;
    };
    let light = parse(bytes, 1).expect("the unit does not matter");
    assert_eq!(light.left_out, snapshot.left_out);
    for (one, hundred) in light.instances.iter().zip(&snapshot.instances) {
        assert_eq!((&one.id, one.address), (&hundred.id, hundred.address));
        assert!(one.weight <= hundred.weight);
    }
    true
}
