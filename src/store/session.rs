//! A session: a host and its clients, under one lock.

use super::folder::Folder;
use super::mailbox::{Mailbox, has_news};
use super::{Error, Store, identity_at};
use crate::token::{ClientId, HostId};
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// The folder of all sessions.
const KIND: &str = "hosts";
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
        let Some(folder) = Folder::open(&self.folder(KIND, host.as_str()))? else { return Ok(None) };
        let session = Session::read(folder)?;
        Ok(session.record.is_some().then_some(session))
    }

    /// Locks the session of a host, made if it is missing; [`Session::record`] is then still empty. `None` where there
    /// are `most` sessions already.
    ///
    /// # Errors
    /// When the data folder cannot be used.
    pub fn session_or_new(&self, host: &HostId, most: u64) -> Result<Option<Session>, Error> {
        let path = self.folder(KIND, host.as_str());
        if let Some(folder) = Folder::open(&path)? {
            return Ok(Some(Session::read(folder)?));
        }
        let shard = path.parent().and_then(Path::file_name).unwrap_or_default();
        let number = shard.to_str().and_then(|name| usize::from_str_radix(name, 16).ok()).unwrap_or(0);
        let inside = Path::new(KIND).join(shard);
        let make = || self.with_root(&inside, || Folder::open_or_make(&path));
        let mut counts = Counts::lock(self)?;
        if identity_at(&path)?.is_some() {
            // Somebody was faster, and has counted it. He may hold its lock, so let go of the counts first.
            drop(counts);
            return Ok(Some(Session::read(make()?)?));
        }
        if counts.total() >= most {
            return Ok(None);
        }
        let folder = make()?;
        counts.set(number, counts.get(number) + 1)?;
        Ok(Some(Session::read(folder)?))
    }

    /// Locks a session that a sweep has come upon; `None` where it is gone or in use.
    pub(super) fn session_at(path: &Path) -> Result<Option<Session>, Error> {
        Folder::try_open(path)?.map(Session::read).transpose()
    }

    /// The folder of a shard of sessions.
    pub(super) fn shard(&self, number: u8) -> PathBuf {
        self.root.join(KIND).join(format!("{number:02x}"))
    }

    /// Corrects the number of sessions in a shard, which killed processes may have left wrong.
    pub(super) fn count_shard(&self, number: u8) -> Result<(), Error> {
        let mut counts = Counts::lock(self)?;
        let sessions = match std::fs::read_dir(self.shard(number)) {
            Ok(entries) => entries.count() as u64,
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error.into()),
        };
        if counts.get(usize::from(number)) != sessions {
            counts.set(usize::from(number), sessions)?;
        }
        Ok(())
    }

    /// Whether the host's stream, or (`of_clients`) the stream of one of its clients, has ended more than `grace` ago, or
    /// without a word, and its peers do not know. A look without the lock: it costs a few microseconds a client and holds
    /// nobody up.
    #[must_use]
    pub fn has_news(&self, host: &HostId, of_clients: bool, grace: Duration) -> bool {
        let path = self.folder(KIND, host.as_str());
        if !of_clients {
            return has_news(&path, grace);
        }
        let Ok(clients) = std::fs::read_dir(path.join(CLIENTS)) else { return false };
        clients.flatten().any(|client| has_news(&client.path(), grace))
    }
}

impl Session {
    fn read(folder: Folder<SessionRecord>) -> Result<Self, Error> {
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

/// How many sessions each shard has: a table of 256 lines, so that the limit on hosts costs one read of 2 KiB and not
/// a walk through all folders. Kill a process between two writes and it is off by one until the next sweep.
struct Counts {
    file: std::fs::File,
    table: Vec<u8>,
}

impl Counts {
    const SHARDS: usize = 256;
    /// Seven digits and a line end.
    const ENTRY: usize = 8;

    fn lock(store: &Store) -> Result<Self, Error> {
        let path = store.root.join(KIND).join("counts");
        let file = store.with_root(Path::new(KIND), || Ok(super::private_file(&path)?))?;
        fs2::FileExt::lock_exclusive(&file)?;
        let mut table = super::read_small(&file)?;
        if table.len() != Self::SHARDS * Self::ENTRY {
            table = "      0\n".repeat(Self::SHARDS).into_bytes();
            super::folder::write_in_place(&file, &table)?;
        }
        Ok(Self { file, table })
    }

    fn get(&self, shard: usize) -> u64 {
        let entry = &self.table[shard * Self::ENTRY..][..Self::ENTRY];
        std::str::from_utf8(entry).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    }

    fn total(&self) -> u64 {
        (0..Self::SHARDS).map(|shard| self.get(shard)).sum()
    }

    fn set(&mut self, shard: usize, count: u64) -> Result<(), Error> {
        let mut entry = String::with_capacity(Self::ENTRY);
        let _ = writeln!(entry, "{:7}", count.min(9_999_999));
        self.table[shard * Self::ENTRY..][..Self::ENTRY].copy_from_slice(entry.as_bytes());
        Ok(self.file.write_all_at(entry.as_bytes(), (shard * Self::ENTRY) as u64)?)
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_dir::TestDir;
    use super::*;
    use proptest::prelude::*;

    fn host(id: &str) -> HostId {
        HostId::new(id).unwrap()
    }

    #[test]
    fn the_limit_on_hosts_counts_what_is_there() {
        let dir = TestDir::new();
        let store = Store::new(&dir.join("data"));
        let record = |id: &str| SessionRecord { host_id: id.to_owned(), registration: None };
        for id in ["a", "b", "c"] {
            store.session_or_new(&host(id), 3).unwrap().unwrap().set_record(record(id)).unwrap();
        }
        assert!(store.session_or_new(&host("d"), 3).unwrap().is_none());
        assert!(store.session_or_new(&host("c"), 3).unwrap().is_some(), "an existing one is no more");
        store.session(&host("b")).unwrap().unwrap().remove().unwrap();
        for shard in 0..=255 {
            store.count_shard(shard).unwrap();
        }
        assert!(store.session_or_new(&host("d"), 3).unwrap().is_some());
    }

    #[test]
    fn a_table_of_counts_that_is_damaged_begins_anew() {
        let dir = TestDir::new();
        let store = Store::new(&dir.join("data"));
        store.session_or_new(&host("a"), 3).unwrap().unwrap();
        std::fs::write(dir.join("data/hosts/counts"), "garbage").unwrap();
        assert!(store.session_or_new(&host("b"), 3).unwrap().is_some());
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
