//! What the sweep does about a session.

use super::super::folder::Folder;
use super::super::members::Table;
use super::super::topic::{MESSAGE, is_any};
use super::super::{Error, Files};
use super::intentions::OPENING_TIME;
use super::{CLIENTS, HOST, MEMBERS, Member, Presence, Session, SessionRecord, clear};
use crate::clock::is_recent;
use crate::store::sessions::Policy;

impl Files {
    /// Removes what is dead in a session, and tells the peers of what has died.
    pub(in crate::store::files) fn sweep_session(
        &self,
        folder: Folder<SessionRecord>,
        policy: &Policy<'_>,
    ) -> Result<(), Error> {
        match folder.read()? {
            Some(record) => Session::of(self, policy, folder, record)?.sweep(),
            // Never finished, or damaged. Somebody may be about to register it.
            None if is_recent(folder.touched()?, OPENING_TIME) => Ok(()),
            None => {
                clear(folder.path())?;
                folder.remove()
            }
        }
    }
}

/// Removes a session if neither the host nor a client has ever listened, and no message was ever sent. Whether it did.
pub(in crate::store::files) fn remove_unused(folder: Folder<SessionRecord>) -> Result<bool, Error> {
    let members = Table::<Member>::all_at(&folder.beside(MEMBERS))?;
    let is_said_to = |name| is_any(&folder.beside(name), 0, |_| true, |record| record.event == MESSAGE);
    let is_used = members.iter().any(|entry| entry.line.stream > 0) || is_said_to(HOST)? || is_said_to(CLIENTS)?;
    if !is_used {
        clear(folder.path())?;
        folder.remove()?;
    }
    Ok(!is_used)
}

impl Session<'_> {
    fn sweep(mut self) -> Result<(), Error> {
        // Where there is no room to tell it, what is dead must go all the more.
        let mut outcome = self.tell_all();
        let host_is_over = self.host_is_over()?;
        if host_is_over && self.host_presence()? == Presence::Waiting {
            // One that never opened has not been told of yet.
            outcome = outcome.and(self.tell_clients());
        }
        let members = self.all()?;
        let promised = self.promised(&members)?;
        for mut member in members {
            let is_current_host = member.line.is_host() && self.is_current(&member);
            let Member { ended, told, .. } = member.line;
            // Somebody is to hear of its end first.
            let is_untold = !host_is_over && self.is_current(&member) && ended.is_some() && !told;
            if !is_current_host && !is_untold && !promised.contains(&member.slot) && self.is_out_of_time(&mut member)? {
                self.table()?.free(member.slot)?;
            }
        }
        // Whatever has become of the host, its clients may come for their messages.
        if host_is_over && promised.is_empty() {
            return self.remove();
        }
        for of_host in [true, false] {
            let floor = self.floor(of_host)?;
            outcome = outcome.and(self.topic(of_host).trim(floor));
        }
        outcome
    }
}
