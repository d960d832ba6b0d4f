//! An echo over the `WebSocket` protocol (RFC 6455): connections that each keep some messages under way.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::Result;
use crate::figures::{Times, rate};
use crate::http::Target;

/// What to do.
pub struct Plan {
    pub connections: usize,
    /// How many messages each connection has under way.
    pub ahead: usize,
    pub time: Duration,
    /// Of a message, in bytes; at most 125.
    pub size: usize,
}

/// Sends and counts what comes back. With no messages under way, the connections are only there.
pub fn run(target: &Target, plan: &Plan) -> Result<Value> {
    if plan.size > 125 {
        return Err("--size: a short frame has at most 125 bytes".to_owned());
    }
    let start = Arc::new(Barrier::new(plan.connections));
    let sockets = (0..plan.connections).map(|_| open(target)).collect::<Result<Vec<_>>>()?;
    let begun = Instant::now();
    if plan.ahead == 0 {
        println!("{}", json!({ "ready": true }));
        std::thread::sleep(plan.time);
        return Ok(json!({ "open": sockets.len(), "load_cores": 0 }));
    }
    let threads: Vec<_> = sockets
        .into_iter()
        .map(|socket| {
            let (start, ahead, time, size) = (Arc::clone(&start), plan.ahead, plan.time, plan.size);
            std::thread::spawn(move || {
                start.wait();
                echo(socket, ahead, time, size)
            })
        })
        .collect();
    let mut times = Times::default();
    for thread in threads {
        for time in thread.join().map_err(|_| "a connection's thread has panicked")?? {
            times.add(time);
        }
    }
    let took = begun.elapsed();
    Ok(json!({ "count": times.count(), "rate": rate(times.count(), took), "ms": times.percentiles(), "load_cores": 0 }))
}

fn open(target: &Target) -> Result<TcpStream> {
    let text = |error: std::io::Error| error.to_string();
    let mut socket = TcpStream::connect(target.address).map_err(text)?;
    socket.set_nodelay(true).map_err(text)?;
    socket.set_read_timeout(Some(Duration::from_secs(30))).map_err(text)?;
    socket.write_all(target.upgrade().as_bytes()).map_err(text)?;
    let mut head = Vec::new();
    let mut byte = [0];
    // Byte by byte: what follows is a frame.
    while !head.ends_with(b"\r\n\r\n") {
        socket.read_exact(&mut byte).map_err(text)?;
        head.push(byte[0]);
    }
    if head.starts_with(b"HTTP/1.1 101 ") { Ok(socket) } else { Err(String::from_utf8_lossy(&head).into_owned()) }
}

/// How long each message took.
fn echo(mut socket: TcpStream, ahead: usize, time: Duration, size: usize) -> Result<Vec<Duration>> {
    let length = u8::try_from(size).unwrap_or(125);
    let payload = vec![b'x'; size];
    // A mask of zeros is a mask.
    let frame = [&[0x81, 0x80 | length, 0, 0, 0, 0][..], &payload].concat();
    let until = Instant::now() + time;
    let (mut sent, mut times) = (std::collections::VecDeque::new(), Vec::new());
    let (mut heard, mut buffer) = (Vec::new(), vec![0; 64 * 1024]);
    loop {
        let room = if Instant::now() < until { ahead - sent.len() } else { 0 };
        if room == 0 && sent.is_empty() {
            return Ok(times);
        }
        sent.extend(std::iter::repeat_n(Instant::now(), room));
        socket.write_all(&frame.repeat(room)).map_err(|error| error.to_string())?;
        let count = socket.read(&mut buffer).map_err(|error| error.to_string())?;
        if count == 0 {
            return Err("the connection has ended".to_owned());
        }
        heard.extend_from_slice(&buffer[..count]);
        let mut at = 0;
        while let [opcode, length, ref rest @ ..] = heard[at..]
            && rest.len() >= usize::from(length)
        {
            at += 2 + usize::from(length);
            // Pings are answered by nobody in so short a time.
            if opcode == 0x81 {
                if rest[..usize::from(length)] != payload[..] {
                    return Err("another message came back".to_owned());
                }
                times.push(sent.pop_front().ok_or("more came back than was sent")?.elapsed());
            }
        }
        heard.drain(..at);
    }
}
