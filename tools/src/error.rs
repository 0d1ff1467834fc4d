//! The one error that the library and the tool report, and the exit codes of the contract.

use std::fmt;
use std::io;

/// The classes of failure that scripts tell apart; each has its exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It failed for another reason than those below.
    Failed,
    /// Wrong usage: the arguments make no sense.
    Usage,
    /// Something is in use.
    Busy,
    /// The snapshot is damaged: its image can't be trusted.
    Damaged,
    /// Change tracking can't answer: take a full backup.
    Tracking,
    /// Not supported on this device, file system or kernel, or not yet.
    Unsupported,
    /// Permission denied.
    Permission,
    /// No such device, snapshot or store.
    NotFound,
}

impl Kind {
    /// The exit code of the tool, as INTERFACE.md has it.
    pub const fn exit_code(self) -> u8 {
        match self {
            Kind::Failed => 1,
            Kind::Usage => 2,
            Kind::Busy => 3,
            Kind::Damaged => 4,
            Kind::Tracking => 5,
            Kind::Unsupported => 6,
            Kind::Permission => 7,
            Kind::NotFound => 8,
        }
    }

    /// The code string where nothing more precise is known.
    pub const fn code(self) -> &'static str {
        match self {
            Kind::Failed => "failed",
            Kind::Usage => "usage",
            Kind::Busy => "busy",
            Kind::Damaged => "damaged",
            Kind::Tracking => "tracking",
            Kind::Unsupported => "unsupported",
            Kind::Permission => "permission",
            Kind::NotFound => "not-found",
        }
    }
}

/// A failure: its class, a stable code, what happened to what, and what to do about it.
#[derive(Clone, Debug)]
pub struct Error {
    /// The class; gives the exit code.
    pub kind: Kind,
    /// A stable string for scripts, more precise than `kind`: "store-full", "module-not-loaded" ...
    pub code: &'static str,
    /// What happened, to which device or file.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

/// Results of this library.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// A failure of class `kind` with the code of its class.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Error {
            kind,
            code: kind.code(),
            message: message.into(),
            hint: None,
        }
    }

    /// The same with a more precise code.
    pub fn code(mut self, code: &'static str) -> Self {
        self.code = code;
        self
    }

    /// The same with advice.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// [`Kind::Failed`].
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(Kind::Failed, message)
    }

    /// [`Kind::Usage`].
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }

    /// [`Kind::Unsupported`].
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(Kind::Unsupported, message)
    }

    /// [`Kind::NotFound`].
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Kind::NotFound, message)
    }

    /// [`Kind::Busy`].
    pub fn busy(message: impl Into<String>) -> Self {
        Self::new(Kind::Busy, message)
    }

    /// The tool was told by a signal to stop.
    pub fn interrupted() -> Self {
        Self::failed("interrupted by a signal").code("interrupted")
    }

    /// An I/O error while doing `what` ("can't open /x"): permission and existence get their class.
    pub fn io(what: impl fmt::Display, error: impl Into<io::Error>) -> Self {
        let error: io::Error = error.into();
        let kind = match error.kind() {
            io::ErrorKind::PermissionDenied => Kind::Permission,
            io::ErrorKind::NotFound => Kind::NotFound,
            io::ErrorKind::ResourceBusy => Kind::Busy,
            _ => Kind::Failed,
        };
        let code = match error.kind() {
            io::ErrorKind::StorageFull => "no-space",
            _ if kind == Kind::Failed => "io",
            _ => kind.code(),
        };
        Self::new(kind, format!("{what}: {error}")).code(code)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if let Some(hint) = &self.hint {
            write!(f, "\n  hint: {hint}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}
