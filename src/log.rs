//! The log: lines on stderr, which web servers keep as their error log.
//!
//! Stderr may be a pipe whose reader sleeps, and a write to it then blocks, whatever lock the writer holds. To look for room
//! first makes nothing sure: others have the same pipe, and may be faster. Nor can it be made non-blocking, because it would
//! be so for the others too, the web server among them. So there are two ways:
//!
//! - A process with many threads (`serve`) has one more for the log, which holds nothing. Whoever has something to say gives
//!   it a line and goes on. A line for which there is no room is lost, and the log says how many were.
//! - A process for one request moves a line out of a pipe of its own, which `splice` does [without waiting](write_now).

use rustix::event::PollFlags;
use rustix::fd::BorrowedFd;
use rustix::fs::{FileType, fstat};
use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, splice};

/// What a pipe takes in one piece (`PIPE_BUF`): the lines of several processes do not mix.
const PIECE: usize = 4096;

/// Writes a line, or not: where there is no room it is lost. A log that cannot be written (its disk is full, its reader has
/// gone) is no reason to fail.
fn write_now(to: BorrowedFd<'_>, line: &[u8]) {
    let mut line = line.to_vec();
    if line.len() > PIECE {
        line.truncate(PIECE - 1);
        line.push(b'\n');
    }
    // Each line in a page of its own, of which a pipe has sixteen: enough for the lines of a request.
    if fstat(to).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo)
        && let Ok((from, own)) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)
        && rustix::io::write(&own, &line) == Ok(line.len())
    {
        let _ = splice(from, None, to, None, line.len(), SpliceFlags::NONBLOCK);
    } else if crate::look(to, PollFlags::OUT).contains(PollFlags::OUT) {
        let _ = rustix::io::write(to, &line);
    }
}

/// Adds a line, with its line end, to the log of this process.
pub(crate) fn add(line: &str) {
    #[cfg(feature = "serve")]
    if thread::LOG.add(line, || thread::start(&thread::LOG, rustix::stdio::stderr())) {
        return;
    }
    write_now(rustix::stdio::stderr(), line.as_bytes());
}

/// Waits for a moment until the log of this process is written: before it ends, or closes stderr.
pub(crate) fn flush() {
    #[cfg(feature = "serve")]
    thread::LOG.flush(thread::LAST_WORDS_TIME);
}

/// Has a panic say so in the log, as everything does: the thread may hold a lock.
pub(crate) fn hear_panics() {
    std::panic::set_hook(Box::new(|panic| {
        say!("uhst-relay: {panic}");
        // Where a panic ends the process at once.
        if cfg!(panic = "abort") {
            flush();
        }
    }));
}

/// The lines of a process with many threads.
#[cfg(feature = "serve")]
mod thread {
    use super::PIECE;
    use rustix::fd::AsFd;
    use rustix::io::Errno;
    use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
    use std::time::{Duration, Instant};

    /// How many bytes may wait to be written.
    pub(super) const ROOM: usize = 256 * 1024;

    /// How long a process waits at its end for its last lines to be written.
    pub(super) const LAST_WORDS_TIME: Duration = Duration::from_secs(1);

    /// What the thread needs.
    const STACK_SIZE: usize = 64 * 1024;

    /// Lines that wait to be written.
    pub(super) struct Log {
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

    pub(super) static LOG: Log = Log::new();

    /// Starts the thread that writes them. False where there can be none.
    pub(super) fn start(log: &'static Log, to: impl AsFd + Send + 'static) -> bool {
        let thread = std::thread::Builder::new().name("log".to_owned()).stack_size(STACK_SIZE);
        thread.spawn(move || log.run(&to)).is_ok()
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

        /// Adds a line. `start` starts the thread, the first time; false where it could not.
        pub fn add(&self, line: &str, start: impl FnOnce() -> bool) -> bool {
            let mut state = self.state();
            if !state.has_thread {
                state.has_thread = start();
                if !state.has_thread {
                    return false;
                }
            }
            if state.waiting.len() + line.len() > ROOM {
                state.lost += 1;
                return true;
            }
            if state.lost > 0 {
                let lost = std::mem::take(&mut state.lost);
                let told = format!("uhst-relay: {lost} lines of the log are lost: nobody has read it for too long\n");
                state.waiting.extend_from_slice(told.as_bytes());
            }
            state.waiting.extend_from_slice(line.as_bytes());
            drop(state);
            self.added.notify_one();
            true
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
    pub(super) fn piece(waiting: &[u8]) -> usize {
        let whole = |bytes: &[u8]| memchr::memrchr(b'\n', bytes).map(|at| at + 1);
        let first = || memchr::memchr(b'\n', waiting).map(|at| at + 1);
        whole(&waiting[..waiting.len().min(PIECE)]).or_else(first).unwrap_or(waiting.len())
    }

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
}

#[cfg(all(test, feature = "serve"))]
mod tests {
    use super::thread::{Log, ROOM, piece, start};
    use super::*;
    use proptest::prelude::*;
    use std::io::Read as _;
    use std::os::fd::AsFd as _;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex, mpsc};
    use std::time::{Duration, Instant};

    /// A log on a pipe of one page, which nobody reads yet.
    fn log() -> (&'static Log, std::io::PipeReader) {
        let (reader, writer) = std::io::pipe().unwrap();
        rustix::pipe::fcntl_setpipe_size(&writer, PIECE).unwrap();
        let log: &'static Log = Box::leak(Box::new(Log::new()));
        assert!(log.add("begin\n", || start(log, writer)));
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
                let session = &session;
                scope.spawn(move || {
                    for number in 0..200 {
                        let _held = session.lock().unwrap();
                        log.add(&format!("{thread} {number:03} {}\n", "x".repeat(2990)), || false);
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
        log.add("the end\n", || false);
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
        log.flush(Duration::from_secs(60));
        reader.read_exact(&mut [0; 6]).unwrap();
        for _ in 0..100 {
            log.add("a line\n", || false);
            log.flush(Duration::from_secs(60));
            let mut bytes = [0; 7];
            // It is there: this does not wait.
            assert_eq!(rustix::io::ioctl_fionread(&reader).unwrap(), 7);
            reader.read_exact(&mut bytes).unwrap();
            assert_eq!(&bytes, b"a line\n");
        }
    }

    /// As the processes of a web server, which share its error log.
    #[test]
    fn two_who_find_room_for_one_do_not_wait_for_the_reader() {
        const ROUNDS: usize = 3000;
        let (mut reader, writer) = std::io::pipe().unwrap();
        rustix::pipe::fcntl_setpipe_size(&writer, PIECE).unwrap();
        let writer = Arc::new(writer);
        let line = format!("{}\n", "x".repeat(2990));
        let (done, all_done) = mpsc::channel();
        // They begin at the same moment: whoever is asleep would come too late.
        let round = Arc::new(AtomicUsize::new(0));
        for _ in 0..2 {
            let (round, writer, done, line) = (Arc::clone(&round), Arc::clone(&writer), done.clone(), line.clone());
            std::thread::spawn(move || {
                for number in 1..=ROUNDS {
                    while round.load(Ordering::Acquire) < number {
                        std::thread::yield_now();
                    }
                    write_now(writer.as_fd(), line.as_bytes());
                    done.send(()).unwrap();
                }
            });
        }
        for number in 1..=ROUNDS {
            round.store(number, Ordering::Release);
            for _ in 0..2 {
                all_done.recv_timeout(Duration::from_secs(60)).expect("nobody waits for a reader");
            }
            // One of them, and the whole of it.
            let mut bytes = vec![0; line.len()];
            assert_eq!(rustix::io::ioctl_fionread(&reader).unwrap(), line.len() as u64);
            reader.read_exact(&mut bytes).unwrap();
            assert_eq!(bytes, line.as_bytes());
        }
    }

    #[test]
    fn a_line_that_is_too_long_is_a_line_all_the_same() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        for size in [PIECE - 1, PIECE, PIECE + 1, 3 * PIECE] {
            write_now(writer.as_fd(), format!("{}\n", "x".repeat(size - 1)).as_bytes());
            let mut bytes = vec![0; size.min(PIECE)];
            assert_eq!(rustix::io::ioctl_fionread(&reader).unwrap(), bytes.len() as u64);
            reader.read_exact(&mut bytes).unwrap();
            assert_eq!(memchr::memchr(b'\n', &bytes), Some(bytes.len() - 1), "{size}");
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
