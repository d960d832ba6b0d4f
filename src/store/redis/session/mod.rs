//! A session of UHST in Redis: what the intentions ask for, one script each.
//!
//! The rules are those of the files' home; what that finds by reading a log (whether a message waits for somebody) stands here in
//! the member's line and in the record: the number of the last that was said to it, and to all.

pub mod listener;
#[cfg(test)]
mod tests;

use super::process::{Process, Redis, hash, milliseconds};
use super::reply::Values;
use super::script::Script;
use crate::config::Settings;
use crate::store::error::{Error, Full};
use crate::store::remote::{Reason, Remote};
use crate::store::sessions::{Claim, Party, Policy, Refused, Words};
use crate::token::{ClientId, HostId};
use std::collections::BTreeSet;
use std::time::Duration;

macro_rules! script {
    ($kind:ident $($more:literal)+) => {
        Script::$kind(concat!(
            include_str!("../memory.lua"),
            include_str!("../time.lua"),
            include_str!("begin.lua"),
            include_str!("said.lua"),
            $(include_str!($more)),+
        ))
    };
}

static REGISTER: Script = script!(promise "gone.lua" "register.lua");
static JOIN: Script = script!(promise "join.lua");
static SEND_TO_HOST: Script = script!(promise "send_to_host.lua");
static SEND_TO_CLIENT: Script = script!(promise "send_to_client.lua");
static BROADCAST: Script = script!(promise "broadcast.lua");
static LISTEN: Script = script!(new "listen.lua");
static READ: Script = script!(new "read.lua");
static TEND: Script = script!(new "gone.lua" "tend.lua");
static FINISH: Script = script!(new "gone.lua" "finish.lua");
static SWEEP: Script = script!(new "gone.lua" "sweep.lua");
static DELIVER: Script = Script::new(include_str!("deliver.lua"));

/// A host's place is kept for so long if it is not used.
const UNUSED_TIME: Duration = Duration::from_secs(60);

/// So many are looked at, those that go soonest, where there is no room for another.
const MOST_LOOKS: usize = 32;

/// What scripts are told of the settings.
#[derive(Clone, Copy)]
struct Limits {
    message_lifetime: Duration,
    session_lifetime: Duration,
    grace: Duration,
    queue: u64,
    topic: u64,
    data: u64,
    clients: u64,
    hosts: u64,
    words: &'static Words,
}

impl From<&Policy<'_>> for Limits {
    fn from(policy: &Policy<'_>) -> Self {
        let Settings {
            message_lifetime,
            session_lifetime,
            grace,
            max_queue,
            max_topic,
            max_data,
            max_clients,
            max_hosts,
            ..
        } = *policy.settings;
        Self {
            message_lifetime,
            session_lifetime,
            grace,
            queue: max_queue,
            topic: max_topic,
            data: max_data,
            clients: max_clients,
            hosts: max_hosts,
            words: policy.words,
        }
    }
}

/// A session's keys.
struct Keys {
    /// By which it is among all hosts.
    hash: String,
    /// As the scripts have them.
    all: [String; 6],
}

impl Keys {
    fn log(&self, is_host: bool) -> &str {
        &self.all[if is_host { 4 } else { 5 }]
    }

    fn cursors(&self) -> &str {
        &self.all[2]
    }
}

/// With what a session is made where there is none.
struct Make<'a> {
    host: &'a str,
    /// As scripts have it.
    registration: String,
}

/// As scripts have it: nothing for none.
fn registration_of(registration: Option<&str>) -> String {
    registration.map(|registration| format!("r{registration}")).unwrap_or_default()
}

/// The key of a host among the members of a session, by what scripts have as its registration.
fn host_key(registration: &str) -> String {
    if registration.is_empty() { "h".to_owned() } else { format!("h{}", hash(registration)) }
}

fn client_key(client: &ClientId) -> String {
    format!("c{}", client.as_str())
}

impl Process {
    /// All hosts, by when their sessions go.
    pub fn hosts(&self) -> String {
        format!("{}:hosts", self.prefix)
    }

    fn session(&self, host: &HostId) -> Keys {
        self.session_of_hash(hash(host.as_str()))
    }

    fn session_of_hash(&self, hash: String) -> Keys {
        let prefix = &self.prefix;
        let all = ["", ":members", ":cursors", ":present", ":to-host", ":to-clients"]
            .map(|part| format!("{prefix}:host:{{{hash}}}{part}"));
        Keys { hash, all }
    }

    /// Runs a script on a session: the first word of its answer, and the rest.
    async fn run_on_session(
        &self,
        keys: &Keys,
        limits: Limits,
        script: &Script,
        make: Option<&Make<'_>>,
        arguments: &[&[u8]],
    ) -> Result<(String, Values), Error> {
        let numbers = [
            milliseconds(limits.message_lifetime),
            milliseconds(limits.session_lifetime),
            milliseconds(limits.grace),
            limits.queue,
            limits.topic,
            limits.clients,
            limits.data,
        ]
        .map(|number| number.to_string());
        let (host, registration) = make.map_or(("", ""), |make| (make.host, make.registration.as_str()));
        let key = host_key(registration);
        let words = [limits.words.event, limits.words.host_closed, limits.words.client_closed];
        let texts = numbers.iter().map(String::as_str).chain([host, registration, &key]).chain(words);
        let all: Vec<&[u8]> = texts.map(str::as_bytes).chain(arguments.iter().copied()).collect();
        let mut answer = Values::of(script.run(&self.servers, &keys.all.each_ref().map(String::as_str), &all).await?)?;
        Ok((answer.text()?, answer))
    }

    /// Has a session give way that nobody has used for a while, or that is over. False where there is none.
    async fn make_room_for_hosts(&self, limits: Limits) -> Result<bool, Error> {
        for hash in self.soonest_of(&self.hosts(), MOST_LOOKS).await? {
            let keys = self.session_of_hash(hash);
            if self.run_on_session(&keys, limits, &SWEEP, None, &[b"room"]).await?.0 == "none" {
                return self.give_up(&self.hosts(), &keys.hash).await.map(|()| true);
            }
        }
        Ok(false)
    }

    /// Runs a script on a session. What it answers after what all answer; `None` where there is no session.
    async fn on_session(
        &self,
        keys: &Keys,
        limits: Limits,
        script: &Script,
        make: Option<&Make<'_>>,
        arguments: &[&[u8]],
    ) -> Result<Option<Values>, Refused> {
        let mut answer = self.run_on_session(keys, limits, script, None, arguments).await?;
        if answer.0 == "none" {
            if make.is_none() {
                return Ok(None);
            }
            let reserve =
                async || self.reserve(&self.hosts(), &keys.hash, limits.hosts, milliseconds(UNUSED_TIME)).await;
            let has_room = reserve().await? || (self.make_room_for_hosts(limits).await? && reserve().await?);
            if !has_room {
                return Err(Refused::TooManyHosts(limits.hosts));
            }
            answer = self.run_on_session(keys, limits, script, make, arguments).await?;
        }
        let (outcome, mut answer) = answer;
        match outcome.as_str() {
            "ok" => {
                let kept = answer.number().map_err(Error::from)?;
                self.note_time(answer.number().map_err(Error::from)?);
                // It is there already, whatever the limit.
                if kept > 0
                    && let Err(error) = self.reserve(&self.hosts(), &keys.hash, 1 << 40, kept).await
                {
                    error.log();
                }
                Ok(Some(answer))
            }
            "none" => Ok(None),
            "taken" => Err(Refused::Taken),
            "unknown host" => Err(Refused::UnknownHost),
            "expired" => Err(Refused::Expired),
            "host gone" => Err(Refused::HostGone),
            "client gone" => Err(Refused::ClientGone),
            "nobody there" => Err(Refused::NobodyThere),
            "messages wait" => Err(Refused::MessagesWait),
            "too many clients" => Err(Refused::TooManyClients(limits.clients)),
            "queue full" => Err(Error::QueueFull(Full { limit: limits.queue }).into()),
            "data full" => Err(Error::DataFull(Full { limit: limits.data }).into()),
            "topic full" => Err(Error::TopicFull(Full { limit: limits.topic }).into()),
            other => {
                Err(Error::from(Remote::new(Reason::Failed, format!("the relay's script answers '{other}'"))).into())
            }
        }
    }
}

impl Redis {
    pub async fn register(
        &self,
        host: &HostId,
        registration: &str,
        claim: Claim,
        policy: &Policy<'_>,
    ) -> Result<(), Refused> {
        let registration = registration_of(Some(registration));
        let key = host_key(&registration);
        let claim = if claim == Claim::Drawn { "drawn" } else { "chosen" };
        let arguments = [claim.as_bytes(), registration.as_bytes(), key.as_bytes()];
        let make = Make { host: host.as_str(), registration: registration.clone() };
        let keys = self.process.session(host);
        self.process.on_session(&keys, policy.into(), &REGISTER, Some(&make), &arguments).await.map(drop)
    }

    pub async fn join(&self, host: &HostId, client: &ClientId, policy: &Policy<'_>) -> Result<Option<String>, Refused> {
        let (keys, key) = (self.process.session(host), client_key(client));
        let answer = self.process.on_session(&keys, policy.into(), &JOIN, None, &[key.as_bytes()]).await?;
        let registration = answer.ok_or(Refused::UnknownHost)?.text().map_err(Error::from)?;
        Ok(registration.strip_prefix('r').map(str::to_owned))
    }

    pub async fn send_to_host(&self, from: &Party, data: &str, policy: &Policy<'_>) -> Result<(), Refused> {
        let key = client_key(from.client.as_ref().ok_or(Refused::Expired)?);
        let registration = registration_of(from.registration.as_deref());
        let gone = if from.registration.is_some() { Refused::Expired } else { Refused::UnknownHost };
        let arguments = [key.as_bytes(), registration.as_bytes(), data.as_bytes()];
        let keys = self.process.session(&from.host);
        self.process.on_session(&keys, policy.into(), &SEND_TO_HOST, None, &arguments).await?.ok_or(gone).map(drop)
    }

    pub async fn send_to_client(
        &self,
        host: &HostId,
        client: &ClientId,
        data: &str,
        policy: &Policy<'_>,
    ) -> Result<(), Refused> {
        let (keys, key) = (self.process.session(host), client_key(client));
        let arguments = [key.as_bytes(), data.as_bytes()];
        let sent = self.process.on_session(&keys, policy.into(), &SEND_TO_CLIENT, None, &arguments).await?;
        sent.ok_or(Refused::ClientGone).map(drop)
    }

    pub async fn broadcast(
        &self,
        from: &Party,
        data: &str,
        policy: &Policy<'_>,
    ) -> Result<Vec<(ClientId, bool)>, Refused> {
        // An application may have minted the token, and nobody used it.
        let gone = if from.registration.is_some() { Refused::Expired } else { Refused::NobodyThere };
        let registration = registration_of(from.registration.as_deref());
        let arguments = [registration.as_bytes(), data.as_bytes()];
        let keys = self.process.session(&from.host);
        let answer = self.process.on_session(&keys, policy.into(), &BROADCAST, None, &arguments).await?;
        let mut answer = answer.ok_or(gone)?;
        let (ids, without) = (answer.text().map_err(Error::from)?, answer.text().map_err(Error::from)?);
        let without: BTreeSet<String> = match without.as_str() {
            "" => BTreeSet::new(),
            keys => serde_json::from_str(keys).map_err(|error| {
                Error::from(Remote::new(Reason::Failed, format!("who lags cannot be read: {error}")))
            })?,
        };
        let is_sent = |id: &str| without.is_empty() || !without.contains(&format!("c{id}"));
        Ok(ids.split('\n').filter_map(|id| Some((ClientId::new(id)?, is_sent(id)))).collect())
    }

    /// Sweeps this session; where it may wait, unless somebody has just done so.
    pub(in crate::store::redis) async fn sweep_session(
        &self,
        hash: String,
        may_wait: bool,
        policy: &Policy<'_>,
    ) -> Result<(), Error> {
        let keys = self.process.session_of_hash(hash);
        let when: &[u8] = if may_wait { b"later" } else { b"now" };
        match self.process.on_session(&keys, policy.into(), &SWEEP, None, &[when]).await {
            Ok(Some(_)) => Ok(()),
            Err(Refused::Store(error)) => Err(error),
            Ok(None) | Err(_) => self.process.give_up(&self.process.hosts(), &keys.hash).await,
        }
    }
}
