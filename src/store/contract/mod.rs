//! What every home of the store promises. Each test is named for a promise, runs in each home, and knows of nothing but
//! [`Store`].

mod buses;
mod pipes;
mod requests;
mod sessions;
mod sessions_attacked;
mod sessions_resume;

use super::Store;
use super::files::Files;
use super::files::test_dir::TestDir;
use crate::config::Settings;
use crate::wake::Ready;
use rustix::event::PollFlags;
use rustix::fd::BorrowedFd;
use std::time::{Duration, Instant};

/// A home with nothing in it.
struct Home {
    store: Store,
    /// Where it keeps things. It is removed with this.
    _dir: TestDir,
}

/// One of each kind.
fn homes() -> Vec<Home> {
    let dir = TestDir::new();
    vec![Home { store: Store::Files(Files::new(&dir.join("data"))), _dir: dir }]
}

impl Home {
    /// Sweeps until that has happened. What somebody is using is left for the next round, and a process that another test
    /// starts holds our locks between fork and exec.
    fn sweep_until(&self, pipes: Duration, mut has_happened: impl FnMut() -> bool) {
        let began = Instant::now();
        while !has_happened() {
            assert!(began.elapsed() < Duration::from_secs(60), "a sweep does nothing");
            self.sweep(pipes);
        }
    }

    /// Sweeps all of it.
    fn sweep(&self, pipes: Duration) {
        let settings = Settings { pipe_lifetime: pipes, ..Settings::default() };
        self.store.sweep_all(&crate::protocol::uhst::policy(&settings)).unwrap();
    }
}

/// Whether somebody who sleeps on it is woken.
fn is_woken(fd: BorrowedFd<'_>) -> bool {
    crate::look(fd, PollFlags::IN).contains(PollFlags::IN)
}

/// The same for whoever sleeps on two.
fn is_any_woken([data, call]: [Ready<'_>; 2]) -> bool {
    data.is_ready() || call.is_ready()
}
