//! The command line: a thin shell over the rest. A web request never gets here.

use crate::config::Settings;
use crate::protocol;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

const HELP: &str = "\
uhst-relay: a UHST relay, one file in a cgi-bin

Usage:
  uhst-relay sweep       remove what is dead from the data folder, now
  uhst-relay --help      this text
  uhst-relay --version   the version

A web server runs it as a CGI program: see deploy/README.md.
Settings are environment variables, or KEY=VALUE lines in settings.conf in the data folder (RELAY_DATA_DIR, else ./data).
";

/// Does what the arguments (without the program's name) say.
pub fn run(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<_> = arguments.map(|argument| argument.to_string_lossy().into_owned()).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["sweep"] => match sweep() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&error.to_string()),
        },
        ["--help" | "-h" | "help"] => {
            print!("{HELP}");
            ExitCode::SUCCESS
        }
        ["--version" | "-V"] => {
            println!("uhst-relay {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        [] => {
            eprint!("{HELP}");
            ExitCode::from(2)
        }
        _ => {
            eprintln!(
                "uhst-relay: these arguments are not understood: {}\nTry uhst-relay --help.",
                arguments.join(" ")
            );
            ExitCode::from(2)
        }
    }
}

fn sweep() -> Result<(), Box<dyn std::error::Error>> {
    let settings = Settings::read(|| PathBuf::from("data"))?;
    Ok(protocol::sweep_all(&settings)?)
}

fn fail(sentence: &str) -> ExitCode {
    eprintln!("uhst-relay: {sentence}");
    ExitCode::FAILURE
}
