//! The product's protocol holds in every interleaving.

use interleavings::{WaitForGuards, scenarios};

fn check(scenario: impl Fn() + Send + Sync + 'static) {
    check_with(None, scenario);
}

/// Where there is too much to try, only what takes this many preemptions at most.
fn check_with(preemptions: Option<usize>, scenario: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = preemptions;
    builder.check(scenario);
}

#[test]
fn to_private() {
    check(|| scenarios::to_private(&WaitForGuards));
}

#[test]
fn to_private_at_rest() {
    check(|| scenarios::to_private_at_rest(&WaitForGuards));
}

#[test]
fn to_private_at_rest_beside_a_pin() {
    check(|| scenarios::to_private_at_rest_beside_a_pin(&WaitForGuards));
}

#[test]
fn to_private_two_words() {
    check(scenarios::to_private_two_words);
}

#[test]
fn to_shared() {
    check(scenarios::to_shared);
}

#[test]
fn there_and_back() {
    check(|| scenarios::there_and_back(&WaitForGuards));
}

#[test]
fn new_device() {
    check(scenarios::new_device);
}

#[test]
fn a_long_guard_elsewhere() {
    check(scenarios::a_long_guard_elsewhere);
}

#[test]
fn copies() {
    check(scenarios::copies);
}

#[test]
fn pins() {
    check(|| scenarios::pins(&WaitForGuards));
}

#[test]
fn overflow() {
    check(scenarios::overflow);
}

#[test]
fn two_conversions() {
    check_with(Some(3), scenarios::two_conversions);
}

#[test]
fn state_while_conversions_are_given_up() {
    check_with(Some(3), scenarios::state_while_conversions_are_given_up);
}

#[test]
fn state_while_converting() {
    check_with(Some(3), scenarios::state_while_converting);
}

#[test]
fn state_beside_another_conversion() {
    check(scenarios::state_beside_another_conversion);
}

#[test]
fn runs_while_a_conversion_is_given_up() {
    check_with(Some(3), scenarios::runs_while_a_conversion_is_given_up);
}
