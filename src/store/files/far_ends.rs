//! The far ends of a server of PTTH: how they wait for requests, claim them, give them back and answer.
//!
//! Each of them sleeps under a [name](super::sleeper) of its own in one folder. For a request that comes one of them is called,
//! and looks for all that wait. Whoever leaves has another one called, where some still wait. One that was killed after it was
//! called has lost nothing: the request waits, and its client has another one called a moment later.

use super::ends::{HEAD_TIME, Sender, Taking};
use super::receipt::{ReceiverPaths, after_receipt};
use super::requests::{FAR_ENDS, GIVEN, Requests, WAITING, claims_at, find_far_end};
use super::sleeper::Sleeper;
use super::{Error, Files, if_there, make_dir, modified, names, read_small, remove_file};
use crate::clock::now_ms;
use crate::hex;
use crate::ptth::ServerName;
use crate::store::requests::{Claimed, FarEnds, RequestId};
use crate::wake::Ready;
use crate::workers::{at_disk, blocking};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

/// How long a client may take at best to make its FIFOs for an answer that comes to another process.
const COMING_TIME: Duration = Duration::from_millis(2);

/// A far end that waits for requests. When it is dropped, it has left.
pub struct WaitingFarEnd {
    // In this order: nobody calls it any more once it calls another.
    place: Sleeper,
    requests: PassedOn,
    /// In milliseconds since 1970.
    asked_at: u64,
}

/// When it is dropped, a far end is called for what waits: whoever left may have been called for it.
struct PassedOn(Requests);

impl Drop for PassedOn {
    fn drop(&mut self) {
        match names(&self.0.path(WAITING)) {
            Ok(waiting) if waiting.is_empty() => {}
            Ok(_) => self.0.wake_far_end(),
            // Its client sees to it a moment later.
            Err(error) => error.log(),
        }
    }
}

impl WaitingFarEnd {
    /// What is ready when it is called.
    #[must_use]
    pub fn awaited(&self) -> Ready<'_> {
        self.place.awaited()
    }

    /// Claims the requests that have waited longest, up to `most`: to be called at first, and when it is
    /// [called](Self::awaited). Nobody else has a claimed request until it is given back.
    ///
    /// # Errors
    /// When the first of them cannot be read.
    pub async fn claim(&mut self, most: usize) -> Result<Vec<Claimed>, Error> {
        at_disk(|| self.claim_now(most)).await
    }

    pub(super) fn claim_now(&mut self, most: usize) -> Result<Vec<Claimed>, Error> {
        if self.place.is_removed()? {
            // The server was removed. It is registered again, or else there is nothing to claim.
            *self = self.requests.0.listen()?;
        }
        self.requests.0.claim(most, self.asked_at)
    }

    /// Leaves, and has another far end called for what still waits.
    pub async fn leave(self) {
        at_disk(|| drop(self)).await;
    }
}

/// The answer to a request, which nobody else can answer any more.
pub struct Answer {
    pub(in crate::store) sender: Sender,
    pub(in crate::store) leftovers: Leftovers,
}

/// What is left of a request whose receipt has been taken away already. A sweep finds it too.
pub struct Leftovers(ReceiverPaths);

impl Leftovers {
    pub(in crate::store) async fn remove(self) {
        at_disk(|| {
            for name in [&self.0.data, &self.0.receiver] {
                if let Err(error) = remove_file(name) {
                    Error::from(error).log();
                }
            }
        })
        .await;
    }
}

#[cfg(not(feature = "redis"))]
impl Answer {
    /// The way to the client, for the head.
    #[must_use]
    pub fn sender(&mut self) -> &mut Sender {
        &mut self.sender
    }

    /// To be called once the head has been sent, or could not be: removes what is left of the request, and gives the way for
    /// the bytes.
    #[must_use]
    pub async fn begin(self) -> Sender {
        self.leftovers.remove().await;
        self.sender
    }
}

impl Files {
    pub fn listen_for_requests(&self, server: &ServerName) -> Result<WaitingFarEnd, Error> {
        self.requests(server).listen()
    }

    pub fn far_ends(&self, server: &ServerName) -> Result<FarEnds, Error> {
        let folder = self.requests(server).path(FAR_ENDS);
        // It changes when one comes or goes.
        Ok(FarEnds { seen: modified(&folder)?, is_listening: find_far_end(self, &folder)?.is_some() })
    }

    pub fn answer_request(&self, servers: &[ServerName], id: &RequestId) -> Result<Option<Answer>, Error> {
        servers.iter().find_map(|server| self.requests(server).answer(id).transpose()).transpose()
    }
}

impl Requests {
    pub(super) fn listen(&self) -> Result<WaitingFarEnd, Error> {
        let asked_at = now_ms();
        let place = self.with_folders(|| {
            let folder = self.path(FAR_ENDS);
            make_dir(&folder)?;
            Sleeper::make(&self.files, folder.join(hex::random(8)?))
        })?;
        Ok(WaitingFarEnd { place, requests: PassedOn(self.clone()), asked_at })
    }

    /// Claims the requests that have waited longest, up to `most`, for a far end that began to listen at that time.
    fn claim(&self, most: usize, asked_at: u64) -> Result<Vec<Claimed>, Error> {
        let mut waiting = names(&self.path(WAITING))?;
        let mut claimed = Vec::new();
        // There may be many, of which few are claimed.
        while claimed.len() < most
            && let Some(oldest) = (0..waiting.len()).min_by_key(|index| &waiting[*index])
        {
            let name = waiting.swap_remove(oldest);
            match self.claim_or_remove(&name, asked_at) {
                Ok(one) => claimed.extend(one),
                Err(error) if claimed.is_empty() => return Err(error),
                // Those that are claimed wait for nobody else.
                Err(error) => {
                    error.log();
                    break;
                }
            }
        }
        Ok(claimed)
    }

    /// Claims what stands in `waiting` under that name, unless a killed client has left it.
    fn claim_or_remove(&self, name: &str, asked_at: u64) -> Result<Option<Claimed>, Error> {
        let paths = self.paths(name, WAITING);
        match RequestId::parse(name) {
            Some(id) if paths.are_received(&self.files)? => self.claim_one(id, asked_at),
            _ => paths.remove().map(|()| None),
        }
    }

    /// Claims a request; `None` where it has gone: its client takes it along, and another far end may be faster.
    fn claim_one(&self, id: RequestId, asked_at: u64) -> Result<Option<Claimed>, Error> {
        let [from, to] = [WAITING, GIVEN].map(|folder| self.path(folder).join(id.as_str()));
        let claim = || -> io::Result<_> {
            std::fs::rename(from, &to)?;
            let file = File::options().read(true).write(true).open(&to)?;
            let text = read_small(&file)?;
            // Nobody else writes there: whoever has moved the file is the only one that has it.
            Ok(match after_receipt(&text).and_then(<[u8]>::split_first) {
                Some((claims, request)) => {
                    if *claims == 0 || asked_at > id.made_at() {
                        file.write_all_at(&[claims.saturating_add(1)], claims_at())?;
                    }
                    Some(Claimed { id, request: request.to_vec() })
                }
                None => None,
            })
        };
        Ok(if_there(claim())?.flatten())
    }

    pub(super) fn answer(&self, id: &RequestId) -> Result<Option<Answer>, Error> {
        let until = Instant::now() + HEAD_TIME;
        loop {
            let mut is_coming = false;
            // It may have been given back meanwhile.
            for receipt in [GIVEN, WAITING] {
                let paths = self.paths(id.as_str(), receipt);
                match Sender::take(&self.files, &paths)? {
                    Taking::Taken(sender) => return Ok(Some(Answer { sender, leftovers: Leftovers(paths) })),
                    Taking::NotYet => is_coming = true,
                    Taking::Nobody => {}
                }
            }
            if !is_coming {
                return Ok(None);
            }
            if Instant::now() >= until {
                return Err(Error::Busy);
            }
            blocking(|| std::thread::sleep(COMING_TIME));
        }
    }
}
