//! The command line of the program with `serve`: clap's, from the table in [`super::arguments`].

use super::arguments::{Arguments, NOTES, Shell};
use clap::error::ErrorKind;
use clap::{Command, CommandFactory as _, Parser as _};
use clap_complete::aot::{self, Generator};
use clap_mangen::Man;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::io;

/// Reads the arguments. `Err` is also a help that was asked for.
pub(super) fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Arguments, clap::Error> {
    let arguments: Vec<OsString> = arguments.collect();
    let parsed = Arguments::try_parse_from([OsString::from("uhst-relay")].iter().chain(&arguments))?;
    // It may stand before the command and after it, and clap does not mind if it does both.
    let is_data = |argument: &&OsString| {
        argument.as_encoded_bytes() == b"--data" || argument.as_encoded_bytes().starts_with(b"--data=")
    };
    if arguments.iter().take_while(|argument| *argument != "--").filter(is_data).count() > 1 {
        let why = "the argument '--data <DIR>' cannot be used multiple times";
        return Err(Arguments::command().error(ErrorKind::ArgumentConflict, why));
    }
    Ok(parsed)
}

/// What a shell reads so that it can complete this command line.
pub(super) fn completions(shell: Shell) -> String {
    match shell {
        // clap_complete 4.6 has two names for the commands of a program with a hyphen in its name, and never finds the second.
        Shell::Bash => completions_of(aot::Bash).replace("uhst__subcmd__relay", "uhst__relay"),
        Shell::Zsh => completions_of(aot::Zsh),
        Shell::Fish => completions_of(aot::Fish),
    }
}

fn completions_of(shell: impl Generator) -> String {
    let mut text = Vec::new();
    aot::generate(shell, &mut Arguments::command(), "uhst-relay", &mut text);
    String::from_utf8_lossy(&text).into_owned()
}

/// The manual in roff: the program, and then each of its commands.
pub(super) fn man_page() -> io::Result<String> {
    let mut program = Arguments::command();
    program.build();
    let page = Man::new(program.clone());
    let mut text = Vec::new();
    page.render_title(&mut text)?;
    page.render_name_section(&mut text)?;
    page.render_synopsis_section(&mut text)?;
    page.render_options_section(&mut text)?;
    let mut text = String::from_utf8_lossy(&text).into_owned();
    text += ".SH COMMANDS\n";
    for command in commands(&program) {
        let page = Man::new(command.clone());
        let mut section = Vec::new();
        page.render_synopsis_section(&mut section)?;
        page.render_description_section(&mut section)?;
        page.render_options_section(&mut section)?;
        let _ = writeln!(text, ".SS \"{}\"", command.get_bin_name().unwrap_or_default());
        for line in String::from_utf8_lossy(&section).lines() {
            match line.split_once(' ') {
                // Each of them is a part of this page, and none of its own.
                Some((".SH", "SYNOPSIS" | "DESCRIPTION")) => text += ".PP\n",
                Some((".SH", "OPTIONS") | (".ie" | ".el", _)) => {}
                Some((".SH", heading)) => drop(writeln!(text, ".PP\n{heading}")),
                _ => drop(writeln!(text, "{line}")),
            }
        }
    }
    let _ = writeln!(text, ".SH NOTES\n{}", NOTES.replace('\n', "\n.br\n"));
    Ok(text)
}

/// All commands that do something, at any depth.
fn commands(command: &Command) -> Vec<&Command> {
    let inside = command.get_subcommands().filter(|command| command.get_name() != "help");
    inside.flat_map(|command| if command.has_subcommands() { commands(command) } else { vec![command] }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn the_help_of_relay_cgi_has_every_command_it_shares() {
        let mut program = Arguments::command();
        program.build();
        for command in commands(&program) {
            let name = command.get_bin_name().unwrap().strip_prefix("uhst-relay ").unwrap();
            let is_there = super::super::small::HELP.lines().any(|line| line.trim_start().starts_with(name));
            let is_shared = !matches!(name, "serve" | "ptth serve" | "completions" | "man" | "version");
            assert!(is_there || !is_shared, "{name}");
            for option in command.get_arguments().filter_map(|argument| argument.get_long()).filter(|_| is_shared) {
                assert!(super::super::small::HELP.contains(&format!("--{option}")), "{name} --{option}");
            }
        }
    }
}
