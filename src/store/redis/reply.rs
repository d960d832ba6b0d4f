//! What Redis is asked, and what it answers (RESP2).

use crate::config::redis::Server;
use crate::store::remote::{Reason, Remote};
use crate::syntax::digits;
use redis_protocol::resp2::decode::decode;
pub use redis_protocol::resp2::types::OwnedFrame as Reply;

/// A command as it is sent.
pub fn command<A: AsRef<[u8]>>(arguments: impl IntoIterator<Item = A, IntoIter: ExactSizeIterator>) -> Vec<u8> {
    let arguments = arguments.into_iter();
    let mut bytes = format!("*{}\r\n", arguments.len()).into_bytes();
    for argument in arguments {
        let argument = argument.as_ref();
        bytes.extend_from_slice(format!("${}\r\n", argument.len()).as_bytes());
        bytes.extend_from_slice(argument);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

/// A reply is not longer than this, nor are lines and lists in it longer, or deeper: whatever else is at the other end shall not
/// take all memory, or the stack.
const LONGEST: usize = 128 * 1024 * 1024;
const LONGEST_LINE: usize = 64 * 1024;
const DEEPEST: usize = 8;

/// The reply at the beginning of `bytes`, and its length; `None` where it is not whole yet.
///
/// # Errors
/// When it is none, or too long.
pub fn read(bytes: &[u8]) -> Result<Option<(Reply, usize)>, Remote> {
    match length(bytes)? {
        Some(length) => decode(&bytes[..length]).map_err(|error| no_answer(error.details())),
        None if bytes.len() > LONGEST => Err(no_answer("it has no end")),
        None => Ok(None),
    }
}

/// How long the reply at the beginning of `bytes` is; `None` where it is not whole yet.
fn length(bytes: &[u8]) -> Result<Option<usize>, Remote> {
    // Of each list that has begun, how many are left.
    let (mut left, mut at) = (vec![1_usize], 0);
    while let Some(count) = left.last_mut() {
        if *count == 0 {
            left.pop();
            continue;
        }
        *count -= 1;
        let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) else { return Ok(None) };
        if !b"+-:$*".contains(&rest[0]) {
            return Err(no_answer("it begins like none"));
        }
        let Some(end) = rest.windows(2).take(LONGEST_LINE).position(|two| two == b"\r\n") else {
            return if rest.len() > LONGEST_LINE { Err(no_answer("a line has no end")) } else { Ok(None) };
        };
        at += end + 2;
        let is_list = rest[0] == b'*';
        // What is not there has the length -1.
        if (is_list || rest[0] == b'$') && rest[1..end] != *b"-1" {
            let size = digits(&rest[1..end]).and_then(|size| usize::try_from(size).ok());
            let size = size.filter(|size| *size <= LONGEST).ok_or_else(|| no_answer("its length is none"))?;
            if !is_list {
                at += size + 2;
            } else if left.len() > DEEPEST {
                return Err(no_answer("it is too deep"));
            } else {
                left.push(size);
            }
        }
    }
    Ok((at <= bytes.len()).then_some(at))
}

fn no_answer(why: &str) -> Remote {
    Remote::new(Reason::Failed, format!("no answer of a Redis: {why}"))
}

/// A reply that is a text.
pub fn text(reply: &Reply) -> Option<&str> {
    match reply {
        Reply::BulkString(text) | Reply::SimpleString(text) => std::str::from_utf8(text).ok(),
        _ => None,
    }
}

/// What an error that a server answers means.
#[derive(Debug, PartialEq, Eq)]
pub enum Meaning {
    /// Another server has what this slot is for, from now on.
    Moved(u16, Server),
    /// Another server has what was asked for this time.
    Ask(Server),
    /// It does not know the script.
    NoScript,
    /// It has not done anything, and will be able to soon, or another server is.
    Later(Remote),
    /// It has not done it.
    Error(Remote),
}

impl Meaning {
    /// Reads the error that the server `from` has answered.
    pub fn of(error: &str, from: &Server) -> Self {
        let mut words = error.split(' ');
        let code = words.next().unwrap_or_default();
        let reason = match code {
            "MOVED" | "ASK" => {
                let slot = words.next().and_then(|slot| slot.parse().ok());
                match (slot, words.next().and_then(|place| place_of(place, from))) {
                    (Some(slot), Some(server)) if code == "MOVED" => return Self::Moved(slot, server),
                    (Some(_), Some(server)) => return Self::Ask(server),
                    _ => Reason::Failed,
                }
            }
            "NOSCRIPT" => return Self::NoScript,
            "TRYAGAIN" | "LOADING" | "CLUSTERDOWN" | "MASTERDOWN" | "READONLY" => {
                return Self::Later(Remote::new(Reason::NotReady, without_arguments(error)));
            }
            "BUSY" | "MISCONF" => Reason::NotReady,
            "NOREPLICAS" => Reason::TooFewReplicas,
            "NOAUTH" | "WRONGPASS" | "NOPERM" => Reason::Login,
            "OOM" => Reason::Full,
            _ => Reason::Failed,
        };
        Self::Error(Remote::new(reason, without_arguments(error)))
    }
}

/// A server that another names; without a host it is on the same one.
fn place_of(place: &str, from: &Server) -> Option<Server> {
    let (host, port) = place.rsplit_once(':')?;
    match (host, from) {
        ("" | "?", Server::Tcp(host, _)) => Some(Server::Tcp(host.clone(), port.parse().ok()?)),
        _ if host.contains(':') && !host.starts_with('[') => Server::parse(&format!("[{host}]:{port}")),
        _ => Server::parse(place),
    }
}

/// A server's error for the log: without what it has been told, which may be a password or a message.
fn without_arguments(error: &str) -> String {
    let end = error.find(", with args").unwrap_or(error.len());
    error[..end].chars().filter(|c| !c.is_control()).take(200).collect()
}

/// A reply that a script has made of several values.
pub struct Values(std::vec::IntoIter<Reply>);

impl Values {
    /// # Errors
    /// When it is not several.
    pub fn of(reply: Reply) -> Result<Self, Remote> {
        match reply {
            Reply::Array(values) => Ok(Self(values.into_iter())),
            _ => Err(strange()),
        }
    }

    /// The next, a whole number from 0 on.
    ///
    /// # Errors
    /// When it is none.
    pub fn number(&mut self) -> Result<u64, Remote> {
        match self.0.next() {
            Some(Reply::Integer(number)) => u64::try_from(number).map_err(|_| strange()),
            Some(other) => text(&other).and_then(|text| text.parse().ok()).ok_or_else(strange),
            None => Err(strange()),
        }
    }

    /// The next, a text.
    ///
    /// # Errors
    /// When it is none.
    pub fn text(&mut self) -> Result<String, Remote> {
        self.0.next().as_ref().and_then(text).map(str::to_owned).ok_or_else(strange)
    }

    /// The next, bytes.
    ///
    /// # Errors
    /// When it is none.
    pub fn bytes(&mut self) -> Result<Vec<u8>, Remote> {
        match self.0.next() {
            Some(Reply::BulkString(bytes)) => Ok(bytes),
            _ => Err(strange()),
        }
    }

    /// The next, several values again.
    ///
    /// # Errors
    /// When it is not.
    pub fn values(&mut self) -> Result<Self, Remote> {
        self.0.next().ok_or_else(strange).and_then(Self::of)
    }

    /// How many are left.
    pub fn left(&self) -> usize {
        self.0.len()
    }
}

fn strange() -> Remote {
    Remote::new(Reason::Failed, "an answer that the relay's script cannot give")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(text: &str) -> Server {
        Server::parse(text).unwrap()
    }

    #[test]
    fn a_command_is_its_arguments_whatever_is_in_them() {
        assert_eq!(command(["SET", "k", "a\r\n$1"]), b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$5\r\na\r\n$1\r\n");
    }

    #[test]
    fn a_reply_is_read_once_it_is_whole() {
        let bytes = b"*3\r\n:7\r\n$2\r\n\r\n\r\n$-1\r\n+next\r\n";
        let end = bytes.len() - 7;
        for cut in 0..end {
            assert_eq!(read(&bytes[..cut]), Ok(None), "{cut}");
        }
        let expected = vec![Reply::Integer(7), Reply::BulkString(b"\r\n".to_vec()), Reply::Null];
        assert_eq!(read(bytes), Ok(Some((Reply::Array(expected), end))));
        assert!(read(b"HTTP/1.1 400 Bad Request\r\n").is_err());
    }

    #[test]
    fn no_reply_takes_the_stack_or_the_memory() {
        assert_eq!(read(b"*2\r\n*2\r\n$-1\r\n*-1\r\n*0\r\n").unwrap().unwrap().1, 22);
        for bytes in [
            &b"*1\r\n".repeat(100_000)[..],
            &b"*2\r\n:1\r\n".repeat(100_000),
            b"$4611686018427387904\r\n",
            b"*9223372036854775807\r\n:1\r\n",
            b"*99999999999999999999\r\n",
            b"$-2\r\n",
            b"$\r\n\r\n",
            &b"+".repeat(LONGEST_LINE + 1),
            &[b"*2\r\n$134217727\r\n", &vec![0; LONGEST][..]].concat(),
        ] {
            assert!(read(bytes).is_err(), "{}", String::from_utf8_lossy(&bytes[..20.min(bytes.len())]));
        }
    }

    #[test]
    fn a_redirection_names_a_server() {
        let from = server("10.0.0.1:1");
        for (error, expected) in [
            ("MOVED 3999 10.0.0.2:6381", Meaning::Moved(3999, server("10.0.0.2:6381"))),
            ("MOVED 3999 :6381", Meaning::Moved(3999, server("10.0.0.1:6381"))),
            ("MOVED 3999 ::1:6381", Meaning::Moved(3999, server("[::1]:6381"))),
            ("ASK 1 b.example:2", Meaning::Ask(server("b.example:2"))),
            ("NOSCRIPT No matching script. Please use EVAL.", Meaning::NoScript),
        ] {
            assert_eq!(Meaning::of(error, &from), expected);
        }
        assert!(matches!(Meaning::of("MOVED x", &from), Meaning::Error(_)));
    }

    #[test]
    fn what_a_server_was_told_does_not_come_back_in_its_errors() {
        let Meaning::Error(remote) = Meaning::of(
            "ERR unknown command 'HELLO', with args beginning with: '2' 'AUTH' 'me' 'hidden'",
            &server("a"),
        ) else {
            panic!("it is an error")
        };
        assert_eq!((remote.reason, remote.cause.as_str()), (Reason::Failed, "ERR unknown command 'HELLO'"));
    }
}
