//! The home of the store in a Redis, or Valkey, that several machines share.
//!
//! ```text
//! uhst:secret                what tokens are signed with, unless JWT_SECRET is set
//! uhst:swept                 is there while somebody sweeps, or has just done so
//! uhst:buses                 the buses, by when they go (a sorted set)
//! uhst:bus:{HASH}            a broadcast bus: its record. HASH is of its name
//! uhst:bus:{HASH}:log        its messages (a stream), and the channel on which each is told to those who wait
//! uhst:bus:{HASH}:users      its registered users
//! uhst:bus:{HASH}:nodes      the nodes on which readers wait, by when these are gone unless they say more (a sorted set)
//! uhst:bus:{HASH}:waiting    how many wait on each
//! uhst:hosts                 the hosts, by when their sessions go
//! uhst:host:{HASH}           a session: its record. HASH is of the host's id
//! uhst:host:{HASH}:members   the registrations of the host and the clients
//! uhst:host:{HASH}:cursors   how far each was given its log
//! uhst:host:{HASH}:present   those that listen, by when they are gone unless they say more
//! uhst:host:{HASH}:to-host, uhst:host:{HASH}:to-clients
//!                            what is said to the host, and to the clients (streams), and the channels on which it is told:
//!                            one for all of it, and one for what is for one member, or for all
//! uhst:pipes                 the sessions of pipes, by when they go
//! uhst:pipe:{HASH}           a session of pipes: its record. HASH is of its id
//! uhst:pipe:{HASH}:to-host, uhst:pipe:{HASH}:to-guest
//!                            those that wait to send there, by when they are gone unless they say more
//! uhst:ptth                  the registered servers of PTTH
//! uhst:ptth:{HASH}:waiting, uhst:ptth:{HASH}:clients, uhst:ptth:{HASH}:far-ends, uhst:ptth:{HASH}:seen
//!                            the requests of a server that wait, who waits for an answer, who waits for requests, and when one
//!                            of these was seen last. HASH is of the server's name
//! uhst:pipe:{HASH}:NAME, uhst:ptth:{HASH}:NAME
//!                            a stream of bytes: its record, and the channel on which one end is called. NAME is random
//! uhst:pipe:{HASH}:NAME:bytes, uhst:ptth:{HASH}:NAME:bytes
//!                            the bytes that are under way (a stream)
//! ```
//!
//! Each intention is one [script](script): Redis runs it whole or not at all, one after the other. It touches the keys of one
//! slot only (those with the same `{HASH}`), so that a cluster can have them. What needs another slot is another step: before a
//! bus is made, it takes its place among all buses, which it loses again if it is not made then.
//!
//! Everything has a time to live: a Redis that the relay has left empties itself. The only clock is Redis's own. The number of a
//! record is made of it, and larger than all before: so numbers never come again, also where records were lost.
//!
//! Whoever listens has it said every 2.25 s at least, in each topic in which it does, that it is there, because a script could not
//! see a process's own key, which is in another slot. A killed one is noticed within 5 s; one that was alone in its session, within
//! 5 s after somebody asks for it: nobody else could say that Redis had been there all the time.

mod bus;
mod connection;
mod ear;
mod ends;
mod lock;
mod pipes;
mod process;
mod reply;
mod requests;
mod script;
mod secret;
mod servers;
mod session;
mod subscription;
mod sweep;
#[cfg(test)]
pub(super) mod testing;
#[cfg(test)]
mod tests;
#[cfg(feature = "tls")]
mod tls;
mod topic;

pub use bus::reader::BusReader;
pub use ends::receiver::Receiver;
pub use ends::sender::Sender;
pub use pipes::{WaitingReceiver, WaitingSender};
pub use process::Redis;
pub use requests::PendingRequest;
pub use requests::far_ends::WaitingFarEnd;
pub use session::listener::Listener;
