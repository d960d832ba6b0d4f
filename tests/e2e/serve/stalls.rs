//! A disk that stalls: whoever needs nothing from it does not wait.

use std::fs;
use std::time::Duration;

use rustix::fs::{CWD, Mode, mkfifoat};

use super::crowd::raise_descriptor_limit;
use super::{Serve, Wire, ping};
use crate::place::LONG;
use crate::relay::Talk as _;
use crate::stream::{Item, Stream};

/// From now on every stream still has something to say, and a request on a new connection is answered.
#[track_caller]
fn go_on(relay: &Serve, streams: &mut [Stream], request: &str) {
    for stream in &mut *streams {
        while stream.next(Duration::ZERO) != Item::Nothing {}
    }
    for stream in streams {
        assert!(matches!(stream.next(LONG), Item::Comment(_)), "no keep-alive");
    }
    for _ in 0..10 {
        let mut wire = relay.wire();
        wire.send(request);
        wire.answer();
    }
}

/// The secret is looked at for requests that have to do with a token, once in 20 ms. A FIFO in its place stalls whoever opens
/// it, until somebody opens it to write.
#[test]
fn a_disk_that_stalls_delays_nobody_who_needs_nothing_from_it() {
    raise_descriptor_limit();
    let relay = Serve::with(&[("RELAY_KEEP_ALIVE", "1")]);
    let mut streams: Vec<_> = (0..100).map(|_| relay.listening_host().1).collect();
    let [secret, aside, fifo] = ["secret", "aside", "fifo"].map(|name| relay.data().join(name));
    mkfifoat(CWD, &fifo, Mode::RUSR | Mode::WUSR).unwrap();
    fs::rename(&secret, &aside).unwrap();
    fs::rename(&fifo, &secret).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    let mut stalled: Vec<Wire> = Vec::new();
    // One, while all other workers sleep; more than there are workers; more than there are threads. A ping looks at the data
    // folder, and has to wait then.
    let nowhere = "POST /nowhere HTTP/1.1\r\nHost: relay\r\nContent-Length: 0\r\n\r\n".to_owned();
    for (count, request) in [(1, ping(7)), (100, ping(7)), (600, nowhere)] {
        while stalled.len() < count {
            let mut wire = relay.wire();
            wire.send("POST /?action=host HTTP/1.1\r\nHost: relay\r\nContent-Length: 0\r\n\r\n");
            stalled.push(wire);
        }
        go_on(&relay, &mut streams, &request);
    }
    for wire in &stalled {
        wire.socket.set_nonblocking(true).unwrap();
        wire.socket.peek(&mut [0]).expect_err("it has not stalled");
        wire.socket.set_nonblocking(false).unwrap();
    }
    fs::rename(&secret, &fifo).unwrap();
    fs::rename(&aside, &secret).unwrap();
    // As long as somebody has it open to write, nobody stalls who has found it before it was moved, and opens it only now.
    let _writer = fs::OpenOptions::new().write(true).open(&fifo).unwrap();
    for wire in &mut stalled {
        // There is nothing in a FIFO at a place, as a secret is read.
        assert!([200, 500].contains(&wire.answer().status));
    }
    relay.host("");
}
