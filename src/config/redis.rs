//! Where a Redis is, and who the relay is there: `RELAY_STORE`.

use super::given::{SettingError, unreadable};
use crate::syntax::digits;
use std::fmt;
use std::path::{Path, PathBuf};

const WANTED: &str = "it must be redis://[user:password@]host[:port][,host…][/db], or redis+unix:///path, with what is special \
                      in a name or a password percent-encoded";

#[cfg(not(feature = "tls"))]
const NO_TLS: &str = "this program has no TLS: take `uhst-relay serve`, which has; or redis:// and a tunnel on this machine, such \
                      as stunnel";

const PORT: u16 = 6379;

/// What is known only to those who may know it: it is never shown.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Password(pub String);

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// Where a server listens. [`fmt::Display`] is for the log.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Server {
    /// At a name or an address (that of IPv6 without brackets), and a port.
    Tcp(String, u16),
    /// At a UNIX socket.
    Unix(PathBuf),
}

impl Server {
    /// What is written `host:port`, `[v6]:port` or `host`; `None` for anything else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (host, rest) = match text.strip_prefix('[') {
            Some(v6) => v6.split_once(']')?,
            None => text.split_at(text.find(':').unwrap_or(text.len())),
        };
        let port = match rest.strip_prefix(':') {
            Some(port) => digits(port.as_bytes()).and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0)?,
            None if rest.is_empty() => PORT,
            None => return None,
        };
        let is_host = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:%".contains(&byte);
        (!host.is_empty() && host.bytes().all(is_host)).then(|| Self::Tcp(host.to_owned(), port))
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp(host, port) => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// Whose signature is trusted below a certificate.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trust {
    /// Those of the system.
    System,
    /// Those in this file, in PEM.
    File(PathBuf),
}

/// A Redis or Valkey: one server, one of several that are each other's replicas or a cluster's nodes, or what their sentinels
/// know.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// Where to ask; at least one.
    pub servers: Vec<Server>,
    /// The name that goes with the password, if not `default`.
    pub user: Option<String>,
    /// The password, where one is needed.
    pub password: Option<Password>,
    /// The number of the database; a cluster has 0 alone.
    pub database: u32,
    /// Whom to trust, where TLS is spoken; `RELAY_REDIS_CA` may name a file.
    pub tls: Option<Trust>,
    /// `RELAY_REDIS_REPLICAS`: how many replicas must have what is promised, besides the server itself.
    pub replicas: u64,
    /// `RELAY_MAX_DATA`: how many bytes of memory it may use; `None` for as many as it has.
    pub max_data: Option<u64>,
}

/// Where it is, without who the relay is there.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let servers: Vec<_> = self.servers.iter().map(Server::to_string).collect();
        f.write_str(&servers.join(", "))
    }
}

impl Address {
    /// Reads a URL.
    ///
    /// # Errors
    /// When it is none. What stands in it is not shown.
    pub fn parse(url: &str) -> Result<Self, SettingError> {
        #[cfg(not(feature = "tls"))]
        if url.starts_with("rediss://") {
            return Err(unreadable("RELAY_STORE", NO_TLS));
        }
        Self::of_url(url).ok_or_else(|| unreadable("RELAY_STORE", WANTED))
    }

    fn of_url(url: &str) -> Option<Self> {
        let (scheme, rest) = url.split_once("://")?;
        // A password may have an @ in it that should have been encoded.
        let (login, place) = rest.rsplit_once('@').map_or((None, rest), |(login, place)| (Some(login), place));
        let (user, password) = match login {
            None => (None, None),
            Some(login) => {
                let (user, password) = login.split_once(':')?;
                (Some(decode(user)?).filter(|user| !user.is_empty()), Some(Password(decode(password)?)))
            }
        };
        let (servers, database) = match scheme {
            "redis" | "rediss" => {
                let (servers, database) = place.split_once('/').unwrap_or((place, ""));
                (servers.split(',').map(|server| Server::parse(server.trim())).collect::<Option<_>>()?, database)
            }
            "redis+unix" => {
                let (path, database) = place.split_once("?db=").unwrap_or((place, ""));
                let path = decode(path)?;
                (vec![Server::Unix(Path::new(&path).is_absolute().then_some(path)?.into())], database)
            }
            _ => return None,
        };
        let database = match database {
            "" => 0,
            number => digits(number.as_bytes()).and_then(|number| u32::try_from(number).ok())?,
        };
        let tls = (scheme == "rediss").then_some(Trust::System);
        Some(Self { servers, user, password, database, tls, replicas: 0, max_data: None })
    }
}

fn decode(text: &str) -> Option<String> {
    urlencoding::decode(text).ok().map(std::borrow::Cow::into_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(host: &str, port: u16) -> Server {
        Server::Tcp(host.to_owned(), port)
    }

    #[test]
    fn a_url_names_servers_a_login_and_a_database() {
        let address = Address::parse("redis://me:p%40ss%3A@[::1]:7000,b.example,10.0.0.1:26379/3").unwrap();
        assert_eq!(address.servers, [tcp("::1", 7000), tcp("b.example", 6379), tcp("10.0.0.1", 26379)]);
        assert_eq!((address.user.as_deref(), address.database), (Some("me"), 3));
        assert_eq!(address.password, Some(Password("p@ss:".to_owned())));
        let address = Address::parse("redis://:a@b@localhost").unwrap();
        assert_eq!((address.user, address.password), (None, Some(Password("a@b".to_owned()))));
        assert_eq!((address.servers, address.database), (vec![tcp("localhost", 6379)], 0));
        let address = Address::parse("redis+unix://:pw@/run/my%20redis.sock?db=1").unwrap();
        assert_eq!(address.servers, [Server::Unix("/run/my redis.sock".into())]);
        assert_eq!((address.password, address.database), (Some(Password("pw".to_owned())), 1));
    }

    #[test]
    fn what_is_no_url_is_an_error_that_does_not_show_it() {
        for url in [
            "hidden",
            "redis:",
            "redis://",
            "redis://:hidden@",
            "redis://hidden@host",
            "redis://host:0",
            "redis://host:65536",
            "redis://host:hidden",
            "redis://::1",
            "redis://[::1",
            "redis://a,,b",
            "redis://host/hidden",
            "redis://ho st",
            "redis://host/1/2",
            "redis+unix://hidden",
            "redis+unix://hidden/path",
            "rediss+unix:///hidden",
            "http://host",
        ] {
            let error = Address::parse(url).expect_err(url).to_string();
            assert!(error.contains("RELAY_STORE") && !error.contains("hidden"), "{error}");
        }
    }

    #[test]
    fn a_password_is_not_shown() {
        let address = Address::parse("redis://me:hidden@host,[::1]:1").unwrap();
        assert!(!format!("{address:?}").contains("hidden"));
        assert_eq!(address.to_string(), "host:6379, [::1]:1");
    }

    #[test]
    fn a_server_is_written_as_it_is_read() {
        for text in ["[::1]:7000", "host:1", "10.0.0.1:65535"] {
            assert_eq!(Server::parse(text).unwrap().to_string(), text);
        }
    }
}
