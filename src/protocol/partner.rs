//! How a request waits for its partner, another process's request, the same for cama and PTTH.

use crate::gateway::{Client, Woken};
use crate::refusal::Refusal;
use crate::wake::Wake;
use std::time::{Duration, Instant};

/// The time that a client waits for its partner.
pub(super) struct Wait {
    until: Instant,
    is_extended: bool,
}

impl Wait {
    /// It begins now.
    pub fn begin(time: Duration) -> Self {
        Self { until: Instant::now() + time, is_extended: false }
    }

    /// Waits for one of `wakes`, but no longer than `limit`. False when the time is over.
    ///
    /// # Errors
    /// When the client has gone, or this process is asked to stop.
    pub async fn sleep(
        &self,
        client: &mut dyn Client,
        wakes: &mut [&mut dyn Wake],
        limit: Duration,
    ) -> Result<bool, Refusal> {
        let left = self.until.saturating_duration_since(Instant::now());
        match client.wait(wakes, false, left.min(limit)).await {
            Woken::HungUp => Err(Refusal::hung_up()),
            Woken::Stopped => Err(Refusal::stopping()),
            Woken::Tick => Ok(!left.is_zero()),
            Woken::Knock | Woken::Writable => Ok(true),
        }
    }

    /// Gives a partner that has come at the last moment a second for its first word, which is on its way. False where it has
    /// been given already.
    pub fn extend(&mut self) -> bool {
        self.until = Instant::now() + Duration::from_secs(1);
        !std::mem::replace(&mut self.is_extended, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::{Simulated, run_blocking};

    #[test]
    fn a_partner_that_comes_at_the_last_moment_has_time_once_and_nobody_waits_for_a_client_that_has_gone() {
        let mut client = Simulated { is_there: true };
        let mut wait = Wait::begin(Duration::ZERO);
        assert!(!run_blocking(wait.sleep(&mut client, &mut [], Duration::MAX)).unwrap(), "the time is over");
        assert!(wait.extend());
        assert!(run_blocking(wait.sleep(&mut client, &mut [], Duration::ZERO)).unwrap(), "there is a second");
        assert!(!wait.extend());
        client.is_there = false;
        run_blocking(wait.sleep(&mut client, &mut [], Duration::MAX)).unwrap_err();
    }
}
