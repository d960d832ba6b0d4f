//! The log: lines on stderr, which web servers keep as their error log.
//!
//! Stderr may be a pipe whose reader sleeps, and a write to it then blocks. Nothing short of waiting makes sure that it will
//! not: whoever has found room may find none when he writes, because others have the same pipe, and to set `O_NONBLOCK`
//! would set it for them too, the web server among them. So it is left to a thread that holds nothing: whoever has
//! something to say gives it a line and goes on. A line for which there is no room is lost, and the log says how many were.

use rustix::event::PollFlags;
use rustix::fd::AsFd;
use rustix::io::Errno;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How many bytes may wait to be written.
const ROOM: usize = 256 * 1024;

/// What a pipe takes in one piece (`PIPE_BUF`): the lines of several processes do not mix.
const PIECE: usize = 4096;

/// How long a process waits at its end for its last lines to be written.
pub(crate) const LAST_WORDS_TIME: Duration = Duration::from_secs(1);

/// What a writer's thread needs.
const STACK_SIZE: usize = 64 * 1024;

/// The lines that wait, and the thread that writes them.
pub(crate) struct Log {
    state: Mutex<State>,
    /// Something has been added.
    added: Condvar,
    /// Something has been written.
    written: Condvar,
}

struct State {
    waiting: Vec<u8>,
    /// How many lines were lost since the last that was not.
    lost: u64,
    /// Whether the thread is in the middle of a write.
    is_writing: bool,
    has_thread: bool,
}

impl Log {
    pub const fn new() -> Self {
        let state = State { waiting: Vec::new(), lost: 0, is_writing: false, has_thread: false };
        Self { state: Mutex::new(state), added: Condvar::new(), written: Condvar::new() }
    }

    /// Held for no longer than it takes to copy some lines.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a line, which ends with its line end. `start` starts the thread, the first time.
    fn add(&self, line: &str, start: impl FnOnce() -> bool) {
        let mut state = self.state();
        if !state.has_thread {
            state.has_thread = start();
            if !state.has_thread {
                drop(state);
                return write_at_once(line.as_bytes());
            }
        }
        if state.waiting.len() + line.len() > ROOM {
            state.lost += 1;
            return;
        }
        if state.lost > 0 {
            let lost = std::mem::take(&mut state.lost);
            let told = format!("uhst-relay: {lost} lines of the log are lost: nobody has read it for too long\n");
            state.waiting.extend_from_slice(told.as_bytes());
        }
        state.waiting.extend_from_slice(line.as_bytes());
        drop(state);
        self.added.notify_one();
    }

    /// Waits until everything is written, but no longer than that.
    pub fn flush(&self, limit: Duration) {
        let until = Instant::now() + limit;
        let mut state = self.state();
        while state.is_writing || !state.waiting.is_empty() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            state = self.written.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Writes what is added, for ever.
    fn run(&self, to: &impl AsFd) {
        loop {
            let mut state = self.state();
            while state.waiting.is_empty() {
                state = self.added.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            let end = piece(&state.waiting);
            let bytes: Vec<u8> = state.waiting.drain(..end).collect();
            state.is_writing = true;
            drop(state);
            write_all(to, &bytes);
            self.state().is_writing = false;
            self.written.notify_all();
        }
    }
}

/// How much is written at once: as many whole lines as a pipe takes in one piece, or one that is longer.
fn piece(waiting: &[u8]) -> usize {
    let whole = |bytes: &[u8]| memchr::memrchr(b'\n', bytes).map(|at| at + 1);
    let first = || memchr::memchr(b'\n', waiting).map(|at| at + 1);
    whole(&waiting[..waiting.len().min(PIECE)]).or_else(first).unwrap_or(waiting.len())
}

/// A log that cannot be written (its disk is full, its reader has gone) is no reason to fail.
fn write_all(to: &impl AsFd, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        match rustix::io::write(to, bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::INTR) => {}
            // Whoever shares it has made it so.
            Err(Errno::AGAIN) => std::thread::sleep(Duration::from_millis(20)),
            Err(_) => return,
        }
    }
}

/// Where there can be no other thread. One that writes alone to its pipe, and finds room in it, does not block.
fn write_at_once(line: &[u8]) {
    let stderr = rustix::stdio::stderr();
    if crate::look(stderr, PollFlags::OUT).contains(PollFlags::OUT) {
        let _ = rustix::io::write(stderr, &line[..line.len().min(PIECE)]);
    }
}

static LOG: Log = Log::new();

/// Adds a line to the log of this process.
pub(crate) fn add(line: &str) {
    LOG.add(line, || {
        let thread = std::thread::Builder::new().name("log".to_owned()).stack_size(STACK_SIZE);
        thread.spawn(|| LOG.run(&rustix::stdio::stderr())).is_ok()
    });
}

/// Waits for a moment until the log of this process is written: before it ends, or closes stderr.
pub(crate) fn flush() {
    LOG.flush(LAST_WORDS_TIME);
}

/// Has a panic say so in the log, as everything does: the thread may hold a lock.
pub(crate) fn hear_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        say!("uhst-relay: thread {} {panic}", thread.name().unwrap_or("without a name"));
        // Where a panic ends the process at once.
        if cfg!(panic = "abort") {
            flush();
        }
    }));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Read as _;
    use std::sync::Arc;

    /// A log on a pipe of one page, which nobody reads yet.
    fn log() -> (Arc<Log>, std::io::PipeReader) {
        let (reader, writer) = std::io::pipe().unwrap();
        rustix::pipe::fcntl_setpipe_size(&writer, PIECE).unwrap();
        let log = Arc::new(Log::new());
        log.state().has_thread = true;
        let running = Arc::clone(&log);
        std::thread::spawn(move || running.run(&writer));
        (log, reader)
    }

    #[test]
    fn a_full_pipe_keeps_nobody_who_holds_a_lock() {
        let (log, mut reader) = log();
        // As a session's.
        let session = Mutex::new(());
        let start = Instant::now();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (log, session) = (&log, &session);
                scope.spawn(move || {
                    for number in 0..200 {
                        let _held = session.lock().unwrap();
                        log.add(&format!("{thread} {number:03} {}\n", "x".repeat(2990)), || true);
                    }
                });
            }
        });
        log.flush(Duration::from_millis(10));
        assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());

        // Somebody reads again: what is there is whole and in order, and the rest is counted.
        let reading = std::thread::spawn(move || {
            let (mut all, mut bytes) = (Vec::new(), [0; 8192]);
            while !all.ends_with(b"the end\n") {
                let got = reader.read(&mut bytes).unwrap();
                all.extend_from_slice(&bytes[..got]);
            }
            String::from_utf8(all).unwrap()
        });
        log.flush(Duration::from_secs(60));
        log.add("the end\n", || true);
        let all = reading.join().unwrap();
        let lines: Vec<_> = all.lines().filter(|line| line.ends_with('x')).collect();
        assert!(lines.len() >= ROOM / 3000 - 1 && lines.iter().all(|line| line.len() == 2996), "{}", lines.len());
        for thread in ["0", "1", "2", "3"] {
            let own: Vec<_> = lines.iter().filter(|line| line.starts_with(thread)).collect();
            assert!(own.is_sorted());
        }
        let told =
            all.lines().filter_map(|line| line.strip_prefix("uhst-relay: ")?.split_once(" lines of the log are lost"));
        let lost: usize = told.map(|(count, _)| count.parse::<usize>().unwrap()).sum();
        assert_eq!(lines.len() + lost, 800);
    }

    #[test]
    fn what_is_added_is_written_when_it_is_flushed() {
        let (log, mut reader) = log();
        for _ in 0..100 {
            log.add("a line\n", || true);
            log.flush(Duration::from_secs(60));
            let mut bytes = [0; 7];
            // It is there: this does not wait.
            assert_eq!(rustix::io::ioctl_fionread(&reader).unwrap(), 7);
            reader.read_exact(&mut bytes).unwrap();
            assert_eq!(&bytes, b"a line\n");
        }
    }

    proptest! {
        #[test]
        fn lines_are_written_whole_and_short_ones_in_one_piece(sizes in prop::collection::vec(1..6000_usize, 1..20)) {
            let mut waiting: Vec<u8> = sizes.iter().flat_map(|size| "x".repeat(size - 1).into_bytes().into_iter().chain([b'\n'])).collect();
            while !waiting.is_empty() {
                let end = piece(&waiting);
                prop_assert!(end > 0 && waiting[end - 1] == b'\n');
                prop_assert!(end <= PIECE || !waiting[..end - 1].contains(&b'\n'));
                waiting.drain(..end);
            }
        }
    }
}
