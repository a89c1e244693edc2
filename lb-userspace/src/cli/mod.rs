//! `lbctl`: parses verbs, calls the socket, prints tables.

/// Runs the command line and returns the exit code.
pub fn run() -> u8 {
    todo!()
}
