//! Without any one of its orderings or steps the protocol does not hold: loom finds the interleaving that breaks it.

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};

use interleavings::{Guards, PageRange, Quiesce, Report, WaitForGuards, Weakening, scenarios, with};

/// Two threads touched a page without one having happened before the other.
const UNORDERED: &str = "Causality violation";

/// A device read what a page held after it was given back.
const STALE: &str = "a device saw what a discarded page holds";

/// Something other than the page's state was reported.
const WRONG_STATE: &str = "assertion `left == right` failed\n  left: Some(Private)\n right: Some(Shared)";

/// Checks that the scenario fails with this weakened, in one of these ways.
#[track_caller]
fn refuted(weakening: Weakening, ways: &[&str], scenario: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    let outcome = catch_unwind(AssertUnwindSafe(|| with(weakening, || builder.check(scenario))));
    let failure = outcome.expect_err("holds all the same");
    let message = failure.downcast_ref::<String>().cloned();
    let message = message.or_else(|| failure.downcast_ref::<&str>().map(|text| text.to_string()));
    let message = message.expect("a message");
    assert!(ways.iter().any(|way| message.contains(way)), "failed otherwise than expected: {message}");
}

/// Waits for nothing.
struct DoNothing;

impl Quiesce for DoNothing {
    fn quiesce(&self, _guards: &Guards, _range: PageRange, _report: &mut Report<'_>) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

/// Says that nobody is there, whoever is.
struct SayQuiet;

impl Quiesce for SayQuiet {
    fn is_quiet(&self, _guards: &Guards, _range: PageRange) -> bool {
        true
    }

    fn quiesce(&self, _guards: &Guards, _range: PageRange, _report: &mut Report<'_>) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

#[test]
fn without_looking_for_guards_before_going_on_at_rest() {
    refuted(Weakening::Nothing, &[UNORDERED, STALE], || scenarios::to_private_at_rest(&SayQuiet));
}

#[test]
fn without_looking_for_pins_before_going_on_at_rest() {
    refuted(Weakening::Nothing, &[UNORDERED, STALE], || scenarios::to_private_at_rest_beside_a_pin(&SayQuiet));
}

#[test]
fn without_sequential_consistency_between_pinning_and_testing() {
    let scenario = || scenarios::to_private_at_rest_beside_a_pin(&WaitForGuards);
    refuted(Weakening::Publish, &[UNORDERED, STALE], scenario);
}

#[test]
fn without_the_fence_between_revoking_and_looking_for_pins() {
    let scenario = || scenarios::to_private_at_rest_beside_a_pin(&WaitForGuards);
    refuted(Weakening::NoRevocationFence, &[UNORDERED, STALE], scenario);
}

#[test]
fn without_release_when_a_pin_ends() {
    refuted(Weakening::Clear, &[UNORDERED], || scenarios::to_private_at_rest_beside_a_pin(&WaitForGuards));
}

#[test]
fn without_acquire_when_pins_are_looked_for() {
    refuted(Weakening::Scan, &[UNORDERED], || scenarios::to_private_at_rest_beside_a_pin(&WaitForGuards));
}

#[test]
fn without_sequential_consistency_between_publishing_and_testing() {
    refuted(Weakening::Publish, &[UNORDERED, STALE], || scenarios::to_private(&WaitForGuards));
}

#[test]
fn without_the_fence_between_revoking_and_looking() {
    refuted(Weakening::NoRevocationFence, &[UNORDERED, STALE], || scenarios::to_private(&WaitForGuards));
}

#[test]
fn with_a_weaker_fence_between_revoking_and_looking() {
    refuted(Weakening::RevocationFence, &[UNORDERED, STALE], || scenarios::to_private(&WaitForGuards));
}

#[test]
fn without_testing_the_refused_bits() {
    refuted(Weakening::NoTest, &[UNORDERED, STALE], || scenarios::to_private(&WaitForGuards));
}

#[test]
fn without_waiting_for_guards() {
    refuted(Weakening::Nothing, &[UNORDERED, STALE], || scenarios::to_private(&DoNothing));
}

#[test]
fn without_waiting_for_pins() {
    refuted(Weakening::Nothing, &[UNORDERED, STALE], || scenarios::pins(&DoNothing));
}

#[test]
fn without_release_when_a_guard_ends() {
    refuted(Weakening::Clear, &[UNORDERED], || scenarios::to_private(&WaitForGuards));
}

#[test]
fn without_acquire_when_guards_are_looked_for() {
    refuted(Weakening::Scan, &[UNORDERED], || scenarios::to_private(&WaitForGuards));
}

#[test]
fn without_release_when_devices_are_let_in() {
    refuted(Weakening::Allow, &[UNORDERED], scenarios::to_shared);
}

#[test]
fn without_acquire_when_a_device_is_let_in() {
    refuted(Weakening::Test, &[UNORDERED], scenarios::to_shared);
}

#[test]
fn without_release_when_conversions_are_recorded() {
    refuted(Weakening::Record, &[WRONG_STATE], scenarios::state_while_conversions_are_given_up);
}

#[test]
fn without_acquire_when_the_record_is_read() {
    refuted(Weakening::Read, &[WRONG_STATE], scenarios::state_while_conversions_are_given_up);
}
