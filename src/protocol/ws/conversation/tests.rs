use super::*;
use crate::config::Settings;
use crate::gateway::{cgi, run_blocking};
use crate::store::buses::BusName;
use crate::store::files::test_dir::TestDir;
use crate::ws::program::Program;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use tungstenite::protocol::Role;
use tungstenite::{Message, WebSocket};

const LONG: Duration = Duration::from_secs(60);

/// Does what a closure says when a text comes, and tells what it is told.
struct Told<F>(std::sync::mpsc::Sender<String>, F);

impl<F: FnMut(&mut ws::Connection<'_>, &str) + Send> Handler for Told<F> {
    fn authenticate(&mut self, _: &mut ws::Connection<'_>, _: &Visitor) -> bool {
        true
    }

    fn open(&mut self, _: &mut ws::Connection<'_>, _: &str) {
        let _ = self.0.send("open".to_owned());
    }

    fn text(&mut self, connection: &mut ws::Connection<'_>, text: &str) {
        let _ = self.0.send(text.to_owned());
        (self.1)(connection, text);
    }

    fn before_close(&mut self, _: &mut ws::Connection<'_>, code: u16, _: &str) {
        let _ = self.0.send(format!("before_close {code}"));
    }

    fn after_close(&mut self, _: &mut ws::Connection<'_>) {
        let _ = self.0.send("after_close".to_owned());
    }
}

/// A text as a client sends it, with a mask of zeros.
fn text(text: &[u8]) -> Vec<u8> {
    let length = u64::try_from(text.len()).unwrap().to_be_bytes();
    [&[0x81, 0xff], &length[..], &[0; 4], text].concat()
}

/// A connection on a thread of its own, on a bus of its own, with a keep-alive of 0.2 s.
struct Running {
    _dir: TestDir,
    client: Option<UnixStream>,
    told: Receiver<String>,
}

impl Running {
    /// `early` has come before the connection is answered.
    fn start(early: &[u8], on_text: impl FnMut(&mut ws::Connection<'_>, &str) + Send + 'static) -> Self {
        let (sender, told) = channel();
        Self::with(told, early, move || ConnectionHandler::Own(Box::new(Told(sender, on_text))))
    }

    fn with(
        told: Receiver<String>,
        early: &[u8],
        handler: impl FnOnce() -> ConnectionHandler + Send + 'static,
    ) -> Self {
        let dir = TestDir::new();
        let settings = Box::leak(Box::new(Settings {
            data_dir: dir.join("data"),
            keep_alive: Duration::from_millis(200),
            max_queue: 32 << 20,
            ..Settings::default()
        }));
        let (ours, client) = UnixStream::pair().unwrap();
        client.set_read_timeout(Some(LONG)).unwrap();
        (&client).write_all(early).unwrap();
        std::thread::spawn(move || {
            let member = run_blocking(Member::enter(settings, &BusName::new("b").unwrap())).unwrap();
            let (input, mut out) = cgi::over(Box::leak(Box::new(ours)));
            let conversation = Conversation::new(input, member, handler(), out.is_own());
            run_blocking(conversation.run(&mut *out, &Visitor::default(), "key"));
        });
        // The end of the head that there is not.
        (&client).read_exact(&mut [0; 2]).unwrap();
        Self { _dir: dir, client: Some(client), told }
    }

    fn client(&mut self) -> &mut UnixStream {
        self.client.as_mut().unwrap()
    }

    #[track_caller]
    fn is_told(&self, expected: &str) {
        assert_eq!(self.told.recv_timeout(LONG).as_deref(), Ok(expected));
    }
}

/// Answers with 16 MiB, which no system keeps for a client.
fn much(connection: &mut ws::Connection<'_>, _: &str) {
    for _ in 0..256 {
        connection.send(Frame::Binary(&vec![0; 64 * 1024]));
    }
}

#[test]
fn who_reads_nothing_is_dropped_as_who_says_nothing() {
    for message in [&b"much"[..], b""] {
        let mut running = Running::start(&[], |connection, text| {
            if text == "much" {
                much(connection, text);
            }
        });
        running.is_told("open");
        running.client().write_all(&text(message)).unwrap();
        running.is_told(std::str::from_utf8(message).unwrap());
        running.is_told("before_close 1006");
        running.is_told("after_close");
    }
}

/// Does `act` often for 2 s, several times as long as the silent one is given, and answers no ping. Tries again where
/// the machine has held it up for long.
fn lives_on(mut running: impl FnMut() -> Running, mut act: impl FnMut(&mut UnixStream)) {
    loop {
        let mut running = running();
        let (start, mut last, mut gap) = (Instant::now(), Instant::now(), Duration::ZERO);
        while start.elapsed() < Duration::from_secs(2) {
            act(running.client());
            gap = gap.max(last.elapsed());
            last = Instant::now();
            std::thread::sleep(Duration::from_millis(20));
        }
        match running.told.try_recv() {
            Err(TryRecvError::Empty) => return,
            told => assert!(gap > Duration::from_millis(300), "it was dropped: {told:?}"),
        }
    }
}

#[test]
fn who_reads_slowly_is_not_dropped() {
    let start = || {
        let mut running = Running::start(&[], much);
        running.is_told("open");
        running.client().write_all(&text(b"much")).unwrap();
        running.is_told("much");
        running
    };
    // 6 MiB in all at most, so there is more all the time.
    lives_on(start, |client| _ = client.read(&mut vec![0; 64 * 1024]));
}

#[test]
fn who_sends_slowly_is_not_dropped() {
    let start = || {
        let mut running = Running::start(&[], |_, _| {});
        running.is_told("open");
        running.client().write_all(&text(&[b'x'; 1000])[..20]).unwrap();
        running
    };
    lives_on(start, |client| _ = client.write(b"x"));
}

#[test]
fn what_comes_early_is_heard_at_once() {
    let running = Running::start(&[text(b"one"), text(b"two")].concat(), |_, _| {});
    for told in ["open", "one", "two"] {
        running.is_told(told);
    }
}

/// What a program was told that keeps it in this file.
fn told_to_its_end(file: &Path) -> String {
    let start = Instant::now();
    loop {
        let told = std::fs::read_to_string(file).unwrap_or_default();
        if told.contains("finalize") {
            return told;
        }
        assert!(start.elapsed() < LONG, "{told}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn last_words_are_heard_by_a_handler_that_takes_its_time() {
    for is_early in [true, false] {
        let dir = TestDir::new();
        let file = dir.join("told");
        let script = r#"sleep 0.3; echo '{"accept":true}'; cat >"$0"; true"#;
        let command = ["sh", "-c", script, file.to_str().unwrap()].map(str::to_owned).to_vec();
        let settings = Settings { ws_handler: command, ..Settings::default() };
        let last_words = text(b"last words");
        let early = if is_early { &last_words[..] } else { &[] };
        let mut running = Running::with(channel().1, early, move || {
            ConnectionHandler::Program(Box::new(Program::start(&settings, &[]).unwrap()))
        });
        if !is_early {
            running.client().write_all(&last_words).unwrap();
        }
        running.client().shutdown(std::net::Shutdown::Write).unwrap();
        let told = told_to_its_end(&file);
        assert!(told.contains(r#""text":"last words""#), "{told}");
    }
}

#[test]
fn a_client_that_goes_without_a_word_is_not_waited_for() {
    let dir = TestDir::new();
    let file = dir.join("told");
    // It decides nothing.
    let command = ["sh", "-c", r#"cat >"$0"; true"#, file.to_str().unwrap()].map(str::to_owned).to_vec();
    let settings = Settings { ws_handler: command, ..Settings::default() };
    let mut running = Running::with(channel().1, &[], move || {
        ConnectionHandler::Program(Box::new(Program::start(&settings, &[]).unwrap()))
    });
    running.client().shutdown(std::net::Shutdown::Write).unwrap();
    let told = told_to_its_end(&file);
    assert!(told.contains(r#""code":1006"#), "{told}");
}

#[test]
fn a_handler_in_rust_that_fails_closes_its_own_connection() {
    for fault in ["panics", "sends", "broadcasts", "nonsense"] {
        let mut running = Running::start(&[], |connection, text| match text {
            "panics" => panic!("as it was told"),
            "sends" => (0..33).for_each(|_| connection.send(Frame::Binary(&vec![0; 1 << 20]))),
            "broadcasts" => (0..1000).for_each(|_| connection.broadcast(Frame::Binary(&[0; 10_000]))),
            _ => connection.close(1005, ""),
        });
        running.is_told("open");
        let mut client = WebSocket::from_raw_socket(running.client.take().unwrap(), Role::Client, None);
        client.send(Message::text(fault)).unwrap();
        running.is_told(fault);
        if fault != "panics" {
            running.is_told("before_close 1011");
        }
        if fault == "sends" {
            // The close comes behind all that, if there is time.
            continue;
        }
        let code = loop {
            match client.read() {
                Ok(Message::Close(frame)) => break frame.map(|frame| u16::from(frame.code)),
                // Where a socket has a time limit, a process that was held up for a moment is told so (signal(7)).
                Err(tungstenite::Error::Io(error)) if error.kind() == std::io::ErrorKind::Interrupted => {}
                other => _ = other.unwrap(),
            }
        };
        assert_eq!(code, Some(1011), "{fault}");
    }
}

#[test]
fn a_span_counts_what_it_allows() {
    let mut span = Span::new();
    assert!(span.add(3, 4, LONG) && !span.add(2, 4, LONG) && span.add(1, 4, LONG) && !span.add(1, 4, LONG));
    assert!(!span.add(u64::MAX, 4, LONG));
    span.begun = Instant::now().checked_sub(LONG).unwrap();
    assert!(span.add(4, 4, LONG) && !span.add(1, 4, LONG));
}
