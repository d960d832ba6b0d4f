//! How streams begin and end under the server: hang-ups, signals, and peers in other processes.

use std::io::ErrorKind;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_socket_linger;
use rustix::process::Signal;
use serde_json::json;

use super::{Serve, Wire, ping};
use crate::place::{LONG, kill, until};
use crate::relay::Talk as _;
use crate::stream::Event;

/// Ends a connection: as `close` does, or with RST, as the system does for a client that crashed.
fn cut(wire: Wire, with_reset: bool) {
    if with_reset {
        set_socket_linger(&wire.socket, Some(Duration::ZERO)).unwrap();
    }
    drop(wire);
}

#[test]
fn a_hang_up_is_seen_at_once() {
    let relay = Serve::new();
    for with_reset in [false, true] {
        // The middle of five: a machine with more tests than cores may pause now and then, but a server that only looks
        // every two seconds is late most of the time.
        let mut times: Vec<[Duration; 2]> = (0..5)
            .map(|_| {
                let host = relay.host("");
                let mut host_stream = relay.open_wire(&host.token);
                let leaver = relay.join(&host.id);
                let leaver_stream = relay.open_wire(&leaver);
                let mut stayer = relay.listening_client(&host.id);

                let start = Instant::now();
                cut(leaver_stream, with_reset);
                host_stream.hear_text("client_closed");
                let client = start.elapsed();
                relay.send(&host.token, "1").expect(200);
                assert_eq!(stayer.stream.body(), json!(1));

                let start = Instant::now();
                cut(host_stream, with_reset);
                stayer.stream.expect_closed("host_closed", &host.id);
                [client, start.elapsed()]
            })
            .collect();
        for side in 0..2 {
            times.sort_by_key(|pair| pair[side]);
            assert!(times[2][side] < Duration::from_secs(1), "reset: {with_reset}: {times:?}");
        }
    }
}

/// Nobody new is let in.
#[track_caller]
fn expect_refused(relay: &Serve) {
    until("no new connection is accepted", LONG, || match TcpStream::connect(relay.address) {
        Err(error) => error.kind() == ErrorKind::ConnectionRefused,
        Ok(_) => false,
    });
}

#[test]
fn stopping_the_server_finishes_what_is_begun_and_tells_everybody() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut relay = Serve::new();
        let cgi = relay.cgi();
        // A host under the server with a client elsewhere, and the other way round.
        let (here, mut here_stream) = relay.listening_host();
        let mut client_elsewhere = cgi.listening_client(&here.id);
        let (elsewhere, mut elsewhere_stream) = cgi.listening_host();
        let mut client_here = relay.listening_client(&elsewhere.id);
        // Both under the server: they end at the same moment.
        let (both, mut both_stream) = relay.listening_host();
        let mut client_both = relay.listening_client(&both.id);
        // Half a request, whose answer is owed, and an idle connection, to which nothing is.
        let mut begun = relay.wire();
        let token = relay.join(&elsewhere.id);
        begun.send(format!("POST /?token={token} HTTP/1.1\r\nHost: relay\r\nExpect: 100-continue\r\n"));
        begun.send("Content-Length: 4\r\n\r\n");
        assert_eq!(begun.answer().status, 100);
        begun.send("12");
        let mut idle = relay.wire();
        idle.send(ping(7));
        idle.expect_pong(7);

        kill(relay.pid(), signal);
        let start = Instant::now();
        client_elsewhere.stream.expect_closed("host_closed", &here.id);
        elsewhere_stream.expect_closed("client_closed", &client_here.id);
        let told = start.elapsed();
        expect_refused(&relay);
        begun.send("34");
        let reply = begun.answer().expect(200);
        assert_eq!(reply.header("connection"), Some("close"));
        assert_eq!(elsewhere_stream.body(), json!(1234));
        here_stream.expect_end();
        client_here.stream.expect_end();
        let names =
            |events: Vec<Event>| events.iter().map(|event| event.json()["eventType"].clone()).collect::<Vec<_>>();
        assert_eq!(names(both_stream.rest()), ["client_closed"]);
        assert_eq!(names(client_both.stream.rest()), ["host_closed"]);
        idle.expect_end();
        let (status, _) = relay.ends();
        assert_eq!(status.code(), Some(0), "{signal:?}: {}", relay.log());
        // Nothing hangs, so it does not take the five seconds that it may take at most.
        assert!(start.elapsed() < Duration::from_secs(4), "{signal:?}: {:?}, {told:?}", start.elapsed());

        // All is as if they had left one by one.
        cgi.send(&client_elsewhere.token, "1").expect_error(400);
        cgi.try_join(&here.id).expect_error(400);
        let mut here_stream = cgi.open(&here.token);
        cgi.send(&client_elsewhere.token, "2").expect(200);
        assert_eq!(here_stream.body(), json!(2));
    }
}

#[test]
fn who_hangs_does_not_keep_the_server_from_stopping() {
    let mut relay = Serve::new();
    let host = relay.host("");
    let token = relay.join(&host.id);
    let mut stuck = relay.wire();
    stuck.send(format!("POST /?token={token} HTTP/1.1\r\nHost: relay\r\nContent-Length: 4\r\n\r\n12"));
    let mut half = relay.wire();
    half.send("POST /?action=ping HTTP/1.1\r\nHost:");
    // Somebody who reads nothing, with more for it to read than sockets hold.
    let client = relay.join(&host.id);
    for _ in 0..7 {
        relay.send(&client, format!("\"{}\"", "x".repeat(1_000_000))).expect(200);
    }
    let _deaf = relay.open_wire(&host.token);
    relay.serves(7);
    let start = Instant::now();
    kill(relay.pid(), Signal::TERM);
    let (status, time) = relay.ends();
    assert_eq!(status.code(), Some(0));
    // The promise is 5 s; the rest is for a machine with more tests than cores.
    assert!(time < Duration::from_secs(5 + 2), "{time:?}");
    assert!(start.elapsed() >= Duration::from_secs(1), "the one with half a message was given no time");
}

/// What was on its way to a slow reader when the server stopped, he gets whole or fetches later: nothing is missing, twice or
/// spoilt, though the closed events of his peers come on top.
#[test]
fn a_slow_reader_misses_nothing_when_the_server_stops() {
    let mut relay = Serve::with(&[("RELAY_MAX_QUEUE", "100000000"), ("RELAY_GRACE", "30")]);
    let (host, mut stream) = relay.listening_host();
    let client = relay.listening_client(&host.id);
    let text = "x".repeat(500_000);
    for number in 0..24 {
        relay.send(&client.token, json!([number, text]).to_string()).expect(200);
    }
    let first = stream.event();
    kill(relay.pid(), Signal::TERM);
    let mut events = vec![first];
    events.extend(stream.rest());
    assert_eq!(relay.ends().0.code(), Some(0));
    let cgi = relay.cgi();
    let mut rest = cgi.resume(&host.token, &stream.last_id);
    while events.iter().filter(|event| event.name == "message").count() < 24 {
        events.push(rest.event());
    }
    let messages: Vec<_> = events.iter().filter(|event| event.name == "message").map(Event::body).collect();
    for (number, body) in messages.iter().enumerate() {
        assert!(body[0] == json!(number) && body[1] == json!(text), "message {number} is {:.50}", body.to_string());
    }
}

#[test]
fn peers_of_the_server_and_of_a_cgi_program_talk_to_each_other() {
    let relay = Serve::new();
    let cgi = relay.cgi();
    let (host, mut host_stream) = relay.listening_host();
    let mut client = cgi.listening_client(&host.id);
    let (other, mut other_stream) = cgi.listening_host();
    let mut other_client = relay.listening_client(&other.id);
    for number in 0..20 {
        // Each message enters by one door and leaves by the other.
        cgi.send(&client.token, number.to_string()).expect(200);
        let event = host_stream.event();
        assert_eq!(event.body(), json!(number));
        relay.send(&event.response_token(), number.to_string()).expect(200);
        assert_eq!(client.stream.body(), json!(number));

        relay.send(&other_client.token, number.to_string()).expect(200);
        let event = other_stream.event();
        assert_eq!(event.body(), json!(number));
        cgi.send(&event.response_token(), number.to_string()).expect(200);
        assert_eq!(other_client.stream.body(), json!(number));
        assert_eq!(cgi.send(&other.token, "[]").expect(200).json(), json!({&*other_client.id: true}));
        assert_eq!(other_client.stream.body(), json!([]));
    }
    // Wake-ups cross too: nothing waits for a look every two seconds.
    let start = Instant::now();
    for number in 0..10 {
        cgi.send(&client.token, number.to_string()).expect(200);
        assert_eq!(host_stream.body(), json!(number));
    }
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    // They cost the server no thread, and one descriptor.
    let of_server = |what: &str| {
        let there = std::fs::read_dir(format!("/proc/{}/{what}", relay.pid().as_raw_nonzero())).unwrap();
        there.map(|entry| entry.unwrap().path()).collect::<Vec<_>>()
    };
    let mut threads = of_server("task").into_iter().filter_map(|task| std::fs::read_to_string(task.join("comm")).ok());
    assert!(threads.all(|name| name != "knocks\n"));
    let opened = of_server("fd").into_iter().filter_map(|fd| std::fs::read_link(fd).ok());
    let fifos: Vec<_> = opened.filter(|file| file.starts_with(relay.data().join("nodes"))).collect();
    let is_fifo = |file: &std::path::PathBuf| file.extension().is_some_and(|end| end == "wake");
    assert_eq!(fifos.iter().filter(|file| is_fifo(file)).count(), 1, "{fifos:?}");

    // A stream moves from one door to the other.
    let moved = cgi.resume(&host.token, &host_stream.last_id);
    host_stream.expect_end();
    host_stream = moved;
    cgi.send(&client.token, r#""moved""#).expect(200);
    assert_eq!(host_stream.body(), json!("moved"));
    host_stream.hang_up();
    client.stream.expect_closed("host_closed", &host.id);
    other_client.stream.hang_up();
    other_stream.expect_closed("client_closed", &other_client.id);
}
