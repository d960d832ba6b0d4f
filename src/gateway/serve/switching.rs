//! A connection that is handed over to another protocol (RFC 9110, 7.8).

use super::incoming::Come;
use super::waiting::Waiting;
use crate::gateway::body::Incoming;
use crate::gateway::client::{Client, Outgoing, Switching, Woken};
use crate::wake::Wake;
use bytes::Bytes;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Instant;
use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};
use tokio::sync::oneshot;

/// How much is read, and how much waits to be written, at once.
const BUFFER_SIZE: usize = 8 * 1024;

/// How far the handover has come.
enum Stage {
    /// The handshake is not answered yet.
    Asked(OnUpgrade),
    Open(TokioIo<Upgraded>),
    Gone,
}

/// The connection, which both ways share. One task has both, so it never waits for the lock.
struct Connection(Mutex<Stage>);

impl Connection {
    fn lock(&self) -> MutexGuard<'_, Stage> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with the connection once it is there.
    fn poll_with<T>(
        &self,
        cx: &mut Context<'_>,
        work: impl FnOnce(Pin<&mut TokioIo<Upgraded>>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let mut stage = self.lock();
        if let Stage::Asked(asked) = &mut *stage {
            *stage =
                ready!(Pin::new(asked).poll(cx)).map_or(Stage::Gone, |upgraded| Stage::Open(TokioIo::new(upgraded)));
        }
        let done = match &mut *stage {
            Stage::Open(connection) => ready!(work(Pin::new(connection), cx)),
            _ => Err(io::ErrorKind::BrokenPipe.into()),
        };
        if done.is_err() {
            *stage = Stage::Gone;
        }
        Poll::Ready(done)
    }
}

/// The two ways of a connection, once the answer to the handshake is known: the subprotocol that is to be spoken.
pub(super) fn ways(asked: OnUpgrade) -> (Input, Output, oneshot::Receiver<Option<String>>) {
    let connection = Arc::new(Connection(Mutex::new(Stage::Asked(asked))));
    let (answer, answered) = oneshot::channel();
    let input = Input { connection: Arc::clone(&connection), come: Come::default() };
    (input, Output { connection, answer: Some(answer), pending: Vec::new(), waiting: Waiting::default() }, answered)
}

/// The way from the client.
pub(super) struct Input {
    connection: Arc<Connection>,
    come: Come,
}

impl Input {
    /// Has some bytes, or the end.
    fn poll_come(&mut self, cx: &mut Context<'_>) -> Poll<&mut Come> {
        if self.come.is_empty() {
            let mut buffer = [0; BUFFER_SIZE];
            let mut buffer = ReadBuf::new(&mut buffer);
            match ready!(self.connection.poll_with(cx, |connection, cx| connection.poll_read(cx, &mut buffer))) {
                Ok(()) if buffer.filled().is_empty() => self.come.end = Some(Ok(())),
                Ok(()) => self.come.bytes = Bytes::copy_from_slice(buffer.filled()),
                Err(error) => self.come.end = Some(Err(error.kind())),
            }
        }
        Poll::Ready(&mut self.come)
    }
}

impl Wake for Input {
    fn poll_wake(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.poll_come(cx).map(drop)
    }
}

impl Incoming for Input {
    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        self.poll_come(cx).map(|come| come.take(buffer))
    }

    fn read_now(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.poll_come(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(come) => come.take(buffer),
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

/// The way to the client.
pub(super) struct Output {
    connection: Arc<Connection>,
    /// `None` once the handshake is answered.
    answer: Option<oneshot::Sender<Option<String>>>,
    pending: Vec<u8>,
    waiting: Waiting,
}

impl Output {
    /// Has nothing pending any more.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { connection, pending, .. } = self;
        connection.poll_with(cx, |mut connection, cx| {
            while !pending.is_empty() {
                let written = ready!(connection.as_mut().poll_write(cx, pending))?;
                pending.drain(..written);
            }
            connection.poll_flush(cx)
        })
    }
}

impl Client for Output {
    fn poll_wait(
        &mut self,
        cx: &mut Context<'_>,
        wakes: &mut [&mut dyn Wake],
        to_write: bool,
        until: Instant,
    ) -> Poll<Woken> {
        let flushed = match &mut self.answer {
            // Whoever asked has gone.
            Some(answer) => answer.poll_closed(cx).map(|()| Err(io::ErrorKind::BrokenPipe.into())),
            None => self.poll_flush(cx),
        };
        match flushed {
            Poll::Ready(Err(_)) => Poll::Ready(Woken::HungUp),
            _ => self.waiting.poll(cx, wakes, to_write && flushed.is_ready(), until),
        }
    }
}

impl Outgoing for Output {
    fn is_own(&self) -> bool {
        true
    }

    fn is_broken(&self) -> bool {
        matches!(&*self.connection.lock(), Stage::Gone)
    }

    fn is_writable(&self) -> bool {
        self.pending.is_empty() && matches!(&*self.connection.lock(), Stage::Open(_))
    }

    fn write(&mut self, bytes: &[u8]) -> usize {
        if !self.pending.is_empty() || self.answer.is_some() || self.is_broken() {
            return 0;
        }
        let bytes = &bytes[..bytes.len().min(BUFFER_SIZE)];
        self.pending.extend_from_slice(bytes);
        // Nearly always the system takes it at once.
        let _ = self.poll_flush(&mut Context::from_waker(Waker::noop()));
        bytes.len()
    }

    fn cut(&mut self) {
        *self.connection.lock() = Stage::Gone;
    }
}

impl Switching for Output {
    fn switch(&mut self, protocol: Option<&str>) -> Vec<u8> {
        if let Some(answer) = self.answer.take() {
            let _ = answer.send(protocol.map(str::to_owned));
        }
        // hyper writes the head.
        Vec::new()
    }
}
