//! A bus in files: a topic that all write to and all read, with its users and those that wait for a message.
//!
//! Everything changes under the lock of the bus's record. A [`BusReader`](reader::BusReader) needs none: it reads the log.

pub mod reader;
mod sweep;
mod users;

use super::folder::{Folder, beside, remove_beside};
use super::kept::READ;
use super::knock::Knock;
use super::log::reader::Reader;
use super::log::{Address, ms_since_2026};
use super::members::{Line, Sight, Table};
use super::node::topic_of;
use super::topic::{Keep, OpenTopic, Topic, oldest};
use super::{Error, Files, Kind, UNUSED_TIME};
use crate::clock::{is_recent, now_ms};
use crate::config::Settings;
use crate::store::buses::{BusName, Proof, Refused, User};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

const LOG: &str = "log";
/// The readers that wait.
const MEMBERS: &str = "members";
/// The registered users.
const USERS: &str = "users";

/// So much of what was said last tells who crowds a bus, if its share is not far larger.
const LATEST: u64 = 64 * 1024;

/// All readers hear all messages.
const ALL: Address = Address::All { generation: 0, except: Vec::new() };

/// What a bus's record says.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct BusRecord {
    name: String,
    /// Whether only registered users may post.
    signed_only: bool,
    /// The first plain user's number; 0 in a bus that was never finished.
    first: u64,
    /// How many plain users there have been.
    plain: u64,
    /// How many registered users there have been.
    registered: u64,
    /// Whether there has ever been a message.
    was_posted_to: bool,
}

/// A reader that waits.
#[derive(Debug, Serialize, Deserialize)]
struct Waiting {
    key: String,
    /// The node on which it does.
    node: String,
}

impl Line for Waiting {
    fn key(&self) -> &str {
        &self.key
    }
}

/// The nodes on which readers wait, which whoever posts next need not read again: whoever begins to wait gives the table a
/// new edition. Nodes from which all readers have gone may be among them.
#[derive(Default)]
struct Nodes {
    names: BTreeSet<String>,
    /// `None` where the next one has to read them again.
    sight: Option<Sight>,
}

/// A bus, locked.
struct Bus<'a> {
    files: &'a Files,
    folder: Folder<BusRecord>,
    record: BusRecord,
    settings: &'a Settings,
}

fn topic(files: &Files, record: &Path, settings: &Settings) -> Topic {
    // What is alive goes when it is too old, and not before: nobody knows who is still to read it.
    let keep = Keep {
        lifetime: settings.message_lifetime,
        given: u64::MAX,
        most: settings.max_queue,
        most_of_all: settings.max_data,
    };
    Topic { log: beside(record, LOG), keep, files: files.clone() }
}

impl Files {
    fn bus<'a>(&'a self, name: &BusName, settings: &'a Settings) -> Result<Bus<'a>, Refused> {
        let folder = self.open(Kind::Buses, name.as_str())?.ok_or(Refused::UnknownBus)?;
        let bus = Bus::of(self, folder, settings)?;
        if bus.is_made() { Ok(bus) } else { Err(Refused::UnknownBus) }
    }

    /// The bus, made if it is missing, and whether it was. It counts as used.
    fn bus_or_new<'a>(
        &'a self,
        name: &BusName,
        signed_only: bool,
        settings: &'a Settings,
    ) -> Result<(Bus<'a>, bool), Refused> {
        let limit = settings.max_buses;
        let folder = self.open_or_make(Kind::Buses, name.as_str(), limit)?.ok_or(Refused::TooManyBuses(limit))?;
        let mut bus = Bus::of(self, folder, settings)?;
        if bus.is_made() {
            bus.touch()?;
            return Ok((bus, false));
        }
        // What is there without a record is of a bus that was being removed, or whose record is damaged.
        clear(bus.folder.path())?;
        bus.record = BusRecord {
            name: name.as_str().to_owned(),
            signed_only,
            first: (ms_since_2026() + 1) * 2048,
            ..BusRecord::default()
        };
        bus.folder.write(&bus.record)?;
        Ok((bus, true))
    }

    /// The bus, if it knows the user; both count as used.
    fn bus_of<'a>(&'a self, name: &BusName, user: User, settings: &'a Settings) -> Result<Bus<'a>, Refused> {
        let bus = self.bus(name, settings)?;
        if !bus.knows(user)? {
            return Err(Refused::UnknownUser);
        }
        bus.touch()?;
        Ok(bus)
    }

    /// The bus for a user, or for somebody who names none and does not make it.
    fn bus_for<'a>(&'a self, name: &BusName, user: Option<User>, settings: &'a Settings) -> Result<Bus<'a>, Refused> {
        match user {
            Some(user) => self.bus_of(name, user, settings),
            None => self.bus(name, settings),
        }
    }

    pub fn greet(&self, name: &BusName, settings: &Settings) -> Result<(User, u64), Refused> {
        let (mut bus, _) = self.bus_or_new(name, false, settings)?;
        let user = bus.new_user()?;
        Ok((user, bus.topic().end()?))
    }

    pub fn register_user(&self, name: &BusName, settings: &Settings) -> Result<(User, u64, String), Refused> {
        let (mut bus, _) = self.bus_or_new(name, false, settings)?;
        // What may fail first: the key is told only once.
        let end = bus.topic().end()?;
        let (user, key) = bus.register()?;
        Ok((user, end, key))
    }

    pub fn make_signed_bus(&self, name: &BusName, settings: &Settings) -> Result<bool, Refused> {
        let (bus, is_new) = self.bus_or_new(name, true, settings)?;
        if bus.record.signed_only { Ok(is_new) } else { Err(Refused::IsOpen) }
    }

    pub fn post(
        &self,
        name: &BusName,
        user: User,
        proof: Option<Proof<'_>>,
        data: &str,
        settings: &Settings,
    ) -> Result<u64, Refused> {
        let bus = self.bus_of(name, user, settings)?;
        if let Some(registered) = bus.registered(user)? {
            bus.check(registered, proof)?;
        } else if bus.record.signed_only {
            return Err(Refused::NotRegistered);
        }
        bus.say(user, data, true)
    }

    pub fn say(&self, name: &BusName, user: User, data: &str, settings: &Settings) -> Result<u64, Refused> {
        let bus = self.bus_of(name, user, settings)?;
        if bus.record.signed_only { Err(Refused::NotRegistered) } else { bus.say(user, data, false) }
    }

    pub fn notify(&self, name: &BusName, data: &str, settings: &Settings) -> Result<u64, Refused> {
        self.bus_or_new(name, false, settings)?.0.say(User::APPLICATION, data, false)
    }

    /// Wakes those that wait on these nodes at the bus whose record stands at `path`.
    fn wake_all(&self, path: &Path, nodes: Nodes) -> Result<(), Error> {
        let topic = topic_of(path);
        let knocks = Knock::all(&topic, nodes.names.iter().map(String::as_str));
        let unheard = knocks.filter(|knock| !self.knock(knock)).count();
        if nodes.sight.is_some() {
            READ.keep(&beside(path, MEMBERS), Box::new(nodes));
        }
        if unheard > 0
            && let Some(folder) = Folder::<BusRecord>::try_open(path, Kind::Buses.shape())?
        {
            // Of those that were killed nothing is left.
            self.waiting_at(folder.path())?;
        }
        Ok(())
    }

    pub fn check_user(&self, name: &BusName, user: User, settings: &Settings) -> Result<(), Refused> {
        self.bus_of(name, user, settings).map(drop)
    }
}

impl<'a> Bus<'a> {
    fn of(files: &'a Files, folder: Folder<BusRecord>, settings: &'a Settings) -> Result<Self, Error> {
        let record = folder.read()?.unwrap_or_default();
        Ok(Self { files, folder, record, settings })
    }

    /// False for a bus whose maker was killed.
    fn is_made(&self) -> bool {
        self.record.first > 0
    }

    fn topic(&self) -> Topic {
        topic(self.files, self.folder.path(), self.settings)
    }

    /// Makes the bus count as used, unless it was a while ago.
    fn touch(&self) -> Result<(), Error> {
        if is_recent(self.folder.touched()?, touch_after(self.settings)) { Ok(()) } else { self.folder.touch() }
    }

    /// A fresh plain user.
    fn new_user(&mut self) -> Result<User, Error> {
        let user = User(self.record.first + 2 * self.record.plain);
        self.record.plain += 1;
        self.folder.write(&self.record)?;
        Ok(user)
    }

    /// Appends a message, and wakes those that wait once the lock is let go. `is_one_of_many` has it refused where the user
    /// says too much.
    fn say(mut self, user: User, data: &str, is_one_of_many: bool) -> Result<u64, Refused> {
        let topic = self.topic();
        let log = topic.open()?;
        if is_one_of_many && self.is_crowded_by(user, &log)? {
            return Err(Refused::SaysTooMuch(self.settings.max_queue));
        }
        if !self.record.was_posted_to {
            self.record.was_posted_to = true;
            self.folder.write(&self.record)?;
        }
        let id = log.append(now_ms(), &ALL, &user.0.to_string(), data, || Ok(0))?;
        let (files, path, nodes) = (self.files, self.folder.path().to_owned(), self.nodes());
        drop(self);
        // It is said, whatever comes now: whoever cannot be woken looks by itself within seconds.
        if let Err(error) = nodes.and_then(|nodes| files.wake_all(&path, nodes)) {
            error.log();
        }
        Ok(id)
    }

    /// Where readers wait.
    fn nodes(&self) -> Result<Nodes, Error> {
        let path = self.folder.beside(MEMBERS);
        let Some(table) = Table::<Waiting>::open(&path)? else { return Ok(Nodes::default()) };
        if let Some(known) = READ.take_as::<Nodes>(&path)
            && let Some(sight) = &known.sight
            && table.is_as(sight)?
        {
            return Ok(known);
        }
        let sight = table.sight()?;
        Ok(Nodes { names: table.all()?.into_iter().map(|entry| entry.line.node).collect(), sight })
    }

    /// Whether this user is to leave room for others: more than three quarters of the limit are alive, and of what was posted
    /// last more than a quarter is the user's. That is read back, a bounded piece, because nobody counts for each user.
    fn is_crowded_by(&self, user: User, log: &OpenTopic<'_>) -> Result<bool, Error> {
        let limit = self.settings.max_queue;
        let many = limit / 4 * 3;
        if log.size() <= many {
            return Ok(false);
        }
        let topic = self.topic();
        let mut reader = Reader::open(&topic.log, log.end())?;
        let end = reader.position();
        if end - reader.dead_up_to(oldest(topic.keep.lifetime), u64::MAX)? <= many {
            return Ok(false);
        }
        reader.go_back((limit / 32).max(LATEST))?;
        let (start, mut last, mut own) = (reader.position(), reader.position(), 0);
        while reader.read(
            |_| true,
            |record| {
                if record.event.parse() == Ok(user.0) {
                    own += record.id - last;
                }
                last = record.id;
            },
        )? {}
        Ok(own > (last - start) / 4)
    }

    fn remove(self) -> Result<(), Error> {
        clear(self.folder.path())?;
        self.folder.remove()
    }
}

/// Removes everything but the record.
fn clear(record: &Path) -> Result<(), Error> {
    remove_beside(record, &[LOG, "log.new", MEMBERS, USERS])
}

/// How long something counts as used: often enough noted for a bus that is forgotten soon where nobody reads it.
fn touch_after(settings: &Settings) -> Duration {
    settings.bus_lifetime.min(UNUSED_TIME) / 4
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::buses::BusEvent;

    #[test]
    fn what_was_said_is_not_refused_because_nobody_can_be_woken() {
        let dir = super::super::test_dir::TestDir::new();
        let (files, settings) = (Files::new(&dir.join("data")), Settings::default());
        let name = BusName::new("news").unwrap();
        let (user, end) = files.greet(&name, &settings).unwrap();
        std::fs::create_dir(beside(&files.folder(Kind::Buses, "news"), MEMBERS)).unwrap();
        let id = files.post(&name, user, None, "1", &settings).unwrap();
        let (other, _) = files.greet(&name, &settings).unwrap();
        let mut said = Vec::new();
        let mut reader = files.read(&name, end, other, &settings).unwrap();
        reader
            .next(|heard| said.extend(matches!(heard, BusEvent::Message(message) if message.id == id).then_some(())))
            .unwrap();
        assert_eq!(said.len(), 1);
    }
}
