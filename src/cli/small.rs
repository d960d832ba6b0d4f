//! The command line of `relay.cgi`: the words of [`super::arguments`] that a web space has a use for.

use super::arguments::{Arguments, Command, Ptth, TokenOf, client, host, server};
use std::ffi::OsString;
use std::path::PathBuf;

pub(super) const HELP: &str = "\
UHST relay: real-time messages for browsers, in one file

Usage: relay.cgi [--data DIR] COMMAND

Commands:
  check                            tell whether everything works that the relay needs
  sweep                            remove what is dead from the data folder, now
  notify [--key] CHANNEL           send each line of the input to everybody on the channel's WebSockets and bus;
                                   --key: print the key for POST /ws/CHANNEL?key=KEY instead
  token host ID                    print a token that may listen as host ID
  token client ID [NAME]           print a token for a client of host ID
  ptth add NAME [--display TEXT] [--listed]
                                   register a server behind a firewall (PTTH), and show its key, once
  ptth list                        show the registered servers
  ptth remove NAME                 forget one
  help, --help, version, --version

Options:
  --data DIR                       the data folder [default: RELAY_DATA_DIR, else ./data]

serve and ptth serve are in the program uhst-relay, with a --help for each command.
";

/// The commands in which a word that does not fit may stand, and the one word that they need next.
const GROUPS: [(&str, &str); 2] = [("token", "host or client"), ("ptth", "add, list or remove")];

/// Reads the arguments; `None` asks for [`HELP`]. `Err` is a sentence that names the word that is wrong.
pub(super) fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Option<Arguments>, String> {
    let given = CommandLine::read(arguments)?;
    if given.has("--help") || given.words.first().is_some_and(|word| word == "help") {
        return Ok(None);
    }
    let command = if given.has("--version") { Command::Version } else { given.command()? };
    given.refuse_strangers(&command)?;
    Ok(Some(Arguments { data: given.data, command }))
}

/// The arguments, with the options apart.
#[derive(Default)]
struct CommandLine {
    words: Vec<String>,
    data: Option<PathBuf>,
    display: Option<String>,
    /// Options without a value.
    flags: Vec<&'static str>,
}

impl CommandLine {
    fn read(mut arguments: impl Iterator<Item = OsString>) -> Result<Self, String> {
        let mut given = Self::default();
        let mut only_words = false;
        while let Some(argument) = arguments.next() {
            // Only the name of a folder may be something else, and that is read with its option.
            let Some(text) = argument.to_str() else {
                return Err(format!("this is not understood: {}", argument.display()));
            };
            match text {
                "--" if !only_words => only_words = true,
                text if only_words || text == "-" || !text.starts_with('-') => given.words.push(text.to_owned()),
                option => given.option(option, &mut arguments)?,
            }
        }
        Ok(given)
    }

    /// Takes an option, and its value, which may be the next argument.
    fn option(&mut self, text: &str, next: &mut impl Iterator<Item = OsString>) -> Result<(), String> {
        let (option, value) = match text.split_once('=') {
            Some((option @ ("--data" | "--display"), value)) => (option, Some(value)),
            _ => (text, None),
        };
        let mut value = || {
            let value = value.map(OsString::from).or_else(|| next.next());
            value.filter(|value| !value.is_empty()).ok_or_else(|| format!("{option} needs a value"))
        };
        let is_second = match option {
            "--data" => self.data.replace(PathBuf::from(value()?)).is_some(),
            "--display" => {
                let text = value()?.into_string().map_err(|_| "--display is not UTF-8".to_owned())?;
                self.display.replace(text).is_some()
            }
            "--key" => self.flag("--key"),
            "--listed" => self.flag("--listed"),
            "-h" | "--help" => self.flag("--help"),
            "-V" | "--version" => self.flag("--version"),
            _ => return Err(format!("this is not understood: {text}")),
        };
        if is_second { Err(format!("{option} is given twice")) } else { Ok(()) }
    }

    /// Notes an option. True if it was there already.
    fn flag(&mut self, name: &'static str) -> bool {
        let is_second = self.has(name);
        self.flags.push(name);
        is_second
    }

    fn has(&self, name: &str) -> bool {
        self.flags.contains(&name)
    }

    fn command(&self) -> Result<Command, String> {
        Ok(match self.words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["version"] => Command::Version,
            ["check"] => Command::Check,
            ["sweep"] => Command::Sweep,
            ["notify", channel] => Command::Notify { key: self.has("--key"), channel: channel.to_owned() },
            ["token", "host", id] => Command::Token(TokenOf::Host { id: checked(host, id)? }),
            ["token", "client", id] => Command::Token(TokenOf::Client { id: checked(host, id)?, name: None }),
            ["token", "client", id, name] => {
                Command::Token(TokenOf::Client { id: checked(host, id)?, name: Some(checked(client, name)?) })
            }
            ["ptth", "add", name] => Command::Ptth(Ptth::Add {
                name: checked(server, name)?,
                display: self.display.clone(),
                listed: self.has("--listed"),
            }),
            ["ptth", "list"] => Command::Ptth(Ptth::List),
            ["ptth", "remove", name] => Command::Ptth(Ptth::Remove { name: checked(server, name)? }),
            ["serve", ..] | ["ptth", "serve", ..] => {
                return Err("serve is not in this program, which was built for web servers, but in uhst-relay".into());
            }
            ref words => return Err(misfit(words)),
        })
    }

    /// Options that mean nothing to the command are mistakes.
    fn refuse_strangers(&self, command: &Command) -> Result<(), String> {
        let known: &[&str] = match command {
            Command::Version => &["--version"],
            Command::Notify { .. } => &["--key"],
            Command::Ptth(Ptth::Add { .. }) => &["--display", "--listed"],
            _ => &[],
        };
        let given = self.flags.iter().copied().chain(self.display.as_ref().map(|_| "--display"));
        match given.into_iter().find(|option| !known.contains(option)) {
            Some(option) => Err(format!("{option} does not belong to this command")),
            None => Ok(()),
        }
    }
}

/// A word that has to be something; `Err` names it, and says why it cannot be.
fn checked<T>(check: fn(&str) -> Result<T, &'static str>, word: &str) -> Result<T, String> {
    check(word).map_err(|why| format!("{word}: {why}"))
}

/// What is wrong with words that are no command: the first that does not fit, or the one that is missing.
fn misfit(words: &[&str]) -> String {
    let group = words.first().and_then(|first| GROUPS.iter().find(|(name, _)| name == first));
    // How many words each command has at most, with its own.
    let most = match words {
        [] => return "a command is missing".into(),
        ["check" | "sweep" | "version", ..] => 1,
        ["notify", ..] | ["ptth", "list", ..] => 2,
        ["token", "host", ..] | ["ptth", "add" | "remove", ..] => 3,
        ["token", "client", ..] => 4,
        [_, ..] => usize::from(group.is_some()),
    };
    match (words.get(most), group) {
        (Some(word), _) => format!("this is not understood: {word}"),
        (None, Some((name, next))) if words.len() == 1 => format!("{name} needs another word: {next}"),
        (None, _) => format!("{} needs another word: see --help", words.join(" ")),
    }
}
