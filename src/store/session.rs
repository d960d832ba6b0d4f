//! A session: a host and its clients, under one lock.

use super::folder::Folder;
use super::mailbox::{Mailbox, has_news};
use super::{Error, Kind, Store};
use crate::token::{ClientId, HostId};
use serde::{Deserialize, Serialize};
use std::io;
use std::time::{Duration, SystemTime};

const CLIENTS: &str = "clients";

/// What `session.json` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionRecord {
    /// The host it belongs to.
    pub host_id: String,
    /// The latest `action=host`; `None` where an application's own token made the session.
    pub registration: Option<String>,
}

/// A session, locked.
pub struct Session {
    folder: Folder<SessionRecord>,
    record: Option<SessionRecord>,
}

impl Store {
    /// Locks the session of a host; `None` where there is none.
    ///
    /// # Errors
    /// When the data folder cannot be used.
    pub fn session(&self, host: &HostId) -> Result<Option<Session>, Error> {
        let Some(folder) = self.open(Kind::Hosts, host.as_str())? else { return Ok(None) };
        let session = Session::read(folder)?;
        Ok(session.record.is_some().then_some(session))
    }

    /// Locks the session of a host, made if it is missing; [`Session::record`] is then still empty. `None` where there
    /// are `most` sessions already.
    ///
    /// # Errors
    /// When the data folder cannot be used.
    pub fn session_or_new(&self, host: &HostId, most: u64) -> Result<Option<Session>, Error> {
        self.open_or_make(Kind::Hosts, host.as_str(), most)?.map(Session::read).transpose()
    }

    /// Whether the host's stream, or (`of_clients`) the stream of one of its clients, has ended more than `grace` ago, or
    /// without a word, and its peers do not know. A look without the lock: it costs a few microseconds a client and holds
    /// nobody up.
    #[must_use]
    pub fn has_news(&self, host: &HostId, of_clients: bool, grace: Duration) -> bool {
        let path = self.folder(Kind::Hosts, host.as_str());
        if !of_clients {
            return has_news(&path, grace);
        }
        let Ok(clients) = std::fs::read_dir(path.join(CLIENTS)) else { return false };
        clients.flatten().any(|client| has_news(&client.path(), grace))
    }
}

impl Session {
    pub(super) fn read(folder: Folder<SessionRecord>) -> Result<Self, Error> {
        let record = folder.read()?;
        Ok(Self { folder, record })
    }

    /// The record; `None` in a session that has just been made.
    #[must_use]
    pub fn record(&self) -> Option<&SessionRecord> {
        self.record.as_ref()
    }

    /// Writes the record.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn set_record(&mut self, record: SessionRecord) -> Result<(), Error> {
        self.folder.write(&record)?;
        self.record = Some(record);
        Ok(())
    }

    /// When the host's owner used it last without listening: it was registered, or [touched](Self::touch).
    ///
    /// # Errors
    /// When that cannot be seen.
    pub fn touched(&self) -> Result<SystemTime, Error> {
        self.folder.touched()
    }

    /// Makes the session count as used by its host now.
    ///
    /// # Errors
    /// When that cannot be written.
    pub fn touch(&self) -> Result<(), Error> {
        self.folder.touch()
    }

    /// The host's mailbox.
    #[must_use]
    pub fn host(&self) -> Mailbox<'_> {
        Mailbox::new(&self.folder, self.folder.path().to_owned())
    }

    /// A client's mailbox, which may not exist.
    #[must_use]
    pub fn client(&self, client: &ClientId) -> Mailbox<'_> {
        Mailbox::new(&self.folder, self.folder.path().join(CLIENTS).join(client_folder(client)))
    }

    /// All clients that have a mailbox.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn clients(&self) -> Result<Vec<ClientId>, Error> {
        let entries = match std::fs::read_dir(self.folder.path().join(CLIENTS)) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        };
        let mut clients = Vec::new();
        for entry in entries {
            // A name that no client has is a stranger's, and none of our business.
            clients.extend(entry?.file_name().to_str().and_then(client_of_folder));
        }
        Ok(clients)
    }

    /// Removes every client's mailbox and the host's, so that nothing is left of an earlier registration.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn clear(&self) -> Result<(), Error> {
        for client in self.clients()? {
            self.client(&client).remove()?;
        }
        match std::fs::remove_dir_all(self.folder.path().join(CLIENTS)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        self.host().remove()
    }

    /// Removes the session.
    ///
    /// # Errors
    /// When something cannot be removed; a later sweep tries again.
    pub fn remove(self) -> Result<(), Error> {
        self.clear()?;
        self.folder.remove()
    }
}

/// A file name made of a client id, and nothing but that id makes it. `.` is encoded too, so that no id is `..`.
fn client_folder(client: &ClientId) -> String {
    urlencoding::encode(client.as_str()).replace('.', "%2E")
}

fn client_of_folder(name: &str) -> Option<ClientId> {
    let client = ClientId::new(&urlencoding::decode(name).ok()?)?;
    (client_folder(&client) == name).then_some(client)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_client_folder_is_one_plain_name_and_leads_back_to_its_client(id in "\\PC{1,20}|\\.{1,3}|[./%]{1,20}") {
            let client = ClientId::new(&id).unwrap();
            let name = client_folder(&client);
            prop_assert!(!name.contains(['/', '.', '\0']) && name.len() <= 255);
            prop_assert_eq!(client_of_folder(&name), Some(client));
        }
    }
}
