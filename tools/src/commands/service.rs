//! `bdsnap service`.

use crate::output;
use bdsnap::device::Control;
use bdsnap::error::Result;
use bdsnap::service;
use bdsnap::service::Report;
use bdsnap::signals::Signals;
use bdsnap::size::human;

/// Arguments of `service`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Example:
  bdsnap service
  systemctl enable --now bdsnap

Makes the portions that stores with a limit above their size ask for, until it is stopped. It may be
stopped and started at any time: all that it knows it asks the kernel for.")]
pub struct Args {}

/// Serves until a signal comes.
pub fn run(_args: &Args, json: bool) -> Result<()> {
    let signals = Signals::install()?;
    let control = Control::open()?;
    service::run(&control, &signals, |report| {
        if json {
            output::json(report);
        } else {
            output::line(text(report));
        }
    })
}

/// A report for people.
fn text(report: &Report) -> String {
    let mut text = format!("{} snapshot {}", report.time, report.snapshot);
    if let Some(place) = &report.place {
        text += &format!(
            ": {} more at {place} in {} ms, {} in all",
            human(report.added),
            report.ms,
            human(report.capacity)
        );
    }
    if let Some(error) = &report.error {
        text += &format!(": {error}");
    }
    text
}
