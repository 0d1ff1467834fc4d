//! The `bdsnap` tool: a thin command line on top of the library.

#![forbid(unsafe_code)]

mod cli;
mod commands;
mod output;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = match cli::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return output::usage(&error),
    };
    match commands::run(&cli) {
        Ok(()) => output::finish(),
        Err(error) => output::failure(&error, cli.json),
    }
}
