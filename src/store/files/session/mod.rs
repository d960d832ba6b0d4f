//! A session of UHST in files: a host and its clients, under one lock.
//!
//! The record says who the host is, and which of its registrations is the current one. The table has a line for each
//! client, and one for each registration of the host that anybody has joined or listened to. What is said to the host is one
//! topic, what is said to the clients another. Whoever registers anew begins a new *generation*: its clients hear none of
//! what was said to those before, and these can still fetch what waits for them, because the logs and the lines stay.

mod intentions;
pub mod listener;
mod member;
mod roster;
pub(super) mod sweep;

use super::folder::{Folder, remove_beside};
use super::kept::is_on;
use super::knock::{Cause, Knock};
use super::log::Address;
use super::members::{Cursor, Entry, Slot, Table};
use super::node::{Alive, topic_of};
use super::topic::{Keep, Topic, UNDER_WAY};
use super::{Error, Files, Kind, UNUSED_TIME};
use crate::clock::{has_passed_by, is_recent, now_ms};
use crate::store::error::Full;
use crate::store::sessions::{Party, Policy, Refused};
use crate::token::{ClientId, HostId};
use member::{Member, Presence, client_key, host_key, presence};
use roster::{Known, Roster};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

const MEMBERS: &str = "members";
/// The logs of what is said to the host, and to the clients.
const HOST: &str = "host";
const CLIENTS: &str = "clients";

/// What the record says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SessionRecord {
    /// The host it belongs to.
    host_id: String,
    /// The latest `action=host`; `None` where an application's own token made the session.
    registration: Option<String>,
    /// How many registrations there have been.
    generation: u32,
}

/// How many bytes may wait for a host before it is told no more: there is always room after its messages, but a crowd
/// that comes and goes does not fill the disk.
fn most_told(policy: &Policy<'_>) -> u64 {
    policy.settings.max_queue.saturating_mul(2)
}

/// A session, locked. When it is dropped the lock is let go, and then those are woken for whom something was written: a
/// thousand who wake at once would want it too.
struct Session<'a> {
    files: &'a Files,
    policy: &'a Policy<'a>,
    record: SessionRecord,
    table: Option<Table<Member>>,
    known: Known,
    /// The lock. It stands before the knocks, because fields are dropped in this order.
    folder: Folder<SessionRecord>,
    knocks: Knocks<'a>,
    /// When it was locked (ms since 1970): all that happens under one lock happens at one time.
    now: u64,
    /// Whether this is a look, which changes nothing.
    is_look: bool,
}

/// Who is to be woken, and which nodes were found to be there.
struct Knocks<'a> {
    waiting: Vec<Knock>,
    alive: Alive<'a>,
}

impl Drop for Knocks<'_> {
    fn drop(&mut self) {
        for knock in &self.waiting {
            self.alive.knock(knock);
        }
    }
}

impl Files {
    /// Locks the session of a host; `None` where there is none.
    fn session<'a>(&'a self, host: &HostId, policy: &'a Policy<'a>) -> Result<Option<Session<'a>>, Error> {
        let Some(folder) = self.open(Kind::Hosts, host.as_str())? else { return Ok(None) };
        let Some(record) = folder.read()? else { return Ok(None) };
        Session::of(self, policy, folder, record).map(Some)
    }

    /// Locks the session of a host, made with this registration if it is missing; whether it was. `None` where there are
    /// `most` sessions already.
    fn session_or_new<'a>(
        &'a self,
        host: &HostId,
        registration: Option<&str>,
        policy: &'a Policy<'a>,
        most: u64,
    ) -> Result<Option<(Session<'a>, bool)>, Error> {
        let Some(folder) = self.open_or_make(Kind::Hosts, host.as_str(), most)? else { return Ok(None) };
        if let Some(record) = folder.read()? {
            return Ok(Some((Session::of(self, policy, folder, record)?, false)));
        }
        let registration = registration.map(str::to_owned);
        let record = SessionRecord { host_id: host.as_str().to_owned(), registration, generation: 1 };
        // What a damaged record has left.
        clear(folder.path())?;
        folder.write(&record)?;
        Ok(Some((Session::of(self, policy, folder, record)?, true)))
    }
}

/// Removes everything but the record.
fn clear(record: &Path) -> Result<(), Error> {
    remove_beside(record, &["host.new", HOST, "clients.new", CLIENTS, MEMBERS])
}

impl<'a> Session<'a> {
    fn of(
        files: &'a Files,
        policy: &'a Policy<'a>,
        folder: Folder<SessionRecord>,
        record: SessionRecord,
    ) -> Result<Self, Error> {
        let table = Table::open(&folder.beside(MEMBERS))?;
        let known = Known::of(folder.path(), table.as_ref())?;
        let knocks = Knocks { waiting: Vec::new(), alive: files.alive() };
        Ok(Self { files, policy, record, table, known, folder, knocks, now: now_ms(), is_look: false })
    }

    /// The name that knocks have for it.
    fn name(&self) -> String {
        topic_of(self.folder.path())
    }

    fn topic(&self, of_host: bool) -> Topic {
        let settings = self.policy.settings;
        let (name, most) = if of_host {
            (HOST, most_told(self.policy).saturating_mul(2) + UNDER_WAY)
        } else {
            (CLIENTS, settings.max_topic)
        };
        let keep = Keep {
            lifetime: settings.message_lifetime,
            given: settings.max_queue.max(UNDER_WAY),
            most,
            most_of_all: settings.max_data,
        };
        Topic { log: self.folder.beside(name), keep, files: self.files.clone() }
    }

    // ---- the table

    /// The table, made if it is missing.
    fn table(&mut self) -> Result<&mut Table<Member>, Error> {
        if self.table.is_none() {
            self.table = Some(Table::open_or_make(&self.folder.beside(MEMBERS))?);
        }
        self.table.as_mut().ok_or(Error::Busy)
    }

    fn find(&self, key: &str) -> Result<Option<Entry<Member>>, Error> {
        let Some(table) = &self.table else { return Ok(None) };
        let mut found = table.find(key)?;
        self.bring_up_to_date(found.as_mut_slice());
        Ok(found)
    }

    /// All members. A line that is damaged is nobody's, and freed: its member, if it listens, takes another.
    fn all(&self) -> Result<Vec<Entry<Member>>, Error> {
        let mut all = self.table.as_ref().map_or(Ok(Vec::new()), Table::all_mended)?;
        self.bring_up_to_date(&mut all);
        Ok(all)
    }

    /// A member, as [`Session::find`] has it, but that it may be further on than this says.
    fn glance(&mut self, key: &str) -> Result<Option<Entry<Member>>, Error> {
        let Some(table) = self.table.as_ref().filter(|table| !table.is_changed()) else { return self.find(key) };
        // Those of two or three are soon read, for all messages that come.
        if self.known.roster.is_none() && is_on() && table.is_small() && !self.is_look {
            self.known.roster = Some(self.read_roster()?);
        }
        match (&self.table, &self.known.roster) {
            (Some(table), Some(roster)) => Ok(table.find_among(&roster.members, key).cloned()),
            _ => self.find(key),
        }
    }

    /// All members, which may be further on than this says.
    fn roster(&mut self) -> Result<Roster, Error> {
        match self.known.roster.take() {
            Some(roster) if !self.has_changed() => Ok(roster),
            _ => self.read_roster(),
        }
    }

    fn read_roster(&self) -> Result<Roster, Error> {
        Roster::read(self.folder.path(), self.table.as_ref(), |members| self.bring_up_to_date(members))
    }

    /// Keeps them for the next one.
    fn keep(&mut self, roster: Roster) {
        self.known.roster = Some(roster).filter(|_| !self.has_changed());
    }

    fn has_changed(&self) -> bool {
        self.table.as_ref().is_some_and(Table::is_changed)
    }

    /// Those that listen in this process may be further on than they have written; and whoever could not write that it ends
    /// is gone all the same, though its node is not. Whether all that listen do so in this process.
    fn bring_up_to_date(&self, entries: &mut [Entry<Member>]) -> bool {
        if entries.is_empty() {
            return true;
        }
        let Some((node, cursors)) = self.files.cursors(&self.name()) else { return false };
        let mut are_all_here = true;
        for entry in entries {
            match cursors.get(&entry.slot) {
                Some(cursor) if cursor.stream == entry.line.stream => entry.cursor = *cursor,
                _ if entry.line.node == node => entry.line.node.clear(),
                _ => are_all_here &= !entry.line.says_it_listens() || entry.line.node.is_empty(),
            }
        }
        are_all_here
    }

    fn clients(&self) -> Result<Vec<Entry<Member>>, Error> {
        let mut all = self.all()?;
        all.retain(|entry| !entry.line.is_host() && self.is_current(entry));
        Ok(all)
    }

    fn is_current(&self, entry: &Entry<Member>) -> bool {
        entry.line.generations().contains(&self.record.generation)
    }

    fn update(&mut self, entry: &Entry<Member>) -> Result<(), Error> {
        self.table()?.update(entry.slot, &entry.line)
    }

    /// Adds a line for a member of the current generation and those up to the last, to which the log says nothing that it says already.
    fn add(&mut self, key: String, last_generation: u32) -> Result<Entry<Member>, Error> {
        let from = self.topic(key.starts_with('h')).end()?;
        let line = Member {
            key,
            generations: (self.record.generation, last_generation),
            from,
            stream: 0,
            begin: from,
            node: String::new(),
            used: self.now,
            ended: None,
            told: false,
        };
        let cursor = Cursor { stream: 0, position: from };
        let slot = self.table()?.insert(&line, cursor)?;
        Ok(Entry { slot, cursor, line })
    }

    /// The line of the current host, at a [glance](Self::glance); `None` where nobody has joined or listened.
    fn host(&mut self) -> Result<Option<Entry<Member>>, Error> {
        self.glance(&host_key(self.record.registration.as_deref()))
    }

    fn host_or_new(&mut self) -> Result<Entry<Member>, Error> {
        match self.host()? {
            Some(host) => Ok(host),
            None => self.add(host_key(self.record.registration.as_deref()), self.record.generation),
        }
    }

    // ---- who is there

    /// Whether a member is there; the end of a killed stream is noted.
    fn presence(&mut self, entry: &mut Entry<Member>) -> Result<Presence, Error> {
        let presence = presence(&entry.line, &mut self.knocks.alive, self.now)?;
        if let Presence::Ended { at, .. } = presence
            && entry.line.ended.is_none()
            && !self.is_look
        {
            entry.line.ended = Some(at);
            self.update(entry)?;
        }
        Ok(presence)
    }

    fn host_presence(&mut self) -> Result<Presence, Error> {
        match self.host()? {
            Some(mut host) => self.presence(&mut host),
            None => Ok(Presence::Waiting),
        }
    }

    /// Whether messages are taken for the host.
    fn host_is_present(&mut self) -> Result<bool, Error> {
        let presence = self.host_presence()?;
        self.host_is_there(presence)
    }

    fn host_is_there(&self, presence: Presence) -> Result<bool, Error> {
        Ok(match presence {
            Presence::Waiting => is_recent(self.folder.touched()?, self.policy.settings.session_lifetime),
            other => self.is_there(other),
        })
    }

    /// Whether messages are taken for a client.
    fn client_is_present(&mut self, client: &mut Entry<Member>) -> Result<bool, Error> {
        Ok(match self.presence(client)? {
            Presence::Waiting => !self.has_passed(client.line.used, self.policy.settings.session_lifetime),
            other => self.is_there(other),
        })
    }

    fn has_passed(&self, at: u64, duration: Duration) -> bool {
        has_passed_by(self.now, at, duration)
    }

    fn is_there(&self, presence: Presence) -> bool {
        presence.is_there(self.now, self.policy.settings.grace)
    }

    /// Whether a member has outlived its session lifetime: neither listening, nor used, nor with a message that was promised
    /// to be kept.
    fn is_over(&mut self, entry: &mut Entry<Member>) -> Result<bool, Error> {
        Ok(self.is_out_of_time(entry)? && !self.is_promised(entry)?)
    }

    /// The same, whatever is promised to it.
    fn is_out_of_time(&mut self, entry: &mut Entry<Member>) -> Result<bool, Error> {
        let lifetime = self.policy.settings.session_lifetime;
        match self.presence(entry)? {
            Presence::Listening => return Ok(false),
            Presence::Ended { at, .. } if !self.has_passed(at, lifetime) => return Ok(false),
            Presence::Ended { .. } | Presence::Waiting => {}
        }
        let is_current_host = entry.line.is_host() && self.is_current(entry);
        Ok(if is_current_host {
            !is_recent(self.folder.touched()?, lifetime)
        } else {
            self.has_passed(entry.line.used, lifetime)
        })
    }

    /// The same of the current host, whether or not it has a line.
    fn host_is_over(&mut self) -> Result<bool, Error> {
        match self.host()? {
            Some(mut host) => self.is_over(&mut host),
            None => Ok(!is_recent(self.folder.touched()?, self.policy.settings.session_lifetime)),
        }
    }

    /// Whether there is a message that was promised to a member, also where a stream was given it and may have lost it.
    fn is_promised(&self, entry: &Entry<Member>) -> Result<bool, Error> {
        Ok(self.may_be_promised(entry)
            && self.topic(entry.line.is_host()).has_message(entry.line.from, entry.wants())?)
    }

    /// Nothing is promised to a client that has gone, or has not come, though broadcasts may pass it.
    fn may_be_promised(&self, entry: &Entry<Member>) -> bool {
        let settings = self.policy.settings;
        let (last, present) = match entry.line.ended {
            Some(at) => (Some(at), settings.grace),
            None => ((entry.line.stream == 0).then_some(entry.line.used), settings.session_lifetime),
        };
        let is_past = |at| self.has_passed(at, present.saturating_add(settings.message_lifetime));
        entry.line.is_host() || !last.is_some_and(is_past)
    }

    /// To whom of many [something is promised](Self::is_promised). Each log is read once, and no further than it takes.
    fn promised(&self, members: &[Entry<Member>]) -> Result<BTreeSet<Slot>, Error> {
        let mut promised = BTreeSet::new();
        for of_host in [true, false] {
            let may_be = |entry: &&Entry<Member>| entry.line.is_host() == of_host && self.may_be_promised(entry);
            let mut unseen: BTreeMap<Slot, _> =
                members.iter().filter(may_be).map(|entry| (entry.slot, entry)).collect();
            if unseen.is_empty() {
                continue;
            }
            self.topic(of_host).see_messages(|record| {
                let mut see = |entry: &Entry<Member>| {
                    let is_its_own = record.id > entry.line.from && entry.wants()(record.to);
                    is_its_own && promised.insert(entry.slot)
                };
                match record.to {
                    Address::One(slot) if unseen.get(slot).is_some_and(|entry| see(entry)) => _ = unseen.remove(slot),
                    Address::One(_) => {}
                    Address::All { .. } => unseen.retain(|_, entry| !see(entry)),
                }
                if unseen.is_empty() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })?;
        }
        Ok(promised)
    }

    // ---- who is who

    /// Makes something count as used, unless it was a moment ago.
    fn touch_after(&self) -> Duration {
        self.policy.settings.session_lifetime.min(UNUSED_TIME) / 4
    }

    fn touch_host(&self) -> Result<(), Error> {
        if self.is_look || is_recent(self.folder.touched()?, self.touch_after()) { Ok(()) } else { self.folder.touch() }
    }

    fn touch_client(&mut self, client: &mut Entry<Member>) -> Result<(), Error> {
        if !self.is_look && self.has_passed(client.line.used, self.touch_after()) {
            client.line.used = self.now;
            self.update(client)?;
        }
        Ok(())
    }

    /// The line of a client that may speak. One that an application has minted is added when it first appears.
    fn speaking_client(&mut self, party: &Party, client: &ClientId) -> Result<Entry<Member>, Refused> {
        let found = self.glance(&client_key(client))?;
        let mut client = match (&party.registration, found) {
            (None, Some(found)) => found,
            (None, None) if self.host_is_present()? => self.add_client(client, u32::MAX)?,
            (None, None) => return Err(Refused::UnknownHost),
            (Some(registration), Some(mut found)) => {
                if self.record.registration.as_ref() != Some(registration)
                    || !self.is_current(&found)
                    || self.is_over(&mut found)?
                {
                    return Err(Refused::Expired);
                }
                found
            }
            (Some(_), None) => return Err(Refused::Expired),
        };
        self.touch_client(&mut client)?;
        Ok(client)
    }

    /// Whether the host of this token may speak and listen.
    fn check_host(&mut self, registration: Option<&str>) -> Result<(), Refused> {
        if let Some(registration) = registration {
            let is_over = self.host_is_over()?;
            if self.record.registration.as_deref() != Some(registration) || is_over {
                return Err(Refused::Expired);
            }
        }
        Ok(self.touch_host()?)
    }

    /// Adds a client. At the limit the oldest that nobody has used for a while gives way; and where twice as many have come and
    /// gone, the one that left first.
    fn add_client(&mut self, client: &ClientId, last_generation: u32) -> Result<Entry<Member>, Refused> {
        let limit = self.policy.settings.max_clients;
        let mut clients = self.all()?;
        clients.retain(|entry| !entry.line.is_host());
        // Those that have left are only told apart when there are many.
        if clients.len() as u64 >= limit {
            let (mut present, mut unused, mut left) = (0, Vec::new(), Vec::new());
            for mut client in clients.iter().cloned() {
                if self.client_is_present(&mut client)? {
                    present += 1;
                    if client.line.stream == 0 && self.has_passed(client.line.used, UNUSED_TIME) {
                        unused.push((client.line.used, client));
                    }
                } else if client.line.told {
                    left.push((client.line.ended.unwrap_or(0), client));
                }
            }
            // Those that have left may come back, as long as there is room for them.
            if present >= limit {
                self.free_oldest(unused)?;
            } else if clients.len() as u64 >= limit.saturating_mul(2) {
                self.free_oldest(left)?;
            }
        }
        self.host_or_new()?;
        Ok(self.add(client_key(client), last_generation)?)
    }

    /// Frees the line of the oldest, of those to whom nothing is promised.
    fn free_oldest(&mut self, mut those: Vec<(u64, Entry<Member>)>) -> Result<(), Refused> {
        those.sort_unstable_by_key(|(time, _)| *time);
        let those: Vec<_> = those.into_iter().map(|(_, member)| member).collect();
        let promised = self.promised(&those)?;
        match those.iter().find(|member| !promised.contains(&member.slot)) {
            Some(oldest) => Ok(self.table()?.free(oldest.slot)?),
            None => Err(Refused::TooManyClients(self.policy.settings.max_clients)),
        }
    }

    // ---- what is said

    /// Puts an event into the log for one member. At most `limit` bytes may wait for it.
    fn put(&mut self, entry: &Entry<Member>, event: &str, data: &str, limit: u64) -> Result<(), Error> {
        let topic = self.topic(entry.line.is_host());
        let open = topic.open()?;
        let room = limit.saturating_sub(data.len() as u64);
        let mut waiting = topic.lag(entry.position(), open.end(), room, entry.wants())?;
        if waiting > room
            && let Some(entry) = self.find(&entry.line.key)?
        {
            // It may be further on than it was at a glance.
            waiting = topic.lag(entry.position(), open.end(), room, entry.wants())?;
        }
        if waiting > room {
            return Err(Error::QueueFull(Full { limit }));
        }
        open.append(self.now, &Address::One(entry.slot), event, data, || self.floor(entry.line.is_host()))?;
        self.knock(entry, Cause::News);
        Ok(())
    }

    /// Up to where all have been given a log.
    fn floor(&self, of_host: bool) -> Result<u64, Error> {
        let all = self.all()?.into_iter().filter(|entry| entry.line.is_host() == of_host);
        Ok(all.map(|entry| entry.position()).min().unwrap_or(u64::MAX))
    }

    fn knock(&mut self, entry: &Entry<Member>, cause: Cause) {
        if entry.line.says_it_listens() {
            let (node, topic) = (entry.line.node.clone(), self.name());
            self.knocks.waiting.push(Knock { node, topic, slot: Some(entry.slot), cause });
        }
    }

    /// One knock a node.
    fn knock_all<'e>(&mut self, entries: impl Iterator<Item = &'e Entry<Member>>) {
        let nodes = entries.filter(|entry| entry.line.says_it_listens()).map(|entry| entry.line.node.as_str());
        self.knocks.waiting.extend(Knock::all(&topic_of(self.folder.path()), nodes));
    }

    // ---- who has gone

    /// Whether the end of a stream is to be told: its grace is over.
    fn is_news(&mut self, entry: &mut Entry<Member>) -> Result<bool, Error> {
        Ok(self.presence(entry)?.is_news(self.now, self.policy.settings.grace))
    }

    /// Tells the clients if the host has gone.
    fn tell_of_host(&mut self) -> Result<(), Error> {
        let Some(mut host) = self.host()? else { return Ok(()) };
        if self.is_news(&mut host)? { self.tell_clients() } else { Ok(()) }
    }

    /// Tells every client, also those that are away and may come back, that the host has gone. Once is enough.
    fn tell_clients(&mut self) -> Result<(), Error> {
        let clients = self.clients()?;
        if !clients.is_empty() {
            let event = self.policy.words.of(self.policy.words.host_closed, &self.record.host_id);
            let to = Address::All { generation: self.record.generation, except: Vec::new() };
            self.topic(false).open()?.append(self.now, &to, self.policy.words.event, &event, || self.floor(false))?;
            self.knock_all(clients.iter());
        }
        let mut host = self.host_or_new()?;
        self.set_told(&mut host)
    }

    /// Tells the host if a client has gone.
    fn tell_of_client(&mut self, client: &mut Entry<Member>) -> Result<(), Error> {
        if !self.is_news(client)? {
            return Ok(());
        }
        if self.is_current(client)
            && let Some(host) = self.host()?
            && let Some(id) = client.line.client()
        {
            let event = self.policy.words.of(self.policy.words.client_closed, id.as_str());
            match self.put(&host, self.policy.words.event, &event, most_told(self.policy)) {
                // It is told once there is room; until then the line stays.
                Err(Error::QueueFull(_) | Error::TopicFull(_)) => return Ok(()),
                other => other?,
            }
        }
        self.set_told(client)
    }

    fn set_told(&mut self, entry: &mut Entry<Member>) -> Result<(), Error> {
        entry.line.told = true;
        // One that never was has not ended just now.
        entry.line.ended = entry.line.ended.or(Some(0));
        self.update(entry)
    }

    /// Tells the peers of every stream that has ended.
    fn tell_all(&mut self) -> Result<(), Error> {
        let mut outcome = self.tell_of_host();
        for mut client in self.clients()? {
            outcome = outcome.and(self.tell_of_client(&mut client));
        }
        outcome
    }

    /// Removes the session.
    fn remove(self) -> Result<(), Error> {
        clear(self.folder.path())?;
        self.folder.remove()
    }
}
