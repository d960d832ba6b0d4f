//! The UHST relay protocol: hosts, clients that join them, messages both ways, and an event stream for each.
//!
#![doc = include_str!("uhst.md")]
//!
//! # In the code
//!
//! A host, or a client, is *present* while it listens, before it listens for the first time, and for `RELAY_GRACE` after
//! it has stopped. Who is not present is not sent to, and its peers have been told so with a `relay_event`. It may come
//! back with its token for as long as the session lifetime.
//!
//! A message that was answered 200 is kept for the message lifetime, whatever else has ended by then: a session stays for
//! as long as one waits in it, and one that waits when a host is registered anew is set aside for the earlier token.

use super::query::{NotUtf8, Query};
use super::{options, refuse, resume_id, store_status, stream_head};
use crate::clock::{has_passed, is_recent, now_s};
use crate::config::Settings;
use crate::gateway::{BodyError, Content, Outgoing, Reply, Request, Status};
use crate::health;
use crate::hex;
use crate::json::{BadJson, compact};
use crate::sse::{self, Care, End, Unsent};
use crate::store::files::UNUSED_TIME;
use crate::store::files::mailbox::{Listener, Mailbox, Presence, Standing};
use crate::store::files::session::{Session, SessionRecord};
use crate::store::files::wake::LateKnock;
use crate::store::{self, Store};
use crate::token::{ClientId, HostId, Key, Token, TokenError};
use serde_json::json;
use std::fmt;
use std::time::{Duration, SystemTime};

const METHODS: &str = "GET, HEAD, POST, OPTIONS";

/// A host that was registered less than this ago and has not opened its stream yet still may; nobody else gets its id.
const OPENING_TIME: Duration = Duration::from_secs(10);

/// How long a stream that ends with its process waits for the closed events of its peers, which end with it.
const LAST_WORDS_TIME: Duration = Duration::from_millis(500);

/// Random ids are tried this often. Of 10,000 ids (with a prefix) with 9,500 in use, all tries fail once in 150
/// registrations; of a million (without), never.
const ID_TRIES: usize = 100;

/// Answers a request to the relay itself.
pub fn answer(settings: &Settings, request: &mut Request<'_>) -> Reply {
    let relay = Relay { settings, store: Store::of(settings) };
    match relay.route(request) {
        Ok(reply) => reply,
        Err(refusal) => refusal.reply(),
    }
}

/// Removes what is dead in a session, and tells the peers of what has died.
///
/// # Errors
/// When the data folder cannot be used; a later sweep tries again.
pub fn sweep(settings: &Settings, session: Session) -> Result<(), store::Error> {
    Relay { settings, store: Store::of(settings) }.sweep(session)
}

/// Signs a token for an application.
///
/// # Errors
/// When the secret can neither be read nor made.
pub fn mint(settings: &Settings, token: &Token) -> Result<String, store::Error> {
    Ok(key(settings, &Store::of(settings))?.sign(token, now_s()))
}

fn key(settings: &Settings, store: &Store) -> Result<Key, store::Error> {
    Ok(match &settings.jwt_secret {
        Some(secret) => Key::new(secret.as_bytes()),
        None => Key::new(&store.secret()?),
    })
}

/// Why a request is refused.
#[derive(Debug)]
enum Refusal {
    BadQuery(NotUtf8),
    MethodNotAllowed(&'static str),
    /// Somebody looks what is at this URL.
    NothingAsked,
    NoToken,
    BadToken(TokenError),
    /// The token was good, but its registration or its client has been swept, or another host has registered.
    ExpiredToken,
    ResponseTokenListens,
    UnknownAction,
    MissingHostId,
    BadHostId,
    HostIdTaken,
    UnknownHost,
    HostGone,
    HostNotThere,
    NobodyThere,
    ClientGone,
    NoIdLeft,
    MessagesWait,
    TooManyHosts(u64),
    TooManyClients(u64),
    BadJson(BadJson),
    Body(BodyError),
    /// A broadcast that some clients have and others have not.
    PartlySent {
        sent: usize,
        all: usize,
        cause: store::Error,
    },
    Store(store::Error),
}

impl From<store::Error> for Refusal {
    fn from(error: store::Error) -> Self {
        Self::Store(error)
    }
}

impl Refusal {
    fn status(&self) -> Status {
        match self {
            Self::MethodNotAllowed(_) => Status::MethodNotAllowed,
            Self::NothingAsked | Self::NoToken | Self::BadToken(_) | Self::ExpiredToken => Status::Unauthorized,
            Self::NoIdLeft | Self::MessagesWait | Self::TooManyHosts(_) | Self::TooManyClients(_) => {
                Status::ServiceUnavailable
            }
            Self::Body(error) => error.status(),
            Self::PartlySent { cause: error, .. } | Self::Store(error) => store_status(error),
            Self::BadQuery(_)
            | Self::ResponseTokenListens
            | Self::UnknownAction
            | Self::MissingHostId
            | Self::BadHostId
            | Self::HostIdTaken
            | Self::UnknownHost
            | Self::HostGone
            | Self::HostNotThere
            | Self::NobodyThere
            | Self::ClientGone
            | Self::BadJson(_) => Status::BadRequest,
        }
    }

    fn reply(&self) -> Reply {
        if let Self::Store(error) | Self::PartlySent { cause: error, .. } = self {
            error.log();
        }
        let reply = refuse(self.status(), &self.to_string());
        match self {
            Self::MethodNotAllowed(allow) => reply.header("Allow", *allow),
            _ => reply,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadQuery(error) => error.fmt(f),
            Self::MethodNotAllowed(allow) => write!(f, "This method is not allowed here. Use one of these: {allow}."),
            Self::NothingAsked => f.write_str(concat!(
                "This is uhst-relay ", env!("UHST_RELAY_VERSION"), ", which passes messages between browsers and other programs: \
                 open this URL in a browser to read on. A client adds ?token=…, as ?action=host or ?action=join gave it out."
            )),
            Self::NoToken => f.write_str(
                "There is no token: add ?token=… as ?action=host or ?action=join gave it out. To begin, POST to ?action=host.",
            ),
            Self::BadToken(error) => error.fmt(f),
            Self::ExpiredToken => {
                f.write_str("The token's session is over, or its host has been registered anew: register or join again.")
            }
            Self::ResponseTokenListens => {
                f.write_str("A response token can only send: listen with the token of ?action=host or ?action=join.")
            }
            Self::UnknownAction => f.write_str("There is no such action: use host, join or ping."),
            Self::MissingHostId => f.write_str("The hostId is missing: add &hostId=… of the host to join."),
            Self::BadHostId => {
                write!(f, "The hostId cannot be used: take 1 to {} bytes without control characters.", HostId::LONGEST)
            }
            Self::HostIdTaken => f.write_str("Another host has this hostId: take another one, or none to get a free one."),
            Self::UnknownHost => f.write_str("There is no such host: check the hostId, and that the host is listening."),
            Self::HostGone => f.write_str("The host is not listening any more: nothing was sent."),
            Self::HostNotThere => f.write_str("The host is not listening any more: there is nobody to hear from."),
            Self::NobodyThere => f.write_str("Nobody listens as this host, and it has no clients: nothing was sent."),
            Self::ClientGone => f.write_str("The client is not listening any more: nothing was sent."),
            Self::NoIdLeft => f.write_str("No free host id was found: try again later, or choose a hostId."),
            Self::MessagesWait => f.write_str("Messages for earlier hosts with this hostId wait: try again later, or take another one."),
            Self::TooManyHosts(limit) => write!(f, "The relay has its {limit} hosts (RELAY_MAX_HOSTS): try again later."),
            Self::TooManyClients(limit) => write!(f, "The host has its {limit} clients (RELAY_MAX_CLIENTS): try again later."),
            Self::BadJson(error) => error.fmt(f),
            Self::Body(error) => error.fmt(f),
            Self::PartlySent { sent, all, cause } => write!(f, "{sent} of {all} clients got the message. {cause}"),
            Self::Store(error) => error.fmt(f),
        }
    }
}

struct Relay<'a> {
    settings: &'a Settings,
    store: Store,
}

impl Relay<'_> {
    fn route(&self, request: &mut Request<'_>) -> Result<Reply, Refusal> {
        let method = request.method.as_str();
        if method == "OPTIONS" {
            return Ok(options(request, METHODS));
        }
        if !matches!(method, "GET" | "HEAD" | "POST") {
            return Err(Refusal::MethodNotAllowed(METHODS));
        }
        let query = Query::parse(&request.query).map_err(Refusal::BadQuery)?;
        match (method, query.get("action"), query.get("token")) {
            ("POST", Some("host"), _) => self.register(query.get("hostId")),
            ("POST", Some("join"), _) => self.join(query.get("hostId")),
            ("POST", Some("ping"), _) => {
                health::glance(self.settings)?;
                Ok(ping(query.get("timestamp")))
            }
            (_, Some("host" | "join" | "ping"), _) => Err(Refusal::MethodNotAllowed("POST, OPTIONS")),
            ("POST", None, Some(token)) => self.send(token, request),
            ("GET", None, Some(token)) => self.listen(token, resume_id(&query, request)),
            ("HEAD", None, Some(token)) => self.would_listen(token, resume_id(&query, request)),
            ("GET" | "HEAD", None, None) if request.query.is_empty() => Err(Refusal::NothingAsked),
            (_, None, None) => Err(Refusal::NoToken),
            _ => Err(Refusal::UnknownAction),
        }
    }

    fn key(&self) -> Result<Key, store::Error> {
        key(self.settings, &self.store)
    }

    fn verify(&self, token: &str) -> Result<(Token, Key), Refusal> {
        let key = self.key()?;
        let token = key.verify(token, now_s()).map_err(Refusal::BadToken)?;
        Ok((token, key))
    }

    // ---- POST ?action=host

    fn register(&self, host_id: Option<&str>) -> Result<Reply, Refusal> {
        let key = self.key()?;
        let registration = hex::random(8).map_err(store::Error::from)?;
        let host_id = match host_id {
            Some(host_id) => {
                let host_id = HostId::new(host_id).ok_or(Refusal::BadHostId)?;
                self.take(&host_id, &registration, false)?.then_some(host_id).ok_or(Refusal::HostIdTaken)?
            }
            None => self.take_random(&registration)?,
        };
        let token = Token::Host { host_id: host_id.clone(), registration: Some(registration) };
        let answer = json!({ "hostId": host_id.as_str(), "hostToken": key.sign(&token, now_s()) });
        Ok(Reply::json(Status::Ok, answer.to_string()))
    }

    fn take_random(&self, registration: &str) -> Result<HostId, Refusal> {
        for _ in 0..ID_TRIES {
            let random = u64::from_str_radix(&hex::random(7).map_err(store::Error::from)?, 16).unwrap_or(0);
            let id = match &self.settings.prefix {
                Some(prefix) => format!("{prefix}-{:04}", random % 10_000),
                None => format!("{:06}", random % 1_000_000),
            };
            let host_id = HostId::new(&id).ok_or(Refusal::BadHostId)?;
            if self.take(&host_id, registration, true)? {
                return Ok(host_id);
            }
        }
        Err(Refusal::NoIdLeft)
    }

    /// Registers a host id; false where another host has it. An id that was drawn at random is only taken where there
    /// is no session at all: somebody may still come back to one.
    fn take(&self, host_id: &HostId, registration: &str, only_unused: bool) -> Result<bool, Refusal> {
        let limit = self.settings.max_hosts;
        let mut session = self.store.session_or_new(host_id, limit)?.ok_or(Refusal::TooManyHosts(limit))?;
        if let Some(record) = session.record() {
            let lifetime = self.settings.message_lifetime;
            let presence = session.host().presence()?;
            let taken = match presence {
                Presence::Listening => true,
                Presence::Waiting => is_recent(session.touched()?, OPENING_TIME),
                Presence::Ended { at, told } => !told && !has_passed(at, self.settings.grace),
            };
            // What waits for an application's own host stays with the id, which all of its tokens name.
            let taken = taken || (record.registration.is_none() && session.host().has_message_waiting(lifetime)?);
            if taken || only_unused {
                return Ok(false);
            }
            // Clients of the earlier registration may be listening still; theirs is over. Once is enough.
            if !matches!(presence, Presence::Ended { told: true, .. }) {
                self.tell_clients(&session, host_id)?;
                session.host().set_told()?;
            }
            if !session.end_registration(lifetime)? {
                return Err(Refusal::MessagesWait);
            }
        }
        session.set_record(SessionRecord {
            host_id: host_id.as_str().to_owned(),
            registration: Some(registration.to_owned()),
        })?;
        Ok(true)
    }

    // ---- POST ?action=join

    fn join(&self, host_id: Option<&str>) -> Result<Reply, Refusal> {
        let host_id = host_id.ok_or(Refusal::MissingHostId)?;
        let host_id = HostId::new(host_id).ok_or(Refusal::BadHostId)?;
        let key = self.key()?;
        let session = self.store.session(&host_id)?.ok_or(Refusal::UnknownHost)?;
        if !self.host_is_present(&session)? {
            return Err(Refusal::UnknownHost);
        }
        let client_id = new_client_id()?;
        self.add_client(&session, &client_id)?;
        let registration = session.record().and_then(|record| record.registration.clone());
        drop(session);
        let token = Token::Client { host_id, client_id, registration };
        Ok(Reply::json(Status::Ok, json!({ "clientToken": key.sign(&token, now_s()) }).to_string()))
    }

    fn add_client(&self, session: &Session, client_id: &ClientId) -> Result<(), Refusal> {
        let limit = self.settings.max_clients;
        let clients = session.clients()?;
        // Those who have left are only told apart when there are many.
        if clients.len() as u64 >= limit {
            let (mut present, mut unused) = (0, None);
            for client in &clients {
                let mailbox = session.client(client);
                if !self.client_is_present(&mailbox)? {
                    continue;
                }
                present += 1;
                if let Some(touched) = mailbox.touched()?
                    && !is_recent(touched, UNUSED_TIME)
                    && unused.as_ref().is_none_or(|(oldest, _)| touched < *oldest)
                    && mailbox.is_unused()?
                {
                    unused = Some((touched, mailbox));
                }
            }
            if present >= limit {
                // The oldest that nobody has used gives way.
                unused.ok_or(Refusal::TooManyClients(limit))?.1.remove()?;
            }
        }
        Ok(session.client(client_id).make()?)
    }

    // ---- POST ?token=

    fn send(&self, token: &str, request: &mut Request<'_>) -> Result<Reply, Refusal> {
        let (token, key) = self.verify(token)?;
        let body = request.body.read(self.settings.max_body).map_err(Refusal::Body)?;
        let message = compact(&body).map_err(Refusal::BadJson)?.unwrap_or_else(|| "{}".to_owned());
        match token {
            Token::Client { host_id, client_id, registration } => {
                let response_token = Token::Response { host_id: host_id.clone(), client_id: client_id.clone() };
                let response_token = key.sign(&response_token, now_s());
                let session = self.session_of_client(&host_id, &client_id, registration.as_deref())?;
                if !self.host_is_present(&session)? {
                    return Err(Refusal::HostGone);
                }
                let data = format!(r#"{{"body":{message},"responseToken":"{response_token}"}}"#);
                let knock = self.put(&session.host(), &data)?;
                drop(session);
                drop(knock);
                Ok(Reply::json(Status::Ok, "{}"))
            }
            Token::Response { host_id, client_id } => {
                let session = self.store.session(&host_id)?.ok_or(Refusal::ClientGone)?;
                let client = session.client(&client_id);
                if !self.client_is_present(&client)? {
                    return Err(Refusal::ClientGone);
                }
                let knock = self.put(&client, &format!(r#"{{"body":{message}}}"#))?;
                drop(session);
                drop(knock);
                Ok(Reply::json(Status::Ok, "{}"))
            }
            Token::Host { host_id, registration } => {
                // An application may have minted the token, and nobody used it.
                let session = self.session_of_host(&host_id, registration.as_deref())?.ok_or(Refusal::NobodyThere)?;
                self.broadcast(session, &format!(r#"{{"body":{message}}}"#))
            }
        }
    }

    fn put(&self, mailbox: &Mailbox<'_>, data: &str) -> Result<LateKnock, store::Error> {
        mailbox.put(data, Some(self.settings.max_queue))
    }

    /// Sends to every client that is present. One that reads too slowly, or whose mailbox is damaged, does not keep the others
    /// from it. All are woken after the lock: a thousand who wake at once would want it too.
    fn broadcast(&self, session: Session, data: &str) -> Result<Reply, Refusal> {
        let mut answer = serde_json::Map::new();
        let mut knocks = Vec::new();
        let (mut failure, mut damage) = (None, None);
        for client_id in session.clients()? {
            let client = session.client(&client_id);
            let put = self
                .client_is_present(&client)
                .and_then(|is_present| is_present.then(|| self.put(&client, data)).transpose());
            let sent = match put {
                Ok(None) => continue,
                Ok(Some(knock)) => {
                    knocks.push(knock);
                    true
                }
                Err(store::Error::QueueFull(_)) => false,
                Err(error @ (store::Error::Unusable(_) | store::Error::Io(_))) => {
                    damage = Some(error);
                    false
                }
                Err(error) => {
                    failure = Some(error);
                    false
                }
            };
            answer.insert(client_id.as_str().to_owned(), sent.into());
        }
        // Clients may wait for a host that has yet to come; a message that reaches nobody need not.
        if answer.is_empty() && (session.host().presence()? == Presence::Waiting || !self.host_is_present(&session)?) {
            return Err(Refusal::NobodyThere);
        }
        drop(session);
        if let Some(error) = damage {
            // Where nobody has got it, it is not one mailbox that is damaged.
            if knocks.is_empty() {
                failure = failure.or(Some(error));
            } else {
                error.log();
            }
        }
        drop(knocks);
        match failure {
            None => Ok(Reply::json(Status::Ok, serde_json::Value::Object(answer).to_string())),
            Some(cause) => {
                let sent = answer.values().filter(|sent| **sent == true).count();
                Err(Refusal::PartlySent { sent, all: answer.len(), cause })
            }
        }
    }

    // ---- GET ?token=

    fn listen(&self, token: &str, resume: Option<u64>) -> Result<Reply, Refusal> {
        let (token, _) = self.verify(token)?;
        let (lifetime, most) = (self.settings.message_lifetime, self.settings.max_queue);
        let session = match self.session_to_hear(&token, resume)? {
            Some(session) => session,
            None => self.session_for_minted(token.host_id())?,
        };
        let listener = mailbox_of(&session, &token).listen(resume, lifetime, most)?;
        drop(session);
        let settings = self.settings.clone();
        let stream = move |out: &mut Outgoing| {
            let mut listener = listener;
            let relay = Relay { store: Store::of(&settings), settings: &settings };
            let mut listening = Listening { relay: &relay, token: &token, missing: 0, sweeps: !out.is_own() };
            let mut unsent = Unsent::after(listener.position());
            let end = sse::feed(out, &mut listener, &mut unsent, &mut listening, &settings);
            if matches!(end, End::Gone | End::Stopped)
                && let Err(error) = relay.end(&token, &listener)
            {
                error.log();
            }
            match end {
                // All streams of this process end at this moment; so they hear of each other. A web server that stops
                // us has closed the client's connection already.
                End::Stopped if out.is_own() => sse::last_words(out, &mut listener, &mut unsent, LAST_WORDS_TIME),
                End::Over => {
                    if let Token::Client { host_id, .. } = &token {
                        // Its session is gone, and the mailbox with the host's own closed event in it.
                        unsent.add_event("relay_event", &relay_event("host_closed", host_id.as_str()));
                    }
                    sse::last_words(out, &mut listener, &mut unsent, Duration::ZERO);
                }
                _ => {}
            }
        };
        Ok(Reply { content: Content::Stream(Box::new(stream)), ..stream_head() })
    }

    /// What GET would answer, without listening: a HEAD must not take the stream away from whoever has it.
    fn would_listen(&self, token: &str, resume: Option<u64>) -> Result<Reply, Refusal> {
        let (token, _) = self.verify(token)?;
        self.session_to_hear(&token, resume)?;
        Ok(Reply { content: Content::Stream(Box::new(|_| ())), ..stream_head() })
    }

    /// The session in which a token may listen. `None` where an application has minted it and there is no session yet.
    fn session_to_hear(&self, token: &Token, resume: Option<u64>) -> Result<Option<Session>, Refusal> {
        let session = match token {
            Token::Host { host_id, registration } => self.session_of_host(host_id, registration.as_deref()),
            Token::Client { host_id, client_id, registration } => {
                self.session_of_client(host_id, client_id, registration.as_deref()).and_then(|session| {
                    self.check_worth_listening(&session, &session.client(client_id), resume)?;
                    Ok(Some(session))
                })
            }
            Token::Response { .. } => Err(Refusal::ResponseTokenListens),
        };
        match session {
            Err(Refusal::ExpiredToken) => {
                // What it was promised may wait for it still.
                let former = self.former_session(token)?.ok_or(Refusal::ExpiredToken)?;
                let has_waiting = mailbox_of(&former, token).has_waiting(resume)?;
                if has_waiting { Ok(Some(former)) } else { Err(Refusal::ExpiredToken) }
            }
            other => other,
        }
    }

    /// The session of an earlier registration, see [`Store::former_session`].
    fn former_session(&self, token: &Token) -> Result<Option<Session>, store::Error> {
        match token {
            Token::Host { host_id, registration: Some(registration) }
            | Token::Client { host_id, registration: Some(registration), .. } => {
                self.store.former_session(host_id, registration)
            }
            _ => Ok(None),
        }
    }

    /// A client whose host has left may only fetch what is waiting, the host's closed event among it.
    fn check_worth_listening(
        &self,
        session: &Session,
        client: &Mailbox<'_>,
        resume: Option<u64>,
    ) -> Result<(), Refusal> {
        let worth = self.host_is_present(session)? || client.has_waiting(resume)?;
        if worth { Ok(()) } else { Err(Refusal::HostNotThere) }
    }

    // ---- who is who

    /// The session of a host's token. `None` where an application has minted the token and there is no session yet.
    fn session_of_host(&self, host_id: &HostId, registration: Option<&str>) -> Result<Option<Session>, Refusal> {
        let session = self.store.session(host_id)?;
        let Some(registration) = registration else {
            if let Some(session) = &session {
                self.keep(session.touched()?, || session.touch())?;
            }
            return Ok(session);
        };
        let session = session.ok_or(Refusal::ExpiredToken)?;
        let touched = session.touched()?;
        if session.record().and_then(|record| record.registration.as_deref()) != Some(registration)
            || self.is_over(&session.host(), touched)?
        {
            return Err(Refusal::ExpiredToken);
        }
        self.keep(touched, || session.touch())?;
        Ok(Some(session))
    }

    fn session_for_minted(&self, host_id: &HostId) -> Result<Session, Refusal> {
        let limit = self.settings.max_hosts;
        let mut session = self.store.session_or_new(host_id, limit)?.ok_or(Refusal::TooManyHosts(limit))?;
        if session.record().is_none() {
            session.set_record(SessionRecord { host_id: host_id.as_str().to_owned(), registration: None })?;
        }
        Ok(session)
    }

    /// The session of a client's token. A client that an application has minted is added when it first appears.
    fn session_of_client(
        &self,
        host_id: &HostId,
        client_id: &ClientId,
        registration: Option<&str>,
    ) -> Result<Session, Refusal> {
        let session = self.store.session(host_id)?;
        let Some(registration) = registration else {
            let session = session.ok_or(Refusal::UnknownHost)?;
            let client = session.client(client_id);
            if client.touched()?.is_none() {
                session.reclaim(client_id)?;
            }
            match client.touched()? {
                Some(touched) => self.keep(touched, || client.touch())?,
                None if self.host_is_present(&session)? => self.add_client(&session, client_id)?,
                None => return Err(Refusal::UnknownHost),
            }
            return Ok(session);
        };
        let session = session.ok_or(Refusal::ExpiredToken)?;
        let client = session.client(client_id);
        let touched = client.touched()?.ok_or(Refusal::ExpiredToken)?;
        if session.record().and_then(|record| record.registration.as_deref()) != Some(registration)
            || self.is_over(&client, touched)?
        {
            return Err(Refusal::ExpiredToken);
        }
        self.keep(touched, || client.touch())?;
        Ok(session)
    }

    /// Makes something count as used, unless it was a moment ago.
    fn keep(&self, touched: SystemTime, touch: impl FnOnce() -> Result<(), store::Error>) -> Result<(), store::Error> {
        if is_recent(touched, self.settings.session_lifetime.min(UNUSED_TIME) / 4) { Ok(()) } else { touch() }
    }

    /// Whether a mailbox has outlived its session lifetime: neither listened to, nor used, nor with a message that was
    /// promised to be kept.
    fn is_over(&self, mailbox: &Mailbox<'_>, touched: SystemTime) -> Result<bool, store::Error> {
        let lifetime = self.settings.session_lifetime;
        match mailbox.presence()? {
            Presence::Listening => return Ok(false),
            Presence::Ended { at, .. } if !has_passed(at, lifetime) => return Ok(false),
            Presence::Ended { .. } | Presence::Waiting => {}
        }
        Ok(!is_recent(touched, lifetime) && !self.is_promised(mailbox)?)
    }

    /// Whether a mailbox has a message that was promised to be kept, or a stream was given it and may have lost it.
    fn is_promised(&self, mailbox: &Mailbox<'_>) -> Result<bool, store::Error> {
        Ok(mailbox.last_message()?.is_some_and(|at| is_recent(at, self.settings.message_lifetime)))
    }

    fn host_is_present(&self, session: &Session) -> Result<bool, store::Error> {
        self.is_present(&session.host(), || session.touched().map(Some))
    }

    fn client_is_present(&self, client: &Mailbox<'_>) -> Result<bool, store::Error> {
        self.is_present(client, || client.touched())
    }

    /// Whether messages are taken for a mailbox.
    fn is_present(
        &self,
        mailbox: &Mailbox<'_>,
        touched: impl FnOnce() -> Result<Option<SystemTime>, store::Error>,
    ) -> Result<bool, store::Error> {
        Ok(match mailbox.presence()? {
            Presence::Listening => true,
            Presence::Waiting => touched()?.is_some_and(|at| is_recent(at, self.settings.session_lifetime)),
            Presence::Ended { at, told } => !told && !has_passed(at, self.settings.grace),
        })
    }

    // ---- closed events

    /// Tells the peers of every stream of the session that has ended, once its grace is over.
    fn tell_all(&self, session: &Session, host_id: &HostId) -> Result<(), store::Error> {
        self.tell_of_host(session, host_id)?;
        let mut outcome = Ok(());
        for client_id in session.clients()? {
            outcome = outcome.and(self.tell_of_client(session, &client_id));
        }
        outcome
    }

    /// How many bytes may wait for one recipient before it is told no more: there is always room after its messages, but a crowd
    /// that comes and goes does not fill the disk.
    fn most_told(&self) -> u64 {
        self.settings.max_queue.saturating_mul(2)
    }

    fn tell_of_host(&self, session: &Session, host_id: &HostId) -> Result<(), store::Error> {
        if self.is_news(&session.host())? {
            self.tell_clients(session, host_id)?;
            session.host().set_told()?;
        }
        Ok(())
    }

    fn tell_of_client(&self, session: &Session, client_id: &ClientId) -> Result<(), store::Error> {
        let client = session.client(client_id);
        if self.is_news(&client)? {
            let event = relay_event("client_closed", client_id.as_str());
            session.host().tell("relay_event", &event, self.most_told())?;
            client.set_told()?;
        }
        Ok(())
    }

    fn is_news(&self, mailbox: &Mailbox<'_>) -> Result<bool, store::Error> {
        Ok(matches!(mailbox.presence()?, Presence::Ended { at, told: false } if has_passed(at, self.settings.grace)))
    }

    /// Notes that a stream has ended, and tells its peers unless it may still come back unnoticed.
    fn end(&self, token: &Token, listener: &Listener) -> Result<(), store::Error> {
        let Some(session) = self.store.session(token.host_id())? else { return Ok(()) };
        if !mailbox_of(&session, token).end(listener)? {
            return Ok(());
        }
        match token {
            Token::Host { host_id, .. } => self.tell_of_host(&session, host_id),
            Token::Client { client_id, .. } | Token::Response { client_id, .. } => {
                self.tell_of_client(&session, client_id)
            }
        }
    }

    /// Every client, also one that is away and may come back. One whose mailbox is broken does not keep the others from
    /// knowing.
    fn tell_clients(&self, session: &Session, host_id: &HostId) -> Result<(), store::Error> {
        let event = relay_event("host_closed", host_id.as_str());
        for client_id in session.clients()? {
            match session.client(&client_id).tell("relay_event", &event, self.most_told()) {
                Ok(()) => {}
                // Tried again with the next look; until then some hear it twice, which is better than never.
                Err(error @ store::Error::DiskFull(_)) => return Err(error),
                Err(error) => error.log(),
            }
        }
        Ok(())
    }

    // ---- the sweep

    fn sweep(&self, session: Session) -> Result<(), store::Error> {
        let host_id = session.record().and_then(|record| HostId::new(&record.host_id));
        let Some(host_id) = host_id else {
            // Never finished, or damaged. Somebody may be about to register it.
            let is_old = !is_recent(session.touched()?, OPENING_TIME);
            return if is_old { session.remove() } else { Ok(()) };
        };
        self.tell_all(&session, &host_id)?;
        let host_is_over = self.is_over(&session.host(), session.touched()?)?;
        if host_is_over && session.host().presence()? == Presence::Waiting {
            // One that never opened has not been told of yet.
            self.tell_clients(&session, &host_id)?;
            session.host().set_told()?;
        }
        let mut is_promised = session.tidy_former(self.settings.message_lifetime)? > 0;
        for client_id in session.clients()? {
            let client = session.client(&client_id);
            is_promised |= self.is_promised(&client)?;
            if let Some(touched) = client.touched()?
                && self.is_over(&client, touched)?
            {
                client.remove()?;
            }
        }
        // Whatever has become of the host, its clients may come for their messages.
        if host_is_over && !is_promised { session.remove() } else { Ok(()) }
    }
}

/// What a stream does besides delivering.
struct Listening<'a> {
    relay: &'a Relay<'a>,
    token: &'a Token,
    /// For how many rounds its session has been missing.
    missing: u32,
    /// Whether it sweeps now and then: not where the process has a thread for that.
    sweeps: bool,
}

impl Listening<'_> {
    /// A session that a stranger has removed is made anew by its host's stream within a round. A client's waits for that.
    const ROUNDS_WITHOUT_SESSION: u32 = 2;

    /// After somebody has removed files under the running stream: makes them anew, unless the host has been registered
    /// anew meanwhile or the session is gone for good. False when the stream is over.
    fn regain(&mut self, listener: &mut Listener) -> Result<bool, store::Error> {
        let Relay { store, .. } = self.relay;
        let (host_id, registration) = match self.token {
            Token::Host { host_id, registration } | Token::Client { host_id, registration, .. } => {
                (host_id, registration)
            }
            Token::Response { .. } => return Ok(false),
        };
        let mut session = match self.token {
            Token::Host { .. } => store.session_or_new(host_id, u64::MAX)?,
            _ => store.session(host_id)?,
        };
        let Some(session) = &mut session else {
            self.missing += 1;
            return Ok(self.missing < Self::ROUNDS_WITHOUT_SESSION);
        };
        if session.record().is_none() {
            session.set_record(SessionRecord {
                host_id: host_id.as_str().to_owned(),
                registration: registration.clone(),
            })?;
        }
        if session.record().is_none_or(|record| record.registration != *registration && registration.is_some()) {
            return Ok(false);
        }
        say!("uhst-relay: files of a running stream were removed; they are made anew");
        mailbox_of(session, self.token).listen_again(listener)?;
        Ok(true)
    }
}

impl Care<Listener> for Listening<'_> {
    fn round(&mut self, listener: &mut Listener, standing: Standing) -> Result<bool, store::Error> {
        if standing == Standing::Lost {
            return self.regain(listener);
        }
        self.missing = 0;
        let Relay { settings, store } = self.relay;
        let (host_id, is_host) = (self.token.host_id(), matches!(self.token, Token::Host { .. }));
        if listener.has_lost_wake()?
            && let Some(session) = store.session(host_id)?
        {
            mailbox_of(&session, self.token).mend_wake(listener)?;
        }
        if let Some(keep_from) = listener.can_go(settings.max_queue)?
            && let Some(session) = store.session(host_id)?
        {
            mailbox_of(&session, self.token).compact(listener, keep_from)?;
        }
        if store.has_news(host_id, is_host, settings.grace)
            && let Some(session) = store.session(host_id)?
        {
            if is_host {
                self.relay.tell_all(&session, host_id)?;
            } else {
                self.relay.tell_of_host(&session, host_id)?;
            }
        }
        if self.sweeps && store.sweep_is_due() {
            super::sweep_some(settings);
        }
        Ok(true)
    }
}

fn mailbox_of<'s>(session: &'s Session, token: &Token) -> Mailbox<'s> {
    match token {
        Token::Host { .. } => session.host(),
        Token::Client { client_id, .. } | Token::Response { client_id, .. } => session.client(client_id),
    }
}

fn ping(timestamp: Option<&str>) -> Reply {
    let number = timestamp.filter(|text| serde_json::from_str::<serde_json::Number>(text).is_ok()).unwrap_or("null");
    Reply::json(Status::Ok, format!(r#"{{"pong":{}}}"#, number.trim()))
}

fn relay_event(event_type: &str, body: &str) -> String {
    format!(r#"{{"eventType":"{event_type}","body":{}}}"#, json!(body))
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
    fn a_client_id_is_a_uuid_of_version_4() {
        for _ in 0..50 {
            let id = new_client_id().unwrap();
            let parts: Vec<_> = id.as_str().split('-').collect();
            assert_eq!(parts.iter().map(|part| part.len()).collect::<Vec<_>>(), [8, 4, 4, 4, 12]);
            assert!(parts[2].starts_with('4') && parts[3].starts_with(['8', '9', 'a', 'b']));
        }
    }
}
