//! Listening: the end at which a host, or a client, takes its events from the log.

use super::super::process::{Process, Redis};
use super::super::subscription::{Care, Caring, Subscription, is_shared};
use super::super::topic::{Place, Record, Topic};
use super::{DELIVER, FINISH, Keys, LISTEN, Limits, Make, READ, TEND, client_key, host_key, registration_of};
use crate::store::error::Error;
use crate::store::made::Made;
use crate::store::sessions::{Event, Party, Policy, Refused, Standing};
use crate::wake::Ready;
use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// So much is taken from the log at once.
const PIECE: usize = 64 * 1024;

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
    /// Up to where everything is given; from where on it may be under way to the recipient yet; and what of that is noted, and
    /// what could not be and has to be tried again.
    position: u64,
    under_way: Option<u64>,
    noted: u64,
    owed: Option<u64>,
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
    async fn tend(&self, topic: &Topic) -> Result<(), Error> {
        let sleepers: Vec<_> = topic.sleepers().into_iter().filter(|sleeper| sleeper.line.get().is_some()).collect();
        if sleepers.is_empty() {
            return Ok(());
        }
        let lines = sleepers.iter().filter_map(|sleeper| sleeper.line.get()).flat_map(|(_, line)| line);
        let is_host: &[u8] = if self.is_host { b"1" } else { b"0" };
        let arguments: Vec<_> = [is_host].into_iter().chain(lines.map(String::as_bytes)).collect();
        let standings = match self.process.on_session(&self.keys, self.limits, &TEND, None, &arguments).await {
            Ok(Some(mut answer)) => {
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
        Box::pin(self.tend(topic))
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
        let answer = process.on_session(&keys, limits, &LISTEN, make.as_ref(), &listening.arguments("0")).await?;
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
        let is_host = party.client.is_none();
        let log = keys.log(is_host).to_owned();
        let care = Arc::new(SessionCare { process: process.clone(), keys, limits, is_host });
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
            noted: position,
            owed: None,
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

    /// Whether everything new is sure to make [`Listener::wake`] ready. While there is no connection nobody could look either.
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
        let delivered = self.reached();
        if delivered != self.noted {
            self.owed = Some(delivered);
            let (stream, position) = (self.stream.to_string(), delivered.to_string());
            let [_, members, cursors, ..] = &self.care.keys.all;
            let arguments = [self.key.as_bytes(), stream.as_bytes(), position.as_bytes()];
            DELIVER.run(&self.care.process.servers, &[members, cursors], &arguments).await?;
            (self.noted, self.owed) = (delivered, None);
        }
        Ok(())
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
        if let Some(subscription) = &self.subscription {
            self.care.tend(&subscription.place.topic).await?;
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
        if self.owed.is_some() {
            self.note().await?;
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
            runtime.spawn(gone);
            return;
        }
        crate::gateway::run_blocking(gone);
    }
}
