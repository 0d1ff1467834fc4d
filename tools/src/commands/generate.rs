//! `bdsnap completions` and `bdsnap man`, for packagers.

use crate::cli::Cli;
use bdsnap::error::Error;
use bdsnap::error::Result;
use clap::CommandFactory;
use clap_complete::Shell;
use std::path::PathBuf;

/// Arguments of `completions`.
#[derive(clap::Args, Debug)]
pub struct CompletionArgs {
    /// The shell.
    #[arg(value_enum)]
    shell: Shell,
}

/// Arguments of `man`.
#[derive(clap::Args, Debug)]
pub struct ManArgs {
    /// Where the pages go; it must exist.
    dir: PathBuf,
}

/// Prints completions for a shell to standard output.
pub fn completions(args: &CompletionArgs) {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "bdsnap", &mut text);
    crate::output::raw(&text);
}

/// Writes `bdsnap.8` and a page for each command.
pub fn man(args: &ManArgs) -> Result<()> {
    // Hidden commands have no page.
    write(
        &args.dir,
        Cli::command().disable_help_subcommand(true),
        "bdsnap",
    )
}

/// Writes the page of a command and those of its subcommands.
fn write(dir: &std::path::Path, command: clap::Command, name: &str) -> Result<()> {
    let mut command = command.name(name.to_owned()).display_name(name.to_owned());
    command.build();
    for sub in command.get_subcommands().filter(|c| !c.is_hide_set()) {
        let sub_name = format!("{name}-{}", sub.get_name());
        write(dir, sub.clone().disable_help_subcommand(true), &sub_name)?;
    }
    let page = clap_mangen::Man::new(command).section("8").manual("bdsnap");
    let mut text = Vec::new();
    let path = dir.join(format!("{name}.8"));
    page.render(&mut text)
        .and_then(|()| std::fs::write(&path, &text))
        .map_err(|e| Error::io(format!("can't write {}", path.display()), e))
}
