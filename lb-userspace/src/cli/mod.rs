//! `lbctl`: parses verbs, calls the socket, prints tables.

mod args;
mod change;
mod describe;
mod documents;
mod exit;
mod file;
mod get;
mod human;
mod listing;
mod output;
mod parse;
mod status;
mod table;

use std::io::{self, Write};

use clap::{CommandFactory, Parser};

use crate::api::{
    client::Client,
    types::{Request, Response},
};
use args::{Cli, Verb};
use exit::{Exit, Failure};

/// Runs the command line and returns the exit code.
pub fn run() -> u8 {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help for a closed pipe is nobody's loss.
            let _ = error.print();
            return u8::try_from(error.exit_code()).unwrap_or(Exit::Usage as u8);
        }
    };
    let mut out = io::stdout().lock();
    let end = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::from)
        .and_then(|runtime| runtime.block_on(carry_out(cli, &mut out)))
        .and_then(|exit| Ok(out.flush().map(|()| exit)?));
    match end {
        Ok(exit) => exit as u8,
        Err(Failure { exit, message }) => {
            if !message.is_empty() {
                eprintln!("lbctl: {message}");
            }
            exit as u8
        }
    }
}

async fn carry_out(cli: Cli, out: &mut dyn Write) -> Result<Exit, Failure> {
    let daemon = Daemon(Client::new(&cli.socket));
    match cli.verb {
        Verb::Get(get) => get::run(&daemon, get, out).await,
        Verb::Describe(describe) => describe::run(&daemon, describe, out).await,
        Verb::Add(add) => change::add(&daemon, add, out).await,
        Verb::Remove(remove) => change::remove(&daemon, remove, out).await,
        Verb::Set(set) => change::set(&daemon, set, out).await,
        Verb::Drain(mode) => change::drain(&daemon, mode, out).await,
        Verb::Ready(mode) => change::ready(&daemon, mode, out).await,
        Verb::Maint(mode) => change::maintenance(&daemon, mode, out).await,
        Verb::Unset(unset) => change::unset(&daemon, unset, out).await,
        Verb::Check { file } => file::check(&file, out),
        Verb::Diff { file } => file::diff(&daemon, &file, out).await,
        Verb::Apply { file, dry_run } => file::apply(&daemon, &file, dry_run, out).await,
        Verb::Export => file::export(&daemon, out).await,
        Verb::Reload => daemon.done(Request::Reload, out).await,
        Verb::Status(status) => status::run(&daemon, status, out).await,
        Verb::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "lbctl", &mut script);
            out.write_all(&script)?;
            Ok(Exit::Ok)
        }
        Verb::Documents { directory } => {
            documents::write(&directory)?;
            Ok(Exit::Ok)
        }
    }
}

/// The daemon, whose faults become exit codes.
struct Daemon(Client);

impl Daemon {
    async fn call(&self, request: Request) -> Result<Response, Failure> {
        Ok(self.0.call(&request).await?)
    }

    /// For requests that are answered by one line.
    async fn done(&self, request: Request, out: &mut dyn Write) -> Result<Exit, Failure> {
        let Response::Done { message } = self.call(request).await? else {
            return Err(Failure::unexpected());
        };
        writeln!(out, "{message}")?;
        Ok(Exit::Ok)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        super::Cli::command().debug_assert();
    }
}
