//! Who waits under `serve`, and who does not have to.
//!
//! What is kept is read and written in microseconds. So whoever wants it does that where it is, in a worker (a thread that runs
//! tasks): nothing else is as fast. But a disk may stall for seconds, and every worker that is at it then. What needs nothing
//! from the disk must go on all the same:
//!
//! - One worker more than are needed [stands by](Standby): it sleeps until somebody has been at the disk for too long, and runs
//!   what the others cannot then. It is not simply another worker, because tokio wakes those that have nothing to do for
//!   each task: on two processors they would take from each other, and from the clients, what a task costs twice.
//! - While it is needed, the last free worker does not [go to the disk](at_disk) without having tokio hand its tasks to another
//!   thread first.
//! - A worker that stalls may have taken along what hears sockets and timers: the one that has stood by hears them.
//! - Tasks in a stalled worker's queue are taken by the others. What stays is the one task that the stalled task itself has
//!   woken last (tokio's LIFO slot): a reader of what it has just posted, or with HTTP/2 the connection that both belong to.

use crate::gateway::run_blocking;
#[cfg(feature = "serve")]
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
#[cfg(feature = "serve")]
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
#[cfg(feature = "serve")]
use std::time::Duration;
#[cfg(feature = "serve")]
use tokio::{runtime::Handle, sync::Semaphore, task};

/// How many workers may still go to the disk. None but in `serve`.
#[cfg(feature = "serve")]
static FREE: AtomicUsize = AtomicUsize::new(0);

/// How many have come back from it.
#[cfg(feature = "serve")]
static DONE: AtomicUsize = AtomicUsize::new(0);

/// Threads for those that come when there is only one free worker. tokio has 512; with all of them at the disk there would be
/// none to hand tasks to. Whoever gets none waits as a task does, and holds up nobody.
#[cfg(feature = "serve")]
static THREADS: Semaphore = Semaphore::const_new(256);
#[cfg(feature = "serve")]
static STREAM_THREADS: Semaphore = Semaphore::const_new(128);

/// Somebody may be at the disk for up to twice as long before the worker that stands by comes in.
#[cfg(feature = "serve")]
const LOOK: Duration = Duration::from_millis(20);

/// Does what may block for longer than it takes to say so: in `serve` the other tasks of this thread go on in another one.
pub(crate) fn blocking<T>(work: impl FnOnce() -> T) -> T {
    #[cfg(feature = "serve")]
    if Handle::try_current().is_ok() {
        return task::block_in_place(work);
    }
    work()
}

/// Waits in this thread for what is usually done at once, for those that have nothing else to do.
pub(crate) fn wait<T>(future: impl Future<Output = T>) -> T {
    #[cfg(feature = "serve")]
    if let Ok(runtime) = Handle::try_current() {
        return task::block_in_place(|| runtime.block_on(future));
    }
    run_blocking(future)
}

/// Does something beside all else: as a task, or where there is no runtime, in a thread of this name.
///
/// # Errors
/// When there can be no such thread.
pub(crate) fn beside(name: &str, work: impl Future<Output = ()> + Send + 'static) -> std::io::Result<()> {
    #[cfg(feature = "serve")]
    if let Ok(runtime) = Handle::try_current() {
        runtime.spawn(work);
        return Ok(());
    }
    std::thread::Builder::new().name(name.to_owned()).spawn(move || run_blocking(work)).map(drop)
}

/// Does for a request what takes microseconds, unless the disk stalls.
#[cfg(not(feature = "serve"))]
#[inline]
pub(crate) fn at_disk<T>(work: impl FnOnce() -> T) -> impl Future<Output = T> {
    std::future::ready(work())
}

/// The same for a stream.
#[cfg(not(feature = "serve"))]
pub(crate) use at_disk as stream_at_disk;

/// Does for a request what takes microseconds, unless the disk stalls.
#[cfg(feature = "serve")]
pub(crate) fn at_disk<T>(work: impl FnOnce() -> T) -> impl Future<Output = T> {
    go_to_disk(&THREADS, work)
}

/// The same for a stream, which does not wait for what requests are at.
#[cfg(feature = "serve")]
pub(crate) fn stream_at_disk<T>(work: impl FnOnce() -> T) -> impl Future<Output = T> {
    go_to_disk(&STREAM_THREADS, work)
}

#[cfg(feature = "serve")]
async fn go_to_disk<T>(threads: &Semaphore, work: impl FnOnce() -> T) -> T {
    if task::try_id().is_none() {
        // No worker.
        return work();
    }
    if let Some(_place) = Place::take() {
        return work();
    }
    let _thread = threads.acquire().await;
    task::block_in_place(work)
}

/// A worker's place at the disk.
#[cfg(feature = "serve")]
struct Place;

#[cfg(feature = "serve")]
impl Place {
    /// `None` for the last free worker.
    fn take() -> Option<Self> {
        FREE.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |free| free.checked_sub(1)).ok().map(|_| Self)
    }
}

#[cfg(feature = "serve")]
impl Drop for Place {
    fn drop(&mut self) {
        DONE.fetch_add(1, Ordering::Relaxed);
        FREE.fetch_add(1, Ordering::Relaxed);
    }
}

/// How many workers there should be: one that stands by, and one less than there are processors, which leaves one to the kernel
/// (whose network work is most of a delivery) and to what else runs on a small machine. On two processors one worker
/// delivers more than two.
#[cfg(feature = "serve")]
pub(crate) fn wanted() -> usize {
    std::thread::available_parallelism().map_or(1, Into::into).max(2)
}

/// The worker that stands by.
#[cfg(feature = "serve")]
struct Standby {
    duty: Mutex<Duty>,
    changed: Condvar,
    /// Whether it has just gone to sleep. It may have been the one that hears sockets, and the others know nothing of it.
    is_fresh: AtomicBool,
}

#[cfg(feature = "serve")]
#[derive(Clone, Copy, PartialEq, Eq)]
enum Duty {
    /// It sleeps.
    Asleep,
    /// It works as any other.
    Works,
    /// The server has ended.
    Over,
}

#[cfg(feature = "serve")]
static STANDBY: Standby =
    Standby { duty: Mutex::new(Duty::Works), changed: Condvar::new(), is_fresh: AtomicBool::new(false) };

#[cfg(feature = "serve")]
impl Standby {
    fn duty(&self) -> MutexGuard<'_, Duty> {
        self.duty.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sleeps, whichever worker runs this.
    fn sleep(&self) {
        let duty = self.duty();
        self.is_fresh.store(true, Ordering::Relaxed);
        drop(self.changed.wait_while(duty, |duty| *duty == Duty::Asleep));
    }

    /// Looks whether it is needed, until the server has ended.
    fn watch(&self, runtime: &Handle) {
        let most = runtime.metrics().num_workers() - 1;
        FREE.store(most, Ordering::Relaxed);
        let mut done = 0;
        let mut sleeper: Option<task::JoinHandle<()>> = None;
        loop {
            let before = std::mem::replace(&mut done, DONE.load(Ordering::Relaxed));
            let is_somebody_there = FREE.load(Ordering::Relaxed) < most;
            let mut duty = self.duty();
            match *duty {
                Duty::Over => return,
                Duty::Asleep if is_somebody_there && before == done => {
                    *duty = Duty::Works;
                    self.changed.notify_all();
                }
                Duty::Works if !is_somebody_there => {
                    *duty = Duty::Asleep;
                    // One that was not run yet, or has not woken up yet, is the one.
                    if sleeper.as_ref().is_none_or(task::JoinHandle::is_finished) {
                        sleeper = Some(runtime.spawn(async {
                            // It takes tokio's LIFO slot, from which nobody else can take what may be there.
                            tokio::spawn(async {});
                            STANDBY.sleep();
                        }));
                    }
                }
                // Another may have nothing to do, and sleep: whoever runs this hears sockets and timers then.
                Duty::Works => _ = runtime.spawn(async {}),
                Duty::Asleep if self.is_fresh.swap(false, Ordering::Relaxed) => _ = runtime.spawn(async {}),
                Duty::Asleep => {}
            }
            drop(duty);
            std::thread::sleep(LOOK);
        }
    }
}

/// Has the worker that stands by come in when others stay at the disk, as long as this lives.
#[cfg(feature = "serve")]
pub(crate) struct Watch;

#[cfg(feature = "serve")]
impl Drop for Watch {
    fn drop(&mut self) {
        *STANDBY.duty() = Duty::Over;
        STANDBY.changed.notify_all();
    }
}

/// Begins to watch whether others stay at the disk, for a runtime with as many workers as are [wanted].
///
/// # Errors
/// When there can be no thread for that.
#[cfg(feature = "serve")]
pub(crate) fn watch(runtime: &Handle) -> std::io::Result<Watch> {
    let runtime = runtime.clone();
    std::thread::Builder::new().name("watch".to_owned()).spawn(move || STANDBY.watch(&runtime))?;
    Ok(Watch)
}
