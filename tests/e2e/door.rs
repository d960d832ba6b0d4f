//! The ways to the relay that a test can take.

use crate::bare::Bare;
use crate::machines::Machines;
use crate::place::{have, skip, write_settings};
use crate::proxies::Proxy;
use crate::relay::Relay;
use crate::serve::Serve;
use crate::server::Server;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    Lighttpd,
    ApacheEvent,
    ApachePrefork,
    MiniHttpd,
    NginxFcgiwrap,
    Bare,
    Serve,
    /// `serve` behind a reverse proxy, below the path `/relay/`.
    Behind(Proxy),
    /// One after the other of three machines that share a Redis: `serve`, lighttpd, and another `serve`.
    Machines,
}

impl Door {
    /// A fresh relay, or `None` with a word on stderr when this machine cannot run one. Under CI it must.
    pub fn start(self) -> Option<Box<dyn Relay>> {
        self.start_with(&[])
    }

    /// A fresh relay with settings, written where the owner of a shared host writes them.
    pub fn start_with(self, settings: &[(&str, &str)]) -> Option<Box<dyn Relay>> {
        if self == Self::Bare {
            let relay = Bare::new();
            write_settings(&relay.data(), settings, None);
            return Some(Box::new(relay));
        }
        if self.is_serve() {
            return Some(Box::new(self.serve(settings)?));
        }
        if self == Self::Machines {
            return Some(Box::new(Machines::start(settings)?));
        }
        Some(Box::new(self.server(settings)?))
    }

    /// Whether the program's own server is what is reached.
    pub fn is_serve(self) -> bool {
        matches!(self, Self::Serve | Self::Behind(_))
    }

    /// The program's own server, perhaps behind a proxy.
    pub fn serve(self, settings: &[(&str, &str)]) -> Option<Serve> {
        match self {
            Self::Behind(proxy) => Serve::behind(proxy, settings),
            _ => Some(Serve::with(settings)),
        }
    }

    /// A web server, with what only those have.
    pub fn server(self, settings: &[(&str, &str)]) -> Option<Server> {
        self.is_installed().then(|| Server::start(self, settings))
    }

    /// Whether there is the web server; if not, a word on stderr says so.
    pub fn is_installed(self) -> bool {
        let missing = self.programs().iter().find(|choice| !choice.iter().any(|program| have(program)));
        if let Some(choice) = missing {
            skip(&format!("{} is not installed", choice.join(" or ")));
        }
        missing.is_none()
    }

    /// What has to be installed: one of each choice.
    fn programs(self) -> &'static [&'static [&'static str]] {
        match self {
            Self::Lighttpd => &[&["lighttpd"]],
            Self::ApacheEvent | Self::ApachePrefork => &[&["apache2"]],
            Self::MiniHttpd => &[&["mini_httpd", "thttpd"]],
            Self::NginxFcgiwrap => &[&["nginx"], &["fcgiwrap"]],
            Self::Bare | Self::Serve | Self::Behind(_) | Self::Machines => &[],
        }
    }

    /// The folder below `deploy/` and the arguments that come after the port and the root.
    pub fn deployment(self) -> (&'static str, &'static [&'static str]) {
        match self {
            Self::Lighttpd => ("lighttpd", &[]),
            Self::ApacheEvent => ("apache", &["event"]),
            Self::ApachePrefork => ("apache", &["prefork"]),
            Self::MiniHttpd => ("thttpd", &[]),
            Self::NginxFcgiwrap => ("nginx", &[]),
            Self::Bare | Self::Serve | Self::Behind(_) | Self::Machines => unreachable!("{self:?} has no web server"),
        }
    }

    /// `mini_httpd` keeps `Last-Event-ID`, `Origin` and most others to itself.
    pub fn passes_every_header(self) -> bool {
        self != Self::MiniHttpd
    }

    /// `mini_httpd` answers 501 by itself to a CGI request that is neither GET nor POST.
    pub fn passes_every_method(self) -> bool {
        self != Self::MiniHttpd
    }
}
