//! Where `serve` listens, and what comes in there.

use super::limits::{LONGEST_SILENCE, WORTH_DRAINING};
use super::order::{Entrance, Order, Seat};
use crate::wake::{Ready, Wake as _};
use rustix::event::PollFlags;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// `ADDR:PORT`.
    Tcp(SocketAddr),
    /// The same, with TLS.
    Tls(SocketAddr),
    /// `unix:PATH`.
    Unix(PathBuf),
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "http://{address}"),
            Self::Tls(address) => write!(f, "https://{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Port 8080 of this machine alone.
impl Default for Address {
    fn default() -> Self {
        Self::Tcp((std::net::Ipv4Addr::LOCALHOST, 8080).into())
    }
}

/// A listener, and where it is.
pub(super) struct Listening {
    socket: Arc<OwnedFd>,
    /// Of a UNIX socket: its path, and which file was made there.
    file: Option<(PathBuf, Option<(u64, u64)>)>,
}

/// The standard library's backlog is too short for thousands of clients that come back at once.
const BACKLOG: i32 = 4096;

impl Listening {
    fn new(socket: impl Into<OwnedFd>, file: Option<(PathBuf, Option<(u64, u64)>)>) -> io::Result<Self> {
        let socket = socket.into();
        rustix::io::ioctl_fionbio(&socket, true)?;
        Ok(Self { socket: Arc::new(socket), file })
    }

    pub fn bind(address: &Address) -> io::Result<Self> {
        let listening = match address {
            Address::Tcp(address) | Address::Tls(address) => Self::new(std::net::TcpListener::bind(address)?, None),
            Address::Unix(path) => {
                // A socket that a killed server has left behind answers nobody, and keeps its place. Any other file
                // refuses connections too, and is not ours to remove.
                let is_socket = std::fs::symlink_metadata(path).is_ok_and(|about| about.file_type().is_socket());
                let refuses = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
                if is_socket && std::os::unix::net::UnixStream::connect(path).is_err_and(refuses) {
                    std::fs::remove_file(path)?;
                }
                let listener = std::os::unix::net::UnixListener::bind(path)?;
                // Whom it is for, the folder says, as with a port: the proxy in front is another user.
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
                Self::new(listener, Some((path.clone(), file_at(path))))
            }
        }?;
        rustix::net::listen(&listening.socket, BACKLOG)?;
        Ok(listening)
    }

    /// Those that a service manager has opened for this process: `LISTEN_FDS` and `LISTEN_PID`, see `sd_listen_fds(3)`.
    pub fn inherited() -> io::Result<Vec<Self>> {
        let mut inherited = listenfd::ListenFd::from_env();
        let mut listening = Vec::new();
        for index in 0..inherited.len() {
            if let Ok(Some(listener)) = inherited.take_tcp_listener(index) {
                listening.push(Self::new(listener, None)?);
            } else if let Some(listener) = inherited.take_unix_listener(index)? {
                let path = listener.local_addr()?.as_pathname().map(Path::to_owned).unwrap_or_default();
                // The file is the service manager's.
                listening.push(Self::new(listener, Some((path, None)))?);
            }
        }
        Ok(listening)
    }

    /// Port 0 means that the system has chosen one.
    pub fn address(&self, has_tls: bool) -> io::Result<Address> {
        if let Some((path, _)) = &self.file {
            return Ok(Address::Unix(path.clone()));
        }
        let address = rustix::net::getsockname(&self.socket)?.try_into()?;
        Ok(if has_tls { Address::Tls(address) } else { Address::Tcp(address) })
    }

    pub fn is_tcp(&self) -> bool {
        self.file.is_none()
    }

    /// Where its connections come in, in order.
    pub fn open(&self, order: &'static Order) -> io::Result<Entrance> {
        order.open(Arc::clone(&self.socket))
    }

    /// What is ready when a connection has come.
    pub fn wake(&self) -> Ready<'_> {
        Ready::to_read(self.socket.as_fd())
    }

    /// The next connection, and who it is from.
    pub async fn accept(&self, entrance: &Entrance, wake: &mut Ready<'_>) -> io::Result<(Socket, Option<IpAddr>)> {
        let accept = poll_fn(|cx| {
            loop {
                if let Poll::Ready(accepted) = entrance.accept(cx) {
                    return Poll::Ready(accepted);
                }
                ready!(wake.poll_wake(cx));
            }
        });
        let (socket, seat) = accept.await?;
        let peer = seat.peer;
        // Of a UNIX socket too: what is read and written is the same there, and what is TCP's own is set here and nowhere else.
        let stream = TcpStream::from_std(socket.into())?;
        if self.is_tcp() {
            stream.set_nodelay(true)?;
        }
        let socket = Socket(Arc::new((stream, seat)));
        // A client whose power was cut says nothing; its machine stops acknowledging.
        socket.set_silence(LONGEST_SILENCE);
        Ok((socket, peer))
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        if let Some((path, file @ Some(_))) = &self.file
            // A newer server may have taken its place.
            && file_at(path) == *file
        {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Which file a path names.
fn file_at(path: &Path) -> Option<(u64, u64)> {
    std::fs::symlink_metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

/// A connection's socket, which hyper reads and writes, and whoever answers may set.
#[derive(Clone)]
pub(super) struct Socket(Arc<(TcpStream, Seat)>);

impl Socket {
    fn stream(&self) -> &TcpStream {
        &self.0.0
    }

    /// Its place in the order of what comes in.
    pub fn seat(&self) -> &Seat {
        &self.0.1
    }

    /// How long sent bytes may stay unacknowledged before the connection counts as broken.
    pub fn set_silence(&self, limit: Duration) {
        // Not a TCP socket, perhaps.
        let limit = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX);
        let _ = rustix::net::sockopt::set_tcp_user_timeout(self, limit);
    }

    /// Ends the connection, whoever uses it.
    pub fn end(&self) {
        let _ = rustix::net::shutdown(self, rustix::net::Shutdown::Both);
    }

    /// Closes such that a client that is still sending gets to see the answer: a socket closed with unread bytes in it
    /// resets the connection (RFC 9112, 9.6).
    pub async fn linger(&self) {
        use tokio::io::AsyncReadExt as _;
        let mut socket = self.clone();
        if rustix::net::shutdown(&socket, rustix::net::Shutdown::Write).is_err() {
            return;
        }
        let drain = async {
            let (mut buffer, mut left) = ([0; 4096], WORTH_DRAINING);
            while let Ok(got) = socket.read(&mut buffer).await
                && got > 0
                && left > 0
            {
                left = left.saturating_sub(got as u64);
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs(2), drain).await;
    }

    /// How much may wait in the kernel to be sent.
    pub fn set_send_buffer(&self, size: usize) {
        let _ = rustix::net::sockopt::set_socket_send_buffer_size(self, size);
    }

    /// Whether the client has gone, or said that it will send nothing more, which only one that has gone says while it waits;
    /// otherwise this task is woken once it does. That of one whose next request is there already is not seen.
    pub fn poll_hung_up(&self, cx: &mut Context<'_>) -> bool {
        let ends = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        match self.stream().poll_peek(cx, &mut ReadBuf::new(&mut [0])) {
            Poll::Ready(Ok(_)) => crate::look(self.as_fd(), PollFlags::RDHUP).intersects(ends),
            Poll::Ready(Err(_)) => true,
            Poll::Pending => false,
        }
    }

    /// Whether a client without TLS begins with the preface of HTTP/2 (RFC 9113, 3.4): no method of HTTP/1.1 is called PRI.
    ///
    /// # Errors
    /// When it sends nothing, or goes.
    pub async fn speaks_http2(&self) -> io::Result<bool> {
        const BEGIN: &[u8] = b"PRI ";
        let mut bytes = [0; BEGIN.len()];
        self.stream().peek(&mut bytes).await?;
        Ok(bytes == BEGIN)
    }

    /// Whether it may take bytes; otherwise this task is woken once it does.
    pub fn poll_writable(&self, cx: &mut Context<'_>) -> bool {
        self.stream().poll_write_ready(cx).is_ready()
    }

    /// Writes what it takes, where it is known to [take](Socket::poll_writable) some.
    pub fn write_some(&self, bytes: &[u8]) -> io::Result<usize> {
        self.stream().try_write(bytes)
    }

    /// Writes what can be written at once.
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        // A socket that has just been accepted is not known to be writable yet.
        Ok(rustix::io::write(self, bytes)?)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream().as_fd()
    }
}

/// What has to wait until it is ready, and tries again.
fn retry<T>(
    cx: &mut Context<'_>,
    mut poll_ready: impl FnMut(&mut Context<'_>) -> Poll<io::Result<()>>,
    mut attempt: impl FnMut() -> io::Result<T>,
) -> Poll<io::Result<T>> {
    loop {
        ready!(poll_ready(cx))?;
        match attempt() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            done => return Poll::Ready(done),
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let stream = self.stream();
        let room = buffer.remaining();
        retry(
            cx,
            |cx| stream.poll_read_ready(cx),
            || {
                let mut got = 0;
                // What is not read into is not touched: of thousands of idle connections each has a buffer.
                let mut read = || self.seat().read(stream, || stream.try_read_buf(buffer));
                let tried = stream.try_io(Interest::READABLE, || {
                    got = read()?;
                    // What has left room was all: the next one waits, instead of asking the kernel.
                    if (1..room).contains(&got) { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
                });
                if got > 0 { Ok(()) } else { tried }
            },
        )
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        retry(cx, |cx| self.stream().poll_write_ready(cx), || self.stream().try_write(bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        retry(cx, |cx| self.stream().poll_write_ready(cx), || self.stream().try_write_vectored(pieces))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match rustix::net::shutdown(&*self, rustix::net::Shutdown::Write) {
            Ok(()) | Err(rustix::io::Errno::NOTCONN) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(error.into())),
        }
    }
}
