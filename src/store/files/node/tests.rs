use super::super::hash_name;
use super::super::test_dir::TestDir;
use super::*;
use std::time::Instant;

fn home(dir: &TestDir) -> Files {
    Files::new(&dir.join("data"))
}

/// Waits until it is so. A process that another test starts holds our locks, and our FIFOs, between fork and exec.
fn eventually(mut is_so: impl FnMut() -> bool, what: &str) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < Duration::from_secs(60), "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn is_woken(wakeup: &Wakeup) -> bool {
    wakeup.wake().unwrap().is_ready()
}

fn knock_for(node: &str, topic: &str, slot: Option<Slot>, cause: Cause) -> Knock {
    Knock { node: node.to_owned(), topic: topic.to_owned(), slot, cause }
}

fn is_alive(files: &Files, node: &str) -> bool {
    files.node_is_alive(node).unwrap()
}

/// There is one shared node in a process.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A listener at a topic's slot in the shared node.
fn listener(files: &Files, topic: &str, slot: Slot) -> Wakeup {
    let wakeup = files.wakeup(topic).unwrap();
    assert!(matches!(wakeup, Wakeup::Shared(_)));
    wakeup.stand_at(slot);
    wakeup
}

#[test]
fn a_node_is_there_as_long_as_its_process_and_no_longer() {
    let dir = TestDir::new();
    let files = home(&dir);
    assert!(!is_alive(&files, "0123456789abcdef"), "there is not even a folder");
    let wakeup = files.wakeup(&hash_name("a")).unwrap();
    let id = wakeup.node().to_owned();
    assert!(is_alive(&files, &id) && files.alive().is(&id).unwrap());
    drop(wakeup);
    assert!(!is_alive(&files, &id) && !files.alive().is(&id).unwrap());
    assert_eq!(names(&files.nodes()).unwrap(), [""; 0], "it leaves nothing");
}

#[test]
fn a_killed_node_is_not_there_though_its_files_are() {
    let dir = TestDir::new();
    let files = home(&dir);
    let node = Node::make(&files.nodes()).unwrap();
    let id = node.id.clone();
    let (lock, wake) = (files.nodes().join(&id), files.wake_of(&id));
    drop(node);
    // What the kernel leaves of it: a file that nobody locks, and a FIFO that nobody has open.
    std::fs::write(&lock, "").unwrap();
    super::super::wake::make_fifo(&wake).unwrap();
    assert!(!is_alive(&files, &id) && !files.alive().is(&id).unwrap());
    assert!(!files.knock(&knock_for(&id, &hash_name("a"), None, Cause::News)), "nobody hears it");
}

#[test]
fn what_cannot_be_seen_is_not_called_gone() {
    let dir = TestDir::new();
    let files = home(&dir);
    make_dirs(&files.nodes()).unwrap();
    let itself = files.nodes().join("0123456789abcdef");
    std::os::unix::fs::symlink(&itself, &itself).unwrap();
    assert!(files.node_is_alive("0123456789abcdef").is_err());
}

#[test]
fn a_sweep_removes_what_killed_nodes_have_left_and_no_living_one() {
    let dir = TestDir::new();
    let files = home(&dir);
    let living = Node::make(&files.nodes()).unwrap();
    let path = |name: &str| files.nodes().join(name);
    let old = std::time::SystemTime::now() - 2 * MAKING_TIME;
    let leftovers = ["00aa", "00aa.wake", "ffbb", "01cc.wake", "02dd.wake.new", "03ee.new"];
    for name in leftovers {
        std::fs::write(path(name), "").unwrap();
        File::open(path(name)).unwrap().set_modified(old).unwrap();
    }
    std::fs::write(path("04ff.wake"), "").unwrap();
    // Killed just now, while it made its FIFO.
    let made_last = ["05aa", "05aa.wake.new"];
    for name in made_last {
        std::fs::write(path(name), "").unwrap();
    }
    let is_left = || leftovers.iter().any(|name| path(name).exists());
    let sweep = || (0..=255).for_each(|shard| files.sweep_nodes(shard).unwrap());
    files.sweep_nodes(0x42).unwrap();
    assert!(leftovers.iter().all(|name| path(name).exists()), "these are not of that shard");
    eventually(
        || {
            sweep();
            !is_left()
        },
        "leftovers are removed",
    );
    assert!(made_last.iter().all(|name| !path(name).exists()), "whose node is dead is made by nobody");
    assert!(path("04ff.wake").exists(), "somebody may be making it");
    assert!(is_alive(&files, &living.id) && files.wake_of(&living.id).exists());
    assert!(files.knock(&knock_for(&living.id, &hash_name("a"), None, Cause::News)));
}

#[test]
fn a_knock_wakes_the_node_it_is_for_and_a_takeover_is_told_apart() {
    let dir = TestDir::new();
    let files = home(&dir);
    let topic = hash_name("a");
    let (one, other) = (files.wakeup(&topic).unwrap(), files.wakeup(&topic).unwrap());
    for cause in [Cause::News, Cause::Takeover, Cause::News] {
        assert!(files.knock(&knock_for(one.node(), &topic, Some(3), cause)));
        assert!(is_woken(&one) && !is_woken(&other));
        assert_eq!(one.hear(), cause);
        assert!(!is_woken(&one), "it has heard it");
    }
    files.knock(&knock_for(one.node(), &topic, None, Cause::Takeover));
    files.knock(&knock_for(one.node(), &topic, None, Cause::News));
    assert_eq!(one.hear(), Cause::Takeover, "news do not hide it");
}

#[test]
fn a_node_whose_files_were_removed_makes_them_anew_under_its_name() {
    let dir = TestDir::new();
    let files = home(&dir);
    let topic = hash_name("a");
    let mut wakeup = files.wakeup(&topic).unwrap();
    let id = wakeup.node().to_owned();
    assert!(!wakeup.mend().unwrap(), "nothing is missing");
    for remove in [&[""][..], &[WAKE], &["", WAKE]] {
        for end in remove {
            std::fs::remove_file(files.nodes().join(format!("{id}{end}"))).unwrap();
        }
        assert!(wakeup.mend().unwrap() && !wakeup.mend().unwrap());
        assert!(is_alive(&files, &id) && wakeup.node() == id);
        files.knock(&knock_for(&id, &topic, None, Cause::News));
        assert!(is_woken(&wakeup));
        wakeup.hear();
    }
    std::fs::remove_dir_all(files.nodes()).unwrap();
    assert!(wakeup.mend().unwrap() && is_alive(&files, &id), "the folder too");
}

#[test]
fn those_of_a_process_are_one_node_and_each_is_woken_for_itself() {
    let _alone = lock(&ONE_AT_A_TIME);
    let dir = TestDir::new();
    let files = home(&dir);
    let one_node = files.listen_as_one().unwrap();
    let (a, b) = (hash_name("a"), hash_name("b"));
    let those = [listener(&files, &a, 1), listener(&files, &a, 2), listener(&files, &b, 1)];
    let id = those[0].node().to_owned();
    assert!(those.iter().all(|wakeup| wakeup.node() == id) && is_alive(&files, &id));
    let woken = || those.iter().map(|wakeup| is_woken(wakeup).then(|| wakeup.hear())).collect::<Vec<_>>();
    let (news, takeover) = (Some(Cause::News), Some(Cause::Takeover));
    for (topic, slot, cause, expected) in [
        (&a, Some(2), Cause::News, [None, news, None]),
        (&a, None, Cause::News, [news, news, None]),
        (&b, Some(1), Cause::Takeover, [None, None, takeover]),
        (&b, Some(2), Cause::News, [None, None, None]),
    ] {
        files.knock(&knock_for(&id, topic, slot, cause));
        assert_eq!(woken(), expected, "from within");
        // As another process does.
        call(&files.wake_of(&id), knock_for(&id, topic, slot, cause).message().as_bytes());
        eventually(|| expected.iter().zip(&those).all(|(is, wakeup)| is.is_none() || is_woken(wakeup)), "all are");
        assert_eq!(woken(), expected, "from without");
    }
    let elsewhere = TestDir::new();
    assert!(matches!(home(&elsewhere).wakeup(&a).unwrap(), Wakeup::Own(_)), "it is for one data folder");
    let shared = Arc::downgrade(&files.shared().unwrap());
    drop(those);
    drop(one_node);
    eventually(|| shared.upgrade().is_none(), "the shared node ends with whoever made it");
    assert!(!is_alive(&files, &id) && names(&files.nodes()).unwrap().is_empty());
}

#[test]
fn a_fifo_that_may_have_been_full_wakes_all() {
    let _alone = lock(&ONE_AT_A_TIME);
    let dir = TestDir::new();
    let files = home(&dir);
    let _one_node = files.listen_as_one().unwrap();
    let (a, b) = (listener(&files, &hash_name("a"), 1), listener(&files, &hash_name("b"), 1));
    let message = knock_for(a.node(), &hash_name("a"), None, Cause::News).message();
    assert_eq!(message.len(), MESSAGE);
    let hand_on = |bytes: &[u8]| {
        // What a read of the FIFO gives.
        std::fs::write(dir.join("read"), bytes).unwrap();
        files.shared().unwrap().hand_on(File::open(dir.join("read")).unwrap(), &mut vec![0; 64 * 1024]);
    };
    hand_on(message.repeat(MANY / MESSAGE).as_bytes());
    assert!(is_woken(&a) && !is_woken(&b));
    hand_on(message.repeat(MANY / MESSAGE + 1).as_bytes());
    assert!(is_woken(&a) && is_woken(&b));
    hand_on(&b"garbage\n".repeat(100));
}

#[test]
fn files_that_were_removed_under_a_hall_are_made_anew_and_all_look() {
    let _alone = lock(&ONE_AT_A_TIME);
    let dir = TestDir::new();
    let files = home(&dir);
    let _one_node = files.listen_as_one().unwrap();
    let wakeup = listener(&files, &hash_name("a"), 1);
    let id = wakeup.node().to_owned();
    std::fs::remove_dir_all(files.nodes()).unwrap();
    eventually(|| is_woken(&wakeup), "it is woken, because it may have missed a knock");
    assert!(files.nodes().join(&id).exists() && files.wake_of(&id).exists());
}

#[test]
fn others_of_a_process_see_how_far_a_listener_is() {
    let _alone = lock(&ONE_AT_A_TIME);
    let dir = TestDir::new();
    let files = home(&dir);
    let topic = hash_name("a");
    let at = |stream, position| Cursor { stream, position };
    assert!(!files.wakeup(&topic).unwrap().note(at(1, 1)), "alone it has to be written");
    let _one_node = files.listen_as_one().unwrap();
    let (new, old, other) = (listener(&files, &topic, 1), listener(&files, &topic, 1), listener(&files, &topic, 2));
    assert!(new.note(at(2, 50)) && old.note(at(1, 70)) && other.note(at(1, 60)));
    assert_eq!(
        files.cursors(&topic).unwrap().1,
        BTreeMap::from([(1, at(2, 50)), (2, at(1, 60))]),
        "a later stream's counts"
    );
    drop((new, old, other));
    assert!(files.cursors(&topic).unwrap().1.is_empty() && lock(&files.shared().unwrap().audiences).is_empty());
}

#[test]
fn files_that_were_removed_are_made_anew_though_others_knock_all_the_time() {
    let _alone = lock(&ONE_AT_A_TIME);
    let dir = TestDir::new();
    let files = home(&dir);
    let _one_node = files.listen_as_one().unwrap();
    let wakeup = listener(&files, &hash_name("a"), 1);
    let id = wakeup.node().to_owned();
    let message = knock_for(&id, &hash_name("a"), None, Cause::News).message();
    std::fs::remove_file(files.nodes().join(&id)).unwrap();
    eventually(
        || {
            // Never less than one every 5 ms.
            call(&files.wake_of(&id), message.as_bytes());
            files.nodes().join(&id).exists()
        },
        "its file is there",
    );
}

#[cfg(feature = "serve")]
#[test]
fn tasks_hear_what_others_knock_for_and_look_after_the_files() {
    let _alone = lock(&ONE_AT_A_TIME);
    let dir = TestDir::new();
    let files = home(&dir);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let one_node = runtime.block_on(async { files.listen_as_one().unwrap() });
    assert_eq!(runtime.metrics().num_alive_tasks(), 1, "there is no thread for it");
    let topic = hash_name("a");
    let wakeup = listener(&files, &topic, 1);
    let id = wakeup.node().to_owned();
    let is_heard = |cause| {
        call(&files.wake_of(&id), knock_for(&id, &topic, Some(1), cause).message().as_bytes());
        eventually(|| is_woken(&wakeup), "it is woken");
        assert_eq!(wakeup.hear(), cause);
    };
    [Cause::News, Cause::Takeover, Cause::News].into_iter().for_each(is_heard);
    std::fs::remove_dir_all(files.nodes()).unwrap();
    eventually(|| is_woken(&wakeup), "it may have missed a knock");
    wakeup.hear();
    // The FIFO is another one now.
    [Cause::News, Cause::Takeover].into_iter().for_each(is_heard);
    let shared = Arc::downgrade(&files.shared().unwrap());
    drop((wakeup, one_node));
    eventually(|| shared.upgrade().is_none(), "the shared node ends with whoever made it");
    eventually(|| runtime.metrics().num_alive_tasks() == 0, "and so does the task");
}
