//! Our own socket, which only `serve` has.

use rustix::fd::BorrowedFd;
use std::io::IoSlice;
#[cfg(feature = "serve")]
use std::time::Duration;

/// Has our own socket leave it to others when a transfer takes too long, and never block; or not. False where it cannot.
#[cfg(feature = "serve")]
pub(super) fn set_patience(socket: BorrowedFd<'_>, is_patient: bool) -> bool {
    set_silence(socket, if is_patient { Duration::ZERO } else { LONGEST_SILENCE });
    rustix::io::ioctl_fionbio(socket, is_patient).is_ok()
}

/// How long sent bytes may stay unacknowledged before a connection counts as broken. Linux also counts a client that keeps
/// its window shut.
#[cfg(feature = "serve")]
pub(super) const LONGEST_SILENCE: Duration = Duration::from_secs(60);

/// No shorter than this for a stream: TCP needs a few tries, further and further apart, where packets are lost.
#[cfg(feature = "serve")]
const SHORTEST_SILENCE: Duration = Duration::from_secs(3);

/// The same for a stream, whose peers wait to be told that it has gone: three keep-alives.
#[cfg(feature = "serve")]
pub(super) fn silence_of_stream(keep_alive: Duration) -> Duration {
    keep_alive.saturating_mul(3).clamp(SHORTEST_SILENCE, LONGEST_SILENCE)
}

/// Sets that for our own socket; zero leaves it to the system.
#[cfg(feature = "serve")]
pub(super) fn set_silence(socket: BorrowedFd<'_>, limit: Duration) {
    // Not a TCP socket, perhaps.
    let limit = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX);
    let _ = rustix::net::sockopt::set_tcp_user_timeout(socket, limit);
}

#[cfg(not(feature = "serve"))]
pub(super) fn set_patience(_: BorrowedFd<'_>, _: bool) -> bool {
    false
}

#[cfg(feature = "serve")]
pub(super) fn send(socket: BorrowedFd<'_>, pieces: &[IoSlice<'_>]) -> rustix::io::Result<usize> {
    use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};
    sendmsg(socket, pieces, &mut SendAncillaryBuffer::default(), SendFlags::DONTWAIT | SendFlags::NOSIGNAL)
}

#[cfg(not(feature = "serve"))]
pub(super) fn send(_: BorrowedFd<'_>, _: &[IoSlice<'_>]) -> rustix::io::Result<usize> {
    Err(rustix::io::Errno::OPNOTSUPP)
}
