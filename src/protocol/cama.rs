//! The cama protocol: two parties, a host and a guest, and a stream of bytes each way, one body at a time.
//!
#![doc = include_str!("cama.md")]
//!
//! # In the code
//!
//! Whoever has the session's token is its host, anybody else who knows its id its guest; in a secure session, anybody
//! else with the address that the host has named. A cookie carries the token, or a header field or parameter `token`,
//! where there are no cookies. Each header field of the protocol has a parameter beside it, and `method=` one for the
//! method of a POST, for web servers that pass few of them on.

use super::cors::options;
use super::partner::Wait;
use super::query::Query;
use crate::config::Settings;
use crate::gateway::{Client, Reply, Request, Status};
use crate::refusal::Refusal;
use crate::store::pipes::{Denied, Limits, NewSession, Role, Visitor};
use crate::store::{self, Receiver, Sender, Store, WaitingSender};
use crate::transfer::{self, End, Ending, Feed};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, SystemTime};

const SESSIONS: &str = "/cama/session";
const METHODS: &str = "GET, HEAD, POST, PUT, DELETE, OPTIONS";
const METHODS_OF_ALL: &str = "PUT, POST, OPTIONS";

/// What a page of another origin wants to see of an answer.
const EXPOSED: &str = "Location, Token, X-Type, X-Bytes-Delivered, X-Bytes-Relayed";

/// The longest time that a client may choose with `X-Timeout`.
const LONGEST_TIMEOUT: u64 = 300;

/// The senders that may wait in one direction. Each is a process or a thread.
const MOST_SENDERS: usize = 16;

/// What a sender says of its body besides the `Content-Type` (RFC 9110, 8), and its receiver is told.
const PASSED_ON: [&str; 4] = ["Content-Disposition", "Content-Encoding", "Content-Language", "Last-Modified"];

/// The longest value of such a field that is passed on.
const LONGEST_VALUE: usize = 1024;

/// The trailer field that follows a body in chunks which its sender has broken off, for a receiver that takes such fields.
const ABORTED: (&str, &str) = ("x-transfer", "aborted");

/// The session that a path names, empty for all of them; `None` where the path is not this protocol's.
#[must_use]
pub fn session_of(path: &str) -> Option<String> {
    let rest = path.strip_prefix(SESSIONS)?;
    let id = if rest.is_empty() { rest } else { rest.strip_prefix('/')? };
    Some(id.to_owned())
}

/// Answers a request to the session `id`, or to all of them where it is empty.
pub async fn answer(settings: &Settings, id: &str, request: &mut Request<'_>) -> Reply {
    let limits = Limits { sessions: settings.max_pipes, senders: MOST_SENDERS, lifetime: settings.pipe_lifetime };
    let relay = Relay { settings, limits, store: Store::of(settings) };
    let reply = relay.route(id, request).await.unwrap_or_else(|refusal| refusal.reply_to(request));
    reply.header("Access-Control-Expose-Headers", EXPOSED)
}

// ---- what is refused

impl From<Denied> for Refusal {
    fn from(denied: Denied) -> Self {
        match denied {
            Denied::BasicSession => Self::new(
                Status::BadRequest,
                "The session is basic, and open to everybody who knows it: make one with X-Type: secure.",
            ),
            Denied::NotTheHost => Self::new(
                Status::Forbidden,
                "Only the session's host may do this: send the token that came with the session.",
            ),
            Denied::NotTheGuest => Self::new(
                Status::Forbidden,
                "The session is secure, and not for you: its host has to PUT your X-Peer-Address first.",
            ),
            Denied::UnknownSession => {
                Self::new(Status::NotFound, "There is no such session: it was never made, or it is over.")
            }
            Denied::ReceiverThere => {
                Self::new(Status::Conflict, "Somebody else is receiving already on this side of the session.")
            }
            Denied::TooManySenders => Self::new(
                Status::TooManyRequests,
                format!("{MOST_SENDERS} others wait to send the same way: try again later."),
            ),
            Denied::Removed => Self::new(Status::Gone, "The session has been deleted."),
            Denied::Failed(error) => error.into(),
        }
    }
}

fn bad_address() -> Refusal {
    Refusal::new(Status::BadRequest, "The X-Peer-Address is not an IP address, such as 192.0.2.1 or 2001:db8::1.")
}

fn nobody_came() -> Refusal {
    Refusal::new(Status::GatewayTimeout, "The other side did not come in time: try again, or wait longer (X-Timeout).")
}

/// What precedes a body in the pipe.
#[derive(Serialize, Deserialize)]
struct Head {
    content_type: Option<String>,
    /// Those of [`PASSED_ON`] that the sender gave.
    #[serde(default)]
    fields: Vec<(String, String)>,
    /// `None` for a chunked one.
    length: Option<u64>,
}

/// What the header fields and parameters of a request say.
struct Said<'a, 'r> {
    request: &'a Request<'r>,
    query: &'a Query,
}

impl Said<'_, '_> {
    fn header_or(&self, header: &str, parameter: &str) -> Option<String> {
        (self.request.header)(header).or_else(|| self.query.get(parameter).map(str::to_owned))
    }

    fn method(&self) -> String {
        let method = self.request.method.as_str();
        let instead =
            self.query.get("method").filter(|instead| method == "POST" && matches!(*instead, "DELETE" | "PUT"));
        instead.unwrap_or(method).to_owned()
    }

    fn location(&self, id: &str) -> String {
        format!("{}{SESSIONS}/{id}", self.request.mount)
    }

    /// What the receiver is told of the body.
    fn head(&self, length: Option<u64>) -> Head {
        let passed_on = |value: &String| value.len() <= LONGEST_VALUE;
        let field = |name: &str| {
            let name = name.to_ascii_lowercase();
            self.header_or(&name, &name).filter(passed_on)
        };
        let fields = PASSED_ON.iter().filter_map(|name| Some(((*name).to_owned(), field(name)?))).collect();
        Head { content_type: (self.request.header)("content-type").filter(passed_on), fields, length }
    }

    fn is_secure(&self) -> Result<bool, Refusal> {
        match self.header_or("x-type", "type").as_deref() {
            None | Some("basic") => Ok(false),
            Some("secure") => Ok(true),
            Some(_) => Err(Refusal::new(Status::BadRequest, "There is no such X-Type: use basic or secure.")),
        }
    }

    fn timeout(&self, default: Duration) -> Result<Duration, Refusal> {
        let Some(text) = self.header_or("x-timeout", "timeout") else { return Ok(default) };
        // `parse` would take a sign.
        let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
        match text.parse() {
            Ok(seconds) if is_number && (1..=LONGEST_TIMEOUT).contains(&seconds) => Ok(Duration::from_secs(seconds)),
            _ => Err(Refusal::new(
                Status::BadRequest,
                format!("The X-Timeout cannot be used: take whole seconds from 1 to {LONGEST_TIMEOUT}."),
            )),
        }
    }

    fn peer_address(&self) -> Option<Result<IpAddr, Refusal>> {
        let text = self.header_or("x-peer-address", "peer-address")?;
        Some(bare_address(text.trim()).ok_or_else(bad_address))
    }

    fn visitor(&self) -> Visitor {
        Visitor { tokens: self.tokens(), address: self.request.remote }
    }

    /// Every token that was sent. A browser may have cookies of that name from elsewhere on the site as well.
    fn tokens(&self) -> Vec<String> {
        let cookies = (self.request.header)("cookie").unwrap_or_default();
        let cookies = cookies.split(';').filter_map(|pair| pair.trim().strip_prefix("token="));
        let cookies = cookies.map(|value| value.trim_matches('"').to_owned());
        cookies.chain((self.request.header)("token")).chain(self.query.get("token").map(str::to_owned)).collect()
    }
}

/// `SameSite=Lax`: who follows a link to his own session from elsewhere is still its host, while a form or a script of
/// another site cannot act as him.
fn cookie(id: &str, token: &str, lifetime: Duration, said: &Said<'_, '_>) -> String {
    let secure = if said.request.is_https { "; Secure" } else { "" };
    // Some clients know only the date.
    let expires = if lifetime.is_zero() { SystemTime::UNIX_EPOCH } else { SystemTime::now() + lifetime };
    format!(
        "token=\"{token}\"; Path={}; Expires={}; HttpOnly; SameSite=Lax{secure}",
        said.location(id),
        httpdate::HttpDate::from(expires)
    )
}

/// An address without a port. A long one may have brackets around it, as in a URL (RFC 3986, 3.2.2).
fn bare_address(text: &str) -> Option<IpAddr> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(address.to_canonical());
    }
    let long: Ipv6Addr = text.strip_prefix('[')?.strip_suffix(']')?.parse().ok()?;
    Some(IpAddr::V6(long).to_canonical())
}

struct Relay<'a> {
    settings: &'a Settings,
    limits: Limits,
    store: Store,
}

impl Relay<'_> {
    async fn route(&self, id: &str, request: &mut Request<'_>) -> Result<Reply, Refusal> {
        let query = Query::parse(&request.query)?;
        let said = Said { request, query: &query };
        let method = said.method();
        if method == "OPTIONS" {
            return Ok(options(request, if id.is_empty() { METHODS_OF_ALL } else { METHODS }));
        }
        if id.is_empty() {
            return match method.as_str() {
                "PUT" | "POST" => self.allocate(&said).await,
                _ => Err(Refusal::method_not_allowed(METHODS_OF_ALL)),
            };
        }
        match method.as_str() {
            "GET" => {
                let (visitor, timeout) = (said.visitor(), self.timeout(id, &said).await?);
                let aborted = request.takes_trailers.then_some(ABORTED);
                self.receive(id, &visitor, timeout, aborted, request.client).await
            }
            "HEAD" => {
                self.store.join_session(id, &said.visitor(), &self.limits).await?;
                Ok(Reply::empty(Status::Ok))
            }
            "PUT" if said.peer_address().is_some() => self.permit(id, &said).await,
            "PUT" | "POST" => {
                let (visitor, timeout) = (said.visitor(), self.timeout(id, &said).await?);
                let head = said.head(request.body.length);
                self.send(id, &visitor, timeout, &head, request).await
            }
            "DELETE" => self.delete(id, &said).await,
            _ => Err(Refusal::method_not_allowed(METHODS)),
        }
    }

    /// How long to wait. Whoever may not do that at all is told that first.
    async fn timeout(&self, id: &str, said: &Said<'_, '_>) -> Result<Duration, Refusal> {
        let timeout = said.timeout(self.settings.pipe_timeout);
        if timeout.is_err() {
            self.store.join_session(id, &said.visitor(), &self.limits).await?;
        }
        timeout
    }

    // ---- PUT /cama/session

    async fn allocate(&self, said: &Said<'_, '_>) -> Result<Reply, Refusal> {
        let is_secure = said.is_secure()?;
        let made = self.store.make_session(is_secure, &self.limits).await?;
        let NewSession { id, token } = made.ok_or_else(|| {
            let limit = self.limits.sessions;
            let sentence = format!("The relay has its {limit} sessions (RELAY_MAX_PIPES): try again later.");
            Refusal::new(Status::ServiceUnavailable, sentence)
        })?;
        Ok(Reply::empty(Status::Created)
            .header("Location", said.location(&id))
            .header("Set-Cookie", cookie(&id, &token, self.settings.pipe_lifetime, said))
            // A page of another origin sees no cookie, and cannot send one where browsers refuse those of third parties.
            .header("Token", token)
            .header("X-Type", if is_secure { "secure" } else { "basic" })
            .header("Cache-Control", "no-store"))
    }

    // ---- PUT /cama/session/ID with X-Peer-Address

    async fn permit(&self, id: &str, said: &Said<'_, '_>) -> Result<Reply, Refusal> {
        let address = said.peer_address().ok_or_else(bad_address)?;
        let host = said.visitor();
        match address {
            Ok(guest) => self.store.permit_guest(id, &host, guest, &self.limits).await?,
            // Whoever may not name one at all is told that first.
            Err(refusal) => {
                return Err(match self.store.join_session(id, &host, &self.limits).await {
                    Ok(Role::Host) => refusal,
                    Ok(Role::Guest) | Err(Denied::NotTheGuest) => Denied::NotTheHost.into(),
                    Err(denied) => denied.into(),
                });
            }
        }
        Ok(Reply::empty(Status::Ok))
    }

    // ---- DELETE /cama/session/ID

    async fn delete(&self, id: &str, said: &Said<'_, '_>) -> Result<Reply, Refusal> {
        self.store.remove_session(id, &said.visitor(), &self.limits).await?;
        Ok(Reply::empty(Status::Ok).header("Set-Cookie", cookie(id, "", Duration::ZERO, said)))
    }

    // ---- GET /cama/session/ID

    async fn receive(
        &self,
        id: &str,
        visitor: &Visitor,
        timeout: Duration,
        aborted: Option<(&'static str, &'static str)>,
        client: &mut dyn Client,
    ) -> Result<Reply, Refusal> {
        let mut receiver = self.store.receive(id, visitor, &self.limits).await?;
        let mut wait = Wait::begin(timeout);
        let head = loop {
            let is_over = {
                let [mut data, mut call] = receiver.awaited();
                !wait.sleep(client, &mut [&mut data, &mut call], store::look_every()).await?
            };
            if let Some(head) = receiver.look().await? {
                break head;
            }
            if is_over && !(receiver.is_taken() && wait.extend()) {
                return Err(nobody_came());
            }
        };
        let head: Head = serde_json::from_slice(&head).map_err(|error| store::Error::Io(error.into()))?;
        Ok(body_reply(head, aborted, receiver.begin()))
    }

    // ---- POST /cama/session/ID

    async fn send(
        &self,
        id: &str,
        visitor: &Visitor,
        timeout: Duration,
        head: &Head,
        request: &mut Request<'_>,
    ) -> Result<Reply, Refusal> {
        let mut waiting = self.store.wait_to_send(id, visitor, &self.limits).await?;
        let head_bytes = serde_json::to_vec(head).map_err(|error| store::Error::Io(error.into()))?;
        let (client, wait) = (&mut *request.client, Wait::begin(timeout));
        let mut feed = Feed::new(&mut request.body);
        let delivered = loop {
            let mut sender = meet(&mut waiting, &wait, client).await?;
            // Without the body, which another receiver has to get if this one has not begun.
            if !sender.send_head(&head_bytes, b"") {
                continue;
            }
            let end = feed.send(&mut sender, Some(&waiting), client).await;
            if let End::Body(_) = end {
                transfer::settle(&mut sender, client).await;
            }
            let taken = sender.taken()?;
            let delivered = taken.unwrap_or(0);
            match end {
                // It had not even begun: another one may come.
                End::ReceiverLeft if taken.is_none() && feed.given() == 0 => {}
                End::ReceiverLeft | End::ReceiverStuck => break delivered,
                End::SentAway => return Err(waiting.why_sent_away().await.into()),
                End::HungUp => return Err(Refusal::hung_up()),
                End::Stopped => return Err(Refusal::stopping()),
                End::Body(error) => {
                    return Err(Refusal::from(error).field("X-Bytes-Delivered", delivered.to_string()));
                }
            }
        };
        feed.drop_rest().await;
        waiting.finish().await;
        let delivered = delivered.to_string();
        // The second is for chunked bodies, but a web server may have made a whole one of those.
        Ok(Reply::empty(Status::Ok).header("X-Bytes-Delivered", delivered.clone()).header("X-Bytes-Relayed", delivered))
    }
}

/// Waits for a receiver.
async fn meet(waiting: &mut WaitingSender, wait: &Wait, client: &mut dyn Client) -> Result<Sender, Refusal> {
    loop {
        if let Some(sender) = waiting.take_receiver().await? {
            return Ok(sender);
        }
        if !wait.sleep(client, &mut [&mut waiting.awaited()], store::look_every()).await? {
            return Err(nobody_came());
        }
    }
}

/// The answer to a `GET`: the other's body, as it comes. `aborted` follows one in chunks whose sender has broken off.
fn body_reply(head: Head, aborted: Option<(&'static str, &'static str)>, receiver: Receiver) -> Reply {
    let mut reply = Reply::empty(Status::Ok)
        .header("Content-Type", head.content_type.unwrap_or_else(|| "application/octet-stream".to_owned()))
        // no-transform: a proxy that compresses would hold the bytes back (RFC 9111, 5.2.2.6).
        .header("Cache-Control", "no-store, no-transform")
        // What strangers send is shown under the relay's origin: it must not run there.
        .header("X-Content-Type-Options", "nosniff")
        .header("Content-Security-Policy", "sandbox")
        // nginx passes it on as it comes.
        .header("X-Accel-Buffering", "no");
    for (name, value) in head.fields {
        reply = reply.header(name, value);
    }
    let aborted = aborted.filter(|_| head.length.is_none());
    if let Some((name, _)) = aborted {
        reply = reply.header("Trailer", name);
    }
    Reply { content: transfer::content(receiver, head.length, Ending::Any(aborted)), ..reply }
}
