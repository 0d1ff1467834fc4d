//! `bdsnap track`.

use crate::output;
use bdsnap::abi;
use bdsnap::blockdev::Sysfs;
use bdsnap::device::Control;
use bdsnap::error::Error;
use bdsnap::error::Result;
use bdsnap::size::human;
use bdsnap::size::parse_size;
use bdsnap::tracking::Tracking;
use serde_json::json;
use std::path::PathBuf;
use uuid::Uuid;

/// Arguments of `track`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  bdsnap track /dev/vdb1 /dev/vdc --block-size 64K")]
pub struct Args {
    /// Block devices: whole disks, partitions, logical volumes.
    #[arg(required = true, value_name = "DEV")]
    devices: Vec<PathBuf>,
    /// The unit of tracking: a power of two from 4K to 16M. Default: 64K, or as it is tracked.
    #[arg(long, value_name = "SIZE")]
    block_size: Option<String>,
}

/// Checks a block size; 0 where none is given.
fn block_size(text: Option<&str>) -> Result<u32> {
    let Some(text) = text else {
        return Ok(0);
    };
    let bytes = parse_size(text)?;
    let range = abi::BLOCK_SIZE_MIN..=abi::BLOCK_SIZE_MAX;
    match u32::try_from(bytes) {
        Ok(size) if size.is_power_of_two() && range.contains(&size) => Ok(size),
        _ => Err(Error::usage(format!("{text} is no block size"))
            .code("block-size")
            .hint("a power of two from 4K to 16M")),
    }
}

/// Starts tracking of all the devices, or of none where one fails.
pub fn run(args: &Args, json: bool) -> Result<()> {
    let block_size = block_size(args.block_size.as_deref())?;
    let sysfs = Sysfs::default();
    let devices = args.devices.iter().map(|p| sysfs.resolve(p));
    let devices = devices.collect::<Result<Vec<_>>>()?;
    let control = Control::open()?;
    let tracking = Tracking::start(&control, &devices, block_size)?;
    let answers = tracking.answers.clone();
    tracking.keep();
    let pairs = devices.iter().zip(&answers);
    if json {
        let list: Vec<_> = pairs
            .map(|(device, answer)| {
                json!({
                    "device": device.path(),
                    "block_size": answer.block_size,
                    "generation": Uuid::from_bytes(answer.generation),
                    "number": answer.number,
                })
            })
            .collect();
        output::json(&json!({"devices": list}));
    } else {
        for (device, answer) in pairs {
            output::line(format!(
                "{}: tracked in blocks of {}, generation {}, number {}",
                device.path(),
                human(u64::from(answer.block_size)),
                Uuid::from_bytes(answer.generation),
                answer.number
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_sizes() {
        assert_eq!(block_size(None).unwrap(), 0);
        assert_eq!(block_size(Some("64K")).unwrap(), 65536);
        for bad in ["1K", "3M", "32M", "8G", "x"] {
            assert_eq!(block_size(Some(bad)).unwrap_err().kind.exit_code(), 2);
        }
    }
}
