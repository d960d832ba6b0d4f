//! The far ends of a server of PTTH: how they wait for requests, claim them, give them back and answer.
//!
//! All of them wait at one FIFO. In it are the ids of requests that have come; whoever reads one claims that request. One
//! that is not read stays there for the next, as long as there is one. When the last has gone the kernel drops them all, and
//! the next looks for requests before it sleeps.

use super::ends::{HEAD_TIME, Sender, Taking};
use super::modified;
use super::receipt::{ReceiverPaths, after_receipt};
use super::requests::{GIVEN, LISTENERS, REMOVED, Requests, WAITING, claims_at};
use super::wake::{Fifo, is_heard};
use super::{Error, Files, if_there, names, read_small, remove_file};
use crate::clock::now_ms;
use crate::ptth::ServerName;
use crate::store::requests::{Claimed, FarEnds, RequestId};
use crate::workers::{at_disk, blocking};
use rustix::fd::BorrowedFd;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

/// How long a client may take at best to make its FIFOs for an answer that comes to another process.
const COMING_TIME: Duration = Duration::from_millis(2);

/// A far end that waits for requests.
pub struct WaitingFarEnd {
    requests: Requests,
    fifo: Fifo,
    since: Instant,
    /// The same in milliseconds since 1970.
    asked_at: u64,
    call: Call,
}

/// What a far end was called for.
enum Call {
    /// For nothing yet: it looks for whatever waits.
    None,
    /// For this request.
    Request(RequestId),
    /// The server has been removed, and the FIFO with it.
    ServerRemoved,
}

impl WaitingFarEnd {
    /// What becomes readable when it is called.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fifo.fd()
    }

    /// To be called when [its descriptor](Self::fd) was readable. False where another far end was faster.
    pub fn is_called(&mut self) -> bool {
        // All that is ever written there has this size, so no reader gets half of it.
        let mut message = [0; RequestId::LENGTH];
        match rustix::io::read(self.fifo.fd(), &mut message) {
            Ok(RequestId::LENGTH) => {}
            _ => return false,
        }
        self.call = if let Some(id) = std::str::from_utf8(&message).ok().and_then(RequestId::parse) {
            Call::Request(id)
        } else {
            // The others shall hear it too.
            let _ = rustix::io::write(self.fifo.fd(), &REMOVED);
            Call::ServerRemoved
        };
        true
    }

    /// Claims the request for which it was called, or else those that have waited longest, up to `most`; where more
    /// wait, another far end is called. Nobody else has a claimed request until it is given back.
    ///
    /// # Errors
    /// When the first of them cannot be read.
    pub async fn claim(&mut self, most: usize) -> Result<Vec<Claimed>, Error> {
        at_disk(|| self.claim_now(most)).await
    }

    pub(super) fn claim_now(&mut self, most: usize) -> Result<Vec<Claimed>, Error> {
        match std::mem::replace(&mut self.call, Call::None) {
            Call::Request(id) => return Ok(self.requests.claim_one(id, self.asked_at)?.into_iter().collect()),
            // It is registered again, or else there is nothing to claim.
            Call::ServerRemoved => *self = self.requests.listen()?,
            Call::None => {}
        }
        let claimed = self.requests.claim(most, self.asked_at)?;
        if claimed.len() == most {
            self.requests.wake_far_end_if_any_waits();
        }
        Ok(claimed)
    }

    /// Leaves, and leaves to another far end what it may have been called for.
    pub async fn leave(self) {
        let requests = self.requests.clone();
        at_disk(|| {
            drop(self);
            requests.wake_far_end_if_any_waits();
        })
        .await;
    }

    /// Notes that a far end is there now.
    fn note(&self) {
        use rustix::fs::{Timespec, Timestamps, UTIME_NOW, futimens};
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        let _ = futimens(self.fifo.fd(), &Timestamps { last_access: now, last_modification: now });
    }
}

impl Drop for WaitingFarEnd {
    fn drop(&mut self) {
        // It has just been noted otherwise.
        if self.since.elapsed() >= Duration::from_secs(1) {
            self.note();
        }
    }
}

/// The answer to a request, which nobody else can answer any more.
pub struct Answer {
    sender: Sender,
    paths: ReceiverPaths,
}

impl Answer {
    /// The way to the client, for the head.
    #[must_use]
    pub fn sender(&self) -> &Sender {
        &self.sender
    }

    /// To be called once the head has been sent, or could not be: removes what is left of the request, and gives the way for
    /// the bytes.
    #[must_use]
    pub async fn begin(self) -> Sender {
        // Its receipt has been taken away already. The client has its head all the same, and a sweep finds what is left.
        at_disk(|| {
            for name in [&self.paths.data, &self.paths.receiver] {
                if let Err(error) = remove_file(name) {
                    Error::from(error).log();
                }
            }
        })
        .await;
        self.sender
    }
}

impl Files {
    pub fn listen_for_requests(&self, server: &ServerName) -> Result<WaitingFarEnd, Error> {
        self.requests(server).listen()
    }

    pub fn far_ends(&self, server: &ServerName) -> Result<FarEnds, Error> {
        let path = self.requests(server).path(LISTENERS);
        Ok(FarEnds { seen: modified(&path)?, is_listening: is_heard(&path)? })
    }

    pub fn answer_request(&self, servers: &[ServerName], id: &RequestId) -> Result<Option<Answer>, Error> {
        servers.iter().find_map(|server| self.requests(server).answer(id).transpose()).transpose()
    }
}

impl Requests {
    pub(super) fn listen(&self) -> Result<WaitingFarEnd, Error> {
        let fifo = self.with_folders(|| Fifo::open_or_make(&self.path(LISTENERS)))?;
        let (since, asked_at) = (Instant::now(), now_ms());
        let far_end = WaitingFarEnd { requests: self.clone(), fifo, since, asked_at, call: Call::None };
        far_end.note();
        Ok(far_end)
    }

    /// Tells a far end of a request that waits, if one does. Where that cannot be seen, its client sees to it a moment later.
    fn wake_far_end_if_any_waits(&self) {
        match names(&self.path(WAITING)) {
            Ok(names) => {
                if let Some(id) = names.iter().find_map(|name| RequestId::parse(name)) {
                    self.wake_far_end(&id);
                }
            }
            Err(error) => error.log(),
        }
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
                    Taking::Taken(sender) => return Ok(Some(Answer { sender, paths })),
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
