//! One virtual machine, from its start to its end.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        OnceLock,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use super::{kernels::Kernel, plan::Step};

const MEMORY: &str = "2500M";
/// Until `init` runs.
const BOOT: Duration = Duration::from_secs(300);
/// Of a machine that is not emulated.
const KVM_BOOT: Duration = Duration::from_secs(30);
const KVM: &str = "kvm";
const TCG: &str = "tcg,thread=multi";
/// What the first machine showed to work.
static ACCELERATOR: OnceLock<String> = OnceLock::new();

/// How many processors a machine has: what `LBD_VM_CPUS` says, or 2. One alone never meets code that another
/// is changing, which is where emulated ones fail.
pub fn processors() -> usize {
    let asked = std::env::var("LBD_VM_CPUS").ok();
    let asked = asked.and_then(|number| number.parse().ok());
    asked.filter(|number| *number > 0).unwrap_or(2)
}

/// What became of it.
pub struct Run {
    /// All that came by the serial line of the tests.
    pub lines: Vec<String>,
    /// Why the machine ended otherwise than by `init`.
    pub failure: Option<String>,
    /// It ended by a fault of the emulator's.
    pub is_emulators: bool,
    pub took: Duration,
}

impl Run {
    /// This one, and what went on in another machine.
    pub fn and(self, next: Self) -> Self {
        Self {
            lines: [self.lines, next.lines].concat(),
            took: self.took + next.took,
            ..next
        }
    }
}

/// Boots the kernel with this file system and waits for its end. `say` gets each line as it comes.
///
/// # Errors
/// No qemu, or it cannot start.
pub fn boot(
    kernel: &Kernel,
    initramfs: &Path,
    directory: &Path,
    steps: &[Step],
    say: impl Fn(&str),
) -> Result<Run, String> {
    if let Some(accelerator) = ACCELERATOR.get() {
        return boot_by(accelerator, BOOT, kernel, initramfs, directory, steps, &say);
    }
    let asked = std::env::var("LBD_VM_ACCEL").ok();
    let has_kvm = || {
        File::options()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .is_ok()
    };
    if asked.is_none() && has_kvm() {
        let run = boot_by(KVM, KVM_BOOT, kernel, initramfs, directory, steps, &say)?;
        if !run.lines.is_empty() {
            let _ = ACCELERATOR.set(KVM.to_owned());
            return Ok(run);
        }
        eprintln!("vm: kvm boots no machine here, they are emulated");
    }
    let accelerator = asked.unwrap_or(TCG.to_owned());
    let _ = ACCELERATOR.set(accelerator.clone());
    boot_by(
        &accelerator,
        BOOT,
        kernel,
        initramfs,
        directory,
        steps,
        &say,
    )
}

/// With that accelerator, whose machines say something within `patience`.
fn boot_by(
    accelerator: &str,
    patience: Duration,
    kernel: &Kernel,
    initramfs: &Path,
    directory: &Path,
    steps: &[Step],
    say: &impl Fn(&str),
) -> Result<Run, String> {
    let console = directory.join("console.log");
    let log = directory.join("tests.log");
    let mut log = File::create(&log).map_err(|error| format!("{}: {error}", log.display()))?;
    let began = Instant::now();
    let mut machine = Machine::start(accelerator, kernel, initramfs, &console)?;
    let lines = machine.lines();
    let limits: Duration = steps.iter().map(|step| step.limit).sum();
    let mut run = Run {
        lines: Vec::new(),
        failure: None,
        is_emulators: false,
        took: Duration::ZERO,
    };
    loop {
        let limit = if run.lines.is_empty() {
            patience
        } else {
            BOOT + limits
        };
        match lines.recv_timeout(limit.saturating_sub(began.elapsed())) {
            Ok(line) => {
                say(&line);
                let _ = writeln!(log, "{line}");
                run.lines.push(line);
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                run.failure = Some(format!("hangs: no end within {} s", limit.as_secs()));
                break;
            }
        }
    }
    drop(machine);
    run.took = began.elapsed();
    let ended = run.lines.iter().any(|line| line == "@@ done");
    if let Some(complaint) = complaint(&console) {
        run.failure = Some(complaint);
        run.is_emulators = accelerator != KVM && is_stale_code(&console);
    } else if !ended && run.failure.is_none() {
        run.failure = Some("ended before its steps did".to_owned());
    }
    Ok(run)
}

struct Machine(Child);

impl Machine {
    fn start(
        accelerator: &str,
        kernel: &Kernel,
        initramfs: &Path,
        console: &Path,
    ) -> Result<Self, String> {
        // No machine outlives this process.
        let mut qemu = Command::new("setpriv");
        qemu.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]);
        qemu.args(["-accel", accelerator, "-cpu", "max,la57=off"]);
        qemu.args(["-m", MEMORY, "-nic", "none"]);
        qemu.arg("-smp").arg(processors().to_string());
        qemu.args(["-display", "none", "-monitor", "none", "-no-reboot"]);
        qemu.arg("-serial")
            .arg(format!("file:{}", console.display()));
        qemu.args(["-serial", "stdio"]);
        qemu.arg("-kernel").arg(&kernel.image);
        qemu.arg("-initrd").arg(initramfs);
        // Mitigations cost an emulated processor more than a real one, and keep nobody out here.
        let words = "console=ttyS0 loglevel=5 panic=-1 oops=panic softlockup_panic=1 \
                     mitigations=off rdinit=/init";
        qemu.args(["-append", words]);
        qemu.stdin(Stdio::null()).stdout(Stdio::piped());
        let started = qemu.spawn();
        let started = started.map_err(|error| format!("cannot run qemu-system-x86_64: {error}"))?;
        Ok(Self(started))
    }

    fn lines(&mut self) -> mpsc::Receiver<String> {
        let (sender, receiver) = mpsc::channel();
        let output = self.0.stdout.take().expect("piped");
        thread::spawn(move || {
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line);
                if sender.send(line.trim_end().to_owned()).is_err() {
                    return;
                }
            }
        });
        receiver
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The first line of the kernel's messages that no kernel in good health writes.
fn complaint(console: &Path) -> Option<String> {
    const SIGNS: [&str; 7] = [
        "Kernel panic",
        "BUG:",
        "Oops",
        "WARNING:",
        "detected stall",
        "general protection fault",
        "Out of memory",
    ];
    let bytes = fs::read(console).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let sign = |line: &&str| SIGNS.iter().any(|sign| line.contains(sign));
    text.lines()
        .find(sign)
        .map(|line| format!("kernel: {}", line.trim()))
}

/// Whether a processor met the `int3` that the kernel puts into code which it changes, when it was not there
/// any more, or never found the code as it is now. Emulated processors do, where one translates what another
/// is writing (docs/kernels.md).
fn is_stale_code(console: &Path) -> bool {
    let bytes = fs::read(console).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let is_told = |line: &str| line.contains("int3: 0000") || line.contains("soft lockup");
    let mut lines = text.lines().skip_while(|line| !is_told(line));
    let place = lines.find(|line| line.contains("RIP: "));
    place.is_some_and(|line| line.contains(":bpf_dispatcher_xdp_func+"))
}

/// Why no machine can be started here, if so.
pub fn hindrance() -> Option<String> {
    if std::env::consts::ARCH != "x86_64" {
        return Some("only x86_64 is emulated".to_owned());
    }
    let qemu: Option<PathBuf> = super::initramfs::which("qemu-system-x86_64");
    qemu.is_none()
        .then(|| "no qemu-system-x86_64; `make setup` installs it".to_owned())
}
