//! What a far end asks of the relay: requests, and to take its answers.

use super::super::partner::Wait;
use super::head::{self, AnswerHead};
use crate::gateway::{Content, Producer, Reply, Request, Status, Woken};
use crate::ptth::{HEAD_FIELD, KEY_FIELD, ResponseHead, ServerName, Tripcode, WireError, join_list};
use crate::refusal::Refusal;
use crate::store::requests::{Claimed, RequestId};
use crate::store::{Store, WaitingFarEnd, look_every};
use crate::transfer::{self, End, Feed};
use std::time::Duration;

/// How long a far end waits for a request.
const LISTEN_TIME: Duration = Duration::from_secs(25);

/// The requests that one far end is given at once; others may come for more.
const MOST_CLAIMED: usize = 32;

fn wrong_key() -> Refusal {
    Refusal::new(Status::Unauthorized, "There is no such server with this key: register it at the relay.")
}

/// The servers whose key was sent. All are looked at, and tripcodes are compared in constant time, so that the time it
/// takes tells nothing.
async fn servers_of_key(store: &Store, request: &Request<'_>) -> Result<Vec<ServerName>, Refusal> {
    let key = (request.header)(&KEY_FIELD.to_ascii_lowercase()).ok_or_else(|| {
        let sentence = format!("The server's key is missing: send it in the header field {KEY_FIELD}.");
        Refusal::new(Status::Forbidden, sentence)
    })?;
    let tripcode = Tripcode::of(&key);
    let servers = store.ptth_servers().await?;
    let of_key = servers.iter().filter(|(_, server)| server.tripcode == tripcode);
    Ok(of_key.map(|(name, _)| name.clone()).collect())
}

// ---- GET /7ZSFUKGV/http_listen/NAME

/// A far end looks for requests itself as often, because a call may get lost: where there are no FIFOs, say.
const UNHEARD: Duration = Duration::from_secs(5);

/// Waits for requests to the server of this name.
pub(super) async fn listen(store: &Store, name: &str, request: &mut Request<'_>) -> Result<Reply, Refusal> {
    let wait = Wait::begin(LISTEN_TIME);
    if request.client.wait(&mut [], false, Duration::ZERO).await == Woken::HungUp {
        return Err(Refusal::hung_up());
    }
    let mut far_end: Option<WaitingFarEnd> = None;
    let mut is_over = false;
    loop {
        // Each time: the key may have been withdrawn while its far end waits, and others have another one.
        let of_key = servers_of_key(store, request).await?;
        let Some(name) = of_key.into_iter().find(|server| server.as_str() == name) else {
            if let Some(far_end) = far_end {
                far_end.leave().await;
            }
            return Err(wrong_key());
        };
        let here = match &mut far_end {
            Some(here) => here,
            none => none.insert(store.listen_for_requests(&name).await?),
        };
        // At first, once it listens so that none comes in between, when it is called, and at last.
        let claimed = here.claim(MOST_CLAIMED).await?;
        if !claimed.is_empty() || is_over {
            if let Some(far_end) = far_end {
                far_end.leave().await;
            }
            return Ok(give(store.clone(), name, claimed));
        }
        is_over = !wait.sleep(request.client, &mut [&mut here.awaited()], UNHEARD.min(look_every())).await?;
    }
}

/// The answer to a far end: its requests. They are given back when it has gone meanwhile.
fn give(store: Store, name: ServerName, claimed: Vec<Claimed>) -> Reply {
    if claimed.is_empty() {
        return Reply::empty(Status::NoContent).header("Cache-Control", "no-store");
    }
    let (ids, requests): (Vec<_>, Vec<_>) = claimed.into_iter().map(|claimed| (claimed.id, claimed.request)).unzip();
    let list = join_list(&requests);
    let length = list.len() as u64;
    let produce: Producer = Box::new(move |out| {
        Box::pin(async move {
            // What it has not taken when it hangs up, it may have lost.
            let is_taken = transfer::write_all(out, &list).await
                && matches!(out.wait(&mut [], true, transfer::IDLE).await, Woken::Writable | Woken::Stopped);
            if !is_taken && let Err(error) = store.give_back(&name, &ids).await {
                error.log();
            }
        })
    });
    Reply { content: Content::Sized(length, produce), ..Reply::empty(Status::Ok) }
        .header("Content-Type", "application/octet-stream")
        .header("Cache-Control", "no-store")
}

// ---- POST /7ZSFUKGV/http_response/ID

/// Takes the answer to the request `id`.
pub(super) async fn respond(store: &Store, id: &str, request: &mut Request<'_>) -> Result<Reply, Refusal> {
    let bad = |sentence: String| Refusal::new(Status::BadRequest, sentence);
    let unknown = || bad("There is no such request: its client has gone, or it has been answered already.".to_owned());
    let no_head = || bad(format!("The head of the answer is missing: send it in the header field {HEAD_FIELD}."));
    let bad_head = |error| bad(format!("The head of the answer cannot be used. {error}"));
    let client_left = || Refusal::new(Status::Gone, "The client has gone before it had all of the answer.");
    let names = servers_of_key(store, request).await?;
    if names.is_empty() {
        return Err(wrong_key());
    }
    let id = RequestId::parse(id).ok_or_else(unknown)?;
    let value = (request.header)(&HEAD_FIELD.to_ascii_lowercase()).ok_or_else(no_head)?;
    // One that is too large, or well formed but cannot be passed on, is an answer, if a bad one: the client is told.
    let (value, decoded) = if value.len() > head::MOST {
        (String::new(), Err(WireError::TooLarge))
    } else {
        let decoded = ResponseHead::decode(&value);
        (value, decoded)
    };
    if let Err(error @ (WireError::NotBase64 | WireError::Malformed)) = decoded {
        return Err(bad_head(error));
    }
    let mut answer = store.answer_request(&names, &id).await?.ok_or_else(unknown)?;
    let head = AnswerHead { length: request.body.length, head: &value };
    let client = &mut *request.client;
    let mut feed = Feed::new(&mut request.body);
    let is_sent = feed.send_head(answer.sender(), &head.encode());
    let mut sender = answer.begin().await;
    if !is_sent {
        return Err(client_left());
    }
    if let Err(error) = decoded {
        return Err(bad_head(error));
    }
    let end = feed.send(&mut sender, None, client).await;
    let has_all = sender.taken()? == Some(feed.given());
    match end {
        End::ReceiverLeft if has_all && !sender.is_open() => {}
        End::ReceiverLeft if has_all && feed.given() == 0 => {
            // An answer without a body. A far end that has announced one all the same may never send it.
            request.body.reader.give_time(Duration::ZERO);
        }
        // Nobody sends it away from an answer.
        End::ReceiverLeft | End::ReceiverStuck | End::SentAway => {
            feed.drop_rest().await;
            return Err(client_left());
        }
        End::HungUp => return Err(Refusal::hung_up()),
        End::Stopped => return Err(Refusal::stopping()),
        End::Body(error) => return Err(error.into()),
    }
    Ok(Reply::json(Status::Ok, "{}"))
}
