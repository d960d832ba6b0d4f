//! The body of a request, as hyper hands it on.

use crate::gateway::body::{BODY_TIME, Incoming};
use crate::wake::Wake;
use bytes::Bytes;
use hyper::body::{Body as _, Incoming as Frames};
use std::error::Error as _;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;
use tokio::time::{Instant, Sleep};

/// How long a client may send nothing in a body.
const SILENCE: Duration = Duration::from_secs(10);

/// What has come and is not read yet.
#[derive(Default)]
pub(super) struct Come {
    pub bytes: Bytes,
    /// Why nothing more comes: the end, or what it broke off with.
    pub end: Option<Result<(), io::ErrorKind>>,
}

impl Come {
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty() && self.end.is_none()
    }

    pub fn take(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let (true, Some(Err(kind))) = (self.bytes.is_empty(), self.end) {
            return Err(kind.into());
        }
        // What is taken whole is not kept: connections are many and mostly idle.
        let taken = self.bytes.split_to(buffer.len().min(self.bytes.len()));
        buffer[..taken.len()].copy_from_slice(&taken);
        Ok(taken.len())
    }
}

/// A body that comes in frames, of which no more than one is in memory.
pub(super) struct RequestBody {
    frames: Frames,
    come: Come,
    until: Instant,
    timer: Option<Pin<Box<Sleep>>>,
    /// Whether anybody has asked for it.
    pub is_asked_for: bool,
}

impl RequestBody {
    /// The time starts now.
    pub fn new(frames: Frames) -> Self {
        let come = Come { end: frames.is_end_stream().then_some(Ok(())), ..Come::default() };
        Self { frames, come, until: Instant::now() + BODY_TIME, timer: None, is_asked_for: false }
    }

    /// Whether it has been read up to its end.
    pub fn is_read(&self) -> bool {
        self.come.end == Some(Ok(())) && self.come.bytes.is_empty()
    }

    /// Whether its chunks are no chunks.
    pub fn is_malformed(&self) -> bool {
        self.come.end == Some(Err(io::ErrorKind::InvalidData))
    }

    /// Has the next bytes, or the end.
    fn poll_come(&mut self, cx: &mut Context<'_>) -> Poll<&mut Come> {
        self.is_asked_for = true;
        while self.come.is_empty() {
            match ready!(Pin::new(&mut self.frames).poll_frame(cx)) {
                // Nobody here has a use for trailer fields (RFC 9112, 7.1.2 lets us drop them).
                Some(Ok(frame)) => self.come.bytes = frame.into_data().unwrap_or_default(),
                Some(Err(error)) => self.come.end = Some(Err(kind(&error))),
                None => self.come.end = Some(Ok(())),
            }
        }
        Poll::Ready(&mut self.come)
    }
}

fn kind(error: &hyper::Error) -> io::ErrorKind {
    let kind = error.source().and_then(|source| source.downcast_ref::<io::Error>()).map(io::Error::kind);
    match kind {
        Some(io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData) => io::ErrorKind::InvalidData,
        _ => io::ErrorKind::UnexpectedEof,
    }
}

impl Wake for RequestBody {
    fn poll_wake(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_read() { Poll::Pending } else { self.poll_come(cx).map(drop) }
    }
}

impl Incoming for RequestBody {
    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        if self.poll_come(cx).is_ready() {
            self.timer = None;
            return Poll::Ready(self.come.take(buffer));
        }
        let until = self.until;
        let timer =
            self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until.min(Instant::now() + SILENCE))));
        ready!(timer.as_mut().poll(cx));
        self.come.end = Some(Err(io::ErrorKind::TimedOut));
        Poll::Ready(self.come.take(buffer))
    }

    fn read_now(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.poll_come(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(come) => come.take(buffer),
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn give_time(&mut self, time: Duration) {
        (self.until, self.timer) = (Instant::now() + time, None);
    }
}
