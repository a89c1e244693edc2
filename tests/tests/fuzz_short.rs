//! A short run of every fuzz target: the inputs that are kept, and some thousand random changes of
//! these. `make fuzz` is the long one.

use std::{
    collections::BTreeSet,
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
};

use lb_tests::{
    fuzz::{TARGETS, Target, mutate::mutated},
    note,
    packets::{
        Action, Outcome, Runner as _, Side, Step, cases, differ::is_handled, laws, slice::Slice,
    },
};
use rand::{SeedableRng, rngs::StdRng};

/// Of `LBT_FUZZ_SEED`, where that is not set.
const SEED: u64 = 1;

macro_rules! short {
    ($($name:ident: $runs:literal),* $(,)?) => {
        $(
            #[test]
            fn $name() {
                short(stringify!($name), $runs);
            }
        )*
        /// The targets that are run here.
        const RUN: &[&str] = &[$(stringify!($name)),*];
    };
}

// A second each, or two.
short!(
    config: 6000,
    consul: 20_000,
    dns: 20_000,
    etcd: 20_000,
    eureka: 20_000,
    http: 6000,
    instances: 20_000,
    kubernetes: 6000,
    packet: 6000,
    relay: 20_000,
    request: 4000,
    resolv: 20_000,
    state: 6000,
    zookeeper: 20_000,
);

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

/// What is kept for a target in `seeds` or `corpus`, in order.
fn kept(kind: &str, target: &str) -> Vec<(String, Vec<u8>)> {
    let directory = directory().join(kind).join(target);
    let Ok(entries) = fs::read_dir(&directory) else {
        return Vec::new();
    };
    let mut all: Vec<_> = entries
        .map(|entry| {
            let path = entry.expect("an entry").path();
            let bytes = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            (
                format!("{kind}/{target}/{}", path.file_name().unwrap().display()),
                bytes,
            )
        })
        .collect();
    all.sort();
    all
}

fn short(name: &str, runs: usize) {
    let target = TARGETS.iter().find(|target| target.name == name);
    let target = target.unwrap_or_else(|| panic!("no target {name}"));
    let seeds = kept("seeds", name);
    assert!(!seeds.is_empty(), "{name} has no seeds");
    let understood = seeds
        .iter()
        .filter(|(file, bytes)| run(target, file, bytes))
        .count();
    // Some are there for what is wrong with them.
    assert!(
        2 * understood >= seeds.len(),
        "{name}: {understood} of {} seeds",
        seeds.len()
    );
    // Most of what fuzzing found is refused, each for another reason, and so would its changes be.
    let mut corpus = kept("corpus", name);
    corpus.retain(|(file, bytes)| run(target, file, bytes));

    let pool: Vec<_> = seeds
        .into_iter()
        .chain(corpus)
        .map(|(_, bytes)| bytes)
        .collect();
    let seed = match std::env::var("LBT_FUZZ_SEED") {
        Ok(seed) => seed.parse().expect("LBT_FUZZ_SEED is a number"),
        Err(_) => SEED,
    };
    let mut rng = StdRng::seed_from_u64(seed);
    let mut deep = 0;
    for number in 0..runs {
        let input = mutated(&mut rng, &pool);
        let which = format!("LBT_FUZZ_SEED={seed}, change {number}");
        deep += usize::from(run(target, &which, &input));
    }
    note(format!(
        "{name}: {} kept inputs, {deep} of {runs} changed ones understood",
        pool.len()
    ));
    // Inputs that are all refused at once would pass too.
    assert!(
        deep >= runs / 20,
        "{name}: {deep} of {runs} inputs were understood"
    );
}

/// Whether the target understood the input; a panic of its names the input.
fn run(target: &Target, which: &str, input: &[u8]) -> bool {
    let ran = catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
    ran.unwrap_or_else(|_| {
        let hex: String = input.iter().map(|byte| format!("{byte:02x}")).collect();
        let text = input.escape_ascii();
        panic!(
            "{}: {which}:\n{text}\nas hexadecimal digits (xxd -r -p):\n{hex}",
            target.name
        )
    })
}

fn names(of: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(directory().join(of)).expect("a directory");
    let names = entries.map(|entry| entry.expect("an entry").path());
    names
        .map(|path| {
            path.file_stem()
                .expect("a name")
                .to_string_lossy()
                .into_owned()
        })
        .collect()
}

#[test]
fn every_target_is_known_everywhere() {
    let known: BTreeSet<String> = TARGETS
        .iter()
        .map(|target| target.name.to_owned())
        .collect();
    let run: BTreeSet<String> = RUN.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(run, known, "run here");
    assert_eq!(names("fuzz_targets"), known, "in fuzz_targets/");
    assert_eq!(names("seeds"), known, "in seeds/");
    if directory().join("corpus").is_dir() {
        assert!(names("corpus").is_subset(&known), "in corpus/");
    }
    let manifest = fs::read_to_string(directory().join("Cargo.toml")).expect("a manifest");
    for name in &known {
        let bin = format!("name = \"{name}\"\npath = \"fuzz_targets/{name}.rs\"");
        assert!(manifest.contains(&bin), "{name} is no [[bin]]");
        let file = directory().join(format!("fuzz_targets/{name}.rs"));
        let text = fs::read_to_string(file).expect("a target");
        assert!(
            text.contains(&format!("lb_tests::fuzz::{name}::run(bytes)")),
            "{name}: {text}"
        );
    }
}

/// What each packet of the case table becomes, in the world that the laws know.
fn outcomes(mut see: impl FnMut(&str, Side, &[u8], Outcome)) {
    let mut slice = Slice::default();
    for case in cases::all() {
        if case.steps.iter().any(|s| matches!(s, Step::Pool { .. })) {
            continue;
        }
        slice.reset();
        for step in &case.steps {
            let (side, packet) = match step {
                Step::FromClient(packet, _) => (Side::Client, packet),
                Step::FromBackend(packet, _) => (Side::Backend, packet),
                other => {
                    other.set_up(&mut slice);
                    continue;
                }
            };
            let outcome = slice.take(side, packet);
            see(&case.name, side, packet, outcome);
        }
    }
}

/// What is demanded of random packets holds of the case table's.
#[test]
fn the_laws_hold_of_all_cases() {
    let mut faults = Vec::new();
    outcomes(|name, side, packet, outcome| {
        if let Err(fault) = laws::check(side, packet, &outcome) {
            faults.push(format!("{name}: {fault}"));
        }
    });
    assert!(
        faults.is_empty(),
        "{} broken:\n{}",
        faults.len(),
        faults.join("\n")
    );
}

/// What one packet does not tell: the bits in which the sources of a tunnel differ.
fn is_unknown(case: &str) -> bool {
    case == "v6_tunnel_sources_are_spread"
}

fn is_v6_fragment(frame: &[u8]) -> bool {
    frame[12..14] == [0x86, 0xdd] && frame[20] == 44
}

/// Of no packet that leaves may a bit be another, or a byte more or less be there.
#[test]
fn the_laws_leave_no_bit_free() {
    let mut free = Vec::new();
    let (mut tried, mut packets) = (0, 0);
    outcomes(|name, side, packet, outcome| {
        if outcome.action == Action::Drop || !is_handled(packet, &outcome) {
            return;
        }
        let outer = outcome.packet.len() == packet.len() + 40;
        // Every fifth byte, of each packet others.
        packets += 1;
        for at in (packets % 5..outcome.packet.len().min(120)).step_by(5) {
            // A tunnel's flow label is the flow's hash.
            let label = match at {
                15 if outer => 0x0f,
                16 | 17 if outer => 0xff,
                _ => 0,
            };
            // A fragment has no checksum over its addresses, and several may be those of backends.
            if is_v6_fragment(&outcome.packet) && (22..54).contains(&at) {
                continue;
            }
            // One of its bits: all of them, in all bytes, take forty times as long.
            let bit = 1 << ((at + packet.len()) % 8);
            if bit & label != 0 || is_unknown(name) {
                continue;
            }
            let mut other = outcome.clone();
            other.packet[at] ^= bit;
            tried += 1;
            if laws::check(side, packet, &other).is_ok() {
                free.push(format!("{name}: byte {at}, bit {bit:#04x}"));
            }
        }
        let mut longer = outcome.clone();
        longer.packet.push(0);
        let mut shorter = outcome.clone();
        shorter.packet.pop();
        for other in [longer, shorter] {
            if laws::check(side, packet, &other).is_ok() {
                free.push(format!("{name}: {} bytes", other.packet.len()));
            }
        }
    });
    assert!(tried > 50_000, "{tried}");
    assert!(
        free.is_empty(),
        "{} of {tried} free:\n{}",
        free.len(),
        free.join("\n")
    );
}
