//! What the sweep does about a bus.

use super::super::folder::Folder;
use super::super::{Error, Files, UNUSED_TIME};
use super::{Bus, BusRecord, clear};
use crate::clock::is_recent;
use crate::config::Settings;
use std::time::Duration;

/// A bus without a record may be one that is being made.
const MAKING_TIME: Duration = Duration::from_secs(10);

impl Files {
    /// Removes what is dead on a bus, and the bus itself when nobody has used it for its lifetime.
    pub(in crate::store::files) fn sweep_bus(
        &self,
        folder: Folder<BusRecord>,
        settings: &Settings,
    ) -> Result<(), Error> {
        Bus::of(self, folder, settings)?.sweep()
    }

    /// Removes a bus if nobody has used it yet. Whether it did.
    pub(in crate::store::files) fn remove_unused_bus(&self, folder: Folder<BusRecord>) -> Result<bool, Error> {
        let was_posted_to = folder.read()?.is_some_and(|record| record.was_posted_to);
        if was_posted_to || self.waiting_at(folder.path())? > 0 {
            return Ok(false);
        }
        clear(folder.path())?;
        folder.remove()?;
        Ok(true)
    }
}

impl Bus<'_> {
    /// Whether it holds what nobody could make anew: a registered user's key, or that only those may post.
    fn is_special(&self) -> bool {
        self.record.signed_only || self.record.registered > 0
    }

    fn sweep(self) -> Result<(), Error> {
        // What killed readers have left goes with that.
        let is_unused = self.waiting()? == 0 && !self.record.was_posted_to;
        let lifetime = match (self.is_made(), is_unused && !self.is_special()) {
            (false, _) => MAKING_TIME,
            (true, true) => self.settings.bus_lifetime.min(UNUSED_TIME),
            (true, false) => self.settings.bus_lifetime,
        };
        // Whoever is away may come for the messages as long as there are any.
        let is_kept = is_recent(self.folder.touched()?, lifetime) || (self.is_made() && self.topic().has_alive()?);
        if !is_kept {
            return self.remove();
        }
        self.forget_users()?;
        self.topic().trim(0)
    }
}
