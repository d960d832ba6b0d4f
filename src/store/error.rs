//! Why the store could not do what was wanted.

#[cfg(feature = "redis")]
use super::remote::Remote;
use std::fmt;
use std::io;

/// Why the store could not do it. The status codes are the protocols' to choose; [`fmt::Display`] is the sentence for
/// whoever sent the request, which names no path; [`Error::log`] tells the operator the cause.
#[derive(Debug)]
pub enum Error {
    /// The disk, or the quota on it, is full.
    DiskFull(io::Error),
    /// One recipient has too much waiting.
    QueueFull(Full),
    /// A log holds as much as it may.
    TopicFull(Full),
    /// All logs together hold as much as they may.
    DataFull(Full),
    /// The data folder was made by another version of the relay.
    OtherVersion,
    /// Somebody has held a lock for much too long.
    Busy,
    /// The process, or the machine, has too many files open.
    NoDescriptors(io::Error),
    /// The data folder cannot be used by this process.
    Unusable(io::Error),
    /// Any other failure.
    Io(io::Error),
    /// `data/secret` is too short to be a secret.
    BadSecret,
    /// `data/ptth.json` cannot be read as what it should be.
    BadRegistry(serde_json::Error),
    /// The Redis cannot be used, or not now.
    #[cfg(feature = "redis")]
    Remote(Remote),
}

/// A queue's limit that is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full {
    /// The limit in bytes.
    pub limit: u64,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DiskFull(_) => {
                f.write_str("The relay's disk is full: nothing was stored. Try again once there is room.")
            }
            Self::QueueFull(Full { limit }) => {
                write!(f, "More than {limit} bytes are waiting for this recipient: wait until it has read some.")
            }
            Self::TopicFull(Full { limit }) => {
                write!(f, "The log holds its {limit} bytes (RELAY_MAX_TOPIC): wait until older messages are gone.")
            }
            Self::DataFull(Full { limit }) => write!(
                f,
                "The relay is full: it holds its {limit} bytes (RELAY_MAX_DATA). Try again once older messages are gone."
            ),
            Self::OtherVersion => f.write_str(
                "The relay's data folder was made by another version of the relay: remove what is in it, but for secret, settings.conf and ptth.json. Nothing else in it lives longer than a day.",
            ),
            Self::NoDescriptors(_) => f.write_str("The relay has too many files open: try again later."),
            Self::Busy => f.write_str("Another process of the relay does not let go of a lock: try again later."),
            Self::Unusable(cause) => write!(
                f,
                "The relay cannot use its data folder ({}): make it a folder that the web server's user may write, or set RELAY_DATA_DIR.",
                cause.kind()
            ),
            Self::Io(cause) => {
                write!(f, "The relay's storage failed ({}): see the web server's error log.", cause.kind())
            }
            Self::BadSecret => f.write_str(
                "The file 'secret' in the relay's data folder is damaged: remove it, and a new one is made.",
            ),
            // Where, but not what: a stranger may be reading this.
            Self::BadRegistry(cause) => write!(
                f,
                "The file 'ptth.json' in the relay's data folder cannot be read from line {}, column {} on.",
                cause.line(),
                cause.column()
            ),
            #[cfg(feature = "redis")]
            Self::Remote(remote) => remote.fmt(f),
        }
    }
}

impl std::error::Error for Error {}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        use io::ErrorKind::{
            FileTooLarge, IsADirectory, NotADirectory, PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull,
        };
        use rustix::io::Errno;
        let is_any_of =
            |errors: [Errno; 2]| errors.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()));
        match error.kind() {
            _ if is_any_of([Errno::MFILE, Errno::NFILE]) => Self::NoDescriptors(error),
            StorageFull | QuotaExceeded | FileTooLarge => Self::DiskFull(error),
            PermissionDenied | ReadOnlyFilesystem | NotADirectory | IsADirectory => Self::Unusable(error),
            _ => Self::Io(error),
        }
    }
}

impl From<rustix::io::Errno> for Error {
    fn from(error: rustix::io::Errno) -> Self {
        io::Error::from(error).into()
    }
}

#[cfg(feature = "redis")]
impl From<Remote> for Error {
    fn from(remote: Remote) -> Self {
        Self::Remote(remote)
    }
}

impl Error {
    /// Whether it may pass by itself, so that whoever listens goes on: a home on another machine is away at times.
    #[must_use]
    pub fn passes(&self) -> bool {
        #[cfg(feature = "redis")]
        return matches!(self, Self::Remote(_));
        #[cfg(not(feature = "redis"))]
        false
    }

    /// Tells the operator, on stderr, which web servers write to their error log.
    pub fn log(&self) {
        match self {
            Self::QueueFull(_) | Self::TopicFull(_) | Self::DataFull(_) => {}
            Self::DiskFull(cause) | Self::NoDescriptors(cause) | Self::Unusable(cause) | Self::Io(cause) => {
                say!("uhst-relay: {self} [{cause}]");
            }
            Self::BadRegistry(cause) => say!("uhst-relay: {self} [{cause}]"),
            Self::Busy | Self::BadSecret | Self::OtherVersion => say!("uhst-relay: {self}"),
            #[cfg(feature = "redis")]
            Self::Remote(Remote { cause, .. }) => say!("uhst-relay: {self} [{cause}]"),
        }
    }
}
