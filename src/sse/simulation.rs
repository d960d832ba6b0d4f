//! Streams in a world of which everything is known: its client, its store and its time, which jumps from one thing that happens
//! to the next. What is to happen is drawn at random; the model in [`World::check`] says what a stream owes at every moment.

use super::*;
use crate::gateway::Client;
use crate::store::Full;
use crate::wake::{Bell, Wake, poll_any};
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use tokio::time::{Sleep, sleep_until};

/// tokio counts in milliseconds, and one wait may follow another.
const SLACK: Duration = Duration::from_millis(5);

const LAST_WORDS: Duration = Duration::from_millis(500);

/// What a bell rings for.
const NEWS: u64 = 1;
const TAKEOVER: u64 = 1 << 32;

const CLOSING: &str = "event: closed\ndata: {}\n\n";

#[derive(Clone, Debug)]
enum Happening {
    /// Somebody posts so many events of so many bytes, and knocks, or is killed before.
    Post { count: usize, size: usize, is_told: bool },
    /// Somebody knocks for nothing.
    Knock,
    /// The client takes nothing, for so many milliseconds.
    Full(u64),
    /// The client takes no more than so many bytes at once from now on.
    Takes(usize),
    /// The disk stalls, for so many milliseconds.
    Stall(u64),
    /// The store fails, so many times.
    Fail(u32),
    /// The stream has to end, and is knocked for, or not.
    End(End, bool),
}

/// A world as it is made.
#[derive(Clone, Debug)]
struct Plan {
    is_own: bool,
    is_surely_woken: bool,
    keep_alive: u64,
    poll_tick: Option<u64>,
    dice: u64,
    /// Each so many milliseconds after the one before.
    happenings: Vec<(u64, Happening)>,
}

struct Post {
    bytes: Vec<u8>,
    at: Instant,
    /// When the client has to have it at the latest, if nothing stands in the way.
    by: Instant,
}

/// How far the stream has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Fed,
    /// It has been told that it is over.
    Told,
    /// It has its last words.
    Over,
}

struct World {
    plan: Plan,
    settings: Settings,
    happenings: VecDeque<(Instant, Happening)>,
    bell: Arc<Bell>,
    dice: u64,
    // The client.
    beginning: Vec<u8>,
    written: Vec<(Instant, Vec<u8>)>,
    received: Vec<u8>,
    /// Up to where that is understood, and how many events those are.
    read: usize,
    events: usize,
    received_at: Instant,
    /// When it was given an event last, or opened.
    active_at: Instant,
    takes: usize,
    full_until: Instant,
    /// Whether what was written to our own socket is still in its slot.
    has_piece: bool,
    // The store.
    posts: Vec<Post>,
    given: usize,
    may_have_more: bool,
    stalled_until: Instant,
    fails: u32,
    failed_at: Instant,
    tended_at: Instant,
    /// Whether the stream has heard that somebody takes its place, and has not looked yet.
    is_challenged: bool,
    // The end.
    end: Option<(Instant, End, bool)>,
    stage: Stage,
    /// How often the stream has waited, and how often it has done anything.
    waits: usize,
    touches: usize,
}

impl World {
    fn new(plan: Plan, beginning: &Unsent) -> Self {
        let now = instant();
        let mut at = now;
        let happenings = plan.happenings.iter().map(|(pause, happening)| {
            at += Duration::from_millis(*pause);
            (at, happening.clone())
        });
        Self {
            happenings: happenings.collect(),
            settings: Settings {
                keep_alive: Duration::from_millis(plan.keep_alive),
                poll_tick: plan.poll_tick.map(Duration::from_millis),
                ..Settings::default()
            },
            bell: Arc::default(),
            dice: plan.dice | 1,
            beginning: beginning.bytes.clone(),
            written: Vec::new(),
            received: Vec::new(),
            read: 0,
            events: 0,
            received_at: now,
            active_at: now,
            takes: usize::MAX,
            full_until: now,
            has_piece: false,
            posts: Vec::new(),
            given: 0,
            may_have_more: true,
            stalled_until: now,
            fails: 0,
            failed_at: now,
            tended_at: now,
            is_challenged: false,
            end: None,
            stage: Stage::Fed,
            waits: 0,
            touches: 0,
            plan,
        }
    }

    /// A number below `below` (xorshift).
    fn draw(&mut self, below: usize) -> usize {
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        usize::try_from(self.dice % below as u64).unwrap()
    }

    fn round(&self) -> Duration {
        if self.plan.is_own { ROUND_OF_MANY } else { ROUND }
    }

    /// Lets everything happen that is due.
    fn catch_up(&mut self) -> Instant {
        let now = instant();
        while self.happenings.front().is_some_and(|(at, _)| *at <= now)
            && let Some((at, happening)) = self.happenings.pop_front()
        {
            let until = |time: u64| at + Duration::from_millis(time);
            match happening {
                Happening::Post { count, size, is_told } => self.post(at, count, size, is_told),
                Happening::Knock => self.bell.ring(NEWS),
                Happening::Full(time) => self.full_until = self.full_until.max(until(time)),
                Happening::Takes(takes) => self.takes = takes,
                Happening::Stall(time) => self.stalled_until = self.stalled_until.max(until(time)),
                Happening::Fail(times) => self.fails = times,
                Happening::End(end, is_told) => {
                    self.end = Some((at, end, is_told));
                    if is_told && matches!(end, End::Superseded | End::Over) {
                        self.bell.ring(if end == End::Superseded { TAKEOVER } else { NEWS });
                    }
                }
            }
        }
        now
    }

    fn post(&mut self, at: Instant, count: usize, size: usize, is_told: bool) {
        let is_active = !self.plan.is_own && at < self.active_at + Duration::from_secs(1);
        let usual = if is_active || !self.plan.is_surely_woken { Duration::from_millis(20) } else { self.round() };
        let tick = self.settings.poll_tick.unwrap_or(usual).min(self.round());
        for _ in 0..count {
            let mut bytes = Vec::new();
            write_event(&mut bytes, self.posts.len() as u64 + 1, "message", &"x".repeat(size));
            self.posts.push(Post { bytes, at, by: if is_told { at } else { at + tick } });
        }
        if is_told {
            self.bell.ring(NEWS);
        }
    }

    /// What a stream owes at this moment.
    fn check(&self) {
        if self.stage == Stage::Over {
            return;
        }
        let (now, plan) = (instant(), &self.plan);
        let seen = self.stalled_until.max(self.failed_at);
        let clear = seen.max(self.full_until);
        if let Some((at, end, is_told)) = self.end {
            let is_noticed = match end {
                End::Gone | End::Stopped => true,
                // Whoever has something to write, or was hindered, looks in its next round; so does whoever was knocked for
                // and finds an event.
                End::Superseded => is_told && clear < at,
                End::Over => is_told && clear < at && self.active_at < at,
            };
            let by = seen.max(at) + if is_noticed { Duration::ZERO } else { self.round() };
            assert!(now <= by + SLACK, "{end:?} is noticed too late: {plan:?}");
            return;
        }
        for post in &self.posts[self.events..] {
            // Whoever was hindered looks in its next round.
            let by = if clear >= post.at { clear + self.round() } else { post.by };
            assert!(now <= by + SLACK, "an event of {:?} is late: {plan:?}", now - post.at);
        }
        let keep_alive_by = self.received_at.max(clear) + self.settings.keep_alive;
        assert!(now <= keep_alive_by + SLACK, "a keep-alive is late: {plan:?}");
        assert!(now <= self.tended_at.max(seen) + self.round() + SLACK, "a round is late: {plan:?}");
    }

    /// What is owed by the end of the last words of a stream that was over at this moment.
    fn check_last_words(&self, over_at: Instant) {
        let (until, plan) = (over_at + LAST_WORDS, &self.plan);
        let seen = self.stalled_until.max(self.failed_at);
        assert!(instant() <= until.max(seen) + SLACK, "last words have an end: {plan:?}");
        if seen.max(self.full_until) <= over_at {
            let in_time = |post: &&Post| post.at + TICK + SLACK <= until;
            assert!(self.events >= self.posts.iter().filter(in_time).count(), "a last word is missing: {plan:?}");
        }
    }

    /// The stream does something.
    fn touch(&mut self) -> Instant {
        self.touches += 1;
        assert!(self.touches < 500_000, "it does not sleep: {:?}", self.plan);
        assert_ne!(self.stage, Stage::Told, "it goes on after its end: {:?}", self.plan);
        self.catch_up()
    }

    fn is_writable(&self) -> bool {
        let is_gone = matches!(self.end, Some((_, End::Gone, _)));
        !is_gone && !self.has_piece && instant() >= self.full_until
    }

    /// Understands what the client has received: whole events, each once, in order, and between them keep-alives.
    fn understand(&mut self) {
        loop {
            let rest = &self.received[self.read..];
            let (is_event, expected) = match rest.first() {
                None => return,
                _ if self.read == 0 => (false, self.beginning.as_slice()),
                Some(b':') => (false, b": sse-keep-alive\n".as_slice()),
                Some(b'e') => (false, CLOSING.as_bytes()),
                Some(_) => {
                    let post = self.posts.get(self.events);
                    (true, post.unwrap_or_else(|| panic!("an event too many: {:?}", self.plan)).bytes.as_slice())
                }
            };
            let got = &rest[..rest.len().min(expected.len())];
            let text = String::from_utf8_lossy;
            assert_eq!(text(got), text(&expected[..got.len()]), "after {} events: {:?}", self.events, self.plan);
            if got.len() < expected.len() {
                return;
            }
            self.read += expected.len();
            if is_event {
                self.events += 1;
                self.active_at = instant();
            }
        }
    }
}

/// The client's end.
struct Way {
    world: Arc<Mutex<World>>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Way {
    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }
}

impl Client for Way {
    fn poll_wait(
        &mut self,
        cx: &mut Context<'_>,
        wakes: &mut [&mut dyn Wake],
        to_write: bool,
        until: Instant,
    ) -> Poll<Woken> {
        loop {
            let world = &mut *self.world.lock().unwrap();
            let now = world.touch();
            world.check();
            let mut ready = Vec::new();
            match world.end {
                Some((_, End::Gone, _)) => ready.push(Woken::HungUp),
                Some((_, End::Stopped, _)) if world.stage == Stage::Fed => ready.push(Woken::Stopped),
                _ => {}
            }
            if poll_any(cx, wakes).is_ready() {
                ready.push(Woken::Knock);
            }
            if to_write && world.is_writable() {
                ready.push(Woken::Writable);
            }
            if ready.is_empty() && now >= until {
                ready.push(Woken::Tick);
            }
            if !ready.is_empty() {
                let woken = ready[world.draw(ready.len())];
                if matches!(woken, Woken::HungUp | Woken::Stopped) {
                    world.stage = Stage::Told;
                }
                world.waits += 1;
                self.timer = None;
                return Poll::Ready(woken);
            }
            if std::mem::take(&mut world.has_piece) && to_write {
                cx.waker().wake_by_ref();
            }
            let mut next = until;
            if now < world.full_until {
                next = next.min(world.full_until);
            }
            if let Some((at, _)) = world.happenings.front() {
                next = next.min(*at);
            }
            let timer = self.timer.insert(Box::pin(sleep_until(next.into())));
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

impl Outgoing for Way {
    fn is_own(&self) -> bool {
        self.world().plan.is_own
    }

    fn is_broken(&self) -> bool {
        false
    }

    fn is_writable(&self) -> bool {
        let mut world = self.world();
        world.catch_up();
        world.is_writable()
    }

    fn write(&mut self, bytes: &[u8]) -> usize {
        let mut world = self.world();
        let now = world.touch();
        assert!(!bytes.is_empty() && world.is_writable(), "it writes nothing, or to nobody: {:?}", world.plan);
        assert!(!world.is_challenged, "it writes before it has seen who has come: {:?}", world.plan);
        let most = bytes.len().min(world.takes);
        world.received.extend_from_slice(&bytes[..most]);
        world.written.push((now, bytes[..most].to_vec()));
        world.received_at = now;
        world.has_piece = world.plan.is_own;
        world.understand();
        most
    }

    fn cut(&mut self) {
        unreachable!("a stream has no length")
    }
}

/// The store's end.
struct Source {
    world: Arc<Mutex<World>>,
    bell: Arc<Bell>,
}

impl Source {
    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    /// Goes to the disk.
    async fn go(&self) -> Result<MutexGuard<'_, World>, Error> {
        let until = {
            let mut world = self.world();
            world.touch();
            world.stalled_until
        };
        if until > instant() {
            sleep_until(until.into()).await;
        }
        let mut world = self.world();
        let now = world.catch_up();
        if world.fails == 0 {
            return Ok(world);
        }
        world.fails -= 1;
        world.failed_at = now;
        Err(Error::QueueFull(Full { limit: 0 }))
    }

    async fn standing(&self) -> Result<(MutexGuard<'_, World>, Standing), Error> {
        // One that cannot be seen goes on.
        self.world().is_challenged = false;
        let mut world = self.go().await?;
        let standing = match world.end {
            Some((_, End::Superseded, _)) => Standing::Superseded,
            Some((_, End::Over, _)) => Standing::Over,
            _ => Standing::Listening,
        };
        if standing == Standing::Superseded {
            world.stage = Stage::Told;
        }
        Ok((world, standing))
    }
}

impl Events for Source {
    fn wake(&self) -> Option<Ready<'_>> {
        Some(Ready::to_hear(&self.bell))
    }

    fn is_surely_woken(&self) -> bool {
        self.world().plan.is_surely_woken
    }

    fn hear(&mut self) -> bool {
        let mut world = self.world();
        world.touch();
        world.may_have_more = true;
        world.is_challenged |= self.bell.hear() >= TAKEOVER;
        world.is_challenged
    }

    async fn write_next(&mut self, out: &mut Vec<u8>) -> Result<bool, Error> {
        let mut world = self.go().await?;
        if !world.may_have_more {
            return Ok(false);
        }
        // None: all that was read was somebody else's.
        let count = world.draw(4).min(world.posts.len() - world.given);
        for post in &world.posts[world.given..world.given + count] {
            out.extend_from_slice(&post.bytes);
        }
        world.given += count;
        world.may_have_more = world.given < world.posts.len();
        Ok(world.may_have_more)
    }

    async fn delivered(&mut self) -> Result<(), Error> {
        let world = self.go().await?;
        assert_eq!(world.events, world.given, "what is said to be delivered: {:?}", world.plan);
        Ok(())
    }

    async fn standing(&mut self) -> Result<Standing, Error> {
        Ok(Source::standing(self).await?.1)
    }

    async fn tend(&mut self) -> Result<Standing, Error> {
        self.world().tended_at = instant();
        let (mut world, standing) = Source::standing(self).await?;
        world.may_have_more |= world.given < world.posts.len();
        if standing != Standing::Listening {
            world.stage = Stage::Told;
        }
        Ok(standing)
    }
}

/// Lets a stream live through all that is planned, as [`crate::protocol::uhst`] does.
fn live(plan: Plan) -> World {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let mut unsent = Unsent::after(0);
        let world = World::new(plan, &unsent);
        let (settings, bell) = (world.settings.clone(), Arc::clone(&world.bell));
        let world = Arc::new(Mutex::new(world));
        let mut way = Way { world: Arc::clone(&world), timer: None };
        let mut source = Source { world: Arc::clone(&world), bell };
        let end = feed(&mut way, &mut source, &mut unsent, &settings).await;
        {
            let mut world = way.world();
            world.check();
            assert_eq!(world.end.map(|(_, end, _)| end), Some(end), "{:?}", world.plan);
            world.stage = Stage::Over;
        }
        let over_at = instant();
        match end {
            End::Stopped if way.is_own() => {
                last_words(&mut way, &mut source, &mut unsent, LAST_WORDS).await;
                way.world().check_last_words(over_at);
            }
            End::Over => {
                unsent.add_event("closed", "{}");
                last_words(&mut way, &mut source, &mut unsent, Duration::ZERO).await;
            }
            _ => {}
        }
        drop((way, source));
        Arc::into_inner(world).unwrap().into_inner().unwrap()
    })
}

mod tests;
