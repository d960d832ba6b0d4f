//! What one client sends first, on whatever connection, comes first.
//!
//! When a request is read says little: any thread may be paused for longer than clients pause. But the kernel knows in which
//! order something has come in on which socket: so an epoll instance lists it. Nobody sleeps in that one. Before a socket is
//! read, whatever has come by then, there or elsewhere, is given its [place](Turn); a new connection is accepted for that,
//! and has its place where it came in. A request for which order matters [waits](Turn::come) for those with earlier places,
//! until each is known to be of another client, not to be a request, or to be done.
//!
//! Of two connections that both have come in with a request before either was accepted, the first one goes first, whichever
//! request that is; so it is with clients that send on the first connection that they get, as browsers do.

use rustix::event::{PollFlags, Timespec, epoll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{SocketFlags, acceptfrom_with};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::future::poll_fn;
use std::io;
use std::mem::{MaybeUninit, take};
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// What has come in earlier and is not read for so long is not waited for: its connection may be one that takes no answers.
const PATIENCE: Duration = Duration::from_millis(500);

/// The order of what comes in at one server.
pub(super) struct Order {
    epoll: OwnedFd,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    last: u64,
    doors: HashMap<u64, Door>,
    seats: HashMap<u64, At>,
    /// What has come in, in order.
    places: BTreeMap<u64, Place>,
}

/// Where connections come in.
struct Door {
    listener: Arc<OwnedFd>,
    /// Those that nobody has asked for yet.
    accepted: VecDeque<(OwnedFd, Seat)>,
    waker: Option<Waker>,
}

/// What is known of a connection.
struct At {
    peer: Option<IpAddr>,
    /// Of what is there to be read.
    place: Option<u64>,
    /// Whether the kernel has said that there is something.
    is_sure: bool,
    /// Whether a request is under way, so that what comes is no other one.
    is_busy: bool,
}

struct Place {
    peer: Option<IpAddr>,
    /// What of one kind a client sends has to be in order. `None` where that is not known yet.
    kind: Option<String>,
    waiting: Vec<Waker>,
}

impl State {
    fn number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    fn place(&mut self, peer: Option<IpAddr>) -> u64 {
        let number = self.number();
        self.places.insert(number, Place { peer, kind: None, waiting: Vec::new() });
        number
    }

    /// Gives a place to what may be read of a connection.
    fn place_at(&mut self, seat: u64, is_sure: bool) {
        let Some(at) = self.seats.get(&seat).filter(|at| !at.is_busy) else { return };
        let place = at.place.unwrap_or_else(|| self.place(self.seats[&seat].peer));
        if let Some(at) = self.seats.get_mut(&seat) {
            (at.place, at.is_sure) = (Some(place), at.is_sure || is_sure);
        }
    }

    /// Whoever waits for this place looks again.
    fn give_up(&mut self, place: Option<u64>) {
        let place = place.and_then(|place| self.places.remove(&place));
        place.into_iter().flat_map(|place| place.waiting).for_each(Waker::wake);
    }
}

fn is_readable(socket: impl AsFd) -> bool {
    !crate::look(socket.as_fd(), PollFlags::IN).is_empty()
}

impl Order {
    pub fn new() -> io::Result<Self> {
        Ok(Self { epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?, state: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watch(&self, socket: impl AsFd, number: u64) -> io::Result<()> {
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        Ok(epoll::add(&self.epoll, socket, epoll::EventData::new_u64(number), flags)?)
    }

    /// Where connections come in, of a listener that does not block.
    pub fn open(&'static self, listener: Arc<OwnedFd>) -> io::Result<Entrance> {
        let mut state = self.lock();
        let door = state.number();
        self.watch(&listener, door)?;
        state.doors.insert(door, Door { listener, accepted: VecDeque::new(), waker: None });
        Ok(Entrance { order: self, door })
    }

    /// Gives a place to all that has come in.
    fn look(&'static self, state: &mut State) {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        loop {
            let mut events = [MaybeUninit::uninit(); 64];
            let Ok((events, rest)) = epoll::wait(&self.epoll, &mut events, Some(&now)) else { return };
            for event in &*events {
                let number = event.data.u64();
                if state.doors.contains_key(&number) {
                    // Whoever asks for the next connection tries again, and is told why there is none.
                    let _ = self.accept(state, number);
                } else {
                    state.place_at(number, true);
                }
            }
            if !rest.is_empty() {
                return;
            }
        }
    }

    /// Accepts all connections that are there.
    fn accept(&'static self, state: &mut State, number: u64) -> io::Result<()> {
        while let Some(door) = state.doors.get(&number) {
            let (socket, peer) = match acceptfrom_with(&door.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Err(Errno::AGAIN) => break,
                accepted => accepted?,
            };
            let peer = peer.and_then(|peer| Some(SocketAddr::try_from(peer).ok()?.ip().to_canonical()));
            let seat = state.number();
            state.seats.insert(seat, At { peer, place: None, is_sure: false, is_busy: false });
            // Without it there are only places for what is read.
            let _ = self.watch(&socket, seat);
            if is_readable(&socket) {
                state.place_at(seat, true);
            }
            if let Some(door) = state.doors.get_mut(&number) {
                door.accepted.push_back((socket, Seat { order: self, number: seat, peer }));
                door.waker.take().into_iter().for_each(Waker::wake);
            }
        }
        Ok(())
    }
}

/// A listener, whose connections come in order.
pub(super) struct Entrance {
    order: &'static Order,
    door: u64,
}

impl Entrance {
    /// The next connection. Where there is none, this task is woken by whoever accepts one; that somebody has to look is
    /// another matter.
    pub fn accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(OwnedFd, Seat)>> {
        let mut state = self.order.lock();
        self.order.look(&mut state);
        // Also those that could not be accepted when they came.
        let accepted = self.order.accept(&mut state, self.door);
        let Some(door) = state.doors.get_mut(&self.door) else { return Poll::Pending };
        match (door.accepted.pop_front(), accepted) {
            (Some(next), _) => Poll::Ready(Ok(next)),
            (None, Err(error)) => Poll::Ready(Err(error)),
            (None, Ok(())) => {
                door.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for Entrance {
    fn drop(&mut self) {
        let door = self.order.lock().doors.remove(&self.door);
        // Now that the lock is free, which the seats of its connections take.
        drop(door);
    }
}

/// A connection, whose requests come in order.
pub(super) struct Seat {
    order: &'static Order,
    number: u64,
    /// Who is at the other end.
    pub peer: Option<IpAddr>,
}

impl Seat {
    /// Reads what is there in `socket`. What is read has its place before it is.
    pub fn read(&self, socket: impl AsFd, read: impl FnOnce() -> io::Result<usize>) -> io::Result<usize> {
        let mut state = self.order.lock();
        if state.seats.get(&self.number).is_none_or(|at| at.is_busy) {
            drop(state);
            return read();
        }
        let is_sure = |state: &State| state.seats.get(&self.number).is_some_and(|at| at.is_sure);
        // What has come before something that has a place has one, too.
        if !is_sure(&state) {
            self.order.look(&mut state);
        }
        if !is_sure(&state) {
            // What has come since then, after others perhaps, has yet to be told.
            if !is_readable(socket) {
                self.leave(&mut state);
                return Err(io::ErrorKind::WouldBlock.into());
            }
            self.order.look(&mut state);
            // Of what was told already, a part may be left.
            state.place_at(self.number, false);
        }
        drop(state);
        let read = read();
        let mut state = self.order.lock();
        if !matches!(read, Ok(1..)) {
            self.leave(&mut state);
        } else if let Some(at) = state.seats.get_mut(&self.number) {
            at.is_sure = false;
        }
        read
    }

    /// Nothing is there, or but part of a head.
    fn leave(&self, state: &mut State) {
        let place = self.take(state, false);
        state.give_up(place);
    }

    /// The place of what was there to be read. Whether a request is under way from now on.
    fn take(&self, state: &mut State, is_busy: bool) -> Option<u64> {
        let at = state.seats.get_mut(&self.number)?;
        (at.is_sure, at.is_busy) = (false, is_busy);
        at.place.take()
    }

    /// The turn of a request that has just been read. What comes before it has been [answered](Seat::is_free) is no other
    /// one, where requests come one at a time.
    pub fn turn(&self, is_alone: bool) -> Turn {
        let mut state = self.order.lock();
        let place = self.take(&mut state, is_alone).unwrap_or_else(|| state.place(self.peer));
        Turn { order: self.order, place, has_asked: AtomicBool::new(false) }
    }

    /// What comes now is another request.
    pub fn is_free(&self) {
        if let Some(at) = self.order.lock().seats.get_mut(&self.number) {
            at.is_busy = false;
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut state = self.order.lock();
        self.leave(&mut state);
        state.seats.remove(&self.number);
    }
}

/// The turn of a request. Others wait for it until it is given up, or known to be of another kind than theirs.
pub(super) struct Turn {
    order: &'static Order,
    place: u64,
    has_asked: AtomicBool,
}

impl Turn {
    /// Returns when whatever of this kind the client has sent before is done.
    pub async fn come(&self, kind: &str) {
        self.has_asked.store(true, Ordering::Relaxed);
        if let Some(own) = self.order.lock().places.get_mut(&self.place) {
            own.kind = Some(kind.to_owned());
            // Those of another kind need not wait any more.
            take(&mut own.waiting).into_iter().for_each(Waker::wake);
        }
        let patient = poll_fn(|cx| self.poll_come(kind, true, cx));
        if tokio::time::timeout(PATIENCE, patient).await.is_err() {
            poll_fn(|cx| self.poll_come(kind, false, cx)).await;
        }
    }

    fn poll_come(&self, kind: &str, is_patient: bool, cx: &Context<'_>) -> Poll<()> {
        let mut state = self.order.lock();
        let Some(peer) = state.places.get(&self.place).map(|own| own.peer) else { return Poll::Ready(()) };
        let is_before =
            |other: &Place| other.peer == peer && other.kind.as_ref().map_or(is_patient, |other| other == kind);
        match state.places.range_mut(..self.place).map(|(_, other)| other).find(|other| is_before(other)) {
            Some(other) => {
                other.waiting.push(cx.waker().clone());
                Poll::Pending
            }
            None => Poll::Ready(()),
        }
    }

    /// Lets others go on.
    pub fn give_up(&self) {
        self.order.lock().give_up(Some(self.place));
    }

    /// Does what the request asks for. What waits before it has asked for its turn is not waited for.
    pub async fn hold<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        let done = poll_fn(|cx| {
            let done = work.as_mut().poll(cx);
            if done.is_pending() && !self.has_asked.load(Ordering::Relaxed) {
                self.give_up();
            }
            done
        });
        let done = done.await;
        self.give_up();
        done
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.give_up();
    }
}
