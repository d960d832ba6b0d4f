//! The body of an answer, as hyper takes it.
//!
//! A stream is a future that writes into a slot for one piece; hyper takes the piece when its socket has room. The future
//! runs in the connection's own task, so whatever wakes a stream wakes one task. When the client has gone, hyper drops the
//! body: the future goes on in a task of its own, and is told.

use super::listening::Socket;
use super::waiting::Waiting;
use crate::gateway::client::{Client, Outgoing, Woken};
use crate::gateway::reply::{Producer, Producing};
use crate::wake::Wake;
use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use hyper::header::{HeaderName, HeaderValue};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// A piece of a body has at most so many bytes: what waits for a slow reader.
const PIECE_SIZE: usize = 64 * 1024;

/// What the future and hyper share.
#[derive(Default)]
pub(super) struct Slot(Mutex<State>);

#[derive(Default)]
struct State {
    piece: Option<Bytes>,
    taken: Taken,
    /// The body is to end cut short.
    is_cut: bool,
    /// hyper has had a turn to send what it holds: when a body fails, it drops that.
    is_flushed: bool,
    /// What is to follow its end.
    trailer: Option<(&'static str, &'static str)>,
}

/// How much of the body hyper has taken.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Taken {
    /// It may take more.
    #[default]
    NotYet,
    /// Everything, and it has let go of it.
    All,
    /// It has let go of it before, because the client has gone.
    Part,
}

impl Slot {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A body.
pub(super) enum AnswerBody {
    Whole(Bytes),
    /// Of which only the head is asked for: there would be one.
    Head,
    /// With how many bytes are still to come, where that is known.
    Stream {
        producing: Option<Producing<'static>>,
        slot: Arc<Slot>,
        left: Option<u64>,
    },
}

impl AnswerBody {
    /// What `produce` writes: so many bytes, where that is known.
    pub fn stream(produce: Producer, length: Option<u64>, waiting: Waiting, socket: &Socket) -> Self {
        let slot = Arc::<Slot>::default();
        let mut way = Way { slot: Arc::clone(&slot), waiting, socket: socket.clone(), deadline: None };
        let producing = Box::pin(async move { produce(&mut way).await });
        Self::Stream { producing: Some(producing), slot, left: length }
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let (producing, slot, left) = match &mut *self {
            Self::Head => return Poll::Ready(None),
            Self::Whole(bytes) if bytes.is_empty() => return Poll::Ready(None),
            Self::Whole(bytes) => return Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::Stream { producing, slot, left } => (producing, slot, left),
        };
        // One that has written may go on at once.
        if slot.lock().piece.is_none()
            && let Some(future) = producing
            && future.as_mut().poll(cx).is_ready()
        {
            *producing = None;
        }
        let mut state = slot.lock();
        match state.piece.take() {
            Some(piece) => {
                *left = left.map(|left| left.saturating_sub(piece.len() as u64));
                Poll::Ready(Some(Ok(Frame::data(piece))))
            }
            None if producing.is_some() => Poll::Pending,
            // What has fewer bytes than it was to have is no end either: over HTTP/2, too, the client shall see that.
            None if state.is_cut || left.is_some_and(|left| left > 0) => {
                if !std::mem::replace(&mut state.is_flushed, true) {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Poll::Ready(Some(Err(io::ErrorKind::UnexpectedEof.into())))
            }
            None => Poll::Ready(state.trailer.take().map(|(name, value)| {
                let fields = [(HeaderName::from_static(name), HeaderValue::from_static(value))];
                Ok(Frame::trailers(fields.into_iter().collect()))
            })),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_empty(),
            Self::Head | Self::Stream { .. } => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Stream { left: Some(left), .. } => SizeHint::with_exact(*left),
            Self::Head | Self::Stream { .. } => SizeHint::default(),
        }
    }
}

impl Drop for AnswerBody {
    fn drop(&mut self) {
        if let Self::Stream { producing, slot, left } = self
            && let Some(producing) = producing.take()
        {
            slot.lock().taken = if *left == Some(0) { Taken::All } else { Taken::Part };
            if let Ok(runtime) = tokio::runtime::Handle::try_current() {
                runtime.spawn(producing);
            }
        }
    }
}

/// The way to a client, as whoever writes to it sees it.
struct Way {
    slot: Arc<Slot>,
    waiting: Waiting,
    socket: Socket,
    /// What ends the connection in time: hyper asks for no more of a body while its socket takes nothing.
    deadline: Option<JoinHandle<()>>,
}

impl Drop for Way {
    fn drop(&mut self) {
        if let Some(deadline) = &self.deadline {
            deadline.abort();
        }
    }
}

impl Client for Way {
    fn poll_wait(
        &mut self,
        cx: &mut Context<'_>,
        wakes: &mut [&mut dyn Wake],
        to_write: bool,
        until: Instant,
    ) -> Poll<Woken> {
        let state = self.slot.lock();
        let (taken, is_writable) = (state.taken, state.piece.is_none());
        drop(state);
        match taken {
            Taken::NotYet => {}
            // The connection's own task is woken by its socket.
            Taken::All => self.waiting.forget_client(),
            Taken::Part => return Poll::Ready(Woken::HungUp),
        }
        self.waiting.poll(cx, wakes, to_write && is_writable, until)
    }
}

impl Outgoing for Way {
    fn is_own(&self) -> bool {
        true
    }

    fn is_broken(&self) -> bool {
        let state = self.slot.lock();
        state.taken == Taken::Part || state.is_cut
    }

    fn is_writable(&self) -> bool {
        let state = self.slot.lock();
        state.taken != Taken::Part && state.piece.is_none()
    }

    fn write(&mut self, bytes: &[u8]) -> usize {
        let mut state = self.slot.lock();
        if bytes.is_empty() || state.taken == Taken::Part || state.piece.is_some() {
            return 0;
        }
        let piece = &bytes[..bytes.len().min(PIECE_SIZE)];
        state.piece = Some(Bytes::copy_from_slice(piece));
        piece.len()
    }

    fn cut(&mut self) {
        self.slot.lock().is_cut = true;
    }

    fn give_time(&mut self, time: Duration) {
        let socket = self.socket.clone();
        self.deadline = Some(tokio::spawn(async move {
            tokio::time::sleep(time).await;
            socket.end();
        }));
    }

    fn trail(&mut self, name: &'static str, value: &'static str) {
        self.slot.lock().trailer = Some((name, value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::Response;
    use hyper::server::conn::http1;
    use hyper_util::rt::TokioIo;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[test]
    fn what_came_before_a_body_fails_is_sent() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            for (piece, is_cut) in [("", false), ("", true), ("abc", false), ("abc", true)] {
                let (mut client, server) = tokio::io::duplex(4096);
                client.write_all(b"GET / HTTP/1.1\r\nHost: relay\r\n\r\n").await.unwrap();
                let answer = hyper::service::service_fn(async |_| {
                    let slot = Arc::<Slot>::default();
                    let producing = Arc::clone(&slot);
                    let producing: Producing = Box::pin(async move {
                        let mut state = producing.lock();
                        state.piece = (!piece.is_empty()).then(|| Bytes::from(piece));
                        state.is_cut = is_cut;
                    });
                    io::Result::Ok(Response::new(AnswerBody::Stream {
                        producing: Some(producing),
                        slot,
                        left: Some(5),
                    }))
                });
                assert!(http1::Builder::new().serve_connection(TokioIo::new(server), answer).await.is_err());
                let mut got = String::new();
                client.read_to_string(&mut got).await.unwrap();
                assert!(got.starts_with("HTTP/1.1 200") && got.ends_with(&format!("\r\n\r\n{piece}")), "{got:?}");
            }
        });
    }
}
