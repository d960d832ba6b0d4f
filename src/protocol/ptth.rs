//! PTTH, HTTP backwards: a server behind a firewall is reached through the relay, which it asks for requests.
//!
#![doc = include_str!("ptth.md")]
//!
//! # In the code
//!
//! What is in a list of requests and in the head of an answer is in [`crate::ptth`].

mod ask;
mod far_end;
mod head;
mod list;

use super::cors::{options, with_cors};
use crate::config::Settings;
use crate::gateway::{Reply, Request, Status};
use crate::ptth::PREFIX;
use crate::refusal::Refusal;
use crate::store::Store;
use ask::{FRONTEND, METHODS, base};

/// Whether a path is one of this protocol's.
#[must_use]
pub fn is_its_own(path: &str) -> bool {
    path.split('/').nth(1).is_some_and(|first| first == PREFIX || first == FRONTEND)
}

/// Whether answers of far ends come to a path.
#[must_use]
pub fn takes_answers(path: &str) -> bool {
    path.strip_prefix('/')
        .and_then(|path| path.strip_prefix(PREFIX))
        .is_some_and(|path| path.starts_with("/http_response/"))
}

/// Answers a request to a path that [is its own](is_its_own), with what pages of other origins want to see, unless a server
/// behind the relay has answered.
pub async fn answer(settings: &Settings, request: &mut Request<'_>) -> Reply {
    let store = Store::of(settings);
    let path = request.raw_path.clone();
    let answer = match to_server(&path) {
        // Any other protocol may be ignored, as curl's h2c is (RFC 9110, 7.8); a page instead of this one would be a riddle.
        Some(_) if super::ws::is_wanted(request) => Err(no_upgrade()),
        Some((name, rest)) => {
            let asked = match of_methods(request, METHODS) {
                Ok(()) => ask::ask(settings, &store, &name, rest, request).await,
                Err(refusal) => Err(refusal),
            };
            match asked {
                // It says for itself which origins may read it; nothing is added.
                Ok(reply) => return reply,
                refused => refused,
            }
        }
        None => route(&store, &path, request).await,
    };
    let reply = answer.unwrap_or_else(|refusal| refusal.reply_to(request));
    with_cors(settings, request, reply)
}

async fn route(store: &Store, path: &str, request: &mut Request<'_>) -> Result<Reply, Refusal> {
    let ([first, second, third], rest) = parts(path);
    match (first.as_str(), second.as_str(), third.as_str(), rest) {
        (PREFIX, "http_listen", name, None) if !name.is_empty() => {
            of_methods(request, "GET")?;
            far_end::listen(store, name, request).await
        }
        (PREFIX, "http_response", id, None) if !id.is_empty() => {
            of_methods(request, "POST")?;
            far_end::respond(store, id, request).await
        }
        (FRONTEND, "servers", "", None) => read_only(request, list::list(store, request)).await,
        (FRONTEND, "servers", _, None) if super::ws::is_wanted(request) => Err(no_upgrade()),
        (FRONTEND, "servers", name, None) => {
            read_only(request, async {
                let (name, _) = ask::server(store, name).await?;
                // So that links in what is there lead below it.
                Ok(Reply::empty(Status::Passed(307)).header("Location", format!("{}/", base(request, &name))))
            })
            .await
        }
        (FRONTEND, "relay_up_check", "", None) => {
            read_only(request, async { Ok(Reply::json(Status::Ok, "{}").header("Cache-Control", "no-store")) }).await
        }
        _ => Err(Refusal::new(
            Status::NotFound,
            "There is nothing at this path: a server is at /frontend/servers/NAME/.",
        )),
    }
}

fn no_upgrade() -> Refusal {
    Refusal::new(
        Status::NotImplemented,
        "No WebSocket passes through PTTH: the application's own are at this relay's /ws/CHANNEL.",
    )
}

/// The first parts of a path, decoded, and the rest as it came.
fn parts(path: &str) -> ([String; 3], Option<&str>) {
    let mut parts = path.splitn(5, '/').skip(1);
    let mut part = || parts.next().and_then(|part| urlencoding::decode(part).ok()).unwrap_or_default().into_owned();
    let first = [part(), part(), part()];
    (first, parts.next())
}

/// The server to which a path belongs, and the path there.
fn to_server(path: &str) -> Option<(String, &str)> {
    let ([first, second, name], rest) = parts(path);
    rest.filter(|_| first == FRONTEND && second == "servers" && !name.is_empty()).map(|rest| (name, rest))
}

async fn read_only(
    request: &Request<'_>,
    answer: impl Future<Output = Result<Reply, Refusal>>,
) -> Result<Reply, Refusal> {
    if request.method == "OPTIONS" {
        return Ok(options(request, METHODS));
    }
    of_methods(request, METHODS)?;
    answer.await
}

fn of_methods(request: &Request<'_>, methods: &'static str) -> Result<(), Refusal> {
    if methods.split(", ").any(|method| method == request.method) {
        Ok(())
    } else {
        Err(Refusal::method_not_allowed(methods))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_its_own_by_its_first_part() {
        for path in ["/7ZSFUKGV/x", "/frontend", "/frontend/", "/frontend/servers/a/b"] {
            assert!(is_its_own(path), "{path}");
        }
        for path in ["", "/", "frontend", "/frontends/", "/x/frontend/", "/7zsfukgv/"] {
            assert!(!is_its_own(path), "{path}");
        }
    }
}
