//! Starting change tracking, for several devices or none.

use crate::abi;
use crate::blockdev::BlockDevice;
use crate::blockdev::Sysfs;
use crate::cause;
use crate::device::Control;
use crate::device::DevNum;
use crate::error::Error;
use crate::error::Result;
use crate::size::human;
use crate::state;
use rustix::io::Errno;

/// Devices whose tracking was started together: ended again on drop for those that were not
/// tracked before, unless [`Tracking::keep`] is called.
#[derive(Debug)]
pub struct Tracking<'a> {
    control: &'a Control,
    new: Vec<DevNum>,
    /// What the kernel said of each device, in their order.
    pub answers: Vec<abi::Track>,
}

impl<'a> Tracking<'a> {
    /// Tracks those of `devices` that aren't yet; `block_size` in bytes, 0: as it is, or the
    /// default. A device tracked with another block size is an error.
    pub fn start(control: &'a Control, devices: &[BlockDevice], block_size: u32) -> Result<Self> {
        let known = state::origins(control, &[])?;
        let sysfs = Sysfs::default();
        let mut tracking = Tracking {
            control,
            new: Vec::new(),
            answers: Vec::new(),
        };
        for device in devices {
            let before = known.iter().find(|o| o.num == device.num);
            if let Some(holder) = sysfs.request_dm_above(device.num) {
                return Err(request_dm(device, &holder));
            }
            let answer = control
                .track(device.num, block_size)
                .map_err(|e| match e.errno {
                    Errno::EXIST => Error::failed(format!(
                        "track: {}: it is tracked with another block size{}",
                        device.path(),
                        before.map_or(String::new(), |o| format!(
                            " ({})",
                            human(u64::from(o.block_size))
                        ))
                    ))
                    .code("block-size-differs")
                    .hint("untrack it first, or leave out --block-size"),
                    _ => e.on(device.path()),
                })?;
            tracking.answers.push(answer);
            if before.is_none() {
                tracking.new.push(device.num);
            }
        }
        Ok(tracking)
    }

    /// They stay tracked.
    pub fn keep(mut self) {
        self.new.clear();
    }
}

/// Writes to a path of a request-based device would be missed.
fn request_dm(device: &BlockDevice, holder: &str) -> Error {
    let text = cause::look_up(abi::CAUSE_REQUEST_DM).map_or("", |c| c.text);
    Error::unsupported(format!("track: {}: {text}", device.path()))
        .code("request-dm")
        .hint(format!("track /dev/{holder} instead"))
}

impl Drop for Tracking<'_> {
    fn drop(&mut self) {
        for device in &self.new {
            // Somebody else may have taken a snapshot of it meanwhile: then it stays.
            let _ = self.control.untrack(*device, false);
        }
    }
}
