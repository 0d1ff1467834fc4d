//! Shared by the programs that the VM tests run: `stomp`, `digest`, `twins`,
//! `churn`, `abifuzz`, `jsonget`, `replay`, `passthrough`, `holdstore`.
//!
//! They know bdsnap only from its ABI header and its command line, never from
//! its code: what they check, they check from outside. All `unsafe` is in
//! [`sys`].

pub mod abi;
pub mod digests;
pub mod replica;
pub mod rng;
pub mod sector;
pub mod size;
pub mod sys;
pub mod writelog;

/// Prints the message and ends the program with exit status 1, "the check
/// failed". (Wrong usage is clap's 2.)
#[macro_export]
macro_rules! die {
    ($($arg:tt)*) => {{
        eprintln!("{}: FAILED: {}", $crate::program(), format_args!($($arg)*));
        std::process::exit(1)
    }};
}

/// The name this program was called by, for messages.
pub fn program() -> String {
    std::env::args()
        .next()
        .and_then(|a| a.rsplit('/').next().map(str::to_owned))
        .unwrap_or_default()
}

/// Runs `main`, turning its error into a message and exit status 1.
pub fn run(main: impl FnOnce() -> Result<(), String>) {
    if let Err(e) = main() {
        die!("{e}");
    }
}
