use std::{fs, os::unix::fs::symlink, path::Path};

use tokio::{
    sync::mpsc::UnboundedReceiver,
    task::JoinHandle,
    time::{Instant, timeout},
};

use super::*;
use crate::{
    discovery::{InstanceState, Report, instance::Snapshot},
    testing::Directory,
};

/// A running source and what it reports.
struct Bed {
    directory: Directory,
    reports: UnboundedReceiver<Report>,
    /// What [`Self::ids`] gave last.
    last: Option<Snapshot>,
    task: JoinHandle<()>,
}

impl Drop for Bed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Bed {
    /// Runs a source on `path` in a directory of its own, which `prepare` fills.
    fn start(path: &str, prepare: impl FnOnce(&Path)) -> Self {
        Self::with(path, prepare, |source| {
            // So long that whatever is noticed was told by the kernel.
            source.poll = Duration::from_secs(3600);
        })
    }

    fn with(path: &str, prepare: impl FnOnce(&Path), set: impl FnOnce(&mut File)) -> Self {
        let directory = Directory::new("file-source");
        prepare(directory.path());
        let settings = Settings {
            resync: Duration::ZERO,
            ..Config::usual()
        };
        let (mut feed, reports) = Feed::open(&settings);
        let mut source = File::new(directory.path().join(path));
        set(&mut source);
        let task = tokio::spawn(async move {
            let _ = source.session(&mut feed).await;
        });
        Self {
            directory,
            reports,
            last: None,
            task,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    async fn report(&mut self) -> Report {
        let report = timeout(Duration::from_secs(30), self.reports.recv()).await;
        report.expect("no report").expect("the source lives")
    }

    /// The ids of the next snapshot that is another: of one change the kernel may tell several times.
    async fn ids(&mut self) -> Vec<String> {
        loop {
            match self.report().await {
                Report::Snapshot(snapshot) if self.last.as_ref() == Some(&snapshot) => {}
                Report::Snapshot(snapshot) => {
                    let ids = snapshot.instances.iter().map(|i| i.id.clone()).collect();
                    self.last = Some(snapshot);
                    return ids;
                }
                Report::Failure(failure) => panic!("{failure}"),
            }
        }
    }

    async fn failure(&mut self) -> Failure {
        match self.report().await {
            Report::Snapshot(snapshot) => panic!("{snapshot:?}"),
            Report::Failure(failure) => {
                self.last = None;
                failure
            }
        }
    }

    /// Waits for a snapshot with these ids, past others.
    async fn until(&mut self, wanted: &[&str]) {
        loop {
            if self.ids().await == wanted {
                return;
            }
        }
    }
}

fn text(ids: &[&str]) -> String {
    let mut text = "instances:\n".to_owned();
    for (n, id) in (1..).zip(ids) {
        text += &format!("- {{id: {id}, address: \"10.0.0.{n}:80\"}}\n");
    }
    text
}

#[tokio::test]
async fn a_file_is_read_and_followed_through_renames_and_writes() {
    let mut bed = Bed::start("web.yaml", |d| {
        fs::write(d.join("web.yaml"), text(&["a"])).unwrap();
    });
    assert_eq!(bed.ids().await, ["a"]);
    let (file, new) = (bed.path("web.yaml"), bed.path("new"));
    for ids in [&["a", "b"][..], &["b"], &["a", "b", "c"]] {
        fs::write(&new, text(ids)).unwrap();
        fs::rename(&new, &file).unwrap();
        assert_eq!(bed.ids().await, ids);
    }
    fs::write(&file, text(&["d"])).unwrap();
    assert_eq!(bed.ids().await, ["d"]);
    fs::write(&file, "instances: []").unwrap();
    assert_eq!(bed.ids().await, Vec::<String>::new());
}

/// Half a file may well be valid YAML with half the instances.
#[tokio::test]
async fn a_slow_writer_is_waited_for() {
    use std::io::Write;
    let prepare = |d: &Path| fs::write(d.join("web.yaml"), text(&["a", "b", "c"])).unwrap();
    let mut bed = Bed::with("web.yaml", prepare, |source| {
        source.poll = Duration::from_secs(3600);
        // On a busy machine one rests longer than usual.
        source.writer = Duration::from_secs(30);
    });
    assert_eq!(bed.ids().await.len(), 3);
    let mut file = fs::File::create(bed.path("web.yaml")).unwrap();
    for line in text(&["a", "b", "c", "d"]).split_inclusive('\n') {
        file.write_all(line.as_bytes()).unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    drop(file);
    assert_eq!(bed.ids().await.len(), 4, "nothing was read in between");
}

#[tokio::test]
async fn garbage_nothing_and_no_file_are_failures() {
    let mut bed = Bed::start("web.yaml", |d| {
        fs::write(d.join("web.yaml"), text(&["a"])).unwrap();
    });
    assert_eq!(bed.ids().await, ["a"]);
    let (file, new) = (bed.path("web.yaml"), bed.path("new"));
    let shown = file.display().to_string();
    for (text, class, words) in [
        (
            "",
            Class::Malformed,
            ":1:1: there is nothing in it; to say that there are no",
        ),
        ("instances:\n", Class::Malformed, "`instances` is empty"),
        ("{}", Class::Malformed, ":1:1: the file has no `instances`"),
        (
            "# all gone\n",
            Class::Malformed,
            ":1:1: there is nothing in it",
        ),
        (
            "instances:\n- {adress: \"10.0.0.1:80\"}",
            Class::Malformed,
            ":2:4: unknown key `adress` in instance; did you mean `address`",
        ),
        (
            "instances:\n- {address: \"10.0.0.1:0\"}",
            Class::Malformed,
            ":2:13: `address` 10.0.0.1:0 has port 0",
        ),
        (
            "instances: [{address: \"10.0.0.1:80\", id: a}, {address: \"10.0.0.2:80\", id: a}]",
            Class::Malformed,
            "used twice",
        ),
        (
            "instances: [{address: \"10.0.0.1:80\"",
            Class::Malformed,
            "invalid YAML",
        ),
        ("\u{1}\u{2}", Class::Malformed, "not allowed in YAML"),
    ] {
        fs::write(&new, text).unwrap();
        fs::rename(&new, &file).unwrap();
        let failure = bed.failure().await;
        assert_eq!(failure.class, class, "{failure}");
        assert!(failure.message.contains(words), "{failure}");
        assert!(failure.message.starts_with(&shown), "{failure}");
    }
    fs::write(&new, [0xff, 0xfe, 0]).unwrap();
    fs::rename(&new, &file).unwrap();
    assert!(bed.failure().await.message.contains("no UTF-8"));
    fs::remove_file(&file).unwrap();
    let failure = bed.failure().await;
    assert_eq!(failure.message, format!("there is no {shown}"));
    assert_eq!(failure.class, Class::Missing);
    fs::write(&file, text(&["b"])).unwrap();
    assert_eq!(bed.ids().await, ["b"]);
}

/// As a kubelet does: files are links through `..data`, which is exchanged.
#[tokio::test]
async fn a_mounted_config_map_is_followed() {
    let version = |d: &Path, n: &str, ids: &[&str]| {
        fs::create_dir(d.join(n)).unwrap();
        fs::write(d.join(n).join("web.yaml"), text(ids)).unwrap();
        symlink(n, d.join("..data_tmp")).unwrap();
        fs::rename(d.join("..data_tmp"), d.join("..data")).unwrap();
    };
    for path in ["web.yaml", ""] {
        let mut bed = Bed::start(path, |d| {
            version(d, "..1", &["a"]);
            symlink("..data/web.yaml", d.join("web.yaml")).unwrap();
        });
        let named = |id: &str| match path {
            "" => vec![format!("web.yaml:{id}")],
            _ => vec![id.to_owned()],
        };
        assert_eq!(bed.ids().await, named("a"));
        for (n, id) in [("..2", "b"), ("..3", "c")] {
            version(bed.directory.path(), n, &[id]);
            assert_eq!(bed.ids().await, named(id));
        }
    }
}

#[tokio::test]
async fn a_link_to_a_file_elsewhere_is_followed() {
    let elsewhere = Directory::new("file-source-elsewhere");
    let target = elsewhere.path().join("real.yaml");
    fs::write(&target, text(&["a"])).unwrap();
    let mut bed = Bed::start("web.yaml", |d| {
        symlink(&target, d.join("web.yaml")).unwrap()
    });
    assert_eq!(bed.ids().await, ["a"]);
    fs::write(&target, text(&["b"])).unwrap();
    assert_eq!(bed.ids().await, ["b"]);
}

#[tokio::test]
async fn a_directory_is_all_of_its_files() {
    let mut bed = Bed::start("", |d| {
        fs::write(d.join("a.yaml"), text(&["one"])).unwrap();
        fs::write(
            d.join("b.json"),
            r#"{"instances": [{"address": "10.0.1.1:80"}]}"#,
        )
        .unwrap();
        fs::write(d.join("notes.txt"), "no instances").unwrap();
        fs::write(d.join(".hidden.yaml"), "half wri").unwrap();
    });
    assert_eq!(bed.ids().await, ["a.yaml:one", "b.json:10.0.1.1:80"]);
    fs::remove_file(bed.path("a.yaml")).unwrap();
    bed.until(&["b.json:10.0.1.1:80"]).await;
    fs::write(bed.path("c.yml"), "instances: [").unwrap();
    let failure = bed.failure().await;
    assert!(failure.message.contains("c.yml:"), "{failure}");
    fs::remove_file(bed.path("c.yml")).unwrap();
    bed.until(&["b.json:10.0.1.1:80"]).await;
    fs::remove_file(bed.path("b.json")).unwrap();
    let failure = bed.failure().await;
    assert!(failure.message.contains("ends in .yaml"), "{failure}");
    assert_eq!(failure.class, Class::Missing);
}

#[tokio::test]
async fn looks_find_what_the_kernel_does_not_tell() {
    let mut bed = Bed::with(
        "later/web.yaml",
        |_| {},
        |source| {
            source.watches = false;
            source.poll = Duration::from_millis(20);
        },
    );
    assert_eq!(bed.failure().await.class, Class::Missing);
    fs::create_dir(bed.path("later")).unwrap();
    fs::write(bed.path("new"), text(&["a"])).unwrap();
    fs::rename(bed.path("new"), bed.path("later/web.yaml")).unwrap();
    assert_eq!(bed.ids().await, ["a"]);
    fs::write(bed.path("new"), text(&["b"])).unwrap();
    fs::rename(bed.path("new"), bed.path("later/web.yaml")).unwrap();
    assert_eq!(bed.ids().await, ["b"]);
    // What stays the same is not reported again and again.
    let quiet = timeout(Duration::from_millis(300), bed.reports.recv()).await;
    assert!(quiet.is_err(), "{quiet:?}");
}

#[tokio::test]
async fn a_directory_that_is_removed_and_made_again_is_watched_again() {
    let mut bed = Bed::with(
        "d/web.yaml",
        |d| {
            fs::create_dir(d.join("d")).unwrap();
            fs::write(d.join("d/web.yaml"), text(&["a"])).unwrap();
        },
        |source| source.poll = Duration::from_millis(50),
    );
    assert_eq!(bed.ids().await, ["a"]);
    fs::remove_dir_all(bed.path("d")).unwrap();
    assert_eq!(bed.failure().await.class, Class::Missing);
    fs::create_dir(bed.path("d")).unwrap();
    fs::write(bed.path("new"), text(&["b"])).unwrap();
    fs::rename(bed.path("new"), bed.path("d/web.yaml")).unwrap();
    assert_eq!(bed.ids().await, ["b"]);
}

#[tokio::test]
async fn odd_files_hold_up_nobody() {
    let fifo = |d: &Path| {
        let path = std::ffi::CString::new(d.join("web.yaml").to_str().unwrap()).unwrap();
        // SAFETY: a NUL-terminated path that outlives the call.
        assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
    };
    let mut bed = Bed::start("web.yaml", fifo);
    let began = Instant::now();
    let failure = bed.failure().await;
    assert!(failure.message.contains("no regular file"), "{failure}");
    assert!(began.elapsed() < Duration::from_secs(20));

    let sparse = |d: &Path| {
        let file = fs::File::create(d.join("web.yaml")).unwrap();
        file.set_len(1 << 40).unwrap();
    };
    let mut bed = Bed::start("web.yaml", sparse);
    let failure = bed.failure().await;
    assert!(failure.message.contains("larger than 16 MiB"), "{failure}");
}

/// As where a file system hangs in which a directory is to be watched.
#[tokio::test]
async fn what_hangs_holds_up_nobody() {
    let held = shared::hold();
    let bed = Bed::start("a.yaml", |directory| {
        fs::write(directory.join("a.yaml"), text(&["a"])).unwrap();
    });
    let began = Instant::now();
    // Time goes on for others, on the one thread that there is.
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(began.elapsed() < Duration::from_secs(5));
    drop(held);
    let mut bed = bed;
    let report = timeout(Duration::from_secs(10), bed.reports.recv()).await;
    assert!(
        matches!(report, Ok(Some(Report::Snapshot(_)))),
        "{report:?}"
    );
}

#[tokio::test]
async fn an_event_asks_no_file_system_whether_it_matters() {
    let directory = Directory::new("file-matters");
    let real = directory.path().join("real");
    fs::create_dir(&real).unwrap();
    let file = real.join("a.yaml");
    fs::write(&file, text(&["a"])).unwrap();
    let path = directory.path().join("link.yaml");
    symlink(&file, &path).unwrap();
    let to_file = watch::Watch::begin(&path, WRITER).await.unwrap();
    let to_directory = watch::Watch::begin(&real, WRITER).await.unwrap();
    fs::remove_dir_all(directory.path()).unwrap();
    assert!(to_file.matters(&file));
    assert!(to_directory.matters(&real.join("b.yaml")));
    assert!(!to_directory.matters(&real.join("b.txt")));
}

#[tokio::test]
async fn every_key_of_an_instance_arrives() {
    let mut bed = Bed::start("web.json", |d| {
        let text = r#"{"instances": [{"id": "a", "address": "[2001:db8::1]:80", "weight": 7,
            "labels": {"version": "v1"}, "state": "drain"}]}"#;
        fs::write(d.join("web.json"), text).unwrap();
    });
    let Report::Snapshot(snapshot) = bed.report().await else {
        panic!("a failure");
    };
    let [instance] = &snapshot.instances[..] else {
        panic!("{snapshot:?}");
    };
    assert_eq!(instance.address, "[2001:db8::1]:80".parse().unwrap());
    assert_eq!(instance.weight, Some(7));
    assert_eq!(instance.labels["version"], "v1");
    assert_eq!(instance.state, InstanceState::Drain);
}
