//! Who is there, and how soon the others learn that somebody is not.

use std::io::Read as _;
use std::process::Child;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;

use crate::bare::{Bare, timed};
use crate::place::{LONG, until};
use crate::relay::{Call, Relay as _, Talk as _};
use crate::stream::Item;

/// The promise for a stream that could not say goodbye is 5 s; the rest is for a machine with more tests than cores.
const PROMISE: Duration = Duration::from_secs(5 + 3);

/// For one that could, it is "at once".
const AT_ONCE: Duration = Duration::from_secs(2);

#[test]
fn clients_learn_that_their_host_was_killed() {
    let relay = Bare::new();
    let (host, mut stream) = relay.listening_host();
    let mut clients = [relay.listening_client(&host.id), relay.listening_client(&host.id)];
    stream.signal(Signal::KILL);
    let ((), time) =
        timed(|| clients.iter_mut().for_each(|client| client.stream.expect_closed("host_closed", &host.id)));
    assert!(time < PROMISE, "{time:?}");
    relay.send(&clients[0].token, "1").expect_error(400);
    relay.try_join(&host.id).expect_error(400);
    for client in &mut clients {
        client.stream.expect_silence(Duration::from_millis(300));
    }
}

#[test]
fn a_host_learns_that_its_client_was_killed() {
    let relay = Bare::new();
    let (host, mut host_stream) = relay.listening_host();
    let mut client = relay.listening_client(&host.id);
    relay.send(&client.token, "1").expect(200);
    let response = host_stream.event().response_token();
    client.stream.signal(Signal::KILL);
    let ((), time) = timed(|| host_stream.expect_closed("client_closed", &client.id));
    assert!(time < PROMISE, "{time:?}");
    relay.send(&response, "1").expect_error(400);
    host_stream.expect_silence(Duration::from_millis(300));
}

#[test]
fn a_stream_that_may_say_goodbye_does_so_at_once() {
    let relay = Bare::new();
    for signal in [Some(Signal::TERM), None] {
        let (host, mut host_stream) = relay.listening_host();
        let mut leaver = relay.listening_client(&host.id);
        let mut client = relay.listening_client(&host.id);
        // A signal is how lighttpd ends a program, a closed pipe how the others do.
        if let Some(signal) = signal {
            leaver.stream.signal(signal);
        }
        let start = Instant::now();
        leaver.stream.hang_up();
        host_stream.expect_closed("client_closed", &leaver.id);
        assert!(start.elapsed() < AT_ONCE, "{signal:?}: {:?}", start.elapsed());

        if let Some(signal) = signal {
            host_stream.signal(signal);
        }
        let start = Instant::now();
        host_stream.hang_up();
        client.stream.expect_closed("host_closed", &host.id);
        assert!(start.elapsed() < AT_ONCE, "{signal:?}: {:?}", start.elapsed());
    }
}

/// thttpd has a process between the program and the client. It learns of the client's leaving one write later than other
/// servers do; a server may also gather what is written within 0.2 s, as `TCP_CORK` does. Either must be told within one
/// keep-alive, not two.
#[test]
fn a_client_that_left_is_missed_within_one_keep_alive_whatever_is_between() {
    const KEEP_ALIVE: Duration = Duration::from_secs(6);
    let settings = [("RELAY_KEEP_ALIVE", KEEP_ALIVE.as_secs().to_string())];
    for (survived, gathers) in [(2, Duration::ZERO), (1, Duration::from_millis(200))] {
        // A busy machine may have two writes seem one: it has to go well with one of several.
        let relay = Bare::with(&[(settings[0].0, &settings[0].1)]);
        let (host, mut host_stream) = relay.listening_host();
        let start = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let query = format!("token={}", relay.join(&host.id));
                let call = Call { method: "GET", query: &query, ..Call::default() };
                let program = relay.start(&call);
                scope.spawn(move || interpose(program, survived, gathers));
            }
            let item = host_stream.next_event(2 * LONG);
            assert!(matches!(&item, Item::Event(event) if event.name == "relay_event"), "{item:?}");
            let time = start.elapsed();
            assert!(time < KEEP_ALIVE * 3 / 2, "{survived}, {gathers:?}: {time:?}");
        });
    }
}

/// What is between the program and a client that leaves as soon as it has been connected: so many writes to it still seem
/// to go well.
fn interpose(mut program: Child, survived: usize, gathers: Duration) {
    let mut output = program.stdout.take().unwrap();
    let mut heard = Vec::new();
    let mut some = [0; 4096];
    // More may follow it at once.
    while !String::from_utf8_lossy(&heard).contains(": Connected.\n") {
        let got = output.read(&mut some).unwrap();
        assert!(got > 0, "{:?}", String::from_utf8_lossy(&heard));
        heard.extend_from_slice(&some[..got]);
    }
    for _ in 0..=survived {
        assert!(output.read(&mut some[..1]).unwrap() > 0);
        std::thread::sleep(gathers);
        while crate::place::readable(&output, Instant::now()) && output.read(&mut some).unwrap() > 0 {}
    }
    drop(output);
    program.wait().unwrap();
}

/// A stream that only looked now and then would deliver these too, but it would take its time.
#[test]
fn a_message_wakes_the_stream_it_is_for() {
    let relay = Bare::with(&[("RELAY_POLL_TICK", "60000")]);
    let (host, mut host_stream) = relay.listening_host();
    let mut client = relay.listening_client(&host.id);
    let ((), time) = timed(|| {
        for number in 0..20 {
            relay.send(&client.token, number.to_string()).expect(200);
            let event = host_stream.event();
            assert_eq!(event.body(), json!(number));
            relay.send(&event.response_token(), number.to_string()).expect(200);
            assert_eq!(client.stream.body(), json!(number));
        }
    });
    assert!(time < Duration::from_secs(5), "{time:?} for forty messages");
}

#[test]
fn nobody_can_join_or_write_once_a_host_was_killed() {
    let relay = Bare::new();
    let (host, mut stream) = relay.listening_host();
    let client = relay.join(&host.id);
    relay.send(&client, "1").expect(200);
    stream.signal(Signal::KILL);
    // Nobody else listens who could notice: the first to ask does.
    relay.send(&client, "2").expect_error(400);
    relay.try_join(&host.id).expect_error(400);
    let mut stream = relay.open(&host.token);
    relay.send(&client, "3").expect(200);
    let mut heard = Vec::new();
    while heard.last() != Some(&json!(3)) {
        heard.push(stream.body());
    }
    // Whether it had time to write the first message before it died is not known; if it did not, that comes now.
    assert!(heard == [json!(3)] || heard == [json!(1), json!(3)], "{heard:?}");
}

#[test]
fn the_killed_host_goes_on_where_it_was() {
    let relay = Bare::new();
    let (host, mut stream) = relay.listening_host();
    let client = relay.join(&host.id);
    relay.send(&client, "1").expect(200);
    relay.send(&client, "2").expect(200);
    let first = stream.event();
    assert_eq!(first.body(), json!(1));
    stream.signal(Signal::KILL);
    let mut stream = relay.resume(&host.token, &first.id);
    assert_eq!(stream.body(), json!(2));
    relay.send(&client, "3").expect(200);
    assert_eq!(stream.body(), json!(3));
    stream.expect_silence(Duration::from_millis(200));
}

#[test]
fn after_the_grace_the_peers_are_told() {
    let relay = Bare::with(&[("RELAY_GRACE", "2")]);
    for signal in [Signal::TERM, Signal::KILL] {
        let (host, mut host_stream) = relay.listening_host();
        let leaver = relay.listening_client(&host.id);
        let mut client = relay.listening_client(&host.id);
        relay.send(&leaver.token, "1").expect(200);
        let response = host_stream.event().response_token();

        let mut leaver_stream = leaver.stream;
        let start = Instant::now();
        leaver_stream.signal(signal);
        relay.send(&response, "2").expect(200);
        host_stream.expect_closed("client_closed", &leaver.id);
        assert!(start.elapsed() >= Duration::from_secs(2), "{signal:?}: {:?} is within the grace", start.elapsed());
        relay.send(&response, "3").expect_error(400);

        let start = Instant::now();
        host_stream.signal(signal);
        relay.send(&client.token, "4").expect(200);
        relay.try_join(&host.id).expect(200);
        client.stream.expect_closed("host_closed", &host.id);
        assert!(start.elapsed() >= Duration::from_secs(2), "{signal:?}: {:?} is within the grace", start.elapsed());
        relay.send(&client.token, "5").expect_error(400);
        relay.try_join(&host.id).expect_error(400);
    }
}

#[test]
fn an_id_is_not_free_within_the_grace() {
    let relay = Bare::with(&[("RELAY_GRACE", "60")]);
    let host = relay.host("room");
    relay.open(&host.token).signal(Signal::KILL);
    let mut stream = relay.open(&host.token);
    relay.send(&relay.join("room"), "1").expect(200);
    assert_eq!(stream.body(), json!(1));
}

#[test]
fn who_takes_over_many_times_is_never_reported_gone() {
    let relay = Bare::new();
    let (host, mut stream) = relay.listening_host();
    let mut client = relay.listening_client(&host.id);
    for number in 0..20 {
        let newer = relay.resume(&host.token, &stream.last_id);
        relay.send(&client.token, number.to_string()).expect(200);
        // The older one may still hear it in the moment in which it is told to end.
        std::mem::replace(&mut stream, newer).rest();
        let event = stream.event();
        assert_eq!(event.body(), json!(number));
        relay.send(&event.response_token(), number.to_string()).expect(200);
        assert_eq!(client.stream.body(), json!(number));
    }
    client.stream.expect_silence(Duration::from_millis(300));
}

/// Two tabs that fight for one token both come back again and again. Whoever is last must be heard.
#[test]
fn streams_that_race_for_one_token_leave_one() {
    let relay = Bare::new();
    let host = relay.host("");
    for round in 0..10 {
        let mut streams: Vec<_> = std::thread::scope(|scope| {
            let opened: Vec<_> =
                (0..5).map(|_| scope.spawn(|| relay.listen(&format!("token={}", host.token), &[]))).collect();
            opened.into_iter().filter_map(|stream| stream.join().unwrap().ok()).collect()
        });
        assert!(!streams.is_empty(), "somebody gets a stream");
        let pids: Vec<_> = streams.iter().map(crate::stream::Stream::pid).collect();
        until("all but one end", LONG, || crate::place::relays_running(relay.folder().path()) == 1);
        relay.send(&relay.join(&host.id), round.to_string()).expect(200);
        let mut heard = 0;
        for stream in &mut streams {
            match stream.next_event(Duration::from_millis(50)) {
                Item::Event(event) => {
                    assert_eq!(event.body(), json!(round));
                    heard += 1;
                }
                Item::End | Item::Nothing => {}
                other @ Item::Comment(_) => panic!("{other:?}"),
            }
        }
        if heard == 0 {
            // The survivor may need a moment more than 50 ms.
            let events = streams.iter_mut().map(|stream| stream.next_event(Duration::from_secs(2)));
            heard = events.filter(|item| matches!(item, Item::Event(_))).count();
        }
        assert_eq!(heard, 1, "exactly one of {pids:?} hears it");
        drop(streams);
    }
}
