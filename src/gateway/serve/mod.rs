//! The server of `serve`: hyper on tokio, a task a connection.

mod answer;
mod event_stream;
mod incoming;
mod limits;
mod listening;
mod order;
mod outgoing;
mod server;
mod switching;
mod tls;
mod waiting;

use super::application::Application;
use super::status::Status;
use super::stop::{catch_hangups, catch_signals, stop_signal};
use crate::config::Settings;
use crate::wake::{Ready, poll_any};
use crate::workers;
use answer::{Connection, answer, log};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use limits::{
    EVENT_INTERVAL, HEAD_FIELDS, HEAD_SIZE, HEAD_TIME, LONGEST_SILENCE, Room, SEND_SIZE, STOP_TIME, descriptor_limit,
    descriptors_for, raise_descriptor_limit, survive_file_limit,
};
pub use listening::Address;
use listening::{Listening, Socket};
use order::{Entrance, Order};
use rustix::fd::AsFd as _;
use server::{Counted, Seldom, Server};
use std::convert::Infallible;
use std::future::poll_fn;
use std::io::{self, Read as _};
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::{Duration, Instant};
use tls::Tls;
pub use tls::TlsFiles;
use tokio::io::{AsyncRead, AsyncWrite};

/// How an application is served.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Where to listen, besides where the service manager does (`LISTEN_FDS`); where neither says it, at the usual
    /// [address](Address::default).
    pub addresses: Vec<Address>,
    /// Whether TLS is spoken at every TCP address.
    pub tls: Option<TlsFiles>,
    /// Whether there is no access log.
    pub quiet: bool,
}

/// Serves an application until SIGTERM or SIGINT, or SIGHUP: that has the certificate read again, where there is one. `started`
/// is called once connections are accepted, with the addresses; if it fails, nothing is served.
///
/// # Errors
/// When it cannot listen there, or cannot catch signals; or that of `started`.
pub fn serve(
    application: &'static dyn Application,
    options: Options,
    settings: &'static Settings,
    started: impl FnOnce(&[Address]) -> Result<(), Box<dyn std::error::Error>>,
) -> Result<(), Box<dyn std::error::Error>> {
    let Options { mut addresses, tls, quiet } = options;
    catch_signals(tls.is_none())?;
    raise_descriptor_limit();
    survive_file_limit()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers::wanted())
        .event_interval(EVENT_INTERVAL)
        .enable_all()
        .build()?;
    let watch = workers::watch(runtime.handle())?;
    let server = &*Box::leak(Box::new(Server {
        application,
        settings,
        quiet,
        tls: tls.map(Tls::new).transpose()?,
        order: Order::new()?,
        connections: AtomicUsize::new(0),
        refused: AtomicUsize::new(0),
        refusals: Seldom::default(),
        failures: Seldom::default(),
    }));
    let result = runtime.block_on(async {
        let mut listening = Listening::inherited()?;
        if listening.is_empty() && addresses.is_empty() {
            addresses.push(Address::default());
        }
        for address in &addresses {
            let bound = Listening::bind(address);
            listening.push(bound.map_err(|error| format!("cannot listen at {address}: {error}"))?);
        }
        let addresses = listening.iter().map(|listening| listening.address(server.tls.is_some()));
        started(&addresses.collect::<io::Result<Vec<_>>>()?)?;
        let descriptors = descriptor_limit();
        let room = Room::of(descriptors, settings.max_connections);
        if (room.connections as u64) < settings.max_connections {
            say!("uhst-relay: {}", reason(descriptors, room, settings));
        }
        std::thread::Builder::new().spawn(move || {
            loop {
                std::thread::sleep(Duration::from_millis(500));
                if application.has_work(settings) {
                    application.work(settings);
                }
            }
        })?;
        let entrances: Vec<_> = listening.iter().map(|those| those.open(&server.order)).collect::<io::Result<_>>()?;
        let accepting: Vec<_> = (listening.into_iter().zip(entrances))
            .map(|(listening, entrance)| tokio::spawn(accept(server, listening, entrance)))
            .collect();
        asked_to_stop(server).await?;
        for accepting in accepting {
            accepting.abort();
            let _ = accepting.await;
        }
        waiting::stop();
        let until = Instant::now() + STOP_TIME;
        while server.connections.load(Ordering::Acquire) > 0 && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    });
    drop(watch);
    runtime.shutdown_timeout(Duration::from_millis(100));
    result
}

/// Returns when the server has to stop. Meanwhile SIGHUP has the certificate read again, where there is one.
async fn asked_to_stop(server: &'static Server) -> io::Result<()> {
    let Some(stop) = stop_signal() else { return Ok(()) };
    let mut stop = Ready::to_read(stop);
    let again = server.tls.as_ref().map(|tls| Ok::<_, io::Error>((tls, catch_hangups()?))).transpose()?;
    loop {
        let mut hangup = again.as_ref().map(|(_, hangups)| Ready::to_read(hangups.as_fd()));
        poll_fn(|cx| poll_any(cx, &mut [&mut stop, &mut hangup])).await;
        let Some((tls, hangups)) = again.as_ref().filter(|_| !stop.is_ready()) else { return Ok(()) };
        // Several that came together are one.
        let _ = (&*hangups).read(&mut [0; 64]);
        match tls.read_again() {
            Ok(()) => say!("uhst-relay: the certificate was read again"),
            Err(error) => say!("uhst-relay: the certificate stays as it was: {error}"),
        }
    }
}

/// Takes whoever comes.
async fn accept(server: &'static Server, listening: Listening, entrance: Entrance) {
    let mut wake = listening.wake();
    loop {
        let (socket, peer) = match listening.accept(&entrance, &mut wake).await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors or memory: those that are here finish, and then there is room again.
                if !matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) {
                    server.failures.say(&format!("a connection could not be accepted: {error}"));
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                continue;
            }
        };
        let descriptors = descriptor_limit();
        let room = Room::of(descriptors, server.settings.max_connections);
        if server.connections.load(Ordering::Acquire) < room.connections {
            let counted = Counted::new(&server.connections);
            let is_tcp = listening.is_tcp();
            tokio::spawn(async move {
                begin(server, socket, peer, is_tcp).await;
                drop(counted);
            });
        } else {
            refuse(&socket);
            server.refusals.say(&format!("a connection was refused: {}", reason(descriptors, room, server.settings)));
            if server.refused.load(Ordering::Acquire) < room.refused {
                let counted = Counted::new(&server.refused);
                tokio::spawn(async move {
                    socket.linger().await;
                    drop(counted);
                });
            }
        }
    }
}

/// Finds out what a client speaks, and answers it.
async fn begin(server: &'static Server, socket: Socket, peer: Option<IpAddr>, is_tcp: bool) {
    let tls = server.tls.as_ref().filter(|_| is_tcp);
    let connection = Arc::new(Connection {
        socket,
        peer,
        is_https: tls.is_some(),
        is_asked: AtomicBool::new(false),
        is_switched: AtomicBool::new(false),
        taken: Mutex::default(),
    });
    let socket = connection.socket.clone();
    // Boxed, as whatever is over once an event stream runs: an idle one shall cost little.
    if let Some(tls) = tls {
        if let Ok(stream) = Box::pin(tls.accept(socket)).await {
            let speaks_http2 = tls::speaks_http2(&stream);
            Box::pin(run(server, &connection, stream, speaks_http2)).await;
        }
    } else if let Ok(Ok(speaks_http2)) = tokio::time::timeout(HEAD_TIME, socket.speaks_http2()).await {
        Box::pin(run(server, &connection, socket, speaks_http2)).await;
    }
    let taken = connection.taken().take();
    if let Some(taken) = taken {
        taken.run(connection.socket.clone()).await;
    }
    if !connection.is_switched.load(Ordering::Relaxed) {
        Box::pin(connection.socket.linger()).await;
    }
}

/// Answers the requests of a connection.
async fn run(
    server: &'static Server,
    connection: &Arc<Connection>,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    speaks_http2: bool,
) {
    let answering = Arc::clone(connection);
    let service = service_fn(move |request| {
        let connection = Arc::clone(&answering);
        connection.is_asked.store(true, Ordering::Relaxed);
        let turn = Arc::new(connection.socket.seat().turn(!speaks_http2));
        // Boxed, so that a stream does not keep the memory of whoever has answered.
        Box::pin(async move { Ok::<_, Infallible>(answer(server, &connection, request, turn).await) })
    });
    let stream = TokioIo::new(stream);
    let ended = if speaks_http2 {
        end_unless_asked(connection);
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.timer(TokioTimer::new()).max_header_list_size(u32::try_from(HEAD_SIZE).unwrap_or(u32::MAX));
        // A client that is silent may have gone.
        builder.keep_alive_interval(LONGEST_SILENCE);
        // RFC 8441: a WebSocket is a stream among others.
        builder.enable_connect_protocol().max_send_buf_size(SEND_SIZE);
        drive(connection, builder.serve_connection(stream, service), http2::Connection::graceful_shutdown).await
    } else {
        let mut builder = http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIME)
            .max_headers(HEAD_FIELDS)
            .max_buf_size(HEAD_SIZE);
        // Some clients say that they will send nothing more, and wait for the answer.
        builder.half_close(true).title_case_headers(true).writev(false);
        let serving = builder.serve_connection(stream, service).with_upgrades();
        drive(connection, serving, http1::UpgradeableConnection::graceful_shutdown).await
    };
    if ended.is_err_and(|error| error.is_parse() || error.is_parse_too_large()) {
        log(server, connection.peer, || "-".to_owned(), Status::BadRequest, 0);
    }
}

/// Ends a connection on which no request comes in time: with HTTP/2 hyper waits for its beginning (RFC 9113, 3.4) without an end.
fn end_unless_asked(connection: &Arc<Connection>) {
    let connection = Arc::downgrade(connection);
    tokio::spawn(async move {
        tokio::time::sleep(HEAD_TIME).await;
        if let Some(connection) = connection.upgrade()
            && !connection.is_asked.load(Ordering::Relaxed)
        {
            connection.socket.end();
        }
    });
}

/// Lets hyper serve a connection to its end, or until it is taken from hyper. Once the server is being stopped, it ends after
/// what has been begun.
async fn drive<C: Future<Output = hyper::Result<()>>>(
    connection: &Connection,
    serving: C,
    end: impl FnOnce(Pin<&mut C>),
) -> hyper::Result<()> {
    let (mut serving, mut stopped) = (pin!(serving), pin!(waiting::stopped()));
    let mut end = Some(end);
    poll_fn(|cx| {
        if end.is_some()
            && stopped.as_mut().poll(cx).is_ready()
            && let Some(end) = end.take()
        {
            end(serving.as_mut());
        }
        let served = serving.as_mut().poll(cx);
        if served.is_pending() && connection.taken().is_some() { Poll::Ready(Ok(())) } else { served }
    })
    .await
}

/// What there is no more room than that for.
fn reason(descriptors: u64, room: Room, settings: &Settings) -> String {
    let (Room { connections, .. }, most) = (room, settings.max_connections);
    if (connections as u64) < most {
        let enough = descriptors_for(most);
        format!("{descriptors} descriptors (ulimit -n) are enough for {connections} connections; {most} need {enough}")
    } else {
        format!("there are {most} connections (RELAY_MAX_CONNECTIONS)")
    }
}

fn refuse(socket: &Socket) {
    let body = r#"{"error":"The relay has all the connections it takes: try again later."}"#;
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: {}\r\nRetry-After: 5\r\nAccess-Control-Allow-Origin: *\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    let _ = socket.try_write(answer.as_bytes());
}
