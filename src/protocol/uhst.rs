//! The UHST relay protocol: hosts, clients that join them, messages both ways, and an event stream for each.
//!
#![doc = include_str!("uhst.md")]
//!
//! # In the code
//!
//! What happens to hosts, clients and messages is the business of [`crate::store::sessions`]; here is how they are asked for,
//! and what is answered.

use super::cors::options;
use super::event_stream::{nothing, resume_id, stream_head};
use super::query::Query;
use crate::clock::now_s;
use crate::config::Settings;
use crate::gateway::{Content, Outgoing, Reply, Request, Status};
use crate::health;
use crate::hex;
use crate::json::compact;
use crate::refusal::Refusal;
use crate::sse::{self, End, Events, Unsent};
use crate::store::made::Made;
use crate::store::sessions::{Claim, Event, Party, Policy, Refused, Standing, Words};
use crate::store::{self, Listener, Store};
use crate::token::{ClientId, HostId, Key, Token, TokenError};
use crate::wake::Ready;
use crate::workers::wait;
use serde::Serializer as _;
use serde_json::json;
use std::time::Duration;

const METHODS: &str = "GET, HEAD, POST, OPTIONS";

/// How long a stream that ends with its process waits for the closed events of its peers, which end with it.
const LAST_WORDS_TIME: Duration = Duration::from_millis(500);

/// Random ids are tried this often. Of 10,000 ids (with a prefix) with 9,500 in use, all tries fail once in 150
/// registrations; of a million (without), never.
const ID_TRIES: usize = 100;

/// What the relay itself says.
static WORDS: Words = Words {
    event: "relay_event",
    host_closed: r#"{"eventType":"host_closed","body":"#,
    client_closed: r#"{"eventType":"client_closed","body":"#,
    messages_lost: r#"{"eventType":"messages_lost","body":"#,
};

/// The limits and times of sessions.
#[must_use]
pub fn policy(settings: &Settings) -> Policy<'_> {
    Policy { settings, words: &WORDS }
}

/// Answers a request to the relay itself.
pub async fn answer(settings: &'static Settings, request: &mut Request<'_>) -> Reply {
    let relay = Relay { settings, store: Store::of(settings) };
    relay.route(request).await.unwrap_or_else(Refusal::reply)
}

/// Signs a token for an application.
///
/// # Errors
/// When the secret can neither be read nor made.
pub fn mint(settings: &Settings, token: &Token) -> Result<String, store::Error> {
    Ok(wait(key(settings, &Store::of(settings)))?.sign(token, now_s()))
}

async fn key(settings: &Settings, store: &Store) -> Result<Key, store::Error> {
    Ok(match &settings.jwt_secret {
        Some(secret) => Key::new(secret.as_bytes()),
        None => Key::new(&store.secret().await?),
    })
}

// ---- what is refused

impl From<TokenError> for Refusal {
    fn from(error: TokenError) -> Self {
        Self::new(Status::Unauthorized, error.to_string())
    }
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Self {
        const BAD: Status = Status::BadRequest;
        match refused {
            Refused::Taken => {
                Self::new(BAD, "Another host has this hostId: take another one, or none to get a free one.")
            }
            Refused::UnknownHost => {
                Self::new(BAD, "There is no such host: check the hostId, and that the host is listening.")
            }
            Refused::Expired => Self::new(
                Status::Unauthorized,
                "The token's session is over, or its host has been registered anew: register or join again.",
            ),
            Refused::HostGone => Self::new(BAD, "The host is not listening any more: nothing was sent."),
            Refused::ClientGone => Self::new(BAD, "The client is not listening any more: nothing was sent."),
            Refused::NobodyThere => {
                Self::new(BAD, "Nobody listens as this host, and it has no clients: nothing was sent.")
            }
            Refused::MessagesWait => Self::new(
                Status::ServiceUnavailable,
                "Messages for earlier hosts with this hostId wait: try again later, or take another one.",
            ),
            Refused::TooManyHosts(limit) => Self::new(
                Status::ServiceUnavailable,
                format!("The relay has its {limit} hosts (RELAY_MAX_HOSTS): try again later."),
            ),
            Refused::TooManyClients(limit) => Self::new(
                Status::ServiceUnavailable,
                format!("The host has its {limit} clients (RELAY_MAX_CLIENTS): try again later."),
            ),
            Refused::Store(error) => error.into(),
        }
    }
}

/// The same for whoever wants to listen, not to send.
fn unheard(refused: Refused) -> Refusal {
    match refused {
        Refused::HostGone => {
            Refusal::new(Status::BadRequest, "The host is not listening any more: there is nobody to hear from.")
        }
        other => other.into(),
    }
}

/// Somebody looks what is at this URL.
fn nothing_asked() -> Refusal {
    Refusal::new(
        Status::Unauthorized,
        concat!(
            "This is uhst-relay ",
            env!("UHST_RELAY_VERSION"),
            ", which passes messages between browsers and other programs: \
             open this URL in a browser to read on. A client adds ?token=…, as ?action=host or ?action=join gave it out."
        ),
    )
}

fn no_token() -> Refusal {
    Refusal::new(
        Status::Unauthorized,
        "There is no token: add ?token=… as ?action=host or ?action=join gave it out. To begin, POST to ?action=host.",
    )
}

fn bad_host_id() -> Refusal {
    let sentence =
        format!("The hostId cannot be used: take 1 to {} bytes without control characters.", HostId::LONGEST);
    Refusal::new(Status::BadRequest, sentence)
}

struct Relay {
    settings: &'static Settings,
    store: Store,
}

impl Relay {
    fn policy(&self) -> Policy<'static> {
        policy(self.settings)
    }

    async fn route(&self, request: &mut Request<'_>) -> Result<Reply, Refusal> {
        let method = request.method.as_str();
        if method == "OPTIONS" {
            return Ok(options(request, METHODS));
        }
        if !matches!(method, "GET" | "HEAD" | "POST") {
            return Err(Refusal::method_not_allowed(METHODS));
        }
        let query = Query::parse(&request.query)?;
        match (method, query.get("action"), query.get("token")) {
            ("POST", Some("host"), _) => self.register(query.get("hostId")).await,
            ("POST", Some("join"), _) => self.join(query.get("hostId")).await,
            ("POST", Some("ping"), _) => {
                health::glance(self.settings).await?;
                Ok(ping(query.get("timestamp")))
            }
            (_, Some("host" | "join" | "ping"), _) => Err(Refusal::method_not_allowed("POST, OPTIONS")),
            ("POST", None, Some(token)) => self.send(token, request).await,
            ("GET", None, Some(token)) => self.listen(token, resume_id(&query, request)).await,
            ("HEAD", None, Some(token)) => self.would_listen(token, resume_id(&query, request)).await,
            ("GET" | "HEAD", None, None) if request.query.is_empty() => Err(nothing_asked()),
            (_, None, None) => Err(no_token()),
            _ => Err(Refusal::new(Status::BadRequest, "There is no such action: use host, join or ping.")),
        }
    }

    async fn key(&self) -> Result<Key, store::Error> {
        key(self.settings, &self.store).await
    }

    async fn verify(&self, token: &str) -> Result<(Token, Key), Refusal> {
        let key = self.key().await?;
        Ok((key.verify(token, now_s())?, key))
    }

    // ---- POST ?action=host

    async fn register(&self, host_id: Option<&str>) -> Result<Reply, Refusal> {
        let key = self.key().await?;
        let registration = hex::random(8).map_err(store::Error::from)?;
        let host_id = match host_id {
            Some(host_id) => {
                let host_id = HostId::new(host_id).ok_or_else(bad_host_id)?;
                self.store.register(&host_id, &registration, Claim::Chosen, &self.policy()).await?;
                host_id
            }
            None => self.register_drawn(&registration).await?,
        };
        let token = Token::Host { host_id: host_id.clone(), registration: Some(registration) };
        let answer = json!({ "hostId": host_id.as_str(), "hostToken": key.sign(&token, now_s()) });
        Ok(Reply::json(Status::Ok, answer.to_string()))
    }

    async fn register_drawn(&self, registration: &str) -> Result<HostId, Refusal> {
        for _ in 0..ID_TRIES {
            let random = hex::random(7).map_err(store::Error::from)?;
            let random = u64::from_str_radix(&random, 16).unwrap_or(0);
            let id = match &self.settings.prefix {
                Some(prefix) => format!("{prefix}-{:04}", random % 10_000),
                None => format!("{:06}", random % 1_000_000),
            };
            let host_id = HostId::new(&id).ok_or_else(bad_host_id)?;
            match self.store.register(&host_id, registration, Claim::Drawn, &self.policy()).await {
                Ok(()) => return Ok(host_id),
                Err(Refused::Taken) => {}
                Err(other) => return Err(other.into()),
            }
        }
        Err(Refusal::new(Status::ServiceUnavailable, "No free host id was found: try again later, or choose a hostId."))
    }

    // ---- POST ?action=join

    async fn join(&self, host_id: Option<&str>) -> Result<Reply, Refusal> {
        let missing = || Refusal::new(Status::BadRequest, "The hostId is missing: add &hostId=… of the host to join.");
        let host_id = HostId::new(host_id.ok_or_else(missing)?).ok_or_else(bad_host_id)?;
        let key = self.key().await?;
        let client_id = new_client_id()?;
        let registration = self.store.join(&host_id, &client_id, &self.policy()).await?;
        let token = Token::Client { host_id, client_id, registration };
        Ok(Reply::json(Status::Ok, json!({ "clientToken": key.sign(&token, now_s()) }).to_string()))
    }

    // ---- POST ?token=

    async fn send(&self, token: &str, request: &mut Request<'_>) -> Result<Reply, Refusal> {
        let (token, key) = self.verify(token).await?;
        request.client.turn_of(|| sender(&token)).await;
        let body = request.body.read(self.settings.max_body).await?;
        let message = compact(&body)?.unwrap_or_else(|| "{}".to_owned());
        let policy = self.policy();
        let data = format!(r#"{{"body":{message}}}"#);
        match &token {
            Token::Client { host_id, client_id, .. } => {
                let response_token = Token::Response { host_id: host_id.clone(), client_id: client_id.clone() };
                let response_token = key.sign(&response_token, now_s());
                let data = format!(r#"{{"body":{message},"responseToken":"{response_token}"}}"#);
                self.store.send_to_host(&party(&token)?, &data, &policy).await?;
            }
            Token::Response { host_id, client_id } => {
                self.store.send_to_client(host_id, client_id, &data, &policy).await?;
            }
            Token::Host { .. } => {
                let sent = self.store.broadcast(&party(&token)?, &data, &policy).await?;
                return Ok(Reply::json(Status::Ok, broadcast_answer(&sent)?));
            }
        }
        Ok(Reply::json(Status::Ok, "{}"))
    }

    // ---- GET ?token=

    async fn listen(&self, token: &str, resume: Option<u64>) -> Result<Reply, Refusal> {
        let (token, _) = self.verify(token).await?;
        let listener = self.store.listen(&party(&token)?, resume, &self.policy()).await.map_err(unheard)?;
        let stream = Stream { listener, token, settings: self.settings };
        Ok(Reply { content: Content::Events(Box::new(|out| Box::pin(stream.run(out)))), ..stream_head() })
    }

    /// What GET would answer, without listening: a HEAD must not take the stream away from whoever has it.
    async fn would_listen(&self, token: &str, resume: Option<u64>) -> Result<Reply, Refusal> {
        let (token, _) = self.verify(token).await?;
        self.store.would_listen(&party(&token)?, resume, &self.policy()).await.map_err(unheard)?;
        Ok(Reply { content: nothing(), ..stream_head() })
    }
}

/// Whoever sends with a token: what it sends first comes first.
fn sender(token: &Token) -> String {
    match token {
        Token::Client { host_id, client_id, .. } => format!("{} {}", client_id.as_str(), host_id.as_str()),
        Token::Host { host_id, .. } | Token::Response { host_id, .. } => format!(" {}", host_id.as_str()),
    }
}

/// Whom a token names that may listen.
fn party(token: &Token) -> Result<Party, Refusal> {
    let (host, client, registration) = match token {
        Token::Host { host_id, registration } => (host_id, None, registration),
        Token::Client { host_id, client_id, registration } => (host_id, Some(client_id.clone()), registration),
        Token::Response { .. } => {
            return Err(Refusal::new(
                Status::BadRequest,
                "A response token can only send: listen with the token of ?action=host or ?action=join.",
            ));
        }
    };
    Ok(Party { host: host.clone(), client, registration: registration.clone() })
}

/// What a host or a client is told, as an event stream.
struct Stream {
    listener: Listener,
    token: Token,
    settings: &'static Settings,
}

impl Stream {
    async fn run(mut self, out: &mut dyn Outgoing) {
        let (mut unsent, settings) = (Unsent::after(self.listener.position()), self.settings);
        let end = sse::feed(out, &mut self, &mut unsent, settings).await;
        if matches!(end, End::Gone | End::Stopped)
            && let Err(error) = self.listener.end(&policy(self.settings)).await
        {
            error.log();
        }
        match end {
            // All streams of this process end at this moment; so they hear of each other. A web server that stops
            // us has closed the client's connection already.
            End::Stopped if out.is_own() => sse::last_words(out, &mut self, &mut unsent, LAST_WORDS_TIME).await,
            End::Over => {
                if let Token::Client { host_id, .. } = &self.token {
                    // Its session is gone, and the host's own closed event with it.
                    unsent.add_event(WORDS.event, &WORDS.of(WORDS.host_closed, host_id.as_str()));
                }
                sse::last_words(out, &mut self, &mut unsent, Duration::ZERO).await;
            }
            _ => {}
        }
    }
}

impl Events for Stream {
    fn wake(&self) -> Option<Ready<'_>> {
        self.listener.wake()
    }

    fn is_surely_woken(&self) -> bool {
        self.listener.is_surely_woken()
    }

    fn hear(&mut self) -> bool {
        self.listener.hear()
    }

    fn write_next(&mut self, out: &mut Vec<u8>) -> impl Future<Output = Result<bool, store::Error>> + Send {
        self.listener.next(|Event { id, event, data, made }| {
            Made::write(made, out, |out| sse::write_event(out, id, event, data));
        })
    }

    fn delivered(&mut self) -> impl Future<Output = Result<(), store::Error>> + Send {
        self.listener.delivered()
    }

    fn standing(&mut self) -> impl Future<Output = Result<Standing, store::Error>> + Send {
        self.listener.standing()
    }

    fn tend(&mut self) -> impl Future<Output = Result<Standing, store::Error>> + Send {
        self.listener.tend(policy(self.settings))
    }
}

/// An object that says of each recipient whether it will get the message. There may be thousands, many times a second.
fn broadcast_answer(sent: &[(ClientId, bool)]) -> Result<String, store::Error> {
    let mut answer = Vec::with_capacity(48 * sent.len() + 2);
    let pairs = sent.iter().map(|(client, is_sent)| (client.as_str(), is_sent));
    let written = serde_json::Serializer::new(&mut answer).collect_map(pairs);
    written.map_err(std::io::Error::other)?;
    Ok(String::from_utf8(answer).map_err(std::io::Error::other)?)
}

fn ping(timestamp: Option<&str>) -> Reply {
    let number = timestamp.filter(|text| serde_json::from_str::<serde_json::Number>(text).is_ok()).unwrap_or("null");
    Reply::json(Status::Ok, format!(r#"{{"pong":{}}}"#, number.trim()))
}

/// A random UUID (RFC 9562, 5.4): all bits random but the version and the variant.
///
/// # Errors
/// When the kernel gives no random bytes.
pub fn new_client_id() -> Result<ClientId, store::Error> {
    let hex = hex::random(16)?;
    let variant = ["8", "9", "a", "b"][usize::from(hex.as_bytes()[16] % 4)];
    let uuid = format!("{}-{}-4{}-{variant}{}-{}", &hex[..8], &hex[8..12], &hex[13..16], &hex[17..20], &hex[20..]);
    ClientId::new(&uuid).ok_or_else(|| store::Error::Io(std::io::ErrorKind::InvalidData.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ping_echoes_numbers_and_nothing_else() {
        for (timestamp, pong) in [
            (Some("1"), "1"),
            (Some("-1.5e3"), "-1.5e3"),
            (Some("12345678901234567890"), "12345678901234567890"),
            (Some("x\"}"), "null"),
            (None, "null"),
        ] {
            let Content::Whole(body) = ping(timestamp).content else { panic!() };
            assert_eq!(String::from_utf8(body).unwrap(), format!(r#"{{"pong":{pong}}}"#));
        }
    }

    #[test]
    fn the_answer_to_a_broadcast_names_each_client_as_it_is() {
        let sent =
            [("a", true), ("\"\\", false), ("ä", true)].map(|(id, is_sent)| (ClientId::new(id).unwrap(), is_sent));
        let answer: serde_json::Value = serde_json::from_str(&broadcast_answer(&sent).unwrap()).unwrap();
        assert_eq!(answer, json!({ "a": true, "\"\\": false, "ä": true }));
        assert_eq!(broadcast_answer(&[]).unwrap(), "{}");
    }

    #[test]
    fn a_client_id_is_a_uuid_of_version_4() {
        for _ in 0..50 {
            let id = new_client_id().unwrap();
            let parts: Vec<_> = id.as_str().split('-').collect();
            assert_eq!(parts.iter().map(|part| part.len()).collect::<Vec<_>>(), [8, 4, 4, 4, 12]);
            assert!(parts[2].starts_with('4') && parts[3].starts_with(['8', '9', 'a', 'b']));
        }
    }
}
