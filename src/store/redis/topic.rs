//! What this process has heard of topics in which somebody of it waits.

use super::lock::lock;
use crate::store::made::Made;
use crate::wake::Bell;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, Weak};

/// So many bytes of what was heard last are kept for those that have not taken it yet. Whoever is further behind reads the log.
const KEPT: usize = 256 * 1024;

/// So much of it is given at once.
const PIECE: usize = 16 * 1024;

/// A record of a log.
pub struct Record {
    pub id: u64,
    pub user: u64,
    pub data: String,
    /// What is made of it.
    pub made: Made,
}

impl Record {
    /// What a topic's channel says: the number of a record and that of the one before it, who said it, and what.
    pub fn parse(said: &str) -> Option<(u64, Self)> {
        let mut parts = said.splitn(4, ' ');
        let id = parts.next()?.parse().ok()?;
        let before = parts.next()?.parse().ok()?;
        let user = parts.next()?.parse().ok()?;
        let data = parts.next()?.to_owned();
        Some((before, Self { id, user, data, made: Made::default() }))
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

    /// A place in one of them.
    pub fn enter(&self, channel: &str) -> Place {
        let mut topics = lock(&self.0);
        let topic = topics.get(channel).and_then(Weak::upgrade).unwrap_or_else(|| {
            topics.retain(|_, topic| topic.strong_count() > 0);
            let topic = Arc::new(Topic::new(channel));
            topics.insert(channel.to_owned(), Arc::downgrade(&topic));
            topic
        });
        Place::of(topic)
    }
}

/// The place of somebody who waits in a topic. It goes with this.
pub struct Place {
    pub topic: Arc<Topic>,
    /// What is rung for it.
    pub bell: Arc<Bell>,
    number: u64,
}

impl Place {
    fn of(topic: Arc<Topic>) -> Self {
        let bell = Arc::new(Bell::default());
        let mut bells = lock(&topic.bells);
        let number = bells.last_key_value().map_or(0, |(number, _)| number + 1);
        bells.insert(number, bell.clone());
        drop(bells);
        Self { topic, bell, number }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.topic.bells).remove(&self.number);
    }
}

/// A topic in which somebody of this process waits.
pub struct Topic {
    /// Where each record is told.
    pub channel: String,
    heard: Mutex<Heard>,
    /// Those that wait, by a number of their own.
    bells: Mutex<BTreeMap<u64, Arc<Bell>>>,
    /// Whether a task looks after it.
    #[cfg(feature = "serve")]
    pub is_kept: std::sync::atomic::AtomicBool,
}

/// What was heard, without a gap.
#[derive(Default)]
struct Heard {
    records: VecDeque<Arc<Record>>,
    bytes: usize,
    /// After which record they come; `None` where that is not known, because nobody has listened.
    after: Option<u64>,
    /// Whether each new record is told; and since when, as a number.
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
        self.records.clear();
    }
}

impl Topic {
    fn new(channel: &str) -> Self {
        Self {
            channel: channel.to_owned(),
            heard: Mutex::default(),
            bells: Mutex::default(),
            #[cfg(feature = "serve")]
            is_kept: std::sync::atomic::AtomicBool::default(),
        }
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        lock(&self.bells).len()
    }

    /// Wakes all that wait.
    pub fn ring(&self) {
        lock(&self.bells).values().for_each(|bell| bell.ring(1));
    }

    /// Takes what the channel has said.
    pub fn hear(&self, said: &str) {
        let Some((before, record)) = Record::parse(said) else { return };
        let mut heard = lock(&self.heard);
        if heard.last().is_some_and(|last| record.id <= last) {
            // Two connections have told it.
            return;
        }
        if heard.last() != Some(before) {
            heard.forget();
            heard.after = Some(before);
        }
        heard.bytes += record.data.len();
        heard.records.push_back(Arc::new(record));
        while heard.bytes > KEPT
            && let Some(first) = heard.records.pop_front()
        {
            heard.bytes -= first.data.len();
            heard.after = Some(first.id);
        }
        drop(heard);
        self.ring();
    }

    /// From now on each new record is told, or is not any more.
    pub fn note_listening(&self, is_listening: bool) {
        let mut heard = lock(&self.heard);
        heard.is_listening = is_listening;
        heard.since += 1;
        heard.forget();
        drop(heard);
        self.ring();
    }

    /// Since when each new record is told, as a number; `None` where it is not.
    pub fn listening_since(&self) -> Option<u64> {
        let heard = lock(&self.heard);
        heard.is_listening.then_some(heard.since)
    }

    /// Notes that a look has found this record to be the last.
    pub fn note_last(&self, last: u64) {
        let mut heard = lock(&self.heard);
        if heard.last().is_some_and(|known| known < last) {
            // It was not told, or is on its way: whoever waits looks.
            heard.forget();
            drop(heard);
            self.ring();
        }
    }

    /// Whether this first number is the topic's, as was seen last.
    pub fn is(&self, first: u64) -> bool {
        lock(&self.heard).first == Some(first)
    }

    /// Notes what it is; whoever waits is woken to see that it is another.
    pub fn note_first(&self, first: Option<u64>) {
        if std::mem::replace(&mut lock(&self.heard).first, first) != first {
            self.ring();
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
        if heard.is_listening && heard.since == since && heard.after.is_none() {
            heard.after = Some(end);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(topic: &Topic, position: u64) -> Option<Vec<u64>> {
        topic.after(position).map(|(records, _)| records.iter().map(|record| record.id).collect())
    }

    #[test]
    fn what_was_told_is_given_as_long_as_there_is_no_gap() {
        let topic = Topic::new("a");
        topic.note_listening(true);
        let since = topic.listening_since().unwrap();
        assert_eq!(told(&topic, 5), None, "nobody knows what came before");
        topic.note_end(5, since - 1);
        assert_eq!(told(&topic, 5), None, "something may have come before it was told");
        topic.note_end(5, since);
        assert_eq!(told(&topic, 5), Some(vec![]));
        assert_eq!(told(&topic, 4), None);
        topic.hear("7 5 2 \"a b\"");
        topic.hear("7 5 2 \"a b\"");
        topic.hear("9 7 2 1");
        assert_eq!(told(&topic, 5), Some(vec![7, 9]));
        assert_eq!(told(&topic, 7), Some(vec![9]));
        topic.hear("20 15 2 1");
        assert_eq!((told(&topic, 9), told(&topic, 15)), (None, Some(vec![20])));
        topic.note_last(20);
        assert_eq!(told(&topic, 20), Some(vec![]));
        topic.note_last(21);
        assert_eq!(told(&topic, 20), None, "one was not told");
        topic.hear("22 21 2 1");
        topic.note_listening(false);
        assert_eq!(told(&topic, 22), None);
        topic.note_end(22, since);
        assert_eq!((told(&topic, 22), topic.listening_since()), (None, None), "nothing is told");
    }

    #[test]
    fn what_is_kept_of_it_is_little() {
        let topic = Topic::new("a");
        topic.note_listening(true);
        topic.note_end(0, topic.listening_since().unwrap());
        let data = "1".repeat(1000);
        for id in 1..=1000 {
            topic.hear(&format!("{id} {} 2 {data}", id - 1));
        }
        assert_eq!(told(&topic, 0), None);
        let (some, has_more) = topic.after(900).unwrap();
        assert!(some.len() < 20 && has_more);
    }
}
