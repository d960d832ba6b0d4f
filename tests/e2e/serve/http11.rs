//! HTTP/1.1 done properly: connections that are used again, requests that do not wait for answers, bodies however their
//! length is told, and clients that are older than that.

use std::fmt::Write as _;
use std::process::{Command, Stdio};

use serde_json::json;

use super::{Serve, Wire, ping};
use crate::place::{have, skip};
use crate::relay::{Relay as _, Talk as _, header};

#[test]
fn a_connection_serves_again_and_again() {
    let relay = Serve::new();
    let mut wire = relay.wire();
    for number in 0..200 {
        wire.send(ping(number));
        let reply = wire.expect_pong(number);
        assert_eq!(reply.header("connection"), None, "that goes without saying in HTTP/1.1");
        let date = reply.header("date").unwrap_or_default();
        assert!(date.ends_with(" GMT") && date.len() == 29, "RFC 9110, 6.6.1: {reply:?}");
    }
    // A refusal is an answer like any other.
    for (query, status) in [("token=nonsense", 401), ("action=dance", 400), ("action=join&hostId=nobody", 400)] {
        wire.send(format!("POST /?{query} HTTP/1.1\r\nHost: relay\r\nContent-Length: 5\r\n\r\nhello"));
        let reply = wire.answer();
        assert_eq!(reply.header("connection"), None);
        reply.expect_error(status);
    }
    wire.send("GET /nothing HTTP/1.1\r\nHost: relay\r\n\r\n");
    wire.answer().expect_error(404);
    wire.send(ping(7));
    wire.expect_pong(7);
}

#[test]
fn a_connection_ends_when_the_client_says_so_and_not_before() {
    let relay = Serve::new();
    let begin = "POST /?action=ping&timestamp=7";
    for (request, keeps) in [
        (format!("{begin} HTTP/1.1\r\nHost: relay\r\n\r\n"), true),
        (format!("{begin} HTTP/1.1\r\nHost: relay\r\nConnection: Upgrade, keep-alive\r\n\r\n"), true),
        (format!("{begin} HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n\r\n"), false),
        (format!("{begin} HTTP/1.1\r\nHost: relay\r\nconnection:CLOSE\r\n\r\n"), false),
        (format!("{begin} HTTP/1.1\r\nHost: relay\r\nConnection: keep-alive\r\nConnection: x, close\r\n\r\n"), false),
        (format!("{begin} HTTP/1.0\r\n\r\n"), false),
        (format!("{begin} HTTP/1.0\r\nHost: relay\r\nConnection: keep-alive\r\n\r\n"), true),
        (format!("{begin} HTTP/1.0\r\nConnection: Keep-Alive\r\nContent-Length: 0\r\n\r\n"), true),
        (format!("{begin} HTTP/1.0\r\nConnection: keep-alive, close\r\n\r\n"), false),
        (format!("{begin} HTTP/1.0\r\nConnection: close\r\n\r\n"), false),
    ] {
        let mut wire = relay.wire();
        wire.send(&request);
        wire.send(ping(8));
        let reply = wire.expect_pong(7);
        let said = reply.header("connection");
        // It goes without saying: in HTTP/1.1 that the connection stays, in HTTP/1.0 that it ends (RFC 9112, 9.3).
        let as_always = if request.contains("HTTP/1.0") { (Some("keep-alive"), None) } else { (None, Some("close")) };
        assert!(
            said == if keeps { as_always.0 } else { as_always.1 } || said == Some("close") && !keeps,
            "{request:?}: {said:?}"
        );
        if keeps {
            wire.expect_pong(8);
        } else {
            wire.expect_end();
        }
    }
}

#[test]
fn an_idle_connection_is_closed_without_a_word() {
    let relay = Serve::new();
    let mut silent = relay.wire();
    let mut served = relay.wire();
    served.send(ping(7));
    served.expect_pong(7);
    silent.expect_end();
    served.expect_end();
}

#[test]
fn whoever_begins_http_2_and_asks_for_nothing_is_sent_away() {
    let relay = Serve::new();
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    // Half a preface, a whole one without settings and with them, and half a head.
    let mut wires: Vec<_> = [4, 23, 24, preface.len()].map(|length| (relay.wire(), preface[..length].to_vec())).into();
    wires.push((relay.wire(), [preface, &b"\0\0\x01\x01\0\0\0\0\x01\x82"[..]].concat()));
    for (wire, begun) in &mut wires {
        wire.send(begun);
    }
    for (mut wire, _) in wires {
        wire.rest();
    }
}

/// Requests of every kind in one go, and their answers.
struct Batch {
    bytes: Vec<u8>,
    /// Where each request ends.
    ends: Vec<usize>,
    answers: Vec<(u16, String)>,
}

impl Batch {
    fn new(token: &str) -> Self {
        let mut batch = Self { bytes: Vec::new(), ends: Vec::new(), answers: Vec::new() };
        let send = format!("POST /?token={token} HTTP/1.1\r\nHost: relay\r\n");
        batch.add(ping(1), 200, r#"{"pong":1}"#);
        batch.add(format!("{send}Content-Length: 3\r\n\r\n\"1\""), 200, "{}");
        batch.add(format!("{send}Expect: 100-continue\r\nContent-Length: 0\r\n\r\n"), 200, "{}");
        batch.add(format!("\r\n{}", ping(2)), 200, r#"{"pong":2}"#);
        // Bodies that nobody asked for do not become requests.
        let smuggled = ping(666);
        let length = smuggled.len();
        batch.add(
            format!(
                "POST /?action=ping&timestamp=3 HTTP/1.1\r\nHost: relay\r\nContent-Length: {length}\r\n\r\n{smuggled}"
            ),
            200,
            r#"{"pong":3}"#,
        );
        batch.add("OPTIONS * HTTP/1.1\r\nHost: relay\r\n\r\n".to_owned(), 204, "");
        batch.add(format!("{send}Content-Length: 3\r\n\r\n\"3\""), 200, "{}");
        batch
    }

    fn add(&mut self, request: String, status: u16, body: &str) {
        self.bytes.extend(request.into_bytes());
        self.ends.push(self.bytes.len());
        self.answers.push((status, body.to_owned()));
    }

    #[track_caller]
    fn expect(wire: &mut Wire, answers: &[(u16, String)]) {
        for (status, body) in answers {
            let reply = wire.answer();
            assert_eq!((reply.status, &reply.body), (*status, body), "{reply:?}");
        }
    }
}

#[test]
fn requests_in_one_packet_are_answered_in_order() {
    let relay = Serve::new();
    let (host, mut stream) = relay.listening_host();
    let batch = Batch::new(&relay.join(&host.id));
    let mut wire = relay.wire();
    for _ in 0..20 {
        wire.send(&batch.bytes);
    }
    for _ in 0..20 {
        Batch::expect(&mut wire, &batch.answers);
        for body in [json!("1"), json!({}), json!("3")] {
            assert_eq!(stream.body(), body);
        }
    }
    wire.done();
    wire.expect_end();
}

#[test]
fn requests_may_be_torn_anywhere() {
    let relay = Serve::new();
    let (host, mut stream) = relay.listening_host();
    let batch = Batch::new(&relay.join(&host.id));
    let mut wire = relay.wire();
    for at in 1..batch.bytes.len() {
        let (first, second) = batch.bytes.split_at(at);
        wire.send(first);
        // What is whole is answered before the rest is there.
        let whole = batch.ends.iter().filter(|end| **end <= at).count();
        Batch::expect(&mut wire, &batch.answers[..whole]);
        std::thread::yield_now();
        wire.send(second);
        Batch::expect(&mut wire, &batch.answers[whole..]);
        for body in [json!("1"), json!({}), json!("3")] {
            assert_eq!(stream.body(), body, "torn at {at}");
        }
    }
    for byte in &batch.bytes {
        wire.send([*byte]);
    }
    Batch::expect(&mut wire, &batch.answers);
}

#[test]
fn a_large_message_arrives_in_chunks_of_any_size() {
    let relay = Serve::new();
    let (host, mut stream) = relay.listening_host();
    let token = relay.join(&host.id);
    let text: String = ('a'..='z').cycle().take(1_048_574).collect();
    let message = format!("\"{text}\"");
    let mut random = crate::endurance::Random::new(3);
    for largest in [100, 5_000, 100_000, 2_000_000] {
        let mut body = String::new();
        let mut rest = &message[..];
        while !rest.is_empty() {
            let size = 1 + random.index(largest);
            let (chunk, more) = rest.split_at(size.min(rest.len()));
            write!(body, "{:x}\r\n{chunk}\r\n", chunk.len()).unwrap();
            rest = more;
        }
        let mut wire = relay.wire();
        wire.send(format!("POST /?token={token} HTTP/1.1\r\nHost: relay\r\nTransfer-Encoding: chunked\r\n\r\n"));
        wire.send(body + "0\r\n\r\n");
        wire.answer().expect(200);
        assert!(stream.body() == json!(text), "chunks of up to {largest} bytes changed the message");
    }
    // One byte more than a message may have.
    let mut wire = relay.wire();
    wire.send(format!("POST /?token={token} HTTP/1.1\r\nHost: relay\r\nTransfer-Encoding: chunked\r\n\r\n"));
    wire.send(format!("100001\r\n{message} \r\n0\r\n\r\n"));
    wire.answer().expect_error(413);
}

#[test]
fn a_client_that_waits_for_permission_gets_it() {
    let relay = Serve::new();
    let (host, mut stream) = relay.listening_host();
    let token = relay.join(&host.id);
    let head = |version: &str, length: &str| {
        format!("POST /?token={token} HTTP/{version}\r\nHost: relay\r\nExpect: 100-continue\r\n{length}\r\n\r\n")
    };
    let mut wire = relay.wire();
    for (length, body) in [
        ("Content-Length: 3", "123"),
        ("Content-Length: 3", "123"),
        // Chunks end the connection (RFC 9112, 6.1).
        ("Transfer-Encoding: chunked", "3\r\n123\r\n0\r\n\r\n"),
    ] {
        wire.send(head("1.1", length));
        let reply = wire.answer();
        assert_eq!((reply.status, reply.headers.len()), (100, 0), "{reply:?}");
        wire.send(body);
        wire.answer().expect(200);
        assert_eq!(stream.body(), json!(123));
    }
    wire.expect_end();
    // Nothing to wait for.
    let mut wire = relay.wire();
    wire.send(head("1.1", "Content-Length: 0"));
    assert_eq!(wire.answer().expect(200).header("connection"), None);
    assert_eq!(stream.body(), json!({}));

    // HTTP/1.0 knows no other protocols: the wish for one is ignored (RFC 9110, 7.8).
    let mut old = relay.wire();
    old.send(
        "GET /ws/x HTTP/1.0\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    );
    old.answer().expect_error(426);

    // HTTP/1.0 knows no interim answers (RFC 9110, 10.1.1).
    let mut old = relay.wire();
    old.send(head("1.0", "Content-Length: 3"));
    old.send("123");
    old.answer().expect(200);
    assert_eq!(stream.body(), json!(123));
}

/// What is refused need not be sent (RFC 9110, 10.1.1); and where the next request would begin is then not known.
#[test]
fn a_client_that_waits_for_permission_is_spared_a_refused_upload() {
    let relay = Serve::new();
    let (host, mut stream) = relay.listening_host();
    let token = relay.join(&host.id);
    for (query, length, status) in [
        (format!("token={token}"), 3_000_000, 413),
        (format!("token={token}"), 20_000_000_000_u64, 413),
        ("token=nonsense".to_owned(), 3, 401),
        ("action=dance".to_owned(), 3, 400),
    ] {
        let mut wire = relay.wire();
        wire.send(format!(
            "POST /?{query} HTTP/1.1\r\nHost: relay\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n"
        ));
        let reply = wire.answer();
        assert_eq!(reply.header("connection"), Some("close"), "{query}");
        reply.expect_error(status);
        wire.expect_end();
    }
    relay.send(&token, "1").expect(200);
    assert_eq!(stream.body(), json!(1));
}

/// `curl` sends the body of a large upload by itself only after `100 Continue`, or after a second.
#[test]
fn curl_talks_to_the_relay() {
    if !have("curl") {
        return skip("curl is not installed");
    }
    let relay = Serve::new();
    let (host, mut stream) = relay.listening_host();
    let token = relay.join(&host.id);
    let curl = |arguments: &[&str]| {
        let output = Command::new("curl")
            .args(["--silent", "--show-error", "--noproxy", "*", "--max-time", "60", "--expect100-timeout", "50"])
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .expect("curl runs");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{arguments:?}: {said} {}", String::from_utf8_lossy(&output.stderr));
        said
    };
    let url = format!("{}/?token={token}", relay.url());
    let text: String = ('a'..='z').cycle().take(200_000).collect();
    let file = relay.folder().join("message");
    std::fs::write(&file, format!("\"{text}\"")).unwrap();
    let data = format!("@{}", file.display());
    // To HTTP/1.0 no interim answer is sent, whatever it expects.
    for (version, header) in [
        ("--http1.1", "Expect: 100-continue"),
        ("--http1.1", "Expect:"),
        ("--http1.1", "Transfer-Encoding: chunked"),
        ("--http1.0", "Expect:"),
    ] {
        assert_eq!(curl(&[version, "--data-binary", &data, "-H", header, &url]), "{}", "{version} {header}");
        assert!(stream.body() == json!(text), "{version} {header} changed the message");
    }
    // Two requests over one connection.
    let one = format!("{}/?action=ping&timestamp=1", relay.url());
    let said = curl(&["-X", "POST", "-w", "%{num_connects}", &one, &one]);
    assert_eq!(said, r#"{"pong":1}1{"pong":1}0"#);
    assert!(curl(&["-I", &format!("{}/?token={}", relay.url(), host.token)]).contains("text/event-stream"));
}

#[test]
fn asking_for_the_head_alone_gives_the_head_alone() {
    let relay = Serve::new();
    let (host, mut stream) = relay.listening_host();
    let client = relay.join(&host.id);
    let mut wire = relay.wire();
    for (target, status) in [
        ("/?token=nonsense".to_owned(), 401),
        ("/".to_owned(), 401),
        ("/nothing".to_owned(), 404),
        (format!("/?token={}", host.token), 200),
        ("/?action=ping".to_owned(), 405),
    ] {
        for method in ["HEAD", "GET"] {
            if method == "GET" && status == 200 {
                continue; // that is a stream
            }
            wire.send(format!("{method} {target} HTTP/1.1\r\nHost: relay\r\n\r\n{}", ping(7)));
            let reply = wire.answer_to(method);
            assert_eq!(reply.status, status, "{method} {target}");
            wire.expect_pong(7);
        }
    }
    relay.send(&client, "1").expect(200);
    assert_eq!(stream.body(), json!(1), "the stream stays where it is");
    // To an old client too, whose connection then ends.
    let mut wire = relay.wire();
    wire.send(format!("HEAD /?token={} HTTP/1.0\r\n\r\n", host.token));
    assert_eq!(wire.answer_to("HEAD").status, 200);
    wire.expect_end();
}

#[test]
fn every_way_to_name_the_relay_reaches_it() {
    let relay = Serve::new();
    let mut wire = relay.wire();
    for target in
        ["/?action=ping&timestamp=7", "http://relay/?action=ping&timestamp=7", "HTTPS://a:1?action=ping&timestamp=7"]
    {
        wire.send(format!("POST {target} HTTP/1.1\r\nHost: relay\r\n\r\n"));
        wire.expect_pong(7);
    }
    for target in ["*", "/", "http://relay", "http://relay/", "/?token=x"] {
        wire.send(format!("OPTIONS {target} HTTP/1.1\r\nHost: relay\r\n\r\n"));
        let reply = wire.answer().expect(204);
        assert_eq!(reply.header("allow"), Some("GET, HEAD, POST, OPTIONS"), "{target}");
        assert_eq!((reply.header("content-length"), reply.header("transfer-encoding")), (None, None), "RFC 9110, 8.6");
    }
    for target in ["/x", "http://relay/x", "//relay/", "/%2e", "/..", "/*"] {
        wire.send(format!("POST {target} HTTP/1.1\r\nHost: relay\r\n\r\n"));
        wire.answer().expect_error(404);
    }
}

/// RFC 9112, 6.3 and 9.6: its length is unknown, so it ends where the connection does.
#[test]
fn an_event_stream_is_the_last_answer_on_its_connection() {
    let relay = Serve::with(&[("RELAY_KEEP_ALIVE", "0.3")]);
    let (host, _stream) = relay.listening_host();
    for version in ["1.1", "1.0"] {
        let token = relay.join(&host.id);
        // Whether or not it wants to keep the connection, and whatever it has sent behind it.
        let head = format!("GET /?token={token} HTTP/{version}\r\nHost: relay\r\nConnection: keep-alive\r\n\r\n");
        let (socket, mut stream) = relay.stream(&(head + &ping(7)));
        for name in ["transfer-encoding", "content-length"] {
            assert_eq!(header(&stream.headers, name), None);
        }
        assert_eq!(header(&stream.headers, "connection"), Some("close"));
        assert!(header(&stream.headers, "date").is_some_and(|date| date.ends_with(" GMT")));
        relay.send(&host.token, r#""hello""#).expect(200);
        assert_eq!(stream.body(), json!("hello"));
        for _ in 0..3 {
            stream.expect_comment("sse-keep-alive");
        }
        // A newer stream ends it.
        let _newer = relay.resume(&token, &stream.last_id);
        stream.expect_end();
        Wire::new(socket).expect_end();
    }
}

/// A client that reads nothing for a while gets every byte, in order.
#[test]
fn a_slow_reader_gets_every_message() {
    let relay = Serve::with(&[("RELAY_MAX_QUEUE", "100000000")]);
    let (host, mut stream) = relay.listening_host();
    let token = relay.join(&host.id);
    let text = "x".repeat(500_000);
    // More than both ends of a connection hold: some 4 MB, where nobody has changed that.
    for number in 0..16 {
        relay.send(&token, json!([number, text]).to_string()).expect(200);
    }
    for number in 0..16 {
        let body = stream.body();
        assert!(body[0] == json!(number) && body[1] == json!(text), "message {number} arrived changed");
    }
    relay.send(&token, "1").expect(200);
    assert_eq!(stream.body(), json!(1));
}
