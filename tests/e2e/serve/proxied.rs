//! Behind a reverse proxy: every door and every protocol sees the client, and nobody else can pretend to be another.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};

use rustix::process::Pid;
use serde_json::Value;

use super::{Serve, program};
use crate::bare::{Bare, finish};
use crate::place::{Folder, LONG, kill, until, write_settings};
use crate::proxies::{MOUNT, Proxy};
use crate::relay::{Call, Relay as _};

/// Keeps what it is told up to `authenticate`, and what stands in its environment.
const HANDLER: &str = r#"read -r initialize; read -r started; read -r visitor
printf '%s\n' "$visitor" "$REMOTE_ADDR $HTTPS" >"$1.new"
mv "$1.new" "$1"
cat >/dev/null
"#;

const HANDSHAKE: &str = "GET /ws/room HTTP/1.1\r\nHost: relay\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

const FORWARDED: [(&str, &str); 2] =
    [("X-Forwarded-For", "203.0.113.5, 192.0.2.1, [198.51.100.7]:443"), ("X-Forwarded-Proto", "https")];

struct Handler(Folder);

impl Handler {
    fn new() -> Self {
        let folder = Folder::new();
        let path = folder.join("handler");
        fs::write(&path, HANDLER).unwrap();
        Self(folder)
    }

    fn setting(&self) -> String {
        format!("sh {} {}", self.0.join("handler").display(), self.0.join("told").display())
    }

    /// What the last one has been told: the visitor's address, and the same and `HTTPS` in its environment.
    #[track_caller]
    fn told(&self) -> (Value, String) {
        let path = self.0.join("told");
        until("the handler is told who it is", LONG, || path.exists());
        let told = fs::read_to_string(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let (visitor, environment) = told.split_once('\n').unwrap();
        let visitor: Value = serde_json::from_str(visitor).unwrap();
        (visitor["remote_address"].clone(), environment.trim_end_matches('\n').to_owned())
    }
}

fn fields(fields: &[(&str, &str)]) -> String {
    fields.iter().flat_map(|(name, value)| [*name, ": ", *value, "\r\n"]).collect()
}

#[test]
fn the_log_and_a_handler_see_whom_a_named_proxy_speaks_for() {
    let handler = Handler::new();
    let relay =
        Serve::with(&[("RELAY_TRUSTED_PROXIES", "127.0.0.1, 198.51.100.7"), ("RELAY_WS_HANDLER", &handler.setting())]);
    let mut socket = relay.wire();
    socket.send(format!("{HANDSHAKE}{}\r\n", fields(&FORWARDED)));
    assert_eq!(handler.told(), ("192.0.2.1".into(), "192.0.2.1 on".to_owned()));
    let mut direct = relay.wire();
    direct.send(format!("{HANDSHAKE}\r\n"));
    assert_eq!(handler.told(), ("127.0.0.1".into(), "127.0.0.1 ".to_owned()));

    let mut wire = relay.wire();
    for list in ["203.0.113.5, 192.0.2.2", "192.0.2.3:4711", "192.0.2.4, nonsense"] {
        wire.send(format!("POST /?action=ping HTTP/1.1\r\nHost: relay\r\nX-Forwarded-For: {list}\r\n\r\n"));
        wire.answer().expect(200);
    }
    // The first line says where the server is.
    let lines = || relay.log().lines().skip(1).map(str::to_owned).collect::<Vec<_>>();
    until("everything is in the log", LONG, || lines().len() == 5);
    let mut from: Vec<_> = lines().iter().map(|line| line.split(' ').next().unwrap().to_owned()).collect();
    from.sort();
    assert_eq!(from, ["-", "127.0.0.1", "192.0.2.1", "192.0.2.2", "192.0.2.3"]);
}

#[test]
fn nobody_speaks_for_others_who_is_not_named() {
    let handler = Handler::new();
    let relay =
        Serve::with(&[("RELAY_TRUSTED_PROXIES", "unix, 198.51.100.7"), ("RELAY_WS_HANDLER", &handler.setting())]);
    let mut socket = relay.wire();
    socket.send(format!("{HANDSHAKE}{}\r\n", fields(&FORWARDED)));
    assert_eq!(handler.told(), ("127.0.0.1".into(), "127.0.0.1 ".to_owned()));
    until("the request is in the log", LONG, || relay.log().lines().count() == 2);
    assert!(relay.log().lines().nth(1).unwrap().starts_with("127.0.0.1 "), "{}", relay.log());
}

struct OnSocket(Child);

impl Drop for OnSocket {
    fn drop(&mut self) {
        kill(Pid::from_child(&self.0), rustix::process::Signal::KILL);
        let _ = self.0.wait();
    }
}

#[test]
fn a_proxy_on_the_socket_file_speaks_for_others_where_it_may() {
    for (setting, expected) in [("unix", "192.0.2.1"), ("127.0.0.1", "-")] {
        let folder = Folder::new();
        let (socket, log) = (folder.join("relay.sock"), folder.join("log"));
        let data = folder.join("data");
        write_settings(&data, &[("RELAY_TRUSTED_PROXIES", setting)], None);
        let listen = format!("unix:{}", socket.display());
        let server = program(&["serve", "--listen", &listen, "--data", data.to_str().unwrap()])
            .stderr(File::create(&log).unwrap())
            .stdout(Stdio::null())
            .spawn()
            .expect("setpriv runs the server");
        let _server = OnSocket(server);
        let said = || fs::read_to_string(&log).unwrap_or_default();
        until("the server says where it is", LONG, || said().contains('\n'));
        let mut connection = UnixStream::connect(&socket).unwrap();
        connection.set_read_timeout(Some(LONG)).unwrap();
        let list = "X-Forwarded-For: 192.0.2.1\r\nConnection: close\r\nContent-Length: 0\r\n";
        write!(connection, "POST /?action=ping HTTP/1.1\r\nHost: relay\r\n{list}\r\n").unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        until("the request is in the log", LONG, || said().contains("POST ") && said().ends_with('\n'));
        assert!(said().contains(&format!("\n{expected} - - [")), "{setting}: {}", said());
    }
}

#[test]
fn a_handler_under_cgi_sees_whom_a_named_proxy_speaks_for() {
    let handler = Handler::new();
    let relay =
        Bare::with(&[("RELAY_TRUSTED_PROXIES", "127.0.0.1, 198.51.100.7"), ("RELAY_WS_HANDLER", &handler.setting())]);
    let upgrade = [
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        FORWARDED[0],
        FORWARDED[1],
    ];
    let call = Call { method: "GET", path_info: "/ws/room", headers: &upgrade, ..Call::default() };
    let mut request = relay.request(&call);
    // The one that hands connections over.
    request.env("SERVER_SOFTWARE", "lighttpd/1.4.69").stdin(Stdio::piped());
    let process = request.spawn().expect("the program runs");
    assert_eq!(handler.told(), ("192.0.2.1".into(), "192.0.2.1 on".to_owned()));
    kill(Pid::from_child(&process), rustix::process::Signal::TERM);
    finish(process);
}

/// nginx on a socket file of its own says `unix:`, and others nothing.
#[test]
fn an_address_that_a_web_server_does_not_tell_is_no_proxy() {
    let relay = Bare::with(&[("RELAY_TRUSTED_PROXIES", "unix")]);
    let made = relay.call(&Call { path_info: "/cama/session", headers: &[("X-Type", "secure")], ..Call::default() });
    let made = made.expect(201);
    let location = made.header("location").unwrap();
    let path = &location[location.find("/cama/").unwrap()..];
    let token = made.header("token").unwrap();
    let permit = [("Token", token), ("X-Peer-Address", "192.0.2.1")];
    relay.call(&Call { method: "PUT", path_info: path, headers: &permit, ..Call::default() }).expect(200);
    let pretend = [("X-Forwarded-For", "192.0.2.1")];
    for address in ["", "unix:"] {
        let call = Call { method: "HEAD", path_info: path, headers: &pretend, ..Call::default() };
        let reply = relay.run(relay.request(&call).env("REMOTE_ADDR", address), b"");
        assert_eq!(reply.status, 403, "{address:?}");
    }
}

/// What one server may take for the length of a body and another not: each of these with each of those, in both orders.
const LENGTHS: [&str; 16] = [
    "Content-Length: LENGTH",
    "Content-Length: 5",
    "Content-Length: 0",
    "Content-Length: +LENGTH",
    "Content-Length: 0LENGTH",
    "Content-Length: LENGTH, LENGTH",
    "Content-Length: 5, LENGTH",
    "Content-Length: 0x5",
    "Content-Length: LENGTH\x0b",
    "Content-Length:\tLENGTH\t",
    "Content-Length : LENGTH",
    "Content_Length: LENGTH",
    "content-length:LENGTH",
    " Content-Length: LENGTH",
    "A: b\nContent-Length: LENGTH",
    "A: b\rContent-Length: LENGTH",
];
const CODINGS: [&str; 12] = [
    "Transfer-Encoding: chunked",
    "Transfer-Encoding: xchunked",
    "Transfer-Encoding: identity",
    "Transfer-Encoding: chunked, identity",
    "Transfer-Encoding: identity, chunked",
    "Transfer-Encoding: \x0bchunked",
    "Transfer-Encoding:\tCHUNKED\t",
    "Transfer-Encoding : chunked",
    "Transfer_Encoding: chunked",
    "tRANSFER-eNCODING:chunked",
    "Transfer-Encoding:\r\n chunked",
    "A: b\nTransfer-Encoding: chunked",
];

/// nginx and the relay see the same requests. What nginx takes for a request is answered to whoever sent it; what only the
/// relay takes for one has an answer that nobody waits for, which the next request on that connection would get
/// (RFC 9112, 11.2).
#[test]
fn nothing_is_smuggled_past_nginx_by_384_pairs_of_odd_lengths() {
    let Some(relay) = Serve::behind(Proxy::Nginx, &[]) else { return };
    let ping = |number: usize, fields: &str| {
        format!("POST {MOUNT}/?action=ping&timestamp={number} HTTP/1.1\r\nHost: relay\r\n{fields}\r\n\r\n")
    };
    let pairs = LENGTHS.iter().flat_map(|length| CODINGS.iter().flat_map(move |c| [[*length, *c], [*c, *length]]));
    let mut answered = Vec::new();
    for (number, pair) in pairs.enumerate() {
        let inner = format!("0\r\n\r\n{}", ping(1_000_000 + number, "Content-Length: 0"));
        let fields = pair.join("\r\n").replace("LENGTH", &inner.len().to_string());
        let mut wire = relay.wire();
        // Behind both, one that ends the connection; it ends earlier where nginx refuses the first.
        let last = ping(3_000_000, "Content-Length: 0\r\nConnection: close");
        wire.try_send(ping(number, &fields) + &inner + &last);
        answered.push((fields, wire.rest().contains(&format!("{{\"pong\":{}}}", 1_000_000 + number))));
        // Whoever comes next by the same connection of nginx gets an answer of its own.
        let mut next = relay.wire();
        next.send(ping(2_000_000 + number, "Content-Length: 0"));
        next.expect_pong(2_000_000 + number as u64);
    }
    assert_eq!(answered.len(), 384);
    let log = relay.log();
    for (number, (fields, is_answered)) in answered.iter().enumerate() {
        let seen = log.matches(&format!("timestamp={} ", 1_000_000 + number)).count();
        assert_eq!(seen, usize::from(*is_answered), "{fields:?}: what the relay answered, and what nginx did");
    }
    // Both kinds are among them, so that the test can tell them apart.
    let count = answered.iter().filter(|(_, is_answered)| *is_answered).count();
    assert!((1..384).contains(&count), "{count}");
}
