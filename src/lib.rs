//! A UHST relay that needs nothing but a `cgi-bin`.
//!
//! The map of the house, from the outside in:
//!
//! - [`config`]: every setting, its default, its environment variable, in one struct.
//! - [`gateway`]: how a request comes in and an answer goes out. [`gateway::cgi`] is the door of a web server
//!   (RFC 3875); what it hands on ([`gateway::Request`]) and takes back ([`gateway::Reply`]) is the same for every door.
//! - [`protocol`]: what is said. The router, and a file for each protocol, its routes first.
//! - [`store`]: what is kept. The only code that names a path under the data folder: sessions and their locks, queues,
//!   presence, wake-ups and the sweep.
//! - [`token`]: who is speaking. JSON Web Tokens, signed with HS256.
//! - [`sse`]: how an event stream is fed, kept alive and ended, whatever the protocol.
//! - [`health`]: whether everything the relay needs works, and what to do where it does not.
//! - [`cli`]: the command line, a thin shell over the rest.
//!
//! Every handler is blocking: under CGI it has a process to itself. Every coordination primitive is a kernel object
//! (a lock, a FIFO) that cleans up after a killed process, so no crash leaves a lie behind.

/// Writes a line to stderr, which web servers keep as their error log. A log that cannot be written (its disk is full, its
/// reader has gone) is no reason to fail, as `eprintln!` would.
macro_rules! say {
    ($($words:tt)*) => {{
        use std::io::Write as _;
        // One write a line, so that the lines of several threads or processes do not mix.
        let _ = std::io::stderr().write_all(format!("{}\n", format_args!($($words)*)).as_bytes());
    }};
}

pub mod cli;
pub mod config;
pub mod gateway;
pub mod health;
pub mod protocol;
pub mod sse;
pub mod store;
pub mod token;
