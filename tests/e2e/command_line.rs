//! The command line: what is typed wrongly is named, everything can be asked for, exit codes are what the help says they
//! are, and no command leaves a data folder where nobody wanted one, or files in it that the relay cannot use.

use std::fs::{self, File};
use std::io::Write as _;
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::bare::Bare;
use crate::place::{Folder, everything_below, give_to, have, is_root, program, repository, set_mode, skip, web_user};
use crate::relay::{Call, Relay as _, Talk as _};

fn uhst_relay() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_uhst-relay"))
}

/// The program with a clean environment, in a folder. `timeout` ends one that serves where it should have failed.
fn command(program: &Path, folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new("timeout");
    command.args(["--signal=KILL", "60"]).arg(program).args(arguments);
    command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").current_dir(folder).stdin(Stdio::null());
    command
}

fn run(program: &Path, folder: &Path, arguments: &[&str]) -> Output {
    command(program, folder, arguments).output().expect("timeout runs the program")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// It ends with this code; with 0 it says nothing on stderr, with another one nothing on stdout. What it has said.
#[track_caller]
fn expect(output: &Output, code: i32) -> String {
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    let (said, silent) = if code == 0 { (&output.stdout, &output.stderr) } else { (&output.stderr, &output.stdout) };
    assert_eq!(text(silent), "", "{output:?}");
    text(said)
}

#[test]
fn every_command_has_its_own_help() {
    let folder = Folder::new();
    for (words, own, not_own) in [
        (&["serve"][..], &["--listen", "--quiet"][..], &["--key", "--relay"][..]),
        (&["check"], &["--data"], &["--listen"]),
        (&["sweep"], &["--data"], &["--listen"]),
        (&["notify"], &["--key", "CHANNEL"], &["--quiet"]),
        (&["token"], &["host", "client"], &["--quiet"]),
        (&["token", "host"], &["<ID>"], &["NAME", "--key"]),
        (&["token", "client"], &["<ID>", "[NAME]"], &["--key"]),
        (&["ptth"], &["add", "list", "remove", "serve"], &["--quiet"]),
        (&["ptth", "add"], &["--display", "--listed"], &["--relay"]),
        (&["ptth", "list"], &["--data"], &["--listed"]),
        (&["ptth", "remove"], &["<NAME>"], &["--listed"]),
        (
            &["ptth", "serve"],
            &["--relay", "--name", "--root", "--forward", "--listeners", "--key-file", "PTTH_KEY"],
            &["--listed"],
        ),
        (&["completions"], &["bash", "zsh", "fish"], &["--quiet"]),
        (&["man"], &["--data"], &["--quiet"]),
        (&["version"], &["--data"], &["--quiet"]),
    ] {
        let asked = |arguments: &[&str]| expect(&run(&uhst_relay(), folder.path(), arguments), 0);
        let help = asked(&[words, &["--help"]].concat());
        assert!(help.contains(&format!("Usage: uhst-relay {}", words.join(" "))), "{help}");
        assert!(own.iter().all(|word| help.contains(word)), "{words:?}: {help}");
        assert!(!not_own.iter().any(|word| help.contains(word)), "{words:?}: {help}");
        assert_eq!(asked(&[&["help"], words].concat()), help);
        assert_eq!(asked(&[words, &["-h"]].concat()), help);
    }
}

#[test]
fn help_and_version_work_as_words_and_as_options() {
    let folder = Folder::new();
    for program in [uhst_relay(), program()] {
        let asked = |arguments: &[&str]| expect(&run(&program, folder.path(), arguments), 0);
        let help = asked(&["--help"]);
        for command in ["check", "sweep", "notify", "token", "ptth"] {
            assert!(help.lines().any(|line| line.trim_start().starts_with(command)), "no {command}: {help}");
        }
        assert_eq!((asked(&["help"]), asked(&["-h"])), (help.clone(), help));
        let version = asked(&["--version"]);
        assert!(version.starts_with("uhst-relay ") && version.lines().count() == 1, "{version}");
        assert_eq!((asked(&["version"]), asked(&["-V"])), (version.clone(), version));
    }
    assert_eq!(everything_below(folder.path()).len(), 1, "nothing was made");
}

#[test]
fn what_is_wrong_is_the_word_that_is_named() {
    let folder = Folder::new();
    for (arguments, word) in [
        (&["ptth", "dance"][..], "dance"),
        (&["token", "dance"], "dance"),
        (&["sweep", "now"], "now"),
        (&["check", "--quiet"], "--quiet"),
        (&["ptth", "add", "../evil"], "../evil"),
        (&["check", "--data", "a", "--data", "b"], "--data"),
    ] {
        for program in [uhst_relay(), program()] {
            let said = expect(&run(&program, folder.path(), arguments), 2);
            let sentence = said.lines().next().unwrap();
            assert!(sentence.starts_with("uhst-relay: ") && sentence.contains(word), "{arguments:?}: {said}");
            assert!(said.contains("--help"), "it is said where to look: {said}");
        }
    }
    for (arguments, word) in [
        (&["serve", "--listen", "127.0.0.1:0", "--listen", "nowhere"][..], "nowhere"),
        (&["serve", "--listen", "nonsense"], "nonsense"),
        (&["ptth", "serve", "--relay", "ftp://a", "--name", "n", "--root", "."], "ftp://a"),
    ] {
        let said = expect(&run(&uhst_relay(), folder.path(), arguments), 2);
        assert!(said.lines().next().unwrap().contains(word), "{arguments:?}: {said}");
    }
}

#[test]
fn exit_codes_are_what_the_help_says() {
    let folder = Folder::new();
    fs::create_dir(folder.join("data")).unwrap();
    let help = expect(&run(&uhst_relay(), folder.path(), &["--help"]), 0);
    assert!(help.contains("Exit codes: 0 done, 1 it did not work, 2 the arguments are not understood."), "{help}");
    for program in [uhst_relay(), program()] {
        let code = |arguments: &[&str]| run(&program, folder.path(), arguments).status.code();
        assert_eq!(code(&["token", "host", "x"]), Some(0));
        assert_eq!(code(&["ptth", "remove", "nobody"]), Some(1));
        assert_eq!(code(&["check", "--data", "/proc/nowhere"]), Some(1));
        assert_eq!(code(&[]), Some(2));
        // A full disk is no crash, and a reader who has seen enough is no failure.
        for arguments in [&["--help"][..], &["version"], &["token", "host", "x"], &["ptth", "list"], &["check"]] {
            if arguments[0] != "ptth" {
                let full = File::options().write(true).open("/dev/full").unwrap();
                let output = command(&program, folder.path(), arguments).stdout(full).output().unwrap();
                assert_eq!(output.status.code(), Some(1), "{arguments:?}: {output:?}");
                assert!(text(&output.stderr).contains("standard output"), "{output:?}");
            }
            let (reader, writer) = std::io::pipe().unwrap();
            drop(reader);
            let output = command(&program, folder.path(), arguments).stdout(writer).output().unwrap();
            assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()), "{arguments:?}");
        }
    }
}

#[test]
fn a_data_folder_that_is_a_file_is_said_to_be_one() {
    let folder = Folder::new();
    fs::write(folder.join("file"), "mine").unwrap();
    let commands: &[&[&str]] = &[&["check"], &["sweep"], &["notify", "x"], &["token", "host", "x"], &["ptth", "list"]];
    let serve: &[&str] = &["serve", "--listen", "127.0.0.1:0"];
    for program in [uhst_relay(), program()] {
        let serves = program == uhst_relay();
        for arguments in commands.iter().chain(serves.then_some(&serve)) {
            for data in ["file", "file/data"] {
                let said = expect(&run(&program, folder.path(), &[arguments, &["--data", data][..]].concat()), 1);
                assert!(said.contains("--data") && said.contains("file is a file"), "{arguments:?}: {said}");
                let output = command(&program, folder.path(), arguments).env("RELAY_DATA_DIR", data).output().unwrap();
                let said = expect(&output, 1);
                assert!(said.contains("RELAY_DATA_DIR") && said.contains("file is a file"), "{arguments:?}: {said}");
            }
        }
    }
    assert_eq!(fs::read(folder.join("file")).unwrap(), b"mine");
}

#[test]
fn only_serving_makes_a_data_folder() {
    let folder = Folder::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let handler = |command: &mut Command| command.env("RELAY_WS_HANDLER", "no-such-handler").output().unwrap();
    for program in [uhst_relay(), program()] {
        for arguments in [
            &["sweep"][..],
            &["notify", "x"],
            &["notify", "--key", "x"],
            &["token", "host", "x"],
            &["token", "client", "x"],
            &["ptth", "add", "x"],
            &["ptth", "list"],
            &["ptth", "remove", "x"],
        ] {
            let said = expect(&run(&program, folder.path(), arguments), 1);
            assert!(said.contains("there is no data folder here") && said.contains("--data"), "{arguments:?}: {said}");
        }
        let checked = run(&program, folder.path(), &["check"]);
        assert!(checked.status.success(), "a folder where one can be made is fine: {checked:?}");
        assert_eq!(everything_below(folder.path()).len(), 1, "{:?}", everything_below(folder.path()));
    }
    expect(&run(&uhst_relay(), folder.path(), &["serve", "--listen", &taken]), 1);
    expect(&handler(&mut command(&uhst_relay(), folder.path(), &["serve", "--listen", "127.0.0.1:0"])), 1);
    let mut far = command(&uhst_relay(), folder.path(), &["ptth", "serve", "--relay", "http://127.0.0.1:1"]);
    let far = far.args(["--name", "n", "--root", "/proc/nowhere"]).env("PTTH_KEY", "k").output().unwrap();
    expect(&far, 1);
    assert_eq!(everything_below(folder.path()).len(), 1, "{:?}", everything_below(folder.path()));

    // One that was named is made.
    expect(&run(&program(), folder.path(), &["token", "host", "x", "--data", "named"]), 0);
    assert!(folder.join("named/secret").is_file());
}

#[test]
fn a_handler_that_cannot_be_started_is_told_at_start() {
    let folder = Folder::new();
    let script = folder.join("handler");
    fs::write(&script, "#!/bin/sh\nexec cat >/dev/null\n").unwrap();
    set_mode(&script, 0o644);
    // So that those that are found fail at the next step, and end.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let serve = |handler: &str| {
        let mut command = command(&uhst_relay(), folder.path(), &["serve", "--listen", &taken]);
        expect(&command.env("RELAY_WS_HANDLER", handler).output().unwrap(), 1)
    };
    for handler in ["no-such-program --flag", "./nowhere/handler", "/no/such/handler", "./", "/"] {
        let said = serve(handler);
        let name = handler.split_whitespace().next().unwrap();
        assert!(said.contains("RELAY_WS_HANDLER") && said.contains(name), "{handler}: {said}");
    }
    let said = serve("./handler");
    assert!(said.contains("RELAY_WS_HANDLER") && said.contains("chmod 755"), "{said}");
    set_mode(&script, 0o755);
    for handler in ["./handler", script.to_str().unwrap(), "sh -c true", "echo", ""] {
        let said = serve(handler);
        assert!(said.contains("cannot listen") && !said.contains("RELAY_WS_HANDLER"), "{handler}: {said}");
    }
}

/// What root does there is done as the user whose the folder is, or the relay could not go on.
#[test]
fn root_works_on_the_data_folder_of_another_user() {
    if !is_root() {
        return skip("only root can act as another user");
    }
    let relay = Bare::new().run_as(web_user());
    give_to(&relay.folder().join("cgi-bin"), web_user());
    relay.host("");
    let bus = |query: &str| {
        let call = Call { method: "GET", path_info: "/bus/room", query, ..Call::default() };
        relay.call(&call).expect(200)
    };
    let listener = bus("").json();
    let data = relay.data();
    for program in [uhst_relay(), program()] {
        for arguments in [
            &["notify", "room"][..],
            &["token", "host", "x"],
            &["notify", "--key", "room"],
            &["sweep"],
            &["check"],
            &["ptth", "add", if program == uhst_relay() { "one" } else { "two" }],
        ] {
            // As if root came first: what is missing is made by the command.
            for name in ["secret", "secret.lock", "sweep"] {
                let _ = fs::remove_file(data.join(name));
            }
            let mut command = command(&program, relay.folder().path(), arguments);
            command.arg("--data").arg(&data).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut process = command.spawn().unwrap();
            // Most of them read nothing, and may have ended before this is written.
            let _ = process.stdin.take().unwrap().write_all(b"from root\n");
            expect(&process.wait_with_output().unwrap(), 0);
            for path in everything_below(&data) {
                let owner = fs::symlink_metadata(&path).unwrap().uid();
                assert_eq!(owner, web_user().uid, "{arguments:?}: {}", path.display());
            }
        }
    }
    let heard = bus(&format!("id={}&user={}", listener["id"], listener["user"])).body;
    assert_eq!(heard.matches("from root").count(), 2, "{heard}");
    relay.host("");
}

#[test]
fn shells_complete_what_can_be_typed() {
    let folder = Folder::new();
    let script = |shell: &str| {
        let script = expect(&run(&uhst_relay(), folder.path(), &["completions", shell]), 0);
        let path = folder.join(format!("completion.{shell}"));
        fs::write(&path, script).unwrap();
        path
    };
    let shell = |program: &str, arguments: &[&str], script: &Path| {
        let output = Command::new(program).args(arguments).arg(script).env("HOME", folder.path()).output().unwrap();
        expect(&output, 0).split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    let typed = "source $0; COMP_WORDS=(uhst-relay ptth ''); COMP_CWORD=2; \
                 $(complete -p uhst-relay | sed 's/.*-F \\([^ ]*\\).*/\\1/') uhst-relay '' ptth; echo ${COMPREPLY[@]}";
    let offered = shell("bash", &["-c", typed], &script("bash"));
    for word in ["add", "list", "remove", "serve", "--data"] {
        assert!(offered.iter().any(|offer| offer == word), "{word}: {offered:?}");
    }
    if have("fish") {
        let offered = shell("fish", &["-c", "source $argv[1]; complete -C 'uhst-relay ptth '"], &script("fish"));
        for word in ["add", "list", "remove", "serve"] {
            assert!(offered.iter().any(|offer| offer == word), "{word}: {offered:?}");
        }
    } else {
        skip("fish is not installed");
    }
    if have("zsh") {
        shell("zsh", &["-n"], &script("zsh"));
        // What compinit takes it for, and the words of a command that is deep inside.
        let text = fs::read_to_string(folder.join("completion.zsh")).unwrap();
        assert!(text.starts_with("#compdef uhst-relay\n") && text.contains("'--key-file="), "{text}");
    } else {
        skip("zsh is not installed");
    }
}

#[test]
fn the_manual_page_has_all_that_the_help_has() {
    let folder = Folder::new();
    let page = expect(&run(&uhst_relay(), folder.path(), &["man"]), 0);
    assert!(page.contains("\n.TH uhst-relay 1 ") || page.starts_with(".TH"), "{page}");
    let plain = page.replace('\\', "");
    let leaves = [
        &["serve"][..],
        &["check"],
        &["sweep"],
        &["notify"],
        &["token", "host"],
        &["token", "client"],
        &["ptth", "add"],
        &["ptth", "list"],
        &["ptth", "remove"],
        &["ptth", "serve"],
    ];
    for words in leaves {
        assert!(plain.contains(&format!("uhst-relay {}", words.join(" "))), "{words:?}: {plain}");
        let help = expect(&run(&uhst_relay(), folder.path(), &[words, &["--help"]].concat()), 0);
        for option in help.split_whitespace().filter(|word| word.starts_with("--")) {
            assert!(plain.contains(option.trim_end_matches([',', '.'])), "{option}: {plain}");
        }
    }
    assert!(plain.contains("Exit codes: 0 done"), "{plain}");
    if have("groff") {
        fs::write(folder.join("page.1"), &page).unwrap();
        let mut command = Command::new("groff");
        let output = command.args(["-man", "-Tutf8", "-ww", "-z"]).arg(folder.join("page.1")).output().unwrap();
        assert_eq!(expect(&output, 0), "", "groff has nothing to complain about");
    } else {
        skip("groff is not installed");
    }
}

#[test]
fn programs_say_their_version_and_commit() {
    let git = Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).current_dir(repository()).output();
    let commit = git.ok().filter(|output| output.status.success()).map(|output| text(&output.stdout).trim().to_owned());
    let version = match commit {
        Some(commit) => format!("uhst-relay {} ({commit})\n", env!("CARGO_PKG_VERSION")),
        None => format!("uhst-relay {}\n", env!("CARGO_PKG_VERSION")),
    };
    for program in [uhst_relay(), program()] {
        assert_eq!(expect(&run(&program, repository(), &["--version"]), 0), version, "{}", program.display());
    }
}
