//! A file of instances that somebody else writes.

use std::{
    ffi::CString,
    fs::{self, File},
    io::Write,
    os::unix::{fs::symlink, net::UnixListener},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use lb_tests::{
    hostile::{HOSTS, Suspect, Victims},
    net::{Network, Topology},
    servers::ECHO_PORT,
};
use lb_userspace::discovery::Class::{self, Malformed, Missing, Unreachable};

use crate::noise;

/// The file, as the node knows it below `/run`.
const FILE: &str = "lbd/instances/web.yaml";
/// What a file of up to 16 MiB may take while it is read and understood, two million values at most; twice,
/// as a reading that is under way goes on when the source begins anew.
const ROOM: u64 = 448 << 20;
const LARGE: usize = 10 << 20;

type Harm = fn(&Path);

const MALFORMED: &[Class] = &[Malformed];

const HARMS: [(&str, &[Class], Harm); 18] = [
    ("10 MB of noise", MALFORMED, |path| {
        write(path, &noise(LARGE))
    }),
    ("10 MB of zeros", MALFORMED, |path| write(path, &[0; LARGE])),
    ("10 MB of bytes that are no UTF-8", MALFORMED, |path| {
        write(
            path,
            &[b"instances: [\"", &[0xff; LARGE][..], b"\"]"].concat(),
        );
    }),
    ("10 MB of lists in lists", MALFORMED, |path| {
        write(path, &[b'['; LARGE]);
    }),
    ("10 MB of maps in maps", MALFORMED, |path| {
        write(path, &b"{a: ".repeat(LARGE / 4));
    }),
    ("10 MB of instances that are none", MALFORMED, |path| {
        write(
            path,
            &[b"instances:\n", &b"- {}\n".repeat(LARGE / 5)[..]].concat(),
        );
    }),
    ("10 MB of values, each empty", MALFORMED, |path| {
        write(
            path,
            &[b"instances: [", &b"[],".repeat(LARGE / 3)[..], b"]"].concat(),
        );
    }),
    ("more instances than are believed", MALFORMED, |path| {
        let mut text = "instances:\n".to_owned();
        for n in 0..150_000 {
            let [_, a, b, c] = u32::to_be_bytes(n);
            text += &format!("- {{id: i{n}, address: \"10.{a}.{b}.{c}:80\"}}\n");
        }
        write(path, text.as_bytes());
    }),
    ("one word of 10 MB", MALFORMED, |path| {
        write(path, &[b"instances: ", &[b'a'; LARGE][..]].concat());
    }),
    ("aliases of aliases", MALFORMED, |path| {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for n in 1..30 {
            let ten = vec![format!("*a{}", n - 1); 10].join(", ");
            text += &format!("a{n}: &a{n} [{ten}]\n");
        }
        write(path, (text + "instances: *a29\n").as_bytes());
    }),
    ("1 TiB of nothing", MALFORMED, |path| {
        let file = File::create(path).unwrap();
        file.set_len(1 << 40).unwrap();
    }),
    ("a pipe that nobody writes to", MALFORMED, |path| {
        make(path, libc::S_IFIFO, 0);
    }),
    // /dev/zero
    ("a device without end", MALFORMED, |path| {
        make(path, libc::S_IFCHR, libc::makedev(1, 5));
    }),
    ("a socket", &[Unreachable], |path| {
        // Its file stays when the listener goes.
        UnixListener::bind(path).unwrap();
    }),
    ("a link to a device without end", MALFORMED, |path| {
        symlink("/dev/zero", path).unwrap();
    }),
    ("a link to itself", &[Unreachable], |path| {
        symlink("web.yaml", path).unwrap();
    }),
    (
        "a directory of a thousand other files",
        &[Missing],
        |path| {
            fs::create_dir(path).unwrap();
            for n in 0..1000 {
                fs::write(path.join(format!("{n}.txt")), "instances: []").unwrap();
            }
        },
    ),
    ("a directory of large files", MALFORMED, |path| {
        fs::create_dir(path).unwrap();
        let whole = [b"instances: []\n", &b"# nothing\n".repeat(LARGE / 10)[..]].concat();
        for n in 0..9 {
            fs::write(path.join(format!("{n}.yaml")), &whole).unwrap();
        }
        fs::write(path.join("9.yaml"), "instances: [").unwrap();
    }),
];

fn write(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).unwrap();
}

fn make(path: &Path, kind: libc::mode_t, device: libc::dev_t) {
    let path = CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: a NUL-terminated path that outlives the call.
    let made = unsafe { libc::mknod(path.as_ptr(), kind | 0o600, device) };
    assert_eq!(made, 0, "{}", std::io::Error::last_os_error());
}

fn remove(path: &Path) {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path).unwrap(),
        Ok(_) => fs::remove_file(path).unwrap(),
        Err(_) => {}
    }
}

fn good() -> String {
    let lines =
        HOSTS.map(|host| format!("- {{id: i{host}, address: \"10.1.{host}.2:{ECHO_PORT}\"}}\n"));
    format!("instances:\n{}", lines.concat())
}

/// Writes to a file all the time, in place: it is good at every moment, and never the same.
struct Writer {
    ends: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Writer {
    fn start(path: PathBuf) -> Self {
        // Long enough to be written to while it is read.
        let text = good() + &"# a line that says nothing\n".repeat(LARGE / 27);
        fs::write(&path, &text).unwrap();
        let ends = Arc::new(AtomicBool::new(false));
        let told = ends.clone();
        let thread = thread::spawn(move || {
            let mut file = File::options().append(true).open(path).unwrap();
            let mut length = text.len();
            while !told.load(Ordering::Relaxed) {
                file.write_all(b"#\n").unwrap();
                length += 2;
                if length > 15 << 20 {
                    file.set_len(text.len() as u64).unwrap();
                    length = text.len();
                }
            }
        });
        Self {
            ends,
            thread: Some(thread),
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[test]
fn no_file_takes_memory_or_time_from_others() {
    let network = Network::new(Topology::default()).unwrap();
    let path = network.node.run_path(FILE);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, good()).unwrap();
    // A failure that lasts is told again with each `resync`.
    let suspect = Suspect::new("file", format!("path: /run/{FILE}, resync: 2s"));
    let victims = Victims::new(network, vec![suspect]);
    for (what, fitting, harm) in HARMS {
        // Put in its place at once: that it is missing is another failure.
        let new = path.with_extension("new");
        remove(&new);
        harm(&new);
        victims.suffer(
            what,
            |_| fitting,
            ROOM,
            || {
                if path.is_dir() || new.is_dir() {
                    remove(&path);
                }
                fs::rename(&new, &path).unwrap();
            },
        );
    }
    remove(&path);
    let mut writer = None;
    let changes = || writer = Some(Writer::start(path.clone()));
    victims.suffer(
        "a file that changes all the time",
        |_| MALFORMED,
        ROOM,
        changes,
    );
    drop(writer);
    fs::write(&path, good()).unwrap();
    victims.recover();
}
