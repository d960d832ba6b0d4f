//! Where `serve` listens and what is spoken there: several addresses, a socket file, TLS, HTTP/2, and sockets that a service
//! manager has opened.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use serde_json::{Value, json};

use super::operator::expect_failure;
use super::{Wire, ping, program};
use crate::place::{Folder, LONG, have, kill, skip, until, write_settings};
use crate::stream::{Item, Stream};
use crate::token::payload;

/// A server, and what its first line says where it is.
struct Listener {
    folder: Folder,
    process: Child,
    addresses: Vec<String>,
}

impl Listener {
    fn start(folder: Folder, command: &mut Command) -> Self {
        let log = folder.join("log");
        let process =
            command.stderr(File::create(&log).unwrap()).stdout(Stdio::null()).spawn().expect("the server runs");
        let mut server = Self { folder, process, addresses: Vec::new() };
        until("the server says where it is", LONG, || {
            let said = server.log();
            assert!(server.process.try_wait().unwrap().is_none(), "the server ended: {said}");
            let line = said.split_once('\n').map_or("", |(line, _)| line);
            if let Some((at, _)) = line.split_once(" at ").and_then(|(_, rest)| rest.split_once(", data in ")) {
                server.addresses = at.split(" and ").map(str::to_owned).collect();
            }
            !server.addresses.is_empty()
        });
        server
    }

    /// Listening at one address with TLS, or without; and at a socket file.
    fn at_one(folder: Folder, tls: Option<&Certificate>) -> Self {
        // Nobody is found to have gone because something could not be written.
        let data = folder.join("data");
        write_settings(&data, &[("RELAY_KEEP_ALIVE", "600")], None);
        let mut command = program(&["serve", "--listen", "127.0.0.1:0", "--data", data.to_str().unwrap()]);
        command.arg("--listen").arg(format!("unix:{}", folder.join("relay.sock").display()));
        if let Some(Certificate { certificate, key }) = tls {
            command.arg("--tls-cert").arg(certificate).arg("--tls-key").arg(key);
        }
        Self::start(folder, &mut command)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_child(&self.process), signal);
    }

    #[track_caller]
    fn ends_well(&mut self) {
        self.signal(Signal::TERM);
        let mut status = None;
        until("the server ends", LONG, || {
            status = self.process.try_wait().unwrap();
            status.is_some()
        });
        assert_eq!(status.unwrap().code(), Some(0), "{}", self.log());
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            eprintln!("--- the server's log\n{}", self.log());
        }
    }
}

/// Where an address of TCP is.
#[track_caller]
fn tcp(address: &str) -> TcpStream {
    let address: SocketAddr = address.strip_prefix("http://").expect("HTTP").parse().expect("an address");
    TcpStream::connect(address).expect("the server accepts connections")
}

/// Posts on a connection of its own, and gives the answer.
#[track_caller]
fn post(mut connection: impl Read + Write, query: &str, body: &str) -> Value {
    let length = body.len();
    write!(
        connection,
        "POST /?{query} HTTP/1.1\r\nHost: relay\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
    .unwrap();
    let mut said = String::new();
    connection.read_to_string(&mut said).unwrap();
    let (head, body) = said.split_once("\r\n\r\n").unwrap_or_default();
    assert!(head.starts_with("HTTP/1.1 200 "), "{said}");
    serde_json::from_str(body).unwrap()
}

#[track_caller]
fn text(value: &Value, name: &str) -> String {
    value[name].as_str().unwrap_or_else(|| panic!("no {name} in {value}")).to_owned()
}

/// A host that comes by the first way and a client that comes by the second are at one relay.
#[track_caller]
fn expect_one_relay<A: Read + Write, B: Read + Write>(first: impl Fn() -> A, second: impl Fn() -> B, at: TcpStream) {
    let host = post(first(), "action=host", "");
    let mut socket = at;
    write!(socket, "GET /?token={} HTTP/1.1\r\nHost: relay\r\n\r\n", text(&host, "hostToken")).unwrap();
    let mut stream = Stream::from_socket(socket).unwrap_or_else(|reply| panic!("no stream but {reply:?}"));
    let client = post(second(), &format!("action=join&hostId={}", text(&host, "hostId")), "");
    post(second(), &format!("token={}", text(&client, "clientToken")), "[1]");
    assert_eq!(stream.body(), json!([1]));
}

#[test]
fn several_addresses_and_a_socket_file_lead_to_one_relay() {
    let folder = Folder::new();
    let (file, data) = (folder.join("relay.sock"), folder.join("data"));
    let (unix, data) = (format!("unix:{}", file.display()), data.to_str().unwrap().to_owned());
    let listen = ["--listen", "127.0.0.1:0", "--listen", "127.0.0.1:0", "--listen", &unix, "--data", &data];
    let mut server = Listener::start(folder, &mut program(&[&["serve"][..], &listen].concat()));
    let addresses = server.addresses.clone();
    assert_eq!((addresses.len(), addresses[2].as_str()), (3, unix.as_str()), "{addresses:?}");
    let local = || UnixStream::connect(&file).expect("the server accepts connections");
    expect_one_relay(|| tcp(&addresses[0]), || tcp(&addresses[1]), tcp(&addresses[0]));
    expect_one_relay(local, || tcp(&addresses[0]), tcp(&addresses[1]));
    expect_one_relay(|| tcp(&addresses[1]), local, tcp(&addresses[1]));
    server.ends_well();
    assert!(!file.exists());
}

/// `sd_listen_fds(3)`: descriptors from 3 on, for the process that is named.
const SERVICE_MANAGER: &str = r#"import fcntl, os, socket, sys
tcp = socket.create_server(("127.0.0.1", 0))
unix = socket.socket(socket.AF_UNIX)
unix.bind(sys.argv[1])
unix.listen()
# Out of the way first: they may be 3 and 4 already, which would stay closed for the program.
for number, opened in enumerate([fcntl.fcntl(own, fcntl.F_DUPFD, 20) for own in (tcp, unix)]):
    os.dup2(opened, 3 + number)
os.environ.update(LISTEN_FDS="2", LISTEN_PID=str(os.getpid()))
os.execvp(sys.argv[2], sys.argv[2:])
"#;

#[test]
fn what_a_service_manager_has_opened_is_served() {
    if !have("python3") {
        return skip("python3 is not installed");
    }
    let folder = Folder::new();
    let (file, data) = (folder.join("relay.sock"), folder.join("data"));
    let mut command = Command::new("python3");
    command.arg("-c").arg(SERVICE_MANAGER).arg(&file).args(["setpriv", "--pdeathsig", "KILL", "--"]);
    command.arg(env!("CARGO_BIN_EXE_uhst-relay")).args(["serve", "--data"]).arg(data);
    let mut server = Listener::start(folder, &mut command);
    let addresses = server.addresses.clone();
    assert_eq!(
        (addresses.len(), &addresses[1]),
        (2, &format!("unix:{}", file.display())),
        "nowhere else: {addresses:?}"
    );
    let local = || UnixStream::connect(&file).expect("the server accepts connections");
    expect_one_relay(local, || tcp(&addresses[0]), tcp(&addresses[0]));
    server.ends_well();
    assert!(file.exists(), "the file is the service manager's");
}

/// Whether these tests can be made here.
fn have_tools(feature: &str) -> bool {
    if !have("openssl") || !have("curl") {
        skip("openssl or curl is not installed");
        return false;
    }
    let about = Command::new("curl").arg("-V").output().expect("curl runs");
    let has_feature = String::from_utf8_lossy(&about.stdout).split_whitespace().any(|word| word == feature);
    if !has_feature {
        skip(&format!("curl has no {feature}"));
    }
    has_feature
}

/// A certificate for 127.0.0.1 that vouches for itself.
struct Certificate {
    certificate: PathBuf,
    key: PathBuf,
}

impl Certificate {
    #[track_caller]
    fn make(folder: &Folder, name: &str) -> Self {
        let own = Self { certificate: folder.join(format!("{name}.pem")), key: folder.join(format!("{name}.key")) };
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
            .args(["-subj", &format!("/CN={name}"), "-addext", "subjectAltName=IP:127.0.0.1", "-keyout"])
            .arg(&own.key)
            .arg("-out")
            .arg(&own.certificate)
            .output()
            .expect("openssl runs");
        assert!(made.status.success(), "{made:?}");
        own
    }

    fn trusted(&self) -> [&str; 2] {
        ["--cacert", self.certificate.to_str().unwrap()]
    }
}

fn curl(arguments: &[&str]) -> Command {
    let mut command = Command::new("curl");
    command
        .args(["--silent", "--show-error", "--no-buffer", "--raw", "--noproxy", "*", "--max-time", "120"])
        .args(arguments);
    command.stdin(Stdio::null());
    command
}

/// Posts with curl: the answer, if the server could be talked to.
fn try_post(options: &[&str], url: &str, body: &str) -> Result<Value, String> {
    let done = curl(options).args(["--fail", "--data-binary", body, url]).output().expect("curl runs");
    let said = String::from_utf8_lossy(&done.stdout);
    serde_json::from_str(&said).map_err(|_| format!("{said}{}", String::from_utf8_lossy(&done.stderr)))
}

/// A stream that curl reads.
#[track_caller]
fn listen(options: &[&str], url: &str) -> Stream {
    let process = curl(options).args(["--include", url]).stdout(Stdio::piped()).spawn().expect("curl runs");
    let mut stream = Stream::from_process(process).unwrap_or_else(|reply| panic!("no stream but {reply:?}"));
    stream.expect_comment("Connected.");
    stream
}

/// A host and a client of it, each with a stream of its own.
struct Pair {
    host: Stream,
    host_token: String,
    client: Stream,
    client_token: String,
    client_id: String,
}

impl Pair {
    #[track_caller]
    fn new(options: &[&str], url: &str) -> Self {
        let ask = |query: &str| try_post(options, &format!("{url}/?{query}"), "").unwrap();
        let host = ask("action=host");
        let client = ask(&format!("action=join&hostId={}", text(&host, "hostId")));
        let (host_token, client_token) = (text(&host, "hostToken"), text(&client, "clientToken"));
        let open = |token: &str| listen(options, &format!("{url}/?token={token}"));
        let (host, client) = (open(&host_token), open(&client_token));
        let client_id = text(&payload(&client_token), "clientId");
        let mut pair = Self { host, host_token, client, client_token, client_id };
        pair.talks(options, url);
        pair
    }

    /// A message goes from the client to its host.
    #[track_caller]
    fn talks(&mut self, options: &[&str], url: &str) {
        try_post(options, &format!("{url}/?token={}", self.client_token), "[1]").unwrap();
        assert_eq!(self.host.body(), json!([1]));
    }

    /// Clients that crash: the system ends their connections, and TLS gets no last word.
    fn crash(mut self) {
        self.client.signal(Signal::KILL);
        self.host.signal(Signal::KILL);
    }
}

/// How curl is asked for a version, and what it calls it.
const VERSIONS: [(&str, &str); 2] = [("--http1.1", "1.1"), ("--http2", "2")];

#[test]
fn tls_speaks_what_both_have_agreed_on() {
    if !have_tools("HTTP2") {
        return;
    }
    let folder = Folder::new();
    let certificate = Certificate::make(&folder, "relay");
    let mut server = Listener::at_one(folder, Some(&certificate));
    let url = server.addresses[0].clone();
    assert!(url.starts_with("https://127.0.0.1:"), "{url}");
    let [cacert, file] = certificate.trusted();
    for (option, version) in VERSIONS {
        let ping = format!("{url}/?action=ping&timestamp=7");
        let said = curl(&[cacert, file, option, "-X", "POST", "-w", " %{http_version}", &ping]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&said.stdout), format!("{{\"pong\":7}} {version}"), "{said:?}");
        Pair::new(&[cacert, file, option], &url).crash();
    }
    // A socket file is on this machine, and has none.
    let local = UnixStream::connect(server.folder.join("relay.sock")).unwrap();
    assert_eq!(post(local, "action=ping&timestamp=9", ""), json!({"pong": 9}));
    // Whoever does not speak TLS is not answered, and keeps nobody.
    let mut plain = TcpStream::connect(url.trim_start_matches("https://")).unwrap();
    plain.set_read_timeout(Some(LONG)).unwrap();
    plain.write_all(ping(8).as_bytes()).unwrap();
    let mut said = Vec::new();
    let _ = plain.read_to_end(&mut said);
    assert!(!String::from_utf8_lossy(&said).contains("pong"), "{said:?}");
    server.ends_well();
}

#[test]
fn a_hang_up_is_seen_through_tls_and_http_2() {
    if !have_tools("HTTP2") {
        return;
    }
    let folder = Folder::new();
    let certificate = Certificate::make(&folder, "relay");
    let server = Listener::at_one(folder, Some(&certificate));
    let plain = Listener::at_one(Folder::new(), None);
    let [cacert, file] = certificate.trusted();
    for (options, url) in [
        (&[cacert, file, "--http1.1"][..], &server.addresses[0]),
        (&[cacert, file, "--http2"], &server.addresses[0]),
        (&["--http2-prior-knowledge"], &plain.addresses[0]),
    ] {
        let mut pair = Pair::new(options, url);
        let start = Instant::now();
        pair.client.signal(Signal::KILL);
        pair.host.expect_closed("client_closed", &pair.client_id);
        // The keep-alive, whose failure would tell it too, comes after ten minutes.
        assert!(start.elapsed() < Duration::from_secs(20), "{options:?}: {:?}", start.elapsed());
        pair.host.signal(Signal::KILL);
    }
}

#[test]
fn a_new_certificate_is_read_while_streams_stay() {
    if !have_tools("HTTP2") {
        return;
    }
    let folder = Folder::new();
    let used = Certificate::make(&folder, "used");
    let [first, second] = ["first", "second"].map(|name| Certificate::make(&folder, name));
    let install = |from: &Certificate| {
        fs::copy(&from.certificate, &used.certificate).unwrap();
        fs::copy(&from.key, &used.key).unwrap();
    };
    install(&first);
    let mut server = Listener::at_one(folder, Some(&used));
    let url = server.addresses[0].clone();
    let ping = |trusted: &Certificate| try_post(&trusted.trusted(), &format!("{url}/?action=ping&timestamp=7"), "");
    ping(&first).unwrap();
    ping(&second).expect_err("its certificate is another");
    let mut pair = Pair::new(&first.trusted(), &url);

    install(&second);
    server.signal(Signal::HUP);
    until("the certificate is read again", LONG, || server.log().contains("the certificate was read again"));
    ping(&second).unwrap();
    ping(&first).expect_err("its certificate is not used any more");
    pair.talks(&second.trusted(), &url);

    // What cannot be used changes nothing.
    fs::write(&used.key, "nonsense").unwrap();
    server.signal(Signal::HUP);
    let complaint = format!("the certificate stays as it was: {}: ", used.key.display());
    until("the key is complained about", LONG, || server.log().contains(&complaint));
    ping(&second).unwrap();
    pair.talks(&second.trusted(), &url);
    pair.crash();
    server.ends_well();
}

#[test]
fn a_certificate_or_key_that_cannot_be_used_is_named() {
    if !have_tools("SSL") {
        return;
    }
    let folder = Folder::new();
    let [own, other] = ["own", "other"].map(|name| Certificate::make(&folder, name));
    let missing = folder.join("missing");
    let empty = folder.join("empty");
    fs::write(&empty, "").unwrap();
    for (certificate, key, wrong) in [
        (&missing, &own.key, &missing),
        (&empty, &own.key, &empty),
        (&own.certificate, &missing, &missing),
        (&own.certificate, &empty, &empty),
        (&own.certificate, &own.certificate, &own.certificate),
        (&own.certificate, &other.key, &other.key),
    ] {
        let [certificate, key, wrong] = [certificate, key, wrong].map(|path| path.to_str().unwrap());
        let data = folder.join("data");
        let arguments = ["serve", "--listen", "127.0.0.1:0", "--data", data.to_str().unwrap()];
        expect_failure(&[&arguments[..], &["--tls-cert", certificate, "--tls-key", key]].concat(), 1, &[wrong]);
    }
}

#[test]
fn http_2_without_tls_is_spoken_by_those_who_know() {
    if !have_tools("HTTP2") {
        return;
    }
    let mut server = Listener::at_one(Folder::new(), None);
    let url = server.addresses[0].clone();
    let options = ["--http2-prior-knowledge"];
    let mut pair = Pair::new(&options, &url);
    assert_eq!(
        pair.host.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("connection")),
        None,
        "RFC 9113, 8.2.2"
    );
    // HTTP/1.1 is spoken there too.
    let mut wire = Wire::new(tcp(&url));
    wire.send(ping(7));
    wire.expect_pong(7);
    // What begins like HTTP/2 and is none: no request of it is answered, nor what follows.
    let mut wire = Wire::new(tcp(&url));
    wire.send(format!("PRI * HTTP/2.0\r\nHost: relay\r\n\r\n{}", ping(8)));
    assert!(!wire.rest().contains("pong"), "RFC 9113, 3.4");

    // One whose end is told by what curl ends with: cut short, it is not 0.
    let token = &pair.host_token;
    let script =
        format!("curl -siN --noproxy '*' --max-time 120 --http2-prior-knowledge '{url}/?token={token}'; echo \": $?\"");
    let mut shell = Command::new("sh");
    let process = shell.args(["-c", &script]).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut last = Stream::from_process(process).unwrap_or_else(|reply| panic!("no stream but {reply:?}"));
    last.expect_comment("Connected.");
    // The newer stream of a host has taken over.
    pair.host.expect_end();
    server.ends_well();
    // Last words, perhaps, and the end.
    pair.client.rest();
    let mut said = Item::Nothing;
    loop {
        match last.next(LONG) {
            Item::End => break,
            item => said = item,
        }
    }
    assert_eq!(said, Item::Comment("0".to_owned()), "a stream ends, and is not cut short");
}

/// Two WebSockets on one connection of HTTP/2, and a request beside them.
const WEBSOCKETS: &str = r#"
const session = require("node:http2").connect(process.argv[1]);
const fail = (why) => { console.error(why); process.exit(1); };
setTimeout(fail, 60000, "nothing happens");
session.on("error", fail);
const frame = (text) => Buffer.concat([Buffer.from([0x81, 0x80 | text.length, 0, 0, 0, 0]), Buffer.from(text)]);
const open = () => new Promise((resolve) => {
    const stream = session.request({
        ":method": "CONNECT", ":protocol": "websocket", ":path": "/ws/x", ":scheme": "http", ":authority": "relay",
        "sec-websocket-version": "13", origin: "http://relay",
    }, { endStream: false });
    stream.on("error", fail);
    stream.on("response", (headers) => resolve([stream, headers]));
});
session.on("remoteSettings", async ({ enableConnectProtocol }) => {
    if (!enableConnectProtocol) fail("extended CONNECT is not announced");
    const [[one, headers], [two]] = [await open(), await open()];
    if (headers[":status"] !== 200 || headers["sec-websocket-accept"] || headers.connection) fail(JSON.stringify(headers));
    two.once("data", (bytes) => {
        if (bytes[0] !== 0x81 || !bytes.toString().includes("hello")) fail(bytes.toString("hex"));
        // Over with one: the other goes on.
        one.close();
        const ping = session.request({ ":method": "POST", ":path": "/?action=ping&timestamp=7" });
        ping.on("data", (bytes) => {
            two.once("data", () => fail("nobody else has said anything"));
            console.log(`${bytes}`);
            process.exit(0);
        });
        ping.end();
    });
    one.write(frame('"hello"'));
});
"#;

#[test]
fn a_websocket_is_a_stream_of_http_2() {
    if !have("node") {
        return skip("node is not installed");
    }
    let mut server = Listener::at_one(Folder::new(), None);
    let said = Command::new("node").args(["-e", WEBSOCKETS, &server.addresses[0]]).output().expect("node runs");
    assert_eq!(String::from_utf8_lossy(&said.stdout), "{\"pong\":7}\n", "{said:?}");
    server.ends_well();
}
