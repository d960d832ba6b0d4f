//! How a request comes in and an answer goes out, the same for every door.
//!
//! A handler gets a [`Request`] with a readable body and returns a [`Reply`]: either a whole one, or a head with a
//! function that writes to the [`Outgoing`] stream for as long as it likes.

mod application;
mod body;
pub mod cgi;
mod client;
mod forwarded;
mod reply;
mod request;
#[cfg(feature = "serve")]
pub mod serve;
mod status;
mod stop;

pub(crate) use crate::syntax::digits;
pub use application::{Answering, Application};
pub use body::{Body, BodyError, Incoming};
#[cfg(test)]
pub(crate) use client::Simulated;
pub use client::{Client, Outgoing, Switching, Woken, run_blocking};
pub use reply::{Content, Producer, Producing, Reply, Talker};
pub use request::Request;
pub use status::Status;
pub use stop::{catch_signals, stop_signal};
