//! What time it is, by the machine's clock, which somebody may set back, and by the one that always goes on.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A moment to wait from. In a test it is tokio's, whose time may stand still, or jump.
#[must_use]
pub fn instant() -> Instant {
    #[cfg(not(test))]
    return Instant::now();
    #[cfg(test)]
    return tokio::time::Instant::now().into_std();
}

/// Milliseconds since 1970.
#[must_use]
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Seconds since 1970.
#[must_use]
pub fn now_s() -> u64 {
    now_ms() / 1000
}

/// Whether `duration` has passed since `at`, in milliseconds since 1970. A time further ahead than that counts as long ago:
/// it comes from a clock that was set back, which must not stop anything.
#[must_use]
pub fn has_passed(at: u64, duration: Duration) -> bool {
    has_passed_by(now_ms(), at, duration)
}

/// The same at the time `now`.
#[must_use]
pub fn has_passed_by(now: u64, at: u64, duration: Duration) -> bool {
    Duration::from_millis(now.abs_diff(at)) >= duration
}

/// Whether `time` is less than `duration` ago, or less than that ahead.
#[must_use]
pub fn is_recent(time: SystemTime, duration: Duration) -> bool {
    time.elapsed().unwrap_or_else(|ahead| ahead.duration()) < duration
}
