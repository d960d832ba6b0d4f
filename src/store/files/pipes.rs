//! The sessions of pipes: two parties, a host and a guest, with a pipe each way, under one lock.

use super::ends::{Called, Incoming, Receiver, Sender};
use super::folder::Folder;
use super::meeting::Meeting;
use super::sleeper::Sleeper;
use super::{Error, Files, Kind};
use crate::clock::is_recent;
use crate::store::pipes::{Denied, Limits, NewSession, Role, Visitor};
use crate::wake::Ready;
use crate::workers::at_disk;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::io;
use std::net::IpAddr;
use std::time::Duration;
use subtle::ConstantTimeEq as _;

/// What `session.json` says.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PipesRecord {
    /// SHA-256 of the host's token, in base64url.
    token_hash: String,
    /// Whether only the guest with the address below may use it.
    is_secure: bool,
    /// The guest's address, once the host has named it.
    guest: Option<IpAddr>,
    /// Whether a sender has ever met a receiver.
    has_met: bool,
}

const ROLES: [Role; 2] = [Role::Host, Role::Guest];

/// A session, locked.
pub(super) struct LockedPipes {
    files: Files,
    folder: Folder<PipesRecord>,
    /// `None` where it is missing or damaged.
    record: Option<PipesRecord>,
}

impl LockedPipes {
    pub(super) fn read(files: &Files, folder: Folder<PipesRecord>) -> Result<Self, Error> {
        let record = folder.read()?;
        Ok(Self { files: files.clone(), folder, record })
    }

    /// Where the pipe to a party is.
    fn pipe_to(&self, role: Role) -> Meeting<'_> {
        Meeting::new(&self.files, &self.folder, if role == Role::Host { "to-host" } else { "to-guest" })
    }

    /// Whether somebody receives or sends. Removes what killed processes have left behind.
    fn is_in_use(&self) -> Result<bool, Error> {
        let mut in_use = false;
        for role in ROLES {
            in_use |= self.pipe_to(role).is_in_use()?;
        }
        Ok(in_use)
    }

    fn is_recent(&self, lifetime: Duration) -> Result<bool, Error> {
        Ok(self.record.is_some() && is_recent(self.folder.touched()?, lifetime))
    }

    /// Who a visitor is; `None` for a stranger.
    fn role(&self, visitor: &Visitor) -> Option<Role> {
        let record = self.record.as_ref()?;
        let is_its = |token: &String| hash(token).as_bytes().ct_eq(record.token_hash.as_bytes()).into();
        if visitor.tokens.iter().any(is_its) {
            return Some(Role::Host);
        }
        let is_guest = !record.is_secure || visitor.address.is_some_and(|address| record.guest == Some(address));
        is_guest.then_some(Role::Guest)
    }

    /// Whether nobody has met in it, and nobody waits.
    pub(super) fn is_unused(&self) -> Result<bool, Error> {
        Ok(!self.record.as_ref().is_some_and(|record| record.has_met) && !self.is_in_use()?)
    }

    /// Removes the session if it is over, and what killed processes have left behind in it.
    ///
    /// # Errors
    /// When that cannot be seen or done; a later sweep tries again.
    pub(super) fn sweep(self, lifetime: Duration) -> Result<(), Error> {
        let in_use = self.is_in_use()?;
        if !in_use && !self.is_recent(lifetime)? { self.remove() } else { Ok(()) }
    }

    /// Removes the session. Whoever receives or sends is woken, and finds it gone.
    ///
    /// # Errors
    /// When something cannot be removed; a later sweep tries again.
    pub(super) fn remove(self) -> Result<(), Error> {
        for role in ROLES {
            self.pipe_to(role).remove()?;
        }
        self.folder.remove()
    }
}

impl Files {
    /// Locks a session, over or not; `None` where there is none.
    fn pipes(&self, id: &str) -> Result<Option<LockedPipes>, Error> {
        let Some(folder) = self.open(Kind::Pipes, id)? else { return Ok(None) };
        let session = LockedPipes::read(self, folder)?;
        Ok(session.record.is_some().then_some(session))
    }

    /// Locks a session that is not over, and finds out who the visitor is; `None` for a stranger.
    fn visit(&self, id: &str, visitor: &Visitor, limits: &Limits) -> Result<(LockedPipes, Option<Role>), Denied> {
        let session = self.pipes(id)?.ok_or(Denied::UnknownSession)?;
        if !session.is_recent(limits.lifetime)? && !session.is_in_use()? {
            return Err(Denied::UnknownSession);
        }
        let role = session.role(visitor);
        Ok((session, role))
    }

    /// Locks a session for its host or its guest.
    fn enter_session(&self, id: &str, visitor: &Visitor, limits: &Limits) -> Result<(LockedPipes, Role), Denied> {
        let (session, role) = self.visit(id, visitor, limits)?;
        role.map(|role| (session, role)).ok_or(Denied::NotTheGuest)
    }

    /// Locks a session for its host.
    fn enter_as_host(&self, id: &str, visitor: &Visitor, limits: &Limits) -> Result<LockedPipes, Denied> {
        let (session, role) = self.visit(id, visitor, limits)?;
        if role == Some(Role::Host) { Ok(session) } else { Err(Denied::NotTheHost) }
    }

    pub fn make_session(&self, is_secure: bool, limits: &Limits) -> Result<Option<NewSession>, Error> {
        let session = NewSession { id: random()?, token: random()? };
        let Some(folder) = self.open_or_make(Kind::Pipes, &session.id, limits.sessions)? else { return Ok(None) };
        folder.write(&PipesRecord { token_hash: hash(&session.token), is_secure, guest: None, has_met: false })?;
        Ok(Some(session))
    }

    pub fn join_session(&self, id: &str, visitor: &Visitor, limits: &Limits) -> Result<Role, Denied> {
        self.enter_session(id, visitor, limits).map(|(_, role)| role)
    }

    pub fn permit_guest(&self, id: &str, host: &Visitor, guest: IpAddr, limits: &Limits) -> Result<(), Denied> {
        let session = self.enter_as_host(id, host, limits)?;
        let Some(record) = session.record.as_ref().filter(|record| record.is_secure) else {
            return Err(Denied::BasicSession);
        };
        if record.guest.is_some_and(|before| before != guest) {
            // The one before may be waiting, or in the middle of something. Before the new one is named: where this fails, the
            // host tries again, and it is another one still.
            session.pipe_to(Role::Guest).send_receiver_away()?;
            session.pipe_to(Role::Host).send_senders_away()?;
        }
        Ok(session.folder.write(&PipesRecord { guest: Some(guest), ..record.clone() })?)
    }

    pub fn remove_session(&self, id: &str, host: &Visitor, limits: &Limits) -> Result<(), Denied> {
        Ok(self.enter_as_host(id, host, limits)?.remove()?)
    }

    pub fn receive(&self, id: &str, visitor: &Visitor, limits: &Limits) -> Result<WaitingReceiver, Denied> {
        let (session, role) = self.enter_session(id, visitor, limits)?;
        session.folder.touch()?;
        let way = PipeRef { files: self.clone(), id: id.to_owned(), to: role };
        let receiver = session.pipe_to(way.to).receive()?.ok_or(Denied::ReceiverThere)?;
        Ok(WaitingReceiver { receiver, way })
    }

    pub fn wait_to_send(&self, id: &str, visitor: &Visitor, limits: &Limits) -> Result<WaitingSender, Denied> {
        let (session, role) = self.enter_session(id, visitor, limits)?;
        session.folder.touch()?;
        let way = PipeRef { files: self.clone(), id: id.to_owned(), to: role.other() };
        let sleeper = session.pipe_to(way.to).wait_to_send(limits.senders)?.ok_or(Denied::TooManySenders)?;
        Ok(WaitingSender { sleeper, way })
    }
}

/// A pipe of a session that is not locked.
struct PipeRef {
    files: Files,
    id: String,
    to: Role,
}

impl PipeRef {
    fn lock(&self) -> Result<LockedPipes, Denied> {
        self.files.pipes(&self.id)?.ok_or(Denied::Removed)
    }

    /// Why somebody was sent away.
    fn why(&self) -> Denied {
        match self.lock() {
            Ok(_) => Denied::NotTheGuest,
            Err(denied) => denied,
        }
    }
}

/// A receiver that no sender has given anything yet. When it is dropped, another may come.
pub struct WaitingReceiver {
    receiver: Receiver,
    way: PipeRef,
}

impl WaitingReceiver {
    /// What is ready when there is something to [look](Self::look) at.
    #[must_use]
    pub fn awaited(&self) -> [Option<Ready<'_>>; 2] {
        self.receiver.awaited()
    }

    /// What the sender says of its body, once that is there. A sender that leaves without having said it makes room for the
    /// next one.
    ///
    /// # Errors
    /// [`Denied::Removed`], [`Denied::NotTheGuest`], or when what has come cannot be read.
    pub async fn look(&mut self) -> Result<Option<Vec<u8>>, Denied> {
        at_disk(|| self.look_now()).await
    }

    fn look_now(&mut self) -> Result<Option<Vec<u8>>, Denied> {
        let called = self.receiver.called()?;
        if called == Called::Away {
            return Err(self.way.why());
        }
        let incoming = match self.receiver.head()? {
            Incoming::Head(head) => return Ok(Some(head)),
            Incoming::Nothing if called == Called::Not => return Ok(None),
            incoming => incoming,
        };
        let session = self.way.lock()?;
        // Another's by now, perhaps: whoever was sent away must leave it alone.
        let called_since = self.receiver.called()?;
        if called_since == Called::Away {
            return Err(Denied::NotTheGuest);
        }
        let pipe = session.pipe_to(self.way.to);
        if incoming == Incoming::SenderLeft {
            pipe.receive_again(&mut self.receiver)?;
        }
        if [called, called_since].contains(&Called::ByOthers) {
            pipe.receive_from_others(&mut self.receiver)?;
        }
        Ok(None)
    }

    /// Whether a sender has taken it, whose word is on its way.
    #[must_use]
    pub fn is_taken(&self) -> bool {
        self.receiver.is_taken()
    }

    /// To be called once the sender has said what comes: the way to the bytes.
    #[must_use]
    pub fn begin(self) -> Receiver {
        self.receiver
    }
}

/// A sender among those of its direction, from before it has a receiver until its body has been delivered. When it is
/// dropped, it is none any more.
pub struct WaitingSender {
    sleeper: Sleeper,
    way: PipeRef,
}

impl WaitingSender {
    /// What is ready when a receiver has come, or the sender was sent away.
    #[must_use]
    pub fn awaited(&self) -> Ready<'_> {
        self.sleeper.awaited()
    }

    /// Takes the receiver that waits, which no other sender has then; `None` where none does.
    ///
    /// # Errors
    /// [`Denied::Removed`], [`Denied::NotTheGuest`].
    pub async fn take_receiver(&mut self) -> Result<Option<Sender>, Denied> {
        at_disk(|| self.take_receiver_now()).await
    }

    fn take_receiver_now(&self) -> Result<Option<Sender>, Denied> {
        let mut session = self.way.lock()?;
        if self.sleeper.is_removed()? {
            return Err(Denied::NotTheGuest);
        }
        let sender = session.pipe_to(self.way.to).take_receiver()?;
        if sender.is_some()
            && let Some(record) = session.record.take_if(|record| !record.has_met)
            // The two have each other, whatever becomes of this note.
            && let Err(error) = session.folder.write(&PipesRecord { has_met: true, ..record })
        {
            error.log();
        }
        Ok(sender)
    }

    /// To be called when it [was woken](Self::awaited): whether it was sent away, in the middle of a body perhaps.
    #[must_use]
    pub fn is_sent_away(&self) -> bool {
        matches!(self.sleeper.is_removed(), Ok(true))
    }

    /// Why it was: [`Denied::Removed`] or [`Denied::NotTheGuest`].
    #[must_use]
    pub async fn why_sent_away(&self) -> Denied {
        at_disk(|| self.way.why()).await
    }

    /// Its body is delivered: the session counts as used now.
    pub async fn finish(self) {
        let Self { sleeper, way } = self;
        at_disk(|| {
            drop(sleeper);
            // It is delivered, whatever becomes of this note.
            if let Err(Denied::Failed(error)) = way.lock().and_then(|session| Ok(session.folder.touch()?)) {
                error.log();
            }
        })
        .await;
    }
}

fn hash(token: &str) -> String {
    BASE64URL.encode(Sha256::digest(token.as_bytes()))
}

/// 128 random bits, for a URL or a cookie.
fn random() -> Result<String, Error> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(BASE64URL.encode(bytes))
}
