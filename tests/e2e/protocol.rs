//! The UHST protocol, row by row, through each door.

use std::time::Duration;

use serde_json::{Value, json};

use crate::door::Door;
use crate::place::{LONG, relays_running, until};
use crate::relay::{Call, Host, Talk as _, encode};
use crate::stream::Stream;
use crate::token::{self, base64url, hs256, payload, signed};

/// A shorter keep-alive lets a web server notice sooner that a client hung up: it does so when a write fails.
const QUICK: (&str, &str) = ("RELAY_KEEP_ALIVE", "0.5");

const SECRET: &str = "correct horse battery staple";

fn uuid_v4(text: &str) -> bool {
    text.len() == 36
        && text.char_indices().all(|(at, letter)| match at {
            8 | 13 | 18 | 23 => letter == '-',
            14 => letter == '4',
            19 => "89ab".contains(letter),
            _ => letter.is_ascii_digit() || ('a'..='f').contains(&letter),
        })
}

fn digits(text: &str, count: usize) -> bool {
    text.len() == count && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// The text is a JSON object with exactly these names.
#[track_caller]
fn expect_names(json: &Value, names: &[&str]) {
    let mut found: Vec<&str> = json.as_object().expect("an object").keys().map(String::as_str).collect();
    let mut names = names.to_vec();
    found.sort_unstable();
    names.sort_unstable();
    assert_eq!(found, names, "{json}");
}

pub fn a_host_and_a_client_talk_both_ways(door: Door) {
    let Some(relay) = door.start() else { return };

    let reply = relay.post("action=host", "").expect(200);
    assert!(reply.header("content-type").is_some_and(|kind| kind.starts_with("application/json")), "{reply:?}");
    expect_names(&reply.json(), &["hostId", "hostToken"]);
    let host_id = reply.json()["hostId"].as_str().unwrap().to_owned();
    let host_token = reply.json()["hostToken"].as_str().unwrap().to_owned();
    assert!(digits(&host_id, 6), "{host_id}");
    assert_eq!(token::header(&host_token)["alg"], "HS256");
    assert_eq!(payload(&host_token)["type"], "hostToken");
    assert_eq!(payload(&host_token)["hostId"], *host_id);
    assert!(payload(&host_token)["iat"].is_u64());

    let mut host = relay.listen(&format!("token={host_token}"), &[]).expect("a stream");
    expect_stream_headers(&host);
    host.expect_comment("Connected.");

    let reply = relay.try_join(&host_id).expect(200);
    expect_names(&reply.json(), &["clientToken"]);
    let client_token = reply.json()["clientToken"].as_str().unwrap().to_owned();
    let client_id = payload(&client_token)["clientId"].as_str().unwrap().to_owned();
    assert_eq!(payload(&client_token)["type"], "clientToken");
    assert_eq!(payload(&client_token)["hostId"], *host_id);
    assert!(uuid_v4(&client_id), "{client_id}");
    let mut client = relay.listen(&format!("token={client_token}"), &[]).expect("a stream");
    expect_stream_headers(&client);
    client.expect_comment("Connected.");

    let mut last_ids = [0_u64; 2];
    let mut expect_larger = |which: usize, id: &str| {
        let id: u64 = id.parse().unwrap_or_else(|_| panic!("an event id is a number, not {id:?}"));
        assert!(id > last_ids[which], "{id} after {}", last_ids[which]);
        last_ids[which] = id;
    };
    for number in 0..3 {
        let message = json!({"type": "string", "payload": format!("Grüße {number}")});
        let reply = relay.send(&client_token, message.to_string()).expect(200);
        assert_eq!(reply.body.trim(), "{}");
        let event = host.event();
        assert_eq!(event.name, "message");
        expect_larger(0, &event.id);
        expect_names(&event.json(), &["body", "responseToken"]);
        assert_eq!(event.body(), message);
        let response_token = event.response_token();
        assert_eq!(payload(&response_token)["type"], "responseToken");
        assert_eq!(payload(&response_token)["hostId"], *host_id);
        assert_eq!(payload(&response_token)["clientId"], *client_id);

        let reply = relay.send(&response_token, message.to_string()).expect(200);
        assert_eq!(reply.body.trim(), "{}");
        let event = client.event();
        assert_eq!(event.name, "message");
        expect_larger(1, &event.id);
        expect_names(&event.json(), &["body"]);
        assert_eq!(event.body(), message);
    }
}

#[track_caller]
fn expect_stream_headers(stream: &Stream) {
    let header = |name| crate::relay::header(&stream.headers, name).unwrap_or_default().to_owned();
    assert!(header("content-type").starts_with("text/event-stream"), "{:?}", stream.headers);
    assert!(header("cache-control").contains("no-cache"), "{:?}", stream.headers);
    assert_eq!(header("access-control-allow-origin"), "*");
    // nginx keeps this header for itself when it obeys it.
    assert!(["no", ""].contains(&header("x-accel-buffering").as_str()), "{:?}", stream.headers);
}

pub fn a_broadcast_reaches_every_client(door: Door) {
    let Some(relay) = door.start() else { return };
    let (host, _host_stream) = relay.listening_host();
    assert_eq!(relay.send(&host.token, "1").expect(200).json(), json!({}), "there is nobody yet");

    let mut clients = [relay.listening_client(&host.id), relay.listening_client(&host.id)];
    let late = relay.join(&host.id);
    let late_id = payload(&late)["clientId"].as_str().unwrap().to_owned();

    let answer = relay.send(&host.token, r#"{"to":"all"}"#).expect(200).json();
    assert_eq!(answer, json!({&*clients[0].id: true, &*clients[1].id: true, &*late_id: true}));
    for client in &mut clients {
        assert_eq!(client.stream.event().data, r#"{"body":{"to":"all"}}"#);
    }
    assert_eq!(relay.open(&late).body(), json!({"to": "all"}), "a client that opens after the broadcast");
    for client in &mut clients {
        client.stream.expect_silence(Duration::from_millis(200));
    }
}

pub fn a_message_waits_for_a_host_that_opens_later(door: Door) {
    let Some(relay) = door.start() else { return };
    let host = relay.host("");
    let client = relay.join(&host.id);
    for number in 0..5 {
        relay.send(&client, number.to_string()).expect(200);
    }
    let mut stream = relay.open(&host.token);
    for number in 0..5 {
        assert_eq!(stream.body(), json!(number));
    }
    relay.send(&client, "5").expect(200);
    assert_eq!(stream.body(), json!(5));
}

pub fn a_reply_waits_for_a_client_that_opens_later(door: Door) {
    let Some(relay) = door.start() else { return };
    let (host, mut host_stream) = relay.listening_host();
    let client = relay.join(&host.id);
    relay.send(&client, r#""hello""#).expect(200);
    let response = host_stream.event().response_token();
    for number in 0..5 {
        relay.send(&response, number.to_string()).expect(200);
    }
    let mut stream = relay.open(&client);
    for number in 0..5 {
        assert_eq!(stream.body(), json!(number));
    }
    relay.send(&response, "5").expect(200);
    assert_eq!(stream.body(), json!(5));
}

/// With the default settings: what a user of each server gets.
pub fn everybody_learns_who_left(door: Door) {
    let Some(relay) = door.start() else { return };
    let (host, mut host_stream) = relay.listening_host();
    let leaver = relay.listening_client(&host.id);
    let mut others = [relay.listening_client(&host.id), relay.listening_client(&host.id)];

    leaver.stream.hang_up();
    host_stream.expect_closed("client_closed", &leaver.id);
    for other in &others {
        relay.send(&other.token, "1").expect(200);
        assert_eq!(host_stream.body(), json!(1), "the other clients are still there");
    }

    host_stream.hang_up();
    for other in &mut others {
        other.stream.expect_closed("host_closed", &host.id);
    }
}

pub fn nobody_believes_in_a_delivery_to_someone_who_left(door: Door) {
    let Some(relay) = door.start_with(&[QUICK]) else { return };
    let (host, mut host_stream) = relay.listening_host();
    let leaver = relay.listening_client(&host.id);
    let mut stayer = relay.listening_client(&host.id);
    relay.send(&leaver.token, "1").expect(200);
    let response = host_stream.event().response_token();

    leaver.stream.hang_up();
    host_stream.expect_closed("client_closed", &leaver.id);
    relay.send(&response, r#""lost""#).expect_error(400);
    let answer = relay.send(&host.token, r#""to all""#).expect(200).json();
    assert_eq!(answer, json!({&*stayer.id: true}), "a broadcast does not count a client that left");
    assert_eq!(stayer.stream.body(), json!("to all"));

    // It comes back with the same token, and nothing that was refused is there.
    let mut returned = relay.open(&leaver.token);
    relay.send(&response, r#""found""#).expect(200);
    assert_eq!(returned.body(), json!("found"));

    host_stream.hang_up();
    returned.expect_closed("host_closed", &host.id);
    stayer.stream.expect_closed("host_closed", &host.id);
    relay.send(&stayer.token, r#""lost""#).expect_error(400);
    relay.try_join(&host.id).expect_error(400);

    let mut host_stream = relay.open(&host.token);
    relay.send(&stayer.token, r#""found""#).expect(200);
    assert_eq!(host_stream.body(), json!("found"));
    relay.try_join(&host.id).expect(200);
}

pub fn a_host_that_nobody_listens_as_reaches_nobody(door: Door) {
    let Some(relay) = door.start_with(&[QUICK, ("JWT_SECRET", SECRET)]) else { return };
    // An application's token for a host that never was.
    relay.send(&token::minted_host("nobody", SECRET), "1").expect_error(400);

    let host = relay.host("");
    relay.send(&host.token, "1").expect_error(400);
    let stream = relay.open(&host.token);
    assert_eq!(relay.send(&host.token, "2").expect(200).json(), json!({}), "it listens, and has no clients");
    stream.hang_up();
    until("nobody listens as this host", LONG, || relay.send(&host.token, "3").status == 400);
    relay.send(&host.token, "4").expect_error(400);
    // Whoever has joined is reached all the same.
    let stream = relay.open(&host.token);
    let mut client = relay.listening_client(&host.id);
    stream.hang_up();
    client.stream.expect_closed("host_closed", &host.id);
    assert_eq!(relay.send(&host.token, "5").expect(200).json(), json!({&*client.id: true}));
}

pub fn a_client_of_a_host_that_left_cannot_listen(door: Door) {
    let Some(relay) = door.start_with(&[QUICK]) else { return };
    let (host, host_stream) = relay.listening_host();
    let mut client = relay.listening_client(&host.id);
    host_stream.hang_up();
    client.stream.expect_closed("host_closed", &host.id);
    // Until the relay has noted that the event was delivered, it may give it once more.
    until("an error, not a stream that stays silent", LONG, || {
        relay.listen(&format!("token={}", client.token), &[]).is_err_and(|reply| reply.status == 400)
    });
}

/// The next messages are these numbers; the ids of their events.
#[track_caller]
fn expect_numbers(stream: &mut Stream, numbers: std::ops::RangeInclusive<u64>) -> Vec<String> {
    numbers
        .map(|number| {
            let event = stream.event();
            assert_eq!(event.body(), json!(number));
            event.id
        })
        .collect()
}

pub fn a_stream_cut_before_its_first_event_loses_nothing(door: Door) {
    let Some(relay) = door.start_with(&[("RELAY_GRACE", "60")]) else { return };
    let (host, mut stream) = relay.listening_host();
    let begin = stream.first_id();
    // It is written to the stream, and the browser at its other end sees nothing of it.
    relay.send(&relay.join(&host.id), "1").expect(200);
    assert_eq!(stream.body(), json!(1));
    stream.hang_up();
    let mut stream = relay.resume(&host.token, &begin);
    assert_eq!(stream.body(), json!(1));

    let listen = |query: &str| relay.listen_at("/bus/news", query, &[]).unwrap_or_else(|reply| panic!("{reply:?}"));
    let greeting = Call { method: "GET", path_info: "/bus/news", ..Call::default() };
    let user = relay.call(&greeting).expect(200).json()["user"].clone();
    let mut bus = listen("events");
    let begin = bus.first_id();
    relay
        .call(&Call { path_info: "/bus/news", query: &format!("user={user}"), body: b"2", ..Call::default() })
        .expect(200);
    bus.hang_up();
    assert_eq!(listen(&format!("events&lastEventId={begin}")).event().json()["data"], json!(2));
}

pub fn a_cut_stream_goes_on_where_it_broke(door: Door) {
    let Some(relay) = door.start_with(&[("RELAY_GRACE", "60")]) else { return };
    let (host, mut stream) = relay.listening_host();
    let client = relay.join(&host.id);
    let mut number = 0;
    let mut send = |count: u64| {
        for _ in 0..count {
            number += 1;
            relay.send(&client, number.to_string()).expect(200);
        }
    };
    send(4);
    let ids = expect_numbers(&mut stream, 1..=4);
    stream.hang_up();
    send(2);

    // The browser had seen the first two when the line broke.
    let token = format!("token={}", host.token);
    let header = [("Last-Event-ID", &*ids[1])];
    let mut stream =
        if door.passes_every_header() { relay.open_with(&token, &header) } else { relay.resume(&host.token, &ids[1]) };
    expect_numbers(&mut stream, 3..=6);
    send(1);
    let last = expect_numbers(&mut stream, 7..=7).remove(0);

    // Polyfills that cannot send the header say it in the query.
    for name in ["lastEventId", "last_event_id", "evs_last_event_id"] {
        stream.hang_up();
        stream = relay.open_with(&format!("{token}&{name}={}", ids[3]), &[]);
        expect_numbers(&mut stream, 5..=7);
    }
    stream.hang_up();
    stream = relay.resume(&host.token, &last);
    send(1);
    expect_numbers(&mut stream, 8..=8);

    // One that does not say what it saw continues after what the last stream was given; the very last message may come
    // again, if that stream had no time to note that it was gone.
    stream.hang_up();
    stream = relay.open(&host.token);
    send(1);
    let mut next = stream.body();
    if next == json!(8) {
        next = stream.body();
    }
    assert_eq!(next, json!(9));
    stream.expect_silence(Duration::from_millis(200));
}

pub fn a_newer_stream_takes_over(door: Door) {
    let Some(relay) = door.start() else { return };
    let (host, mut older) = relay.listening_host();
    let mut client = relay.listening_client(&host.id);
    relay.send(&client.token, "1").expect(200);
    let response = older.event().response_token();

    let mut newer = relay.resume(&host.token, &older.last_id);
    older.expect_end();
    relay.send(&client.token, "2").expect(200);
    assert_eq!(newer.body(), json!(2));
    // Had the client been told that its host left, that would come first.
    relay.send(&response, "3").expect(200);
    assert_eq!(client.stream.body(), json!(3));

    let mut second_tab = relay.resume(&client.token, &client.stream.last_id);
    client.stream.expect_end();
    relay.send(&response, "4").expect(200);
    assert_eq!(second_tab.body(), json!(4));
    relay.send(&client.token, "5").expect(200);
    assert_eq!(newer.body(), json!(5), "the host was not told that a client left");
}

pub fn within_the_grace_an_absence_goes_unnoticed(door: Door) {
    let Some(relay) = door.start_with(&[QUICK, ("RELAY_GRACE", "60")]) else { return };
    let (host, mut host_stream) = relay.listening_host();
    let mut client = relay.listening_client(&host.id);
    relay.send(&client.token, "1").expect(200);
    let response = host_stream.event().response_token();

    host_stream.hang_up();
    // The client's is a program, too, unless it is at another machine.
    let others = usize::from(door != Door::Machines);
    until("the host's stream ended", LONG, || relays_running(relay.folder().path()) <= others);
    relay.send(&client.token, "2").expect(200);
    relay.try_join(&host.id).expect(200);
    let mut host_stream = relay.open(&host.token);
    assert_eq!(host_stream.body(), json!(2));

    let token = client.token.clone();
    std::mem::replace(&mut client.stream, relay.open(&token)).hang_up();
    relay.send(&response, "3").expect(200);
    assert_eq!(client.stream.body(), json!(3), "no word of the host's absence came before");
    relay.send(&client.token, "4").expect(200);
    assert_eq!(host_stream.body(), json!(4));
}

pub fn a_host_id_in_use_is_refused(door: Door) {
    let Some(relay) = door.start_with(&[QUICK]) else { return };
    let first = relay.host("my-room");
    assert_eq!(first.id, "my-room");
    relay.post("action=host&hostId=my-room", "").expect_error(400);
    let stream = relay.open(&first.token);
    relay.post("action=host&hostId=my-room", "").expect_error(400);
    let mut client = relay.listening_client("my-room");

    stream.hang_up();
    client.stream.expect_closed("host_closed", "my-room");
    let second = relay.host("my-room");
    let _stream = relay.open(&second.token);
    relay.get(&format!("token={}", first.token)).expect_error(401);
    relay.send(&first.token, "1").expect_error(401);
}

pub fn a_wrong_request_says_what_is_wrong(door: Door) {
    let Some(relay) = door.start() else { return };
    let (host, mut host_stream) = relay.listening_host();
    let client = relay.join(&host.id);
    relay.send(&client, "1").expect(200);
    let response = host_stream.event().response_token();

    relay.get("").expect_error(401);
    relay.get("token=").expect_error(401);
    relay.get("token=nonsense").expect_error(401);
    relay.get(&format!("token={response}")).expect_error(400);
    relay.post("", "").expect_error(401);
    relay.post("token=nonsense", "{}").expect_error(401);
    assert!(relay.post("action=dance", "").expect_error(400).contains("action"), "the error names what is wrong");
    assert!(relay.post("action=join", "").expect_error(400).contains("hostId"), "the error names what is missing");
    relay.post("action=join&hostId=", "").expect_error(400);
    relay.post("action=join&hostId=nobody", "").expect_error(400);
    for broken in ["{", r#"{"a":1}x"#, "nul", "'a'", "[1,]", r#"{"a" 1}"#, "\"\n\"", "01", "\u{feff}1", "1 2"] {
        relay.send(&client, broken).expect_error(400);
    }
    relay.send(&client, b"\"\xff\xfe\"").expect_error(400);
    relay.send(&client, b"\"\xed\xa0\x80\"").expect_error(400);

    relay.send(&client, "2").expect(200);
    assert_eq!(host_stream.body(), json!(2), "nothing of what was refused arrives");
}

/// The answer is ready before the body is read, if the program reads it at all; not every server likes that.
pub fn a_refusal_reaches_whoever_sent_a_body(door: Door) {
    let Some(relay) = door.start() else { return };
    let sizes = [10, 1_000, 60_000, 200_000, 900_000];
    for round in 0..4 {
        for size in sizes {
            let body = format!("\"{}\"", "x".repeat(size));
            relay.send("nonsense", &body).expect_error(401);
            let query = ["action=dance", "", "action=join", "action=join&hostId=nobody"][round];
            let status = if query.is_empty() { 401 } else { 400 };
            relay.post(query, &body).expect_error(status);
            assert_eq!(relay.post("action=ping&timestamp=1", &body).expect(200).json(), json!({"pong": 1}));
        }
    }
}

pub fn pages_of_other_sites_may_call(door: Door) {
    let Some(relay) = door.start() else { return };
    let origin = [("Origin", "https://game.example")];
    let call = |method, query| relay.call(&Call { method, query, headers: &origin, ..Call::default() });

    assert_eq!(call("POST", "action=ping").expect(200).header("access-control-allow-origin"), Some("*"));
    assert_eq!(call("POST", "action=join").expect(400).header("access-control-allow-origin"), Some("*"));
    assert_eq!(call("GET", "token=x").expect(401).header("access-control-allow-origin"), Some("*"));
    assert_eq!(call("GET", "action=host").expect(405).header("access-control-allow-origin"), Some("*"));
    let stream = relay.listen(&format!("token={}", relay.host("").token), &origin).expect("a stream");
    expect_stream_headers(&stream);

    if !door.passes_every_method() {
        return;
    }
    let preflight = [
        ("Origin", "https://game.example"),
        ("Access-Control-Request-Method", "POST"),
        ("Access-Control-Request-Headers", "content-type"),
    ];
    let reply =
        relay.call(&Call { method: "OPTIONS", query: "token=x", headers: &preflight, ..Call::default() }).expect(204);
    let list = |name: &str| reply.header(name).unwrap_or_default().to_lowercase();
    assert_eq!(list("access-control-allow-origin"), "*");
    assert!(list("access-control-allow-methods").contains("post"), "{reply:?}");
    assert!(list("access-control-allow-headers").contains("content-type"), "{reply:?}");
    assert!(list("access-control-max-age").parse::<u32>().is_ok_and(|seconds| seconds > 0), "{reply:?}");
    assert_eq!(reply.body, "");
}

pub fn pages_of_unlisted_sites_may_not_call(door: Door) {
    let allowed = ("RELAY_ALLOWED_ORIGINS", "https://game.example, http://localhost:3000");
    let Some(relay) = door.start_with(&[allowed]) else { return };
    if !door.passes_every_header() {
        // It cannot be known who asks, so nobody's page may read the answer.
        assert_eq!(relay.post("action=ping", "").header("access-control-allow-origin"), None);
        return;
    }
    let call = |method, origin: &str, query| {
        relay.call(&Call { method, query, headers: &[("Origin", origin)], ..Call::default() })
    };
    for origin in ["https://game.example", "http://localhost:3000"] {
        for reply in [call("POST", origin, "action=ping").expect(200), call("POST", origin, "action=join").expect(400)]
        {
            assert_eq!(reply.header("access-control-allow-origin"), Some(origin));
            assert!(reply.header("vary").is_some_and(|vary| vary.to_lowercase().contains("origin")), "{reply:?}");
        }
    }
    for origin in
        ["https://evil.example", "https://game.example.evil", "null", "http://game.example", "https://game.example:1"]
    {
        for (method, query) in [("POST", "action=ping"), ("POST", "action=host"), ("GET", "token=x")] {
            let reply = call(method, origin, query);
            assert_eq!(reply.status, 403, "{origin}: {reply:?}");
            let may = reply.header("access-control-allow-origin");
            assert!(may != Some(origin) && may != Some("*"), "{origin}: {reply:?}");
        }
    }
    // Programs that are no browsers have no origin.
    assert_eq!(relay.post("action=ping", "").status, 200);
}

pub fn head_and_other_methods_are_answered(door: Door) {
    let Some(relay) = door.start() else { return };
    let call = |method, query: &str| relay.call(&Call { method, query, ..Call::default() });
    for action in ["host", "join", "ping"] {
        let reply = call("GET", &format!("action={action}")).expect(405);
        let allow: Vec<&str> = reply.header("allow").unwrap_or_default().split(',').map(str::trim).collect();
        assert!(allow.contains(&"POST") && !allow.contains(&"GET"), "{reply:?}");
        reply.expect_error(405);
    }
    if !door.passes_every_method() {
        return;
    }

    let (host, mut stream) = relay.listening_host();
    let mut client = relay.listening_client(&host.id);
    let reply = call("HEAD", &format!("token={}", host.token)).expect(200);
    assert!(reply.header("content-type").is_some_and(|kind| kind.starts_with("text/event-stream")), "{reply:?}");
    assert_eq!(reply.body, "");
    call("HEAD", "token=nonsense").expect(401);
    call("HEAD", "").expect(401);
    relay.send(&client.token, "1").expect(200);
    let event = stream.event();
    assert_eq!(event.body(), json!(1), "asking for the headers does not take the stream over");
    relay.send(&event.response_token(), "2").expect(200);
    assert_eq!(client.stream.body(), json!(2), "nor is anybody told that it ended");

    let waiting = relay.host("waiting");
    call("HEAD", &format!("token={}", waiting.token)).expect(200);
    relay.post("action=host&hostId=waiting", "").expect_error(400);

    for method in ["PUT", "DELETE", "PATCH"] {
        let reply = call(method, "action=ping").expect(405);
        let allow: Vec<&str> = reply.header("allow").unwrap_or_default().split(',').map(str::trim).collect();
        assert_eq!(allow, ["GET", "HEAD", "POST", "OPTIONS"], "{method}");
        reply.expect_error(405);
    }
}

pub fn json_arrives_byte_for_byte(door: Door) {
    let Some(relay) = door.start() else { return };
    let (host, mut host_stream) = relay.listening_host();
    let mut client = relay.listening_client(&host.id);
    let messages = [
        ("", "{}"),
        ("1", "1"),
        ("null", "null"),
        ("\"\"", "\"\""),
        (" [ ] ", "[]"),
        ("-0", "-0"),
        ("1E400", "1E400"),
        ("12345678901234567890123456789.10", "12345678901234567890123456789.10"),
        (r#"{"z":1,"a":2,"z":3}"#, r#"{"z":1,"a":2,"z":3}"#),
        ("{\r\n\t\"b\" : [ 1 ,\n\n 2 ] ,\r \"a\" : { }\n}\n", r#"{"b":[1,2],"a":{}}"#),
        (r#""a  b\n\r\t\u0000\u2028\ud83d\ude00 \/""#, r#""a  b\n\r\t\u0000\u2028\ud83d\ude00 \/""#),
        (r#"{"quote \" : , ":"\\\" } \\"}"#, r#"{"quote \" : , ":"\\\" } \\"}"#),
        ("\"\u{2028}\u{2029}\u{85}\u{feff}\u{1f600}é\"", "\"\u{2028}\u{2029}\u{85}\u{feff}\u{1f600}é\""),
        ("\"data: x\"", "\"data: x\""),
    ];
    for (sent, arrives) in messages {
        relay.send(&client.token, sent).expect(200);
        let event = host_stream.event();
        let rest = event.data.strip_prefix(&format!(r#"{{"body":{arrives},"responseToken":""#));
        let rest = rest.unwrap_or_else(|| panic!("{sent:?} should arrive as {arrives:?}, not in {event:?}"));
        let response = rest.strip_suffix("\"}").unwrap_or_else(|| panic!("something behind the token in {event:?}"));

        relay.send(response, sent).expect(200);
        assert_eq!(client.stream.event().data, format!(r#"{{"body":{arrives}}}"#), "to a client");
        relay.send(&host.token, sent).expect(200);
        assert_eq!(client.stream.event().data, format!(r#"{{"body":{arrives}}}"#), "to all");
    }
}

pub fn a_ping_answers_the_number_it_was_given(door: Door) {
    let Some(relay) = door.start() else { return };
    for (query, answer) in [
        ("action=ping&timestamp=1732147200123", r#"{"pong":1732147200123}"#),
        ("action=ping&timestamp=0", r#"{"pong":0}"#),
        ("action=ping&timestamp=-1.50", r#"{"pong":-1.50}"#),
        ("action=ping&timestamp=123456789012345678901234567890", r#"{"pong":123456789012345678901234567890}"#),
        ("action=ping", r#"{"pong":null}"#),
        ("action=ping&timestamp=", r#"{"pong":null}"#),
        ("action=ping&timestamp=soon", r#"{"pong":null}"#),
        ("action=ping&timestamp=%7B%7D", r#"{"pong":null}"#),
        ("action=ping&timestamp=0x10", r#"{"pong":null}"#),
        ("action=ping&timestamp=1%0d%0aX:1", r#"{"pong":null}"#),
        ("timestamp=7&action=ping", r#"{"pong":7}"#),
    ] {
        let reply = relay.post(query, "");
        if query.contains("%0d") && reply.status == 400 {
            continue; // lighttpd refuses control characters by itself
        }
        assert_eq!(reply.expect(200).body.trim(), answer, "{query}");
    }
}

pub fn an_application_with_the_secret_mints_tokens(door: Door) {
    let Some(relay) = door.start_with(&[QUICK, ("JWT_SECRET", SECRET)]) else { return };
    let host = Host { id: "minted".into(), token: token::minted_host("minted", SECRET) };
    let client = token::minted_client("minted", "somebody", SECRET);

    // Nobody is there before the host opens.
    relay.send(&client, "0").expect_error(400);
    relay.get(&format!("token={client}")).expect_error(400);

    let mut host_stream = relay.open(&host.token);
    relay.send(&client, "1").expect(200);
    let event = host_stream.event();
    assert_eq!(event.body(), json!(1));
    assert_eq!(payload(&event.response_token())["clientId"], "somebody");
    let mut client_stream = relay.open(&client);
    relay.send(&token::minted_response("minted", "somebody", SECRET), "2").expect(200);
    assert_eq!(client_stream.body(), json!(2));
    assert_eq!(relay.send(&host.token, "3").expect(200).json(), json!({"somebody": true}));
    assert_eq!(client_stream.body(), json!(3));
    let mut joined = relay.listening_client("minted");
    assert_eq!(relay.send(&host.token, "4").expect(200).json(), json!({"somebody": true, &*joined.id: true}));
    assert_eq!(joined.stream.body(), json!(4));

    // The relay's own tokens are signed with the same secret.
    let own = relay.host("").token;
    let (text, signature) = own.rsplit_once('.').unwrap();
    assert_eq!(token::signature(text, SECRET), signature);

    // It comes and goes like any other.
    host_stream.hang_up();
    assert_eq!(client_stream.body(), json!(4));
    client_stream.expect_closed("host_closed", "minted");
    let mut host_stream = relay.open(&host.token);
    relay.send(&client, "5").expect(200);
    assert_eq!(host_stream.body(), json!(5));
}

pub fn forged_tokens_are_refused(door: Door) {
    let Some(relay) = door.start_with(&[("JWT_SECRET", SECRET)]) else { return };
    let (host, mut stream) = relay.listening_host();
    let honest = relay.join(&host.id);
    let claims = payload(&honest);
    let (text, signature) = honest.rsplit_once('.').unwrap();
    let (header, body) = text.split_once('.').unwrap();

    let other = base64url(json!({"type": "clientToken", "hostId": host.id, "clientId": "me"}).to_string());
    let mut forged = vec![
        ("another secret", signed(&hs256(), &claims, "incorrect horse")),
        ("an empty secret", signed(&hs256(), &claims, "")),
        ("another payload", format!("{header}.{other}.{signature}")),
        ("no signature", format!("{text}.")),
        ("two parts", text.to_owned()),
        ("four parts", format!("{honest}.{signature}")),
        ("half a signature", format!("{text}.{}", &signature[..20])),
        ("a longer signature", format!("{honest}A")),
        ("padding", format!("{honest}=")),
        ("no type", signed(&hs256(), &json!({"hostId": host.id, "clientId": "me"}), SECRET)),
        ("unknown type", signed(&hs256(), &json!({"type": "adminToken", "hostId": host.id, "clientId": "me"}), SECRET)),
        ("no hostId", signed(&hs256(), &json!({"type": "clientToken", "clientId": "me"}), SECRET)),
        ("no clientId", signed(&hs256(), &json!({"type": "clientToken", "hostId": host.id}), SECRET)),
        (
            "a number as clientId",
            signed(&hs256(), &json!({"type": "clientToken", "hostId": host.id, "clientId": 1}), SECRET),
        ),
        ("an array", signed(&hs256(), &json!([1]), SECRET)),
        ("no header", signed(&json!({}), &claims, SECRET)),
        ("three dots", "...".to_owned()),
        ("not base64", "ä.ö.ü".to_owned()),
        ("control characters", "a\u{0}b.c\r\nd.e".to_owned()),
        ("a long one", "A".repeat(4096)),
        ("body only", body.to_owned()),
    ];
    for algorithm in ["none", "None", "NONE", "HS384", "HS512", "RS256", "ES256", "hs256", ""] {
        let header = json!({"alg": algorithm, "typ": "JWT"});
        forged.push(("a signature under another name", signed(&header, &claims, SECRET)));
        forged.push(("another algorithm", format!("{}.{body}.", base64url(header.to_string()))));
    }
    for (what, token) in forged {
        let token = encode(token);
        let get = relay.get(&format!("token={token}"));
        let post = relay.send(&token, "1");
        for reply in [get, post] {
            // A server may refuse control characters by itself.
            let is_by_server = what == "control characters" && reply.status == 400;
            assert!(is_by_server || reply.status == 401, "{what}: {reply:?}");
        }
    }
    relay.send(&honest, "2").expect(200);
    assert_eq!(stream.body(), json!(2), "only the honest message arrives");
}

pub fn host_ids_carry_the_relays_prefix(door: Door) {
    let Some(relay) = door.start_with(&[("RELAY_PREFIX", "eu1")]) else { return };
    for query in ["action=host", "action=host&hostId="] {
        let id = relay.post(query, "").expect(200).json()["hostId"].as_str().unwrap().to_owned();
        assert!(id.strip_prefix("eu1-").is_some_and(|number| digits(number, 4)), "{id}");
        relay.try_join(&id).expect(200);
    }
    assert_eq!(relay.host("my-own").id, "my-own");
}

pub fn a_web_query_is_never_a_command_line(door: Door) {
    let Some(relay) = door.start() else { return };
    for query in ["serve", "--help", "--version", "sweep", "-h", "sweep+--all", "serve+--listen+127.0.0.1:1"] {
        relay.get(query).expect_error(401);
        relay.post(query, "").expect_error(401);
    }
    assert_eq!(relay.post("action=ping&timestamp=1", "").expect(200).json(), json!({"pong": 1}));
    // Who has answered may still sweep for a moment.
    until("nothing was started that stays", LONG, || relays_running(relay.folder().path()) == 0);
}

pub fn strange_host_ids_are_just_ids(door: Door) {
    let Some(relay) = door.start() else { return };
    let longest = "x".repeat(256);
    let harmless = [
        "../../x",
        "..",
        ".",
        "/etc/passwd",
        "%2e%2e",
        "%2e%2e%2f%2e%2e%2fx",
        "a/b",
        "a\\b",
        "~root",
        "a b",
        "a&b=c",
        "$(id)",
        "`id`",
        "a;b",
        "<script>",
        "'\"",
        "é漢字🎲",
        "CON",
        "-rf",
        "--help",
        "*",
        "{}",
        "null",
        "session.json",
        &longest,
    ];
    let program_folder = || {
        let mut names: Vec<_> = crate::place::everything_below(&relay.folder().join("cgi-bin"));
        names.retain(|path| !path.starts_with(relay.folder().join("cgi-bin/data")));
        names.sort();
        names
    };
    relay.host("");
    let before = program_folder();
    for id in harmless {
        let host = relay.host(id);
        assert_eq!(host.id, id);
        let client = relay.join(id);
        relay.send(&client, r#""hello""#).expect(200);
        let mut stream = relay.open(&host.token);
        let event = stream.event();
        assert_eq!(event.body(), json!("hello"), "{id:?}");
        assert_eq!(payload(&event.response_token())["hostId"], *id);
        relay.post(&format!("action=host&hostId={}", encode(id)), "").expect_error(400);
    }
    assert_eq!(program_folder(), before, "an id made a file outside the data folder");

    // Some servers refuse these by themselves, without JSON.
    let too_long = "x".repeat(257);
    let page = "x".repeat(4096);
    for id in [
        too_long.as_bytes(),
        page.as_bytes(),
        b"a\0b",
        b"\0",
        b"a\nb",
        b"a\r\nb",
        b"\x7f",
        b"\x1b[0m",
        b"\xff",
        b"a\xc3",
        b"\xed\xa0\x80",
    ] {
        for action in ["host", "join"] {
            let reply = relay.post(&format!("action={action}&hostId={}", encode(id)), "");
            assert_eq!(reply.status, 400, "{action} {:?}: {reply:?}", String::from_utf8_lossy(id));
            if door == Door::Bare {
                reply.expect_error(400);
            }
        }
    }
}

pub fn only_the_program_itself_is_the_relay(door: Door) {
    let Some(relay) = door.start() else { return };
    let call = |path_info| relay.call(&Call { path_info, query: "action=ping&timestamp=1", ..Call::default() });
    assert_eq!(call("/").expect(200).json(), json!({"pong": 1}));
    for path in ["/x", "/x/y", "//x", "/action", "/data/secret"] {
        let reply = call(path);
        assert_eq!(reply.status, 404, "{path}: {reply:?}");
        if door == Door::Bare {
            reply.expect_error(404);
        }
    }
}

pub fn a_large_message_arrives_and_a_larger_one_is_refused(door: Door) {
    let Some(relay) = door.start() else { return };
    let (host, mut stream) = relay.listening_host();
    let client = relay.join(&host.id);
    // With its quotes it is exactly as large as a body may be.
    let text: String = ('a'..='z').cycle().take(1_048_576 - 2).collect();
    for _ in 0..3 {
        relay.send(&client, format!("\"{text}\"")).expect(200);
        assert!(stream.body() == json!(text), "a message of 1 MiB arrived changed");
    }
    relay.send(&client, format!("\"{text}x\"")).expect_error(413);
    relay.send(&client, format!("{}1", " ".repeat(1_048_576))).expect_error(413);
    relay.send(&client, format!("\"{}\"", "y".repeat(3_000_000))).expect_error(413);
    relay.send(&client, "1").expect(200);
    assert_eq!(stream.body(), json!(1));
}

pub fn a_host_serves_forty_clients_at_once(door: Door) {
    let Some(relay) = door.start() else { return };
    let (host, mut host_stream) = relay.listening_host();
    let mut clients: Vec<_> = (0..40).map(|_| relay.listening_client(&host.id)).collect();
    for (number, client) in clients.iter().enumerate() {
        relay.send(&client.token, number.to_string()).expect(200);
    }
    for number in 0..clients.len() {
        let event = host_stream.event();
        assert_eq!(event.body(), json!(number));
        relay.send(&event.response_token(), number.to_string()).expect(200);
    }
    let answer = relay.send(&host.token, r#""all""#).expect(200).json();
    assert_eq!(answer.as_object().map(serde_json::Map::len), Some(40));
    for (number, client) in clients.iter_mut().enumerate() {
        assert_eq!(answer[&client.id], true);
        assert_eq!(client.stream.body(), json!(number));
        assert_eq!(client.stream.body(), json!("all"));
    }
}

pub fn an_idle_stream_is_kept_alive(door: Door) {
    let Some(relay) = door.start_with(&[("RELAY_KEEP_ALIVE", "0.2")]) else { return };
    let (host, mut host_stream) = relay.listening_host();
    let mut client = relay.listening_client(&host.id);
    let cache = crate::relay::header(&client.stream.headers, "cache-control");
    assert_eq!(cache, Some("no-cache, no-transform"), "whoever compresses a stream holds it back");
    for _ in 0..5 {
        host_stream.expect_comment("sse-keep-alive");
        client.stream.expect_comment("sse-keep-alive");
    }
    // Those of a browser that was cut off come back by themselves, not all at once.
    for stream in [&host_stream, &client.stream] {
        assert!(stream.retry.is_some_and(|pause| (1000..6000).contains(&pause)), "{:?}", stream.retry);
    }
}
