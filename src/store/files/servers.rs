//! The servers that may be reached through PTTH: `ptth.json`, which a person may edit.
//!
//! ```text
//! {
//!   "my-server": { "tripcode": "A9rPwZyY89Ag4TJjMoyYA2NeGOm99Je6rq1s0rg8PfY=", "displayName": "My server", "listed": true }
//! }
//! ```

use super::{Error, FileIdentity, Files, folder, identity, if_there, private_file, read_small, replace};
use crate::ptth::ServerName;
use crate::store::requests::{PtthServer, PtthServers};
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{MetadataExt as _, fchown};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

const FILE: &str = "ptth.json";

/// Which file it is, and as of when.
#[derive(PartialEq)]
struct Version {
    identity: FileIdentity,
    size: u64,
    modified: SystemTime,
}

impl Version {
    fn of(file: &Metadata) -> io::Result<Self> {
        Ok(Self { identity: identity(file), size: file.len(), modified: file.modified()? })
    }

    /// Whether every change of the file from now on changes its time: clocks of file systems are coarse.
    fn is_settled(&self) -> bool {
        self.modified.elapsed().is_ok_and(|elapsed| elapsed > Duration::from_secs(3))
    }
}

impl Files {
    /// The registered servers; none where there is no file.
    pub fn ptth_servers(&self) -> Result<Arc<PtthServers>, Error> {
        /// The last one that was read: three requests need it for each that passes through.
        static LAST: Mutex<Option<(PathBuf, Version, Arc<PtthServers>)>> = Mutex::new(None);
        let path = self.root.join(FILE);
        let Some(file) = if_there(std::fs::metadata(&path))? else { return Ok(Arc::default()) };
        let version = Version::of(&file)?;
        let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((last_path, last_version, servers)) = &*last
            && *last_version == version
            && *last_path == path
        {
            return Ok(Arc::clone(servers));
        }
        let servers = Arc::new(self.read_ptth_servers()?);
        // What is being written may have the same time once it is written.
        *last = version.is_settled().then(|| (path, version, Arc::clone(&servers)));
        Ok(servers)
    }

    fn read_ptth_servers(&self) -> Result<PtthServers, Error> {
        match if_there(File::open(self.root.join(FILE)).and_then(|file| read_small(&file)))? {
            Some(text) => serde_json::from_slice(&text).map_err(Error::BadRegistry),
            None => Ok(PtthServers::new()),
        }
    }

    pub fn register_ptth_server(&self, name: &ServerName, server: &PtthServer) -> Result<bool, Error> {
        self.change_ptth_servers(|servers| {
            let is_new = !servers.contains_key(name);
            if is_new {
                servers.insert(name.clone(), server.clone());
            }
            is_new
        })
    }

    pub fn remove_ptth_server(&self, name: &ServerName) -> Result<bool, Error> {
        self.change_ptth_servers(|servers| servers.remove(name).is_some())
    }

    /// Changes the registered servers, with nobody else at it, if `change` says that it has.
    fn change_ptth_servers(&self, change: impl FnOnce(&mut PtthServers) -> bool) -> Result<bool, Error> {
        let path = self.root.join("ptth.lock");
        let lock = self.with_root(Path::new(""), || Ok(private_file(&path)?))?;
        self.give_away(&lock)?;
        folder::lock_in_time(&lock, &path)?;
        let mut servers = self.read_ptth_servers()?;
        if !change(&mut servers) {
            return Ok(false);
        }
        let mut text = serde_json::to_vec_pretty(&servers).map_err(io::Error::other)?;
        text.push(b'\n');
        let beside = self.root.join("ptth.json.new");
        // Made first, so that it has the right owner when it takes its place.
        self.give_away(&private_file(&beside)?)?;
        replace(&self.root.join(FILE), &beside, &text)?;
        Ok(true)
    }

    /// Gives a file to the owner of the data folder: what root registers, the web server's user must be able to read.
    fn give_away(&self, file: &File) -> io::Result<()> {
        let (folder, own) = (std::fs::metadata(&self.root)?, file.metadata()?);
        if own.uid() == folder.uid() {
            return Ok(());
        }
        match fchown(file, Some(folder.uid()), Some(folder.gid())) {
            // Whoever is not root may still be allowed to write there, and gives nothing away.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_dir::TestDir;
    use super::*;
    use crate::ptth::Tripcode;
    use std::os::unix::fs::PermissionsExt as _;

    fn name(text: &str) -> ServerName {
        ServerName::new(text).unwrap()
    }

    fn server(key: &str) -> PtthServer {
        PtthServer { tripcode: Tripcode::of(key), display_name: None, listed: false }
    }

    #[test]
    fn nobody_else_may_read_the_file() {
        let dir = TestDir::new();
        let store = Files::new(&dir.join("data"));
        assert!(store.register_ptth_server(&name("a"), &server("k")).unwrap());
        let mode = std::fs::metadata(dir.join("data/ptth.json")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named_and_left_alone() {
        let dir = TestDir::new();
        let store = Files::new(&dir.join("data"));
        let tripcode = String::from(Tripcode::of("k"));
        std::fs::create_dir(dir.join("data")).unwrap();
        for wrong in [
            String::new(),
            "[]".into(),
            "{\"a\":".into(),
            format!("{{\"a/b\":{{\"tripcode\":\"{tripcode}\"}}}}"),
            format!("{{\"a\":{{\"tripcode\":\"{tripcode}\",\"lsited\":true}}}}"),
            "{\"a\":{\"tripcode\":\"hidden-word\"}}".into(),
            "{\"a\":{}}".into(),
        ] {
            std::fs::write(dir.join("data/ptth.json"), &wrong).unwrap();
            let error = store.ptth_servers().unwrap_err().to_string();
            assert!(error.contains("ptth.json") && error.contains("line") && !error.contains("hidden"), "{error}");
            store.change_ptth_servers(|_| panic!("there is nothing to change")).unwrap_err();
            assert_eq!(std::fs::read_to_string(dir.join("data/ptth.json")).unwrap(), wrong);
        }
        let shortest = format!("{{\"a\":{{\"tripcode\":\"{tripcode}\"}}}}");
        std::fs::write(dir.join("data/ptth.json"), shortest).unwrap();
        assert_eq!(store.ptth_servers().unwrap()[&name("a")], server("k"));
    }
}
