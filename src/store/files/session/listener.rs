//! Listening: the end at which a host, or a client, takes its events from the log.

use super::super::folder::beside;
use super::super::knock::Cause;
use super::super::log::Address;
use super::super::log::reader::Reader;
use super::super::members::{Cursor, Entry, Slot, Table};
use super::super::node::Wakeup;
use super::super::topic::{LEFT_OUT, MESSAGE, is_for, milliseconds, oldest};
use super::super::{Error, FileIdentity, Files, identity, if_there, modified, read_small};
use super::intentions::missing;
use super::roster::Leaving;
use super::{MEMBERS, Member, Presence, Session, SessionRecord, host_key, presence, topic_of};
use crate::clock::{is_recent, now_ms};
use crate::store::sessions::{Event, Party, Policy, Refused, Standing};
use crate::wake::Ready;
use std::fmt;
use std::fs::File;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

/// A recipient that listens. As long as this lives, it is present.
pub struct Listener {
    files: Files,
    party: Party,
    /// Where the record of its session stands.
    record: PathBuf,
    /// Which file its table is. It is not kept open: there may be thousands of listeners.
    members: FileIdentity,
    slot: Slot,
    key: String,
    generations: RangeInclusive<u32>,
    stream: u32,
    wakeup: Wakeup,
    log: Reader,
    /// Up to where everything is on its way to the client, and what of that was written.
    delivered: u64,
    noted: u64,
    /// Where it was when it was tended last.
    tended_at: u64,
    /// Whether something was given that may not be on its way to the client yet.
    is_pending: bool,
    /// Up to which id there were records when it began, and how old (in ms since 1970) those may be.
    backlog: (u64, u64),
    /// Broadcasts of that time or later, of those that were there when it began, were not for it: it had gone, and has not
    /// asked for what it has missed.
    gone_since: u64,
    /// Whether the recipient came with an id: then it is told what it has missed.
    has_resumed: bool,
    loss: Loss,
    /// The event that says so: its type and its data.
    lost_event: (&'static str, String),
    /// Whether it is worth looking: after a knock, now and then, and until nothing is found.
    may_have_more: bool,
    /// For how many rounds its session has been missing.
    missing: u32,
    /// When its table and its record were written last, if there is nothing new to be told as long as they stay so.
    quiet_since: Option<(SystemTime, SystemTime)>,
    /// How many of this process had gone without a word when it last looked who has.
    left: u64,
    /// It stands after the wake-up, because fields are dropped in this order.
    leaving: Leaving,
}

/// Whether there is something to tell of peers.
enum News {
    Now,
    /// There may be, without a word in the session's files.
    Perhaps,
    None,
}

/// Whether whatever is written from now on is written later than then, by the clock of the file system.
fn is_past(written: SystemTime) -> bool {
    !is_recent(written, Duration::from_secs(1))
}

/// A position that others of the process see is written once it is so many bytes behind.
const LATE: u64 = 64 * 1024;

/// What is known of something that was dropped before it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loss {
    None,
    /// It has to be told.
    Untold,
    /// It has been told, and nothing was given since.
    Told,
}

impl Loss {
    fn notice(&mut self) {
        if *self == Self::None {
            *self = Self::Untold;
        }
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Listener")
    }
}

impl Files {
    pub fn listen(&self, party: &Party, resume: Option<u64>, policy: &Policy<'_>) -> Result<Listener, Refused> {
        let mut session = if let Some(session) = self.session(&party.host, policy)? {
            session
        } else {
            missing(party)?;
            let limit = policy.settings.max_hosts;
            self.session_or_new(&party.host, None, policy, limit)?.ok_or(Refused::TooManyHosts(limit))?.0
        };
        let key = session.listening_member(party, resume)?;
        let member = match session.find(&key)? {
            Some(member) => member,
            None => session.host_or_new()?,
        };
        Ok(session.begin_to_listen(party, member, resume)?)
    }
}

impl Session<'_> {
    fn begin_to_listen(
        &mut self,
        party: &Party,
        mut member: Entry<Member>,
        resume: Option<u64>,
    ) -> Result<Listener, Error> {
        let topic = self.topic(party.client.is_none());
        let end = topic.end()?;
        let mut log = topic.reader(member.position())?;
        let mut loss = Loss::None;
        if let Some(id) = resume {
            let has_it = log.resume(id)?;
            // Whoever has no event yet may say 0, and means everything.
            if id > 0 && (!has_it || id < member.line.from) {
                loss.notice();
            }
        }
        log.skip_to(member.line.from.min(end));
        // Whoever comes back without an id has not been there for broadcasts since then.
        let gone_since = match (resume, member.line.ended) {
            (None, Some(at)) => at.saturating_add(milliseconds(self.policy.settings.grace)),
            _ => u64::MAX,
        };
        let wakeup = self.files.wakeup(&self.name())?;
        self.knock(&member, Cause::Takeover);
        member.line.stream += 1;
        member.line.begin = log.position();
        log.share(|path| wakeup.recent(path));
        wakeup.node().clone_into(&mut member.line.node);
        (member.line.ended, member.line.told) = (None, false);
        member.cursor = Cursor { stream: member.line.stream, position: log.position() };
        self.table()?.put(member.slot, &member.line, member.cursor)?;
        wakeup.note(member.cursor);
        wakeup.stand_at(member.slot);
        if member.line.is_host() {
            wakeup.stand_apart();
        }
        let members = self.table()?.identity();
        let words = self.policy.words;
        let id = party.client.as_ref().map_or(party.host.as_str(), |client| client.as_str());
        let leaving = Leaving::of(self.folder.path());
        Ok(Listener {
            files: self.files.clone(),
            party: party.clone(),
            record: self.folder.path().to_owned(),
            members,
            slot: member.slot,
            generations: member.line.generations(),
            key: member.line.key,
            stream: member.line.stream,
            wakeup,
            delivered: log.position(),
            noted: log.position(),
            tended_at: log.position(),
            is_pending: false,
            log,
            backlog: (end, oldest(self.policy.settings.message_lifetime)),
            gone_since,
            has_resumed: resume.is_some_and(|id| id > 0),
            loss,
            lost_event: (words.event, words.of(words.messages_lost, id)),
            may_have_more: true,
            missing: 0,
            quiet_since: None,
            left: leaving.others(),
            leaving,
        })
    }
}

impl Listener {
    /// A session that a stranger has removed is made anew by its host's stream within a round. A client's waits for that.
    const ROUNDS_WITHOUT_SESSION: u32 = 2;

    /// The id after which the next event comes.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.log.position()
    }

    /// What is ready when there may be something new.
    #[must_use]
    pub fn wake(&self) -> Option<Ready<'_>> {
        self.wakeup.wake()
    }

    /// Whether everything new is sure to make [`Listener::wake`] ready.
    #[must_use]
    pub fn is_surely_woken(&self) -> bool {
        self.wakeup.is_sure()
    }

    /// To be called when [`Listener::wake`] was ready, and from time to time where it may not be, before looking for events.
    /// Whether another stream has come to take the place.
    pub fn hear(&mut self) -> bool {
        self.may_have_more = true;
        self.wakeup.hear() == Cause::Takeover
    }

    /// Gives the next events to `take`; false when there are no more than these for now.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn next(&mut self, mut take: impl FnMut(Event<'_>)) -> Result<bool, Error> {
        let Self { log, loss, slot, generations, backlog, has_resumed, lost_event, is_pending, gone_since, .. } = self;
        let mut take = |event: Event<'_>| {
            *is_pending = true;
            take(event);
        };
        let tell = |loss: &mut Loss, id, take: &mut dyn FnMut(Event<'_>)| {
            if *loss == Loss::Untold {
                *loss = Loss::Told;
                take(Event { id, event: lost_event.0, data: &lost_event.1, made: None });
            }
        };
        // A loss is told with the id before what follows it: whoever comes back with that gets what follows.
        let mut before = log.position();
        tell(loss, before, &mut take);
        if !self.may_have_more {
            return Ok(false);
        }
        let (slot, (backlog_end, oldest)) = (*slot, *backlog);
        self.may_have_more = log.read(
            |to| is_for(to, slot, generations),
            |record| {
                let is_broadcast = matches!(&record.to, Address::All { .. }) && record.event == MESSAGE;
                if is_broadcast && record.id <= backlog_end && record.time >= *gone_since {
                    return;
                }
                if matches!(&record.to, Address::All { except, .. } if except.contains(&slot)) {
                    loss.notice();
                    tell(loss, record.id, &mut take);
                } else if record.event == LEFT_OUT {
                    // It was nobody's but theirs.
                } else if record.id > backlog_end || record.time >= oldest {
                    tell(loss, before, &mut take);
                    *loss = Loss::None;
                    take(Event { id: record.id, event: record.event, data: record.data, made: record.made });
                } else if *has_resumed {
                    loss.notice();
                }
                before = record.id;
            },
        )?;
        if log.has_lost() {
            loss.notice();
        }
        tell(loss, log.position(), &mut take);
        Ok(self.may_have_more)
    }

    /// Notes that everything [`Listener::next`] has given was written to the stream.
    ///
    /// # Errors
    /// When that cannot be written.
    pub fn delivered(&mut self) -> Result<(), Error> {
        self.is_pending = false;
        let is_seen = self.show_cursor();
        // Other processes see what is written: by how much somebody lags must not be far from the truth.
        if is_seen && self.delivered < self.noted.saturating_add(LATE) { Ok(()) } else { self.write_cursor() }
    }

    /// Tells the others of this process how far it is. False where there are none.
    fn show_cursor(&mut self) -> bool {
        self.delivered = self.log.position();
        self.wakeup.note(Cursor { stream: self.stream, position: self.delivered })
    }

    fn write_cursor(&mut self) -> Result<(), Error> {
        let position = self.delivered;
        if position != self.noted
            && let Some(table) = self.table()?
        {
            table.note(self.slot, Cursor { stream: self.stream, position })?;
            self.noted = position;
        }
        Ok(())
    }

    /// What has become of the place: a look, and nothing more.
    ///
    /// # Errors
    /// When that cannot be seen.
    pub fn standing(&mut self) -> Result<Standing, Error> {
        let table = self.table()?;
        Ok(table.map_or(Ok(None), |table| self.look(&table))?.unwrap_or(Standing::Listening))
    }

    /// Its table; `None` where that is gone, or another one.
    fn table(&self) -> Result<Option<Table<Member>>, Error> {
        Ok(Table::open(&beside(&self.record, MEMBERS))?.filter(|table| table.identity() == self.members))
    }

    /// What has become of the place; `None` where somebody has removed files.
    fn look(&mut self, table: &Table<Member>) -> Result<Option<Standing>, Error> {
        let standing = match table.get(self.slot)? {
            Some(entry) if entry.line.key != self.key => None,
            // Somebody took it for gone, while its node's files were.
            Some(entry) if entry.line.stream == self.stream && entry.line.ended.is_some() => None,
            Some(entry) if entry.line.stream == self.stream => Some(Standing::Listening),
            // Streams are counted up: its line was damaged, and somebody has made it anew.
            Some(entry) if entry.line.stream < self.stream => None,
            Some(_) => Some(Standing::Superseded),
            None => None,
        };
        // The newer stream has changed its line.
        self.leaving.has_said_so = standing == Some(Standing::Superseded);
        Ok(standing)
    }

    /// Does what has to be done from time to time: looks what has become of the place, takes it back where somebody has
    /// removed its files, looks for events that nobody has knocked for, and tells of peers that have gone.
    ///
    /// # Errors
    /// When that cannot be seen or done; the next call tries again.
    pub fn tend(&mut self, policy: &Policy<'_>) -> Result<Standing, Error> {
        let is_mended = self.wakeup.mend()?;
        // A sender may have been killed before it knocked.
        self.may_have_more |= self.log.has_more()? || is_mended;
        // Where there is one listener in a process, a look more or less is no matter.
        let written = if cfg!(feature = "serve") { self.written()? } else { None };
        let left = self.leaving.others();
        let is_quiet = written.is_some() && self.quiet_since == written && self.left == left;
        if is_quiet && self.delivered == self.noted && !self.may_have_more {
            return Ok(Standing::Listening);
        }
        self.quiet_since = None;
        let Some(table) = self.table()? else { return self.regain(policy) };
        let (Some(standing), Some(record)) = (self.look(&table)?, self.read_record()?) else {
            return self.regain(policy);
        };
        let standing = if self.is_current(&record) { standing } else { Standing::Over };
        self.missing = 0;
        let position = self.log.position();
        // Also what was passed over because it is for others; and where others see it, once it is quiet.
        if standing == Standing::Listening && !self.is_pending {
            let is_seen = self.show_cursor();
            if !is_seen || self.tended_at == position {
                self.write_cursor()?;
            }
        }
        self.tended_at = position;
        if standing == Standing::Listening {
            match self.news(&table, &record, policy)? {
                News::Now => {
                    let files = self.files.clone();
                    if let Some(mut session) = files.session(&self.party.host, policy)? {
                        if self.party.client.is_none() { session.tell_all()? } else { session.tell_of_host()? }
                    }
                }
                News::Perhaps => {}
                News::None => self.quiet_since = written.filter(|(table, record)| is_past(*table) && is_past(*record)),
            }
            self.left = left;
        }
        Ok(standing)
    }

    /// A look without the lock.
    fn read_record(&self) -> Result<Option<SessionRecord>, Error> {
        let record = if_there(File::open(&self.record).and_then(|file| read_small(&file)))?;
        Ok(record.and_then(|record| serde_json::from_slice(&record).ok()))
    }

    /// An application's own host is whichever is the host now; so where another has registered, this is not its line any more.
    fn is_current(&self, record: &SessionRecord) -> bool {
        self.party.client.is_some()
            || self.party.registration.is_some()
            || self.key == host_key(record.registration.as_deref())
    }

    /// When its table and its record were written last; `None` where one of them is gone, or another one.
    fn written(&self) -> Result<Option<(SystemTime, SystemTime)>, Error> {
        let table = if_there(std::fs::metadata(beside(&self.record, MEMBERS)))?;
        let Some(table) = table.filter(|table| identity(table) == self.members) else { return Ok(None) };
        let record = modified(&self.record)?;
        record.map(|record| Ok((table.modified()?, record))).transpose()
    }

    /// Whether a peer's stream has ended more than the grace ago, or without a word, and this one does not know. A look
    /// without the lock, which holds nobody up. One without a word has to be noted, so that its grace begins.
    fn news(&self, table: &Table<Member>, record: &SessionRecord, policy: &Policy<'_>) -> Result<News, Error> {
        let (mut alive, now) = (self.files.alive(), now_ms());
        let peers = if self.party.client.is_some() {
            table.find(&host_key(record.registration.as_deref()))?.into_iter().collect()
        } else {
            let mut all = table.all()?;
            all.retain(|entry| !entry.line.is_host() && entry.line.generations().contains(&record.generation));
            all
        };
        // Those of this process are looked for only where one may have gone: there may be thousands.
        let may_have_gone = cfg!(feature = "serve") && self.left != self.leaving.others();
        let here = may_have_gone.then(|| self.files.cursors(&topic_of(&self.record))).flatten();
        let mut news = News::None;
        for Entry { slot, line, .. } in peers {
            let is_unsaid =
                here.as_ref().is_some_and(|(node, cursors)| line.node == *node && !cursors.contains_key(&slot));
            let presence = presence(&line, &mut alive, now)?;
            if line.ended.is_none() && (is_unsaid || matches!(presence, Presence::Ended { .. }))
                || presence.is_news(now, policy.settings.grace)
            {
                return Ok(News::Now);
            }
            // Another process may be killed, and a grace passes.
            let is_elsewhere = line.says_it_listens() && line.node != self.wakeup.node();
            if is_elsewhere || (line.ended.is_some() && !line.told) {
                news = News::Perhaps;
            }
        }
        Ok(news)
    }

    /// After somebody has removed files under the running stream: makes them anew, unless the host has been registered
    /// anew meanwhile or the session is gone for good.
    fn regain(&mut self, policy: &Policy<'_>) -> Result<Standing, Error> {
        let files = self.files.clone();
        let registration = self.party.registration.as_deref();
        let session = match &self.party.client {
            None => files.session_or_new(&self.party.host, registration, policy, u64::MAX)?.map(|(session, _)| session),
            Some(_) => files.session(&self.party.host, policy)?,
        };
        let Some(mut session) = session else {
            self.missing += 1;
            let is_over = self.missing >= Self::ROUNDS_WITHOUT_SESSION;
            return Ok(if is_over { Standing::Over } else { Standing::Listening });
        };
        if registration.is_some() && session.record.registration.as_deref() != registration {
            return Ok(Standing::Over);
        }
        let mut member = match session.find(&self.key)? {
            // Another stream was faster.
            Some(found) if found.line.stream > 0 && found.line.stream != self.stream => {
                return Ok(Standing::Superseded);
            }
            Some(found) => found,
            None => session.add(self.key.clone(), *self.generations.end())?,
        };
        say!("uhst-relay: files of a running stream were removed; they are made anew");
        // It goes on where it was. In another slot it hears only what comes: what was said there was for somebody else.
        if member.slot == self.slot {
            member.line.from = member.line.from.min(self.log.position());
        }
        let again = session.begin_to_listen(&self.party, member, Some(self.log.position()))?;
        let (members, log) = (again.members, again.log);
        (self.members, self.slot, self.key, self.generations) = (members, again.slot, again.key, again.generations);
        (self.stream, self.noted, self.wakeup) = (again.stream, again.noted, again.wakeup);
        self.delivered = again.delivered;
        // What was in the log is gone, and nobody can say what that was.
        self.log = log;
        self.may_have_more = true;
        Ok(Standing::Listening)
    }

    /// Ends the listening, and tells the peers unless the recipient may still come back unnoticed.
    ///
    /// # Errors
    /// When that cannot be written; it is then noticed as the end of a killed process.
    pub fn end(&mut self, policy: &Policy<'_>) -> Result<(), Error> {
        let files = self.files.clone();
        let Some(mut session) = files.session(&self.party.host, policy)? else { return Ok(()) };
        let Some(mut member) = session.find(&self.key)? else { return Ok(()) };
        if member.line.stream != self.stream || member.slot != self.slot {
            return Ok(());
        }
        // What was sent to it in this millisecond was sent before.
        member.line.ended = Some(session.now + 1);
        session.update(&member)?;
        self.leaving.has_said_so = true;
        self.write_cursor()?;
        match &self.party.client {
            None => session.tell_of_host(),
            Some(_) => session.tell_of_client(&mut member),
        }
    }
}

#[cfg(test)]
mod tests;
