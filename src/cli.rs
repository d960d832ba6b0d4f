//! The command line: a thin shell over the rest. A web request never gets here.

use crate::config::Settings;
use crate::health;
use crate::protocol;
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
  uhst-relay token host ID           print a token that may listen as host ID
  uhst-relay token client ID [NAME]  print a token for a client of host ID
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
    Token(Token),
}

/// Does what the arguments (without the program's name) say.
pub fn run(arguments: impl Iterator<Item = OsString>) -> ExitCode {
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
        Command::Token(token) => settings(data).and_then(|settings| {
            println!("{}", protocol::uhst::mint(&settings, &token)?);
            Ok(())
        }),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say!("uhst-relay: {error}");
            ExitCode::FAILURE
        }
    }
}

fn parse(arguments: impl Iterator<Item = OsString>) -> Result<(Command, Option<PathBuf>), lexopt::Error> {
    let mut parser = Parser::from_args(arguments);
    let (mut words, mut data, mut listen, mut quiet) = (Vec::new(), None, None, false);
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Short('h') | Arg::Long("help") => return Ok((Command::Help, None)),
            Arg::Short('V') | Arg::Long("version") => return Ok((Command::Version, None)),
            Arg::Long("data") => data = Some(PathBuf::from(parser.value()?)),
            Arg::Long("listen") => listen = Some(parser.value()?.string()?),
            Arg::Long("quiet") => quiet = true,
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
        ["token", "host", id] => Command::Token(Token::Host { host_id: host(id)?, registration: None }),
        ["token", "client", id] => {
            let client_id = protocol::uhst::new_client_id().map_err(|error| error.to_string())?;
            Command::Token(Token::Client { host_id: host(id)?, client_id, registration: None })
        }
        ["token", "client", id, name] => {
            Command::Token(Token::Client { host_id: host(id)?, client_id: client(name)?, registration: None })
        }
        [] => return Err("a command is missing".into()),
        [command, ..] => return Err(format!("this is not understood: {command}").into()),
    };
    if listen.is_some() || quiet {
        return Err("--listen and --quiet belong to serve".into());
    }
    Ok((command, data))
}

fn settings(data: Option<PathBuf>) -> Result<Settings, Box<dyn Error>> {
    Ok(Settings::read(data, || PathBuf::from("data"))?)
}

#[cfg(feature = "serve")]
fn serve(listen: Option<&str>, settings: Settings, quiet: bool) -> Result<(), Box<dyn Error>> {
    use crate::gateway::http::{Address, serve};
    let listen = listen.unwrap_or("127.0.0.1:8080");
    let address = match listen.strip_prefix("unix:") {
        Some(path) if !path.is_empty() => Address::Unix(PathBuf::from(path)),
        _ => Address::Tcp(listen.parse().map_err(|_| {
            format!("--listen {listen} is not an address: say 127.0.0.1:8080, [::1]:8080, 0.0.0.0:80 or unix:/run/relay.sock")
        })?),
    };
    let data = settings.data_dir.clone();
    crate::store::Store::new(&data).prepare().map_err(|error| format!("{error} [{}]", data.display()))?;
    serve(&address, settings, quiet, |address| {
        say!("uhst-relay {} at {address}, data in {}", env!("CARGO_PKG_VERSION"), data.display());
    })
    .map_err(|error| format!("cannot listen at {listen}: {error}").into())
}

#[cfg(not(feature = "serve"))]
fn serve(_: Option<&str>, _: Settings, _: bool) -> Result<(), Box<dyn Error>> {
    Err("this file was built for web servers, without serve: use one from cargo build --release".into())
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
            &["token", "host", "123456"],
            &["token", "client", "123456"],
            &["token", "client", "123456", "anna"],
            &["--help"],
            &["-V"],
        ] {
            assert!(parses(arguments), "{arguments:?}");
        }
        for arguments in [
            &[][..],
            &["serve", "now"],
            &["sweep", "--quiet"],
            &["token"],
            &["token", "host", ""],
            &["--listen", "x"],
            &["-x"],
        ] {
            assert!(!parses(arguments), "{arguments:?}");
        }
    }
}
