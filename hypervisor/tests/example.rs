//! The example runs, on whatever this host has.

#[path = "../examples/private_page.rs"]
mod private_page;

#[test]
fn a_private_page_is_not_seen_outside() {
    private_page::main().unwrap();
}
