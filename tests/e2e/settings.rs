//! Settings: from the environment or from `data/settings.conf`, and never guessed.

use serde_json::json;

use crate::bare::Bare;
use crate::place::write_settings;
use crate::relay::{Call, Relay as _, Talk as _};
use crate::token;

#[test]
fn a_setting_that_cannot_be_read_is_named() {
    let wrong = [
        ("RELAY_MAX_BODY", &["lots", "-1", "1.5", "1M", "0x10"][..]),
        ("RELAY_MAX_QUEUE", &["lots", "-1", "99999999999999999999999"]),
        ("RELAY_MAX_CLIENTS", &["many", "-1", "1e3"]),
        ("RELAY_MAX_HOSTS", &["many", "-1"]),
        ("RELAY_MESSAGE_LIFETIME", &["1 hour", "-1", "NaN", "inf", "60s"]),
        ("RELAY_SESSION_LIFETIME", &["1 hour", "-1", "NaN", "infinity"]),
        ("RELAY_BUS_MESSAGE", &["10k", "0"]),
        ("RELAY_MAX_BUSES", &["many", "-1"]),
        ("RELAY_BUS_LIFETIME", &["a day", "0", "-1"]),
        ("RELAY_KEEP_ALIVE", &["never", "-5", "NaN"]),
        ("RELAY_POLL_TICK", &["often", "-20"]),
        ("RELAY_GRACE", &["some", "-1", "1,5"]),
    ];
    for (name, values) in wrong {
        for &value in values {
            let from_environment = Bare::with(&[(name, value)]);
            let from_file = Bare::new();
            write_settings(&from_file.data(), &[(name, value)], None);
            for relay in [from_environment, from_file] {
                for reply in [relay.post("action=ping", ""), relay.post("action=host", ""), relay.get("token=x")] {
                    let reason = reply.expect_error(500);
                    assert!(reason.contains(name), "{name}={value}: {reason}");
                }
                assert!(relay.log().contains(name), "the server's log names it too: {}", relay.log());
            }
        }
    }
}

#[test]
fn decimal_seconds_are_read() {
    let names = ["RELAY_MESSAGE_LIFETIME", "RELAY_SESSION_LIFETIME", "RELAY_KEEP_ALIVE", "RELAY_GRACE"];
    let relay = Bare::with(&names.map(|name| (name, "0.5")));
    relay.host("");
}

#[test]
fn the_environment_wins_over_the_file() {
    let mut relay = Bare::new();
    write_settings(&relay.data(), &[("RELAY_PREFIX", "file"), ("RELAY_MAX_BODY", "4")], None);
    assert!(relay.host("").id.starts_with("file-"));
    relay.set("RELAY_PREFIX", "environment");
    let host = relay.host("");
    assert!(host.id.starts_with("environment-"), "{}", host.id);
    relay.send(&relay.join(&host.id), "12345").expect_error(413);
}

#[test]
fn nothing_in_a_request_is_a_setting() {
    let relay = Bare::new();
    let mut command =
        relay.request(&Call { query: "action=host&RELAY_PREFIX=evil&JWT_SECRET=evil", ..Call::default() });
    command.envs([
        ("HTTP_RELAY_PREFIX", "evil"),
        ("HTTP_JWT_SECRET", "evil"),
        ("HTTP_RELAY_DATA_DIR", "/evil"),
        ("HTTP_PROXY", "evil"),
    ]);
    let json = relay.run(&mut command, b"").expect(200).json();
    assert_eq!(json["hostId"].as_str().map(str::len), Some(6), "{json}");
    let (text, signature) = json["hostToken"].as_str().unwrap().rsplit_once('.').unwrap();
    assert_ne!(token::signature(text, "evil"), signature);
    assert!(relay.data().join("secret").is_file());
}

#[test]
fn a_secret_of_the_owner_is_not_written_down() {
    let relay = Bare::with(&[("JWT_SECRET", "known")]);
    let own = relay.host("").token;
    let (text, signature) = own.rsplit_once('.').unwrap();
    assert_eq!(token::signature(text, "known"), signature);
    for path in crate::place::everything_below(&relay.data()) {
        let kept = std::fs::metadata(&path).is_ok_and(|about| about.is_file()).then(|| std::fs::read(&path).unwrap());
        assert!(!kept.unwrap_or_default().windows(5).any(|word| word == b"known"), "{}", path.display());
    }
}

#[test]
fn processes_that_race_for_the_secret_agree() {
    for _ in 0..10 {
        let relay = Bare::new();
        let calls = Call { query: "action=host", ..Call::default() };
        let started: Vec<_> = (0..12).map(|_| relay.start(&calls)).collect();
        for process in started {
            let (output, status) = crate::bare::finish(process);
            let json = relay.reply(&output, status).expect(200).json();
            let token = json["hostToken"].as_str().unwrap();
            let reply = relay.call(&Call { method: "HEAD", query: &format!("token={token}"), ..Call::default() });
            assert_eq!(reply.status, 200, "a token of the first moment is good later: {reply:?}");
        }
    }
}

#[test]
fn of_processes_that_race_for_a_host_id_one_wins() {
    let relay = Bare::new();
    for round in 0..20 {
        let query = format!("action=host&hostId=room-{round}");
        let call = Call { query: &query, ..Call::default() };
        let started: Vec<_> = (0..10).map(|_| relay.start(&call)).collect();
        let replies: Vec<_> =
            started.into_iter().map(crate::bare::finish).map(|(output, status)| relay.reply(&output, status)).collect();
        let (winners, losers): (Vec<_>, Vec<_>) = replies.into_iter().partition(|reply| reply.status == 200);
        assert_eq!(winners.len(), 1, "{winners:?}");
        for loser in losers {
            loser.expect_error(400);
        }
        let token = winners[0].json()["hostToken"].as_str().unwrap().to_owned();
        let mut stream = relay.open(&token);
        relay.send(&relay.join(&format!("room-{round}")), "1").expect(200);
        assert_eq!(stream.body(), json!(1));
    }
}
