//! What a door hands on to the application.

use super::body::Body;
use super::client::Client;
use std::net::IpAddr;

/// A request, as far as the protocols look at it.
pub struct Request<'a> {
    /// The method, in capitals (RFC 9110, 9.1).
    pub method: String,
    /// The path after the program's own: `PATH_INFO` under CGI. Empty or beginning with `/`.
    pub path: String,
    /// The same as it came, percent-encoded.
    pub raw_path: String,
    /// The raw query string, without `?`.
    pub query: Vec<u8>,
    /// Header fields by lower-case name.
    pub header: &'a (dyn Fn(&str) -> Option<String> + Sync),
    /// All of them that have come this far, names in lower case.
    pub headers: &'a (dyn Fn() -> Vec<(String, String)> + Sync),
    /// Where the relay itself is on its server: `SCRIPT_NAME` under CGI, empty under `serve`.
    pub mount: String,
    /// What the web server calls itself: `SERVER_SOFTWARE` under CGI, the relay's own name under `serve`.
    pub server: String,
    /// The client's address: of whatever opened the connection to the server, or whom that speaks for where it is a [trusted
    /// proxy](crate::config::TrustedProxies). `None` where that is not known, as through a UNIX socket.
    pub remote: Option<IpAddr>,
    /// Whether it uses HTTPS.
    pub is_https: bool,
    /// Whether the connection can be handed over to another protocol ([`Content::Upgrade`]).
    pub can_upgrade: bool,
    /// Whether a trailer field can follow the body of the answer (RFC 9110, 6.5), and the client has said that it keeps
    /// such fields.
    pub takes_trailers: bool,
    /// The client that waits for the answer.
    pub client: &'a mut dyn Client,
    /// What is sent along.
    pub body: Body<'a>,
}
