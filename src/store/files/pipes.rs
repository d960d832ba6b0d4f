//! The sessions of pipes: two parties, a host and a guest, with a pipe each way, under one lock.

use super::ends::{Incoming, Receiver, Sender};
use super::folder::Folder;
use super::meeting::{Meeting, NamedFifo};
use super::{Error, Files, Kind};
use crate::clock::is_recent;
use crate::store::pipes::{Denied, Limits, NewSession, Party, Visitor};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use rustix::event::PollFd;
use rustix::fd::BorrowedFd;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::io;
use std::net::IpAddr;
use std::time::Duration;

/// What `session.json` says.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Record {
    /// SHA-256 of the host's token, in base64url.
    token_hash: String,
    /// Whether only the guest with the address below may use it.
    is_secure: bool,
    /// The guest's address, once the host has named it.
    guest: Option<IpAddr>,
    /// Whether a sender has ever met a receiver.
    #[serde(default)]
    has_met: bool,
}

const PARTIES: [Party; 2] = [Party::Host, Party::Guest];

/// A session, locked.
pub(super) struct LockedPipes {
    folder: Folder<Record>,
    /// `None` where it is missing or damaged.
    record: Option<Record>,
}

impl LockedPipes {
    pub(super) fn read(folder: Folder<Record>) -> Result<Self, Error> {
        let record = folder.read()?;
        Ok(Self { folder, record })
    }

    /// Where the pipe to a party is.
    fn pipe_to(&self, party: Party) -> Meeting<'_> {
        Meeting::new(&self.folder, if party == Party::Host { "to-host" } else { "to-guest" })
    }

    /// Whether somebody receives or sends. Removes what killed processes have left behind.
    fn is_in_use(&self) -> Result<bool, Error> {
        let mut in_use = false;
        for party in PARTIES {
            in_use |= self.pipe_to(party).is_in_use()?;
        }
        Ok(in_use)
    }

    fn is_recent(&self, lifetime: Duration) -> Result<bool, Error> {
        Ok(self.record.is_some() && is_recent(self.folder.touched()?, lifetime))
    }

    /// Who a visitor is; `None` for a stranger.
    fn party(&self, visitor: &Visitor) -> Option<Party> {
        let record = self.record.as_ref()?;
        if visitor.tokens.iter().any(|token| is_same(&hash(token), &record.token_hash)) {
            return Some(Party::Host);
        }
        let is_guest = !record.is_secure || visitor.address.is_some_and(|address| record.guest == Some(address));
        is_guest.then_some(Party::Guest)
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
        for party in PARTIES {
            self.pipe_to(party).remove()?;
        }
        self.folder.remove()
    }
}

impl Files {
    /// Locks a session, over or not; `None` where there is none.
    fn pipes(&self, id: &str) -> Result<Option<LockedPipes>, Error> {
        let Some(folder) = self.open(Kind::Pipes, id)? else { return Ok(None) };
        let session = LockedPipes::read(folder)?;
        Ok(session.record.is_some().then_some(session))
    }

    /// Locks a session that is not over, and finds out who the visitor is; `None` for a stranger.
    fn visit(&self, id: &str, visitor: &Visitor, limits: &Limits) -> Result<(LockedPipes, Option<Party>), Denied> {
        let session = self.pipes(id)?.ok_or(Denied::UnknownSession)?;
        if !session.is_recent(limits.lifetime)? && !session.is_in_use()? {
            return Err(Denied::UnknownSession);
        }
        let party = session.party(visitor);
        Ok((session, party))
    }

    /// Locks a session for its host or its guest.
    fn enter(&self, id: &str, visitor: &Visitor, limits: &Limits) -> Result<(LockedPipes, Party), Denied> {
        let (session, party) = self.visit(id, visitor, limits)?;
        party.map(|party| (session, party)).ok_or(Denied::NotTheGuest)
    }

    /// Locks a session for its host.
    fn enter_as_host(&self, id: &str, visitor: &Visitor, limits: &Limits) -> Result<LockedPipes, Denied> {
        let (session, party) = self.visit(id, visitor, limits)?;
        if party == Some(Party::Host) { Ok(session) } else { Err(Denied::NotTheHost) }
    }

    pub(crate) fn make_pipes(&self, is_secure: bool, limits: &Limits) -> Result<Option<NewSession>, Error> {
        let session = NewSession { id: random()?, token: random()? };
        let Some(folder) = self.open_or_make(Kind::Pipes, &session.id, limits.sessions)? else { return Ok(None) };
        folder.write(&Record { token_hash: hash(&session.token), is_secure, guest: None, has_met: false })?;
        Ok(Some(session))
    }

    pub(crate) fn join_pipes(&self, id: &str, visitor: &Visitor, limits: &Limits) -> Result<Party, Denied> {
        self.enter(id, visitor, limits).map(|(_, party)| party)
    }

    pub(crate) fn permit_guest(&self, id: &str, host: &Visitor, guest: IpAddr, limits: &Limits) -> Result<(), Denied> {
        let session = self.enter_as_host(id, host, limits)?;
        let Some(record) = session.record.as_ref().filter(|record| record.is_secure) else {
            return Err(Denied::BasicSession);
        };
        if record.guest.is_some_and(|before| before != guest) {
            // The one before may be waiting, or in the middle of something. Before the new one is named: where this fails, the
            // host tries again, and it is another one still.
            session.pipe_to(Party::Guest).send_receiver_away()?;
            session.pipe_to(Party::Host).send_senders_away()?;
        }
        Ok(session.folder.write(&Record { guest: Some(guest), ..record.clone() })?)
    }

    pub(crate) fn remove_pipes(&self, id: &str, host: &Visitor, limits: &Limits) -> Result<(), Denied> {
        Ok(self.enter_as_host(id, host, limits)?.remove()?)
    }

    pub(crate) fn receive(&self, id: &str, visitor: &Visitor, limits: &Limits) -> Result<WaitingReceiver, Denied> {
        let (session, party) = self.enter(id, visitor, limits)?;
        session.folder.touch()?;
        let way = Way { files: self.clone(), id: id.to_owned(), to: party };
        let receiver = session.pipe_to(way.to).receive()?.ok_or(Denied::ReceiverThere)?;
        Ok(WaitingReceiver { receiver, way })
    }

    pub(crate) fn wait_to_send(&self, id: &str, visitor: &Visitor, limits: &Limits) -> Result<WaitingSender, Denied> {
        let (session, party) = self.enter(id, visitor, limits)?;
        session.folder.touch()?;
        let way = Way { files: self.clone(), id: id.to_owned(), to: party.other() };
        let fifo = session.pipe_to(way.to).wait_to_send(limits.senders)?.ok_or(Denied::TooManySenders)?;
        Ok(WaitingSender { fifo, way })
    }
}

/// A pipe of a session that is not locked.
struct Way {
    files: Files,
    id: String,
    to: Party,
}

impl Way {
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
    way: Way,
}

impl WaitingReceiver {
    /// What becomes readable when there is something to [look](Self::look) at.
    #[must_use]
    pub fn awaited(&self) -> [PollFd<'_>; 2] {
        self.receiver.awaited()
    }

    /// What the sender says of its body, once that is there. A sender that leaves without having said it makes room for the
    /// next one.
    ///
    /// # Errors
    /// [`Denied::Removed`], [`Denied::NotTheGuest`], or when what has come cannot be read.
    pub fn look(&mut self) -> Result<Option<Vec<u8>>, Denied> {
        if self.receiver.is_removed()? {
            return Err(self.way.why());
        }
        match self.receiver.head()? {
            Incoming::Head(head) => Ok(Some(head)),
            Incoming::Nothing => Ok(None),
            Incoming::SenderLeft => {
                let session = self.way.lock()?;
                // Another's by now, perhaps: whoever was sent away must leave it alone.
                if self.receiver.is_removed()? {
                    return Err(Denied::NotTheGuest);
                }
                session.pipe_to(self.way.to).receive_again(&mut self.receiver)?;
                Ok(None)
            }
        }
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
    fifo: NamedFifo,
    way: Way,
}

impl WaitingSender {
    /// What becomes readable when a receiver has come, or the sender was sent away.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fifo.fd()
    }

    /// Takes the receiver that waits, which no other sender has then; `None` where none does.
    ///
    /// # Errors
    /// [`Denied::Removed`], [`Denied::NotTheGuest`].
    pub fn take_receiver(&self) -> Result<Option<Sender>, Denied> {
        let mut session = self.way.lock()?;
        if self.fifo.is_removed()? {
            return Err(Denied::NotTheGuest);
        }
        let sender = session.pipe_to(self.way.to).take_receiver()?;
        if sender.is_some()
            && let Some(record) = session.record.take_if(|record| !record.has_met)
            // The two have each other, whatever becomes of this note.
            && let Err(error) = session.folder.write(&Record { has_met: true, ..record })
        {
            error.log();
        }
        Ok(sender)
    }

    /// To be called when [its descriptor](Self::fd) was readable: whether it was sent away, in the middle of a body perhaps.
    #[must_use]
    pub fn is_sent_away(&self) -> bool {
        matches!(self.fifo.is_removed(), Ok(true))
    }

    /// Why it was: [`Denied::Removed`] or [`Denied::NotTheGuest`].
    #[must_use]
    pub fn why_sent_away(&self) -> Denied {
        self.way.why()
    }

    /// Its body is delivered: the session counts as used now.
    pub fn finish(self) {
        let Self { fifo, way } = self;
        drop(fifo);
        // It is delivered, whatever becomes of this note.
        if let Err(Denied::Failed(error)) = way.lock().and_then(|session| Ok(session.folder.touch()?)) {
            error.log();
        }
    }
}

fn hash(token: &str) -> String {
    BASE64URL.encode(Sha256::digest(token.as_bytes()))
}

/// Takes as long wherever they differ.
fn is_same(one: &str, other: &str) -> bool {
    let differences = one.bytes().zip(other.bytes()).fold(0, |differences, (a, b)| differences | (a ^ b));
    one.len() == other.len() && std::hint::black_box(differences) == 0
}

/// 128 random bits, for a URL or a cookie.
fn random() -> Result<String, Error> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(BASE64URL.encode(bytes))
}
