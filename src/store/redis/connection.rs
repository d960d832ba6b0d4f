//! A connection to one server. It waits as both doors do ([`wake`](crate::wake)), so that one code serves a program for one
//! request and thousands of tasks.

use super::reply::{Meaning, Reply, command, read, text};
#[cfg(feature = "tls")]
use super::tls::Tls;
use crate::clock::instant;
#[cfg(feature = "tls")]
use crate::config::redis::Trust;
use crate::config::redis::{Address, Password, Server};
use crate::store::remote::{Reason, Remote};
use crate::wake::{Ready, wait};
use crate::workers::blocking;
use rustix::buffer::spare_capacity;
use rustix::event::PollFlags;
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with, sockopt};
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Instant;

/// How much is read at once.
const PIECE: usize = 16 * 1024;

/// What a server is, as its greeting tells.
enum Role {
    /// One that takes writes, or a node of a cluster, which says itself who does.
    Primary,
    Replica,
    Sentinel,
}

/// How the beginning of a connection ended.
pub enum Opened {
    /// It can be asked.
    Here(Connection),
    /// This server is another's replica, or its sentinel.
    Elsewhere(Server),
}

/// A connection to a server. A call on it that is not waited for to its end leaves it useless.
pub struct Connection {
    socket: OwnedFd,
    #[cfg(feature = "tls")]
    tls: Option<Box<Tls>>,
    input: Vec<u8>,
}

impl Connection {
    /// Connects, and logs in.
    ///
    /// # Errors
    /// When it cannot be reached, or refuses the login.
    pub async fn open(server: &Server, address: &Address, until: Instant) -> Result<Opened, Remote> {
        Ok(Self::open_and_ask(server, address, &[], 0, until).await?.0)
    }

    /// The same, and asks something with the login, which saves a round trip; tells the replies, too. Whatever this comes to, it
    /// may have been done, and also where the login is refused: it must be something that does no harm.
    ///
    /// # Errors
    /// The same; and when there are no replies in time.
    pub async fn open_and_ask(
        server: &Server,
        address: &Address,
        commands: &[u8],
        replies: usize,
        until: Instant,
    ) -> Result<(Opened, Vec<Reply>), Remote> {
        let mut connection = Self::connect(server, address, until).await?;
        let hello = match &address.password {
            Some(Password(password)) => {
                &["HELLO", "2", "AUTH", address.user.as_deref().unwrap_or("default"), password][..]
            }
            None => &["HELLO", "2"],
        };
        let number = address.database.to_string();
        let select = if address.database > 0 { command(["SELECT", &number]) } else { Vec::new() };
        let all = [&command(hello), &select, commands].concat();
        let own = 1 + usize::from(!select.is_empty());
        let mut greetings = connection.exchange(&all, own + replies, until).await?;
        let replies = greetings.split_off(own);
        let mut greetings = greetings.into_iter();
        let role = match Role::of(greetings.next(), server) {
            // A sentinel seldom has a password, and is asked nothing that it would need one for.
            Err(refused) if address.password.is_some() => {
                let reply = connection.ask(&["HELLO", "2"], server, until).await;
                match reply.and_then(|reply| Role::of(Some(reply), server)) {
                    Ok(Role::Sentinel) => Role::Sentinel,
                    _ => return Err(refused),
                }
            }
            role => role?,
        };
        let primary = match role {
            Role::Primary => {
                greetings.next().map_or(Ok(Reply::Null), |selected| answer(Some(selected), server))?;
                return Ok((Opened::Here(connection), replies));
            }
            Role::Replica => connection.primary_of_replica(server, until).await?,
            Role::Sentinel => connection.primary_of_sentinel(server, until).await?,
        };
        Ok((Opened::Elsewhere(primary), replies))
    }

    #[cfg_attr(
        not(feature = "tls"),
        allow(unused_mut, unused_variables, reason = "there is nothing to shake hands about")
    )]
    async fn connect(server: &Server, address: &Address, until: Instant) -> Result<Self, Remote> {
        let mut connection = Self {
            socket: reach(server, until).await?,
            #[cfg(feature = "tls")]
            tls: None,
            input: Vec::new(),
        };
        #[cfg(feature = "tls")]
        if let (Some(trust), Server::Tcp(host, _)) = (&address.tls, server) {
            connection.shake_hands(host, trust, until).await?;
        }
        Ok(connection)
    }

    async fn primary_of_replica(&mut self, server: &Server, until: Instant) -> Result<Server, Remote> {
        let Reply::Array(role) = self.ask(&["ROLE"], server, until).await? else { return Err(no_primary(server)) };
        named(role.get(1), role.get(2)).ok_or_else(|| no_primary(server))
    }

    async fn primary_of_sentinel(&mut self, server: &Server, until: Instant) -> Result<Server, Remote> {
        let Reply::Array(primaries) = self.ask(&["SENTINEL", "MASTERS"], server, until).await? else {
            return Err(no_primary(server));
        };
        let [Reply::Array(fields)] = &primaries[..] else {
            return Err(Remote::new(
                Reason::Failed,
                format!("{server} watches {} primaries, not one", primaries.len()),
            ));
        };
        named(field(fields, "ip"), field(fields, "port")).ok_or_else(|| no_primary(server))
    }

    /// One command, whose error is the server's.
    async fn ask(&mut self, arguments: &[&str], server: &Server, until: Instant) -> Result<Reply, Remote> {
        answer(self.exchange(&command(arguments), 1, until).await?.pop(), server)
    }

    /// Sends commands, and waits for as many replies.
    ///
    /// # Errors
    /// When they have not all come in time. Nobody knows which of the commands were done then.
    pub async fn exchange(&mut self, commands: &[u8], replies: usize, until: Instant) -> Result<Vec<Reply>, Remote> {
        self.send(commands, until).await?;
        let mut got = Vec::with_capacity(replies);
        while got.len() < replies {
            // No reply is there at once.
            wait_for(&self.socket, false, until).await?;
            while got.len() < replies
                && let Some(reply) = self.take()?
            {
                got.push(reply);
            }
        }
        Ok(got)
    }

    #[cfg(feature = "tls")]
    async fn shake_hands(&mut self, host: &str, trust: &Trust, until: Instant) -> Result<(), Remote> {
        let tls = self.tls.insert(Box::new(Tls::new(host, trust)?));
        loop {
            send_all(tls, &self.socket, until).await?;
            if !tls.is_shaking_hands() {
                return Ok(());
            }
            match tls.hear(&self.socket)? {
                Some(0) => return Err(closed()),
                Some(_) => {}
                None => wait_for(&self.socket, false, until).await?,
            }
        }
    }

    /// Sends commands.
    ///
    /// # Errors
    /// When they have not all been sent in time.
    pub async fn send(&mut self, mut commands: &[u8], until: Instant) -> Result<(), Remote> {
        #[cfg(feature = "tls")]
        if let Some(tls) = &mut self.tls {
            tls.put(commands)?;
            return send_all(tls, &self.socket, until).await;
        }
        while !commands.is_empty() {
            match rustix::io::write(&self.socket, commands) {
                Ok(written) => commands = &commands[written..],
                Err(Errno::AGAIN) => wait_for(&self.socket, true, until).await?,
                Err(Errno::INTR) => {}
                Err(error) => return Err(lost(error)),
            }
        }
        Ok(())
    }

    /// The next reply, or message; `None` where it has not come yet.
    ///
    /// # Errors
    /// When the connection has ended, or what comes is no reply.
    pub fn take(&mut self) -> Result<Option<Reply>, Remote> {
        loop {
            if !self.input.is_empty()
                && let Some((reply, length)) = read(&self.input)?
            {
                self.input.drain(..length);
                return Ok(Some(reply));
            }
            let before = self.input.len();
            match self.read()? {
                Some(0) => return Err(closed()),
                // What is long already is not gone through again for each piece.
                Some(_) => {
                    while before > PIECE && self.input.len() < 2 * before && self.read()?.is_some_and(|got| got > 0) {}
                }
                None => {
                    // Connections are many and mostly idle.
                    if self.input.is_empty() {
                        self.input.shrink_to(0);
                    }
                    return Ok(None);
                }
            }
        }
    }

    /// Reads more of the input; `None` where nothing has come, and 0 at the end.
    fn read(&mut self) -> Result<Option<usize>, Remote> {
        let start = self.input.len();
        let most = PIECE.max(start);
        #[cfg(feature = "tls")]
        if let Some(tls) = &mut self.tls {
            self.input.resize(start + most, 0);
            let got = tls.take(&self.socket, &mut self.input[start..]);
            self.input.truncate(start + got.as_ref().map_or(0, |got| got.unwrap_or(0)));
            return got;
        }
        self.input.reserve(most);
        loop {
            match rustix::io::read(&self.socket, spare_capacity(&mut self.input)) {
                Ok(got) => return Ok(Some(got)),
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => {}
                Err(error) => return Err(lost(error)),
            }
        }
    }

    /// Whether nothing has come that nobody has asked for, such as its end.
    pub fn is_idle(&mut self) -> bool {
        // TLS has things to say of its own.
        #[cfg(feature = "tls")]
        if self.tls.is_some() {
            return matches!(self.take(), Ok(None)) && self.input.is_empty();
        }
        self.input.is_empty() && crate::look(self.socket.as_fd(), PollFlags::IN).is_empty()
    }

    /// What is ready when there may be something to [take](Self::take).
    pub fn wake(&self) -> Ready<'_> {
        Ready::to_read(self.socket.as_fd())
    }
}

impl Role {
    /// By what a server answers to a greeting.
    fn of(greeting: Option<Reply>, server: &Server) -> Result<Self, Remote> {
        let Reply::Array(fields) = answer(greeting, server)? else {
            return Err(Remote::new(Reason::Failed, format!("{server} is no Redis that the relay knows")));
        };
        let field = |name| field(&fields, name).and_then(text).unwrap_or_default();
        Ok(match (field("mode"), field("role")) {
            ("sentinel", _) => Self::Sentinel,
            ("standalone", "replica" | "slave") => Self::Replica,
            _ => Self::Primary,
        })
    }
}

/// What has this name among names and values.
fn field<'a>(fields: &'a [Reply], name: &str) -> Option<&'a Reply> {
    fields.as_chunks::<2>().0.iter().find(|[key, _]| text(key) == Some(name)).map(|[_, value]| value)
}

/// A reply that is no error.
fn answer(reply: Option<Reply>, server: &Server) -> Result<Reply, Remote> {
    match reply {
        Some(Reply::Error(error)) => Err(match Meaning::of(&error, server) {
            Meaning::Error(remote) | Meaning::Later(remote) => remote,
            _ => Remote::new(Reason::Failed, format!("{server} does not answer what it is asked")),
        }),
        Some(reply) => Ok(reply),
        None => Err(no_primary(server)),
    }
}

fn named(host: Option<&Reply>, port: Option<&Reply>) -> Option<Server> {
    let port = match port? {
        Reply::Integer(port) => u16::try_from(*port).ok()?,
        other => text(other)?.parse().ok()?,
    };
    text(host?).filter(|host| !host.is_empty()).map(|host| Server::Tcp(host.to_owned(), port))
}

fn no_primary(server: &Server) -> Remote {
    Remote::new(Reason::NotReady, format!("{server} names no primary"))
}

fn closed() -> Remote {
    Remote::new(Reason::Away, "the connection to Redis was closed")
}

fn lost(error: Errno) -> Remote {
    Remote::new(Reason::Away, format!("the connection to Redis broke: {error}"))
}

/// A socket that is connected with the server.
async fn reach(server: &Server, until: Instant) -> Result<OwnedFd, Remote> {
    let failed = |cause: String| Remote::new(Reason::Away, format!("no connection to {server}: {cause}"));
    let tcp = match server {
        Server::Unix(path) => {
            let address = SocketAddrUnix::new(path).map_err(|error| failed(error.to_string()))?;
            let socket = socket(AddressFamily::UNIX).map_err(|error| failed(error.to_string()))?;
            // It never waits: AGAIN says that too many do already.
            connect(&socket, &address).map_err(|error| failed(error.to_string()))?;
            return Ok(socket);
        }
        Server::Tcp(host, port) => addresses(host, *port, until).map_err(failed)?,
    };
    let (mut left, mut why) = (tcp.len(), failed("it has no address".to_owned()));
    for address in tcp {
        let now = instant();
        let part = until.saturating_duration_since(now) / u32::try_from(left).unwrap_or(u32::MAX).max(1);
        left -= 1;
        match reach_at(&address, now + part).await {
            Ok(socket) => return Ok(socket),
            Err(remote) => why = Remote::new(remote.reason, format!("no connection to {server}: {}", remote.cause)),
        }
    }
    Err(why)
}

/// Names that need no look-up need nothing that looks up: a program without a C library's files has no other.
fn addresses(host: &str, port: u16, until: Instant) -> Result<Vec<SocketAddr>, String> {
    if let Ok(address) = host.parse() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    if host == "localhost" {
        return Ok(vec![([127, 0, 0, 1], port).into(), ([0, 0, 0, 0, 0, 0, 0, 1], port).into()]);
    }
    let host = host.to_owned();
    let found = within(until, move || (host, port).to_socket_addrs().map(Iterator::collect));
    found.unwrap_or_else(Err).map_err(|error| error.to_string())
}

/// Does in a thread what has no limit of its own, and may take longer than anybody waits: that ends by itself then.
fn within<T: Send + 'static>(until: Instant, work: impl FnOnce() -> T + Send + 'static) -> std::io::Result<T> {
    let (done, outcome) = std::sync::mpsc::channel();
    std::thread::Builder::new().name("look-up".to_owned()).spawn(move || done.send(work()))?;
    blocking(|| outcome.recv_timeout(until.saturating_duration_since(instant())))
        .map_err(|_| std::io::Error::new(std::io::ErrorKind::TimedOut, "its address is not found in time"))
}

async fn reach_at(address: &SocketAddr, until: Instant) -> Result<OwnedFd, Remote> {
    let failed = |error: Errno| Remote::new(Reason::Away, error.to_string());
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket(family).map_err(failed)?;
    sockopt::set_tcp_nodelay(&socket, true).map_err(failed)?;
    match connect(&socket, address) {
        Err(Errno::INPROGRESS) => {
            while !Ready::to_write(socket.as_fd()).is_ready() {
                wait_for(&socket, true, until).await?;
            }
            sockopt::socket_error(&socket).and_then(|outcome| outcome).map_err(failed)?;
        }
        connected => connected.map_err(failed)?,
    }
    Ok(socket)
}

fn socket(family: AddressFamily) -> Result<OwnedFd, Errno> {
    socket_with(family, SocketType::STREAM, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, None)
}

#[cfg(feature = "tls")]
async fn send_all(tls: &mut Tls, socket: &OwnedFd, until: Instant) -> Result<(), Remote> {
    while !tls.send(socket)? {
        wait_for(socket, true, until).await?;
    }
    Ok(())
}

/// Waits until the socket may be ready; who finds that it is not waits again.
async fn wait_for(socket: &OwnedFd, to_write: bool, until: Instant) -> Result<(), Remote> {
    let mut ready = if to_write { Ready::to_write(socket.as_fd()) } else { Ready::to_read(socket.as_fd()) };
    let left = until.saturating_duration_since(instant());
    wait(&mut [&mut ready], left).await;
    if left.is_zero() && !ready.is_ready() {
        return Err(Remote::new(Reason::Slow, "Redis does not answer in time"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_look_up_that_takes_too_long_keeps_nobody_waiting() {
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let late = within(instant() + Duration::from_millis(10), move || ended.recv());
        assert_eq!(late.unwrap_err().kind(), std::io::ErrorKind::TimedOut);
        drop(end);
        assert_eq!(within(instant() + Duration::from_secs(60), || 1).unwrap(), 1);
        assert!(addresses("no.such.name.invalid", 1, instant() + Duration::from_secs(60)).is_err());
    }
}
