//! How the program is started: by a web server, or by a person, with a command. A thin shell over the rest. A web request
//! never gets to the command line.

mod arguments;
#[cfg(feature = "serve")]
mod full;
#[cfg(any(test, not(feature = "serve")))]
mod small;

use crate::VERSION;
use crate::config::Settings;
#[cfg(feature = "serve")]
use crate::gateway::serve::{Options, TlsFiles};
use crate::health;
use crate::protocol;
use crate::ptth::Tripcode;
use crate::store::requests::PtthServer;
use crate::store::{self, Store};
use crate::token::Token;
use crate::workers::wait;
use arguments::{Arguments, Command, Ptth, TokenOf};
#[cfg(feature = "serve")]
use arguments::{FarOptions, ServeOptions};
use std::error::Error;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
/// Where nothing else is said.
const DEFAULT_DATA_DIR: &str = "data";

type Done = Result<(), Box<dyn Error>>;

/// Answers the one request that a web server has started this process for (RFC 3875).
#[must_use]
pub fn answer() -> ExitCode {
    crate::gateway::cgi::run(&protocol::Relay)
}

/// Does what the arguments (without the program's name) say.
pub fn run(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    crate::log::hear_panics();
    let code = run_command(arguments);
    crate::log::flush();
    code
}

fn run_command(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    #[cfg(feature = "serve")]
    let parsed = full::parse(arguments);
    #[cfg(not(feature = "serve"))]
    let parsed = small::parse(arguments);
    let done = match parsed {
        #[cfg(feature = "serve")]
        Ok(arguments) => act(arguments),
        #[cfg(not(feature = "serve"))]
        Ok(Some(arguments)) => act(arguments),
        #[cfg(not(feature = "serve"))]
        Ok(None) => print(small::HELP).map(|()| ExitCode::SUCCESS),
        Err(error) => return refuse(&error),
    };
    done.unwrap_or_else(|error| fail(error.as_ref()))
}

/// Tells why it did not work.
fn fail(error: &(dyn Error + 'static)) -> ExitCode {
    match error.downcast_ref::<store::Error>() {
        Some(error) => error.log(),
        None => say!("uhst-relay: {error}"),
    }
    ExitCode::FAILURE
}

/// Tells what is wrong with the arguments; or prints the help, where they ask for it.
#[cfg(feature = "serve")]
fn refuse(error: &clap::Error) -> ExitCode {
    let text = error.to_string();
    if !error.use_stderr() {
        return print(&text).map_or_else(|error| fail(error.as_ref()), |()| ExitCode::SUCCESS);
    }
    match text.strip_prefix("error: ") {
        Some(text) => say!("uhst-relay: {}", text.trim_end()),
        None => say!("{}", text.trim_end()),
    }
    ExitCode::from(2)
}

#[cfg(not(feature = "serve"))]
fn refuse(error: &str) -> ExitCode {
    say!("uhst-relay: {error}\nTry --help.");
    ExitCode::from(2)
}

fn act(Arguments { data, command }: Arguments) -> Result<ExitCode, Box<dyn Error>> {
    let data = data.as_deref();
    match command {
        Command::Check => return check(data),
        #[cfg(feature = "serve")]
        Command::Serve(options) => serve(options, data)?,
        #[cfg(feature = "serve")]
        Command::Completions { shell } => print(&full::completions(shell))?,
        #[cfg(feature = "serve")]
        Command::Man => print(&full::man_page()?)?,
        Command::Version => print(&format!("uhst-relay {VERSION}\n"))?,
        Command::Sweep => protocol::sweep_all(&own_settings(data)?)?,
        Command::Ptth(command) => ptth(data, command)?,
        Command::Notify { channel, key: true } => {
            print(&format!("{}\n", protocol::ws::key(&own_settings(data)?, &channel)?))?;
        }
        Command::Notify { channel, key: false } => notify(&own_settings(data)?, &channel)?,
        Command::Token(whose) => {
            let token = match whose {
                TokenOf::Host { id } => Token::Host { host_id: id, registration: None },
                TokenOf::Client { id, name } => {
                    let client_id = name.map_or_else(protocol::uhst::new_client_id, Ok)?;
                    Token::Client { host_id: id, client_id, registration: None }
                }
            };
            print(&format!("{}\n", protocol::uhst::mint(&own_settings(data)?, &token)?))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints to the standard output, whose reader may be content with the beginning.
fn print(text: &str) -> Done {
    let mut output = io::stdout().lock();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(format!("the standard output cannot be written: {error}").into())
        }
        _ => Ok(()),
    }
}

fn settings(data: Option<&Path>) -> Result<Settings, Box<dyn Error>> {
    let settings = Settings::read(data.map(Path::to_owned), |_| PathBuf::from(DEFAULT_DATA_DIR))?;
    let folder = &settings.data_dir;
    if let Some(file) = folder.ancestors().find(|path| path.is_file()) {
        let option = if data.is_some() { "--data" } else { "RELAY_DATA_DIR" };
        let (folder, file) = (folder.display(), file.display());
        return Err(format!("{option}: the data folder cannot be {folder}, because {file} is a file").into());
    }
    Ok(settings)
}

/// The settings of a command that changes what a relay keeps: of the one that is there, and as the user who runs it.
fn own_settings(data: Option<&Path>) -> Result<Settings, Box<dyn Error>> {
    let there = settings(data)?;
    // Somebody who is in the wrong folder shall not get a second, empty relay there.
    if data.is_none() && there.data_dir == Path::new(DEFAULT_DATA_DIR) && !there.data_dir.exists() {
        return Err(
            "there is no data folder here (./data); say which one with --data DIR or RELAY_DATA_DIR. The relay \
                    makes its own when it is used for the first time"
                .into(),
        );
    }
    become_owner(&there)?;
    settings(data)
}

/// What root writes in another user's data folder, the relay could not use: so root goes on as that user.
fn become_owner(settings: &Settings) -> Result<(), Box<dyn Error>> {
    let store = Store::of(settings);
    let Some((user, group)) = wait(store.other_owner()).filter(|_| rustix::process::geteuid().is_root()) else {
        return Ok(());
    };
    let (user, group) = (rustix::process::Uid::from_raw(user), rustix::process::Gid::from_raw(group));
    // The kernel changes the thread that asks, and there is no other one yet.
    rustix::thread::set_thread_groups(&[])
        .and_then(|()| rustix::thread::set_thread_res_gid(group, group, group))
        .and_then(|()| rustix::thread::set_thread_res_uid(user, user, user))
        .map_err(|error| {
            format!("root cannot go on as user {}, whose the data folder is: {error}", user.as_raw()).into()
        })
}

/// Each line of the input is a message.
fn notify(settings: &Settings, channel: &str) -> Done {
    if let Some((owner, _)) = wait(Store::of(settings).other_owner()) {
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

#[cfg(feature = "serve")]
fn serve(told: ServeOptions, data: Option<&Path>) -> Done {
    // They live as long as the process does.
    let settings: &'static Settings = Box::leak(Box::new(settings(data)?));
    let mut addresses = told.listen;
    if let (true, Some(text)) = (addresses.is_empty(), &settings.listen) {
        let why = |why| format!("WEBSOCKET_LISTENING_ADDRESS and WEBSOCKET_LISTENING_PORT say {text}: {why}");
        addresses.push(arguments::address(text).map_err(why)?);
    }
    let tls = told.tls_cert.zip(told.tls_key).map(|(certificate, key)| TlsFiles { certificate, key });
    let options = Options { addresses, tls, quiet: told.quiet };
    crate::ws::program::look_for(settings)?;
    let (mut pipe, mut node) = (None, None);
    crate::gateway::serve::serve(&protocol::Relay, options, settings, |addresses| {
        // Only now: whoever cannot listen leaves nothing behind.
        let data = settings.data_dir.display();
        let store = Store::of(settings);
        wait(store.prepare()).map_err(|error| format!("{error} [{data}]"))?;
        node = Some(wait(store.listen_as_one()).map_err(|error| format!("{error} [{data}]"))?);
        if let Some(path) = &settings.ws_pipe {
            let notify = |text: &str| protocol::ws::notify(settings, "", text).map(drop);
            let watch = crate::ws::pipe::listen(path, settings.bus_message, notify)
                .map_err(|error| format!("the named pipe {} (WEBSOCKET_XHR_PIPE_FILE): {error}", path.display()))?;
            pipe = Some(watch);
        }
        let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        say!("uhst-relay {VERSION} at {}, data in {data}", addresses.join(" and "));
        Ok(())
    })?;
    if let Some(pipe) = pipe {
        pipe.end();
    }
    drop(node);
    Ok(())
}

fn ptth(data: Option<&Path>, command: Ptth) -> Done {
    let store = || own_settings(data).map(|settings| Store::of(&settings));
    match command {
        Ptth::Add { name, display, listed } => {
            let key = crate::hex::random(32)?;
            let server = PtthServer { tripcode: Tripcode::of(&key), display_name: display, listed };
            if !wait(store()?.register_ptth_server(&name, &server))? {
                return Err(
                    format!("there is a server {name} already: `uhst-relay ptth remove {name}` forgets it").into()
                );
            }
            print(&format!(
                "{name} is registered. This is its key; it is shown only now, and kept nowhere:\n\n  {key}\n\n\
                 On the machine that is to be reached, with the URL of this relay:\n\n  \
                 PTTH_KEY={key} uhst-relay ptth serve --relay https://example.org/cgi-bin/relay.cgi --name {name} --root DIR\n"
            ))?;
        }
        Ptth::List => {
            let mut list = String::new();
            for (name, server) in wait(store()?.ptth_servers())?.iter() {
                let listed = if server.listed { "listed" } else { "hidden" };
                let _ = writeln!(list, "{name}\t{listed}\t{}", server.display_name.as_deref().unwrap_or_default());
            }
            print(&list)?;
        }
        Ptth::Remove { name } => {
            if !wait(store()?.remove_ptth_server(&name))? {
                return Err(format!("there is no server {name}").into());
            }
        }
        #[cfg(feature = "serve")]
        Ptth::Serve(options) => return far(options),
    }
    Ok(())
}

#[cfg(feature = "serve")]
fn far(options: FarOptions) -> Done {
    use crate::far::{FarEnd, Root, Source, run};
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
    let source = match (options.source.root, options.source.forward) {
        (Some(root), _) => Source::Files(
            Root::new(&root).map_err(|error| format!("the folder {} cannot be read: {error}", root.display()))?,
        ),
        (None, Some(target)) => Source::Forward(target),
        (None, None) => unreachable!("the arguments have one of them"),
    };
    run(FarEnd { relay: options.relay, name: options.name, key, source }, options.listeners.into())?;
    Ok(())
}

fn check(data: Option<&Path>) -> Result<ExitCode, Box<dyn Error>> {
    let settings = settings(data).and_then(|settings| {
        become_owner(&settings)?;
        self::settings(data)
    });
    let list = match &settings {
        Ok(settings) => health::list(Ok(settings)),
        Err(error) => match error.downcast_ref() {
            Some(error) => health::list(Err(error)),
            None => return Err(error.to_string().into()),
        },
    };
    print(&list.text)?;
    Ok(if list.is_ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[cfg(all(test, feature = "serve"))]
mod tests {
    use super::*;

    /// What `uhst-relay` makes of them; `Err` where it does not understand them. A help that is asked for is nothing to do.
    fn full(arguments: &[&str]) -> Result<Option<String>, String> {
        match full::parse(arguments.iter().map(OsString::from)) {
            Ok(arguments) => Ok(Some(format!("{arguments:?}"))),
            Err(error) if error.use_stderr() => Err(error.to_string()),
            // clap answers --version by itself.
            Err(error) if error.kind() == clap::error::ErrorKind::DisplayVersion => {
                Ok(Some(format!("{:?}", Arguments { data: None, command: Command::Version })))
            }
            Err(_) => Ok(None),
        }
    }

    /// What `relay.cgi` makes of them.
    fn small(arguments: &[&str]) -> Result<Option<String>, String> {
        let parsed = small::parse(arguments.iter().map(OsString::from))?;
        Ok(parsed.map(|arguments| format!("{arguments:?}")))
    }

    #[test]
    fn what_is_documented_is_understood_in_both_programs() {
        for arguments in [
            &["--data=d", "check"][..],
            &["check", "--data", "d"],
            &["sweep"],
            &["notify", "chat"],
            &["notify", "--key", "chat"],
            &["notify", "--key", ""],
            &["notify", "--", "--key"],
            &["token", "host", "123456"],
            &["token", "client", "123456"],
            &["token", "client", "123456", "anna"],
            &["ptth", "add", "my-server", "--display", "My server", "--listed"],
            &["ptth", "add", "--display=My = server", "my-server"],
            &["ptth", "list"],
            &["ptth", "remove", "my-server"],
            &["version"],
            &["--version"],
            &["-V"],
            &["help"],
            &["help", "token"],
            &["--help"],
            &["token", "--help"],
            &["ptth", "add", "-h"],
        ] {
            let understood = full(arguments).unwrap_or_else(|error| panic!("{arguments:?}: {error}"));
            assert_eq!(small(arguments), Ok(understood), "{arguments:?}");
        }
        for arguments in [
            &["serve"][..],
            &["serve", "--listen", "127.0.0.1:0", "--quiet", "--data", "d"],
            &["ptth", "serve", "--relay", "https://a/b", "--name", "n", "--root", ".", "--listeners", "3"],
            &["ptth", "serve", "--relay", "http://a", "--name", "n", "--forward", "http://b", "--key-file", "k"],
            &["completions", "zsh"],
            &["man"],
        ] {
            full(arguments).unwrap_or_else(|error| panic!("{arguments:?}: {error}"));
            small(arguments).unwrap_err();
        }
    }

    #[test]
    fn the_word_that_is_wrong_is_named_in_both_programs() {
        for (arguments, word) in [
            (&["dance"][..], "dance"),
            (&["ptth", "dance"], "dance"),
            (&["token", "dance", "x"], "dance"),
            (&["sweep", "now"], "now"),
            (&["check", "check"], "check"),
            (&["notify", "a", "b"], "b"),
            (&["token", "host", "a", "b"], "b"),
            (&["token", "client", "a", "b", "c"], "c"),
            (&["ptth", "list", "x"], "x"),
            (&["ptth", "add", "n", "x"], "x"),
            (&["ptth", "add", "../n"], "../n"),
            (&["sweep", "--quiet"], "--quiet"),
            (&["sweep", "--key"], "--key"),
            (&["ptth", "remove", "n", "--listed"], "--listed"),
            (&["ptth", "list", "--display", "x"], "--display"),
            (&["-x"], "-x"),
            (&["check", "--data"], "--data"),
            (&["check", "--data", "a", "--data", "b"], "--data"),
            (&["--data", "a", "check", "--data=b"], "--data"),
            (&["notify", "--key", "--key", "a"], "--key"),
            (&["notify", "--key=no", "a"], "--key"),
            (&["ptth", "add", "n", "--listed=no"], "--listed"),
        ] {
            for (program, parsed) in [("uhst-relay", full(arguments)), ("relay.cgi", small(arguments))] {
                let said = parsed.expect_err(&format!("{program} {arguments:?}"));
                assert!(said.lines().next().unwrap().contains(word), "{program} {arguments:?}: {said}");
            }
        }
        for arguments in
            [&[][..], &["notify"], &["token"], &["token", "host"], &["token", "host", ""], &["ptth", "add"]]
        {
            full(arguments).expect_err(&format!("{arguments:?}"));
            small(arguments).expect_err(&format!("{arguments:?}"));
        }
    }

    #[test]
    fn the_wrong_word_of_serve_is_named() {
        let far = ["ptth", "serve", "--relay", "http://a", "--name", "n"];
        let and = |more: &[&'static str]| far.iter().chain(more).copied().collect::<Vec<_>>();
        for (arguments, word) in [
            (vec!["serve", "now"], "now"),
            (vec!["serve", "--port", "80"], "--port"),
            (vec!["serve", "--listen", "[::1]:1", "--listen", "nowhere"], "nowhere"),
            (vec!["serve", "--tls-cert", "a"], "required"),
            (vec!["serve", "--tls-key", "a"], "required"),
            (vec!["serve", "--listen", "nonsense"], "nonsense"),
            (vec!["serve", "--listen", "unix:"], "unix:"),
            (vec!["sweep", "--listen", "x"], "--listen"),
            (and(&[]), "required"),
            (and(&["--root", ".", "--forward", "http://b"]), "--forward"),
            (and(&["--root", ".", "--listeners", "0"]), "--listeners"),
            (and(&["--root", ".", "--listeners", "33"]), "--listeners"),
            (and(&["--forward", "nonsense"]), "nonsense"),
            (vec!["ptth", "serve", "--relay", "a", "--name", "n", "--root", "."], "--relay"),
            (vec!["ptth", "serve", "--name", "n", "--root", "."], "required"),
            (vec!["ptth", "serve", "--relay", "http://a", "--root", "."], "required"),
            (vec!["completions", "csh"], "csh"),
        ] {
            let said = full(&arguments).expect_err(&format!("{arguments:?}"));
            assert!(said.lines().next().unwrap().contains(word), "{arguments:?}: {said}");
        }
    }
}
