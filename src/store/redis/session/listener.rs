//! Listening: the end at which a host, or a client, takes its events from the log.

use super::super::process::{Process, Redis};
use super::super::subscription::{Care, Caring, Subscription, is_shared};
use super::super::topic::{Place, Record, Sleeper, Topic};
use super::{DELIVER, FINISH, Keys, LISTEN, Limits, Make, READ, TEND, client_key, host_key, registration_of};
use crate::store::error::Error;
use crate::store::made::Made;
use crate::store::sessions::{Event, Party, Policy, Refused, Standing};
use crate::wake::Ready;
use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
#[cfg(feature = "serve")]
use {crate::wake::wait, std::time::Duration};

/// So much is taken from the log at once.
const PIECE: usize = 64 * 1024;

/// How far streams were given the log is noted at once where nothing was for so long, and then together for all of a topic: at a
/// thousand streams a note for each message would cost Redis more than the message. Whoever is given so many bytes, or a
/// quarter of what may wait for it, has it noted without a pause: nobody shall be taken for slow who is not.
#[cfg(feature = "serve")]
const NOTES_PAUSE: Duration = Duration::from_millis(100);
#[cfg(feature = "serve")]
const LATE: u64 = 64 * 1024;

/// So many notes are one script.
const NOTES: usize = 500;

/// The event type of what others send, and of what nobody was given, because all recipients lagged.
const MESSAGE: &str = "message";
const LEFT_OUT: &str = "left-out";

/// A recipient that listens. As long as this lives, it is present.
pub struct Listener {
    care: Arc<SessionCare>,
    key: String,
    /// The generations it belongs to, the first and the last.
    generations: (u32, u32),
    stream: u32,
    subscription: Option<Subscription>,
    /// Up to where the log was read; what is read and not given yet; and whether there may be more.
    read_to: u64,
    read: VecDeque<Arc<Record>>,
    may_have_more: bool,
    /// Up to where everything is given; from where on it may be under way to the recipient yet; and how much was given since it
    /// was seen to that this is noted.
    position: u64,
    under_way: Option<u64>,
    #[cfg(feature = "serve")]
    given: u64,
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
    has_ended: bool,
}

/// What is known of something that was dropped before it was read.
#[derive(Clone, Copy, PartialEq, Eq)]
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

/// What is done for the members that listen in a topic of a session.
struct SessionCare {
    process: Arc<Process>,
    keys: Keys,
    limits: Limits,
    is_host: bool,
}

impl SessionCare {
    /// Notes how far these were given the log, where that is not noted.
    async fn note(&self, sleepers: &[Arc<Sleeper>]) -> Result<(), Error> {
        let unnoted = sleepers.iter().filter_map(|sleeper| sleeper.unnoted().map(|note| (sleeper, note)));
        for some in unnoted.collect::<Vec<_>>().chunks(NOTES) {
            let texts = some.iter().flat_map(|(_, (key, stream, position))| {
                [(*key).to_owned(), stream.to_string(), position.to_string()].map(String::into_bytes)
            });
            let texts: Vec<_> = texts.collect();
            let arguments: Vec<_> = texts.iter().map(Vec::as_slice).collect();
            DELIVER.run(&self.process.servers, &[self.keys.cursors()], &arguments).await?;
            for (sleeper, (.., position)) in some {
                sleeper.note(*position);
            }
        }
        Ok(())
    }

    /// The same for all that wait in a topic, a while later.
    #[cfg(feature = "serve")]
    async fn note_later(&self, topic: &Topic) {
        loop {
            wait(&mut [&mut Ready::to_hear(&topic.notes.are_many)], NOTES_PAUSE).await;
            topic.notes.are_many.hear();
            topic.notes.are_due.store(false, Ordering::SeqCst);
            let sleepers = topic.sleepers();
            // Whoever is given something from now on sees to it anew.
            if sleepers.iter().all(|sleeper| sleeper.unnoted().is_none())
                || topic.notes.are_due.swap(true, Ordering::SeqCst)
            {
                return;
            }
            // A round tries it again.
            if self.note(&sleepers).await.is_err() {
                return topic.notes.are_due.store(false, Ordering::SeqCst);
            }
        }
    }

    /// Does what has to be done from time to time for these, of those that wait in a topic.
    async fn tend(&self, topic: &Topic, sleepers: &[Arc<Sleeper>]) -> Result<(), Error> {
        self.note(sleepers).await?;
        let sleepers: Vec<_> = sleepers.iter().filter(|sleeper| sleeper.line.get().is_some()).collect();
        if sleepers.is_empty() {
            return Ok(());
        }
        let lines = sleepers.iter().filter_map(|sleeper| sleeper.line.get()).flat_map(|(_, line)| line);
        let is_host: &[u8] = if self.is_host { b"1" } else { b"0" };
        let arguments: Vec<_> = [is_host].into_iter().chain(lines.map(String::as_bytes)).collect();
        let standings = match self.process.on_session(&self.keys, self.limits, &TEND, None, &arguments).await {
            Ok(Some(mut answer)) => {
                // They may have been told nothing, where the log is on its way to another node of a cluster.
                topic.note_last(answer.number()?);
                let mut standings = answer.values()?;
                sleepers.iter().map(|_| standings.number()).collect::<Result<_, _>>()?
            }
            Ok(None) => vec![2; sleepers.len()],
            Err(Refused::Store(error)) => return Err(error),
            Err(_) => return Ok(()),
        };
        for (sleeper, standing) in sleepers.iter().zip(standings) {
            sleeper.standing.store(u8::try_from(standing).unwrap_or(0), Ordering::Relaxed);
        }
        Ok(())
    }
}

impl Care for SessionCare {
    fn tend<'a>(&'a self, topic: &'a Topic) -> Caring<'a, Result<(), Error>> {
        Box::pin(async { self.tend(topic, &topic.sleepers()).await })
    }

    /// Each says for itself that it ends.
    fn leave(&self, _: usize) -> Caring<'_, ()> {
        Box::pin(async {})
    }
}

/// How scripts are told who wants to listen.
struct Listening {
    key: String,
    registration: String,
    resume: String,
    is_client: bool,
}

impl Listening {
    fn of(party: &Party, resume: Option<u64>) -> Self {
        let registration = registration_of(party.registration.as_deref());
        let key = match &party.client {
            Some(client) => client_key(client),
            // An application's own host is whichever is the host now.
            None if registration.is_empty() => String::new(),
            None => host_key(&registration),
        };
        let resume = resume.map(|id| id.to_string()).unwrap_or_default();
        Self { key, registration, resume, is_client: party.client.is_some() }
    }

    fn arguments<'a>(&'a self, is_look: &'a str) -> [&'a [u8]; 5] {
        let is_client = if self.is_client { "1" } else { "0" };
        [&self.key, is_client, &self.registration, &self.resume, is_look].map(str::as_bytes)
    }
}

/// What is to be said where there is no session: only an application's own host may make one.
fn missing(party: &Party) -> Refused {
    if party.registration.is_some() { Refused::Expired } else { Refused::UnknownHost }
}

impl Redis {
    pub async fn would_listen(&self, party: &Party, resume: Option<u64>, policy: &Policy<'_>) -> Result<(), Refused> {
        let keys = self.process.session(&party.host);
        let listening = Listening::of(party, resume);
        match self.process.on_session(&keys, policy.into(), &LISTEN, None, &listening.arguments("1")).await? {
            None if party.registration.is_some() || party.client.is_some() => Err(missing(party)),
            _ => Ok(()),
        }
    }

    pub async fn listen(&self, party: &Party, resume: Option<u64>, policy: &Policy<'_>) -> Result<Listener, Refused> {
        let process = &self.process;
        let (keys, limits) = (process.session(&party.host), Limits::from(policy));
        let listening = Listening::of(party, resume);
        let is_minted_host = party.registration.is_none() && party.client.is_none();
        let make = is_minted_host.then(|| Make { host: party.host.as_str(), registration: String::new() });
        let is_host = party.client.is_none();
        let log = keys.log(is_host).to_owned();
        let care = Arc::new(SessionCare { process: process.clone(), keys, limits, is_host });
        #[cfg(feature = "serve")]
        if let (None, Some(topic)) = (resume, process.topics.get(&log)) {
            // Whoever comes without an id goes on after what the stream that has its place was given.
            care.note(&topic.sleepers_of(&listening.key)).await?;
        }
        let answer = process.on_session(&care.keys, limits, &LISTEN, make.as_ref(), &listening.arguments("0")).await?;
        let mut answer = answer.ok_or_else(|| missing(party))?;
        let key = answer.text().map_err(Error::from)?;
        let mut number = || answer.number().map_err(Error::from);
        let generation = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        let generations = (generation(number()?), generation(number()?));
        let (stream, position, last) = (generation(number()?), number()?, number()?);
        let gone_since = answer.text().map_err(Error::from)?.parse().unwrap_or(u64::MAX);
        let has_missed = answer.number().map_err(Error::from)? > 0;
        let id = party.client.as_ref().map_or(party.host.as_str(), |client| client.as_str());
        let lifetime = u64::try_from(limits.message_lifetime.as_millis()).unwrap_or(u64::MAX);
        let mut listener = Listener {
            care: care.clone(),
            key: key.clone(),
            generations,
            stream,
            subscription: None,
            read_to: position,
            read: VecDeque::new(),
            may_have_more: true,
            position,
            under_way: None,
            #[cfg(feature = "serve")]
            given: 0,
            backlog: (last, process.now().saturating_sub(lifetime)),
            gone_since,
            has_resumed: resume.is_some_and(|id| id > 0),
            loss: if has_missed { Loss::Untold } else { Loss::None },
            lost_event: (policy.words.event, policy.words.of(policy.words.messages_lost, id)),
            has_ended: false,
        };
        let place = if is_shared() { process.topics.enter(&log, &key) } else { Place::alone(&log, &key) };
        let is_any = if is_minted_host { "1" } else { "0" };
        let line = vec![key.clone(), generations.1.to_string(), stream.to_string(), is_any.to_owned()];
        place.sleeper.begin_at(position);
        // Nobody else has set it.
        let _ = place.sleeper.line.set((stream, line));
        let channels = vec![format!("{log} {key}"), format!("{log} ")];
        listener.subscription = Some(Subscription::begin(process, place, channels, care).await?);
        Ok(listener)
    }
}

impl Listener {
    /// The id after which the next event comes.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position
    }

    /// What is ready when there may be something new.
    #[must_use]
    pub fn wake(&self) -> Option<Ready<'_>> {
        self.subscription.as_ref().and_then(Subscription::wake)
    }

    /// Whether everything new is sure to make [`Listener::wake`] ready; what it does not, a [round](Self::tend) finds, which also
    /// begins to listen anew: to ask a Redis that is away fifty times a second would not bring it back.
    #[must_use]
    pub fn is_surely_woken(&self) -> bool {
        self.subscription.is_some()
    }

    /// To be called when [`Listener::wake`] was ready, before looking for events. Whether another stream has come to take the
    /// place.
    pub fn hear(&mut self) -> bool {
        self.subscription.as_mut().is_some_and(Subscription::hear)
    }

    /// Has the log read, whatever was told.
    #[cfg(test)]
    pub fn look_anew(&self) {
        if let Some(subscription) = &self.subscription {
            subscription.place.topic.forget();
        }
    }

    fn is_for_it(&self, record: &Record) -> bool {
        let (first, last) = self.generations;
        record.to == self.key || (record.to.is_empty() && (first..=last).contains(&record.generation))
    }

    /// Reads more, from what the topic was told or from the log.
    async fn read_more(&mut self) -> Result<(), Error> {
        let topic = self.subscription.as_ref().map(|subscription| subscription.place.topic.clone());
        if let Some((records, has_more)) = topic.as_ref().and_then(|topic| topic.after(self.read_to)) {
            self.read_to = records.last().map_or(self.read_to, |record| record.id);
            self.may_have_more = has_more;
            let own = records.into_iter().filter(|record| self.is_for_it(record)).collect::<Vec<_>>();
            self.read.extend(own);
            return Ok(());
        }
        let since = topic.as_ref().and_then(|topic| topic.listening_since());
        let (first, last) = self.generations;
        let texts = [first.to_string(), last.to_string(), self.read_to.to_string(), PIECE.to_string()];
        let [first, last, after, size] = texts.each_ref().map(String::as_bytes);
        let arguments = [self.key.as_bytes(), first, last, after, size];
        let answer =
            match self.care.process.on_session(&self.care.keys, self.care.limits, &READ, None, &arguments).await {
                Ok(answer) => answer,
                Err(Refused::Store(error)) => return Err(error),
                Err(_) => None,
            };
        // It is gone, as the next round will find.
        let Some(mut answer) = answer else {
            self.may_have_more = false;
            return Ok(());
        };
        self.read_to = answer.number()?;
        if answer.number()? > 0 {
            self.loss.notice();
        }
        self.may_have_more = answer.number()? > 0;
        let mut records = answer.values()?;
        while records.left() > 0 {
            let (id, to) = (records.number()?, records.text()?);
            let generation = u32::try_from(records.number()?).unwrap_or(u32::MAX);
            let (event, except, data) = (records.text()?, records.text()?, records.text()?);
            let made = Made::default();
            self.read.push_back(Arc::new(Record { id, to, generation, event, except, data, made }));
        }
        if let (false, Some(topic), Some(since)) = (self.may_have_more, topic, since) {
            topic.note_end(self.read_to, since);
        }
        Ok(())
    }

    /// Gives the next events to `take`; false when there are no more than these for now.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn next(&mut self, mut take: impl FnMut(Event<'_>)) -> Result<bool, Error> {
        if self.read.is_empty() {
            self.read_more().await?;
        }
        #[cfg(feature = "serve")]
        {
            self.given += self.read.iter().map(|record| record.data.len() as u64).sum::<u64>();
        }
        let Self { read, loss, backlog, has_resumed, lost_event, gone_since, key, position, under_way, .. } = self;
        let start = *position;
        let mut take = |event: Event<'_>| {
            under_way.get_or_insert(start);
            take(event);
        };
        let mut was_left_out = false;
        let tell = |loss: &mut Loss, id, take: &mut dyn FnMut(Event<'_>)| {
            if *loss == Loss::Untold {
                *loss = Loss::Told;
                take(Event { id, event: lost_event.0, data: &lost_event.1, made: None });
            }
        };
        // A loss is told with the id before what follows it: whoever comes back with that gets what follows.
        let mut before = *position;
        tell(loss, before, &mut take);
        let (backlog_end, oldest) = *backlog;
        for record in read.drain(..) {
            let (id, time) = (record.id, record.id / 1024);
            let is_to_all = record.to.is_empty();
            if is_to_all && record.event == MESSAGE && id <= backlog_end && time >= *gone_since {
                continue;
            }
            if is_to_all && is_left_out(&record.except, key) {
                was_left_out = true;
                loss.notice();
                tell(loss, id, &mut take);
            } else if record.event == LEFT_OUT {
                // It was nobody's but theirs.
            } else if id > backlog_end || time > oldest {
                tell(loss, before, &mut take);
                *loss = Loss::None;
                take(Event { id, event: &record.event, data: &record.data, made: Some(&record.made) });
            } else if *has_resumed {
                loss.notice();
            }
            before = id;
        }
        *position = self.read_to;
        tell(loss, *position, &mut take);
        // Else what it was left out of would count as waiting for it, so that it is left out again. A round tries again.
        if self.under_way.is_none() && was_left_out {
            let _ = self.note().await;
        }
        Ok(self.may_have_more)
    }

    /// Notes that everything [`Listener::next`] has given was written to the stream.
    ///
    /// # Errors
    /// When that cannot be written.
    pub async fn delivered(&mut self) -> Result<(), Error> {
        self.under_way = None;
        self.note().await
    }

    /// Up to where nothing is under way.
    fn reached(&self) -> u64 {
        self.under_way.unwrap_or(self.position)
    }

    async fn note(&mut self) -> Result<(), Error> {
        let reached = self.reached();
        let Some(subscription) = &self.subscription else { return Ok(()) };
        let place = &subscription.place;
        place.sleeper.give(reached);
        #[cfg(feature = "serve")]
        if is_shared() {
            let is_much = self.given >= LATE.min(self.care.limits.queue / 4);
            if is_much {
                self.given = 0;
            }
            let notes = &place.topic.notes;
            if notes.are_due.swap(true, Ordering::SeqCst) {
                if is_much {
                    notes.are_many.ring(1);
                }
                return Ok(());
            }
            let (care, topic) = (self.care.clone(), place.topic.clone());
            tokio::spawn(async move { care.note_later(&topic).await });
        }
        self.care.note(std::slice::from_ref(&place.sleeper)).await
    }

    fn found(&self) -> Standing {
        let standing =
            self.subscription.as_ref().map(|subscription| subscription.place.sleeper.standing.load(Ordering::Relaxed));
        match standing {
            Some(0) => Standing::Listening,
            Some(1) => Standing::Superseded,
            _ => Standing::Over,
        }
    }

    /// What has become of the place.
    ///
    /// # Errors
    /// When that cannot be seen.
    pub async fn standing(&mut self) -> Result<Standing, Error> {
        if let Some(Subscription { place, .. }) = &self.subscription {
            self.care.tend(&place.topic, std::slice::from_ref(&place.sleeper)).await?;
        }
        Ok(self.found())
    }

    /// Does what has to be done from time to time: says that it is there, looks what has become of the place, and tells of peers
    /// that have gone.
    ///
    /// # Errors
    /// When that cannot be seen or done; the next call tries again.
    pub async fn tend(&mut self) -> Result<Standing, Error> {
        if let Some(subscription) = &mut self.subscription {
            subscription.tend(&self.care.process).await?;
        }
        Ok(self.found())
    }

    /// Ends the listening, and tells the peers unless the recipient may still come back unnoticed.
    ///
    /// # Errors
    /// When that cannot be written; it is then noticed as the end of a killed process.
    pub async fn end(&mut self) -> Result<(), Error> {
        self.has_ended = true;
        let (stream, position) = (self.stream.to_string(), self.reached().to_string());
        let arguments = [self.key.as_bytes(), stream.as_bytes(), position.as_bytes()];
        match self.care.process.on_session(&self.care.keys, self.care.limits, &FINISH, None, &arguments).await {
            Err(Refused::Store(error)) => Err(error),
            _ => Ok(()),
        }
    }
}

/// Whether a broadcast has left out this member.
fn is_left_out(except: &str, key: &str) -> bool {
    !except.is_empty()
        && serde_json::from_str::<Vec<String>>(except).is_ok_and(|keys| keys.iter().any(|other| other == key))
}

impl Drop for Listener {
    /// Whoever could not say that it ends is gone all the same: at once, or if this fails within seconds.
    fn drop(&mut self) {
        if std::mem::replace(&mut self.has_ended, true) {
            return;
        }
        let care = self.care.clone();
        let member = format!("{} {}", self.key, self.stream);
        let gone = async move {
            let present = &care.keys.all[3];
            let command = super::super::reply::command(["ZADD", present, "XX", "0", &member]);
            let _ = care.process.servers.call(present, &command).await;
        };
        #[cfg(feature = "serve")]
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (care, own) = (self.care.clone(), self.subscription.as_ref().map(|own| own.place.sleeper.clone()));
            runtime.spawn(async move {
                let _ = care.note(own.as_slice()).await;
                gone.await;
            });
            return;
        }
        crate::gateway::run_blocking(gone);
    }
}
