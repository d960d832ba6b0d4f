//! What a wait may end for, in whatever way it waits.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;
#[cfg(feature = "serve")]
use {
    rustix::fd::OwnedFd,
    std::task::{Context, Poll, ready},
    tokio::io::Interest,
    tokio::io::unix::AsyncFd,
};

/// Something that a [wait](crate::gateway::Client::wait) may end for.
pub trait Wake: Send {
    /// For a door that sleeps in `poll(2)`: what becomes ready, and for what. `None` where nothing ever will.
    fn descriptor(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        None
    }

    /// For a door with many tasks: whether it has come, or has yet to wake this one.
    #[cfg(feature = "serve")]
    fn poll_wake(&mut self, cx: &mut Context<'_>) -> Poll<()>;
}

/// What is not there never comes.
impl<W: Wake> Wake for Option<W> {
    fn descriptor(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        self.as_ref().and_then(W::descriptor)
    }

    #[cfg(feature = "serve")]
    fn poll_wake(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.as_mut().map_or(Poll::Pending, |wake| wake.poll_wake(cx))
    }
}

impl<W: Wake + ?Sized> Wake for &mut W {
    fn descriptor(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        (**self).descriptor()
    }

    #[cfg(feature = "serve")]
    fn poll_wake(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        (**self).poll_wake(cx)
    }
}

/// For a door with many tasks: whether one of `wakes` has come. All of them are asked: each has to know whom to wake.
#[cfg(feature = "serve")]
pub(crate) fn poll_any(cx: &mut Context<'_>, wakes: &mut [&mut dyn Wake]) -> Poll<()> {
    let mut is_woken = false;
    for wake in wakes {
        is_woken |= wake.poll_wake(cx).is_ready();
    }
    if is_woken { Poll::Ready(()) } else { Poll::Pending }
}

/// For a door that sleeps in `poll(2)`: what it has to wait for.
pub(crate) fn poll_fds<'a>(wakes: &'a [&mut dyn Wake]) -> impl Iterator<Item = PollFd<'a>> {
    let descriptors = wakes.iter().filter_map(Wake::descriptor);
    descriptors.map(|(fd, wanted)| PollFd::from_borrowed_fd(fd, wanted))
}

/// Waits for one of `wakes` where there is no client any more, no longer than `limit`. A signal may end it early.
#[cfg_attr(not(feature = "serve"), allow(clippy::unused_async, reason = "it waits in poll(2) there"))]
pub async fn wait(wakes: &mut [&mut dyn Wake], limit: Duration) {
    #[cfg(feature = "serve")]
    if tokio::runtime::Handle::try_current().is_ok() {
        let _ = tokio::time::timeout(limit, std::future::poll_fn(|cx| poll_any(cx, wakes))).await;
        return;
    }
    let mut fds: Vec<_> = poll_fds(wakes).collect();
    let limit = Timespec::try_from(limit).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
    let _ = poll(&mut fds, Some(&limit));
}

/// Wakes one task of this process: others of it ring.
#[derive(Default)]
pub struct Bell {
    rings: AtomicU64,
    waker: Mutex<Option<Waker>>,
}

impl Bell {
    /// Adds so much to what is to be heard, and wakes whoever has heard all before it.
    pub fn ring(&self, cause: u64) {
        if self.rings.fetch_add(cause, Ordering::SeqCst) == 0
            && let Some(waker) = self.waker().take()
        {
            waker.wake();
        }
    }

    /// Everything that was rung since this was asked last.
    pub fn hear(&self) -> u64 {
        self.rings.swap(0, Ordering::SeqCst)
    }

    fn is_rung(&self) -> bool {
        self.rings.load(Ordering::SeqCst) > 0
    }

    fn waker(&self) -> MutexGuard<'_, Option<Waker>> {
        self.waker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(feature = "serve")]
    fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.is_rung() {
            match &mut *self.waker() {
                Some(waker) => waker.clone_from(cx.waker()),
                none => *none = Some(cx.waker().clone()),
            }
            // It may have been rung before the waker was there.
            if !self.is_rung() {
                return Poll::Pending;
            }
        }
        Poll::Ready(())
    }
}

/// A file descriptor that becomes ready, or a bell that rings.
pub struct Ready<'a>(Source<'a>);

enum Source<'a> {
    Bell(&'a Bell),
    Descriptor(Descriptor<'a>),
}

struct Descriptor<'a> {
    fd: BorrowedFd<'a>,
    wanted: PollFlags,
    #[cfg(feature = "serve")]
    watched: Option<Watched<'a>>,
}

#[cfg(feature = "serve")]
enum Watched<'a> {
    Itself(AsyncFd<BorrowedFd<'a>>),
    /// Where another wait watches it too: epoll knows a descriptor once.
    Copy(AsyncFd<OwnedFd>),
}

impl<'a> Ready<'a> {
    /// To be heard.
    #[must_use]
    pub fn to_hear(bell: &'a Bell) -> Self {
        Self(Source::Bell(bell))
    }

    /// To be read.
    #[must_use]
    pub fn to_read(fd: BorrowedFd<'a>) -> Self {
        Self::of(fd, PollFlags::IN)
    }

    /// To be written.
    #[must_use]
    pub fn to_write(fd: BorrowedFd<'a>) -> Self {
        Self::of(fd, PollFlags::OUT)
    }

    /// The writing end of a FIFO, once nobody reads it any more.
    #[must_use]
    pub fn unread(fd: BorrowedFd<'a>) -> Self {
        Self::of(fd, PollFlags::empty())
    }

    fn of(fd: BorrowedFd<'a>, wanted: PollFlags) -> Self {
        Self(Source::Descriptor(Descriptor {
            fd,
            wanted,
            #[cfg(feature = "serve")]
            watched: None,
        }))
    }

    /// Whether it is ready now.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        match &self.0 {
            Source::Bell(bell) => bell.is_rung(),
            Source::Descriptor(descriptor) => descriptor.is_ready(),
        }
    }
}

impl Wake for Ready<'_> {
    fn descriptor(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        match &self.0 {
            Source::Bell(_) => None,
            Source::Descriptor(descriptor) => Some((descriptor.fd, descriptor.wanted)),
        }
    }

    #[cfg(feature = "serve")]
    fn poll_wake(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.0 {
            Source::Bell(bell) => bell.poll(cx),
            Source::Descriptor(descriptor) => descriptor.poll(cx),
        }
    }
}

impl Descriptor<'_> {
    fn is_ready(&self) -> bool {
        !crate::look(self.fd, self.wanted).is_empty()
    }
}

#[cfg(feature = "serve")]
impl<'a> Descriptor<'a> {
    #[expect(
        deprecated,
        reason = "the new one is unsafe; here the descriptor is borrowed, or owned, for as long as it is watched"
    )]
    fn watch(&self) -> std::io::Result<Watched<'a>> {
        let interest = if self.wanted == PollFlags::IN { Interest::READABLE } else { Interest::WRITABLE };
        match AsyncFd::with_interest(self.fd, interest) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                Ok(Watched::Copy(AsyncFd::with_interest(self.fd.try_clone_to_owned()?, interest)?))
            }
            watched => Ok(Watched::Itself(watched?)),
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        macro_rules! clear {
            ($fd:expr) => {
                match ready!(if self.wanted == PollFlags::IN {
                    $fd.poll_read_ready(cx)
                } else {
                    $fd.poll_write_ready(cx)
                }) {
                    Ok(mut guard) => guard.clear_ready(),
                    // The server ends.
                    Err(_) => return Poll::Ready(()),
                }
            };
        }
        // What epoll tells may be over, or be something else: a FIFO with room is no FIFO that nobody reads.
        while !self.is_ready() {
            if self.watched.is_none() {
                match self.watch() {
                    Ok(watched) => self.watched = Some(watched),
                    // A file that is always ready, or no more descriptors: whoever waits looks for itself.
                    Err(_) => return Poll::Ready(()),
                }
            }
            match &self.watched {
                Some(Watched::Itself(fd)) => clear!(fd),
                Some(Watched::Copy(fd)) => clear!(fd),
                None => return Poll::Ready(()),
            }
        }
        Poll::Ready(())
    }
}
