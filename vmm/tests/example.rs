//! The example runs.

#[path = "../examples/device_loop.rs"]
mod device_loop;

#[test]
fn a_device_and_conversions_share_a_page() {
    device_loop::main().unwrap();
}
