//! What hosts and clients want, each as one step under the lock of the session.

use super::super::log::Address;
use super::super::topic::{LEFT_OUT, MESSAGE};
use super::super::{Error, Files};
use super::{Entry, Member, Presence, Session, SessionRecord, client_key, host_key};
use crate::clock::is_recent;
use crate::store::sessions::{Claim, Party, Policy, Refused};
use crate::token::{ClientId, HostId};
use std::collections::BTreeSet;
use std::time::Duration;

/// A host that was registered less than this ago and has not opened its stream yet still may; nobody else gets its id.
pub(super) const OPENING_TIME: Duration = Duration::from_secs(10);

/// That many earlier registrations of a host may have something left at a time.
const MOST_FORMER: usize = 16;

impl Files {
    pub fn register(
        &self,
        host: &HostId,
        registration: &str,
        claim: Claim,
        policy: &Policy<'_>,
    ) -> Result<(), Refused> {
        let limit = policy.settings.max_hosts;
        let made = self.session_or_new(host, Some(registration), policy, limit)?;
        let (mut session, is_new) = made.ok_or(Refused::TooManyHosts(limit))?;
        if is_new {
            return Ok(());
        }
        session.is_look = true;
        if claim == Claim::Drawn || session.is_taken()? {
            return Err(Refused::Taken);
        }
        session.is_look = false;
        session.begin_anew(registration)
    }

    pub fn join(&self, host: &HostId, client: &ClientId, policy: &Policy<'_>) -> Result<Option<String>, Refused> {
        let mut session = self.session(host, policy)?.ok_or(Refused::UnknownHost)?;
        if !session.host_is_present()? {
            return Err(Refused::UnknownHost);
        }
        session.add_client(client, session.record.generation)?;
        Ok(session.record.registration.clone())
    }

    pub fn send_to_host(&self, from: &Party, data: &str, policy: &Policy<'_>) -> Result<(), Refused> {
        let client = from.client.as_ref().ok_or(Refused::Expired)?;
        let gone = if from.registration.is_some() { Refused::Expired } else { Refused::UnknownHost };
        let mut session = self.session(&from.host, policy)?.ok_or(gone)?;
        session.speaking_client(from, client)?;
        let mut host = session.host_or_new()?;
        let presence = session.presence(&mut host)?;
        if !session.host_is_there(presence)? {
            return Err(Refused::HostGone);
        }
        Ok(session.put(&host, MESSAGE, data, policy.settings.max_queue)?)
    }

    pub fn send_to_client(
        &self,
        host: &HostId,
        client: &ClientId,
        data: &str,
        policy: &Policy<'_>,
    ) -> Result<(), Refused> {
        let mut session = self.session(host, policy)?.ok_or(Refused::ClientGone)?;
        let mut client = session.glance(&client_key(client))?.ok_or(Refused::ClientGone)?;
        if !session.client_is_present(&mut client)? {
            return Err(Refused::ClientGone);
        }
        Ok(session.put(&client, MESSAGE, data, policy.settings.max_queue)?)
    }

    pub fn broadcast(&self, from: &Party, data: &str, policy: &Policy<'_>) -> Result<Vec<(ClientId, bool)>, Refused> {
        // An application may have minted the token, and nobody used it.
        let gone = if from.registration.is_some() { Refused::Expired } else { Refused::NobodyThere };
        let mut session = self.session(&from.host, policy)?.ok_or(gone)?;
        session.check_host(from.registration.as_deref())?;
        session.say_to_all(data)
    }

    pub fn would_listen(&self, party: &Party, resume: Option<u64>, policy: &Policy<'_>) -> Result<(), Refused> {
        let Some(mut session) = self.session(&party.host, policy)? else { return missing(party) };
        session.is_look = true;
        session.listening_member(party, resume).map(drop)
    }
}

/// What is to be said where there is no session: only an application's own host may make one.
pub(super) fn missing(party: &Party) -> Result<(), Refused> {
    match (&party.registration, &party.client) {
        (Some(_), _) => Err(Refused::Expired),
        (None, Some(_)) => Err(Refused::UnknownHost),
        (None, None) => Ok(()),
    }
}

impl Session<'_> {
    /// Whether the id belongs to somebody: a host that is present, or may still open its stream, or one of an application
    /// for which something waits (which all of its tokens may fetch).
    fn is_taken(&mut self) -> Result<bool, Error> {
        let is_taken = match self.host_presence()? {
            Presence::Waiting => is_recent(self.folder.touched()?, OPENING_TIME),
            other => self.is_there(other),
        };
        if is_taken || self.record.registration.is_some() {
            return Ok(is_taken);
        }
        match self.find(&host_key(self.record.registration.as_deref()))? {
            Some(host) => Ok(self.topic(true).has_message(host.position(), host.wants())?),
            None => Ok(false),
        }
    }

    /// Registers the host anew. Clients of the earlier registration may be listening still; theirs is over.
    fn begin_anew(&mut self, registration: &str) -> Result<(), Refused> {
        if !self.tidy_former()? {
            return Err(Refused::MessagesWait);
        }
        if !matches!(self.host_presence()?, Presence::Ended { told: true, .. }) {
            self.tell_clients()?;
        }
        self.record = SessionRecord {
            registration: Some(registration.to_owned()),
            generation: self.record.generation + 1,
            ..self.record.clone()
        };
        Ok(self.folder.write(&self.record)?)
    }

    /// Forgets those of earlier registrations to which nothing is promised; where many registrations have something left, also
    /// those that were given all of it. Whether there is room for one more.
    fn tidy_former(&mut self) -> Result<bool, Error> {
        let count =
            |all: &[Entry<Member>]| all.iter().map(|entry| entry.line.generations.0).collect::<BTreeSet<_>>().len();
        let mut former = Vec::new();
        for mut entry in self.all()? {
            // Those of the current one stay as they are: it goes on where the new one is refused. And whoever listens hears
            // what is said to its slot, which so must not become another's.
            if !self.is_current(&entry) && self.presence(&mut entry)? != Presence::Listening {
                former.push(entry);
            }
        }
        if count(&former) < MOST_FORMER {
            return Ok(true);
        }
        let promised = self.promised(&former)?;
        for is_given_enough in [false, true] {
            if count(&former) < MOST_FORMER {
                break;
            }
            let mut kept = Vec::new();
            for entry in former {
                let topic = self.topic(entry.line.is_host());
                let is_kept = promised.contains(&entry.slot)
                    && (!is_given_enough || topic.has_message(entry.position(), entry.wants())?);
                if is_kept {
                    kept.push(entry);
                } else {
                    self.table()?.free(entry.slot)?;
                }
            }
            former = kept;
        }
        Ok(count(&former) < MOST_FORMER)
    }

    fn say_to_all(&mut self, data: &str) -> Result<Vec<(ClientId, bool)>, Refused> {
        let mut roster = self.roster()?;
        let mut is_there = Vec::new();
        for member in &mut roster.members {
            let is_client = !member.line.is_host() && self.is_current(member);
            is_there.push(is_client && self.client_is_present(member)?);
        }
        if !is_there.contains(&true) {
            // Clients may wait for a host that has yet to come; a message that reaches nobody need not.
            let is_nobody = self.host_presence()? == Presence::Waiting || !self.host_is_present()?;
            return if is_nobody { Err(Refused::NobodyThere) } else { Ok(Vec::new()) };
        }
        let topic = self.topic(false);
        let open = topic.open()?;
        let room = self.policy.settings.max_queue.saturating_sub(data.len() as u64);
        let lags = |client: &Entry<Member>| open.end().saturating_sub(client.position()) > room;
        if roster.members.iter().zip(&is_there).any(|(client, is_there)| *is_there && lags(client)) {
            self.bring_up_to_date(&mut roster.members);
        }
        let recipients: Vec<_> =
            roster.members.iter().zip(is_there).filter_map(|(client, is_there)| is_there.then_some(client)).collect();
        let (mut answer, mut except) = (Vec::new(), Vec::new());
        for client in &recipients {
            let is_sent = topic.lag(client.position(), open.end(), room, client.wants())? <= room;
            if !is_sent {
                except.push(client.slot);
            }
            answer.extend(client.line.client().map(|id| (id, is_sent)));
        }
        // What nobody gets needs no room: it stands there for those only that are told so.
        let (event, data) = if except.len() == recipients.len() { (LEFT_OUT, "") } else { (MESSAGE, data) };
        let to = Address::All { generation: self.record.generation, except };
        open.append(self.now, &to, event, data, || self.floor(false))?;
        self.knock_all(recipients.into_iter());
        self.keep(roster);
        Ok(answer)
    }

    /// The line of a member that may listen, made if it is missing. One whose registration or lifetime is over may only fetch
    /// what waits for it, and so may a client whose host is gone.
    pub(super) fn listening_member(&mut self, party: &Party, resume: Option<u64>) -> Result<String, Refused> {
        let key = match &party.client {
            Some(client) => client_key(client),
            None => host_key(party.registration.as_deref().or(self.record.registration.as_deref())),
        };
        let may = match &party.client {
            None => self.check_host(party.registration.as_deref()),
            Some(client) => match self.speaking_client(party, client) {
                Ok(_) if self.host_is_present()? => Ok(()),
                Ok(_) => Err(Refused::HostGone),
                Err(refused) => Err(refused),
            },
        };
        match may {
            Err(refused @ (Refused::Expired | Refused::HostGone)) => match self.find(&key)? {
                // What it was promised may wait for it still.
                Some(member) if self.has_waiting(&member, resume)? => Ok(key),
                _ => Err(refused),
            },
            other => other.map(|()| key),
        }
    }

    /// Whether a member that listens now finds something waiting.
    fn has_waiting(&self, member: &Entry<Member>, resume: Option<u64>) -> Result<bool, Error> {
        let topic = self.topic(member.line.is_host());
        let from = match resume {
            Some(id) => id.max(member.line.from),
            None => member.position(),
        };
        topic.any(from, member.wants(), |record| record.id > from)
    }
}
