//! The way to the client, and waiting: for the client, for others, and for the end.
//!
//! Whatever waits is an `async fn`, and each of its waits is one call that names all it waits for. For `serve` it is a task
//! among many. Under CGI, where a process does one thing, that call sleeps in `poll(2)`, so that the future is ready the
//! first time that it is [polled](run_blocking), and needs no runtime.

use crate::clock::instant;
use crate::wake::Wake;
use rustix::fd::BorrowedFd;
use std::future::poll_fn;
#[cfg(feature = "serve")]
use std::pin::Pin;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// Why a wait is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// One of the wakes has come.
    Knock,
    /// The client can take more bytes.
    Writable,
    /// The time was up.
    Tick,
    /// The client, or the web server for it, has hung up.
    HungUp,
    /// This process has been asked to stop: told once, so that a last word can be waited for.
    Stopped,
}

/// The client that waits for an answer.
pub trait Client: Send + Sync {
    /// See [`Client::wait`], which is what to call.
    fn poll_wait(
        &mut self,
        cx: &mut Context<'_>,
        wakes: &mut [&mut dyn Wake],
        to_write: bool,
        until: Instant,
    ) -> Poll<Woken>;

    /// Returns when whatever of this kind the client has sent before, on whatever connection, is done. To be asked before
    /// anything is waited for.
    #[cfg(feature = "serve")]
    fn turn<'a>(&'a self, _kind: &'a str) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
        Box::pin(std::future::ready(()))
    }
}

impl dyn Client + '_ {
    /// The [turn](Client::turn) of a kind. Where each request is a process, nobody knows of others, and it is at once.
    pub fn turn_of(&self, kind: impl FnOnce() -> String) -> impl Future<Output = ()> {
        #[cfg(feature = "serve")]
        return async move { self.turn(&kind()).await };
        #[cfg(not(feature = "serve"))]
        {
            let _ = kind;
            std::future::ready(())
        }
    }

    /// Waits until the client has hung up, this process is asked to stop, one of `wakes` has come, the client can take bytes
    /// (if `to_write`), or `limit` is over.
    pub async fn wait(&mut self, wakes: &mut [&mut dyn Wake], to_write: bool, limit: Duration) -> Woken {
        let until = instant() + limit;
        poll_fn(|cx| self.poll_wait(cx, wakes, to_write, until)).await
    }
}

/// The way to the client, once the head of a streamed reply is out.
pub trait Outgoing: Client {
    /// Whether the way to the client is our own socket, and not a web server's.
    fn is_own(&self) -> bool;

    /// Whether a write has failed: the client has gone.
    fn is_broken(&self) -> bool;

    /// Whether the client is there and can take bytes.
    fn is_writable(&self) -> bool;

    /// Writes some of `bytes` to a client that can take some, and says how many are on their way. What it has not taken is
    /// to be given to it again.
    fn write(&mut self, bytes: &[u8]) -> usize;

    /// Makes the body end cut short, where the client can see that.
    fn cut(&mut self);

    /// From now on there is that much time for all the rest: then the connection ends, also where it takes nothing. Under CGI
    /// that is the web server's business.
    fn give_time(&mut self, _time: Duration) {}

    /// Has this trailer field follow the body, if the request says that it [takes them](super::Request::takes_trailers) and
    /// the answer's `Trailer` names it.
    fn trail(&mut self, _name: &'static str, _value: &'static str) {}

    /// Moves bytes from a pipe to the client, past this process's memory and without waiting for either, and says how many
    /// are on their way: none where the client can take none, or has gone. `None` where they have to be
    /// [written](Outgoing::write).
    fn splice(&mut self, _pipe: BorrowedFd<'_>) -> Option<u64> {
        None
    }
}

impl dyn Outgoing + '_ {
    /// As for any [client](Client).
    pub async fn wait(&mut self, wakes: &mut [&mut dyn Wake], to_write: bool, limit: Duration) -> Woken {
        let client: &mut dyn Client = self;
        client.wait(wakes, to_write, limit).await
    }
}

/// The way to the client where the connection is handed over to another protocol (RFC 9110, 7.8).
pub trait Switching: Outgoing {
    /// Answers the handshake, with the subprotocol that both are to speak. Nothing is written before. The bytes that have to
    /// be written first of all: where this process writes the head of the answer itself.
    fn switch(&mut self, protocol: Option<&str>) -> Vec<u8>;
}

/// Runs what waits only by calls that sleep in this thread, as those of CGI do.
///
/// # Panics
/// When it waits for something else: there is no runtime here that could go on.
pub fn run_blocking<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => unreachable!("a wait did not sleep in this thread"),
    }
}

/// A client that hangs up when it is to, and otherwise lets all time pass.
#[cfg(test)]
pub(crate) struct Simulated {
    pub is_there: bool,
}

#[cfg(test)]
impl Client for Simulated {
    fn poll_wait(&mut self, _: &mut Context<'_>, _: &mut [&mut dyn Wake], _: bool, _: Instant) -> Poll<Woken> {
        Poll::Ready(if self.is_there { Woken::Tick } else { Woken::HungUp })
    }
}
