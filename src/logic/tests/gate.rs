// SPDX-License-Identifier: GPL-2.0
//! The order of a cut, with every possible failure.

use bdsnap_logic::gate::Cut;
use bdsnap_logic::gate::Step;

/// Makes a cut in which the step number `failing` fails, and checks all on the way. Returns how
/// many steps there were, and whether the cut was made.
fn run(filesystems: usize, levels: usize, failing: usize) -> (usize, bool) {
    let mut cut = Cut::new(filesystems, levels);
    let (mut frozen, mut closed, mut drained) = (Vec::new(), Vec::new(), 0);
    let mut switched = false;
    for count in 0.. {
        let ok = count != failing;
        match cut.step() {
            Step::Freeze(index) => {
                assert!(closed.is_empty() && index == frozen.len());
                if ok {
                    frozen.push(index);
                }
            }
            Step::Close(level) => {
                assert_eq!(
                    (frozen.len(), closed.len(), drained),
                    (filesystems, level, level)
                );
                if ok {
                    closed.push(level);
                }
            }
            Step::Drain(level) => {
                assert_eq!((closed.len(), drained), (level + 1, level));
                drained += usize::from(ok);
            }
            Step::Switch => {
                assert_eq!(
                    (frozen.len(), closed.len(), drained),
                    (filesystems, levels, levels)
                );
                assert!(!switched);
                switched = ok;
            }
            Step::Open(level) => assert_eq!(closed.pop(), Some(level)),
            Step::Thaw(index) => {
                assert!(closed.is_empty());
                assert_eq!(frozen.pop(), Some(index));
            }
            Step::Over { made } => {
                assert!(frozen.is_empty() && closed.is_empty());
                assert_eq!(made, switched);
                assert_eq!(cut.done(ok), Step::Over { made });
                return (count, made);
            }
        }
        let next = cut.done(ok);
        assert_eq!(next, cut.step());
    }
    unreachable!("a cut ends")
}

#[test]
fn whatever_fails_all_is_opened_and_thawed() {
    for filesystems in 0..4 {
        for levels in 0..4 {
            let (steps, made) = run(filesystems, levels, usize::MAX);
            assert!(made);
            assert_eq!(steps, 2 * filesystems + 3 * levels + 1);
            let forward = filesystems + 2 * levels + 1;
            for failing in 0..steps {
                assert_eq!(run(filesystems, levels, failing).1, failing >= forward);
            }
        }
    }
}
