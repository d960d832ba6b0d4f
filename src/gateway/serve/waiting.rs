//! What the waits of all tasks share.

use super::listening::Socket;
use super::order::Turn;
use crate::gateway::client::{Client, Woken};
use crate::gateway::reply::Producing;
use crate::wake::{Wake, poll_any};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::time::Sleep;

static IS_STOPPING: AtomicBool = AtomicBool::new(false);
static STOP: Notify = Notify::const_new();

/// Has every task end that waits, or will wait.
pub(super) fn stop() {
    IS_STOPPING.store(true, Ordering::SeqCst);
    STOP.notify_waiters();
}

/// Whether the server is being stopped.
pub(super) fn is_stopping() -> bool {
    IS_STOPPING.load(Ordering::SeqCst)
}

/// Returns when the server is being stopped.
pub(super) async fn stopped() {
    let stop = STOP.notified();
    if !is_stopping() {
        stop.await;
    }
}

/// A task's timer, and its place among those that are told to stop. Both are made when they are first needed, and kept: a
/// stream waits a thousand times a second.
#[derive(Default)]
pub(super) struct Waiting {
    /// Whose end is the client's, where it is not known otherwise.
    socket: Option<Socket>,
    timer: Option<Pin<Box<Sleep>>>,
    stop: Option<Pin<Box<Notified<'static>>>>,
    has_told_stop: bool,
}

impl Waiting {
    /// For a client behind this socket, if no other request can come on it meanwhile.
    pub fn new(socket: Option<Socket>) -> Self {
        Self { socket, ..Self::default() }
    }

    /// Does not look for the client's end any more: only one task can be woken by it.
    pub fn forget_client(&mut self) {
        self.socket = None;
    }

    /// What every wait may end for; `is_writable` says that the client can take bytes, and that it is asked for that.
    pub fn poll(
        &mut self,
        cx: &mut Context<'_>,
        wakes: &mut [&mut dyn Wake],
        is_writable: bool,
        until: Instant,
    ) -> Poll<Woken> {
        if !self.has_told_stop {
            // Once: the task has one waker, and to ask again would take a lock that all tasks share.
            if self.stop.is_none() {
                let _ = self.stop.insert(Box::pin(STOP.notified())).as_mut().poll(cx);
            }
            if is_stopping() {
                (self.has_told_stop, self.stop) = (true, None);
                return Poll::Ready(Woken::Stopped);
            }
        }
        if self.socket.as_ref().is_some_and(|socket| socket.poll_hung_up(cx)) {
            return Poll::Ready(Woken::HungUp);
        }
        if poll_any(cx, wakes).is_ready() {
            return Poll::Ready(Woken::Knock);
        }
        if is_writable {
            return Poll::Ready(Woken::Writable);
        }
        let until = tokio::time::Instant::from_std(until);
        if until <= tokio::time::Instant::now() {
            return Poll::Ready(Woken::Tick);
        }
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
        // Most waits end long before their time, and the next one's is later: a timer that is due too early is set anew then,
        // and not at each wait.
        if timer.deadline() > until {
            timer.as_mut().reset(until);
        }
        while timer.as_mut().poll(cx).is_ready() {
            if until <= tokio::time::Instant::now() {
                return Poll::Ready(Woken::Tick);
            }
            timer.as_mut().reset(until);
        }
        Poll::Pending
    }
}

/// The client whose request is being answered. Where HTTP/2 tells that it has gone, hyper drops whoever answers.
pub(super) struct Asking {
    pub waiting: Waiting,
    pub turn: Arc<Turn>,
}

impl Client for Asking {
    fn poll_wait(&mut self, cx: &mut Context<'_>, wakes: &mut [&mut dyn Wake], _: bool, until: Instant) -> Poll<Woken> {
        self.waiting.poll(cx, wakes, false, until)
    }

    fn turn<'a>(&'a self, kind: &'a str) -> Producing<'a> {
        Box::pin(self.turn.come(kind))
    }
}
