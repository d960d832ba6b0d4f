//! What this process has heard of topics in which somebody of it waits.

use super::lock::lock;
use crate::store::made::Made;
use crate::wake::Bell;
use crate::wake::Ready;
use std::collections::{BTreeMap, VecDeque};
#[cfg(feature = "serve")]
use std::sync::atomic::AtomicBool;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};

/// So many bytes of what was heard last are kept for those that have not taken it yet. Whoever is further behind reads the log.
const KEPT: usize = 256 * 1024;

/// So much of it is given at once.
const PIECE: usize = 16 * 1024;

/// A record of a log. What a bus has no use for is empty there.
pub struct Record {
    pub id: u64,
    /// On a bus, the number of the user who said it; in a session the key of the member for which it is, or nothing where it is
    /// for all of a generation.
    pub to: String,
    pub generation: u32,
    pub event: String,
    /// The keys of those that were left out, as JSON; or nothing.
    pub except: String,
    pub data: String,
    /// What is made of it.
    pub made: Made,
}

impl Record {
    /// What a topic's channel says: after which record it comes, and the record. No part but the last has line ends in it.
    fn parse(said: &str) -> Option<(u64, Self)> {
        let mut parts = said.splitn(7, '\n');
        let mut part = || parts.next();
        let (id, before) = (part()?.parse().ok()?, part()?.parse().ok()?);
        let (to, generation) = (part()?.to_owned(), part()?.parse().ok()?);
        let (event, except, data) = (part()?.to_owned(), part()?.to_owned(), part()?.to_owned());
        Some((before, Self { id, to, generation, event, except, data, made: Made::default() }))
    }
}

/// The topics in which somebody of this process waits, by their channel.
#[derive(Default)]
pub struct Topics(Mutex<BTreeMap<String, Weak<Topic>>>);

impl Topics {
    /// One of them, if somebody waits there.
    #[cfg(feature = "serve")]
    pub fn get(&self, channel: &str) -> Option<Arc<Topic>> {
        lock(&self.0).get(channel).and_then(Weak::upgrade)
    }

    /// A place in one of them, by a name there.
    pub fn enter(&self, channel: &str, name: &str) -> Place {
        let mut topics = lock(&self.0);
        let topic = topics.get(channel).and_then(Weak::upgrade).unwrap_or_else(|| {
            topics.retain(|_, topic| topic.strong_count() > 0);
            let topic = Arc::new(Topic::new(channel));
            topics.insert(channel.to_owned(), Arc::downgrade(&topic));
            topic
        });
        Place::of(topic, name)
    }
}

/// What is rung for somebody whose place is taken. Nothing else is rung so often, before it is heard, that it becomes that.
const TAKEOVER: u64 = 1 << 32;

/// Somebody who waits in a topic.
pub struct Sleeper {
    /// What says for whom a record is: of a member its key; of a reader of a bus nothing.
    name: String,
    bell: Bell,
    /// What is said of it when the topic is tended, and in which stream it listens, once it does.
    pub line: OnceLock<(u32, Vec<String>)>,
    /// What was found when the topic was tended last.
    pub standing: AtomicU8,
    /// Up to where it was given the log of a session, and what of that Redis has noted.
    given: AtomicU64,
    noted: AtomicU64,
}

impl Sleeper {
    /// Begins after this record, as is noted.
    pub fn begin_at(&self, position: u64) {
        self.give(position);
        self.note(position);
    }

    /// It was given everything up to this record.
    pub fn give(&self, position: u64) {
        self.given.store(position, Ordering::Relaxed);
    }

    /// What is to be noted of that: its name, its stream, and how far.
    pub fn unnoted(&self) -> Option<(&str, u32, u64)> {
        let (stream, _) = self.line.get()?;
        let given = self.given.load(Ordering::Relaxed);
        (given > self.noted.load(Ordering::Relaxed)).then_some((&self.name, *stream, given))
    }

    /// That is noted up to this record.
    pub fn note(&self, position: u64) {
        self.noted.fetch_max(position, Ordering::Relaxed);
    }

    /// What is rung for it.
    pub fn wake(&self) -> Ready<'_> {
        Ready::to_hear(&self.bell)
    }

    /// Hears what was rung. Whether its place was taken.
    pub fn hear(&self) -> bool {
        self.bell.hear() >= TAKEOVER
    }

    /// The same. Whether anything was.
    pub fn is_called(&self) -> bool {
        self.bell.hear() > 0
    }
}

/// The place of somebody who waits in a topic. It goes with this.
pub struct Place {
    pub topic: Arc<Topic>,
    pub sleeper: Arc<Sleeper>,
    number: u64,
}

impl Place {
    /// In a topic that nobody else of this process has.
    pub fn alone(channel: &str, name: &str) -> Self {
        Self::of(Arc::new(Topic::new(channel)), name)
    }

    fn of(topic: Arc<Topic>, name: &str) -> Self {
        let (name, bell) = (name.to_owned(), Bell::default());
        let (given, noted) = (AtomicU64::default(), AtomicU64::default());
        let sleeper = Arc::new(Sleeper { name, bell, line: OnceLock::new(), standing: AtomicU8::new(0), given, noted });
        let mut sleepers = lock(&topic.sleepers);
        let number = sleepers.last_key_value().map_or(0, |(number, _)| number + 1);
        sleepers.insert(number, sleeper.clone());
        drop(sleepers);
        Self { topic, sleeper, number }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.topic.sleepers).remove(&self.number);
    }
}

/// A topic in which somebody of this process waits.
pub struct Topic {
    /// Where each record is told.
    pub channel: String,
    heard: Mutex<Heard>,
    /// Those that wait, by a number of their own.
    sleepers: Mutex<BTreeMap<u64, Arc<Sleeper>>>,
    /// Whether a task looks after it.
    #[cfg(feature = "serve")]
    pub is_kept: AtomicBool,
    /// What is rung for that task: nothing is told any more, or nobody waits.
    #[cfg(feature = "serve")]
    pub call: Arc<Bell>,
    #[cfg(feature = "serve")]
    pub notes: Notes,
}

/// When it is noted how far those that wait were given the log. What many are given is noted together.
#[cfg(feature = "serve")]
#[derive(Default)]
pub struct Notes {
    /// Whether a task will note what is given from now on.
    pub are_due: AtomicBool,
    /// Rung where so much was given that it must not wait.
    pub are_many: Bell,
}

/// What was heard, without a gap.
#[derive(Default)]
struct Heard {
    records: VecDeque<Arc<Record>>,
    bytes: usize,
    /// After which record they come; `None` where that is not known, and there are none.
    after: Option<u64>,
    /// Whether each new record is told; and since when none was missed, as a number.
    is_listening: bool,
    since: u64,
    /// What the topic's first number is, as was seen last: another one is another topic, and none is no topic.
    first: Option<u64>,
}

impl Heard {
    fn last(&self) -> Option<u64> {
        self.records.back().map(|record| record.id).or(self.after)
    }

    fn forget(&mut self) {
        (self.bytes, self.after) = (0, None);
        self.since += 1;
        self.records.clear();
    }
}

#[cfg(feature = "serve")]
impl Drop for Topic {
    fn drop(&mut self) {
        self.call.ring(1);
    }
}

impl Topic {
    fn new(channel: &str) -> Self {
        Self {
            channel: channel.to_owned(),
            heard: Mutex::default(),
            sleepers: Mutex::default(),
            #[cfg(feature = "serve")]
            is_kept: AtomicBool::default(),
            #[cfg(feature = "serve")]
            call: Arc::default(),
            #[cfg(feature = "serve")]
            notes: Notes::default(),
        }
    }

    /// Those that wait.
    pub fn sleepers(&self) -> Vec<Arc<Sleeper>> {
        lock(&self.sleepers).values().cloned().collect()
    }

    /// Those of this name.
    #[cfg(feature = "serve")]
    pub fn sleepers_of(&self, name: &str) -> Vec<Arc<Sleeper>> {
        lock(&self.sleepers).values().filter(|sleeper| sleeper.name == name).cloned().collect()
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        lock(&self.sleepers).len()
    }

    /// Wakes those that wait, of those that it is for.
    fn ring(&self, cause: u64, is_for: impl Fn(&Sleeper) -> bool) {
        lock(&self.sleepers).values().filter(|sleeper| is_for(sleeper)).for_each(|sleeper| sleeper.bell.ring(cause));
    }

    /// Takes what the channel has said.
    pub fn hear(&self, said: &str) {
        if said.is_empty() {
            // There is something to look at elsewhere.
            return self.ring(1, |_| true);
        }
        if let Some((key, stream)) = said.strip_prefix("!\n").and_then(|taken| taken.split_once('\n')) {
            let is_taken = |(own, _): &(u32, _)| stream.parse().is_ok_and(|stream: u32| *own < stream);
            return self.ring(TAKEOVER, |sleeper| sleeper.name == key && sleeper.line.get().is_some_and(is_taken));
        }
        let Some((before, record)) = Record::parse(said) else { return };
        let mut heard = lock(&self.heard);
        let last = heard.last();
        if last.is_some_and(|last| record.id <= last) {
            // Two connections have told it, or it was read already.
            return;
        }
        // What a program for one stream is not told was mostly for others.
        let is_missing = last.is_some_and(|last| last != before);
        if is_missing {
            heard.forget();
        }
        heard.after.get_or_insert(before);
        let record = Arc::new(record);
        heard.bytes += record.data.len();
        heard.records.push_back(record.clone());
        while heard.bytes > KEPT
            && let Some(first) = heard.records.pop_front()
        {
            heard.bytes -= first.data.len();
            heard.after = Some(first.id);
        }
        drop(heard);
        self.ring(1, |sleeper| {
            is_missing || sleeper.name.is_empty() || record.to.is_empty() || sleeper.name == record.to
        });
    }

    /// From now on each new record is told, or is not any more.
    pub fn note_listening(&self, is_listening: bool) {
        let mut heard = lock(&self.heard);
        heard.is_listening = is_listening;
        heard.forget();
        drop(heard);
        #[cfg(feature = "serve")]
        self.call.ring(1);
        self.ring(1, |_| true);
    }

    /// Since when each new record is told and none was missed, as a number; `None` where they are not told.
    pub fn listening_since(&self) -> Option<u64> {
        let heard = lock(&self.heard);
        heard.is_listening.then_some(heard.since)
    }

    /// Notes that a look has found this record to be the last.
    pub fn note_last(&self, last: u64) {
        if lock(&self.heard).last().is_some_and(|known| known < last) {
            // It was not told, or is on its way: whoever waits looks.
            self.forget();
            self.ring(1, |_| true);
        }
    }

    /// Forgets what was heard, so that the log is read.
    pub fn forget(&self) {
        lock(&self.heard).forget();
    }

    /// Whether this first number is the topic's, as was seen last.
    pub fn is(&self, first: u64) -> bool {
        lock(&self.heard).first == Some(first)
    }

    /// Notes what it is; whoever waits is woken to see that it is another.
    pub fn note_first(&self, first: Option<u64>) {
        if std::mem::replace(&mut lock(&self.heard).first, first) != first {
            self.ring(1, |_| true);
        }
    }

    /// Gives the next of what comes after this number, and whether there is more; `None` where the log has to be read.
    pub fn after(&self, position: u64) -> Option<(Vec<Arc<Record>>, bool)> {
        let heard = lock(&self.heard);
        heard.after.filter(|after| *after <= position && heard.is_listening)?;
        let start = heard.records.partition_point(|record| record.id <= position);
        let (mut some, mut bytes) = (Vec::new(), 0);
        for record in heard.records.range(start..) {
            if bytes > PIECE {
                return Some((some, true));
            }
            bytes += record.data.len();
            some.push(record.clone());
        }
        Some((some, false))
    }

    /// Notes that the log was read to its end, with this number, and that each new record was told since before that.
    pub fn note_end(&self, end: u64, since: u64) {
        let mut heard = lock(&self.heard);
        if heard.is_listening && heard.since == since {
            heard.after.get_or_insert(end);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(topic: &Topic, position: u64) -> Option<Vec<u64>> {
        topic.after(position).map(|(records, _)| records.iter().map(|record| record.id).collect())
    }

    fn say(topic: &Topic, before: u64, id: u64, to: &str) {
        topic.hear(&format!("{id}\n{before}\n{to}\n1\nmessage\n\n\"a b\"\n"));
    }

    fn since(topic: &Topic) -> u64 {
        topic.listening_since().unwrap()
    }

    #[test]
    fn what_was_told_is_given_once_it_is_known_what_came_before() {
        let topic = Topic::new("a");
        topic.note_listening(true);
        assert_eq!(told(&topic, 4), None, "something may have come before it was told");
        topic.note_end(4, since(&topic) - 1);
        assert_eq!(told(&topic, 4), None, "something may have come before it was told");
        topic.note_end(4, since(&topic));
        assert_eq!(told(&topic, 4), Some(vec![]));
        assert_eq!(told(&topic, 3), None);
        for (before, id) in [(4, 6), (6, 7), (6, 7), (4, 6)] {
            say(&topic, before, id, "2");
            assert_eq!(told(&topic, 4).unwrap()[0], 6);
        }
        assert_eq!(told(&topic, 5), Some(vec![6, 7]));
        assert_eq!(told(&topic, 7), Some(vec![]));
        topic.note_last(7);
        assert_eq!(told(&topic, 7), Some(vec![]));
        let before = since(&topic);
        topic.note_last(8);
        assert_eq!(told(&topic, 7), None, "one was not told");
        topic.note_end(7, before);
        assert_eq!(told(&topic, 7), None, "it was read before that");
        topic.note_end(8, since(&topic));
        assert_eq!(told(&topic, 8), Some(vec![]));
        let before = since(&topic);
        topic.note_listening(false);
        topic.note_end(8, before);
        assert_eq!((told(&topic, 8), topic.listening_since()), (None, None), "nothing is told");
    }

    #[test]
    fn a_record_that_was_not_told_is_missed_when_the_next_is() {
        let topics = Topics::default();
        let place = topics.enter("a", "cc");
        let topic = &place.topic;
        topic.note_listening(true);
        place.sleeper.hear();
        topic.note_end(4, since(topic));
        say(topic, 4, 5, "cd");
        assert!(!place.sleeper.wake().is_ready());
        let before = since(topic);
        say(topic, 6, 7, "cd");
        assert!(place.sleeper.wake().is_ready(), "the one that is missing may be its");
        topic.note_end(4, before);
        assert_eq!((told(topic, 4), told(topic, 5)), (None, None));
        say(topic, 7, 8, "cd");
        assert_eq!(told(topic, 6), Some(vec![7, 8]));
    }

    #[test]
    fn what_is_kept_of_it_is_little() {
        let topic = Topic::new("a");
        topic.note_listening(true);
        topic.note_end(0, since(&topic));
        let data = "1".repeat(1000);
        for id in 1..=1000 {
            topic.hear(&format!("{id}\n{}\n2\n0\n\n\n{data}", id - 1));
        }
        assert_eq!(told(&topic, 0), None);
        let (some, has_more) = topic.after(900).unwrap();
        assert!(some.len() < 20 && has_more);
    }

    #[test]
    fn only_those_are_woken_that_it_is_for() {
        let topics = Topics::default();
        let [c, d] = ["cc", "cd"].map(|name| topics.enter("a", name));
        let are_woken = || [&c, &d].map(|place| place.sleeper.wake().is_ready());
        say(&c.topic, 0, 1, "cd");
        assert_eq!(are_woken(), [false, true]);
        say(&c.topic, 1, 2, "");
        assert_eq!(are_woken(), [true; 2]);
        assert!(!c.sleeper.hear() && !d.sleeper.hear());
        for (place, stream) in [(&c, 1), (&d, 2)] {
            place.sleeper.line.set((stream, Vec::new())).unwrap();
        }
        c.topic.hear("!\ncd\n2");
        assert_eq!(are_woken(), [false; 2], "it is its own");
        c.topic.hear("!\ncc\n2");
        assert_eq!(are_woken(), [true, false]);
        assert!(c.sleeper.hear());
    }
}
