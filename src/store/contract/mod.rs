//! What every home of the store promises. Each test is named for a promise, runs in each home, and knows of nothing but
//! [`Store`].

mod buses;
mod pipes;
mod requests;
mod sessions;
mod sessions_attacked;
mod sessions_resume;

use super::files::Files;
use super::files::test_dir::TestDir;
#[cfg(feature = "redis")]
use super::redis::{Redis, testing::TestServer};
use super::{OneNode, Receiver, Sender, Store};
use crate::config::Settings;
use crate::gateway::run_blocking;
use crate::wake::Ready;
use std::time::{Duration, Instant};

/// A home with nothing in it.
struct Home {
    store: Store,
    /// Where all of this process are one node, as under `serve`.
    _node: Option<OneNode>,
    /// The same as another process has it, to which the first is not its own.
    elsewhere: Store,
    /// Where it keeps things. It is removed with this.
    _dir: TestDir,
    #[cfg(feature = "redis")]
    _redis: Option<TestServer>,
}

fn home(is_one_node: bool) -> Home {
    let dir = TestDir::new();
    let store = Store::Files(Files::new(&dir.join("data")));
    let node = is_one_node.then(|| store.listen_as_one().done().unwrap());
    let elsewhere = Store::Files(Files::new(&dir.join("data/../data")));
    Home {
        store,
        _node: node,
        elsewhere,
        _dir: dir,
        #[cfg(feature = "redis")]
        _redis: None,
    }
}

/// One in a Redis of its own; `None` where there is no such program, which is told.
#[cfg(feature = "redis")]
fn home_in_redis() -> Option<Home> {
    let server = TestServer::start(&[])?;
    let dir = TestDir::new();
    let store = || Store::Redis(Redis::elsewhere(&server.address(), Files::new(&dir.join("data"))));
    Some(Home { store: store(), _node: None, elsewhere: store(), _redis: Some(server), _dir: dir })
}

/// One of each kind.
fn homes() -> Vec<Home> {
    vec![home(false)]
}

/// The same for what a Redis keeps too.
fn homes_and_redis() -> Vec<Home> {
    #[cfg(not(feature = "redis"))]
    return homes();
    #[cfg(feature = "redis")]
    homes().into_iter().chain(home_in_redis()).collect()
}

/// The same for what is another thing within a process and between two.
fn homes_near_and_far() -> Vec<Home> {
    homes_and_redis().into_iter().chain([home(true)]).collect()
}

impl Home {
    /// Each way for two ends to be in processes.
    fn pairs(&self) -> [[&Store; 2]; 4] {
        let (here, there) = (&self.store, &self.elsewhere);
        [[here, here], [here, there], [there, here], [there, there]]
    }

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
        self.store.sweep_all(&crate::protocol::uhst::policy(&settings)).done().unwrap();
    }
}

/// Waits until that is there.
fn sooner_or_later<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "it does not happen");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Waits until it is so.
fn soon(mut is_so: impl FnMut() -> bool) {
    sooner_or_later(|| is_so().then_some(()));
}

/// An end of a stream of bytes that has told the other, and heard from it, as much as it would before a wait.
trait Exchanged {
    fn exchanged(&mut self) -> &mut Self;
}

impl Exchanged for Receiver {
    fn exchanged(&mut self) -> &mut Self {
        #[cfg(feature = "redis")]
        self.exchange(None).done();
        self
    }
}

impl Exchanged for Sender {
    fn exchanged(&mut self) -> &mut Self {
        #[cfg(feature = "redis")]
        self.exchange().done();
        self
    }
}

/// What is ready in place, as all is in a home on this machine where there is no runtime.
trait Done: Future + Sized {
    fn done(self) -> Self::Output {
        run_blocking(self)
    }
}

impl<F: Future> Done for F {}

/// Whether somebody who sleeps on two is woken.
fn is_any_woken<'a>(awaited: impl IntoIterator<Item = Option<Ready<'a>>>) -> bool {
    awaited.into_iter().flatten().any(|ready| ready.is_ready())
}
