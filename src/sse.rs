//! Feeds an event stream (WHATWG HTML, 9.2 "Server-sent events") for as long as somebody listens, whatever the protocol.

use crate::config::Settings;
use crate::gateway::{Outgoing, Woken};
use crate::store::Error;
use crate::store::sessions::Standing;
use crate::wake::Ready;
use std::time::{Duration, Instant};

/// How often a stream looks after things that nobody wakes it for: a killed peer is noticed within this time.
pub const ROUND: Duration = Duration::from_secs(2);

/// The same where thousands of streams live in one process: they end together, and only a peer of another process can be
/// killed alone. To wake a thread is most of what an idle stream costs, so a round that is due [soon](SOON) is done
/// together with the keep-alive.
const ROUND_OF_MANY: Duration = Duration::from_secs(5);
const SOON: Duration = Duration::from_secs(1);

/// How long a stream sleeps at most before it looks for messages itself, where wake-ups may not come and nothing else is
/// set. Where they do come, within microseconds, it looks once a [`ROUND`]: fifty looks a second cost 0.15 % of a core for
/// each idle stream, even if there is nothing to look at.
const TICK: Duration = Duration::from_millis(20);

/// The comment of an idle stream, in three pieces. Most web servers find out that a client has left when the *second* write
/// fails, thttpd when the third does, so that a keep-alive written at once would take two periods to tell, or three; in
/// pieces it takes one.
const KEEP_ALIVE: [&[u8]; 3] = [b": sse-", b"keep-", b"alive\n"];
/// The time between them: enough for the client's machine to answer the first, and for a server that gathers what is
/// written within 0.2 s.
const BETWEEN: [Duration; 2] = [Duration::from_millis(50), Duration::from_millis(250)];

/// How long a client waits before it comes back, in milliseconds: at least so long, and at random up to so much longer. After
/// a restart thousands come back, and not all in the same second.
const RETRY: u32 = 1000;
const RETRY_SPREAD: u32 = 5000;

/// Why a stream is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The client has gone.
    Gone,
    /// This process is asked to stop.
    Stopped,
    /// A newer stream has taken over.
    Superseded,
    /// The protocol says that it is over.
    Over,
}

/// Writes an event. Its type is left out where it is `message`, which is what an event without one is.
pub fn write_event(out: &mut Vec<u8>, id: u64, event: &str, data: &str) {
    out.extend_from_slice(format!("id: {id}\n").as_bytes());
    if event != "message" {
        out.extend_from_slice(format!("event: {event}\n").as_bytes());
    }
    out.extend_from_slice(b"data: ");
    out.extend_from_slice(data.as_bytes());
    out.extend_from_slice(b"\n\n");
}

/// What [`Events::write_next`] has written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Given {
    /// How many events.
    pub count: usize,
    /// Whether there may be more by now.
    pub has_more: bool,
}

/// Where the events of a stream come from.
pub trait Events: Send {
    /// What comes when there is something new.
    fn wake(&self) -> Option<Ready<'_>>;

    /// Whether everything new is sure to make [`Events::wake`] readable.
    fn is_surely_woken(&self) -> bool;

    /// To be called when [`Events::wake`] was readable, and from time to time where it may not be, before looking for
    /// events. Whether somebody has come to take the stream's place.
    fn hear(&mut self) -> bool;

    /// Writes the next events to `out`.
    ///
    /// # Errors
    /// When they cannot be read.
    fn write_next(&mut self, out: &mut Vec<u8>) -> Result<Given, Error>;

    /// Notes that everything [`Events::write_next`] has given was written to the stream.
    ///
    /// # Errors
    /// When that cannot be written.
    fn delivered(&mut self) -> Result<(), Error>;

    /// What has become of the stream's place: a look.
    ///
    /// # Errors
    /// When that cannot be seen.
    fn standing(&mut self) -> Result<Standing, Error>;

    /// Does what has to be done for the stream every [few seconds](ROUND), and tells what has become of its place.
    ///
    /// # Errors
    /// Is logged; the stream goes on.
    fn tend(&mut self) -> Result<Standing, Error>;
}

/// How often a stream looks after things that nobody wakes it for, on [our own socket](Outgoing::is_own) or a web server's.
#[must_use]
pub fn round(is_own: bool) -> Duration {
    if is_own { ROUND_OF_MANY } else { ROUND }
}

/// How long somebody who waits sleeps at most before he looks for messages himself.
#[must_use]
pub fn tick(settings: &Settings, is_surely_woken: bool, round: Duration) -> Duration {
    settings.poll_tick.unwrap_or(if is_surely_woken { round } else { TICK })
}

/// What was taken for the client and is not all on its way yet.
pub struct Unsent {
    bytes: Vec<u8>,
    written: usize,
    /// How many pieces of a keep-alive have been said; its others come before anything else. None where it is whole.
    said: usize,
}

impl Unsent {
    /// The beginning of a stream of what comes after the event `id`. The client knows where it is from the first moment
    /// on: an `EventSource` that is cut off before its first event comes back with that id.
    #[must_use]
    pub fn after(id: u64) -> Self {
        // Without random bytes all come back at the same time, which is no reason not to serve them.
        let retry = RETRY + getrandom::u32().unwrap_or(0) % RETRY_SPREAD;
        let bytes = format!(": Connected.\nretry: {retry}\nid: {id}\n\n").into_bytes();
        Self { bytes, written: 0, said: 0 }
    }

    /// Adds an event without an id: one that no queue has.
    pub fn add_event(&mut self, event: &str, data: &str) {
        self.finish_keep_alive();
        self.bytes.extend_from_slice(format!("event: {event}\ndata: {data}\n\n").as_bytes());
    }

    /// Says the next piece of a keep-alive.
    fn say_piece(&mut self) {
        self.bytes.extend_from_slice(KEEP_ALIVE[self.said]);
        self.said = (self.said + 1) % KEEP_ALIVE.len();
    }

    /// Says what is missing of a keep-alive that has been begun.
    fn finish_keep_alive(&mut self) {
        while self.said > 0 {
            self.say_piece();
        }
    }

    /// The same, before what has just been added.
    fn precede_with_keep_alive(&mut self) {
        let rest = std::mem::take(&mut self.said);
        if rest > 0 {
            self.bytes.splice(0..0, KEEP_ALIVE[rest..].concat());
        }
    }

    fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Writes some of it. True when all of it is on its way.
    fn write(&mut self, out: &mut dyn Outgoing) -> bool {
        self.written += out.write(&self.bytes[self.written..]);
        let is_done = self.written == self.bytes.len();
        if is_done {
            self.written = 0;
            self.bytes.clear();
        }
        is_done
    }
}

/// Gives events to the client until one of them has gone.
///
/// One loop, one wait: whatever can happen to a stream (a message, a hang-up, a signal, a slow client that can take
/// more, the keep-alive, a newer stream) ends it, so nothing can block the notice of anything else.
pub async fn feed<E: Events>(
    out: &mut dyn Outgoing,
    listener: &mut E,
    unsent: &mut Unsent,
    settings: &Settings,
) -> End {
    // Whether there are events in `unsent`, so that having written it means having delivered them.
    let mut events = false;
    // Whether somebody has knocked, and whether it was a newer stream.
    let (mut is_heard, mut is_challenged) = (false, false);
    // Whether nobody has tried to write `unsent` yet.
    let mut is_fresh = true;
    let mut trouble = Trouble::default();
    let mut next_keep_alive = Instant::now() + settings.keep_alive;
    let round = round(out.is_own());
    let mut next_round = Instant::now() + round;
    loop {
        let now = Instant::now();
        if now >= next_round || (now >= next_keep_alive && now + SOON >= next_round) {
            next_round = now + round;
            match listener.tend() {
                Ok(Standing::Listening) => trouble.over(),
                Ok(Standing::Superseded) => return End::Superseded,
                Ok(Standing::Over) => return End::Over,
                Err(error) => trouble.log(&error),
            }
        }
        if unsent.is_empty() {
            is_fresh = true;
            match listener.write_next(&mut unsent.bytes) {
                // All of it was too old; there may be more.
                Ok(Given { count: 0, has_more: true }) => continue,
                Ok(Given { count, .. }) => events = count > 0,
                Err(error) => trouble.log(&error),
            }
            if !unsent.is_empty() {
                unsent.precede_with_keep_alive();
            }
            // A knock without a message may be of somebody who has taken the place, or removed it: that must not wait.
            if (std::mem::take(&mut is_heard) && !events) || std::mem::take(&mut is_challenged) {
                match listener.standing() {
                    Ok(Standing::Superseded) => return End::Superseded,
                    Ok(Standing::Over) => next_round = now,
                    _ => {}
                }
            }
            if unsent.is_empty() && now >= next_keep_alive {
                unsent.say_piece();
                if out.is_own() {
                    // Our own socket tells at once; one piece is half the work.
                    unsent.finish_keep_alive();
                }
            }
        }
        let to_write = !unsent.is_empty();
        let tick = tick(settings, listener.is_surely_woken(), round);
        let mut until = next_round;
        if !to_write {
            until = until.min(next_keep_alive);
        }
        let tick = tick.min(until.saturating_duration_since(now));
        // Who has something to write need not be told that there is more.
        let woken = if to_write && std::mem::take(&mut is_fresh) && out.is_own() && out.is_writable() {
            // A write to our own socket never blocks.
            Woken::Writable
        } else {
            out.wait(&mut [&mut listener.wake().filter(|_| !to_write)], to_write, tick).await
        };
        match woken {
            Woken::HungUp => return End::Gone,
            Woken::Stopped => return End::Stopped,
            Woken::Knock => {
                is_heard = true;
                is_challenged |= listener.hear();
            }
            Woken::Tick => {
                if settings.poll_tick.is_some() || !listener.is_surely_woken() {
                    is_challenged |= listener.hear();
                }
                if !to_write {
                    // Streams are many and mostly idle.
                    unsent.bytes.shrink_to_fit();
                }
            }
            Woken::Writable => {
                if !unsent.write(out) {
                    continue;
                }
                let pause = unsent.said.checked_sub(1).map_or(settings.keep_alive, |pieces| BETWEEN[pieces]);
                next_keep_alive = Instant::now() + pause;
                if std::mem::take(&mut events)
                    && let Err(error) = listener.delivered()
                {
                    trouble.log(&error);
                }
            }
        }
    }
}

/// Gives the client what is still waiting, and what comes within `time`: a stream that ends because its session or its
/// process does should not keep the reason to itself.
pub async fn last_words(out: &mut dyn Outgoing, events: &mut impl Events, unsent: &mut Unsent, time: Duration) {
    let until = Instant::now() + time;
    unsent.finish_keep_alive();
    loop {
        while matches!(events.write_next(&mut unsent.bytes), Ok(Given { has_more: true, .. })) {}
        let to_write = !unsent.is_empty();
        let tick = until.saturating_duration_since(Instant::now()).min(TICK);
        let woken = out.wait(&mut [&mut events.wake()], to_write, tick).await;
        match woken {
            Woken::HungUp => return,
            Woken::Writable => _ = unsent.write(out),
            Woken::Tick if Instant::now() >= until => return,
            Woken::Knock | Woken::Tick | Woken::Stopped => _ = events.hear(),
        }
    }
}

/// Tells the operator once, not fifty times a second, and again when the same trouble comes back.
#[derive(Default)]
struct Trouble {
    told: bool,
}

impl Trouble {
    fn log(&mut self, error: &Error) {
        if !std::mem::replace(&mut self.told, true) {
            error.log();
        }
    }

    fn over(&mut self) {
        self.told = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(event: &str) -> String {
        let mut out = Vec::new();
        write_event(&mut out, 7, event, "{}");
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn streams_that_ended_together_do_not_come_back_together() {
        let mut pauses: Vec<u32> = (0..100)
            .map(|_| {
                let begin = String::from_utf8(Unsent::after(17).bytes).unwrap();
                let line = begin.strip_prefix(": Connected.\nretry: ").expect(&begin);
                line.strip_suffix("\nid: 17\n\n").expect(&begin).parse().unwrap()
            })
            .collect();
        pauses.sort_unstable();
        assert!(pauses[0] >= RETRY && pauses[99] < RETRY + RETRY_SPREAD, "{pauses:?}");
        // A fifth of them comes within any second; chance does not make three fifths of it.
        let within_a_second = |from: u32| pauses.iter().filter(|pause| (from..from + 1000).contains(pause)).count();
        assert!(pauses.iter().all(|pause| within_a_second(*pause) < 60), "{pauses:?}");
    }

    #[test]
    fn an_event_has_an_id_and_a_type_unless_it_is_a_message() {
        assert_eq!(event("message"), "id: 7\ndata: {}\n\n");
        assert_eq!(event("other"), "id: 7\nevent: other\ndata: {}\n\n");
    }
}
