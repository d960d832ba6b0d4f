//! A session: a host and its clients, under one lock.

use super::folder::Folder;
use super::mailbox::{Mailbox, has_news};
use super::{Error, Files, Kind, hash_name, identity_at};
use crate::clock::is_recent;
use crate::token::{ClientId, HostId};
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

const CLIENTS: &str = "clients";
const FORMER: &str = "former";

/// That many earlier registrations of a host may have messages that wait at a time.
const MOST_FORMER: usize = 16;

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
    /// Where the mailboxes are: an earlier registration has a folder of its own.
    place: PathBuf,
}

impl Files {
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

    /// Locks the session of a host as an earlier registration left it: with the mailboxes in which messages wait that it, or
    /// its clients, were promised. `None` where it left none.
    ///
    /// # Errors
    /// When the data folder cannot be used.
    pub fn former_session(&self, host: &HostId, registration: &str) -> Result<Option<Session>, Error> {
        let Some(mut session) = self.session(host)? else { return Ok(None) };
        session.place = session.former(Some(registration));
        Ok(identity_at(&session.place)?.is_some().then_some(session))
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
        Ok(Self { place: folder.path().to_owned(), folder, record })
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
        Mailbox::new(&self.folder, self.place.clone())
    }

    /// A client's mailbox, which may not exist.
    #[must_use]
    pub fn client(&self, client: &ClientId) -> Mailbox<'_> {
        Mailbox::new(&self.folder, self.place.join(CLIENTS).join(client_folder(client)))
    }

    /// All clients that have a mailbox.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn clients(&self) -> Result<Vec<ClientId>, Error> {
        // A name that no client has is a stranger's, and none of our business.
        Ok(names(&self.place.join(CLIENTS))?.iter().filter_map(|name| client_of_folder(name)).collect())
    }

    /// What a registration leaves. A hash, because an application may choose what stands in its tokens.
    fn former(&self, registration: Option<&str>) -> PathBuf {
        self.folder.path().join(FORMER).join(hash_name(registration.unwrap_or_default()))
    }

    /// Ends the registration: removes every client's mailbox and the host's, except that those with a message that is younger
    /// than `lifetime` are [set aside](Files::former_session), also where a stream was given it: that may have lost it. Where
    /// many have been set aside already, there is room only if no message is one that nobody was given; otherwise false.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn end_registration(&self, lifetime: Duration) -> Result<bool, Error> {
        let former = self.former(self.record.as_ref().and_then(|record| record.registration.as_deref()));
        let is_full = self.tidy_former(lifetime)? >= MOST_FORMER;
        let is_kept = |mailbox: &Mailbox<'_>| {
            if is_full {
                mailbox.has_message_waiting(lifetime)
            } else {
                Ok(mailbox.last_message()?.is_some_and(|at| is_recent(at, lifetime)))
            }
        };
        let mut kept = Vec::new();
        for client in &self.clients()? {
            if is_kept(&self.client(client))? {
                kept.push((self.client(client), former.join(CLIENTS).join(client_folder(client))));
            }
        }
        if is_kept(&self.host())? {
            kept.push((self.host(), former));
        }
        if is_full && !kept.is_empty() {
            return Ok(false);
        }
        for (mailbox, place) in kept {
            mailbox.move_to(&place)?;
        }
        self.clear()?;
        Ok(true)
    }

    /// Gives a client whose token belongs to no registration the mailbox back that was set aside with one.
    ///
    /// # Errors
    /// When it cannot be moved.
    pub fn reclaim(&self, client: &ClientId) -> Result<(), Error> {
        let former = self.folder.path().join(FORMER);
        for registration in names(&former)? {
            let mailbox =
                Mailbox::new(&self.folder, former.join(registration).join(CLIENTS).join(client_folder(client)));
            if mailbox.touched()?.is_some() {
                return mailbox.move_to(&self.folder.path().join(CLIENTS).join(client_folder(client)));
            }
        }
        Ok(())
    }

    /// Removes what earlier registrations have left once its messages are older than `lifetime`. How many registrations
    /// have something left.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn tidy_former(&self, lifetime: Duration) -> Result<usize, Error> {
        let former = self.folder.path().join(FORMER);
        let mut count = 0;
        for registration in names(&former)? {
            let place = former.join(registration);
            let mut is_kept = false;
            let clients = names(&place.join(CLIENTS))?.into_iter().map(|name| place.join(CLIENTS).join(name));
            for mailbox in clients.chain([place.clone()]).map(|path| Mailbox::new(&self.folder, path)) {
                is_kept |= mailbox.last_message()?.is_some_and(|at| is_recent(at, lifetime));
            }
            if is_kept {
                count += 1;
            } else {
                remove_dir_all(&place)?;
            }
        }
        if count == 0 {
            // It is empty now, if it is there.
            let _ = std::fs::remove_dir(&former);
        }
        Ok(count)
    }

    /// Whether neither the host nor a client has ever listened, and no message was ever sent.
    ///
    /// # Errors
    /// When that cannot be seen.
    pub fn is_unused(&self) -> Result<bool, Error> {
        if !self.host().is_unused()? || identity_at(&self.folder.path().join(FORMER))?.is_some() {
            return Ok(false);
        }
        for client in self.clients()? {
            if !self.client(&client).is_unused()? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Removes every client's mailbox and the host's.
    fn clear(&self) -> Result<(), Error> {
        for client in self.clients()? {
            self.client(&client).remove()?;
        }
        remove_dir_all(&self.folder.path().join(CLIENTS))?;
        self.host().remove()
    }

    /// Removes the session.
    ///
    /// # Errors
    /// When something cannot be removed; a later sweep tries again.
    pub fn remove(self) -> Result<(), Error> {
        remove_dir_all(&self.folder.path().join(FORMER))?;
        self.clear()?;
        self.folder.remove()
    }
}

/// The names in a folder; none where there is no folder.
fn names(path: &Path) -> Result<Vec<String>, Error> {
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry?.file_name().into_string());
    }
    Ok(names)
}

fn remove_dir_all(path: &Path) -> Result<(), Error> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
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
    use super::super::test_dir::TestDir;
    use super::*;
    use proptest::prelude::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn read(mailbox: &Mailbox<'_>) -> Vec<String> {
        let mut all = Vec::new();
        let mut listener = mailbox.listen(None, MINUTE, 1 << 20).unwrap();
        while listener.next(|record| all.push(record.data.to_owned())).unwrap() {}
        all
    }

    #[test]
    fn what_waits_is_set_aside_for_its_registration_whatever_that_is_called() {
        let dir = TestDir::new();
        let store = Files::new(&dir.join("data"));
        let host = HostId::new("room").unwrap();
        let [waits, told, heard] = ["waits", "told", "heard"].map(|id| ClientId::new(id).unwrap());
        for registration in ["0123456789abcdef", "", "..", "../../..", "a/b", &"long".repeat(1000)] {
            let mut session = store.session_or_new(&host, 1).unwrap().unwrap();
            let record = SessionRecord { host_id: "room".to_owned(), registration: Some(registration.to_owned()) };
            session.set_record(record).unwrap();
            for client in [&waits, &told, &heard] {
                session.client(client).make().unwrap();
            }
            drop(session.client(&waits).put("\"waits\"", None).unwrap());
            session.client(&told).tell("relay_event", "\"told\"", 1 << 20).unwrap();
            drop(session.client(&heard).put("\"heard\"", None).unwrap());
            let mut listener = session.client(&heard).listen(None, MINUTE, 1 << 20).unwrap();
            while listener.next(|_| ()).unwrap() {}
            listener.delivered().unwrap();
            drop(session.host().put(registration, None).unwrap());
            assert!(session.end_registration(MINUTE).unwrap());
            assert!(session.clients().unwrap().is_empty() && session.host().last_message().unwrap().is_none());
            drop(session);

            let former = store.former_session(&host, registration).unwrap().unwrap();
            assert_eq!(former.clients().unwrap().len(), 2);
            assert_eq!(read(&former.client(&waits)), ["\"waits\""]);
            // What a stream was given it may have lost: it comes again for whoever asks for it.
            let has_waiting = |resume| former.client(&heard).has_waiting(resume).unwrap();
            assert_eq!([has_waiting(None), has_waiting(Some(0))], [false, true]);
            assert_eq!(read(&former.host()), [registration]);
            assert_eq!(former.tidy_former(MINUTE).unwrap(), 1);
            assert_eq!(former.tidy_former(Duration::ZERO).unwrap(), 0);
            drop(former);
            assert!(store.former_session(&host, registration).unwrap().is_none());
        }
        store.session(&host).unwrap().unwrap().remove().unwrap();
        assert!(!store.folder(Kind::Hosts, "room").exists());
    }

    #[test]
    fn what_was_given_goes_first_where_much_is_set_aside() {
        let dir = TestDir::new();
        let store = Files::new(&dir.join("data"));
        let mut session = store.session_or_new(&HostId::new("room").unwrap(), 1).unwrap().unwrap();
        let client = ClientId::new("client").unwrap();
        for registration in 0..=MOST_FORMER + 1 {
            let record = SessionRecord { host_id: "room".to_owned(), registration: Some(registration.to_string()) };
            session.set_record(record).unwrap();
            session.client(&client).make().unwrap();
            drop(session.client(&client).put("1", None).unwrap());
            if registration <= MOST_FORMER {
                let mut listener = session.client(&client).listen(None, MINUTE, 1 << 20).unwrap();
                while listener.next(|_| ()).unwrap() {}
                listener.delivered().unwrap();
            }
            assert_eq!(session.end_registration(MINUTE).unwrap(), registration <= MOST_FORMER, "{registration}");
            assert!(session.tidy_former(MINUTE).unwrap() <= MOST_FORMER);
        }
        assert_eq!(read(&session.client(&client)), ["1"]);
    }

    #[test]
    fn a_session_is_in_use_where_a_client_has_listened() {
        let dir = TestDir::new();
        let store = Files::new(&dir.join("data"));
        let session = store.session_or_new(&HostId::new("room").unwrap(), 1).unwrap().unwrap();
        let client = ClientId::new("client").unwrap();
        session.client(&client).make().unwrap();
        assert!(session.is_unused().unwrap());
        let listener = session.client(&client).listen(None, MINUTE, 1 << 20).unwrap();
        assert!(!session.is_unused().unwrap());
        drop(listener);
    }

    #[test]
    fn what_the_relay_tells_keeps_no_mailbox() {
        let dir = TestDir::new();
        let store = Files::new(&dir.join("data"));
        let session = store.session_or_new(&HostId::new("room").unwrap(), 1).unwrap().unwrap();
        let mailbox = session.host();
        mailbox.tell("relay_event", "1", 1 << 20).unwrap();
        drop(mailbox.listen(None, MINUTE, 1 << 20).unwrap());
        assert_eq!(mailbox.last_message().unwrap(), None);
        drop(mailbox.put("2", None).unwrap());
        let put = mailbox.last_message().unwrap();
        assert!(put.is_some());
        std::thread::sleep(Duration::from_millis(20));
        mailbox.tell("relay_event", "3", 1 << 20).unwrap();
        drop(mailbox.listen(None, MINUTE, 1 << 20).unwrap());
        assert_eq!(mailbox.last_message().unwrap(), put);
        assert_eq!(read(&mailbox), ["1", "2", "3"]);
        mailbox.drop_up_to(u64::MAX).unwrap();
        assert_eq!(mailbox.last_message().unwrap(), put, "nor does it when it drops what was given");
        assert!(read(&mailbox).is_empty());
    }

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
