//! The command line: a thin shell over the rest. A web request never gets here.

use crate::config::Settings;
use crate::health;
use crate::protocol;
use crate::ptth::{ServerName, Tripcode};
use crate::store::ptth::PtthServer;
use crate::store::{self, Store};
use crate::token::{ClientId, HostId, Token};
use lexopt::{Arg, Parser, ValueExt};
use std::error::Error;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

const HELP: &str = "\
uhst-relay: a UHST relay in one file

Usage:
  uhst-relay serve [--listen ADDR:PORT | --listen unix:PATH] [--quiet]
                                     run the relay here, at http://127.0.0.1:8080 if nothing else is said;
                                     --quiet: no access log on stderr
  uhst-relay check                   look whether everything the relay needs works
  uhst-relay sweep                   remove what is dead from the data folder, now
  uhst-relay notify [--key] CHANNEL  send each line of the input to everybody on the channel's WebSockets and bus;
                                     --key: print the key for POST /ws/CHANNEL?key=KEY instead
  uhst-relay token host ID           print a token that may listen as host ID
  uhst-relay token client ID [NAME]  print a token for a client of host ID
  uhst-relay ptth add NAME [--display TEXT] [--listed]
                                     register a server for PTTH, and show its key, once
  uhst-relay ptth list               show the registered servers
  uhst-relay ptth remove NAME        forget one
  uhst-relay ptth serve --relay URL --name NAME (--root DIR | --forward URL) [--listeners N] [--key-file FILE]
                                     be such a server: for the files of DIR, or for the web application at URL; the
                                     key is in the environment variable PTTH_KEY or in FILE; N requests to the relay
                                     wait at once (2; the published ptth_relay bears only 1)
  uhst-relay --help | --version

Options for all of them:
  --data DIR                         the data folder (else RELAY_DATA_DIR, else ./data)

Settings are environment variables, or KEY=VALUE lines in settings.conf in the data folder; README.md lists them.
A web server runs this same file as a CGI program: see deploy/README.md.
Exit codes: 0 done, 1 it did not work, 2 the arguments are not understood.
";

/// What the arguments ask for.
enum Command {
    Help,
    Version,
    Serve { listen: Option<String>, quiet: bool },
    Check,
    Sweep,
    Notify { channel: String, key: bool },
    Token(Token),
    Ptth(Ptth),
}

/// What is to be done about PTTH.
enum Ptth {
    Add { name: ServerName, display_name: Option<String>, listed: bool },
    List,
    Remove(ServerName),
    Serve(FarOptions),
}

/// What the far end is told.
#[cfg_attr(not(feature = "serve"), expect(dead_code, reason = "this program has no far end"))]
struct FarOptions {
    relay: String,
    name: ServerName,
    root: Option<PathBuf>,
    forward: Option<String>,
    listeners: usize,
    key_file: Option<PathBuf>,
}

/// Does what the arguments (without the program's name) say.
pub fn run(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    crate::log::hear_panics();
    let code = run_command(arguments);
    crate::log::flush();
    code
}

fn run_command(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let (command, data) = match parse(arguments) {
        Ok(parsed) => parsed,
        Err(error) => {
            say!("uhst-relay: {error}\nTry uhst-relay --help.");
            return ExitCode::from(2);
        }
    };
    let done = match command {
        Command::Help => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Command::Version => {
            println!("uhst-relay {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        Command::Serve { listen, quiet } => {
            settings(data).and_then(|settings| serve(listen.as_deref(), settings, quiet))
        }
        Command::Check => return check(data),
        Command::Sweep => settings(data).and_then(|settings| Ok(protocol::sweep_all(&settings)?)),
        Command::Ptth(Ptth::Serve(options)) => far(options),
        Command::Ptth(command) => settings(data).and_then(|settings| ptth(&Store::new(&settings.data_dir), command)),
        Command::Notify { channel, key: true } => settings(data).and_then(|settings| {
            println!("{}", protocol::ws::key(&settings, &channel)?);
            Ok(())
        }),
        Command::Notify { channel, key: false } => settings(data).and_then(|settings| notify(&settings, &channel)),
        Command::Token(token) => settings(data).and_then(|settings| {
            println!("{}", protocol::uhst::mint(&settings, &token)?);
            Ok(())
        }),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            match error.downcast_ref::<store::Error>() {
                Some(error) => error.log(),
                None => say!("uhst-relay: {error}"),
            }
            ExitCode::FAILURE
        }
    }
}

fn parse(arguments: impl Iterator<Item = OsString>) -> Result<(Command, Option<PathBuf>), lexopt::Error> {
    let mut parser = Parser::from_args(arguments);
    let (mut display_name, mut is_listed, mut far) = (None, false, FarArguments::default());
    let (mut words, mut data, mut listen, mut quiet, mut key) = (Vec::new(), None, None, false, false);
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Short('h') | Arg::Long("help") => return Ok((Command::Help, None)),
            Arg::Short('V') | Arg::Long("version") => return Ok((Command::Version, None)),
            Arg::Long("data") => data = Some(PathBuf::from(parser.value()?)),
            Arg::Long("listen") => listen = Some(parser.value()?.string()?),
            Arg::Long("quiet") => quiet = true,
            Arg::Long("display") => display_name = Some(parser.value()?.string()?),
            Arg::Long("listed") => is_listed = true,
            Arg::Long("relay") => far.relay = Some(parser.value()?.string()?),
            Arg::Long("name") => far.name = Some(server(&parser.value()?.string()?)?),
            Arg::Long("root") => far.root = Some(PathBuf::from(parser.value()?)),
            Arg::Long("forward") => far.forward = Some(parser.value()?.string()?),
            Arg::Long("listeners") => far.listeners = Some(parser.value()?.parse()?),
            Arg::Long("key-file") => far.key_file = Some(PathBuf::from(parser.value()?)),
            Arg::Long("key") => key = true,
            Arg::Value(word) => words.push(word.string()?),
            other => return Err(other.unexpected()),
        }
    }
    let host = |id: &str| HostId::new(id).ok_or("this cannot be a host id");
    let client = |id: &str| ClientId::new(id).ok_or("this cannot be a client's name");
    let command = match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["serve"] => Command::Serve { listen: listen.take(), quiet: std::mem::take(&mut quiet) },
        ["check"] => Command::Check,
        ["sweep"] => Command::Sweep,
        ["notify", channel] => Command::Notify { channel: channel.to_owned(), key: std::mem::take(&mut key) },
        ["token", "host", id] => Command::Token(Token::Host { host_id: host(id)?, registration: None }),
        ["token", "client", id] => {
            let client_id = protocol::uhst::new_client_id().map_err(|error| error.to_string())?;
            Command::Token(Token::Client { host_id: host(id)?, client_id, registration: None })
        }
        ["token", "client", id, name] => {
            Command::Token(Token::Client { host_id: host(id)?, client_id: client(name)?, registration: None })
        }
        ["ptth", "add", name] => Command::Ptth(Ptth::Add {
            name: server(name)?,
            display_name: display_name.take(),
            listed: std::mem::take(&mut is_listed),
        }),
        ["ptth", "list"] => Command::Ptth(Ptth::List),
        ["ptth", "remove", name] => Command::Ptth(Ptth::Remove(server(name)?)),
        ["ptth", "serve"] => Command::Ptth(Ptth::Serve(std::mem::take(&mut far).options()?)),
        [] => return Err("a command is missing".into()),
        [command, ..] => return Err(format!("this is not understood: {command}").into()),
    };
    if listen.is_some() || quiet {
        return Err("--listen and --quiet belong to serve".into());
    }
    if display_name.is_some() || is_listed {
        return Err("--display and --listed belong to ptth add".into());
    }
    if far != FarArguments::default() {
        return Err("--relay, --name, --root, --forward, --listeners and --key-file belong to ptth serve".into());
    }
    if key {
        return Err("--key belongs to notify".into());
    }
    Ok((command, data))
}

fn server(name: &str) -> Result<ServerName, &'static str> {
    ServerName::try_from(name.to_owned())
}

/// The arguments of `ptth serve`, as far as they were given.
#[derive(Default, PartialEq)]
struct FarArguments {
    relay: Option<String>,
    name: Option<ServerName>,
    root: Option<PathBuf>,
    forward: Option<String>,
    listeners: Option<usize>,
    key_file: Option<PathBuf>,
}

impl FarArguments {
    fn options(self) -> Result<FarOptions, &'static str> {
        if self.root.is_some() == self.forward.is_some() {
            return Err("ptth serve needs either --root or --forward");
        }
        let relay = self.relay.ok_or("ptth serve needs --relay URL")?;
        if !relay.starts_with("https://") && !relay.starts_with("http://") {
            return Err("--relay begins with https:// or http://");
        }
        Ok(FarOptions {
            relay: relay.trim_end_matches('/').to_owned(),
            name: self.name.ok_or("ptth serve needs --name NAME")?,
            root: self.root,
            forward: self.forward,
            listeners: match self.listeners.unwrap_or(2) {
                number @ 1..=32 => number,
                _ => return Err("--listeners is a number from 1 to 32"),
            },
            key_file: self.key_file,
        })
    }
}

/// Each line of the input is a message.
fn notify(settings: &Settings, channel: &str) -> Result<(), Box<dyn Error>> {
    if let Some(owner) = Store::new(&settings.data_dir).other_owner() {
        return Err(format!(
            "the data folder belongs to user {owner}, who could not use what another writes there: sudo -u '#{owner}' uhst-relay notify …"
        )
        .into());
    }
    for line in std::io::stdin().lines() {
        let line = line?;
        if !line.is_empty() {
            protocol::ws::notify(settings, channel, &line)?;
        }
    }
    Ok(())
}

fn settings(data: Option<PathBuf>) -> Result<Settings, Box<dyn Error>> {
    Ok(Settings::read(data, || PathBuf::from("data"))?)
}

#[cfg(feature = "serve")]
fn serve(listen: Option<&str>, settings: Settings, quiet: bool) -> Result<(), Box<dyn Error>> {
    use crate::gateway::http::{Address, serve};
    let listen = listen.map(str::to_owned).or_else(|| settings.listen.clone());
    let listen = listen.as_deref().unwrap_or("127.0.0.1:8080");
    let address = match listen.strip_prefix("unix:") {
        Some(path) if !path.is_empty() => Address::Unix(PathBuf::from(path)),
        _ => Address::Tcp(listen.parse().map_err(|_| {
            format!("--listen {listen} is not an address: say 127.0.0.1:8080, [::1]:8080, 0.0.0.0:80 or unix:/run/relay.sock")
        })?),
    };
    let data = settings.data_dir.clone();
    crate::store::Store::new(&data).prepare().map_err(|error| format!("{error} [{}]", data.display()))?;
    let pipe = match &settings.ws_pipe {
        Some(path) => Some(
            crate::ws::pipe::listen(path, settings.clone())
                .map_err(|error| format!("the named pipe {} (WEBSOCKET_XHR_PIPE_FILE): {error}", path.display()))?,
        ),
        None => None,
    };
    serve(&address, settings, quiet, |address| {
        say!("uhst-relay {} at {address}, data in {}", env!("CARGO_PKG_VERSION"), data.display());
    })
    .map_err(|error| format!("cannot listen at {listen}: {error}"))?;
    if let Some(pipe) = pipe {
        pipe.end();
    }
    Ok(())
}

#[cfg(not(feature = "serve"))]
fn serve(_: Option<&str>, _: Settings, _: bool) -> Result<(), Box<dyn Error>> {
    Err("this file was built for web servers, without serve: use one from cargo build --release".into())
}

fn ptth(store: &Store, command: Ptth) -> Result<(), Box<dyn Error>> {
    match command {
        Ptth::Add { name, display_name, listed } => {
            let key = store::random_hex(32)?;
            let server = PtthServer { tripcode: Tripcode::of(&key), display_name, listed };
            let is_new = store.change_ptth_servers(|servers| {
                let is_new = !servers.contains_key(&name);
                if is_new {
                    servers.insert(name.clone(), server);
                }
                is_new
            })?;
            if !is_new {
                return Err(
                    format!("there is a server {name} already: `uhst-relay ptth remove {name}` forgets it").into()
                );
            }
            println!(
                "{name} is registered. This is its key; it is shown only now, and kept nowhere:\n\n  {key}\n\n\
                 On the machine that is to be reached, with the URL of this relay:\n\n  \
                 PTTH_KEY={key} uhst-relay ptth serve --relay https://example.org/cgi-bin/relay.cgi --name {name} --root DIR"
            );
        }
        Ptth::List => {
            for (name, server) in store.ptth_servers()?.iter() {
                let listed = if server.listed { "listed" } else { "hidden" };
                println!("{name}\t{listed}\t{}", server.display_name.as_deref().unwrap_or_default());
            }
        }
        Ptth::Remove(name) => {
            if store.change_ptth_servers(|servers| servers.remove(&name))?.is_none() {
                return Err(format!("there is no server {name}").into());
            }
        }
        Ptth::Serve(options) => return far(options),
    }
    Ok(())
}

#[cfg(feature = "serve")]
fn far(options: FarOptions) -> Result<(), Box<dyn Error>> {
    use crate::far::{FarEnd, Root, Source, Target, run};
    // Never an argument: everybody on the machine can see those.
    let key = match &options.key_file {
        Some(file) => std::fs::read_to_string(file)
            .map_err(|error| format!("the key in {} cannot be read: {error}", file.display()))?,
        None => std::env::var("PTTH_KEY").map_err(|_| "the key is missing: set PTTH_KEY, or say --key-file FILE")?,
    };
    let key = key.trim().to_owned();
    if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("the key cannot be one: it is one word of letters and digits".into());
    }
    let source = match (&options.root, &options.forward) {
        (Some(root), _) => Source::Files(
            Root::new(root).map_err(|error| format!("the folder {} cannot be read: {error}", root.display()))?,
        ),
        (None, Some(url)) => Source::Forward(
            Target::new(url).ok_or_else(|| format!("--forward {url} is no URL such as http://127.0.0.1:3000"))?,
        ),
        (None, None) => unreachable!("the arguments have one of them"),
    };
    run(FarEnd { relay: options.relay, name: options.name, key, source }, options.listeners)?;
    Ok(())
}

#[cfg(not(feature = "serve"))]
fn far(_: FarOptions) -> Result<(), Box<dyn Error>> {
    Err("this file was built for web servers, without ptth serve: use one from cargo build --release".into())
}

fn check(data: Option<PathBuf>) -> ExitCode {
    let settings = Settings::read(data, || PathBuf::from("data"));
    if health::print(settings.as_ref()) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parses(arguments: &[&str]) -> bool {
        parse(arguments.iter().map(OsString::from)).is_ok()
    }

    #[test]
    fn what_is_documented_is_understood_and_nothing_else() {
        for arguments in [
            &["serve"][..],
            &["serve", "--listen", "127.0.0.1:0", "--quiet", "--data", "d"],
            &["--data=d", "check"],
            &["sweep"],
            &["notify", "chat"],
            &["notify", "--key", ""],
            &["token", "host", "123456"],
            &["token", "client", "123456"],
            &["token", "client", "123456", "anna"],
            &["ptth", "add", "my-server", "--display", "My server", "--listed"],
            &["ptth", "list"],
            &["ptth", "remove", "my-server"],
            &["ptth", "serve", "--relay", "https://a/b", "--name", "n", "--root", ".", "--listeners", "3"],
            &["ptth", "serve", "--relay", "http://a", "--name", "n", "--forward", "http://b", "--key-file", "k"],
            &["--help"],
            &["-V"],
        ] {
            assert!(parses(arguments), "{arguments:?}");
        }
        for arguments in [
            &[][..],
            &["serve", "now"],
            &["sweep", "--quiet"],
            &["sweep", "--key"],
            &["notify"],
            &["token"],
            &["token", "host", ""],
            &["--listen", "x"],
            &["-x"],
            &["ptth"],
            &["ptth", "add"],
            &["ptth", "add", "../n"],
            &["ptth", "remove", "n", "--listed"],
            &["ptth", "serve", "--relay", "http://a", "--name", "n"],
            &["ptth", "serve", "--relay", "http://a", "--name", "n", "--root", ".", "--forward", "http://b"],
            &["ptth", "serve", "--relay", "a", "--name", "n", "--root", "."],
            &["ptth", "serve", "--relay", "http://a", "--name", "n", "--root", ".", "--listeners", "0"],
            &["ptth", "serve", "--name", "n", "--root", "."],
            &["ptth", "serve", "--relay", "http://a", "--root", "."],
            &["sweep", "--root", "."],
        ] {
            assert!(!parses(arguments), "{arguments:?}");
        }
    }
}
