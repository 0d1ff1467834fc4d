//! Signals that ask the tool to stop: noted, and looked at where stopping is safe.

use crate::error::Error;
use crate::error::Result;
use signal_hook::consts::SIGHUP;
use signal_hook::consts::SIGINT;
use signal_hook::consts::SIGTERM;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::sync::Arc;

/// Notes SIGINT, SIGTERM and SIGHUP from when it is made, until the process ends.
#[derive(Clone, Debug)]
pub struct Signals {
    stop: Arc<AtomicBool>,
}

impl Signals {
    /// Installs the handlers.
    pub fn install() -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&stop))
                .map_err(|e| Error::io("can't handle signals", e))?;
        }
        Ok(Signals { stop })
    }

    /// One that no signal reaches.
    pub fn inert() -> Self {
        Signals {
            stop: Arc::new(AtomicBool::new(false)),
        }
    }

    /// Whether a signal came.
    pub fn stop(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// An error if a signal came.
    pub fn check(&self) -> Result<()> {
        if self.stop() {
            return Err(Error::interrupted());
        }
        Ok(())
    }
}
