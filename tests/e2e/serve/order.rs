//! What one client sends first, on whatever connection, is stored first. Before there was an order at the door, 400 of the 500
//! pairs below were overtaken; under lighttpd, where each request is a process, 220 to 250 are.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::Serve;
use crate::relay::Talk as _;

/// How many pairs of messages are sent.
const PAIRS: u64 = 500;

/// A process that wants all of a core, for no longer than two minutes.
struct Busy(Child);

impl Busy {
    fn new() -> Self {
        let mut busy = Command::new("setpriv");
        busy.args(["--pdeathsig", "KILL", "--", "timeout", "120", "sh", "-c", "while :; do :; done"]);
        Self(busy.stdin(Stdio::null()).spawn().expect("setpriv runs a shell"))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        // `timeout` passes it on.
        crate::place::kill(rustix::process::Pid::from_child(&self.0), rustix::process::Signal::TERM);
        let _ = self.0.wait();
    }
}

/// How many of the pairs arrived in the wrong order: one message on a connection that has been used, one on a new one, the
/// second 0.3 to 1 ms after the first.
fn overtaken(relay: &Serve) -> usize {
    let (host, mut stream) = relay.listening_host();
    let token = relay.join(&host.id);
    let message = |number: u64| {
        let body = number.to_string();
        let length = body.len();
        format!("POST /?token={token} HTTP/1.1\r\nHost: relay\r\nContent-Length: {length}\r\n\r\n{body}")
    };
    let mut used = relay.wire();
    used.send(message(0));
    used.answer().expect(200);
    stream.body();
    let mut overtaken = 0;
    for pair in 0..PAIRS {
        let number = 2 * pair;
        let is_new_first = pair % 2 == 0;
        let mut new = None;
        let mut first = None;
        for second in [false, true] {
            if second {
                // To sleep would take longer, with all cores taken.
                let pause = Duration::from_micros(300 + pair * 7919 % 700);
                let start: Instant = first.unwrap();
                while start.elapsed() < pause {}
            }
            if second == is_new_first {
                used.send(message(number + u64::from(second)));
            } else {
                new.insert(relay.wire()).send(message(number + u64::from(second)));
            }
            first = Some(Instant::now());
        }
        used.answer().expect(200);
        new.unwrap().answer().expect(200);
        let numbers = [stream.body(), stream.body()].map(|body| body.as_u64().unwrap());
        assert!(numbers.iter().all(|got| [number, number + 1].contains(got)), "{numbers:?}");
        overtaken += usize::from(numbers[0] > numbers[1]);
    }
    overtaken
}

#[test]
fn no_message_overtakes_what_its_client_has_sent_before_it_on_another_connection() {
    let relay = Serve::new();
    let _busy: Vec<_> = (0..4).map(|_| Busy::new()).collect();
    let overtaken = overtaken(&relay);
    assert_eq!(overtaken, 0, "of {PAIRS} pairs");
}
