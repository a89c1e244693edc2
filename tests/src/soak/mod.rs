//! Mixed traffic for as long as you like while things break at random: every byte is checked, every
//! connection that fails is owed to a fault or is a fault of lbd's, and nothing is left behind.

mod judge;
mod leaks;
mod place;
mod plan;
mod stage;
mod summary;
mod traffic;

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};

pub use self::leaks::Count;

use self::{
    judge::Happened,
    leaks::Objects,
    place::Places,
    plan::{Event, QUIET},
    stage::{SCENES, Scene, Stage},
    summary::Report,
    traffic::Traffic,
};
use crate::{eventually, stacks::Losses};

/// Flows of connections that broke stay until they have been idle for as long as the config says.
const FORGOTTEN_WITHIN: Duration = Duration::from_secs(90);

/// What a daemon may hold beyond what it held at first: events, buffers, the allocator's reserves.
const MEMORY_SLACK: u64 = 12 << 20;

#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Of traffic; setting up and looking for leaks come on top.
    pub length: Duration,
    pub seed: u64,
}

/// Runs all scenes at once. `say` is given lines for a person as things happen, and the summary.
///
/// # Errors
/// If anything failed for no known reason, or is left behind, or a scene could not be played.
pub fn run(options: Options, say: impl Fn(String) + Sync) -> anyhow::Result<()> {
    say(format!(
        "soak of {} s, seed {}: {} scenes at once",
        options.length.as_secs(),
        options.seed,
        SCENES.len()
    ));
    let say = &say;
    let reports: Vec<_> = thread::scope(|scope| {
        let scenes: Vec<_> = (0..)
            .zip(SCENES)
            .map(|(number, scene)| {
                // Every scene has faults of its own.
                let seed = options.seed.wrapping_mul(SCENES.len() as u64) + number;
                scope.spawn(move || play(scene, options.length, seed, say))
            })
            .collect();
        let joined = scenes.into_iter().map(|scene| scene.join());
        joined
            .zip(SCENES)
            .map(|(played, scene)| (scene.name, played))
            .collect()
    });
    let mut done = Vec::new();
    let mut broken = Vec::new();
    for (name, played) in reports {
        match played {
            Ok(Ok(report)) => done.push(report),
            Ok(Err(error)) => broken.push(format!("{name}: {error:#}")),
            Err(_) => broken.push(format!("{name}: panic")),
        }
    }
    summary::print(&done, say);
    broken.extend(done.iter().filter_map(Report::is_void));
    let unexplained: usize = done.iter().map(|report| report.unexplained.len()).sum();
    broken.extend(done.iter().flat_map(|report| {
        let leaks = report.leaks.iter();
        leaks.map(|leak| format!("{}: {leak}", report.name))
    }));
    ensure!(
        unexplained == 0 && broken.is_empty(),
        "{unexplained} unattributed failures; {}",
        if broken.is_empty() {
            "nothing left behind".to_owned()
        } else {
            broken.join("; ")
        }
    );
    Ok(())
}

fn play(
    scene: Scene,
    length: Duration,
    seed: u64,
    say: &(impl Fn(String) + Sync),
) -> anyhow::Result<Report> {
    let mut stage = Stage::new(scene)?;
    // What the first ones make stays: the pins of a second start.
    for _ in 0..2 {
        stage.world.daemon.stop()?;
        stage.world.daemon.restart()?;
    }
    stage.world.daemon.wait_all_healthy()?;
    let mut objects = Objects::of(&stage.world.daemon, &stage.world.network)?;
    let before = Count::of(&stage.world.daemon, &stage.world.network)?;
    let memory = stage.world.daemon.resident_bytes()?;

    let places = Places::open(&stage.world.network)?;
    let losses = Losses::open(&stage.world.network)?;
    let client = &stage.world.network.client;
    let (sources, targets) = (stage.sources(), stage.targets());
    let traffic = Traffic::start(client, sources, targets, places, losses, seed);
    let began = Instant::now();
    let note = |text: String| {
        say(format!(
            "{:7.1} s  {:<10}  {text}",
            began.elapsed().as_secs_f64(),
            scene.name
        ));
    };
    let events = plan::plan(seed, length);
    break_things(&mut stage, &events, began, &note, &mut objects)
        .with_context(|| format!("lbd's log:\n{}", tail(&stage.world.daemon.log())))?;
    wait_until(began + length - QUIET);
    // All that was broken is whole again.
    stage.world.daemon.wait_all_healthy()?;
    let whole = Instant::now();
    let so_far = traffic.so_far();
    wait_until((began + length).max(whole + QUIET));
    let mut leaks = Vec::new();
    let record = traffic.stop();
    for backend in 1..=plan::BACKENDS {
        if record.well.get(&backend) <= so_far.well.get(&backend) {
            leaks.push(format!("b{backend} gets nothing after all faults are over"));
        }
    }
    leaks.extend(look_for_leaks(&stage, &before, memory)?);
    objects.add(Objects::of(&stage.world.daemon, &stage.world.network)?);
    let mut history = std::mem::take(&mut stage.history);
    history.stalls.clone_from(&record.stalls);
    history.overruns.clone_from(&record.overruns);
    drop(stage);
    let left = objects.left(Duration::from_secs(30));
    leaks.extend(
        left.into_iter()
            .map(|object| format!("after --cleanup: {object}")),
    );
    Ok(Report::new(scene.name, began, record, history, leaks))
}

/// Every fault begins and ends in its time, one after the other.
fn break_things(
    stage: &mut Stage,
    events: &[Event],
    start: Instant,
    note: &impl Fn(String),
    objects: &mut Objects,
) -> anyhow::Result<()> {
    let mut steps: Vec<_> = (0..events.len())
        .flat_map(|i| {
            let event = &events[i];
            [(event.at, i, true), (event.at + event.lasts, i, false)]
        })
        .collect();
    steps.sort();
    for (at, i, begins) in steps {
        wait_until(start + at);
        let fault = events[i].fault;
        if begins {
            note(format!(
                "{fault}, for {:.1} s",
                events[i].lasts.as_secs_f64()
            ));
            stage.history.faults.push(Happened {
                fault,
                began: Instant::now(),
                ended: None,
            });
            stage.begin(fault).with_context(|| fault.to_string())?;
            continue;
        }
        stage
            .end(fault)
            .with_context(|| format!("end of {fault}"))?;
        let now = Instant::now();
        let mut faults = stage.history.faults.iter_mut();
        if let Some(open) = faults.find(|open| open.fault == fault && open.ended.is_none()) {
            open.ended = Some(now);
        }
        if matches!(
            fault,
            plan::Fault::DaemonKilled | plan::Fault::DaemonStopped
        ) {
            objects.add(Objects::of(&stage.world.daemon, &stage.world.network)?);
        }
    }
    Ok(())
}

fn wait_until(time: Instant) {
    thread::sleep(time.saturating_duration_since(Instant::now()));
}

fn tail(log: &str) -> String {
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

/// What is more than before, though nothing goes on any more.
fn look_for_leaks(stage: &Stage, before: &Count, memory: u64) -> anyhow::Result<Vec<String>> {
    let (daemon, network) = (&stage.world.daemon, &stage.world.network);
    let mut leaks = Vec::new();
    let mut left = Vec::new();
    let gone = eventually(FORGOTTEN_WITHIN, || {
        left.clear();
        for map in ["FLOWS4", "FLOWS6"] {
            let entries = leaks::map_entries(daemon, map);
            if !entries.as_ref().is_ok_and(|entries| *entries == 0) {
                left.push(format!("{map} {entries:?}"));
            }
        }
        left.is_empty()
    });
    if !gone {
        leaks.push(format!("flows are left: {}", left.join(", ")));
    }
    let mut more = Vec::new();
    eventually(Duration::from_secs(20), || {
        more = match Count::of(daemon, network) {
            Ok(count) => count.beyond(before),
            Err(error) => vec![format!("{error:#}")],
        };
        more.is_empty()
    });
    leaks.extend(more);
    let now = daemon.resident_bytes()?;
    if now > memory + MEMORY_SLACK {
        leaks.push(format!(
            "{} KiB resident, {} at first",
            now / 1024,
            memory / 1024
        ));
    }
    for backend in daemon.backends()? {
        if backend.active_connections != 0 {
            leaks.push(format!(
                "{}/{} counts {} open connections",
                backend.service, backend.address, backend.active_connections
            ));
        }
    }
    Ok(leaks)
}
