//! Debian's kernels: found in its lists, fetched, unpacked below `target/vm`, not installed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{Outcome, output, root, run, tree};

/// Series, and the suite that has it. What is asked for by a shorter name (`7`) is its newest; `-cloud` behind it
/// asks for Debian's smaller kernel of that series, for virtual machines.
const SUITES: [(&str, &str); 4] = [
    ("5.10", "bullseye"),
    ("6.1", "bookworm"),
    ("6.12", "trixie"),
    ("7", "trixie-backports"),
];
/// The smaller kernel that is tested when nobody says what.
const SMALLER: &str = "6.1-cloud";
const CLOUD: &str = "-cloud";
/// A mirror that is away for a moment is no reason to leave a kernel out.
const RETRIES: &str = "-oAcquire::Retries=3";
const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A kernel of Debian, unpacked.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// As it was asked for.
    pub series: String,
    /// What `uname -r` will say.
    pub release: String,
    pub image: PathBuf,
    /// `…/modules/RELEASE`.
    pub modules: PathBuf,
}

/// What is tested when nobody says what.
pub fn all_series() -> Vec<String> {
    let series = SUITES.map(|(series, _)| series).into_iter();
    series.chain([SMALLER]).map(str::to_owned).collect()
}

/// The newest kernel of a series.
///
/// # Errors
/// Neither fetched before nor to be had now.
pub fn fetch(series: &str) -> Result<Kernel, String> {
    let suite = suite_of(series)?;
    let directory = root().join("target/vm/kernels").join(series);
    if let Some(kernel) = unpacked(series, &directory)? {
        return Ok(kernel);
    }
    let work = root().join("target/vm/apt").join(suite);
    let apt = Apt::new(&work, suite)?;
    let package = apt.newest_image(series)?;
    eprintln!("vm: fetching {package} of Debian's {suite}");
    let packages = apt.with_parts(&package)?;
    let scratch = directory.with_extension("new");
    tree::Tree::new(scratch.clone())?;
    for package in packages {
        apt.unpack(&package, &scratch)?;
    }
    // Renamed, so that nobody ever finds half of it.
    fs::rename(&scratch, &directory).map_err(|e| format!("{}: {e}", directory.display()))?;
    unpacked(series, &directory)?.ok_or_else(|| format!("{package} has no kernel in it"))
}

fn suite_of(series: &str) -> Result<&'static str, String> {
    let is_of = |known: &str| {
        let rest = series.trim_end_matches(CLOUD).strip_prefix(known);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    let found = SUITES.iter().find(|(known, _)| is_of(known));
    found.map(|(_, suite)| *suite).ok_or_else(|| {
        let known = all_series().join(", ");
        format!("Debian has no suite here with Linux {series}; there are {known}")
    })
}

/// What an earlier run left there.
fn unpacked(series: &str, directory: &Path) -> Result<Option<Kernel>, String> {
    for modules in ["lib/modules", "usr/lib/modules"].map(|place| directory.join(place)) {
        let Some(release) = names(&modules).pop() else {
            continue;
        };
        let modules = modules.join(&release);
        let images = [
            directory.join(format!("boot/vmlinuz-{release}")),
            modules.join("vmlinuz"),
        ];
        if let Some(image) = images.into_iter().find(|image| image.exists()) {
            return Ok(Some(Kernel {
                series: series.to_owned(),
                release,
                image,
                modules,
            }));
        }
    }
    Ok(None)
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

/// apt with lists of its own for one suite: nothing else of that suite comes to this machine, and its
/// own apt stays as it is.
struct Apt {
    options: Vec<String>,
    work: PathBuf,
}

impl Apt {
    fn new(work: &Path, suite: &str) -> Result<Self, String> {
        let made = tree::Tree::new(work.to_owned())?;
        made.directory("lists/partial")?;
        made.directory("archives/partial")?;
        let list = format!("deb [signed-by={KEYS}] {} {suite} main\n", mirror()?);
        made.write("list", list, tree::FILE)?;
        let work = work.display().to_string();
        let user = output(Command::new("id").arg("-un"))?;
        let options = [
            format!("Dir::Etc::SourceList={work}/list"),
            "Dir::Etc::SourceParts=-".to_owned(),
            format!("Dir::State::Lists={work}/lists"),
            format!("Dir::Cache={work}"),
            format!("APT::Sandbox::User={}", user.trim()),
            "Acquire::Languages=none".to_owned(),
        ];
        let options = options.into_iter().flat_map(|o| ["-o".to_owned(), o]);
        let apt = Self {
            options: options.collect(),
            work: work.into(),
        };
        output(apt.command("apt-get").args(["update", RETRIES]))?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.arg("-qq").args(&self.options);
        command.current_dir(&self.work);
        command
    }

    /// `linux-image-RELEASE-amd64` with the highest version of a series.
    fn newest_image(&self, series: &str) -> Result<String, String> {
        let listed = output(self.command("apt-cache").args(["pkgnames", "linux-image-"]))?;
        let newest = listed
            .lines()
            .filter_map(|package| Some((version_of(package, series)?, package)))
            .max();
        let newest = newest.ok_or_else(|| format!("no kernel of Linux {series} is listed"))?;
        Ok(newest.1.to_owned())
    }

    /// The package, and those of its release that it is made of since Linux 7.
    fn with_parts(&self, package: &str) -> Result<Vec<String>, String> {
        let release = package.trim_start_matches("linux-image-");
        let shown = output(self.command("apt-cache").args(["show", package]))?;
        let depends = shown.lines().find_map(|l| l.strip_prefix("Depends: "));
        let parts = depends.unwrap_or_default().split([',', '|']);
        let parts = parts.filter_map(|part| part.split_whitespace().next());
        let wanted = ["linux-binary-", "linux-modules-"].map(|kind| kind.to_owned() + release);
        let parts = parts.map(str::to_owned).filter(|p| wanted.contains(p));
        Ok(std::iter::once(package.to_owned()).chain(parts).collect())
    }

    fn unpack(&self, package: &str, to: &Path) -> Result<(), String> {
        output(self.command("apt-get").args(["download", RETRIES, package]))?;
        let prefix = format!("{package}_");
        let file = names(&self.work)
            .into_iter()
            .find(|f| f.starts_with(&prefix));
        let file = self
            .work
            .join(file.ok_or_else(|| format!("{package} was not fetched"))?);
        extract(&file, to)?;
        fs::remove_file(&file).map_err(|e| format!("{}: {e}", file.display()))
    }
}

/// Most of a kernel's package are drivers.
fn extract(package: &Path, to: &Path) -> Outcome {
    let mut archive = Command::new("dpkg-deb");
    archive.arg("--fsys-tarfile").arg(package);
    let archive = archive.stdout(Stdio::piped()).spawn();
    let mut archive = archive.map_err(|error| format!("cannot run dpkg-deb: {error}"))?;
    let mut tar = Command::new("tar");
    tar.arg("-x").arg("-C").arg(to);
    for unused in ["drivers/[!n]*", "fs/*", "sound/*", "arch/*"] {
        tar.arg(format!("--exclude=*/kernel/{unused}"));
    }
    tar.stdin(archive.stdout.take().expect("piped"));
    run(&mut tar)?;
    let status = archive.wait().map_err(|error| error.to_string())?;
    match status.success() {
        true => Ok(()),
        false => Err(format!("{} cannot be read", package.display())),
    }
}

/// The numbers of a kernel's package, if it is of that series, and for this processor without more.
fn version_of(package: &str, series: &str) -> Option<Vec<u32>> {
    let (series, flavour) = match series.strip_suffix(CLOUD) {
        Some(series) => (series, CLOUD),
        None => (series, ""),
    };
    let release = package
        .strip_prefix("linux-image-")?
        .strip_suffix("-amd64")?
        .strip_suffix(flavour)?;
    let rest = release.strip_prefix(series)?;
    if !rest.starts_with('.') {
        return None;
    }
    // `rt`, `cloud`, `unsigned` and the like are others.
    let (numbers, suite) = release.split_once('+').unwrap_or((release, "deb"));
    if !suite.starts_with("deb") || suite.contains('-') {
        return None;
    }
    numbers.split(['.', '-']).map(|n| n.parse().ok()).collect()
}

/// Where apt has Debian from.
fn mirror() -> Result<String, String> {
    let mut apt = Command::new("apt-get");
    apt.args(["indextargets", "--format", "$(ORIGIN) $(LABEL) $(REPO_URI)"]);
    let listed = output(apt.arg("Created-By: Packages"))?;
    let mirror = listed
        .lines()
        .find_map(|l| l.strip_prefix("Debian Debian "));
    mirror
        .map(str::to_owned)
        .ok_or_else(|| "apt has no mirror of Debian".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_their_numbers() {
        let old = version_of("linux-image-6.1.0-9-amd64", "6.1");
        let new = version_of("linux-image-6.1.0-50-amd64", "6.1");
        assert!(old.is_some() && old < new);
        let backport = version_of("linux-image-7.2.12+deb13-amd64", "7");
        assert_eq!(backport, Some(vec![7, 2, 12]));
        let cloud = version_of("linux-image-6.1.0-50-cloud-amd64", "6.1-cloud");
        assert_eq!(cloud, Some(vec![6, 1, 0, 50]));
        assert_eq!(version_of("linux-image-6.1.0-50-amd64", "6.1-cloud"), None);
        for other in [
            "linux-image-6.12.94+deb13-amd64",
            "linux-image-amd64",
            "linux-image-6.1.94+deb13-rt-amd64",
            "linux-image-6.1.0-50-cloud-amd64",
            "linux-image-6.1.0-50-amd64-dbg",
        ] {
            assert_eq!(version_of(other, "6.1"), None, "{other}");
        }
    }

    #[test]
    fn every_series_has_a_suite() {
        assert_eq!(suite_of("7.2"), Ok("trixie-backports"));
        assert_eq!(suite_of("6.12"), Ok("trixie"));
        assert_eq!(suite_of("5.10-cloud"), Ok("bullseye"));
        assert_eq!(suite_of("6.1"), Ok("bookworm"));
        assert!(suite_of("6.11").is_err());
    }
}
