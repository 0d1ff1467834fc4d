// SPDX-License-Identifier: GPL-2.0
//! Calls for a work, by several threads: each is answered by a round that begins after it, no two rounds
//! run at a time, and a run comes to an end.

use bdsnap_logic::calls::Calls;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;
use std::time::Instant;

/// Callers.
const CALLERS: u64 = 3;
/// What each has to be done.
const EACH: u64 = 10_000;

/// Waits until so much is done. Ends the whole test if it is not: others may be waiting for ever, too.
fn await_done(done: &AtomicU64, wanted: u64) {
    let began = Instant::now();
    while done.load(Ordering::Relaxed) < wanted {
        if began.elapsed() > Duration::from_secs(60) {
            eprintln!("a call was lost");
            std::process::abort();
        }
        thread::yield_now();
    }
}

#[test]
fn every_call_is_answered() {
    let calls = Calls::new();
    let (todo, done) = (AtomicU64::new(0), AtomicU64::new(0));
    let busy = AtomicBool::new(false);
    // A queue: that a work is queued already is no error, and it runs once for that.
    let pending = AtomicBool::new(false);
    let (queue, works) = mpsc::channel();
    let enqueue = |queue: &mpsc::Sender<bool>| {
        if !pending.swap(true, Ordering::SeqCst) {
            queue.send(true).unwrap();
        }
    };
    thread::scope(|scope| {
        let again = queue.clone();
        let (calls, todo, done, busy, pending, enqueue) =
            (&calls, &todo, &done, &busy, &pending, &enqueue);
        scope.spawn(move || {
            while works.recv().unwrap() {
                pending.store(false, Ordering::SeqCst);
                let more = calls.answer(|| {
                    assert!(!busy.swap(true, Ordering::SeqCst), "two rounds at a time");
                    // Relaxed: the calls have to order it.
                    let seen = todo.load(Ordering::Relaxed);
                    // What is called for from here on is for another round.
                    thread::yield_now();
                    done.store(seen, Ordering::Relaxed);
                    busy.store(false, Ordering::SeqCst);
                });
                if more {
                    enqueue(&again);
                }
            }
        });
        let callers: Vec<_> = (0..CALLERS)
            .map(|_| {
                let queue = queue.clone();
                scope.spawn(move || {
                    for n in 0..EACH {
                        let mine = todo.fetch_add(1, Ordering::Relaxed) + 1;
                        if calls.call() {
                            enqueue(&queue);
                        }
                        // Now and then it waits for the answer: nobody else may call meanwhile.
                        if n % 4 == 0 {
                            await_done(done, mine);
                        }
                    }
                })
            })
            .collect();
        for caller in callers {
            caller.join().unwrap();
        }
        await_done(done, CALLERS * EACH);
        queue.send(false).unwrap();
    });
}

#[test]
fn a_run_comes_to_an_end() {
    let calls = Calls::default();
    assert!(calls.call());
    // Called in each round: it has to be queued again, and is not when it is called then.
    let mut rounds = 0;
    assert!(calls.answer(|| {
        rounds += 1;
        assert!(!calls.call());
    }));
    assert!((1..100).contains(&rounds));
    // Somebody else may queue it first, which does no harm.
    assert!(calls.call());
    assert!(!calls.answer(|| ()));
    assert!(calls.call());
}
