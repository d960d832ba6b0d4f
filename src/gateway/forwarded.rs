//! Whom a request is from, where a reverse proxy has brought it.
//!
//! A proxy that is trusted ([`TrustedProxies`]) speaks for others in `X-Forwarded-For` and `X-Forwarded-Proto`. From anybody
//! else these fields mean nothing. It is decided here, once, so that every protocol and the log see the same client.

use crate::config::TrustedProxies;
use std::net::{IpAddr, SocketAddr};

/// Whom a request is from, as far as that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asker {
    /// The address; `None` where nobody that is trusted says it.
    pub address: Option<IpAddr>,
    /// Whether it uses HTTPS.
    pub is_https: bool,
}

impl Asker {
    /// Whoever has opened a connection, or whom that speaks for. `header` gives the fields of the request by lower-case name.
    pub(super) fn behind(self, trusted: &TrustedProxies, header: &dyn Fn(&str) -> Option<String>) -> Self {
        if !trusted.include(self.address) {
            return self;
        }
        Self {
            address: header("x-forwarded-for").map_or(self.address, |list| client(&list, self.address, trusted)),
            is_https: header("x-forwarded-proto").and_then(|list| is_secure(&list)).unwrap_or(self.is_https),
        }
    }
}

/// The last address in the list that is not a trusted proxy's itself: what stands before that, anybody may have written.
/// Where all are proxies it is the first. What is no address hides its client, and all before it: nobody is better than
/// the wrong one.
fn client(list: &str, proxy: Option<IpAddr>, trusted: &TrustedProxies) -> Option<IpAddr> {
    let mut client = proxy;
    for item in list.rsplit(',').map(str::trim).filter(|item| !item.is_empty()) {
        client = Some(address(item)?);
        if !trusted.include(client) {
            break;
        }
    }
    client
}

/// An address as proxies write it: some with a port after it, and the long ones in brackets.
fn address(text: &str) -> Option<IpAddr> {
    let is_port =
        |text: &str| text.is_empty() || text.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok());
    let address = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) => address.parse().ok().filter(|_| is_port(port))?,
        None => text.parse().ok().or_else(|| Some(text.parse::<SocketAddr>().ok()?.ip()))?,
    };
    Some(IpAddr::to_canonical(&address))
}

/// What the nearest proxy says, which comes last. Some name the WebSocket's scheme. `None` for what is no scheme.
fn is_secure(list: &str) -> Option<bool> {
    match list.rsplit(',').next()?.trim().to_ascii_lowercase().as_str() {
        "https" | "wss" => Some(true),
        "http" | "ws" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn trusted() -> TrustedProxies {
        TrustedProxies { addresses: vec![ip("127.0.0.1"), ip("198.51.100.7")], unix: false }
    }

    fn asker(from: Option<IpAddr>, list: Option<&str>, proto: Option<&str>) -> Asker {
        let field = |name: &str| match name {
            "x-forwarded-for" => list.map(str::to_owned),
            "x-forwarded-proto" => proto.map(str::to_owned),
            _ => None,
        };
        Asker { address: from, is_https: false }.behind(&trusted(), &field)
    }

    #[test]
    fn the_client_is_the_last_who_is_no_proxy() {
        for (list, client) in [
            ("192.0.2.1", Some("192.0.2.1")),
            ("203.0.113.5, 192.0.2.1, 198.51.100.7", Some("192.0.2.1")),
            ("192.0.2.1 ,, 203.0.113.5,", Some("203.0.113.5")),
            ("192.0.2.1:4711", Some("192.0.2.1")),
            ("[2001:db8::1]:4711", Some("2001:db8::1")),
            ("[2001:db8::1]", Some("2001:db8::1")),
            ("[192.0.2.1]:4711", Some("192.0.2.1")),
            ("[192.0.2.1]4711", None),
            ("2001:db8::1", Some("2001:db8::1")),
            ("::ffff:192.0.2.1", Some("192.0.2.1")),
            ("192.0.2.1, [::ffff:127.0.0.1]:80", Some("192.0.2.1")),
            ("198.51.100.7, 127.0.0.1", Some("198.51.100.7")),
            ("", Some("127.0.0.1")),
            ("192.0.2.1, unknown", None),
            ("192.0.2.1, nonsense, 198.51.100.7", None),
            ("nonsense, 192.0.2.1", Some("192.0.2.1")),
        ] {
            assert_eq!(asker(Some(ip("127.0.0.1")), Some(list), None).address, client.map(ip), "{list}");
        }
        assert_eq!(asker(Some(ip("127.0.0.1")), None, None).address, Some(ip("127.0.0.1")));
    }

    #[test]
    fn nobody_else_speaks_for_others() {
        for from in [Some(ip("192.0.2.9")), None] {
            let asked = asker(from, Some("192.0.2.1"), Some("https"));
            assert_eq!(asked, Asker { address: from, is_https: false });
        }
    }

    #[test]
    fn the_nearest_proxy_says_whether_it_is_https() {
        for (proto, is_https) in [
            ("https", true),
            ("HTTPS", true),
            ("wss", true),
            ("http", false),
            ("https, http", false),
            ("http, https", true),
            ("nonsense", false),
        ] {
            assert_eq!(asker(Some(ip("127.0.0.1")), None, Some(proto)).is_https, is_https, "{proto}");
        }
        let over_https = Asker { address: Some(ip("127.0.0.1")), is_https: true };
        assert!(over_https.behind(&trusted(), &|_| None).is_https);
        assert!(!over_https.behind(&trusted(), &|_| Some("http".to_owned())).is_https);
    }

    proptest! {
        #[test]
        fn what_a_client_writes_itself_changes_nothing(forged in "[ -~]{0,40}", real in any::<[u8; 4]>()) {
            let real = IpAddr::from(real);
            prop_assume!(!trusted().include(Some(real)));
            let list = format!("{forged}, {real}");
            prop_assert_eq!(asker(Some(ip("127.0.0.1")), Some(&list), None).address, Some(real));
        }
    }
}
