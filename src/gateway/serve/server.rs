//! What all connections share.

use super::order::Order;
use super::tls::Tls;
use crate::config::Settings;
use crate::gateway::application::Application;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What all connections share.
pub(super) struct Server {
    pub application: &'static dyn Application,
    pub settings: &'static Settings,
    pub quiet: bool,
    pub tls: Option<Tls>,
    pub order: Order,
    pub connections: AtomicUsize,
    /// Connections above the limit, which are closed as soon as they have taken the refusal.
    pub refused: AtomicUsize,
    /// Why connections are refused, and why they cannot be accepted.
    pub refusals: Seldom,
    pub failures: Seldom,
}

/// Tells the log no more often than once a minute.
#[derive(Default)]
pub(super) struct Seldom(Mutex<(Option<Instant>, u64)>);

impl Seldom {
    /// Tells it, and how often it was not told since the last time.
    pub fn say(&self, what: &str) {
        let (last, untold) = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_some_and(|last| last.elapsed() < Duration::from_secs(60)) {
            *untold += 1;
            return;
        }
        *last = Some(Instant::now());
        say!("uhst-relay: {what}; {} more since the last line of this kind", std::mem::take(untold));
    }
}

/// Counts itself while it lives.
pub(super) struct Counted(&'static AtomicUsize);

impl Counted {
    pub fn new(counter: &'static AtomicUsize) -> Self {
        counter.fetch_add(1, Ordering::AcqRel);
        Self(counter)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}
