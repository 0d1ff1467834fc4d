//! `bdsnap watch`.

use crate::output;
use bdsnap::abi;
use bdsnap::device::Control;
use bdsnap::error::Error;
use bdsnap::error::Result;
use bdsnap::events::Event;
use bdsnap::events::Events;
use bdsnap::signals::Signals;
use bdsnap::state;
use uuid::Uuid;

/// Arguments of `watch`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Example:
  bdsnap watch
  bdsnap --json watch --until-gone 3f2a…

One line each event, until interrupted. Nothing that happened before is shown: see `bdsnap status`.")]
pub struct Args {
    /// End when this snapshot is deleted (at once, if it is).
    #[arg(long, value_name = "ID")]
    until_gone: Option<String>,
}

/// Prints events.
pub fn run(args: &Args, json: bool) -> Result<()> {
    let signals = Signals::install()?;
    let control = Control::open()?;
    // From before the look at what there is, so that nothing is missed.
    let mut events = Events::open(&control)?;
    let ids = |control: &Control| -> Result<Vec<Uuid>> {
        let list = control.snapshots().map_err(|e| e.on(abi::DEVICE))?;
        Ok(list.into_iter().map(|s| Uuid::from_bytes(s.id)).collect())
    };
    let wanted = match &args.until_gone {
        Some(text) => match text.parse::<Uuid>() {
            Ok(id) if !ids(&control)?.contains(&id) => return Ok(()),
            Ok(id) => Some(id),
            Err(_) => Some(state::find_id(&ids(&control)?, text)?),
        },
        None => None,
    };
    while let Some(event) = events.next(&signals)? {
        if json {
            output::json(&event);
        } else {
            output::line(text(&event));
        }
        if output::is_lost() {
            return Ok(());
        }
        let lost = event.event == "lost";
        let gone = event.event == "snapshot-deleted" && event.snapshot == wanted;
        if let Some(id) = wanted {
            if gone || (lost && !ids(&control)?.contains(&id)) {
                return Ok(());
            }
        }
    }
    // A signal ends it: well, unless there is something that it was to wait for.
    wanted.map_or(Ok(()), |_| Err(Error::interrupted()))
}

/// An event for people.
fn text(event: &Event) -> String {
    let mut text = format!("{} {}", event.time, event.event);
    if let Some(device) = &event.device {
        text += &format!(" {device}");
    }
    if let Some(snapshot) = &event.snapshot {
        text += &format!(" {snapshot}");
    }
    if let Some(number) = event.number {
        text += &format!(" number {number}");
    }
    if let Some(seconds) = event.seconds {
        text += &format!(": full in {seconds} s at this rate");
    }
    if let Some(cause) = event.cause {
        text += &format!(": {cause}");
    }
    text
}
