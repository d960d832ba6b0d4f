//! What can be asked for on the command line. The doc comments are what `--help`, the man page and the completions say.
//!
//! The program with `serve` has clap read its arguments. A CGI program lives for less than a millisecond and is
//! uploaded, so `relay.cgi` has a small reader of its own for the few commands that it knows: [`super::small`].

#![expect(clippy::doc_markdown, reason = "a terminal shows them as they are")]

use crate::ptth::ServerName;
use crate::token::{ClientId, HostId};
use std::path::PathBuf;

#[cfg(feature = "serve")]
use crate::far::Target;
#[cfg(feature = "serve")]
use crate::gateway::serve::Address;

/// Stands at the end of the help.
#[cfg(feature = "serve")]
pub(super) const NOTES: &str = "\
Settings are environment variables, or KEY=VALUE lines in settings.conf in the data folder; README.md lists them.
A web server runs this same file as a CGI program: see deploy/README.md.
Exit codes: 0 done, 1 it did not work, 2 the arguments are not understood.";

/// UHST relay: real-time messages for browsers, in one file
#[derive(Debug)]
#[cfg_attr(feature = "serve", derive(clap::Parser))]
#[cfg_attr(feature = "serve", command(
    name = "uhst-relay",
    version = crate::VERSION,
    arg_required_else_help = true,
    after_help = NOTES,
))]
pub struct Arguments {
    /// The data folder [default: RELAY_DATA_DIR, else ./data]
    #[cfg_attr(feature = "serve", arg(long, value_name = "DIR", global = true))]
    pub data: Option<PathBuf>,
    /// What is to be done.
    #[cfg_attr(feature = "serve", command(subcommand))]
    pub command: Command,
}

/// What is to be done.
#[derive(Debug)]
#[cfg_attr(feature = "serve", derive(clap::Subcommand))]
pub enum Command {
    /// Run the relay as a server of its own
    #[cfg(feature = "serve")]
    Serve(ServeOptions),
    /// Tell whether everything works that the relay needs
    Check,
    /// Remove what is dead from the data folder, now
    Sweep,
    /// Send each line of the input to everybody on the channel's WebSockets and bus
    Notify {
        /// Print the key for POST /ws/CHANNEL?key=KEY instead
        #[cfg_attr(feature = "serve", arg(long))]
        key: bool,
        /// The channel; "" is the one without a name
        channel: String,
    },
    /// Print a token, for applications that decide who may be what
    #[cfg_attr(feature = "serve", command(subcommand))]
    Token(TokenOf),
    /// Manage servers behind a firewall, or be one (PTTH)
    #[cfg_attr(feature = "serve", command(subcommand))]
    Ptth(Ptth),
    /// Print the completion of this command line for a shell
    #[cfg(feature = "serve")]
    Completions {
        /// Which shell
        shell: Shell,
    },
    /// Print the manual page, for man -l -
    #[cfg(feature = "serve")]
    Man,
    /// Print the version, and the commit it was made from
    Version,
}

/// What the server is told.
#[cfg(feature = "serve")]
#[derive(Debug, Default, clap::Args)]
pub struct ServeOptions {
    /// Where to listen: ADDR:PORT, or unix:PATH for a socket file; may be said several times [default: 127.0.0.1:8080, or what
    /// systemd has opened]
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    pub listen: Vec<Address>,
    /// Speak TLS with this certificate and its chain (PEM); SIGHUP has it read again
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// The certificate's private key (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Write no access log (to stderr)
    #[arg(long)]
    pub quiet: bool,
}

/// Whose token is printed.
#[derive(Debug)]
#[cfg_attr(feature = "serve", derive(clap::Subcommand))]
pub enum TokenOf {
    /// Print a token that may listen as host ID
    Host {
        /// The host's id
        #[cfg_attr(feature = "serve", arg(value_parser = host))]
        id: HostId,
    },
    /// Print a token for a client of host ID
    Client {
        /// The host's id
        #[cfg_attr(feature = "serve", arg(value_parser = host))]
        id: HostId,
        /// The client's own name [default: a random one]
        #[cfg_attr(feature = "serve", arg(value_parser = client))]
        name: Option<ClientId>,
    },
}

/// What is to be done about PTTH.
#[derive(Debug)]
#[cfg_attr(feature = "serve", derive(clap::Subcommand))]
pub enum Ptth {
    /// Register a server, and show its key, once
    Add {
        /// The name by which it is reached
        #[cfg_attr(feature = "serve", arg(value_parser = server))]
        name: ServerName,
        /// What it is called where servers are listed [default: its name]
        #[cfg_attr(feature = "serve", arg(long, value_name = "TEXT"))]
        display: Option<String>,
        /// List it for everybody who asks
        #[cfg_attr(feature = "serve", arg(long))]
        listed: bool,
    },
    /// Show the registered servers
    List,
    /// Forget a server
    Remove {
        /// Its name
        #[cfg_attr(feature = "serve", arg(value_parser = server))]
        name: ServerName,
    },
    /// Be a server behind a firewall: show the files of a folder, or pass requests on to a web application. The key is in
    /// the environment variable PTTH_KEY, or in a file
    #[cfg(feature = "serve")]
    Serve(FarOptions),
}

/// What the far end is told.
#[cfg(feature = "serve")]
#[derive(Debug, clap::Args)]
pub struct FarOptions {
    /// The relay's URL
    #[arg(long, value_name = "URL", value_parser = relay)]
    pub relay: String,
    /// The name under which the relay knows this server
    #[arg(long, value_parser = server)]
    pub name: ServerName,
    #[command(flatten)]
    pub source: FarSource,
    /// How many requests to the relay wait at once; with a relay that takes only 1, as the published ptth_relay, 1
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=32))]
    pub listeners: u8,
    /// The file with the key [default: the environment variable PTTH_KEY]
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
}

/// Where the far end's answers come from: one of the two.
#[cfg(feature = "serve")]
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub struct FarSource {
    /// Serve the files of this folder
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// Pass requests on to the web application at this URL
    #[arg(long, value_name = "URL", value_parser = target)]
    pub forward: Option<Target>,
}

/// A shell whose completion this program knows.
#[cfg(feature = "serve")]
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum Shell {
    Bash,
    Zsh,
    Fish,
}

pub(super) fn host(id: &str) -> Result<HostId, &'static str> {
    HostId::new(id).ok_or("this cannot be a host id")
}

pub(super) fn client(id: &str) -> Result<ClientId, &'static str> {
    ClientId::new(id).ok_or("this cannot be a client's name")
}

pub(super) fn server(name: &str) -> Result<ServerName, &'static str> {
    ServerName::try_from(name.to_owned())
}

#[cfg(feature = "serve")]
fn relay(url: &str) -> Result<String, &'static str> {
    if !url.starts_with("https://") && !url.starts_with("http://") {
        return Err("it begins with https:// or http://");
    }
    Ok(url.trim_end_matches('/').to_owned())
}

#[cfg(feature = "serve")]
fn target(url: &str) -> Result<Target, &'static str> {
    Target::new(url).ok_or("it is a URL such as http://127.0.0.1:3000")
}

/// Where to listen: an argument, or what the environment says in its place.
#[cfg(feature = "serve")]
pub(super) fn address(text: &str) -> Result<Address, &'static str> {
    match text.strip_prefix("unix:") {
        Some(path) if !path.is_empty() => Ok(Address::Unix(PathBuf::from(path))),
        _ => text
            .parse()
            .map(Address::Tcp)
            .map_err(|_| "say 127.0.0.1:8080, [::1]:8080, 0.0.0.0:80 or unix:/run/relay.sock"),
    }
}
