//! What all connections share.

use super::tls::Tls;
use crate::config::Settings;
use crate::gateway::application::Application;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What all connections share.
pub(super) struct Server {
    pub application: &'static dyn Application,
    pub settings: &'static Settings,
    pub quiet: bool,
    pub tls: Option<Tls>,
    pub connections: AtomicUsize,
    /// Connections above the limit, which are closed as soon as they have taken the refusal.
    pub refused: AtomicUsize,
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
