//! Decides from a history whether the relay has kept its promises.

use crate::history::{Connection, Heard, History, Log, Outcome, Reader, Said, Send, Sender, Time};
use std::cmp::Reverse;
use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

/// A promise that was broken, with what shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// Answered 200, and not seen by someone who was there for it.
    Lost { reader: Reader, sender: Sender, n: u32 },
    /// Seen more than once.
    Twice { reader: Reader, sender: Sender, n: u32 },
    /// Seen although it was refused, or by someone it was not for, or never sent at all.
    Uncalled { reader: Reader, sender: Sender, n: u32 },
    /// Seen after a later one of the same sender.
    Disorder { reader: Reader, sender: Sender, n: u32, after: u32 },
    /// An event's id is not above the one before it.
    Ids { reader: Reader, before: u64, id: u64 },
    /// Two readers of a bus, or a reader and the sender, have different ids for one message.
    TwoIds { sender: Sender, n: u32, one: u64, other: u64 },
    /// Two readers of a bus have different messages under one id.
    OneId { id: u64, one: (Sender, u32), other: (Sender, u32) },
    /// Said to have left although it has not, for a while. (Twice for one time is allowed: whoever tells may be killed meanwhile.)
    Closed { told: Reader, about: Reader, at: Time },
    /// Left for good, and a peer was not told.
    Untold { told: Reader, about: Reader },
    /// Answered 200 for a reader that had left long before.
    Believed { reader: Reader, sender: Sender, n: u32 },
    /// Its stream was still there long after a newer one had taken its place.
    Outlived { reader: Reader, at: Time },
    /// Was told that it has missed something, although it has not.
    Unfounded { reader: Reader, at: Time },
    /// Was left out, as the answer says, and was not told so.
    Unsaid { reader: Reader, sender: Sender, n: u32 },
    /// Came back in time and was refused.
    TurnedAway { reader: Reader, at: Time, status: u16 },
}

impl Broken {
    /// Whether what is under way, or about to be written down, may still make it good.
    fn may_get_better(&self) -> bool {
        matches!(
            self,
            Self::Lost { .. }
                | Self::Untold { .. }
                | Self::Uncalled { .. }
                | Self::Closed { .. }
                | Self::Unfounded { .. }
                | Self::Unsaid { .. }
        )
    }
}

/// What a check has found.
#[derive(Debug, Default)]
pub struct Verdict {
    pub broken: Vec<Broken>,
    /// Deliveries that were promised, and those that came.
    pub promised: usize,
    pub seen: usize,
    /// Promised, not seen, and not held against the relay: its reader was not there for long enough within the message's lifetime.
    pub excused: usize,
    /// Those for which most of that was, and how much.
    pub absent: Vec<(Reader, usize)>,
}

impl Verdict {
    /// Whether something is broken for good.
    pub fn is_final(&self) -> bool {
        self.broken.iter().any(|broken| !broken.may_get_better())
    }

    /// Whether something is broken that waiting may mend.
    pub fn may_get_better(&self) -> bool {
        self.broken.iter().any(Broken::may_get_better)
    }
}

/// How long after its end, at most, a reader notes that its stream has ended: it may have slept, and the machine may be busy.
const NOTED_WITHIN: Duration = Duration::from_secs(5);

/// How long after a reader has left its peers must know. A killed stream is noticed within a few seconds.
const KNOWN_WITHIN: Duration = Duration::from_secs(12);

/// How long a reader must have been connected, in sum, within a message's lifetime.
const THERE_FOR: Duration = Duration::from_secs(3);

impl History {
    /// Checks everything. `lifetime` is how long the relay keeps a message.
    pub fn check(&self, lifetime: Duration) -> Verdict {
        let mut verdict = Verdict::default();
        let sends: HashMap<(Sender, u32), &Send> =
            self.sends.iter().map(|send| ((send.sender, send.n), send)).collect();
        let mut seen: HashMap<(Reader, Sender, u32), usize> = HashMap::new();
        let mut messages: HashMap<(usize, u64), (Sender, u32)> = HashMap::new();
        let mut ids: HashMap<(Sender, u32), u64> =
            self.sends.iter().filter_map(|send| Some(((send.sender, send.n), send.id?))).collect();
        for (reader, log) in self.readers.iter().enumerate() {
            verdict.broken.extend(log.turned_away.iter().map(|&(at, status)| Broken::TurnedAway {
                reader,
                at,
                status,
            }));
            verdict.broken.extend(log.outlived.iter().map(|&at| Broken::Outlived { reader, at }));
            self.check_order(reader, log, &sends, &mut verdict);
            self.check_leaving(reader, log, &mut verdict);
            self.check_missing(reader, log, lifetime, &mut verdict);
            for heard in &log.heard {
                let Said::Message { sender, n } = heard.said else { continue };
                *seen.entry((reader, sender, n)).or_default() += 1;
                if let (Some(bus), Some(id)) = (log.bus, heard.id) {
                    let one = *messages.entry((bus, id)).or_insert((sender, n));
                    if one != (sender, n) {
                        verdict.broken.push(Broken::OneId { id, one, other: (sender, n) });
                    }
                    let one = *ids.entry((sender, n)).or_insert(id);
                    if one != id {
                        verdict.broken.push(Broken::TwoIds { sender, n, one, other: id });
                    }
                }
            }
        }
        for (&(reader, sender, n), &times) in &seen {
            let is_for = |send: &&Send| send.must.contains(&reader) || send.may.contains(&reader);
            if !sends.get(&(sender, n)).is_some_and(is_for) {
                verdict.broken.push(Broken::Uncalled { reader, sender, n });
            } else if times > 1 {
                verdict.broken.push(Broken::Twice { reader, sender, n });
            }
        }
        let mut absent = vec![0; self.readers.len()];
        for send in &self.sends {
            for &reader in &send.must {
                verdict.promised += 1;
                if self.readers[reader].left.is_some_and(|left| send.begun > left + KNOWN_WITHIN) {
                    verdict.broken.push(Broken::Believed { reader, sender: send.sender, n: send.n });
                }
                if seen.contains_key(&(reader, send.sender, send.n)) {
                    verdict.seen += 1;
                } else if self.readers[reader].was_there(send, lifetime) {
                    verdict.broken.push(Broken::Lost { reader, sender: send.sender, n: send.n });
                } else {
                    verdict.excused += 1;
                    absent[reader] += 1;
                }
            }
        }
        verdict.absent = absent.into_iter().enumerate().collect();
        verdict.absent.sort_by_key(|(_, count)| Reverse(*count));
        verdict.absent.truncate(10);
        verdict
    }

    fn check_order(&self, reader: Reader, log: &Log, sends: &HashMap<(Sender, u32), &Send>, verdict: &mut Verdict) {
        // What its sender gave up may have been under way to the store yet.
        let may_be_late =
            |sender, n| self.is_remote && sends.get(&(sender, n)).is_some_and(|send| send.outcome != Outcome::Accepted);
        let mut last_id = None;
        let mut last_of: HashMap<Sender, u32> = HashMap::new();
        for heard in &log.heard {
            if let (Some(before), Some(id)) = (last_id, heard.id)
                && id <= before
            {
                verdict.broken.push(Broken::Ids { reader, before, id });
            }
            last_id = heard.id.or(last_id);
            match heard.said {
                Said::Message { sender, n } => {
                    if let Some(&after) = last_of.get(&sender)
                        && after > n
                        && !may_be_late(sender, n)
                    {
                        verdict.broken.push(Broken::Disorder { reader, sender, n, after });
                    }
                    last_of.insert(sender, n);
                }
                Said::Missed => {}
                // The last word of a stream whose session is over, which no queue has: it may say it once more.
                Said::Closed(_) if heard.id.is_none() => {}
                Said::Closed(about) => {
                    let recently = |one: &Connection| {
                        one.closed <= heard.at + NOTED_WITHIN && one.closed + KNOWN_WITHIN >= heard.at
                    };
                    if !self.readers[about].connections.iter().any(recently) {
                        verdict.broken.push(Broken::Closed { told: reader, about, at: heard.at });
                    }
                }
            }
        }
    }

    /// Whoever is left out is told so; and whoever is told so was left out, or has come back after the id of something that is
    /// not kept any more.
    fn check_missing(&self, reader: Reader, log: &Log, lifetime: Duration, verdict: &mut Verdict) {
        let told: Vec<Time> =
            log.heard.iter().filter(|heard| heard.said == Said::Missed).map(|heard| heard.at).collect();
        let left_out: Vec<&Send> = self.sends.iter().filter(|send| send.without.contains(&reader)).collect();
        for send in &left_out {
            // One event may tell of several.
            if log.was_there(send, lifetime) && !told.iter().any(|at| *at + KNOWN_WITHIN >= send.begun) {
                verdict.broken.push(Broken::Unsaid { reader, sender: send.sender, n: send.n });
            }
        }
        let is_old = |at: Time| {
            let one = log.connections.iter().rfind(|one| one.opened <= at);
            // A connection that is still there is noted at its end only.
            let after = one.is_none_or(|one| one.closed + NOTED_WITHIN < at);
            after || one.is_some_and(|one| one.resumed_from + lifetime / 2 <= one.opened)
        };
        for at in told {
            if !left_out.iter().any(|send| send.begun <= at) && !is_old(at) {
                verdict.broken.push(Broken::Unfounded { reader, at });
            }
        }
    }

    fn check_leaving(&self, about: Reader, log: &Log, verdict: &mut Verdict) {
        let Some(left) = log.left else { return };
        // Its last stream may have been killed before: it notes that when it looks.
        let left = log.connections.last().map_or(left, |last| last.opened);
        for &told in &log.peers {
            let peer = &self.readers[told];
            let is_it = |heard: &Heard| heard.said == Said::Closed(about) && heard.at >= left;
            if peer.left.is_none() && !peer.heard.iter().any(is_it) {
                verdict.broken.push(Broken::Untold { told, about });
            }
        }
    }

    /// One broken promise of each kind, for people: the one that takes the fewest lines to tell.
    pub fn most_telling<'a>(&self, verdict: &'a Verdict) -> Vec<&'a Broken> {
        const TRIES: usize = 30;
        let mut kinds: Vec<Vec<&Broken>> = Vec::new();
        for broken in &verdict.broken {
            let is_same = |kind: &&mut Vec<&Broken>| std::mem::discriminant(kind[0]) == std::mem::discriminant(broken);
            match kinds.iter_mut().find(is_same) {
                Some(kind) => kind.push(broken),
                None => kinds.push(vec![broken]),
            }
        }
        let shortest =
            |kind: Vec<&'a Broken>| kind.into_iter().take(TRIES).min_by_key(|broken| self.show(broken).lines().count());
        kinds.into_iter().filter_map(shortest).collect()
    }

    fn reader(&self, reader: Reader) -> &str {
        &self.readers[reader].name
    }

    fn message(&self, sender: Sender, n: u32) -> String {
        format!("message {n} of {}", self.senders.get(sender).map_or("nobody", String::as_str))
    }

    /// What was broken, in a sentence.
    fn say(&self, broken: &Broken) -> String {
        match *broken {
            Broken::Lost { reader, sender, n } => {
                format!("LOST: {} never saw {}, which was answered 200.", self.reader(reader), self.message(sender, n))
            }
            Broken::Twice { reader, sender, n } => {
                format!("TWICE: {} saw {} more than once.", self.reader(reader), self.message(sender, n))
            }
            Broken::Uncalled { reader, sender, n } => format!(
                "UNCALLED: {} saw {}, which was refused, or not for it, or never sent.",
                self.reader(reader),
                self.message(sender, n)
            ),
            Broken::Disorder { reader, sender, n, after } => {
                format!("DISORDER: {} saw {} after message {after}.", self.reader(reader), self.message(sender, n))
            }
            Broken::Ids { reader, before, id } => {
                format!("IDS: {} was given the id {id} after {before}.", self.reader(reader))
            }
            Broken::TwoIds { sender, n, one, other } => {
                format!("TWO IDS: {} has the id {one} for some and {other} for others.", self.message(sender, n))
            }
            Broken::OneId { id, one, other } => format!(
                "ONE ID: {id} is {} for some and {} for others.",
                self.message(one.0, one.1),
                self.message(other.0, other.1)
            ),
            Broken::Closed { told, about, at } => format!(
                "CLOSED: {} was told at {} that {} had left, which had not for a while.",
                self.reader(told),
                seconds(at),
                self.reader(about)
            ),
            Broken::Untold { told, about } => {
                format!("UNTOLD: {} left for good, and {} was not told.", self.reader(about), self.reader(told))
            }
            Broken::Believed { reader, sender, n } => format!(
                "BELIEVED: {} was answered 200 for {}, which had left long before.",
                self.message(sender, n),
                self.reader(reader)
            ),
            Broken::Outlived { reader, at } => {
                format!(
                    "OUTLIVED: a stream of {} was still there at {} although a newer one had taken its place.",
                    self.reader(reader),
                    seconds(at)
                )
            }
            Broken::Unfounded { reader, at } => format!(
                "UNFOUNDED: {} was told at {} that it has missed something, and it has not.",
                self.reader(reader),
                seconds(at)
            ),
            Broken::Unsaid { reader, sender, n } => format!(
                "UNSAID: {} was left out of {}, and not told that it has missed something.",
                self.reader(reader),
                self.message(sender, n)
            ),
            Broken::TurnedAway { reader, at, status } => {
                format!("TURNED AWAY: {} came back in time, at {}, and got {status}.", self.reader(reader), seconds(at))
            }
        }
    }

    /// The part of the history that shows it, in the order of time: the messages around it, and where whoever it is about was
    /// meanwhile.
    pub fn show(&self, broken: &Broken) -> String {
        let (readers, messages) = match *broken {
            Broken::Lost { reader, sender, n }
            | Broken::Twice { reader, sender, n }
            | Broken::Uncalled { reader, sender, n }
            | Broken::Unsaid { reader, sender, n }
            | Broken::Believed { reader, sender, n } => (vec![reader], vec![(sender, n)]),
            Broken::Disorder { reader, sender, n, after } => (vec![reader], vec![(sender, n), (sender, after)]),
            Broken::OneId { one, other, .. } => (vec![], vec![one, other]),
            Broken::TwoIds { sender, n, .. } => (vec![], vec![(sender, n)]),
            Broken::Ids { reader, .. }
            | Broken::TurnedAway { reader, .. }
            | Broken::Unfounded { reader, .. }
            | Broken::Outlived { reader, .. } => (vec![reader], vec![]),
            Broken::Closed { told, about, .. } | Broken::Untold { told, about } => (vec![about, told], vec![]),
        };
        let mut lines: Vec<(Time, String)> = Vec::new();
        for send in self.sends.iter().filter(|send| messages.contains(&(send.sender, send.n))) {
            let answer = match send.outcome {
                Outcome::Accepted => "answered 200".to_owned(),
                Outcome::Refused(status) => format!("answered {status}"),
                Outcome::Unknown => "not answered: killed".to_owned(),
            };
            let id = send.id.map_or(String::new(), |id| format!(", id {id}"));
            lines.push((send.begun, format!("{} is sent", self.message(send.sender, send.n))));
            lines.push((send.ended, format!("{} is {answer}{id}", self.message(send.sender, send.n))));
        }
        // Of the events, those that it is about; of those about a reader only, the ones around the break.
        let is_event = |reader: Reader, heard: &Heard| match (*broken, &heard.said) {
            (Broken::Ids { before, id, .. }, _) => heard.id == Some(id) || heard.id == Some(before),
            (Broken::Closed { told, about, at }, said) => {
                reader == told && *said == Said::Closed(about) && heard.at.abs_diff(at) < KNOWN_WITHIN
            }
            (Broken::Untold { told, about }, said) => reader == told && *said == Said::Closed(about),
            (Broken::Unfounded { reader: told, at }, Said::Missed) => reader == told && heard.at == at,
            (_, Said::Message { sender, n }) => messages.contains(&(*sender, *n)),
            _ => false,
        };
        for (reader, log) in self.readers.iter().enumerate() {
            let around = if readers.contains(&reader) { log.around(&self.sends, &messages) } else { Vec::new() };
            for heard in log.heard.iter().filter(|heard| is_event(reader, heard)).chain(around) {
                let id = heard.id.map_or("without an id".to_owned(), |id| format!("id {id}"));
                let what = match heard.said {
                    Said::Message { sender, n } => self.message(sender, n),
                    Said::Closed(about) => format!("that {} has left", self.reader(about)),
                    Said::Missed => "that it has missed something".to_owned(),
                };
                lines.push((heard.at, format!("{} hears {what}, {id}", log.name)));
            }
        }
        let at = match *broken {
            Broken::Closed { at, .. }
            | Broken::Outlived { at, .. }
            | Broken::Unfounded { at, .. }
            | Broken::TurnedAway { at, .. } => Some(at),
            Broken::Untold { about, .. } => self.readers[about].left,
            _ => None,
        };
        let from = lines.iter().map(|line| line.0).chain(at).min().unwrap_or_default();
        let to = lines.iter().map(|line| line.0).chain(at).max().unwrap_or_default();
        let margin = Duration::from_secs(3);
        for reader in readers {
            let log = &self.readers[reader];
            let is_near = |one: &&Connection| one.opened <= to + margin && one.closed + margin >= from;
            for one in log.connections.iter().filter(is_near) {
                let resumed = one.resumed.map_or("without an id".to_owned(), |id| format!("after id {id}"));
                lines.push((one.opened, format!("{} has a stream {resumed}", log.name)));
                lines.push((one.closed, format!("{} has it no more: {}", log.name, one.note)));
            }
        }
        lines.sort_by_key(|line| line.0);
        let lines = lines.iter().map(|(time, line)| format!("\n  {}  {line}", seconds(*time)));
        self.say(broken) + &lines.collect::<String>()
    }
}

fn seconds(time: Time) -> String {
    format!("{:8.3} s", time.as_secs_f64())
}

impl Log {
    /// What was heard last before a message was sent, and first after it was answered.
    fn around(&self, sends: &[Send], messages: &[(Sender, u32)]) -> Vec<&Heard> {
        let Some(send) = sends.iter().find(|send| messages.first() == Some(&(send.sender, send.n))) else {
            return Vec::new();
        };
        let is_other = |heard: &&Heard| match heard.said {
            Said::Message { sender, n } => !messages.contains(&(sender, n)),
            Said::Closed(_) | Said::Missed => true,
        };
        let before = self.heard.iter().filter(is_other).rfind(|heard| heard.at < send.begun);
        let after = self.heard.iter().filter(is_other).find(|heard| heard.at > send.ended);
        before.into_iter().chain(after).collect()
    }

    /// Whether it was connected for long enough while the relay kept the message.
    fn was_there(&self, send: &Send, lifetime: Duration) -> bool {
        let until = send.begun + lifetime;
        let within =
            |connection: &Connection| connection.closed.min(until).saturating_sub(connection.opened.max(send.ended));
        self.connections.iter().map(within).sum::<Duration>() >= THERE_FOR
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { broken, promised, seen, excused, .. } = self;
        write!(f, "{promised} deliveries promised, {seen} seen, {excused} excused, {} promises broken", broken.len())
    }
}

/// How many of each outcome there are, for people.
pub fn outcomes(sends: &[Send]) -> [usize; 3] {
    let mut counts = [0; 3];
    for send in sends {
        counts[match send.outcome {
            Outcome::Accepted => 0,
            Outcome::Refused(_) => 1,
            Outcome::Unknown => 2,
        }] += 1;
    }
    counts
}

#[cfg(test)]
mod tests;
