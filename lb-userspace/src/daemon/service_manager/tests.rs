use std::{collections::BTreeMap, sync::Mutex as Lock};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::*;

/// A controller that answers what it is told to answer, and nothing before that.
struct Scripted {
    asked: UnboundedSender<Request>,
    answers: Mutex<UnboundedReceiver<Result<Response, Fault>>>,
}

impl Service for Scripted {
    async fn call(&self, request: Request) -> Result<Response, Fault> {
        self.asked.send(request).unwrap();
        self.answers.lock().await.recv().await.unwrap()
    }
}

/// What is told, with the times taken out; and the strings that move the controller.
struct Scene {
    manager: Arc<ServiceManager<Scripted>>,
    told: Arc<Lock<Vec<String>>>,
    asked: UnboundedReceiver<Request>,
    answers: UnboundedSender<Result<Response, Fault>>,
}

impl Scene {
    fn new() -> Self {
        let (asked_sender, asked) = unbounded_channel();
        let (answers, answers_receiver) = unbounded_channel();
        let told = Arc::<Lock<Vec<String>>>::default();
        let heard = told.clone();
        let tell = move |states: &[NotifyState<'_>]| {
            let words = states.iter().map(|state| match state {
                NotifyState::MonotonicUsec(at) => format!("MONOTONIC_USEC>0={}", *at > 0),
                other => other.to_string(),
            });
            let datagram = words.collect::<Vec<_>>().join("\n");
            heard.lock().unwrap().push(datagram);
        };
        let daemon = Scripted {
            asked: asked_sender,
            answers: Mutex::new(answers_receiver),
        };
        let manager = ServiceManager {
            daemon,
            tell: Some(Box::new(tell)),
            watchdog: None,
            reloading: Mutex::default(),
        };
        Self {
            manager: Arc::new(manager),
            told,
            asked,
            answers,
        }
    }

    fn answer(&self, answer: Result<Response, Fault>) {
        self.answers.send(answer).unwrap();
    }

    /// Gives a first sign, and one for every message.
    fn follow(&self) -> UnboundedSender<()> {
        let (ticks, mut due) = unbounded_channel::<()>();
        let manager = self.manager.clone();
        tokio::spawn(async move {
            let mut told = Told::default();
            manager.give_sign(&mut told).await;
            while due.recv().await.is_some() {
                manager.give_sign(&mut told).await;
            }
        });
        ticks
    }

    fn told(&self) -> Vec<String> {
        std::mem::take(&mut *self.told.lock().unwrap())
    }
}

fn status(problems: &[&str]) -> StatusItem {
    StatusItem {
        version: String::new(),
        ready: true,
        problems: problems.iter().map(ToString::to_string).collect(),
        uptime_seconds: 0,
        config_file: None,
        last_reload: "ok".to_owned(),
        interfaces: BTreeMap::new(),
        services: 2,
        backends: 6,
        healthy_backends: 5,
        active_connections: 0,
    }
}

fn well() -> Result<Response, Fault> {
    Ok(Response::Status(status(&[])))
}

fn failed(message: &str) -> Result<Response, Fault> {
    Err(Fault {
        code: FaultCode::Failed,
        message: message.to_owned(),
    })
}

/// Lets every other task run until it waits. The runtime of these tests has one thread.
async fn settle() {
    for _ in 0..32 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn ready_and_alive_only_by_answers_of_the_controller() {
    let mut scene = Scene::new();
    let ticks = scene.follow();
    scene.asked.recv().await.unwrap();
    settle().await;
    assert_eq!(scene.told(), [""; 0], "not ready before the first answer");

    scene.answer(well());
    settle().await;
    let counts = "STATUS=services: 2, healthy backends: 5 of 6";
    assert_eq!(scene.told(), [format!("READY=1\n{counts}")]);

    ticks.send(()).unwrap();
    scene.asked.recv().await.unwrap();
    scene.answer(well());
    settle().await;
    assert_eq!(scene.told(), ["WATCHDOG=1"], "the status is no news");

    // It hangs: ticks come, signs of life do not.
    for _ in 0..5 {
        ticks.send(()).unwrap();
    }
    scene.asked.recv().await.unwrap();
    settle().await;
    assert_eq!(scene.told(), [""; 0]);
    assert!(
        scene.asked.try_recv().is_err(),
        "asked twice while it hangs"
    );

    scene.answer(Ok(Response::Status(status(&[
        "service web\nhas no backends",
    ]))));
    settle().await;
    assert_eq!(
        scene.told(),
        [format!(
            "WATCHDOG=1\n{counts}; degraded: service web has no backends"
        )]
    );
}

#[tokio::test]
async fn a_controller_that_is_gone_gives_no_sign_of_life() {
    let mut scene = Scene::new();
    let ticks = scene.follow();
    scene.answer(well());
    settle().await;
    assert_eq!(scene.told().len(), 1);
    for _ in 0..3 {
        scene.answer(failed("lbd is stopping"));
        ticks.send(()).unwrap();
    }
    settle().await;
    let mut asked = 0;
    while scene.asked.try_recv().is_ok() {
        asked += 1;
    }
    assert_eq!((asked, scene.told()), (4, vec![]));
}

#[tokio::test]
async fn a_reload_is_announced_and_ends_whatever_comes_of_it() {
    let scene = Scene::new();
    let done = Response::Done {
        message: "config file reloaded".to_owned(),
    };
    scene.answer(Ok(done));
    scene.answer(well());
    scene.manager.clone().reload().await;
    let announced = "RELOADING=1\nMONOTONIC_USEC>0=true";
    let counts = "services: 2, healthy backends: 5 of 6";
    assert_eq!(
        scene.told(),
        [announced.to_owned(), format!("READY=1\nSTATUS={counts}")]
    );

    scene.answer(failed("lbd.yaml:3:1:\n  unknown key"));
    scene.answer(well());
    scene.manager.clone().reload().await;
    assert_eq!(
        scene.told(),
        [
            announced.to_owned(),
            format!("READY=1\nSTATUS=reload failed: lbd.yaml:3:1: unknown key; {counts}")
        ]
    );
}

#[tokio::test]
async fn reloads_are_announced_one_after_the_other() {
    let scene = Scene::new();
    tokio::spawn(scene.manager.clone().reload());
    tokio::spawn(scene.manager.clone().reload());
    settle().await;
    assert_eq!(scene.told().len(), 1);
    for _ in 0..2 {
        scene.answer(failed("no"));
        scene.answer(well());
    }
    settle().await;
    let told = scene.told();
    let kinds: Vec<_> = told.iter().map(|t| t.lines().next().unwrap()).collect();
    assert_eq!(kinds, ["READY=1", "RELOADING=1", "READY=1"]);
}

#[test]
fn the_status_line_is_one_line_and_short() {
    let long = "é".repeat(PROBLEMS_SHOWN);
    let text = describe(&status(&["a\nb", &long]));
    assert!(
        text.contains("degraded: a b; éé") && text.ends_with("tells all)"),
        "{text}"
    );
    assert!(
        text.len() < PROBLEMS_SHOWN + 150 && !text.contains('\n'),
        "{text}"
    );
    let starting = StatusItem {
        ready: false,
        ..status(&[])
    };
    assert!(describe(&starting).ends_with("; not ready"));
}
