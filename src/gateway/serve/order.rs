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
use rustix::net::{SocketFlags, acceptfrom_with};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::future::poll_fn;
use std::hash::{BuildHasher as _, RandomState};
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
    hasher: RandomState,
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
    accepted: VecDeque<io::Result<(u64, OwnedFd)>>,
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
    kind: Option<u64>,
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

    /// Accepts all connections that are there.
    fn accept(&mut self, epoll: &OwnedFd, door: u64) {
        while let Some(Door { listener, .. }) = self.doors.get(&door) {
            let accepted = match acceptfrom_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Err(rustix::io::Errno::AGAIN) => return,
                Err(error) => Err(error.into()),
                Ok((socket, peer)) => {
                    let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok());
                    let seat = self.number();
                    let peer = peer.map(|peer| peer.ip().to_canonical());
                    self.seats.insert(seat, At { peer, place: None, is_sure: false, is_busy: false });
                    // Without it there are only places for what is read.
                    let _ = watch(epoll, &socket, seat);
                    if is_readable(&socket) {
                        self.place_at(seat, true);
                    }
                    Ok((seat, socket))
                }
            };
            let is_error = accepted.is_err();
            if let Some(door) = self.doors.get_mut(&door) {
                door.accepted.push_back(accepted);
                if let Some(waker) = door.waker.take() {
                    waker.wake();
                }
            }
            if is_error {
                return;
            }
        }
    }

    /// Gives a place to all that has come in.
    fn look(&mut self, epoll: &OwnedFd) {
        loop {
            let mut events = [MaybeUninit::uninit(); 64];
            let Ok((events, rest)) = epoll::wait(epoll, &mut events, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) else {
                return;
            };
            for event in &*events {
                let number = event.data.u64();
                if self.doors.contains_key(&number) { self.accept(epoll, number) } else { self.place_at(number, true) }
            }
            if !rest.is_empty() {
                return;
            }
        }
    }

    /// Whoever waits for this place looks again.
    fn give_up(&mut self, place: Option<u64>) {
        let place = place.and_then(|place| self.places.remove(&place));
        place.into_iter().flat_map(|place| place.waiting).for_each(Waker::wake);
    }
}

fn watch(epoll: &OwnedFd, socket: impl AsFd, number: u64) -> io::Result<()> {
    Ok(epoll::add(epoll, socket, epoll::EventData::new_u64(number), epoll::EventFlags::IN | epoll::EventFlags::ET)?)
}

fn is_readable(socket: impl AsFd) -> bool {
    !crate::look(socket.as_fd(), PollFlags::IN).is_empty()
}

impl Order {
    pub fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(Self { epoll, state: Mutex::default(), hasher: RandomState::new() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where connections come in, of a listener that does not block.
    pub fn open(&'static self, listener: Arc<OwnedFd>) -> io::Result<Entrance> {
        let mut state = self.lock();
        let door = state.number();
        watch(&self.epoll, &listener, door)?;
        state.doors.insert(door, Door { listener, accepted: VecDeque::new(), waker: None });
        Ok(Entrance { order: self, door })
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
        state.look(&self.order.epoll);
        // Also those that could not be accepted when they came.
        state.accept(&self.order.epoll, self.door);
        let Some(door) = state.doors.get_mut(&self.door) else { return Poll::Pending };
        let Some(accepted) = door.accepted.pop_front() else {
            door.waker = Some(cx.waker().clone());
            return Poll::Pending;
        };
        Poll::Ready(accepted.map(|(seat, socket)| (socket, Seat { order: self.order, seat })))
    }
}

impl Drop for Entrance {
    fn drop(&mut self) {
        let mut state = self.order.lock();
        let Some(door) = state.doors.remove(&self.door) else { return };
        for (seat, _) in door.accepted.into_iter().flatten() {
            let at = state.seats.remove(&seat);
            state.give_up(at.and_then(|at| at.place));
        }
    }
}

/// A connection, whose requests come in order.
pub(super) struct Seat {
    order: &'static Order,
    seat: u64,
}

impl Seat {
    /// Who is at the other end.
    pub fn peer(&self) -> Option<IpAddr> {
        self.order.lock().seats.get(&self.seat).and_then(|at| at.peer)
    }

    /// Reads what is there in `socket`. What is read has its place before it is.
    pub fn read(&self, socket: impl AsFd, read: impl FnOnce() -> io::Result<usize>) -> io::Result<usize> {
        let mut state = self.order.lock();
        if state.seats.get(&self.seat).is_none_or(|at| at.is_busy) {
            drop(state);
            return read();
        }
        state.look(&self.order.epoll);
        if !state.seats.get(&self.seat).is_some_and(|at| at.is_sure) {
            // What has come since then, after others perhaps, has yet to be told.
            if !is_readable(socket) {
                self.leave(&mut state);
                return Err(io::ErrorKind::WouldBlock.into());
            }
            state.look(&self.order.epoll);
            // Of what was told already, a part may be left.
            state.place_at(self.seat, false);
        }
        drop(state);
        let read = read();
        let mut state = self.order.lock();
        if let Some(at) = state.seats.get_mut(&self.seat) {
            at.is_sure = false;
        }
        if !matches!(read, Ok(1..)) {
            self.leave(&mut state);
        }
        read
    }

    /// Nothing is there, or but part of a head.
    fn leave(&self, state: &mut State) {
        let place = state.seats.get_mut(&self.seat).and_then(|at| at.place.take());
        state.give_up(place);
    }

    /// The turn of a request that has just been read. What comes before it has been [answered](Seat::is_free) is no other
    /// one, where requests come one at a time.
    pub fn turn(&self, is_alone: bool) -> Turn {
        let mut state = self.order.lock();
        let mut known = None;
        if let Some(at) = state.seats.get_mut(&self.seat) {
            (at.is_busy, known) = (is_alone, at.place.take());
        }
        let peer = state.seats.get(&self.seat).and_then(|at| at.peer);
        let place = known.unwrap_or_else(|| state.place(peer));
        Turn { order: self.order, place, has_asked: AtomicBool::new(false) }
    }

    /// What comes now is another request.
    pub fn is_free(&self) {
        if let Some(at) = self.order.lock().seats.get_mut(&self.seat) {
            at.is_busy = false;
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut state = self.order.lock();
        let at = state.seats.remove(&self.seat);
        state.give_up(at.and_then(|at| at.place));
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
        let kind = self.order.hasher.hash_one(kind);
        self.has_asked.store(true, Ordering::Relaxed);
        {
            let mut state = self.order.lock();
            let Some(own) = state.places.get_mut(&self.place) else { return };
            own.kind = Some(kind);
            // Those of another kind need not wait any more.
            take(&mut own.waiting).into_iter().for_each(Waker::wake);
        }
        let mut patience = pin!(tokio::time::sleep(PATIENCE));
        poll_fn(|cx| {
            if self.poll_come(kind, true, cx).is_ready() {
                return Poll::Ready(());
            }
            if patience.as_mut().poll(cx).is_ready() { self.poll_come(kind, false, cx) } else { Poll::Pending }
        })
        .await;
    }

    fn poll_come(&self, kind: u64, is_patient: bool, cx: &Context<'_>) -> Poll<()> {
        let mut state = self.order.lock();
        let Some(peer) = state.places.get(&self.place).map(|own| own.peer) else { return Poll::Ready(()) };
        let is_before = |other: &Place| other.peer == peer && other.kind.map_or(is_patient, |other| other == kind);
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
