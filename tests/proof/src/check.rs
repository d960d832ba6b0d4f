//! Decides from a history whether the relay has kept its promises.

use crate::history::{History, Log, Outcome, Reader, Said, Send, Sender, Time};
use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

/// A promise that was broken, with what shows it.
#[derive(Debug, PartialEq, Eq)]
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
    /// More closed events about a reader than it has ended streams.
    Closed { told: Reader, about: Reader, events: usize, ends: usize },
    /// Came back in time and was refused.
    TurnedAway { reader: Reader, at: Time, status: u16 },
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
}

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
            self.check_order(reader, log, &mut verdict);
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
        for send in &self.sends {
            for &reader in &send.must {
                verdict.promised += 1;
                if seen.contains_key(&(reader, send.sender, send.n)) {
                    verdict.seen += 1;
                } else if self.readers[reader].was_there(send, lifetime) {
                    verdict.broken.push(Broken::Lost { reader, sender: send.sender, n: send.n });
                } else {
                    verdict.excused += 1;
                }
            }
        }
        verdict
    }

    fn check_order(&self, reader: Reader, log: &Log, verdict: &mut Verdict) {
        let mut last_id = None;
        let mut last_of: HashMap<Sender, u32> = HashMap::new();
        let mut closed: HashMap<Reader, usize> = HashMap::new();
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
                    {
                        verdict.broken.push(Broken::Disorder { reader, sender, n, after });
                    }
                    last_of.insert(sender, n);
                }
                Said::Closed(about) => *closed.entry(about).or_default() += 1,
            }
        }
        for (about, events) in closed {
            let ends = self.readers[about].connections.len();
            if events > ends {
                verdict.broken.push(Broken::Closed { told: reader, about, events, ends });
            }
        }
    }

    /// The part of the history that shows it: the message, its neighbours, and where the reader was meanwhile.
    pub fn show(&self, broken: &Broken) -> String {
        let (reader, message) = match *broken {
            Broken::Lost { reader, sender, n }
            | Broken::Twice { reader, sender, n }
            | Broken::Uncalled { reader, sender, n }
            | Broken::Disorder { reader, sender, n, .. } => (Some(reader), Some((sender, n))),
            Broken::OneId { other, .. } => (None, Some(other)),
            Broken::TwoIds { sender, n, .. } => (None, Some((sender, n))),
            Broken::Ids { reader, .. } | Broken::TurnedAway { reader, .. } => (Some(reader), None),
            Broken::Closed { about, .. } => (Some(about), None),
        };
        let mut lines = vec![format!("{broken:?}")];
        let near = message.map_or(0..=u32::MAX, |(_, n)| n.saturating_sub(1)..=n + 1);
        let sends: Vec<_> = self
            .sends
            .iter()
            .filter(|send| message.is_some_and(|(sender, _)| send.sender == sender) && near.contains(&send.n))
            .collect();
        let (mut from, mut to) = (Time::MAX, Time::ZERO);
        for send in &sends {
            (from, to) = (from.min(send.begun), to.max(send.ended));
            lines.push(format!(
                "  {:9.3?} … {:9.3?}  {} sends {}: {:?}, for {:?}, perhaps {:?}",
                send.begun, send.ended, send.sender, send.n, send.outcome, send.must, send.may
            ));
        }
        if let Some(log) = reader.map(|reader| &self.readers[reader]) {
            let margin = Duration::from_secs(5);
            let is_near = |time: Time| message.is_none() || (time + margin >= from && time <= to + margin);
            lines.push(format!("  reader {} is {}", reader.unwrap_or_default(), log.name));
            for connection in log.connections.iter().filter(|one| is_near(one.opened) || is_near(one.closed)) {
                lines.push(format!(
                    "  {:9.3?} … {:9.3?}  connected after {:?}: {}",
                    connection.opened, connection.closed, connection.resumed, connection.note
                ));
            }
            let of_sender = |said: &Said| match (said, message) {
                (Said::Message { sender, .. }, Some((wanted, _))) => *sender == wanted,
                _ => message.is_none(),
            };
            for heard in log.heard.iter().filter(|heard| is_near(heard.at) && of_sender(&heard.said)) {
                lines.push(format!("  {:9.3?}              hears {:?} {:?}", heard.at, heard.id, heard.said));
            }
        }
        lines.join("\n")
    }
}

impl Log {
    /// Whether it was connected for long enough while the relay kept the message.
    fn was_there(&self, send: &Send, lifetime: Duration) -> bool {
        let until = send.begun + lifetime;
        let within = |connection: &crate::history::Connection| {
            connection.closed.min(until).saturating_sub(connection.opened.max(send.ended))
        };
        self.connections.iter().map(within).sum::<Duration>() >= THERE_FOR
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { broken, promised, seen, excused } = self;
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
mod tests {
    use super::*;
    use crate::history::{Connection, Heard};

    const LIFETIME: Duration = Duration::from_secs(20);

    fn at(ms: u64) -> Time {
        Duration::from_millis(ms)
    }

    fn send(n: u32, outcome: Outcome) -> Send {
        let readers = vec![0];
        let (must, may) = match outcome {
            Outcome::Accepted => (readers, vec![]),
            Outcome::Refused(_) => (vec![], vec![]),
            Outcome::Unknown => (vec![], readers),
        };
        let begun = at(1000 * u64::from(n) + 1000);
        Send { sender: 7, n, begun, ended: begun + at(2), outcome, must, may, id: None }
    }

    fn reader(heard: &[(u64, u32)]) -> Log {
        let said = |n| Said::Message { sender: 7, n };
        Log {
            connections: vec![Connection { opened: at(0), closed: at(60_000), resumed: None, note: "" }],
            heard: heard.iter().map(|&(id, n)| Heard { at: at(id), id: Some(id), said: said(n) }).collect(),
            bus: Some(0),
            ..Log::default()
        }
    }

    fn verdict(sends: &[Send], readers: &[Log]) -> Vec<Broken> {
        History { sends: sends.to_vec(), readers: readers.to_vec() }.check(LIFETIME).broken
    }

    #[test]
    fn a_good_history_is_good() {
        let sends = [send(0, Outcome::Accepted), send(1, Outcome::Refused(507)), send(2, Outcome::Unknown)];
        assert_eq!(verdict(&sends, &[reader(&[(1, 0)])]), []);
        assert_eq!(verdict(&sends, &[reader(&[(1, 0), (2, 2)])]), []);
    }

    #[test]
    fn what_is_lost_doubled_or_uncalled_is_found() {
        let accepted = [send(0, Outcome::Accepted), send(1, Outcome::Accepted)];
        assert_eq!(verdict(&accepted, &[reader(&[(1, 0)])]), [Broken::Lost { reader: 0, sender: 7, n: 1 }]);
        let twice = verdict(&accepted, &[reader(&[(1, 0), (2, 1), (3, 1)])]);
        assert!(twice.contains(&Broken::Twice { reader: 0, sender: 7, n: 1 }), "{twice:?}");
        let refused = [send(0, Outcome::Refused(400))];
        let uncalled = [Broken::Uncalled { reader: 0, sender: 7, n: 0 }];
        assert_eq!(verdict(&refused, &[reader(&[(1, 0)])]), uncalled);
        assert_eq!(verdict(&[], &[reader(&[(1, 0)])]), uncalled, "never sent");
    }

    #[test]
    fn whoever_was_not_there_within_the_lifetime_has_no_claim() {
        let mut away = reader(&[]);
        away.connections[0].closed = at(3000);
        let history = History { sends: vec![send(0, Outcome::Accepted)], readers: vec![away] };
        let verdict = history.check(LIFETIME);
        assert_eq!((verdict.broken.len(), verdict.excused), (0, 1));
    }

    #[test]
    fn disorder_is_found() {
        let accepted = [send(0, Outcome::Accepted), send(1, Outcome::Accepted)];
        let disorder = verdict(&accepted, &[reader(&[(1, 1), (2, 0)])]);
        assert_eq!(disorder, [Broken::Disorder { reader: 0, sender: 7, n: 0, after: 1 }]);
        let ids = verdict(&accepted, &[reader(&[(2, 0), (2, 1)])]);
        assert!(ids.contains(&Broken::Ids { reader: 0, before: 2, id: 2 }), "{ids:?}");
    }

    #[test]
    fn readers_of_a_bus_agree_with_each_other_and_with_the_answer() {
        let mut sends = [send(0, Outcome::Accepted), send(1, Outcome::Accepted)];
        for send in &mut sends {
            send.must = vec![0, 1];
        }
        let good = verdict(&sends, &[reader(&[(1, 0), (2, 1)]), reader(&[(1, 0), (2, 1)])]);
        assert_eq!(good, []);
        let differ = verdict(&sends, &[reader(&[(1, 0), (2, 1)]), reader(&[(1, 0), (4, 1)])]);
        assert_eq!(differ, [Broken::TwoIds { sender: 7, n: 1, one: 2, other: 4 }]);
        sends[0].id = Some(9);
        let differ = verdict(&sends, &[reader(&[(1, 0), (2, 1)]), reader(&[(9, 0), (10, 1)])]);
        assert!(differ.contains(&Broken::TwoIds { sender: 7, n: 0, one: 9, other: 1 }), "{differ:?}");
        let one_id = verdict(&sends, &[reader(&[(1, 0), (2, 1)]), reader(&[(0, 0), (1, 1)])]);
        assert!(one_id.contains(&Broken::OneId { id: 1, one: (7, 0), other: (7, 1) }), "{one_id:?}");
    }

    #[test]
    fn only_who_left_is_said_to_have_left() {
        let mut told = reader(&[]);
        told.heard = vec![Heard { at: at(1), id: Some(1), said: Said::Closed(1) }; 1];
        let mut other = reader(&[]);
        assert_eq!(verdict(&[], &[told.clone(), other.clone()]), [], "it has ended its only stream");
        other.connections.clear();
        let wrong = verdict(&[], &[told, other]);
        assert_eq!(wrong, [Broken::Closed { told: 0, about: 1, events: 1, ends: 0 }]);
    }
}
