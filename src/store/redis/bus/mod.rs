//! A bus in Redis: what the intentions ask for, one script each.

pub mod reader;
#[cfg(test)]
mod tests;

use super::process::{Process, Redis, hash, milliseconds};
use super::reply::{Reply, Values};
use super::script::Script;
use crate::config::Settings;
use crate::hex;
use crate::store::buses::{BusName, Proof, Refused, User};
use crate::store::error::{Error, Full};
use crate::store::remote::{Reason, Remote};
use crate::store::sessions::Policy;
use std::time::Duration;

macro_rules! script {
    ($kind:ident $name:literal) => {
        Script::$kind(concat!(
            include_str!("../memory.lua"),
            include_str!("../time.lua"),
            include_str!("begin.lua"),
            include_str!($name)
        ))
    };
}

static GREET: Script = script!(promise "greet.lua");
static REGISTER: Script = script!(promise "register.lua");
static MAKE: Script = script!(promise "make.lua");
static POST: Script = script!(promise "post.lua");
static READ: Script = script!(new "read.lua");
static TEND: Script = script!(new "tend.lua");
static SWEEP: Script = script!(new "sweep.lua");

/// As in the scripts.
const UNUSED_TIME: Duration = Duration::from_secs(60);
const NODE_TIME: Duration = Duration::from_secs(5);

/// What somebody who has just looked needs no more than: the secret of a registered user.
static SECRET: Script = Script::new("return string.match(redis.call('HGET', KEYS[1], ARGV[1]) or '', '^%x+')");

/// Whether a bus is made where there is none.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Make {
    No,
    Open,
    Signed,
}

impl Make {
    fn as_bytes(self) -> &'static [u8] {
        match self {
            Self::No => b"",
            Self::Open => b"open",
            Self::Signed => b"signed",
        }
    }
}

/// What scripts are told of the settings.
#[derive(Clone, Copy)]
struct Limits {
    message_lifetime: Duration,
    bus_lifetime: Duration,
    bytes: u64,
    data: u64,
    buses: u64,
    /// Readers that wait, and registered users.
    clients: u64,
}

impl From<&Settings> for Limits {
    fn from(settings: &Settings) -> Self {
        Self {
            message_lifetime: settings.message_lifetime,
            bus_lifetime: settings.bus_lifetime,
            bytes: settings.max_queue,
            data: settings.max_data,
            buses: settings.max_buses,
            clients: settings.max_clients,
        }
    }
}

/// A bus's keys.
struct Keys {
    /// By which it is among all buses.
    hash: String,
    /// As the scripts have them.
    all: [String; 5],
}

impl Keys {
    /// On which it is told what is posted.
    fn channel(&self) -> &str {
        &self.all[1]
    }
}

impl Process {
    /// All buses, by when they go.
    pub fn buses(&self) -> String {
        format!("{}:buses", self.prefix)
    }

    fn bus(&self, name: &BusName) -> Keys {
        self.bus_of_hash(hash(name.as_str()))
    }

    fn bus_of_hash(&self, hash: String) -> Keys {
        let prefix = &self.prefix;
        let all = ["", ":log", ":users", ":nodes", ":waiting"].map(|part| format!("{prefix}:bus:{{{hash}}}{part}"));
        Keys { hash, all }
    }

    /// Runs a script on a bus. What it answers after what all answer.
    async fn on_bus(
        &self,
        keys: &Keys,
        limits: Limits,
        script: &Script,
        make: Make,
        arguments: &[&[u8]],
    ) -> Result<Values, Refused> {
        let [record, log, users, nodes, waiting] = &keys.all;
        let texts = [
            milliseconds(limits.message_lifetime).to_string(),
            limits.bytes.to_string(),
            milliseconds(limits.bus_lifetime).to_string(),
        ];
        let run = async |make: Make| -> Result<(String, Values), Remote> {
            let [lifetime, most, bus_lifetime] = &texts;
            let head = [lifetime.as_bytes(), most.as_bytes(), bus_lifetime.as_bytes(), make.as_bytes()];
            let all: Vec<&[u8]> = head.into_iter().chain(arguments.iter().copied()).collect();
            let mut answer = Values::of(script.run(&self.servers, &[record, log, users, nodes, waiting], &all).await?)?;
            Ok((answer.text()?, answer))
        };
        let mut answer = run(Make::No).await.map_err(Error::from)?;
        if answer.0 == "unknown bus" && make != Make::No {
            let unused = limits.bus_lifetime.min(UNUSED_TIME).max(NODE_TIME);
            if !self.reserve(&self.buses(), &keys.hash, limits.buses, milliseconds(unused)).await? {
                return Err(Refused::TooManyBuses(limits.buses));
            }
            answer = run(make).await.map_err(Error::from)?;
        }
        let (outcome, mut answer) = answer;
        match outcome.as_str() {
            "ok" => {
                let kept = answer.number().map_err(Error::from)?;
                self.note_time(answer.number().map_err(Error::from)?);
                // It is there already, whatever the limit.
                if kept > 0
                    && let Err(error) = self.reserve(&self.buses(), &keys.hash, 1 << 40, kept).await
                {
                    error.log();
                }
                Ok(answer)
            }
            "unknown bus" => Err(Refused::UnknownBus),
            "unknown user" => Err(Refused::UnknownUser),
            "not registered" => Err(Refused::NotRegistered),
            "stale" => Err(Refused::StaleNumber(answer.number().map_err(Error::from)?)),
            "is open" => Err(Refused::IsOpen),
            "too many users" => Err(Refused::TooManyUsers(limits.clients)),
            "too many readers" => Err(Refused::TooManyReaders(limits.clients)),
            "says too much" => Err(Refused::SaysTooMuch(limits.bytes)),
            "data full" => Err(Error::DataFull(Full { limit: limits.data }).into()),
            "full" => Err(Error::TopicFull(Full { limit: limits.bytes }).into()),
            other => {
                Err(Error::from(Remote::new(Reason::Failed, format!("the relay's script answers '{other}'"))).into())
            }
        }
    }

    /// Posts, and tells the id.
    async fn say(
        &self,
        name: &BusName,
        settings: &Settings,
        make: Make,
        [user, data, n, is_watched]: [&[u8]; 4],
    ) -> Result<u64, Refused> {
        let most = settings.max_data.to_string();
        let arguments = [user, data, n, is_watched, most.as_bytes()];
        let mut answer = self.on_bus(&self.bus(name), settings.into(), &POST, make, &arguments).await?;
        Ok(answer.number().map_err(Error::from)?)
    }
}

impl Redis {
    pub async fn greet(&self, name: &BusName, settings: &Settings) -> Result<(User, u64), Refused> {
        let mut answer = self.process.on_bus(&self.process.bus(name), settings.into(), &GREET, Make::Open, &[]).await?;
        let user = User(answer.number().map_err(Error::from)?);
        Ok((user, answer.number().map_err(Error::from)?))
    }

    pub async fn register_user(&self, name: &BusName, settings: &Settings) -> Result<(User, u64, String), Refused> {
        let key = hex::random(32).map_err(Error::from)?;
        let arguments = [settings.max_clients.to_string().into_bytes(), key.clone().into_bytes()];
        let [most, secret] = &arguments;
        let mut answer = self
            .process
            .on_bus(&self.process.bus(name), settings.into(), &REGISTER, Make::Open, &[most, secret])
            .await?;
        let user = User(answer.number().map_err(Error::from)?);
        Ok((user, answer.number().map_err(Error::from)?, key))
    }

    pub async fn make_signed_bus(&self, name: &BusName, settings: &Settings) -> Result<bool, Refused> {
        let mut answer =
            self.process.on_bus(&self.process.bus(name), settings.into(), &MAKE, Make::Signed, &[]).await?;
        Ok(answer.number().map_err(Error::from)? > 0)
    }

    pub async fn post(
        &self,
        name: &BusName,
        user: User,
        proof: Option<Proof<'_>>,
        data: &str,
        settings: &Settings,
    ) -> Result<u64, Refused> {
        let number = user.0.to_string();
        let mut n = String::new();
        // A script has no HMAC. A user's secret never changes, so that it may be another step.
        if user.is_registered()
            && let Reply::BulkString(secret) = SECRET
                .run(&self.process.servers, &[&self.process.bus(name).all[2]], &[number.as_bytes()])
                .await
                .map_err(Error::from)?
        {
            let proof = proof.ok_or(Refused::NotSigned)?;
            if !proof.is_by(&String::from_utf8_lossy(&secret)) {
                return Err(Refused::WrongSignature);
            }
            n = proof.n.to_string();
        }
        self.process.say(name, settings, Make::No, [number.as_bytes(), data.as_bytes(), n.as_bytes(), b"0"]).await
    }

    pub async fn say(&self, name: &BusName, user: User, data: &str, settings: &Settings) -> Result<u64, Refused> {
        let number = user.0.to_string();
        self.process.say(name, settings, Make::No, [number.as_bytes(), data.as_bytes(), b"", b"1"]).await
    }

    pub async fn notify(&self, name: &BusName, data: &str, settings: &Settings) -> Result<u64, Refused> {
        self.process.say(name, settings, Make::Open, [b"", data.as_bytes(), b"", b"1"]).await
    }

    pub async fn check_user(&self, name: &BusName, user: User, settings: &Settings) -> Result<(), Refused> {
        let number = user.0.to_string();
        self.process
            .on_bus(&self.process.bus(name), settings.into(), &TEND, Make::No, &[number.as_bytes(), b"", b"0"])
            .await
            .map(drop)
    }

    /// Sweeps this bus.
    pub(in crate::store::redis) async fn sweep_bus(&self, hash: String, policy: &Policy<'_>) -> Result<(), Error> {
        let keys = self.process.bus_of_hash(hash);
        match self.process.on_bus(&keys, policy.settings.into(), &SWEEP, Make::No, &[]).await {
            Ok(_) => Ok(()),
            Err(Refused::Store(error)) => Err(error),
            Err(_) => self.process.give_up(&self.process.buses(), &keys.hash).await,
        }
    }
}
