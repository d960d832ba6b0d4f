//! How a body gets from one request to another through a [pipe](crate::store::pipes), whatever the protocol.
//!
//! Neither end keeps more of it than a buffer: the bytes are in what is between the two. Where that is a FIFO, and the
//! kernel can, it moves them from the sender's connection there, and from there to the receiver's, without a copy in either
//! process. A receiver that takes nothing fills the pipe, then the sender's connection: its client has to wait.

use crate::gateway::{Body, BodyError, Client, Content, Outgoing, Producer, Woken};
use crate::store::{Receiver, Sender, WaitingSender, look_every};
use crate::wake::{Ready, Wake};
use std::io;
use std::time::{Duration, Instant};

/// A transfer in which no byte has moved for so long is over.
pub const IDLE: Duration = Duration::from_secs(60);

const BUFFER: usize = 64 * 1024;

/// Why a sender stopped.
#[derive(Debug)]
pub enum End {
    /// The receiver has gone: it has taken everything, or what its client wanted of it.
    ReceiverLeft,
    /// The receiver's client takes no bytes.
    ReceiverStuck,
    /// The sender was sent away, or its session was removed.
    SentAway,
    /// The sender's own body broke off, or nothing came any more.
    Body(BodyError),
    /// The sender's client does not wait for an answer.
    HungUp,
    /// This process is asked to stop.
    Stopped,
}

/// A body on its way into a pipe. It survives a receiver that has not begun to take it.
pub struct Feed<'a, 'b> {
    body: &'a mut Body<'b>,
    /// Read from the body and not in the pipe yet: what is after `from`.
    buffer: Vec<u8>,
    from: usize,
    /// How many bytes have gone into the pipe.
    given: u64,
}

/// What one step has done.
enum Step {
    Moved,
    /// Nothing: there are no bytes yet.
    NoBytes,
    /// Nothing: the pipe is full.
    NoRoom,
    /// The body has ended.
    End,
}

impl<'a, 'b> Feed<'a, 'b> {
    /// Nothing is read yet.
    #[must_use]
    pub fn new(body: &'a mut Body<'b>) -> Self {
        Self { body, buffer: Vec::new(), from: 0, given: 0 }
    }

    /// How many bytes have been given away: none of them can be sent again.
    #[must_use]
    pub fn given(&self) -> u64 {
        self.given
    }

    /// Sends a head, and with it a short body, as far as that is there already: then the receiver finds all of it in one
    /// place. False when the receiver has gone, or does not take it.
    pub fn send_head(&mut self, sender: &mut Sender, head: &[u8]) -> bool {
        let length = self.body.length.and_then(|length| usize::try_from(length).ok()).unwrap_or(usize::MAX);
        if self.body.is_awaited && sender.takes_at_once(head.len().saturating_add(length)) {
            self.buffer.resize(length, 0);
            let read = self.body.reader.read_now(&mut self.buffer).unwrap_or(0);
            self.buffer.truncate(read);
        }
        let is_sent = sender.send_head(head, &self.buffer);
        self.given += std::mem::take(&mut self.buffer).len() as u64;
        is_sent
    }

    /// Sends the body to a receiver, and waits until the receiver has gone. A sender that is sent away stops.
    pub async fn send(&mut self, sender: &mut Sender, waiting: Option<&WaitingSender>, client: &mut dyn Client) -> End {
        if self.body.length.is_none_or(|length| length > BUFFER as u64) {
            sender.widen();
        }
        let mut until = Instant::now() + IDLE;
        while sender.is_open() {
            #[cfg(feature = "redis")]
            if !sender.exchange().await {
                break;
            }
            match self.step(sender) {
                Ok(Step::Moved) => until = Instant::now() + IDLE,
                Ok(Step::End) => sender.end(true),
                Ok(step @ (Step::NoBytes | Step::NoRoom)) => {
                    let mut call = waiting.map(WaitingSender::awaited);
                    let limit = until_look(until);
                    let woken = {
                        let [mut room, mut receiver] = sender.awaited();
                        let awaited: &mut dyn Wake =
                            if matches!(step, Step::NoRoom) { &mut room } else { &mut *self.body.reader };
                        client.wait(&mut [&mut receiver, awaited, &mut call], false, limit).await
                    };
                    match woken {
                        Woken::Stopped => return End::Stopped,
                        Woken::HungUp => {
                            self.send_rest(sender).await;
                            return End::HungUp;
                        }
                        Woken::Tick if !is_over(until) => {}
                        Woken::Tick if matches!(step, Step::NoRoom) => return End::ReceiverStuck,
                        Woken::Tick => return End::Body(io::ErrorKind::TimedOut.into()),
                        _ if is_called(call.as_ref()) && is_sent_away(waiting) => return End::SentAway,
                        _ if !sender.is_received() => return receiver_left(waiting),
                        _ => {}
                    }
                }
                // It has gone.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                    return receiver_left(waiting);
                }
                Err(error) => return End::Body(error.kind().into()),
            }
        }
        wait_for_receiver(sender, waiting, client).await
    }

    /// Sends what had come before the client went, as far as there is room for it. That may be all of it.
    async fn send_rest(&mut self, sender: &mut Sender) {
        self.body.reader.give_time(Duration::from_secs(1));
        while sender.is_open() {
            #[cfg(feature = "redis")]
            if !sender.exchange().await {
                return;
            }
            match self.step(sender) {
                Ok(Step::Moved) => {}
                Ok(Step::End) => sender.end(true),
                Ok(Step::NoBytes) => {
                    self.from = 0;
                    self.buffer.resize(BUFFER, 0);
                    let read = self.body.reader.read(&mut self.buffer).await;
                    self.buffer.truncate(*read.as_ref().unwrap_or(&0));
                    match read {
                        Ok(0) => sender.end(true),
                        Ok(_) => {}
                        Err(_) => return,
                    }
                }
                Ok(Step::NoRoom) | Err(_) => return,
            }
        }
    }

    fn step(&mut self, sender: &mut Sender) -> io::Result<Step> {
        let pending = &self.buffer[self.from..];
        if !pending.is_empty() {
            return match would_block(sender.write(pending)) {
                Ok(Some(written)) => {
                    self.from += written;
                    self.given += written as u64;
                    Ok(Step::Moved)
                }
                Ok(None) => Ok(Step::NoRoom),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(Step::Moved),
                Err(error) => Err(error),
            };
        }
        if let Some(fifo) = sender.fifo() {
            match would_block(self.body.reader.splice_now(fifo, 1 << 20))? {
                Some(Some(0)) => return Ok(Step::End),
                Some(Some(moved)) => {
                    self.given += moved;
                    return Ok(Step::Moved);
                }
                Some(None) => {}
                None => return Ok(if Ready::to_write(fifo).is_ready() { Step::NoBytes } else { Step::NoRoom }),
            }
        }
        self.from = 0;
        self.buffer.resize(BUFFER, 0);
        let read = would_block(self.body.reader.read_now(&mut self.buffer));
        self.buffer.truncate(read.as_ref().map_or(0, |read| read.unwrap_or(0)));
        Ok(match read? {
            None => Step::NoBytes,
            Some(0) => Step::End,
            Some(_) => Step::Moved,
        })
    }

    /// Reads and drops what the client is still sending, for a little while: it would not see the answer otherwise, only
    /// a broken connection.
    pub async fn drop_rest(self) {
        self.body.reader.give_time(Duration::from_secs(2));
        self.body.drain(u64::MAX).await;
    }
}

/// Everything is in the pipe; what the receiver's client takes of it is known when the receiver has gone.
async fn wait_for_receiver(sender: &mut Sender, waiting: Option<&WaitingSender>, client: &mut dyn Client) -> End {
    let mut taken = sender.taken().unwrap_or_default();
    let mut until = Instant::now() + IDLE;
    loop {
        #[cfg(feature = "redis")]
        sender.exchange().await;
        if !sender.is_received() {
            return receiver_left(waiting);
        }
        let [_, mut receiver] = sender.awaited();
        let mut call = waiting.map(WaitingSender::awaited);
        let limit = until_look(until);
        match client.wait(&mut [&mut receiver, &mut call], false, limit).await {
            Woken::Stopped => return End::Stopped,
            Woken::HungUp => return End::HungUp,
            Woken::Tick if !is_over(until) => {}
            Woken::Tick => {
                let now = sender.taken().unwrap_or_default();
                if std::mem::replace(&mut taken, now) == now {
                    return End::ReceiverStuck;
                }
                until = Instant::now() + IDLE;
            }
            _ if is_called(call.as_ref()) && is_sent_away(waiting) => return End::SentAway,
            _ => {}
        }
    }
}

/// Ends a body that has broken off, and gives the receiver's client a moment to take what there is of it.
pub async fn settle(sender: &mut Sender, client: &mut dyn Client) {
    sender.end(false);
    let until = Instant::now() + Duration::from_secs(1);
    loop {
        #[cfg(feature = "redis")]
        sender.exchange().await;
        if !sender.is_received() {
            return;
        }
        let [_, mut receiver] = sender.awaited();
        let limit = until.saturating_duration_since(Instant::now());
        if client.wait(&mut [&mut receiver], false, limit).await != Woken::Knock {
            return;
        }
    }
}

/// How long to wait.
fn until_look(until: Instant) -> Duration {
    let left = until.saturating_duration_since(Instant::now());
    left.min(look_every())
}

/// Whether it is time, and not only for a [look](look_every).
fn is_over(until: Instant) -> bool {
    look_every() > IDLE || Instant::now() >= until
}

/// A receiver whose pipe is removed leaves too.
fn receiver_left(waiting: Option<&WaitingSender>) -> End {
    if is_sent_away(waiting) { End::SentAway } else { End::ReceiverLeft }
}

fn is_called(call: Option<&Ready<'_>>) -> bool {
    call.is_some_and(Ready::is_ready)
}

fn is_sent_away(waiting: Option<&WaitingSender>) -> bool {
    waiting.is_some_and(WaitingSender::is_sent_away)
}

fn would_block<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        other => other.map(Some),
    }
}

/// Where a body of unknown length ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Wherever the sender has gone. Where it has not said so, this trailer field follows the body.
    Any(Option<(&'static str, &'static str)>),
    /// Where the sender says so; one that just goes has cut the body short, and the client shall see that.
    Told,
}

/// What comes out of a pipe, as the body of an answer: `length` bytes where that is known, else up to the end.
#[must_use]
pub fn content(mut receiver: Receiver, length: Option<u64>, ending: Ending) -> Content {
    if length == Some(0) {
        // Noted before the head goes out: a web server may end its program once it has that.
        if let Err(error) = receiver.took(0) {
            error.log();
        }
        return Content::Whole(Vec::new());
    }
    let produce: Producer = Box::new(move |out| Box::pin(deliver(out, receiver, length, ending)));
    match length {
        Some(length) => Content::Sized(length, produce),
        None => Content::Stream(produce),
    }
}

/// Gives these bytes to the client. False when it has gone before it had all.
pub async fn write_all(out: &mut dyn Outgoing, mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        // Our own socket takes it at once nearly always, and does not block where it does not.
        let written = if out.is_own() { out.write(bytes) } else { 0 };
        if written > 0 {
            bytes = &bytes[written..];
            continue;
        }
        match out.wait(&mut [], true, IDLE).await {
            Woken::Writable => bytes = &bytes[out.write(bytes)..],
            Woken::Knock => {}
            Woken::HungUp | Woken::Tick | Woken::Stopped => return false,
        }
    }
    true
}

/// Gives what comes out of a pipe to the client.
async fn deliver(out: &mut dyn Outgoing, mut receiver: Receiver, length: Option<u64>, ending: Ending) {
    let mut delivery = Delivery { left: length, buffer: Vec::new(), from: 0 };
    // From here on the sender knows that its head has gone out.
    let mut noted = receiver.took(0);
    let mut trouble_told = false;
    // Only bytes put it off, and not somebody's knock.
    let mut until = Instant::now() + IDLE;
    while delivery.left != Some(0) {
        #[cfg(feature = "redis")]
        receiver.exchange(delivery.left).await;
        if let Err(error) = noted
            && !std::mem::replace(&mut trouble_told, true)
        {
            error.log();
        }
        let moved = delivery.step(out, &mut receiver);
        if moved > 0 {
            noted = receiver.took(moved);
            until = Instant::now() + IDLE;
            continue;
        }
        noted = Ok(());
        let to_write = !delivery.buffer.is_empty() || receiver.there() > 0;
        if !to_write && receiver.has_ended() {
            return end(out, &receiver, ending);
        }
        let [data, mut call] = receiver.awaited();
        let mut data = data.filter(|_| !to_write);
        let limit = until_look(until);
        match out.wait(&mut [&mut data, &mut call], to_write, limit).await {
            // The client has gone.
            Woken::HungUp => return,
            Woken::Tick if !is_over(until) => {}
            // Nothing moves, or this process has to stop: the client sees that this is not the end.
            Woken::Tick | Woken::Stopped => return out.cut(),
            // Where that cannot be seen, somebody has knocked all the same.
            Woken::Knock if receiver.is_removed().unwrap_or(true) => return out.cut(),
            Woken::Knock | Woken::Writable => {}
        }
    }
}

/// Ends what comes out of a pipe where its sender has gone.
fn end(out: &mut dyn Outgoing, receiver: &Receiver, ending: Ending) {
    // That may be because the pipe was removed: nobody has knocked here yet, perhaps.
    if receiver.has_lost_place().unwrap_or(true) {
        return out.cut();
    }
    match ending {
        _ if receiver.is_complete() => {}
        Ending::Told => out.cut(),
        Ending::Any(Some((name, value))) => out.trail(name, value),
        Ending::Any(None) => {}
    }
}

struct Delivery {
    left: Option<u64>,
    /// Read from a FIFO and not taken by the client yet: what is after `from`. Only where the kernel cannot move it.
    buffer: Vec<u8>,
    from: usize,
}

impl Delivery {
    /// Moves what can be moved without waiting: how many bytes.
    fn step(&mut self, out: &mut dyn Outgoing, receiver: &mut Receiver) -> u64 {
        let there = receiver.there();
        if self.left.is_some_and(|left| there + (self.buffer.len() - self.from) as u64 >= left) {
            // With the last of these bytes the client knows that it has all, and may come for more at once.
            receiver.leave();
        }
        let moved = match receiver.fifo().filter(|_| self.buffer.is_empty()) {
            Some(fifo) => out.splice(fifo),
            None => {
                receiver.give(|bytes| if out.is_writable() { out.write(bytes) } else { 0 }).map(|given| given as u64)
            }
        };
        let moved = moved.unwrap_or_else(|| self.copy(out, receiver));
        if let Some(left) = &mut self.left {
            *left -= moved.min(*left);
        }
        moved
    }

    fn copy(&mut self, out: &mut dyn Outgoing, receiver: &mut Receiver) -> u64 {
        if self.buffer.is_empty() {
            self.buffer.resize(BUFFER, 0);
            let got = receiver.read(&mut self.buffer);
            self.buffer.truncate(got);
            self.from = 0;
        }
        if self.buffer.is_empty() || !out.is_writable() {
            return 0;
        }
        let written = out.write(&self.buffer[self.from..]);
        self.from += written;
        if self.from == self.buffer.len() {
            self.buffer.clear();
            self.from = 0;
        }
        written as u64
    }
}

#[cfg(all(test, feature = "serve"))]
mod tests {
    use super::*;
    use crate::gateway::run_blocking;
    use crate::store::Store;
    use crate::store::files::{Files, test_dir::TestDir};
    use crate::store::pipes::{Limits, Visitor};
    use crate::wake::poll_any;
    use std::task::{Context, Poll};

    /// A client that takes nothing before the first wait is over, and never waits for what does not come.
    #[derive(Default)]
    struct Slow {
        has_waited: bool,
        got: Vec<u8>,
        is_cut: bool,
    }

    impl Client for Slow {
        fn poll_wait(
            &mut self,
            cx: &mut Context<'_>,
            wakes: &mut [&mut dyn Wake],
            to_write: bool,
            _: Instant,
        ) -> Poll<Woken> {
            let is_writable = std::mem::replace(&mut self.has_waited, true) && to_write;
            Poll::Ready(match poll_any(cx, wakes) {
                Poll::Ready(()) => Woken::Knock,
                Poll::Pending if is_writable => Woken::Writable,
                Poll::Pending => Woken::Tick,
            })
        }
    }

    impl Outgoing for Slow {
        fn is_own(&self) -> bool {
            true
        }

        fn is_broken(&self) -> bool {
            false
        }

        fn is_writable(&self) -> bool {
            self.has_waited
        }

        fn write(&mut self, bytes: &[u8]) -> usize {
            self.got.extend(bytes);
            bytes.len()
        }

        fn cut(&mut self) {
            self.is_cut = true;
        }
    }

    #[test]
    fn an_end_that_came_before_the_bytes_were_taken_is_not_waited_for() {
        let dir = TestDir::new();
        let store = Store::Files(Files::new(&dir.join("data")));
        let mut out = Slow::default();
        run_blocking(async {
            let _node = store.listen_as_one().await.unwrap();
            let limits = Limits { sessions: 1, senders: 1, lifetime: Duration::from_secs(60) };
            let session = store.make_session(false, &limits).await.unwrap().unwrap();
            let mut receiver = store.receive(&session.id, &Visitor::default(), &limits).await.unwrap();
            let host = Visitor { tokens: vec![session.token], address: None };
            let mut waiting = store.wait_to_send(&session.id, &host, &limits).await.unwrap();
            let mut sender = waiting.take_receiver().await.unwrap().unwrap();
            assert!(sender.send_head(b"head", b"body") && receiver.look().await.unwrap().is_some());
            sender.end(true);
            deliver(&mut out, receiver.begin(), None, Ending::Told).await;
        });
        assert_eq!((out.got, out.is_cut), (b"body".to_vec(), false));
    }
}
