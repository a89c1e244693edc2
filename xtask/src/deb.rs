//! `target/lbd_VERSION_ARCH.deb`: programs, unit, config, man pages, completions.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    Outcome, manual, output, root, run,
    tree::{self, FILE, PROGRAM, Tree},
};

const PAGES: [&str; 6] = [
    "README.md",
    "SECURITY.md",
    "docs/install.md",
    "docs/kernels.md",
    "docs/runbook.md",
    "docs/upgrade.md",
];
const SCRIPTS: [&str; 3] = ["postinst", "prerm", "postrm"];
const SHELLS: [(&str, &str, &str); 6] = [
    ("lbctl.bash", "bash-completion/completions", "lbctl"),
    ("lbd.bash", "bash-completion/completions", "lbd"),
    ("_lbctl", "zsh/vendor-completions", "_lbctl"),
    ("_lbd", "zsh/vendor-completions", "_lbd"),
    ("lbctl.fish", "fish/vendor_completions.d", "lbctl.fish"),
    ("lbd.fish", "fish/vendor_completions.d", "lbd.fish"),
];

/// Makes the package of `target/release`, and says where it is. `version` is the workspace's unless
/// another is asked for.
pub fn package(version: Option<&str>) -> Outcome {
    let version = version.unwrap_or(env!("CARGO_PKG_VERSION"));
    let tree = Tree::new(root().join("target/deb/root"))?;
    programs(&tree)?;
    documents(&tree, version)?;
    let deploy = root().join("deploy");
    tree.copy(
        &deploy.join("systemd/lbd.service"),
        "usr/lib/systemd/system/lbd.service",
        FILE,
    )?;
    tree.copy(&deploy.join("deb/lbd.yaml"), "etc/lbd/lbd.yaml", FILE)?;
    let file = control(&tree, version)?;
    run(Command::new("dpkg-deb")
        .args(["--root-owner-group", "-Zxz", "-z1", "--build"])
        .env("SOURCE_DATE_EPOCH", epoch()?)
        .arg(&tree.0)
        .arg(&file))?;
    println!("{}", file.display());
    Ok(())
}

/// The time of the last commit, so that the same sources give the same package.
fn epoch() -> Result<String, String> {
    let mut git = Command::new("git");
    let time = output(git.current_dir(root()).args(["log", "-1", "--format=%ct"]))?;
    Ok(time.trim().to_owned())
}

fn programs(tree: &Tree) -> Outcome {
    let built = root().join("target/release");
    for (name, place) in [("lbd", "usr/sbin/lbd"), ("lbctl", "usr/bin/lbctl")] {
        tree.copy(&built.join(name), place, PROGRAM)?;
        // Lines of backtraces are for those who develop it.
        run(Command::new("strip").arg(tree.path(place)))?;
    }
    Ok(())
}

fn documents(tree: &Tree, version: &str) -> Outcome {
    let made = Tree::new(root().join("target/deb/documents"))?;
    let lbctl = root().join("target/release/lbctl");
    run(Command::new(lbctl).arg("documents").arg(&made.0))?;
    let readme = tree::read(&root().join("README.md"))?;
    let page = manual::page(&readme, version).ok_or("README.md says nothing of lbd.yaml")?;
    made.write("man/lbd.yaml.5", page, FILE)?;

    for name in made.files()? {
        let Some(page) = name.strip_prefix("man/") else {
            continue;
        };
        let section = page.rsplit('.').next().unwrap_or_default();
        let place = format!("usr/share/man/man{section}/{page}");
        tree.copy(&made.path(&name), &place, FILE)?;
        compress(&tree.path(&place))?;
    }
    for (from, directory, to) in SHELLS {
        let from = made.path(&format!("completions/{from}"));
        tree.copy(&from, &format!("usr/share/{directory}/{to}"), FILE)?;
    }
    pages(tree)?;
    changelog(tree, version)?;
    let copyright = root().join("deploy/deb/copyright");
    tree.copy(&copyright, "usr/share/doc/lbd/copyright", FILE)
}

/// What operators read, as it lies in the repository: the pages lead to each other.
fn pages(tree: &Tree) -> Outcome {
    let mut pages = Vec::from(PAGES.map(str::to_owned));
    let sources = Tree(root().join("docs/discovery")).files()?;
    pages.extend(sources.iter().map(|name| format!("docs/discovery/{name}")));
    for page in pages {
        let place = format!("usr/share/doc/lbd/{page}");
        tree.copy(&root().join(&page), &place, FILE)?;
    }
    Ok(())
}

/// Debian wants one; the history is told elsewhere.
fn changelog(tree: &Tree, version: &str) -> Outcome {
    let mut git = Command::new("git");
    let date = output(git.current_dir(root()).args(["log", "-1", "--format=%cD"]))?;
    let text = format!(
        "lbd ({version}) unstable; urgency=medium\n\n  * As of the repository's history.\n\n \
         -- The maintainers of lbd <lbd@localhost>  {}\n",
        date.trim()
    );
    let place = "usr/share/doc/lbd/changelog";
    tree.write(place, text, FILE)?;
    compress(&tree.path(place))
}

fn compress(path: &Path) -> Outcome {
    run(Command::new("gzip").args(["-9n"]).arg(path))
}

/// `DEBIAN/`, and where the package goes.
fn control(tree: &Tree, version: &str) -> Result<PathBuf, String> {
    let files = tree.files()?;
    let mut sums = String::new();
    for file in files.iter().filter(|file| !file.starts_with("etc/")) {
        let mut md5sum = Command::new("md5sum");
        sums += &output(md5sum.current_dir(&tree.0).arg(file))?;
    }
    let size: u64 = files
        .iter()
        .filter_map(|file| fs::metadata(tree.path(file)).ok())
        .map(|metadata| metadata.len().div_ceil(1024))
        .sum();
    let architecture = match env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => return Err(format!("Debian has no name here for {other}")),
    };
    let glibc = glibc(&tree.path("usr/sbin/lbd"))?;
    let fields = tree::read(&root().join("deploy/deb/control"))?
        .replace("@VERSION@", version)
        .replace("@ARCHITECTURE@", architecture)
        .replace("@GLIBC@", &glibc)
        .replace("@SIZE@", &size.to_string());
    tree.write("DEBIAN/control", fields, FILE)?;
    tree.write("DEBIAN/md5sums", sums, FILE)?;
    tree.write("DEBIAN/conffiles", "/etc/lbd/lbd.yaml\n", FILE)?;
    for script in SCRIPTS {
        let from = root().join("deploy/deb").join(script);
        tree.copy(&from, &format!("DEBIAN/{script}"), PROGRAM)?;
    }
    Ok(root().join(format!("target/lbd_{version}_{architecture}.deb")))
}

/// The oldest C library that has all symbols which a program asks for.
fn glibc(program: &Path) -> Result<String, String> {
    let symbols = output(Command::new("objdump").arg("-T").arg(program))?;
    let versions = symbols.split("GLIBC_").skip(1).filter_map(|rest| {
        let version = rest.split([')', ' ', '\n']).next()?;
        let numbers: Vec<u32> = version.split('.').filter_map(|n| n.parse().ok()).collect();
        Some((numbers, version))
    });
    let newest = versions.max().ok_or("lbd asks for no GLIBC symbol")?;
    Ok(newest.1.to_owned())
}
