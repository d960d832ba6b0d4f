//! Bytes on their way from one request to another of the same process, and what the two tell each other of them.
//!
//! It is to them what two FIFOs and a receipt are to two processes, and a plain mutex guards it: nobody waits while it holds
//! that, and what is done there takes no longer than to copy a few bytes.

use crate::wake::{Bell, Ready};
use std::collections::VecDeque;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How many bytes may be under way: all that a transfer keeps in memory for a receiver that takes none.
const CAPACITY: usize = 128 * 1024;

/// What a bell is rung with by whoever has come by its owner's name, and not by the other end.
const CALL: u64 = 1 << 32;

/// A link, as everybody has it who uses it. A program that answers one request has none, and so none of the code for it.
#[derive(Clone)]
pub(super) struct Linked(Arc<Link>, OfMany);

/// That this process answers many requests.
#[cfg(feature = "serve")]
#[derive(Clone, Copy)]
struct OfMany;
#[cfg(not(feature = "serve"))]
#[derive(Clone, Copy)]
enum OfMany {}

impl Linked {
    #[cfg(feature = "serve")]
    pub fn new() -> Self {
        Self(Arc::default(), OfMany)
    }
}

impl Deref for Linked {
    type Target = Link;

    fn deref(&self) -> &Link {
        &self.0
    }
}

/// What connects a receiver and its sender. Of a sender that waits for a receiver, only the bell is in use.
#[derive(Default)]
pub(super) struct Link {
    state: Mutex<State>,
    /// Of whoever has made it.
    bell: Bell,
    /// Of the sender that has taken a receiver.
    sender: Bell,
}

#[derive(Default)]
struct State {
    sender: SenderIs,
    receiver: ReceiverIs,
    head: Option<Vec<u8>>,
    bytes: VecDeque<u8>,
    /// How many bytes the receiver's client has taken, once it has begun.
    taken: Option<u64>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum SenderIs {
    #[default]
    NotYet,
    There,
    /// It has gone, and has said that its bytes are complete.
    Done,
    /// It has gone without that.
    Gone,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum ReceiverIs {
    #[default]
    There,
    /// It takes another process's bytes, by FIFOs.
    Elsewhere,
    Gone,
}

/// What has come from a sender.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Incoming {
    /// Nothing yet.
    Nothing,
    /// Its head.
    Head(Vec<u8>),
    /// It has gone without one.
    SenderLeft,
}

impl Link {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes whoever has made it, for somebody who has come by its name.
    pub fn call(&self) {
        self.bell.ring(CALL);
    }

    /// What rings when it is called, or the sender has done something.
    pub fn awaited(&self) -> Ready<'_> {
        Ready::to_hear(&self.bell)
    }

    /// Whether it was called since this was asked last.
    pub fn hears_call(&self) -> bool {
        self.bell.hear() >= CALL
    }

    // ---- the receiver's end

    /// What has come so far, up to the head.
    pub fn look(&self) -> Incoming {
        let mut state = self.state();
        match (state.head.take(), state.sender) {
            (Some(head), _) => Incoming::Head(head),
            (None, SenderIs::Done | SenderIs::Gone) => Incoming::SenderLeft,
            (None, SenderIs::NotYet | SenderIs::There) => Incoming::Nothing,
        }
    }

    /// How many bytes there are.
    pub fn there(&self) -> usize {
        self.state().bytes.len()
    }

    /// Gives some bytes to `take`, which says how many of them it has taken; that is returned.
    pub fn give(&self, take: impl FnOnce(&[u8]) -> usize) -> usize {
        let mut state = self.state();
        let taken = take(state.bytes.as_slices().0);
        state.bytes.drain(..taken);
        drop(state);
        if taken > 0 {
            self.sender.ring(1);
        }
        taken
    }

    /// Notes that the receiver's client has taken so many bytes more.
    pub fn took(&self, bytes: u64) {
        let taken = &mut self.state().taken;
        *taken = Some(taken.unwrap_or(0) + bytes);
    }

    /// Whether the sender has gone.
    pub fn has_ended(&self) -> bool {
        matches!(self.state().sender, SenderIs::Done | SenderIs::Gone)
    }

    /// Whether it has said before that its bytes are complete.
    pub fn is_complete(&self) -> bool {
        self.state().sender == SenderIs::Done
    }

    /// Makes it ready for another sender, after one has left without a word.
    pub fn renew(&self) {
        *self.state() = State::default();
    }

    /// From now on no sender of this process takes it; false where one has.
    pub fn move_elsewhere(&self) -> bool {
        let mut state = self.state();
        let is_free = state.sender == SenderIs::NotYet;
        if is_free {
            state.receiver = ReceiverIs::Elsewhere;
        }
        is_free
    }

    /// The receiver goes, and tells its sender.
    pub fn leave(&self) {
        let mut state = self.state();
        if state.receiver == ReceiverIs::There {
            state.receiver = ReceiverIs::Gone;
        }
        // What nobody will take any more.
        state.bytes = VecDeque::new();
        drop(state);
        self.sender.ring(1);
    }

    // ---- the sender's end

    /// Becomes the sender, if the receiver is there and `is_first` says so. `None` where it has moved elsewhere.
    ///
    /// # Errors
    /// Those of `is_first`.
    pub fn take<E>(&self, is_first: impl FnOnce() -> Result<bool, E>) -> Result<Option<bool>, E> {
        let mut state = self.state();
        if state.receiver == ReceiverIs::Elsewhere {
            return Ok(None);
        }
        let is_taken = state.receiver == ReceiverIs::There && is_first()?;
        if is_taken {
            state.sender = SenderIs::There;
        }
        Ok(Some(is_taken))
    }

    /// What rings when the receiver has taken something, or has gone.
    pub fn awaited_by_sender(&self) -> Ready<'_> {
        Ready::to_hear(&self.sender)
    }

    /// Takes note of that. What is seen afterwards is no older.
    pub fn hear_receiver(&self) {
        self.sender.hear();
    }

    /// Whether the receiver is there.
    pub fn is_received(&self) -> bool {
        self.state().receiver == ReceiverIs::There
    }

    /// Sends the head, and the first bytes with it. False when the receiver has gone.
    pub fn send_head(&self, head: &[u8], first: &[u8]) -> bool {
        let mut state = self.state();
        let is_there = state.receiver == ReceiverIs::There;
        state.head = is_there.then(|| head.to_vec());
        state.bytes.extend(first);
        drop(state);
        self.bell.ring(1);
        is_there
    }

    /// Sends some of these bytes: how many, which is none while there is no room. `None` when the receiver has gone.
    pub fn send(&self, bytes: &[u8]) -> Option<usize> {
        let mut state = self.state();
        if state.receiver != ReceiverIs::There {
            return None;
        }
        let sent = bytes.len().min(CAPACITY.saturating_sub(state.bytes.len()));
        state.bytes.extend(&bytes[..sent]);
        drop(state);
        if sent > 0 {
            self.bell.ring(1);
        }
        Some(sent)
    }

    /// How many bytes the receiver's client has taken; `None` where it has not begun.
    pub fn taken(&self) -> Option<u64> {
        self.state().taken
    }

    /// The sender goes, and says whether its bytes are complete.
    pub fn end(&self, is_complete: bool) {
        let mut state = self.state();
        if state.sender == SenderIs::There {
            state.sender = if is_complete { SenderIs::Done } else { SenderIs::Gone };
        }
        drop(state);
        self.bell.ring(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken() -> Link {
        let link = Link::default();
        assert_eq!(link.take(|| Ok::<_, ()>(true)), Ok(Some(true)));
        link
    }

    #[test]
    fn a_receiver_that_takes_nothing_stops_its_sender() {
        let link = taken();
        let mut sent = 0;
        while let Some(more @ 1..) = link.send(&[7; 10_000]) {
            sent += more;
        }
        assert_eq!((sent, link.there()), (CAPACITY, CAPACITY));
        link.hear_receiver();
        assert!(!link.awaited_by_sender().is_ready());
        assert_eq!(link.give(|bytes| bytes.len().min(5)), 5);
        assert!(link.awaited_by_sender().is_ready() && link.send(&[7; 10]) == Some(5));
        link.leave();
        assert_eq!((link.send(&[7]), link.there()), (None, 0), "nothing is kept for one that has gone");
    }

    #[test]
    fn a_receiver_that_takes_another_processs_bytes_is_taken_by_nobody_here() {
        let link = Link::default();
        assert!(link.move_elsewhere());
        assert_eq!(link.take(|| Ok::<_, ()>(true)), Ok(None));
        assert!(!taken().move_elsewhere(), "one that has a sender stays");
    }
}
