//! A relay with an application of its own inside: every WebSocket is told how many messages it has sent, and the others on
//! its channel hear them.
//!
//! `cargo run --example counter -- serve`, and then `ws://127.0.0.1:8080/ws/room?ticket=please`. Built without the default
//! features and put into a `cgi-bin`, it is the same under lighttpd.

use std::process::ExitCode;
use uhst_relay::ws::{Connection, Frame, Handler, Visitor, handle_with};

/// There is one for each connection.
#[derive(Default)]
struct Counter {
    messages: u64,
}

impl Handler for Counter {
    fn authenticate(&mut self, _: &mut Connection<'_>, visitor: &Visitor) -> bool {
        visitor.query == "ticket=please"
    }

    fn open(&mut self, connection: &mut Connection<'_>, _key: &str) {
        connection.send(Frame::Text("welcome"));
    }

    fn text(&mut self, connection: &mut Connection<'_>, text: &str) {
        self.messages += 1;
        connection.send(Frame::Text(&self.messages.to_string()));
        connection.broadcast(Frame::Text(text));
        if text == "bye" {
            connection.close(1000, "bye");
        }
    }

    fn fifo(&mut self, connection: &mut Connection<'_>, frame: Frame<'_>) {
        connection.send(frame);
    }

    fn after_close(&mut self, connection: &mut Connection<'_>) {
        connection.broadcast(Frame::Text("one has left"));
    }
}

fn main() -> ExitCode {
    handle_with(|| Box::new(Counter::default()));
    if std::env::var_os("GATEWAY_INTERFACE").is_some() {
        uhst_relay::cli::answer()
    } else {
        uhst_relay::cli::run(std::env::args_os().skip(1))
    }
}
