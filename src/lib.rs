//! A UHST relay that needs nothing but a `cgi-bin`.
//!
//! The map of the house, from the outside in:
//!
//! - [`config`]: every setting, its default, its environment variable, in one struct.
//! - [`gateway`]: how a request comes in and an answer goes out. [`gateway::cgi`] is the door of a web server
//!   (RFC 3875), `gateway::serve` the server of `serve`, hyper on tokio; what they hand on ([`gateway::Request`]) and take back
//!   ([`gateway::Reply`]) is the same for every door.
//! - [`protocol`]: what is said. The router, and a file for each protocol, its routes first: [`protocol::uhst`], [`protocol::bus`],
//!   [`protocol::cama`], [`protocol::ptth`], [`protocol::ws`].
//! - [`refusal`]: what a request that is refused is told, whatever the protocol.
//! - [`store`]: what is kept. The only code that names a path under the data folder: sessions and buses, their locks, queues,
//!   presence, wake-ups, pipes, requests that wait for servers, and the sweep.
//! - [`token`]: who is speaking. JSON Web Tokens, signed with HS256.
//! - [`sse`]: how an event stream is fed, kept alive and ended, whatever the protocol.
//! - [`wake`]: what a wait may end for.
//! - [`transfer`]: how a body gets from one process to another through a pipe, whatever the protocol.
//! - [`ptth`]: what the two ends of PTTH (HTTP backwards) say to each other, names and keys.
//! - `far` (only with `serve`): the far end of PTTH, a small HTTP server that needs no open port.
//! - [`ws`]: what an application does about a WebSocket: its event handlers, in Rust or in any language.
//! - [`health`]: whether everything the relay needs works, and what to do where it does not.
//! - [`syntax`], [`json`], [`html`], [`hex`], [`clock`]: small pieces that belong to nobody.
//! - `log`: lines on stderr, for which nobody waits.
//! - `workers`: which threads of `serve` may wait for the disk, so that the rest does not.
//! - [`cli`]: the command line, a thin shell over the rest.
//!
//! Whatever waits is an `async fn`, and each of its waits is one call that names all it waits for ([`gateway::Client`], [`wake`]).
//! Under `serve` it is a task among many; under CGI it has a process to itself, and that call sleeps in `poll(2)`. Every
//! coordination primitive is a kernel object (a lock, a FIFO) that cleans up after a killed process, so no crash leaves a lie
//! behind.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::BorrowedFd;

/// Writes a line to stderr, which web servers keep as their error log. A log that cannot be written (its disk is full, its
/// reader has gone, or sleeps) is no reason to fail or to wait, as `eprintln!` would.
macro_rules! say {
    ($($words:tt)*) => { $crate::log::add(&format!("{}\n", format_args!($($words)*))) };
}

/// What a file descriptor is ready for now, of what is wanted; and what is told without being asked for.
fn look(fd: BorrowedFd<'_>, wanted: PollFlags) -> PollFlags {
    let mut fds = [PollFd::from_borrowed_fd(fd, wanted)];
    let _ = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
    fds[0].revents()
}

/// The version, and in parentheses the commit where that is known.
pub const VERSION: &str = env!("UHST_RELAY_VERSION");

pub mod cli;
pub mod clock;
pub mod config;
#[cfg(feature = "serve")]
pub mod far;
pub mod gateway;
pub mod health;
pub mod hex;
pub mod html;
pub mod json;
mod log;
pub mod protocol;
pub mod ptth;
pub mod refusal;
pub mod sse;
pub mod store;
pub mod syntax;
pub mod token;
pub mod transfer;
pub mod wake;
mod workers;
pub mod ws;
