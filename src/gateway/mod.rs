//! How a request comes in and an answer goes out, the same for every door.
//!
//! A handler gets a [`Request`] with a readable body and returns a [`Reply`]: either a whole one, or a head with a
//! function that writes to the [`Outgoing`] stream for as long as it likes.

mod application;
mod body;
pub mod cgi;
mod client;
mod forwarded;
#[cfg(feature = "serve")]
pub mod http;
mod outgoing;
mod reply;
mod request;
mod socket;
mod splice;
mod stop;

pub(crate) use crate::syntax::digits;
pub use application::Application;
pub use body::{Body, BodyError, BodySource, TimedReader};
pub use client::{Client, Woken, wait_for};
pub use outgoing::{Framing, Outgoing};
pub use reply::{Content, Incoming, Producer, Reply, Status, Talker};
pub use request::Request;
pub use stop::{catch_signals, stop_signal};
