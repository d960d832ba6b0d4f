//! Too many, too slow, and a thousand at once.

use std::collections::VecDeque;
use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, prlimit, setrlimit};

use super::{Serve, Wire, ping, sweep};
use crate::place::{LONG, everything_below, node_files, records, until};
use crate::relay::{Call, Relay as _, Talk as _};

/// This process holds the other end of every connection.
pub(super) fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).unwrap();
    let most = limit.maximum.unwrap_or(u64::MAX);
    assert!(most >= 4096, "these tests need 4096 descriptors, and the limit here is {most}");
}

/// Whoever is too slow with a head is not told so, which a server may do (RFC 9110, 15.5.9).
#[test]
fn five_hundred_slow_senders_keep_nobody_from_being_served_and_are_sent_away() {
    raise_descriptor_limit();
    let relay = Serve::new();
    let (host, mut stream) = relay.listening_host();
    let token = relay.join(&host.id);
    // Bytes that make a head, a body or a chunk longer, and never end it.
    let begin = format!("POST /?token={token} HTTP/1.1\r\nHost: relay\r\n");
    let kinds = [(begin + "A: ", "b"), ("GET /".to_owned(), "x"), ("\r\n".to_owned(), "G"), (String::new(), "P")];
    let start = Instant::now();
    let mut slow: Vec<Option<Wire>> = (0..500).map(|_| Some(relay.wire())).collect();
    for (number, wire) in slow.iter_mut().flatten().enumerate() {
        wire.send(&kinds[number % kinds.len()].0);
        wire.socket.set_nonblocking(true).unwrap();
    }
    let mut slowest = Duration::ZERO;
    while slow.iter().any(Option::is_some) {
        assert!(start.elapsed() < Duration::from_secs(40), "some slow senders are still served");
        let round = Instant::now();
        for (number, place) in slow.iter_mut().enumerate() {
            let Some(wire) = place else { continue };
            let _ = wire.socket.write_all(kinds[number % kinds.len()].1.as_bytes());
            let mut bytes = [0; 1000];
            match wire.socket.read(&mut bytes) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Ok(_) | Err(_) => *place = None,
            }
        }
        // Meanwhile everybody else is served: a new connection, a message, a stream.
        while round.elapsed() < Duration::from_millis(500) {
            let sent = Instant::now();
            relay.serves(7);
            relay.send(&token, "1").expect(200);
            stream.body();
            slowest = slowest.max(sent.elapsed());
        }
    }
    assert!(slowest < Duration::from_secs(3), "others waited for {slowest:?}");
    assert!(start.elapsed() > Duration::from_secs(5), "nobody is slow before some time has passed");
}

#[test]
fn a_body_that_does_not_come_is_not_waited_for() {
    let relay = Serve::new();
    let (host, mut stream) = relay.listening_host();
    let token = relay.join(&host.id);
    let request = |rest: &str| format!("POST /?token={token} HTTP/1.1\r\nHost: relay\r\n{rest}");
    let mut wires: Vec<_> = [
        request("Content-Length: 10\r\n\r\n12"),
        request("Transfer-Encoding: chunked\r\n\r\n"),
        request("Transfer-Encoding: chunked\r\n\r\n5\r\n12"),
        request("Transfer-Encoding: chunked\r\n\r\n2\r\n12\r\n0\r\nA: b\r\n"),
    ]
    .map(|bytes| {
        let mut wire = relay.wire();
        wire.send(bytes);
        wire
    })
    .into();
    let start = Instant::now();
    for wire in &mut wires {
        let reply = wire.answer();
        assert_eq!(reply.header("connection"), Some("close"));
        reply.expect_error(408);
        wire.expect_end();
    }
    assert!(start.elapsed() > Duration::from_secs(5), "a client may take a breath");
    relay.send(&token, "1").expect(200);
    assert_eq!(stream.body(), serde_json::json!(1), "half a message does not arrive");
}

#[test]
fn a_stranger_behind_the_same_proxy_does_not_hold_up_whoever_posts() {
    let relay = Serve::with(&[("RELAY_TRUSTED_PROXIES", "127.0.0.1")]);
    let mut wire = relay.wire();
    wire.send("GET /bus/room HTTP/1.1\r\nHost: relay\r\n\r\n");
    let user = wire.answer_to("GET").expect(200).json()["user"].to_string();
    let post = |number: u8| {
        format!(
            "POST /bus/room?user={user} HTTP/1.1\r\nHost: relay\r\nX-Forwarded-For: 203.0.113.{number}\r\nContent-Length: 3\r\n\r\n"
        )
    };
    // A machine that stands still for a while takes the first one's time away, too; so there is more than one try.
    let is_held_up = (0..4).all(|_| {
        let (mut stranger, mut own) = (relay.wire(), relay.wire());
        stranger.send(post(1));
        stranger.send("\"");
        // Once it has been read, it has its turn.
        std::thread::sleep(Duration::from_millis(200));
        own.send(post(2) + "\"2\"");
        own.answer().expect(200);
        // Where that had to wait for the stranger, nobody waits for what that says any more.
        !(stranger.try_send("1\"") && stranger.answer().status == 200)
    });
    assert!(!is_held_up, "whoever posts has waited for somebody else's body");
}

#[test]
fn who_comes_when_all_connections_are_taken_is_told_so() {
    let relay = Serve::with(&[("RELAY_MAX_CONNECTIONS", "5")]);
    let start = Instant::now();
    let mut wires: Vec<_> = (0..5).map(|_| relay.wire()).collect();
    for wire in &mut wires {
        wire.send(ping(7));
        wire.expect_pong(7);
    }
    for round in 0..100 {
        let mut wire = relay.wire();
        // With a request that the server has no place to read, and without.
        if round % 2 == 0 {
            let body = "x".repeat(round * 100);
            let length = body.len();
            wire.try_send(format!("POST /?token=x HTTP/1.1\r\nHost: relay\r\nContent-Length: {length}\r\n\r\n{body}"));
        }
        let reply = wire.answer();
        assert_eq!(reply.header("connection"), Some("close"));
        assert!(reply.header("retry-after").is_some_and(|after| after.parse::<u32>().is_ok()), "{reply:?}");
        reply.expect_error(503);
        wire.expect_end();
    }
    let told = relay.log().matches("a connection was refused: there are 5 connections (RELAY_MAX_CONNECTIONS)").count();
    let minutes = start.elapsed().as_secs() / 60;
    assert!((1..=1 + minutes).contains(&(told as u64)), "{told} lines in the log, and at most one a minute is right");
    // Those who are in are served all the same.
    for wire in &mut wires {
        wire.send(ping(8));
        wire.expect_pong(8);
    }
    wires.pop();
    until("there is room again", LONG, || {
        let mut wire = relay.wire();
        wire.try_send(ping(9));
        wire.answer().status == 200
    });
}

/// How many threads and descriptors the server has.
fn counts(relay: &Serve) -> [usize; 2] {
    let process = format!("/proc/{}", relay.pid().as_raw_nonzero());
    ["task", "fd"].map(|kind| fs::read_dir(format!("{process}/{kind}")).expect("the server runs").count())
}

#[test]
fn a_thousand_streams_leave_nothing_behind() {
    const STREAMS: usize = 1000;
    raise_descriptor_limit();
    let relay = Serve::with(&[("RELAY_SESSION_LIFETIME", "1"), ("RELAY_MESSAGE_LIFETIME", "1")]);
    let idle = || {
        let mut last = [usize::MAX; 2];
        until("the number of threads and descriptors is steady", LONG, || {
            std::thread::sleep(Duration::from_millis(100));
            let now = counts(&relay);
            std::mem::replace(&mut last, now) == now
        });
        last
    };
    // Each on a connection of its own: one that is idle for 10 s is closed.
    let post = |query: &str| {
        let mut wire = relay.wire();
        wire.send(format!("POST /?{query} HTTP/1.1\r\nHost: relay\r\nContent-Length: 0\r\n\r\n"));
        wire.answer().expect(200).json()
    };
    // Once for what the server makes when it is first needed and keeps.
    drop(relay.open_wire(post("action=host")["hostToken"].as_str().unwrap()));
    let before = idle();

    for round in 0..2 {
        let mut streams = Vec::new();
        while streams.len() < STREAMS {
            let host = post("action=host");
            streams.push(relay.open_wire(host["hostToken"].as_str().unwrap()));
            let client = post(&format!("action=join&hostId={}", host["hostId"].as_str().unwrap()));
            streams.push(relay.open_wire(client["clientToken"].as_str().unwrap()));
        }
        let [threads, descriptors] = counts(&relay);
        // A stream is a task, and its socket.
        let most = before[1] + 2 * STREAMS + 2 * STREAMS / 10;
        assert!(
            threads <= before[0] + 4 && (before[1] + STREAMS..most).contains(&descriptors),
            "{threads}, {descriptors}"
        );
        // With FIN and in any order.
        for number in 0..STREAMS {
            streams.swap_remove(number * 7919 % streams.len());
        }
        until("every thread and every descriptor is given back", LONG, || {
            let now = counts(&relay);
            now[0] <= before[0] && now[1] <= before[1]
        });
        post(&format!("action=ping&timestamp={round}"));
    }
    let hosts = relay.data().join("hosts");
    let files = || everything_below(&hosts).into_iter().filter(|path| !path.is_dir()).count();
    until("every file of a session is swept", LONG, || {
        sweep(&relay.data());
        // Files of the relay itself may stay, but not one for each session that there ever was.
        records(&relay.data(), "hosts").is_empty() && files() <= 256 && node_files(&relay.data()).len() <= 2
    });
}

/// A connection needs more descriptors than one, and the strangers at the door take some as well.
#[test]
fn who_is_refused_takes_no_descriptor_from_those_who_are_connected() {
    let relay = Serve::new();
    let few = Rlimit { current: Some(200), ..getrlimit(Resource::Nofile) };
    prlimit(Some(relay.pid()), Resource::Nofile, few).expect("it is this user's process");
    // As many as there may be.
    let mut connected = Vec::new();
    for number in 0.. {
        assert!(connected.len() < 200, "each of them would have less than one descriptor");
        let mut wire = relay.wire();
        wire.try_send(ping(number));
        match wire.answer().status {
            200 => connected.push(wire),
            status => {
                assert_eq!(status, 503);
                break;
            }
        }
    }
    assert!(connected.len() >= 20, "{} connections with 200 descriptors", connected.len());
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Strangers, each of whom looks at the refusal at leisure.
        scope.spawn(|| {
            let mut strangers = VecDeque::new();
            while !stop.load(Ordering::Relaxed) {
                strangers.extend(std::net::TcpStream::connect(relay.address));
                if strangers.len() > 150 {
                    strangers.pop_front();
                }
                std::thread::sleep(Duration::from_millis(3));
            }
        });
        let served = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            // Everything that a connection may need: a session of its own, messages, and a stream.
            let post = |wire: &mut Wire, query: &str, body: &str| {
                let length = body.len();
                wire.send(format!("POST /?{query} HTTP/1.1\r\nHost: relay\r\nContent-Length: {length}\r\n\r\n{body}"));
                wire.answer().expect(200)
            };
            let mut hosts = Vec::new();
            for wire in &mut connected {
                hosts.push(post(wire, "action=host", "").json());
            }
            let token = |host: &serde_json::Value| host["hostToken"].as_str().unwrap().to_owned();
            for _ in 0..10 {
                for (wire, host) in connected.iter_mut().zip(&hosts) {
                    let id = host["hostId"].as_str().unwrap();
                    let client = post(wire, &format!("action=join&hostId={id}"), "").json();
                    post(wire, &format!("token={}", client["clientToken"].as_str().unwrap()), "1");
                }
            }
            let last = connected.len() - 1;
            for (wire, host) in connected.iter_mut().zip(&hosts).take(last) {
                wire.send(format!("GET /?token={} HTTP/1.1\r\nHost: relay\r\n\r\n", token(host)));
                wire.hear_text(": Connected.\n");
            }
            for _ in 0..10 {
                for host in &hosts {
                    let id = host["hostId"].as_str().unwrap();
                    let client = post(&mut connected[last], &format!("action=join&hostId={id}"), "").json();
                    post(&mut connected[last], &format!("token={}", client["clientToken"].as_str().unwrap()), "1");
                }
            }
        }));
        stop.store(true, Ordering::Relaxed);
        if let Err(panic) = served {
            std::panic::resume_unwind(panic);
        }
    });
}

#[test]
fn a_descriptor_limit_that_is_too_low_is_told_at_start() {
    let relay = Serve::with(&[("RELAY_MAX_CONNECTIONS", "1000000000")]);
    let log = relay.log();
    let told = log
        .lines()
        .find(|line| line.contains("descriptors (ulimit -n) are enough for"))
        .unwrap_or_else(|| panic!("{log}"));
    assert!(told.ends_with("1000000000 need 1142857142"), "{told}");
}

/// What waits for a host is in its log; and so is what is on its way to it, in the sockets at both ends, which is more than
/// may wait here.
#[test]
fn a_host_that_read_nothing_and_comes_back_misses_nothing() {
    let relay =
        Serve::with(&[("RELAY_MAX_QUEUE", "1000000"), ("RELAY_MESSAGE_LIFETIME", "600"), ("RELAY_GRACE", "30")]);
    let host = relay.host("");
    let mut silent = relay.open_wire(&host.token);
    let begin = silent.hear_text("\n\n");
    let last = begin.split("id: ").nth(1).and_then(|rest| rest.lines().next()).expect("an id").to_owned();
    let token = relay.join(&host.id);
    let text = "x".repeat(4000);
    let mut answered = Vec::new();
    // Again and again: what is read of the log makes room for more.
    let mut refused = 0;
    for number in 0..3000 {
        match relay.send(&token, format!("\"{number} {text}\"")).status {
            200 => answered.push(number),
            429 => refused += 1,
            status => panic!("{status}"),
        }
        if refused > 20 {
            break;
        }
    }
    assert!(refused > 20 && answered.len() > 200, "the queue is full after {} messages", answered.len());
    drop(silent);
    let mut stream = relay.resume(&host.token, &last);
    for number in answered {
        let body = stream.body();
        let text = body.as_str().expect("a message, and no loss");
        assert_eq!(text.split(' ').next(), Some(&*number.to_string()));
    }
}

/// How much memory of its own the server has, in KiB.
fn memory(relay: &Serve) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", relay.pid().as_raw_nonzero())).expect("the server runs");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("Linux tells it");
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn two_hundred_readers_that_take_nothing_of_a_full_bus_cost_little_and_are_sent_away() {
    const READERS: usize = 200;
    // TCP itself gives up after a minute.
    let relay = Serve::with(&[("RELAY_KEEP_ALIVE", "600"), ("RELAY_MESSAGE_LIFETIME", "25")]);
    let ask = |wire: &mut Wire, path: &str, body: &str| {
        let length = body.len();
        wire.send(format!("POST {path} HTTP/1.1\r\nHost: relay\r\nContent-Length: {length}\r\n\r\n{body}"));
        wire.answer()
    };
    let greet = || {
        let mut wire = relay.wire();
        wire.send("GET /bus/full HTTP/1.1\r\nHost: relay\r\n\r\n");
        wire.answer_to("GET").expect(200).json()["user"].to_string()
    };
    let (mut wire, text, mut count) = (relay.wire(), "x".repeat(10_000), 0);
    while count < 2000 {
        // The last quarter is for those who have said little.
        let user = greet();
        let before = count;
        while ask(&mut wire, &format!("/bus/full?user={user}"), &format!("\"{count} {text}\"")).status == 200 {
            count += 1;
        }
        if count < before + 10 {
            break;
        }
    }
    assert!(count > 500, "the bus is full of {count} messages");
    let poll = format!("/bus/full?id=0&user={}", greet());
    let whole = relay.call(&Call {
        method: "GET",
        path_info: "/bus/full",
        query: poll.split_once('?').unwrap().1,
        ..Call::default()
    });
    assert!(whole.expect(200).json().as_array().unwrap().len() >= count / 2, "one JSON document");
    let before = memory(&relay);
    let start = Instant::now();
    let mut readers: Vec<_> = (0..READERS)
        .map(|_| {
            let mut wire = relay.wire();
            rustix::net::sockopt::set_socket_recv_buffer_size(&wire.socket, 4096).unwrap();
            wire.send(format!("GET {poll} HTTP/1.1\r\nHost: relay\r\n\r\n"));
            wire
        })
        .collect();
    // Each has its answer's beginning, and takes no more.
    for wire in &mut readers {
        wire.hear_text("HTTP/1.1 200");
    }
    std::thread::sleep(Duration::from_secs(1));
    let most = before + (READERS as u64) * 64 + 4096;
    assert!(memory(&relay) < most, "{before} KiB, and then {} KiB", memory(&relay));
    let connections = || counts(&relay)[1];
    let open = connections();
    assert!(open >= READERS, "{open} descriptors");
    until("they are sent away", LONG, || connections() < READERS / 2);
    let time = start.elapsed();
    assert!(time > Duration::from_secs(15) && time < Duration::from_secs(50), "{time:?}");
}

#[test]
fn a_file_that_may_not_grow_ends_nobody_s_stream() {
    let relay = Serve::new();
    let (host, mut stream) = relay.listening_host();
    let client = relay.join(&host.id);
    let limit = |current| {
        let limit = Rlimit { current, ..getrlimit(Resource::Fsize) };
        prlimit(Some(relay.pid()), Resource::Fsize, limit).expect("it is this user's process");
    };
    limit(Some(10_000));
    let message = serde_json::json!("x".repeat(5000));
    let mut statuses: Vec<_> = (0..10).map(|_| relay.send(&client, message.to_string()).status).collect();
    // The log, too, is as large as it may be.
    let mut wire = relay.wire();
    for number in 0..200 {
        wire.send(ping(number));
        wire.expect_pong(number);
    }
    limit(None);
    assert_eq!((statuses[0], statuses[9]), (200, 507), "{statuses:?}");
    statuses.retain(|status| *status == 200);
    for _ in statuses {
        assert_eq!(stream.body(), message);
    }
    relay.send(&client, "1").expect(200);
    assert_eq!(stream.body(), serde_json::json!(1));
}
