//! The home of the store in a Redis, or Valkey, that several machines share.
//!
//! Each intention is one [script](script): Redis runs it whole or not at all, one after the other. It touches the keys of one
//! slot only, so that a cluster can have them.

mod connection;
mod reply;
mod script;
mod servers;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
