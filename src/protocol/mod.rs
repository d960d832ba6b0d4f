//! What is said: the router, and one file a protocol, its routes first.

pub mod bus;
pub mod cama;
mod cors;
mod event_stream;
pub mod page;
mod partner;
pub mod ptth;
pub mod query;
pub mod uhst;
pub mod ws;

use crate::config::{SettingError, Settings};
use crate::gateway::{Answering, Application, Reply, Request, Status};
use crate::refusal::Refusal;
use crate::store::{self, Store};
use crate::workers::wait;
use cors::{origin_is_allowed, with_cors};

/// The relay, as the doors see it.
pub struct Relay;

impl Application for Relay {
    fn answer<'a>(&'a self, settings: &'static Settings, request: &'a mut Request<'_>) -> Answering<'a> {
        Box::pin(answer(settings, request))
    }

    fn answer_without_settings(&self, error: &SettingError, request: &Request<'_>) -> Reply {
        if page::is_asked_for(request) {
            return wait(page::answer(Err(error), request));
        }
        let refusal = Refusal::new(Status::InternalServerError, error.to_string());
        page::for_people(request, refusal.field("Access-Control-Allow-Origin", "*").reply())
    }

    fn refuse(&self, settings: &Settings, request: &Request<'_>, refusal: Reply) -> Reply {
        with_cors(settings, request, page::for_people(request, refusal))
    }

    fn takes_post_without_length(&self, path: &str) -> bool {
        ptth::takes_answers(path)
    }

    fn has_work(&self, settings: &Settings) -> bool {
        wait(Store::of(settings).sweep_is_due())
    }

    fn work(&self, settings: &Settings) {
        wait(Store::of(settings).sweep_if_due(&uhst::policy(settings)));
    }
}

/// Answers a request: decides whose it is, and lets browsers of other origins read the answer.
async fn answer(settings: &'static Settings, request: &mut Request<'_>) -> Reply {
    let reply = if !origin_is_allowed(settings, request) {
        Refusal::new(Status::Forbidden, "This web origin is not in the relay's RELAY_ALLOWED_ORIGINS.").reply()
    } else if let "" | "/" = request.path.as_str() {
        match page::application(request) {
            Some(application) => application,
            None if page::is_asked_for(request) => page::answer(Ok(settings), request).await,
            None => uhst::answer(settings, request).await,
        }
    } else if let Some(name) = bus::name(&request.path).map(str::to_owned) {
        if request.method == "GET" && ws::is_asked_for(request) {
            ws::answer(settings, request, &name).await
        } else {
            bus::answer(settings, request, &name).await
        }
    } else if let Some(name) = ws::name(&request.path).map(str::to_owned) {
        ws::answer(settings, request, &name).await
    } else if let Some(id) = cama::session_of(&request.path) {
        cama::answer(settings, &id, request).await
    } else if ptth::is_its_own(&request.path) {
        // What an application behind it says of other origins is its own business.
        let reply = ptth::answer(settings, request).await;
        return page::for_people(request, reply);
    } else {
        Refusal::new(
            Status::NotFound,
            "There is nothing at this path. After the relay's own URL there may be /bus/NAME (a bus), /cama/session (pipes), /frontend/servers/NAME/ (a server of PTTH) or /ws/CHANNEL (WebSockets).",
        )
        .reply()
    };
    with_cors(settings, request, page::for_people(request, reply))
}

/// Does the whole sweep.
///
/// # Errors
/// The first failure.
pub fn sweep_all(settings: &Settings) -> Result<(), store::Error> {
    wait(Store::of(settings).sweep_all(&uhst::policy(settings)))
}
