//! The list of servers, for programs and for people.

use super::super::page;
use super::ask::base;
use crate::clock::is_recent;
use crate::gateway::{Reply, Request, Status};
use crate::ptth::ServerName;
use crate::refusal::Refusal;
use crate::store::Store;
use crate::store::requests::FarEnds;
use std::fmt::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A far end that asked last so long ago counts as connected: it will ask again once it has its requests.
const BETWEEN_QUESTIONS: Duration = Duration::from_secs(5);

/// The servers that their operator wants to be listed.
pub(super) async fn list(store: &Store, request: &Request<'_>) -> Result<Reply, Refusal> {
    let mut listed = Vec::new();
    for (name, server) in store.ptth_servers().await?.iter().filter(|(_, server)| server.listed) {
        let FarEnds { seen, is_listening } = store.far_ends(name).await?;
        let display_name = server.display_name.clone().unwrap_or_else(|| name.to_string());
        let is_connected = is_listening || seen.is_some_and(|seen| is_recent(seen, BETWEEN_QUESTIONS));
        let (url, name) = (base(request, name) + "/", name.clone());
        listed.push(Listed { name, url, display_name, seen, is_connected });
    }
    let is_browser = (request.header)("accept").is_some_and(|accept| page::names_html(&accept));
    let reply = if is_browser {
        page::document(Status::Ok, "Servers", &html(&listed))
    } else {
        let listed: Vec<_> = listed.iter().map(Listed::json).collect();
        Reply::json(Status::Ok, format!(r#"{{"servers":[{}]}}"#, listed.join(","))).header("Cache-Control", "no-store")
    };
    Ok(reply.header("Vary", "Accept"))
}

struct Listed {
    name: ServerName,
    url: String,
    display_name: String,
    seen: Option<SystemTime>,
    is_connected: bool,
}

impl Listed {
    fn json(&self) -> String {
        let since = self.seen.and_then(|seen| seen.duration_since(UNIX_EPOCH).ok());
        format!(
            r#"{{"name":"{}","displayName":{},"lastSeen":{},"connected":{}}}"#,
            self.name,
            serde_json::Value::from(self.display_name.as_str()),
            since.map_or_else(|| "null".to_owned(), |since| since.as_millis().to_string()),
            self.is_connected
        )
    }
}

fn html(listed: &[Listed]) -> String {
    let mut rows = String::new();
    for Listed { url, display_name, seen, is_connected, .. } in listed {
        let seen = seen.map_or_else(|| "never".to_owned(), |seen| httpdate::HttpDate::from(seen).to_string());
        let _ = writeln!(
            rows,
            "<tr><td><a href=\"{}\">{}</a></td><td>{}</td><td>{seen}</td></tr>",
            page::escape(url),
            page::escape(display_name),
            if *is_connected { "connected" } else { "not connected" },
        );
    }
    let table = if rows.is_empty() {
        "<p>No server is listed.</p>".to_owned()
    } else {
        format!(
            "<table>\n<thead><tr><th>Server</th><th>State</th><th>Last seen</th></tr></thead>\n\
             <tbody>\n{rows}</tbody>\n</table>"
        )
    };
    format!("<section><h2>Servers</h2>{table}</section>")
}
