//! The requests that wait for a server of PTTH, in Redis, as their clients have them; and the registered servers.

pub mod far_ends;
mod servers;
#[cfg(test)]
mod tests;

use super::ends::receiver::Receiver;
use super::ends::sender::Sender;
use super::ends::{End, Way};
use super::process::{Process, Redis, hash};
use super::reply::{Reply, command, text};
use super::script::Script;
use crate::hex;
use crate::ptth::ServerName;
use crate::store::error::{Error, Full};
use crate::store::requests::{MOST_CLAIMS, Patience, Progress, RequestId};
use crate::wake::Ready;
use std::sync::Arc;
use std::time::Instant;

macro_rules! script {
    ($name:literal) => {
        $crate::store::redis::script::Script::new(concat!(
            include_str!("../time.lua"),
            include_str!("../ends/begin.lua"),
            include_str!("begin.lua"),
            include_str!($name)
        ))
    };
}
use script;

static ASK: Script = Script::new(concat!(
    include_str!("../memory.lua"),
    include_str!("../time.lua"),
    include_str!("../ends/begin.lua"),
    include_str!("begin.lua"),
    include_str!("ask.lua")
));
static GIVE_BACK: Script = script!("give_back.lua");
static CALL: Script = script!("call.lua");
static ANSWER: Script = script!("answer.lua");

impl Process {
    /// Where the requests of a server are.
    fn requests(self: &Arc<Self>, server: &ServerName) -> Way {
        let hash = hash(server.as_str());
        Way::new(self, format!("{}:ptth:{{{hash}}}", self.prefix))
    }
}

impl Redis {
    pub async fn ask(
        &self,
        server: &ServerName,
        id: &RequestId,
        request: &[u8],
        most: u64,
    ) -> Result<Option<PendingRequest>, Error> {
        ask(self, server, 0, id, request, most).await
    }

    pub async fn give_back(&self, server: &ServerName, ids: &[RequestId]) -> Result<(), Error> {
        let names: Vec<_> = ids.iter().map(|id| id.as_str().as_bytes()).collect();
        Ok(self.process.requests(server).run(&GIVE_BACK, &names).await.map(drop)?)
    }

    pub async fn answer_request(&self, servers: &[ServerName], id: &RequestId) -> Result<Option<Sender>, Error> {
        for server in servers {
            let (way, name) = (self.process.requests(server), hex::random(16)?);
            let end = End::begin(way, name.clone()).await?;
            let arguments = [id.as_str().as_bytes(), name.as_bytes()];
            if end.way.run(&ANSWER, &arguments).await?.text()? == "ok" {
                return Ok(Some(Sender::new(end, id.as_str().to_owned())));
            }
        }
        Ok(None)
    }
}

/// Asks, after the request has been claimed so often under other names.
async fn ask(
    redis: &Redis,
    server: &ServerName,
    claims: u8,
    id: &RequestId,
    request: &[u8],
    most: u64,
) -> Result<Option<PendingRequest>, Error> {
    let end = End::receiving(redis.process.requests(server), id.as_str().to_owned()).await?;
    let (most, claims_text) = (most.to_string(), claims.to_string());
    let process = &redis.process;
    let arguments =
        [id.as_str().as_bytes(), request, most.as_bytes(), claims_text.as_bytes(), process.max_data.as_bytes()];
    match end.way.run(&ASK, &arguments).await?.text()?.as_str() {
        "ok" => {}
        "data full" => return Err(Error::DataFull(Full { limit: process.max_data.parse().unwrap_or(0) })),
        _ => return Ok(None),
    }
    let (redis, server, receiver) = (redis.clone(), server.clone(), Receiver::new(end));
    Ok(Some(PendingRequest { redis, server, id: id.clone(), receiver, last_look: Instant::now(), claims, state: None }))
}

/// A request, as its client has it until the answer begins. When it is dropped, nothing is left of it.
pub struct PendingRequest {
    redis: Redis,
    server: ServerName,
    id: RequestId,
    /// Where the answer comes.
    receiver: Receiver,
    last_look: Instant,
    /// As of the last look: how often it has been claimed; its state, and since when it is known to be so.
    claims: u8,
    state: Option<(State, Instant)>,
}

/// The state of a request that has no answer yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// No far end has it.
    Waiting,
    /// A far end has it.
    Claimed,
    /// Its answer begins.
    Answered,
}

impl PendingRequest {
    /// What is ready when there is something to [look](Self::look) at.
    pub fn awaited(&self) -> [Option<Ready<'_>>; 2] {
        self.receiver.awaited()
    }

    /// Looks for the answer, and now and then after the request. While Redis is away, it waits.
    pub async fn look(&mut self, patience: &Patience) -> Result<Progress, Error> {
        let looked = self.try_to_look(patience).await;
        looked.or_else(|error| if error.passes() { Ok(Progress::Waits) } else { Err(error) })
    }

    async fn try_to_look(&mut self, patience: &Patience) -> Result<Progress, Error> {
        if let Some(head) = self.receiver.look().await {
            return Ok(Progress::Begins(head));
        }
        if self.receiver.away().is_some() {
            // Redis may have lost it.
            return Ok(if self.is_registered().await? { self.broken_off() } else { Progress::ServerRemoved });
        }
        let is_broken_off = self.receiver.is_broken_off();
        if !is_broken_off && self.last_look.elapsed() < patience.look {
            return Ok(Progress::Waits);
        }
        let (state, claims) = self.state().await?;
        self.claims = claims;
        if is_broken_off {
            return Ok(self.broken_off());
        }
        self.last_look = Instant::now();
        let since = match self.state {
            Some((before, since)) if before == state => since,
            _ => Instant::now(),
        };
        self.state = Some((state, since));
        match state {
            State::Answered if since.elapsed() >= patience.head => return Ok(self.broken_off()),
            State::Claimed if since.elapsed() >= patience.claim => {}
            State::Answered | State::Claimed => return Ok(Progress::Waits),
            State::Waiting => {}
        }
        if !self.is_registered().await? {
            return Ok(Progress::ServerRemoved);
        }
        match state {
            State::Waiting => _ = self.receiver.end.way.run(&CALL, &[]).await?,
            // Where it cannot be claimed any more, its answer may still come.
            _ => self.redis.give_back(&self.server, std::slice::from_ref(&self.id)).await?,
        }
        Ok(Progress::Waits)
    }

    async fn is_registered(&self) -> Result<bool, Error> {
        Ok(self.redis.ptth_servers().await?.contains_key(&self.server))
    }

    /// Its state, and how often it has been claimed.
    async fn state(&self) -> Result<(State, u8), Error> {
        let key = format!("{}:{}", self.receiver.end.way.base, self.id.as_str());
        let fields =
            self.redis.process.servers.call(&key, &command(["HMGET", &key, "sender", "state", "claims"])).await?;
        let Reply::Array(fields) = fields else { return Ok((State::Answered, self.claims)) };
        let field = |number: usize| fields.get(number).and_then(text).unwrap_or_default();
        let state = match (field(0), field(1)) {
            ("", "waiting") => State::Waiting,
            ("", "claimed") => State::Claimed,
            _ => State::Answered,
        };
        Ok((state, field(2).parse().unwrap_or(self.claims)))
    }

    fn broken_off(&self) -> Progress {
        if self.claims < MOST_CLAIMS { Progress::BrokenOff } else { Progress::GivenUp }
    }

    /// Whether somebody has begun to answer, and the head is on its way.
    pub async fn is_being_answered(&self) -> Result<bool, Error> {
        Ok(self.state().await?.0 == State::Answered)
    }

    /// Asks once more, after the answer has broken off.
    pub async fn ask_again(&self, id: &RequestId, request: &[u8], most: u64) -> Result<Option<Self>, Error> {
        ask(&self.redis, &self.server, self.claims, id, request, most).await
    }

    /// The way to the answer's bytes.
    pub fn begin(self) -> Receiver {
        self.receiver
    }
}
