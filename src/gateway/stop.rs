//! How this process is asked to stop.

use rustix::fd::{AsFd, BorrowedFd};
use std::io::{self, PipeReader};
use std::sync::OnceLock;

/// Readable from the moment on that SIGTERM, SIGINT or SIGHUP has come, once [`catch_signals`] has run. It is never read,
/// so it wakes every stream's `poll`, in whatever thread, however late that looks.
static STOP: OnceLock<PipeReader> = OnceLock::new();

/// From here on a web server's SIGTERM (and SIGINT, and unless it means something else, SIGHUP) asks streams to end instead of
/// killing the process.
///
/// # Errors
/// When there is no file descriptor left for it.
pub fn catch_signals(ends_with_terminal: bool) -> io::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    if STOP.get().is_some() {
        return Ok(());
    }
    let (reader, writer) = io::pipe()?;
    let ignored = ignored_signals();
    // All descriptors before the first signal: one that is caught, and heard by nobody, could not end this process any more.
    let writers = [writer.try_clone()?, writer.try_clone()?, writer];
    let _ = STOP.set(reader);
    // Whoever ignores one (nohup, a shell's background) has a reason.
    let signals = [SIGTERM, SIGINT, SIGHUP].into_iter().zip(writers).take(if ends_with_terminal { 3 } else { 2 });
    for (signal, writer) in signals.filter(|(signal, _)| ignored >> (signal - 1) & 1 == 0) {
        signal_hook::low_level::pipe::register(signal, writer)?;
    }
    Ok(())
}

/// What becomes readable when SIGHUP comes, where it does not ask to stop.
///
/// # Errors
/// When there is no file descriptor left for it.
#[cfg(feature = "serve")]
pub fn catch_hangups() -> io::Result<PipeReader> {
    let (reader, writer) = io::pipe()?;
    signal_hook::low_level::pipe::register(signal_hook::consts::SIGHUP, writer)?;
    rustix::io::ioctl_fionbio(&reader, true)?;
    Ok(reader)
}

/// The signals that this process was started to ignore, a bit for each; none where the system does not tell.
fn ignored_signals() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

/// What becomes readable when this process is asked to stop.
#[must_use]
pub fn stop_signal() -> Option<BorrowedFd<'static>> {
    STOP.get().map(AsFd::as_fd)
}
