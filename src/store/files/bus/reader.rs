//! Reading a bus.

use super::super::folder::beside;
use super::super::log::reader::Reader;
use super::super::members::{Cursor, Slot, Table};
use super::super::node::{Wakeup, topic_of};
use super::super::{Error, FileIdentity, Files, Kind};
use super::{Bus, BusRecord, MEMBERS, Waiting, touch_after};
use crate::clock::{has_passed, is_recent};
use crate::config::Settings;
use crate::hex;
use crate::store::buses::{BusEvent, BusName, Message, Refused, User};
use crate::store::sessions::Standing;
use crate::wake::Ready;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How much a poll takes from the log at once.
const POLL_SIZE: usize = 16 * 1024;

/// Reads a bus, without its lock.
pub struct BusReader {
    files: Files,
    name: BusName,
    user: Option<User>,
    log: Reader,
    lifetime: Duration,
    /// The last id that was read, or asked for.
    after: u64,
    /// Whether messages that it asked for were dropped before it read them.
    has_lost: bool,
    subscription: Option<Subscription>,
    /// Whether it is worth looking: after a knock, now and then, and until nothing is found.
    may_have_more: bool,
}

/// A reader's line among those that wait, and what wakes it. The line goes with it.
struct Subscription {
    wakeup: Wakeup,
    /// Where its table stands, and which file that is. It is not kept open: there may be thousands of readers.
    path: PathBuf,
    members: FileIdentity,
    slot: Slot,
    key: String,
}

impl Subscription {
    /// The table, as long as its line stands there; `None` where somebody has removed it.
    fn members(&self) -> Result<Option<Table<Waiting>>, Error> {
        let members = Table::<Waiting>::open(&self.path)?.filter(|members| members.identity() == self.members);
        let Some(members) = members else { return Ok(None) };
        let is_own = members.get(self.slot)?.is_some_and(|entry| entry.line.key == self.key);
        Ok(is_own.then_some(members))
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if let Ok(Some(members)) = self.members() {
            let _ = members.free(self.slot);
        }
    }
}

impl Files {
    pub fn read(&self, name: &BusName, after: u64, user: User, settings: &Settings) -> Result<BusReader, Refused> {
        let mut reader = self.bus_of(name, user, settings)?.reader(name, Some(after), Some(user))?;
        // Readers that have not taken their answers are many and slow.
        reader.log.take_at_once(POLL_SIZE);
        Ok(reader)
    }

    pub fn subscribe(
        &self,
        name: &BusName,
        after: Option<u64>,
        user: Option<User>,
        settings: &Settings,
    ) -> Result<BusReader, Refused> {
        let bus = match user {
            Some(user) => self.bus_of(name, user, settings)?,
            None => self.bus_or_new(name, false, settings)?.0,
        };
        bus.waiting_reader(name, after, user)
    }

    pub fn enter(&self, name: &BusName, settings: &Settings) -> Result<(User, BusReader), Refused> {
        let (mut bus, _) = self.bus_or_new(name, false, settings)?;
        let user = bus.new_user()?;
        Ok((user, bus.waiting_reader(name, None, Some(user))?))
    }
}

impl Bus<'_> {
    fn reader(&self, name: &BusName, after: Option<u64>, user: Option<User>) -> Result<BusReader, Error> {
        let topic = self.topic();
        let end = topic.end()?;
        // An id beyond the newest message means what comes from now on.
        let after = after.unwrap_or(end).min(end);
        let mut log = topic.reader(end)?;
        log.seek(after)?;
        // Whoever has read nothing yet says 0, and means everything.
        let has_lost = after > 0 && after < log.base();
        Ok(BusReader {
            files: self.files.clone(),
            name: name.clone(),
            user,
            log,
            lifetime: self.settings.message_lifetime,
            after,
            has_lost,
            subscription: None,
            may_have_more: true,
        })
    }

    /// One that is woken by each message.
    fn waiting_reader(&self, name: &BusName, after: Option<u64>, user: Option<User>) -> Result<BusReader, Refused> {
        let subscription = self.subscription(self.settings.max_clients)?;
        let mut reader = self.reader(name, after, user)?;
        reader.begin_to_wait(subscription);
        Ok(reader)
    }

    /// A line among those that wait. What killed readers have left gives way.
    fn subscription(&self, most: u64) -> Result<Subscription, Refused> {
        let path = self.folder.beside(MEMBERS);
        let mut members = Table::<Waiting>::open_or_make(&path)?;
        // Leftovers are only told apart when there are many.
        if members.all()?.len() as u64 >= most && self.waiting()? >= most {
            return Err(Refused::TooManyReaders(most));
        }
        let key = hex::random(8).map_err(Error::from)?;
        let wakeup = self.files.wakeup(&topic_of(self.folder.path()))?;
        let line = Waiting { key: key.clone(), node: wakeup.node().to_owned() };
        let slot = members.insert(&line, Cursor::default())?;
        wakeup.stand_at(slot);
        Ok(Subscription { wakeup, members: members.identity(), path, slot, key })
    }

    /// How many readers wait. What killed ones have left is removed.
    pub(super) fn waiting(&self) -> Result<u64, Error> {
        self.files.waiting_at(self.folder.path())
    }
}

impl Files {
    /// The same, of the bus whose record stands at `path`, and is locked.
    pub(super) fn waiting_at(&self, path: &Path) -> Result<u64, Error> {
        let Some(members) = Table::<Waiting>::open(&beside(path, MEMBERS))? else { return Ok(0) };
        let (mut alive, mut waiting) = (self.alive(), 0);
        for member in members.all()? {
            if alive.is(&member.line.node)? {
                waiting += 1;
            } else {
                members.free(member.slot)?;
            }
        }
        Ok(waiting)
    }
}

impl BusReader {
    /// Has it woken by each message from now on.
    ///
    /// # Errors
    /// Those of [`Store::subscribe`](crate::store::Store::subscribe).
    pub fn wait_for_more(&mut self, settings: &Settings) -> Result<(), Refused> {
        let files = self.files.clone();
        let bus = files.bus_for(&self.name, self.user, settings)?;
        self.begin_to_wait(bus.subscription(settings.max_clients)?);
        Ok(())
    }

    fn begin_to_wait(&mut self, subscription: Subscription) {
        self.log.share(|path| subscription.wakeup.recent(path));
        self.subscription = Some(subscription);
        self.may_have_more = true;
    }

    /// Gives what there is next to `take`; false when there is no more for now. What is dead, or the user's own, is not
    /// given.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn next(&mut self, mut take: impl FnMut(BusEvent<'_>)) -> Result<bool, Error> {
        // Whoever posts knocks; without that it is looked for every time.
        if self.is_surely_woken() && !self.may_have_more {
            return Ok(false);
        }
        let Self { log, after, user, lifetime, has_lost, .. } = self;
        self.may_have_more = log.read(
            |_| true,
            |record| {
                let Ok(from) = record.event.parse() else { return };
                // What was read already comes again where a stranger has cut the log off.
                if record.id <= *after {
                    return;
                }
                // A loss is told with the id before what follows it: whoever comes back with that gets what follows.
                let before = std::mem::replace(after, record.id);
                if has_passed(record.time, *lifetime) {
                    *has_lost |= before > 0;
                } else if Some(User(from)) != *user {
                    if std::mem::take(has_lost) {
                        take(BusEvent::Lost(before));
                    }
                    take(BusEvent::Message(Message {
                        id: record.id,
                        user: from,
                        data: record.data,
                        made: record.made,
                    }));
                }
            },
        )?;
        *has_lost |= log.has_lost();
        if !self.may_have_more && std::mem::take(has_lost) {
            take(BusEvent::Lost(*after));
        }
        Ok(self.may_have_more)
    }

    /// The id of the last message that was read; before the first one, the id after which it begins.
    #[must_use]
    pub fn after(&self) -> u64 {
        self.after
    }

    /// What is ready when something was posted.
    #[must_use]
    pub fn wake(&self) -> Option<Ready<'_>> {
        self.subscription.as_ref().and_then(|subscription| subscription.wakeup.wake())
    }

    /// Whether every message is sure to make [`BusReader::wake`] ready.
    #[must_use]
    pub fn is_surely_woken(&self) -> bool {
        self.subscription.as_ref().is_some_and(|subscription| subscription.wakeup.is_sure())
    }

    /// To be called when [`BusReader::wake`] was ready, and from time to time where it may not be, before looking for
    /// messages.
    pub fn hear(&mut self) {
        self.may_have_more = true;
        if let Some(subscription) = &self.subscription {
            subscription.wakeup.hear();
        }
    }

    /// Does what has to be done from time to time: keeps the bus and the user in use, and mends what wakes it. It is over where
    /// the bus, or the user, is gone.
    ///
    /// # Errors
    /// When that cannot be seen or done; the next call tries again.
    pub fn tend(&mut self, settings: &Settings) -> Result<Standing, Error> {
        // A poster may have been killed before it knocked.
        self.may_have_more |= self.log.has_more()?;
        let is_lost = match &mut self.subscription {
            Some(subscription) => {
                self.may_have_more |= subscription.wakeup.mend()?;
                subscription.members()?.is_none()
            }
            None => true,
        };
        // A look without the lock, at what is nearly always the case. A registered user has a lifetime of its own.
        let path = self.files.folder(Kind::Buses, self.name.as_str());
        let touched = super::Folder::<BusRecord>::touched_at(&path, Kind::Buses.shape())?;
        if !is_lost
            && !self.user.is_some_and(User::is_registered)
            && touched.is_some_and(|touched| is_recent(touched, touch_after(settings)))
        {
            return Ok(Standing::Listening);
        }
        let files = self.files.clone();
        let bus = match files.bus_for(&self.name, self.user, settings) {
            Ok(bus) => bus,
            Err(Refused::Store(error)) => return Err(error),
            // The bus, or the user, is gone.
            Err(_) => return Ok(Standing::Over),
        };
        bus.touch()?;
        if is_lost {
            say!("uhst-relay: the subscription of a running stream was removed; it is made anew");
            match bus.subscription(u64::MAX) {
                Ok(subscription) => self.begin_to_wait(subscription),
                Err(Refused::Store(error)) => return Err(error),
                Err(_) => return Ok(Standing::Over),
            }
        }
        Ok(Standing::Listening)
    }
}
