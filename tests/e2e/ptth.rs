//! A server behind a firewall (`/frontend/servers/NAME/`), through web servers and `serve`. The test plays the far end,
//! except where `uhst-relay ptth serve` does.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use uhst_relay::ptth::{Fields, HEAD_FIELD, Method, ResponseHead, StatusCode, Waiting, decode_list, encode_list};

mod near;

use crate::bare::{Bare, finish};
use crate::cama::{Answer, Running, Scene, bytes, hear, hear_more, private_memory, relay_pids, understand};
use crate::door::Door;
use crate::place::{LONG, everything_below, give_to, is_root, kill, set_mode, until, web_user};
use crate::relay::Call;
use crate::serve::program;
use crate::stream::end_of_head;

const NAME: &str = "my-server";

/// In Redis: the far ends and the clients that are there, and the clients whose requests no far end has.
const FAR_ENDS: &str = "for _, key in ipairs(keys) do
    if key:match(':far%-ends$') then
        found = redis.call('ZRANGEBYSCORE', key, now, '+inf')
    end
end";
const CLIENTS: &str = "for _, key in ipairs(keys) do
    if key:match(':clients$') then
        found = redis.call('ZRANGEBYSCORE', key, now, '+inf')
    end
end";
const WAITING: &str = "for _, key in ipairs(keys) do
    if key:match(':waiting$') then
        for _, name in ipairs(redis.call('ZRANGE', key, 0, -1)) do
            if tonumber(redis.call('ZSCORE', key:gsub('waiting$', 'clients'), name) or 0) > now then
                found[#found + 1] = name
            end
        end
    end
end";

/// A relay with a server, and the server's key.
struct Behind {
    scene: Scene,
    key: String,
}

impl Behind {
    fn new(door: Door, settings: &[(&str, &str)]) -> Option<Self> {
        let scene = Scene::new(door, settings)?;
        // So that the data folder is the relay's own.
        scene.call("POST", "/cama/session", &[], b"").expect(201);
        let key = register(&scene, NAME, &["--listed", "--display", "A <b>\"server\""]);
        Some(Self { scene, key })
    }

    /// A client asks, in the background.
    fn get(&self, path: &str, headers: &[(&str, &str)]) -> JoinHandle<Answer> {
        self.ask("GET", path, headers)
    }

    fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> JoinHandle<Answer> {
        let socket = self.scene.start(method, &format!("/frontend/servers/{NAME}{path}"), headers, None);
        std::thread::spawn(move || hear(socket))
    }

    /// A far end begins to listen.
    fn start_listening(&self) -> TcpStream {
        self.scene.start("GET", &format!("/7ZSFUKGV/http_listen/{NAME}"), &[("X-ApiKey", &self.key)], None)
    }

    #[track_caller]
    fn listen(&self) -> Vec<Waiting> {
        heard(self.start_listening())
    }

    /// The one request that is there.
    #[track_caller]
    fn one(&self) -> Waiting {
        let [request] = <[_; 1]>::try_from(self.listen()).expect("one request");
        request
    }

    fn start_answering(&self, id: &str, head: &str, body: Option<&[u8]>) -> TcpStream {
        let headers = [("X-ApiKey", self.key.as_str()), (HEAD_FIELD, head)];
        self.scene.start("POST", &format!("/7ZSFUKGV/http_response/{id}"), &headers, body)
    }

    fn respond(&self, id: &str, head: &str, body: &[u8]) -> Answer {
        hear(self.start_answering(id, head, Some(body)))
    }

    /// Both ends of one exchange: what the client got, and what the far end was told.
    #[track_caller]
    fn exchange(&self, method: &str, path: &str, asked: &[(&str, &str)], head: &str, body: &[u8]) -> (Answer, Answer) {
        let client = self.ask(method, path, asked);
        let request = self.one();
        let told = self.respond(&request.id, head, body);
        (client.join().unwrap(), told)
    }

    /// Whether a far end sleeps.
    fn is_listening(&self) -> bool {
        if let Running::Machines(machines) = &self.scene.relay {
            return !machines.redis.look(FAR_ENDS).is_empty();
        }
        let below = everything_below(&self.scene.folder().join("cgi-bin/data/ptth"));
        below.iter().any(|path| path.parent().is_some_and(|folder| folder.ends_with("far-ends")))
    }

    fn waiting(&self) -> usize {
        if let Running::Machines(machines) = &self.scene.relay {
            return machines.redis.look(WAITING).len();
        }
        self.files().iter().filter(|path| path.contains("/waiting/")).count()
    }

    /// What there is of requests, on the disk or in Redis, where what nobody waits for is removed by Redis itself.
    fn files(&self) -> Vec<String> {
        if let Running::Machines(machines) = &self.scene.relay {
            return machines.redis.look(CLIENTS);
        }
        let below = everything_below(&self.scene.folder().join("cgi-bin/data/ptth"));
        let names = below.iter().filter(|path| !path.is_dir()).filter_map(|path| path.to_str());
        let kept = ["/session.json", "/counts", "/far-ends/"];
        names.filter(|name| !kept.iter().any(|kept| name.contains(kept))).map(str::to_owned).collect()
    }

    #[track_caller]
    fn expect_nothing_left(&self) {
        self.scene.sweep();
        until("nothing is left of requests", LONG, || self.files().is_empty());
    }
}

impl Answer {
    /// The answer of a server behind the relay, if it has this status: what it says of other origins, nobody adds to.
    #[track_caller]
    fn passed(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{:?} {}", self.headers, String::from_utf8_lossy(&self.body));
        let is_cors = |name: &str| name.to_ascii_lowercase().starts_with("access-control-");
        assert!(!self.headers.iter().any(|(name, _)| is_cors(name)), "{self:?}");
        self
    }
}

/// Registers a server on the command line: its key.
fn register(scene: &Scene, name: &str, options: &[&str]) -> String {
    let output = std::process::Command::new(scene.folder().join("cgi-bin/relay.cgi"))
        .args([&["ptth", "add", name], options].concat())
        .arg("--data")
        .arg(scene.folder().join("cgi-bin/data"))
        .output()
        .expect("the program runs");
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said} {}", String::from_utf8_lossy(&output.stderr));
    let behind = said.split("PTTH_KEY=").nth(1).unwrap_or_else(|| panic!("no key in {said}"));
    behind.split_whitespace().next().unwrap().to_owned()
}

#[track_caller]
fn heard(socket: TcpStream) -> Vec<Waiting> {
    let answer = hear(socket).expect(200);
    assert!(answer.is_whole, "{answer:?}");
    understood(&answer.body)
}

fn understood(list: &[u8]) -> Vec<Waiting> {
    decode_list(list).unwrap().into_iter().map(Result::unwrap).collect()
}

fn head(status: u16, fields: &[(&str, &str)]) -> String {
    let mut all = Fields::default();
    for (name, value) in fields {
        all.add(name, value.as_bytes()).unwrap();
    }
    ResponseHead { status: StatusCode::new(status).unwrap(), fields: all }.encode()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"))
}

pub fn a_server_behind_a_firewall_is_reached(door: Door) {
    let Some(behind) = Behind::new(door, &[]) else { return };
    let list = || {
        let list = behind.scene.call("GET", "/frontend/servers/", &[], b"").expect(200);
        serde_json::from_slice::<serde_json::Value>(&list.body).unwrap()["servers"][0].clone()
    };
    let before = list();
    assert_eq!((&before["name"], &before["connected"]), (&NAME.into(), &false.into()), "{before}");
    assert!(before["lastSeen"].is_null());

    // The far end is first.
    let listening = behind.start_listening();
    until("it listens", LONG, || behind.is_listening());
    let now = list();
    assert!(now["connected"] == true && now["lastSeen"].as_u64() > Some(1_700_000_000_000), "{now}");
    // Web servers have views of their own on encoded slashes and on dots.
    let path = if door == Door::Serve { "/a%20b/%2F../?q=%C3%A4&r" } else { "/a%20b/%C3%A4;c=/?q=%C3%A4&r" };
    let cookie = "own=1; token=\"a-secret\"; other=2";
    let asked = [
        ("SomeClientHeader", "hello"),
        ("Cookie", cookie),
        ("X-ApiKey", "mine"),
        ("TE", "trailers"),
        ("Keep-Alive", "timeout=5"),
        ("X-PTTH-2LJYXWC4", "x"),
    ];
    let client = behind.get(path, &asked);
    let [request] = <[_; 1]>::try_from(heard(listening)).unwrap();
    assert_eq!((request.head.method, request.head.uri.as_str()), (Method::Get, path));
    let field = |name: &str| request.head.fields.get(name);
    assert_eq!((field("someclientheader"), field("host")), (Some("hello"), Some("relay")));
    assert_eq!(field("cookie"), Some("own=1; other=2"), "the relay's own is not the server's business");
    for hop in ["connection", "keep-alive", "te", "x-apikey", "x-ptth-2ljyxwc4"] {
        assert_eq!(field(hop), None, "{hop}");
    }
    let body = bytes(100_000);
    let told = behind.respond(&request.id, &head(200, &[("content-type", "a/b"), ("x-own", "1")]), &body).expect(200);
    let got = client.join().unwrap().passed(200);
    assert!(got.is_whole && got.body == body, "{} bytes", got.body.len());
    assert_eq!((got.header("content-type"), got.header("x-own")), ("a/b", "1"));
    assert!(!format!("{got:?}{told:?}").contains(&behind.key), "the key goes nowhere");

    // The client is first.
    let client = behind.get("/", &[]);
    until("it waits", LONG, || behind.waiting() == 1);
    let request = behind.one();
    behind.respond(&request.id, &head(404, &[]), b"").expect(200);
    assert_eq!(client.join().unwrap().passed(404).body, b"");

    let page = behind.scene.call("GET", "/frontend/servers/", &[("Accept", "text/html")], b"").expect(200);
    let html = String::from_utf8(page.body.clone()).unwrap();
    assert!(html.contains("A &lt;b&gt;&quot;server&quot;</a>") && html.contains("connected"), "{html}");
    assert!(page.header("content-security-policy").contains("default-src 'none'"));
    behind.expect_nothing_left();
}

pub fn the_requests_are_what_the_published_relay_sends(door: Door) {
    let Some(behind) = Behind::new(door, &[]) else { return };
    let mut client = behind.scene.connect();
    let fields = "Host: 127.0.0.1:4000\r\nUser-Agent: curl/7.88.1\r\nSomeClientHeader: hello\r\nAccept: */*\r\n";
    client.write_all(format!("GET /frontend/servers/{NAME}/files/ HTTP/1.1\r\n{fields}\r\n").as_bytes()).unwrap();
    let list = hear(behind.start_listening()).expect(200);
    // As it was captured, but for the id: an array of one array, of the id and of [{0: nil}, "/files/", {…}].
    let request = "938100c0a72f66696c65732f84\
        a4686f73749e3132372e302e302e313a34303030aa757365722d6167656e749b6375726c2f372e38382e31b0736f6d65636c69656e746865\
        616465729568656c6c6fa6616363657074932a2f2a";
    let mut requests = understood(&list.body);
    // What the relay adds stands behind the rest, and is fields like any.
    for name in ["via", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host"] {
        assert!(requests[0].head.fields.get(name).is_some(), "{name}");
        requests[0].head.fields.remove(name);
    }
    let got = hex(&encode_list(&requests));
    let id = requests[0].id.clone();
    assert_eq!(got, format!("9192d9{:02x}{}{request}", id.len(), hex(id.as_bytes())));
    assert!(id.len() >= 32 && id.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{id}");
    // And an answer as it was captured.
    let captured = "koEAwIKsY29udGVudC10eXBl3AAYdGV4dC9odG1sOyBjaGFyc2V0PVVURi04rmNvbnRlbnQtbGVuZ3RokTI=";
    behind.respond(&id, captured, b"Hi").expect(200);
    let mut got = Vec::new();
    while !got.ends_with(b"\r\n\r\nHi") {
        hear_more(&mut client, &mut got);
    }
    let got = String::from_utf8(got).unwrap();
    assert!(got.starts_with("HTTP/1.1 200 OK\r\n") && got.contains("text/html; charset=UTF-8"), "{got}");
    assert!(got.contains("Content-Length: 2\r\n") && !got.contains("content-length"), "once: {got}");
}

pub fn a_wrong_ptth_request_says_what_is_wrong(door: Door) {
    let Some(behind) = Behind::new(door, &[("RELAY_MAX_CLIENTS", "2")]) else { return };
    let other_key = register(&behind.scene, "other", &[]);
    let scene = &behind.scene;
    let listen = format!("/7ZSFUKGV/http_listen/{NAME}");
    scene.call("GET", &listen, &[], b"").expect_error(403);
    scene.call("GET", &listen, &[("X-ApiKey", "wrong")], b"").expect_error(401);
    scene.call("GET", &listen, &[("X-ApiKey", &other_key)], b"").expect_error(401);
    let wrong_key = scene.call("GET", &listen, &[("X-ApiKey", "wrong")], b"");
    let wrong_name = scene.call("GET", "/7ZSFUKGV/http_listen/none", &[("X-ApiKey", &behind.key)], b"");
    assert_eq!((wrong_key.status, wrong_key.body), (wrong_name.status, wrong_name.body), "nobody learns names");
    scene.call("POST", &listen, &[("X-ApiKey", &behind.key)], b"").expect_error(405);
    for path in ["/frontend/servers/none/", "/frontend/servers/.hidden/", "/frontend/x", "/7ZSFUKGV/"] {
        scene.call("GET", path, &[], b"").expect_error(404);
    }
    scene.call("GET", "/frontend/relay_up_check", &[], b"").expect(200);
    let below = scene.call("GET", &format!("/frontend/servers/{NAME}"), &[], b"").expect(307);
    assert!(below.header("location").ends_with(&format!("/frontend/servers/{NAME}/")), "{below:?}");
    scene.call("POST", &format!("/frontend/servers/{NAME}/"), &[], b"x").expect_error(405);
    let preflight = scene.call("OPTIONS", "/frontend/servers/", &[("Origin", "http://a")], b"");
    assert_eq!(preflight.expect(204).header("allow"), "GET, HEAD, OPTIONS");
    let list = scene.call("GET", "/frontend/servers/", &[], b"").expect(200);
    assert!(!String::from_utf8(list.body).unwrap().contains("other"), "it is not listed");

    let client = behind.get("/", &[]);
    let id = behind.one().id;
    let ok = head(200, &[]);
    let response = format!("/7ZSFUKGV/http_response/{id}");
    scene.call("POST", &response, &[(HEAD_FIELD, &ok)], b"").expect_error(403);
    scene.call("POST", &response, &[(HEAD_FIELD, &ok), ("X-ApiKey", "wrong")], b"").expect_error(401);
    scene.call("POST", &response, &[(HEAD_FIELD, &ok), ("X-ApiKey", &other_key)], b"").expect_error(400);
    scene.call("POST", &response, &[("X-ApiKey", &behind.key)], b"").expect_error(400);
    for wrong in ["%", "koEA", &head(200, &[("a", &"x".repeat(5000))])[..4000]] {
        behind.respond(&id, wrong, b"").expect_error(400);
    }
    behind.respond(&id[1..], &ok, b"").expect_error(400);
    behind.respond(&id.replace(&id[20..], &"0".repeat(24)), &ok, b"").expect_error(400);
    behind.respond(&id, &ok, b"the first").expect(200);
    behind.respond(&id, &ok, b"the second").expect_error(400);
    assert_eq!(client.join().unwrap().passed(200).body, b"the first");

    // What cannot be passed on is the server's fault, and its client learns that.
    for value in [b'\r', b'\n', 0] {
        let client = behind.get("/", &[]);
        let id = behind.one().id;
        let wrong = [&[0x92, 0x81, 0, 0xc0, 0x81, 0xa1, b'a', 0x93, b'x', value, b'y'][..]].concat();
        behind.respond(&id, &base64(&wrong), b"").expect_error(400);
        client.join().unwrap().expect_error(502);
    }
    let names: Vec<_> = (0..201).map(|number| format!("x{number}")).collect();
    let many: Vec<_> = names.iter().map(|name| (name.as_str(), "")).collect();
    let (got, told) = behind.exchange("GET", "/", &[], &head(200, &many), b"");
    told.expect_error(400);
    got.expect_error(502);
    let (got, _) = behind.exchange("GET", "/", &[], &head(200, &[("content-length", "4")]), b"three");
    got.expect_error(502);
    let (got, _) = behind.exchange("GET", "/", &[], &head(200, &[("content-length", "+5")]), b"three");
    got.expect_error(502);

    let waiting = [behind.get("/1", &[]), behind.get("/2", &[])];
    until("they wait", LONG, || behind.waiting() == 2);
    let refused = behind.get("/3", &[]).join().unwrap();
    assert!(!refused.header("retry-after").is_empty(), "{refused:?}");
    refused.expect_error(503);
    for request in behind.listen() {
        behind.respond(&request.id, &ok, request.head.uri.as_bytes()).expect(200);
    }
    for (client, uri) in waiting.into_iter().zip(["/1", "/2"]) {
        assert_eq!(client.join().unwrap().passed(200).body, uri.as_bytes());
    }
    behind.expect_nothing_left();
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

pub fn what_an_answer_says_passes_through_and_nothing_else(door: Door) {
    let Some(behind) = Behind::new(door, &[]) else { return };
    let range = [("Range", "bytes=1-2")];
    let client = behind.get("/", &range);
    let request = behind.one();
    assert_eq!(request.head.fields.get("range"), Some("bytes=1-2"));
    let part = head(206, &[("content-range", "bytes 1-2/3"), ("content-length", "2"), ("accept-ranges", "bytes")]);
    behind.respond(&request.id, &part, b"bc").expect(200);
    let got = client.join().unwrap().passed(206);
    assert_eq!((got.header("content-range"), &got.body[..]), ("bytes 1-2/3", &b"bc"[..]));

    // Latin-1, as older applications have it: two bytes that are no UTF-8.
    let client = behind.scene.start("GET", &format!("/frontend/servers/{NAME}/"), &[], None);
    let mut latin = Fields::default();
    latin.add("content-disposition", b"attachment; filename=\"\xe4.txt\"").unwrap();
    latin.add("set-cookie", b"a=\xfc").unwrap();
    let latin = ResponseHead { status: StatusCode::new(200).unwrap(), fields: latin }.encode();
    behind.respond(&behind.one().id, &latin, b"body").expect(200);
    let (mut client, mut got) = (client, Vec::new());
    while !got.ends_with(b"body") {
        hear_more(&mut client, &mut got);
    }
    for wanted in [&b"filename=\"\xe4.txt\"\r\n"[..], b"a=\xfc; Path=/"] {
        let text = String::from_utf8_lossy(&got);
        assert!(got.windows(wanted.len()).any(|part| part == wanted), "{} in {text}", wanted.escape_ascii());
    }

    let none = head(416, &[("content-range", "bytes */3")]);
    let (got, _) = behind.exchange("GET", "/", &[("Range", "bytes=9-")], &none, b"");
    assert_eq!(got.passed(416).header("content-range"), "bytes */3");
    let (got, _) = behind.exchange("GET", "/", &[("If-None-Match", "\"e\"")], &head(304, &[("etag", "\"e\"")]), b"");
    let got = got.passed(304);
    assert_eq!((got.header("etag"), &got.body[..]), ("\"e\"", &b""[..]));
    let (got, _) = behind.exchange("GET", "/", &[], &head(204, &[("x-own", "1")]), b"");
    assert_eq!((got.status, got.header("x-own"), &got.body[..]), (204, "1", &b""[..]));
    for status in [201, 301, 302, 303, 307, 308] {
        let (got, _) = behind.exchange("GET", "/a", &[], &head(status, &[("location", "a/")]), b"moved");
        let got = got.passed(status);
        assert!(got.header("location").ends_with("a/") && got.body == b"moved", "{got:?}");
    }
    for status in [400, 401, 403, 405, 410, 418, 429, 500, 501, 503, 599] {
        let (got, _) = behind.exchange("GET", "/", &[], &head(status, &[("content-type", "a/b")]), b"no");
        let got = got.passed(status);
        assert_eq!((got.header("content-type"), &got.body[..]), ("a/b", &b"no"[..]));
    }

    let whole = head(200, &[("content-length", "1234"), ("content-type", "a/b")]);
    let client = behind.ask("HEAD", "/", &[]);
    let request = behind.one();
    assert_eq!(request.head.method, Method::Head);
    behind.respond(&request.id, &whole, b"").expect(200);
    let got = client.join().unwrap().passed(200);
    assert_eq!((got.header("content-length"), got.header("content-type"), got.body.len()), ("1234", "a/b", 0));

    let all = head(
        200,
        &[
            ("connection", "close, x-hop"),
            ("x-hop", "1"),
            ("keep-alive", "timeout=5"),
            ("upgrade", "h2c"),
            ("proxy-authenticate", "Basic"),
            ("x-apikey", "k"),
            ("x-sendfile", "/etc/passwd"),
            ("x-accel-redirect", "/etc/passwd"),
            ("x-lighttpd-send-file", "/etc/passwd"),
            ("status", "500 No"),
            ("location", "/"),
            ("set-cookie", "a=b; Domain=example.org; Path=/x; HttpOnly"),
            ("set-cookie", "c=d"),
        ],
    );
    let (got, _) = behind.exchange("GET", "/", &[], &all, b"body");
    let got = got.passed(200);
    assert_eq!(got.body, b"body");
    for name in ["x-hop", "upgrade", "proxy-authenticate", "x-apikey", "x-sendfile", "x-accel-redirect", "location"] {
        assert_eq!(got.header(name), "", "{name}");
    }
    let cookies: Vec<_> = got.headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("set-cookie")).collect();
    assert_eq!(cookies.len(), 2, "{cookies:?}");
    let (one, two) = (&cookies[0].1, &cookies[1].1);
    let url = behind.scene.url();
    let mount =
        url.strip_prefix("http://").unwrap().split_once('/').map_or(String::new(), |(_, mount)| format!("/{mount}"));
    assert_eq!(*one, format!("a=b; HttpOnly; Path={}/frontend/servers/{NAME}/x", mount.trim_end_matches('/')));
    assert!(two.ends_with(&format!("/frontend/servers/{NAME}/")), "{two}");
    behind.expect_nothing_left();
}

/// A proxy that adds to what an application says of other origins opens to them what the application did not.
pub fn the_application_alone_says_what_other_origins_may(door: Door) {
    let Some(behind) = Behind::new(door, &[]) else { return };
    let asked = [("Origin", "http://other.example"), ("Access-Control-Request-Method", "GET")];
    let client = behind.ask("OPTIONS", "/api?x", &asked);
    let request = behind.one();
    assert_eq!((request.head.method_name(), request.head.uri.as_str()), ("OPTIONS", "/api?x"));
    assert_eq!(request.head.method, Method::Get, "what far ends of others take it for");
    assert_eq!(request.head.fields.get("access-control-request-method"), Some("GET"));
    let allowed = [("access-control-allow-origin", "http://other.example"), ("access-control-max-age", "5")];
    behind.respond(&request.id, &head(204, &allowed), b"").expect(200);
    let got = client.join().unwrap();
    let said = |answer: &Answer| {
        let all = answer.headers.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.clone()));
        let mut said: Vec<_> = all.filter(|(name, _)| name.starts_with("access-control-")).collect();
        said.sort();
        said
    };
    let allowed = allowed.map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!((got.status, said(&got)), (204, allowed.to_vec()), "{got:?}");

    let (got, _) = behind.exchange("OPTIONS", "/", &asked, &head(200, &[("allow", "GET")]), b"with a body");
    let got = got.passed(200);
    assert_eq!((got.header("allow"), &got.body[..]), ("GET", &b"with a body"[..]));
    let (got, _) = behind.exchange("GET", "/", &asked[..1], &head(200, &[]), b"not for other.example");
    assert_eq!(got.passed(200).body, b"not for other.example");

    // A client does not say what the relay has to say.
    let client = behind.get("/", &[("X-PTTH-Method", "OPTIONS")]);
    let request = behind.one();
    assert_eq!(request.head.method_name(), "GET");
    behind.respond(&request.id, &head(200, &[]), b"").expect(200);
    client.join().unwrap().passed(200);
    // RFC 9110, 7.6.2.
    let client = behind.ask("OPTIONS", "/", &[("Max-Forwards", "3")]);
    let request = behind.one();
    assert_eq!(request.head.fields.get("max-forwards"), Some("2"));
    behind.respond(&request.id, &head(204, &[]), b"").expect(200);
    client.join().unwrap().passed(204);
    let last = behind.ask("OPTIONS", "/", &[("Max-Forwards", "0")]).join().unwrap();
    assert_eq!((last.status, last.header("allow")), (204, "GET, HEAD, OPTIONS"));
    behind.expect_nothing_left();
}

pub fn an_application_is_told_who_asks_and_which_way(door: Door) {
    let Some(behind) = Behind::new(door, &[]) else { return };
    let claims = [
        ("X-Forwarded-For", "192.0.2.1"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", "claimed.example"),
        ("X-Forwarded-Port", "443"),
        ("Forwarded", "for=192.0.2.1;proto=https"),
        ("X-Real-IP", "192.0.2.1"),
        // The same to applications that know fields by their variables in CGI.
        ("X_Forwarded_For", "192.0.2.1"),
        ("X_Real_IP", "192.0.2.1"),
        ("Via", "1.1 before"),
    ];
    let client = behind.get("/", &claims);
    let request = behind.one();
    let field = |name: &str| request.head.fields.get(name);
    assert_eq!(field("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!((field("x-forwarded-proto"), field("x-forwarded-host")), (Some("http"), Some("relay")));
    for claim in ["x-forwarded-port", "forwarded", "x-real-ip", "x_forwarded_for", "x_real_ip"] {
        assert_eq!(field(claim), None, "{claim}");
    }
    let via = field("via").unwrap();
    let own = via.strip_prefix("1.1 before, 1.1 uhst-relay-").unwrap_or_else(|| panic!("{via}"));
    assert_eq!(own.len(), 16, "{via}");
    behind.respond(&request.id, &head(200, &[("via", "1.0 application")]), b"").expect(200);
    let got = client.join().unwrap().passed(200);
    assert_eq!(got.header("via"), format!("1.0 application, 1.1 uhst-relay-{own}"));
    // Once more around is a loop; by way of another server it is none.
    let start = Instant::now();
    let via = format!("1.1 x, 1.1 uhst-relay-{own} (comment), 1.1 y");
    behind.get("/", &[("Via", &via)]).join().unwrap().expect_error(508);
    assert!(start.elapsed() < Duration::from_secs(25), "{:?}", start.elapsed());
    behind.expect_nothing_left();
}

/// What the published far end sends for 416.
pub fn an_answer_with_neither_length_nor_body_arrives(door: Door) {
    let Some(behind) = Behind::new(door, &[]) else { return };
    let client = behind.get("/six-bytes", &[("Range", "bytes=100-200")]);
    let request = behind.one();
    let outside = head(416, &[("content-range", "bytes */6")]);
    hear(behind.start_answering(&request.id, &outside, None)).expect(200);
    assert_eq!(client.join().unwrap().passed(416).header("content-range"), "bytes */6");
    // Nobody without the key answers that way.
    let client = behind.get("/", &[]);
    let id = behind.one().id;
    let headers = [("X-ApiKey", "wrong"), (HEAD_FIELD, outside.as_str())];
    hear(behind.scene.start("POST", &format!("/7ZSFUKGV/http_response/{id}"), &headers, None)).expect_error(401);
    hear(behind.start_answering(&id, &outside, None)).expect(200);
    client.join().unwrap().passed(416);
    behind.expect_nothing_left();
}

/// The relay is lighttpd's error handler there, and changes nothing of what else lighttpd refuses.
pub fn what_the_web_server_refuses_stays_refused(door: Door) {
    let Some(behind) = Behind::new(door, &[]) else { return };
    let scene = &behind.scene;
    let secret = scene.folder().join("cgi-bin/data/secret");
    std::fs::write(&secret, "hidden-word").unwrap();
    let raw = |request: &str| {
        let mut socket = scene.connect();
        socket.write_all(format!("{request}\r\nConnection: close\r\n\r\n").as_bytes()).unwrap();
        hear(socket)
    };
    for (request, status) in [
        ("GET /nothing HTTP/1.1\r\nHost: a", 404),
        ("GET /cgi-bin/data/secret HTTP/1.1\r\nHost: a", 403),
        ("GET /cgi-bin/relay.cgi HTTP/1.1", 400),
        ("POST /cgi-bin/relay.cgi?action=host HTTP/1.1\r\nHost: a", 411),
        ("POST /cgi-bin/relay.cgi/bus/x HTTP/1.1\r\nHost: a", 411),
        ("POST /cgi-bin/data/secret HTTP/1.1\r\nHost: a", 411),
    ] {
        raw(request).expect_error(status);
    }
    let direct = raw("GET /cgi-bin/relay.cgi/7ZSFUKGV/http_response/0 HTTP/1.1\r\nHost: a\r\nRedirect-Status: 411");
    direct.expect_error(405);
}

pub fn an_answer_flows_before_it_is_complete(door: Door) {
    let Some(behind) = Behind::new(door, &[]) else { return };
    let body = bytes(200_000);
    let (half, rest) = body.split_at(100_000);
    let mut client = behind.scene.start("GET", &format!("/frontend/servers/{NAME}/"), &[], None);
    let id = behind.one().id;
    let mut far = behind.scene.connect();
    let headers = [("X-ApiKey", behind.key.as_str()), (HEAD_FIELD, &head(200, &[]))];
    let path = format!("/7ZSFUKGV/http_response/{id}");
    far.write_all(behind.scene.head("POST", &path, &headers, "Content-Length: 200000\r\n").as_bytes()).unwrap();
    far.write_all(half).unwrap();
    let mut got = Vec::new();
    // fcgiwrap keeps what is less than 8 KiB.
    while got.len() < 90_000 {
        hear_more(&mut client, &mut got);
    }
    far.write_all(rest).unwrap();
    hear(far).expect(200);
    client.read_to_end(&mut got).unwrap();
    assert!(understand(&got).body == body);

    // Of an unknown length.
    let client = behind.get("/", &[]);
    let id = behind.one().id;
    let mut far = behind.scene.connect();
    let path = format!("/7ZSFUKGV/http_response/{id}");
    far.write_all(behind.scene.head("POST", &path, &headers, "Transfer-Encoding: chunked\r\n").as_bytes()).unwrap();
    far.write_all(b"5\r\nHello\r\n").unwrap();
    far.write_all(b"3\r\nend\r\n0\r\n\r\n").unwrap();
    hear(far).expect(200);
    let got = client.join().unwrap().passed(200);
    assert_eq!(got.body, b"Helloend");
    behind.expect_nothing_left();
}

pub fn each_of_several_listeners_gets_its_own_requests(door: Door) {
    let Some(behind) = Behind::new(door, &[]) else { return };
    let (done, clients) = (AtomicBool::new(false), 12);
    std::thread::scope(|scope| {
        let listeners: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let (mut answered, start) = (0, Instant::now());
                    // Whoever asks may have failed; then this has an end too.
                    while !done.load(Ordering::Acquire) && start.elapsed() < LONG {
                        let heard = hear(behind.start_listening());
                        let list = if heard.status == 204 { Vec::new() } else { understood(&heard.expect(200).body) };
                        for request in list {
                            let body = [request.head.uri.as_bytes(), &bytes(5000)].concat();
                            behind.respond(&request.id, &head(200, &[]), &body).expect(200);
                            answered += 1;
                        }
                    }
                    answered
                })
            })
            .collect();
        let asking: Vec<_> = (0..clients).map(|number| (number, behind.get(&format!("/{number}"), &[]))).collect();
        for (number, client) in asking {
            let got = client.join().unwrap().passed(200);
            assert!(got.body == [format!("/{number}").as_bytes(), &bytes(5000)].concat(), "a mix-up");
        }
        done.store(true, Ordering::Release);
        // Those that listen still hear once more.
        let stop: Vec<_> =
            listeners.iter().filter(|listener| !listener.is_finished()).map(|_| behind.get("/end", &[])).collect();
        let answered: usize = listeners.into_iter().map(|listener| listener.join().unwrap()).sum();
        // None was given to two of them; the last ones may stay without an answer.
        assert!((clients..=clients + stop.len()).contains(&answered), "{answered} answers");
    });
}

pub fn a_request_whose_listener_died_is_given_to_another(door: Door) {
    let Some(behind) = Behind::new(door, &[]) else { return };
    // It goes with a request in its hands.
    let start = Instant::now();
    let client = behind.get("/2", &[]);
    let first = behind.one();
    let second = behind.one();
    assert_eq!(first, second, "the very same request");
    assert!(start.elapsed() >= Duration::from_secs(7), "{:?}", start.elapsed());
    behind.respond(&second.id, &head(200, &[]), b"2").expect(200);
    // It was not dead after all: the answer it has is not given.
    behind.respond(&first.id, &head(200, &[]), b"too late").expect_error(400);
    assert_eq!(client.join().unwrap().passed(200).body, b"2");

    // It goes before there is a request. A web server may not notice, and give its dead one the request all the same.
    drop(behind.start_listening());
    let gone = behind.start_listening();
    until("it listens", LONG, || behind.is_listening());
    gone.shutdown(Shutdown::Both).unwrap();
    drop(gone);
    let listening = behind.start_listening();
    let client = behind.get("/1", &[]);
    let [request] = <[_; 1]>::try_from(heard(listening)).unwrap();
    behind.respond(&request.id, &head(200, &[]), b"1").expect(200);
    assert_eq!(client.join().unwrap().passed(200).body, b"1");
    behind.expect_nothing_left();
}

/// One that cannot answer it would be asked for it as long as its client waits.
pub fn a_request_is_given_to_far_ends_twice_at_most(door: Door) {
    let Some(behind) = Behind::new(door, &[]) else { return };
    let client = behind.get("/", &[]);
    let first = behind.one();
    assert_eq!(behind.one(), first);
    // It took seven seconds to be given again, and would take as long once more.
    let third = behind.start_listening();
    third.set_read_timeout(Some(Duration::from_secs(11))).unwrap();
    let heard = (&third).read(&mut [0; 100]).map_err(|error| error.kind());
    assert_eq!(heard, Err(ErrorKind::WouldBlock), "it is given a third time");
    // Others are given, and this one can still be answered.
    let other = behind.get("/other", &[]);
    third.set_read_timeout(Some(LONG)).unwrap();
    let [request] = <[_; 1]>::try_from(crate::ptth::heard(third)).unwrap();
    assert_eq!(request.head.uri, "/other");
    for (request, client) in [(request, other), (first, client)] {
        behind.respond(&request.id, &head(200, &[]), request.head.uri.as_bytes()).expect(200);
        assert_eq!(client.join().unwrap().passed(200).body, request.head.uri.as_bytes());
    }
    behind.expect_nothing_left();
}

pub fn a_server_that_leads_to_itself_is_told_so(door: Door) {
    let Some(behind) = Behind::new(door, &[]) else { return };
    let _far_end =
        FarEnd::to(&behind, &format!("{}/frontend/servers/{NAME}", behind.scene.url().trim_end_matches('/')));
    let start = Instant::now();
    let got = behind.get("/", &[]).join().unwrap();
    assert!(start.elapsed() < Duration::from_secs(25), "{:?}", start.elapsed());
    assert_eq!(got.status, 508, "{got:?}");
    assert!(String::from_utf8_lossy(&got.body).contains("come back"), "{got:?}");
    assert_eq!(got.header("via").matches("uhst-relay-").count(), 1, "it has gone round once: {got:?}");
    behind.expect_nothing_left();
}

pub fn who_waits_in_vain_for_an_answer_or_a_request_is_told_in_time(door: Door) {
    let Some(behind) = Behind::new(door, &[]) else { return };
    let start = Instant::now();
    let listening = behind.start_listening();
    until("it listens", LONG, || behind.is_listening());
    let heard = hear(listening);
    assert_eq!((heard.status, heard.body.len()), (204, 0), "{heard:?}");
    assert!((24..45).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());

    let start = Instant::now();
    let client = behind.get("/", &[]);
    // Who hangs up is not waited for.
    let gone = behind.scene.start("GET", &format!("/frontend/servers/{NAME}/gone"), &[], None);
    until("both wait", LONG, || behind.waiting() == 2);
    drop(gone);
    until("one has gone", LONG, || behind.waiting() == 1);
    client.join().unwrap().expect_error(504);
    assert!((29..50).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
    assert_eq!(behind.files(), [""; 0], "nothing to sweep");
}

pub fn a_large_answer_flows_through_little_memory(door: Door) {
    const MOST_KIB: u64 = 3 * 1024;
    let Some(behind) = Behind::new(door, &[]) else { return };
    let body = bytes(64 << 20);
    let done = AtomicBool::new(false);
    let server =
        if let Running::Serve(serve) = &behind.scene.relay { Some(serve.pid().as_raw_nonzero().get()) } else { None };
    let most = std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            private_memory(|| server.map_or_else(|| relay_pids(behind.scene.folder()), |pid| vec![pid]), &done)
        });
        let (got, told) = behind.exchange("GET", "/", &[], &head(200, &[]), &body);
        done.store(true, Ordering::Release);
        told.expect(200);
        assert!(got.passed(200).body == body, "not the bytes that were sent");
        watch.join().unwrap()
    });
    // A server has a little of its own before.
    let most_allowed = if server.is_some() { 2 * MOST_KIB } else { MOST_KIB };
    assert!(most > 0 && most < most_allowed, "{most} KiB");
}

pub fn whoever_leaves_half_way_is_told(door: Door) {
    let Some(behind) = Behind::new(door, &[]) else { return };
    // lighttpd collects chunks before the program sees any.
    let is_chunked = door == Door::Serve;
    let length = if is_chunked { "Transfer-Encoding: chunked\r\n" } else { "Content-Length: 100000000000\r\n" };
    let mut chunk = bytes(0x10000);
    if is_chunked {
        chunk = [b"10000\r\n", &chunk[..], b"\r\n"].concat();
    }
    let endless = |id: &str| {
        let mut far = behind.scene.connect();
        let headers = [("X-ApiKey", behind.key.as_str()), (HEAD_FIELD, &head(200, &[]))];
        let path = format!("/7ZSFUKGV/http_response/{id}");
        far.write_all(behind.scene.head("POST", &path, &headers, length).as_bytes()).unwrap();
        far
    };

    // The client.
    let mut client = behind.scene.start("GET", &format!("/frontend/servers/{NAME}/"), &[], None);
    let mut far = endless(&behind.one().id);
    let mut got = Vec::new();
    for _ in 0..8 {
        far.write_all(&chunk).unwrap();
    }
    while got.len() < 100_000 {
        hear_more(&mut client, &mut got);
    }
    drop(client);
    far.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    let start = Instant::now();
    let told = loop {
        assert!(start.elapsed() < LONG, "the far end is not told");
        match far.write_all(&chunk) {
            Ok(()) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => break true,
        }
        // An answer in the middle of the body is the word as well.
        far.set_nonblocking(true).unwrap();
        let peeked = far.peek(&mut [0]);
        far.set_nonblocking(false).unwrap();
        if peeked.is_ok() {
            break true;
        }
    };
    assert!(told);

    // The far end. Through a web server the end is all that its program can say.
    let mut client = behind.scene.start("GET", &format!("/frontend/servers/{NAME}/"), &[], None);
    let mut far = endless(&behind.one().id);
    far.write_all(&chunk).unwrap();
    let mut got = Vec::new();
    while got.len() < 60_000 {
        hear_more(&mut client, &mut got);
    }
    far.shutdown(Shutdown::Both).unwrap();
    drop(far);
    let mut rest = Vec::new();
    let _ = client.read_to_end(&mut rest);
    if door == Door::Serve {
        let whole = [got, rest].concat();
        assert!(!whole.ends_with(b"0\r\n\r\n"), "the client takes half an answer for a whole one");
    }
    behind.expect_nothing_left();
}

pub fn a_far_end_whose_header_fields_are_lost_is_told(door: Door) {
    let Some(behind) = Behind::new(door, &[]) else { return };
    hear(behind.start_listening()).expect_error(403);
    behind.respond(&"0".repeat(44), &head(200, &[]), b"").expect_error(403);
}

// ---- many at once, with our own far ends

/// A web application that answers with what it was asked for.
struct Echo {
    url: String,
}

impl Echo {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                std::thread::spawn(move || Self::talk(socket));
            }
        });
        Self { url }
    }

    fn talk(mut socket: TcpStream) {
        let mut asked = Vec::new();
        let mut some = [0; 4096];
        loop {
            while !asked.windows(4).any(|four| four == b"\r\n\r\n") {
                match socket.read(&mut some) {
                    Ok(got) if got > 0 => asked.extend_from_slice(&some[..got]),
                    _ => return,
                }
            }
            let line = String::from_utf8_lossy(&asked);
            let uri = line.split(' ').nth(1).unwrap_or_default().to_owned();
            asked.clear();
            let body = Self::body(&uri);
            let policy = uri.strip_prefix("/policy/").map_or(String::new(), |size| {
                format!("Content-Security-Policy: {}\r\n", "x".repeat(size.parse().unwrap()))
            });
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n{policy}\r\n{body}", body.len());
            if socket.write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    }

    fn body(uri: &str) -> String {
        format!("{uri}\n").repeat(if uri.starts_with("/policy/") { 100_000 } else { 100 })
    }
}

struct FarEnd(Child);

impl FarEnd {
    fn start(behind: &Behind, echo: &Echo) -> Self {
        Self::to(behind, &echo.url)
    }

    fn to(behind: &Behind, target: &str) -> Self {
        let url = behind.scene.url();
        let arguments = ["ptth", "serve", "--relay", &url, "--name", NAME, "--forward", target, "--listeners", "1"];
        let mut command = program(&arguments);
        command.env("PTTH_KEY", &behind.key).stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.spawn().expect("the far end starts"))
    }
}

impl Drop for FarEnd {
    fn drop(&mut self) {
        kill(rustix::process::Pid::from_child(&self.0), Signal::KILL);
        let _ = self.0.wait();
    }
}

pub fn an_answer_whose_head_is_too_large_is_told_at_once(door: Door) {
    let Some(behind) = Behind::new(door, &[]) else { return };
    let echo = Echo::start();
    let _far_end = FarEnd::start(&behind, &echo);
    // The last is more than any relay takes, the second more than most web servers take in one header field.
    for (size, wanted) in [(100, 200), (9000, if door == Door::Serve { 200 } else { 502 }), (15_000, 502)] {
        let start = Instant::now();
        let path = format!("/policy/{size}");
        let got = behind.get(&path, &[]).join().unwrap().passed(wanted);
        let spent = start.elapsed();
        if wanted == 200 {
            assert!(got.is_whole && got.body == Echo::body(&path).as_bytes());
            assert_eq!(got.header("content-security-policy").len(), size);
        } else {
            assert!(String::from_utf8_lossy(&got.body).contains("header fields"), "{got:?}");
        }
        assert!(spent < Duration::from_secs(25), "{size} took {spent:?}");
    }
}

/// Its client sees that it is cut short, not a connection that ends without a word.
pub fn an_answer_that_breaks_off_at_once_has_begun(door: Door) {
    let Some(behind) = Behind::new(door, &[]) else { return };
    for round in 0..20 {
        let client = behind.get("/", &[]);
        let mut far = behind.scene.connect();
        let headers = [("X-ApiKey", behind.key.as_str()), (HEAD_FIELD, &head(200, &[]))];
        let path = format!("/7ZSFUKGV/http_response/{}", behind.one().id);
        let request = behind.scene.head("POST", &path, &headers, "Content-Length: 5\r\n");
        far.write_all((request + "abc").as_bytes()).unwrap();
        far.shutdown(Shutdown::Both).unwrap();
        let got = client.join().unwrap_or_else(|_| panic!("no answer in round {round}"));
        assert!(got.status == 200 && !got.is_whole && b"abc".starts_with(&got.body), "{got:?}");
    }
}

pub fn fifty_clients_get_their_own_answers_while_listeners_die(door: Door) {
    const CLIENTS: usize = 50;
    const EACH: usize = 20;
    let Some(behind) = Behind::new(door, &[]) else { return };
    let echo = Echo::start();
    let mut far_ends: Vec<_> = (0..3).map(|_| FarEnd::start(&behind, &echo)).collect();
    until("they listen", LONG, || behind.is_listening());
    let (answered, late, cut) = std::thread::scope(|scope| {
        let behind = &behind;
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                scope.spawn(move || {
                    let (mut answered, mut late, mut cut) = (0, 0, 0);
                    for number in 0..EACH {
                        let path = format!("/{client}/{number}");
                        let start = Instant::now();
                        let got = behind.get(&path, &[]).join().unwrap();
                        assert!(start.elapsed() < LONG, "{:?}", start.elapsed());
                        match got.status {
                            504 => late += 1,
                            // The far end was killed between the head and the end of the body, and that is to be seen.
                            200 if !got.is_whole => cut += 1,
                            status => {
                                assert_eq!(status, 200, "{got:?}");
                                assert!(got.body == Echo::body(&path).as_bytes(), "{path} got somebody else's answer");
                                answered += 1;
                            }
                        }
                    }
                    (answered, late, cut)
                })
            })
            .collect();
        // Also a client that fails has finished.
        for next in (0..3).cycle().take_while(|_| clients.iter().any(|client| !client.is_finished())) {
            std::thread::sleep(Duration::from_millis(150));
            far_ends[next] = FarEnd::start(behind, &echo);
        }
        let sums = clients.into_iter().map(|client| client.join().unwrap());
        sums.fold((0, 0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1, sum.2 + one.2))
    });
    assert_eq!(answered + late + cut, CLIENTS * EACH);
    assert!(answered >= CLIENTS * EACH * 9 / 10, "{answered} answers, {late} too late, {cut} cut short");
    drop(far_ends);
    behind.expect_nothing_left();
}

// ---- processes that are killed, and a data folder that is damaged, where the test plays the web server

/// A server at a relay whose processes the test starts one by one.
struct Apart {
    bare: Bare,
    key: String,
}

impl Apart {
    fn new() -> Self {
        Self::of(Bare::new())
    }

    fn of(bare: Bare) -> Self {
        let added = bare.command_line(&["ptth", "add", NAME]).output().unwrap();
        let said = String::from_utf8(added.stdout).unwrap();
        let key = said.split("PTTH_KEY=").nth(1).and_then(|rest| rest.split_whitespace().next()).unwrap().to_owned();
        Self { bare, key }
    }

    fn start(&self, method: &str, path_info: &str, headers: &[(&str, &str)]) -> Child {
        let headers = [headers, &[("X-ApiKey", self.key.as_str())]].concat();
        self.bare.start(&Call { method, path_info, headers: &headers, ..Call::default() })
    }

    fn client(&self, path: &str) -> Child {
        self.start("GET", &format!("/frontend/servers/{NAME}/{path}"), &[])
    }

    fn listener(&self) -> Child {
        self.start("GET", &format!("/7ZSFUKGV/http_listen/{NAME}"), &[])
    }

    fn responder(&self, id: &str, length: usize) -> Child {
        let headers = [("X-ApiKey", self.key.as_str()), (HEAD_FIELD, &head(200, &[]))];
        let path_info = format!("/7ZSFUKGV/http_response/{id}");
        let call = Call { path_info: &path_info, headers: &headers, ..Call::default() };
        let mut command = self.bare.request(&call);
        command.env("CONTENT_LENGTH", length.to_string()).stdin(Stdio::piped()).spawn().unwrap()
    }

    /// Where the server's requests are.
    fn folder(&self) -> PathBuf {
        let below = everything_below(&self.bare.data().join("ptth"));
        let record = below.into_iter().find(|path| path.ends_with("session.json")).unwrap();
        record.parent().unwrap().to_owned()
    }

    /// What stands in one of the folders of the server's requests.
    fn names(&self, folder: &str) -> Vec<PathBuf> {
        let below = everything_below(&self.bare.data().join("ptth"));
        below.into_iter().filter(|path| path.parent().is_some_and(|parent| parent.ends_with(folder))).collect()
    }

    fn until_there(&self, folder: &str) {
        until("it is there", LONG, || !self.names(folder).is_empty());
    }

    #[track_caller]
    fn given(listener: Child) -> Waiting {
        let (list, status) = finish(listener);
        assert!(status.success());
        let [one] = <[_; 1]>::try_from(understood(&list[end_of_head(&list).unwrap()..])).unwrap();
        one
    }

    /// A request is answered, and its client has the answer.
    #[track_caller]
    fn answers(&self, request: &Waiting, client: Child) {
        let mut responder = self.responder(&request.id, 5);
        responder.stdin.take().unwrap().write_all(b"Hello").unwrap();
        let (got, _) = finish(client);
        assert!(got.ends_with(b"Hello"), "{}", String::from_utf8_lossy(&got));
        let (told, status) = finish(responder);
        self.bare.reply(&told, status).expect(200);
    }

    /// One request is answered.
    #[track_caller]
    fn works(&self) {
        let listener = self.listener();
        let client = self.client("works");
        let request = Self::given(listener);
        assert_eq!(request.head.uri, "/works");
        self.answers(&request, client);
        self.bare.sweep();
        for folder in ["waiting", "given", "clients", "answers"] {
            assert_eq!(self.names(folder), Vec::<PathBuf>::new());
        }
    }
}

fn kill9(mut process: Child) {
    kill(rustix::process::Pid::from_child(&process), Signal::KILL);
    process.wait().unwrap();
}

#[test]
fn killing_whoever_waits_leaves_the_server_reachable() {
    let apart = Apart::new();
    let client = apart.client("killed");
    apart.until_there("waiting");
    kill9(client);
    apart.works();
    let listener = apart.listener();
    apart.until_there("far-ends");
    std::thread::sleep(Duration::from_millis(100));
    kill9(listener);
    apart.works();
    // One that has been given, and whose client is killed then.
    let client = apart.client("killed");
    let request = Apart::given(apart.listener());
    kill9(client);
    let (told, status) = finish(apart.responder(&request.id, 0));
    apart.bare.reply(&told, status).expect(400);
    apart.works();
}

#[test]
fn killing_who_answers_cuts_the_answer() {
    let apart = Apart::new();
    let client = apart.client("cut");
    let request = Apart::given(apart.listener());
    let mut responder = apart.responder(&request.id, 100_000);
    responder.stdin.as_mut().unwrap().write_all(&vec![7; 50_000]).unwrap();
    until("it flows", LONG, || apart.names("clients").is_empty());
    std::thread::sleep(Duration::from_millis(300));
    kill9(responder);
    let (got, _) = finish(client);
    let body = &got[end_of_head(&got).unwrap()..];
    // The web server sees that this is less than the length that it was told.
    assert!(body == vec![7; 50_000], "{} bytes", body.len());
    apart.works();
}

#[test]
fn a_request_that_a_killed_process_has_taken_is_asked_again() {
    let apart = Apart::new();
    let client = apart.client("again");
    let first = Apart::given(apart.listener());
    // What a process leaves that is killed as it begins to answer.
    std::fs::remove_file(apart.folder().join("given").join(&first.id)).unwrap();
    let second = Apart::given(apart.listener());
    assert!(first.id != second.id && first.head == second.head, "the same request under a new id");
    let (told, status) = finish(apart.responder(&first.id, 0));
    apart.bare.reply(&told, status).expect(400);
    apart.answers(&second, client);
    apart.works();
}

/// The answer has begun; that something of the request stays on the disk is for the log.
#[test]
fn an_answer_is_not_lost_because_a_leftover_stays() {
    let bare = Bare::new();
    std::fs::create_dir(bare.data()).unwrap();
    if is_root() {
        give_to(&bare.data(), web_user());
    }
    let apart = Apart::of(bare.run_as(web_user()));
    let client = apart.client("kept");
    let request = Apart::given(apart.listener());
    // What is in these folders can be opened, but not removed.
    let folders = ["clients", "answers"].map(|name| apart.folder().join(name));
    for folder in &folders {
        if is_root() {
            std::os::unix::fs::chown(folder, Some(0), Some(0)).unwrap();
        }
        set_mode(folder, 0o555);
    }
    let mut responder = apart.responder(&request.id, 100_000);
    responder.stdin.take().unwrap().write_all(&vec![7; 100_000]).unwrap();
    let (got, _) = finish(client);
    assert!(got[end_of_head(&got).unwrap()..] == vec![7; 100_000], "{} bytes", got.len());
    let (told, status) = finish(responder);
    apart.bare.reply(&told, status).expect(200);
    assert!(apart.bare.log().contains("denied"), "it is for the log: {}", apart.bare.log());
    for folder in &folders {
        if is_root() {
            give_to(folder, web_user());
        }
        set_mode(folder, 0o700);
    }
    apart.works();
}

#[test]
fn a_damaged_backlog_heals() {
    let apart = Apart::new();
    apart.works();
    for folder in ["waiting", "given", "clients", "answers"] {
        let path = apart.folder().join(folder);
        std::fs::remove_dir(&path).unwrap();
        apart.works();
        assert!(path.exists());
    }
    std::fs::write(apart.folder().join("waiting/not-an-id"), "junk").unwrap();
    apart.works();
    std::fs::write(apart.folder().join("session.json"), "{\"half").unwrap();
    apart.bare.sweep();
    apart.works();
    // What it costs a client who waits: nothing.
    let client = apart.client("waits");
    apart.until_there("waiting");
    std::fs::remove_file(apart.folder().join("session.json")).unwrap();
    apart.bare.sweep();
    let request = Apart::given(apart.listener());
    assert!(finish(apart.responder(&request.id, 0)).1.success());
    assert!(finish(client).1.success());
    apart.bare.sweep();
    assert!(everything_below(&apart.bare.data().join("ptth")).iter().all(|path| !path.ends_with("session.json")));
    apart.works();
    std::fs::remove_dir_all(apart.folder()).unwrap();
    apart.works();
}
