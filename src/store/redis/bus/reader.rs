//! Reading a bus.

use super::super::process::{Process, Redis};
use super::super::subscription::{Care, Caring, Subscription};
use super::super::topic::{Record, Topic};
use super::{Keys, Limits, Make, READ, TEND};
use crate::clock::instant;
use crate::config::Settings;
use crate::store::buses::{BusEvent, BusName, Message, Refused, User};
use crate::store::error::Error;
use crate::store::made::Made;
use crate::store::sessions::Standing;
use crate::wake::Ready;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// So much is taken from the log at once.
const PIECE: usize = 16 * 1024;

/// How often it is noted that a registered user is there.
const USER_ROUND: Duration = Duration::from_secs(15);

/// Reads a bus.
pub struct BusReader {
    process: Arc<Process>,
    keys: Arc<Keys>,
    /// `None` for somebody who is no user.
    user: Option<User>,
    /// The first number of the bus, which says whether it is still the same; 0 before it is known.
    first: u64,
    limits: Limits,
    /// The last id that was given, or asked for.
    after: u64,
    /// Up to where it was read; what is read and not given yet; and whether there may be more in the log.
    position: u64,
    read: VecDeque<Arc<Record>>,
    may_have_more: bool,
    /// Whether messages that it asked for were dropped before it read them.
    has_lost: bool,
    subscription: Option<Subscription>,
    /// When the user was noted last to be there.
    noted_at: Instant,
}

/// What is done for a bus while somebody waits there.
struct BusCare {
    process: Arc<Process>,
    keys: Arc<Keys>,
    limits: Limits,
}

impl Care for BusCare {
    fn tend<'a>(&'a self, topic: &'a Topic) -> Caring<'a, Result<(), Error>> {
        Box::pin(self.process.tend_topic(&self.keys, self.limits, topic))
    }

    fn leave(&self, left: usize) -> Caring<'_, ()> {
        // Whoever cannot say it is known to be gone within seconds.
        Box::pin(async move { _ = self.process.tend(&self.keys, self.limits, left).await })
    }
}

impl Process {
    /// Says that so many wait at the bus on this node; and the first and the last number of the bus.
    async fn tend(&self, keys: &Keys, limits: Limits, count: usize) -> Result<(u64, u64), Refused> {
        let count = count.to_string();
        let arguments = [b"", self.node()?.as_bytes(), count.as_bytes()];
        let mut answer = self.on_bus(keys, limits, &TEND, Make::No, &arguments).await?;
        let first = answer.number().map_err(Error::from)?;
        Ok((first, answer.number().map_err(Error::from)?))
    }

    /// The same for all that wait at a topic, which is told.
    async fn tend_topic(&self, keys: &Keys, limits: Limits, topic: &Topic) -> Result<(), Error> {
        match self.tend(keys, limits, topic.waiting()).await {
            Ok((first, last)) => {
                topic.note_first(Some(first));
                topic.note_last(last);
            }
            Err(Refused::Store(error)) => return Err(error),
            Err(_) => topic.note_first(None),
        }
        Ok(())
    }
}

impl Redis {
    pub async fn read(
        &self,
        name: &BusName,
        after: u64,
        user: User,
        settings: &Settings,
    ) -> Result<BusReader, Refused> {
        BusReader::new(self, name, (Make::No, &user.0.to_string()), Some(after), false, settings).await
    }

    pub async fn subscribe(
        &self,
        name: &BusName,
        after: Option<u64>,
        user: Option<User>,
        settings: &Settings,
    ) -> Result<BusReader, Refused> {
        let (make, user) = user.map_or((Make::Open, String::new()), |user| (Make::No, user.0.to_string()));
        BusReader::new(self, name, (make, &user), after, true, settings).await
    }

    pub async fn enter(&self, name: &BusName, settings: &Settings) -> Result<(User, BusReader), Refused> {
        let reader = BusReader::new(self, name, (Make::Open, "new"), None, true, settings).await?;
        Ok((reader.user.unwrap_or(User::APPLICATION), reader))
    }
}

impl BusReader {
    /// One that reads what comes after an id, or from now on, as `user` names it to the script; one that waits is woken by each
    /// message.
    async fn new(
        redis: &Redis,
        name: &BusName,
        (make, user): (Make, &str),
        after: Option<u64>,
        waits: bool,
        settings: &Settings,
    ) -> Result<Self, Refused> {
        let mut reader = Self {
            process: redis.process.clone(),
            keys: Arc::new(redis.process.bus(name)),
            user: user.parse().ok().map(User),
            first: 0,
            limits: settings.into(),
            after: 0,
            position: 0,
            read: VecDeque::new(),
            may_have_more: true,
            has_lost: false,
            subscription: None,
            noted_at: instant(),
        };
        if waits {
            reader.wait((make, user), after).await?;
        } else {
            reader.look((make, user), after, PIECE, None).await?;
        }
        Ok(reader)
    }

    async fn wait(&mut self, who: (Make, &str), after: Option<u64>) -> Result<(), Refused> {
        let place = self.process.topics.enter(self.keys.channel(), "");
        self.look(who, after, 0, Some(place.topic.waiting())).await?;
        place.topic.note_first(Some(self.first));
        let care = BusCare { process: self.process.clone(), keys: self.keys.clone(), limits: self.limits };
        let channels = vec![self.keys.channel().to_owned()];
        self.subscription = Some(Subscription::begin(&self.process, place, channels, Arc::new(care)).await?);
        self.may_have_more = true;
        Ok(())
    }

    /// Has it woken by each message from now on.
    ///
    /// # Errors
    /// Those of [`Store::subscribe`](crate::store::Store::subscribe).
    pub async fn wait_for_more(&mut self, settings: &Settings) -> Result<(), Refused> {
        let user = self.user.map(|user| user.0.to_string()).unwrap_or_default();
        self.limits = settings.into();
        self.wait((Make::No, &user), Some(self.position)).await
    }

    /// Reads so many bytes, about, of what comes after an id.
    async fn look(
        &mut self,
        (make, user): (Make, &str),
        after: Option<u64>,
        size: usize,
        waiting: Option<usize>,
    ) -> Result<(), Refused> {
        let topic = self.subscription.as_ref().map(|subscription| subscription.place.topic.clone());
        let since = topic.as_ref().and_then(|topic| topic.listening_since());
        let node = if waiting.is_some() { self.process.node()? } else { "" };
        let texts = [
            after.map(|after| after.to_string()).unwrap_or_default(),
            size.to_string(),
            waiting.unwrap_or(0).to_string(),
            self.limits.clients.to_string(),
        ];
        let [after, size_text, waiting, most] = texts.each_ref().map(String::as_bytes);
        let arguments = [user.as_bytes(), after, size_text, node.as_bytes(), waiting, most];
        let mut answer = self.process.on_bus(&self.keys, self.limits, &READ, make, &arguments).await?;
        let mut number = || answer.number().map_err(Error::from);
        let [user_number, first, gone, last, start, has_more] =
            [number()?, number()?, number()?, number()?, number()?, number()?];
        if self.first == 0 {
            self.first = first;
            self.user = (!user.is_empty()).then_some(User(user_number));
            (self.after, self.position) = (start, start);
        }
        // Whoever has read nothing yet says 0, and means everything.
        if start < gone {
            self.has_lost |= self.after > 0;
            self.after = self.after.max(gone);
        }
        if size == 0 {
            return Ok(());
        }
        let mut records = answer.values().map_err(Error::from)?;
        while records.left() > 0 {
            let id = records.number().map_err(Error::from)?;
            let (to, data) = (records.text().map_err(Error::from)?, records.text().map_err(Error::from)?);
            self.position = id;
            let (generation, event, except) = (0, String::new(), String::new());
            self.read.push_back(Arc::new(Record { id, to, generation, event, except, data, made: Made::default() }));
        }
        self.may_have_more = has_more > 0;
        if !self.may_have_more {
            self.position = self.position.max(last);
            if let (Some(topic), Some(since)) = (topic, since) {
                topic.note_end(last, since);
            }
        }
        Ok(())
    }

    /// Fetches what there is next, from what the topic was told or from the log.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn fetch(&mut self) -> Result<(), Error> {
        if !self.read.is_empty() {
            return Ok(());
        }
        if let Some(subscription) = &self.subscription {
            if let Some((records, has_more)) = subscription.place.topic.after(self.position) {
                self.position = records.last().map_or(self.position, |record| record.id);
                self.may_have_more = has_more;
                self.read.extend(records);
                return Ok(());
            }
        } else if !self.may_have_more {
            return Ok(());
        }
        match self.look((Make::No, ""), Some(self.position), PIECE, None).await {
            Ok(()) => Ok(()),
            Err(Refused::Store(error)) => Err(error),
            // It is gone, as the next round will find.
            Err(_) => {
                self.may_have_more = false;
                Ok(())
            }
        }
    }

    /// Both, for a stream.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn fetch_next(&mut self, take: impl FnMut(BusEvent<'_>)) -> Result<bool, Error> {
        self.fetch().await?;
        Ok(self.next(take))
    }

    /// Gives what was fetched to `take`; false when there is no more for now. What is dead, or the user's own, is not given.
    pub fn next(&mut self, mut take: impl FnMut(BusEvent<'_>)) -> bool {
        for record in self.read.drain(..) {
            // A loss is told with the id before what follows it: whoever comes back with that gets what follows.
            let before = std::mem::replace(&mut self.after, record.id);
            let Ok(user) = record.to.parse() else { continue };
            if self.process.is_dead(record.id, self.limits.message_lifetime) {
                self.has_lost |= before > 0;
            } else if Some(User(user)) != self.user {
                if std::mem::take(&mut self.has_lost) {
                    take(BusEvent::Lost(before));
                }
                let (data, made) = (record.data.as_str(), Some(&record.made));
                take(BusEvent::Message(Message { id: record.id, user, data, made }));
            }
        }
        if !self.may_have_more && std::mem::take(&mut self.has_lost) {
            take(BusEvent::Lost(self.after));
        }
        self.may_have_more
    }

    /// The id of the last message that was read; before the first one, the id after which it begins.
    #[must_use]
    pub fn after(&self) -> u64 {
        self.after
    }

    /// What is ready when something was posted.
    #[must_use]
    pub fn wake(&self) -> Option<Ready<'_>> {
        self.subscription.as_ref().and_then(Subscription::wake)
    }

    /// Whether every message is sure to make [`BusReader::wake`] ready; what it does not, a [round](Self::tend) finds, which also
    /// begins to listen anew: to ask a Redis that is away fifty times a second would not bring it back.
    #[must_use]
    pub fn is_surely_woken(&self) -> bool {
        self.subscription.is_some()
    }

    /// To be called when [`BusReader::wake`] was ready, before looking for messages.
    pub fn hear(&mut self) {
        self.may_have_more = true;
        if let Some(subscription) = &mut self.subscription {
            subscription.hear();
        }
    }

    /// Has the log read, whatever was told.
    #[cfg(test)]
    pub fn look_anew(&self) {
        if let Some(subscription) = &self.subscription {
            subscription.place.topic.forget();
        }
    }

    /// Does what has to be done from time to time: keeps the bus and the user in use, and mends what wakes it. It is over where
    /// the bus, or the user, is gone.
    ///
    /// # Errors
    /// When that cannot be seen or done; the next call tries again.
    pub async fn tend(&mut self) -> Result<Standing, Error> {
        if let Some(user) = self.user.filter(|user| user.is_registered())
            && instant() >= self.noted_at + USER_ROUND
        {
            let number = user.0.to_string();
            match self.process.on_bus(&self.keys, self.limits, &TEND, Make::No, &[number.as_bytes(), b"", b"0"]).await {
                Ok(_) => self.noted_at = instant(),
                Err(Refused::Store(error)) => return Err(error),
                Err(_) => return Ok(Standing::Over),
            }
        }
        let Some(subscription) = &mut self.subscription else { return Ok(Standing::Listening) };
        subscription.tend(&self.process).await?;
        Ok(if subscription.place.topic.is(self.first) { Standing::Listening } else { Standing::Over })
    }
}
