//! What happens at random, and what happens in a quiet minute.

use super::*;
use proptest::prelude::*;

fn any_happening() -> impl Strategy<Value = Happening> {
    let post = |counts| {
        (counts, 0..300_usize, prop::bool::weighted(0.8)).prop_map(|(count, size, is_told)| Happening::Post {
            count,
            size,
            is_told,
        })
    };
    prop_oneof![
        8 => post(1..2_usize),
        2 => post(2..20),
        2 => Just(Happening::Knock),
        2 => (1..4000_u64).prop_map(Happening::Full),
        2 => prop_oneof![1..60_usize, Just(usize::MAX)].prop_map(Happening::Takes),
        1 => (1..3000_u64).prop_map(Happening::Stall),
        1 => (1..4_u32).prop_map(Happening::Fail),
    ]
}

/// Pauses before what happens: at the same time, within a tick, within a few rounds and keep-alives.
fn any_happenings(most: usize) -> impl Strategy<Value = Vec<(u64, Happening)>> {
    let pause = prop_oneof![2 => Just(0), 3 => 0..40_u64, 2 => 0..3000_u64, 1 => 0..7000_u64];
    prop::collection::vec((pause, any_happening()), 0..most)
}

fn any_plan() -> impl Strategy<Value = Plan> {
    let end = prop::sample::select(vec![End::Gone, End::Stopped, End::Superseded, End::Over]);
    let end = (0..8000_u64, end, any::<bool>());
    let keep_alive = prop::sample::select(vec![1000, 5000, 15_000_u64]);
    let poll_tick = prop::option::weighted(0.2, prop::sample::select(vec![50, 300, 60_000_u64]));
    let door = (any::<bool>(), prop::bool::weighted(0.7), keep_alive, poll_tick, any::<u64>());
    (door, any_happenings(20), end, any_happenings(5)).prop_map(|(door, mut happenings, end, late)| {
        let (is_own, is_surely_woken, keep_alive, poll_tick, dice) = door;
        happenings.push((end.0, Happening::End(end.1, end.2)));
        happenings.extend(late.into_iter().map(|(pause, happening)| (pause / 10, happening)));
        Plan { is_own, is_surely_woken, keep_alive, poll_tick, dice, happenings }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn whatever_happens_a_stream_gives_each_event_once_in_order_and_in_time_and_nothing_after_its_end(plan in any_plan()) {
        live(plan);
    }
}

/// A stream to which this happens, a minute, and the client leaves.
fn a_minute(is_own: bool, is_surely_woken: bool, poll_tick: Option<u64>, happenings: &[(u64, Happening)]) -> World {
    let mut happenings = happenings.to_vec();
    let rest = 60_000 - happenings.iter().map(|(pause, _)| pause).sum::<u64>();
    happenings.push((rest, Happening::End(End::Gone, true)));
    live(Plan { is_own, is_surely_woken, keep_alive: 15_000, poll_tick, dice: 1, happenings })
}

#[test]
fn an_idle_stream_costs_next_to_nothing_and_an_active_one_of_a_web_server_looks_every_20_ms() {
    let waits = |is_own, is_surely_woken, poll_tick, happenings: &[_]| {
        a_minute(is_own, is_surely_woken, poll_tick, happenings).waits
    };
    let message = (30_000, Happening::Post { count: 1, size: 10, is_told: true });
    // A round each 5 s, with which the keep-alives come, and the end. No write is waited for.
    let idle_own = waits(true, true, None, &[]);
    assert!((11..=13).contains(&idle_own), "{idle_own}");
    let active_own = waits(true, true, None, std::slice::from_ref(&message));
    assert!((idle_own..=idle_own + 2).contains(&active_own), "{active_own} after {idle_own}");
    // Fifty looks in its first second; then a round each 2 s, and keep-alives in three pieces, each with a wait and a write.
    let idle = waits(false, true, None, &[]);
    assert!((80..=120).contains(&idle), "{idle}");
    let active = waits(false, true, None, &[message]);
    assert!((idle + 40..=idle + 60).contains(&active), "{active} after {idle}");
    // Where wake-ups may not come, and where it is set for good.
    for (is_surely_woken, poll_tick, expected) in
        [(false, None, 3000), (true, Some(20), 3000), (false, Some(100), 600), (true, Some(60_000), 42)]
    {
        let waits = waits(false, is_surely_woken, poll_tick, &[]);
        assert!((expected..expected + expected / 2).contains(&waits), "{waits} for {expected}");
    }
}

#[test]
fn a_web_servers_stream_says_a_keep_alive_in_pieces_and_our_own_at_once() {
    let written = |is_own, happenings: &[_]| -> Vec<(u128, String)> {
        let world = a_minute(is_own, true, None, happenings);
        let begun = world.written[0].0;
        let written = world.written.into_iter().skip(1);
        written.map(|(at, bytes)| ((at - begun).as_millis(), String::from_utf8(bytes).unwrap())).collect()
    };
    let pieces = |at| [(at, ": sse-"), (at + 50, "keep-"), (at + 300, "alive\n")];
    let expected: Vec<_> = [pieces(15_000), pieces(30_300), pieces(45_600)].concat();
    let is_like = |written: &[(u128, String)], expected: &[(u128, &str)]| {
        let is_like =
            |((at, text), (due, piece)): (&(u128, String), &(u128, &str))| text == piece && at.abs_diff(*due) < 30;
        assert!(written.len() == expected.len() && written.iter().zip(expected).all(is_like), "{written:?}");
    };
    is_like(&written(false, &[]), &expected);
    let whole = [15_000, 30_000, 45_000].map(|at| (at, ": sse-keep-alive\n"));
    is_like(&written(true, &[]), &whole);
    // What comes between the pieces waits for nothing, and does not tear the comment.
    let message = (15_100, Happening::Post { count: 1, size: 1, is_told: true });
    let [first, second, _] = pieces(15_000);
    let event = (15_100, "alive\nid: 1\ndata: x\n\n");
    is_like(&written(false, &[message]), &[&[first, second, event][..], &pieces(30_100), &pieces(45_400)].concat());
}
