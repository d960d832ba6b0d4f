//! What a test says to a relay, whichever way it reaches it.

use serde_json::Value;

use crate::place::Folder;
use crate::stream::Stream;
use crate::token;

/// A request. The relay's own address is the door's business.
#[derive(Clone, Copy)]
pub struct Call<'a> {
    pub method: &'a str,
    /// What follows the program's name in the path.
    pub path_info: &'a str,
    pub query: &'a str,
    pub headers: &'a [(&'a str, &'a str)],
    pub body: &'a [u8],
}

impl Default for Call<'_> {
    fn default() -> Self {
        Self { method: "POST", path_info: "", query: "", headers: &[], body: b"" }
    }
}

/// A whole answer.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("not JSON ({error}): {self:?}"))
    }

    /// The answer, if it has this status and, as every answer must, lets pages of other sites read it.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{self:?}");
        assert!(self.header("access-control-allow-origin").is_some(), "a page could not read {self:?}");
        self
    }

    /// An error that tells its user what to change, and a page why.
    #[track_caller]
    pub fn expect_error(self, status: u16) -> String {
        let reply = self.expect(status);
        let content_type = reply.header("content-type").unwrap_or_default();
        assert!(content_type.starts_with("application/json"), "{reply:?}");
        let json = reply.json();
        let reason = json["error"].as_str().unwrap_or_default();
        assert!(reason.len() > 3 && reason.contains(' '), "no reason in {reply:?}");
        reason.to_owned()
    }
}

pub fn header<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
}

/// A registered host.
#[derive(Clone)]
pub struct Host {
    pub id: String,
    pub token: String,
}

pub trait Relay: Sync {
    fn call(&self, call: &Call) -> Reply;

    /// Asks for a stream at a path behind the relay's own. `Err` is an answer that is not one.
    fn listen_at(&self, path_info: &str, query: &str, headers: &[(&str, &str)]) -> Result<Stream, Reply>;

    fn listen(&self, query: &str, headers: &[(&str, &str)]) -> Result<Stream, Reply> {
        self.listen_at("", query, headers)
    }

    /// The folder that holds `cgi-bin/relay.cgi`.
    fn folder(&self) -> &Folder;
}

impl<R: Relay + ?Sized> Talk for R {}

/// The protocol's requests, in its own words.
pub trait Talk: Relay {
    #[track_caller]
    fn post(&self, query: &str, body: impl AsRef<[u8]>) -> Reply {
        self.call(&Call { query, body: body.as_ref(), ..Call::default() })
    }

    #[track_caller]
    fn get(&self, query: &str) -> Reply {
        self.call(&Call { method: "GET", query, ..Call::default() })
    }

    /// Registers a host: under this id, or with "" under one that the relay chooses.
    #[track_caller]
    fn host(&self, id: &str) -> Host {
        let query = if id.is_empty() { "action=host".to_owned() } else { format!("action=host&hostId={}", encode(id)) };
        let json = self.post(&query, b"").expect(200).json();
        let text = |name: &str| json[name].as_str().unwrap_or_else(|| panic!("no {name} in {json}")).to_owned();
        Host { id: text("hostId"), token: text("hostToken") }
    }

    #[track_caller]
    fn try_join(&self, host_id: &str) -> Reply {
        self.post(&format!("action=join&hostId={}", encode(host_id)), b"")
    }

    /// Joins a host: the client's token.
    #[track_caller]
    fn join(&self, host_id: &str) -> String {
        let json = self.try_join(host_id).expect(200).json();
        json["clientToken"].as_str().unwrap_or_else(|| panic!("no clientToken in {json}")).to_owned()
    }

    #[track_caller]
    fn send(&self, token: &str, body: impl AsRef<[u8]>) -> Reply {
        self.post(&format!("token={token}"), body)
    }

    /// Opens a stream, through its first line.
    #[track_caller]
    fn open(&self, token: &str) -> Stream {
        self.open_with(&format!("token={token}"), &[])
    }

    /// Comes back after event `last`; said in the query, which every web server passes on.
    #[track_caller]
    fn resume(&self, token: &str, last: &str) -> Stream {
        self.open_with(&format!("token={token}&lastEventId={last}"), &[])
    }

    #[track_caller]
    fn open_with(&self, query: &str, headers: &[(&str, &str)]) -> Stream {
        let mut stream = self.listen(query, headers).unwrap_or_else(|reply| panic!("no stream but {reply:?}"));
        stream.expect_comment("Connected.");
        stream
    }

    /// A host that listens, and its stream.
    #[track_caller]
    fn listening_host(&self) -> (Host, Stream) {
        let host = self.host("");
        let stream = self.open(&host.token);
        (host, stream)
    }

    /// A client that listens, its id, its token and its stream.
    #[track_caller]
    fn listening_client(&self, host_id: &str) -> Client {
        let token = self.join(host_id);
        let id = token::payload(&token)["clientId"].as_str().expect("a clientId").to_owned();
        let stream = self.open(&token);
        Client { id, token, stream }
    }
}

pub struct Client {
    pub id: String,
    pub token: String,
    pub stream: Stream,
}

/// A value for a query.
pub fn encode(text: impl AsRef<[u8]>) -> String {
    urlencoding::encode_binary(text.as_ref()).into_owned()
}
