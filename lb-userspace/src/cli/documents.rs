//! What a package has beside the programs, and takes from their command lines: man pages and
//! completion scripts of `lbctl` and `lbd`.

use std::{
    fs::{self, File},
    io,
    path::Path,
};

use clap::{Command, CommandFactory};
use clap_complete::{Shell, generate_to};
use clap_mangen::Man;

use super::{args::Cli, exit::Failure};
use crate::daemon;

const SHELLS: [Shell; 3] = [Shell::Bash, Shell::Zsh, Shell::Fish];

/// Writes `man/` and `completions/` into a directory.
pub(super) fn write(directory: &Path) -> Result<(), Failure> {
    let (man, completions) = (directory.join("man"), directory.join("completions"));
    fs::create_dir_all(&man)?;
    fs::create_dir_all(&completions)?;
    clap_mangen::generate_to(Cli::command(), &man)?;
    write_daemon_page(&man)?;
    for shell in SHELLS {
        write_completion(shell, Cli::command(), "lbctl", &completions)?;
        write_completion(shell, daemon::command(), "lbd", &completions)?;
    }
    Ok(())
}

/// Daemons have their pages in section 8.
fn write_daemon_page(man: &Path) -> io::Result<()> {
    let page = Man::new(daemon::command()).section("8");
    page.render(&mut File::create(man.join("lbd.8"))?)
}

fn write_completion(
    shell: Shell,
    mut command: Command,
    name: &str,
    directory: &Path,
) -> io::Result<()> {
    generate_to(shell, &mut command, name, directory)?;
    Ok(())
}
