//! Those who sleep in this process until others knock, where it is [one node](super::node): each has a number there.

use super::link::Linked;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
#[cfg(feature = "serve")]
use std::{
    collections::btree_map::Entry,
    sync::atomic::{AtomicU32, Ordering},
};

/// All of them, by number.
#[derive(Default)]
pub(super) struct Sleepers(Mutex<BTreeMap<u32, Linked>>);

impl Sleepers {
    fn all(&self) -> MutexGuard<'_, BTreeMap<u32, Linked>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The one of this number; `None` where it has gone.
    pub fn get(&self, number: u32) -> Option<Linked> {
        self.all().get(&number).cloned()
    }

    /// Calls the one of this number, or all of them.
    pub fn call(&self, number: Option<u32>) {
        match number {
            Some(number) => self.get(number).iter().for_each(|link| link.call()),
            None => self.all().values().for_each(|link| link.call()),
        }
    }
}

/// One of them. When it is dropped, it has gone.
pub(super) struct Near {
    /// The node's id.
    pub node: String,
    /// Its number there.
    pub number: u32,
    /// What it sleeps on.
    pub link: Linked,
    sleepers: Arc<Sleepers>,
}

impl Near {
    /// A new one of this node.
    #[cfg(feature = "serve")]
    pub fn of((node, sleepers): (String, Arc<Sleepers>)) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let link = Linked::new();
        // After four thousand millions, one may still be there that has the same.
        let number = loop {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            if let Entry::Vacant(place) = sleepers.all().entry(number) {
                place.insert(link.clone());
                break number;
            }
        };
        Self { node, number, link, sleepers }
    }
}

impl Drop for Near {
    fn drop(&mut self) {
        self.sleepers.all().remove(&self.number);
        self.link.leave();
    }
}
