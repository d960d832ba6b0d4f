//! The far ends of a server of PTTH: how they wait for requests and claim them.

use super::script;
use crate::hex;
use crate::ptth::ServerName;
use crate::store::error::Error;
use crate::store::redis::ends::End;
use crate::store::redis::process::Redis;
use crate::store::redis::script::Script;
use crate::store::requests::{Claimed, FarEnds, RequestId};
use crate::wake::Ready;
use std::time::{Duration, SystemTime};

static CLAIM: Script = script!("claim.lua");
static LEAVE: Script = script!("leave.lua");
static FAR_ENDS: Script = script!("far_ends.lua");

impl Redis {
    pub async fn listen_for_requests(&self, server: &ServerName) -> Result<WaitingFarEnd, Error> {
        let end = End::begin(self.process.requests(server), hex::random(8)?).await?;
        let mut far_end = WaitingFarEnd { end, since: String::new(), has_left: false };
        far_end.claim(0).await?;
        Ok(far_end)
    }

    pub async fn far_ends(&self, server: &ServerName) -> Result<FarEnds, Error> {
        let mut answer = self.process.requests(server).run(&FAR_ENDS, &[]).await?;
        let is_listening = answer.number()? > 0;
        // By this machine's clock, which may be another's.
        let seen =
            answer.text()?.parse().ok().and_then(|ago| SystemTime::now().checked_sub(Duration::from_millis(ago)));
        Ok(FarEnds { seen, is_listening })
    }
}

/// A far end that waits for requests. When it is dropped, it has left.
pub struct WaitingFarEnd {
    end: End,
    /// When it began, by Redis's clock.
    since: String,
    has_left: bool,
}

impl WaitingFarEnd {
    /// What is ready when it is called.
    pub fn awaited(&self) -> Ready<'_> {
        self.end.awaited()
    }

    /// Says that it is there, and claims the requests that have waited longest, up to `most`.
    pub async fn claim(&mut self, most: usize) -> Result<Vec<Claimed>, Error> {
        self.end.has_reason().await;
        let most = most.to_string();
        let arguments = [self.end.name.as_bytes(), self.since.as_bytes(), most.as_bytes()];
        let mut answer = self.end.way.run(&CLAIM, &arguments).await?;
        self.since = answer.text()?;
        let (mut requests, mut claimed) = (answer.values()?, Vec::new());
        while requests.left() > 0 {
            let (id, request) = (requests.text()?, requests.bytes()?);
            claimed.extend(RequestId::parse(&id).map(|id| Claimed { id, request }));
        }
        Ok(claimed)
    }

    /// Leaves, and has another far end called for what still waits.
    pub async fn leave(mut self) {
        self.has_left = true;
        // Where that cannot be said, it is known to be gone within seconds.
        let _ = self.end.way.run(&LEAVE, &[self.end.name.as_bytes()]).await;
    }
}

impl Drop for WaitingFarEnd {
    fn drop(&mut self) {
        if !self.has_left {
            self.end.way.run_last(&LEAVE, vec![self.end.name.clone().into_bytes()]);
        }
    }
}
