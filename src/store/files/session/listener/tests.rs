use super::super::super::Kind;
use super::super::super::test_dir::TestDir;
use super::*;
use crate::config::Settings;
use crate::protocol::uhst::policy;
use crate::store::sessions::Claim;
use crate::token::{ClientId, HostId};

/// All that it has to be told now.
fn heard_by(listener: &mut Listener) -> Vec<String> {
    let mut heard = Vec::new();
    listener.hear();
    while listener.next(|event| heard.push(event.data.to_owned())).unwrap() {}
    heard
}

#[test]
fn whoever_takes_its_place_again_hears_nothing_that_was_said_to_others() {
    let dir = TestDir::new();
    let (files, settings) = (Files::new(&dir.join("data")), Settings::default());
    let (policy, host) = (policy(&settings), HostId::new("h").unwrap());
    files.register(&host, "one", Claim::Drawn, &policy).unwrap();
    let ids: Vec<_> = (0..20).map(|number| ClientId::new(&format!("c{number}")).unwrap()).collect();
    let mut listeners: Vec<_> = (ids.iter())
        .map(|id| {
            files.join(&host, id, &policy).unwrap();
            let party = Party { host: host.clone(), client: Some(id.clone()), registration: Some("one".to_owned()) };
            files.listen(&party, None, &policy).unwrap()
        })
        .collect();
    for id in &ids {
        files.send_to_client(&host, id, id.as_str(), &policy).unwrap();
    }
    std::fs::remove_file(beside(&files.folder(Kind::Hosts, "h"), MEMBERS)).unwrap();
    for listener in listeners.iter_mut().rev() {
        assert_eq!(listener.tend(&policy).unwrap(), Standing::Listening);
    }
    for (listener, id) in listeners.iter_mut().zip(&ids) {
        let mut heard = Vec::new();
        while listener.next(|event| heard.extend((event.event == MESSAGE).then(|| event.data.to_owned()))).unwrap() {}
        assert!(heard.iter().all(|data| data == id.as_str()), "{id:?} heard {heard:?}");
    }
}

#[test]
fn whoever_goes_without_a_word_is_noticed_by_its_peers_though_nobody_sends() {
    for (is_one_node, grace, host_goes) in
        [(true, 0, true), (true, 0, false), (false, 0, true), (true, 30, true), (false, 30, true), (false, 30, false)]
    {
        let dir = TestDir::new();
        let files = Files::new(&dir.join("data"));
        let settings = Settings { grace: Duration::from_millis(grace), ..Settings::default() };
        let _node = is_one_node.then(|| files.listen_as_one().unwrap());
        let policy = policy(&settings);
        let (host, id) = (HostId::new("h").unwrap(), ClientId::new("c").unwrap());
        files.register(&host, "one", Claim::Drawn, &policy).unwrap();
        files.join(&host, &id, &policy).unwrap();
        let listen = |client| {
            let party = Party { host: host.clone(), client, registration: Some("one".to_owned()) };
            files.listen(&party, None, &policy).unwrap()
        };
        let (of_host, of_client) = (listen(None), listen(Some(id)));
        let (goes, mut stays) = if host_goes { (of_host, of_client) } else { (of_client, of_host) };
        let mut hear = || {
            stays.tend(&policy).unwrap();
            heard_by(&mut stays)
        };
        // Until nothing more is to be expected by what stands in the files alone.
        std::thread::sleep(Duration::from_millis(1010));
        assert_eq!(hear(), [""; 0]);
        drop(goes);
        // Within the grace nothing is said, but its end is noted.
        let mut heard = hear();
        if grace > 0 {
            std::thread::sleep(settings.grace + Duration::from_millis(2));
            heard.extend(hear());
        }
        assert_eq!(heard.len(), 1, "{is_one_node} {grace} {host_goes}: {heard:?}");
        assert!(heard[0].contains("closed"), "{heard:?}");
    }
}

#[test]
fn whose_line_was_damaged_takes_it_back_though_somebody_has_made_it_anew() {
    let dir = TestDir::new();
    let (files, settings) = (Files::new(&dir.join("data")), Settings::default());
    let policy = policy(&settings);
    let host = HostId::new("h").unwrap();
    files.register(&host, "one", Claim::Drawn, &policy).unwrap();
    let party = Party { host: host.clone(), client: None, registration: Some("one".to_owned()) };
    let mut listener = files.listen(&party, None, &policy).unwrap();
    let members = beside(&files.folder(Kind::Hosts, "h"), MEMBERS);
    std::fs::File::options().write(true).open(members).unwrap().set_len(0).unwrap();
    // This makes a line for the host, too.
    let id = ClientId::new("c").unwrap();
    files.join(&host, &id, &policy).unwrap();
    assert_eq!(listener.tend(&policy).unwrap(), Standing::Listening);
    let client = Party { client: Some(id), ..party };
    files.send_to_host(&client, "1", &policy).unwrap();
    assert_eq!(heard_by(&mut listener), ["1"]);
}

#[test]
fn a_host_and_its_clients_in_one_process_hear_each_what_is_said_to_them() {
    let dir = TestDir::new();
    let (files, settings) = (Files::new(&dir.join("data")), Settings::default());
    let _node = files.listen_as_one().unwrap();
    let policy = policy(&settings);
    // Both logs of a session often begin in the same millisecond, and then their ids are the same.
    for number in 0..30 {
        let host = HostId::new(&format!("h{number}")).unwrap();
        let id = ClientId::new("c").unwrap();
        files.register(&host, "one", Claim::Drawn, &policy).unwrap();
        files.join(&host, &id, &policy).unwrap();
        let party = |client| Party { host: host.clone(), client, registration: Some("one".to_owned()) };
        let (of_host, of_client) = (party(None), party(Some(id.clone())));
        let mut listeners =
            [files.listen(&of_host, None, &policy).unwrap(), files.listen(&of_client, None, &policy).unwrap()];
        files.send_to_host(&of_client, "\"to the host\"", &policy).unwrap();
        files.broadcast(&of_host, "\"to all\"", &policy).unwrap();
        for (listener, expected) in listeners.iter_mut().zip(["\"to the host\"", "\"to all\""]) {
            let mut heard = Vec::new();
            listener.hear();
            while listener.next(|event| heard.extend((event.event == MESSAGE).then(|| event.data.to_owned()))).unwrap()
            {
            }
            assert_eq!(heard, [expected], "{number}");
        }
    }
}

#[test]
fn a_stream_that_has_ended_still_hears_of_those_that_end_with_it() {
    let dir = TestDir::new();
    let (files, settings) = (Files::new(&dir.join("data")), Settings::default());
    let _node = files.listen_as_one().unwrap();
    let policy = policy(&settings);
    let (host, id) = (HostId::new("h").unwrap(), ClientId::new("c").unwrap());
    files.register(&host, "one", Claim::Drawn, &policy).unwrap();
    files.join(&host, &id, &policy).unwrap();
    let party = |client| Party { host: host.clone(), client, registration: Some("one".to_owned()) };
    let mut of_host = files.listen(&party(None), None, &policy).unwrap();
    let mut of_client = files.listen(&party(Some(id)), None, &policy).unwrap();
    assert!(heard_by(&mut of_host).is_empty() && heard_by(&mut of_client).is_empty());
    // Nobody knocks for one that has ended, but it looks for its last words by itself.
    of_host.end(&policy).unwrap();
    assert!(heard_by(&mut of_host).is_empty());
    of_client.end(&policy).unwrap();
    assert_eq!(heard_by(&mut of_host).len(), 1, "the client has left");
}
