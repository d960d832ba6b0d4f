//! The sessions of pipes in Redis: two parties, a host and a guest, with a pipe each way.

#[cfg(test)]
mod tests;

use super::ends::receiver::Receiver;
use super::ends::sender::Sender;
use super::ends::{Away, End, Way, last, script};
use super::process::{Process, Redis, hash, milliseconds};
use super::reply::{Values, command};
use super::script::Script;
use crate::hex;
use crate::store::error::Error;
use crate::store::pipes::{Denied, Limits, NewSession, Role, Visitor};
use crate::store::remote::{Reason, Remote};
use crate::store::sessions::Policy;
use crate::wake::{Bell, Ready};
use std::net::IpAddr;
use std::time::Duration;

macro_rules! in_session {
    ($kind:ident $name:literal) => {
        Script::$kind(concat!(
            include_str!("../time.lua"),
            include_str!("../ends/begin.lua"),
            include_str!("begin.lua"),
            include_str!($name)
        ))
    };
}

static MAKE: Script = script!(promise "../pipes/make.lua");
static JOIN: Script = in_session!(new "join.lua");
static PERMIT: Script = in_session!(promise "permit.lua");
static REMOVE: Script = in_session!(promise "remove.lua");
static RECEIVE: Script = in_session!(new "receive.lua");
static WAIT: Script = in_session!(new "wait.lua");
static SWEEP: Script = in_session!(new "sweep.lua");
static TAKE: Script = script!(promise "../pipes/take.lua");
static FINISH: Script = script!(new "../pipes/finish.lua");

/// So many are looked at, those that go soonest, where there is no room for another.
const MOST_LOOKS: usize = 16;

/// Where those who send to somebody wait.
fn place_to(role: Role) -> &'static str {
    if role == Role::Host { "to-host" } else { "to-guest" }
}

impl Process {
    /// All sessions of pipes, by when they go.
    pub fn all_pipes(&self) -> String {
        format!("{}:pipes", self.prefix)
    }

    fn pipes(self: &std::sync::Arc<Self>, hash: &str) -> Way {
        Way::new(self, format!("{}:pipe:{{{hash}}}", self.prefix))
    }

    /// Keeps a session's place among all.
    async fn keep_pipes(&self, id: &str, lifetime: Duration) {
        if let Err(error) = self.reserve(&self.all_pipes(), &hash(id), 1 << 40, milliseconds(lifetime)).await {
            error.log();
        }
    }
}

/// Runs a script in a session: what it answers after its first word.
async fn run(
    way: &Way,
    script: &Script,
    visitor: &Visitor,
    lifetime: Duration,
    more: &[&[u8]],
) -> Result<(String, Values), Denied> {
    let address = visitor.address.map(|address| address.to_string()).unwrap_or_default();
    let head = [milliseconds(lifetime).to_string(), address, visitor.tokens.len().to_string()];
    let tokens: Vec<_> = visitor.tokens.iter().map(|token| hash(token)).collect();
    let texts = head.iter().chain(&tokens).map(String::as_bytes);
    let arguments: Vec<_> = texts.chain(more.iter().copied()).collect();
    let mut answer = way.run(script, &arguments).await.map_err(Error::from)?;
    let outcome = answer.text().map_err(Error::from)?;
    match outcome.as_str() {
        "ok" | "host" | "guest" => Ok((outcome, answer)),
        "unknown session" => Err(Denied::UnknownSession),
        "not the host" => Err(Denied::NotTheHost),
        "not the guest" => Err(Denied::NotTheGuest),
        "basic session" => Err(Denied::BasicSession),
        "receiver there" => Err(Denied::ReceiverThere),
        "too many senders" => Err(Denied::TooManySenders),
        other => Err(Error::from(Remote::new(Reason::Failed, format!("the relay's script answers '{other}'"))).into()),
    }
}

fn role_of(outcome: &str) -> Role {
    if outcome == "host" { Role::Host } else { Role::Guest }
}

impl Redis {
    pub async fn make_session(&self, is_secure: bool, limits: &Limits) -> Result<Option<NewSession>, Error> {
        let session = NewSession { id: hex::random(16)?, token: hex::random(16)? };
        let (process, hashed, lifetime) = (&self.process, hash(&session.id), milliseconds(limits.lifetime));
        let reserve = async || process.reserve(&process.all_pipes(), &hashed, limits.sessions, lifetime).await;
        let has_room = reserve().await? || (self.make_room_for_pipes(limits).await? && reserve().await?);
        if !has_room {
            return Ok(None);
        }
        let (lifetime, token) = (lifetime.to_string(), hash(&session.token));
        let is_secure = if is_secure { b"1" } else { b"0" };
        process.pipes(&hashed).run(&MAKE, &[lifetime.as_bytes(), token.as_bytes(), is_secure]).await?;
        Ok(Some(session))
    }

    /// Has a session give way in which nobody has met for a while. False where there is none.
    async fn make_room_for_pipes(&self, limits: &Limits) -> Result<bool, Error> {
        let process = &self.process;
        for hashed in process.soonest_of(&process.all_pipes(), MOST_LOOKS).await? {
            if self.sweep_pipes_of(hashed, limits.lifetime, true).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    pub async fn join_session(&self, id: &str, visitor: &Visitor, limits: &Limits) -> Result<Role, Denied> {
        let (role, _) = run(&self.process.pipes(&hash(id)), &JOIN, visitor, limits.lifetime, &[]).await?;
        Ok(role_of(&role))
    }

    pub async fn permit_guest(&self, id: &str, host: &Visitor, guest: IpAddr, limits: &Limits) -> Result<(), Denied> {
        let guest = guest.to_string();
        run(&self.process.pipes(&hash(id)), &PERMIT, host, limits.lifetime, &[guest.as_bytes()]).await.map(drop)
    }

    pub async fn remove_session(&self, id: &str, host: &Visitor, limits: &Limits) -> Result<(), Denied> {
        run(&self.process.pipes(&hash(id)), &REMOVE, host, limits.lifetime, &[]).await?;
        Ok(self.process.give_up(&self.process.all_pipes(), &hash(id)).await?)
    }

    pub async fn receive(&self, id: &str, visitor: &Visitor, limits: &Limits) -> Result<WaitingReceiver, Denied> {
        let name = hex::random(16).map_err(Error::from)?;
        // It is called before it is found.
        let mut end = End::receiving(self.process.pipes(&hash(id)), name.clone()).await?;
        let (_, mut answer) = run(&end.way, &RECEIVE, visitor, limits.lifetime, &[name.as_bytes()]).await?;
        end.way.ticket = answer.text().map_err(Error::from)?;
        self.process.keep_pipes(id, limits.lifetime).await;
        Ok(WaitingReceiver(Receiver::new(end)))
    }

    pub async fn wait_to_send(&self, id: &str, visitor: &Visitor, limits: &Limits) -> Result<WaitingSender, Denied> {
        let name = hex::random(16).map_err(Error::from)?;
        let mut end = End::begin(self.process.pipes(&hash(id)), name.clone()).await?;
        let most = limits.senders.to_string();
        let more = [name.as_bytes(), most.as_bytes()];
        let (role, mut answer) = run(&end.way, &WAIT, visitor, limits.lifetime, &more).await?;
        end.way.ticket = answer.text().map_err(Error::from)?;
        self.process.keep_pipes(id, limits.lifetime).await;
        let way = end.way.clone();
        let place = place_to(role_of(&role).other());
        let (id, silence) = (id.to_owned(), Bell::default());
        Ok(WaitingSender { way, id, name, place, end: Some(end), silence, lifetime: limits.lifetime })
    }

    /// Sweeps a session; whether it is gone. Where its room `is_wanted` it is enough that nobody has met in it for a while.
    async fn sweep_pipes_of(&self, hashed: String, lifetime: Duration, is_wanted: bool) -> Result<bool, Error> {
        let is_wanted: &[u8] = if is_wanted { b"1" } else { b"" };
        match run(&self.process.pipes(&hashed), &SWEEP, &Visitor::default(), lifetime, &[is_wanted]).await {
            Ok(_) => Ok(false),
            Err(Denied::Failed(error)) => Err(error),
            Err(_) => self.process.give_up(&self.process.all_pipes(), &hashed).await.map(|()| true),
        }
    }

    /// Sweeps this session.
    pub(in crate::store::redis) async fn sweep_pipes(&self, hashed: String, policy: &Policy<'_>) -> Result<(), Error> {
        self.sweep_pipes_of(hashed, policy.settings.pipe_lifetime, false).await.map(drop)
    }
}

/// A receiver that no sender has given anything yet. When it is dropped, another may come.
pub struct WaitingReceiver(Receiver);

impl WaitingReceiver {
    /// What is ready when there is something to [look](Self::look) at.
    pub fn awaited(&self) -> [Option<Ready<'_>>; 2] {
        self.0.awaited()
    }

    /// What the sender says of its body, once that is there.
    pub async fn look(&mut self) -> Result<Option<Vec<u8>>, Denied> {
        let head = self.0.look().await;
        self.0.away().map_or(Ok(head), |away| Err(away.into()))
    }

    /// Whether a sender has taken it, whose word is on its way, as of the last look.
    pub fn is_taken(&self) -> bool {
        self.0.is_taken()
    }

    /// The way to the bytes.
    pub fn begin(self) -> Receiver {
        self.0
    }
}

/// A sender among those of its direction. When it is dropped, it is none any more.
pub struct WaitingSender {
    way: Way,
    /// Of its session.
    id: String,
    name: String,
    place: &'static str,
    /// What is called; `None` where it has been given to a [`Sender`].
    end: Option<End>,
    /// Rung by nobody.
    silence: Bell,
    lifetime: Duration,
}

impl WaitingSender {
    /// What is ready when a receiver has come, or it was sent away. Once it has taken a receiver, that sender is woken.
    pub fn awaited(&self) -> Ready<'_> {
        self.end.as_ref().map_or_else(|| Ready::to_hear(&self.silence), End::awaited)
    }

    /// Takes the receiver that waits; `None` where none does, or while that cannot be seen.
    pub async fn take_receiver(&mut self) -> Result<Option<Sender>, Denied> {
        let mut end = match self.end.take() {
            Some(end) => end,
            None => End::begin(self.way.clone(), self.name.clone()).await?,
        };
        end.has_reason().await;
        let arguments = [&self.way.ticket, self.place, &self.name].map(str::as_bytes);
        let read = |mut answer: Values| {
            let outcome = answer.text()?;
            Ok(if outcome == "ok" { Ok(answer.text()?) } else { Err(outcome) })
        };
        match end.ask(&TAKE, &arguments, read).await {
            Some(Ok(receiver)) => return Ok(Some(Sender::new(end, receiver))),
            Some(Err(outcome)) => self.way.note(&outcome),
            None => {}
        }
        self.end = Some(end);
        self.way.away().map_or(Ok(None), |away| Err(away.into()))
    }

    /// Whether it was sent away, as far as it, or its sender, has been told.
    pub fn is_sent_away(&self) -> bool {
        self.way.away().is_some()
    }

    /// Why it was.
    pub fn why_sent_away(&self) -> Denied {
        self.way.away().unwrap_or(Away::Removed).into()
    }

    /// Its body is delivered: the session counts as used now.
    pub async fn finish(self) {
        let lifetime = milliseconds(self.lifetime).to_string();
        // It is delivered, whatever becomes of this note.
        if let Err(remote) = self.way.run(&FINISH, &[self.place, &self.name, &lifetime].map(str::as_bytes)).await {
            Error::from(remote).log();
        }
        self.way.process.keep_pipes(&self.id, self.lifetime).await;
    }
}

impl Drop for WaitingSender {
    fn drop(&mut self) {
        let (way, key, name) = (self.way.clone(), format!("{}:{}", self.way.base, self.place), self.name.clone());
        last(async move { _ = way.process.servers.call(&key, &command(["ZREM", &key, &name])).await });
    }
}
