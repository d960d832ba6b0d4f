//! How much `serve` takes, and for how long.

use std::io;
use std::sync::Arc;
use std::time::Duration;

/// The longest head of a request, and how much of an answer may wait in memory for a socket.
pub(super) const HEAD_SIZE: usize = 16 * 1024;
/// How much of an answer over HTTP/2 may wait in memory for its client.
pub(super) const SEND_SIZE: usize = 64 * 1024;
/// The longest request target in it.
pub(super) const TARGET_SIZE: usize = 8 * 1024;
/// The most header fields.
pub(super) const HEAD_FIELDS: usize = 100;
/// How long a client may send nothing between two requests, or take for a head.
pub(super) const HEAD_TIME: Duration = Duration::from_secs(10);
/// An unread body up to this size, or up to what the relay takes, is read for the sake of the connection; after a longer
/// one it is closed.
pub(super) const WORTH_DRAINING: u64 = 256 * 1024;
/// And no longer than this: the answer waits for it.
pub(super) const DRAIN_TIME: Duration = Duration::from_secs(2);
/// So many connections above the limit are refused at leisure; any more are cut off after the refusal.
const MOST_REFUSED: usize = 100;
/// This part of all descriptors, and no fewer than so many, is for files that are opened for a moment, for pipes and handlers,
/// and for those that are refused.
const SPARE_PART: u64 = 8;
const SPARE_DESCRIPTORS: u64 = 64;
/// How long streams and answers may take to end when the server stops.
pub(super) const STOP_TIME: Duration = Duration::from_millis(4500);

/// After how many tasks a worker looks for requests that have come meanwhile: they go before the rest of a crowd that is to be
/// given a message, which gets the next one with it then. A look costs a tenth of what a task costs that writes.
pub(super) const EVENT_INTERVAL: u32 = 4;

/// How long sent bytes may stay unacknowledged before a connection counts as broken. Linux also counts a client that keeps
/// its window shut.
pub(super) const LONGEST_SILENCE: Duration = Duration::from_secs(60);

/// No shorter than this for a stream: TCP needs a few tries, further and further apart, where packets are lost.
const SHORTEST_SILENCE: Duration = Duration::from_secs(3);

/// The same for a stream, whose peers wait to be told that it has gone: three keep-alives.
pub(super) fn silence_of_stream(keep_alive: Duration) -> Duration {
    keep_alive.saturating_mul(3).clamp(SHORTEST_SILENCE, LONGEST_SILENCE)
}

/// What Linux is asked for as the send buffer of an event stream, of which it makes twice as much: what is under way there
/// must be less than what the log keeps of it, so it is no more than a quarter of what may wait.
pub(super) fn send_buffer(max_queue: u64) -> usize {
    usize::try_from(max_queue / 8).unwrap_or(usize::MAX).clamp(8 * 1024, 1024 * 1024)
}

/// How many connections there may be. Each keeps one descriptor open, its socket, and shall have those that it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Room {
    pub connections: usize,
    /// Those above, which are refused at leisure.
    pub refused: usize,
}

impl Room {
    /// With so many descriptors in all, and no more than `most` connections.
    pub fn of(descriptors: u64, most: u64) -> Self {
        let spare = SPARE_DESCRIPTORS.max(descriptors / SPARE_PART);
        let connections = descriptors.saturating_sub(spare).min(most).max(1);
        let refused = usize::try_from((spare / 4).min(descriptors / 8)).unwrap_or(usize::MAX);
        Self { connections: usize::try_from(connections).unwrap_or(usize::MAX), refused: refused.min(MOST_REFUSED) }
    }
}

/// How many descriptors so many connections need.
pub(super) fn descriptors_for(connections: u64) -> u64 {
    (connections.saturating_sub(1).saturating_mul(SPARE_PART) / (SPARE_PART - 1) + 1)
        .max(connections.saturating_add(SPARE_DESCRIPTORS))
}

/// An administrator may change it while the server runs.
pub(super) fn descriptor_limit() -> u64 {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// The usual limit is 1024 descriptors.
pub(super) fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    // Only root may go beyond what the system allows at most.
    let enough = Some(1 << 18);
    if setrlimit(Resource::Nofile, Rlimit { current: enough, maximum: enough }).is_err() {
        let most = getrlimit(Resource::Nofile).maximum;
        let _ = setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most });
    }
}

/// A file that would grow beyond what this process may write (`RLIMIT_FSIZE`) is an error like a full disk, and not the end of
/// all streams.
pub(super) fn survive_file_limit() -> io::Result<()> {
    signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Arc::default()).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_has_a_connection_has_the_descriptors_for_it() {
        for descriptors in [0, 10, 64, 65, 100, 200, 256, 1024, 4096, 1 << 18, u64::MAX] {
            let room = Room::of(descriptors, 10_000);
            let (connections, refused) = (room.connections as u64, room.refused as u64);
            assert!((1..=10_000).contains(&connections) && refused <= 100, "{room:?}");
            if descriptors > SPARE_DESCRIPTORS {
                // Three quarters of what is spare are left for what is opened for a moment.
                assert!(
                    descriptors - connections.min(descriptors) >= 48 && refused <= 16.max(descriptors / 32),
                    "{room:?}"
                );
            }
        }
        assert_eq!(Room::of(1 << 18, 10_000).connections, 10_000);
        for connections in [2, 5, 100, 224, 225, 1000, 10_000, 15_000] {
            let least = descriptors_for(connections);
            assert_eq!(Room::of(least, 1 << 40).connections as u64, connections);
            assert!((Room::of(least - 1, 1 << 40).connections as u64) < connections, "{connections}");
        }
        assert_eq!(Room::of(1024, 5), Room { connections: 5, refused: 32 });
    }
}
