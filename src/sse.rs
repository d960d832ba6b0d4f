//! Feeds an event stream (WHATWG HTML, 9.2 "Server-sent events") for as long as somebody listens, whatever the protocol.

use crate::clock::instant;
use crate::config::Settings;
use crate::gateway::{Outgoing, Woken};
use crate::store::Error;
use crate::store::sessions::Standing;
use crate::wake::Ready;
use std::convert::Infallible;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// How often a stream looks after things that nobody wakes it for: a killed peer is noticed within this time.
pub const ROUND: Duration = Duration::from_secs(2);

/// The same where thousands of streams live in one process: they end together, and only a peer of another process can be
/// killed alone. To wake a thread is most of what an idle stream costs, so a round that is due [soon](SOON) is done
/// together with the keep-alive.
const ROUND_OF_MANY: Duration = Duration::from_secs(5);
const SOON: Duration = Duration::from_secs(1);

/// And what is due for several of them within so long is done for all of them at its beginning.
const TOGETHER: Duration = Duration::from_millis(250);

/// What could not be done in a round is tried again after this time, where it may soon be possible.
const AGAIN: Duration = Duration::from_millis(250);

/// How long a stream sleeps at most before it looks for messages itself, where wake-ups may not come and nothing else is
/// set. Where they do come, within microseconds, it looks once a [`ROUND`]: fifty looks a second cost 0.15 % of a core for
/// each idle stream, even if there is nothing to look at.
const TICK: Duration = Duration::from_millis(20);

/// A web server's stream that was opened, or given something, within this time looks as often, whatever wakes it: where
/// there is talk, nobody should wait for a round because a sender was killed before it could wake others.
const ACTIVE: Duration = Duration::from_secs(1);

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

/// Where the events of a stream come from. Its futures are dropped only with the stream.
pub trait Events: Send {
    /// What comes when there is something new.
    fn wake(&self) -> Option<Ready<'_>>;

    /// Whether everything new is sure to make [`Events::wake`] ready.
    fn is_surely_woken(&self) -> bool;

    /// To be called when [`Events::wake`] was ready, and from time to time where it may not be, before looking for
    /// events. Whether somebody has come to take the stream's place.
    fn hear(&mut self) -> bool;

    /// Writes the next events to `out`, if there are any. Whether there may be more by now.
    ///
    /// # Errors
    /// When they cannot be read.
    fn write_next(&mut self, out: &mut Vec<u8>) -> impl Future<Output = Result<bool, Error>> + Send;

    /// Notes that everything [`Events::write_next`] has given was written to the stream.
    ///
    /// # Errors
    /// When that cannot be written.
    fn delivered(&mut self) -> impl Future<Output = Result<(), Error>> + Send;

    /// What has become of the stream's place: a look.
    ///
    /// # Errors
    /// When that cannot be seen.
    fn standing(&mut self) -> impl Future<Output = Result<Standing, Error>> + Send;

    /// Does what has to be done for the stream every [few seconds](ROUND), and tells what has become of its place.
    ///
    /// # Errors
    /// Is logged; the stream goes on.
    fn tend(&mut self) -> impl Future<Output = Result<Standing, Error>> + Send;
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

    fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Writes some of it.
    fn write(&mut self, out: &mut dyn Outgoing) {
        self.written += out.write(&self.bytes[self.written..]);
        if self.written == self.bytes.len() {
            self.written = 0;
            self.bytes.clear();
        }
    }
}

/// Gives events to the client until one of them has gone.
pub async fn feed(out: &mut dyn Outgoing, events: &mut impl Events, unsent: &mut Unsent, settings: &Settings) -> End {
    let now = instant();
    let round = round(out.is_own());
    let trouble = Trouble::default();
    let (next_round, written_at, given_at) = (now + round, now, now);
    let mut feed = Feed { out, events, unsent, settings, trouble, round, next_round, written_at, given_at };
    let Err(end) = feed.run().await;
    end
}

/// A stream that is being fed. Whatever ends it is an `Err`.
struct Feed<'a, E> {
    out: &'a mut dyn Outgoing,
    events: &'a mut E,
    unsent: &'a mut Unsent,
    settings: &'a Settings,
    trouble: Trouble,
    round: Duration,
    next_round: Instant,
    /// When all that had been taken for the client was on its way last.
    written_at: Instant,
    /// When that were events; before that, when the stream was opened.
    given_at: Instant,
}

impl<E: Events> Feed<'_, E> {
    async fn run(&mut self) -> Result<Infallible, End> {
        self.write().await?;
        self.give().await?;
        loop {
            let is_knocked = self.sleep().await?;
            self.tend_if_due().await?;
            if !self.give().await? {
                if is_knocked {
                    // It may be of somebody who has taken the place, or removed it: that must not wait.
                    self.look().await?;
                }
                self.say_if_due().await?;
            }
        }
    }

    /// Sleeps until something may have happened, or is due. Whether somebody has knocked.
    async fn sleep(&mut self) -> Result<bool, End> {
        let now = instant();
        let is_active = !self.out.is_own() && now < self.given_at + ACTIVE;
        let tick = tick(self.settings, self.events.is_surely_woken() && !is_active, self.round);
        let until = self.next_round.min(self.next_keep_alive());
        let woken = self.wait(false, tick.min(until.saturating_duration_since(now))).await?;
        let is_knocked = woken == Woken::Knock;
        if !is_knocked {
            // Streams are many and mostly idle.
            self.unsent.bytes.shrink_to_fit();
        }
        if (is_knocked || tick < self.round) && self.events.hear() {
            self.look().await?;
        }
        Ok(is_knocked)
    }

    /// Every wait of a stream: for its client, for its end, and for what is new.
    async fn wait(&mut self, to_write: bool, limit: Duration) -> Result<Woken, End> {
        // Whoever has something to write need not be told that there is more.
        let mut wake = self.events.wake().filter(|_| !to_write);
        match self.out.wait(&mut [&mut wake], to_write, limit).await {
            Woken::HungUp => Err(End::Gone),
            Woken::Stopped => Err(End::Stopped),
            woken => Ok(woken),
        }
    }

    /// Gives the client all events that there are. Whether there were any.
    async fn give(&mut self) -> Result<bool, End> {
        let mut is_given = false;
        loop {
            let next_round = self.next_round;
            // What comes must not tear a keep-alive. Where nothing comes, that goes on as before.
            let said = self.unsent.said;
            self.unsent.finish_keep_alive();
            let rest = self.unsent.bytes.len();
            let has_more = match self.events.write_next(&mut self.unsent.bytes).await {
                Ok(has_more) => has_more,
                Err(error) => {
                    self.trouble.log(&error);
                    false
                }
            };
            if self.unsent.bytes.len() == rest {
                self.unsent.bytes.clear();
                self.unsent.said = said;
            } else {
                self.write().await?;
                self.given_at = self.written_at;
                is_given = true;
                if let Err(error) = self.events.delivered().await {
                    self.trouble.log(&error);
                }
            }
            // What a round has found meanwhile nobody knocks for.
            if !has_more && next_round == self.next_round {
                return Ok(is_given);
            }
        }
    }

    /// Writes all that was taken for the client.
    async fn write(&mut self) -> Result<(), End> {
        while !self.unsent.is_empty() {
            // A write to our own socket never blocks; room is waited for where there is none.
            if (!self.out.is_own() || !self.out.is_writable())
                && self.wait(true, self.next_round.saturating_duration_since(instant())).await? != Woken::Writable
            {
                self.tend_if_due().await?;
                continue;
            }
            self.unsent.write(self.out);
        }
        self.written_at = instant();
        Ok(())
    }

    fn next_keep_alive(&self) -> Instant {
        self.due(
            self.written_at,
            self.unsent.said.checked_sub(1).map_or(self.settings.keep_alive, |pieces| BETWEEN[pieces]),
        )
    }

    /// When something is due so long after a moment. Where there are many streams, a little earlier perhaps: with others.
    fn due(&self, after: Instant, time: Duration) -> Instant {
        static BEGIN: OnceLock<Instant> = OnceLock::new();
        let due = after + time;
        if !self.out.is_own() || time < 4 * TOGETHER {
            return due;
        }
        let since = due.saturating_duration_since(*BEGIN.get_or_init(instant));
        let early = since.as_micros() % TOGETHER.as_micros();
        due.checked_sub(Duration::from_micros(u64::try_from(early).unwrap_or(0))).unwrap_or(due)
    }

    /// Says the next piece of a keep-alive, if it is time for it.
    async fn say_if_due(&mut self) -> Result<(), End> {
        if instant() >= self.next_keep_alive() {
            self.unsent.say_piece();
            if self.out.is_own() {
                // Our own socket tells at once; one piece is half the work.
                self.unsent.finish_keep_alive();
            }
            self.write().await?;
        }
        Ok(())
    }

    /// Looks what has become of the stream's place.
    async fn look(&mut self) -> Result<(), End> {
        match self.events.standing().await {
            Ok(Standing::Superseded) => Err(End::Superseded),
            Ok(Standing::Over) => {
                self.next_round = instant();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Does a round, if it is time for it.
    async fn tend_if_due(&mut self) -> Result<(), End> {
        let now = instant();
        if now < self.next_round && (now < self.next_keep_alive() || now + SOON < self.next_round) {
            return Ok(());
        }
        self.next_round = self.due(now, self.round);
        match self.events.tend().await {
            Ok(Standing::Listening) => self.trouble.over(),
            Ok(Standing::Superseded) => return Err(End::Superseded),
            Ok(Standing::Over) => return Err(End::Over),
            Err(error) => {
                // Whoever cannot say for long that it is there is taken for gone.
                if error.passes() {
                    self.next_round = now + AGAIN;
                }
                self.trouble.log(&error);
            }
        }
        Ok(())
    }
}

/// Gives the client what is still waiting, and what comes within `time`: a stream that ends because its session or its
/// process does should not keep the reason to itself.
pub async fn last_words(out: &mut dyn Outgoing, events: &mut impl Events, unsent: &mut Unsent, time: Duration) {
    let until = instant() + time;
    unsent.finish_keep_alive();
    loop {
        while unsent.is_empty() && matches!(events.write_next(&mut unsent.bytes).await, Ok(true)) {}
        let to_write = !unsent.is_empty();
        let left = until.saturating_duration_since(instant());
        let woken = out.wait(&mut [&mut events.wake().filter(|_| !to_write)], to_write, left.min(TICK)).await;
        match woken {
            Woken::HungUp => return,
            Woken::Writable => unsent.write(out),
            Woken::Tick if left.is_zero() => return,
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

#[cfg(all(test, feature = "serve"))]
mod simulation;

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
